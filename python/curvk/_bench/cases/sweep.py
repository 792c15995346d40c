"""Steps in fewer bytes: one factory of cases for an optimizer and a kind of states; and arrays to codes and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...kernels import sweep
from .. import codes
from ..interval import ARITHMETIC, F32, F64, STORAGE, Interval
from ..registry import SIZES, Array, Arrays, Case, Contender, Factory, Options, Row, optional
from ..storage import decode, empty, encode, numbers, sample
from . import optim

SHORT = ("bf16", "f16")
_BLOCK = 131_101  # a prime, so that the period of a long array meets no group's
_KINDS = {
    "": "whole states",
    "16": "bfloat16 states, dithered",
    "8": "8-bit states in 32s, dithered",
    "8b": "8-bit states of bitsandbytes, nearest",
}
_STATES = {"adam": ("m", "v"), "sgd": ("buf",)}
_EXTRA = {"rounding": "nearest", "ema_decay": 0.0, "zero_grad": False, "draw": 0, "seed": 0, "tensor": 0}
_DEFAULTS: dict[str, Options] = {
    "adam": {**{k: v for k, v in optim.ADAM.items() if k != "amsgrad"}, **_EXTRA},
    "sgd": {**optim.SGD, **_EXTRA},
}


def _rounding(o: Options, fmt: str) -> str:
    """The option where the format has it: there is nothing to round above 16 bits, and no float16 half of a float32."""
    rounding = str(o.get("rounding", "nearest"))
    return rounding if fmt == "bf16" or (fmt == "f16" and rounding != "split16") else "nearest"


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _bytes(n: int, rng: np.random.Generator, signed: bool) -> Array:
    """Codes; signed ones of curvk have no -128."""
    out = empty(n, np.uint8)
    block = rng.integers(1 if signed else 0, 256, min(n, _BLOCK)).astype(np.uint8)
    for start in range(0, n, _BLOCK):
        out[start : start + _BLOCK] = (block + 128 * signed)[: n - start]
    return out


def _make_state(name: str, kind: str, n: int, fmt: str, rng: np.random.Generator) -> Arrays:
    second = name == "v"
    draw = optim._square(0.01) if second else optim._normal(0.1)
    if kind not in codes.GROUPS:
        return {name: sample(n, "bf16" if kind else "f64" if fmt == "f64" else "f32", rng, draw)}
    scale = sample(-(-n // codes.GROUPS[kind]), "f32", rng, optim._square(0.05 if second else 0.3))
    return {name: _bytes(n, rng, kind == "8" and not second), f"{name}_scale": scale}


def _make_low(n: int, fmt: str, rng: np.random.Generator, rounding: str) -> Array | None:
    """Low halves: any bits, or numbers small beside the parameters."""
    if rounding == "split16":
        return sample(n, "bf16", rng, lambda rng, n: decode(rng.integers(0, 65536, n).astype(np.uint16), "bf16"))
    return sample(n, fmt, rng, optim._normal(1e-3)) if rounding == "kahan" else None


def _maker(name: str, kind: str) -> Callable[[int, str, np.random.Generator, Options], Arrays]:
    def make(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
        wide = "f64" if fmt == "f64" else "f32"
        a: Arrays = {k: sample(n, fmt, rng, optim._normal(scale)) for k, scale in (("p", 1.0), ("g", 0.3))}
        for state in _STATES[name]:
            a |= _make_state(state, kind, n, fmt, rng) if o.get("momentum", 1) else {state: None}
        if o.get("amsgrad"):
            a["max_v"] = sample(n, wide, rng, optim._square(0.02))
        a["low"] = _make_low(n, fmt, rng, _rounding(o, fmt))
        a["ema"] = sample(n, wide, rng, optim._normal(1.0)) if "ema_decay" in o else None
        a["shadow"] = sample(n, "bf16", rng, optim._normal(1.0)) if o.get("shadow") else None
        return {**a, "origin": optim._origin(n, fmt, rng, o)}

    return make


# ---- running --------------------------------------------------------------------------------------------------------


def _state(a: Arrays, name: str, kind: str) -> Any:
    """A state as the public functions take it: an array, codes, or lists of them."""
    if kind not in codes.GROUPS:
        return a[name]
    form = "curvk" if kind == "8" else "bitsandbytes"
    if isinstance(a[name], list):
        return [sweep.Codes(c, s, form) for c, s in zip(a[name], a[f"{name}_scale"], strict=True)]
    return sweep.Codes(a[name], a[f"{name}_scale"], form)


def _tables(a: Arrays) -> dict[str, Any]:
    return {k: a[k] for k in ("max_v", "low", "ema", "shadow", "origin") if k in a}


def _keywords(name: str, o: Options, fmt: str) -> dict[str, Any]:
    kept = {k: v for k, v in {**_DEFAULTS[name], **o}.items() if k not in ("restored", "amsgrad", "shadow", "offset")}
    return {**kept, "rounding": _rounding(o, fmt)}


def _whole(a: Arrays, rounding: str) -> Array:
    """Parameters with their low halves."""
    if rounding == "split16":
        bits = (a["p"].astype(np.int64) << 16) + a["low"].view(np.int16)
        return np.asarray((bits % 2**32).astype(np.uint32).view(np.float32))
    with np.errstate(invalid="ignore"):
        return np.asarray(numbers(a["p"]) + (numbers(a["low"]) if rounding == "kahan" else 0))


class _Whole:
    """The parameters with their low halves, as an array when one asks: they are no part of what is timed."""

    def __init__(self, a: Arrays, rounding: str) -> None:
        self.a, self.rounding = a, rounding

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return _whole(self.a, self.rounding)


def _runner(name: str, kind: str) -> Callable[[Arrays, Options, str], Arrays]:
    function = getattr(sweep, f"{name}_sweep")

    def run(a: Arrays, o: Options, fmt: str) -> Arrays:
        states = [_state(a, s, kind) for s in _STATES[name]]
        function(a["p"], a["g"], *states, **_tables(a), **_keywords(name, o, fmt))
        outputs = {k: x for k, x in a.items() if x is not None and k != "origin"}
        if a["low"] is not None:
            outputs["p + low"] = _Whole(a, _rounding(o, fmt))
        return outputs

    return run


def _planner(name: str, kind: str) -> Callable[[Arrays, Options, str], Callable[[], None]]:
    cls = sweep.AdamSweepPlan if name == "adam" else sweep.SGDSweepPlan

    def plan(a: Arrays, o: Options, fmt: str) -> Callable[[], None]:
        states = [_state(a, s, kind) for s in _STATES[name]]
        keywords = _keywords(name, o, fmt)
        made: Any = cls(a["p"], a["g"], *states, **_tables(a), tensor=keywords.pop("tensor"))
        return lambda: made.step(**keywords)

    return plan


# ---- truth ----------------------------------------------------------------------------------------------------------


def _start(a: Arrays, fmt: str, rounding: str) -> Interval:
    """The parameters that the step starts from."""
    p = a["p"] if a["origin"] is None else a["origin"]
    if rounding == "split16":
        with np.errstate(invalid="ignore"):  # NaN that signal
            return Interval.exact(_whole({**a, "p": p}, rounding), F32)
    start = Interval.exact(decode(p, fmt), ARITHMETIC[fmt])
    return start + Interval.exact(decode(a["low"], fmt), F32) if rounding == "kahan" else start


def _widened(a: Arrays, name: str, kind: str, fmt: str) -> Interval | None:
    if a.get(name) is None:
        return None
    if kind in codes.GROUPS:
        return codes.widened(a[name], a[f"{name}_scale"], kind, signed=name != "v")
    return Interval.exact(numbers(a[name]), ARITHMETIC[fmt])


def _stored(x: Interval, fmt: str, rounding: str) -> dict[str, Interval]:
    """The parameters as they are kept."""
    if rounding == "stochastic":
        return {"p": codes.around(x, fmt)}
    if rounding == "kahan":
        return {"p": x.to(STORAGE[fmt]), "low": codes.Anything(), "p + low": codes.compensated(x, fmt)}
    if rounding == "split16":
        return {"p": x.to(STORAGE[fmt]), "low": codes.Anything(), "p + low": x}
    return {"p": x.to(STORAGE[fmt])}


def _stored_state(x: Interval, name: str, kind: str) -> dict[str, Interval]:
    if kind in codes.GROUPS:
        found = codes.narrowed(x, kind, signed=name != "v")
        return {name: found["codes"], f"{name}_scale": found["scale"]}
    return {name: codes.around(x, "bf16") if kind else x}


def _truth(name: str, kind: str) -> Callable[[Arrays, Options, str], dict[str, Any]]:
    def truth(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
        o = {**_DEFAULTS[name], "amsgrad": False, **o}
        s, rounding = ARITHMETIC[fmt], _rounding(o, fmt)
        p, g = _start(a, fmt, rounding), Interval.exact(decode(a["g"], fmt), s)
        states = [_widened(a, state, kind, fmt) for state in _STATES[name]]
        if name == "adam":
            max_v = None if a.get("max_v") is None else Interval.exact(a["max_v"], s)
            m, v = states
            assert m is not None
            assert v is not None
            made = optim.adam_intervals(p, g, m, v, max_v, o)
        else:
            made = optim.sgd_intervals(p, g, states[0], o)
        x = made["p"]
        found: dict[str, Any] = _stored(x, fmt, rounding)
        for state in _STATES[name]:
            if state in made:
                found |= _stored_state(made[state], state, kind)
        if "max_v" in made:
            found["max_v"] = made["max_v"]
        if a["ema"] is not None:
            one, decay = Interval.exact(1.0, F64), o["ema_decay"]
            found["ema"] = Interval.exact(decay, F64).to(s) * Interval.exact(a["ema"], s) + (one - decay).to(s) * x
        if a["shadow"] is not None:
            found["shadow"] = x.to(F32).to(STORAGE["bf16"])
        return {**found, "g": np.zeros_like(a["g"]) if o["zero_grad"] else a["g"]}

    return truth


# ---- cost -----------------------------------------------------------------------------------------------------------


def _streams(name: str, kind: str) -> Callable[[Options], dict[str, str]]:
    def streams(o: Options) -> dict[str, str]:
        found = {"p": "w", "origin": "r"} if o.get("restored") else {"p": "rw"}
        found["g"] = "rw" if o.get("zero_grad") else "r"
        if name == "adam" or o.get("momentum"):
            for state in _STATES[name]:
                scale = [f"{state}_scale"] if kind in codes.GROUPS else []
                found |= dict.fromkeys([state, *scale], "w" if o.get("first") else "rw")
        options = {"max_v": "rw" if o.get("amsgrad") else "", "ema": "rw" if "ema_decay" in o else ""}
        options |= {
            "low": "rw" if o.get("rounding") in ("kahan", "split16") else "",
            "shadow": "w" * bool(o.get("shadow")),
        }
        return found | {k: use for k, use in options.items() if use}

    return streams


_STATE_FLOPS = {"": 0, "16": 4, "8": 13, "8b": 35}  # integer operations too
_ROUNDING_FLOPS = {"nearest": 0, "stochastic": 3, "kahan": 8, "split16": 4}


def _flops(name: str, kind: str) -> Callable[[Options], int]:
    step = optim._adam_flops if name == "adam" else optim._sgd_flops

    def flops(o: Options) -> int:
        states = len(_STATES[name]) if name == "adam" or o.get("momentum") else 0
        rounding = _ROUNDING_FLOPS[o.get("rounding", "nearest")]
        noise = 2 if kind in ("16", "8") or o.get("rounding") == "stochastic" else 0  # a block for 32 elements
        options = 3 * ("ema_decay" in o) + 4 * bool(o.get("shadow"))
        return step(o) + states * _STATE_FLOPS[kind] + rounding + noise + options

    return flops


# ---- peers ----------------------------------------------------------------------------------------------------------


def _torch_peer(name: str, kind: str, stored: str) -> Factory:
    """The fused step of torch on arrays of its own in a format, with separate sweeps for what it lacks."""

    def factory(a: Arrays, o: Options, fmt: str) -> Contender | None:
        torch, o = optional("torch"), {**_DEFAULTS[name], "amsgrad": False, **o}
        if torch is None:
            return None
        start, g = _start(a, fmt, _rounding(o, fmt)), numbers(a["g"])
        own: Arrays = {"p": encode(start.low, stored), "g": encode(g, stored), "max_v": None, "origin": a["origin"]}
        for k in _STATES[name]:
            x = _widened(a, k, kind, fmt)
            own[k] = None if x is None else encode((x.low + x.high) / 2, "f32")
        found = optim._torch_single("fused")(own, o, stored)
        if found is None:
            return None
        p, g = (optim._tensor(torch, own[k]) for k in "pg")
        ema = None if a["ema"] is None else torch.from_numpy(a["ema"].copy())
        shadow = None if a["shadow"] is None else torch.empty_like(p, dtype=torch.bfloat16)
        sweeps: list[Callable[[], object]] = [found.step]
        if ema is not None:
            sweeps.append(lambda: ema.lerp_(p.to(ema.dtype), 1 - o["ema_decay"]))
        if shadow is not None:
            sweeps.append(lambda: shadow.copy_(p))
        if o["zero_grad"]:
            sweeps.append(g.zero_)
        return Contender(
            _torch_name(stored), lambda: [run() for run in sweeps], None, {"p": own["p"]}, other=stored == "bf16"
        )

    return factory


def _torch_name(stored: str) -> str:
    return "torch fused, all float32" if stored == "f32" else "torch fused, all bfloat16"


def _bitsandbytes(name: str, kind: str) -> Factory:
    """The optimizer of bitsandbytes with 8-bit states, on arrays of its own; its decay comes after the update."""

    def factory(a: Arrays, o: Options, fmt: str) -> Contender | None:
        torch, bnb, o = optional("torch"), optional("bitsandbytes"), {**_DEFAULTS[name], **o}
        if torch is None or bnb is None or fmt not in ("f32", "bf16") or a["ema"] is not None or o["zero_grad"]:
            return None
        p = torch.nn.Parameter(optim._tensor(torch, a["p"].copy()))
        p.grad = optim._tensor(torch, a["g"].copy())
        if name == "adam":
            made = bnb.optim.AdamW8bit([p], lr=o["lr"], betas=o["betas"], eps=o["eps"], weight_decay=o["weight_decay"])
        else:
            made = bnb.optim.SGD8bit([p], lr=o["lr"], momentum=o["momentum"])
        made.step()
        return Contender("bitsandbytes 8-bit", made.step, other=True)

    return factory


def _peers(name: str, kind: str) -> dict[str, Factory]:
    found = {_torch_name(f): _torch_peer(name, kind, f) for f in ("f32", "bf16")}
    return found | ({"bitsandbytes 8-bit": _bitsandbytes(name, kind)} if kind in codes.GROUPS else {})


# ---- cases ----------------------------------------------------------------------------------------------------------

_KEYS: Options = {"draw": 2**32 - 1, "seed": 0xFEDCBA9876543210, "tensor": 77}
_SCALED: Options = {"maximize": True, "grad_scale": 3.0}
_ALL: Options = {"shadow": True, "zero_grad": True, "ema_decay": 0.5, "restored": True}


def _variants(name: str, kind: str) -> dict[str, Options]:
    """What is stored how, with the optimizer's own options spread over them."""
    coupled: Options = {"weight_decay": 0.01}
    plain: Options = {**coupled, "decoupled": True} if name == "adam" else {"momentum": 0.9}
    other: Options = {**plain, "betas": (0.0, 0.0), "eps": 0.5} if name == "adam" else {**plain, "dampening": 0.3}
    late: Options = {"step": 100_000, "betas": (0.95, 0.9999)} if name == "adam" else {**plain, "first": True}
    nesterov: Options = {**plain, "nesterov": True, **coupled} if name == "sgd" else coupled
    found: dict[str, Options] = {
        "p nearest": plain,
        "p stochastic": {**plain, "rounding": "stochastic", **_KEYS},
        "p kahan": {**plain, "rounding": "kahan"},
        "p split16": {**plain, "rounding": "split16"},
        "p stochastic, coupled": {**nesterov, **_SCALED, "rounding": "stochastic", "draw": 1, "seed": 1},
        "p kahan, everything": {**other, **_SCALED, "rounding": "kahan", **_ALL},
        "p split16, everything": {**late, "rounding": "split16", **_ALL},
    }
    if name == "adam" and kind in ("", "8"):  # what each costs; in the other cases all of them stand together
        for what, option in (
            ("average", {"ema_decay": 0.99}),
            ("bf16 copy", {"shadow": True}),
            ("zeroed g", {"zero_grad": True}),
        ):
            found[f"p nearest, {what}"] = {**plain, **option}
    if kind == "" and name == "adam":
        found["amsgrad"] = {**coupled, **_SCALED, **_ALL, "amsgrad": True, "rounding": "stochastic", **_KEYS}
    if kind == "" and name == "sgd":
        found["no momentum"] = {"weight_decay": 0.1, "decoupled": True, "rounding": "stochastic", **_KEYS}
    stored = _KINDS[kind]
    return {f"{stored}; {k}": o for k, o in found.items()}


