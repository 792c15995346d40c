"""curvk.stein.problems: scores against complex and finite steps, densities by quadrature, samples by their laws."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from curvk.stein import problems


def differences(f, x, e=1e-6):
    """The gradient of f at each point by central differences."""
    return np.stack([(f(x + e * u) - f(x - e * u)) / (2 * e) for u in np.eye(x.shape[1])], 1)


def points(n, d, seed, scale=1.0):
    print(f"{seed=}")
    return scale * np.random.default_rng(seed).standard_normal((n, d))


def logistic(seed=0, m=40, d=3):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((m, d))
    return problems.LogisticRegression(X, (X @ np.arange(1, d + 1) + rng.standard_normal(m) > 0).astype(float), 2.0)


ALL = {
    "Gaussian": lambda: problems.Gaussian([1.0, -2.0], [[2.0, 0.7], [0.7, 1.0]]),
    "GaussianMixture": lambda: problems.GaussianMixture(
        [1, 3], [[0.0, 1.0, 0.0], [2.0, -1.0, 1.0]], [np.eye(3), np.diag([0.5, 2.0, 1.0])]
    ),
    "four_modes": lambda: problems.four_modes(2),
    "DoubleBanana": problems.DoubleBanana,
    "LogisticRegression": logistic,
}


@pytest.mark.parametrize("name", ALL)
def test_scores_are_gradients(name):
    problem = ALL[name]()
    d = 3 if name in ("GaussianMixture", "LogisticRegression") else 2
    x = points(50, d, 1, 1.5)
    want = differences(problem.log_density, x)
    np.testing.assert_allclose(problem.score(x), want, rtol=2e-5, atol=2e-5 * max(1.0, np.abs(want).max() / 1e3))


@pytest.mark.parametrize("name", [*ALL, "Pendulum"])
def test_dtype_is_the_points(name):
    problem = problems.Pendulum(steps=20) if name == "Pendulum" else ALL[name]()
    d = {"Pendulum": 21, "GaussianMixture": 3, "LogisticRegression": 3}.get(name, 2)
    x = points(6, d, 2)
    for dtype in (np.float32, np.float64):
        values = problem.log_density(x.astype(dtype))
        assert values.dtype == dtype
        assert values.shape == (6,)
        np.testing.assert_allclose(values, problem.log_density(x), rtol=1e-3, atol=1e-3)
        if name != "Pendulum":
            scores = problem.score(x.astype(dtype))
            assert scores.dtype == dtype
            np.testing.assert_allclose(scores, problem.score(x), rtol=2e-2, atol=1e-3 * np.abs(scores).max())


def plane(density, reach, n=2000):
    """A density's values on a grid of the plane, (n, n), with the grid and the cell's area."""
    ticks = (np.arange(n) + 0.5) / n * 2 * reach - reach
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    values = np.concatenate([np.exp(density(part)) for part in np.array_split(grid, 20)])
    return values, grid, (2 * reach / n) ** 2


@pytest.mark.parametrize("name", ["Gaussian", "four_modes"])
def test_densities_are_normalised_with_their_moments(name):
    problem = ALL[name]()
    values, grid, area = plane(problem.log_density, 12.0, 600)
    assert values.sum() * area == pytest.approx(1, abs=1e-9)
    mean = values @ grid * area
    np.testing.assert_allclose(mean, problem.mean, atol=1e-8)
    second = np.einsum("n,nd,ne->de", values, grid, grid) * area
    np.testing.assert_allclose(second - np.outer(mean, mean), problem.covariance, atol=1e-7)


def test_mixture_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    p = ALL["GaussianMixture"]()
    x = points(30, 3, 3, 2.0)
    parts = [stats.multivariate_normal(m, c).pdf(x) for m, c in zip(p.means, p.covariances, strict=True)]
    np.testing.assert_allclose(p.log_density(x), np.log(0.25 * parts[0] + 0.75 * parts[1]), rtol=1e-12)
    far = np.array([[1e3, 0.0, 0.0]])  # where every component's density underflows
    assert p.log_density(far)[0] == pytest.approx(
        max(
            math.log(w) + stats.multivariate_normal(m, c).logpdf(far)
            for w, m, c in zip((0.25, 0.75), p.means, p.covariances, strict=True)
        )
    )


@pytest.mark.parametrize("name", ["Gaussian", "GaussianMixture", "four_modes"])
def test_samples_have_the_moments(name):
    """Mean within five standard errors; covariance within 3 %."""
    problem = ALL[name]()
    x = problem.sample(200_000, seed=4)
    errors = np.sqrt(np.diag(problem.covariance) / len(x))
    assert np.all(np.abs(x.mean(0) - problem.mean) < 5 * errors)
    assert np.abs(np.cov(x.T) - problem.covariance).max() < 0.03 * np.abs(problem.covariance).max()


def chi_square(x, problem_density, reach, cells=12, n=1200):
    """Pearson's statistic of a sample against a density of the plane on squares, and its degrees of freedom."""
    values, _, _ = plane(problem_density, reach, n)
    share = values.reshape(cells, n // cells, cells, n // cells).sum((1, 3)) / values.sum()
    counts, _, _ = np.histogram2d(*x.T, bins=cells, range=[[-reach, reach]] * 2)
    assert counts.sum() > 0.999 * len(x)
    want = len(x) * share.ravel()
    seen = counts.ravel()
    big = want >= 10
    want, seen = (np.append(a[big], a[~big].sum()) for a in (want, seen))
    if want[-1] < 10:
        want, seen = want[:-1], seen[:-1]
    return float(np.sum((seen - want) ** 2 / want)), len(want) - 1


@pytest.mark.parametrize("name", ["four_modes", "DoubleBanana"])
def test_samples_fill_cells_as_the_density(name):
    problem, reach = ALL[name](), 9.0 if name == "four_modes" else 3.0
    statistic, degrees = chi_square(problem.sample(20_000, seed=5), problem.log_density, reach)
    print(f"{statistic=:.1f} {degrees=}")
    assert degrees > 15
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)


