"""curvk.torch.SAM: the published codes, exact restoring, memory, skipped steps, phases, BatchNorm, errors."""

from __future__ import annotations

import gc
import json
import sys

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import numpy as np  # noqa: E402
from sam_models import SEED, backward, close, closure_for, loss_of, net, same, sgd_sam, weights  # noqa: E402
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
