"""The feature maps of FORKS, SkeGD and NOGD in float64 against dense formulas written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="curvk.online needs scikit-learn")
from curvk import _store
from curvk.kernels import sketch
from curvk.online._nystrom import Nystrom, PublishedNystrom, SketchedNystrom, sample_landmarks, update_factor

GAUSSIAN: dict[str, Any] = {"kernel": "gaussian", "bandwidth": 1.5}
D = 3


def K(A: Any, B: Any, bandwidth: float = 1.5) -> Any:
    return np.exp(-((A[:, None] - B[None]) ** 2).sum(axis=2) / (2 * bandwidth**2))


def points(seed: int, n: int) -> Any:
    return np.random.default_rng(seed).standard_normal((n, D))


def close(a: Any, b: Any, tolerance: float) -> bool:
    assert np.shape(a) == np.shape(b)
    return bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


def begun(cls: type[SketchedNystrom], X: Any, B: int, seed: int = 0, **settings: Any) -> Any:
    """A map after its fill with the first B rows."""
    made = cls(D, GAUSSIAN, seed=seed, **settings)
    made.initialise(X[:B], points(seed + 100, B)[:, :2], X[B])
    return made


def dense(feature_map: SketchedNystrom, X: Any, held: list[int], B: int) -> tuple[Any, Any]:
    """Phi_pp and Phi_pm of these rows of X by their definition; row i of the stream has row i of the sketch."""
    S = sketch.sjlt_rows(len(X), feature_map.sketch_size, seed=feature_map.seed, blocks=feature_map.blocks)[held]
    m = sample_landmarks(feature_map.sampled, B, feature_map.seed)
    return S.T @ K(X[held], X[held]) @ S, S.T @ K(X[held], X[m])


SMALL = {"sketch_size": 12, "landmarks": 9, "k": 12}


# ---- refreshes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("blocks", "memory"), [(1, None), (3, None), (1, 24)])
def test_sketches_are_those_of_all_rows_held(full: bool, blocks: int, memory: int | None) -> None:
    """O1, and that evicting a row leaves nothing of it."""
    X, B, refreshes = points(0, 40), 20, 2 if memory is None else 11
    made = begun(SketchedNystrom, X, B, full=full, blocks=blocks, memory=memory, **SMALL)
    for x in X[B : B + refreshes]:
        made.refresh(x)
    total = B + refreshes
    held = list(range(max(0, total - (memory or 2 * B)), total))
    Phi_pp, Phi_pm = dense(made, X, held, B)
    assert close((made._V * made._lam) @ made._V.T, Phi_pp, 1e-13)
    assert close(made._Phi_pm, Phi_pm, 1e-13)
    if full:
        assert close(made._Phi_pp, Phi_pp, 1e-13)


def test_the_published_sketches_miss_cross_terms() -> None:
    X, B = points(1, 40), 20
    made = begun(PublishedNystrom, X, B, **SMALL)
    Phi_pp, Phi_pm = dense(made, X, list(range(B)), B)
    assert close((made._U * made._lam) @ made._V.T, Phi_pp, 1e-13)
    for x in X[B : B + 2]:
        made.refresh(x)
    true_pp, true_pm = dense(made, X, list(range(B + 2)), B)
    S = sketch.sjlt_rows(B + 2, 12, seed=0)
    for x, s in zip(X[B : B + 2], S[B:], strict=True):
        r, c = S[:B].T @ K(X[:B], x[None])[:, 0], K(X[sample_landmarks(9, B, 0)], x[None])[:, 0]
        Phi_pp += np.outer(s, r) + np.outer(r, s) + np.outer(s, s)
        Phi_pm += np.outer(s, c)
    found = (made._U * made._lam) @ made._V.T  # no rank is cut: the truncated update is exact (O3)
    assert close(found, Phi_pp, 1e-13)
    assert close(made._Phi_pm, Phi_pm, 1e-13)
    assert not close(found, true_pp, 1e-3)
    assert close(made._Phi_pm, true_pm, 1e-13)  # the landmarks have no cross terms to miss


@pytest.mark.parametrize("seed", range(5))
def test_the_factor_is_the_full_decomposition_where_no_rank_is_cut(seed: int) -> None:
    """O2 and O3."""
    rng = np.random.default_rng(seed)
    V, lam = np.linalg.qr(rng.standard_normal((15, 4)))[0], np.sort(rng.uniform(0.5, 2.0, 4))[::-1]
    s, xi = rng.standard_normal(15), 1.3
    r = V @ (V.T @ s) if seed == 0 else rng.standard_normal(15)  # seed 0: one direction only is new
    added = np.outer(s, r) + np.outer(r, s) + xi * np.outer(s, s)
    u = xi * s + r
    assert close((np.outer(u, u) - np.outer(r, r)) / xi, added, 1e-14)
    M = np.array([[xi, 1.0], [1.0, 0.0]])
    values, vectors = np.linalg.eigh((V * lam) @ V.T + added)
    positive = values > 1e-10
    new_V, new_lam = update_factor(V, lam, np.stack([s, r], axis=1), M, 6)
    assert close(new_V.T @ new_V, np.eye(len(new_lam)), 1e-14)
    assert close(new_lam[: positive.sum()], values[positive][::-1], 1e-13)
    assert (np.abs(new_lam[positive.sum() :]) < 1e-13).all()
    top = vectors[:, positive]
    assert close((new_V * new_lam) @ new_V.T, (top * values[positive]) @ top.T, 1e-13)


def test_columns_in_the_span_add_no_directions() -> None:
    rng = np.random.default_rng(7)
    V, lam = np.linalg.qr(rng.standard_normal((30, 5)))[0], np.linspace(2.0, 1.0, 5)
    W = V @ rng.standard_normal((5, 2))
    M = np.array([[1.0, 1.0], [1.0, 0.0]])
    exact = np.linalg.eigvalsh((V * lam) @ V.T + W @ M @ W.T)[::-1]
    found_V, found = update_factor(V, lam, W, M, 5)
    assert found_V.shape == (30, 5)
    assert close(found, np.maximum(exact[:5], 0), 1e-13)
    assert close(found_V.T @ found_V, np.eye(5), 1e-14)


def test_the_factor_stays_orthonormal_over_many_refreshes() -> None:
    """And becomes so again: what a long stream would do to V is done here at once."""
    X = points(2, 440)
    made = begun(SketchedNystrom, X, 40, sketch_size=30, landmarks=20, k=8, memory=60)
    for x in X[40:440]:
        made.refresh(x)
    assert close(made._V.T @ made._V, np.eye(8), 1e-13)
    assert (np.diff(made._lam) <= 0).all()
    assert made._lam[-1] >= 0
    made._V += 1e-7 * points(3, 80).reshape(30, 8)
    for x in X[:64]:
        made.refresh(x)
    assert close(made._V.T @ made._V, np.eye(8), 1e-13)


def test_the_published_kernel_estimate_turns_indefinite_and_this_one_does_not() -> None:
    """Spec 9.5: after 20 published refreshes Phi_pp has eigenvalues far below 0."""
    below, ours = [], []
    for seed in range(10):
        X = points(seed, 60)
        made = {
            cls: begun(cls, X, 40, seed, sketch_size=30, landmarks=20, k=30)
            for cls in (SketchedNystrom, PublishedNystrom)
        }
        exact = begun(SketchedNystrom, X, 40, seed, sketch_size=30, landmarks=20, k=30, full=True)
        for x in X[40:]:
            for feature_map in (*made.values(), exact):
                feature_map.refresh(x)
        published = made[PublishedNystrom]
        estimate = (published._U * published._lam) @ published._V.T
        values = np.linalg.eigvalsh((estimate + estimate.T) / 2)
        below.append(values[0] / values[-1])
        values = np.linalg.eigvalsh(exact._Phi_pp)
        ours.append(values[0] / values[-1])
        assert (made[SketchedNystrom]._lam >= 0).all()
        assert made[SketchedNystrom]._lam[-1] < 0.1 * values[-1]
    assert max(below) < -0.02
    assert np.median(below) < -0.1
    assert min(ours) > -1e-14


# ---- functions ------------------------------------------------------------------------------------------------------


def test_without_sketching_the_features_are_nystroms() -> None:
    """O5: S_p = I, S_m = I, k = B."""
    X, B = points(3, 80), 25
    rows, others = X[:B], X[B:]
    made = SketchedNystrom(D, GAUSSIAN, sketch_size=B, landmarks=B, k=B, rcond=1e-13)
    made._begin(rows, np.eye(B), np.arange(B))
    nogd = Nystrom(D, GAUSSIAN, k=B, rcond=1e-13)
    nogd.initialise(rows, np.zeros((B, 1)))
    lam, U = np.linalg.eigh(K(rows, rows))
    exact = K(others, rows) @ (U / np.sqrt(lam))[:, ::-1]
    for feature_map in (made, nogd):
        signs = np.sign((exact * feature_map.features(others)).sum(axis=0))  # an eigenvector's sign is free
        assert close(feature_map.features(others) * signs, exact, 1e-9)  # / sqrt(lam), down to 1e-7 of the largest
        assert close(feature_map.features(rows) @ feature_map.features(rows).T, K(rows, rows), 1e-12)


@pytest.mark.parametrize("k", [5, 25])
def test_nogds_first_weights_are_least_squares_of_the_coefficients(k: int) -> None:
    """The weights w = lstsq(M', a) with M = lam^(-1/2) U', for the k largest eigenvalues."""
    rows, a = points(4, 25), points(5, 25)[:, :2]
    lam, U = np.linalg.eigh(K(rows, rows))
    M = (U / np.sqrt(lam))[:, ::-1][:, :k].T
    w = np.linalg.lstsq(M.T, a, None)[0]
    made = Nystrom(D, GAUSSIAN, k=k, rcond=1e-13)
    W = made.initialise(rows, a)
    X = points(6, 50)
    assert W.shape == (2, k)
    assert made.n_support == 25
    assert made.every is None
    assert close(made.features(X) @ W.T, K(X, rows) @ M.T @ w, 1e-9)


def test_an_eigenvalue_below_the_tolerance_gives_no_feature() -> None:
    rows = np.concatenate([points(8, 6), points(8, 6)])  # rank 6
    made = Nystrom(D, GAUSSIAN, k=9)
    W = made.initialise(rows, np.ones((12, 1)))
    Phi = made.features(rows)
    assert (Phi[:, 6:] == 0).all()
    assert close(Phi @ Phi.T, K(rows, rows), 1e-9)
    assert close(Phi @ W.T, K(rows, rows) @ np.ones((12, 1)), 1e-9)


def test_the_first_weights_are_the_best_fit_of_the_old_function() -> None:
    X, B = points(9, 60), 50
    made = SketchedNystrom(D, GAUSSIAN, sketch_size=40, landmarks=30, k=10)
    a = points(10, B)[:, :2]
    W = made.initialise(X[:B], a)
    Phi, values = made.features(X[:B]), K(X[:B], X[:B]) @ a
    exact = Phi @ np.linalg.pinv(Phi) @ values
    assert W.shape == (2, 10)
    assert close(Phi @ W.T, exact, 1e-9)
    assert made.n_support == 30


def test_the_published_weights_match_the_old_function_at_one_row() -> None:
    X, B, a = points(9, 60), 50, points(10, 50)[:, :1]
    made = PublishedNystrom(D, GAUSSIAN, sketch_size=40, landmarks=30, k=10)
    W = made.initialise(X[:B], a, X[B])
    phi = made.features(X[B : B + 1])
    assert close(phi @ W.T, K(X[B : B + 1], X[:B]) @ a, 1e-12)
    assert close(W / W[0, 0], phi / phi[0, 0], 1e-12)
    Phi_pp, Phi_pm = dense(made, X, list(range(B)), B)
    _, values, Vt = np.linalg.svd(Phi_pp)
    exact = K(X, X[sample_landmarks(30, B, 0)]) @ np.linalg.pinv(Phi_pm, 1e-12) @ (Vt[:10].T * np.sqrt(values[:10]))
    assert close(np.abs(made.features(X)), np.abs(exact), 1e-6)  # the pseudo-inverse is badly conditioned
    assert made.refresh(X[B]) is None


@pytest.mark.parametrize("full", [False, True])
def test_the_transfer_keeps_the_function_on_the_landmarks(full: bool) -> None:
    X, w = points(11, 80), points(12, 20)[:, :1]
    made = begun(SketchedNystrom, X, 60, sketch_size=45, landmarks=20, k=20, full=full, rcond=1e-13)
    landmarks = made._landmarks.array
    for x in X[60:63]:  # as many features as landmarks: to rounding
        before = made.features(landmarks) @ w
        w = made.refresh(x) @ w
        assert close(made.features(landmarks) @ w, before, 1e-7)
    w = w[:6]
    made = begun(SketchedNystrom, X, 60, sketch_size=45, landmarks=20, k=6, full=full)
    before = made.features(landmarks) @ w
    T = made.refresh(X[60])
    Phi = made.features(landmarks)
    assert close(Phi @ (T @ w), Phi @ np.linalg.pinv(Phi) @ before, 1e-10)  # fewer: the best fit
    assert np.linalg.norm(Phi @ (T @ w) - before) < 0.2 * np.linalg.norm(before)


@pytest.mark.parametrize("cls", [SketchedNystrom, Nystrom])
def test_another_bandwidth(cls: Any) -> None:
    """The map is the one that would have been made with it, and T keeps the function as near as can be."""
    X, a = points(13, 45), points(14, 40)[:, :1]
    settings = {} if cls is Nystrom else {"sketch_size": 30, "landmarks": 20}
    made, other = cls(D, GAUSSIAN, k=6, **settings), cls(D, GAUSSIAN | {"bandwidth": 1.8}, k=6, **settings)
    assert made.set_kernel(GAUSSIAN | {"bandwidth": 1.7}) is None
    assert made.set_kernel(GAUSSIAN) is None
    W = made.initialise(X[:40], a)
    other.initialise(X[:40], a)
    landmarks = made._landmarks.array
    before = made.features(landmarks) @ W.T
    T = made.set_kernel(GAUSSIAN | {"bandwidth": 1.8})
    np.testing.assert_array_equal(made.features(X), other.features(X))
    Phi = made.features(landmarks)
    assert close(Phi @ T @ W.T, Phi @ np.linalg.pinv(Phi) @ before, 1e-9)


def test_approximation_errors() -> None:
    """O11: 40 landmarks of 400 points: a small sketch is worse than plain Nystrom, one of 3 s_m and more is better."""
    errors = np.zeros(5)
    for seed in range(4):
        X = points(seed, 400)
        Kx = K(X, X)
        m = sample_landmarks(40, 400, seed)
        nystrom = Nystrom(D, GAUSSIAN, k=40, rcond=1e-12)
        nystrom.initialise(X[m], np.zeros((40, 1)))
        C = K(X, X[m])
        Q = np.linalg.qr(C)[0]
        estimates = [Q @ (Q.T @ Kx @ Q) @ Q.T, nystrom.features(X) @ nystrom.features(X).T]
        for s in (60, 120, 240):
            made = SketchedNystrom(D, GAUSSIAN, sketch_size=s, landmarks=40, k=40, seed=seed, rcond=1e-12)
            made.initialise(X, np.zeros((400, 1)))
            estimates.append(made.features(X) @ made.features(X).T)
        errors += [np.linalg.norm(estimate - Kx) / np.linalg.norm(Kx) / 4 for estimate in estimates]
    optimal, plain, s60, s120, s240 = errors
    assert optimal < s240 < s120 < s60
    assert optimal < plain
    assert s60 > plain > s240
    assert s240 < 1.2 * optimal


@pytest.mark.parametrize("rows", ["equal", "zero"])
@pytest.mark.parametrize("cls", [Nystrom, SketchedNystrom, PublishedNystrom])
def test_rows_without_variety(cls: Any, rows: str) -> None:
    """Rank 1, and rank 0 for the linear kernel."""
    X, kernel = (np.ones((30, D)), GAUSSIAN) if rows == "equal" else (np.zeros((30, D)), {"kernel": "linear"})
    settings = {} if cls is Nystrom else {"sketch_size": 15, "landmarks": 10}
    made = cls(D, kernel, k=5, **settings)
    a = np.full((20, 1), 0.1)
    W = made.initialise(X[:20], a, X[20])
    Phi = made.features(X)
    exact = 2.0 if rows == "equal" else 0.0
    assert np.abs(Phi @ W.T - exact).max() < 1e-9
    assert np.abs(Phi @ Phi.T - exact / 2).max() < (0.2 if cls is PublishedNystrom else 1e-9)
    for _ in range(3 if cls is not Nystrom else 0):
        T = made.refresh(X[0])
        assert T is None or np.abs(made.features(X) @ T @ W.T - exact).max() < 1e-9
        W = W if T is None else W @ T.T


# ---- determinism ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_a_common_permutation_changes_nothing(full: bool) -> None:
    """O10."""
    X, B = points(15, 60), 40
    rng = np.random.default_rng(16)
    S, m, p = sketch.sjlt_rows(B, 30, seed=3), sample_landmarks(20, B, 3), rng.permutation(B)
    place = np.argsort(p)
    grams, values, a = [], [], points(17, B)[:, :1]
    for rows, sketches, sampled, coef in ((X[:B], S, m, a), (X[:B][p], S[p], place[m][rng.permutation(20)], a[p])):
        made = SketchedNystrom(D, GAUSSIAN, sketch_size=30, landmarks=20, k=8, seed=3, full=full)
        made._begin(rows, sketches, sampled)
        W = made._weights(rows, made._rows, coef)
        T = made.refresh(X[B])
        Phi = made.features(X)
        grams.append(Phi @ Phi.T)
        values.append(Phi @ T @ W.T)
    assert close(grams[1], grams[0], 1e-9)
    assert close(values[1], values[0], 1e-9)


def test_the_bits_do_not_depend_on_the_threads_of_blas() -> None:
    """At these sizes those of OpenBLAS's eigenvectors do."""
    from threadpoolctl import threadpool_limits

    X, results = points(20, 210), []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            made = SketchedNystrom(D, GAUSSIAN, full=True)
            W = made.initialise(X[:200], X[:200, :1].copy())
            results.append((W, made.refresh(X[200]), made.features(X)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def run(cls: Any, settings: dict[str, Any], threads: int = 1) -> list[Any]:
    X = points(18, 70)
    with curvk.threads(threads):
        made = cls(D, GAUSSIAN, k=8, **settings)
        out = [made.initialise(X[:40], X[:40, :1].copy(), X[40])]
        for x in X[40:45] if cls is not Nystrom else []:
            T = made.refresh(x)
            out += [] if T is None else [T]
        return [*out, made.features(X)]


MAPS = [
    (Nystrom, {}),
    (SketchedNystrom, {"sketch_size": 30, "landmarks": 20}),
    (SketchedNystrom, {"sketch_size": 30, "landmarks": 20, "full": True, "memory": 43}),
    (PublishedNystrom, {"sketch_size": 30, "landmarks": 20}),
]


@pytest.mark.parametrize(("cls", "settings"), MAPS)
def test_the_bits_are_a_function_of_seed_and_rows(cls: Any, settings: dict[str, Any]) -> None:
    first = run(cls, settings)
    for threads in (1, 2, 7):
        for a, b in zip(first, run(cls, settings, threads), strict=True):
            np.testing.assert_array_equal(a, b)
    if cls is not Nystrom:
        assert not np.array_equal(first[-1], run(cls, settings | {"seed": 1})[-1])


@pytest.mark.parametrize(("cls", "settings"), MAPS)
def test_a_rows_features_do_not_depend_on_the_others(cls: Any, settings: dict[str, Any]) -> None:
    X = points(18, 300)
    made = cls(D, GAUSSIAN, k=8, **settings)
    made.initialise(X[:40], X[:40, :1].copy(), X[40])
    whole, out = made.features(X), np.empty((300, 8))
    assert made.features(X, out) is out
    np.testing.assert_array_equal(out, whole)
    for i in (0, 7, 299):
        np.testing.assert_array_equal(made.features(X[i : i + 1]), whole[i : i + 1])


@pytest.mark.parametrize(("cls", "settings"), MAPS)
def test_states_resume_bit_for_bit(cls: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    X = points(19, 80)
    made, other = cls(D, GAUSSIAN, k=8, **settings), cls(D, GAUSSIAN | {"bandwidth": 9.0}, k=8, **settings)
    _store.write(tmp_path / "empty", made.state())
    other.load_state(_store.read(tmp_path / "empty", "test"))
    assert not other.ready
    assert other.kernel == GAUSSIAN
    made.initialise(X[:40], X[:40, :1].copy(), X[40])
    rows = X[40:45] if cls is not Nystrom else X[:0]
    for x in rows:
        made.refresh(x)
    state = made.state()
    _store.write(tmp_path / "state", state)
    other.load_state(_store.read(tmp_path / "state", "test"))
    assert other.ready
    for x in X[45:48] if cls is not Nystrom else X[:0]:
        a, b = made.refresh(x), other.refresh(x)
        assert (a is None and b is None) or np.array_equal(a, b)
    np.testing.assert_array_equal(made.features(X), other.features(X))
    third = cls(D, GAUSSIAN, k=8, **settings)
    third.load_state(state)  # refreshes did not write to it
    for x in X[45:48] if cls is not Nystrom else X[:0]:
        third.refresh(x)
    np.testing.assert_array_equal(made.features(X), third.features(X))


# ---- sketch rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 4])
def test_sketch_rows_have_the_moments_of_the_transform(blocks: int) -> None:
    """O7: E S S' = I and Var |S'x|^2 = (2 / s)(|x|_2^4 - |x|_4^4), whatever the number of blocks."""
    n, s, draws = 6, 16, 20_000
    S = sketch.sjlt_rows(n * draws, s, seed=5, blocks=blocks).reshape(draws, n, s)
    assert ((S != 0).sum(axis=2) == blocks).all()
    assert np.allclose(np.abs(S[S != 0]), blocks**-0.5, atol=0, rtol=1e-15)
    mean = np.einsum("rns,rms->nm", S, S) / draws
    assert np.abs(mean - np.eye(n)).max() < 5 / np.sqrt(s * draws)
    x = np.linspace(0.2, 1.0, n)
    x /= np.linalg.norm(x)
    squares = ((x @ S) ** 2).sum(axis=1)
    variance = 2 / s * (1 - (x**4).sum())
    assert abs(squares.mean() - 1) < 5 * np.sqrt(variance / draws)
    assert abs(squares.var() / variance - 1) < 0.08
    np.testing.assert_array_equal(sketch.sjlt_rows(3, s, seed=5, first_row=7, blocks=blocks), S.reshape(-1, s)[7:10])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("h", [0.05, 0.3, 1.0, 8.0])
def test_features_are_hardly_longer_than_the_kernel_allows(h: float, full: bool) -> None:
    """The sketched least squares alone gives features of length 1e6 where the kernel is narrow and s_p is near s_m."""
    rng = np.random.default_rng(2)
    rows, others = rng.standard_normal((200, 6)), rng.standard_normal((500, 6))
    feature_map = SketchedNystrom(6, {"kernel": "gaussian", "bandwidth": h}, k=20, full=full, seed=1)
    feature_map.initialise(rows, rng.standard_normal((200, 1)))
    for x in others[:5]:
        feature_map.refresh(x)
        for X in (rows, others):
            assert np.square(feature_map.features(X)).sum(axis=1).max() < 4 + 1e-8
