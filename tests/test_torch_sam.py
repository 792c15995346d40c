"""curvk.torch.SAM: the published codes, exact restoring, memory, skipped steps, phases, BatchNorm, errors."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import signal
import sys
import threading

import pytest

torch = pytest.importorskip("torch")

import curvk  # noqa: E402
import curvk.torch as ct  # noqa: E402
import curvk.torch._sam as sam_module  # noqa: E402
import numpy as np  # noqa: E402
from sam_models import SEED, backward, batch, close, closure_for, loss_of, net, same, sgd_sam, weights  # noqa: E402
from torch import nn  # noqa: E402

BASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamZ", {"lr": 0.01, "patience": 2}),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


# ---- published codes ------------------------------------------------------------------------------------------------


class Davda54(torch.optim.Optimizer):
    """The order of operations of github.com/davda54/sam."""

    def __init__(self, params, base, rho, adaptive, **options):
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **options})
        self.base = base(self.param_groups, **options)

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        norms = [
            ((p.abs() if g["adaptive"] else 1.0) * p.grad).norm(p=2) for g in self.param_groups for p in g["params"]
        ]
        norm = torch.stack(norms).norm(p=2)
        for g in self.param_groups:
            for p in g["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_((p.pow(2) if g["adaptive"] else 1.0) * p.grad * (g["rho"] / (norm + 1e-12)))
        with torch.enable_grad():
            closure()
        for g in self.param_groups:
            for p in g["params"]:
                p.data = self.state[p]["old"]
        self.base.step()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("name", "peer"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_follows_davda54(name, peer, adaptive):
    ours, theirs = net(), net(torch.float64)
    theirs.load_state_dict(ours.state_dict())
    options = {"lr": 0.02} | ({"momentum": 0.9} if name == "SGD" else {})
    sam = ct.SAM(getattr(ct, name)(ours.parameters(), **options), rho=0.3, adaptive=adaptive)
    published = Davda54(theirs.parameters(), peer, 0.3, adaptive, **options)
    for k in range(15):
        sam.step(closure_for(sam, ours, k))
        published.step(closure_for(published, theirs, k))
    close(ours, theirs, 2e-5)


def test_follows_the_asam_of_its_authors():
    """SamsungLabs/ASAM: T = abs(w) + eta where the name says weight, else 1; restored by subtraction."""
    ours, theirs = net(torch.float64), net(torch.float64)
    named = list(ours.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if "weight" in n]},
        {"params": [(n, p) for n, p in named if "weight" not in n], "adaptive": False},
    ]
    sam = ct.SAM(ct.SGD(groups, lr=0.02, momentum=0.9), rho=0.5, adaptive=True, eta=0.01)
    inner = torch.optim.SGD(theirs.parameters(), lr=0.02, momentum=0.9)
    for k in range(15):
        sam.step(closure_for(sam, ours, k))
        inner.zero_grad()
        backward(theirs, k)
        with torch.no_grad():
            size, norms = {}, []
            for n, p in theirs.named_parameters():
                size[n] = p.abs().add_(0.01) if "weight" in n else torch.ones_like(p)
                p.grad.mul_(size[n])
                norms.append(p.grad.norm(p=2))
            norm = torch.stack(norms).norm(p=2) + 1e-16
            eps = {n: size[n] * p.grad * (0.5 / norm) for n, p in theirs.named_parameters()}
            for n, p in theirs.named_parameters():
                p.add_(eps[n])
        inner.zero_grad()
        backward(theirs, k)
        with torch.no_grad():
            for n, p in theirs.named_parameters():
                p.sub_(eps[n])
        inner.step()
    close(ours, theirs, 1e-9)


def test_step_on_a_quadratic_and_rho_per_group():
    h = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    a, b = (nn.Parameter(torch.tensor([x], dtype=torch.float64)) for x in (0.7, -1.1))
    sam = ct.SAM(ct.SGD([{"params": [a]}, {"params": [b], "rho": 0.2}], lr=0.1), rho=0.4)

    def closure():
        sam.zero_grad()
        w = torch.cat([a, b])
        loss = w @ h @ w / 2
        loss.backward()
        return loss

    w = np.array([0.7, -1.1])
    g = h.numpy() @ w
    away = w + np.array([0.4, 0.2]) * g / np.linalg.norm(g)
    assert sam.step(closure).item() == pytest.approx(w @ g / 2)
    np.testing.assert_allclose([a.item(), b.item()], w - 0.1 * h.numpy() @ away, rtol=1e-11)


# ---- bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), BASES, ids=str)
def test_without_distance_it_is_the_base(name, options):
    model, twin = net(), net()
    sam = ct.SAM(getattr(ct, name)(model.parameters(), **options), rho=0.0)
    alone = getattr(ct, name)(twin.parameters(), **options)
    for k in range(5):
        assert torch.equal(sam.step(closure_for(sam, model, k)), alone.step(closure_for(alone, twin, k)))
        assert same(model, twin)
    assert [g["lr"] for g in sam.param_groups] == [g["lr"] for g in alone.param_groups]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_restore_gives_every_bit_back(dtype, adaptive):
    model = net(dtype)
    before = weights(model)
    sam = sgd_sam(model, adaptive=adaptive)
    backward(model)
    assert sam.perturb_()
    assert not same(model, before)
    assert [p.grad for p in model.parameters()] == [None] * 4
    sam.restore_()
    assert same(model, before)
    sam.restore_()
    assert same(model, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "options"), BASES, ids=str)
def test_step_is_the_base_from_the_old_weights(name, options, dtype):
    model, twin = net(dtype), net(dtype)
    sam = ct.SAM(getattr(ct, name)(model.parameters(), **options), rho=0.5)
    alone = getattr(ct, name)(twin.parameters(), **options)
    for k in range(4):
        sam.zero_grad()
        backward(model, k)
        assert sam.perturb_()
        backward(model, k)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.clone()
        assert sam.restore_and_step()
        alone.step()
        assert same(model, twin)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert sam.state[p].keys() == alone.state[q].keys()
        assert all(torch.equal(x, alone.state[q][k]) for k, x in sam.state[p].items())


def test_complex_and_mixed_dtypes_in_one_norm():
    z = nn.Parameter(torch.tensor([1.0 + 2.0j, -0.5j]))
    w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    before = [z.detach().clone(), w.detach().clone()]
    sam = ct.SAM(ct.SGD([z, w], lr=0.1), rho=0.5)
    z.grad, w.grad = torch.tensor([3.0 + 0.0j, 0.0j]), torch.tensor([4.0], dtype=torch.float64)
    assert sam.perturb_()
    torch.testing.assert_close(z.detach(), before[0] + torch.tensor([0.3 + 0j, 0j]))
    torch.testing.assert_close(w.detach(), before[1] + 0.4)
    z.grad, w.grad = torch.tensor([1.0j, 0.0j]), torch.tensor([1.0], dtype=torch.float64)
    assert sam.restore_and_step()
    torch.testing.assert_close(z.detach(), before[0] - torch.tensor([0.1j, 0j]))
    torch.testing.assert_close(w.detach(), before[1] - 0.1)
    sam.param_groups[0]["adaptive"] = True
    with pytest.raises(TypeError, match="argument 'adaptive': got complex parameters in group 0"):
        sam.perturb_()


def test_channels_last_and_transposed_parameters():
    torch.manual_seed(SEED)
    models = [nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].to(memory_format=torch.channels_last)
    models[1][2].weight.data = models[1][2].weight.data.t().contiguous().t()
    x = torch.randn(4, 3, 4, 4)
    for model in models:
        sam = ct.SAM(ct.AdamW(model.parameters(), lr=0.01), rho=0.5, adaptive=True)
        for _ in range(3):
            for _ in range(2):
                model(x).square().sum().backward()
                sam.restore_and_step() if sam._saved else sam.perturb_()
            sam.zero_grad()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-4, atol=1e-5)


def test_autograd_notices_the_writes():
    model = net()
    sam = sgd_sam(model)
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    sam.perturb_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    sam.restore_()


# ---- the first gradients' memory ------------------------------------------------------------------------------------


def test_old_weights_take_the_memory_of_the_gradients():
    model = net()
    sam = sgd_sam(model)
    backward(model)
    places = [p.grad.data_ptr() for p in model.parameters()]
    before = weights(model)
    sam.perturb_()
    assert [old.data_ptr() for _, old in sam._saved.values()] == places
    assert same([old for _, old in sam._saved.values()], before)


def holds_list(model):
    return [p.grad for p in model.parameters()]


def holds_views(model):
    return [p.grad.view(-1) for p in model.parameters()]


def holds_detached(model):
    return [p.grad.detach() for p in model.parameters()]


def holds_numpy(model):
    return [torch.from_numpy(p.grad.numpy()) for p in model.parameters()]


def holds_dlpack(model):
    return [torch.from_dlpack(p.grad.__dlpack__()) for p in model.parameters()]


def is_numpy(model):
    arrays = [p.grad.numpy().copy() for p in model.parameters()]
    for p, a in zip(model.parameters(), arrays, strict=True):
        p.grad = torch.from_numpy(a)
    return [torch.from_numpy(a) for a in arrays]


def is_bucket(model):
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    parts = flat.split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.grad = part.view_as(p)
    return [flat]


def is_transposed(model):
    for p in model.parameters():
        p.grad = p.grad.t().contiguous().t()
    return []


def is_expanded(model):
    for p in model.parameters():
        p.grad = torch.full((1,), 0.25).expand_as(p)
    return holds_list(model)


@pytest.mark.parametrize(
    "hold",
    [
        holds_list,
        holds_views,
        holds_detached,
        holds_numpy,
        holds_dlpack,
        is_numpy,
        is_bucket,
        is_transposed,
        is_expanded,
    ],
)
def test_gradients_that_others_hold_are_left_alone(hold):
    model = net()
    sam = sgd_sam(model)
    backward(model)
    held = hold(model)
    kept = [x.clone() for x in held]
    before = weights(model)
    g = [p.grad.clone() for p in model.parameters()]
    norm = torch.cat([x.flatten() for x in g]).double().norm().item()
    assert sam.perturb_()
    for p, old, x in zip(model.parameters(), before, g, strict=True):
        torch.testing.assert_close(p.detach(), old + 0.5 / norm * x)
    assert same(held, kept)
    for x in held:
        if hold is not is_expanded:
            x.fill_(7.0)  # what an owner of gradient buffers may do
    sam.restore_()
    assert same(model, before)


def test_gradient_that_only_a_dlpack_capsule_or_a_graph_holds():
    p, q = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    p.grad = torch.ones(2)
    capsule = p.grad.__dlpack__()
    sam = ct.SAM(ct.SGD([p], lr=0.1), rho=0.5)
    assert sam.perturb_()
    assert torch.equal(torch.from_dlpack(capsule), torch.ones(2))
    sam.restore_()
    p.grad = torch.ones(2)
    loss = (p.grad * q).sum()  # saves p.grad for its backward
    assert sam.perturb_()
    loss.backward()
    assert torch.equal(q.grad, torch.ones(2))
    sam.restore_()


def test_one_tensor_as_the_gradient_of_two():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
    sam = ct.SAM(ct.SGD([a, b], lr=0.1), rho=1.0)
    a.grad = b.grad = torch.ones(3)
    assert sam.perturb_()
    torch.testing.assert_close(b.detach(), torch.full((3,), 6**-0.5))
    sam.restore_()
    assert same([a, b], [torch.ones(3), torch.zeros(3)])


def test_nothing_is_kept_between_steps():
    model = net()
    sam = ct.SAM(ct.AdamW(model.parameters()), rho=0.5)
    for k in range(3):
        sam.zero_grad()
        backward(model, k)
        sam.perturb_()
        backward(model, k)
        memory = [old.untyped_storage() for _, old in sam._saved.values()]
        memory += [p.grad.untyped_storage() for p in model.parameters()]
        sam.restore_and_step()
        sam.zero_grad()
        gc.collect()
        assert [torch._C._storage_Use_Count(m._cdata) for m in memory] == [1] * 8  # ours


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_is_two_gradients(run_python):
    code = """
