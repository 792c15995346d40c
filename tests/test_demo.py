"""`curvk demo`: one run of `curvk demo --quick`, and the pieces it is made of."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest
from curvk import _backend, _demo, cli
from curvk._demo import digits, kernels, limits, peers, stream
from curvk.kernels import noise
from curvk.online import FORKSClassifier
from curvk.stein.problems import DoubleBanana

STEERING = ("CURVK_BACKEND", "CURVK_SIMD", "CURVK_NUM_THREADS", "OMP_NUM_THREADS")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """The one run of `curvk demo --quick` that the tests below look at."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    line = [sys.executable, "-m", "curvk", "demo", "--quick", "--out", str(out)]
    env = {k: v for k, v in os.environ.items() if k not in STEERING}
    return subprocess.run(line, capture_output=True, text=True, timeout=600, env=env), out


@pytest.fixture(scope="module")
def demo_report(quick_demo: tuple[Done, Path]) -> dict[str, Any]:
    done, out = quick_demo
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    return report


def test_demo_prints_tables_and_writes_files(quick_demo: tuple[Done, Path]) -> None:
    done, out = quick_demo
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar where nobody watches
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "demo.png", "samplers.png", "stream.png"]
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


def test_demo_kernel_machines(quick_demo: tuple[Done, Path], demo_report: dict[str, Any]) -> None:
    entry = demo_report["kernel_machines"]
    names = ["curvk EigenPro4", "curvk KernelRidgeCG", "sklearn Nystroem + Ridge", "sklearn SVC"]
    assert [row["machine"] for row in entry["rows"]] == names
    for row in entry["rows"]:
        assert f"  {row['machine']}  " in quick_demo[0].stdout
        assert row["test_accuracy"] > 0.96
        assert min(row["fit_s"], row["predict_s"]) > 0
    # Both minimise a ridge on centers; scikit-learn's has an intercept and other centers.
    cg, ridge = (row["test_accuracy"] for row in entry["rows"][1:3])
    assert abs(cg - ridge) < 0.02
    assert entry["threads"] == demo_report["machine"]["threads"]
    assert any("SVC's C" in note and f"medians of {entry['fits']} fits" in note for note in demo_report["notes"])


def test_demo_machines_have_one_kernel() -> None:
    """scikit-learn's gamma is curvk's bandwidth: the features' products are Nystroem's approximation of that kernel."""
    eigenpro, cg, ridge, svc = kernels._machines(3).values()
    x = digits.load(0).x[: kernels.CENTERS].astype(np.float64)  # as many rows as centers: the approximation is exact
    squares = np.square(x[:, None, :20] - x[None, :, :20]).sum(-1)
    features = ridge.steps[0][1].fit_transform(x[:, :20])
    expected = np.exp(-squares / (2 * eigenpro.bandwidth**2))
    np.testing.assert_allclose(features @ features.T, expected, atol=1e-6)
    assert (svc.gamma, cg.bandwidth, cg.kernel, eigenpro.kernel) == (
        ridge.steps[0][1].gamma, eigenpro.bandwidth, "gaussian", "gaussian",
    )  # fmt: skip
    assert cg.alpha == ridge.steps[1][1].alpha


def test_demo_samplers(quick_demo: tuple[Done, Path], demo_report: dict[str, Any]) -> None:
    entry = demo_report["samplers"]
    repelled, alone, independent = (row["mmd2"] for row in entry["rows"])
    assert [row["method"] for row in entry["rows"]] == [*kernels.SAMPLERS, kernels.INDEPENDENT]
    assert all(f"  {row['method']}  " in quick_demo[0].stdout for row in entry["rows"])
    assert max(repelled) < min(alone) / 3  # without repulsion the searches end on the ridges
    assert 0 < max(independent) < 0.02
    assert any("maximum mean discrepancy" in note for note in demo_report["notes"])


def test_demo_samplers_against_numpy() -> None:
    """The first seed's points have the MMD^2 that is told, by the whole matrices of distances."""
    calls = []
    entry, clouds = kernels.run_samplers(True, 4, lambda: calls.append(1))
    assert len(calls) == kernels.rounds(True) * len(kernels.SAMPLERS) * kernels.GENERATIONS
    seed = np.random.default_rng(4).integers(1 << 31, size=kernels.rounds(True) + 1)[-1]
    truth = DoubleBanana().sample(entry["truth"], seed=int(seed))

    def squares(a: Any, b: Any) -> Any:
        return np.square(a[:, None] - b[None]).sum(-1)

    h, within = entry["settings"]["mmd_bandwidth"], squares(truth, truth)
    assert 2 * h**2 == pytest.approx(np.median(within[np.triu_indices(len(truth), 1)]), rel=1e-6)
    for row in entry["rows"]:
        x = clouds[row["method"]]
        assert x.shape == (entry["particles"], 2)
        mean = [float(np.exp(-q / (2 * h**2)).mean()) for q in (squares(x, x), within, squares(x, truth))]
        assert row["mmd2"][0] == pytest.approx(mean[0] + mean[1] - 2 * mean[2], rel=1e-6)


def test_demo_stream(quick_demo: tuple[Done, Path], demo_report: dict[str, Any]) -> None:
    entry = demo_report["stream"]
    forks, batches, last = entry["learners"]
    assert all(f"  {row['learner']}  " in quick_demo[0].stdout for row in entry["learners"])
    assert entry["rows"] == stream.QUICK_ROWS
    assert forks["mistakes"] < batches["mistakes"] < last["mistakes"]
    assert forks["mistakes"] < 0.01 * entry["rows"]
    assert any("predicts each row before it learns it" in note for note in demo_report["notes"])


def test_demo_streams_mistakes_are_those_of_single_rows() -> None:
    """The running count equals a loop that asks for a prediction and then teaches."""
    X, y = stream.load(True)
    told: list[str] = []
    entry, curves = stream.run(True, 3, told.append)
    assert len(told) == stream.steps(True)
    assert f"{entry['learners'][0]['mistakes'] / len(y):.2%}" in told[stream.QUICK_ROWS // stream.PIECE - 1]
    learner = FORKSClassifier(random_state=int(np.random.default_rng(3).integers(1 << 31)))
    learner.partial_fit(X[:1], y[:1], classes=[0, 1])
    mistakes = [int(y[0] != 0)]  # nothing was known: the first of the classes
    for x, label in zip(X[1:1500], y[1:1500], strict=True):
        mistakes.append(mistakes[-1] + int(learner.predict(x[None])[0] != label))
        learner.learn_one(x, label)
    assert curves["curvk FORKS"][:1500].tolist() == mistakes
    assert curves[stream.FLOOR][-1] == 1 + (y[1:] != y[:-1]).sum()


@pytest.mark.parametrize(("name", "lowest"), [("demo.png", 800), ("samplers.png", 400), ("stream.png", 400)])
def test_demo_picture_is_a_picture(name: str, lowest: int, quick_demo: tuple[Done, Path]) -> None:
    from matplotlib import image

    path = quick_demo[1] / name
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert 1200 <= width <= 2400
    assert lowest <= height <= 2000
    pixels = image.imread(path)
    for part in (pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :], pixels[height // 2 :]):
        assert 0.02 < np.mean(part[..., :3].min(axis=-1) < 0.9) < 0.6  # ink, but mostly paper


@pytest.mark.parametrize("module", ["sklearn", "scipy", "matplotlib", "tqdm"])
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


@pytest.mark.skipif(not _backend.compiled, reason="this build has no compiled kernels")
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
