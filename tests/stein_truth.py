"""Kernels, gradients by differences and SVGD's direction as explicit double loops."""

from __future__ import annotations

import math

import numpy as np

H = 0.8
KERNELS = {
    "gaussian": ({}, lambda x, y: math.exp(-sq(x, y) / (2 * H * H))),
    "laplacian": ({}, lambda x, y: math.exp(-math.sqrt(sq(x, y)) / H)),
    "matern32": ({}, lambda x, y: (1 + t(3, x, y)) * math.exp(-t(3, x, y))),
    "matern52": ({}, lambda x, y: (1 + t(5, x, y) + t(5, x, y) ** 2 / 3) * math.exp(-t(5, x, y))),
    "rational_quadratic": ({"alpha": 0.7}, lambda x, y: (1 + sq(x, y) / (2 * 0.7 * H * H)) ** -0.7),
    "imq": ({}, lambda x, y: (1 + sq(x, y) / H**2) ** -0.5),
    "exponent": ({"gamma": 1.5}, lambda x, y: math.exp(-(sq(x, y) ** 0.75) / H)),
    "polynomial": ({"gamma": 0.6, "coef0": 0.9, "degree": 3}, lambda x, y: (0.6 * np.dot(x, y) + 0.9) ** 3),
    "linear": ({}, lambda x, y: float(np.dot(x, y))),
}


def sq(x, y):
    return float(np.sum((np.asarray(x) - y) ** 2))


def t(two_nu, x, y):
    return math.sqrt(two_nu * sq(x, y)) / H


def gradient(k, x, y, e=1e-5):
    """grad_x k(x, y) by central differences."""
    d = len(x)
    return np.array([(k(x + e * u, y) - k(x - e * u, y)) / (2 * e) for u in np.eye(d)])


def direction(k, x, s, w=None, repulsion=1.0):
    """SVGD's direction by an explicit double loop."""
    n = len(x)
    w = np.full(n, 1 / n) if w is None else w
    phi = np.zeros_like(x)
    for i in range(n):
        for j in range(n):
            phi[i] += w[j] * k(x[j], x[i]) * s[j]
            if i != j or k(x[i], x[i]) != 1:  # a distance kernel's gradient at 0 is 0
                phi[i] += w[j] * repulsion * gradient(k, x[j], x[i])
    return phi


def particles(n, d, seed=0, dtype=np.float64):
    print(f"{seed=}")
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)
