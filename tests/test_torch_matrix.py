"""The optimizers of curvk.torch over configurations, dtypes, closures, schedulers and parameter groups."""

from __future__ import annotations

import copy
import inspect
import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim import lr_scheduler as sched  # noqa: E402
from torch.optim.swa_utils import SWALR  # noqa: E402
from torch_matrix import (  # noqa: E402
    FUSED,
    GRADIENT,
    KINDS,
    LR,
    PEERS,
    SAMS,
    ZEROTH,
    base_name,
    close,
    closure_for,
    loss_of,
    make,
    net,
    train,
    values,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# Each keyword at a typical value and at its edges; torch's own optimizers take the same ones. "tensor" stands for
# a tensor of one element made anew for each optimizer.
CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"lr": 0.0, "momentum": 0.9},
        {"lr": "tensor", "momentum": 0.5, "foreach": True},
        {"lr": 0.05, "momentum": 1.0, "dampening": 1.0},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True, "foreach": False},
        {"lr": 0.05, "momentum": 0.9, "dampening": -0.5, "weight_decay": 0.1},
        {"lr": 0.05, "weight_decay": 1.0, "fused": True},
    ],
    "Adam": [
        {},
        {"lr": "tensor", "capturable": False, "foreach": False, "fused": True},
        {"lr": 0.05, "betas": (0.0, 0.0), "eps": 1.0},
        {"lr": 0.05, "betas": (0.0, 0.999), "weight_decay": 0.1, "maximize": True},
        {"lr": 0.0, "amsgrad": True, "weight_decay": 1.0},
        {"lr": 0.05, "betas": (0.9, 0.5), "amsgrad": True, "foreach": True, "eps": 1e-3},
        {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "AdamW": [
        {},
        {"lr": "tensor", "weight_decay": 0.0, "foreach": True},
        {"lr": 0.05, "betas": (0.5, 0.9), "weight_decay": 1.0, "maximize": True},
        {"lr": 0.05, "amsgrad": True, "eps": 1e-4, "fused": True},
    ],
}


def options_of(configuration: dict[str, Any]) -> dict[str, Any]:
    return {k: torch.tensor(0.05, dtype=torch.float64) if v == "tensor" else v for k, v in configuration.items()}


def mixed_parameters(dtype: Any, seed: int = 0) -> list[Any]:
    """Forty-one tensors: no dimension, no element, transposed, channels_last, a view with gaps, and many small ones."""
    g = torch.Generator().manual_seed(seed)
    wide = [
        torch.randn(s, generator=g, dtype=torch.float64) for s in [(), (0,), (3, 0, 2), (5, 7), (2, 3, 4, 5), (6, 8)]
    ]
    wide += [torch.randn(n, generator=g, dtype=torch.float64) for n in range(1, 36)]
    made = [w.to(dtype) for w in wide]
    made[3] = made[3].t().contiguous().t()
    made[4] = made[4].contiguous(memory_format=torch.channels_last)
    frame = torch.zeros(6, 16, dtype=dtype)
    frame[:, ::2] = made[5]
    made[5] = frame[:, ::2]
    return [p.requires_grad_() for p in made]


def gradients(params: list[Any], k: int) -> list[Any]:
    """The k-th gradients, of order 1, as the dtype of the parameters rounds them; every fifth lies in C order."""
    g = torch.Generator().manual_seed(1000 + k)
    wide = [torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype) for p in params]
    return [
        w if i % 5 == 0 else torch.empty_like(p).copy_(w) for i, (p, w) in enumerate(zip(params, wide, strict=True))
    ]


# ---- configurations × dtypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "number"), [(n, i) for n in PEERS for i in range(len(CONFIGURATIONS[n]))])
def test_trajectories_are_torchs_in_float64(name: str, number: int, dtype: Any) -> None:
    configuration = CONFIGURATIONS[name][number]
    params = mixed_parameters(dtype)
    twins = [p.detach().double().contiguous().requires_grad_() for p in params]
    ours = getattr(ct, name)(params, **options_of(configuration))
    plain = {k: v for k, v in options_of(configuration).items() if k not in ("foreach", "fused", "capturable")}
    truth = PEERS[name](twins, foreach=False, **plain)
    for k in range(12):
        for p, q, g in zip(params, twins, gradients(params, k), strict=True):
            p.grad, q.grad = g, g.double().contiguous()
        ours.step()
        truth.step()
    if configuration.get("eps") is None and dtype in (torch.float16, torch.bfloat16) and name != "SGD":
        assert all(s["exp_avg"].dtype == torch.float32 for s in ours.state.values())
    close(params, twins)


