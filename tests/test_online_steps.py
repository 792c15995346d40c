"""The step rules of `curvk.kernels.online.learn` in float64 against plain primal and dual loops written here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from curvk.kernels import online

ALPHA = 0.5
SETTING: dict[str, float] = {"lr": 0.7, "clip": 1.1, "curvature": 0.3}
EACH = [(rule, loss) for rule in online.RULES for loss in online.LOSSES if rule != "ridge" or loss == "squared"]


def slope(loss: str, y: float, f: float) -> float:
    """The loss's derivative in f."""
    if loss == "squared":
        return 2 * (f - y)
    margin = 1 - y * f
    if loss == "logistic":
        return -y / (1 + math.exp(y * f))
    return 0.0 if margin <= 0 else -y if loss == "hinge" else -2 * y * margin


def excess(z: float, clip: float) -> float:
    return math.copysign(max(abs(z) - clip, 0.0), z)


def primal(phi: Any, y: Any, rule: str, loss: str, *, lr: float, clip: float, curvature: float) -> tuple[Any, Any, Any]:
    """Predictions, w and A of one output; A is held itself and solved with."""
    k = phi.shape[1]
    w, A, f = np.zeros(k), ALPHA * np.eye(k), np.zeros(len(phi))
    for t, x in enumerate(phi):
        if rule == "kons":
            u = np.linalg.solve(A, x)
            w = w - excess(x @ w, clip) / (x @ u) * u
        f[t] = w @ x
        g = slope(loss, y[t], f[t])
        if g == 0:
            continue
        if rule == "gradient":
            w = w - lr * g * x
        elif rule == "published":
            u = np.linalg.solve(A, x)
            v = w - lr * g * u
            w = v - excess(x @ v, clip) / (x @ u + 1e-4) * u
            A = A + lr**2 * g**2 * np.outer(x, x)
        elif rule == "ridge":
            A = A + np.outer(x, x)
            w = w - lr * g / 2 * np.linalg.solve(A, x)
        else:
            A = A + curvature / 2 * g**2 * np.outer(x, x)
            u = np.linalg.solve(A, x)
            w = w - lr * g * u
            if rule == "newton":
                w = w - excess(x @ w, clip) / (x @ u) * u
    return f, w, A


