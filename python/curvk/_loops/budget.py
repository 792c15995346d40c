"""Kernel expansions with a budget; csrc/include/curvk/budget.h gives the formulas. All of it is float64."""

from __future__ import annotations

import numpy as np

from . import loop
from .online import dot
from .vmath import exp_of

_APPEND, _RBP, _FORGETRON, _BPAS, _PROJECTRON, _PROJECTRON_PLUS, _BOGD = range(7)


@loop
def _slope(loss, y, f):  # type: ignore[no-untyped-def]
    margin = 1.0 - y * f
    if loss == 0:
        return -2.0 * y * margin if margin > 0 else 0.0
    if loss == 1:
        return -y if margin > 0 else 0.0
    if loss == 2:
        return -y / (1.0 + exp_of(y * f))
    if loss == 3:
        return 2.0 * (f - y)
    return -y if y * f <= 0 else 0.0


@loop
def _add(a, x, y):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        y[i] += a * x[i]


@loop
def _multiply(a, x):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        x[i] *= a


@loop
def _largest_share(a, b, room):  # type: ignore[no-untyped-def]
    if a + b <= room:
        return 1.0
    under = b * b + 4.0 * a * room
    return 2.0 * room / (b + np.sqrt(under if under > 0 else 0.0))


@loop
def _random_slot(u, m):  # type: ignore[no-untyped-def]
    slot = int(u * m)
    return slot if slot < m else m - 1


@loop
def _put(t, slot, m, held, placed, rows, step, coef):  # type: ignore[no-untyped-def]
    """Puts row t into a slot; returns the slots in use and the length of the list."""
    at = held
    if slot < m:
        at = 0
        while at < held and placed[at] != slot:
            at += 1
    placed[at] = slot
    rows[at] = t
    for o in range(step.size):
        coef[o, slot] = step[o]
    return max(m, slot + 1), max(held, at + 1)


@loop
def _slopes(y, f, loss, lr, step):  # type: ignore[no-untyped-def]
    found = False
    for o in range(y.size):
        step[o] = -lr * _slope(loss, y[o], f[o])
        found = found or step[o] != 0
    return found


@loop
def _mistakes(y, f, step):  # type: ignore[no-untyped-def]
    count = 0
    for o in range(y.size):
        wrong = y[o] * f[o] <= 0
        step[o] = y[o] if wrong else 0.0
        count += 1 if wrong else 0
    return count


@loop
def _shrink(slot, k, coef, matrix, sums, m, step):  # type: ignore[no-untyped-def]
    """The Forgetron's shrinking before it drops a slot."""
    a, b = 0.0, 0.0
    for o in range(step.size):
        own = coef[o, slot]
        size = abs(own)
        there = dot(matrix[slot, :m], coef[o, :m]) + step[o] * k[slot]
        margin = -there if own < 0 else there
        a += size * size - 2.0 * size * margin
        b += 2.0 * size
    share = _largest_share(a, b, 0.46875 * sums[1] - sums[0])
    sums[0] += share * (a * share + b)
    for o in range(step.size):
        _multiply(share, coef[o, :m])
        step[o] *= share


@loop
def _replaced(k, own, coef, diagonal, m, costs):  # type: ignore[no-untyped-def]
    """The slot that BPA-S gives up."""
    costs[:m] = 0.0
    for o in range(coef.shape[0]):
        for s in range(m):
            costs[s] += coef[o, s] * coef[o, s]
    place = 0
    for s in range(m):
        costs[s] *= diagonal[s] - k[s] * k[s] / own
        if costs[s] < costs[place]:
            place = s
    return place


@loop
def _solve_forward(k, matrix, v, m):  # type: ignore[no-untyped-def]
    for s in range(m):
        v[s] = (k[s] - dot(matrix[s, :s], v[:s])) / matrix[s, s]


@loop
def _solve_back(matrix, d, m):  # type: ignore[no-untyped-def]
    for s in range(m - 1, -1, -1):
        d[s] /= matrix[s, s]
        _add(-d[s], matrix[s, :s], d[:s])


@loop
def _project_margins(y, f, coef, d, seen, rest, threshold, m):  # type: ignore[no-untyped-def]
    for o in range(y.size):
        margin = y[o] * f[o]
        lost = 1.0 - margin
        gain = lost - np.sqrt(rest) / threshold
        if not (margin > 0 and lost > 0 and gain > 0):
            continue
        size = lost / seen
        if 2.0 * gain / seen < size:
            size = 2.0 * gain / seen
        _add(size * y[o] if size < 1 else y[o], d[:m], coef[o, :m])


@loop
def _clip(coef, limit, m):  # type: ignore[no-untyped-def]
    for o in range(coef.shape[0]):
        most = 0.0
        for s in range(m):
            most = max(most, abs(coef[o, s]))
        if most > limit:
            _multiply(limit / most, coef[o, :m])


