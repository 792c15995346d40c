"""examples/late_sam: its sharpness against the whole Hessian, its count of gradients, its files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sam_models import batch, net  # noqa: E402


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parent.parent / "examples" / "late_sam" / "run.py"
    spec = importlib.util.spec_from_file_location("late_sam_run", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "late_sam_run", module)  # where dataclass looks for it
        spec.loader.exec_module(module)
    return module


def test_sharpness_is_the_top_eigenvalue(example):
    model = net()
    x, y = batch(n=40)[0], torch.arange(40) % 3
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(flat):
        parts = flat.split([v.numel() for v in values])
        params = {n: part.view_as(v) for n, part, v in zip(names, parts, values, strict=True)}
        return example.loss_of(lambda x: torch.func.functional_call(model.double(), params, (x.double(),)), x, y)

    flat = torch.cat([v.detach().flatten() for v in values]).double()
    want = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1].item()
    assert example.sharpness(model.float(), x, y) == pytest.approx(want, rel=2e-3)


def test_example_trains_and_counts_gradients(example, tmp_path, capsys):
    settings = example.Settings(epochs=2, hidden=16)
    runs = {name: example.train(settings, n, at, seed=0) for name, n, at in example.arms(2)}
    cost = {name: run["cost"] for name, run in runs.items()}
    assert cost["SAM"] == 2
    assert cost["SAM from epoch 1"] == 1.5
    assert cost["SGD"] == 1
    assert cost["SGD, twice as long"] == 2
    assert all(run["error"] < 0.5 and run["sharpness"] > 0 for run in runs.values())


def test_example_writes_its_figure(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        example,
        "train",
        lambda *a: {"sharpness": 2.0, "error": 0.1, "loss": 0.5, "cost": 1.0, "escape": {"0": 3.0, "9": 2.0}},
    )
    example.main(["--seeds", "2", "--json", str(tmp_path / "a.json"), "--figure", str(tmp_path / "a.png")])
    assert "| SGD | 1.000 | 2.00 ± 0.00 | 10.00% ± 0.00% |" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["arms"]["SAM"]["runs"].keys() == {"0", "1"}
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(tmp_path.iterdir())) == 2