def stream(seed: int, n: int, k: int, c: int, loss: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((n, k)) / 2
    y = phi @ rng.standard_normal((k, c)) + 0.5 * rng.standard_normal((n, c))
    return phi, np.ascontiguousarray(y if loss == "squared" else np.where(y > 0, 1.0, -1.0))


def state(k: int, c: int, rule: str, alpha: float = ALPHA) -> tuple[Any, Any]:
    return np.zeros((c, k)), None if rule == "gradient" else np.stack([np.eye(k) / alpha] * c)


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize(("rule", "loss"), EACH)
def test_each_rule_and_loss(rule: str, loss: str, c: int) -> None:
    n, k = 120, 5
    phi, y = stream(c, n, k, c, loss)
    w, inverse = state(k, c, rule)
    f = np.empty((n, c))
    done, counted = online.learn(phi, y, f, w, inverse, rule=rule, loss=loss, **SETTING)
    slopes = np.zeros((n, c))
    for o in range(c):
        exact_f, exact_w, A = primal(phi, y[:, o], rule, loss, **SETTING)
        np.testing.assert_allclose(f[:, o], exact_f, rtol=0, atol=1e-11)
        np.testing.assert_allclose(w[o], exact_w, rtol=0, atol=1e-11)
        if inverse is not None:
            np.testing.assert_allclose(inverse[o] @ A, np.eye(k), rtol=0, atol=1e-11)
        slopes[:, o] = [slope(loss, a, b) for a, b in zip(y[:, o], exact_f, strict=True)]
    assert (done, counted) == (n, (slopes != 0).any(axis=1).sum())
    if "hinge" in loss:
        assert 0 < counted < n  # quiet rows and loss rows both occur
    assert np.abs(f).max() > 0.1
    if rule in ("newton", "published", "kons"):
        free, _, _ = primal(phi, y[:, 0], rule, loss, **(SETTING | {"clip": math.inf}))
        assert np.abs(free - f[:, 0]).max() > 1e-3  # the clip was active


@pytest.mark.parametrize("rule", online.RULES)
@pytest.mark.parametrize("c", [1, 3])
def test_the_bits_do_not_depend_on_the_calls(rule: str, c: int) -> None:
    loss = "squared" if rule == "ridge" else "squared_hinge"
    n, k = 200, 7
    phi, y = stream(3, n, k, c, loss)
    results = []
    for cut in ("whole", "rows", "until"):
        w, inverse = state(k, c, rule)
        f, i, losses, pending = np.full((n, c), np.nan), 0, 0, False
        while i < n:
            stop = i + 1 if cut == "rows" else n
            done, counted = online.learn(
                phi[i:stop],
                y[i:stop],
                f[i:stop],
                w,
                inverse,
                rule=rule,
                loss=loss,
                until=4 if cut == "until" else None,
                pending=pending,
                **SETTING,
            )
            losses, i, pending = losses + counted, i + done, cut == "until" and counted == 4
        results.append((f, w, inverse, losses))
    for f, w, inverse, losses in results[1:]:
        np.testing.assert_array_equal(f, results[0][0])
        np.testing.assert_array_equal(w, results[0][1])
        assert losses == results[0][3]
        if inverse is not None:
            np.testing.assert_array_equal(inverse, results[0][2])


@pytest.mark.parametrize("lr", [0.3, 1.0, 20.0])
def test_a_clipped_step_is_passive_aggressive(lr: float) -> None:
    """O6: sign(phi'v) = y and the clip active: w + A^-1 phi (y C - phi'w) / (phi'A^-1 phi), whatever the rate."""
    rng, clipped = np.random.default_rng(5), 0
    for _ in range(200):
        k = 6
        B, phi, w = rng.standard_normal((k, k)), rng.standard_normal(k), 0.2 * rng.standard_normal(k)
        A, y = B @ B.T + np.eye(k), rng.choice([-1.0, 1.0])
        g = slope("squared_hinge", y, w @ phi)
        A_new = A + SETTING["curvature"] / 2 * g**2 * np.outer(phi, phi)
        u = np.linalg.solve(A_new, phi)
        z = phi @ (w - lr * g * u)
        if g == 0 or z * y <= 0.8:
            continue
        clipped += 1
        new, inverse = w[None].copy(), np.linalg.inv(A)[None]
        online.learn(phi[None], np.array([[y]]), np.empty((1, 1)), new, inverse, lr=lr, clip=0.8, curvature=0.3)
        assert abs(phi @ new[0] - 0.8 * y) < 1e-13
        np.testing.assert_allclose(new[0], w + u * (y * 0.8 - phi @ w) / (phi @ u), rtol=0, atol=1e-12)
    assert clipped > 5


def test_the_inverse_holds_over_many_steps() -> None:
    """O8."""
    n, k = 10_000, 20
    phi, y = stream(6, n, k, 1, "logistic")
    w, inverse = state(k, 1, "newton", 0.01)
    f = np.empty((n, 1))
    _, counted = online.learn(phi, y, f, w, inverse, loss="logistic", curvature=0.3682)
    assert counted == n
    q = np.sqrt(0.3682 / 2) * (-y / (1 + np.exp(y * f))) * phi
    A = 0.01 * np.eye(k) + q.T @ q
    np.testing.assert_allclose(A @ inverse[0], np.eye(k), rtol=0, atol=1e-11)
    np.testing.assert_array_equal(inverse[0], inverse[0].T)


def test_the_published_order_takes_the_longer_step() -> None:
    """O9: A_t^-1 q = A_(t-1)^-1 q / (1 + q'A_(t-1)^-1 q)."""
    rng = np.random.default_rng(7)
    k = 6
    B, phi = rng.standard_normal((k, k)), rng.standard_normal((1, k))
    inverse = np.linalg.inv(B @ B.T + np.eye(k))
    inverse = (inverse + inverse.T) / 2
    steps = []
    for rule in ("newton", "published"):  # at w = 0 the hinge's slope is -1: q = phi where curvature / 2 = lr = 1
        w, held = np.zeros((1, k)), inverse[None].copy()
        online.learn(
            phi, np.ones((1, 1)), np.empty((1, 1)), w, held, rule=rule, loss="hinge", clip=math.inf, curvature=2.0
        )
        steps.append((w[0], held[0]))
    (newton, after), (published, also) = steps
    np.testing.assert_allclose(after, also, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(published, newton * (1 + phi[0] @ inverse @ phi[0]), rtol=1e-12)
    np.testing.assert_allclose(newton, np.linalg.solve(np.linalg.inv(inverse) + phi.T @ phi, phi[0]), rtol=1e-11)


@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_ridge_is_least_squares_on_all_rows(alpha: float) -> None:
    n, k, c = 300, 8, 2
    phi, y = stream(8, n, k, c, "squared")
    w, inverse = state(k, c, "ridge", alpha)
    f = np.empty((n, c))
    for i in range(0, n, 50):
        part = slice(i, i + 50)
        online.learn(phi[part], y[part], f[part], w, inverse, rule="ridge", loss="squared")
        rows = np.concatenate([phi[: i + 50], math.sqrt(alpha) * np.eye(k)])
        exact = np.linalg.lstsq(rows, np.concatenate([y[: i + 50], np.zeros((k, c))]), None)[0]
        np.testing.assert_allclose(w.T, exact, rtol=0, atol=1e-11)


def dual(K: Any, y: Any, loss: str, clip: float, curvature: float) -> Any:
    """KONS with no features: w = sum_s c_s phi_s, A^-1 = (I - Phi D (D K D + alpha I)^-1 D Phi') / alpha."""
    n = len(K)
    c, slopes, f = np.zeros(n), np.zeros(n), np.zeros(n)

    def applied(t: int, seen: int) -> Any:
        """Coefficients of A^-1 phi_t over phi_1 ... phi_n."""
        D = np.diag(np.sqrt(curvature / 2) * np.abs(slopes[:seen]))
        out = np.zeros(n)
        out[:seen] = -D @ np.linalg.solve(D @ K[:seen, :seen] @ D + ALPHA * np.eye(seen), D @ K[:seen, t])
        out[t] += 1.0
        return out / ALPHA

    for t in range(n):
        u = applied(t, t)
        c = c - excess(K[t] @ c, clip) / (K[t] @ u) * u
        f[t] = K[t] @ c
        slopes[t] = slope(loss, y[t], f[t])
        c = c - slopes[t] * applied(t, t + 1)
    return f


@pytest.mark.parametrize("loss", online.LOSSES)
def test_the_linear_kernel_gives_projected_newton_steps(loss: str) -> None:
    """The rule "kons" on rows is KONS by kernels, over 40 rounds."""
    phi, y = stream(9, 40, 5, 1, loss)
    w, inverse = state(5, 1, "kons")
    f = np.empty((40, 1))
    online.learn(phi, y, f, w, inverse, rule="kons", loss=loss, clip=0.8, curvature=0.3)
    np.testing.assert_allclose(f[:, 0], dual(phi @ phi.T, y[:, 0], loss, 0.8, 0.3), rtol=0, atol=1e-12)
    assert np.abs(f).max() == pytest.approx(0.8, rel=1e-12)


@pytest.mark.parametrize("loss", online.LOSSES)
def test_a_metric_without_weight_gives_the_first_order_step(loss: str) -> None:
    """O5: alpha to infinity, lr / alpha fixed, no clip: the step of NOGD and SkeGD."""
    phi, y = stream(10, 150, 5, 2, loss)
    results = []
    for rule, lr, alpha in (("gradient", 0.2, 1.0), ("newton", 0.2e12, 1e12)):
        w, inverse = state(5, 2, rule, alpha)
        f = np.empty((150, 2))
        online.learn(phi, y, f, w, inverse, rule=rule, loss=loss, lr=lr, clip=math.inf)
        results.append((f, w))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=0, atol=1e-9)
