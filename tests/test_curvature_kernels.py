"""The kernels behind probes, Alice and SAM: closed forms, special values, layouts and bad arguments."""

from __future__ import annotations

import math
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._backend import compiled
from curvk.kernels import half, noise
from curvk.kernels.curvature import (
    HESS,
    LIMITS,
    AlicePlan,
    alice_lookahead,
    alice_model,
    alice_step,
    asam_norm,
    glass_moments_,
    glass_sums,
    sam_perturb_,
)
from curvk.kernels.optim import adam_step, global_norm, sgd_step

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

STATES = ("exp_avg", "glass", "hessian", "exp_avg_sq", "center", "lookahead")
STEP: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "beta3": 0.8, "sigma": 0.01, "lr_max": 0.02, "phi": 0.1}


def random(seed: int) -> np.random.Generator:
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def alice_arrays(rng: np.random.Generator, n: int, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    names = ("p", "g", *STATES, "g_plus", "g_minus")
    arrays = {k: rng.standard_normal(n).astype(dtype) for k in names}
    for k in ("glass", "exp_avg_sq"):
        arrays[k] = abs(arrays[k])
    return arrays


def still(n: int, g: float, glass: float, hessian: float) -> dict[str, np.ndarray]:
    """Arrays whose step has exp_avg = g, glass and hessian as given."""
    values = {"p": 0.0, "g": g, "exp_avg": 0.0, "glass": glass, "hessian": hessian, "exp_avg_sq": 0.0}
    values |= {"center": 1.0, "lookahead": 1.0}
    return {k: np.full(n, v) for k, v in values.items()}


FREE: dict[str, Any] = {**STEP, "beta1": 0.0, "beta2": 0.0, "eps": 0.0, "phi": 1.0, "lr_max": 1e9, "hess": "abs"}


def test_step_is_newton_without_glass_and_quadratic_in_g_without_curvature() -> None:
    a = still(1, g=-3.0, glass=0.0, hessian=4.0)
    alice_step(**a, **FREE)
    assert a["center"][0] == 1.75
    a = still(1, g=-3.0, glass=5.0, hessian=0.0)
    alice_step(**a, **FREE)
    np.testing.assert_allclose(a["center"][0] - 1, 2 * math.pi / 3 * 9 / 5, rtol=1e-15)


def test_step_minimises_the_model_and_alice_model_gives_its_value() -> None:
    """-a t + h t^2 / 2 + c sqrt(rho) t^1.5 has derivative 0 at t, where it is -(a t / 3 + h t^2 / 6)."""
    rng = random(1)
    n = 2000
    a = {k: abs(rng.standard_normal(n)) + 1e-3 for k in ("p", "g", *STATES)}
    a["exp_avg"][:] = 0
    before = a["center"].copy()
    alice_step(**a, **FREE)
    t, g, h, rho = before - a["center"], a["g"], a["hessian"], a["glass"]
    c = math.sqrt(2 / (3 * math.pi))
    assert abs(-g + h * t + 1.5 * c * np.sqrt(rho * t)).max() < 1e-12 * g.max()
    lists = ([a[k]] for k in STATES[:4])
    inside, change = alice_model(*lists, eps=0.0, lr_max=1e9, hess="abs")
    assert inside == n
    np.testing.assert_allclose(change, -np.sum(g * t / 3 + h * t * t / 6), rtol=1e-12)


@pytest.mark.parametrize("phi_over", [1.0, 0.5])
def test_averaged_gradient_is_exact_on_quadratics(phi_over: float) -> None:
    """With phi = (1 - beta1) omega, exp_avg is the gradient at the center whatever the steps; with half of it, not."""
    rng = random(2)
    n, omega, beta1 = 7, 1.3, 0.9
    matrix = rng.standard_normal((n, n))
    matrix = matrix + matrix.T  # indefinite
    center = rng.standard_normal(n)
    a = {k: np.zeros(n) for k in ("p", "g", *STATES)}
    a["center"][:] = a["lookahead"][:] = center
    a["exp_avg"][:] = matrix @ center
    for k in range(50):
        a["g"][:] = matrix @ a["lookahead"]
        a["hessian"][:] = abs(rng.standard_normal(n))  # so that the steps follow nothing
        center = a["center"].copy()
        numbers = {"beta1": beta1, "phi": phi_over * (1 - beta1) * omega, "omega": omega, "lr_max": 0.3, "hess": "abs"}
        alice_step(**a, **{**STEP, **numbers, "limit": "fixed"})
        exact = np.allclose(a["exp_avg"], matrix @ center, rtol=1e-11, atol=1e-11)
        assert exact == (phi_over == 1.0) or k == 0


@pytest.mark.parametrize("hess", HESS)
@pytest.mark.parametrize("limit", LIMITS)
def test_nan_estimates_give_bounded_steps(hess: str, limit: str, backend: str) -> None:
    for name in ("glass", "hessian"):
        a = still(5, g=2.0, glass=1.0, hessian=1.0)
        a["exp_avg_sq"][:] = 4.0
        a[name][:] = math.nan
        alice_step(**a, **{**STEP, "beta1": 0.0, "beta2": 0.5, "hess": hess, "limit": limit, "omega": 1.0})
        bound = {"adam": 0.02 * 2.0 / (2.0 + 1e-8), "sgdm": 0.02 * 2.0, "fixed": 0.02}[limit]
        if name == "hessian" and hess == "zero":
            continue
        np.testing.assert_allclose(1.0 - a["lookahead"], bound, rtol=1e-12)


@pytest.mark.parametrize("fmt", ["f32", "f64", "bf16", "f16"])
@pytest.mark.parametrize("hess", HESS)
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.skipif(not compiled, reason="compares compiled levels with the twin")
def test_special_values_have_the_same_bits_everywhere(fmt: str, hess: str, limit: str) -> None:
    rng = random(3)
    n = 4099
    values = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e-38, -1e-30, 3e38, -3e38, 1e-8, 1.0])
    made = alice_arrays(rng, n)
    for x in made.values():
        x[:] = np.where(rng.random(n) < 0.4, rng.choice(values, n), x)
    state = np.float64 if fmt == "f64" else np.float32
    with np.errstate(over="ignore"):
        made = {k: x.astype(state) for k, x in made.items()}
    for k in ("p", "g", "g_plus", "g_minus"):
        if fmt == "bf16":
            made[k] = half.from_float32(made[k], "bf16")
        elif fmt == "f16":
            with np.errstate(over="ignore"):
                made[k] = made[k].astype(np.float16)

    def results() -> list[bytes]:
        a = {k: x.copy() for k, x in made.items()}
        alice_step(**a, **{**STEP, "hess": hess, "limit": limit, "l1": 0.01, "l2": 0.1, "lr_min": 1e-3})
        inside, change = alice_model(*([a[k]] for k in STATES[:4]), lr_max=0.02, hess=hess, limit=limit)
        m = [np.zeros(n, state) for _ in range(4)]
        glass_moments_(a["g"], a["g_plus"], a["g_minus"], *m, sample=1, sigma=0.01)
        sums = glass_sums(a["g"], a["g_plus"], a["g_minus"])
        found = [*a.values(), np.array([inside, change]), *m, sums]
        for x in found:
            if x.dtype == np.uint16:
                x[(x & 0x7FFF) > 0x7F80] = 0x7FC0
            else:
                x[np.isnan(x)] = np.nan
        return [x.tobytes() for x in found]

    want = results()
    before = curvk.get_simd()
    try:
        for level in curvk.simd_levels():
            curvk.set_simd(level)
            assert results() == want, level
    finally:
        curvk.set_simd(before)
    with curvk.use_backend("numba"):
        assert results() == want


