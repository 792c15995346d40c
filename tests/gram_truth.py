"""Kernel functions as their formulas read, summed one pair of rows at a time in a wider type, and how far a float32 or
float64 product may lie from them: the error class of csrc/include/curvk/gram.h, entry by entry.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from sweep_states import generator

Array = np.ndarray[Any, Any]

KERNELS = (
    "gaussian",
    "laplacian",
    "matern32",
    "matern52",
    "rational_quadratic",
    "imq",
    "exponent",
    "polynomial",
    "linear",
)
RADIAL = KERNELS[:7]
VANISHING = ("gaussian", "laplacian", "matern32", "matern52", "exponent")  # faster than any power of the distance
DTYPES = (np.float32, np.float64)

DIFFERENCES = 12  # rows up to this long are compared by differences, longer ones by their norms
NEAR = 2.0**-10  # a squared distance below this part of |x|^2 + |z|^2 is summed again by differences


class Truth(NamedTuple):
    values: Array
    bound: Array


def wide(dtype: Any) -> Any:
    """The type that truth is computed in."""
    return np.float64 if np.dtype(dtype) == np.float32 else np.longdouble


def unit(dtype: Any) -> Any:
    """The unit roundoff, 2^-24 or 2^-53."""
    return wide(dtype)(np.finfo(dtype).eps) / 2


def squared(X: Array, Z: Array) -> Array:
    """Sums of squared differences, (n, m), in the type of truth."""
    a, b = (x.astype(wide(X.dtype)) for x in (X, Z))
    q = np.empty((len(X), len(Z)), a.dtype)
    for i, row in enumerate(a):
        q[i] = ((row - b) ** 2).sum(1)
    return q


def squared_error(X: Array, Z: Array, q: Array, origin: Array | None = None) -> Array:
    """What each squared distance may be off by. Long rows are centred at the mean of the finite numbers of `origin`."""
    d, u = X.shape[1], unit(X.dtype)
    if d <= DIFFERENCES or not q.size:
        return np.asarray((d + 2) * u * q)
    points = (Z if origin is None else origin).astype(q.dtype)
    center = np.nan_to_num(np.nanmean(np.where(np.isfinite(points), points, np.nan), axis=0))
    nx, nz = (((x.astype(q.dtype) - center) ** 2).sum(1) for x in (X, Z))
    both = nx[:, None] + nz
    near = (d + 2) * u * q + 2 * u * (np.sqrt(nx)[:, None] + np.sqrt(nz)) * np.sqrt(q)
    far = (2 * d + 6) * u * both
    surely_near = q + far < NEAR * (1 - 8 * u) * both
    return np.where(surely_near, near, np.maximum(near, far))


def _radial(kernel: str, q: Array, h: Any, alpha: Any, gamma: Any) -> tuple[Array, Array]:
    """The kernel of a squared distance, and the magnitude of the exponent that it has by its formula."""
    if kernel == "gaussian":
        t = q / (2 * h * h)
        return np.exp(-t), t
    if kernel == "laplacian":
        t = np.sqrt(q) / h
        return np.exp(-t), t
    if kernel == "matern32":
        t = np.sqrt(3 * q) / h
        return (1 + t) * np.exp(-t), t
    if kernel == "matern52":
        t = np.sqrt(5 * q) / h
        return (1 + t + t * t / 3) * np.exp(-t), t
    if kernel == "rational_quadratic":
        t = alpha * np.log1p(q / (2 * alpha * h * h))
        return np.exp(-t), t
    if kernel == "imq":
        t = np.log1p(q / (h * h)) / 2
        return np.exp(-t), t
    assert kernel == "exponent"
    t = q ** (gamma / 2) / h
    return np.exp(-t), t


def truth(
    X: Array,
    Z: Array,
    *,
    kernel: str = "gaussian",
    bandwidth: float | None = None,
    alpha: float = 1.0,
    gamma: float = 1.0,
    coef0: float = 1.0,
    degree: int = 3,
    q: Array | None = None,
    origin: Array | None = None,
) -> Truth:
    """K(X, Z) and its bound. `q` spares the distances; `origin` is Z unless its packed rows are other ones."""
    kind, u, d = wide(X.dtype), unit(X.dtype), X.shape[1]
    tiny = kind(np.finfo(X.dtype).tiny)  # results below the normal range may be zero
    if kernel in ("linear", "polynomial"):
        a, b = (x.astype(kind) for x in (X, Z))
        s, ds = a @ b.T, (d + 2) * u * (abs(a) @ abs(b).T) + tiny
        if kernel == "linear":
            return Truth(s, ds)
        base = gamma * s + coef0
        error = abs(gamma) * ds + 3 * u * (abs(gamma * s) + abs(coef0))
        values = base**degree
        return Truth(values, degree * (abs(base) + error) ** (degree - 1) * error + 2 * degree * u * abs(values) + tiny)
    q = squared(X, Z) if q is None else q
    dq = squared_error(X, Z, q, origin)
    parameters = [kind(x) for x in (bandwidth or 0.0, alpha, gamma)]
    values, t = _radial(kernel, q, *parameters)
    above, below = (_radial(kernel, x, *parameters)[0] for x in (np.maximum(q - dq, 0), q + dq))  # all are decreasing
    of_q = np.maximum(above - values, values - below)
    return Truth(values, of_q + 8 * u * (1 + t) * values + tiny)


def product(K: Truth, W: Array) -> Truth:
    """K W and its bound: the entries' and the sum's."""
    m, u = K.values.shape[1], unit(W.dtype)
    w = W.astype(K.values.dtype)
    of_sum = (32 + min(m, 2048) / 32 + m / 2048 + 2) * u * (abs(K.values) @ abs(w))
    return Truth(K.values @ w, K.bound @ abs(w) + of_sum + np.finfo(W.dtype).tiny)


def distance(q: Array, dq: Array, dtype: Any) -> Truth:
    """The root of squared distances."""
    r = np.sqrt(q)
    of_q = np.maximum(np.sqrt(q + dq) - r, r - np.sqrt(np.maximum(q - dq, 0)))
    return Truth(r, of_q + 2 * unit(dtype) * r)


def check(got: Array, want: Truth) -> None:
    """Within the bound everywhere; the message says where it is not."""
    assert got.shape == want.values.shape
    if not got.size:
        return
    error = abs(got.astype(want.values.dtype) - want.values)
    within = error <= want.bound  # False for NaN
    if not within.all():
        at = tuple(int(i) for i in np.unravel_index(np.argmin(within), got.shape))
        found = f"{got[at]!r} for {want.values[at]!r}, off by {error[at]:.3g}, bound {want.bound[at]:.3g}"
        raise AssertionError(f"{(~within).sum()} of {got.size} outside the bound, the first at {at}: {found}")


def parameters(kernel: str, d: int) -> dict[str, Any]:
    """Settings under which a kernel of standard normal rows lies well between its limits."""
    h = float(np.sqrt(2 * d))
    return {
        "kernel": kernel,
        **{
            "polynomial": {"gamma": 1 / d, "coef0": 0.5, "degree": 3},
            "linear": {},
            "rational_quadratic": {"bandwidth": h, "alpha": 0.7},
            "exponent": {"bandwidth": h**1.3, "gamma": 1.3},
        }.get(kernel, {"bandwidth": h}),
    }


def rows(rng: np.random.Generator, dtype: Any, n: int, m: int, d: int) -> tuple[Array, Array]:
    """Standard normal rows; some of X equal one of Z, and some lie 1e-3 of its norm away from one."""
    X, Z = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    X, Z = X.astype(dtype), Z.astype(dtype)
    if m:
        for i in range(0, n, 5):
            X[i] = Z[i % m]
        for i in range(2, n, 5):
            away = rng.standard_normal(d)
            z = Z[i % m].astype(np.float64)
            X[i] = (z + 1e-3 * np.linalg.norm(z) * away / np.linalg.norm(away)).astype(dtype)
    return X, Z


@lru_cache(maxsize=32)
def pairs(dtype: Any, n: int, m: int, d: int) -> tuple[Array, Array, Array]:
    """Rows and their squared distances, the same for every kernel."""
    X, Z = rows(generator(np.dtype(dtype), n, m, d), dtype, n, m, d)
    return X, Z, squared(X, Z)


def weights(dtype: Any, *shape: int) -> Array:
    return generator(np.dtype(dtype), *shape).standard_normal(shape).astype(dtype)
