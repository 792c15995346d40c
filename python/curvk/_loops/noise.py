"""The noise stream and what is done with it; curvk/noise.h gives the layout, csrc/core/philox.h the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import loop

_U64, _U32, _I32, _F32 = np.uint64, np.uint32, np.int32, np.float32
_LOW, _HALF = _U64(0xFFFFFFFF), _U64(32)
_M0, _M1, _W0, _W1 = _U64(0xD2511F53), _U64(0xCD9E8D57), _U64(0x9E3779B9), _U64(0xBB67AE85)
_ROUNDING = 1 << 28  # the tensor word's purpose for stochastic rounding
SPANS = np.array([32, 64, 1024, 32])  # elements that a tile of 32 words gives, by distribution


def _floats(*texts: str) -> tuple[Any, ...]:
    return tuple(_F32(float.fromhex(t)) for t in texts)


# Minimax coefficients, highest power first; philox.h says of what.
_LOG = _floats(
    *("0x1.9df954p-3", "-0x1.4c3cc8p-2", "0x1.614c1cp-2", "-0x1.978e38p-2"),
    *("0x1.ff623cp-2", "-0x1.5559dcp-1", "0x1.00007ap+0", "-0x1.fffffep+0"),
)
_LOG_FAST = _floats(
    "0x1.24b388p-2", "-0x1.c3b498p-2", "0x1.042126p-1", "-0x1.548feap-1", "0x1.ffe65cp-1", "-0x1.00004cp+1"
)
_SIN = _floats("-0x1.2d9302p-15", "0x1.465e92p-9", "-0x1.4abbbap-4", "0x1.921fb6p-1")
_COS = _floats("-0x1.4e5ed6p-12", "0x1.03af5cp-6", "-0x1.3bd392p-2", "0x1p+0")
_SIN_FAST = _floats("0x1.3f3df0p-9", "-0x1.4aa60ap-4", "0x1.921f8ep-1")
_COS_FAST = _floats("0x1.f7b422p-7", "-0x1.3ba49ap-2", "0x1.fffeb2p-1")
_LOG2_STEP, _ROOT_HALF = _floats("-0x1.62e43p+0", "0x1.6a09e6p-1")
_ROOT_HALF_BITS = int(_ROOT_HALF.view(_I32))
_REBASE = _I32((127 << 23) - _ROOT_HALF_BITS)
_TWO_32, _TWO_33, _TWO_31, _TWO_16, _TWO_17, _TWO_24 = (_F32(2.0**-e) for e in (32, 33, 31, 16, 17, 24))
_ONE, _ZERO = _F32(1), _F32(0)


@loop
def _block(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Philox4x32-10 of one counter; words and keys in the low halves of 64-bit integers."""
    for _ in range(10):
        first, second = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (second >> _HALF) ^ c1 ^ k0, second & _LOW, (first >> _HALF) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


philox_block = _block.function  # NumPy's operations take arrays of counters


def philox4x32(counter: np.ndarray[Any, Any], key: np.ndarray[Any, Any], out: np.ndarray[Any, Any], n: int) -> None:
    with np.errstate(over="ignore"):
        _philox(counter.view(_U64) & _LOW, key.view(_U64) & _LOW, out, n)


@loop
def _philox(counter, key, out, n):  # type: ignore[no-untyped-def]
    for i in range(n):
        words = _block(counter[4 * i], counter[4 * i + 1], counter[4 * i + 2], counter[4 * i + 3], key[0], key[1])
        for j in range(4):
            out[4 * i + j] = words[j]


@loop
def _words(seed, tile, tensor, draw, words):  # type: ignore[no-untyped-def]
    """The 32 words of a tile in the stream's order."""
    for b in range(8):
        block = _U64(tile * 8 + b)
        w0, w1, w2, w3 = _block(
            block & _LOW, block >> _HALF, _U64(tensor) & _LOW, _U64(draw) & _LOW, seed & _LOW, seed >> _HALF
        )
        words[2 * b], words[2 * b + 1], words[16 + 2 * b], words[17 + 2 * b] = w0, w1, w2, w3


@loop
def _pair(u, angle, log, sin, cos):  # type: ignore[no-untyped-def]
    """Box-Muller: two normals from u in (0, 1] and 32 bits of angle; see philox.h."""
    offset = _I32(_F32(u).view(_I32) + _REBASE)
    k = _F32((offset >> 23) - 127)
    m = _I32((offset & 0x7FFFFF) + _ROOT_HALF_BITS).view(_F32)
    f = m - _ONE
    series = log[0]
    for c in log[1:]:
        series = c + f * series
    radius = np.sqrt(k * _LOG2_STEP + f * series)
    x = _F32(_U32(angle << _U32(2)).view(_I32)) * _TWO_31
    square = x * x
    s = sin[0]
    for c in sin[1:]:
        s = c + square * s
    s = x * s
    c = cos[0]
    for a in cos[1:]:
        c = a + square * c
    if angle >> _U32(31):
        radius = -radius
    if (angle >> _U32(30)) & _U32(1):
        return radius * s, radius * c
    return radius * c, radius * s


@loop
def _tile(dist, seed, tile, tensor, draw, words, z):  # type: ignore[no-untyped-def]
    """The elements that one tile of words gives."""
    _words(seed, tile, tensor, draw, words)
    if dist == 0:
        for j in range(16):
            u = _F32(words[j]) * _TWO_32 + _TWO_33
            z[j], z[16 + j] = _pair(u, words[16 + j], _LOG, _SIN, _COS)
    elif dist == 1:
        for j in range(32):
            u = _F32(words[j] & _U32(0xFFFF)) * _TWO_16 + _TWO_17
            z[j], z[32 + j] = _pair(u, words[j] & _U32(0xFFFF0000), _LOG_FAST, _SIN_FAST, _COS_FAST)
    elif dist == 2:
        for j in range(32):
            for b in range(32):
                z[32 * j + b] = -_ONE if (words[j] >> _U32(b)) & _U32(1) else _ONE
    else:
        for j in range(32):
            z[j] = _F32(words[j] >> _U32(8)) * _TWO_24


