"""SV-CMA-ES: truth by its formulas over whole arrays, in the wider format, with bounds from sums of magnitudes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels import stein
from ..interval import ARITHMETIC, Interval
from ..registry import Array, Arrays, Case, Options

_SIZES = (0, 1, 2, 3, 7, 33)
_SMALL: Options = {"d": 2, "popsize": 4}
_WIDE: Options = {"d": 7, "popsize": 17}
_VARIANTS = {"small": _SMALL, "line": {"d": 1, "popsize": 2}, "wide": _WIDE, "three": {"d": 3, "popsize": 5}}
_ERROR = "a rounding per operation, sums in index order"


def _dtype(fmt: str) -> Any:
    return np.float32 if fmt == "f32" else np.float64


def _exact(x: Array, fmt: str, *shape: int) -> Array:
    """The array in the wider format."""
    return np.asarray(x).astype(ARITHMETIC[fmt].wide).reshape(shape)


def _about(value: Any, magnitude: Any, roundings: int, fmt: str) -> Interval:
    """What so many roundings of terms of that magnitude leave, flat."""
    f = ARITHMETIC[fmt]
    value, magnitude = (np.ravel(np.asarray(x, f.wide)) for x in (value, magnitude))
    error = magnitude * f.unit * roundings + f.wide(2) ** f.tiny
    return Interval(value - error, value + error, f)


def _normal(rng: np.random.Generator, fmt: str, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(_dtype(fmt)).ravel()


def _positive(rng: np.random.Generator, fmt: str, *shape: int) -> Array:
    return rng.uniform(0.25, 2, shape).astype(_dtype(fmt)).ravel()


# ---- the factor -----------------------------------------------------------------------------------------------------


def _make_factor(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d = o["d"]
    w = np.sort(rng.uniform(0.5, 2, (n, d)), axis=1) * 10.0 ** rng.integers(-9, 9, (n, 1))
    w[::3, 0] *= 1e-3  # below the bound on the condition
    w[1::5] = np.nan  # a particle that is lost
    return {
        "w": np.sort(w, axis=1).astype(_dtype(fmt)).ravel(),
        "B": _normal(rng, fmt, n, d, d),
        "C": _normal(rng, fmt, n, d, d),
        "sigma": _positive(rng, fmt, n),
        "p_c": _normal(rng, fmt, n, d),
        "D": np.zeros(n * d, _dtype(fmt)),
        "A": np.zeros(n * d * d, _dtype(fmt)),
    }


def _run_factor(a: Arrays, o: Options, fmt: str) -> Arrays:
    d = o["d"]
    w, p_c, D = (a[name].reshape(-1, d) for name in ("w", "p_c", "D"))
    B, C, A = (a[name].reshape(-1, d, d) for name in "BCA")
    if len(w):
        stein.factor(w, B, C, a["sigma"], p_c, condition=o["condition"], renormalise=o["renormalise"], out=(D, A))
    return {name: a[name] for name in ("C", "sigma", "p_c", "D", "A")}


def _true_factor(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    d = o["d"]
    n = a["sigma"].size
    w, p_c, sigma = _exact(a["w"], fmt, n, d), _exact(a["p_c"], fmt, n, d), _exact(a["sigma"], fmt, n, 1)
    B, C = (_exact(a[name], fmt, n, d, d) for name in "BC")
    power = np.ones((n, 1), w.dtype)
    if o["renormalise"]:
        mean = w.mean(1, keepdims=True)
        power = np.where(np.isfinite(mean), 2.0 ** np.floor(np.log2(np.where(np.isfinite(mean), mean, 1)) / 2), 1)
        w, C, p_c, sigma = w / power**2, C / power[:, :, None] ** 2, p_c / power, sigma * power
    lift = np.maximum(w[:, -1:] / w.dtype.type(_dtype(fmt)(o["condition"])) - w[:, :1], 0)
    lift = np.where(np.isnan(lift), 0, lift)
    C = C + lift[:, :, None] * np.eye(d)
    D = np.sqrt(w + lift)
    A = D[:, :, None] * B.transpose(0, 2, 1)
    return {
        "C": _about(C, abs(C) + lift[:, :, None] * 2, 4, fmt),
        "sigma": Interval.exact(sigma.ravel(), ARITHMETIC[fmt]),
        "p_c": Interval.exact(p_c.ravel(), ARITHMETIC[fmt]),
        "D": _about(D, D + lift / np.where(D > 0, D, 1), 6, fmt),
        "A": _about(A, abs(B.transpose(0, 2, 1)) * (D + lift / np.where(D > 0, D, 1))[:, :, None], 8, fmt),
    }


# ---- the samples ----------------------------------------------------------------------------------------------------


def _make_sample(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d, popsize = o["d"], o["popsize"]
    return {
        "x": _normal(rng, fmt, n, d),
        "sigma": _positive(rng, fmt, n),
        "A": _normal(rng, fmt, n, d, d),
        "z": _normal(rng, fmt, n, popsize, d),
        "y": np.zeros(n * popsize * d, _dtype(fmt)),
        "candidates": np.zeros(n * popsize * d, _dtype(fmt)),
    }


def _run_sample(a: Arrays, o: Options, fmt: str) -> Arrays:
    d, popsize = o["d"], o["popsize"]
    z, y, candidates = (a[name].reshape(-1, popsize, d) for name in ("z", "y", "candidates"))
    if len(z):
        stein.sample(a["x"].reshape(-1, d), a["sigma"], a["A"].reshape(-1, d, d), z, out=(y, candidates))
    return {"y": a["y"], "candidates": a["candidates"]}


def _true_sample(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    d, popsize = o["d"], o["popsize"]
    n = a["sigma"].size
    z, A = _exact(a["z"], fmt, n, popsize, d), _exact(a["A"], fmt, n, d, d)
    x, sigma = _exact(a["x"], fmt, n, 1, d), _exact(a["sigma"], fmt, n, 1, 1)
    y, magnitude = z @ A, abs(z) @ abs(A)
    return {
        "y": _about(y, magnitude, d + 2, fmt),
        "candidates": _about(x + sigma * y, abs(x) + sigma * magnitude, d + 4, fmt),
    }


# ---- selection ------------------------------------------------------------------------------------------------------


def _make_shift(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d, popsize = o["d"], o["popsize"]
    values = rng.integers(-3, 3, (n, popsize)).astype(float)  # with ties
    values[rng.random((n, popsize)) < 0.2] = np.nan
    values[rng.random((n, popsize)) < 0.1] = np.inf
    values[rng.random((n, popsize)) < 0.1] = -np.inf
    values[2::4] = np.nan
    return {
        "y": _normal(rng, fmt, n, popsize, d),
        "values": values.ravel(),
        "weights": stein.Rates(d, popsize).weights.astype(_dtype(fmt)),
        "order": np.zeros(n * popsize, np.int64),
        "shift": np.zeros(n * d, _dtype(fmt)),
    }


def _run_shift(a: Arrays, o: Options, fmt: str) -> Arrays:
    d, popsize = o["d"], o["popsize"]
    y, values, order = a["y"].reshape(-1, popsize, d), a["values"].reshape(-1, popsize), a["order"].reshape(-1, popsize)
    if len(y):
        stein.shift(y, values, a["weights"], out=(order, a["shift"].reshape(-1, d)))
    return {"order": a["order"], "shift": a["shift"]}


def _true_shift(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    d, popsize = o["d"], o["popsize"]
    mu = popsize // 2
    values = a["values"].reshape(-1, popsize)
    n = len(values)
    order = np.argsort(np.where(np.isnan(values), np.inf, -values), axis=1, kind="stable")
    nan_last = np.argsort(np.isnan(np.take_along_axis(values, order, 1)), axis=1, kind="stable")
    order = np.take_along_axis(order, nan_last, 1)  # -inf and NaN shared a key
    lost = np.isnan(values).all(1)
    y, weights = _exact(a["y"], fmt, n, popsize, d), _exact(a["weights"], fmt, popsize)[:mu, None]
    best = np.take_along_axis(y, order[:, :mu, None], 1) * ~lost[:, None, None]
    order[lost] = -1
    return {"order": order.ravel(), "shift": _about((weights * best).sum(1), (weights * abs(best)).sum(1), mu + 1, fmt)}


# ---- repulsion ------------------------------------------------------------------------------------------------------


def _make_center(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d = o["d"]
    x = (rng.standard_normal((n, d)) + 100).astype(_dtype(fmt)).ravel()
    return {"x": x, "centred": np.zeros_like(x), "columns": np.ones(n * (d + 2), _dtype(fmt))}


def _run_center(a: Arrays, o: Options, fmt: str) -> Arrays:
    d = o["d"]
    x, centred, columns = a["x"].reshape(-1, d), a["centred"].reshape(-1, d), a["columns"].reshape(-1, d + 2)
    if len(x):
        stein.center(x, out=(centred, columns))
    return {"centred": a["centred"], "columns": a["columns"]}


def _true_center(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    d, n = o["d"], a["x"].size // o["d"]
    if n == 0:
        return {"centred": _about([], [], 0, fmt), "columns": _about([], [], 0, fmt)}
    x = _exact(a["x"], fmt, n, d)
    mean, double = x.mean(0), n * 2.0**-52 / ARITHMETIC[fmt].unit
    centred, magnitude = x - mean, abs(mean) * (1 + double) + abs(x - mean)
    columns, wide = np.ones((n, d + 2), x.dtype), np.zeros((n, d + 2), x.dtype)
    columns[:, :d], wide[:, :d] = centred, magnitude
    return {"centred": _about(centred, magnitude, 3, fmt), "columns": _about(columns, wide, 3, fmt)}


def _make_repel(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d = o["d"]
    return {
        "centred": _normal(rng, fmt, n, d),
        "products": _normal(rng, fmt, n, d + 2),
        "repulsion": np.zeros(n * d, _dtype(fmt)),
    }


def _run_repel(a: Arrays, o: Options, fmt: str) -> Arrays:
    d = o["d"]
    x, products, out = (a[k].reshape(-1, c) for k, c in (("centred", d), ("products", d + 2), ("repulsion", d)))
    if len(x):
        stein.repel(x, products, weight=0.3, out=out)
    return {"repulsion": a["repulsion"]}


def _true_repel(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    d, n = o["d"], a["centred"].size // o["d"]
    x, products = _exact(a["centred"], fmt, n, d), _exact(a["products"], fmt, n, d + 2)
    weight = ARITHMETIC[fmt].wide(_dtype(fmt)(0.3))
    pulled, pushed = products[:, :d], x * products[:, d : d + 1]
    return {"repulsion": _about(weight * (pushed - pulled), weight * (abs(pushed) + abs(pulled)), 4, fmt)}


# ---- adaptation -----------------------------------------------------------------------------------------------------

_STATES = ("x", "sigma", "C", "p_sigma", "p_c")


def _make_adapt(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d, popsize = o["d"], o["popsize"]
    order = rng.permuted(np.tile(np.arange(popsize), (n, 1)), axis=1)
    order[3::5] = -1
    C = _normal(rng, fmt, n, d, d).reshape(n, d, d)
    return {
        "y": _normal(rng, fmt, n, popsize, d),
        "z": _normal(rng, fmt, n, popsize, d),
        "order": order.ravel().astype(np.int64),
        "weights": stein.Rates(d, popsize).weights.astype(_dtype(fmt)),
        "shift": _normal(rng, fmt, n, d),
        "drive": _normal(rng, fmt, n, d) if o.get("full") else None,
        "repulsion": _normal(rng, fmt, n, d) if o.get("repels") else None,
        "B": _normal(rng, fmt, n, d, d),
        "D": _positive(rng, fmt, n, d),
        "A": _normal(rng, fmt, n, d, d),
        "x": _normal(rng, fmt, n, d),
        "sigma": _positive(rng, fmt, n),
        "C": (np.tril(C) + np.tril(C, -1).transpose(0, 2, 1)).ravel(),
        "p_sigma": _normal(rng, fmt, n, d),
        "p_c": _normal(rng, fmt, n, d),
    }


class _Endless(stein.Rates):
    """Rates whose limit is decided by the case, out of any rounding's reach."""

    stalled = False

    def limit(self, generation: int) -> float:
        return 0.0 if self.stalled else 1e30


