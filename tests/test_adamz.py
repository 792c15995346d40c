"""AdamZ's learning-rate rule: a plain reference, closed forms, torch, and the package `adamz`."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from curvk.optim import SGD, Adam, AdamZ, LossAdaptiveLR


class Reference:
    """The published rule as its authors wrote it: deques, max and np.std."""

    def __init__(self, lr: float, **options: Any) -> None:
        self.lr, self.options = lr, options
        patience = options.get("patience", 100)
        self.window: deque[float] = deque(maxlen=patience)
        self.short: deque[float] = deque(maxlen=min(options.get("stagnation_period", 10), patience))

    def report(self, loss: float) -> float:
        o = self.options
        self.window.append(loss)
        self.short.append(loss)
        if len(self.window) >= o.get("patience", 100):
            if loss >= max(self.window):
                self.lr *= o.get("overshoot_factor", 0.5)
            if np.std(self.short) < o.get("stagnation_threshold", 0.2) * np.std(self.window):
                self.lr *= o.get("stagnation_factor", 1.2)
        self.lr = max(o.get("min_lr", 1e-7), min(self.lr, o.get("max_lr", 1.0)))
        return self.lr


def reference(losses: list[float], lr: float, **options: Any) -> list[float]:
    rule = Reference(lr, **options)
    return [rule.report(loss) for loss in losses]


def lr_path(losses: Any, lr: float = 0.01, **options: Any) -> list[float]:
    bare = SimpleNamespace(param_groups=[{"lr": lr}])
    rule = LossAdaptiveLR(bare, **options)
    path = []
    for loss in losses:
        rule.report_loss(loss)
        path.append(bare.param_groups[0]["lr"])
    return path


def descent(seed: int, n: int, noise: float = 0.05) -> list[float]:
    """A noisy loss that falls, halts and falls again; fires both rules; no ties."""
    rng = np.random.default_rng(seed)
    k = np.arange(n)
    return (np.exp(-k / (n / 6)) + (k % (n // 3) < n // 8) * 0.3 + noise * rng.standard_normal(n)).tolist()


# ---- the rule ------------------------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {},
    {"patience": 20, "stagnation_period": 4, "stagnation_threshold": 0.5},
    {"patience": 7, "stagnation_period": 50, "stagnation_threshold": 1.5},
    {"patience": 12, "stagnation_period": 1, "overshoot_factor": 0.9, "stagnation_factor": 1.01},
    {"patience": 1, "min_lr": 1e-3},
    {"patience": 25, "stagnation_period": 5, "max_lr": 0.011, "min_lr": 0.009},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_reference(options: dict[str, Any], seed: int) -> None:
    losses = descent(seed, 600)
    path = lr_path(losses, **options)
    np.testing.assert_allclose(path, reference(losses, 0.01, **options), rtol=1e-13)
    assert len(set(path)) > 1  # something fired


def test_constant_loss() -> None:
    """Ties count as the maximum, and a spread of 0 is not below 0: lr halves at every step once the window is full."""
    path = lr_path([0.7] * 130)
    assert path == [max(1e-7, 0.01 * 0.5 ** max(0, k - 99)) for k in range(1, 131)]


@pytest.mark.parametrize("slope", [1e-6, 1.0, 3e7])
def test_falling_loss_runs_away(slope: float) -> None:
    """On a line std(S)/std(W) = sqrt((s^2 - 1) / (p^2 - 1)), whatever the slope."""
    losses = [-slope * k for k in range(140)]
    path = lr_path(losses)
    assert path[98] == 0.01
    np.testing.assert_allclose(path[99:124], 0.01 * 1.2 ** np.arange(1, 26), rtol=1e-13)
    assert path[124:] == [1.0] * 16
    ratio = math.sqrt((10**2 - 1) / (100**2 - 1))
    assert set(lr_path(losses, stagnation_threshold=ratio * (1 - 1e-6))) == {0.01}
    assert lr_path(losses, stagnation_threshold=ratio * (1 + 1e-6))[-1] == 1.0


def test_guard_stops_the_runaway() -> None:
    k = np.arange(600)
    rng = np.random.default_rng(5)
    noisy = -0.3 * k + rng.standard_normal(600)
    for losses in (-1.0 * k, np.exp(-k / 30), 1 / (1.0 + k), noisy):
        assert max(lr_path(losses.tolist(), max_lr=10.0)) > 0.1  # the published rule
        assert max(lr_path(losses.tolist(), max_lr=10.0, guard=True)) <= 0.0121


def test_guard_lets_stagnation_fire() -> None:
    """A descent that ends: the plateau still raises lr, if less often."""
    rng = np.random.default_rng(6)
    losses = np.concatenate([np.linspace(10, 0, 100), 0.05 * rng.standard_normal(60)]).tolist()
    free, guarded = lr_path(losses), lr_path(losses, guard=True)
    assert guarded[99] == 0.01 < free[99]
    rises = sum(y > x for x, y in pairwise(guarded[110:]))
    assert 8 <= rises <= 42  # of 49, about half


def test_noise_halves_lr_every_patience_steps() -> None:
    """P(overshoot) = 1 / patience for exchangeable losses: a binomial count, with a bound at five deviations."""
    for patience in (20, 100):
        n = 4000
        path = lr_path(np.random.default_rng(7).standard_normal(n).tolist(), 1.0, patience=patience, min_lr=1e-300)
        fired = sum(b < a for a, b in pairwise(path))
        expected = (n - patience) / patience
        assert abs(fired - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize(("scale", "shift"), [(1024.0, 0.0), (1e-9, 0.0), (3.7, 1e3), (1e100, -1e101)])
def test_affine_invariance(scale: float, shift: float) -> None:
    losses = descent(8, 500)
    assert lr_path([scale * x + shift for x in losses]) == lr_path(losses)


def test_cancellation_does_not_fire_the_rule() -> None:
    """Small wiggles on a large offset: running sums of squares would lose them."""
    rng = np.random.default_rng(9)
    losses = np.round(rng.standard_normal(300) * 64) / 64  # exact beside 1e9
    assert lr_path((losses + 1e9).tolist(), patience=20, stagnation_period=5, stagnation_threshold=0.7) == lr_path(
        losses.tolist(), patience=20, stagnation_period=5, stagnation_threshold=0.7
    )


def test_nan_is_not_stored() -> None:
    losses = descent(10, 300)
    holes = [x for k, loss in enumerate(losses) for x in ([math.nan, loss] if k % 7 == 0 else [loss])]
    path = [lr for lr, x in zip(lr_path(holes, patience=20), holes, strict=True) if not math.isnan(x)]
    assert path == lr_path(losses, patience=20)
    assert lr_path([math.nan] * 5, patience=1) == [0.01] * 5


def test_infinite_loss() -> None:
    """Infinity is a loss like any other: an overshoot, then no finite loss is the highest and no spread is small."""
    losses = [*np.random.default_rng(11).standard_normal(30).tolist(), math.inf]
    rule = {"patience": 10, "stagnation_period": 3}
    before = lr_path(losses[:-1], **rule)[-1]
    after = lr_path([*losses, *[5.0 - k for k in range(9)], 5.5], **rule)
    assert after[30:40] == [before / 2] * 10
    assert after[40] == before / 4  # inf has left the window
    assert lr_path([-math.inf] * 3, patience=2)[-1] == 0.01 / 4


def test_clamped_from_the_first_loss() -> None:
    assert lr_path([1.0], 5.0) == [1.0]
    assert lr_path([1.0], 0.0) == [1e-7]
    assert lr_path([math.nan], 5.0) == [1.0]


def test_every_group() -> None:
    groups = [{"lr": 0.5}, {"lr": 1e-3}, {"lr": 3e-3}]
    rule = LossAdaptiveLR(SimpleNamespace(param_groups=groups), patience=2, min_lr=1e-3)
    for loss in (1.0, 2.0, 3.0):
        rule.report_loss(loss)
    assert [g["lr"] for g in groups] == [0.125, 1e-3, 1e-3]


# ---- AdamZ ---------------------------------------------------------------------------------------------------------


def problem(seed: int, dtype: Any = np.float32) -> tuple[list[Any], Any]:
    """Parameters, and the loss and gradients of a noisy quadratic."""
    rng = np.random.default_rng(seed)
    params = [rng.standard_normal((6, 5)).astype(dtype), rng.standard_normal(9).astype(dtype)]
    noise = np.random.default_rng(seed + 1)

    def evaluate() -> tuple[float, list[Any]]:
        grads = [(p + 0.3 * noise.standard_normal(p.shape)).astype(dtype) for p in params]
        return float(sum(0.5 * np.sum(g.astype(np.float64) ** 2) for g in grads)), grads

    return params, evaluate


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"weight_decay": 0.1, "maximize": True}])
@pytest.mark.parametrize("case", ["no loss", "window never full"])
def test_without_losses_it_is_adam(options: dict[str, Any], case: str) -> None:
    (ours, evaluate), (theirs, again) = problem(0), problem(0)
    adamz, adam = AdamZ(ours, patience=10**6, **options), Adam(theirs, **options)
    for _ in range(40):
        loss, grads = evaluate()
        adamz.step(grads, None if case == "no loss" else loss)
        adam.step(again()[1])
    assert [p.tobytes() for p in ours] == [p.tobytes() for p in theirs]
    assert adamz.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"weight_decay": 0.1}, {"maximize": True}])
def test_torch_with_the_reference_rule(options: dict[str, Any]) -> None:
    """torch.optim.Adam whose lr follows the plain reference: the new lr is used by the step that brought the loss."""
    torch = pytest.importorskip("torch")
    params, evaluate = problem(2, np.float64)
    tensors = [torch.tensor(p.copy(), requires_grad=True) for p in params]
    rule = {"patience": 15, "stagnation_period": 4, "stagnation_threshold": 0.5}
    adamz = AdamZ(params, lr=0.02, **options, **rule)
    published, path = Reference(0.02, **rule), []
    reference_adam = torch.optim.Adam(tensors, lr=0.02, foreach=False, **options)
    for _ in range(150):
        loss, grads = evaluate()
        path.append(published.report(loss))
        reference_adam.param_groups[0]["lr"] = path[-1]
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(g)
        reference_adam.step()
        adamz.step(grads, loss)
        assert adamz.param_groups[0]["lr"] == pytest.approx(path[-1], rel=1e-12)
    assert len(set(path)) > 3
    for p, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*is_compiling:UserWarning")  # the package carries an old torch.optim base
def test_package_adamz() -> None:
    """The package's closure path for 400 steps: lr and parameters."""
    torch, package = pytest.importorskip("torch"), pytest.importorskip("adamz")
    params, evaluate = problem(3, np.float64)
    tensors = [torch.tensor(p.copy(), requires_grad=True) for p in params]
    settings: dict[str, Any] = {"lr": 0.01, "patience": 30, "stagnation_period": 6, "stagnation_threshold": 0.4}
    theirs, ours = package.AdamZ(tensors, **settings, foreach=False), AdamZ(params, **settings)
    path = []
    for _ in range(400):
        loss, grads = evaluate()

        def closure(loss: float = loss, grads: Any = grads) -> Any:
            for tensor, g in zip(tensors, grads, strict=True):
                tensor.grad = torch.from_numpy(g)
            return torch.tensor(loss, dtype=torch.float64)

        theirs.step(closure)
        ours.step(grads, loss)
        path.append(ours.param_groups[0]["lr"])
        assert path[-1] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
    changes = np.diff(np.log(path))
    assert (changes > 0).any()  # both rules fired
    assert (changes < 0).any()
    for p, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=1e-8, atol=1e-10)


