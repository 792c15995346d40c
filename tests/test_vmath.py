"""exp and log beyond the registry's case: special values, high precision, order, shapes, and use inside other loops."""

from __future__ import annotations

import math
import zlib
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._bench.cases.vmath import ULPS, within
from curvk._loops import loop
from curvk._loops import vmath as loops
from curvk.kernels import vmath

FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EVERY = pytest.mark.parametrize("op", ["exp", "log"])
pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")


def generator(*parts: object) -> np.random.Generator:
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return np.random.default_rng(seed)


def integers(dtype: Any) -> Any:
    return np.int32 if dtype == np.float32 else np.int64


# ---- special values --------------------------------------------------------------------------------------------------


@FLOATS
def test_exp_special_values(backend: str, dtype: Any) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e5, -1e5, 1e38, -1e38], dtype)
    want = np.array([1, 1, np.inf, 0, np.nan, np.nan, np.inf, 0, np.inf, 0], dtype)
    got = vmath.exp(x)
    np.testing.assert_array_equal(got, want)
    assert not np.signbit(got[~np.isnan(got)]).any()
    tiny = np.finfo(dtype).smallest_subnormal
    np.testing.assert_array_equal(vmath.exp(np.array([tiny, -tiny, np.finfo(dtype).tiny], dtype)), dtype(1))


@FLOATS
def test_log_special_values(backend: str, dtype: Any) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([1, 0.0, -0.0, np.inf, np.nan, -np.nan, -np.inf, -1, -tiny, -np.finfo(dtype).max], dtype)
    got = vmath.log(x)
    np.testing.assert_array_equal(got, np.array([0, -np.inf, -np.inf, np.inf, *[np.nan] * 6], dtype))
    assert not np.signbit(got[0])


@pytest.mark.parametrize(
    ("dtype", "largest", "least_normal", "least"),
    [  # the last arguments whose exponential is finite, normal, and not 0, from ln of the bounds in 40 digits
        (np.float32, "88.72283905206835", "-87.33654475055310", "-103.9720770839917"),
        (np.float64, "709.7827128933839967322233", "-708.3964185322641062244", "-745.1332191019412076235"),
    ],
)
def test_exp_at_the_ends(backend: str, dtype: Any, largest: str, least_normal: str, least: str) -> None:
    def below(bound: str) -> Any:
        x = dtype(bound)
        return x if np.longdouble(x) <= np.longdouble(bound) else np.nextafter(x, dtype(-np.inf))

    last = below(largest)
    assert np.isfinite(vmath.exp(np.array([last]))).all()
    assert np.isinf(vmath.exp(np.nextafter(np.array([last]), dtype(np.inf)))).all()
    normal = np.nextafter(below(least_normal), dtype(np.inf))
    assert vmath.exp(np.array([normal]))[0] >= np.finfo(dtype).tiny * (1 - np.finfo(dtype).eps)
    assert vmath.exp(np.array([below(least_normal) - 1]))[0] < np.finfo(dtype).tiny
    assert vmath.exp(np.array([np.nextafter(below(least), dtype(np.inf))]))[0] == np.finfo(dtype).smallest_subnormal
    assert vmath.exp(np.array([below(least)]))[0] == 0


@FLOATS
def test_exp_underflows_gradually(backend: str, dtype: Any) -> None:
    """Denormal results are within a unit of the last place there, and all of them occur near the end."""
    low, high = (-103.9, -87.4) if dtype == np.float32 else (-745.1, -708.5)
    x = np.linspace(low, high, 20_001 if backend != "python" else 501).astype(dtype)
    fmt = "f32" if dtype == np.float32 else "f64"
    wide = np.float64 if dtype == np.float32 else np.longdouble
    assert not within(np.exp(x.astype(wide)), ULPS["exp"], fmt).misses(vmath.exp(x)).any()
    counts = vmath.exp(np.linspace(low, low + 3.5, 501).astype(dtype)).view(integers(dtype))
    assert set(range(1, 13)) <= set(counts.tolist())


@FLOATS
def test_log_of_powers_of_two(backend: str, dtype: Any) -> None:
    """Every power of two, denormal ones included: k ln(2), to the error class."""
    f = np.finfo(dtype)
    k = np.arange(f.minexp - f.nmant, f.maxexp)
    x = np.ldexp(dtype(1), k)
    assert x[0] == f.smallest_subnormal
    ln2 = np.longdouble("0.693147180559945309417232121458176568")
    fmt = "f32" if dtype == np.float32 else "f64"
    exact = k * ln2 if dtype == np.float64 else (k * ln2).astype(np.float64)
    assert not within(exact, ULPS["log"], fmt).misses(vmath.log(x)).any()


