"""curvk.sketch: Frequent Directions and its robust form, and what every sketch does with rows, states and files."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from curvk import _store
from curvk.sketch import (
    SJLT,
    CountSketch,
    FrequentDirections,
    IncrementalSVD,
    RobustFrequentDirections,
    _directions,
    _svd,
)
from hypothesis import given, settings
from hypothesis import strategies as st

EPS = np.finfo(np.float64).eps
D = 12

# Of each class, with an array of everything that can be read of it.
MAKE = {
    "fd": lambda: FrequentDirections(4, D),
    "rfd": lambda: RobustFrequentDirections(4, D),
    "svd": lambda: IncrementalSVD(4, D),
    "svd fd": lambda: IncrementalSVD(4, D, method="fd", block=3),
    "svd U": lambda: IncrementalSVD(4, D, block=1, keep_U=True),
    "count": lambda: CountSketch(6, D, seed=3),
    "sjlt": lambda: SJLT(8, D, blocks=4, seed=3),
}
ALL = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def reading(sketch):
    """All that can be read of a sketch, as one array."""
    names = [n for n in ("sketch", "delta", "alpha", "s", "Vt", "rows_seen") if hasattr(sketch, n)]
    names += ["U"] if getattr(sketch, "keep_U", False) else []
    return np.concatenate([np.ravel(np.asarray(getattr(sketch, n), np.float64)) for n in names])


def decaying(n, d, seed, power=1.0):
    """Normal rows whose columns get smaller, mixed by a rotation."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return rng.standard_normal((n, d)) / np.arange(1, d + 1) ** power @ turn


def spectrum(A, B, ridge=0.0):
    """Eigenvalues of A'A - B'B - ridge I."""
    return np.linalg.eigvalsh(A.T @ A - B.T @ B - ridge * np.eye(A.shape[1]))


def tails(A, l):  # noqa: E741
    """min_k sum_{i > k} sigma_i^2 / (l + 1 - k) over k <= l."""
    squares = np.linalg.svd(A, compute_uv=False) ** 2
    return min(squares[k:].sum() / (l + 1 - k) for k in range(l + 1))


def slack(A):
    return 64 * EPS * np.sum(np.square(A, dtype=np.float64))


def take(sketch, A, cuts=()):
    for rows in np.split(A, cuts):
        sketch.update(rows)
    return sketch


