"""SVGD without the target's gradient: a surrogate's score, importance weights in log space (Han & Liu 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._errors import message
from ..zeroth._stream import integer, real
from ._bandwidth import Bandwidth
from ._base import Floats, checked
from ._flow import Flow

_RIDGE = 1e-3  # of the fitted covariance, times the mean variance: keeps it positive definite where n <= d


class GradientFreeSVGD(Flow):
    """Gradient-free SVGD: the surrogate rho's score instead of the target p's, weighted by rho / p.

    Each step moves the particles along::

        phi_i = sum_j w_j (k(x_j, x_i) grad log rho(x_j) + a grad_{x_j} k(x_j, x_i)),   w_j = rho(x_j) / p(x_j), sum 1

    The weights are normalised in log space, so neither density needs its constant. rho should be broader than p: where
    p has mass and rho has none the weights vanish, and where rho has mass and p has none a few particles take it all.

    Args:
        log_density: log p up to a constant: is given the particles, (n, d), and returns (n,) finite numbers. The same
            rules as for SVGD's `score` hold.
        x0, kernel, bandwidth, step, lr, repulsion, seed, parameters: as in `SVGD`.
        surrogate: "gaussian", the normal density with the particles' mean and inflation^2 times their covariance,
            fitted anew in each step; or an object with functions `log_density` and `score` of points (n, d), such as
            those of `curvk.stein.problems`.
        inflation: > 0, of the fitted Gaussian's deviations.
        annealing: number of steps in which the target goes from p_0 to p, as p_0^(1 - b) p^b with b growing linearly; 0
            for none. p_0 is the surrogate, or the Gaussian fitted to x0.

    Attributes:
        ess: the effective sample size 1 / sum w^2 of the last step, between 1 and n; nan before it.

    Raises:
        TypeError, ValueError, BufferError: an argument that does not fit; the text names it. `step` raises a ValueError
            where log p or log rho is not finite at a particle.

    Source: Han & Liu 2018 (arXiv 1806.02775). Their annealed variant renews rho by a kernel smooth of the particles;
    here rho stays the one chosen, and annealing changes the target alone.

    >>> import numpy as np
    >>> from curvk.stein import GradientFreeSVGD
    >>> x0 = np.random.default_rng(0).standard_normal((100, 2))
    >>> sampler = GradientFreeSVGD(lambda x: -0.5 * np.square(x - 1).sum(1), x0, lr=0.1)
    >>> x = sampler.run(300)
    >>> bool(np.all(abs(x.mean(0) - 1) < 0.1))
    True
    """

    def __init__(
        self,
        log_density: Callable[[Floats], Any],
        x0: Any,
        *,
        surrogate: Any = "gaussian",
        inflation: float = 1.0,
        annealing: int = 0,
        kernel: str = "gaussian",
        bandwidth: Bandwidth = "median",
        step: str = "adagrad",
        lr: float = 0.05,
        repulsion: float = 1.0,
        seed: int = 0,
        **parameters: Any,
    ) -> None:
        super().__init__(
            x0,
            kernel=kernel,
            bandwidth=bandwidth,
            step=step,
            lr=lr,
            repulsion=repulsion,
            seed=seed,
            parameters=parameters,
        )
        self._log_density = self._checked_function("log_density", log_density)
        self._fitted = isinstance(surrogate, str) and surrogate == "gaussian"
        if not self._fitted and not all(callable(getattr(surrogate, f, None)) for f in ("log_density", "score")):
            needed = "'gaussian' or an object with functions log_density and score"
            raise TypeError(message(self._name, "surrogate", repr(surrogate)[:80], needed))
        self._surrogate = surrogate
        self._inflation = real(self._name, "inflation", inflation, "a finite number > 0", 0.0, open=True)
        self._annealing = integer(self._name, "annealing", annealing, 0, 1 << 63, "2^63")
        self._start = _Fit(self._particles, self._inflation) if self._fitted and self._annealing else None
        self.ess = self._next_ess = math.nan

    def _settings(self) -> dict[str, Any]:
        surrogate = "gaussian" if self._fitted else "an object"
        return super()._settings() | {
            "surrogate": surrogate,
            "inflation": self._inflation,
            "annealing": self._annealing,
        }

    def _arrays(self) -> dict[str, Floats]:
        start = self._start
        return super()._arrays() | ({"start_mean": start.mean, "start_precision": start.precision} if start else {})

    def _scores(self) -> tuple[Floats, Floats]:
        x, function = self._particles, f"{self._name}.step"
        n = len(x)
        log_p = self._evaluated("log_density", self._log_density, x, (n,), np.float64)
        self._need_finite("log_density", log_p)
        if self._fitted:
            rho = _Fit(x, self._inflation)
            log_rho, scores = rho.log_density(x), rho.score(x).astype(x.dtype, copy=False)
        else:
            label = "surrogate.log_density"
            log_rho = checked(function, f"{label}(points)", self._surrogate.log_density(x), (n,), np.float64)
            self._need_finite(label, log_rho)
            scores = self._evaluated("surrogate.score", self._surrogate.score, x, x.shape)
            self._need_finite("surrogate.score", scores)
        b = min(1.0, (self.n_steps + 1) / self._annealing) if self._annealing else 1.0
        if b < 1:
            log_p = b * log_p + (1 - b) * (self._start.log_density(x) if self._start else log_rho)
        log_w = log_rho - log_p
        w = np.exp(log_w - log_w.max())
        w /= w.sum()
        self._next_ess = 1 / float(w @ w)
        return scores, w.astype(x.dtype)[:, None]

    def _commit(self, proposal: Any) -> None:
        super()._commit(proposal)
        self.ess = self._next_ess


class _Fit:
    """The normal density with the points' mean and factor^2 times their covariance, up to a constant; in double."""

    def __init__(self, x: Floats, factor: float) -> None:
        n, d = x.shape
        self.mean = x[0] + (x - x[0].astype(np.float64)).mean(0)  # of equal points it is the point, without rounding
        centred = x - self.mean
        covariance = centred.T @ centred * (factor**2 / n)
        scale = float(np.trace(covariance)) / d
        covariance += np.eye(d) * (_RIDGE * scale or 1.0)
        self.precision = np.linalg.inv(covariance)

    def log_density(self, x: Floats) -> Floats:
        centred = x - self.mean
        out: Floats = -0.5 * np.einsum("nd,nd->n", centred @ self.precision, centred)
        return out

    def score(self, x: Floats) -> Floats:
        out: Floats = (self.mean - x) @ self.precision
        return out
