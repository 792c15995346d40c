"""What the tests of boundary share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from curvk._backend import core
from curvk.kernels import half
from curvk.kernels.optim import AdamPlan, SGDPlan, adam_step, sgd_step
from hypothesis import strategies as st

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


class OnDevice:
    """An array of a device that is neither the CPU nor CUDA's, as DLPack announces it: ROCm's."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (10, 0)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("memory of another device was asked for")


# ---- layouts that work ----------------------------------------------------------------------------------------------


def flipped(x: np.ndarray) -> np.ndarray:
    return x[::-1, ::-1].copy()[::-1, ::-1]


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
