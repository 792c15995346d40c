"""Lion for torch parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._base import Fresh, FusedOptimizer, Group, Params, number, pair_of
from ._states import State


class Lion(FusedOptimizer):
    """Lion (Chen et al. 2023) as one compiled pass over all parameters of a group; torch has none.

    `curvk.kernels.optim.lion_step` gives the formulas, `curvk.optim.Lion` what they cost and the authors' advice.
    Parameters, gradients, states and CUDA devices as in `SGD`; of complex parameters both parts step by themselves.

    Args:
        params: as in `SGD`.
        lr: learning rate, >= 0; a number or a tensor of one element, which schedulers write in place.
        betas: share of the momentum in the direction, and its decay rate; each in [0, 1).
        weight_decay: >= 0, decoupled: p <- (1 - lr weight_decay) p.
        maximize: ascend instead of descend.
        max_grad_norm, skip_nonfinite: as in `SGD`.

    Raises:
        TypeError, ValueError, BufferError: an argument of the wrong kind or out of range.

    The state is exp_avg, as in lion-pytorch 0.2, whose state dicts load. The options of `SGD` for fewer bytes, and
    capturable, are not among its arguments.

    >>> import torch, curvk.torch
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = curvk.torch.Lion([p], lr=0.25)
    >>> (3 * p).sum().backward()
    >>> optimizer.step()
    >>> p.detach()
    tensor([0.7500, 0.7500])
    """

    _op = "lion_step"
    _needed = ("exp_avg",)
    _array_keys = ("exp_avg",)
    _extra_keys = ("origin",)
    _absent = {"maximize": False}  # noqa: RUF012

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        defaults: Group = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, max_grad_norm=max_grad_norm, skip_nonfinite=skip_nonfinite)

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        return ("exp_avg",)

    def _marks(self, index: Any, params: list[Tensor], states: list[State] | None, fresh: Fresh) -> list[Any]:
        return [0]  # all steps are alike

    def _scalars(self, group: Group, mark: Any, grad_scale: float) -> tuple[Any, ...]:
        beta1, beta2 = pair_of(group)
        return (
            number(group["lr"]),
            number(beta1),
            number(beta2),
            number(group["weight_decay"]),
            bool(group["maximize"]),
            grad_scale,
        )
