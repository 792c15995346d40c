"""SAM on arrays: phases, errors, memory and files."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import weakref

import curvk.optim._sam as sam_module
import numpy as np
import pytest
from curvk.optim import SAM, SGD, Adam, AdamW, LossAdaptiveLR
from sam_arrays import bits, made

# ---- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, range(12)),
        ({"start": 7}, range(7, 12)),
        ({"start": 0.875 * 12}, [11]),  # 10.5: the first step that is not before it
        ({"start": 0.1 * 30}, range(3, 12)),  # 3.0000000000000004
        ({"end": 3}, range(3)),
        ({"start": 2, "end": 9, "every": 3}, [2, 5, 8]),
        ({"every": 5}, [0, 5, 10]),
        ({"start": 12}, []),
        ({"start": 4, "end": 4}, []),
        ({"start": 2, "end": math.inf, "every": 4}, [2, 6, 10]),
    ],
    ids=str,
)
def test_phase(options, want):
    params, grads = made(shapes=[(3,)])
    sam = SAM(SGD(params, lr=0.1), rho=0.5, **options)
    seen, calls = [], 0

    def counted():
        nonlocal calls
        calls += 1
        return grads()

    for step in range(12):
        if sam.active:
            seen.append(step)
        before = calls
        sam.step(counted)
        assert calls - before == (2 if step in want else 1)
    assert seen == list(want)
    assert sam.steps == 12


def test_start_is_a_whole_number_of_steps():
    given = [None, 0, 7, 10.5, 0.1 * 30, 0.875 * 200, np.float32(4), 2**40]
    assert [SAM(SGD([np.ones(2)]), start=s).start for s in given] == [None, 0, 7, 11, 3, 175, 4, 2**40]


def test_late_sam_is_the_base_before_the_switch():
    params, grads = made("float32")
    twins, twin_grads = made("float32")
    late, alone = SAM(Adam(params), rho=0.5, start=3), Adam(twins)
    for _ in range(3):
        assert late.perturb_(grads()) is False
        late.step(grads)
        alone.step(twin_grads())
        assert bits(params) == bits(twins)
    late.step(grads)
    alone.step(twin_grads())
    assert bits(params) != bits(twins)


def test_reset_state_on_switch():
    params, grads = made()
    sam = SAM(Adam(params, lr=0.1), rho=0.5, start=3, end=6, reset_state_on_switch=True)
    steps = []
    for _ in range(8):
        if sam.steps == 3:
            twins = [p.copy() for p in params]
            sam.perturb_(grads())
            second = grads()
            sam.restore_and_step(second)
            Adam(twins, lr=0.1).step(second)  # a new optimizer
            assert bits(params) == bits(twins)
        else:
            sam.step(grads)
        steps.append(sam.base.state[0]["step"])
    assert steps == [1, 2, 3, 1, 2, 3, 4, 5]


# ---- errors ---------------------------------------------------------------------------------------------------------


class Raised(Exception):
    pass


def test_weights_come_back_where_the_second_gradient_fails():
    params, grads = made("float32")
    before = bits(params)
    sam = SAM(AdamW(params), rho=0.5)
    calls = []

    def grad():
        calls.append(bits(params))
        if len(calls) == 2:
            raise Raised
        return grads()

    with pytest.raises(Raised):
        sam.step(grad)
    assert calls[1] != before
    assert bits(params) == before
    assert sam.steps == 0
    assert sam.step(grads)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("second", ["short", "shape", "dtype", "number", "tuple"])
def test_weights_and_states_come_back_where_the_base_refuses(second, reset):
    params, grads = made("float32", shapes=[(4,), (5,)])
    sam = SAM(AdamW(params), rho=0.5, start=1, reset_state_on_switch=reset)
    sam.step(grads)
    before, state = bits(params), [{k: np.copy(v) for k, v in s.items()} for s in sam.base.state]
    assert sam.perturb_(grads())
    good = g = grads()
    if second == "number":
        sam.param_groups[0]["lr"] = -1.0
    g = {"short": g[:1], "shape": [g[0], g[0]], "dtype": [g[0], g[1].astype(np.float64)], "tuple": g[0]}.get(second, g)
    with pytest.raises((TypeError, ValueError), match="AdamW"):
        sam.restore_and_step(g)
    assert bits(params) == before
    for old, new in zip(state, sam.base.state, strict=True):
        assert all(np.array_equal(old[k], new[k]) for k in old)
    sam.param_groups[0]["lr"] = 0.1
    assert sam.perturb_(grads())
    assert sam.restore_and_step(good)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda g: g[:1], ValueError, r"SAM.perturb_: argument 'grads': got 1 gradients, needs 2"),
        (lambda g: np.ones(4), TypeError, r"argument 'grads': got ndarray, needs a list"),
        (lambda g: [g[0], g[0]], ValueError, r"SAM.perturb_: argument 'grads\[1\]': got shape \(4,\)"),
        (lambda g: [g[0], g[1].astype(np.float64)], TypeError, r"'grads\[1\]': got float64, needs float32"),
        (lambda g: [g[0], [1.0] * 5], TypeError, r"SAM.perturb_: argument 'grads\[1\]': got list, needs an array"),
        (lambda g: [np.zeros(16, np.float32)[::4], g[1]], None, ""),
    ],
)
def test_bad_first_gradients(change, error, text):
    params, grads = made("float32", shapes=[(4,), (5,)])
    before = bits(params)
    sam = SAM(SGD(params, lr=0.1), rho=0.5)
    if error is None:
        assert sam.perturb_(change(grads()))
        return
    with pytest.raises(error, match=text):
        sam.perturb_(change(grads()))
    assert bits(params) == before
    assert sam.step(grads)


def test_gradients_in_the_memory_of_parameters_are_refused():
    params, grads = made("float32", shapes=[(4,), (5,)])
    sam = SAM(SGD(params, lr=0.1), rho=0.5)
    before = bits(params)
    with pytest.raises(ValueError, match="memory"):
        sam.perturb_([params[0], grads()[1]])
    assert bits(params) == before


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rho": -0.1}, ValueError, "SAM: argument 'rho': got -0.1, needs a number in"),
        ({"rho": math.nan}, ValueError, "argument 'rho'"),
        ({"rho": math.inf}, ValueError, "argument 'rho'"),
        ({"rho": "0.05"}, TypeError, "argument 'rho'"),
        ({"rho": None}, TypeError, "argument 'rho'"),
        ({"adaptive": 1}, TypeError, "argument 'adaptive': got 1, needs True or False"),
        ({"eta": -1}, ValueError, "argument 'eta'"),
        ({"start": -1}, ValueError, "argument 'start': got -1, needs a number of steps >= 0"),
        ({"start": math.nan}, ValueError, "argument 'start'"),
        ({"start": math.inf}, ValueError, "argument 'start'"),
        ({"start": "7"}, TypeError, "argument 'start'"),
        ({"start": 5, "end": 4}, ValueError, "argument 'end': got 4, needs a step not before start, which is 5"),
        ({"every": 0}, ValueError, "argument 'every': got 0, needs an integer >= 1"),
        ({"every": 1.5}, TypeError, "argument 'every'"),
        ({"reset_state_on_switch": 1}, TypeError, "argument 'reset_state_on_switch'"),
    ],
    ids=str,
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        SAM(SGD([np.ones(2)], lr=0.1), **options)


def test_base_of_another_sam():
    base = SGD([np.ones(2)], lr=0.1)
    SAM(base, rho=0.1)
    with pytest.raises(ValueError, match="argument 'base': got the base of another SAM"):
        SAM(base, rho=2.0)


def test_states_come_back_where_the_first_step_is_skipped():
    base = SGD([np.ones(2)], lr=0.1, momentum=0.9, skip_nonfinite=True)
    sam = SAM(base, rho=0.5, start=1, reset_state_on_switch=True)
    assert sam.restore_and_step([np.ones(2)])
    assert sam.perturb_([np.ones(2)])
    assert not sam.restore_and_step([np.full(2, np.inf)])
    np.testing.assert_array_equal(base.state[0]["momentum_buffer"], 1)
    assert base.state[0]["step"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill sends no SIGINT there")
def test_interrupt_while_the_weights_are_swapped(monkeypatch, ctrl_c):
    """Ctrl-C that arrives when the kernel has written, but nothing yet says so."""
    w = np.array([3.0, 4.0])
    sam = SAM(SGD([w], lr=0.1), rho=0.5)
    run = sam_module.Plan.run

    def run_and_interrupt(plan, scalars):
        run(plan, scalars)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sam_module.Plan, "run", run_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        sam.perturb_([w.copy()])
    np.testing.assert_array_equal(w, [3, 4])


def test_bases_that_cannot_restore():
    base = SGD([np.ones(2)], lr=0.1)
    for wrong in (SAM(base), LossAdaptiveLR(base), [np.ones(2)], None):
        with pytest.raises(
            TypeError, match=r"SAM: argument 'base': got .* needs SGD, Adam, AdamW, AdamZ or Lion of curvk.optim"
        ):
            SAM(wrong)


def test_bad_numbers_of_a_group():
    params, grads = made("float32")
    before = bits(params)
    sam = SAM(SGD(params, lr=0.1), rho=0.5)
    sam.param_groups[0]["rho"] = -1.0
    with pytest.raises(ValueError, match=r"SAM: argument 'param_groups\[0\].rho': got -1.0"):
        sam.step(grads)
    sam.param_groups[0]["rho"] = 0.5
    with pytest.raises(ValueError, match=r"param_groups\[1\].eta"):
        sam.add_param_group({"params": [np.ones(2, np.float32)], "eta": -1.0})
    assert len(sam.param_groups) == 1
    for scale in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="grad_scale"):
            sam.perturb_(grads(), grad_scale=scale)
    assert bits(params) == before


def test_calls_out_of_order():
    params, grads = made("float32")
    sam = SAM(SGD(params, lr=0.1), rho=0.5)
    before = bits(params)
    with pytest.raises(RuntimeError, match="use perturb_ first"):
        sam.restore_and_step(grads())
    with pytest.raises(TypeError, match=r"SAM.step: argument 'grad': got list.*use perturb_ and restore_and_step"):
        sam.step(grads())
    assert bits(params) == before
    sam.perturb_(grads())
    for call in (
        lambda: sam.perturb_(grads()),
        lambda: sam.step(grads),
        sam.state_dict,
        lambda: sam.save("never"),
        lambda: sam.load_state_dict({}),
        lambda: sam.add_param_group({"params": [np.ones(2)]}),
    ):
        with pytest.raises(RuntimeError, match="the weights are perturbed; use restore_and_step"):
            call()
    sam.restore_()
    assert bits(params) == before


# ---- memory and files -----------------------------------------------------------------------------------------------


def test_nothing_is_kept_between_steps():
    params, grads = made("float32")
    sam = SAM(AdamW(params), rho=0.5)
    for _ in range(2):
        sam.perturb_(grads())
        kept = [weakref.ref(x) for x in sam._saved if x is not None]
        sam.restore_and_step(grads())
    gc.collect()
    assert len(kept) == len(params)
    assert [x() for x in kept] == [None] * len(params)


@pytest.mark.parametrize("file", [False, True])
def test_resumes_bit_for_bit(file, tmp_path):
    options = {"start": 2, "end": 9, "every": 2, "reset_state_on_switch": True, "adaptive": True, "eta": 0.01}
    params, grads = made("float32")
    sam = SAM(Adam(params), rho=0.5, **options)
    for _ in range(4):
        sam.step(grads)
    twins, twin_grads = made("float32")
    for p, q in zip(twins, params, strict=True):
        p[...] = q
    resumed = SAM(Adam(twins, lr=0.7))
    if file:
        sam.save(tmp_path / "sam.npz")
        resumed.load(tmp_path / "sam.npz")
    else:
        resumed.load_state_dict(sam.state_dict())
    assert (resumed.steps, resumed.active) == (4, True)
    for _ in range(8):
        sam.step(grads)
        resumed.step(twin_grads)
        assert bits(params) == bits(twins)
    assert resumed.state_dict()["sam"] == sam.state_dict()["sam"]


def test_goes_on_where_the_base_ran_alone():
    params, grads = made("float32")
    base = Adam(params)
    for _ in range(5):
        base.step(grads())
    sam = SAM(Adam(params), start=5)
    sam.base.load_state_dict(base.state_dict())
    sam.steps = 5
    assert sam.active
    assert sam.step(grads)
    assert [g["rho"] for g in sam.param_groups] == [0.05]


def test_bad_state_dicts_change_nothing():
    params, grads = made("float32")
    sam = SAM(Adam(params), rho=0.5)
    sam.step(grads)
    good = sam.state_dict()
    before = [{k: np.copy(v) for k, v in s.items()} for s in sam.base.state]
    bad = [
        None,
        {},
        sam.base.state_dict(),
        good | {"optimizer": "Adam"},
        good | {"sam": {}},
        good | {"sam": good["sam"] | {"steps": -1}},
        good | {"sam": good["sam"] | {"every": 0}},
        good | {"sam": good["sam"] | {"start": "2"}},
        good | {"base": good["base"] | {"optimizer": "SGD"}},
        good | {"base": good["base"] | {"param_groups": [good["base"]["param_groups"][0] | {"rho": -1.0}]}},
        good | {"base": 3},
    ]
    for state in bad:
        with pytest.raises(ValueError, match=r"load_state_dict|SAM"):
            sam.load_state_dict(state)
        assert sam.state_dict()["sam"] == good["sam"]
        for old, new in zip(before, sam.base.state, strict=True):
            assert all(np.array_equal(old[k], new[k]) for k in old)
    sam.load_state_dict(good)


def test_cannot_be_copied_and_shows_itself():
    sam = SAM(SGD([np.ones(2)], lr=0.1), start=3)
    with pytest.raises(TypeError, match="use state_dict or save"):
        sam.__getstate__()
    assert "start=3" in repr(sam)
    assert "rho=0.05" in repr(sam)


def test_torch_tensors_as_parameters():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16):
        p = torch.linspace(-1, 1, 50).to(dtype)
        version = p._version
        sam = SAM(AdamW([p]), rho=0.5)
        before = p.clone()
        assert sam.perturb_([torch.ones(50, dtype=dtype)])
        assert p._version > version
        version = p._version
        sam.restore_()
        assert torch.equal(p, before)
        assert p._version > version
        assert sam.step(lambda p=p: [p.clone()])
