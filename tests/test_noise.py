"""The noise stream against an oracle of its own: integers of Philox4x32-10, then its distributions in float64.

The oracle below is written from the stream's definition alone. What Philox's own test vectors, chosen words and float32
formulas decide is here; what only many values decide is in test_noise_statistics.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._bench.storage import empty, encode
from curvk.kernels import noise
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

BACKEND = curvk.get_backend()
SLOW = BACKEND == "python"  # about 10 us for each element
PER_TILE = {"normal": 32, "normal_fast": 64, "rademacher": 1024, "uniform": 32}  # elements of a tile of 32 words
DISTS = pytest.mark.parametrize("dist", list(PER_TILE))
FORMATS = pytest.mark.parametrize("fmt", ["f32", "f64", "bf16", "f16"])
DTYPES = {"f32": np.float32, "f64": np.float64, "bf16": np.uint16, "f16": np.float16}
KEY: dict[str, Any] = {"seed": 0x0123456789ABCDEF, "draw": 42, "tensor": 7}
Array = np.ndarray[Any, Any]


def generator(*parts: object) -> np.random.Generator:
    """Numbers that the parts determine; the seed is printed, so a failure shows it."""
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return np.random.default_rng(seed)


# ---- the oracle ------------------------------------------------------------------------------------------------------

M0, M1, W0, W1, LOW = (np.uint64(x) for x in (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF))
BITS32 = np.uint64(32)


def philox(counter: Any, key: Any) -> Array:
    """Philox4x32-10 (Salmon et al. 2011) of counters (..., 4) under keys (..., 2), in 64-bit integers."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    for _ in range(10):
        a, b = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (b >> BITS32) ^ c1 ^ k0, b & LOW, (a >> BITS32) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return np.stack([c0, c1, c2, c3], -1)


