"""EigenPro 4 in float64 against what must hold exactly: EP2, EP3, closed forms, fixed points.

Everything on the other side of a comparison is written here from the formulas, with dense matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="curvk.machines needs scikit-learn")
from curvk.kernels import gram
from curvk.machines import EigenPro4Classifier, EigenPro4Regressor, _cycle
from curvk.machines._cycle import Cycle, Setting, Trainer, step
from curvk.machines._nystrom import nystrom
from curvk.machines._projection import EigenPro2, cholesky, pcg

LAPLACIAN: dict[str, Any] = {"kernel": "laplacian", "bandwidth": 1.5}


def K(A: Any, B: Any, bandwidth: float = 1.5) -> Any:
    """The dense Laplacian kernel from differences."""
    return np.exp(-np.sqrt(((A[:, None] - B[None]) ** 2).sum(axis=2)) / bandwidth)


def eigensystem(S: Any, q: int) -> tuple[Any, Any, Any]:
    """E, D and lambda_{q+1} of K(S, S)/s by NumPy's full solver."""
    values, vectors = np.linalg.eigh(K(S, S) / len(S))
    values, vectors = values[::-1], vectors[:, ::-1]
    return vectors[:, :q], (1 - values[q] / values[:q]) / (len(S) * values[:q]), values[q]


@dataclass
class Problem:
    X: Any
    Y: Any
    sample: Any  # indices into X
    q: int
    Z: Any

    @classmethod
    def of(cls, seed: int, n: int = 90, p: int | None = None, s: int = 40, q: int = 6, c: int = 3) -> Problem:
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((n, 3))
        Y = np.stack([np.sin(X[:, 0] + k) + 0.1 * rng.standard_normal(n) for k in range(c)], axis=1)
        return cls(X, Y, rng.permutation(n)[:s], q, X if p is None else rng.standard_normal((p, 3)))

    def trainer(self, T: int, batch: int, **changes: Any) -> Trainer:
        top = nystrom(self.X[self.sample], self.q, 1.0, LAPLACIAN)
        packed = gram.Centers(self.Z)
        setting = Setting.of(packed, LAPLACIAN, top)
        project = cholesky(self.Z, packed, LAPLACIAN, self.Y.shape[1])
        assert project.jitter == 0
        start = {"alpha": np.zeros((len(self.Z), self.Y.shape[1])), "eta_scale": 1.0}
        return Trainer(setting, project, batch=batch, T=T, **(start | changes))


def no_tick(loss: float) -> None:
    pass


