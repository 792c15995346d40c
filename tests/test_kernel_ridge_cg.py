"""KernelRidgeCG against scikit-learn's direct solvers and dense normal equations in float64."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="curvk.machines needs scikit-learn")
from curvk.machines import KernelRidgeCG, KernelRidgeCGClassifier, _cg
from scipy.linalg import cholesky, lstsq
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)  # seed 7
    x = rng.standard_normal((240, 3))
    return x, np.stack([np.sin(2 * x[:, 0]) + x[:, 1], x[:, 1] * x[:, 2], np.abs(x[:, 0])], axis=1)


def gram_of(kernel: str, h: float, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """K(x, z) in float64 by SciPy's distances."""
    distance = cdist(x.astype(float), z.astype(float))
    if kernel == "gaussian":
        return np.exp(-(distance**2) / (2 * h * h))
    if kernel == "laplacian":
        return np.exp(-distance / h)
    r = np.sqrt(3) * distance / h
    return (1 + r) * np.exp(-r)


def normal_equations(K: np.ndarray, KZ: np.ndarray, alpha: float, y: np.ndarray) -> np.ndarray:
    """Coefficients of least squares with ridge, by a QR-like solver on the stacked system."""
    upper = cholesky(KZ + 1e-13 * len(KZ) * np.eye(len(KZ)))
    stacked = np.vstack([K, np.sqrt(alpha) * upper])
    return lstsq(stacked, np.concatenate([y, np.zeros((len(KZ), y.shape[1]))]))[0]


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "matern32"])
def test_all_rows_as_centers_is_kernel_ridge(kernel: str, data: Any) -> None:
    x, y = data
    model = KernelRidgeCG(len(x), kernel=kernel, bandwidth=1.3, alpha=0.05, tol=1e-10).fit(x, y)
    K = gram_of(kernel, 1.3, x, x)
    want = KernelRidge(alpha=0.05, kernel="precomputed").fit(K, y)
    fresh = np.random.default_rng(8).standard_normal((50, 3))
    np.testing.assert_allclose(model.predict(fresh), want.predict(gram_of(kernel, 1.3, fresh, x)), atol=1e-8)
    assert model.n_iter_ <= 2  # the preconditioner is then the inverse


def test_polynomial_of_all_rows_is_kernel_ridge(data: Any) -> None:
    x, y = data
    params = {"gamma": 0.5, "coef0": 1.0, "degree": 2}
    model = KernelRidgeCG(len(x), kernel="polynomial", kernel_params=params, alpha=0.3, tol=1e-9).fit(x, y)
    want = KernelRidge(kernel="polynomial", alpha=0.3, **params).fit(x, y)  # a singular K: ten features, 240 rows
    np.testing.assert_allclose(model.predict(x), want.predict(x), atol=1e-7)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_fewer_centers_are_the_normal_equations(kernel: str, alpha: float, data: Any) -> None:
    x, y = data
    model = KernelRidgeCG(40, kernel=kernel, bandwidth=1.3, alpha=alpha, tol=1e-10, random_state=3).fit(x, y)
    z = model.centers_
    assert z.shape == (40, 3)
    assert all((z[i] == x).all(axis=1).any() for i in range(40))
    K = gram_of(kernel, 1.3, x, z)
    want = K @ normal_equations(K, gram_of(kernel, 1.3, z, z), alpha, y)
    np.testing.assert_allclose(model.predict(x), want, atol=1e-8)


def test_given_centers_are_nystroem_and_ridge(data: Any) -> None:
    x, y = data
    features = Nystroem(kernel="rbf", gamma=0.5 / 1.3**2, n_components=30, random_state=0).fit(x)
    ridge = Ridge(alpha=0.2, fit_intercept=False).fit(features.transform(x), y)
    model = KernelRidgeCG(centers=features.components_, kernel="gaussian", bandwidth=1.3, alpha=0.2, tol=1e-12)
    np.testing.assert_allclose(model.fit(x, y).predict(x), ridge.predict(features.transform(x)), atol=1e-8)


