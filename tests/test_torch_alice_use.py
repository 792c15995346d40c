"""curvk.torch.Alice under the liberties of training loops."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import curvk  # noqa: E402
from curvk.torch import Alice  # noqa: E402
from torch import nn  # noqa: E402
from torch_alice_models import batch, closure_of, contents, make_model, steps  # noqa: E402

# ---- the training loop's liberties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_have_a_float32_centre(dtype: Any) -> None:
    model = make_model(dtype=dtype)
    optimizer = Alice(model.parameters(), lr=1e-3, sigma=0.05)
    losses = steps(model, optimizer, 120)
    for p in model.parameters():
        state = optimizer.state[p]
        assert state["center"].dtype == state["exp_avg"].dtype == torch.float32
        assert torch.equal(p, state["center"].to(dtype))
        assert not torch.equal(p.float(), state["center"])
    assert losses[-1] < losses[0]


def test_schedulers() -> None:
    """Bounds and probes follow lr; OneCycleLR's betas too, and phi with them."""
    for make in (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 5, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 2e-2, total_steps=40),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 10),
    ):
        model = make_model()
        optimizer = Alice(model.parameters(), lr=1e-2, lr_min=2e-2, lr_max=2e-2)
        scheduler = make(optimizer)
        inner = closure_of(model, optimizer)
        for _ in range(25):
            before = [p.detach().clone() for p in model.parameters()]
            group = dict(optimizer.param_groups[0])
            optimizer.step(inner)
            scheduler.step()
        first = group["lr_0"]
        for p, b in zip(model.parameters(), before, strict=True):
            state = optimizer.state[p]
            q = 2e-2 * (group["lr"] / first) / (state["exp_avg_sq"].sqrt() + 1e-8)
            torch.testing.assert_close(b - p, (1 - group["betas"][0]) * q * state["exp_avg"], rtol=1e-3, atol=1e-7)


def test_a_schedule_from_zero_needs_sigma() -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 5)
    with pytest.raises(ValueError, match=re.escape("'param_groups[0].lr': got 0.0, needs a finite number > 0")):
        steps(model, optimizer, 1)
    optimizer = Alice(model.parameters(), lr=1e-2, sigma=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 5)
    before = [p.detach().clone() for p in model.parameters()]
    steps(model, optimizer, 12)
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


def test_lr_as_a_tensor() -> None:
    results = []
    for lr in (0.25, torch.tensor(0.25)):
        model = make_model()
        optimizer = Alice(model.parameters(), lr=lr)
        steps(model, optimizer, 14)
        results.append(contents(model, optimizer))
    assert results[0] == results[1]


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [1, 5, 9, 10, 11, 12, 13, 15])
@pytest.mark.parametrize("used", [False, True])
def test_resume_equals_no_interruption(at: int, used: bool, dtype: Any) -> None:
    """Oracle 9: into a fresh optimizer and into one that was used, the model loaded before or after."""
    options: dict[str, Any] = {"lr": 0.01, "sigma": 0.125, "seed": 4}
    whole = make_model(dtype=dtype)
    optimizer = Alice(whole.named_parameters(), **options)
    losses = steps(whole, optimizer, 22)
    first = make_model(dtype=dtype)
    halved = Alice(first.named_parameters(), **options)
    begun = steps(first, halved, at)
    saved = through_file({"model": first.state_dict(), "optimizer": halved.state_dict()})
    second = make_model(seed=1, dtype=dtype)
    resumed = Alice(second.named_parameters(), lr=0.5, sigma=0.3, seed=8, quick_steps=0)
    if used:
        steps(second, resumed, 3)
        resumed.load_state_dict(saved["optimizer"])
        second.load_state_dict(saved["model"])
    else:
        second.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["optimizer"])
    assert begun + steps(second, resumed, 22 - at) == losses
    assert contents(whole, optimizer) == contents(second, resumed)


def test_state_dict_of_another_optimizer_changes_nothing() -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=0.01)
    steps(model, optimizer, 12)
    before, good = contents(model, optimizer), optimizer.state_dict()
    adam = curvk.torch.Adam(model.parameters())
    for bad in (
        adam.state_dict(),
        {k: v for k, v in good.items() if k != "alice"},
        good | {"alice": good["alice"] | {"t": -1}},
        good | {"alice": good["alice"] | {"seed": None}},
        good | {"alice": {"t": 1}},
        good | {"state": {k: {n: s for n, s in v.items() if n != "samples"} for k, v in good["state"].items()}},
        good | {"state": {k: {n: s for n, s in v.items() if n != "center"} for k, v in good["state"].items()}},
        good | {"param_groups": [good["param_groups"][0] | {"lr_min": 1.0}]},
    ):
        with pytest.raises(ValueError, match="Alice"):
            optimizer.load_state_dict(bad)
        assert contents(model, optimizer) == before
    with pytest.raises(TypeError):
        optimizer.load_state_dict(None)  # type: ignore[arg-type]
    assert contents(model, optimizer) == before


