"""curvk.zeroth: estimators against closed forms, layer choice against its law, restore against bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from curvk.kernels import noise
from curvk.zeroth import ES, FZOO, AdaLeZO, LeZO, MeZO, SparseMeZO, choose_layers
from curvk.zeroth._estimate import Central
from curvk.zeroth._method import Method
from curvk.zeroth._restore import Scratch
from curvk.zeroth._select import Bandit, Everything
from curvk.zeroth._update import Noise, Tensors
from scipy import stats
from zeroth_arrays import (
    DTYPES,
    LAYERS,
    Params,
    assert_mean,
    assert_same,
    bowl,
    contents,
    copied,
    model,
    steps,
    wide,
    z_of,
)


def changed(a: Params, b: Params) -> set[str]:
    first, second = contents(a), contents(b)
    return {name for name in first if first[name] != second[name]}


# ---- estimators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-1, -10, -20])
def test_linear_loss_gives_exactly_the_inner_product(exponent: int) -> None:
    """Integers and powers of two: no rounding anywhere, so g = z c to the bit, whatever eps."""
    c = np.arange(-20.0, 20.0)
    theta = {"w": np.ones(40)}
    opt = MeZO(theta, lr=1.0, eps=2.0**exponent, dist="rademacher", seed=3)
    steps(opt, lambda p: float(c @ p["w"]), 5)
    for step in range(5):
        z = z_of(theta["w"], "w", step, 3, "rademacher")
        assert opt.log.coefs[step, 0] == -float(c @ z)


@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.3])
@pytest.mark.parametrize("dist", ["normal", "normal_fast", "rademacher"])
def test_linear_loss_to_rounding_for_every_eps(eps: float, dist: str) -> None:
    c = np.random.default_rng(1).standard_normal(40)
    theta = {"w": np.zeros(40)}
    opt = MeZO(theta, lr=1.0, eps=eps, dist=dist, seed=5)
    steps(opt, lambda p: float(c @ p["w"]), 4)
    truth = [-float(c @ z_of(c, "w", t, 5, dist)) for t in range(4)]
    np.testing.assert_allclose(opt.log.coefs[:, 0], truth, rtol=1e-7, atol=1e-9 / eps * 1e-5)


def test_losses_are_divided_by_the_distance_that_float32_weights_move() -> None:
    """A probe of eps = 1e-3 moves zeros by float32(1e-3), 4.7e-8 more; digits of g show what is divided by."""
    c = np.arange(1.0, 2001.0)
    seen: list[float] = []
    opt = MeZO({"w": np.zeros(2000, np.float32)}, lr=1.0, eps=1e-3, dist="rademacher")
    opt.step(lambda p: seen.append(float(c @ wide(p["w"]))) or seen[-1])
    g = opt._method.estimator.weights([seen], None)[0]
    assert g == pytest.approx(float(c @ z_of(c, "w", 0, 0, "rademacher")), rel=1e-12)


@pytest.mark.parametrize("eps", [1e-4, 1e-2, 10.0])
def test_quadratic_loss_has_no_error_in_eps(eps: float) -> None:
    rng = np.random.default_rng(2)
    h = rng.standard_normal((30, 30))
    h += h.T
    start = rng.standard_normal(30)
    theta = {"w": start.copy()}
    opt = MeZO(theta, lr=1e-3, eps=eps, seed=1)
    opt.step(lambda p: float(0.5 * p["w"] @ h @ p["w"]))
    g = z_of(start, "w", 0, 1) @ h @ start
    assert opt.log.coefs[0, 0] == pytest.approx(-1e-3 * g, rel=1e-7 + 1e-13 / eps**2)
    np.testing.assert_allclose(theta["w"], start - 1e-3 * g * z_of(start, "w", 0, 1), rtol=1e-6)


def test_one_sided_difference_has_half_eps_z_h_z() -> None:
    rng = np.random.default_rng(3)
    h = rng.standard_normal((20, 20))
    h += h.T
    theta, eps = {"w": rng.standard_normal(20)}, 0.25
    start = theta["w"].copy()
    opt = FZOO(theta, lr=1.0, eps=eps, seed=2, n_probes=8, dist="normal")
    opt.step(lambda p: float(0.5 * p["w"] @ h @ p["w"]))
    z = np.array([z_of(start, "w", k, 2) for k in range(8)])
    losses = np.array([0.5 * (start + eps * zk) @ h @ (start + eps * zk) for zk in z])
    g = np.array([zk @ h @ start + 0.5 * eps * zk @ h @ zk for zk in z])
    np.testing.assert_allclose(opt.log.coefs[0], -g / 8 / losses.std(ddof=1), rtol=1e-6)


@pytest.mark.parametrize(("dist", "factor"), [("normal", 41.0), ("rademacher", 39.0)])
def test_error_of_one_probe_and_of_its_coordinates(dist: str, factor: float) -> None:
    """E |g_hat - g|^2 = (d - 2 + kappa) |g|^2 and Var g_hat_i = |g|^2 + (kappa - 2) g_i^2 for d = 40."""
    c = np.linspace(-1, 2, 40)
    n = 3000
    opt = MeZO({"w": np.zeros(40)}, lr=1.0, eps=0.5, dist=dist, seed=7, n_probes=n)
    opt.step(lambda p: float(c @ p["w"]))
    z = np.array([z_of(c, "w", k, 7, dist) for k in range(n)])
    estimates = -wide(opt.log.coefs[0])[:, None] * n * z
    assert_mean(((estimates - c) ** 2).sum(1) / (c @ c), factor)
    kappa = {"normal": 3.0, "rademacher": 1.0}[dist]
    for i in (0, 39):
        assert_mean((estimates[:, i] - c[i]) ** 2, c @ c + (kappa - 2) * c[i] ** 2)


def test_probes_divide_the_variance() -> None:
    """The error of the update itself: E |delta theta / lr + g|^2 = 41 / K |g|^2."""
    c = np.linspace(-1, 2, 40)
    theta = {"w": np.zeros(40)}
    opt = MeZO(theta, lr=1.0, eps=0.5, seed=11, n_probes=8)
    errors = []
    for _ in range(500):
        before = theta["w"].copy()
        opt.step(lambda p: float(c @ p["w"]))
        errors.append((((theta["w"] - before) + c) ** 2).sum() / (c @ c))
    assert_mean(errors, 41 / 8)


@pytest.mark.parametrize("relative", [1.0, 2.0, 3.0])
def test_expected_contraction_on_half_the_square(relative: float) -> None:
    """E |theta'|^2 = (1 - 2 eta + eta^2 (d + 2)) |theta|^2: 1 exactly at eta = 2 / (d + 2), the limit of stability."""
    d = 20
    eta = relative / (d + 2)
    theta = {"w": np.ones(d) / math.sqrt(d)}
    opt = MeZO(theta, lr=eta, eps=1e-2, seed=13)
    ratios = []
    for _ in range(1500):
        opt.step(lambda p: 0.5 * float(p["w"] @ p["w"]))
        ratios.append(float(theta["w"] @ theta["w"]))
        theta["w"] /= math.sqrt(ratios[-1])
    assert_mean(ratios, 1 - 2 * eta + eta**2 * (d + 2))


