"""Nystrom features of a buffer of support vectors: as they are (NOGD), or sketched twice and refreshed (FORKS, SkeGD).

Notation of Wen et al., "FORKS: Fast Second-Order Online Kernel Learning Using Incremental Sketching", IJCAI 2025: K is
the kernel matrix of the rows held, S_p a sparse Johnson-Lindenstrauss sketch of them, S_m a uniform sample of the first
B, the landmarks. Phi_pp = S_p' K S_p ~ V diag(lam) V', Phi_pm = S_p' K S_m, and

    phi(x) = Q' k_m(x),    Phi_pm Q = V diag(lam)^(1/2) in least squares, with Q' K_mm Q <= 4 I,

so that phi(x)' phi(z) ~ k(x, z), and a quiet row costs s_m kernels whatever B is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import lstsq  # type: ignore[import-untyped]

from ..kernels import gram, noise, sketch
from ._maps import FeatureMap, Keywords, Rows, one_blas_thread

_DROPPED = 1e-10  # of a column's norm: what is left of it beside V is rounding
_LONGEST = 4.0  # of abs(phi(x))^2 over k(x, x): good sketches need some more than 1, see the test of their errors
_REORTHOGONALISE = 64  # refreshes between two full QR of V


def _lstsq(A: Rows, B: Rows, rcond: float) -> Rows:
    """Least squares of least norm at a condition up to 1 / rcond: by pivoted QR, a third of the SVD's time."""
    return np.ascontiguousarray(lstsq(A, B, rcond, lapack_driver="gelsy", check_finite=False)[0])


def _top(symmetric: Rows, k: int) -> tuple[Rows, Rows]:
    """The k largest eigenvalues in falling order, none below 0, and their vectors as columns."""
    values, vectors = np.linalg.eigh(symmetric)
    return np.maximum(values[: -k - 1 : -1], 0.0), np.ascontiguousarray(vectors[:, : -k - 1 : -1])


def _coordinates(V: Rows, W: Rows) -> tuple[Rows, Rows]:
    """W as [V P] times the coordinates, P (s, up to W's columns) orthonormal and orthogonal to V."""
    inside = V.T @ W
    outside = W - V @ inside
    again = V.T @ outside  # once is not enough where W is nearly in the span
    inside, outside = inside + again, outside - V @ again
    P = np.empty((len(V), 0))
    for column, norm in zip(outside.T, np.linalg.norm(W, axis=0), strict=True):
        for _ in range(2):
            column = column - P @ (P.T @ column)
        length = np.linalg.norm(column)
        if length > _DROPPED * norm:
            P = np.concatenate([P, column[:, None] / length], axis=1)
    return np.concatenate([inside, P.T @ outside]), P


def update_factor(V: Rows, lam: Rows, W: Rows, M: Rows, k: int) -> tuple[Rows, Rows]:
    """The best rank k, positive semidefinite, of V diag(lam) V' + W M W'.

    Args:
        V: (s, j), orthonormal columns.
        lam: (j,), >= 0.
        W: (s, 2), and M: (2, 2), symmetric.
        k: columns to keep.

    Returns:
        V (s, k) and lam (k,), falling.

    O(s j^2 + j^3). Exact where the result's rank is at most k; beyond that what is cut is lost for later updates.
    """
    coordinates, P = _coordinates(V, W)
    core = coordinates @ M @ coordinates.T
    core[np.arange(len(lam)), np.arange(len(lam))] += lam
    values, vectors = _top(core, k)
    return np.concatenate([V, P], axis=1) @ vectors, values


def sample_landmarks(count: int, n: int, seed: int) -> np.ndarray[Any, Any]:
    """`count` of n indices, uniform without replacement, in ascending order: a function of the seed."""
    ranks = noise.fill(np.empty(n), seed=seed, tensor=noise.tensor_word("landmarks", "sampling"), dist="uniform")
    return np.sort(np.argsort(ranks, kind="stable")[:count])


