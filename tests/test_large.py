"""More than 2^31 elements, once per family: no index wraps, at any place.

They take minutes and up to 9 GiB, so they run when asked for: CURVK_TEST_LARGE=1 pytest tests/test_large.py. Inputs are
zeros that were never touched, which take no memory, but for some numbers around the places where a 32-bit index or
byte count would wrap and at the ends; results are compared everywhere with what a kernel makes of zero, and there with
the formula.
"""

from __future__ import annotations

import os
from typing import Any

import curvk
import numpy as np
import pytest
from curvk.kernels import (
    budget,
    capture,
    curvature,
    gram,
    half,
    linalg,
    noise,
    online,
    optim,
    sketch,
    stein,
    sweep,
    vmath,
)

N = 2**31 + 4096 + 17
ROWS, WIDTH = 2**15 + 4, 2**16 + 1  # a matrix of more than 2^31 elements
SPOTS = np.unique(
    np.concatenate([np.arange(-9, 9) + place for place in (9, 2**29, 2**30, 2**31, N - 9)] + [np.arange(2**31, N, 37)])
)
VALUES = np.resize([0.5, -1.5, 2.0, 0.25, -3.0, 1.0, -0.75], SPOTS.size)  # exact in every format

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("CURVK_TEST_LARGE") != "1", reason="takes minutes and up to 9 GiB of memory: CURVK_TEST_LARGE=1"
    ),
    pytest.mark.skipif(curvk.get_backend() != "cpp", reason="the twins' indices are 64-bit by Numba's typing"),
]


