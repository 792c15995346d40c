"""What the tests of sam share."""

from __future__ import annotations

import numpy as np
from curvk.kernels.half import from_float32, to_float32

SEED = 20260
SHAPES = [(7,), (3, 5), (), (0,), (33,), (2, 70_000)]


def stored(x, fmt):
    return from_float32(np.ascontiguousarray(x, np.float32), "bf16") if fmt == "bfloat16" else x.astype(fmt)


def real(x, fmt):
    return to_float32(x).astype(np.float64) if fmt == "bfloat16" else x.astype(np.float64)


def made(fmt="float64", seed=SEED, shapes=SHAPES):
    """Parameters, and gradients that depend on where they are taken: a random linear map of the weights, and noise."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    params = [stored(rng.standard_normal(s), fmt) for s in shapes]
    slopes = [rng.standard_normal(s) for s in shapes]

    def grads():
        return [stored(np.tanh(real(p, fmt) * h) + h, fmt) for p, h in zip(params, slopes, strict=True)]

    return params, grads


def bits(arrays):
    return [a.tobytes() for a in arrays]
