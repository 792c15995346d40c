"""Sketches and updates of factorisations; csrc/include/curvk/sketch.h gives the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import loop
from .noise import _seed, _words

Array = np.ndarray[Any, Any]
_ONE, _HALF_WORD, _ODD = np.uint64(1), np.uint64(31), np.uint32(1)


# ---- sjlt -----------------------------------------------------------------------------------------------------------


@loop
def _bucket(word, width):  # type: ignore[no-untyped-def]
    return np.int64(((np.uint64(word) >> _ONE) * np.uint64(width)) >> _HALF_WORD)


@loop
def _sjlt(A, out, width, blocks, seed, tensor, first_row, scale):  # type: ignore[no-untyped-def]
    n, d = A.shape
    words = np.empty(32, np.uint32)
    for b in range(blocks):
        tile = -1
        for i in range(n):
            row = first_row + i
            if row // 32 != tile:
                tile = row // 32
                _words(seed, tile, tensor, b, words)
            word = words[row % 32]
            place = b * width + _bucket(word, width)
            coef = -scale if word & _ODD else scale
            for j in range(d):
                out[place, j] += coef * np.float64(A[i, j])


def sjlt(A: Array, out: Array, n: int, d: int, s: int, blocks: int, seed: int, tensor: int, first_row: int) -> None:
    scale = np.float64(1.0 / math.sqrt(blocks))
    _sjlt(A.reshape(n, d), out.reshape(s, d), s // blocks, blocks, _seed(seed), tensor, first_row, scale)


@loop
def _sjlt_rows(out, width, blocks, seed, tensor, first_row, scale):  # type: ignore[no-untyped-def]
    words = np.empty(32, np.uint32)
    out[:] = 0
    for b in range(blocks):
        tile = -1
        for i in range(len(out)):
            row = first_row + i
            if row // 32 != tile:
                tile = row // 32
                _words(seed, tile, tensor, b, words)
            word = words[row % 32]
            out[i, b * width + _bucket(word, width)] = -scale if word & _ODD else scale


def sjlt_rows(out: Array, n: int, s: int, blocks: int, seed: int, tensor: int, first_row: int) -> None:
    scale = np.float64(1.0 / math.sqrt(blocks))
    _sjlt_rows(out.reshape(n, s), s // blocks, blocks, _seed(seed), tensor, first_row, scale)


# ---- eigh_update ----------------------------------------------------------------------------------------------------

_UNIT, _NEAR, _WIDER = 2.0**-53, 2.0**-30, 1 + 2.0**-40
_FAR = 16.0  # a pole without weight


@loop
def _exponent(x):  # type: ignore[no-untyped-def]
    """Within [-1021, 1021], so that its power of two and the inverse are normal."""
    e = ((np.float64(x).view(np.int64) >> 52) & 0x7FF) - 1023
    return min(max(e, -1021), 1021)


@loop
def _power_of_two(e):  # type: ignore[no-untyped-def]
    return np.int64((e + 1023) << 52).view(np.float64)


@loop
def _invert(x):  # type: ignore[no-untyped-def]
    """The inverses of four numbers by one division."""
    first, second = x[0] * x[1], x[2] * x[3]
    both = 1.0 / (first * second)
    of_first, of_second = both * second, both * first
    x[0], x[1] = of_first * x[1], of_first * x[0]
    x[2], x[3] = of_second * x[3], of_second * x[2]


@loop
def _evaluate(pole, w, count, low, start, at, sums):  # type: ignore[no-untyped-def]
    """The secular function at start + at, and in `sums` its terms and slopes below and above."""
    gap = np.empty(4)
    sums[:] = 0
    for j in range(0, count, 4):
        for t in range(4):
            gap[t] = (pole[j + t] - start) - at
        _invert(gap)
        for t in range(4):
            term = w[j + t] * gap[t]
            side = 0 if j + t <= low else 2
            sums[side] += term
            sums[side + 1] += term * gap[t]
    return 1.0 + sums[2] + sums[0]


@loop
def _between(a, b, c, flip):  # type: ignore[no-untyped-def]
    """The zero of c x^2 - a x + b between the two poles or, where `flip` is -1, behind them."""
    turned, root = flip * a, np.sqrt(abs(a * a - 4.0 * b * c))
    if turned <= 0.0:
        return flip * ((turned - root) / (2.0 * c))
    return flip * ((2.0 * b) / (turned + root))


@loop
def _zero(pole, w, count, i, total):  # type: ignore[no-untyped-def]
    """Zero number i of the secular function, as a pole and the distance from it."""
    sums = np.empty(4)
    end = i == count - 1
    low = min(i, count - 2)
    half = 0.5 * (total if end else pole[low + 1] - pole[low])
    flip = -1.0 if end else 1.0
    f = _evaluate(pole, w, count, low, pole[low + 1] if end else pole[low], half, sums)
    before = f >= 0.0
    start = pole[low] if before and not end else pole[low + 1]
    low_at, high_at = pole[low] - start, pole[low + 1] - start
    at = half if before or end else -half
    if before:
        lower, upper = half * 0.0, half
    else:
        lower, upper = at, (total if end else half * 0.0)
    rest = f - w[low] / (low_at - at) - w[low + 1] / (high_at - at)
    a, b = rest * (low_at + high_at) + (w[low] + w[low + 1]), w[low] * high_at + w[low + 1] * low_at
    after = _between(a, b, rest, flip)
    at = after if lower < after and after < upper else 0.5 * (lower + upper)
    for _ in range(100):
        f = _evaluate(pole, w, count, low, start, at, sums)
        if abs(f) <= count * _UNIT * (1.0 + abs(sums[0]) + abs(sums[2])):
            break
        if f < 0.0:
            lower = at
        else:
            upper = at
        x, y, slope = low_at - at, high_at - at, sums[1] + sums[3]
        c = f - x * sums[1] - y * sums[3]
        move = _between((x + y) * f - x * y * slope, x * y * f, c, flip)
        if f * move > 0.0:
            move = -f / slope
        after = at + move
        inside = lower < after and after < upper
        near = inside and abs(move) <= _NEAR * abs(at)
        at = after if inside else 0.5 * (lower + upper)
        if near:
            break
    return start, at


@loop
def _sort(keys, order):  # type: ignore[no-untyped-def]
    for i in range(1, order.size):
        own, at = order[i], i
        while at > 0 and keys[order[at - 1]] > keys[own]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = own


@loop
def _vectors(pole, w, count, sign):  # type: ignore[no-untyped-def]
    """Zeros of the secular function as start + at, and the eigenvectors; sign holds those of z."""
    padded = (count + 3) // 4 * 4
    start, at, ratio, gap = np.empty(count), np.empty(count), np.zeros(padded), np.empty(4)
    U = np.zeros((padded, count))
    total = w[0] * 0.0
    for j in range(count):
        total += w[j]
    start[0], at[0] = pole[0], w[0]
    if count > 1:
        for i in range(count):
            start[i], at[i] = _zero(pole, w, count, i, total * _WIDER)
    for i in range(count):
        product = 1.0
        for j in range(0, count, 4):
            over = under = 1.0
            for t in range(j, min(j + 4, count)):
                over *= (start[t] - pole[i]) + at[t]
                if t < count - 1:
                    under *= (pole[t] if t < i else pole[t + 1]) - pole[i]
            product *= over / under
        ratio[i] = np.sqrt(abs(product)) * sign[i]
    for j in range(count):
        square = pole[0] * 0.0
        for i in range(0, count, 4):
            for t in range(4):
                gap[t] = (start[j] - pole[i + t]) + at[j]
            _invert(gap)
            for t in range(4):
                U[i + t, j] = ratio[i + t] * gap[t]
                square += U[i + t, j] * U[i + t, j]
        scale = sign[j] / np.sqrt(square)
        for i in range(count):
            U[i, j] *= scale
    return start, at, U


@loop
def _eigh_update(z, d, V, rho):  # type: ignore[no-untyped-def]
    m, k = V.shape
    most_d = most_z = finite = square = d[0] * 0.0
    for i in range(k):
        finite += (d[i] - d[i]) + (z[i] - z[i])
        most_d, most_z = max(most_d, abs(d[i])), max(most_z, abs(z[i]))
    up = _power_of_two(-_exponent(most_z))
    for i in range(k):
        square += (z[i] * up) * (z[i] * up)
    weight = abs(rho) / up * square / up
    finite += weight - weight
    if finite != 0.0:
        d[:] = np.nan
        V[:] = np.nan
        return
    norm, sign = np.sqrt(square), -1.0 if rho < 0.0 else 1.0
    down = _power_of_two(-_exponent(max(most_d, weight)))
    rho, tolerance = weight * down, 8.0 * _UNIT * (down * max(most_d, weight))
    key, order, sequence = np.empty(k), np.arange(k), np.arange(k)
    if sign < 0.0:
        order[:], sequence[:] = order[::-1].copy(), sequence[::-1].copy()
    for i in range(k):
        key[i] = sign * (d[i] * down)
    _sort(key, order)
    pole, x = np.empty(k), np.empty(k)
    for i in range(k):
        pole[i] = key[order[i]]
        x[i] = z[order[i]] * up / norm if norm > 0.0 else norm

    kept, stays = np.empty(k, np.int64), np.ones(k, np.bool_)
    count, last = 0, -1
    for i in range(k):
        if rho * abs(x[i]) <= tolerance:
            continue
        if last >= 0:
            length2 = x[i] * x[i] + x[last] * x[last]
            if abs((pole[i] - pole[last]) * x[i] * x[last]) <= tolerance * length2:
                length = -np.sqrt(length2) if x[i] < 0.0 else np.sqrt(length2)
                c, s = x[i] / length, x[last] / length
                low = pole[last] * (c * c) + pole[i] * (s * s)
                pole[i] = pole[last] * (s * s) + pole[i] * (c * c)
                pole[last] = low
                x[i] = length
                for r in range(m):
                    p, q = V[r, order[last]], V[r, order[i]]
                    V[r, order[last]], V[r, order[i]] = c * p - s * q, c * q + s * p
            else:
                kept[count] = last
                count += 1
        last = i
    if last >= 0:
        kept[count] = last
        count += 1

    padded = (count + 3) // 4 * 4
    poles, w, signs = np.full(padded, _FAR), np.zeros(padded), np.ones(count)
    for i in range(count):
        at = kept[i]
        poles[i], w[i] = pole[at], rho * x[at] * x[at]
        stays[at] = False
        if x[at] < 0.0:
            signs[i] = -1.0
    U = np.zeros((0, 0))
    for i in range(k):
        key[i] = sign * pole[i]
    if count > 0:
        start, tau, U = _vectors(poles, w, count, signs)
        for i in range(count):
            key[kept[i]] = sign * (start[i] + tau[i])
    _sort(key, sequence)
    after, row, x = np.empty(k, np.int64), np.empty(k), np.empty(count)
    for i in range(k):
        after[sequence[i]] = i
        d[i] = key[sequence[i]] / down
    for r in range(m):
        for i in range(count):
            x[i] = V[r, order[kept[i]]]
            row[after[kept[i]]] = 0
        for i in range(count):
            for j in range(count):
                row[after[kept[j]]] += x[i] * U[i, j]
        for i in range(k):
            if stays[i]:
                row[after[i]] = V[r, order[i]]
        V[r] = row


def eigh_update(z: Array, d: Array, V: Array, m: int, k: int, rho: float) -> None:
    _eigh_update(z, d, V.reshape(m, k), np.float64(rho))


# ---- qr_update ------------------------------------------------------------------------------------------------------


@loop
def _dot(x, y):  # type: ignore[no-untyped-def]
    lane = np.zeros(16)
    for i in range(x.size):
        lane[i % 16] += x[i] * y[i]
    half = 8
    while half > 0:
        for j in range(half):
            lane[j] += lane[j + half]
        half //= 2
    return lane[0]


@loop
def _project(Q, x, w):  # type: ignore[no-untyped-def]
    """Takes Q w out of x, with w = Q^T x; returns the length of what is left."""
    w[:] = 0
    for i in range(x.size):
        for j in range(w.size):
            w[j] += Q[i, j] * x[i]
    for i in range(x.size):
        x[i] -= _dot(Q[i], w)
    return np.sqrt(_dot(x, x))


@loop
def _givens(a, b):  # type: ignore[no-untyped-def]
    """Cosine and sine of the rotation that brings (a, b) to (length, 0), and the length."""
    if b == 0.0:
        return a * 0.0 + 1.0, a * 0.0, a
    if abs(a) >= abs(b):
        tangent = b / a
        length = np.sqrt(1.0 + tangent * tangent)
        c = 1.0 / length
        return c, tangent * c, a * length
    tangent = a / b
    length = np.sqrt(1.0 + tangent * tangent)
    s = 1.0 / length
    return tangent * s, s, b * length


@loop
def _turn(x, y, c, s):  # type: ignore[no-untyped-def]
    for j in range(x.size):
        a, b = x[j], y[j]
        x[j] = c * a + s * b
        y[j] = c * b - s * a


@loop
def _qr_update(u, v, Q, R):  # type: ignore[no-untyped-def]
    m, n = Q.shape
    x, w, again = np.empty(m), np.empty(n), np.empty(n)
    largest = finite = v[0] * 0.0
    for i in range(m):
        finite += u[i] - u[i]
        largest = max(largest, abs(u[i]))
    lift = _power_of_two(-_exponent(largest))
    for i in range(m):
        x[i] = u[i] * lift
    before = _project(Q, x, w)
    for j in range(n):
        finite += (w[j] - w[j]) + (v[j] - v[j])
        for i in range(j + 1):
            finite += R[i, j] - R[i, j]
    if finite != 0.0:
        Q[:] = np.nan
        for i in range(n):
            R[i, i:] = np.nan
        return
    if largest == 0.0:
        return
    after = _project(Q, x, again)
    apart = after > 0.5 * before
    for i in range(m):
        x[i] = x[i] / after if apart else after * 0.0
    corner = after if apart else after * 0.0
    wide, beside = np.zeros((n + 1, n)), np.empty(m)
    for i in range(n):
        w[i] += again[i]
        wide[i, i:] = R[i, i:]
    up, down = np.empty((n, 2)), np.empty((n, 2))
    for i in range(n - 1, -1, -1):
        up[i, 0], up[i, 1], corner = _givens(w[i], corner)
        _turn(wide[i, i:], wide[i + 1, i:], up[i, 0], up[i, 1])
    for j in range(n):
        wide[0, j] += corner * (v[j] / lift)
    for i in range(n):
        down[i, 0], down[i, 1], wide[i, i] = _givens(wide[i, i], wide[i + 1, i])
        if wide[i, i] < 0.0:
            down[i, 0], down[i, 1], wide[i, i] = -down[i, 0], -down[i, 1], -wide[i, i]
        _turn(wide[i, i + 1 :], wide[i + 1, i + 1 :], down[i, 0], down[i, 1])
        R[i, i:] = wide[i, i:]
        if i > 0:
            R[i, i - 1] = 0
    for i in range(m):
        beside[i] = x[i]
        for j in range(n - 1, -1, -1):
            a, b, c, s = Q[i, j], beside[i], up[j, 0], up[j, 1]
            beside[i], Q[i, j] = c * a + s * b, c * b - s * a
        for j in range(n):
            a, b, c, s = beside[i], Q[i, j], down[j, 0], down[j, 1]
            Q[i, j], beside[i] = c * a + s * b, c * b - s * a


def qr_update(u: Array, v: Array, Q: Array, R: Array, m: int, n: int) -> None:
    _qr_update(u, v, Q.reshape(m, n), R.reshape(n, n))
