"""Sketches of matrices, and the low-rank changes of factorisations that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import Array, check, numpy_view, written
from .._backend import call
from .._errors import message
from .noise import _integer, _stream, tensor_word

__all__ = ["eigh_update", "qr_update", "sjlt", "sjlt_rows"]

LARGEST = 512
"""Columns of the largest V that `eigh_update` takes."""

_TENSOR = tensor_word("sjlt", "sketch")
_SLICE = 2.5e7
"""Elements, each counted once for a block, between two looks for Ctrl-C: below 50 ms."""
_SLICE_PRODUCT = 2.0e8
"""The same for `eigh_update`, in products."""


def sjlt(A: Array, out: Array, *, seed: int, first_row: int = 0, blocks: int = 1) -> None:
    """Adds the sparse Johnson-Lindenstrauss transform of a matrix: out <- out + S^T A.

    Row r of S, a function of the seed and of r, has an entry of +1/sqrt(blocks) or -1/sqrt(blocks) at a random place in
    each of `blocks` blocks of s / blocks columns. So rows may come in any number of calls, and the bits of `out` do not
    depend on how many. One block is the CountSketch.

    Args:
        A: rows, shape (n, d), float32 or float64. NumPy arrays, torch CPU tensors, and anything with DLPack or the
            buffer protocol; copied where not C-contiguous.
        out: the sketch, shape (s, d), float64, C-contiguous, written. Begin with zeros.
        seed: in [0, 2^64).
        first_row: the number of A's first row, >= 0; the next call goes on with first_row + n.
        blocks: entries in each row of S, a divisor of s.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`; `blocks` that does not divide s.

    E[S S^T] = I, and the variance of a vector's squared norm in the sketch is 2 / s (norm_2(x)^4 - norm_4(x)^4),
    whatever `blocks` is. Places are uniform within a relative s 2^-31. A NaN or an infinity stays in its column, in the
    `blocks` elements it is added to. Terms are added in float64 in the order of the rows: the same bits at every thread
    count and SIMD level and in the Numba twin. Reads 8 bytes for a float64 element and adds it `blocks` times; threads
    share out the columns. Sources: Clarkson & Woodruff 2013, Kane & Nelson 2014; the noise stream of
    `curvk.kernels.noise` with the purpose "sketch".

    >>> import numpy as np
    >>> out = np.zeros((2, 1))
    >>> sjlt(np.array([[1.0], [10.0], [100.0]]), out, seed=0)
    >>> out
    array([[-90.],
           [ -1.]])
    """
    name = "sjlt"
    n, d = _matrix(name, "A", A)
    s, columns = _matrix(name, "out", out)
    if columns != d or s < 1:
        raise ValueError(message(name, "out", f"shape {(s, columns)}", f"shape (s, {d}) with s >= 1, columns like 'A'"))
    blocks, seed, first = _keys(name, n, s, seed, first_row, blocks)
    if n * d * blocks <= _SLICE:
        call(name, (A, out), (n, d, s, blocks, seed, _TENSOR, first))
        return
    resolved = check(name, (A, out))
    rows, to = resolved.columns
    step = int(_SLICE / (d * blocks)) + 1
    for i in range(0, n, step):
        part = rows[i : i + step]
        call(name, (part, to), (len(part), d, s, blocks, seed, _TENSOR, first + i))
    if resolved.foreign:
        written(resolved.foreign)


def sjlt_rows(n: int, s: int, *, seed: int, first_row: int = 0, blocks: int = 1, out: Array | None = None) -> Any:
    """Rows of the matrix S that `sjlt` multiplies by, with their zeros.

    Args:
        n: number of rows.
        s: their length, >= 1.
        seed, first_row, blocks: as in `sjlt`.
        out: array to write to: shape (n, s), float64; a fresh NumPy array by default.

    Returns:
        Rows first_row .. first_row + n of S, shape (n, s).

    Raises:
        TypeError, ValueError, BufferError: as `sjlt`.

    >>> sjlt_rows(3, 2, seed=0)
    array([[ 0., -1.],
           [ 1.,  0.],
           [-1.,  0.]])
    """
    name = "sjlt_rows"
    n = _integer(name, "n", n, 1 << 40, "2^40")
    s = _integer(name, "s", s, 1 << 30, "2^30")
    blocks, seed, first = _keys(name, n, s, seed, first_row, blocks)
    if out is not None and _matrix(name, "out", out) != (n, s):
        raise ValueError(message(name, "out", f"shape {_matrix(name, 'out', out)}", f"shape {(n, s)}"))
    rows = np.empty((n, s)) if out is None else out
    call(name, (rows,), (n, s, blocks, seed, _TENSOR, first))
    return rows


# ---- updates of factorisations --------------------------------------------------------------------------------------


def eigh_update(d: Array, V: Array, z: Array, rho: float = 1.0) -> None:
    """Eigenvalues and eigenvectors after a change of rank one, in place: d <- d', V <- V U, where::

        diag(d) + rho z z^T = U diag(d') U^T

    So V diag(d) V^T becomes V diag(d) V^T + rho x x^T with z = V^T x for an x in the span of V's columns. Two calls
    change the rank by two: x y^T + y x^T is half of (x + y)(x + y)^T - (x - y)(x - y)^T.

    Args:
        d: eigenvalues, shape (k,) with k from 1 to 512, float64, written: ascending, in whatever order they came.
        V: their eigenvectors in its columns, shape (m, k), float64, C-contiguous, written. Its rows need not be k.
        z: shape (k,), float64.
        rho: a finite number of either sign.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`; k above 512, rho not finite.

    With norm = max(abs(d), abs(rho) z^T z) and eps = 2^-52, eigenvalues, residuals, and norm times the elements of
    U^T U - I are within 4 max(k, 4) eps norm of exact; 10,000 updates of a 40 x 40 matrix left V^T V 4e-14 from I.
    Small entries of z and close eigenvalues are left as they are, which saves work. The component of a vector along the
    old one that it comes from is not negative. A NaN or an infinity in d or z makes d and V NaN, one in V stays in its
    row. 2 k^2 operations for each row of V and some 80 k^2 beside; the same bits at every thread count and SIMD level
    and in the Numba twin. Sources: Bunch, Nielsen & Sorensen 1978, Gu & Eisenstat 1994; curvk/sketch.h says how the
    zeros are found.

    >>> import numpy as np
    >>> d, V = np.array([1.0, 1.0]), np.eye(2)
    >>> eigh_update(d, V, np.array([3.0, 4.0]))
    >>> d
    array([ 1., 26.])
    >>> np.round(V.T @ [3.0, 4.0], 12)
    array([0., 5.])
    """
    name = "eigh_update"
    m, k = _matrix(name, "V", V)
    if not 1 <= k <= LARGEST:
        remedy = "use numpy.linalg.eigh" if k else ""
        raise ValueError(message(name, "V", f"shape {(m, k)}", f"1 to {LARGEST} columns", remedy))
    _vector(name, "d", d, k, "V")
    _vector(name, "z", z, k, "V")
    if m * k * k <= _SLICE_PRODUCT:
        call(name, (z, d, V), (m, k, rho))
        return
    resolved = check(name, (z, d, V))
    z, d, V = resolved.columns
    before, step = d.copy(), int(_SLICE_PRODUCT / (k * k))
    for i in range(0, m, step):  # the eigenvalues anew for each slice: little beside its product
        d[:] = before
        part = V[i : i + step]
        call(name, (z, d, part), (len(part), k, rho))
    if resolved.foreign:
        written(resolved.foreign)


def qr_update(Q: Array, R: Array, u: Array, v: Array) -> None:
    """The thin QR factorisation after a change of rank one, in place: Q' R' = Q R + u v^T.

    Args:
        Q: orthonormal columns, shape (m, n) with m >= n >= 1, float64, C-contiguous, written.
        R: shape (n, n), float64, C-contiguous; its upper triangle is read and written; the diagonal
            becomes 0 or positive, so that the factors are those of the matrix alone.
        u, v: shapes (m,) and (n,), float64.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`, or shapes that do not fit.

    Q' R' differs from Q R + u v^T by less than 8 n eps (norm(R) + norm(u) norm(v)), and Q'^T Q' from I by less than
    8 n eps more than Q^T Q did; 10,000 updates of a 60 x 20 matrix left it 3e-14 from I. Where an argument holds a NaN
    or an infinity, Q and R become NaN. 20 m n + 6 n^2 operations, without a look for Ctrl-C; the same bits at every
    thread count and SIMD level and in the Numba twin. Source: Daniel, Gragg, Kaufman & Stewart 1976.

    >>> import numpy as np
    >>> Q, R = np.array([[1.0], [0.0]]), np.array([[3.0]])
    >>> qr_update(Q, R, np.array([0.0, 4.0]), np.ones(1))
    >>> R, np.round(Q, 12)
    (array([[5.]]), array([[0.6],
           [0.8]]))
    """
    name = "qr_update"
    m, n = _matrix(name, "Q", Q)
    if not m >= n >= 1:
        raise ValueError(message(name, "Q", f"shape {(m, n)}", "shape (m, n) with m >= n >= 1"))
    if _matrix(name, "R", R) != (n, n):
        raise ValueError(message(name, "R", f"shape {_matrix(name, 'R', R)}", f"shape {(n, n)}, the columns of 'Q'"))
    _vector(name, "u", u, m, "Q")
    _vector(name, "v", v, n, "Q")
    call(name, (u, v, Q, R), (m, n))


# ---- arguments ------------------------------------------------------------------------------------------------------


def _matrix(function: str, name: str, x: Array) -> tuple[int, int]:
    shape = (x if type(x) is np.ndarray else numpy_view(x, function, name)).shape
    if len(shape) != 2:
        remedy = f"use {name}[None] for one row" if len(shape) == 1 else ""
        raise ValueError(message(function, name, f"shape {shape}", "a matrix", remedy))
    return shape[0], shape[1]


def _vector(function: str, name: str, x: Array, length: int, like: str) -> None:
    shape = (x if type(x) is np.ndarray else numpy_view(x, function, name)).shape
    if shape != (length,):
        raise ValueError(message(function, name, f"shape {shape}", f"shape ({length},) like '{like}'"))


def _keys(function: str, n: int, s: int, seed: Any, first_row: Any, blocks: Any) -> tuple[int, int, int]:
    """Blocks, seed and first row as the kernels take them."""
    first = _integer(function, "first_row", first_row, (1 << 63) - n, f"2^63 - {n}")
    count = _integer(function, "blocks", blocks, 1 << 30, "2^30")
    if count < 1 or s % count:
        raise ValueError(message(function, "blocks", f"{count}", f"a divisor of {s}, the length of S's rows"))
    return count, _stream(function, seed, "rademacher")[0], first
