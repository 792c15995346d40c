"""State dicts of curvk.torch in fewer bytes: saved runs, damage, conversion, bitsandbytes."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import numpy as np  # noqa: E402
from torch_storage_models import BASES, STORAGES, bits, made, run, same, saved, state_bits  # noqa: E402

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
