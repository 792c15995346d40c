"""The command line: dispatch and exit codes, what `curvk info` says, the examples."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest
from curvk import _backend, _info, cli
from curvk._demo import digits

EXAMPLES = Path(__file__).parents[1] / "examples"
STEERING = ("CURVK_BACKEND", "CURVK_SIMD", "CURVK_NUM_THREADS", "OMP_NUM_THREADS")
Done = subprocess.CompletedProcess[str]
needs_compiled = pytest.mark.skipif(not _backend.compiled, reason="this build has no compiled kernels")


def environment(**variables: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in STEERING} | variables


def command(*arguments: str, **variables: str) -> Done:
    """Runs `python -m curvk` with these arguments and environment variables."""
    line = [sys.executable, "-m", "curvk", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, env=environment(**variables))


def info(**variables: str) -> dict[str, Any]:
    done = command("info", "--json", **variables)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


# ---- dispatch --------------------------------------------------------------------------------------------------------


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: curvk")
    assert all(f"  {name} " in text for name in ("info", "demo", "bench"))


def test_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"curvk {importlib.metadata.version('curvk')}\n")


def test_script_is_the_same_command() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="curvk")
    assert script.load() is cli.main


@pytest.mark.parametrize(
    "arguments", [["train"], ["--bogus"], ["info", "--bogus"], ["demo", "--seed", "-1"], ["demo", "x"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "usage: curvk" in streams.err
    assert arguments[-1] in streams.err


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: curvk {name}" in capsys.readouterr().out


def test_arguments_and_exit_code_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    from curvk import _bench

    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    monkeypatch.setattr(_bench, "main", main)
    assert cli.main(["bench", "--out", "somewhere", "--quick"]) == 7
    assert seen == [["--out", "somewhere", "--quick"]]


def test_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_info, "main", main)
    assert cli.main(["info"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "interrupted\n"


def test_interrupted_demo_leaves_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(seed: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "load", load)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_broken_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        line = [sys.executable, "-m", "curvk", "info"]
        done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=environment())
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


# ---- imports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["curvk", "curvk.cli", "curvk.optim", "curvk._info", "curvk._demo"])
def test_import_is_light(module: str) -> None:
    heavy = ("numba", "torch", "cffi", "matplotlib", "sklearn", "tqdm")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment())
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_info_imports_neither_numba_nor_torch() -> None:
    code = """
import sys
from curvk.cli import main
assert main(["info"]) == 0
print([m for m in ("numba", "torch", "sklearn", "matplotlib") if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment())
    assert (done.returncode, done.stderr) == (0, "[]\n")


# ---- info ------------------------------------------------------------------------------------------------------------


def test_info_says_what_is_so() -> None:
    report = info()
    assert report["version"] == importlib.metadata.version("curvk")
    assert report["kernels"]["compiled"] == _backend.compiled
    assert report["kernels"]["backend"] == ("cpp" if _backend.compiled else "numba")
    assert (Path(report["kernels"]["include_dir"]) / "curvk.h").is_file()
    assert report["simd"]["available"] == curvk.simd_levels()
    assert report["python"]["version"] == platform.python_version()
    assert report["packages"]["numpy"] == np.__version__
    assert set(report["environment"]) >= {*STEERING}
    assert report["machine"]["cpus"] == os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        assert report["machine"]["affinity"] == sorted(os.sched_getaffinity(0))
        assert report["threads"]["count"] <= len(report["machine"]["affinity"])
    for compiler in report["compilers"]:
        assert os.access(compiler["path"], os.X_OK)
        assert compiler["version"]


@needs_compiled
def test_info_names_the_library_and_its_openmp() -> None:
    report = info()
    assert Path(report["kernels"]["library"]).is_file()
    openmp = report["openmp"]
    assert openmp["enabled"] == (_backend.core.openmp() > 0)
    if sys.platform == "linux":
        assert bool(openmp["loaded"]) == openmp["enabled"]  # nothing else in that process brings one
        assert all(Path(path).is_file() for path in openmp["loaded"])


def test_info_text_has_the_content_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    report = _info.collect()
    kernels, machine = report["kernels"], report["machine"]
    wanted = [report["version"], kernels["backend_reason"], kernels["include_dir"], report["threads"]["reason"]]
    wanted += [report["simd"]["level"], report["simd"]["reason"], machine["model"], machine["system"]]
    wanted += [kernels["library"]] if kernels["library"] else [kernels["rebuild"]]
    wanted += [f"{name} " for name in (*report["environment"], *report["packages"])]
    wanted += [x for c in report["compilers"] for x in (c["version"], c["path"])]
    wanted += [c["size"] for c in machine["caches"]] + report["openmp"]["loaded"] + report["notes"]
    assert [x for x in wanted if x not in text] == []


def test_info_reports_several_openmp_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_info, "_loaded_openmp", lambda: ["/a/libgomp.so.1", "/b/libiomp5.so"])
    report = _info.collect()
    assert any(note.startswith("2 OpenMP runtimes are loaded") for note in report["notes"])
    assert "/b/libiomp5.so" in _info.render(report)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("/x/libgomp.so.1.0.0", 1), ("/x/libgomp-a34b3233.so.1", 1), ("/x/libiomp5.so", 1), ("/x/libomp.dylib", 1),
     ("/x/libcurvk.so", 0), ("/libgomp/other.so", 0), ("/x/libompd_helper.so", 0)],
)  # fmt: skip
def test_openmp_libraries_are_known_by_name(name: str, is_one: int) -> None:
    assert bool(_info._OPENMP_LIBRARY.search(name)) == bool(is_one)


