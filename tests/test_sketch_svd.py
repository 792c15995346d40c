"""curvk.sketch: the incremental and the randomised singular value decomposition."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from curvk.sketch import FrequentDirections, IncrementalSVD, randomized_svd
from hypothesis import given, settings
from hypothesis import strategies as st

EPS = np.finfo(np.float64).eps


def decaying(n, d, seed, power=1.0):
    """A normal matrix with singular values that fall like i^-power."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return rng.standard_normal((n, d)) / np.arange(1, d + 1) ** power @ turn


def skewness(Q):
    """How far the rows are from orthonormal."""
    return np.abs(Q @ Q.T - np.eye(len(Q))).max(initial=0.0)


def slack(A):
    """Rounding: LAPACK's own decomposition of a graded matrix is off by some 30 eps, and each update has one."""
    return 16 * sum(A.shape) * EPS * np.sum(A**2)


def take(svd, A, size=7):
    for i in range(0, len(A), size):
        svd.update(A[i : i + size])
    return svd


# ---- IncrementalSVD --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["brand", "fd"])
@pytest.mark.parametrize("block", [None, 1, 3, 50])
@pytest.mark.parametrize(("n", "d", "k", "rank"), [(60, 9, 9, 9), (60, 30, 12, 6), (8, 30, 8, 8), (40, 1, 3, 1)])
def test_without_truncation_it_is_the_svd(n, d, k, rank, block, method):
    A = decaying(n, rank, 1) @ decaying(rank, d, 2)
    svd = take(IncrementalSVD(k, d, method=method, block=block, keep_U=True), A)
    sigma = np.linalg.svd(A, compute_uv=False)[:rank]
    assert svd.delta == 0
    assert svd.s.shape == (rank,)
    np.testing.assert_allclose(svd.s, sigma, rtol=0, atol=1e-12 * sigma[0])
    np.testing.assert_allclose(svd.U * svd.s @ svd.Vt, A, rtol=0, atol=1e-12 * sigma[0])
    assert skewness(svd.Vt) < 1e-13
    assert skewness(svd.U.T) < 1e-13


@pytest.mark.parametrize("method", ["brand", "fd"])
def test_orthogonal_after_ten_thousand_updates(method):
    rng = np.random.default_rng(3)
    A = rng.standard_normal((10_000, 30)) / np.arange(1, 31)
    svd = IncrementalSVD(6, 30, method=method, block=1, keep_U=True)
    for row in A:
        svd.update(row)
    assert svd.s.shape == (6,)
    assert skewness(svd.Vt) < 1e-13
    assert skewness(svd.U.T) < 1e-13
    if method == "brand":
        sigma = np.linalg.svd(A, compute_uv=False)
        np.testing.assert_allclose(svd.s[:3], sigma[:3], rtol=1e-2)
        np.testing.assert_allclose(svd.U[:, :2] * svd.s[:2], A @ svd.Vt[:2].T, rtol=0, atol=1e-2 * sigma[0])


@pytest.mark.parametrize("block", [1, 4, 9])
def test_brand_is_the_best_rank_k_of_each_update(block):
    """The truth by dense decompositions of the factors with the block below."""
    A, k = decaying(72, 20, 4), 5
    B, delta = np.zeros((0, 20)), 0.0
    for i in range(0, 72, block):
        _, s, Vt = np.linalg.svd(np.vstack([B, A[i : i + block]]), full_matrices=False)
        B = s[:k, None] * Vt[:k]
        delta += s[k] ** 2 if len(s) > k else 0.0
    svd = take(IncrementalSVD(k, 20, block=block), A)
    np.testing.assert_allclose(svd.sketch.T @ svd.sketch, B.T @ B, rtol=0, atol=1e-12 * np.sum(A**2))
    assert svd.delta == pytest.approx(delta, rel=1e-12)


