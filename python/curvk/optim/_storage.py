"""How parameters and states are held in fewer bytes: a group's options, and the arrays and kernels that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array, numpy_view
from .._errors import message
from ..kernels.half import from_float32, to_float32
from ..kernels.sweep import FORMATS, ROUNDINGS, Codes

Group = dict[str, Any]
States = Mapping[str, list[Any]]

DEFAULTS: dict[str, Any] = {
    "state_bits": 32,
    "state_format": "curvk",
    "rounding": "nearest",
    "master": "none",
    "ema": None,
    "zero_grad": False,
    "seed": 0,
}
"""The options of a group, which `SGD` documents, and what a group without them means."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "state_bits": (32, 16, 8),
    "state_format": tuple(FORMATS),
    "rounding": ROUNDINGS[:3],  # the last is split16, a master's
    "master": ("none", "split16"),
}
UNSIGNED = ("exp_avg_sq", "max_exp_avg_sq", "glass")  # states whose 8-bit codes need no sign
WHOLE = ("center", "lookahead")  # states that are never held in fewer bytes
KEPT = ("param_low", "param_ema")  # what goes with a parameter, not with the steps it took
values: Callable[[Group], tuple[Any, ...]] = itemgetter(*DEFAULTS)
_WIDE = {"float64", "complex64", "complex128"}  # dtypes whose states are never held in fewer bytes
_DTYPES = {"f64": "float64", "f16": "float16"}
_F32, _F64, _U16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.uint16)


class Fault(NamedTuple):
    """What is wrong with an option, in the words of `curvk._errors.message`."""

    error: type[Exception]
    option: str
    found: str
    needed: str
    remedy: str = ""


def choice_fault(option: str, value: Any) -> Fault | None:
    """Why a value is none of an option's CHOICES; None if it is one."""
    if isinstance(value, (str, int, np.integer)) and not isinstance(value, bool) and value in CHOICES[option]:
        return None
    return Fault(ValueError, option, repr(value), " or ".join(map(repr, CHOICES[option])))


def _is_number(x: Any, method: str) -> bool:
    return not isinstance(x, (bool, np.bool_, str, bytes)) and hasattr(x, method) and not getattr(x, "ndim", False)


def _faults(group: Mapping[str, Any], dtypes: Collection[str]) -> Iterator[Fault]:
    """Each is right only where there is none before it."""
    for option in CHOICES:
        if found := choice_fault(option, group[option]):
            yield found
    bits, seed, ema = group["state_bits"], group["seed"], group["ema"]
    if not isinstance(group["zero_grad"], (bool, np.bool_)):
        yield Fault(TypeError, "zero_grad", repr(group["zero_grad"]), "True or False")
    needed = "an integer in [0, 2^64)"
    if not _is_number(seed, "__index__"):
        yield Fault(TypeError, "seed", f"{seed!r} of type {type(seed).__name__}", needed)
    if not 0 <= seed.__index__() < 1 << 64:
        yield Fault(ValueError, "seed", f"{seed}", needed)
    if ema is not None:
        needed = "a number in [0, 1), the share that the average keeps, or None"
        if not _is_number(ema, "__float__"):
            yield Fault(TypeError, "ema", f"{ema!r} of type {type(ema).__name__}", needed)
        if not 0 <= float(ema) < 1:
            yield Fault(ValueError, "ema", f"{ema}", needed)
    if bits < 32 and group.get("amsgrad"):
        needed = "32 with amsgrad, whose maximum never declines and would collect what rounding adds"
        yield Fault(ValueError, "state_bits", f"{bits}", needed, "use amsgrad=False")
    if bits < 32 and (wide := _WIDE.intersection(dtypes)):
        remedy = "give them a group of their own with state_bits=32"
        yield Fault(ValueError, "state_bits", f"{bits}", f"32 for {min(wide)} parameters", remedy)
    if group["master"] == "split16":
        if group["rounding"] != "nearest":
            needed = "'nearest' with master='split16', which is exact: nothing is rounded"
            yield Fault(ValueError, "rounding", repr(group["rounding"]), needed)
        if "float16" in dtypes:
            needed = "bfloat16 parameters, which are the upper halves of their master"
            remedy = "use rounding='kahan' for float16"
            yield Fault(ValueError, "master", "'split16' for float16 parameters", needed, remedy)


def fault(group: Mapping[str, Any], dtypes: Collection[str]) -> Fault | None:
    """Why the options of a group that names all cannot be used, or not together or with parameters of these dtypes."""
    return next(_faults(group, dtypes), None)


def check(name: str, where: str, group: Mapping[str, Any], formats: Collection[str]) -> None:
    """Raises for options that cannot be used, or not together or with parameters of these storage formats."""
    if found := fault({**DEFAULTS, **group}, [_DTYPES.get(fmt, fmt) for fmt in formats]):
        raise found.error(message(name, where + found.option, *found[2:]))


