"""Optimizers for lists of arrays, stepped in place: one kernel call for all parameters that step alike.

They take the gradients that you computed, by hand or with any library, and hold param groups, states and step counts as
torch's optimizers do. `curvk.torch` has the same methods for torch modules, `curvk.kernels.optim` the bare kernels.
"""

from ._adam import Adam, AdamW, AdamZ
from ._alice import Alice
from ._convert import convert_state_dict
from ._lion import Lion
from ._loss_lr import LossAdaptiveLR
from ._sam import SAM
from ._sgd import SGD

__all__ = ["SAM", "SGD", "Adam", "AdamW", "AdamZ", "Alice", "Lion", "LossAdaptiveLR", "convert_state_dict"]