def test_lookahead_draws_the_signs_of_the_stream(backend: str) -> None:
    x = random(4).standard_normal((40, 33))
    z = noise.fill(np.empty(x.shape), seed=9, draw=3, tensor=17, dist="rademacher")
    for scale in (0.25, -0.25):
        p = np.empty((33, 40)).T
        alice_lookahead(p, x, scale=scale, seed=9, draw=3, tensor=17)
        np.testing.assert_array_equal(p, x + scale * z)
    alice_lookahead(p[5:], x[5:], scale=0.25, seed=9, draw=3, tensor=17, offset=5 * 33)
    np.testing.assert_array_equal(p[5:], (x + 0.25 * z)[5:])
    alice_lookahead(p, x, seed=9)
    np.testing.assert_array_equal(p, x)
    negative = np.full(3, -0.0)
    alice_lookahead(p[0, :3], negative, seed=9)
    assert np.signbit(p[0, :3]).all()


def test_lookahead_of_16_bit_parameters_rounds_float32_once() -> None:
    x = random(5).standard_normal(1000).astype(np.float32)
    p, single = np.empty(1000, np.uint16), np.empty_like(x)
    alice_lookahead(p, x, scale=1e-3, seed=9)
    alice_lookahead(single, x, scale=1e-3, seed=9)
    np.testing.assert_array_equal(p, half.from_float32(single, "bf16"))


