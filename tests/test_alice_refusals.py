"""Alice on arrays, where something goes wrong: what it refuses, and what it leaves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import curvk
import numpy as np
import pytest
from alice_models import Array, bytes_of, close, grads_of, model, run
from curvk.optim import Alice


def test_parameters_written_between_steps_take_the_lookahead_along() -> None:
    for dtype in (np.float64, np.float32, np.float16):
        w = np.linspace(-2, 2, 9).astype(dtype)
        alice = Alice([w], lr=0.01, sigma=0.1)
        for _ in range(15):
            alice.step(lambda w=w: [w.copy()])
        center, ahead = alice.state[0]["center"].copy(), alice.state[0]["lookahead"].copy()
        kept = w.copy()
        w[3:5] = (7.0, -7.0)
        points = []

        def grad(w: Array = w, points: list[Array] = points) -> list[Any]:
            points.append(w.copy())
            return [w.copy()]

        alice.t -= alice.t % 4 - 1  # the next step is a quick one
        alice.step(grad)
        expected = ahead.copy()
        expected[3:5] = w_new = np.array([7.0, -7.0], ahead.dtype) + (ahead - center)[3:5]
        np.testing.assert_array_equal(points[0], expected.astype(dtype))
        assert (np.abs(w_new) > 6).all()
        assert (np.abs(w[3:5]) > 6).all()
        assert (np.abs(w - kept)[[0, 1, 2, 5, 6, 7, 8]] < 0.1).all()


class Stop(Exception):
    pass


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("steps", [0, 11])
def test_a_gradient_that_raises_leaves_everything(call: int, steps: int) -> None:
    params = model()
    alice = Alice(params, lr=0.01)
    for _ in range(steps):
        alice.step(grads_of(params))
    before = bytes_of(alice, params)
    calls = 0

    def grad() -> list[Any]:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stop
        return grads_of(params)()

    with pytest.raises(Stop):
        alice.step(grad)
    assert calls == call
    assert bytes_of(alice, params) == before
    whole = model()
    other = Alice(whole, lr=0.01)
    for _ in range(steps + 3):
        other.step(grads_of(whole))
    for _ in range(3):
        alice.step(grads_of(params))
    assert bytes_of(alice, params) == bytes_of(other, whole)


def test_gradients_that_cannot_be_used_leave_everything() -> None:
    params = model()
    buffers = [np.zeros_like(p) for p in params]

    def reused() -> list[Any]:
        for b, g in zip(buffers, grads_of(params)(), strict=True):
            b[...] = g
        return buffers

    def shape_changes() -> Callable[[], list[Any]]:
        calls = []

        def grad() -> list[Any]:
            calls.append(1)
            grads = grads_of(params)()
            if len(calls) == 2:
                grads[3] = np.zeros(2, np.float32)
            return grads

        return grad

    refused: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "argument 'grad': got NoneType, needs a function that returns the gradients"),
        (reused, ValueError, "gradients of two evaluations in one memory"),
        (shape_changes, ValueError, "'g_minus[3]': got shape (2,), needs shape () like 'params[3]'"),
        (lambda: grads_of(params)()[:3], ValueError, "a function that returns 3 gradients, needs 6"),
        (lambda: np.zeros(6), TypeError, "a function that returns ndarray, needs a list of arrays"),
        (lambda: [None, *grads_of(params)()[1:]], TypeError, "'grads[0]': got None, needs an array"),
        (lambda: [*grads_of(params)()[:5], params[5]], ValueError, "gradients of two evaluations in one memory"),
        (lambda: [g.astype(np.float64) for g in grads_of(params)()], TypeError, "float64, needs float32"),
        (lambda: [list(g.ravel()) for g in grads_of(params)()], TypeError, "list"),
    ]
    for steps in (0, 11):
        alice = Alice(params, lr=0.01)
        for _ in range(steps):
            alice.step(grads_of(params))
        before = bytes_of(alice, params)
        for make, kind, text in refused:
            grad = make() if make is shape_changes else make
            with pytest.raises(kind, match=re.escape(text)):
                alice.step(grad)
            assert bytes_of(alice, params) == before


def test_gradients_in_memory_of_unknown_owners() -> None:
    """As views of bytes and of other libraries are; only shared ones are refused."""
    w = np.ones(4)
    memory = bytearray(8 * w.size)

    def same() -> list[np.ndarray]:
        g = np.frombuffer(memory)
        g[:] = w
        return [g]

    optimizer = Alice([w], lr=1e-2)
    with pytest.raises(ValueError, match="gradients of two evaluations in one memory"):
        optimizer.step(same)
    assert np.array_equal(w, np.ones(4))
    assert optimizer.t == 0
    for _ in range(12):
        optimizer.step(lambda: [np.frombuffer(bytearray(w.tobytes()))])
    twin = np.ones(4)
    optimizer = Alice([twin], lr=1e-2)
    for _ in range(12):
        optimizer.step(lambda: [twin.copy()])
    assert np.array_equal(w, twin)
    assert (w < 1).all()


def test_loss_that_raises_after_the_step() -> None:
    w = np.ones(3)
    optimizer = Alice([w], lr=1e-2)
    optimizer.step(lambda: [w.copy()], loss=lambda: float(w @ w))
    assert optimizer.diagnose()["realised"] == 0
    losses = iter([1.0])
    with pytest.raises(StopIteration):
        optimizer.step(lambda: [w.copy()], loss=lambda: next(losses))
    found = optimizer.diagnose()
    assert found["step"] == 2
    assert found["realised"] is None


def test_gradients_may_share_memory_within_an_evaluation() -> None:
    a, b = np.ones(3), np.ones(3)
    alice = Alice([a, b], lr=0.1)

    def grad() -> list[Array]:
        both = a + b
        return [both, both]

    for _ in range(12):
        alice.step(grad)
    np.testing.assert_array_equal(a, b)
    assert (a < 1).all()


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_gradients_that_are_not_finite(call: int, bad: float) -> None:
    """With skip_nonfinite no trace is left; without it the element's step is bounded or NaN, the others are unhurt."""
    calls = 0

    def poisoned(params: list[Any]) -> Callable[[], list[Any]]:
        def grad() -> list[Any]:
            nonlocal calls
            grads = grads_of(params)()
            if calls % 3 == call:
                grads[0][1, 1] = bad
            calls += 1
            return grads

        return grad

    params = model()
    alice = Alice(params, lr=0.01, skip_nonfinite=True)
    for _ in range(11):
        assert alice.step(grads_of(params))
    before = bytes_of(alice, params)
    calls = 0
    assert not alice.step(poisoned(params))
    assert (bytes_of(alice, params), alice.skipped_steps) == (before, 1)
    other, loose = model(), Alice(model(), lr=0.01)
    loose = Alice(other, lr=0.01)
    for _ in range(11):
        loose.step(grads_of(other))
    calls = 0
    assert loose.step(poisoned(other))
    assert alice.step(grads_of(params))
    same = np.ones((5, 7), bool)
    same[1, 1] = False
    assert (other[0] == params[0])[same].all()
    if call < 2:  # at a probe only: glass and Hessian are lost, the step is the bound
        assert np.isfinite(other[0]).all()


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr_min": 3e-3}, ValueError, "'lr_min': got 0.003 above lr_max = 0.002, needs a bound at most lr_max"),
    ({"lr_min": 2.0, "lr_max": 1.0}, ValueError, "raise lr_max or lower lr_min"),
    ({"sigma": 0.0}, ValueError, "'sigma': got 0.0, needs a finite number > 0"),
    ({"sigma": -1.0}, ValueError, "'sigma'"),
    ({"sigma": math.nan}, ValueError, "'sigma'"),
    ({"sigma": "1"}, TypeError, "'sigma'"),
    ({"lr": 0.0}, ValueError, "'lr': got 0.0, needs a finite number > 0"),
    ({"lr": -1.0}, ValueError, "'lr'"),
    ({"glass": False, "hess": "zero"}, ValueError, "'glass': got False with hess='zero'"),
    ({"glass": 1}, TypeError, "'glass': got 1, needs True or False"),
    ({"hess": "diag"}, ValueError, "'hess': got 'diag', needs one of 'zero', 'abs', 'rms', 'debiased'"),
    ({"limit": "none"}, ValueError, "'limit': got 'none', needs one of 'adam', 'sgdm', 'fixed'"),
    ({"phi": 2.0}, ValueError, "'phi': got 2.0, needs a number in (0, 2)"),
    ({"phi": 0.0}, ValueError, "'phi'"),
    ({"omega": 0.0}, ValueError, "'omega': got 0.0, needs a finite number > 0"),
    ({"betas": (0.9, 1.0)}, ValueError, "'betas': got 1.0, needs two numbers in [0, 1)"),
    ({"betas": 0.9}, TypeError, "'betas': got 0.9, needs two numbers in [0, 1)"),
    ({"eps": -1e-8}, ValueError, "'eps'"),
    ({"l1": -1.0}, ValueError, "'l1'"),
    ({"l2": math.inf}, ValueError, "'l2'"),
    ({"quick_steps": -1}, ValueError, "'quick_steps': got -1, needs an integer in [0, 2^32)"),
    ({"quick_steps": 1.5}, TypeError, "'quick_steps'"),
    ({"warmup": -1}, ValueError, "'warmup'"),
    ({"warmup": 1.5}, TypeError, "'warmup'"),
    ({"seed": -1}, ValueError, "'seed'"),
    ({"compat": "adam"}, ValueError, "'compat': got 'adam', needs None or 'reference'"),
    ({"scale_bounds_with_lr": None}, TypeError, "'scale_bounds_with_lr'"),
    ({"skip_nonfinite": 1}, TypeError, "'skip_nonfinite'"),
]


