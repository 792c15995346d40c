"""Arrays of codes and their scales, and bfloat16 beside any format: what is refused, and that every layout works."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from curvk import _arrays, _backend
from curvk._backend import core
from curvk.kernels import half
from curvk.kernels.optim import sgd_step
from hypothesis import given, settings
from hypothesis import strategies as st

compiled = pytest.mark.skipif(core is None, reason="this build has no compiled binder")
Arrays = dict[str, Any]
FORMATS = {"f32": np.float32, "bf16": np.uint16, "f16": np.float16}
PER = {"adam_sweep8": 32, "adam_sweep8b": 256}
OPS = sorted(PER)
# step lr beta1 beta2 eps weight_decay decoupled maximize grad_scale rounding ema_decay zero_grad draw seed: the moments
# become the gradient and its square.
SCALARS = (1, 0.125, 0.0, 0.0, 1e-8, 0.0, 0, 0, 1.0, 0, 0.0, 0, 1, 7)


def stored(x: np.ndarray, fmt: str) -> np.ndarray:
    return half.from_float32(x.astype(np.float32), "bf16") if fmt == "bf16" else x.astype(FORMATS[fmt])


def make(op: str, shape: tuple[int, ...] = (7, 9), fmt: str = "f32", seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    groups = -(-int(np.prod(shape)) // PER[op])
    arrays: Arrays = {name: np.asarray(stored(rng.standard_normal(shape), fmt)) for name in ("p", "g")}
    for name in ("m", "v"):
        arrays |= {name: np.zeros(shape, np.uint8), f"{name}_scale": np.zeros(groups, np.float32)}
    arrays |= dict.fromkeys(("low", "ema", "shadow", "origin"))
    return arrays | {"tensor": np.zeros(1, np.int64), "offset": np.zeros(1, np.int64)}


def run(op: str, a: Arrays) -> None:
    _backend.call(op, tuple(a.values()), SCALARS)


def bits(a: Arrays) -> dict[str, bytes]:
    return {k: np.asarray(x).tobytes() for k, x in a.items() if isinstance(x, np.ndarray)}


def refused(op: str, a: Arrays, error: type[Exception], text: str) -> None:
    before = bits(a)
    with pytest.raises(error) as caught:
        run(op, a)
    assert type(caught.value) is error
    assert text in str(caught.value)
    assert bits(a) == before


def largest(x: np.ndarray, per: int) -> np.ndarray:
    """The largest absolute value of each group, in C order."""
    flat = np.abs(x).ravel(order="C")
    return np.array([flat[i : i + per].max() for i in range(0, flat.size, per)], x.dtype)


# ---- arrays with one element for several ----------------------------------------------------------------------------


def frozen(n: int) -> np.ndarray:
    x = np.zeros(n, np.float32)
    x.flags.writeable = False
    return x


BAD_SCALES = {
    "short": (
        lambda n: np.zeros(n - 1, np.float32),
        ValueError,
        "got shape ({short},), needs shape ({n},), an element",
    ),
    "long": (
        lambda n: np.zeros(n + 1, np.float32),
        ValueError,
        "got shape ({long},), needs shape ({n},), an element for each {per}",
    ),
    "like p": (lambda n: np.zeros((9, 70), np.float32), ValueError, "got shape (9, 70), needs shape ({n},)"),
    "row": (lambda n: np.zeros((1, n), np.float32), ValueError, "got shape (1, {n}), needs shape ({n},)"),
    "strided": (
        lambda n: np.zeros(2 * n, np.float32)[::2],
        ValueError,
        "got strides (8,) for shape ({n},), needs a C-c",
    ),
    "flipped": (lambda n: np.zeros(n, np.float32)[::-1], ValueError, "got strides (-4,) for shape ({n},), needs a C-c"),
    "float64": (lambda n: np.zeros(n), TypeError, "got float64, needs float32"),
    "read-only": (frozen, BufferError, "got a read-only array, needs a writable one"),
    "None": (lambda n: None, TypeError, "got None, needs an array"),
    "number": (lambda n: 1.0, TypeError, "got float, needs an array"),
}


@pytest.mark.parametrize("bad", BAD_SCALES)
@pytest.mark.parametrize("name", ["m_scale", "v_scale"])
@pytest.mark.parametrize("op", OPS)
def test_bad_scales_are_refused(op: str, name: str, bad: str, backend: str) -> None:
    breaks, error, text = BAD_SCALES[bad]
    n = -(-630 // PER[op])
    for order in "CF":  # beside arrays in memory order, and beside such as the block copier takes
        a = make(op, (9, 70))
        a["g"] = a["g"].copy(order=order)
        found = f"{op}: argument '{name}': {text.format(n=n, short=n - 1, long=n + 1, per=PER[op])}"
        refused(op, a | {name: breaks(n)}, error, found)


@pytest.mark.parametrize("op", OPS)
def test_scales_take_part_in_the_overlap_checks(op: str, backend: str) -> None:
    a = make(op)
    refused(op, a | {"v_scale": a["m_scale"]}, ValueError, "'v_scale': got memory shared with 'm_scale'")
    memory = np.zeros(256, np.uint8)
    codes, scale = memory[:63].reshape(7, 9), memory[60 : 60 + a["m_scale"].nbytes].view(np.float32)
    refused(op, a | {"m": codes, "m_scale": scale}, ValueError, "'m_scale': got memory shared with 'm'")
    run(op, a | {"m": codes, "m_scale": memory[64 : 64 + a["m_scale"].nbytes].view(np.float32)})


@pytest.mark.parametrize("dtype", [np.int8, bool, np.uint16, np.float32])
def test_codes_are_uint8(dtype: Any, backend: str) -> None:
    a = make("adam_sweep8")
    for name in ("m", "v"):
        codes = np.zeros((7, 9), dtype)
        refused("adam_sweep8", a | {name: codes}, TypeError, f"'{name}': got {codes.dtype}, needs uint8")


def test_codes_of_another_shape_are_refused(backend: str) -> None:
    a = make("adam_sweep8")
    text = "'v': got shape (9, 7), needs shape (7, 9) like 'p'"
    refused("adam_sweep8", a | {"v": a["v"].T}, ValueError, text)


def fortran(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


def gaps(x: np.ndarray) -> np.ndarray:
    memory = np.zeros((*x.shape[:-1], 3 * x.shape[-1]), x.dtype)
    memory[..., ::3] = x
    return memory[..., ::3]


def flipped(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1]


LAYOUTS = {"fortran": fortran, "gaps": gaps, "flipped": flipped}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("op", OPS)
def test_groups_are_counted_in_c_order_in_any_layout(op: str, fmt: str, layout: str, backend: str) -> None:
    """3 x 1150 elements: blocks of the copier end within rows, and the last group is shorter."""
    flat = make(op, (3, 1150), fmt)
    turned = {k: LAYOUTS[layout](x) if np.ndim(x) == 2 else x for k, x in make(op, (3, 1150), fmt).items()}
    mixed = make(op, (3, 1150), fmt)
    mixed = {k: LAYOUTS[layout](x) if k in ("g", "m") else x for k, x in mixed.items()}
    for a in (flat, turned, mixed):
        run(op, a)
    g = half.to_float32(flat["g"]) if fmt == "bf16" else flat["g"].astype(np.float32)
    assert flat["m_scale"].tobytes() == largest(g, PER[op]).tobytes()
    assert flat["v_scale"].tobytes() == largest(g * g, PER[op]).tobytes()
    assert len(np.unique(flat["m"])) > 50
    assert bits(turned) == bits(flat)
    assert bits(mixed) == bits(flat)


@pytest.mark.parametrize("shape", [(), (1,), (31,), (32,), (33,), (256,), (257,), (1, 1, 5)])
@pytest.mark.parametrize("op", OPS)
def test_small_shapes(op: str, shape: tuple[int, ...], backend: str) -> None:
    a = make(op, shape)
    g = a["g"].copy()
    run(op, a)
    assert a["m_scale"].tobytes() == largest(g, PER[op]).tobytes()


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
@pytest.mark.parametrize("op", OPS)
def test_empty_arrays_have_no_scales(op: str, shape: tuple[int, ...], backend: str) -> None:
    a = make(op, shape)
    run(op, a)
    text = "'m_scale': got shape (1,), needs shape (0,), an element"
    refused(op, a | {"m_scale": np.zeros(1, np.float32)}, ValueError, text)


@pytest.mark.parametrize("op", OPS)
def test_plans_check_every_row(op: str, backend: str) -> None:
    """Lists of arrays, some empty, one strided; tuples are the caller's own."""
    shapes = [(40,), (0,), (3, 1000), (2, 3)]
    rows = [make(op, shape, seed=i) for i, shape in enumerate(shapes)]
    rows[2]["m"] = fortran(rows[2]["m"])
    keys = {"tensor": np.zeros(4, np.int64), "offset": np.zeros(4, np.int64)}
    columns: Arrays = {k: None if x is None else [r[k] for r in rows] for k, x in rows[0].items()} | keys
    gradients = [r["g"].copy() for r in rows]
    plan = _backend.Plan(op, tuple(columns.values()))
    plan.run(SCALARS)
    for kind in (list, tuple):
        bound = columns | {k: kind(columns[k]) for k in ("m", "m_scale", "v", "v_scale")}
        for _ in range(2):
            for r in rows:
                r["m_scale"][...] = 0
            plan.rebind(tuple(bound.values()))
            plan.run(SCALARS)
            for r, g in zip(rows, gradients, strict=True):
                assert r["m_scale"].tobytes() == largest(g, PER[op]).tobytes()
        bound["v_scale"] = kind([*bound["v_scale"][:2], np.zeros(7, np.float32), bound["v_scale"][3]])
        with pytest.raises(ValueError, match=r"'v_scale\[2\]': got shape \(7,\), needs .* for each \d+ of 'p\[2\]'"):
            plan.rebind(tuple(bound.values()))
        with pytest.raises(RuntimeError, match="refused"):
            plan.run(SCALARS)


