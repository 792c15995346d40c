"""Step rules: how a direction becomes a step of the particles, uphill and in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.optim import adam_step

Floats = np.ndarray[Any, np.dtype[Any]]

DECAY, EPS = 0.9, 1e-6
"""Of AdaGrad's squared directions, as in the original code of SVGD."""


class SGD:
    """x <- x + lr phi."""

    def __init__(self, particles: Floats) -> None:
        self._step = np.empty_like(particles)

    def arrays(self) -> dict[str, Floats]:
        """The rule's states."""
        return {}

    def apply(self, particles: Floats, phi: Floats, lr: float, step: int) -> None:
        """Writes step number `step`, from 1, to the particles."""
        np.multiply(phi, lr, out=self._step)
        np.add(particles, self._step, out=particles)


class AdaGrad(SGD):
    """v <- phi^2 in the first step, then 0.9 v + 0.1 phi^2; x <- x + lr phi / (1e-6 + sqrt(v)).

    The original code of SVGD calls this AdaGrad; its decay makes it RMSProp.
    """

    def __init__(self, particles: Floats) -> None:
        super().__init__(particles)
        self._v = np.zeros_like(particles)

    def arrays(self) -> dict[str, Floats]:
        """The rule's states."""
        return {"square_avg": self._v}

    def apply(self, particles: Floats, phi: Floats, lr: float, step: int) -> None:
        """Writes step number `step`, from 1, to the particles."""
        v, x = self._v, self._step
        with np.errstate(over="ignore"):  # a square above the largest float32 makes the step 0
            np.multiply(phi, phi, out=x)
            if step == 1:
                v[...] = x
            else:
                v *= DECAY
                x *= 1 - DECAY
                v += x
            np.sqrt(v, out=x)
            x += EPS
            np.divide(phi, x, out=x)
        x *= lr
        np.add(particles, x, out=particles)


class Adam(SGD):
    """Adam with betas 0.9 and 0.999: `curvk.kernels.optim.adam_step`."""

    def __init__(self, particles: Floats) -> None:
        self._m, self._v = np.zeros_like(particles), np.zeros_like(particles)

    def arrays(self) -> dict[str, Floats]:
        """The rule's states."""
        return {"exp_avg": self._m, "exp_avg_sq": self._v}

    def apply(self, particles: Floats, phi: Floats, lr: float, step: int) -> None:
        """Writes step number `step`, from 1, to the particles."""
        adam_step(particles, phi, self._m, self._v, step=step, lr=lr, maximize=True)


RULES = {"adagrad": AdaGrad, "adam": Adam, "sgd": SGD}