# ---- high precision --------------------------------------------------------------------------------------------------


def _sample(op: str, dtype: Any, n: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Arguments with finite results: all magnitudes, ordinary ones, and those about the seams of the reduction."""
    f = np.finfo(dtype)
    if op == "exp":
        low, high = (-103, 88) if dtype == np.float32 else (-745, 709)
        k = rng.integers(low, high, n)
        seams = (k + 0.5) * math.log(2) * (1 + 1e-6 * rng.standard_normal(n))
        x = np.concatenate([rng.uniform(low, high, n), rng.standard_normal(n) * 2.0 ** rng.integers(-60, 3, n), seams])
        return x.astype(dtype).clip(low, high)
    largest = int(np.array(f.max).view(integers(dtype)))
    anything = rng.integers(1, largest, n, dtype=integers(dtype)).view(dtype)
    seams = math.sqrt(0.5) * (1 + 1e-6 * rng.standard_normal(n)) * 2.0 ** rng.integers(-3, 4, n)
    near_one = 1 + rng.standard_normal(n) * 2.0 ** rng.integers(-f.nmant, -1, n)
    worst = rng.uniform(0.69, 0.7072, n)  # where log's error is largest
    return abs(np.concatenate([anything, *(x.astype(dtype) for x in (seams, near_one, worst))]))


@EVERY
@FLOATS
def test_against_mpmath(op: str, dtype: Any) -> None:
    """The registry's truth is itself checked here: 40 digits, the error measured in units in the last place."""
    mpmath = pytest.importorskip("mpmath")
    x = _sample(op, dtype, 500, generator("mpmath", op, dtype.__name__))
    got, f = getattr(vmath, op)(x), np.finfo(dtype)
    function, worst = getattr(mpmath, op), 0.0
    with mpmath.workdps(40):
        for argument, value in zip(x.tolist(), got.tolist(), strict=True):
            exact = function(mpmath.mpf(argument))
            if exact == 0:
                assert value == 0
                continue
            exponent = max(mpmath.frexp(exact)[1] - f.nmant - 1, f.minexp - f.nmant)
            worst = max(worst, float(abs(exact - value) / mpmath.ldexp(1, exponent)))
    assert worst <= ULPS[op]
    assert worst > 0.5  # a correctly rounded result would be news, and a broken measure likelier


@EVERY
@FLOATS
def test_against_wide(op: str, dtype: Any) -> None:
    n = 100 if curvk.get_backend() == "python" else 200_000
    x = _sample(op, dtype, n, generator("wide", op, dtype.__name__))
    wide = np.float64 if dtype == np.float32 else np.longdouble
    truth = within(getattr(np, op)(x.astype(wide)), ULPS[op], "f32" if dtype == np.float32 else "f64")
    missed = np.flatnonzero(truth.misses(getattr(vmath, op)(x)))
    assert not missed.size, f"{missed.size} of {x.size}, first at x = {x[missed[:5]]!r}"


@EVERY
def test_every_509th_float32(op: str) -> None:
    """A sample through all bit patterns: sign, exponent and NaN codes alike."""
    step = 509 if curvk.get_backend() != "python" else 2**32 // 509
    x = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        truth = within(getattr(np, op)(x.astype(np.float64)), ULPS[op], "f32")
    missed = np.flatnonzero(truth.misses(getattr(vmath, op)(x)))
    assert not missed.size, f"{missed.size} of {x.size}, first at x = {x[missed[:5]]!r}"


# ---- properties ------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("centre", [-87.5, -20.0, -1.0, -0.34657, 0.0, 0.34657, 0.70710, 1.0, 2.0, 1e-39, 1e30, 88.0])
def test_float32_order(op: str, centre: float) -> None:
    """A larger argument never gives a smaller result: runs of neighbouring float32 about seams and elsewhere.

    An exhaustive run over all float32 found no descent either; for float64 nothing is promised.
    """
    if op == "log" and centre <= 0:
        centre = 2.0**centre
    n = 200 if curvk.get_backend() == "python" else 200_000
    key = int(np.float32(centre).view(np.int32))
    if centre > 0:
        keys = np.arange(max(key - n // 2, 0), key + n // 2)
    elif centre < 0:
        keys = np.arange(key + n // 2, key - n // 2, -1)  # more negative with the pattern, so backwards is upwards
    else:
        keys = np.arange(0, n)
    x = keys.astype(np.int32).view(np.float32)
    y = getattr(vmath, op)(x)
    assert (x[1:] > x[:-1]).all()
    assert (y[1:] >= y[:-1]).all()


@FLOATS
def test_identities(dtype: Any) -> None:
    """exp(log(x)) = x and exp(a) exp(b) = exp(a + b), to the error that the formulas' conditions allow."""
    rng = generator("identities", dtype.__name__)
    n, eps = 300 if curvk.get_backend() == "python" else 50_000, float(np.finfo(dtype).eps)
    x = np.exp(rng.uniform(-60, 60, n)).astype(dtype)
    logarithm = vmath.log(x)
    back = vmath.exp(logarithm).astype(np.longdouble)
    assert (abs(back / x - 1) <= eps * (abs(logarithm) + 1)).all()
    a, b = (rng.integers(-160, 160, n) / dtype(8) for _ in range(2))  # their sums are exact
    product = vmath.exp(a).astype(np.longdouble) * vmath.exp(b)
    assert (abs(product / vmath.exp(a + b) - 1) <= 3 * ULPS["exp"] * eps).all()


# ---- arguments -------------------------------------------------------------------------------------------------------


@EVERY
def test_shapes_and_layouts(backend: str, op: str) -> None:
    f = getattr(vmath, op)
    base = np.abs(generator("shapes", op).standard_normal((6, 8, 10))) + 0.1
    for dtype in (np.float32, np.float64):
        x = base.astype(dtype)
        flat = f(x.ravel())
        np.testing.assert_array_equal(f(x), flat.reshape(x.shape))
        np.testing.assert_array_equal(f(x.transpose(2, 0, 1)), flat.reshape(x.shape).transpose(2, 0, 1))
        np.testing.assert_array_equal(f(x[::2, ::-1, 1::3]), flat.reshape(x.shape)[::2, ::-1, 1::3])
        scalar = f(np.array(x[0, 0, 0]))
        assert (scalar.shape, scalar.dtype, scalar[()]) == ((), dtype, flat[0])
        assert f(np.zeros((0, 3), dtype)).shape == (0, 3)
        out = np.full((10, 8, 6), np.nan, dtype).T
        assert f(x, out) is out
        np.testing.assert_array_equal(out, flat.reshape(x.shape))
        wide = np.full((6, 8, 20), np.nan, dtype)
        f(x, out=wide[:, :, ::2])
        np.testing.assert_array_equal(wide[:, :, ::2], flat.reshape(x.shape))
        assert np.isnan(wide[:, :, 1::2]).all()
    np.testing.assert_array_equal(f(memoryview(base[0, 0])), f(base[0, 0]))


@EVERY
def test_refuses(backend: str, op: str) -> None:
    f, x = getattr(vmath, op), np.ones(4, np.float32)
    out = np.full(4, 7.0, np.float32)
    with pytest.raises(TypeError, match=rf"{op}: argument 'x': got int64, needs float32 or float64; use x.astype"):
        f(np.arange(3))
    with pytest.raises(TypeError, match=rf"{op}: argument 'x': got list"):
        f([1.0, 2.0])
    with pytest.raises(TypeError, match=rf"{op}: argument 'out': got float64, needs float32 like 'x'"):
        f(x, out.astype(np.float64))
    with pytest.raises(ValueError, match=rf"{op}: argument 'out': got shape \(2, 2\), needs shape \(4,\) like 'x'"):
        f(x, out.reshape(2, 2))
    with pytest.raises(ValueError, match=rf"{op}: argument 'out': got memory shared with 'x'"):
        f(out, out)
    out.flags.writeable = False
    with pytest.raises(BufferError, match=rf"{op}: argument 'out': got a read-only array"):
        f(x, out)
    assert (out == 7).all()


# ---- inside other loops ----------------------------------------------------------------------------------------------


@loop
def _softplus_difference(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = loops.log_of(loops.exp_of(x[i]) + x[i] * x[i])


@pytest.mark.parametrize("jitted", [True, False])
@FLOATS
def test_scalar_functions_in_a_loop(dtype: Any, jitted: bool) -> None:
    """Other families' twins call exp_of and log_of; both types keep their own arithmetic there."""
    x = np.linspace(-5, 5, 301).astype(dtype)
    out = np.empty_like(x)
    with curvk.use_backend("numba" if jitted else "python"):
        _softplus_difference(x, out)
        want = vmath.log(vmath.exp(x) + x * x)
    assert out.tobytes() == want.tobytes()
