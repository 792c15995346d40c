"""The sum of squares and the loss window, of the family `optim`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..._backend import call
from ...kernels.optim import global_norm
from ..interval import F64, Interval
from ..registry import SIZES, Array, Arrays, Case, Contender, Options, Row, optional
from ..storage import decode, sample
from .optim import _each, _normal, _tensor

ALL = ("f32", "f64", "bf16", "f16")

# ---- the sum of squares ---------------------------------------------------------------------------------------------


def _make_norm(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"x": sample(n, fmt, rng, _normal(0.1))}


def _cut(x: Array, o: Options) -> list[Array]:
    """One array, or an uneven list with an empty one."""
    third = x.size // 3
    return [x[:third], x[third:third], x[third:]] if o.get("list") else [x]


def _run_norm(a: Arrays, o: Options, fmt: str) -> Arrays:
    return {"norm": np.array(global_norm(a["x"] if isinstance(a["x"], list) else _cut(a["x"], o)))}


def _true_norm(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    x = decode(a["x"], fmt).astype(np.longdouble)
    if not np.isfinite(x).all():
        value = np.longdouble(np.nan if np.isnan(x).any() else np.inf)
        return {"norm": Interval(value, value, F64)}
    squares = x * x  # exact for formats up to float32; for float64 the low part carries on
    if x.size <= 2**20:
        high = squares.astype(np.float64)
        norm = np.sqrt(np.longdouble(math.fsum([*high.tolist(), *(squares - high).astype(np.float64).tolist()])))
    else:  # fsum would take seconds; a pairwise sum with 11 more bits is far inside the bound
        norm = np.sqrt(np.sum(squares))
    chunk = min(x.size, 32768)
    error = (
        ((chunk / 16 + 16) + x.size / 32768 + 3 + 4) * 2.0**-53 / 2
    )  # of the sum, halved by the root; plus scaling and root
    return {"norm": Interval(norm * (1 - error), norm * (1 + error) + np.longdouble(2) ** -1074, F64)}


def _torch_norm(a: Arrays, o: Options, fmt: str) -> Contender | None:
    torch = optional("torch")
    if torch is None:
        return None
    tensors = [_tensor(torch, x) for x in _each(a["x"])]
    return Contender("torch", lambda: torch.nn.utils.get_total_norm(tensors).item(), arrays={})


def _numpy_norm(a: Arrays, o: Options, fmt: str) -> Contender | None:
    if fmt not in ("f32", "f64"):
        return None
    x = _each(a["x"])
    return Contender("numpy dot", lambda: math.sqrt(sum(float(np.dot(y, y)) for y in x)), arrays={})


# ---- the loss window ------------------------------------------------------------------------------------------------


def _make_window(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    """A ring that `stored` losses have gone through; n is its length."""
    return {"window": 1 + 0.1 * rng.standard_normal(n), "stored": np.array([o["stored"]]), "out": np.zeros(3)}


def _run_window(a: Arrays, o: Options, fmt: str) -> Arrays:
    call("loss_window", (a["window"], a["stored"], a["out"]), (a["window"].size, o["period"], o["loss"]))
    return a


def _true_window(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    window, stored, patience = a["window"].copy(), int(a["stored"][0]), a["window"].size
    zero = np.zeros(3)
    if math.isnan(o["loss"]):
        return {"window": window, "stored": np.array([stored]), "out": zero}
    window[stored % patience] = o["loss"]
    stored += 1
    result = {"window": window, "stored": np.array([stored])}
    if stored < patience:
        return {**result, "out": zero}
    newest_last = np.roll(window, -(stored % patience)).astype(np.longdouble)
    statistics = [np.longdouble(newest_last[-1] >= newest_last.max())]
    statistics += [np.var(newest_last[-min(o["period"], patience) :]), np.var(newest_last)]
    # Two passes of at most n rounded additions each about a shift inside the data's range.
    values, reach = np.array(statistics), float(np.ptp(newest_last))
    error = np.array([0, 1, 1]) * (patience + 4) * 2.0**-52 * (values + reach * reach)
    return {**result, "out": Interval(values - error, values + error, F64)}


_WINDOW = {"stored": 1000, "period": 10, "loss": 1.5}


CASES: Sequence[Case] = [
    Case(
        op="sum_squares",
        make=_make_norm,
        run=_run_norm,
        truth=_true_norm,
        error="relative error of the sum: (chunk / 16 + 16 + chunks) 2^-53, chunks of 32,768 elements",
        variants={"default": {}, "list": {"list": True}},
        flops=lambda o: 2,
        streams=lambda o: {"x": "r"},
        peers={"torch": _torch_norm, "numpy dot": _numpy_norm},
        models={"torch": _torch_norm, "numpy dot": _numpy_norm},
        rows=(Row("default", ALL, sizes=(1_000_000, 10_000_000)), Row("default", ("f32",), models=("1000x1000",))),
    ),
    Case(
        op="loss_window",
        make=_make_window,
        run=_run_window,
        truth=_true_window,
        error="two passes about the newest loss: patience 2^-52 of the variance and of the range squared",
        variants={
            "full": _WINDOW,
            "filling": {**_WINDOW, "stored": 0},
            "high": {**_WINDOW, "loss": 9.0},
            "near-constant": {**_WINDOW, "loss": 1.0 + 1e-9, "period": 1000},
            "nan": {**_WINDOW, "loss": math.nan},
        },
        flops=lambda o: 0,
        streams=lambda o: {},
        sizes=(*(n for n in SIZES if 0 < n < 1000), 10, 100),
        special=False,
    ),
]
