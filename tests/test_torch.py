"""curvk.torch against torch.optim in float64, and the contract of torch.optim.Optimizer."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import numpy as np  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

CLASSES = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
CASES = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    ("SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"weight_decay": 0.1, "maximize": True}),
    ("Adam", {"weight_decay": 0.1, "amsgrad": True, "betas": (0.5, 0.9), "eps": 1e-3}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "maximize": True, "weight_decay": 0.3}),
]
SHAPES = [(7,), (3, 5), (), (0,), (2, 3, 4, 5), (1000,)]
# Steps of 0.05 on values of order one: the error of 25 steps stays below this many units of the storage's spacing at 4.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1.5e-1,
    torch.complex64: 2e-5,
    torch.complex128: 1e-12,
}
WIDE = {torch.complex64: torch.complex128, torch.complex128: torch.complex128}


def made(shapes, dtype=torch.float64, seed=0):
    """Parameters, and a function that gives the k-th gradient of each: same numbers for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    wide = WIDE.get(dtype, torch.float64)
    values = [torch.randn(s, generator=generator, dtype=wide) for s in shapes]

    def grads(k):
        generator = torch.Generator().manual_seed(1000 * seed + k + 1)
        return [torch.randn(s, generator=generator, dtype=wide).to(dtype) for s in shapes]

    return [torch.nn.Parameter(v.to(dtype)) for v in values], grads


def close(got, want, dtype=None):
    for a, b in zip(got, want, strict=True):
        limit = TOLERANCE[dtype or a.dtype]
        torch.testing.assert_close(a.detach().to(b.dtype), b.detach(), rtol=limit, atol=limit)


def run(optimizer, params, grads, start, stop):
    for k in range(start, stop):
        for p, g in zip(params, grads(k), strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


def backward(model, seed=0):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_follows_torch_in_float64(name, options, dtype):
    params, grads = made(SHAPES, dtype)
    real = torch.view_as_real if dtype in WIDE else lambda x: x  # what complex parameters mean to torch.optim
    twins = [torch.nn.Parameter(real(p.detach()).double()) for p in params]
    ours = getattr(ct, name)(params, lr=0.05, **options)
    truth = CLASSES[name](twins, lr=0.05, foreach=False, **options)
    for k in range(25):
        for p, q, g in zip(params, twins, grads(k), strict=True):
            p.grad, q.grad = g, real(g).double()
        ours.step()
        truth.step()
    close([real(p.detach()) for p in params], twins, dtype)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_16_bit_parameters_keep_float32_moments(amsgrad):
    for dtype in (torch.bfloat16, torch.float16):
        params, grads = made([(64,)], dtype)
        optimizer = ct.Adam(params, amsgrad=amsgrad)
        run(optimizer, params, grads, 0, 3)
        kinds = {k: v.dtype for k, v in optimizer.state[params[0]].items()}
        assert set(kinds.values()) == {torch.float32}
        m = torch.zeros(64, dtype=torch.float64)  # the moment has float32's precision, not the parameter's
        for k in range(3):
            m = 0.9 * m + 0.1 * grads(k)[0].double()
        torch.testing.assert_close(optimizer.state[params[0]]["exp_avg"].double(), m, rtol=1e-6, atol=1e-7)


def test_dtypes_may_be_mixed_in_a_group():
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.float32]
    params = [made([(9,)], d, seed=i)[0][0] for i, d in enumerate(dtypes)]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in params]
    together = ct.AdamW(params, lr=0.1)
    singly = [ct.AdamW([p], lr=0.1) for p in alone]
    for k in range(4):
        for i, (p, q) in enumerate(zip(params, alone, strict=True)):
            p.grad = made([(9,)], dtypes[i], seed=i)[1](k)[0]
            q.grad = p.grad.clone()
        together.step()
        for optimizer in singly:
            optimizer.step()
    for p, q in zip(params, alone, strict=True):
        assert torch.equal(p, q)


def test_grad_strides_that_differ_from_the_parameter():
    """Torch 2.13's fused CPU kernel walks such gradients in the wrong order."""
    cases = [
        (torch.randn(64, 32), lambda g: g.t().contiguous().t()),
        (torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last), lambda g: g.contiguous()),
        (torch.randn(4, 3, 5, 6), lambda g: g.contiguous(memory_format=torch.channels_last)),
        (torch.randn(6, 8).t(), lambda g: g.contiguous()),
    ]
    for value, relayout in cases:
        p = torch.nn.Parameter(value.clone(memory_format=torch.preserve_format))
        q = torch.nn.Parameter(value.double().contiguous())
        ours, truth = ct.Adam([p], lr=0.1), torch.optim.Adam([q], lr=0.1, foreach=False)
        for _ in range(3):
            g = torch.randn(value.shape)
            p.grad, q.grad = relayout(g), g.double().contiguous()
            ours.step()
            truth.step()
        close([p], [q])


@pytest.mark.parametrize("name", CLASSES)
def test_strided_view_parameters_write_nothing_outside_the_view(name):
    """Torch 2.13's fused CPU kernel writes outside of such views."""
    base = torch.randn(32, 64)
    before = base.clone()
    p = base[:, ::2].requires_grad_()
    q = before[:, ::2].double().contiguous().requires_grad_()
    options = {"momentum": 0.9} if name == "SGD" else {}
    ours, truth = getattr(ct, name)([p], lr=0.1, **options), CLASSES[name]([q], lr=0.1, foreach=False, **options)
    for _ in range(3):
        g = torch.randn(32, 32)
        p.grad, q.grad = g, g.double()
        ours.step()
        truth.step()
    close([p], [q])
    assert torch.equal(base[:, 1::2], before[:, 1::2])


def test_interleaved_views_of_one_base():
    base = torch.randn(6, 8)
    params = [base[:, ::2].requires_grad_(), base[:, 1::2].requires_grad_()]
    want = [p.detach().clone() - 0.5 * (i + 1) for i, p in enumerate(params)]
    optimizer = ct.SGD(params, lr=0.5)
    for i, p in enumerate(params):
        p.grad = torch.full((6, 4), i + 1.0)
    optimizer.step()
    for p, w in zip(params, want, strict=True):
        assert torch.equal(p, w)


def test_channels_last_states_follow_the_parameter():
    p = torch.nn.Parameter(torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last))
    optimizer = ct.Adam([p])
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].stride() == p.stride()


