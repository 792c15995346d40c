"""curvk.torch: states that a step finds again, and state dicts."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
from torch_models import CASES, CLASSES, SHAPES, close, made, refused, run, shared  # noqa: E402


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


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
