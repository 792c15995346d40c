"""From the losses of a step's probes to the coefficients of their noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .._errors import message
from ._stream import DRAWS, integer, real


class Estimator:
    """Turns losses into weights w_k of the estimate g_hat = sum_k w_k z_k; a subclass gives `weights`.

    Args:
        eps: of the probes, > 0. It is rounded to float32, so that the weights move by what the losses are divided by.
        n_probes: >= 1, over all processes.
        function: the caller's name, for errors.
        rounded: False keeps all digits of eps, as MeZO's code does.

    Attributes:
        rule: its name in the log.
        base: whether the loss at theta is evaluated too, once a step.
        scales: where each probe is evaluated: at theta + scale z_k for each scale, in this order.
        settings: what identifies the rule, for the log's header; plain JSON.
    """

    rule: ClassVar[str]
    base: ClassVar[bool] = False
    _sides: ClassVar[tuple[int, ...]]
    _fewest: ClassVar[int] = 1

    def __init__(self, eps: float, n_probes: int = 1, function: str = "MeZO", rounded: bool = True) -> None:
        eps = real(function, "eps", eps, "a finite number > 0", 0.0, open=True)
        with np.errstate(over="ignore", under="ignore"):
            single = float(np.float32(eps))
        if not 2.0**-126 <= single < math.inf:
            raise ValueError(message(function, "eps", f"{eps}", "a number > 0 in float32's normal range"))
        self.eps = single if rounded else eps
        self.n_probes = integer(function, "n_probes", n_probes, self._fewest, DRAWS, "2^32")
        self.scales = tuple(side * self.eps for side in self._sides)
        self.settings: dict[str, Any] = {"rule": self.rule, "eps": self.eps, "n_probes": self.n_probes}

    def weights(self, losses: Sequence[Sequence[float]], base: float | None) -> list[float] | None:
        """The weights; None if there is nothing to update with yet.

        Args:
            losses: for each probe its losses in the order of `scales`; all finite.
            base: the loss at theta, if asked for.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; plain JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""


class Central(Estimator):
    """Central differences (SPSA), averaged over K probes; exact for quadratics whatever eps::

        g_k = (L(theta + eps z_k) - L(theta - eps z_k)) / (2 eps)         w_k = g_k / K

    >>> Central(eps=0.5).weights([[3.0, 1.0]], None)
    [2.0]
    """

    rule = "central"
    _sides = (1, -1)

    def weights(self, losses: Sequence[Sequence[float]], base: float | None) -> list[float]:
        return [(plus - minus) / (2 * self.eps) / self.n_probes for plus, minus in losses]


class Residual(Estimator):
    """One-point residual feedback: one loss a probe, compared with the step before (Zhang et al. 2022)::

        g_k = (L_t(theta_t + eps z_k) - mean of the last step's losses) / eps         w_k = g_k / K

    The first step only measures.

    >>> rule = Residual(eps=0.5)
    >>> rule.weights([[3.0]], None), rule.weights([[2.0]], None)
    (None, [-2.0])
    """

    rule = "residual"
    _sides = (1,)
    _last: float | None = None

    def weights(self, losses: Sequence[Sequence[float]], base: float | None) -> list[float] | None:
        last, self._last = self._last, mean(loss for (loss,) in losses)
        if last is None:
            return None
        return [(loss - last) / self.eps / self.n_probes for (loss,) in losses]

    def state(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._last = state["last"]


class Forward(Estimator):
    """FZOO's forward differences, divided by the losses' spread::

        w_k = (L(theta + eps z_k) - L(theta)) / (eps K sigma)     sigma^2 = sum_k (L_k - mean)^2 / (K - 1)

    For a linear loss E sigma^2 = eps^2 ||g||^2. Equal losses give no update. Source: FZOO, arXiv 2506.09034.

    >>> rule = Forward(eps=0.5, n_probes=2)
    >>> [round(w, 4) for w in rule.weights([[2.0], [4.0]], 1.0)]
    [0.7071, 2.1213]
    """

    rule = "forward"
    base = True
    _sides = (1,)
    _fewest = 2

    def weights(self, losses: Sequence[Sequence[float]], base: float | None) -> list[float]:
        assert base is not None
        values = [loss for (loss,) in losses]
        sigma = _spread(values, len(values) - 1)
        if not sigma:
            return [0.0] * len(values)
        return [(loss - base) / (self.eps * self.n_probes * sigma) for loss in values]


class Population(Estimator):
    """Evolution strategies with z-scored rewards R = -L, one-sided::

        w_k = (L_k - mean) / (std + 1e-8) / K         std with divisor K

    so that theta <- theta + lr / K sum_k (R_k - mean R) / (std + 1e-8) z_k. Source: Qiu et al. 2025, arXiv 2509.24372.

    >>> [round(w, 6) for w in Population(eps=0.5, n_probes=2).weights([[2.0], [4.0]], None)]
    [-0.5, 0.5]
    """

    rule = "population"
    _sides = (1,)
    _fewest = 2

    def weights(self, losses: Sequence[Sequence[float]], base: float | None) -> list[float]:
        values = [loss for (loss,) in losses]
        middle, std = mean(values), _spread(values, len(values))
        return [(loss - middle) / (std + 1e-8) / self.n_probes for loss in values]


def mean(values: Iterable[float]) -> float:
    """The mean, rounded once, so that processes on different machines agree; inf where the sum overflows."""
    numbers = list(values)
    return _sum(numbers) / len(numbers)


def _spread(values: Sequence[float], divisor: int) -> float:
    middle = mean(values)
    return math.sqrt(_sum([(v - middle) * (v - middle) for v in values]) / divisor)


def _sum(numbers: Sequence[float]) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # a partial sum above the largest double, or inf - inf
        return sum(numbers)
