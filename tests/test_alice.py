"""curvk.optim.Alice: the reference's equations in float64, theorems and closed forms, exact resume, refusals."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import curvk
import ml_dtypes
import numpy as np
import pytest
from alice_models import Array, bytes_of, close, grads_of, model, run
from alice_truth import Truth, quadratic, signs, smooth
from curvk.kernels import noise
from curvk.optim import Alice

OPTIONS: list[dict[str, Any]] = [
    {},
    {"hess": "abs"},
    {"hess": "rms", "l1": 1e-3, "l2": 1e-2},
    {"hess": "abs", "l1": 1e-2, "l2": 1e-1, "limit": "sgdm", "lr_max": 0.5},
    {"hess": "zero", "limit": "fixed", "lr_min": 1e-4},
    {"hess": "debiased", "l2": 0.05, "glass": False, "lr_max": 1.0},
    {"hess": "abs", "compat": "reference"},
    {"hess": "rms", "compat": "reference", "quick_steps": 0},
    {"quick_steps": 1, "sigma": 1e-2, "betas": (0.8, 0.99), "warmup": 6, "lr_min": 1e-3},
    {"omega": 2.0, "phi": 0.2, "lr_max": 3.0},
    {"hess": "debiased", "eps": 1e-3, "lr_max": 100.0, "limit": "fixed"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_reference_equations(options: dict[str, Any]) -> None:
    """Oracle 1: the branchy element loop of alice_truth, whose order of operations is another one."""
    options = {"lr": 0.02, **options}
    shape = (3, 4)
    x = np.random.default_rng(1).standard_normal(shape)
    grad = smooth(x.size, seed=2)
    own = dict(options)
    compat = own.pop("compat", None)
    truth = Truth(
        x.ravel(), grad, signs(shape, "0", 7), **{"hess": "debiased", "warmup": 9, **own}, compat=compat is not None
    )
    w = x.copy()
    alice = Alice([w], seed=7, **options)
    moved = 0.0
    for _ in range(60):
        run(alice, w, grad, 1)
        truth.step()
        state = alice.state[0]
        for name, value in (("center", truth.mu), ("lookahead", truth.nu), ("exp_avg", truth.G)):
            close(state[name].ravel(), value)
        close(state["exp_avg_sq"].ravel(), truth.V)
        close(w.ravel(), truth.mu)
        # rho and h are differences of gradients: their rounding is that of the gradients over sigma
        if options.get("glass", True):
            close(state["glass"].ravel(), truth.R, 1e-9)
        if options.get("hess") != "zero":
            close(state["hessian"].ravel(), truth.H, 1e-9)
        if truth.inside:
            moved = alice.diagnose()["frac_inside"]
            assert moved == np.mean(truth.inside)
    assert ("glass" in state, "hessian" in state) == (options.get("glass", True), options.get("hess") != "zero")


@pytest.mark.parametrize("hess", ["zero", "abs", "rms", "debiased"])
@pytest.mark.parametrize("omega", [1.0, 3.0])
def test_averaged_gradient_is_the_centres_on_any_quadratic(hess: str, omega: float) -> None:
    """Oracle 2, Nesterov exactness: G = A mu - b whatever the steps, if phi = (1 - beta1) omega; not otherwise.

    mu is the centre that the step starts from.
    """
    a, b = quadratic(12, seed=3)
    w = np.random.default_rng(4).standard_normal(12)
    alice = Alice([w], lr=0.05, lr_max=0.5, hess=hess, omega=omega, phi=0.1 * omega)
    start = w.copy()
    for _ in range(80):
        before = w.copy()
        run(alice, w, lambda x: a @ x - b, 1)
        close(alice.state[0]["exp_avg"], a @ before - b, 1e-13 * 80)
    assert np.abs(w - start).max() > 0.1
    with pytest.warns(UserWarning, match=re.escape("the averaged gradient is then not that of the centre")):
        inexact = Alice([w], lr=0.05, lr_max=0.5, hess=hess, omega=omega, phi=0.12 * omega)
    run(inexact, w, lambda x: a @ x - b, 40)
    before = w.copy()
    run(inexact, w, lambda x: a @ x - b, 1)
    assert np.abs(inexact.state[0]["exp_avg"] - (a @ before - b)).max() > 1e-3


@pytest.mark.parametrize("hess", ["abs", "rms", "debiased"])
def test_probes_of_a_quadratic_see_its_rows(hess: str) -> None:
    """Oracle 3: no glass, and each sample's Hessian term is a function of A z."""
    a, b = quadratic(10, seed=5)
    w = np.random.default_rng(6).standard_normal(10)
    alice = Alice([w], lr=0.1, hess=hess, seed=11)
    term = {"abs": np.abs, "rms": np.square, "debiased": np.square}[hess]
    draws = signs((10,), "0", 11)
    expected = []
    for t in range(1, 10):
        run(alice, w, lambda x: a @ x - b, 1)
        expected.append(term(a @ draws(t)))
        close(alice.state[0]["hessian"], np.mean(expected, axis=0), 1e-12)
        assert alice.state[0]["glass"].max() < 1e-26


