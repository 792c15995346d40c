"""Optimizer steps that a CUDA graph can capture: the step's number and learning rate lie in memory.

A captured graph repeats its launches with the numbers they had. These steps read theirs from an array `at` of two
doubles, the number of the step (counting from 1) and the learning rate, which lies with the other arrays: a device's
steps read the device's memory. It may change between replays; before each the caller counts at[0] up, in the graph or
outside.

What lies in `at` cannot be checked. A learning rate that is NaN makes the parameters NaN, a negative one steps the
other way. Adam's number of a step is rounded down; where it is NaN, below 1 or above 2^53, the parameters become NaN.
"""

from __future__ import annotations

from .._arrays import Array, numpy_view
from .._backend import call
from .._cuda import device_of
from .._errors import message
from .optim import _check_sgd, _not_a_pair

__all__ = ["adam_step_at", "loss_rule", "sgd_step_at"]


def _need(op: str, name: str, x: Array, size: int | None, dtype: str = "float64") -> int:
    """Checks an array of numbers and returns how many it has; `size` None stands for 1 or more."""
    view = numpy_view(x, op, name, device_of(x))
    if view.dtype != dtype:
        raise TypeError(message(op, name, str(view.dtype), dtype))
    if view.size == 0 or size not in (None, view.size):
        elements = "one element or more" if size is None else f"{size} element{'s' * (size > 1)}"
        raise ValueError(message(op, name, f"shape {view.shape}", elements))
    if not view.flags.c_contiguous:  # a copy of it would be read, not what lies there at each step
        raise ValueError(message(op, name, f"strides {view.strides}", "a C-contiguous array"))
    return view.size


def adam_step_at(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    at: Array,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    max_v: Array = None,
    origin: Array = None,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """`curvk.kernels.optim.adam_step` with step = at[0] and lr = at[1], the same bits.

    Args:
        p, g, m, v, max_v, origin: as in `adam_step`.
        at: float64, 2 elements: the number of the step, counting from 1, and the learning rate. On p's device.
        betas, eps, weight_decay, decoupled, maximize, grad_scale: as in `adam_step`.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`, and for an `at` of another dtype, size or layout.

    On a device a kernel of one thread, which forms the step's scalars, goes before the step. Source: as `adam_step`.

    >>> import numpy as np
    >>> p, g = np.ones(3, np.float32), np.array([1, -2, 0], np.float32)
    >>> m, v, at = np.zeros_like(p), np.zeros_like(p), np.array([1, 0.5])
    >>> adam_step_at(p, g, m, v, at)
    >>> p
    array([0.5, 1.5, 1. ], dtype=float32)
    """
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise _not_a_pair(betas) from None
    _need("adam_step_at", "at", at, 2)
    call(
        "adam_step_at",
        (p, g, m, v, max_v, origin, at),
        (beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale),
    )


def sgd_step_at(
    p: Array,
    g: Array,
    at: Array,
    buf: Array = None,
    *,
    origin: Array = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    first: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """`curvk.kernels.optim.sgd_step` with lr = at[1], the same bits.

    Args:
        p, g, buf, origin: as in `sgd_step`.
        at: float64, 2 elements, as in `adam_step_at`; at[0] is not looked at.
        momentum, dampening, nesterov, weight_decay, decoupled, maximize, grad_scale: as in `sgd_step`.
        first: as in `sgd_step`. It is not in memory: a graph repeats it, so take the first step before the capture.

    Raises:
        TypeError, ValueError, BufferError: as `sgd_step`, and for an `at` of another dtype, size or layout.

    >>> import numpy as np
    >>> p, at = np.ones(2, np.float32), np.array([1, 0.25])
    >>> sgd_step_at(p, np.array([1, 2], np.float32), at)
    >>> p
    array([0.75, 0.5 ], dtype=float32)
    """
    _check_sgd(buf is not None, momentum, dampening, nesterov)
    _need("sgd_step_at", "at", at, 2)
    call(
        "sgd_step_at",
        (p, g, buf, origin, at),
        (momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale),
    )


def loss_rule(
    window: Array,
    stored: Array,
    loss: Array,
    at: Array,
    *,
    period: int = 10,
    overshoot_factor: float = 0.5,
    stagnation_factor: float = 1.2,
    stagnation_threshold: float = 0.2,
    min_lr: float = 1e-7,
    max_lr: float = 1.0,
    guard: bool = False,
) -> None:
    """AdamZ's rule for the learning rate, in memory: the newest loss goes into the window, then at[1] changes.

    `curvk.optim.LossAdaptiveLR` gives the formulas and what they do; the rule here sets the same rates. With `guard`
    and a period above 128 the means that are compared may differ from its means in the last bits.

    Args:
        window: float64, written: the ring of the last losses, whose size is the rule's `patience`; zeros at first.
        stored: int64, 1 element, written: how many losses were ever stored; 0 at first. Where it is below 0
            (or 2^63 - 1) nothing is written.
        loss: float64, 1 element: the newest loss. NaN is not stored.
        at: float64, 2 elements as in `adam_step_at`; at[1], the learning rate, is written. One that is negative, NaN or
            infinite stays as it is.
        period: how many of the newest losses are compared with the whole window, >= 1.
        overshoot_factor: in (0, 1).
        stagnation_factor: > 1.
        stagnation_threshold: >= 0.
        min_lr, max_lr: bounds of the rate, 0 < min_lr <= max_lr.
        guard: raise the rate only if the newest `period` losses have no lower mean than as many before them; needs
            period < window.size.

    Raises:
        TypeError, ValueError, BufferError: a wrong dtype, size, layout or number; nothing has been written.

    One pass over the window, by one thread. Source: Zaznov et al. 2024, arXiv 2411.15375; `guard` is ours.

    >>> import numpy as np
    >>> window, stored, at = np.zeros(3), np.zeros(1, np.int64), np.array([1, 0.5])
    >>> for loss in (1.0, 2.0, 3.0):
    ...     loss_rule(window, stored, np.array([loss]), at)
    >>> float(at[1])  # the third loss fills the window and is its highest
    0.25
    """
    op = "loss_rule"
    patience = _need(op, "window", window, None)
    _need(op, "stored", stored, 1, "int64")
    _need(op, "loss", loss, 1)
    _need(op, "at", at, 2)
    if guard and not period < patience:
        raise ValueError(message(op, "guard", f"True with {period=}", f"period < {patience}, the window's size"))
    if min_lr > max_lr:
        raise ValueError(message(op, "min_lr", f"{min_lr}", f"a number not above max_lr ({max_lr})"))
    call(
        op,
        (window, stored, loss, at),
        (patience, period, overshoot_factor, stagnation_factor, stagnation_threshold, min_lr, max_lr, guard),
    )
