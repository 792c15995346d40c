"""Every kernel of the registry against its truth, and the same bits whatever runs it.

Runs under any backend (CURVK_BACKEND), any SIMD level (CURVK_SIMD) and without compiled kernels: what is compared with
what follows from what the installation has.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import os
import platform
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._backend import _every_level, compiled
from curvk._bench import interval
from curvk._bench.registry import Arrays, Case, cases
from curvk._bench.storage import decode, empty, encode, numbers
from curvk._signatures import ops
from curvk.kernels import half
from curvk.kernels.optim import adam_step, global_norm, sgd_step

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

BACKEND = curvk.get_backend()
SLOW_ABOVE = 1100 if BACKEND == "python" else 10**9  # elements; a Python loop takes about 5 us for each
THREADS = (1, 2, 3, 7)
GUARD, CANARY = 192, 0xA5
STORED = {"float32": "f32", "float64": "f64", "uint16": "bf16", "float16": "f16"}
ALL = [
    pytest.param(case, fmt, variant, id=f"{case.op}-{fmt}-{variant}")
    for case in cases().values()
    for fmt in case.formats
    for variant in case.tested
]
EVERY = pytest.mark.parametrize(("case", "fmt", "variant"), ALL)


def test_every_kernel_has_a_case() -> None:
    assert set(cases()) == set(ops())


# ---- running a case with guarded, misplaced arrays ------------------------------------------------------------------


def seed_of(*parts: object) -> int:
    """A seed that the test's parameters determine; it is printed, so a failure shows it."""
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return seed


def make(case: Case, fmt: str, variant: str, n: int) -> Arrays:
    return case.make(n, fmt, np.random.default_rng(seed_of(case.op, fmt, variant, n)), case.variants[variant])


def run(case: Case, fmt: str, variant: str, inputs: Arrays, offset: int = 0) -> Arrays:
    """Runs the case on copies of the inputs and returns its outputs as fresh arrays.

    Each copy starts `offset` elements (plus one for each array before it) behind a cache line, between canaries. A
    write outside an array, or to one that the kernel only reads, fails here.
    """
    placed: Arrays = {}
    frames = {}
    for k, (name, x) in enumerate(inputs.items()):
        if x is None:
            placed[name] = None
            continue
        shift = (offset + k) % 16 if offset else 0
        placed[name] = empty(x.size, x.dtype, offset=shift, guard=GUARD)
        frames[name] = placed[name].base
        frames[name][:] = CANARY
        placed[name][:] = x
    outputs = case.run(placed, case.variants[variant], fmt)
    outputs = {name: np.array(x) for name, x in outputs.items()}
    for name, frame in frames.items():
        x = placed[name]
        start = x.ctypes.data - frame.ctypes.data
        outside = np.concatenate([frame[:start], frame[start + x.nbytes :]])
        assert (outside == CANARY).all(), f"{name}: bytes outside the array were written"
        if name not in case.written:
            assert x.tobytes() == inputs[name].tobytes(), f"{name}: only read, yet changed"
    return outputs


def check(case: Case, fmt: str, variant: str, inputs: Arrays, outputs: Arrays) -> dict[str, Any]:
    """Compares outputs with the truth; returns the truth."""
    originals = {name: None if x is None else x.copy() for name, x in inputs.items()}
    truth = case.truth(originals, case.variants[variant], fmt)
    assert set(truth) == set(outputs) or case.op == "loss_window"
    for name, want in truth.items():
        got = outputs[name]
        if isinstance(want, interval.Interval):
            x = numbers(got)
            missed = np.flatnonzero(want.misses(x))
            if missed.size:
                i = missed[0]
                low, high = np.broadcast_to(want.low, x.shape), np.broadcast_to(want.high, x.shape)
                pytest.fail(
                    f"{name}: {missed.size} of {x.size} outside the error class ({case.error}); first at {i}: "
                    f"{x.flat[i]!r}, truth in [{low.flat[i]!r}, {high.flat[i]!r}]"
                )
        else:
            np.testing.assert_array_equal(numbers(got), numbers(want), name)
    return truth


def bits(outputs: Arrays) -> dict[str, bytes]:
    """Outputs as bytes, every NaN made the same."""
    kept = {}
    for name, x in outputs.items():
        x = np.array(x)
        if x.dtype == np.uint16:
            x[(x & 0x7FFF) > 0x7F80] = 0x7FC0
        elif x.dtype.kind == "f":
            x[np.isnan(x)] = np.nan
        kept[name] = x.tobytes()
    return kept


