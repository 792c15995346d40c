"""Alice's averages in 8 bits: the kernel by the definition of its codes, and curvk.optim.Alice with state_bits=8."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import curvk
import ml_dtypes
import numpy as np
import pytest
from alice_models import bytes_of, grads_of
from curvk._backend import compiled
from curvk._bench.codes import power
from curvk.kernels import half, noise
from curvk.kernels.curvature import HESS, LIMITS, AlicePlan, alice_model, alice_step
from curvk.kernels.sweep import Codes, dequantize, quantize
from curvk.optim import Alice, convert_state_dict
from curvk.optim._alice import step_numbers

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

Array = np.ndarray[Any, Any]
AVERAGES = ("exp_avg", "glass", "hessian", "exp_avg_sq")
STEP: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "beta3": 0.8, "sigma": 0.01, "lr_max": 0.02, "phi": 0.1}
KEYS = {"draw": 2**32 - 2, "seed": 2**64 - 3, "tensor": 0x9ABCDEF1}


def random(seed: int) -> np.random.Generator:
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def stored(x: Any, fmt: str) -> Array:
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):
        return half.from_float32(x, "bf16") if fmt == "bf16" else x.astype(np.float16) if fmt == "f16" else x


def is_signed(name: str, hess: str) -> bool:
    return name == "exp_avg" or (name == "hessian" and hess == "debiased")


def arrays(rng: np.random.Generator, n: int, fmt: str = "f32", hess: str = "debiased") -> dict[str, Any]:
    a: dict[str, Any] = {k: stored(rng.standard_normal(n), fmt) for k in ("p", "g", "g_plus", "g_minus")}
    a |= {k: rng.standard_normal(n).astype(np.float32) for k in ("center", "lookahead")}
    for k in AVERAGES:
        x = rng.standard_normal(n).astype(np.float32)
        a[k] = quantize(x if is_signed(k, hess) else x * x, signed=is_signed(k, hess))
    return a


def copied(a: dict[str, Any]) -> dict[str, Any]:
    return {
        k: Codes(x.codes.copy(), x.scales.copy()) if isinstance(x, Codes) else None if x is None else x.copy()
        for k, x in a.items()
    }


def contents(a: dict[str, Any]) -> list[bytes]:
    """Every array's bytes, NaNs made the same."""
    found = []
    for x in a.values():
        for y in (x.codes, x.scales) if isinstance(x, Codes) else () if x is None else (x,):
            z = y.copy()
            if z.dtype == np.uint16:
                z[(z & 0x7FFF) > 0x7F80] = 0x7FC0
            elif z.dtype.kind == "f":
                z[np.isnan(z)] = np.nan
            found.append(z.tobytes())
    return found


# ---- the kernel -----------------------------------------------------------------------------------------------------


def dither(n: int, word: int, draw: int, seed: int, tensor: int) -> Array:
    """The 9 bits that each element's code rounds with, from Philox itself."""
    groups = -(-n // 32)
    counter = [(j, 0, tensor, draw) for j in range(groups)]
    r = noise.philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.uint64)[:, word]
    return ((r[:, None] + np.arange(32, dtype=np.uint64) * np.uint64(0x9E3779B9)) % 2**32 >> np.uint64(23)).ravel()[:n]


