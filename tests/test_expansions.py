"""Learners that keep a kernel expansion: the papers' mistakes, one row or many at a time, files, wrong parameters."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import budget_truth as truth
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="curvk.online needs scikit-learn")
from curvk.kernels import noise
from curvk.online import (
    BOGDClassifier,
    BPASClassifier,
    ForgetronClassifier,
    KernelPerceptronClassifier,
    ProjectronClassifier,
    RBPClassifier,
)

H, BUDGET, SEED = 1.3, 25, 3


def made(**more: Any) -> dict[str, Any]:
    """Every learner, with small budgets and a seed."""
    more = {"random_state": SEED} | more
    return {
        "perceptron": KernelPerceptronClassifier(**more),
        "rbp": RBPClassifier(BUDGET, **more),
        "forgetron": ForgetronClassifier(BUDGET, **more),
        "bpas": BPASClassifier(BUDGET, C=0.7, **more),
        "projectron": ProjectronClassifier(BUDGET, threshold=0.3, **more),
        "projectron++": ProjectronClassifier(None, plus_plus=True, threshold=0.4, **more),
        "bogd": BOGDClassifier(BUDGET, lr=0.4, weight_decay=0.02, gamma=1.5, **more),
    }


EVERY = pytest.mark.parametrize("name", made())


def plain(name: str) -> truth.Learner:
    """The paper's algorithm with the same numbers."""
    kinds = {
        "perceptron": (truth.Perceptron, None),
        "rbp": (truth.RandomBudgetPerceptron, BUDGET),
        "forgetron": (truth.Forgetron, BUDGET),
        "bpas": (truth.PassiveAggressive, BUDGET),
        "projectron": (truth.Projectron, BUDGET),
        "projectron++": (truth.Projectron, None),
        "bogd": (truth.Bounded, BUDGET),
    }
    kind, budget = kinds[name]
    found = kind(truth.gaussian(H), budget)
    if isinstance(found, truth.Projectron):
        found.threshold, found.plus = (0.4, True) if name == "projectron++" else (0.3, False)
    return found