def assert_same(got: Arrays, want: Arrays, what: str) -> None:
    a, b = bits(got), bits(want)
    for name in want:
        if a[name] != b[name]:
            x, y = got[name], want[name]
            i = np.flatnonzero((x != y) & ~((x != x) & (y != y)))
            where = (
                f"{i.size} of {x.size}, first {x.flat[i[0]]!r} against {y.flat[i[0]]!r} at {i[0]}"
                if i.size
                else "signs"
            )
            pytest.fail(f"{what}: {name} differs in its bits: {where}")


# ---- against truth --------------------------------------------------------------------------------------------------


@EVERY
def test_truth(case: Case, fmt: str, variant: str) -> None:
    first = variant == next(iter(case.variants))
    skipped = {32767, 32768} if fmt == "f64" and not first else set()  # longdouble is slow
    if case.granularity > 1 and not first:
        skipped |= {n for n in case.sizes if n > 32769}  # whose tiles end as those of 1,023 and 1,025 elements do
    for n in case.sizes:
        if n <= SLOW_ABOVE and n not in skipped:
            inputs = make(case, fmt, variant, n)
            truth = check(case, fmt, variant, inputs, run(case, fmt, variant, inputs))
            assert not any(np.any(x.loose) for x in truth.values() if isinstance(x, interval.Interval))


@EVERY
@pytest.mark.parametrize("offset", [1, 3, 7])
def test_unaligned(case: Case, fmt: str, variant: str, offset: int) -> None:
    n = 100 if case.op == "loss_window" else 1023
    inputs = make(case, fmt, variant, n)
    outputs = run(case, fmt, variant, inputs, offset)
    check(case, fmt, variant, inputs, outputs)
    assert_same(outputs, run(case, fmt, variant, inputs), "aligned against unaligned")


