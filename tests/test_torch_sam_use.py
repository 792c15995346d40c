"""curvk.torch.SAM in use: the contract of torch.optim.Optimizer, GradScaler, micro-batches, two processes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import torch.distributed as dist  # noqa: E402
from sam_models import backward, batch, close, closure_for, loss_of, net, same, sgd_sam, weights  # noqa: E402
from torch import nn  # noqa: E402

# ---- the contract of torch.optim.Optimizer --------------------------------------------------------------------------


def test_groups_and_state_are_the_base_s():
    model = net()
    base = ct.Adam(model.parameters())
    sam = ct.SAM(base, rho=0.2, eta=0.5)
    assert isinstance(sam, torch.optim.Optimizer)
    assert sam.param_groups is base.param_groups
    assert sam.state is base.state
    assert {k: sam.param_groups[0][k] for k in ("rho", "adaptive", "eta")} == {
        "rho": 0.2,
        "adaptive": False,
        "eta": 0.5,
    }
    assert sam.defaults["rho"] == 0.2
    extra = nn.Parameter(torch.ones(2))
    sam.add_param_group({"params": [extra], "rho": 0.7, "lr": 0.5})
    base.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    sam.step(closure_for(sam, model))
    assert [g["rho"] for g in sam.param_groups] == [0.2, 0.7, 0.2]
    base.load_state_dict(base.state_dict())  # which gives it other objects
    assert sam.param_groups is base.param_groups
    assert sam.state is base.state
    assert "rho: 0.7" in repr(sam)
    sam.state = defaultdict(dict)  # how some code starts states anew
    sam.param_groups = sam.param_groups[:2]
    assert base.state is sam.state
    assert len(base.param_groups) == 2
    sam.step(closure_for(sam, model))
    assert base.state[model[0].weight]["step"] == 1


@pytest.mark.parametrize("on", ["sam", "base"])
def test_schedulers_and_hooks(on):
    """A scheduler warns, here an error, where the step it watches is not the one taken."""
    model = net()
    base = ct.SGD(model.parameters(), lr=0.4)
    sam = ct.SAM(base, rho=0.5, start=2)
    watched = sam if on == "sam" else base
    scheduler = torch.optim.lr_scheduler.StepLR(watched, 1, gamma=0.5)
    calls = []
    watched.register_step_pre_hook(lambda *args: calls.append("pre"))
    watched.register_step_post_hook(lambda *args: calls.append("post"))
    for k in range(4):
        if k % 2:
            sam.step(closure_for(sam, model))
        else:
            sam.zero_grad()
            backward(model)
            if sam.perturb_():
                backward(model)
            assert sam.restore_and_step()
        scheduler.step()
    assert sam.param_groups[0]["lr"] == 0.4 / 16
    assert calls == ["pre", "post"] * 4


@pytest.mark.parametrize("way", ["load", "file", "pickle", "deepcopy"])
def test_resumes_bit_for_bit(way):
    options = {"start": 2, "end": 9, "every": 2, "reset_state_on_switch": True, "adaptive": True, "eta": 0.01}
    model, twin = net(), net()
    sam = ct.SAM(ct.Adam(model.parameters()), rho=0.5, **options)
    for k in range(4):
        sam.step(closure_for(sam, model, k))
    twin.load_state_dict(model.state_dict())
    resumed = ct.SAM(ct.Adam(twin.parameters(), lr=0.7), start=1)
    if way == "load":
        resumed.load_state_dict(copy.deepcopy(sam.state_dict()))
    elif way == "file":
        file = io.BytesIO()
        torch.save(sam.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
    elif way == "pickle":
        twin, resumed = pickle.loads(pickle.dumps((model, sam)))
    else:
        twin, resumed = copy.deepcopy((model, sam))
    assert (resumed.steps, resumed.active) == (4, True)
    for k in range(4, 12):
        sam.step(closure_for(sam, model, k))
        resumed.step(closure_for(resumed, twin, k))
        assert same(model, twin)
    assert resumed.state_dict()["sam"] == sam.state_dict()["sam"]


def test_state_dicts_of_the_base():
    model = net()
    base = ct.AdamW(model.parameters())
    for k in range(3):
        base.step(closure_for(base, model, k))
    sam = ct.SAM(ct.AdamW(model.parameters()), rho=0.3, start=3)
    sam.load_state_dict(base.state_dict())
    assert (sam.steps, sam.param_groups[0]["rho"]) == (0, 0.3)
    sam.steps = 3
    assert sam.active
    sam.step(closure_for(sam, model))
    base.load_state_dict(sam.state_dict())  # and back
    peer = torch.optim.AdamW(model.parameters())
    peer.load_state_dict(sam.state_dict())
    assert peer.state[model[0].weight]["step"] == 4


def test_bad_state_dicts_change_nothing():
    model = net()
    sam = ct.SAM(ct.Adam(model.parameters()), rho=0.5)
    sam.step(closure_for(sam, model))
    good = copy.deepcopy(sam.state_dict())
    group = good["param_groups"][0]
    for bad in (
        None,
        {},
        good | {"sam": {}},
        good | {"sam": 3},
        good | {"sam": good["sam"] | {"steps": -1}},
        good | {"sam": good["sam"] | {"every": 0}},
        good | {"param_groups": [group | {"rho": -1.0}]},
        good | {"param_groups": []},
    ):
        with pytest.raises((TypeError, ValueError)):
            sam.load_state_dict(bad)
        now = sam.state_dict()
        assert now["sam"] == good["sam"]
        assert now["param_groups"] == good["param_groups"]
        assert all(torch.equal(x, now["state"][i][k]) for i, s in good["state"].items() for k, x in s.items())


def test_state_dict_hooks():
    sam = sgd_sam(net())
    seen = []
    sam.register_state_dict_pre_hook(lambda optimizer: seen.append(optimizer))
    sam.register_state_dict_post_hook(lambda optimizer, state: state | {"note": 1})
    sam.register_load_state_dict_pre_hook(lambda optimizer, state: seen.append(state["note"]))
    sam.register_load_state_dict_post_hook(lambda optimizer: seen.append("loaded"))
    sam.load_state_dict(sam.state_dict())
    assert seen == [sam, 1, "loaded"]


def test_adamz_hears_the_loss_once():
    model = net()
    base = ct.AdamZ(model.parameters(), patience=3, stagnation_period=2)
    sam = ct.SAM(base, rho=0.5)
    seen = []
    for k in range(2):
        sam.step(closure_for(sam, model, k, seen))
    window = base.state_dict()["loss_lr"]["window"].tolist()
    assert window[:2] == pytest.approx(seen[::2])


# ---- AMP, accumulation, processes -----------------------------------------------------------------------------------


def scaled_step(scaler, sam, model, k, spoil=None, again=True):
    sam.zero_grad()
    scaler.scale(loss_of(model, k=k)).backward()
    if spoil == 1:
        model[0].bias.grad[0] = float("inf")
    if sam.perturb_(inv_scale=1 / scaler.get_scale()) or again:
        scaler.scale(loss_of(model, k=k)).backward()
    if spoil == 2:
        model[0].bias.grad[0] = float("inf")
    scaler.step(sam)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("start", [None, 3])
def test_grad_scaler(start, unscale):
    """The scale is a power of two, so that all steps are the bits of steps without a scaler."""
    model, twin = net(), net()
    sam, plain = (ct.SAM(ct.AdamW(m.parameters(), lr=0.01), rho=0.5, start=start) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    for k in range(6):
        sam.zero_grad()
        scaler.scale(loss_of(model, k=k)).backward()
        if sam.perturb_(inv_scale=1 / scaler.get_scale()):
            scaler.scale(loss_of(model, k=k)).backward()
        if unscale:
            scaler.unscale_(sam)
        scaler.step(sam)
        scaler.update()
        plain.step(closure_for(plain, twin, k))
        assert same(model, twin)
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("spoil", [1, 2])
def test_grad_scaler_skips_and_backs_off(spoil, again):
    model = net()
    before = weights(model)
    sam = ct.SAM(ct.AdamW(model.parameters(), lr=0.01), rho=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled_step(scaler, sam, model, 0, spoil, again)
    assert same(model, before)
    assert (scaler.get_scale(), sam.steps, sam.skipped_steps) == (2.0**11, 1, 1)
    scaled_step(scaler, sam, model, 0)
    assert not same(model, before)
    assert (scaler.get_scale(), sam.skipped_steps) == (2.0**11, 1)


def test_autocast_with_bfloat16():
    model = net()
    sam = ct.SAM(ct.AdamW(model.parameters(), lr=0.01), rho=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = []
    for _ in range(60):
        sam.zero_grad()
        for turn in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model)
            scaler.scale(loss).backward()
            if turn == 0:
                losses.append(loss.item())
                assert sam.perturb_(inv_scale=1 / scaler.get_scale())
        scaler.step(sam)
        scaler.update()
    assert losses[-1] < 0.5 * losses[0]


def test_accumulation_over_micro_batches():
    whole, parts = net(torch.float64), net(torch.float64)
    one, many = (ct.SAM(ct.SGD(m.parameters(), lr=0.1, momentum=0.9), rho=0.5) for m in (whole, parts))
    x, y = batch(torch.float64, 12)

    def closure():
        one.zero_grad()
        loss = (whole(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        one.step(closure)
        many.zero_grad()
        for turn in range(2):
            for a, b in zip(x.split(4), y.split(4), strict=True):
                (parts(a) - b).square().mean().backward()
            if turn == 0:
                assert many.perturb_(inv_scale=1 / 3)
        assert many.restore_and_step(inv_scale=1 / 3)
    close(whole, parts, 1e-10)


WORKER = """
import sys
sys.path.insert(0, {folder!r})
import torch, torch.distributed as dist
from test_torch_sam_use import *
torch.set_num_threads(1)
rank = {rank}
dist.init_process_group("gloo", init_method="file://" + {store!r}, rank=rank, world_size=2)
results = {{}}
for synced in (False, True):
    model = net(torch.float64)
    replica = nn.parallel.DistributedDataParallel(model)
    sam = ct.SAM(ct.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5)
    for k in range(3):
        sam.zero_grad()
        with contextlib.nullcontext() if synced else replica.no_sync():
            loss_of(replica, k=2 * k + rank).backward()
        assert sam.perturb_()
        loss_of(replica, k=2 * k + rank).backward()
        assert sam.restore_and_step()
    results[synced] = weights(model)
