"""What is stored in fewer bytes, by NumPy; csrc/include/curvk/sweep.h gives the formulas, csrc/core/codes.h the order.

Arrays are flat. A state of a kind has `load`, which gives some of its elements as numbers, and `store`, which takes
them back. Parts begin at multiples of 256, so that no group is torn.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import numpy as np

from .half import decode, encode, narrow_bf16, widen_bf16
from .noise import philox_block

Array = np.ndarray[Any, Any]
_U64, _U32, _I32, _F32 = np.uint64, np.uint32, np.int32, np.float32
GROUP = 32  # elements that share a word of noise
_WEYL = (np.arange(GROUP, dtype=_U64) * _U64(0x9E3779B9)).astype(_U32)
_MAGNITUDE, _INFINITE, _QUIET_NAN = _U32(0x7FFFFFFF), _U32(0x7F800000), _U32(0x7FC00000)
_ONE, _SIGN = _U32(0x3F800000), _U32(0x80000000)
_LEAST = _F32(2.0**-126)
_ROUNDER = _F32(12582912)  # 1.5 2^23: a sum with it has the nearest integer in its low bits
_NEAREST, STOCHASTIC, _KAHAN, _SPLIT = range(4)


def group_words(seed: int, tensor: int, draw: int, first: int, groups: int) -> tuple[Array, ...]:
    """What the elements of groups round with: of each word 0..3 of a group 32, also where its array ends before."""
    block = np.arange(first, first + groups, dtype=_U64)
    low, high = _U64(0xFFFFFFFF), _U64(32)
    words = philox_block(
        *(block & low, block >> high, _U64(tensor & 0xFFFFFFFF), _U64(draw & 0xFFFFFFFF)),
        *(_U64(seed & 0xFFFFFFFF), _U64((seed >> 32) & 0xFFFFFFFF)),
    )
    return tuple((w.astype(_U32)[:, None] + _WEYL).reshape(-1) for w in words)


def _blocks(x: Array, length: int) -> Array:
    """One group a row, the last filled up with zeros."""
    return np.concatenate([x, np.zeros(-x.size % length, x.dtype)]).reshape(-1, length)


# ---- the kinds of states --------------------------------------------------------------------------------------------


class State(Protocol):
    draws: bool  # whether store rounds stochastically

    def load(self, part: slice) -> Array:
        """The elements as float32, or as they are where that is how they are stored."""

    def store(self, part: slice, x: Array, word: Array | None) -> None:
        """Takes the elements back; `word` is what they round with, None: to nearest."""


class Whole:
    draws: bool = False

    def __init__(self, x: Array) -> None:
        self.x = x

    def load(self, part: slice) -> Array:
        return self.x[part]

    def store(self, part: slice, x: Array, word: Array | None) -> None:
        self.x[part] = x


class Short:
    draws: bool = True

    def __init__(self, x: Array) -> None:
        self.x = x

    def load(self, part: slice) -> Array:
        return widen_bf16(self.x[part])

    def store(self, part: slice, x: Array, word: Array | None) -> None:
        self.x[part] = narrow_bf16(x) if word is None else stochastic_bf16(x, word)


def _scales(part: slice, length: int) -> slice:
    return slice(part.start // length, -(-part.stop // length))


def _largest(x: Array) -> tuple[Array, Array]:
    """The scale of each group, and whether it is finite. The bits of a NaN are above infinity's, so one shows."""
    top = (x.view(_U32) & _MAGNITUDE).max(axis=1, initial=_U32(0))[:, None]
    top = np.where(top > 0, np.maximum(top, _LEAST.view(_U32)), top)
    return top.view(_F32), top < _INFINITE


