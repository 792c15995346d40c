"""Gram products by their definition: distances by differences, sums in double. csrc/kernels/gram.cpp has the fast way.

The layout of packed centers is shared with it. Results agree within the error class of curvk/gram.h, not to the bit.
"""

from __future__ import annotations

import math

import numpy as np

from . import loop


@loop
def _panel(itemsize):  # type: ignore[no-untyped-def]
    return 64 // itemsize


@loop
def gram_pack(z, packed, norms, center, m, d, centred):  # type: ignore[no-untyped-def]
    width = _panel(z.itemsize)
    for k in range(d):
        total = 0.0
        count = 0
        if centred:
            for j in range(m):
                v = z[j * d + k]
                if v - v == 0:
                    total += np.float64(v)
                    count += 1
        mean = total / count if count else 0.0
        center[k] = mean if mean - mean == 0 else 0.0
    for j in range(norms.size):
        square = 0.0
        for k in range(d):
            at = (j // width * d + k) * width + j % width
            if j < m:
                packed[at] = z[j * d + k] - center[k]
            else:
                packed[at] = 0
            square += np.float64(packed[at]) * np.float64(packed[at])
        norms[j] = square


@loop
def _value(s, kernel, scale, shape, degree):  # type: ignore[no-untyped-def]
    """The kernel of s = x . z (linear, polynomial) or q = |x - z|^2, as numbered in curvk/gram.h."""
    if kernel == 0 or kernel == 9:
        return s
    if kernel == 1:
        value = 1.0
        for _ in range(degree):
            value *= scale * s + shape
        return value
    if kernel == 2:
        return math.exp(-scale * s)
    if kernel == 6:
        return math.exp(-shape * math.log1p(scale * s))
    if kernel == 7:
        return 1.0 / math.sqrt(1.0 + scale * s)
    if kernel == 8:
        return math.exp(-scale * s**shape)
    distance = math.sqrt(s)
    if kernel == 10:
        return distance
    r = scale * distance
    decay = math.exp(-r)
    if kernel == 3 or decay == 0:
        return decay
    return (1.0 + r) * decay if kernel == 4 else (1.0 + r + r * r / 3.0) * decay


@loop
def gram_matvec(  # type: ignore[no-untyped-def]
    x, packed, norms, center, w, out, keep, n, m, d, c, kernel, scale, shape, degree, accumulate
):
    width = _panel(x.itemsize)
    sums = np.zeros(c, np.float64)
    for i in range(n):
        sums[:] = 0
        for j in range(m):
            s = 0.0
            for k in range(d):
                a = np.float64(x[i * d + k]) - np.float64(center[k])
                b = np.float64(packed[(j // width * d + k) * width + j % width])
                s += a * b if kernel < 2 else (a - b) * (a - b)
            value = _value(s, kernel, scale, shape, degree)
            if keep is not None:
                keep[i * m + j] = value
            if w is not None:
                for o in range(c):
                    sums[o] += value * w[j * c + o]
        if out is not None:
            for o in range(c):
                out[i * c + o] = out[i * c + o] + sums[o] if accumulate else sums[o]


@loop
def gram_select(  # type: ignore[no-untyped-def]
    x, packed, norms, center, found, counts, n, m, d, first, low, high, capacity
):
    width = _panel(x.itemsize)
    low, high = x.dtype.type(low), x.dtype.type(high)
    for i in range(n):
        counts[4 * i : 4 * i + 4] = 0
        for j in range(first + i + 1, m):
            total = 0.0
            for k in range(d):
                e = (
                    np.float64(x[i * d + k])
                    - np.float64(center[k])
                    - np.float64(packed[(j // width * d + k) * width + j % width])
                )
                total += e * e
            q = x.dtype.type(total)
            if low < q < high:
                at = counts[4 * i + 2] - counts[4 * i + 1]
                if at < capacity:
                    found[i * capacity + at] = q
            counts[4 * i] += q < low
            counts[4 * i + 1] += q <= low
            counts[4 * i + 2] += q < high
            counts[4 * i + 3] += q <= high
