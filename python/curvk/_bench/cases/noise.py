"""The noise stream: its truth is written from curvk/noise.h in 64-bit integers and NumPy's logarithms and sines."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from ...kernels import noise
from ..interval import ARITHMETIC, F32, F64, STORAGE, Interval
from ..registry import SIZES, Array, Arrays, Case, Contender, Factory, Options, Row, optional
from ..storage import decode, empty, sample

ALL = ("f32", "f64", "bf16", "f16")
ERROR = {"normal": 1.5e-6, "normal_fast": 1e-4, "rademacher": 0.0, "uniform": 0.0}
"""Largest distance of a float32 noise value from its formula in exact arithmetic."""

_LOW = np.uint64(0xFFFFFFFF)
_PER_TILE = {"normal": 32, "normal_fast": 64, "rademacher": 1024, "uniform": 32}


def philox(counter: list[Array], key: tuple[int, int]) -> list[Array]:
    """Philox4x32-10 in 64-bit integers, by its definition; the words of many counters at once."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0), second & _LOW
        c2, c3 = (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1), first & _LOW
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def exact(n: int, seed: int, draw: int, tensor: int, dist: str, offset: int = 0) -> Array:
    """Noise values by their formulas, float64."""
    span = _PER_TILE[dist]
    tiles = np.arange(offset // span, (offset + n) // span + 1)
    blocks = (tiles[:, None] * 8 + np.arange(8)).astype(np.uint64)
    counter = [blocks & _LOW, blocks >> np.uint64(32), np.full_like(blocks, tensor), np.full_like(blocks, draw)]
    w = philox(counter, (seed % 2**32, seed >> 32))
    words = np.concatenate([np.stack(w[:2], -1).reshape(-1, 16), np.stack(w[2:], -1).reshape(-1, 16)], axis=1)
    if dist == "rademacher":
        z = 1.0 - 2.0 * ((words[:, :, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1))
    elif dist == "uniform":
        z = (words >> np.uint64(8)) * 2.0**-24
    else:
        fine = dist == "normal"
        # float32(word) is part of the formula: near 1 the kernel's u must be the rounded one.
        u = (
            words[:, :16].astype(np.float32).astype(float) * 2.0**-32 + 2.0**-33
            if fine
            else (words % 2**16 + 0.5) / 2**16
        )
        turn = words[:, 16:] if fine else words & np.uint64(0xFFFF0000)
        fraction = ((turn << np.uint64(2)) & _LOW).astype(np.uint32).view(np.int32).astype(float) / 2**31
        radius = np.sqrt(-2 * np.log(u.astype(np.float32).astype(float))) * np.where(turn >> np.uint64(31), -1, 1)
        pair = radius * np.cos(fraction * math.pi / 4), radius * np.sin(fraction * math.pi / 4)
        swap = (turn >> np.uint64(30)) % 2 == 1
        z = np.concatenate([np.where(swap, pair[1], pair[0]), np.where(swap, pair[0], pair[1])], axis=1)
    return np.asarray(z.reshape(-1)[offset % span :][:n])


def within(n: int, o: Options, draw: int, arithmetic: Any) -> Interval:
    """The noise with its error, as the kernel's arithmetic sees it."""
    z = exact(n, o["seed"], draw, o["tensor"], o["dist"], o.get("offset", 0)).astype(arithmetic.wide)
    return Interval(z - ERROR[o["dist"]], z + ERROR[o["dist"]], arithmetic)


STREAM: Options = {"seed": 0x0123456789ABCDEF, "tensor": 7}


def _keys(o: Options) -> dict[str, Any]:
    return {"seed": o["seed"], "tensor": o["tensor"], "dist": o["dist"], "offset": o.get("offset", 0)}


def _variants(**more: Options) -> dict[str, Options]:
    plain = {d: {**STREAM, "dist": d, "draws": [42], "coefs": [1e-3]} for d in noise.DISTRIBUTIONS}
    return {**plain, **{name: {**plain["normal"], **options} for name, options in more.items()}}


_PHILOX_FLOPS, _FLOPS = 15, {"normal": 30, "normal_fast": 26, "rademacher": 1, "uniform": 2}


def _flops(o: Options) -> int:
    """Integer and floating-point operations of the noise, then two to apply it."""
    words = {"normal": 1.0, "normal_fast": 0.5, "rademacher": 1 / 32, "uniform": 1.0}[o["dist"]]
    return round(len(o["draws"]) * (_PHILOX_FLOPS * words + _FLOPS[o["dist"]] + 2))


# ---- fill -----------------------------------------------------------------------------------------------------------


def _make_out(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"out": sample(n, fmt, rng, lambda rng, n: rng.standard_normal(n))}


def _run_fill(a: Arrays, o: Options, fmt: str) -> Arrays:
    return {"out": noise.fill(a["out"], draw=o["draws"][0], **_keys(o))}


def _true_fill(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    return {"out": within(a["out"].size, o, o["draws"][0], ARITHMETIC[fmt]).to(STORAGE[fmt])}


def _numpy_fill(a: Arrays, o: Options, fmt: str) -> Contender | None:
    if o["dist"] != "normal":
        return None
    generator, dtype = np.random.Generator(np.random.Philox(0)), a["out"].dtype
    return Contender("numpy Philox", lambda: generator.standard_normal(out=a["out"], dtype=dtype), other=True)


def _torch_fill(a: Arrays, o: Options, fmt: str) -> Contender | None:
    torch = optional("torch")
    if torch is None or o["dist"] != "normal":
        return None
    out = torch.from_numpy(a["out"])
    return Contender("torch normal_", lambda: out.normal_(), other=True)


# ---- sums of draws --------------------------------------------------------------------------------------------------


def _make_p(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"p": sample(n, fmt, rng, lambda rng, n: rng.standard_normal(n))}


def _make_scratch(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    a = _make_p(n, fmt, rng, o)
    return {**a, "out": np.zeros_like(a["p"])}


def _seeds(o: Options) -> dict[str, Any]:
    rest = {"decay": o.get("decay", 0.0), "threshold": o.get("threshold", math.inf)}
    return {**_keys(o), "draws": o["draws"], "coefs": o["coefs"], **rest}


def _run_axpy(a: Arrays, o: Options, fmt: str) -> Arrays:
    noise.axpy_seeds_(a["p"], **_seeds(o))
    return {"p": a["p"]}


def _run_scratch(a: Arrays, o: Options, fmt: str) -> Arrays:
    return {"out": noise.scratch(a["p"], a["out"], **_seeds(o))}


def _true_sum(a: Arrays, o: Options, fmt: str) -> Interval:
    s = ARITHMETIC[fmt]
    p = Interval.exact(decode(a["p"], fmt), s)
    moved = p * (1 - Interval.exact(o.get("decay", 0.0), F64)).to(s)
    terms = [
        Interval.exact(coef, F64).to(s) * within(a["p"].size, o, draw, s)
        for draw, coef in zip(o["draws"], o["coefs"], strict=True)
    ]
    fours = [reduce(add, terms[j : j + 4]) for j in range(0, len(terms), 4)]
    total = reduce(add, fours) if fours else None
    result = moved if total is None else moved + total
    result = result.to(STORAGE[fmt])
    kept = abs(decode(a["p"], fmt)) > (np.float32(o["threshold"]) if "threshold" in o else math.inf)
    low, high = np.where(kept, p.low, result.low), np.where(kept, p.high, result.high)
    return Interval(low, high, STORAGE[fmt], result.loose & ~kept)


def _numpy_add(a: Arrays, o: Options, fmt: str) -> Contender | None:
    if o["dist"] != "normal" or len(o["draws"]) != 1:
        return None
    generator, p = np.random.Generator(np.random.Philox(0)), a["p"]
    z, scale = np.empty_like(p), p.dtype.type(o["coefs"][0])

    def step() -> None:
        generator.standard_normal(out=z, dtype=p.dtype)
        np.multiply(z, scale, out=z)
        np.add(p, z, out=p)

    return Contender("numpy Philox + add", step, other=True)


def _torch_add(a: Arrays, o: Options, fmt: str) -> Contender | None:
    torch = optional("torch")
    if torch is None or o["dist"] != "normal" or len(o["draws"]) != 1:
        return None
    p = torch.from_numpy(a["p"])

    def step() -> None:  # the reference's operations
        z = torch.normal(mean=0, std=1, size=p.size(), dtype=p.dtype)
        p.copy_(p + 1 * z * o["coefs"][0])

    return Contender("torch, MeZO's operations", step, other=True)


# ---- inner products -------------------------------------------------------------------------------------------------


def _make_v(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"v": sample(n, fmt, rng, lambda rng, n: rng.standard_normal(n))}


def _run_dot(a: Arrays, o: Options, fmt: str) -> Arrays:
    return {"out": noise.dot_seeds(a["v"], draws=o["draws"], **_keys(o))}


def _true_dot(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    v = decode(a["v"], fmt).astype(np.longdouble)
    bounds = []
    for draw in o["draws"]:
        z = exact(v.size, o["seed"], draw, o["tensor"], o["dist"], o.get("offset", 0))
        value, size = np.dot(v, z), np.dot(abs(v), abs(z))
        chunks = -(-v.size // 32768)
        bounds.append((value, ERROR[o["dist"]] * abs(v).sum() + (32768 / 16 + 16 + chunks) * 2.0**-53 * size))
    value, error = (np.array(x) for x in zip(*bounds, strict=True))
    return {"out": Interval(value - error, value + error, F64)}


# ---- the grid -------------------------------------------------------------------------------------------------------

_Q = 2.0**-20


def _make_grid(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"p": sample(n, fmt, rng, lambda rng, n: np.rint(rng.standard_normal(n) / _Q) * _Q)}


def _grid_options(o: Options) -> dict[str, Any]:
    names = ("scale", "steps", "coef", "decay", "update")
    return {**_keys(o), "draw": o["draws"][0], "quantum": _Q, **{k: o[k] for k in names if k in o}}


def _run_grid(a: Arrays, o: Options, fmt: str) -> Arrays:
    noise.grid_axpy_(a["p"], **_grid_options(o))
    return {"p": a["p"]}


def _monotone(x: Interval, f: Callable[[Array], Array]) -> Interval:
    return Interval(f(x.low), f(x.high), x.precision, x.loose)


def _true_grid(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    n = a["p"].size
    z = within(n, o, o["draws"][0], F32)
    p = Interval.exact(a["p"], F32)
    move = _monotone(Interval.exact(o.get("scale", 0.0) / _Q, F64).to(F32) * z, np.rint)
    x = p + move * (o.get("steps", 1) * _Q)
    if o.get("update"):
        rounding = {**o, "tensor": o["tensor"] ^ (1 << 28), "dist": "uniform"}
        coef, decay = (Interval.exact(o.get(k, 0.0) / _Q, F64).to(F32) for k in ("coef", "decay"))
        drift = (coef * z - decay * x) + within(n, rounding, o["draws"][0], F32)
        x = x + _monotone(drift, np.floor) * _Q
    return {"p": x}


# ---- the generator --------------------------------------------------------------------------------------------------


def _make_philox(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    counter = rng.integers(0, 2**32, 4 * n)
    return {"counter": counter, "key": rng.integers(0, 2**32, 2), "out": empty(4 * n, np.int64)}


def _run_philox(a: Arrays, o: Options, fmt: str) -> Arrays:
    from ..._backend import call

    call("philox4x32", (a["counter"], a["key"], a["out"]), (a["out"].size // 4,))
    return {"out": a["out"]}


def _true_philox(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    words = philox(list(a["counter"].reshape(-1, 4).T), (int(a["key"][0]), int(a["key"][1])))
    return {"out": np.stack(words, -1).reshape(-1).astype(np.int64)}


# ---------------------------------------------------------------------------------------------------------------------

_SUMS = _variants(
    decayed={"decay": 0.01},
    masked={"threshold": 0.7, "decay": 0.1},
    seven={"draws": [3, 2**32 - 1, 0, 5, 6, 7, 8], "coefs": [0.5, -0.25, 0.125, 0.3, 0.7, -0.1, 1e-3]},
    misaligned={"offset": 12_345, "tensor": 2**32 - 1},
    none={"draws": [], "coefs": []},
    signs64={"dist": "rademacher", "draws": list(range(64)), "coefs": [(-1) ** k / (k + 1) for k in range(64)]},
)
_FEW = (10_000, 1_000_000, 10_000_000)
_EDGES = (*SIZES, 31, 32, 33, 127, 128, 129, 511, 512, 513, 4095, 4096, 4097)
_WORDS = "normal within 1.5e-6 of Box-Muller, normal_fast within 1e-4, others exact; then correctly rounded operations"
_PEERS: dict[str, Factory] = {"torch, MeZO's operations": _torch_add, "numpy Philox + add": _numpy_add}

CASES = [
    Case(
        op="noise_fill",
        make=_make_out,
        run=_run_fill,
        truth=_true_fill,
        error=_WORDS,
        variants=_variants(misaligned={"offset": 12_345}, far={"offset": 2**40 + 7}),
        flops=_flops,
        streams=lambda o: {"out": "w"},
        sizes=_EDGES,
        peers={"torch normal_": _torch_fill, "numpy Philox": _numpy_fill},
        rows=(Row("normal", ALL, sizes=_FEW), *(Row(d, ("f32",), sizes=_FEW) for d in noise.DISTRIBUTIONS[1:])),
        special=False,
    ),
    Case(
        op="axpy_seeds",
        make=_make_p,
        run=_run_axpy,
        truth=lambda a, o, fmt: {"p": _true_sum(a, o, fmt)},
        error=_WORDS,
        variants=_SUMS,
        flops=_flops,
        streams=lambda o: {"p": "rw"},
        sizes=_EDGES,
        peers=_PEERS,
        rows=(
            Row("normal", ("f32",), sizes=(*_FEW, 100_000_000), headline=True),
            Row("rademacher", ("f32",), sizes=(*_FEW, 100_000_000), headline=True),
            Row("normal", ("f64", "bf16", "f16"), sizes=_FEW[1:]),
            Row("normal_fast", ("f32",), sizes=_FEW[1:]),
            Row("signs64", ("f32",), sizes=_FEW[1:]),
        ),
    ),
    Case(
        op="noise_scratch",
        make=_make_scratch,
        run=_run_scratch,
        truth=lambda a, o, fmt: {"out": _true_sum(a, o, fmt)},
        error=_WORDS,
        variants={k: o for k, o in _SUMS.items() if k != "signs64"},
        flops=_flops,
        streams=lambda o: {"p": "r", "out": "w"},
        rows=(Row("normal", ("f32",), sizes=_FEW[1:]), Row("rademacher", ("f32",), sizes=_FEW[1:])),
    ),
    Case(
        op="dot_seeds",
        make=_make_v,
        run=_run_dot,
        truth=_true_dot,
        error="the noise's error times |v|, and double sums of 16 lanes over chunks of 32,768 elements",
        variants=_variants(three={"draws": [3, 2**32 - 1, 0]}, misaligned={"offset": 12_345}),
        flops=_flops,
        streams=lambda o: {"v": "r"},
        rows=(Row("normal", ("f32",), sizes=_FEW[1:]), Row("rademacher", ("f32",), sizes=_FEW[1:])),
        special=False,
    ),
    Case(
        op="noise_grid",
        make=_make_grid,
        run=_run_grid,
        truth=_true_grid,
        error="correctly rounded operations, which are exact on the grid, about the noise's own error",
        variants=_variants(
            back={"scale": 1e-3, "steps": -2},
            updated={"scale": 1e-3, "coef": 3e-3, "decay": 0.01, "update": True, "offset": 999},
        ),
        flops=_flops,
        streams=lambda o: {"p": "rw"},
        sizes=_EDGES,
        rows=(Row("back", ("f32",), sizes=_FEW[1:]), Row("updated", ("f32",), sizes=_FEW[1:])),
        special=False,
    ),
    Case(
        op="philox4x32",
        make=_make_philox,
        run=_run_philox,
        truth=_true_philox,
        error="exact",
        variants={"default": {}},
        flops=lambda o: 60,
        streams=lambda o: {"counter": "r", "out": "w"},
        special=False,
    ),
]