def test_glass_of_a_kink_field() -> None:
    """Oracle 4: gradient k sign(x - c) at kinks c of a Poisson field with density d: rho is (2 k)^2 d."""
    rng = np.random.default_rng(12)
    n, density, jump, sigma = 20_000, 400.0, 0.01, 0.1
    kinks = [np.sort(rng.uniform(-1, 1, rng.poisson(2 * density))) for _ in range(n)]
    marks = [jump * rng.choice([-1.0, 1.0], k.size) for k in kinks]

    def grad(x: Array) -> Array:
        return np.array([m @ np.sign(v - k) for v, k, m in zip(x, kinks, marks, strict=True)])

    w = np.zeros(n)
    alice = Alice([w], lr=sigma)
    run(alice, w, grad, 1)
    rho, found = 4 * jump**2 * density, alice.state[0]["glass"]
    crossings = density * sigma
    variance = 2 + 1 / (2 * crossings)  # relative; 3 / (2 crossings) where the marks are normal
    deviation = math.sqrt(variance / n)
    assert abs(found.mean() / rho - 1) < 4 * deviation
    assert abs(found.var() / found.mean() ** 2 - variance) < 0.3
    assert abs(alice.state[0]["hessian"].mean()) < 4 * rho / sigma / math.sqrt(n)  # glass cancels in the debiased term


def test_newtons_step_without_glass() -> None:
    """Oracle 6: rho = 0 on a separable quadratic: delta = -G / h."""
    h, b = np.array([0.5, 2.0, 8.0]), np.array([1.0, -3.0, 2.0])
    for hess in ("abs", "rms", "debiased"):
        w = np.array([5.0, 5.0, 5.0])
        alice = Alice([w], lr=0.1, lr_max=1e6, hess=hess, glass=False, eps=1e-12)
        run(alice, w, lambda x: h * x - b, 9)
        before, start = w.copy(), h * w - b
        run(alice, w, lambda x: h * x - b, 1)
        close(w, before - 0.1 * start / h, 1e-10)


def test_quadratic_step_without_hessian() -> None:
    """Oracle 6: h = 0: delta = -(2 pi / 3) G^2 / rho, in the gradient's direction."""
    grad = smooth(6, seed=9)
    w = np.random.default_rng(10).standard_normal(6)
    alice = Alice([w], lr=0.3, lr_max=1e12, hess="zero", eps=1e-14)
    run(alice, w, grad, 9)
    before = w.copy()
    run(alice, w, grad, 1)
    state = alice.state[0]
    delta = -np.sign(state["exp_avg"]) * 2 * math.pi / 3 * state["exp_avg"] ** 2 / state["glass"]
    close(w, before + 0.1 * delta, 1e-9)
    close(state["lookahead"], before + delta, 1e-9)


def test_equal_bounds_are_the_limiters_method() -> None:
    """Oracle 6: lr_min = lr_max is Adam's direction with mean-then-EMA weights, or IGT momentum, or a signed step."""
    grad = smooth(8, seed=13)
    for limit in ("adam", "sgdm", "fixed"):
        w = np.random.default_rng(14).standard_normal(8)
        mu, nu, G, V = w.copy(), w.copy(), np.zeros(8), np.zeros(8)
        alice = Alice([w], lr=0.01, lr_min=0.03, lr_max=0.03, limit=limit)
        for t in range(1, 41):
            run(alice, w, grad, 1)
            g, weight1, weight2 = grad(nu), max(0.1, 1 / t), max(0.001, 1 / t)
            G, V = (1 - weight1) * G + weight1 * g, (1 - weight2) * V + weight2 * g**2
            if t > 9:
                step = {"adam": G / (np.sqrt(V) + 1e-8), "sgdm": G, "fixed": np.sign(G)}[limit]
                mu, nu = mu - 0.1 * 0.03 * step, mu - 0.03 * step
            close(w, mu)
        assert alice.diagnose()["frac_inside"] == 0.0


