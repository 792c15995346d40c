"""Gram products against direct sums in a wider type, and what follows from the kernels' formulas."""

from __future__ import annotations

from typing import Any

import curvk
import numpy as np
import pytest
from curvk._backend import _every_level
from curvk._backend import compiled as has_compiled
from curvk.kernels import gram
from gram_truth import (
    DIFFERENCES,
    DTYPES,
    KERNELS,
    RADIAL,
    VANISHING,
    Truth,
    check,
    distance,
    pairs,
    parameters,
    product,
    rows,
    squared,
    squared_error,
    truth,
    weights,
)
from sweep_states import generator

LENGTHS = (1, 3, 12, 13, 15, 16, 17, 64, 65, 300)
SIZES = (
    (1, 1), (1, 17), (11, 12), (12, 64), (13, 65), (15, 33), (16, 16), (17, 31), (31, 63), (32, 200), (33, 13),
    (63, 11), (64, 32), (65, 15), (200, 199), (7, 127), (2, 128), (5, 129),
)  # fmt: skip
COLUMNS = (1, 2, 5, 6, 16, 17, 33)

compiled = pytest.mark.skipif(not has_compiled, reason="this build has no compiled kernels")


# ---- against direct sums --------------------------------------------------------------------------------------------


def test_the_kernels_have_these_names() -> None:
    assert set(gram.KERNELS) == set(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_direct_sums(dtype: Any, d: int, kernel: str) -> None:
    """Entries, and products with as many columns as fill lanes and do not."""
    settings = parameters(kernel, d)
    for place, (n, m) in enumerate(SIZES):
        X, Z, q = pairs(dtype, n, m, d)
        K = truth(X, Z, **settings, q=q)
        block = gram.block(X, Z, **settings)
        assert block.dtype == dtype
        check(block, K)
        W = weights(dtype, m, COLUMNS[place % len(COLUMNS)])
        out = gram.matvec(X, Z, W, **settings)
        assert out.dtype == dtype
        check(out, product(K, W))


@pytest.mark.parametrize("c", COLUMNS)
@pytest.mark.parametrize("d", [3, 65])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_columns(dtype: Any, d: int, c: int) -> None:
    settings = parameters("matern32", d)
    for n, m in ((13, 77), (100, 33)):
        X, Z, q = pairs(dtype, n, m, d)
        K, W = truth(X, Z, **settings, q=q), weights(dtype, m, c)
        check(gram.matvec(X, Z, W, **settings), product(K, W))
        G = weights(dtype, n, c)
        both = [truth(X, Z, **settings, q=q, origin=origin) for origin in (X, Z)]  # it may pack either
        either = Truth(K.values.T, np.maximum(*(k.bound.T for k in both)))
        check(gram.rmatvec(X, Z, G, **settings), product(either, G))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_vector_of_weights(kernel: str) -> None:
    settings = parameters(kernel, 17)
    X, Z, q = pairs(np.float32, 33, 200, 17)
    w, K = weights(np.float32, 200), truth(X, Z, **settings, q=q)
    out = gram.matvec(X, Z, w, **settings)
    assert out.shape == (33,)
    check(out, product(K, w))
    assert out.tobytes() == gram.matvec(X, Z, w[:, None], **settings).tobytes()
    sums = gram.row_sums(X, Z, **settings)
    assert sums.shape == (33,)
    check(sums, product(K, np.ones(200, np.float32)))
    assert gram.rmatvec(X, Z, weights(np.float32, 33), **settings).shape == (200,)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_twins_and_the_kernels(dtype: Any, kernel: str, backend: str) -> None:
    n, m = (7, 9) if backend == "python" else (29, 70)
    for d in (5, 21):
        settings = parameters(kernel, d)
        X, Z, q = pairs(dtype, n, m, d)
        K, W, G = truth(X, Z, **settings, q=q), weights(dtype, m, 3), weights(dtype, n, 3)
        keep = np.full((n, m), np.nan, dtype)
        check(gram.matvec(X, Z, W, **settings, keep=keep), product(K, W))
        check(keep, K)
        check(gram.matvec(X, gram.Centers(Z), W[:, 0].copy(), **settings), product(K, W[:, 0]))
        back = truth(Z, X, **settings, q=q.T)
        either = Truth(back.values, np.maximum(back.bound, K.bound.T))
        check(gram.rmatvec(X, Z, G, **settings), product(either, G))


@compiled
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_level(kernel: str) -> None:
    with curvk.use_backend("cpp"), _every_level() as levels:
        for level in levels:
            curvk.set_simd(level)
            for dtype in DTYPES:
                for d in (3, 17, 65):
                    settings = parameters(kernel, d)
                    for n, m, c in ((13, 65, 1), (65, 33, 6), (16, 200, 17)):
                        X, Z, q = pairs(dtype, n, m, d)
                        K, W = truth(X, Z, **settings, q=q), weights(dtype, m, c)
                        check(gram.block(X, Z, **settings), K)
                        check(gram.matvec(X, Z, W, **settings), product(K, W))


def test_usual_data_lies_well_below_the_bound() -> None:
    """What float32 reaches on data of usual size, as the worst case above is not for random signs."""
    for d in LENGTHS:
        rng = generator("usual", d)
        normal, uniform = rng.standard_normal((400, d)), rng.random((400, d))
        for data, h in ((normal, d**0.5), (normal + 10, d**0.5), (uniform, (d / 12) ** 0.5)):
            X, Z = np.split(data.astype(np.float32), 2)
            X[::7] = Z[::7]
            K = truth(X, Z, bandwidth=h).values
            assert abs(gram.block(X, Z, bandwidth=h) - K).max() <= 1e-6
            W = rng.standard_normal((200, 5)).astype(np.float32)
            allowed = 5e-7 * abs(W).sum(0) + 1e-6 * (K @ abs(W))
            assert (abs(gram.matvec(X, Z, W, bandwidth=h) - K @ W.astype(np.float64)) <= allowed).all()


@pytest.mark.parametrize("d", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_distances(dtype: Any, d: int) -> None:
    for n, m in ((1, 1), (13, 65), (64, 33), (200, 199)):
        X, Z, q = pairs(dtype, n, m, d)
        dq = squared_error(X, Z, q)
        check(gram.distances(X, Z, squared=True), Truth(q, dq + 2 * np.finfo(dtype).eps * q))
        found = gram.distances(X, Z)
        check(found, distance(q, dq, dtype))
        assert (found[q == 0] == 0).all()
        out = np.full((n, m), np.nan, dtype)
        assert gram.distances(X, gram.Centers(Z), out=out) is out
        assert out.tobytes() == found.tobytes()


@pytest.mark.parametrize("kernel", ["polynomial", "rational_quadratic", "exponent"])
def test_other_parameters(kernel: str) -> None:
    choices: dict[str, list[dict[str, Any]]] = {
        "polynomial": [{"degree": k, "gamma": g, "coef0": c} for k in (1, 2, 5) for g, c in ((0.3, 0.0), (0.2, -1.5))],
        "rational_quadratic": [{"alpha": a, "bandwidth": 3.0} for a in (0.25, 1.0, 6.0)],
        "exponent": [{"gamma": g, "bandwidth": 5.0} for g in (0.5, 1.0, 2.0)],
    }
    for dtype in DTYPES:
        for d in (4, 33):
            X, Z, q = pairs(dtype, 33, 63, d)
            for choice in choices[kernel]:
                check(gram.block(X, Z, kernel=kernel, **choice), truth(X, Z, kernel=kernel, **choice, q=q))


@pytest.mark.parametrize("alpha", [50.0, 1e3, 1e6, 1e12, 1e40])
def test_rational_quadratic_on_its_way_to_the_gaussian(alpha: float, backend: str) -> None:
    """1 + q / (2 alpha h^2) rounds, and alpha multiplies what is lost."""
    for dtype in DTYPES:
        for d in (4, 33):
            settings = {"kernel": "rational_quadratic", "alpha": alpha, "bandwidth": 3.0}
            X, Z, q = pairs(dtype, 7, 9, d)
            check(gram.block(X, Z, **settings), truth(X, Z, **settings, q=q))


def test_kernels_that_are_others_in_a_limit_or_a_setting() -> None:
    """Identities between the families, which hold their conventions for the bandwidth together."""
    X, Z, _ = pairs(np.float64, 33, 63, 4)
    same: list[tuple[dict[str, Any], dict[str, Any], float]] = [
        ({"kernel": "exponent", "gamma": 1.0, "bandwidth": 3.0}, {"kernel": "laplacian", "bandwidth": 3.0}, 1e-14),
        ({"kernel": "exponent", "gamma": 2.0, "bandwidth": 8.0}, {"bandwidth": 2.0}, 1e-14),
        (
            {"kernel": "rational_quadratic", "alpha": 0.5, "bandwidth": 2.0},
            {"kernel": "imq", "bandwidth": 2.0},
            1e-14,
        ),
        ({"kernel": "rational_quadratic", "alpha": 1e7, "bandwidth": 2.0}, {"bandwidth": 2.0}, 1e-6),
        ({"kernel": "polynomial", "degree": 1, "gamma": 1.0, "coef0": 0.0}, {"kernel": "linear"}, 1e-14),
    ]
    for one, other, tolerance in same:
        np.testing.assert_allclose(gram.block(X, Z, **one), gram.block(X, Z, **other), rtol=0, atol=tolerance * 20)


# ---- algebra --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_linear_in_the_weights(kernel: str) -> None:
    settings = parameters(kernel, 20)
    X, Z, q = pairs(np.float64, 32, 200, 20)
    V, W = weights(np.float64, 200, 5), weights(np.float64, 2, 200, 5)[1]
    K = truth(X, Z, **settings, q=q)
    got = gram.matvec(X, Z, 2 * V - 3 * W, **settings)
    parts = 2 * gram.matvec(X, Z, V, **settings) - 3 * gram.matvec(X, Z, W, **settings)
    allowed = 2 * product(K, abs(2 * V) + abs(3 * W)).bound + 1e-14 * (abs(K.values) @ (abs(2 * V) + abs(3 * W)))
    assert (abs(got - parts) <= allowed).all()
    assert gram.matvec(X, Z, 4 * V, **settings).tobytes() == (4 * gram.matvec(X, Z, V, **settings)).tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_matrix_is_symmetric_and_positive_semidefinite(dtype: Any, kernel: str) -> None:
    for d in (3, 12, 13, 16, 17, 65):
        settings = parameters(kernel, d)
        X = rows(generator("symmetric", np.dtype(dtype), d), dtype, 150, 40, d)[0]
        X[100:] = X[:50]
        K = gram.block(X, X, **settings)
        want = truth(X, X, **settings)
        check(K, want)
        assert (abs(K.astype(np.float64) - K.T) <= 2 * want.bound).all()
        lowest = np.linalg.eigvalsh((K.astype(np.float64) + K.T) / 2)[0]
        assert lowest >= -np.linalg.norm(want.bound.astype(np.float64)) - 1e-12 * np.linalg.norm(K)
        diagonal = gram.diagonal(X, **settings)
        assert diagonal.shape == (150,)
        assert diagonal.dtype == dtype
        check(diagonal, Truth(np.diag(want.values), np.diag(want.bound)))
        if kernel in RADIAL:
            equal = (X[:, None] == X[None]).all(-1)
            assert equal.sum() >= 250
            assert (K[equal] == 1).all()
            assert (diagonal == 1).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_transposed_product_is_the_adjoint(kernel: str) -> None:
    settings = parameters(kernel, 18)
    X, Z, _ = pairs(np.float64, 63, 200, 18)
    W, G = weights(np.float64, 200, 3), weights(np.float64, 63, 3)
    forward, back = gram.matvec(X, Z, W, **settings), gram.rmatvec(X, Z, G, **settings)
    assert back.shape == (200, 3)
    size = np.linalg.norm(forward) * np.linalg.norm(G) + np.linalg.norm(back) * np.linalg.norm(W)
    assert abs((forward * G).sum() - (back * W).sum()) <= 1e-12 * size


@pytest.mark.parametrize("shift", [10.0, 1000.0])
@pytest.mark.parametrize("kernel", RADIAL)
def test_data_far_from_the_origin(kernel: str, shift: float) -> None:
    """Truth is of the shifted numbers as they are; where the shift is exact, it is also that of the data before."""
    for dtype in DTYPES:
        for d in (3, 17, 64, 300):
            settings = parameters(kernel, d)
            X, Z = rows(generator("shifted", d), dtype, 63, 65, d)
            X, Z = X + dtype(shift), Z + dtype(shift)
            check(gram.block(X, Z, **settings), truth(X, Z, **settings))
            X, Z = (np.round(x * 8).astype(dtype) / 8 for x in (X, Z))
            near = tuple(x - dtype(shift) for x in (X, Z))
            assert all((a + dtype(shift) == b).all() for a, b in zip(near, (X, Z), strict=True))
            check(gram.block(X, Z, **settings), truth(*near, **settings))


@pytest.mark.parametrize("d", LENGTHS)
@pytest.mark.parametrize("scale", [1e-3, 1e-4, 1e-6])
def test_kernels_are_right_beside_the_diagonal(scale: float, d: int) -> None:
    """Rows that far apart, in parts of their norm, where |x|^2 + |z|^2 - 2 x.z would have lost the distance."""
    rng = generator("near", d, scale)
    Z = rng.standard_normal((90, d)).astype(np.float32)
    away = rng.standard_normal((90, d))
    away *= scale * np.linalg.norm(Z, axis=1, keepdims=True) / np.linalg.norm(away, axis=1, keepdims=True)
    X = (Z + away).astype(np.float32)
    for kernel in RADIAL:
        settings = parameters(kernel, d)
        K, want = gram.block(X, Z, **settings), truth(X, Z, **settings)
        check(K, want)
        at = np.arange(90)
        assert abs(K[at, at] - want.values[at, at]).max() <= 1e-6
    q = squared(X, Z)[at, at]
    found = gram.distances(X, Z)[at, at].astype(np.float64)
    # A part of the distance: rounding a centred row to float32 is allowed to move it, sums of d squares to err.
    allowed = (d + 4) * 2.0**-24 * np.sqrt(q) + (2.0**-22 * np.linalg.norm(Z, axis=1) if d > DIFFERENCES else 0.0)
    assert (abs(found - np.sqrt(q)) <= allowed).all()


@pytest.mark.parametrize("h", [1e8, 1e25, 1e30])
@pytest.mark.parametrize("kernel", RADIAL)
def test_wide_kernels_add_up_the_weights(kernel: str, h: float) -> None:
    for d in (3, 40):
        X, Z, _ = pairs(np.float32, 33, 200, d)
        W = weights(np.float32, 200, 5)
        settings = parameters(kernel, d) | {"bandwidth": h}
        allowed = 1e-6 * abs(W).sum(0)
        assert (abs(gram.matvec(X, Z, W, **settings) - W.sum(0, np.float64)) <= allowed).all()
        np.testing.assert_allclose(gram.row_sums(X, Z, **settings), 200, rtol=1e-6)


@pytest.mark.parametrize("h", [1e-6, 1e-15, 1e-30])
@pytest.mark.parametrize("kernel", VANISHING)
def test_narrow_kernels_add_up_the_weights_of_equal_rows(kernel: str, h: float) -> None:
    """Also where 1 / h^2 is beyond float32: an equal row still has K = 1, every other one 0."""
    for d in (3, 40):
        X, Z, q = pairs(np.float32, 33, 31, d)
        Z = np.concatenate([Z, Z[:9]])
        equal = np.concatenate([q, q[:, :9]], 1) == 0
        assert equal.sum() > 7
        settings = parameters(kernel, d) | {"bandwidth": h**1.3 if kernel == "exponent" else h}
        assert np.array_equal(gram.block(X, Z, **settings), equal)
        W = np.ones((40, 5), np.float32)
        assert np.array_equal(gram.matvec(X, Z, W, **settings), equal @ W)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_norms_whose_sum_overflows(dtype: Any, backend: str) -> None:
    """Distances that are formed of them are summed by differences."""
    X = generator("overflow").choice([-1.0, 1.0], (14, 16))
    X = np.concatenate([X, -X]).astype(dtype) * (
        np.sqrt(np.finfo(dtype).max) * dtype(0.18)
    )  # abs(x)^2: half the largest
    Y = X.copy()
    Y[:, 0] *= dtype(1.25)
    assert (gram.distances(X, X).diagonal() == 0).all()
    assert (gram.block(X, X, bandwidth=1.0).diagonal() == 1).all()
    np.testing.assert_allclose(gram.distances(Y, X).diagonal(), abs(Y[:, 0] - X[:, 0]), rtol=8 * np.finfo(dtype).eps)


def test_results_below_the_normal_range_are_zero() -> None:
    for dtype, far in ((np.float32, 88.0), (np.float64, 709.0)):
        for t in (far, 200.0 if dtype == np.float32 else 800.0, 1e4, 1e30):
            for d in (1, 20):
                x, z = np.zeros((1, d), dtype), np.full((1, d), (t / d) ** 0.5, dtype)
                for settings in ({"bandwidth": 0.5**0.5}, {"kernel": "exponent", "gamma": 2.0, "bandwidth": 1.0}):
                    K = gram.block(x, z, **settings)
                    assert 0 <= K[0, 0] < np.finfo(dtype).tiny
                    assert t == far or K[0, 0] == 0


# ---- the median distance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_median_of_all_distances(dtype: Any, d: int) -> None:
    """A median moves no more than the farthest of its numbers."""
    for n in (2, 3, 4, 5, 8, 63, 64, 65, 200):
        X = rows(generator("median", n, d), dtype, n, 7, d)[0]
        upper = np.triu_indices(n, 1)
        q = squared(X, X)
        r = distance(q, squared_error(X, X, q), dtype)
        found = gram.median_distance(X)
        assert isinstance(found, float)
        assert abs(found - np.median(r.values[upper])) <= r.bound[upper].max()


def test_the_median_of_distances_that_are_exact() -> None:
    """Whole numbers, many of them equal, so that no rounding hides an error in the count."""
    for n in (2, 3, 6, 7, 50, 51):
        for d in (1, 2, 5):
            X = generator("whole", n, d).integers(0, 4, (n, d)).astype(np.float32)
            q = squared(X, X)[np.triu_indices(n, 1)]
            np.testing.assert_allclose(gram.median_distance(X), np.median(np.sqrt(q)), rtol=2e-7)
    assert gram.median_distance(np.ones((9, 20), np.float32)) == 0
    few = np.concatenate([np.zeros((6, 1)), np.ones((1, 1))])  # 15 zeros among 21 distances
    assert gram.median_distance(few) == 0
    assert gram.median_distance(np.array([[0.0], [1.0], [3.0]])) == 2


def test_the_median_of_sampled_pairs() -> None:
    X = generator("pairs").standard_normal((500, 20)).astype(np.float32)
    r = np.sqrt(squared(X, X)[np.triu_indices(500, 1)])
    found = [gram.median_distance(X, pairs=4096, seed=seed) for seed in range(8)]
    assert found == [gram.median_distance(X, pairs=4096, seed=seed) for seed in range(8)]
    assert gram.median_distance(X, pairs=4096) == found[0]
    assert len(set(found)) > 4
    for value in found:  # twelve standard errors of the rank
        assert np.quantile(r, 0.4) < value < np.quantile(r, 0.6)
    two = X[:2]
    np.testing.assert_allclose(gram.median_distance(two, pairs=5), np.linalg.norm(two[0] - two[1]), rtol=1e-5)
