"""curvk.optim on lists of arrays: the formulas in float64, torch, exact resume, and every way to be refused."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from curvk import _store as store
from curvk.kernels.optim import AdamPlan, SGDPlan
from curvk.optim import SGD, Adam, AdamW, AdamZ
from curvk.optim import _base as base

Arrays = list[Any]
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": SGD,
    "momentum": lambda p, **kw: SGD(p, momentum=0.9, dampening=0.1, weight_decay=0.01, **kw),
    "nesterov": lambda p, **kw: SGD(p, momentum=0.8, nesterov=True, maximize=True, **kw),
    "adam": lambda p, **kw: Adam(p, weight_decay=0.1, **kw),
    "amsgrad": lambda p, **kw: Adam(p, amsgrad=True, **kw),
    "adamw": AdamW,
    "adamz": lambda p, **kw: AdamZ(p, patience=5, stagnation_period=2, **kw),
}


def model(seed: int = 0, dtype: Any = np.float32) -> Arrays:
    """Six arrays: a matrix, a transposed one, a strided view, a vector, a 0-d and an empty one."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((5, 7)).astype(dtype),
        rng.standard_normal((4, 3)).astype(dtype).T,
        rng.standard_normal((6, 8)).astype(dtype)[::2, 1::3],
        rng.standard_normal(17).astype(dtype),
        np.array(rng.standard_normal(), dtype),
        np.zeros((0, 3), dtype),
    ]


def grads_like(params: Arrays, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(p.shape).astype(p.dtype) for p in params]


def contents(optimizer: Any) -> list[bytes]:
    """All bytes that a step may write."""
    arrays = [p for group in optimizer.param_groups for p in group["params"]]
    states = [entry[name] for entry in optimizer.state for name in sorted(entry)]
    numbers = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return [np.asarray(a).tobytes() for a in arrays + states] + [repr((numbers, optimizer.skipped_steps)).encode()]


def assert_same(a: Arrays, b: Arrays) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.tobytes() == y.tobytes()


def adam_truth(
    p: Any, grads: Arrays, lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, **o: Any
) -> Any:
    """Adam from the papers, in float64, without any of the rearrangements of a fast kernel."""
    p, m, v, top = np.array(p, np.float64), 0.0, 0.0, 0.0
    decay = o.get("weight_decay", 0.0)
    for t, g in enumerate(grads, 1):
        g = -np.asarray(g, np.float64) if o.get("maximize") else np.asarray(g, np.float64)
        if o.get("decoupled_weight_decay"):
            p = p - lr * decay * p
        else:
            g = g + decay * p
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        top = np.maximum(top, v)
        p = p - lr * (m / (1 - b1**t)) / (np.sqrt((top if o.get("amsgrad") else v) / (1 - b2**t)) + eps)
    return p


def sgd_truth(p: Any, grads: Arrays, lr: float = 1e-3, momentum: float = 0.0, **o: Any) -> Any:
    p, buf = np.array(p, np.float64), None
    decay = o.get("weight_decay", 0.0)
    for g in grads:
        g = -np.asarray(g, np.float64) if o.get("maximize") else np.asarray(g, np.float64)
        if o.get("decoupled_weight_decay"):
            p = p - lr * decay * p
        else:
            g = g + decay * p
        if momentum:
            buf = g if buf is None else momentum * buf + (1 - o.get("dampening", 0.0)) * g
            g = g + momentum * buf if o.get("nesterov") else buf
        p = p - lr * g
    return p


ADAM_OPTIONS = [
    {},
    {"lr": 0.02, "weight_decay": 0.3},
    {"lr": 0.02, "weight_decay": 0.3, "decoupled_weight_decay": True},
    {"amsgrad": True, "weight_decay": 0.1},
    {"maximize": True, "amsgrad": True},
]
SGD_OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.2},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "decoupled_weight_decay": True},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "maximize": True},
    {"lr": 0.1, "momentum": 0.7, "nesterov": True, "weight_decay": 0.1},
]
CASES = [(Adam, adam_truth, o) for o in ADAM_OPTIONS] + [(SGD, sgd_truth, o) for o in SGD_OPTIONS]


