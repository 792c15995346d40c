"""Gram products. Their truth is the definition in float64 or longdouble, with the bounds of curvk/gram.h.

A case's n is the number of rows of X; Z has 37, and the arrays travel flat, as the tests of the registry want them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..._backend import call
from ..interval import ARITHMETIC, Interval
from ..registry import Array, Arrays, Case, Options
from ..storage import empty, sample

_CENTERS, _SCALE = 37, 0.7
_SIZES = (0, 1, 5, 6, 7, 11, 12, 13, 16, 17, 100)
_WHY = "tiles of fused multiplications, with sums in as many lanes as a vector has: within the bounds of curvk/gram.h"


def _draw(n: int, fmt: str, rng: np.random.Generator) -> Array:
    return sample(n, fmt, rng, lambda rng, n: rng.standard_normal(n))


def _panels(d: int, dtype: Any) -> tuple[int, int]:
    """Elements of the packed centers and of their norms."""
    width = 128 // np.dtype(dtype).itemsize
    padded = -(-_CENTERS // width) * width
    return padded * d, padded


# ---- packing --------------------------------------------------------------------------------------------------------


def _make_pack(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    """As many centers as the others have, of n features."""
    z = _draw(_CENTERS * n, fmt, rng)
    packed, norms = (empty(k, z.dtype) for k in _panels(n, z.dtype))
    return {"z": z, "packed": packed, "norms": norms, "center": empty(n, z.dtype)}


def _run_pack(a: Arrays, o: Options, fmt: str) -> Arrays:
    d = a["center"].size
    call("gram_pack", (a["z"], a["packed"], a["norms"], a["center"]), (_CENTERS, d, o["centred"]))
    return {k: a[k] for k in ("packed", "norms", "center")}


def _true_pack(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    f = ARITHMETIC[fmt]
    d, width = a["center"].size, 64 // a["z"].itemsize
    z = a["z"].reshape(_CENTERS, d)
    mean = z.astype(np.longdouble).mean(axis=0) if o["centred"] else np.zeros(d, np.longdouble)
    error = _CENTERS * 2.0**-53 * abs(z).max(axis=0, initial=0)
    center = Interval(mean - error, mean + error, f).to(f) if o["centred"] else Interval.exact(mean, f)
    rows = np.zeros((a["norms"].size, d), np.longdouble)
    rows[:_CENTERS] = z

    def laid_out(x: Array) -> Array:
        return np.ascontiguousarray(x.reshape(len(x) // width, width, d).swapaxes(1, 2)).reshape(-1)

    used = np.arange(len(rows))[:, None] < _CENTERS
    low, high = (np.where(used, x, 0) for x in (center.low, center.high))
    shifted = Interval.exact(rows, f) - Interval(low, high, f)
    ends = shifted.low**2, shifted.high**2
    low = np.where(shifted._holds_zero(), 0, np.minimum(*ends)).sum(axis=1)
    high = np.maximum(*ends).sum(axis=1)
    room = 2.0**-50 * max(d, 1)
    packed = Interval(laid_out(shifted.low), laid_out(shifted.high), f)
    norms = Interval(low * (1 - room), high * (1 + room), f).to(f)
    return {"packed": packed, "norms": norms, "center": center}


# ---- products -------------------------------------------------------------------------------------------------------


def _make_product(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d, c = o["d"], o["c"]
    x, z = _draw(n * d, fmt, rng), _draw(_CENTERS * d, fmt, rng)
    packed, norms = (np.empty(k, z.dtype) for k in _panels(d, z.dtype))
    center = np.empty(d, z.dtype)
    centred = o["kernel"] >= 2 and d > 12
    call("gram_pack", (z, packed, norms, center), (_CENTERS, d, int(centred)))
    return {
        "x": x,
        "packed": packed,
        "norms": norms,
        "center": center,
        "w": _draw(_CENTERS * c, fmt, rng),
        "out": _draw(n * c, fmt, rng),
        "keep": empty(n * _CENTERS, z.dtype),
    }


def _run_product(a: Arrays, o: Options, fmt: str) -> Arrays:
    names = ("x", "packed", "norms", "center", "w", "out", "keep")
    n = a["x"].size // o["d"]
    numbers = (n, _CENTERS, o["d"], o["c"], o["kernel"], o["scale"], o["shape"], o["degree"], o["accumulate"])
    call("gram_matvec", tuple(a[k] for k in names), numbers)
    return {"out": a["out"], "keep": a["keep"]}


def _rows(a: Arrays, d: int) -> tuple[Array, Array, Array]:
    """X and Z as the kernel sees them, before it subtracts the center from X, and the center."""
    width = 64 // a["x"].itemsize
    z = a["packed"].reshape(-1, d, width).swapaxes(1, 2).reshape(-1, d)[:_CENTERS]
    return a["x"].reshape(-1, d).astype(np.longdouble), z.astype(np.longdouble), a["center"].astype(np.longdouble)


def _values(number: int, s: Array, o: Options) -> Array:
    """The kernel function of s or q, from the header's list."""
    scale, shape = np.longdouble(o["scale"]), np.longdouble(o["shape"])
    r = scale * np.sqrt(np.maximum(s, 0))
    functions: dict[int, Callable[[], Array]] = {
        0: lambda: s,
        1: lambda: (scale * s + shape) ** o["degree"],
        2: lambda: np.exp(-scale * s),
        3: lambda: np.exp(-r),
        4: lambda: (1 + r) * np.exp(-r),
        5: lambda: (1 + r + r * r / 3) * np.exp(-r),
        6: lambda: (1 + scale * s) ** -shape,
        7: lambda: (1 + scale * s) ** np.longdouble(-0.5),
        8: lambda: np.exp(-scale * s**shape),
        9: lambda: s,
        10: lambda: np.sqrt(s),
    }
    return functions[number]()