def _seed(seed: int) -> Any:
    return np.uint64(seed & 0xFFFFFFFFFFFFFFFF)


def noise_fill_scalars(draw: int, seed: int, dist: int) -> tuple[Any, ...]:
    return draw, _seed(seed), dist, int(SPANS[dist])


@loop
def noise_fill(out, tensor, offset, draw, seed, dist, span):  # type: ignore[no-untyped-def]
    words, z = np.empty(32, _U32), np.empty(span, _F32)
    i = 0
    while i < out.size:
        tile, skip = (offset + i) // span, (offset + i) % span
        length = min(span - skip, out.size - i)
        _tile(dist, seed, tile, tensor, draw, words, z)
        for e in range(length):
            out[i + e] = z[skip + e]
        i += length


def _seeds_scalars(k: int, decay: float, threshold: float, seed: int, dist: int) -> tuple[Any, ...]:
    return k, 1.0 - decay, threshold, _seed(seed), dist, int(SPANS[dist])


axpy_seeds_scalars = noise_scratch_scalars = _seeds_scalars


@loop
def noise_scratch(p, out, tensor, offset, draws, coefs, k, shrink, threshold, seed, dist, span):  # type: ignore[no-untyped-def]
    words, z = np.empty(32, _U32), np.empty(span, _F32)
    total, four = np.empty(span, p.dtype), np.empty(span, p.dtype)
    i = 0
    while i < p.size:
        tile, skip = (offset + i) // span, (offset + i) % span
        length = min(span - skip, p.size - i)
        total[:] = -_ZERO  # adding it changes nothing, not even a zero's sign
        for first in range(0, k, 4):
            four[:] = -_ZERO
            for j in range(first, min(first + 4, k)):
                _tile(dist, seed, tile, tensor, draws[j], words, z)
                for e in range(length):
                    four[e] = four[e] + coefs[j] * z[skip + e]
            for e in range(length):
                total[e] = total[e] + four[e]
        for e in range(length):
            x = p[i + e]
            out[i + e] = x if abs(x) > threshold else x * shrink + total[e]
        i += length


@loop
def axpy_seeds(p, tensor, offset, draws, coefs, k, shrink, threshold, seed, dist, span):  # type: ignore[no-untyped-def]
    noise_scratch(p, p, tensor, offset, draws, coefs, k, shrink, threshold, seed, dist, span)


def noise_grid_scalars(
    quantum: float,
    scale: float,
    steps: int,
    coef: float,
    decay: float,
    update: int,
    draw: int,
    seed: int,
    dist: int,
) -> tuple[Any, ...]:
    return (
        *(quantum, scale / quantum, steps * quantum, coef / quantum, decay / quantum),
        *(bool(update), draw, _seed(seed), dist, int(SPANS[dist])),
    )


@loop
def noise_grid(p, tensor, offset, quantum, scale, move, coef, decay, update, draw, seed, dist, span):  # type: ignore[no-untyped-def]
    words, z, u = np.empty(32, _U32), np.empty(span, _F32), np.empty(32, _F32)
    last = -1  # tile of the uniforms at hand
    i = 0
    while i < p.size:
        tile, skip = (offset + i) // span, (offset + i) % span
        length = min(span - skip, p.size - i)
        _tile(dist, seed, tile, tensor, draw, words, z)
        for e in range(length):
            noise = z[skip + e]
            x = p[i + e] + np.rint(scale * noise) * move
            if update:
                at = offset + i + e
                if at // 32 != last:
                    last = at // 32
                    _tile(3, seed, last, tensor ^ _ROUNDING, draw, words, u)
                x = x + np.floor((coef * noise - decay * x) + u[at % 32]) * quantum
            p[i + e] = x
        i += length


DOT_CHUNK = 32768


def dot_seeds(
    v: list[np.ndarray[Any, Any]],
    tensor: np.ndarray[Any, Any],
    offset: np.ndarray[Any, Any],
    draws: np.ndarray[Any, Any],
    out: np.ndarray[Any, Any],
    k: int,
    seed: int,
    dist: int,
) -> None:
    stream = _seed(seed), dist, int(SPANS[dist])
    for j in range(k):
        total = 0.0
        for row, x in enumerate(v):
            for start in range(0, x.size, DOT_CHUNK):
                chunk = x[start : start + DOT_CHUNK]
                total += _dot_chunk(chunk, int(tensor[row]), int(offset[row]) + start, int(draws[j]), *stream)
        out[j] = total


@loop
def _dot_chunk(v, tensor, offset, draw, seed, dist, span):  # type: ignore[no-untyped-def]
    words, z, lane = np.empty(32, _U32), np.empty(span, _F32), np.zeros(16)
    i = 0
    while i < v.size:
        tile, skip = (offset + i) // span, (offset + i) % span
        length = min(span - skip, v.size - i)
        _tile(dist, seed, tile, tensor, draw, words, z)
        for e in range(length):
            lane[(i + e) % 16] += np.float64(v[i + e]) * np.float64(z[skip + e])
        i += length
    half = 8
    while half > 0:
        for j in range(half):
            lane[j] += lane[j + half]
        half //= 2
    return lane[0]
