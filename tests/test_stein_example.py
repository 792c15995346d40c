"""examples/stein: its measure against curvk's and by hand, its choice of settings, its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from curvk import stein
from example_modules import imported


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("sklearn")
    pytest.importorskip("tqdm")
    with imported("stein") as run:
        yield run


def test_measure_is_the_discrepancy(example):
    rng = np.random.default_rng(0)
    truth, x = rng.standard_normal((60, 2)), rng.standard_normal((20, 2)) + 1
    measure = example.Truth(truth)
    assert measure(x) == pytest.approx(stein.mmd2(x, truth, bandwidth=float(measure.h)), rel=1e-12)
    assert measure(truth) == pytest.approx(0, abs=1e-15)


def test_smaller_is_better_for_discrepancies_and_larger_for_returns(example):
    made = example.tasks(["mixture", "pendulum"], quick=True)
    low, high = ({"curve": [(1, 5.0), (2, value)]} for value in (0.1, 0.2))
    assert example.worth(made["mixture"], low) < example.worth(made["mixture"], high)
    assert example.worth(made["pendulum"], high) < example.worth(made["pendulum"], low)
    assert example.worth(made["mixture"], {"failed": "NaN"}) == np.inf


def test_settings_are_all_combinations(example):
    made = example.tasks(["mixture", "pendulum"], quick=True)
    svgd, alone = example.METHODS["GF-SVGD"], example.METHODS["independent CMA-ES"]
    assert len(example.settings_of(made["mixture"], svgd)) == 12
    assert example.settings_of(made["mixture"], alone) == [{"sigma0": s} for s in (0.05, 0.2, 0.5)]
    assert example.settings_of(made["pendulum"], alone) == [{"sigma0": s} for s in (0.3, 1.0)]


def test_samplers_use_the_same_number_of_evaluations(example):
    task = example.tasks(["banana"], quick=True)["banana"]
    for method in example.METHODS.values():
        run = example.train(task, method, example.settings_of(task, method)[0], 0)
        assert run["curve"][-1][0] == task.evaluations
        assert run["curve"][0] == (0, task.measure(task.start(np.random.default_rng(0))))


def test_example_runs(example, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    paths = {name: tmp_path / file for name, file in (("json", "r.json"), ("figure", "r.png"), ("table", "r.md"))}
    example.main(["--quick", *(str(word) for name, path in paths.items() for word in (f"--{name}", path))])
    tasks = json.loads(paths["json"].read_text())["tasks"]
    assert list(tasks) == ["mixture", "banana", "logistic", "pendulum"]
    for name, task in tasks.items():
        assert set(task["methods"]) == set(example.METHODS) - ({"SVGD"} if name == "pendulum" else set())
        for title, method in task["methods"].items():
            curve = method["runs"][0]["curve"]
            assert np.isfinite([value for _, value in curve]).all(), (name, title)
        if name in ("mixture", "banana"):
            curve = task["methods"]["SVGD"]["runs"][0]["curve"]
            assert curve[-1][1] < 0.8 * curve[0][1]
    table = paths["table"].read_text()
    assert all(f"| {title} |" in table for title in example.METHODS)
    assert paths["figure"].read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3
