"""Statistical tests of the noise stream: 2^20 to 2^24 values against their distribution and against one another.

A stream is a fixed function, so each test passes or fails for good; the bounds are those a true random stream would
pass but for about one time in 10,000. Heavier batteries (PractRand, TestU01's BigCrush) are not run here: Philox4x32-10
passes BigCrush by its authors' account (Salmon et al. 2011), and the words are checked against Random123's answers in
test_noise.py.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import curvk
import numpy as np
import pytest
from curvk.kernels import noise
from scipy import special, stats

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

SLOW = curvk.get_backend() == "python"  # about 10 us for each element: every length is cut by 2^10
SEED = 20241009
NORMALS = pytest.mark.parametrize("dist", ["normal", "normal_fast"])
DISTS = pytest.mark.parametrize("dist", noise.DISTRIBUTIONS)
LEAST = 1e-4  # of a p-value
SIGMAS = 4.5
Array = np.ndarray[Any, Any]


def length(n: int) -> int:
    return n >> 10 if SLOW else n


def stream(n: int, dist: str = "normal", **key: int) -> Array:
    key = {"seed": SEED} | key
    print(f"{dist} of {key}")
    return noise.fill(np.empty(n, np.float32), dist=dist, **key).astype(np.float64)


def standard(x: Array, dist: str) -> Array:
    """With mean 0 and variance 1."""
    return (x - 0.5) * math.sqrt(12) if dist == "uniform" else x


def double_factorial(k: int) -> int:
    return math.prod(range(k, 0, -2))


# ---- one stream ------------------------------------------------------------------------------------------------------


@NORMALS
def test_moments(dist: str) -> None:
    """Moments 1 to 6 (mean, variance, skewness, kurtosis, ...), each within its standard error."""
    z = stream(length(2**22), dist)
    power = np.ones_like(z)
    for k in range(1, 7):
        power *= z
        mean = 0 if k % 2 else double_factorial(k - 1)
        error = math.sqrt((double_factorial(2 * k - 1) - mean**2) / z.size)
        score = (power.mean() - mean) / error
        print(f"E z^{k} = {power.mean():.6f}, {score:.2f} standard errors from {mean}")
        assert abs(score) < SIGMAS


@DISTS
def test_mean_and_variance(dist: str) -> None:
    x = standard(stream(length(2**22), dist, draw=1), dist)
    fourth = {"uniform": 1.8, "rademacher": 1.0}.get(dist, 3.0)
    assert abs(x.mean()) * math.sqrt(x.size) < SIGMAS
    assert abs((x**2).mean() - 1) <= SIGMAS * math.sqrt((fourth - 1) / x.size)


def anderson_darling(z: Array) -> float:
    """A^2 for the standard normal distribution, nothing estimated."""
    z = np.sort(z)
    i = np.arange(1, z.size + 1)
    return float(-z.size - ((2 * i - 1) * (special.log_ndtr(z) + special.log_ndtr(-z[::-1]))).mean())


def test_anderson_darling_itself() -> None:
    """Against the definition term by term; and one per cent too wide is far out."""
    z = stats.norm.ppf((np.arange(5) + 0.5) / 5) + 0.1
    F = stats.norm.cdf(z)
    want = -5 - sum((2 * i + 1) / 5 * (math.log(F[i]) + math.log(1 - F[4 - i])) for i in range(5))
    assert anderson_darling(z) == pytest.approx(want, rel=1e-12)
    assert anderson_darling(1.01 * np.random.default_rng(0).standard_normal(2**20)) > 16


@NORMALS
def test_distribution(dist: str) -> None:
    """Kolmogorov's and Anderson and Darling's tests of 2^20 values; 8 is exceeded once in 10,000 times."""
    z = stream(length(2**20), dist)
    p = stats.kstest(z, "norm", method="asymp").pvalue
    a2 = anderson_darling(z)
    print(f"Kolmogorov p = {p:.4f}, A^2 = {a2:.3f}")
    assert LEAST < p < 1 - LEAST
    assert a2 < 8


@NORMALS
def test_p_values_are_uniform(dist: str) -> None:
    """Of 100 draws, so neither too far from the distribution nor too near."""
    n = 500 if SLOW else 2**14
    p = [stats.kstest(stream(n, dist, draw=d), "norm", method="asymp").pvalue for d in range(20 if SLOW else 100)]
    assert stats.kstest(p, "uniform").pvalue > LEAST


@NORMALS
def test_tails(dist: str) -> None:
    """Counts beyond 3, 4 and 5 sigma are Poisson; normal_fast ends at 4.855, with 2 % of what lies beyond 4."""
    n, draws = length(2**22), 8 if dist == "normal" else 1
    levels = np.array([3, 4, 5] if dist == "normal" else [3, 4])
    counts, largest = np.zeros(levels.size, int), 0.0
    for draw in range(draws):
        z = abs(stream(n, dist, draw=2 + draw))
        counts += (z > levels[:, None]).sum(1)
        largest = max(largest, z.max())
    means = 2 * stats.norm.sf(levels) * n * draws
    print(f"{counts} beyond {levels} sigma, {means} expected")
    assert np.minimum(stats.poisson.cdf(counts, means), stats.poisson.sf(counts - 1, means)).min() > LEAST / 2
    assert largest < {"normal": 6.77, "normal_fast": 4.856}[dist]


@NORMALS
def test_radius_and_angle(dist: str) -> None:
    """Partners of a pair: half the square of the radius is exponential, the angle uniform, neither tells the other."""
    half = 16 if dist == "normal" else 32
    first, second = stream(length(2**20), dist, draw=6).reshape(-1, 2, half).transpose(1, 0, 2).reshape(2, -1)
    energy, angle = (first**2 + second**2) / 2, np.arctan2(second, first) / (2 * np.pi) % 1
    p = [
        stats.kstest(np.exp(-energy), "uniform", method="asymp").pvalue,
        stats.kstest(angle, "uniform", method="asymp").pvalue,
        stats.chisquare(np.histogram2d(np.exp(-energy), angle, 8, [(0, 1), (0, 1)])[0].ravel()).pvalue,
        stats.chisquare(np.bincount((8 * angle).astype(int), minlength=8)).pvalue,  # the eight octants
    ]
    print(p)
    assert min(p) > LEAST


@pytest.mark.parametrize("shift", [0, 8, 16])
def test_uniform_bytes(shift: int) -> None:
    """Each byte of the 24 bits, alone and beside its neighbour in the array."""
    u = stream(length(2**22), "uniform", draw=7)
    assert ((u >= 0) & (u < 1)).all()
    byte = ((u * 2**24).astype(np.int64) >> shift) & 255
    np.testing.assert_array_equal(u * 2**24, np.rint(u * 2**24))
    bins = 16 if SLOW else 256
    for counted, cells in ((byte * bins // 256, bins), ((byte[::2] >> 2) * 64 + (byte[1::2] >> 2), 4096)):
        p = stats.chisquare(np.bincount(counted, minlength=cells)).pvalue
        assert LEAST < p < 1 - LEAST


def test_rademacher_bits() -> None:
    """Balance over all, of each of the 1,024 places of a tile, of bytes, and of the number of runs."""
    z = stream(length(2**22), "rademacher", draw=8)
    assert set(z.tolist()) == {-1.0, 1.0}
    n = z.size
    assert abs(z.sum()) < SIGMAS * math.sqrt(n)
    places = z.reshape(-1, 1024).sum(0) / math.sqrt(n / 1024)
    assert LEAST < stats.chi2.sf((places**2).sum(), 1024) < 1 - LEAST
    for axis_sums in (z.reshape(-1, 32).sum(0), z.reshape(-1, 32, 32).sum((0, 2))):  # bit of a word, word of a tile
        assert abs(axis_sums).max() < SIGMAS * math.sqrt(n / 32)
    byte = np.packbits(z.reshape(-1, 8) < 0)
    assert LEAST < stats.chisquare(np.bincount(byte, minlength=256)).pvalue < 1 - LEAST
    runs = int((z[1:] != z[:-1]).sum())
    assert abs(runs - (n - 1) / 2) < SIGMAS * math.sqrt(n - 1) / 2


@DISTS
def test_lag_correlations(dist: str) -> None:
    """Values, and their squares, at lags within a tile, across tiles and across a thread's share."""
    x = standard(stream(length(2**22), dist, draw=9), dist)
    powers = [x] if dist == "rademacher" else [x, (x**2 - 1) / math.sqrt(0.8 if dist == "uniform" else 2)]
    for lag in (1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 33, 64, 128, 1023, 1024, 2048, 8192, 32768, 2**20):
        if lag < x.size // 2:
            scores = [(y[lag:] * y[:-lag]).sum() / math.sqrt(x.size - lag) for y in powers]
            assert max(map(abs, scores)) < SIGMAS, (lag, scores)


