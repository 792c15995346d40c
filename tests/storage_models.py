"""Models and settings of optimizers in fewer bytes, and what such a step may write; for the tests of curvk.optim."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from curvk.optim import SGD, Adam, AdamW, AdamZ
from optim_models import assert_same as assert_same
from optim_models import contents as contents
from optim_models import grads_like as grads_like

Arrays = list[Any]
BF16 = ml_dtypes.bfloat16
NEW = ("state_bits", "state_format", "rounding", "master", "ema", "zero_grad", "seed")
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda p, **kw: SGD(p, **{"lr": 0.1} | kw),
    "momentum": lambda p, **kw: SGD(p, **{"lr": 0.1} | kw, momentum=0.9, dampening=0.1),
    "adam": lambda p, **kw: Adam(p, **{"lr": 0.02} | kw, weight_decay=0.1),
    "adamw": AdamW,
    "adamz": lambda p, **kw: AdamZ(p, patience=5, stagnation_period=2, **kw),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "stochastic": {"rounding": "stochastic", "seed": 2**64 - 5},
    "kahan": {"rounding": "kahan"},
    "split16": {"master": "split16"},
    "16": {"state_bits": 16, "seed": 7},
    "8": {"state_bits": 8},
    "8b": {"state_bits": 8, "state_format": "bitsandbytes"},
    "8 split16 ema": {"state_bits": 8, "master": "split16", "ema": 0.9},
    "16 stochastic ema zero": {"state_bits": 16, "rounding": "stochastic", "ema": 0.5, "zero_grad": True},
    "ema": {"ema": 0.99},
    "zero": {"zero_grad": True},
}
DTYPES = {"float32": np.float32, "bfloat16": BF16, "float16": np.float16}


def model(seed: int = 0, dtype: Any = np.float32) -> Arrays:
    """Seven arrays: a matrix, a transposed one, a strided view, vectors shorter and longer than groups, 0-d, empty."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((5, 7)).astype(dtype),
        rng.standard_normal((24, 13)).astype(dtype).T,
        rng.standard_normal((6, 8)).astype(dtype)[::2, 1::3],
        rng.standard_normal(17).astype(dtype),
        rng.standard_normal(600).astype(dtype),
        np.array(rng.standard_normal(), dtype),
        np.zeros((0, 3), dtype),
    ]


def bits(x: Any) -> Any:
    return np.asarray(x).view(np.uint16).astype(np.uint32)


def master(p: Any, low: Any) -> Any:
    """The float32 of a split master, which p is rounded to nearest; so its lower half is signed."""
    return np.array((bits(p) << 16) + low.view(np.int16).astype(np.int32).view(np.uint32)).view(np.float32)


def decoded(codes: Any, scales: Any, signed: bool) -> Any:
    """Curvk's codes by their formula."""
    s = np.repeat(scales, 32)[: codes.size].reshape(codes.shape)
    c = codes.view(np.int8).astype(np.int32) if signed else codes.astype(np.int32)
    y = (np.abs(c) / np.float32(127 if signed else 255)).astype(np.float32).view(np.int32).astype(np.int64)
    one = np.array(1, np.float32).view(np.int32).astype(np.int64)
    curve = (2 * y - one if signed else 4 * y - 3 * one).astype(np.int32).view(np.float32)
    return np.where(c == 0, 0, s * np.sign(c) * curve)


def train(optimizer: Any, params: Arrays, steps: range) -> None:
    for seed in steps:
        grads: Arrays = grads_like(params, seed)
        if seed % 3 == 1:
            grads[seed % 5] = None
        optimizer.step(grads, math.cos(seed * seed))
