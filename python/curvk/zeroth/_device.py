"""Where weights lie, and what the schemes do to those on a CUDA device where no kernel of curvk's does it.

Weights on a device are torch tensors, whose elementwise operations round as NumPy's, one by one. torch itself is not
imported: whoever has a tensor has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arrays, _cuda
from .._errors import message

if TYPE_CHECKING:
    from torch import Tensor


def view_of(x: Any) -> np.ndarray[Any, Any]:
    """A NumPy array over the memory of an array on the CPU; bfloat16 as uint16."""
    return x if type(x) is np.ndarray else _arrays.numpy_view(x, "zeroth", "array")


def number_of(x: Any) -> int | None:
    """The number of the CUDA device of a torch tensor; None for anything else."""
    return _cuda.device_of(x) if hasattr(x, "new_empty") else None


def blocks(x: Tensor, length: int) -> Iterator[np.ndarray[Any, Any]]:
    """Copies of a C-contiguous tensor's parts in the host's memory; bfloat16 as uint16."""
    flat = x.detach().view(-1)
    for first in range(0, flat.numel(), length):
        yield _cuda.read(flat[first : first + length])


def assign(out: Tensor, value: Any) -> None:
    """Copies a tensor, or a NumPy array of the tensor's format (bfloat16 as uint16), to a tensor."""
    out.detach().copy_(_beside(out, value) if isinstance(value, np.ndarray) else value.detach())


def _beside(x: Tensor, value: np.ndarray[Any, Any]) -> Any:
    """An array as a tensor on the device of another one, bfloat16 from its bits."""
    there = sys.modules["torch"].from_numpy(np.ascontiguousarray(value)).to(x.device)
    return there.view(x.dtype) if value.dtype == np.uint16 else there


def rows_of(x: Tensor, rows: np.ndarray[Any, Any]) -> Tensor:
    """A copy of some rows."""
    return x.detach().index_select(0, _beside(x, rows))


def assign_rows(x: Tensor, rows: np.ndarray[Any, Any], values: Tensor) -> None:
    x.detach().index_copy_(0, _beside(x, rows), values)


def largest(x: Tensor) -> float:
    """The largest magnitude, 0 of none, NaN if there is one; waits for the device."""
    return float(x.detach().abs().max()) if x.numel() else 0.0


def round_to(x: Tensor, quantum: float) -> None:
    """Rounds float32 weights to multiples of a power of two, halves to even."""
    x.detach().div_(quantum).round_().mul_(quantum)


def smallest(x: Tensor, rank: int) -> float:
    """The magnitude with so many smaller ones; waits for the device."""
    sizes = x.detach().abs().view(-1)
    return float((sizes if sizes.element_size() > 2 else sizes.float()).kthvalue(rank + 1).values)


def combine(out: Tensor, theta: Tensor, keep: float, left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> None:
    """`_lowrank.combine` by multiplications and additions that each are a pass of their own.

    Memory: two arrays of the matrix's size in the factors' type. The device is waited for, as torch copies the factors.
    """
    theta, m = theta.detach(), len(left)
    a, b = _beside(theta, left), _beside(theta, right)
    change = a[:, :1] * b[0]
    for k in range(1, len(b)):
        change.add_(a[:, k : k + 1] * b[k])
    wide = theta.reshape(m, -1).to(change.dtype)
    if right.dtype.type(keep) != 1:
        wide = wide * float(right.dtype.type(keep))
    out.detach().copy_(change.add_(wide).view(out.shape))


def refuse(function: str, names: Any, devices: Any, argument: str, found: str, remedy: str) -> None:
    """Raises BufferError if one of the tensors is on a device, for what works on the CPU only."""
    for name, device in zip(names, devices, strict=True):
        if device is not None:
            where = f"{found} with params[{name!r}] on cuda:{device}"
            raise BufferError(message(function, argument, where, "weights on the CPU", remedy))
