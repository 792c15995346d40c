"""What the tests of noise_kernels share."""

from __future__ import annotations

from typing import Any

import numpy as np
from curvk._bench.storage import encode

Array = np.ndarray[Any, Any]


def values(n: int, fmt: str, rng: np.random.Generator) -> Array:
    return encode(rng.standard_normal(n), fmt)
