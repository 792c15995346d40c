"""8-bit codes and rounding at random: properties that make the formats worth having.

tests/test_numerics.py holds every kernel against the registry's truth, at every level, backend and thread count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import curvk
import numpy as np
import pytest
from conftest import BACKENDS
from curvk import _backend
from curvk._bench.codes import dynamic_map, power
from curvk._bench.registry import cases
from curvk._bench.storage import decode, encode, numbers
from curvk.kernels.noise import philox4x32
from curvk.kernels.sweep import (
    FORMATS,
    Codes,
    adam_sweep,
    dequantize,
    quantize,
    sgd_sweep,
)
from sweep_states import Array, bits, f32, generator, state, wide, zeros

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

SHORT = pytest.mark.parametrize("fmt", ["bf16", "f16"])
SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
FORMAT = pytest.mark.parametrize("form", FORMATS)
WEYL = 0x9E3779B9


# ---- 8-bit codes ----------------------------------------------------------------------------------------------------


def with_every_code(form: str, signed: bool, scale: float) -> Codes:
    """Every code that there is, in groups that hold the largest one."""
    group = FORMATS[form]
    if form == "bitsandbytes":
        codes = np.arange(256)
    else:
        every = np.arange(-127, 128) if signed else np.arange(256)
        top = every[-1]
        rows = np.resize(every, (9, group - 1))
        codes = np.concatenate([np.full((9, 1), top), rows], axis=1).reshape(-1) & 0xFF
    return Codes(codes.astype(np.uint8), np.full(codes.size // group, scale, np.float32), form)


@FORMAT
@SIGNED
@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-3, 1e-30, 1.17549435e-38, 7e20, 3.4028235e38])
def test_codes_are_made_again_from_their_numbers(form: str, signed: bool, scale: float) -> None:
    q = with_every_code(form, signed, scale)
    assert len(set(q.codes.tolist())) >= 255
    again = quantize(dequantize(q, signed=signed), signed=signed, format=form)
    wrong = np.flatnonzero(again.codes != q.codes)
    # Near the bottom of the range numbers vanish that codes of a large scale keep.
    kept = dequantize(q, signed=signed)[wrong]
    wrong = wrong[abs(kept) > 1e-36]
    assert not wrong.size, f"codes {q.codes[wrong]} became {again.codes[wrong]}"
    assert bits(again.scales) == bits(q.scales)


@FORMAT
@SIGNED
def test_the_largest_of_a_group_comes_back_exactly(form: str, signed: bool) -> None:
    rng = generator("largest", form, signed)
    group = FORMATS[form]
    for n in (1, group - 1, group, group + 1, 40 * group + 7):
        x = f32(rng.standard_normal(n) * 10.0 ** rng.integers(-25, 25, n))
        x = x if signed else abs(x)
        q = quantize(x, signed=signed, format=form)
        back = dequantize(q, signed=signed)
        for j, start in enumerate(range(0, n, group)):
            part = x[start : start + group]
            assert q.scales[j] == abs(part).max()
            at = start + abs(part).argmax()
            # bitsandbytes has no code for -1; the next one is the center of the last cell.
            lowest = form == "bitsandbytes" and x[at] < 0
            assert back[at] == (pytest.approx(x[at] * dynamic_map(True)[-2], rel=1e-6) if lowest else x[at])


@FORMAT
@SIGNED
def test_errors_of_codes(form: str, signed: bool) -> None:
    """Within half the distance to a neighbour, which the table's formula gives."""
    rng = generator("errors", form, signed)
    x = f32(rng.standard_normal(64 * 256) * np.exp(3 * rng.standard_normal(64 * 256)))
    x = x if signed else abs(x)
    q = quantize(x, signed=signed, format=form)
    back = dequantize(q, signed=signed)
    table = dynamic_map(signed)
    if form == "curvk":
        c = np.arange(-127, 128) if signed else np.arange(256)
        table = np.sign(c) * (power(abs(c) / 127, 2) if signed else power(c / 255, 4))
    s = np.repeat(q.scales.astype(np.float64), FORMATS[form])
    y = x / s
    at = np.clip(np.searchsorted(table, y), 1, table.size - 1)
    gap = table[at] - table[at - 1]
    # curvk's are nearest in the code, not in the number: beside 0 half a code is a quarter of a gap, and unsigned ones
    # do not become 0 at all.
    share = 0.5 if form == "bitsandbytes" else 0.76 if signed else 1.0
    assert (abs(back / s - y) <= gap * share + 1e-6 * abs(y)).all()