def test_lazily_negated_and_conjugated_gradients():
    z = torch.tensor([1 + 2j, 3 - 4j])
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = z.conj().imag
    assert p.grad.is_neg()
    ct.SGD([p], lr=1.0).step()
    assert p.tolist() == [2.0, -4.0]
    c = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    c.grad = z.conj()
    assert c.grad.is_conj()
    ct.SGD([c], lr=1.0).step()
    assert torch.equal(c.detach(), -z.conj().resolve_conj())


# ---- which parameters are stepped ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {"amsgrad": True})])
@given(data=st.data(), steps=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_only_parameters_with_a_gradient_advance(name, options, data, steps):
    params, grads = made([(5,), (3, 2), (4,), ()])
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours, truth = getattr(ct, name)(params, **options), CLASSES[name](twins, foreach=False, **options)
    for k in range(steps):
        present = data.draw(st.lists(st.booleans(), min_size=4, max_size=4))
        for p, q, g, there in zip(params, twins, grads(k), present, strict=True):
            p.grad, q.grad = (g, g.clone()) if there else (None, None)
        ours.step()
        truth.step()
    close(params, twins)
    assert {i for i, p in enumerate(params) if p in ours.state} == {i for i, q in enumerate(twins) if q in truth.state}
    for p, q in zip(params, twins, strict=True):
        if "step" in truth.state.get(q, {}):
            assert ours.state[p]["step"].item() == truth.state[q]["step"].item()


def test_no_gradient_at_all():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ct.Adam([p])
    assert optimizer.step() is None
    assert not optimizer.state
    assert p.tolist() == [1, 1, 1]


def test_frozen_parameters_stay():
    params, grads = made([(3,), (4,)])
    params[0].requires_grad_(False)
    before = params[0].clone()
    optimizer = ct.AdamW(params)
    params[1].grad = grads(0)[1]
    optimizer.step()
    assert torch.equal(params[0], before)
    assert params[0] not in optimizer.state


def test_tied_parameters_are_stepped_once():
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = ct.SGD([("a", p), ("b", q), ("tied", p)], lr=0.5)
    assert optimizer.param_groups[0]["param_names"] == ["a", "b"]
    p.grad = torch.ones(2)
    optimizer.step()
    assert p.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="more than one parameter group"):
        ct.SGD([{"params": [p]}, {"params": [p, q]}])


def test_parameters_may_move_and_change_dtype_between_steps(model):
    optimizer = ct.AdamW(model.parameters(), lr=0.01)
    losses = []
    for cast in (lambda m: m, lambda m: m.double(), lambda m: m.float(), lambda m: m.bfloat16(), lambda m: m.float()):
        cast(model)
        for k in range(5):
            x = torch.randn(64, 4, generator=torch.Generator().manual_seed(k)).to(next(model.parameters()).dtype)
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert {s["step"].item() for s in optimizer.state.values()} == {25.0}
    assert losses[-1] < losses[0]


def test_doubled_model_continues_as_torch_would_with_doubled_states():
    params, grads = made(SHAPES, torch.float32)
    ours = ct.Adam(params, lr=0.05)
    run(ours, params, grads, 0, 3)
    twins = [torch.nn.Parameter(p.detach().double()) for p in params]
    truth = torch.optim.Adam(twins, lr=0.05, foreach=False)
    truth.load_state_dict(ours.state_dict())
    for p in params:
        p.data = p.data.double()
    run(ours, params, grads, 3, 6)
    run(truth, twins, grads, 3, 6)
    close(params, twins)


def test_data_may_be_reassigned():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ct.SGD([p], lr=1.0)
    p.grad = torch.ones(3)
    optimizer.step()
    old, p.data = p.data, torch.full((3,), 5.0)
    optimizer.step()
    assert p.tolist() == [4, 4, 4]
    assert old.tolist() == [0, 0, 0]


def test_switches_may_be_turned_on_later():
    params, grads = made([(6,)])
    optimizer = ct.Adam(params)
    run(optimizer, params, grads, 0, 2)
    optimizer.param_groups[0]["amsgrad"] = True
    run(optimizer, params, grads, 2, 4)
    state = optimizer.state[params[0]]
    assert state["step"].item() == 4
    assert (state["max_exp_avg_sq"] >= state["exp_avg_sq"]).all()
    sgd = ct.SGD(params)
    run(sgd, params, grads, 0, 1)
    sgd.param_groups[0]["momentum"] = 0.9
    run(sgd, params, grads, 1, 2)
    assert torch.equal(sgd.state[params[0]]["momentum_buffer"], grads(1)[0])


@pytest.mark.parametrize("strided", [False, True])
def test_gradients_are_not_kept_alive(strided):
    p = torch.nn.Parameter(torch.zeros(6, 8))
    optimizer = ct.Adam([p], max_grad_norm=1.0)
    for _ in range(3):
        p.grad = torch.randn(8, 6).t() if strided else torch.randn(6, 8)
        optimizer.step()
        last, storage = weakref.ref(p.grad), p.grad.untyped_storage()._weak_ref()
        optimizer.zero_grad()
        gc.collect()
        assert last() is None
        assert torch.UntypedStorage._expired(storage)
        torch.UntypedStorage._free_weak_ref(storage)


def test_parameters_given_up_are_not_kept_alive():
    p, q = torch.nn.Parameter(torch.zeros(6)), torch.nn.Parameter(torch.zeros(6))
    optimizer = ct.SGD([{"params": [p]}, {"params": [q]}])
    p.grad = q.grad = torch.ones(6)
    optimizer.step()
    gone = weakref.ref(q)
    del optimizer.param_groups[1], q
    optimizer.step()
    gc.collect()
    assert gone() is None


# ---- step counts -----------------------------------------------------------------------------------------------------


def test_steps_are_scalars_that_a_user_may_edit():
    params, grads = made([(3,), (4,), (5,)])
    optimizer = ct.Adam(params)
    run(optimizer, params, grads, 0, 2)
    steps = [optimizer.state[p]["step"] for p in params]
    assert all(s.shape == () and s.dtype == torch.float32 and s.device.type == "cpu" for s in steps)
    assert [s.item() for s in steps] == [2, 2, 2]
    steps[0].fill_(10)  # in place, through the view
    optimizer.state[params[1]]["step"] = torch.tensor(20.0)  # replaced
    run(optimizer, params, grads, 2, 3)
    assert [optimizer.state[p]["step"].item() for p in params] == [11, 21, 3]
    optimizer.state.clear()
    run(optimizer, params, grads, 3, 4)
    assert [optimizer.state[p]["step"].item() for p in params] == [1, 1, 1]