# ---- the right numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "truth", "options"), CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_formula(optimizer: Any, truth: Any, options: dict[str, Any], dtype: Any, rtol: float) -> None:
    params = model(1, dtype)
    steps = [grads_like(params, seed) for seed in range(12)]
    want = [truth(p, [g[i] for g in steps], **options) for i, p in enumerate(params)]
    stepper = optimizer(params, **options)
    for grads in steps:
        assert stepper.step(grads) is True
    for p, w in zip(params, want, strict=True):
        np.testing.assert_allclose(p, w, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("optimizer", "options"), [c[::2] for c in CASES if c[0] is Adam or "decoupled" not in str(c[2])]
)
def test_torch(optimizer: Any, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    options = dict(options)
    decoupled = options.pop("decoupled_weight_decay", False)
    theirs = {Adam: torch.optim.AdamW if decoupled else torch.optim.Adam, SGD: torch.optim.SGD}[optimizer]
    params = model(2, np.float64)
    tensors = [torch.tensor(p.copy(), requires_grad=True) for p in params]
    reference = theirs(tensors, foreach=False, **options)
    ours = optimizer(params, decoupled_weight_decay=decoupled, **options)
    for seed in range(40):
        grads = grads_like(params, seed)
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(g)
        reference.step()
        ours.step(grads)
    for p, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bit(dtype: Any) -> None:
    """Each step is the float64 step from the stored parameter, rounded once; the states are float32."""
    params = model(3, dtype)
    stepper = Adam(params, lr=0.05)
    m, v = [np.zeros(p.shape) for p in params], [np.zeros(p.shape) for p in params]
    for t in range(1, 9):
        grads = grads_like(params, t)
        before = [p.astype(np.float64) for p in params]
        stepper.step(grads)
        for i, p in enumerate(params):
            g = grads[i].astype(np.float64)
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            want = before[i] - 0.05 * (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
            ulp = np.spacing(np.abs(p)).astype(np.float64)
            assert np.all(np.abs(p.astype(np.float64) - want) <= 0.51 * ulp + 1e-6)
    assert {a.dtype for entry in stepper.state for k, a in entry.items() if k != "step"} == {np.dtype(np.float32)}


def test_uint16_is_bfloat16() -> None:
    wide, bits = np.ones(9, ml_dtypes.bfloat16), np.ones(9, ml_dtypes.bfloat16).view(np.uint16)
    g = np.linspace(-1, 1, 9).astype(ml_dtypes.bfloat16)
    Adam([wide], lr=0.1).step([g])
    Adam([bits], lr=0.1).step([g.view(np.uint16)])
    assert_same([wide], [bits])


def test_first_step_moves_by_lr() -> None:
    g = np.array([1e-12, -1e-6, 0.5, -40.0, 0.0])
    p = np.zeros(5)
    Adam([p], lr=0.01, eps=1e-8).step([g])
    np.testing.assert_allclose(p, -0.01 * g / (np.abs(g) + 1e-8), rtol=1e-13)


def test_constant_gradient() -> None:
    g = np.array([2.0, -3e-8, 5.0])
    p = np.zeros(3)
    adam = Adam([p], lr=0.125)
    for t in range(1, 60):
        adam.step([g])
        np.testing.assert_allclose(p, -0.125 * t * g / (np.abs(g) + 1e-8), rtol=1e-10)


def test_decay_alone() -> None:
    p = np.array([1.0, -2.0, 1e5])
    start = p.copy()
    adamw = AdamW([p], lr=0.1, weight_decay=0.5)
    for _ in range(30):
        adamw.step([np.zeros(3)])
    np.testing.assert_allclose(p, start * (1 - 0.1 * 0.5) ** 30, rtol=1e-13)


def test_amsgrad_is_monotone() -> None:
    p = np.zeros(50)
    adam = Adam([p], amsgrad=True, betas=(0.9, 0.5))
    before = np.zeros(50)
    for seed in range(20):
        adam.step(grads_like([p], seed))
        top = adam.state[0]["max_exp_avg_sq"].copy()
        assert np.all(top >= before)
        assert np.all(top >= adam.state[0]["exp_avg_sq"])
        before = top


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_maximize_is_the_negated_gradient(optimizer: Any) -> None:
    up, down = model(4), model(4)
    ascent, descent = optimizer(up, maximize=True), optimizer(down)
    for seed in range(5):
        grads = grads_like(up, seed)
        ascent.step(grads)
        descent.step([-g for g in grads])
    assert_same(up, down)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_grad_scale(name: str) -> None:
    """A power of two divides exactly."""
    plain, scaled = model(5), model(5)
    a, b = OPTIMIZERS[name](plain), OPTIMIZERS[name](scaled)
    for seed in range(5):
        grads = grads_like(plain, seed)
        a.step(grads)
        b.step([g * np.float32(1024) for g in grads], grad_scale=1024)
    assert_same(plain, scaled)


# ---- clipping and skipping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [1e-3, 0.7, 1e4])
def test_clipping(max_norm: float) -> None:
    """SGD with lr 1 from zero shows the clipped gradient; the norm goes over groups and dtypes."""
    shapes = [((40, 3), np.float64), ((7,), np.float32), ((), np.float64)]
    params = [np.zeros(shape, dtype) for shape, dtype in shapes]
    grads = grads_like(params, 6)
    untouched = copy.deepcopy(grads)
    sgd = SGD([{"params": params[:1]}, {"params": params[1:]}], lr=1.0, max_grad_norm=max_norm)
    sgd.step([4 * g for g in grads], grad_scale=4.0)
    norm = math.sqrt(math.fsum(float(x) ** 2 for g in grads for x in g.ravel()))
    factor = min(1.0, max_norm / (norm + 1e-6))
    for p, g in zip(params, grads, strict=True):
        np.testing.assert_allclose(p, -factor * g.astype(np.float64), rtol=1e-6 if p.dtype == np.float32 else 1e-13)
    assert_same(grads, untouched)
    torch = pytest.importorskip("torch")
    tensors = [torch.zeros(g.shape, dtype=torch.float64) for g in grads]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g.astype(np.float64))
    torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    for p, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p, -tensor.grad.numpy(), rtol=1e-6 if p.dtype == np.float32 else 1e-13)