@pytest.mark.parametrize(("op", "per"), [("quantize8", 32), ("quantize8b", 256)])
def test_quantize_counts_in_c_order(op: str, per: int, backend: str) -> None:
    """Its groups lie in C order also where x and the codes agree in another order of memory."""
    x = np.random.default_rng(3).standard_normal((40, 50)).astype(np.float32)
    scale, codes = np.zeros(-(-2000 // per), np.float32), np.zeros((40, 50), np.uint8)
    _backend.call(op, (fortran(x), codes, scale), (1,))
    assert scale.tobytes() == largest(x, per).tobytes()
    with pytest.raises(ValueError, match=r"'codes': got strides .* needs a C-contiguous array"):
        _backend.call(op, (fortran(x), fortran(codes), scale), (1,))
    with pytest.raises(ValueError, match=r"'scale': got shape .*, needs shape"):
        _backend.call(op, (x, codes, np.zeros(1, np.float32)), (1,))
    back, seen = np.zeros((40, 50), np.float32), scale.copy()
    seen.flags.writeable = codes.flags.writeable = False  # they are only read
    _backend.call(op.replace("q", "deq"), (back, codes, seen), (1,))
    assert np.corrcoef(back.ravel(), x.ravel())[0, 1] > 0.99


# ---- bfloat16 -------------------------------------------------------------------------------------------------------


def shadows() -> dict[str, Any]:
    kinds: dict[str, Any] = {
        "uint16": np.zeros((7, 9), np.uint16),
        "int16": np.zeros((7, 9), np.int16),
        "ml_dtypes": np.zeros((7, 9), ml_dtypes.bfloat16),
        "strided": np.zeros((9, 7), np.int16).T,
    }
    try:
        import torch
    except ImportError:
        return kinds
    tensors = {f"torch.{t}": torch.zeros(7, 9, dtype=getattr(torch, t)) for t in ("bfloat16", "int16", "uint16")}
    return kinds | tensors


def as_bits(x: Any) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x.view(np.uint16)
    import torch

    return np.asarray(x.view(torch.int16).numpy().view(np.uint16))


@pytest.mark.parametrize("fmt", FORMATS)
def test_bfloat16_goes_with_every_format(fmt: str, backend: str) -> None:
    """A copy of the parameters in bfloat16, in whatever array of 16-bit patterns, beside parameters of any format."""
    a = make("adam_sweep8", fmt=fmt) | {"shadow": np.zeros((7, 9), np.uint16), "ema": np.zeros((7, 9), np.float32)}
    run("adam_sweep8", a)
    want = a["ema"].astype(ml_dtypes.bfloat16).view(np.uint16)  # ema_decay is 0: the parameters before their rounding
    assert np.array_equal(a["shadow"], want)
    for kind, shadow in shadows().items():
        run("adam_sweep8", make("adam_sweep8", fmt=fmt) | {"shadow": shadow})
        assert np.array_equal(as_bits(shadow), want), kind
    bad = np.zeros((7, 9), np.float16)
    refused("adam_sweep8", make("adam_sweep8", fmt=fmt) | {"shadow": bad}, TypeError, "got float16, needs bfloat16")
    for swapped in (">u2", ">i2"):
        refused(
            "adam_sweep8", make("adam_sweep8", fmt=fmt) | {"shadow": np.zeros((7, 9), swapped)}, TypeError, "'shadow'"
        )


def test_float64_has_a_bfloat16_copy_too(backend: str) -> None:
    p, shadow, zero = np.linspace(-3, 3, 63).reshape(7, 9), np.zeros((7, 9), np.int16), np.zeros(1, np.int64)
    sgd = (0.5, 0.0, 0.0, 0.0, 0, 0, 0, 0, 1.0, 0, 0.0, 0, 1, 0)
    _backend.call("sgd_sweep", (p, np.ones_like(p), None, None, None, shadow, None, zero, zero.copy()), sgd)
    assert np.array_equal(p, np.linspace(-3, 3, 63).reshape(7, 9) - 0.5)
    assert np.array_equal(as_bits(shadow), p.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16))


def test_signed_patterns_are_bfloat16(backend: str) -> None:
    """int16 arrays and tensors step as uint16 ones, in the kernels' own format."""
    p, g = np.array([0x3F80, 0xC000], np.uint16), np.array([0x3F80, 0x3F80], np.uint16)  # 1, -2; 1, 1
    want = np.array([0x3F00, 0xC020], np.uint16)  # 0.5, -2.5
    signed = p.view(np.int16).copy()
    sgd_step(signed, g, lr=0.5)
    assert np.array_equal(signed.view(np.uint16), want)
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(p.view(np.int16).copy())
    sgd_step(tensor, g.view(np.int16), lr=0.5)
    assert np.array_equal(as_bits(tensor), want)
    with pytest.raises(TypeError, match="'g': got int16, needs float32 like 'p'"):
        sgd_step(np.zeros(2, np.float32), g.view(np.int16), lr=0.5)
    with pytest.raises(TypeError, match="'x': got int16, needs float32 or float64"):
        _backend.call("exp", (signed, np.zeros(2, np.float32)), ())


# ---- random layouts and faults --------------------------------------------------------------------------------------


@st.composite
def columns(draw: Any) -> Arrays:
    op = draw(st.sampled_from(OPS))
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 40, 0]), min_size=1, max_size=3)))
    a = make(op, shape, draw(st.sampled_from(sorted(FORMATS))))
    names = ("p", "g", "m", "v")
    layout = draw(st.permutations(range(len(shape))))
    for name in names:
        order = layout if draw(st.integers(0, 3)) else range(len(shape))
        x = np.ascontiguousarray(a[name].transpose(order)).transpose(np.argsort(order))
        assert x.shape == shape
        a[name] = x
    fault, name = draw(st.sampled_from([""] * 3 + ["size", "shape", "gaps", "dtype", "shared"])), "m_scale"
    scale = a[name]
    if fault == "size":
        a[name] = np.zeros(draw(st.integers(0, 5)), np.float32)
    elif fault == "shape":
        a[name] = scale.reshape(draw(st.sampled_from([(1, -1), (-1, 1)]))) if scale.size else scale.reshape(0, 1)
    elif fault == "gaps":
        a[name] = np.zeros(2 * scale.size, np.float32)[::2]
    elif fault == "dtype":
        a[name] = scale.astype(draw(st.sampled_from([np.float64, np.int32, ">f4"])))
    elif fault == "shared":
        a["v_scale"] = scale
    return {"op": op} | a


@compiled
@settings(max_examples=200, deadline=None)
@given(columns())
def test_binder_and_checks_agree(given: Arrays) -> None:
    """What the binder takes at speed the Python checks accept, and the result is that of contiguous arrays."""
    op = given["op"]
    a = {k: x for k, x in given.items() if k != "op"}
    before = bits(a)
    try:
        _arrays.check(op, tuple(a.values()))
    except (TypeError, ValueError):
        with pytest.raises((TypeError, ValueError)):
            core.call(op, tuple(a.values()), SCALARS)
        assert bits(a) == before
        return
    flat = {k: x.copy(order="C") if isinstance(x, np.ndarray) else x for k, x in a.items()}
    core.call(op, tuple(a.values()), SCALARS)
    core.call(op, tuple(flat.values()), SCALARS)
    assert bits(a) == bits(flat)
