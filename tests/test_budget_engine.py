"""Learners with a kernel expansion: the papers' algorithms, and the same bits however the stream is cut."""

from __future__ import annotations

import math

import budget_truth as truth
import curvk
import numpy as np
import pytest
from curvk.kernels import gram, noise
from curvk.online._budget import BudgetEngine
from scipy.optimize import minimize_scalar

H = 1.3
GAUSSIAN = {"kernel": "gaussian", "bandwidth": H}
BUDGET, SEED = 20, 5
BOGD = {"lr": 0.4, "decay": 1 - 0.4 * 0.02, "limit": 0.4 * 1.5}

# The engine's keywords, and the plain loop that they stand for.
ALGORITHMS = {
    "perceptron": ({"rule": "append", "loss": "perceptron"}, truth.Perceptron, None),
    "gradient descent": ({"rule": "append", "loss": "hinge", "lr": 0.3}, truth.GradientDescent, None),
    "rbp": ({"rule": "rbp", "loss": "perceptron"}, truth.RandomBudgetPerceptron, BUDGET),
    "forgetron": ({"rule": "forgetron"}, truth.Forgetron, BUDGET),
    "bpas": ({"rule": "bpas", "C": 0.7}, truth.PassiveAggressive, BUDGET),
    "projectron": ({"rule": "projectron"}, truth.Projectron, BUDGET),
    "projectron wide": ({"rule": "projectron", "threshold": 0.5}, truth.Projectron, None),
    "projectron++": ({"rule": "projectron++", "threshold": 0.4}, truth.Projectron, 30),
    "bogd": ({"rule": "bogd", **BOGD}, truth.Bounded, BUDGET),
}
EVERY = pytest.mark.parametrize("name", ALGORITHMS)


def make(name, d, c=1, kernel=GAUSSIAN):
    keywords, _, size = ALGORITHMS[name]
    return BudgetEngine(d, c, kernel, size=size, seed=SEED, **keywords)


def reference(name, kernel):
    keywords, learner, size = ALGORITHMS[name]
    found = learner(kernel, size)
    if learner is truth.Projectron:
        found.threshold, found.plus = keywords.get("threshold", 0.0), keywords["rule"] == "projectron++"
    return found


def uniforms(n):
    """What the engine draws with: the noise stream's number of each row."""
    tensor = noise.tensor_word("budget", "sampling")
    return noise.fill(np.empty(n), seed=SEED, tensor=tensor, dist="uniform")


def learn(engine, X, Y, cuts=()):
    F = np.full(Y.shape, np.nan)
    for part in np.split(np.arange(len(X)), cuts):
        engine.learn(X[part], Y[part], F[part[0] : part[-1] + 1])
    return F


def same_state(a, b):
    a, b = a.state(), b.state()
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], key)


# ---- the papers' algorithms -----------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(
    ("kernel", "function"),
    [
        (GAUSSIAN, truth.gaussian(H)),
        ({"kernel": "polynomial", "gamma": 0.3, "coef0": 1.0, "degree": 2}, truth.polynomial),
    ],
    ids=["gaussian", "polynomial"],
)
def test_textbook(name, kernel, function):
    n, d = 350, 4
    X, Y = truth.stream(n, d)
    if kernel is not GAUSSIAN:
        X *= 0.5
    engine, plain = make(name, d, kernel=kernel), reference(name, function)
    F = learn(engine, X, Y)
    f = plain.run(X, Y[:, 0], uniforms(n))
    np.testing.assert_allclose(F[:, 0], f, rtol=1e-7, atol=1e-7 * abs(f).max())
    assert engine.n_support == len(plain.rows)
    assert (Y[:, 0] * F[:, 0] <= 0).sum() > 50
    order = np.argsort(engine.rows[:, 0])
    other = np.argsort([x[0] for x in plain.rows])
    np.testing.assert_array_equal(engine.rows[order], np.array(plain.rows)[other])
    np.testing.assert_allclose(engine.coef[order, 0], np.array(plain.a)[other], rtol=1e-6, atol=1e-7)


def test_forgetron_keeps_its_promise():
    """Q <= 15/32 M, after every row; coefficients are at most 1."""
    X, Y = truth.stream(600, 5, seed=3)
    engine = make("forgetron", 5)
    shrunk = False
    for t in range(len(X)):
        learn(engine, X[t : t + 1], Y[t : t + 1])
        Q, M = engine._expansion.sums
        assert Q <= 15 / 32 * M * (1 + 1e-14)
        assert engine.n_support <= BUDGET
        shrunk = shrunk or abs(engine.coef).min(initial=1) < 1
    assert shrunk
    assert abs(engine.coef).max() <= 1


