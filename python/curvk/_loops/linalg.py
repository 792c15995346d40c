"""Jacobi's method for one matrix after another: what csrc/kernels/linalg.cpp does in a lane, operation for operation.

A lane that has converged goes on taking the rotation c = 1, s = 0 there, which changes nothing but the sign of zeros;
the last steps add 0, after which no zero is negative.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import loop

_SWEEPS = 40


class _Constants(NamedTuple):
    """The numbers of `Jacobi` in linalg.cpp, in the type of the arithmetic."""

    zero: Any
    one: Any
    nan: Any
    eps2: Any
    negligible2: Any
    vanishes: Any
    vanishes2: Any
    far: Any
    near: Any
    lift: Any
    drop: Any
    target: Any  # 2^exponent


def _constants(real: Any, eps: int, exponent: int, vanishes: int, negligible: int, far: int, lift: int) -> _Constants:
    powers = (2 * eps, 2 * negligible, vanishes, 2 * vanishes, far, -far, lift, -lift, exponent)
    return _Constants(real(0), real(1), real(math.nan), *(real(2.0**e) for e in powers))


_CONSTANTS = {
    "float32": _constants(np.float32, -23, 24, -18, -22, 60, 80),
    "float64": _constants(np.float64, -52, 200, 60, 96, 400, 600),
}


@loop
def _factors(largest, c):  # type: ignore[no-untyped-def]
    """Powers of two, so that first * second * largest lies in [target, 2 target), and their inverses."""
    first = c.lift if largest < c.near else c.drop if largest > c.far else c.one
    back = c.drop if largest < c.near else c.lift if largest > c.far else c.one
    lifted = largest * first
    if not lifted > c.zero:
        return first, c.one, c.one, back
    power = c.one  # the power of two below lifted
    two = c.one + c.one
    while power > lifted:
        power /= two
    while power * two <= lifted:
        power *= two
    return first, c.target / power, power / c.target, back


@loop
def _largest(x, c):  # type: ignore[no-untyped-def]
    most = c.zero
    for e in range(x.size):
        if abs(x[e]) > most:
            most = abs(x[e])
    return most


@loop
def _finite(x, c):  # type: ignore[no-untyped-def]
    total = c.zero
    for e in range(x.size):
        total += x[e] - x[e]
    return total == c.zero


@loop
def _find(pp, qq, pq, c):  # type: ignore[no-untyped-def]
    """Cosine and sine that make pq vanish and put the larger diagonal element first, and the new diagonal."""
    difference, twice = qq - pp, pq + pq
    h = abs(difference) + np.sqrt(difference * difference + twice * twice)
    n = np.sqrt(h * h + twice * twice)
    inverse = c.one / (n * h)
    cosine, sine, shift = h * (h * inverse), twice * (h * inverse), twice * (n * inverse) * pq
    if difference < c.zero:
        sine, shift = -sine, -shift
    if abs(qq) > abs(pp):
        return -sine, cosine, qq + shift, pp - shift
    return cosine, sine, pp - shift, qq + shift


@loop
def _turn(x, y, cosine, sine):  # type: ignore[no-untyped-def]
    for e in range(x.size):
        p, q = x[e], y[e]
        x[e] = cosine * p - sine * q
        y[e] = sine * p + cosine * q


@loop
def _dot(x, y, c):  # type: ignore[no-untyped-def]
    total = c.zero
    for e in range(x.size):
        total += x[e] * y[e]
    return total


@loop
def _sign(x, c):  # type: ignore[no-untyped-def]
    """The sign of the first of a vector's largest components."""
    most, value = c.zero, c.zero
    for e in range(x.size):
        if abs(x[e]) > most:
            most, value = abs(x[e]), x[e]
    return -c.one if value < c.zero else c.one


@loop
def _divide(x, divisor, c):  # type: ignore[no-untyped-def]
    for e in range(x.size):
        x[e] = x[e] / divisor + c.zero


@loop
def _places(values, falls, places):  # type: ignore[no-untyped-def]
    """The place of each value in ascending order, or in descending order if it falls."""
    for k in range(values.size):
        places[k] = 0
        for j in range(values.size):
            mine, other = values[k], values[j]
            if falls:
                mine, other = other, mine
            if other < mine or (j < k and other == mine):
                places[k] += 1


