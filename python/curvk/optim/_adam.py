"""Adam and its kin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from .._arrays import Array
from ..kernels.optim import AdamPlan
from ..kernels.sweep import AdamSweepPlan
from ._base import Arrays, Cohort, Group, Optimizer
from ._loss_lr import LossRule


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), with AMSGrad (Reddi et al. 2018) and coupled or decoupled weight decay.

    `curvk.kernels.optim.adam_step` gives the formulas; the conventions are those of torch.optim.Adam.

    Args:
        params: a list of arrays, or of dicts with "params" and numbers of their own; as in `SGD`.
        lr: learning rate, >= 0.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: >= 0; added to the gradient (L2) or, with `decoupled_weight_decay`, applied to the parameters.
        amsgrad: divide by the root of the largest second moment so far.
        maximize: ascend instead of descend.
        decoupled_weight_decay: decay as in `AdamW`.
        max_grad_norm, skip_nonfinite: as in `SGD`.
        state_bits, state_format, rounding, master, ema, zero_grad, seed: as in `SGD`; amsgrad needs 32 state bits.

    Raises:
        TypeError, ValueError, BufferError: an array or number that cannot be used; the text names it.

    States: exp_avg, exp_avg_sq and, with amsgrad, max_exp_avg_sq; the parameter's dtype, or float32 where it is 16-bit.
    With 8 state bits, codes and exp_avg_scale, exp_avg_sq_scale; param_low and param_ema as in `SGD`. With 8 bits the
    states of a float32 parameter take 2.25 bytes an element (2.03 as bitsandbytes') instead of 8.

    >>> import numpy as np
    >>> w = np.array([1.0, 2.0], np.float32)
    >>> adam = Adam([w], lr=0.5)
    >>> adam.step([np.array([3, -3], np.float32)])
    True
    >>> w
    array([0.5, 2.5], dtype=float32)

    A bfloat16 parameter (as bit patterns) with a split master and 8-bit states takes 6.25 bytes an element, states
    included, and takes steps that bfloat16 alone would lose:

    >>> w, g = np.full(64, 0x3F80, np.uint16), np.full(64, 0x3F80, np.uint16)  # 1.0
    >>> adam = Adam([w], lr=2.0**-12, master="split16", state_bits=8)
    >>> for _ in range(16):
    ...     _ = adam.step([g])
    >>> adam.memory()["bytes_per_parameter"]["total"], hex(w[0])
    (6.25, '0x3f7f')
    """

    _op = "adam_step"
    _scalars = ("lr", "beta1", "beta2", "eps", "weight_decay")
    _flags = ("amsgrad", "maximize", "decoupled_weight_decay")
    _required = ("exp_avg", "exp_avg_sq")
    _optional = ("max_exp_avg_sq",)
    _extra_keys = ("origin",)
    _sweeps = True

    def __init__(
        self,
        params: Iterable[Array] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_bits: int = 32,
        state_format: str = "curvk",
        rounding: str = "nearest",
        master: str = "none",
        ema: float | None = None,
        zero_grad: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "state_bits": state_bits,
            "state_format": state_format,
            "rounding": rounding,
            "master": master,
            "ema": ema,
            "zero_grad": zero_grad,
            "seed": seed,
        }
        super().__init__(params, defaults, max_grad_norm, skip_nonfinite)

    def _numbers(self, group: Group) -> tuple[Any, ...]:
        beta1, beta2 = group["betas"]
        return (
            group["lr"],
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            group["amsgrad"],
            group["maximize"],
            group["decoupled_weight_decay"],
        )

    def _used_states(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def _plan(self, p: Arrays, g: Arrays, states: dict[str, Arrays]) -> AdamPlan:
        return AdamPlan(p, g, states["exp_avg"], states["exp_avg_sq"], max_v=states.get("max_exp_avg_sq"))

    def _sweep_plan(self, p: Arrays, g: Arrays, cohort: Cohort, **tables: Any) -> AdamSweepPlan:
        storage, states = cohort.storage, cohort.states
        m, v = storage.state(states, "exp_avg"), storage.state(states, "exp_avg_sq")
        return AdamSweepPlan(p, g, m, v, max_v=states.get("max_exp_avg_sq"), **tables)

    def _run(self, cohort: Cohort, group: Group, grad_scale: float) -> None:
        cohort.plan.step(
            step=cohort.steps + 1,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            maximize=group["maximize"],
            grad_scale=grad_scale,
            **cohort.options(group),
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): p <- (1 - lr weight_decay) p before Adam's step.

    Args:
        params, lr, betas, eps, amsgrad, maximize, max_grad_norm, skip_nonfinite: as in `Adam`.
        weight_decay: >= 0.
        state_bits, state_format, rounding, master, ema, zero_grad, seed: as in `SGD` and `Adam`.

    Raises:
        TypeError, ValueError, BufferError: an array or number that cannot be used; the text names it.

    >>> import numpy as np
    >>> w = np.array([1.0, 2.0], np.float32)
    >>> AdamW([w], lr=0.5, weight_decay=0.5).step([np.zeros(2, np.float32)])
    True
    >>> w
    array([0.75, 1.5 ], dtype=float32)
    """

    def __init__(
        self,
        params: Iterable[Array] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_bits: int = 32,
        state_format: str = "curvk",
        rounding: str = "nearest",
        master: str = "none",
        ema: float | None = None,
        zero_grad: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            state_bits=state_bits,
            state_format=state_format,
            rounding=rounding,
            master=master,
            ema=ema,
            zero_grad=zero_grad,
            seed=seed,
        )


class AdamZ(Adam):
    """Adam whose learning rate follows the loss (Zaznov et al. 2024, arXiv 2411.15375).

    `step(grads, loss)` gives the loss to the rule that `LossAdaptiveLR` describes, with its measured pathologies, and
    then steps with the new lr. A step without a loss is Adam's; `report_loss` gives one apart from a step. A step that
    is skipped or raises stores no loss.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay, max_grad_norm, skip_nonfinite:
            as in `Adam`.
        overshoot_factor, stagnation_factor, stagnation_threshold, patience, stagnation_period, min_lr, max_lr, guard:
            as in `LossAdaptiveLR`.
        state_bits, state_format, rounding, master, ema, zero_grad, seed: as in `SGD` and `Adam`.

    Raises:
        TypeError, ValueError, BufferError: an array or number that cannot be used; the text names it.

    >>> import numpy as np
    >>> w = np.array([1.0, 2.0], np.float32)
    >>> adamz = AdamZ([w], lr=0.5, patience=2)
    >>> for loss in (1.0, 2.0):
    ...     _ = adamz.step([np.ones(2, np.float32)], loss)
    >>> adamz.param_groups[0]["lr"]
    0.25
    """

    def __init__(
        self,
        params: Iterable[Array] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        overshoot_factor: float = 0.5,
        stagnation_factor: float = 1.2,
        stagnation_threshold: float = 0.2,
        patience: int = 100,
        stagnation_period: int = 10,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
        guard: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_bits: int = 32,
        state_format: str = "curvk",
        rounding: str = "nearest",
        master: str = "none",
        ema: float | None = None,
        zero_grad: bool = False,
        seed: int = 0,
    ) -> None:
        self._rule = LossRule(
            overshoot_factor=overshoot_factor,
            stagnation_factor=stagnation_factor,
            stagnation_threshold=stagnation_threshold,
            patience=patience,
            stagnation_period=stagnation_period,
            min_lr=min_lr,
            max_lr=max_lr,
            guard=guard,
        )
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            state_bits=state_bits,
            state_format=state_format,
            rounding=rounding,
            master=master,
            ema=ema,
            zero_grad=zero_grad,
            seed=seed,
        )

    def report_loss(self, loss: float) -> None:
        """Gives the rule a loss apart from a step; arguments and errors as `LossAdaptiveLR.report_loss`."""
        self._rule.apply(loss, self.param_groups)

    _take_loss = report_loss

    def _as_dict(self, copy: bool) -> dict[str, Any]:
        return super()._as_dict(copy) | {"loss_rule": self._rule.state_dict()}

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {f.name: getattr(self._rule, f.name) for f in fields(self._rule)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Adam.load_state_dict`, with the rule's settings and window."""
        self._check_state(state)
        rule = LossRule.from_state(state["loss_rule"])
        super().load_state_dict(state)
        self._rule = rule
