"""sjlt, eigh_update and qr_update beyond the registry's cases: laws, oracles, hard matrices, drift, NaN, arguments."""

from __future__ import annotations

import math
import zlib
from typing import Any

import curvk
import numpy as np
import pytest
from curvk.kernels import noise, sketch
from curvk.kernels.sketch import eigh_update, qr_update, sjlt, sjlt_rows
from scipy.linalg import lapack
from scipy.linalg import qr_update as scipy_qr_update

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")
EPS = float(np.finfo(np.float64).eps)


def generator(*parts: object) -> np.random.Generator:
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return np.random.default_rng(seed)


# ---- sjlt -----------------------------------------------------------------------------------------------------------


def test_a_word_of_philox_decides_each_entry() -> None:
    """Row 37 of a CountSketch by hand: tile 1, element 5, so word 1 of block 8 + 2."""
    tensor = noise.tensor_word("sjlt", "sketch")
    assert tensor >> 28 == noise.PURPOSES["sketch"]
    word = int(noise.philox4x32([10, 0, tensor, 0], [5, 0])[1])
    want = np.zeros((1, 1000))
    want[0, (word >> 1) * 1000 >> 31] = -1 if word & 1 else 1
    np.testing.assert_array_equal(sjlt_rows(1, 1000, seed=5, first_row=37), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "s", "blocks"), [(300, 5, 20, 1), (300, 33, 20, 4), (17, 1, 6, 6), (40, 3, 1, 1)])
def test_sjlt_is_a_loop_over_its_rows(n: int, d: int, s: int, blocks: int, dtype: Any) -> None:
    rng = generator("loop", n, d, s, blocks)
    A, start = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((s, d))
    S = sjlt_rows(n, s, seed=9, first_row=1000, blocks=blocks)
    want = start.copy()
    for i in range(n):
        for place in np.flatnonzero(S[i]):
            want[place] += S[i, place] * A[i].astype(np.float64)
    out = start.copy()
    sjlt(A, out, seed=9, first_row=1000, blocks=blocks)
    assert out.tobytes() == want.tobytes()
    np.testing.assert_allclose(out, start + S.T @ A, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("d", "blocks"), [(7, 1), (64, 3)])
def test_rows_added_later_give_the_same_bits(d: int, blocks: int) -> None:
    rng = generator("append", d, blocks)
    A = rng.standard_normal((1000, d))
    whole = np.zeros((30, d))
    sjlt(A, whole, seed=3, first_row=77, blocks=blocks)
    parts, rows = np.zeros((30, d)), []
    for cut in np.split(np.arange(1000), [1, 2, 40, 51, 128, 600, 999]):
        sjlt(A[cut], parts, seed=3, first_row=77 + int(cut[0]), blocks=blocks)
        rows.append(sjlt_rows(len(cut), 30, seed=3, first_row=77 + int(cut[0]), blocks=blocks))
    assert parts.tobytes() == whole.tobytes()
    np.testing.assert_array_equal(np.concatenate(rows), sjlt_rows(1000, 30, seed=3, first_row=77, blocks=blocks))


def test_a_long_call_in_slices_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    A = generator("slices").standard_normal((500, 20))
    whole, sliced = np.zeros((2, 12, 20))
    sjlt(A, whole, seed=1, first_row=5, blocks=2)
    monkeypatch.setattr(sketch, "_SLICE", 1500.0)
    sjlt(A, sliced, seed=1, first_row=5, blocks=2)
    assert sliced.tobytes() == whole.tobytes()


def test_column_tiles_give_the_columns_own_bits() -> None:
    A = generator("tiles").standard_normal((300, 1000))
    whole = np.zeros((400, 1000))
    with curvk.threads(2):
        sjlt(A, whole, seed=4)
    for j in (0, 127, 128, 511, 999):
        column = np.zeros((400, 1))
        sjlt(A[:, j : j + 1], column, seed=4)
        assert column.tobytes() == whole[:, j].tobytes()


