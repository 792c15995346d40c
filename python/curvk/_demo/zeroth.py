"""The demo's row without gradients: FZOO by forward passes, with curvk's noise and with that of NumPy's generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from .. import threads, zeroth
from . import peers
from .digits import MLP, Digits, ForwardSide, train
from .run import BATCH, Model

LR = 2e-5
SETTINGS: dict[str, Any] = {"eps": 1e-3, "n_probes": 8}
SIDES: dict[str, Callable[..., peers.Optimizer]] = {"curvk": zeroth.FZOO, "numpy": peers.FZOO}
PLAIN: dict[str, Callable[..., peers.Optimizer]] = {"curvk": zeroth.FZOO, "numpy": peers.PlainFZOO}
PLAIN_EPOCHS = 1  # it learns as well as the other one, in more time


def steps(model: Model, data: Digits) -> int:
    """How often `run` calls `advance`."""
    return model.steps(data) + replace(model, epochs=PLAIN_EPOCHS).steps(data)


def _train(
    makers: dict[str, Callable[..., peers.Optimizer]],
    model: Model,
    data: Digits,
    seed: int,
    advance: Callable[[], Any],
) -> dict[str, ForwardSide]:
    sides = train(
        model.sizes,
        data,
        tuple(partial(make, lr=LR, seed=seed, **SETTINGS) for make in makers.values()),
        epochs=model.epochs,
        batch=BATCH,
        seed=seed,
        advance=advance,
        make_side=partial(ForwardSide, lr=LR, steps=model.steps(data)),
    )
    return dict(zip(makers, sides, strict=True))


def _times(side: ForwardSide, parameters: int) -> dict[str, Any]:
    """Medians; noise is all that is not a forward pass."""
    passes, noise = median(side.passes_s) * 1e6, median(side.step_s) * 1e6
    return {
        "step_us": passes + noise,
        "passes_us": passes,
        "noise_us": noise,
        "noise_us_quartiles": [sorted(side.step_s)[len(side.step_s) * q // 4] * 1e6 for q in (1, 3)],
        "noise_share": noise / (passes + noise),
        "noise_ns_per_parameter": noise / parameters * 1e3,
    }


def _learned(side: ForwardSide, data: Digits) -> dict[str, Any]:
    return {
        "test_accuracy": side.accuracy[-1],
        "test_accuracy_by_epoch": side.accuracy,
        "train_loss": side.model.loss(data.x, data.y),
    }


def _speedup(times: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    return {what: peer[f"{what}_us"] / times[f"{what}_us"] for what in ("noise", "step")}


def run(model: Model, data: Digits, seed: int, advance: Callable[[], Any]) -> dict[str, Any]:
    """Trains a model by forward passes on both sides, then times the plain peer; returns the report's entry."""
    with threads(1):  # as NumPy has; and where a pass takes some 60 us, a team would gain little
        sides = _train(SIDES, model, data, seed, advance)
        brief = _train(PLAIN, replace(model, epochs=PLAIN_EPOCHS), data, seed, advance)
    times = {name: _times(side, model.parameters) for name, side in sides.items()}
    plain = {name: _times(side, model.parameters) for name, side in brief.items()}
    ours = sides["curvk"]
    again = MLP(model.sizes, seed).params
    ours.optimizer.log.replay(again)
    return {
        "model": model.name,
        "parameters": model.parameters,
        "batch": BATCH,
        "epochs": model.epochs,
        "steps": len(ours.losses),
        "method": "FZOO",
        "settings": {"lr": LR, "dist": "rademacher", **SETTINGS},
        "lr_schedule": "linear, to 0 after the last step",
        "forward_passes_per_step": ours.passes / len(ours.losses),
        **{name: _learned(side, data) | times[name] for name, side in sides.items()},
        "speedup": _speedup(times["curvk"], times["numpy"]),
        "plain": {
            "steps": len(brief["curvk"].losses),
            **plain,
            "speedup": _speedup(plain["curvk"], plain["numpy"]),
        },
        "log_bytes": ours.optimizer.log.nbytes,
        "replay_is_exact": all(map(np.array_equal, again, ours.model.params)),
    }
