"""Low-level kernels on your own arrays, in place."""

from . import curvature, half, noise, optim, sweep, vmath

__all__ = ["curvature", "half", "noise", "optim", "sweep", "vmath"]