def test_every_row_of_S_has_one_entry_of_unit_share_in_each_block() -> None:
    S = sjlt_rows(500, 24, seed=11, blocks=6)
    assert ((S.reshape(500, 6, 4) != 0).sum(2) == 1).all()
    np.testing.assert_array_equal(np.unique(abs(S)), [0, 1 / math.sqrt(6)])
    assert (np.unique(abs(S).argmax(1)).size, (S.sum(1) != 0).any()) == (4, True)


@pytest.mark.parametrize("blocks", [1, 3])
def test_johnson_lindenstrauss_law(blocks: int) -> None:
    """20,000 draws: E[S S^T] = I and Var |S^T x|^2 = 2 / s (|x|_2^4 - |x|_4^4), whatever `blocks` is."""
    n, s, draws = 8, 12, 20_000
    x = generator("law").standard_normal(n)
    x /= np.linalg.norm(x)
    S = np.stack([sjlt_rows(n, s, seed=seed, blocks=blocks) for seed in range(draws)])
    mean = np.einsum("tis,tjs->ij", S, S) / draws
    # An element off the diagonal has variance at most 1 / s, each pair of signs being independent.
    assert abs(mean - np.eye(n)).max() < 5 / math.sqrt(draws * s)
    squares = ((np.einsum("tis,i->ts", S, x)) ** 2).sum(1)
    variance = 2 / s * (1 - (x**4).sum())
    assert abs(squares.mean() - 1) < 4 * math.sqrt(variance / draws)
    # The variance of a sample variance, by the squares' own fourth moment.
    spread = math.sqrt((((squares - squares.mean()) ** 2 - squares.var()) ** 2).mean() / draws)
    assert abs(squares.var() - variance) < 4 * spread


def test_places_and_signs_are_uniform() -> None:
    S = sjlt_rows(60_000, 50, seed=123)
    counts = (S != 0).sum(0)
    chi2 = ((counts - 1200) ** 2 / 1200).sum()
    assert 20 < chi2 < 95  # 49 degrees of freedom: 1e-4 on either side
    assert abs(S.sum()) < 4 * math.sqrt(60_000)
    assert abs(S[:-1].sum(1) @ S[1:].sum(1)) < 4 * math.sqrt(60_000)


def test_nan_stays_in_its_column_and_bucket() -> None:
    A = generator("nan").standard_normal((50, 6))
    clean = np.zeros((10, 6))
    sjlt(A, clean, seed=2, blocks=2)
    A[7, 3], A[9, 4] = np.nan, np.inf
    out = np.zeros((10, 6))
    sjlt(A, out, seed=2, blocks=2)
    S = sjlt_rows(50, 10, seed=2, blocks=2)
    touched = np.zeros((10, 6), bool)
    touched[:, 3], touched[:, 4] = S[7] != 0, S[9] != 0
    assert np.isnan(out[touched[:, 3], 3]).all()
    assert np.isinf(out[touched[:, 4], 4]).all()
    np.testing.assert_array_equal(out[~touched], clean[~touched])


