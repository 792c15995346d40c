"""A pytest plugin (-p fake_cuda, from this folder): a torch without CUDA gets two CUDA devices, see fake_cuda.cpp.

Tensors say that they are on "cuda:0" and "cuda:1" and are in the host's memory, where curvk's emulator then runs its
CUDA kernels. It shows which branch is taken, what goes where, and the bits; no streams, no graphs, and no waiting.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def _library() -> Path:
    """Compiles fake_cuda.cpp, once for a version of it and of torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations
    torch = Path(spec.submodule_search_locations[0])
    source = Path(__file__).with_suffix(".cpp")
    key = hashlib.sha256(source.read_bytes() + (torch / "version.py").read_bytes()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"curvk_fake_cuda_{os.getuid()}_{key}.so"
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}")
        include = torch / "include"
        paths = ["-I", str(include), "-I", str(include / "torch/csrc/api/include")]
        libraries = ["-L", str(torch / "lib"), "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
        flags = ["-O0", "-std=c++20", "-shared", "-fPIC", "-w"]
        subprocess.run(["c++", *flags, *paths, str(source), "-o", str(part), *libraries], check=True)
        part.rename(path)
    return path


_handle = ctypes.CDLL(str(_library()), ctypes.RTLD_GLOBAL)  # first: torch asks for its hooks once

import torch  # noqa: E402


class _Api(ctypes.Structure):
    """DLPack's table of functions."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
        ("more", ctypes.c_void_p * 4),
    )


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
def _current_stream(kind: int, device: int, out: Any) -> int:
    out[0] = None
    return 0


def _table() -> _Api:
    """The table that torch has, with a stream for devices that have none."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    api = _Api.from_buffer_copy(_Api.from_address(get(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api")))
    api.current_stream = ctypes.cast(_current_stream, ctypes.c_void_p).value
    return api


def _install() -> None:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    torch.Tensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(_api), b"dlpack_exchange_api", None)
    own: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0),
        "stream": lambda stream: nullcontext(),
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
    }
    for name, value in own.items():
        setattr(torch.cuda, name, value)

    from curvk import _cuda

    _cuda.load(emulator=True)


_api = _table()
_install()