def test_no_second_moment_becomes_zero() -> None:
    rng = generator("zero-free")
    v = f32(np.exp(8 * rng.standard_normal(100_000)))
    q = quantize(v, signed=False)
    assert (q.codes > 0).all()
    assert (dequantize(q, signed=False) > 0).all()
    assert (quantize(v, signed=False, format="bitsandbytes").codes == 0).mean() > 0.01  # its map has no such rule
    v[::2] = 0
    q = quantize(v, signed=False)
    assert ((q.codes == 0) == (v == 0)).all()
    m, stored = state(v.size, "curvk"), state(v.size, "curvk")
    g = f32(np.exp(4 * rng.standard_normal(v.size)))
    adam_sweep(np.zeros_like(g), g, m, stored, step=1, lr=0.0)
    assert (stored.codes > 0).all()


def test_zeros_of_both_signs_have_the_code_of_zero(backend: str) -> None:
    for signed in (True, False):
        for form in FORMATS:
            q = quantize(f32([-0.0, 1.0, 0.0]), signed=signed, format=form)
            assert (dequantize(q, signed=signed) == [0, 1, 0]).all(), (signed, form, q)


@FORMAT
@SIGNED
def test_groups_of_denormals(form: str, signed: bool, backend: str) -> None:
    """Scales are not denormal, and what is smaller is kept within a code's width of the smallest one."""
    for largest in (1e-38, 1e-40, 3e-44):
        x = f32([largest, 0])
        q = quantize(x, signed=signed, format=form)
        assert q.scales == 2.0**-126
        np.testing.assert_allclose(dequantize(q, signed=signed), x, rtol=0.04, atol=2e-4 * 2.0**-126)