def test_sjlt_takes_torch_and_strides_and_no_rows() -> None:
    torch = pytest.importorskip("torch")
    A = generator("layouts").standard_normal((40, 12))
    want = np.zeros((6, 6))
    sjlt(np.ascontiguousarray(A[:, ::2]), want, seed=1)
    out = np.zeros((6, 6))
    sjlt(A[:, ::2], out, seed=1)
    np.testing.assert_array_equal(out, want)
    tensor = torch.zeros(6, 6, dtype=torch.float64)
    version = tensor._version
    sjlt(torch.from_numpy(A)[:, ::2], tensor, seed=1)
    np.testing.assert_array_equal(tensor.numpy(), want)
    assert tensor._version > version
    sjlt(np.zeros((0, 6)), out, seed=1)
    sjlt(np.zeros((3, 0)), np.zeros((5, 0)), seed=1)
    np.testing.assert_array_equal(out, want)
    assert sjlt_rows(0, 5, seed=0).shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"A": np.zeros((3, 2), np.int64)}, TypeError, "argument 'A': got int64"),
        ({"A": np.zeros(2)}, ValueError, "argument 'A': got shape (2,), needs a matrix; use A[None] for one row"),
        ({"A": np.zeros((3, 3))}, ValueError, "argument 'out': got shape (4, 2), needs shape (s, 3)"),
        ({"out": np.zeros((4, 2), np.float32)}, TypeError, "argument 'out': got float32, needs float64"),
        ({"out": np.zeros((2, 4)).T}, ValueError, "argument 'out': got strides"),
        ({"out": np.broadcast_to(0.0, (4, 2))}, BufferError, "argument 'out': got a read-only array"),
        ({"out": np.zeros((0, 2))}, ValueError, "argument 'out': got shape (0, 2)"),
        ({"seed": -1}, ValueError, "argument 'seed': got -1, needs an integer in [0, 2^64)"),
        ({"seed": 0.5}, TypeError, "argument 'seed': got 0.5"),
        ({"first_row": -1}, ValueError, "argument 'first_row': got -1"),
        ({"first_row": 2**63 - 2}, ValueError, "needs an integer in [0, 2^63 - 3)"),
        ({"blocks": 3}, ValueError, "argument 'blocks': got 3, needs a divisor of 4"),
        ({"blocks": 0}, ValueError, "argument 'blocks': got 0"),
    ],
)
def test_sjlt_refuses(change: dict[str, Any], error: type[Exception], words: str) -> None:
    a: dict[str, Any] = {"A": np.ones((3, 2)), "out": np.zeros((4, 2)), "seed": 1} | change
    with pytest.raises(error) as caught:
        sjlt(**a)
    assert str(caught.value).startswith("sjlt: ")
    assert words in str(caught.value)
    assert not np.any(a["out"])


def test_sjlt_refuses_shared_memory_and_rows_a_wrong_out() -> None:
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="argument 'out': got memory shared with 'A'"):
        sjlt(x, x, seed=0)
    with pytest.raises(ValueError, match=r"sjlt_rows: argument 'out': got shape \(4, 2\), needs shape \(4, 3\)"):
        sjlt_rows(4, 3, seed=0, out=x)
    with pytest.raises(TypeError, match="sjlt_rows: argument 'out': got float32"):
        sjlt_rows(4, 2, seed=0, out=np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="sjlt_rows: argument 's'"):
        sjlt_rows(4, 0, seed=0)


# ---- eigh_update ----------------------------------------------------------------------------------------------------


def updated(d: Any, z: Any, rho: float) -> tuple[Any, Any]:
    values, V = np.array(d, np.float64), np.eye(len(d))
    eigh_update(values, V, np.array(z, np.float64), rho)
    return values, V


def check_update(d: Any, z: Any, rho: float) -> tuple[Any, Any]:
    """The documented bounds in longdouble, interlacing and trace; eigenvalues against LAPACK."""
    d, z = np.array(d, np.float64), np.array(z, np.float64)
    values, V = updated(d, z, rho)
    k, d, W = len(d), np.sort(d), V.astype(np.longdouble)
    A = np.diag(np.array(d, np.longdouble))
    order = np.argsort(np.array(d), kind="stable")
    A = A + np.longdouble(rho) * np.outer(z[order], z[order]).astype(np.longdouble)
    norm = float(max(abs(d).max(), abs(rho) * (z @ z)))
    bound = 4 * max(k, 4) * EPS
    assert (np.diff(values) >= 0).all()
    assert abs(W.T @ W - np.eye(k)).max() <= bound
    assert abs(A @ W - W * values).max() <= bound * norm
    assert abs(np.linalg.eigvalsh(A.astype(np.float64)) - values).max() <= 2 * bound * norm
    assert abs(math.fsum(values) - (math.fsum(d) + rho * math.fsum(z * z))) <= k * bound * norm
    low, high = (d, np.append(d[1:], np.inf)) if rho >= 0 else (np.append(-np.inf, d[:-1]), d)
    assert (values >= low - bound * norm).all()
    assert (values <= high + bound * norm).all()
    return values, V


