"""How close the Stein samplers come to a density, against the number of its evaluations.

    pip install "curvk[demo]"
    python examples/stein/run.py --quick
    python examples/stein/run.py --json results.json --figure stein.png --table stein.md

Five kinds of samplers move 100 particles towards three densities whose truth is known: a mixture of four normals, the
double banana, and the posterior of a logistic regression with five coefficients. The measure is the squared maximum
mean discrepancy to 4,000 points of the truth (Gaussian kernel, h^2 = median(d^2) / 2 of these); a line shows what 100
independent points of the truth reach. A fourth task has no truth: small networks that swing a pendulum up, 32 of them,
where the mean return counts. Only SVGD uses gradients; each of its scores counts as one evaluation.

Every method has the same number of settings to choose from, by its median result with other seeds: a bandwidth and a
learning rate, or the first deviation of CMA-ES. Independent CMA-ES has no bandwidth.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import curvk
import numpy as np
from curvk import stein
from curvk.kernels import gram
from curvk.stein import problems
from plot import draw, report
from tqdm import tqdm

POINTS = 24  # of a curve
TUNE_SEEDS = (1000, 1001)
BANDWIDTHS = ("median", 0.1, 0.3, 0.8)


@dataclass(frozen=True)
class Method:
    """A sampler with the settings to choose from; `popsize` evaluations per particle and step."""

    make: Callable[..., Any]
    grid: dict[str, tuple]
    popsize: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    gradient: bool = False


def cma(repulsion, **options):
    grid = {"sigma0": (0.05, 0.2, 0.5)} | ({"bandwidth": BANDWIDTHS} if repulsion else {})
    return Method(stein.SVCMAES, grid, 4, {"repulsion": repulsion, "popsize": 4} | options)


RATES = {"lr": (0.02, 0.05, 0.2), "bandwidth": BANDWIDTHS}
METHODS = {
    "SVGD": Method(stein.SVGD, RATES, options={"step": "adam"}, gradient=True),
    "GF-SVGD": Method(stein.GradientFreeSVGD, RATES, options={"step": "adam", "inflation": 1.5}),
    "SV-OpenAI-ES": Method(stein.SVOpenAIES, RATES, 4, {"popsize": 4, "sigma": 0.05}),
    "SV-CMA-ES": cma(1.0),
    "SV-CMA-ES, annealed": cma(1.0, annealing="log"),
    "independent CMA-ES": cma(0.0),
}


class Truth:
    """The squared maximum mean discrepancy to a fixed sample."""

    lower_is_better = True

    def __init__(self, points):
        self.points = points
        self.h = gram.median_distance(points) / np.sqrt(2)
        self._within = gram.row_sums(points, points, bandwidth=self.h).mean() / len(points)

    def __call__(self, x):
        own = gram.row_sums(x, x, bandwidth=self.h).mean() / len(x)
        across = gram.row_sums(x, self.points, bandwidth=self.h).mean() / len(self.points)
        return float(own + self._within - 2 * across)


class Return:
    """The mean return of the policies."""

    lower_is_better = False

    def __init__(self, pendulum):
        self._pendulum = pendulum

    def __call__(self, x):
        return float(self._pendulum.returns(x).mean())


@dataclass(frozen=True)
class Task:
    about: str
    problem: Any
    start: Callable[[np.random.Generator], Any]  # the first particles
    measure: Any
    evaluations: int
    sample: Callable[[int], Any] | None = None  # as many independent points of the truth as particles, by seed
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # of samplers by class, in place of the usual
    grid: dict[str, tuple] = field(default_factory=dict)  # settings to choose from, in place of the usual


def uniform(n, d, reach):
    return lambda rng: rng.uniform(-reach, reach, (n, d))


def tasks(names, quick):
    """The tasks by name; their densities are the same for all seeds."""
    m, n = (500, 40) if quick else (4000, 100)
    steps, made = (40 if quick else 1200), {}
    if "mixture" in names:
        p = problems.four_modes(0)
        made["mixture"] = Task(
            "four unit normals in the plane",
            p,
            uniform(n, 2, 6.0),
            Truth(p.sample(m, seed=1)),
            n * steps,
            lambda seed: p.sample(n, seed=100 + seed),
        )
    if "banana" in names:
        b = problems.DoubleBanana()
        made["banana"] = Task(
            "double banana",
            b,
            uniform(n, 2, 2.0),
            Truth(b.sample(m, seed=1)),
            n * steps,
            lambda seed: b.sample(n, seed=100 + seed),
        )
    if "logistic" in names:
        posterior, *_ = problems.breast_cancer(4)
        made["logistic"] = Task(
            "logistic regression, 5 coefficients",
            posterior,
            lambda rng: rng.standard_normal((n, 5)),
            Truth(posterior.sample(m, seed=1)),
            n * steps // 2,
            lambda seed: posterior.sample(n, seed=100 + seed),
        )
    if "pendulum" in names:
        pendulum = problems.Pendulum(steps=20 if quick else 120)
        made["pendulum"] = Task(
            "pendulum swing-up, 21 weights",
            pendulum,
            lambda rng: rng.standard_normal((8 if quick else 32, pendulum.d), np.float32),
            Return(pendulum),
            8 * 40 if quick else 32 * 400,
            options={"SVOpenAIES": {"sigma": 0.3}},  # returns are rough, and the weights of order 1
            grid={"lr": (0.05, 0.2), "sigma0": (0.3, 1.0), "bandwidth": ("median", 2.0)},
        )
    return made


def train(task, method, settings, seed):
    """One run: the measure at evenly spaced logarithms of the number of evaluations, and where it ended."""
    x0 = task.start(np.random.default_rng(seed))
    n = len(x0)
    steps = task.evaluations // (n * method.popsize)
    options = method.options | task.options.get(method.make.__name__, {}) | settings
    function = task.problem.score if method.gradient else task.problem.log_density
    sampler = method.make(function, x0, seed=seed, **options)
    marks = {*np.geomspace(1, steps, POINTS).round().astype(int).tolist()}
    curve, started = [(0, task.measure(x0))], time.process_time()

    def look(sampler):
        if sampler.n_steps in marks:
            curve.append((sampler.n_evaluations, task.measure(sampler.particles)))

    try:
        sampler.run(steps, callback=look, progress=False)
    except ValueError as error:  # a setting that diverges
        return {"seed": seed, "failed": str(error)}
    x = sampler.particles
    return {
        "seed": seed,
        "seconds": time.process_time() - started,
        "curve": curve,
        "particles": x.round(4).tolist() if x.shape[1] == 2 else None,
        "best": float(task.problem.returns(x).max()) if task.sample is None else None,
    }


def worth(task, run):
    """The result of a run, smaller is better."""
    if "failed" in run or not np.isfinite(run["curve"][-1][1]):
        return float("inf")
    end = run["curve"][-1][1]
    return end if task.measure.lower_is_better else -end


def settings_of(task, method):
    """All that a method may choose from for a task."""
    return [
        dict(zip(method.grid, v, strict=True))
        for v in product(*(task.grid.get(k, method.grid[k]) for k in method.grid))
    ]


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
    parser.add_argument("--quick", action="store_true", help="one seed, few particles and steps, nothing tuned")
    parser.add_argument("--seeds", type=int, default=10)
    names = ("mixture", "banana", "logistic", "pendulum")
    parser.add_argument("--tasks", nargs="+", choices=names, default=list(names))
    parser.add_argument("--json", type=Path, help="where the results go; methods that are there are not repeated")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args(argv)
    seeds, tune_seeds = (range(1), ()) if args.quick else (range(args.seeds), TUNE_SEEDS)
    results = {
        "curvk": curvk.__version__,
        "machine": {"numpy": np.__version__, "python": platform.python_version(), "threads": 1},
        "tune_seeds": list(tune_seeds),
        "tasks": {},
    }
    if args.json and args.json.exists():
        results["tasks"] = json.loads(args.json.read_text(encoding="utf-8"))["tasks"]
    todo = tasks(args.tasks, args.quick)
    jobs = []
    for name, task in todo.items():
        found = results["tasks"].setdefault(
            name,
            {
                "about": task.about,
                "evaluations": task.evaluations,
                "lower_is_better": task.measure.lower_is_better,
                "particles": len(task.start(np.random.default_rng(0))),
                "independent": [task.measure(task.sample(seed)) for seed in seeds] if task.sample else [],
                "truth": task.measure.points[:2000].round(3).tolist() if name in ("mixture", "banana") else None,
                "methods": {},
            },
        )
        if found["evaluations"] != task.evaluations:
            raise SystemExit(f"--json: {args.json} has runs of {found['evaluations']} evaluations; use another file")
        jobs += [
            (name, title)
            for title, method in METHODS.items()
            if title not in found["methods"] and (not method.gradient or hasattr(task.problem, "score"))
        ]
    with curvk.threads(1), tqdm(jobs, unit="method", disable=None) as bar:
        for name, title in bar:
            bar.set_description(f"{name}, {title}")
            task, method = todo[name], METHODS[title]
            choices = settings_of(task, method)
            tried = [
                median(worth(task, train(task, method, settings, seed)) for seed in tune_seeds)
                for settings in (choices if tune_seeds else ())
            ]
            settings = choices[int(np.argmin(tried))] if tried else choices[0]
            results["tasks"][name]["methods"][title] = {
                "settings": settings,
                "tried": [[choice, value] for choice, value in zip(choices, tried, strict=False)],
                "runs": [train(task, method, settings, seed) for seed in seeds],
            }
            if args.json:
                write(args.json, lambda path: path.write_text(json.dumps(results), encoding="utf-8"))
    text = report(results)
    print(text)
    if args.table:
        write(args.table, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    if args.figure:
        write(args.figure, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
