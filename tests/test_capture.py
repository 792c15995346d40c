"""Steps whose numbers lie in memory, against the plain ones; AdamZ's rule there, against the object that has it.

The registry's tests run these kernels too; here is what they cannot: special values, numbers that are none, streams of
losses, and bad arrays.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
from curvk._bench.registry import Arrays, cases
from curvk.kernels.capture import adam_step_at, loss_rule, sgd_step_at
from curvk.kernels.optim import adam_step, sgd_step
from curvk.optim import LossAdaptiveLR

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

FORMATS = ("f32", "f64", "bf16", "f16")
LR = 0.0123456789  # has more digits than a float


def seeded(*parts: object) -> np.random.Generator:
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return np.random.default_rng(seed)


def inputs(op: str, fmt: str, options: dict[str, Any], n: int = 517) -> Arrays:
    """A case's arrays, some elements NaN, infinite, zero or tiny."""
    rng = seeded(op, fmt, options)
    arrays = cases()[op].make(n, fmt, rng, options)
    for x in (x for x in arrays.values() if x is not None):
        places = rng.random(n) < 0.1
        values = rng.choice([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-7, 6e4], n)
        if x.dtype == np.uint16:
            x[places] = (values.astype(np.float32).view(np.uint32) >> 16)[places]
        else:
            x[places] = values[places]
    return arrays


def copies(a: Arrays) -> Arrays:
    return {k: None if x is None else x.copy() for k, x in a.items()}


def assert_same_bits(a: Arrays, b: Arrays) -> None:
    for name, x in a.items():
        if x is not None:
            np.testing.assert_array_equal(x, b[name], name)
            if x.dtype.kind == "f":
                numbers = ~np.isnan(x)
                np.testing.assert_array_equal(np.signbit(x[numbers]), np.signbit(b[name][numbers]), name)


# ---- steps ----------------------------------------------------------------------------------------------------------

ADAM: dict[str, dict[str, Any]] = {
    "adam": {},
    "adamw": {"weight_decay": 0.01, "decoupled": True},
    "amsgrad-coupled": {"amsgrad": True, "weight_decay": 0.01, "maximize": True, "betas": (0.8, 0.95), "eps": 1e-6},
    "restored-scaled": {"restored": True, "grad_scale": 3.0},
}
SGD: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
    "first": {"momentum": 0.9, "dampening": 0.1, "first": True},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "decoupled": True, "restored": True},
}


def keywords(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in ("amsgrad", "restored")}


@pytest.mark.parametrize("step", [1, 2, 1000, 10**7])
@pytest.mark.parametrize("variant", ADAM)
@pytest.mark.parametrize("fmt", FORMATS)
def test_adam_has_the_plain_steps_bits(fmt: str, variant: str, step: int) -> None:
    a = inputs("adam_step", fmt, ADAM[variant])
    b, at, options = copies(a), np.array([step, LR]), keywords(ADAM[variant])
    adam_step(a["p"], a["g"], a["m"], a["v"], max_v=a["max_v"], origin=a["origin"], step=step, lr=LR, **options)
    adam_step_at(b["p"], b["g"], b["m"], b["v"], at, max_v=b["max_v"], origin=b["origin"], **options)
    assert_same_bits(a, b)
    assert at.tolist() == [step, LR]


@pytest.mark.parametrize("variant", SGD)
@pytest.mark.parametrize("fmt", FORMATS)
def test_sgd_has_the_plain_steps_bits(fmt: str, variant: str) -> None:
    a = inputs("sgd_step", fmt, SGD[variant])
    b, options = copies(a), keywords(SGD[variant])
    sgd_step(a["p"], a["g"], a["buf"], origin=a["origin"], lr=LR, **options)
    sgd_step_at(b["p"], b["g"], np.array([math.nan, LR]), b["buf"], origin=b["origin"], **options)
    assert_same_bits(a, b)


