"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._arrays import Array
from .._errors import message
from ..kernels.optim import SGDPlan
from ..kernels.sweep import SGDSweepPlan
from ._base import Arrays, Cohort, Group, Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Polyak 1964), Nesterov's form and weight decay.

    `curvk.kernels.optim.sgd_step` gives the formulas; the conventions are those of torch.optim.SGD.

    Args:
        params: a list of arrays, or of dicts with "params" and numbers of their own. float32, float64, float16 or
            bfloat16 (uint16 bit patterns or ml_dtypes), any shapes and strides, dtypes may differ. NumPy arrays, torch
            CPU tensors, and anything with DLPack or the buffer protocol; they are written in place.
        lr: learning rate, >= 0.
        momentum: >= 0.
        dampening: any finite number.
        weight_decay: >= 0; added to the gradient (L2) or, with `decoupled_weight_decay`, applied to the parameters.
        nesterov: Nesterov's form; needs momentum > 0 and dampening 0.
        maximize: ascend instead of descend.
        decoupled_weight_decay: decay as in AdamW.
        max_grad_norm: scale the gradients down, as they are read, so that their norm over all groups is at most this:
            by max_grad_norm / (norm + 1e-6), as torch's `clip_grad_norm_` does. The gradients stay as they are. Where
            the norm is not finite, no factor would help and none is applied: inf and NaN reach only the elements they
            belong to (torch zeroes or poisons every gradient then). `skip_nonfinite` avoids the case.
        skip_nonfinite: a gradient with inf or NaN skips the whole step: nothing is written, step counts stay, and
            `skipped_steps` counts it. It shares one read-only sweep with `max_grad_norm`, made only for these two.
        state_bits: how the states are held. 32: in the parameter's dtype, or float32 where it is 16-bit; 16: as
            bfloat16, stochastically rounded; 8: as codes. 16 and 8 are not for float64 parameters.
        state_format: of 8-bit states. "curvk": groups of 32 elements in C order with one scale, rounded by dither;
            "bitsandbytes": groups of 256, the codes of that library's 8-bit optimizers, to nearest.
        rounding: how 16-bit parameters are stored; others take no notice. "nearest": steps below half a unit in the
            last place are lost; "stochastic": they are kept on average; "kahan": the state param_low, of the
            parameter's format, carries what rounding loses.
        master: "split16" makes bfloat16 parameters the upper halves, rounded, of float32 ones, whose lower halves are
            the state param_low: the steps of float32 parameters, bit for bit. Needs rounding="nearest".
        ema: a decay in [0, 1): the state param_ema, float32 (float64 for float64 parameters), follows the parameters by
            ema <- decay ema + (1 - decay) p after each step, from a copy of the parameter before its first one. p is
            the parameter before it is rounded to 16 bits. `averaged` puts the averages into the parameters.
        zero_grad: the step sets the gradients to zero once they are read, also where it is skipped.
        seed: of stochastic rounding, in [0, 2^64). The noise depends on it, on the parameter's place and on its count
            of steps, so that a run that is stopped and resumed goes on with the same bits.

    The last seven may be given to each group as well. What is off costs nothing. Where one of the first six is in use,
    gradients must be writable and share no memory, as parameters.

    Raises:
        TypeError, ValueError, BufferError: an array or number that cannot be used; the text names it.

    States: momentum_buffer, if momentum > 0; with 8 state bits its codes, of the parameter's shape, and float32
    momentum_buffer_scale, one number per group. param_low and param_ema as above.

    >>> import numpy as np
    >>> w = np.array([1.0, 2.0], np.float32)
    >>> sgd = SGD([w], lr=0.25)
    >>> sgd.step([np.array([2, 4], np.float32)])
    True
    >>> w
    array([0.5, 1. ], dtype=float32)
    >>> w = np.ones(10_000, np.float16)  # the neighbour below 1 is 1 - 2^-11
    >>> SGD([w], lr=2.0**-13, rounding="stochastic").step([np.ones_like(w)])
    True
    >>> bool(abs(w.mean(dtype=np.float64) - (1 - 2.0**-13)) < 2.0**-17)  # a quarter of the elements has moved
    True
    """

    _op = "sgd_step"
    _scalars = ("lr", "momentum", "dampening", "weight_decay")
    _flags = ("nesterov", "maximize", "decoupled_weight_decay")
    _required = ("momentum_buffer",)
    _extra_keys = ("origin",)
    _sweeps = True
    _stateless = True

    def __init__(
        self,
        params: Iterable[Array] | Iterable[Group],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
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
        return (
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            group["decoupled_weight_decay"],
        )

    def _check_numbers(self, group: Any, where: str) -> None:
        super()._check_numbers(group, where)
        momentum, dampening = group["momentum"], group["dampening"]
        if group["nesterov"] and (not momentum or dampening):
            needed = f"momentum > 0 and dampening 0 ({momentum=}, {dampening=})"
            raise ValueError(message(self._name, f"{where}nesterov", "True", needed))

    def _used_states(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _phase(self, steps: int) -> int:
        return min(steps, 1)  # a buffer's first step is special, the others are alike

    def _plan(self, p: Arrays, g: Arrays, states: dict[str, Arrays]) -> SGDPlan:
        return SGDPlan(p, g, states.get("momentum_buffer"))

    def _sweep_plan(self, p: Arrays, g: Arrays, cohort: Cohort, **tables: Any) -> SGDSweepPlan:
        buf = cohort.storage.state(cohort.states, "momentum_buffer") if "momentum_buffer" in cohort.states else None
        return SGDSweepPlan(p, g, buf, **tables)

    def _run(self, cohort: Cohort, group: Group, grad_scale: float) -> None:
        cohort.plan.step(
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            maximize=group["maximize"],
            first=cohort.steps == cohort.fresh_at,
            grad_scale=grad_scale,
            **cohort.options(group),
        )
