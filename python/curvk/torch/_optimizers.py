"""SGD, Adam, AdamW and AdamZ for torch parameters."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..optim import LossAdaptiveLR
from ._base import Fresh, FusedOptimizer, Group, Params, number, pair_of
from ._states import State
from ._storage import Storage, chosen, storage_of


class SGD(FusedOptimizer):
    """torch.optim.SGD as one compiled pass over all parameters of a group.

    Same arguments, group keys, state and results as torch's; moments of bfloat16 and float16 parameters are float32.
    Parameters and gradients may have any strides, also different ones.

    States are views of one buffer per key. To give one other memory assign `optimizer.state[p][key] = tensor`; setting
    its .data is a RuntimeError at one of the next 64 steps, since a step looks at a 64th of the addresses.

    Parameters may lie on CUDA devices, also on several. Gradients and states lie on their parameter's device; states
    follow it after model.to(...), step counts stay on the CPU. A step has the bits that it has on the CPU. It is queued
    in the device's current stream, and waits for the device only where it has to read a number of its: with
    max_grad_norm or skip_nonfinite (once), with GradScaler (found_inf and its scale), with an lr or another number that
    is a tensor there. Parameters on a device fill their memory, whatever the order of their dimensions; with the last
    seven arguments they are in C order. A gradient that lies in another order is copied.

    With capturable=True the number of the step and lr lie beside the parameters, so that a CUDA graph can hold the
    step, which then never waits for the device; the bits are the same. Take a step before the capture, as torch's
    examples do: it makes the states and that memory, and SGD's first step with momentum differs from the later ones.
    A graph repeats an lr that is a number or a tensor on the CPU, and follows a tensor on the parameters' device, which
    nobody checks there; other numbers cannot be tensors on a device. After load_state_dict capture anew. A group's
    parameters lie on one device, and parameters that are counted (`step`, a tensor on that device) share their count:
    all have gradients from the first step on, or stay without. It is a ValueError with max_grad_norm, skip_nonfinite,
    GradScaler, and where one of the last seven arguments needs another kernel. On the CPU it does the same, to no use.

    Args:
        params: tensors, dicts of parameter groups, or (name, tensor) pairs; float32, float64, bfloat16, float16,
            complex64 or complex128. A gradient has its parameter's dtype and shape.
        lr: learning rate, >= 0; a number or a tensor of one element, which schedulers write in place.
        momentum: >= 0.
        dampening: any finite number.
        weight_decay: >= 0, added to the gradient (L2).
        nesterov: Nesterov's form; needs momentum > 0 and dampening 0.
        maximize: ascend instead of descend.
        foreach, fused: kept in the groups for torch; they choose nothing here.
        capturable: see above; torch's SGD has no such argument, and the key is in a group where it is True.
        differentiable: True is a NotImplementedError.
        max_grad_norm: clip the gradients to this global norm over all groups, in the step: they are divided by
            max(1, (norm + 1e-6) / max_grad_norm) as they are read and stay as they are. A norm that is not finite
            clips nothing.
        skip_nonfinite: take no step where a gradient holds inf or NaN. With max_grad_norm or alone it costs one sweep
            that reads the gradients.
        state_bits: 32, 16 or 8, for the moments: bfloat16, or codes of one byte with a float32 scale for 32 elements;
            both are rounded stochastically, without which a slow average stalls. Not for float64, complex, amsgrad.
        state_format: of 8 bits: "curvk", or "bitsandbytes": its dynamic map, 256 elements to a scale, to nearest.
        rounding: of bfloat16 and float16 parameters: "nearest", "stochastic", or "kahan", where a second number of the
            parameter's dtype, the state param_low, carries what rounding has lost. Other parameters are not rounded.
        master: "split16" makes bfloat16 parameters the upper halves of float32 ones, whose lower halves are the state
            param_low: the steps of float32 parameters, bit for bit, at the same 4 bytes.
        ema: share in [0, 1) that a running average of the parameters keeps at each step, the state param_ema; it starts
            as the parameter was before its first step. See `averaged`.
        zero_grad: set the gradients to zero in the same pass; also where a step is skipped, as by GradScaler.
        seed: of the rounding, in [0, 2^64). Noise is keyed by the parameter's name, or without names its position over
            all groups, and its number of steps: a run goes on from a state dict bit for bit.

    Raises:
        TypeError, ValueError, BufferError, NotImplementedError: an argument of the wrong kind or out of range.

    The last seven are group keys, in a group where they were given; without any of them a step costs and does what it
    did without these options. With one of them the state has a step count too. `load_state_dict` takes moments of the
    group's own format only, see `convert_state_dict`. After a change of rounding, master or the parameters' dtype
    delete the state param_low, which then starts with zeros.

    Source: Polyak 1964; Sutskever et al. 2013; conventions of torch.optim.SGD.

    >>> import torch, curvk.torch
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = curvk.torch.SGD([p], lr=0.25)
    >>> p.sum().backward()
    >>> optimizer.step()
    >>> p.detach()
    tensor([0.7500, 0.7500])
    """

    _op = "sgd_step"
    _captures = True
    _needed = ("momentum_buffer",)
    _array_keys = ("momentum_buffer",)
    _extra_keys = ("origin",)
    _has_options = True
    _absent = {"nesterov": False, "maximize": False, "foreach": None, "differentiable": False, "fused": None}  # noqa: RUF012

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
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
        defaults: Group = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        if capturable:
            defaults["capturable"] = True
        defaults |= chosen(
            state_bits=state_bits,
            state_format=state_format,
            rounding=rounding,
            master=master,
            ema=ema,
            zero_grad=zero_grad,
            seed=seed,
        )
        super().__init__(params, defaults, max_grad_norm=max_grad_norm, skip_nonfinite=skip_nonfinite)

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        return ("momentum_buffer" if group["momentum"] != 0 else None,)

    def _storage(self, group: Group, dtype: torch.dtype) -> Storage:
        return storage_of("sgd", self._keys(group), group, dtype)

    def _lacks(self, state: State) -> set[str]:
        return set() if "step" in state else super()._lacks(state)  # a sweep without momentum leaves but its count

    def _marks(self, index: Any, params: list[Tensor], states: list[State] | None, fresh: Fresh) -> list[Any]:
        first = ["momentum_buffer" not in self.state.get(p, ()) for p in params] if fresh else [False]
        if states is not None:
            counted = states if all("step" in s for s in states) else []
            if counted or self.param_groups[index[0]].get("capturable"):
                self._count_as(index, params, counted)
            else:
                self._steps.pop(index, None)
        if index not in self._steps:
            return first
        counts = self._steps[index].counts()
        n = max(len(first), len(counts))
        return list(zip(first * (n // len(first)), counts * (n // len(counts)), strict=True))

    def _draw(self, mark: Any) -> int:
        return int(mark[1]) + 1

    def _scalars(self, group: Group, mark: Any, grad_scale: float) -> tuple[Any, ...]:
        momentum, dampening, nesterov = number(group["momentum"]), number(group["dampening"]), bool(group["nesterov"])
        if nesterov and (not momentum or dampening):
            raise ValueError(
                f"argument 'nesterov': got True, needs momentum > 0 and dampening 0 ({momentum=}, {dampening=})"
            )
        return (
            number(group["lr"]),
            momentum,
            dampening,
            number(group["weight_decay"]),
            nesterov,
            False,  # decoupled
            bool(group["maximize"]),
            mark[0] if isinstance(mark, tuple) else mark,
            grad_scale,
        )


class Adam(FusedOptimizer):
    """torch.optim.Adam as one compiled pass over all parameters of a group.

    Same arguments, group keys, state and results as torch's; moments of bfloat16 and float16 parameters are float32.
    Parameters and gradients may have any strides, also different ones; as to CUDA devices see `SGD`.

    States are views of one buffer per key. To give one other memory assign `optimizer.state[p][key] = tensor`; setting
    its .data is a RuntimeError at one of the next 64 steps, since a step looks at a 64th of the addresses.

    Args:
        params: as in `SGD`.
        lr: learning rate, >= 0; a number or a tensor of one element, which schedulers write in place.
        betas: decay rates of the moments, each in [0, 1); numbers or tensors of one element.
        eps: added to the root, >= 0.
        weight_decay: >= 0, added to the gradient (L2).
        amsgrad: divide by the largest second moment so far.
        foreach, fused: kept in the groups for torch; they choose nothing here.
        maximize: ascend instead of descend.
        capturable: as in `SGD`, with torch's group key.
        differentiable: True is a NotImplementedError.
        decoupled_weight_decay: decay the parameters themselves, as AdamW.
        max_grad_norm, skip_nonfinite: as in `SGD`.
        state_bits, state_format, rounding, master, ema, zero_grad, seed: as in `SGD`.

    Raises:
        TypeError, ValueError, BufferError, NotImplementedError: an argument of the wrong kind or out of range.

    Source: Kingma & Ba 2015; Reddi, Kale & Kumar 2018; conventions of torch.optim.Adam.

    >>> import torch, curvk.torch
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = curvk.torch.Adam([p], lr=0.5)
    >>> (3 * p).sum().backward()
    >>> optimizer.step()
    >>> p.detach()
    tensor([0.5000, 0.5000])
    """

    _op = "adam_step"
    _captures = True
    _needed = ("step", "exp_avg", "exp_avg_sq")
    _array_keys = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _extra_keys = ("origin",)
    _has_options = True
    _absent = {  # noqa: RUF012
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": False,
    }

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
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
        defaults: Group = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        defaults |= chosen(
            state_bits=state_bits,
            state_format=state_format,
            rounding=rounding,
            master=master,
            ema=ema,
            zero_grad=zero_grad,
            seed=seed,
        )
        super().__init__(params, defaults, max_grad_norm=max_grad_norm, skip_nonfinite=skip_nonfinite)

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq" if group["amsgrad"] else None)

    def _storage(self, group: Group, dtype: torch.dtype) -> Storage:
        return storage_of("adam", self._keys(group), group, dtype)

    def _marks(self, index: Any, params: list[Tensor], states: list[State] | None, fresh: Fresh) -> list[Any]:
        if states is not None:
            self._count_as(index, params, states)
        return self._steps[index].counts()

    def _scalars(self, group: Group, mark: Any, grad_scale: float) -> tuple[Any, ...]:
        beta1, beta2 = pair_of(group)
        return (
            int(mark) + 1,
            number(group["lr"]),
            number(beta1),
            number(beta2),
            number(group["eps"]),
            number(group["weight_decay"]),
            bool(group["decoupled_weight_decay"]),
            bool(group["maximize"]),
            grad_scale,
        )


class AdamW(Adam):
    """torch.optim.AdamW as one compiled pass over all parameters of a group: `Adam` with decoupled weight decay.

    Args:
        params, lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in `Adam`.
        weight_decay: >= 0; p <- (1 - lr weight_decay) p before the update.
        max_grad_norm, skip_nonfinite: as in `SGD`.
        state_bits, state_format, rounding, master, ema, zero_grad, seed: as in `SGD`.

    Raises:
        TypeError, ValueError, BufferError, NotImplementedError: an argument of the wrong kind or out of range.

    Source: Loshchilov & Hutter 2019; conventions of torch.optim.AdamW.

    >>> import torch, curvk.torch
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = curvk.torch.AdamW([("weight", p)], lr=0.5, weight_decay=0.5)
    >>> (3 * p).sum().backward()
    >>> optimizer.step()
    >>> p.detach()
    tensor([0.2500, 0.2500])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
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
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state dict of Adam's says False
            group["decoupled_weight_decay"] = True