# ---- the guarantees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    ("n", "d", "l"), [(400, 30, 8), (399, 30, 8), (17, 30, 8), (100, 5, 8), (300, 40, 1), (200, 64, 32), (90, 7, 7)]
)
def test_guarantees(n, d, l, power):  # noqa: E741
    A = decaying(n, d, 1, power)
    fd = take(FrequentDirections(l, d), A, [n // 3])
    assert fd.sketch.shape[0] <= l
    assert fd.rows_seen == n
    values = spectrum(A, fd.sketch)
    assert values[0] >= -slack(A)
    assert values[-1] <= fd.delta + slack(A)
    assert fd.delta <= tails(A, l) + slack(A)
    if d <= l:
        assert fd.delta == 0


def test_delta_is_what_the_squared_norm_lost():
    """Each shrink takes delta from l rows, and all of the (l + 1)-th: sum delta <= (|A|^2 - |B|^2) / (l + 1)."""
    A = decaying(500, 20, 2)
    fd = take(FrequentDirections(6, 20), A)
    assert fd.delta * 7 <= np.sum(A**2) - np.sum(fd.sketch**2) + slack(A)


def test_equals_a_plain_loop_with_a_full_svd():
    """Liberty's algorithm with a buffer of 2 l rows, as the paper writes it."""
    l, d, A = 5, 16, decaying(203, 16, 3)  # noqa: E741
    B, filled, delta = np.zeros((2 * l, d)), 0, 0.0

    def shrink(B):
        _, s, Vt = np.linalg.svd(B, full_matrices=False)
        return np.sqrt(np.maximum(s**2 - s[l] ** 2, 0))[:, None] * Vt, s[l] ** 2

    for row in A:
        if filled == 2 * l:
            B, lost = shrink(B)
            delta, filled = delta + lost, l
        B[filled] = row
        filled += 1
    B, lost = shrink(B)
    fd = take(FrequentDirections(l, d), A)
    np.testing.assert_allclose(fd.sketch.T @ fd.sketch, B.T @ B, rtol=0, atol=1e-11 * np.sum(A**2))
    assert fd.delta == pytest.approx(delta + lost, rel=1e-10)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_robust_form_halves_the_bound(power):
    A = decaying(300, 25, 4, power)
    rfd = take(RobustFrequentDirections(6, 25), A)
    fd = take(FrequentDirections(6, 25), A)
    assert np.array_equal(rfd.sketch, fd.sketch)
    assert rfd.alpha == fd.delta / 2
    error, plain = np.abs(spectrum(A, rfd.sketch, rfd.alpha)).max(), spectrum(A, fd.sketch)[-1]
    assert error <= fd.delta / 2 + slack(A)
    assert error < 0.6 * plain  # d > l: what was lost altogether halves as well


def test_lost_direction():
    """Small parts of one direction, each dropped by a greedy rank 1, add up: 10 of A'A's 11 are there."""
    rows = np.array([[1.0, 0.0], *[[0.0, 0.5]] * 40])
    brand = take(IncrementalSVD(1, 2, block=1), rows)
    np.testing.assert_allclose(np.abs(brand.sketch), [[1.0, 0.0]], atol=1e-15)
    assert brand.delta == pytest.approx(10.0)  # it knows
    for fd in (FrequentDirections(1, 2), IncrementalSVD(1, 2, block=1, method="fd")):
        take(fd, rows)
        np.testing.assert_allclose(np.abs(fd.sketch[0]) / np.linalg.norm(fd.sketch), [0.0, 1.0], atol=1e-7)
        assert fd.delta <= 1.0 + 1e-12  # the best rank 1 leaves out 1
        assert np.sum(fd.sketch**2) >= 10 - fd.delta - 1e-12


# ---- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(100, 57, 200), (3, 2, 4), (0, 30, 0), (16, 16, 16)])
def test_merging_keeps_the_bounds(counts):
    A = decaying(sum(counts), 20, 5, 0.7)
    parts = [take(FrequentDirections(6, 20), rows) for rows in np.split(A, np.cumsum(counts)[:-1])]
    before = [reading(part) for part in parts[1:]]
    for part in parts[1:]:
        parts[0].merge(part)
    fd = parts[0]
    assert fd.rows_seen == len(A)
    assert all(np.array_equal(b, reading(p)) for b, p in zip(before, parts[1:], strict=True))
    values = spectrum(A, fd.sketch)
    assert values[0] >= -slack(A)
    assert values[-1] <= fd.delta + slack(A)
    assert fd.delta <= tails(A, 6) + slack(A)


@pytest.mark.parametrize("name", ["fd", "svd", "svd fd"])
def test_merging_with_itself_is_seeing_all_twice(name):
    A = decaying(57, D, 6)
    sketch = take(MAKE[name](), A)
    sketch.merge(sketch)
    twice = np.vstack([A, A])
    room = 16 * sum(twice.shape) * EPS * np.sum(twice**2)  # a decomposition's rounding in each update
    values = spectrum(twice, sketch.sketch)
    assert sketch.rows_seen == len(twice)
    assert values[0] >= -room
    assert values[-1] <= sketch.delta + room


@ALL
def test_merging_refuses_others(make):
    sketch = take(make(), decaying(9, D, 7))
    before = reading(sketch)
    with pytest.raises(TypeError, match=r"merge: argument 'other': got ndarray, needs another"):
        sketch.merge(np.zeros((2, D)))
    with pytest.raises(TypeError, match="merge: argument 'other'"):
        sketch.merge((CountSketch if type(sketch) is SJLT else SJLT)(8, D))
    wider = type(sketch)(**sketch._settings() | {"d": D + 1})
    with pytest.raises(ValueError, match=r"merge: argument 'other': got d=13, needs d=12"):
        sketch.merge(wider)
    assert np.array_equal(reading(sketch), before)


# ---- how rows are cut ------------------------------------------------------------------------------------------------


@ALL
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_calls_do_not_matter(make, data):
    """The same bits for any cuts, reads and copies in between, strides and, where exact, dtypes."""
    n = data.draw(st.integers(0, 60), "n")
    A = np.float32(decaying(n, D, data.draw(st.integers(0, 99), "seed")))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6), "cuts"))
    whole = take(make(), A)
    layouts = [np.float64, np.asfortranarray, lambda x: np.repeat(x, 2, 0)[::2], lambda x: x]
    parts = make()
    for rows in np.split(A, cuts):
        parts.update(data.draw(st.sampled_from(layouts), "layout")(rows))
        action = data.draw(st.sampled_from(["read", "copy", "none"]), "between")
        if action == "read":
            reading(parts)
        elif action == "copy":
            parts = pickle.loads(pickle.dumps(parts))
    singly = make()
    for row in A:
        singly.update(row)
    assert np.array_equal(reading(whole), reading(parts))
    assert np.array_equal(reading(whole), reading(singly))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FrequentDirections(24, 501),
        lambda: IncrementalSVD(24, 501),
        lambda: IncrementalSVD(24, 501, method="fd", block=5),
    ],
)
def test_calls_do_not_matter_for_wide_rows(make):
    """Widths that no vector length divides, and matrices large enough for the BLAS's own blocking."""
    A = decaying(200, 501, 7)
    whole, singly, portions = take(make(), A), take(make(), A, range(1, 200)), take(make(), A, [3, 50, 51, 120])
    assert np.array_equal(reading(whole), reading(singly))
    assert np.array_equal(reading(whole), reading(portions))


