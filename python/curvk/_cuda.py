"""Arrays on CUDA devices: what they are, which library runs their kernels, and in which stream.

That library is one of its own, compiled where asked for (`pip install . -C cmake.define.CURVK_CUDA=ON`) and loaded when
the first device array comes. Its twin, the emulator, runs the same kernels on the CPU, for tests.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ._errors import message

BUILD = "pip install . -C cmake.define.CURVK_CUDA=ON (needs nvcc)"
_CUDA = 2  # DLPack's kDLCUDA
_TORCH_TYPES = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "bfloat16": "<u2"}
_TORCH_TYPES |= {"int16": "<i2", "uint16": "<u2", "int64": "<i8", "uint8": "|u1"}
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 4: "u"}  # codes of DLDataType; bfloat16 as bits

_loaded: Path | None = None


def _core() -> Any:
    from ._backend import core  # which imports what imports this

    return core


def library(emulator: bool = False) -> Path | None:
    """Where the CUDA library or the emulator is; None if it was not built."""
    core = _core()
    if core is None:
        return None
    path = Path(core.__file__).with_name("libcurvk_cuda_emulator.so" if emulator else "libcurvk_cuda.so")
    return path if path.exists() else None


def load(emulator: bool = False) -> Path:
    """Loads the CUDA library, once in a process, and returns its path.

    Raises:
        ImportError: it was not built, does not load, or the other of the two has been loaded.
    """
    global _loaded
    name = "CUDA emulator" if emulator else "CUDA library"
    path = library(emulator)
    if _loaded is not None and (_loaded == path or not emulator):  # device arrays go to whichever is there
        return _loaded
    if path is None:
        how = BUILD.replace("CURVK_CUDA=ON (needs nvcc)", "CURVK_CUDA_EMULATOR=ON") if emulator else BUILD
        raise ImportError(f"curvk's {name} is not in this build; build it with {how}")
    if _loaded is not None:
        raise ImportError(f"curvk's {name} cannot be loaded: {_loaded.name} is in use in this process")
    try:
        _core().load_cuda(str(path))
    except RuntimeError as error:
        raise ImportError(f"curvk's {name} does not load: {error}") from None
    _loaded = path
    return path


def require(op: str, label: str, device: int) -> None:
    """Raises BufferError unless a kernel can run on arrays of a device."""
    found, needed = f"an array on cuda:{device}", "an array on the CPU"
    try:
        load()
    except ImportError as error:
        raise BufferError(message(op, label, found, needed, f"copy it there ({error})")) from None
    if not _core().has_cuda(op):
        raise BufferError(message(op, label, found, needed, "this kernel has no CUDA version; copy it to the CPU"))


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _is_tensor(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def device_of(x: Any) -> int | None:
    """The number of the CUDA device on which an array lies; None for the CPU, other devices and what is no array."""
    if type(x) is np.ndarray or isinstance(x, (np.ndarray, type)):
        return None
    if _is_tensor(x):
        return x.device.index if x.device.type == "cuda" else None
    if hasattr(x, "__dlpack_device__"):
        kind, device = place_of(x) or (None, None)
        return device if kind == _CUDA else None
    if hasattr(x, "__cuda_array_interface__"):
        try:
            address = x.__cuda_array_interface__["data"][0] or 0
        except (KeyError, IndexError, TypeError):
            return None
        return _device_of_address(address) if isinstance(address, int) and 0 <= address < 1 << 64 else None
    return None


def place_of(x: Any) -> tuple[int, int] | None:
    """DLPack's device type and number of an object with that protocol; None where it tells something else."""
    try:
        kind, device = map(int, x.__dlpack_device__())
    except (TypeError, ValueError, OverflowError):
        return None
    return (kind, device) if 0 < kind < 1 << 31 and 0 <= device < 1 << 31 else None


def _device_of_address(address: int) -> int:
    device = ctypes.c_int32(0)
    try:
        path = load()
    except ImportError:
        return 0  # `require` says that there is no library
    status = ctypes.CDLL(str(path)).curvk_cuda_device_of(ctypes.c_void_p(address), ctypes.byref(device))
    return 0 if status else device.value


def addresses(x: Any, function: str, label: str, device: int) -> np.ndarray[Any, Any]:
    """A NumPy array with the shape, strides, dtype and address of an array on a device: to be looked at, never read.

    Raises:
        BufferError: x is not on that device.
        TypeError: a dtype that NumPy lacks.
    """
    found = device_of(x)
    if found != device:
        where = "the CPU" if found is None else f"cuda:{found}"
        remedy = f"move it there, as torch.as_tensor({label}, device='cuda:{device}') does"
        needed = f"one on cuda:{device} like the others"
        raise BufferError(message(function, label, f"an array on {where}", needed, remedy))
    if _is_tensor(x):
        name = str(x.dtype).removeprefix("torch.")
        if name not in _TORCH_TYPES:
            raise TypeError(message(function, label, str(x.dtype), "a tensor NumPy can view"))
        width = x.element_size()
        strides = tuple(s * width for s in x.stride())
        return _at(x.data_ptr(), tuple(x.shape), strides, _TORCH_TYPES[name], False)
    if hasattr(x, "__cuda_array_interface__"):
        given = x.__cuda_array_interface__
        try:
            address, read_only = given["data"]
            return _at(address or 0, given["shape"], given.get("strides"), given["typestr"], read_only)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found_there = f"{type(x).__name__} ({type(error).__name__}: {error})"
            needed = "an array with a whole __cuda_array_interface__"
            raise TypeError(message(function, label, found_there, needed)) from error
    return _of_dlpack(x, function, label)