class _Scaled:
    """Codes beside a scale for each group."""

    length: int

    def __init__(self, codes: Array, scale: Array, is_signed: bool) -> None:
        self.codes, self.scale, self.is_signed = codes, scale, is_signed

    def load(self, part: slice) -> Array:
        codes = _blocks(self.codes[part], self.length)
        x: Array = self.scale[_scales(part, self.length)][:, None] * self._units(codes)
        return x.reshape(-1)[: part.stop - part.start]

    def store(self, part: slice, x: Array, word: Array | None) -> None:
        n = x.size
        x = _blocks(x, self.length)
        scale, finite = _largest(x)
        codes = self._codes(x, scale, word)
        self.scale[_scales(part, self.length)] = np.where(finite, scale, _QUIET_NAN.view(_F32))[:, 0]
        self.codes[part] = np.where(finite, codes, 0).astype(np.uint8).reshape(-1)[:n]

    def _units(self, codes: Array) -> Array:
        raise NotImplementedError

    def _codes(self, x: Array, scale: Array, word: Array | None) -> Array:
        raise NotImplementedError


class Coded(_Scaled):
    """curvk's codes. A code is 512 units; roots are taken by halving a float's bits, linearly between powers of two."""

    draws: bool = True
    length = GROUP

    def _units(self, codes: Array) -> Array:
        if self.is_signed:
            y = (codes.view(np.int8).astype(_F32) * (_F32(1) / _F32(127))).view(_U32)
            square = np.maximum(((y << _U32(1)) - _ONE).view(_I32), _I32(0)).view(_U32)  # negative for code 0
            return (square | (y & _SIGN)).view(_F32)
        y = (codes.astype(_F32) * (_F32(1) / _F32(255))).view(_U32)
        return np.where(codes > 0, (y << _U32(2)) - _U32(3 * int(_ONE)), _U32(0)).view(_F32)

    def _codes(self, x: Array, scale: Array, word: Array | None) -> Array:
        t = (x * (_F32(1) / np.maximum(scale, _LEAST))).view(_U32)
        if self.is_signed:
            y = ((t & _MAGNITUDE) >> _U32(1)) + _U32(int(_ONE) // 2)
            return self._rounded((y | (t & _SIGN)).view(_F32) * _F32(127 * 512), word)
        y = ((t & _MAGNITUDE) >> _U32(2)) + _U32(int(_ONE) // 4 * 3)
        c = self._rounded(y.view(_F32) * _F32(255 * 512), word)
        return np.where((x > 0) & (c == 0), _U32(1), c)

    def _rounded(self, units: Array, word: Array | None) -> Array:
        lift = _U32(256) if word is None else word.reshape(units.shape) >> _U32(23)
        return (((units + _ROUNDER).view(_U32) + lift) >> _U32(9)) & _U32(0xFF)


@cache
def _dynamic_map(is_signed: bool) -> tuple[Array, Array, Array, Array]:
    """Values by code, and by decade: where it begins, cells per unit, the least number that goes to it."""
    value, base, rate, edge = np.zeros(256, _F32), np.zeros(7, _F32), np.zeros(7, _F32), np.zeros(8, _F32)
    zero = 127 if is_signed else 0
    last = 0.0
    for d in range(7):
        cells = (1 if is_signed else 2) << d
        first = cells - (0 if is_signed else 1)
        unit = float(f"1e{d - 6}")
        low, width = 0.1 * unit, 0.9 * unit / cells
        for j in range(cells):
            value[zero + first + j] = low + width * (j + 0.5)
            if is_signed:
                value[zero - first - j] = -value[zero + first + j]
        base[d], rate[d], edge[d] = low, 1 / width, (last + low + width / 2) / 2
        last = low + width * (cells - 0.5)
    value[255], edge[7] = 1, (last + 1) / 2
    return value, base, rate, edge


class Mapped(_Scaled):
    """The codes of bitsandbytes, to nearest."""

    draws: bool = False
    length = 256

    def _units(self, codes: Array) -> Array:
        units: Array = _dynamic_map(self.is_signed)[0][codes]
        return units

    def _codes(self, x: Array, scale: Array, word: Array | None) -> Array:
        _, base, rate, edge = _dynamic_map(self.is_signed)
        negative = (x < 0) if self.is_signed else np.zeros(x.shape, bool)
        t = abs(x) * (_F32(1) / np.maximum(scale, _LEAST))
        decade = np.maximum(np.searchsorted(edge[:7], t, side="right") - 1, 0)
        many = (1 if self.is_signed else 2) << decade
        cell = np.minimum(((t - base[decade]) * rate[decade]).astype(_I32), many - 1)
        steps = np.where(t >= edge[0], many - (0 if self.is_signed else 1) + cell, 0)
        zero = 127 if self.is_signed else 0
        steps = np.where((t >= edge[7]) & ~negative, 255 - zero, steps)
        return zero + np.where(negative, -steps, steps)


# ---- parameters -----------------------------------------------------------------------------------------------------


def stochastic_bf16(x: Array, word: Array) -> Array:
    word = word[: x.size]
    u = x.view(_U32)
    rounded = (u + (word >> _U32(16))) >> _U32(16)
    return np.where(np.isnan(x), (u >> _U32(16)) | _U32(0x40), rounded).astype(np.uint16)


def stochastic_f16(x: Array, word: Array) -> Array:
    word = word[: x.size]
    u = x.view(_U32)
    magnitude, sign = u & _MAGNITUDE, (u >> _U32(16)) & _U32(0x8000)
    normal = (magnitude - _U32(127 - 15 << 23) + (word >> _U32(19))) >> _U32(13)
    subnormal = magnitude < _U32(0x38800000)  # 2^-14
    units = np.where(subnormal, magnitude, _U32(0)).view(_F32) * _F32(2.0**24)
    tiny = (units + (word >> _U32(18)).astype(_F32) * _F32(2.0**-14)).astype(_I32).astype(_U32)
    special = np.where(np.isnan(x), _U32(0x7E00) | ((magnitude >> _U32(13)) & _U32(0x1FF)), _U32(0x7C00))
    finite = np.where(subnormal, tiny, normal)
    bits = sign | np.where(magnitude >= _U32(0x47800000), special, finite)  # 2^16
    return bits.astype(np.uint16).view(np.float16)


def _format(p: Array) -> str:
    return "f16" if p.dtype == np.float16 else "bf16"


def can_round(p: Array, low: Array | None, rounding: int) -> bool:
    """Whether the rounding suits the format and has what it needs."""
    if rounding == _NEAREST:
        return True
    if p.itemsize > 2 or (rounding >= _KAHAN and low is None):
        return False
    return rounding != _SPLIT or p.dtype == np.uint16


def load_params(p: Array, low: Array | None, rounding: int) -> Array:
    """Parameters as numbers of their own; float16 arrays are that, uint16 arrays bfloat16."""
    if p.itemsize > 2:
        return p.copy()
    if rounding == _SPLIT:
        assert low is not None
        return ((p.astype(_U32) << _U32(16)) + low.view(np.int16).astype(_I32).view(_U32)).view(_F32)
    x = decode(p, _format(p))
    if rounding == _KAHAN:
        assert low is not None
        x = x + decode(low, _format(p))
    return x


def store_params(x: Array, p: Array, low: Array | None, rounding: int, word: Array | None) -> None:
    if p.itemsize > 2:
        p[:] = x
        return
    fmt = _format(p)
    if rounding == STOCHASTIC:
        assert word is not None
        p[:] = (stochastic_f16 if fmt == "f16" else stochastic_bf16)(x, word)
    elif rounding == _SPLIT:
        assert low is not None
        u = np.where(np.isnan(x), _QUIET_NAN, x.view(_U32))
        p[:] = ((u + _U32(0x8000)) >> _U32(16)).astype(np.uint16)
        low[:] = u.astype(np.uint16)
    else:
        high = encode(x, fmt)
        p[:] = high
        if rounding == _KAHAN:
            assert low is not None
            back = decode(high, fmt)
            low[:] = encode(np.where(np.isfinite(back), x - back, _F32(0)), fmt)