import json, torch, curvk.torch as ct
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
n = 16 * 2**20
p = torch.nn.Parameter(torch.ones(n))
sam = ct.SAM(ct.AdamW([p]), rho=0.5)
def gradient(value):
    p.grad = torch.full((n,), value)
for turn in range(3):  # the last is measured
    sam.zero_grad()
    before = memory("VmRSS:")
    open("/proc/self/clear_refs", "w").write("5")
    gradient(1e-3)
    assert sam.perturb_()
    gradient(1e-3)
    assert sam.restore_and_step()
    peak = memory("VmHWM:")
    sam.zero_grad()
    after = memory("VmRSS:")
print(json.dumps([(peak - before) / (4 * n), (after - before) / (4 * n)]))
"""
    peak, after = json.loads(run_python(code).stdout)
    assert 1.9 < peak < 2.1
    assert abs(after) < 0.1


# ---- skipped steps and missing gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("adaptive", [False, True])
def test_first_gradient_not_finite(bad, adaptive):
    model = net()
    before = weights(model)
    sam = ct.SAM(ct.Adam(model.parameters()), rho=0.5, adaptive=adaptive)
    backward(model)
    model[0].weight.grad[1, 1] = bad
    flag = torch.zeros(())
    assert sam.perturb_(found_inf=flag) is False
    assert flag == 1
    assert same(model, before)
    sam.zero_grad()
    backward(model)
    assert sam.restore_and_step() is False
    assert same(model, before)
    assert (sam.steps, sam.skipped_steps, len(sam.state)) == (1, 1, 0)
    sam.zero_grad()
    backward(model)
    flag = torch.zeros(1)
    assert sam.perturb_(found_inf=flag)
    assert flag == 0
    backward(model)
    assert sam.restore_and_step(found_inf=flag)
    assert not same(model, before)


def test_found_inf_skips_in_either_pass():
    model = net()
    before = weights(model)
    sam = ct.SAM(ct.Adam(model.parameters()), rho=0.5)
    backward(model)
    assert sam.perturb_(found_inf=1.0) is False
    assert sam.restore_and_step() is False
    assert sam.perturb_()
    backward(model)
    assert sam.restore_and_step(found_inf=torch.ones(1)) is False
    assert same(model, before)
    assert (sam.steps, sam.skipped_steps) == (2, 2)


def test_closure_whose_loss_is_not_finite():
    model, seen = net(), []
    before = weights(model)
    sam = sgd_sam(model)

    def closure():
        sam.zero_grad()
        loss = loss_of(model) * float("nan")
        loss.backward()
        seen.append(1)
        return loss

    assert torch.isnan(sam.step(closure))
    assert same(model, before)
    assert (len(seen), sam.skipped_steps) == (1, 1)


def test_second_gradient_not_finite_and_a_base_that_skips():
    model = net()
    before = weights(model)
    sam = ct.SAM(ct.AdamW(model.parameters(), skip_nonfinite=True), rho=0.5)
    for turn in range(2):  # the base has completed a step before the second turn
        backward(model)
        assert sam.perturb_()
        backward(model)
        model[2].bias.grad[0] = float("inf")
        assert sam.restore_and_step() is False
        assert same(model, before)
        assert sam.skipped_steps == turn + 1
        sam.zero_grad()
        sam.step(closure_for(sam, model))
        before = weights(model)
        sam.zero_grad()


def test_missing_gradients():
    model, twin = net(), net()
    before = weights(model)
    sam, alone = sgd_sam(model), ct.SGD(twin.parameters(), lr=0.1)
    backward(model)
    model[2].weight.grad = None  # not perturbed, and stepped
    assert sam.perturb_()
    assert torch.equal(model[2].weight, before[2])
    backward(model)
    model[0].bias.grad = None  # perturbed, and not stepped
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    assert sam.restore_and_step()
    alone.step()
    assert torch.equal(model[0].bias, before[1])
    assert same(model, twin)
    sam.zero_grad()
    assert sam.perturb_()
    assert sam.restore_and_step()
    assert same(model, twin)


# ---- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, range(10)),
        ({"start": 8.75}, [9]),
        ({"end": 3}, range(3)),
        ({"start": 2, "end": 9, "every": 3}, [2, 5, 8]),
        ({"start": 10}, []),
    ],
    ids=str,
)
def test_phase(options, want):
    model = net()
    sam = sgd_sam(model, **options)
    for step in range(10):
        seen = []
        assert sam.active == (step in want)
        loss = sam.step(closure_for(sam, model, seen=seen))
        assert len(seen) == (2 if step in want else 1)
        assert loss.item() == seen[0]
    assert sam.steps == 10


def test_late_sam_is_the_base_before_the_switch():
    model, twin = net(), net()
    late, alone = ct.SAM(ct.Adam(model.parameters()), rho=0.5, start=3), ct.Adam(twin.parameters())
    for k in range(3):
        late.zero_grad()
        backward(model, k)
        assert late.perturb_() is False
        assert late.restore_and_step()
        alone.step(closure_for(alone, twin, k))
        assert same(model, twin)
    late.step(closure_for(late, model))
    alone.step(closure_for(alone, twin))
    assert not same(model, twin)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_reset_state_on_switch(name):
    """As published: SAM is another optimizer over the same parameters, whose buffers are still zero at the switch."""
    options = {"lr": 0.05} | ({"momentum": 0.9} if name == "SGD" else {})
    model, twin = net(), net()
    base = getattr(ct, name)
    sam = ct.SAM(base(model.parameters(), **options), rho=0.5, start=3, reset_state_on_switch=True)
    alone, later = base(twin.parameters(), **options), ct.SAM(base(twin.parameters(), **options), rho=0.5)
    for k in range(6):
        sam.step(closure_for(sam, model, k))
        other = alone if k < 3 else later
        other.step(closure_for(other, twin, k))
        assert same(model, twin)


# ---- BatchNorm, dropout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_running_statistics_see_one_pass(split):
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    once = copy.deepcopy(model)
    sam = sgd_sam(model)
    loss_of(once)
    if split:
        backward(model)
        sam.perturb_()
        backward(model)
        sam.restore_and_step()
    else:
        sam.step(closure_for(sam, model))
    for name, value in once.named_buffers():
        assert torch.equal(value, model.get_buffer(name)), name
    loss_of(model)  # after the step they are updated again
    assert model[1].num_batches_tracked == 2
    backward(model)
    sam.perturb_()
    loss_of(model)
    sam.restore_()
    assert model[1].num_batches_tracked == 3
    loss_of(model)
    assert model[1].num_batches_tracked == 4


def test_running_statistics_of_another_thread():
    """They count its passes; at the end of this thread's step it would find them frozen."""
    model = net()
    sam = sgd_sam(model)
    backward(model)
    assert sam.perturb_()
    norm = nn.BatchNorm1d(4)
    thread = threading.Thread(target=lambda: norm(batch()[0]))
    thread.start()
    thread.join()
    sam.restore_()
    assert norm.num_batches_tracked == 1