def _true_product(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    f = ARITHMETIC[fmt]
    u, d, c, number = 2.0**-f.bits, o["d"], o["c"], o["kernel"]
    x, z, center = _rows(a, d)
    x = x - center
    norms = (x * x).sum(axis=1)[:, None] + (z * z).sum(axis=1)
    if number < 2:
        s = x @ z.T
        error = (d + 2) * u * (abs(x) @ abs(z).T)
    else:
        s = ((x[:, None] - z) ** 2).sum(axis=2)
        lengths = np.sqrt((x * x).sum(axis=1))[:, None] + np.sqrt((z * z).sum(axis=1))
        error = (d + 2) * u * s + 2 * u * lengths * np.sqrt(s)  # of rounding x - center
        if d > 12:
            error = np.where(s < norms / 1024 * (1 - 1e-3), error, error + (2 * d + 6) * u * norms)
    ends = [_values(number, np.maximum(s + k * error, 0) if number >= 2 else s + k * error, o) for k in (-1, 0, 1)]
    low, high = np.minimum.reduce(ends), np.maximum.reduce(ends)
    size = np.maximum(abs(low), abs(high))
    exponent = -np.log(np.maximum(high, 1e-300)) if number in (2, 3, 4, 5, 6, 8) else o["degree"]
    room = 8 * u * (1 + exponent) * size
    low, high = low - room, high + room
    w, old = a["w"].reshape(_CENTERS, c).astype(np.longdouble), a["out"].reshape(-1, c).astype(np.longdouble)
    old = old * o["accumulate"]
    sums = (low + high) / 2 @ w + old
    spread = (high - low) / 2 @ abs(w) + (32 + 2 + 2 + 2) * u * (np.maximum(abs(low), abs(high)) @ abs(w) + abs(old))
    return {
        "keep": Interval(low.reshape(-1), high.reshape(-1), f),
        "out": Interval((sums - spread).reshape(-1), (sums + spread).reshape(-1), f),
    }


def _variants() -> dict[str, Options]:
    plain = {"d": 5, "c": 10, "kernel": 2, "scale": _SCALE, "shape": 0.0, "degree": 0, "accumulate": 0}
    more: dict[str, Options] = {
        "linear": {"kernel": 0},
        "polynomial": {"kernel": 1, "scale": 0.3, "shape": 1.0, "degree": 3},
        "laplacian": {"kernel": 3},
        "matern32": {"kernel": 4},
        "matern52": {"kernel": 5},
        "rational quadratic": {"kernel": 6, "shape": 1.5},
        "imq": {"kernel": 7},
        "exponent": {"kernel": 8, "shape": 0.35},
        "squared distance": {"kernel": 9},
        "distance": {"kernel": 10},
        "norms": {"d": 40, "scale": 0.02, "c": 3},
        "norms, laplacian": {"d": 40, "kernel": 3, "scale": 0.2, "c": 33},
        "one output": {"c": 1, "accumulate": 1},
        "many outputs": {"c": 50, "accumulate": 1},
    }
    return {"gaussian": plain} | {name: {**plain, **o} for name, o in more.items()}


# ---- order statistics -----------------------------------------------------------------------------------------------


def _make_select(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d = o["d"]
    x = _draw(n * d, fmt, rng)
    width = 128 // x.itemsize
    padded = -(-n // width) * width
    packed, norms, center = (np.empty(k, x.dtype) for k in (padded * d, padded, d))
    call("gram_pack", (x, packed, norms, center), (n, d, 0))
    found, counts = np.zeros(n * n, x.dtype), np.zeros(4 * n, np.int64)
    return {"x": x, "packed": packed, "norms": norms, "center": center, "found": found, "counts": counts}


def _run_select(a: Arrays, o: Options, fmt: str) -> Arrays:
    names = ("x", "packed", "norms", "center", "found", "counts")
    n = a["x"].size // o["d"]
    call("gram_select", tuple(a[k] for k in names), (n, n, o["d"], 0, o["low"], o["high"], n))
    return {"found": a["found"], "counts": a["counts"]}


def _true_select(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    """Exact: the squared distances are those of small integers."""
    n = a["x"].size // o["d"]
    x = a["x"].reshape(n, o["d"]).astype(np.float64)
    found, counts = np.zeros((n, n)), np.zeros((n, 4), np.int64)
    for i in range(n):
        q = ((x[i] - x[i + 1 :]) ** 2).sum(axis=1)
        inside = q[(q > o["low"]) & (q < o["high"])]
        found[i, : inside.size] = inside
        counts[i] = [(q < o["low"]).sum(), (q <= o["low"]).sum(), (q < o["high"]).sum(), (q <= o["high"]).sum()]
    return {"found": found.reshape(-1).astype(a["x"].dtype), "counts": counts.reshape(-1)}


def _make_integers(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    a = _make_select(n, fmt, rng, o)
    a["x"] = rng.integers(-3, 4, a["x"].size).astype(a["x"].dtype)
    call("gram_pack", (a["x"], a["packed"], a["norms"], a["center"]), (n, o["d"], 0))
    return a


CASES = [
    Case(
        op="gram_pack",
        make=_make_pack,
        run=_run_pack,
        truth=_true_pack,
        error="means and norms summed in double",
        variants={"as it is": {"centred": 0}, "centred": {"centred": 1}},
        flops=lambda o: 3,
        streams=lambda o: {"z": "r", "packed": "w"},
        sizes=(0, 1, 3, 15, 16, 17, 40),
        special=False,
    ),
    Case(
        op="gram_matvec",
        make=_make_product,
        run=_run_product,
        truth=_true_product,
        error="the bounds of curvk/gram.h",
        variants=_variants(),
        flops=lambda o: _CENTERS * (2 * o["d"] + 2 * o["c"] + 15),
        streams=lambda o: {"x": "r"},
        sizes=_SIZES,
        special=False,
        bits_vary=_WHY,
    ),
    Case(
        op="gram_select",
        make=_make_integers,
        run=_run_select,
        truth=_true_select,
        error="exact for distances that are",
        variants={"middle": {"d": 3, "low": 6.0, "high": 20.0}, "all": {"d": 2, "low": -1.0, "high": 1e30}},
        flops=lambda o: _CENTERS * (3 * o["d"] + 8),
        streams=lambda o: {"x": "r"},
        sizes=_SIZES,
        special=False,
    ),
]
