"""Low-level kernels on your own arrays, in place."""

from . import half, optim

__all__ = ["half", "optim"]
