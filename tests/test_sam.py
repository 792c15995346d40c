"""curvk.optim.SAM against closed forms, plain NumPy in float64, and the published codes' order of operations."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import weakref

import curvk
import curvk.optim._sam as sam_module
import numpy as np
import pytest
from curvk.kernels.curvature import asam_norm
from curvk.kernels.half import from_float32, to_float32
from curvk.optim import SAM, SGD, Adam, AdamW, AdamZ, LossAdaptiveLR

SEED = 20260
BASES = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (Adam, {"lr": 0.01, "amsgrad": True}),
    (AdamW, {"lr": 0.01}),
    (AdamZ, {"lr": 0.01}),
]
SHAPES = [(7,), (3, 5), (), (0,), (33,), (2, 70_000)]
FORMATS = ["float32", "float64", "float16", "bfloat16"]


def stored(x, fmt):
    return from_float32(np.ascontiguousarray(x, np.float32), "bf16") if fmt == "bfloat16" else x.astype(fmt)


def real(x, fmt):
    return to_float32(x).astype(np.float64) if fmt == "bfloat16" else x.astype(np.float64)


def made(fmt="float64", seed=SEED, shapes=SHAPES):
    """Parameters, and gradients that depend on where they are taken: a random linear map of the weights, and noise."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    params = [stored(rng.standard_normal(s), fmt) for s in shapes]
    slopes = [rng.standard_normal(s) for s in shapes]

    def grads():
        return [stored(np.tanh(real(p, fmt) * h) + h, fmt) for p, h in zip(params, slopes, strict=True)]

    return params, grads


def bits(arrays):
    return [a.tobytes() for a in arrays]


def bowl(curvature, start, base_options=None, **options):
    """The quadratic with these curvatures, and SAM on it."""
    h = np.diag(curvature) if np.ndim(curvature) == 1 else np.asarray(curvature)
    w = np.array(start, np.float64)
    return h, w, SAM(SGD([w], **{"lr": 0.1, **(base_options or {})}), **options)


# ---- closed forms ---------------------------------------------------------------------------------------------------


def test_step_on_a_quadratic(backend):
    rng = np.random.default_rng(SEED)
    a = rng.standard_normal((6, 6))
    h, start = a @ a.T, rng.standard_normal(6)
    _, w, sam = bowl(h, start, rho=0.3)
    assert sam.step(lambda: [h @ w])
    want = start - 0.1 * (h @ start) - 0.1 * 0.3 * (h @ h @ start) / np.linalg.norm(h @ start)
    np.testing.assert_allclose(w, want, rtol=1e-12)


@pytest.mark.parametrize(("h", "rho"), [(1.0, 0.05), (4.0, 0.2), (15.0, 0.01)])
def test_cycle_of_two_in_one_dimension(h, rho):
    _, w, sam = bowl([h], [0.3], rho=rho)
    want = 0.1 * h * rho / (2 - 0.1 * h)
    for _ in range(400):
        sam.step(lambda: [h * w])
    before = w.item()
    sam.step(lambda: [h * w])
    assert w.item() == pytest.approx(-before, rel=1e-12)
    assert abs(before) == pytest.approx(want, rel=2e-12 / (h * want))  # what the floor of the norm may do


def test_sam_leaves_a_minimum_where_sgd_stays():
    """Without the normalisation the factor per step is abs(1 - lr (h + rho h^2)), for SGD abs(1 - lr h)."""
    lr, rho = 0.1, 0.3
    limit = (math.sqrt(1 + 8 * rho / lr) - 1) / (2 * rho)
    assert limit == pytest.approx(20 / 3)
    for h, leaves in ((limit * 0.999, False), (limit * 1.001, True), (12.0, True)):
        for with_sam in (False, True):
            _, w, sam = bowl([h], [1e-3], {"lr": lr})
            for _ in range(50):
                sam.param_groups[0]["rho"] = rho * abs(h * w.item()) if with_sam else 0.0
                sam.step(lambda w=w, h=h: [h * w])
            factor = abs(1 - lr * (h + (rho * h * h if with_sam else 0)))
            assert abs(w.item()) == pytest.approx(1e-3 * factor**50, rel=1e-6)
            assert (abs(w.item()) > 1e-3) == (leaves and with_sam)


