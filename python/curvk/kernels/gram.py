"""Gram products: K(X, Z) @ W for kernel functions, without the matrix K.

Arrays on a CUDA device are taken as those on the CPU are, all arguments of a call on one device and C-contiguous;
results and packed centers lie there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._arrays import Array, empty, numpy_view, on_host
from .._backend import Plan, call
from .._cuda import device_of
from .._errors import message
from . import noise
from ._centers import (
    Centers,
    Landmarks,
    Matrix,
    Rows,
    centers_of,
    contiguous_on_device,
    flat,
    like_reference,
    note_written,
    on_cpu,
    readable,
    result_of,
    rows_of,
)
from ._kernel_function import KERNELS, NUMBERS, Function, function_of, integer

__all__ = [
    "KERNELS",
    "Centers",
    "Landmarks",
    "bind",
    "block",
    "diagonal",
    "distances",
    "matvec",
    "median_distance",
    "rmatvec",
    "row_sums",
]

Progress = Callable[[int, int], object]

_SLICE_FLOPS = 1.5e9  # of one call: some 50 ms at the least, so that Ctrl-C and progress wait no longer
_SLICE_PAIRS = 1 << 20  # elements of the rows of pairs: their differences stay in the cache
_SLICE_ROWS = 96  # a shorter slice would read the centers from memory too often


def _run(
    op: str,
    x: Rows,
    centers: Centers,
    w: Array | None,
    c: int,
    out: Array | None,
    keep: Array | None,
    function: Function,
    accumulate: bool = False,
    progress: Progress | None = None,
) -> None:
    """The kernel in slices of rows, or at once on a device; a row's bits do not depend on its slice."""
    (n, d), m = x.layout.shape, len(centers)
    if progress is not None and not callable(progress):
        raise TypeError(message(op, "progress", f"{progress!r}", "a function of (rows done, rows), or None"))
    packed = centers._pack(function)
    per_row = max(m, 1) * (2 * d + 2 * c + 40)
    step = max(_SLICE_ROWS, int(_SLICE_FLOPS / per_row) // _SLICE_ROWS * _SLICE_ROWS)
    scalars = (m, d, c, function.number, function.scale, function.shape, function.degree, int(accumulate))
    shared = packed.panels, packed.norms, packed.center
    if x.device is not None:
        call("gram_matvec", (x.array, *shared, w, out, keep), (n, *scalars))
        if progress is not None:
            progress(n, n)
        return
    for i in range(0, n, step):
        part = slice(i, min(i + step, n))
        written = (None if a is None else a[part].reshape(-1) for a in (out, keep))
        rows, weights = x.layout[part].reshape(-1), w if w is None else w.reshape(-1)
        call("gram_matvec", (rows, *shared, weights, *written), (part.stop - i, *scalars))
        if progress is not None:
            progress(part.stop, n)


# ---- products -------------------------------------------------------------------------------------------------------


def matvec(
    X: Array,
    Z: Array | Centers,
    W: Array,
    *,
    out: Array = None,
    accumulate: bool = False,
    keep: Array = None,
    progress: Progress | None = None,
    **kernel: Any,
) -> Any:
    """K(X, Z) @ W, entry by entry and never stored.

    Args:
        X: (n, d), float32 or float64, any strides.
        Z: (m, d) of X's dtype, or `Centers` made of it once.
        W: (m, c) or (m,) of X's dtype.
        out: (n, c) or (n,), C-contiguous, to write to; a fresh array by default.
        accumulate: adds to `out`, which must then be given.
        keep: (n, m), C-contiguous, takes K(X, Z) too: a training step that has the residual G of the product then forms
            keep.T @ G of a block of rows without computing K again.
        progress: called as progress(rows done, n) after each slice of rows. Slices take some 50 ms, and Ctrl-C is heard
            between them; the rows done are then written, the others not. A device gets all rows at once.
        kernel: "gaussian" (default), and its parameters, with q the squared distance of x and z, h = bandwidth:

            - gaussian exp(-q / (2 h^2)), laplacian exp(-sqrt(q) / h);
            - matern32 (1 + r) exp(-r), r = sqrt(3 q) / h; matern52 (1 + r + r^2 / 3) exp(-r), r = sqrt(5 q) / h;
            - rational_quadratic (1 + q / (2 alpha h^2))^-alpha, imq (1 + q / h^2)^(-1/2);
            - exponent exp(-q^(gamma / 2) / h), for 0 < gamma <= 2;
            - polynomial (gamma x.z + coef0)^degree, linear x.z.

    Returns:
        `out`.

    Raises:
        TypeError, ValueError, BufferError: a wrong dtype, shape or kernel parameter, with nothing written; all kernels
            but the last two need `bandwidth`.

    Memory beside the arguments: O(m (c + d) + n). Distances are exact to rounding up to d = 12; above, by norms of
    centred rows, and anew by differences where that would cancel, so that k(x, x) is exact. curvk/gram.h states the
    bounds; about 1e-6 relative to sum abs(K W) in float32. A NaN in a row of X stays in its row. The bits are the same
    for every thread count, and those of a row whatever the others are; levels and backends differ within the bounds.

    >>> import numpy as np
    >>> X, Z = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    >>> matvec(X, Z, np.array([1.0, 1.0]), kernel="laplacian", bandwidth=1.0)
    array([1.13533528, 0.73575888])
    """
    return _product("matvec", ("X", "Z", "W"), (X, Z, W), out, accumulate, keep, progress, kernel)


def _product(
    op: str,
    names: tuple[str, str, str],
    arrays: tuple[Any, Any, Any],
    out: Array,
    accumulate: bool,
    keep: Array,
    progress: Progress | None,
    kernel: dict[str, Any],
) -> Any:
    """K(rows, centers) @ weights under the names that the caller gave them."""
    x = rows_of(op, names[0], arrays[0])
    centers = centers_of(op, names[1], arrays[1], x, names[0])
    w = like_reference(op, names[2], arrays[2], x, names[0])
    if w.ndim not in (1, 2) or len(w) != len(centers):
        needed = f"shape ({len(centers)},) or ({len(centers)}, c), a row for each in '{names[1]}'"
        raise ValueError(message(op, names[2], f"shape {w.shape}", needed))
    function = function_of(op, **kernel)
    read = dict(zip(names, (x.layout, centers._rows.layout, w), strict=True))
    shape, c = (len(x), *w.shape[1:]), math.prod(w.shape[1:])
    if out is None:
        if accumulate:
            raise ValueError(message(op, "out", "None", "the array to add to", "leave accumulate=False"))
        out = empty(x.array, shape, w.dtype, x.device)
        result = numpy_view(out, op, "out", x.device)
    else:
        result = result_of(op, "out", out, shape, read, x)
    kept = None if keep is None else result_of(op, "keep", keep, (len(x), len(centers)), read | {"out": result}, x)
    if x.device is not None:
        contiguous_on_device(op, names[2], w)
        _run(op, x, centers, arrays[2], c, out, keep, function, bool(accumulate), progress)
        return out
    w = readable(w.reshape(len(centers), c))
    try:
        _run(op, x, centers, w, c, result.reshape(len(x), c), kept, function, bool(accumulate), progress)
    finally:  # an interrupted call has written some rows
        note_written(out, keep)
    return out


def bind(X: Array, Z: Array | Centers, W: Array | None, *, out: Array, **kernel: Any) -> Callable[[], None]:
    """`matvec`, checked once and run as often as wanted: each call of the result writes K(X, Z) @ W to `out`.

    Args:
        X: C-contiguous, else as in `matvec`; what it holds may change between the calls.
        Z, W, out, kernel: as in `matvec`. Z and W must not change, but for rows that `Landmarks.replace` puts into Z.
            Without W, `out` takes K(X, Z) itself, as in `block`.

    Raises:
        TypeError, ValueError, BufferError: as `matvec`; X is not C-contiguous.

    For single rows at high rate: a call costs a microsecond beside the product, `matvec` some twenty. It is not cut
    into slices.

    >>> import numpy as np
    >>> x, f = np.zeros((1, 2)), np.empty((1, 1))
    >>> product = bind(x, np.eye(2), np.ones((2, 1)), out=f, bandwidth=1.0)
    >>> product(); f
    array([[1.21306132]])
    >>> x[0] = 1, 0; product(); f
    array([[1.36787944]])
    """
    x, op = rows_of("bind", "X", X), "bind"
    if x.device is None and not np.may_share_memory(x.layout, numpy_view(X, op, "X")):
        raise ValueError(message(op, "X", "an array that is not C-contiguous", "one that is", "use X.copy()"))
    centers = centers_of(op, "Z", Z, x, "X")
    f = function_of(op, **kernel)
    p = centers._pack(f)
    read = {"X": x.layout, "Z": centers._rows.layout}
    products: tuple[Array | None, ...]
    if W is None:
        result = result_of(op, "out", out, (len(x), len(centers)), read, x)
        c, products = 0, (None, None, flat(Rows(result, out, x.device)))
    else:
        w = like_reference(op, "W", W, x, "X")
        if w.ndim != 2 or len(w) != len(centers):
            raise ValueError(message(op, "W", f"shape {w.shape}", f"shape ({len(centers)}, c), a row for each in 'Z'"))
        c = w.shape[1]
        result = result_of(op, "out", out, (len(x), c), read | {"W": w}, x)
        if x.device is None:
            products = (readable(w).reshape(-1), result.reshape(-1), None)
        else:
            contiguous_on_device(op, "W", w)
            products = (W, out, None)
    plan = Plan("gram_matvec", (flat(x), p.panels, p.norms, p.center, *products))
    scalars = (len(x), len(centers), x.layout.shape[1], c, f.number, f.scale, f.shape, f.degree, 0)
    return lambda: plan.run(scalars)


def rmatvec(
    X: Array,
    Z: Array | Centers,
    G: Array,
    *,
    out: Array = None,
    accumulate: bool = False,
    progress: Progress | None = None,
    **kernel: Any,
) -> Any:
    """K(X, Z).T @ G: the transposed product, its entries computed anew.

    Args:
        X, Z: as in `matvec`; X may be `Centers` too, which saves packing it.
        G: (n, c) or (n,).
        out, accumulate, progress, kernel: as in `matvec`; out is (m, c) or (m,).

    Returns:
        `out`.

    Raises:
        TypeError, ValueError, BufferError: as `matvec`, which this is with X and Z exchanged, as kernels are symmetric.

    >>> import numpy as np
    >>> rmatvec(np.eye(2), np.zeros((1, 2)), np.ones(2), bandwidth=1.0)
    array([1.21306132])
    """
    x = X if isinstance(X, Centers) else Centers(rows_of("rmatvec", "X", X).array)
    z = centers_of("rmatvec", "Z", Z, x._rows, "X").array
    return _product("rmatvec", ("Z", "X", "G"), (z, x, G), out, accumulate, None, progress, kernel)


def row_sums(
    X: Array, Z: Array | Centers, *, out: Array = None, progress: Progress | None = None, **kernel: Any
) -> Any:
    """The sums over Z of k(x, z), shape (n,): `matvec` with W = 1.

    Args:
        X, Z, out, progress, kernel: as in `matvec`.

    Raises:
        TypeError, ValueError, BufferError: as `matvec`.

    >>> import numpy as np
    >>> row_sums(np.zeros((1, 2)), np.eye(2), bandwidth=1.0)
    array([1.21306132])
    """
    x = rows_of("row_sums", "X", X)
    centers = centers_of("row_sums", "Z", Z, x, "X")
    ones = empty(x.array, (len(centers),), x.layout.dtype, x.device)
    ones[...] = 1
    return _product("row_sums", ("X", "Z", "W"), (x.array, centers, ones), out, False, None, progress, kernel)


def block(X: Array, Z: Array | Centers, *, out: Array = None, progress: Progress | None = None, **kernel: Any) -> Any:
    """K(X, Z) itself, shape (n, m).

    Args:
        X, Z, out, progress, kernel: as in `matvec`.

    Raises:
        TypeError, ValueError, BufferError: as `matvec`.

    An entry's bits depend on its two rows alone up to d = 12, and beyond that on the mean of Z as well; K(X, X) is
    symmetric to the bit.

    >>> import numpy as np
    >>> block(np.array([[0.0], [1.0]]), np.array([[0.0]]), kernel="imq", bandwidth=1.0)
    array([[1.        ],
           [0.70710678]])
    """
    return _block("block", X, Z, out, function_of("block", **kernel), progress)


def distances(X: Array, Z: Array | Centers, *, squared: bool = False, out: Array = None) -> Any:
    """Euclidean distances of the rows, shape (n, m), with the accuracy that `matvec` states.

    Args:
        X, Z, out: as in `matvec`.
        squared: gives their squares.

    Raises:
        TypeError, ValueError, BufferError: as `matvec`.

    >>> import numpy as np
    >>> distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]))
    array([[5.]])
    """
    name = "squared distance" if squared else "distance"
    return _block("distances", X, Z, out, Function(NUMBERS[name]))


def _block(
    op: str, X: Array, Z: Array | Centers, out: Array, function: Function, progress: Progress | None = None
) -> Any:
    x = rows_of(op, "X", X)
    centers = centers_of(op, "Z", Z, x, "X")
    shape = (len(x), len(centers))
    if out is None:
        out = result = empty(x.array, shape, x.layout.dtype, x.device)
    else:
        result = result_of(op, "out", out, shape, {"X": x.layout, "Z": centers._rows.layout}, x)
    if x.device is not None:
        _run(op, x, centers, None, 0, None, out, function, progress=progress)
        return out
    try:
        _run(op, x, centers, None, 0, None, result, function, progress=progress)
    finally:
        note_written(out)
    return out


def diagonal(X: Array, **kernel: Any) -> Any:
    """k(x, x) for each row, shape (n,): 1 where the kernel is one of distances.

    Args:
        X, kernel: as in `matvec`; X lies on the CPU.

    Raises:
        TypeError, ValueError, BufferError: as `matvec`; an array on a device.

    >>> import numpy as np
    >>> diagonal(np.array([[1.0, 2.0]]), kernel="linear")
    array([5.])
    """
    if device_of(X) is not None:
        numpy_view(X, "diagonal", "X")  # which says that it must lie on the CPU
    x = rows_of("diagonal", "X", X).layout
    function = function_of("diagonal", **kernel)
    if function.of_distance:
        return np.where(np.isfinite(x).all(axis=1), x.dtype.type(1), x.dtype.type(np.nan))
    s = np.einsum("nd,nd->n", x, x)
    with np.errstate(all="ignore"):  # infinite where `block` is
        return s if function.number == 0 else (function.scale * s + function.shape).astype(x.dtype) ** function.degree


# ---- bandwidth ------------------------------------------------------------------------------------------------------

_SAMPLE = 4096  # pairs at least, and four for each row: they bracket the median
_FEW_ROWS = 128  # up to here all distances fit in the cache
_SQUARED = Function(NUMBERS["squared distance"])
_SPREAD = 4.0  # standard deviations of a sample's rank to either side


def _random_pairs(n: int, pairs: int, seed: int) -> tuple[Matrix, Matrix]:
    """Indices i < j, uniform over pairs, from the noise stream."""
    u = np.empty((2, pairs))
    noise.fill(u, seed=seed, tensor=noise.tensor_word("median_distance", "sampling"), dist="uniform")
    first = (u[0] * n).astype(np.int64)
    second = (u[1] * (n - 1)).astype(np.int64)
    second += second >= first
    return first, second


def _pair_squares(x: Matrix, first: Matrix, second: Matrix) -> Matrix:
    squares = np.empty(len(first), x.dtype)
    step = max(1, _SLICE_PAIRS // max(1, x.shape[1]))
    for i in range(0, len(first), step):
        e = x[first[i : i + step]] - x[second[i : i + step]]
        np.einsum("nd,nd->n", e, e, out=squares[i : i + step])
    return squares


def median_distance(X: Array, *, pairs: int | None = None, seed: int = 0) -> float:
    """The median of the distances between different rows: the usual bandwidth.

    Args:
        X: (n, d), n >= 2, finite, float32 or float64.
        pairs: takes the median of so many random pairs, from the noise stream; None (default) that of all of them, in
            O(n^2 d) time and memory for the few that come close, about n^1.5.
        seed: of the random pairs, in [0, 2^64).

    Returns:
        The median; with an even number of pairs the mean of the two in the middle, as numpy.median. A device is waited
        for, and X copied to the CPU, which checks it and draws pairs; the device counts the distances of all pairs.

    Raises:
        TypeError, ValueError: as `matvec`; fewer than two rows, or rows that are not finite.

    >>> import numpy as np
    >>> median_distance(np.array([[0.0], [1.0], [3.0]]))
    2.0
    """
    op = "median_distance"
    rows = rows_of(op, "X", X)
    n = len(rows)
    if n < 2:
        raise ValueError(message(op, "X", f"{n} rows", "two or more"))
    x = rows.layout if rows.device is None else on_host(rows.array)
    if not np.isfinite(x).all():
        raise ValueError(
            message(op, "X", "rows that are not finite", "finite rows", "use X[np.isfinite(X).all(axis=1)]")
        )
    largest = float(abs(x).max())
    if not 4.0 * x.shape[1] * largest * largest < float(np.finfo(x.dtype).max):  # a power would raise OverflowError
        raise ValueError(message(op, "X", f"distances beyond {x.dtype}", "smaller numbers", "scale X down"))
    if not 0 <= integer(op, "seed", seed, 0) < 2**64:
        raise ValueError(message(op, "seed", f"{seed}", "an integer in [0, 2^64)"))
    if pairs is not None:
        count = integer(op, "pairs", pairs, 1, ", or None")
        return float(np.sqrt(np.median(_pair_squares(x, *_random_pairs(n, count, seed)))))
    total = n * (n - 1) // 2
    low, high = _order_statistics(x, rows, (total - 1) // 2, total // 2, seed)
    return 0.5 * (math.sqrt(low) + math.sqrt(high))


def _order_statistics(x: Matrix, rows: Rows, first: int, last: int, seed: int) -> tuple[float, float]:
    """The squared distances of ranks first and last among all pairs, counted from 0; x is what the rows hold."""
    n, total = len(x), len(x) * (len(x) - 1) // 2
    if n <= _FEW_ROWS:  # all of them: n zeros, then each pair twice
        ranks = n + 2 * first, n + 2 * last
        matrix = np.empty((n, n), x.dtype)
        _run("median_distance", on_cpu(x), Centers(x), None, 0, None, matrix, _SQUARED)
        q = matrix.reshape(-1)
        q.partition(sorted(set(ranks)))
        return float(q[ranks[0]]), float(q[ranks[1]])
    sample = np.sort(_pair_squares(x, *_random_pairs(n, max(_SAMPLE, 4 * n), seed)))
    centers, spread = Centers(rows.array), _SPREAD
    while True:
        margin = spread * math.sqrt(sample.size) / 2
        ranks = math.floor(first / total * sample.size - margin), math.ceil(last / total * sample.size + margin)
        low = float(sample[ranks[0]]) if ranks[0] >= 0 else -1.0
        high = float(sample[ranks[1]]) if ranks[1] < sample.size else float(np.finfo(x.dtype).max)
        counts, inside = _between(rows, centers, low, high)
        below, to_low, under, to_high = counts
        if below <= first and last < to_high:
            wanted = [k - to_low for k in (first, last) if to_low <= k < under]
            values = np.partition(inside, wanted) if wanted else inside
            a, b = (low if k < to_low else high if k >= under else float(values[k - to_low]) for k in (first, last))
            return a, b
        spread *= 4  # the sample was unlikely, or its rounding differs at a tie


def _between(x: Rows, centers: Centers, low: float, high: float) -> tuple[tuple[int, ...], Matrix]:
    """How many pairs are below, up to, under and up to the bounds; the squares strictly between them."""
    (n, d), dtype = x.layout.shape, x.layout.dtype
    packed = centers._pack(_SQUARED)
    totals, inside = np.zeros(4, np.int64), []
    step = max(_SLICE_ROWS, int(_SLICE_FLOPS / (n * (2 * d + 40))))
    for i in range(0, n, step):
        length, capacity = min(step, n - i), n // 8 + 64
        part = flat(Rows(x.layout[i : i + step], x.array[i : i + step], x.device))
        while True:
            taken = empty(x.array, (length * 4,), "int64", x.device)
            squares = empty(x.array, (length * capacity,), dtype, x.device)
            columns = part, packed.panels, packed.norms, packed.center, squares, taken
            call("gram_select", columns, (length, n, d, i, low, high, capacity))
            counts, found = on_host(taken).reshape(length, 4), on_host(squares).reshape(length, capacity)
            lengths = counts[:, 2] - counts[:, 1]
            if lengths.max() <= capacity:
                break
            capacity = n
        totals += counts.sum(axis=0)
        inside.append(found[np.arange(capacity) < lengths[:, None]])
    return tuple(int(t) for t in totals), np.concatenate(inside)
