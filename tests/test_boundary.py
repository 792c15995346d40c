"""Bad input is refused with the right error and nothing is written; every honest layout works, at every backend."""

from __future__ import annotations

import array
import ctypes
import gc
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from curvk import _arrays
from curvk._backend import core
from curvk.kernels import half
from curvk.kernels.optim import AdamPlan, SGDPlan, adam_step, global_norm, sgd_step
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

compiled = pytest.mark.skipif(core is None, reason="this build has no compiled binder")
Arrays = dict[str, Any]
FORMATS = {"f32": np.float32, "f64": np.float64, "bf16": np.uint16, "f16": np.float16}

# ---- the functions under test ---------------------------------------------------------------------------------------
# Each takes arrays by name and scalars by keyword.


def listed(x: Any) -> list[Any] | None:
    return None if x is None else [x]


def adam_call(a: Arrays, **scalars: Any) -> None:
    optional = {"max_v": a["max_v"], "origin": a["origin"]}
    adam_step(a["p"], a["g"], a["m"], a["v"], **({"step": 2, "lr": 0.1} | optional | scalars))


def adam_plan(a: Arrays, **scalars: Any) -> None:
    plan = AdamPlan([a["p"]], [a["g"]], [a["m"]], [a["v"]], max_v=listed(a["max_v"]), origin=listed(a["origin"]))
    plan.step(**({"step": 2, "lr": 0.1} | scalars))


def sgd_call(a: Arrays, **scalars: Any) -> None:
    sgd_step(a["p"], a["g"], a["buf"], origin=a["origin"], **({"lr": 0.1, "momentum": 0.9} | scalars))


def sgd_plan(a: Arrays, **scalars: Any) -> None:
    plan = SGDPlan([a["p"]], [a["g"]], listed(a["buf"]), origin=listed(a["origin"]))
    plan.step(**({"lr": 0.1, "momentum": 0.9} | scalars))


STEPS = {"adam_step": adam_call, "AdamPlan": adam_plan, "sgd_step": sgd_call, "SGDPlan": sgd_plan}
ADAM, SGD = "p g m v max_v origin", "p g buf origin"
NAMES = {"adam_step": ADAM, "AdamPlan": ADAM, "sgd_step": SGD, "SGDPlan": SGD}
ARGUMENTS = [(step, name) for step in STEPS for name in NAMES[step].split()]


def op_of(step: str) -> str:
    return "adam_step" if "dam" in step else "sgd_step"


def label(step: str, name: str) -> str:
    return f"{name}[0]" if step.endswith("Plan") else name


def make(step: str, shape: Any = (6, 5), fmt: str = "f32", seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for name in NAMES[step].split():
        x = np.abs(rng.standard_normal(shape)).astype(np.float32)
        if name in ("p", "g", "origin"):
            x = half.from_float32(x, "bf16") if fmt == "bf16" else np.asarray(x, FORMATS[fmt])
        elif fmt == "f64":
            x = np.asarray(x, np.float64)
        arrays[name] = np.asarray(x)
    return arrays


def bits(a: Arrays) -> dict[str, bytes]:
    return {k: np.asarray(x).tobytes() for k, x in a.items() if x is not None}


def refused(step: str, a: Arrays, error: type[Exception], /, *words: str, **scalars: Any) -> None:
    """The step raises exactly this error, in these words, and leaves every array as it was."""
    before = bits({k: x for k, x in a.items() if isinstance(x, np.ndarray)})
    with pytest.raises(error) as caught:
        STEPS[step](a, **scalars)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
    assert bits({k: x for k, x in a.items() if isinstance(x, np.ndarray)}) == before


# ---- bad arrays -----------------------------------------------------------------------------------------------------


def misaligned(x: np.ndarray) -> np.ndarray:
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:]
    y = memory.view(x.dtype).reshape(x.shape)
    y[...] = x
    assert not y.flags.aligned
    return y


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