@pytest.mark.parametrize(("base", "options"), BASES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
def test_without_distance_it_is_the_base(base, options, fmt):
    params, grads = made(fmt)
    twins, _ = made(fmt)
    sam, alone = SAM(base(params, **options), rho=0.0), base(twins, **options)
    for _ in range(4):
        g = grads()
        assert sam.step(grads)
        alone.step(g)
        assert bits(params) == bits(twins)


@pytest.mark.parametrize(("base", "options"), BASES, ids=str)
def test_on_a_linear_loss_it_is_the_base(base, options):
    params, _ = made("float32")
    twins, grads = made("float32")
    slopes = grads()
    sam, alone = SAM(base(params, **options), rho=0.7, adaptive=True, eta=0.1), base(twins, **options)
    for _ in range(4):
        sam.step(lambda: slopes)
        alone.step(slopes)
        assert bits(params) == bits(twins)


@pytest.mark.parametrize(("adaptive", "eta"), [(False, 0.0), (True, 0.0), (True, 0.01)])
@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_distance_is_rho(adaptive, eta, scale, backend):
    params, grads = made(shapes=[(7,), (3, 5), (33_000,)])
    before = [p.copy() for p in params]
    sam = SAM(SGD(params, lr=0.1), rho=0.37, adaptive=adaptive, eta=eta)
    assert sam.perturb_([scale * g for g in grads()], grad_scale=scale)
    size = [np.abs(p) + eta if adaptive else 1.0 for p in before]
    moved = [((p - q) / t).ravel() for p, q, t in zip(params, before, size, strict=True)]
    assert np.linalg.norm(np.concatenate(moved)) == pytest.approx(0.37, rel=1e-11)
    sam.restore_()
    assert bits(params) == bits(before)


def test_asam_does_not_see_the_scale_of_elements():
    rng = np.random.default_rng(SEED)
    w, g, c = rng.standard_normal(50), rng.standard_normal(50), np.exp(rng.standard_normal(50))
    moved = []
    for factor in (np.ones(50), c):
        p = factor * w
        sam = SAM(SGD([p], lr=0.1), rho=0.5, adaptive=True)
        sam.perturb_([g / factor])
        moved.append((p - factor * w) / factor)
    np.testing.assert_allclose(moved[1], moved[0], rtol=1e-11, atol=1e-15)


def test_threads_change_no_bit():
    results = []
    for threads in (1, 2, 3, 7):
        curvk.set_num_threads(threads)
        params, grads = made("float32", shapes=[(5,), (300_001,), (41, 1000)])
        for adaptive in (False, True):
            SAM(AdamW(params), rho=0.5, adaptive=adaptive).step(grads)
        results.append(bits(params))
    assert results.count(results[0]) == 4


# ---- published codes ------------------------------------------------------------------------------------------------


class Davda54:
    """github.com/davda54/sam around SGD with momentum, in its order of operations, in float64."""

    def __init__(self, params, rho, adaptive, lr, momentum):
        self.params, self.rho, self.adaptive, self.lr, self.momentum = params, rho, adaptive, lr, momentum
        self.buffers = None

    def step(self, grads):
        grad_norm = np.linalg.norm(
            [
                np.linalg.norm((np.abs(p) if self.adaptive else 1.0) * g)
                for p, g in zip(self.params, grads(), strict=True)
            ]
        )
        scale = self.rho / (grad_norm + 1e-12)
        old = [p.copy() for p in self.params]
        for p, g in zip(self.params, grads_at(old, grads, self.params), strict=True):
            e_w = (np.power(p, 2) if self.adaptive else 1.0) * g * scale
            p += e_w
        second = grads()
        for p, q in zip(self.params, old, strict=True):
            p[...] = q
        first = self.buffers is None
        self.buffers = second if first else [self.momentum * b + g for b, g in zip(self.buffers, second, strict=True)]
        for p, b in zip(self.params, self.buffers, strict=True):
            p -= self.lr * b


def grads_at(values, grads, params):
    """All gradients at these values, before any parameter moves."""
    for p, v in zip(params, values, strict=True):
        p[...] = v
    return grads()


@pytest.mark.parametrize("adaptive", [False, True])
def test_follows_davda54(adaptive, backend):
    params, grads = made(shapes=SHAPES[:5])
    twins, twin_grads = made(shapes=SHAPES[:5])
    sam = SAM(SGD(params, lr=0.05, momentum=0.9), rho=0.5, adaptive=adaptive)
    published = Davda54(twins, 0.5, adaptive, 0.05, 0.9)
    for _ in range(20):
        sam.step(grads)
        published.step(twin_grads)
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)


