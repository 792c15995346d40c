"""Vector math: exp and log as csrc/core/lanes.h computes them, operation for operation; the reasons are there.

`exp_of` and `log_of` take one float32 or float64; the loops of other families call them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import Loop, loop

_LOG2E = "0x1.71547652b82fep+0"  # rounding it again to float32 gives lanes.h's constant, as for sqrt(1/2)
_ROOT_HALF = "0x1.6a09e667f3bcdp-1"


def _numbers(real: Any, *texts: str) -> tuple[Any, ...]:
    return tuple(real(float.fromhex(t)) for t in texts)


def _make_exp(real: Any, integer: Any, bias: int, least: int, most: int, ln2: Any, q: Any) -> Loop:
    """The exponential for one type; `least` and `most` are the bounds beyond which it is 0 and infinity."""
    digits = int(np.finfo(real).nmant)
    low_bound, high_bound, one, rounder = real(least), real(most), real(1), real(3 << (digits - 1))
    log2e, ln2_high, ln2_low = _numbers(real, _LOG2E, *ln2)
    *lower, last = _numbers(real, *q)
    coefficients = tuple(reversed(lower))
    unbias = integer(int(rounder.view(integer)) - 2 * bias)

    @loop
    def exp_of(x):  # type: ignore[no-untyped-def]
        above = low_bound if x < low_bound else x
        bounded = high_bound if above > high_bound else above
        shifted = bounded * log2e + rounder
        k = shifted - rounder
        high = bounded - k * ln2_high
        low = k * ln2_low
        r = high - low
        series = last
        for c in coefficients:
            series = c + r * series
        tail = r * r * series - low
        one_high = one + high
        value = one_high + ((high - (one_high - one)) + tail)
        both = integer(real(shifted).view(integer) - unbias)
        half = integer(both >> 1)
        return value * integer(half << digits).view(real) * integer((both - half) << digits).view(real)

    return exp_of


def _make_log(real: Any, integer: Any, bias: int, ln2: Any, q: Any) -> Loop:
    """The logarithm for one type."""
    digits = int(np.finfo(real).nmant)
    lift = digits + 2
    least_normal, scale = np.finfo(real).smallest_normal, real(1 << lift)
    zero, half, one, two, infinity, nan = (real(c) for c in (0, 0.5, 1, 2, np.inf, np.nan))
    ln2_high, ln2_low = _numbers(real, *ln2)
    root_half = int(_numbers(real, _ROOT_HALF)[0].view(integer))
    rebias = integer((bias << digits) - root_half)
    significand = integer((1 << digits) - 1)
    *lower, last = _numbers(real, *q)
    coefficients = tuple(reversed(lower))

    @loop
    def log_of(x):  # type: ignore[no-untyped-def]
        subnormal = x < least_normal
        normal = x * scale if subnormal else x
        offset = integer(real(normal).view(integer) + rebias)
        m = integer((offset & significand) + root_half).view(real)
        k = real((offset >> digits) - (bias + lift if subnormal else bias))
        f = m - one
        s = f / (two + f)
        z = s * s
        square = half * f * f
        series = last
        for c in coefficients:
            series = c + z * series
        tail = square - s * (square + z * series)
        whole = k * ln2_high
        total = whole + f
        value = total + ((f - (total - whole)) - (tail - k * ln2_low))
        special = -infinity if x == zero else x if x > zero else nan
        return value if x > zero and x < infinity else special

    return log_of


_LN2_32 = "0x1.62e4p-1", "0x1.7f7d1cp-20"
_LN2_64 = "0x1.62e42fefa4p-1", "-0x1.8432a1b0e2634p-43"

_exp32 = _make_exp(
    np.float32,
    np.int32,
    127,
    -105,
    89,
    _LN2_32,
    ("0x1.fffffcp-2", "0x1.555492p-3", "0x1.5558fp-5", "0x1.1239c6p-7", "0x1.6a2492p-10"),
)
_exp64 = _make_exp(
    np.float64,
    np.int64,
    1023,
    -746,
    710,
    _LN2_64,
    (
        *("0x1.0000000000009p-1", "0x1.55555555554fap-3", "0x1.55555555508eap-5", "0x1.1111111127b4p-7"),
        *("0x1.6c16c18415a39p-10", "0x1.a01a012a69b07p-13", "0x1.a0199a3dda405p-16", "0x1.71df256bdeb0bp-19"),
        *("0x1.28ad48ec71ebbp-22", "0x1.ad7ef155de4b7p-26"),
    ),
)
_log32 = _make_log(np.float32, np.int32, 127, _LN2_32, ("0x1.55557ap-1", "0x1.995e9cp-2", "0x1.31e662p-2"))
_log64 = _make_log(
    np.float64,
    np.int64,
    1023,
    _LN2_64,
    (
        *("0x1.5555555555593p-1", "0x1.999999997fb4p-2", "0x1.2492494216bbbp-2", "0x1.c71c51e8beae1p-3"),
        *("0x1.7466460133713p-3", "0x1.39a0f99d77fbdp-3", "0x1.2f0d5de4c4a2ap-3"),
    ),
)


@loop
def exp_of(x):  # type: ignore[no-untyped-def]
    if isinstance(x, np.float32):
        return _exp32(x)
    return _exp64(x)


@loop
def log_of(x):  # type: ignore[no-untyped-def]
    if isinstance(x, np.float32):
        return _log32(x)
    return _log64(x)


@loop
def exp(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = exp_of(x[i])


@loop
def log(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = log_of(x[i])
