"""How Gram products are used: layouts, results in place, the same bits, numbers that are not finite, long calls."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._backend import compiled as has_compiled
from curvk.kernels import gram
from gram_truth import (
    DIFFERENCES,
    DTYPES,
    KERNELS,
    VANISHING,
    Truth,
    check,
    pairs,
    parameters,
    product,
    rows,
    truth,
    weights,
)
from sweep_states import generator

compiled = pytest.mark.skipif(not has_compiled, reason="this build has no compiled kernels")


# ---- layouts, empty arrays, results in place ------------------------------------------------------------------------

LAYOUTS = {
    "fortran": np.asfortranarray,
    "every other row": lambda x: np.repeat(x, 2, 0)[::2],
    "gaps": lambda x: np.repeat(x, 3, -1)[..., ::3],
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "a slice": lambda x: np.concatenate([x, x], -1)[..., : x.shape[-1]],
    "read-only": lambda x: np.broadcast_to(x, x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", [3, 33])
def test_any_layout_gives_the_same_bits(layout: str, d: int) -> None:
    turn = LAYOUTS[layout]
    settings = parameters("laplacian", d)
    X, Z, _ = pairs(np.float32, 33, 65, d)
    W, G = weights(np.float32, 65, 6), weights(np.float32, 33, 6)
    want = gram.matvec(X, Z, W, **settings).tobytes()
    assert gram.matvec(turn(X), turn(Z), turn(W), **settings).tobytes() == want
    assert gram.matvec(X, gram.Centers(turn(Z)), W, **settings).tobytes() == want
    back = gram.rmatvec(X, Z, G, **settings).tobytes()
    assert gram.rmatvec(turn(X), turn(Z), turn(G), **settings).tobytes() == back
    assert gram.block(turn(X), turn(Z), **settings).tobytes() == gram.block(X, Z, **settings).tobytes()
    assert gram.diagonal(turn(X), **settings).tobytes() == gram.diagonal(X, **settings).tobytes()
    if layout != "read-only":
        assert gram.matvec(X, Z, turn(W[:, 0].copy()[:, None])[:, 0], **settings).shape == (33,)


def test_misaligned_rows_are_copied(backend: str) -> None:
    def shift(x: Any) -> Any:
        raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
        raw[...] = x
        return raw

    X, Z, _ = pairs(np.float32, 5, 9, 4)
    W = weights(np.float32, 9, 2)
    want = gram.matvec(X, Z, W, bandwidth=2.0).tobytes()
    for arrays in ((shift(X), Z, W), (X, shift(Z), W), (X, Z, shift(W)), (X, gram.Centers(shift(Z)), W)):
        assert gram.matvec(*arrays, bandwidth=2.0).tobytes() == want
    with pytest.raises(ValueError, match="block: argument 'out': got a misaligned array"):
        gram.block(X, Z, bandwidth=2.0, out=shift(np.zeros((5, 9), np.float32)))


def test_torch_tensors(backend: str) -> None:
    torch = pytest.importorskip("torch")
    X, Z, _ = pairs(np.float32, 5, 9, 4)
    W, G = weights(np.float32, 9, 2), weights(np.float32, 5, 2)
    x, z, w, g = (torch.from_numpy(a) for a in (X, Z, W, G))
    out, back, keep, sums = (torch.zeros(shape) for shape in ((5, 2), (9, 2), (5, 9), (5,)))
    for call, results in (
        (lambda: gram.matvec(x, z, w, bandwidth=2.0, out=out, keep=keep), (out, keep)),
        (lambda: gram.rmatvec(x, z, g, bandwidth=2.0, out=back), (back,)),
        (lambda: gram.block(x, z, bandwidth=2.0, out=keep), (keep,)),
        (lambda: gram.distances(x, z, out=keep), (keep,)),
        (lambda: gram.row_sums(x, z, bandwidth=2.0, out=sums), (sums,)),
    ):
        before = [t._version for t in results]
        assert call() is results[0]
        assert all(t._version > v for t, v in zip(results, before, strict=True))  # a backward pass notices
    assert out.numpy().tobytes() == gram.matvec(X, Z, W, bandwidth=2.0).tobytes()
    assert back.numpy().tobytes() == gram.rmatvec(X, Z, G, bandwidth=2.0).tobytes()
    with pytest.raises(TypeError, match="argument 'X'"):
        gram.matvec(x.bfloat16(), z.bfloat16(), w.bfloat16(), bandwidth=2.0)


def test_settings_whose_scale_overflows(backend: str) -> None:
    x = np.ones((2, 3))
    for kernel in ("gaussian", "rational_quadratic", "imq"):
        with pytest.raises(ValueError, match="block: argument 'bandwidth': got 1e-161"):
            gram.block(x, x, kernel=kernel, bandwidth=1e-161)
        assert (gram.block(x, x, kernel=kernel, bandwidth=2e-154) == 1).all()
    with pytest.raises(ValueError, match="block: argument 'alpha': got 1e-200"):
        gram.block(x, x, kernel="rational_quadratic", bandwidth=1e-150, alpha=1e-200)


def test_diagonals_that_overflow(backend: str) -> None:
    x = np.full((2, 3), 1e19, np.float32)
    assert gram.diagonal(x, kernel="polynomial").tolist() == gram.block(x, x, kernel="polynomial").diagonal().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_arrays(dtype: Any, backend: str) -> None:
    for d in (3, 20):
        for kernel in ("gaussian", "linear"):
            settings = parameters(kernel, d)
            some, none = np.ones((4, d), dtype), np.ones((0, d), dtype)
            assert gram.matvec(none, some, np.ones((4, 2), dtype), **settings).shape == (0, 2)
            assert gram.rmatvec(some, none, np.ones((4, 2), dtype), **settings).shape == (0, 2)
            out = np.full((4, 2), np.nan, dtype)
            gram.matvec(some, none, np.ones((0, 2), dtype), **settings, out=out)
            assert not out.any()  # an empty sum
            out[...] = 5
            gram.matvec(some, none, np.ones((0, 2), dtype), **settings, out=out, accumulate=True)
            assert (out == 5).all()
            assert not gram.rmatvec(none, some, np.ones((0, 2), dtype), **settings).any()
            assert gram.block(none, some, **settings).shape == (0, 4)
            assert gram.block(some, none, **settings).shape == (4, 0)
            assert gram.row_sums(some, none, **settings).tolist() == [0, 0, 0, 0]
            assert gram.diagonal(none, **settings).shape == (0,)
            assert gram.distances(none, none).shape == (0, 0)


@pytest.mark.parametrize("c", [1, 6])
@pytest.mark.parametrize("d", [4, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_go_where_they_are_wanted(dtype: Any, d: int, c: int) -> None:
    settings = parameters("matern52", d)
    X, Z, q = pairs(dtype, 65, 129, d)
    W, K = weights(dtype, 129, c), truth(X, Z, **settings, q=q)
    want = product(K, W)
    plain = gram.matvec(X, Z, W, **settings)
    out, keep = np.full((65, c), np.nan, dtype), np.full((65, 129), np.nan, dtype)
    assert gram.matvec(X, Z, W, **settings, out=out, keep=keep) is out
    assert out.tobytes() == plain.tobytes()
    assert keep.tobytes() == gram.block(X, Z, **settings).tobytes()
    again = np.full((65, 129), np.nan, dtype)
    assert gram.block(X, Z, **settings, out=again) is again
    assert again.tobytes() == keep.tobytes()
    base = weights(dtype, 65, c)
    total = base.copy()
    assert gram.matvec(X, Z, W, **settings, out=total, accumulate=True) is total
    u = np.finfo(dtype).eps
    check(total, Truth(base + want.values, want.bound + u * (abs(base) + abs(want.values))))
    for _ in range(2):  # nothing of an earlier call is left
        assert gram.matvec(X, Z, W, **settings, out=out).tobytes() == plain.tobytes()
    sums = np.full(65, np.nan, dtype)
    assert gram.matvec(X, Z, W[:, 0].copy(), **settings, out=sums) is sums
    check(sums, product(K, W[:, 0]))


@pytest.mark.parametrize("d", [4, 40])
def test_centers_are_packed_once_and_used_often(d: int) -> None:
    X, Z, _ = pairs(np.float32, 65, 129, d)
    centers = gram.Centers(Z)
    assert np.shares_memory(centers.array, Z)
    assert np.array_equal(centers.array, Z)
    assert centers.shape == Z.shape
    assert centers.dtype == Z.dtype
    W, G = weights(np.float32, 129, 5), weights(np.float32, 65, 5)
    for kernel in (*KERNELS, *KERNELS):  # each in any order, since some kernels need centred rows and some do not
        settings = parameters(kernel, d)
        assert gram.matvec(X, centers, W, **settings).tobytes() == gram.matvec(X, Z, W, **settings).tobytes()
        assert gram.rmatvec(X, centers, G, **settings).tobytes() == gram.rmatvec(X, Z, G, **settings).tobytes()
        assert gram.block(X, centers, **settings).tobytes() == gram.block(X, Z, **settings).tobytes()
        assert gram.row_sums(X, centers, **settings).tobytes() == gram.row_sums(X, Z, **settings).tobytes()
    assert gram.distances(X, centers, squared=True).tobytes() == gram.distances(X, Z, squared=True).tobytes()


def test_arguments_that_are_read_stay_as_they_are() -> None:
    X, Z, _ = pairs(np.float32, 33, 65, 20)
    W = weights(np.float32, 65, 5)
    before = [x.tobytes() for x in (X, Z, W)]
    for kernel in KERNELS:
        gram.matvec(X, Z, W, **parameters(kernel, 20))
        gram.rmatvec(Z, X, W, **parameters(kernel, 20))
    gram.median_distance(X)
    assert [x.tobytes() for x in (X, Z, W)] == before


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [3, 12, 13, 65])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_other_rows(dtype: Any, d: int, kernel: str) -> None:
    settings = parameters(kernel, d)
    X, Z, _ = pairs(dtype, 131, 70, d)
    W = weights(dtype, 70, 5)
    block, out = gram.block(X, Z, **settings), gram.matvec(X, Z, W, **settings)
    for slices in ([(0, 131)], [(i, i + 1) for i in range(131)], [(0, 1), (1, 14), (14, 30), (30, 95), (95, 131)]):
        for first, last in slices:
            part = gram.matvec(X[first:last], Z, W, **settings)
            assert part.tobytes() == out[first:last].tobytes()
    order = generator("rows", d).permutation(131)
    assert gram.block(X[order], Z, **settings).tobytes() == block[order].tobytes()
    assert gram.matvec(X[order], Z, W, **settings).tobytes() == out[order].tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_do_not_depend_on_their_place(dtype: Any, kernel: str) -> None:
    """In a tile, or among the centers. Short rows are compared by themselves; the centers of long ones have a mean,
    which is the same here: of eighths, whose sums are exact in any order.
    """
    for d in (3, 12, 13, 16, 17, 65):
        settings = parameters(kernel, d)
        X, Z, _ = pairs(dtype, 20, 131, d)
        if d > DIFFERENCES:
            X, Z = (np.round(8 * x) / dtype(8) for x in (X, Z))
        block = gram.block(X, Z, **settings)
        order = generator("columns", d).permutation(131)
        assert gram.block(X, Z[order], **settings).tobytes() == block[:, order].tobytes()
        if d <= DIFFERENCES:
            for first, last in ((0, 1), (1, 2), (13, 131), (64, 97)):
                assert gram.block(X, Z[first:last], **settings).tobytes() == block[:, first:last].tobytes()
        twice = gram.block(X, np.concatenate([Z, Z]), **settings)  # the same mean
        assert twice.tobytes() == np.concatenate([block, block], 1).tobytes()


@pytest.mark.parametrize("d", [13, 65])
def test_the_order_of_the_centers_does_not_matter(d: int) -> None:
    """Nor to their mean, for which float32 rows are summed in something wider."""
    settings = parameters("gaussian", d)
    X, Z, _ = pairs(np.float32, 20, 200, d)
    block = gram.block(X, Z, **settings)
    for seed in range(5):
        order = generator("order", d, seed).permutation(200)
        assert gram.block(X, Z[order], **settings).tobytes() == block[:, order].tobytes()


@compiled
@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit(dtype: Any, d: int) -> None:
    with curvk.use_backend("cpp"):
        for n, m in ((1500, 700), (3, 30_000), (30_000, 3), (64, 5000)):
            rng = generator("threads", n, m, d)
            X, Z = (rng.standard_normal((k, d)).astype(dtype) for k in (n, m))
            W, G = weights(dtype, m, 3), weights(dtype, n, 3)
            settings = parameters("laplacian", d)
            found = []
            for threads in (1, 2, 3, 7):
                with curvk.threads(threads):
                    results = [
                        gram.matvec(X, Z, W, **settings),
                        gram.matvec(X, Z, W[:, 0].copy(), **settings),
                        gram.rmatvec(X, Z, G, **settings),
                        gram.row_sums(X, Z, **settings),
                        gram.block(X[:200], Z[:500], **settings),
                        np.float64(gram.median_distance(X[:400])),
                    ]
                found.append([x.tobytes() for x in results])
            assert all(x == found[0] for x in found)


# ---- numbers that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # the truth of such rows
def test_rows_that_are_not_finite_stay_local(kernel: str, d: int, bad: float) -> None:
    settings = parameters(kernel, d)
    X, Z = rows(generator("local", d), np.float32, 33, 70, d)
    W = weights(np.float32, 70, 5)
    clean, out = gram.block(X, Z, **settings), gram.matvec(X, Z, W, **settings)
    in_x, in_z = X.copy(), Z.copy()
    in_x[[7, 30], [1, 0]] = bad
    in_z[[0, 64], [0, d - 1]] = bad
    rest_x, rest_z = np.delete(np.arange(33), [7, 30]), np.delete(np.arange(70), [0, 64])
    block = gram.block(in_x, Z, **settings)
    assert block[rest_x].tobytes() == clean[rest_x].tobytes()
    assert gram.matvec(in_x, Z, W, **settings)[rest_x].tobytes() == out[rest_x].tobytes()
    spoilt = gram.block(X, in_z, **settings)
    check(spoilt[:, rest_z], truth(X, in_z[rest_z], **settings, origin=in_z))
    for lines in (block[[7, 30]], spoilt[:, [0, 64]]):
        if np.isnan(bad):
            assert np.isnan(lines).all()
        elif kernel in VANISHING:
            assert not (lines > 0).any()  # the limit, or NaN
    if np.isnan(bad):
        assert np.isnan(gram.matvec(in_x, Z, W, **settings)[[7, 30]]).all()
        assert np.isnan(gram.distances(in_x, Z)[[7, 30]]).all()
        assert np.isnan(gram.diagonal(in_x, **settings)[[7, 30]]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("c", [2, 17])
def test_weights_that_are_not_finite_stay_in_their_column(c: int, bad: float) -> None:
    X, Z, _ = pairs(np.float32, 33, 70, 20)
    settings = parameters("gaussian", 20)
    W = weights(np.float32, 70, c)
    out = gram.matvec(X, Z, W, **settings)
    W[40, 1] = bad
    spoilt = gram.matvec(X, Z, W, **settings)
    assert not np.isfinite(spoilt[:, 1]).any()
    rest = np.delete(np.arange(c), 1)
    assert spoilt[:, rest].tobytes() == out[:, rest].tobytes()


# ---- long calls -----------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_memory_is_that_of_the_rows(run_python: Any) -> None:
    """20,000 x 20,000 entries would take 1,600 MB, the 8,000 x 8,000 / 2 distances of a median 128 MB."""
    code = """