def need(gib: float) -> None:
    """Skips where so much memory is not to be had."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            available = next(int(line.split()[1]) / 2**20 for line in file if line.startswith("MemAvailable"))
    except OSError:
        pytest.skip("cannot tell how much memory is available")
    if available < gib + 1:
        pytest.skip(f"needs {gib + 1:g} GiB of memory, {available:.1f} GiB are available")


def sparse(dtype: Any) -> np.ndarray:
    """N zeros but for VALUES at SPOTS."""
    x = np.zeros(N, dtype)
    x[SPOTS] = half.from_float32(VALUES.astype(np.float32), "bf16") if dtype is np.uint16 else VALUES.astype(dtype)
    return x


def everywhere(got: np.ndarray, values: Any, elsewhere: float = 0.0) -> None:
    """Fails unless an array is `values` at SPOTS and `elsewhere` everywhere else."""
    assert got.size == N
    for start in range(0, N, 2**25):
        block = got[start : start + 2**25]
        want = np.full(block.size, elsewhere, got.dtype)
        first, last = np.searchsorted(SPOTS, [start, start + block.size])
        want[SPOTS[first:last] - start] = np.asarray(values, got.dtype)[first:last]
        wrong = np.flatnonzero(block != want)
        assert wrong.size == 0, f"element {start + wrong[0]}: {block[wrong[0]]!r}, needs {want[wrong[0]]!r}"


def matrix(dtype: Any) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """ROWS x WIDTH zeros but for some rows: the first, the last two, and those whose elements pass 2^30 and 2^31."""
    x = np.zeros((ROWS, WIDTH), dtype)
    rows = {}
    for k, row in enumerate((0, 2**14 - 1, 2**15 - 1, ROWS - 2, ROWS - 1)):
        rows[row] = np.resize(np.array([1, -2, 3, 0, 5, -1], dtype) + k, WIDTH)
        rows[row][-1] = 7 - k
        x[row] = rows[row]
    return x, rows


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_optim_sums(dtype: Any) -> None:
    need(1)
    assert optim.global_norm([sparse(dtype)]) == np.sqrt(np.sum(VALUES**2))


def test_optim_step() -> None:
    need(4.5)
    p, g = sparse(np.float16), sparse(np.float16)
    optim.sgd_step(p, g, lr=0.5)
    everywhere(p, VALUES / 2)
    everywhere(g, VALUES)


def test_capture() -> None:
    need(4.5)
    p = sparse(np.float16)
    capture.sgd_step_at(p, sparse(np.float16), np.array([1, 0.5]))
    everywhere(p, VALUES / 2)


@pytest.mark.parametrize("format", ["curvk", "bitsandbytes"])
def test_sweep_codes(format: str) -> None:
    """Codes of groups at the edges are those of the same groups alone, and stand for the numbers."""
    need(3)
    x = sparse(np.float32)
    q = sweep.quantize(x, format=format)
    group = 32 if format == "curvk" else 256
    for place in (0, 2**29, 2**30, 2**31 - 512, 2**31, N // group * group - 1024):
        part = slice(place, min(place + 1536, N))
        alone = sweep.quantize(x[part].copy(), format=format)
        np.testing.assert_array_equal(q.codes[part], alone.codes)
        np.testing.assert_array_equal(q.scales[place // group :][: alone.scales.size], alone.scales)
        back = sweep.dequantize(alone)
        np.testing.assert_allclose(back, x[part], atol=0.02 * 3, rtol=0.02)
    zero = sweep.quantize(np.zeros(group, np.float32), format=format).codes[0]
    blocks = np.ones(-(-N // group), bool)  # groups without a number
    blocks[SPOTS // group] = False
    for start in range(0, N // group, 2**20):
        codes = q.codes[start * group : min(start + 2**20, N // group) * group].reshape(-1, group)
        assert (codes[blocks[start : start + len(codes)]] == zero).all()


def test_sweep_decode() -> None:
    need(11)
    codes = np.zeros(N, np.uint8)
    base = sweep.quantize(np.zeros(32, np.float32)).codes[0]
    codes[:] = base
    scales = np.zeros(-(-N // 32), np.float32)
    top = sweep.quantize(np.ones(32, np.float32)).codes[0]  # stands for its group's scale
    codes[SPOTS] = top
    scales[SPOTS // 32] = 1 + SPOTS // 32 % 1000
    everywhere(sweep.dequantize(sweep.Codes(codes, scales)), 1 + SPOTS // 32 % 1000)


@pytest.mark.parametrize("dist", ["normal", "rademacher"])
def test_noise_fill(dist: str) -> None:
    """Each element is what a call for this element alone gives, 2^31 and 2^32 elements further too."""
    need(4.5)
    out = np.full(N, np.nan, np.float16)
    noise.fill(out, seed=5, draw=3, dist=dist)
    for place in (0, 2**29 - 999, 2**30 - 999, 2**31 - 999, 2**31 + 1, N - 2000):
        alone = noise.fill(np.empty(2000, np.float16), seed=5, draw=3, dist=dist, offset=place)
        np.testing.assert_array_equal(out[place : place + 2000], alone)
    assert not np.array_equal(out[:4000], out[2**31 : 2**31 + 4000])
    for start in range(0, N, 2**26):
        assert not np.isnan(out[start : start + 2**26]).any()


def test_noise_dot() -> None:
    need(1)
    x = sparse(np.float16)
    got = noise.dot_seeds(x, seed=9, draws=[4, 5], dist="rademacher")
    for k, draw in enumerate((4, 5)):
        z = [noise.fill(np.empty(1), seed=9, draw=draw, dist="rademacher", offset=int(i))[0] for i in SPOTS]
        assert got[k] == np.dot(z, VALUES)


def test_half_down() -> None:
    need(4.5)
    out = half.from_float32(sparse(np.float32), "bf16")
    everywhere(out, half.from_float32(VALUES.astype(np.float32), "bf16"))


def test_half_up() -> None:
    need(9)
    everywhere(half.to_float32(sparse(np.uint16)), VALUES)


def test_vmath() -> None:
    need(9)
    out = vmath.exp(sparse(np.float32))
    np.testing.assert_allclose(out[SPOTS], np.exp(VALUES), rtol=1e-6)
    out[SPOTS] = 1
    everywhere(out, np.ones(SPOTS.size), 1.0)


def test_curvature_sums() -> None:
    need(1)
    g, plus, minus = sparse(np.float16), np.zeros(N, np.float16), sparse(np.float16)
    total = float(np.sum(VALUES**2))  # c_plus = -g, c_minus = 0
    assert curvature.glass_sums(g, plus, minus).tolist() == [total / 4, total / 2, 0.0, total]
    assert curvature.asam_norm([g], [minus]) == np.sqrt(np.sum(VALUES**4))


def test_curvature_step() -> None:
    need(9)
    p, g = sparse(np.float16), sparse(np.float16)
    curvature.sam_perturb_(p, g, scale=0.5)
    everywhere(p, 1.5 * VALUES)
    everywhere(g, VALUES)


def test_gram() -> None:
    need(2)
    x, rows = matrix(np.float32)
    z = np.resize(np.array([1, 2, -1, 0.5], np.float32), (1, WIDTH))
    got = gram.matvec(x, z, np.ones(1, np.float32), kernel="linear")
    want = np.zeros(ROWS)
    for row, values in rows.items():
        want[row] = values.astype(float) @ z[0].astype(float)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-2)
    assert np.count_nonzero(got) == np.count_nonzero(want)
    back = gram.block(x, z, kernel="linear")
    np.testing.assert_array_equal(back[:, 0], got)


def test_sketch() -> None:
    need(2)
    x, rows = matrix(np.float32)
    out = np.zeros((6, WIDTH))
    sketch.sjlt(x, out, seed=3, blocks=2)
    signs = sketch.sjlt_rows(ROWS, 6, seed=3, blocks=2)
    want = sum(np.outer(signs[row], values.astype(float)) for row, values in rows.items())
    np.testing.assert_allclose(out, want, rtol=1e-13, atol=1e-13)


def test_linalg() -> None:
    need(9)
    n, d = 2**23 + 5, 16
    A = np.zeros((n, d, d), np.float32)
    some = (0, 2**21, 2**22 - 1, 2**23 - 1, 2**23, n - 1)
    for k, i in enumerate(some):
        A[i] = np.diag(np.roll(np.arange(d) - 5.0 * k, k))
    w, V = linalg.eigh_batch(A)
    for k, i in enumerate(some):
        np.testing.assert_array_equal(w[i], np.arange(d) - 5.0 * k)
        np.testing.assert_allclose(A[i] @ V[i], V[i] * w[i], atol=1e-4)
        w[i] = 0
        V[i] = np.eye(d)
    for start in range(0, n, 2**18):
        assert not w[start : start + 2**18].any()
        assert (V[start : start + 2**18] == np.eye(d)).all()


def test_online() -> None:
    """Rows of zeros teach nothing; the others are predicted and learned as by hand."""
    need(2)
    x, rows = matrix(np.float64)
    y, f, w = np.ones((ROWS, 1)), np.full((ROWS, 1), np.nan), np.zeros((1, WIDTH))
    lr = 2.0**-24
    assert online.learn(x, y, f, w, rule="gradient", loss="squared", lr=lr, clip=np.inf) == (ROWS, ROWS)
    own, want = np.zeros(WIDTH), np.zeros(ROWS)
    for row, values in rows.items():
        want[row] = own @ values
        own -= lr * 2 * (want[row] - 1) * values
    np.testing.assert_allclose(f[:, 0], want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(w[0], own, rtol=1e-9, atol=1e-15)


def test_budget() -> None:
    need(2)
    x, rows = matrix(np.float64)
    expansion = budget.Expansion(WIDTH)
    expansion.counts[0] = WIDTH
    expansion.coef[0] = np.resize([1.0, 0.5, -2.0, 3.0], WIDTH)
    want = np.zeros(ROWS)
    for row, values in rows.items():
        want[row] = values @ expansion.coef[0]
    np.testing.assert_array_equal(budget.predict(x, expansion)[:, 0], want)  # sums of halves are exact


def test_stein() -> None:
    need(2)
    x, rows = matrix(np.float32)
    n, popsize = 3, ROWS // 3
    y = x[: n * popsize].reshape(n, popsize, WIDTH)
    values = np.zeros((n, popsize))
    best = [row for row in rows if row < n * popsize]
    values.reshape(-1)[best] = np.arange(len(best)) + 1.0
    weights = np.zeros(popsize, np.float32)
    weights[:2] = 0.75, 0.25
    order, mean = stein.shift(y, values, weights, mu=2)
    for k in range(n):
        ranked = np.argsort(-values[k], kind="stable")
        np.testing.assert_array_equal(order[k], ranked)
        want = 0.75 * y[k, ranked[0]].astype(float) + 0.25 * y[k, ranked[1]].astype(float)
        np.testing.assert_allclose(mean[k], want, rtol=1e-6)
