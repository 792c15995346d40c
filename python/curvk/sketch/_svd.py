"""The leading singular values and vectors of a matrix whose rows arrive over time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._errors import message
from .._interrupt import aside, uninterrupted
from ..zeroth._stream import integer
from ._base import Floats, Need, Rows, Sketch, readonly

METHODS = ("brand", "fd")
RENEWAL = 64  # updates after which the factors are made orthogonal anew
EPS = float(np.finfo(np.float64).eps)


class Factors(NamedTuple):
    """The matrix so far, U diag(s) Vt."""

    s: Floats  # (j,), descending
    Vt: Floats  # (j, d)
    base: Floats  # U is base @ turn[:len(base.T)] with turn[len(base.T):] below it
    turn: Floats
    delta: float  # sum of the largest squared singular values that updates dropped
    updates: int

    def U(self) -> Floats:
        old = self.base.shape[1]
        return np.vstack([self.base @ self.turn[:old], self.turn[old:]])


class IncrementalSVD(Sketch):
    """The k leading singular values and vectors of a matrix, updated as its rows come.

    Updates take `block` rows at a time: their part in the span of Vt and an orthonormal basis of the rest give a small
    matrix, whose singular value decomposition turns the factors; of these, k are kept. While no more than k are
    positive nothing is lost, and the result is the singular value decomposition.

    What is done with the others is the `method`'s. "brand" drops them: in each update the result is the best of rank
    k, and over many it may be far from it, since what comes in small parts is dropped part by part, however large
    their sum. "fd" also takes the (k + 1)-th squared singular value from all, as Frequent Directions, so that new
    directions get in and the bound of `FrequentDirections` with l = k holds; singular values are then too small, by
    the squares' `delta` at most.

    Args:
        k: number of singular values kept, >= 1.
        d: width of the rows, >= 1.
        method: "brand" or "fd".
        block: rows in an update; k if None. They wait until there are so many; reading takes them in on a copy.
        keep_U: keep the left singular vectors as well: rows_seen x k more numbers.

    Attributes:
        k, d, method, block, keep_U: as given.
        rows_seen: number of rows taken in.

    With B = diag(s) Vt and both methods, 0 <= A'A - B'B <= delta I up to rounding. The basis of what is new is made
    orthogonal to Vt twice, and all of Vt (and U) anew after every 64 updates. Cost of an update: some
    (10 k + 8 block) block d + 2 k^2 d flops, and the decomposition of a matrix of k + block rows and columns at most.
    Source: Brand 2006, Fast low-rank modifications of the thin singular value decomposition; that U is turned only once
    in 64 updates is as in arXiv 2204.05398.

    >>> import numpy as np
    >>> A = np.random.default_rng(0).standard_normal((300, 5)) @ np.ones((5, 20)).cumsum(1) ** np.arange(5)[:, None]
    >>> svd = IncrementalSVD(8, 20)
    >>> for rows in np.split(A, 10):
    ...     svd.update(rows)
    >>> bool(np.allclose(svd.s, np.linalg.svd(A, compute_uv=False)[:5], rtol=1e-9))
    True
    >>> svd.Vt.shape, svd.delta
    ((5, 20), 0.0)
    """

    _parameters = ("k", "d", "method", "block", "keep_U")

    def __init__(
        self, k: int, d: int, *, method: str = "brand", block: int | None = None, keep_U: bool = False
    ) -> None:
        super().__init__(d)
        self.k = integer(self._name, "k", k, 1, 1 << 20, "2^20")
        if not isinstance(method, str) or method not in METHODS:
            kind = ValueError if isinstance(method, str) else TypeError
            raise kind(message(self._name, "method", repr(method), '"brand" or "fd"'))
        self.method = method
        self.block = self.k if block is None else integer(self._name, "block", block, 1, 1 << 20, "2^20")
        if not isinstance(keep_U, bool):
            raise TypeError(message(self._name, "keep_U", repr(keep_U), "True or False"))
        self.keep_U = keep_U
        empty = np.zeros((0, 0))
        self._factors = Factors(np.zeros(0), np.zeros((0, self.d)), empty, empty, 0.0, 0)
        self._buffer = np.zeros((self.block, self.d))
        self._waiting = 0

    @property
    def s(self) -> Floats:
        """Singular values, (j,), descending; j is the rank, at most k. This and the others: float64, read-only."""
        return readonly(self._read().s)

    @property
    def Vt(self) -> Floats:
        """Right singular vectors, (j, d)."""
        return readonly(self._read().Vt)

    @property
    def U(self) -> Floats:
        """Left singular vectors, (rows_seen, j).

        Raises:
            ValueError: without `keep_U=True`.
        """
        if not self.keep_U:
            raise ValueError(message(f"{self._name}.U", "keep_U", "False", "True", "construct with keep_U=True"))
        factors = self._read()
        if "U" not in self._reading:
            flops = 2.0 * factors.base.size * len(factors.s)
            self._reading["U"] = readonly(aside(flops, factors.U))
        U: Floats = self._reading["U"]
        return U

    @property
    def sketch(self) -> Floats:
        """diag(s) Vt, (j, d)."""
        return readonly(self.s[:, None] * self.Vt)

    @property
    def delta(self) -> float:
        """The sum over all updates of the (k + 1)-th squared singular value.

        norm(B x)^2 >= norm(A x)^2 - delta norm(x)^2 with B = `sketch`. For "fd" it is bounded in advance as in
        `FrequentDirections`, for "brand" it may grow with the number of updates.
        """
        return self._read().delta

    def _read(self) -> Factors:
        if "factors" not in self._reading:
            factors = self._factors
            if self._waiting:
                factors = self._folded(self._buffer[: self._waiting])
            self._reading["factors"] = factors
        found: Factors = self._reading["factors"]
        return found

    def _folded(self, rows: Floats) -> Factors:
        s, Vt, _, turn, *_ = self._factors
        width = len(s) + len(rows)
        flops = 16.0 * width * width * (width + Vt.shape[1]) + 2.0 * len(turn) * width * len(s)
        factors = aside(flops, folded, self._factors, rows, self.k, self.method == "fd", self.keep_U)
        if factors.updates % RENEWAL:
            return factors
        return aside(flops + 4.0 * self.rows_seen * width**2, renewed, factors, self.keep_U)

    def _take(self, rows: Rows) -> None:
        while len(rows):
            n = min(len(rows), self.block - self._waiting)
            with uninterrupted():
                self._buffer[self._waiting : self._waiting + n] = rows[:n]
                self._waiting += n
                self.rows_seen += n
            rows = rows[n:]
            if self._waiting == self.block:
                factors = self._folded(self._buffer)
                with uninterrupted():
                    self._factors, self._waiting = factors, 0

    def _check_mergeable(self, function: str, other: IncrementalSVD) -> None:
        if self.keep_U:
            remedy = "use update with the other's rows"
            raise ValueError(message(function, "keep_U", "True", "False, since the other's rows are not kept", remedy))

    def _absorb(self, other: IncrementalSVD) -> None:
        s, Vt, *_ = other._factors
        rows = np.vstack([s[:, None] * Vt, other._buffer[: other._waiting]])
        seen, delta = self.rows_seen + other.rows_seen, other._factors.delta
        with uninterrupted():
            self._take(rows)
            self._factors = self._factors._replace(delta=self._factors.delta + delta)
            self.rows_seen = seen

    def _state(self) -> tuple[dict[str, Any], dict[str, Floats]]:
        f = self._factors
        arrays = {"s": f.s, "Vt": f.Vt, "base": f.base, "turn": f.turn, "waiting": self._buffer[: self._waiting]}
        return {"delta": f.delta, "updates": f.updates}, arrays

    def _restore(self, numbers: dict[str, Any], arrays: dict[str, Floats], need: Need) -> None:
        s, Vt, base, turn, waiting = (arrays[name] for name in ("s", "Vt", "base", "turn", "waiting"))
        need(len(s) <= self.k, "s", f"{len(s)} values", f"at most {self.k}")
        need(bool((s > 0).all() and (np.diff(s) <= 0).all()), "s", f"{s}", "positive values, descending")
        need(Vt.shape == (len(s), self.d), "Vt", f"shape {Vt.shape}", f"shape {(len(s), self.d)}")
        fits = waiting.shape[1] == self.d and len(waiting) <= self.block
        need(fits, "waiting", f"shape {waiting.shape}", f"at most {self.block} rows of {self.d}")
        rows = len(base) + len(turn) - base.shape[1] + len(waiting)
        fits = rows == self.rows_seen and len(turn) >= base.shape[1] and turn.shape[1] == len(s)
        empty = base.size == turn.size == 0
        shapes = f"shapes {base.shape} and {turn.shape}"
        need(fits if self.keep_U else empty, "base, turn", shapes, "those of the left singular vectors")
        self._factors = Factors(s, Vt, base, turn, float(numbers["delta"]), numbers["updates"])
        self._buffer[: len(waiting)] = waiting
        self._waiting = len(waiting)


def folded(factors: Factors, rows: Floats, k: int, shrink: bool, keep_U: bool) -> Factors:
    """The factors with rows (r, d) below, k singular values kept."""
    s, Vt, base, turn, delta, updates = factors
    inside = rows @ Vt.T
    coefficients, basis = orthonormal(rows - inside @ Vt, Vt, float(np.linalg.norm(rows)))
    j, r = len(s), len(rows)
    small = np.zeros((j + r, j + len(basis)))
    np.fill_diagonal(small[:j, :j], s)
    small[j:, :j] = inside
    small[j:, j:] = coefficients
    left, values, right = np.linalg.svd(small, full_matrices=False)
    noise = max(small.shape) * EPS * values.max(initial=0.0)
    lost = float(values[k]) ** 2 if len(values) > k and values[k] > noise else 0.0
    keep = values[:k] > noise
    values = values[:k]
    if shrink:
        values = np.sqrt(np.maximum(values * values - lost, 0.0))
        keep &= values > 0
    n = int(keep.sum())  # they descend
    right = right[:n]
    if keep_U:
        turn = np.vstack([turn @ left[:j, :n], left[j:, :n]])
    return Factors(values[:n], right[:, :j] @ Vt + right[:, j:] @ basis, base, turn, delta + lost, updates + 1)


def orthonormal(rest: Floats, Vt: Floats, scale: float) -> tuple[Floats, Floats]:
    """`rest` as coefficients (r, p) @ basis (p, d), the basis orthonormal and orthogonal to Vt.

    Directions as short as the rounding errors of rows with norm `scale` are left out.
    """
    q, upper = np.linalg.qr(rest.T)
    left, values, right = np.linalg.svd(upper.T, full_matrices=False)
    p = min(int((values > 8 * EPS * scale).sum()), Vt.shape[1] - len(Vt))
    basis = right[:p] @ q.T
    basis -= (basis @ Vt.T) @ Vt  # what rounding has left of Vt in the rest is not small beside a short direction
    q, upper = np.linalg.qr(basis.T)
    return (left[:, :p] * values[:p]) @ upper.T, q.T


def renewed(factors: Factors, keep_U: bool) -> Factors:
    """The same product with orthogonal factors anew."""
    s, Vt, base, turn, delta, updates = factors
    q, upper = np.linalg.qr(Vt.T)
    middle = s[:, None] * upper.T
    if keep_U:
        base, lower = np.linalg.qr(factors.U())
        middle = lower @ middle
    left, s, right = np.linalg.svd(middle)
    if keep_U:
        base, turn = base @ left, np.eye(len(s))
    return Factors(s, right @ q.T, base, turn, delta, updates)