def unphilox(words: Any, key: Any) -> Array:
    """The counters (..., 4) whose words these are: every round is a bijection, its multipliers being odd."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(words, np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    inverse0, inverse1 = (np.uint64(pow(int(m), -1, 2**32)) for m in (M0, M1))
    for i in reversed(range(10)):
        r0, r1 = (k0 + np.uint64(i) * W0) & LOW, (k1 + np.uint64(i) * W1) & LOW
        b0, a0 = (c3 * inverse0) & LOW, (c1 * inverse1) & LOW  # the words that M0 and M1 multiplied
        c0, c1, c2, c3 = b0, c0 ^ ((M1 * a0) >> BITS32) ^ r0, a0, c2 ^ ((M0 * b0) >> BITS32) ^ r1
    return np.stack([c0, c1, c2, c3], -1)


def tiles(first: int, count: int, seed: int, draw: int, tensor: int) -> Array:
    """Words of tiles, (count, 32): (w0, w1) of the 8 blocks, then (w2, w3) of them."""
    block = np.uint64(8 * first) + np.arange(8 * count, dtype=np.uint64)
    word, turn = np.full_like(block, tensor), np.full_like(block, draw)
    w = philox(np.stack([block & LOW, block >> BITS32, word, turn], -1), [seed % 2**32, seed >> 32])
    w = w.reshape(count, 8, 4)
    return np.concatenate([w[:, :, :2].reshape(count, 16), w[:, :, 2:].reshape(count, 16)], 1)


def box_muller(u: Array, fraction: Array, angle: Array) -> tuple[Array, Array]:
    """Both normals in float64; `fraction` of half a quadrant, bits 30 and 31 of `angle` swap and negate."""
    r, theta = np.sqrt(-2 * np.log(u.astype(np.float64))), fraction.astype(np.float64) * (np.pi / 4)
    swap, sign = (angle >> np.uint64(30)) & np.uint64(1), 1 - 2 * (angle >> np.uint64(31)).astype(np.float64)
    cos, sin = np.cos(theta), np.sin(theta)
    return sign * r * np.where(swap, sin, cos), sign * r * np.where(swap, cos, sin)


def of_words(words: Array, dist: str) -> Array:
    """Elements of tiles of words (count, 32), in order, float64."""
    count = len(words)
    if dist == "normal":
        radius, angle = words[:, :16], words[:, 16:]
        u = radius.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
        signed = ((angle << np.uint64(2)) & LOW).astype(np.uint32).view(np.int32).astype(np.float32)
        return np.concatenate(box_muller(u, signed * np.float32(2**-31), angle), 1).ravel()
    if dist == "normal_fast":
        u = ((words & np.uint64(0xFFFF)).astype(np.float64) + 0.5) / 65536
        signed = ((words & np.uint64(0x3FFF0000)) << np.uint64(2)).astype(np.uint32).view(np.int32)
        return np.concatenate(box_muller(u, signed * 2.0**-31, words), 1).ravel()
    if dist == "rademacher":
        bits = (words.reshape(count, 32, 1) >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
        return 1 - 2 * bits.ravel().astype(np.float64)
    return (words >> np.uint64(8)).astype(np.float64).ravel() * 2.0**-24


def oracle(n: int, dist: str, offset: int = 0, *, seed: int, draw: int = 0, tensor: int = 0) -> Array:
    first, skip = divmod(offset, PER_TILE[dist])
    return of_words(tiles(first, -(-(skip + n) // PER_TILE[dist]), seed, draw, tensor), dist)[skip : skip + n]


# How far the float32 code may be from of_words: absolute, and in units in the last place or relative to the value. The
# largest found are 1.37e-6 and 5.66 ulp (normal: the worst of all radii with the worst of all angles), and 4.9e-5 and
# 1.79e-5 (normal_fast: all pairs; its angle comes from a short polynomial).
def assert_close(got: Array, want: Array, dist: str) -> None:
    if dist in ("rademacher", "uniform"):
        np.testing.assert_array_equal(got, want)
        return
    error, size = abs(got - want), abs(want)
    unit = np.spacing(size.astype(np.float32)) if dist == "normal" else np.maximum(size, 1e-30)
    print(f"{dist}: largest error {error.max():.3g}, or {(error / unit).max():.3g}")
    assert error.max() <= {"normal": 1.5e-6, "normal_fast": 6e-5}[dist]  # also false for NaN
    assert (error / unit).max() <= {"normal": 6.5, "normal_fast": 2e-5}[dist]


def noise_of(n: int, dist: str = "normal", fmt: str = "f32", **key: Any) -> Array:
    return noise.fill(np.zeros(n, DTYPES[fmt]), dist=dist, **(KEY | key))


# ---- Philox ----------------------------------------------------------------------------------------------------------

KNOWN = [  # Random123's kat_vectors, and one of this stream: block 5, tensor 7, draw 42
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
    ([5, 0, 7, 42], [0x89ABCDEF, 0x01234567], [0x9E036578, 0x0BF14A4C, 0xB0C0D469, 0xACEED8BD]),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(backend: str, counter: list[int], key: list[int], words: list[int]) -> None:
    assert philox(counter, key).tolist() == words
    assert unphilox(words, key).tolist() == counter
    got = noise.philox4x32(np.array(counter), np.array(key))
    assert (got.dtype, got.tolist()) == (np.uint32, words)
    assert noise.philox4x32(counter, key).tolist() == words


def test_philox_of_many() -> None:
    rng = generator("philox")
    for _ in range(20):
        counter, key = rng.integers(0, 2**32, (3, 50, 4)), rng.integers(0, 2**32, 2)
        got = noise.philox4x32(counter, key)
        np.testing.assert_array_equal(got, philox(counter, key))
        np.testing.assert_array_equal(unphilox(got, key), counter)
    assert noise.philox4x32(np.zeros((0, 4), np.int64), [0, 0]).shape == (0, 4)


def test_known_words_are_in_their_places() -> None:
    """Our known block through `fill`: a bit of each word where the definition puts it."""
    seed, draw, tensor, block, words = KEY["seed"], 42, 7, 5, KNOWN[3][2]
    signs = noise.fill(np.empty(1024, np.float32), seed=seed, draw=draw, tensor=tensor, dist="rademacher")
    uniform = noise.fill(np.empty(64, np.float32), seed=seed, draw=draw, tensor=tensor, dist="uniform")
    for place, word in zip((2 * block, 2 * block + 1, 16 + 2 * block, 17 + 2 * block), words, strict=True):
        assert uniform[place] == (word >> 8) / 2**24
        np.testing.assert_array_equal(signs[32 * place : 32 * place + 32], [1 - 2 * (word >> b & 1) for b in range(32)])


@pytest.mark.parametrize(
    ("counter", "key", "error", "label"),
    [
        ([0, 0, 0, -1], [0, 0], ValueError, "counter"),
        ([0, 0, 0, 2**32], [0, 0], ValueError, "counter"),
        ([0, 0, 0], [0, 0], ValueError, "counter"),
        ([0.0, 0, 0, 0], [0, 0], TypeError, "counter"),
        ([0, 0, 0, 0], [0, 2**32], ValueError, "key"),
        ([0, 0, 0, 0], [0, 0, 0], ValueError, "key"),
        ([0, 0, 0, 0], ["a", "b"], TypeError, "key"),
        (3, [0, 0], ValueError, "counter"),
    ],
)
def test_bad_philox(counter: Any, key: Any, error: type[Exception], label: str) -> None:
    with pytest.raises(error, match=f"philox4x32: argument '{label}'"):
        noise.philox4x32(counter, key)


# ---- distributions ---------------------------------------------------------------------------------------------------


@DISTS
def test_against_oracle(dist: str) -> None:
    largest = {"seed": 2**64 - 1, "draw": 2**32 - 1, "tensor": 2**32 - 1}
    for n, key in ((2**20, dict.fromkeys(largest, 0)), (2**20 + 77, largest), (2**22, KEY)):
        n = 5000 if SLOW else n
        assert_close(noise_of(n, dist, **key), oracle(n, dist, **key), dist)


def reach(words: Array, rng: np.random.Generator, tries: int = 1024) -> tuple[Array, Array, Array, Array]:
    """Seed, block, tensor and draw for each row of four words, found by running Philox backwards under random seeds."""
    key = rng.integers(0, 2**32, (len(words), tries, 2), dtype=np.uint64)
    counter = unphilox(np.broadcast_to(words[:, None], (len(words), tries, 4)), key)
    near = counter[:, :, 1] < 2**26  # so that the element's index is far below 2^62
    assert near.any(1).all()
    pick = np.arange(len(words)), near.argmax(1)
    counter, key = counter[pick], key[pick]
    np.testing.assert_array_equal(philox(counter, key), words)
    block = counter[:, 0] | counter[:, 1] << BITS32
    return key[:, 0] | key[:, 1] << BITS32, block, counter[:, 2], counter[:, 3]


def chosen(dist: str) -> Array:
    """Blocks of four words, (n, 4), that hold every pair of an awkward radius and an awkward angle."""
    turns = [octant << 30 | x for octant in range(4) for x in (0, 1, 0x1FFFFFFF, 0x20000000, 0x20000001, 0x3FFFFFFF)]
    if dist == "normal":
        half = round(2**31.5)  # sqrt(1/2) 2^32, a seam of logarithms
        radii = {0, 2**32 - 1, 2**32 - 127, 2**32 - 128, 2**32 - 129, 2**32 - 384, half - 1, half, half + 1, half + 257}
        radii |= {2**k + d for k in range(1, 32) for d in (-1, 0, 1)}
        pairs = np.array([(r, a) for r in sorted(radii) for a in turns], np.uint64).reshape(-1, 2, 2)
        return pairs.transpose(0, 2, 1).reshape(-1, 4)  # radii in w0, w1, their angles in w2, w3
    radii = {0, 1, 2, 0x5A82, 0x5A83, 0xB504, 0xB505, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF}
    return np.array([a >> 16 << 16 | r for r in sorted(radii) for a in turns], np.uint64).reshape(-1, 4)


@pytest.mark.parametrize("dist", ["normal", "normal_fast"])
def test_extremes(dist: str) -> None:
    """Radius words 0, 1, ..., 2^32 - 1 with angles at the ends of all eight octants."""
    words = chosen(dist)
    per_block = PER_TILE[dist] // 8
    got, want = [], []
    for four, *where in zip(words, *reach(words, generator("reach", dist)), strict=True):
        seed, block, tensor, draw = map(int, where)
        first, within = divmod(block, 8)
        tile = tiles(first, 1, seed, draw, tensor)
        assert tile[0, [2 * within, 2 * within + 1, 16 + 2 * within, 17 + 2 * within]].tolist() == four.tolist()
        z = np.empty(8 * per_block, np.float32)
        noise.fill(z, seed=seed, draw=draw, tensor=tensor, offset=8 * per_block * first, dist=dist)
        got.append(z)
        want.append(of_words(tile, dist))
    z = np.concatenate(got)
    assert_close(z, np.concatenate(want), dist)
    bound = math.sqrt(-2 * math.log(2**-33 if dist == "normal" else 2**-17))  # 6.764 and 4.855
    assert abs(z).max() == pytest.approx(bound, rel=1e-6 if dist == "normal" else 2e-5)
    if dist == "normal":  # the word 2^32 - 1 is u = 1: no length at all
        assert (z == 0).sum() >= 2 * 24


@DISTS
@pytest.mark.parametrize("block", [2**32, 2**36 + 3, 2**54])
def test_index_beyond_32_bits(dist: str, block: int) -> None:
    """Blocks whose index needs the counter's second word; the array straddles the seam."""
    per_block = PER_TILE[dist] // 8
    n, offset = 3 * PER_TILE[dist] + 5, block * per_block - PER_TILE[dist] - 3
    got = noise_of(n, dist, offset=offset)
    assert_close(got, oracle(n, dist, offset, **KEY), dist)
    assert got.tobytes() != noise_of(n, dist, offset=offset + 2**32 * per_block).tobytes()


