"""Low-level kernels on your own arrays, in place."""

from . import curvature, gram, half, linalg, noise, optim, stein, sweep, vmath

__all__ = ["curvature", "gram", "half", "linalg", "noise", "optim", "stein", "sweep", "vmath"]