def test_every_keyword_has_a_configuration() -> None:
    """Of torch's keywords; the others are curvk's and have test_torch_storage*.py, or are refused below."""
    for name, peer in PEERS.items():
        known = inspect.signature(peer).parameters.keys() - {"params", "differentiable", "capturable"}
        assert known <= set().union(*CONFIGURATIONS[name]) | ({"decoupled_weight_decay"} if name == "AdamW" else set())


def test_no_optimizer_is_forgotten() -> None:
    found = {n for n in ct.__all__ if isinstance(k := getattr(ct, n), type) and issubclass(k, torch.optim.Optimizer)}
    assert found == {"SAM", "Alice", *FUSED, *ZEROTH}


@pytest.mark.parametrize("kind", [*PEERS, "AdamZ"])
def test_what_torch_could_do_differently_is_refused(kind: str) -> None:
    with pytest.raises(NotImplementedError, match=r"differentiable=True, but curvk steps without a graph"):
        make(kind, net(), differentiable=True)
    if kind == "AdamZ":
        with pytest.raises(NotImplementedError, match=r"capturable=True, but its lr is set on the host"):
            make(kind, net(), capturable=True)
    else:
        model, twin = net(), net()
        plain, captured = make(kind, model), make(kind, twin, capturable=True)
        assert train(kind, plain, model, range(4)) == train(kind, captured, twin, range(4))


