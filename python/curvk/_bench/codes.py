"""What the sweeps store, by its definition, in float64: the grid of a 16-bit format, 8-bit codes, and their errors.

An interval of numbers becomes the interval of what may be stored for them: rounded at random, the grid points around
it; rounded to nearest, those that a number in it is nearest to.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .interval import F32, F64, STORAGE, Interval
from .storage import decode

Array = np.ndarray[Any, Any]

GROUPS = {"8": 32, "8b": 256}
"""Elements that share a scale."""

_UNITS = 512  # a code is rounded by a number of 9 bits
_SLACK = 0.52  # a position in these units is rounded to a whole one, from a float32 that is 0.02 off at most


class Anything(Interval):
    """Holds every number: the truth stands with another output."""

    def __init__(self) -> None:
        super().__init__(np.float64(-np.inf), np.float64(np.inf), F64)

    def misses(self, result: Array) -> Array:
        return np.zeros(np.shape(result), bool)


class CodeInterval(Interval):
    """Codes between two, as bytes that may stand for signed ones."""

    def __init__(self, low: Array, high: Array, loose: Array, signed: bool) -> None:
        super().__init__(low, high, F64, loose)
        self.signed = signed

    def misses(self, result: Array) -> Array:
        return super().misses(result.view(np.int8) if self.signed else result)


# ---- 16 bits --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _grid(fmt: str) -> Array:
    """Every number of a 16-bit format, in order, with the infinities."""
    values = decode(np.arange(65536, dtype=np.uint16), fmt)
    return np.unique(values[~np.isnan(values)])


def around(x: Interval, fmt: str) -> Interval:
    """The nearest numbers of a 16-bit format on either side."""
    grid = _grid(fmt)
    low = grid[np.maximum(np.searchsorted(grid, x.low, "right") - 1, 0)]
    high = grid[np.minimum(np.searchsorted(grid, x.high, "left"), grid.size - 1)]
    low, high = np.where(np.isnan(x.low), np.nan, low), np.where(np.isnan(x.high), np.nan, high)
    return Interval(low, high, STORAGE[fmt], x.loose)


def compensated(x: Interval, fmt: str) -> Interval:
    """The sum p + low for a number x: p is the nearest to x, low to what is left, 0 where p is infinite."""
    f = STORAGE[fmt]
    p = x.to(f)
    with np.errstate(all="ignore"):
        low, high = (
            sign * abs(b) * 2 * f.unit**2 + sign * 2.0 ** (f.tiny - 1) + b for b, sign in ((x.low, -1), (x.high, 1))
        )
    low, high = np.where(np.isinf(p.low) & (p.low > 0), p.low, low), np.where(np.isinf(p.high), p.high, high)
    low, high = np.where(p.low == -np.inf, p.low, low), np.where(p.high == -np.inf, p.high, high)
    return Interval(low, high, F64, x.loose)


# ---- 8 bits ---------------------------------------------------------------------------------------------------------


def power(y: Array, exponent: float) -> Array:
    """y^exponent for y >= 0, exact at powers of two and linear between: the bits of a float, stretched."""
    fraction, e = np.frexp(y)
    stretched = exponent * (e - 1 + (2 * fraction - 1))
    whole = np.floor(stretched)
    return np.where(y > 0, np.ldexp(1 + (stretched - whole), whole.astype(np.int64)), 0.0)


@lru_cache(maxsize=2)
def dynamic_map(signed: bool) -> Array:
    """The 256 values of bitsandbytes, as `create_dynamic_map` constructs them (Dettmers et al. 2022), in float64."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i + (not signed)) + 1)
        centers = 10.0 ** (i - 6) * (edges[1:] + edges[:-1]) / 2
        values += [*centers, *(-centers if signed else [])]
    assert len(values) == 256
    return np.sort(values)


