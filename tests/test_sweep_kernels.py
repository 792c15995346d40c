"""Sweeps: split and compensated parameters, states that do not stall, layouts, memory, and what is refused.

tests/test_numerics.py holds every kernel against the registry's truth, at every level, backend and thread count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from curvk import _backend
from curvk._bench.storage import decode, encode
from curvk.kernels import half
from curvk.kernels.optim import adam_step, sgd_step
from curvk.kernels.sweep import (
    FORMATS,
    ROUNDINGS,
    AdamSweepPlan,
    Codes,
    SGDSweepPlan,
    adam_sweep,
    dequantize,
    quantize,
    sgd_sweep,
)
from sweep_states import KINDS, Array, bits, f32, generator, state, whole, wide, zeros

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

SHORT = pytest.mark.parametrize("fmt", ["bf16", "f16"])
KIND = pytest.mark.parametrize("kind", KINDS)


# ---- steps ----------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decoupled": {"weight_decay": 0.1, "decoupled": True, "maximize": True},
    "coupled": {"weight_decay": 0.1, "grad_scale": 3.0},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("fmt", ["f32", "f64", "bf16", "f16"])
def test_whole_states_to_nearest_are_the_plain_step(fmt: str, options: str) -> None:
    """Bit for bit that of curvk.kernels.optim; what else is asked for does not change it."""
    rng = generator("plain", fmt, options)
    n, wide_type = 1500, np.float64 if fmt == "f64" else np.float32
    p, g = (encode(rng.standard_normal(n), fmt) for _ in range(2))
    m, v, max_v = (abs(rng.standard_normal(n)).astype(wide_type) for _ in range(3))
    for extras in (False, True):
        a, b = ([x.copy() for x in (p, g, m, v, max_v)] for _ in range(2))
        more: dict[str, Any] = {}
        if extras:
            more = {
                "ema": np.ones(n, wide_type),
                "ema_decay": 0.75,
                "shadow": np.zeros(n, np.uint16),
                "zero_grad": True,
            }
        adam_step(*a[:4], max_v=a[4], step=3, lr=0.01, **OPTIONS[options])
        adam_sweep(*b[:4], max_v=b[4], step=3, lr=0.01, **OPTIONS[options], **more)
        assert bits(a[0], *a[2:]) == bits(b[0], *b[2:])
        assert bits(b[1]) == bits(np.zeros_like(g) if extras else g)
        if extras and fmt in ("f32", "f64"):
            average = wide_type(0.75) + wide_type(0.25) * b[0]
            assert bits(more["ema"]) == bits(average)
            assert bits(more["shadow"]) == bits(b[0].astype(np.float32).astype(ml_dtypes.bfloat16))
        a, b = ([x.copy() for x in (p, g, m)] for _ in range(2))
        sgd_step(*a, lr=0.01, momentum=0.9, nesterov=True, **OPTIONS[options])
        sgd_sweep(*b, lr=0.01, momentum=0.9, nesterov=True, **OPTIONS[options], **more)
        assert bits(a[0], a[2]) == bits(b[0], b[2])


def test_the_average_holds_what_rounding_loses() -> None:
    """In bfloat16 it follows the parameters before they are rounded."""
    p, g, ema = encode(np.ones(64), "bf16"), encode(np.ones(64), "bf16"), np.zeros(64, np.float32)
    sgd_sweep(p, g, lr=1e-4, ema=ema, ema_decay=0.0)
    assert (decode(p, "bf16") == 1).all()
    assert (ema == f32(1) - f32(1e-4)).all()


@KIND
def test_split_parameters_follow_float32_bit_for_bit(kind: str) -> None:
    """With every kind of states, since the noise of states does not depend on the parameters' format."""
    rng = generator("split", kind)
    n = 1000
    p, low = encode(rng.standard_normal(n), "bf16"), np.zeros(n, np.uint16)
    p32 = f32(decode(p, "bf16"))
    ours, theirs = zeros(n, kind), zeros(n, kind)
    for step in range(1, 120):
        g = encode(rng.standard_normal(n), "bf16")
        common: dict[str, Any] = {"step": step, "lr": 1e-3, "weight_decay": 0.1, "decoupled": True, "draw": step}
        adam_sweep(p, g.copy(), *ours, rounding="split16", low=low, **common)
        adam_sweep(p32, f32(decode(g, "bf16")), *theirs, **common)
        assert bits(whole(p, low)) == bits(p32), f"after {step} steps"
        assert bits(*ours) == bits(*theirs)
    nearest = p32.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert (decode(p, "bf16") == nearest).mean() > 0.999  # but for ties, the upper half is the nearest bfloat16
    assert (abs(decode(p, "bf16") - p32) <= abs(nearest - p32)).all()


