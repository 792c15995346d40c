"""The optimizers of curvk.torch: state dicts in every direction, and what else users do with an optimizer."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402
from torch_matrix import (  # noqa: E402
    FUSED,
    GRADIENT,
    KINDS,
    LR,
    PEERS,
    ZEROTH,
    close,
    closure_for,
    equal,
    loss_of,
    make,
    net,
    train,
    values,
)


def filed(state: Any) -> Any:
    """A state dict through a file that may hold no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- state dicts -----------------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda state: state,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "file": filed,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_in_the_middle_has_the_same_bits(kind: str, way: str) -> None:
    model = net()
    optimizer = make(kind, model)
    train(kind, optimizer, model, range(3))
    weights, state = WAYS[way](model.state_dict()), WAYS[way](optimizer.state_dict())
    twin = net(seed=1)
    twin.load_state_dict(weights)
    resumed = make(kind, twin)
    resumed.load_state_dict(state)
    want = optimizer.state_dict()
    for group in want["param_groups"]:
        group.update({"differentiable": False} if kind == "Alice" else {})  # a load spells out torch's key
    assert equal(resumed.state_dict(), want)
    assert train(kind, optimizer, model, range(3, 6)) == train(kind, resumed, twin, range(3, 6))
    assert all(map(torch.equal, values(model), values(twin)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_from_before_the_first_step(kind: str) -> None:
    model, twin = net(), net()
    optimizer, other = make(kind, model), make(kind, twin)
    other.load_state_dict(filed(optimizer.state_dict()))
    assert train(kind, optimizer, model, range(3)) == train(kind, other, twin, range(3))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_optimizer_and_model_copied_together_go_on_alike(kind: str, copied: Any) -> None:
    model = net()
    optimizer = make(kind, model)
    train(kind, optimizer, model, range(3))
    twin, other = copied((model, optimizer))
    assert all(map(torch.equal, values(model), values(twin)))
    assert train(kind, optimizer, model, range(3, 6)) == train(kind, other, twin, range(3, 6))
    assert all(p is not q for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("kind", PEERS)
def test_torchs_optimizer_takes_over_and_gives_back(kind: str) -> None:
    """Three steps of ours, three of torch's, three of ours; beside nine of torch's."""
    model, twin = net(torch.float64), net(torch.float64)
    options = {"lr": LR} | ({"momentum": 0.9} if kind == "SGD" else {})
    truth = PEERS[kind](twin.parameters(), foreach=False, **options)
    makers = [getattr(ct, kind), PEERS[kind], getattr(ct, kind)]
    state = None
    for at, maker in enumerate(makers):
        optimizer = maker(model.parameters(), **options)
        if state is not None:
            optimizer.load_state_dict(filed(state))
        train(kind, optimizer, model, range(3 * at, 3 * at + 3))
        state = optimizer.state_dict()
    train(kind, truth, twin, range(9))
    close(values(model), values(twin))


@pytest.mark.parametrize("kind", [*FUSED, "SAM(AdamW)"])
def test_a_group_added_before_the_save_is_needed_at_the_load(kind: str) -> None:
    model = net()
    late = nn.Parameter(torch.ones(3))
    optimizer = make(kind, model)
    train(kind, optimizer, model, range(2))
    optimizer.add_param_group({"params": [late], "lr": 0.5})
    state = filed(optimizer.state_dict())
    twin = net()
    other = make(kind, twin)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other.load_state_dict(state)
    assert equal(other.state_dict(), before)
    other.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(state)
    assert other.param_groups[1]["lr"] == 0.5
    assert train(kind, optimizer, model, range(2, 4)) == train(kind, other, twin, range(2, 4))


@pytest.mark.parametrize("kind", [*FUSED, "SAM(SGD)"])
def test_states_follow_a_model_of_another_dtype_and_refuse_meta(kind: str) -> None:
    model = net()
    optimizer = make(kind, model)
    train(kind, optimizer, model, range(3))
    wide = net(torch.float64)
    wide.load_state_dict(model.state_dict())
    other = make(kind, wide)
    other.load_state_dict(optimizer.state_dict())
    train(kind, other, wide, range(3, 5))
    train(kind, optimizer, model, range(3, 5))
    close(values(model), values(wide))
    ghost = net().to("meta")
    nowhere = make(kind, ghost)
    for p in ghost.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(BufferError, match=r"is on device meta, needs the CPU or a CUDA device; use model\.cpu\(\)"):
        nowhere.base.step() if kind.startswith("SAM") else nowhere.step()


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_see_steps_and_state_dicts(kind: str) -> None:
    model = net()
    optimizer = make(kind, model)
    seen: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda o, a, k: seen.append("pre")),
        optimizer.register_step_post_hook(lambda o, a, k: seen.append("post")),
        optimizer.register_state_dict_pre_hook(lambda o: seen.append("saving")),
        optimizer.register_state_dict_post_hook(lambda o, s: seen.append("saved")),
        optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append("loading")),
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded")),
    ]
    everywhere = register_optimizer_step_pre_hook(lambda o, a, k: seen.append("any") if o is optimizer else None)
    try:
        train(kind, optimizer, model, range(1))
        optimizer.load_state_dict(optimizer.state_dict())
    finally:
        everywhere.remove()
    assert seen.index("any") < seen.index("post")
    assert [s for s in seen if s != "any"] == ["pre", "post", "saving", "saved", "loading", "loaded"]
    for handle in handles:
        handle.remove()
    seen.clear()
    train(kind, optimizer, model, range(1, 2))
    assert not seen


