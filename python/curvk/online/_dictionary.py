"""Dictionaries that grow as the stream asks for it: all that is new (KONS), or what its leverage draws (PROS-N-KONS).

Both have the features of the Newton basis: with K = L L' the kernel matrix of the dictionary's rows in the order of
their entry, phi(x) = L^-1 k(x), so that phi(x).phi(z) is the kernel of the projections on the dictionary's span. A row
that enters adds one feature and leaves the others as they were, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .._estimator import WITHOUT_BANDWIDTH
from ..kernels import gram, noise
from ._maps import FeatureMap, Keywords, Rows, one_blas_thread

_BLOCK = 256  # rows that one search for the next entry takes at the most, and uniform numbers drawn at once
_DRAWS = noise.tensor_word("dictionary", "sampling")


def _squares(rows: Rows) -> Rows:
    sums: Rows = np.einsum("nk,nk->n", rows, rows)
    return sums


def _width(m: int) -> int:
    """Columns that a factor of m rows has room for: a quarter more makes copies rare, and zeros cost time."""
    return -(-max(m + m // 4, 1) // 16) * 16


class _Factor:
    """R = L^-1 D for a positive definite matrix L L' that grows row by row."""

    def __init__(self, rows: Rows | None = None) -> None:
        rows = np.zeros((0, 0)) if rows is None else rows
        self._rows = self._packed(rows, _width(len(rows)))

    @staticmethod
    def _packed(rows: Rows, width: int) -> gram.Landmarks:
        padded = np.zeros((len(rows), width))
        padded[:, : rows.shape[1]] = rows
        return gram.Landmarks.of(padded)

    @property
    def rows(self) -> Rows:
        """(m, m), lower triangular."""
        return self._rows.array[:, : len(self._rows)]

    def whiten(self, columns: Rows) -> Rows:
        """R c for each row c of `columns` (n, m): entry j sums in the same order however many there are of both."""
        padded = np.zeros((len(columns), self._rows.shape[1]))
        padded[:, : columns.shape[1]] = columns
        whitened: Rows = gram.block(padded, self._rows, kernel="linear")
        return whitened

    def bind(self, out: Rows) -> tuple[Rows, Callable[[], None]]:
        """Memory for one row c (1, m), and `whiten` of what it then holds into `out` (1, m); until the next row."""
        m = len(self._rows)
        padded = np.zeros((1, self._rows.shape[1]))
        return padded[:, :m], gram.bind(padded, self._rows, None, out=out, kernel="linear")

    def append(self, whitened: Rows, pivot: float, scale: float) -> None:
        """Takes in a row in O(m^2): whitened (m,) = L^-1 times its column, pivot the square of L's new diagonal entry.

        With pivot 0 the new row of R is 0: a feature that is 0 everywhere.
        """
        m = len(whitened)
        if m == self._rows.shape[1]:
            self._rows = self._packed(self._rows.array, _width(m + 1))
        row = np.zeros(self._rows.shape[1])
        if pivot > 0:
            # Not with @: the order of BLAS's sums may change with its threads.
            row[:m] = np.einsum("j,ji->i", whitened, self.rows) / -np.sqrt(pivot)
            row[m] = scale / np.sqrt(pivot)
        self._rows.append(row)


class _OneRow:
    """Kernels and whitened kernels of one row, with its arrays checked once: the checks take longer than the row."""

    def __init__(
        self,
        landmarks: gram.Landmarks,
        factor: _Factor,
        kernel: Keywords,
        x: Rows | None = None,
        out: Rows | None = None,
    ) -> None:
        self.x = np.empty((1, landmarks.shape[1])) if x is None else x
        self.out = np.empty((1, len(landmarks))) if out is None else out
        column, self._whiten = factor.bind(self.out)
        self._kernels = gram.bind(self.x, landmarks, None, out=column, **kernel)

    def run(self) -> None:
        self._kernels()
        self._whiten()


