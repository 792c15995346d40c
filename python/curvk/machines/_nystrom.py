"""The top of the data's kernel spectrum from a subsample, and the batch and step that a flattened spectrum allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .._interrupt import aside
from ..kernels import gram

Rows = npt.NDArray[Any]

STEP = 1.5
MEASURED_ROWS = 1000  # at least, for what is measured of the preconditioned kernel
LARGEST_BATCH = 10_000  # the reference code's cap on m*


@dataclass(frozen=True)
class Nystrom:
    """The q largest eigenpairs of K(S, S)/s for a sample S of s rows, and the next eigenvalue.

    The preconditioner is I - (functions of S with coefficients E D) (E^T values on S): it brings eigenvalue lambda_i
    down to lambda_{q+1} and leaves the rest. Source: EigenPro 4 (arXiv 2411.16658).
    """

    sample: Any  # gram.Centers (s, d)
    values: npt.NDArray[np.float64]  # (q,) descending
    tail: float  # lambda_{q+1} > 0
    vectors: Rows  # E, (s, q), orthonormal columns
    scaled: Rows  # E * D, (s, q), D_i = (1 - lambda_{q+1} / lambda_i) / (s lambda_i)
    beta: float  # max K(x, x) over the rows that will be trained on, or of what is left of it, measured
    growth: float  # the largest preconditioned eigenvalue on b rows is beta + (b - 1) growth; lambda_{q+1}, or measured

    @property
    def critical_batch(self) -> int:
        """m* = floor(beta / growth) >= 1: up to here a batch of twice the size allows twice the step."""
        return max(1, int(min(self.beta / self.growth, 2.0**53)))

    def step_size(self, batch: int) -> float:
        """For one row's gradient in a batch of this size: 1/beta, or `STEP` / (beta + (batch - 1) growth) if smaller.

        The paper has 2 for `STEP`, which is the edge of stability where the bound is tight, as a measured one is.
        """
        return min(1 / self.beta, STEP / (self.beta + (batch - 1) * self.growth))

    @property
    def batch(self) -> int:
        """Half of m*, at least 1: the same work per row as m*, with the step 1/beta well inside stability."""
        return max(1, min(LARGEST_BATCH, self.critical_batch) // 2)


def nystrom(sample: Rows, components: int, beta: float, kernel: dict[str, Any]) -> Nystrom:
    """The eigensystem of K(S, S)/s, in float64 whatever the dtype of S.

    Args:
        sample: S, (s, d), float32 or float64.
        components: q; fewer are kept where s <= q or the spectrum ends (at rounding level) before.
        beta: the largest K(x, x).
        kernel: keywords of `curvk.kernels.gram`.

    O(s^2) memory, O(s^3) time.
    """
    s = len(sample)
    q = min(components, s - 1)
    matrix = gram.block(sample, sample, **kernel).astype(np.float64)
    matrix /= s
    values, vectors = aside(9.0 * s**3, np.linalg.eigh, matrix)
    values, vectors = values[: -q - 2 : -1], vectors[:, : -q - 2 : -1]
    floor = max(float(np.finfo(sample.dtype).eps) ** 0.5 * float(values[0]), float(np.finfo(np.float64).tiny))
    q = min(q, int(np.searchsorted(-values, -floor)))  # flattened further, what is left would drown in K's rounding
    tail = max(float(values[q]), floor)
    kept, E = values[:q], vectors[:, :q]
    D = (1 - tail / kept) / (s * kept)
    dtype = sample.dtype
    arrays = (np.ascontiguousarray(E, dtype), np.ascontiguousarray(E * D, dtype))
    return Nystrom(gram.Centers(np.ascontiguousarray(sample)), kept, tail, *arrays, beta, tail)


def measured(top: Nystrom, rows: Rows, kernel: dict[str, Any], rng: np.random.RandomState) -> Nystrom:
    """`top` with the beta and growth of the preconditioned kernel K_P = K - K(., S) (E D) E^T K(S, .), seen on data.

    X below are m of the rows, drawn at random: as many as the critical batch has, and at least 1,000.

    The paper takes beta = max K(x, x) and growth = lambda_{q+1} from the sample. What is left of the diagonal is
    smaller, for a smooth kernel by orders of magnitude, so that steps may be longer; and the sample underestimates what
    is left of the spectrum on other rows, the more the larger q / s, so that the paper's step can be unstable. Here
    beta = max K_P(x, x), and the largest eigenvalue of K_P(X, X) comes from subspace iteration on 8 columns:
    m (8 m + s) kernel entries for m rows, m s numbers of memory.
    """
    X = rows[rng.permutation(len(rows))[: min(LARGEST_BATCH, max(MEASURED_ROWS, top.critical_batch))]]
    m = len(X)
    left = np.asarray(gram.diagonal(X, **kernel), np.float64)
    if top.values.size:
        K_s = gram.block(X, top.sample, **kernel)
        left -= np.einsum("ij,ij->i", K_s @ top.scaled, K_s @ top.vectors, dtype=np.float64)
    beta = max(float(left.max()), top.tail)
    if m < 2:
        return replace(top, beta=beta)
    packed = gram.Centers(X)
    V: Rows = rng.standard_normal((m, min(m, 8))).astype(X.dtype)
    largest = 0.0
    for _ in range(8):
        Q = np.ascontiguousarray(np.linalg.qr(V)[0])
        V = gram.matvec(X, packed, Q, **kernel)
        if top.values.size:
            V -= K_s @ (top.scaled @ (top.vectors.T @ (K_s.T @ Q)))
        product = Q.T @ V
        largest = max(largest, float(np.linalg.eigvalsh(product + product.T)[-1] / 2))
    return replace(top, beta=beta, growth=max(top.tail, (largest - beta) / (m - 1)))


def largest_diagonal(X: Rows, kernel: dict[str, Any]) -> float:
    """The beta above: max K(x, x) over the rows of X; 1 where they are all zero under a kernel without bandwidth."""
    return float(gram.diagonal(X, **kernel).max()) or 1.0
