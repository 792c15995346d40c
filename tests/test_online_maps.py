"""Feature maps whose features come of random frequencies (FOGD) or of a dictionary that grows (KONS, PROS-N-KONS)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import curvk
import numpy as np
import pytest
from curvk.kernels import gram, noise

pytest.importorskip("sklearn", reason="curvk.online needs scikit-learn")
from curvk.online._dictionary import LeverageDictionary, NewtonBasis
from curvk.online._fourier import KERNELS, Fourier, frequencies
from curvk.online._maps import FeatureMap
from scipy.linalg import solve_triangular

SEED = 20261122
CUTS = (1, 2, 3, 7, 8, 9, 255, 256)


def rows(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng([SEED, seed]).standard_normal((n, d))


def formula(kernel: str, X: Any, Z: Any, h: float = 1.0) -> Any:
    """Kernels by their formulas, from differences."""
    q = np.square(X[:, None] - Z[None]).sum(axis=2)
    r = np.sqrt(q) / h
    return {
        "gaussian": np.exp(-(r**2) / 2),
        "laplacian": np.exp(-r),
        "matern32": (1 + math.sqrt(3) * r) * np.exp(-math.sqrt(3) * r),
        "matern52": (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r),
        "imq": 1 / np.sqrt(1 + r**2),
        "linear": X @ Z.T,
    }[kernel]


def walk(feature_map: FeatureMap, X: Any, cut: int, before: int = 0) -> Any:
    """Features of each row, by the dictionary with which it would be predicted, in calls of `cut` rows."""
    found = []
    for begin in range(0, len(X), cut):
        block, at, entered = X[begin : begin + cut], 0, False
        while at < len(block):
            skip = int(entered)
            stop = at + skip + feature_map.entry(block[at + skip :], before + begin + at + skip)
            found += list(feature_map.features(block[at:stop]))
            at, entered = stop, stop < len(block)
            if entered:
                feature_map.enter(block[at])
    return found


def same_bits(a: Any, b: Any) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


MAPS: dict[str, Callable[[int], FeatureMap]] = {
    "fourier": lambda d: Fourier(d, {"bandwidth": 1.5}, n_components=21, seed=3),
    "laplacian fourier": lambda d: Fourier(d, {"kernel": "laplacian", "bandwidth": 0.02}, n_components=64),
    "newton": lambda d: NewtonBasis(d, {"bandwidth": 1.5}, tolerance=1e-3),
    "newton budget": lambda d: NewtonBasis(d, {"kernel": "matern32", "bandwidth": 1.0}, budget=37),
    "leverage": lambda d: LeverageDictionary(d, {"bandwidth": 1.5}, gamma=0.1, seed=9),
    "leverage linear": lambda d: LeverageDictionary(d, {"kernel": "linear"}, budget=30),
}


# ---- every map -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 17])
@pytest.mark.parametrize("name", MAPS)
def test_row_bits_do_not_depend_on_the_block(name: str, d: int) -> None:
    X = rows(600, d)
    feature_map = MAPS[name](d)
    walk(feature_map, X[:300], 64)
    for level in curvk.simd_levels():
        curvk.set_simd(level)
        whole = feature_map.features(X[300:])
        assert whole.shape == (300, feature_map.k)
        for cut in CUTS:
            same_bits(np.concatenate([feature_map.features(X[i : i + cut]) for i in range(300, 600, cut)]), whole)
        x, phi = np.empty((1, d)), np.empty((1, feature_map.k))
        run = feature_map.bind(x, phi)
        for i in (300, 457, 599):
            x[:] = X[i]
            run()
            same_bits(phi, whole[i - 300 : i - 299])
        out = np.full((40, feature_map.k), np.nan)
        assert feature_map.features(X[300:340], out=out) is out
        same_bits(out, whole[:40])


@pytest.mark.parametrize("d", [2, 17])
@pytest.mark.parametrize("name", MAPS)
def test_rows_one_by_one_are_blocks(name: str, d: int) -> None:
    X = rows(400, d)
    expected = walk(MAPS[name](d), X, 1)
    for cut in (3, 17, 256, 400):
        same_bits(walk(MAPS[name](d), X, cut), expected)


@pytest.mark.parametrize("name", MAPS)
def test_state_resumes_bit_for_bit(name: str) -> None:
    X = rows(300, 2)
    original, copy = MAPS[name](2), MAPS[name](2)
    walk(original, X[:150], 64)
    copy.load_state(original.state())
    assert (copy.k, copy.n_support, copy.kernel) == (original.k, original.n_support, original.kernel)
    k = copy.k
    same_bits(walk(copy, X[150:], 10, 150), walk(original, X[150:], 64, 150))
    assert copy.k == original.k
    assert (copy.k > k) == (name in ("newton", "leverage", "leverage linear"))


# ---- Fourier features ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_fourier_products_are_the_kernel(kernel: str) -> None:
    n_components, h = 40_000, 1.7
    X = rows(12, 3) * np.linspace(0.3, 2, 12)[:, None]
    phi = Fourier(3, {"kernel": kernel, "bandwidth": h}, n_components=n_components, seed=4).features(X)
    # The mean of D independent terms cos(u.(x - z)), each with variance (1 + k(2 x, 2 z)) / 2 - k(x, z)^2 < 1.
    assert abs(phi @ phi.T / n_components - formula(kernel, X, X, h)).max() < 5 / math.sqrt(n_components)


def test_fourier_pairs_cosine_and_sine() -> None:
    """The authors' code gives .131 and .304 where exact pairs give the kernel, .184 and .654."""
    X = np.zeros((3, 1))
    X[1:, 0] = math.sqrt(-2 * math.log(0.184)), math.sqrt(-2 * math.log(0.654))
    n_components = 100_000
    phi = Fourier(1, {"bandwidth": 1.0}, n_components=n_components).features(X)
    np.testing.assert_allclose(phi[0] @ phi[1:].T / n_components, [0.184, 0.654], atol=0.01)
    np.testing.assert_allclose(np.square(phi).sum(axis=1), n_components, rtol=1e-13)


