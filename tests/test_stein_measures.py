"""curvk.stein.mmd2 and ksd against explicit double loops, their invariances and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from curvk import stein
from curvk.stein import problems

H = 0.9
KERNELS = {
    "gaussian": ({}, lambda q: np.exp(-q / (2 * H * H))),
    "laplacian": ({}, lambda q: np.exp(-np.sqrt(q) / H)),
    "matern32": ({}, lambda q: (1 + np.sqrt(3 * q) / H) * np.exp(-np.sqrt(3 * q) / H)),
    "matern52": ({}, lambda q: (1 + np.sqrt(5 * q) / H + 5 * q / (3 * H * H)) * np.exp(-np.sqrt(5 * q) / H)),
    "rational_quadratic": ({"alpha": 0.7}, lambda q: (1 + q / (1.4 * H * H)) ** -0.7),
    "imq": ({}, lambda q: (1 + q / H**2) ** -0.5),
    "exponent": ({"gamma": 1.5}, lambda q: np.exp(-(q**0.75) / H)),
}


def points(n, d, seed, dtype=np.float64):
    print(f"{seed=}")
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def mmd2_by_loops(x, y, k, biased):
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if biased or i != j)
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if biased or i != j)
    xy = sum(k(a, b) for a in x for b in y)
    within = xx / n**2 + yy / m**2 if biased else xx / (n * (n - 1)) + yy / (m * (m - 1))
    return within - 2 * xy / (n * m)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_mmd2_is_the_double_loops(name, biased):
    parameters, k = KERNELS[name]
    x, y = points(11, 3, 1) + 5, 1.3 * points(7, 3, 2) + 5
    got = stein.mmd2(x, y, kernel=name, bandwidth=H, biased=biased, **parameters)
    assert got == pytest.approx(mmd2_by_loops(x, y, lambda a, b: k(np.sum((a - b) ** 2)), biased), abs=1e-13)


@pytest.mark.parametrize("biased", [True, False])
def test_mmd2_with_kernels_of_the_inner_product(biased):
    x, y = points(9, 2, 3), points(12, 2, 4) + 1
    got = stein.mmd2(x, y, kernel="polynomial", degree=2, gamma=0.5, coef0=1.0, biased=biased)
    assert got == pytest.approx(mmd2_by_loops(x, y, lambda a, b: (0.5 * a @ b + 1) ** 2, biased), rel=1e-12)
    linear = stein.mmd2(x, y, kernel="linear")
    assert linear == pytest.approx(np.sum((x.mean(0) - y.mean(0)) ** 2), rel=1e-12)


def test_median_bandwidth_is_that_of_both_samples():
    pdist = pytest.importorskip("scipy.spatial.distance").pdist
    x, y = points(15, 2, 5), points(20, 2, 6) + 2
    h = np.median(pdist(np.concatenate([x, y]))) / math.sqrt(2)
    assert stein.mmd2(x, y) == pytest.approx(stein.mmd2(x, y, bandwidth=h), rel=1e-12)
    assert stein.mmd2(np.ones((3, 2)), np.ones((4, 2))) == 0.0


def test_equal_samples_give_zero():
    x = points(50, 4, 7)
    for kernel in KERNELS:
        assert stein.mmd2(x, x.copy(), kernel=kernel, bandwidth=H) == 0.0
    assert stein.mmd2(x, x[::-1].copy(), bandwidth=H) == pytest.approx(0.0, abs=1e-15)


def test_mmd2_is_symmetric_and_not_negative():
    for seed in range(20):
        x, y = points(8, 2, seed), points(9, 2, 100 + seed)
        value = stein.mmd2(x, y, bandwidth=H)
        assert value >= 0
        assert stein.mmd2(y, x, bandwidth=H) == pytest.approx(value, rel=1e-12)


def test_float32_samples_are_measured_in_double():
    x, y = points(30, 2, 8, np.float32), points(40, 2, 9, np.float32)
    assert stein.mmd2(x, y) == stein.mmd2(x.astype(np.float64), y.astype(np.float64))
    assert stein.mmd2(x, y.astype(np.float64)) == stein.mmd2(x, y)


def test_unbiased_mmd2_has_mean_zero():
    """Over 400 pairs of samples of one density the U-statistic's mean is 0 within four standard errors; V's is not."""
    rng = np.random.default_rng(10)  # seed 10
    pairs = [(rng.standard_normal((10, 2)), rng.standard_normal((14, 2))) for _ in range(400)]
    u = np.array([stein.mmd2(x, y, bandwidth=1.0, biased=False) for x, y in pairs])
    error = u.std(ddof=1) / 20
    assert abs(u.mean()) < 4 * error
    assert np.mean([stein.mmd2(x, y, bandwidth=1.0) for x, y in pairs]) > 4 * error


def test_mmd2_of_normals_is_the_closed_form():
    """For N(0, 1) and N(2, 1) with a Gaussian kernel: E k = h / sqrt(h^2 + 2) exp(-m^2 / (2 (h^2 + 2)))."""
    rng = np.random.default_rng(11)  # seed 11
    x, y = rng.standard_normal((4000, 1)), rng.standard_normal((4000, 1)) + 2
    scale = 1 / math.sqrt(3)
    want = 2 * scale * (1 - math.exp(-4 / 6))
    assert stein.mmd2(x, y, bandwidth=1.0, biased=False) == pytest.approx(want, abs=0.02)


# ---- kernel Stein discrepancy ----------------------------------------------------------------------------------------

STEIN = {
    "imq": ({"beta": -0.3}, lambda q: (1 + q / H**2) ** -0.3),
    "gaussian": ({}, KERNELS["gaussian"][1]),
    "rational_quadratic": ({"alpha": 0.7}, KERNELS["rational_quadratic"][1]),
    "matern52": ({}, KERNELS["matern52"][1]),
}


def ksd_by_loops(x, s, k, biased):
    """The Stein kernel by mpmath's derivatives of k(q) along q, in an explicit double loop."""
    mpmath = pytest.importorskip("mpmath")
    n, d = x.shape
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i == j and not biased:
                continue
            away = x[i] - x[j]
            q = mpmath.mpf(float(away @ away))
            # One-sided at 0, where k need not be defined for q < 0.
            k0, k1, k2 = (mpmath.diff(k, q, order, direction=1) if order else k(q) for order in range(3))
            second = 0 if i == j else 4 * k2 * q
            total += k0 * float(s[i] @ s[j])
            total += float(-2 * k1 * float((s[i] - s[j]) @ away))
            total += float(-2 * d * k1 - second)
    return float(total) / (n**2 if biased else n * (n - 1))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", STEIN)