def check_alice(name: str, where: str, group: Mapping[str, Any]) -> None:
    """Raises for options of the states that Alice has no kernel for."""
    for key, choices in (("state_bits", (32, 8)), ("state_format", ("curvk",))):
        value = group.get(key, DEFAULTS[key])
        if isinstance(value, bool) or value not in choices:
            needed = f"{' or '.join(map(repr, choices))}; Alice has no others"
            raise ValueError(message(name, where + key, repr(value), needed))


def is_signed(name: str, group: Mapping[str, Any]) -> bool:
    """Whether the codes of a group's state have signs."""
    return group.get("hess") == "debiased" if name == "hessian" else name not in UNSIGNED


def format_of(group: Mapping[str, Any]) -> str:
    """The format of a group's moments, in words that two groups share if it is the same."""
    bits, format = int(group["state_bits"]), group["state_format"]
    return f"state_bits={bits}, state_format={format!r}" if bits == 8 else f"state_bits={bits}"


@dataclass(frozen=True)
class Slot:
    """A state of a parameter: an array of its shape or, where elements share a number, one of a number per group."""

    name: str
    dtype: np.dtype[Any]
    per: int = 0  # elements that share a number; 0: none do

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (-(-math.prod(shape) // self.per),) if self.per else shape

    def zeros(self, view: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.zeros(self.shape(view.shape), self.dtype) if self.per else np.zeros_like(view, self.dtype)


@dataclass(frozen=True)
class Storage:
    """How the parameters of one group and storage format step, and what they hold."""

    bits: int
    format: str  # of the codes, where bits is 8
    rounding: str  # of the parameters, a word of `curvk.kernels.sweep.ROUNDINGS`
    sweeps: bool  # whether the step is a sweep kernel's
    moments: tuple[Slot, ...]  # with the scales of codes
    kept: tuple[Slot, ...]  # of KEPT, those in use
    hess: str = ""  # Alice's, which the codes of its Hessian depend on

    @property
    def draws(self) -> bool:
        """Whether the step counts must be known, one by one, for the noise."""
        return self.rounding == "stochastic" or self.bits == 16 or (self.bits == 8 and self.format == "curvk")

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.moments + self.kept

    @property
    def described(self) -> str:
        """The format of the moments."""
        hess = f", hess={self.hess!r}" if self.hess else ""
        return format_of({"state_bits": self.bits, "state_format": self.format}) + hess

    def state(self, states: States, name: str) -> list[Any]:
        """A state as a plan takes it."""
        column, scales = states[name], states.get(f"{name}_scale")
        if scales is None:
            return column
        return [Codes(codes, scale, self.format) for codes, scale in zip(column, scales, strict=True)]


@lru_cache(maxsize=256)
def storage(
    names: tuple[str, ...],
    fmt: str,
    bits: int,
    format: str,
    rounding: str,
    master: str,
    ema: bool,
    zero_grad: bool,
    hess: str = "",
) -> Storage:
    """The storage of parameters of a format whose moments have these names."""
    full = _F64 if fmt == "f64" else _F32
    dtype = {32: full, 16: _U16, 8: np.dtype(np.uint8)}[bits]
    per = FORMATS[format] if bits == 8 else 0
    moments = []
    for name in names:
        moments.append(Slot(name, full if name in WHOLE else dtype))
        if per and name not in WHOLE:
            moments.append(Slot(f"{name}_scale", _F32, per))
    how = "nearest" if fmt in ("f32", "f64") else "split16" if master == "split16" else rounding
    kept = [Slot("param_low", np.dtype(np.float16) if fmt == "f16" else _U16)] if how in ("kahan", "split16") else []
    kept += [Slot("param_ema", full)] if ema else []
    sweeps = bool(bits < 32 and names) or how != "nearest" or ema or zero_grad
    return Storage(bits, format, how, sweeps, tuple(moments), tuple(kept), hess)


def storage_of(names: tuple[str, ...], fmt: str, group: Group) -> Storage:
    """`storage` by the options of a group that has been checked, or that has none."""
    bits, format, rounding, master, ema, zero_grad, _ = values({**DEFAULTS, **group})
    hess = group.get("hess", "") if bits == 8 else ""
    return storage(names, fmt, int(bits), format, rounding, master, ema is not None, bool(zero_grad), hess)


def widened(x: Array, fmt: str) -> np.ndarray[Any, Any]:
    """A parameter's values as a new array of its states' full dtype, in its memory order."""
    view = numpy_view(x, "ema", "params")
    out = np.empty_like(view, _F64 if fmt == "f64" else _F32)
    out[...] = to_float32(np.ascontiguousarray(view)).reshape(view.shape) if fmt == "bf16" else view
    return out


def narrowed(x: np.ndarray[Any, Any], fmt: str) -> np.ndarray[Any, Any]:
    """An average as the parameter's format stores it, to nearest; C-contiguous where that takes rounding."""
    if fmt in ("f32", "f64"):
        return x
    return np.asarray(from_float32(np.ascontiguousarray(x), "bf16" if fmt == "bf16" else "f16")).reshape(x.shape)