@FORMAT
@SIGNED
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_group_with_a_bad_number_is_nan(form: str, signed: bool, bad: float) -> None:
    group = FORMATS[form]
    x = np.ones(4 * group - 5, np.float32)
    x[group + 3] = x[-1] = bad
    back = dequantize(quantize(x, signed=signed, format=form), signed=signed).reshape(-1)
    broken = np.isin(np.arange(x.size) // group, [1, 3])
    assert np.isnan(back[broken]).all()
    assert (back[~broken] == 1).all()


def published_map(signed: bool) -> Array:
    """`create_dynamic_map` of bitsandbytes in its float32 operations."""
    data = [0.0, 1.0]
    for i in range(7):
        boundaries = np.linspace(0.1, 1, (2**i if signed else 2 ** (i + 1)) + 1, dtype=np.float32)
        means = (boundaries[:-1] + boundaries[1:]) / np.float32(2)
        values = np.float32(10 ** (-6 + i)) * means
        data += [*values.tolist(), *((-values).tolist() if signed else [])]
    return np.sort(f32(data))


@SIGNED
def test_the_map_of_bitsandbytes(signed: bool) -> None:
    codes = np.arange(256, dtype=np.uint8)
    table = dequantize(Codes(codes, np.ones(1, np.float32), "bitsandbytes"), signed=signed)
    want = published_map(signed)
    assert (np.diff(table) > 0).all()
    assert abs(table.view(np.int32).astype(np.int64) - want.view(np.int32)).max() <= 2
    rng = generator("map", signed)
    x = np.append(1, rng.uniform(-1 if signed else 0, 1, 255 * 40) * 10.0 ** rng.integers(-8, 1, 255 * 40))
    x = f32(np.concatenate([[1], x[1:]]))
    for start in range(0, x.size, 256):
        x[start] = 1  # so that the scale is 1
    got = quantize(x, signed=signed, format="bitsandbytes")
    distance = abs(x[:, None].astype(np.float64) - table)
    best = distance.min(axis=1)
    assert (np.take_along_axis(distance, got.codes[:, None].astype(int), 1)[:, 0] <= best + 1e-6 * abs(x)).all()


@SIGNED
def test_numbers_halfway_between_two_of_the_map(signed: bool) -> None:
    """Both are right then, and every backend takes the same."""
    table = dynamic_map(signed)
    x = f32((table[:-1] + table[1:]) / 2)
    found = []
    for name in BACKENDS:
        with curvk.use_backend(name):
            found.append(quantize(np.append(f32(1), x), signed=signed, format="bitsandbytes").codes[1:])
    assert (abs(abs(table[found[0]] - x) - np.diff(table) / 2) <= 1e-6 * abs(x)).all()
    assert bits(*found) == bits(found[0]) * len(found)


@pytest.mark.parametrize("n", [1, 5, 255, 257])
@FORMAT
def test_what_lies_behind_the_end_of_a_row_changes_no_scale(form: str, n: int, backend: str) -> None:
    """First moments of 1 that a gradient brings down to a tenth, all of them."""
    m = quantize(np.ones(n, np.float32), format=form)
    p, g = np.zeros(n, np.float32), np.full(n, -8, np.float32)
    adam_sweep(p, g, m, state(n, form), step=1, lr=0.0, betas=(0.9, 0.0))
    np.testing.assert_allclose(m.scales, 0.1, rtol=1e-5)
    np.testing.assert_allclose(dequantize(m), 0.1, rtol=1e-5)


# ---- rounding at random ---------------------------------------------------------------------------------------------


def unbiased(draw: Callable[[int], Array], x: Array, below: Array, above: Array, times: int) -> None:
    """Each draw is one of two neighbours, and the mean over draws is x within the error of a mean of so many."""
    total, gap = np.zeros(x.size), above - below
    for k in range(times):
        got = draw(k)
        assert ((got == below) | (got == above)).all()
        total += got
    inside = (x - below > 0.02 * gap) & (above - x > 0.02 * gap)
    assert inside.sum() > 500
    x, total, gap, below = (y[inside] for y in (x, total, gap, below))
    share = (x - below) / gap
    z = (total / times - x) / (gap * np.sqrt(share * (1 - share) / times))
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z).max() < 6
    assert 0.9 < z.std() < 1.1


def neighbours(x: Array, fmt: str) -> tuple[Array, Array]:
    grid = decode(np.arange(65536, dtype=np.uint16), fmt)
    grid = np.unique(grid[np.isfinite(grid)])
    at = np.searchsorted(grid, x, "right")
    return grid[at - 1], grid[at]


@pytest.mark.parametrize(
    ("fmt", "scale"), [("bf16", 1.0), ("bf16", 1e-38), ("f16", 1.0), ("f16", 2.0**-15), ("f16", 2e-7)]
)
def test_parameters_are_rounded_without_bias(fmt: str, scale: float) -> None:
    """Also those of float16 below 2^-14."""
    rng = generator("p", fmt, scale)
    n = 4096
    start = encode(scale * rng.uniform(-1, 1, n), fmt)
    g = encode(scale * rng.uniform(-1, 1, n), fmt)
    x = f32(decode(start, fmt)) - f32(0.01) * f32(decode(g, fmt))

    def draw(k: int) -> Array:
        p = start.copy()
        sgd_sweep(p, g.copy(), lr=0.01, rounding="stochastic", draw=k, seed=2**63 + 5, tensor=9)
        return decode(p, fmt)

    unbiased(draw, x.astype(np.float64), *neighbours(x, fmt), times=150)


