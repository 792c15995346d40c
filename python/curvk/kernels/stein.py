"""The compiled parts of SV-CMA-ES: many small CMA-ES side by side, each in its own rows of the arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._arrays import Array, numpy_view
from .._backend import call
from .._errors import message

__all__ = ["Rates", "adapt", "center", "factor", "repel", "sample", "shift"]

Pair = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Rates:
    """Weights and learning rates of one CMA-ES: the defaults of Hansen's tutorial (arXiv 1604.00772, table 1).

    Args:
        d: dimensions, >= 1.
        popsize: samples per generation of one particle, >= 2.

    Attributes:
        mu: samples that move the mean, popsize // 2.
        mu_eff: their variance-effective number.
        c_sigma, d_sigma: rate and damping of the step size's path.
        c_c: rate of the covariance's path; c_1, c_mu: learning rates of the two covariance updates.
        chi: expected norm of a normal vector, by Hansen's approximation.
        weights: (popsize,) by rank: the first mu sum to 1, the later ones are negative or zero.

    Raises:
        ValueError: popsize below 2 or d below 1.

    With fewer than 4 samples mu_eff is 1 and c_mu is 0.

    >>> rates = Rates(2, 4)
    >>> rates.mu, rates.weights.round(3).tolist()
    (2, [0.804, 0.196, -0.55, -1.418])
    """

    d: int
    popsize: int

    def __post_init__(self) -> None:
        for name, value, least in (("d", self.d, 1), ("popsize", self.popsize, 2)):
            if value < least:
                raise ValueError(message("Rates", name, f"{value}", f"an integer of {least} or more"))

    @cached_property
    def _raw(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([math.log((self.popsize + 1) / 2) - math.log(k + 1) for k in range(self.popsize)])

    @property
    def mu(self) -> int:
        return self.popsize // 2

    @cached_property
    def mu_eff(self) -> float:
        return _effective(self._raw[: self.mu])

    @cached_property
    def c_sigma(self) -> float:
        return (self.mu_eff + 2) / (self.d + self.mu_eff + 5)

    @cached_property
    def d_sigma(self) -> float:
        return 1 + 2 * max(0.0, math.sqrt((self.mu_eff - 1) / (self.d + 1)) - 1) + self.c_sigma

    @cached_property
    def c_c(self) -> float:
        share = self.mu_eff / self.d
        return (4 + share) / (self.d + 4 + 2 * share)

    @cached_property
    def c_1(self) -> float:
        return 2 / ((self.d + 1.3) ** 2 + self.mu_eff)

    @cached_property
    def c_mu(self) -> float:
        mu_eff = self.mu_eff
        return max(0.0, min(1 - self.c_1 - 1e-8, 2 * (mu_eff - 2 + 1 / mu_eff) / ((self.d + 2) ** 2 + mu_eff)))

    @cached_property
    def chi(self) -> float:
        return math.sqrt(self.d) * (1 - 1 / (4 * self.d) + 1 / (21 * self.d**2))

    @cached_property
    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        raw = self._raw
        bounds = [1 + 2 * _effective(raw[self.mu :]) / (self.mu_eff + 2)]
        if self.c_mu > 0:
            bounds += [1 + self.c_1 / self.c_mu, (1 - self.c_1 - self.c_mu) / (self.d * self.c_mu)]
        negative = raw * (min(bounds) / abs(raw[raw < 0].sum()))
        return np.asarray(np.where(raw >= 0, raw / raw[raw > 0].sum(), negative))

    def limit(self, generation: int) -> float:
        """The norm of p_sigma from which the covariance's path stands still in a generation, counted from 1."""
        settled = 1 - (1 - self.c_sigma) ** (2 * generation)
        return (1.4 + 2 / (self.d + 1)) * self.chi * math.sqrt(settled)

    def scalars(self, generation: int) -> tuple[float, ...]:
        """What the kernel `stein_adapt` takes of them, in the header's order."""
        return (*self._fixed, self.limit(generation))

    @cached_property
    def _fixed(self) -> tuple[float, ...]:
        return self.mu_eff, self.c_sigma, self.d_sigma, self.c_c, self.c_1, self.c_mu, self.chi


def _effective(weights: np.ndarray[Any, Any]) -> float:
    return float(weights.sum() ** 2 / (weights**2).sum())


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _shape(op: str, name: str, x: Array, axes: str) -> tuple[int, ...]:
    found: tuple[int, ...] = numpy_view(x, op, name).shape
    if len(found) != axes.count(",") + 1:
        raise ValueError(message(op, name, f"shape {found}", f"shape ({axes})"))
    return found