def test_energy_norm_falls_at_every_iteration(data: Any) -> None:
    """What conjugate gradients promise: the objective falls, here in float64 at the coefficients after k steps."""
    x, y = data
    y = y[:, :1]

    def objective(coef: np.ndarray) -> float:
        square = np.square(y[:, 0] - K @ coef).sum()
        return float(square + 1e-3 * coef @ (KZ + jitter * np.eye(len(KZ))) @ coef)

    values = []
    for steps in range(1, 13):
        model = KernelRidgeCG(25, bandwidth=0.4, alpha=1e-3, max_iter=steps, tol=1e-14, random_state=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y[:, 0])
        assert model.n_iter_ == steps
        K, KZ = (gram_of("laplacian", 0.4, a, model.centers_) for a in (x, model.centers_))
        jitter = model.jitter_
        values.append(objective(model.coef_))
    assert np.all(np.diff(values) < 0)
    best = objective(normal_equations(K, KZ, 1e-3, y)[:, 0])
    excess = np.array(values) - best
    assert excess[-1] < 1e-6 * excess[0]


def test_outputs_do_not_touch_each_other(data: Any) -> None:
    x, y = data
    options = {"n_centers": 50, "bandwidth": 2.0, "alpha": 0.01, "tol": 1e-8, "random_state": 0}
    together = KernelRidgeCG(**options).fit(x, np.column_stack([y, np.zeros(len(y))]))
    for k in range(3):
        alone = KernelRidgeCG(**options).fit(x, y[:, k])
        assert alone.coef_.shape == (50,)
        np.testing.assert_allclose(together.coef_[:, k], alone.coef_, rtol=1e-7, atol=1e-9)
    assert not together.coef_[:, 3].any()


@pytest.mark.parametrize(("kernel", "rms"), [("gaussian", 5e-3), ("laplacian", 5e-5)])
def test_float32_is_near_float64(kernel: str, rms: float, data: Any) -> None:
    """The gaussian's spectrum falls below float32's rounding, the laplacian's does not; y has variance near 1."""
    x, y = data[0].astype(np.float32), data[1].astype(np.float32)
    options = {"n_centers": 100, "kernel": kernel, "bandwidth": 1.3, "alpha": 0.01, "tol": 1e-5, "random_state": 0}
    narrow = KernelRidgeCG(**options).fit(x, y)
    wide = KernelRidgeCG(**options).fit(x.astype(float), y)
    assert narrow.coef_.dtype == np.float32
    np.testing.assert_array_equal(narrow.centers_, wide.centers_)
    assert np.sqrt(np.square(narrow.predict(x) - wide.predict(x.astype(float))).mean()) < rms


def test_equal_centers_cost_only_the_jitter(data: Any) -> None:
    x, y = data
    once = KernelRidgeCG(centers=x[:30], bandwidth=2.0, alpha=0.1, tol=1e-10).fit(x, y)
    thrice = KernelRidgeCG(centers=np.tile(x[:30], (3, 1)), bandwidth=2.0, alpha=0.1, tol=1e-10).fit(x, y)
    assert 0 < thrice.jitter_ < 1e-6
    assert np.isfinite(thrice.coef_).all()
    np.testing.assert_allclose(thrice.predict(x), once.predict(x), atol=1e-6)


