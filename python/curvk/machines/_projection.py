"""Three ways to solve K(Z, Z) theta = h, which brings an accumulated step back to the span of the centers Z."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from .._interrupt import aside
from ..kernels import gram
from ._dense import lapack_for, potrf
from ._nystrom import Nystrom

Rows = npt.NDArray[Any]
PROJECTIONS = ("auto", "cholesky", "pcg", "eigenpro2")
SOLVED_AT_ONCE = 256
CHOLESKY_CENTERS = 15_000  # 900 MB in float32; the factorisation costs p^3/3 multiply-adds once


class Projection(Protocol):
    """Solves K(Z, Z) theta = h for h (p, c)."""

    entries: float  # cost of one solve in units of p^2 kernel entries, for the choice of T

    def __call__(self, h: Rows) -> Rows: ...


@dataclass
class Cholesky:
    """The factor of K(Z, Z) + jitter I, p^2 numbers; 2 p^2 c multiply-adds a solve."""

    factor: Rows  # (p, p) Fortran order, lower triangle
    jitter: float
    entries: float = 1.0

    def __call__(self, h: Rows) -> Rows:
        """L^-T L^-1 h by blocks of columns: potrs took 1.5 to 3 times as long for few columns."""
        L, theta, p = self.factor, h.copy(), len(h)
        solve = lapack_for("trtrs", L)
        blocks = [slice(start, min(start + SOLVED_AT_ONCE, p)) for start in range(0, p, SOLVED_AT_ONCE)]
        for b in blocks:
            theta[b] -= L[b, : b.start] @ theta[: b.start]
            theta[b] = solve(L[b, b], theta[b], lower=1)[0]
        for b in reversed(blocks):
            theta[b] -= L[b.stop :, b].T @ theta[b.stop :]
            theta[b] = solve(L[b, b], theta[b], lower=1, trans=1)[0]
        return theta


def cholesky(Z: Rows, packed: Any, kernel: dict[str, Any], outputs: int) -> Cholesky:
    """Factorises K(Z, Z) in place, adding to its diagonal what it takes where the matrix is singular.

    The first rung, sqrt(p) eps of the diagonal, is the rounding of K itself, the next are ten times the last. Rungs up
    to sqrt(eps), which smooth kernels need, are taken silently unless centers are equal.

    Raises:
        LinAlgError: K(Z, Z) is not positive definite even so (a kernel that is not, such as exponent with gamma > 2).
    """
    p = len(Z)
    K = np.empty((p, p), Z.dtype)
    gram.block(Z, packed, out=K, **kernel)
    diagonal = np.asarray(gram.diagonal(Z, **kernel))
    A = K.T  # symmetric, so this is K in Fortran order; `potrf` overwrites its lower triangle only
    scale = float(diagonal.mean()) or 1.0
    rung, jitter = float(np.sqrt(p) * np.finfo(Z.dtype).eps), 0.0
    for attempt in range(20):
        np.fill_diagonal(A, diagonal + np.asarray(jitter * scale, Z.dtype))
        if not potrf(A):
            _warn_of_jitter(Z, jitter)
            entries = max(40, 4 * outputs) / (2 * Z.shape[1] + 40 + 2 * outputs)  # triangular solves wait for memory
            return Cholesky(A, jitter * scale, entries)
        if jitter >= 0.1:
            break
        jitter = rung * 10.0**attempt
        for start in range(0, p, SOLVED_AT_ONCE):  # the upper triangle still holds K
            b = slice(start, min(start + SOLVED_AT_ONCE, p))
            A[b.stop :, b] = A[b, b.stop :].T
            upper = np.triu(A[b, b], 1)
            A[b, b] = upper + upper.T
    raise np.linalg.LinAlgError(
        f"projection='cholesky': K(Z, Z) of kernel {kernel['kernel']!r} is not positive semidefinite "
        f"(the factorisation failed with {jitter:.1g} of the diagonal added); choose another kernel"
    )


def _warn_of_jitter(Z: Rows, jitter: float) -> None:
    equal = len(Z) - len(np.unique(Z, axis=0)) if jitter else 0
    if equal or jitter > float(np.finfo(Z.dtype).eps) ** 0.5:
        reason = f"{equal} of {len(Z)} centers repeat another" if equal else f"far beyond the rounding of {Z.dtype}"
        warnings.warn(f"K(Z, Z) is singular ({reason}); {jitter:.1e} of the diagonal was added to it", stacklevel=2)


@dataclass
class PCG:
    """Conjugate gradients on all columns at once, preconditioned by the top eigensystem of the centers.

    K(Z, Z) is computed anew in each iteration, so memory is O(p (q + c)). The preconditioner is the Nystrom one of
    Frangella, Tropp & Udell 2023 (arXiv 2110.02820): (mu I + U (values - mu) U^T)^-1 up to a factor, with U and values
    the eigenpairs of the rank-q Nystrom approximation to K(Z, Z), and mu the smallest of them.
    """

    Z: Rows
    packed: Any
    kernel: dict[str, Any]
    basis: Rows  # U, (p, q), orthonormal columns
    shrink: Rows  # (q,) mu / values - 1
    tol: float
    max_iter: int
    entries: float = 10.0
    iterations: list[int] = field(default_factory=list)
    warned: bool = False

    def _precondition(self, r: Rows) -> Rows:
        inside: Rows = self.basis.T @ r
        inside *= self.shrink[:, None]
        return np.asarray(r + self.basis @ inside)

    def __call__(self, h: Rows) -> Rows:
        theta, r = np.zeros_like(h), h.copy()
        z = self._precondition(r)
        direction = z.copy()
        rz = _dots(r, z)
        enough = self.tol**2 * _dots(h, h)
        for iteration in range(self.max_iter + 1):
            active = _dots(r, r) > enough
            if not active.any() or iteration == self.max_iter:
                break
            K_direction = gram.matvec(self.Z, self.packed, direction, **self.kernel)
            curvature = _dots(direction, K_direction)
            active &= curvature > 0
            step = np.where(active, rz / np.where(active, curvature, 1), 0).astype(h.dtype)
            theta += step * direction
            r -= step * K_direction
            z = self._precondition(r)
            rz, before = _dots(r, z), rz
            direction = z + np.where(active, rz / np.where(before > 0, before, 1), 0).astype(h.dtype) * direction
        self.iterations.append(iteration)
        if active.any() and not self.warned:
            self.warned = True
            warnings.warn(
                f"projection='pcg' stopped after {iteration} iterations at relative residual "
                f"{np.sqrt((_dots(r, r)[active] / _dots(h, h)[active]).max()):.1e}, above {self.tol:.1e}",
                ConvergenceWarning,
                stacklevel=2,
            )
        return theta


def _dots(a: Rows, b: Rows) -> npt.NDArray[np.float64]:
    """The inner products of the columns."""
    return np.asarray(np.einsum("ij,ij->j", a, b, dtype=np.float64))


def pcg(Z: Rows, packed: Any, top: Nystrom, kernel: dict[str, Any], tol: float = 1e-3, max_iter: int = 100) -> PCG:
    """Prepares `PCG` from the eigensystem `top` of a sample of the centers; O(p (s + q^2)) time."""
    s = len(top.vectors)
    # K(Z, S) E (s lambda)^-1/2 has the rank-q Nystrom approximation as its product with its transpose
    half = gram.matvec(Z, top.sample, top.vectors, **kernel) / np.sqrt(s * top.values).astype(Z.dtype)
    wide = half.astype(np.float64)
    basis, singular, _ = aside(20.0 * wide.size * wide.shape[1], np.linalg.svd, wide, full_matrices=False)
    values = singular**2
    shrink = values[-1:].sum() / values - 1
    return PCG(Z, packed, kernel, np.ascontiguousarray(basis, Z.dtype), shrink.astype(Z.dtype), tol, max_iter)


@dataclass
class EigenPro2:
    """The paper's projector: one shuffled pass of EigenPro 2 over the centers, p^2 kernel entries and O(p c) memory.

    It leaves a good part of h unsolved, which costs accuracy where Cholesky is possible (see `EigenPro4Classifier`).
    Source: the code of EigenPro 4's authors.
    """

    Z: Rows
    top: Nystrom
    sample_index: npt.NDArray[np.intp]  # the rows of Z that `top` was measured on
    packed: Any
    kernel: dict[str, Any]
    rng: np.random.RandomState
    entries: float = 1.0

    def __call__(self, h: Rows) -> Rows:
        theta = np.zeros_like(h)
        size = self.top.batch
        order = self.rng.permutation(len(h))
        for start in range(0, len(h), size):
            batch = order[start : start + size]
            eta = self.top.step_size(len(batch))
            Z_batch = self.Z[batch]
            r = gram.matvec(Z_batch, self.packed, theta, **self.kernel) - h[batch]
            r *= np.asarray(eta, h.dtype)
            theta[batch] -= r
            on_sample = gram.rmatvec(Z_batch, self.top.sample, r, **self.kernel)
            theta[self.sample_index] += self.top.scaled @ (self.top.vectors.T @ on_sample)
        return theta