import numpy as np
from curvk.kernels import gram

def peak():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024

def run(n, few):
    X = np.random.default_rng(0).standard_normal((n, 18)).astype(np.float32)
    W = np.ones((n, 4), np.float32)
    before = peak()
    gram.matvec(X, X, W, kernel="laplacian", bandwidth=3.0)
    gram.rmatvec(X, X, W, kernel="laplacian", bandwidth=3.0)
    gram.row_sums(X, X, bandwidth=3.0)
    gram.median_distance(X[:few])
    return peak() - before

run(100, 100)
print(run(20_000, 8_000))
"""
    assert float(run_python(code, CURVK_BACKEND="cpp", OMP_NUM_THREADS="1").stdout) < 32


@compiled
def test_progress_is_told_between_slices() -> None:
    X = generator("progress").standard_normal((20_000, 64)).astype(np.float32)
    told: list[tuple[int, int]] = []
    with curvk.use_backend("cpp"), curvk.threads(1):
        start = time.perf_counter()
        out = gram.matvec(X, X, X[:, :6], bandwidth=8.0, progress=lambda *where: told.append(where))
        seconds = time.perf_counter() - start
        assert len(told) >= seconds / 0.25 - 1  # a slice takes some 50 ms
        assert {rows for _, rows in told} == {20_000}
        done = [k for k, _ in told]
        assert done == sorted(set(done))
        assert 0 <= done[0] <= done[-1] <= 20_000
        assert out.tobytes() == gram.matvec(X, X, X[:, :6], bandwidth=8.0).tobytes()  # and changes nothing

        def stop(done: int, rows: int) -> None:
            raise LookupError("enough")

        with pytest.raises(LookupError, match="enough"):
            gram.matvec(X, X, X[:, :6], bandwidth=8.0, progress=stop)


@compiled
def test_ctrl_c_in_a_long_call(ctrl_c: None) -> None:
    """Raised at the end of a slice; the rows done are written, the others not."""
    X = generator("interrupt").standard_normal((150_000, 40)).astype(np.float32)
    out = np.full((len(X), 3), np.nan, np.float32)
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    with curvk.use_backend("cpp"):
        for call in (
            lambda: gram.matvec(X, X, X[:, :3], bandwidth=5.0, out=out),
            lambda: gram.rmatvec(X, X, X[:, :3], bandwidth=5.0),
            lambda: gram.row_sums(X, X, bandwidth=5.0),
            lambda: gram.median_distance(X),
        ):
            timer = threading.Timer(0.2, interrupt)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                call()
            assert time.perf_counter() - sent[-1] < 1
            timer.join()
        done = np.isfinite(out).all(1)
        assert 0 < done.sum() < len(X)
        assert done[: done.sum()].all()
        assert np.isnan(out[~done]).all()
        few = X[:50]
        K = truth(few, few, bandwidth=5.0)
        check(gram.matvec(few, few, few, bandwidth=5.0), product(K, few))


# ---- landmarks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_landmarks_give_entries_that_depend_on_two_rows_alone(d: int, dtype: Any) -> None:
    rng = np.random.default_rng(d)
    X = rng.standard_normal((57, d)).astype(dtype) + 3
    landmarks = gram.Landmarks(d, capacity=1, dtype=dtype)
    for i, x in enumerate(X):
        assert landmarks.append(x + 1) == i
    for i in rng.permutation(len(X)):
        landmarks.replace(int(i), X[i])
    assert len(landmarks) == 57
    assert np.array_equal(landmarks.array, X)
    whole = gram.block(X, gram.Landmarks.of(X), bandwidth=3.0)
    assert np.array_equal(whole, gram.block(X, landmarks, bandwidth=3.0))
    assert np.array_equal(whole, whole.T)
    subset = gram.block(X[5:9], gram.Landmarks.of(X[::7]), bandwidth=3.0)
    assert np.array_equal(subset, whole[5:9, ::7])
    exact = np.exp(-((X[:, None].astype(float) - X[None]) ** 2).sum(2) / 18)
    np.testing.assert_allclose(whole, exact, rtol=2e-5 if dtype == np.float32 else 1e-12)


def test_landmarks_far_from_the_origin_keep_their_distances() -> None:
    rng = np.random.default_rng(8)
    X = rng.standard_normal((40, 20)) + 1e7
    exact = ((X[:, None] - X[None]) ** 2).sum(2)
    np.testing.assert_allclose(gram.distances(X, gram.Landmarks.of(X), squared=True), exact, rtol=1e-12)


def test_landmarks_refuse_what_does_not_fit() -> None:
    landmarks = gram.Landmarks(2)
    with pytest.raises(ValueError, match="argument 'x': got shape"):
        landmarks.append(np.zeros(3))
    with pytest.raises(TypeError, match="argument 'x': got float32, needs float64"):
        landmarks.append(np.zeros(2, np.float32))
    assert len(landmarks) == 0
    with pytest.raises(ValueError, match="argument 'slot': got 0"):
        landmarks.replace(0, np.zeros(2))
    with pytest.raises(TypeError, match="argument 'dtype'"):
        gram.Landmarks(2, dtype=np.int64)


@pytest.mark.parametrize("c", [1, 6, 17, 20, 40, 70])
def test_a_row_alone_has_the_bits_that_it_has_among_others(c: int) -> None:
    """The last rows of X are formed one by one where they are few, with the same sums."""
    rng = np.random.default_rng(c)
    for dtype in (np.float32, np.float64):
        for d in (2, 20):
            X, Z = (rng.standard_normal((n, d)).astype(dtype) for n in (26, 101))
            W = rng.standard_normal((101, c)).astype(dtype)
            centers = gram.Centers(Z)
            whole, kept = np.empty((26, c), dtype), np.empty((26, 101), dtype)
            gram.matvec(X, centers, W, out=whole, keep=kept, bandwidth=2.0)
            for n in (1, 2, 3, 4, 13, 25):
                part, keep = np.empty((n, c), dtype), np.empty((n, 101), dtype)
                gram.matvec(X[7 : 7 + n] if n < 20 else X[:n], centers, W, out=part, keep=keep, bandwidth=2.0)
                first = 7 if n < 20 else 0
                assert np.array_equal(part, whole[first : first + n])
                assert np.array_equal(keep, kept[first : first + n])


# ---- bound products --------------------------------------------------------------------------------------------------


def test_a_bound_product_follows_what_its_rows_hold() -> None:
    rng = np.random.default_rng(3)
    X, Z, W = rng.standard_normal((5, 7)), rng.standard_normal((40, 7)), rng.standard_normal((40, 6))
    x, f, k = np.empty((1, 7)), np.empty((1, 6)), np.empty((1, 40))
    centers = gram.Centers(Z)
    product = gram.bind(x, centers, W, out=f, kernel="matern32", bandwidth=2.0)
    values = gram.bind(x, centers, None, out=k, kernel="matern32", bandwidth=2.0)
    for row in X:
        x[0] = row
        product()
        values()
        assert np.array_equal(f, gram.matvec(row[None], centers, W, kernel="matern32", bandwidth=2.0))
        assert np.array_equal(k, gram.block(row[None], centers, kernel="matern32", bandwidth=2.0))


def test_a_bound_product_refuses_what_it_cannot_follow() -> None:
    X, Z, W = np.zeros((4, 3)), np.zeros((5, 3)), np.zeros((5, 2))
    with pytest.raises(ValueError, match="argument 'X': got an array that is not C-contiguous"):
        gram.bind(X[::2], Z, W, out=np.empty((2, 2)), bandwidth=1.0)
    with pytest.raises(ValueError, match="argument 'W': got shape"):
        gram.bind(X, Z, W[:, 0], out=np.empty(4), bandwidth=1.0)
    with pytest.raises(ValueError, match="argument 'out': got shape"):
        gram.bind(X, Z, W, out=np.empty((4, 3)), bandwidth=1.0)
    with pytest.raises(ValueError, match="memory shared with 'W'"):
        gram.bind(X, Z, W, out=W[:4], bandwidth=1.0)