class OnDevice:
    """An array of a device that is neither the CPU nor CUDA's, as DLPack announces it: ROCm's."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (10, 0)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("memory of another device was asked for")


BAD: dict[str, tuple[Callable[[np.ndarray], Any], type[Exception], str]] = {
    "int32": (lambda x: x.astype(np.int32), TypeError, "got int32, needs float32"),
    "bool": (lambda x: x.astype(bool), TypeError, "got bool, needs float32"),
    "complex64": (lambda x: x.astype(np.complex64), TypeError, "got complex64, needs float32"),
    "object": (lambda x: x.astype(object), TypeError, "got object, needs float32"),
    "big-endian": (lambda x: x.astype(">f4"), TypeError, "native byte order"),
    "misaligned": (misaligned, ValueError, "got a misaligned array, needs 4-byte alignment"),
    "None": (lambda x: None, TypeError, "got None"),
    "number": (lambda x: 1.0, TypeError, "got float, needs an array"),
    "string": (lambda x: "abc", TypeError, "got str, needs an array"),
    "bytes": (lambda x: x.tobytes(), TypeError, "got uint8, needs float32"),
    "tuple": (lambda x: tuple(x.ravel().tolist()), TypeError, "got tuple, needs an array"),
    "dict": (lambda x: {0: x}, TypeError, "got dict, needs an array"),
    "masked": (np.ma.masked_array, TypeError, "got MaskedArray, needs a plain NumPy array"),
    "recarray": (lambda x: x.view(np.recarray), TypeError, "got recarray, needs a plain NumPy array"),
    "device": (lambda x: OnDevice(), BufferError, "got an array on DLPack device (10, 0), needs a CPU array"),
}
BAD_WRITTEN: dict[str, tuple[Callable[[np.ndarray], Any], type[Exception], str]] = {
    "read-only": (read_only, BufferError, "got a read-only array, needs a writable one"),
    "broadcast": (lambda x: as_strided(x.copy(), x.shape, (0, 4)), ValueError, "that may meet an element twice"),
    "windows": (lambda x: as_strided(x.copy(), x.shape, (4, 4)), ValueError, "that may meet an element twice"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("step", "name"), ARGUMENTS)
def test_bad_array_is_refused(step: str, name: str, bad: str, backend: str) -> None:
    a = make(step)
    spoil, error, words = BAD[bad]
    a[name] = spoil(a[name])
    if bad == "None" and name in ("max_v", "buf", "origin"):
        return STEPS[step](a, **({"momentum": 0.0} if name == "buf" else {}))  # these may be absent
    refused(step, a, error, f"{op_of(step)}: argument '{label(step, name)}': ", words)


@pytest.mark.parametrize("bad", BAD_WRITTEN)
@pytest.mark.parametrize(("step", "name"), [(s, n) for s, n in ARGUMENTS if n not in ("g", "origin")])
def test_bad_written_array_is_refused(step: str, name: str, bad: str, backend: str) -> None:
    a = make(step)
    spoil, error, words = BAD_WRITTEN[bad]
    a[name] = spoil(a[name])
    refused(step, a, error, f"{op_of(step)}: argument '{label(step, name)}': ", words, ".copy()")


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("step", "name"), [(s, n) for s, n in ARGUMENTS if n != "p"])
def test_dtype_must_fit_p(step: str, name: str, fmt: str, backend: str) -> None:
    a = make(step, fmt=fmt)
    wrong = {"f32": np.float64, "f64": np.float32}.get(fmt, np.float64)
    a[name] = a[name].astype(wrong)
    refused(
        step, a, TypeError, f"argument '{label(step, name)}': got {np.dtype(wrong)}, needs", f"'{label(step, 'p')}'"
    )


@pytest.mark.parametrize(("step", "name"), [(s, n) for s, n in ARGUMENTS if n != "p"])
def test_shape_must_be_that_of_p(step: str, name: str, backend: str) -> None:
    a = make(step)
    for wrong in (a[name][:-1].copy(), a[name].ravel(), a[name].T.copy(), np.float32(1) * np.ones((), np.float32)):
        b = a | {name: np.asarray(wrong)}
        refused(step, b, ValueError, f"got shape {np.shape(wrong)}, needs shape (6, 5) like '{label(step, 'p')}'")


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix_is_refused(backend: str) -> None:
    a = make("adam_step")
    a["m"] = np.asmatrix(a["m"])
    refused("adam_step", a, TypeError, "argument 'm': got matrix, needs a plain NumPy array; use np.asarray(m)")


@pytest.mark.parametrize("name", ["g", "m", "v", "max_v"])
def test_list_of_floats_is_refused(name: str, backend: str) -> None:
    a = make("adam_step", 3)
    refused("adam_step", a | {name: [1.0, 2.0, 3.0]}, TypeError, f"argument '{name}': got list, needs one array")
    refused("adam_step", a | {"p": [1.0, 2.0, 3.0]}, TypeError, "argument 'p[0]': got float, needs an array")


def test_lists_of_a_plan_must_match(backend: str) -> None:
    x = [np.ones(2, np.float32) for _ in range(12)]
    with pytest.raises(ValueError, match=r"adam_step: argument 'g': got 2 arrays, needs 3, one for each in 'p'"):
        AdamPlan(x[:3], x[3:5], x[5:8], x[8:11])
    with pytest.raises(ValueError, match=r"sgd_step: argument 'buf': got 0 arrays, needs 2, one for each in 'p'"):
        SGDPlan(x[:2], x[2:4], [])
    with pytest.raises(ValueError, match=r"argument 'm\[1\]': got shape \(2,\), needs shape \(3,\) like 'p\[1\]'"):
        AdamPlan([x[0], np.ones(3, np.float32)], [x[1], np.ones(3, np.float32)], [x[2], x[3]], [x[4], x[5]])
    with pytest.raises(TypeError, match=r"argument 'p\[1\]': got float64, needs float32 like 'p\[0\]'"):
        SGDPlan([x[0], np.ones(2)], [x[1], np.ones(2)])


def test_refused_plan_stays_refused_until_rebound() -> None:
    p, g, m, v = (np.ones(3, np.float32) for _ in range(4))
    plan = AdamPlan([p], [g], [m], [v])
    with pytest.raises(TypeError, match=r"'g\[0\]': got float64"):
        plan.set_grads([np.ones(3)])
    before = bits({"p": p, "m": m, "v": v})
    with pytest.raises(RuntimeError, match="refused"):
        plan.step(step=1, lr=0.1)
    assert bits({"p": p, "m": m, "v": v}) == before
    plan.set_grads([g])
    plan.step(step=1, lr=0.1)
    assert bits({"p": p, "m": m, "v": v}) != before


# ---- overlap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "name"), [(s, n) for s, n in ARGUMENTS if n != "p"])
def test_shared_memory_is_refused(step: str, name: str, backend: str) -> None:
    a = make(step, 20)
    words = f"argument '{label(step, name)}': got memory shared with '{label(step, 'p')}', needs memory of its own"
    refused(step, a | {name: a["p"]}, ValueError, words)
    memory = np.ones(22, np.float32)
    refused(step, a | {"p": memory[:20], name: memory[2:]}, ValueError, words)
    refused(step, a | {"p": memory[2:], name: memory[:20]}, ValueError, words)
    square = np.ones((4, 5), np.float32)
    b = {k: x.reshape(4, 5) for k, x in a.items()}
    refused(step, b | {"p": square, name: square[::-1]}, ValueError, words)
    wide = np.ones((4, 8), np.float32)
    refused(step, b | {"p": wide[:, :5], name: wide[:, 3:]}, ValueError, words)


def test_rows_that_share_memory_are_refused(backend: str) -> None:
    x = [np.ones(4, np.float32) for _ in range(8)]
    with pytest.raises(ValueError, match=r"argument 'p\[1\]': got memory shared with 'p\[0\]'"):
        AdamPlan([x[0], x[0]], x[1:3], x[3:5], x[5:7])
    with pytest.raises(ValueError, match=r"argument 'v\[0\]': got memory shared with 'm\[1\]'"):
        AdamPlan(x[:2], x[2:4], [x[4], x[5]], [x[5], x[6]])
    with pytest.raises(ValueError, match=r"argument 'g\[0\]': got memory shared with 'p\[1\]'"):
        SGDPlan([x[0], x[1]], [x[1], x[2]])


def test_gradients_may_share_memory_among_themselves(backend: str) -> None:
    p, g = [np.ones(3, np.float32), np.ones(3, np.float32)], np.array([1, 2, 3], np.float32)
    SGDPlan(p, [g, g]).step(lr=1.0)
    assert p[0].tolist() == p[1].tolist() == [0.0, -1.0, -2.0]


@pytest.mark.parametrize("step", STEPS)
def test_interleaved_arrays_work(step: str, backend: str) -> None:
    a = make(step, 30)
    names = NAMES[step].split()
    memory = np.stack([a[n] for n in names], axis=1)
    STEPS[step]({n: memory[:, i] for i, n in enumerate(names)})
    STEPS[step](a)
    for i, n in enumerate(names):
        assert memory[:, i].tobytes() == a[n].tobytes(), n


# ---- numbers --------------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
OUT_OF_RANGE = {
    "adam_step": {
        "lr": ("lr", "[0, inf)", [NAN, INF, -1e-9, -INF, 10**400]),
        "eps": ("eps", "[0, inf)", [NAN, INF, -1e-30]),
        "weight_decay": ("weight_decay", "[0, inf)", [NAN, INF, -0.1]),
        "grad_scale": ("grad_scale", "(0, inf)", [NAN, INF, 0.0, -1.0]),
        "step": ("step", "[1, inf)", [0, -1, -(2**70)]),
    },
    "sgd_step": {
        "lr": ("lr", "[0, inf)", [NAN, INF, -1e-9]),
        "momentum": ("momentum", "[0, inf)", [NAN, INF, -0.5]),
        "dampening": ("dampening", "(-inf, inf)", [NAN, INF, -INF]),
        "weight_decay": ("weight_decay", "[0, inf)", [NAN, INF, -0.1]),
        "grad_scale": ("grad_scale", "(0, inf)", [NAN, INF, 0.0, -1.0]),
    },
}


@pytest.mark.parametrize("step", STEPS)
def test_numbers_out_of_range_are_refused(step: str, backend: str) -> None:
    for keyword, (name, interval, values) in OUT_OF_RANGE[op_of(step)].items():
        for value in values:
            words = f"{op_of(step)}: argument '{name}': got {value}, needs a number in {interval}"
            refused(step, make(step), ValueError, words, **{keyword: value})


@pytest.mark.parametrize("step", ["adam_step", "AdamPlan"])
@pytest.mark.parametrize("position", [0, 1])
def test_betas_out_of_range_are_refused(step: str, position: int, backend: str) -> None:
    for value in (NAN, INF, 1.0, 1.5, -0.1):
        betas = [0.9, 0.999]
        betas[position] = value
        words = f"adam_step: argument 'beta{position + 1}': got {value}, needs a number in [0, 1)"
        refused(step, make(step), ValueError, words, betas=tuple(betas))


@pytest.mark.parametrize("value", ["0.1", b"0.1", None, 1j, [0.1], {}, object()])
@pytest.mark.parametrize("step", STEPS)
def test_what_is_no_number_is_refused(step: str, value: Any, backend: str) -> None:
    words = f"{op_of(step)}: argument 'lr': got {value!r} of type {type(value).__name__}, needs a real number"
    refused(step, make(step), TypeError, words, lr=value)


@pytest.mark.parametrize("value", [1.0, "1", None, np.float64(2)])
def test_step_must_be_an_integer(value: Any, backend: str) -> None:
    words = f"adam_step: argument 'step': got {value!r} of type {type(value).__name__}, needs an integer"
    refused("adam_step", make("adam_step"), TypeError, words, step=value)


@pytest.mark.parametrize("step", STEPS)
def test_numbers_of_other_kinds_work(step: str, backend: str) -> None:
    a, b = make(step), make(step)
    STEPS[step](a, lr=0.5, weight_decay=1.0)
    STEPS[step](b, lr=np.float32(0.5), weight_decay=True)
    assert bits(a) == bits(b)
    if op_of(step) == "adam_step":
        STEPS[step](a, step=3)
        STEPS[step](b, step=np.int64(3))
        assert bits(a) == bits(b)


def test_momentum_needs_a_buffer(backend: str) -> None:
    p, g, buf = (np.ones(2, np.float32) for _ in range(3))
    with pytest.raises(ValueError, match=r"sgd_step: argument 'buf': got None, needs a momentum buffer.*np.zeros_like"):
        sgd_step(p, g, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="sgd_step: argument 'nesterov': got True, needs momentum > 0 and dampening 0"):
        sgd_step(p, g, buf, lr=0.1, momentum=0.9, dampening=0.1, nesterov=True)
    assert p.tolist() == [1, 1]


# ---- the other functions --------------------------------------------------------------------------------------------


def test_global_norm_refuses(backend: str) -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"global_norm: argument 'arrays\[0\]': got int64, needs float32"):
        global_norm([np.ones(3, np.int64)])
    with pytest.raises(TypeError, match=r"got list, needs an array"):
        global_norm([[1.0, 2.0]])
    with pytest.raises(TypeError, match=r"got MaskedArray"):
        global_norm([np.ma.masked_array(x)])
    with pytest.raises(ValueError, match=r"misaligned"):
        global_norm([misaligned(x)])
    assert global_norm([x[::-1], read_only(x), as_strided(x, (2, 3), (0, 4))]) == math.sqrt(12)
    assert global_norm([]) == 0.0


def test_half_refuses(backend: str) -> None:
    x, out = np.ones((2, 3), np.uint16), np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="to_float32: argument 'x': got float32, needs bfloat16 or float16"):
        half.to_float32(out)
    with pytest.raises(TypeError, match="to_float32: argument 'out': got float64, needs float32"):
        half.to_float32(x, out=np.zeros((2, 3)))
    with pytest.raises(BufferError, match="to_float32: argument 'out': got a read-only array"):
        half.to_float32(x, out=read_only(out))
    with pytest.raises(ValueError, match=r"argument 'out': got shape \(3, 2\), needs shape \(2, 3\) like 'x'"):
        half.to_float32(x, out=out.T)
    with pytest.raises(ValueError, match=r"to_float32: argument 'out': got strides .* needs a C-contiguous array"):
        half.to_float32(x, out=np.zeros((3, 2), np.float32).T)
    with pytest.raises(TypeError, match="from_float32: argument 'x': got float64, needs float32"):
        half.from_float32(np.zeros(2), "bf16")
    with pytest.raises(TypeError, match="from_float32: argument 'out': got float16, needs bfloat16"):
        half.from_float32(out, "bf16", out=np.zeros((2, 3), np.float16))
    with pytest.raises(ValueError, match="argument 'format': got 'f32', needs 'bf16' or 'f16'"):
        half.from_float32(out, "f32")
    memory = np.zeros(8, np.uint16)
    with pytest.raises(ValueError, match="memory shared"):
        half.to_float32(memory[:4], out=memory.view(np.float32))
    assert not out.any()
    assert half.to_float32(np.full((3, 2), 0x3F80, np.uint16).T).tolist() == [[1.0] * 3] * 2


# ---- layouts that work ----------------------------------------------------------------------------------------------


def flipped(x: np.ndarray) -> np.ndarray:
    return x[::-1, ::-1].copy()[::-1, ::-1]


def fortran(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


def sparse_rows(x: np.ndarray) -> np.ndarray:
    memory = np.zeros((2 * x.shape[0], x.shape[1] + 3), x.dtype)
    memory[::2, :-3] = x
    return memory[::2, :-3]


LAYOUTS = {"flipped": flipped, "fortran": fortran, "rows": sparse_rows}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("step", STEPS)
def test_layouts_give_the_contiguous_bits(step: str, fmt: str, layout: str, backend: str) -> None:
    for names in ([n] for n in NAMES[step].split()), [NAMES[step].split()]:
        for chosen in names:
            expected = make(step, fmt=fmt)
            a = {k: LAYOUTS[layout](x) if k in chosen else x.copy() for k, x in expected.items()}
            STEPS[step](expected)
            STEPS[step](a)
            assert bits(a) == bits(expected), chosen


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)])
@pytest.mark.parametrize("step", STEPS)
def test_small_shapes(step: str, shape: tuple[int, ...], backend: str) -> None:
    a, flat = make(step, shape), make(step, (int(np.prod(shape)),))
    STEPS[step](a)
    STEPS[step](flat)
    assert bits(a) == bits(flat)
    assert a["p"].shape == shape


@pytest.mark.parametrize("step", STEPS)
def test_five_axes_in_any_order(step: str, backend: str) -> None:
    expected = make(step, (2, 3, 4, 2, 3))
    order = (3, 0, 4, 1, 2)
    inverse = np.argsort(order)
    same = {k: np.ascontiguousarray(x.transpose(order)).transpose(inverse) for k, x in expected.items()}
    mixed = {k: x if i % 2 else same[k].copy(order="K") for i, (k, x) in enumerate(make(step, (2, 3, 4, 2, 3)).items())}
    for a in (expected, same, mixed):
        STEPS[step](a)
    assert bits(same) == bits(mixed) == bits(expected)


@pytest.mark.parametrize("step", STEPS)
def test_gradient_may_be_read_only_or_broadcast(step: str, backend: str) -> None:
    a = make(step)
    a["g"] = np.broadcast_to(a["g"][0], (6, 5))
    b = {k: np.array(x, copy=True) for k, x in a.items()}
    STEPS[step](a)
    STEPS[step](b)
    assert bits(a) == bits(b)


def test_bfloat16_arrays_of_ml_dtypes(backend: str) -> None:
    a = make("adam_step", fmt="bf16")
    b = {k: x.copy() for k, x in a.items()}
    b["p"], b["g"] = b["p"].view(ml_dtypes.bfloat16), b["g"].view(ml_dtypes.bfloat16)
    STEPS["adam_step"](a)
    STEPS["adam_step"](b)
    assert bits(a) == bits(b)


def test_memory_mapped_arrays(tmp_path: Path, backend: str) -> None:
    a, expected = make("adam_step"), make("adam_step")
    for name, x in a.items():
        a[name] = np.memmap(tmp_path / name, np.float32, "w+", shape=x.shape)
        a[name][...] = x
    STEPS["adam_step"](a)
    STEPS["adam_step"](expected)
    assert bits(a) == bits(expected)
    a["p"].flush()
    assert (tmp_path / "p").read_bytes() == expected["p"].tobytes()
    refused("adam_step", a | {"p": np.memmap(tmp_path / "p", np.float32, "r", shape=(6, 5))}, BufferError, "read-only")


def test_buffers(backend: str) -> None:
    a = make("sgd_step", 6)
    b: Arrays = {k: array.array("f", x.tolist()) for k, x in a.items()}
    b["g"] = memoryview(a["g"].tobytes()).cast("f")
    STEPS["sgd_step"](a)
    STEPS["sgd_step"](b)
    assert bits(a) == bits(b)
    refused("sgd_step", b | {"p": b["g"]}, BufferError, "argument 'p': got a read-only array")


def test_dlpack_objects(backend: str) -> None:
    class Exporter:
        def __init__(self, x: np.ndarray) -> None:
            self.x = x

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

        def __dlpack__(self, **keywords: Any) -> Any:
            return self.x.__dlpack__(**keywords)

    a, expected = make("sgd_step"), make("sgd_step")
    STEPS["sgd_step"]({**a, "g": Exporter(a["g"]), "buf": Exporter(a["buf"])})
    STEPS["sgd_step"](expected)
    assert bits(a) == bits(expected)


# ---- torch tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_tensors(fmt: str, backend: str) -> None:
    torch = pytest.importorskip("torch")
    expected = make("adam_step", (4, 6), fmt)
    a = {k: torch.from_numpy(x.copy()) for k, x in expected.items()}
    if fmt == "bf16":
        a["p"], a["g"] = a["p"].view(torch.bfloat16), a["g"].view(torch.bfloat16)
    a["p"] = torch.nn.Parameter(a["p"])
    versions = {k: x._version for k, x in a.items()}
    STEPS["adam_step"](a)
    STEPS["adam_step"](expected)
    for k, x in a.items():
        x = x.detach()
        assert (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy().tobytes() == expected[k].tobytes(), k
        assert (x._version > versions[k]) == (k not in ("g", "origin")), "a written tensor's version counts the write"


def test_tensors_of_any_layout(backend: str) -> None:
    torch = pytest.importorskip("torch")
    expected = make("adam_step", (2, 3, 4, 5))
    STEPS["adam_step"](expected)
    layouts = {
        "channels_last": lambda x: torch.from_numpy(x).contiguous(memory_format=torch.channels_last),
        "strided": lambda x: torch.from_numpy(np.repeat(x, 2, axis=3))[..., ::2],
        "transposed": lambda x: torch.from_numpy(np.ascontiguousarray(x.T)).permute(3, 2, 1, 0),
    }
    for name, layout in layouts.items():
        for chosen in ({"p"}, {"g"}, {"p", "g", "m", "v", "max_v"}):
            source = make("adam_step", (2, 3, 4, 5))
            a = {k: layout(x) if k in chosen else torch.from_numpy(x) for k, x in source.items()}
            STEPS["adam_step"](a)
            for k in a:
                assert a[k].contiguous().numpy().tobytes() == expected[k].tobytes(), (name, chosen, k)


def test_bad_tensors_are_refused(backend: str) -> None:
    torch = pytest.importorskip("torch")

    class Subclass(torch.Tensor):
        pass

    bad = {
        "sparse": (lambda x: x.to_sparse(), TypeError, "a dense tensor; use g.to_dense()"),
        "meta": (lambda x: x.to("meta"), BufferError, "got a tensor on device meta, needs a CPU tensor; use g.cpu()"),
        "subclass": (lambda x: x.as_subclass(Subclass), TypeError, "got Subclass, needs a plain torch.Tensor"),
        "negated": (lambda x: torch.complex(x, x).conj().imag, ValueError, "lazily conjugated or negated"),
        "dtype": (lambda x: x.double(), TypeError, "got float64, needs float32 like 'p'"),
        "integer": (lambda x: x.int(), TypeError, "got int32, needs float32 like 'p'"),
        "shape": (lambda x: x.T.contiguous(), ValueError, "got shape (5, 6), needs shape (6, 5) like 'p'"),
    }
    for spoil, error, words in bad.values():
        a = make("adam_step")
        refused("adam_step", a | {"g": spoil(torch.from_numpy(a["g"]))}, error, "adam_step: argument 'g': ", words)
    a = make("adam_step")
    expanded = torch.from_numpy(a["p"][:1].copy()).expand(6, 5)
    refused("adam_step", a | {"p": expanded}, ValueError, "argument 'p': got strides", "may meet an element twice")
    shared = torch.from_numpy(a["p"])
    refused("adam_step", a | {"m": shared}, ValueError, "argument 'm': got memory shared with 'p'")


# ---- random layouts -------------------------------------------------------------------------------------------------


@st.composite
def strides(draw: Any, shape: tuple[int, ...], itemsize: int) -> list[int]:
    """Axes in any order, some with gaps, some flipped, a few broadcast or overlapping."""
    found = [0] * len(shape)
    reach = itemsize * draw(st.sampled_from([1, 1, 1, 2]))
    for axis in draw(st.permutations(range(len(shape)))):
        kind = draw(st.sampled_from(["dense"] * 12 + ["gap", "gap", "broadcast", "windows"]))
        found[axis] = {"gap": reach + itemsize, "broadcast": 0, "windows": itemsize}.get(kind, reach)
        reach = max(reach, found[axis] * max(shape[axis], 1))
        found[axis] *= draw(st.sampled_from([1, 1, 1, 1, -1]))
    return found


@st.composite
def columns(draw: Any) -> list[np.ndarray]:
    """Four arrays of one shape, each its own layout or all the same one, and at times one fault."""
    shape = tuple(draw(st.lists(st.sampled_from([2, 3, 4, 2, 3, 1, 0]), max_size=4)))
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64, np.float16, np.uint16])))
    state = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
    fault = draw(st.sampled_from([""] * 10 + ["dtype", "shape", "read-only", "misaligned", "shared", "shared"]))
    victim = draw(st.integers(0, 3))
    together = draw(st.booleans())  # in elements, so that 16-bit and 32-bit arrays can agree
    common = draw(strides(shape, 1))
    shared = np.zeros(32768, np.uint8)
    arrays: list[np.ndarray] = []
    for i, own in enumerate([dtype, dtype, state, state]):
        memory = shared if fault == "shared" and i in (0, victim) else np.zeros(32768, np.uint8)
        offset, size = 16384, shape
        if i == victim:
            own = (
                np.dtype(draw(st.sampled_from([np.float32, np.float64, np.float16, np.int32, ">f4"])))
                if fault == "dtype"
                else own
            )
            size = tuple(draw(st.permutations(shape))) if fault == "shape" else shape
            offset += draw(st.integers(-8, 8)) * own.itemsize if fault == "shared" else 0
            offset += fault == "misaligned"
        steps = [s * own.itemsize for s in common] if together else draw(strides(size, own.itemsize))
        x = np.ndarray(size, own, memory, offset, tuple(steps))
        if x.dtype.kind == "f":
            x[...] = np.linspace(0.5, 1.5, x.size).reshape(x.shape)
        x.flags.writeable = not (fault == "read-only" and i == victim)
        arrays.append(x)
    return arrays


@compiled
@settings(max_examples=400, deadline=None)
@given(columns())
def test_binder_and_checks_agree(arrays: list[np.ndarray]) -> None:
    """What the binder takes at speed, the Python checks accept too, and the result is that of contiguous arrays."""
    scalars = (1, 0.1, 0.9, 0.999, 1e-8, 0.01, 0, 0, 1.0)
    before = [x.copy() for x in arrays]
    try:
        _arrays.check("adam_step", (*arrays, None, None))
        accepted = True
    except (TypeError, ValueError, BufferError):
        accepted = False
    if not accepted:
        with pytest.raises((TypeError, ValueError, BufferError)):
            core.call("adam_step", (*arrays, None, None), scalars)
        assert [x.tobytes() for x in arrays] == [x.tobytes() for x in before]
        return
    core.call("adam_step", (*arrays, None, None), scalars)
    flat = [x.copy(order="C") for x in before]
    core.call("adam_step", (*flat, None, None), scalars)
    assert [x.tobytes() for x in arrays] == [x.tobytes() for x in flat]


# ---- hostile objects ------------------------------------------------------------------------------------------------


class Hostile:
    """Raises wherever it is asked anything."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(f"no {name}")


