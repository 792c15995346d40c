"""curvk's optimizers as `torch.optim.Optimizer` subclasses, for parameters on the CPU and on CUDA devices.

>>> import torch, curvk.torch
>>> model = torch.nn.Linear(2, 1)
>>> optimizer = curvk.torch.AdamW(model.parameters(), lr=1e-3)
>>> model(torch.ones(1, 2)).sum().backward()
>>> optimizer.step()

Without gradients, by forward passes only:

>>> optimizer = curvk.torch.MeZO(model, lr=1e-3)
>>> loss = optimizer.step(lambda: model(torch.ones(1, 2)).square().sum())
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('curvk.torch needs PyTorch, which is not installed; use: pip install "curvk[torch]"') from error

from ..zeroth import ZOLog
from ._alice import Alice
from ._convert import convert_state_dict
from ._curvature import GlassProbe, hessian_diagonal
from ._lion import Lion
from ._optimizers import SGD, Adam, AdamW, AdamZ
from ._sam import SAM
from ._zeroth import ES, FZOO, LOZO, AdaLeZO, LeZO, MeZO, SparseMeZO, find_layers

__all__ = [
    "ES",
    "FZOO",
    "LOZO",
    "SAM",
    "SGD",
    "AdaLeZO",
    "Adam",
    "AdamW",
    "AdamZ",
    "Alice",
    "GlassProbe",
    "LeZO",
    "Lion",
    "MeZO",
    "SparseMeZO",
    "ZOLog",
    "convert_state_dict",
    "find_layers",
    "hessian_diagonal",
]