@pytest.mark.parametrize("hess", HESS)
def test_codes_are_those_of_the_definition(hess: str, backend: str) -> None:
    """With all decay factors 0 the averages are the new terms; each is stored with its own word of the noise."""
    rng = random(1)
    n, sigma = 1000 if backend == "python" else 5000, 0.25
    a = arrays(rng, n, hess=hess)
    g, up, down = (a[k].astype(np.float64) for k in ("g", "g_plus", "g_minus"))
    numbers = {**STEP, "beta1": 0.0, "beta2": 0.0, "beta3": 0.0, "sigma": sigma, "hess": hess, "move": False}
    before = copied(a)
    alice_step(**a, **numbers, **KEYS)
    slope = (up - down) / (2 * sigma)
    term = {"abs": abs(slope), "rms": slope**2, "debiased": -(up - g) * (down - g) / sigma**2}
    terms = {"exp_avg": g, "glass": 2 * ((up + down) / 2 - g) ** 2 / sigma, "exp_avg_sq": g * g}
    if hess == "zero":
        assert contents({"h": a["hessian"]}) == contents({"h": before["hessian"]})
    else:
        terms["hessian"] = term[hess]
    for word, k in enumerate(AVERAGES):
        if k not in terms:
            continue
        x, signed = terms[k], is_signed(k, hess)
        scale = np.maximum.reduceat(abs(x), np.arange(0, n, 32))
        np.testing.assert_allclose(a[k].scales, scale, rtol=1e-5)
        y = x / np.repeat(scale, 32)[:n]
        levels, root = (127, 1 / 2) if signed else (255, 1 / 4)
        units = np.sign(y) * levels * power(abs(y), root) * 512
        r = dither(n, word, **KEYS).astype(np.float64)
        # A position is a whole number of units, found from floats whose error is below a unit.
        low, high = (np.floor((np.rint(units + e) + r) / 512) for e in (-1, 1))
        if not signed:
            low, high = np.maximum(low, x > 0), np.maximum(high, x > 0)
        got = a[k].codes.view(np.int8) if signed else a[k].codes
        assert ((low <= got) & (got <= high)).all()
        assert (low == high).mean() > 0.98


@pytest.mark.skipif(not compiled, reason="compares compiled levels with the twin")
@pytest.mark.parametrize("fmt", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 255, 256, 257, 1025, 5000])
def test_same_bits_everywhere(fmt: str, n: int) -> None:
    rng = random(n)
    special = np.array([np.nan, np.inf, -np.inf, 0, 1e-45, 1e-38, 3e38], np.float32)
    before = curvk.get_simd()
    for hess, limit, move in itertools.product(HESS, LIMITS, (True, False)):
        made = arrays(rng, n, fmt, hess)
        if rng.random() < 0.5:
            for k in ("p", "g", "g_plus", "g_minus", "center", "lookahead"):
                wild = rng.choice(special, n)
                wild = wild if k in ("center", "lookahead") else stored(wild, fmt)
                made[k] = np.where(rng.random(n) < 0.01, wild, made[k])
        left_out: dict[str, Any] = {}
        if rng.random() < 0.5:
            left_out |= {"g_plus": None, "g_minus": None}
        if rng.random() < 0.3:
            left_out["glass"] = None
        if hess == "zero" and rng.random() < 0.5:
            left_out["hessian"] = None
        made |= left_out
        numbers: dict[str, Any] = {**STEP, "hess": hess, "limit": limit, "move": move, "lr_min": 1e-4, "lr_max": 0.3}
        numbers |= {"l1": 0.01, "l2": 0.1} if rng.random() < 0.5 else {}
        numbers |= {"grad_scale": 3.0, "draw": int(rng.integers(2**32)), "seed": 7, "tensor": int(rng.integers(2**32))}
        results = []
        try:
            for level in curvk.simd_levels():
                curvk.set_simd(level)
                results.append(copied(made))
                alice_step(**results[-1], **numbers)
        finally:
            curvk.set_simd(before)
        for backend in ["numba"] + ["python"] * (n <= 33):
            with curvk.use_backend(backend):
                results.append(copied(made))
                alice_step(**results[-1], **numbers)
        want = contents(results[0])
        for a in results[1:]:
            assert contents(a) == want, (hess, limit, move, left_out.keys())


def test_estimates_are_written_at_sample_steps_alone(backend: str) -> None:
    a = arrays(random(2), 200)
    before = copied(a)
    alice_step(**(a | {"g_plus": None, "g_minus": None}), **STEP, **KEYS)
    for k in AVERAGES:
        same = contents({k: a[k]}) == contents({k: before[k]})
        assert same == (k in ("glass", "hessian"))