def close(a: Any, b: Any, tolerance: float) -> bool:
    return bool(np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("q", [1, 5, 39])
def test_the_preconditioned_spectrum_is_flat(seed: int, q: int) -> None:
    S = np.random.default_rng(seed).standard_normal((40, 4))
    Ks = K(S, S)
    sigma = np.linalg.eigvalsh(Ks)[::-1]
    top = nystrom(S, q, 1.0, LAPLACIAN)
    assert close(top.values, sigma[:q] / 40, 1e-14)
    assert close(top.tail, sigma[q] / 40, 1e-14)
    flattened = np.linalg.eigvalsh(Ks - Ks @ top.scaled @ top.vectors.T @ Ks)[::-1]
    assert np.abs(flattened[: q + 1] - sigma[q]).max() < 1e-12 * sigma[0]
    assert np.abs(flattened[q + 1 :] - sigma[q + 1 :]).max(initial=0) < 1e-12 * sigma[0]


def ep2(problem: Problem, batch: int, orders: list[Any]) -> Any:
    """EigenPro 2: one coefficient per row of X, no temporary centers, no projection."""
    X, Y, sample = problem.X, problem.Y, problem.sample
    S = X[sample]
    E, D, tail = eigensystem(S, problem.q)
    alpha = np.zeros((len(X), Y.shape[1]))
    for order in orders:
        for start in range(0, len(X), batch):
            rows = order[start : start + batch]
            m = len(rows)
            eta = min(1.0, 1.5 / (1 + (m - 1) * tail))
            g = K(X[rows], X) @ alpha - Y[rows]
            alpha[rows] -= eta * g
            alpha[sample] += eta * (E * D) @ (E.T @ (K(S, X[rows]) @ g))
    return alpha


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("T", [1, 3, 5, 20])
def test_with_all_rows_as_centers_it_is_eigenpro_2_for_every_T(seed: int, T: int) -> None:
    problem, batch = Problem.of(seed), 8  # 90 rows: the last batch has two
    trainer = problem.trainer(T, batch)
    orders = [np.random.default_rng(100 + epoch).permutation(90) for epoch in range(3)]
    for order in orders:
        trainer.epoch(problem.X, problem.Y, order, no_tick)
    assert close(trainer.alpha, ep2(problem, batch, orders), 1e-11)


@pytest.mark.parametrize("seed", [0, 1])
def test_full_batches_follow_the_closed_form(seed: int) -> None:
    """r_t = (I - eta K_P)^t (-Y) with Z = S = X and K_P = K - K (E D) E^T K."""
    problem = Problem.of(seed, n=50, s=50)
    problem.sample = np.arange(50)
    E, D, _ = eigensystem(problem.X, problem.q)
    dense = K(problem.X, problem.X)
    preconditioned = dense - dense @ (E * D) @ E.T @ dense
    trainer = problem.trainer(T=4, batch=50)
    cycle, eta, r = Cycle.empty(trainer.setting, 3), 0.4, -problem.Y
    for _ in range(12):
        squares = step(trainer.setting, trainer.alpha, cycle, problem.X, problem.Y, eta)
        assert abs(squares - (r**2).sum()) < 1e-12 * (problem.Y**2).sum()
        assert close(cycle.a_tmp[-1][-50:], -eta * r, 1e-12)
        r = r - eta * preconditioned @ r


@pytest.mark.parametrize("seed", [0, 1])
def test_without_eigenpairs_it_is_kernel_sgd(seed: int) -> None:
    problem, batch = Problem.of(seed, q=0), 10
    order = np.random.default_rng(seed).permutation(90)
    trainer = problem.trainer(3, batch)
    trainer.epoch(problem.X, problem.Y, order, no_tick)
    eta = trainer.setting.top.step_size(batch)
    alpha = np.zeros_like(problem.Y)
    for start in range(0, 90, batch):
        rows = order[start : start + batch]
        alpha[rows] -= eta * (K(problem.X[rows], problem.X) @ alpha - problem.Y[rows])
    assert close(trainer.alpha, alpha, 1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_T_1_with_the_exact_projection_is_eigenpro_3(seed: int) -> None:
    problem, batch = Problem.of(seed, p=25), 9
    order = np.random.default_rng(seed).permutation(90)
    trainer = problem.trainer(1, batch)
    trainer.epoch(problem.X, problem.Y, order, no_tick)
    S, Z = problem.X[problem.sample], problem.Z
    E, D, tail = eigensystem(S, problem.q)
    alpha = np.zeros((25, 3))
    for start in range(0, 90, batch):
        X, Y = problem.X[order[start : start + batch]], problem.Y[order[start : start + batch]]
        eta = min(1.0, 1.5 / (1 + (len(X) - 1) * tail))
        g = K(X, Z) @ alpha - Y
        gradient = K(Z, X) @ g - K(Z, S) @ (E * D) @ (E.T @ (K(S, X) @ g))
        alpha -= eta * np.linalg.solve(K(Z, Z), gradient)
    assert close(trainer.alpha, alpha, 1e-11)


@pytest.mark.parametrize("T", [2, 5])
def test_delayed_steps_are_those_of_the_unprojected_function(T: int) -> None:
    """Within a cycle f is not in the span of Z: compared with explicit gradient steps on the values of f everywhere."""
    problem, batch = Problem.of(3, p=20), 15
    S, Z, X, Y = problem.X[problem.sample], problem.Z, problem.X, problem.Y
    E, D, _ = eigensystem(S, problem.q)
    alpha = np.random.default_rng(4).standard_normal((20, 3))
    trainer = problem.trainer(T, batch, alpha=alpha)
    eta = trainer.setting.top.step_size(batch)
    points = np.concatenate([X, Z])
    f = K(points, Z) @ alpha
    for t in range(T):
        rows = slice(t * batch, (t + 1) * batch)
        g = f[rows] - Y[rows]
        f = f - eta * (K(points, X[rows]) @ g - K(points, S) @ (E * D) @ (E.T @ (K(S, X[rows]) @ g)))
    order = np.arange(T * batch)
    trainer.epoch(X, Y, order, no_tick)
    assert close(trainer.alpha, np.linalg.solve(K(Z, Z), f[len(X) :]), 1e-11)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("p", [1, 60, 256, 257, 600])
def test_the_exact_projection_solves_its_system(seed: int, p: int) -> None:
    rng = np.random.default_rng(seed)
    Z, w = rng.standard_normal((p, 3)), rng.standard_normal((p, 2))
    exact = cholesky(Z, gram.Centers(Z), LAPLACIAN, 2)
    assert exact.jitter == 0
    assert close(exact(K(Z, Z) @ w), w, 1e-10)
    assert close(exact(K(Z, Z) @ exact(w)), exact(w), 1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_iterative_projection_solves_its_system(seed: int) -> None:
    rng = np.random.default_rng(seed)
    Z, w = rng.standard_normal((60, 3)), rng.standard_normal((60, 2))
    h, packed = K(Z, Z) @ w, gram.Centers(Z)
    for q in (0, 10):
        iterative = pcg(Z, packed, nystrom(Z[:30], q, 1.0, LAPLACIAN), LAPLACIAN, tol=1e-13, max_iter=200)
        assert close(iterative(h), w, 1e-10)
        assert (iterative(np.zeros_like(h)) == 0).all()


def test_the_preconditioner_saves_iterations_of_cg() -> None:
    Z = np.random.default_rng(0).standard_normal((300, 2))
    h, packed = K(Z, Z) @ np.random.default_rng(1).standard_normal((300, 1)), gram.Centers(Z)
    solvers = [pcg(Z, packed, nystrom(Z[:200], q, 1.0, LAPLACIAN), LAPLACIAN, tol=1e-6, max_iter=300) for q in (0, 40)]
    for solver in solvers:
        solver(h)
    assert 2 * solvers[1].iterations[0] < solvers[0].iterations[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_papers_projector_is_one_pass_of_eigenpro_2(seed: int) -> None:
    rng = np.random.default_rng(seed)
    Z, h = rng.standard_normal((70, 3)), rng.standard_normal((70, 2))
    index = rng.permutation(70)[:30]
    top = nystrom(Z[index], 4, 1.0, LAPLACIAN)
    got = EigenPro2(Z, top, index, gram.Centers(Z), LAPLACIAN, np.random.RandomState(seed))(h)
    E, D, tail = eigensystem(Z[index], 4)
    size, order, theta = int(1 / tail) // 2, np.random.RandomState(seed).permutation(70), np.zeros((70, 2))
    for start in range(0, 70, size):
        rows = order[start : start + size]
        eta = min(1.0, 1.5 / (1 + (len(rows) - 1) * tail))
        r = K(Z[rows], Z) @ theta - h[rows]
        theta[rows] -= eta * r
        theta[index] += eta * (E * D) @ (E.T @ (K(Z[index], Z[rows]) @ r))
    assert close(got, theta, 1e-12)


def limit(problem: Problem, S: Any) -> Any:
    """Coefficients after full-batch steps until they no longer move it."""
    top = nystrom(S, problem.q, 1.0, LAPLACIAN)
    packed = gram.Centers(problem.Z)
    setting = Setting.of(packed, LAPLACIAN, top)
    project = cholesky(problem.Z, packed, LAPLACIAN, 1)
    alpha = np.zeros((len(problem.Z), 1))
    E, D, _ = eigensystem(S, problem.q)
    KXS, KXX = K(problem.X, S), K(problem.X, problem.X)
    eta = 1.9 / np.linalg.eigvalsh(KXX - KXS @ (E * D) @ E.T @ KXS.T)[-1]
    for _ in range(20_000):
        cycle = Cycle.empty(setting, 1)
        step(setting, alpha, cycle, problem.X, problem.Y, eta)
        change = project(cycle.h)
        alpha = alpha + change
        if np.abs(change).max() < 1e-15 * np.abs(alpha).max():
            break
    return alpha


def test_the_limit_with_a_sample_of_centers_is_least_squares_and_with_one_of_data_is_not() -> None:
    problem = Problem.of(5, n=80, p=12, s=30, q=5, c=1)
    X, Y, Z = problem.X, problem.Y, problem.Z
    least_squares = np.linalg.lstsq(K(X, Z), Y, rcond=None)[0]
    assert close(limit(problem, Z[:8]), least_squares, 1e-10)

    S = X[problem.sample]
    E, D, _ = eigensystem(S, problem.q)
    M = K(Z, X) - K(Z, S) @ (E * D) @ E.T @ K(S, X)
    from_data = limit(problem, S)
    assert close(from_data, np.linalg.solve(M @ K(X, Z), M @ Y), 1e-10)
    values, best = K(X, Z) @ from_data, K(X, Z) @ least_squares
    assert np.linalg.norm(values - best) > 0.003 * np.linalg.norm(best)


def regressor(**changes: Any) -> EigenPro4Regressor:
    fixed: dict[str, Any] = {"bandwidth": 1.5, "nystrom_samples": 40, "n_components": 4, "epochs": 2, "random_state": 3}
    return EigenPro4Regressor(**(fixed | changes))


def test_the_estimator_does_not_depend_on_T_where_all_rows_are_centers() -> None:
    problem = Problem.of(6)
    coefs = [regressor(centers=problem.X, T=T, batch_size=7).fit(problem.X, problem.Y).coef_ for T in (1, 4, 100)]
    assert close(coefs[1], coefs[0], 1e-11)
    assert close(coefs[2], coefs[0], 1e-11)


def test_outputs_are_trained_as_if_alone() -> None:
    problem = Problem.of(7, p=30)
    together = regressor(centers=problem.Z, T=3).fit(problem.X, problem.Y).coef_
    for column in range(3):
        alone = regressor(centers=problem.Z, T=3).fit(problem.X, problem.Y[:, column]).coef_
        assert alone.shape == (30,)
        assert close(alone, together[:, column], 1e-11)


def test_two_classes_in_one_column_are_the_difference_of_the_one_hot_columns() -> None:
    problem = Problem.of(8, p=30)
    labels = (problem.Y[:, 0] > 0).astype(int)
    settings: dict[str, Any] = {
        "bandwidth": 1.5,
        "n_components": 4,
        "epochs": 2,
        "random_state": 3,
        "centers": problem.Z,
    }
    classifier = EigenPro4Classifier(**settings).fit(problem.X, labels)
    one_hot = EigenPro4Regressor(**settings).fit(problem.X, np.eye(2)[labels])
    difference = one_hot.predict(problem.X) @ [-1, 1]
    assert close(classifier.decision_function(problem.X), difference, 1e-11)


def test_moved_and_turned_data_and_permuted_centers_give_the_same_machine() -> None:
    problem = Problem.of(9, p=30)
    rng = np.random.default_rng(9)
    coef = regressor(centers=problem.Z).fit(problem.X, problem.Y).coef_
    turn, move = np.linalg.qr(rng.standard_normal((3, 3)))[0], rng.standard_normal(3)
    turned = regressor(centers=problem.Z @ turn + move).fit(problem.X @ turn + move, problem.Y).coef_
    assert close(turned, coef, 1e-9)
    order = rng.permutation(30)
    permuted = regressor(centers=problem.Z[order]).fit(problem.X, problem.Y).coef_
    assert close(permuted, coef[order], 1e-10)


def test_blocks_of_rows_change_only_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of(10, n=300, p=30)
    whole = regressor(centers=problem.Z, batch_size=150).fit(problem.X, problem.Y).coef_
    monkeypatch.setattr(_cycle, "BLOCK", 1)  # 64 rows at a time
    assert close(regressor(centers=problem.Z, batch_size=150).fit(problem.X, problem.Y).coef_, whole, 1e-11)