KINDS = ("normal", "cluster", "equal", "zeros", "tiny", "graded", "same", "diagonal")


def hard(kind: str, k: int, rng: np.random.Generator) -> tuple[Any, Any]:
    d, z = rng.standard_normal((2, k))
    if kind == "cluster":
        d[k // 3 : k // 3 + 8] = d[k // 3] + 1e-9 * np.arange(len(d[k // 3 : k // 3 + 8]))
    elif kind == "equal":
        d = np.round(d)
    elif kind == "zeros":
        z[rng.random(k) < 0.5] = 0
    elif kind == "tiny":
        z *= 10.0 ** rng.uniform(-20, 0, k)
    elif kind == "graded":
        d = 10.0 ** rng.uniform(-18, 0, k)
    elif kind == "same":
        d[:] = 2.5
    elif kind == "diagonal":
        z[:] = 0
    return np.sort(d), z


@pytest.mark.parametrize("rho", [1.0, -1.0, 1e-3, -100.0, 1e9, -1e-13, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_eigh_update_of_hard_matrices(kind: str, rho: float) -> None:
    rng = generator(kind, rho)
    for k in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 40, 65):
        check_update(*hard(kind, k, rng), rho)


def test_eigh_update_of_the_largest() -> None:
    rng = generator("largest")
    check_update(np.sort(rng.standard_normal(512)), rng.standard_normal(512), 0.3)


def test_random_cases_of_every_scale() -> None:
    rng = generator("scales")
    for _ in range(400):
        k = int(rng.integers(1, 30))
        d, z = hard(str(rng.choice(KINDS)), k, rng)
        with np.errstate(under="ignore"):
            check_update(d * 10.0 ** rng.uniform(-8, 8), z * 10.0 ** rng.uniform(-4, 4), float(rng.normal()))


@pytest.mark.parametrize("power", [-600, 600])
def test_powers_of_two_scale_the_result_to_the_bit(power: int) -> None:
    d, z = hard("normal", 20, generator("power"))
    values, V = updated(d, z, 0.7)
    scaled, W = updated(np.ldexp(d, power), z, math.ldexp(0.7, power))
    assert (scaled.tobytes(), W.tobytes()) == (np.ldexp(values, power).tobytes(), V.tobytes())
    scaled, W = updated(d, np.ldexp(z, power // 2), math.ldexp(0.7, -power))
    assert (scaled.tobytes(), W.tobytes()) == (values.tobytes(), V.tobytes())


def test_secular_zeros_against_lapack() -> None:
    """dlasd4 gives the square roots of the eigenvalues of diag(d)^2 + rho z z^T."""
    rng = generator("dlasd4")
    for k in (3, 8, 25, 40):
        d, z = np.sort(rng.uniform(0.1, 3, k)), rng.standard_normal(k)
        z /= np.linalg.norm(z)
        values, _ = updated(d**2, z, 1.3)
        zeros = []
        for i in range(k):
            _, sigma, _, info = lapack.dlasd4(i, d, z, rho=1.3)
            assert info == 0
            zeros.append(sigma**2)
        np.testing.assert_allclose(values, zeros, rtol=2e-14)


def test_distances_from_the_nearer_pole_are_exact() -> None:
    """diag(0, g) + z z^T with tiny g: the smaller eigenvalue, g z_1^2 / |z|^2 to first order, to many digits."""
    for g in (1e-3, 1e-9):
        values, _ = updated([0.0, g], [3.0, 4.0], 1.0)
        trace, determinant = 25 + g, 9 * g
        small = 2 * determinant / (trace + math.sqrt(trace**2 - 4 * determinant))
        assert abs(values[0] - small) < 4 * EPS * g
        assert abs(values[1] - (trace - small)) < 4 * EPS * trace


def test_eigenvalues_in_any_order_and_rows_of_any_number() -> None:
    rng = generator("order")
    d, z, X = rng.standard_normal(12), rng.standard_normal(12), rng.standard_normal((31, 12))
    values, V = d.copy(), X.copy()
    eigh_update(values, V, z, -0.6)
    A = (X * d) @ X.T - 0.6 * np.outer(X @ z, X @ z)
    np.testing.assert_allclose((V * values) @ V.T, A, atol=1e-12 * abs(A).max())
    np.testing.assert_allclose(values, np.linalg.eigvalsh(np.diag(d) - 0.6 * np.outer(z, z)), atol=1e-13)
    empty, few = np.zeros((0, 12)), d.copy()
    eigh_update(few, empty, z, -0.6)
    assert few.tobytes() == values.tobytes()


def test_own_components_are_positive() -> None:
    """So a change that shrinks to nothing leaves the vectors as they were, with their signs."""
    d, z = hard("normal", 9, generator("signs"))
    _, V = updated(d, z, 1e-9)
    np.testing.assert_allclose(V, np.eye(9), atol=1e-6)
    for sign in (-1, 1):  # the first two are rotated
        _, V = updated([1.0, 1.0 + 4 * EPS, 2.0], [1e-3, sign, 1e-3], 1e-9)
        np.testing.assert_allclose(V, np.eye(3), atol=2e-3)


def test_a_rank_two_change_in_two_calls() -> None:
    rng = generator("two")
    d, (s, r), V = np.sort(rng.standard_normal(10)), rng.standard_normal((2, 10)), np.eye(10)
    A = np.diag(d) + np.outer(s, r) + np.outer(r, s)
    for x, rho in ((s + r, 0.5), (s - r, -0.5)):
        eigh_update(d, V, V.T @ x, rho)
    np.testing.assert_allclose((V * d) @ V.T, A, atol=1e-13)


def test_ten_thousand_updates_keep_the_vectors_orthogonal() -> None:
    """The drift is that of roundings added up: 3e-14 measured, of V and of the matrix."""
    rng = generator("drift")
    d, V, A = np.zeros(15), np.eye(15), np.zeros((15, 15))
    for i in range(10_000):
        x, rho = rng.standard_normal(15), 1.0 if i % 2 == 0 else -0.9
        A += rho * np.outer(x, x)
        eigh_update(d, V, V.T @ x, rho)
    assert abs(V.T @ V - np.eye(15)).max() < 2e-13
    assert abs((V * d) @ V.T - A).max() < 3e-13 * abs(A).max()


def test_nan_in_one_row_of_V_stays_there_and_elsewhere_fills_all() -> None:
    rng = generator("nan update")
    d, z, X = np.sort(rng.standard_normal(9)), rng.standard_normal(9), rng.standard_normal((6, 9))
    clean, dirty, values = X.copy(), X.copy(), d.copy()
    eigh_update(values, clean, z, 1.0)
    dirty[2, 4] = np.nan
    again = d.copy()
    eigh_update(again, dirty, z, 1.0)
    assert again.tobytes() == values.tobytes()
    assert np.isnan(dirty[2]).any()
    np.testing.assert_array_equal(np.delete(dirty, 2, 0), np.delete(clean, 2, 0))
    for bad in (np.nan, np.inf):
        for where in ("d", "z"):
            a = {"d": d.copy(), "V": X.copy(), "z": z.copy()}
            a[where][3] = bad
            eigh_update(**a)
            assert np.isnan(a["d"]).all()
            assert np.isnan(a["V"]).all()


def test_eigh_update_in_slices_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = generator("slices of V")
    d, z, X = rng.standard_normal(11), rng.standard_normal(11), rng.standard_normal((50, 11))
    values, V = d.copy(), X.copy()
    eigh_update(values, V, z, 2.0)
    monkeypatch.setattr(sketch, "_SLICE_PRODUCT", 7 * 121.0)
    eigh_update(d, X, z, 2.0)
    assert (d.tobytes(), X.tobytes()) == (values.tobytes(), V.tobytes())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"d": np.zeros(4)}, ValueError, "argument 'd': got shape (4,), needs shape (3,) like 'V'"),
        ({"z": np.zeros((3, 1))}, ValueError, "argument 'z': got shape (3, 1)"),
        ({"z": np.zeros(3, np.float32)}, TypeError, "argument 'z': got float32, needs float64"),
        ({"d": np.zeros(3, np.int64)}, TypeError, "argument 'd': got int64, needs float64"),
        ({"V": np.zeros((3, 2)).T}, ValueError, "argument 'V': got strides"),
        ({"V": np.zeros(3)}, ValueError, "argument 'V': got shape (3,), needs a matrix"),
        ({"V": np.zeros((3, 0)), "d": np.zeros(0)}, ValueError, "argument 'V': got shape (3, 0), needs 1 to 512"),
        ({"V": np.zeros((1, 513)), "d": np.zeros(513)}, ValueError, "1 to 512 columns; use numpy.linalg.eigh"),
        ({"rho": math.nan}, ValueError, "argument 'rho': got nan"),
        ({"rho": math.inf}, ValueError, "argument 'rho': got inf"),
        ({"rho": "1"}, TypeError, "argument 'rho'"),
    ],
)
def test_eigh_update_refuses(change: dict[str, Any], error: type[Exception], words: str) -> None:
    a: dict[str, Any] = {"d": np.zeros(3), "V": np.zeros((2, 3)), "z": np.ones(3), "rho": 1.0} | change
    with pytest.raises(error) as caught:
        eigh_update(**a)
    assert str(caught.value).startswith("eigh_update: ")
    assert words in str(caught.value)
    assert not np.any(a["d"])
    assert not np.any(a["V"])


