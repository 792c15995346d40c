"""restore="lazy": updates of low rank wait in their factors, and matrices are written once per period."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .._arrays import Array
from ._lowrank import Factor, basis, combine, lefts
from ._restore import Buffers, Evaluate, Scheme
from ._update import Noise, Tensors, Update, axpy


class Lazy(Scheme):
    """Out of place, with a matrix's updates of a period gathered in one factor.

    While V is fixed the updates of a matrix W add up to S V^T / sqrt(rank), and weight decay to a number c::

        weights   c W + S V^T / sqrt(rank)
        probe     c W + (S + scale U) V^T / sqrt(rank)
        update    S <- (1 - decay) S + sum_k coefs[k] U_k         c <- (1 - decay) c
        fold      W <- c W + S V^T / sqrt(rank), S <- 0, c <- 1

    A fold comes with the last step of each period, or from `fold`. Until then the arrays lag behind the weights by the
    pending updates. Vectors and scalars are updated at once. Memory: rank (m + n) numbers a matrix, and displaced
    copies as large as the weights.
    """

    name = "lazy"
    takes_rows = False

    def __init__(self, tensors: Tensors, stream: Noise) -> None:
        super().__init__(tensors, stream)
        self._matrices = [i for i, sizes in enumerate(tensors.matrices) if sizes]
        self._buffers = Buffers()
        self._pending: dict[int, Factor] = {}  # S; empty after a fold
        self._kept = 1.0  # c of the matrices that decay
        self._draws: Sequence[int] = (0,)  # of some update among the pending ones, which says the period

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        out = self._buffers.take(self.tensors, active)
        self.show(dict(enumerate(self.tensors.arrays)), out, draw, scale, self.probe(draw, scale))
        arrays = list(self.tensors.arrays)
        for i in active:
            arrays[i] = out[i]
        return evaluate(arrays)

    def probe(self, draw: int, scale: float) -> dict[int, Factor]:
        """S + scale U for each matrix."""
        start = {i: s.copy() for i, s in self._pending.items()} or None
        return lefts(self.tensors, self.stream, self._matrices, [draw], [scale], start)

    def keep(self, i: int) -> float:
        """The number c of a matrix."""
        return self._kept if self.tensors.decays[i] else 1.0

    def show(self, theta: Any, out: Any, draw: int, scale: float, factors: dict[int, Factor]) -> None:
        """Writes the displaced weights of the tensors in `out` from their arrays in `theta`, both by index."""
        vectors = [i for i in out if not self.tensors.matrices[i]]
        axpy(self.tensors, self.stream, vectors, [draw], [scale], source=theta, out=out)
        for i in out:
            if self.tensors.matrices[i]:
                self._combine(i, theta[i], out[i], [draw], factors[i])

    def _combine(self, i: int, theta: Array, out: Array, draws: Sequence[int], left: Factor) -> None:
        right = basis(self.tensors, self.stream, i, draws)
        combine(out, theta, self.tensors.kinds[i], self.keep(i), left, right)

    def update(self, update: Update) -> None:
        if not update.idle:
            vectors = [i for i in update.active if not self.tensors.matrices[i]]
            axpy(self.tensors, self.stream, vectors, update.draws, update.coefs, decay=update.decay)
            self._gather(update)
        if (update.draws[-1] + 1) % self.stream.period == 0:
            self.fold()

    def _gather(self, update: Update) -> None:
        """Adds the matrices' update to the pending ones."""
        start = self._pending or None
        self._pending = lefts(
            self.tensors, self.stream, self._matrices, update.draws, update.coefs, start, decay=update.decay
        )
        self._kept *= 1.0 - update.decay
        self._draws = update.draws

    def fold(self) -> bool:
        for i, left in self._pending.items():
            array = self.tensors.arrays[i]
            self._combine(i, array, array, self._draws, left)
        folded = list(self._pending)
        self.tensors.written(folded)
        self._pending, self._kept = {}, 1.0
        return bool(folded)

    def recall(self, updates: Iterable[Update]) -> None:
        for update in updates:
            if not update.idle:
                self._gather(update)

    def load_state(self, state: Any) -> None:
        self._pending, self._kept = {}, 1.0

    @property
    def nbytes(self) -> int:
        """Bytes held for the factors S and V of all matrices."""
        held = [*self._pending.values(), *(v for _, _, v in self.tensors.bases.values())]
        return sum(x.nbytes for x in held)