def test_bpas_takes_the_best_replacement():
    """No single exchange of a support vector, with any coefficient for the new one, has a lower objective."""
    X, Y = truth.stream(200, 3, seed=4)
    engine, k = make("bpas", 3), truth.gaussian(H)
    learn(engine, X[:120], Y[:120])
    checked = 0
    for t in range(120, 160):
        rows, a, f = engine.rows.copy(), engine.coef[:, 0].copy(), float(engine.decide(X[t : t + 1])[0, 0])
        y = Y[t, 0]
        learn(engine, X[t : t + 1], Y[t : t + 1])
        if y * f >= 1:
            np.testing.assert_array_equal(engine.rows, rows)
            continue

        def objective(r, b, rows=rows, a=a, f=f, y=y, t=t):
            cross = k(rows[r], X[t])
            after = f - a[r] * cross + b
            return (a[r] ** 2 + b * b - 2 * a[r] * b * cross) / 2 + 0.7 * max(0.0, 1 - y * after)

        best = min(
            minimize_scalar(lambda b, r=r: objective(r, b), bounds=(-5, 5), method="bounded").fun for r in range(BUDGET)
        )
        (slot,) = np.flatnonzero((engine.rows != rows).any(1))
        assert objective(slot, engine.coef[slot, 0]) <= best + 1e-9
        checked += 1
    assert checked > 10


def test_projectron_under_a_wide_kernel():
    """The kernel matrix is singular to rounding; its factor stays exact, and so do the support vectors."""
    X, Y = truth.stream(1500, 3, seed=21)
    kernel = {"kernel": "gaussian", "bandwidth": 12.0}
    engine = BudgetEngine(3, 1, kernel, rule="projectron")
    F = learn(engine, X, Y)
    m = engine.n_support
    K = gram.block(engine.rows, engine.rows, **kernel)
    L = np.tril(engine._expansion.matrix[:m, :m])
    assert np.linalg.cond(K) > 1e9
    assert abs(L @ L.T - K).max() < 1e-14
    assert (L.diagonal() ** 2 > 1e-10).all()
    assert 10 < m < 200
    assert np.isfinite(F).all()


def test_projectron_of_repeated_rows_is_the_perceptron():
    """A row that lies in the span exactly costs nothing when it is projected."""
    X, Y = truth.stream(40, 3, seed=6)
    rows = np.random.default_rng(7).integers(0, 40, 400)
    engine = BudgetEngine(3, 1, GAUSSIAN, rule="projectron")
    F, f = learn(engine, X[rows], Y[rows]), truth.Perceptron(truth.gaussian(H)).run(X[rows], Y[rows, 0])
    np.testing.assert_allclose(F[:, 0], f, atol=1e-6)
    assert engine.n_support <= 40
    assert (Y[rows] * F <= 0).sum() > 45


def test_outputs_without_a_budget_are_learners_of_their_own():
    X, Y = truth.stream(400, 4, seed=8, outputs=3)
    F = learn(make("perceptron", 4, 3), X, Y)
    for o in range(3):
        np.testing.assert_allclose(F[:, o], learn(make("perceptron", 4), X, Y[:, o : o + 1])[:, 0], atol=1e-12)


def test_several_outputs_share_the_budget():
    X, Y = truth.stream(400, 4, seed=9, outputs=3)
    for name in ALGORITHMS:
        engine = make(name, 4, 3)
        F = learn(engine, X, Y)
        assert np.isfinite(F).all()
        assert engine.coef.shape == (engine.n_support, 3)
        assert ALGORITHMS[name][2] is None or engine.n_support <= ALGORITHMS[name][2]


# ---- the same bits --------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(("d", "c"), [(3, 1), (20, 1), (20, 3)])
def test_bits_do_not_depend_on_the_cuts(name, d, c):
    n = 700
    X, Y = truth.stream(n, d, seed=10, outputs=c)
    kernel = GAUSSIAN if d == 3 else {"kernel": "gaussian", "bandwidth": 4.0}
    whole = make(name, d, c, kernel)
    F = learn(whole, X, Y)
    for cuts in (range(1, n), [1], [255], [256, 257], [100, 101, 103, 350, 600], range(7, n, 7)):
        other = make(name, d, c, kernel)
        np.testing.assert_array_equal(learn(other, X, Y, list(cuts)), F)
        same_state(other, whole)


@EVERY
def test_bits_do_not_depend_on_threads(name):
    X, Y = truth.stream(600, 20, seed=11, outputs=2)
    kernel = {"kernel": "gaussian", "bandwidth": 4.0}
    F = learn(make(name, 20, 2, kernel), X, Y)
    for threads in (1, 2, 3):
        with curvk.threads(threads):
            engine = make(name, 20, 2, kernel)
            np.testing.assert_array_equal(learn(engine, X, Y), F)
            if threads == 1:
                one = engine.decide(X)
            np.testing.assert_array_equal(engine.decide(X), one)


@EVERY
def test_decide_is_what_learn_predicts(name):
    X, Y = truth.stream(300, 20, seed=12)
    engine = make(name, 20, kernel={"kernel": "laplacian", "bandwidth": 5.0})
    assert (engine.decide(X[:3]) == 0).all()
    learn(engine, X[:200], Y[:200])
    before = engine.decide(X[200:])
    F = np.empty((1, 1))
    for t in range(200, 210):
        np.testing.assert_array_equal(engine.decide(X[t : t + 1]), engine.decide(X[t:])[:1])
        engine.learn(X[t : t + 1], Y[t : t + 1], F)
        if t == 200:
            np.testing.assert_array_equal(F[0], before[0])


