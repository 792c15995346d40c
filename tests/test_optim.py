"""curvk.optim on lists of arrays: the formulas in float64, torch, exact resume, and every way to be refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from curvk.kernels.optim import AdamPlan, SGDPlan
from curvk.optim import SGD, Adam, AdamW
from curvk.optim import _base as base
from optim_models import OPTIMIZERS, Arrays, adam_truth, assert_same, contents, grads_like, model


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
