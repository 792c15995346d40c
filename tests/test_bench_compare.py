"""`curvk bench --compare`: what counts as a regression, and a history that nothing spoils.

Times come from a made-up machine here, with noise, slow hours and planted regressions, through the real command.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest
from curvk import cli
from curvk._bench import compare, history, limits, main, report, runner
from curvk._bench.history import Reading
from curvk._bench.registry import Contender, cases

pytestmark = [
    pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning"),
    pytest.mark.skipif(curvk.get_backend() == "python", reason="a million elements in Python loops take minutes"),
]

BASE = {"curvk": 1e-5, "curvk plan": 1e-5, "limit": 9e-6}


@dataclass
class Machine:
    """Stands for the clock: samples by contender, with noise, an hour's speed, and one factor for curvk's own."""

    rng: np.random.Generator
    noise: float = 0.02
    speed: float = 1.0
    curvk: list[float] = field(default_factory=lambda: [1.0])  # how slow, pass by pass; the last one stays
    interrupt: bool = False
    measured: int = 0

    def take_turns(self, contenders: list[Contender], effort: runner.Effort, threads: int) -> list[list[float]]:
        names = [c.name for c in contenders]
        if "limit" in names and "curvk" in names:
            if self.interrupt and self.measured:
                raise KeyboardInterrupt
            factor = self.curvk.pop(0) if len(self.curvk) > 1 else self.curvk[0]
            self.measured += 1
        else:
            factor = 1.0
        rounds = self.rng.lognormal(0, self.noise, effort.rounds)  # what befalls all of a round
        return [
            [
                float(BASE.get(name, 2e-5) * (factor if name == "curvk" else 1.0) * self.speed * r * own)
                for r, own in zip(rounds, self.rng.lognormal(0, self.noise / 4, effort.rounds), strict=True)
            ]
            for name in names
        ]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A made-up machine under the real command, on two short rows of SGD; the user's state is in tmp_path."""
    pytest.importorskip("numba")
    seed = np.random.SeedSequence().entropy
    print(f"seed {seed}")
    made = Machine(np.random.default_rng(seed))
    case = cases()["sgd_step"]
    rows = (replace(case.rows[0], sizes=(1000, 2000)),)
    monkeypatch.setitem(cases(), "sgd_step", replace(case, rows=rows, peers={}))
    monkeypatch.setattr(runner, "QUICK", runner.Effort(11, 1e-5, 2000, (), 1))
    monkeypatch.setattr(runner, "FULL", runner.Effort(11, 1e-5, 2000, (), 1))
    monkeypatch.setattr(runner, "take_turns", made.take_turns)
    monkeypatch.setattr(limits, "sgemm_gflops", lambda threads: 100.0)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return made


def run(*arguments: str) -> int:
    return main(["--quick", "--kernels", "sgd_step", "--threads", "1", "--compare", *arguments])


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "state" / "curvk" / "bench").glob("*/*"))


def doctor(path: Path, times: float, name: str = "curvk") -> None:
    """Makes a kept result claim that curvk took this many times as long."""
    document = json.loads(path.read_text())
    for row in document["rows"]:
        row["samples"][name] = [x * times for x in row["samples"][name]]
    path.write_text(json.dumps(document))


