"""curvk.torch.Alice: the equations through autograd, and what a training loop may do to an optimizer."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import curvk  # noqa: E402
import numpy as np  # noqa: E402
from alice_truth import Truth, signs  # noqa: E402
from curvk.torch import Alice  # noqa: E402
from torch import nn  # noqa: E402
from torch_alice_models import Closure, batch, closure_of, contents, make_model, steps  # noqa: E402

# ---- the right numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hess": "abs", "compat": "reference", "l1": 1e-3, "l2": 1e-2},
        {"limit": "sgdm", "lr_max": 0.3, "quick_steps": 1},
    ],
    ids=str,
)
def test_equals_the_reference_equations(options: dict[str, Any]) -> None:
    """Oracle 1: the element loop in NumPy, fed by autograd at points that it chooses itself."""
    model = make_model(dtype=torch.float64)
    twin = copy.deepcopy(model)
    names, shapes = zip(*((n, tuple(p.shape)) for n, p in model.named_parameters()), strict=True)
    x, y = batch(torch.float64)

    def gradient(point: Any) -> Any:
        at = 0
        for p in twin.parameters():
            p.data = torch.from_numpy(point[at : at + p.numel()].reshape(p.shape).copy())
            p.grad = None
            at += p.numel()
        (twin(x) - y).square().mean().backward()
        return np.concatenate([p.grad.numpy().ravel() for p in twin.parameters()])

    draws = [signs(shape, name, 3) for name, shape in zip(names, shapes, strict=True)]
    start = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    own = dict(options)
    compat = own.pop("compat", None) is not None
    truth = Truth(start, gradient, lambda t: np.concatenate([d(t) for d in draws]), lr=0.01, compat=compat, **own)
    optimizer = Alice(model.named_parameters(), lr=0.01, seed=3, **options)
    for _ in range(30):
        steps(model, optimizer, 1)
        truth.step()
    state = [optimizer.state[p] for p in model.parameters()]
    found = {
        k: np.concatenate([s[k].numpy().ravel() for s in state]) for k in ("exp_avg", "glass", "hessian", "lookahead")
    }
    found["p"] = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    assert np.abs(found["p"] - start).max() > 1e-2
    expected = {"p": truth.mu, "lookahead": truth.nu, "exp_avg": truth.G, "glass": truth.R, "hessian": truth.H}
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-8, atol=1e-10 * np.abs(value).max(), err_msg=key)


def test_same_bits_as_the_numpy_class() -> None:
    """Without names the probes are those of positions."""
    arrays = [np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), np.full(5, 0.5, np.float32)]
    tensors = [nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]
    alice, optimizer = curvk.optim.Alice(arrays, lr=0.05, seed=9), Alice(tensors, lr=0.05, seed=9)

    def closure() -> Any:
        optimizer.zero_grad()
        for p in tensors:
            p.grad = torch.from_numpy(np.cos(3 * p.detach().numpy()) + p.detach().numpy())
        return 0.0

    for _ in range(17):
        alice.step(lambda: [np.cos(3 * a) + a for a in arrays])
        optimizer.step(closure)
    for a, p, entry in zip(arrays, tensors, alice.state, strict=True):
        assert a.tobytes() == p.detach().numpy().tobytes()
        for key in ("exp_avg", "glass", "hessian", "exp_avg_sq", "center", "lookahead"):
            assert entry[key].tobytes() == optimizer.state[p][key].numpy().tobytes()
    assert alice.diagnose() == optimizer.diagnose()


def test_names_key_the_probes() -> None:
    seen = []
    for params in ([("a", torch.ones(4))], [("b", torch.ones(4))], [("a", torch.ones(4))], [torch.ones(4)]):
        tensor = params[0][1] if isinstance(params[0], tuple) else params[0]
        p = nn.Parameter(tensor)
        found: list[Any] = []
        optimizer = Alice([(params[0][0], p)] if isinstance(params[0], tuple) else [p], lr=0.5, seed=1)

        def closure(p: Any = p, found: list[Any] = found) -> Any:
            found.append(p.detach().clone())
            p.grad = p.detach().clone()
            return 0.0

        optimizer.step(closure)
        expected = signs((4,), params[0][0] if isinstance(params[0], tuple) else "0", 1)(1)
        np.testing.assert_array_equal(found[0], 1 + 0.5 * expected)
        seen.append(found[0].tolist())
    assert seen[0] == seen[2]


@pytest.mark.parametrize(
    "options", [{}, {"hess": "abs", "glass": False}, {"hess": "zero"}, {"limit": "fixed"}], ids=str
)
def test_trains(options: dict[str, Any]) -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=2e-2, **options)
    losses = steps(model, optimizer, 150)
    assert losses[-1] < 0.8 * losses[0]
    assert 0 <= optimizer.diagnose()["frac_inside"] <= 1


def test_calls_and_gradients_of_a_step() -> None:
    """Three calls at a sample step, one at a quick one; the gradient that stays is the one at the look-ahead point."""
    model = make_model()
    optimizer = Alice(model.parameters(), lr=1e-2)
    inner = closure_of(model, optimizer)
    calls = 0
    last: list[Any] = []

    def closure() -> Any:
        nonlocal calls
        calls += 1
        loss = inner()
        last[:] = [p.grad.clone() for p in model.parameters()]
        return loss

    counts = []
    for _ in range(17):
        before = calls
        optimizer.step(closure)
        counts.append(calls - before)
        assert all(torch.equal(a, p.grad) for a, p in zip(last, model.parameters(), strict=True))
        for p in model.parameters():
            assert torch.equal(p, optimizer.state[p]["center"])
    assert counts == [3] * 9 + [1, 1, 3, 1, 1, 1, 3, 1]


def test_measure_and_diagnose() -> None:
    """On a separable quadratic the predicted change is the realised one."""
    h = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    p = nn.Parameter(torch.tensor([3.0, -4.0, 5.0], dtype=torch.float64))
    other = nn.Parameter(p.detach().clone())
    optimizer, plain = Alice([p], lr=0.05), Alice([other], lr=0.05)

    def closure(p: Any, optimizer: Any) -> Closure:
        def call() -> Any:
            optimizer.zero_grad()
            loss = (h * p.square()).sum() / 2
            loss.backward()
            return loss

        return call

    with pytest.raises(ValueError, match="no step has been taken yet"):
        optimizer.diagnose()
    for t in range(1, 31):
        optimizer.step(closure(p, optimizer), measure=True)
        plain.step(closure(other, plain))
        found = optimizer.diagnose()
        assert found["step"] == t
        assert found["predicted"] == pytest.approx(found["realised"], rel=1e-9, abs=1e-18)
        assert plain.diagnose() == {**found, "realised": None}
        assert torch.equal(p, other)
        assert torch.equal(p.grad, other.grad)
    assert found["predicted"] < 0


# ---- one batch, several evaluations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [False, True])
def test_batch_norm_counts_one_evaluation_per_step(measure: bool) -> None:
    """The first layer's input does not depend on the weights, so its statistics tell how often it was counted."""
    x, y = batch()
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = Alice(model.parameters(), lr=1e-3)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for t in range(1, 14):
        optimizer.step(closure, measure=measure)
        for layer in (model[0], model[2]):
            assert layer.num_batches_tracked == t
            assert layer.track_running_stats
        torch.testing.assert_close(model[0].running_mean, x.mean(0) * (1 - 0.9**t))