class LyingShape:
    shape = (10**9,)
    dtype = np.dtype(np.float32)


class BadNumber:
    def __float__(self) -> float:
        raise ZeroDivisionError("no")

    def __index__(self) -> int:
        raise ZeroDivisionError("no")


def objects(rng: random.Random) -> Any:
    n = rng.choice([0, 1, 2, 3, 17])
    return rng.choice(
        [
            lambda: None,
            lambda: rng.choice(
                [0, 1, -1, 2**70, True, 0.5, math.nan, math.inf, 1j, "f32", b"abcd", object(), Hostile()]
            ),
            lambda: rng.choice([LyingShape(), BadNumber(), OnDevice(), np.float32, type, len, Ellipsis, {}, set(), ()]),
            lambda: np.zeros(
                n, rng.choice([np.float32, np.float64, np.float16, np.uint16, np.int64, bool, object, "U3"])
            ),
            lambda: np.zeros((n, 2), np.float32)[:, rng.choice([0, 1])],
            lambda: np.zeros((n, 2), np.float32, order="F"),
            lambda: [np.zeros(n, np.float32) for _ in range(rng.choice([0, 1, 2]))],
            lambda: [objects(rng) for _ in range(rng.choice([0, 1, 2]))],
            lambda: bytearray(4 * n),
            lambda: array.array("f", [0.0] * n),
            lambda: np.zeros(n, np.dtype([("a", np.float32)])),
            lambda: np.zeros(n, "M8[s]"),
        ]
    )()