def test_ksd_is_the_double_loops(name, biased):
    mpmath = pytest.importorskip("mpmath")
    h = mpmath.mpf(H)
    kernels = {
        "imq": lambda q: (1 + q / h**2) ** mpmath.mpf(-0.3),
        "gaussian": lambda q: mpmath.exp(-q / (2 * h * h)),
        "rational_quadratic": lambda q: (1 + q / (2 * mpmath.mpf(0.7) * h * h)) ** mpmath.mpf(-0.7),
        "matern52": lambda q: (1 + mpmath.sqrt(5 * q) / h + 5 * q / (3 * h * h)) * mpmath.exp(-mpmath.sqrt(5 * q) / h),
    }
    x, s = points(6, 3, 12) + 2, points(6, 3, 13)
    got = stein.ksd(x, s, kernel=name, bandwidth=H, biased=biased, **STEIN[name][0])
    with mpmath.workdps(60):
        want = ksd_by_loops(x, s, kernels[name], biased)
    assert got == pytest.approx(want, rel=1e-9)


def test_score_may_be_a_function():
    x = points(20, 2, 14)
    assert stein.ksd(x, np.negative) == stein.ksd(x, -x)
    assert stein.ksd(x.astype(np.float32), np.negative) == pytest.approx(stein.ksd(x, -x), rel=1e-5)