def test_equal_rows_are_weights(data: Any) -> None:
    """A row that occurs twice counts twice, and is one center."""
    x, y = data
    twice = KernelRidgeCG(200, bandwidth=2.0, alpha=0.1, tol=1e-10).fit(
        np.tile(x[:80], (2, 1)), np.tile(y[:80], (2, 1))
    )
    half = KernelRidgeCG(200, bandwidth=2.0, alpha=0.05, tol=1e-10).fit(x[:80], y[:80])
    assert len(twice.centers_) == 80
    np.testing.assert_allclose(twice.predict(x), half.predict(x), atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_of_low_rank_are_ridge(dtype: Any, data: Any) -> None:
    """60 centers, and K of rank 3: scikit-learn's Ridge on the features themselves."""
    x, y = data[0].astype(dtype), data[1][:, 0]
    model = KernelRidgeCG(60, kernel="linear", alpha=0.1, tol=1e-6, random_state=0).fit(x, y)
    want = Ridge(alpha=0.1, fit_intercept=False).fit(data[0], y)
    np.testing.assert_allclose(model.predict(x), want.predict(data[0]), atol=1e-4 if dtype == np.float32 else 1e-8)


def test_alpha_below_rounding_warns(data: Any) -> None:
    x, y = data[0].astype(np.float32), data[1][:, 0]
    with pytest.warns(ConvergenceWarning, match="raise max_iter, alpha or tol, or use float64 X"):
        model = KernelRidgeCG(60, kernel="linear", alpha=1e-9, random_state=0).fit(x, y)
    assert np.isfinite(model.predict(x)).all()


def test_two_classes_are_signs(data: Any) -> None:
    x, y = data
    labels = np.where(y[:, 1] > 0, "up", "down")
    model = KernelRidgeCGClassifier(len(x), bandwidth=2.0, alpha=0.1, tol=1e-10).fit(x, labels)
    K = gram_of("laplacian", 2.0, x, x)
    want = KernelRidge(alpha=0.1, kernel="precomputed").fit(K, np.where(labels == "up", 1.0, -1.0)).predict(K)
    np.testing.assert_allclose(model.decision_function(x), want, atol=1e-8)
    np.testing.assert_array_equal(model.predict(x), np.where(want > 0, "up", "down"))


def test_classes_are_columns(data: Any) -> None:
    x, y = data
    labels = np.digitize(y[:, 0], [-1, 1]) * 5
    model = KernelRidgeCGClassifier(len(x), bandwidth=2.0, alpha=0.1, tol=1e-10).fit(x, labels)
    K = gram_of("laplacian", 2.0, x, x)
    want = KernelRidge(alpha=0.1, kernel="precomputed").fit(K, (labels[:, None] == [0, 5, 10]).astype(float)).predict(K)
    np.testing.assert_allclose(model.decision_function(x), want, atol=1e-8)
    np.testing.assert_array_equal(model.predict(x), want.argmax(axis=1) * 5)


def test_triangles_are_both_factors(data: Any) -> None:
    x, _ = data
    K = gram_of("laplacian", 1.0, x, x)
    T = cholesky(K + 1e-10 * np.eye(len(K)))
    A = cholesky(7 * T @ T.T + 0.3 * np.eye(len(K)))
    found = _cg._Preconditioner(K.copy(), 1e-10, 7.0, 0.3)
    u = np.random.default_rng(0).standard_normal((len(K), 2))
    v, w = found.from_u(u)
    np.testing.assert_allclose(A @ v, u, atol=1e-9)
    np.testing.assert_allclose(A @ T @ w, u, atol=1e-9)
    np.testing.assert_allclose(T.T @ (A.T @ found.to_u(u, u)), u + T.T @ u, atol=1e-9)


def test_memory_has_no_n_times_p() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60_000, 3), dtype=np.float32)
    y = x[:, 0] ** 2
    KernelRidgeCG(20, tol=0.1).fit(x[:100], y[:100])
    tracemalloc.start()
    try:
        KernelRidgeCG(200, alpha=1e-2, tol=0.1, random_state=0).fit(x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # K(X, Z) would take 46 MiB


def test_too_few_iterations_warn(data: Any, capsys: Any) -> None:
    x, y = data
    model = KernelRidgeCG(50, bandwidth=0.5, alpha=1e-3, max_iter=2, tol=1e-9, verbose=1, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"after 2 iterations the residual is .* above tol=1e-09"):
        model.fit(x, y)
    assert np.isfinite(model.predict(x)).all()
    assert capsys.readouterr().err.count("iteration") == 2


BAD = {
    "alpha": [(0.0, ValueError), (-1.0, ValueError), ("much", TypeError), (np.nan, ValueError), (True, TypeError)],
    "max_iter": [(0, ValueError), (2.5, TypeError)],
    "tol": [(-1e-3, ValueError), (np.inf, ValueError)],
    "n_centers": [(0, ValueError), (1.5, TypeError)],
    "bandwidth": [(0.0, ValueError), (-1.0, ValueError), ("mean", ValueError)],
    "kernel": [("sinc", ValueError), (3, TypeError)],
    "kernel_params": [({"nu": 1}, ValueError), ("nu", TypeError)],
    "centers": [([["a", "b", "c"]], ValueError), (np.ones((3, 5)), ValueError), (np.full((3, 3), np.nan), ValueError)],
}


@pytest.mark.parametrize(("name", "value", "error"), [(name, *pair) for name, pairs in BAD.items() for pair in pairs])
def test_bad_parameters_are_named(name: str, value: Any, error: type[Exception], data: Any) -> None:
    x, y = data
    model = KernelRidgeCG(20, random_state=0).fit(x, y)
    before = model.predict(x)
    model.set_params(**{name: value})
    with pytest.raises(error, match=f"argument '{name}'"):
        model.fit(x, y)
    np.testing.assert_array_equal(model.predict(x), before)


def test_bad_data_are_refused_and_change_nothing(data: Any, monkeypatch: Any) -> None:
    x, y = data
    model = KernelRidgeCG(20, random_state=0).fit(x, y)
    before = model.predict(x)
    hole = x.copy()
    hole[3, 1] = np.nan
    for rows, targets, match in (
        (hole, y, "NaN"),
        (x, np.where(y > 3, np.inf, y) + np.inf, "infinity"),
        (x[:, 0], y, "2D"),
        (x[:10], y, "inconsistent"),
        (x[:0], y[:0], "0 sample"),
    ):
        with pytest.raises(ValueError, match=match):
            model.fit(rows, targets)
    with pytest.raises(ValueError, match="one class"):
        KernelRidgeCGClassifier().fit(x, np.zeros(len(x)))

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_cg, "_slope", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y[:, 0])
    np.testing.assert_array_equal(model.predict(x), before)