def test_info_without_compiled_kernels_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from curvk import _threads

    monkeypatch.setattr(_info, "core", None)
    monkeypatch.setattr(_backend, "core", None)
    monkeypatch.setattr(_threads, "core", None)
    with curvk.use_backend("numba"):
        report = _info.collect()
    assert report["kernels"]["compiled"] is False
    assert report["kernels"]["library"] is None
    assert report["simd"] == {"level": "none", "reason": "no compiled kernels", "available": []}
    assert report["threads"]["count"] == 1
    text = _info.render(report)
    assert f"no; to compile them: {_backend.REBUILD}" in text
    assert any("Numba twins" in note for note in report["notes"])


def test_info_under_another_backend() -> None:
    report = info(CURVK_BACKEND="numba")
    assert report["kernels"]["backend"] == "numba"
    assert report["kernels"]["backend_reason"] == "CURVK_BACKEND=numba"
    assert report["environment"]["CURVK_BACKEND"] == "numba"
    assert report["threads"]["count"] == 1  # the twins are serial


@needs_compiled
def test_info_under_a_thread_setting() -> None:
    report = info(CURVK_NUM_THREADS="1")
    assert report["threads"]["count"] == 1
    assert "CURVK_NUM_THREADS" in report["threads"]["reason"]


@needs_compiled
@pytest.mark.parametrize("level", curvk.simd_levels())
def test_info_under_a_forced_level(level: str) -> None:
    report = info(CURVK_SIMD=level)
    assert report["simd"] == {"level": level, "reason": f"CURVK_SIMD={level}", "available": curvk.simd_levels()}
    assert report["environment"]["CURVK_SIMD"] == level


@needs_compiled
def test_unknown_level_is_an_error_that_names_the_variable() -> None:
    done = command("info", CURVK_SIMD="v9")
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: CURVK_SIMD=v9:")
    assert f"needs one of {', '.join(curvk.simd_levels())}" in last


def test_unknown_backend_is_an_error_that_lists_them() -> None:
    done = command("info", CURVK_BACKEND="fortran")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "ValueError: backend: got 'fortran', needs one of cpp, numba, python"


# ---- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(name: str, tmp_path: Path) -> None:
    if "torch" in name:
        pytest.importorskip("torch")
    if name == "own_arrays.py" and not _backend.compiled:
        pytest.skip("the C interface needs compiled kernels")
    line = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert "DIFFERENT" not in done.stdout
    assert list(tmp_path.iterdir()) == []