class Mirrored(Scratch):
    """Probes with -z in place of z."""

    def loss(self, evaluate: Any, active: Sequence[int], draw: int, scale: float) -> float:
        return super().loss(evaluate, active, draw, -scale)

    def update(self, update: Any) -> None:
        super().update(type(update)(**{**vars(update), "coefs": -update.coefs}))


def test_sign_of_the_noise_does_not_matter() -> None:
    results = []
    for scheme in (Scratch, Mirrored):
        params = model(1, np.float64)
        tensors = Tensors(list(params), list(params.values()), "test")
        method = Method(scheme(tensors, Noise(3, "normal")), Central(1e-3), Everything(), name="test")
        for _ in range(10):
            method.step(lambda arrays, names=tensors.names: bowl(dict(zip(names, arrays, strict=True))), lr=0.01)
        results.append(params)
    assert_same(*results)


def test_residual_feedback_by_hand() -> None:
    c = np.random.default_rng(4).standard_normal(15)
    theta = {"w": np.zeros(15)}
    opt = MeZO(theta, lr=0.1, eps=0.5, seed=9, points=1, n_probes=2)
    w, last = np.zeros(15), None
    for t in range(5):
        before = contents(theta)
        returned = opt.step(lambda p: 2.0 + float(c @ p["w"]))
        z = [z_of(w, "w", 2 * t + k, 9) for k in range(2)]
        losses = [2.0 + c @ (w + 0.5 * zk) for zk in z]
        assert returned == pytest.approx(sum(losses) / 2)
        if last is None:
            assert contents(theta) == before
            assert not opt.skipped
        else:
            w = w - 0.1 / 2 * sum((loss - last) / 0.5 * zk for loss, zk in zip(losses, z, strict=True))
        last = sum(losses) / 2
        np.testing.assert_allclose(theta["w"], w, rtol=1e-5, atol=1e-6)
        theta["w"][:] = w


