"""Particles that follow a Stein direction: one Gram product per step, no n x n array."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._errors import message
from ..kernels import gram
from ..zeroth._stream import one_of, real
from . import _bandwidth
from ._base import Floats, Sampler, not_finite
from ._kernel import Kernel, kernel_of
from ._steps import RULES

_SLICE = 1 << 18  # entries of the blocks that the kernels without a compiled derivative are computed in


class Direction:
    """phi_i = sum_j w_j (k(x_j, x_i) s_j + a grad_{x_j} k(x_j, x_i)) in buffers of its own.

    For a distance kernel with -2 k' = f k2, the second part is a f (x_i (K2 w)_i - (K2 (w x))_i). The Gaussian's k2 is
    k itself: one product K [w s | a f w x | a f w]. x is centred first, since its mean cancels.
    """

    def __init__(self, kernel: Kernel, repulsion: float, particles: Floats) -> None:
        n, d = particles.shape
        self._kernel, self._repulsion = kernel, repulsion
        self._fused = kernel.name == "gaussian"

        def pair(width: int) -> tuple[Floats, Floats]:
            return np.empty((n, width), particles.dtype), np.empty((n, width), particles.dtype)

        self._x, self._phi = pair(d)
        if self._fused:
            self._columns, self._products = pair(2 * d + 1)
            self._left, self._pulled = self._columns[:, :d], self._products[:, :d]
            self._right, self._pushed = self._columns[:, d:], self._products[:, d:]
        else:
            self._left, self._pulled = pair(d)
            self._right, self._pushed = pair(d + 1)

    def __call__(self, particles: Floats, scores: Floats, h: float, weights: Floats | None = None) -> Floats:
        """The directions, (n, d), in a buffer that the next call writes anew.

        Args:
            particles, scores: (n, d), of one dtype; only read.
            h: the bandwidth.
            weights: (n, 1), of sum 1; 1 / n each if None.
        """
        w = 1 / len(particles) if weights is None else weights
        np.multiply(scores, w, out=self._left)
        if not self._kernel.is_distance:
            return self._polynomial(particles, w)
        d, x, phi = particles.shape[1], self._x, self._phi
        np.subtract(particles, particles.mean(0, dtype=np.float64).astype(x.dtype), out=x)
        keywords = self._kernel.keywords(h)
        if self._kernel.power is not None:
            gram.matvec(x, x, self._left, out=phi, **keywords)
            phi += self._by_blocks(keywords, w)
            return phi
        factor, steeper, h2 = self._kernel.derivative(h)
        strength = (factor * self._repulsion) * w
        np.multiply(x, strength, out=self._right[:, :d])
        self._right[:, d:] = strength
        if self._fused:
            gram.matvec(x, x, self._columns, out=self._products, **keywords)
        else:
            gram.matvec(x, x, self._left, out=self._pulled, **keywords)
            gram.matvec(x, x, self._right, out=self._pushed, **steeper.keywords(h2))
        np.multiply(x, self._pushed[:, d:], out=phi)
        phi -= self._pushed[:, :d]
        phi += self._pulled
        return phi

    def _by_blocks(self, keywords: dict[str, Any], w: Any) -> Floats:
        """The repulsion where k' is singular at 0, in blocks of rows and in double; coincident points do not repel."""
        x, gamma = self._x, self._kernel.power
        assert gamma is not None
        n, d = x.shape
        rows = max(1, _SLICE // n)
        repulsion = np.empty((n, d))
        wide = np.empty((n, d + 1))
        wide[:, :d], wide[:, d:] = x * w, w
        for first in range(0, n, rows):
            part = x[first : first + rows]
            r = gram.distances(part, x).astype(np.float64)
            k = gram.block(part, x, **keywords)
            with np.errstate(divide="ignore"):
                a = np.where(r > 0, r ** (gamma - 2), 0) * k
            sums = a @ wide
            repulsion[first : first + rows] = part * sums[:, d:] - sums[:, :d]
        repulsion *= self._repulsion * gamma / keywords["bandwidth"]
        return repulsion.astype(x.dtype, copy=False)

    def _polynomial(self, x: Floats, w: Any) -> Floats:
        """For k = (gamma x.y + c)^p: grad_{x_j} k(x_j, x_i) = p gamma (gamma x_j.x_i + c)^(p - 1) x_i."""
        kernel, phi = self._kernel, self._phi
        p, gamma = (1, 1.0) if kernel.name == "linear" else (kernel.degree, kernel.gamma)
        gram.matvec(x, x, self._left, out=phi, **kernel.keywords(0.0))
        scale: Any = 1.0
        if p > 1:
            lower = Kernel("polynomial", gamma=gamma, coef0=kernel.coef0, degree=p - 1)
            scale = gram.matvec(x, x, np.full((len(x), 1), w, x.dtype), **lower.keywords(0.0))
        phi += x * (self._repulsion * p * gamma * scale)
        return phi


class Flow(Sampler):
    """A sampler that steps along a Stein direction: kernel, bandwidth and step rule. `_scores` is the subclass's.

    Attributes:
        lr: learning rate; may be set between steps.
        h: the bandwidth of the last step; None before it and for kernels without one.
    """

    def __init__(
        self,
        x0: Any,
        *,
        kernel: str,
        bandwidth: _bandwidth.Bandwidth,
        step: str,
        lr: float,
        repulsion: float,
        seed: int,
        parameters: dict[str, Any],
    ) -> None:
        super().__init__(x0, seed)
        name = self._name
        self._kernel = kernel_of(name, kernel, parameters)
        self._bandwidth = _bandwidth.check(name, bandwidth)
        self._repulsion = real(name, "repulsion", repulsion, "a finite number >= 0", 0.0)
        self._rule_name = one_of(name, "step", step, tuple(RULES))
        self.lr = real(name, "lr", lr, "a finite number >= 0", 0.0)
        self.h: float | None = None
        self._rule = RULES[self._rule_name](self._particles)
        self._direction = Direction(self._kernel, self._repulsion, self._particles)
        self._cost = len(self._particles)

    def _settings(self) -> dict[str, Any]:
        kernel = self._kernel
        return {
            "kernel": kernel.name,
            "bandwidth": "a function" if callable(self._bandwidth) else self._bandwidth,
            "alpha": kernel.alpha,
            "gamma": kernel.gamma,
            "coef0": kernel.coef0,
            "degree": kernel.degree,
            "step": self._rule_name,
            "lr": self.lr,
            "repulsion": self._repulsion,
        }

    def _arrays(self) -> dict[str, Floats]:
        return super()._arrays() | self._rule.arrays()

    def _scores(self) -> tuple[Floats, Floats | None]:
        """The scores (n, d) at the particles, and their weights (n, 1) of sum 1 or None for equal ones."""
        raise NotImplementedError

    def _lr(self) -> float:
        return real(self._name, "lr", self.lr, "a finite number >= 0", 0.0)

    def _propose(self) -> tuple[Floats, float, float | None]:
        function = f"{self._name}.step"
        lr = self._lr()
        scores, weights = self._scores()
        h = _bandwidth.resolve(self._bandwidth, self._particles, function) if self._kernel.is_distance else None
        with np.errstate(over="ignore", invalid="ignore"):
            phi = self._direction(self._particles, scores, h or 0.0, weights)
        bad = not_finite(phi)
        if bad is not None:
            found = f"no finite direction for particle {bad}"
            remedy = "the scores are too large or the bandwidth too small for the dtype"
            raise ValueError(message(function, "particles", found, "one", remedy))
        return phi, lr, h

    def _commit(self, proposal: tuple[Floats, float, float | None]) -> None:
        phi, lr, self.h = proposal
        self._rule.apply(self._particles, phi, lr, self.n_steps + 1)

    def _checked_function(self, label: str, function: Any) -> Any:
        if not callable(function):
            raise TypeError(message(self._name, label, type(function).__name__, "a function of points (n, d)"))
        return function

    def _need_finite(self, label: str, values: Floats) -> None:
        bad = not_finite(values)
        if bad is not None:
            found = f"{values[bad]} for particle {bad}".replace("\n", "")
            raise ValueError(message(f"{self._name}.step", f"{label}(points)", found, "finite numbers"))
