"""The command line: dispatch and exit codes, what `curvk info` says, one run of `curvk demo --quick`, the examples."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest
from curvk import _backend, _demo, _info, cli
from curvk._demo import digits, limits, peers
from curvk.kernels import noise

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


# ---- demo ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """The one run of `curvk demo --quick` that the tests below look at."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return command("demo", "--quick", "--out", str(out)), out


@pytest.fixture(scope="module")
def demo_report(quick_demo: tuple[Done, Path]) -> dict[str, Any]:
    done, out = quick_demo
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    return report


def test_demo_prints_a_table_and_writes_two_files(quick_demo: tuple[Done, Path]) -> None:
    done, out = quick_demo
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar where nobody watches
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "demo.png"]
    for word in ("SGD", "Adam", "AdamW", "AdamZ", "ns/parameter", "steps/s", "of limit", str(out / "demo.png")):
        assert word in done.stdout
    rows = done.stdout[done.stdout.index("FZOO, without gradients") :].splitlines()
    assert [row.split("  ")[1] for row in rows[3:6]] == ["curvk", "NumPy", "NumPy, plain"]


def test_demo_models_learn(demo_report: dict[str, Any]) -> None:
    assert [row["optimizer"] for row in demo_report["rows"]] == ["SGD", "Adam", "AdamW", "AdamZ"]
    for row in demo_report["rows"]:
        before, *curve = row["curvk"]["test_accuracy_by_epoch"]
        assert before < 0.35  # ten digits, nothing learned yet
        assert len(curve) == row["epochs"]
        assert row["curvk"]["test_accuracy"] == curve[-1] > 0.9


def test_demo_sides_agree(demo_report: dict[str, Any]) -> None:
    """Both sides round alike; one last-bit difference in a bias correction may grow over the steps, no further."""
    for row in demo_report["rows"]:
        assert row["difference"]["params"] <= 1e-4
        assert row["difference"]["loss"] <= 1e-3
        assert abs(row["curvk"]["test_accuracy"] - row["numpy"]["test_accuracy"]) <= 1 / demo_report["data"]["test"]
    assert demo_report["large_array"]["difference"] <= 1e-6


def test_demo_figures_fit_together(demo_report: dict[str, Any]) -> None:
    for row in demo_report["rows"]:
        for side in (row["curvk"], row["numpy"]):
            assert side["ns_per_parameter"] * row["parameters"] == pytest.approx(side["optimizer_ms_per_step"] * 1e6)
            assert 0 < side["steps_per_s"] < 1e3 / side["optimizer_ms_per_step"]
        ours, theirs, limit = (
            row["curvk"]["ns_per_parameter"], row["numpy"]["ns_per_parameter"], row["limit_ns_per_parameter"],
        )  # fmt: skip
        assert row["speedup"] == pytest.approx(theirs / ours)
        assert row["share_of_limit"] == pytest.approx(limit / ours)
        assert row["bytes_per_parameter"] == (20 if row["optimizer"] == "SGD" else 28)
        assert row["parameters"] == 64 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    assert any("same batches" in note for note in demo_report["notes"])