def test_bfloat16_states_are_rounded_without_bias() -> None:
    rng = generator("m")
    g = f32(rng.standard_normal(4096))
    for k, x in enumerate((g, g * g)):

        def draw(j: int, k: int = k) -> Array:
            m, v = zeros(g.size, "bf16")
            adam_sweep(np.zeros_like(g), g, m, v, step=1, lr=0.0, betas=(0.0, 0.0), draw=j, seed=3)
            return decode((m, v)[k], "bf16")

        unbiased(draw, x.astype(np.float64), *neighbours(x, "bf16"), times=150)


@SIGNED
def test_codes_are_rounded_without_bias(signed: bool) -> None:
    """Where both neighbours lie between the same powers of two: there the number is linear in its code."""
    rng = generator("codes", signed)
    g = f32(rng.uniform(-1, 1, 8192))
    g[::32] = 1  # the scale of every group
    x = (g if signed else g * g).astype(np.float64)
    levels, exponent = (127, 2) if signed else (255, 4)
    c = np.arange(levels + 1)
    table = power(c / levels, exponent)
    octave = np.floor(np.log2(np.maximum(table, 1e-12)))
    at = np.clip(np.searchsorted(table, abs(x), "right"), 1, levels)
    kept = np.flatnonzero((octave[at] == octave[at - 1]) & (at > 2))
    ends = np.sign(x) * table[at - 1], np.sign(x) * table[at]
    below, above = np.minimum(*ends)[kept], np.maximum(*ends)[kept]

    def draw(k: int) -> Array:
        m, v = zeros(g.size, "curvk")
        adam_sweep(np.zeros_like(g), g, m, v, step=1, lr=0.0, betas=(0.0, 0.0), draw=k, seed=3, tensor=1)
        got = wide(m if signed else v, signed)[kept]
        assert (np.minimum(abs(got - below), abs(got - above)) < 1e-6).all()
        return np.where(abs(got - below) < abs(got - above), below, above)

    unbiased(draw, x[kept], below, above, times=150)


@SHORT
def test_what_can_be_stored_is_not_moved(fmt: str) -> None:
    """Every finite number of the format, whatever is drawn; the denormals of float16 many times."""
    every = np.arange(65536, dtype=np.uint16)
    every = every[np.isfinite(decode(every, fmt))]
    if fmt == "f16":
        every = np.concatenate([every, np.resize(np.arange(1024, dtype=np.uint16), 2**17)]).view(np.float16)
    g = np.zeros_like(every)
    for draw in range(20):
        p = every.copy()
        sgd_sweep(p, g, lr=0.0, rounding="stochastic", draw=draw)
        moved = np.flatnonzero(decode(p, fmt) != decode(every, fmt))
        assert not moved.size, f"{decode(every[moved], fmt)[:5]} became {decode(p[moved], fmt)[:5]} in draw {draw}"


@pytest.mark.parametrize("kind", ["bf16", "curvk", "bitsandbytes"])
def test_states_that_do_not_change_stay(kind: str) -> None:
    if kind == "bf16":
        buf: Any = encode(generator("stay").standard_normal(1000), "bf16")
    else:
        buf = with_every_code(kind, True, 0.37)
    n = (buf.codes if isinstance(buf, Codes) else buf).size
    before = bits(buf)
    for draw in range(20):
        sgd_sweep(np.zeros(n, np.float32), np.zeros(n, np.float32), buf, lr=0.1, momentum=1.0, draw=draw)
    assert bits(buf) == before