# ---- streams against one another -------------------------------------------------------------------------------------


def assert_uncorrelated(x: Array, dist: str) -> None:
    """Rows' inner products over sqrt(d) are standard normal: the largest, and the mean square."""
    x = standard(x, dist)
    scores = (x @ x.T)[np.triu_indices(len(x), 1)] / math.sqrt(x.shape[1])
    print(f"{scores.size} products: largest {abs(scores).max():.2f}, mean square {(scores**2).mean():.3f}")
    assert abs(scores).max() < stats.norm.isf(LEAST / (2 * scores.size))
    assert abs((scores**2).mean() - 1) < SIGMAS * math.sqrt(2 / scores.size)


@DISTS
def test_draws_are_uncorrelated(dist: str) -> None:
    n = length(2**16)
    assert_uncorrelated(
        np.array([stream(n, dist, draw=d) for d in [*range(48), *(2**k for k in range(6, 32, 2))]]), dist
    )


@DISTS
def test_tensors_are_uncorrelated(dist: str) -> None:
    """Equal shapes under a model's names and under neighbouring words: each has noise of its own."""
    n = length(2**16)
    names = [f"layers.{i}.{part}.weight" for i in range(8) for part in ("q_proj", "k_proj", "v_proj")]
    words = [noise.tensor_word(name) for name in names] + [*range(8), *(2**k for k in range(4, 32, 4))]
    assert_uncorrelated(np.array([stream(n, dist, tensor=word) for word in words]), dist)