@pytest.mark.parametrize(("options", "kind", "text"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_numbers_that_are_refused(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        Alice([np.ones(2)], **options)


def test_numbers_changed_between_steps_are_checked() -> None:
    w = np.ones(2)
    alice = Alice([w], lr=0.1)
    alice.step(lambda: [w.copy()])
    before = bytes_of(alice, [w])
    for key, value in (("lr", 0.0), ("lr_min", 1.0), ("phi", 3.0), ("hess", "x")):
        kept = alice.param_groups[0][key]
        alice.param_groups[0][key] = value
        with pytest.raises(ValueError, match=re.escape(f"param_groups[0].{key}")):
            alice.step(lambda: [w.copy()])
        assert bytes_of(alice, [w]) == before
        alice.param_groups[0][key] = kept
    alice.step(lambda: [w.copy()])


def test_bounds_follow_the_learning_rate() -> None:
    """A factor of lr scales both bounds; not with scale_bounds_with_lr=False."""
    for follow in (True, False):
        w = np.full(3, 5.0)
        alice = Alice([w], lr=0.1, lr_min=0.03, lr_max=0.03, sigma=0.1, limit="sgdm", scale_bounds_with_lr=follow)
        run(alice, w, lambda x: np.ones_like(x), 10)
        before = w.copy()
        alice.param_groups[0]["lr"] = 0.05
        run(alice, w, lambda x: np.ones_like(x), 1)
        close(before - w, 0.1 * (0.015 if follow else 0.03) * np.ones(3))


def test_warning_only_where_inexact(recwarn: pytest.WarningsRecorder) -> None:
    w = np.ones(1)
    Alice([w])
    Alice([w], omega=2.0, phi=0.2)
    Alice([w], betas=(0.5, 0.9), phi=0.5)
    assert not recwarn.list
    for options in ({"phi": 1.0}, {"omega": 2.0}, {"betas": (0.5, 0.9), "phi": 0.1}):
        with pytest.warns(UserWarning, match=r"phi = .*, yet \(1 - beta1\) omega = ") as caught:
            Alice([w], **options)  # type: ignore[arg-type]
        assert len(caught) == 1
        assert caught[0].filename == __file__


def test_state_dicts_that_do_not_fit_change_nothing() -> None:
    params = model()
    alice = Alice(params, lr=0.01)
    for _ in range(12):
        alice.step(grads_of(params))
    good = alice.state_dict()
    before = bytes_of(alice, params)
    for change in ({"t": -1}, {"samples": [1, 2]}, {"samples": [99] * 6}, {"seed": "x"}, {"compat": "y"}):
        with pytest.raises(ValueError, match=r"Alice|samples|seed|compat"):
            alice.load_state_dict(good | {"alice": good["alice"] | change})
        assert bytes_of(alice, params) == before
    with pytest.raises(ValueError, match="keys"):
        alice.load_state_dict({k: v for k, v in good.items() if k != "alice"})
    with pytest.raises(ValueError, match="optimizer"):
        alice.load_state_dict(curvk.optim.Adam(model()).state_dict())
    assert bytes_of(alice, params) == before
    alice.load_state_dict(good)
    assert bytes_of(alice, params) == before
    with pytest.raises(ValueError, match="no step has been taken yet, or since a state was loaded"):
        alice.diagnose()