# ---- what users do with an optimizer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*FUSED, "Alice"])
def test_state_is_read_the_way_users_do(kind: str) -> None:
    model = net()
    optimizer = make(kind, model)
    p = next(model.parameters())
    assert len(optimizer.state) == 0
    assert p not in optimizer.state
    train(kind, optimizer, model, range(2))
    assert set(optimizer.state) == set(model.parameters())
    assert all(isinstance(k, str) for k in optimizer.state[p])
    assert isinstance(optimizer.state.get(p), dict)
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.dim()]
    assert tensors
    assert all(torch.isfinite(t).all() for t in tensors)
    assert kind in repr(optimizer)
    assert f"lr: {LR}" in repr(optimizer)
    optimizer.zero_grad(set_to_none=False)
    assert all(not q.grad.any() for q in model.parameters())
    optimizer.zero_grad()
    assert all(q.grad is None for q in model.parameters())


@pytest.mark.parametrize("kind", PEERS)
def test_accumulation_clipping_and_the_scaler(kind: str) -> None:
    """Two micro-batches, clipped to a norm, under a scaler of 1024 whose powers of two round nothing."""

    def run(model: nn.Module, optimizer: Any, scaler: Any) -> None:
        for k in range(6):
            optimizer.zero_grad()
            for half in (2 * k, 2 * k + 1):
                scaler.scale(loss_of(model, half) / 2).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()

    model, twin = net(torch.float64), net(torch.float64)
    own = {"momentum": 0.9} if kind == "SGD" else {}
    scaler = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    run(model, getattr(ct, kind)(model.parameters(), lr=LR, **own), scaler[0])
    run(twin, PEERS[kind](twin.parameters(), lr=LR, foreach=False, **own), scaler[1])
    assert scaler[0].get_scale() == scaler[1].get_scale()
    close(values(model), values(twin))


@pytest.mark.parametrize("kind", PEERS)
def test_a_step_within_the_backward_pass(kind: str) -> None:
    """An optimizer for each parameter, stepped as soon as its gradient is complete, which is then given up."""
    model, twin = net(), net()
    plain = make(kind, twin)
    each = {
        p: getattr(ct, kind)([p], lr=LR, **({"momentum": 0.9} if kind == "SGD" else {})) for p in model.parameters()
    }

    def at_once(p: Any) -> None:
        each[p].step()
        each[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(at_once)
    for k in range(4):
        loss_of(model, k).backward()
        train(kind, plain, twin, range(k, k + 1))
    assert all(p.grad is None for p in model.parameters())
    assert all(map(torch.equal, values(model), values(twin)))


def parametrized(model: Any) -> Any:
    nn.utils.parametrizations.weight_norm(model[4])
    return model


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def functional(model: Any) -> Any:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Any:
            return torch.func.functional_call(self.inner, dict(self.inner.named_parameters()), (x,))

    return Called()


# Torch warns where it traces a module within a step of SAM or Alice, whose hooks keep statistics from counting twice.
@pytest.mark.filterwarnings("ignore:Using .torch.compile:UserWarning")
@pytest.mark.parametrize("around", [parametrized, compiled, functional], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "SAM(Adam)", "Alice"])
def test_models_that_torch_wraps(kind: str, around: Any) -> None:
    model, twin = around(net()), around(net())
    name = "AdamW" if "Adam" in kind or kind == "Alice" else kind
    optimizer = make(kind, model)
    losses = train(kind, optimizer, model, range(6))
    if kind in PEERS:
        truth = PEERS[name](twin.parameters(), lr=LR, foreach=False, **({"momentum": 0.9} if kind == "SGD" else {}))
        assert losses == pytest.approx(train(kind, truth, twin, range(6)), rel=1e-5)
    first = loss_of(twin if kind not in PEERS else around(net()), 0).item()
    train(kind, optimizer, model, range(6, 30))
    assert loss_of(model, 0).item() < first


