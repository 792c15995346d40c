"""Learners in a feature space: a feature map and a step rule, walked through by the compiled step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._backend import Plan
from .._estimator import check_int
from ..kernels import online
from ._budget import BudgetEngine
from ._engine import Engine, Keywords, Rows, Source, take
from ._maps import FeatureMap, one_blas_thread

ON_REFRESH = ("keep", "reset", "decay")

_RANK = 1e-9  # relative, of a map's T: a feature that is 0 for want of rank leaves rounding there
BLOCK = 1024  # rows whose features are formed at once: 160 KB of 20 features

_AHEAD = 8  # rows looked at behind one that has changed the map; twice as many after each look without a change


@dataclass(frozen=True)
class Step:
    """How weights change, in the words of `curvk.kernels.online.learn`.

    Attributes:
        alpha: the metric A begins as alpha I.
        on_refresh: what becomes of w and A when a map is refreshed: "keep" transforms them so that the function stays
            ("decay": and multiplies A - alpha I by `decay`), "reset" forgets them.
    """

    rule: str = "newton"
    loss: str = "squared_hinge"
    lr: float = 1.0
    alpha: float = 0.01
    clip: float = 1.0
    curvature: float = 0.125
    on_refresh: str = "keep"
    decay: float = 0.9

    @cached_property
    def keywords(self) -> Keywords:
        """What `curvk.kernels.online.learn` takes of it."""
        return {name: getattr(self, name) for name in ("rule", "loss", "lr", "clip", "curvature")}

    @cached_property
    def numbers(self) -> tuple[Any, ...]:
        """The same as the kernel takes them, in the header's order."""
        names = online.LOSSES.index(self.loss), online.RULES.index(self.rule)
        return (*names, self.lr, self.clip, self.curvature)


class _OneRow:
    """A call with one row, its arrays checked once: half of what is left of a row's time is arithmetic."""

    def __init__(self, X: Rows, Y: Rows, F: Rows, map_: FeatureMap, step: Step, w: Rows, inverse: Rows | None) -> None:
        self.X, self.Y, self.F = X, Y, F
        phi, self._counts = np.empty((1, map_.k)), np.zeros(2, np.int64)
        self._features = map_.bind(X, phi)
        self._step = Plan("online_learn", (phi, Y, F, w, inverse, self._counts))
        self._sizes = (1, map_.k, len(w), *step.numbers)

    def learn(self, until: int) -> tuple[int, int]:
        """Rows learned and losses counted, as `curvk.kernels.online.learn`."""
        self._features()
        self._step.run((*self._sizes, until, 0))
        done, losses = self._counts.tolist()
        return done, losses


