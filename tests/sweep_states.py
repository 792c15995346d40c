"""States as the sweeps store them, and what they hold; for the tests of the sweeps."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from curvk._bench.codes import widened
from curvk._bench.storage import numbers
from curvk.kernels.sweep import FORMATS, Codes, quantize

Array = np.ndarray[Any, Any]
KINDS = ("f32", "bf16", "curvk", "bitsandbytes")


def generator(*parts: object) -> np.random.Generator:
    """Numbers that the parts determine; the seed is printed, so a failure shows it."""
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return np.random.default_rng(seed)


def f32(x: Any) -> Array:
    return np.asarray(x, np.float32)


def state(shape: Any, kind: str) -> Any:
    """Zeros, stored so."""
    if kind in FORMATS:
        return quantize(np.zeros(shape, np.float32), format=kind)
    return np.zeros(shape, np.uint16 if kind == "bf16" else np.float32)


def zeros(shape: Any, kind: str) -> tuple[Any, Any]:
    """Moments of a first step. The second one's code of zero is bitsandbytes' unsigned one."""
    v = state(shape, kind)
    if kind == "bitsandbytes":
        v.codes[...] = 0
    return state(shape, kind), v


def wide(x: Any, signed: bool) -> Array:
    """The numbers of a state, float64."""
    if isinstance(x, Codes):
        found = widened(x.codes.ravel(), x.scales, "8" if x.format == "curvk" else "8b", signed)
        return np.asarray((found.low + found.high) / 2)
    return np.asarray(numbers(x), np.float64)


def whole(p: Array, low: Array) -> Array:
    """The float32 that two halves are."""
    return ((p.astype(np.uint32) << 16) + low.view(np.int16).astype(np.int32).view(np.uint32)).view(np.float32)


def bits(*arrays: Any) -> list[bytes]:
    flat = [x for a in arrays for x in (a[:2] if isinstance(a, Codes) else [a])]
    return [np.ascontiguousarray(x).tobytes() for x in flat if x is not None]
