"""What the tests of alice share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from curvk.optim import Alice

Array = np.ndarray[Any, Any]


def run(alice: Alice, w: Array, grad: Callable[[Array], Array], steps: int) -> None:
    for _ in range(steps):
        assert alice.step(lambda: [grad(w.ravel()).reshape(w.shape)])


def close(a: Any, b: Any, rtol: float = 1e-12) -> None:
    scale = np.abs(np.asarray(b)).max(initial=0.0)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)


def model(dtype: Any = np.float32, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((5, 7)).astype(dtype),
        rng.standard_normal((4, 3)).astype(dtype).T,
        rng.standard_normal((6, 8)).astype(dtype)[::2, 1::3],
        np.array(rng.standard_normal(), dtype),
        np.zeros((0, 3), dtype),
        rng.standard_normal(4099).astype(dtype),
    ]


def grads_of(params: list[Any]) -> Callable[[], list[Any]]:
    """Element by element, so that every dtype and layout gets the same."""
    return lambda: [np.asarray(np.cos(3 * p.astype(np.float64)) + 0.5, dtype=p.dtype) for p in params]


def bytes_of(alice: Alice, params: list[Any]) -> list[bytes]:
    states = [entry[name] for entry in alice.state for name in sorted(entry)]
    return [np.asarray(x).tobytes() for x in (*params, *states, alice.t)]