class FeatureEngine(Engine):
    """w.phi(x) for each output, phi of a map that rows may change.

    Args:
        d, c: columns of a row, outputs.
        map_: the features; one that is not `ready` is made of a buffer of `budget` support vectors.
        step: how the weights change.
        budget, fill_lr: size and rate of that buffer.
    """

    def __init__(
        self, d: int, c: int, map_: FeatureMap, step: Step, kernel: Keywords, budget: int = 0, fill_lr: float = 0.2
    ) -> None:
        self.map, self.step = map_, step
        self._one: _OneRow | None = None  # bound to the present map and weights
        self._fill: BudgetEngine | None = None
        if not map_.ready:  # one support vector for each row with a loss; half the squared loss's slope, or the hinge's
            loss, lr = ("squared", fill_lr / 2) if step.loss == "squared" else ("hinge", fill_lr)
            self._fill = BudgetEngine(d, c, kernel, size=budget, loss=loss, lr=lr)
        self._rows = 0  # learned so far
        self._since = 0  # loss rows since the last refresh
        self._ahead = _AHEAD
        self.w = np.zeros((c, map_.k if map_.ready else 0))
        self.inverse = self._fresh()

    @property
    def n_support(self) -> int:
        return self.map.n_support if self._fill is None else self._fill.n_support

    def _fresh(self) -> Rows | None:
        """A^-1 of each output at first; the rule "gradient" has none."""
        c, k = self.w.shape
        return None if self.step.rule == "gradient" else np.stack([np.eye(k) / self.step.alpha] * c)

    # ---- learning ---------------------------------------------------------------------------------------------------

    def learn(self, X: Rows, Y: Rows, F: Rows) -> None:
        done, pending = 0, False  # pending: the map before has predicted the row at `done` and counted its loss
        if len(X) == 1 and self._fill is None and self.map.entry(X, self._rows) == 1:
            done, pending = self._step_one(X, Y, F)
        while done < len(X):
            part = slice(done, len(X))
            if self._fill is not None:
                done += self._fill.fill(X[part], Y[part], F[part])
                if done < len(X):
                    self._initialise(X[done])
                    pending = True
            else:
                moved, pending = self._walk(X[part], Y[part], F[part], self._rows + done, pending)
                done += moved
        self._rows += len(X)

    def _initialise(self, x: Rows) -> None:
        assert self._fill is not None
        self.w = np.ascontiguousarray(self.map.initialise(self._fill.rows, self._fill.coef, x))
        self.inverse, self._since, self._fill = self._fresh(), 0, None

    def _walk(self, X: Rows, Y: Rows, F: Rows, first_row: int, pending: bool) -> tuple[int, bool]:
        """Rows done under one map, and whether the next one waits with its prediction for a refreshed one."""
        ahead, first = min(len(X), self._ahead), int(pending)
        stop = first + self.map.entry(X[first:ahead], first_row + first)
        if entered := stop == 0:
            self._enter(X[0])
            stop = 1 + self.map.entry(X[1:ahead], first_row + 1)
        self._ahead = _AHEAD if entered or stop < ahead else min(2 * self._ahead, BLOCK)
        every = self.map.every
        done, losses = online.learn(
            self.map.features(X[:stop]),
            Y[:stop],
            F[:stop],
            self.w,
            self.inverse,
            **self.step.keywords,
            until=None if every is None else every - self._since,
            pending=pending,
        )
        self._since += losses
        if done < stop:
            self._refresh(X[done])
        return done, done < stop

    def _step_one(self, X: Rows, Y: Rows, F: Rows) -> tuple[int, bool]:
        """`_walk` for a single row that the map does not take in."""
        one = self._one
        if one is None or one.X is not X or one.Y is not Y or one.F is not F:
            one = self._one = _OneRow(X, Y, F, self.map, self.step, self.w, self.inverse)
        every = self.map.every
        done, losses = one.learn(online.NEVER if every is None else every - self._since)
        self._since += losses
        if done == 0:
            self._refresh(X[0])
        return done, done == 0

    def _refresh(self, x: Rows) -> None:
        T = self.map.refresh(x)
        if T is None or self.step.on_refresh == "reset":
            self._forget()
        else:
            self._take_over(T, self.step.decay if self.step.on_refresh == "decay" else 1.0)
        self._since = 0

    def _enter(self, x: Rows) -> None:
        self._one = None
        if self.map.enter(x) == "restart":
            self._forget()
            return
        c, k = self.w.shape
        self.w = np.concatenate([self.w, np.zeros((c, 1))], axis=1)
        if self.inverse is not None:
            grown = np.zeros((c, k + 1, k + 1))
            grown[:, :k, :k] = self.inverse
            grown[:, k, k] = 1 / self.step.alpha
            self.inverse = grown

    def _forget(self) -> None:
        self._one = None
        self.w = np.zeros((len(self.w), self.map.k))
        self.inverse = self._fresh()

    @one_blas_thread
    def _take_over(self, T: Rows, share: float = 1.0) -> None:
        """The function stays under w <- T w, and so does `share` of A - alpha I."""
        self._one = None
        self.w = np.ascontiguousarray(self.w @ T.T)
        if self.inverse is None:
            return
        back, alpha = np.linalg.pinv(T, _RANK), self.step.alpha
        inverse = np.empty((len(self.w), len(T), len(T)))
        for o, old in enumerate(self.inverse):
            values, vectors = np.linalg.eigh(old)
            half = vectors / np.sqrt(np.maximum(values, 1e-15 * values[-1]))  # rounding may leave it singular
            learned = half @ half.T - alpha * np.eye(len(old))
            values, vectors = np.linalg.eigh(back.T @ learned @ back)
            half = vectors / np.sqrt(np.maximum(share * values, 0) + alpha)  # rounding must not leave A below alpha
            inverse[o] = half @ half.T
        self.inverse = (inverse + inverse.transpose(0, 2, 1)) / 2

    # ---- the rest ---------------------------------------------------------------------------------------------------

    def decide(self, X: Rows) -> Rows:
        F = np.empty((len(X), len(self.w)))
        if self._fill is not None:
            return self._fill.decide(X)
        still = np.zeros_like(F)
        for i in range(0, len(X), BLOCK):
            part = slice(i, i + BLOCK)
            phi = self.map.features(X[part])
            online.learn(phi, still[part], F[part], self.w, rule="gradient", lr=0.0)  # its dots, without a step
        return np.clip(F, -self.step.clip, self.step.clip) if self.step.rule == "kons" else F

    def set_kernel(self, kernel: Keywords) -> None:
        self._one = None
        T = self.map.set_kernel(kernel)
        if self._fill is not None:
            self._fill.set_kernel(kernel)
        elif T is not None:
            self._take_over(T)

    def grow(self, sources: Sequence[Source]) -> None:
        self._one = None
        self.w = take(self.w, sources)
        if self.inverse is not None:
            k = self.w.shape[1]
            signless = [source and (source[0], 1.0) for source in sources]
            self.inverse = take(self.inverse, signless, np.eye(k) / self.step.alpha)
        if self._fill is not None:
            self._fill.grow(sources)

    def restart(self) -> None:
        self._forget() if self._fill is None else self._fill.restart()

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "rows": self._rows,
            "since": self._since,
            "ahead": self._ahead,
            "map": self.map.state(),
        }
        if self._fill is not None:
            return state | {"fill": self._fill.state()}
        inverse = None if self.inverse is None else self.inverse.copy()
        return state | {"w": self.w.copy(), "inverse": inverse}

    def load_state(self, state: dict[str, Any]) -> None:
        self._one = None
        self.map.load_state(state["map"])
        least = {"rows": 0, "since": 0, "ahead": 1}
        self._rows, self._since, self._ahead = (check_int("FeatureEngine", k, state[k], n) for k, n in least.items())
        if "fill" in state:
            assert self._fill is not None
            self._fill.load_state(state["fill"])
        else:
            w, inverse = np.ascontiguousarray(state["w"]), state["inverse"]
            c, k = len(self.w), self.map.k
            fits = inverse is None if self.step.rule == "gradient" else np.shape(inverse) == (c, k, k)
            if w.shape != (c, k) or w.dtype != np.float64 or not fits:
                raise ValueError(
                    f"w {w.dtype} {w.shape} and inverse {np.shape(inverse)} for {c} outputs of {k} features"
                )
            self._fill, self.w, self.inverse = None, w, inverse
