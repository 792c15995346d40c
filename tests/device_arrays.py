"""Arrays on a CUDA device for tests: torch's where there is a device, else host memory that says it is one.

Host memory goes with the emulator, which runs the CUDA kernels on the CPU in place of curvk's CUDA library. A process
loads one of the two: a machine with a device and the library tests there, any other one with the emulator.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from curvk import _cuda
from curvk._signatures import Function

GUARD, CANARY = 192, 0xA5


@lru_cache(maxsize=1)
def real() -> bool:
    """Whether the tests run on a device."""
    if _cuda.library() is None or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def library() -> Any:
    """The library that the tests run, or None where neither was built."""
    return _cuda.library(emulator=not real())


REASON = "needs the CUDA emulator, or the CUDA library and a device: build with -C cmake.define.CURVK_CUDA_EMULATOR=ON"


@lru_cache(maxsize=1)
def _exports() -> Any:
    path = library()
    return None if path is None else ctypes.CDLL(str(path))


def has_cuda(kernel: Function) -> bool:
    """Whether a kernel has a CUDA version there; asked before curvk loads the library."""
    return hasattr(_exports(), f"{kernel.name}_cuda")


def load() -> None:
    """Puts the CUDA kernels in place."""
    _cuda.load(emulator=not real())


class _Namespace:
    """The part of the array API standard that makes arrays."""

    float16, float32, float64, int64, uint8, uint16 = "float16", "float32", "float64", "int64", "uint8", "uint16"

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: str, device: int) -> DeviceArray:
        return put(
            np.full(np.prod(shape, dtype=int) * np.dtype(dtype).itemsize, CANARY, np.uint8).view(dtype).reshape(shape),
            device,
        )


class _Device(int):
    """The number of a device, without a hash, as CuPy's devices."""

    __hash__ = None  # type: ignore[assignment]


class DeviceArray:
    """An array with `__cuda_array_interface__`, as CuPy's: no one can read it as if it lay on the host.

    Args:
        layout: shape, strides and address, a NumPy array that is not read if the address is a device's.
        device: number of the device.
        read_only: what the interface says.
        stream: what the interface says.
        owner: of the memory.
    """

    def __init__(
        self, layout: np.ndarray, device: int = 0, *, read_only: bool = False, stream: Any = None, owner: Any = None
    ) -> None:
        self.layout, self.device, self.read_only = layout, _Device(device), read_only
        self.stream, self.owner = stream, owner

    shape = property(lambda self: self.layout.shape)
    dtype = property(lambda self: self.layout.dtype)
    ndim = property(lambda self: self.layout.ndim)
    size = property(lambda self: self.layout.size)
    base = property(lambda self: self.layout.base)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = dict(self.layout.__array_interface__)
        interface.update(data=(interface["data"][0], self.read_only), stream=self.stream, version=3)
        return interface

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __array_namespace__(self) -> type[_Namespace]:
        return _Namespace

    def __len__(self) -> int:
        return len(self.layout)

    def _like(self, layout: np.ndarray) -> DeviceArray:
        return DeviceArray(layout, self.device, read_only=self.read_only, stream=self.stream, owner=self.owner)

    def __getitem__(self, key: Any) -> DeviceArray:
        return self._like(self.layout[key])

    def __setitem__(self, key: Any, value: float) -> None:
        if real():
            import torch

            torch.as_tensor(self, device=f"cuda:{self.device}")[key] = value
        else:
            self.layout[key] = value

    def reshape(self, *shape: Any) -> DeviceArray:
        reshaped = self.layout.view()
        reshaped.shape = shape[0] if isinstance(shape[0], tuple) else shape  # raises where it would copy, which reads
        return self._like(reshaped)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise AssertionError("an array on a device was read as if it lay on the host")

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("an array on a device was read element by element")


def put(x: np.ndarray, device: int = 0, **more: Any) -> DeviceArray:
    """The array on a device; without one, the memory of x itself."""
    if not real():
        return DeviceArray(x, device, **more)
    import torch

    memory = np.ascontiguousarray(x)
    owner = torch.from_numpy(memory.reshape(-1).view(np.uint8).copy()).to(f"cuda:{device}")
    interface = {
        "data": (owner.data_ptr(), False),
        "shape": x.shape,
        "strides": None,
        "typestr": x.dtype.str,
        "version": 3,
    }
    layout = np.asarray(SimpleNamespace(__array_interface__=interface)) if x.size else np.empty_like(memory)
    return DeviceArray(layout, device, owner=owner, **more)


def get(x: Any) -> np.ndarray:
    """What an array holds, wherever it lies, as one on the host."""
    if isinstance(x, DeviceArray):
        return _cuda.read(x) if real() and x.size else x.layout.copy()
    if isinstance(x, np.ndarray):
        return x
    return np.asarray(x)


class DlpackArray:
    """An array with DLPack alone, as jax's."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.dtype, self.shape, self.device = array.dtype, array.shape, array.device
        self.asked: list[Any] = []  # the streams that were to wait

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.array.device

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.asked.append(stream)
        layout = self.array.layout
        shape = (ctypes.c_int64 * layout.ndim)(*layout.shape)
        strides = (ctypes.c_int64 * layout.ndim)(*(s // layout.itemsize for s in layout.strides))
        managed = _Managed()
        t = managed.tensor
        t.data, t.device_type, t.device = layout.__array_interface__["data"][0], 2, self.array.device
        t.ndim, t.code, t.bits, t.lanes = (
            layout.ndim,
            {"i": 0, "u": 1, "f": 2}[layout.dtype.kind],
            8 * layout.itemsize,
            1,
        )
        t.shape, t.strides, t.byte_offset = shape, strides, 0
        self._kept = (
            managed,
            shape,
            strides,
        )  # as long as the array, and so longer than any capsule that a test looks at
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(managed), b"dltensor", None)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _cuda._DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


def on_device(arrays: dict[str, Any], place: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> dict[str, Any]:
    """A case's arrays on the device; `place` copies them first."""
    return {
        name: None if x is None else [put(place(y)) for y in x] if isinstance(x, list) else put(place(x))
        for name, x in arrays.items()
    }