def test_resume_carries_the_window(tmp_path: Any) -> None:
    losses = descent(12, 160)
    options = {"patience": 40, "stagnation_period": 6, "guard": True, "stagnation_threshold": 0.4}
    (through, evaluate), (stopped, again) = problem(4), problem(4)
    first, second = AdamZ(through, **options), AdamZ(stopped, **options)
    for k, loss in enumerate(losses):
        first.step(evaluate()[1], loss)
        if k == 77:
            second.save(tmp_path / "z.npz")
            second = AdamZ(stopped)  # other settings, which the file's replace
            second.load(tmp_path / "z.npz")
        second.step(again()[1], loss)
        assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"]
    assert first.param_groups[0]["lr"] != 1e-3
    assert [p.tobytes() for p in through] == [p.tobytes() for p in stopped]


def test_report_loss_apart_from_the_step() -> None:
    (ours, evaluate), (theirs, again) = problem(5), problem(5)
    a, b = AdamZ(ours, patience=5), AdamZ(theirs, patience=5)
    for _ in range(20):
        loss, grads = evaluate()
        a.step(grads, loss)
        b.report_loss(loss)
        b.step(again()[1])
    assert [p.tobytes() for p in ours] == [p.tobytes() for p in theirs]


@pytest.mark.parametrize("bad", ["high", [1.0], 1j])
def test_bad_loss_writes_nothing(bad: Any) -> None:
    p = np.ones(3)
    adamz = AdamZ([p], patience=1)
    for attempt in (lambda: adamz.report_loss(bad), lambda: adamz.step([np.ones(3)], bad)):
        with pytest.raises(TypeError, match="'loss'"):
            attempt()
        assert p.tolist() == [1, 1, 1]
        assert adamz.param_groups[0]["lr"] == 1e-3
        assert adamz.state_dict()["loss_rule"]["stored"] == 0


