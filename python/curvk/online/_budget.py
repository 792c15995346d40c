"""Engine of the learners that keep a kernel expansion: one compiled call per block of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._backend import Plan, call
from .._estimator import WITHOUT_BANDWIDTH
from ..kernels import budget, gram, noise
from ._engine import BLOCK, Engine, Keywords, Rows, Source, take

__all__ = ["BudgetEngine"]

_LEAST_ROWS = 16  # and at least, however many slots there are
_FIRST_SLOTS = 64
_VALUES = 1 << 21  # kernel values of one call at most: 16 MB
_CHUNK = 1024  # random numbers made at a time
_TENSOR = noise.tensor_word("budget", "sampling")


class BudgetEngine(Engine):
    """Kernel perceptron and kernel gradient descent, unbounded or with one of the rules of `curvk.kernels.budget`.

    Args:
        d, c: columns of X and of Y.
        kernel: keywords of `curvk.kernels.gram`.
        rule: one of `budget.RULES`; "append" with a budget learns until it is full.
        size: support vectors at most, or None for as many as come.
        seed: of the slots drawn by rbp and bogd: a row's draw depends on its number in the stream.
        numbers: loss, lr, C, threshold, decay, limit as in `budget.learn`.
    """

    def __init__(
        self,
        d: int,
        c: int,
        kernel: Keywords,
        *,
        rule: str = "append",
        size: int | None = None,
        seed: int = 0,
        loss: str = "hinge",
        lr: float = 1.0,
        C: float = 1.0,
        threshold: float = 0.0,
        decay: float = 1.0,
        limit: float = math.inf,
    ) -> None:
        self._d, self._rule, self._size, self._seed = d, rule, size, seed
        self._use(kernel)
        self._numbers = (budget.RULES.index(rule), budget.LOSSES.index(loss), lr, C, threshold, decay, limit)
        self._row = 0  # rows learned since the stream began
        self._chunk = -1  # the chunk of random numbers at hand
        self._random = np.empty(_CHUNK)
        self._draws = rule in budget.RANDOM
        self._x = np.empty((1, d))
        self._start(c)

    def _use(self, kernel: Keywords) -> None:
        self._kernel = dict(kernel)
        self._of_distance = kernel.get("kernel", "gaussian") not in WITHOUT_BANDWIDTH  # then k(x, x) = 1
        self._values: Callable[[], None] | None = None

    def _start(self, c: int) -> None:
        first = _FIRST_SLOTS if self._size is None else min(self._size, _FIRST_SLOTS)
        self._expansion = budget.Expansion(first, c, self._rule)
        self._landmarks = gram.Landmarks(self._d, first)
        self._plan: Plan | None = None
        self._values = None

    @property
    def n_support(self) -> int:
        return self._expansion.slots

    @property
    def rows(self) -> Rows:
        """The support vectors, (n_support, d)."""
        return np.asarray(self._landmarks.array[: self.n_support])

    @property
    def coef(self) -> Rows:
        """Their coefficients, (n_support, c)."""
        return np.ascontiguousarray(self._expansion.coef[:, : self.n_support].T)

    # ---- learning ----

    def learn(self, X: Rows, Y: Rows, F: Rows) -> None:
        last = self._row + len(X)
        done = self.fill(X, Y, F)
        if done < len(X):
            F[done:] = self.decide(X[done:])
        self._row = last

    def fill(self, X: Rows, Y: Rows, F: Rows) -> int:
        """Learns rows and returns how many: "append" stops before the row for which there is no slot; F has its f."""
        done, n = 0, len(X)
        while done < n:
            rows = self._reserve(n - done)
            if n == 1:
                return self._learn_block(X, Y, F)
            part = slice(done, done + rows)
            learned = self._learn_block(X[part], Y[part], F[part])
            done += learned
            if learned < rows:
                break
        return done

    def _reserve(self, n: int) -> int:
        """Makes room for the next rows; returns for how many at most."""
        expansion, size = self._expansion, self._size
        m, capacity = expansion.counts.item(0), expansion.capacity
        rows = 1 if n == 1 else min(n, BLOCK, max(_VALUES // max(m, 1), _LEAST_ROWS))
        wanted = m + rows if size is None else min(m + rows, size)
        if wanted > capacity:
            wanted = max(wanted, 2 * capacity)
            expansion.resize(wanted if size is None else min(wanted, size))
            self._plan = None
        if self._plan is None:
            self._bind()
        return rows

    def _bind(self) -> None:
        e = self._expansion
        c, capacity = e.coef.shape
        self._K = np.empty(min(BLOCK * capacity, max(_VALUES, _LEAST_ROWS * capacity)))
        self._G = np.empty(BLOCK * BLOCK)
        self._y, self._f, self._u = np.empty((BLOCK, c)), np.empty((BLOCK, c)), np.empty(BLOCK)
        self._placed, self._rows = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
        columns = (self._K, self._G, self._y, self._u, self._f)
        self._plan = Plan("budget_learn", (*columns, e.coef, e.matrix, e.sums, self._placed, self._rows, e.counts))
        self._scalars = (c, capacity, *self._numbers)
        self._values = None

    def _learn_block(self, X: Rows, Y: Rows, F: Rows) -> int:
        n, counts = len(X), self._expansion.counts
        m = counts.item(0)
        if n == 1:
            self._values_of_one(X, m)
        else:
            if m:
                gram.block(X, self._landmarks, out=self._K[: n * m].reshape(n, m), **self._kernel)
            gram.block(X, gram.Landmarks.of(X), out=self._G[: n * n].reshape(n, n), **self._kernel)
        if self._draws:
            self._draw(n)
        self._y[:n] = Y
        assert self._plan is not None
        self._plan.run((n, *self._scalars))
        done, held = counts.item(2), counts.item(3)
        F[: done + 1] = self._f[: min(done + 1, n)]
        self._row += done
        if held:
            self._take_in(X, held)
        return done

    def _values_of_one(self, X: Rows, m: int) -> None:
        """What a single row needs of the kernel, with little besides: the product is bound as long as m stays."""
        if m:
            if self._values is None:
                self._values = gram.bind(self._x, self._landmarks, None, out=self._K[:m].reshape(1, m), **self._kernel)
            self._x[:] = X
            self._values()
        if self._of_distance:
            self._G[0] = 1.0
        else:
            gram.block(X, gram.Landmarks.of(X), out=self._G[:1].reshape(1, 1), **self._kernel)

    def _take_in(self, X: Rows, held: int) -> None:
        """Puts the rows that the call has placed among the support vectors."""
        slots, rows = self._placed[:held], self._rows[:held]
        m = len(self._landmarks)
        if held > 8 and 8 * held > m:  # packing all anew costs less
            known = np.empty((self.n_support, self._d))
            known[:m] = self._landmarks.array
            known[slots] = X[rows]
            self._landmarks, self._values = gram.Landmarks.of(known), None
            return
        for slot, row in zip(slots.tolist(), rows.tolist(), strict=True):
            if slot < m:
                self._landmarks.replace(slot, X[row])  # in place: what is bound sees it
            else:
                self._landmarks.append(X[row])
                self._values = None

    def _draw(self, n: int) -> None:
        """The uniform numbers of the next n rows."""
        i = 0
        while i < n:
            chunk, place = divmod(self._row + i, _CHUNK)
            if chunk != self._chunk:
                noise.fill(self._random, seed=self._seed, tensor=_TENSOR, dist="uniform", offset=chunk * _CHUNK)
                self._chunk = chunk
            part = self._random[place : place + n - i]
            self._u[i : i + len(part)] = part
            i += len(part)

    # ---- the rest of an engine ----

    def decide(self, X: Rows) -> Rows:
        c, capacity = self._expansion.coef.shape
        n, m = len(X), self.n_support
        F = np.zeros((n, c))
        if m == 0:
            return F
        step = max(_VALUES // m, 96)
        for i in range(0, n, step):
            K = gram.block(X[i : i + step], self._landmarks, **self._kernel)
            call("budget_predict", (K, self._expansion.coef, F[i : i + step]), (len(K), m, c, capacity))
        return F

    def set_kernel(self, kernel: Keywords) -> None:
        self._use(kernel)
        matrix, m = self._expansion.matrix, self.n_support
        if matrix is None or m == 0:
            return
        K = gram.block(self.rows, self._landmarks, **kernel)
        if matrix.ndim == 1:
            matrix[:m] = K.diagonal()
        elif self._rule == "forgetron":
            matrix[:m, :m] = K
        else:
            _factor(K, matrix)

    def grow(self, sources: Sequence[Source]) -> None:
        self._expansion.coef = take(self._expansion.coef, sources)
        self._plan = None

    def restart(self) -> None:
        self._start(len(self._expansion.coef))

    def state(self) -> dict[str, Any]:
        e, m = self._expansion, self.n_support
        found = {"rows": self.rows.copy(), "coef": e.coef[:, :m].copy(), "sums": e.sums.copy()}
        if e.matrix is not None:
            found["matrix"] = e.matrix[(slice(m),) * e.matrix.ndim].copy()
        return {**found, "oldest": int(e.counts[1]), "row": self._row}

    def load_state(self, state: dict[str, Any]) -> None:
        rows, coef, oldest = state["rows"], state["coef"], state["oldest"]
        m = len(rows)
        if rows.shape[1:] != (self._d,) or coef.shape != (len(self._expansion.coef), m) or not 0 <= oldest < max(m, 1):
            raise ValueError(f"rows {rows.shape}, coef {coef.shape} and the oldest slot {oldest} do not fit together")
        self._start(len(coef))
        e = self._expansion
        if m > e.capacity:
            e.resize(m)
        if m:
            self._landmarks, self._values = gram.Landmarks.of(rows), None
        e.coef[:, :m], e.sums[:], e.counts[:2] = coef, state["sums"], (m, oldest)
        if e.matrix is not None:
            e.matrix[(slice(m),) * e.matrix.ndim] = state["matrix"]
        self._row = int(state["row"])


def _factor(K: Rows, L: Rows) -> None:
    """K = L L' as the rule makes it; a row nearer to the span of those before counts as 1e-5 away."""
    left = K.copy()
    for s in range(len(K)):
        L[s, s] = math.sqrt(max(float(left[s, s]), 1e-10 * float(K[s, s])))
        below = left[s + 1 :, s] / L[s, s]
        L[s + 1 : len(K), s] = below
        left[s + 1 :, s + 1 :] -= np.multiply.outer(below, below)