# One replica meets inf in its own first gradient: they agree on it and all skip.
before = weights(model)
sam.zero_grad()
with replica.no_sync():
    loss_of(replica, k=rank).backward()
if rank == 1:
    model[0].bias.grad[0] = float("inf")
flag = torch.zeros(1)
perturbed = sam.perturb_(found_inf=flag)
dist.all_reduce(flag, dist.ReduceOp.MAX)
loss_of(replica, k=rank).backward()
results["skipped"] = (perturbed, sam.restore_and_step(found_inf=flag), same(model, before))
torch.save(results, {path!r})
dist.destroy_process_group()
"""


def test_two_processes(tmp_path):
    """Perturbed per replica (first pass without synchronisation) or with the mean gradient, against one process."""
    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")
    processes = []
    for rank in range(2):
        code = "import contextlib\n" + WORKER.format(
            folder=str(Path(__file__).parent),
            rank=rank,
            store=str(tmp_path / "store"),
            path=str(tmp_path / f"{rank}.pt"),
        )
        processes.append(
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for p in processes:
        out, _ = p.communicate(timeout=120)
        assert p.returncode == 0, out
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for synced in (False, True):
        assert same(*(r[synced] for r in results))
        model = net(torch.float64)
        inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        params = list(model.parameters())
        for step in range(3):
            start = weights(model)
            firsts = [torch.autograd.grad(loss_of(model, k=2 * step + rank), params) for rank in range(2)]
            if synced:
                firsts = [[(a + b) / 2 for a, b in zip(*firsts, strict=True)]] * 2
            seconds = []
            for rank in range(2):
                norm = torch.cat([g.flatten() for g in firsts[rank]]).norm()
                with torch.no_grad():
                    for p, w, g in zip(params, start, firsts[rank], strict=True):
                        p.copy_(w + 0.5 / norm * g)
                seconds.append(torch.autograd.grad(loss_of(model, k=2 * step + rank), params))
            with torch.no_grad():
                for p, w, a, b in zip(params, start, *seconds, strict=True):
                    p.copy_(w)
                    p.grad = (a + b) / 2
            inner.step()
        for p, q in zip(params, results[0][synced], strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-10, atol=1e-10)
    assert results[0]["skipped"] == (True, False, True)
    assert results[1]["skipped"] == (False, False, True)
