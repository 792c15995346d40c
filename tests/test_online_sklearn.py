"""The learners from streams keep scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sklearn", reason="curvk.online needs scikit-learn")
from curvk import online
from sklearn.utils.estimator_checks import parametrize_with_checks


@parametrize_with_checks([getattr(online, name)() for name in online.__all__])
def test_scikit_learn_finds_nothing_to_object_to(estimator: Any, check: Any) -> None:
    check(estimator)


def test_all_learners_are_estimators() -> None:
    named = {"FORKS", "SkeGD", "NOGD", "FOGD", "PROSNKONS", "KONS", "KernelPerceptron", "RBP", "Forgetron", "BPAS"}
    assert {f"{name}Classifier" for name in named | {"Projectron", "BOGD"}} <= set(online.__all__)
    assert {f"{name}Regressor" for name in ("FORKS", "NOGD", "FOGD", "PROSNKONS", "KONS")} <= set(online.__all__)


def test_the_package_says_what_it_needs(run_python: Any) -> None:
    code = """
import sys
sys.modules["sklearn"] = None
import curvk
try:
    import curvk.online
except ImportError as error:
    print(error)
"""
    assert "pip install 'curvk[learn]'" in run_python(code).stdout
