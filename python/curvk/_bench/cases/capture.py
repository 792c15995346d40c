"""Steps whose numbers lie in memory, and AdamZ's rule there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..._backend import Plan, call
from ...kernels.capture import adam_step_at, sgd_step_at
from ..registry import SIZES, Array, Arrays, Case, Options
from . import optim

SGD, ADAM = (next(c for c in optim.CASES if c.op == op) for op in ("sgd_step", "adam_step"))


def _at(o: Options) -> Array:
    return np.array([o.get("step", 7), o.get("lr", 0.01)], np.float64)


def _numbers(a: Arrays, o: Options) -> Options:
    """The options with the numbers that lie in memory."""
    at = a["at"][0] if isinstance(a["at"], list) else a["at"]
    return {**o, "step": int(at[0]), "lr": float(at[1])}


def _make(case: Case) -> Callable[[int, str, np.random.Generator, Options], Arrays]:
    return lambda n, fmt, rng, o: {**case.make(n, fmt, rng, o), "at": _at(o)}


def _truth(case: Case) -> Callable[[Arrays, Options, str], dict[str, Any]]:
    return lambda a, o, fmt: case.truth(a, _numbers(a, o), fmt)


def _without_at(defaults: dict[str, Any], o: Options) -> dict[str, Any]:
    return {k: v for k, v in {**defaults, **o}.items() if k not in ("restored", "amsgrad", "step", "lr")}


def _run_sgd(a: Arrays, o: Options, fmt: str) -> Arrays:
    sgd_step_at(a["p"], a["g"], a["at"], a["buf"], origin=a["origin"], **_without_at(optim.SGD, o))
    return {k: a[k] for k in ("p", "buf") if a[k] is not None}


def _plan_sgd(a: Arrays, o: Options, fmt: str) -> Callable[[], None]:
    plan = Plan("sgd_step_at", (a["p"], a["g"], a["buf"], a["origin"], a["at"][0]))
    o = {**optim.SGD, **o}
    names = ("momentum", "dampening", "weight_decay", "nesterov", "decoupled", "maximize", "first", "grad_scale")
    return lambda: plan.run(tuple(o[k] for k in names))


def _run_adam(a: Arrays, o: Options, fmt: str) -> Arrays:
    options = _without_at(optim.ADAM, o)
    adam_step_at(a["p"], a["g"], a["m"], a["v"], a["at"], max_v=a["max_v"], origin=a["origin"], **options)
    return {k: a[k] for k in ("p", "m", "v", "max_v") if a[k] is not None}


def _plan_adam(a: Arrays, o: Options, fmt: str) -> Callable[[], None]:
    plan = Plan("adam_step_at", (a["p"], a["g"], a["m"], a["v"], a["max_v"], a["origin"], a["at"][0]))
    o = {**optim.ADAM, **o}
    names = ("eps", "weight_decay", "decoupled", "maximize", "grad_scale")
    return lambda: plan.run((*o["betas"], *(o[k] for k in names)))


# ---- AdamZ's rule ---------------------------------------------------------------------------------------------------

RULE = {
    "period": 10,
    "overshoot_factor": 0.5,
    "stagnation_factor": 1.2,
    "stagnation_threshold": 0.2,
    "min_lr": 1e-7,
    "max_lr": 1.0,
    "guard": False,
}
_STATE = {"stored": 1000, "loss": 1.0, "lr": 0.01, "spread": 0.1, "slope": 0.0}


def _make_rule(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    """A ring that `stored` losses have gone through; n is its length."""
    o = {**_STATE, **o}
    losses = 1 + o["spread"] * rng.standard_normal(n) + o["slope"] * np.arange(n, 0, -1)  # the oldest first
    return {
        "window": np.roll(losses, o["stored"] % n),
        "stored": np.array([o["stored"]]),
        "loss": np.array([o["loss"]]),
        "at": np.array([3.0, o["lr"]]),
    }


def _run_rule(a: Arrays, o: Options, fmt: str) -> Arrays:
    scalars = a["window"].size, *({**RULE, **o}[k] for k in RULE)
    call("loss_rule", (a["window"], a["stored"], a["loss"], a["at"]), scalars)  # which takes a guard with any period
    return {k: a[k] for k in ("window", "stored", "at")}


def _true_rule(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    """Statistics in longdouble; the decisions are exact where these are not within rounding of a tie."""
    o = {**RULE, **o}
    window, stored, loss, lr = a["window"].copy(), int(a["stored"][0]), float(a["loss"][0]), float(a["at"][1])
    patience, period = window.size, o["period"]
    up = down = False
    if not math.isnan(loss):
        window[stored % patience] = loss
        stored += 1
        if stored >= patience:
            newest_first = np.roll(window, -(stored % patience))[::-1].astype(np.longdouble)
            down = bool((newest_first <= newest_first[0]).all())
            up = bool(np.std(newest_first[:period]) < o["stagnation_threshold"] * np.std(newest_first))
            if up and o["guard"] and period < patience:
                up = not np.mean(newest_first[:period]) < np.mean(newest_first[period : 2 * period])
    lr *= o["overshoot_factor"] if down else 1
    lr *= o["stagnation_factor"] if up else 1
    return {
        "window": window,
        "stored": np.array([stored]),
        "at": np.array([a["at"][0], min(max(lr, o["min_lr"]), o["max_lr"])]),
    }


_SLOPE = {"slope": 1.0, "spread": 0.001}

CASES: Sequence[Case] = [
    Case(
        op="adam_step_at",
        make=_make(ADAM),
        run=_run_adam,
        plan=_plan_adam,
        truth=_truth(ADAM),
        error=ADAM.error,
        variants=ADAM.variants,
        flops=ADAM.flops,
        streams=ADAM.streams,
        special=False,  # of what lies in `at`, which a step cannot check; the tests of this family go through it
    ),
    Case(
        op="sgd_step_at",
        make=_make(SGD),
        run=_run_sgd,
        plan=_plan_sgd,
        truth=_truth(SGD),
        error=SGD.error,
        variants=SGD.variants,
        flops=SGD.flops,
        streams=SGD.streams,
        special=False,
    ),
    Case(
        op="loss_rule",
        make=_make_rule,
        run=_run_rule,
        truth=_true_rule,
        error="the learning rate's products rounded once each; decisions by variances in two passes",
        variants={
            "noise": {},
            "highest": {"loss": 99.0},
            "falls": _SLOPE,
            "guarded": {**_SLOPE, "guard": True},
            "guarded-rises": {"slope": -1.0, "spread": 0.001, "guard": True, "loss": -3.0},
            "long-period": {"period": 300, "guard": True, "stagnation_threshold": 3.0},
            "filling": {"stored": 0},
            "nan": {"loss": math.nan, "lr": 7.0},
            "floor": {"loss": 99.0, "lr": 1e-7},
        },
        flops=lambda o: 0,
        streams=lambda o: {},
        sizes=(*(n for n in SIZES if 0 < n <= 1100), 10, 100),
        special=False,
    ),
]