@compiled
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_objects_raise_and_never_crash(seed: int) -> None:
    """Objects of any type in any place: an error of a documented kind, or a step of arrays that fit."""
    rng = random.Random(seed)
    kinds = (TypeError, ValueError, BufferError, KeyError, ZeroDivisionError)
    places = {"adam_step": (6, 9), "sgd_step": (4, 9), "sum_squares": (1, 1), "no_such_kernel": (2, 2)}
    outcomes = {True: 0, False: 0}
    for _ in range(6000):
        op = rng.choice(list(places))
        arrays, numbers = places[op]
        good = [np.zeros(3, np.float32) for _ in range(arrays)]
        given = tuple(x if rng.random() < 0.7 else objects(rng) for x in good)
        if op == "sum_squares":
            given = (*given, np.zeros(2))
        if rng.random() < 0.02:
            given = given[:-1]
        scalars = tuple(rng.choice([1, 1, 1, 0, 0.5]) if rng.random() < 0.9 else objects(rng) for _ in range(numbers))
        try:
            if rng.random() < 0.5:
                core.call(op, given, scalars)
            else:
                plan = core.Plan(op, given)
                plan.run(scalars)
                plan.rebind(given)
                plan.run(scalars)
            outcomes[True] += 1
        except kinds:
            outcomes[False] += 1
    assert min(outcomes.values()) > 100, f"the fuzz has gone one-sided: {outcomes}"


