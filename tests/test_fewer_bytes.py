"""examples/fewer_bytes: its measures against float64, its parameters' halves, its tables and files."""

from __future__ import annotations

import json
import struct
import sys

import numpy as np
import pytest
from example_modules import imported

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("sklearn")
    with imported("fewer_bytes") as run:
        yield run


def test_rate_rises_and_falls(example):
    rates = [example.rate(0.5, step, 1000) for step in range(1000)]
    assert rates[49] == rates[50] == max(rates) == 0.5
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.005, rel=1e-3)
    assert rates[525] == pytest.approx(0.5 * 0.505)


def test_errors_are_those_of_hand_made_numbers(example):
    states = sys.modules["states"]
    truth = np.array([3.0, 4.0, 0.0], np.float32)
    assert states.error(np.array([3.0, 4.0, 0.5], np.float32), truth) == pytest.approx(0.1)
    found = states.roots(np.array([12.0, 0.0, 7.0], np.float32), truth)
    assert found["zeros"] == 0.5
    assert found["p50"] == pytest.approx(1.0)  # between 2 and 0
    assert found["p99"] == pytest.approx(1.98)


@pytest.mark.parametrize("value", [1.0, -0.3, 3.1415927, 1e-30])
def test_whole_is_the_float_of_both_halves(example, value):
    low, high = struct.unpack("<hH", struct.pack("<f", value))
    p = torch.from_numpy(np.array([high], np.uint16).view(np.int16)).view(torch.bfloat16)
    got = example.whole(p, {"param_low": torch.tensor([low], dtype=torch.int16)})
    assert got.numpy().tobytes() == struct.pack("<f", value)


def test_second_moments_to_nearest_stall_and_dithered_ones_follow(example):
    """Gradients fall to a twentieth; sqrt(v) against the recursion in float64. In every group one element keeps its."""
    states = sys.modules["states"]
    rng = np.random.default_rng(3)  # seed 3
    size = np.exp2(rng.uniform(-4, 0, 4096))
    stays = np.arange(4096) % 32 == 0
    size[stays] = 1
    p = torch.nn.Parameter(torch.zeros(4096))
    drift = states.Drift([p])
    truth = np.zeros((2, 4096))
    for step in range(2000):
        g = torch.tensor(np.where(stays | (step < 200), size, size / 20), dtype=torch.bfloat16)
        p.grad = g.float()
        drift.step()
        g = g.double().numpy()
        truth = np.array([0.9, 0.999])[:, None] * truth + np.array([0.1, 0.001])[:, None] * np.stack([g, g * g])
    found = drift.found([tuple(truth.astype(np.float32))])
    middles = {title: row["root"]["p50"] for title, row in found.items()}
    assert middles["bf16, dithered"] == pytest.approx(1, abs=0.01)
    assert middles["8 bits curvk, dithered"] == pytest.approx(1, abs=0.03)
    assert middles["bf16, to nearest"] > 1.5
    assert middles["8 bits curvk, to nearest"] > 1.5
    assert all(sum(row["histogram"]) == 4096 for row in found.values())


def test_example_runs(example, tmp_path, capsys):
    """The short form: finite losses, bytes as the formats have them, all storages in the table, a picture."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    paths = {name: tmp_path / file for name, file in (("json", "r.json"), ("figure", "r.png"), ("table", "r.md"))}
    options = [str(word) for name, path in paths.items() for word in (f"--{name}", path)]
    before = torch.get_num_threads(), example.curvk.get_num_threads()
    try:
        example.main(["--quick", "--steps", "20", *options])
    finally:
        torch.set_num_threads(before[0])
        example.curvk.set_num_threads(before[1])
    tasks = json.loads(paths["json"].read_text())["tasks"]
    assert list(tasks) == ["text", "digits"]
    for task in tasks.values():
        assert list(task["storages"]) == list(example.STORAGES)
        runs = {title: runs[0] for title, runs in task["storages"].items()}
        assert all(np.isfinite(run["loss"]["test"]) and run["curve"][-1] < run["curve"][0] for run in runs.values())
        sizes = {title: round(run["bytes"]["total"], 1) for title, run in runs.items()}
        assert sizes["float32"] == 16
        assert sizes["bf16, all to nearest"] == 8
        assert sizes["bf16 stochastic, 8-bit states"] == 6.3
        assert sizes["bf16 split, float32 states"] == 14
    table = paths["table"].read_text()
    assert all(f"| {title} |" in table for title in example.STORAGES)
    assert paths["figure"].read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3
