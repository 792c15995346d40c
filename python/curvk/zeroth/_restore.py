"""How weights are displaced for a probe and put back: the schemes behind `restore=`.

A scheme works on `Tensors` (NumPy arrays and torch tensors alike). It sees the loss closure as `evaluate(arrays)`:
given the arrays to compute the loss with, in the order of the tensors, it returns a float. In-place schemes pass the
tensors themselves, `Scratch` passes displaced copies of the active ones.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .._arrays import Array
from .._errors import message
from .._loops.half import decode
from ..kernels import noise
from . import _device
from ._stream import REACH
from ._update import Noise, Rows, Tensors, Update, assign, axpy

Evaluate = Callable[[Sequence[Array]], float]


class Scheme:
    """Displaces weights and puts them back; a subclass gives `loss`, the rest has defaults for weights never touched.

    In a step a method calls `begin`, then `loss` for every probe and side, then `update` or, if the step is skipped or
    an exception came, `restore`. After both the weights are nowhere displaced.

    Args:
        tensors: the weights.
        stream: their noise.

    Attributes:
        name: the word for `restore=`.
        exact: whether `restore` gives back every bit, so that a log can be replayed.
        takes_rows, takes_thresholds: whether the scheme can displace a part of a tensor.
        rows: per tensor index the rows that this step displaces; whole tensors where absent. A scheme that finds them
            out in `loss` sets them itself; the method reads them before the update.
        thresholds: per tensor index, only elements with |theta| <= threshold are displaced.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    takes_rows: ClassVar[bool] = True
    takes_thresholds: ClassVar[bool] = False

    def __init__(self, tensors: Tensors, stream: Noise) -> None:
        self.tensors, self.stream = tensors, stream
        self.rows: Rows = {}
        self.thresholds: Mapping[int, float] = {}

    def begin(self, active: Sequence[int], rows: Rows, thresholds: Mapping[int, float]) -> None:
        """Starts a step on these tensors (ascending indices); nothing is displaced."""
        self.rows, self.thresholds = rows, thresholds

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        """The loss at theta + scale z_draw on the active tensors; at theta itself if scale is 0.

        May leave the weights displaced. Where `evaluate` raises, the method calls `restore`.
        """
        raise NotImplementedError

    def update(self, update: Update) -> None:
        """Takes back any displacement and applies the update. A replay calls it alone, with the same bits."""
        if not update.idle:
            axpy(self.tensors, self.stream, update.active, update.draws, update.coefs, **update.options)

    def restore(self) -> None:
        """Takes back any displacement."""

    def fold(self) -> bool:
        """Writes updates that wait outside of the arrays to them; whether there were any."""
        return False

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights: numbers, strings and arrays."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""

    def recall(self, updates: Iterable[Update]) -> None:
        """Takes up what a run's updates since its last fold left outside of the arrays; after `load_state`."""


class Scratch(Scheme):
    """Out of place: the closure gets displaced copies of the active tensors, theta is never touched.

    Exact in every dtype. Memory: buffers as large as the active tensors together, kept for the next step.
    """

    name = "scratch"
    takes_thresholds = True

    def __init__(self, tensors: Tensors, stream: Noise) -> None:
        super().__init__(tensors, stream)
        self._buffers = Buffers()

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        arrays = list(self.tensors.arrays)
        if scale:
            out = self._buffers.take(self.tensors, active)
            options: Any = {"rows": self.rows, "thresholds": self.thresholds}
            axpy(self.tensors, self.stream, active, [draw], [scale], out=out, **options)
            for i in active:
                arrays[i] = out[i]
        return evaluate(arrays)