def test_lists_give_each_array_its_own_word_place_and_memory() -> None:
    x = [np.zeros(70), np.zeros(70)]
    p = [np.empty(70), np.empty(70)]
    alice_lookahead(p, x, scale=1.0, seed=3, tensor=[5, 6], offset=[0, 1000])
    for k, (word, offset) in enumerate(((5, 0), (6, 1000))):
        z = noise.fill(np.empty(70), seed=3, tensor=word, offset=offset, dist="rademacher")
        np.testing.assert_array_equal(p[k], z)
    g, saved = [np.ones(70), np.ones(70)], [np.empty(70), np.empty(70)]
    before = [q.copy() for q in p]
    sam_perturb_(p, g, saved, scale=0.5)
    for k in range(2):
        np.testing.assert_array_equal(saved[k], before[k])
        np.testing.assert_array_equal(p[k], before[k] + 0.5)


def test_edges_of_the_bounds() -> None:
    """A step at a bound is not inside; a zero gradient has the sign +1."""
    states: Any = ([np.array([2.0])], None, [np.array([4.0])], [np.ones(1)])
    for low, high, inside in ((0.25, 1.0, 0), (0.0, 0.25, 0), (0.0, 1.0, 1)):
        numbers = {"lr_min": low, "lr_max": high, "hess": "abs", "limit": "sgdm", "eps": 0.0}
        assert alice_model(*states, **numbers)[0] == inside
    a = still(1, g=0.0, glass=1.0, hessian=1.0)
    alice_step(**a, **{**STEP, "limit": "fixed", "lr_min": 0.01, "hess": "abs", "phi": 1.0})
    assert a["center"][0] == 0.99


@pytest.mark.parametrize("large", [2e19, 3e38])
def test_gradients_whose_squares_overflow_leave_parameters_finite(large: float, backend: str) -> None:
    a = {k: x.astype(np.float32) for k, x in still(3, g=large, glass=1.0, hessian=1.0).items()}
    for _ in range(3):
        alice_step(**a, **STEP)
    assert np.isfinite(a["p"]).all()
    assert not np.isnan(a["exp_avg_sq"]).any()


def test_alice_plan_is_the_step_on_each_array() -> None:
    lengths = (3, 0, 1000)
    plain = [alice_arrays(random(k), n, np.float32) for k, n in enumerate(lengths)]
    listed = [{k: x.copy() for k, x in a.items()} for a in plain]
    plan = AlicePlan(*([a[k] for a in listed] for k in ("p", "g", *STATES)))
    plan.set_grads(*([a[k] for a in listed] for k in ("g", "g_plus", "g_minus")))
    plan.step(**STEP)
    plan.set_grads([a["g"] for a in listed])
    plan.step(**STEP)
    for a, b in zip(plain, listed, strict=True):
        alice_step(**a, **STEP)
        alice_step(**{k: x for k, x in a.items() if k not in ("g_plus", "g_minus")}, **STEP)
        assert all(a[k].tobytes() == b[k].tobytes() for k in a)


# ---- SAM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint16])
def test_swapped_weights_come_back_bit_for_bit(dtype: Any, backend: str) -> None:
    rng = random(6)
    p, g = (rng.standard_normal(5000).astype(np.float32) for _ in range(2))
    if dtype == np.uint16:
        p, g = (half.from_float32(x, "bf16") for x in (p, g))
    else:
        p, g = p.astype(dtype), g.astype(dtype)
    w, first = p.copy(), g.copy()
    saved, other = np.empty_like(p), p.copy()
    sam_perturb_(p, g, scale=0.05, adaptive=True, eta=0.01)
    sam_perturb_(other, first, saved, scale=0.05, adaptive=True, eta=0.01)
    assert g.tobytes() == saved.tobytes() == w.tobytes()
    assert p.tobytes() == other.tobytes() != w.tobytes()


def test_origin_is_restore_then_step() -> None:
    rng = random(7)
    for n in (1, 63, 64, 65, 70_001):
        p, g, m, w = (rng.standard_normal(n).astype(np.float32) for _ in range(4))
        v = m * m
        for step, extra in ((adam_step, (m, v)), (sgd_step, (m,))):
            numbers: dict[str, Any] = {"step": 3, "lr": 0.1} if step is adam_step else {"lr": 0.1, "momentum": 0.9}
            numbers |= {"weight_decay": 0.1}
            one, two = [x.copy() for x in (p, *extra)], [w.copy(), *(x.copy() for x in extra)]
            step(one[0], g, *one[1:], origin=w, **numbers)  # type: ignore[operator]
            step(two[0], g, *two[1:], **numbers)  # type: ignore[operator]
            assert [x.tobytes() for x in one] == [x.tobytes() for x in two]