class _Landmarked(FeatureMap):
    """phi(x) = Q' k_m(x) for landmarks m; a subclass makes Q."""

    def __init__(self, d: int, kernel: Keywords, k: int, rcond: float) -> None:
        self.kernel, self.k, self.rcond, self.ready = dict(kernel), k, rcond, False
        self._landmarks = gram.Landmarks(d)
        self._Q: Rows = np.zeros((0, k))

    @property
    def n_support(self) -> int:  # type: ignore[override]  # FeatureMap has an attribute
        return len(self._landmarks)

    def features(self, X: Rows, out: Rows | None = None) -> Rows:
        Phi: Rows = gram.matvec(X, self._landmarks, self._Q, out=out, **self.kernel)
        return Phi

    def bind(self, x: Rows, phi: Rows) -> Callable[[], object]:
        return gram.bind(x, self._landmarks, self._Q, out=phi, **self.kernel)

    @one_blas_thread
    def set_kernel(self, kernel: Keywords) -> Rows | None:
        before = self._on_landmarks() if self.ready else None
        self.kernel = dict(kernel)
        if before is None:
            return None
        self._factorise()
        return self._transfer(before)

    def _factorise(self) -> None:
        """Q and what it is made of, from the rows held."""
        raise NotImplementedError

    def _on_landmarks(self) -> Rows:
        return self.features(self._landmarks.array)

    def _transfer(self, before: Rows) -> Rows:
        """T: phi . T w takes on the landmarks, as near as it can, the values that `before` . w had."""
        return _lstsq(self._on_landmarks(), before, self.rcond)

    def _weights(self, rows: Rows, centers: gram.Landmarks, coef: Rows) -> Rows:
        """Least squares of Phi w = K coef over all support vectors: FORKS matches one row only."""
        values = gram.matvec(rows, centers, np.ascontiguousarray(coef), **self.kernel)
        return np.ascontiguousarray(_lstsq(self.features(rows), values, self.rcond).T)


class Nystrom(_Landmarked):
    """NOGD's map (Lu, Hoi, Wang, Zhao & Liu, JMLR 17(47), 2016): phi(x) = diag(lam)^(-1/2) U' k_B(x), never refreshed.

    Args:
        d: columns of a row.
        kernel: keywords for `curvk.kernels.gram`.
        k: features: the k largest eigenvalues lam of K_B and their vectors U, k <= B.
        rcond: an eigenvalue up to rcond times the largest gives a feature that is 0.
    """

    def __init__(self, d: int, kernel: Keywords, *, k: int = 20, rcond: float = 1e-9) -> None:
        super().__init__(d, kernel, k, rcond)

    @one_blas_thread
    def initialise(self, rows: Rows, coef: Rows, x: Rows | None = None) -> Rows:
        self._landmarks, self.ready = gram.Landmarks.of(rows), True
        self._factorise()
        return self._weights(rows, self._landmarks, coef)

    def _factorise(self) -> None:
        lam, U = _top(gram.block(self._landmarks.array, self._landmarks, **self.kernel), self.k)
        used = lam > self.rcond * lam[0]
        self._Q = U * np.where(used, 1.0 / np.sqrt(np.where(used, lam, 1.0)), 0.0)

    def state(self) -> dict[str, Any]:
        arrays = {"landmarks": self._landmarks.array.copy(), "Q": self._Q.copy()}
        return {"kernel": dict(self.kernel), "ready": self.ready, **arrays}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kernel, self.ready, self._Q = dict(state["kernel"]), state["ready"], state["Q"].copy()
        self._landmarks = gram.Landmarks.of(state["landmarks"])


