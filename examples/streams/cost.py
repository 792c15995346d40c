"""Microseconds of a row that brings no loss, against the numbers of landmarks and of support vectors.

Rows are quiet where the learner is sure enough of them: they are picked from many by what it says, and get the label
that it says. So nothing is learned of them, and what is timed is a kernel row, a product and what the call costs.
"""

import curvk.online
import numpy as np
from learners import CLOCK
from tqdm import tqdm

ROWS, COLUMNS, TRIES = 20_000, 20, 5
LANDMARKS = (25, 50, 100, 200, 400)
BUDGETS = (100, 200, 400, 800, 1600)


def rows(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two clouds of normal rows, three standard deviations apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    X = rng.standard_normal((n, COLUMNS))
    X[:, 0] += 3 * y
    return X, y


def trained(kind: str, budget: int, **options):
    """A learner whose buffer is full: it has seen random labels first, then right ones."""
    model = getattr(curvk.online, kind)(budget=budget, bandwidth=4.0, random_state=0, **options)
    X, y = rows(1, 4 * budget + 2000)
    labels = np.where(np.arange(len(y)) < 4 * budget, np.random.default_rng(2).integers(0, 2, len(y)), y)
    return model.partial_fit(X, labels, classes=[0, 1])


def quiet_rows(model, n: int) -> tuple[np.ndarray, np.ndarray]:
    """As many rows without a loss, some of them more than once."""
    X, _ = rows(3, 5000)
    f = model.decision_function(X)
    sure = np.flatnonzero(abs(f) > 1)
    if len(sure) < 50:
        raise SystemExit(f"cost: {len(sure)} of {len(f)} rows without a loss, needs 50 of them")
    take = np.resize(sure, n)
    return np.ascontiguousarray(X[take]), (f[take] > 0).astype(np.int64)


def microseconds(model, n: int = ROWS, tries: int = TRIES) -> float:
    """Of a quiet row, in a call of n: the least of some tries."""
    X, y = quiet_rows(model, n)
    before, mistakes = model.decision_function(X[:200]), model.mistakes_
    seconds = []
    for _ in range(tries):
        start = CLOCK()
        model.progressive(X, y, progress=False)
        seconds.append(CLOCK() - start)
    if model.mistakes_ != mistakes or not np.array_equal(model.decision_function(X[:200]), before):
        raise SystemExit("cost: something was learned of rows without a loss")
    return round(1e6 * min(seconds) / n, 3)


def measure(quick: bool = False) -> dict:
    """Each in turn; FORKS with s_m landmarks of the most support vectors, and with s_m = 100 of different numbers."""
    landmarks, budgets = ((25, 50), (100, 200)) if quick else (LANDMARKS, BUDGETS)
    todo = [("FORKS, s_m", s, "FORKSClassifier", max(landmarks), {"landmarks": s}) for s in landmarks]
    todo += [("FORKS, B", b, "FORKSClassifier", b, {"landmarks": min(100, b)}) for b in budgets]
    todo += [("NOGD, B", b, "NOGDClassifier", b, {}) for b in budgets]
    todo += [("RBP, B", b, "RBPClassifier", b, {}) for b in budgets]
    found: dict = {}
    n, tries = (1000, 2) if quick else (ROWS, TRIES)
    for name, size, kind, budget, options in tqdm(todo, desc="cost of quiet rows", disable=None):
        found.setdefault(name, []).append([size, microseconds(trained(kind, budget, **options), n, tries)])
    return found