def test_double_banana_at_its_singular_point():
    p = problems.DoubleBanana()
    assert p.log_density(np.array([[1.0, 1.0]]))[0] == -np.inf
    x1, x2 = 0.5, -0.2
    f = math.log((1 - x1) ** 2 + 100 * (x2 - x1**2) ** 2)
    want = -(x1**2 + x2**2) / 2 - (math.log(30) - f) ** 2 / (2 * 0.3**2)
    assert p.log_density(np.array([[x1, x2]]))[0] == pytest.approx(want)


def test_four_modes_are_as_described():
    for seed in range(5):
        p = problems.four_modes(seed)
        assert p.means.shape == (4, 2)
        assert np.abs(p.means).max() <= 4
        assert p.weights.sum() == pytest.approx(1)
        assert np.array_equal(p.covariances, np.tile(np.eye(2), (4, 1, 1)))
    assert not np.array_equal(problems.four_modes(0).means, problems.four_modes(1).means)


def test_samples_are_the_seeds():
    for name in ("four_modes", "DoubleBanana", "LogisticRegression"):
        p = ALL[name]()
        assert np.array_equal(p.sample(20, seed=1), p.sample(20, seed=1))
        assert not np.array_equal(p.sample(20, seed=1), p.sample(20, seed=2))
        assert p.sample(0, seed=1).shape[0] == 0


def test_logistic_density_is_its_formula():
    p = logistic()
    w = points(5, 3, 6)
    for i in range(5):
        probability = 1 / (1 + np.exp(-p.X @ w[i]))
        want = np.sum(np.where(p.y == 1, np.log(probability), np.log1p(-probability))) - w[i] @ w[i] / 8
        assert p.log_density(w)[i] == pytest.approx(want)
    assert np.isfinite(p.log_density(np.full((1, 3), 1e4))).all()


def test_laplace_is_mode_and_curvature():
    p = logistic()
    fit = p.laplace()
    assert np.abs(p.score(fit.mean[None])).max() < 1e-8
    hessian = differences(lambda w: p.score(w)[:, 0], fit.mean[None], 1e-5)
    np.testing.assert_allclose(-np.linalg.inv(fit.covariance)[:1], hessian, rtol=1e-5, atol=1e-6)


