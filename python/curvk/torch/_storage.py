"""How the parameters of a group are kept: what its options mean for the kernel, its arrays, and their dtypes.

A group holds an option only where it was given one that is not the default, so that without options groups, states and
state dicts are torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._interrupt import uninterrupted
from ..kernels.sweep import FORMATS, ROUNDINGS
from ..optim._storage import DEFAULTS, Fault, choice_fault, fault
from ._states import State, number, state_dtype

Group = dict[str, Any]

KAHAN, SPLIT = ROUNDINGS.index("kahan"), ROUNDINGS.index("split16")
MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}  # by the kernels' name
SIGNED = {"exp_avg": True, "exp_avg_sq": False, "momentum_buffer": True}
SCALE = "_scale"  # what a state of codes adds to its name for its scales
OF_WEIGHTS = ("param_low", "param_ema")  # states that belong to a parameter, not to the steps it took
KEPT = (*(key for m in SIGNED for key in (m, m + SCALE)), *OF_WEIGHTS)  # states that options bring along
_SHORT = (torch.bfloat16, torch.float16)
_WIDE = (torch.float64, torch.complex64, torch.complex128)
_ARITHMETIC = (torch.float32, *_WIDE)


@dataclass(frozen=True)
class Kind:
    """The dtype of a state, and how many elements of the parameter it has a number for: 1 gives it p's shape."""

    dtype: torch.dtype
    per: int = 1

    def shape(self, p: Tensor) -> tuple[int, ...]:
        return tuple(p.shape) if self.per == 1 else (-(-p.numel() // self.per),)


@dataclass(frozen=True)
class Storage:
    """How parameters of one group and dtype step: the kernel, and the state behind each array that it takes.

    Args:
        op: the kernel.
        keys: the states in the kernel's order, after p and g; None for an array that it does without.
        kinds: what they are; None for floats as wide as the arithmetic, of p's shape.
        bits, format: of the moments.
        rounding: the kernel's number.
        zero_grad: whether it sets the gradients to zero.
    """

    op: str
    keys: tuple[str | None, ...]
    kinds: tuple[Kind | None, ...] = ()
    bits: int = 32
    format: str = "curvk"
    rounding: int = 0
    zero_grad: bool = False

    @property
    def captured(self) -> bool:
        """Whether the kernel is one of curvk/capture.h, which also take an array with the step's number and lr."""
        return self.op.endswith("_at")

    @property
    def swept(self) -> bool:
        """Whether the kernel is one of curvk/sweep.h, which also take tensor words, offsets and a draw."""
        return bool(self.kinds)

    def kind(self, key: str, p: Tensor) -> Kind:
        """What a state is; as its parameter for a key that is none of these."""
        found = self.kinds[self.keys.index(key)] if self.swept and key in self.keys else None
        return found or Kind(state_dtype(p))

    def remedy(self, key: str) -> str:
        """What to do about a state of another format."""
        if key == "param_low":
            return "it was kept for another rounding, master or dtype: delete 'param_low', which starts it with zeros"
        return convert_remedy(self.bits, self.format)

    def fault(self, key: str, p: Tensor, value: Any) -> tuple[str, str, str] | None:
        """What is wrong with a state, as what was found, what is needed, and the remedy or ""; None if nothing is.

        Floats of other widths are not wrong, where floats are needed: they are converted.
        """
        kind, exact = self.kind(key, p), bool(self.swept and key in self.keys and self.kinds[self.keys.index(key)])
        if not isinstance(value, Tensor):
            return f"type {type(value).__name__}", "a tensor", ""
        if value.dtype != kind.dtype and (exact or not (value.is_floating_point() or value.is_complex())):
            return f"dtype {value.dtype}", f"{kind.dtype}", self.remedy(key)
        if value.shape != kind.shape(p):
            scales = f", a number for {kind.per} elements" if kind.per > 1 else " as the parameter"
            remedy = self.remedy(key) if kind.per > 1 else ""
            return f"shape {tuple(value.shape)}", f"shape {kind.shape(p)}{scales}", remedy
        return None

    def follows(self, key: str, p: Tensor, state: Tensor) -> bool:
        """Whether a state is to be converted to its parameter's new dtype or device, after `model.to(...)`."""
        kind = self.kind(key, p)
        if state.shape != kind.shape(p) or (state.dtype, state.device) == (kind.dtype, p.device):
            return False
        floats = state.is_floating_point() or state.is_complex()
        return state.dtype == kind.dtype or (floats and kind.dtype in (_ARITHMETIC if key != "param_low" else _SHORT))

    def numbers(self, group: Group, draw: int) -> tuple[Any, ...]:
        """The scalars that a sweep takes after the step's own."""
        ema, seed = float(number(group.get("ema")) or 0.0), index(group.get("seed", 0))
        # C's integers are signed, and the bits are what counts.
        return (self.rounding, ema, self.zero_grad, draw % 2**32, seed - 2**64 if seed >= 2**63 else seed)


def convert_remedy(bits: int, format: str) -> str:
    own = f"state_bits={bits}" + (f", state_format={format!r}" if bits == 8 else "")
    return f"use curvk.torch.convert_state_dict(state_dict, {own})"


def chosen(**options: Any) -> Group:
    """The options that are not the defaults, which a group needs not say."""
    # torch.load refuses NumPy's numbers, such as a drawn seed.
    own = {key: x.item() if isinstance(x, np.generic) else x for key, x in options.items()}
    return {key: x for key, x in own.items() if not _is_default(key, x)}


def _is_default(key: str, value: Any) -> bool:
    default = DEFAULTS[key]
    return value is default or (type(value) is type(default) and bool(value == default))


def _raise(found: Fault | None) -> None:
    if found:
        remedy = found.remedy and f"; {found.remedy}"
        raise found.error(f"argument '{found.option}': got {found.found}, needs {found.needed}{remedy}")


def check_choice(key: str, value: Any) -> None:
    """Raises ValueError unless the option has this choice."""
    _raise(choice_fault(key, value))


def check_options(group: Mapping[str, Any], dtype: torch.dtype | None = None) -> Group:
    """The group with all options; raises TypeError or ValueError unless they can be used, with some dtype or this."""
    whole = {**DEFAULTS, **group}
    whole["ema"] = number(whole["ema"])
    _raise(fault(whole, () if dtype is None else (str(dtype).removeprefix("torch."),)))
    return whole


def storage_of(family: str, keys: tuple[str | None, ...], group: Group, dtype: torch.dtype) -> Storage:
    """How a group's parameters of a dtype are kept.

    Args:
        family: "sgd" or "adam".
        keys: the states that `<family>_step` takes.

    Raises:
        TypeError, ValueError: options that cannot be used, or not with this dtype.
    """
    op = f"{family}_step_at" if group.get("capturable") else f"{family}_step"
    if DEFAULTS.keys().isdisjoint(group):
        return plain(op, keys)
    values = check_options(group, dtype)
    bits, master = values["state_bits"], values["master"]
    rounding = 0
    if dtype in _SHORT:
        rounding = SPLIT if master == "split16" else ROUNDINGS.index(values["rounding"])
    if not any(keys):  # without moments
        bits = 32
    if bits == 32 and not rounding and values["ema"] is None and not values["zero_grad"]:
        return plain(op, keys)
    if group.get("capturable"):
        found = ", ".join(f"{key}={group[key]!r}" for key in DEFAULTS if key in group)
        remedy = "leave them out, or use capturable=False"
        raise ValueError(f"argument 'capturable': got True with {found}, needs a group without these options; {remedy}")
    return _sweep(
        family,
        keys,
        bits,
        values["state_format"],
        rounding,
        values["ema"] is not None,
        bool(values["zero_grad"]),
        dtype,
    )


@lru_cache
def plain(op: str, keys: tuple[str | None, ...]) -> Storage:
    return Storage(op, keys)


@lru_cache
def _sweep(
    family: str,
    keys: tuple[str | None, ...],
    bits: int,
    format: str,
    rounding: int,
    averaged: bool,
    zero_grad: bool,
    dtype: torch.dtype,
) -> Storage:
    op = f"{family}_sweep"
    columns: list[tuple[str | None, Kind | None]]
    if bits == 32:
        format, columns = "curvk", [(key, None) for key in keys]
    else:
        short, per = bits == 16, FORMATS[format]
        format = "curvk" if short else format
        op += {"curvk": str(bits), "bitsandbytes": "8b"}[format]
        columns = []
        for key in MOMENTS[family]:
            columns.append((key, Kind(torch.bfloat16 if short else torch.uint8)))
            if not short:
                columns.append((key + SCALE, Kind(torch.float32, per)))
    low = {KAHAN: dtype, SPLIT: torch.int16}.get(rounding)
    columns.append(("param_low", Kind(low)) if low else (None, None))
    columns += [("param_ema" if averaged else None, None), (None, None)]  # no bfloat16 copy of the parameters
    own, kinds = zip(*columns, strict=True)
    return Storage(op, own, kinds, bits, format, rounding, zero_grad)


# ---- what is held ---------------------------------------------------------------------------------------------------


def memory(params: Iterable[Tensor], states: Mapping[Tensor, State]) -> dict[str, Any]:
    """The bytes of parameters, gradients and states, in all and per parameter element."""
    held = {"params": 0, "grads": 0}
    count = 0
    for p in params:
        count += p.numel()
        held["params"] += p.nbytes
        held["grads"] += 0 if p.grad is None else p.grad.nbytes
        for key, value in states.get(p, {}).items():
            if isinstance(value, Tensor):
                held[key] = held.get(key, 0) + value.nbytes
    each = {**held, "total": sum(held.values())}
    return {
        "parameters": count,
        "bytes": held,
        "bytes_per_parameter": {key: value / count if count else 0.0 for key, value in each.items()},
    }


@contextmanager
def swapped(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Parameters hold the other tensors' values in the context, and their own bits again after it."""
    own = [(p, p.detach().clone()) for p, _ in pairs]
    try:
        _write(pairs)
        yield
    finally:
        try:
            with uninterrupted():
                _write(own)
        except KeyboardInterrupt:  # perhaps before it could be made to wait
            _write(own)
            raise


@torch.no_grad()
def _write(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for p, value in pairs:
        p.copy_(value)