def test_dropout_draws_anew_for_the_second_gradient():
    torch.manual_seed(SEED)
    model, masks = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3)), []
    model[1].register_forward_hook(lambda module, args, out: masks.append(out == 0))
    sam = sgd_sam(model)
    sam.step(closure_for(sam, model))
    assert len(masks) == 2
    assert not torch.equal(*masks)


# ---- errors ---------------------------------------------------------------------------------------------------------


class Raised(Exception):
    pass


@pytest.mark.parametrize("when", ["before backward", "after backward"])
def test_weights_come_back_where_the_second_pass_fails(when):
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    sam = sgd_sam(model)
    before, calls = weights(model), []

    def closure():
        sam.zero_grad()
        loss = loss_of(model)
        calls.append(weights(model))
        if len(calls) == 2 and when == "before backward":
            raise Raised
        loss.backward()
        if len(calls) == 2:
            raise Raised
        return loss

    with pytest.raises(Raised):
        sam.step(closure)
    assert not same(calls[1], before)
    assert same(model, before)
    assert model[1].track_running_stats
    assert sam.steps == 0
    sam.step(closure)
    assert not same(model, before)


@pytest.mark.parametrize("reset", [False, True])
def test_weights_and_states_come_back_where_the_base_refuses(reset):
    model = net()
    sam = ct.SAM(ct.Adam(model.parameters()), rho=0.5, start=1, reset_state_on_switch=reset)
    sam.step(closure_for(sam, model))
    before, states = weights(model), {p: {k: v.clone() for k, v in s.items()} for p, s in sam.state.items()}
    sam.zero_grad()
    for spoil in ("lr", "grad"):
        sam.zero_grad()
        backward(model)
        assert sam.perturb_()
        backward(model)
        if spoil == "lr":
            sam.param_groups[0]["lr"] = -1.0
        else:
            model[0].weight.grad = model[0].weight.grad.to_sparse()
        with pytest.raises((TypeError, ValueError), match=r"curvk\.torch\.Adam"):
            sam.restore_and_step()
        sam.param_groups[0]["lr"] = 1e-3
        assert same(model, before)
        assert sam.state.keys() == states.keys()
        for p, state in states.items():
            assert all(torch.equal(x, sam.state[p][k]) for k, x in state.items())
    sam.step(closure_for(sam, model))
    assert not same(model, before)