@pytest.mark.parametrize("kind", ["SAM(SGD)", "SAM(Adam)", "SAM(AdamW)", "SAM(AdamZ)"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_its_formula_around_torchs_optimizer(kind: str, adaptive: bool) -> None:
    model, twin = net(), net(torch.float64)
    optimizer = ct.SAM(make(base_name(kind), model), rho=0.3, adaptive=adaptive, eta=0.01)
    peer = PEERS[base_name(kind).removesuffix("Z")]
    truth = peer(twin.parameters(), lr=LR, foreach=False, **({"momentum": 0.9} if peer is torch.optim.SGD else {}))
    for k in range(8):
        optimizer.step(closure_for(kind, optimizer, model, k))
        loss_of(twin, k).backward()
        before = values(twin)
        scales = [w.abs() + 0.01 if adaptive else torch.ones_like(w) for w in before]
        norm = sum((t * p.grad).square().sum() for t, p in zip(scales, twin.parameters(), strict=True)).sqrt()
        with torch.no_grad():
            for t, p in zip(scales, twin.parameters(), strict=True):
                p += 0.3 / (norm + 1e-12) * t.square() * p.grad
        truth.zero_grad()
        loss_of(twin, k).backward()
        with torch.no_grad():
            for p, w in zip(twin.parameters(), before, strict=True):
                p.copy_(w)
        truth.step()
        truth.zero_grad()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):  # float32 gradients add to the steps' rounding
        torch.testing.assert_close(p.detach().double(), q.detach(), rtol=1e-4, atol=1e-4)


def test_adamz_whose_lr_has_no_room_is_adam() -> None:
    model, twin = net(torch.float64), net(torch.float64)
    ours = ct.AdamZ(model.parameters(), lr=LR, min_lr=LR, max_lr=LR, patience=1, stagnation_period=2)
    truth = torch.optim.Adam(twin.parameters(), lr=LR, foreach=False)
    for k in range(10):
        ours.step(closure_for("AdamZ", ours, model, k))
        truth.step(closure_for("Adam", truth, twin, k))
    close(values(model), values(twin))


@pytest.mark.parametrize(
    ("kind", "dtype"), [(k, DTYPES[(i + j) % 4]) for i, k in enumerate(KINDS) for j in (0, 2 if i % 2 else 3)], ids=str
)
def test_every_kind_trains_in_every_dtype(kind: str, dtype: Any) -> None:
    model = net(dtype)
    options: dict[str, Any] = {"sigma": 0.1} if kind == "Alice" else {}  # probes that 16 bits can tell apart
    if kind in ZEROTH:
        options = {"eps": 0.1, **({"lr": 0.01, "n_probes": 8} if kind == "FZOO" else {})}
    elif dtype.itemsize == 2 and kind in FUSED and kind != "Lion":
        options = {"rounding": "stochastic"}
    optimizer = make(kind, model, **options)

    def average() -> float:
        with torch.no_grad():
            return sum(loss_of(model, k).item() for k in range(10)) / 10

    before = average()
    losses = train(kind, optimizer, model, range(80 if kind in ZEROTH else 30))
    assert all(torch.isfinite(torch.tensor(losses)))
    assert average() < 0.97 * before
    assert {p.dtype for p in model.parameters()} == {dtype}


STORAGE = [
    {"state_bits": 16},
    {"state_bits": 8, "zero_grad": True},
    {"state_bits": 8, "state_format": "bitsandbytes", "ema": 0.9},
    {"rounding": "stochastic", "ema": 0.5, "seed": 3},
    {"rounding": "kahan", "zero_grad": True},
    {"master": "split16", "state_bits": 16},
]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, o) for i, o in enumerate(STORAGE) for kind in (FUSED[:4][i % 4], SAMS[:4][(i + 1) % 4])],
    ids=str,
)
def test_storage_options_stay_near_the_plain_step(kind: str, options: dict[str, Any]) -> None:
    """The moments' rounding moves a parameter by less than the steps themselves, of 0.02 each."""
    dtype = torch.bfloat16 if {"rounding", "master"} & options.keys() else torch.float32
    model, twin = net(dtype), net(dtype).float()
    ours, plain = make(kind, model, **options), make(kind, twin)
    train(kind, ours, model, range(10))
    train(kind, plain, twin, range(10))
    start = values(net(dtype))
    for p, q, w in zip(model.parameters(), twin.parameters(), start, strict=True):
        moved = (q.detach() - w.float()).abs()
        assert ((p.detach().float() - q.detach()).abs() <= 0.02 + 0.5 * moved + 2**-7 * q.detach().abs()).all()


# ---- closures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, lambda: torch.set_grad_enabled(False)])
@pytest.mark.parametrize("kind", KINDS)
def test_closures_run_with_gradients_whatever_the_caller_has_set(kind: str, context: Any) -> None:
    model, twin = net(), net()
    optimizer, plain = make(kind, model), make(kind, twin)
    seen = []

    def closure() -> Any:
        seen.append(torch.is_grad_enabled())
        return closure_for(kind, optimizer, model)()

    with context():
        outside = torch.is_grad_enabled()
        loss = optimizer.step(closure)
        assert torch.is_grad_enabled() == outside
    assert float(torch.as_tensor(loss).detach()) == train(kind, plain, twin, range(1))[0]
    assert all(seen) or kind in ZEROTH
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_step_returns_what_the_closure_returned(kind: str) -> None:
    model = net()
    optimizer = make(kind, model)
    number = optimizer.step(lambda: closure_for(kind, optimizer, model)().item())
    assert isinstance(number, float)
    if kind in FUSED:
        assert optimizer.step() is None
    elif kind == "Alice" or kind in ZEROTH:
        with pytest.raises((TypeError, RuntimeError), match="closure"):
            optimizer.step()
    else:
        with pytest.raises(RuntimeError, match="closure"):
            optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closure_that_raises_changes_nothing(kind: str) -> None:
    model = net()
    optimizer = make(kind, model)
    train(kind, optimizer, model, range(2))
    before, state = values(model), copy.deepcopy(optimizer.state_dict())

    def closure() -> Any:
        raise OverflowError("the model is not there")

    with pytest.raises(OverflowError, match="the model is not there"):
        optimizer.step(closure)
    assert all(map(torch.equal, values(model), before))
    twin = net()
    resumed = make(kind, twin)
    with torch.no_grad():
        for p, w in zip(twin.parameters(), before, strict=True):
            p.copy_(w)
    resumed.load_state_dict(state)
    assert train(kind, optimizer, model, range(2, 5)) == train(kind, resumed, twin, range(2, 5))