@ALL
def test_what_was_read_stays(make):
    sketch, held = make(), []
    for rows in np.split(decaying(48, D, 8), [1, 3, 8, 9, 30]):
        sketch.update(rows)
        held.append((sketch.sketch, sketch.sketch.copy()))
        assert not held[-1][0].flags.writeable
    assert all(np.array_equal(read, copied) for read, copied in held)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 60), l=st.integers(1, 9), exponent=st.integers(-30, 30))
def test_scaling_by_a_power_of_two_scales_all_bits(seed, n, l, exponent):  # noqa: E741
    A, c = decaying(n, D, seed), 2.0**exponent
    plain, scaled = take(FrequentDirections(l, D), A), take(FrequentDirections(l, D), c * A)
    assert np.array_equal(c * plain.sketch, scaled.sketch)
    assert scaled.delta == c * c * plain.delta


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 60), l=st.integers(1, 9))
def test_rotating_the_columns_rotates_the_sketch(seed, n, l):  # noqa: E741
    A = decaying(n, D, seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((D, D)))
    plain, turned = take(FrequentDirections(l, D), A), take(FrequentDirections(l, D), A @ turn)
    P, T = plain.sketch @ turn, turned.sketch
    np.testing.assert_allclose(T.T @ T, P.T @ P, rtol=0, atol=1e-11 * np.sum(A**2))
    assert turned.delta == pytest.approx(plain.delta, rel=1e-10, abs=1e-12 * np.sum(A**2))


# ---- rows of all kinds -----------------------------------------------------------------------------------------------


def test_fewer_rows_than_l_are_the_sketch():
    A = np.float32(decaying(5, D, 9))
    fd = take(FrequentDirections(5, D), A)
    assert np.array_equal(fd.sketch, A.astype(np.float64))
    assert fd.delta == 0
    assert FrequentDirections(5, D).sketch.shape == (0, D)


@ALL
def test_no_rows_change_nothing(make):
    sketch = take(make(), decaying(11, D, 10))
    before = reading(sketch)
    sketch.update(np.empty((0, D), np.float32))
    assert np.array_equal(reading(sketch), before)


@ALL
def test_zero_rows(make):
    sketch = take(make(), np.zeros((40, D)))
    assert not sketch.sketch.any()
    assert sketch.rows_seen == 40
    A = decaying(3, D, 11)
    sketch.update(A)
    if isinstance(sketch, (FrequentDirections, IncrementalSVD)):
        assert sketch.delta == 0
        np.testing.assert_allclose(sketch.sketch.T @ sketch.sketch, A.T @ A, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["fd", "svd", "svd fd", "svd U"])