def test_eigh_update_refuses_shared_and_read_only_memory() -> None:
    V = np.eye(3)
    with pytest.raises(ValueError, match="memory shared with"):
        eigh_update(V[0], V, np.ones(3))
    frozen = np.eye(3)
    frozen.flags.writeable = False
    with pytest.raises(BufferError, match="argument 'V': got a read-only array"):
        eigh_update(np.zeros(3), frozen, np.ones(3))


# ---- qr_update ------------------------------------------------------------------------------------------------------


def thin_qr(A: Any) -> tuple[Any, Any]:
    return tuple(np.ascontiguousarray(x) for x in np.linalg.qr(A))  # type: ignore[return-value]


def check_qr(A: Any, u: Any, v: Any) -> tuple[Any, Any]:
    Q, R = thin_qr(A)
    n = len(v)
    want = Q.astype(np.longdouble) @ R + np.outer(u.astype(np.longdouble), v)
    size = np.linalg.norm(R) + np.linalg.norm(u) * np.linalg.norm(v)
    before = abs(Q.T @ Q - np.eye(n)).max()
    qr_update(Q, R, u, v)
    wide = Q.astype(np.longdouble)
    assert abs(wide @ R - want).max() <= 8 * n * EPS * size
    assert abs(wide.T @ wide - np.eye(n)).max() <= before + 8 * n * EPS
    np.testing.assert_array_equal(np.tril(R, -1), 0)
    return Q, R


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 1), (3, 3), (17, 5), (16, 16), (100, 33), (65, 64)])
def test_qr_update_against_scipy(m: int, n: int) -> None:
    rng = generator("qr", m, n)
    for _ in range(10):
        A = rng.standard_normal((m, n))
        u, v = rng.standard_normal(m), rng.standard_normal(n)
        R = check_qr(A, u, v)[1]
        theirs = scipy_qr_update(*thin_qr(A), u, v)[1][:n]
        assert (np.diag(R) > 0).all()
        condition = np.linalg.cond(A + np.outer(u, v))
        assert abs(R - np.sign(np.diag(theirs))[:, None] * theirs).max() <= 50 * n * EPS * condition * np.linalg.norm(R)


