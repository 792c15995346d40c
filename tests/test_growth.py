"""Nothing grows: kernels, calls that fail, and every public class, made, used, saved and loaded over and over.

What is counted are Python's blocks and the bytes that malloc has given out, after batches of rounds. The interpreter's
caches fill in the first ones, ever more slowly; what is lost at every round shows in every batch. So three batches are
run, and more until one has lost nothing, up to a limit.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curvk import _backend
from curvk._bench.registry import Case, cases
from exercises import EXERCISES
from test_numerics import make

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")


class _Heap(ctypes.Structure):
    """Glibc's mallinfo2."""

    _names = "arena ordblks smblks hblks mapped usmblks fsmblks in_use free keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def heap() -> int:
    """Bytes that malloc has given out; 0 where the C library does not tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0
    mallinfo.restype = _Heap
    found = mallinfo()
    return int(found.in_use + found.mapped)


def assert_nothing_grows(work: Callable[[], object], rounds: int, what: str) -> None:
    """A round that loses one object or 24 bytes fails.

    Args:
        work: one round.
        rounds: in a batch.
        what: for the message.
    """
    for _ in range(10):
        work()
    growth: list[tuple[int, int]] = []
    while len(growth) < 20:
        gc.collect()
        before = sys.getallocatedblocks(), heap()
        for _ in range(rounds):
            work()
        gc.collect()
        growth.append((sys.getallocatedblocks() - before[0], heap() - before[1]))
        blocks, nbytes = (min(column) for column in zip(*growth, strict=True))
        if len(growth) >= 3 and blocks < 0.9 * rounds and nbytes < 24 * rounds:
            return
    pytest.fail(f"{what}: (Python's blocks, bytes) more after batches of {rounds} rounds each: {growth}")


EVERY = [pytest.param(case, id=case.op) for case in cases().values()]


@pytest.mark.parametrize("case", EVERY)
def test_kernels(case: Case) -> None:
    fmt, variant = case.formats[-1], next(iter(case.variants))
    inputs = make(case, fmt, variant, 16 if 16 in case.sizes or case.granularity > 1 else 7 if 7 in case.sizes else 3)
    fresh = {name: None if x is None else x.copy() for name, x in inputs.items()}

    def work() -> None:
        for name, x in inputs.items():
            if x is not None:
                fresh[name][...] = x
        case.run(fresh, case.variants[variant], fmt)

    assert_nothing_grows(work, 334, case.op)


@pytest.mark.parametrize("case", EVERY)
def test_failing_calls(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel refuses, in turn, each array with a wrong dtype, then a number where an array is needed."""
    fmt, variant = case.formats[0], next(iter(case.variants))
    inputs = make(case, fmt, variant, 7 if 7 in case.sizes else 16 if 16 in case.sizes else 3)
    calls: list[tuple[Any, ...]] = []
    door = _backend.core if _backend.get_backend() == "cpp" else __import__("curvk._twins", fromlist=["call"])
    real = door.call

    class Recorder:
        """Notes the calls and lets them pass."""

        call = staticmethod(lambda *given: (calls.append(given), real(*given))[1])

        class Plan(door.Plan):  # type: ignore[misc, name-defined]
            def __init__(self, op: str, columns: tuple[Any, ...]) -> None:
                super().__init__(op, columns)
                self.given = op, columns

            def run(self, scalars: tuple[Any, ...]) -> None:
                calls.append((*self.given, scalars, None))
                super().run(scalars)

    monkeypatch.setattr(_backend, "_door", lambda columns: Recorder)
    monkeypatch.setattr(_backend, "core", Recorder)
    case.run({name: None if x is None else x.copy() for name, x in inputs.items()}, case.variants[variant], fmt)
    monkeypatch.undo()
    op, columns, scalars, *form = next(given for given in calls if given[0] == case.op)
    spoiled: list[tuple[Any, ...]] = []
    for k, column in enumerate(columns):
        x = column[0] if isinstance(column, list) and column else column
        if isinstance(x, np.ndarray):
            for bad in (np.zeros(x.shape, np.complex64), 3.5):
                spoiled.append((*columns[:k], [bad] if isinstance(column, list) else bad, *columns[k + 1 :]))
    assert spoiled

    def work() -> None:
        for bad in spoiled:
            try:
                real(op, bad, scalars, *form)
            except (TypeError, ValueError, BufferError):
                continue
            raise AssertionError(f"{op} took {bad}")

    assert_nothing_grows(work, -(-334 // len(spoiled)) + 20, f"{case.op}, refused")


@pytest.mark.parametrize("name", EXERCISES)
def test_classes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which takes longer than all the rest
    assert_nothing_grows(EXERCISES[name](tmp_path), 40, name)  # some ten calls each round


def test_c_interface() -> None:
    pytest.importorskip("cffi")
    if _backend.core is None:
        pytest.skip("needs compiled kernels")
    from curvk.capi import ffi, lib

    x, out = np.ones(33, np.float32), np.zeros(2)

    def work() -> None:
        for scale in (1.0, -1.0):  # the second is refused
            lib.curvk_sum_squares_f32(
                ffi.from_buffer("float[]", x), x.size, scale, ffi.from_buffer("double[]", out, require_writable=True)
            )

    assert_nothing_grows(work, 334, "capi")


def test_a_leak_is_found() -> None:
    kept: list[object] = []
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    with pytest.raises(pytest.fail.Exception, match="more after batches"):
        assert_nothing_grows(lambda: kept.append(object()), 1000, "a list")
    if heap():
        with pytest.raises(pytest.fail.Exception, match="more after batches"):
            assert_nothing_grows(lambda: libc.malloc(1), 1000, "malloc")  # far above what others free meanwhile
