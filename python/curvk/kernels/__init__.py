"""Low-level kernels on your own arrays, in place."""

from . import half, optim, vmath

__all__ = ["half", "optim", "vmath"]