def test_fzoo_spread_is_the_gradients_norm() -> None:
    """E sigma^2 = eps^2 |g|^2 for a linear loss, with sigma read back from the logged coefficients."""
    c = np.linspace(-1, 2, 25)
    opt = FZOO({"w": np.zeros(25)}, lr=1.0, eps=0.5, seed=4)
    ratios = []
    for t in range(600):
        opt.step(lambda p: float(c @ p["w"]))
        coefs = opt.log.coefs[t]
        k = int(np.abs(coefs).argmax())
        sigma = -float(c @ z_of(c, "w", 8 * t + k, 4, "rademacher")) / 8 / float(coefs[k])
        ratios.append(sigma**2 / (0.25 * c @ c))
    assert_mean(ratios, 1.0)


def test_fzoo_takes_no_step_on_a_flat_loss() -> None:
    theta = model()
    before = contents(theta)
    opt = FZOO(theta, lr=1.0, weight_decay=0.0)
    assert opt.step(lambda p: 4.0) == 4.0
    assert contents(theta) == before
    assert not opt.skipped


def test_es_by_hand() -> None:
    start = np.random.default_rng(5).standard_normal(12)
    theta = {"w": start.copy()}
    opt = ES(theta, lr=0.3, eps=0.1, seed=6, n_probes=10)
    opt.step(lambda p: float(np.sum(np.cos(p["w"]))))
    eps = float(np.float32(0.1))
    z = np.array([z_of(start, "w", k, 6) for k in range(10)])
    rewards = -np.cos(start + eps * z).sum(1)
    scored = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    np.testing.assert_allclose(theta["w"], start + 0.3 / 10 * scored @ z, rtol=1e-6)


def test_returned_loss_is_the_mean_of_the_first_sides() -> None:
    theta = {"w": np.ones(5)}
    opt = MeZO(theta, lr=0.0, eps=0.5, n_probes=3, seed=8)
    losses = [np.cos(1 + 0.5 * z_of(theta["w"], "w", k, 8)).sum() for k in range(3)]
    assert opt.step(lambda p: np.cos(p["w"]).sum()) == pytest.approx(np.mean(losses), rel=1e-14)


def test_many_probes_are_the_mean_of_single_ones() -> None:
    start = model(2, np.float64)
    several = copied(start)
    MeZO(several, lr=0.01, n_probes=4, seed=1).step(bowl)
    total = {name: np.zeros(x.shape) for name, x in start.items()}
    for k in range(4):
        z = {name: z_of(x, name, k, 1) for name, x in start.items()}
        eps = float(np.float32(1e-3))
        sides = [bowl({n: x + s * eps * z[n] for n, x in start.items()}) for s in (1, -1)]
        for name in total:
            total[name] += (sides[0] - sides[1]) / (2 * eps) * z[name] / 4
    for name, x in start.items():
        np.testing.assert_allclose(several[name], x - 0.01 * total[name], rtol=1e-6, atol=1e-9)


def test_equal_shapes_get_different_noise_and_order_does_not_matter() -> None:
    """The fault of code that seeds each tensor anew: equal shapes would move alike."""
    first = {"a": np.zeros((100, 50)), "b": np.zeros((100, 50))}
    second = {"b": np.zeros((100, 50)), "a": np.zeros((100, 50))}
    for params in (first, second):
        MeZO(params, lr=1.0, seed=3).step(lambda p: float(p["a"].sum() + p["b"].sum()))
    correlation = np.corrcoef(first["a"].ravel(), first["b"].ravel())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(5000)
    assert np.array_equal(np.sign(first["a"]), np.sign(second["a"]))
    np.testing.assert_allclose(first["a"], second["a"], rtol=1e-6)