@loop
def _learn(K, G, y, u, f, coef, matrix, sums, placed, rows, counts, rule, loss, lr, C, threshold, decay, limit):  # type: ignore[no-untyped-def]
    c, capacity = coef.shape
    m, oldest, held = counts[0], counts[1], 0
    width = m
    k, d, step = np.zeros(capacity), np.zeros(capacity), np.zeros(c)
    done = y.shape[0]
    for t in range(y.shape[0]):
        k[:width] = K[t]
        for i in range(held):
            k[placed[i]] = G[t, rows[i]]
        off = 0.0
        for o in range(c):
            f[t, o] = dot(k[:m], coef[o, :m])
            off += f[t, o] - f[t, o]
        if off != 0.0:
            continue
        own, full = G[t, t], m == capacity
        if rule in (_APPEND, _RBP):
            if not _slopes(y[t], f[t], loss, lr, step):
                continue
            if full and rule == _APPEND:
                done = t
                break
            m, held = _put(t, _random_slot(u[t], m) if full else m, m, held, placed, rows, step, coef)
        elif rule == _FORGETRON:
            wrong = _mistakes(y[t], f[t], step)
            if wrong == 0:
                continue
            sums[1] += wrong
            slot = m
            if full:
                slot = oldest
                oldest = oldest + 1 if oldest + 1 < m else 0
                _shrink(slot, k, coef, matrix, sums, m, step)
            for s in range(m):
                matrix[slot, s] = matrix[s, slot] = k[s]
            matrix[slot, slot] = own
            m, held = _put(t, slot, m, held, placed, rows, step, coef)
        elif rule == _BPAS:
            found = False
            for o in range(c):
                margin = 1.0 - y[t, o] * f[t, o]
                size = margin / own if margin / own < C else C
                step[o] = size * y[t, o] if margin > 0 else 0.0
                found = found or margin > 0
            if not own > 0 or not found:
                continue
            slot = m
            if full:
                slot = _replaced(k, own, coef, matrix[0], m, d)
                for o in range(c):
                    step[o] += coef[o, slot] * k[slot] / own
            m, held = _put(t, slot, m, held, placed, rows, step, coef)
            matrix[0, slot] = own
        elif rule == _BOGD:
            found = _slopes(y[t], f[t], loss, lr, step)
            shrink = decay
            if found and full and m > 1:
                shrink *= m / (m - 1)
            for o in range(c):
                _multiply(shrink, coef[o, :m])
            if found:
                m, held = _put(t, _random_slot(u[t], m) if full else m, m, held, placed, rows, step, coef)
                _clip(coef, limit, m)
        else:
            wrong, close = _mistakes(y[t], f[t], step), False
            if rule == _PROJECTRON_PLUS:
                for o in range(c):
                    margin = y[t, o] * f[t, o]
                    close = close or (margin > 0 and margin < 1)
            if wrong == 0 and not close:
                continue
            _solve_forward(k, matrix, d, m)
            seen = dot(d[:m], d[:m])
            rest = own - seen if own - seen > 0 else 0.0
            joins = wrong > 0 and not full and rest > max(1e-10 * own, threshold * threshold)
            if joins:
                matrix[m, :m] = d[:m]
                matrix[m, m] = np.sqrt(rest)
            if close or not joins:
                _solve_back(matrix, d, m)
            if close and seen > 0:
                _project_margins(y[t], f[t], coef, d, seen, rest, threshold, m)
            if joins:
                m, held = _put(t, m, m, held, placed, rows, step, coef)
            elif wrong > 0:
                for o in range(c):
                    if step[o] != 0:
                        _add(step[o], d[:m], coef[o, :m])
    counts[0], counts[1], counts[2], counts[3] = m, oldest, done, held


def budget_learn(K, G, y, u, f, coef, matrix, sums, placed, rows, counts, n, c, capacity, *numbers):  # type: ignore[no-untyped-def]
    m = int(counts[0])
    matrix = np.zeros((1, 1)) if matrix is None else matrix
    _learn(
        K.reshape(-1)[: n * m].reshape(n, m),
        G.reshape(-1)[: n * n].reshape(n, n),
        y.reshape(-1)[: n * c].reshape(n, c),
        np.zeros(n) if u is None else u.reshape(-1),
        f.reshape(-1)[: n * c].reshape(n, c),
        coef.reshape(c, capacity),
        matrix.reshape(-1, capacity) if matrix.size > 1 else matrix.reshape(1, 1),
        sums,
        placed,
        rows,
        counts,
        *numbers,
    )


@loop
def _predict(K, coef, f):  # type: ignore[no-untyped-def]
    for t in range(K.shape[0]):
        for o in range(coef.shape[0]):
            f[t, o] = dot(K[t], coef[o, : K.shape[1]])


def budget_predict(K, coef, f, n, m, c, capacity):  # type: ignore[no-untyped-def]
    rows = K.reshape(-1)[: n * m].reshape(n, m)
    _predict(rows, coef.reshape(c, capacity), f.reshape(-1)[: n * c].reshape(n, c))