def test_bad_gradient_stores_no_loss() -> None:
    adamz = AdamZ([np.ones(3)], patience=1, skip_nonfinite=True)
    with pytest.raises(TypeError):
        adamz.step([np.ones(3, np.float32)], 1.0)
    assert adamz.step([np.full(3, np.nan)], 1.0) is False
    assert adamz.param_groups[0]["lr"] == 1e-3
    assert adamz.state_dict()["loss_rule"]["stored"] == 0


# ---- LossAdaptiveLR around an optimizer ----------------------------------------------------------------------------


def test_around_adam_it_is_adamz() -> None:
    (ours, evaluate), (theirs, again) = problem(6), problem(6)
    rule = {"patience": 8, "stagnation_period": 3, "stagnation_threshold": 0.6}
    wrapped, adamz = LossAdaptiveLR(Adam(ours), **rule), AdamZ(theirs, **rule)
    for _ in range(60):
        loss, grads = evaluate()
        assert wrapped.step(grads, loss, grad_scale=2.0) is True
        adamz.step(again()[1], loss, grad_scale=2.0)
    assert [p.tobytes() for p in ours] == [p.tobytes() for p in theirs]
    assert wrapped.optimizer.param_groups[0]["lr"] == adamz.param_groups[0]["lr"] != 1e-3