def test_fourier_features_are_those_of_the_frequencies() -> None:
    kernel = {"bandwidth": 0.7}
    U, X = frequencies(3, kernel, 5, 11), rows(4, 3)
    phi = Fourier(3, kernel, n_components=5, seed=11).features(X)
    for x, row in zip(X, phi, strict=True):
        angles = [math.fsum(u * x) for u in U]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", KERNELS)
def test_frequencies_are_functions_of_seed_and_index(kernel: str) -> None:
    keywords = {"kernel": kernel, "bandwidth": 1.0}
    many, few = frequencies(4, keywords, 100, 5), frequencies(4, keywords, 30, 5)
    np.testing.assert_array_equal(many[:30], few)
    np.testing.assert_array_equal(frequencies(9, keywords, 30, 5)[:, :4], few)
    assert not (frequencies(4, keywords, 30, 6) == few).any()
    assert np.isfinite(many).all()


def test_gaussian_frequencies_come_of_the_noise_stream() -> None:
    z = np.empty((3, 50))
    for i in range(3):
        noise.fill(z[i], seed=8, tensor=noise.tensor_word("columns of frequencies", "sampling"), offset=i * 2**32)
    np.testing.assert_array_equal(frequencies(3, {"bandwidth": 4.0}, 50, 8), z.T / 4)


def test_another_bandwidth_rescales_the_frequencies() -> None:
    X, feature_map = rows(20, 2), Fourier(2, {"bandwidth": 1.0}, n_components=10)
    feature_map.set_kernel({"bandwidth": 2.0})
    fresh = Fourier(2, {"bandwidth": 1.0}, n_components=10)
    np.testing.assert_array_equal(feature_map.features(X), fresh.features(X / 2))


