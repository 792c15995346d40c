"""What the noise kernels do with the stream's values, in all storage formats, and what they refuse.

`fill` is taken as the truth about z (test_noise.py holds it against an oracle); the arithmetic is redone here in NumPy.
"""

from __future__ import annotations

import math
import zlib
from functools import reduce
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._backend import _every_level, compiled
from curvk._bench.storage import decode, empty, encode
from curvk.kernels import noise
from noise_cases import Array, values

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

SLOW = curvk.get_backend() == "python"  # about 10 us for each element
DISTS = pytest.mark.parametrize("dist", noise.DISTRIBUTIONS)
FORMATS = pytest.mark.parametrize("fmt", ["f32", "f64", "bf16", "f16"])
KEY: dict[str, Any] = {"seed": 0x0123456789ABCDEF, "draw": 42, "tensor": 7}


def generator(*parts: object) -> np.random.Generator:
    """Numbers that the parts determine; the seed is printed, so a failure shows it."""
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return np.random.default_rng(seed)


def noise_of(n: int, dist: str = "normal", **key: Any) -> Array:
    return noise.fill(np.zeros(n, np.float32), dist=dist, **(KEY | key))


# ---- what is done with z ---------------------------------------------------------------------------------------------


def work(x: Array, fmt: str) -> Array:
    """The stored numbers in the type of the arithmetic: float64 for float64, else float32."""
    return decode(x, fmt).astype(np.float64 if fmt == "f64" else np.float32)


def combined(p: Array, fmt: str, coefs: Any, z: list[Array], decay: float = 0.0, threshold: float = math.inf) -> Array:
    """(1 - decay) p + sum_k coefs[k] z_k, operation by operation in the type of the arithmetic, rounded once.

    The sum is that of each four draws in order, then of these sums in order.
    """
    x = work(p, fmt)
    kind = x.dtype.type
    terms = [kind(c) * zk.astype(kind) for c, zk in zip(coefs, z, strict=True)]
    fours = [reduce(np.add, terms[k : k + 4]) for k in range(0, len(terms), 4)]
    total = reduce(np.add, fours) if fours else np.zeros_like(x)
    result = (x if decay == 0 else kind(1 - decay) * x) + total
    assert result.dtype == x.dtype
    return np.where(abs(x) <= kind(threshold), encode(result.astype(np.float64), fmt), p)


@FORMATS
@DISTS
def test_perturb(fmt: str, dist: str) -> None:
    rng = generator("perturb", fmt, dist)
    n = 900 if SLOW else 70_001
    p = values(n, fmt, rng)
    for scale in (1e-3, -2e-3, 0.1, 0.0):
        got = p.copy()
        noise.perturb_(got, scale=scale, dist=dist, offset=5, **KEY)
        want = combined(p, fmt, [scale], [noise_of(n, dist, offset=5)])
        np.testing.assert_array_equal(got, want)
        same = p.copy()
        noise.axpy_seeds_(same, seed=KEY["seed"], draws=[42], coefs=[scale], tensor=7, dist=dist, offset=5)
        assert same.tobytes() == got.tobytes()


@FORMATS
@DISTS
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 17, 20 if SLOW else 66])
def test_axpy_and_scratch(fmt: str, dist: str, count: int) -> None:
    rng = generator("axpy", fmt, dist, count)
    n = 200 if SLOW else 9_001
    p = values(n, fmt, rng)
    draws, coefs = rng.integers(0, 2**32, count).tolist(), (0.1 * rng.standard_normal(count)).tolist()
    z = [noise_of(n, dist, draw=d) for d in draws]
    for decay, threshold in ((0.0, math.inf), (1e-3, math.inf), (0.3, 0.7), (1.0, math.inf), (0.0, 0.0)):
        options: dict[str, Any] = {"decay": decay, "threshold": threshold, "dist": dist, "tensor": 7}
        got, out = p.copy(), np.zeros_like(p)
        noise.axpy_seeds_(got, seed=KEY["seed"], draws=draws, coefs=coefs, **options)
        want = combined(p, fmt, coefs, z, decay, threshold)
        np.testing.assert_array_equal(work(got, fmt), work(want, fmt))
        before = p.tobytes()
        assert noise.scratch(p, out, seed=KEY["seed"], draws=draws, coefs=coefs, **options) is out
        assert (out.tobytes(), p.tobytes()) == (got.tobytes(), before)


