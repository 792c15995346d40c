"""`curvk bench`: a short run end to end, and what it does about wrong answers and missing packages."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._bench import main, report, runner
from curvk._bench.registry import MODELS, Contender, cases

pytestmark = [
    pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning"),
    pytest.mark.skipif(curvk.get_backend() == "python", reason="a million elements in Python loops take minutes"),
]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a second or two: SGD alone, short arrays, few samples."""
    effort = runner.Effort(rounds=2, sample=1e-5, largest=2000, models=("1000x1000",), probe_mib=1)
    monkeypatch.setattr(runner, "QUICK", effort)
    case = cases()["sgd_step"]
    rows = (replace(case.rows[0], sizes=(1000, 2000)), case.rows[-1])
    monkeypatch.setitem(cases(), "sgd_step", replace(case, rows=rows))


def run(*arguments: str) -> int:
    return main(["--quick", "--kernels", "sgd_step", "--threads", "1", *arguments])


def test_short_run(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert run("--out", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "sgd_step, momentum" in text
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [row["n"] for row in document["rows"]] == [1000, 2000, 1_000_000]
    for row in document["rows"]:
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in row["samples"].values())
        assert row["bytes_per_element"] == 20
    assert document["machine"]["limits"]["bandwidth_GB_s"]["1"]["triad"] > 0
    picture = (tmp_path / "roofline.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    assert {p.name for p in tmp_path.iterdir()} == {"bench.json", "roofline.png"}, "no temporary file is left"


def test_json_on_stdout(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out)["settings"]["rounds"] == 2


def test_without_matplotlib_and_tqdm(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "tqdm"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "curvk._bench.figures", raising=False)
    monkeypatch.delattr("curvk._bench.figures", raising=False)
    assert run("--out", str(tmp_path)) == 0
    assert "no figures" in capsys.readouterr().out
    assert (tmp_path / "bench.json").exists()


def test_wrong_answers_are_an_error(
    tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases()["sgd_step"]

    def nearly(a: Any, o: Any, fmt: str) -> Any:
        outputs = case.run(a, o, fmt)
        if a["p"].size > 900:
            a["p"][900] *= a["p"].dtype.type(1.001)
        return outputs

    monkeypatch.setitem(cases(), "sgd_step", replace(case, run=nearly))
    assert run() == 1
    assert "WRONG: sgd_step f32: 1 elements of 'p'" in capsys.readouterr().err
    assert main(["--check-only", "--kernels", "sgd_step"]) == 1
    assert main(["--check-only", "--kernels", "to_float32", "from_float32"]) == 0


def test_a_peer_that_computes_something_else_is_left_out(tiny: None) -> None:
    case = cases()["sgd_step"]
    peers = {"idle": lambda a, o, fmt: Contender("idle", lambda: None), "broken": lambda a, o, fmt: 1 // 0}
    case = replace(case, peers=peers)
    (result,) = runner.measure(case, case.rows[0], "f32", 1000, [1], runner.QUICK)
    assert isinstance(result, runner.Result)
    assert not {"idle", "broken"} & set(result.samples)
    assert "idle: left out, its answer differs" in result.notes
    assert any(note.startswith("broken: left out, it raises ZeroDivisionError") for note in result.notes)


@pytest.mark.parametrize(
    ("arguments", "word"), [(["--kernels", "sgd"], "sgd_step"), (["--threads", "0"], "1 to 65536")]
)
def test_wrong_usage(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == 2
    assert word in capsys.readouterr().err


def test_verdicts_need_the_quartiles_on_one_side() -> None:
    result = runner.Result("op", "v", "f32", "10", 10, 1, "v3", 4, 1)
    result.samples = {
        "curvk": [1.0] * 5,
        "slow": [1.5, 1.6, 1.4, 1.5, 0.9],
        "even": [0.8, 1.2, 1.0, 0.9, 1.1],
        "fast": [0.5] * 5,
    }
    assert [report.verdict(result, name) for name in report.peers(result)] == ["win", "tie", "loss"]


def test_model_shapes() -> None:
    """Counts of the published models: 161 tensors and 25,557,032 parameters; 148 and 124,439,808."""
    counts = {name: (len(shapes()), sum(int(np.prod(s)) for s in shapes())) for name, shapes in MODELS.items()}
    assert counts["resnet50"] == (161, 25_557_032)
    assert counts["gpt2-small"] == (148, 124_439_808)


@pytest.mark.parametrize("op", cases())
def test_answers_are_checked_before_the_clock(op: str) -> None:
    """Of every kernel, also of those whose result is a number."""
    case = cases()[op]
    options = next(iter(case.variants.values()))
    n = 100 if op == "loss_window" else 1023
    for fmt in case.formats:
        runner.check(case, options, fmt, case.make(n, fmt, np.random.default_rng(n), options))
