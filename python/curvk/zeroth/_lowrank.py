"""Noise of low rank: for a matrix z = U V^T / sqrt(rank), of which only the factors are drawn.

An array of 2 or more dimensions is a matrix of m = shape[0] rows and n = prod(shape[1:]) columns, in logical C order;
others have noise of independent elements. With entries of variance 1 and E[(z . G) z] = G, estimators need not know::

    U (m x rank)     the probe's own draw, at the tensor word of the name
    V (n x rank)     draw number // period of the tensor word of the name with the purpose "basis"

so that all draws of a period share V. Factors are float32 noise; a matrix is written in its own precision (16-bit ones
in float32, rounded once) by multiplications and additions in a fixed order, never by BLAS: the same bits on every
machine. Source of the method: LOZO (Chen et al. 2024, arXiv 2410.07698), whose U V^T has entries of variance rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._loops.half import decode, encode
from ..kernels import noise
from . import _device

if TYPE_CHECKING:
    from .._arrays import Array
    from ._update import Noise, Tensors

Factor = np.ndarray[Any, np.dtype[Any]]
"""float64 for float64 arrays, else float32."""

_TILE = 1 << 15  # elements of a matrix written at a time: with two more arrays of this size they stay in cache


def lefts(
    tensors: Tensors,
    stream: Noise,
    matrices: Sequence[int],
    draws: Sequence[int],
    coefs: Sequence[float] | Factor,
    start: Mapping[int, Factor] | None = None,
    decay: float = 0.0,
) -> dict[int, Factor]:
    """The left factors (m x rank) of a sum of draws: sum_k coefs[k] U_k for each matrix.

    Args:
        tensors, stream: the weights and their noise.
        matrices: their indices.
        draws, coefs: of the sum.
        start: factors to add to, which are written and returned; (1 - decay) of them is kept where the tensor decays.
    """
    dtypes = [np.float64 if tensors.kinds[i] == "f64" else np.float32 for i in matrices]
    if start is None:
        sizes = [(sizes_of(tensors, i)[0], stream.rank) for i in matrices]
        start = {i: np.zeros(s, dtype) for i, s, dtype in zip(matrices, sizes, dtypes, strict=True)}
    alike: dict[tuple[Any, float], list[int]] = {}
    for i, dtype in zip(matrices, dtypes, strict=True):
        alike.setdefault((dtype, decay if tensors.decays[i] else 0.0), []).append(i)
    for (_, d), batch in alike.items():
        words = [tensors.words[i] for i in batch]
        common: Any = {"seed": stream.seed, "dist": stream.dist, "draws": draws, "coefs": coefs}
        noise.axpy_seeds_([start[i] for i in batch], tensor=words, decay=d, **common)
    return dict(start)


def basis(tensors: Tensors, stream: Noise, i: int, draws: Sequence[int]) -> Factor:
    """The right factor V^T / sqrt(rank) (rank x n) of matrix i in the period of these draws; kept until the next one.

    Memory: rank n numbers a matrix.
    """
    number = draws[0] // stream.period
    assert draws[-1] // stream.period == number
    kept = tensors.bases.get(i)
    if kept is None or kept[:2] != (stream, number):
        v = np.empty((stream.rank, sizes_of(tensors, i)[1]), np.float64 if tensors.kinds[i] == "f64" else np.float32)
        word = noise.tensor_word(tensors.names[i], "basis")
        noise.fill(v.T, seed=stream.seed, draw=number, tensor=word, dist=stream.dist)
        v *= v.dtype.type(1 / math.sqrt(stream.rank))
        kept = tensors.bases[i] = (stream, number, v)
    return kept[2]


def sizes_of(tensors: Tensors, i: int) -> tuple[int, int]:
    """Rows and columns of matrix i."""
    sizes = tensors.matrices[i]
    assert sizes is not None
    return sizes


def combine(out: Array, theta: Array, kind: str, keep: float, left: Factor, right: Factor) -> None:
    """Writes out <- keep theta + left @ right, in blocks of rows; out may be theta.

    Args:
        out, theta: matrices as arrays of any strides, of one shape and storage format; on a device C-contiguous.
        kind: the format, see `Tensors`.
        keep: rounded to the factors' type.
        left, right: m x rank and rank x n, of one type.
    """
    if not left.size or not right.size:
        return
    if _device.number_of(theta) is not None:
        _device.combine(out, theta, keep, left, right)
        return
    out, theta = _device.view_of(out), _device.view_of(theta)
    scale = right.dtype.type(keep)
    rows = max(1, _TILE // right.shape[1])
    total, term = np.empty((2, min(rows, len(theta)), right.shape[1]), right.dtype)
    with np.errstate(all="ignore"):  # as the kernels, which do not warn; its end restores the buffer size too
        # The default makes NumPy copy short rows to form longer ones: three times the product's time.
        np.setbufsize(1024)
        for first in range(0, len(theta), rows):
            part = slice(first, first + rows)
            before, a = theta[part], left[part]
            x, y = total[: len(a)], term[: len(a)]
            np.multiply(a[:, :1], right[0], out=x)
            for k in range(1, len(right)):
                np.multiply(a[:, k : k + 1], right[k], out=y)
                np.add(x, y, out=x)
            change, other = x.reshape(before.shape), y.reshape(before.shape)
            wide = decode(before, kind) if kind in ("bf16", "f16") else before
            if scale != 1:
                wide = np.multiply(wide, scale, out=other)
            if kind in ("bf16", "f16"):
                out[part] = encode(np.add(wide, change, out=change), kind)
            else:
                np.add(wide, change, out=out[part])
