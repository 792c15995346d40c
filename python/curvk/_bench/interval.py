"""Truth with its error class: intervals that hold every result of correctly rounded arithmetic.

A formula written over `Interval` is evaluated in a wider format; after each operation the bounds move out by half a
unit in the last place of the format under test. A kernel that rounds each operation of such a formula correctly ends
inside, in whatever order it associates products; one that loses digits anywhere, or forms 1 - beta in float32, ends
outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Precision:
    """A floating-point format: precision in bits, exponent of the smallest subnormal, largest finite number."""

    bits: int
    tiny: int
    largest: float
    wide: type[np.floating[Any]]  # the format that stands for exact arithmetic

    @property
    def unit(self) -> float:
        """Half a unit in the last place, relative; with what the wide format itself loses."""
        return 2.0**-self.bits + 2 * float(np.finfo(self.wide).eps)


F32 = Precision(24, -149, float(np.finfo(np.float32).max), np.float64)
F64 = Precision(53, -1074, float(np.finfo(np.float64).max), np.longdouble)
BF16 = Precision(8, -133, float.fromhex("0x1.fep127"), np.float64)
F16 = Precision(11, -24, 65504.0, np.float64)

ARITHMETIC = {"f32": F32, "f64": F64, "bf16": F32, "f16": F32}
STORAGE = {"f32": F32, "f64": F64, "bf16": BF16, "f16": F16}


class Interval:
    """Numbers between `low` and `high`; NaN bounds stand for NaN, and `loose` marks what the truth leaves open."""

    def __init__(self, low: Any, high: Any, precision: Precision, loose: Any = False) -> None:
        self.low, self.high, self.precision, self.loose = low, high, precision, loose

    @staticmethod
    def exact(x: Any, precision: Precision) -> Interval:
        wide = np.asarray(x).astype(precision.wide)
        return Interval(wide, wide, precision)

    def to(self, precision: Precision) -> Interval:
        """Rounded once to another format."""
        low, high = (np.asarray(x).astype(precision.wide) for x in (self.low, self.high))
        return Interval(low, high, precision, self.loose)._rounded()

    def _rounded(self) -> Interval:
        f = self.precision
        with np.errstate(all="ignore"):
            low = self.low - np.where(self.low == 0, 0, abs(self.low) * f.unit + f.wide(2) ** (f.tiny - 1))
            high = self.high + np.where(self.high == 0, 0, abs(self.high) * f.unit + f.wide(2) ** (f.tiny - 1))
            low, high = np.where(np.isinf(self.low), self.low, low), np.where(np.isinf(self.high), self.high, high)
            # Beyond the largest number a result is infinite; within a rounding of it, either.
            sure = f.wide(f.largest) * (1 + 2 * f.unit)
            high = np.where(high > f.largest, np.inf, np.where(high < -sure, -np.inf, np.maximum(high, -f.largest)))
            low = np.where(low < -f.largest, -np.inf, np.where(low > sure, np.inf, np.minimum(low, f.largest)))
        return Interval(low, high, f, self.loose)

    def _combine(self, other: Any, f: Any, undefined: Any = False) -> Interval:
        other = other if isinstance(other, Interval) else Interval.exact(other, self.precision)
        a, b = self, other.to(self.precision) if other.precision != self.precision else other
        with np.errstate(all="ignore"):
            corners = [f(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
            nan = [np.isnan(c) for c in corners]
            never = np.isnan(a.low) | np.isnan(b.low)
            point = (a.low == a.high) & (b.low == b.high)
            # A NaN at a corner that is not one at all of them, or any form of 0/0 or 0 inf inside, decides nothing.
            some = (nan[0] | nan[1] | nan[2] | nan[3] | undefined) & ~never & ~point
            low = np.where(some, -np.inf, np.minimum.reduce(corners))
            high = np.where(some, np.inf, np.maximum.reduce(corners))
        rounded = Interval(low, high, self.precision)._rounded()
        rounded.loose = some | ((a.loose | b.loose) & ~never)
        return rounded

    def _holds_zero(self) -> Any:
        return (self.low <= 0) & (self.high >= 0)

    def _holds_infinity(self) -> Any:
        return np.isinf(self.low) | np.isinf(self.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low, self.precision, self.loose)

    def __add__(self, other: Any) -> Interval:
        return self._combine(other, np.add)

    def __sub__(self, other: Any) -> Interval:
        return self._combine(other, np.subtract)

    def __rsub__(self, other: Any) -> Interval:
        return Interval.exact(other, self.precision) - self

    def __mul__(self, other: Any) -> Interval:
        b = other if isinstance(other, Interval) else Interval.exact(other, self.precision)
        mixed = (self._holds_zero() & b._holds_infinity()) | (b._holds_zero() & self._holds_infinity())
        return self._combine(b, np.multiply, mixed)

    def __truediv__(self, other: Any) -> Interval:
        b = other if isinstance(other, Interval) else Interval.exact(other, self.precision)
        quotient = self._combine(b, np.divide, b._holds_zero() | (self._holds_infinity() & b._holds_infinity()))
        quotient.loose = quotient.loose | (b._holds_zero() & ~np.isnan(self.low))  # the sign of a zero is not tracked
        return quotient

    def __rtruediv__(self, other: Any) -> Interval:
        return Interval.exact(other, self.precision) / self

    def sqrt(self) -> Interval:
        with np.errstate(all="ignore"):
            open_ = (self.low < 0) & (self.high >= 0)
            low = np.sqrt(np.where(open_, 0, self.low))
            rounded = Interval(low, np.sqrt(self.high), self.precision)._rounded()
        rounded.loose = self.loose | open_
        return rounded

    def maximum(self, other: Interval) -> Interval:
        """The larger; NaN if either is."""
        low, high = np.maximum(self.low, other.low), np.maximum(self.high, other.high)
        return Interval(low, high, self.precision, self.loose | other.loose)

    def misses(self, result: Array) -> Array:
        """Where a result is not among the numbers the interval holds."""
        x = np.asarray(result).astype(self.precision.wide)
        inside = ((self.low <= x) & (x <= self.high)) | (np.isnan(x) & np.isnan(self.low))
        return np.asarray(~(inside | self.loose))
