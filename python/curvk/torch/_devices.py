"""Where parameters may lie: on the CPU, or on CUDA devices in builds with curvk's CUDA library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _cuda
from .._backend import core

SERVED = ("cpu", "cuda")


def served(p: Tensor) -> bool:
    """Whether kernels may run where a tensor lies."""
    return p.device.type in SERVED


def number_of(p: Tensor) -> int | None:
    """The number of the CUDA device on which a tensor lies; None for the CPU."""
    return _cuda.device_of(p)


def lacking(op: str) -> str:
    """Why no CUDA version of a kernel can run; "" if one can."""
    try:
        _cuda.load()
    except ImportError as error:
        return str(error)
    return "" if core is not None and core.has_cuda(op) else "this step has no CUDA version"


def elsewhere(x: Any) -> bool:
    """Whether x is a tensor that the host can only read by waiting for a device."""
    return isinstance(x, Tensor) and x.device.type != "cpu"


def capturing(device: torch.device) -> bool:
    """Whether what is queued on a device now goes into a CUDA graph."""
    return device.type == "cuda" and bool(torch.version.cuda) and torch.cuda.is_current_stream_capturing()


def strides_as(p: Tensor, shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """The strides of a new tensor beside a parameter: as the parameter lies, where it fills its memory."""
    if shape != p.shape:
        return torch.empty(shape, device="meta").stride()
    return p.stride() if p.is_contiguous() else torch.empty_like(p, device="meta").stride()