def test_edited_steps_enter_the_bias_correction():
    params, grads = made([(3,), (4,)])
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours, truth = ct.Adam(params), torch.optim.Adam(twins, foreach=False)
    for optimizer, own in ((ours, params), (truth, twins)):
        run(optimizer, own, grads, 0, 1)
        optimizer.state[own[1]]["step"] = torch.tensor(50.0)
        run(optimizer, own, grads, 1, 3)
    close(params, twins)


@pytest.mark.parametrize("bad", [float("nan"), -3.0, float("inf")])
def test_bad_step_counts_are_refused(bad):
    params, grads = made([(3,)])
    optimizer = ct.Adam(params)
    run(optimizer, params, grads, 0, 1)
    optimizer.state[params[0]]["step"].fill_(bad)
    before = params[0].clone()
    with pytest.raises(ValueError, match="parameter group 0"):
        optimizer.step()
    assert torch.equal(params[0], before)


def test_groups_added_later():
    params, grads = made([(3,), (4,)])
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours, truth = ct.AdamW(params[:1]), torch.optim.AdamW(twins[:1], foreach=False)
    for optimizer, own in ((ours, params), (truth, twins)):
        run(optimizer, own[:1], lambda k: grads(k)[:1], 0, 2)
        optimizer.add_param_group({"params": own[1], "lr": 0.1, "weight_decay": 0.0})
        run(optimizer, own, grads, 2, 5)
    close(params, twins)
    assert [ours.state[p]["step"].item() for p in params] == [5, 3]


# ---- states that a step finds again ----------------------------------------------------------------------------------


def replaced(optimizer, params):
    state = optimizer.state[params[1]]
    state["exp_avg"] = state["exp_avg"].clone()  # equal, but another tensor
    state["exp_avg_sq"] = 2 * state["exp_avg_sq"]


def replaced_step(optimizer, params):
    optimizer.state[params[1]]["step"] = optimizer.state[params[1]]["step"].clone()


def changed_in_place(optimizer, params):
    optimizer.state[params[1]]["exp_avg"].mul_(2)


def deleted(optimizer, params):
    del optimizer.state[params[1]]


def cleared(optimizer, params):
    optimizer.state.clear()


def swapped(optimizer, params):
    state = optimizer.state
    state[params[0]], state[params[1]] = state[params[1]], state[params[0]]


def copied_dicts(optimizer, params):
    kept = [optimizer.state[p] for p in params]
    for p, s in zip(params, kept, strict=True):
        optimizer.state[p] = dict(s)
    kept[0]["exp_avg"] = None  # nobody's any more


