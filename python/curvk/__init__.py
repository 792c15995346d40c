"""curvk: the hot loops of gradient methods as compiled kernels.

`curvk.optim` steps lists of NumPy arrays, `curvk.torch` torch modules, `curvk.kernels` your own arrays one call at a
time. `curvk.capi` opens the C interface. `curvk info` on the command line says what runs here and why.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._backend import get_backend, get_simd, set_simd, simd_levels, use_backend, version
from ._threads import get_num_threads, set_num_threads, threads

__version__ = version
_SUBMODULES = ("capi", "curvature", "kernels", "machines", "online", "optim", "sketch", "stein", "torch", "zeroth")
__all__ = [
    "capi",
    "curvature",
    "get_backend",
    "get_num_threads",
    "get_simd",
    "kernels",
    "machines",
    "online",
    "optim",
    "set_num_threads",
    "set_simd",
    "simd_levels",
    "sketch",
    "stein",
    "threads",
    "torch",
    "use_backend",
    "zeroth",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:  # imported when first named, so that `import curvk` stays light
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'curvk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
