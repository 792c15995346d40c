"""curvk.torch against torch.optim in float64, and the contract of torch.optim.Optimizer."""

from __future__ import annotations

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch_models import CASES, CLASSES, SHAPES, TOLERANCE, WIDE, close, made, run  # noqa: E402


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


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
