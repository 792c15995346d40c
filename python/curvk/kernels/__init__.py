"""Low-level kernels on your own arrays, in place."""

from . import budget, capture, curvature, gram, half, linalg, noise, online, optim, sketch, stein, sweep, vmath

__all__ = [
    "budget",
    "capture",
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