# ---- schedulers ------------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: sched.LambdaLR(o, lambda k: 1 / (1 + k)),
    "MultiplicativeLR": lambda o: sched.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: sched.StepLR(o, 2, gamma=0.5),
    "ExponentialLR": lambda o: sched.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: sched.CosineAnnealingLR(o, 6, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 3, T_mult=2),
    "OneCycleLR": lambda o: sched.OneCycleLR(o, 0.05, total_steps=10),
    "CyclicLR": lambda o: sched.CyclicLR(o, 0.001, 0.02, step_size_up=3, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: sched.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "SequentialLR": lambda o: sched.SequentialLR(
        o, [sched.LinearLR(o, 0.1, total_iters=3), sched.ExponentialLR(o, 0.7)], milestones=[3]
    ),
    "ChainedScheduler": lambda o: sched.ChainedScheduler(
        [sched.ConstantLR(o, 0.5, total_iters=4), sched.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.005, anneal_epochs=4),
}
UNEVEN = [1.0, 0.9, 0.95, 0.96, 0.5, 0.7, 0.7, 0.7]  # losses for ReduceLROnPlateau


def scheduled(optimizer: Any, name: str, step: Any) -> list[list[Any]]:
    """What the group says at each of eight steps."""
    scheduler, told = SCHEDULERS[name](optimizer), []
    for k, loss in enumerate(UNEVEN):
        group = optimizer.param_groups[0]
        told.append([float(group["lr"]), group.get("momentum"), group.get("betas")])
        step(k)
        scheduler.step(loss) if name == "ReduceLROnPlateau" else scheduler.step()
    return told


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("tensor", [False, True])
def test_schedulers_move_the_numbers_and_the_steps_as_torchs(kind: str, name: str, tensor: bool) -> None:
    model, twin = net(torch.float64), net(torch.float64)
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    lr = (lambda: torch.tensor(LR, dtype=torch.float64)) if tensor else (lambda: LR)
    ours = getattr(ct, kind)(model.parameters(), lr=lr(), **momentum)
    truth = PEERS[kind](twin.parameters(), lr=lr(), foreach=False, **momentum)
    told = scheduled(ours, name, lambda k: ours.step(closure_for(kind, ours, model, k)))
    assert told == scheduled(truth, name, lambda k: truth.step(closure_for(kind, truth, twin, k)))
    assert len({lr for lr, *_ in told}) > 1
    close(values(model), values(twin))


@pytest.mark.parametrize(
    ("kind", "name"), list(zip([k for k in KINDS if k not in PEERS], itertools.cycle(SCHEDULERS), strict=False))
)
def test_schedulers_move_every_other_kind(kind: str, name: str) -> None:
    model, still = net(), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)
    optimizer = make(kind, model)
    if name == "OneCycleLR" and kind in ZEROTH:
        with pytest.raises(ValueError, match="optimizer must support momentum"):
            SCHEDULERS[name](optimizer)
        return
    told = scheduled(optimizer, name, lambda k: optimizer.step(closure_for(kind, optimizer, model, k)))
    assert [lr for lr, *_ in told] == [lr for lr, *_ in scheduled(still, name, lambda k: still.step())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_of_zero_stops_every_kind(kind: str) -> None:
    model = net()
    optimizer = make(kind, model, **({"min_lr": 1e-30} if "AdamZ" in kind else {}))  # below which its rule does not go
    train(kind, optimizer, model, range(2))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = values(model)
    train(kind, optimizer, model, range(2, 4))
    assert all(map(torch.equal, values(model), before))


# ---- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PEERS)
def test_groups_with_their_own_numbers_and_one_that_comes_later(kind: str) -> None:
    model, twin = net(torch.float64), net(torch.float64)
    own = {"momentum": 0.5} if kind == "SGD" else {"betas": (0.5, 0.9), "eps": 1e-4}

    def run(made: Any, m: nn.Module, **more: Any) -> None:
        first, second, late = list(m[0].parameters()), list(m[1].parameters()), list(m[4].parameters())
        groups = [{"params": first, "lr": 0.1}, {"params": second, "weight_decay": 0.2, "maximize": True, **own}]
        optimizer = made(groups, lr=0.01, **more)
        for k in range(10):
            if k == 4:
                optimizer.add_param_group({"params": late, "lr": 0.2, **own})
            optimizer.step(closure_for(kind, optimizer, m, k))
        assert len(optimizer.param_groups) == 3

    run(getattr(ct, kind), model)
    run(PEERS[kind], twin, foreach=False)
    close(values(model), values(twin))


@pytest.mark.parametrize("kind", [*FUSED, "Alice"])
def test_groups_that_are_refused_in_torchs_words(kind: str) -> None:
    made = getattr(ct, kind)
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        made([])
    with pytest.raises(TypeError, match="params argument given to the optimizer should be an iterable"):
        made(torch.zeros(3))
    with pytest.raises(TypeError, match="optimizer can only optimize Tensors"):
        made([1.0])
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        made([nn.Parameter(torch.zeros(2)) * 2])
    p = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        made([{"params": [p]}, {"params": [p]}])
    optimizer = made([p])
    before = list(optimizer.param_groups)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    with pytest.raises(ValueError, match=rf"curvk\.torch\.{kind}.*lr'?: got -1\.0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": -1.0})
    assert optimizer.param_groups == before
    with pytest.raises(TypeError, match=r"set"):
        made([{"params": {nn.Parameter(torch.zeros(2))}}])