def test_coefficients_are_rounded_first() -> None:
    """A float32 record of the coefficients replays what float64 ones did."""
    rng = generator("coefficients")
    p, coefs, draws = rng.standard_normal(1000).astype(np.float32), rng.standard_normal(6), list(range(6))
    exact, logged = p.copy(), p.copy()
    noise.axpy_seeds_(exact, seed=1, draws=draws, coefs=coefs, decay=1 / 3)
    noise.axpy_seeds_(logged, seed=1, draws=np.array(draws), coefs=coefs.astype(np.float32), decay=1 / 3)
    assert exact.tobytes() == logged.tobytes()


def test_threshold_decides_by_magnitude() -> None:
    p = np.array([-2, -1.5, -1, -0.0, 0.5, 1, 1.5, np.inf, -np.inf, np.nan] * 10, np.float32)
    got = p.copy()
    noise.perturb_(got, seed=0, scale=1.0, dist="rademacher", threshold=1.0)
    inside = abs(p) <= 1
    z = noise.fill(np.empty(p.size, np.float32), seed=0, dist="rademacher")
    np.testing.assert_array_equal(got, np.where(inside, p + z, p))
    noise.perturb_(p, seed=0, scale=1.0, dist="rademacher")  # without a threshold, infinity and NaN stay what they are
    assert np.isnan(p[9::10]).all()
    assert np.isinf(p[7::10]).all()


@FORMATS
@DISTS
def test_restore_update_perturb(fmt: str, dist: str) -> None:
    """From p = theta + scale z: (1 - decay) theta + coef z + next_scale z', to the rounding of the format."""
    rng = generator("restore", fmt, dist)
    n = 300 if SLOW else 20_011
    eps = {"f32": 2.0**-24, "f64": 2.0**-53, "bf16": 2.0**-8, "f16": 2.0**-11}[fmt]
    z, after = (noise_of(n, dist, draw=d).astype(np.float64) for d in (42, 43))
    for scale, coef, decay, next_scale in ((-0.1, -0.02, 0, 0), (0.1, 0.3, 0.25, 0), (-0.1, -0.02, 0.01, 0.1)):
        theta = rng.standard_normal(n)
        p = encode(theta + scale * z, fmt)
        shown = decode(p, fmt)
        got = p.copy()
        next_draw = {"next_draw": 43, "next_scale": next_scale} if next_scale else {}
        noise.restore_update_perturb_(got, scale=scale, coef=coef, decay=decay, dist=dist, **next_draw, **KEY)
        want = (1 - decay) * (shown - scale * z) + coef * z + next_scale * after
        arithmetic = 2.0**-53 if fmt == "f64" else 2.0**-24
        terms = abs(shown) + (abs(scale) + abs(coef)) * abs(z) + abs(next_scale * after)
        bound = eps * abs(want) + 6 * arithmetic * terms + (2.0**-25 if fmt == "f16" else 0)
        assert (abs(decode(got, fmt) - want) <= bound).all()


def test_restore_update_perturb_is_axpy() -> None:
    """Powers of two make the coefficients exact, so the one pass is a two-draw axpy bit for bit."""
    p = generator("fused").standard_normal(5000).astype(np.float32)
    fused, twice = p.copy(), p.copy()
    noise.restore_update_perturb_(fused, seed=3, draw=8, scale=0.5, coef=0.125, next_draw=9, next_scale=0.5, decay=0.25)
    noise.axpy_seeds_(twice, seed=3, draws=[8, 9], coefs=[0.125 - 0.75 * 0.5, 0.5], decay=0.25)
    assert fused.tobytes() == twice.tobytes()


@FORMATS
@DISTS
def test_dot_seeds(fmt: str, dist: str) -> None:
    """Against the exact sum of the products, themselves exact but where v is float64, to the header's error class."""
    rng = generator("dot", fmt, dist)
    for n in (0, 1, 33, 700 if SLOW else 100_003):
        v = values(n, fmt, rng)
        draws = [5, 2**32 - 1, 0]
        got = noise.dot_seeds(v, seed=KEY["seed"], draws=draws, tensor=7, dist=dist)
        assert (got.dtype, got.shape) == (np.float64, (3,))
        for d, value in zip(draws, got.tolist(), strict=True):
            products = decode(v, fmt) * noise_of(n, dist, draw=d).astype(np.float64)
            error = abs(value - math.fsum(products))
            assert error <= (n / 16 + 20) * 2.0**-53 * math.fsum(abs(products))
    assert noise.dot_seeds(np.ones(3), seed=0, draws=[]).shape == (0,)


# ---- the grid --------------------------------------------------------------------------------------------------------