@pytest.mark.parametrize("power", [-900, 900])
def test_targets_of_any_size(power: int, data: Any) -> None:
    """Predictions are linear in y; squares of such residuals are beyond double."""
    x, y = data
    model = KernelRidgeCG(50, random_state=0)
    once = model.fit(x, y).predict(x)
    np.testing.assert_array_equal(model.fit(x, np.ldexp(y, power)).predict(x), np.ldexp(once, power))
    with pytest.raises(ValueError, match="argument 'y': got sums beyond float32"):
        model.fit(x.astype(np.float32), np.full(len(x), 3e38))


def test_a_kernel_that_is_none_is_an_error() -> None:
    x = np.linspace(-1, 1, 40)[:, None]
    model = KernelRidgeCG(40, kernel="exponent", kernel_params={"gamma": 6.0}, bandwidth=0.5)
    with pytest.raises(ValueError, match=r"argument 'kernel'.* needs a positive semidefinite kernel"):
        model.fit(x, x[:, 0])
    assert not hasattr(model, "coef_")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saved_pickled_and_cloned(dtype: Any, data: Any, tmp_path: Path) -> None:
    x, y = data[0].astype(dtype), data[1]
    labels = np.array(["a", "b", "c"])[np.digitize(y[:, 0], [-1, 1])]
    for kind, targets in ((KernelRidgeCG, y), (KernelRidgeCGClassifier, labels)):
        model = kind(30, random_state=0).fit(x, targets)
        path = tmp_path / f"{kind.__name__}.npz"
        model.save(path)
        for same in (kind.load(path), pickle.loads(pickle.dumps(model)), clone(model).fit(x, targets)):
            np.testing.assert_array_equal(same.predict(x), model.predict(x))
            assert same.get_params() == model.get_params()
            assert same.jitter_ == model.jitter_
    assert len(list(tmp_path.iterdir())) == 2