def test_weight_decay_spares_biases_and_norms() -> None:
    names = ["w", "h.bias", "Attn.LayerNorm.weight", "layer_norm.scale", "ln_1.weight"]
    params = {name: np.full(3, 2.0) for name in names}
    opt = MeZO(params, lr=0.5, weight_decay=0.25)
    opt.step(lambda p: 1.0)
    assert {name for name in names if params[name][0] == 2.0} == {"h.bias", "Attn.LayerNorm.weight", "layer_norm.scale"}
    assert params["w"].tolist() == [1.75] * 3  # (1 - 0.5 * 0.25) 2
    assert opt.log.decay.tolist() == [0.125]


def test_lr_and_weight_decay_may_change_between_steps() -> None:
    params = {"w": np.ones(4)}
    opt = MeZO(params, lr=0.0)
    opt.step(lambda p: float(p["w"].sum()))
    assert params["w"].tolist() == [1.0] * 4
    opt.lr, opt.weight_decay = 0.5, 0.5
    opt.step(lambda p: 1.0)
    assert params["w"].tolist() == [0.75] * 4


# ---- layers ---------------------------------------------------------------------------------------------------------


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 from the paper, in Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
    return c


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (0x0123456789ABCDEF, 7), (2**64 - 1, 2**32 - 1)])
def test_layer_choice_is_the_smallest_keys_of_the_stream(seed: int, step: int) -> None:
    word = noise.tensor_word("layers", "layers")
    blocks = [philox([layer, 0, word, step], [seed % (1 << 32), seed >> 32]) for layer in range(12)]
    order = sorted(range(12), key=lambda layer: (blocks[layer][0], blocks[layer][1]))
    assert choose_layers(seed, step, 12, 5) == sorted(order[:5])


def test_layer_counts_follow_their_law() -> None:
    """Counts are Binomial(T, keep / L); pairs meet with keep (keep - 1) / (L (L - 1)); all subsets are alike."""
    n = 4000
    chosen = [frozenset(choose_layers(17, t, 6, 2)) for t in range(n)]
    single = [sum(layer in s for s in chosen) for layer in range(6)]
    for count in single:
        assert stats.binomtest(count, n, 2 / 6).pvalue > 1e-5
    for pair in itertools.combinations(range(6), 2):
        assert stats.binomtest(sum(s.issuperset(pair) for s in chosen), n, 2 / 30).pvalue > 1e-5
    counts = [chosen.count(frozenset(pair)) for pair in itertools.combinations(range(6), 2)]
    assert sum(counts) == n
    assert stats.chisquare(counts).pvalue > 1e-5
    # Steps are independent: the same layer twice in a row has chance 1/9.
    again = sum(0 in a and 0 in b for a, b in itertools.pairwise(chosen))
    assert abs(again / (n - 1) - 1 / 9) < 5 * math.sqrt(1 / 9 * 8 / 9 / n)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("n_probes", [1, 3])
def test_lezo_without_drop_is_mezo(dtype: Any, n_probes: int) -> None:
    dense, layered = model(0, dtype), model(0, dtype)
    a = MeZO(dense, lr=0.02, weight_decay=0.1, n_probes=n_probes, seed=4)
    b = LeZO(layered, layers=LAYERS, drop=0, lr=0.02, weight_decay=0.1, n_probes=n_probes, seed=4)
    assert steps(a, bowl, 6) == steps(b, bowl, 6)
    assert_same(dense, layered)
    assert changed(dense, model(0, dtype)) == set(dense)