def test_repeated_rows_are_kept(name):
    """Rank 3 of 300 rows: nothing is lost."""
    three = decaying(3, D, 12)
    A = three[np.random.default_rng(0).integers(0, 3, 300)]
    sketch = take(MAKE[name](), A)
    assert sketch.delta == 0
    assert len(sketch.sketch) <= 4
    np.testing.assert_allclose(sketch.sketch.T @ sketch.sketch, A.T @ A, rtol=0, atol=1e-12 * np.sum(A**2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_badly_scaled_columns(dtype):
    """Columns from 1e-5 to 1e5: the bounds hold to rounding of the whole, as in double."""
    rng = np.random.default_rng(13)
    A = (rng.standard_normal((500, 20)) * 10.0 ** np.linspace(5, -5, 20)).astype(dtype)
    fd = take(FrequentDirections(6, 20), A)
    wide = A.astype(np.float64)
    values = spectrum(wide, fd.sketch)
    assert values[0] >= -slack(wide)
    assert values[-1] <= fd.delta + slack(wide)
    assert fd.delta <= tails(wide, 6) + slack(wide)
    # In float32 the Gram matrix would be off by 1e-7 of 1e13; columns whose squares are smaller show that it is not.
    columns = np.sum(wide**2, 0) - np.sum(fd.sketch**2, 0)
    assert np.all(columns <= fd.delta + slack(wide))


@ALL
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e141])
@pytest.mark.parametrize("n", [1, 25])
def test_rows_that_are_not_finite_are_refused(make, value, n):
    sketch = take(make(), decaying(13, D, 14))
    before, rows = reading(sketch), decaying(n, D, 15)
    rows[n // 2, 3] = value
    text = f"{type(sketch).__name__}.update: argument 'rows': got {value} in row {n // 2}, needs finite"
    with pytest.raises(ValueError, match=re.escape(text)):
        sketch.update(rows)
    assert np.array_equal(reading(sketch), before)
    again = take(make(), decaying(13, D, 14))
    for s in (sketch, again):
        s.update(decaying(9, D, 16))
    assert np.array_equal(reading(sketch), reading(again))


@ALL
@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        (np.zeros((2, D + 1)), ValueError, r"got shape \(2, 13\), needs shape \(n, 12\), or \(12,\) for one row"),
        (np.zeros(D - 1), ValueError, r"got shape \(11,\)"),
        (np.zeros((2, 2, D)), ValueError, r"got shape \(2, 2, 12\)"),
        (np.zeros((2, D), np.int64), TypeError, r"got int64, needs float32 or float64; use rows.astype"),
        (np.zeros((2, D), np.float16), TypeError, "got float16"),
        (np.ma.zeros((2, D)), TypeError, "got MaskedArray"),
        ([[0.0] * D], TypeError, "got list"),
    ],
)
def test_other_rows_are_refused(make, rows, error, text):
    sketch = take(make(), decaying(13, D, 14))
    before = reading(sketch)
    with pytest.raises(error, match=text):
        sketch.update(rows)
    assert np.array_equal(reading(sketch), before)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: FrequentDirections(0, 3), ValueError, r"FrequentDirections: argument 'l': got 0"),
        (lambda: FrequentDirections(2.0, 3), TypeError, "argument 'l'"),
        (lambda: RobustFrequentDirections(2, -1), ValueError, "argument 'd': got -1"),
        (lambda: FrequentDirections(True, 3), TypeError, "argument 'l'"),
        (lambda: IncrementalSVD(0, 3), ValueError, "argument 'k'"),
        (lambda: IncrementalSVD(2, 3, method="svd"), ValueError, r"argument 'method': got 'svd', needs \"brand\""),
        (lambda: IncrementalSVD(2, 3, method=1), TypeError, "argument 'method'"),
        (lambda: IncrementalSVD(2, 3, block=0), ValueError, "argument 'block'"),
        (lambda: IncrementalSVD(2, 3, keep_U=1), TypeError, "argument 'keep_U'"),
        (lambda: CountSketch(0, 3), ValueError, "CountSketch: argument 's'"),
        (lambda: CountSketch(2, 3, seed=-1), ValueError, "argument 'seed'"),
        (lambda: SJLT(8, 3, blocks=0), ValueError, "argument 'blocks'"),
        (lambda: SJLT(10, 3, blocks=4), ValueError, "SJLT: argument 's': got 10, needs a multiple of blocks = 4"),
    ],
)
def test_settings_are_checked(make, error, text):
    with pytest.raises(error, match=text):
        make()


# ---- states ----------------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("seen", [0, 2, 7, 8, 9, 31, 200])
def test_saving_and_resuming_gives_the_same_bits(make, seen, tmp_path):
    A = decaying(seen + 30, D, 17)
    whole, stopped = take(make(), A), take(make(), A[:seen])
    stopped.save(tmp_path / "sketch.npz")
    resumed = type(stopped).load(tmp_path / "sketch.npz")
    assert np.array_equal(reading(resumed), reading(stopped))
    assert repr(resumed) == repr(stopped)
    assert np.array_equal(reading(take(resumed, A[seen:])), reading(whole))