def test_weights_come_back_where_the_second_call_is_refused():
    def hook(*args):
        raise Raised

    for number, (error, call) in enumerate(
        (
            (ValueError, lambda sam: sam.restore_and_step(inv_scale=0.0)),
            (ValueError, lambda sam: sam.restore_and_step(found_inf=torch.zeros(2))),
            (Raised, lambda sam: sam.restore_and_step()),
        )
    ):
        model = net()
        before, sam = weights(model), sgd_sam(model)
        backward(model)
        assert sam.perturb_()
        backward(model)
        if number == 2:
            sam.register_step_pre_hook(hook)
        with pytest.raises(error):
            call(sam)
        assert same(model, before)
        assert sam.steps == 0
        assert "sam" in sam.state_dict()  # not perturbed


def test_weights_come_back_where_a_parameter_has_another_shape():
    model = net()
    before, sam = weights(model), sgd_sam(model)
    backward(model)
    assert sam.perturb_()
    model[0].weight.data = torch.zeros(2)
    sam.restore_()
    assert torch.equal(model[0].weight, torch.zeros(2))
    assert same(list(model.parameters())[1:], before[1:])


def test_states_come_back_where_the_first_step_is_skipped():
    p = nn.Parameter(torch.ones(2))
    base = ct.SGD([p], lr=0.1, momentum=0.9, skip_nonfinite=True)
    sam = ct.SAM(base, rho=0.5, start=1, reset_state_on_switch=True)
    p.grad = torch.ones(2)
    assert sam.restore_and_step()
    p.grad = torch.ones(2)
    assert sam.perturb_()
    p.grad = torch.full((2,), torch.inf)
    assert not sam.restore_and_step()
    assert torch.equal(sam.state[p]["momentum_buffer"], torch.ones(2))


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill sends no SIGINT there")
def test_interrupt_while_the_weights_are_swapped(monkeypatch, ctrl_c):
    """Ctrl-C that arrives when the kernel has written, but nothing yet says so."""
    model = net()
    before, sam = weights(model), sgd_sam(model)
    run = sam_module.Plan.run

    def run_and_interrupt(plan, scalars):
        run(plan, scalars)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sam_module.Plan, "run", run_and_interrupt)
    backward(model)
    with pytest.raises(KeyboardInterrupt):
        sam.perturb_()
    monkeypatch.undo()
    assert same(model, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    backward(model)
    assert sam.perturb_()
    sam.restore_()
    assert same(model, before)


def test_bad_first_gradients():
    model = net()
    before = weights(model)
    sam = ct.SAM(ct.Adam([*model.named_parameters()]), rho=0.5)
    p = model[2].weight
    for change, error, text in (
        (lambda g: g.to_sparse(), TypeError, "gradient of parameter '2.weight' is sparse"),
        (lambda g: g.double(), TypeError, "gradient of parameter '2.weight' is torch.float64, needs torch.float32"),
        (lambda g: g[:1], ValueError, r"gradient of parameter '2.weight' has shape \(1, 9\), needs \(3, 9\)"),
    ):
        sam.zero_grad()
        backward(model)
        wrong = nn.Parameter(change(p.grad).clone())
        p.grad = None
        with torch.no_grad():
            original, p.data = p.data, wrong.data if not wrong.is_sparse else p.data
            p.grad = wrong.detach()
            p.data = original
        with pytest.raises(error, match=text):
            sam.perturb_()
        assert same(model, before)
    sam.step(closure_for(sam, model))
    assert not same(model, before)


def test_bases_that_cannot_restore():
    model = net()
    numpy_base = curvk.optim.SGD([np.ones(2)], lr=0.1)
    wrong = [
        torch.optim.AdamW(model.parameters()),
        ct.MeZO(model, lr=0.1),
        sgd_sam(model),
        model.parameters(),
        None,
    ]
    for base in wrong:
        with pytest.raises(TypeError, match=r"curvk.torch.SAM: argument 'base': got .*; use curvk.torch.AdamW or"):
            ct.SAM(base)
    with pytest.raises(TypeError, match=r"got curvk.optim._sgd.SGD, .*; use curvk.optim.SAM"):
        ct.SAM(numpy_base)


def test_base_of_another_sam():
    base = ct.SGD(net().parameters(), lr=0.1)
    sam = ct.SAM(base, rho=0.1)
    with pytest.raises(ValueError, match="argument 'base': got the base of another SAM"):
        ct.SAM(base, rho=2.0)
    with pytest.raises(ValueError, match="argument 'base': got the base of another SAM"):
        ct.SAM(copy.deepcopy(sam).base)
    assert sam.param_groups[0]["rho"] == 0.1


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rho": -0.1}, ValueError, r"curvk.torch.SAM: argument 'rho': got -0.1, needs a number in \[0, inf\)"),
        ({"rho": "0.05"}, TypeError, "argument 'rho'"),
        ({"rho": torch.ones(2)}, TypeError, "argument 'rho'"),
        ({"adaptive": None}, TypeError, "argument 'adaptive'"),
        ({"eta": float("nan")}, ValueError, "argument 'eta'"),
        ({"start": -1}, ValueError, "argument 'start'"),
        ({"start": 5, "end": 4}, ValueError, "argument 'end'"),
        ({"every": 0}, ValueError, "argument 'every'"),
    ],
    ids=str,
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        ct.SAM(ct.SGD(net().parameters(), lr=0.1), **options)


