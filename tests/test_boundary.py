"""Bad input is refused with the right error and nothing is written; every honest layout works, at every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from boundary_steps import FORMATS, NAMES, STEPS, OnDevice, bits, make, misaligned, refused
from curvk.kernels import half
from curvk.kernels.optim import AdamPlan, SGDPlan, global_norm, sgd_step
from numpy.lib.stride_tricks import as_strided

ARGUMENTS = [(step, name) for step in STEPS for name in NAMES[step].split()]


def op_of(step: str) -> str:
    return "adam_step" if "dam" in step else "sgd_step"


def label(step: str, name: str) -> str:
    return f"{name}[0]" if step.endswith("Plan") else name


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


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
