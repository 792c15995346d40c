"""Densities with known answers to try samplers on.

Each has `log_density(points)` -> (n,) of points (n, d); where it exists `score(points)` -> (n, d); and where truth is
known `sample(n, seed)`, or `mean` and `covariance`. Points are float32 or float64 and results are of their dtype.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._errors import message
from ..kernels import noise
from ..zeroth._stream import SEEDS, integer, real

__all__ = [
    "DoubleBanana",
    "Gaussian",
    "GaussianMixture",
    "LogisticRegression",
    "Pendulum",
    "breast_cancer",
    "four_modes",
]

Floats = np.ndarray[Any, np.dtype[Any]]


def _normals(seed: int, name: str, *shape: int, draw: int = 0, dist: str = "normal") -> Floats:
    """Noise of the library's stream, float64."""
    out = np.empty(shape)
    noise.fill(out, seed=seed, draw=draw, tensor=noise.tensor_word(f"problems.{name}", "sampling"), dist=dist)
    return out


def _array(function: str, name: str, x: Any, ndim: int) -> Floats:
    try:
        a = np.array(x, np.float64)
    except (TypeError, ValueError):
        raise TypeError(message(function, name, f"{x!r}"[:80], f"numbers in {ndim} axes")) from None
    if a.ndim != ndim or not a.size or not np.isfinite(a).all():
        raise ValueError(message(function, name, f"shape {a.shape}", f"finite numbers in {ndim} axes"))
    return a


def _like(x: Any, points: Floats) -> Floats:
    """An array in the points' dtype."""
    out: Floats = np.asarray(x).astype(points.dtype, copy=False)
    return out


def _count(function: str, n: Any) -> int:
    return integer(function, "n", n, 0, 1 << 40, "2^40")


def _seed(function: str, seed: Any) -> int:
    return integer(function, "seed", seed, 0, SEEDS, "2^64")


class GaussianMixture:
    """A mixture of normal densities, normalised.

    Args:
        weights: (k,), > 0; divided by their sum.
        means: (k, d).
        covariances: (k, d, d), symmetric positive definite; unit matrices if None.

    Attributes:
        weights, means, covariances: as given, in double.
        mean, covariance: of the mixture.

    >>> import numpy as np
    >>> from curvk.stein.problems import GaussianMixture
    >>> p = GaussianMixture([1, 3], [[0.0], [4.0]])
    >>> p.mean, p.covariance, p.score(np.array([[4.0]])).round(4)
    (array([3.]), array([[4.]]), array([[-0.0004]]))
    """

    def __init__(self, weights: Any, means: Any, covariances: Any = None) -> None:
        name = type(self).__name__
        self.means = _array(name, "means", means, 2)
        k, d = self.means.shape
        self.weights = _array(name, "weights", weights, 1)
        if self.weights.shape != (k,) or not (self.weights > 0).all():
            raise ValueError(message(name, "weights", f"{self.weights}", f"{k} numbers > 0, one for each mean"))
        self.weights /= self.weights.sum()
        identity = np.broadcast_to(np.eye(d), (k, d, d))
        self.covariances = _array(name, "covariances", identity if covariances is None else covariances, 3)
        if self.covariances.shape != (k, d, d) or not np.allclose(self.covariances, self.covariances.mT):
            raise ValueError(
                message(name, "covariances", f"shape {self.covariances.shape}", f"symmetric, shape {(k, d, d)}")
            )
        try:
            self._factors = np.linalg.cholesky(self.covariances)
        except np.linalg.LinAlgError:
            raise ValueError(message(name, "covariances", "one that is not positive definite", "such ones")) from None
        self._precisions = np.linalg.inv(self.covariances)
        logs = np.log(np.diagonal(self._factors, axis1=1, axis2=2)).sum(1)
        self._constants = np.log(self.weights) - logs - d / 2 * math.log(2 * math.pi)
        self.mean = self.weights @ self.means
        away = self.means - self.mean
        self.covariance = np.einsum("k,kde->de", self.weights, self.covariances)
        self.covariance += np.einsum("k,kd,ke->de", self.weights, away, away)

    def __repr__(self) -> str:
        k, d = self.means.shape
        return f"GaussianMixture({k} components in {d} dimensions)"

    def _parts(self, points: Floats) -> tuple[Floats, Floats]:
        """Log densities of the weighted components (k, n) and their scores (k, n, d)."""
        away = self.means[:, None] - points
        scores = away @ self._precisions
        return self._constants[:, None] - 0.5 * np.einsum("knd,knd->kn", away, scores), scores

    def log_density(self, points: Floats) -> Floats:
        """The logarithm of the density, (n,)."""
        parts, _ = self._parts(points)
        top = parts.max(0)
        return _like(top + np.log(np.exp(parts - top).sum(0)), points)

    def score(self, points: Floats) -> Floats:
        """Its gradient, (n, d)."""
        parts, scores = self._parts(points)
        shares = np.exp(parts - parts.max(0))
        shares /= shares.sum(0)
        return _like(np.einsum("kn,knd->nd", shares, scores), points)

    def sample(self, n: int, seed: int = 0) -> Floats:
        """Independent points of the density, (n, d) float64."""
        name = f"{type(self).__name__}.sample"
        n, seed = _count(name, n), _seed(name, seed)
        d = self.means.shape[1]
        u = _normals(seed, "mixture", n, draw=1, dist="uniform")
        which = np.searchsorted(np.cumsum(self.weights)[:-1], u, side="right")
        z = _normals(seed, "mixture", n, d)
        x: Floats = self.means[which] + np.einsum("nde,ne->nd", self._factors[which], z)
        return x