def special_inputs(case: Case, fmt: str, variant: str, n: int) -> Arrays:
    """NaN, infinities, zeros of both signs, denormals, the largest and smallest numbers, mixed with ordinary ones."""
    rng = np.random.default_rng(seed_of("special", case.op, fmt, variant))
    inputs = make(case, fmt, variant, n)
    for name, x in inputs.items():
        if x is None:
            continue
        if x.dtype == np.uint8:
            continue
        storage = STORED[x.dtype.name]
        f = interval.STORAGE[storage]
        tiny, normal = 2.0**f.tiny, 2.0 ** (f.tiny + f.bits - 1)
        values = np.array(
            [math.nan, math.inf, 0.0, tiny, 5 * tiny, normal, normal - tiny, f.largest, 1e-30, 1e-18, 1e18, 1.0]
        )
        with np.errstate(over="ignore"):
            picks = rng.choice(np.concatenate([values, -values]), x.size)
        # Never negative in use; a negative second moment is NaN at every level, tried rarely.
        positive = (
            0.95 if name in ("v", "max_v") else float(name.endswith("scale") or not variant_signed(case, variant))
        )
        picks = np.where(rng.random(x.size) < positive, abs(picks), picks)
        # Where a group is NaN as soon as one element is, most of the first half stay finite.
        grouped = any(n > 1 for n in case.per.values())
        rate = np.where(grouped & (np.arange(x.size) < x.size // 2), 0.02, 0.5)
        x[:] = np.where(rng.random(x.size) < rate, encode(picks, storage), x)
    return inputs


def variant_signed(case: Case, variant: str) -> bool:
    return bool(case.variants[variant].get("signed", True))


@pytest.mark.parametrize(("case", "fmt", "variant"), [p for p in ALL if p.values[0].special])
def test_special_values(case: Case, fmt: str, variant: str) -> None:
    inputs = special_inputs(case, fmt, variant, 1023 if BACKEND == "python" else 8191)
    if not case.in_parts:  # one such element decides the sum; the global norm's own tests go through them
        inputs = {k: x[:1] for k, x in inputs.items()}
    outputs = run(case, fmt, variant, inputs)
    truth = check(case, fmt, variant, inputs, outputs)
    for name, x in truth.items():
        if isinstance(x, interval.Interval):
            assert np.mean(x.loose) < 0.35, f"{name}: the truth leaves too much open to test anything"
    for setting, context in settings(inputs):
        with context:
            assert_same(run(case, fmt, variant, inputs), outputs, setting)


# ---- the same bits --------------------------------------------------------------------------------------------------


@contextmanager
def simd(level: str) -> Iterator[None]:
    with _every_level():
        curvk.set_simd(level)
        yield


def settings(inputs: Arrays) -> Iterator[tuple[str, Any]]:
    """Every way to run a kernel here: levels and backends; the Python one on short arrays only."""
    for level in curvk.simd_levels():
        if BACKEND == "cpp":
            yield level, simd(level)
    if compiled:
        yield "cpp", curvk.use_backend("cpp")
    yield "numba", curvk.use_backend("numba")
    if max(x.size for x in inputs.values() if x is not None) <= 1100:
        yield "python", curvk.use_backend("python")


@EVERY
def test_same_bits(case: Case, fmt: str, variant: str) -> None:
    for n in (17, 1023, 100003):
        if n > SLOW_ABOVE or (n not in case.sizes and n != 17):
            continue
        inputs = make(case, fmt, variant, n)
        reference = run(case, fmt, variant, inputs)
        for setting, context in settings(inputs):
            with context:
                got = run(case, fmt, variant, inputs)
                if case.bits_vary:
                    check(case, fmt, variant, inputs, got)
                else:
                    assert_same(got, reference, f"{setting} against {BACKEND}, n = {n}")
        for level in curvk.simd_levels() if BACKEND == "cpp" and (n > 1100 or case.bits_vary) else []:
            with simd(level):
                own = run(case, fmt, variant, inputs) if case.bits_vary else reference
                for threads in THREADS:
                    with curvk.threads(threads):
                        got = run(case, fmt, variant, inputs)
                    assert_same(got, own, f"{level} with {threads} threads, n = {n}")


class FloatControl:
    """The C library's view of the floating-point environment, enough to set and read flush-to-zero."""

    def __init__(self) -> None:
        self.libm = ctypes.CDLL(ctypes.util.find_library("m"))
        # glibc and musl: on x86-64 the MXCSR register is word 7 of fenv_t; on aarch64 FPCR is word 0.
        x86 = platform.machine() == "x86_64"
        self.word, self.flush, self.control = (7, 0x8040, 0xFFC0) if x86 else (0, 1 << 24, 0xFFFFFFFF)

    def get(self) -> Any:
        environment = (ctypes.c_uint32 * 16)()
        assert self.libm.fegetenv(environment) == 0
        return environment

    def flushes(self) -> bool:
        # Multiplied by one at run time: the hardware's answer, not only the register's.
        product = np.array([1e-40], np.float32) * np.float32(1)
        word = self.get()[self.word] & self.flush
        assert (word == self.flush) == (product[0] == 0)
        return bool(word)

    @contextmanager
    def flushing(self) -> Iterator[None]:
        before = self.get()
        changed = self.get()
        changed[self.word] |= self.flush
        assert self.libm.fesetenv(changed) == 0
        try:
            yield
        finally:
            self.libm.fesetenv(before)


@pytest.mark.skipif(sys.platform != "linux", reason="sets flush-to-zero through glibc's and musl's fenv_t")
@pytest.mark.parametrize(("backend", "threads"), [("cpp", 1), ("cpp", 2), ("numba", 1)] if compiled else [("numba", 1)])
@pytest.mark.parametrize(("case", "fmt", "variant"), [p for p in ALL if p.values[0].special])
def test_caller_flushes_to_zero(case: Case, fmt: str, variant: str, backend: str, threads: int) -> None:
    inputs = special_inputs(case, fmt, variant, 70001 if threads > 1 else 1023)
    if not case.in_parts:
        inputs = {k: np.where(np.isfinite(numbers(x)), x, x.dtype.type(0)) for k, x in inputs.items()}
    with curvk.use_backend(backend):
        reference = run(case, fmt, variant, inputs)
    control = FloatControl()
    word = control.get()[control.word] & control.control
    with curvk.use_backend(backend), curvk.threads(threads), control.flushing():
        assert control.flushes()
        got = run(case, fmt, variant, inputs)
        assert control.flushes(), "the kernel left its own floating-point mode behind"
    assert control.get()[control.word] & control.control == word
    assert_same(got, reference, "the caller flushes to zero")


@pytest.mark.parametrize(("case", "fmt", "variant"), [p for p in ALL if p.values[0].plan])
def test_plan_over_a_list(case: Case, fmt: str, variant: str) -> None:
    """A plan over arrays of all sizes gives each the bits that it gets alone, at every thread count."""
    options = case.variants[variant]
    lengths = [n for n in (1, 0, 17, 1023, 40_000, 3, 33_333) if n <= SLOW_ABOVE]
    singles = [make(case, fmt, variant, n) for n in lengths]
    for threads in THREADS:
        lists = {k: None if x is None else [s[k].copy() for s in singles] for k, x in singles[0].items()}
        assert case.plan is not None
        with curvk.threads(threads):
            case.plan(lists, options, fmt)()
        for i, single in enumerate(singles):
            want = run(case, fmt, variant, single)
            want = {k: x for k, x in want.items() if k in lists}  # not what a case derives from two arrays
            assert_same({k: lists[k][i] for k in want}, want, f"tensor {i} of {lengths[i]} elements, {threads} threads")


# ---- the truth itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mistake",
    ["one minus beta2 in float32", "eps inside the root", "decay after the update", "no bias correction", "one ulp"],
)
def test_truth_refuses_near_misses(mistake: str) -> None:
    """The intervals are narrow enough to tell Adam from what is nearly Adam."""
    case, fmt, variant = cases()["adam_step"], "f32", "adamw"
    options = {"lr": 1e-2, "step": 7, "eps": 1e-4, **case.variants[variant]}
    a = make(case, fmt, variant, 1023)
    truth = case.truth({k: None if x is None else x.copy() for k, x in a.items()}, options, fmt)
    p, g, m, v = (a[k].astype(np.float64) for k in "pgmv")
    gain2 = float(np.float32(1) - np.float32(0.999)) if mistake == "one minus beta2 in float32" else 1 - 0.999
    m = 0.9 * m + (1 - 0.9) * g
    v = 0.999 * v + gain2 * g * g
    correct1, correct2 = (1, 1) if mistake == "no bias correction" else (1 - 0.9**7, 1 - 0.999**7)
    inside = mistake == "eps inside the root"
    root = np.sqrt(v / correct2 + options["eps"] * inside) + options["eps"] * (not inside)
    shrink = 1 - options["lr"] * options["weight_decay"]
    update = options["lr"] / correct1 * m / root
    p = (p - update) * shrink if mistake == "decay after the update" else p * shrink - update
    if mistake == "one ulp":
        v = v * (1 + 2.0**-20)
    p32, v32 = p.astype(np.float32), v.astype(np.float32)
    missed = truth["p"].misses(p32).sum() + truth["v"].misses(v32).sum()
    assert missed > 50


def test_intervals_hold_rounded_arithmetic() -> None:
    """Random expressions in float32 stay inside; the same with one operation's error doubled twice do not always."""
    seed = seed_of("interval")
    rng = np.random.default_rng(seed)
    a, b, c = (rng.standard_normal(10_000).astype(np.float32) * 10.0 ** rng.integers(-3, 3, 10_000) for _ in range(3))
    a, b, c = (x.astype(np.float32) for x in (a, b, c))
    x, y, z = (interval.Interval.exact(t, interval.F32) for t in (a, b, c))
    for got, want in (
        (a * b + c, x * y + z),
        ((a - b) * c, (x - y) * z),
        (a / b - c, x / y - z),
        (np.sqrt(np.abs(a)) * b, interval.Interval.exact(np.abs(a), interval.F32).sqrt() * y),
    ):
        assert not want.misses(got).any()
        nudged = np.nextafter(
            np.nextafter(np.nextafter(got, np.float32(np.inf)), np.float32(np.inf)), np.float32(np.inf)
        )
        assert want.misses(nudged).mean() > 0.2


# ---- 16-bit storage -------------------------------------------------------------------------------------------------


def test_widening_all_codes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(65536, dtype=np.uint16)
    for x, want in (
        (codes, codes.view(ml_dtypes.bfloat16).astype(np.float32)),
        (codes.view(np.float16), codes.view(np.float16).astype(np.float32)),
    ):
        got = half.to_float32(x)
        np.testing.assert_array_equal(got, want)
        numbers = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(want[numbers]))


