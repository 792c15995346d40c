"""eigh_batch and svd_batch beyond the registry's case: error bounds, hard matrices, NaN, arguments, layouts."""

from __future__ import annotations

import math
import zlib
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._bench.cases.linalg import CLASS
from curvk.kernels import linalg

FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64])
COUNTS = (0, 1, 15, 16, 17, 33)
pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")


def generator(*parts: object) -> np.random.Generator:
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return np.random.default_rng(seed)


def transposed(X: Any) -> Any:
    return X.transpose(0, 2, 1)


def norms(X: Any) -> Any:
    """The spectral norm of each matrix, bounded from above."""
    return np.sqrt(abs(X).sum(1).max(1, initial=0) * abs(X).sum(2).max(1, initial=0))


def check_eigh(A: Any, w: Any, V: Any) -> None:
    """The documented bounds, in longdouble; the eigenvalues against LAPACK in float64."""
    assert w.shape == A.shape[:2]
    assert V.shape == A.shape
    assert w.dtype == V.dtype == A.dtype
    d, eps = A.shape[1], float(np.finfo(A.dtype).eps)
    lower = np.tril(A).astype(np.longdouble)
    A, w, V = lower + transposed(np.tril(lower, -1)), w.astype(np.longdouble), V.astype(np.longdouble)
    largest = abs(w).max(1, initial=0).astype(np.float64)
    bound = CLASS * d * eps * largest + 2 * d * float(np.finfo(np.float64).smallest_subnormal)
    if eps > 1e-10:
        bound += 2 * d * float(np.finfo(np.float32).smallest_subnormal)
    assert (norms(A @ V - V * w[:, None, :]) <= math.sqrt(d) * bound).all()
    assert (norms(transposed(V) @ V - np.eye(d)) <= math.sqrt(d) * CLASS * d * eps).all()
    assert (np.diff(w, axis=1) >= 0).all()
    largest_component = np.take_along_axis(V, abs(V).argmax(1)[:, None, :], 1)
    assert (largest_component > 0).all()
    assert not np.signbit(V[V == 0]).any()
    assert not np.signbit(w[w == 0]).any()
    scale = np.where(largest > 0, largest, 1)[:, None]
    true = np.linalg.eigvalsh((A / scale[:, :, None]).astype(np.float64)) * scale
    assert (abs(w - true).max(1, initial=0) <= 2 * bound).all()


def check_svd(A: Any, U: Any, s: Any, Vt: Any) -> None:
    n, p, d = A.shape
    m, side, eps = min(p, d), max(p, d), float(np.finfo(A.dtype).eps)
    assert U.shape == (n, p, m)
    assert s.shape == (n, m)
    assert Vt.shape == (n, m, d)
    assert U.dtype == s.dtype == Vt.dtype == A.dtype
    least = float(np.finfo(A.dtype).smallest_subnormal)
    A, U, s, Vt = (x.astype(np.longdouble) for x in (A, U, s, Vt))
    largest = s[:, 0].astype(np.float64)
    bound = CLASS * side * eps * largest + 2 * side * least
    assert (norms((U * s[:, None, :]) @ Vt - A) <= math.sqrt(side) * bound).all()
    for X in (transposed(U) @ U, Vt @ transposed(Vt)):
        assert (norms(X - np.eye(m)) <= math.sqrt(m) * CLASS * side * eps).all()
    assert (s >= 0).all()
    assert (np.diff(s, axis=1) <= 0).all()
    assert (np.take_along_axis(U, abs(U).argmax(1)[:, None, :], 1) > 0).all()
    scale = np.where(largest > 0, largest, 1)[:, None]
    true = np.linalg.svd((A / scale[:, :, None]).astype(np.float64), compute_uv=False) * scale
    assert (abs(s - true).max(1, initial=0) <= 2 * bound).all()


# ---- sizes ----------------------------------------------------------------------------------------------------------


@FLOATS
@pytest.mark.parametrize("d", [*range(1, 18), 23, 32, 33, 48, 63, 64])
def test_sizes(dtype: Any, d: int) -> None:
    rng = generator("sizes", np.dtype(dtype), d)
    for n in COUNTS if d < 10 else (17,):
        A = rng.standard_normal((n, d, d)).astype(dtype)
        check_eigh(A, *linalg.eigh_batch(A))
        check_svd(A, *linalg.svd_batch(A))