_TIMED = ("p kahan", "p split16", "p nearest, average", "p nearest, bf16 copy", "p nearest, zeroed g")
"""What "everything" covers."""

_HEADLINE = (1_000_000, 10_000_000, 100_000_000)
_FEW = (10_000_000,)  # beyond what a quick run measures


def _rows(name: str, kind: str) -> tuple[Row, ...]:
    def row(variant: str, formats: tuple[str, ...], sizes: tuple[int, ...] = _FEW, headline: bool = False) -> Row:
        return Row(f"{_KINDS[kind]}; {variant}", formats, sizes=sizes, headline=headline)

    if name == "sgd":
        return (row("p nearest", ("f32",)), row("p stochastic", ("bf16",)))
    rows = [row("p nearest", ("f32",), _HEADLINE if kind == "8" else _FEW, headline=kind == "8")]
    rows += [row("p stochastic", ("bf16",), _HEADLINE if kind else _FEW, headline=kind in ("16", "8"))]
    rows += [row("p nearest", ("bf16",), _HEADLINE if kind else _FEW)] if kind in ("16", "8") else []
    if kind in ("", "8"):
        rows += [row("p stochastic", ("f16",)), row("p kahan", ("bf16",)), row("p split16", ("bf16",))]
        rows += [row(f"p nearest, {what}", ("f32",)) for what in ("average", "bf16 copy", "zeroed g")]
    return tuple(rows)