def on_grid(n: int, rng: np.random.Generator, eps: float) -> tuple[Array, float]:
    theta = (0.02 * rng.standard_normal(n)).astype(np.float32)
    quantum = 2.0 ** (math.ceil(math.log2(float(abs(theta).max()) + 7 * eps)) - 23)
    return (np.rint(theta / quantum) * quantum).astype(np.float32), quantum


@DISTS
def test_grid_steps_are_reversible(dist: str) -> None:
    """300 random steps there, twice back, and home: every value as the formula has it, the last bit for bit."""
    rng = generator("grid", dist)
    theta, quantum = on_grid(64 if SLOW else 20_001, rng, 1e-3)
    p = theta.copy()
    for step in range(10 if SLOW else 300):
        key = {"seed": int(rng.integers(2**63)), "draw": step, "tensor": int(rng.integers(2**28))}
        scale = float(10 ** rng.uniform(-6, -3))
        z = noise.fill(np.empty(p.size, np.float32), dist=dist, **key)
        delta = np.rint(np.float32(scale) * z / np.float32(quantum)) * np.float32(quantum)
        for steps, displaced in ((1, theta + delta), (-2, theta - delta), (1, theta)):
            noise.grid_axpy_(p, quantum=quantum, scale=scale, steps=steps, dist=dist, **key)
            np.testing.assert_array_equal(p, displaced)
        assert p.tobytes() == theta.tobytes()


@DISTS
def test_grid_update(dist: str) -> None:
    """Restore and stochastically rounded update in one pass, against float64 with the uniforms of "rounding"."""
    rng = generator("grid update", dist)
    n = 300 if SLOW else 200_003
    theta, quantum = on_grid(n, rng, 1e-3)
    z, u = noise_of(n, dist).astype(np.float64), noise_of(n, "uniform", tensor=7 | 1 << 28)
    p, scale, coef, decay = theta.copy(), 1e-3, -3.7e-7, 1e-5
    noise.grid_axpy_(p, quantum=quantum, scale=scale, steps=-1, dist=dist, **KEY)
    noise.grid_axpy_(p, quantum=quantum, scale=scale, coef=coef, decay=decay, update=True, dist=dist, **KEY)
    exact = (float(np.float32(coef)) * z - float(np.float32(decay)) * theta) / quantum
    steps = (p.astype(np.float64) - theta) / quantum
    np.testing.assert_array_equal(steps, np.rint(steps))
    seam = abs(exact + u - np.rint(exact + u)) < 1e-4  # float32 may fall on either side there
    np.testing.assert_array_equal(steps[~seam], np.floor(exact + u)[~seam])
    assert (abs(steps - exact) < 1 + 1e-4).all()
    assert seam.mean() < 0.01


def test_grid_rounding_is_unbiased() -> None:
    """The sum of roundings is normal with variance sum f (1 - f); and no draw repeats another's."""
    n, draws = (200, 5) if SLOW else (50_000, 20)
    theta, quantum = on_grid(n, generator("unbiased"), 1e-3)
    fractions = np.array([0.03, 0.3, 0.5, 0.9, 1.75])
    total, kept = np.zeros((fractions.size, n)), []
    for i, fraction in enumerate(fractions):
        for draw in range(draws):
            p = theta.copy()
            noise.grid_axpy_(
                p, seed=11, draw=draw, quantum=quantum, dist="rademacher", coef=fraction * quantum, update=True
            )
            z = noise.fill(np.empty(n, np.float32), seed=11, draw=draw, dist="rademacher")
            error = (p.astype(np.float64) - theta) / quantum - float(np.float32(fraction)) * z
            total[i] += error
            kept.append(error)
    f = fractions % 1
    sigma = np.sqrt(f * (1 - f) * n * draws)
    score = total.sum(1) / sigma
    print(score)
    assert (abs(score) < 4.5).all()
    np.testing.assert_allclose(total.var(1), f * (1 - f) * draws, rtol=8 / math.sqrt(n))  # draws independent of another
    half = np.array(kept[2 * draws : 3 * draws])
    correlation = (half[:-1] * half[1:]).mean(1) / 0.25 * math.sqrt(n)
    assert (abs(correlation) < 4.5).all()


# ---- lists and rows --------------------------------------------------------------------------------------------------

SHAPES = [(3, 5), (0,), (1025,), (2, 0, 4), (), (7, 33), (64,)]


