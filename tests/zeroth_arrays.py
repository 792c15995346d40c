"""What the tests of zeroth share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from curvk.kernels import noise

Params = dict[str, Any]
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LAYERS = [[f"h.{i}.weight", f"h.{i}.bias"] for i in range(4)]


def model(seed: int = 0, dtype: Any = np.float32) -> Params:
    """An embedding, four layers of a matrix and a bias (one matrix transposed, one strided), a 0-d scale, a head."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        return np.array(0.5 * rng.standard_normal(shape), dtype)

    params = {"embed.weight": draw(7, 5)}
    for i in range(4):
        params[f"h.{i}.weight"] = [draw(5, 5), draw(5, 4).T, draw(8, 6)[::2, ::2], draw(40, 3)][i]
        params[f"h.{i}.bias"] = draw(5)
    return params | {"scale": draw(), "head": draw(33)}


def wide(x: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(x).astype(np.float64)


def bowl(params: Params) -> float:
    """A smooth loss in float64 that every tensor has a part in."""
    total = 0.0
    for k, x in enumerate(params.values()):
        total += float(np.sum((wide(x) - 0.1 * k) ** 2)) * (1 + k) + float(np.sum(np.sin(3 * wide(x))))
    return total / 10


def contents(params: Params) -> dict[str, bytes]:
    return {name: np.asarray(x).tobytes() for name, x in params.items()}


def assert_same(a: Params, b: Params) -> None:
    assert contents(a) == contents(b)


def copied(params: Params) -> Params:
    return {name: x.copy(order="K") for name, x in params.items()}


def z_of(x: Any, name: str, draw: int, seed: int, dist: str = "normal") -> np.ndarray[Any, np.dtype[np.float64]]:
    """A tensor's noise, in float64; tests/test_noise.py holds it against its definition."""
    out = np.empty(np.shape(x))
    noise.fill(out, seed=seed, draw=draw, tensor=noise.tensor_word(name), dist=dist)
    return out


def steps(opt: Any, loss: Callable[[Any], Any], n: int) -> list[float]:
    return [opt.step(loss) for _ in range(n)]


def assert_mean(samples: Any, expected: float, sigmas: float = 5.0) -> None:
    """The samples' mean is the expected one within Monte-Carlo error, and that error is small enough to tell."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert error < 0.06 * abs(expected), f"only {error / expected:.1%} resolved"
    assert abs(samples.mean() - expected) < sigmas * error, f"{samples.mean()} +- {error}, expected {expected}"
