"""Eigenvalues and singular values of many small matrices at once.

Arrays on a CUDA device are taken as those on the CPU are, all arguments of a call on one device; results lie there too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import Array, check, empty, numpy_view, written
from .._backend import call
from .._cuda import device_of
from .._errors import message

__all__ = ["eigh_batch", "svd_batch"]

LARGEST = 64
"""Rows or columns of the largest matrix; in float64 LAPACK is faster from somewhat below on."""

_SLICE = 2.0e7
"""Cubes of the larger side between two looks for Ctrl-C, below 50 ms of Jacobi's method."""


def eigh_batch(A: Array, *, out: tuple[Array, Array] | None = None) -> tuple[Any, Any]:
    """Eigenvalues and eigenvectors of many small symmetric matrices: A[i] @ V[i] = V[i] * w[i].

    Args:
        A: matrices, shape (n, d, d) with d from 1 to 64, float32 or float64; of each the lower triangle is read. NumPy
            arrays, torch tensors, and anything with DLPack or the buffer protocol; copied where not C-contiguous, which
            a device's array must be.
        out: arrays (w, V) to write to: shapes (n, d) and (n, d, d), A's dtype, C-contiguous; fresh NumPy arrays by
            default, or arrays beside A on its device.

    Returns:
        (w, V): w ascending; the columns of V[i] are orthonormal, V[i][:, k] belongs to w[i, k]. The first of each
        column's largest components is positive. Matrices with a NaN or an infinity give NaN, for themselves alone.

    Raises:
        TypeError: another dtype; `out` no pair of arrays.
        ValueError: not a stack of square matrices of these sizes; `out` of another shape or layout, or memory shared.
        BufferError: `out` read-only, or an array on another device.

    The same bits at every thread count and SIMD level and in the Numba twin, whatever stands beside a matrix. With norm
    the largest abs(w) of a matrix and eps that of the dtype, abs(A V - V w), abs(V' V - I) norm and the error of w are
    below 4 d eps norm. About 40 d^3 operations for each matrix. Source: cyclic Jacobi (Rutishauser 1966), one matrix
    in each lane of a vector register, pairs in the order of a round robin.

    >>> import numpy as np
    >>> w, V = eigh_batch(np.array([[[2.0, 1.0], [1.0, 2.0]]]))
    >>> w
    array([[1., 3.]])
    >>> np.round(V[0] * np.sqrt(2), 12)
    array([[ 1.,  1.],
           [-1.,  1.]])
    """
    device = device_of(A)
    view = _stack("eigh_batch", A, device)
    n, rows, d = view.shape
    if rows != d:
        raise ValueError(message("eigh_batch", "A", f"shape {view.shape}", "square matrices, shape (n, d, d)"))
    w, V = out = _results("eigh_batch", A, view, out, {"w": (n, d), "V": (n, d, d)}, device)
    _run("eigh_batch", view, (A, *out), (d,), device)
    return w, V


def svd_batch(A: Array, *, out: tuple[Array, Array, Array] | None = None) -> tuple[Any, Any, Any]:
    """The thin singular value decomposition of many small matrices: A[i] = (U[i] * s[i]) @ Vt[i].

    Args:
        A: matrices, shape (n, p, d) with p and d from 1 to 64; dtypes and layouts as in `eigh_batch`.
        out: arrays (U, s, Vt) to write to: shapes (n, p, m), (n, m) and (n, m, d) with m = min(p, d), A's dtype,
            C-contiguous; by default as in `eigh_batch`.

    Returns:
        (U, s, Vt): s descending; the columns of U[i] and the rows of Vt[i] are orthonormal, also where the rank is
        less than m. The first of the largest components of each column of U is positive. Matrices with a NaN or an
        infinity give NaN, for themselves alone.

    Raises:
        TypeError, ValueError, BufferError: as `eigh_batch`.

    The same bits at every thread count and SIMD level and in the Numba twin, whatever stands beside a matrix. With eps
    that of the dtype, abs(A - U s Vt) / s[0], abs(U' U - I), abs(Vt Vt' - I) and the error of s / s[0] are below
    4 max(p, d) eps; small singular values are mostly better, as one-sided Jacobi's are (Demmel & Veselic 1992). About
    35 max(p, d) m^2 operations for each matrix. Source: Hestenes 1958, one matrix in each lane of a vector register.

    >>> import numpy as np
    >>> U, s, Vt = svd_batch(np.array([[[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]]))
    >>> s
    array([[4., 3.]])
    >>> (U * s[:, None, :]) @ Vt
    array([[[ 3.,  0.],
            [ 0., -4.],
            [ 0.,  0.]]])
    """
    device = device_of(A)
    view = _stack("svd_batch", A, device)
    n, p, d = view.shape
    m = min(p, d)
    U, s, Vt = out = _results("svd_batch", A, view, out, {"U": (n, p, m), "s": (n, m), "Vt": (n, m, d)}, device)
    _run("svd_batch", view, (A, *out), (p, d), device)
    return U, s, Vt


def _view(x: Array, function: str, name: str, device: int | None) -> np.ndarray[Any, Any]:
    """`numpy_view`, whose look for bfloat16 costs a NumPy array 2 us, more than a hundred 2 x 2 matrices."""
    return x if type(x) is np.ndarray and device is None else numpy_view(x, function, name, device)


def _stack(function: str, A: Array, device: int | None) -> np.ndarray[Any, Any]:
    view = _view(A, function, "A", device)
    if view.ndim != 3:
        raise ValueError(message(function, "A", f"shape {view.shape}", "shape (n, p, d)", "use A[None] for one matrix"))
    if not (1 <= view.shape[1] <= LARGEST and 1 <= view.shape[2] <= LARGEST):
        needed = f"matrices of 1 to {LARGEST} rows and columns"
        remedy = f"use numpy.linalg.{function[:-6]}" if view.size else ""
        raise ValueError(message(function, "A", f"shape {view.shape}", needed, remedy))
    return view


def _results(
    function: str,
    A: Array,
    view: np.ndarray[Any, Any],
    out: Any,
    shapes: dict[str, tuple[int, ...]],
    device: int | None,
) -> tuple[Array, ...]:
    if out is None:
        return tuple(empty(A, shape, view.dtype, device) for shape in shapes.values())
    names = f"({', '.join(shapes)})"
    if not isinstance(out, (tuple, list)):
        raise TypeError(message(function, "out", type(out).__name__, f"a tuple of arrays {names}"))
    if len(out) != len(shapes):
        raise ValueError(message(function, "out", f"{len(out)} arrays", f"{len(shapes)}: {names}"))
    for (name, shape), x in zip(shapes.items(), out, strict=True):
        found = _view(x, function, name, device).shape
        if found != shape:
            raise ValueError(message(function, name, f"shape {found}", f"shape {shape}"))
    return tuple(out)


def _run(
    function: str,
    A: np.ndarray[Any, Any],
    columns: tuple[Array, ...],
    sides: tuple[int, ...],
    device: int | None,
) -> None:
    """One call, or for much work on the CPU several, between which Ctrl-C is heard; devices are not waited for."""
    n = len(A)
    cube = max(A.shape[1:]) ** 3
    if n * cube <= _SLICE or device is not None:
        call(function, columns, (n, *sides))
        return
    resolved = check(function, columns)
    step = int(_SLICE / cube) // 64 * 64 + 64
    for i in range(0, n, step):
        parts = tuple(x[i : i + step] for x in resolved.columns)
        call(function, parts, (len(parts[0]), *sides))
    if resolved.foreign:
        written(resolved.foreign)