def test_follows_the_asam_of_its_authors():
    """SamsungLabs/ASAM: T = abs(w) + eta for weights and 1 for biases, floor 1e-16, restored by subtraction."""
    params, grads = made(shapes=[(4, 6), (6,), (6, 3), (3,)])
    twins, twin_grads = made(shapes=[(4, 6), (6,), (6, 3), (3,)])
    sam = SAM(SGD([{"params": params[::2]}, {"params": params[1::2]}], lr=0.05), rho=0.5, adaptive=True, eta=0.01)
    sam.param_groups[1]["adaptive"] = False

    def grouped():
        g = grads()
        return g[::2] + g[1::2]

    for _ in range(20):
        sam.step(grouped)
        g = twin_grads()
        t = [np.abs(p) + 0.01 if k % 2 == 0 else np.ones_like(p) for k, p in enumerate(twins)]
        g = [x * s for x, s in zip(g, t, strict=True)]
        norm = np.linalg.norm([np.linalg.norm(x) for x in g]) + 1e-16
        eps = [x * s * (0.5 / norm) for x, s in zip(g, t, strict=True)]
        for p, e in zip(twins, eps, strict=True):
            p += e
        g = twin_grads()
        for p, e in zip(twins, eps, strict=True):
            p -= e
        for p, x in zip(twins, g, strict=True):
            p -= 0.05 * x
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)


def test_groups_share_one_norm():
    a, b = np.array([3.0]), np.array([4.0])
    sam = SAM(SGD([{"params": [a]}, {"params": [b]}], lr=0.1), rho=0.5)
    sam.param_groups[1]["rho"] = 2.0
    sam.add_param_group({"params": [np.array([1.0])], "rho": 9.0, "lr": 0.3})
    assert [g["rho"] for g in sam.param_groups] == [0.5, 2.0, 9.0]
    sam.perturb_([np.array([3.0]), np.array([-4.0]), None])
    np.testing.assert_allclose((a[0], b[0]), (3 + 0.5 * 3 / 5, 4 - 2.0 * 4 / 5), rtol=1e-12)


# ---- bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("adaptive", [False, True])
def test_restore_gives_every_bit_back(fmt, adaptive, backend):
    params, grads = made(fmt, shapes=[(7,), (0,), (2, 7_000)])
    before = bits(params)
    sam = SAM(AdamW(params, lr=0.01), rho=2.0, adaptive=adaptive)
    assert sam.perturb_(grads())
    assert bits(params) != before
    sam.restore_()
    assert bits(params) == before
    sam.restore_()  # nothing left to restore
    assert bits(params) == before


def test_restore_by_subtraction_would_not_be_exact():
    params, grads = made("float32", shapes=[(100_000,)])
    before = params[0].copy()
    sam = SAM(SGD(params, lr=0.1), rho=2.0)
    g = grads()
    sam.perturb_(g)
    scale = np.float32(2.0 / np.linalg.norm(g[0].astype(np.float64)))
    assert np.count_nonzero(params[0] - scale * g[0] != before) > 0
    sam.restore_()
    assert np.array_equal(params[0], before)


