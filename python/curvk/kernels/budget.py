"""Online learning with kernel expansions of bounded size: each row is predicted before it is learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import Array, numpy_view
from .._backend import call
from .._errors import message
from . import online

__all__ = ["LOSSES", "RULES", "Expansion", "learn", "predict"]

LOSSES = (*online.LOSSES, "perceptron")
"""The losses' names, in the order of the C interface's numbers."""

RULES = ("append", "rbp", "forgetron", "bpas", "projectron", "projectron++", "bogd")
"""The rules' names, in the order of the C interface's numbers."""

RANDOM = ("rbp", "bogd")
"""The rules that draw a slot at random."""

_SQUARE = ("forgetron", "projectron", "projectron++")

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


class Expansion:
    """f(x) = sum over slots s of coef[:, s] k(x_s, x), and what its rule keeps besides. Starts empty.

    Args:
        capacity: slots, >= 1; each holds a support vector, whose row the caller keeps.
        outputs: c >= 1; they share the support vectors.
        rule: what happens to a row that is to be learned:

            - "append": it takes a free slot; without one the call ends.
            - "rbp": it takes a free slot or, without one, the slot of a random support vector;
            - "forgetron": of the oldest, after all coefficients have shrunk as far as the mistakes made allow;
            - "bpas": of the one whose loss changes f the least; the coefficients are passive-aggressive;
            - "projectron": where the row is near the span of the support vectors, or without a free slot, their
              coefficients take it in; else it takes a free slot. "projectron++" learns margin errors too.
            - "bogd": gradient descent with weight decay; a random slot, the others scaled up to make up for it.

    Attributes:
        coef: (c, capacity) float64; slots in use come first.
        slots: how many are in use.
        matrix: (capacity, capacity): the support vectors' kernel matrix (forgetron) or its lower Cholesky factor
            (projectron); (capacity,): its diagonal (bpas); else None.
        sums: (2,): Q and the number of mistakes (forgetron).
        counts: (4,) int64: slots in use, the oldest slot, and two results of the last call.

    Raises:
        TypeError, ValueError: a number or a name that is not as above.

    >>> Expansion(100, 1, "forgetron").coef.shape
    (1, 100)
    """

    def __init__(self, capacity: int, outputs: int = 1, rule: str = "append") -> None:
        op = "Expansion"
        online.number_of(op, "rule", rule, RULES)
        for name, value in (("capacity", capacity), ("outputs", outputs)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(message(op, name, repr(value), "an integer"))
            if not 1 <= value < 2**31:
                raise ValueError(message(op, name, repr(value), "an integer of 1 or more"))
        self.rule = rule
        self.coef: Matrix = np.zeros((outputs, capacity))
        self.matrix: Matrix | None = self._new_matrix(int(capacity))
        self.sums: Matrix = np.zeros(2)
        self.counts: Integers = np.zeros(4, np.int64)

    def __repr__(self) -> str:
        outputs, capacity = self.coef.shape
        return f"Expansion({self.slots} of {capacity} slots in use, outputs={outputs}, rule={self.rule!r})"

    def _new_matrix(self, capacity: int) -> Matrix | None:
        if self.rule in _SQUARE:
            return np.zeros((capacity, capacity))
        return np.zeros(capacity) if self.rule == "bpas" else None

    @property
    def capacity(self) -> int:
        return int(self.coef.shape[1])

    @property
    def slots(self) -> int:
        return int(self.counts[0])

    def resize(self, capacity: int) -> None:
        """Makes it so many slots, as many as are in use at the least; rules that give up slots do so at that number."""
        if not self.slots <= capacity:
            raise ValueError(
                message("Expansion.resize", "capacity", repr(capacity), f"{self.slots}, the slots, or more")
            )
        coef, matrix, m = self.coef, self.matrix, self.slots
        self.coef, self.matrix = np.zeros((len(coef), capacity)), self._new_matrix(capacity)
        self.coef[:, :m] = coef[:, :m]
        if matrix is not None and self.matrix is not None:
            part = (slice(m),) * matrix.ndim
            self.matrix[part] = matrix[part]


def _columns(op: str, expansion: Any) -> tuple[int, int, int]:
    """Outputs, capacity and slots in use of an expansion whose arrays fit together."""
    if not isinstance(expansion, Expansion):
        raise TypeError(message(op, "expansion", type(expansion).__name__, "an Expansion"))
    if expansion.coef.ndim != 2 or 0 in expansion.coef.shape:
        raise ValueError(message(op, "expansion.coef", f"shape {expansion.coef.shape}", "shape (c, capacity)"))
    c, capacity = expansion.coef.shape
    new = expansion._new_matrix(0)
    arrays: list[tuple[str, Any, tuple[int, ...]]] = [
        ("sums", expansion.sums, (2,)),
        ("counts", expansion.counts, (4,)),
    ]
    if new is not None:
        arrays.append(("matrix", expansion.matrix, (capacity,) * new.ndim))
    for name, x, shape in arrays:
        if np.shape(x) != shape:
            raise ValueError(message(op, f"expansion.{name}", f"shape {np.shape(x)}", f"shape {shape}"))
    slots, oldest = int(expansion.counts[0]), int(expansion.counts[1])
    if not (0 <= slots <= capacity and 0 <= oldest < capacity):
        needed = f"up to {capacity} slots, the oldest among them"
        raise ValueError(message(op, "expansion.counts", f"{slots} slots, oldest {oldest}", needed))
    return c, capacity, slots


def _need(op: str, name: str, x: Array, shape: tuple[int, ...]) -> None:
    view = numpy_view(x, op, name)
    if view.dtype != np.float64:
        raise TypeError(message(op, name, str(view.dtype), "float64", f"use {name}.astype(np.float64)"))
    if view.shape != shape:
        raise ValueError(message(op, name, f"shape {view.shape}", f"shape {shape}"))


def _rows(op: str, name: str, x: Array) -> int:
    shape = numpy_view(x, op, name).shape
    if len(shape) != 2:
        raise ValueError(message(op, name, f"shape {shape}", "two axes, the first of rows"))
    return int(shape[0])


def learn(
    K: Array,
    G: Array,
    y: Array,
    f: Array,
    expansion: Expansion,
    *,
    u: Array = None,
    loss: str = "hinge",
    lr: float = 1.0,
    C: float = 1.0,
    threshold: float = 0.0,
    decay: float = 1.0,
    limit: float = math.inf,
) -> tuple[int, Integers, Integers]:
    """Predicts and learns n rows in their order, one after the other; f and the expansion in place.

    Args:
        K: k(row, support vector), (n, slots in use), float64 like all arrays here.
        G: k(row, row), (n, n); read on and below the diagonal.
        y: targets, (n, c): -1 and 1, or real numbers for the squared loss.
        f: written: the predictions, (n, c), each made before its row is learned.
        expansion: the support vectors' side, whose rule holds.
        u: (n,), in [0, 1): where a rule draws a slot, slot floor(u slots). "rbp" and "bogd" need it.
        loss: of append, rbp and bogd, whose new coefficients are -lr l'(f) and which learn the rows where that is not 0
            for some output: "perceptron" (l' = -y where y f <= 0), "hinge" (-y where y f < 1), "squared_hinge",
            "logistic" or "squared". The others have their own: a mistake, y f <= 0, is learned with coefficient y, and
            the hinge loss is what bpas looks at.
        lr: > 0, of append, rbp and bogd.
        C: > 0, bpas: bound on a step's coefficient; math.inf for none.
        threshold: >= 0, projectron: distance from the span, in feature space, up to which a row is projected on it;
            what is nearer than 1e-5 sqrt(k(x, x)) always is.
        decay: in [0, 1], bogd: what a row leaves of the coefficients, 1 - lr weight_decay.
        limit: > 0, bogd: bound on the coefficients' magnitude.

    Returns:
        (rows done, slots, rows): "append" may end before the last row, before one for which there is no slot: its f is
        written. The lists name the slots into which rows were put and the row that each holds now, new slots ascending.
        The next K has the columns of these rows in their slots.

    Raises:
        TypeError, ValueError, BufferError: a wrong dtype, shape, layout, name or number, with nothing written.

    A row that is predicted NaN or infinite is not learned. The bits depend on the rows and their order alone, not on
    how they are cut into calls (if k's bits do not), nor on level, threads or backend. 2 c slots flops for a row that
    is not learned; projectron some 2 slots^2 for one that is. curvk/budget.h has the formulas and their sources.

    >>> import numpy as np
    >>> expansion = Expansion(2, rule="rbp")
    >>> G, y, f = np.eye(3), np.array([[1.0], [-1.0], [1.0]]), np.empty((3, 1))
    >>> learn(np.empty((3, 0)), G, y, f, expansion, u=np.array([0.0, 0.0, 0.7]), loss="perceptron")
    (3, array([0, 1]), array([0, 2]))
    >>> expansion.coef
    array([[1., 1.]])
    """
    op = "budget_learn"
    c, capacity, slots = _columns(op, expansion)
    n = _rows(op, "K", K)
    for name, x, shape in (("K", K, (n, slots)), ("G", G, (n, n)), ("y", y, (n, c)), ("f", f, (n, c))):
        _need(op, name, x, shape)
    if expansion.rule in RANDOM:
        if u is None:
            raise TypeError(
                message(op, "u", "None", f"an array ({n},) for the rule {expansion.rule}", "use noise.fill")
            )
        _need(op, "u", u, (n,))
        view = numpy_view(u, op, "u")
        if not ((view >= 0) & (view < 1)).all():
            raise ValueError(message(op, "u", "a number out of range", "numbers in [0, 1)"))
    numbers = online.number_of(op, "rule", expansion.rule, RULES), online.number_of(op, "loss", loss, LOSSES)
    placed, rows = np.empty(n, np.int64), np.empty(n, np.int64)
    own = expansion.coef, expansion.matrix, expansion.sums, placed, rows, expansion.counts
    call(op, (K, G, y, u, f, *own), (n, c, capacity, *numbers, lr, C, threshold, decay, limit))
    done, held = int(expansion.counts[2]), int(expansion.counts[3])
    return done, placed[:held], rows[:held]


def predict(K: Array, expansion: Expansion, *, out: Array = None) -> Any:
    """The predictions K coef', (n, c), with the bits that `learn` gives them.

    Args:
        K: k(row, support vector), (n, slots in use), float64.
        expansion: the coefficients.
        out: (n, c) float64, C-contiguous, to write to; a fresh array by default.

    Returns:
        `out`.

    Raises:
        TypeError, ValueError, BufferError: as `learn`.

    >>> import numpy as np
    >>> expansion = Expansion(2)
    >>> predict(np.empty((3, 0)), expansion).ravel()
    array([0., 0., 0.])
    """
    op = "budget_predict"
    c, capacity, slots = _columns(op, expansion)
    n = _rows(op, "K", K)
    _need(op, "K", K, (n, slots))
    if out is None:
        out = np.empty((n, c))
    _need(op, "out", out, (n, c))
    call(op, (K, expansion.coef, out), (n, slots, c, capacity))
    return out
