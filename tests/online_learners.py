"""Learners from streams to try the base class on, and what makes two of them the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from curvk.online import FORKSClassifier, FORKSRegressor, KernelPerceptronClassifier
from curvk.online._base import OnlineClassifier, OnlineLearner, OnlineRegressor
from curvk.online._engine import Engine, take


class Perceptron(Engine):
    """w <- w + y x where y w.x <= 0, row by row in float64; keeps a diary of what else it was told."""

    def __init__(self, d: int, c: int) -> None:
        self.w, self.rows, self.diary = np.zeros((c, d)), 0, []  # type: ignore[var-annotated]

    n_support = 0

    def learn(self, X: Any, Y: Any, F: Any) -> None:
        for x, y, f in zip(X, Y, F, strict=True):
            f[:] = [math.fsum(w * x) for w in self.w]
            self.w += np.where(y * f <= 0, y, 0.0)[:, None] * x
            self.rows += 1

    def decide(self, X: Any) -> Any:
        return np.array([[math.fsum(w * x) for w in self.w] for x in X])

    def set_kernel(self, kernel: Any) -> None:
        self.diary.append(["kernel", self.rows, kernel["bandwidth"]])

    def grow(self, sources: Sequence[Any]) -> None:
        self.w = take(self.w, sources)
        self.diary.append(["grow", self.rows, [source and list(source) for source in sources]])

    def restart(self) -> None:
        self.w[:] = 0
        self.diary.append(["restart", self.rows])

    def state(self) -> dict[str, Any]:
        return {"w": self.w.copy(), "count": self.rows, "diary": list(self.diary)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.w, self.rows, self.diary = state["w"], state["count"], list(state["diary"])


class _Plain:
    """Parameters and engine; as a regressor it learns nothing of sense, which is as good a state as any."""

    def __init__(
        self,
        kernel: str = "gaussian",
        bandwidth: Any = "median",
        kernel_params: Any = None,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.kernel, self.bandwidth, self.kernel_params = kernel, bandwidth, kernel_params
        self.drift, self.random_state = drift, random_state

    def _check_params(self) -> None:
        pass

    def _make_engine(self, d: int, c: int, kernel: Any, seed: int) -> Engine:
        return Perceptron(d, c)


class Plain(_Plain, OnlineClassifier):  # type: ignore[misc]
    pass


class PlainRegressor(_Plain, OnlineRegressor):  # type: ignore[misc]
    pass


def forks(**more: Any) -> FORKSClassifier:
    return FORKSClassifier(**{"budget": 30, "rank": 8, "refresh_every": 9, "random_state": 1} | more)


LEARNERS = {
    "plain": Plain,
    "forks": forks,
    "forks, drift": lambda: forks(drift=True),
    "perceptron": lambda: KernelPerceptronClassifier(budget=None),
}
REGRESSORS = {
    "plain": PlainRegressor,
    "forks": lambda: FORKSRegressor(budget=30, rank=8, refresh_every=40),
}


def data(n: int, d: int = 5, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows, and the labels "a", "b", "c" of two functions of them with some noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    f = X[:, 0] * X[:, 1] + 0.4 * X[:, 2] + 0.3 * rng.standard_normal(n)
    return X, np.array(["a", "b", "c"])[np.digitize(f, [-0.5, 0.5])]


X, Y = data(700)
TWO = np.where(Y == "c", "b", Y)
REAL = X[:, 0] * X[:, 1]


def content(value: Any, path: str = "") -> dict[str, Any]:
    """All that a learner holds by name, arrays as bytes; but for how far it looks ahead, on which only time depends."""
    if hasattr(value, "_get_params") or isinstance(value, OnlineLearner):
        value = value.__getstate__()
    if isinstance(value, dict):
        parts = (content(member, f"{path}/{name}") for name, member in value.items() if name != "ahead")
        return {name: member for part in parts for name, member in part.items()}
    return {path: (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)}


def differences(one: Any, other: Any) -> list[str]:
    """Names of what is not the same to the bit."""
    a, b = content(one), content(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def file(learner: Any, path: Path) -> bytes:
    learner.save(path)
    return path.read_bytes()


def circles(seed: int, n: int) -> tuple[Any, Any]:
    """Two classes that no line parts, a tenth of the labels turned."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (n, 2))
    return X, ((X**2).sum(axis=1) < 0.6) != (rng.random(n) < 0.1)


def problem(cls: Any, seed: int, n: int) -> tuple[Any, Any]:
    X, y = circles(seed, n)
    return (X, np.sin(3 * X[:, 0]) * X[:, 1] + 0.1 * y) if cls.__name__.endswith("Regressor") else (X, y)


def same(a: Any, b: Any) -> bool:
    """Two trees of states, to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return bool(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f"))
