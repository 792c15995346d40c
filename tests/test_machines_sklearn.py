"""The kernel machines keep scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sklearn", reason="curvk.machines needs scikit-learn")
from curvk import machines
from sklearn.utils.estimator_checks import parametrize_with_checks


@parametrize_with_checks([getattr(machines, name)() for name in machines.__all__])
def test_scikit_learn_finds_nothing_to_object_to(estimator: Any, check: Any) -> None:
    check(estimator)


def test_all_machines_are_estimators() -> None:
    assert {"EigenPro4Classifier", "EigenPro4Regressor"} <= set(machines.__all__)


def test_the_package_says_what_it_needs(run_python: Any) -> None:
    code = """
import sys
sys.modules["sklearn"] = None
import curvk
try:
    import curvk.machines
except ImportError as error:
    print(error)
"""
    assert "pip install 'curvk[learn]'" in run_python(code).stdout
