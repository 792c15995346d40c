"""A learner is the same to the bit however its stream is cut, saved, killed or interrupted."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="curvk.online needs scikit-learn")
from curvk.online import FORKSClassifier, FORKSRegressor
from hypothesis import given, settings
from hypothesis import strategies as st
from online_learners import LEARNERS, REAL, REGRESSORS, TWO, X, Y, differences, file, forks
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

# ---- one stream, many calls ------------------------------------------------------------------------------------------


def run(learner: Any, pieces: list[tuple[int, str]], y: Any, **first: Any) -> tuple[list[Any], list[Any]]:
    """Predictions and running mistakes of a stream in pieces, each learned by the method named."""
    predicted: list[Any] = []
    counts: list[Any] = []
    at = 0
    for n, method in pieces:
        rows, labels = X[at : at + n], y[at : at + n]
        if method == "learn_one":
            for x, label in zip(rows, labels.tolist(), strict=True):
                predicted.append(learner.learn_one(x, label))
                counts.append(learner.mistakes_)
        elif n and method == "progressive":
            p, m = learner.progressive(rows, labels, **(first if at == 0 else {}))
            predicted += p.tolist()
            counts += m.tolist()
        elif n:
            learner.partial_fit(rows, labels, **(first if at == 0 else {}))
            predicted += [None] * n
            counts += [None] * n
        at += n
    return predicted, counts


PIECES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 5), st.integers(0, 300)), st.sampled_from(["learn_one", "progressive", "partial_fit"])
    ),
    max_size=9,
)


@pytest.mark.parametrize("given_classes", [False, True])
@pytest.mark.parametrize("name", LEARNERS)
def test_cuts_do_not_matter(name: str, given_classes: bool) -> None:
    y = np.where(np.arange(700) < 250, Y, np.roll(Y, 3))  # a drift
    y[:130][y[:130] == "c"] = "b"  # the third class comes late
    first = {"classes": ["a", "b", "c"]} if given_classes else {}
    whole = LEARNERS[name]()
    expected, running = run(whole, [(700, "progressive")], y, **first)
    assert running[-1] == whole.mistakes_ == int((np.array(expected)[1:] != y[1:]).sum()) + (expected[0] != y[0])
    if "drift" in name:
        assert whole.drifts_

    @settings(max_examples=12, deadline=None)
    @given(PIECES)
    def check(pieces: list[tuple[int, str]]) -> None:
        if given_classes:
            pieces = [(1, "partial_fit"), *pieces]
        used, left = [], 700
        for n, method in pieces:
            used.append((min(n, left), method))
            left -= used[-1][0]
        learner = LEARNERS[name]()
        predicted, counts = run(learner, [*used, (left, "progressive")], y, **first)
        assert all(p is None or p == e for p, e in zip(predicted, expected, strict=True))
        assert all(c is None or c == e for c, e in zip(counts, running, strict=True))
        assert not differences(learner, whole)

    check()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=8), st.sampled_from(sorted(REGRESSORS)), st.booleans())
def test_cuts_do_not_matter_to_regressors(cuts: list[int], name: str, one_by_one: bool) -> None:
    whole = REGRESSORS[name]()
    expected, loss = whole.progressive(X, REAL)
    assert loss[-1] == whole.loss_
    np.testing.assert_allclose(loss, np.cumsum((expected - REAL) ** 2), rtol=1e-12)
    learner, at = REGRESSORS[name](), 0
    for n in [*cuts, 700]:
        part = slice(at, min(at + n, 700))
        at = part.stop
        if one_by_one and n < 50:
            found = [learner.learn_one(x, f) for x, f in zip(X[part], REAL[part], strict=True)]
            assert found == expected[part].tolist()
        elif part.stop > part.start:
            f, running = learner.progressive(X[part], REAL[part])
            assert (f == expected[part]).all()
            assert (running == loss[part]).all()
    assert not differences(learner, whole)


def test_progressive_goes_on_counting_and_partial_fit_counts_too() -> None:
    learner, reference = forks(), forks()
    _, whole = reference.progressive(X, Y)
    learner.partial_fit(X[:300], Y[:300])
    assert learner.mistakes_ == whole[299]
    _, later = learner.progressive(X[300:], Y[300:])
    assert (later == whole[300:]).all()
    assert later.dtype.kind == "i"


@pytest.mark.parametrize("name", LEARNERS)
def test_fit_forgets(name: str) -> None:
    fresh = LEARNERS[name]().fit(X[:400, :3], Y[:400])
    used = LEARNERS[name]().partial_fit(X[:, ::-1], TWO).fit(X[:400, :3], Y[:400])
    classes = LEARNERS[name]().partial_fit(X[:400, :3], Y[:400], classes=np.unique(Y))
    assert not differences(fresh, used)
    assert not differences(fresh, classes)
    regressor, again = REGRESSORS["forks"]().fit(X, REAL), REGRESSORS["forks"]().fit(X[:9, :2], REAL[:9])
    assert not differences(regressor, again.fit(X, REAL))


# ---- files, pickles, clones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 3, 20, 31, 64, 100, 127, 128, 129, 300, 699])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_file_or_pickle_of_any_row_goes_on_bit_for_bit(name: str, at: int, tmp_path: Path) -> None:
    whole = LEARNERS[name]().partial_fit(X, Y)
    learner = LEARNERS[name]().partial_fit(X[:at], Y[:at])
    learner.save(tmp_path / "x.npz")
    for copy in (type(learner).load(tmp_path / "x.npz"), pickle.loads(pickle.dumps(learner))):
        assert not differences(copy, learner)
        assert (copy.decision_function(X) == learner.decision_function(X)).all()
        middle = max(at + 1, 500)
        copy.partial_fit(X[at:middle], Y[at:middle])
        for x, y in zip(X[middle:], Y[middle:].tolist(), strict=True):
            copy.learn_one(x, y)
        assert not differences(copy, whole)
    assert not differences(learner.partial_fit(X[at:], Y[at:]), whole)  # saving has changed nothing


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressors_file_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = REGRESSORS[name]().partial_fit(X, REAL)
    for at in (1, 40, 128, 300):
        learner = REGRESSORS[name]().partial_fit(X[:at], REAL[:at])
        learner.save(tmp_path / "x.npz")
        for copy in (type(learner).load(tmp_path / "x.npz"), pickle.loads(pickle.dumps(learner))):
            assert not differences(copy.partial_fit(X[at:], REAL[at:]), whole)


def test_files_hold_parameters(tmp_path: Path) -> None:
    given = {"bandwidth": np.float64(0.5), "kernel": "exponent", "kernel_params": {"gamma": 1.5}, "drift": True}
    learner = forks(**given, budget=np.int64(40)).partial_fit(X, Y)
    learner.save(tmp_path / "x.npz")
    assert FORKSClassifier.load(tmp_path / "x.npz").get_params() == learner.get_params()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    learner = forks().partial_fit(X[:100], Y[:100])
    expected = learner.decision_function(X)
    whole = file(learner, path)
    seed = 3
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for end in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="not a whole file"):
            FORKSClassifier.load(path)
    for at in rng.integers(0, len(whole), 300):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
        try:
            loaded = FORKSClassifier.load(path)
        except ValueError:
            continue
        assert (loaded.decision_function(X) == expected).all()  # what has no checksum: times, attributes
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="got a file of FORKSClassifier, needs one of FORKSRegressor"):
        FORKSRegressor.load(path)
    with pytest.raises(FileNotFoundError):
        FORKSClassifier.load(tmp_path / "none.npz")
    np.savez(path, a=np.ones(3))
    with pytest.raises(ValueError, match="not a whole file"):
        FORKSClassifier.load(path)


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    whole = file(forks().partial_fit(X, Y), path)
    with pytest.raises(NotFittedError):
        forks().save(path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    for place in ("numpy.savez", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(OSError, match="No space"):
                forks().partial_fit(X[:9], Y[:9]).save(path)
        assert path.read_bytes() == whole
        assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("place", ["numpy.lib.format.write_array", "os.fsync", "os.replace"])
def test_a_process_killed_while_it_saves_leaves_the_old_file(place: str, tmp_path: Path, run_python: Any) -> None:
    code = f"""
