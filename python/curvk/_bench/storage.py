"""16-bit formats by their definition, and arrays for cases: the slow, plain way, as truth needs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_EXPONENT_BITS = {"bf16": 8, "f16": 5}
_BLOCK = 131_101  # a prime, so that the period of a long array meets no chunk's


def decode(bits: Array, fmt: str) -> Array:
    """Elements of a storage format as float64: sign, exponent and fraction taken literally."""
    if fmt not in _EXPONENT_BITS:
        return np.asarray(bits).astype(np.float64)
    exponent_bits = _EXPONENT_BITS[fmt]
    fraction_bits = 15 - exponent_bits
    code = np.asarray(bits).view(np.uint16).astype(np.int64)
    exponent, fraction = (code >> fraction_bits) & (2**exponent_bits - 1), code & (2**fraction_bits - 1)
    bias = 2 ** (exponent_bits - 1) - 1
    significand = np.where(exponent == 0, fraction, fraction + 2**fraction_bits).astype(np.float64)
    value = np.ldexp(significand, np.maximum(exponent, 1) - bias - fraction_bits)
    value = np.where(exponent == 2**exponent_bits - 1, np.where(fraction == 0, np.inf, np.nan), value)
    return np.where(code >> 15 == 1, -value, value)


def numbers(x: Array) -> Array:
    """What an array holds, whatever its storage; uint16 stands for bfloat16."""
    return decode(x, "f16" if x.dtype == np.float16 else "bf16") if x.dtype.itemsize == 2 else x


@lru_cache(maxsize=2)
def _midpoints(fmt: str) -> Array:
    """The numbers half-way between neighbouring codes, from zero up; infinity stands for the next power of two."""
    infinity = (2 ** _EXPONENT_BITS[fmt] - 1) << (15 - _EXPONENT_BITS[fmt])
    values = decode(np.arange(infinity + 1, dtype=np.uint16), fmt)
    values[-1] = 2 * values[-2] - values[-3]
    return (values[1:] + values[:-1]) / 2


def encode(x: Array, fmt: str) -> Array:
    """The nearest codes, the even one of two equally near; NaN becomes a quiet NaN. bf16 comes as uint16."""
    if fmt not in _EXPONENT_BITS:
        return np.asarray(x).astype(np.float32 if fmt == "f32" else np.float64)
    x = np.asarray(x).astype(np.float64)
    midpoints = _midpoints(fmt)
    below = np.searchsorted(midpoints, np.abs(x), "left")
    tie = midpoints[np.minimum(below, midpoints.size - 1)] == np.abs(x)
    code = below + (tie & (below % 2 == 1))
    code = np.where(np.isnan(x), 0x7FFF, code) | (np.signbit(x).astype(np.int64) << 15)
    bits = code.astype(np.uint16)
    return np.asarray(bits.view(np.float16) if fmt == "f16" else bits)


def empty(n: int, dtype: Any, *, offset: int = 0, guard: int = 0) -> Array:
    """An array that starts `offset` elements behind a 64-byte line, with `guard` bytes of its own on either side."""
    dtype = np.dtype(dtype)
    raw = np.empty(n * dtype.itemsize + offset * dtype.itemsize + 2 * guard + 64, np.uint8)
    start = guard + (-(raw.ctypes.data + guard)) % 64 + offset * dtype.itemsize
    return raw[start : start + n * dtype.itemsize].view(dtype)


def sample(n: int, fmt: str, rng: np.random.Generator, draw: Callable[[np.random.Generator, int], Array]) -> Array:
    """N elements of `draw(rng, length)` in a storage format; long arrays repeat a block, since drawing is slow."""
    block = encode(draw(rng, min(n, _BLOCK)), fmt)
    out = empty(n, block.dtype)
    for start in range(0, n, _BLOCK):
        out[start : start + _BLOCK] = block[: n - start]
    return out