def test_the_first_momentum_is_the_gradient_to_the_bit(backend: str) -> None:
    """Also -0, which the sum with an old momentum of +0 is not."""
    g = f32([-0.0, 0.0, 1.0, -2.5])
    buf = np.full(4, 7, np.float32)
    sgd_sweep(np.ones(4, np.float32), g.copy(), buf, lr=0.1, momentum=0.9, first=True)
    assert bits(buf) == bits(g)


@KIND
def test_nesterovs_look_ahead_is_not_rounded(kind: str, backend: str) -> None:
    """From a momentum of ones, which every kind holds exactly."""
    rng = generator("nesterov", kind)
    ones = np.ones(300, np.float32)
    buf = quantize(ones, format=kind) if kind in FORMATS else encode(ones, kind)
    p, g = (f32(rng.standard_normal(300)) for _ in range(2))
    plain, numbers = p.copy(), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
    sgd_sweep(p, g.copy(), buf, **numbers)
    sgd_step(plain, g, ones.copy(), **numbers)
    assert bits(p) == bits(plain)


def test_a_maximum_that_met_a_nan_stays_nan(backend: str) -> None:
    """As in torch: from the gradient, and from the maximum that there was."""
    p, m, v, max_v = (np.ones(3, np.float32) for _ in range(4))
    max_v[1] = np.nan
    adam_sweep(p, f32([np.nan, 1, 1]), m, v, max_v=max_v, step=1, lr=0.1)
    assert np.isnan(max_v).tolist() == np.isnan(p).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_an_average_gains_is_rounded_once(dtype: Any, backend: str) -> None:
    p, ema = np.ones(3, dtype), np.zeros(3, dtype)
    sgd_sweep(p, np.zeros(3, dtype), lr=0.1, ema=ema, ema_decay=0.999)
    assert (ema == dtype(1 - 0.999)).all()


@pytest.mark.parametrize("rounding", ["kahan", "split16"])
def test_coupled_decay_is_that_of_the_whole_parameter(rounding: str, backend: str) -> None:
    """Both halves of it, against the plain step of float32."""
    rng = generator("coupled", rounding)
    low = encode(2.0**-10 * rng.standard_normal(300), "bf16")
    p = encode(rng.standard_normal(300), "bf16")
    p32 = f32(decode(p, "bf16") + decode(low, "bf16")) if rounding == "kahan" else whole(p, low)
    g = encode(rng.standard_normal(300), "bf16")
    ours, theirs = np.zeros(300, np.float32), np.zeros(300, np.float32)
    sgd_sweep(p, g.copy(), ours, lr=0.1, momentum=0.9, weight_decay=0.5, first=True, rounding=rounding, low=low)
    sgd_step(p32, f32(decode(g, "bf16")), theirs, lr=0.1, momentum=0.9, weight_decay=0.5, first=True)
    assert bits(ours) == bits(theirs)