def test_other_keys_give_other_noise() -> None:
    rng = generator("keys")
    n = 4096
    start, g = (encode(rng.standard_normal(n), "bf16") for _ in range(2))

    def step(**key: int) -> tuple[Array, Array]:
        p, (m, v) = start.copy(), zeros(n, "curvk")
        adam_sweep(p, g.copy(), m, v, step=1, lr=0.01, rounding="stochastic", **key)
        return p, m.codes

    base = step(draw=1, seed=1, tensor=1)
    assert bits(*base) == bits(*step(draw=1, seed=1, tensor=1))
    for key in ({"draw": 2}, {"seed": 2}, {"seed": 1 + 2**32}, {"tensor": 2}):
        for a, b in zip(base, step(**{"draw": 1, "seed": 1, "tensor": 1, **key}), strict=True):
            assert 0.05 < (a != b).mean() < 0.95, key
    # Parameters, first and second moments take words of their own.
    p, (m, v) = encode(np.zeros(n), "bf16"), zeros(n, "bf16")
    one = encode(np.ones(n), "bf16")
    adam_sweep(p, one, m, v, step=1, lr=0.3, betas=(0.3, 0.3), rounding="stochastic", seed=5)
    ups = [decode(x, "bf16") > decode(x, "bf16").min() for x in (p, m, v)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(ups[a], ups[b])[0, 1]) < 0.1


def word(group: int, k: int, which: int, seed: int, tensor: int, draw: int) -> int:
    """What element k of a group rounds with, from the header's words."""
    block = philox4x32([group % 2**32, group >> 32, tensor, draw], [seed % 2**32, seed >> 32])
    return (int(block[which]) + k * WEYL) % 2**32


def test_the_bits_that_are_drawn() -> None:
    """By hand from the generator: parameters with r0, first moments with r1, second ones with r2."""
    rng = generator("bits")
    n, key = 3000, {"seed": 0xFEDCBA9876543210, "tensor": 0x89ABCDEF, "draw": 2**32 - 2}
    p, g = (encode(rng.standard_normal(n), "bf16") for _ in range(2))
    g32 = f32(decode(g, "bf16"))
    x = f32(decode(p, "bf16")) - f32(0.01) * g32
    sgd_sweep(p, g.copy(), lr=0.01, rounding="stochastic", **key)
    grads = f32(rng.standard_normal(n))
    m, v = zeros(n, "bf16")
    adam_sweep(np.zeros_like(grads), grads, m, v, step=1, lr=0.0, betas=(0.0, 0.0), **key)
    coded, _ = zeros(n, "curvk")
    adam_sweep(np.zeros_like(grads), grads, coded, state(n, "curvk"), step=1, lr=0.0, betas=(0.0, 0.0), **key)
    for i in (0, 1, 31, 32, 33, 1023, 1024, 1057, 2047, 2999):
        group, k = divmod(i, 32)
        for got, number, which in ((p, x, 0), (m, grads, 1), (v, grads * grads, 2)):
            u = int(number[i].view(np.uint32))
            assert got[i] == (u + (word(group, k, which, **key) >> 16)) >> 16, (i, which)
        y = float(grads[i]) / float(coded.scales[group])
        units = np.sign(y) * 127 * 512 * power(np.array(abs(y)), 0.5)
        if abs(units - np.rint(units)) < 0.45:
            assert coded.codes[i] == ((int(np.rint(units)) + (word(group, k, 1, **key) >> 23)) >> 9) % 256, i