def test_fd_is_frequent_directions():
    """With block = l both shrink at the same counts, one by products of rows, the other by turning factors."""
    A = decaying(96, 20, 5)
    fd, svd = FrequentDirections(8, 20), IncrementalSVD(8, 20, method="fd")
    for rows in np.split(A, 12):
        fd.update(rows)
        svd.update(rows)
        np.testing.assert_allclose(svd.sketch.T @ svd.sketch, fd.sketch.T @ fd.sketch, rtol=0, atol=1e-11)
        assert svd.delta == pytest.approx(fd.delta, rel=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    n=st.integers(0, 60),
    d=st.integers(1, 15),
    k=st.integers(1, 10),
    block=st.integers(1, 20),
    power=st.sampled_from([0.0, 1.0, 4.0]),
)
@pytest.mark.parametrize("method", ["brand", "fd"])
def test_bounds(method, seed, n, d, k, block, power):
    A = decaying(n, d, seed, power)
    svd = take(IncrementalSVD(k, d, method=method, block=block), A)
    values = np.linalg.eigvalsh(A.T @ A - svd.sketch.T @ svd.sketch)
    assert values[0] >= -slack(A)
    assert values[-1] <= svd.delta + slack(A)
    assert len(svd.s) <= min(k, d, n)
    assert np.all(np.diff(svd.s) <= 0)
    assert skewness(svd.Vt) < 1e-13
    if method == "fd" and n:
        squares = np.linalg.svd(A, compute_uv=False) ** 2
        assert svd.delta <= min(squares[j:].sum() / (k + 1 - j) for j in range(k + 1)) + slack(A)


@pytest.mark.parametrize("tiny", [1e-3, 1e-8, 1e-13, 1e-16, 1e-30, 0.0])
@pytest.mark.parametrize("block", [1, 4])
def test_rows_nearly_in_the_span(tiny, block):
    """What is new in a row may be as short as its rounding errors, or nothing."""
    rng = np.random.default_rng(6)
    A = rng.standard_normal((400, 3)) @ rng.standard_normal((3, 40)) + tiny * rng.standard_normal((400, 40))
    svd = take(IncrementalSVD(8, 40, block=block, keep_U=True), A)
    assert skewness(svd.Vt) < 1e-13
    assert skewness(svd.U.T) < 1e-13
    sigma = np.linalg.svd(A, compute_uv=False)
    np.testing.assert_allclose(svd.s[:3], sigma[:3], rtol=1e-6)


@pytest.mark.parametrize("tiny", [1e-4, 1e-8, 1e-11, 1e-14])
def test_rows_nearly_alike_in_one_update(tiny):
    """Their differences are short beside what rounding leaves of the span in them."""
    rng = np.random.default_rng(10)
    x = rng.standard_normal(40)
    svd = take(IncrementalSVD(12, 40, block=4, keep_U=True), rng.standard_normal((4, 40)))
    svd.update(x + tiny * rng.standard_normal((4, 40)))
    svd.update(-x + tiny * rng.standard_normal((4, 40)))
    assert len(svd.s) >= (12 if tiny > 1e-13 else 5)
    assert skewness(svd.Vt) < 1e-13
    assert skewness(svd.U.T) < 1e-13


def test_short_directions_are_kept():
    A = np.zeros((3, 5))
    A[0, 1], A[1, 3], A[2, 4] = 1e6, 1e-6, 1e-8
    svd = take(IncrementalSVD(3, 5), A)
    np.testing.assert_allclose(svd.s, [1e6, 1e-6, 1e-8], rtol=1e-3)