class Gaussian(GaussianMixture):
    """A normal density, normalised.

    Args:
        mean: (d,).
        covariance: (d, d), symmetric positive definite; the unit matrix if None.
    """

    def __init__(self, mean: Any, covariance: Any = None) -> None:
        centre = _array("Gaussian", "mean", mean, 1)
        matrix = None if covariance is None else _array("Gaussian", "covariance", covariance, 2)[None]
        super().__init__([1.0], centre[None], matrix)

    def __repr__(self) -> str:
        return f"Gaussian({self.means.shape[1]} dimensions)"


def four_modes(seed: int = 0) -> GaussianMixture:
    """The mixture of the SV-ES authors' demonstration: four unit normals in the plane.

    Weights are proportional to U(0, 10), means are U(-4, 4)^2; samplers there start from U(-6, 6)^2.
    """
    u = _normals(_seed("four_modes", seed), "four_modes", 4, 3, dist="uniform")
    return GaussianMixture(u[:, 0] + 2.0**-25, 8 * u[:, 1:] - 4)  # the stream's uniform may be 0


class DoubleBanana:
    """Two thin bananas in the plane (Detommaso et al. 2018), unnormalised::

        log p = -abs(x)^2 / 2 - (ln 30 - F)^2 / (2 deviation^2),  F = ln((1 - x_1)^2 + 100 (x_2 - x_1^2)^2)

    the posterior of a standard normal after one observation of Rosenbrock's function. Its density at (1, 1) is 0.
    """

    deviation = 0.3

    def __repr__(self) -> str:
        return "DoubleBanana()"

    def _rosenbrock(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        a = 1 - points[:, 0]
        b = points[:, 1] - np.square(points[:, 0])
        return a, b, a * a + 100 * b * b

    def log_density(self, points: Floats) -> Floats:
        """The logarithm of the density up to a constant, (n,)."""
        with np.errstate(divide="ignore"):
            misfit = math.log(30) - np.log(self._rosenbrock(points)[2])
        out = -0.5 * np.einsum("nd,nd->n", points, points) - np.square(misfit / self.deviation) / 2
        return _like(out, points)

    def score(self, points: Floats) -> Floats:
        """Its gradient, (n, d); NaN at (1, 1)."""
        a, b, r = self._rosenbrock(points)
        with np.errstate(divide="ignore", invalid="ignore"):
            outer = (math.log(30) - np.log(r)) / (self.deviation**2 * r)
            gradient = np.stack([-2 * a - 400 * b * points[:, 0], 200 * b], 1) * outer[:, None]
        return _like(gradient - points, points)

    def sample(self, n: int, seed: int = 0) -> Floats:
        """Independent points of the density, (n, 2) float64, by rejection from the standard normal (some 11 % stay)."""
        n, seed = _count("DoubleBanana.sample", n), _seed("DoubleBanana.sample", seed)
        kept: list[Floats] = []
        found, draw, block = 0, 0, max(1024, 16 * n)
        while found < n:
            x = _normals(seed, "banana", block, 2, draw=2 * draw)
            u = _normals(seed, "banana", block, draw=2 * draw + 1, dist="uniform")
            log_ratio = self.log_density(x) + 0.5 * np.einsum("nd,nd->n", x, x)
            kept.append(x[u < np.exp(log_ratio)])
            found, draw = found + len(kept[-1]), draw + 1
        return np.concatenate([*kept, np.empty((0, 2))])[:n]


class LogisticRegression:
    """The posterior of a logistic regression's coefficients with a normal prior, unnormalised.

    Args:
        X: (m, d), the design matrix; put a column of ones in it for an intercept.
        y: (m,), of 0 and 1.
        prior_scale: standard deviation of every coefficient's N(0, prior_scale^2) prior.

    >>> import numpy as np
    >>> from curvk.stein.problems import LogisticRegression
    >>> p = LogisticRegression(np.array([[1.0, 2.0], [1.0, -1.0]]), np.array([1, 0]))
    >>> p.log_density(np.zeros((1, 2))), p.score(np.zeros((1, 2)))
    (array([-1.38629436]), array([[0. , 1.5]]))
    """

    def __init__(self, X: Any, y: Any, prior_scale: float = 1.0) -> None:
        self.X = _array("LogisticRegression", "X", X, 2)
        self.y = _array("LogisticRegression", "y", y, 1)
        if self.y.shape != self.X.shape[:1] or not np.isin(self.y, (0, 1)).all():
            raise ValueError(message("LogisticRegression", "y", f"shape {self.y.shape}", f"{len(self.X)} of 0 or 1"))
        self._scale = real("LogisticRegression", "prior_scale", prior_scale, "a finite number > 0", 0.0, open=True)

    def __repr__(self) -> str:
        return f"LogisticRegression({len(self.X)} rows of {self.X.shape[1]}, prior_scale={self._scale:g})"

    def log_density(self, points: Floats) -> Floats:
        """The logarithm of likelihood times prior, up to a constant, (n,)."""
        logits = points @ self.X.T.astype(points.dtype, copy=False)
        likelihood = logits @ self.y.astype(points.dtype, copy=False) - np.logaddexp(0, logits).sum(1)
        out = likelihood - np.einsum("nd,nd->n", points, points) / (2 * self._scale**2)
        return _like(out, points)

    def score(self, points: Floats) -> Floats:
        """Its gradient, (n, d)."""
        X = self.X.astype(points.dtype, copy=False)
        residuals = self.y - self.predict_proba(points, X)
        return _like(residuals @ X - points / self._scale**2, points)

    def predict_proba(self, points: Floats, X: Floats) -> Floats:
        """Probabilities of class 1 at the rows of X by each point, (n, len(X))."""
        return _like(np.exp(-np.logaddexp(0, -(points @ X.T))), points)

    def accuracy(self, points: Floats, X: Floats, y: Floats) -> float:
        """Accuracy on (X, y) of the mean prediction of the points."""
        return float(np.mean((self.predict_proba(points, X).mean(0) > 0.5) == (y > 0.5)))

    def laplace(self) -> Gaussian:
        """The normal density with the posterior's mode and its curvature there, by Newton's method."""
        w = np.zeros(self.X.shape[1])
        prior = np.eye(len(w)) / self._scale**2
        for _ in range(100):
            p = self.predict_proba(w[None], self.X)[0]
            hessian = (self.X * (p * (1 - p))[:, None]).T @ self.X + prior
            move = np.linalg.solve(hessian, self.score(w[None])[0])
            size = 1.0
            start = self.log_density(w[None])[0]
            while size > 1e-8 and not self.log_density((w + size * move)[None])[0] >= start:
                size /= 2
            w = w + size * move
            if np.abs(move).max() < 1e-12:
                break
        return Gaussian(w, np.linalg.inv(hessian))

    def sample(self, n: int, seed: int = 0) -> Floats:
        """Points of the posterior, (n, d) float64, by independence Metropolis chains on the Laplace approximation.

        n chains start at draws of a t density with 5 degrees of freedom around the mode and take 100 proposals of it
        each. Their distance from the posterior falls by 1 - 1 / M with each proposal, M the largest ratio of the
        posterior to the proposal: near a normal density a small number.
        """
        n, seed = _count("LogisticRegression.sample", n), _seed("LogisticRegression.sample", seed)
        fit = self.laplace()
        d, degrees = len(fit.mean), 5
        factor, precision = np.linalg.cholesky(fit.covariance), np.linalg.inv(fit.covariance)

        def proposals(draw: int) -> tuple[Floats, Floats]:
            z = _normals(seed, "logistic", n, d + degrees, draw=2 * draw)
            t = z[:, :d] / np.sqrt(np.square(z[:, d:]).mean(1, keepdims=True))
            x = fit.mean + t @ factor.T
            distance = np.einsum("nd,de,ne->n", x - fit.mean, precision, x - fit.mean)
            return x, self.log_density(x) + (degrees + d) / 2 * np.log1p(distance / degrees)

        x, weight = proposals(0)
        for draw in range(1, 101):
            y, new = proposals(draw)
            u = _normals(seed, "logistic", n, draw=2 * draw + 1, dist="uniform")
            better = u < np.exp(np.minimum(new - weight, 0))
            x[better], weight[better] = y[better], new[better]
        return x


def breast_cancer(
    n_features: int = 4, test_fraction: float = 0.3, seed: int = 0
) -> tuple[LogisticRegression, Floats, Floats]:
    """Bayesian logistic regression on scikit-learn's breast cancer data: (posterior, test X, test y).

    Args:
        n_features: how many of the 30 measurements, the first ones, standardised; a column of ones follows.
        test_fraction: share of the 569 rows that is kept for the test, in [0, 1).
        seed: of the split.

    Raises:
        ImportError: scikit-learn, which brings the data, is not installed.
    """
    n_features = integer("breast_cancer", "n_features", n_features, 1, 31, "31")
    fraction = real("breast_cancer", "test_fraction", test_fraction, "a number in [0, 1)", 0.0)
    if not fraction < 1:
        raise ValueError(message("breast_cancer", "test_fraction", f"{fraction}", "a number in [0, 1)"))
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise ImportError(
            "curvk.stein.problems.breast_cancer needs scikit-learn for its data: pip install scikit-learn"
        ) from None
    X, y = load_breast_cancer(return_X_y=True)
    order = np.argsort(_normals(_seed("breast_cancer", seed), "split", len(y), dist="uniform"), kind="stable")
    first = round(fraction * len(y))
    train, test = order[first:], order[:first]
    X = X[:, :n_features]
    X = (X - X[train].mean(0)) / X[train].std(0)
    X = np.hstack([X, np.ones((len(X), 1))])
    return LogisticRegression(X[train], y[train]), X[test], y[test].astype(np.float64)


class Pendulum:
    """Swing-up of a pendulum by a small network; a point is a policy's weights, its log density the return.

    A rod of length and mass 1 hangs from a motor with torque in [-2, 2], too weak to lift it at once. Every 0.05 s::

        speed <- clip(speed + 0.05 (15 sin(angle) + 3 torque), -8, 8),   angle <- angle + 0.05 speed

    (angle 0 is upright) and the return loses angle^2 + 0.1 speed^2 + 0.001 torque^2, angle in [-pi, pi), all taken
    before the move: the dynamics and costs of the usual benchmark. The policy is
    torque = 2 tanh(w2.tanh(W1 f + b1) + b2) with f = (cos angle, sin angle, speed / 8). Then::

        log_density(w) = return(w) / temperature - abs(w)^2 / (2 prior_scale^2)

    with the mean return of rods that start at rest at `starts` angles around the lowest one. It is deterministic and
    has no score; policies that swing the other way round first are other modes.

    Args:
        hidden: units of the network; points have d = 5 hidden + 1 coordinates.
        steps: of an episode.
        starts: number of rods.
        temperature: > 0, in units of the return.
        prior_scale: > 0.

    >>> import numpy as np
    >>> from curvk.stein.problems import Pendulum
    >>> pendulum = Pendulum(steps=10, starts=1)  # without torque the rod hangs still: a loss of pi^2 a step
    >>> pendulum.d, pendulum.returns(np.zeros((1, 21))).round(2)
    (21, array([-98.7]))
    """

    def __init__(
        self, hidden: int = 4, steps: int = 150, starts: int = 2, temperature: float = 10.0, prior_scale: float = 3.0
    ) -> None:
        name = "Pendulum"
        self._hidden = integer(name, "hidden", hidden, 1, 1 << 20, "2^20")
        self._steps = integer(name, "steps", steps, 1, 1 << 31, "2^31")
        self._starts = integer(name, "starts", starts, 1, 1 << 20, "2^20")
        self._temperature = real(name, "temperature", temperature, "a finite number > 0", 0.0, open=True)
        self._prior_scale = real(name, "prior_scale", prior_scale, "a finite number > 0", 0.0, open=True)
        self.d = 5 * self._hidden + 1

    def __repr__(self) -> str:
        return (
            f"Pendulum(hidden={self._hidden}, steps={self._steps}, starts={self._starts}, "
            f"temperature={self._temperature:g}, prior_scale={self._prior_scale:g})"
        )

    def returns(self, points: Floats) -> Floats:
        """The mean return of each policy, (n,)."""
        if points.ndim != 2 or points.shape[1] != self.d:
            raise ValueError(message("Pendulum.returns", "points", f"shape {points.shape}", f"shape (n, {self.d})"))
        n, h = len(points), self._hidden
        # Units first: each operation of a step then runs along all policies and rods.
        layers = np.ascontiguousarray(points.T)[:, :, None]
        inner, bias = layers[: 3 * h].reshape(h, 3, n, 1), layers[3 * h : 4 * h]
        outer, last = layers[4 * h : 5 * h], layers[5 * h]
        spread = np.linspace(-0.5, 0.5, self._starts) if self._starts > 1 else np.zeros(1)
        angle = np.tile((math.pi + spread).astype(points.dtype), (n, 1))
        speed, total = np.zeros_like(angle), np.zeros_like(angle)
        units, term = (np.empty((h, n, self._starts), points.dtype) for _ in range(2))
        for _ in range(self._steps):
            sine = np.sin(angle)
            np.multiply(inner[:, 0], np.cos(angle), out=units)
            units += np.multiply(inner[:, 1], sine, out=term)
            units += np.multiply(inner[:, 2], 0.125 * speed, out=term)
            units += bias
            np.tanh(units, out=units)
            units *= outer
            torque = 2 * np.tanh(units.sum(0) + last)
            turned = angle + math.pi
            turned = turned - 2 * math.pi * np.floor(turned / (2 * math.pi)) - math.pi
            total -= turned * turned + 0.1 * speed * speed + 0.001 * torque * torque
            speed += 0.75 * sine + 0.15 * torque
            np.clip(speed, -8, 8, out=speed)
            angle += 0.05 * speed
        return _like(total.mean(1), points)

    def log_density(self, points: Floats) -> Floats:
        """The mean return over the temperature, and the prior's logarithm, (n,)."""
        prior = np.einsum("nd,nd->n", points, points) / (2 * self._prior_scale**2)
        return _like(self.returns(points) / self._temperature - prior, points)