@compiled
def test_binder_refuses_what_is_no_tuple() -> None:
    x = np.ones(3, np.float32)
    for bad in (None, [x, x], 3, "abc"):
        with pytest.raises(TypeError):
            core.call("sgd_step", bad, ())
        with pytest.raises(TypeError):
            core.Plan("sgd_step", bad)
    with pytest.raises(TypeError, match="wrong number of array arguments"):
        core.call("sgd_step", (x, x), (0.1, 0, 0, 0, 0, 0, 0, 0, 1.0))
    with pytest.raises(TypeError, match="too few scalars"):
        core.call("sgd_step", (x, x.copy(), None, None), (0.1,))
    with pytest.raises(TypeError, match="too many scalars"):
        core.call("sgd_step", (x, x.copy(), None, None), (0.1, 0, 0, 0, 0, 0, 0, 0, 1.0, 5))
    assert x.tolist() == [1, 1, 1]


PLANS = """
import threading
import numpy as np
from curvk.kernels.optim import AdamPlan

def lists(rows, n):
    return [[np.ones(n, np.float32) for _ in range(rows)] for _ in range(4)]

few, many = lists(1, 200_000), lists(300, 50)
plan = AdamPlan(*few)
"""


@compiled
def test_a_number_that_rebinds_its_plan_does_not_crash(run_python: Any) -> None:
    code = """
class Number:
    def __float__(self):
        plan.rebind((*many, None, None))
        return 0.1

for _ in range(50):
    try:
        plan.step(step=1, lr=Number())
    except RuntimeError:
        pass
    plan.rebind((*few, None, None))
"""
    run_python(PLANS + code)