def reloaded(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def reordered(optimizer, params):
    optimizer.param_groups[0]["params"].reverse()


def group_added(optimizer, params):
    params.append(torch.nn.Parameter(torch.full((3, 4), 0.5, dtype=torch.float64)))
    optimizer.add_param_group({"params": params[-1], "lr": 0.3})


def group_split(optimizer, params):
    optimizer.param_groups[0]["params"].remove(params[0])
    state = optimizer.state.pop(params[0])
    optimizer.add_param_group({"params": params[0], "lr": 0.3})
    optimizer.state[params[0]] = state


def parameter_exchanged(optimizer, params):
    """As Gaussian splatting does when it adds or removes points."""
    new = torch.nn.Parameter(params[1].detach() + 1)
    optimizer.state[new] = optimizer.state.pop(params[1])
    optimizer.param_groups[0]["params"][1] = params[1] = new


def key_exchanged(optimizer, params):
    optimizer.state[torch.nn.Parameter(torch.zeros(1))] = optimizer.state.pop(params[2])


def data_reassigned(optimizer, params):
    for p in params:
        p.data = p.data.clone() + 1


def strides_reassigned(optimizer, params):
    params[2].data = params[2].data.t().contiguous().t()


def shared(optimizer, params):
    optimizer.state[params[0]]["exp_avg"].share_memory_()


def amsgrad_switched_on(optimizer, params):
    optimizer.param_groups[0]["amsgrad"] = True
    for p in params:
        optimizer.state[p]["max_exp_avg_sq"] = torch.zeros_like(p)


def tensors_of_its_own(optimizer, params):
    for p in params:
        for key in ("exp_avg", "exp_avg_sq"):
            optimizer.state[p][key] = optimizer.state[p][key].clone()


EVENTS = [
    replaced,
    replaced_step,
    changed_in_place,
    deleted,
    cleared,
    swapped,
    copied_dicts,
    reloaded,
    reordered,
    group_added,
    group_split,
    parameter_exchanged,
    key_exchanged,
    data_reassigned,
    strides_reassigned,
    shared,
    amsgrad_switched_on,
    tensors_of_its_own,
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.__name__)
def test_what_happens_between_steps_is_noticed(event):
    # Of one element and equal, so that only identity tells their states apart.
    params, _ = made([(1,), (1,), (3, 4), (5,)])
    params[1].data.copy_(params[0].data)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours, truth = ct.AdamW(params, lr=0.1), torch.optim.AdamW(twins, lr=0.1, foreach=False)

    def steps(start, stop):
        for k in range(start, stop):
            g = torch.Generator().manual_seed(k)
            for own, optimizer in ((params, ours), (twins, truth)):
                x = torch.rand(12, generator=g.manual_seed(k), dtype=torch.float64)
                for p in own:
                    p.grad = x[: p.numel()].view(p.shape).clone()
                optimizer.step()

    for turn in range(2):
        if turn == 0 or event not in (group_split, key_exchanged):
            steps(4 * turn, 4 * turn + 4)
            event(ours, params)
            with torch.no_grad():
                event(truth, twins)
    steps(8, 12)
    close(params, twins)
    for p, q in zip(params, twins, strict=True):
        assert ours.state[p]["step"].item() == truth.state[q]["step"].item()
        close([ours.state[p]["exp_avg"]], [truth.state[q]["exp_avg"]])


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_steps_without_some_gradients(name):
    params, grads = made([(5,), (6,), (7,)])
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    options = {"momentum": 0.9} if name == "SGD" else {}
    ours, truth = getattr(ct, name)(params, **options), CLASSES[name](twins, foreach=False, **options)
    for k in range(15):
        for optimizer, own in ((ours, params), (truth, twins)):
            for i, (p, g) in enumerate(zip(own, grads(k), strict=True)):
                p.grad = None if i == 1 and 4 <= k < 9 else g
            optimizer.step()
    close(params, twins)


def test_states_are_aligned_views_of_one_buffer_per_key():
    shapes = [(3,), (2, 3, 4, 5), (), (0,), (17,)]
    params, grads = made(shapes, torch.float32)
    params[1].data = params[1].data.contiguous(memory_format=torch.channels_last)
    optimizer = ct.Adam(params, amsgrad=True)
    run(optimizer, params, grads, 0, 1)
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        states = [optimizer.state[p][key] for p in params]
        assert len({s.untyped_storage().data_ptr() for s in states}) == 1
        assert all(s.data_ptr() % 64 == 0 and s.stride() == p.stride() for s, p in zip(states, params, strict=True))
        versions = [s._version for s in states]
        run(optimizer, params, grads, 1, 4)
        assert all(s._version >= v + 3 for s, v in zip(states, versions, strict=True))


def test_a_step_reads_no_state_again():
    params, grads = made([(5,), (6,)])
    optimizer = ct.AdamW(params)
    run(optimizer, params, grads, 0, 2)
    found = optimizer._last.found[0]
    run(optimizer, params, grads, 2, 5)
    assert optimizer._last.found[0] is found
    assert all(a is optimizer.state[p]["exp_avg"] for a, p in zip(found.columns[0], params, strict=True))


def test_a_skipped_or_refused_step_leaves_nothing_to_find():
    params, grads = made([(5,), (6,)])
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours, truth = ct.Adam(params[:1], skip_nonfinite=True), torch.optim.Adam(twins[:1], foreach=False)
    for optimizer, own in ((ours, params), (truth, twins)):
        run(optimizer, own[:1], lambda k: grads(k)[:1], 0, 3)
        optimizer.add_param_group({"params": own[1:]})
    for p in params:
        p.grad = torch.full_like(p, float("nan"))
    ours.step()
    ours.step()
    assert params[1] not in ours.state
    for p in params:
        p.grad = torch.ones_like(p)
    ours.param_groups[1]["lr"] = -1.0
    refused(ours, ValueError, "'lr'")
    ours.param_groups[1]["lr"] = 1e-3
    run(ours, params, grads, 3, 6)
    run(truth, twins, grads, 3, 6)
    close(params, twins)


@pytest.mark.parametrize("n", [1, 200])
def test_states_given_other_memory_through_data_are_refused(n):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(n)]
    optimizer = ct.Adam([(f"weight{i}", p) for i, p in enumerate(params)])
    for p in params:
        p.grad = torch.ones(3)
    for _ in range(3):
        optimizer.step()
    state = optimizer.state[params[n // 2]]
    state["exp_avg_sq"].data = torch.zeros(3)
    with pytest.raises(RuntimeError, match=rf"'exp_avg_sq' of parameter 'weight{n // 2}'.*optimizer\.state\[p\]"):
        any(map(optimizer.step, [None] * 64))
    state["exp_avg_sq"] = torch.zeros(3)
    optimizer.step()
    assert state["exp_avg_sq"].max() > 0


def test_a_saved_state_is_as_large_as_its_tensors():
    params = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(40)]
    for p in params:
        p.grad = torch.ones(1000)
    optimizer, theirs = ct.AdamW(params), torch.optim.AdamW(params)
    optimizer.step()
    theirs.step()
    for kept in (40, 30, 3, 1):
        for p in params[kept:]:
            optimizer.state.pop(p, None)
            theirs.state.pop(p, None)
        mine, other = io.BytesIO(), io.BytesIO()
        torch.save(optimizer.state_dict(), mine)
        torch.save(theirs.state_dict(), other)
        assert len(mine.getvalue()) < (1.05 if kept == 40 else 1.5) * len(other.getvalue())
        assert len(pickle.dumps(optimizer)) < 1.1 * len(pickle.dumps(theirs))
        mine.seek(0)
        theirs.load_state_dict(torch.load(mine))
        optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(theirs.state[params[0]]["exp_avg"], optimizer.state[params[0]]["exp_avg"])
    twin = copy.deepcopy(optimizer)
    state = next(iter(twin.state.values()))
    assert state["exp_avg"].untyped_storage().nbytes() == 4000


# ---- state dicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_group_and_state_keys_are_torchs(name, options):
    params, grads = made([(3,)])
    ours, theirs = getattr(ct, name)(params, **options), CLASSES[name](params, **options)
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])
    assert ours.defaults == theirs.defaults
    run(ours, params, grads, 0, 1)
    run(theirs, params, grads, 0, 1)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert {k: set(v) for k, v in mine["state"].items()} == {k: set(v) for k, v in other["state"].items()}
    assert mine["param_groups"] == other["param_groups"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_state_dicts_go_both_ways(name, options, dtype):
    params, grads = made(SHAPES, dtype)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours, theirs = getattr(ct, name)(params, **options), CLASSES[name](twins, foreach=False, **options)
    for turn in range(4):  # each optimizer goes on with what the other one left
        start = 3 * turn
        run(ours, params, grads, start, start + 3)
        run(theirs, twins, grads, start, start + 3)
        mine, other = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
        ours.load_state_dict(other)
        theirs.load_state_dict(mine)
    close(params, [q.double() for q in twins], dtype)
    for p, q in zip(params, twins, strict=True):
        assert ours.state.get(p, {}).keys() == theirs.state.get(q, {}).keys()
        if "step" in ours.state.get(p, {}):
            assert ours.state[p]["step"].item() == theirs.state[q]["step"].item() == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_loading_keeps_every_bit_of_the_state(dtype):
    params, grads = made([(33,), (2, 3, 4, 5)], dtype)
    optimizer = ct.Adam(params, amsgrad=True)
    run(optimizer, params, grads, 0, 5)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = ct.Adam(twins, lr=7.0)
    resumed.load_state_dict(torch.load(saved))
    run(optimizer, params, grads, 5, 9)
    run(resumed, twins, grads, 5, 9)
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(p, q)
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, resumed.state[q][key])
            assert value.dtype == resumed.state[q][key].dtype