def test_a_step_that_fails_or_is_skipped_reports_nothing() -> None:
    sgd = SGD([np.ones(2)], lr=0.5, skip_nonfinite=True)
    wrapped = LossAdaptiveLR(sgd, patience=2)
    wrapped.step([np.ones(2)], 1.0)
    wrapped.step([np.ones(2)], 0.5)
    before = wrapped.state_dict()
    with pytest.raises(ValueError, match="gradients"):
        wrapped.step([], 9.0)
    assert wrapped.step([np.array([1.0, np.inf])], 9.0) is False
    after = wrapped.state_dict()
    assert after.pop("window").tolist() == before.pop("window").tolist() == [1.0, 0.5]
    assert after == before
    assert sgd.param_groups[0]["lr"] == 0.5
    assert wrapped.step([np.ones(2)], 9.0) is True
    assert sgd.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_around_a_torch_optimizer(tensor_lr: bool) -> None:
    torch = pytest.importorskip("torch")
    lr = torch.tensor(0.5, dtype=torch.float64) if tensor_lr else 0.5
    p = torch.ones(3, requires_grad=True)
    sgd = torch.optim.SGD([p], lr=lr)
    wrapped = LossAdaptiveLR(sgd, patience=3, stagnation_period=1)
    path, values = [], []
    for k in range(5):

        def closure(k: int = k) -> Any:
            assert torch.is_grad_enabled()
            sgd.zero_grad()
            loss = (p * (k + 1.0)).sum() * 0 + float(k)
            loss.backward()
            return loss

        with torch.no_grad():
            values.append(float(wrapped.step(closure)))
        path.append(float(sgd.param_groups[0]["lr"]))
    assert values == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(path, reference(values, 0.5, patience=3, stagnation_period=1), rtol=1e-14)
    if tensor_lr:
        assert sgd.param_groups[0]["lr"] is lr
    p.grad = torch.ones(3)
    at = p.detach().clone()
    wrapped.step(loss=9.0)
    np.testing.assert_allclose((at - p).detach().numpy(), float(sgd.param_groups[0]["lr"]), rtol=1e-6)
    assert wrapped.step() is None
    with pytest.raises(ValueError, match="closure"):
        wrapped.step(lambda: 1.0, 2.0)
    torch.optim.lr_scheduler.StepLR(sgd, 1)  # its subclass check accepts what the rule wraps


