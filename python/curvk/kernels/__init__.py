"""Low-level kernels on your own arrays, in place."""

from . import half, noise, optim, vmath

__all__ = ["half", "noise", "optim", "vmath"]
