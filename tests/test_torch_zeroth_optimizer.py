"""Gradient-free optimizers of curvk.torch as torch.optim.Optimizer: others' changes, state, arguments."""

from __future__ import annotations

import copy
import math
import pickle

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import numpy as np  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402
from torch_zeroth_models import IDS, SEED, assert_same, gpt, language, trained, weights  # noqa: E402
from zeroth_models import Bert, Block  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(SEED)
    print(f"seed {SEED}")  # shown where a test fails


# ---- parameters changed by others ------------------------------------------------------------------------------------


def write_in_place(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(0.9)


def give_memory(model):
    model.lm_head.weight.data = model.lm_head.weight.data.clone()


@pytest.mark.parametrize("change", [write_in_place, give_memory])
def test_parameters_changed_between_steps(change):
    model = gpt()
    optimizer, _ = trained(ct.MeZO, model, 2)
    change(model)
    changed = weights(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"params\['lm_head.weight'\].*opt.restart\(\)"):
            optimizer.step(language(model))
    assert_same(model, changed)
    assert len(optimizer.log) == 2
    optimizer.restart()
    optimizer.step(language(model))
    assert len(optimizer.log) == 1
    assert optimizer.log.header["seed"] == SEED + 1
    twin = gpt()
    twin.load_state_dict(changed)
    optimizer.log.replay(twin)
    assert_same(twin, model)


def test_weights_may_be_loaded_before_the_first_step():
    model = gpt()
    optimizer = ct.MeZO(model, lr=1e-3)
    write_in_place(model)
    start = weights(model)
    optimizer.step(language(model))
    twin = gpt()
    twin.load_state_dict(start)
    optimizer.log.replay(twin)
    assert_same(twin, model)
    later = ct.MeZO(gpt(), lr=1e-3)
    later.model.double()
    with pytest.raises(ValueError, match=r"torch.float64 on cpu, needs torch.float32.*make a new optimizer"):
        later.step(language(later.model))


def test_writes_through_data_are_noticed_by_the_replay():
    """`p.data` has a version counter of its own, so only the weights' checksums tell."""
    model = gpt()
    optimizer, _ = trained(ct.MeZO, model, 2)
    model.lm_head.weight.data.mul_(0.9)
    optimizer.step(language(model))
    twin = gpt()
    with pytest.raises(ValueError, match="changed between steps"):
        optimizer.log.replay(twin)
    assert_same(twin, gpt())


def test_version_counters_tell_of_updates():
    model = gpt()
    saved = model.lm_head.weight * torch.ones(1, requires_grad=True)  # saves the weight for its backward
    trained(ct.MeZO, model, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


@pytest.mark.parametrize("restore", ["grid", "copy"])
def test_closures_that_write_to_parameters(restore):
    model = nn.Sequential(nn.Embedding(31, 8, max_norm=0.1), nn.Linear(8, 3))
    optimizer = ct.MeZO(model, lr=1e-3, restore=restore)
    before = weights(model)
    if restore == "grid":
        with pytest.raises(ValueError, match=r"a closure that writes to '0.weight'.*restore='scratch'"):
            optimizer.step(lambda: model(IDS).square().mean())
    else:
        optimizer.step(lambda: model(IDS).square().mean() * 0)  # undone with the displacement
        assert_same(model, before)


# ---- torch.optim.Optimizer -------------------------------------------------------------------------------------------


def test_groups_follow_the_references_rule():
    model = Bert()
    optimizer = ct.MeZO(model, lr=0.5, weight_decay=0.25)
    names = {id(p): n for n, p in model.named_parameters()}
    still = {names[id(p)] for p in optimizer.param_groups[1]["params"]}
    assert still == {n for n in names.values() if "bias" in n or "layer_norm" in n or "LayerNorm" in n}
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.25, 0.0]
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.5]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
    with pytest.raises(TypeError, match="groups are fixed"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    ct.MeZO(nn.LayerNorm(4), lr=1.0).step  # noqa: B018  one of the groups may be empty


def test_schedulers_set_the_rate_of_each_step():
    model = gpt()
    optimizer = ct.MeZO(model, lr=1e-2, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    rates = []
    for _ in range(4):
        optimizer.step(language(model))
        rates.append(scheduler.get_last_lr()[0])
        scheduler.step()
    assert rates == [1e-2, 5e-3, 2.5e-3, 1.25e-3]
    np.testing.assert_array_equal(optimizer.log.decay, np.float32([r * 0.5 for r in rates]))
    optimizer.param_groups[1]["lr"] = 1.0
    with pytest.raises(ValueError, match=r"'lr': got .* in the groups, needs one for all"):
        optimizer.step(language(model))
    optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[1]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match=r"'weight_decay': got 0.1 in group 1"):
        optimizer.step(language(model))


def test_a_rate_may_be_a_tensor():
    a, b = gpt(), gpt()
    rate = torch.tensor(2.0**-8)
    optimizer = ct.MeZO(a, lr=rate)
    other = ct.MeZO(b, lr=2.0**-8)
    for value in (2.0**-8, 2.0**-9):
        rate.fill_(value)
        other.param_groups[0]["lr"] = other.param_groups[1]["lr"] = value
        optimizer.step(language(a))
        other.step(language(b))
    assert_same(a, b)


def test_gradients_are_neither_needed_nor_touched():
    model = gpt()
    language(model)().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    graphs = []

    def closure():
        loss = language(model)()
        graphs.append(loss.requires_grad)
        return loss

    optimizer = ct.MeZO(model, lr=1e-3)
    optimizer.step(closure)
    assert graphs == [False, False]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
def test_steps_in_inference_mode(restore):
    models = [gpt(), gpt()]
    _, losses = trained(ct.MeZO, models[0], 3, restore=restore)
    with torch.inference_mode():
        assert trained(ct.MeZO, models[1], 3, restore=restore)[1] == losses
    assert_same(*models)
    assert not any(p.is_inference() for p in models[1].parameters())
    language(models[1])().backward()


def test_frozen_parameters_are_not_trained():
    model = gpt()
    model.transformer["wte"].requires_grad_(False)
    model.transformer["h"][1].requires_grad_(False)
    before = weights(model)
    optimizer, _ = trained(ct.LeZO, model, 4, drop=1)
    assert optimizer.layers == ["transformer.h.0", "transformer.h.2"]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("wte" in name or "h.1" in name), name
    twin = gpt()
    optimizer.log.replay(twin)
    assert_same(twin, model)


def test_what_closures_may_return():
    model = gpt()
    optimizer = ct.MeZO(model, lr=1e-3)
    for convert in (lambda x: x, float, lambda x: x.reshape(1), lambda x: np.float64(x), lambda x: x.bfloat16()):
        assert isinstance(optimizer.step(lambda convert=convert: convert(language(model)())), float)
    before = weights(model)
    for bad, text in (
        (lambda: None, "NoneType"),
        (lambda: model(IDS), "shape"),
        (lambda: "1", "str"),
        (lambda: torch.ones(2), r"shape \(2,\)"),
    ):
        with pytest.raises(TypeError, match=f"closure.*{text}.*scalar loss"):
            optimizer.step(lambda bad=bad: (language(model)(), bad())[1])
        assert_same(model, before)
    for bad in (None, 3.0, torch.ones(1)):
        with pytest.raises(TypeError, match=r"closure.*needs a function that returns the loss; use opt.step\(lambda"):
            optimizer.step(bad)
    assert len(optimizer.log) == 5


@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
def test_exceptions_of_the_closure(restore):
    model = gpt()
    optimizer, _ = trained(ct.MeZO, model, 1, restore=restore, n_probes=2)
    before = weights(model)
    for last in range(4):
        calls = []

        def closure(last=last, calls=calls):
            calls.append(1)
            if len(calls) > last:
                raise ZeroDivisionError
            return language(model)()

        with pytest.raises(ZeroDivisionError):
            optimizer.step(closure)
        assert_same(model, before)
    assert len(optimizer.log) == 1
    optimizer.step(language(model))
    twin = gpt()
    trained(ct.MeZO, twin, 2, restore=restore, n_probes=2)
    assert_same(model, twin)  # the failed steps left nothing behind


def test_copies_and_pickles_go_on_by_themselves():
    model = gpt()
    optimizer, _ = trained(ct.AdaLeZO, model, 3, fraction=0.5)
    copied = copy.deepcopy(optimizer)
    pickled = pickle.loads(pickle.dumps(optimizer))
    again, same = copy.deepcopy((model, optimizer))
    assert same.model is again
    for other in (copied, pickled, same):
        assert other.model is not model
        assert type(other) is ct.AdaLeZO
        assert len(other.log) == 3
    losses = [[o.step(language(o.model)) for _ in range(3)] for o in (optimizer, copied, pickled, same)]
    assert losses[0] == losses[1] == losses[2] == losses[3]
    assert_same(model, copied.model)
    assert_same(model, pickled.model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in copy.deepcopy(model).modules())
    assert "LeZO" in repr(optimizer)
    assert "6 steps" in repr(optimizer)


def test_given_layers():
    model = gpt(n=4)
    optimizer = ct.LeZO(model, lr=1e-2, layers=[model.transformer["h"][1], "transformer.h.3"], drop=1)
    assert optimizer.layers == ["transformer.h.1", "transformer.h.3"]
    assert copy.deepcopy(optimizer).layers == optimizer.layers
    with pytest.raises(ValueError, match=r"'a' \(Linear\).*layers=\["):
        ct.LeZO(nn.ModuleDict({"a": nn.Linear(2, 2)}), lr=1e-3)


# ---- weights that something caches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [True, False])
def test_autocast_keeps_no_displaced_weights(outside):
    """Its cache would serve the second loss of a probe with the weights of the first."""
    models = [gpt(), gpt()]

    def closure(model):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return language(model)()

    truth, reference = trained(ct.MeZO, models[0], 3, closure=lambda: closure(models[0]))
    assert np.abs(truth.log.coefs).min() > 0
    if outside:
        with torch.autocast("cpu", torch.bfloat16):
            language(models[1])()  # fills the cache
            _, losses = trained(ct.MeZO, models[1], 3)
            assert torch.is_autocast_cache_enabled()
    else:

        def cached():
            with torch.autocast("cpu", torch.bfloat16):
                return language(models[1])()

        _, losses = trained(ct.MeZO, models[1], 3, closure=cached)
    assert losses == reference
    assert_same(*models)


def test_cached_parametrisations_are_refused():
    model = parametrizations.weight_norm(nn.Linear(3, 3))
    x = torch.randn(4, 3)
    optimizer = ct.MeZO(model, lr=1e-3)
    with parametrize.cached(), pytest.raises(ValueError, match=r"parametrize.cached\(\) inside of the closure"):
        optimizer.step(lambda: model(x).square().mean())

    def closure():
        with parametrize.cached():
            return model(x).square().mean()

    optimizer.step(closure)
    assert optimizer.log.coefs[0, 0] != 0


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "error", "text"),
    [
        (ct.MeZO, {"lr": -1.0}, ValueError, "MeZO: argument 'lr': got -1.0"),
        (ct.MeZO, {"lr": "fast"}, TypeError, "'lr'"),
        (ct.MeZO, {"lr": math.nan}, ValueError, "'lr'"),
        (ct.MeZO, {"eps": 0.0}, ValueError, "'eps': got 0.0"),
        (ct.MeZO, {"eps": -1e-3}, ValueError, "'eps'"),
        (ct.MeZO, {"seed": -1}, ValueError, "'seed'"),
        (ct.MeZO, {"seed": 1 << 64}, ValueError, "'seed'"),
        (ct.MeZO, {"seed": 1.5}, TypeError, "'seed'"),
        (ct.MeZO, {"weight_decay": -0.1}, ValueError, "'weight_decay'"),
        (ct.MeZO, {"restore": "wish"}, ValueError, "'restore': got 'wish'"),
        (ct.MeZO, {"dist": "uniform"}, ValueError, "'dist'"),
        (ct.MeZO, {"n_probes": 0}, ValueError, "'n_probes'"),
        (ct.MeZO, {"points": 3}, ValueError, "'points'"),
        (ct.MeZO, {"parallel": "both"}, ValueError, "'parallel': got 'both'"),
        (ct.MeZO, {"process_group": 3}, TypeError, "'process_group': got int"),
        (ct.MeZO, {"compat": "lozo"}, ValueError, "'compat'"),
        (ct.LeZO, {"drop": 4}, ValueError, "'drop': got 4"),
        (ct.LeZO, {"drop": -1}, ValueError, "'drop'"),
        (ct.LeZO, {"drop": 1.5}, ValueError, "'drop'"),
        (ct.LeZO, {"drop": True}, TypeError, "'drop'"),
        (ct.LeZO, {"rescale": "yes"}, ValueError, "'rescale'"),
        (ct.LeZO, {"layers": ["h"]}, ValueError, "'layers'"),
        (ct.AdaLeZO, {"tau": 0.0}, ValueError, "'tau'"),
        (ct.SparseMeZO, {"keep": 0.0}, ValueError, "'keep'"),
        (ct.FZOO, {"n_probes": 1}, ValueError, "'n_probes'"),
        (ct.ES, {"n_probes": 1}, ValueError, "'n_probes'"),
    ],
    ids=str,
)
def test_bad_arguments(kind, options, error, text):
    model = gpt()
    with pytest.raises(error, match=text):
        kind(model, **{"lr": 1e-3, **options})
    assert_same(model, gpt())


