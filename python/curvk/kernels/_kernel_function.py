"""Kernel functions as their callers name them and as curvk/gram.h numbers and scales them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

from .._errors import message

KERNELS = (
    "gaussian",
    "laplacian",
    "matern32",
    "matern52",
    "rational_quadratic",
    "imq",
    "exponent",
    "polynomial",
    "linear",
)
"""The kernel functions' names; `matvec` gives their formulas."""

NUMBERS = {"linear": 0, "polynomial": 1, "gaussian": 2, "laplacian": 3, "matern32": 4, "matern52": 5}
NUMBERS |= {"rational_quadratic": 6, "imq": 7, "exponent": 8, "squared distance": 9, "distance": 10}
_GAUSSIAN_ALPHA = 1e20  # beyond, rational_quadratic is the Gaussian to double's rounding, and 1 / alpha may vanish


@dataclass(frozen=True)
class Function:
    """A kernel function as curvk/gram.h numbers and scales it."""

    number: int
    scale: float = 0.0
    shape: float = 0.0
    degree: int = 0

    @property
    def of_distance(self) -> bool:
        return self.number >= 2


def real(op: str, name: str, value: Any) -> float:
    """The number, or an error that names the argument."""
    try:
        if not isinstance(value, (str, bytes)):
            return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        pass
    raise TypeError(message(op, name, f"{value!r} of type {type(value).__name__}", "a real number"))


def integer(op: str, name: str, value: Any, least: int, other: str = "") -> int:
    """The integer, `least` or more, or an error that names the argument and `other` values it may take."""
    needed = f"an integer of {least} or more{other}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(message(op, name, f"{value!r} of type {type(value).__name__}", needed))
    if value.__index__() < least:
        raise ValueError(message(op, name, f"{value}", needed))
    return int(value.__index__())


def positive(op: str, name: str, value: Any) -> float:
    """The number in (0, inf), or an error that names the argument."""
    number = real(op, name, value)
    if not 0 < number < math.inf:
        remedy = "median_distance(X) is a usual choice" if name == "bandwidth" else ""
        raise ValueError(message(op, name, f"{value}", "a number in (0, inf)", remedy))
    return number


def function_of(
    op: str,
    kernel: str = "gaussian",
    bandwidth: float | None = None,
    alpha: float = 1.0,
    gamma: float = 1.0,
    coef0: float = 1.0,
    degree: int = 3,
) -> Function:
    """The function of these arguments, as `curvk.kernels.gram.matvec` takes them; or an error that names one."""
    if not isinstance(kernel, str) or kernel not in KERNELS:
        raise ValueError(message(op, "kernel", repr(kernel), f"one of {', '.join(KERNELS)}"))
    number = NUMBERS[kernel]
    if kernel == "linear":
        return Function(number)
    if kernel == "polynomial":
        shift = real(op, "coef0", coef0)
        if not math.isfinite(shift):
            raise ValueError(message(op, "coef0", f"{coef0}", "a finite number"))
        return Function(number, positive(op, "gamma", gamma), shift, integer(op, "degree", degree, 0))
    if bandwidth is None:
        remedy = "median_distance(X) is a usual choice"
        raise TypeError(message(op, "bandwidth", "None", f"a number for the {kernel} kernel", remedy))
    h = positive(op, "bandwidth", bandwidth)
    square = h * h
    if not sys.float_info.min <= square < math.inf:
        raise ValueError(message(op, "bandwidth", f"{bandwidth}", "a number whose square a double holds"))
    if kernel == "rational_quadratic":
        a = positive(op, "alpha", alpha)
        if a > _GAUSSIAN_ALPHA:
            return Function(NUMBERS["gaussian"], 0.5 / square)
        scale = 0.5 / square / a
        if scale == math.inf:
            raise ValueError(message(op, "alpha", f"{alpha}", f"a larger number beside bandwidth {bandwidth}"))
        return Function(number, scale, a)
    if kernel == "exponent":
        return Function(number, 1 / h, positive(op, "gamma", gamma) / 2)
    scales = {
        "gaussian": 0.5 / square,
        "laplacian": 1 / h,
        "matern32": math.sqrt(3) / h,
        "matern52": math.sqrt(5) / h,
        "imq": 1 / square,
    }
    return Function(number, scales[kernel])
