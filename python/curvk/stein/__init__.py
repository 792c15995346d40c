"""Sampling densities with particles: Stein variational methods with and without gradients.

Every sampler is given a callback on arrays, and n particles x0 of shape (n, d) which it copies: `score(points)` with a
result (n, d), or `log_density(points)` with a result (n,), the logarithm of the density up to a constant. It is
maximised: the objective f that evolution strategies minimise is -log_density.
"""

from . import problems
from ._bandwidth import RULES as BANDWIDTHS
from ._bandwidth import resolve as bandwidth
from ._base import Sampler
from ._cmaes import SVCMAES
from ._gradient_free import GradientFreeSVGD
from ._measures import ksd, mmd2
from ._openai_es import SVOpenAIES
from ._svgd import SVGD

__all__ = [
    "BANDWIDTHS",
    "SVCMAES",
    "SVGD",
    "GradientFreeSVGD",
    "SVOpenAIES",
    "Sampler",
    "bandwidth",
    "ksd",
    "mmd2",
    "problems",
]
