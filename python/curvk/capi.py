"""The C interface through cffi, in ABI mode: `ffi`, `lib`, and where to compile and link C programs.

`lib` is the very library that curvk's own module uses, so levels and threads set in one are set in the other. Its
functions can be called from Numba-compiled code.

>>> import numpy as np
>>> from curvk.capi import ffi, lib
>>> x = np.array([3.0, 4.0], np.float32)
>>> out = np.zeros(2)
>>> lib.curvk_sum_squares_f32(ffi.from_buffer("float[]", x), x.size, 1.0, ffi.from_buffer("double[]", out))
0
>>> float(out[0])
25.0
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

try:
    from cffi import FFI
except ModuleNotFoundError as error:
    raise ImportError("curvk.capi needs cffi, which is not installed; use: pip install cffi") from error

from ._backend import REBUILD, core
from ._signatures import functions, include_dir, typedefs

__all__ = ["ffi", "include_dir", "lib", "library_path"]


def library_path() -> Path:
    """The shared library; link C programs to it.

    Raises:
        RuntimeError: this build has no compiled kernels.
    """
    if core is None:
        raise RuntimeError(f"curvk.capi needs compiled kernels, which this build lacks; rebuild with: {REBUILD}")
    return Path(core.__file__).parent / ("libcurvk.dylib" if sys.platform == "darwin" else "libcurvk.so")


ffi: Any = FFI()
ffi.cdef("\n".join([*typedefs(), *(f"{f.prototype()};" for f in functions().values())]))
lib: Any = ffi.dlopen(str(library_path()))
