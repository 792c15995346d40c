"""Kernel expansions with a budget: truth by the textbooks' steps on arrays of changing length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...kernels import budget
from ..interval import ARITHMETIC, F64, Interval
from ..registry import Array, Arrays, Case, Options

_SLOTS, _USED, _WIDTH = 19, 7, 3  # slots, those in use at the start, columns of the rows
_CLASS = {"projectron": 1e-7, "projectron++": 1e-7}
_ERROR = "1e-10 of the largest result, with projections 1e-7: roundings, times the condition of K"


def _gaussian(A: Array, B: Array) -> Array:
    K: Array = np.exp(-0.5 * ((A[:, None] - B[None]) ** 2).sum(2) / 0.8**2)
    return K


def _matrix(K: Array, rule: str, capacity: int) -> Array | None:
    """What the rule keeps of the slots in use, whose kernel matrix is K."""
    m = len(K)
    if rule == "bpas":
        return np.concatenate([K.diagonal(), np.zeros(capacity - m)])
    if rule not in ("forgetron", "projectron", "projectron++"):
        return None
    kept = np.zeros((capacity, capacity))
    kept[:m, :m] = K if rule == "forgetron" else np.linalg.cholesky(K)
    return kept.ravel()


def _make(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    c, rule, capacity = o["c"], o["rule"], o.get("slots", _SLOTS)
    used = min(_USED, capacity)
    X, Z = rng.standard_normal((n, _WIDTH)), rng.standard_normal((used, _WIDTH))
    coef = np.zeros((c, capacity))
    coef[:, :used] = rng.choice([-1.0, 0.0, 1.0], (c, used))
    y = np.where(X[:, :1] * X[:, 1:2] + 0.3 * rng.standard_normal((n, c)) > 0, 1.0, -1.0)
    return {
        "K": _gaussian(X, Z).ravel(),
        "G": _gaussian(X, X).ravel(),
        "y": (y + 0.1 * rng.standard_normal((n, c)) * (o.get("loss") == "squared")).ravel(),
        "u": rng.random(n) if rule in budget.RANDOM else None,
        "f": np.zeros(n * c),
        "coef": coef.ravel(),
        "matrix": _matrix(_gaussian(Z, Z), rule, capacity),
        "sums": np.array([0.0, float(used)]),
        "counts": np.array([used, 0, 0, 0]),
    }


def _numbers(o: Options) -> dict[str, Any]:
    names = ("loss", "lr", "C", "threshold", "decay", "limit")
    return {name: o[name] for name in names if name in o}


def _run(a: Arrays, o: Options, fmt: str) -> Arrays:
    c, rule = o["c"], o["rule"]
    capacity, n, m = a["coef"].size // c, a["f"].size // c, int(a["counts"][0])
    e = budget.Expansion(capacity, c, rule)
    e.coef, e.sums, e.counts = a["coef"].reshape(c, capacity), a["sums"], a["counts"]
    if a["matrix"] is not None:
        e.matrix = a["matrix"] if rule == "bpas" else a["matrix"].reshape(capacity, capacity)
    K, G, y, f = a["K"].reshape(n, m), a["G"].reshape(n, n), a["y"].reshape(n, c), a["f"].reshape(n, c)
    _, placed, rows = budget.learn(K, G, y, f, e, u=a["u"], **_numbers(o))
    found = {name: a[name] for name in ("f", "coef", "sums", "counts")} | {"placed": placed, "rows": rows}
    return found if a["matrix"] is None else found | {"matrix": a["matrix"]}


class _Textbook:
    """Support vectors as columns of arrays that grow and shrink; `age` lists them from the oldest."""

    def __init__(self, a: Arrays, o: Options) -> None:
        self.o, self.rule, c = o, o["rule"], o["c"]
        self.capacity, n, used = a["coef"].size // c, a["f"].size // c, int(a["counts"][0])
        self.K, self.G = a["K"].reshape(n, used), a["G"].reshape(n, n)
        self.y, self.u = a["y"].reshape(n, c), a["u"]
        self.coef = a["coef"].reshape(c, self.capacity)[:, :used].copy()
        self.held = [-1 - s for s in range(used)]  # the row in each slot; before the call's, negative numbers
        self.age = list(range(used))
        first = a["matrix"]
        self.kept = None if first is None else first.reshape(-1, self.capacity)[:used, :used].copy()
        if self.kept is not None and "projectron" in self.rule:
            self.kept = self.kept @ self.kept.T
        self.Q, self.M = a["sums"]
        self.f = np.zeros((n, c))
        self.order: list[int] = []
        self.done = n

    def k(self, t: int) -> Array:
        return np.array([self.G[t, r] if r >= 0 else self.K[t, -1 - r] for r in self.held])

    def put(self, t: int, step: Array, slot: int) -> None:
        if slot == len(self.held):
            self.held.append(t)
            self.coef = np.column_stack([self.coef, step])
        else:
            self.held[slot] = t
            self.coef[:, slot] = step
            self.age.remove(slot)
        self.age.append(slot)
        if slot not in self.order:
            self.order.append(slot)

    def slope(self, y: Array, f: Array) -> Array:
        margin = y * f
        slopes: dict[str, Array] = {
            "squared_hinge": -2 * y * np.maximum(1 - margin, 0),
            "hinge": np.where(margin < 1, -y, 0),
            "logistic": -y / (1 + np.exp(margin)),
            "squared": 2 * (f - y),
            "perceptron": np.where(margin <= 0, -y, 0),
        }
        return slopes[self.o.get("loss", "hinge")]

    def free(self, t: int) -> int:
        full = len(self.held) == self.capacity
        return int(self.u[t] * self.capacity) if full else len(self.held)

    def run(self) -> None:
        step = getattr(self, "_" + self.rule.replace("++", ""))
        for t in range(len(self.y)):
            k = self.k(t)
            self.f[t] = self.coef @ k
            if step(t, k, self.y[t], self.f[t], len(self.held) == self.capacity) is False:
                self.done = t
                return

    def _append(self, t: int, k: Array, y: Array, f: Array, full: bool) -> bool | None:
        g = self.slope(y, f)
        if g.any():
            if full:
                return False
            self.put(t, -self.o.get("lr", 1.0) * g, len(self.held))
        return None

    def _rbp(self, t: int, k: Array, y: Array, f: Array, full: bool) -> None:
        g = self.slope(y, f)
        if g.any():
            self.put(t, -self.o.get("lr", 1.0) * g, self.free(t))

    def _forgetron(self, t: int, k: Array, y: Array, f: Array, full: bool) -> None:
        wrong = y * f <= 0
        if not wrong.any():
            return
        self.M += wrong.sum()
        step, slot = np.where(wrong, y, 0.0), len(self.held)
        assert self.kept is not None
        if full:
            slot = self.age[0]
            s = abs(self.coef[:, slot])
            mu = np.sign(self.coef[:, slot]) * (self.coef @ self.kept[slot] + step * k[slot])

            def psi(p: float) -> float:
                return float(((p * s) ** 2 + 2 * p * s - 2 * p * s * p * mu).sum())

            room, low, high = 15 / 32 * self.M - self.Q, 0.0, 1.0
            if psi(1.0) <= room:
                low = 1.0
            else:
                for _ in range(200):
                    middle = (low + high) / 2
                    low, high = (middle, high) if psi(middle) <= room else (low, middle)
            self.Q += psi(low)
            self.coef *= low
            step *= low
        else:
            self.kept = np.pad(self.kept, (0, 1))
            k = np.append(k, 0.0)
        self.put(t, step, slot)
        self.kept[slot] = self.kept[:, slot] = k
        self.kept[slot, slot] = self.G[t, t]

    def _bpas(self, t: int, k: Array, y: Array, f: Array, full: bool) -> None:
        C, slot = self.o.get("C", 1.0), len(self.held)
        tau = np.minimum(C, np.maximum(0, 1 - y * f)) * y  # k(x, x) = 1
        if not tau.any():
            return
        if full:
            b = self.coef * k + tau[:, None]
            after = f[:, None] - self.coef * k + b
            costs = (self.coef**2 + b**2 - 2 * self.coef * b * k) / 2 + C * np.maximum(0, 1 - y[:, None] * after)
            slot = int(costs.sum(0).argmin())
            tau = b[:, slot]
        self.put(t, tau, slot)

    def _projectron(self, t: int, k: Array, y: Array, f: Array, full: bool) -> None:
        wrong, threshold = y * f <= 0, self.o.get("threshold", 0.0)
        assert self.kept is not None
        d = np.linalg.solve(self.kept, k)
        seen = float(d @ k)
        rest = max(float(self.G[t, t]) - seen, 0.0)
        if self.rule == "projectron++":
            lost = 1 - y * f
            gain = lost - math.sqrt(rest) / threshold
            alpha = np.minimum(np.minimum(lost / seen, 2 * gain / seen), 1)
            self.coef += np.outer(np.where((y * f > 0) & (lost > 0) & (gain > 0), alpha * y, 0), d)
        step = np.where(wrong, y, 0.0)
        if wrong.any() and (full or math.sqrt(rest) <= max(threshold, 1e-5)):
            self.coef += np.outer(step, d)
        elif wrong.any():
            self.kept = np.block([[self.kept, k[:, None]], [k[None], np.full((1, 1), self.G[t, t])]])
            self.put(t, step, len(self.held))

    def _bogd(self, t: int, k: Array, y: Array, f: Array, full: bool) -> None:
        g, size = self.slope(y, f), self.capacity
        self.coef *= self.o["decay"]
        if g.any():
            slot = self.free(t)
            self.coef *= size / (size - 1) if full and size > 1 else 1.0
            self.put(t, -self.o.get("lr", 1.0) * g, slot)
            self.coef *= np.minimum(1, self.o["limit"] / abs(self.coef).max(1, keepdims=True))


def _close(x: Array, rule: str) -> Interval:
    error = _CLASS.get(rule, 1e-10) * max(1.0, float(abs(x).max(initial=0)))
    wide = x.astype(F64.wide).ravel()
    return Interval(wide - error, wide + error, F64)


def _truth(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    rule, book = o["rule"], _Textbook(a, o)
    book.run()
    f, coef = book.f, a["coef"].reshape(o["c"], -1).copy()
    m = len(book.held)
    coef[:, :m] = book.coef
    if rule == "append":
        f[book.done + 1 :] = 0
    placed = np.array(book.order, np.int64)
    oldest = book.age[0] if rule == "forgetron" and m == book.capacity else 0
    found = {
        "f": _close(f, rule),
        "coef": _close(coef, rule),
        "sums": _close(np.array([book.Q, book.M]), rule),
        "counts": np.array([m, oldest, book.done, len(placed)]),
        "placed": placed,
        "rows": np.array([book.held[s] for s in placed], np.int64),
    }
    if rule == "bpas":
        found["matrix"] = np.concatenate([np.ones(m), np.zeros(book.capacity - m)])
    elif book.kept is not None:
        matrix = _matrix(book.kept, rule, book.capacity)
        assert matrix is not None
        found["matrix"] = _close(matrix, rule)
    return found


# ---- predictions ----------------------------------------------------------------------------------------------------


def _make_predict(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    K, coef = rng.random((n, o["m"])), np.zeros((o["c"], o["m"] + 3))
    coef[:, : o["m"]] = rng.standard_normal((o["c"], o["m"]))
    return {"K": K.ravel(), "coef": coef.ravel(), "f": np.zeros(n * o["c"])}


def _run_predict(a: Arrays, o: Options, fmt: str) -> Arrays:
    e = budget.Expansion(o["m"] + 3, o["c"])
    e.coef, e.counts[0] = a["coef"].reshape(o["c"], -1), o["m"]
    budget.predict(a["K"].reshape(-1, o["m"]), e, out=a["f"].reshape(-1, o["c"]))
    return {"f": a["f"]}


def _true_predict(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    f, m = ARITHMETIC[fmt], o["m"]
    K, coef = a["K"].astype(f.wide).reshape(-1, m), a["coef"].astype(f.wide).reshape(o["c"], -1)[:, :m]
    value, error = (K @ coef.T).ravel(), (K @ abs(coef.T)).ravel() * f.unit * (m // 16 + 7)
    return {"f": Interval(value - error, value + error, f)}


_PERCEPTRON: Options = {"c": 1, "loss": "perceptron"}
_BOGD: Options = {"rule": "bogd", "lr": 0.5, "decay": 0.99, "limit": 0.4}

CASES = [
    Case(
        op="budget_learn",
        make=_make,
        run=_run,
        truth=_truth,
        error=_ERROR,
        variants={
            "perceptron": {**_PERCEPTRON, "rule": "append", "slots": 1200},
            "hinge": {"rule": "append", "c": 3, "slots": 1200, "lr": 0.3},
            "squared hinge": {"rule": "append", "c": 2, "loss": "squared_hinge", "slots": 1200, "lr": 0.1},
            "logistic": {"rule": "append", "c": 1, "loss": "logistic", "slots": 1200, "lr": 0.2},
            "squared": {"rule": "append", "c": 2, "loss": "squared", "slots": 1200, "lr": 0.02},
            "stop": {"rule": "append", "c": 1},
            "rbp": {**_PERCEPTRON, "rule": "rbp"},
            "rbp 3": {"rule": "rbp", "c": 3, "lr": 0.3},
            "forgetron": {"rule": "forgetron", "c": 1},
            "forgetron 3": {"rule": "forgetron", "c": 3},
            "forgetron 1": {"rule": "forgetron", "c": 1, "slots": 1},
            "bpas": {"rule": "bpas", "c": 1, "C": 0.8},
            "bpas 3": {"rule": "bpas", "c": 3, "C": 100.0},
            "projectron": {"rule": "projectron", "c": 1},
            "projectron 3": {"rule": "projectron", "c": 3, "threshold": 0.3},
            "projectron++": {"rule": "projectron++", "c": 1, "threshold": 0.4},
            "projectron++ 3": {"rule": "projectron++", "c": 3, "threshold": 0.3, "slots": 40},
            "bogd": {**_BOGD, "c": 1},
            "bogd 3": {**_BOGD, "c": 3, "loss": "squared_hinge"},
            "bogd 1": {**_BOGD, "c": 1, "slots": 1},
        },
        flops=lambda o: 2 * o["c"] * _SLOTS,
        streams=lambda o: {"K": "r", "y": "r", "f": "w"},
        sizes=(0, 1, 2, 3, 17, 257, 1023),
        special=False,
    ),
    Case(
        op="budget_predict",
        make=_make_predict,
        run=_run_predict,
        truth=_true_predict,
        error="sums of a row: 16 lanes, m / 16 + 7 roundings of the sum of magnitudes",
        variants={
            "one": {"m": 200, "c": 1},
            "small": {"m": 5, "c": 1},
            "three": {"m": 33, "c": 3},
        },
        flops=lambda o: 2 * o["c"] * o["m"],
        streams=lambda o: {"K": "r", "f": "w"},
        sizes=(0, 1, 2, 3, 17, 257, 1023),
        special=False,
    ),
]
