"""curvk.stein.GradientFreeSVGD: equal to SVGD where it must be, its weights, surrogates and annealing."""

from __future__ import annotations

import numpy as np
import pytest
from curvk import stein
from curvk.stein import problems
from stein_truth import KERNELS, H, direction, particles


def svgd(x, score, **options):
    """SVGD's direction."""
    sampler = stein.SVGD(score, x, step="sgd", lr=1.0, **options)
    return sampler.run(1) - x


def gradient_free(log_density, x, **options):
    sampler = stein.GradientFreeSVGD(log_density, x, step="sgd", lr=1.0, **options)
    sampler.step()
    return sampler, sampler.particles - x


def test_own_density_as_surrogate_is_svgd():
    target = problems.four_modes(1)
    x = particles(40, 2, 20)
    sampler, moved = gradient_free(target.log_density, x, surrogate=target)
    np.testing.assert_allclose(moved, svgd(x, target.score), rtol=1e-13, atol=1e-15)
    assert sampler.ess == pytest.approx(40)


def test_gradient_free_direction_is_the_weighted_double_loop():
    target, rho = problems.four_modes(2), problems.Gaussian([0.2, 0.1], [[9.0, 1.0], [1.0, 8.0]])
    x = particles(11, 2, 21)
    shifted = 1e4  # constants of the densities do not matter, nor do they overflow
    sampler, moved = gradient_free(lambda p: target.log_density(p) - shifted, x, surrogate=rho, bandwidth=H)
    w = np.exp(rho.log_density(x) - target.log_density(x))
    w /= w.sum()
    np.testing.assert_allclose(moved, direction(KERNELS["gaussian"][1], x, rho.score(x), w), atol=1e-8)
    assert sampler.ess == pytest.approx(1 / np.sum(w**2))


def test_fitted_surrogate_is_the_particles_gaussian():
    """With p that Gaussian itself all weights are equal; the ridge of 1e-3 is in both."""
    x = particles(50, 3, 22)
    covariance = 4 * np.cov(x.T, bias=True)
    covariance += 1e-3 * np.trace(covariance) / 3 * np.eye(3)
    target = problems.Gaussian(x.mean(0), covariance)
    sampler, moved = gradient_free(target.log_density, x, inflation=2.0)
    assert sampler.ess == pytest.approx(50)
    np.testing.assert_allclose(moved, svgd(x, target.score), rtol=1e-10, atol=1e-13)


def test_annealed_weights_are_powers():
    """A fixed surrogate is p_0 too: log w = b (log rho - log p) with b = 1/4, 2/4, ... 1, 1."""
    target, rho = problems.four_modes(2), problems.Gaussian([0.0, 0.0], 9 * np.eye(2))
    sampler = stein.GradientFreeSVGD(target.log_density, particles(15, 2, 23), surrogate=rho, annealing=4, lr=0.01)
    for step in range(6):
        x = sampler.particles.copy()
        w = np.exp(min(1, (step + 1) / 4) * (rho.log_density(x) - target.log_density(x)))
        sampler.step()
        assert sampler.ess == pytest.approx(w.sum() ** 2 / np.sum(w**2))


def test_annealing_from_the_first_fit():
    """The fitted surrogate at step 0 is p_0: weights (rho / p)^b in the first step, with p a normal density."""
    x = particles(30, 2, 24)
    target = problems.Gaussian([1.0, 0.0])
    sampler, _ = gradient_free(target.log_density, x, annealing=10)
    covariance = np.cov(x.T, bias=True)
    rho = problems.Gaussian(x.mean(0), covariance + 1e-3 * np.trace(covariance) / 2 * np.eye(2))
    w = np.exp(0.1 * (rho.log_density(x) - target.log_density(x)))
    assert sampler.ess == pytest.approx(w.sum() ** 2 / np.sum(w**2))


def test_gradient_free_finds_a_normal_density():
    target = problems.Gaussian([2.0, -1.0], [[1.0, 0.3], [0.3, 0.5]])
    sampler = stein.GradientFreeSVGD(target.log_density, particles(200, 2, 25), lr=0.05, inflation=1.5)
    x = sampler.run(500)
    assert np.abs(x.mean(0) - target.mean).max() < 0.1
    assert np.abs(np.cov(x.T) - target.covariance).max() < 0.25


def test_fewer_particles_than_dimensions():
    sampler = stein.GradientFreeSVGD(lambda x: -np.square(x).sum(1), particles(3, 8, 26))
    assert np.isfinite(sampler.run(20)).all()


def test_infinite_weights_name_the_particle():
    x = particles(5, 2, 27)

    def bounded(points):
        return np.where(np.arange(5) == 3, -np.inf, 0.0)

    sampler = stein.GradientFreeSVGD(bounded, x)
    with pytest.raises(ValueError, match=r"log_density\(points\)': got -inf for particle 3"):
        sampler.step()
    assert np.array_equal(sampler.particles, x)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_particles_that_coincide_stay(n):
    """The fitted Gaussian's mean is the common point: without rounding, which a covariance of 0 would magnify."""
    x = np.full((n, 2), 0.1)
    sampler = stein.GradientFreeSVGD(lambda p: -np.square(p).sum(1), x, step="sgd", lr=1.0)
    assert np.array_equal(sampler.run(3), x)