def test_norms_of_rows_with_other_layouts(backend: str) -> None:
    """Elements that belong together are multiplied, whatever the memory order of their arrays."""
    rng = random(8)
    p, g = rng.standard_normal((30, 20)), rng.standard_normal((30, 20))
    truth = np.linalg.norm((abs(p) + 0.5) * g)
    for q in (p, np.asfortranarray(p), np.repeat(p, 2, 1)[:, ::2]):
        for x in (g, np.asfortranarray(g), np.repeat(g, 2, 0)[::2]):
            np.testing.assert_allclose(asam_norm([q], [x], eta=0.5), truth, rtol=1e-14)
            sums = glass_sums(x, q, -q)
            np.testing.assert_allclose(sums[1], np.sum((q - x) ** 2 + (q + x) ** 2) / 2, rtol=1e-13)
    assert asam_norm([], []) == 0


def test_asam_norm_tells_what_is_not_finite() -> None:
    p, g = np.ones(5), np.ones(5)
    g[3] = math.inf
    assert asam_norm([p, p], [np.ones(5), g]) == math.inf
    assert math.isnan(asam_norm([np.array([math.nan])], [np.ones(1)]))
    assert asam_norm([np.array([math.inf])], [np.ones(1)]) == math.inf
    assert math.isnan(asam_norm([np.array([math.inf])], [np.zeros(1)]))
    single = np.ones(4, np.float32)
    np.testing.assert_allclose(asam_norm([single], [1e-3 * single], eta=1e170), 2e167, rtol=1e-6)
    big = np.full(4, 1e160)
    np.testing.assert_allclose(asam_norm([np.ones(4)], [big]), 2e160, rtol=1e-14)  # whose squares overflow
    np.testing.assert_allclose(asam_norm([np.ones(4)], [1e-200 * np.ones(4)]), 2e-200, rtol=1e-14)
    assert not math.isfinite(global_norm([g]))
    assert not np.isfinite(glass_sums(g, p, p)).all()


# ---- bad arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"g_plus": None}, ValueError, "argument 'g_plus': got None, needs an array, as both probes or none"),
        ({"hessian": None}, ValueError, "argument 'hessian': got None, needs an array like p with hess='debiased'"),
        ({"hess": "exact"}, ValueError, "argument 'hess': got 'exact', needs one of 'zero', 'abs'"),
        ({"limit": 0}, ValueError, "argument 'limit': got 0, needs one of 'adam'"),
        ({"sigma": 0.0}, ValueError, "argument 'sigma': got 0.0, needs a number in (0, inf)"),
        ({"lr_min": 0.03}, ValueError, "argument 'lr_min': got 0.03 above lr_max = 0.02, needs a bound at most lr_max"),
        ({"phi": 2.0}, ValueError, "argument 'phi': got 2.0, needs a number in (0, 2)"),
        ({"beta3": 1.0}, ValueError, "argument 'beta3': got 1.0, needs a number in [0, 1)"),
        ({"center": np.ones(6, np.float32)}, TypeError, "argument 'center': got float32, needs float64"),
        ({"glass": np.ones(5)}, ValueError, "argument 'glass': got shape (5,)"),
    ],
)
def test_alice_step_refuses(change: dict[str, Any], error: type[Exception], words: str, backend: str) -> None:
    a = alice_arrays(random(9), 6)
    before = {k: x.tobytes() for k, x in a.items()}
    with pytest.raises(error) as caught:
        alice_step(**{**a, **STEP, **change})
    assert words in str(caught.value)
    assert {k: x.tobytes() for k, x in a.items()} == before


def test_asam_norm_names_the_array_by_its_place() -> None:
    p = [np.ones(2), np.ones(2, np.float32)]
    with pytest.raises(ValueError, match=r"^asam_norm: argument 'g\[1\]': got shape \(3,\)"):
        asam_norm(p, [np.ones(2), np.ones(3, np.float32)])


def test_memory_shared_by_arguments_is_refused() -> None:
    p, g = np.ones(8), np.ones(8)
    for arguments in ((p, p), (p, g, p), (p, g, g), (p, g, g[1:])):
        with pytest.raises(ValueError, match="sam_perturb: argument"):
            sam_perturb_(*arguments, scale=0.1)
    with pytest.raises(ValueError, match="memory of its own"):
        adam_step(p, g, np.zeros(8), np.zeros(8), origin=p, step=1, lr=0.1)
    read_only = np.ones(8)
    read_only.flags.writeable = False
    with pytest.raises(BufferError, match="argument 'g'"):
        sam_perturb_(p, read_only, scale=0.1)
    assert p.tolist() == g.tolist() == [1.0] * 8
