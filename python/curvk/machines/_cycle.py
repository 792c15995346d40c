"""EigenPro 4 between two projections, as plain functions over arrays.

Shapes: n rows X (n, d), Y (n, c); p centers Z; a sample S of s rows with q eigenpairs; coefficients alpha (p, c).
Source: Abedsoltan, Ma, Pandit & Belkin, arXiv 2411.16658 (NeurIPS 2025), and their code.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from ..kernels import gram
from ._nystrom import Nystrom
from ._projection import Projection

Rows = npt.NDArray[Any]
Keywords = dict[str, Any]

WINDOW = 256  # rows; fewer say little about growth, as targets may have heavy tails
JOINED = 256  # rows of temporary centers up to which the next batch joins them: a call costs as much as 10^5 entries
BLOCK = 1 << 20  # kernel entries held at a time for the transposed product: 4 MB in float32


@dataclass(frozen=True)
class Setting:
    """What does not change in training."""

    Z: Any  # gram.Centers (p, d)
    kernel: Keywords
    top: Nystrom
    F: Rows  # K(Z, S) (E D), (p, q)

    @classmethod
    def of(cls, packed: Any, kernel: Keywords, top: Nystrom) -> Setting:
        if not top.values.size:
            return cls(packed, kernel, top, np.zeros((packed.shape[0], 0), packed.dtype))
        return cls(packed, kernel, top, gram.matvec(packed.array, top.sample, top.scaled, **kernel))


@dataclass
class Cycle:
    """The steps since the last projection: f = K(., Z) alpha + sum_t K(., Z_t) a_t + K(., S) a_s.

    `h` is what these steps add to the values of f on Z (the gradients' inner products with the centers' functions), so
    that the projection onto the span of the centers adds K(Z, Z)^-1 h to alpha.
    """

    a_s: Rows  # (s, c)
    h: Rows  # (p, c)
    z_tmp: list[Any] = field(default_factory=list)  # the batches as gram.Centers, small ones joined
    a_tmp: list[Rows] = field(default_factory=list)
    steps: int = 0
    squares: float = 0.0  # sum of squared residuals over the batches, each taken before its step
    rows: int = 0

    @classmethod
    def empty(cls, setting: Setting, outputs: int) -> Cycle:
        dtype, s, p = setting.F.dtype, setting.top.sample.shape[0], setting.Z.shape[0]
        return cls(np.zeros((s, outputs), dtype), np.zeros((p, outputs), dtype))


def step(setting: Setting, alpha: Rows, cycle: Cycle, X: Rows, Y: Rows, eta: float) -> float:
    """One preconditioned step on the batch X (m, d), Y (m, c), added to the cycle; the batch's squared residual.

    Kernel entries: m (p + s + temporary centers). Memory: two blocks of rows of K, never m x p.
    """
    kernel, top = setting.kernel, setting.top
    p, s, preconditioned = setting.Z.shape[0], top.sample.shape[0], top.values.size > 0
    g = np.negative(Y)
    for z, a in zip(cycle.z_tmp, cycle.a_tmp, strict=True):
        gram.matvec(X, z, a, out=g, accumulate=True, **kernel)
    height = min(len(X), max(64, BLOCK // (p + s)))
    K_z, K_s = np.empty((height, p), g.dtype), np.empty((height if preconditioned else 0, s), g.dtype)
    on_z, on_s = np.zeros_like(cycle.h), np.zeros_like(cycle.a_s)
    for start in range(0, len(X), height):
        X_b, g_b = X[start : start + height], g[start : start + height]
        K_b = K_z[: len(X_b)]
        if preconditioned:
            S_b = K_s[: len(X_b)]
            gram.matvec(X_b, top.sample, cycle.a_s, out=g_b, accumulate=True, keep=S_b, **kernel)
        gram.matvec(X_b, setting.Z, alpha, out=g_b, accumulate=True, keep=K_b, **kernel)
        on_z += K_b.T @ g_b
        if preconditioned:
            on_s += S_b.T @ g_b
    factor = np.asarray(eta, g.dtype)
    if preconditioned:
        v = top.vectors.T @ on_s
        cycle.a_s += factor * (top.scaled @ v)
        on_z -= setting.F @ v
    cycle.h -= factor * on_z
    squares = float(np.einsum("ij,ij->", g, g, dtype=np.float64))
    g *= -factor
    if cycle.z_tmp and cycle.z_tmp[-1].shape[0] < JOINED:
        X, g = np.concatenate([cycle.z_tmp.pop().array, X]), np.concatenate([cycle.a_tmp.pop(), g])
    cycle.z_tmp.append(gram.Centers(X))
    cycle.a_tmp.append(g)
    cycle.steps += 1
    cycle.squares += squares
    cycle.rows += len(Y)
    return squares


def steps_per_projection(p: int, batch: int, entries: float) -> int:
    """T, at least 1, that makes the sum of both costs least.

    Per batch, temporary centers cost batch^2 (T-1)/2 kernel entries and a projection `entries` p^2 / T, so
    T = sqrt(2 entries) p / batch. The paper's projector has entries = 1; its code takes p / m*, which is 0 for m* > p.
    """
    return max(1, round(math.sqrt(2 * entries) * p / batch))


@dataclass
class Trainer:
    """alpha, and passes over rows that improve it."""

    setting: Setting
    project: Projection
    alpha: Rows  # (p, c); replaced, never written
    batch: int
    T: int
    eta_scale: float
    reference: float = 0.0  # mean square of Y or of the first batch's residuals, whichever is larger
    recent: tuple[float, float] = (0.0, 0.0)  # squares of residuals and of Y over about the last WINDOW rows
    best: tuple[float, Rows] | None = None  # the cycle with the least mean squared residual so far, and its first alpha

    def epoch(self, X: Rows, Y: Rows, order: npt.NDArray[np.intp], tick: Callable[[float], None]) -> float:
        """One pass over the rows in the given order, projected at its end; the mean squared residual met on the way."""
        mean_square = float(np.einsum("ij,ij->", Y, Y, dtype=np.float64)) / len(Y)
        cycle, squares, rows = Cycle.empty(self.setting, Y.shape[1]), 0.0, 0
        for start in range(0, len(order), self.batch):
            index = order[start : start + self.batch]
            X_m, Y_m = X[index], Y[index]
            eta = self.eta_scale * self.setting.top.step_size(len(index))
            with np.errstate(over="ignore", invalid="ignore"):  # a step too long is met below
                residual = step(self.setting, self.alpha, cycle, X_m, Y_m, eta) / len(index)
            self.reference = self.reference or max(mean_square, residual if math.isfinite(residual) else 0.0)
            if self._diverged(residual, Y_m):
                self._step_back(residual)
                cycle = Cycle.empty(self.setting, Y.shape[1])
            elif cycle.steps == self.T:
                squares, rows, cycle = squares + cycle.squares, rows + cycle.rows, self._close(cycle)
            tick(residual)
        if cycle.rows:
            squares, rows = squares + cycle.squares, rows + cycle.rows
            self._close(cycle)
        return squares / max(rows, 1)

    def _close(self, cycle: Cycle) -> Cycle:
        loss = cycle.squares / cycle.rows
        if self.best is None or loss <= self.best[0]:
            self.best = loss, self.alpha
        self.alpha = self.alpha + self.project(cycle.h)
        return Cycle.empty(self.setting, cycle.h.shape[1])

    def _diverged(self, residual: float, Y: Rows) -> bool:
        """Whether recent residuals are far above those of f = 0 on the same rows and those that training began with."""
        m, keep = len(Y), max(0.0, 1 - len(Y) / WINDOW)
        residuals = keep * self.recent[0] + residual * m
        zeros = keep * self.recent[1] + float(np.einsum("ij,ij->", Y, Y, dtype=np.float64))
        self.recent = residuals, zeros
        return not residuals <= 4 * (zeros + self.reference * max(m, WINDOW))

    def _step_back(self, residual: float) -> None:
        """Halves the step and goes back to the best coefficients seen."""
        self.eta_scale /= 2
        if self.eta_scale < 2.0**-30:
            raise ValueError(
                f"training diverges with every step size (mean squared residual {residual:.1e}); is the kernel "
                "positive semidefinite, are X and y of moderate size?"
            )
        warnings.warn(
            f"the residual grew to {residual:.1e}; the step was halved to {self.eta_scale:.3g} of EigenPro's own "
            "(nystrom_samples too small for n_components?)",
            ConvergenceWarning,
            stacklevel=2,
        )
        self.recent = 0.0, 0.0
        if self.best is not None:
            self.alpha = self.best[1]
