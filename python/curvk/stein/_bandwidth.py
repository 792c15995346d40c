r"""Kernel bandwidths from the particles, by the rules of the common packages.

All give the h of exp(-abs(x - y)^2 / (2 h^2)), with med the median of abs(x_i - x_j) over the pairs i < j:

============================ =====================================================================================
"median", "svgd"             h^2 = med^2 / (2 ln(n + 1)): curvk's default and the original code's (Liu & Wang 2016)
"pyro"                       the same: Pyro's exp(-d^2 / b) with b = med^2 / ln(n + 1). Pyro has one b for each
                             coordinate; this is its rule for d = 1
"blackjax", "numpyro"        h^2 = med^2 / (2 ln n): exp(-d^2 / b) with b = med^2 / ln n
"scott"                      h = n^(-1 / (d + 4)) times the root of the coordinates' mean variance (divisor n - 1)
============================ =====================================================================================

The original code and NumPyro take the median over all n^2 entries of the distance matrix, its n zeros included, which
is smaller by about one part in n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._errors import message
from ..kernels import gram
from ..zeroth._stream import real

Bandwidth = float | str | Callable[[Any], float]

RULES = ("median", "svgd", "pyro", "blackjax", "numpyro", "scott")
"""The names that a bandwidth may have."""


def check(function: str, bandwidth: Any) -> Any:
    """The bandwidth as a positive float, a rule's name or a function; raises for anything else."""
    if callable(bandwidth) or (isinstance(bandwidth, str) and bandwidth in RULES):
        return bandwidth
    if isinstance(bandwidth, str):
        needed = f"a number > 0, a function of the particles, or one of {', '.join(map(repr, RULES))}"
        raise ValueError(message(function, "bandwidth", repr(bandwidth), needed))
    return real(function, "bandwidth", bandwidth, "a finite number > 0", 0.0, open=True)


def resolve(bandwidth: Any, particles: np.ndarray[Any, Any], function: str = "bandwidth") -> float:
    """The bandwidth h > 0 for these particles.

    Args:
        bandwidth: a number > 0, a function of the particles, or one of `BANDWIDTHS`.
        particles: (n, d), float32 or float64.
        function: what errors name.

    Returns:
        h in double. Where the median is 0, over half of the pairs coincide and the root mean square distance takes its
        place; where all points coincide, h is 1 (any h then gives the same direction).

    Raises:
        TypeError, ValueError: another bandwidth, particles that are not finite, or a function of theirs that gave no
            positive number.
    """
    bandwidth = check(function, bandwidth)
    if callable(bandwidth):
        return real(function, "bandwidth(particles)", bandwidth(particles), "a finite number > 0", 0.0, open=True)
    if not isinstance(bandwidth, str):
        return float(bandwidth)
    n, d = particles.shape
    if n == 1:
        return 1.0
    if bandwidth == "scott":
        h = n ** (-1 / (d + 4)) * _deviation(particles)
    else:
        median = gram.median_distance(particles) or math.sqrt(2 * d) * _deviation(particles)
        h = median / math.sqrt(2 * math.log(n if bandwidth in ("blackjax", "numpyro") else n + 1))
    if not math.isfinite(h):
        raise ValueError(message(function, "particles", "distances that are not finite", "finite particles"))
    return h or 1.0


def _deviation(particles: np.ndarray[Any, Any]) -> float:
    """Root of the coordinates' mean variance; the mean square distance of two particles is 2 d times its square."""
    return math.sqrt(float(np.var(particles, axis=0, ddof=1, dtype=np.float64).mean()))
