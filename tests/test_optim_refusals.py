"""curvk.optim: groups, live numbers, and every way to be refused."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from curvk.optim import SGD, Adam, AdamW
from optim_models import OPTIMIZERS, Arrays, adam_truth, assert_same, contents, grads_like, model

# ---- groups and live numbers ---------------------------------------------------------------------------------------


def test_groups_have_their_own_numbers() -> None:
    a, b = np.ones(3), np.ones(3)
    adam = Adam(
        [{"params": a, "lr": 0.5, "name": "head"}, {"params": (b,), "betas": [0.5, 0.9], "weight_decay": 0.1}], lr=0.25
    )
    assert [g["lr"] for g in adam.param_groups] == [0.5, 0.25]
    assert adam.param_groups[0]["name"] == "head"
    assert adam.param_groups[1]["betas"] == (0.5, 0.9)
    grads = [grads_like([a, b], seed) for seed in range(5)]
    for g in grads:
        adam.step(g)
    np.testing.assert_allclose(a, adam_truth(np.ones(3), [g[0] for g in grads], lr=0.5), rtol=1e-12)
    want = adam_truth(np.ones(3), [g[1] for g in grads], lr=0.25, b1=0.5, b2=0.9, weight_decay=0.1)
    np.testing.assert_allclose(b, want, rtol=1e-12)


def test_a_schedule_changes_lr() -> None:
    p = np.array([4.0])
    sgd = SGD([p], lr=1.0)
    for k in range(5):
        sgd.param_groups[0]["lr"] = 0.5**k
        sgd.step([np.ones(1)])
    assert p[0] == 4 - sum(0.5**k for k in range(5))


def test_add_param_group() -> None:
    a, b = np.zeros(2), np.zeros(2)
    adam = Adam([a], lr=0.5)
    adam.step([np.ones(2)])
    adam.add_param_group({"params": [b], "lr": 0.25})
    adam.step([None, np.ones(2)])
    np.testing.assert_allclose(a, -0.5, rtol=1e-7)
    np.testing.assert_allclose(b, -0.25, rtol=1e-7)
    assert [entry["step"] for entry in adam.state] == [1, 1]


def test_amsgrad_and_momentum_can_be_switched() -> None:
    p = np.zeros(3)
    adam = Adam([p])
    grads = [g[0] for g in (grads_like([p], s) for s in range(4))]
    adam.step(grads[:1])
    adam.param_groups[0]["amsgrad"] = True
    adam.step(grads[1:2])
    np.testing.assert_array_equal(adam.state[0]["max_exp_avg_sq"], adam.state[0]["exp_avg_sq"])
    q = np.zeros(3)
    sgd = SGD([q], lr=1.0, dampening=0.5)
    sgd.step([grads[0]])
    assert sgd.state == [{}]
    sgd.param_groups[0]["momentum"] = 0.9
    sgd.step([grads[1]])
    np.testing.assert_array_equal(sgd.state[0]["momentum_buffer"], grads[1])  # a first step copies, undampened
    sgd.step([grads[2]])
    np.testing.assert_allclose(sgd.state[0]["momentum_buffer"], 0.9 * grads[1] + 0.5 * grads[2], rtol=1e-14)


def test_repr() -> None:
    text = repr(AdamW([{"params": model(0)}, {"params": np.zeros(2), "lr": 0.5}]))
    assert text.startswith("AdamW(")
    assert "group 0: 6 arrays, lr=0.001" in text
    assert "group 1: 1 arrays, lr=0.5" in text


# ---- refusals ------------------------------------------------------------------------------------------------------

BAD_NUMBERS = [
    (Adam, "lr", -1e-3, ValueError),
    (Adam, "lr", math.nan, ValueError),
    (Adam, "lr", math.inf, ValueError),
    (Adam, "lr", "0.1", TypeError),
    (Adam, "lr", None, TypeError),
    (Adam, "lr", np.ones(1), TypeError),
    (Adam, "eps", -1.0, ValueError),
    (Adam, "weight_decay", -0.1, ValueError),
    (Adam, "betas", (1.0, 0.9), ValueError),
    (Adam, "betas", (0.9, -0.1), ValueError),
    (Adam, "betas", 0.9, TypeError),
    (Adam, "betas", (0.9,), ValueError),
    (Adam, "amsgrad", 1, TypeError),
    (Adam, "maximize", "no", TypeError),
    (Adam, "decoupled_weight_decay", None, TypeError),
    (SGD, "lr", -1.0, ValueError),
    (SGD, "momentum", -0.5, ValueError),
    (SGD, "dampening", math.nan, ValueError),
    (SGD, "weight_decay", math.inf, ValueError),
    (SGD, "nesterov", True, ValueError),
    (SGD, "nesterov", 0, TypeError),
]


@pytest.mark.parametrize(("optimizer", "name", "value", "error"), BAD_NUMBERS)
def test_bad_numbers(optimizer: Any, name: str, value: Any, error: type[Exception]) -> None:
    """Refused by the constructor, by a group, and by the step that would use it, which then writes nothing."""
    word = "beta" if name == "betas" else name
    with pytest.raises(error, match=f"^{optimizer.__name__}: argument '{word}"):
        optimizer([np.zeros(2)], **{name: value})
    with pytest.raises(error, match=rf"param_groups\[1\]\.{word}"):
        optimizer([{"params": np.zeros(2)}, {"params": np.zeros(2), name: value}])
    params = [np.ones(2), np.ones(3)]
    stepper = optimizer([{"params": params[0]}, {"params": params[1]}])
    stepper.step(grads_like(params, 0), 1.0)
    good = stepper.param_groups[1][name]
    stepper.param_groups[1][name] = value
    before = contents(stepper)[:-1]
    with pytest.raises(error, match=rf"param_groups\[1\]\.{word}"):
        stepper.step(grads_like(params, 1))
    assert contents(stepper)[:-1] == before
    stepper.param_groups[1][name] = good
    assert stepper.step(grads_like(params, 1))


def test_a_number_that_changes_in_place_is_checked() -> None:
    p, q, lr = np.ones(1), np.ones(1), np.array(0.5)
    sgd = SGD([{"params": p}, {"params": q, "lr": lr}], lr=1.0)
    sgd.step([np.ones(1), np.ones(1)])
    assert (p[0], q[0]) == (0.0, 0.5)
    lr[()] = -1
    with pytest.raises(ValueError, match=r"param_groups\[1\]\.lr"):
        sgd.step([np.ones(1), np.ones(1)])
    assert (p[0], q[0]) == (0.0, 0.5)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_bad_grad_scale_and_max_grad_norm(value: float) -> None:
    p = np.ones(2)
    with pytest.raises(ValueError, match="'grad_scale'"):
        SGD([p]).step([np.ones(2)], grad_scale=value)
    with pytest.raises(ValueError, match="'max_grad_norm'"):
        SGD([p], max_grad_norm=value)
    sgd = SGD([p], max_grad_norm=1.0)
    sgd.max_grad_norm = value
    with pytest.raises(ValueError, match="'max_grad_norm'"):
        sgd.step([np.ones(2)])
    with pytest.raises(TypeError, match="'grad_scale'"):
        SGD([p]).step([np.ones(2)], grad_scale="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'skip_nonfinite'"):
        SGD([p], skip_nonfinite="yes")  # type: ignore[arg-type]
    assert p.tolist() == [1, 1]


def read_only(x: Any) -> Any:
    x.flags.writeable = False
    return x


SHARED = np.zeros(8)
BAD_PARAMS = [
    ([[1.0, 2.0]], TypeError, r"params\[0\].*list"),
    ([1.5], TypeError, r"params\[0\].*float"),
    ([np.zeros(2), np.zeros(2, int)], TypeError, r"params\[1\].*int64"),
    ([np.zeros(2, ">f4")], TypeError, "byte order"),
    ([np.ma.zeros(2)], TypeError, "MaskedArray"),
    ([read_only(np.zeros(2))], BufferError, "read-only"),
    ([np.broadcast_to(np.zeros(1), 4)], BufferError, r"params\[0\]"),
    ([np.lib.stride_tricks.as_strided(SHARED, (3, 3), (8, 8))], ValueError, "twice"),
    ([np.frombuffer(bytearray(17), np.uint8)[1:].view(np.float64)], ValueError, "misaligned"),
    ([SHARED, np.zeros(1), SHARED], ValueError, r"params\[2\].*params\[0\]"),
    ([SHARED[:5], SHARED[4:]], ValueError, "shared"),
    (np.zeros((2, 2)), TypeError, "'params'"),
    ({"params": [np.zeros(2)]}, TypeError, "'params'"),
    (None, TypeError, "'params'"),
    ([], ValueError, "empty"),
    ([{"lr": 0.1}], TypeError, "'params'"),
    ([{"params": [np.zeros(2)], "weight_decya": 0.1}], ValueError, "weight_decya"),
    ([{"params": [np.zeros(2)]}, np.zeros(2)], TypeError, r"param_groups\[1\]"),
]


@pytest.mark.parametrize(("params", "error", "text"), BAD_PARAMS)
def test_bad_params(params: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Adam(params)


def test_a_refused_group_changes_nothing() -> None:
    p = np.zeros(4)
    adam = Adam([p])
    for bad in ([p[1:]], [np.zeros(2), np.zeros(2, int)]):
        with pytest.raises((TypeError, ValueError)):
            adam.add_param_group({"params": bad})
    assert len(adam.param_groups) == 1
    assert adam.step([np.ones(4)])


BAD_GRADS: list[tuple[Callable[[Arrays, Arrays], Any], type[Exception], str]] = [
    (lambda p, g: g[0], TypeError, "'grads'"),
    (lambda p, g: iter(g), TypeError, "'grads'"),
    (lambda p, g: g[:5], ValueError, "5 gradients, needs 6"),
    (lambda p, g: [*g, None], ValueError, "7 gradients"),
    (lambda p, g: [*g[:3], g[3].astype(np.float64), *g[4:]], TypeError, r"grads\[3\].*float64"),
    (lambda p, g: [*g[:3], g[3][:-1], *g[4:]], ValueError, r"grads\[3\].*\(16,\).*params\[3\]"),
    (lambda p, g: [*g[:3], g[3].tolist(), *g[4:]], TypeError, r"grads\[3\].*list"),
    (lambda p, g: [*g[:3], g[3].astype(">f4"), *g[4:]], TypeError, r"grads\[3\].*byte order"),
    (lambda p, g: [g[0].reshape(7, 5), *g[1:]], ValueError, r"grads\[0\]"),
    (lambda p, g: [*g[:3], p[3], *g[4:]], ValueError, r"shared"),
    (lambda p, g: [None, *g[1:3], p[3][::-1], *g[4:]], ValueError, r"grads\[3\].*params\[3\]"),
]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("when", ["first", "later"])
def test_bad_grads(name: str, when: str) -> None:
    """All gradients are checked before the first is used, in a first step as later, and the next step is right."""
    params, want = model(15), model(15)
    order = [{"params": params[4:]}, {"params": params[:4], "lr": 0.5}]  # the good group comes first
    flat, twin = [*params[4:], *params[:4]], [*want[4:], *want[:4]]
    stepper, plain = OPTIMIZERS[name](order), OPTIMIZERS[name]([{"params": want[4:]}, {"params": want[:4], "lr": 0.5}])
    if when == "later":
        grads = grads_like(flat, 0)
        stepper.step(grads, 3.0)
        plain.step(grads, 3.0)
    for make, error, text in BAD_GRADS:
        before = contents(stepper)
        g = grads_like(params, 1)
        bad = make(params, g)
        if isinstance(bad, list):
            bad = [*bad[4:], *bad[:4]]
            text = text.replace(r"[3\]", r"[5\]").replace(r"[0\]", r"[2\]")
        with pytest.raises(error, match=text):
            stepper.step(bad, 2.0)
        assert contents(stepper) == before
    grads = grads_like(flat, 2)
    stepper.step(grads, 1.0)
    plain.step(grads, 1.0)
    assert_same(flat, twin)


def test_parameters_cannot_be_swapped_under_it() -> None:
    p = np.zeros(2)
    sgd = SGD([p])
    with pytest.raises(TypeError):
        sgd.param_groups[0]["params"][0] = np.zeros(2)
    sgd.param_groups[0]["params"] = (np.zeros(2),)
    with pytest.raises(ValueError, match=r"param_groups\[0\]\.params"):
        sgd.step([np.ones(2)])
    assert p.tolist() == [0, 0]


def test_read_only_later() -> None:
    p, q = np.zeros(2), np.zeros(2)
    sgd = SGD([p, q], lr=1.0)
    sgd.step([np.ones(2), np.ones(2)])
    q.flags.writeable = False
    with pytest.raises(BufferError, match=r"params\[1\]"):
        sgd.step([np.ones(2), np.ones(2)])
    assert p.tolist() == [-1, -1]


def test_copies_and_pickles_are_refused() -> None:
    """They would cut the tie between the optimizer and the caller's arrays."""
    adam = Adam(model(0))
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            attempt(adam)