def _at(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, kind: str, read_only: bool
) -> np.ndarray[Any, Any]:
    if 0 in shape or not address:
        return np.empty(shape, kind)
    interface = {"data": (address, read_only), "shape": shape, "strides": strides, "typestr": kind, "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _of_dlpack(x: Any, function: str, label: str) -> np.ndarray[Any, Any]:
    """The same of an object with DLPack alone, such as a jax.Array; such arrays count as read-only."""
    capsule = x.__dlpack__(stream=1)  # the legacy default stream, in which the kernel then runs
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    t = _DLTensor.from_address(get(capsule, b"dltensor"))  # the capsule keeps its memory, and x keeps the array's
    if t.lanes != 1 or t.code not in _DLPACK_KINDS or t.bits not in (8, 16, 32, 64):
        raise TypeError(message(function, label, type(x).__name__, "an array NumPy can view"))
    shape = tuple(t.shape[: t.ndim])
    width = t.bits // 8
    strides = tuple(s * width for s in t.strides[: t.ndim]) if t.strides else None
    kind = f"<{_DLPACK_KINDS[t.code]}{width}"
    return _at((t.data or 0) + t.byte_offset, shape, strides, kind, True)


def stream_of(x: Any) -> Callable[[], int]:
    """A function that tells the stream, as an address, in which the library of an array on a device works now."""
    if _is_tensor(x):
        device = x.device
        return lambda: int(sys.modules["torch"].cuda.current_stream(device).cuda_stream)
    if hasattr(x, "__cuda_array_interface__"):
        return lambda: int(x.__cuda_array_interface__.get("stream") or 0)

    def after_its_own() -> int:
        x.__dlpack__(stream=1)
        return 0

    return after_its_own


def empty(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array of the kind of `like`, on its device, not initialised.

    Args:
        dtype: a name that NumPy and the other library share, such as "float32".

    Raises:
        TypeError: the library of `like` cannot be asked for one (no array-API namespace).
    """
    if _is_tensor(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    if not hasattr(like, "__array_namespace__"):
        raise TypeError(f"curvk makes no arrays of type {type(like).__name__}; give it torch tensors or CuPy arrays")
    namespace = like.__array_namespace__()
    return namespace.empty(shape, dtype=getattr(namespace, dtype), device=like.device)


def read(x: Any) -> np.ndarray[Any, Any]:
    """A copy of a C-contiguous array on a device, in the host's memory; waits for the device."""
    device = device_of(x)
    assert device is not None
    there = addresses(x, "read", "x", device)
    here = np.empty(there.shape, there.dtype)
    lib = ctypes.CDLL(str(load()))
    to, source, stream = (ctypes.c_void_p(a) for a in (here.ctypes.data, there.ctypes.data, stream_of(x)()))
    if lib.curvk_cuda_read(to, source, ctypes.c_int64(here.nbytes), ctypes.c_int32(device), stream):
        lib.curvk_cuda_status_message.restype = ctypes.c_char_p
        raise RuntimeError(lib.curvk_cuda_status_message().decode())
    return here


# ---- what there is --------------------------------------------------------------------------------------------------


def report() -> dict[str, Any]:
    """What `curvk info` says: whether the library was built and loads, driver and devices, or why there is none."""
    found: dict[str, Any] = {"built": library() is not None, "library": None, "driver": None, "runtime": None}
    found |= {"devices": [], "reason": None, "emulator": library(emulator=True) is not None}
    if not found["built"]:
        found["reason"] = f"not in this build; to have it: {BUILD}"
        return found
    try:
        found["library"] = str(load())
    except ImportError as error:
        found["reason"] = str(error)
        return found
    lib = ctypes.CDLL(found["library"])
    lib.curvk_cuda_status_message.restype = ctypes.c_char_p

    def failed(status: int) -> bool:
        if status:
            found["reason"] = lib.curvk_cuda_status_message().decode()
        return bool(status)

    driver, runtime, count = ctypes.c_int32(0), ctypes.c_int32(0), ctypes.c_int32(0)
    if failed(lib.curvk_cuda_versions(ctypes.byref(driver), ctypes.byref(runtime))):
        return found
    found["driver"], found["runtime"] = _version(driver.value), _version(runtime.value)
    if failed(lib.curvk_cuda_device_count(ctypes.byref(count))):
        return found
    for device in range(count.value):
        name, capability, size = ctypes.create_string_buffer(256), ctypes.c_int32(0), ctypes.c_int64(0)
        arguments = (ctypes.c_int32(device), name, ctypes.c_int64(256), ctypes.byref(capability), ctypes.byref(size))
        if failed(lib.curvk_cuda_device(*arguments)):
            return found
        gib = round(size.value / 2**30, 1)
        found["devices"].append({"name": name.value.decode(), "capability": capability.value / 10, "memory_gib": gib})
    if not found["devices"]:
        found["reason"] = "the driver reports no device"
    return found


def _version(number: int) -> str | None:
    return f"{number // 1000}.{number % 1000 // 10}" if number else None