def test_all_of_the_space():
    """The residuals are rounding errors, sums of many: there is no room for their directions."""
    A = np.random.default_rng(11).standard_normal((700, 150))
    svd = take(IncrementalSVD(160, 150, block=70), A, 700)
    assert len(svd.s) == 150
    assert skewness(svd.Vt) < 1e-13
    np.testing.assert_allclose(svd.s, np.linalg.svd(A, compute_uv=False), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_graded_rows(dtype):
    rng = np.random.default_rng(7)
    A = (rng.standard_normal((50, 10)) * 10.0 ** rng.integers(-9, 9, (50, 1))).astype(dtype)
    svd = take(IncrementalSVD(10, 10, block=3, keep_U=True), A)
    wide = A.astype(np.float64)
    sigma = np.linalg.svd(wide, compute_uv=False)
    np.testing.assert_allclose(svd.s, sigma[: len(svd.s)], rtol=0, atol=1e-13 * sigma[0])
    np.testing.assert_allclose(svd.U * svd.s @ svd.Vt, wide, rtol=0, atol=1e-13 * sigma[0])
    assert skewness(svd.U.T) < 1e-13


def test_left_vectors_only_where_asked_for():
    svd = take(IncrementalSVD(3, 5), decaying(20, 5, 8))
    with pytest.raises(ValueError, match="argument 'keep_U': got False, needs True; construct with keep_U=True"):
        svd.U  # noqa: B018
    kept = take(IncrementalSVD(3, 5, keep_U=True), decaying(20, 5, 8))
    assert np.array_equal(kept.Vt, svd.Vt)
    with pytest.raises(ValueError, match=r"merge: argument 'keep_U': got True.*use update with the other's rows"):
        kept.merge(kept)


@pytest.mark.parametrize("method", ["brand", "fd"])
def test_merging(method):
    A = decaying(150, 20, 9)
    parts = [take(IncrementalSVD(6, 20, method=method, block=4), rows) for rows in np.split(A, [50, 83])]
    for other in parts[1:]:
        parts[0].merge(other)
    svd = parts[0]
    values = np.linalg.eigvalsh(A.T @ A - svd.sketch.T @ svd.sketch)
    assert svd.rows_seen == 150
    assert values[0] >= -slack(A)
    assert values[-1] <= svd.delta + slack(A)
    if method == "fd":
        squares = np.linalg.svd(A, compute_uv=False) ** 2
        assert svd.delta <= min(squares[j:].sum() / (7 - j) for j in range(7)) + slack(A)


# ---- randomized_svd --------------------------------------------------------------------------------------------------


def shaped(n, d, sigma, seed):
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((m, len(sigma))))[0] for m in (n, d))
    return U * sigma @ V.T


def halko(sigma, k, p, power):
    """The mean of |A - Q Q'A| is at most this (corollary 10.10; for power 0 theorem 10.6)."""
    q = 2 * power + 1
    tail = math.sqrt(np.sum(sigma[k:] ** (2 * q)))
    return ((1 + math.sqrt(k / (p - 1))) * sigma[k] ** q + math.e * math.sqrt(k + p) / p * tail) ** (1 / q)


@pytest.mark.parametrize("range_finder", ["gaussian", "sjlt"])  # the bound is the Gaussian's; the other meets it here
@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize(("n", "d"), [(200, 60), (60, 200)])
@pytest.mark.parametrize("spectrum", ["flat", "slow", "fast"])
def test_within_halkos_bound(spectrum, n, d, power, range_finder):
    i = np.arange(1, 61.0)
    sigma = {"flat": np.where(i <= 5, 2.0, 1.0), "slow": 1 / i, "fast": 0.5**i}[spectrum]
    A, k, p = shaped(n, d, sigma, 1), 8, 6
    errors = []
    for seed in range(20):
        U, s, Vt = randomized_svd(A, k, oversample=p, power=power, seed=seed, range_finder=range_finder)
        assert np.all(s <= sigma[:k] * (1 + 1e-12))
        errors.append(np.linalg.norm(A - U * s @ Vt, 2))
    assert np.mean(errors) <= sigma[k] + halko(sigma, k, p, power)  # theorem 9.3: cutting to rank k adds sigma_{k+1}
    assert min(errors) >= sigma[k] * (1 - 1e-12)