def test_torchs_16_bit_moments_are_taken_as_float32():
    params, grads = made([(33,)], torch.bfloat16)
    theirs = torch.optim.Adam(params, foreach=False)
    run(theirs, params, grads, 0, 3)
    ours = ct.Adam(params)
    ours.load_state_dict(theirs.state_dict())
    state = ours.state[params[0]]
    assert state["exp_avg"].dtype == torch.float32
    assert torch.equal(state["exp_avg"], theirs.state[params[0]]["exp_avg"].float())
    run(ours, params, grads, 3, 5)


def test_loaded_states_are_copies():
    params, grads = made([(5,)])
    first, second = ct.Adam(params), ct.Adam(params)
    run(first, params, grads, 0, 1)
    saved = first.state_dict()
    second.load_state_dict(saved)
    kept = second.state[params[0]]["exp_avg"].clone()
    run(first, params, grads, 1, 2)
    assert torch.equal(second.state[params[0]]["exp_avg"], kept)
    assert saved["state"][0]["step"].item() == 1
    assert saved["state"][0]["step"].untyped_storage().nbytes() == 4


def test_load_hooks_see_and_change_what_is_loaded():
    params, grads = made([(5,)], torch.bfloat16)
    optimizer = ct.Adam(params)
    run(optimizer, params, grads, 0, 1)
    saved = optimizer.state_dict()
    fresh = ct.Adam(params)

    def double(_, state_dict):
        states = {k: {**s, "exp_avg": 2 * s["exp_avg"]} for k, s in state_dict["state"].items()}
        return {**state_dict, "state": states}

    seen = []
    fresh.register_load_state_dict_pre_hook(double)
    fresh.register_load_state_dict_post_hook(lambda o: seen.append(o.state[params[0]]["exp_avg"].dtype))
    fresh.load_state_dict(saved)
    assert seen == [torch.float32]
    assert torch.equal(fresh.state[params[0]]["exp_avg"], 2 * saved["state"][0]["exp_avg"])
    assert len(fresh._optimizer_load_state_dict_pre_hooks) == len(fresh._optimizer_load_state_dict_post_hooks) == 1


def test_foreign_state_dicts_are_refused_and_nothing_changes():
    params, grads = made([(5,), (6,)])
    optimizer = ct.Adam(params, lr=0.25)
    run(optimizer, params, grads, 0, 1)
    good = optimizer.state_dict()
    sgd = ct.SGD(params, momentum=0.9)
    run(sgd, params, grads, 0, 1)
    swapped = copy.deepcopy(good)
    swapped["state"] = {0: good["state"][1], 1: good["state"][0]}
    negative = copy.deepcopy(good)
    negative["param_groups"][0]["lr"] = -1.0
    differentiable = copy.deepcopy(good)
    differentiable["param_groups"][0]["differentiable"] = True
    mixed = copy.deepcopy(good)
    mixed["state"][0] = sgd.state_dict()["state"][0]
    short = copy.deepcopy(good)
    short["param_groups"][0]["params"] = [0]
    want = copy.deepcopy(good)
    for bad, error, text in [
        (sgd.state_dict(), ValueError, "another optimizer"),
        (mixed, ValueError, "another optimizer"),
        (swapped, ValueError, "shape"),
        (negative, ValueError, "'lr'"),
        (differentiable, NotImplementedError, "differentiable"),
        (short, ValueError, "size"),
        ([1, 2], TypeError, "param_groups"),
        ({"state": {}}, TypeError, "param_groups"),
    ]:
        with pytest.raises(error, match=text):
            optimizer.load_state_dict(bad)
        now = optimizer.state_dict()
        assert now["param_groups"] == want["param_groups"]
        for key in (0, 1):
            for name, value in want["state"][key].items():
                assert torch.equal(now["state"][key][name], value)
    with pytest.raises(ValueError, match="another optimizer"):
        sgd.load_state_dict(good)


def test_old_and_cuda_state_dicts():
    params, grads = made([(5,)])
    optimizer = ct.Adam(params)
    run(optimizer, params, grads, 0, 3)
    old = optimizer.state_dict()
    for key in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay", "amsgrad"):
        del old["param_groups"][0][key]
    old["state"][0]["step"] = 3  # a number until torch 1.12
    fresh = ct.Adam(params)
    fresh.load_state_dict(old)
    run(fresh, params, grads, 3, 4)
    assert fresh.state[params[0]]["step"].item() == 4
    graph = optimizer.state_dict()
    graph["param_groups"][0].update(capturable=True, fused=True)
    fresh.load_state_dict(graph)
    run(fresh, params, grads, 3, 4)
    assert fresh.param_groups[0]["capturable"] is False
    momentumless = torch.optim.SGD(params).state_dict()
    momentumless["state"][0] = {"momentum_buffer": None}  # torch 1.x
    sgd = ct.SGD(params, momentum=0.9)
    sgd.load_state_dict(momentumless)
    sgd.param_groups[0]["momentum"] = 0.9
    run(sgd, params, grads, 0, 1)
    assert torch.equal(sgd.state[params[0]]["momentum_buffer"], grads(0)[0])


def test_adams_state_dict_in_adamw_decays_decoupled():
    params, _ = made([(5,)])
    optimizer = ct.AdamW(params)
    optimizer.load_state_dict(ct.Adam(params).state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "AdamZ"])
def test_copies_continue_alike(name, copied):
    params, grads = made([(5,), (2, 3)])
    options = {"momentum": 0.9} if name == "SGD" else {}
    if name == "AdamZ":
        options = {"patience": 3, "stagnation_period": 2}
    optimizer = getattr(ct, name)(params, max_grad_norm=2.0, **options)
    run(optimizer, params, grads, 0, 3)
    for k in range(4 if name == "AdamZ" else 0):
        optimizer.report_loss(float(k))
    twin = copied(optimizer)
    twins = [p for group in twin.param_groups for p in group["params"]]
    for k in (4.0, 2.0) if name == "AdamZ" else ():
        optimizer.report_loss(k)
        twin.report_loss(k)
    run(optimizer, params, grads, 3, 6)
    run(twin, twins, grads, 3, 6)
    assert twin.max_grad_norm == 2.0
    assert twin.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    for p, q in zip(params, twins, strict=True):
        assert p is not q
        assert torch.equal(p, q)