@compiled
def test_a_plan_rebound_while_another_thread_steps_it_does_not_crash(run_python: Any) -> None:
    code = """
done = threading.Event()

def step():
    for _ in range(200):
        try:
            plan.step(step=1, lr=0.1)
        except RuntimeError:  # refused, or rebound at this moment
            pass
    done.set()

thread = threading.Thread(target=step)
thread.start()
while not done.is_set():
    for columns in (many, few):
        try:
            plan.rebind((*columns, None, None))
        except RuntimeError:  # in use
            pass
thread.join()
"""
    run_python(PLANS + code)


# ---- nothing beyond the arrays, nothing left behind -----------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("step", STEPS)
def test_canaries_live(step: str, fmt: str, backend: str) -> None:
    for n in (0, 1, 2, 7, 15, 16, 17, 63, 64, 65, 127, 129):
        source = make(step, n, fmt)
        frames = {k: np.full((n + 64) * x.itemsize, 0xA5, np.uint8) for k, x in source.items()}
        a: Arrays = {}
        for k, x in source.items():
            a[k] = frames[k][32 * x.itemsize : (32 + n) * x.itemsize].view(x.dtype)
            a[k][...] = x
        STEPS[step](a)
        for k, x in source.items():
            edge = 32 * x.itemsize
            assert (frames[k][:edge] == 0xA5).all(), (n, k)
            assert (frames[k][edge + n * x.itemsize :] == 0xA5).all(), (n, k)
        assert a["g"].tobytes() == source["g"].tobytes(), "the gradient is read only"


