"""curvk.torch among torch's other machinery: hooks, clipping, errors, AdamZ, import."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import numpy as np  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402
from torch_models import CLASSES, SHAPES, backward, close, made, refused, run  # noqa: E402


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


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