def test_qr_update_where_u_lies_in_the_columns() -> None:
    rng = generator("inside")
    for m, n in ((30, 7), (7, 7)):
        A = rng.standard_normal((m, n))
        check_qr(A, A @ rng.standard_normal(n), rng.standard_normal(n))
        check_qr(A, A[:, 0] + 1e-13 * rng.standard_normal(m), rng.standard_normal(n))
        unit = np.zeros(n)
        unit[2] = 1
        Q, R = check_qr(A, -A[:, 2], unit)  # a column that vanishes
        np.testing.assert_allclose((Q @ R)[:, 2], 0, atol=1e-14)
        check_qr(A, np.zeros(m), unit)


@pytest.mark.parametrize("power", [-500, 500])
def test_qr_update_of_any_scale(power: int) -> None:
    rng = generator("qr scale")
    A, u, v = rng.standard_normal((20, 6)), rng.standard_normal(20), rng.standard_normal(6)
    Q, R = thin_qr(A)
    P, S = Q.copy(), R.copy()
    qr_update(Q, R, u, v)
    qr_update(P, S, np.ldexp(u, power), np.ldexp(v, -power))
    assert (P.tobytes(), S.tobytes()) == (Q.tobytes(), R.tobytes())


def test_ten_thousand_qr_updates() -> None:
    rng = generator("qr drift")
    A = rng.standard_normal((60, 20))
    Q, R = thin_qr(A)
    for _ in range(10_000):
        u, v = 0.1 * rng.standard_normal(60), rng.standard_normal(20)
        A += np.outer(u, v)
        qr_update(Q, R, u, v)
    assert abs(Q.T @ Q - np.eye(20)).max() < 2e-13
    assert abs(Q @ R - A).max() < 2e-13 * abs(A).max()


