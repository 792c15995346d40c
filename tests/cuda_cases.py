"""What the tests of cuda share."""

from __future__ import annotations

from typing import Any

import device_arrays as devices
import numpy as np
import pytest
from curvk._bench.registry import Arrays, Case
from curvk._bench.storage import empty
from curvk._signatures import ops
from curvk.kernels import optim
from device_arrays import CANARY, GUARD, DeviceArray, get, put
from test_numerics import seed_of

HAS = {op for op, kernels in ops().items() if all(map(devices.has_cuda, kernels.values()))}


def needs(*names: str) -> Any:
    missing = [op for op in names if op not in HAS]
    return pytest.mark.skipif(bool(missing), reason=f"no CUDA version of {', '.join(missing)} in this build")


# ---- against the CPU ------------------------------------------------------------------------------------------------


def run(case: Case, fmt: str, variant: str, inputs: Arrays, device: bool, offset: int = 0) -> Arrays:
    """Runs the case on copies of the inputs, each `offset` elements and more behind a cache line, between canaries."""
    placed: Arrays = {}
    frames: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def place(name: str, x: np.ndarray) -> np.ndarray:
        shift = (offset + len(frames)) % 16 if offset else 0
        copy = empty(x.size, x.dtype, offset=shift, guard=GUARD)
        copy.base[:] = CANARY
        copy[:] = x
        frames[name] = copy, copy.base
        return copy

    for name, x in inputs.items():
        placed[name] = None if x is None else place(name, x)
    given = {name: None if x is None else put(x) for name, x in placed.items()} if device else placed
    outputs = case.run(given, case.variants[variant], fmt)
    if device:
        assert all(
            x is None or isinstance(x, (DeviceArray, np.ndarray)) or name == "p + low" for name, x in outputs.items()
        )
    outputs = {name: np.array(get(x)) for name, x in outputs.items() if name != "p + low"}  # made of two of them
    for name, (copy, frame) in frames.items():
        start = copy.ctypes.data - frame.ctypes.data
        outside = np.concatenate([frame[:start], frame[start + copy.nbytes :]])
        assert (outside == CANARY).all(), f"{name}: bytes outside the array were written"
        if name not in case.written:
            assert get(given[name]).tobytes() == inputs[name].tobytes(), f"{name}: only read, yet changed"
    return outputs


# ---- results that curvk makes ---------------------------------------------------------------------------------------


def drawn(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed_of("drawn", shape)).standard_normal(shape).astype(dtype)


# ---- what is refused ------------------------------------------------------------------------------------------------


def adam_arrays() -> dict[str, Any]:
    return {name: np.ones(5, np.float32) for name in "pgmv"}


def refused(error: type[Exception], words: str, arrays: dict[str, Any]) -> None:
    with pytest.raises(error, match=words) as caught:
        optim.adam_step(*arrays.values(), step=1, lr=0.5)
    assert type(caught.value) is error
    for x in arrays.values():
        assert (get(x) == 1).all()
