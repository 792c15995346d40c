"""curvk.torch in fewer bytes at work: groups, SAM, schedulers, what happens between steps, bad options."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
from test_torch_states import EVENTS  # noqa: E402
from torch_storage_models import KINDS, STORAGES, bits, made, quadratic, run, same, saved, state_bits  # noqa: E402

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


# ---- SAM, schedulers, closures ---------------------------------------------------------------------------------------


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
    (
        {"master": "split16", "rounding": "kahan"},
        torch.bfloat16,
        ValueError,
        "'rounding': got 'kahan', needs 'nearest' with master='split16'",
    ),
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
