"""Online learners beside scikit-learn's and river's: microseconds per row, each predicted before it is learned.

python bench/online.py [--rounds 7] [--json FILE]

The stream is a ring in 20 columns with noisy labels. FORKS has a budget of 200, 100 landmarks and 20 features;
the peers get 100 landmarks or frequencies. Contenders take turns in one process on one thread, with a pause before each
sample. scikit-learn in batches learns without predicting first, and its batch is not a row: what it does is less.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import curvk
import numpy as np
from curvk._bench import report
from curvk._bench.registry import Contender, optional
from curvk._bench.runner import Effort, take_turns
from curvk._info import machine
from curvk.online import FORKSClassifier, PROSNKONSClassifier
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDClassifier
from threadpoolctl import threadpool_limits

COLUMNS, BANDWIDTH = 20, 5.0
BATCH = 2000


def stream(n: int, seed: int = 0, d: int = COLUMNS) -> tuple[Any, Any]:
    """Rows that a kernel separates, but for a tenth of the labels."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    inside = np.square(X[:, :4]).sum(axis=1) < 3.36  # half of them
    return X, np.where(inside ^ (rng.random(n) < 0.1), 1, 0)


def forks(**settings: Any) -> FORKSClassifier:
    return FORKSClassifier(bandwidth=BANDWIDTH, random_state=0, **settings)


def cycle(n: int) -> Iterator[int]:
    while True:
        yield from range(n)


def ours_in_blocks(X: Any, y: Any) -> tuple[Contender, FORKSClassifier]:
    learner = forks().partial_fit(X, y)
    parts = cycle(len(X) // BATCH)

    def step() -> None:
        i = next(parts) * BATCH
        learner.progressive(X[i : i + BATCH], y[i : i + BATCH])

    return Contender("curvk", step), learner


def sklearn_in_batches(X: Any, y: Any) -> Contender:
    features = Nystroem(gamma=0.5 / BANDWIDTH**2, n_components=100, random_state=0).fit(X)
    learner = SGDClassifier(random_state=0).partial_fit(features.transform(X), y, classes=[0, 1])
    parts = cycle(len(X) // BATCH)

    def step() -> None:
        i = next(parts) * BATCH
        learner.partial_fit(features.transform(X[i : i + BATCH]), y[i : i + BATCH])

    return Contender("scikit-learn, batches", step)


def ours_one_by_one(X: Any, y: Any, rows: int) -> Contender:
    learner = forks().partial_fit(X, y)
    one, order, labels, data = learner.learn_one, cycle(len(X)), y.tolist(), list(X)

    def step() -> None:
        for _ in range(rows):
            i = next(order)
            one(data[i], labels[i])

    return Contender("curvk", step)


def sklearn_one_by_one(X: Any, y: Any, rows: int) -> Contender:
    features = Nystroem(gamma=0.5 / BANDWIDTH**2, n_components=100, random_state=0).fit(X)
    learner = SGDClassifier(random_state=0).partial_fit(features.transform(X), y, classes=[0, 1])
    order = cycle(len(X))

    def step() -> None:
        for _ in range(rows):
            i = next(order)
            phi = features.transform(X[i : i + 1])
            learner.predict(phi)
            learner.partial_fit(phi, y[i : i + 1])

    return Contender("scikit-learn", step)


def river_one_by_one(X: Any, y: Any, rows: int) -> Contender | None:
    if optional("river") is None:
        return None
    from river import linear_model
    from river.feature_extraction import RBFSampler

    model = RBFSampler(gamma=0.5 / BANDWIDTH**2, n_components=100, seed=0) | linear_model.LogisticRegression()
    data = [dict(enumerate(row)) for row in X[:2000].tolist()]
    labels, order = y[:2000].astype(bool).tolist(), cycle(2000)

    def step() -> None:
        for _ in range(rows):
            i = next(order)
            model.predict_one(data[i])
            model.learn_one(data[i], labels[i])

    return Contender("river", step)


def measure(contenders: list[Contender], rows: list[int], rounds: int) -> dict[str, list[float]]:
    """Microseconds per row by name, one sample a round."""
    effort = Effort(rounds=rounds, sample=0.05, largest=0, models=(), probe_mib=0)
    with threadpool_limits(1):
        taken = take_turns(contenders, effort, 1)
    named = zip(contenders, taken, rows, strict=True)
    return {c.name: [1e6 * seconds / n for seconds in samples] for c, samples, n in named}


def line(title: str, taken: dict[str, list[float]]) -> str:
    ours = taken["curvk"]
    text = f"  {title:34} {median(ours):8.2f} us"
    for name, samples in taken.items():
        if name != "curvk":
            low, middle, high = quantiles([a / b for a, b in zip(samples, ours, strict=True)], n=4, method="inclusive")
            text += f"   {name} {median(samples):.4g} us, {middle:.3g} times ({low:.3g} to {high:.3g})"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for every sample")
    arguments = parser.parse_args()
    X, y = stream(20_000)
    result: dict[str, Any] = {"machine": machine(), "start": report.stamp(), "rows": {}}
    print(f"\nMicroseconds per row, {COLUMNS} columns, one thread; the peers' time over curvk's (quartiles)")
    block, learner = ours_in_blocks(X, y)
    alone = [ours_one_by_one(X, y, 2000), sklearn_one_by_one(X, y, 100), river_one_by_one(X, y, 200)]
    sizes = [rows for c, rows in zip(alone, (2000, 100, 200), strict=True) if c is not None]
    for title, contenders, rows in (
        (f"blocks of {BATCH:,}", [block, sklearn_in_batches(X, y)], [BATCH, BATCH]),
        ("one row per call", [c for c in alone if c is not None], sizes),
    ):
        result["rows"][title] = taken = measure(contenders, rows, arguments.rounds)
        print(line(title, taken), flush=True)
    losses = float((learner.decision_function(X) * np.where(y == 1, 1, -1) < 1).mean())
    result["loss_rows"] = losses
    print(f"  {losses:.0%} of the rows have a loss, a refresh every {learner.refresh_every:,} of them")
    pros = PROSNKONSClassifier(bandwidth=BANDWIDTH, budget=100, random_state=0).partial_fit(X, y)
    taken = measure([Contender("curvk", lambda: pros.partial_fit(X[:BATCH], y[:BATCH]))], [BATCH], arguments.rounds)
    result["rows"]["PROS-N-KONS"] = taken
    print(line(f"PROS-N-KONS, {pros.n_support_} rows held", taken))
    result["end"] = report.stamp()
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    return 0


if __name__ == "__main__":
    curvk.set_num_threads(1)
    sys.exit(main())