def test_a_pickle_does_not_repeat_the_vector_of_steps():
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(400)]
    optimizer = ct.Adam(params)
    for p in params:
        p.grad = torch.ones(1)
    optimizer.step()
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    theirs = torch.optim.Adam(params)
    theirs.step()
    other = io.BytesIO()
    torch.save(theirs.state_dict(), other)
    assert len(saved.getvalue()) < 1.1 * len(other.getvalue())
    assert len(pickle.dumps(optimizer)) < 1.3 * len(pickle.dumps(theirs))


# ---- torch's other machinery -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [False, True])
def test_schedulers(tensor, model):
    lr = torch.tensor(0.1) if tensor else 0.1
    optimizer = ct.SGD(model.parameters(), lr=lr)
    schedulers = torch.optim.lr_scheduler
    warmup = schedulers.LinearLR(optimizer, 0.5, 1.0, total_iters=2)
    scheduler = schedulers.SequentialLR(optimizer, [warmup, schedulers.ExponentialLR(optimizer, 0.5)], milestones=[2])
    p = next(model.parameters())
    for want in (0.05, 0.075, 0.1, 0.05):
        backward(model)
        before = p.detach().clone()
        optimizer.step()
        torch.testing.assert_close(before - p.detach(), want * p.grad, rtol=1e-4, atol=1e-7)
        scheduler.step()
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == tensor


def test_hyper_parameters_as_tensors():
    params, grads = made([(5,)])
    twins, _ = made([(5,)])
    tensors = ct.Adam(params, lr=torch.tensor([0.1]), betas=(torch.tensor(0.5), torch.tensor([0.75])))
    numbers = ct.Adam(twins, lr=float(torch.tensor(0.1)), betas=(0.5, 0.75))
    run(tensors, params, grads, 0, 3)
    run(numbers, twins, grads, 0, 3)
    assert torch.equal(params[0], twins[0])


def test_closures_run_with_gradients_and_return_the_loss(model):
    optimizer = ct.Adam(model.parameters())
    with torch.no_grad():
        loss = optimizer.step(lambda: backward(model))
    assert isinstance(loss, torch.Tensor)
    assert loss.requires_grad
    assert optimizer.step(closure=lambda: 3.5) == 3.5