def _sizes(op: str, name: str, x: Array) -> tuple[int, int, int]:
    """N, popsize and d from an array that has all three."""
    n, popsize, d = _shape(op, name, x, "n, popsize, d")
    if 0 in (popsize, d):
        raise ValueError(message(op, name, f"shape {(n, popsize, d)}", "popsize and d of at least 1"))
    return n, popsize, d


def _need(op: str, shape: tuple[int, ...], **arrays: Array) -> None:
    for name, x in arrays.items():
        found = None if x is None else numpy_view(x, op, name).shape
        if found is not None and found != shape:
            raise ValueError(message(op, name, f"shape {found}", f"shape {shape}"))


def _wide(op: str, name: str, x: Array, n: int, d: int) -> int:
    """The number of columns of an array that must have more than d."""
    rows, c = _shape(op, name, x, "n, c")
    if rows != n or c <= d:
        raise ValueError(message(op, name, f"shape {(rows, c)}", f"shape ({n}, c) with c of at least {d + 1}"))
    return c


def _empty(like: Array, shape: tuple[int, ...], op: str) -> np.ndarray[Any, Any]:
    return np.empty(shape, numpy_view(like, op, "x").dtype)


# ---- kernels --------------------------------------------------------------------------------------------------------


def factor(
    w: Array,
    B: Array,
    C: Array,
    sigma: Array,
    p_c: Array,
    *,
    condition: float = 1e14,
    renormalise: bool = True,
    out: tuple[Array, Array] | None = None,
) -> Pair:
    """Bounds and scales covariances whose eigenvalues are known, and forms what the samples are made with.

    With `renormalise`, sigma <- sigma a, C <- C / a^2, p_c <- p_c / a, where the power of two a brings C's mean
    eigenvalue into [1, 4): a gauge under which sigma^2 C and, bit for bit, all later samples stay. Then, where the
    smallest eigenvalue is less than the largest over `condition`, what is missing is added to C's diagonal.

    Args:
        w, B: eigenvalues (n, d), ascending, and eigenvectors (n, d, d) in columns; float32 or float64.
        C: covariances (n, d, d), written; sigma: (n,), written; p_c: (n, d), written. Of w's dtype.
        condition: bound on the condition number, >= 1.
        renormalise: whether to apply the gauge.
        out: arrays for the result.

    Returns:
        D (n, d), the eigenvalues' roots, and A = diag(D) B^T (n, d, d).

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`, or a shape that does not fit.

    A particle whose eigenvalues are NaN gets a D of NaN; others do not notice.

    >>> import numpy as np
    >>> sigma, C, p_c = np.array([0.5]), 16 * np.eye(1)[None], np.array([[8.0]])
    >>> D, A = factor(np.array([[16.0]]), np.eye(1)[None], C, sigma, p_c)
    >>> sigma, C.ravel(), p_c.ravel(), D.ravel()
    (array([2.]), array([1.]), array([2.]), array([1.]))
    """
    op = "stein_factor"
    n, d = _shape(op, "w", w, "n, d")
    if d == 0:
        raise ValueError(message(op, "w", f"shape {(n, d)}", "d of at least 1"))
    D, A = (_empty(w, s, op) for s in ((n, d), (n, d, d))) if out is None else out
    _need(op, (n, d, d), B=B, C=C, A=A)
    _need(op, (n,), sigma=sigma)
    _need(op, (n, d), p_c=p_c, D=D)
    call(op, (w, B, C, sigma, p_c, D, A), (n, d, condition, int(renormalise)))
    return D, A


def sample(x: Array, sigma: Array, A: Array, z: Array, *, out: tuple[Array, Array] | None = None) -> Pair:
    """Samples of n normal distributions: y = A^T z, candidates = x + sigma y.

    Args:
        x: means (n, d), float32 or float64.
        sigma: step sizes (n,); A: (n, d, d) as `factor` gives it; z: standard normals (n, popsize, d). Of x's dtype.
        out: arrays for the result.

    Returns:
        y and the candidates, both (n, popsize, d).

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`, or a shape that does not fit.

    >>> import numpy as np
    >>> y, candidates = sample(np.ones((1, 2)), np.array([0.5]), 2 * np.eye(2)[None], np.array([[[1.0, -1.0]]]))
    >>> y.tolist(), candidates.tolist()
    ([[[2.0, -2.0]]], [[[2.0, 0.0]]])
    """
    op = "stein_sample"
    n, popsize, d = shape = _sizes(op, "z", z)
    y, candidates = (_empty(x, shape, op) for _ in range(2)) if out is None else out
    _need(op, (n, d), x=x)
    _need(op, (n,), sigma=sigma)
    _need(op, (n, d, d), A=A)
    _need(op, shape, y=y, candidates=candidates)
    call(op, (x, sigma, A, z, y, candidates), (n, d, popsize))
    return y, candidates


