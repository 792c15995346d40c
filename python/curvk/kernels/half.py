"""bfloat16 and float16 arrays, converted to float32 and back.

NumPy has no bfloat16: uint16 arrays of bit patterns, or arrays of ml_dtypes.bfloat16, stand for it. Arrays on a CUDA
device are taken where curvk has a CUDA version, both arguments on one device; results lie there too.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from .._arrays import Array, empty, numpy_view
from .._backend import call
from .._cuda import device_of
from .._errors import message

__all__ = ["from_float32", "to_float32"]

FloatArray = np.ndarray[Any, np.dtype[np.float32]]


def to_float32(x: Array, *, out: FloatArray | None = None) -> FloatArray:
    """Widens a bfloat16 or float16 array to float32; exact.

    Args:
        x: array of any shape, C-contiguous; uint16 holds bfloat16 bit patterns.
        out: float32 array of x's shape to write to; a fresh one by default.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`.

    >>> import numpy as np
    >>> to_float32(np.array([0x3FC0], np.uint16))
    array([1.5], dtype=float32)
    """
    device = device_of(x)
    shape = numpy_view(x, "to_float32", "x", device).shape
    if out is None:
        out = empty(x, shape, "float32", device)
    _check_shape("to_float32", out, shape, device)
    call("to_float32", (x, out), (math.prod(shape),))
    return out


def from_float32(x: Array, format: Literal["bf16", "f16"], *, out: Array = None) -> Any:
    """Rounds a float32 array to bfloat16 or float16, to nearest, ties to even.

    Args:
        x: float32 array of any shape, C-contiguous.
        format: "bf16" for bfloat16 bit patterns in uint16, "f16" for float16.
        out: array of x's shape to write to; a fresh one by default.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`.

    >>> import numpy as np
    >>> from_float32(np.array([1.5], np.float32), "bf16")
    array([16320], dtype=uint16)
    """
    if format not in ("bf16", "f16"):
        raise ValueError(f"from_float32: argument 'format': got {format!r}, needs 'bf16' or 'f16'")
    device = device_of(x)
    shape = numpy_view(x, "from_float32", "x", device).shape
    if out is None:
        out = empty(x, shape, "uint16" if format == "bf16" else "float16", device)
    _check_shape("from_float32", out, shape, device)
    call("from_float32", (x, out), (math.prod(shape),), format)
    return out


def _check_shape(function: str, out: Array, shape: tuple[int, ...], device: int | None) -> None:
    found = numpy_view(out, function, "out", device).shape
    if found != shape:
        raise ValueError(message(function, "out", f"shape {found}", f"shape {shape} like 'x'"))