@pytest.mark.parametrize("rounding", ["kahan", "split16"])
def test_parameters_that_are_not_finite_stay_what_they_are(rounding: str, backend: str) -> None:
    """An infinity loses nothing that it could become NaN by; a NaN whose bits round up stays one."""
    p = np.array([0x7F80, 0xFF80, 0x7FFF, 0x8000, 0x0000], np.uint16)
    low = np.zeros(5, np.uint16)
    if rounding == "split16":
        low[2:] = 0xFFFF, 0xFFFF, 0xFFFF  # the last two are the NaNs 0x7FFFFFFF and 0xFFFFFFFF
    for _ in range(3):
        sgd_sweep(p, np.zeros(5, np.uint16), lr=0.1, rounding=rounding, low=low)
        x = decode(p, "bf16")
        assert x[0] == np.inf
        assert x[1] == -np.inf
        assert np.isnan(x[2])
        assert np.isnan(x[3:]).all() if rounding == "split16" else not x[3:].any()
        assert rounding == "split16" or not low[:2].any()


@SHORT
def test_compensated_parameters_follow_float64(fmt: str) -> None:
    """Steps of a sixteenth of a unit in the last place at most, which rounding to nearest loses altogether."""
    rng = generator("kahan", fmt)
    n, steps = 500, 200
    unit = 2.0**-8 if fmt == "bf16" else 2.0**-11
    start = encode(rng.uniform(1, 2, n), fmt)
    truth = decode(start, fmt).astype(np.float64)
    g = encode(rng.uniform(0.5, 1, n), fmt)
    lr = unit / 8
    p, low, lost = start.copy(), np.zeros_like(start), start.copy()
    for _ in range(steps):
        sgd_sweep(p, g.copy(), lr=lr, rounding="kahan", low=low)
        sgd_sweep(lost, g.copy(), lr=lr)
        truth -= lr * decode(g, fmt)
    error = abs(decode(p, fmt) + decode(low, fmt) - truth)
    moved = abs(decode(start, fmt) - truth)
    assert (error < 0.02 * moved).all()
    assert bits(lost) == bits(start)
    assert (abs(decode(p, fmt) - truth) <= 4 * unit).all()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_displacement_in_bfloat16(rounding: str) -> None:
    """200 steps of Adam at lr 1e-3: to nearest, most of the motion is lost; the other roundings keep all of it."""
    rng = generator("displacement")
    n, fmt = 4096, "bf16"
    start = encode(1 + rng.random(n), fmt)
    p, p32, low = start.copy(), f32(decode(start, fmt)), np.zeros(n, np.uint16)
    m, v, m32, v32 = (np.zeros(n, np.float32) for _ in range(4))
    for step in range(1, 201):
        g = encode(0.5 + rng.standard_normal(n), fmt)
        adam_sweep(p, g.copy(), m, v, step=step, lr=1e-3, rounding=rounding, low=low, draw=step)
        adam_step(p32, f32(decode(g, fmt)), m32, v32, step=step, lr=1e-3)
    want = (p32 - decode(start, fmt)).mean()
    moved = (decode(p, fmt) - decode(start, fmt)).mean()
    assert want < -0.05
    if rounding == "nearest":
        assert abs(moved) < 0.4 * abs(want)
    else:
        assert moved == pytest.approx(want, rel=0.01)


def decline(kind: str, steps: int) -> tuple[Array, float]:
    """Roots of second moments, over the true ones, `steps` after the gradients of most elements fell to a tenth."""
    n, group = 1024 if _backend.get_backend() == "cpp" else 256, 256
    g = np.ones(n, np.float32)
    m, v = zeros(n, kind)
    adam_sweep(np.zeros(n, np.float32), g, m, v, step=1, lr=0.0, betas=(0.0, 0.0))  # v = 1
    falling = np.arange(n) % group != 0  # in each group one stays, and with it the scale
    falling &= np.arange(n) % 32 != 0
    g = np.where(falling, f32(0.1), f32(1))
    for step in range(steps):
        adam_sweep(np.zeros(n, np.float32), g, m, v, step=step + 2, lr=0.0, betas=(0.0, 0.999), draw=step, seed=1)
    truth = 0.01 + 0.99 * 0.999**steps
    return np.sqrt(wide(v, signed=False)[falling] / truth), truth


