"""examples/sketches: its error by hand, its matrices, its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from curvk.sketch import FrequentDirections, RobustFrequentDirections
from example_modules import imported


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("sklearn")
    pytest.importorskip("tqdm")
    with imported("sketches") as run:
        yield run


def test_error_is_the_spectral_norm(example):
    A = np.random.default_rng(0).standard_normal((50, 9))
    for make in (FrequentDirections, RobustFrequentDirections):
        sketched = make(3, 9)
        sketched.update(A)
        metric = sketched.sketch.T @ sketched.sketch + getattr(sketched, "alpha", 0.0) * np.eye(9)
        assert example.error(A.T @ A, sketched) == pytest.approx(np.linalg.norm(A.T @ A - metric, 2), rel=1e-12)


def test_drift_is_what_greedy_truncation_misses(example):
    """The second five directions hold three quarters of the squared norm, and come after sixty others."""
    A = example.drift(2000, 100, 1)
    squares = np.linalg.svd(A, compute_uv=False) ** 2 / np.sum(A**2)
    assert squares[:5].sum() == pytest.approx(0.75, abs=0.03)
    assert squares[65:].max() < 1e-20
    errors = example.study(A, [16], 1, lambda: None)
    assert errors["IncrementalSVD"][0][0] > 0.1
    assert errors["Frequent Directions"][0][0] <= errors["FD's own bound"][0][0] < 0.03


def test_files(example, tmp_path, capsys):
    files = {name: tmp_path / f"{name}.out" for name in ("json", "table")} | {"figure": tmp_path / "figure.png"}
    example.main(["--quick", "--matrices", "digits", *(x for n, f in files.items() for x in (f"--{n}", str(f)))])
    results = json.loads(files["json"].read_text())
    task = results["tasks"]["digits"]
    assert set(task["errors"]) == {*example.METHODS, "optimum", "FD's own bound"}
    assert all(len(errors) == len(task["lengths"]) for errors in task["errors"].values())
    fd, least = (np.array(task["errors"][title]) for title in ("Frequent Directions", "optimum"))
    assert np.all(fd >= least)
    assert np.all(fd <= np.array(task["errors"]["FD's own bound"]) * (1 + 1e-9))
    text = files["table"].read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert f"| optimum | {task['errors']['optimum'][1][0]:.2g} |" in text
    assert files["figure"].read_bytes().startswith(b"\x89PNG")