@pytest.mark.parametrize("measure", [False, True])
def test_dropout_masks_agree_within_a_step(measure: bool) -> None:
    p = nn.Parameter(torch.ones(64))
    optimizer = Alice([p], lr=1e-3)
    masks: list[Any] = []

    def closure() -> Any:
        optimizer.zero_grad()
        mask = nn.functional.dropout(torch.ones(64), 0.5)
        masks.append(mask)
        loss = (p * mask).sum()
        loss.backward()
        return loss

    torch.manual_seed(0)
    expected = [nn.functional.dropout(torch.ones(64), 0.5) for _ in range(6)]
    torch.manual_seed(0)
    for t in range(6):
        masks.clear()
        optimizer.step(closure, measure=measure)
        assert len(masks) == (5 if measure else 3)
        assert all(torch.equal(m, expected[t]) for m in masks)


# ---- what is refused, and leaves everything -------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("before", [0, 11])
def test_a_closure_that_raises_leaves_everything(call: int, before: int) -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=0.01)
    inner = closure_of(model, optimizer)
    steps(model, optimizer, before)
    kept = contents(model, optimizer)
    calls = 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stop
        return inner()

    with pytest.raises(Stop):
        optimizer.step(closure)
    assert calls == call
    assert contents(model, optimizer) == kept
    whole = make_model()
    other = Alice(whole.parameters(), lr=0.01)
    assert steps(whole, other, before + 6)[before:] == steps(model, optimizer, 6)
    assert contents(model, optimizer) == contents(whole, other)