def test_second_moments_do_not_stall() -> None:
    """With beta2 = 0.999 a step moves them by less than half a code or half a bfloat16; to nearest they stay."""
    steps = 2000
    for kind in ("bf16", "curvk"):
        ratio, _ = decline(kind, steps)
        assert abs(ratio.mean() - 1) < 0.1, kind
        assert np.sqrt(((ratio - 1) ** 2).mean()) < 0.2, kind
    ratio, truth = decline("bitsandbytes", steps)
    assert ratio.min() > 2
    v = np.ones(1, np.float32)
    for _ in range(steps):
        v = half.to_float32(half.from_float32(f32(0.999) * v + f32(0.001) * f32(0.01), "bf16"))
    assert np.sqrt(v[0] / truth) > 2


@KIND
def test_training_on_a_quadratic(kind: str) -> None:
    """Adam with any kind of states ends as near to the minimum as with float32 ones."""
    rng = generator("quadratic")
    target = f32(rng.standard_normal(2048))
    p, (m, v) = np.zeros_like(target), zeros(target.size, kind)
    for step in range(1, 401):
        g = (p - target) * f32(1 + 0.1 * rng.standard_normal(target.size))
        adam_sweep(p, g, m, v, step=step, lr=0.05 * (1 - step / 401), draw=step)
    assert np.sqrt(np.mean((p - target) ** 2)) < 0.02


def test_decay_alone() -> None:
    """Without gradients decoupled decay multiplies by 1 - lr decay at every step."""
    p, low, g = encode(np.full(40, 1.5), "bf16"), np.zeros(40, np.uint16), np.zeros(40, np.uint16)
    m, v = zeros(40, "curvk")
    for step in range(1, 101):
        adam_sweep(p, g, m, v, step=step, lr=0.01, weight_decay=0.1, decoupled=True, rounding="split16", low=low)
    np.testing.assert_allclose(whole(p, low), 1.5 * 0.999**100, rtol=1e-5)
    assert not m.codes.any()
    assert not v.codes.any()


# ---- layouts and plans ----------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "every second": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@KIND
def test_layouts_give_the_result_of_c_order(kind: str, layout: str) -> None:
    rng = generator("layout", kind, layout)
    shape = (37, 90)
    place = LAYOUTS[layout]
    p, g, low = (encode(rng.standard_normal(shape), "bf16") for _ in range(3))
    ema = f32(rng.standard_normal(shape))
    results = []
    for turned in (set(), {"p"}, {"g"}, {"p", "g", "low", "ema"}):
        a = {
            k: place(x.copy()) if k in turned else x.copy() for k, x in (("p", p), ("g", g), ("low", low), ("ema", ema))
        }
        m, v = zeros(shape, kind)
        for step in (1, 2):
            rounding = ROUNDINGS[step]
            common: dict[str, Any] = {"ema": a["ema"], "ema_decay": 0.5, "zero_grad": step == 2, "draw": step}
            adam_sweep(a["p"], a["g"], m, v, step=step, lr=0.1, rounding=rounding, low=a["low"], **common)
        results.append(bits(*a.values(), m, v))
    assert all(r == results[0] for r in results)


@KIND
def test_channels_last_tensors(kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)
    print("seed 5")
    p, g = (torch.randn(4, 6, 5, 7).bfloat16() for _ in range(2))
    last = torch.channels_last
    results = []
    for left, right in ((p, g), (p.to(memory_format=last), g), (p, g.to(memory_format=last))):
        q, m_v = left.clone(), zeros(tuple(p.shape), kind)
        adam_sweep(q, right.clone(), *m_v, step=1, lr=0.1, rounding="stochastic")
        results.append([q.contiguous().view(torch.int16).numpy().tobytes(), *bits(*m_v)])
    assert all(r == results[0] for r in results)