@FORMATS
def test_lists_equal_singles(fmt: str) -> None:
    """Every function over a list, in any order, gives each array what it gets alone."""
    rng = generator("lists", fmt)
    words = [noise.tensor_word(f"layer.{i}") for i in range(len(SHAPES))]
    values = [encode(rng.standard_normal(s).ravel(), fmt).reshape(s) for s in SHAPES]
    common: dict[str, Any] = {"seed": 3, "dist": "normal"}
    seeds: dict[str, Any] = common | {"draws": [4, 9, 1], "coefs": [0.5, -0.25, 3.0], "decay": 0.01}

    def results(p: Any, tensor: Any) -> list[Any]:
        copies = [[x.copy() for x in p] if isinstance(p, list) else p.copy() for _ in range(5)]
        noise.fill(copies[0], draw=6, tensor=tensor, **common)
        noise.perturb_(copies[1], scale=0.125, tensor=tensor, **common)
        noise.axpy_seeds_(copies[2], tensor=tensor, **seeds)
        noise.scratch(p, copies[3], tensor=tensor, **seeds)
        noise.restore_update_perturb_(copies[4], draw=6, scale=0.1, coef=0.2, tensor=tensor, **common)
        return copies

    order = rng.permutation(len(SHAPES)).tolist()
    listed = results([values[i] for i in order], [words[i] for i in order])
    for place, i in enumerate(order):
        for one, many in zip(results(values[i], words[i]), listed, strict=True):
            assert many[place].tobytes() == one.tobytes(), (i, SHAPES[i])
    got = noise.dot_seeds([values[i] for i in order], tensor=[words[i] for i in order], draws=[4, 9, 1], **common)
    alone = [noise.dot_seeds(v, tensor=w, draws=[4, 9, 1], **common) for v, w in zip(values, words, strict=True)]
    np.testing.assert_allclose(got, np.sum(alone, 0), rtol=1e-12, atol=1e-9)