@pytest.mark.parametrize("drop", [1, 3, 0.5])
def test_lezo_is_mezo_behind_a_mask(drop: float) -> None:
    """The noise is MeZO's on the active layers, g is that of the masked probe, dropped layers keep their bytes."""
    params = model(3, np.float64)
    opt = LeZO(params, layers=LAYERS, drop=drop, lr=0.01, weight_decay=0.1, eps=1e-3, seed=21)
    eps = float(np.float32(1e-3))
    for t in range(8):
        before = copied(params)
        opt.step(bowl)
        active = {name for i in np.flatnonzero(opt.log.active[t]) for name in LAYERS[i]} | {
            "embed.weight",
            "scale",
            "head",
        }
        assert changed(before, params) == active
        z = {name: z_of(x, name, t, 21) * (name in active) for name, x in before.items()}
        sides = [bowl({n: x + s * eps * z[n] for n, x in before.items()}) for s in (1, -1)]
        g = (sides[0] - sides[1]) / (2 * eps)
        assert opt.log.coefs[t, 0] == pytest.approx(-0.01 * g, rel=1e-6)
        for name in active:
            kept = before[name] * (1 if "bias" in name else 1 - float(np.float32(0.001)))
            truth = kept + float(opt.log.coefs[t, 0]) * z[name]
            np.testing.assert_allclose(params[name], truth, rtol=1e-13, atol=1e-15)


def test_lezo_that_drops_all_trains_the_rest() -> None:
    params = model()
    before = copied(params)
    opt = LeZO(params, layers=LAYERS, drop=4, lr=0.01)
    steps(opt, bowl, 5)
    assert changed(before, params) == {"embed.weight", "scale", "head"}
    assert not opt.log.active.any()


@pytest.mark.parametrize(("rescale", "slope"), [("none", 0.25), ("ipw", 1.0)])
def test_lezo_estimate_has_mean_k_g(rescale: str, slope: float) -> None:
    params = {name: np.zeros(2) for name in ("embed", "h.0", "h.1", "h.2", "h.3")}
    c = {name: np.array([1.0, 2.0]) + 0.1 * i for i, name in enumerate(params)}
    layers = [[f"h.{i}"] for i in range(4)]
    opt = LeZO(params, layers=layers, drop=3, lr=1.0, eps=0.5, rescale=rescale, seed=5, dist="rademacher")
    inner: dict[str, list[float]] = {name: [] for name in params}
    for _ in range(2500):
        before = copied(params)
        opt.step(lambda p: sum(float(c[name] @ x) for name, x in p.items()))
        for name, values in inner.items():
            values.append(float(c[name] @ (before[name] - params[name])) / float(c[name] @ c[name]))
    assert_mean(inner["embed"], 1.0)
    assert_mean(np.mean([inner[f"h.{i}"] for i in range(4)], 0), slope)


@pytest.mark.parametrize(
    ("drop", "kept"), [(0, 10), (10, 0), (0.0, 10), (1.0, 0), (0.75, 3), (0.58, 5), (np.int64(4), 6)]
)
def test_drop_as_count_or_fraction(drop: Any, kept: int) -> None:
    params = {str(i): np.zeros(2) for i in range(10)}
    opt = LeZO(params, layers=[[i] for i in range(10)], drop=drop, lr=0.1)
    steps(opt, lambda p: 1.0, 3)
    assert opt.log.active.sum(1).tolist() == [kept] * 3


# ---- the bandit -----------------------------------------------------------------------------------------------------


def test_importance_weights_have_mean_one() -> None:
    bandit = Bandit([[i] for i in range(12)], seed=3, fraction=0.25, clip=1e9, interval=10**6)
    bandit.quality = [1.0 + 0.1 * i for i in range(12)]
    weights = np.zeros((6000, 12))
    for t in range(len(weights)):
        choice = bandit.choose(t)
        weights[t, list(choice.units)] = choice.factors
    ratios = np.exp((np.array(bandit.quality) / 2.1 - 1) / 0.1)
    np.testing.assert_allclose(bandit.chances, 0.99 * ratios / ratios.sum() + 0.01 / 12, rtol=1e-12)
    assert max(bandit.chances) > 5 * min(bandit.chances)
    error = weights.std(0) / math.sqrt(len(weights))
    assert (np.abs(weights.mean(0) - 1) < 5 * error).all()
    assert_mean(weights.mean(1), 1.0)
    hits = (weights > 0).mean(0)
    expected = 1 - (1 - np.array(bandit.chances)) ** 3
    assert (np.abs(hits - expected) < 5 * np.sqrt(expected / len(weights))).all()


