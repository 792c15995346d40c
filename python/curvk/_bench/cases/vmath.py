"""Vector math."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels import vmath
from ..interval import ARITHMETIC, Interval
from ..registry import Array, Arrays, Case, Contender, Factory, Options, Row, optional
from ..storage import empty, sample

ULPS = {"exp": 0.85, "log": 1.0}
"""The error classes, in units in the last place."""


def _maker(draw: Callable[[np.random.Generator, int], Array]) -> Callable[..., Arrays]:
    def make(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
        x = sample(n, fmt, rng, draw)
        return {"x": x, "out": empty(n, x.dtype)}

    return make


def within(exact: Array, ulps: float, fmt: str) -> Interval:
    """What lies within `ulps` units in the last place of a wide format's value; 0, infinities and NaN are exact."""
    f = ARITHMETIC[fmt]
    exponent = np.maximum(np.frexp(exact)[1] - f.bits, f.tiny)
    with np.errstate(all="ignore"):
        room = np.where((exact == 0) | ~np.isfinite(exact), 0, ulps * np.ldexp(f.wide(1), exponent))
        low, high = exact - room, exact + room
    # Above the largest number a result is infinite; within the error of it, either.
    low, high = (np.where(x > f.largest, np.inf, x) for x in (low, high))
    return Interval(low, high, f)


def _truth(function: Any, ulps: float) -> Callable[[Arrays, Options, str], dict[str, Any]]:
    def truth(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
        with np.errstate(all="ignore"):
            return {"out": within(function(a["x"].astype(ARITHMETIC[fmt].wide)), ulps, fmt)}

    return truth


def _numpy(function: Any) -> Factory:
    return lambda a, o, fmt: Contender("numpy", lambda: function(a["x"], out=a["out"]))


def _torch(op: str) -> Factory:
    def factory(a: Arrays, o: Options, fmt: str) -> Contender | None:
        torch = optional("torch")
        if torch is None:
            return None
        function, x, out = getattr(torch, op), torch.from_numpy(a["x"]), torch.from_numpy(a["out"])
        return Contender("torch", lambda: function(x, out=out))

    return factory


def _run(function: Callable[..., Any]) -> Callable[[Arrays, Options, str], Arrays]:
    return lambda a, o, fmt: {"out": function(a["x"], out=a["out"])}


def _case(op: str, function: Any, draw: Callable[[np.random.Generator, int], Array], flops: int) -> Case:
    """`flops` are float32's; float64's longer polynomials take 10 (exp) and 8 (log) more."""
    return Case(
        op=op,
        make=_maker(draw),
        run=_run(getattr(vmath, op)),
        truth=_truth(function, ULPS[op]),
        error=f"below {ULPS[op]} units in the last place; special values exact",
        variants={"default": {}},
        flops=lambda o: flops,
        streams=lambda o: {"x": "r", "out": "w"},
        peers={"numpy": _numpy(function), "torch": _torch(op)},
        rows=(Row("default", ("f32", "f64"), sizes=(10_000, 1_000_000, 10_000_000)),),
    )


CASES = [
    _case("exp", np.exp, lambda rng, n: 10 * rng.standard_normal(n), flops=27),
    _case("log", np.log, lambda rng, n: np.exp(5 * rng.standard_normal(n)), flops=25),
]
