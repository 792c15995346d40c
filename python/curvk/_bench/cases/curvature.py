"""Gradient probes, the Alice step and SAM's perturbation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels.curvature import (
    AlicePlan,
    alice_lookahead,
    alice_model,
    alice_step,
    asam_norm,
    glass_moments_,
    glass_sums,
    sam_perturb_,
)
from ...kernels.sweep import Codes, quantize
from .. import codes
from ..interval import ARITHMETIC, F64, STORAGE, Interval, Precision
from ..registry import SIZES, Array, Arrays, Case, Options, Row
from ..storage import decode, empty, sample
from .noise import exact

_EDGES = (*SIZES, 63, 64, 65)  # the stages' blocks too
_SOME = (0, 1, 17, 63, 64, 65, 1023, 40_003)  # for what takes intervals long
_FEW = (10_000, 1_000_000, 10_000_000)
_PLAIN = "correctly rounded operations in the order written; scalars in double, rounded once"
_SUMS = "double sums of 16 lanes over chunks of 32,768 elements"


def _state(fmt: str) -> str:
    return "f64" if fmt == "f64" else "f32"


def _normals(n: int, fmt: str, rng: np.random.Generator, scale: float = 1.0) -> Array:
    return sample(n, fmt, rng, lambda rng, n: scale * rng.standard_normal(n))


def _squares(n: int, fmt: str, rng: np.random.Generator, scale: float) -> Array:
    return sample(n, fmt, rng, lambda rng, n: scale * (rng.standard_normal(n) ** 2 + 0.1))


def _as(value: float, s: Precision) -> Interval:
    """A scalar: evaluated in double, rounded once."""
    return Interval.exact(value, F64).to(s)


def _abs(x: Interval) -> Interval:
    low, high = np.minimum(abs(x.low), abs(x.high)), np.maximum(abs(x.low), abs(x.high))
    return Interval(np.where((x.low < 0) & (x.high > 0), 0, low), high, x.precision, x.loose)


def _minimum(x: Interval, y: Interval) -> Interval:
    return -((-x).maximum(-y))


def _total(terms: list[tuple[Array, Array, Array]], n: int) -> Interval:
    """The sums of terms between two bounds with a given size."""
    chunks = -(-n // 32768)
    error = (32768 / 16 + 16 + chunks) * 2.0**-53
    low = np.array([np.sum(a.astype(np.longdouble)) - error * np.sum(size) for a, _, size in terms])
    high = np.array([np.sum(b.astype(np.longdouble)) + error * np.sum(size) for _, b, size in terms])
    return Interval(low, high, F64)


# ---- the look-ahead point -------------------------------------------------------------------------------------------

_KEYS: Options = {"seed": 0x0123456789ABCDEF, "tensor": 7, "draw": 42}


def _make_lookahead(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"p": np.zeros_like(_normals(n, fmt, rng)), "lookahead": _normals(n, _state(fmt), rng)}


def _run_lookahead(a: Arrays, o: Options, fmt: str) -> Arrays:
    alice_lookahead(a["p"], a["lookahead"], **o)
    return {"p": a["p"]}


def _true_lookahead(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    s = ARITHMETIC[fmt]
    x = Interval.exact(a["lookahead"], s)
    if o["scale"]:
        z = exact(a["p"].size, o["seed"], o["draw"], o["tensor"], "rademacher", o.get("offset", 0))
        x = x + _as(o["scale"], s) * Interval.exact(z, s)
    return {"p": x.to(STORAGE[fmt])}


# ---- Alice ----------------------------------------------------------------------------------------------------------

ALICE: dict[str, Any] = {
    "beta1": 0.9,
    "beta2": 0.99,
    "beta3": 0.8,
    "sigma": 0.01,
    "eps": 1e-8,
    "l1": 0.0,
    "l2": 0.0,
    "lr_min": 0.0,
    "lr_max": 0.02,
    "phi": 0.1,
    "omega": 1.0,
    "hess": "debiased",
    "limit": "adam",
    "move": True,
    "grad_scale": 1.0,
    "sample": True,
    "glass": True,
}
_AVERAGES = ("exp_avg", "glass", "hessian", "exp_avg_sq")
_SPREAD = {"lr_min": 1e-4, "lr_max": 0.3}  # some steps at either bound, some between


def _make_alice(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    o, state = {**ALICE, **o}, _state(fmt)
    hessian = _normals if o["hess"] == "debiased" else lambda n, f, rng: _squares(n, f, rng, 1.0)
    return {
        "p": _normals(n, fmt, rng),
        "g": _normals(n, fmt, rng, 0.3),
        "exp_avg": _normals(n, state, rng, 0.2),
        "glass": _squares(n, state, rng, 0.1) if o["glass"] else None,
        "hessian": hessian(n, state, rng) if o["hess"] != "zero" else None,
        "exp_avg_sq": _squares(n, state, rng, 0.1),
        "center": _normals(n, state, rng),
        "lookahead": _normals(n, state, rng),
        "g_plus": _normals(n, fmt, rng, 0.3) if o["sample"] else None,
        "g_minus": _normals(n, fmt, rng, 0.3) if o["sample"] else None,
    }


def _numbers(o: Options) -> dict[str, Any]:
    """The keywords of `alice_step`."""
    return {k: v for k, v in {**ALICE, **o}.items() if k not in ("sample", "glass", "offset")}


def _run_alice(a: Arrays, o: Options, fmt: str) -> Arrays:
    alice_step(**a, **_numbers(o))
    written = ("p", "exp_avg", "glass", "hessian", "exp_avg_sq", "center", "lookahead")
    return {k: a[k] for k in written if a[k] is not None}


def _curvature(hessian: Interval | None, hess: str, l2: Interval, s: Precision) -> Interval:
    if hessian is None or hess == "zero":
        return Interval.exact(0.0, s)
    if hess == "abs":
        return hessian
    return hessian.sqrt() if hess == "rms" else hessian.maximum(Interval.exact(0.0, s)).sqrt() + l2


def _steps(
    first: Interval, glass: Interval | None, h: Interval, v: Interval, o: Options, s: Precision
) -> tuple[Interval, Interval, Interval, Interval]:
    """What is bounded, its bounds, and the result."""
    a = _abs(first)
    b = a + _as(o["eps"], s)
    k = _as(3 / (4 * math.pi), s) * (Interval.exact(0.0, s) if glass is None else glass)
    hb = h * b
    x = b / (((k + hb) + (k * (k + hb * 2.0)).sqrt()) + _as(o["eps"], s) * b)
    low, high = _as(o["lr_min"], s), _as(o["lr_max"], s)
    if o["limit"] == "fixed":
        x = a * x
    elif o["limit"] == "adam":
        r = v.sqrt() + _as(o["eps"], s)
        low, high = low / r, high / r
    return x, low, high, _minimum(x.maximum(low), high)


def _true_alice(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    exact = {k: None if a[k] is None else Interval.exact(a[k], ARITHMETIC[fmt]) for k in _AVERAGES}
    return _alice_intervals(a, exact, o, fmt)


def _alice_intervals(a: Arrays, averages: dict[str, Interval | None], o: Options, fmt: str) -> dict[str, Any]:
    """What the step gives: averages as numbers, and what is stored of the rest."""
    o, s = {**ALICE, **o}, ARITHMETIC[fmt]
    scale = (1.0 / Interval.exact(o["grad_scale"], F64)).to(s)
    g, up, down = (
        None if a[k] is None else Interval.exact(decode(a[k], fmt), s) * scale for k in ("g", "g_plus", "g_minus")
    )
    before, glass, hessian, v = (averages[k] for k in _AVERAGES)
    beta1, beta2, beta3, l1, l2 = (_as(o[k], s) for k in ("beta1", "beta2", "beta3", "l1", "l2"))
    assert g is not None
    assert before is not None
    assert v is not None
    if up is not None and down is not None:
        per_sigma = (1.0 / Interval.exact(o["sigma"], F64)).to(s)
        if glass is not None:
            d = (up + down) * 0.5 - g
            rho = _abs(d) * _abs(d) * (per_sigma * 2.0)
            glass = rho + beta3 * (glass - rho)
        if hessian is not None:
            slope = _abs((up - down) * (per_sigma * 0.5))
            if o["hess"] == "abs":
                x = slope + l2
            elif o["hess"] == "rms":
                x = slope * slope + (Interval.exact(o["l2"], F64) * o["l2"]).to(s)
            else:
                x = -(((up - g) * per_sigma) * ((down - g) * per_sigma))
            hessian = x + beta3 * (hessian - x)
    v = beta2 * v + (1.0 - Interval.exact(o["beta2"], F64)).to(s) * (g * g)
    center, ahead = Interval.exact(a["center"], s), Interval.exact(a["lookahead"], s)
    if o["l1"] or o["l2"]:
        g = (g + l1 * np.where(a["lookahead"] < 0, -1.0, 1.0)) + l2 * ahead
    first = g + beta1 * (before - g)
    found = {"exp_avg": first, "exp_avg_sq": v, "glass": glass, "hessian": hessian}
    if o["move"]:
        step = _steps(first, glass, _curvature(hessian, o["hess"], l2, s), v, o, s)[-1]
        if o["limit"] == "fixed":
            up_, down_ = step, -step
            low, high = np.where(first.low < 0, down_.low, up_.low), np.where(first.high < 0, down_.high, up_.high)
            low = np.where((first.low < 0) & (first.high >= 0), down_.low, low)
            delta = -Interval(low, high, s)
        else:
            delta = -(first * step)
        ahead = center + _as(o["omega"], s) * delta
        center = center + _as(o["phi"], s) * delta
    found |= {"center": center, "lookahead": ahead, "p": center.to(STORAGE[fmt])}
    return {k: x for k, x in found.items() if x is not None}


def _alice_streams(o: Options) -> dict[str, str]:
    o = {**ALICE, **o}
    probes = {"g_plus": "r", "g_minus": "r"} if o["sample"] else {}
    estimates = [k for k, used in (("glass", o["glass"]), ("hessian", o["hess"] != "zero")) if used]
    ahead = "rw" if o["l1"] or o["l2"] else "w"
    return {
        **dict.fromkeys(("exp_avg", "exp_avg_sq", "center"), "rw"),
        **dict.fromkeys(estimates, "rw" if o["sample"] else "r"),
        **probes,
        "p": "w",
        "g": "r",
        "lookahead": ahead,
    }


# ---- Alice in 8 bits ------------------------------------------------------------------------------------------------


def _signed(name: str, o: Options) -> bool:
    return name == "exp_avg" or (name == "hessian" and {**ALICE, **o}["hess"] == "debiased")


def _make_alice8(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    a: Arrays = {}
    for k, x in _make_alice(n, fmt, rng, o).items():
        a[k] = x
        if k in _AVERAGES:
            a[f"{k}_scale"] = None
            if x is not None:
                out = Codes(empty(n, np.uint8), empty(-(-n // 32), np.float32))
                a[k], a[f"{k}_scale"], _ = quantize(x, signed=_signed(k, o), out=out)
    return a


def _coded(a: Arrays) -> Arrays:
    """The arrays as the public functions take them; lists too."""
    kept = {k: x for k, x in a.items() if not k.endswith("_scale")}
    for k in _AVERAGES:
        if isinstance(a[k], list):
            kept[k] = [Codes(c, s) for c, s in zip(a[k], a[f"{k}_scale"], strict=True)]
        elif a[k] is not None:
            kept[k] = Codes(a[k], a[f"{k}_scale"])
    return kept


def _run_alice8(a: Arrays, o: Options, fmt: str) -> Arrays:
    alice_step(**_coded(a), **_numbers(o))
    return {k: x for k, x in a.items() if x is not None and k not in ("g", "g_plus", "g_minus")}


def _plan_alice8(a: Arrays, o: Options, fmt: str) -> Callable[[], None]:
    numbers = _numbers(o)
    plan = AlicePlan(**_coded(a), tensor=numbers.pop("tensor", 0))
    return lambda: plan.step(**numbers)


def _true_alice8(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    decoded = {k: None if a[k] is None else codes.widened(a[k], a[f"{k}_scale"], "8", _signed(k, o)) for k in _AVERAGES}
    found = _alice_intervals(a, decoded, o, fmt)
    sampled = {**ALICE, **o}["sample"]
    for k in _AVERAGES:
        if k in found and (sampled or k not in ("glass", "hessian")):
            stored = codes.narrowed(found[k], "8", _signed(k, o))
            found |= {k: stored["codes"], f"{k}_scale": stored["scale"]}
        elif k in found:
            found |= {k: a[k], f"{k}_scale": a[f"{k}_scale"]}
    return found


def _alice8_streams(o: Options) -> dict[str, str]:
    found = _alice_streams(o)
    return found | {f"{k}_scale": found[k] for k in _AVERAGES if k in found}


def _make_model(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    a = _make_alice(n, fmt, rng, o)
    return {k: a[k] for k in ("exp_avg", "glass", "hessian", "exp_avg_sq")}


_MODEL = ("eps", "l2", "lr_min", "lr_max", "hess", "limit")


def _run_model(a: Arrays, o: Options, fmt: str) -> Arrays:
    lists: Any = {k: None if x is None else [x] for k, x in a.items()}
    numbers: dict[str, Any] = {k: {**ALICE, **o}[k] for k in _MODEL}
    inside, change = alice_model(**lists, fraction=o["fraction"], **numbers)
    return {"out": np.array([float(inside), change])}


def _true_model(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    o, s = {**ALICE, **o}, ARITHMETIC[fmt]
    first, glass, hessian, v = (
        None if a[k] is None else Interval.exact(a[k], s) for k in ("exp_avg", "glass", "hessian", "exp_avg_sq")
    )
    assert first is not None
    assert v is not None
    h = _curvature(hessian, o["hess"], _as(o["l2"], s), s)
    x, low, high, step = _steps(first, glass, h, v, o, s)
    surely = (x.low > low.high) & (x.high < high.low)
    perhaps = (x.high > low.low) & (x.low < high.high)
    size = _as(o["fraction"], s) * (step if o["limit"] == "fixed" else _abs(first) * step)
    change = h * 0.5 * size * size - _abs(first) * size
    if glass is not None:
        change = change + _as(math.sqrt(2 / (3 * math.pi)), s) * glass.sqrt() * (size * size.sqrt())
    magnitude = np.maximum(abs(change.low), abs(change.high))
    terms = [(surely, perhaps, np.zeros(1)), (change.low, change.high, magnitude)]
    return {"out": _total(terms, a["exp_avg"].size)}


# ---- sums and moments of probes -------------------------------------------------------------------------------------


def _make_probe(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {k: _normals(n, fmt, rng, 0.3) for k in ("g", "g_plus", "g_minus")}


def _run_sums(a: Arrays, o: Options, fmt: str) -> Arrays:
    return {"out": glass_sums(a["g"], a["g_plus"], a["g_minus"])}


def _true_sums(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    c, up, down = (decode(a[k], fmt).astype(np.longdouble) for k in ("g", "g_plus", "g_minus"))
    rounding = 4 * 2.0**-53 * (abs(c) + abs(up) + abs(down))  # of a difference
    terms = []
    for value, x, y in (
        (((up + down) / 2 - c) ** 2, abs((up + down) / 2 - c), None),
        (((up - c) ** 2 + (down - c) ** 2) / 2, abs(up - c), abs(down - c)),
        (-(up - c) * (down - c), abs(up - c), abs(down - c)),
        (c * c, abs(c), None),
    ):
        y = x if y is None else y
        error = 2 * rounding * (x + y) + 4 * 2.0**-53 * (x * x + y * y) + 2 * rounding**2
        terms.append((value - error, value + error, x * x + y * y))
    return {"out": _total(terms, c.size)}


def _make_moments(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    state = _state(fmt)
    moments = {k: _squares(n, state, rng, 1.0) for k in ("rho", "rho_m2", "h2", "h2_m2")}
    return _make_probe(n, fmt, rng, o) | moments


def _run_moments(a: Arrays, o: Options, fmt: str) -> Arrays:
    glass_moments_(**a, **o)
    return {k: a[k] for k in ("rho", "rho_m2", "h2", "h2_m2")}


def _true_moments(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    s = ARITHMETIC[fmt]
    c, up, down = (Interval.exact(decode(a[k], fmt), s) for k in ("g", "g_plus", "g_minus"))
    per_sigma, share = ((1.0 / Interval.exact(o[k], F64)).to(s) for k in ("sigma", "sample"))
    d = _abs((up + down) * 0.5 - c)
    found: dict[str, Any] = {}
    for name, x in (("rho", d * d * (per_sigma * 2.0)), ("h2", -(((up - c) * per_sigma) * ((down - c) * per_sigma)))):
        before = x - Interval.exact(a[name], s)
        found[name] = Interval.exact(a[name], s) + before * share
        found[f"{name}_m2"] = Interval.exact(a[f"{name}_m2"], s) + before * (x - found[name])
    return found


# ---- SAM ------------------------------------------------------------------------------------------------------------


def _make_sam(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    p, g = _normals(n, fmt, rng), _normals(n, fmt, rng, 0.3)
    return {"p": p, "g": g, "saved": np.zeros_like(p) if o.get("saves") else None}


def _run_sam(a: Arrays, o: Options, fmt: str) -> Arrays:
    sam_perturb_(**a, **{k: v for k, v in o.items() if k != "saves"})
    return {"p": a["p"], "g": a["g"]} | ({} if a["saved"] is None else {"saved": a["saved"]})


def _true_sam(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    s = ARITHMETIC[fmt]
    w, g = (Interval.exact(decode(a[k], fmt), s) for k in "pg")
    scaled = g
    if o.get("adaptive"):
        t = _abs(w) + _as(o.get("eta", 0.0), s)
        scaled = (t * t) * g
    moved = (w + scaled * _as(o["scale"], s)).to(STORAGE[fmt])
    return {"p": moved, "g": a["p"]} if a["saved"] is None else {"p": moved, "g": a["g"], "saved": a["p"]}


def _make_asam(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"p": _normals(n, fmt, rng), "g": _normals(n, fmt, rng, 0.3)}


def _run_asam(a: Arrays, o: Options, fmt: str) -> Arrays:
    return {"norm": np.array([asam_norm([a["p"]], [a["g"]], eta=o["eta"])])}


def _true_asam(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    w, g = (decode(a[k], fmt).astype(np.longdouble) for k in "pg")
    square = ((abs(w) + np.longdouble(o["eta"])) * g) ** 2
    total = _total([(square * (1 - 2.0**-49), square * (1 + 2.0**-49), square)], w.size)
    return {"norm": Interval(np.maximum(total.low, 0), total.high, F64).sqrt()}


# ---------------------------------------------------------------------------------------------------------------------


def _flops(o: Options) -> int:
    return 30 if {**ALICE, **o}["sample"] else 22


CASES = [
    Case(
        op="alice_lookahead",
        make=_make_lookahead,
        run=_run_lookahead,
        truth=_true_lookahead,
        error="correctly rounded operations",
        variants={
            "plus": {**_KEYS, "scale": 1e-3},
            "minus": {**_KEYS, "scale": -1e-3},
            "itself": {**_KEYS, "scale": 0.0},
            "misaligned": {**_KEYS, "scale": 0.1, "offset": 12_345},
        },
        flops=lambda o: 2,
        streams=lambda o: {"p": "w", "lookahead": "r"},
        sizes=_EDGES,
        rows=(Row("plus", ("f32",), sizes=_FEW),),
    ),
    Case(
        op="alice_step",
        make=_make_alice,
        run=_run_alice,
        truth=_true_alice,
        error=_PLAIN,
        variants={
            "sample": {},
            "quick": {"sample": False},
            "spread": _SPREAD,
            "sgdm": {**_SPREAD, "limit": "sgdm"},
            "fixed": {**_SPREAD, "limit": "fixed", "hess": "abs"},
            "abs": {**_SPREAD, "hess": "abs", "l2": 0.1, "l1": 0.01},
            "rms": {**_SPREAD, "hess": "rms", "l2": 0.1, "grad_scale": 3.0},
            "regularised": {"l1": 0.01, "sample": False, "grad_scale": 3.0},
            "scaled": {**_SPREAD, "grad_scale": 3.0},
            "no glass": {**_SPREAD, "glass": False},
            "no Hessian": {**_SPREAD, "hess": "zero"},
            "warm-up": {"move": False, "beta1": 0.5, "beta2": 0.25, "beta3": 0.0},
        },
        flops=_flops,
        streams=_alice_streams,
        sizes=_SOME,
        rows=(Row("sample", ("f32", "bf16"), sizes=_FEW), Row("quick", ("f32", "bf16"), sizes=_FEW)),
        special=False,
    ),
    Case(
        op="alice_step8",
        make=_make_alice8,
        run=_run_alice8,
        plan=_plan_alice8,
        truth=_true_alice8,
        error=f"{_PLAIN}; averages decoded within 2^-20, encoded up or down at random by 9 bits",
        variants={
            "sample": {**_SPREAD, **_KEYS},
            "quick": {"sample": False},
            "fixed": {**_SPREAD, "limit": "fixed", "hess": "abs", "l2": 0.1, "l1": 0.01},
            "rms": {**_SPREAD, **_KEYS, "hess": "rms", "l2": 0.1, "grad_scale": 3.0, "limit": "sgdm"},
            "no glass": {**_SPREAD, "glass": False},
            "no Hessian": {**_SPREAD, "hess": "zero", "sample": False},
            "warm-up": {"move": False, "beta1": 0.5, "beta2": 0.25, "beta3": 0.0},
        },
        flops=lambda o: _flops(o) + 4 * 9 + 2,
        streams=_alice8_streams,
        sizes=(*_SOME, 31, 32, 33, 255, 256, 257, 1025),
        rows=(Row("sample", ("f32", "bf16"), sizes=_FEW), Row("quick", ("f32", "bf16"), sizes=_FEW)),
        special=False,
        granularity=1024,
    ),
    Case(
        op="alice_model",
        make=_make_model,
        run=_run_model,
        truth=_true_model,
        error=f"terms as in alice_step; {_SUMS}",
        variants={
            "debiased": {**_SPREAD, "fraction": 0.1, "l2": 0.5},
            "abs": {**_SPREAD, "hess": "abs", "fraction": 1.0, "limit": "sgdm"},
            "rms": {**_SPREAD, "hess": "rms", "fraction": 1.0, "limit": "fixed", "l2": 0.5},
            "no glass": {**_SPREAD, "glass": False, "fraction": 0.5},
            "no Hessian": {**_SPREAD, "hess": "zero", "fraction": 1.0},
        },
        flops=lambda o: 25,
        streams=lambda o: {"exp_avg": "r", "glass": "r", "hessian": "r", "exp_avg_sq": "r"},
        sizes=_SOME,
        rows=(Row("debiased", ("f32",), sizes=_FEW[1:]),),
        special=False,
    ),
    Case(
        op="glass_sums",
        make=_make_probe,
        run=_run_sums,
        truth=_true_sums,
        error=f"a few roundings of double in each term; {_SUMS}",
        variants={"default": {}},
        flops=lambda o: 16,
        streams=lambda o: dict.fromkeys(("g", "g_plus", "g_minus"), "r"),
        rows=(Row("default", ("f32",), sizes=_FEW[1:]),),
        special=False,
    ),
    Case(
        op="glass_moments",
        make=_make_moments,
        run=_run_moments,
        truth=_true_moments,
        error=_PLAIN,
        variants={"default": {"sample": 5, "sigma": 0.01}, "first": {"sample": 1, "sigma": 3.0}},
        flops=lambda o: 22,
        streams=lambda o: (
            dict.fromkeys(("g", "g_plus", "g_minus"), "r") | dict.fromkeys(("rho", "rho_m2", "h2", "h2_m2"), "rw")
        ),
        sizes=_EDGES,
        rows=(Row("default", ("f32",), sizes=_FEW[1:]),),
        special=False,
    ),
    Case(
        op="sam_perturb",
        make=_make_sam,
        run=_run_sam,
        truth=_true_sam,
        error=_PLAIN,
        variants={
            "sam": {"scale": 0.05},
            "asam": {"scale": 0.05, "adaptive": True, "eta": 0.01},
            "saved": {"scale": -0.05, "saves": True},
            "asam saved": {"scale": 0.05, "adaptive": True, "saves": True},
        },
        flops=lambda o: 5 if o.get("adaptive") else 2,
        streams=lambda o: {"p": "rw", "g": "r", "saved": "w"} if o.get("saves") else {"p": "rw", "g": "rw"},
        rows=(Row("sam", ("f32",), sizes=_FEW), Row("asam", ("f32", "bf16"), sizes=_FEW[1:])),
    ),
    Case(
        op="asam_sum_squares",
        make=_make_asam,
        run=_run_asam,
        truth=_true_asam,
        error=f"a few roundings of double in each term; {_SUMS}",
        variants={"plain": {"eta": 0.0}, "shifted": {"eta": 0.01}},
        flops=lambda o: 5,
        streams=lambda o: {"p": "r", "g": "r"},
        rows=(Row("plain", ("f32",), sizes=_FEW[1:]),),
        special=False,
    ),
]
