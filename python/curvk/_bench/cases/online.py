"""Online learning: truth by solving with A itself in long double, row by row, instead of updating its inverse."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels import online
from ..interval import ARITHMETIC, Interval
from ..registry import Array, Arrays, Case, Contender, Options, Row

_ALPHA = 0.5
_ROUNDINGS = 2.0**13
"""Of the largest number of its kind, in units of rounding, which the result of up to 257 rows may be off: each row adds
some k roundings of its own and multiplies those before it by little more than 1, as alpha keeps A's condition below
some hundreds. Measured: up to 2^10."""


def _make(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    k, c = o["k"], o["c"]
    phi = rng.standard_normal((n, k)) / np.sqrt(k)
    y = np.where(rng.random((n, c)) < 0.5, -1.0, 1.0)
    eye = np.stack([np.eye(k) / _ALPHA] * c)
    start = rng.standard_normal((c, k))
    return {
        "phi": phi.ravel(),
        "y": y.ravel(),
        "f": np.zeros(n * c),
        "w": start.ravel(),
        "inverse": eye.ravel(),
        "counts": np.zeros(2, np.int64),
    }


def _run(a: Arrays, o: Options, fmt: str) -> Arrays:
    k, c = o["k"], o["c"]
    phi, y, f, w = (a[name].reshape(-1, width) for name, width in (("phi", k), ("y", c), ("f", c), ("w", k)))
    keywords = {name: o[name] for name in ("rule", "loss", "lr", "clip", "until", "pending") if name in o}
    a["counts"][:] = online.learn(phi, y, f, w, a["inverse"].reshape(c, k, k), **keywords)
    return {name: a[name] for name in ("f", "w", "inverse", "counts")}


def _solve(A: Array, b: Array) -> Array:
    """A^-1 b in long double: LAPACK's solution, refined twice."""
    x = np.zeros_like(b)
    for _ in range(3):
        x = x + np.linalg.solve(A.astype(float), (b - A @ x).astype(float))
    return x


def _slope(loss: str, y: Any, f: Any) -> Any:
    margin = max(1 - y * f, 0)
    if loss == "squared_hinge":
        return -2 * y * margin
    if loss == "hinge":
        return -y * (margin > 0)
    return -y / (1 + np.exp(y * f)) if loss == "logistic" else 2 * (f - y)


def _about(x: Array) -> Interval:
    fmt = ARITHMETIC["f64"]
    x = np.asarray(x, fmt.wide)
    error = _ROUNDINGS * fmt.unit * max(abs(x).max(initial=0), 1)
    return Interval(x - error, x + error, fmt)


def _truth(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    k, c, rule, loss = o["k"], o["c"], o["rule"], o["loss"]
    lr, clip, wide = o.get("lr", 1.0), o.get("clip", 1.0), np.longdouble
    phi, y, w = (a[name].astype(wide).reshape(-1, width) for name, width in (("phi", k), ("y", c), ("w", k)))
    f, A = a["f"].astype(wide).reshape(-1, c), np.stack([wide(_ALPHA) * np.eye(k, dtype=wide)] * c)
    done, lossy = 0, 0
    for t, x in enumerate(phi):
        given = bool(o.get("pending")) and t == 0
        g = np.zeros(c, wide)
        for i in range(c):
            if not given:
                if rule == "kons" and abs(w[i] @ x) > clip:
                    u = _solve(A[i], x)
                    w[i] -= np.sign(w[i] @ x) * (abs(w[i] @ x) - clip) / (x @ u) * u
                f[t, i] = w[i] @ x
            g[i] = _slope(loss, y[t, i], f[t, i])
        lossy += 1 if g.any() and not given else 0
        if g.any() and not given and lossy == o.get("until"):
            break
        done += 1
        for i in np.flatnonzero(g).tolist():
            if rule == "gradient":
                w[i] -= lr * g[i] * x
                continue
            share = {"ridge": wide(1), "published": wide(0)}.get(rule, g[i] ** 2 / 16)
            A[i] += share * np.outer(x, x)
            u = _solve(A[i], x)
            w[i] -= lr * g[i] / (2 if rule == "ridge" else 1) * u
            if rule in ("newton", "published"):
                excess = np.sign(w[i] @ x) * max(abs(w[i] @ x) - clip, 0)
                w[i] -= excess / (x @ u + (wide(1e-4) if rule == "published" else 0)) * u
            if rule == "published":
                A[i] += (lr * g[i]) ** 2 * np.outer(x, x)
    inverse = np.stack([np.stack([_solve(M, e) for e in np.eye(k, dtype=wide)], axis=1) for M in A])
    if rule == "gradient":
        inverse = a["inverse"].astype(wide).reshape(c, k, k)
    return {
        "f": _about(f.ravel()),
        "w": _about(w.ravel()),
        "inverse": _about(inverse.ravel()),
        "counts": np.array([done, lossy]),
    }


def _numpy(a: Arrays, o: Options, fmt: str) -> Contender | None:
    """The same step a row at a time, as it is written with NumPy."""
    k = o["k"]
    if o["c"] > 1 or o["rule"] != "newton" or o["loss"] != "squared_hinge":
        return None
    phi, y, f, w, inverse = a["phi"].reshape(-1, k), a["y"], a["f"], a["w"], a["inverse"].reshape(k, k)

    def step() -> None:
        for t, x in enumerate(phi):
            f[t] = p = w @ x
            g = -2 * y[t] * max(0.0, 1 - y[t] * p)
            if g == 0:
                continue
            u = inverse @ x
            growth = 1 + g * g / 16 * (x @ u)
            inverse[:] -= np.outer(g * g / 16 / growth * u, u)
            u /= growth
            p -= g * (x @ u)
            w[:] += (-g - np.sign(p) * max(abs(p) - 1.0, 0.0) / (x @ u)) * u

    return Contender("numpy", step, arrays={name: a[name] for name in ("f", "w", "inverse")})


def _flops(o: Options) -> int:
    """Of a loss row and output: two products with A^-1 and two dots and three sums over k."""
    return int(o["c"] * (4 * o["k"] * o["k"] + 10 * o["k"]))


_BASE: dict[str, Any] = {"k": 20, "c": 1, "rule": "newton", "loss": "squared_hinge"}
_VARIANTS: dict[str, Options] = {
    "newton": _BASE,
    "gradient": _BASE | {"rule": "gradient", "lr": 0.1, "loss": "hinge"},
    "published": _BASE | {"rule": "published", "lr": 0.2},
    "kons": _BASE | {"rule": "kons", "loss": "logistic", "clip": 0.5, "k": 5},
    "ridge": _BASE | {"rule": "ridge", "loss": "squared"},
    "three": _BASE | {"c": 3, "k": 17},
    "one feature": _BASE | {"k": 1},
    "many features": _BASE | {"k": 67},
    "until": _BASE | {"until": 5, "k": 3},
    "pending": _BASE | {"pending": True, "k": 3},
    "k40": _BASE | {"k": 40},
}

CASES = [
    Case(
        op="online_learn",
        make=_make,
        run=_run,
        truth=_truth,
        error=f"{_ROUNDINGS:g} u of the largest number of its kind, over some hundred rows",
        variants=_VARIANTS,
        timed=frozenset({"k40"}),
        flops=_flops,
        streams=lambda o: {"phi": "r", "y": "r", "f": "w"},
        sizes=(0, 1, 2, 7, 33, 257),
        peers={"numpy": _numpy},
        rows=(Row("newton", ("f64",), sizes=(2048,)), Row("k40", ("f64",), sizes=(2048,))),
        special=False,
    )
]
