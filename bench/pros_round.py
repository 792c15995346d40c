"""A round of PROS-N-KONS against the rows of its dictionary: microseconds for score, prediction and step.

python bench/pros_round.py [--rounds 7] [--json FILE] [--plot FILE]

A round costs O(j d + j^2) in curvk for a dictionary of j rows. Released code, on which published times rest,
forms the dictionary's kernel matrix anew in every round, O(j^2 d). Both are here in NumPy, in our words, where the one
that forms the matrix solves with it too, O(j^3); and curvk with one row per call and in blocks. All have the same
dictionary, predictions and scores, which is checked first, take turns in one process on one thread, and let no row
enter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import curvk
import numpy as np
from curvk._bench import report
from curvk._bench.registry import Contender
from curvk._bench.runner import Effort, take_turns
from curvk._info import machine
from curvk.online._dictionary import LeverageDictionary
from curvk.online._features import FeatureEngine, Step
from threadpoolctl import threadpool_limits

COLUMNS, BANDWIDTH, CURVATURE = 20, 5.0, 0.125
SIZES = (25, 50, 100, 200, 400)
BLOCK = 2000
NEVER = 1e-12  # proportion of the chances of entry


def gaussian(X: Any, Z: Any) -> Any:
    squares = np.square(X).sum(axis=1)[:, None] + np.square(Z).sum(axis=1) - 2 * X @ Z.T
    return np.exp(-np.maximum(squares, 0) / (2 * BANDWIDTH**2))


class InNumPy:
    """The published learner on a dictionary of weight 1; `score` gives r = k(x, x) - k' (K + I)^-1 k."""

    def __init__(self, held: Any, anew: bool) -> None:
        self.held, self.anew = held, anew
        K = gaussian(held, held)
        lam, U = np.linalg.eigh(K)
        self.features, self.inverse, self.w = (U / np.sqrt(lam)).T, np.eye(len(held)), np.zeros(len(held))
        self.ridge = np.linalg.inv(np.linalg.cholesky(K + np.eye(len(held))))

    def score(self, k: Any) -> float:
        if self.anew:
            K = gaussian(self.held, self.held)
            return float(1 - k @ np.linalg.solve(K + np.eye(len(k)), k))
        q = self.ridge @ k
        return float(1 - q @ q)

    def learn(self, x: Any, y: float) -> tuple[float, float]:
        """Prediction and score of one row."""
        k = gaussian(self.held, x[None])[:, 0]
        r, phi = self.score(k), self.features @ k
        f, u = self.w @ phi, self.inverse @ phi
        if abs(f) > 1:
            self.w = self.w - (f - np.sign(f)) / (phi @ u) * u
            f = np.sign(f)
        g = -2 * y * max(0.0, 1 - y * f)
        if g:
            a = CURVATURE / 2 * g * g
            growth = 1 + a * (phi @ u)
            self.inverse = self.inverse - a / growth * np.outer(u, u)
            self.w = self.w - g / growth * u
        return float(f), r


def ours(held: Any) -> FeatureEngine:
    kernel = {"kernel": "gaussian", "bandwidth": BANDWIDTH}
    dictionary = LeverageDictionary(COLUMNS, kernel, beta=1 / NEVER, on_refresh="keep")
    engine = FeatureEngine(COLUMNS, 1, dictionary, Step("kons", alpha=1.0, curvature=CURVATURE), kernel)
    for x in held:
        engine._enter(x)
    dictionary.beta = NEVER
    return engine


def check(held: Any, X: Any, y: Any) -> None:
    """The same scores and predictions from all."""
    engine, loops = ours(held), [InNumPy(held, anew) for anew in (True, False)]
    F = np.empty((len(X), 1))
    chances = engine.map.probabilities(X)
    engine.learn(X, y[:, None], F)
    for i, x in enumerate(X):
        for loop in loops:
            f, r = loop.learn(x, y[i])
            if abs(f - F[i, 0]) > 1e-8 or abs(1.5 * r / (r + 1) - chances[i] / NEVER) > 1e-8:
                raise SystemExit(f"row {i}: other predictions or scores than curvk's")


def contenders(held: Any, X: Any, y: Any, rows: int) -> list[Contender]:
    """Each learns `rows` rows in a step, in blocks BLOCK of them."""

    def numpy_rounds(anew: bool) -> Callable[[], None]:
        loop = InNumPy(held, anew)

        def step() -> None:
            for i in range(rows):
                loop.learn(X[i], y[i])

        return step

    alone, block, x, target, f = ours(held), ours(held), X[:1].copy(), y[:1, None].copy(), np.empty((1, 1))
    Y, F = y[:, None].copy(), np.empty((len(X), 1))

    def one_by_one() -> None:
        for i in range(rows):
            x[0], target[0] = X[i], y[i]
            alone.learn(x, target, f)

    return [
        Contender("curvk, blocks", lambda: block.learn(X, Y, F)),
        Contender("curvk, row by row", one_by_one),
        Contender("NumPy, O(j d + j^2)", numpy_rounds(False)),
        Contender("NumPy, K anew", numpy_rounds(True)),
    ]


def measure(size: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds per row by name, one sample a round."""
    rng = np.random.default_rng(size)
    held, X = rng.standard_normal((size, COLUMNS)), rng.standard_normal((BLOCK, COLUMNS))
    y = np.where(np.square(X[:, :4]).sum(axis=1) < 3.36, 1.0, -1.0)
    check(held, X[:100], y)
    rows = max(5, 2000 // size)
    effort = Effort(rounds=rounds, sample=0.05, largest=0, models=(), probe_mib=0)
    every = contenders(held, X, y, rows)
    with threadpool_limits(1):
        taken = take_turns(every, effort, 1)
    per_step = [BLOCK, rows, rows, rows]
    return {c.name: [1e6 * t / n for t in samples] for c, samples, n in zip(every, taken, per_step, strict=True)}


def plot(path: Path, taken: dict[int, dict[str, list[float]]]) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    names = list(next(iter(taken.values())))
    for name, color in zip(names, ("#1f6f8b", "#7fb2c4", "#c9a227", "#b5483a"), strict=True):
        axis.loglog(list(taken), [median(samples[name]) for samples in taken.values()], "o-", color=color, label=name)
    axis.set_xlabel("rows of the dictionary, j")
    axis.set_xticks(list(taken), [str(size) for size in taken])
    axis.minorticks_off()
    axis.set_ylabel("µs per round")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    axis.set_title("PROS-N-KONS: kept factors, and a kernel matrix formed anew", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for every sample")
    parser.add_argument("--plot", type=Path, help="picture")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "start": report.stamp(), "sizes": {}}
    print(f"\nMicroseconds per round, {COLUMNS} columns, one thread, medians")
    for size in SIZES:
        result["sizes"][size] = taken = measure(size, arguments.rounds)
        base = median(taken["curvk, blocks"])
        times = (f"{name} {median(s):.4g} ({median(s) / base:.3g} times)" for name, s in taken.items())
        print(f"  j = {size:3d}:  " + "   ".join(times), flush=True)
    result["end"] = report.stamp()
    if arguments.plot:
        plot(arguments.plot, result["sizes"])
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    return 0


if __name__ == "__main__":
    curvk.set_num_threads(1)
    sys.exit(main())