def test_the_bits_that_are_drawn_to_the_last_one() -> None:
    """Gradients that are just rounded up as they become momenta, or just not: by the upper 16 bits of 32."""
    n, key = 64_000, {"seed": 5, "tensor": 6, "draw": 7}
    words = np.array([word(j, 0, 1, **key) for j in range(n // 32)])
    drawn = ((words[:, None] + np.arange(32) * WEYL) % 2**32 >> 16).ravel()
    for below, want in ((0, 0x3F81), (1, 0x3F80)):
        g = (0x3F810000 - drawn - below).astype(np.uint32).view(np.float32)
        buf = np.zeros(n, np.uint16)
        sgd_sweep(np.zeros(n, np.float32), g, buf, lr=0.0, momentum=0.9, first=True, **key)
        assert (buf == want).all()


def test_a_float16_is_rounded_with_13_bits() -> None:
    n, key = 64, {"seed": 12, "tensor": 3, "draw": 4}
    x = f32(np.linspace(0.3, 3, n))
    p, g = np.zeros(n, np.float16), np.zeros(n, np.float16)
    origin = x.astype(np.float16)
    decayed = f32(origin) * f32(1 - 0.1)
    sgd_sweep(p, g, origin=origin, lr=0.1, weight_decay=1.0, decoupled=True, rounding="stochastic", **key)
    for i in range(n):
        u = int(decayed[i].view(np.uint32)) - ((127 - 15) << 23)
        assert p.view(np.uint16)[i] == (u + (word(i // 32, i % 32, 0, **key) >> 19)) >> 13


@pytest.mark.parametrize("op", ["adam_sweep16", "adam_sweep8", "adam_sweep8b", "sgd_sweep8"])
def test_a_part_that_is_told_where_it_begins(op: str) -> None:
    """4096 elements in one array, and as two rows of which the second begins at element 2048; also far out."""
    case = cases()[op]
    far = 2**38
    a = case.make(4096, "bf16", generator("offset", op), next(iter(case.variants.values())))
    names = [x.name for x in case.kernels["bf16"].arrays]
    scalars = {"rounding": 1, "draw": 3, "seed": 8, "lr": 0.01, "step": 2, "grad_scale": 1.0, "momentum": 0.5}
    for scalar in case.kernels["bf16"].scalars:
        scalars.setdefault(scalar.name, 0)
    values = tuple(scalars[s.name] for s in case.kernels["bf16"].scalars)

    def run(parts: list[slice], base: int) -> dict[str, Any]:
        rows = [{k: None if x is None else case.cut(k, x, part).copy() for k, x in a.items()} for part in parts]
        columns: list[Any] = [None if a.get(k) is None else [r[k] for r in rows] for k in names[:-2]]
        keys = [np.full(len(rows), 5), np.array([base + part.start for part in parts])]
        _backend.Plan(op, (*columns, *keys)).run(values)
        return {k: np.concatenate([r[k] for r in rows]) for k in names[:-2] if a.get(k) is not None}

    for base in (0, far):
        one, two = run([slice(0, 4096)], base), run([slice(0, 2048), slice(2048, 4096)], base)
        assert bits(*one.values()) == bits(*two.values())
    assert bits(*run([slice(0, 4096)], far).values()) != bits(*run([slice(0, 4096)], 0).values())


# ---- the truth itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["adam_sweep16", "adam_sweep8", "adam_sweep8b"])
def test_the_truth_leaves_no_more_than_two_neighbours(op: str) -> None:
    """And refuses any third, a scale that is 2^-17 larger, and a group that lost its NaN."""
    case = cases()[op]
    options = next(o for o in case.variants.values() if o.get("rounding") == "stochastic")
    a = case.make(4096, "bf16", generator("truth", op), options)
    a["g"][77] = 0x7FC0
    truth = case.truth({k: None if x is None else x.copy() for k, x in a.items()}, options, "bf16")
    got = {k: np.array(x) for k, x in case.run(a, options, "bf16").items()}
    for name in ("p", "m", "v"):
        x, want = numbers(got[name]), truth[name]
        assert not want.misses(x).any()
        if got[name].dtype == np.uint8:
            wide_enough = want.high - want.low
            assert wide_enough.max() <= 1
            assert wide_enough.mean() < (0.01 if op == "adam_sweep8b" else 1)
            off = [x + np.uint8(2), x - np.uint8(2)]
        else:
            off = [numbers(got[name] + np.uint16(2)), numbers(got[name] - np.uint16(2))]
        for other in off:
            assert want.misses(other)[np.arange(4096) // 256 != 0].all(), name
    for name in ("m_scale", "v_scale") if "8" in op else ():
        finite = np.isfinite(got[name])
        assert np.flatnonzero(~finite).tolist() == [77 // case.per[name]]
        assert truth[name].misses(np.where(finite, got[name] * np.float32(1 + 2.0**-17), 1)).all()
