"""river's own checks for every public class of curvk.online.river away from its defaults; none is forgotten.

The default configurations are checked in test_online_river.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="curvk.online needs scikit-learn")
pytest.importorskip("river", reason="curvk.online.river needs river")
from curvk import online
from curvk.online import river as adapters
from peer_configurations import CONFIGURATIONS
from river import base, checks

PUBLIC = {
    name: kind
    for name, kind in vars(adapters).items()
    if isinstance(kind, type) and issubclass(kind, base.Estimator) and kind.__module__ == adapters.__name__
    if not name.startswith("_") and kind not in (adapters.Classifier, adapters.Regressor)
}
# river repeats these two on several data sets and at length; test_online_river.py runs them for every class.
ELSEWHERE = {"check_learn_one", "check_shuffle_features_no_impact"}


def learner_of(name: str) -> str:
    return name if name.endswith("Regressor") else f"{name}Classifier"


def cases() -> list[Any]:
    """For each class the configuration farthest from its defaults, and every kind of check once."""
    found = []
    for name, kind in PUBLIC.items():
        model = kind(**CONFIGURATIONS[learner_of(name)][0])
        once = {check.__name__: check for check in checks.yield_checks(model)}
        found += [pytest.param(model, c, id=f"{name}-{n}") for n, c in once.items() if n not in ELSEWHERE]
    return found


@pytest.mark.parametrize(("model", "check"), cases())
def test_river_finds_nothing_to_object_to(model: Any, check: Callable[[Any], None]) -> None:
    check(model.clone())


def test_no_learner_lacks_its_adapter() -> None:
    assert sorted(map(learner_of, PUBLIC)) == sorted(online.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters_and_clones_are_the_learners(name: str) -> None:
    """River's `_get_params` and `clone` give what scikit-learn's `get_params` gives."""
    options = CONFIGURATIONS[learner_of(name)][0]
    model = PUBLIC[name](**options)
    want = getattr(online, learner_of(name))(**options).get_params()
    assert model._get_params() == want == model.clone()._get_params()
    assert model._unit_test_skips() == set()
    changed = model.clone({"bandwidth": 4.0})
    assert changed._get_params() == want | {"bandwidth": 4.0}
