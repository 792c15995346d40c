"""State dicts with moments of other formats, and bitsandbytes' own layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._errors import message
from ..kernels.sweep import FORMATS, Codes, dequantize, quantize
from ..optim._alice import AVERAGES
from ..optim._storage import DEFAULTS, check_alice, is_signed
from ._states import State, number
from ._storage import SCALE, SIGNED, check_choice, chosen

_NAME = "curvk.torch.convert_state_dict"
_WRAPPED = "__bnb_optimizer_quant_state__"  # where newer versions of bitsandbytes put what FSDP is not to see
_OF_ADAM = {"exp_avg": "1", "exp_avg_sq": "2"}  # what bitsandbytes calls state1 and state2
_FOREIGN = ("state", "absmax", "qmap")  # and a digit
_FOREIGN_OPTIONS = {"alpha": 0.0, "t_alpha": None, "t_beta3": None}  # of groups, for an optimizer that is not here


def convert_state_dict(
    state_dict: dict[str, Any], *, state_bits: int | Sequence[int] = 32, state_format: str | Sequence[str] = "curvk"
) -> dict[str, Any]:
    """A state dict whose moments are kept in another format; rounded to nearest where that is narrower.

    Args:
        state_dict: of SGD, Adam, AdamW, AdamZ or Alice here or in torch.optim, with moments in any format, or of
            bitsandbytes' Adam, AdamW, Adam8bit or AdamW8bit. It is not changed.
        state_bits: 32, 16 (bfloat16; not Alice) or 8; or one for each group.
        state_format: of 8-bit moments, "curvk" or "bitsandbytes" (not Alice); or one for each group.

    Returns:
        A new state dict, whose groups say which format it is. Tensors that need no conversion are shared. Step counts,
        low halves and averages stay. With "bitsandbytes", Adam's states are laid out as bitsandbytes does it (state1,
        absmax1, qmap1, state2, absmax2, qmap2; the step an integer): it loads into its Adam8bit and AdamW8bit, and into
        optimizers of this module made with state_bits=8, state_format="bitsandbytes".

    Raises:
        TypeError, ValueError: no state dict; moments that are not those of an optimizer above, or of float64 or complex
            parameters, or with amsgrad, in fewer than 32 bits.

    bitsandbytes keeps tensors of fewer than 4096 elements in float32 and takes both; here every tensor of a group is in
    one format. Its weight decay is decoupled in Adam too: read its Adam's state dicts into AdamW.

    >>> import torch, curvk.torch
    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> wide = curvk.torch.AdamW([p])
    >>> (3 * p).sum().backward()
    >>> wide.step()
    >>> narrow = curvk.torch.AdamW([p], state_bits=8)
    >>> narrow.load_state_dict(curvk.torch.convert_state_dict(wide.state_dict(), state_bits=8))
    >>> narrow.state[p]["exp_avg"], narrow.state[p]["exp_avg_scale"]
    (tensor([127, 127], dtype=torch.uint8), tensor([0.3000]))
    """
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        needed = "a dict with 'state' and 'param_groups'"
        raise TypeError(message(_NAME, "state_dict", type(state_dict).__name__, needed))
    state_dict = from_bitsandbytes(state_dict)
    groups, states = [], dict(state_dict["state"])
    n = len(state_dict["param_groups"])
    formats = zip(_each("state_bits", state_bits, n), _each("state_format", state_format, n), strict=True)
    for group, (bits, form) in zip(state_dict["param_groups"], formats, strict=True):
        if bits != 32 and group.get("amsgrad"):
            remedy = "use state_bits=32"
            raise ValueError(message(_NAME, "state_bits", f"{bits}", "32 for a group with amsgrad", remedy))
        signs = SIGNED
        if "hess" in group:
            check_alice(_NAME, "", {"state_bits": bits, "state_format": form})
            signs = {name: is_signed(name, group) for name in AVERAGES}
        before = group.get("state_format", DEFAULTS["state_format"])
        for key in group["params"]:
            if isinstance(states.get(key), dict):
                states[key] = _converted(states[key], signs, before, bits, form, f"state[{key!r}]")
        own = {k: v for k, v in group.items() if k not in ("state_bits", "state_format")}
        groups.append(own | chosen(state_bits=bits, state_format=form if bits == 8 else DEFAULTS["state_format"]))
    return {**state_dict, "state": states, "param_groups": groups}


def _each(key: str, value: Any, n: int) -> list[Any]:
    """A format for each of n groups, checked."""
    each = [value] * n if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if len(each) != n:
        raise ValueError(message(_NAME, key, f"{len(each)} of them", f"one, or one for each of {n} groups"))
    for x in each or [value]:
        try:
            check_choice(key, x)
        except ValueError as error:
            raise ValueError(f"{_NAME}: {error}") from None
    return each


def _converted(state: State, signs: dict[str, bool], before: str, bits: int, form: str, label: str) -> State:
    """One parameter's state with its moments in the format; `signs` says which are signed."""
    own: State = {}
    for key, value in state.items():
        if key.endswith(SCALE) and key.removesuffix(SCALE) in signs:
            continue
        if key not in signs or value is None:
            own[key] = value
            continue
        if not isinstance(value, Tensor):
            raise TypeError(message(_NAME, f"{label}[{key!r}]", type(value).__name__, "a tensor"))
        scale = state.get(key + SCALE)
        if bits == 8 and value.dtype == torch.uint8 and form == before:
            own[key], own[key + SCALE] = value, scale
            continue
        x = _dequantized(key, signs[key], value, scale, before, label) if value.dtype == torch.uint8 else value
        if not x.is_floating_point() and not (x.is_complex() and bits == 32):
            raise TypeError(message(_NAME, f"{label}[{key!r}]", f"dtype {x.dtype}", "a moment of an optimizer"))
        if bits == 32:
            own[key] = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        elif x.dtype == torch.float64:
            needed = "moments of parameters of at most 32 bits; keep these in a group and an optimizer with 32"
            raise ValueError(message(_NAME, f"{label}[{key!r}]", f"dtype {x.dtype}", needed))
        elif bits == 16:
            own[key] = x.to(torch.bfloat16)
        else:
            own[key], own[key + SCALE] = _quantized(signs[key], x, form)
    return _as_bitsandbytes(own) if bits == 8 and form == "bitsandbytes" and _OF_ADAM.keys() <= own.keys() else own


