"""The demo's stream: FORKS on the sensors of a space shuttle, each row predicted before it is learned."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .. import threads
from .peers import Array

PIECE = 1000  # rows between two looks at the mistakes
SHUTTLE_ROWS, QUICK_ROWS = 49_097, 10_000
WARM = 2000  # rows that the peer's landmarks are drawn from, and its first weights come of
LANDMARKS = 100
FLOOR = "the last label again"


def load(quick: bool) -> tuple[Array, Array]:
    """River's shuttle in the order of its file: nine columns of mean 0 and variance 1; is something wrong?"""
    spec = find_spec("river")
    assert spec is not None
    assert spec.origin is not None
    text = gzip.decompress((Path(spec.origin).parent / "datasets" / "shuttle.csv.gz").read_bytes()).decode()
    table = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1)
    X, y = table[:, :-1], (table[:, -1] > 0).astype(np.int64)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    rows = QUICK_ROWS if quick else len(X)
    return np.ascontiguousarray(X[:rows]), y[:rows]


def steps(quick: bool) -> int:
    """How often `run` calls `advance`."""
    return 2 * -(-(QUICK_ROWS if quick else SHUTTLE_ROWS) // PIECE)


def _forks(X: Array, y: Array, seed: int, advance: Callable[[str], Any]) -> tuple[Array, float]:
    from ..online import FORKSClassifier

    learner = FORKSClassifier(random_state=seed)
    mistakes, seconds = [], 0.0
    for i in range(0, len(X), PIECE):
        start = perf_counter()
        _, running = learner.progressive(X[i : i + PIECE], y[i : i + PIECE], classes=[0, 1], progress=False)
        seconds += perf_counter() - start
        mistakes.append(running)
        advance(f"FORKS on shuttle: {running[-1] / (i + len(running)):.2%} mistakes")
    return np.concatenate(mistakes), seconds


def _batches(X: Array, y: Array, seed: int, advance: Callable[[str], Any]) -> tuple[Array, float]:
    """scikit-learn: features of landmarks that were drawn beforehand; a batch is predicted, then learned."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import SGDClassifier

    from ..kernels import gram

    gamma = 0.5 / gram.median_distance(np.ascontiguousarray(X[:128])) ** 2
    features = Nystroem(gamma=gamma, n_components=LANDMARKS, random_state=seed).fit(X[:WARM])
    learner = SGDClassifier(random_state=seed)
    wrong, seconds = np.zeros(len(X), bool), 0.0
    for i in range(0, len(X), PIECE):
        part = slice(i, i + PIECE)
        start = perf_counter()
        phi = features.transform(X[part])
        wrong[part] = (learner.predict(phi) if i else 0) != y[part]
        learner.partial_fit(phi, y[part], classes=[0, 1])
        seconds += perf_counter() - start
        advance("Nystroem + SGD on shuttle")
    return np.cumsum(wrong), seconds


def run(quick: bool, seed: int, advance: Callable[[str], Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """The report's entry, and the running mistakes by learner. One thread; `advance` is told what goes on."""
    from threadpoolctl import threadpool_limits

    X, y = load(quick)
    seed = int(np.random.default_rng(seed).integers(1 << 31))  # scikit-learn's seeds have 32 bits
    with threads(1), threadpool_limits(1, user_api="blas"):
        found = {"curvk FORKS": _forks(X, y, seed, advance), "sklearn Nystroem + SGD": _batches(X, y, seed, advance)}
    last = np.cumsum(np.r_[True, y[1:] != y[:-1]])
    curves = {name: mistakes for name, (mistakes, _) in found.items()} | {FLOOR: last}
    entry = {
        "data": "shuttle",
        "rows": len(X),
        "columns": X.shape[1],
        "anomalies": float(y.mean()),
        "batch": PIECE,
        "learners": [
            {
                "learner": name,
                "mistakes": int(curve[-1]),
                "us_per_row": found[name][1] / len(X) * 1e6 if name in found else None,
            }
            for name, curve in curves.items()
        ],
    }
    return entry, curves