def test_step_hooks(model):
    calls = []
    optimizer = ct.AdamW(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    try:
        backward(model)
        optimizer.step()
    finally:
        handle.remove()
    assert calls == ["pre", "post", "global"]


def test_names_are_kept(model):
    optimizer = ct.SGD(model.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]
    twin = ct.SGD(model.named_parameters(), lr=0.2)
    twin.load_state_dict(optimizer.state_dict())
    assert twin.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_grad_scaler(name, unscale):
    torch.manual_seed(0)
    options = {"momentum": 0.9} if name == "SGD" else {}
    p = torch.nn.Parameter(torch.randn(6))
    q = torch.nn.Parameter(p.detach().double())
    ours, truth = getattr(ct, name)([p], lr=0.1, **options), CLASSES[name]([q], lr=0.1, foreach=False, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    for k in range(6):
        c = torch.randn(6)
        ours.zero_grad()
        truth.zero_grad()
        loss = (p * c).sum()
        scaler.scale(loss * float("inf") if k == 2 else loss).backward()
        if unscale:
            scaler.unscale_(ours)
        before = p.detach().clone()
        scaler.step(ours)
        scaler.update()
        if k == 2:
            assert torch.equal(p, before)
        else:
            q.grad = c.double()
            truth.step()
    close([p], [q])
    steps = ours.state[p].get("step")
    assert steps is None or steps.item() == 5
    assert not hasattr(ours, "grad_scale")


def test_writes_are_noticed_by_autograd():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ct.Adam([p])
    p.grad = torch.ones(3)
    y = (p * p).sum()  # saves p
    version = p._version
    optimizer.step()
    assert p._version > version
    assert optimizer.state[p]["exp_avg"]._version > 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    c = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    c.grad = torch.ones(3, dtype=torch.complex64)
    ct.SGD([c]).step()
    assert c._version > 0


def test_inference_mode_and_no_grad():
    params, grads = made([(5,)])
    twins, _ = made([(5,)])
    ours, twin = ct.Adam(params), ct.Adam(twins)
    with torch.inference_mode():
        run(ours, params, grads, 0, 1)
    with torch.no_grad():
        run(ours, params, grads, 1, 2)
    run(ours, params, grads, 2, 3)
    run(twin, twins, grads, 0, 3)
    assert torch.equal(params[0], twins[0])
    assert not ours.state[params[0]]["exp_avg"].is_inference()
    assert not ours.state[params[0]]["step"].is_inference()
    ours.state[params[0]]["step"] += 1  # stays an ordinary tensor


def test_compiled_training_loop_falls_back_to_eager(model):
    optimizer = ct.AdamW(model.parameters())
    backward(model)
    before = next(model.parameters()).detach().clone()
    torch.compile(optimizer.step, backend="eager")()
    assert not torch.equal(before, next(model.parameters()))


def test_profiler_names_the_step(model):
    optimizer = ct.AdamW(model.parameters())
    backward(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        optimizer.step()
    assert "Optimizer.step#AdamW.step" in {e.key for e in profile.key_averages()}


# ---- clipping and skipping -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_clipping_is_torchs(name):
    params, grads = made([(5,), (2, 3), (7,)])
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    make = lambda cls, own, **o: cls([{"params": own[:2]}, {"params": own[2:], "lr": 0.2}], lr=0.1, **o)  # noqa: E731
    ours = make(getattr(ct, name), params, max_grad_norm=1.5)
    truth = make(CLASSES[name], twins, foreach=False)
    for k in range(6):
        scale = 0.1 if k % 2 else 3.0  # below and above the bound
        for p, q, g in zip(params, twins, grads(k), strict=True):
            p.grad, q.grad = g * scale, g * scale
        given_grads = [p.grad.clone() for p in params]
        torch.nn.utils.clip_grad_norm_(twins, 1.5)
        ours.step()
        truth.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, given_grads, strict=True))
    close(params, twins)


def test_clipping_after_unscaling():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = ct.SGD([p], lr=1.0, max_grad_norm=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale((p * torch.tensor([3.0, 4.0])).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(p.detach(), torch.tensor([-0.6, -0.8]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_nonfinite_gradients_skip_the_step(bad, clip):
    params, grads = made([(5,), (3,)], torch.float32)
    optimizer = ct.Adam(params, skip_nonfinite=True, max_grad_norm=clip)
    for p, g in zip(params, grads(0), strict=True):
        p.grad = g
    params[1].grad[2] = bad
    before = [p.detach().clone() for p in params]
    assert optimizer.step(lambda: 1.0) == 1.0
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not optimizer.state
    run(optimizer, params, grads, 1, 2)
    assert {s["step"].item() for s in optimizer.state.values()} == {1.0}


@pytest.mark.parametrize("clip", [None, 1.0])
def test_without_skipping_nonfinite_values_stay_where_they_are(clip):
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, float("nan"), 2.0])
    ct.SGD([p], lr=1.0, max_grad_norm=clip).step()
    assert p[0].item() == -1
    assert p[2].item() == -2
    assert p[1].isnan()


# ---- errors ----------------------------------------------------------------------------------------------------------

BAD_NUMBERS = [
    ("Adam", {"lr": -1.0}),
    ("Adam", {"lr": float("nan")}),
    ("Adam", {"lr": torch.tensor([1.0, 2.0])}),
    ("Adam", {"betas": (1.0, 0.9)}),
    ("Adam", {"betas": (0.9, -0.1)}),
    ("Adam", {"betas": (0.9,)}),
    ("AdamW", {"eps": -1e-8}),
    ("AdamW", {"weight_decay": -1.0}),
    ("SGD", {"momentum": -0.1}),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("SGD", {"max_grad_norm": 0.0}),
    ("SGD", {"max_grad_norm": float("nan")}),
    ("AdamZ", {"overshoot_factor": 1.5}),
    ("AdamZ", {"patience": 0}),
]


@pytest.mark.parametrize(("name", "options"), BAD_NUMBERS, ids=str)
def test_bad_numbers_are_refused_at_construction(name, options):
    key, value = next(iter(options.items()))
    match = "one element" if isinstance(value, torch.Tensor) else key.rstrip("s")  # 'betas' are beta1 and beta2
    with pytest.raises(ValueError, match=match):
        getattr(ct, name)([torch.nn.Parameter(torch.zeros(2))], **options)


def test_bad_numbers_of_a_group_are_refused_when_it_is_added():
    p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"parameter group 1.*'lr'"):
        ct.Adam([{"params": [p]}, {"params": [q], "lr": -1.0}])
    optimizer = ct.Adam([p])
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.add_param_group({"params": [q], "weight_decay": -1})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(TypeError, match="'lr'"):
        ct.Adam([p], lr="fast")


def test_unsupported_modes_say_so():
    with pytest.raises(NotImplementedError, match=r"differentiable.*torch\.optim\.AdamW"):
        ct.AdamW([torch.nn.Parameter(torch.zeros(2))], differentiable=True)


def test_torchs_own_checks_remain():
    with pytest.raises(ValueError, match="empty parameter list"):
        ct.Adam([])
    with pytest.raises(TypeError, match="iterable of Tensors"):
        ct.Adam(torch.zeros(3))
    with pytest.raises(ValueError, match="non-leaf"):
        ct.Adam([torch.zeros(3, requires_grad=True) * 2])
    with pytest.raises(TypeError, match="ordered"):
        ct.Adam([{"params": {torch.zeros(3)}}])


def refused(optimizer, error, match):
    """The step raises, and no parameter, state or count has changed."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    cpu = [p for p in params if p.device.type == "cpu"]
    before = [p.detach().clone() for p in cpu]
    states = copy.deepcopy({i: dict(optimizer.state[p]) for i, p in enumerate(params) if p in optimizer.state})
    with pytest.raises(error, match=match):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(cpu, before, strict=True))
    for i, p in enumerate(params):
        assert optimizer.state.get(p, {}).keys() == states.get(i, {}).keys()
        assert all(torch.equal(optimizer.state[p][k], v) for k, v in states.get(i, {}).items())


@pytest.fixture
def two_groups():
    params, grads = made([(5,), (6,)], torch.float32)
    optimizer = ct.AdamW([{"params": [("weight", params[0])]}, {"params": [("bias", params[1])]}])
    run(optimizer, params, grads, 0, 1)
    return optimizer, params


def test_a_bad_number_in_the_second_group_updates_nothing(two_groups):
    optimizer, _ = two_groups
    optimizer.param_groups[1]["lr"] = -1.0
    refused(optimizer, ValueError, r"curvk\.torch\.AdamW, parameter group 1.*'lr'")
    optimizer.param_groups[1]["lr"] = torch.zeros(2)
    refused(optimizer, ValueError, "one element")


def test_sparse_gradients_are_refused():
    layer = torch.nn.Embedding(5, 3, sparse=True)
    layer(torch.tensor([1, 2])).sum().backward()
    optimizer = ct.Adam(layer.named_parameters())
    refused(optimizer, TypeError, r"gradient of parameter 'weight' is sparse.*SparseAdam")


def test_gradients_that_do_not_fit(two_groups):
    optimizer, (_, p) = two_groups
    p.data = p.data.double()  # the gradient stays float32
    refused(optimizer, TypeError, r"gradient of parameter 'bias' is torch\.float32, needs torch\.float64")
    p.data = torch.zeros(4)
    refused(optimizer, ValueError, r"gradient of parameter 'bias' has shape \(6,\), needs \(4,\)")
    p.grad = torch.zeros(4)
    refused(optimizer, ValueError, r"state 'exp_avg' of parameter 'bias' has shape \(6,\), needs \(4,\)")


def test_parameters_elsewhere_are_named():
    p = torch.nn.Parameter(torch.zeros(3, device="meta"))
    p.grad = torch.zeros(3, device="meta")
    optimizer = ct.Adam([torch.nn.Parameter(torch.zeros(2)), p])
    refused(optimizer, BufferError, r"parameter 1 of group 0 is on device meta.*model\.cpu")


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn], ids=str)
def test_dtypes_that_no_kernel_has(dtype):
    p = torch.zeros(3).to(dtype)
    p.grad = torch.zeros(3).to(dtype)
    refused(ct.SGD([p]), TypeError, f"parameter 0 of group 0 is {dtype}")


def test_parameters_that_share_memory_are_refused():
    p = torch.nn.Parameter(torch.zeros(4))
    q = torch.nn.Parameter(p.data)
    p.grad = q.grad = torch.ones(4)
    refused(ct.SGD([("a", p), ("b", q)]), ValueError, "parameter 'b': got memory shared with parameter 'a'")
    p.grad = p.data
    refused(ct.SGD([("a", p)]), ValueError, "gradient of parameter 'a': got memory shared with parameter 'a'")
    r = torch.zeros(1).expand(3).requires_grad_()
    r.grad = torch.ones(3)
    refused(ct.SGD([r]), ValueError, "may meet an element twice")


def test_tensor_subclasses_are_refused():
    class Own(torch.nn.Parameter):
        pass

    p = Own(torch.zeros(3))
    p.grad = torch.zeros(3)
    refused(ct.SGD([p]), TypeError, "parameter 0 of group 0: got Own")


# ---- AdamZ -----------------------------------------------------------------------------------------------------------


def test_adamz_without_a_loss_is_adam():
    params, grads = made(SHAPES, torch.float32)
    twins, _ = made(SHAPES, torch.float32)
    run(ct.AdamZ(params, lr=0.05, amsgrad=True, weight_decay=0.1), params, grads, 0, 6)
    run(ct.Adam(twins, lr=0.05, amsgrad=True, weight_decay=0.1), twins, grads, 0, 6)
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


@pytest.mark.parametrize("tensor", [False, True])
def test_adamz_on_a_constant_loss(tensor):
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    optimizer = ct.AdamZ([p], lr=torch.tensor(0.5) if tensor else 0.5, patience=10)
    for k in range(1, 16):
        optimizer.step(lambda: 3.0)
        want = 0.5 * 0.5 ** max(0, k - 9)  # ties with the maximum fire once the window is full
        assert float(optimizer.param_groups[0]["lr"]) == want
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == tensor


def test_adamz_steps_with_the_new_lr_and_a_report_equals_a_closure():
    losses = np.random.default_rng(0).normal(size=40).tolist()
    params, grads = made([(4,)])
    twins, _ = made([(4,)])
    plain, _ = made([(4,)])
    options = {"lr": 0.1, "patience": 5, "stagnation_period": 3}
    closure, report, adam = ct.AdamZ(params, **options), ct.AdamZ(twins, **options), ct.Adam(plain)
    lrs = set()
    for k, loss in enumerate(losses):
        params[0].grad, twins[0].grad, plain[0].grad = (grads(k)[0].clone() for _ in range(3))
        closure.step(lambda loss=loss: torch.tensor(loss, dtype=torch.float64, requires_grad=True))
        report.report_loss(loss)
        report.step()
        adam.param_groups[0]["lr"] = closure.param_groups[0]["lr"]
        adam.step()
        lrs.add(closure.param_groups[0]["lr"])
    assert len(lrs) > 3
    assert torch.equal(params[0], twins[0])
    assert torch.equal(params[0], plain[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_adamz_follows_the_published_package():
    adamz = pytest.importorskip("adamz")
    losses = (2 + np.random.default_rng(1).normal(size=150)).tolist()
    params, grads = made([(4,), (3, 3)])
    twins, _ = made([(4,), (3, 3)])
    options = {"lr": 0.01, "patience": 20, "stagnation_period": 4, "stagnation_threshold": 0.4, "weight_decay": 0.01}
    ours, theirs = ct.AdamZ(params, **options), adamz.AdamZ(twins, **options)
    for k, loss in enumerate(losses):
        for p, q, g in zip(params, twins, grads(k), strict=True):
            p.grad, q.grad = g, g.clone()
        ours.step(lambda loss=loss: torch.tensor(loss))
        theirs.step(lambda loss=loss: torch.tensor(loss))
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
    close(params, twins)


def test_adamz_state_dict_carries_the_window():
    losses = np.random.default_rng(2).normal(size=60).tolist()
    params, grads = made([(4,)])
    optimizer = ct.AdamZ(params, lr=0.1, patience=6, stagnation_period=3)
    for k, loss in enumerate(losses[:30]):
        params[0].grad = grads(k)[0]
        optimizer.step(lambda loss=loss: loss)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    twins = [torch.nn.Parameter(params[0].detach().clone())]
    resumed = ct.AdamZ(twins)
    resumed.load_state_dict(torch.load(saved))
    for k, loss in enumerate(losses[30:]):
        params[0].grad, twins[0].grad = grads(k)[0], grads(k)[0]
        optimizer.step(lambda loss=loss: loss)
        resumed.step(lambda loss=loss: loss)
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert torch.equal(params[0], twins[0])
    torch.optim.Adam(twins).load_state_dict(optimizer.state_dict())  # takes it, without the window
    resumed.load_state_dict(torch.optim.Adam(twins).state_dict())
    assert resumed.loss_lr.state_dict()["stored"] == 60


def test_adamz_refused_and_skipped_steps_have_not_seen_the_loss():
    params, _ = made([(4,)])
    optimizer = ct.AdamZ(params, skip_nonfinite=True, patience=1)
    params[0].grad = torch.full((4,), float("nan"), dtype=torch.float64)
    optimizer.step(lambda: 1.0)
    params[0].data = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="gradient"):
        optimizer.step(lambda: 1.0)
    assert optimizer.loss_lr.state_dict()["stored"] == 0
    assert optimizer.param_groups[0]["lr"] == 1e-3
    with pytest.raises(ValueError, match="one element"):
        optimizer.report_loss(torch.zeros(2))
    before = optimizer.state_dict()
    bad = optimizer.state_dict()
    bad["loss_lr"]["stored"] = 5
    bad["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match="'lr'"):
        optimizer.load_state_dict(bad)
    assert optimizer.state_dict()["loss_lr"]["stored"] == before["loss_lr"]["stored"]


# ---- import ----------------------------------------------------------------------------------------------------------


def test_import_of_curvk_does_not_import_torch():
    code = "import curvk, sys; assert 'torch' not in sys.modules; curvk.torch.AdamW; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_the_remedy_is_named():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import curvk.torch\n"
        "except ImportError as error:\n    assert 'curvk[torch]' in str(error), error\n"
        "else:\n    raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_warning_on_the_usual_path(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = ct.AdamW(model.parameters(), max_grad_norm=1.0, skip_nonfinite=True)
        for _ in range(2):
            backward(model)
            optimizer.step()
