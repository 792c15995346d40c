"""Hostile objects in any place, canaries around arrays, and nothing left behind."""

from __future__ import annotations

import array
import ctypes
import gc
import math
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from boundary_steps import FORMATS, STEPS, Arrays, OnDevice, adam_call, adam_plan, compiled, make
from curvk._backend import core
from curvk.kernels.optim import AdamPlan, adam_step

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