@pytest.mark.parametrize("at", [(math.nan, LR), (0.99, LR), (-3, LR), (2.0**54, LR), (math.inf, LR), (5, math.nan)])
@pytest.mark.parametrize("fmt", ["f32", "f64"])
def test_numbers_that_are_none_show_in_the_parameters(fmt: str, at: tuple[float, float]) -> None:
    a = cases()["adam_step"].make(100, fmt, seeded(fmt, at), {})
    b = copies(a)
    adam_step(a["p"], a["g"], a["m"], a["v"], step=5, lr=LR)
    adam_step_at(b["p"], b["g"], b["m"], b["v"], np.array(at))
    assert np.isnan(b["p"]).all()
    assert_same_bits({k: a[k] for k in "mv"}, b)


def test_steps_are_rounded_down_and_negative_rates_ascend() -> None:
    p, at = np.array([1.0, 2.0]), np.array([2.75, -0.5])
    sgd_step_at(p, np.array([4.0, -2.0]), at)
    assert p.tolist() == [3.0, 1.0]
    a = cases()["adam_step"].make(100, "f32", seeded("rounded down"), {})
    b = copies(a)
    adam_step(a["p"], a["g"], a["m"], a["v"], step=2, lr=0.5)
    adam_step_at(b["p"], b["g"], b["m"], b["v"], np.array([2.75, 0.5]))
    assert_same_bits(a, b)


def test_numbers_are_read_at_each_step() -> None:
    p, g, at = np.zeros(3), np.ones(3), np.array([1.0, 0.5])
    m, v = np.zeros(3), np.zeros(3)
    for step, lr in ((1, 0.5), (2, 0.25), (3, 0.125)):
        at[:] = step, lr
        adam_step_at(p, g, m, v, at, eps=0.0)
    np.testing.assert_allclose(p, -0.875, rtol=1e-12)  # a constant gradient moves bias-corrected Adam by lr


# ---- AdamZ's rule ---------------------------------------------------------------------------------------------------


class Optimizer:
    def __init__(self, lr: float) -> None:
        self.param_groups = [{"lr": lr}]


