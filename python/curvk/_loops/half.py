"""16-bit storage formats, converted by NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bits = np.ndarray[Any, np.dtype[np.uint16]]


def widen_bf16(x: Bits) -> Floats:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow_bf16(x: Floats) -> Bits:
    u = np.ascontiguousarray(x).view(np.uint32)
    rounded = (u + (np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), (u >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def decode(x: np.ndarray[Any, Any], fmt: str) -> Floats:
    """A stored array as float32; exact."""
    return widen_bf16(x) if fmt == "bf16" else x.view(np.float16).astype(np.float32)


def encode(x: Floats, fmt: str) -> np.ndarray[Any, Any]:
    """float32 rounded to the storage format, to nearest even."""
    if fmt == "bf16":
        return narrow_bf16(x)
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


def to_float32(x: np.ndarray[Any, Any], out: Floats, n: int) -> None:
    out[...] = decode(x, "f16" if x.dtype == np.float16 else "bf16")


def from_float32(x: Floats, out: np.ndarray[Any, Any], n: int) -> None:
    out[...] = encode(x, "f16" if out.dtype == np.float16 else "bf16")
