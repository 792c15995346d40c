"""What counts as an array, and the checks before a kernel writes to one.

The compiled binder accepts well-formed arrays by itself; everything else comes here. So this module words all errors
about arrays, turns tensors and buffers into NumPy views, and serves the Numba twins, which have no binder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _cuda
from ._errors import message

if TYPE_CHECKING:
    from ._signatures import Argument, Function

Array = Any
"""A NumPy array, a torch CPU tensor, or an object with DLPack or the buffer protocol.

uint16 and int16 NumPy arrays are bfloat16 bit patterns, as are arrays of ml_dtypes.bfloat16 and int16 tensors.
"""
Column = Any  # one array, a list or tuple of arrays, or None

_ELEMENTS = {"float": "float32", "double": "float64", "int64_t": "int64", "uint8_t": "uint8", "curvk_bf16": "uint16"}
_OF_ANY_FORMAT = ("int64_t", "uint8_t", "curvk_bf16")  # elements that do not depend on the first array's
_FORMAT_DTYPES = {"f32": "float32", "f64": "float64", "bf16": "uint16", "f16": "float16", "i64": "int64"}
_FORMAT_NAMES = {"f32": "float32", "f64": "float64", "bf16": "bfloat16", "f16": "float16", "i64": "int64"}
_CPU_DEVICES = (1,)  # DLPack's kDLCPU


def dtype_of(argument: Argument, fmt: str) -> np.dtype[Any]:
    """The NumPy dtype that an array argument needs in the kernel of a format."""
    return np.dtype(_ELEMENTS.get(argument.element) or _FORMAT_DTYPES[fmt])


def _accepted(argument: Argument, fmt: str) -> tuple[np.dtype[Any], ...]:
    """The dtypes of which an array argument may be: bit patterns may be signed."""
    dtype = dtype_of(argument, fmt)
    return (dtype, np.dtype(np.int16)) if dtype == np.uint16 else (dtype,)


def numpy_view(x: Any, function: str, label: str, device: int | None = None) -> np.ndarray[Any, Any]:
    """`x` as a NumPy array over the same memory; bfloat16 as uint16.

    With the number of a CUDA device, on which x must then lie, the view has x's layout and address and cannot be read.
    """

    def refuse(error: type[Exception], found: str, needed: str, remedy: str = "") -> Exception:
        return error(message(function, label, found, needed, remedy))

    if device is not None and _cuda.device_of(x) != device:
        return _cuda.addresses(x, function, label, device)  # which says so
    if isinstance(x, np.ndarray):
        if type(x) not in (np.ndarray, np.memmap):
            raise refuse(TypeError, type(x).__name__, "a plain NumPy array", f"use np.asarray({label})")
        plain: np.ndarray[Any, Any] = np.asarray(x)
        extension = plain.dtype.kind == "V"  # asked first: a dtype's name takes microseconds to spell
        return plain.view(np.uint16) if extension and plain.dtype.name == "bfloat16" else plain
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        if type(x) not in (torch.Tensor, torch.nn.Parameter):
            raise refuse(TypeError, type(x).__name__, "a plain torch.Tensor or Parameter")
        if x.layout != torch.strided:
            raise refuse(TypeError, f"a tensor with layout {x.layout}", "a dense tensor", f"use {label}.to_dense()")
        if device is None and x.device.type != "cpu":
            raise refuse(BufferError, f"a tensor on device {x.device}", "a CPU tensor", f"use {label}.cpu()")
        x = x.detach()
        if x.is_conj() or x.is_neg():
            found = "a lazily conjugated or negated tensor"
            raise refuse(ValueError, found, "a plain one", f"use {label}.resolve_neg()")
        if (
            x.numel() and x.is_floating_point() and not x.data_ptr()
        ):  # autograd's lazy zeros, a storage resized to nothing
            raise refuse(ValueError, "a tensor without memory", "one with its own", f"use {label}.clone()")
        if device is not None:
            return _cuda.addresses(x, function, label, device)
        try:
            view: np.ndarray[Any, Any] = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
        except (RuntimeError, TypeError) as error:
            raise refuse(TypeError, f"{x.dtype} ({error})", "a tensor NumPy can view") from error
        return view
    if device is not None:
        return _cuda.addresses(x, function, label, device)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__") and not isinstance(x, type):
        place = _cuda.place_of(x)
        if place is None:
            found = f"{type(x).__name__}, whose __dlpack_device__ names none"
            raise refuse(TypeError, found, "an array NumPy can view")
        if place[0] not in _CPU_DEVICES:
            raise refuse(BufferError, f"an array on DLPack device {place}", "a CPU array")
        try:
            return np.from_dlpack(x)
        except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
            raise refuse(TypeError, f"{type(x).__name__} ({error})", "an array NumPy can view") from error
    if not isinstance(x, (list, tuple)):
        try:
            return np.asarray(memoryview(x))
        except (TypeError, ValueError):
            pass
    if (number := _cuda.device_of(x)) is not None:
        raise refuse(BufferError, f"an array on cuda:{number}", "an array on the CPU")
    raise refuse(TypeError, type(x).__name__, "an array", f"use np.asarray({label}, dtype=np.float32)")


def empty(like: Array, shape: tuple[int, ...], dtype: str | np.dtype[Any], device: int | None) -> Array:
    """A new array, not initialised: a NumPy array or, with the device of `like`, one of its kind there."""
    return np.empty(shape, dtype) if device is None else _cuda.empty(like, shape, np.dtype(dtype).name)


def on_host(x: Array) -> np.ndarray[Any, Any]:
    """An array that `empty` made as a NumPy array: itself, or a copy for which the device is waited for."""
    return x if type(x) is np.ndarray else _cuda.read(x)


def _pick(op: str, first: np.ndarray[Any, Any], label: str, fmt: str | None) -> Function:
    """The kernel for the dtype of the first array."""
    from ._signatures import ops  # here, so that `import curvk` reads no header

    kernels = ops()[op]
    if fmt is not None:
        return kernels[fmt]
    for name, kernel in kernels.items():
        if first.dtype in _accepted(kernel.arrays[0], name):
            return kernel
    if first.dtype.newbyteorder("=") in [dtype_of(k.arrays[0], n) for n, k in kernels.items()]:
        remedy = f"use {label}.astype({label}.dtype.newbyteorder('='))"
        raise TypeError(message(op, label, f"{first.dtype.str}", "native byte order", remedy))
    needed = " or ".join(_FORMAT_NAMES[n] for n in kernels)
    raise TypeError(message(op, label, str(first.dtype), needed, f"use {label}.astype(np.float32)"))


def overlaps_itself(x: np.ndarray[Any, Any]) -> bool:
    """True where two indices may mean one address (broadcast or overlapping windows)."""
    reach = x.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False


def _check_one(op: str, x: np.ndarray[Any, Any], label: str, a: Argument, fmt: str, like: str) -> None:
    dtype = dtype_of(a, fmt)
    if x.dtype not in _accepted(a, fmt):
        if x.dtype.newbyteorder("=") == dtype:
            remedy = f"use {label}.astype({label}.dtype.newbyteorder('='))"
            raise TypeError(message(op, label, x.dtype.str, f"{dtype} in native byte order", remedy))
        name = "bfloat16 (as uint16)" if dtype == np.uint16 else dtype.name
        remedy = "" if dtype == np.uint16 else f"use {label}.astype(np.{dtype})"
        name += f" like '{like}'" if like and a.element not in _OF_ANY_FORMAT else ""
        raise TypeError(message(op, label, str(x.dtype), name, remedy))
    if a.written and not x.flags.writeable:
        raise BufferError(message(op, label, "a read-only array", "a writable one", f"use {label}.copy()"))
    if not x.flags.aligned:
        needed = f"{x.itemsize}-byte alignment"
        raise ValueError(message(op, label, "a misaligned array", needed, f"use {label}.copy()"))
    if a.written and x.size and overlaps_itself(x):
        found = f"strides {x.strides} that may meet an element twice"
        raise ValueError(message(op, label, found, "elements of its own", f"use {label}.copy()"))


def _check_overlap(op: str, entries: list[tuple[str, bool, np.ndarray[Any, Any]]]) -> None:
    """Raises where a written array shares memory with another one."""
    spans = sorted(
        ((*np.lib.array_utils.byte_bounds(x), label, written, x) for label, written, x in entries if x.size),
        key=lambda s: (s[0], s[1]),
    )
    open_spans: list[Any] = []
    for span in spans:
        open_spans = [s for s in open_spans if s[1] > span[0]]
        for other in open_spans:
            if (span[3] or other[3]) and np.shares_memory(span[4], other[4]):
                first, second = sorted((other, span), key=lambda s: [e[0] for e in entries].index(s[2]))
                found = f"memory shared with '{first[2]}'"
                raise ValueError(message(op, second[2], found, "memory of its own", f"use {second[2]}.copy()"))
        open_spans.append(span)


def _check_dense(op: str, x: np.ndarray[Any, Any], label: str, reference: np.ndarray[Any, Any], indexed: bool) -> None:
    """Raises where a device's kernel, which takes memory as it lies, would not meet elements that belong together."""
    if x.flags.c_contiguous and reference.flags.c_contiguous:
        return
    alike = tuple(s // x.itemsize for s in x.strides) == tuple(s // reference.itemsize for s in reference.strides)
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    if indexed or not alike or not x.transpose(order).flags.c_contiguous:
        found, needed = f"strides {x.strides} for shape {x.shape}", "memory without gaps, laid out alike"
        raise ValueError(message(op, label, found, f"{needed}, on a device", f"use {label}.contiguous()"))


class Resolved(NamedTuple):
    """Checked arguments: the kernel, its columns as plain arrays, and the tensors behind those it writes.

    Arrays on a CUDA device are given as their addresses, with the device's number and what tells the stream.
    """

    kernel: Function
    columns: tuple[Column, ...]
    foreign: list[Any]
    device: int | None = None
    stream_of: Callable[[], int] | None = None


def _items(column: Column, name: str, listed: bool) -> Iterator[tuple[str, Any]]:
    if listed:
        yield from ((f"{name}[{i}]", x) for i, x in enumerate(column))
    else:
        yield name, column


def _flatten_rows(kernel: Function, columns: list[Column]) -> None:
    """Flattens rows that are not C-contiguous, for a reduction over lists.

    It reads memory order, as it does where the compiled binder takes the arrays; or C order where the index matters, or
    where the arrays of a row are laid out differently.
    """
    tables = [c for a, c in zip(kernel.arrays, columns, strict=True) if a.pointers == 2 and c is not None]
    for i, row in enumerate(zip(*tables, strict=True)):
        if not all(x.flags.c_contiguous for x in row):
            alike = not kernel.indexed and all(x.strides == row[0].strides for x in row)
            for table, x in zip(tables, row, strict=True):
                table[i] = x.ravel(order="K" if alike else "C")


def check(op: str, columns: tuple[Column, ...], fmt: str | None = None) -> Resolved:
    """Checks the array arguments of a kernel; raises, or returns NumPy arrays over the same memory.

    A column is one array, a list of arrays (for kernels that take tables) or None. Beside a list, a tuple is a
    list whose arrays' owner the caller itself tells of writes. Arrays that are only read may be
    copied where a kernel that is not elementwise needs them contiguous; arrays that are written never are.
    """
    from ._signatures import ops

    generic = next(iter(ops()[op].values()))
    if len(columns) != len(generic.arrays):
        raise TypeError(f"{op}: wrong number of array arguments")
    # Copies, since objects' own code may change the caller's lists while they are looked at.
    columns = tuple(list(c) if type(c) is list else c for c in columns)
    name, lists = generic.arrays[0].name, type(columns[0]) is list
    first_label, first = next(_items(columns[0], name, lists), (name, None))
    device = _cuda.device_of(first)
    if device is not None:
        _cuda.require(op, first_label, device)
    kernel = generic if first is None else _pick(op, numpy_view(first, op, first_label, device), first_label, fmt)
    assert kernel.format is not None
    rows = len(columns[0]) if lists else 1
    out: list[Column] = []
    foreign: list[Any] = []
    entries: list[tuple[str, bool, np.ndarray[Any, Any]]] = []
    for at, (argument, column) in enumerate(zip(kernel.arrays, columns, strict=True)):
        if (
            argument.per and argument.nullable and (column is None) != (columns[at - 1] is None)
        ):  # codes and their scales
            found, needed = ("None", "an array") if column is None else (type(column).__name__, "None")
            raise TypeError(message(op, argument.name, found, f"{needed}, like '{kernel.arrays[at - 1].name}'"))
        if column is None:
            if not argument.nullable:
                raise TypeError(message(op, argument.name, "None", "an array"))
            out.append(None)
            continue
        listed = kernel.is_list and argument.pointers == 2
        if type(column) is list and not (listed and lists):
            raise TypeError(message(op, argument.name, "list", "one array", f"use np.asarray({argument.name})"))
        many = type(column) is list or (lists and type(column) is tuple)
        if listed and (len(column) if many else 1) != rows:
            if not lists:
                found, needed = type(column).__name__, f"an array like '{kernel.arrays[0].name}'"
                raise TypeError(message(op, argument.name, found, needed))
            found, needed = f"{len(column) if many else 1} arrays", f"{rows}, one for each in '{kernel.arrays[0].name}'"
            raise ValueError(message(op, argument.name, found, needed))
        views: list[np.ndarray[Any, Any]] = []
        for i, (label, item) in enumerate(_items(column, argument.name, many)):
            x = numpy_view(item, op, label, device if kernel.on_device(argument) else None)
            _check_one(op, x, label, argument, kernel.format, "" if label == first_label else first_label)
            if argument.per_row and x.shape != (rows,):
                raise ValueError(message(op, label, f"shape {x.shape}", f"shape ({rows},), a number for each array"))
            if listed and out:
                reference, per = out[0][i], argument.per
                shape = (-(-reference.size // per),) if per else reference.shape
                if x.shape != shape:
                    base = first_label.replace("[0]", f"[{i}]")
                    like = f"an element for each {per} of '{base}'" if per else f"like '{base}'"
                    needed = f"shape {shape}{', ' if per else ' '}{like}"
                    raise ValueError(message(op, label, f"shape {x.shape}", needed))
            if (argument.per or not (listed and kernel.elementwise)) and not x.flags.c_contiguous:
                if argument.written or argument.per:
                    found = f"strides {x.strides} for shape {x.shape}"
                    remedy = f"use np.ascontiguousarray({label})"
                    raise ValueError(message(op, label, found, "a C-contiguous array", remedy))
                if not listed and device is not None:
                    found, needed = f"strides {x.strides} for shape {x.shape}", "a C-contiguous array on a device"
                    raise ValueError(message(op, label, found, needed, f"use {label}.contiguous()"))
                x = x if listed else np.ascontiguousarray(x)
            if device is not None and listed and not argument.per:
                _check_dense(op, x, label, out[0][i] if out else x, kernel.indexed)
            if argument.written and not isinstance(item, np.ndarray) and type(column) is not tuple:
                foreign.append(item)
            entries.append((label, argument.written, x))
            x = x.view(np.uint16) if x.dtype == np.int16 else x
            views.append(x.copy() if argument.per_row else x)  # a plan keeps the values per row that it was given
        out.append(views if listed else views[0])
    _check_overlap(op, entries)
    if device is not None:
        return Resolved(kernel, tuple(out), foreign, device, _cuda.stream_of(first))
    if kernel.is_list and not kernel.elementwise:
        _flatten_rows(kernel, out)
    return Resolved(kernel, tuple(out), foreign)


def resolve(
    op: str, columns: tuple[Column, ...], fmt: str | None = None
) -> tuple[tuple[Column, ...], list[Any], int | None, Callable[[], int] | None]:
    """`check` in the form the compiled binder takes."""
    return check(op, columns, fmt)[1:]


def written(foreign: list[Any]) -> None:
    """Tells torch that tensors were written, so that a backward pass that saved one notices."""
    torch = sys.modules.get("torch")
    if torch is not None:
        if not all(issubclass(kind, torch.Tensor) for kind in set(map(type, foreign))):  # 5 ns a tensor, isinstance 60
            foreign = [t for t in foreign if isinstance(t, torch.Tensor)]
        torch.autograd.graph.increment_version(foreign)
