"""Frequent Directions: rows of a matrix in, and at most l rows that stand for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._interrupt import aside, uninterrupted
from ..zeroth._stream import integer
from ._base import Floats, Need, Rows, Sketch, readonly

EPS = float(np.finfo(np.float64).eps)


class FrequentDirections(Sketch):
    """A sketch B of at most l rows whose B'B is A'A up to a bound that it knows.

    For all rows A seen so far, B = `sketch` and every k < l::

        0 <= A'A - B'B <= delta I        delta <= sum of sigma_i(A)^2 over i > k / (l + 1 - k)

    up to rounding, a few eps times the squared Frobenius norm of A. So for rank l or less the sketch is exact.

    Args:
        l: rows of the sketch, >= 1.
        d: width of the rows, >= 1.

    Attributes:
        l, d: as given.
        rows_seen: number of rows taken in.

    Rows wait in a buffer of 2 l. When one comes and it is full, the buffer's squared singular values lose the
    (l + 1)-th of these, which leaves l rows or less. Shrinks come at fixed counts, so `sketch` does not depend on how
    rows were cut into calls. Memory: 16 l d bytes, 32 l d while it shrinks. Cost: 8 l d flops for each row, and the
    eigenvalues of a 2 l x 2 l matrix for each l rows: kept rows are orthogonal, so that a shrink needs the new rows'
    products alone. Source: Liberty 2013, arXiv 1206.0594; Ghashami et al. 2016, arXiv 1501.01711.

    >>> import numpy as np
    >>> A = np.random.default_rng(0).standard_normal((500, 20)) / np.arange(1, 21)
    >>> fd = FrequentDirections(8, 20)
    >>> fd.update(A[:300])
    >>> fd.update(A[300:])
    >>> B = fd.sketch
    >>> B.shape
    (8, 20)
    >>> error = np.linalg.eigvalsh(A.T @ A - B.T @ B)
    >>> bool(error.min() > -1e-9 and error.max() <= fd.delta)
    True
    >>> sigma = np.linalg.svd(A, compute_uv=False)
    >>> bool(fd.delta <= min((sigma[k:] ** 2).sum() / (9 - k) for k in range(8)))
    True
    """

    _parameters = ("l", "d")

    def __init__(self, l: int, d: int) -> None:  # noqa: E741  # the literature's letter
        super().__init__(d)
        self.l = integer(self._name, "l", l, 1, 1 << 20, "2^20")
        self._buffer = np.zeros((2 * self.l, self.d))
        self._filled = 0  # rows of the buffer in use
        self._kept = 0  # the first of these, which a shrink left orthogonal
        self._delta = 0.0  # of the shrinks that the buffer went through

    @property
    def sketch(self) -> Floats:
        """B, at most l rows (., d), float64, read-only; the rows themselves, in their order, while there are only l.

        Where the buffer holds more, a copy of it is shrunk: reading changes nothing of what later updates give, costs
        a shrink, and gives the same array until the next update.
        """
        rows: Floats = self._read()["sketch"]
        return rows

    @property
    def delta(self) -> float:
        """The sum of the shrinkages in `sketch`: norm(B x)^2 >= norm(A x)^2 - delta norm(x)^2."""
        return float(self._read()["delta"])

    def _read(self) -> dict[str, Any]:
        if not self._reading:
            rows, delta = self._buffer[: self._filled].copy(), 0.0
            if self._filled > self.l:
                rows, delta = aside(_flops(rows), shrunk, rows, self._kept, self.l)
            self._reading = {"sketch": readonly(rows), "delta": self._delta + delta}
        return self._reading

    def _take(self, rows: Rows) -> None:
        while len(rows):
            if self._filled == len(self._buffer):
                kept, delta = aside(_flops(self._buffer), shrunk, self._buffer, self._kept, self.l)
                with uninterrupted():
                    self._buffer[: len(kept)] = kept
                    self._filled = self._kept = len(kept)
                    self._delta += delta
            n = min(len(rows), len(self._buffer) - self._filled)
            with uninterrupted():
                self._buffer[self._filled : self._filled + n] = rows[:n]
                self._filled += n
                self.rows_seen += n
            rows = rows[n:]

    def _absorb(self, other: FrequentDirections) -> None:
        # Each delta took l + 1 times as much from the squared Frobenius norm, so the sum keeps the bound.
        rows, seen, delta = other._buffer[: other._filled].copy(), self.rows_seen + other.rows_seen, other._delta
        with uninterrupted():
            self._take(rows)
            self._delta += delta
            self.rows_seen = seen

    def _state(self) -> tuple[dict[str, Any], dict[str, Floats]]:
        return {"kept": self._kept, "delta": self._delta}, {"rows": self._buffer[: self._filled]}

    def _restore(self, numbers: dict[str, Any], arrays: dict[str, Floats], need: Need) -> None:
        rows, kept = arrays["rows"], numbers["kept"]
        fits = rows.shape[1] == self.d and len(rows) <= len(self._buffer)
        need(fits, "rows", f"shape {rows.shape}", f"at most {len(self._buffer)} rows of {self.d}")
        need(kept <= min(self.l, len(rows)), "kept", kept, f"at most {min(self.l, len(rows))}")
        self._buffer[: len(rows)] = rows
        self._filled, self._kept, self._delta = len(rows), kept, float(numbers["delta"])


class RobustFrequentDirections(FrequentDirections):
    """Frequent Directions with half of what was shrunk given back to all directions: B'B + alpha I stands for A'A.

    With alpha = delta / 2 the error is half the bound of `FrequentDirections`, whose sketch it has::

        -alpha I <= A'A - (B'B + alpha I) <= alpha I

    and where one inverts, alpha is a ridge that chooses itself.

    Args:
        l, d: as in `FrequentDirections`.

    Source: Luo et al. 2019, Robust Frequent Directions with application in online learning, JMLR 20(45).

    >>> import numpy as np
    >>> A = np.random.default_rng(0).standard_normal((500, 20)) / np.arange(1, 21)
    >>> rfd = RobustFrequentDirections(8, 20)
    >>> rfd.update(A)
    >>> metric = rfd.sketch.T @ rfd.sketch + rfd.alpha * np.eye(20)
    >>> bool(np.linalg.norm(A.T @ A - metric, 2) <= rfd.delta / 2)
    True
    """

    @property
    def alpha(self) -> float:
        """Half of `delta`."""
        return self.delta / 2


def _flops(rows: Floats) -> float:
    """Of a shrink, roughly."""
    n, d = rows.shape
    return float(2.0 * n * n * d + 9.0 * n**3)


def shrunk(rows: Floats, kept: int, l: int) -> tuple[Floats, float]:  # noqa: E741
    """At most l rows that stand for more than l rows (n, d), and what their squared singular values lost.

    Args:
        rows: of which the first `kept` are taken for orthogonal.
    """
    n = len(rows)
    gram = np.zeros((n, n))
    np.matmul(rows[kept:], rows.T, out=gram[kept:])
    np.fill_diagonal(gram[:kept, :kept], np.einsum("ij,ij->i", rows[:kept], rows[:kept]))
    values, vectors = np.linalg.eigh(gram)  # of the lower triangle
    noise = n * EPS * values[-1]
    delta = float(values[n - l - 1]) if values[n - l - 1] > noise else 0.0
    top, vectors = values[: n - l - 1 : -1], vectors[:, : n - l - 1 : -1]
    left = top > max(delta, noise)
    top = top[left]
    kept_rows: Floats = (vectors[:, left] * np.sqrt((top - delta) / top)).T @ rows
    return kept_rows, delta
