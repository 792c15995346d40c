"""Zeroth-order training of NumPy arrays: forward passes only, exact restore, runs that replay bit for bit."""

from ._log import ZOLog
from ._optimizers import ES, FZOO, LOZO, AdaLeZO, LeZO, MeZO, SparseMeZO
from ._stream import choose_layers

__all__ = ["ES", "FZOO", "LOZO", "AdaLeZO", "LeZO", "MeZO", "SparseMeZO", "ZOLog", "choose_layers"]