def shift(
    y: Array, values: Array, weights: Array, *, mu: int | None = None, out: tuple[Array, Array] | None = None
) -> Pair:
    """Ranks each particle's samples and takes the weighted mean of the best.

    Args:
        y: samples (n, popsize, d), float32 or float64.
        values: (n, popsize), float64: larger is better. Equal values rank by index, NaN last.
        weights: (popsize,) of y's dtype, by rank.
        mu: how many count; popsize // 2 by default.
        out: arrays for the result.

    Returns:
        order (n, popsize), int64, the samples from best to worst, and the means (n, d). A particle all of whose values
        are NaN has no ranking: its order is -1 throughout and its mean 0.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`, or a shape that does not fit.

    >>> import numpy as np
    >>> y = np.array([[[1.0], [2.0], [4.0], [8.0]]])
    >>> order, mean = shift(y, np.array([[0.0, np.nan, 3.0, 0.0]]), np.array([0.75, 0.25, 0.0, 0.0]))
    >>> order.tolist(), mean.tolist()
    ([[2, 0, 3, 1]], [[3.25]])
    """
    op = "stein_shift"
    n, popsize, d = _sizes(op, "y", y)
    order, mean = (np.empty((n, popsize), np.int64), _empty(y, (n, d), op)) if out is None else out
    _need(op, (n, popsize), values=values, order=order)
    _need(op, (popsize,), weights=weights)
    _need(op, (n, d), shift=mean)
    parents = max(1, popsize // 2) if mu is None else mu
    if not 1 <= parents <= popsize:
        raise ValueError(message(op, "mu", f"{mu}", f"an integer in [1, {popsize}]"))
    call(op, (y, values, weights, order, mean), (n, d, popsize, parents))
    return order, mean


def center(x: Array, *, out: tuple[Array, Array] | None = None) -> Pair:
    """The particles around their mean, and the columns whose product with a kernel matrix the repulsion takes.

    Args:
        x: (n, d), float32 or float64.
        out: arrays for the result. The second may have more than d + 1 columns; its first d are written.

    Returns:
        x less its mean (n, d), and that with a column of ones (n, d + 1).

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`, or a shape that does not fit.

    The mean is summed in double in the particles' order.

    >>> import numpy as np
    >>> center(np.array([[1.0], [5.0]]))[1].tolist()
    [[-2.0, 1.0], [2.0, 1.0]]
    """
    op = "stein_center"
    n, d = _shape(op, "x", x, "n, d")
    if d == 0:
        raise ValueError(message(op, "x", f"shape {(n, d)}", "d of at least 1"))
    centred, columns = (_empty(x, (n, d), op), np.ones_like(_empty(x, (n, d + 1), op))) if out is None else out
    c = _wide(op, "columns", columns, n, d)
    _need(op, (n, d), centred=centred)
    call(op, (x, centred, columns), (n, d, c))
    return centred, columns


def repel(centred: Array, products: Array, *, weight: float, out: Array = None) -> Any:
    """The repulsion from a kernel product: weight (centred products_d - products).

    For a kernel k(q) of the squared distance with -2 k'(q) = f k2(q), and products = K2 [centred | 1], this with
    weight = a f / n is a / n sum_j grad_{x_j} k(x_j, x_i).

    Args:
        centred: particles (n, d) around their mean, float32 or float64.
        products: (n, c), c > d: of k2's matrix with `center`'s columns; columns behind the first d + 1 are not read.
        weight: the factor.
        out: array for the result.

    Returns:
        The repulsion (n, d).

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`, or a shape that does not fit.

    >>> import numpy as np
    >>> from curvk.kernels import gram
    >>> x, columns = center(np.array([[0.0], [1.0]]))
    >>> repel(x, gram.matvec(x, x, columns, bandwidth=1.0), weight=0.5).round(4).tolist()  # half of exp(-1/2)
    [[-0.3033], [0.3033]]
    """
    op = "stein_repel"
    n, d = _shape(op, "centred", centred, "n, d")
    if d == 0:
        raise ValueError(message(op, "centred", f"shape {(n, d)}", "d of at least 1"))
    repulsion = _empty(centred, (n, d), op) if out is None else out
    c = _wide(op, "products", products, n, d)
    _need(op, (n, d), repulsion=repulsion)
    call(op, (centred, products, repulsion), (n, d, c, weight))
    return repulsion


def adapt(
    x: Array,
    sigma: Array,
    C: Array,
    p_sigma: Array,
    p_c: Array,
    *,
    y: Array,
    z: Array,
    order: Array,
    shift: Array,
    weights: Array,
    B: Array,
    D: Array,
    A: Array,
    rates: Rates,
    generation: int,
    drive: Array = None,
    repulsion: Array = None,
    in_paths: bool = True,
    sigma_min: float = 0.0,
    sigma_max: float = math.inf,
) -> None:
    """Moves the means and adapts paths, covariances and step sizes, in place.

    With e = shift or, where it is given, drive / sigma; e' = e + repulsion / sigma; path = e', or e unless `in_paths`::

        x       <- x + sigma e'
        p_sigma <- (1 - c_sigma) p_sigma + sqrt(c_sigma (2 - c_sigma) mu_eff) C^(-1/2) path
        p_c     <- (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) path,    h = 1 while norm(p_sigma) < limit, else 0
        C       <- (1 - c_1 - c_mu sum(weights) + (1 - h) c_1 c_c (2 - c_c)) C
                   + c_1 p_c p_c^T + c_mu sum_k v_k y_k y_k^T
        sigma   <- sigma exp(c_sigma / d_sigma (norm(p_sigma) / chi - 1))

    with v_k the weight of a sample's rank or, where that is negative, its d / norm(z_k)^2 fold.

    Args:
        x, p_sigma, p_c: (n, d), sigma: (n,), C: (n, d, d) symmetric; all written; float32 or float64.
        y, z: samples and their normals, (n, popsize, d). All arrays but `order` are of y's dtype.
        order, shift: as `curvk.kernels.stein.shift` gives them; a particle whose order is -1 stays as it is, as
            does one whose x would not be finite.
        weights: (popsize,) by rank.
        B, D, A: eigenvectors of C as it was when the samples were made, and what `factor` gave.
        rates: the learning rates.
        generation: counted from 1; h's limit depends on it.
        drive, repulsion: (n, d), in x's units; None for none.
        in_paths: whether the paths see the repulsion.
        sigma_min, sigma_max: bounds on sigma.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`, or a shape or order that does not fit.

    A particle's bits depend on its own rows alone. Sources: Hansen 2016 (arXiv 1604.00772), figure 6; Braun, Lange &
    Toussaint 2024 (arXiv 2410.10390) for the repulsion.

    >>> import numpy as np
    >>> x, sigma, C, one = np.zeros((1, 1)), np.ones(1), np.ones((1, 1, 1)), np.ones((1, 1, 1))
    >>> y, rates = np.array([[[1.0], [-1.0]]]), Rates(1, 2)
    >>> order, mean = shift(y, np.array([[5.0, 4.0]]), rates.weights)
    >>> paths = np.zeros((2, 1, 1))
    >>> adapt(x, sigma, C, *paths, y=y, z=y, order=order, shift=mean, weights=rates.weights, B=one, D=one[0], A=one,
    ...       rates=rates, generation=1)
    >>> x
    array([[1.]])
    """
    op = "stein_adapt"
    n, popsize, d = _sizes(op, "y", y)
    _need(op, (n, popsize, d), z=z)
    _need(op, (n, popsize), order=order)
    _need(op, (popsize,), weights=weights)
    _need(op, (n, d), x=x, p_sigma=p_sigma, p_c=p_c, shift=shift, drive=drive, repulsion=repulsion, D=D)
    _need(op, (n, d, d), C=C, B=B, A=A)
    _need(op, (n,), sigma=sigma)
    if (rates.popsize, rates.d) != (popsize, d):
        raise ValueError(message(op, "rates", f"{rates}", f"Rates({d}, {popsize}), like 'y'"))
    if generation < 1:
        raise ValueError(message(op, "generation", f"{generation}", "an integer of 1 or more"))
    ranks = numpy_view(order, op, "order")
    if ranks.size and (ranks.min() < -1 or ranks.max() >= popsize or ((ranks < 0) & (ranks[:, :1] >= 0)).any()):
        needed = f"indices below {popsize}, or -1 throughout a row"
        raise ValueError(message(op, "order", "an index out of range", needed))
    work = _empty(y, (n, 2 * d + popsize), op)
    columns = (y, z, order, weights, shift, drive, repulsion, B, D, A, x, sigma, C, p_sigma, p_c, work)
    call(op, columns, (n, d, popsize, *rates.scalars(generation), sigma_min, sigma_max, int(in_paths)))
