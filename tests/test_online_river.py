"""The learners in river's clothes: its own checks, features by name, frames that equal loops of events."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="curvk.online needs scikit-learn")
pytest.importorskip("river", reason="curvk.online.river needs river")
from curvk import online
from curvk.online import river as adapters
from online_learners import differences
from river import checks, datasets, evaluate, metrics, preprocessing

NAMED = sorted(
    (kind for kind in vars(adapters).values() if isinstance(kind, type) and issubclass(kind, adapters._Adapter)),
    key=lambda kind: kind.__name__,
)
NAMED = [kind for kind in NAMED if kind not in (adapters._Adapter, adapters.Classifier, adapters.Regressor)]
SMALL = {"budget": 20, "rank": 5, "refresh_every": 7}
NAMES = ["p", "a", "z", "m"]


def small(kind: type[Any], **more: Any) -> Any:
    """A model that fills its budget, and refreshes, within a short stream."""
    wanted = SMALL | {"random_state": 3} | more
    params = kind()._get_params()
    return kind(**{name: value for name, value in wanted.items() if name in params})


def stream(n: int, seed: int = 0, regression: bool = False) -> tuple[list[dict[str, float]], list[Any]]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, len(NAMES)))
    f = X[:, 0] * X[:, 1] + 0.3 * X[:, 2]
    y = f.tolist() if regression else [("low", "mid", "high")[v] for v in np.digitize(f, [-0.5, 0.5])]
    return [dict(zip(NAMES, row, strict=True)) for row in X.tolist()], y


def of(model: Any, n: int, seed: int = 0) -> tuple[list[dict[str, float]], list[Any]]:
    """A stream of the kind that the model learns."""
    return stream(n, seed, isinstance(model, adapters.Regressor))


def learned(model: Any, xs: list[Any], ys: list[Any]) -> Any:
    for x, y in zip(xs, ys, strict=True):
        model.learn_one(x, y)
    return model


def outputs(model: Any, xs: list[Any]) -> np.ndarray[Any, Any]:
    """Margins or predictions, (n, outputs)."""
    return np.stack([model._model._engine.decide(model._row(x, "predict_one")[None])[0] for x in xs])


# ---- river's checks --------------------------------------------------------------------------------------------------


def river_checks() -> list[Any]:
    """All checks of the generic classes, and of each named one those that are no repetition on a further stream."""
    found = []
    for kind in (adapters.Classifier, adapters.Regressor, *NAMED):
        for params in kind._unit_test_params():
            model = kind(**params)
            count: dict[str, int] = {}
            for check in checks.yield_checks(model):
                name = check.__name__
                count[name] = count.get(name, 0) + 1
                if name not in model._unit_test_skips() and (kind not in NAMED or count[name] == 1):
                    found.append(pytest.param(model, check, id=f"{kind.__name__}-{name}-{count[name]}"))
    return found


@pytest.mark.parametrize(("model", "check"), river_checks())
def test_river_finds_nothing_to_object_to(model: Any, check: Callable[[Any], None]) -> None:
    check(model.clone())


def test_no_check_of_rivers_is_skipped() -> None:
    for kind in (adapters.Classifier, adapters.Regressor, *NAMED):
        assert not kind(**next(iter(kind._unit_test_params())))._unit_test_skips()


def test_a_stream_of_rivers_is_learned() -> None:
    baseline = max(sum(y for _, y in datasets.Phishing()), sum(not y for _, y in datasets.Phishing())) / 1250
    model = preprocessing.StandardScaler() | adapters.FORKS()
    accuracy = evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy()).get()
    assert accuracy > 0.85 > baseline + 0.25
    model = preprocessing.StandardScaler() | adapters.FORKS(loss="logistic")
    assert evaluate.progressive_val_score(datasets.Phishing(), model, metrics.ROCAUC()).get() > 0.88


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMED)
def test_events_are_rows_with_the_columns_in_the_order_of_their_names(kind: type[Any]) -> None:
    model = small(kind)
    xs, ys = of(model, 400)
    X = np.array([[x[name] for name in sorted(NAMES)] for x in xs])
    learned(model, xs, ys)
    plain = type(model.learner)(**model.learner.get_params())
    labels = ys if isinstance(model, adapters.Regressor) else np.array(ys)
    plain.partial_fit(X, labels)
    assert (outputs(model, xs) == plain._engine.decide(X)).all()
    assert [model.predict_one(x) for x in xs] == plain.predict(X).tolist()


@pytest.mark.parametrize("kind", NAMED)
def test_the_order_in_a_dict_does_not_matter(kind: type[Any]) -> None:
    xs, ys = of(small(kind), 300)
    turned = [dict(reversed(x.items())) for x in xs]
    assert not differences(learned(small(kind), xs, ys), learned(small(kind), turned, ys))


@pytest.mark.parametrize("bandwidth", [1.5, "median"])
@pytest.mark.parametrize("at", [1, 5, 30, 200])
@pytest.mark.parametrize("kind", NAMED)
def test_a_new_feature_was_zero_before(kind: type[Any], at: int, bandwidth: Any) -> None:
    model = small(kind, bandwidth=bandwidth)
    xs, ys = of(model, 260)
    late = [{k: v for k, v in x.items() if k in ("a", "m") or i >= at} for i, x in enumerate(xs)]
    X = np.array([[x.get(name, 0.0) for name in ("a", "m", "p", "z")] for x in late])
    learned(model, late[:at], ys[:at])
    before = outputs(model, late[:at])
    model._name(NAMES)
    np.testing.assert_allclose(outputs(model, late[:at]), before, rtol=1e-9, atol=1e-12)
    learned(model, late[at:], ys[at:])
    plain = type(model.learner)(**model.learner.get_params()).partial_fit(X, np.array(ys))
    np.testing.assert_allclose(outputs(model, late), plain._engine.decide(X), rtol=1e-5, atol=1e-6)
    assert model._model.n_support_ == plain.n_support_


@pytest.mark.parametrize("kind", [adapters.FORKS, adapters.FORKSRegressor])
def test_absent_features_are_zero(kind: type[Any]) -> None:
    xs, ys = of(small(kind), 200)
    holes = [{k: v for j, (k, v) in enumerate(x.items()) if i == 0 or (i + j) % 3} for i, x in enumerate(xs)]
    zeros = [{k: x.get(k, 0.0) for k in NAMES} for x in holes]
    a, b = learned(small(kind), holes, ys), learned(small(kind), zeros, ys)
    assert not differences(a, b)
    assert a.predict_one({}) == b.predict_one(dict.fromkeys(NAMES, 0))


def test_an_event_without_features_can_come_first() -> None:
    model = learned(adapters.FORKS(), 20 * [{}, {"a": 3}, {"b": 3, "a": 0}, {}], 20 * [0, 1, 1, 0])
    assert model.predict_one({}) == 0
    assert model.predict_one({"a": 3}) == model.predict_one({"b": 3}) == 1


def test_features_that_no_row_had_are_ignored_by_predictions() -> None:
    xs, ys = stream(100)
    model = learned(small(adapters.FORKS), xs, ys)
    before = pickle.dumps(model)
    assert model.predict_proba_one(xs[3] | {"new": 7.0}) == model.predict_proba_one(xs[3])
    assert pickle.dumps(model) == before


def test_names_are_anything_hashable_in_one_order_for_all_runs(run_python: Any) -> None:
    code = """
