"""How far points are from a sample or a density: maximum mean discrepancy and kernel Stein discrepancy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._errors import message
from ..kernels import gram
from ..zeroth._stream import one_of, real
from ._base import Floats, checked, not_finite, points_of
from ._kernel import Kernel, kernel_of

STEIN_KERNELS = ("imq", "gaussian", "rational_quadratic", "matern52")
"""The kernels of `ksd`: twice differentiable everywhere, with derivatives that the engine has."""


def mmd2(
    X: Any,
    Y: Any,
    *,
    kernel: str = "gaussian",
    bandwidth: float | str = "median",
    biased: bool = True,
    **parameters: Any,
) -> float:
    """Squared maximum mean discrepancy of two samples::

        1/n^2 sum k(x_i, x_j) + 1/m^2 sum k(y_i, y_j) - 2/(n m) sum k(x_i, y_j)

    Args:
        X, Y: (n, d) and (m, d), float32 or float64; computed in double.
        kernel: any of `curvk.kernels.gram.KERNELS`.
        bandwidth: of the kernel; "median" is the median distance of the n + m points together, divided by sqrt(2)
            (h^2 = median(d^2) / 2, Gretton et al. 2012: not the samplers' rule, which has a logarithm). Give a number
            to compare several values: it then does not depend on the samples.
        biased: the V-statistic above, >= 0 up to rounding; else the U-statistic, which leaves out the diagonals, has
            mean 0 for samples of one density, and needs n, m >= 2.
        **parameters: `alpha`, `gamma`, `coef0`, `degree` of kernels that have them.

    Returns:
        The statistic, a float. The biased one of a sample with itself is 0.

    Raises:
        TypeError, ValueError: arrays that do not fit or are not finite; the text names them.

    n^2 + m^2 + n m kernel values, O((n + m) d) memory. Source: Gretton et al. 2012.

    >>> import numpy as np
    >>> from curvk.stein import mmd2
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((2, 500, 2))
    >>> mmd2(x, x), mmd2(x, y) < 0.01, mmd2(x, y + 1) > 0.1
    (0.0, True, True)
    """
    x, y = (points_of("mmd2", name, a).astype(np.float64, order="C") for name, a in (("X", X), ("Y", Y)))
    if x.shape[1] != y.shape[1]:
        raise ValueError(message("mmd2", "Y", f"shape {y.shape}", f"shape (m, {x.shape[1]}) like 'X'"))
    k = kernel_of("mmd2", kernel, parameters)
    _check_pairs("mmd2", biased, X=x, Y=y)
    h = 1.0
    if k.is_distance:
        shift = x.mean(0)
        x -= shift
        y -= shift
        h = _median("mmd2", bandwidth, lambda: gram.median_distance(np.concatenate([x, y])))
    keywords = k.keywords(h)
    within = sum(_mean_within(a, keywords, biased) for a in (x, y))
    return within - 2 * float(gram.row_sums(x, y, **keywords).mean()) / len(y)


def ksd(
    X: Any,
    score: Any,
    *,
    kernel: str = "imq",
    bandwidth: float | str = 1.0,
    beta: float = -0.5,
    biased: bool = True,
    alpha: float = 1.0,
) -> float:
    """Squared kernel Stein discrepancy of a sample from the density with this score: the mean of::

        u(x, y) = k s(x).s(y) + s(x).grad_y k + s(y).grad_x k + tr(grad_x grad_y k)

    Args:
        X: (n, d), float32 or float64; computed in double.
        score: grad log p: its values at X, (n, d), or a function of X.
        kernel: "imq" (1 + q / h^2)^beta with q = abs(x - y)^2, "gaussian", "rational_quadratic" or "matern52".
        bandwidth: h; "median" is the median distance of X divided by sqrt(2), as in `mmd2`.
        beta: of "imq", in (-1, 0).
        biased: the V-statistic, the mean over all pairs, >= 0 up to rounding; else the U-statistic, which leaves out
            i = j, has mean 0 for samples of p, and needs n >= 2.
        alpha: of "rational_quadratic".

    Returns:
        The statistic, a float: the squared discrepancy, S(q, p) of Liu, Lee & Jordan 2016. Gorham & Mackey 2017 report
        its root; their imq (c^2 + q)^beta is c^(2 beta) times ours with h = c.

    Raises:
        TypeError, ValueError: arrays that do not fit or are not finite; the text names them.

    Three products with the n x n kernel matrices of k, k' and k'', O(n d) memory. "imq" alone among these detects tails
    that do not converge; the others need d <= 2 for that (Gorham & Mackey 2017).

    >>> import numpy as np
    >>> from curvk.stein import ksd
    >>> x = np.random.default_rng(0).standard_normal((500, 2))
    >>> ksd(x, lambda x: -x) < 0.02, ksd(x, 1 - x) > 0.5
    (True, True)
    """
    x = points_of("ksd", "X", X).astype(np.float64, order="C")
    given = score(X) if callable(score) else score
    s = checked("ksd", "score(X)" if callable(score) else "score", given, x.shape, np.float64)
    bad = not_finite(s)
    if bad is not None:
        raise ValueError(message("ksd", "score", f"an element that is not finite in row {bad}", "finite numbers"))
    _check_pairs("ksd", biased, X=x)
    one_of("ksd", "kernel", kernel, STEIN_KERNELS)
    x -= x.mean(0)
    h = _median("ksd", bandwidth, lambda: gram.median_distance(x) if len(x) > 1 else 0.0)
    number = real("ksd", "beta", beta, "a number in (-1, 0)", -1.0, open=True)
    if not number < 0:
        raise ValueError(message("ksd", "beta", f"{beta}", "a number in (-1, 0)"))
    k = kernel_of("ksd", kernel, {"alpha": alpha} if kernel == "rational_quadratic" else {})
    if kernel == "imq":
        k, h = Kernel("rational_quadratic", alpha=-number), h / math.sqrt(-2 * number)
    n, d = x.shape
    # -2 k' = f1 k1 and -2 k1' = f2 k2, so that grad_y k = f1 k1 (x - y) and the trace is f1 (d k1 - f2 q k2).
    f1, kernel1, h1 = k.derivative(h)
    f2, kernel2, h2 = kernel1.derivative(h1)
    sx = np.einsum("nd,nd->n", s, x)
    ones = np.ones((n, 1))
    pulled = gram.matvec(x, x, s, **k.keywords(h))
    first = gram.matvec(x, x, np.hstack([x, ones]), **kernel1.keywords(h1))
    second = gram.matvec(x, x, np.hstack([x, ones]), **kernel2.keywords(h2))
    total: float = float(np.vdot(s, pulled))
    total += f1 * (2 * float(sx @ first[:, d]) - 2 * float(np.vdot(s, first[:, :d])) + d * float(first[:, d].sum()))
    q_sum = 2 * float(np.einsum("nd,nd->n", x, x) @ second[:, d]) - 2 * float(np.vdot(x, second[:, :d]))
    total -= f1 * f2 * q_sum
    if biased:
        return float(total / n**2)
    diagonal = float(np.vdot(s, s)) + n * d * f1  # k(x, x) = k1(x, x) = 1
    return float((total - diagonal) / (n * (n - 1)))


def _mean_within(x: Floats, keywords: dict[str, Any], biased: bool) -> float:
    """The mean of k over all pairs of rows of x, or over those of different rows."""
    n = len(x)
    sums = gram.row_sums(x, x, **keywords)
    if biased:
        return float(sums.mean()) / n
    return float((sums - gram.diagonal(x, **keywords)).mean()) / (n - 1)


def _median(function: str, bandwidth: Any, distance: Callable[[], float]) -> float:
    if isinstance(bandwidth, str):
        if bandwidth != "median":
            raise ValueError(message(function, "bandwidth", repr(bandwidth), "a number > 0 or 'median'"))
        return distance() / math.sqrt(2) or 1.0
    return real(function, "bandwidth", bandwidth, "a finite number > 0", 0.0, open=True)


def _check_pairs(function: str, biased: Any, **samples: Floats) -> None:
    if not isinstance(biased, (bool, np.bool_)):
        raise TypeError(message(function, "biased", repr(biased), "True or False"))
    for name, x in samples.items():
        if not biased and len(x) < 2:
            raise ValueError(message(function, name, "1 point", "at least 2 where biased is False"))
