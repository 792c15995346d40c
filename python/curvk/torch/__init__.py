"""curvk's optimizers as `torch.optim.Optimizer` subclasses, for parameters on the CPU.

>>> import torch, curvk.torch
>>> model = torch.nn.Linear(2, 1)
>>> optimizer = curvk.torch.AdamW(model.parameters(), lr=1e-3)
>>> model(torch.ones(1, 2)).sum().backward()
>>> optimizer.step()
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('curvk.torch needs PyTorch, which is not installed; use: pip install "curvk[torch]"') from error

from ._optimizers import SGD, Adam, AdamW, AdamZ

__all__ = ["SGD", "Adam", "AdamW", "AdamZ"]