def test_plans_step_as_single_calls() -> None:
    rng = generator("plan")
    shapes = [(40,), (0,), (3, 1100), (2, 3)]
    g = [encode(rng.standard_normal(s), "bf16") for s in shapes]
    words = [3, 2**32 - 1, 0, 7]
    lists, singles = ([(np.zeros_like(x), *zeros(x.shape, "curvk")) for x in g] for _ in range(2))
    p, m, v = ([row[k] for row in lists] for k in range(3))
    plan = AdamSweepPlan(p, g, m, v, tensor=words)
    for step in (1, 2, 3):
        common: dict[str, Any] = {"step": step, "lr": 0.1, "rounding": "stochastic", "draw": step, "seed": 4}
        plan.step(**common)
        for one, grad, tensor in zip(singles, g, words, strict=True):
            adam_sweep(one[0], grad, *one[1:], tensor=tensor, **common)
        other = [x[..., ::-1].copy() for x in g]
        plan.set_grads(other)
        g = other
    for a, b in zip(lists, singles, strict=True):
        assert bits(*a) == bits(*b)
    parameters, buf = [np.zeros(70, np.float16)], [state(70, "bitsandbytes")]
    SGDSweepPlan(parameters, [np.ones(70, np.float16)], buf).step(lr=0.5, momentum=0.9, first=True, zero_grad=True)
    assert (parameters[0] == -0.5).all()
    assert (dequantize(buf[0]) == 1).all()


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("backend", ["cpp", "numba"] if _backend.compiled else ["numba"])
def test_a_sweep_needs_no_memory_of_its_own(run_python: Any, backend: str) -> None:
    """Ten million elements, of which a float32 copy of one array would take 40 MB."""
    code = """
import numpy as np
from curvk.kernels.sweep import Codes, adam_sweep

def peak():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024

def arrays(n):
    codes = [Codes(np.ones(n, np.uint8), np.ones(-(-n // 32), np.float32)) for _ in range(2)]
    return [np.ones(n, np.uint16), np.ones(n, np.uint16), *codes]

def step(p, g, m, v):
    adam_sweep(p, g, m, v, step=1, lr=0.1, rounding="stochastic", ema=None)

step(*arrays(100_000))
a = arrays(10_000_000)
before = peak()
step(*a)
print(peak() - before)
"""
    assert float(run_python(code, CURVK_BACKEND=backend, OMP_NUM_THREADS="1").stdout) < 8


# ---- what is refused ------------------------------------------------------------------------------------------------


def short(n: int = 64) -> dict[str, Any]:
    m, v = zeros(n, "curvk")
    return {"p": encode(np.ones(n), "bf16"), "g": encode(np.ones(n), "bf16"), "m": m, "v": v}


