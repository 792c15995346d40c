"""Online learning in a feature space; csrc/include/curvk/online.h gives the formulas. All of it is float64."""

from __future__ import annotations

import numpy as np

from . import loop
from .vmath import exp_of

_GRADIENT, _NEWTON, _PUBLISHED, _KONS, _RIDGE = range(5)


@loop
def dot(x, y):  # type: ignore[no-untyped-def]
    """The sum in 16 lanes, folded in the fixed tree."""
    lane = np.zeros(16)
    for i in range(x.size):
        lane[i % 16] += x[i] * y[i]
    half = 8
    while half > 0:
        for k in range(half):
            lane[k] += lane[k + half]
        half //= 2
    return lane[0]


@loop
def _solve(inverse, phi, u):  # type: ignore[no-untyped-def]
    u[:] = 0.0
    for j in range(phi.size):
        for i in range(phi.size):
            u[i] += phi[j] * inverse[j, i]


@loop
def _take_in(a, inverse, u, s, t):  # type: ignore[no-untyped-def]
    growth = 1.0 + a * s
    factor = np.sqrt(a / growth)
    for i in range(u.size):
        t[i] = factor * u[i]
    for i in range(u.size):
        for j in range(u.size):
            inverse[i, j] += -t[i] * t[j]
    for i in range(u.size):
        u[i] /= growth
    return s / growth


@loop
def _beyond(z, clip):  # type: ignore[no-untyped-def]
    if z > clip:
        return z - clip
    return z + clip if z < -clip else 0.0


@loop
def _slope(loss, y, f):  # type: ignore[no-untyped-def]
    margin = 1.0 - y * f
    if loss == 0:
        return -2.0 * y * margin if margin > 0 else 0.0
    if loss == 1:
        return -y if margin > 0 else 0.0
    if loss == 2:
        return -y / (1.0 + exp_of(y * f))
    return 2.0 * (f - y)


@loop
def _predict(w, inverse, phi, u, rule, clip):  # type: ignore[no-untyped-def]
    f = dot(w, phi)
    excess = _beyond(f, clip)
    if rule != _KONS or excess == 0:
        return f
    _solve(inverse, phi, u)
    s = dot(phi, u)
    if not s > 0:
        return f
    for i in range(u.size):
        w[i] += (-excess / s) * u[i]
    return f - excess


@loop
def _learn(w, inverse, phi, g, u, t, rule, lr, clip, curvature):  # type: ignore[no-untyped-def]
    if rule == _GRADIENT:
        for i in range(w.size):
            w[i] += (-lr * g) * phi[i]
        return
    _solve(inverse, phi, u)
    s = dot(phi, u)
    if not s > 0:
        return
    step = -lr * g
    if rule == _RIDGE:
        s = _take_in(1.0, inverse, u, s, t)
        step = -lr * (0.5 * g)
    elif rule != _PUBLISHED:
        s = _take_in(0.5 * curvature * g * g, inverse, u, s, t)
    if rule in (_NEWTON, _PUBLISHED):
        step -= _beyond(dot(w, phi) + step * s, clip) / (s + 1e-4 if rule == _PUBLISHED else s)
    for i in range(w.size):
        w[i] += step * u[i]
    if rule == _PUBLISHED:
        _take_in(lr * g * (lr * g), inverse, u, s, t)


@loop
def _walk(phi, y, f, w, inverse, counts, n, k, c, loss, rule, lr, clip, curvature, until, pending):  # type: ignore[no-untyped-def]
    u, t, g = np.empty(k), np.empty(k), np.empty(c)
    row, lossy = 0, 0
    while row < n:
        given = pending and row == 0
        some = False
        for o in range(c):
            if not given:
                f[row, o] = _predict(w[o], inverse[o], phi[row], u, rule, clip)
            g[o] = _slope(loss, y[row, o], f[row, o])
            if g[o] - g[o] != 0:
                g[o] = 0.0
            some = some or g[o] != 0
        if some:
            if not given:
                lossy += 1
                if lossy == until:
                    break
            for o in range(c):
                if g[o] != 0:
                    _learn(w[o], inverse[o], phi[row], g[o], u, t, rule, lr, clip, curvature)
        row += 1
    counts[0], counts[1] = row, lossy


def online_learn(phi, y, f, w, inverse, counts, n, k, c, *scalars):  # type: ignore[no-untyped-def]
    A = np.empty((c, 0, 0)) if inverse is None else inverse.reshape(c, k, k)  # the rule gradient never looks at it
    _walk(phi.reshape(n, k), y.reshape(n, c), f.reshape(n, c), w.reshape(c, k), A, counts, n, k, c, *scalars)