def stream(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    noise = rng.standard_normal(n)
    losses = {
        "random": 1 + 0.1 * noise,
        "falling": np.linspace(3, 1, n),
        "noisy falling": np.linspace(3, 1, n) + 1e-3 * noise,
        "resting": np.where(np.arange(n) < n // 3, np.linspace(3, 1, n), 2 / 3 + 1e-6 * noise),
        "constant": np.full(n, 0.3),
        "far": 1e300 * noise,
    }
    x = losses[kind.removesuffix(" with holes")]
    if kind.endswith(" with holes"):
        x = np.where(rng.random(n) < 0.2, rng.choice([math.nan, math.inf, -math.inf], n, p=[0.9, 0.05, 0.05]), x)
    return x


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize(("patience", "period"), [(100, 10), (5, 2), (30, 20), (400, 128)])
@pytest.mark.parametrize(
    "kind", ["random", "falling", "noisy falling", "resting", "constant", "far", "random with holes"]
)
def test_rule_sets_the_rates_of_loss_adaptive_lr(kind: str, patience: int, period: int, guard: bool) -> None:
    rng = seeded(kind, patience, period, guard)
    options = {"guard": guard, "stagnation_threshold": float(rng.choice([0.2, 0.9])), "min_lr": 1e-5, "max_lr": 3.0}
    optimizer = Optimizer(0.01)
    with np.errstate(all="ignore"):
        reference = LossAdaptiveLR(optimizer, patience=patience, stagnation_period=period, **options)
        window, stored, at = np.zeros(patience), np.zeros(1, np.int64), np.array([1, 0.01])
        rates = set()
        for loss in stream(kind, rng, patience + 150):
            reference.report_loss(loss)
            loss_rule(window, stored, np.array([loss]), at, period=period, **options)
            assert at[1] == optimizer.param_groups[0]["lr"]
            rates.add(float(at[1]))
    state = reference.state_dict()
    np.testing.assert_array_equal(window, state["window"])
    assert stored[0] == state["stored"]
    assert at[0] == 1
    if kind == "constant" or (kind == "falling" and not guard and patience == 100):
        assert len(rates) > 5  # it did something


@pytest.mark.parametrize("lr", [math.nan, -1.0, math.inf])
def test_a_rate_out_of_range_stays(lr: float) -> None:
    window, stored, at = np.ones(3), np.array([7]), np.array([1, lr])
    loss_rule(window, stored, np.array([9.0]), at)
    np.testing.assert_array_equal(at, [1, lr])
    assert window.tolist() == [1, 9, 1]
    assert stored[0] == 8


@pytest.mark.parametrize("count", [-1, -(2**63), 2**63 - 1])
def test_a_count_out_of_range_leaves_all(count: int) -> None:
    window, stored, at = np.ones(3), np.array([count]), np.array([1, 5.0])
    loss_rule(window, stored, np.array([9.0]), at)
    assert (window.tolist(), stored[0], at.tolist()) == ([1, 1, 1], count, [1, 5])


# ---- bad arrays -----------------------------------------------------------------------------------------------------

BAD_AT: dict[str, tuple[Any, type[Exception], str]] = {
    "float32": (np.ones(2, np.float32), TypeError, "argument 'at': got float32, needs float64"),
    "short": (np.ones(1), ValueError, r"argument 'at': got shape \(1,\), needs 2 elements"),
    "long": (np.ones(3), ValueError, r"argument 'at': got shape \(3,\), needs 2 elements"),
    "strided": (np.ones(4)[::2], ValueError, "argument 'at': got strides"),
    "number": (1.0, TypeError, "argument 'at': got float"),
    "None": (None, TypeError, "argument 'at'"),
}


@pytest.mark.parametrize("bad", BAD_AT)
@pytest.mark.parametrize("op", ["adam_step_at", "sgd_step_at", "loss_rule"])
def test_bad_at(op: str, bad: str) -> None:
    at, error, text = BAD_AT[bad]
    arrays = [np.ones(4) for _ in range(4)]
    calls = {
        "adam_step_at": lambda: adam_step_at(*arrays, at),
        "sgd_step_at": lambda: sgd_step_at(arrays[0], arrays[1], at),
        "loss_rule": lambda: loss_rule(arrays[0], np.zeros(1, np.int64), np.ones(1), at),
    }
    with pytest.raises(error, match=f"{op}: {text}"):
        calls[op]()
    assert all((x == 1).all() for x in arrays)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"window": np.zeros(0)}, ValueError, "argument 'window': got shape .*, needs one element or more"),
        ({"window": np.zeros(4, np.float32)}, TypeError, "argument 'window': got float32"),
        ({"stored": np.zeros(1)}, TypeError, "argument 'stored': got float64, needs int64"),
        ({"stored": np.zeros(2, np.int64)}, ValueError, "argument 'stored': got shape"),
        ({"loss": np.zeros(2)}, ValueError, "argument 'loss': got shape"),
        ({"period": 0}, ValueError, "argument 'period'"),
        ({"overshoot_factor": 1.0}, ValueError, "argument 'overshoot_factor'"),
        ({"stagnation_factor": 1.0}, ValueError, "argument 'stagnation_factor'"),
        ({"stagnation_threshold": math.nan}, ValueError, "argument 'stagnation_threshold'"),
        ({"min_lr": 2.0}, ValueError, "argument 'min_lr'"),
        ({"min_lr": 0.0}, ValueError, "argument 'min_lr'"),
        ({"guard": True, "period": 4}, ValueError, "argument 'guard'"),
    ],
)
def test_bad_rule(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {"window": np.zeros(4), "stored": np.zeros(1, np.int64), "loss": np.ones(1), "at": np.ones(2), **change}
    before = copies({k: arguments[k] for k in ("window", "stored", "at")})
    with pytest.raises(error, match=f"loss_rule: {text}"):
        loss_rule(**arguments)
    assert_same_bits(before, arguments)


def test_read_only_and_overlapping() -> None:
    window, stored, at = np.zeros(4), np.zeros(1, np.int64), np.ones(2)
    with pytest.raises(ValueError, match="memory"):
        loss_rule(window, stored, window[:1], at)
    at.flags.writeable = False
    with pytest.raises(BufferError, match="argument 'at': got a read-only array"):
        loss_rule(window, stored, np.ones(1), at)
    adam_step_at(np.ones(2), np.ones(2), np.zeros(2), np.zeros(2), at)  # which only reads it
