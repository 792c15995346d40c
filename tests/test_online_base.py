"""What the learners' base promises, tried with FORKS and with an engine so plain that all can be foretold."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="curvk.online needs scikit-learn")
from curvk.online import FORKSClassifier
from online_learners import LEARNERS, REAL, REGRESSORS, TWO, Plain, X, Y, content, data, differences, file, forks

# ---- what is refused -------------------------------------------------------------------------------------------------


def spoilt(value: float, at: tuple[int, int] = (3, 1)) -> np.ndarray[Any, Any]:
    bad = X[:10].copy()
    bad[at] = value
    return bad


REFUSED = {
    "nan": (spoilt(np.nan), "NaN"),
    "inf": (spoilt(np.inf), "infinity"),
    "-inf in the last row": (spoilt(-np.inf, (9, 4)), "infinity"),
    "nan in float32": (spoilt(np.nan).astype(np.float32), "NaN"),
    "nan in a list": (spoilt(np.nan).tolist(), "NaN"),
    "nan in Fortran order": (np.asfortranarray(spoilt(np.nan)), "NaN"),
    "too wide": (np.ones((10, 6)), "expecting 5 features"),
    "too narrow": (np.ones((10, 4)), "expecting 5 features"),
    "one dimension": (np.ones(10), "Expected 2D array"),
    "three dimensions": (np.ones((10, 5, 1)), "dim 3"),
    "no rows": (np.ones((0, 5)), "0 sample"),
    "words": (np.full((10, 5), "x"), "could not convert string"),
    "complex": (np.full((10, 5), 1j), "Complex data"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("seen", [5, 300])
@pytest.mark.parametrize("name", LEARNERS)
def test_bad_rows_are_refused_and_nothing_changes(name: str, seen: int, what: str, tmp_path: Path) -> None:
    bad, words = REFUSED[what]
    learner = LEARNERS[name]().partial_fit(X[:seen], Y[:seen])
    before, path = file(learner, tmp_path / "a.npz"), tmp_path / "b.npz"
    labels = Y[: len(bad)]
    for call in (learner.partial_fit, learner.fit, learner.progressive):
        if call == learner.fit and what in ("too wide", "too narrow"):
            continue
        with pytest.raises(ValueError, match=words):
            call(bad, labels)
        assert file(learner, path) == before, call
    for call in (learner.predict, learner.decision_function):
        with pytest.raises(ValueError, match=words):
            call(bad)
    if np.ndim(bad) == 2 and len(bad):
        row = np.asarray(bad)[-1 if what == "-inf in the last row" else 3]
        for _ in range(2):
            with pytest.raises((ValueError, TypeError)):
                learner.learn_one(row, "a")
            assert file(learner, path) == before
            learner.learn_one(X[0], "a")  # binds the quick way
            before = file(learner, path)


@pytest.mark.parametrize("name", LEARNERS)
def test_bad_labels_are_refused_and_nothing_changes(name: str, tmp_path: Path) -> None:
    learner = LEARNERS[name]().partial_fit(X[:50], TWO[:50])
    before, path = file(learner, tmp_path / "a.npz"), tmp_path / "b.npz"
    for labels, words in [
        (Y[:9], "inconsistent numbers"),
        (X[:10, 0], "Unknown label type"),
        (np.where(X[:10, 0] > 0, np.nan, 1.0), "NaN"),
        (np.arange(10), "argument 'y': got labels that are numbers, needs strings"),
        (np.array([None] * 10), "Unknown label type"),
        (np.stack([Y[:10], Y[:10]], axis=1), "should be a 1d array"),
    ]:
        for call in (learner.partial_fit, learner.progressive):
            with pytest.raises(ValueError, match=words):
                call(X[:10], labels)
            assert file(learner, path) == before
    with pytest.raises(ValueError, match="got one class"):
        learner.fit(X[:10], ["a"] * 10)
    with pytest.raises(ValueError, match=r"argument 'classes': got .*, needs the classes of the first call"):
        learner.partial_fit(X[:10], TWO[:10], classes=["a", "b", "c"])
    assert file(learner, path) == before


@pytest.mark.parametrize("name", REGRESSORS)
def test_bad_targets_are_refused_and_nothing_changes(name: str, tmp_path: Path) -> None:
    learner = REGRESSORS[name]().partial_fit(X[:200], REAL[:200])
    learner.learn_one(X[200], 1.0)
    before, path = file(learner, tmp_path / "a.npz"), tmp_path / "b.npz"
    for bad in (np.nan, np.inf):
        y = REAL[:10].copy()
        y[9] = bad
        for call in (learner.partial_fit, learner.fit, learner.progressive):
            with pytest.raises(ValueError, match="Input y contains"):
                call(X[:10], y)
        with pytest.raises(ValueError, match="Input y contains"):
            learner.learn_one(X[0], bad)
    for rows in (X[:10, :3], X[:10, [0, 1, 2, 3, 4, 4]]):
        with pytest.raises(ValueError, match="expecting 5 features"):
            learner.partial_fit(rows, REAL[:10])
    with pytest.raises(TypeError):
        learner.learn_one(X[0], None)
    assert file(learner, path) == before


def test_a_class_outside_those_given_is_refused(tmp_path: Path) -> None:
    learner = forks()
    with pytest.raises(ValueError, match=r"partial_fit: argument 'y': got the label 'c', needs labels among"):
        learner.partial_fit(X, Y, classes=["b", "a"])
    assert not [name for name in vars(learner) if name.endswith("_") or name.startswith("_")]
    learner.partial_fit(X[:50], TWO[:50], classes=["b", "a"])
    assert learner.classes_.tolist() == ["a", "b"]
    before = file(learner, tmp_path / "a.npz")
    for call in (learner.partial_fit, learner.progressive):
        with pytest.raises(ValueError, match="argument 'y': got the label 'c'"):
            call(X, Y)
    with pytest.raises(ValueError, match=r"learn_one: argument 'y': got the label 'new'"):
        learner.learn_one(X[0], "new")
    assert file(learner, tmp_path / "b.npz") == before
    with pytest.raises(ValueError, match="argument 'classes': got one class"):
        forks().partial_fit(X, Y, classes=["a"])


@pytest.mark.parametrize("names", [{"bandwidth": 0.0}, {"kernel": "cosine"}, {"random_state": -1}, {"budget": 0}])
def test_bad_parameters_leave_no_trace(names: dict[str, Any], tmp_path: Path) -> None:
    fresh = FORKSClassifier(**names)
    for call in (fresh.partial_fit, fresh.fit, fresh.progressive):
        with pytest.raises(ValueError, match=f"argument '{next(iter(names))}'"):
            call(X, Y)
        assert not [name for name in vars(fresh) if name.endswith("_") or name.startswith("_")]
    learner = forks().partial_fit(X, Y)
    expected = learner.decision_function(X)
    learner.set_params(**names)
    with pytest.raises(ValueError, match=f"argument '{next(iter(names))}'"):
        learner.fit(X[:, :3], Y)
    assert learner.n_features_in_ == 5
    assert (learner.decision_function(X) == expected).all()


def test_random_states_are_seeds() -> None:
    none, zero, one = (forks(random_state=seed).fit(X, Y)._engine.state() for seed in (None, 0, 1))
    assert not differences(none, zero)
    assert differences(one, zero)
    forks(random_state=2**64 - 1).fit(X, Y)
    with pytest.raises(ValueError, match=r"'random_state': got 18446744073709551616, needs an integer in \[0, 2\^64\)"):
        FORKSClassifier(random_state=2**64).partial_fit(X[:5], Y[:5])


# ---- bandwidth -------------------------------------------------------------------------------------------------------


def median_of(rows: Any) -> float:
    apart = [math.dist(a, b) for a, b in itertools.combinations(rows.tolist(), 2)]
    return float(np.median(apart))


@pytest.mark.parametrize("cut", [1, 3, 64, 700])
def test_the_bandwidth_is_that_of_2_4_up_to_128_rows(cut: int) -> None:
    learner = Plain()
    for i in range(0, len(X), cut):
        learner.partial_fit(X[i : i + cut], Y[i : i + cut])
    told = [entry[1:] for entry in learner._engine.diary if entry[0] == "kernel"]
    assert [rows for rows, _ in told] == [2, 4, 8, 16, 32, 64, 128]
    for rows, bandwidth in told:
        assert bandwidth == pytest.approx(median_of(X[:rows]), rel=1e-12)
    assert learner.bandwidth_ == told[-1][1]
    assert learner._first.size == 0


def test_the_bandwidth_is_measured_when_the_next_row_comes() -> None:
    learner = Plain().partial_fit(X[:2], Y[:2])
    assert learner.bandwidth_ == 1.0
    learner.predict(X)
    assert learner.bandwidth_ == 1.0
    learner.partial_fit(X[2:3], Y[2:3])
    assert learner.bandwidth_ == pytest.approx(math.dist(X[0], X[1]))


def test_a_bandwidth_that_is_given_stays() -> None:
    learner = Plain(bandwidth=0.7).partial_fit(X, Y)
    assert learner.bandwidth_ == 0.7
    assert not [entry for entry in learner._engine.diary if entry[0] == "kernel"]
    learner = Plain(kernel="linear").partial_fit(X, Y)
    assert learner.bandwidth_ is None
    assert not [entry for entry in learner._engine.diary if entry[0] == "kernel"]


def test_the_bandwidth_of_rows_that_repeat_is_that_of_different_ones() -> None:
    same = Plain().partial_fit(np.ones((200, 3)), ["a", "b"] * 100)
    assert same.bandwidth_ == 1.0
    rows = np.zeros((200, 3))
    rows[5], rows[90] = [3, 4, 0], [0, 0, 12]  # from the others 5 and 12 away, most often 5 after 64 rows
    told = [entry[1:] for entry in Plain().partial_fit(rows, ["a", "b"] * 100)._engine.diary if entry[0] == "kernel"]
    assert told == [[2, 1.0], [4, 1.0], [8, 5.0], [16, 5.0], [32, 5.0], [64, 5.0], [128, 12.0]]


def test_the_exponent_kernel_takes_a_power_of_the_distance() -> None:
    learner = Plain(kernel="exponent", kernel_params={"gamma": 1.5}).partial_fit(X[:3], Y[:3])
    assert learner.bandwidth_ == pytest.approx(math.dist(X[0], X[1]) ** 1.5)


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_classes_join_in_the_order_of_their_appearance() -> None:
    labels = np.array(["m", "m", "m", "z", "m", "a", "z", "longer", "a", "m"])
    for cuts in ([10], [1] * 10, [3, 2, 2, 3], [4, 6]):
        learner, at = Plain(bandwidth=1.0), 0
        for n in cuts:
            learner.partial_fit(X[at : at + n], labels[at : at + n])
            at += n
        assert learner.classes_.tolist() == ["m", "z", "a", "longer"]
        assert learner._engine.diary == [
            ["grow", 5, [[0, -1.0], [0, 1.0], None]],
            ["grow", 7, [[0, 1.0], [1, 1.0], [2, 1.0], None]],
        ]


def test_each_class_is_learned_against_the_rest_from_where_it_joins() -> None:
    labels = np.array(["m"] * 40 + ["z"] * 40 + ["a"] * 40)
    labels[40:] = np.random.default_rng(2).permutation(labels[40:])
    learner = Plain(bandwidth=1.0).partial_fit(X[:120], labels)
    expected = {}
    for label in ("m", "z", "a"):
        w = np.zeros(5)
        first = int(np.flatnonzero(labels == label)[0]) if label == learner.classes_[2] else 0
        for x, other in zip(X[first:120], labels[first:], strict=True):
            y = 1 if other == label else -1
            w += (y * math.fsum(w * x) <= 0) * y * x
        expected[label] = w
    for label, w in zip(learner.classes_, learner._engine.w, strict=True):
        np.testing.assert_allclose(w, expected[label], rtol=0, atol=1e-12)


def test_two_classes_have_one_output() -> None:
    learner = Plain(bandwidth=1.0).partial_fit(X[:40], TWO[:40])
    first, second = learner.classes_
    f = learner.decision_function(X)
    assert f.shape == (700,)
    assert (learner.predict(X) == np.where(f > 0, second, first)).all()
    three = Plain(bandwidth=1.0).partial_fit(X[:40], Y[:40])
    F = three.decision_function(X)
    assert F.shape == (700, 3)
    assert (three.predict(X) == three.classes_[F.argmax(axis=1)]).all()


def test_one_class_is_all_that_can_be_said() -> None:
    learner = Plain().partial_fit(X[:10], ["only"] * 10)
    assert learner.mistakes_ == 0
    assert set(learner.predict(X)) == {"only"}


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["a", "b", "i", "f"], None),
        (["a", "b", "i", "f"], object),
        (["x", "yy" * 20], None),
        ([True, False], None),
        ([3, -1, 2**40], None),
        ([1.0, 2.0], None),
    ],
)
def test_labels_of_any_kind_come_back_as_they_were(labels: list[Any], kind: Any, tmp_path: Path) -> None:
    y = np.array((labels * 90)[:90], kind)
    learner = forks().partial_fit(X[:50], y[:50]).partial_fit(X[50:90], y[50:])
    assert learner.classes_.tolist() == labels
    assert learner.classes_.dtype == y.dtype
    assert [learner.learn_one(x, label) in labels for x, label in zip(X[:90], y.tolist(), strict=True)] == [True] * 90
    again = forks()
    for x, label in zip(X[:90], y.tolist(), strict=True):
        again.learn_one(x, label)
    assert again.classes_.tolist() == labels
    learner.save(tmp_path / "x.npz")
    loaded = FORKSClassifier.load(tmp_path / "x.npz")
    assert loaded.predict(X).tolist() == learner.predict(X).tolist()
    assert loaded.classes_.dtype == learner.classes_.dtype
    loaded.partial_fit(X[:90], y)


# ---- drift -----------------------------------------------------------------------------------------------------------


def restarts(wrong: Any) -> list[int]:
    """Rows before which a restart is due, from the mistakes alone: three standard errors above the rate before."""
    found, since = [], 0
    for row in range(100, len(wrong), 100):
        before = wrong[since : row - 100]
        if len(before) >= 200:
            rate = before.mean()
            error = math.sqrt(max(rate * (1 - rate), 1 / len(before)) / 100)
            if wrong[row - 100 : row].mean() > rate + 3 * error:
                found.append(row)
                since = row
    return found


@pytest.mark.parametrize("seed", range(4))
def test_drift_is_where_the_mistakes_say_so(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((4000, 4))
    y = (rows[:, 0] > 0) ^ (rng.random(4000) < 0.1)
    y[1530:1900] = rng.random(370) < 0.5
    learner = Plain(bandwidth=1.0, drift=True)
    _, counts = learner.progressive(rows, y)
    wrong = np.diff(np.concatenate([[0], counts]))
    told = [entry[1] for entry in learner._engine.diary if entry[0] == "restart"]
    assert told == restarts(wrong)
    assert learner.drifts_ == len(told)
    assert any(1600 <= row <= 1700 for row in told)
    assert Plain(bandwidth=1.0).partial_fit(rows, y)._engine.diary == []


def test_a_turn_of_the_labels_is_noticed_and_a_steady_stream_left_alone() -> None:
    seed = 5
    print("seed", seed)
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-1, 1, (5000, 2))
    y = (rows**2).sum(axis=1) < 0.6
    steady = FORKSClassifier(drift=True).partial_fit(rows, y)
    assert steady.drifts_ == 0
    turned = np.where(np.arange(5000) < 3050, y, ~y)
    learner, other = FORKSClassifier(drift=True), FORKSClassifier()
    learner.partial_fit(rows[:3100], turned[:3100])
    assert learner.drifts_ == 0
    learner.partial_fit(rows[3100:], turned[3100:])
    assert learner.drifts_ == 1
    assert learner.mistakes_ < other.partial_fit(rows, turned).mistakes_


# ---- rows of any kind ------------------------------------------------------------------------------------------------


def test_rows_of_any_kind_are_the_same_rows() -> None:
    rows = np.round(X * 4) + 0.0  # no -0.0, which integers lack
    expected = forks().partial_fit(rows, Y)
    F = expected.decision_function(rows)
    wide = np.zeros((1400, 10))
    wide[::2, ::2] = rows
    frozen = rows.copy()
    frozen.setflags(write=False)
    unaligned = np.frombuffer(b"x" + rows.tobytes(), np.uint8)[1:].view(np.float64).reshape(rows.shape)
    kinds = [rows.astype(np.float32), rows.astype(np.int8), rows.astype(np.float16), rows.astype(">f8"), rows.tolist()]
    for same in [*kinds, np.asfortranarray(rows), wide[::2, ::2], rows[::-1].copy()[::-1], frozen, unaligned]:
        learner = forks().partial_fit(same, Y.tolist())
        assert not differences(learner, expected)
        assert not differences(learner.partial_fit(same, Y), forks().partial_fit(rows, Y).partial_fit(rows, Y))
        assert (expected.decision_function(same) == F).all()
    assert (frozen == rows).all()


def test_frames_have_names() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("vwxyz"))
    learner = forks().partial_fit(frame[:300], pd.Series(Y[:300]))
    assert learner.feature_names_in_.tolist() == list("vwxyz")
    learner.partial_fit(frame[300:], pd.Series(Y[300:]))
    plain = forks().partial_fit(X, Y)
    assert (learner.decision_function(frame) == plain.decision_function(X)).all()
    before = content(learner)
    for call in (learner.partial_fit, learner.progressive):
        with pytest.raises(ValueError, match="feature names should match"):
            call(frame[list("zyxwv")], Y)
    with pytest.raises(ValueError, match="feature names should match"):
        learner.predict(frame.rename(columns={"v": "u"}))
    with pytest.raises(ValueError, match="NaN"):
        learner.fit(frame.rename(columns={"v": "u"}).replace(X[0, 0], np.nan), Y)
    assert content(learner) == before


# ---- progress --------------------------------------------------------------------------------------------------------


def test_a_bar_is_shown_where_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    rows, y = data(3000)
    forks().progressive(rows, y)
    assert capfd.readouterr() == ("", "")
    forks().progressive(rows, y, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "FORKSClassifier.progressive" in err