class _Heap(ctypes.Structure):
    """Glibc's mallinfo2."""

    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(7)]
    _fields_ += [("in_use", ctypes.c_size_t), ("free", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)]


def heap_in_use() -> int:
    """Bytes that malloc has given out; 0 where the C library does not tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0
    mallinfo.restype = _Heap
    return int(mallinfo().in_use)


def _bad_calls(a: Arrays) -> None:
    for bad in ({"m": np.ones(3)}, {"g": a["p"]}, {"v": None}):
        with pytest.raises((TypeError, ValueError)):
            adam_call(a | bad)
    with pytest.raises(ValueError, match="lr"):
        adam_call(a, lr=-1.0)


def _strided(a: Arrays) -> None:
    adam_call({k: x[:, ::2] for k, x in a.items()})


@compiled
@pytest.mark.parametrize("work", [adam_call, adam_plan, _strided, _bad_calls])
def test_nothing_grows(work: Callable[[Arrays], None]) -> None:
    a = make("adam_step", (8, 8))
    counts = {k: sys.getrefcount(x) for k, x in a.items()}
    for _ in range(200):
        work(a)
    gc.collect()
    before = sys.getallocatedblocks(), heap_in_use()
    for _ in range(2000):
        work(a)
    gc.collect()
    blocks, heap = sys.getallocatedblocks() - before[0], heap_in_use() - before[1]
    assert blocks < 500, f"{blocks} Python objects more after 2000 calls"
    assert heap < 64 * 1024, f"{heap} bytes more after 2000 calls"
    assert {k: sys.getrefcount(x) for k, x in a.items()} == counts


def test_plan_keeps_its_arrays_alive(backend: str) -> None:
    p, g, m, v = (np.ones(1000, np.float32) for _ in range(4))
    expected = [x.copy() for x in (p, g, m, v)]
    adam_step(*expected, step=1, lr=0.1)
    plan = AdamPlan([p], [g], [m], [v])
    view = p[:]
    del p, g, m, v
    gc.collect()
    noise = [np.full(1000, 7, np.float32) for _ in range(50)]
    plan.step(step=1, lr=0.1)
    assert view.tobytes() == expected[0].tobytes()
    assert all((x == 7).all() for x in noise)