_ERROR = {
    "": "correctly rounded operations in the order written, then what is stored of them as it is said",
    "16": "the same; states rounded up or down at random by 16 bits",
    "8": "the same; states decoded within 2^-20, encoded up or down at random by 9 bits about 1/512 of a code",
    "8b": "the same; states encoded to the nearest of bitsandbytes' values, within 2^-21",
}


def _case(name: str, kind: str) -> Case:
    return Case(
        op=f"{name}_sweep{kind}",
        make=_maker(name, kind),
        run=_runner(name, kind),
        plan=_planner(name, kind),
        truth=_truth(name, kind),
        error=_ERROR[kind],
        variants=_variants(name, kind),
        flops=_flops(name, kind),
        streams=_streams(name, kind),
        sizes=(*(n for n in SIZES if n < 32767 or n > 32769), 31, 32, 33, 255, 256, 257, 1024, 1025),
        peers=_peers(name, kind),
        rows=_rows(name, kind),
        granularity=1024,
        timed=frozenset(f"{_KINDS[kind]}; {what}" for what in _TIMED),
    )


# ---- arrays to codes and back ---------------------------------------------------------------------------------------

_SIGNS: Mapping[str, Options] = {"signed": {"signed": True}, "unsigned": {"signed": False}}


def _codes_cases(kind: str) -> list[Case]:
    form, group = ("curvk", 32) if kind == "8" else ("bitsandbytes", 256)

    def make(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
        x = sample(n, fmt, rng, optim._normal(0.1) if o["signed"] else optim._square(0.01))
        return {"x": x, "codes": empty(n, np.uint8), "scale": empty(-(-n // group), np.float32)}

    def quantize(a: Arrays, o: Options, fmt: str) -> Arrays:
        sweep.quantize(a["x"], signed=o["signed"], format=form, out=sweep.Codes(a["codes"], a["scale"], form))
        return {k: a[k] for k in ("codes", "scale")}

    def quantized(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
        return {**codes.narrowed(Interval.exact(a["x"], F32), kind, o["signed"], nearest=True)}

    def make_codes(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
        state = _make_state("buf" if o["signed"] else "v", kind, n, fmt, rng)
        return {"x": empty(n, np.float32), **dict(zip(("codes", "scale"), state.values(), strict=True))}

    def dequantize(a: Arrays, o: Options, fmt: str) -> Arrays:
        return {"x": sweep.dequantize(sweep.Codes(a["codes"], a["scale"], form), signed=o["signed"], out=a["x"])}

    def dequantized(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
        return {"x": codes.widened(a["codes"], a["scale"], kind, o["signed"])}

    sizes = (*SIZES, 31, 32, 33, 255, 256, 257)
    common: dict[str, Any] = {"variants": _SIGNS, "granularity": 1024, "sizes": sizes}
    rows = tuple(Row(variant, ("f32",), sizes=_FEW) for variant in _SIGNS)
    forth = Case(
        op=f"quantize{kind}",
        make=make,
        run=quantize,
        truth=quantized,
        error="nearest code within 1/500 of one" if kind == "8" else "nearest value within 2^-21",
        flops=lambda o: _STATE_FLOPS[kind] * 2 // 3,
        streams=lambda o: {"x": "r", "codes": "w", "scale": "w"},
        rows=rows,
        **common,
    )
    back = replace(
        forth,
        op=f"dequantize{kind}",
        make=make_codes,
        run=dequantize,
        truth=dequantized,
        error="relative 2^-20" if kind == "8" else "relative 2^-23",
        flops=lambda o: _STATE_FLOPS[kind] // 3,
        streams=lambda o: {"x": "w", "codes": "r", "scale": "r"},
    )
    return [forth, back]


CASES = [
    *(_case(name, kind) for name in _STATES for kind in _KINDS),
    *(case for kind in codes.GROUPS for case in _codes_cases(kind)),
]