@DISTS
def test_seeds_are_uncorrelated(dist: str) -> None:
    n = length(2**16)
    seeds = [*range(16), *(2**k for k in range(4, 64, 3)), 2**64 - 1]
    assert_uncorrelated(np.array([stream(n, dist, seed=s) for s in seeds]), dist)


def test_no_key_repeats_another() -> None:
    """Seeds, draws and words never stand for one another; nor does an index carry into the tensor's word."""
    few = [0, 1, 2, 3, 2**31, 2**32 - 1]
    keys = list(itertools.product([*few, 2**32, 2**63, 2**64 - 1], few, few))
    starts = {stream(8, seed=s, draw=d, tensor=t).tobytes() for s, d, t in keys}
    assert len(starts) == len(keys)
    far = noise.fill(np.empty(8, np.float32), seed=SEED, offset=2**61)
    assert far.tobytes() not in {noise.fill(np.empty(8, np.float32), seed=SEED, tensor=t).tobytes() for t in range(64)}


@NORMALS
def test_projections(dist: str) -> None:
    """The product z . v for a fixed v is normal with variance |v|^2: what a probe of a linear loss sees."""
    n, draws = length(2**15), 2048 if not SLOW else 64
    v = np.linspace(-1, 1, n).astype(np.float32)
    dots = noise.dot_seeds(v, seed=SEED, draws=range(draws), dist=dist) / np.linalg.norm(v.astype(np.float64))
    assert stats.kstest(dots, "norm").pvalue > LEAST