def test_averages_of_a_model() -> None:
    model, twin = net(torch.float64), net(torch.float64)
    ours, truth = ct.AdamW(model.parameters(), lr=LR), torch.optim.AdamW(twin.parameters(), lr=LR, foreach=False)
    averages = [AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for m in (model, twin)]
    for k in range(5):
        for kind, optimizer, m, average in zip("ab", (ours, truth), (model, twin), averages, strict=True):
            assert kind
            train("AdamW", optimizer, m, range(k, k + 1))
            average.update_parameters(m)
    close(values(averages[0].module), values(averages[1].module))


@pytest.mark.parametrize("kind", GRADIENT)
def test_a_default_dtype_of_float64_changes_no_bit(kind: str) -> None:
    """Of a float32 model: its counts and scalars are not the default's."""
    model, twin = net(), net()
    first, second = make(kind, model), make(kind, twin)
    before = train(kind, first, model, range(3))
    torch.set_default_dtype(torch.float64)
    try:
        assert train(kind, second, twin, range(3)) == before
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, values(model), values(twin)))
    kinds = [{k: v.dtype for k, v in s.items() if isinstance(v, torch.Tensor)} for s in second.state.values()]
    assert kinds == [{k: v.dtype for k, v in s.items() if isinstance(v, torch.Tensor)} for s in first.state.values()]


@pytest.mark.parametrize("kind", [*FUSED, "Alice", *ZEROTH])
def test_deterministic_algorithms_are_what_they_are(kind: str) -> None:
    model, twin = net(), net()
    first, second = make(kind, model), make(kind, twin)
    losses = train(kind, first, model, range(3))
    torch.use_deterministic_algorithms(True)
    try:
        assert train(kind, second, twin, range(3)) == losses
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, values(model), values(twin)))


@pytest.mark.parametrize("kind", PEERS)
def test_frozen_parameters_made_in_inference_mode_are_stepped(kind: str) -> None:
    """Torch's own optimizers refuse them; autograd never asks such a tensor how often it was written."""
    with torch.inference_mode():
        p = nn.Parameter(torch.zeros(3), requires_grad=False)
        p.grad = torch.ones(3)
    getattr(ct, kind)([p], lr=0.5, **({} if kind == "SGD" else {"weight_decay": 0.0})).step()
    torch.testing.assert_close(p.clone(), torch.full((3,), -0.5))


@pytest.mark.filterwarnings("ignore:Using .torch.compile:UserWarning")
@pytest.mark.parametrize("kind", ["SAM(SGD)", "Alice"])
def test_batch_statistics_of_a_compiled_model_count_once(kind: str) -> None:
    found = []
    for around in (lambda m: m, compiled):
        model = net()
        model.insert(1, nn.BatchNorm1d(4))
        optimizer = make(kind, model)
        whole = around(model)
        found.append((train(kind, optimizer, whole, range(4)), values(model), list(model[1].buffers())))
    assert equal(*found)
    assert found[0][2][2] == 4


def test_the_profiler_names_every_step() -> None:
    model = net()
    optimizer = ct.AdamW(model.parameters(), lr=LR)
    train("AdamW", optimizer, model, range(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train("AdamW", optimizer, model, range(1, 3))
    assert sum(e.name == "Optimizer.step#AdamW.step" for e in profile.events()) == 2


def test_distributed_data_parallel_of_one_process(tmp_path: Any) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this build has no gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, twin = net(), net()
        wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        ours, plain = make("AdamW", wrapped), make("AdamW", twin)
        for k in range(4):
            ours.zero_grad(set_to_none=False)
            loss_of(wrapped, k).backward()
            ours.step()
            train("AdamW", plain, twin, range(k, k + 1))
        assert all(map(torch.equal, values(model), values(twin)))
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["AdamW", "SAM(SGD)", "MeZO"])
def test_a_rate_that_is_a_tensor_is_followed_and_kept(kind: str) -> None:
    model = net()
    rate = torch.tensor(0.0)
    optimizer = make(kind, model, lr=rate)
    before = values(model)
    train(kind, optimizer, model, range(2))
    assert all(map(torch.equal, values(model), before))
    rate.fill_(0.1)
    train(kind, optimizer, model, range(2, 4))
    assert not all(map(torch.equal, values(model), before))
    assert optimizer.param_groups[0]["lr"] is rate
    assert optimizer.state_dict()["param_groups"][0]["lr"].item() == pytest.approx(0.1)
    assert closure_for(kind, optimizer, model)() is not None
