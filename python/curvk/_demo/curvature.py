"""The demo's rows with several gradients a step: Alice, and AdamW that ends with SAM, beside AdamW."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from .. import optim
from . import peers
from .digits import MLP, Digits, Side
from .peers import Array, Optimizer
from .run import BATCH, Model

ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}
ALICE: dict[str, Any] = {"lr": 5e-3, "lr_max": 1e-2, "quick_steps": 3}
RHO, LATE = 0.05, 0.875
"""SAM's radius, and the share of the steps that are AdamW's alone."""


@dataclass
class GradientSide(Side):
    """A side whose optimizer calls for gradients; each call of a step fills arrays of its own."""

    gradients: int = 0
    sets: list[list[Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sets = [[np.empty_like(p) for p in self.model.params] for _ in range(3)]

    def step(self, x: Array, y: Array) -> None:
        spent, called, loss = 0.0, 0, 0.0

        def grad() -> list[Array]:
            nonlocal spent, called, loss
            start = perf_counter()
            self.model.grads = self.sets[called]
            loss = self.model.backward(x, y)
            called += 1
            spent += perf_counter() - start
            return self.model.grads

        start = perf_counter()
        self.optimizer.step(grad)
        self.step_s.append(perf_counter() - start - spent)
        self.passes_s.append(spent)
        self.losses.append(loss)
        self.gradients += called


def budget(model: Model, data: Digits) -> int:
    """Gradients that each method may take, and how often `run` calls `advance` for each."""
    return model.steps(data)


def _late_steps(gradients: int) -> int:
    return int(gradients / (2 - LATE))


def _makers(gradients: int, seed: int) -> dict[str, tuple[Callable[[list[Array]], Optimizer], ...]]:
    """Per method, curvk's side and NumPy's."""
    start = round(LATE * _late_steps(gradients))
    return {
        "AdamW": (
            lambda params: optim.SAM(optim.AdamW(params, **ADAMW), rho=RHO, start=gradients),
            lambda params: peers.SAM(peers.AdamW(params, **ADAMW), rho=RHO, start=gradients),
        ),
        "AdamW, late SAM": (
            lambda params: optim.SAM(optim.AdamW(params, **ADAMW), rho=RHO, start=start),
            lambda params: peers.SAM(peers.AdamW(params, **ADAMW), rho=RHO, start=start),
        ),
        "Alice": (
            lambda params: optim.Alice(params, seed=seed, **ALICE),
            lambda params: peers.Alice(params, seed=seed, **ALICE),
        ),
    }


def _train(
    makers: tuple[Callable[[list[Array]], Optimizer], ...],
    model: Model,
    data: Digits,
    seed: int,
    gradients: int,
    advance: Callable[[int], Any],
) -> list[GradientSide]:
    """Both sides in turns on the same batches, until the next step of one could need more gradients than there are."""
    models = [MLP(model.sizes, seed) for _ in makers]
    sides = [GradientSide(net, make(net.params)) for net, make in zip(models, makers, strict=True)]
    turns, rng = sides, np.random.default_rng(seed + 1)
    rows: Array = np.empty(0, np.int64)
    done = 0
    while all(side.gradients + _most(side) <= gradients for side in sides):
        if len(rows) < BATCH:
            rows = rng.permutation(len(data.y))
        batch, rows = rows[:BATCH], rows[BATCH:]
        turns = turns[::-1]
        for side in turns:
            side.step(data.x[batch], data.y[batch])
        advance(sides[0].gradients - done)
        done = sides[0].gradients
    advance(gradients - done)
    for side in sides:
        side.measure(data)
    return sides


def _most(side: GradientSide) -> int:
    """The gradients that the side's next step may take."""
    optimizer = side.optimizer
    if isinstance(optimizer, (optim.SAM, peers.SAM)):
        return 2 if optimizer.steps >= (optimizer.start or 0) else 1
    return 3


def run(model: Model, data: Digits, seed: int, advance: Callable[[int], Any]) -> dict[str, Any]:
    """Trains the model by each method on both sides; returns the report's entry."""
    gradients, rows = budget(model, data), []
    for name, makers in _makers(gradients, seed).items():
        sides = dict(zip(("curvk", "numpy"), _train(makers, model, data, seed, gradients, advance), strict=True))
        ours = sides["curvk"].optimizer
        row: dict[str, Any] = {
            "method": name,
            **{
                key: {
                    "test_accuracy": side.accuracy[-1],
                    "train_loss": side.model.loss(data.x, data.y),
                    "steps": len(side.losses),
                    "gradients": side.gradients,
                    "own_us_per_step": sum(side.step_s) / len(side.step_s) * 1e6,
                    "gradient_us": sum(side.passes_s) / side.gradients * 1e6,
                }
                for key, side in sides.items()
            },
        }
        row["speedup"] = row["numpy"]["own_us_per_step"] / row["curvk"]["own_us_per_step"]
        if name == "Alice":
            row["frac_inside"] = ours.diagnose()["frac_inside"]
        rows.append(row)
    return {
        "model": model.name,
        "parameters": model.parameters,
        "batch": BATCH,
        "gradients": gradients,
        "settings": {"AdamW": ADAMW, "Alice": ALICE, "SAM": {"rho": RHO, "start": LATE}},
        "rows": rows,
    }