def test_logistic_sample_against_quadrature():
    """In two dimensions a grid gives the posterior's moments and cells."""
    rng = np.random.default_rng(7)  # seed 7
    X = rng.standard_normal((12, 2))
    p = problems.LogisticRegression(X, (X[:, 0] + 0.5 * rng.standard_normal(12) > 0).astype(float), 2.0)
    values, grid, _ = plane(lambda w: p.log_density(w), 10.0, 600)
    mean = values @ grid / values.sum()
    x = p.sample(20_000, seed=8)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * x.std(0) / math.sqrt(20_000))
    statistic, degrees = chi_square(x, p.log_density, 10.0, cells=24)
    print(f"{statistic=:.1f} {degrees=}")
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)


def test_breast_cancer():
    pytest.importorskip("sklearn")
    p, X, y = problems.breast_cancer(4, 0.3, seed=1)
    assert p.X.shape == (398, 5)
    assert X.shape == (171, 5)
    np.testing.assert_allclose(p.X[:, :4].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(p.X[:, :4].std(0), 1, atol=1e-12)
    assert (p.X[:, 4] == 1).all()
    assert p.accuracy(p.laplace().mean[None], X, y) > 0.85
    x = p.sample(50, seed=2)
    assert p.accuracy(x, X, y) > 0.85


def test_breast_cancer_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="scikit-learn"):
        problems.breast_cancer()


# ---- the pendulum ----------------------------------------------------------------------------------------------------


def episode(w, hidden, steps, angle):
    """One rod, step by step, from the class's description."""
    inner, bias = w[: 3 * hidden].reshape(hidden, 3), w[3 * hidden : 4 * hidden]
    outer, last = w[4 * hidden : 5 * hidden], w[5 * hidden]
    speed = total = 0.0
    for _ in range(steps):
        f = np.array([math.cos(angle), math.sin(angle), speed / 8])
        torque = 2 * math.tanh(outer @ np.tanh(inner @ f + bias) + last)
        away = (angle + math.pi) % (2 * math.pi) - math.pi
        total -= away**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = min(max(speed + 0.05 * (15 * math.sin(angle) + 3 * torque), -8), 8)
        angle += 0.05 * speed
    return total


def test_returns_are_those_of_single_episodes():
    pendulum = problems.Pendulum(hidden=3, steps=40, starts=2, temperature=5.0, prior_scale=2.0)
    w = points(4, pendulum.d, 9)
    want = [np.mean([episode(x, 3, 40, math.pi + s) for s in (-0.5, 0.5)]) for x in w]
    np.testing.assert_allclose(pendulum.returns(w), want, rtol=1e-9)
    prior = np.sum(w**2, 1) / 8
    np.testing.assert_allclose(pendulum.log_density(w), np.array(want) / 5 - prior, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: problems.Gaussian([[0.0]]), ValueError, "mean"),
        (lambda: problems.Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), ValueError, "positive definite"),
        (lambda: problems.Gaussian([0.0, 0.0], [[1.0, 2.0], [0.0, 1.0]]), ValueError, "symmetric"),
        (lambda: problems.GaussianMixture([1.0], [[0.0], [1.0]]), ValueError, "weights"),
        (lambda: problems.GaussianMixture([1.0, -1.0], [[0.0], [1.0]]), ValueError, "weights"),
        (lambda: problems.GaussianMixture(["a"], [[0.0]]), TypeError, "weights"),
        (lambda: problems.LogisticRegression([[1.0]], [2.0]), ValueError, "'y'"),
        (lambda: problems.LogisticRegression([[np.nan]], [1.0]), ValueError, "'X'"),
        (lambda: problems.breast_cancer(31), ValueError, "n_features"),
        (lambda: problems.breast_cancer(3, 1.0), ValueError, "test_fraction"),
        (lambda: problems.four_modes(-1), ValueError, "seed"),
        (lambda: problems.four_modes(0).sample(-1), ValueError, "'n'"),
        (lambda: problems.Pendulum(hidden=0), ValueError, "hidden"),
        (lambda: problems.Pendulum().returns(np.zeros((2, 5))), ValueError, r"shape \(2, 5\)"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
