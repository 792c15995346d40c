"""curvk.curvature: quadratics in exact arithmetic, jump processes of known density, networks, and bad input."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest
from curvk.curvature import GlassProbe, GlassResult, hessian_diagonal
from curvk.curvature._layers import resampled
from curvk.curvature._measure import Measured, Moments
from curvk.kernels import noise
from scipy import optimize

SEED = 20261122
SIGMA = 2.0**-8
DISTANCES = [2.0**-k for k in range(10, 5, -1)]


@pytest.fixture(autouse=True)
def _seed_shown() -> None:
    print(f"seed {SEED}")  # shown where a test fails


def signs(shape: Any, draw: int, name: str, seed: int = 0, dtype: Any = np.float64) -> Any:
    word = noise.tensor_word(name)
    return noise.fill(np.empty(shape, dtype), seed=seed, draw=draw, tensor=word, dist="rademacher")


# ---- quadratics: no rounding anywhere, so every number is known -----------------------------------------------------


@pytest.fixture
def quadratic() -> tuple[Any, Any]:
    """An indefinite integer Hessian and a point on a binary grid: all sums and products below are exact."""
    rng = np.random.default_rng(SEED)
    half = rng.integers(-4, 5, (7, 7))
    return (half + half.T).astype(np.float64), rng.integers(-512, 512, 7) / 256.0


def test_quadratic_exactly(quadratic: tuple[Any, Any]) -> None:
    h, x0 = quadratic
    before = x0.tobytes()
    x0.flags.writeable = False
    result = GlassProbe(lambda x: h @ x, x0, sigma=SIGMA).run(samples=5, distances=DISTANCES)
    assert x0.tobytes() == before
    products = np.array([(h @ signs(7, draw, "x")) ** 2 for draw in range(5)])
    assert (result.rho == 0).all()
    assert (result.rho_se == 0).all()
    np.testing.assert_allclose(result.h2, products.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(result.h2_se, products.std(axis=0, ddof=1) / math.sqrt(5), rtol=1e-13)
    assert (result.grad == h @ x0).all()
    layer = result.layers["x"]
    for reading in layer.readings:
        assert reading.rho == reading.glass == 0.0
        np.testing.assert_allclose([reading.h2, reading.h2_reference], products.mean(), rtol=1e-14)
        np.testing.assert_allclose(reading.h2_se, products.mean(axis=1).std(ddof=1) / math.sqrt(5), rtol=1e-13)
        np.testing.assert_allclose(reading.variation, products.mean() * reading.distance**2, rtol=1e-14)
        assert reading.at_floor
        assert reading.crossover.value == 0.0
    np.testing.assert_allclose(layer.variation_exponent, 2.0, rtol=1e-12)
    assert math.isnan(layer.glass_exponent.value)  # the logarithm of 0


def test_rounding_is_called_the_floor(quadratic: tuple[Any, Any]) -> None:
    """Off the binary grid only rounding is left of Gamma, and the result says so."""
    h, x0 = quadratic
    for dtype in (np.float32, np.float64):
        a, x = (h / 3).astype(dtype), (x0 / 3).astype(dtype)
        result = GlassProbe(lambda y, a=a: a @ y, x, sigma=1e-4).run(samples=8)
        layer = result.layers["x"]
        assert 0 < layer.rho <= 10 * layer.floor
        assert layer.at_floor
        assert "floor of rounding" in str(result)
        unit = np.finfo(dtype).eps / 2
        assert layer.floor >= 2 * unit**2 * float(np.mean(result.grad.astype(float) ** 2)) / 1e-4


def test_floor_near_a_minimum() -> None:
    """There the gradient is a small difference of large sums, whose rounding its size does not tell."""
    rng = np.random.default_rng(SEED)
    a = rng.standard_normal((300, 20)).astype(np.float32)
    x0 = rng.standard_normal(20).astype(np.float32)
    b = a @ x0
    result = GlassProbe(lambda x: a.T @ (a @ x - b), x0, sigma=1e-5).run(samples=8)
    layer = result.layers["x"]
    by_size = 2 * 2.0**-48 * float(np.mean(result.grad**2)) / 1e-5
    assert layer.rho > 1000 * by_size
    assert layer.at_floor


def test_a_kink_at_the_point() -> None:
    """The gradient abs(x) at 0 turns both ways alike: Gamma = d, gamma = d, h2 = -1; the Hessian never rules."""
    layer = GlassProbe(np.abs, np.zeros(3), sigma=0.25).run(2, [0.125]).layers["x"]
    assert (layer.rho, layer.h2, layer.h2_reference) == (0.5, -1.0, 0.0)
    assert layer.crossover == (math.inf, math.inf, math.inf)
    np.testing.assert_allclose([layer.glass_exponent, layer.variation_exponent], 2.0)


def test_row_norms_and_hutchinson_variance(quadratic: tuple[Any, Any]) -> None:
    """E h2 = sum_j H_ij^2; var z_i (H z)_i = sum_{j != i} H_ij^2 for signs; by what 4,000 of them give."""
    h, x0 = quadratic
    n = 4000
    result = GlassProbe(lambda x: h @ x, x0, sigma=SIGMA, seed=3).run(samples=n)
    rows = (h**2).sum(axis=1)
    assert (np.abs(result.h2 - rows) <= 5 * result.h2_se).all()
    diagonal, errors = hessian_diagonal(lambda x: h @ x, x0, sigma=SIGMA, samples=n, seed=3)
    assert (np.abs(diagonal - np.diag(h)) <= 5 * errors).all()
    np.testing.assert_allclose(errors**2 * n, rows - np.diag(h) ** 2, rtol=0.1)


def test_hessian_diagonal_exactly(quadratic: tuple[Any, Any]) -> None:
    h, x0 = quadratic
    found = hessian_diagonal(lambda x: [h @ x[0]], [x0], sigma=SIGMA, samples=6, seed=9)
    z = np.array([signs(7, draw, "0", 9) for draw in range(6)])
    values = z * (z @ h)
    np.testing.assert_allclose(found.mean[0], values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.se[0], values.std(axis=0, ddof=1) / math.sqrt(6), rtol=1e-13, atol=1e-15)


# ---- compound Poisson processes: density, variances and biases in closed form ---------------------------------------


def walks(n: int, crossings: float, slope: float, rng: np.random.Generator) -> Callable[[Any], Any]:
    """The gradient of n coordinates at x = 0 +- SIGMA: a slope, and Gaussian jumps of density rho = 1 on each side.

    With m = crossings jumps on average in a length SIGMA, each has variance rho SIGMA / m.
    """
    sides = [rng.standard_normal(n) * np.sqrt(rng.poisson(crossings, n) * SIGMA / crossings) for _ in range(2)]
    jumps = {1: sides[0], -1: -sides[1]}

    def grad(x: Any) -> Any:
        far = np.abs(x) > SIGMA / 2  # the jumps lie between SIGMA / 2 and SIGMA
        return slope * x + np.where(far, np.where(x > 0, jumps[1], jumps[-1]), 0.0)

    return grad


@pytest.mark.parametrize("crossings", [0.5, 5.0, 100.0])
def test_density_of_jumps(crossings: float) -> None:
    """rho_hat has mean rho whatever the slope, and relative variance 2 + 3 / (2 n_c) with n_c crossings a side."""
    n, a2 = 400_000, 9.0
    grad = walks(n, crossings, math.sqrt(a2), np.random.default_rng(SEED))
    # One coordinate's two sides do not change from sample to sample: the spread is the coordinates'.
    result = GlassProbe(grad, np.zeros(n), sigma=SIGMA).run(samples=2)
    rho = result.rho
    assert abs(rho.mean() - 1) < 5 * rho.std() / math.sqrt(n)
    spread = rho.var() / rho.mean() ** 2
    expected = 2 + 3 / (2 * crossings)
    scatter = np.sqrt(np.var((rho - rho.mean()) ** 2) / n)
    assert abs(spread - expected) < 5 * scatter + 0.02 * expected
    # The variance of h2 is that of a product of independent sums, exactly.
    h2 = result.h2
    assert abs(h2.mean() - a2) < 5 * h2.std() / math.sqrt(n)
    np.testing.assert_allclose(h2.var(), 2 * a2 / SIGMA + 1 / SIGMA**2, rtol=0.03)
    layer = result.layers["x"]
    np.testing.assert_allclose(layer.h2_reference, a2 + 1 / (2 * SIGMA), rtol=0.02)  # glass counts as curvature there
    np.testing.assert_allclose(layer.crossover.value, layer.rho / layer.h2, rtol=1e-12)
    assert not layer.at_floor


def test_exponents_of_a_walk_and_of_a_smooth_function() -> None:
    """Jumps everywhere: Gamma^2 ~ d. A cubic: Gamma = d^2 / 2 f''' and gamma ~ f'' d."""
    rng = np.random.default_rng(SEED)
    steps = np.cumsum(rng.standard_normal(1 << 20)) / 1024  # unit spacing 2^-20: rho = 1
    x0 = 0.25 + 0.5 * rng.random(4000)
    result = GlassProbe(lambda x: steps[(x * (1 << 20)).astype(int)], x0, sigma=SIGMA).run(2, [SIGMA / 4, SIGMA / 2])
    layer = result.layers["x"]
    assert abs(layer.rho - 1) < 0.15
    assert abs(layer.glass_exponent.value - 1) < 0.15
    assert abs(layer.variation_exponent.value - 1) < 0.15
    for reading in layer.readings[:-1]:
        assert abs(reading.glass_exponent.value - 1) < 0.3
    smooth = GlassProbe(lambda x: x**3 + x, x0, sigma=1e-3).run(2, [5e-4, 2e-3]).layers["x"]
    np.testing.assert_allclose(smooth.glass_exponent, 4.0, atol=1e-6)
    np.testing.assert_allclose(smooth.readings[0].glass, np.mean((3 * x0 * 5e-4**2) ** 2), rtol=1e-6)
    np.testing.assert_allclose(smooth.variation_exponent, 2.0, atol=1e-4)
    assert not smooth.at_floor


# ---- a network, with its gradient by hand ---------------------------------------------------------------------------


def network(relu: bool, n: int, seed: int) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """Least squares on a 6-24-3 net; the gradient function and weights."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, 6)), rng.standard_normal((n, 3))
    weights = {
        "hidden": rng.standard_normal((6, 24)) / math.sqrt(6),
        "hidden bias": 0.1 * rng.standard_normal(24),
        "head": rng.standard_normal((24, 3)) / math.sqrt(24),
    }

    def grad(w: dict[str, Any]) -> dict[str, Any]:
        s = x @ w["hidden"] + w["hidden bias"]
        a = np.maximum(s, 0) if relu else np.tanh(s)
        error = (a @ w["head"] - y) / n
        back = (error @ w["head"].T) * ((s > 0) if relu else 1 - a**2)
        return {"head": a.T @ error, "hidden bias": back.sum(axis=0), "hidden": x.T @ back}

    return grad, weights


def test_exponents_of_networks() -> None:
    """A hidden ReLU layer is glass, exponent 1; its linear head and a tanh network are smooth, 4."""
    layers = {"hidden": ["hidden", "hidden bias"]}
    found = []
    for seed in range(3):
        for relu in (True, False):
            grad, weights = network(relu, 1024, SEED + seed)
            probe = GlassProbe(grad, weights, sigma=2e-3, seed=seed, layers=layers)
            result = probe.run(16, [1e-3, 4e-3, 8e-3])
            found.append((relu, *(result.layers[k].glass_exponent.value for k in ("hidden", "head"))))
    glass = np.array([f[1:] for f in found if f[0]])
    smooth = np.array([f[1:] for f in found if not f[0]])
    assert abs(glass[:, 0].mean() - 1) < 0.15, glass
    assert (glass[:, 1] > 3).all(), glass
    assert (np.abs(smooth - 4) < 0.1).all(), smooth


def test_layers_are_means_of_parameters() -> None:
    grad, weights = network(True, 256, SEED)
    layers = {"hidden": ["hidden bias", "hidden"]}
    result = GlassProbe(grad, weights, sigma=2e-3, layers=layers).run(8, [1e-3])
    assert list(result.layers) == ["hidden", "head"]
    for layer in result.layers.values():
        for key in ("rho", "h2"):
            per_parameter = np.concatenate([getattr(result, key)[name].ravel() for name in layer.parameters])
            assert layer.size == per_parameter.size
            np.testing.assert_allclose(getattr(layer, key), per_parameter.mean(), rtol=1e-12)
    # In a layer of one array whose mean is over independent samples, the error is at most the sum of the parts'.
    head = result.layers["head"]
    assert head.h2_se <= result.h2_se["head"].mean() * (1 + 1e-12)


def test_what_gradients_are_taken_at() -> None:
    """x0 once, then x0 + d z and x0 - d z with the stream's z; four more to see the rounding."""
    seen = []
    x0 = {"a": np.zeros(40), "b": np.zeros((3, 5), np.float32)}

    def grad(x: Any) -> Any:
        seen.append({k: v.copy() for k, v in x.items()})
        for v in x.values():
            v[...] = 7  # buffers: what is written there goes nowhere
        return {k: v - 7 for k, v in x.items()}

    GlassProbe(grad, x0, sigma=0.5, seed=11).run(3, [0.25])
    assert len(seen) == 1 + 3 * 4 + 4
    scales = [0, 2.0**-10, -(2.0**-10), 0.25, -0.25, 0.5, -0.5]
    order = [(draw, s) for draw in range(3) for s in scales if draw == 0 or (s and (draw == 1 or abs(s) > 0.1))]
    for x, (draw, scale) in zip(seen, order, strict=True):
        for name, value in x.items():
            z = signs(value.shape, draw, name, 11, value.dtype)
            assert set(np.unique(z)) == {-1.0, 1.0}
            assert (value == scale * z).all()
    assert not any(v.any() for v in x0.values())


def bits(result: GlassResult) -> list[bytes]:
    parts = [result.rho, result.rho_se, result.h2, result.h2_se, result.grad]
    return [np.asarray(v).tobytes() for part in parts for v in part.values()] + [repr(result.table()).encode()]


def test_same_bits_on_each_backend_and_thread_count() -> None:
    _, weights = network(True, 64, SEED)
    weights = {k: np.ascontiguousarray(np.tile(v, (1, 800)) if v.ndim == 2 else v) for k, v in weights.items()}
    rng = np.random.default_rng(SEED)
    jumps = {k: rng.standard_normal(v.shape) for k, v in weights.items()}

    def kinked(x: Any) -> Any:
        return {k: jumps[k] * (v > weights[k]) + v for k, v in x.items()}

    def run() -> list[bytes]:
        return bits(GlassProbe(kinked, weights, sigma=1e-3, seed=5).run(3, [5e-4]))

    found = []
    for threads in (1, 2, 3):
        curvk.set_num_threads(threads)
        found.append(run())
    for backend in {"numba", curvk.get_backend()}:
        curvk.use_backend(backend)
        found.append(run())
    assert all(f == found[0] for f in found)
    assert found[0] == run()


def test_structures() -> None:
    """An array, a list, a tuple, a mapping; 0-d, strided, read-only; a gradient in another order or layout."""
    x = np.linspace(-1, 1, 24).reshape(4, 6)
    alone = GlassProbe(lambda v: 2 * v, x, sigma=0.125).run(2)
    assert alone.rho.shape == (4, 6)
    np.testing.assert_allclose(alone.h2, 4.0, rtol=1e-12)
    strided, scalar = np.asfortranarray(x)[::2, ::-1], np.array(0.5)
    for kind in (list, tuple):
        result = GlassProbe(lambda v: [np.asfortranarray(3 * v[0]), v[1] * v[1]], kind([strided, scalar]), sigma=0.125)
        found = result.run(2)
        assert type(found.h2) is kind
        assert type(result.run(2).step(largest=1.0)) is kind
        np.testing.assert_allclose(found.h2[0], 9.0, rtol=1e-12)
        np.testing.assert_allclose(found.h2[1], 1.0 - 0.125**2, rtol=1e-12)  # (2 x)^2 less the third derivative's part
        np.testing.assert_allclose(found.rho[1], 2 * 0.125**4 / 0.125, rtol=1e-12)
    named = GlassProbe(lambda v: {"b": v["b"], "a": -v["a"]}, {"a": strided, "b": scalar}, sigma=0.125).run(2)
    assert list(named.h2) == ["a", "b"]
    mixed = GlassProbe(lambda v: [v[0], v[1]], [np.ones(3, np.float32), np.ones(3)], sigma=0.125).run(2)
    assert [v.dtype for v in mixed.rho] == [np.float32, np.float64]


# ---- what a result says ---------------------------------------------------------------------------------------------


def made(grad: Any, rho: Any, h2: Any) -> GlassResult:
    zeros = [np.zeros_like(grad)]
    moments = Moments([grad], [rho], zeros, [h2], zeros)
    return GlassResult(Measured(0.1, (0.1,), np.zeros((2, 1, 1, 4)), np.zeros(1), moments), {}, lambda a: a[0])


def test_step_minimises_the_model() -> None:
    rng = np.random.default_rng(SEED)
    g = rng.standard_normal(40)
    rho, h2 = rng.exponential(size=40) * 10 ** rng.uniform(-4, 2, 40), rng.standard_normal(40)
    result = made(g, rho, h2)
    step, total, bounded = result.step(), 0.0, 0.0
    for s, a, r, h in zip(step, np.abs(g), rho, np.sqrt(np.maximum(h2, 0)), strict=True):

        def model(t: float, a: float = a, r: float = r, h: float = h) -> float:
            return -a * t + h * t * t / 2 + math.sqrt(2 / (3 * math.pi) * r) * t**1.5

        best = optimize.minimize_scalar(model, bounds=(0, 10 * abs(s)), method="bounded", options={"xatol": 1e-13})
        assert abs(abs(s) - best.x) <= 1e-5 * best.x
        assert model(abs(s)) <= best.fun + 1e-14 * abs(best.fun)
        total -= model(abs(s))
        bounded -= model(min(abs(s), 0.01))
    assert (np.sign(step) == -np.sign(g)).all()
    np.testing.assert_allclose(result.predicted_decrease(), total, rtol=1e-12)
    t, h = np.abs(step), np.sqrt(np.maximum(h2, 0))
    np.testing.assert_allclose(result.predicted_decrease(), (np.abs(g) * t / 3 + h * t**2 / 6).sum(), rtol=1e-12)
    np.testing.assert_allclose(result.predicted_decrease(largest=0.01), bounded, rtol=1e-12)
    assert np.abs(result.step(largest=0.01)).max() == 0.01


def test_step_without_glass_or_curvature() -> None:
    g, zero = np.array([3.0, -2.0, 0.0]), np.zeros(3)
    np.testing.assert_allclose(made(g, zero, np.full(3, 4.0)).step(), [-1.5, 1.0, 0.0])  # Newton's
    np.testing.assert_allclose(made(g, np.full(3, 0.5), -np.ones(3)).step(), [-12 * math.pi, 16 / 3 * math.pi, 0.0])
    flat = made(g, zero, zero)
    assert flat.step().tolist() == [-math.inf, math.inf, 0.0]
    assert flat.predicted_decrease() == math.inf
    assert flat.step(largest=0.5).tolist() == [-0.5, 0.5, 0.0]
    assert flat.predicted_decrease(largest=0.5) == 2.5
    assert flat.step(largest=1).dtype == np.float64


def test_predicted_decrease_is_the_realised_one_of_a_separable_quadratic() -> None:
    h, x0 = np.array([1.0, 4.0, 0.25]), np.array([1.0, -2.0, 3.0])
    result = GlassProbe(lambda x: h * x, x0, sigma=0.125).run(2)
    np.testing.assert_allclose(x0 + result.step(), 0.0, atol=1e-12)
    np.testing.assert_allclose(result.predicted_decrease(), (h * x0**2).sum() / 2, rtol=1e-12)


def test_bootstrap() -> None:
    """Resampled means have the sample's mean and the variance of a mean; from the seed alone."""
    rng = np.random.default_rng(SEED)
    sums = rng.standard_normal((50, 2, 3, 4)) + 5
    means = np.concatenate(list(resampled(sums, seed=1)))
    assert means.shape == (1000, 2, 3, 4)
    spread = sums.std(axis=0) / math.sqrt(50)
    assert (np.abs(means.mean(axis=0) - sums.mean(axis=0)) < 5 * spread / math.sqrt(1000)).all()
    np.testing.assert_allclose(means.std(axis=0), spread, rtol=0.15)
    again, other = (np.concatenate(list(resampled(sums, seed=s))) for s in (1, 2))
    assert (means == again).all()
    assert (means != other).any()


def test_intervals_hold_the_truth() -> None:
    """95 % intervals of a known quantity: gamma^2's exponent of x^2 / 2, each slope with 50 % of noise."""
    inside = 0
    for trial in range(60):
        rng = np.random.default_rng(SEED + trial)

        def grad(x: Any, rng: Any = rng) -> Any:
            return x * math.exp(0.5 * rng.standard_normal())

        layer = GlassProbe(grad, np.zeros(4), sigma=0.25, seed=trial).run(40, [0.125]).layers["x"]
        _, low, high = layer.variation_exponent
        inside += low <= 2 <= high
    assert 50 <= inside <= 60, inside


@pytest.fixture
def result() -> GlassResult:
    grad, weights = network(True, 128, SEED)
    return GlassProbe(grad, weights, sigma=2e-3).run(6, [1e-3, 4e-3])


def test_table_and_files(result: GlassResult, tmp_path: Path) -> None:
    rows = result.table()
    assert [(r["layer"], r["distance"]) for r in rows] == [
        (name, d) for name in ("hidden", "hidden bias", "head") for d in (1e-3, 2e-3, 4e-3)
    ]
    layer = result.layers["hidden"]
    assert rows[1]["rho"] == layer.rho
    assert rows[1]["glass_exponent"] == layer.readings[1].glass_exponent.value
    assert rows[1]["overall_glass_exponent_high"] == layer.glass_exponent.high
    assert math.isnan(rows[2]["glass_exponent"])
    for path in (str(tmp_path / "a.csv"), tmp_path / "a.json"):
        result.save(path)
        result.save(path)  # over the old one
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [float(r["rho"]) for r in read] == [r["rho"] for r in rows]
    assert read[2]["glass_exponent"] == ""
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["settings"] == {"samples": 6, "sigma": 2e-3, "distances": [1e-3, 2e-3, 4e-3]}
    assert saved["rows"][2]["glass_exponent"] is None
    assert saved["rows"][1]["h2_se"] == rows[1]["h2_se"]
    with pytest.raises(ValueError, match=r"save: argument 'path'.*\.csv or \.json"):
        result.save(tmp_path / "a.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_texts(result: GlassResult) -> None:
    assert repr(result) == "GlassResult(6 samples, sigma=0.002, 3 distance(s), 3 layer(s), 240 parameters)"
    lines = str(result).splitlines()
    assert len(lines) == 5
    assert f"{result.layers['head'].rho:.2e}" in lines[-1]
    grad, weights = network(True, 8, SEED)
    probe = GlassProbe(grad, weights, sigma=2e-3, seed=4, layers={"first": ["hidden"]})
    assert repr(probe) == "GlassProbe(sigma=0.002, seed=4, 3 layer(s), 3 array(s), 240 parameters)"
    assert probe.layers == {"first": ("hidden",), "hidden bias": ("hidden bias",), "head": ("head",)}


def test_plot_shows_the_readings(result: GlassResult) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    figure = result.plot(["hidden", "head"])
    glass, variation, curvature = figure.axes
    for axes, key in ((glass, "glass"), (variation, "variation")):
        lines = {line.get_label(): line for line in axes.get_lines()}
        shown = next(line for label, line in lines.items() if label.startswith("hidden:"))
        readings = result.layers["hidden"].readings
        assert list(shown.get_xdata()) == [r.distance for r in readings]
        assert list(shown.get_ydata()) == [getattr(r, key) for r in readings]
        assert any("slope 1" in label for label in lines)
        assert axes.get_ylabel()
        assert "parameter units" in axes.get_xlabel()
    assert any("slope 4" in line.get_label() for line in glass.get_lines())
    assert any("floor" in line.get_label() for line in glass.get_lines())
    slope = next(line for line in glass.get_lines() if "slope 4" in line.get_label())
    x, y = np.log(slope.get_xdata()), np.log(slope.get_ydata())
    np.testing.assert_allclose(np.diff(y) / np.diff(x), 4.0)
    assert curvature.get_xscale() == "log"
    grad, weights = network(True, 16, SEED)
    found = GlassProbe(grad, weights, sigma=2e-3).run(2)
    alone = found.plot()  # one distance: a row for each layer
    floor = next(line for line in alone.axes[0].get_lines() if "floor" in line.get_label())
    assert list(floor.get_xdata()) == [layer.floor for layer in found.layers.values()]
    assert [t.get_text() for t in alone.axes[0].get_yticklabels()] == list(weights)
    x0 = [np.linspace(0.1, 1.0, 5) + k for k in range(12)]
    many = GlassProbe(lambda x: [np.cos(v) for v in x], x0, sigma=1e-3).run(2, [2e-3]).plot()
    texts = [t.get_text() for t in many.legends[0].get_texts()]  # beside the axes
    assert [t.split(":")[0] for t in texts] == [str(k) for k in range(12)]
    assert all(abs(float(re.search(r"[\d.]+", t.split(":")[1])[0]) - 4) < 0.1 for t in texts)  # type: ignore[index]
    pyplot.close("all")
    with pytest.raises(ValueError, match="plot: argument 'layers': got 'tail'"):
        result.plot(["tail"])


# ---- bad input ------------------------------------------------------------------------------------------------------


def double(x: Any) -> Any:
    return 2 * x


ONES = np.ones(3)
BAD = [
    ({"sigma": 0.0}, ValueError, "argument 'sigma': got 0.0"),
    ({"sigma": -1.0}, ValueError, "argument 'sigma'"),
    ({"sigma": math.nan}, ValueError, "argument 'sigma'"),
    ({"sigma": "1"}, TypeError, "argument 'sigma'"),
    ({"sigma": 1e-17}, ValueError, "argument 'sigma'.*spacing of float64"),
    ({"sigma": 1e-8, "x0": np.ones(3, np.float32)}, ValueError, "argument 'sigma'.*spacing of float32.*float64"),
    ({"x0": np.array([1, 2])}, TypeError, r"argument 'x0': got int64, needs float32 or float64; use x0.astype"),
    ({"x0": np.ones(3, np.float16)}, TypeError, "argument 'x0': got float16"),
    ({"x0": [1.0, 2.0]}, TypeError, r"argument 'x0\[0\]': got float, needs a NumPy array"),
    ({"x0": {"a": np.ones(3, int)}}, TypeError, r"argument 'x0\['a'\]': got int64"),
    ({"x0": {1: ONES}}, TypeError, "argument 'x0': got the name 1"),
    ({"x0": []}, ValueError, "argument 'x0': got no arrays"),
    ({"x0": np.ones((3, 0))}, ValueError, r"argument 'x0': got shape \(3, 0\)"),
    ({"x0": np.array([1.0, np.nan])}, ValueError, r"argument 'x0\['x'\]'.*finite"),
    ({"x0": np.ma.ones(3)}, TypeError, "argument 'x0': got MaskedArray"),
    ({"seed": -1}, ValueError, "argument 'seed'"),
    ({"seed": 0.5}, TypeError, "argument 'seed'"),
    ({"layers": ["x"]}, TypeError, "argument 'layers': got list"),
    ({"layers": {"a": ["y"]}}, ValueError, r"argument 'layers\['a'\]': got 'y'"),
    ({"layers": {"a": ["x"], "b": ["x"]}}, ValueError, "'x' in 'a' too"),
    ({"layers": {"a": []}}, ValueError, "got no arrays"),
    ({"layers": {"a": "x"}}, TypeError, "argument 'layers"),
    ({"grad": 3}, TypeError, "argument 'grad': got int"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=lambda x: str(x)[:40])
def test_bad_settings(change: Any, error: Any, text: str) -> None:
    arguments = {"grad": double, "x0": ONES, "sigma": 0.1} | change
    with pytest.raises(error, match=f"^GlassProbe: .*{text}"):
        GlassProbe(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"samples": 1}, ValueError, r"argument 'samples': got 1, needs an integer in \[2, 2\^32\)"),
        ({"samples": 2.0}, TypeError, "argument 'samples'"),
        ({"distances": [0.1, 0.0]}, ValueError, "argument 'distances': got 0.0"),
        ({"distances": 0.1}, TypeError, "argument 'distances'"),
        ({"distances": [None]}, TypeError, "argument 'distances'"),
        ({"distances": [1e-20]}, ValueError, "argument 'distances'.*spacing"),
    ],
    ids=str,
)
def test_bad_runs(arguments: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^GlassProbe.run: {text}"):
        GlassProbe(double, ONES, sigma=0.1).run(**arguments)


@pytest.mark.parametrize(
    ("gradient", "error", "text"),
    [
        (lambda x: x["a"], TypeError, r"argument 'grad\(x\)': got ndarray, needs gradients with the names"),
        (lambda x: {"a": x["a"]}, ValueError, r"argument 'grad\(x\)': got the names \['a'\]"),
        (
            lambda x: x | {"a": x["a"][:2]},
            ValueError,
            r"argument 'grad\(x\)\['a'\]': got shape \(2,\), needs shape \(3,\)",
        ),
        (
            lambda x: x | {"a": x["a"].astype("f4")},
            TypeError,
            r"argument 'grad\(x\)\['a'\]': got float32, needs float64",
        ),
        (lambda x: x | {"b": 1.0}, TypeError, r"argument 'grad\(x\)\['b'\]': got float"),
        (
            lambda x: x | {"b": x["b"] / 0},
            ValueError,
            r"argument 'grad': got a gradient of 'b' that is not finite, at disp",
        ),
    ],
    ids=["kind", "names", "shape", "dtype", "number", "inf"],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_bad_gradients(gradient: Any, error: Any, text: str) -> None:
    x0 = {"a": np.ones(3), "b": np.ones(())}
    for run in (
        GlassProbe(gradient, x0, sigma=0.1).run,
        lambda: hessian_diagonal(gradient, x0, sigma=0.1),
    ):
        with pytest.raises(error, match=text):
            run()
        assert (x0["a"] == 1).all()
    with pytest.raises(ValueError, match=r"grad\(x\)': got 1 arrays, needs a list of 2"):
        GlassProbe(lambda x: x[:1], [ONES, ONES], sigma=0.1).run()


def test_not_finite_only_at_a_probe() -> None:
    """The text says where: the 2nd sample is the first with a positive sign of x[0]; or it is the far side."""
    first = next(draw for draw in range(99) if signs(3, draw, "x")[0] > 0)

    def grad(x: Any) -> Any:
        return np.where(x > 1.05, np.inf, x) * np.array([1.0, 0.0, 0.0]) if x[0] > 1.05 else x

    with (
        np.errstate(invalid="ignore"),
        pytest.raises(
            ValueError, match=r"not finite, at displacement [+-]0.1 z in sample \d+.*smaller distance"
        ) as caught,
    ):
        GlassProbe(grad, ONES, sigma=0.1).run()
    sample = int(re.search(r"sample (\d+)", str(caught.value))[1])  # type: ignore[index]
    assert sample == 0  # one of the two sides goes up in each sample
    assert ("+0.1" in str(caught.value)) == (first == 0)


def test_huge_gradients() -> None:
    with pytest.raises(ValueError, match="squares overflow float64 in sample 0"):
        GlassProbe(lambda x: 1e200 * x, ONES, sigma=0.1).run()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, "1"])
def test_bad_largest(value: Any) -> None:
    result = GlassProbe(double, ONES, sigma=0.1).run(2)
    for method in (result.step, result.predicted_decrease):
        with pytest.raises((TypeError, ValueError), match="argument 'largest'"):
            method(largest=value)