# ---- the Newton basis ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "matern32"])
def test_newton_features_are_a_cholesky_solve(kernel: str) -> None:
    X, h = rows(90, 4), 2.0
    feature_map = NewtonBasis(4, {"kernel": kernel, "bandwidth": h})
    walk(feature_map, X, 16)
    assert feature_map.k == feature_map.n_support == 90
    L = np.linalg.cholesky(formula(kernel, X, X, h))
    others = rows(30, 4, 1)
    expected = solve_triangular(L, formula(kernel, X, others, h), lower=True).T
    np.testing.assert_allclose(feature_map.features(others), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(feature_map.features(X), L, rtol=0, atol=1e-10)


def test_a_feature_keeps_its_bits_as_rows_enter() -> None:
    X, probe = rows(70, 3), rows(9, 3, 1)
    feature_map, before = NewtonBasis(3, {"bandwidth": 1.0}), np.empty((9, 0))
    for x in X:
        feature_map.enter(x)
        now = feature_map.features(probe)
        np.testing.assert_array_equal(now[:, :-1], before)
        before = now


@pytest.mark.parametrize(("bandwidth", "tolerance"), [(0.5, 1e-8), (3.0, 1e-8), (3.0, 1e-3), (8.0, 1e-6)])
def test_newton_products_are_the_projected_kernel(bandwidth: float, tolerance: float) -> None:
    X = rows(500, 2)
    feature_map = NewtonBasis(2, {"bandwidth": bandwidth}, tolerance=tolerance)
    walk(feature_map, X, 256)
    assert 10 < feature_map.k < 500
    phi = feature_map.features(X)
    held = feature_map.state()["landmarks"]
    np.testing.assert_allclose(
        phi @ feature_map.features(held).T, formula("gaussian", X, held, bandwidth), rtol=0, atol=2e-9
    )
    residuals = 1 - np.square(phi).sum(axis=1)
    assert residuals.max() <= tolerance  # those left out were within it, and the span only grew
    assert residuals.min() > -1e-5


def test_linear_rows_enter_until_they_span() -> None:
    X = rows(100, 6) @ rows(6, 9, 1)
    feature_map = NewtonBasis(9, {"kernel": "linear"})
    walk(feature_map, X, 7)
    assert feature_map.k == 6
    phi = feature_map.features(X)
    np.testing.assert_allclose(phi @ phi.T, X @ X.T, atol=1e-10)


def test_known_rows_stay_outside_and_a_budget_ends_entries() -> None:
    X = rows(40, 3)
    feature_map = NewtonBasis(3, {"bandwidth": 1.0}, budget=25)
    assert feature_map.entry(X, 0) == 0
    walk(feature_map, X[:20], 20)
    assert feature_map.k == 20
    assert feature_map.entry(np.concatenate([X[:20], X[20:21]]), 0) == 20
    walk(feature_map, X[20:], 20)
    assert feature_map.k == 25
    assert feature_map.entry(X, 0) == 40


def test_a_first_row_without_length_has_a_feature_of_zero() -> None:
    X = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    feature_map = NewtonBasis(2, {"kernel": "linear"})
    walk(feature_map, X, 1)
    np.testing.assert_array_equal(feature_map.features(X), [[0, 0], [0, 5], [0, 0]])


@pytest.mark.parametrize("name", ["newton", "newton budget", "leverage"])
def test_another_bandwidth_keeps_the_function_on_the_dictionary(name: str) -> None:
    feature_map = MAPS[name](2)
    walk(feature_map, rows(60, 2), 64)
    held, w = feature_map.state()["landmarks"], rows(1, feature_map.k, 2)[0]
    before = feature_map.features(held)
    T = feature_map.set_kernel(feature_map.kernel | {"bandwidth": 0.9})
    after = feature_map.features(held)
    np.testing.assert_allclose(after @ (T @ w), before @ w, atol=1e-8)
    kind = "gaussian" if "budget" not in name else "matern32"
    np.testing.assert_allclose(after @ after.T, formula(kind, held, held, 0.9), atol=1e-9)


def test_rows_that_another_bandwidth_makes_dependent_have_a_feature_of_zero() -> None:
    feature_map = NewtonBasis(1, {"bandwidth": 0.1})
    walk(feature_map, rows(30, 1), 64)
    k = feature_map.k
    feature_map.set_kernel({"bandwidth": 10.0})
    held = feature_map.state()["landmarks"]
    phi = feature_map.features(held)
    assert phi.shape == (30, k)
    assert 2 < (abs(phi) > 0).any(axis=0).sum() < 12
    np.testing.assert_allclose(phi @ phi.T, formula("gaussian", held, held, 10.0), atol=1e-7)


# ---- leverage --------------------------------------------------------------------------------------------------------


def leverage(K: Any, weights: Any, k: Any, own: float, gamma: float, eps: float) -> float:
    """The estimate of Calandriello et al. as they state it: with x itself in the dictionary, at weight 1."""
    K = np.block([[K, k[:, None]], [k[None], np.array([[own]])]])
    k, S = np.append(k, own), np.diag(np.append(weights, 1.0))
    inverse = np.linalg.inv(S @ K @ S + gamma * np.eye(len(k)))
    return (1 + eps) / gamma * float(own - k @ S @ inverse @ S @ k)


@pytest.mark.parametrize(("gamma", "beta", "eps"), [(1.0, 1.0, 0.5), (0.05, 0.7, 0.2)])
def test_chances_are_leverage_scores(gamma: float, beta: float, eps: float) -> None:
    X = rows(200, 2)
    feature_map = LeverageDictionary(2, {"bandwidth": 1.2}, gamma=gamma, beta=beta, eps=eps, seed=2)
    walk(feature_map, X, 64)
    state = feature_map.state()
    held, weights = state["landmarks"], state["entered"] ** -0.5
    assert len(held) > 8
    assert (state["entered"] < 1).sum() > 3
    K, k = formula("gaussian", held, held, 1.2), formula("gaussian", X, held, 1.2)
    expected = [beta * leverage(K, weights, row, 1.0, gamma, eps) for row in k]
    np.testing.assert_allclose(feature_map.probabilities(X), expected, rtol=1e-9, atol=1e-12)


def test_rows_enter_by_the_draws_of_their_numbers() -> None:
    """The dictionary of a loop that forms everything anew for every row."""
    X, gamma, eps, seed, before = rows(300, 2), 0.2, 0.5, 77, 1000
    u = np.empty(len(X))
    noise.fill(u, seed=seed, tensor=noise.tensor_word("dictionary", "sampling"), dist="uniform", offset=before)
    held, chances = [0], [1.0]
    for t in range(1, len(X)):
        k = formula("gaussian", X[t : t + 1], X[held])[0]
        tau = leverage(formula("gaussian", X[held], X[held]), np.array(chances) ** -0.5, k, 1.0, gamma, eps)
        if u[t] < tau:
            held.append(t)
            chances.append(min(tau, 1.0))
    for cut in (1, 50, 300):
        feature_map = LeverageDictionary(2, {"bandwidth": 1.0}, gamma=gamma, eps=eps, seed=seed)
        walk(feature_map, X, cut, before)
        state = feature_map.state()
        np.testing.assert_array_equal(state["landmarks"], X[held])
        np.testing.assert_allclose(state["entered"], chances, rtol=1e-8)
    assert 10 < len(held) < 150


def test_features_are_the_published_ones_but_for_a_rotation() -> None:
    X = rows(150, 3)
    feature_map = LeverageDictionary(3, {"kernel": "laplacian", "bandwidth": 2.0}, gamma=0.5)
    walk(feature_map, X, 64)
    held = feature_map.state()["landmarks"]
    lam, U = np.linalg.eigh(formula("laplacian", held, held, 2.0))
    published = formula("laplacian", X, held, 2.0) @ U / np.sqrt(lam)
    phi = feature_map.features(X)
    rotation = np.linalg.lstsq(published, phi)[0]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(held)), atol=1e-10)
    np.testing.assert_allclose(published @ rotation, phi, atol=1e-10)


