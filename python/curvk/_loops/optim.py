"""SGD, Adam and what goes with them; csrc/include/curvk/optim.h gives the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import loop, power


def sgd_step_scalars(
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: int,
    decoupled: int,
    maximize: int,
    first: int,
    grad_scale: float,
) -> tuple[Any, ...]:
    return (
        (-1.0 if maximize else 1.0) / grad_scale,
        0.0 if decoupled else weight_decay,
        1.0 - lr * weight_decay if decoupled else 1.0,
        momentum,
        1.0 - dampening,
        lr,
        bool(nesterov),
        bool(first),
    )


@loop
def sgd_step(p, g, buf, origin, inv_scale, coupled_decay, shrink, momentum, damped, lr, nesterov, first):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        param = p[i]
        if origin is not None:
            param = origin[i]
        grad = g[i] * inv_scale
        if coupled_decay != 0:
            grad = grad + coupled_decay * param
        if buf is not None:
            mixed = grad if first else momentum * buf[i] + damped * grad
            buf[i] = mixed
            grad = grad + momentum * mixed if nesterov else mixed
        p[i] = param * shrink - lr * grad


def adam_step_scalars(
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: int,
    maximize: int,
    grad_scale: float,
) -> tuple[Any, ...]:
    return (
        (-1.0 if maximize else 1.0) / grad_scale,
        0.0 if decoupled else weight_decay,
        1.0 - lr * weight_decay if decoupled else 1.0,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        lr / (1.0 - power(beta1, step)),
        1.0 / math.sqrt(1.0 - power(beta2, step)),
        eps,
    )


@loop
def adam_step(  # type: ignore[no-untyped-def]
    p, g, m, v, max_v, origin, inv_scale, coupled_decay, shrink, beta1, gain1, beta2, gain2, step_size, inv_root2, eps
):
    for i in range(p.size):
        param = p[i]
        if origin is not None:
            param = origin[i]
        grad = g[i] * inv_scale
        if coupled_decay != 0:
            grad = grad + coupled_decay * param
        first = beta1 * m[i] + gain1 * grad
        second = beta2 * v[i] + gain2 * (grad * grad)
        m[i] = first
        v[i] = second
        if max_v is not None:
            if not (second > max_v[i] or second != second):
                second = max_v[i]
            max_v[i] = second
        p[i] = param * shrink - step_size * first / (np.sqrt(second) * inv_root2 + eps)


def lion_step_scalars(
    lr: float, beta1: float, beta2: float, weight_decay: float, maximize: int, grad_scale: float
) -> tuple[Any, ...]:
    shrink = 1.0 - lr * weight_decay
    return (-1.0 if maximize else 1.0) / grad_scale, shrink, lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2


@loop
def lion_step(p, g, m, origin, inv_scale, shrink, lr, beta1, gain1, beta2, gain2):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        param = p[i]
        if origin is not None:
            param = origin[i]
        grad = g[i] * inv_scale
        mixed = beta1 * m[i] + gain1 * grad
        move = mixed
        if mixed > 0:
            move = lr
        elif mixed < 0:
            move = -lr
        p[i] = param * shrink - move
        m[i] = beta2 * m[i] + gain2 * grad


NORM_CHUNK = 32768


@loop
def sum_squares_chunk(x, scale):  # type: ignore[no-untyped-def]
    """Adds the squares of one chunk to 16 lanes, then folds them in the fixed tree."""
    lane = np.zeros(16)
    for i in range(x.size):
        value = np.float64(x[i]) * scale
        lane[i % 16] += value * value
    half = 8
    while half > 0:
        for k in range(half):
            lane[k] += lane[k + half]
        half //= 2
    return lane[0]


def sum_squares(x: list[np.ndarray[Any, Any]], out: np.ndarray[Any, Any], scale: float) -> None:
    total = 0.0
    finite = True
    wide = any(a.dtype == np.float64 for a in x)  # the square of a shorter float cannot overflow a double
    for a in x:
        for start in range(0, a.size, NORM_CHUNK):
            chunk = a[start : start + NORM_CHUNK]
            part = float(sum_squares_chunk(chunk, np.float64(scale if wide else 1)))
            total += part
            finite = finite and (math.isfinite(part) or (wide and bool(np.isfinite(chunk).all())))
    out[0] = total if wide else total * scale * scale
    out[1] = float(not finite)


@loop
def _variance(window, newest, length, loss):  # type: ignore[no-untyped-def]
    total = loss - loss
    squares = loss - loss
    for age in range(length):
        total += window[(newest - age) % window.size] - loss
    mean = total / length
    for age in range(length):
        deviation = window[(newest - age) % window.size] - loss - mean
        squares += deviation * deviation
    return squares / length


def loss_window(
    window: np.ndarray[Any, Any],
    stored: np.ndarray[Any, Any],
    out: np.ndarray[Any, Any],
    patience: int,
    period: int,
    loss: float,
) -> None:
    out[:] = 0
    if math.isnan(loss):
        return
    newest = int(stored[0]) % patience
    window[newest] = loss
    stored[0] += 1
    if stored[0] < patience:
        return
    out[0] = float(loss >= window.max())
    out[1] = _variance(window, newest, min(period, patience), np.float64(loss))
    out[2] = _variance(window, newest, patience, np.float64(loss))