def test_warm_up_moves_nothing_and_takes_means() -> None:
    """Oracle 7."""
    grad = smooth(5, seed=15)
    w = np.random.default_rng(16).standard_normal(5).astype(np.float32)
    start, draws = w.copy(), signs((5,), "0", 3)
    alice = Alice([w], lr=0.25, seed=3, hess="debiased")
    rho, h2 = [], []
    for t in range(1, 10):
        run(alice, w, lambda x: grad(x).astype(np.float32), 1)
        assert w.tobytes() == start.tobytes()
        z = draws(t).astype(np.float32)
        plus, minus, at = (grad(start + s * np.float32(0.25) * z).astype(np.float32).astype(float) for s in (1, -1, 0))
        rho.append(2 * ((plus + minus) / 2 - at) ** 2 / 0.25)
        h2.append(-(plus - at) * (minus - at) / 0.25**2)
    state = alice.state[0]
    close(state["exp_avg"], grad(start), 1e-6)
    close(state["exp_avg_sq"], grad(start) ** 2, 1e-6)
    close(state["glass"], np.mean(rho, axis=0), 1e-5)
    close(state["hessian"], np.mean(h2, axis=0), 1e-5)
    run(alice, w, lambda x: grad(x).astype(np.float32), 1)
    assert (w != start).all()


@pytest.mark.parametrize(("beta1", "warmup"), [(0.0, 1), (0.5, 2), (0.9, 9), (0.95, 19), (0.99, 100)])
def test_warm_up_is_the_references(beta1: float, warmup: int) -> None:
    """The reference moves where t > 1 / (1 - beta1), beta1 and the quotient in float32."""
    w = np.ones(1)
    alice = Alice([w], lr=0.1, betas=(beta1, 0.999))
    one = np.float32(1)
    t = 0
    while w[0] == 1.0:
        run(alice, w, np.copy, 1)
        t += 1
    assert t - 1 == warmup == max(k for k in range(1, 200) if k <= one / (one - np.float32(beta1)))


def test_counting_of_samples() -> None:
    """By default the k-th sample weighs at least 1 / k; with compat 1 / t, t the steps."""
    calls = []

    def grad(x: Array) -> Array:
        calls.append(x.copy())
        return np.array([float(len(calls))])  # the Hessian term is of no matter here

    for compat, weight in ((None, 1 / 10), ("reference", 1 / 12)):
        calls.clear()
        w = np.ones(1)
        alice = Alice([w], lr=0.1, hess="abs", compat=compat)
        run(alice, w, grad, 11)
        assert len(calls) == 3 * 9 + 2  # steps 10 and 11 are quick
        before = alice.state[0]["hessian"][0]
        run(alice, w, grad, 1)
        assert len(calls) == 3 * 10 + 2
        new = abs(calls_difference := -1.0) / 0.2
        assert math.isclose(alice.state[0]["hessian"][0], before + weight * (new - before), rel_tol=1e-12)
        assert calls_difference == -1.0


def test_nan_takes_the_bounded_step() -> None:
    """Oracle 8: a NaN in R or H means the upper bound."""
    for name in ("glass", "hessian"):
        w = np.ones(4)
        grad = smooth(4, seed=17)
        alice = Alice([w], lr=0.1)
        run(alice, w, grad, 10)
        state = alice.state[0]
        state[name][1] = np.nan
        before = w.copy()
        run(alice, w, grad, 1)
        bound = 0.2 * np.abs(state["exp_avg"]) / (np.sqrt(state["exp_avg_sq"]) + 1e-8)
        close(abs(w - before)[1], 0.1 * bound[1])
        assert np.isfinite(w).all()


def test_predicted_decrease_identity() -> None:
    """Oracle 10: at the model's minimum the change is -(a t / 3 + h t^2 / 6) in each element."""
    grad = smooth(30, seed=18)
    w = np.random.default_rng(19).standard_normal(30)
    alice = Alice([w], lr=0.1, lr_max=1e9, phi=1.0, omega=10.0, eps=1e-15, limit="fixed")
    run(alice, w, grad, 9)
    before = w.copy()
    run(alice, w, grad, 1)
    found, state = alice.diagnose(), alice.state[0]
    a, t, h = np.abs(state["exp_avg"]), np.abs(w - before), np.sqrt(np.maximum(state["hessian"], 0))
    assert found["frac_inside"] == 1.0
    assert math.isclose(found["predicted"], -np.sum(a * t / 3 + h * t**2 / 6), rel_tol=1e-9)


def test_predicted_is_realised_where_the_model_is_exact() -> None:
    """On a separable quadratic the model is the loss."""
    h = np.array([0.5, 2.0, 8.0])
    w = np.array([3.0, -4.0, 5.0])
    alice = Alice([w], lr=0.05)
    for t in range(1, 40):
        alice.step(lambda: [h * w], loss=lambda: float(h @ w**2) / 2)
        found = alice.diagnose()
        assert found["step"] == t
        assert found["realised"] <= 0.0
        assert math.isclose(found["predicted"], found["realised"], rel_tol=1e-9, abs_tol=1e-18)
    alice.step(lambda: [h * w])
    assert alice.diagnose()["realised"] is None