@loop
def _eigh(A, w, V, n, d, c):  # type: ignore[no-untyped-def]
    a, v = np.empty((d, d), A.dtype), np.empty((d, d), A.dtype)
    values, places = np.empty(d, A.dtype), np.empty(d, np.int64)
    for matrix in range(n):
        for i in range(d):
            for j in range(d):
                a[i, j] = A[(matrix * d + i) * d + j] if j <= i else c.zero
                v[i, j] = c.one if i == j else c.zero
        if not _finite(a.reshape(-1), c):
            w[matrix * d : (matrix + 1) * d] = c.nan
            V[matrix * d * d : (matrix + 1) * d * d] = c.nan
            continue
        first, second, back_second, back_first = _factors(_largest(a.reshape(-1), c), c)
        for i in range(d):
            for j in range(d):
                a[i, j] = a[i, j] * first * second
        for _ in range(_SWEEPS):
            rotated = False
            for total in range(1, 2 * d - 2):  # not row by row, which would round otherwise
                for p in range(max(0, total - d + 1), (total + 1) // 2):
                    q = total - p
                    pp, qq, pq = a[p, p], a[q, q], a[q, p]
                    if not (pq * pq > c.negligible2 and pq * pq > c.eps2 * abs(pp * qq)):
                        continue
                    rotated = True
                    cosine, sine, a[p, p], a[q, q] = _find(pp, qq, pq, c)
                    a[q, p] = c.zero
                    _turn(a[p, :p], a[q, :p], cosine, sine)
                    _turn(a[p + 1 : q, p], a[q, p + 1 : q], cosine, sine)
                    _turn(a[q + 1 :, p], a[q + 1 :, q], cosine, sine)
                    _turn(v[p], v[q], cosine, sine)
            if not rotated:
                break
        for k in range(d):
            values[k] = a[k, k] * back_second * back_first + c.zero
            _divide(v[k], _sign(v[k], c) * np.sqrt(_dot(v[k], v[k], c)), c)
        _places(values, False, places)
        for k in range(d):
            w[matrix * d + places[k]] = values[k]
            for i in range(d):
                V[(matrix * d + i) * d + places[k]] = v[k, i]


def eigh_batch(A: Any, w: Any, V: Any, n: int, d: int) -> None:
    _eigh(A.reshape(-1), w.reshape(-1), V.reshape(-1), n, d, _CONSTANTS[A.dtype.name])


@loop
def _complete(u, null, c):  # type: ignore[no-untyped-def]
    """Gives the rows of u that are null a unit vector orthogonal to all others."""
    cols, rows = u.shape
    for k in range(cols):
        if not null[k]:
            continue
        most, unit = -c.one, 0
        for i in range(rows):
            left = c.one
            for j in range(cols):
                if not null[j]:
                    left -= u[j, i] * u[j, i]
            if left > most:
                most, unit = left, i
        for i in range(rows):
            u[k, i] = c.one if i == unit else c.zero
        for _ in range(2):
            for j in range(cols):
                if null[j]:
                    continue
                total = _dot(u[j], u[k], c)
                for i in range(rows):
                    u[k, i] -= total * u[j, i]
        norm = np.sqrt(_dot(u[k], u[k], c))
        for i in range(rows):
            u[k, i] /= norm
        null[k] = False


@loop
def _svd(A, U, s, Vt, n, p, d, tolerance2, c):  # type: ignore[no-untyped-def]
    wide = p < d
    rows, cols = max(p, d), min(p, d)
    x, v = np.empty((cols, rows), A.dtype), np.empty((cols, cols), A.dtype)
    square, values = np.empty(cols, A.dtype), np.empty(cols, A.dtype)
    null, places = np.empty(cols, np.bool_), np.empty(cols, np.int64)
    for matrix in range(n):
        for k in range(cols):
            for i in range(rows):
                x[k, i] = A[matrix * p * d + (k * rows + i if wide else i * cols + k)]
            for i in range(cols):
                v[k, i] = c.one if i == k else c.zero
        if not _finite(x.reshape(-1), c):
            U[matrix * p * cols : (matrix + 1) * p * cols] = c.nan
            s[matrix * cols : (matrix + 1) * cols] = c.nan
            Vt[matrix * cols * d : (matrix + 1) * cols * d] = c.nan
            continue
        first, second, back_second, back_first = _factors(_largest(x.reshape(-1), c), c)
        for k in range(cols):
            for i in range(rows):
                x[k, i] = x[k, i] * first * second
        for _ in range(_SWEEPS):
            rotated = False
            for k in range(cols):
                square[k] = _dot(x[k], x[k], c)
            for k in range(cols):
                for j in range(k + 1, cols):
                    pp, qq, pq = square[k], square[j], _dot(x[k], x[j], c)
                    may = pp > c.vanishes2 and qq > c.vanishes2
                    if not (may and pq * pq > tolerance2 * abs(pp * qq)):
                        continue
                    rotated = True
                    cosine, sine, square[k], square[j] = _find(pp, qq, pq, c)
                    _turn(x[k], x[j], cosine, sine)
                    _turn(v[k], v[j], cosine, sine)
            if not rotated:
                break
        nulls = False
        for k in range(cols):
            stretch = np.sqrt(_dot(v[k], v[k], c))
            up, more, back_more, back_up = _factors(_largest(x[k], c), c)
            for i in range(rows):
                x[k, i] = x[k, i] * up * more
            length = np.sqrt(_dot(x[k], x[k], c))
            scaled = length * back_more * back_up / stretch
            values[k] = scaled * back_second * back_first
            null[k] = scaled < c.vanishes + c.vanishes
            nulls = nulls or null[k]
            _divide(x[k], length if length > c.zero else c.one, c)
            _divide(v[k], stretch, c)
        if nulls:
            _complete(x, null, c)
        _places(values, True, places)
        for k in range(cols):
            sign = _sign(v[k] if wide else x[k], c)
            _divide(x[k], sign, c)
            _divide(v[k], sign, c)
            left, right = (v[k], x[k]) if wide else (x[k], v[k])
            to = places[k]
            s[matrix * cols + to] = values[k]
            for i in range(p):
                U[(matrix * p + i) * cols + to] = left[i]
            for i in range(d):
                Vt[(matrix * cols + to) * d + i] = right[i]


def svd_batch(A: Any, U: Any, s: Any, Vt: Any, n: int, p: int, d: int) -> None:
    c = _CONSTANTS[A.dtype.name]
    rows = A.dtype.type(max(p, d))
    eps = np.sqrt(c.eps2)
    _svd(A.reshape(-1), U.reshape(-1), s.reshape(-1), Vt.reshape(-1), n, p, d, rows * eps * eps, c)