@pytest.mark.parametrize("range_finder", ["gaussian", "sjlt"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(90, 30), (30, 90), (1, 7), (7, 1), (20, 20)])
def test_exact_where_the_start_is_wide_enough(n, d, dtype, range_finder):
    A = np.random.default_rng(2).standard_normal((n, d)).astype(dtype)
    k = min(n, d)
    for layout in (A, np.asfortranarray(A), np.repeat(A, 2, 0)[::2]):
        U, s, Vt = randomized_svd(layout, k, range_finder=range_finder)
        assert U.shape == (n, k)
        assert Vt.shape == (k, d)
        assert all(x.dtype == np.float64 for x in (U, s, Vt))
        np.testing.assert_allclose(s, np.linalg.svd(A.astype(np.float64), compute_uv=False), rtol=0, atol=1e-12 * s[0])
        np.testing.assert_allclose(U * s @ Vt, A, rtol=0, atol=1e-12 * s[0])
        assert skewness(U.T) < 1e-13
        assert skewness(Vt) < 1e-13


@pytest.mark.parametrize("range_finder", ["gaussian", "sjlt"])
def test_low_rank_and_zero(range_finder):
    A = shaped(300, 80, np.array([3.0, 2.0, 1e-3]), 3)
    U, s, Vt = randomized_svd(A, 3, power=0, range_finder=range_finder)
    np.testing.assert_allclose(s, [3.0, 2.0, 1e-3], rtol=1e-11)
    A = shaped(300, 80, np.linspace(2, 1, 12), 4)  # as many as columns at the start
    s = randomized_svd(A, 5, oversample=7, power=0, range_finder=range_finder).s
    np.testing.assert_allclose(s, np.linspace(2, 1, 12)[:5], rtol=1e-10)
    U, s, Vt = randomized_svd(np.zeros((9, 7)), 2, range_finder=range_finder)
    assert not s.any()
    assert skewness(U.T) < 1e-13
    assert skewness(Vt) < 1e-13


@pytest.mark.parametrize("range_finder", ["gaussian", "sjlt"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_what_is_not_finite_is_named(value, range_finder):
    A = decaying(60, 30, 12)
    A[41, 7] = value
    for layout in (A, A.T.copy().T):
        with pytest.raises(ValueError, match=rf"randomized_svd: argument 'A': got {re.escape(str(value))} in row 41"):
            randomized_svd(layout, 3, range_finder=range_finder)


def test_a_seed_is_a_result():
    A = decaying(100, 50, 4)
    first, again, other = (randomized_svd(A, 5, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first.s, other.s)


@pytest.mark.parametrize(
    ("A", "options", "error", "text"),
    [
        (np.zeros(5), {}, ValueError, r"argument 'A': got shape \(5,\), needs shape \(n, d\)"),
        (np.zeros((0, 5)), {}, ValueError, "argument 'A': got shape"),
        (np.zeros((3, 5), int), {}, TypeError, "argument 'A': got int64"),
        (np.full((3, 5), np.nan), {}, ValueError, "argument 'A': got nan in row 0"),
        (np.zeros((3, 5)), {"k": 4}, ValueError, r"argument 'k': got 4, needs an integer in \[1, 4\)"),
        (np.zeros((3, 5)), {"k": 0}, ValueError, "argument 'k'"),
        (np.zeros((3, 5)), {"k": 1.5}, TypeError, "argument 'k'"),
        (np.zeros((3, 5)), {"oversample": -1}, ValueError, "argument 'oversample'"),
        (np.zeros((3, 5)), {"power": -1}, ValueError, "argument 'power'"),
        (np.zeros((3, 5)), {"seed": 2**64}, ValueError, "argument 'seed'"),
        (np.zeros((3, 5)), {"range_finder": "qr"}, ValueError, "argument 'range_finder': got 'qr'"),
        (np.zeros((3, 5)), {"range_finder": None}, TypeError, "argument 'range_finder'"),
    ],
)
def test_arguments_are_checked(A, options, error, text):
    with pytest.raises(error, match=f"randomized_svd: {text}"):
        randomized_svd(A, **{"k": 2} | options)
