"""scikit-learn's own checks for every public estimator away from its defaults, and proof that none is forgotten.

The default configurations are checked in test_machines_sklearn.py and test_online_sklearn.py, each from its package's
`__all__`; here every parameter has another value in at least one configuration.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import curvk
import pytest

pytest.importorskip("sklearn", reason="curvk.machines and curvk.online need scikit-learn")
from curvk import machines, online
from curvk.online._base import OnlineClassifier, OnlineRegressor
from peer_configurations import CONFIGURATIONS
from sklearn.base import BaseEstimator
from sklearn.utils.estimator_checks import check_estimator

PUBLIC = [getattr(package, name) for package in (machines, online) for name in package.__all__]
UNVARIED = {"verbose", "centers"}  # prints, and an array of the right width: test_eigenpro.py has them


@pytest.mark.parametrize(
    "estimator", [kind(**options) for kind in PUBLIC for options in CONFIGURATIONS.get(kind.__name__, [])], ids=repr
)
def test_scikit_learn_finds_nothing_to_object_to(estimator: Any) -> None:
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(results) > 40
    found = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not found, "\n".join(f"{name}: {error!r}" for name, error in found.items())
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}  # which needs SCIPY_ARRAY_API=1 before SciPy is imported
    assert {r["status"] for r in results} <= {"passed", "skipped"}  # no failure is expected


def test_no_public_estimator_is_forgotten() -> None:
    """Every estimator that a module of curvk defines under a public name is exported, and has configurations here."""
    found = set()
    for module in pkgutil.walk_packages(curvk.__path__, "curvk."):
        if module.name.startswith(("curvk.machines", "curvk.online")) and not module.name.endswith(".river"):
            for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                own = kind.__module__.startswith("curvk.") and issubclass(kind, BaseEstimator)
                if own and hasattr(kind, "fit") and not inspect.isabstract(kind):
                    found.add((name, kind))
    concrete = {kind for name, kind in found if not name.startswith("_")}
    assert set(PUBLIC) == concrete - {OnlineClassifier, OnlineRegressor}  # bases that learn nothing by themselves
    assert {kind.__name__ for kind in PUBLIC} == CONFIGURATIONS.keys()


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_parameter_is_varied(kind: Any) -> None:
    defaults = kind().get_params()
    other = {name for o in CONFIGURATIONS[kind.__name__] for name, v in o.items() if v != defaults[name]}
    fixed = {"kernel_params"} if kind.__name__.startswith("FOGD") else set()  # its kernels have no parameters
    assert defaults.keys() - other <= UNVARIED | fixed