class Copy(Scheme):
    """In place, from a saved copy of the active tensors (of the active rows, where rows are given).

    Exact in every dtype, and the closure needs no arrays handed to it. Memory: the copy, kept for the next step.
    """

    name = "copy"
    takes_thresholds = True

    def __init__(self, tensors: Tensors, stream: Noise) -> None:
        super().__init__(tensors, stream)
        self._buffers = Buffers()
        self._saved: dict[int, Array] = {}
        self._saved_rows: dict[int, Array] = {}

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        if scale:
            self._displace(active, [draw], [scale], {"thresholds": self.thresholds})
        else:
            self.restore()
        return evaluate(self.tensors.arrays)

    def update(self, update: Update) -> None:
        if update.idle or not (self._saved or self._saved_rows):
            self.restore()
            super().update(update)
        else:
            options = {k: v for k, v in update.options.items() if k != "rows"}
            self._displace(update.active, update.draws, update.coefs, options)
            self._saved, self._saved_rows = {}, {}

    def _displace(self, active: Sequence[int], draws: Any, coefs: Any, options: dict[str, Any]) -> None:
        """Writes theta with draws added, where theta is what was saved; saves it first if need be."""
        whole = [i for i in active if i not in self.rows]
        parts = [i for i in active if i in self.rows]
        if self._saved or self._saved_rows:
            self._restore_rows()
        else:
            self._saved = self._buffers.take(self.tensors, whole)
            for i in whole:
                assign(self._saved[i], self.tensors.arrays[i])
            self._saved_rows = {i: self._rows_of(i) for i in parts}
        arrays = dict(enumerate(self.tensors.arrays))
        axpy(self.tensors, self.stream, whole, draws, coefs, source=self._saved, out=arrays, **options)
        axpy(self.tensors, self.stream, parts, draws, coefs, rows=self.rows, **options)

    def restore(self) -> None:
        for i, saved in self._saved.items():
            assign(self.tensors.arrays[i], saved)
        self.tensors.written(list(self._saved))
        self._restore_rows()
        self._saved, self._saved_rows = {}, {}

    def _rows_of(self, i: int) -> Array:
        if self.tensors.devices[i] is None:
            return self.tensors.view(i)[self.rows[i]]
        return _device.rows_of(self.tensors.arrays[i], self.rows[i])

    def _restore_rows(self) -> None:
        for i, saved in self._saved_rows.items():
            if self.tensors.devices[i] is None:
                self.tensors.view(i)[self.rows[i]] = saved
            else:
                _device.assign_rows(self.tensors.arrays[i], self.rows[i], saved)
        self.tensors.written(list(self._saved_rows))


