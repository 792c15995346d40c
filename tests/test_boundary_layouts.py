"""Layouts that work: strides, torch tensors, DLPack, and random layouts that binder and checks judge alike."""

from __future__ import annotations

import array
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from boundary_steps import FORMATS, NAMES, STEPS, Arrays, bits, compiled, flipped, make, refused, strides
from curvk import _arrays
from curvk._backend import core
from hypothesis import given, settings
from hypothesis import strategies as st


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