def read_only(x: Array) -> Array:
    x.flags.writeable = False
    return x


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no low for kahan": (
        {"rounding": "kahan"},
        ValueError,
        "'low': got None, needs the low halves that rounding='kahan'",
    ),
    "no low for split16": ({"rounding": "split16"}, ValueError, "'low': got None"),
    "unknown rounding": (
        {"rounding": "up"},
        ValueError,
        "'rounding': got 'up', needs one of nearest, stochastic, kahan",
    ),
    "no rounding": ({"rounding": None}, ValueError, "'rounding': got None"),
    "low of another type": ({"rounding": "kahan", "low": np.zeros(64, np.float32)}, TypeError, "'low': got float32"),
    "low of another shape": (
        {"rounding": "kahan", "low": np.zeros(63, np.uint16)},
        ValueError,
        "'low': got shape (63,)",
    ),
    "max_v beside codes": ({"max_v": np.zeros(64, np.float32)}, ValueError, "'max_v': got an array, needs None beside"),
    "codes of another size": (
        {"m": Codes(np.zeros(63, np.uint8), np.zeros(2, np.float32))},
        ValueError,
        "'m': got shape (63,), needs shape (64,)",
    ),
    "scales of another size": (
        {"m": Codes(np.zeros(64, np.uint8), np.zeros(1, np.float32))},
        ValueError,
        "'m_scale': got shape (1,), needs shape (2,)",
    ),
    "mixed formats": ({"v": state(64, "bitsandbytes")}, TypeError, "'v'"),
    "mixed kinds": ({"v": np.zeros(64, np.float32)}, TypeError, "'v'"),
    "read-only g": ({"g": read_only(encode(np.ones(64), "bf16"))}, BufferError, "'g': got a read-only array"),
    "read-only codes": (
        {"m": Codes(read_only(np.zeros(64, np.uint8)), np.zeros(2, np.float32))},
        BufferError,
        "'m': got a read-only array",
    ),
    "ema of another type": ({"ema": np.zeros(64)}, TypeError, "'ema': got float64, needs float32"),
    "shadow of another type": ({"shadow": np.zeros(64, np.float32)}, TypeError, "'shadow': got float32"),
    "an average beyond 1": ({"ema": np.zeros(64, np.float32), "ema_decay": 1.5}, ValueError, "'ema_decay': got 1.5"),
    "a large draw": ({"draw": 2**32}, ValueError, "'draw'"),
    "a negative seed": ({"seed": -1}, ValueError, "'seed'"),
    "a large tensor word": ({"tensor": 2**32}, ValueError, "'tensor'"),
    "an unknown format": ({"m": state(64, "curvk")._replace(format="nf4")}, (ValueError), "'nf4'"),
    "step 0": ({"step": 0}, ValueError, "'step': got 0"),
    "betas that are no pair": ({"betas": 0.9}, TypeError, "'betas'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name_and_nothing_written(what: str, backend: str) -> None:
    changes, error, text = REFUSED[what]
    a = {**short(), "low": None, "max_v": None, "ema": None, "shadow": None, **changes}
    arrays = ("p", "g", "m", "v", "low", "max_v", "ema", "shadow")
    before = bits(*(a[k] for k in arrays))
    with pytest.raises(error) as caught:
        adam_sweep(**{"step": 1, "lr": 0.1, "zero_grad": True, **a})
    assert text in str(caught.value)
    assert bits(*(a[k] for k in arrays)) == before


@pytest.mark.parametrize("rounding", ROUNDINGS[1:])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_parameters_are_not_rounded(dtype: Any, rounding: str, backend: str) -> None:
    p, g, low = np.ones(5, dtype), np.ones(5, dtype), np.zeros(5, dtype)
    with pytest.raises(ValueError, match=r"'rounding': got .* needs 'nearest' for parameters that are not 16-bit"):
        sgd_sweep(p, g, lr=0.1, rounding=rounding, low=low)
    assert (p == 1).all()


def test_float16_has_no_halves(backend: str) -> None:
    p, g, low = np.ones(5, np.float16), np.ones(5, np.float16), np.zeros(5, np.float16)
    with pytest.raises(ValueError, match="rounding"):
        sgd_sweep(p, g, lr=0.1, rounding="split16", low=low)
    assert (p == 1).all()


def test_float64_has_no_short_states(backend: str) -> None:
    for kind in ("bf16", "curvk", "bitsandbytes"):
        p, g = np.ones(5), np.ones(5)
        with pytest.raises(TypeError, match="'p': got float64, needs float32"):
            adam_sweep(p, g, *zeros(5, kind), step=1, lr=0.1)
        assert (p == 1).all()


def test_quantize_refuses_by_name(backend: str) -> None:
    with pytest.raises(ValueError, match="'format': got 'fp8', needs one of curvk, bitsandbytes"):
        quantize(np.zeros(3, np.float32), format="fp8")
    with pytest.raises(TypeError, match="'x': got float64, needs float32"):
        quantize(np.zeros(3))
    with pytest.raises(ValueError, match="'out': got codes of format 'bitsandbytes', needs 'curvk'"):
        quantize(np.zeros(3, np.float32), out=state(3, "bitsandbytes"))
    with pytest.raises(TypeError, match=r"got ndarray, needs curvk\.kernels\.sweep\.Codes"):
        dequantize(np.zeros(3, np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'scale': got shape \(2,\), needs shape \(1,\)"):
        dequantize(Codes(np.zeros(3, np.uint8), np.zeros(2, np.float32)))
    with pytest.raises(ValueError, match="'codes'"):
        quantize(np.zeros((3, 4), np.float32), out=Codes(np.zeros((4, 3), np.uint8).T, np.zeros(1, np.float32)))