@pytest.mark.parametrize("kind", GRADIENT)
def test_frozen_unused_tied_and_odd_parameters(kind: str) -> None:
    """Beside a network: a frozen tensor, one without a gradient, one listed twice, sizes 0 and 1, a view."""
    model, twin = net(), net()
    frame = torch.zeros(4, 6)
    odd = {
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
        "unused": nn.Parameter(torch.ones(2)),
        "empty": nn.Parameter(torch.ones(0, 3)),
        "scalar": nn.Parameter(torch.tensor(2.0)),
        "view": frame[:, ::3].requires_grad_(),
    }
    for name, p in odd.items():
        if name != "view":
            model.register_parameter(name, p)
    tied = next(model.parameters())
    optimizer = make(kind, model, [*model.parameters(), odd["view"]])
    plain = make(kind, twin)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model) + tied.sum() * 0 + odd["empty"].sum() + (odd["scalar"] ** 2 + odd["view"].sum()) * 1e-30
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        plain.step(closure_for(kind, plain, twin))
    own = {n: p for n, p in model.named_parameters() if n not in odd}
    if kind not in SAMS:  # whose norm is over all parameters, and rounds otherwise with 1e-30 beside
        assert all(torch.equal(own[n], p) for n, p in twin.named_parameters())
    assert odd["frozen"].tolist() == odd["unused"].tolist() == [1, 1]
    assert "frozen" not in {n for n, p in odd.items() if p in optimizer.state}
    assert odd["empty"].shape == (0, 3)
    assert not frame[:, 1::3].any()
    assert not frame[:, 2::3].any()


@pytest.mark.parametrize("kind", GRADIENT)
def test_gradients_of_the_wrong_kind_are_named(kind: str) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = make(kind, table)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = table(torch.tensor([1, 3])).square().sum()
        loss.backward()
        return loss

    before = table.weight.detach().clone()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step(closure)
    assert torch.equal(table.weight, before)
    assert not optimizer.state


def test_complex_parameters_are_stepped_or_refused() -> None:
    """SGD and Adam take them as torch does (test_torch.py has the numbers); a method that cannot says so."""
    c = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = ct.Alice([c], sigma=0.1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = c.abs().square().sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match=r"complex64"):
        optimizer.step(closure)
    model = nn.Module()
    model.register_parameter("c", c)
    for kind in ZEROTH:
        with pytest.raises((TypeError, ValueError), match=r"complex64|no layers|layers"):
            make(kind, model)
    assert torch.equal(c, torch.ones(3, dtype=torch.complex64))
