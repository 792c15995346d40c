"""The demo's experiment: which models and optimizers run, and what is kept of each run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from .. import optim
from . import peers
from .digits import Digits, Side, difference, train
from .limits import MemoryLimit, bytes_per_parameter
from .peers import Array, Optimizer

BATCH = 64


@dataclass(frozen=True)
class Model:
    """A multilayer perceptron and how long it trains."""

    sizes: tuple[int, ...]
    epochs: int

    @property
    def name(self) -> str:
        return "-".join(map(str, self.sizes))

    @property
    def parameters(self) -> int:
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.sizes))

    def steps(self, data: Digits) -> int:
        return self.epochs * (len(data.y) // BATCH)


QUICK = (Model((64, 512, 512, 10), epochs=12),)
FULL = (Model((64, 512, 512, 10), epochs=40), Model((64, 2048, 2048, 10), epochs=5))


@dataclass(frozen=True)
class Recipe:
    """One optimizer on both sides, with the same settings."""

    name: str
    settings: dict[str, float]
    curvk: Callable[..., Optimizer]
    numpy: Callable[..., Optimizer]
    traffic: str = "Adam"

    def sides(self) -> tuple[Callable[[list[Array]], Optimizer], ...]:
        return (lambda params: self.curvk(params, **self.settings), lambda params: self.numpy(params, **self.settings))


RECIPES = (
    Recipe("SGD", {"lr": 0.05, "momentum": 0.9}, optim.SGD, peers.SGD, "SGD"),
    Recipe("Adam", {"lr": 1e-3}, optim.Adam, peers.Adam),
    Recipe("AdamW", {"lr": 1e-3, "weight_decay": 1e-2}, optim.AdamW, peers.AdamW),
    Recipe("AdamZ", {"lr": 1e-3, "max_lr": 3e-3}, optim.AdamZ, peers.AdamZ),
)


def _measured(side: Side, parameters: int) -> dict[str, Any]:
    seconds = median(side.step_s)
    return {
        "test_accuracy": side.accuracy[-1],
        "test_accuracy_by_epoch": side.accuracy,
        "train_loss_last": side.losses[-1],
        "steps_per_s": 1 / (median(side.passes_s) + seconds),
        "optimizer_ms_per_step": seconds * 1e3,
        "optimizer_ms_per_step_quartiles": [sorted(side.step_s)[len(side.step_s) * q // 4] * 1e3 for q in (1, 3)],
        "ns_per_parameter": seconds / parameters * 1e9,
    }


def run(
    model: Model, recipe: Recipe, data: Digits, limit: MemoryLimit, seed: int, advance: Callable[[], Any]
) -> tuple[dict[str, Any], Side]:
    """Trains a model with one optimizer on both sides; returns a row of the report and curvk's side."""
    ours, theirs = train(
        model.sizes,
        data,
        recipe.sides(),
        epochs=model.epochs,
        batch=BATCH,
        seed=seed,
        advance=advance,
        make_side=Side,
    )
    a, b = _measured(ours, model.parameters), _measured(theirs, model.parameters)
    limit_ns = limit.ns(recipe.traffic, model.parameters)
    row = {
        "model": model.name,
        "parameters": model.parameters,
        "batch": BATCH,
        "epochs": model.epochs,
        "steps": model.steps(data),
        "optimizer": recipe.name,
        "settings": recipe.settings,
        "final_lr": ours.optimizer.param_groups[0]["lr"],
        "curvk": a,
        "numpy": b,
        "limit_ns_per_parameter": limit_ns,
        "bytes_per_parameter": bytes_per_parameter(recipe.traffic),
        "share_of_limit": limit_ns / a["ns_per_parameter"],
        "speedup": b["ns_per_parameter"] / a["ns_per_parameter"],
        "difference": {
            "params": difference(ours.model.params, theirs.model.params),
            "loss": max(abs(x - y) / max(abs(y), 1e-300) for x, y in zip(ours.losses, theirs.losses, strict=True)),
        },
    }
    return row, ours


def as_row(large: Any) -> dict[str, Any]:
    """The large array's figures for the report."""
    row: dict[str, Any] = asdict(large)
    row["share_of_limit"] = large.limit_ns / large.curvk_ns
    row["speedup"] = large.numpy_ns / large.curvk_ns
    row["speedup_over_blocked"] = large.numpy_blocked_ns / large.curvk_ns
    return row