def test_what_is_below_the_diagonal_of_R_is_not_read() -> None:
    rng = generator("triangle")
    Q, R = thin_qr(rng.standard_normal((12, 5)))
    u, v = rng.standard_normal(12), rng.standard_normal(5)
    P, S = Q.copy(), R + np.tril(np.full((5, 5), np.nan), -1)
    qr_update(Q, R, u, v)
    qr_update(P, S, u, v)
    assert P.tobytes() == Q.tobytes()
    np.testing.assert_array_equal(np.triu(S), np.triu(R))


@pytest.mark.parametrize("where", ["Q", "R", "u", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_fills_the_factorisation(where: str, bad: float) -> None:
    rng = generator("qr nan")
    a = dict(zip("QR", thin_qr(rng.standard_normal((9, 4))), strict=True))
    a |= {"u": rng.standard_normal(9), "v": rng.standard_normal(4)}
    a[where].flat[2] = bad
    qr_update(**a)
    assert np.isnan(a["Q"]).all()
    assert np.isnan(a["R"][np.triu_indices(4)]).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"Q": np.zeros((2, 3))}, ValueError, "argument 'Q': got shape (2, 3), needs shape (m, n) with m >= n >= 1"),
        ({"Q": np.zeros((5, 3))}, ValueError, "argument 'R': got shape (2, 2), needs shape (3, 3)"),
        ({"Q": np.zeros((4, 2), np.float32)}, TypeError, "argument 'Q': got float32, needs float64"),
        ({"Q": np.zeros((2, 4)).T}, ValueError, "argument 'Q': got strides"),
        ({"R": np.zeros((2, 2), order="F")}, ValueError, "argument 'R': got strides"),
        ({"u": np.zeros(3)}, ValueError, "argument 'u': got shape (3,), needs shape (4,) like 'Q'"),
        ({"v": np.zeros((2, 1))}, ValueError, "argument 'v': got shape (2, 1)"),
        ({"u": [0.0] * 4}, TypeError, "argument 'u': got list"),
    ],
)
def test_qr_update_refuses(change: dict[str, Any], error: type[Exception], words: str) -> None:
    a: dict[str, Any] = {"Q": np.zeros((4, 2)), "R": np.zeros((2, 2)), "u": np.ones(4), "v": np.ones(2)} | change
    with pytest.raises(error) as caught:
        qr_update(**a)
    assert str(caught.value).startswith("qr_update: ")
    assert words in str(caught.value)
    assert not np.any(a["Q"])
    assert not np.any(a["R"])
