"""curvk.torch.SAM: skipped steps, phases, batch statistics, errors."""

from __future__ import annotations

import copy
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
from sam_models import SEED, backward, batch, closure_for, loss_of, net, same, sgd_sam, weights  # noqa: E402
from torch import nn  # noqa: E402

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