def _numbers(codes: Array, kind: str, signed: bool) -> tuple[Array, float]:
    """What codes stand for, in units of the scale, and the relative error of the kernel's floats."""
    if kind == "8b":
        return dynamic_map(signed)[codes], 2.0**-23
    if signed:
        c = codes.view(np.int8).astype(np.float64)
        return np.sign(c) * power(abs(c) / 127, 2), 2.0**-21  # twice the bits of a quotient with two roundings
    return power(codes / 255, 4), 2.0**-20


def widened(codes: Array, scale: Array, kind: str, signed: bool) -> Interval:
    """The numbers that codes stand for."""
    y, error = _numbers(codes, kind, signed)
    s = np.repeat(scale, GROUPS[kind])[: codes.size]
    return Interval(y - abs(y) * error, y + abs(y) * error, F32) * Interval.exact(s, F32)


def _codes_between(low: Array, high: Array, kind: str, signed: bool, nearest: bool) -> tuple[Array, Array]:
    """The least and the largest code for numbers in units of the scale; unsigned ones may be 0 here."""
    if kind == "8b":
        table, error = dynamic_map(signed), 2.0**-21
        middle = (table[1:] + table[:-1]) / 2
        first = np.searchsorted(middle, low - abs(low) * error, "left")
        last = np.searchsorted(middle, high + abs(high) * error, "right")
        return first, last
    levels, root = (127, 1 / 2) if signed else (255, 1 / 4)
    at = [np.sign(y) * levels * power(abs(y), root) * _UNITS for y in (low, high)]
    first, last = np.ceil(at[0] - _SLACK), np.floor(at[1] + _SLACK)
    lift = (_UNITS // 2, _UNITS // 2) if nearest else (0, _UNITS - 1)
    return np.floor((first + lift[0]) / _UNITS), np.floor((last + lift[1]) / _UNITS)


def narrowed(x: Interval, kind: str, signed: bool, nearest: bool = False) -> dict[str, Interval]:
    """The scales and the codes that may be stored for numbers.

    A group that holds a NaN or an infinity is all NaN: its scale is NaN and its codes are 0.
    """
    n, length = np.size(x.low), GROUPS[kind]

    def grouped(values: Any) -> Array:
        values = np.broadcast_to(values, n)
        return np.concatenate([values, np.zeros(-n % length, values.dtype)]).reshape(-1, length)

    low, high, loose = grouped(x.low), grouped(x.high), grouped(x.loose)
    sure = ~loose & (np.isnan(low) | (low == np.inf) | (high == -np.inf))
    broken = sure.any(axis=1, keepdims=True)
    open_ = ~broken & (loose | np.isinf(low) | np.isinf(high)).any(axis=1, keepdims=True)
    low, high = np.where(broken | open_, 0, low), np.where(broken | open_, 0, high)
    least = np.maximum(np.maximum(low, -high), 0).max(axis=1, keepdims=True)
    most = np.maximum(abs(low), abs(high)).max(axis=1, keepdims=True)
    least, most = (np.where(x > 0, np.maximum(x, 2.0**-126), x) for x in (least, most))

    with np.errstate(all="ignore"):
        below = np.where(low >= 0, low / most, low / least)
        above = np.where(high >= 0, high / least, high / most)
    below, above = (np.where(most > 0, np.clip(np.nan_to_num(y), -1, 1), 0) for y in (below, above))
    first, last = _codes_between(below, above, kind, signed, nearest)
    if not signed and kind == "8":  # no x > 0 gets code 0
        first, last = np.where((low > 0) & (first == 0), 1, first), np.where((high > 0) & (last == 0), 1, last)
    first, last = (np.where(broken, 0, c).reshape(-1)[:n] for c in (first, last))
    undecided = np.broadcast_to(open_, low.shape).reshape(-1)[:n]
    nan = np.where(broken, np.nan, 0)
    scale = Interval((least + nan)[:, 0], (most + nan)[:, 0], F32, open_[:, 0])
    return {"codes": CodeInterval(first, last, undecided, signed and kind == "8"), "scale": scale}