def test_plan_is_the_step_on_each_array() -> None:
    lengths, words = (3, 0, 1000, 5000), [5, 6, 7, 8]
    plain = [arrays(random(10 + k), n) for k, n in enumerate(lengths)]
    listed = [copied(a) for a in plain]
    names = ("p", "g", *AVERAGES, "center", "lookahead")
    plan = AlicePlan(*([a[k] for a in listed] for k in names), tensor=words)
    plan.set_grads(*([a[k] for a in listed] for k in ("g", "g_plus", "g_minus")))
    plan.step(**STEP, draw=3, seed=9)
    plan.set_grads([a["g"] for a in listed])
    plan.step(**STEP, draw=4, seed=9)
    for a, b, word in zip(plain, listed, words, strict=True):
        alice_step(**a, **STEP, draw=3, seed=9, tensor=word)
        alice_step(**(a | {"g_plus": None, "g_minus": None}), **STEP, draw=4, seed=9, tensor=word)
        assert contents(a) == contents(b)
    same = [copied(a) for a in plain[2:]]
    lists: dict[str, Any] = {k: [a[k] for a in same] for k in plain[0]}
    alice_step(**lists, **STEP, tensor=[7, 7], draw=1)  # type: ignore[arg-type]
    alice_step(**plain[2], **STEP, tensor=7, draw=1)
    assert contents(same[0]) == contents(plain[2])


def test_mixtures_are_refused_by_name() -> None:
    a = arrays(random(3), 40)
    before = copied(a)
    floats = np.zeros(40, np.float32)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        (
            {"glass": floats},
            TypeError,
            "'glass': got ndarray, needs Codes, as all of exp_avg, glass, hessian, exp_avg_sq",
        ),
        (dict.fromkeys(AVERAGES[:3], floats), TypeError, "'exp_avg': got ndarray, needs Codes"),
        (
            {"exp_avg_sq": quantize(floats, format="bitsandbytes")},
            ValueError,
            "'exp_avg_sq': got codes of format 'bits",
        ),
        (
            {"hessian": Codes(a["hessian"].codes, np.zeros(3, np.float32))},
            ValueError,
            "'hessian_scale': got shape (3,)",
        ),
        ({"hessian": Codes(np.zeros(39, np.uint8), a["hessian"].scales)}, ValueError, "'hessian': got shape (39,)"),
        ({"glass": Codes(floats, a["glass"].scales)}, TypeError, "'glass': got float32, needs uint8"),
        ({"exp_avg_sq": a["exp_avg"]}, ValueError, "got memory shared with 'exp_avg"),
        ({"hessian": None}, ValueError, "'hessian': got None"),
        ({"g_plus": None}, ValueError, "'g_plus': got None"),
        ({"draw": 2**32}, ValueError, "'draw': got 4294967296, needs an integer in [0, 2^32)"),
        ({"seed": -1}, ValueError, "'seed'"),
        ({"tensor": 0.5}, TypeError, "'tensor'"),
        (dict.fromkeys(("p", "g", "g_plus", "g_minus", "center", "lookahead"), np.zeros(40)), TypeError, "float64"),
    ]
    for change, kind, text in wrong:
        with pytest.raises(kind, match=re.escape(text)):
            alice_step(**(a | STEP | change))
        assert contents(a) == contents(before)
    lists: dict[str, Any] = {k: [x, copied(a)[k]] for k, x in a.items()}
    with pytest.raises(TypeError, match=re.escape("'glass[1]': got ndarray, needs Codes")):
        AlicePlan(**(lists | {"glass": [a["glass"], floats]}))
    with pytest.raises(ValueError, match=re.escape("'tensor': got 3 integers, needs 2")):
        AlicePlan(**lists, tensor=[1, 2, 3])


# ---- the optimizer --------------------------------------------------------------------------------------------------