class Grid(Scheme):
    """In place and exact without memory: float32 weights that are multiples of a power of two.

    With quantum q_i = 2^(ceil(log2(max |theta_i| + 7 eps)) - 23) of tensor i, theta is rounded to multiples of q once,
    at the first loss (rms change about q/3.5), and displaced by multiples::

        delta = rint(eps z / q) q         theta + delta, - 2 delta, + delta are exact: all sums are below 2^24 q
        theta <- theta + floor((coef z - decay theta) / q + u) q      the update, u uniform: exact in expectation

    A bound of |theta| is carried along on the host; where it reaches 2^24 q the true maximum is measured and q renewed.
    Weights that something else writes between steps leave the grid and are not put back exactly. The scheme is curvk's
    own.
    """

    name = "grid"
    takes_rows = False

    def __init__(self, tensors: Tensors, stream: Noise, eps: float, function: str = "Grid") -> None:
        super().__init__(tensors, stream)
        for name, dtype in zip(tensors.names, tensors.dtypes, strict=True):
            if dtype != "float32":
                needed = f"'scratch' or 'copy', as params[{name!r}] is {dtype} and the grid is for float32"
                raise ValueError(message(function, "restore", "'grid'", needed))
        self.eps = eps
        self._reach = REACH[stream.dist]
        self._quanta: list[float] = []  # one for each tensor, from the first loss on
        self._bounds: list[float] = []  # of |theta|
        self._at: tuple[int, int] | None = None  # draw and steps of the displacement
        self._active: Sequence[int] = ()

    def begin(self, active: Sequence[int], rows: Rows, thresholds: Mapping[int, float]) -> None:
        super().begin(active, rows, thresholds)
        self._active = active
        self._start()

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        steps = round(scale / self.eps)
        assert steps * self.eps == scale
        if self._at is not None and self._at[0] != draw:
            self.restore()
        before = 0 if self._at is None else self._at[1]
        if steps != before:
            self._call(active, draw, steps=steps - before)
            self._at = (draw, steps) if steps else None
        return evaluate(self.tensors.arrays)

    def update(self, update: Update) -> None:
        self._start()
        if self._at is not None and (update.idle or self._at[0] != update.draws[-1]):
            self.restore()
        if update.idle:
            return
        # Backwards, so that the last probe is taken back and applied in one pass.
        for k in range(len(update.draws) - 1, -1, -1):
            steps, self._at = (0 if self._at is None else -self._at[1]), None
            decay = update.decay if k == len(update.draws) - 1 else 0.0
            self._call(update.active, update.draws[k], steps, float(update.coefs[k]), decay, update.factors, True)
        total = float(np.abs(update.coefs.astype(np.float64)).sum())
        for i in update.active:
            kept = 1.0 - update.decay if self.tensors.decays[i] else 1.0
            moved = self._reach * total * abs(update.factors.get(i, 1.0)) + len(update.draws) * self._quanta[i]
            self._bounds[i] = kept * self._bounds[i] + moved
            if self._bounds[i] + self._reach * self.eps > 2.0**24 * self._quanta[i]:
                self._measure(i)

    def restore(self) -> None:
        if self._at is not None:
            draw, steps = self._at
            self._call(self._active, draw, steps=-steps)
            self._at = None

    def state(self) -> dict[str, Any]:
        return {"quanta": list(self._quanta), "bounds": list(self._bounds)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._quanta, self._bounds = list(state["quanta"]), list(state["bounds"])

    def _call(
        self,
        active: Sequence[int],
        draw: int,
        steps: int,
        coef: float = 0.0,
        decay: float = 0.0,
        factors: Mapping[int, float] | None = None,
        update: bool = False,
    ) -> None:
        alike: dict[tuple[float, float, float], list[int]] = {}
        for i in active:
            c = float(np.float32(coef) * np.float32(factors.get(i, 1.0))) if factors else coef
            alike.setdefault((self._quanta[i], c, decay if self.tensors.decays[i] else 0.0), []).append(i)
        for (quantum, c, d), batch in alike.items():
            noise.grid_axpy_(
                [self.tensors.arrays[i] for i in batch],
                seed=self.stream.seed,
                dist=self.stream.dist,
                quantum=quantum,
                draw=draw,
                tensor=[self.tensors.words[i] for i in batch],
                scale=self.eps,
                steps=steps,
                coef=c,
                decay=d,
                update=update,
            )

    def _start(self) -> None:
        if not self._quanta:
            for i in range(len(self.tensors)):  # first, so that nothing is written where one is refused
                self._largest(i)
            self._quanta = [0.0] * len(self.tensors)
            self._bounds = [0.0] * len(self.tensors)
            for i in range(len(self.tensors)):
                self._measure(i)

    def _largest(self, i: int) -> float:
        if self.tensors.devices[i] is None:
            largest = max((float(np.abs(b).max(initial=0.0)) for b in self.tensors.blocks(i)), default=0.0)
        else:
            largest = _device.largest(self.tensors.arrays[i])
        if not largest < 2.0**100:
            found = f"{largest} among the weights of {self.tensors.names[i]!r}"
            raise ValueError(message("Grid", "params", found, "finite weights below 2^100"))
        return largest

    def _measure(self, i: int) -> None:
        """Sets the quantum by the largest weight; rounds the weights to it where it has grown."""
        largest = self._largest(i)
        fraction, exponent = math.frexp(largest + 7.0 * self.eps)
        quantum = 2.0 ** max((exponent - 1 if fraction == 0.5 else exponent) - 23, -126)
        if quantum > self._quanta[i]:
            if self.tensors.devices[i] is None:
                for block in self.tensors.blocks(i):
                    block[...] = np.rint(block / np.float32(quantum)) * np.float32(quantum)
            else:
                _device.round_to(self.tensors.arrays[i], quantum)
            self.tensors.written([i])
            largest += 0.5 * quantum
        self._quanta[i], self._bounds[i] = quantum, largest


class Naive(Scheme):
    """In place, displaced and put back by addition: the weights drift by rounding, in every dtype.

    Three passes a step: + eps z, - 2 eps z, and restore and update in one. Warns once, with the drift measured on the
    largest tensor.
    """

    name = "naive"
    exact = False

    def __init__(self, tensors: Tensors, stream: Noise) -> None:
        super().__init__(tensors, stream)
        self._at: tuple[int, float] | None = None  # draw and scale of the displacement
        self._active: Sequence[int] = ()
        self._warned = False

    def begin(self, active: Sequence[int], rows: Rows, thresholds: Mapping[int, float]) -> None:
        super().begin(active, rows, thresholds)
        self._active = active

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        self._warn(abs(scale))
        at, self._at = self._at, (draw, scale) if scale else None
        if at is None:
            draws, coefs = [draw], [scale]
        elif at[0] == draw:
            draws, coefs = [draw], [scale - at[1]]
        elif not scale:
            draws, coefs = [at[0]], [-at[1]]
        else:
            draws, coefs = [at[0], draw], [-at[1], scale]
        if any(coefs):
            axpy(self.tensors, self.stream, active, draws, coefs, rows=self.rows)
        return evaluate(self.tensors.arrays)

    def update(self, update: Update) -> None:
        if self._at is None or update.idle or update.factors:
            self.restore()
            super().update(update)
            return
        (draw, scale), self._at = self._at, None
        for decay in dict.fromkeys([update.decay, 0.0]):
            batch = [i for i in update.active if (update.decay if self.tensors.decays[i] else 0.0) == decay]
            change = dict(zip(update.draws, update.coefs.tolist(), strict=True))
            change[draw] = change.get(draw, 0.0) - (1.0 - decay) * scale
            options: Any = {"rows": update.rows, "decay": decay}
            axpy(self.tensors, self.stream, batch, list(change), list(change.values()), **options)

    def restore(self) -> None:
        if self._at is not None:
            (draw, scale), self._at = self._at, None
            axpy(self.tensors, self.stream, self._active, [draw], [-scale], rows=self.rows)

    def _warn(self, eps: float) -> None:
        """Warns, once, of what + eps, - 2 eps, + eps leaves behind on the largest tensor (on 2^20 elements at most)."""
        if self._warned:
            return
        self._warned = True
        tensors, stream = self.tensors, self.stream
        i = max(range(len(tensors)), key=lambda j: tensors.view(j).size)
        part = next(tensors.blocks(i), np.empty(0, tensors.view(i).dtype)).reshape(-1)[: 1 << 20].copy()
        before = _widened(part, tensors.kinds[i])
        for scale in (eps, -2 * eps, eps):
            noise.perturb_(part, seed=stream.seed, scale=scale, tensor=tensors.words[i], dist=stream.dist)
        change = _widened(part, tensors.kinds[i]) - before
        drift = math.sqrt(float(np.mean(change * change))) if part.size else 0.0
        warnings.warn(
            f"restore='naive' does not put weights back exactly: one step without an update moves {tensors.names[i]!r} "
            f"({tensors.dtypes[i]}) by {drift:.2g} rms; restore='scratch' is exact",
            RuntimeWarning,
            stacklevel=2,
        )


class Buffers:
    """Reusable arrays, as many of a shape as one step needs at once."""

    def __init__(self) -> None:
        self._pool: dict[Any, list[Array]] = {}
        self._taken: tuple[tuple[int, ...], dict[int, Array]] = ((), {})

    def take(self, tensors: Tensors, active: Sequence[int]) -> dict[int, Array]:
        """A buffer for each active tensor, of its dtype and shape; those of the last call are free again."""
        if self._taken[0] == tuple(active):
            return self._taken[1]
        taken: Counter[Any] = Counter()
        found = {}
        for i in active:
            view, array = tensors.view(i), tensors.arrays[i]
            key = (type(array), tensors.devices[i], view.dtype, view.shape, view.strides)
            shelf = self._pool.setdefault(key, [])
            if taken[key] == len(shelf):
                # A tensor's closure computes with tensors; new_empty is torch's.
                shelf.append(array.new_empty(view.shape) if hasattr(array, "new_empty") else np.empty_like(view))
            found[i] = shelf[taken[key]]
            taken[key] += 1
        self._taken = (tuple(active), found)
        return found


def _widened(x: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return (decode(x, kind) if kind in ("bf16", "f16") else x).astype(np.float64)