def test_ksd_is_not_negative():
    for seed in range(20):
        x, s = points(7, 2, seed), points(7, 2, 200 + seed)
        for kernel in STEIN:
            assert stein.ksd(x, s, kernel=kernel, bandwidth=H) >= 0


def test_ksd_does_not_move_with_the_points():
    x, s = points(12, 3, 15), points(12, 3, 16)
    for kernel in STEIN:
        near, far = (stein.ksd(y, s, kernel=kernel, bandwidth=H) for y in (x, x + 1000))
        assert near == pytest.approx(far, rel=1e-9)


def test_unbiased_ksd_has_mean_zero():
    """Over 400 samples of the density the U-statistic's mean is 0 within four standard errors, for each kernel."""
    target = problems.four_modes(5)
    samples = [target.sample(12, seed) for seed in range(400)]
    for kernel in STEIN:
        u = np.array([stein.ksd(x, target.score, kernel=kernel, biased=False) for x in samples])
        assert abs(u.mean()) < 4 * u.std(ddof=1) / 20, kernel


def test_ksd_tells_samples_from_others():
    target = problems.DoubleBanana()
    good = target.sample(300, 17)
    bad = good + np.array([0.3, 0.0])
    assert stein.ksd(bad, target.score) > 20 * stein.ksd(good, target.score)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: stein.mmd2(x, x[:, :1]), ValueError, "'Y'"),
        (lambda x: stein.mmd2(x, x[0]), ValueError, "'Y'"),
        (lambda x: stein.mmd2(x.tolist(), x), TypeError, "'X'"),
        (lambda x: stein.mmd2(x, np.where(x == x[2], np.nan, x)), ValueError, "row 2"),
        (lambda x: stein.mmd2(x, x[:1], biased=False), ValueError, "at least 2"),
        (lambda x: stein.mmd2(x, x, biased=1), TypeError, "biased"),
        (lambda x: stein.mmd2(x, x, bandwidth=0.0), ValueError, "bandwidth"),
        (lambda x: stein.mmd2(x, x, bandwidth="scott"), ValueError, "median"),
        (lambda x: stein.mmd2(x, x, kernel="rbf"), ValueError, "kernel"),
        (lambda x: stein.mmd2(x * 1e160, x), ValueError, "scale X down"),
        (lambda x: stein.ksd(x, x[:2]), ValueError, "score"),
        (lambda x: stein.ksd(x, lambda y: y.sum(1)), ValueError, r"score\(X\)"),
        (lambda x: stein.ksd(x, np.where(x == x[1], np.inf, x)), ValueError, "row 1"),
        (lambda x: stein.ksd(x, x, kernel="laplacian"), ValueError, "kernel"),
        (lambda x: stein.ksd(x, x, beta=0.0), ValueError, "beta"),
        (lambda x: stein.ksd(x, x, beta=-1.0), ValueError, "beta"),
        (lambda x: stein.ksd(x[:1], x[:1], biased=False), ValueError, "at least 2"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call(points(4, 2, 18))


def test_ksd_of_one_point():
    """There k = 1 and its mixed derivatives are 1 / h^2, with h = 1 where there is no distance."""
    assert stein.ksd(np.array([[0.5, 1.0]]), np.array([[2.0, 1.0]]), bandwidth="median") == pytest.approx(5 + 2)


def test_inputs_stay_as_they_are():
    x, y = points(5, 2, 19), points(6, 2, 20)
    kept = x.copy(), y.copy()
    stein.mmd2(x, y)
    stein.ksd(x, -x)
    assert np.array_equal(x, kept[0])
    assert np.array_equal(y, kept[1])