def test_state_dict_of_the_rule() -> None:
    losses = descent(13, 200)
    a, b = (SimpleNamespace(param_groups=[{"lr": 0.01}]) for _ in range(2))
    whole, first = LossAdaptiveLR(a, patience=20), LossAdaptiveLR(b, patience=20)
    for loss in losses[:90]:
        whole.report_loss(loss)
        first.report_loss(loss)
    second = LossAdaptiveLR(b)
    second.load_state_dict(first.state_dict())
    for loss in losses[90:]:
        whole.report_loss(loss)
        second.report_loss(loss)
    assert a.param_groups == b.param_groups != [{"lr": 0.01}]


BAD_SETTINGS: list[tuple[str, Any, type[Exception]]] = [
    ("overshoot_factor", 0.0, ValueError),
    ("overshoot_factor", 1.0, ValueError),
    ("overshoot_factor", "half", TypeError),
    ("stagnation_factor", 1.0, ValueError),
    ("stagnation_factor", math.inf, ValueError),
    ("stagnation_factor", math.nan, ValueError),
    ("stagnation_threshold", -0.1, ValueError),
    ("patience", 0, ValueError),
    ("patience", 2.5, TypeError),
    ("patience", True, TypeError),
    ("stagnation_period", 0, ValueError),
    ("stagnation_period", "10", TypeError),
    ("min_lr", 0.0, ValueError),
    ("min_lr", 2.0, ValueError),
    ("max_lr", math.inf, ValueError),
    ("max_lr", None, TypeError),
    ("guard", 1, TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD_SETTINGS)
def test_bad_settings(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"'{name}'"):
        LossAdaptiveLR(SGD([np.ones(1)]), **{name: value})
    with pytest.raises(error, match=f"'{name}'"):
        AdamZ([np.ones(1)], **{name: value})
    rule = LossAdaptiveLR(SGD([np.ones(1)]), patience=3)
    state = rule.state_dict()
    with pytest.raises(ValueError, match=f"'{name}'"):
        rule.load_state_dict(state | {name: value})
    assert repr(rule.state_dict()) == repr(state)


def test_guard_needs_older_losses() -> None:
    with pytest.raises(ValueError, match="stagnation_period < patience"):
        LossAdaptiveLR(SGD([np.ones(1)]), patience=10, guard=True)


def test_bad_rule_state() -> None:
    adamz = AdamZ([np.ones(2)], patience=3)
    adamz.step([np.ones(2)], 1.5)
    state = adamz.state_dict()
    for change, text in (
        ({"window": np.zeros(4)}, "'window'.*shape"),
        ({"window": np.zeros(3, np.float32)}, "'window'.*float32"),
        ({"window": [0.0, 0.0, 0.0]}, "'window'.*list"),
        ({"window": np.array([1.0, math.nan, 0.0])}, "'window'.*NaN"),
        ({"stored": -1}, "'stored'"),
        ({"stored": 1.0}, "'stored'"),
        ({"more": 1}, "keys"),
    ):
        bad = state | {"loss_rule": state["loss_rule"] | change, "skipped_steps": 4}
        with pytest.raises(ValueError, match=text):
            adamz.load_state_dict(bad)
    with pytest.raises(ValueError, match="NoneType"):
        adamz.load_state_dict(state | {"loss_rule": None})
    assert repr(adamz.state_dict()) == repr(state)


@pytest.mark.parametrize("bad", [None, SimpleNamespace(), SimpleNamespace(param_groups=[{}]), np.ones(3)])
def test_bad_optimizer(bad: Any) -> None:
    with pytest.raises(TypeError, match="'optimizer'"):
        LossAdaptiveLR(bad)


@pytest.mark.parametrize("lr", [-1.0, math.nan, math.inf])
def test_a_bad_lr_is_not_clamped_away(lr: float) -> None:
    bare = SimpleNamespace(param_groups=[{"lr": 0.5}, {"lr": lr}])
    rule = LossAdaptiveLR(bare, patience=1)
    with pytest.raises(ValueError, match="'lr'"):
        rule.report_loss(1.0)
    assert bare.param_groups[0]["lr"] == 0.5
    assert rule.state_dict()["stored"] == 0