class AdamZ(Adam):
    """Adam whose lr follows the loss (Zaznov et al. 2024): `Adam` with `curvk.optim.LossAdaptiveLR`.

    The loss arrives from the closure or by `report_loss` before `step()`; without either the step is Adam's. A loss on
    a CUDA device is waited for. A step that is skipped or refused has not seen its closure's loss. The window of losses
    travels in the state dict, under "loss_lr".

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, foreach, maximize, differentiable, fused: as in `Adam`.
        capturable: True is a NotImplementedError.
        overshoot_factor, stagnation_factor, stagnation_threshold, patience, stagnation_period, min_lr, max_lr, guard:
            as in `curvk.optim.LossAdaptiveLR`, which also says what the rule does to steady and to noisy losses.
        max_grad_norm, skip_nonfinite: as in `SGD`.
        state_bits, state_format, rounding, master, ema, zero_grad, seed: as in `SGD`.

    Raises:
        TypeError, ValueError, BufferError, NotImplementedError: an argument of the wrong kind or out of range.

    Source: arXiv 2411.15375 and its package adamz 0.1.0.

    >>> import torch, curvk.torch
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = curvk.torch.AdamZ([p], lr=0.5, patience=1)
    >>> optimizer.report_loss(2.0)  # the highest loss of a window of one: an overshoot
    >>> optimizer.param_groups[0]["lr"]
    0.25
    """

    _captures = False

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        overshoot_factor: float = 0.5,
        stagnation_factor: float = 1.2,
        stagnation_threshold: float = 0.2,
        patience: int = 100,
        stagnation_period: int = 10,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
        *,
        guard: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
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
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
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
        self.loss_lr = LossAdaptiveLR(
            self,
            overshoot_factor=overshoot_factor,
            stagnation_factor=stagnation_factor,
            stagnation_threshold=stagnation_threshold,
            patience=patience,
            stagnation_period=stagnation_period,
            min_lr=min_lr,
            max_lr=max_lr,
            guard=guard,
        )

    def report_loss(self, loss: float | Tensor) -> None:
        """Gives the rule the newest loss, a number or a tensor of one element; sets the lr of the next step.

        Raises:
            TypeError, ValueError: not a number; nothing has changed.
        """
        self.loss_lr.report_loss(number(loss))

    def _observe(self, loss: Any) -> None:
        if loss is not None:
            self.report_loss(loss)

    def _rule_state(self) -> dict[str, Any]:
        # A tensor, since torch.load takes NumPy arrays only with weights_only=False.
        return {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in self.loss_lr.state_dict().items()
        }

    def _set_rule_state(self, state: dict[str, Any]) -> None:
        self.loss_lr.load_state_dict({k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in state.items()})

    def _settings(self) -> dict[str, Any]:
        rule = self.loss_lr.rule
        return super()._settings() | {f.name: getattr(rule, f.name) for f in fields(rule)}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"loss_lr": self._rule_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rule = state.pop("loss_lr", None)  # absent where load_state_dict calls
        super().__setstate__(state)
        if rule is not None:
            self.loss_lr = LossAdaptiveLR(self)
            self._set_rule_state(rule)

    def state_dict(self) -> dict[str, Any]:
        """As `Adam`'s, with the rule's settings and window under "loss_lr"; torch.optim.Adam takes it too."""
        return super().state_dict() | {"loss_lr": self._rule_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `Adam`'s; a state dict without "loss_lr", such as torch.optim.Adam's, leaves the rule as it is."""
        before = self._rule_state()
        if isinstance(state_dict, dict) and "loss_lr" in state_dict:
            self._set_rule_state(state_dict["loss_lr"])
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            self._set_rule_state(before)
            raise
