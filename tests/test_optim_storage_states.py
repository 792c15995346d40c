"""curvk.optim in fewer bytes: groups and their options, state dicts, files, conversion."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curvk import _store as store
from curvk.optim import SAM, SGD, Adam, AdamW, AdamZ, Alice, convert_state_dict
from storage_models import (
    BF16,
    NEW,
    OPTIMIZERS,
    OPTIONS,
    Arrays,
    assert_same,
    contents,
    decoded,
    grads_like,
    master,
    model,
    train,
)

# ---- groups --------------------------------------------------------------------------------------------------------


def test_groups_have_their_own_options() -> None:
    """Each group is stepped as by an optimizer of its own; float64 lives in one at 32 bits."""
    shapes = [(np.float64, {}), (np.float32, {"state_bits": 8}), (BF16, {"state_bits": 16, "rounding": "kahan"})]
    params = [np.linspace(1, 2, 100).astype(dtype) for dtype, _ in shapes]
    twins = copy.deepcopy(params)
    adam = Adam([{"params": p, **o} for p, (_, o) in zip(params, shapes, strict=True)], lr=0.01, seed=4)
    # The noise depends on the place among all parameters: one-element optimizers would draw others.
    padding = [np.zeros(0, np.float32), np.zeros(0, np.float32)]
    singles = [Adam([*padding[:i], twins[i]], lr=0.01, seed=4, **o) for i, (_, o) in enumerate(shapes)]
    for seed in range(6):
        grads = grads_like(params, seed)
        adam.step(grads)
        for i, single in enumerate(singles):
            single.step([*[None] * i, grads[i]])
    assert_same(params, twins)
    assert [e["exp_avg"].dtype for e in adam.state] == [np.float64, np.uint8, np.uint16]
    assert "param_low" in adam.state[2]
    adam.add_param_group({"params": [np.zeros(3, np.float32)], "state_bits": 8, "state_format": "bitsandbytes"})
    assert adam.param_groups[3]["seed"] == 4
    assert "state_bits=8, state_format='bitsandbytes'" in repr(adam)


def test_rounding_may_change_between_steps() -> None:
    """Low halves of another kind are dropped, not reinterpreted; what is dropped begins anew."""
    p = np.ones(200, BF16)
    adam = Adam([p], lr=1e-4, rounding="kahan", ema=0.5)
    g = np.ones(200, BF16)
    adam.step([g])
    assert np.any(adam.state[0]["param_low"])
    adam.param_groups[0] |= {"rounding": "nearest", "master": "split16", "ema": None}
    start = p.astype(np.float32)
    adam.step([g])
    assert "param_ema" not in adam.state[0]
    got = master(p, adam.state[0]["param_low"])
    np.testing.assert_allclose(got - start, -1e-4, rtol=2e-3)
    adam.param_groups[0] |= {"master": "none"}
    adam.step([g])
    assert "param_low" not in adam.state[0]
    assert adam.state[0]["step"] == 3


BAD: list[tuple[dict[str, Any], Any, type[Exception], str]] = [
    ({"state_bits": 4}, np.float32, ValueError, "'state_bits': got 4"),
    ({"state_bits": "8"}, np.float32, ValueError, "'state_bits'"),
    ({"state_format": "int8"}, np.float32, ValueError, "'state_format': got 'int8'"),
    ({"rounding": "up"}, np.float32, ValueError, "'rounding': got 'up'"),
    ({"rounding": "split16"}, np.float32, ValueError, "'rounding'.*'kahan'"),
    ({"master": "float32"}, np.float32, ValueError, "'master': got 'float32'"),
    ({"ema": 1.0}, np.float32, ValueError, r"'ema'.*\[0, 1\)"),
    ({"ema": -0.1}, np.float32, ValueError, "'ema'"),
    ({"ema": math.nan}, np.float32, ValueError, "'ema'"),
    ({"ema": "0.9"}, np.float32, TypeError, "'ema'"),
    ({"ema": True}, np.float32, TypeError, "'ema'"),
    ({"zero_grad": 1}, np.float32, TypeError, "'zero_grad'"),
    ({"seed": -1}, np.float32, ValueError, r"'seed'.*2\^64"),
    ({"seed": 2**64}, np.float32, ValueError, "'seed'"),
    ({"seed": 1.5}, np.float32, TypeError, "'seed'"),
    ({"seed": None}, np.float32, TypeError, "'seed'"),
    ({"master": "split16"}, np.float16, ValueError, "'master'.*float16"),
    ({"master": "split16", "rounding": "kahan"}, BF16, ValueError, "'rounding'.*split16"),
    ({"master": "split16", "rounding": "stochastic"}, np.float32, ValueError, "'rounding'.*split16"),
    ({"state_bits": 8}, np.float64, ValueError, "'state_bits'.*float64.*group"),
    ({"state_bits": 16}, np.float64, ValueError, "'state_bits'.*float64"),
]


@pytest.mark.parametrize(("options", "dtype", "error", "text"), BAD)
@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW, AdamZ])
def test_bad_options(optimizer: Any, options: dict[str, Any], dtype: Any, error: type[Exception], text: str) -> None:
    """Refused by the constructor, by a group and by the step that would use it; nothing is written."""
    group_text = text.replace("'", r"'param_groups\[1\]\.", 1)
    with pytest.raises(error, match=f"^{optimizer.__name__}: argument '.*{text[1:]}"):
        optimizer([np.zeros(2, dtype)], **options)
    params = [np.zeros(2, np.float32), np.zeros(40, dtype)]
    with pytest.raises(error, match=group_text):
        optimizer([{"params": params[0]}, {"params": params[1], **options}])
    stepper = optimizer([{"params": params[0]}, {"params": params[1]}])
    stepper.step(grads_like(params, 0), 1.0)
    good = {key: stepper.param_groups[1][key] for key in options}
    stepper.param_groups[1] |= options
    before = contents(stepper)[:-1]
    with pytest.raises(error, match=group_text):
        stepper.step(grads_like(params, 1))
    assert contents(stepper)[:-1] == before
    stepper.param_groups[1] |= good
    assert stepper.step(grads_like(params, 1))


def test_amsgrad_needs_32_bits() -> None:
    for few in (8, 16):
        with pytest.raises(ValueError, match=r"'state_bits'.*amsgrad"):
            Adam([np.zeros(2, np.float32)], amsgrad=True, state_bits=few)
    p = np.zeros(4, np.float32)
    adam = Adam([p], state_bits=8)
    adam.step([np.ones(4, np.float32)])
    adam.param_groups[0]["amsgrad"] = True
    before = contents(adam)[:-1]
    with pytest.raises(ValueError, match=r"param_groups\[0\]\.state_bits.*amsgrad"):
        adam.step([np.ones(4, np.float32)])
    assert contents(adam)[:-1] == before
    q = np.ones(4, BF16)
    adam = Adam([q], amsgrad=True, master="split16")
    adam.step([np.ones(4, BF16)])
    assert set(adam.state[0]) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "param_low"}


def test_the_format_of_states_stays() -> None:
    p = np.ones(4, np.float32)
    adam = Adam([p], state_bits=8)
    adam.param_groups[0]["state_bits"] = 16  # before there are any
    adam.step([np.ones(4, np.float32)])
    for change in ({"state_bits": 8}, {"state_bits": 32}):
        adam.param_groups[0] |= change
        before = contents(adam)[:-1]
        with pytest.raises(ValueError, match=r"param_groups\[0\]'.*=16, as its states.*convert_state_dict"):
            adam.step([np.ones(4, np.float32)])
        assert contents(adam)[:-1] == before
    adam.param_groups[0] |= {"state_bits": 16, "state_format": "bitsandbytes"}  # only matters with 8
    assert adam.step([np.ones(4, np.float32)])


def test_gradients_must_be_writable() -> None:
    g = np.ones(3, np.float32)
    g.flags.writeable = False
    p = np.zeros(3, np.float32)
    for options in ({"ema": 0.5}, {"state_bits": 8}, {"zero_grad": True}):
        with pytest.raises(BufferError, match=r"^Adam: argument 'grads\[0\]'.*read-only"):
            Adam([p], **options).step([g])
    assert not p.any()


def test_int16_bit_patterns() -> None:
    """As uint16 ones, in averages too."""
    a, b = (np.linspace(-2, 2, 70).astype(BF16).view(d).copy() for d in (np.uint16, np.int16))
    averages = []
    for p in (a, b):
        adam = Adam([p], lr=0.01, ema=0.5, master="split16", state_bits=8)
        for seed in range(3):
            adam.step([grads_like([np.zeros(70, BF16)], seed)[0].view(p.dtype)])
        with adam.averaged():
            averages.append(p.copy())
    assert_same([a], [b])
    assert_same(averages[:1], averages[1:])
    assert averages[0].tobytes() != a.tobytes()


def test_unknown_keywords() -> None:
    for optimizer in (SGD, Adam, AdamW, AdamZ):
        with pytest.raises(TypeError, match="state_bit"):
            optimizer([np.zeros(2)], state_bit=8)


def test_alice_refuses_the_options() -> None:
    """But for state_bits, see test_alice_storage.py."""
    for key, value in (("master", "split16"), ("rounding", "kahan"), ("ema", 0.9), ("zero_grad", True)):
        with pytest.raises(TypeError, match=key):
            Alice([np.zeros(2)], **{key: value})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=key):
            Alice([{"params": np.zeros(2), key: value}])


@pytest.mark.parametrize("option", ["8", "stochastic", "ema"])
def test_gradients_that_cannot_be_swept(option: str) -> None:
    """All are checked before anything is written, and the next step is right."""
    a, b = model(14, BF16), model(14, BF16)
    adam, plain = Adam(a, **OPTIONS[option]), Adam(b, **OPTIONS[option])
    for seed in range(3):
        before = contents(adam)
        grads = grads_like(a, seed)
        for bad, error, text in (
            ([*grads[:4], grads[4][:-1], *grads[5:]], ValueError, r"^Adam: .*grads\[4\]"),
            ([*grads[:4], grads[4].astype(np.float32), *grads[5:]], TypeError, r"^Adam: .*grads\[4\]"),
            ([*grads[:4], a[4], *grads[5:]], ValueError, r"^Adam: .*shared"),
        ):
            with pytest.raises(error, match=text):
                adam.step(bad)
            assert contents(adam) == before
        adam.step(grads)
        plain.step(grads)
    assert_same(a, b)


# ---- state dicts and files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("way", ["dict", "file"])
def test_resume(name: str, option: str, way: str, tmp_path: Path) -> None:
    """Stopping and going on gives the bits of going on, noise and all."""
    dtypes = [np.float32, BF16]
    dtypes += [] if "split16" in option else [np.float16]
    dtypes += [] if "state_bits" in OPTIONS[option] else [np.float64]
    through, stopped = ([p for d in dtypes for p in model(16, d)] for _ in range(2))
    first = OPTIMIZERS[name](through, max_grad_norm=3.0, **OPTIONS[option])
    train(first, through, range(14))
    second = OPTIMIZERS[name](stopped, max_grad_norm=3.0, **OPTIONS[option])
    train(second, stopped, range(6))
    formats = {k: v for k, v in OPTIONS[option].items() if k.startswith("state")}
    third = OPTIMIZERS[name](stopped, lr=0.7, **formats)
    if way == "dict":
        third.load_state_dict(second.state_dict())
    else:
        second.save(tmp_path / "state.ckpt")
        third.load(tmp_path / "state.ckpt")
    assert contents(second) == contents(third)
    for old, new in zip(second.state, third.state, strict=True):
        assert {k: getattr(v, "dtype", int) for k, v in old.items()} == {
            k: getattr(v, "dtype", int) for k, v in new.items()
        }
    train(third, stopped, range(6, 14))
    assert contents(first) == contents(third)


def test_a_resume_across_backends() -> None:
    """The twins make the same noise."""
    import curvk

    runs = []
    for backend in ("cpp", "numba"):
        if backend == "cpp" and curvk._backend.core is None:
            pytest.skip("no compiled kernels")
        params = [np.linspace(-1, 1, 300).astype(BF16)]
        with curvk.use_backend(backend):
            adam = Adam(params, state_bits=8, rounding="stochastic", ema=0.9)
            for seed in range(4):
                adam.step(grads_like(params, seed))
        runs.append(contents(adam))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_old_state_dicts(name: str) -> None:
    """Without the options: defaults where the optimizer has them, else what the optimizer was made with."""
    a, b, c = (model(17, BF16) for _ in range(3))
    first = OPTIMIZERS[name](a)
    train(first, a, range(4))
    old = first.state_dict()
    for group in old["param_groups"]:
        for key in NEW:
            del group[key]
    second = OPTIMIZERS[name](b)
    third = OPTIMIZERS[name](c, rounding="kahan", ema=0.5, seed=9)
    for x, y, z in zip(a, b, c, strict=True):
        y[...] = x
        z[...] = x
    second.load_state_dict(old)
    third.load_state_dict(old)
    assert third.param_groups[0]["rounding"] == "kahan"
    assert third.param_groups[0]["seed"] == 9
    train(first, a, range(4, 8))
    train(second, b, range(4, 8))
    train(third, c, range(4, 8))
    assert contents(first) == contents(second)
    assert {"param_low", "param_ema"} <= third.state[0].keys()


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_loading_another_format(optimizer: str, tmp_path: Path) -> None:
    formats: list[dict[str, Any]] = [{}, *(OPTIONS[o] for o in ("16", "8", "8b"))]
    for i, old in enumerate(formats):
        params = model(18)
        source = OPTIMIZERS[optimizer](params, **old)
        source.step(grads_like(params, 0))
        source.save(tmp_path / f"{i}")
        for j, new in enumerate(formats):
            target = OPTIMIZERS[optimizer](model(18), **new)
            target.step(grads_like(params, 1))
            before = contents(target)
            if i == j:
                target.load_state_dict(source.state_dict())
                continue
            with pytest.raises(ValueError, match="convert_state_dict"):
                target.load_state_dict(source.state_dict())
            with pytest.raises(ValueError, match="convert_state_dict"):
                target.load(tmp_path / f"{i}")
            assert contents(target) == before
            formats_only = {k: v for k, v in new.items() if k != "seed"}
            target.load_state_dict(convert_state_dict(source.state_dict(), **formats_only))
            assert target.step(grads_like(params, 2))


def saved(**options: Any) -> tuple[Any, dict[str, Any]]:
    params = [np.zeros((5, 9), np.float32), np.zeros(4, BF16)]
    adam = Adam(params, **options)
    adam.step([np.ones_like(p) for p in params])
    return adam, adam.state_dict()


def test_bad_state_dicts(tmp_path: Path) -> None:
    cases: list[tuple[str, Any, str]] = [
        (
            "exp_avg",
            np.zeros((5, 9), np.float32),
            r"state\[0\]\.exp_avg: got|exp_avg.*float32.*uint8.*convert_state_dict",
        ),
        ("exp_avg_scale", np.zeros(1, np.float32), r"state\[0\]\.exp_avg_scale.*\(1,\).*\(2,\)"),
        ("exp_avg_scale", np.zeros(2), r"exp_avg_scale.*float64.*float32"),
        ("exp_avg_scale", None, r"state\[0\].*keys"),
        ("param_ema", np.zeros((9, 5), np.float32), r"state\[0\]\.param_ema"),
        ("step", 0, r"state\[0\]\.step"),
        ("extra", np.zeros(2), r"state\[0\].*extra"),
    ]
    for key, value, text in cases:
        adam, state = saved(state_bits=8, ema=0.5, rounding="kahan")
        if value is None:
            del state["state"][0][key]
        else:
            state["state"][0][key] = value
        before = contents(adam)
        with pytest.raises(ValueError, match=text):
            adam.load_state_dict(state)
        store.write(tmp_path / "s", state)
        with pytest.raises(ValueError, match=text):
            adam.load(tmp_path / "s")
        assert contents(adam) == before
    for key, value in (("rounding", "up"), ("ema", 2.0), ("seed", "x"), ("state_bits", 5)):
        adam, state = saved(state_bits=8)
        state["param_groups"][0][key] = value
        with pytest.raises(ValueError, match=rf"param_groups\[0\]\.{key}"):
            adam.load_state_dict(state)


def test_damaged_files(tmp_path: Path) -> None:
    adam, _ = saved(state_bits=8, master="split16", ema=0.5)
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    adam.save(whole)
    raw, want, refused = whole.read_bytes(), contents(adam), 0
    for n in range(0, len(raw), 29):
        damaged.write_bytes(raw[:n] + bytes([raw[n] ^ 0x5A]) + raw[n + 1 :])
        try:
            adam.load(damaged)
        except ValueError:
            refused += 1
        assert contents(adam) == want
    assert refused > len(raw) / 29 / 2


# ---- conversion ----------------------------------------------------------------------------------------------------


def long_run() -> tuple[Arrays, Any]:
    params = model(19)
    adam = Adam(params, ema=0.9)
    for seed in range(20):
        adam.step(grads_like(params, seed))
    return params, adam


@pytest.mark.parametrize("option", ["16", "8", "8b"])
def test_converted_there_and_back(option: str) -> None:
    """Close after rounding to nearest; a second time exact."""
    _, adam = long_run()
    formats = {k: v for k, v in OPTIONS[option].items() if k != "seed"}
    start = adam.state_dict()
    kept = copy.deepcopy(start)
    there = convert_state_dict(start, **formats)
    back = convert_state_dict(there)
    assert back["param_groups"][0]["state_bits"] == 32
    for old, entry, new in zip(start["state"], there["state"], back["state"], strict=True):
        assert new.keys() == old.keys()
        assert old["step"] == new["step"]
        assert_same([old["param_ema"]], [new["param_ema"]])
        for name in ("exp_avg", "exp_avg_sq"):
            x, y = old[name].astype(np.float64), new[name].astype(np.float64)
            assert new[name].dtype == np.float32
            assert y.shape == x.shape
            if not x.size:
                continue
            if option == "16":
                np.testing.assert_allclose(y, x, rtol=2.0**-8)
                continue
            top = np.abs(x).max()
            per = 32 if option == "8" else 256
            if option == "8":
                assert_close = decoded(entry[name], entry[f"{name}_scale"], name == "exp_avg")
                np.testing.assert_allclose(y, assert_close, rtol=1e-6, atol=1e-12)
            # Codes are at most 2/127, 4/255 and 0.0143 of the top apart.
            assert np.abs(y - x).max() <= 0.0101 * top
            flat_x, flat_y = np.abs(x).reshape(-1), np.abs(y).reshape(-1)
            for j in range(0, x.size, per):
                k = j + int(flat_x[j : j + per].argmax())
                # bitsandbytes' map ends at -0.993.
                np.testing.assert_allclose(flat_y[k], flat_x[k], rtol=1e-6 if option == "8" else 0.0075)
    assert_same([e["exp_avg"] for e in start["state"]], [e["exp_avg"] for e in kept["state"]])
    again = convert_state_dict(back, **formats)
    for one, two in zip(there["state"], again["state"], strict=True):
        # The map's lowest number is -0.993, so that a negative top does not come back.
        for name in one.keys() - {"step", *(("exp_avg", "exp_avg_scale") if option == "8b" else ())}:
            assert one[name].dtype == two[name].dtype
            assert_same([one[name]], [two[name]])
    same = convert_state_dict(there, **formats)
    for one, two in zip(there["state"], same["state"], strict=True):
        assert_same([one[n] for n in sorted(one.keys() - {"step"})], [two[n] for n in sorted(two.keys() - {"step"})])
        assert one["exp_avg"] is not two["exp_avg"]


def test_converted_and_loaded() -> None:
    """A 32-bit run goes on with 8 bits near where it was, with its masters bit for bit."""
    params = model(20, BF16)
    adam = Adam(params, master="split16", lr=0.01)
    for seed in range(10):
        adam.step(grads_like(params, seed))
    small = Adam(params, state_bits=8)
    small.load_state_dict(convert_state_dict(adam.state_dict(), state_bits=8))
    for old, new in zip(adam.state, small.state, strict=True):
        assert_same([old["param_low"]], [new["param_low"]])
    assert small.param_groups[0]["master"] == "split16"
    assert small.state[0]["step"] == 10
    assert small.step(grads_like(params, 10))


def test_conversion_per_group_and_of_sam() -> None:
    params = [np.ones(40, np.float64), np.ones(40, np.float32)]
    groups = [{"params": params[0]}, {"params": params[1]}]
    sam = SAM(Adam(groups), rho=0.1)
    sam.step(lambda: [np.ones(40, np.float64), np.ones(40, np.float32)])
    state = sam.state_dict()
    with pytest.raises(ValueError, match=r"state\[0\].*float64.*each group"):
        convert_state_dict(state, state_bits=8)
    with pytest.raises(ValueError, match="2 groups"):
        convert_state_dict(state, state_bits=[8])
    new = convert_state_dict(state, state_bits=[32, 8])
    other = SAM(Adam([groups[0], groups[1] | {"state_bits": 8}]), rho=0.5)
    other.load_state_dict(new)
    assert other.param_groups[1]["rho"] == 0.1
    assert [e["exp_avg"].dtype for e in other.base.state] == [np.float64, np.uint8]
    assert new["sam"] == state["sam"]


def test_what_cannot_be_converted() -> None:
    for bad in (None, 3, {}, {"optimizer": "Alice"}):
        with pytest.raises(ValueError, match="state_dict"):
            convert_state_dict(bad)
    _, state = saved()
    for kw in ({"state_bits": 4}, {"state_format": "x"}):
        with pytest.raises(ValueError, match=f"{next(iter(kw))}"):
            convert_state_dict(state, **kw)  # type: ignore[arg-type]
    ams = Adam([np.zeros(3, np.float32)], amsgrad=True)
    ams.step([np.ones(3, np.float32)])
    with pytest.raises(ValueError, match="amsgrad"):
        convert_state_dict(ams.state_dict(), state_bits=8)
    state["param_groups"][0]["state_bits"] = 8  # not what it says
    with pytest.raises(ValueError, match=r"state\[0\]\.exp_avg.*float32"):
        convert_state_dict(state)
