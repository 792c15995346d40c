"""curvk.sketch: CountSketch and SJLT against the dense matrix S, its laws, and sketches of parts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from curvk.kernels.noise import philox4x32, tensor_word
from curvk.sketch import SJLT, CountSketch

BIG = 2**62


def dense(rows, s, blocks, seed):
    """S, a row for each number in `rows`, from the Philox words in the order that noise.h gives a tile."""
    S, w = np.zeros((len(rows), s)), s // blocks
    key, tensor = np.array([seed % 2**32, seed >> 32]), tensor_word("sjlt", "sketch")
    for i, row in enumerate(rows):
        tile, place = divmod(row, 32)
        half, place = divmod(place, 16)
        philox = 8 * tile + place // 2
        for b in range(blocks):
            word = int(philox4x32(np.array([philox % 2**32, philox >> 32, tensor, b]), key)[2 * half + place % 2])
            S[i, b * w + (word >> 1) * w // 2**31] += (-1.0 if word & 1 else 1.0) / np.sqrt(blocks)
    return S


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("s", "blocks"), [(1, 1), (7, 1), (12, 4), (12, 12), (64, 2)])
@pytest.mark.parametrize("first_row", [0, 5, 2**33 - 3, BIG - 50])
def test_is_the_dense_product(s, blocks, first_row, dtype):
    A = np.random.default_rng(1).standard_normal((37, 5)).astype(dtype)
    seed = 2**63 + 12345
    sketch = SJLT(s, 5, blocks, seed, first_row=first_row)
    sketch.update(A)
    S = dense(range(first_row, first_row + 37), s, blocks, seed)
    np.testing.assert_allclose(sketch.sketch, S.T @ A.astype(np.float64), rtol=0, atol=1e-14 * np.abs(A).sum())


def test_count_sketch_is_one_block():
    A = np.random.default_rng(2).standard_normal((100, 4))
    count, sjlt = CountSketch(8, 4, 9), SJLT(8, 4, 1, 9)
    count.update(A)
    sjlt.update(A)
    assert np.array_equal(count.sketch, sjlt.sketch)
    # All that a row does: it is added to one bucket, or taken from it.
    lonely = CountSketch(1000, 4, 9)
    lonely.update(A[0])
    found = lonely.sketch[np.any(lonely.sketch != 0, 1)]
    assert np.array_equal(np.abs(found), np.abs(A[:1]))


@pytest.mark.parametrize("blocks", [1, 4])
def test_mean_and_variance(blocks):
    """|S'x|^2 has mean |x|^2 and variance 2 / s (|x|_2^4 - |x|_4^4), whatever the number of blocks."""
    s, seeds = 32, 4000
    x = np.random.default_rng(3).standard_normal(20) ** 3
    S = np.zeros((seeds, s))
    for seed in range(seeds):
        sketch = SJLT(s, 1, blocks, seed)
        sketch.update(x[:, None])
        S[seed] = sketch.sketch[:, 0]
    found = np.sum(S**2, 1)
    mean, variance = np.sum(x**2), 2 / s * (np.sum(x**2) ** 2 - np.sum(x**4))
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / seeds)
    away = (found - mean) ** 2
    assert abs(away.mean() - variance) < 4 * away.std() / np.sqrt(seeds)


@pytest.mark.parametrize("blocks", [1, 4])
def test_error_of_the_product(blocks):
    """E |B'B - A'A|^2 <= (|A|^4 + |A'A|^2) / s in Frobenius' norm."""
    A = np.random.default_rng(4).standard_normal((200, 6)) * np.arange(1, 7)
    errors = []
    for seed in range(300):
        sketch = SJLT(40, 6, blocks, seed)
        sketch.update(A)
        errors.append(np.sum((sketch.sketch.T @ sketch.sketch - A.T @ A) ** 2))
    bound = (np.sum(A**2) ** 2 + np.sum((A.T @ A) ** 2)) / 40
    assert 0.5 * bound < np.mean(errors) < bound + 4 * np.std(errors) / np.sqrt(300)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_parts_add_up(order):
    A, cuts = np.random.default_rng(5).standard_normal((500, 3)), [0, 100, 101, 350, 500]
    whole = SJLT(16, 3)
    whole.update(A)
    parts = []
    for first, end in pairwise(cuts):
        parts.append(SJLT(16, 3, first_row=first))
        parts[-1].update(A[first:end])
    merged = parts[order[0]]
    for i in order[1:]:
        merged.merge(parts[i])
    np.testing.assert_allclose(merged.sketch, whole.sketch, rtol=0, atol=1e-13 * np.abs(A).sum())
    assert merged.rows == whole.rows == [range(500)]
    assert merged.rows_seen == 500
    for sketch in (merged, whole):
        sketch.update(A[:5])
    assert merged.rows == whole.rows == [range(505)]
    np.testing.assert_allclose(merged.sketch, whole.sketch, rtol=0, atol=1e-13 * np.abs(A).sum())


def test_gaps_are_kept(tmp_path):
    A = np.random.default_rng(6).standard_normal((30, 3))
    far, near = CountSketch(8, 3, first_row=2**40), CountSketch(8, 3)
    far.update(A[:10])
    near.update(A[10:20])
    near.merge(far)
    assert near.rows == [range(10), range(2**40, 2**40 + 10)]
    near.save(tmp_path / "sketch.npz")
    near = CountSketch.load(tmp_path / "sketch.npz")
    near.update(A[20:])
    assert near.rows == [range(10), range(2**40, 2**40 + 20)]
    S = dense([*range(10), *range(2**40, 2**40 + 20)], 8, 1, 0)
    np.testing.assert_allclose(near.sketch, S.T @ A[[*range(10, 20), *range(10), *range(20, 30)]], rtol=0, atol=1e-13)


def test_rows_in_common_are_refused():
    A = np.ones((10, 3))
    first, second = SJLT(8, 3), SJLT(8, 3, first_row=9)
    first.update(A)
    second.update(A)
    before = first.sketch
    for a, b in ((first, second), (second, first), (first, first)):
        with pytest.raises(ValueError, match=r"merge: argument 'other': got row \d, which this sketch has too"):
            a.merge(b)
    with pytest.raises(ValueError, match=r"merge: argument 'other': got seed=1, needs seed=0"):
        first.merge(SJLT(8, 3, seed=1))
    with pytest.raises(ValueError, match=r"merge: argument 'other': got blocks=2, needs blocks=4"):
        first.merge(SJLT(8, 3, blocks=2))
    assert np.array_equal(first.sketch, before)
    empty = SJLT(8, 3)
    empty.merge(first)
    assert np.array_equal(empty.sketch, before)


def test_row_numbers_end():
    sketch = SJLT(4, 2, first_row=BIG - 3)
    sketch.update(np.ones((2, 2)))
    with pytest.raises(ValueError, match="argument 'rows': got row"):
        sketch.update(np.ones((2, 2)))
    sketch.update(np.ones(2))
    assert sketch.rows_seen == 3
    with pytest.raises(ValueError, match="argument 'first_row'"):
        SJLT(4, 2, first_row=BIG)