def test_demo_methods_with_several_gradients_keep_to_their_budget(
    quick_demo: tuple[Done, Path], demo_report: dict[str, Any]
) -> None:
    entry = demo_report["curvature"]
    assert "AdamW, late SAM" in quick_demo[0].stdout
    plain, late, alice = entry["rows"]
    assert [row["method"] for row in entry["rows"]] == ["AdamW", "AdamW, late SAM", "Alice"]
    for row in entry["rows"]:
        for side in (row["curvk"], row["numpy"]):
            assert entry["gradients"] - 3 < side["gradients"] <= entry["gradients"]
            assert side["test_accuracy"] > 0.9
            assert side["train_loss"] < 0.3
    for side in ("curvk", "numpy"):
        assert plain[side]["steps"] == entry["gradients"]
        assert late[side]["steps"] == int(entry["gradients"] / 1.125)
        # The first nine steps take three gradients, then each fourth does: to t steps belong t + 2 (9 + t / 4 - 2).
        t = alice[side]["steps"]
        assert alice[side]["gradients"] == t + 2 * (9 + t // 4 - 2)
    # The sides of AdamW round alike; SAM's norm is summed in another order, and Alice has other signs.
    assert plain["curvk"]["train_loss"] == pytest.approx(plain["numpy"]["train_loss"], rel=1e-3)
    assert late["curvk"]["train_loss"] == pytest.approx(late["numpy"]["train_loss"], rel=0.05)
    assert 0 < alice["frac_inside"] < 1


def test_demo_alice_in_numpy_is_alice() -> None:
    """With the signs of curvk's stream the demo's Alice and curvk's stay together over sample and quick steps."""
    from curvk import optim
    from curvk.kernels import noise

    data, sizes, settings = digits.load(0), (64, 8, 10), {"lr": 5e-3, "lr_max": 1e-2, "quick_steps": 3}
    ours, theirs = (digits.MLP(sizes, 0) for _ in range(2))
    alice, peer = optim.Alice(ours.params, seed=5, **settings), peers.Alice(theirs.params, seed=0, **settings)

    class Signs:
        """The bits behind curvk's signs, array after array of a step."""

        calls = 0

        def integers(self, low: int, high: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            name = str(self.calls % len(theirs.params))
            self.calls += 1
            word = noise.tensor_word(name)
            z = noise.fill(np.empty(shape), seed=5, draw=peer.steps, tensor=word, dist="rademacher")
            return (z > 0).astype(dtype)

    peer.rng = Signs()
    for step in range(40):
        x, y = data.x[32 * step : 32 * step + 32], data.y[32 * step : 32 * step + 32]
        for model, optimizer in ((ours, alice), (theirs, peer)):

            def grad(model: digits.MLP = model, x: Any = x, y: Any = y) -> list[np.ndarray]:
                model.grads = [np.empty_like(p) for p in model.params]
                model.backward(x, y)
                return model.grads

            optimizer.step(grad)
    first = digits.MLP(sizes, 0)
    assert digits.difference(theirs.params, first.params) > 0.01
    assert digits.difference(ours.params, theirs.params) < 1e-5


def test_demo_learns_without_gradients(demo_report: dict[str, Any]) -> None:
    row = demo_report["zeroth_order"]
    assert row["method"] == "FZOO"
    assert row["forward_passes_per_step"] == row["settings"]["n_probes"] + 1  # and none for a gradient
    for side in (row["curvk"], row["numpy"]):
        before, *curve = side["test_accuracy_by_epoch"]
        assert before < 0.35
        assert len(curve) == row["epochs"]
        assert side["test_accuracy"] == curve[-1] > 0.75
        assert side["train_loss"] < 1 < np.log(10)  # the loss of knowing nothing
    # With other signs the sides end elsewhere, but not far apart: some 2 points from seed to seed.
    assert abs(row["curvk"]["test_accuracy"] - row["numpy"]["test_accuracy"]) < 0.1
    assert row["replay_is_exact"] is True
    assert row["log_bytes"] == row["steps"] * (4 * row["settings"]["n_probes"] + 8)  # coefficients, loss and decay


def test_demo_zeroth_figures_fit_together(demo_report: dict[str, Any]) -> None:
    row = demo_report["zeroth_order"]
    plain = row["plain"]
    for side in (row["curvk"], row["numpy"], plain["curvk"], plain["numpy"]):
        assert side["passes_us"] + side["noise_us"] == pytest.approx(side["step_us"])
        assert side["noise_share"] == pytest.approx(side["noise_us"] / side["step_us"])
        assert side["noise_ns_per_parameter"] * row["parameters"] == pytest.approx(side["noise_us"] * 1e3)
        assert 0 < side["noise_us_quartiles"][0] <= side["noise_us"] <= side["noise_us_quartiles"][1]
    for entry in (row, plain):
        assert entry["speedup"]["noise"] == pytest.approx(entry["numpy"]["noise_us"] / entry["curvk"]["noise_us"])
        assert entry["speedup"]["step"] == pytest.approx(entry["numpy"]["step_us"] / entry["curvk"]["step_us"])
    assert 0 < plain["steps"] < row["steps"]
    assert any("teach more" in note and f"{row['curvk']['test_accuracy']:.1%}" in note for note in demo_report["notes"])
    assert any(f"{row['log_bytes']:,} bytes" in note and "bit for bit" in note for note in demo_report["notes"])


def test_demo_picture_is_a_picture(quick_demo: tuple[Done, Path]) -> None:
    from matplotlib import image

    path = quick_demo[1] / "demo.png"
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert 1200 <= width <= 2400
    assert 800 <= height <= 2000
    pixels = image.imread(path)
    for part in (pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :], pixels[height // 2 :]):
        assert 0.02 < np.mean(part[..., :3].min(axis=-1) < 0.9) < 0.6  # ink, but mostly paper


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "tqdm"])
def test_demo_names_missing_packages(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert text == f'curvk demo: not installed: {_demo.NEEDS[module]}; run: pip install "curvk[demo]"\n'
    assert not (tmp_path / "out").exists()


def test_demo_says_at_once_that_it_cannot_write(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert cli.main(["demo", "--out", str(blocked)]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"curvk demo: argument --out: cannot write to {blocked}:")


def test_demo_gradients_are_derivatives() -> None:
    """Central differences of the loss in float64, along random directions."""
    rng = np.random.default_rng(5)
    model = digits.MLP((6, 5, 4, 3), seed=1)
    model.params = [rng.standard_normal(p.shape) for p in model.params]  # no zeros: ReLU has no derivative there
    model.grads = [np.empty_like(p) for p in model.params]
    start = [p.copy() for p in model.params]
    x, y = rng.standard_normal((7, 6)), rng.integers(0, 3, 7)
    model.backward(x, y)
    grads = [g.copy() for g in model.grads]
    for k in range(len(start)):  # one tensor at a time
        direction = rng.standard_normal(start[k].shape)
        losses = []
        for sign in (1, -1):
            model.params[k] = start[k] + sign * 1e-6 * direction
            losses.append(model.backward(x, y))
        model.params[k] = start[k]
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(np.sum(grads[k] * direction), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("peer", [peers.FZOO, peers.PlainFZOO])
def test_demo_fzoo_is_curvks_with_other_signs(peer: type[peers.FZOO]) -> None:
    """Given the signs of curvk's stream, the opponent takes curvk's steps."""
    seed, n_probes = 11, 4
    rng = np.random.default_rng(12)
    start = [rng.standard_normal(shape, np.float32) for shape in ((5, 7), (7,), (3, 3, 3))]
    targets = [rng.standard_normal(p.shape) for p in start]

    def loss(params: list[Any]) -> float:
        return sum(float(np.sum((p - t) ** 2)) for p, t in zip(params, targets, strict=True))

    class Peer(peer):  # type: ignore[valid-type, misc]
        drawn = 0

        def draw(self) -> Any:
            signs = [np.empty_like(p) for p in start]
            words = [noise.tensor_word(str(i)) for i in range(len(signs))]
            noise.fill(signs, seed=seed, draw=self.drawn, tensor=words, dist="rademacher")
            self.drawn += 1
            flat = np.concatenate([z.ravel() for z in signs])
            drawn = super().draw()
            return np.packbits(flat < 0) if len(drawn) < len(flat) else flat.astype(drawn.dtype)

    settings: dict[str, Any] = {"lr": 0.02, "eps": 0.01, "n_probes": n_probes, "seed": seed}
    ours, theirs = [p.copy() for p in start], [p.copy() for p in start]
    a, b = curvk.zeroth.FZOO(ours, **settings), Peer(theirs, **settings)
    for _ in range(5):
        assert a.step(loss) == pytest.approx(b.step(loss), rel=1e-5)
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    assert max(np.abs(x - p).max() for x, p in zip(ours, start, strict=True)) > 0.1  # it moved


@pytest.mark.parametrize("peer", [peers.FZOO, peers.PlainFZOO])
def test_demo_fzoo_draws_fair_signs(peer: type[peers.FZOO]) -> None:
    """Each sign is 1 or -1 with equal chances, and neighbours and probes are independent."""
    n = 100_003
    other = peer([np.zeros(n, np.float32)], lr=0.1, eps=0.5, n_probes=2, seed=13)
    other.step(lambda params: float(params[0][0]))
    z = []
    for signs in other.signs:
        other.scale(signs, 1.0)
        z.append(other.flat[:n].copy())
        assert set(np.unique(z[-1])) == {-1.0, 1.0}
    sums = [z[0].sum(), z[1].sum(), z[0] @ z[1], *(x[lag:] @ x[:-lag] for x in z for lag in (1, 8))]
    assert max(map(abs, sums)) < 5 * np.sqrt(n), sums


def test_demo_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVK_NUM_THREADS", "3")  # too late for curvk's policy, but the wish to choose is there
    if _backend.compiled:
        with curvk.use_backend("cpp"), curvk.threads(3):
            assert limits.choose_threads(100_000) == (3, "curvk.threads() in this thread")
    with curvk.use_backend("numba"):
        assert limits.choose_threads(100_000) == (1, "the twins are serial")


@needs_compiled
def test_demo_takes_one_thread_where_a_team_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CURVK_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for team_s, chosen in ((0.5, 1), (0.05, 4)):
        monkeypatch.setattr(limits, "_timed", lambda run, s=team_s: s if curvk.get_num_threads() == 4 else 0.1)
        with curvk.use_backend("cpp"), curvk.threads(4):
            assert limits.choose_threads(1000)[0] == chosen


def test_demo_blocked_adam_is_adam() -> None:
    rng = np.random.default_rng(6)
    whole = rng.standard_normal(1000, np.float32)
    cut = whole.copy()
    a, b = peers.Adam([whole], 0.01), peers.BlockedAdam(cut, 0.01, block=300)
    for _ in range(3):
        grad = rng.standard_normal(1000, np.float32)
        a.step([grad])
        b.step([grad])
    np.testing.assert_array_equal(whole, cut)


def test_demo_peers_against_torch() -> None:
    """The opponents are the real thing: torch's own optimizers, in float64, over a few steps."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    start = rng.standard_normal(40)
    grads = [rng.standard_normal(40) for _ in range(5)]
    pairs = [
        (lambda p: peers.SGD(p, 0.1, 0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (lambda p: peers.Adam(p, 0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
        (lambda p: peers.AdamW(p, 0.1, 0.2), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2)),
    ]
    for make, make_torch in pairs:
        ours, theirs = start.copy(), torch.tensor(start)
        a, b = make([ours]), make_torch([theirs])
        for grad in grads:
            a.step([grad])
            theirs.grad = torch.tensor(grad)
            b.step()
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12)


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