import os, numpy as np
from unittest import mock
from curvk.online import FORKSClassifier
X = np.random.default_rng(0).standard_normal((300, 3))
old = FORKSClassifier(budget=30, rank=8).partial_fit(X[:100], X[:100, 0] > 0)
old.save("x.npz")
np.save("expected.npy", old.decision_function(X))
old.partial_fit(X, X[:, 0] > 0)
with mock.patch({place!r}, side_effect=lambda *args, **kwargs: os._exit(7)):
    old.save("x.npz")
"""
    assert run_python(code, check=False).returncode == 7
    rows = np.random.default_rng(0).standard_normal((300, 3))
    loaded = FORKSClassifier.load(tmp_path / "x.npz")
    assert (loaded.decision_function(rows) == np.load(tmp_path / "expected.npy")).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_clones_and_parameters(name: str) -> None:
    learner = LEARNERS[name]()
    params = learner.get_params()
    assert repr(clone(learner)) == repr(learner)
    learner.partial_fit(X, Y)
    assert learner.get_params() == params
    fresh = clone(learner)
    assert fresh.get_params() == params
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    with pytest.raises(NotFittedError):
        _ = fresh.n_support_
    assert fresh.set_params(bandwidth=0.3).bandwidth == 0.3
    assert fresh.partial_fit(X, Y).bandwidth_ == 0.3
    with pytest.raises(ValueError, match="Invalid parameter 'bandwith'"):
        fresh.set_params(bandwith=1)
    assert not differences(clone(learner).partial_fit(X, Y), learner)


def test_repr_names_what_was_given() -> None:
    assert repr(FORKSClassifier(budget=7, bandwidth=2.0)) == "FORKSClassifier(bandwidth=2.0, budget=7)"


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


class Interrupter:
    """Sends SIGINT at the n-th line that curvk.online runs."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        if f"curvk{os.sep}online" not in frame.f_code.co_filename:
            return None
        if event == "line" and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                signal.raise_signal(signal.SIGINT)
        return self