@DISTS
@FORMATS
def test_formats(dist: str, fmt: str) -> None:
    """Every storage format holds the float32 value, rounded once."""
    n = 300 if SLOW else 100_003
    want = encode(noise_of(n, dist).astype(np.float64), fmt)
    assert noise_of(n, dist, fmt).tobytes() == want.tobytes()


# ---- a function of the index -----------------------------------------------------------------------------------------


@DISTS
@FORMATS
def test_sizes_about_every_tile(dist: str, fmt: str) -> None:
    n = 1100 if SLOW else 2 * 32768 + 40
    whole = noise_of(n, dist, fmt)
    edges = [k * m + d for m in (8, 16, 32, 64, 1024, 8192, 32768) for k in (1, 2) for d in (-1, 0, 1)]
    for size in sorted({0, 1, 2, *(e for e in edges if e <= n)}):
        frame = empty(size, DTYPES[fmt], guard=128)
        frame.base.view(np.uint8)[:] = 0xA5
        before = frame.base.tobytes()
        noise.fill(frame, dist=dist, **KEY)
        assert frame.tobytes() == whole[:size].tobytes(), size
        start = frame.ctypes.data - frame.base.ctypes.data
        after = frame.base.tobytes()
        assert after[:start] + after[start + frame.nbytes :] == before[:start] + before[start + frame.nbytes :]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_chunking(data: Any) -> None:
    """Pieces, each told where it begins, are the whole: one by one, as a list, at any place in memory."""
    dist, fmt = data.draw(st.sampled_from(list(PER_TILE))), data.draw(st.sampled_from(list(DTYPES)))
    n = data.draw(st.integers(1, 300 if SLOW else 5000))
    offset = data.draw(st.integers(0, 5000) | st.integers(0, 2**50))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    ends = list(zip([0, *cuts], [*cuts, n], strict=True))
    whole = noise_of(n, dist, fmt, offset=offset)
    assert whole.tobytes() == noise_of(n + 7, dist, fmt, offset=offset)[:n].tobytes()
    pieces = [empty(b - a, DTYPES[fmt], offset=data.draw(st.integers(0, 15))) for a, b in ends]
    for piece, (a, _) in zip(pieces, ends, strict=True):
        assert noise.fill(piece, dist=dist, offset=offset + a, **KEY) is piece
    assert b"".join(x.tobytes() for x in pieces) == whole.tobytes()
    for piece in pieces:
        piece[:] = 0
    order = data.draw(st.permutations(range(len(ends))))
    noise.fill(
        [pieces[i] for i in order],
        seed=KEY["seed"],
        draw=KEY["draw"],
        tensor=[KEY["tensor"]] * len(ends),
        offset=[offset + ends[i][0] for i in order],
        dist=dist,
    )
    assert b"".join(x.tobytes() for x in pieces) == whole.tobytes()