def test_models_that_cannot_be_trained():
    with pytest.raises(TypeError, match=r"MeZO: argument 'model': got generator.*use the model, not"):
        ct.MeZO(gpt().parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="MeZO"):
        ct.MeZO(gpt().requires_grad_(False), lr=1e-3)
    with pytest.raises(BufferError, match=r"MeZO: argument 'params\['weight'\]': got a tensor on device meta"):
        ct.MeZO(nn.Linear(2, 2, device="meta"), lr=1e-3)
    with pytest.raises(TypeError, match=r"params\['weight'\]"):
        ct.MeZO(nn.Linear(2, 2, dtype=torch.complex64), lr=1e-3)
    with pytest.raises(TypeError, match="UninitializedParameter"):
        ct.MeZO(nn.LazyLinear(2), lr=1e-3)
    with torch.inference_mode():
        frozen = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="inference mode"):
        ct.MeZO(frozen, lr=1e-3)
    shared = nn.Linear(2, 2)
    other = nn.Linear(2, 2)
    other.weight = nn.Parameter(shared.weight.data)  # the same memory, another parameter
    with pytest.raises(ValueError, match="memory shared"):
        ct.MeZO(nn.Sequential(shared, other), lr=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_script_modules_take_no_hooks():
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))
    with pytest.raises(ValueError, match=r"ScriptModule.*needs 'copy' or 'grid'"):
        ct.MeZO(model, lr=1e-3)
    ct.MeZO(model, lr=1e-3, restore="grid").step(lambda: model(torch.ones(2, 3)).square().mean())


def test_blocks_of_one_model_in_two_optimizers():
    """Each trains its own part."""
    model = nn.Sequential(Block(8), Block(8))
    x = torch.randn(2, 3, 8)
    first, second = (ct.MeZO(part, lr=1e-3, seed=SEED) for part in model)
    before = weights(model)
    first.step(lambda: model(x).square().mean())
    assert all(torch.equal(p, before[f"1.{n}"]) for n, p in model[1].named_parameters())
    second.step(lambda: model(x).square().mean())
    first.step(lambda: model(x).square().mean())
    assert len(first.log) == 2
