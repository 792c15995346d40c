"""CountSketch and its form with several entries per row: rows added, with random signs, into s buckets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from .._errors import message
from .._interrupt import uninterrupted
from ..kernels import sketch as kernels
from ..zeroth._stream import SEEDS, integer
from ._base import Floats, Need, Rows, Sketch, check_finite, readonly, within

ROWS = 1 << 62


class SJLT(Sketch):
    """A sketch B = S'A of s rows with E[B'B] = A'A: a sparse Johnson-Lindenstrauss transform.

    Row i of S has one entry +-1 / sqrt(blocks) in each of `blocks` blocks of columns, in a random place and with a
    random sign, all independent. They are a function of (seed, i), so nothing of S is stored, a row costs
    `blocks` d additions, and sketches of different rows with one seed add up.

    Args:
        s: rows of the sketch, a multiple of `blocks`.
        d: width of the rows, >= 1.
        blocks: entries in a row of S.
        seed: of S, in [0, 2^64).
        first_row: number of the first row taken in, in [0, 2^62). Give the parts of a matrix that are sketched apart
            the numbers that their rows have in the whole.

    Attributes:
        s, d, blocks, seed, first_row: as given.
        rows_seen: number of rows taken in.

    For each vector x and y = A x, norm_2(B x)^2 has mean norm_2(y)^2 and, whatever `blocks`, variance
    2 / s (norm_2(y)^4 - norm_4(y)^4). In Frobenius' norm, E norm(B'B - A'A)^2 <= (norm(A)^4 + norm(A'A)^2) / s.
    `sketch` is the same bits however rows are cut into calls. Source: Clarkson & Woodruff 2013, arXiv 1207.6365 (one
    block); Kane & Nelson 2014, arXiv 1012.1577.

    >>> import numpy as np
    >>> A = np.random.default_rng(0).standard_normal((1000, 3))
    >>> whole, first, second = SJLT(400, 3), SJLT(400, 3), SJLT(400, 3, first_row=600)
    >>> whole.update(A)
    >>> first.update(A[:600])
    >>> second.update(A[600:])
    >>> first.merge(second)
    >>> bool(np.allclose(first.sketch, whole.sketch))
    True
    >>> bool(np.linalg.norm(whole.sketch.T @ whole.sketch - A.T @ A) < 0.2 * np.linalg.norm(A) ** 2)
    True
    """

    _parameters: tuple[str, ...] = ("s", "d", "blocks", "seed", "first_row")

    def __init__(self, s: int, d: int, blocks: int = 4, seed: int = 0, *, first_row: int = 0) -> None:
        super().__init__(d)
        self.s = integer(self._name, "s", s, 1, 1 << 30, "2^30")
        self.blocks = integer(self._name, "blocks", blocks, 1, 1 + 10**6)
        if self.s % self.blocks:
            remedy = f"use {-(-self.s // self.blocks) * self.blocks}"
            raise ValueError(message(self._name, "s", f"{s}", f"a multiple of blocks = {blocks}", remedy))
        self.seed = integer(self._name, "seed", seed, 0, SEEDS, "2^64")
        self.first_row = integer(self._name, "first_row", first_row, 0, ROWS, "2^62")
        self._sums = np.zeros((self.s, self.d))
        self._ranges = np.zeros((0, 2), np.int64)  # of the rows taken in: first and end, ascending, apart

    @property
    def sketch(self) -> Floats:
        """B, (s, d), float64: a copy, read-only."""
        return readonly(self._sums.copy())

    @property
    def rows(self) -> list[range]:
        """The numbers of the rows taken in, merged ones among them. The next one has the number after the last."""
        return [range(*ends) for ends in self._ranges.tolist()]

    def _next(self) -> int:
        return int(self._ranges[-1, 1]) if len(self._ranges) else self.first_row

    def _check(self, function: str, rows: Rows) -> None:
        if self._next() + len(rows) > ROWS:
            raise ValueError(message(function, "rows", f"row {self._next() + len(rows)}", "fewer than 2^62 rows"))
        if len(rows) < self.s:  # else the sums show it with less work
            check_finite(function, "rows", rows)

    def _take(self, rows: Rows) -> None:
        first, end = self._next(), self._next() + len(rows)
        if not len(rows):
            return
        if len(rows) < self.s:
            with uninterrupted():
                self._add(rows, self._sums)
                self._note(np.array([[first, end]]), len(rows))
            return
        sums = self._sums.copy()
        self._add(rows, sums)
        if not within(sums):
            check_finite(f"{self._name}.update", "rows", rows)
        with uninterrupted():
            self._sums = sums
            self._note(np.array([[first, end]]), len(rows))

    def _add(self, rows: Rows, sums: Floats) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            kernels.sjlt(rows, sums, seed=self.seed, first_row=self._next(), blocks=self.blocks)

    def _note(self, ranges: Any, count: int) -> None:
        self._ranges = joined(np.concatenate([self._ranges, ranges]))
        self.rows_seen += count

    def _mergeable(self) -> dict[str, Any]:
        return {name: value for name, value in self._settings().items() if name != "first_row"}

    def _check_mergeable(self, function: str, other: SJLT) -> None:
        both = np.concatenate([self._ranges, other._ranges])
        both = both[np.argsort(both[:, 0])]
        for (_, end), (first, _) in pairwise(both.tolist()):
            if first < end:  # the same row of S twice: their products would not average out
                remedy = "give each part of the matrix the first_row that it has in the whole"
                found = f"row {first}, which this sketch has too"
                raise ValueError(message(function, "other", found, "rows with other numbers", remedy))

    def _absorb(self, other: SJLT) -> None:
        with uninterrupted():
            self._sums += other._sums
            self._note(other._ranges, other.rows_seen)

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {"sums": self._sums, "ranges": self._ranges}

    def _restore(self, numbers: dict[str, Any], arrays: dict[str, Any], need: Need) -> None:
        sums, ranges = arrays["sums"], arrays["ranges"]
        need(sums.shape == (self.s, self.d), "sums", f"shape {sums.shape}", f"shape {(self.s, self.d)}")
        flat = ranges.ravel()
        fits = ranges.shape[1:] == (2,) and bool(
            (flat >= 0).all() and (flat <= ROWS).all() and (np.diff(flat) > 0).all()
        )
        need(fits, "ranges", f"{ranges.tolist()}"[:80], "first rows and ends, ascending")
        count = int((ranges[:, 1] - ranges[:, 0]).sum())
        need(count == self.rows_seen, "rows_seen", self.rows_seen, f"{count}, the rows in 'ranges'")
        self._sums, self._ranges = sums, ranges


class CountSketch(SJLT):
    """The sparsest `SJLT`: each row is added, with a random sign, to one of the s rows of the sketch.

    Args:
        s, d, seed, first_row: as in `SJLT`; blocks is 1.

    Reads each row once and adds it once. Source: Charikar et al. 2002; Clarkson & Woodruff 2013, arXiv 1207.6365.

    >>> import numpy as np
    >>> sketch = CountSketch(4, 2, seed=1)
    >>> sketch.update(np.array([[1.0, 2.0]]))
    >>> np.abs(sketch.sketch).sum(0)
    array([1., 2.])
    """

    _parameters = ("s", "d", "seed", "first_row")

    def __init__(self, s: int, d: int, seed: int = 0, *, first_row: int = 0) -> None:
        super().__init__(s, d, 1, seed, first_row=first_row)


def joined(ranges: Any) -> Any:
    """Ranges (m, 2) that do not overlap, ascending, those that touch as one."""
    ranges = ranges[np.argsort(ranges[:, 0])]
    touch = ranges[1:, 0] == ranges[:-1, 1]
    return np.stack([ranges[np.r_[True, ~touch], 0], ranges[np.r_[~touch, True], 1]], 1) if len(ranges) else ranges
