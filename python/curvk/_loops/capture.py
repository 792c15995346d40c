"""Steps whose numbers lie in memory, and AdamZ's rule; csrc/include/curvk/capture.h gives the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .optim import adam_step, adam_step_scalars, loss_window, sgd_step, sgd_step_scalars

Array = np.ndarray[Any, Any]

sgd_step_at = sgd_step


def sgd_step_at_scalars(at: Array, *others: Any) -> tuple[Any, ...]:
    return sgd_step_scalars(float(at[1]), *others)


adam_step_at = adam_step


def adam_step_at_scalars(at: Array, *others: Any) -> tuple[Any, ...]:
    number, lr = at.tolist()
    counts = 1 <= number <= 2.0**53
    return adam_step_scalars(int(number) if counts else 1, lr if counts else math.nan, *others)


def _sum_losses(losses: Array) -> float:
    """In the order of NumPy's pairwise sum up to 128 losses, beyond in parts of 128."""
    return float(sum((float(np.sum(losses[i : i + 128])) for i in range(0, losses.size, 128)), 0.0))


def loss_rule(
    window: Array,
    stored: Array,
    loss: Array,
    at: Array,
    patience: int,
    period: int,
    overshoot_factor: float,
    stagnation_factor: float,
    stagnation_threshold: float,
    min_lr: float,
    max_lr: float,
    guard: int,
) -> None:
    if not 0 <= stored[0] < 2**63 - 1:
        return
    out = np.zeros(3)
    loss_window(window, stored, out, patience, period, float(loss[0]))
    highest, short, long = out.tolist()
    lr = float(at[1])
    if not 0 <= lr < math.inf:
        return
    stagnates = short < stagnation_threshold * stagnation_threshold * long
    if stagnates and guard and period < patience:
        ages = np.arange(min(2 * period, patience))
        losses = window[(int(stored[0]) - 1 - ages) % patience]
        newest, older = losses[:period], losses[period:]
        stagnates = not _sum_losses(newest) / period < _sum_losses(older) / older.size
    if highest:
        lr *= overshoot_factor
    if stagnates:
        lr *= stagnation_factor
    at[1] = min_lr if lr < min_lr else max_lr if lr > max_lr else lr