def interrupted(n: int, call: Any) -> bool:
    """Whether a call was interrupted by a signal at the n-th line."""
    tracer, before = Interrupter(n), sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    assert tracer.left >= 0, "the signal was lost"
    return False


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("begin", [0, 20, 127, 330])
@pytest.mark.parametrize("name", ["forks, drift", "perceptron"])
def test_ctrl_c_at_any_line_leaves_rows_learned_whole(name: str, begin: int, tmp_path: Path) -> None:
    y = TWO.copy()
    y[begin + 3] = "new"  # a class joins within the call
    path, end, last = tmp_path / "x.npz", begin + 6, begin + 20
    start = LEARNERS[name]()
    if begin:
        start.partial_fit(X[:begin], y[:begin])
    whole = LEARNERS[name]().partial_fit(X[:last], y[:last])
    for n in itertools.count():
        learner = pickle.loads(pickle.dumps(start))
        stopped = interrupted(n, lambda learner=learner: learner.partial_fit(X[begin:end], y[begin:end]))
        seen = getattr(learner, "rows_seen_", 0)
        assert begin <= seen <= end
        if seen:
            learner.save(path)
        learner.partial_fit(X[seen:last], y[seen:last])
        assert not differences(learner, whole), f"line {n}"
        if not stopped:
            break
    assert n > 30


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("name", ["forks, drift", "perceptron"])
def test_ctrl_c_at_any_line_of_learn_one_leaves_rows_learned_whole(name: str) -> None:
    start = LEARNERS[name]().partial_fit(X[:330], TWO[:330])
    whole = LEARNERS[name]().partial_fit(X[:400], TWO[:400])
    for n in itertools.count():
        learner = pickle.loads(pickle.dumps(start))
        learner.learn_one(X[330], TWO[330])  # binds the quick way
        stopped = interrupted(n, lambda learner=learner: [learner.learn_one(X[i], str(TWO[i])) for i in (331, 332)])
        seen = learner.rows_seen_
        assert 331 <= seen <= 333
        learner.partial_fit(X[seen:400], TWO[seen:400])
        assert not differences(learner, whole), f"line {n}"
        if not stopped:
            break
    assert n > 10


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_it_begins_or_fits_leaves_it_as_it_was() -> None:
    fitted = forks().partial_fit(X, Y)
    for n in range(12):
        fresh, learner = forks(), pickle.loads(pickle.dumps(fitted))
        assert interrupted(n, lambda learner=learner: learner.fit(X[:, :3], TWO))
        assert not differences(learner, fitted), f"line {n}"
        assert interrupted(n, lambda fresh=fresh: fresh.partial_fit(X[:, :3], TWO))
        assert not [name for name in vars(fresh) if name.endswith("_")]
