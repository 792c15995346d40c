"""Zeroth-order optimizers for torch modules."""

from ._layers import find_layers
from ._optimizers import ES, FZOO, LOZO, AdaLeZO, LeZO, MeZO, SparseMeZO

__all__ = ["ES", "FZOO", "LOZO", "AdaLeZO", "LeZO", "MeZO", "SparseMeZO", "find_layers"]