@pytest.mark.parametrize("name", ["fd", "svd", "svd fd", "svd U"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, np.linalg.LinAlgError])
def test_an_interrupted_update_has_taken_whole_rows(name, error, tmp_path, monkeypatch):
    A, sketch, calls = decaying(70, D, 18), MAKE[name](), 0
    module = _directions if name == "fd" else _svd
    function = "shrunk" if name == "fd" else "folded"
    real = getattr(module, function)

    def stopped(*arguments):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise error
        return real(*arguments)

    monkeypatch.setattr(module, function, stopped)
    with pytest.raises(error):
        sketch.update(A)
    assert 0 < sketch.rows_seen < 70
    sketch.save(tmp_path / "sketch.npz")
    for go_on in (sketch, type(sketch).load(tmp_path / "sketch.npz")):
        go_on.update(A[go_on.rows_seen :])
        assert np.array_equal(reading(go_on), reading(take(MAKE[name](), A)))


@ALL
def test_copies_are_independent(make):
    A = decaying(33, D, 18)
    sketch = take(make(), A[:21])
    before = reading(sketch)
    for twin in (pickle.loads(pickle.dumps(sketch)), copy.deepcopy(sketch)):
        assert np.array_equal(reading(twin), before)
        assert np.array_equal(reading(take(twin, A[21:])), reading(take(make(), A)))
        assert np.array_equal(reading(sketch), before)


def test_repr_has_the_settings():
    assert repr(FrequentDirections(4, 12)) == "FrequentDirections(l=4, d=12)"
    assert repr(IncrementalSVD(4, 12)) == "IncrementalSVD(k=4, d=12, method='brand', block=4, keep_U=False)"
    assert repr(SJLT(8, 12, seed=5)) == "SJLT(s=8, d=12, blocks=4, seed=5, first_row=0)"
    for make in MAKE.values():
        assert repr(eval(repr(make()))) == repr(make())


@ALL
def test_damaged_files_are_refused(make, tmp_path):
    path, sketch = tmp_path / "sketch.npz", take(make(), decaying(23, D, 19))
    sketch.save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2], whole[:-1], whole.replace(b"curvk.sketch", b"curvk.sketcH")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"load: "):
            type(sketch).load(path)
    with pytest.raises(FileNotFoundError):
        type(sketch).load(tmp_path / "none.npz")


@ALL
def test_files_of_others_are_refused(make, tmp_path):
    path, sketch = tmp_path / "sketch.npz", take(make(), decaying(23, D, 20))
    other = FrequentDirections if isinstance(sketch, (CountSketch, IncrementalSVD)) else IncrementalSVD
    sketch.save(path)
    with pytest.raises(ValueError, match=rf"{other.__name__}.load: argument 'sketch': got '{type(sketch).__name__}'"):
        other.load(path)


@ALL
def test_states_that_do_not_fit_are_refused(make, tmp_path):
    """Every array with another shape, dtype or a NaN, every number negative, missing or of another kind."""
    path, sketch = tmp_path / "sketch.npz", take(make(), decaying(23, D, 21))
    sketch.save(path)
    cls, tried = type(sketch), 0

    def refused(part, key, change):
        nonlocal tried
        state = _store.read(path, "test")
        state[part][key] = change(state[part][key])
        _store.write(tmp_path / "changed.npz", state)
        with pytest.raises(ValueError, match=f"{cls.__name__}.load: argument"):
            cls.load(tmp_path / "changed.npz")
        tried += 1

    state = _store.read(path, "test")
    for key, x in state["arrays"].items():
        refused("arrays", key, lambda x: x.astype(np.float32))
        refused("arrays", key, lambda x: x[..., None])
        refused("arrays", key, lambda x: "text")
        if x.size:
            refused("arrays", key, lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.nan, x))
            refused("arrays", key, lambda x: np.vstack([x] * 9) if x.ndim == 2 else np.concatenate([x] * 9))
    for key in state["numbers"]:
        refused("numbers", key, lambda n: -1)
        refused("numbers", key, lambda n: "text")
        refused("numbers", key, lambda n: None)
    for key in state["settings"]:
        refused("settings", key, lambda n: {})
    for key in ("version", "format", "sketch"):
        state = _store.read(path, "test") | {key: 7}
        _store.write(tmp_path / "changed.npz", state)
        with pytest.raises(ValueError, match=f"{cls.__name__}.load: argument '{key}'"):
            cls.load(tmp_path / "changed.npz")
    assert tried >= 10
