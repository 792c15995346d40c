"""What the tests of optim share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from curvk.optim import SGD, Adam, AdamW, AdamZ

Arrays = list[Any]
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": SGD,
    "momentum": lambda p, **kw: SGD(p, momentum=0.9, dampening=0.1, weight_decay=0.01, **kw),
    "nesterov": lambda p, **kw: SGD(p, momentum=0.8, nesterov=True, maximize=True, **kw),
    "adam": lambda p, **kw: Adam(p, weight_decay=0.1, **kw),
    "amsgrad": lambda p, **kw: Adam(p, amsgrad=True, **kw),
    "adamw": AdamW,
    "adamz": lambda p, **kw: AdamZ(p, patience=5, stagnation_period=2, **kw),
}


def model(seed: int = 0, dtype: Any = np.float32) -> Arrays:
    """Six arrays: a matrix, a transposed one, a strided view, a vector, a 0-d and an empty one."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((5, 7)).astype(dtype),
        rng.standard_normal((4, 3)).astype(dtype).T,
        rng.standard_normal((6, 8)).astype(dtype)[::2, 1::3],
        rng.standard_normal(17).astype(dtype),
        np.array(rng.standard_normal(), dtype),
        np.zeros((0, 3), dtype),
    ]


def grads_like(params: Arrays, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(p.shape).astype(p.dtype) for p in params]


def contents(optimizer: Any) -> list[bytes]:
    """All bytes that a step may write."""
    arrays = [p for group in optimizer.param_groups for p in group["params"]]
    states = [entry[name] for entry in optimizer.state for name in sorted(entry)]
    numbers = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return [np.asarray(a).tobytes() for a in arrays + states] + [repr((numbers, optimizer.skipped_steps)).encode()]


def assert_same(a: Arrays, b: Arrays) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.tobytes() == y.tobytes()


def adam_truth(
    p: Any, grads: Arrays, lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, **o: Any
) -> Any:
    """Adam from the papers, in float64, without any of the rearrangements of a fast kernel."""
    p, m, v, top = np.array(p, np.float64), 0.0, 0.0, 0.0
    decay = o.get("weight_decay", 0.0)
    for t, g in enumerate(grads, 1):
        g = -np.asarray(g, np.float64) if o.get("maximize") else np.asarray(g, np.float64)
        if o.get("decoupled_weight_decay"):
            p = p - lr * decay * p
        else:
            g = g + decay * p
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        top = np.maximum(top, v)
        p = p - lr * (m / (1 - b1**t)) / (np.sqrt((top if o.get("amsgrad") else v) / (1 - b2**t)) + eps)
    return p