def test_bad_numbers_of_a_group():
    model = net()
    with pytest.raises(ValueError, match=r"argument 'param_groups\[0\].rho': got -1.0"):
        ct.SAM(ct.SGD([{"params": model.parameters(), "rho": -1.0}], lr=0.1))
    sam = sgd_sam(model)
    with pytest.raises(ValueError, match=r"argument 'param_groups\[1\].eta'"):
        sam.add_param_group({"params": [nn.Parameter(torch.ones(1))], "eta": -1.0})
    assert len(sam.param_groups) == 1
    backward(model)
    before = weights(model)
    for inv_scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="argument 'inv_scale'"):
            sam.perturb_(inv_scale=inv_scale)
        with pytest.raises(ValueError, match="argument 'inv_scale'"):
            sam.restore_and_step(inv_scale=inv_scale)
    assert same(model, before)


def test_calls_out_of_order():
    model = net()
    sam = sgd_sam(model)
    before = weights(model)
    backward(model)
    for call in (sam.step, sam.restore_and_step):
        with pytest.raises(RuntimeError, match=r"use perturb_\(\) first, or step\(closure\)"):
            call()
    assert same(model, before)
    sam.perturb_()
    for call in (
        sam.perturb_,
        lambda: sam.step(closure_for(sam, model)),
        sam.state_dict,
        lambda: sam.load_state_dict({}),
        lambda: pickle.dumps(sam),
        lambda: copy.deepcopy(sam),
    ):
        with pytest.raises(RuntimeError, match=r"the weights are perturbed; use restore_and_step\(\) or"):
            call()
    sam.restore_()
    assert same(model, before)
    assert sam.steps == 0
