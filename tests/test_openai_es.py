"""curvk.stein.SVOpenAIES: its scores against exact expectations, its schedule, ranks and noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from curvk import stein
from curvk.kernels import noise
from curvk.stein import problems
from curvk.stein._openai_es import centred_ranks, in_finite_range


def particles(n, d, seed=0, dtype=np.float64):
    print(f"{seed=}")
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def draws(es, step=0):
    """The normals of a step, (n, popsize / 2, d), from the stream's definition."""
    n, d = es.particles.shape
    eps = np.empty((n, es._popsize // 2, d))
    return noise.fill(eps, seed=es.seed, draw=step, tensor=noise.tensor_word("SVOpenAIES", "sampling"))


def test_candidates_are_antithetic_pairs_around_their_particle():
    x, seen = particles(5, 3), []
    es = stein.SVOpenAIES(lambda p: seen.append(p.copy()) or p.sum(1), x, sigma=0.3, popsize=6, seed=9)
    eps = draws(es)
    es.step()
    c = seen[0].reshape(5, 6, 3)
    np.testing.assert_allclose(c[:, :3], x[:, None] + 0.3 * eps, rtol=1e-14)
    np.testing.assert_allclose(c[:, 3:], x[:, None] - 0.3 * eps, rtol=1e-14)
    assert es.n_evaluations == 30


@pytest.mark.parametrize("popsize", [2, 4, 10])
def test_linear_scores_are_exact(popsize):
    """For log p = g.x the estimate is 2/popsize sum eps eps^T g, exactly, for any sigma."""
    g = np.array([1.0, -2.0, 0.5])
    for sigma in (1e-3, 1.0, 50.0):
        es = stein.SVOpenAIES(lambda p: p @ g, particles(6, 3, 1), sigma=sigma, popsize=popsize, seed=3)
        eps = draws(es)
        es.step()
        want = 2 / popsize * np.einsum("nkd,nke,e->nd", eps, eps, g)
        np.testing.assert_allclose(es.scores, want, rtol=1e-9, atol=1e-10)


def test_quadratic_scores_are_those_of_the_gradient():
    """The curvature cancels in a pair: for log p = -x.A x / 2 the estimate is 2/popsize sum eps eps^T grad, exactly."""
    a = np.array([[2.0, 0.5], [0.5, 1.0]])
    x = particles(7, 2, 2)
    for sigma in (0.1, 3.0):
        es = stein.SVOpenAIES(lambda p: -0.5 * np.einsum("nd,de,ne->n", p, a, p), x, sigma=sigma, popsize=8, seed=4)
        eps = draws(es)
        es.step()
        want = 2 / 8 * np.einsum("nkd,nke,ne->nd", eps, eps, -x @ a)
        np.testing.assert_allclose(es.scores, want, rtol=1e-11, atol=1e-12)


def test_scores_are_unbiased():
    """The mean over many pairs is the gradient of a quadratic, within five standard errors."""
    a = np.array([[2.0, 0.5], [0.5, 1.0]])
    x = np.array([[1.0, -1.5]])
    es = stein.SVOpenAIES(lambda p: -0.5 * np.einsum("nd,de,ne->n", p, a, p), x, sigma=2.0, popsize=400_000, seed=5)
    es.step()
    g = -(x @ a)[0]
    errors = np.sqrt((np.sum(g**2) + g**2) / 200_000)  # var of eps_i (eps.g) is |g|^2 + g_i^2
    assert np.all(np.abs(es.scores[0] - g) < 5 * errors)


def test_direction_is_svgds_of_these_scores():
    target = problems.four_modes(0)
    x = particles(12, 2, 6)
    es = stein.SVOpenAIES(target.log_density, x, sigma=0.2, popsize=4, step="sgd", lr=1.0, repulsion=0.4, bandwidth=0.9)
    es.step()
    svgd = stein.SVGD(lambda _: es.scores, x, step="sgd", lr=1.0, repulsion=0.4, bandwidth=0.9)
    np.testing.assert_allclose(es.particles, svgd.run(1), rtol=1e-13)


def test_schedules_are_applied():
    x, seen = np.zeros((1, 2)), []
    es = stein.SVOpenAIES(
        lambda p: seen.append(p.copy()) or p @ np.ones(2),
        x,
        sigma=0.8,
        sigma_decay=0.5,
        sigma_min=0.15,
        lr=1.0,
        lr_decay=0.1,
        lr_min=0.05,
        step="sgd",
        popsize=2,
    )
    for step in range(6):
        sigma, lr = max(0.8 * 0.5**step, 0.15), max(0.1**step, 0.05)
        assert es.sigma == sigma
        before, eps = es.particles.copy(), draws(es, step)
        es.step()
        np.testing.assert_allclose(seen[-1][0], before[0] + sigma * eps[0, 0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(es.particles - before, lr * es.scores, rtol=1e-9, atol=1e-12)


def test_sigma_that_vanishes_is_refused():
    es = stein.SVOpenAIES(lambda p: p.sum(1), np.zeros((1, 1)), sigma=1.0, sigma_decay=0.0)
    es.step()
    with pytest.raises(ValueError, match="sigma_min"):
        es.step()


def test_ranks_do_not_see_monotone_transforms():
    target = problems.four_modes(1)
    x = particles(10, 2, 7)

    def of(transform, ranks):
        es = stein.SVOpenAIES(lambda p: transform(target.log_density(p)), x, ranks=ranks, popsize=6, sigma=0.5)
        return es.run(10).copy()

    assert np.array_equal(of(lambda v: v, True), of(lambda v: np.exp(v / 4) - 3, True))
    assert not np.array_equal(of(lambda v: v, False), of(lambda v: np.exp(v / 4) - 3, False))


def test_centred_ranks_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(8)  # seed 8
    values = np.concatenate([rng.standard_normal((20, 7)), rng.integers(0, 3, (20, 7))])
    np.testing.assert_allclose(centred_ranks(values), (stats.rankdata(values, axis=1) - 1) / 6 - 0.5, atol=1e-15)


def test_nan_ranks_last():
    ranks = centred_ranks(np.array([[3.0, np.nan, 1.0], [np.nan, np.nan, 5.0], [np.nan, -np.inf, 0.0]]))
    np.testing.assert_allclose(ranks, [[0.5, -0.5, 0.0], [-0.25, -0.25, 0.5], [-0.25, -0.25, 0.5]])
    assert not centred_ranks(np.full((2, 4), 7.0)).any()


def test_values_are_brought_to_the_finite_range():
    nan, inf = math.nan, math.inf
    values = np.array([[1.0, nan, 3.0], [-inf, inf, 2.0], [nan, -inf, inf], [4.0, inf, 5.0]])
    want = [[1, 1, 3], [2, 2, 2], [0, 0, 0], [4, 5, 5]]
    np.testing.assert_array_equal(in_finite_range(values), want)


@pytest.mark.parametrize("ranks", [False, True])
def test_nan_values_leave_other_particles_alone(ranks):
    x = particles(4, 2, 9)

    def density(points):
        values = -np.square(points).sum(1)
        values[4:8] = np.nan  # all candidates of particle 1
        return values

    options = {"ranks": ranks, "popsize": 4, "sigma": 0.2, "bandwidth": 1.0}
    some = stein.SVOpenAIES(density, x, **options)
    none = stein.SVOpenAIES(lambda p: -np.square(p).sum(1), x, **options)
    some.step()
    none.step()
    assert not some.scores[1].any()
    others = [0, 2, 3]
    assert np.array_equal(some.scores[others], none.scores[others])


def test_noise_is_the_seeds():
    x = particles(5, 2, 10)

    def of(seed):
        return stein.SVOpenAIES(lambda p: -np.square(p).sum(1), x, seed=seed).run(5)

    assert np.array_equal(of(1), of(1))
    assert not np.array_equal(of(1), of(2))
    narrow = stein.SVOpenAIES(lambda p: -np.square(p).sum(1), x.astype(np.float32), seed=1).run(5)
    np.testing.assert_allclose(narrow, of(1), atol=1e-4)


def test_particles_become_a_sample():
    target = problems.four_modes(3)
    x0 = 12 * np.random.default_rng(11).random((100, 2)) - 6
    truth = target.sample(2000, seed=12)
    es = stein.SVOpenAIES(target.log_density, x0, sigma=0.1, popsize=4, lr=0.1, seed=13)
    before = stein.mmd2(x0, truth, bandwidth=2.0)
    assert stein.mmd2(es.run(400), truth, bandwidth=2.0) < before / 5


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"sigma": 0.0}, ValueError, "sigma"),
        ({"sigma": "1"}, TypeError, "sigma"),
        ({"popsize": 3}, ValueError, "even"),
        ({"popsize": 0}, ValueError, "popsize"),
        ({"popsize": 2.0}, TypeError, "popsize"),
        ({"ranks": 1}, TypeError, "ranks"),
        ({"sigma_decay": -1}, ValueError, "sigma_decay"),
        ({"lr_min": math.inf}, ValueError, "lr_min"),
        ({"degree": 2}, TypeError, "degree"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        stein.SVOpenAIES(lambda p: p.sum(1), np.zeros((3, 2)), **options)


@pytest.mark.parametrize(
    ("density", "error", "match"),
    [
        (lambda p: p, ValueError, r"shape \(12, 2\), needs shape \(12,\)"),
        (lambda p: p[:, :1], ValueError, r"shape \(12, 1\)"),
        (lambda p: 0.0, TypeError, "float"),
        (lambda p: np.zeros(12, int), TypeError, "int64"),
        (lambda p: np.zeros(12, object), TypeError, "object"),
    ],
)
def test_bad_values_change_nothing(density, error, match):
    es = stein.SVOpenAIES(density, np.ones((3, 2)))
    with pytest.raises(error, match=match):
        es.step()
    assert es.n_steps == es.n_evaluations == 0
    assert np.array_equal(es.particles, np.ones((3, 2)))
