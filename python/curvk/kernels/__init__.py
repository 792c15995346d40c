"""Low-level kernels on your own arrays, in place."""

from . import budget, curvature, gram, half, linalg, noise, online, optim, sketch, stein, sweep, vmath

__all__ = [
    "budget",
    "curvature",
    "gram",
    "half",
    "linalg",
    "noise",
    "online",
    "optim",
    "sketch",
    "stein",
    "sweep",
    "vmath",
]
