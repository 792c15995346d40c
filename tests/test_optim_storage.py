"""curvk.optim in fewer bytes: 16-bit parameters, masters, 8- and 16-bit states, and what the sweep does along."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curvk import _backend
from curvk.kernels.optim import adam_step, sgd_step
from curvk.optim import SAM, SGD, Adam
from curvk.optim import _base as base
from storage_models import (
    BF16,
    DTYPES,
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
)

# ---- plain settings stay what they were ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16])
def test_plain_settings_take_the_plain_kernels(dtype: Any) -> None:
    """The bits of adam_step and sgd_step, called by hand."""
    for optimizer in (Adam, SGD):
        ours, by_hand = model(1, dtype), model(1, dtype)
        wide = np.float64 if dtype is np.float64 else np.float32
        states = [[np.zeros_like(p, wide) for p in by_hand] for _ in range(2)]
        plain = dict(zip(NEW, (32, "curvk", "nearest", "none", None, False, 3), strict=True))
        stepper = optimizer(ours, lr=0.05, **plain, **({"momentum": 0.5} if optimizer is SGD else {}))
        for t in range(1, 6):
            grads = grads_like(ours, t)
            stepper.step(grads)
            for i, (p, g) in enumerate(zip(by_hand, grads, strict=True)):
                if optimizer is Adam:
                    adam_step(p, g, states[0][i], states[1][i], step=t, lr=0.05)
                else:
                    sgd_step(p, g, states[0][i], lr=0.05, momentum=0.5, first=t == 1)
        assert_same(ours, by_hand)
        assert {c.plan._op for c in stepper._cohorts} == {"adam_step" if optimizer is Adam else "sgd_step"}


def test_wide_parameters_take_no_notice_of_rounding() -> None:
    for options in ({"rounding": "stochastic"}, {"rounding": "kahan"}, {"master": "split16"}):
        for dtype in (np.float32, np.float64):
            a, b = model(2, dtype), model(2, dtype)
            plain, other = Adam(a), Adam(b, **options)
            for seed in range(3):
                plain.step(grads_like(a, seed))
                other.step(grads_like(b, seed))
            assert_same(a, b)
            assert other._cohorts[0].plan._op == "adam_step"


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_goes_along_changes_no_parameter(name: str, dtype: str) -> None:
    """Averages and zeroed gradients leave the bits of the plain step."""
    a, b = model(3, DTYPES[dtype]), model(3, DTYPES[dtype])
    plain, along = OPTIMIZERS[name](a), OPTIMIZERS[name](b, ema=0.9, zero_grad=True)
    for seed in range(6):
        plain.step(grads_like(a, seed), 5.0 - seed)
        along.step(grads_like(b, seed), 5.0 - seed)
    assert_same(a, b)


def test_nothing_per_parameter_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, OPTIONS["8 split16 ema"]):
        params = model(4, BF16)
        adam = Adam(params, **options)
        grads = grads_like(params, 0)
        adam.step(grads)
        steps = []
        with monkeypatch.context() as patch:
            patch.setattr(base.Optimizer, "_form", None)
            patch.setattr(base.Optimizer, "_commit", None)
            patch.setattr(base._storage, "check", None)
            patch.setattr(base._storage, "storage_of", None)
            patch.setattr(_backend.Plan, "rebind", None)
            for _ in range(3):
                steps.append(adam.step(grads))
        assert steps == [True] * 3
        assert adam.state[0]["step"] == 4


# ---- parameters in 16 bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_split16_is_float32(name: str) -> None:
    """Bit for bit the run of float32 parameters with the same gradients."""
    short = model(5, BF16)
    wide = [p.astype(np.float32) for p in short]
    a, b = OPTIMIZERS[name](short, master="split16"), OPTIMIZERS[name](wide)
    for seed in range(30):
        grads = grads_like(short, seed)
        a.step(grads, math.cos(seed))
        b.step([g.astype(np.float32) for g in grads], math.cos(seed))
    moved = False
    for p, q, entry in zip(short, wide, a.state, strict=True):
        assert entry["param_low"].dtype == np.uint16
        got = master(p, entry["param_low"])
        assert np.array_equal(got.view(np.uint32), q.view(np.uint32))
        moved = moved or bool(np.any(entry["param_low"]))
    assert moved


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kahan_is_close_to_float32(dtype: str) -> None:
    """Where rounding to nearest stands still."""
    start = np.linspace(1, 1.9, 500).astype(DTYPES[dtype])
    runs = {}
    for rounding in ("nearest", "kahan"):
        p, want, noise = start.copy(), start.astype(np.float64), np.random.default_rng(25)
        sgd = SGD([p], lr=5e-5, rounding=rounding)
        for _ in range(600):
            g = (1 + 0.3 * noise.standard_normal(p.shape)).astype(p.dtype)
            sgd.step([g])
            want -= 5e-5 * g.astype(np.float64)
        low = sgd.state[0].get("param_low", np.zeros(1, np.float32))
        if rounding == "kahan":
            assert low.dtype == (np.uint16 if dtype == "bfloat16" else np.float16)
            low = low.view(p.dtype)
        runs[rounding] = p.astype(np.float64) + low.astype(np.float64)
    assert np.array_equal(runs["nearest"], start.astype(np.float64))
    assert np.all(want < start.astype(np.float64) - 0.028)
    np.testing.assert_allclose(runs["kahan"], want, rtol=0, atol=6e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_is_right_on_average(dtype: str) -> None:
    start = np.full(40_000, 1.5, DTYPES[dtype])
    unit = {"bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype]
    p = start.copy()
    sgd = SGD([p], lr=unit * 0.3, rounding="stochastic", seed=11)
    sgd.step([np.ones_like(p)])
    moved = (start.astype(np.float64) - p.astype(np.float64)) / unit
    assert set(np.unique(moved)) == {0.0, 1.0}
    assert abs(moved.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / p.size)
    for _ in range(19):
        sgd.step([np.ones_like(p)])
    moved = (start.astype(np.float64) - p.astype(np.float64)) / unit
    assert abs(moved.mean() - 6) < 5 * math.sqrt(20 * 0.3 * 0.7 / p.size)


def test_seed_place_and_step_make_the_noise() -> None:
    def pair(seed: int) -> Arrays:
        params = [np.ones(300, BF16) for _ in range(2)]
        SGD(params, lr=1e-3, rounding="stochastic", seed=seed).step([np.ones(300, BF16) for _ in range(2)])
        return params

    a, b, c = pair(0), pair(0), pair(1)
    assert_same(a, b)
    assert a[0].tobytes() != c[0].tobytes()
    assert a[0].tobytes() != a[1].tobytes()
    p = np.ones(300, BF16)
    sgd = SGD([p], lr=1e-3, rounding="stochastic")
    sgd.step([np.ones(300, BF16)])
    first = p.copy()
    p[:] = 1
    sgd.step([np.ones(300, BF16)])
    assert p.tobytes() != first.tobytes()


@pytest.mark.parametrize(
    ("name", "option"),
    [("sgd", "stochastic"), *((n, o) for n in ("momentum", "adam") for o in ("stochastic", "16", "8"))],
)
def test_none_leaves_a_parameter_and_its_noise(name: str, option: str) -> None:
    """Every parameter ends as if it alone had been given gradients."""
    together = model(6, BF16)
    alone = [model(6, BF16) for _ in together]
    stepper = OPTIMIZERS[name](together, **OPTIONS[option])
    singles = [OPTIMIZERS[name](params, **OPTIONS[option]) for params in alone]
    rng = np.random.default_rng(12)
    for seed in range(12):
        grads = [g if rng.random() < 0.6 else None for g in grads_like(together, seed)]
        stepper.step(grads)
        for i, single in enumerate(singles):
            if grads[i] is not None:
                single.step([g if j == i else None for j, g in enumerate(grads)])
    assert_same(together, [params[i] for i, params in enumerate(alone)])
    assert [e.get("step") for e in stepper.state] == [s.state[i].get("step") for i, s in enumerate(singles)]


# ---- states in 16 and 8 bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("option", "per"), [("16", 0), ("8", 32), ("8b", 256)])
def test_states_are_held_as_asked(dtype: str, option: str, per: int) -> None:
    params = model(7, DTYPES[dtype])
    adam = Adam(params, **OPTIONS[option])
    adam.step(grads_like(params, 0))
    for p, entry in zip(params, adam.state, strict=True):
        names = ("exp_avg", "exp_avg_sq")
        assert list(entry) == ["step", *names, *([f"{n}_scale" for n in names] if per else [])]
        for name in names:
            assert entry[name].dtype == (np.uint8 if per else np.uint16)
            assert entry[name].shape == p.shape
            if per:
                assert entry[f"{name}_scale"].dtype == np.float32
                assert entry[f"{name}_scale"].shape == (-(-p.size // per),)


def test_eight_bits_follow_the_moments() -> None:
    """Curvk's codes, decoded by their formula, against moments in float64."""
    p = np.zeros((40, 50), np.float32)
    adam = Adam([p], state_bits=8, lr=1e-3)
    m, v, noise = np.zeros(p.shape), np.zeros(p.shape), np.random.default_rng(13)
    spread = np.exp(noise.standard_normal(p.shape))
    for _ in range(200):
        g = (spread * (0.5 + noise.standard_normal(p.shape))).astype(np.float32)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.astype(np.float64) ** 2
        adam.step([g])
    entry = adam.state[0]
    got_m = decoded(entry["exp_avg"], entry["exp_avg_scale"], True)
    got_v = decoded(entry["exp_avg_sq"], entry["exp_avg_sq_scale"], False)
    tops = np.repeat(np.abs(m).reshape(-1)[: m.size // 32 * 32].reshape(-1, 32).max(1), 32)
    error = (got_m - m).reshape(-1)[: tops.size] / tops
    assert abs(error.mean()) < 0.003
    assert np.sqrt(np.mean(error**2)) < 0.04
    ratio = got_v / v
    assert abs(ratio.mean() - 1) < 0.02  # unbiased, with the noise of its dither
    assert ratio.std() < 0.25


@pytest.mark.parametrize("option", ["16", "8", "8b", "8 split16 ema"])
def test_training_goes_as_with_32_bits(option: str) -> None:
    """Least squares with noisy gradients: the loss falls as far."""
    rng = np.random.default_rng(14)
    x = rng.standard_normal((512, 64))
    y = x @ rng.standard_normal(64)
    ends = []
    for options in ({}, OPTIONS[option]):
        dtype = BF16 if "master" in options else np.float32
        w, batches = np.zeros(64, dtype), np.random.default_rng(15)
        adam = Adam([w], lr=0.02, **options)
        for _ in range(600):
            rows = batches.integers(0, 512, 32)
            residual = x[rows] @ w.astype(np.float64) - y[rows]
            adam.step([(x[rows].T @ residual / 32).astype(dtype)])
        ends.append(float(np.mean((x @ w.astype(np.float64) - y) ** 2)))
    start = float(np.mean(y**2))
    assert ends[0] < 1e-3 * start
    assert ends[1] < 1e-3 * start


def test_momentum_may_begin_late() -> None:
    """A first step of a buffer copies the gradient, undampened, also after steps without one."""
    for options in ({"ema": 0.5}, {"rounding": "stochastic"}):
        p = np.zeros(40, BF16)
        sgd = SGD([p], lr=1.0, dampening=0.5, **options)
        g = [x[0] for x in (grads_like([p], s) for s in range(3))]
        sgd.step([g[0]])
        assert sgd.state[0]["step"] == 1
        sgd.param_groups[0]["momentum"] = 0.75
        sgd.step([g[1]])
        np.testing.assert_array_equal(sgd.state[0]["momentum_buffer"], g[1].astype(np.float32))
        sgd.step([g[2]])
        want = 0.75 * g[1].astype(np.float64) + 0.5 * g[2].astype(np.float64)
        np.testing.assert_allclose(sgd.state[0]["momentum_buffer"], want, rtol=1e-6)


# ---- averages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ema_is_the_plain_loop(name: str, dtype: Any) -> None:
    params = model(8, dtype)
    optimizer = OPTIMIZERS[name](params, ema=0.8)
    want = [p.astype(np.float64) for p in params]
    for seed in range(10):
        grads = grads_like(params, seed)
        grads[seed % 5] = None
        optimizer.step(grads, math.cos(seed))
        want = [w if g is None else 0.8 * w + 0.2 * p for w, p, g in zip(want, params, grads, strict=True)]
    for entry, w in zip(optimizer.state, want, strict=True):
        assert entry["param_ema"].dtype == dtype
        np.testing.assert_allclose(entry["param_ema"], w, rtol=1e-6 if dtype is np.float32 else 1e-14, atol=1e-7)


def test_ema_of_16_bits_follows_what_was_not_rounded() -> None:
    p = np.ones(50, BF16)
    adam = Adam([p], lr=1e-3, master="split16", ema=0.75)
    want = np.ones(50)
    for seed in range(8):
        adam.step(grads_like([p], seed))
        want = 0.75 * want + 0.25 * master(p, adam.state[0]["param_low"])
    assert adam.state[0]["param_ema"].dtype == np.float32
    np.testing.assert_allclose(adam.state[0]["param_ema"], want, rtol=3e-7)


def test_the_decay_is_read_anew() -> None:
    p = np.zeros(3)
    sgd = SGD([p], lr=1.0, ema=0.5)
    sgd.step([np.full(3, -1.0)])
    sgd.param_groups[0]["ema"] = 0.25
    sgd.step([np.full(3, -1.0)])
    np.testing.assert_array_equal(sgd.state[0]["param_ema"], 0.25 * 0.5 + 0.75 * 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16])
def test_averaged(dtype: Any) -> None:
    params = model(9, dtype)
    options = {"rounding": "kahan"} if dtype in (np.float16, BF16) else {}
    groups = [{"params": params[:4], "ema": 0.5}, {"params": params[4:]}]
    adam = Adam(groups, lr=0.1, **options)
    grads = grads_like(params, 0)
    grads[3] = None
    adam.step(grads)
    before, own = contents(adam), [p.copy() for p in params]

    def check() -> None:
        for i, p in enumerate(params):
            average = adam.state[i].get("param_ema")
            want = own[i] if average is None else average.astype(dtype)
            assert (average is None) == (i >= 3)
            assert p.tobytes() == want.tobytes()
            assert p.strides == own[i].strides or i in (1, 2)

    with adam.averaged():
        check()
        with pytest.raises(RuntimeError, match="averages"):
            adam.step(grads)
        with pytest.raises(RuntimeError, match="already"), adam.averaged():
            pass
        check()
    assert contents(adam) == before
    with pytest.raises(ZeroDivisionError), adam.averaged():
        params[0][...] = 1 // 0
    assert contents(adam) == before
    assert adam.step(grads)
    with pytest.raises(ValueError, match="'ema'"), Adam([np.zeros(2)]).averaged():
        pass


def test_groups_may_be_added_within_averaged() -> None:
    w = np.full(8, 2.0)
    sgd = SGD([w], lr=0.5, ema=0.5)
    sgd.step([np.ones(8)])
    with sgd.averaged():
        sgd.add_param_group({"params": [np.ones(3)]})
    np.testing.assert_array_equal(w, 1.5)
    sgd.step([np.ones(8), np.ones(3)])
    np.testing.assert_array_equal(w, 1.0)


def test_averaged_tensors() -> None:
    torch = pytest.importorskip("torch")
    t = torch.ones(5, dtype=torch.bfloat16)
    sgd = SGD([t], lr=0.5, ema=0.5)
    sgd.step([torch.ones(5, dtype=torch.bfloat16)])
    version = t._version
    with sgd.averaged():
        assert t.tolist() == [0.75] * 5
        assert t._version > version
    assert t.tolist() == [0.5] * 5


def test_ema_begins_at_the_first_step_that_is_taken() -> None:
    q, p = np.zeros(3), np.ones(3)
    sgd = SGD([q, p], lr=1.0, ema=0.5, skip_nonfinite=True)
    g, bad = np.ones(3), np.full(3, np.nan)
    sgd.step([g, None])  # the other parameter's step is not this one's
    assert sgd.step([g, bad]) is False
    assert sgd.state[1] == {}
    p[:] = 5
    bad[:] = 1.0
    assert sgd.step([g, bad]) is True
    np.testing.assert_array_equal(sgd.state[1]["param_ema"], 4.5)


# ---- zeroed gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_grad(name: str, dtype: Any) -> None:
    params = model(10, dtype)
    optimizer = OPTIMIZERS[name]([{"params": params[:3], "zero_grad": True}, {"params": params[3:]}], max_grad_norm=1.0)
    grads = [*grads_like(params, 1)[:-1], None]
    kept = copy.deepcopy(grads)
    optimizer.step(grads, 1.0)
    assert all(not np.any(np.asarray(g, np.float64)) for g in grads[:3])
    assert_same(grads[3:-1], kept[3:-1])
    optimizer.param_groups[0]["zero_grad"] = False
    grads = grads_like(params, 2)
    kept = copy.deepcopy(grads)
    optimizer.step(grads, 1.0)
    assert_same(grads, kept)


def test_a_skipped_step_zeroes_too() -> None:
    """Else what is accumulated afterwards would never be finite again."""
    params = model(11)
    adam = Adam([{"params": params[:4], "zero_grad": True}, {"params": params[4:]}], skip_nonfinite=True)
    grads = grads_like(params, 0)
    grads[4][7] = np.inf
    kept = copy.deepcopy(grads)
    before = contents(adam)[:-1]
    assert adam.step(grads) is False
    assert contents(adam)[:-1] == before
    assert all(not g.any() for g in grads[:4])
    assert_same(grads[4:], kept[4:])


# ---- clipping and skipping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
def test_clipping(option: str) -> None:
    """The bits of a step whose grad_scale clips."""
    a, b = model(12, BF16), model(12, BF16)
    clipped, scaled = Adam(a, max_grad_norm=0.5, **OPTIONS[option]), Adam(b, **OPTIONS[option])
    for seed in range(4):
        grads = grads_like(a, seed)
        norm = math.sqrt(math.fsum(float(x) ** 2 for g in grads for x in g.ravel()))
        scaled.step(copy.deepcopy(grads), grad_scale=(norm + 1e-6) / 0.5)
        clipped.step(grads)
    assert_same(a, b)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_skipping(name: str, option: str) -> None:
    """A skipped step writes nothing and takes no noise."""
    a, b = model(13, BF16), model(13, BF16)
    skipping, plain = (
        OPTIMIZERS[name](a, skip_nonfinite=True, **OPTIONS[option]),
        OPTIMIZERS[name](b, **OPTIONS[option]),
    )
    for seed in range(6):
        if seed in (0, 3):
            poisoned = grads_like(a, seed)
            poisoned[4][11] = np.nan
            before = contents(skipping)[:-1]
            assert skipping.step(poisoned, 1.0) is False
            assert contents(skipping)[:-1] == before
        skipping.step(grads_like(a, seed), 9.0 - seed)
        plain.step(grads_like(b, seed), 9.0 - seed)
    assert_same(a, b)
    assert skipping.skipped_steps == 2


# ---- SAM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("option", OPTIONS)
def test_sam_steps_from_the_weights(name: str, option: str) -> None:
    """With a gradient that does not depend on the weights, SAM's step has the bits of the base's."""
    a, b = model(21, BF16), model(21, BF16)
    sam, plain = SAM(OPTIMIZERS[name](a, **OPTIONS[option]), rho=0.3), OPTIMIZERS[name](b, **OPTIONS[option])
    moved = []
    for seed in range(5):
        before = [p.copy() for p in a]

        def grad(seed: int = seed, before: Arrays = before) -> Arrays:
            moved.append(any(p.tobytes() != q.tobytes() for p, q in zip(a, before, strict=True)))
            return grads_like(a, seed)

        sam.step(grad)
        plain.step(grads_like(b, seed))
    assert moved == [False, True] * 5
    assert_same(a, b)
    assert contents(sam.base)[: len(a)] == contents(plain)[: len(b)]
    assert_same(*([x[k] for x in s.state for k in sorted(x.keys() - {"step"})] for s in (sam.base, plain)))


@pytest.mark.parametrize("option", ["stochastic", "kahan", "8 split16 ema"])
def test_sam_restores(option: str) -> None:
    params = model(22, BF16)
    sam = SAM(Adam(params, **OPTIONS[option]), rho=0.5)
    sam.step(lambda: grads_like(params, 0))
    before = contents(sam.base)
    assert sam.perturb_(grads_like(params, 1))
    assert contents(sam.base) != before
    sam.restore_()
    assert contents(sam.base) == before

    def fails() -> Arrays:
        if contents(sam.base) != before:
            raise ZeroDivisionError
        return grads_like(params, 1)

    with pytest.raises(ZeroDivisionError):
        sam.step(fails)
    assert contents(sam.base) == before
    bad = grads_like(params, 2)
    bad[0][0, 0] = np.inf
    assert sam.step(lambda: bad) is False
    assert contents(sam.base) == before


def test_sam_resets_moments_but_no_masters() -> None:
    params = model(23, BF16)
    sam = SAM(Adam(params, lr=0.01, master="split16", ema=0.5), start=3, reset_state_on_switch=True)
    for seed in range(3):
        sam.step(lambda seed=seed: grads_like(params, seed))  # type: ignore[misc]
    full = [master(p, e["param_low"]) for p, e in zip(params, sam.base.state, strict=True)]
    grads = grads_like(params, 3)
    grads[3] = None
    sam.step(lambda: [None if g is None else g.copy() for g in grads])
    twins = [f.copy() for f in full]
    Adam(twins, lr=0.01).step([None if g is None else g.astype(np.float32) for g in grads])
    for p, q, e in zip(params, twins, sam.base.state, strict=True):
        assert master(p, e["param_low"]).tobytes() == q.tobytes()
    left = sam.base.state[3]
    assert left["step"] == 0
    assert left.keys() == {"step", "param_low", "param_ema"}
    state = sam.state_dict()
    other = SAM(Adam(model(23, BF16)))
    other.load_state_dict(state)
    assert contents(other.base)[len(params) :] == contents(sam.base)[len(params) :]


def test_sam_averages_the_weights_not_where_it_looked() -> None:
    w = np.full(8, 2.0)
    sam = SAM(SGD([w], lr=0.5, ema=0.5), rho=1.0)
    sam.step(lambda: [np.ones(8)])
    np.testing.assert_array_equal(sam.base.state[0]["param_ema"], 1.75)
    with sam.averaged():
        np.testing.assert_array_equal(w, 1.75)
        with pytest.raises(RuntimeError, match="averages"):
            sam.step(lambda: [np.ones(8)])
    np.testing.assert_array_equal(w, 1.5)
    sam.perturb_([np.ones(8)])
    with pytest.raises(RuntimeError, match="perturbed"):
        sam.averaged()
    sam.restore_()
    assert sam.memory()["bytes"] == {"params": 64, "grads": 0, "param_ema": 64}


def test_sam_resumes_with_noise(tmp_path: Path) -> None:
    through, stopped = model(24, BF16), model(24, BF16)
    make = lambda p, **kw: SAM(Adam(p, lr=0.01, **OPTIONS["16 stochastic ema zero"] | kw), rho=0.1, every=2)  # noqa: E731
    first, second = make(through), make(stopped)
    for seed in range(4):
        first.step(lambda seed=seed: grads_like(through, seed))
        second.step(lambda seed=seed: grads_like(stopped, seed))
    second.save(tmp_path / "s")
    third = make(stopped, seed=1)
    third.load(tmp_path / "s")
    for seed in range(4, 9):
        first.step(lambda seed=seed: grads_like(through, seed))
        third.step(lambda seed=seed: grads_like(stopped, seed))
    assert contents(first.base) == contents(third.base)


# ---- bytes ---------------------------------------------------------------------------------------------------------


def test_memory() -> None:
    """By hand: 1,000 elements have 32 groups of 32 and 4 of 256; 10 have 1 of each."""
    params = [np.zeros((10, 100), np.float32), np.zeros(10, BF16)]
    grads = [np.ones_like(p) for p in params]
    sizes = {
        "": {"exp_avg": 4040, "exp_avg_sq": 4040},
        "16": {"exp_avg": 2020, "exp_avg_sq": 2020},
        "8": {"exp_avg": 1010, "exp_avg_scale": 132, "exp_avg_sq": 1010, "exp_avg_sq_scale": 132},
        "8b": {"exp_avg": 1010, "exp_avg_scale": 20, "exp_avg_sq": 1010, "exp_avg_sq_scale": 20},
    }
    sizes["8 split16 ema"] = sizes["8"] | {"param_low": 20, "param_ema": 4040}
    for option, states in sizes.items():
        adam = Adam(params, **OPTIONS.get(option, {}))
        fixed = {"params": 4020, "grads": 0}
        assert adam.memory()["bytes"] == fixed
        adam.step(grads)
        found = adam.memory()
        assert found["parameters"] == 1010
        assert found["bytes"] == fixed | states
        each = {k: v / 1010 for k, v in (fixed | states).items()}
        assert found["bytes_per_parameter"] == pytest.approx(each | {"total": sum(each.values())}, rel=1e-14)
    assert SGD([np.zeros((0, 2))]).memory()["bytes_per_parameter"]["total"] == 0