@pytest.mark.parametrize(("base", "options"), BASES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
def test_step_is_the_base_from_the_old_weights(base, options, fmt):
    """With the gradient at the perturbed weights in hand, the base alone gives the same bits, states included."""
    params, grads = made(fmt)
    twins, _ = made(fmt)
    sam, alone = SAM(base(params, **options), rho=0.5), base(twins, **options)
    for _ in range(4):
        assert sam.perturb_(grads())
        second = grads()
        assert sam.restore_and_step(second)
        alone.step(second)
        assert bits(params) == bits(twins)
    for mine, theirs in zip(sam.base.state, alone.state, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


def test_gradients_are_only_read():
    params, grads = made("float32", shapes=[(9,), (9,), (4, 3)])
    g = grads()
    g[1] = g[0]  # one array as the gradient of two
    for x in g:
        x.flags.writeable = False
    before = bits(g)
    sam = SAM(SGD(params, lr=0.1), rho=0.5)
    assert sam.perturb_(g)
    assert sam.restore_and_step(g)
    assert bits(g) == before


def test_same_gradient_arrays_in_every_step():
    """The base recognises gradients that it has seen; the weights to start from are new ones nevertheless."""
    params, grads = made("float32")
    twins, twin_grads = made("float32")
    held = [np.array(g) for g in grads()]
    reusing, fresh = SAM(Adam(params), rho=0.5), SAM(Adam(twins), rho=0.5)

    def refill():
        for kept, new in zip(held, grads(), strict=True):
            kept[...] = new
        return held

    for _ in range(4):
        reusing.step(refill)
        fresh.step(twin_grads)
        assert bits(params) == bits(twins)


def test_norm_of_weights_and_gradients_laid_out_differently(backend):
    rng = np.random.default_rng(SEED)
    w, g = rng.standard_normal((2, 4, 5, 6))
    want = np.linalg.norm((np.abs(w) + 0.1) * g)
    layouts = [lambda x: x, np.asfortranarray, lambda x: x.transpose(1, 0, 2).copy().transpose(1, 0, 2)]
    layouts += [lambda x: np.repeat(x, 2, axis=2)[:, :, ::2], lambda x: x[:, ::-1].copy()[:, ::-1]]
    for lay_w in layouts:
        for lay_g in layouts:
            assert asam_norm([lay_w(w), w], [lay_g(g), 0 * g], eta=0.1) == pytest.approx(want, rel=1e-12)


def test_strided_parameters():
    rng = np.random.default_rng(SEED)
    whole, h = rng.standard_normal((6, 20)), rng.standard_normal((6, 10))
    part, plain = whole[:, ::2], whole[:, ::2].copy()
    between = whole[:, 1::2].copy()
    for p in (part, plain):
        sam = SAM(AdamW([p], lr=0.1), rho=0.5, adaptive=True)
        for _ in range(3):
            sam.step(lambda p=p: [np.tanh(p) * h])
    assert np.array_equal(part, plain)
    assert np.array_equal(whole[:, 1::2], between)


# ---- skipped steps and missing gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("adaptive", [False, True])
def test_first_gradient_not_finite(bad, adaptive):
    params, grads = made("float32")
    before = bits(params)
    sam = SAM(Adam(params), rho=0.5, adaptive=adaptive)
    g = grads()
    g[1][0, 0] = bad
    assert sam.perturb_(g) is False
    assert bits(params) == before
    assert sam.restore_and_step(grads()) is False
    assert (bits(params), sam.steps, sam.skipped_steps) == (before, 1, 1)
    assert sam.base.state == [{}] * len(SHAPES)
    assert sam.step(grads)
    assert sam.step(lambda: g) is False
    assert (sam.steps, sam.skipped_steps) == (3, 2)


def test_second_gradient_not_finite_and_a_base_that_skips():
    params, grads = made("float32")
    before = bits(params)
    sam = SAM(Adam(params, skip_nonfinite=True), rho=0.5)
    assert sam.perturb_(grads())
    bad = grads()
    bad[0][0] = np.nan
    assert sam.restore_and_step(bad) is False
    assert (bits(params), sam.skipped_steps, sam.base.skipped_steps) == (before, 1, 1)
    assert sam.step(grads)


def test_missing_gradients():
    params, grads = made(shapes=[(4,), (5,), (6,)])
    twins, _ = made(shapes=[(4,), (5,), (6,)])
    before = [p.copy() for p in params]
    sam = SAM(SGD(params, lr=0.1), rho=0.5)
    first = grads()
    first[2] = None
    assert sam.perturb_(first)
    assert np.array_equal(params[2], before[2])
    second = grads()
    second[0] = None
    sam.restore_and_step(second)
    SGD(twins, lr=0.1).step(second)
    assert np.array_equal(params[0], before[0])  # perturbed, and without a second gradient
    assert bits(params) == bits(twins)
    assert sam.step(lambda: [None] * 3)


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