@pytest.mark.parametrize("at", [1, 4, 9, 10, 11, 12, 13, 14, 15])
def test_resume_equals_no_interruption(at: int, tmp_path: Path) -> None:
    """Oracle 9, bit for bit and in the middle of a period, through a file."""
    whole, halved = model(), model()
    alice, first = Alice(whole, lr=0.01, seed=5), Alice(halved, lr=0.01, seed=5)
    for _ in range(20):
        alice.step(grads_of(whole))
    for _ in range(at):
        first.step(grads_of(halved))
    first.save(tmp_path / "alice.npz")
    second = Alice(halved, lr=1.0, seed=6, quick_steps=9)
    second.load(tmp_path / "alice.npz")
    for _ in range(20 - at):
        second.step(grads_of(halved))
    assert bytes_of(alice, whole) == bytes_of(second, halved)


def test_late_group_starts_with_means_of_its_own() -> None:
    a, b = np.ones(3), np.ones(3)
    alice = Alice([a], lr=0.1)
    for _ in range(21):
        alice.step(lambda: [a.copy()])
    alice.add_param_group({"params": [b]})
    for _ in range(3):
        alice.step(lambda: [a.copy(), b.copy()])
        assert (b == 1).all()
    assert alice.state[1]["step"] == 3
    np.testing.assert_array_equal(alice.state[1]["exp_avg"], 1.0)
    np.testing.assert_array_equal(alice.state[1]["exp_avg_sq"], 1.0)
    saved = alice.state_dict()
    assert saved["alice"]["samples"] == [9 + 4, 1]
    alice.step(lambda: [a.copy(), b.copy()], loss=lambda: float(a @ a + b @ b) / 2)
    assert 0 <= alice.diagnose()["frac_inside"] <= 1


def test_probes_are_the_streams_whatever_the_threads(backend: str) -> None:
    """Oracle 11: the displacement is sigma times the noise of (seed, step, position), at every thread count."""
    seen = []
    for threads in (1, 2, 3, 7):
        curvk.set_num_threads(threads)
        params = model(np.float64)
        found: list[list[Array]] = []

        def grad(params: list[Any] = params, found: list[list[Array]] = found) -> list[Any]:
            found.append([p.copy() for p in params])
            return grads_of(params)()

        alice = Alice(params, lr=0.125, seed=2**64 - 3)
        for _ in range(2):
            alice.step(grad)
        seen.append([x.tobytes() for point in found for x in point])
        for t, (plus, minus, at) in enumerate((found[:3], found[3:]), 1):
            for i, p in enumerate(model(np.float64)):
                z = noise.fill(
                    np.empty(p.shape), seed=2**64 - 3, draw=t, tensor=noise.tensor_word(str(i)), dist="rademacher"
                )
                np.testing.assert_array_equal(plus[i], p + 0.125 * z)
                np.testing.assert_array_equal(minus[i], p - 0.125 * z)
                np.testing.assert_array_equal(at[i], p)
    assert seen.count(seen[0]) == 4


def test_same_bits_from_every_backend_and_level() -> None:
    results = []
    for backend in curvk_backends():
        curvk.use_backend(backend)
        for level in curvk.simd_levels() if backend == "cpp" else [""]:
            if level:
                curvk.set_simd(level)
            params = model()
            alice = Alice(params, lr=0.05, l1=1e-3, l2=1e-3)
            for _ in range(14):
                alice.step(grads_of(params))
            results.append([*bytes_of(alice, params), repr(alice.diagnose()).encode()])
    assert len(results) > 1
    assert results.count(results[0]) == len(results)


def curvk_backends() -> list[str]:
    from conftest import BACKENDS

    return BACKENDS


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_16_bit_parameters_have_a_float32_centre(dtype: Any) -> None:
    """Steps far below the format's spacing add up in the centre; the parameters show it rounded."""
    w = np.full(64, 1.0, dtype)
    alice = Alice([w], lr=1e-3, sigma=0.125, lr_min=1e-4, lr_max=1e-4)

    def grad() -> list[Any]:
        return [w.astype(np.float32).astype(dtype)]

    for _ in range(200):
        alice.step(grad)
    state = alice.state[0]
    assert all(state[name].dtype == np.float32 for name in state if name != "step")
    assert (w == state["center"].astype(dtype)).all()
    moved = 1 - state["center"]
    np.testing.assert_allclose(moved, 191 * 0.1 * 1e-4, rtol=0.02)
    assert alice.state_dict()["state"][0]["center"].dtype == np.float32