@FORMATS
@DISTS
def test_rows(fmt: str, dist: str) -> None:
    """Rows get what they get when all do; the others keep their bytes."""
    rng = generator("rows", fmt, dist)
    for shape in [(9, 5), (40, 33), (12,), (6, 3, 4), (5, 0)]:
        p = encode(rng.standard_normal(math.prod(shape)), fmt).reshape(shape)
        for rows in ([], [0], [shape[0] - 1], sorted(rng.choice(shape[0], shape[0] // 2, False)), range(shape[0])):
            chosen_rows = np.array(list(rows), np.int64)
            for run in (
                lambda x, **k: noise.perturb_(x, scale=0.5, dist=dist, **KEY, **k),
                lambda x, **k: noise.axpy_seeds_(
                    x, seed=8, draws=[1, 2], coefs=[0.5, 2.0], decay=0.25, dist=dist, offset=77, **k
                ),
            ):
                got, whole = p.copy(), p.copy()
                run(got, rows=chosen_rows)
                run(whole)
                want = p.copy()
                want[chosen_rows] = whole[chosen_rows]
                assert got.tobytes() == want.tobytes()


def test_rows_of_a_transpose() -> None:
    whole = noise_of(120).reshape(10, 12)
    view = np.zeros((12, 10), np.float32).T
    noise.perturb_(view, scale=1.0, rows=np.array([1, 4, 5]), **KEY)
    np.testing.assert_array_equal(view[[1, 4, 5]], whole[[1, 4, 5]])
    assert not view[[0, 2, 3, 6, 7, 8, 9]].any()


@FORMATS
def test_views(fmt: str) -> None:
    """Every function on transposed, reversed and strided arrays: an element's index is its logical one."""
    base = values(11 * 23 * 4, fmt, generator("views", fmt)).reshape(11, 23, 4)
    common: dict[str, Any] = {"seed": 3, "tensor": 9}
    several: dict[str, Any] = common | {"draws": [4, 9], "coefs": [0.5, -0.25], "decay": 0.125}
    for view in (lambda x: x.transpose(2, 0, 1), lambda x: x[::-1, 1::2, ::3], lambda x: x[:, 3]):
        flat = view(base).copy()
        for run in (
            lambda x: noise.perturb_(x, scale=0.1, **common),
            lambda x: noise.axpy_seeds_(x, **several),
            lambda x: noise.axpy_seeds_(x, rows=[0, 2, 3], **several),
            lambda x: noise.restore_update_perturb_(x, draw=1, scale=0.1, coef=0.2, **common),
            lambda x: noise.scratch(x.copy(), x, **several),
            lambda x: fmt != "f32" or noise.grid_axpy_(x, quantum=2.0**-20, scale=0.1, coef=0.1, update=True, **common),
        ):
            whole, want = base.copy(), flat.copy()
            run(view(whole))
            run(want)
            np.testing.assert_array_equal(view(whole), want)
            view(whole)[...] = view(base)
            assert whole.tobytes() == base.tobytes(), "elements outside the view were written"
        got, want = (noise.dot_seeds(x, draws=[4, 9], **common) for x in (view(base), flat))
        np.testing.assert_array_equal(got, want)
        out = np.zeros_like(flat)
        noise.scratch(view(base), out, **several)
        whole = flat.copy()
        noise.axpy_seeds_(whole, **several)
        assert out.tobytes() == whole.tobytes()


def test_torch_tensors() -> None:
    """In place on tensors, bfloat16 included; autograd is told of every one that is written, and of no other."""
    torch = pytest.importorskip("torch")
    for kind, fmt in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        theta = torch.linspace(-1, 1, 60).to(kind).reshape(6, 10)
        bits = theta.view(torch.uint16).numpy().copy() if fmt == "bf16" else theta.numpy().copy()
        for options in ({}, {"rows": [1, 2, 5]}):
            p, q = torch.nn.Parameter(theta.clone()), bits.copy()
            version = p._version
            noise.perturb_(p, scale=0.25, **options, **KEY)
            noise.perturb_(q, scale=0.25, **options, **KEY)
            got = p.detach().view(torch.uint16).numpy() if fmt == "bf16" else p.detach().numpy()
            assert got.tobytes() == q.tobytes() != bits.tobytes()
            assert p._version > version
        p, out = torch.nn.Parameter(theta.clone().T), torch.zeros(10, 6, dtype=kind)
        versions = p._version, out._version
        assert noise.scratch(p, out, draws=[42], coefs=[0.25], seed=KEY["seed"], tensor=7) is out
        assert (p._version, out._version > versions[1]) == (versions[0], True)
        want = bits.T.copy()
        noise.perturb_(want, scale=0.25, **KEY)
        assert (out.view(torch.uint16) if fmt == "bf16" else out).numpy().tobytes() == want.tobytes()


# ---- the same bits ---------------------------------------------------------------------------------------------------


def everything(lengths: list[int], fmt: str, dist: str) -> bytes:
    """The bytes of all functions' results on a list of arrays, odd places in memory included."""
    rng = np.random.default_rng(zlib.crc32(f"{lengths}{fmt}{dist}".encode()))
    originals = [values(n, fmt, rng) for n in lengths]
    words = list(range(10, 10 + len(lengths)))
    common: dict[str, Any] = {"seed": 2**63 + 9, "tensor": words, "dist": dist}
    several: dict[str, Any] = common | {"draws": [3, 1, 4, 15, 92], "coefs": [0.1, -0.2, 0.3, 1e-3, 7.0], "decay": 0.01}
    found = []

    def placed() -> list[Array]:
        copies = [empty(x.size, x.dtype, offset=(3 * i + 1) % 16) for i, x in enumerate(originals)]
        for copy, x in zip(copies, originals, strict=True):
            copy[:] = x
        found.append(copies)
        return copies

    noise.fill(placed(), draw=6, offset=[31 * w for w in words], **common)
    noise.perturb_(placed(), scale=0.1, draw=5, **common)
    noise.axpy_seeds_(placed(), threshold=1.5, **several)
    noise.scratch(originals, placed(), **several)
    noise.restore_update_perturb_(placed(), draw=1, scale=0.1, coef=0.2, next_draw=2, next_scale=0.3, **common)
    if fmt == "f32":
        options = {"quantum": 2.0**-20, "scale": 1e-3, "steps": -2, "coef": 1e-4, "decay": 1e-3, "update": True}
        noise.grid_axpy_(placed(), draw=2**32 - 1, **options, **common)
    dots = noise.dot_seeds(originals, draws=[3, 1, 4], **common)
    return b"".join(x.tobytes() for copies in found for x in copies) + dots.tobytes()


@FORMATS
@DISTS
def test_same_bits_everywhere(fmt: str, dist: str) -> None:
    """Levels, threads and backends, on lists whose arrays are cut at odd places."""
    short, long = [1, 0, 63, 17, 301], [100_003, 0, 33, 32_769, 1]
    reference = {str(x): everything(x, fmt, dist) for x in ([short] if SLOW else [short, long])}
    with curvk.use_backend("python"):
        assert everything(short, fmt, dist) == reference[str(short)]
    for lengths in [x for x in (short, long) if str(x) in reference]:
        with curvk.use_backend("numba"):
            assert everything(lengths, fmt, dist) == reference[str(lengths)]
        if not compiled:
            continue
        with curvk.use_backend("cpp"), _every_level() as levels:
            for level in levels:
                curvk.set_simd(level)
                for threads in (1, 2, 3, 7):
                    with curvk.threads(threads):
                        assert everything(lengths, fmt, dist) == reference[str(lengths)], (level, threads)