@pytest.mark.parametrize("key", ["step", "samples"])
@pytest.mark.parametrize("bad", ["three", None, -1, torch.ones(2), math.nan])
def test_damaged_counts_change_nothing(key: str, bad: Any) -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=1e-2)
    steps(model, optimizer, 11)
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["state"][0][key] = bad
    before = contents(model, optimizer)
    with pytest.raises(ValueError, match=rf"parameter 0 of group 0 has '{key}' = "):
        optimizer.load_state_dict(damaged)
    assert contents(model, optimizer) == before
    steps(model, optimizer, 2)


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_pickle_and_deepcopy(copied: Callable[[Any], Any]) -> None:
    model = make_model()
    optimizer = Alice(model.named_parameters(), lr=0.01, seed=2, quick_steps=2)
    steps(model, optimizer, 11)
    model2, optimizer2 = copied((model, optimizer))
    with pytest.raises(ValueError, match="no step has been taken"):
        optimizer2.diagnose()
    assert steps(model2, optimizer2, 9) == steps(model, optimizer, 9)
    assert contents(model, optimizer) == contents(model2, optimizer2)
    optimizer2.load_state_dict(optimizer.state_dict())
    assert steps(model2, optimizer2, 3) == steps(model, optimizer, 3)


def test_values_written_between_steps_take_the_lookahead_along() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        p = nn.Parameter(torch.linspace(-2, 2, 9, dtype=dtype))
        optimizer = Alice([p], lr=0.01, sigma=0.125)
        points: list[Any] = []

        def closure(p: Any = p, optimizer: Any = optimizer, points: list[Any] = points) -> Any:
            optimizer.zero_grad()
            points.append(p.detach().clone())
            loss = p.square().sum() / 2
            loss.backward()
            return loss

        for _ in range(13):
            optimizer.step(closure)
        state = optimizer.state[p]
        center, ahead = state["center"].clone(), state["lookahead"].clone()
        with torch.no_grad():
            p[3:5] = torch.tensor([7.0, -7.0], dtype=dtype)
        points.clear()
        optimizer.step(closure)
        expected = ahead.clone()
        expected[3:5] = torch.tensor([7.0, -7.0]) + (ahead - center)[3:5]
        assert torch.equal(points[0], expected.to(dtype))
        assert p[3] > 6
        assert p[4] < -6


def test_rewriting_the_same_values_changes_nothing() -> None:
    results = []
    for rewrite in (False, True):
        model = make_model(dtype=torch.bfloat16)
        optimizer = Alice(model.parameters(), lr=0.01, sigma=0.125)
        for _ in range(15):
            steps(model, optimizer, 1)
            if rewrite:
                model.load_state_dict(copy.deepcopy(model.state_dict()))
        results.append(contents(model, optimizer))
    assert results[0] == results[1]


def test_model_moved_to_another_dtype() -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=0.01, sigma=0.125)
    steps(model, optimizer, 11)
    centers = [optimizer.state[p]["center"].clone() for p in model.parameters()]
    model.double()
    losses = steps(model, optimizer, 5)
    for p, center in zip(model.parameters(), centers, strict=True):
        assert {v.dtype for k, v in optimizer.state[p].items() if k not in ("step", "samples")} == {torch.float64}
        assert torch.equal(p, optimizer.state[p]["center"])
        assert (p - center).abs().max() < 0.1
    assert losses[-1] < 2
    model[0].weight.data = model[0].weight.data[:3]
    with pytest.raises(ValueError, match=re.escape("the state 'center' of parameter 0 of group 0 has shape (7, 5)")):
        steps(model, optimizer, 1)


