"""Steps on what is stored in fewer bytes; csrc/include/curvk/sweep.h gives the formulas.

A twin widens a part of the arrays, has the loops of optim.py step it, and stores it. It gets the arrays as they are
stored: float16, and uint16 for bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._errors import out_of_range
from . import optim
from .codes import (
    GROUP,
    STOCHASTIC,
    Array,
    Coded,
    Mapped,
    Short,
    State,
    Whole,
    can_round,
    group_words,
    load_params,
    store_params,
)
from .half import narrow_bf16

PART = 32768  # elements whose numbers fit the second-level cache


def _sweep_scalars(rounding: int, ema_decay: float, zero_grad: int, draw: int, seed: int) -> tuple[Any, ...]:
    return rounding, ema_decay, 1.0 - ema_decay, zero_grad, draw, seed


def _sgd_scalars(*values: Any) -> tuple[Any, ...]:
    return *optim.sgd_step_scalars(*values[:9]), *_sweep_scalars(*values[9:])


def _adam_scalars(*values: Any) -> tuple[Any, ...]:
    return *optim.adam_step_scalars(*values[:9]), *_sweep_scalars(*values[9:])


sgd_sweep_scalars = sgd_sweep16_scalars = sgd_sweep8_scalars = sgd_sweep8b_scalars = _sgd_scalars
adam_sweep_scalars = adam_sweep16_scalars = adam_sweep8_scalars = adam_sweep8b_scalars = _adam_scalars


def _sweep(
    op: str,
    step: Callable[[slice, Array, Array, list[Array]], None],
    states: list[State],
    p: Array,
    g: Array,
    low: Array | None,
    ema: Array | None,
    shadow: Array | None,
    origin: Array | None,
    tensor: int,
    offset: int,
    rounding: int,
    ema_decay: Any,
    ema_gain: Any,
    zero_grad: int,
    draw: int,
    seed: int,
) -> None:
    """Steps the parameters and states, `states[k]` rounding with word 1 + k of its groups."""
    if not can_round(p, low, rounding):
        out_of_range(op, "rounding", rounding)
    draws = rounding == STOCHASTIC or any(s.draws for s in states)
    for i in range(0, p.size, PART):
        part = slice(i, min(i + PART, p.size))
        words: list[Array | None] = [None] * 4
        if draws:
            words[:] = group_words(seed, tensor, draw, (offset + i) // GROUP, -((i - part.stop) // GROUP))
        with np.errstate(all="ignore"):
            param = load_params((p if origin is None else origin)[part], None if low is None else low[part], rounding)
            grad = load_params(g[part], None, 0)
            numbers = [s.load(part) for s in states]
            step(part, param, grad, numbers)
            for state, x, word in zip(states, numbers, words[1:], strict=False):
                state.store(part, x, word)
            if ema is not None:
                ema[part] = ema_decay * ema[part] + ema_gain * param
            if shadow is not None:
                shadow[part] = narrow_bf16(param.astype(np.float32))
            store_params(param, p[part], None if low is None else low[part], rounding, words[0])
            if zero_grad:
                g[part] = 0


def _sgd(op: str, states: list[State], p: Array, g: Array, *rest: Any) -> None:
    tables, scalars, sweep = rest[:6], rest[6:14], rest[14:]

    def step(part: slice, param: Array, grad: Array, numbers: list[Array]) -> None:
        optim.sgd_step(param, grad, numbers[0] if numbers else None, None, *scalars)

    _sweep(op, step, states, p, g, *tables, *sweep)


def _adam(op: str, states: list[State], max_v: Array | None, p: Array, g: Array, *rest: Any) -> None:
    tables, scalars, sweep = rest[:6], rest[6:16], rest[16:]

    def step(part: slice, param: Array, grad: Array, numbers: list[Array]) -> None:
        optim.adam_step(param, grad, *numbers, None if max_v is None else max_v[part], None, *scalars)

    _sweep(op, step, states, p, g, *tables, *sweep)


def sgd_sweep(p: Array, g: Array, buf: Array | None, *rest: Any) -> None:
    _sgd("sgd_sweep", [] if buf is None else [Whole(buf)], p, g, *rest)


def sgd_sweep16(p: Array, g: Array, buf: Array, *rest: Any) -> None:
    _sgd("sgd_sweep16", [Short(buf)], p, g, *rest)


def sgd_sweep8(p: Array, g: Array, buf: Array, scale: Array, *rest: Any) -> None:
    _sgd("sgd_sweep8", [Coded(buf, scale, True)], p, g, *rest)


def sgd_sweep8b(p: Array, g: Array, buf: Array, scale: Array, *rest: Any) -> None:
    _sgd("sgd_sweep8b", [Mapped(buf, scale, True)], p, g, *rest)


def adam_sweep(p: Array, g: Array, m: Array, v: Array, max_v: Array | None, *rest: Any) -> None:
    _adam("adam_sweep", [Whole(m), Whole(v)], max_v, p, g, *rest)


def adam_sweep16(p: Array, g: Array, m: Array, v: Array, *rest: Any) -> None:
    _adam("adam_sweep16", [Short(m), Short(v)], None, p, g, *rest)


def adam_sweep8(p: Array, g: Array, m: Array, m_scale: Array, v: Array, v_scale: Array, *rest: Any) -> None:
    _adam("adam_sweep8", [Coded(m, m_scale, True), Coded(v, v_scale, False)], None, p, g, *rest)


def adam_sweep8b(p: Array, g: Array, m: Array, m_scale: Array, v: Array, v_scale: Array, *rest: Any) -> None:
    _adam("adam_sweep8b", [Mapped(m, m_scale, True), Mapped(v, v_scale, False)], None, p, g, *rest)


# ---- arrays to codes and back ---------------------------------------------------------------------------------------


def _quantize(kind: Any, x: list[Array], codes: list[Array], scale: list[Array], is_signed: int) -> None:
    with np.errstate(all="ignore"):
        for numbers, c, s in zip(x, codes, scale, strict=True):
            kind(c, s, bool(is_signed)).store(slice(0, c.size), numbers if is_signed else np.abs(numbers), None)


def _dequantize(kind: Any, x: list[Array], codes: list[Array], scale: list[Array], is_signed: int) -> None:
    with np.errstate(all="ignore"):
        for numbers, c, s in zip(x, codes, scale, strict=True):
            numbers[:] = kind(c, s, bool(is_signed)).load(slice(0, c.size))


def quantize8(*arguments: Any) -> None:
    _quantize(Coded, *arguments)


def quantize8b(*arguments: Any) -> None:
    _quantize(Mapped, *arguments)


def dequantize8(*arguments: Any) -> None:
    _dequantize(Coded, *arguments)


def dequantize8b(*arguments: Any) -> None:
    _dequantize(Mapped, *arguments)
