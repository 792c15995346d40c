"""The leading singular triplets of a matrix in memory, from a few products with it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._arrays import Array
from .._errors import message
from .._interrupt import aside
from ..kernels import noise
from ..kernels import sketch as kernels
from ..zeroth._stream import SEEDS, integer
from ._base import Floats, check_finite, rows_of, within

RANGE_FINDERS = ("gaussian", "sjlt")
_BLOCKS = 4
_WORD = noise.tensor_word("randomized_svd", "sketch")


class SVD(NamedTuple):
    """U diag(s) Vt."""

    U: Floats
    s: Floats
    Vt: Floats


def randomized_svd(
    A: Array, k: int, *, oversample: int = 10, power: int = 1, seed: int = 0, range_finder: str = "gaussian"
) -> SVD:
    """The k leading singular values and vectors of a matrix, nearly.

    Args:
        A: (n, d), float32 or float64, of any strides. Arithmetic is float64: float32 costs a copy.
        k: how many, in [1, min(n, d)].
        oversample: columns of the random start beyond k.
        power: number of power steps, each two more products with A. 0 for spectra that fall fast; one or two for noisy
            data, since A then acts with its singular values to the power 2 power + 1.
        seed: of the start, in [0, 2^64).
        range_finder: "gaussian", A times normal vectors; or "sjlt", which starts from the rows of A's `SJLT` with 4
            blocks: one product with A less, and half a power step more.

    Returns:
        U (n, k), s (k,) descending and Vt (k, d), float64. U'U = Vt Vt' = I.

    Raises:
        TypeError, ValueError, BufferError: A is anything else; an element that is not finite or beyond 1e140; a
            number out of range.

    With sigma the singular values of A, p = oversample > 1, q = 2 power + 1, t^2 the sum of sigma[j]^(2 q) over j > k,
    and the Gaussian start, the mean of norm_2(A - U diag(s) Vt) is at most
    sigma[k + 1] + ((1 + sqrt(k / (p - 1))) sigma[k + 1]^q + e sqrt(k + p) t / p)^(1 / q). Each product is
    QR-factorised before the next. Cost: 2 power + 2 products of A with k + p columns. Source: Halko, Martinsson &
    Tropp 2011, arXiv 0909.4061, theorems 9.3 and 10.6, corollary 10.10.

    >>> import numpy as np
    >>> A = np.random.default_rng(0).standard_normal((300, 40)) * 0.5 ** np.arange(40)
    >>> U, s, Vt = randomized_svd(A, 5)
    >>> bool(np.allclose(s, np.linalg.svd(A, compute_uv=False)[:5], rtol=1e-9))
    True
    >>> bool(np.linalg.norm(A - U * s @ Vt, 2) < 1.01 * np.linalg.svd(A, compute_uv=False)[5])
    True
    """
    name = "randomized_svd"
    given = rows_of(name, "A", A)
    if not given.size:
        raise ValueError(message(name, "A", f"shape {given.shape}", "a row and a column at least"))
    n, d = given.shape
    k = integer(name, "k", k, 1, min(n, d) + 1)
    oversample = integer(name, "oversample", oversample, 0, 1 << 20, "2^20")
    power = integer(name, "power", power, 0, 1 << 20, "2^20")
    seed = integer(name, "seed", seed, 0, SEEDS, "2^64")
    if not isinstance(range_finder, str) or range_finder not in RANGE_FINDERS:
        kind = ValueError if isinstance(range_finder, str) else TypeError
        raise kind(message(name, "range_finder", repr(range_finder), '"gaussian" or "sjlt"'))
    matrix: Floats = np.asarray(given, np.float64)
    width = min(k + oversample, n, d)
    product = 2.0 * n * d * width
    with np.errstate(invalid="ignore", over="ignore"):
        if range_finder == "sjlt":
            first = np.zeros((-(-width // _BLOCKS) * _BLOCKS, d))
            kernels.sjlt(given, first, seed=seed, blocks=_BLOCKS)
        else:
            start = noise.fill(np.empty((d, width)), seed=seed, tensor=_WORD)
            first = aside(product, np.matmul, matrix, start)
    if not within(first):  # what is not finite in A is in these sums too, at less work
        check_finite(name, "A", given)
    if range_finder == "sjlt":
        first = aside(product, np.matmul, matrix, _basis(first.T))
    basis = _basis(first)
    for _ in range(power):
        other = _basis(aside(product, np.matmul, matrix.T, basis))
        basis = _basis(aside(product, np.matmul, matrix, other))
    small = aside(product, np.matmul, basis.T, matrix)
    left, s, Vt = aside(20.0 * small.size * len(small), np.linalg.svd, small, full_matrices=False)
    U = aside(2.0 * n * width * k, np.matmul, basis, left[:, :k])
    return SVD(U, s[:k].copy(), Vt[:k].copy())


def _basis(columns: Floats) -> Floats:
    """Orthonormal columns that span the given ones."""
    return aside(4.0 * columns.size * columns.shape[1], np.linalg.qr, columns).Q