class SketchedNystrom(_Landmarked):
    """The map of FORKS, with its defects mended: a positive semidefinite factor, and all cross terms.

    Args:
        d: columns of a row.
        kernel: keywords for `curvk.kernels.gram`.
        sketch_size: s_p, columns of S_p, divisible by `blocks`.
        landmarks: s_m, at most B.
        k: features, at most s_p.
        blocks: D, entries +-1/sqrt(D) in a row of S_p.
        every: loss rows between two refreshes, or None.
        memory: rows held at most, B or more; None: 2 B. The oldest goes when a refresh would be one too many.
        full: decomposes Phi_pp anew at each refresh, as SkeGD does (Zhang & Liao, ICML 2019): s_p^2 numbers and
            O(s_p^3) for the best rank k; else the rank-k factor alone is carried on, in O(s_p k^2).
        seed: of S_p and the sample, in [0, 2^64).
        rcond: relative tolerance of the least squares; an eigenvalue up to rcond times the largest gives no feature.

    A refresh adds the row x with a fresh row s of S_p: with r = S_p' k(x), c = k_m(x) and xi = k(x, x)

        Phi_pm += s c',    Phi_pp += s r' + r s' + xi s s'.

    As S_p and the rows grow with it, Phi_pp = S_p' K S_p holds for all rows held, and a row is evicted by subtracting
    the same terms. Some 2 ms at s_p = 150, s_m = 100, k = 20, most of them the two least squares; 3 if `full`.
    """

    def __init__(
        self,
        d: int,
        kernel: Keywords,
        *,
        sketch_size: int = 150,
        landmarks: int = 100,
        k: int = 20,
        blocks: int = 1,
        every: int | None = 1000,
        memory: int | None = None,
        full: bool = False,
        seed: int = 0,
        rcond: float = 1e-9,
    ) -> None:
        super().__init__(d, kernel, k, rcond)
        self.sketch_size, self.sampled, self.blocks, self.seed = sketch_size, landmarks, blocks, seed
        self.every, self.full, self._memory, self._refreshes = every, full, memory, 0
        self._first = 0  # B
        self._rows = gram.Landmarks(d)
        empty = np.zeros((0, 0))
        self._S, self._Phi_pm, self._Phi_pp, self._V, self._lam = empty, empty, empty, empty, np.zeros(0)

    # ---- what the map does -------------------------------------------------------------------------------------------

    @one_blas_thread
    def initialise(self, rows: Rows, coef: Rows, x: Rows | None = None) -> Rows:
        S = sketch.sjlt_rows(len(rows), self.sketch_size, seed=self.seed, blocks=self.blocks)
        self._begin(rows, S, sample_landmarks(self.sampled, len(rows), self.seed))
        return self._weights(rows, self._rows, coef)

    def _begin(self, rows: Rows, S: Rows, m: np.ndarray[Any, Any]) -> None:
        self._rows, self._landmarks = gram.Landmarks.of(rows), gram.Landmarks.of(rows[m])
        self._S, self._first, self._refreshes, self.ready = S.copy(), len(rows), 0, True
        self._factorise()

    @one_blas_thread
    def refresh(self, x: Rows) -> Rows | None:
        before = self._on_landmarks()
        s = self._fresh_row()
        memory = self._memory or 2 * self._first
        slot = (self._first + self._refreshes) % memory
        if slot == len(self._rows):
            self._rows.append(x)
            self._S = np.concatenate([self._S, np.zeros((1, self.sketch_size))])
        else:
            leaving = self._S[slot].copy()
            self._S[slot] = 0.0
            self._add(self._rows.array[slot].copy(), leaving, -1.0)
            self._rows.replace(slot, x)
        self._add(x, s, 1.0)
        self._S[slot] = s
        self._refreshes += 1
        self._tidy()
        self._solve()
        return self._transfer(before)

    def _fresh_row(self) -> Rows:
        number = self._first + self._refreshes
        row: Rows = sketch.sjlt_rows(1, self.sketch_size, seed=self.seed, first_row=number, blocks=self.blocks)[0]
        return row

    def _kernels(self, x: Rows) -> tuple[Rows, Rows, float]:
        """r, c and xi of a row that S_p does not hold, or holds as zeros."""
        row = x[None]
        psi = gram.block(row, self._rows, **self.kernel)[0]
        c = gram.block(row, self._landmarks, **self.kernel)[0]
        return psi @ self._S, c, float(gram.diagonal(row, **self.kernel)[0])

    def _add(self, x: Rows, s: Rows, sign: float) -> None:
        r, c, xi = self._kernels(x)
        self._Phi_pm += sign * np.outer(s, c)
        W, M = np.stack([s, r], axis=1), sign * np.array([[xi, 1.0], [1.0, 0.0]])
        if self.full:
            self._Phi_pp += W @ M @ W.T
        else:
            self._V, self._lam = update_factor(self._V, self._lam, W, M, self.k)

    # ---- the factor --------------------------------------------------------------------------------------------------

    def _factorise(self) -> None:
        rows = self._rows.array
        self._Phi_pm = self._S.T @ gram.block(rows, self._landmarks, **self.kernel)
        Phi = self._S.T @ gram.block(rows, self._rows, **self.kernel) @ self._S
        Phi = 0.5 * (Phi + Phi.T)
        if self.full:
            self._Phi_pp = Phi
        self._lam, self._V = _top(Phi, self.k)
        self._solve()

    def _tidy(self) -> None:
        """After an update: the full decomposition, or now and then V made orthonormal again."""
        if self.full:
            self._Phi_pp = 0.5 * (self._Phi_pp + self._Phi_pp.T)
            self._lam, self._V = _top(self._Phi_pp, self.k)
        elif self._refreshes % _REORTHOGONALISE == 0:
            q, r = np.linalg.qr(self._V)
            self._lam, vectors = _top((r * self._lam) @ r.T, self.k)
            self._V = q @ vectors

    def _solve(self) -> None:
        used = self._lam > self.rcond * self._lam[0]
        Q = _lstsq(self._Phi_pm, self._V * np.sqrt(np.where(used, self._lam, 0.0)), self.rcond)
        # abs(phi(x))^2 <= g k(x, x) for every x, g the largest eigenvalue of Q' K_mm Q. The least squares are hardly
        # overdetermined, and where the kernel is narrow g may be 1e12.
        g, turn = np.linalg.eigh(Q.T @ gram.block(self._landmarks.array, self._landmarks, **self.kernel) @ Q)
        if g[-1] > _LONGEST:
            Q = np.ascontiguousarray((Q @ turn / np.sqrt(np.maximum(g / _LONGEST, 1.0))) @ turn.T)
        self._Q = Q

    # ---- states ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        numbers = {"kernel": dict(self.kernel), "ready": self.ready, "first": self._first, "count": self._refreshes}
        arrays = {name: getattr(self, f"_{name}").copy() for name in self._ARRAYS}
        return numbers | arrays | {"rows": self._rows.array.copy(), "landmarks": self._landmarks.array.copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kernel, self.ready = dict(state["kernel"]), state["ready"]
        self._first, self._refreshes = state["first"], state["count"]
        self._rows, self._landmarks = gram.Landmarks.of(state["rows"]), gram.Landmarks.of(state["landmarks"])
        for name in self._ARRAYS:
            setattr(self, f"_{name}", state[name].copy())
        slot = (self._first + self._refreshes) % (self._memory or 2 * max(self._first, 1)) if self._REPLACES else 0
        if self.ready and (self._S.shape != (len(self._rows), self.sketch_size) or not 0 <= slot <= len(self._rows)):
            raise ValueError(f"a sketch of shape {self._S.shape} and the slot {slot} for {len(self._rows)} rows")
        if self.ready and (self._V.shape != (self.sketch_size, self.k) or self._lam.shape != (self.k,)):
            raise ValueError(f"factors of shapes {self._V.shape} and {self._lam.shape} for rank {self.k}")

    _REPLACES = True  # whether a refresh puts its row into a slot
    _ARRAYS = ("S", "Phi_pm", "Phi_pp", "V", "lam", "Q")


class PublishedNystrom(SketchedNystrom):
    """The map as the authors of FORKS released it, defects and all, in float64 (theirs is float32).

    Arguments as `SketchedNystrom`, without `memory`, `full` and `rcond`. What differs:

    - a refresh leaves its row and the fresh row of S_p behind, so that later ones miss their cross terms;
    - the factor of Phi_pp is U diag(sig) V', updated as any matrix is, with singular values in place of eigenvalues:
      soon Phi_pp has eigenvalues below 0, and their absolute values count as kernel spectrum;
    - Q = pinv(Phi_pm) V diag(sig)^(1/2), singular values above 1e-8 inverted whatever the largest is;
    - the weights at first match the support vectors' sum at one row, and every refresh drops w and A (no T).
    """

    _CUT = 1e-8

    def __init__(self, d: int, kernel: Keywords, **settings: Any) -> None:
        super().__init__(d, kernel, **settings)
        self._U: Rows = np.zeros((0, 0))

    @one_blas_thread
    def initialise(self, rows: Rows, coef: Rows, x: Rows | None = None) -> Rows:
        assert x is not None
        super().initialise(rows, coef)
        phi = self.features(x[None])[0]
        f = gram.matvec(x[None], self._rows, np.ascontiguousarray(coef), **self.kernel)[0]
        return np.outer(f, phi / max(phi @ phi, np.finfo(float).tiny))  # phi may be 0

    @one_blas_thread
    def refresh(self, x: Rows) -> Rows | None:
        s = self._fresh_row()
        r, c, xi = self._kernels(x)
        self._Phi_pm += np.outer(s, c)
        A, B = np.stack([s, r, xi * s], axis=1), np.stack([r, s, s], axis=1)
        left_coordinates, P = _coordinates(self._U, A)
        right_coordinates, beside = _coordinates(self._V, B)
        core = left_coordinates @ right_coordinates.T
        core[np.arange(self.k), np.arange(self.k)] += self._lam
        left, values, right = np.linalg.svd(core)
        self._U = np.concatenate([self._U, P], axis=1) @ left[:, : self.k]
        self._V = np.concatenate([self._V, beside], axis=1) @ right[: self.k].T
        self._lam = values[: self.k]
        self._refreshes += 1
        self._solve()
        return None

    def _factorise(self) -> None:
        rows = self._rows.array
        self._Phi_pm = self._S.T @ gram.block(rows, self._landmarks, **self.kernel)
        U, values, Vt = np.linalg.svd(self._S.T @ gram.block(rows, self._rows, **self.kernel) @ self._S)
        self._U, self._lam, self._V = U[:, : self.k].copy(), values[: self.k].copy(), Vt[: self.k].T.copy()
        self._solve()

    def _solve(self) -> None:
        left, values, right = np.linalg.svd(self._Phi_pm, full_matrices=False)
        inverse = np.where(values > self._CUT, 1.0 / np.maximum(values, self._CUT), 0.0)
        self._Q = np.ascontiguousarray(right.T @ (inverse[:, None] * (left.T @ (self._V * np.sqrt(self._lam)))))

    _REPLACES = False
    _ARRAYS = ("S", "Phi_pm", "U", "V", "lam", "Q")
