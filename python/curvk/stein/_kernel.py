"""The engine's kernels as a sampler needs them: keywords by bandwidth, and the derivative as another kernel.

A distance kernel is k(q), q = abs(x - y)^2. Its gradient is grad_y k = -2 k'(q) (x - y), and -2 k' is for most kernels
a factor times another kernel of the engine::

    gaussian            1 / h^2        gaussian, h
    matern32            3 / h^2        laplacian, h / sqrt(3)
    matern52            5 / (3 h^2)    matern32, h sqrt(3 / 5)
    rational_quadratic  1 / h^2        rational_quadratic, alpha + 1, h sqrt(alpha / (alpha + 1))
    imq                 1 / h^2        rational_quadratic, alpha = 3/2, h / sqrt(3)

laplacian and exponent have gamma q^(gamma/2 - 1) / h times themselves instead, which no kernel of the engine is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .._errors import message
from ..kernels._kernel_function import KERNELS
from ..zeroth._stream import integer, one_of, real

Keywords = dict[str, Any]


@dataclass(frozen=True)
class Kernel:
    """A kernel of the engine without its bandwidth."""

    name: str
    alpha: float = 1.0
    gamma: float = 1.0
    coef0: float = 1.0
    degree: int = 3

    @property
    def is_distance(self) -> bool:
        """Whether it is a function of the distance, with a bandwidth."""
        return self.name not in ("polynomial", "linear")

    @property
    def power(self) -> float | None:
        """Gamma of the kernels whose derivative is q^(gamma/2 - 1) times themselves; None for others."""
        return {"laplacian": 1.0, "exponent": self.gamma}.get(self.name)

    def keywords(self, h: float) -> Keywords:
        """The engine's keywords of this kernel with bandwidth h."""
        if self.name == "linear":
            return {"kernel": "linear"}
        if self.name == "polynomial":
            return {"kernel": "polynomial", "gamma": self.gamma, "coef0": self.coef0, "degree": self.degree}
        extra = {"rational_quadratic": {"alpha": self.alpha}, "exponent": {"gamma": self.gamma}}.get(self.name, {})
        return {"kernel": self.name, "bandwidth": h} | extra

    def derivative(self, h: float) -> tuple[float, Kernel, float]:
        """The factor, kernel and bandwidth of -2 k'(q)."""
        square = (1 / h) * (1 / h)  # inf where a power would raise
        if self.name == "gaussian":
            return square, self, h
        if self.name == "matern32":
            return 3 * square, Kernel("laplacian"), h / math.sqrt(3)
        if self.name == "matern52":
            return 5 / 3 * square, Kernel("matern32"), h * math.sqrt(3 / 5)
        if self.name == "imq":
            return square, Kernel("rational_quadratic", alpha=1.5), h / math.sqrt(3)
        if self.name == "rational_quadratic":
            steeper = Kernel("rational_quadratic", alpha=self.alpha + 1)
            return square, steeper, h * math.sqrt(self.alpha / (self.alpha + 1))
        raise ValueError(f"{self.name} has no derivative among the engine's kernels")


def kernel_of(function: str, name: Any, parameters: dict[str, Any]) -> Kernel:
    """The kernel of these arguments.

    Raises:
        TypeError, ValueError: an unknown kernel or parameter, or a number out of range.
    """
    name = one_of(function, "kernel", name, KERNELS)
    used = {"rational_quadratic": ("alpha",), "exponent": ("gamma",), "polynomial": ("gamma", "coef0", "degree")}
    for key in parameters:
        if key not in used.get(name, ()):
            takes = ", ".join(used.get(name, ())) or "no parameter besides the bandwidth"
            raise TypeError(f"{function}: unexpected argument {key!r}; kernel {name!r} takes {takes}")
    checked: dict[str, Any] = {}
    for key, value in parameters.items():
        if key == "degree":
            checked[key] = integer(function, key, value, 1, 1 << 31, "2^31")
        elif key == "coef0":
            checked[key] = real(function, key, value, "a finite number >= 0", 0.0)
        else:
            checked[key] = real(function, key, value, "a finite number > 0", 0.0, open=True)
    kernel = Kernel(name, **checked)
    if name == "exponent" and kernel.gamma > 2:
        raise ValueError(message(function, "gamma", f"{kernel.gamma}", "a number in (0, 2]"))
    return kernel
