"""What the tests of zeroth_log share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Params = dict[str, Any]
LAYERS = [["h.0.w", "h.0.bias"], ["h.1.w"], ["h.2.w", "h.2.bias"]]


def model(dtype: Any = np.float32, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    shapes = {"embed": (9, 4), "h.0.w": (33, 2), "h.0.bias": (2,), "h.1.w": (40,), "h.2.w": (5, 7), "h.2.bias": (3,)}
    params = {name: np.array(0.5 * rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    return params | {"h.1.w": params["h.1.w"][::-2], "scale": np.array(0.7, dtype)}


def bowl(params: Params) -> float:
    return sum(float(np.sum((np.asarray(x).astype(np.float64) - 0.1 * k) ** 2)) for k, x in enumerate(params.values()))


def contents(params: Params) -> dict[str, bytes]:
    return {name: np.asarray(x).tobytes() for name, x in params.items()}


def run(opt: Any, n: int, bad: int = -1) -> None:
    """Takes n steps; the loss of step `bad` is not finite."""
    for _ in range(n):
        nan = len(opt.log) == bad
        opt.step(lambda p, nan=nan: math.nan if nan else bowl(p))
