"""How curvk.torch keeps parameters and states: fewer bits, rounding, masters, averages, and their state dicts."""

from __future__ import annotations

import copy
import io
import pickle
import signal
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch")

import curvk  # noqa: E402
import curvk.optim  # noqa: E402
import curvk.torch as ct  # noqa: E402
import numpy as np  # noqa: E402
from curvk._backend import Plan  # noqa: E402
from curvk.kernels.noise import tensor_word  # noqa: E402
from curvk.torch import _storage  # noqa: E402
from test_torch import EVENTS  # noqa: E402

BASES = [("SGD", {}), ("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {"weight_decay": 0.1}), ("AdamZ", {})]
STORAGES = [
    {"state_bits": 16},
    {"state_bits": 8},
    {"state_bits": 8, "state_format": "bitsandbytes"},
    {"rounding": "stochastic", "seed": 2**64 - 3},
    {"rounding": "kahan"},
    {"master": "split16"},
    {"ema": 0.9},
    {"zero_grad": True},
    {"state_bits": 8, "rounding": "stochastic", "ema": 0.5, "zero_grad": True},
    {"state_bits": 16, "master": "split16", "ema": 0.5},
]
KINDS = [(1, (1,)), (1, (1,)), (12, (3, 4)), (5, (5,))]
SHAPES = [(7,), (3, 50), (), (0,), (2, 3, 4, 5), (1000,)]


def made(dtype=torch.bfloat16, shapes=SHAPES, seed=0):
    """Parameters, one of them laid out as channels last, and a function that sets the k-th gradients."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    for p in params:
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)

    def set_grads(k, params=params):
        generator = torch.Generator().manual_seed(1000 * seed + k + 1)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(torch.bfloat16).to(p.dtype)

    return params, set_grads


def run(optimizer, params, set_grads, start, stop):
    for k in range(start, stop):
        set_grads(k, params)
        optimizer.step()


def bits(tensors):
    """Their bytes in C order."""
    return [t.detach().contiguous().flatten().view(torch.uint8).tolist() if t.numel() else [] for t in tensors]


def state_bits(optimizer, params):
    return [{k: (v.dtype, v.shape, bits([v])) for k, v in optimizer.state.get(p, {}).items()} for p in params]


def saved(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file)


def same(params, twins):
    assert bits(params) == bits(twins)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), BASES, ids=str)
def test_an_average_and_zeroed_gradients_change_no_bit_of_the_step(name, options, dtype):
    params, set_grads = made(dtype)
    twins, _ = made(dtype)
    plain = getattr(ct, name)(twins, lr=0.01, **options)
    ours = getattr(ct, name)(params, lr=0.01, ema=0.75, zero_grad=True, **options)
    average = [p.detach().double().clone() for p in params]
    for k in range(5):
        run(ours, params, set_grads, k, k + 1)
        run(plain, twins, set_grads, k, k + 1)
        assert not any(p.grad.any() for p in params)
        if dtype != torch.bfloat16:  # whose average is that of the parameters before they are rounded
            average = [0.75 * a + 0.25 * p.detach().double() for a, p in zip(average, params, strict=True)]
    same(params, twins)
    for p, q, a in zip(params, twins, average, strict=True):
        for key, value in plain.state.get(q, {}).items():
            assert torch.equal(ours.state[p][key], value), key
        if dtype != torch.bfloat16:
            torch.testing.assert_close(ours.state[p]["param_ema"].double(), a, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), BASES, ids=str)
def test_split_masters_are_float32_parameters(name, options):
    """The same bits as a float32 model that is stepped with the same gradients."""
    params, set_grads = made()
    twins = [torch.nn.Parameter(p.detach().float()) for p in params]
    ours = getattr(ct, name)(params, lr=0.003, master="split16", **options)
    truth = getattr(ct, name)(twins, lr=0.003, **options)
    run(ours, params, set_grads, 0, 20)
    run(truth, twins, set_grads, 0, 20)
    for p, q in zip(params, twins, strict=True):
        low = ours.state[p]["param_low"]
        assert low.dtype == torch.int16
        # The upper half is rounded to nearest: an upper half that was rounded up goes with a negative lower half.
        whole = (p.detach().contiguous().view(torch.int16).int() << 16) + low.contiguous().int()
        assert torch.equal(whole.view(torch.float32), q.detach().contiguous())
        torch.testing.assert_close(p.detach().float(), q.detach(), rtol=2.0**-8, atol=0)


def displacement(dtype, **options):
    """The mean way of parameters over 200 steps with lr 1e-3, whose gradients mostly agree."""
    generator = torch.Generator().manual_seed(5)
    p = torch.nn.Parameter((1 + torch.rand(20000, generator=generator)).to(dtype))
    start = p.detach().double().clone()
    optimizer = ct.AdamW([p], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(200):
        p.grad = (0.5 + torch.randn(p.shape, generator=generator)).to(torch.bfloat16).to(dtype)
        optimizer.step()
    return (p.detach().double() - start).mean().item()


def test_stochastic_rounding_keeps_the_motion_that_rounding_to_nearest_loses():
    start = {"dtype": torch.bfloat16}
    wide = displacement(torch.float32)
    assert wide < -0.05
    # The start is rounded alike, since it is made in the dtype; so the ways are comparable to their noise.
    assert abs(displacement(**start)) < 0.3 * abs(wide)
    for options in ({"rounding": "stochastic"}, {"rounding": "kahan"}, {"master": "split16"}):
        assert displacement(**start, **options) == pytest.approx(wide, rel=0.02), options


@pytest.mark.parametrize("options", STORAGES[:3], ids=str)
def test_narrow_moments_follow_the_wide_ones(options):
    p = torch.nn.Parameter(torch.zeros(4096))
    q = torch.nn.Parameter(torch.zeros(4096))
    ours, truth = ct.Adam([p], **options), ct.Adam([q])
    generator = torch.Generator().manual_seed(2)
    for _ in range(300):
        p.grad = torch.randn(4096, generator=generator)
        q.grad = p.grad.clone()
        ours.step()
        truth.step()
    way, difference = q.detach().norm(), (p.detach() - q.detach()).norm()
    assert difference < 0.1 * way


@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_bits_are_those_of_the_kernel_called_by_hand(options):
    """Of the kernel's arguments: which word, draw, seed and order of the states."""
    params, set_grads = made()
    optimizer = ct.AdamW(
        [(f"layer.{i}", p) for i, p in enumerate(params)], lr=0.01, betas=(0.8, 0.95), eps=1e-6, **options
    )
    twins = [p.detach().clone() for p in params]
    rounding = {"nearest": 0, "stochastic": 1, "kahan": 2}[options.get("rounding", "nearest")]
    rounding = 3 if "master" in options else rounding
    kind, per = options.get("state_bits", 32), 256 if "state_format" in options else 32
    op = {32: "adam_sweep", 16: "adam_sweep16", 8: "adam_sweep8b" if per == 256 else "adam_sweep8"}[kind]
    moments = []
    for _ in range(2):
        dtype = {32: torch.float32, 16: torch.bfloat16, 8: torch.uint8}[kind]
        moments.append([torch.zeros_like(p, dtype=dtype) for p in twins])
        if kind == 8:
            moments.append([torch.zeros(-(-p.numel() // per)) for p in twins])
    max_v = [None] if kind == 32 else []
    low = {0: None, 1: None, 2: torch.bfloat16, 3: torch.int16}[rounding]
    low = low and [torch.zeros_like(p, dtype=low) for p in twins]
    ema = [p.float() for p in twins] if "ema" in options else None
    words = np.array([tensor_word(f"layer.{i}", "rounding") for i in range(len(params))])
    seed = options.get("seed", 0)
    for k in range(3):
        run(optimizer, params, set_grads, k, k + 1)
        set_grads(k, twins)
        rows = (words, np.zeros(len(words), np.int64))
        plan = Plan(op, (twins, [t.grad for t in twins], *moments, *max_v, low, ema, None, None, *rows))
        zero = options.get("zero_grad", False)
        sweep = (rounding, options.get("ema", 0.0), zero, k + 1, seed - 2**64 if seed >= 2**63 else seed)
        plan.run((k + 1, 0.01, 0.8, 0.95, 1e-6, 0.01, True, False, 1.0, *sweep))
        assert zero == (not any(p.grad.any() for p in params))
    same(params, twins)
    keys = ["exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale"] if kind == 8 else ["exp_avg", "exp_avg_sq"]
    for key, column in zip(keys, moments, strict=True):
        same([optimizer.state[p][key] for p in params], column)


def test_noise_depends_on_the_name_the_step_and_the_seed():
    def after(names=("a", "b"), seed=0, steps=1, **more):
        params = [torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in names]
        named = zip(names, params, strict=True) if names[0] is not None else params
        optimizer = ct.SGD(list(named), lr=1e-3, rounding="stochastic", seed=seed, **more)
        for _ in range(steps):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        return [bits([p]) for p in params]

    a, b = after()
    assert a != b
    assert after(("b", "a")) == [b, a]
    assert after(seed=1)[0] != a
    assert after((None, None)) == after(("0", "1"))


def test_positions_count_over_all_groups():
    def made(groups):
        params = [torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(3)]
        optimizer = ct.SGD([{"params": [params[i] for i in g]} for g in groups], lr=1e-3, rounding="stochastic")
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        return optimizer, params

    _, together = made([(0, 1, 2)])
    _, apart = made([(0,), (1, 2)])
    same(apart, together)


def test_a_parameter_that_goes_moves_the_others_as_it_would_for_a_resumed_run():
    idle, p, q = (torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(3))
    optimizer = ct.SGD([{"params": [idle]}, {"params": [p]}], lr=1e-3, rounding="stochastic")
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    optimizer.param_groups[0]["params"].clear()
    q.data.copy_(p.detach())
    resumed = ct.SGD([{"params": []}, {"params": [q]}], lr=1e-3, rounding="stochastic")
    resumed.load_state_dict(saved(optimizer.state_dict()))
    for x, o in ((p, optimizer), (q, resumed)):
        x.grad = torch.ones_like(x)
        o.step()
    same([p], [q])


def test_sgd_by_hand_with_late_momentum():
    p = torch.nn.Parameter(torch.ones(100, dtype=torch.bfloat16))
    twin, buffer = p.detach().clone(), torch.zeros(100, dtype=torch.bfloat16)
    optimizer = ct.SGD([("w", p)], lr=0.01, state_bits=16, rounding="stochastic", seed=9)
    word, zero = np.array([tensor_word("w", "rounding")]), np.zeros(1, np.int64)
    for k in range(5):
        g = torch.full((100,), 0.3 + k).bfloat16()
        optimizer.param_groups[0]["momentum"] = 0.9 if k >= 2 else 0.0
        p.grad = g.clone()
        optimizer.step()
        momentum = (0.01, 0.9 if k >= 2 else 0.0, 0.0, 0.0, False, False, False, k == 2, 1.0)
        op, column = ("sgd_sweep16", [buffer]) if k >= 2 else ("sgd_sweep", None)
        plan = Plan(op, ([twin], [g], column, None, None, None, None, word, zero))
        plan.run((*momentum, 1, 0.0, False, k + 1, 9))
        same([p], [twin])
    same([optimizer.state[p]["momentum_buffer"]], [buffer])


def test_layout_changes_no_bit():
    """Of parameters and gradients; codes count their groups in C order."""
    for options in STORAGES:
        values = torch.randn(48, 40, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        params = [torch.nn.Parameter(v) for v in (values.clone(), values.t().contiguous().t(), values.clone())]
        optimizers = [ct.AdamW([p], lr=0.01, **options) for p in params]
        for k in range(3):
            g = torch.randn(48, 40, generator=torch.Generator().manual_seed(k)).to(torch.bfloat16)
            for p, own in zip(params, (g.clone(), g.t().contiguous().t(), g.t().contiguous().t()), strict=True):
                p.grad = own
            for optimizer in optimizers:
                optimizer.step()
        for p, optimizer in zip(params[1:], optimizers[1:], strict=True):
            same([p], params[:1])
            for key, value in optimizers[0].state[params[0]].items():
                assert bits([optimizer.state[p][key]]) == bits([value]), (options, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", STORAGES, ids=str)
@pytest.mark.parametrize(("name", "base"), BASES[:4], ids=str)
def test_arrays_and_tensors_get_the_same_bits(name, base, options, dtype):
    """From curvk.optim, which has its own way to the kernels."""
    params, set_grads = made(dtype, shapes=[(7,), (3, 50), (300,)])
    plain = [(p.detach().view(torch.uint16) if dtype == torch.bfloat16 else p.detach()).numpy().copy() for p in params]
    ours, theirs = getattr(ct, name)(params, lr=0.01, **base, **options), getattr(curvk.optim, name)
    theirs = theirs(plain, lr=0.01, **base, **options)
    for k in range(4):
        set_grads(k, params)
        grads = [p.grad.view(torch.uint16) if dtype == torch.bfloat16 else p.grad for p in params]
        theirs.step([g.numpy().copy() for g in grads])
        ours.step()
    for p, array, state in zip(params, plain, theirs.state, strict=True):
        assert bits([p]) == [list(array.tobytes())]
        for key, value in state.items():
            if key != "step":
                assert bits([ours.state[p][key]]) == [list(value.tobytes())], key


def test_backends_agree():
    if curvk.get_backend() != "cpp":
        pytest.skip("one backend only")
    for options in STORAGES:
        results = []
        for backend in ("cpp", "numba"):
            with curvk.use_backend(backend):
                params, set_grads = made(shapes=SHAPES[:5])
                optimizer = ct.AdamW(params, lr=0.01, **options)
                run(optimizer, params, set_grads, 0, 3)
            results.append((bits(params), state_bits(optimizer, params)))
        assert results[0] == results[1], options


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_groups_have_options_of_their_own():
    params, set_grads = made()
    alone, _ = made()
    groups = [{"params": params[:3], "state_bits": 32}, {"params": params[3:], "rounding": "stochastic", "ema": 0.5}]
    optimizer = ct.Adam(groups, lr=0.01, state_bits=8)
    run(optimizer, params, set_grads, 0, 3)
    assert [g.get("state_bits") for g in optimizer.param_groups] == [32, 8]
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    expected = {"step", "exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale", "param_ema"}
    assert set(optimizer.state[params[4]]) == expected
    first = ct.Adam(alone[:3], lr=0.01)
    named = [(str(i + 3), p) for i, p in enumerate(alone[3:])]
    second = ct.Adam(named, lr=0.01, state_bits=8, rounding="stochastic")
    for k in range(3):
        set_grads(k, alone)
        first.step()
        second.step()
    same(params, alone)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "state_bits": 16})
    assert optimizer.param_groups[2]["state_bits"] == 16


def test_a_group_may_mix_dtypes():
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float32]
    for name, more in (("SGD", {}), ("SGD", {"momentum": 0.9}), ("AdamW", {})):
        params = [torch.nn.Parameter(torch.ones(40, dtype=d)) for d in dtypes]
        twins = [torch.nn.Parameter(torch.ones(40, dtype=d)) for d in dtypes]
        together = getattr(ct, name)(params, lr=1e-3, rounding="kahan", **more)
        singly = [getattr(ct, name)([p], lr=1e-3, rounding="kahan", **more) for p in twins]
        for k in range(4):
            for own in (params, twins):
                for i, p in enumerate(own):
                    p.grad = torch.full_like(p, 0.1 * (i + k))
            together.step()
            for optimizer in singly:
                optimizer.step()
        same(params, twins)
        assert ["param_low" in together.state.get(p, ()) for p in params] == [False, True, True, False]
        assert together.state[params[2]]["param_low"].dtype == torch.float16


def test_without_options_nothing_is_new():
    params, set_grads = made(torch.float32)
    optimizer = ct.AdamW(params, state_bits=32, rounding="nearest", master="none", ema=None, zero_grad=False, seed=0)
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    assert list(optimizer.param_groups[0]) == list(theirs.param_groups[0])
    run(optimizer, params, set_grads, 0, 2)
    assert optimizer._last.found[0].storage.op == "adam_step"
    wide = ct.AdamW(params, rounding="stochastic", master="none")  # float32 parameters are not rounded
    run(wide, params, set_grads, 0, 2)
    assert wide._last.found[0].storage.op == "adam_step"


def test_options_may_be_switched_on_and_off():
    params, set_grads = made()
    optimizer = ct.SGD(params, lr=0.01, momentum=0.9)
    twins, _ = made()
    plain = ct.SGD(twins, lr=0.01, momentum=0.9)
    run(optimizer, params, set_grads, 0, 2)
    optimizer.param_groups[0]["ema"] = 0.9
    run(optimizer, params, set_grads, 2, 4)
    average = optimizer.state[params[0]]["param_ema"].clone()
    optimizer.param_groups[0]["ema"] = None
    run(optimizer, params, set_grads, 4, 6)
    run(plain, twins, set_grads, 0, 6)
    same(params, twins)  # also: the buffers' first step was not repeated
    assert torch.equal(optimizer.state[params[0]]["param_ema"], average)


def test_parameters_that_get_gradients_later_count_their_own_steps():
    for name in ("SGD", "AdamW"):
        params = [torch.nn.Parameter(torch.ones(300, dtype=torch.bfloat16)) for _ in range(2)]
        late = torch.nn.Parameter(torch.ones(300, dtype=torch.bfloat16))
        optimizer = getattr(ct, name)([("a", params[0]), ("b", params[1])], lr=1e-3, rounding="stochastic")
        alone = getattr(ct, name)([("b", late)], lr=1e-3, rounding="stochastic")
        for k in range(5):
            params[0].grad = torch.ones_like(params[0])
            for p in (params[1], late):
                p.grad = torch.ones_like(p) if k >= 2 else None
            optimizer.step()
            alone.step()
        same(params[1:], [late])
        assert [optimizer.state[p]["step"].item() for p in params] == [5, 3]


# ---- state dicts and copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", STORAGES, ids=str)
@pytest.mark.parametrize(("name", "base"), BASES, ids=str)
def test_a_saved_run_goes_on_bit_for_bit(name, base, options, dtype):
    params, set_grads = made(dtype)
    optimizer = getattr(ct, name)(params, lr=0.01, **base, **options)
    run(optimizer, params, set_grads, 0, 3)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = getattr(ct, name)(twins, lr=0.5, **base, **options)
    state_dict = saved(optimizer.state_dict())
    before = copy.deepcopy(state_dict)
    resumed.load_state_dict(state_dict)
    assert state_bits(resumed, twins) == state_bits(optimizer, params)
    run(optimizer, params, set_grads, 3, 6)
    run(resumed, twins, set_grads, 3, 6)
    same(params, twins)
    assert state_bits(resumed, twins) == state_bits(optimizer, params)
    for key, state in before["state"].items():  # which the steps have not touched
        assert all(bits([v]) == bits([state_dict["state"][key][k]]) for k, v in state.items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_copies_continue_alike(options, copied):
    params, set_grads = made()
    optimizer = ct.AdamZ(params, lr=0.01, **options)
    run(optimizer, params, set_grads, 0, 3)
    twin = copied(optimizer)
    twins = [p for g in twin.param_groups for p in g["params"]]
    run(optimizer, params, set_grads, 3, 5)
    run(twin, twins, set_grads, 3, 5)
    same(params, twins)
    assert state_bits(twin, twins) == state_bits(optimizer, params)


def test_numpys_numbers_may_be_options():
    params, set_grads = made()
    options = {"state_bits": np.int64(8), "ema": np.float32(0.5), "zero_grad": np.bool_(True), "seed": np.uint64(2**63)}
    optimizer = ct.AdamW(params, **options)
    run(optimizer, params, set_grads, 0, 1)
    resumed = ct.AdamW(params, state_bits=8)
    resumed.load_state_dict(saved(optimizer.state_dict()))
    assert state_bits(resumed, params) == state_bits(optimizer, params)


def test_torchs_and_older_state_dicts_keep_the_groups_options():
    params, set_grads = made(torch.float32)
    theirs = torch.optim.AdamW(params, lr=0.25)
    run(theirs, params, set_grads, 0, 2)
    optimizer = ct.AdamW(params, rounding="stochastic", zero_grad=True, ema=0.9)
    optimizer.load_state_dict(theirs.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["rounding"], group["zero_grad"], group["ema"]) == (0.25, "stochastic", True, 0.9)
    run(optimizer, params, set_grads, 2, 3)
    theirs.load_state_dict(optimizer.state_dict())
    run(theirs, params, set_grads, 3, 4)
    assert theirs.state[params[0]]["step"].item() == 4
    other = ct.AdamW(params)
    other.load_state_dict(optimizer.state_dict())  # as lr, options come with the state dict
    assert other.param_groups[0]["ema"] == 0.9


def test_states_of_another_format_are_refused_and_nothing_changes():
    params, set_grads = made()
    kinds = [{}, *STORAGES[:3]]
    state_dicts = []
    for options in kinds:
        optimizer = ct.AdamW(params, lr=0.01, **options)
        run(optimizer, params, set_grads, 0, 2)
        state_dicts.append(saved(optimizer.state_dict()))
    for i, options in enumerate(kinds):
        for j, state_dict in enumerate(state_dicts):
            optimizer = ct.AdamW(params, lr=0.01, **options)
            run(optimizer, params, set_grads, 0, 1)
            before = (state_bits(optimizer, params), copy.deepcopy(optimizer.param_groups[0]["lr"]))
            if i == j:
                optimizer.load_state_dict(state_dict)
                continue
            with pytest.raises(ValueError, match=r"curvk\.torch\.convert_state_dict\(state_dict, state_bits="):
                optimizer.load_state_dict(state_dict)
            assert (state_bits(optimizer, params), optimizer.param_groups[0]["lr"]) == before
            optimizer.load_state_dict(ct.convert_state_dict(state_dict, **{"state_bits": 32, **options}))
            run(optimizer, params, set_grads, 2, 3)


def without(key):
    return lambda state: state.pop(key)


def changed(key, change):
    return lambda state: state.update({key: change(state[key])})


@pytest.mark.parametrize(
    ("options", "damage", "match"),
    [
        ({"state_bits": 8}, without("exp_avg_scale"), "has no 'exp_avg_scale'"),
        ({"state_bits": 8}, changed("exp_avg_scale", lambda x: x[:-1]), "'exp_avg_scale' of shape"),
        ({"state_bits": 8}, changed("exp_avg_sq", lambda x: x.float()), "'exp_avg_sq' of dtype torch.float32"),
        ({"state_bits": 16}, changed("exp_avg", lambda x: x[:3]), "'exp_avg' of shape"),
        ({"rounding": "kahan"}, changed("param_low", lambda x: x.half()), "'param_low' of dtype.*delete 'param_low'"),
        ({"master": "split16"}, changed("param_low", lambda x: x.int()), "'param_low' of dtype torch.int32"),
        ({"ema": 0.5}, changed("param_ema", lambda x: x[:2]), "'param_ema' of shape"),
        ({"ema": 0.5}, changed("param_ema", lambda x: 3.0), "'param_ema' of type float"),
    ],
)
def test_damaged_states_are_refused_by_name(options, damage, match):
    params, set_grads = made()
    optimizer = ct.Adam([(f"layer{i}", p) for i, p in enumerate(params)], **options)
    run(optimizer, params, set_grads, 0, 2)
    state_dict = saved(optimizer.state_dict())
    damage(state_dict["state"][5])
    before = state_bits(optimizer, params)
    with pytest.raises(ValueError, match=f"parameter 'layer5'.*{match}"):
        optimizer.load_state_dict(state_dict)
    assert state_bits(optimizer, params) == before


# ---- conversion ------------------------------------------------------------------------------------------------------


def dequantized(codes, scales, signed, per):
    """What curvk/sweep.h says that codes mean, in double precision; bitsandbytes' map from its definition."""
    codes = codes.flatten().numpy()
    scale = np.repeat(scales.double().numpy(), per)[: codes.size]
    if per == 32:  # about the square or the fourth power, exactly where the value is a power of two, linear between
        y = codes.view(np.int8) / 127 if signed else codes / 255
        power = 2 if signed else 4
        steps = np.arange(-8 * power, 1)  # the value's exponents; a power of two of y has `power` of them
        knots = 2.0 ** (steps // power) * (1 + steps % power / power)
        return scale * np.sign(y) * np.interp(np.abs(y), [0, *knots], [0, *2.0**steps])
    values = [0.0, 1.0]  # Dettmers et al. 2022: in each decade 10^-7..1 twice as many equal cells as in the one below
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        middle = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6)
        values += [*middle, *(-middle if signed else [])]
    return scale * np.sort(values)[codes]


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_conversion_there_and_back(name):
    params, set_grads = made(torch.float32)
    optimizer = getattr(ct, name)(params, **({"momentum": 0.9} if name == "SGD" else {}))
    run(optimizer, params, set_grads, 0, 4)
    wide = optimizer.state_dict()
    untouched = copy.deepcopy(wide)
    moments = ["momentum_buffer"] if name == "SGD" else ["exp_avg", "exp_avg_sq"]
    for options in STORAGES[:3]:
        narrow = ct.convert_state_dict(wide, **options)
        again = ct.convert_state_dict(narrow, **options)
        back = ct.convert_state_dict(narrow)
        assert {k: narrow["param_groups"][0].get(k) for k in options} == options
        assert "state_bits" not in back["param_groups"][0]
        per = 256 if "state_format" in options else 32
        for key, state in wide["state"].items():
            assert {k: bits([v]) for k, v in again["state"][key].items() if isinstance(v, torch.Tensor)} == {
                k: bits([v]) for k, v in narrow["state"][key].items() if isinstance(v, torch.Tensor)
            }
            assert list(back["state"][key]) == list(state)
            for moment in moments:
                x, y = state[moment], back["state"][key][moment]
                assert (y.dtype, y.shape) == (torch.float32, x.shape)
                if options["state_bits"] == 16:
                    assert torch.equal(y, x.bfloat16().float())
                    continue
                own = narrow["state"][key]
                digit = "2" if moment == "exp_avg_sq" else "1"
                foreign = per == 256 and name == "AdamW"
                codes, scales = (
                    (own[f"state{digit}"], own[f"absmax{digit}"]) if foreign else (own[moment], own[f"{moment}_scale"])
                )
                assert (codes.dtype, codes.shape) == (torch.uint8, x.shape)
                largest = [float(c.abs().max()) for c in x.contiguous().flatten().split(per)] if x.numel() else []
                assert scales.tolist() == largest
                truth = dequantized(codes, scales, moment != "exp_avg_sq", per)
                np.testing.assert_allclose(y.flatten().double().numpy(), truth, rtol=1e-6, atol=0)
                # A cell is at most this wide, of the scale: the map's cells grow with the value.
                assert (y - x).abs().max() <= 0.02 * x.abs().max() if x.numel() else True
    for key, state in untouched["state"].items():
        assert all(bits([wide["state"][key][k]]) == bits([v]) for k, v in state.items())


def test_each_group_may_get_a_format_of_its_own():
    params, set_grads = made(torch.float32)
    wide = ct.AdamW([{"params": params[:2]}, {"params": params[2:]}])
    run(wide, params, set_grads, 0, 3)
    narrow = ct.convert_state_dict(wide.state_dict(), state_bits=[32, 8])
    assert [g.get("state_bits") for g in narrow["param_groups"]] == [None, 8]
    optimizer = ct.AdamW([{"params": params[:2]}, {"params": params[2:], "state_bits": 8}])
    optimizer.load_state_dict(narrow)
    assert torch.equal(optimizer.state[params[1]]["exp_avg"], wide.state[params[1]]["exp_avg"])
    assert optimizer.state[params[2]]["exp_avg"].dtype == torch.uint8
    back = ct.convert_state_dict(optimizer.state_dict(), state_bits=(8, 8), state_format=["curvk", "bitsandbytes"])
    assert "state1" in back["state"][2]
    assert "exp_avg_scale" in back["state"][1]


def test_conversion_keeps_what_is_no_moment():
    params, set_grads = made()
    optimizer = ct.Adam(params, master="split16", ema=0.9)
    run(optimizer, params, set_grads, 0, 2)
    narrow = ct.convert_state_dict(optimizer.state_dict(), state_bits=8)
    for key, state in narrow["state"].items():
        for own in ("step", "param_low", "param_ema"):
            assert state[own] is optimizer.state_dict()["state"][key][own] or torch.equal(
                state[own], optimizer.state_dict()["state"][key][own]
            )
    assert narrow["param_groups"][0]["master"] == "split16"
    other = ct.Adam(params, state_bits=8)
    other.load_state_dict(narrow)
    run(other, params, set_grads, 2, 3)


def test_conversions_that_make_no_sense():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    double = ct.Adam([p])
    double.step()
    q = torch.nn.Parameter(torch.ones(3))
    q.grad = torch.ones_like(q)
    amsgrad = ct.Adam([q], amsgrad=True)
    amsgrad.step()
    for state_dict, options, error, match in [
        (double.state_dict(), {"state_bits": 8}, ValueError, "exp_avg.*torch.float64"),
        (double.state_dict(), {"state_bits": 16}, ValueError, "exp_avg.*torch.float64"),
        (amsgrad.state_dict(), {"state_bits": 8}, ValueError, "amsgrad"),
        (amsgrad.state_dict(), {"state_bits": 4}, ValueError, "'state_bits': got 4"),
        (amsgrad.state_dict(), {"state_format": "torchao"}, ValueError, "'state_format': got 'torchao'"),
        (amsgrad.state_dict(), {"state_bits": [32, 8]}, ValueError, "'state_bits': got 2 of them.*each of 1 groups"),
        ([], {}, TypeError, "'state_dict': got list"),
    ]:
        with pytest.raises(error, match=match):
            ct.convert_state_dict(state_dict, **options)
    assert ct.convert_state_dict(double.state_dict())["state"][0]["exp_avg"].dtype == torch.float64


def foreign_state_dict(params, wrapped):
    """As bitsandbytes 0.50's AdamW8bit writes it: tensors of fewer than 4096 elements keep float32."""
    optimizer = ct.AdamW(params, lr=0.01, state_bits=8, state_format="bitsandbytes")
    for k in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
        optimizer.step()
    whole = optimizer.state_dict()
    layout = ct.convert_state_dict(whole, state_bits=8, state_format="bitsandbytes")
    wide = ct.convert_state_dict(whole)
    states = {}
    for key, s in layout["state"].items():
        small = params[key].numel() < 4096
        own = (
            {"state1": wide["state"][key]["exp_avg"], "state2": wide["state"][key]["exp_avg_sq"]} if small else dict(s)
        )
        own.pop("step", None)
        states[key] = {"step": 3, "__bnb_optimizer_quant_state__": own} if wrapped else {"step": 3, **own}
    group = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    group |= {"alpha": 0.0, "t_alpha": None, "t_beta3": None, "params": list(range(len(params)))}
    return optimizer, {"state": states, "param_groups": [group]}


@pytest.mark.parametrize("wrapped", [True, False])
def test_bitsandbytes_state_dicts_are_read(wrapped):
    params = [torch.nn.Parameter(torch.randn(s)) for s in ((80, 64), (10,))]
    origin, foreign = foreign_state_dict(params, wrapped)
    form = {"state_bits": 8, "state_format": "bitsandbytes"}
    optimizer = ct.AdamW(params, **form)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0.*'exp_avg'.*convert_state_dict"):
        optimizer.load_state_dict(foreign)  # a float32 tensor in an 8-bit group
    assert not optimizer.state
    optimizer.load_state_dict(saved(ct.convert_state_dict(foreign, **form)))
    assert state_bits(optimizer, params[:1]) == state_bits(origin, params[:1])
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert "alpha" not in optimizer.param_groups[0]
    wide = ct.AdamW(params)
    wide.load_state_dict(ct.convert_state_dict(foreign))
    assert wide.state[params[1]]["exp_avg"].dtype == torch.float32
    large = {"state": {0: foreign["state"][0]}, "param_groups": [{**foreign["param_groups"][0], "params": [0]}]}
    alone = ct.AdamW(params[:1], **form)
    alone.load_state_dict(large)  # no conversion is needed where every tensor has codes
    assert state_bits(alone, params[:1]) == state_bits(origin, params[:1])


def test_other_state_dicts_of_bitsandbytes_are_refused():
    params = [torch.nn.Parameter(torch.randn(80, 64))]
    _, foreign = foreign_state_dict(params, False)
    group, state = foreign["param_groups"][0], foreign["state"][0]
    other_map = {**state, "qmap2": state["qmap2"].sqrt()}
    one = {k: v for k, v in state.items() if not k.endswith("2")}
    order = {**state, "state1": state["state1"].t()}
    for changed_state, changed_group, match in [
        (other_map, group, "qmap2"),
        (one, group, "two blockwise"),
        (order, group, "strides"),
        (state, {**group, "alpha": 5.0}, "'alpha': got 5.0"),
    ]:
        with pytest.raises(ValueError, match=match):
            ct.convert_state_dict({"state": {0: changed_state}, "param_groups": [changed_group]})


def test_bitsandbytes_itself_reads_and_writes_them():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bnb = pytest.importorskip("bitsandbytes")
    form = {"state_bits": 8, "state_format": "bitsandbytes"}
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((80, 64), (5000,))]
    theirs = bnb.optim.AdamW8bit(params, lr=0.01)

    def step(optimizer, own, k):
        for i, p in enumerate(own):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * k + i))
        optimizer.step()

    for k in range(3):
        step(theirs, params, k)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours = ct.AdamW(twins, **form)
    ours.load_state_dict(ct.convert_state_dict(saved(theirs.state_dict()), **form))
    for p, q in zip(params, twins, strict=True):
        assert bits([ours.state[q]["exp_avg"]]) == bits([theirs.state[p]["state1"]])
        assert bits([ours.state[q]["exp_avg_sq_scale"]]) == bits([theirs.state[p]["absmax2"]])
    step(theirs, params, 3)
    step(ours, twins, 3)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(q.detach(), p.detach(), rtol=1e-5, atol=1e-6)
        agree = (ours.state[q]["exp_avg_sq"] == theirs.state[p]["state2"]).float().mean()
        assert agree > 0.99
    again = [torch.nn.Parameter(p.detach().clone()) for p in twins]
    back = bnb.optim.AdamW8bit(again, lr=0.5)
    back.load_state_dict(saved(ct.convert_state_dict(ours.state_dict(), **form)))
    assert back.state[again[0]]["state1"].dtype == torch.uint8
    assert back.state[again[0]]["step"] == 4
    for key in ("qmap1", "qmap2"):  # theirs is summed up in float32
        torch.testing.assert_close(back.state[again[0]][key], theirs.state[params[0]][key], rtol=2.0**-22, atol=1e-14)
    step(ours, twins, 4)
    step(back, again, 4)
    for p, q in zip(again, twins, strict=True):
        torch.testing.assert_close(q.detach(), p.detach(), rtol=1e-5, atol=1e-6)


# ---- averages, memory, zeroed gradients ------------------------------------------------------------------------------


def test_averaged_swaps_and_restores_every_bit():
    params, set_grads = made()
    params.append(torch.nn.Parameter(torch.tensor([float("nan"), -0.0], dtype=torch.bfloat16)))
    idle = torch.nn.Parameter(torch.ones(3))
    optimizer = ct.AdamW([*params, idle], lr=0.1, ema=0.5, master="split16")
    run(optimizer, params, set_grads, 0, 4)
    before, states = bits([*params, idle]), state_bits(optimizer, params)

    def looked_at():
        with optimizer.averaged():
            for p in params[:-1]:
                assert torch.equal(p, optimizer.state[p]["param_ema"].to(p.dtype))
            assert bits(params) != before[:-1]
            with pytest.raises(RuntimeError, match="hold their averages; step outside"):
                optimizer.step()
            with pytest.raises(RuntimeError, match="averages already"), optimizer.averaged():
                pass
            raise KeyError("from inside")

    with pytest.raises(KeyError, match="from inside"):
        looked_at()
    assert (bits([*params, idle]), state_bits(optimizer, params)) == (before, states)
    run(optimizer, params, set_grads, 4, 5)
    with pytest.raises(ValueError, match="no parameter group has 'ema'"), ct.SGD(params).averaged():
        pass


@pytest.mark.parametrize("when", [0, 1])
def test_ctrl_c_leaves_no_average_behind(monkeypatch, when):
    """Before Ctrl-C is made to wait, and while the parameters are written."""
    params, set_grads = made()
    optimizer = ct.SGD(params, lr=0.1, ema=0.5)
    run(optimizer, params, set_grads, 0, 2)
    before = bits(params)
    whole, calls = _storage._write, []

    def interrupted(pairs):
        calls.append(pairs)
        if len(calls) == 2 and when:
            whole(pairs[:1])
            signal.raise_signal(signal.SIGINT)
            whole(pairs[1:])
        else:
            whole(pairs)

    def early():
        raise KeyboardInterrupt

    monkeypatch.setattr(_storage, "_write", interrupted)
    if not when:
        monkeypatch.setattr(_storage, "uninterrupted", early)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), optimizer.averaged():
            assert bits(params) != before
    finally:
        signal.signal(signal.SIGINT, handler)
    assert bits(params) == before
    run(optimizer, params, set_grads, 2, 3)


def test_memory_is_counted_by_hand():
    weight = torch.nn.Parameter(torch.ones(100, 50, dtype=torch.bfloat16))
    table = torch.nn.Parameter(torch.ones(1000))
    groups = [{"params": [weight]}, {"params": [table], "state_bits": 32, "master": "none", "ema": None}]
    optimizer = ct.AdamW(groups, state_bits=8, master="split16", ema=0.9)
    assert optimizer.memory()["bytes"] == {"params": 10000 + 4000, "grads": 0}
    for p in (weight, table):
        p.grad = torch.ones_like(p)
    optimizer.step()
    expected = {
        "params": 2 * 5000 + 4 * 1000,
        "grads": 2 * 5000 + 4 * 1000,
        "step": 4 + 4,
        "exp_avg": 5000 + 4 * 1000,
        "exp_avg_scale": 4 * 157,
        "exp_avg_sq": 5000 + 4 * 1000,
        "exp_avg_sq_scale": 4 * 157,
        "param_low": 2 * 5000,
        "param_ema": 4 * 5000,
    }
    found = optimizer.memory()
    assert found["parameters"] == 6000
    assert found["bytes"] == expected
    each = found["bytes_per_parameter"]
    assert each == {**{k: v / 6000 for k, v in expected.items()}, "total": sum(expected.values()) / 6000}
    assert ct.SGD([torch.nn.Parameter(torch.ones(0))]).memory()["bytes_per_parameter"]["total"] == 0


def test_zeroed_gradients_are_noticed_by_autograd_and_others_are_not_touched():
    for zero, noticed in ((True, True), (False, False)):
        p = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        optimizer = ct.AdamW([p], rounding="stochastic", zero_grad=zero)
        p.grad = torch.ones_like(p)
        for _ in range(3):
            factor = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
            product = (p.grad * factor).sum()
            memory, version = p.grad.data_ptr(), p.grad._version
            optimizer.step()
            assert p.grad.data_ptr() == memory
            assert (p.grad._version > version) == noticed
            assert bool(p.grad.any()) != zero
            if noticed:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    product.backward()
            else:
                product.backward()


def test_gradients_are_not_kept_alive():
    for options in STORAGES:
        params, set_grads = made(shapes=[(64,), (8, 8)])
        optimizer = ct.SGD(params, momentum=0.9, **options)
        for k in range(3):
            run(optimizer, params, set_grads, k, k + 1)
            alive = [weakref.ref(p.grad) for p in params]
            optimizer.zero_grad()
            assert not any(r() is not None for r in alive), options


def test_gradients_may_share_memory_where_they_are_only_read():
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(3)]
    g = torch.ones(3, dtype=torch.bfloat16)
    optimizer = ct.SGD(params, lr=0.5, rounding="kahan")
    for _ in range(2):
        params[0].grad = params[1].grad = g
        params[2].grad = torch.ones((), dtype=torch.bfloat16).expand(3)
        optimizer.step()
    assert [p.tolist() for p in params] == [[0.0] * 3] * 3
    assert g.tolist() == [1.0] * 3
    optimizer = ct.SGD(params[:2], lr=0.5, zero_grad=True)
    with pytest.raises(ValueError, match=r"gradient of parameter 1 of group 0.*shared.*its own memory"):
        optimizer.step()


def test_lazily_negated_gradients_are_zeroed_too():
    p = torch.nn.Parameter(torch.ones(3))
    z = torch.view_as_complex(torch.ones(3, 2))
    p.grad = torch.conj(z).imag
    assert p.grad.is_neg()
    ct.SGD([p], lr=0.5, zero_grad=True).step()
    assert (p.tolist(), p.grad.tolist()) == ([1.5] * 3, [0.0] * 3)


def test_skipped_steps_zero_their_gradients():
    """Else inf would stay in the gradients, and every later step be skipped."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ct.AdamW([p], zero_grad=True, skip_nonfinite=True)
    p.grad = torch.tensor([1.0, float("inf"), 2.0])
    optimizer.step()
    assert (p.tolist(), p.grad.tolist()) == ([1.0] * 3, [0.0] * 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    optimizer = ct.AdamW([p], lr=0.5, weight_decay=0.0, zero_grad=True)
    for bad in (True, False, False):
        scaler.scale((p * (float("inf") if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert p.grad.tolist() == [0.0] * 3
        assert bool(optimizer.state) != bad
    assert torch.allclose(p.detach(), torch.zeros(3), atol=1e-5)


def test_accumulated_gradients_in_one_pass():
    p, q = (torch.nn.Parameter(torch.ones(40)) for _ in range(2))
    ours, truth = ct.SGD([p], lr=0.1, zero_grad=True), torch.optim.SGD([q], lr=0.1)
    for _ in range(3):
        for _ in range(2):
            for x in (p, q):
                x.square().sum().backward()
        ours.step()
        truth.step()
        truth.zero_grad()
    torch.testing.assert_close(p, q)


def test_complex_parameters():
    for name in ("SGD", "Adam"):
        p, q = (torch.nn.Parameter(torch.full((4,), 1 + 2j)) for _ in range(2))
        optimizer = getattr(ct, name)([p], lr=0.1, ema=0.5, zero_grad=True)
        plain = getattr(ct, name)([q], lr=0.1)
        average = p.detach().clone()
        for k in range(3):
            p.grad = torch.full((4,), 0.5 - 1j * k).conj()
            q.grad = p.grad.clone()
            optimizer.step()
            plain.step()
            average = 0.5 * average + 0.5 * p.detach()
            assert not p.grad.any()
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=0)
        torch.testing.assert_close(optimizer.state[p]["param_ema"], average)
        with optimizer.averaged():
            torch.testing.assert_close(p.detach(), average)


# ---- SAM, schedulers, closures ---------------------------------------------------------------------------------------


def quadratic(params, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = sum((p.float() - 0.3).square().sum() for p in params)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_sam_around(options):
    """The same bits as SAM written out: perturb a copy, take its gradient, step from the weights."""
    for dtype in (torch.bfloat16, torch.float32):
        params, _ = made(dtype, shapes=[(300,), (4, 20)])
        twins, _ = made(dtype, shapes=[(300,), (4, 20)])
        sam = ct.SAM(ct.AdamW(params, lr=0.01, **options), rho=0.5)
        base = ct.AdamW(twins, lr=0.01, **options)
        for _ in range(4):
            sam.step(quadratic(params, sam))
            quadratic(twins, base)()
            norm = torch.stack([p.grad.double().square().sum() for p in twins]).sum().sqrt().item()
            before = [p.detach().clone() for p in twins]
            with torch.no_grad():
                for p in twins:
                    p.copy_(p.float() + 0.5 / (norm + 1e-12) * p.grad.float())
            quadratic(twins, base)()
            with torch.no_grad():
                for p, old in zip(twins, before, strict=True):
                    p.copy_(old)
            base.step()
        for p, q in zip(params, twins, strict=True):
            assert (p == q).float().mean() > 0.9  # a rounding of the perturbed weights may differ
            torch.testing.assert_close(p.detach().float(), q.detach().float(), rtol=2.0**-7, atol=1e-3)
        assert sam.memory() == sam.base.memory()


def test_sam_resumes_averages_and_skips():
    params, _ = made(shapes=[(300,)])
    options = {"state_bits": 8, "rounding": "stochastic", "ema": 0.5, "zero_grad": True}
    sam = ct.SAM(ct.AdamW(params, lr=0.01, **options), rho=0.5)
    for _ in range(2):
        sam.step(quadratic(params, sam))
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = ct.SAM(ct.AdamW(twins, **options))
    resumed.load_state_dict(saved(sam.state_dict()))
    for own, optimizer in ((params, sam), (twins, resumed)):
        optimizer.step(quadratic(own, optimizer))
    same(params, twins)
    before = bits(params)
    with sam.averaged():
        assert bits(params) != before
    assert bits(params) == before
    params[0].grad = torch.full_like(params[0], float("inf"))
    assert not sam.perturb_()
    sam.step()
    assert not params[0].grad.any()
    assert (bits(params), sam.skipped_steps) == (before, 1)


def test_an_average_that_starts_in_a_step_of_sams_starts_at_the_weights():
    p = torch.nn.Parameter(torch.ones(30))
    sam = ct.SAM(ct.SGD([p], lr=0.0, ema=0.5), rho=10.0)
    sam.step(quadratic([p], sam))
    assert torch.equal(sam.state[p]["param_ema"], torch.ones(30))


def test_sam_resets_moments_but_no_masters():
    params, set_grads = made(shapes=[(300,), (40,)])
    wide = [torch.nn.Parameter(p.detach().float()) for p in params]
    sam = ct.SAM(ct.AdamW(params, lr=0.01, master="split16", ema=0.5), rho=0.0, start=2, reset_state_on_switch=True)
    twin = ct.SAM(ct.AdamW(wide, lr=0.01, ema=0.5), rho=0.0, start=2, reset_state_on_switch=True)
    for k in range(3):
        for optimizer, own in ((sam, params), (twin, wide)):
            set_grads(k, own)
            if k == 2:
                own[1].grad = None
            optimizer.perturb_()
            if k == 2:
                assert own[0].grad is None
                set_grads(k, own[:1])
            optimizer.step()
    for p, w in zip(params, wide, strict=True):
        assert torch.equal(p, w.bfloat16())
        assert torch.equal(sam.state[p]["param_ema"], twin.state[w]["param_ema"])
    assert sam.state[params[0]]["step"].item() == 1
    assert sam.state[params[1]].keys() == {"param_low", "param_ema"}
    resumed = ct.SAM(ct.AdamW(params, master="split16", ema=0.5))
    resumed.load_state_dict(saved(sam.state_dict()))
    assert state_bits(resumed, params) == state_bits(sam, params)


def test_sam_looks_not_around_averages():
    p = torch.nn.Parameter(torch.ones(8))
    sam = ct.SAM(ct.SGD([p], lr=0.5, ema=0.5))
    sam.step(quadratic([p], sam))
    with sam.averaged():
        average = bits([p])
        with pytest.raises(RuntimeError, match="perturb_: the parameters hold their averages"):
            sam.step(quadratic([p], sam))
        assert bits([p]) == average


@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_schedulers_and_closures(options):
    params, _ = made(torch.float32, shapes=[(40,)])
    twins, _ = made(torch.float32, shapes=[(40,)])
    ours, truth = ct.SGD(params, lr=0.1, **options), torch.optim.SGD(twins, lr=0.1)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=10, cycle_momentum=False) for o in (ours, truth)
    ]
    for _ in range(8):
        for own, optimizer in ((params, ours), (twins, truth)):
            assert optimizer.step(quadratic(own, optimizer)).item() > 0
        for scheduler in schedulers:
            scheduler.step()
    torch.testing.assert_close(params[0], twins[0])


@pytest.mark.filterwarnings("ignore")
def test_compiled_training_loops_fall_back_to_eager():
    p, q = (torch.nn.Parameter(torch.ones(40, dtype=torch.bfloat16)) for _ in range(2))
    optimizers = [ct.AdamW([("p", x)], state_bits=8, rounding="stochastic") for x in (p, q)]

    def step(x, optimizer):
        optimizer.zero_grad()
        (x * x).sum().backward()
        optimizer.step()

    compiled = torch.compile(step, backend="eager")
    for _ in range(3):
        compiled(p, optimizers[0])
        step(q, optimizers[1])
    same([p], [q])


# ---- what happens between steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_a_step_reads_no_state_again(options):
    params, set_grads = made()
    optimizer = ct.AdamW(params, **options)
    run(optimizer, params, set_grads, 0, 2)
    found = optimizer._last.found[0]
    versions = [v._version for p in params for k, v in optimizer.state[p].items() if k != "step"]
    run(optimizer, params, set_grads, 2, 5)
    assert optimizer._last.found[0] is found
    now = [v._version for p in params for k, v in optimizer.state[p].items() if k != "step"]
    assert all(b >= a + 3 for a, b in zip(versions, now, strict=True))


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.__name__)
def test_what_happens_between_steps_is_noticed(event):
    """By a sweep as by the plain step, whose bits it has."""
    runs = []
    for options in ({}, {"ema": 0.5}):
        params = [torch.nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64).view(s)) for n, s in KINDS]
        optimizer = ct.AdamW(params, lr=0.1, **options)
        for turn in range(2):
            for k in range(4 * turn, 4 * turn + 4):
                x = torch.rand(12, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
                for p in params:
                    p.grad = x[: p.numel()].view(p.shape).clone()
                optimizer.step()
            if turn == 0:
                with torch.no_grad():
                    event(optimizer, params)
        runs.append((bits(params), [bits([optimizer.state[p][k]]) for p in params for k in ("step", "exp_avg")]))
    assert runs[0] == runs[1]


def test_float_moments_follow_a_new_dtype_and_low_halves_do_not():
    for options in ({"rounding": "stochastic"}, {"state_bits": 8}, {"ema": 0.5}):
        params, set_grads = made(torch.float32)
        optimizer = ct.AdamW(params, **options)
        run(optimizer, params, set_grads, 0, 2)
        for p in params:
            p.data = p.data.bfloat16()
            p.grad = None
        run(optimizer, params, set_grads, 2, 4)
        assert optimizer.state[params[0]]["step"].item() == 4
        assert (optimizer._last.found[0].storage.rounding == 1) == ("rounding" in options)
    params, set_grads = made(torch.bfloat16)
    optimizer = ct.AdamW(params, master="split16")
    run(optimizer, params, set_grads, 0, 2)
    for p in params:
        p.data = p.data.half()
        p.grad = None
    with pytest.raises(ValueError, match="'split16' for float16 parameters"):
        run(optimizer, params, set_grads, 2, 3)
    optimizer.param_groups[0].update(master="none", rounding="kahan")
    before = bits(params)
    with pytest.raises(ValueError, match=r"'param_low' of parameter 0 of group 0 has dtype torch.int16.*delete"):
        run(optimizer, params, set_grads, 2, 3)
    assert bits(params) == before
    for p in params:
        del optimizer.state[p]["param_low"]
    run(optimizer, params, set_grads, 2, 3)


def test_a_group_that_changes_its_format_is_refused():
    params, set_grads = made()
    optimizer = ct.AdamW(params)
    run(optimizer, params, set_grads, 0, 2)
    before = (bits(params), state_bits(optimizer, params))
    for options in STORAGES[:3]:
        optimizer.param_groups[0].update(options)
        with pytest.raises(ValueError, match=r"the state 'exp_avg' of parameter 0 of group 0.*convert_state_dict"):
            run(optimizer, params, set_grads, 2, 3)
        assert (bits(params), state_bits(optimizer, params)) == before
    narrow = ct.AdamW(params, state_bits=8)
    run(narrow, params, set_grads, 0, 2)
    before = (bits(params), state_bits(narrow, params))
    narrow.param_groups[0]["state_bits"] = 32
    with pytest.raises(ValueError, match=r"the state 'exp_avg' of parameter 0 .*torch.uint8.*state_bits=32"):
        run(narrow, params, set_grads, 2, 3)
    assert (bits(params), state_bits(narrow, params)) == before


def test_codes_of_one_scale_are_not_taken_for_the_other_format():
    """A parameter of up to 32 elements has one scale in both."""
    for form, other in (("curvk", "bitsandbytes"), ("bitsandbytes", "curvk")):
        params, set_grads = made(shapes=[(7,), (32,)])
        optimizer = ct.AdamW(params, state_bits=8, state_format=form)
        run(optimizer, params, set_grads, 0, 2)
        before = (bits(params), state_bits(optimizer, params))
        loaded = ct.AdamW(params, state_bits=8, state_format=other)
        with pytest.raises(ValueError, match=f"state_format='{form}', needs state_bits=8, state_format='{other}'"):
            loaded.load_state_dict(optimizer.state_dict())
        copies = [optimizer, copy.deepcopy(optimizer), ct.AdamW(params, state_bits=8, state_format=form)]
        copies[2].load_state_dict(optimizer.state_dict())
        for own in copies:
            own.param_groups[0]["state_format"] = other
            mine = own.param_groups[0]["params"]
            with pytest.raises(ValueError, match=f"state_format='{other}', needs '{form}', as its state is kept"):
                run(own, mine, set_grads, 2, 3)
            assert (bits(mine), state_bits(own, mine)) == before
        optimizer.state.clear()
        run(optimizer, params, set_grads, 2, 3)
        loaded.load_state_dict(ct.convert_state_dict(copies[0].state_dict(), state_bits=8, state_format=other))
        run(loaded, params, set_grads, 3, 4)


# ---- bad options -----------------------------------------------------------------------------------------------------

HALF, DOUBLE, COMPLEX = torch.float16, torch.float64, torch.complex64
BAD = [
    ({"state_bits": 4}, torch.float32, ValueError, "'state_bits': got 4, needs 32 or 16 or 8"),
    ({"state_bits": "8"}, torch.float32, ValueError, "'state_bits': got '8'"),
    ({"state_bits": True}, torch.float32, ValueError, "'state_bits': got True"),
    ({"state_format": "bnb"}, torch.float32, ValueError, "'state_format': got 'bnb', needs 'curvk' or 'bitsandbytes'"),
    ({"rounding": "split16"}, torch.float32, ValueError, "'rounding': got 'split16'"),
    ({"master": "float32"}, torch.float32, ValueError, "'master': got 'float32'"),
    ({"master": "split16", "rounding": "kahan"}, torch.bfloat16, ValueError, "'master'.*needs rounding='nearest'"),
    ({"master": "split16"}, HALF, ValueError, "'master': got 'split16' for float16 parameters"),
    ({"ema": 1.0}, torch.float32, ValueError, "'ema': got 1.0, needs a number in \\[0, 1\\)"),
    ({"ema": -0.1}, torch.float32, ValueError, "'ema': got -0.1"),
    ({"ema": float("nan")}, torch.float32, ValueError, "'ema': got nan"),
    ({"ema": "slow"}, torch.float32, TypeError, "'ema': got 'slow' of type str"),
    ({"ema": True}, torch.float32, TypeError, "'ema': got True of type bool"),
    ({"zero_grad": 1}, torch.float32, TypeError, "'zero_grad': got 1"),
    ({"seed": -1}, torch.float32, ValueError, "'seed': got -1"),
    ({"seed": 2**64}, torch.float32, ValueError, "'seed': got 18446744073709551616"),
    ({"seed": 1.0}, torch.float32, TypeError, "'seed': got 1.0 of type float"),
    ({"state_bits": 8}, DOUBLE, ValueError, "'state_bits': got 8, needs 32 for float64 parameters.*state_bits=32"),
    ({"state_bits": 16}, COMPLEX, ValueError, "'state_bits': got 16, needs 32 for complex64 parameters"),
]


@pytest.mark.parametrize(("options", "dtype", "error", "match"), BAD, ids=str)
@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamZ"])
def test_bad_options_are_refused_at_every_entrance(name, options, dtype, error, match):
    more = {"momentum": 0.9} if name == "SGD" else {}
    make = getattr(ct, name)
    p, q = (torch.nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2))
    with pytest.raises(error, match=rf"curvk\.torch\.{name}, parameter group 0: argument {match}"):
        make([p], **more, **options)
    with pytest.raises(error, match=f"parameter group 1: argument {match}"):
        make([{"params": [p]}, {"params": [q], **options}], **more)
    optimizer = make([p], **more)
    with pytest.raises(error, match=f"parameter group 1: argument {match}"):
        optimizer.add_param_group({"params": q, **options})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [q]})
    for x in (p, q):
        x.grad = torch.ones_like(x)
    optimizer.step()
    before = (bits([p, q]), state_bits(optimizer, [p, q]))
    state_dict = optimizer.state_dict()
    optimizer.param_groups[1].update(options)
    with pytest.raises(error, match=f"parameter group 1: argument {match}"):
        optimizer.step()
    assert (bits([p, q]), state_bits(optimizer, [p, q])) == before
    for key in options:
        del optimizer.param_groups[1][key]
    state_dict["param_groups"][1].update(options)
    with pytest.raises(error if "state_bits" not in options else ValueError, match="parameter group 1"):
        optimizer.load_state_dict(state_dict)
    assert (bits([p, q]), state_bits(optimizer, [p, q])) == before


def test_amsgrad_needs_wide_moments():
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="'state_bits': got 8, needs 32 with amsgrad"):
        ct.Adam([p], amsgrad=True, state_bits=8)
    optimizer = ct.Adam([p], amsgrad=True, ema=0.5, zero_grad=True)
    plain = ct.Adam([torch.nn.Parameter(torch.ones(3))], amsgrad=True)
    q = plain.param_groups[0]["params"][0]
    for k in range(4):
        for x, o in ((p, optimizer), (q, plain)):
            x.grad = torch.full((3,), float(3 - k))
            o.step()
    same([p], [q])
    assert torch.equal(optimizer.state[p]["max_exp_avg_sq"], plain.state[q]["max_exp_avg_sq"])


def test_alice_has_no_options_yet_and_memory_all_the_same():
    p = torch.nn.Parameter(torch.ones(10))
    optimizer = ct.Alice([p], lr=0.1)
    optimizer.step(quadratic([p], optimizer))
    assert optimizer.memory()["bytes"]["center"] == 40