VIEWS: dict[str, Callable[[Array], Array]] = {
    "transposed": lambda x: x.transpose(2, 0, 1),
    "reversed": lambda x: x[::-1, :, ::-1],
    "strided": lambda x: x[::2, 1::3, ::2],
    "fortran": lambda x: np.asfortranarray(x),
    "column": lambda x: x[:, 3, 5],
    "scalar": lambda x: x[0, 0, 0, ...],
}


@DISTS
@FORMATS
@pytest.mark.parametrize("view", list(VIEWS))
def test_views_by_logical_index(dist: str, fmt: str, view: str) -> None:
    base = np.zeros((6, 7, 10) if SLOW else (6, 31, 50), DTYPES[fmt])
    x = VIEWS[view](base)
    want = noise_of(x.size, dist, fmt).reshape(x.shape)
    assert noise.fill(x, dist=dist, **KEY) is x
    np.testing.assert_array_equal(x, want)
    if view != "fortran":
        x[...] = 0
        assert not base.any(), "elements outside the view were written"


# ---- words -----------------------------------------------------------------------------------------------------------


def test_tensor_word() -> None:
    names = [f"model.layers.{i}.{part}" for i in range(30) for part in ("attn.weight", "attn.bias", "mlp.weight")]
    words = {(p, name): noise.tensor_word(name, p) for p in noise.PURPOSES for name in names}
    assert all(0 <= w < 2**32 for w in words.values())
    assert len(set(words.values())) == len(words)
    for name in names:
        assert noise.tensor_word(name) == words["probe", name] < 2**28
        for purpose, number in noise.PURPOSES.items():
            assert words[purpose, name] == number << 28 | words["probe", name]
    assert noise.PURPOSES == {
        "probe": 0, "rounding": 1, "layers": 2, "bandit": 3, "sketch": 4, "langevin": 5, "sampling": 6, "basis": 7
    }  # fmt: skip
    # From coreutils: `printf weight | b2sum -l 32` says 9e162720, for "lm_head.weight" ae0ffd6c, for "é" 954544c2; the
    # bytes are read little-endian and the top four bits dropped.
    assert noise.tensor_word("weight") == 0x0027169E
    assert noise.tensor_word("lm_head.weight", "rounding") == 0x1CFD0FAE
    assert noise.tensor_word("é", "sampling") == 0x62444595
    with pytest.raises(ValueError, match="tensor_word: argument 'purpose'"):
        noise.tensor_word("w", "weather")
    with pytest.raises(TypeError, match="tensor_word: argument 'name'"):
        noise.tensor_word(3)  # type: ignore[arg-type]