def test_frozen_unused_and_late_parameters() -> None:
    used, unused, frozen, late = (nn.Parameter(torch.full((3,), float(i))) for i in range(1, 5))
    frozen.requires_grad_(False)
    optimizer = Alice([{"params": [used, unused]}, {"params": [frozen, late], "lr": 0.02}], lr=0.01)
    begun = False

    def closure() -> Any:
        optimizer.zero_grad()
        loss = used.square().sum() + (late.square().sum() if begun else 0) + frozen.sum()
        loss.backward()
        return loss

    for _ in range(12):
        optimizer.step(closure)
        for p, value in ((unused, 2.0), (frozen, 3.0), (late, 4.0)):
            assert (p == value).all()
            assert p not in optimizer.state
    begun = True
    optimizer.step(closure)
    assert (optimizer.state[late]["step"], optimizer.state[late]["samples"]) == (1, 0)
    torch.testing.assert_close(optimizer.state[late]["exp_avg"], 2 * late.detach())
    for _ in range(3):
        optimizer.step(closure)
    assert (optimizer.state[late]["step"], optimizer.state[late]["samples"]) == (4, 1)
    assert (optimizer.state[used]["step"], optimizer.state[used]["samples"]) == (16, 11)
    torch.testing.assert_close(optimizer.state[late]["exp_avg"], 2 * late.detach())  # a plain mean at a resting point
    assert (late == 4).all()
    for _ in range(6):
        optimizer.step(closure)
    assert (late < 4).all()
    assert (unused == 2).all()
    late.requires_grad_(False)
    kept = late.detach().clone()
    optimizer.step(closure)
    assert torch.equal(late, kept)


@pytest.mark.parametrize("before", [0, 9, 11])
def test_frozen_parameters_stay_in_spite_of_old_gradients(before: int) -> None:
    """Frozen before the first step, before a quick and before a sample step; the closure zeroes no gradients."""
    model = make_model()
    x, y = batch()
    optimizer = Alice(model.parameters(), lr=1e-2)
    steps(model, optimizer, before)
    frozen = model[0].weight
    (model(x) - y).square().mean().backward()
    frozen.requires_grad_(False)
    old = frozen.detach().clone()

    def closure() -> Any:
        assert torch.equal(frozen, old)  # not displaced either
        loss = (model(x) - y).square().mean()
        trained = [p for p in model.parameters() if p.requires_grad]
        for p, g in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.grad = g
        return loss

    for _ in range(13):
        optimizer.step(closure)
    assert torch.equal(frozen, old)
    assert optimizer.state[model[0].bias]["step"] == before + 13
    frozen.requires_grad_(True)
    steps(model, optimizer, 12)
    assert not torch.equal(frozen, old)


def test_gradients_for_frozen_parameters_are_refused() -> None:
    p, frozen = nn.Parameter(torch.ones(3)), torch.ones(2)
    optimizer = Alice([p, frozen], lr=1e-2)

    def closure() -> float:
        p.grad, frozen.grad = torch.ones(3), torch.ones(2)
        return 0.0

    with pytest.raises(ValueError, match=r"parameter 1 of group 0 was given a gradient, yet has requires_grad = False"):
        optimizer.step(closure)
    assert torch.equal(p, torch.ones(3))
    assert torch.equal(frozen, torch.ones(2))
    assert not optimizer.state


def test_parameter_replaced_in_its_group() -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=1e-2)
    steps(model, optimizer, 12)
    model[0].weight = optimizer.param_groups[0]["params"][0] = new = nn.Parameter(torch.zeros(7, 5))
    steps(model, optimizer, 13)
    assert new.abs().max() > 0
    assert optimizer.state[new]["step"] == 13


def test_diagnose_leaves_out_deleted_states() -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=1e-2)
    steps(model, optimizer, 12)
    for p in list(model.parameters())[:-1]:
        del optimizer.state[p]
    found = optimizer.diagnose()
    assert found["predicted"] < 0
    assert found["frac_inside"] in (0, 1 / 3, 2 / 3, 1)


def test_views_and_channels_last() -> None:
    """Layouts give the bits that contiguous parameters give."""
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).double()
        model.to(memory_format=layout)
        optimizer = Alice(model.parameters(), lr=0.01)
        target = torch.linspace(-1, 1, 108, dtype=torch.float64).view(4, 3, 3, 3)

        def closure(model: Any = model, optimizer: Any = optimizer, target: Any = target) -> Any:
            optimizer.zero_grad()
            weight = model[0].weight
            loss = ((weight - target).sin().square()).sum() + (model[2].weight.cos()).sum()
            loss.backward()
            return loss

        for _ in range(14):
            optimizer.step(closure)
        results.append([p.detach().contiguous().numpy().tobytes() for p in model.parameters()])
    assert results[0] == results[1]