@EVERY
def test_state_goes_on_bit_for_bit(name):
    X, Y = truth.stream(600, 5, seed=13, outputs=2)
    whole, first, second = (make(name, 5, 2) for _ in range(3))
    F = learn(whole, X, Y)
    learn(first, X[:333], Y[:333])
    second.load_state(first.state())
    learn(first, X[333:400], Y[333:400])  # what was taken from it does not change with it
    np.testing.assert_array_equal(learn(second, X[333:], Y[333:]), F[333:])
    same_state(second, whole)


# ---- the rest of an engine ------------------------------------------------------------------------------------------


def test_append_stops_when_it_is_full():
    X, Y = truth.stream(500, 4, seed=14)
    free, bounded = (BudgetEngine(4, 1, GAUSSIAN, size=size, lr=0.3) for size in (None, 30))
    wanted = learn(free, X, Y)
    F = np.full((500, 1), np.nan)
    done = bounded.fill(X, Y, F)
    assert 30 <= done < 499
    assert bounded.n_support == 30
    np.testing.assert_array_equal(F[: done + 1], wanted[: done + 1])
    assert np.isnan(F[done + 1 :]).all()
    assert Y[done, 0] * F[done, 0] < 1
    assert bounded.fill(X[done:], Y[done:], F[done:]) == 0
    pieces = BudgetEngine(4, 1, GAUSSIAN, size=30, lr=0.3)
    assert sum(pieces.fill(X[t : t + 1], Y[t : t + 1], F[t : t + 1]) for t in range(done + 1)) == done
    same_state(pieces, bounded)
    np.testing.assert_array_equal(learn(pieces, X[done:], Y[done:]), pieces.decide(X[done:]))


def test_set_kernel_makes_the_matrices_anew():
    X, Y = truth.stream(150, 4, seed=15)
    other = {"kernel": "gaussian", "bandwidth": 0.9}
    for name in ("forgetron", "projectron", "bpas"):
        engine = make(name, 4)
        learn(engine, X, Y)
        coef, m = engine.coef, engine.n_support
        engine.set_kernel(other)
        K = gram.block(engine.rows, engine.rows, **other)
        expected = {"forgetron": K, "projectron": np.linalg.cholesky(K), "bpas": K.diagonal()}[name]
        matrix = engine._expansion.matrix
        found = matrix[:m] if name == "bpas" else matrix[:m, :m]
        found = np.tril(found) if name == "projectron" else found
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * abs(expected).max())
        np.testing.assert_array_equal(engine.coef, coef)
        np.testing.assert_allclose(engine.decide(X), gram.block(X, engine.rows, **other) @ coef, atol=1e-12)
        learn(engine, X, Y)
        assert engine.n_support == BUDGET


def test_set_kernel_survives_support_vectors_that_fall_together():
    """Under a wide kernel the rows are nearly the same; the inverse stays finite."""
    X, Y = truth.stream(200, 4, seed=16)
    engine = make("projectron", 4)
    learn(engine, X[:100], Y[:100])
    engine.set_kernel({"kernel": "gaussian", "bandwidth": 1e6})
    assert np.isfinite(engine._expansion.matrix).all()
    assert np.isfinite(learn(engine, X[100:], Y[100:])).all()


@EVERY
def test_outputs_grow(name):
    X, Y = truth.stream(400, 4, seed=17)
    engine = make(name, 4)
    learn(engine, X[:200], Y[:200])
    before = engine.decide(X)
    engine.grow([(0, -1.0), (0, 1.0), None])
    np.testing.assert_array_equal(engine.decide(X), np.column_stack([-before, before, 0 * before]))
    wide = np.column_stack([-Y, Y, -np.ones_like(Y)])
    F = learn(engine, X[200:], wide[200:])
    assert np.isfinite(F).all()
    assert engine.coef.shape == (engine.n_support, 3)


@EVERY
def test_restart_forgets(name):
    X, Y = truth.stream(400, 4, seed=18)
    engine = make(name, 4)
    learn(engine, X[:200], Y[:200])
    engine.restart()
    assert engine.n_support == 0
    F = learn(engine, X[200:], Y[200:])
    fresh = make(name, 4)
    fresh._row = 200  # draws go on with the number of the row
    np.testing.assert_array_equal(learn(fresh, X[200:], Y[200:]), F)


def test_growth_is_amortised():
    """Doubling: arrays are made anew a logarithmic number of times."""
    X, Y = truth.stream(3000, 4, seed=19)
    engine = BudgetEngine(4, 1, GAUSSIAN, loss="logistic")  # every row
    sizes = set()
    for t in range(0, 3000, 10):
        learn(engine, X[t : t + 10], Y[t : t + 10])
        sizes.add(engine._expansion.capacity)
    assert engine.n_support == 3000
    assert len(sizes) <= math.log2(3000 / 64) + 2


def test_large_budget_takes_memory_as_it_fills():
    engine = BudgetEngine(4, 1, GAUSSIAN, rule="forgetron", size=10**6)
    X, Y = truth.stream(300, 4, seed=20)
    learn(engine, X, Y)
    assert engine._expansion.matrix.shape[0] < 1000