def test_small_gradients_are_not_touched_by_clipping() -> None:
    a, b = model(7), model(7)
    grads = grads_like(a, 0)
    Adam(a).step(grads)
    Adam(b, max_grad_norm=1e3, skip_nonfinite=True).step(grads)
    assert_same(a, b)


def test_clipping_of_a_norm_that_is_not_finite() -> None:
    """No factor is applied, so only the poisoned elements are."""
    for bad in (np.inf, np.nan):
        p = np.zeros(3)
        SGD([p], lr=1.0, max_grad_norm=0.1).step([np.array([1.0, bad, -2.0])])
        assert p[0] == -1
        assert p[2] == 2
        assert not np.isfinite(p[1])


def test_clipping_at_the_ends_of_the_range() -> None:
    p = np.zeros(2)
    SGD([p], lr=1.0, max_grad_norm=1e-300).step([np.array([3e300, 4e300])])
    np.testing.assert_allclose(
        p, 0, atol=1e-7
    )  # the factor is below the smallest double, so 1/max_double stands for it
    p[:] = 0
    SGD([p], lr=1.0, max_grad_norm=1.0).step([np.array([3e200, 4e200])])  # squares overflow
    np.testing.assert_allclose(p, [-0.6, -0.8], rtol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_skip_nonfinite(name: str, bad: float) -> None:
    """A skipped step writes nothing; the run goes on as if it had not been asked for."""
    ours, theirs = model(8), model(8)
    skipping, plain = OPTIMIZERS[name](ours, skip_nonfinite=True), OPTIMIZERS[name](theirs)
    for seed in range(8):
        grads = grads_like(ours, seed)
        if seed in (0, 3):  # also before any state exists
            poisoned = copy.deepcopy(grads)
            poisoned[3][11] = bad
            before = contents(skipping)
            assert skipping.step(poisoned, 1.0 + seed) is False
            assert contents(skipping)[:-1] == before[:-1]
        assert skipping.step(grads, 9.0 - seed) is True
        plain.step(grads, 9.0 - seed)
    assert skipping.skipped_steps == 2
    assert_same(ours, theirs)
    assert [g["lr"] for g in skipping.param_groups] == [g["lr"] for g in plain.param_groups]


def test_one_sweep_and_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    sweep = base.global_norm
    monkeypatch.setattr(base, "global_norm", lambda grads: calls.append(len(grads)) or sweep(grads))
    params = model(9)
    Adam(params).step(grads_like(params, 0))
    assert calls == []
    Adam(params, max_grad_norm=1.0, skip_nonfinite=True).step([*grads_like(params, 0)[:-1], None])
    assert calls == [5]


# ---- which arrays, how many calls ----------------------------------------------------------------------------------


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step numbers (0 for SGD) of the kernel calls made."""
    calls: list[int] = []
    for plan in (AdamPlan, SGDPlan):

        def counted(self: Any, _step: Any = plan.step, **scalars: Any) -> None:
            calls.append(scalars.get("step", 0))
            _step(self, **scalars)

        monkeypatch.setattr(plan, "step", counted)
    return calls


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_none_leaves_a_parameter_and_its_count(name: str) -> None:
    """Every parameter ends as if it had an optimizer of its own."""
    together, alone = model(10), model(10)
    stepper, singles = OPTIMIZERS[name](together), [OPTIMIZERS[name]([p]) for p in alone]
    rng = np.random.default_rng(11)
    for seed in range(15):
        grads = [g if rng.random() < 0.6 else None for g in grads_like(together, seed)]
        assert stepper.step(grads) is True
        for single, g in zip(singles, grads, strict=True):
            if g is not None:
                single.step([g])
    assert_same(together, alone)
    assert [entry.get("step") for entry in stepper.state] == [single.state[0].get("step") for single in singles]
    before = contents(stepper)
    assert stepper.step([None] * 6) is True
    assert contents(stepper) == before


def test_equal_step_counts_share_a_kernel_call(kernel_calls: list[int]) -> None:
    params = [np.ones(3), np.ones(4)]
    a, b = grads_like(params, 0)
    adam = Adam(params)
    for grads in ([a, None], [a, b], [a, b], [None, b], [a, b]):
        adam.step(grads)
    assert kernel_calls == [1, 2, 1, 3, 2, 3, 4]
    kernel_calls.clear()
    sgd = SGD(params, momentum=0.5)
    for grads in ([a, None], [a, b], [a, b], [None, b], [a, b]):  # the second: one first step and one other
        sgd.step(grads)
    assert len(kernel_calls) == 6


def test_one_kernel_call_per_group_and_dtype(kernel_calls: list[int]) -> None:
    params = [p for dtype in (np.float32, np.float64, np.float16) for p in model(12, dtype)]
    alone = [p.copy() for p in params]
    adam = Adam([{"params": params[:9]}, {"params": params[9:], "lr": 0.1}])
    singles = [Adam([p], lr=1e-3 if i < 9 else 0.1) for i, p in enumerate(alone)]
    for seed in range(3):
        grads = grads_like(params, seed)
        kernel_calls.clear()
        adam.step(grads)
        assert kernel_calls == [seed + 1] * 4  # 6 float32 and 3 float64 arrays, then 3 float64 and 6 float16
        for single, g in zip(singles, grads, strict=True):
            single.step([g])
    assert_same(params, alone)


def test_a_thousand_arrays(kernel_calls: list[int]) -> None:
    rng = np.random.default_rng(13)
    sizes = rng.integers(0, 40, 1000)
    params = [rng.standard_normal(n).astype(np.float32) for n in sizes]
    whole = np.concatenate(params)
    many, one = Adam(params, max_grad_norm=5.0), Adam([whole], max_grad_norm=5.0)
    for _ in range(4):
        grads = [rng.standard_normal(n).astype(np.float32) for n in sizes]
        many.step(grads)
        one.step([np.concatenate(grads)])
    assert kernel_calls == [1, 1, 2, 2, 3, 3, 4, 4]
    np.testing.assert_allclose(np.concatenate(params), whole, rtol=1e-6, atol=1e-7)  # the norms' last bits may differ


def test_gradients_may_move_or_stay() -> None:
    """The same list, a new list of the same arrays, other arrays, and a list changed in place are all read right."""
    params, want = model(14), model(14)
    adam = Adam(params)
    steps = []
    grads = grads_like(params, 0)
    for k in range(6):
        if k == 1:
            for g in grads:
                g *= 2
        elif k == 2:
            grads = list(grads)
        elif k == 3:
            grads = grads_like(params, 3)
        elif k == 4:
            grads[0] = np.full_like(grads[0], 0.5)
        elif k == 5:
            grads = tuple(grads)  # type: ignore[assignment]
        adam.step(grads)
        steps.append(copy.deepcopy(list(grads)))
    fresh = Adam(want)
    for step in steps:
        fresh.step(step)
    assert_same(params, want)


def test_strided_views_leave_the_rest_alone() -> None:
    whole = np.arange(96, dtype=np.float32).reshape(8, 12)
    want = whole.copy()
    view = whole[1::2, ::3]
    grad = np.asfortranarray(np.ones((4, 4), np.float32))
    Adam([view], lr=0.5).step([grad])
    want[1::2, ::3] -= np.float32(0.5)
    np.testing.assert_allclose(whole, want, rtol=1e-6)
    assert np.array_equal(np.delete(whole, np.s_[1::2], 0), np.delete(want, np.s_[1::2], 0))


def test_states_have_the_parameters_memory_order() -> None:
    p = np.zeros((3, 4, 5), np.float32).transpose(2, 0, 1)
    adam = Adam([p])
    adam.step([np.ones_like(p)])
    assert adam.state[0]["exp_avg"].strides == p.strides
    adam = Adam([np.zeros((3, 4))[:, ::2]])  # not dense: dense states in the same order
    adam.step([np.ones((3, 2))])
    assert adam.state[0]["exp_avg"].flags.c_contiguous


def test_other_kinds_of_arrays(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    mapped = np.memmap(tmp_path / "p", np.float32, "w+", shape=(4,))
    tensor = torch.zeros(4, requires_grad=True)
    plain = np.zeros(4, np.float32)
    g = np.arange(1, 5, dtype=np.float32)
    version = tensor._version
    adam = Adam([mapped, tensor, plain], lr=0.5)
    adam.step([g, torch.from_numpy(g.copy()), g])
    assert_same([np.asarray(mapped), tensor.detach().numpy()], [plain, plain])
    assert tensor._version > version
    assert adam.param_groups[0]["params"][1] is tensor


def test_a_tensor_may_move() -> None:
    """The same tensors over other memory: nothing is read from or written to where they were."""
    torch = pytest.importorskip("torch")
    p, g = torch.zeros(3), torch.ones(3)
    sgd = SGD([p], lr=1.0)
    sgd.step([g])
    old_p, old_g = p.data, g.data
    p.data, g.data = torch.full((3,), 5.0), torch.full((3,), 2.0)
    sgd.step([g])
    assert p.tolist() == [3, 3, 3]
    assert old_p.tolist() == [-1, -1, -1]
    assert old_g.tolist() == [1, 1, 1]


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


# ---- states --------------------------------------------------------------------------------------------------------


def train(optimizer: Any, params: Arrays, steps: range, hole: bool) -> None:
    for seed in steps:
        grads: Arrays = grads_like(params, seed)
        if hole and seed % 3 == 1:
            grads[seed % 5] = None
        optimizer.step(grads, math.cos(seed * seed))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", ["dict", "file"])
def test_resume(name: str, way: str, tmp_path: Path) -> None:
    """Stopping and going on gives the bits of going on."""
    through, stopped = (
        [p for d in (np.float32, np.float16) for p in model(16, d)],
        [p for d in (np.float32, np.float16) for p in model(16, d)],
    )
    first = OPTIMIZERS[name](through, max_grad_norm=3.0)
    train(first, through, range(20), True)
    second = OPTIMIZERS[name](stopped, max_grad_norm=3.0)
    train(second, stopped, range(9), True)
    second.param_groups[0]["initial_lr"] = 0.125
    third = OPTIMIZERS[name](stopped, lr=0.7)
    if way == "dict":
        third.load_state_dict(second.state_dict())
    else:
        second.save(tmp_path / "state.ckpt")
        assert [f.name for f in tmp_path.iterdir()] == ["state.ckpt"]
        third.load(str(tmp_path / "state.ckpt"))
    assert third.param_groups[0].pop("initial_lr") == 0.125
    assert contents(second)[:-1] == contents(third)[:-1]
    train(third, stopped, range(9, 20), True)
    assert contents(first) == contents(third)


def test_resume_before_the_first_step(tmp_path: Path) -> None:
    params = model(17)
    adam = Adam(params, lr=0.25)
    adam.save(tmp_path / "a")
    other = Adam(params)
    other.load(tmp_path / "a")
    assert other.state == [{}] * 6
    assert other.param_groups[0]["lr"] == 0.25


def test_state_dict_is_a_snapshot() -> None:
    params = model(18)
    adam = Adam(params)
    adam.step(grads_like(params, 0))
    state = adam.state_dict()
    kept = copy.deepcopy(state)
    adam.step(grads_like(params, 1))
    assert state["state"][0]["step"] == 1
    assert_same([state["state"][0]["exp_avg"]], [kept["state"][0]["exp_avg"]])
    other = Adam(model(18))
    other.load_state_dict(state)
    other.step(grads_like(params, 2))
    assert_same([state["state"][0]["exp_avg"]], [kept["state"][0]["exp_avg"]])


def test_states_load_into_another_memory_order() -> None:
    a = np.ones((3, 4), np.float32)
    b = np.asfortranarray(a)
    first, second = Adam([a]), Adam([b])
    g = np.arange(12, dtype=np.float32).reshape(3, 4)
    first.step([g])
    b[...] = a
    second.load_state_dict(first.state_dict())
    first.step([g])
    second.step([g])
    assert np.array_equal(a, b)
    assert second.state[0]["exp_avg"].flags.f_contiguous


def saved() -> tuple[Any, dict[str, Any]]:
    params = [np.zeros((2, 3), np.float32), np.zeros(4)]
    adam = Adam([{"params": params[0]}, {"params": params[1], "lr": 0.5}])
    adam.step([np.ones((2, 3), np.float32), np.ones(4)])
    return adam, adam.state_dict()


def edit(path: str, value: Any = ...) -> Callable[[dict[str, Any]], None]:
    """Sets or, without a value, deletes what a path such as 'state/0/step' leads to."""
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]

    def apply(state: Any) -> None:
        for key in way:
            state = state[key]
        if value is ...:
            del state[last]
        else:
            state[last] = value

    return apply


BAD_STATES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (edit("format", "torch"), "'format': got 'torch'"),
    (edit("version", 99), "'version': got 99, needs 1"),
    (edit("optimizer", "SGD"), "'optimizer': got 'SGD', needs 'Adam'"),
    (edit("state"), "keys"),
    (edit("extra", 1), "extra"),
    (edit("max_grad_norm", -1.0), "max_grad_norm"),
    (edit("max_grad_norm", "1"), "max_grad_norm"),
    (edit("skip_nonfinite", 2), "skip_nonfinite"),
    (edit("skipped_steps", -1), "skipped_steps"),
    (edit("skipped_steps", 0.5), "skipped_steps"),
    (edit("param_groups", {}), "param_groups"),
    (edit("param_groups/1"), "1 groups, needs 2"),
    (edit("param_groups/1", 3), r"param_groups\[1\]"),
    (edit("param_groups/1/params", [0]), r"param_groups\[1\]\.params"),
    (edit("param_groups/1/params", 1), r"param_groups\[1\]\.params"),
    (edit("param_groups/0/params", [0, 1]), "2 arrays, needs 1 arrays"),
    (edit("param_groups/1/lr"), "lr"),
    (edit("param_groups/1/lr", -0.5), r"param_groups\[1\]\.lr"),
    (edit("param_groups/1/lr", "high"), r"param_groups\[1\]\.lr"),
    (edit("param_groups/0/betas", 3), "betas"),
    (edit("state/1"), "1 entries"),
    (edit("state/1", 7), r"state\[1\]"),
    (edit("state/1/step"), r"state\[1\]"),
    (edit("state/1/step", 0), r"state\[1\]\.step"),
    (edit("state/1/step", 1.5), r"state\[1\]\.step"),
    (edit("state/1/step", True), r"state\[1\]\.step"),
    (edit("state/1/exp_avg_sq"), r"state\[1\]"),
    (edit("state/1/momentum_buffer", np.zeros(4)), r"state\[1\]"),
    (edit("state/1/exp_avg", [0.0] * 4), r"state\[1\]\.exp_avg.*list"),
    (edit("state/1/exp_avg", np.zeros(4, np.float32)), r"state\[1\]\.exp_avg.*float32 of shape \(4,\).*float64"),
    (edit("state/0/exp_avg", np.zeros((3, 2), np.float32)), r"state\[0\]\.exp_avg.*\(3, 2\).*\(2, 3\).*params\[0\]"),
    (edit("state/0/max_exp_avg_sq", np.zeros(2)), r"state\[0\]\.max_exp_avg_sq"),
]


@pytest.mark.parametrize(("change", "text"), BAD_STATES)
def test_bad_state_dict(change: Callable[[dict[str, Any]], None], text: str, tmp_path: Path) -> None:
    adam, state = saved()
    change(state)
    before = contents(adam)
    with pytest.raises(ValueError, match=text):
        adam.load_state_dict(state)
    store.write(tmp_path / "s", state)
    with pytest.raises(ValueError, match=text):
        adam.load(tmp_path / "s")
    assert contents(adam) == before
    assert adam.step([np.ones((2, 3), np.float32), np.ones(4)])


def test_state_of_another_kind() -> None:
    adam, state = saved()
    for bad in (None, [], 3, "x", {}):
        with pytest.raises(ValueError, match=r"state|format"):
            adam.load_state_dict(bad)
    for other in (AdamW, AdamZ, SGD):
        with pytest.raises(ValueError, match="'optimizer': got 'Adam'"):
            other([{"params": np.zeros((2, 3), np.float32)}, {"params": np.zeros(4)}]).load_state_dict(state)
    sgd = SGD([{"params": np.zeros((2, 3), np.float32)}, {"params": np.zeros(4)}], momentum=0.5).state_dict()
    with pytest.raises(ValueError, match="'optimizer': got 'SGD', needs 'Adam'"):
        adam.load_state_dict(sgd)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_damaged_files(tmp_path: Path) -> None:
    """Every truncation and every flipped byte is refused or, where it hit nothing that counts, harmless."""
    adam, _ = saved()
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    adam.save(whole)
    raw = whole.read_bytes()
    want = contents(adam)
    refused = 0
    for n in range(0, len(raw), 97):
        damaged.write_bytes(raw[:n])
        with pytest.raises(ValueError, match="damaged"):
            adam.load(damaged)
    for n in range(0, len(raw), 13):
        damaged.write_bytes(raw[:n] + bytes([raw[n] ^ 0x5A]) + raw[n + 1 :])
        try:
            adam.load(damaged)
        except ValueError:
            refused += 1
        assert contents(adam) == want
    assert refused > len(raw) / 13 / 2


def test_foreign_files(tmp_path: Path) -> None:
    adam, _ = saved()
    path = tmp_path / "f"
    before = contents(adam)

    class Trap:
        def __reduce__(self) -> Any:
            return (exec, ("raise SystemExit('executed')",))

    def zipped() -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("meta.npy", b"no array")

    def npz(**arrays: Any) -> Callable[[], None]:
        def write() -> None:
            with open(path, "wb") as file:
                np.savez(file, **arrays)

        return write

    def meta(value: Any) -> Any:
        return np.frombuffer(json.dumps(value).encode(), np.uint8)

    for write in (
        lambda: path.write_bytes(b""),
        lambda: path.write_text("lr = 0.1\n"),
        lambda: path.write_bytes(pickle.dumps({"state": 1})),
        zipped,
        npz(weights=np.zeros(3)),
        npz(meta=np.array([Trap()], dtype=object)),
        npz(meta=meta({"array": "array9"})),
        npz(meta=meta([1, 2])),
        npz(meta=meta({"format": "other"})),
        npz(meta=np.zeros(3)),
    ):
        write()
        with pytest.raises(ValueError, match=r"load|format"):
            adam.load(path)
        assert contents(adam) == before
    with pytest.raises(FileNotFoundError):
        adam.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        adam.load(tmp_path)


@pytest.mark.parametrize("where", ["savez", "replace"])
def test_an_interrupted_save_leaves_the_old_file(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adam, _ = saved()
    path = tmp_path / "state"
    adam.save(path)
    old = path.read_bytes()
    adam.step([np.ones((2, 3), np.float32), np.ones(4)])

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    def refuse(*paths: Any) -> None:
        raise PermissionError("not now")

    if where == "savez":
        monkeypatch.setattr(store.np, "savez", half)
    else:
        monkeypatch.setattr(store.os, "replace", refuse)
    with pytest.raises(OSError, match=r"no space|not now"):
        adam.save(path)
    assert path.read_bytes() == old
    assert [f.name for f in tmp_path.iterdir()] == ["state"]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    adam, _ = saved()
    adam.param_groups[0]["note"] = object()
    with pytest.raises(TypeError, match="object"):
        adam.save(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_import_is_light() -> None:
    code = "import sys, curvk.optim; print([m for m in ('numba', 'torch', 'cffi', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