class NewtonBasis(FeatureMap):
    """Features of a dictionary that every row enters, before it is predicted, which the rows there do not span (KONS).

    Args:
        d: columns of a row.
        kernel: keywords for `curvk.kernels.gram`.
        budget: rows of the dictionary at most; None: as many as come.
        tolerance: a row x enters if its residual k(x, x) - abs(phi(x))^2 is above tolerance k(x, x): approximate linear
            dependence. Far below 1e-8 rounding decides.

    An online Newton step on these features is the one on k(x, .) itself as long as all rows enter that are not spanned:
    a round costs O(m d + m^2) for m rows, memory is O(m^2). The first row enters in any case. A row whose residual is
    within the tolerance under another bandwidth, given by `set_kernel`, keeps a feature that is 0.

    Source: Calandriello, Lazaric & Valko, "Second-Order Kernel Online Convex Optimization with Adaptive Sketching",
    ICML 2017, whose dual formulas hold A^-1 as a matrix of O(t^2) numbers for all t rows; the basis is Mueller &
    Schaback's, "A Newton basis for kernel spaces", 2009.
    """

    def __init__(self, d: int, kernel: Keywords, *, budget: int | None = None, tolerance: float = 1e-8) -> None:
        self.kernel, self.budget, self.tolerance, self.ready = dict(kernel), budget, tolerance, True
        self._landmarks, self._basis = gram.Landmarks(d), _Factor()
        self._ones: dict[_Factor, _OneRow] = {}
        self._ahead = 1  # rows to look at next in search of an entry: only the time depends on it

    @property
    def k(self) -> int:  # type: ignore[override]  # FeatureMap has attributes
        return len(self._landmarks)

    @property
    def n_support(self) -> int:  # type: ignore[override]
        return len(self._landmarks)

    def features(self, X: Rows, out: Rows | None = None) -> Rows:
        phi = self._basis.whiten(gram.block(X, self._landmarks, **self.kernel))
        if out is None:
            return phi
        out[...] = phi
        return out

    def bind(self, x: Rows, phi: Rows) -> Callable[[], object]:
        return _OneRow(self._landmarks, self._basis, self.kernel, x, phi).run

    def _residuals(self, X: Rows, factor: _Factor) -> tuple[Rows, Rows, Rows]:
        """R k(x) for each row (n, m), k(x, x) and k(x, x) - abs(R k(x))^2 (n,)."""
        plain = self.kernel.get("kernel", "gaussian") not in WITHOUT_BANDWIDTH
        own = np.ones(len(X)) if plain else gram.diagonal(X, **self.kernel)
        if len(X) == 1 and self.k:
            if factor not in self._ones:
                self._ones[factor] = _OneRow(self._landmarks, factor, self.kernel)
            one = self._ones[factor]
            one.x[:] = X
            one.run()
            whitened = one.out
        else:
            whitened = factor.whiten(gram.block(X, self._landmarks, **self.kernel))
        return whitened, own, own - _squares(whitened)

    # ---- entries -----------------------------------------------------------------------------------------------------

    def entry(self, X: Rows, first_row: int) -> int:
        n, at = len(X), 0
        if self.budget is not None and self.k >= self.budget:
            return n
        if self.k == 0:
            return 0
        if n == 1:
            return 0 if self._enters(X, first_row)[0] else 1
        while at < n:
            found = np.flatnonzero(self._enters(X[at : at + self._ahead], first_row + at))
            if len(found):
                at += int(found[0])
                self._ahead = min(at + 1, _BLOCK)
                return at
            at += self._ahead
            self._ahead = min(2 * self._ahead, _BLOCK)
        return n

    def _enters(self, X: Rows, first_row: int) -> npt.NDArray[np.bool_]:
        _, own, residuals = self._residuals(X, self._basis)
        return np.asarray(residuals > self.tolerance * own)

    def enter(self, x: Rows) -> Literal["grow", "restart"]:
        self._append(x)
        return "grow"

    def _append(self, x: Rows) -> None:
        phi, own, residuals = self._residuals(x[None], self._basis)
        residual = float(residuals[0])
        self._basis.append(phi[0], residual if residual > self.tolerance * float(own[0]) else 0.0, 1.0)
        self._landmarks.append(x)
        self._ones.clear()

    # ---- another bandwidth, states -----------------------------------------------------------------------------------

    @one_blas_thread
    def set_kernel(self, kernel: Keywords) -> Rows | None:
        rows = self._landmarks.array.copy()
        before = self.features(rows)
        self.kernel = dict(kernel)
        if not len(rows):
            return None
        self._landmarks, self._basis = gram.Landmarks(rows.shape[1]), _Factor()
        self._ones.clear()
        self._rebuild(rows)
        return np.asarray(np.linalg.lstsq(self.features(rows), before, rcond=1e-9)[0])

    def _rebuild(self, rows: Rows) -> None:
        for x in rows:
            self._append(x)

    def state(self) -> dict[str, Any]:
        arrays = {"landmarks": self._landmarks.array.copy(), "basis": self._basis.rows.copy()}
        return {"kernel": dict(self.kernel), **arrays}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kernel, self._basis = dict(state["kernel"]), _Factor(state["basis"])
        self._landmarks = gram.Landmarks.of(state["landmarks"])
        self._ones.clear()


