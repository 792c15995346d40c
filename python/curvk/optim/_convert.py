"""State dicts from one format of the moments to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._errors import message
from ..kernels.half import from_float32, to_float32
from ..kernels.sweep import Codes, dequantize, quantize
from . import _storage

_NAMES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "glass", "hessian")
_CLASSES = ("SGD", "Adam", "AdamW", "AdamZ", "Alice")


def convert_state_dict(
    state_dict: Mapping[str, Any], *, state_bits: int | Sequence[int] = 32, state_format: str | Sequence[str] = "curvk"
) -> dict[str, Any]:
    """A state dict whose moments are in another format, for an optimizer with these options.

    Args:
        state_dict: what `state_dict` of SGD, Adam, AdamW, AdamZ, Alice, or of SAM around one of the others, gave; it is
            not changed.
        state_bits: 32, 16 or 8 (Alice: 32 or 8), as in `SGD`; or one for each group.
        state_format: "curvk" or "bitsandbytes" (Alice: "curvk"), as in `SGD`; or one for each group.

    Returns:
        A new state dict with moments rounded to nearest, and with `state_bits` and `state_format` in its groups.
        Moments that are in the format already, masters and averages are copied bit for bit.

    Raises:
        ValueError: not such a state dict; a format that the states cannot have (float64 or amsgrad in fewer than 32
            bits); the text names the place.

    >>> import numpy as np
    >>> from curvk.optim import Adam
    >>> w, g = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    >>> adam = Adam([w])
    >>> adam.step([g])
    True
    >>> small = Adam([w], state_bits=8)
    >>> small.load_state_dict(convert_state_dict(adam.state_dict(), state_bits=8))
    >>> small.state[0]["exp_avg"]
    array([127, 127, 127, 127], dtype=uint8)
    """
    name = "convert_state_dict"
    if not isinstance(state_dict, Mapping):
        raise _refused("state_dict", type(state_dict).__name__)
    if state_dict.get("optimizer") == "SAM" and "base" in state_dict:
        base = convert_state_dict(state_dict["base"], state_bits=state_bits, state_format=state_format)
        return {**state_dict, "base": base}
    groups, entries = state_dict.get("param_groups"), state_dict.get("state")
    if state_dict.get("optimizer") not in _CLASSES or not isinstance(groups, list) or not isinstance(entries, list):
        raise _refused("state_dict", f"one of {state_dict.get('optimizer')!r} with the keys {list(state_dict)}")
    per_group = {"state_bits": state_bits, "state_format": state_format}
    for key, value in per_group.items():
        if isinstance(value, (list, tuple)) and len(value) != len(groups):
            raise ValueError(
                message(name, key, f"{len(value)} values", f"one, or one for each of {len(groups)} groups")
            )
    states = list(entries)
    new_groups = []
    for k, group in enumerate(groups):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list):
            raise _refused(f"param_groups[{k}]", type(group).__name__)
        own = {key: value[k] if isinstance(value, (list, tuple)) else value for key, value in per_group.items()}
        old, new = {**_storage.DEFAULTS, **group}, {**_storage.DEFAULTS, **group, **own}
        for numbers in (old, new):
            _storage.check(name, f"param_groups[{k}].", numbers, ())
            if state_dict["optimizer"] == "Alice":
                _storage.check_alice(name, f"param_groups[{k}].", numbers)
        new_groups.append({**group, **own})
        for i in group["params"]:
            if type(i) is not int or not 0 <= i < len(entries) or not isinstance(entries[i], Mapping):
                raise _refused(f"param_groups[{k}].params", f"{i!r}")
            states[i] = _converted(entries[i], group, _held(old), _held(new), f"state[{i}]")
    return {**state_dict, "state": states, "param_groups": new_groups}


def _held(group: Mapping[str, Any]) -> tuple[int, str]:
    return int(group["state_bits"]), group["state_format"] if group["state_bits"] == 8 else ""


def _converted(
    entry: Mapping[str, Any], group: Mapping[str, Any], old: tuple[int, str], new: tuple[int, str], where: str
) -> dict[str, Any]:
    out = {}
    for key, x in entry.items():
        name = key.removesuffix("_scale")
        if name not in _NAMES or old == new:
            out[key] = x.copy(order="K") if isinstance(x, np.ndarray) else x
        elif key == name:
            is_signed = _storage.is_signed(name, group)
            wide = _widened(entry, name, old, is_signed, f"{where}.{name}")
            if new[0] < 32 and wide.dtype == np.float64:
                remedy = "give state_bits for each group, 32 for this one"
                raise ValueError(message("convert_state_dict", f"{where}.{name}", "float64", "float32", remedy))
            out |= _narrowed(wide, name, new, is_signed)
    return out


def _widened(
    entry: Mapping[str, Any], name: str, held: tuple[int, str], is_signed: bool, where: str
) -> np.ndarray[Any, Any]:
    bits, format = held
    x = entry[name]
    dtypes = {32: ("float32", "float64"), 16: ("uint16",), 8: ("uint8",)}[bits]
    scale = entry.get(f"{name}_scale")
    if not isinstance(x, np.ndarray) or x.dtype.name not in dtypes or (bits == 8) != isinstance(scale, np.ndarray):
        found = x.dtype.name if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(message("convert_state_dict", where, found, f"{dtypes[0]}, as the group's state_bits={bits}"))
    if bits == 32:
        return x
    if bits == 16:
        return to_float32(np.ascontiguousarray(x)).reshape(x.shape)
    codes = Codes(np.ascontiguousarray(x).reshape(x.shape), scale, format)
    return np.asarray(dequantize(codes, signed=is_signed))


def _narrowed(x: np.ndarray[Any, Any], name: str, held: tuple[int, str], is_signed: bool) -> dict[str, Any]:
    bits, format = held
    if bits == 32:
        return {name: x}
    x = np.ascontiguousarray(x).reshape(x.shape)
    if bits == 16:
        return {name: from_float32(x, "bf16")}
    codes = quantize(x, signed=is_signed, format=format)
    return {name: codes.codes, f"{name}_scale": codes.scales}


def _refused(what: str, found: str) -> ValueError:
    return ValueError(
        message("convert_state_dict", what, found, f"what state_dict of {', '.join(_CLASSES)} or SAM gives")
    )