def labelled(n: int, d: int = 4, classes: int = 2, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    X, Y = truth.stream(n, d, seed=seed, outputs=classes)
    return X, np.array(["ant", "bee", "cat", "dog"])[Y.argmax(1)]


@EVERY
def test_the_papers_mistakes(name: str) -> None:
    X, Y = truth.stream(400, 4, seed=2)
    learner = made(bandwidth=H)[name]
    y = np.where(Y[:, 0] > 0, "up", "down")
    predicted, mistakes = learner.progressive(X, y, classes=["up", "down"])
    u = noise.fill(np.empty(400), seed=SEED, tensor=noise.tensor_word("budget", "sampling"), dist="uniform")
    reference = plain(name)
    f = reference.run(X, Y[:, 0], u)
    np.testing.assert_array_equal(predicted, np.where(f > 0, "up", "down"))
    np.testing.assert_array_equal(mistakes, np.cumsum((f > 0) != (Y[:, 0] > 0)))
    assert 60 < learner.mistakes_ < 200
    assert learner.n_support_ == len(reference.rows)
    np.testing.assert_allclose(learner.decision_function(X[:20]), [reference.predict(x) for x in X[:20]], atol=1e-6)


@EVERY
def test_one_row_is_as_good_as_many(name: str) -> None:
    X, y = labelled(420, classes=4)
    whole, one, some = made()[name], made()[name], made()[name]
    predicted, mistakes = whole.progressive(X, y)
    assert [one.learn_one(a, b) for a, b in zip(X, y.tolist(), strict=True)] == predicted.tolist()
    for part in np.split(np.arange(420), [1, 2, 50, 51, 300]):
        some.partial_fit(X[part], y[part])
    for other in (one, some):
        assert other.mistakes_ == whole.mistakes_ == mistakes[-1]
        assert other.bandwidth_ == whole.bandwidth_
        np.testing.assert_array_equal(other.decision_function(X), whole.decision_function(X))
    assert whole.decision_function(X).shape == (420, 4)
    assert len(np.unique(predicted)) == 4


@EVERY
def test_files_and_pickles_go_on(name: str, tmp_path: Path) -> None:
    X, y = labelled(300, classes=3)
    whole, half = made()[name], made()[name].partial_fit(X[:140], y[:140])
    want = whole.progressive(X, y)[0][140:]
    half.save(tmp_path / "learner.npz")
    for other in (type(half).load(tmp_path / "learner.npz"), pickle.loads(pickle.dumps(half)), half):
        np.testing.assert_array_equal(other.progressive(X[140:], y[140:])[0], want)
        np.testing.assert_array_equal(other.decision_function(X), whole.decision_function(X))


def test_draws_follow_the_seed() -> None:
    X, y = labelled(400)
    for kind in (RBPClassifier, BOGDClassifier):
        first, same, other = (kind(BUDGET, random_state=seed).fit(X, y).decision_function(X) for seed in (0, None, 1))
        np.testing.assert_array_equal(first, same)
        assert (first != other).any()


def test_budgets_hold() -> None:
    X, y = labelled(600, classes=3)
    for name, learner in made().items():
        learner.partial_fit(X, y)
        if name not in ("perceptron", "projectron++"):
            assert learner.n_support_ == BUDGET
    full = KernelPerceptronClassifier(BUDGET, bandwidth=H).partial_fit(X, y)
    assert full.n_support_ == BUDGET
    before = full.decision_function(X)
    np.testing.assert_array_equal(full.partial_fit(X, y).decision_function(X), before)


def test_drift_forgets() -> None:
    """The labels turn round half way: learners that forget make fewer mistakes."""
    X, _ = truth.stream(2000, 3, seed=5)
    y = np.where(np.arange(2000) < 1000, X[:, 0] > 0, X[:, 0] <= 0)
    stays, restarts = (
        KernelPerceptronClassifier(drift=drift, bandwidth=H).partial_fit(X, y) for drift in (False, True)
    )
    assert restarts.drifts_ >= 1
    assert restarts.n_support_ < stays.n_support_
    assert restarts.mistakes_ < stays.mistakes_


@pytest.mark.parametrize(
    ("learner", "error", "name"),
    [
        (RBPClassifier(0), ValueError, "budget"),
        (RBPClassifier(2.5), TypeError, "budget"),
        (RBPClassifier(None), TypeError, "budget"),
        (KernelPerceptronClassifier(0), ValueError, "budget"),
        (BOGDClassifier(1), ValueError, "budget"),
        (BOGDClassifier(loss="perceptron"), ValueError, "loss"),
        (BOGDClassifier(lr=0.0), ValueError, "lr"),
        (BOGDClassifier(gamma=-1.0), ValueError, "gamma"),
        (BOGDClassifier(weight_decay=-1.0), ValueError, "weight_decay"),
        (BOGDClassifier(lr=2.0, weight_decay=0.6), ValueError, "weight_decay"),
        (BPASClassifier(C=0.0), ValueError, "C"),
        (BPASClassifier(C="1"), TypeError, "C"),
        (ProjectronClassifier(threshold=-0.1), ValueError, "threshold"),
        (ProjectronClassifier(plus_plus=True, threshold=0.0), ValueError, "threshold"),
        (ProjectronClassifier(plus_plus=1), TypeError, "plus_plus"),
        (ForgetronClassifier(drift=1), TypeError, "drift"),
        (ForgetronClassifier(random_state=-1), ValueError, "random_state"),
        (ForgetronClassifier(kernel="sigmoid"), ValueError, "kernel"),
        (ForgetronClassifier(bandwidth=0.0), ValueError, "bandwidth"),
    ],
)
def test_wrong_parameters_are_named(learner: Any, error: type[Exception], name: str) -> None:
    X, y = labelled(10)
    with pytest.raises(error, match=f"{type(learner).__name__}.*argument '{name}': got .*, needs "):
        learner.partial_fit(X, y)
    assert not hasattr(learner, "classes_")
