"""Gradient probes, the Alice step and SAM's perturbation; csrc/include/curvk/curvature.h gives the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import loop
from .codes import GROUP, Coded, group_words
from .noise import SPANS, _seed, _tile

Array = np.ndarray[Any, Any]
DENSITY_FACTOR, DENSITY_COST = 3 / (4 * math.pi), math.sqrt(2 / (3 * math.pi))
SUM_CHUNK = 32768
PART = 32768  # elements whose states fit the second-level cache as floats
_RADEMACHER = 2


def alice_lookahead_scalars(scale: float, draw: int, seed: int) -> tuple[Any, ...]:
    return scale, draw, _seed(seed), _RADEMACHER, int(SPANS[_RADEMACHER])


@loop
def alice_lookahead(p, lookahead, tensor, offset, scale, draw, seed, dist, span):  # type: ignore[no-untyped-def]
    words, z = np.empty(32, np.uint32), np.empty(span, np.float32)
    i = 0
    while i < p.size:
        tile, skip = (offset + i) // span, (offset + i) % span
        length = min(span - skip, p.size - i)
        if scale != 0:
            _tile(dist, seed, tile, tensor, draw, words, z)
        for e in range(length):
            p[i + e] = lookahead[i + e] + scale * z[skip + e] if scale != 0 else lookahead[i + e]
        i += length


def alice_step_scalars(
    beta1: float,
    beta2: float,
    beta3: float,
    sigma: float,
    eps: float,
    l1: float,
    l2: float,
    lr_min: float,
    lr_max: float,
    phi: float,
    omega: float,
    hess: int,
    limit: int,
    move: int,
    grad_scale: float,
) -> tuple[Any, ...]:
    return (
        *(1.0 / grad_scale, beta1, beta2, 1.0 - beta2, beta3, 0.5 / sigma, 2.0 / sigma, 1.0 / sigma, eps),
        *(l1, l2, l2 * l2, lr_min, lr_max, phi, omega, hess, limit, bool(move), 0.0, 0.5, 1.0, 2.0, DENSITY_FACTOR),
    )


@loop
def _curvature(x, hess, l2, zero):  # type: ignore[no-untyped-def]
    if hess == 0:
        return zero
    if hess == 1:
        return x
    root = np.sqrt(zero if x < 0 else x)
    return root + (zero if hess == 2 else l2)


@loop
def _bounded(exp_avg, glass, h, exp_avg_sq, eps, lr_min, lr_max, limit, one, two, density):  # type: ignore[no-untyped-def]
    """q, or with limit 2 a q, between its bounds; and whether it lay there."""
    a = abs(exp_avg)
    b = a + eps
    k = density * glass
    hb = h * b
    d = ((k + hb) + np.sqrt(k * (k + two * hb))) + eps * b
    r = one
    if limit == 0:
        r = np.sqrt(exp_avg_sq) + eps
    top = a * b if limit == 2 else b
    product = top * r
    if product < lr_min * d:
        return lr_min / r, False
    if product < lr_max * d:
        return top / d, product > lr_min * d
    return lr_max / r, False


@loop
def alice_step(  # type: ignore[no-untyped-def]
    p, g, exp_avg, glass, hessian, exp_avg_sq, center, lookahead, g_plus, g_minus, inv_scale, beta1, beta2, gain2,
    beta3, half_inv_sigma, two_inv_sigma, inv_sigma, eps, l1, l2, l2_squared, lr_min, lr_max, phi, omega, hess, limit,
    move, zero, half, one, two, density,
):  # fmt: skip
    for i in range(p.size):
        grad = g[i] * inv_scale
        if g_plus is not None and g_minus is not None:
            up, down = g_plus[i] * inv_scale, g_minus[i] * inv_scale
            if glass is not None:
                d = half * (up + down) - grad
                rho = d * d * two_inv_sigma
                glass[i] = rho + beta3 * (glass[i] - rho)
            if hessian is not None and hess != 0:
                if hess == 3:
                    x = -(((up - grad) * inv_sigma) * ((down - grad) * inv_sigma))
                else:
                    slope = (up - down) * half_inv_sigma
                    x = abs(slope) + l2 if hess == 1 else slope * slope + l2_squared
                hessian[i] = x + beta3 * (hessian[i] - x)
        exp_avg_sq[i] = beta2 * exp_avg_sq[i] + gain2 * (grad * grad)
        if l1 != 0 or l2 != 0:
            grad = (grad + (-l1 if lookahead[i] < 0 else l1)) + l2 * lookahead[i]
        first = grad + beta1 * (exp_avg[i] - grad)
        exp_avg[i] = first
        old = center[i]
        if move:
            r = zero
            if glass is not None:
                r = glass[i]
            h = zero
            if hessian is not None:
                h = _curvature(hessian[i], hess, l2, zero)
            step, _ = _bounded(first, r, h, exp_avg_sq[i], eps, lr_min, lr_max, limit, one, two, density)
            delta = (step if first < 0 else -step) if limit == 2 else -(first * step)
            lookahead[i] = old + omega * delta
            old = old + phi * delta
            center[i] = old
        p[i] = old


def alice_step8_scalars(*values: Any) -> tuple[Any, ...]:
    draw, seed, hess = *values[-2:], values[-6]
    return draw, seed, hess, *alice_step_scalars(*values[:-2])


def alice_step8(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_scale: Array,
    glass: Array | None,
    glass_scale: Array | None,
    hessian: Array | None,
    hessian_scale: Array | None,
    exp_avg_sq: Array,
    exp_avg_sq_scale: Array,
    center: Array,
    lookahead: Array,
    g_plus: Array | None,
    g_minus: Array | None,
    tensor: int,
    offset: int,
    draw: int,
    seed: int,
    hess: int,
    *scalars: Any,
) -> None:
    """`alice_step` on decoded parts of the states, stored with the words 0..3 of their groups."""

    def coded(codes: Array | None, scale: Array | None, is_signed: bool) -> Coded | None:
        return None if codes is None or scale is None else Coded(codes, scale, is_signed)

    sampled = g_plus is not None and g_minus is not None
    states = (
        (Coded(exp_avg, exp_avg_scale, True), True),
        (coded(glass, glass_scale, False), sampled),
        (coded(hessian, hessian_scale, hess == 3), sampled and hess != 0),
        (Coded(exp_avg_sq, exp_avg_sq_scale, False), True),
    )
    for i in range(0, p.size, PART):
        part = slice(i, min(i + PART, p.size))
        words = group_words(seed, tensor, draw, (offset + i) // GROUP, -((i - part.stop) // GROUP))
        with np.errstate(all="ignore"):
            numbers = [None if state is None else state.load(part) for state, _ in states]
            rest = [None if x is None else x[part] for x in (center, lookahead, g_plus, g_minus)]
            alice_step(p[part], g[part], *numbers, *rest, *scalars)
            for (state, stored), x, word in zip(states, numbers, words, strict=True):
                if state is not None and x is not None and stored:
                    state.store(part, x, word)


@loop
def _sum_lanes(term):  # type: ignore[no-untyped-def]
    """The sum of one chunk: 16 lanes folded in the fixed tree."""
    lane = np.zeros(16)
    for i in range(term.size):
        lane[i % 16] += term[i]
    half = 8
    while half > 0:
        for k in range(half):
            lane[k] += lane[k + half]
        half //= 2
    return lane[0]


def _add_chunks(out: np.ndarray[Any, Any], size: int, terms: Any) -> None:
    """Adds the sums of the terms of each chunk in order."""
    for start in range(0, size, SUM_CHUNK):
        for k, term in enumerate(terms(slice(start, min(start + SUM_CHUNK, size)))):
            out[k] += _sum_lanes(term)


@loop
def _model_terms(  # type: ignore[no-untyped-def]
    exp_avg, glass, hessian, exp_avg_sq, inside, change, eps, l2, lr_min, lr_max, fraction, hess, limit, zero, half,
    one, two, density, cost,
):  # fmt: skip
    for i in range(exp_avg.size):
        r = zero
        if glass is not None:
            r = glass[i]
        h = zero
        if hessian is not None:
            h = _curvature(hessian[i], hess, l2, zero)
        step, within = _bounded(exp_avg[i], r, h, exp_avg_sq[i], eps, lr_min, lr_max, limit, one, two, density)
        a = abs(exp_avg[i])
        s = fraction * (step if limit == 2 else a * step)
        inside[i] = within
        change[i] = (half * h * s * s - a * s) + cost * np.sqrt(r) * (s * np.sqrt(s))


def alice_model(
    exp_avg: list[Any],
    glass: list[Any] | None,
    hessian: list[Any] | None,
    exp_avg_sq: list[Any],
    out: np.ndarray[Any, Any],
    eps: float,
    l2: float,
    lr_min: float,
    lr_max: float,
    fraction: float,
    hess: int,
    limit: int,
) -> None:
    out[:2] = 0
    for row, x in enumerate(exp_avg):
        number = x.dtype.type
        with np.errstate(over="ignore"):
            scalars = [*map(number, (eps, l2, lr_min, lr_max, fraction)), hess, limit]
        scalars += [*map(number, (0.0, 0.5, 1.0, 2.0, DENSITY_FACTOR, DENSITY_COST))]
        columns = [x, glass and glass[row], hessian and hessian[row], exp_avg_sq[row]]

        def terms(part: slice, columns: list[Any] = columns, scalars: list[Any] = scalars) -> list[Any]:
            cut: list[Any] = [None if c is None else c[part] for c in columns]
            inside, change = (np.empty(cut[0].size) for _ in range(2))
            _model_terms(*cut, inside, change, *scalars)
            return [inside, change]

        _add_chunks(out, x.size, terms)


@loop
def _glass_terms(g, g_plus, g_minus, jump, change, product, square):  # type: ignore[no-untyped-def]
    for i in range(g.size):
        c, a, b = np.float64(g[i]), np.float64(g_plus[i]), np.float64(g_minus[i])
        d = 0.5 * (a + b) - c
        up, down = a - c, b - c
        jump[i] = d * d
        change[i] = 0.5 * (up * up + down * down)
        product[i] = -(up * down)
        square[i] = c * c


def glass_sums(g: list[Any], g_plus: list[Any], g_minus: list[Any], out: np.ndarray[Any, Any]) -> None:
    out[:4] = 0
    for columns in zip(g, g_plus, g_minus, strict=True):

        def terms(part: slice, columns: tuple[Any, ...] = columns) -> list[Any]:
            cut = [c[part] for c in columns]
            found = [np.empty(cut[0].size) for _ in range(4)]
            _glass_terms(*cut, *found)
            return found

        _add_chunks(out, columns[0].size, terms)


def glass_moments_scalars(sample: int, sigma: float) -> tuple[Any, ...]:
    return 2.0 / sigma, 1.0 / sigma, 1.0 / sample, 0.5


@loop
def glass_moments(g, g_plus, g_minus, rho, rho_m2, h2, h2_m2, doubled, single, share, half):  # type: ignore[no-untyped-def]
    for i in range(g.size):
        d = half * (g_plus[i] + g_minus[i]) - g[i]
        x = d * d * doubled
        before = x - rho[i]
        rho[i] = rho[i] + before * share
        rho_m2[i] = rho_m2[i] + before * (x - rho[i])
        x = -(((g_plus[i] - g[i]) * single) * ((g_minus[i] - g[i]) * single))
        before = x - h2[i]
        h2[i] = h2[i] + before * share
        h2_m2[i] = h2_m2[i] + before * (x - h2[i])


def sam_perturb_scalars(scale: float, adaptive: int, eta: float) -> tuple[Any, ...]:
    return scale, bool(adaptive), eta


@loop
def sam_perturb(p, g, saved, scale, adaptive, eta):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        w = p[i]
        t = abs(w) + eta
        p[i] = w + (t * t * g[i] if adaptive else g[i]) * scale
        if saved is not None:
            saved[i] = w
        else:
            g[i] = w


@loop
def _asam_terms(p, g, eta, scale, square):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        y = (abs(np.float64(p[i])) + eta) * np.float64(g[i]) * scale
        square[i] = y * y


def asam_sum_squares(p: list[Any], g: list[Any], out: np.ndarray[Any, Any], eta: float, scale: float) -> None:
    out[:2] = 0
    for w, x in zip(p, g, strict=True):

        def terms(part: slice, w: Any = w, x: Any = x) -> list[Any]:
            square = np.empty(w[part].size)
            _asam_terms(w[part], x[part], np.float64(eta), np.float64(scale), square)
            return [square]

        _add_chunks(out, w.size, terms)
    if not np.isfinite(out[0]):
        out[1] = not all(np.isfinite(a).all() for a in (*p, *g))