def test_narrowing_against_numpy_and_ml_dtypes() -> None:
    """Every code, every midpoint between codes, their neighbours, and a float32 in 509 of all there are."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(65536, dtype=np.uint16)
    every = np.arange(0, 2**32, 509, dtype=np.uint64).astype(np.uint32).view(np.float32)
    for fmt, stored in (("bf16", ml_dtypes.bfloat16), ("f16", np.float16)):
        exact = codes.view(stored).astype(np.float32)
        exact = np.sort(exact[np.isfinite(exact)])
        with np.errstate(over="ignore"):
            middle = (exact[1:].astype(np.float64) + exact[:-1]).astype(np.float64) / 2
        at = np.concatenate([exact, middle.astype(np.float32)])
        assert (middle.astype(np.float32) == middle).all()
        near = [np.nextafter(at, np.float32(s)) for s in (np.inf, -np.inf)]
        x = np.concatenate(
            [at, *near, every, np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 65519.996, 65520.0, 3.4e38])]
        )
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            want = x.astype(stored).view(np.uint16)
        got = half.from_float32(x, "bf16" if fmt == "bf16" else "f16").view(np.uint16)
        wrong = np.flatnonzero((got != want) & ~np.isnan(x))
        assert not wrong.size, f"{fmt}: {x[wrong[:5]]} gave {got[wrong[:5]]}, needs {want[wrong[:5]]}"
        assert np.isnan(decode(got[np.isnan(x)], fmt)).all()


@pytest.mark.parametrize(
    ("case", "fmt", "variant"),
    [
        p
        for p in ALL
        if p.values[1] in ("bf16", "f16") and "p" in p.values[0].written and "low" not in p.values[0].written
    ],
)
def test_half_steps_round_once(case: Case, fmt: str, variant: str) -> None:
    """A step on 16-bit storage is the float32 step on the widened numbers, its parameters rounded once."""
    n = 1023
    inputs = make(case, fmt, variant, n)
    single = {k: x if x is None or x.dtype.itemsize != 2 else numbers(x).astype(np.float32) for k, x in inputs.items()}
    got, want = run(case, fmt, variant, inputs), run(case, "f32", variant, single)
    want = {k: encode(x, fmt) if got[k].dtype.itemsize == 2 else x for k, x in want.items()}
    assert_same(got, want, "16-bit storage against float32 rounded once")


@pytest.mark.slow
def test_more_than_2_31_elements() -> None:
    """SGD on bf16 storage with 2^31 + 70,001 elements: indices do not wrap, at any place."""
    n = 2**31 + 70_001
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    try:
        with open("/proc/meminfo") as f:
            available = next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))
    except OSError:
        pass
    if available < 10 * 2**30:
        pytest.skip(f"needs 10 GiB of memory, {available / 2**30:.1f} GiB are available")
    if BACKEND != "cpp":
        pytest.skip("the twins widen whole arrays to float32, which would take 24 GiB more")
    p, g = np.empty(n, np.uint16), np.empty(n, np.uint16)
    period = 65_521  # a prime: a wrapped index meets another value
    pattern = encode(np.linspace(-4, 4, period), "bf16")
    for start in range(0, n, period * 1024):
        length = min(period * 1024, n - start)
        p[start : start + length] = np.resize(pattern, length)
        g[start : start + length] = np.resize(pattern[::-1], length)
    sgd_step(p, g, lr=0.25)
    for start in (0, 2**30 - 50, 2**31 - 70_000, 2**31 - 50, n - 70_000):
        i = np.arange(start, min(start + 70_000, n)) % period
        want = encode(decode(pattern[i], "bf16") - 0.25 * decode(pattern[::-1][i], "bf16"), "bf16")
        np.testing.assert_array_equal(p[start : start + 70_000], want, f"from element {start}")
    tail = np.arange(n - 5000, n) % period
    np.testing.assert_array_equal(g[-5000:], pattern[::-1][tail])


# ---- closed forms ---------------------------------------------------------------------------------------------------


def test_adam_on_a_constant_gradient() -> None:
    """From zero moments, bias-corrected Adam moves lr g / (|g| + eps) at every step (Kingma & Ba 2015, section 2)."""
    g = np.array([3.0, -0.5, 1e-4, 20.0])
    p, m, v = np.zeros(4), np.zeros(4), np.zeros(4)
    for step in range(1, 51):
        adam_step(p, g, m, v, step=step, lr=0.1)
        np.testing.assert_allclose(p, -step * 0.1 * g / (abs(g) + 1e-8), rtol=1e-11)
    np.testing.assert_allclose(m, (1 - 0.9**50) * g, rtol=1e-13)
    np.testing.assert_allclose(v, (1 - 0.999**50) * g * g, rtol=1e-13)


# ---- the global norm ------------------------------------------------------------------------------------------------


def exact_norm(arrays: list[Any]) -> float:
    scale = max((float(np.max(np.abs(a), initial=0)) for a in arrays), default=0.0) or 1.0
    return scale * math.sqrt(math.fsum((float(x) / scale) ** 2 for a in arrays for x in np.ravel(a)))


def test_norm_of_mixed_lists() -> None:
    rng = np.random.default_rng(seed_of("norm"))
    n = 700 if BACKEND == "python" else 40_000
    lists = [
        [
            rng.standard_normal(n).astype(np.float32),
            rng.standard_normal((3, 5)),
            rng.standard_normal(11).astype(np.float16),
        ],
        [np.zeros(0, np.float32), np.array(2.5), np.zeros((0, 3), np.float16), np.float32([[1], [2]])],
        [],
        [np.zeros(3)],
        [rng.standard_normal((40, 30))[::2, ::3], rng.standard_normal((4, 5, 6)).transpose(2, 0, 1)],
    ]
    for arrays in lists:
        np.testing.assert_allclose(global_norm(arrays), exact_norm(arrays), rtol=1e-14)


def test_norm_does_not_depend_on_threads() -> None:
    rng = np.random.default_rng(seed_of("norm threads"))
    sizes = [5, 300] if BACKEND == "python" else [200_000, 0, 33, 70_000]
    arrays = [rng.standard_normal(n).astype(np.float32) for n in sizes]
    norms = []
    for level in curvk.simd_levels() or [None]:
        for threads in THREADS:
            with simd(level) if level else nullcontext(), curvk.threads(threads):
                norms.append(global_norm(arrays))
    assert len(set(norms)) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("place", [0, 15, 16, 40, 99])
def test_norm_of_non_finite(dtype: Any, place: int) -> None:
    x = np.ones(100, dtype)
    x[place] = np.inf
    assert global_norm([np.ones(3, dtype), x]) == math.inf
    x[place] = -np.inf
    assert global_norm([x]) == math.inf
    x[place] = np.nan
    assert math.isnan(global_norm([x, np.ones(3, dtype)]))
    x[(place + 1) % 100] = np.inf  # NaN wins over infinity, in either order
    assert math.isnan(global_norm([x]))
    assert math.isnan(global_norm([np.array([np.inf], dtype), np.array([np.nan], dtype)]))


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-160, 1e160, 1e200, 1e307])
def test_norm_where_squares_leave_the_range(scale: float) -> None:
    x = scale * np.array([3.0, 4.0, 0.0, 12.0])
    np.testing.assert_allclose(global_norm([x]), 13 * scale, rtol=1e-14 if scale > 1e-300 else 1e-12)
    np.testing.assert_allclose(
        global_norm([x[:2], x[2:], np.zeros(0)]), 13 * scale, rtol=1e-14 if scale > 1e-300 else 1e-12
    )


def test_norm_at_the_ends_of_the_range() -> None:
    largest, smallest = np.finfo(np.float64).max, 5e-324
    assert global_norm([np.array([largest])]) == pytest.approx(largest, rel=1e-14)
    assert global_norm([np.full(4, largest)]) == math.inf  # twice the largest double: the norm itself is out of range
    assert global_norm([np.array([smallest])]) == smallest
    assert global_norm([np.full(4, smallest)]) == 2 * smallest
    assert global_norm([np.array([1e-200, 1.0])]) == 1.0
    assert global_norm([np.float32([1e-45, 0])]) == pytest.approx(float(np.float32(1e-45)), rel=1e-14)
    assert global_norm([np.float32([3e38, 3e38])]) == pytest.approx(math.sqrt(2) * float(np.float32(3e38)), rel=1e-14)
    wide = [np.array([1e-180, 2e-180]), np.float32([1e-38])]  # float64 that vanishes when squared, beside float32
    assert global_norm(wide) == pytest.approx(1e-38, rel=1e-6)