class LeverageDictionary(NewtonBasis):
    """Features of a dictionary that a row enters by chance, the likelier the less is known of it (PROS-N-KONS, KORS).

    Args:
        d: columns of a row.
        kernel: keywords for `curvk.kernels.gram`.
        gamma: ridge of the leverage scores, > 0.
        beta: entries in proportion to it, > 0.
        eps: accuracy that the scores allow for, in [0, 1).
        budget: rows of the dictionary at most; None: as many as are drawn.
        on_refresh: after an entry "reset" starts the learner anew (published), "keep" gives it one feature more.
        seed: of the draws, in [0, 2^64).

    With the dictionary's rows weighted by S = diag(p^(-1/2)), p the probabilities of their entry, a row x enters with
    probability p = min(beta tau, 1), where

        tau = (1 + eps) r / (r + gamma),    r = k(x, x) - k_S' (S K S + gamma I)^-1 k_S,    k_S = S k(x),

    its ridge leverage score with x itself at weight 1, in closed form. The draw is a function of the seed and the row's
    number in the stream; the first row enters in any case, with p = 1. A quiet row costs O(m d + m^2), an entry O(m^2).

    The published features are lam^(-1/2) U' k(x) for K = U diag(lam) U', decomposed at each entry in O(m^3). The Newton
    basis is these turned by a rotation, and so are then A = alpha I and w = 0 and all that is learned: predictions are
    the same. A row within 1e-8 k(x, x) of the others' span adds to the scores and has a feature that is 0.

    Source: Calandriello, Lazaric & Valko, "Efficient Second-Order Online Kernel Learning with Adaptive Embedding",
    NeurIPS 2017. Code of Jezequel et al. (2019), on which that of FORKS rests, weights rows by 1 / p in place of
    p^(-1/2) and forms the kernel matrix of the dictionary anew for every row, O(m^2 d) where O(m d) do.
    """

    def __init__(
        self,
        d: int,
        kernel: Keywords,
        *,
        gamma: float = 1.0,
        beta: float = 1.0,
        eps: float = 0.5,
        budget: int | None = None,
        on_refresh: str = "reset",
        seed: int = 0,
    ) -> None:
        super().__init__(d, kernel, budget=budget)
        self.gamma, self.beta, self.eps, self.seed, self.on_refresh = gamma, beta, eps, seed, on_refresh
        self._ridge, self._entered = _Factor(), np.zeros(0)  # with which probabilities
        self._uniforms, self._first = np.empty(_BLOCK), -_BLOCK - 1  # numbers of the rows from `first` on

    def probabilities(self, X: Rows) -> Rows:
        """Chances of entry, beta tau, of the rows X (n, d) as (n,); from 1 on they enter."""
        r = np.maximum(self._residuals(X, self._ridge)[2], 0.0)
        chances: Rows = self.beta * (1.0 + self.eps) * r / (r + self.gamma)
        return chances

    def _draws(self, first: int, n: int) -> Rows:
        if not self._first <= first <= first + n <= self._first + _BLOCK:
            noise.fill(self._uniforms, seed=self.seed, tensor=_DRAWS, dist="uniform", offset=first)
            self._first = first
        return self._uniforms[first - self._first :][:n]

    def _enters(self, X: Rows, first_row: int) -> npt.NDArray[np.bool_]:
        return np.asarray(self._draws(first_row, len(X)) < self.probabilities(X))

    def enter(self, x: Rows) -> Literal["grow", "restart"]:
        p = min(float(self.probabilities(x[None])[0]), 1.0) if self.k else 1.0
        self._append_with(x, p)
        self._entered = np.append(self._entered, p)
        return "grow" if self.on_refresh == "keep" else "restart"

    def _append_with(self, x: Rows, p: float) -> None:
        whitened, _, r = self._residuals(x[None], self._ridge)
        weight = p**-0.5
        self._ridge.append(weight * whitened[0], max(float(r[0]), 0.0) / p + self.gamma, weight)
        self._append(x)

    def _rebuild(self, rows: Rows) -> None:
        self._ridge = _Factor()
        for x, p in zip(rows, self._entered, strict=True):
            self._append_with(x, float(p))

    def state(self) -> dict[str, Any]:
        return super().state() | {"ridge": self._ridge.rows.copy(), "entered": self._entered.copy(), "seed": self.seed}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._ridge, self._entered, self.seed = _Factor(state["ridge"]), state["entered"].copy(), state["seed"]
        self._first = -_BLOCK - 1