def model(dtype: Any = np.float32, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((5, 7)).astype(dtype),
        rng.standard_normal((40, 3)).astype(dtype).T,
        rng.standard_normal((60, 8)).astype(dtype)[::2, 1::3],
        np.array(rng.standard_normal(), dtype),
        np.zeros((0, 3), dtype),
        rng.standard_normal(4099).astype(dtype),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("hess", ["debiased", "rms", "zero"])
def test_steps_are_the_kernels(dtype: Any, hess: str) -> None:
    """Noise is keyed by the step, the seed, and the word of the position for the purpose of rounding."""
    params, twins = model(dtype), [np.ascontiguousarray(p) for p in model(dtype)]
    options: dict[str, Any] = {"lr": 0.05, "sigma": 0.125, "seed": 2**64 - 7, "hess": hess}
    alice = Alice(params, **options, state_bits=8)
    group = alice.param_groups[0]
    codes = [
        {k: None if k == "hessian" and hess == "zero" else quantize(np.zeros(p.shape, np.float32)) for k in AVERAGES}
        for p in twins
    ]
    center = [p.astype(np.float32) for p in twins]
    ahead = [x.copy() for x in center]
    samples = 0
    for step in range(15):
        found: list[list[Array]] = []

        def grad(found: list[list[Array]] = found) -> list[Any]:
            found.append(grads_of(params)())
            return found[-1]

        assert alice.step(grad)
        numbers = step_numbers(group, step, samples, 3, None)
        samples += len(found) == 3
        for i, p in enumerate(twins):
            probes = [np.ascontiguousarray(grads[i]) for grads in found]
            at, (plus, minus) = probes[-1], probes[:2] if len(probes) == 3 else (None, None)
            keys = {"draw": step + 1, "seed": 2**64 - 7, "tensor": noise.tensor_word(str(i), "rounding")}
            alice_step(
                p, at, **codes[i], center=center[i], lookahead=ahead[i], g_plus=plus, g_minus=minus, **numbers, **keys
            )
    for i, state in enumerate(alice.state):
        assert np.ascontiguousarray(params[i]).tobytes() == twins[i].tobytes()
        for k in AVERAGES:
            if codes[i][k] is None:
                assert k not in state
            else:
                assert state[k].dtype == np.uint8
                assert np.ascontiguousarray(state[k]).tobytes() == codes[i][k].codes.tobytes()
                assert state[f"{k}_scale"].tobytes() == codes[i][k].scales.tobytes()
        assert state["center"].dtype == state["lookahead"].dtype == np.float32


@pytest.mark.parametrize("at", [1, 9, 10, 12, 13])
def test_resume_equals_no_interruption(at: int, tmp_path: Path) -> None:
    whole, halved = model(), model()
    alice, first = (Alice(p, lr=0.01, seed=5, state_bits=8) for p in (whole, halved))
    for _ in range(20):
        alice.step(grads_of(whole))
    for _ in range(at):
        first.step(grads_of(halved))
    first.save(tmp_path / "alice.npz")
    second = Alice(halved, lr=1.0, seed=6, quick_steps=9, state_bits=8, hess="abs")
    second.load(tmp_path / "alice.npz")
    for _ in range(20 - at):
        second.step(grads_of(halved))
    assert bytes_of(alice, whole) == bytes_of(second, halved)


def test_same_bits_from_every_backend_and_thread_count() -> None:
    from conftest import BACKENDS

    results = []
    for backend in BACKENDS:
        for threads in (1, 3) if backend == "cpp" else (1,):
            with curvk.use_backend(backend), curvk.threads(threads):
                params = model()
                alice = Alice(params, lr=0.05, l1=1e-3, l2=1e-3, state_bits=8)
                for _ in range(12):
                    alice.step(grads_of(params))
                results.append([*bytes_of(alice, params), json.dumps(alice.diagnose()).encode()])
    assert len(results) > 1
    assert results.count(results[0]) == len(results)


def test_memory_counts_codes_and_scales() -> None:
    w = np.ones((64, 32), np.float32)
    for bits, total in ((32, 28.0), (8, 4 + 8 + 4 * 1.125)):
        alice = Alice([w], lr=0.1, state_bits=bits)
        alice.step(lambda: [w.copy()])
        found = alice.memory()
        assert found["bytes_per_parameter"]["total"] == total
        assert found["bytes"]["exp_avg"] == w.size * bits // 8
        assert found["bytes"].get("glass_scale", 0) == (256 if bits == 8 else 0)


@pytest.mark.parametrize("hess", ["debiased", "abs", "zero"])
def test_diagnose_is_the_model_of_the_decoded_states(hess: str) -> None:
    w = random(4).standard_normal(3000).astype(np.float32)
    alice = Alice([w], lr=0.1, hess=hess, state_bits=8)
    for _ in range(14):
        alice.step(lambda: [np.cos(w)], loss=lambda: float(np.sin(w).sum()))
    state = alice.state[0]
    lists: Any = [
        [dequantize(Codes(state[k], state[f"{k}_scale"]), signed=is_signed(k, hess))] if k in state else None
        for k in AVERAGES
    ]
    inside, change = alice_model(*lists, lr_max=0.2, fraction=1 - 0.9, hess=hess)
    found = alice.diagnose()
    assert found["frac_inside"] == inside / w.size
    assert found["predicted"] == change
    assert found["realised"] < 0
    assert change < 0


@pytest.mark.parametrize("hess", ["debiased", "abs"])
def test_training_goes_as_with_32_bits(hess: str) -> None:
    """Noisy gradients of a quadratic: the loss that is left is that of float32 states within a few per cent."""
    left = {}
    for bits in (32, 8):
        total = 0.0
        for seed in range(3):
            rng = random(seed)
            h, b = rng.uniform(0.1, 3, 500).astype(np.float32), rng.standard_normal(500).astype(np.float32)
            w = rng.standard_normal(500).astype(np.float32)

            def grad(h: Array = h, b: Array = b, w: Array = w, e: Array = b) -> list[Array]:
                return [h * w - b + e]

            alice = Alice([w], lr=0.05, hess=hess, state_bits=bits, seed=seed)
            for _ in range(300):
                e = (0.3 * rng.standard_normal(500)).astype(np.float32)
                alice.step(lambda grad=grad, e=e: grad(e=e))  # type: ignore[misc]
            total += float(np.sum(h * (w - b / h) ** 2) / 2)
        left[bits] = total
    print(left)
    assert 0.95 < left[8] / left[32] < 1.05


def test_a_gradient_that_raises_or_is_not_finite_leaves_everything() -> None:
    for steps in (0, 11):
        params = model()
        alice = Alice(params, lr=0.01, state_bits=8, skip_nonfinite=True)
        for _ in range(steps):
            alice.step(grads_of(params))
        before = bytes_of(alice, params)
        calls = 0

        def grad(params: list[Any] = params) -> list[Any]:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return grads_of(params)()

        def infinite(params: list[Any] = params) -> list[Any]:
            grads = grads_of(params)()
            grads[5][7] = np.inf
            return grads

        with pytest.raises(KeyboardInterrupt):
            alice.step(grad)
        assert bytes_of(alice, params) == before
        assert not alice.step(infinite)
        assert bytes_of(alice, params) == before
        other_params = model()
        other = Alice(other_params, lr=0.01, state_bits=8)
        for _ in range(steps + 3):
            other.step(grads_of(other_params))
        for _ in range(3):
            alice.step(grads_of(params))
        assert bytes_of(alice, params) == bytes_of(other, other_params)


def test_what_is_refused() -> None:
    w = np.ones(40, np.float32)
    for options, text in (
        ({"state_bits": 16}, "'state_bits': got 16, needs 32 or 8; Alice has no others"),
        ({"state_bits": True}, "'state_bits'"),
        ({"state_bits": "bitsandbytes"}, "'state_bits'"),
        ({"state_bits": 8, "state_format": "bitsandbytes"}, "'state_format': got 'bitsandbytes', needs 'curvk'; Alice"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            Alice([w], **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=re.escape(text.replace("'state", "'param_groups[0].state"))):
            Alice([{"params": [w], **options}])
    with pytest.raises(ValueError, match="needs 32 for float64 parameters"):
        Alice([np.ones(3)], state_bits=8)
    alice = Alice([w], lr=0.1, state_bits=8)
    alice.param_groups[0]["state_bits"] = 32  # nothing is held yet
    alice.param_groups[0]["state_bits"] = 8
    alice.step(lambda: [w.copy()])
    before = bytes_of(alice, [w])
    for key, value, text in (
        ("state_bits", 32, "got state_bits=32, needs state_bits=8, state_format='curvk', hess='debiased'"),
        ("state_bits", 16, "got 16, needs 32 or 8"),
        (
            "hess",
            "abs",
            "hess='abs', needs state_bits=8, state_format='curvk', hess='debiased', as its states are held",
        ),
    ):
        kept = alice.param_groups[0][key]
        alice.param_groups[0][key] = value
        with pytest.raises(ValueError, match=re.escape(text)):
            alice.step(lambda: [w.copy()])
        alice.param_groups[0][key] = kept
        assert bytes_of(alice, [w]) == before
    alice.step(lambda: [w.copy()])


def test_groups_may_differ() -> None:
    c = random(5).standard_normal(70)
    a, b = c.astype(np.float32), c.astype(np.float32)
    groups = [{"params": [a]}, {"params": [b], "state_bits": 8}, {"params": [c], "hess": "abs"}]
    alice = Alice(groups, lr=0.1)
    for _ in range(30):
        alice.step(lambda: [a.copy(), b.copy(), c.copy()], loss=lambda: float(a @ a + b @ b + c @ c) / 2)
    dtypes = [entry["exp_avg_sq"].dtype for entry in alice.state]
    assert dtypes == [np.float32, np.uint8, np.float64]
    np.testing.assert_allclose(a, b, atol=0.05)
    assert a.tobytes() != b.tobytes()
    assert alice.diagnose()["realised"] < 0
    other = Alice(
        [{"params": [x], **{k: g[k] for k in g if k != "params"}} for x, g in zip((a, b, c), groups, strict=True)]
    )
    other.load_state_dict(alice.state_dict())
    assert bytes_of(other, [a, b, c]) == bytes_of(alice, [a, b, c])


# ---- state dicts ----------------------------------------------------------------------------------------------------


def trained(bits: int, hess: str = "debiased", steps: int = 14) -> tuple[Alice, list[Any]]:
    params = model()
    alice = Alice(params, lr=0.02, hess=hess, state_bits=bits, seed=3)
    for _ in range(steps):
        alice.step(grads_of(params))
    return alice, params


@pytest.mark.parametrize("hess", ["debiased", "rms", "zero"])
def test_conversion_there_and_back(hess: str) -> None:
    """To float32 is exact, and back gives the very codes; from float32 it is quantize, by the state's sign."""
    alice, params = trained(8, hess)
    wide = convert_state_dict(alice.state_dict())
    for entry, new in zip(alice.state, wide["state"], strict=True):
        assert not any(k.endswith("_scale") for k in new)
        for k in AVERAGES:
            if k in entry:
                codes = Codes(np.ascontiguousarray(entry[k]), entry[f"{k}_scale"])
                np.testing.assert_array_equal(new[k], dequantize(codes, signed=is_signed(k, hess)))
        np.testing.assert_array_equal(new["center"], entry["center"])
    plain = Alice([p.copy() for p in params], hess=hess)
    plain.load_state_dict(wide)
    assert plain.param_groups[0]["state_bits"] == 32
    plain.step(grads_of(params))
    again = Alice(params, hess=hess, state_bits=8)
    again.load_state_dict(convert_state_dict(wide, state_bits=8))
    assert bytes_of(again, params) == bytes_of(alice, params)


def test_state_dicts_that_do_not_fit() -> None:
    alice, params = trained(8)
    plain, _ = trained(32)
    before = bytes_of(alice, params)
    for make, state in ((alice, plain.state_dict()), (plain, alice.state_dict())):
        with pytest.raises(ValueError, match=r"use curvk\.optim\.convert_state_dict\(state, state_bits="):
            make.load_state_dict(state)
    state = alice.state_dict()
    for name, x in (("glass", np.zeros((5, 7), np.float32)), ("hessian_scale", np.zeros(3, np.float32))):
        entry = state["state"][0] | {name: x}
        with pytest.raises(ValueError, match=rf"state\[0\]\.{name}"):
            alice.load_state_dict(state | {"state": [entry, *state["state"][1:]]})
    for k in ("exp_avg_scale", "exp_avg_sq", "center"):
        entry = {name: x for name, x in state["state"][0].items() if name != k}
        with pytest.raises(ValueError, match=r"state\[0\].*needs keys"):
            alice.load_state_dict(state | {"state": [entry, *state["state"][1:]]})
    assert bytes_of(alice, params) == before
    for options in ({"state_bits": 16}, {"state_bits": 8, "state_format": "bitsandbytes"}):
        with pytest.raises(ValueError, match="Alice has no others"):
            convert_state_dict(state, **options)  # type: ignore[arg-type]
    alice.load_state_dict(state)
    assert bytes_of(alice, params) == before


def test_a_state_dict_from_before_the_option_loads() -> None:
    plain, params = trained(32)
    state = plain.state_dict()
    for group in state["param_groups"]:
        del group["state_bits"], group["state_format"]
    other = Alice(params)
    other.load_state_dict(state)
    assert bytes_of(other, params) == bytes_of(plain, params)
    with pytest.raises(ValueError, match="state"):
        Alice(params, state_bits=8).load_state_dict(state)
    assert convert_state_dict(state, state_bits=8)["state"][0]["glass"].dtype == np.uint8
