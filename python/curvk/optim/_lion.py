"""Lion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._arrays import Array
from ..kernels.optim import LionPlan
from ._base import Arrays, Cohort, Group, Optimizer


class Lion(Optimizer):
    """Lion (Chen et al. 2023): every element moves by lr, in the direction of the sign of a mixed momentum.

    `curvk.kernels.optim.lion_step` gives the formulas. One state, two thirds of AdamW's memory: 20 bytes of traffic per
    float32 parameter instead of 28. The authors advise an lr three to ten times smaller than AdamW's, a weight_decay
    larger by the same factor, and batches of 64 rows or more.

    Args:
        params: a list of arrays, or of dicts with "params" and numbers of their own; as in `SGD`.
        lr: learning rate, >= 0; how far each element moves in a step.
        betas: share of the momentum in the direction, and its decay rate; each in [0, 1).
        weight_decay: >= 0, decoupled: p <- (1 - lr weight_decay) p.
        maximize: ascend instead of descend.
        max_grad_norm, skip_nonfinite: as in `SGD`. A common factor of all gradients changes only their share beside the
            momentum.

    Raises:
        TypeError, ValueError, BufferError: an array or number that cannot be used; the text names it.

    State: exp_avg, of the parameter's dtype, or float32 where it is 16-bit. The options of `SGD` for fewer bytes are
    not among the arguments.

    >>> import numpy as np
    >>> w = np.array([1.0, 2.0, 3.0], np.float32)
    >>> lion = Lion([w], lr=0.25)
    >>> lion.step([np.array([100, -0.01, 0], np.float32)])
    True
    >>> w
    array([0.75, 2.25, 3.  ], dtype=float32)
    """

    _op = "lion_step"
    _scalars = ("lr", "beta1", "beta2", "weight_decay")
    _flags = ("maximize",)
    _required = ("exp_avg",)
    _extra_keys = ("origin",)

    def __init__(
        self,
        params: Iterable[Array] | Iterable[Group],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, max_grad_norm, skip_nonfinite)

    def _numbers(self, group: Group) -> tuple[Any, ...]:
        beta1, beta2 = group["betas"]
        return group["lr"], beta1, beta2, group["weight_decay"], group["maximize"]

    def _used_states(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg",)

    def _phase(self, steps: int) -> int:
        return 0  # all steps are alike

    def _plan(self, p: Arrays, g: Arrays, states: dict[str, Arrays]) -> LionPlan:
        return LionPlan(p, g, states["exp_avg"])

    def _run(self, cohort: Cohort, group: Group, grad_scale: float) -> None:
        cohort.plan.step(
            lr=group["lr"],
            betas=group["betas"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            grad_scale=grad_scale,
        )