def test_an_entry_restarts_or_grows() -> None:
    x = np.array([0.5, 0.25])
    assert LeverageDictionary(2, {"bandwidth": 1.0}).enter(x) == "restart"
    assert LeverageDictionary(2, {"bandwidth": 1.0}, on_refresh="keep").enter(x) == "grow"
    assert NewtonBasis(2, {"bandwidth": 1.0}).enter(x) == "grow"


def test_a_row_that_enters_twice_counts_twice_in_the_scores_and_has_one_feature() -> None:
    x = np.array([0.5, 0.25])
    feature_map = LeverageDictionary(2, {"bandwidth": 1.0})
    feature_map.enter(x)
    p = float(feature_map.probabilities(x[None])[0])
    assert p == pytest.approx(1.5 * 0.5 / 1.5)  # r = 1 - 1 / (1 + gamma)
    feature_map.enter(x)
    np.testing.assert_array_equal(feature_map.features(x[None]), [[1.0, 0.0]])
    held = 1 + 1 / p  # the sum of their squared weights
    r = 1 - held / (held + 1)
    np.testing.assert_allclose(feature_map.probabilities(x[None]), 1.5 * r / (r + 1), rtol=1e-12)


def test_another_bandwidth_makes_the_scores_anew() -> None:
    X = rows(100, 2)
    feature_map = LeverageDictionary(2, {"bandwidth": 0.5})
    walk(feature_map, X, 64)
    feature_map.set_kernel({"bandwidth": 2.0})
    state = feature_map.state()
    held, weights = state["landmarks"], state["entered"] ** -0.5
    K, k = formula("gaussian", held, held, 2.0), formula("gaussian", X, held, 2.0)
    expected = [leverage(K, weights, row, 1.0, 1.0, 0.5) for row in k]
    np.testing.assert_allclose(feature_map.probabilities(X), expected, rtol=1e-9)


def test_maps_take_their_kernels_from_gram() -> None:
    """The formulas above are those of the kernels that the maps use."""
    X = rows(5, 3)
    for kernel in (*KERNELS, "linear"):
        keywords = {"kernel": kernel} | ({} if kernel == "linear" else {"bandwidth": 1.3})
        np.testing.assert_allclose(gram.block(X, X, **keywords), formula(kernel, X, X, 1.3), rtol=1e-12, atol=1e-14)


def test_a_bound_product_without_weights_is_the_block() -> None:
    x, Z, row = np.empty((1, 3)), gram.Landmarks.of(rows(21, 3)), np.zeros((1, 32))
    run = gram.bind(x, Z, None, out=row[:, :21], bandwidth=1.3)
    for values in rows(4, 3, 1):
        x[0] = values
        run()
        np.testing.assert_array_equal(row[:, :21], gram.block(x, Z, bandwidth=1.3))
        assert not row[:, 21:].any()
    with pytest.raises(ValueError, match=r"bind: argument 'out': got shape \(1, 32\), needs shape \(1, 21\)"):
        gram.bind(x, Z, None, out=row, bandwidth=1.3)