@FLOATS
@pytest.mark.parametrize(
    ("p", "d"), [(1, 7), (7, 1), (3, 8), (8, 3), (2, 64), (64, 2), (64, 63), (31, 64), (9, 8), (8, 9)]
)
def test_shapes(dtype: Any, p: int, d: int) -> None:
    A = generator("shapes", np.dtype(dtype), p, d).standard_normal((19, p, d)).astype(dtype)
    check_svd(A, *linalg.svd_batch(A))


# ---- hard matrices --------------------------------------------------------------------------------------------------


def hard(p: int, d: int, dtype: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Matrices by name; the symmetric solver reads their lower triangles."""
    m, i, j = min(p, d), np.arange(p)[:, None], np.arange(d)
    A = rng.standard_normal((p, d))
    Q = np.linalg.qr(rng.standard_normal((p, m)))[0]
    R = np.linalg.qr(rng.standard_normal((d, m)))[0].T
    grade = 10.0 ** np.linspace(-8, 8, max(p, d))
    info = np.finfo(dtype)
    found = {
        "random": A,
        "zero": 0 * A,
        "minus zero": -0.0 * np.ones((p, d)),
        "identity": np.eye(p, d),
        "minus identity": -np.eye(p, d),
        "diagonal": np.eye(p, d) * rng.standard_normal(d),
        "wide diagonal": np.eye(p, d) * 10.0 ** np.linspace(-30, 30, d),
        "ones": np.ones((p, d)),
        "antidiagonal": (i + j == d - 1) * 1.0,
        "rank one": np.outer(A[:, 0], A[0]),
        "rank half": Q[:, : (m + 1) // 2] @ R[: (m + 1) // 2],
        "one column": A * (j == 0),
        "one row": A * (i == p - 1),
        "equal": Q @ R,
        "pairs": (Q * (1 + np.arange(m) // 2)) @ R,
        "clustered": (Q * (1 + 1e-7 * np.arange(m))) @ R,
        "graded": (grade[:p, None] * grade[:d]) * (A + 4 * np.eye(p, d)),
        "graded down": (grade[::-1][:p, None] * grade[::-1][:d]) * (A + 4 * np.eye(p, d)),
        "spectrum": (Q * 10.0 ** np.linspace(8, -8, m)) @ R,
        "Hilbert": 1.0 / (i + j + 1),
        "Wilkinson": np.eye(p, d) * abs(j - (d - 1) / 2) + (abs(i - j) == 1),
        "signs": np.sign(A),
        "integers": rng.integers(-1, 2, (p, d)) * 1.0,
        "huge": A / abs(A).max() * float(info.max),
        "large": A * float(info.max) ** 0.7,
        "small": A * float(info.tiny) ** 0.7,
        "least normal": A * float(info.tiny) * 4,
        "denormal": A * float(info.smallest_subnormal) * 1000,
        "least": (i == j) * float(info.smallest_subnormal),
    }
    return {k: x.astype(dtype) for k, x in found.items()}


def symmetric(X: Any) -> Any:
    return np.tril(X) + np.tril(X, -1).swapaxes(-1, -2)


@FLOATS
@pytest.mark.parametrize("d", [1, 2, 3, 4, 8, 13, 32, 64])
def test_hard_eigh(dtype: Any, d: int) -> None:
    matrices = hard(d, d, dtype, generator("hard eigh", np.dtype(dtype), d))
    spectra = {k: x for k, x in matrices.items() if k != "huge" or d == 1}  # an eigenvalue of that overflows
    for name, A in spectra.items():
        print(name)
        check_eigh(A[None], *linalg.eigh_batch(A[None]))
    A = np.stack(list(spectra.values()))
    w, V = linalg.eigh_batch(A)
    for k in range(len(A)):
        for whole, alone in zip((w, V), linalg.eigh_batch(A[k : k + 1]), strict=True):
            assert alone.tobytes() == whole[k].tobytes(), list(spectra)[k]


@FLOATS
@pytest.mark.parametrize(
    ("p", "d"), [(1, 1), (2, 2), (3, 3), (4, 4), (8, 8), (13, 5), (5, 13), (32, 32), (64, 20), (64, 64)]
)
def test_hard_svd(dtype: Any, p: int, d: int) -> None:
    matrices = hard(p, d, dtype, generator("hard svd", np.dtype(dtype), p, d))
    if max(p, d) > 1:
        del matrices["huge"]
    for name, A in matrices.items():
        print(name)
        check_svd(A[None], *linalg.svd_batch(A[None]))
    A = np.stack(list(matrices.values()))
    U, s, Vt = linalg.svd_batch(A)
    for k in range(len(A)):
        for whole, alone in zip((U, s, Vt), linalg.svd_batch(A[k : k + 1]), strict=True):
            assert alone.tobytes() == whole[k].tobytes(), list(matrices)[k]


@FLOATS
def test_overflow_is_infinite(dtype: Any) -> None:
    """An eigenvalue beyond the largest number is infinite; the vectors are right."""
    A = np.full((1, 3, 3), np.finfo(dtype).max, dtype)
    w, V = linalg.eigh_batch(A)
    assert np.isinf(w[0, 2])
    assert np.isfinite(w[0, :2]).all()
    np.testing.assert_allclose(V[0, :, 2], 1 / math.sqrt(3), rtol=1e-6)


@FLOATS
def test_small_singular_values_of_a_graded_matrix(dtype: Any) -> None:
    """Small singular values of B D, D diagonal, come out to their own precision (Demmel & Veselic 1992)."""
    mp = pytest.importorskip("mpmath")
    rng = generator("graded", np.dtype(dtype))
    d, eps = 6, float(np.finfo(dtype).eps)
    A = (rng.standard_normal((d, d)) * 10.0 ** -np.arange(0, 2 * d, 2)).astype(dtype)
    condition = np.linalg.cond(A / np.linalg.norm(A.astype(float), axis=0))
    with mp.workdps(60):
        exact = sorted(
            (float(x) for x in mp.svd_r(mp.matrix(A.astype(float).tolist()), compute_uv=False)), reverse=True
        )
    np.testing.assert_allclose(linalg.svd_batch(A[None])[1][0], exact, rtol=20 * d * eps * condition)


def test_hilbert_against_mpmath() -> None:
    mp = pytest.importorskip("mpmath")
    d = 12
    A = 1.0 / (np.arange(d)[:, None] + np.arange(d) + 1)
    with mp.workdps(60):
        exact = sorted(float(x) for x in mp.eigsy(mp.matrix(A.tolist()), eigvals_only=True))
    np.testing.assert_allclose(linalg.eigh_batch(A[None])[0][0], exact, atol=CLASS * d * 2.0**-52 * exact[-1])
    np.testing.assert_allclose(linalg.svd_batch(A[None])[1][0], exact[::-1], atol=CLASS * d * 2.0**-52 * exact[-1])


def test_known_values(backend: str) -> None:
    """The second difference's eigenvalues are 2 - 2 cos(k pi / (d + 1)); its vectors sines."""
    d = 7
    A = 2 * np.eye(d) - np.eye(d, k=1) - np.eye(d, k=-1)
    k = np.arange(1, d + 1)
    w, V = linalg.eigh_batch(A[None])
    np.testing.assert_allclose(w[0], 2 - 2 * np.cos(k * np.pi / (d + 1)), rtol=1e-13)
    sines = np.sin(np.outer(k, k) * np.pi / (d + 1)) * math.sqrt(2 / (d + 1))
    np.testing.assert_allclose(abs(V[0]), abs(sines), atol=1e-14)
    U, s, Vt = linalg.svd_batch(A[None])
    np.testing.assert_allclose(s[0], w[0, ::-1], rtol=1e-13)
    np.testing.assert_allclose(U[0], transposed(Vt)[0], atol=1e-14)


def test_equal_values_keep_their_order(backend: str) -> None:
    one = np.eye(5)[None]
    assert (linalg.eigh_batch(one)[1] == one).all()
    U, s, Vt = linalg.svd_batch(-one)
    assert (one == U).all()
    assert (s == 1).all()
    assert (Vt == -one).all()


# ---- the same bits --------------------------------------------------------------------------------------------------


@FLOATS
@pytest.mark.parametrize(("p", "d"), [(2, 2), (3, 3), (4, 4), (5, 5), (8, 8), (9, 9), (7, 3), (3, 7)])
def test_same_bits_on_hard_matrices(dtype: Any, p: int, d: int) -> None:
    """Levels, threads and the twin on matrices whose lanes converge at different times, some of them not numbers."""
    matrices = list(hard(p, d, dtype, generator("bits", np.dtype(dtype), p, d)).values())
    A = np.stack(matrices)
    A[3, -1, 0], A[11, -1, 0] = np.nan, -np.inf
    functions = [linalg.svd_batch, *([linalg.eigh_batch] if p == d else [])]
    for function in functions:
        want = [x.tobytes() for x in function(A)]
        for level in curvk.simd_levels():
            curvk.set_simd(level)
            for threads in (1, 2, 3):
                with curvk.threads(threads):
                    assert [x.tobytes() for x in function(A)] == want, level
        for backend in ("numba", "python") if p * d < 20 else ("numba",):
            with curvk.use_backend(backend):
                twin = function(A)
            assert [x.tobytes() for x in twin] == want, backend


def test_caller_flushes_denormals() -> None:
    torch = pytest.importorskip("torch")
    A = (generator("flush").standard_normal((20, 3, 3)) * 1e-310).astype(np.float64)
    w, V = linalg.eigh_batch(A)
    want = w.tobytes(), V.tobytes()
    assert (w != 0).all()
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormal numbers")
    try:
        w, V = linalg.eigh_batch(A)
        got = w.tobytes(), V.tobytes()
    finally:
        torch.set_flush_denormal(False)
    assert got == want


# ---- NaN and infinity -----------------------------------------------------------------------------------------------


@FLOATS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("d", [1, 2, 3, 8, 11])
def test_not_finite_stays_in_its_matrix(backend: str, dtype: Any, value: float, d: int) -> None:
    n = 7 if backend == "python" else 21
    A = generator("nan", np.dtype(dtype), d).standard_normal((n, d, d)).astype(dtype)
    clean = [*linalg.eigh_batch(A), *linalg.svd_batch(A)]
    A[4, d - 1, 0] = value
    for x, y in zip([*linalg.eigh_batch(A), *linalg.svd_batch(A)], clean, strict=True):
        assert np.isnan(x[4]).all()
        assert np.delete(x, 4, 0).tobytes() == np.delete(y, 4, 0).tobytes()


def test_upper_triangle_is_not_read(backend: str) -> None:
    A = generator("upper").standard_normal((5, 4, 4))
    other = A + np.triu(np.full((4, 4), np.nan), 1)
    for x, y in zip(linalg.eigh_batch(A), linalg.eigh_batch(other), strict=True):
        assert x.tobytes() == y.tobytes()


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_out_and_layouts(backend: str) -> None:
    A = generator("layouts").standard_normal((6, 3, 3))
    w, V = linalg.eigh_batch(A)
    out = np.zeros((6, 3)), np.zeros((6, 3, 3))
    got = linalg.eigh_batch(A, out=out)
    assert got[0] is out[0]
    assert got[1] is out[1]
    assert out[0].tobytes() == w.tobytes()
    assert out[1].tobytes() == V.tobytes()
    U, s, Vt = linalg.svd_batch(A)
    results = np.zeros((6, 3, 3)), np.zeros((6, 3)), np.zeros((6, 3, 3))
    assert all(x is y for x, y in zip(linalg.svd_batch(A, out=results), results, strict=True))
    assert [x.tobytes() for x in results] == [x.tobytes() for x in (U, s, Vt)]
    wide = np.zeros((12, 3, 6))
    wide[::2, :, ::-2] = A
    for strided in (wide[::2, :, ::-2], np.asfortranarray(A)):
        assert linalg.eigh_batch(strided)[1].tobytes() == V.tobytes()
        assert linalg.svd_batch(strided)[0].tobytes() == U.tobytes()


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    A = torch.from_numpy(generator("torch").standard_normal((5, 3, 3)))
    w, V = torch.zeros(5, 3, dtype=torch.float64), torch.zeros(5, 3, 3, dtype=torch.float64)
    before = w._version, V._version
    assert linalg.eigh_batch(A, out=(w, V))[0] is w
    assert w._version > before[0]
    assert V._version > before[1]
    assert w.numpy().tobytes() == linalg.eigh_batch(A.numpy())[0].tobytes()


@pytest.mark.parametrize("function", [linalg.eigh_batch, linalg.svd_batch])
def test_bad_arguments(backend: str, function: Any) -> None:
    name = function.__name__
    A = np.ones((4, 3, 3))
    for bad, error, words in (
        (A.astype(np.int64), TypeError, "'A': got int64, needs float32 or float64"),
        (A.astype(np.float16), TypeError, "'A': got float16"),
        (A.tolist(), TypeError, "'A': got list"),
        (A[0], ValueError, r"'A': got shape \(3, 3\), needs shape \(n, p, d\); use A\[None\]"),
        (A[:, :0, :0], ValueError, r"'A': got shape \(4, 0, 0\), needs matrices of 1 to 64"),
        (np.ones((1, 65, 65)), ValueError, ".*1 to 64 rows and columns; use numpy.linalg." + name[:-6]),
    ):
        with pytest.raises(error, match=f"{name}: argument {words}"):
            function(bad)
    good = function(A)
    spoilt: list[tuple[int, Any, Any, str]] = [
        (1, np.ones((4, 7, 7)), ValueError, "shape"),
        (1, good[1].astype(np.float32), TypeError, "float32, needs float64 like 'A'"),
        (0, np.zeros((*good[0].shape, 2))[..., 0], ValueError, "C-contiguous"),
        (1, A.ravel()[: good[1].size].reshape(good[1].shape), ValueError, "shared with 'A'"),
    ]
    for at, x, error, words in spoilt:
        out = [y.copy() for y in good]
        for y in out:
            y[:] = 7
        out[at] = x
        kept = [y.copy() for y in out]
        with pytest.raises(error, match=words):
            function(A, out=tuple(out))
        assert all((y == z).all() for y, z in zip(out, kept, strict=True))
        assert (A == 1).all()
    locked = [y.copy() for y in good]
    locked[1].flags.writeable = False
    with pytest.raises(BufferError, match="read-only"):
        function(A, out=tuple(locked))
    with pytest.raises(TypeError, match=f"{name}: argument 'out': got ndarray, needs a tuple of arrays"):
        function(A, out=good[0])
    with pytest.raises(ValueError, match=f"{name}: argument 'out': got 1 arrays, needs"):
        function(A, out=(good[0],))


def test_not_square() -> None:
    with pytest.raises(ValueError, match=r"eigh_batch: argument 'A': got shape \(2, 3, 4\), needs square matrices"):
        linalg.eigh_batch(np.ones((2, 3, 4)))


def test_much_work_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long calls are cut so that Ctrl-C is heard; the results and the errors are those of one call."""
    A = generator("slices").standard_normal((300, 5, 5))
    want = [x.tobytes() for x in (*linalg.eigh_batch(A), *linalg.svd_batch(A))]
    monkeypatch.setattr(linalg, "_SLICE", 5000.0)
    calls: list[int] = []
    original = linalg.call
    monkeypatch.setattr(
        linalg, "call", lambda op, columns, scalars: (calls.append(scalars[0]), original(op, columns, scalars))
    )
    assert [x.tobytes() for x in (*linalg.eigh_batch(A), *linalg.svd_batch(A))] == want
    assert sum(calls) == 600
    assert len(calls) > 5
    shared = np.zeros(300 * 25 + 300 * 5)
    with pytest.raises(ValueError, match="shared with"):
        linalg.eigh_batch(A, out=(shared[: 300 * 5].reshape(300, 5), shared[100 : 100 + 300 * 25].reshape(300, 5, 5)))
    assert (shared == 0).all()
