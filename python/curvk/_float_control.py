"""The default floating-point control word around a twin's loop, as the C++ team sets it around a kernel.

A caller may have set flush-to-zero (torch.set_flush_denormal does); the same bits need it off.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Where Linux's fenv_t keeps the control word, and its default value. Elsewhere the caller's mode stays in force.
_CONTROL_WORDS = {"x86_64": (28, 0x1F80), "aarch64": (0, 0)}
_control = _CONTROL_WORDS.get(platform.machine()) if sys.platform == "linux" else None
_libm: Any = None


def _library() -> Any:
    global _libm
    if _libm is None:
        _libm = ctypes.CDLL("libm.so.6" if platform.libc_ver()[0] == "glibc" else None)
    return _libm


@contextmanager
def default_float_control() -> Iterator[None]:
    """Rounds to nearest and keeps denormals inside the block; restores the caller's mode after it. Costs about 5 us."""
    if _control is None:
        yield
        return
    libm = _library()
    callers = ctypes.create_string_buffer(64)
    libm.fegetenv(callers)
    default = ctypes.create_string_buffer(callers.raw, 64)
    struct.pack_into("<I", default, *_control)
    libm.fesetenv(default)
    try:
        yield
    finally:
        libm.fesetenv(callers)
