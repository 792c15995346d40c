"""Rows that Gram products are taken with, packed as curvk/gram.h lays them out, and the checks of products' arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import Array, empty, numpy_view, overlaps_itself, written
from .._backend import call
from .._cuda import device_of, require
from .._errors import message
from ._kernel_function import Function, integer

Matrix = np.ndarray[Any, Any]

_DIFFERENCES_UP_TO = 12  # gram.h: up to this d centers are packed as they are


@dataclass(frozen=True)
class Rows:
    """A matrix of a product.

    Args:
        layout: it, or on a device its address and layout, to be looked at and never read.
        array: what kernels are given: `layout` itself, or the caller's array on a device.
        device: the number of that device.
    """

    layout: Matrix
    array: Array
    device: int | None

    def __len__(self) -> int:
        return len(self.layout)


def on_cpu(x: Matrix) -> Rows:
    return Rows(x, x, None)


def rows_of(op: str, name: str, x: Array) -> Rows:
    """A matrix that is only read: two axes, float32 or float64, C-contiguous (else, on the host, a copy)."""
    device = device_of(x)
    if device is not None:
        try:
            require("gram_matvec", name, device)
        except BufferError as error:
            raise BufferError(str(error).replace("gram_matvec:", f"{op}:", 1)) from None
    view = numpy_view(x, op, name, device)
    if view.dtype not in (np.float32, np.float64):
        raise TypeError(message(op, name, str(view.dtype), "float32 or float64", f"use {name}.astype(np.float32)"))
    if view.ndim != 2 or view.shape[1] == 0:
        raise ValueError(message(op, name, f"shape {view.shape}", "two axes: rows, and one feature or more"))
    if device is not None:
        contiguous_on_device(op, name, view)
        return Rows(view, x, device)
    return on_cpu(readable(view))


def contiguous_on_device(op: str, name: str, view: Matrix) -> None:
    if not view.flags.c_contiguous:
        found, needed = f"strides {view.strides} for shape {view.shape}", "a C-contiguous array on a device"
        raise ValueError(message(op, name, found, needed, f"use {name}.contiguous()"))


def readable(view: Matrix) -> Matrix:
    return np.require(view, requirements=("C_CONTIGUOUS", "ALIGNED"))


def like_reference(op: str, name: str, x: Array, reference: Rows, like: str) -> Matrix:
    """The layout of an array that must have the reference's dtype and lie beside it."""
    view = numpy_view(x, op, name, reference.device)
    dtype = reference.layout.dtype
    if view.dtype != dtype:
        raise TypeError(message(op, name, str(view.dtype), f"{dtype} like '{like}'", f"use {name}.astype(np.{dtype})"))
    return view


def result_of(op: str, name: str, x: Array, shape: tuple[int, ...], read: dict[str, Matrix], like: Rows) -> Matrix:
    """The layout of an array that is written: this shape, C-contiguous, apart from all of `read`; `like`, the first
    of these, gives dtype and device."""
    view = like_reference(op, name, x, like, next(iter(read)))
    if view.shape != shape:
        raise ValueError(message(op, name, f"shape {view.shape}", f"shape {shape}"))
    if not view.flags.writeable:
        raise BufferError(message(op, name, "a read-only array", "a writable one", f"use {name}.copy()"))
    if not view.flags.c_contiguous or (view.size and overlaps_itself(view)):
        found = f"strides {view.strides}"
        raise ValueError(message(op, name, found, "a C-contiguous array", f"use np.empty({shape}, np.{view.dtype})"))
    if not view.flags.aligned:
        needed = f"{view.itemsize}-byte alignment"
        raise ValueError(message(op, name, "a misaligned array", needed, f"use {name}.copy()"))
    for other, y in read.items():
        if np.may_share_memory(view, y):
            raise ValueError(message(op, name, f"memory shared with '{other}'", "memory of its own"))
    return view


def note_written(*results: Array) -> None:
    """The kernels saw NumPy views of tensors."""
    tensors = [x for x in results if x is not None and not isinstance(x, np.ndarray)]
    if tensors:
        written(tensors)


def _aligned(n: int, dtype: np.dtype[Any], beside: Rows) -> Array:
    """Memory for n elements that starts at a cache line, where `beside` is."""
    if beside.device is not None:  # whose allocators align to 256 bytes or more
        return empty(beside.array, (n,), dtype, beside.device)
    memory = np.empty(n * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n * dtype.itemsize].view(dtype)


def flat(z: Rows) -> Array:
    """What kernels are given; the twins want one axis."""
    return z.layout.reshape(-1) if z.device is None else z.array


class _Packed:
    """Centers in the layout of curvk/gram.h."""

    def __init__(self, z: Rows, centred: bool) -> None:
        (m, d), dtype = z.layout.shape, z.layout.dtype
        padded = -(-m * dtype.itemsize // 128) * 128 // dtype.itemsize
        self.panels, self.norms, self.center = (_aligned(n, dtype, z) for n in (padded * d, padded, d))
        call("gram_pack", (flat(z), self.panels, self.norms, self.center), (m, d, int(centred)))


class Centers:
    """Rows Z, packed for use in many products.

    Args:
        Z: (m, d), float32 or float64, any strides. Packing copies it (m d elements) and, where distances come of norms
            (d > 12), takes the rows' mean as origin. The array must not change afterwards. On a CUDA device it must be
            C-contiguous, and the packed copy lies there too, to be used with arrays there.

    Attributes:
        array: the rows, C-contiguous.
        shape, dtype: those of the rows.

    Raises:
        TypeError, ValueError, BufferError: another dtype or number of axes; a device without curvk's kernels.

    >>> import numpy as np
    >>> from curvk.kernels.gram import matvec
    >>> Z = Centers(np.eye(3))
    >>> matvec(np.zeros((1, 3)), Z, np.ones(3), bandwidth=1.0)
    array([1.81959198])
    """

    def __init__(self, Z: Array) -> None:
        self._given = rows_of("Centers", "Z", Z)
        self._packed: dict[bool, _Packed] = {}

    @property
    def _rows(self) -> Rows:
        return self._given

    @property
    def array(self) -> Array:
        return self._rows.array

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self._rows.layout.shape
        return m, d

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._rows.layout.dtype
        return dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} rows of {self.shape[1]}, {self.dtype})"

    def _pack(self, function: Function) -> _Packed:
        centred = function.of_distance and self.shape[1] > _DIFFERENCES_UP_TO
        if centred not in self._packed:
            self._packed[centred] = _Packed(self._rows, centred)
        return self._packed[centred]