@pytest.mark.parametrize("before", [0, 11])
def test_gradients_that_cannot_be_used_leave_everything(before: int) -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=0.01)
    inner = closure_of(model, optimizer)
    steps(model, optimizer, before)
    kept = contents(model, optimizer)
    calls = 0
    weight = model[0].weight
    buffer = torch.zeros_like(weight)

    def missing_once() -> None:
        if calls == 2:
            weight.grad = None

    def sparse() -> None:
        weight.grad = weight.grad.to_sparse()

    def reused() -> None:
        weight.grad = buffer.copy_(weight.grad)

    def written() -> None:
        with torch.no_grad():
            weight.clamp_(-0.1, 0.1)

    for spoil, kind, text in (
        (missing_once, ValueError, "parameter 0 of group 0 has a gradient at some evaluations of a step and none at"),
        (sparse, TypeError, "is sparse, needs to be dense"),
        (reused, ValueError, "has gradients of two evaluations in the same memory, so that"),
        (written, ValueError, "got a closure that writes to parameter 0 of group 0, needs one that only reads"),
    ):
        calls = 0

        def closure(spoil: Callable[[], None] = spoil) -> Any:
            nonlocal calls
            calls += 1
            loss = inner()
            spoil()
            return loss

        with pytest.raises(kind, match=re.escape(text)):
            optimizer.step(closure)
        assert contents(model, optimizer) == kept
    for bad in (None, 3.0):
        with pytest.raises(TypeError, match=re.escape("needs a function that evaluates the model")):
            optimizer.step(bad)  # type: ignore[arg-type]
        assert contents(model, optimizer) == kept
    whole = make_model()
    other = Alice(whole.parameters(), lr=0.01)
    assert steps(whole, other, before + 6)[before:] == steps(model, optimizer, 6)