def test_bandit_is_uniform_when_hot_and_clips() -> None:
    hot = Bandit([[i] for i in range(8)], seed=1, tau=1e9, fraction=1.0)
    hot.quality = [float(i) for i in range(8)]
    hot.choose(0)
    np.testing.assert_allclose(hot.chances, np.full(8, 1 / 8), rtol=1e-8)
    clipped = Bandit([[i] for i in range(50)], seed=1, fraction=0.02, clip=10.0)
    assert all(clipped.choose(t).factors == (10.0,) for t in range(20))  # 1 / (1 * 1/50) = 50


@pytest.mark.parametrize("interval", [1, 3])
def test_adalezo_by_hand(interval: int) -> None:
    """Arms, update and Q against the formulas, on a loss that is linear with slope 3 per element in one layer."""
    names = ["tok_embed", "h.0", "h.1", "h.2", "head", "norm"]
    params = {name: np.zeros(4) for name in names}
    opt = AdaLeZO(
        params, layers=[["h.0"], ["h.1"], ["h.2"]], lr=0.5, eps=0.5, fraction=0.5, alpha=0.3, interval=interval, seed=2
    )
    arms = [["h.0"], ["h.1"], ["h.2"], ["tok_embed"], ["head", "norm"]]
    quality: list[float] = []
    for t in range(12):
        before = copied(params)
        if t % interval == 0:
            top = max(quality, default=1.0)
            powers = np.exp((np.array(quality or [1.0] * 5) / top - 1) / 0.1)
            chances = 0.99 * powers / powers.sum() + 0.01 / 5
        opt.step(lambda p: sum((1.0 + i) * float(x.sum()) for i, x in enumerate(p.values())))
        drawn = np.flatnonzero(opt.log.active[t])
        assert 1 <= len(drawn) <= 2
        names_drawn = {name for i in drawn for name in arms[i]}
        z = {name: z_of(before[name], name, t, 2) for name in names_drawn}
        g = sum((1.0 + names.index(name)) * float(z[name].sum()) for name in names_drawn)
        counts = [2] if len(drawn) == 1 else [1, 1]
        for i, count in zip(drawn, counts, strict=True):
            factor = count * min(1 / (2 * chances[i]), 10)
            for name in arms[i]:
                np.testing.assert_allclose(params[name] - before[name], -0.5 * g * factor * z[name], rtol=1e-5)
        assert changed(before, params) == names_drawn
        quality = quality or [abs(g)] * 5
        quality = [0.7 * q + 0.3 * abs(g) if i in drawn else q for i, q in enumerate(quality)]
    np.testing.assert_allclose(opt._method.selection.quality, quality, rtol=1e-6)


# ---- the mask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", ["scratch", "copy"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_sparse_mask_comes_from_undisplaced_weights(restore: str, dtype: Any) -> None:
    params = model(6, dtype)
    params["ties"] = np.full(10, 0.25, dtype)
    opt = SparseMeZO(params, lr=0.05, keep=0.6, eps=0.25, restore=restore, mask_every=2, n_probes=2, seed=3)
    threshold: dict[str, Any] = {}
    seen: list[Params] = []

    def loss(p: Params) -> float:
        seen.append({name: np.array(x) for name, x in p.items()})
        return bowl(p)

    for t in range(4):
        before = {name: np.array(x) for name, x in params.items()}
        if t % 2 == 0:
            threshold = {
                name: np.sort(np.abs(wide(x)).ravel())[math.ceil(0.6 * x.size) - 1] for name, x in before.items()
            }
        opt.step(loss)
        for name, x in before.items():
            outside = np.abs(wide(x)) > threshold[name]
            assert t % 2 or name == "ties" or outside.sum() == x.size - math.ceil(0.6 * x.size)
            for displaced in [*seen[-4:], params]:
                assert np.array_equal(np.asarray(displaced[name])[outside], x[outside])
                inside = wide(displaced[name])[~outside] != wide(x)[~outside]
                assert dtype not in (np.float32, np.float64) or displaced is params or inside.all()
        assert changed(before, params)