class Landmarks(Centers):
    """Centers that come and go: a row that is appended or replaced is packed again with the few beside it.

    Args:
        d: columns of a row, >= 1.
        capacity: rows to make room for at first; more is made by doubling.
        dtype: float32 or float64 (default).

    They lie on the CPU; for rows on a CUDA device there are `Centers`.

    Attributes:
        array, shape, dtype: as those of `Centers`; `array` is a view that the next row may leave behind.

    Raises:
        TypeError, ValueError, BufferError: another dtype, a row of another width or on a device, no such slot.

    The origin is 0, not the rows' mean: the bits of an entry of `block` depend on its two rows alone, whichever of them
    is the center, and do not change as other rows come and go. The price above d = 12: norms that are large beside the
    distances lose digits, up to 2^10 roundings of a distance, before they are formed anew.

    >>> import numpy as np
    >>> from curvk.kernels.gram import distances
    >>> Z = Landmarks(2)
    >>> Z.append(np.array([0.0, 0.0])), Z.append(np.array([3.0, 4.0]))
    (0, 1)
    >>> Z.replace(0, np.array([3.0, 3.0]))
    >>> distances(np.array([[3.0, 4.0]]), Z)
    array([[1., 0.]])
    """

    def __init__(self, d: int, capacity: int = 16, dtype: Any = np.float64) -> None:
        d, capacity = integer("Landmarks", "d", d, 1), integer("Landmarks", "capacity", capacity, 1)
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(message("Landmarks", "dtype", f"{dtype}", "float32 or float64"))
        self._count, self._group = 0, 128 // np.dtype(dtype).itemsize
        self._all = np.zeros((-(-capacity // self._group) * self._group, d), dtype)
        self._panels = _Packed(on_cpu(self._all), centred=False)

    @classmethod
    def of(cls, rows: Array) -> Landmarks:
        """Landmarks with a copy of these rows (m, d)."""
        if (device := device_of(rows)) is not None:
            found, remedy = f"an array on cuda:{device}", "copy it there, or use Centers(rows)"
            raise BufferError(message("Landmarks.of", "rows", found, "an array on the CPU", remedy))
        x = rows_of("Landmarks.of", "rows", rows).layout
        self = cls(x.shape[1], max(len(x), 1), x.dtype)
        self._all[: len(x)] = x
        self._count, self._panels = len(x), _Packed(on_cpu(self._all), centred=False)
        return self

    @property
    def array(self) -> Matrix:
        return self._all[: self._count]

    @property
    def _rows(self) -> Rows:
        return on_cpu(self.array)

    def append(self, x: Array) -> int:
        """Adds the row x (d,) and gives its slot."""
        if self._count == len(self._all):
            grown = np.zeros((2 * self._count, self._all.shape[1]), self._all.dtype)
            grown[: self._count] = self._all
            self._all, self._panels = grown, _Packed(on_cpu(grown), centred=False)
        self._count += 1
        try:
            self.replace(self._count - 1, x)
        except BaseException:
            self._count -= 1
            raise
        return self._count - 1

    def replace(self, slot: int, x: Array) -> None:
        """Puts the row x (d,) in place of the one in this slot."""
        if not 0 <= slot < self._count:
            raise ValueError(message("Landmarks.replace", "slot", f"{slot}", f"a slot in [0, {self._count})"))
        row = like_reference("Landmarks", "x", x, self._rows, "Landmarks")
        d = self._all.shape[1]
        if row.shape != (d,):
            raise ValueError(message("Landmarks", "x", f"shape {row.shape}", f"shape ({d},)"))
        self._all[slot] = row
        first = slot // self._group * self._group
        part, p = slice(first, first + self._group), self._panels
        panels = p.panels[first * d : (first + self._group) * d]
        call("gram_pack", (self._all[part].reshape(-1), panels, p.norms[part], p.center), (self._group, d, 0))

    def _pack(self, function: Function) -> _Packed:
        return self._panels


def centers_of(op: str, name: str, Z: Array | Centers, x: Rows, like: str) -> Centers:
    if not isinstance(Z, Centers):
        if device_of(Z) != x.device:
            numpy_view(Z, op, name, x.device)  # which says so
        centers = Centers(rows_of(op, name, Z).array)
    else:
        centers = Z
        if centers._rows.device != x.device:
            found, needed = (f"on {'the CPU' if d is None else f'cuda:{d}'}" for d in (centers._rows.device, x.device))
            raise BufferError(message(op, name, f"centers {found}", f"centers {needed} like '{like}'"))
    dtype, d = x.layout.dtype, x.layout.shape[1]
    if centers.dtype != dtype:
        remedy = f"use {name}.astype(np.{dtype})"
        raise TypeError(message(op, name, str(centers.dtype), f"{dtype} like '{like}'", remedy))
    if centers.shape[1] != d:
        raise ValueError(message(op, name, f"shape {centers.shape}", f"{d} columns like '{like}'"))
    return centers