def test_grad_scaler_is_refused() -> None:
    """It would unscale gradients that the closure then computes anew, scaled."""
    model = make_model()
    optimizer, scaler = Alice(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu")
    closure = closure_of(model, optimizer)
    kept = contents(model, optimizer)
    for arguments in ((closure,), ()):
        scaler.scale(model(batch()[0]).sum()).backward()
        with pytest.raises(TypeError, match="GradScaler"):
            scaler.step(optimizer, *arguments)
        scaler.update()
        assert contents(model, optimizer) == kept
    whole = make_model()
    other = Alice(whole.parameters(), lr=0.01)
    assert steps(whole, other, 3) == steps(model, optimizer, 3)


def test_parameters_that_cannot_be_stepped() -> None:
    good = nn.Parameter(torch.ones(2))
    for p, kind in (
        (nn.Parameter(torch.ones(2, dtype=torch.complex64)), TypeError),
        (nn.Parameter(torch.ones(2, device="meta")), BufferError),
    ):
        optimizer = Alice([good, p], lr=0.1)
        with pytest.raises(kind, match="parameter 1 of group 0"):
            optimizer.step(lambda: 0.0)
        assert torch.equal(good, torch.ones(2))
    optimizer = Alice([good, nn.Parameter(good.detach())], lr=0.1)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0: got memory shared with parameter 0 of group 0"):
        optimizer.step(lambda: 0.0)
    assert torch.equal(good, torch.ones(2))
    with pytest.raises(ValueError, match="twice"):
        Alice([("a", good), ("a", nn.Parameter(torch.ones(1)))], lr=0.1).step(lambda: 0.0)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_skip_nonfinite(call: int) -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=0.01, skip_nonfinite=True)
    steps(model, optimizer, 11)
    inner, kept, calls = closure_of(model, optimizer), contents(model, optimizer), 0

    def closure() -> Any:
        nonlocal calls
        loss = inner()
        if calls % 3 == call:
            model[0].weight.grad[1, 1] = float("nan")
        calls += 1
        return loss

    optimizer.step(closure)
    assert calls == 3
    assert contents(model, optimizer) == kept
    whole = make_model()
    other = Alice(whole.parameters(), lr=0.01)
    assert steps(whole, other, 15)[11:] == steps(model, optimizer, 4)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"lr_min": 3e-3}, ValueError, "'param_groups[0].lr_min': got 0.003 above lr_max = 0.002"),
        ({"sigma": 0.0}, ValueError, "'param_groups[0].sigma': got 0.0, needs a finite number > 0"),
        ({"glass": False, "hess": "zero"}, ValueError, "'param_groups[0].glass': got False with hess='zero'"),
        ({"phi": 2.0}, ValueError, "'param_groups[0].phi': got 2.0"),
        ({"omega": -1.0}, ValueError, "'param_groups[0].omega': got -1.0"),
        ({"lr": "fast"}, TypeError, "'param_groups[0].lr': got 'fast'"),
        ({"hess": "diag"}, ValueError, "'param_groups[0].hess': got 'diag'"),
        ({"quick_steps": 2.5}, TypeError, "'quick_steps': got 2.5"),
        ({"compat": True}, ValueError, "'compat': got True"),
    ],
    ids=str,
)
def test_numbers_that_are_refused(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        Alice([nn.Parameter(torch.ones(2))], **options)
    optimizer = Alice([nn.Parameter(torch.ones(2))])
    if not options.keys() & {"quick_steps", "compat"}:
        with pytest.raises(kind, match=re.escape(text.replace("[0]", "[1]"))):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **options})
        assert len(optimizer.param_groups) == 1


def test_warning_only_where_inexact(recwarn: pytest.WarningsRecorder) -> None:
    Alice([nn.Parameter(torch.ones(2))], omega=2.0, phi=0.2)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"phi = 1, yet \(1 - beta1\) omega = 0\.1") as caught:
        Alice([nn.Parameter(torch.ones(2))], phi=1.0)
    assert (len(caught), caught[0].filename) == (1, __file__)


def test_memory_of_gradients_is_released(tmp_path: Path) -> None:
    """After a step nothing holds the gradients of the probes."""
    import weakref

    model = make_model()
    optimizer = Alice(model.parameters(), lr=0.01)
    inner = closure_of(model, optimizer)
    seen: list[Any] = []

    def closure() -> Any:
        loss = inner()
        seen.append([weakref.ref(p.grad) for p in model.parameters()])
        return loss

    for _ in range(3):
        seen.clear()
        optimizer.step(closure)
        assert [[r() is not None for r in refs] for refs in seen] == [[False] * 4, [False] * 4, [True] * 4]


def test_example_runs(tmp_path: Path) -> None:
    """examples/alice in its short form: equal gradients for all, tables of finite numbers, a picture."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    script = Path(__file__).parent.parent / "examples" / "alice" / "run.py"
    paths = {name: tmp_path / file for name, file in (("json", "r.json"), ("figure", "r.png"), ("table", "r.md"))}
    options = [str(word) for name, path in paths.items() for word in (f"--{name}", path)]
    command = [sys.executable, str(script), "--quick", "--gradients", "60", *options]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path, capture_output=True)
    methods = json.loads(paths["json"].read_text())["tasks"]["digits"]["methods"]
    for method in methods.values():
        assert {60 <= run["gradients"] <= 62 for run in method["runs"]} == {True}
        assert all(np.isfinite(run["loss"]["test"]) for run in method["runs"])
    assert methods["Alice"]["runs"][0]["steps"] < methods["Adam"]["runs"][0]["steps"] == 60
    table = paths["table"].read_text()
    assert all(f"| {title} |" in table for title in methods)
    assert paths["figure"].read_bytes().startswith(b"\x89PNG")