def test_first_run_is_kept(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    assert "nothing to compare with: kept as the first result" in out
    (path,) = kept(tmp_path)
    assert f"kept {path}" in out
    document = json.loads(path.read_text())
    assert path.parent.name == history.name(document["machine"])
    assert [row["n"] for row in document["rows"]] == [1000, 2000]
    assert document["comparison"]["rows"] == []


def test_planted_regression_is_flagged(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    doctor(kept(tmp_path)[0], 1 / 1.5)
    capsys.readouterr()
    assert run() == 3
    out = capsys.readouterr().out
    assert out.count("REGRESSION: sgd_step, momentum f32") == 2
    assert "seen again in 2 of 2 repeats" in out
    assert "2 compared: 2 regressions" in out
    assert len(kept(tmp_path)) == 2
    # The last result is the slow one now: no further news.
    assert run() == 0


def test_small_change_is_not(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    doctor(kept(tmp_path)[0], 1 / 1.05)
    measured = machine.measured
    assert run() == 0
    assert machine.measured == measured + 2, "nothing was measured twice"
    assert "2 within 10% or the spread" in capsys.readouterr().out


def test_threshold(machine: Machine, tmp_path: Path) -> None:
    run()
    doctor(kept(tmp_path)[0], 1 / 1.25)
    kept(tmp_path)[0].rename(tmp_path / "old.json")
    assert run(str(tmp_path / "old.json"), "--threshold", "40") == 0
    assert run(str(tmp_path / "old.json"), "--threshold", "20%") == 3


def test_improvement_is_printed(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    doctor(kept(tmp_path)[0], 1.5)
    assert run() == 0
    assert capsys.readouterr().out.count("improvement: sgd_step, momentum f32") == 2


@pytest.mark.parametrize("speed", [0.4, 3.0])
def test_a_slow_hour_is_no_regression(machine: Machine, speed: float, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    machine.speed = speed
    assert run() == 0
    assert "0 regressions, 0 improvements" in capsys.readouterr().out


def test_a_regression_in_a_slow_hour_is_one(machine: Machine) -> None:
    run()
    machine.speed, machine.curvk = 2.0, [1.5]
    assert run() == 3


def test_a_disturbance_is_not_confirmed(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row, then its repeats: slow once, and once more, and not the third time."""
    run()
    machine.curvk = [1.5, 1.0, 1.5, 1.0]  # both rows, then the first again, twice
    assert run() == 0
    assert "not confirmed: sgd_step, momentum f32, 1,000" in (out := capsys.readouterr().out)
    assert "seen again in 1 of 2 repeats" in out
    rows = json.loads(kept(tmp_path)[1].read_text())["rows"]
    assert [len(row["samples"]["curvk"]) for row in rows] == [33, 11], "the repeats count in what is kept"


def test_noise_alone_is_no_regression(machine: Machine) -> None:
    machine.noise = 0.1
    assert [run() for _ in range(12)] == [0] * 12


def test_only_like_runs_are_compared(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    doctor(kept(tmp_path)[0], 1 / 1.5)
    first = "nothing to compare with: kept as the first result"
    assert main(["--kernels", "sgd_step", "--threads", "1", "--compare"]) == 0, "a full run knows no quick one"
    assert main(["--quick", "--kernels", "sgd_step", "--threads", "2", "--compare"]) == 0, "nor two threads one"
    assert capsys.readouterr().out.count(first) == 3
    assert run() == 3, "the newest runs have nothing for this one, the oldest has"


def test_other_machines_are_ignored(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    (path,) = kept(tmp_path)
    doctor(path, 1 / 1.5)
    document = json.loads(path.read_text())
    document["machine"]["machine"]["model"] = "Another Processor"
    path.write_text(json.dumps(document))  # in this machine's folder: somebody copied it there
    capsys.readouterr()
    assert run() == 0
    assert "nothing to compare with" in capsys.readouterr().out
    assert run(str(path)) == 2
    error = capsys.readouterr().err
    assert "of another machine" in error
    assert "model Another Processor there" in error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("machine", "model"), "Another"),
        (("machine", "affinity"), [0, 1, 2, 3, 4, 5, 6]),
        (("machine", "architecture"), "riscv64"),
        (("machine", "caches"), []),
        (("simd", "level"), "v1"),
        (("kernels", "backend"), "other"),
    ],
)
def test_what_makes_another_machine(machine: Machine, tmp_path: Path, field: tuple[str, str], value: Any) -> None:
    run()
    here = json.loads(kept(tmp_path)[0].read_text())["machine"]
    there = json.loads(json.dumps(here))
    there[field[0]][field[1]] = value
    assert history.name(there) != history.name(here)


def test_what_is_the_same_machine(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new compiler, library or system is what a comparison is for: it is named and compared with."""
    run()
    (path,) = kept(tmp_path)
    document = json.loads(path.read_text())
    document["machine"]["library_built_with"] = "GCC: (an older one) 9.1"
    document["machine"]["packages"]["numpy"] = "1.0"
    document["machine"]["machine"]["system"] += "-rebooted"
    path.write_text(json.dumps(document))
    assert history.name(document["machine"]) == path.parent.name
    capsys.readouterr()
    assert run() == 0
    assert "Changed since: compiler GCC: (an older one) 9.1 -> " in (out := capsys.readouterr().out)
    assert "numpy 1.0 -> " in out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ("{}", "'machine' is missing"),
        ("\udcff\udcfe", "can't decode"),
        (None, "samples of sgd_step"),
    ],
)
def test_corrupt_file(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, reason: str
) -> None:
    run()
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    broken = path.with_name("99990101T000000.000000Z.json")
    if text is None:
        broken.write_bytes(whole)
        doctor(broken, 0.0)
    else:
        broken.write_bytes(text.encode(errors="surrogateescape"))
    before = broken.read_bytes()
    doctor(path, 1 / 1.5)
    assert run() == 3, "the whole file is still compared with"
    error = capsys.readouterr().err
    assert f"left out of the history: {broken}: " in error
    assert reason in error
    assert broken.read_bytes() == before
    assert run(str(broken)) == 2
    assert str(broken) in capsys.readouterr().err


def test_interrupted_run_leaves_the_history(machine: Machine, tmp_path: Path) -> None:
    run()
    before = {path: path.read_bytes() for path in kept(tmp_path)}
    machine.interrupt = True
    arguments = ["bench", "--quick", "--kernels", "sgd_step", "--threads", "1", "--compare"]
    assert cli.main(arguments) == cli.INTERRUPTED
    assert {path: path.read_bytes() for path in kept(tmp_path)} == before


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_killed_while_writing(machine: Machine, tmp_path: Path) -> None:
    """SIGKILL between the two halves of a file: what is left is not taken for a result."""
    run()
    (path,) = kept(tmp_path)
    code = (
        "import os, signal, sys; from pathlib import Path; from curvk._bench import report\n"
        "def half(file): file.write_text('{\"machine\": '); os.kill(os.getpid(), signal.SIGKILL)\n"
        "report.write(Path(sys.argv[1]), half)"
    )
    target = path.with_name("99990101T000000.000000Z.json")
    done = subprocess.run([sys.executable, "-c", code, str(target)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(kept(tmp_path)) == 2, "the half file is there, under a name of its own"
    doctor(path, 1 / 1.5)
    assert run() == 3


def test_wrong_answers_are_not_kept(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases()["sgd_step"]
    monkeypatch.setitem(cases(), "sgd_step", replace(case, run=lambda a, o, fmt: {k: a[k] for k in case.written}))
    assert run() == 1
    assert "not kept, since answers are wrong" in capsys.readouterr().err
    assert not [path for path in kept(tmp_path) if path.is_file()]


def test_json(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    doctor(kept(tmp_path)[0], 1 / 1.5)
    capsys.readouterr()
    assert run("--json", "--out", str(tmp_path / "out")) == 3
    document = json.loads(capsys.readouterr().out)
    comparison = document["comparison"]
    assert comparison["threshold"] == 0.1
    assert comparison["counts"] == {"regression": 2, "improvement": 0, "unclear": 0, "same": 0}
    for row in comparison["rows"]:
        assert row["kind"] == "regression"
        assert row["yardstick"] == "limit"
        assert (row["confirmed"], row["repeats"]) == (2, 2)
        times = row["time_now_over_then"]
        assert 1.1 < times["q1"] <= times["median"] <= times["q3"]
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["comparison"] == comparison
    assert json.loads(kept(tmp_path)[1].read_text())["comparison"] == comparison


def test_two_files(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--history", str(tmp_path / "here")) == 0
    (old,) = (tmp_path / "here").glob("*/*.json")
    assert not kept(tmp_path), "--history is the only place that was written"
    new = tmp_path / "new.json"
    new.write_bytes(old.read_bytes())
    doctor(new, 1.5)
    capsys.readouterr()
    measured = machine.measured
    assert main(["--compare", str(old), str(new)]) == 3
    assert "2 compared: 2 regressions" in capsys.readouterr().out
    assert main(["--compare", str(old), str(new), "--threshold", "60"]) == 0
    assert main(["--compare", str(new), str(old)]) == 0
    assert "2 improvements" in capsys.readouterr().out
    assert main(["--compare", str(old), str(new), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["counts"]["regression"] == 2
    assert machine.measured == measured
    document = json.loads(new.read_text())
    document["settings"]["quick"] = False
    new.write_text(json.dumps(document))
    assert main(["--compare", str(old), str(new)]) == 2
    assert "a quick one" in capsys.readouterr().err
    assert main(["--compare", str(old), str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_no_place_to_keep_is_said_first(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run("--history", str(tmp_path / "file")) == 2
    assert "no folder to keep results in" in capsys.readouterr().err
    assert machine.measured == 0


def test_a_folder_that_may_not_be_written_is_said_first(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*, dir: Path) -> None:  # root may write anywhere
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert run("--history", str(tmp_path)) == 2
    assert "no folder to keep results in: Permission denied" in capsys.readouterr().err
    assert machine.measured == 0


def test_a_user_without_a_home_is_told_of_the_option(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert run() == 2
    assert "--history DIR" in capsys.readouterr().err
    assert machine.measured == 0


@pytest.mark.parametrize("gflops", [float("nan"), -1.0, "fast"])
def test_a_matrix_product_that_is_none(machine: Machine, tmp_path: Path, gflops: Any) -> None:
    run()
    (path,) = kept(tmp_path)
    document = json.loads(path.read_text())
    document["machine"]["limits"]["sgemm_GFLOP_s"] = {str(row["threads"]): gflops for row in document["rows"]}
    path.write_text(json.dumps(document))
    with pytest.raises(history.HistoryError, match="GFLOP/s"):
        history.read(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "10"], "needs --compare"),
        (["--history", "x"], "needs --compare"),
        (["--compare", "--threshold", "none"], "needs a percentage above 0"),
        (["--compare", "--threshold", "0"], "needs a percentage above 0"),
        (["--compare", "--check-only"], "--check-only"),
        (["--compare", "a", "b", "c"], "at most two"),
        (["--compare", "a", "b", "--quick"], "measures nothing"),
        (["--compare", "a", "b", "--history", "x"], "measures nothing"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == 2
    assert words in capsys.readouterr().err


# ---- judgement alone ------------------------------------------------------------------------------------------------


def reading(times: list[float], limit: list[float] | None = None, sgemm: float | None = None) -> Reading:
    return Reading(times, limit, sgemm)


def test_quartiles_that_meet_are_no_change() -> None:
    old = reading([1.0, 1.1, 1.2, 1.9, 2.0], [1.0] * 5)
    new = reading([1.0, 1.8, 1.9, 2.0, 2.1], [1.0] * 5)  # the medians are 1.58 apart, the quartiles meet
    assert compare.judge(old, new, 0.1).kind == "same"
    assert compare.judge(reading([1.0] * 5, [1.0] * 5), new, 0.1).kind == "regression"


def test_a_yardstick_that_moved_is_unclear() -> None:
    """The limit loop became faster and the kernel did not become slower: no regression."""
    old, new = reading([1.0] * 5, [0.9] * 5), reading([0.99] * 5, [0.6] * 5)
    change = compare.judge(old, new, 0.1)
    assert change.kind == "unclear"
    assert change.times[1] == pytest.approx(1.485)
    assert change.seconds == pytest.approx(0.99)
    assert compare.judge(new, old, 0.1).kind == "unclear"


def test_yardsticks() -> None:
    """The limit loop where both have it, else sgemm, else seconds."""
    slow = [2.0] * 5
    both = compare.judge(reading([1.0] * 5, [1.0] * 5, 100.0), reading(slow, slow, 100.0), 0.1)
    assert (both.kind, both.yardstick) == ("same", "limit")
    one = compare.judge(reading([1.0] * 5, None, 100.0), reading(slow, slow, 50.0), 0.1)
    assert (one.kind, one.yardstick) == ("same", "sgemm")
    none = compare.judge(reading([1.0] * 5, None, None), reading(slow, slow, 50.0), 0.1)
    assert (none.kind, none.yardstick) == ("regression", "seconds")


def test_levels_and_peers_are_not_compared() -> None:
    names = ("curvk", "curvk v2", "curvk armv8-a", "curvk.torch", "curvk plan", "limit", "torch fused", "numpy")
    row = {"op": "o", "variant": "default", "format": "f32", "what": "10", "threads": 1}
    document = {
        "machine": {"limits": {"sgemm_GFLOP_s": {}}},
        "rows": [{**row, "samples": {name: [1.0] for name in names}}],
    }
    assert [key.contender for key in history.readings(document)] == ["curvk", "curvk.torch", "curvk plan"]


COMMITTED = sorted((Path(__file__).parent.parent / "bench" / "results").glob("*/bench.json"))


@pytest.mark.skipif(not COMMITTED, reason="a source archive has no results")
@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.parent.name)
def test_the_committed_results_can_be_compared(path: Path) -> None:
    document = history.read(path)
    found = history.readings(document)
    assert len(found) >= len(document["rows"])
    assert {c.kind for c in compare.judge_all(found, found, 0.1).values()} == {"same"}
    # Round trip through what `keep` writes.
    assert json.loads(report.dumps(document)) == document


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history.default_folder() == tmp_path / "curvk" / "bench"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification: such a path is to be ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history.default_folder() == tmp_path / ".local" / "state" / "curvk" / "bench"