class _Stalled(_Endless):
    stalled = True


def _rates(o: Options) -> stein.Rates:
    return (_Stalled if o.get("stalled") else _Endless)(o["d"], o["popsize"])


def _run_adapt(a: Arrays, o: Options, fmt: str) -> Arrays:
    d, popsize = o["d"], o["popsize"]
    shapes: dict[str, tuple[int, ...]] = {"order": (-1, popsize), "sigma": (-1,), "weights": (-1,)}
    shapes |= dict.fromkeys(("y", "z"), (-1, popsize, d)) | dict.fromkeys("BAC", (-1, d, d))
    shapes |= dict.fromkeys(("shift", "drive", "repulsion", "D", "x", "p_sigma", "p_c"), (-1, d))
    v: dict[str, Any] = {name: None if x is None else x.reshape(shapes[name]) for name, x in a.items()}
    if len(v["y"]):
        v |= {"rates": _rates(o), "generation": 3, "in_paths": o.get("in_paths", True), "sigma_max": 2.5}
        stein.adapt(**v)
    return {name: a[name] for name in _STATES}


def _true_adapt(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    d, popsize = o["d"], o["popsize"]
    n, f, rates = a["sigma"].size, ARITHMETIC[fmt], _rates(o)
    x, p_sigma, p_c, D = (_exact(a[k], fmt, n, d) for k in ("x", "p_sigma", "p_c", "D"))
    B, A, C = (_exact(a[k], fmt, n, d, d) for k in "BAC")
    sigma = _exact(a["sigma"], fmt, n, 1)
    y, z = (_exact(a[k], fmt, n, popsize, d) for k in "yz")
    order = a["order"].reshape(n, popsize)
    stays = order[:, :1] < 0
    ranks = np.maximum(order, 0)[:, :, None]
    y, z = np.take_along_axis(y, ranks, 1), np.take_along_axis(z, ranks, 1)

    own = _exact(a["shift"], fmt, n, d) if a["drive"] is None else _exact(a["drive"], fmt, n, d) / sigma
    pushed = 0 * own if a["repulsion"] is None else _exact(a["repulsion"], fmt, n, d) / sigma
    path = own + pushed if o.get("in_paths", True) else own
    wide = abs(own) + abs(pushed)
    moved = x + sigma * (own + pushed)

    def number(value: float) -> Any:
        return f.wide(_dtype(fmt)(value))

    c_s, c_c = rates.c_sigma, rates.c_c
    gain_s, gain_c = (number(np.sqrt(c * (2 - c) * rates.mu_eff)) for c in (c_s, c_c))
    turned = np.einsum("nr,nrk->nk", path, B) / D**2
    spread = np.einsum("nr,nrk->nk", wide, abs(B)) / D**2
    new_s = number(1 - c_s) * p_sigma + gain_s * np.einsum("nk,nkr->nr", turned, A)
    size_s = abs(p_sigma) + gain_s * np.einsum("nk,nkr->nr", spread, abs(A))
    rounded_s = 3 * d + 12
    norm = np.sqrt((new_s**2).sum(1, keepdims=True))
    h = 0.0 if rates.limit(3) == 0 else 1.0
    new_c = number(1 - c_c) * p_c + h * gain_c * path
    size_c = abs(p_c) + gain_c * wide
    weights = _exact(a["weights"], fmt, popsize)
    v = number(rates.c_mu) * np.where(weights >= 0, weights, weights * d / (z**2).sum(2))
    decay = 1 - rates.c_1 - rates.c_mu * float(weights.sum()) + (1 - h) * rates.c_1 * c_c * (2 - c_c)
    one = new_c[:, :, None] * new_c[:, None, :]
    new_C = number(decay) * C + number(rates.c_1) * one + np.einsum("nk,nkr,nkc->nrc", v, y, y)
    size_C = abs(C) + size_c[:, :, None] * size_c[:, None, :] + np.einsum("nk,nkr,nkc->nrc", abs(v), abs(y), abs(y))
    exponent = number(c_s / rates.d_sigma) * (norm * number(1 / rates.chi) - 1)
    new_sigma = np.minimum(sigma * np.exp(exponent), number(2.5))
    loose = abs(exponent) + 1 + np.sqrt((size_s**2).sum(1, keepdims=True))
    keeps = [np.where(stays, old, new) for old, new in ((x, moved), (p_sigma, new_s), (p_c, new_c), (sigma, new_sigma))]

    def size(value: Any) -> Any:
        return np.where(stays, 0, value)

    return {
        "x": _about(keeps[0], size(abs(x) + sigma * wide), 6, fmt),
        "sigma": _about(keeps[3], size(new_sigma * loose), rounded_s + d + 12, fmt),
        "C": _about(np.where(stays[:, :, None], C, new_C), size(1)[:, :, None] * size_C, 3 * popsize + 2 * d + 16, fmt),
        "p_sigma": _about(keeps[1], size(size_s), rounded_s, fmt),
        "p_c": _about(keeps[2], size(size_c), 8, fmt),
    }


# ---------------------------------------------------------------------------------------------------------------------


CASES = [
    Case(
        op="stein_factor",
        make=_make_factor,
        run=_run_factor,
        truth=_true_factor,
        error=f"{_ERROR}; sigma and p_c exact",
        variants={
            "gauge": {**_SMALL, "condition": 1e2, "renormalise": True},
            "plain": {**_SMALL, "condition": 1e2, "renormalise": False},
            "line": {"d": 1, "condition": 1.0, "renormalise": True},
            "wide": {**_WIDE, "condition": 1e3, "renormalise": True},
        },
        flops=lambda o: 4,
        streams=lambda o: {"B": "r", "C": "rw", "A": "w"},
        sizes=_SIZES,
        special=False,
    ),
    Case(
        op="stein_sample",
        make=_make_sample,
        run=_run_sample,
        truth=_true_sample,
        error=_ERROR,
        variants=_VARIANTS,
        flops=lambda o: 2 * o["d"] + 2,
        streams=lambda o: {"z": "r", "y": "w", "candidates": "w"},
        sizes=_SIZES,
        special=False,
    ),
    Case(
        op="stein_shift",
        make=_make_shift,
        run=_run_shift,
        truth=_true_shift,
        error=f"order exact; {_ERROR}",
        variants={**_VARIANTS, "many": {"d": 1, "popsize": 131}},
        flops=lambda o: 2,
        streams=lambda o: {"y": "r"},
        sizes=_SIZES,
        special=False,
    ),
    Case(
        op="stein_center",
        make=_make_center,
        run=_run_center,
        truth=_true_center,
        error=f"{_ERROR}; the mean in double",
        variants={"small": _SMALL, "wide": _WIDE},
        flops=lambda o: 2,
        streams=lambda o: {"x": "r", "centred": "w", "columns": "w"},
        sizes=_SIZES,
        special=False,
    ),
    Case(
        op="stein_repel",
        make=_make_repel,
        run=_run_repel,
        truth=_true_repel,
        error=_ERROR,
        variants={"small": _SMALL, "wide": _WIDE},
        flops=lambda o: 3,
        streams=lambda o: {"centred": "r", "products": "r", "repulsion": "w"},
        sizes=_SIZES,
        special=False,
    ),
    Case(
        op="stein_adapt",
        make=_make_adapt,
        run=_run_adapt,
        truth=_true_adapt,
        error=f"{_ERROR}; exp within 0.85 ulp",
        variants={
            "plain": _SMALL,
            "repelled": {**_SMALL, "repels": True},
            "outside": {**_SMALL, "repels": True, "in_paths": False},
            "full": {**_SMALL, "full": True, "repels": True},
            "mixed": {**_SMALL, "full": True},
            "stalled": {**_SMALL, "stalled": True},
            "line": {"d": 1, "popsize": 2, "repels": True},
            "three": {"d": 3, "popsize": 5},
            "wide": {**_WIDE, "repels": True},
        },
        flops=lambda o: 2 * o["popsize"] + 8,
        streams=lambda o: {"C": "rw", "B": "r", "A": "r"},
        sizes=_SIZES,
        special=False,
    ),
]
