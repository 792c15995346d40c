"""SV-CMA-ES; csrc/include/curvk/stein.h gives the formulas. A particle's row is computed from that row alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import loop
from .vmath import exp_of

Array = np.ndarray[Any, Any]


def _numbers(like: Array, *values: float) -> list[Any]:
    with np.errstate(over="ignore"):
        return [like.dtype.type(v) for v in values]


@loop
def _sum_squares(x, zero):  # type: ignore[no-untyped-def]
    total = zero
    for i in range(x.size):
        total += x[i] * x[i]
    return total


# ---- the factor -----------------------------------------------------------------------------------------------------


@loop
def _gauge(mean, one, two, four, quarter, half, infinity):  # type: ignore[no-untyped-def]
    a = one
    if not (mean > 0 and mean < infinity):
        return a
    while mean >= 4:
        mean = mean * quarter
        a = a * two
    while mean < 1:
        mean = mean * four
        a = a * half
    return a


@loop
def _factor(w, B, C, sigma, p_c, D, A, condition, renormalise, zero, one, two, four, quarter, half, infinity, size):  # type: ignore[no-untyped-def]
    n, d = w.shape
    for i in range(n):
        inverse = one
        if renormalise:
            trace = zero
            for k in range(d):
                trace += w[i, k]
            a = _gauge(trace / size, one, two, four, quarter, half, infinity)
            inverse = one / a
            if a != one:
                sigma[i] *= a
                for r in range(d):
                    p_c[i, r] *= inverse
                    for k in range(d):
                        C[i, r, k] = C[i, r, k] * inverse * inverse
        low, high = w[i, 0] * inverse * inverse, w[i, d - 1] * inverse * inverse
        missing = high / condition - low
        lift = missing if missing > 0 else zero
        for k in range(d):
            if lift > 0:
                C[i, k, k] += lift
            length = np.sqrt(w[i, k] * inverse * inverse + lift)
            D[i, k] = length
            for r in range(d):
                A[i, k, r] = length * B[i, r, k]


def stein_factor(
    w: Array,
    B: Array,
    C: Array,
    sigma: Array,
    p_c: Array,
    D: Array,
    A: Array,
    n: int,
    d: int,
    condition: float,
    renormalise: int,
) -> None:
    flat, square = (n, d), (n, d, d)
    matrices = [w.reshape(flat), B.reshape(square), C.reshape(square), sigma, p_c.reshape(flat)]
    limit, *rest = _numbers(w, condition, 0.0, 1.0, 2.0, 4.0, 0.25, 0.5, np.inf, d)
    _factor(*matrices, D.reshape(flat), A.reshape(square), limit, bool(renormalise), *rest)


# ---- the samples ----------------------------------------------------------------------------------------------------


@loop
def _sample(x, sigma, A, z, y, candidates):  # type: ignore[no-untyped-def]
    n, popsize, d = z.shape
    for i in range(n):
        for k in range(popsize):
            for r in range(d):
                y[i, k, r] = 0
            for c in range(d):
                for r in range(d):
                    y[i, k, r] += z[i, k, c] * A[i, c, r]
            for r in range(d):
                candidates[i, k, r] = x[i, r] + sigma[i] * y[i, k, r]


def stein_sample(
    x: Array, sigma: Array, A: Array, z: Array, y: Array, candidates: Array, n: int, d: int, popsize: int
) -> None:
    each = (n, popsize, d)
    _sample(x.reshape(n, d), sigma, A.reshape(n, d, d), *(a.reshape(each) for a in (z, y, candidates)))


# ---- selection ------------------------------------------------------------------------------------------------------


@loop
def _before(values, a, b):  # type: ignore[no-untyped-def]
    x, y = values[a], values[b]
    if x > y:
        return True
    if x < y:
        return False
    lost, other_lost = x != x, y != y
    return a < b if lost == other_lost else other_lost


@loop
def _shift(y, values, weights, order, shift, mu):  # type: ignore[no-untyped-def]
    n, popsize, d = y.shape
    for i in range(n):
        own = order[i]
        for k in range(popsize):
            own[k] = k
        gap = 1
        while gap < popsize // 3:
            gap = 3 * gap + 1
        while gap > 0:
            for k in range(gap, popsize):
                moved, at = own[k], k
                while at >= gap and _before(values[i], moved, own[at - gap]):
                    own[at] = own[at - gap]
                    at -= gap
                own[at] = moved
            gap //= 3
        for r in range(d):
            shift[i, r] = 0
        best = values[i, own[0]]
        if best != best:
            for k in range(popsize):
                own[k] = -1
        else:
            for k in range(min(mu, popsize)):
                for r in range(d):
                    shift[i, r] += weights[k] * y[i, own[k], r]


def stein_shift(
    y: Array, values: Array, weights: Array, order: Array, shift: Array, n: int, d: int, popsize: int, mu: int
) -> None:
    per = n, popsize
    _shift(y.reshape(*per, d), values.reshape(per), weights, order.reshape(per), shift.reshape(n, d), mu)


# ---- repulsion ------------------------------------------------------------------------------------------------------


@loop
def _center(x, centred, columns):  # type: ignore[no-untyped-def]
    n, d = x.shape
    for r in range(d):
        total = np.float64(0)
        for i in range(n):
            total += np.float64(x[i, r])
        mean = x.dtype.type(total / n) if n > 0 else x.dtype.type(0)
        for i in range(n):
            centred[i, r] = x[i, r] - mean
            columns[i, r] = centred[i, r]


def stein_center(x: Array, centred: Array, columns: Array, n: int, d: int, c: int) -> None:
    _center(x.reshape(n, d), centred.reshape(n, d), columns.reshape(n, c))


@loop
def _repel(centred, products, repulsion, weight):  # type: ignore[no-untyped-def]
    n, d = centred.shape
    for i in range(n):
        for r in range(d):
            repulsion[i, r] = weight * (centred[i, r] * products[i, d] - products[i, r])


def stein_repel(centred: Array, products: Array, repulsion: Array, n: int, d: int, c: int, weight: float) -> None:
    flat = n, d
    _repel(centred.reshape(flat), products.reshape(n, c), repulsion.reshape(flat), *_numbers(centred, weight))


# ---- adaptation -----------------------------------------------------------------------------------------------------


@loop
def _adapt(  # type: ignore[no-untyped-def]
    y, z, order, weights, shift, drive, repulsion, B, D, A, x, sigma, C, p_sigma, p_c, work, in_paths, keep_sigma,
    gain_sigma, keep_c, gain_c, c_1, c_mu, decay, stalled_decay, rate, inv_chi, limit, sigma_min, sigma_max, zero, one,
    size,
):  # fmt: skip
    n, popsize, d = y.shape
    for i in range(n):
        if order[i, 0] < 0:
            continue
        path, turned, v = work[i, :d], work[i, d : 2 * d], work[i, 2 * d :]
        finite = True
        for r in range(d):
            own = shift[i, r]
            if drive is not None:
                own = drive[i, r] / sigma[i]
            whole = own
            if repulsion is not None:
                whole = own + repulsion[i, r] / sigma[i]
            turned[r] = x[i, r] + sigma[i] * whole
            path[r] = whole if in_paths else own
            finite = finite and turned[r] - turned[r] == 0
        if not finite:
            continue
        for r in range(d):
            x[i, r] = turned[r]
        for k in range(d):
            turned[k] = 0
        for r in range(d):
            for k in range(d):
                turned[k] += path[r] * B[i, r, k]
        for r in range(d):
            p_sigma[i, r] *= keep_sigma
        for k in range(d):
            gain = gain_sigma * (turned[k] / D[i, k] / D[i, k])
            for r in range(d):
                p_sigma[i, r] += gain * A[i, k, r]
        norm = np.sqrt(_sum_squares(p_sigma[i], zero))
        stalled = not (norm < limit)
        for r in range(d):
            p_c[i, r] *= keep_c
            if not stalled:
                p_c[i, r] += gain_c * path[r]
        for k in range(popsize):
            v[k] = c_mu * weights[k]
            if weights[k] < 0:
                length = _sum_squares(z[i, order[i, k]], zero)
                v[k] = v[k] * size / length if length > 0 else zero
        kept = stalled_decay if stalled else decay
        for r in range(d):
            own = c_1 * p_c[i, r]
            for c in range(r + 1):
                C[i, r, c] = kept * C[i, r, c] + own * p_c[i, c]
            for k in range(popsize):
                gain = v[k] * y[i, order[i, k], r]
                for c in range(r + 1):
                    C[i, r, c] += gain * y[i, order[i, k], c]
        for r in range(d):
            for c in range(r + 1, d):
                C[i, r, c] = C[i, c, r]
        wide = sigma[i] * exp_of(rate * (norm * inv_chi - one))
        bounded = sigma_min if wide < sigma_min else wide
        sigma[i] = sigma_max if bounded > sigma_max else bounded


def stein_adapt(
    y: Array,
    z: Array,
    order: Array,
    weights: Array,
    shift: Array,
    drive: Array | None,
    repulsion: Array | None,
    B: Array,
    D: Array,
    A: Array,
    x: Array,
    sigma: Array,
    C: Array,
    p_sigma: Array,
    p_c: Array,
    work: Array,
    n: int,
    d: int,
    popsize: int,
    mu_eff: float,
    c_sigma: float,
    d_sigma: float,
    c_c: float,
    c_1: float,
    c_mu: float,
    chi: float,
    limit: float,
    sigma_min: float,
    sigma_max: float,
    in_paths: int,
) -> None:
    total = 0.0
    for weight in weights.tolist():
        total += weight
    decay = 1.0 - c_1 - c_mu * total
    numbers = _numbers(
        *(y, 1.0 - c_sigma, math.sqrt(c_sigma * (2.0 - c_sigma) * mu_eff), 1.0 - c_c),
        *(math.sqrt(c_c * (2.0 - c_c) * mu_eff), c_1, c_mu, decay, decay + c_1 * c_c * (2.0 - c_c)),
        *(c_sigma / d_sigma, 1.0 / chi, limit, sigma_min, sigma_max, 0.0, 1.0, d),
    )

    def rows(a: Array | None) -> Array | None:
        return None if a is None else a.reshape(n, d)

    def squares(a: Array) -> Array:
        return a.reshape(n, d, d)

    each = n, popsize, d
    _adapt(
        *(y.reshape(each), z.reshape(each), order.reshape(n, popsize), weights, rows(shift), rows(drive)),
        *(rows(repulsion), squares(B), rows(D), squares(A), rows(x), sigma, squares(C), rows(p_sigma), rows(p_c)),
        *(work.reshape(n, 2 * d + popsize), bool(in_paths), *numbers),
    )
