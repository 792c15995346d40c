"""curvk.optim.SAM against closed forms, plain NumPy in float64, and the published codes' order of operations."""

from __future__ import annotations

import math

import curvk
import numpy as np
import pytest
from curvk.kernels.curvature import asam_norm
from curvk.optim import SAM, SGD, Adam, AdamW, AdamZ
from sam_arrays import SEED, SHAPES, bits, made

BASES = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (Adam, {"lr": 0.01, "amsgrad": True}),
    (AdamW, {"lr": 0.01}),
    (AdamZ, {"lr": 0.01}),
]
FORMATS = ["float32", "float64", "float16", "bfloat16"]


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
