"""Loading a machine or a learner tries it out on a row, without a warning and without a change to those of others."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from curvk._estimator import rehearsal
from curvk.machines import KernelRidgeCG
from curvk.online import FOGDRegressor


def test_two_loads_at_once_leave_the_filters_of_warnings() -> None:
    """They overlap: the one that began first ends first."""
    before = list(warnings.filters)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with rehearsal("Machine.load", "file"):
            first_in.set()
            second_in.wait()
        first_out.set()

    def second() -> None:
        first_in.wait()
        with rehearsal("Machine.load", "file"):
            second_in.set()
            first_out.wait()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    with warnings.catch_warnings():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before


@pytest.mark.parametrize("kind", [KernelRidgeCG, FOGDRegressor])
def test_what_learned_named_columns_loads_without_a_warning(tmp_path: Path, kind: Any) -> None:
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(np.random.default_rng(0).standard_normal((40, 3)), columns=list("abc"))
    path = tmp_path / "model.npz"
    learned = kind(bandwidth=1.0).fit(X, X["a"])
    learned.save(path)
    loaded = kind.load(path)  # warnings are errors
    assert list(loaded.feature_names_in_) == list("abc")
    assert np.array_equal(loaded.predict(X), learned.predict(X))