def _quantized(signed: bool, x: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Codes and scales of a moment."""
    x = x.detach().float().contiguous()
    codes, scales = torch.empty_like(x, dtype=torch.uint8), x.new_empty(-(-x.numel() // FORMATS[form]))
    out = Codes(codes, scales, form)
    quantize(x, signed=signed, format=form, out=out)
    return out.codes, out.scales


def _dequantized(key: str, signed: bool, codes: Tensor, scales: Any, form: str, label: str) -> Tensor:
    expected = (-(-codes.numel() // FORMATS[form]),)
    if not isinstance(scales, Tensor) or scales.shape != expected or scales.dtype != torch.float32:
        found = f"{scales.dtype} of shape {tuple(scales.shape)}" if isinstance(scales, Tensor) else f"{scales!r}"
        raise ValueError(message(_NAME, f"{label}['{key}{SCALE}']", found, f"float32 of shape {expected}"))
    q = Codes(codes.detach().contiguous(), scales.detach().contiguous(), form)
    x: Tensor = dequantize(q, signed=signed, out=torch.empty(codes.shape, device=codes.device))
    return x


# ---- bitsandbytes' layout -------------------------------------------------------------------------------------------


def _map(key: str) -> Tensor:
    """What the 256 codes of a moment mean, as bitsandbytes' state dicts hold it."""
    codes = torch.arange(256, dtype=torch.uint8, device="cpu")
    return _dequantized(key, SIGNED[key], codes, torch.ones(1, device="cpu"), "bitsandbytes", "")


def _as_bitsandbytes(state: State) -> State:
    own = {key: value for key, value in state.items() if key.removesuffix(SCALE) not in _OF_ADAM}
    if "step" in own:
        own["step"] = int(number(own["step"]))
    for key, digit in _OF_ADAM.items():
        own |= {
            f"state{digit}": state[key],
            f"absmax{digit}": state[key + SCALE],
            f"qmap{digit}": _map(key).to(state[key].device),
        }
    return own


def from_bitsandbytes(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict in bitsandbytes' layout with this module's names; others as they are. No number changes.

    Raises:
        ValueError: it is of another optimizer of bitsandbytes than Adam and AdamW, or its codes mean other numbers.
    """
    states = state_dict["state"]
    if not any(isinstance(s, dict) and ("state1" in s or _WRAPPED in s) for s in states.values()):
        return state_dict
    states = {key: _renamed(s, f"state[{key!r}]") if isinstance(s, dict) else s for key, s in states.items()}
    groups = []
    for group in state_dict["param_groups"]:
        for key, default in _FOREIGN_OPTIONS.items():
            if group.get(key, default) != default:
                raise ValueError(message(_NAME, key, f"{group[key]!r}", f"{default!r}, as Adam and AdamW have it"))
        own = {key: value for key, value in group.items() if key not in _FOREIGN_OPTIONS}
        if any("exp_avg" + SCALE in states.get(key, ()) for key in group["params"]):
            own |= {"state_bits": 8, "state_format": "bitsandbytes"}
        groups.append(own)
    return {**state_dict, "state": states, "param_groups": groups}


def _renamed(state: State, label: str) -> State:
    state = {**{key: value for key, value in state.items() if key != _WRAPPED}, **state.get(_WRAPPED, {})}
    if "state1" not in state:
        return state
    if "state2" not in state or "max1" in state:
        needed = "the two blockwise ones of Adam or AdamW"
        raise ValueError(message(_NAME, label, f"bitsandbytes' states {sorted(state)}", needed))
    own = {key: value for key, value in state.items() if key[:-1] not in _FOREIGN and key != "unorm_vec"}
    for key, digit in _OF_ADAM.items():
        codes = state[f"state{digit}"]
        own[key] = codes
        if codes.dtype != torch.uint8:
            continue
        if not codes.is_contiguous():  # on the CPU they are in C order then, on a GPU in the order of memory
            found = f"codes with strides {codes.stride()} for shape {tuple(codes.shape)}"
            raise ValueError(
                message(_NAME, f"{label}['state{digit}']", found, "C order, which says what they stand for")
            )
        own[key + SCALE] = state[f"absmax{digit}"]
        if not torch.allclose(state[f"qmap{digit}"].float().cpu(), _map(key), rtol=1e-6, atol=1e-12):
            raise ValueError(message(_NAME, f"{label}['qmap{digit}']", "a map of its own", "bitsandbytes' dynamic map"))
    return own