from curvk.online.river import FORKS
model = FORKS()
for i, y in enumerate("abab"):
    model.learn_one({1: i, "1": -i, ("t", 2): 1.0, "name": 0.5, None: i * i}, y)
print(list(model._columns), model.predict_proba_one({1: 1, None: 1}))
"""
    first, second = (run_python(code, PYTHONHASHSEED=seed).stdout for seed in "01")
    assert first == second
    assert first.startswith("[('t', 2), 1, '1', None, 'name']")


# ---- labels and probabilities ----------------------------------------------------------------------------------------


def test_labels_are_anything_hashable_and_join_where_they_appear() -> None:
    labels = ["x", 7, ("t", 1), True, 2.5]
    rng = np.random.default_rng(4)
    picks = [0] * 5 + [0, 1] * 5 + rng.integers(0, 5, 200).tolist()
    xs = [
        {"a": 3.0 * math.cos(k) + e, "b": 3.0 * math.sin(k)}
        for k, e in zip(picks, rng.normal(0, 0.1, 215), strict=False)
    ]
    model = adapters.FORKS()
    assert model.predict_one(xs[0]) is None
    assert model.predict_proba_one(xs[0]) == {}
    known: list[Any] = []
    for x, pick in zip(xs, picks, strict=True):
        model.learn_one(x, labels[pick])
        known += [labels[pick]] * (labels[pick] not in known)
        assert list(model.predict_proba_one(x)) == known
    right = [model.predict_one(x) == labels[pick] for x, pick in zip(xs[-100:], picks[-100:], strict=True)]
    assert sum(right) == 100
    assert {type(label) for label in known} == {str, int, tuple, bool, float}


@pytest.mark.parametrize("label", [None, float("nan"), np.nan])
def test_no_label_is_refused(label: Any) -> None:
    model = learned(adapters.FORKS(), [{"a": 1}], ["x"])
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match=r"FORKS.learn_one: argument 'y': got (None|nan), needs a label"):
        model.learn_one({"a": 1, "b": 2}, label)
    with pytest.raises(TypeError, match="unhashable"):
        model.learn_one({"a": 1, "b": 2}, ["x"])
    assert pickle.dumps(model) == before


def test_probabilities_are_logistic_functions_of_the_margins() -> None:
    xs, ys = stream(300)
    two = learned(small(adapters.FORKS), xs, [y == "high" for y in ys])
    three = learned(small(adapters.FORKS), xs, ys)
    for x in xs[:50]:
        (f,) = outputs(two, [x])[0]
        first, second = two._classes
        found = two.predict_proba_one(x)
        assert found[second] == pytest.approx(1 / (1 + math.exp(-f)), rel=1e-12)
        assert found[first] == pytest.approx(1 / (1 + math.exp(f)), rel=1e-12)
        each = [1 / (1 + math.exp(-f)) for f in outputs(three, [x])[0]]
        expected = dict(zip(three._classes, np.array(each) / sum(each), strict=True))
        assert three.predict_proba_one(x) == pytest.approx(expected, rel=1e-12)
        assert max(expected, key=expected.get) == three.predict_one(x)  # type: ignore[arg-type]


def test_probabilities_hold_where_exponentials_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = learned(adapters.FORKS(), [{"a": v} for v in (0, 1, 2)], "abc")
    for margins in ([-2000.0, -1000.0, -3000.0], [900.0, 1000.0, 950.0]):
        monkeypatch.setattr(model._model._engine, "decide", lambda X, m=margins: np.array([m]))
        found = model.predict_proba_one({"a": 1})
        assert sum(found.values()) == pytest.approx(1)
        assert found["b"] == max(found.values())


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("red", TypeError),
        ("1.5", TypeError),
        (None, TypeError),
        (1j, TypeError),
        ([1.0], TypeError),
        (float("nan"), ValueError),
        (-math.inf, ValueError),
        (np.float32("nan"), ValueError),
        (10**400, ValueError),
    ],
)
@pytest.mark.parametrize("kind", [adapters.FORKS, adapters.FORKSRegressor])
def test_features_that_are_no_finite_numbers_are_named(kind: type[Any], value: Any, error: Any) -> None:
    model = small(kind)
    xs, ys = of(model, 30)
    learned(model, xs, ys)
    before = pickle.dumps(model)
    methods = ["learn_one", "predict_one"] + ["predict_proba_one"] * (kind is adapters.FORKS)
    for method in methods:
        given = ({"new": 1.0, "bad": value}, *([ys[0]] if method == "learn_one" else []))
        with pytest.raises(error, match=rf"{kind.__name__}\.{method}: argument 'x': .* for the feature 'bad', needs a"):
            getattr(model, method)(*given)
    assert pickle.dumps(model) == before


@pytest.mark.parametrize("value", [True, np.bool_(True), 1, np.int8(1), np.float32(1), 1.0])
def test_numbers_of_any_kind_are_features(value: Any) -> None:
    model = learned(adapters.FORKSRegressor(fill_lr=1.0), [{"a": value}], [2.0])
    assert model.predict_one({"a": 1.0}) == 2.0


@pytest.mark.parametrize(("target", "error"), [("2", TypeError), (None, TypeError), (math.nan, ValueError)])
def test_targets_that_are_no_numbers_are_refused(target: Any, error: Any) -> None:
    model = learned(small(adapters.FORKSRegressor), *stream(20, regression=True))
    before = pickle.dumps(model)
    with pytest.raises(error, match=r"FORKSRegressor\.learn_one: argument 'y'"):
        model.learn_one({"new": 1.0}, target)
    assert pickle.dumps(model) == before


# ---- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMED)
def test_a_frame_is_learned_as_its_rows_one_by_one(kind: type[Any]) -> None:
    pd = pytest.importorskip("pandas")
    one, many = small(kind), small(kind)
    xs, ys = of(one, 500, seed=5)
    seed = 11
    print("seed", seed)
    rng = np.random.default_rng(seed)
    at = 0
    while at < len(xs):
        size = int(rng.integers(1, 90))
        names = [NAMES[j] for j in rng.permutation(4)[: rng.integers(1, 5)]]
        part = [{name: x[name] for name in names} for x in xs[at : at + size]]
        learned(one, part, ys[at : at + size])
        many.learn_many(pd.DataFrame(part), pd.Series(ys[at : at + size]))
        assert not differences(one, many), at
        at += size


@pytest.mark.parametrize("kind", NAMED)
def test_predictions_of_a_frame_are_those_of_its_rows(kind: type[Any]) -> None:
    pd = pytest.importorskip("pandas")
    model = small(kind)
    xs, ys = of(model, 150)
    frame = pd.DataFrame(xs, index=[f"row {i}" for i in range(len(xs))])[["z", "p", "a", "m"]]
    for n in (0, 1, 10, 150):
        learned(
            model,
            xs[model._model.rows_seen_ if model._started else 0 : n],
            ys[model._model.rows_seen_ if model._started else 0 : n],
        )
        found = model.predict_many(frame)
        assert found.tolist() == [model.predict_one(x) for x in xs]
        assert (found.index == frame.index).all()
        if isinstance(model, adapters.Classifier):
            many = model.predict_proba_many(frame)
            assert (many.index == frame.index).all()
            for i, x in enumerate(xs):
                assert dict(many.iloc[i]) == model.predict_proba_one(x)


def test_frames_that_cannot_be_learned_from_are_refused() -> None:
    pd = pytest.importorskip("pandas")
    xs, ys = stream(40)
    model = learned(small(adapters.FORKS), xs, ys)
    before = pickle.dumps(model)
    holes = pd.DataFrame([{"a": 1.0, "new": 2.0}, {"a": 1.0}])
    with pytest.raises(ValueError, match=r"argument 'x': got .*nan.* for the feature 'new'"):
        model.learn_many(holes, ["low", "mid"])
    with pytest.raises(TypeError, match=r"got 'red' for the feature 'color', .*see river.preprocessing"):
        model.learn_many(pd.DataFrame({"a": [1.0, 2.0], "color": ["red", "blue"]}), ["low", "mid"])
    with pytest.raises(ValueError, match="got 3 targets for 2 rows"):
        model.learn_many(pd.DataFrame({"a": [1.0, 2.0], "new": [1, 2]}), ["low", "mid", "low"])
    with pytest.raises(ValueError, match="argument 'y': got nan"):
        model.learn_many(pd.DataFrame({"a": [1.0, 2.0], "new": [1, 2]}), pd.Series(["low", np.nan]))
    with pytest.raises(ValueError, match="two columns 'a'"):
        model.learn_many(pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), ["low"])
    model.learn_many(pd.DataFrame({"new": []}), [])
    assert pickle.dumps(model) == before
    mixed = pd.DataFrame({"a": [1, True], "p": [np.float32(2), 3]}, dtype=object)
    other = learned(pickle.loads(before), [{"a": 1, "p": 2}, {"a": 1, "p": 3}], ["low", "mid"])
    model.learn_many(mixed, ["low", "mid"])
    assert not differences(model, other)


# ---- clones, pickles, parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMED)
def test_a_pickle_goes_on_where_it_was(kind: type[Any]) -> None:
    model = small(kind)
    xs, ys = of(model, 300)
    for n in (0, 1, 50, 200):
        copy = pickle.loads(pickle.dumps(learned(small(kind), xs[:n], ys[:n])))
        assert not differences(learned(copy, xs[n:], ys[n:]), learned(small(kind), xs, ys))


@pytest.mark.parametrize("kind", NAMED)
def test_parameters_are_the_learners(kind: type[Any]) -> None:
    model = kind(budget=33) if "budget" in kind()._get_params() else kind()
    assert model._get_params() == model.learner.get_params()
    assert model._model.get_params() == model.learner.get_params()
    other = model.clone({"bandwidth": 0.25})
    assert other.bandwidth == other.learner.bandwidth == other._model.bandwidth == 0.25
    assert model.bandwidth == "median"
    with pytest.raises(TypeError, match="unexpected keyword argument 'bandwith'"):
        kind(bandwith=1.0)


def test_a_clone_has_learned_nothing() -> None:
    xs, ys = stream(60)
    learner = online.FORKSClassifier(budget=20, rank=5)
    learner.partial_fit(np.ones((2, 3)), ["u", "v"])
    model = learned(adapters.Classifier(learner), xs, ys)
    assert model.learner is learner
    assert learner.rows_seen_ == 2
    assert model.clone().predict_one(xs[0]) is None
    whole = model.clone(include_attributes=True)
    assert [whole.predict_one(x) for x in xs] == [model.predict_one(x) for x in xs]


def test_only_learners_of_the_kind_are_taken() -> None:
    with pytest.raises(TypeError, match=r"Classifier: argument 'learner': got FORKSRegressor.*an OnlineClassifier"):
        adapters.Classifier(online.FORKSRegressor())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Regressor: argument 'learner'"):
        adapters.Regressor(adapters.FORKSRegressor())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'budget'"):
        adapters.FORKS(budget=0).learn_one({"a": 1}, 1)


def test_memory_stays_while_the_stream_goes_on() -> None:
    model = small(adapters.FORKS)
    sizes = []
    for x, y in itertools.islice(zip(*stream(1500), strict=True), 1500):
        model.learn_one(x, y)
        sizes.append(len(pickle.dumps(model)) if model._model.rows_seen_ % 500 == 0 else 0)
    assert sizes[999] == pytest.approx(sizes[1499], rel=0.02)


# ---- imports ---------------------------------------------------------------------------------------------------------


def test_river_is_imported_here_only(run_python: Any) -> None:
    code = "import sys, curvk.online; print('river' in sys.modules)"
    assert run_python(code).stdout == "False\n"


def test_the_module_says_what_it_needs(run_python: Any) -> None:
    code = """
import sys
sys.modules["river"] = None
try:
    import curvk.online.river
except ImportError as error:
    print(error)
"""
    assert "pip install 'curvk[river]'" in run_python(code).stdout
