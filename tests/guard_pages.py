"""Kernels run on arrays between pages that nobody may touch: a stray read or write ends the process.

`guarded(end)` stands in the door to the kernels, so it reaches whatever a public function or a class hands them: each
array is moved into pages of its own, with its end at an untouchable page (end=True) or its start behind one. What the
kernel only reads lies in pages that cannot be written meanwhile; what is left of its pages holds canaries. Run as a
program, it goes through the kernels of the registry, or through the methods; a crash there is a test's failure.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import curvk
import numpy as np
from curvk import _backend, _twins
from curvk._bench.registry import Arrays, Case, cases
from curvk._signatures import ops

CANARY = 0xA5
PAGE = mmap.PAGESIZE
NONE, READ, WRITE = 0, 1, 2  # PROT_NONE, PROT_READ and PROT_WRITE where there is an mprotect

_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Frame:
    """Pages for some bytes, with one untouchable page on either side. The pages are used again."""

    _spare: ClassVar[dict[int, list[Frame]]] = {}

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        self.memory = np.frombuffer(self._map, np.uint8)[PAGE : (pages + 1) * PAGE]
        for outside in (-PAGE, pages * PAGE):
            self._set(outside, PAGE, NONE)

    def _set(self, start: int, length: int, allowed: int) -> None:
        if _protect(self.memory.ctypes.data + start, length, allowed):
            raise OSError(ctypes.get_errno(), "mprotect")

    @classmethod
    def take(cls, nbytes: int) -> Frame:
        pages = max(1, -(-nbytes // PAGE))
        spare = cls._spare.setdefault(pages, [])
        return spare.pop() if spare else cls(pages)

    def free(self) -> None:
        self._spare[self.pages].append(self)

    def allow(self, *, write: bool) -> None:
        self._set(0, self.pages * PAGE, READ | WRITE if write else READ)


class Guarded:
    """A copy of an array, of the same layout, in a frame.

    Args:
        x: the array; its strides are kept.
        end: whether its last byte is the frame's last, rather than its first byte the frame's first.
        written: whether the kernel may write it.
    """

    def __init__(self, x: np.ndarray, *, end: bool, written: bool) -> None:
        low = sum(min(0, (n - 1) * s) for n, s in zip(x.shape, x.strides, strict=True)) if x.size else 0
        high = sum(max(0, (n - 1) * s) for n, s in zip(x.shape, x.strides, strict=True)) if x.size else 0
        span = high - low + x.itemsize if x.size else 0
        self.frame = Frame.take(span)
        self.frame.memory[:] = CANARY
        start = self.frame.pages * PAGE - span if end else 0
        if span:
            self.array = np.ndarray(x.shape, x.dtype, self.frame.memory, start - low, x.strides)
        else:  # begins where the untouchable page does, or at the frame's start
            edge = self.frame.memory.ctypes.data + (self.frame.pages * PAGE if end else 0)
            interface = {"data": (edge, False), "shape": x.shape, "typestr": x.dtype.str, "version": 3}
            self.array = np.asarray(SimpleNamespace(__array_interface__=interface, owner=self.frame))
        self.array[...] = x
        self.original, self.written = x, written
        if not written:
            self.frame.allow(write=False)

    def finish(self, what: str) -> None:
        """Brings home what was written; fails where a byte beside the elements changed."""
        if self.written:
            self.original[...] = self.array
        else:
            self.frame.allow(write=True)
        np.copyto(self.array, np.full(1, CANARY, np.uint8).repeat(self.array.itemsize).view(self.array.dtype)[0])
        assert (self.frame.memory == CANARY).all(), f"{what}: bytes beside the array were written"
        self.frame.free()


class Door:
    """Runs kernels in frames; the interface of the compiled module and of the twins.

    Attributes:
        reached: (kernel's name, argument's name) of every array that was moved into a frame.
    """

    def __init__(self, real_call: Callable[..., None], end: bool) -> None:
        self.real_call, self.end = real_call, end
        self.reached: set[tuple[str, str]] = set()

    def call(self, op: str, columns: tuple[Any, ...], scalars: tuple[Any, ...], format: str | None = None) -> None:
        kernel = next(iter(ops()[op].values()))
        moved: dict[tuple[Any, ...], Guarded] = {}

        def move(x: Any, name: str, written: bool) -> Any:
            if type(x) is list:
                return [move(y, name, written) for y in x]
            if type(x) is not np.ndarray or not x.flags.aligned or (written and not x.flags.writeable):
                return x
            self.reached.add((op, name))
            key = (x.ctypes.data, x.shape, x.strides, x.dtype, written)
            if key not in moved:  # the very same array in two places stays one
                moved[key] = Guarded(x, end=self.end, written=written)
            return moved[key].array

        given = tuple(move(c, a.name, a.written) for a, c in zip(kernel.arrays, columns, strict=True))
        try:
            self.real_call(op, given, scalars, format)
        finally:
            for guarded in moved.values():
                guarded.finish(op)


class GuardedPlan:
    """The plan of a `Door`: its arrays move into frames at every run."""

    door: Door

    def __init__(self, op: str, columns: tuple[Any, ...], format: str | None = None) -> None:
        self.op, self.columns, self.format = op, columns, format

    def rebind(self, columns: tuple[Any, ...]) -> None:
        self.columns = columns

    def run(self, scalars: tuple[Any, ...]) -> None:
        self.door.call(self.op, self.columns, scalars, self.format)


class _Core:
    """The compiled module, but for the calls of kernels."""

    def __init__(self, core: Any, door: Door, plan: type) -> None:
        self._core, self.call, self.Plan = core, door.call, plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


@contextmanager
def guarded(end: bool) -> Iterator[Door]:
    """Every kernel of the present backend runs in frames."""
    if curvk.get_backend() == "cpp":
        door = Door(_backend.core.call, end)
        plan = type("Plan", (GuardedPlan,), {"door": door})
        with mock.patch.object(_backend, "core", _Core(_backend.core, door, plan)):
            yield door
    else:
        real = _twins.Plan

        def call(op: str, columns: tuple[Any, ...], scalars: tuple[Any, ...], format: str | None = None) -> None:
            real(op, columns, format).run(scalars)

        door = Door(call, end)
        plan = type("Plan", (GuardedPlan,), {"door": door})
        with mock.patch.object(_twins, "Plan", plan), mock.patch.object(_twins, "call", door.call):
            yield door


# ---- the program ----------------------------------------------------------------------------------------------------

SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 1025)
FEW = (0, 1, 2, 3, 17, 33)  # for kernels that take long for each element


def sizes_of(case: Case) -> list[int]:
    longest = max((n for n in case.sizes if n <= 1100), default=1)
    if case.op in ("budget_learn", "online_learn") or case.op.startswith(("gram_", "stein_")):
        return [n for n in FEW if n >= min(case.sizes)]
    return [n for n in SIZES if min(case.sizes) <= n <= max(longest, 17)]


def copies(inputs: Arrays) -> Arrays:
    return {
        k: [y.copy() for y in x] if isinstance(x, list) else None if x is None else x.copy() for k, x in inputs.items()
    }


def check_case(case: Case, fmt: str, variant: str, sizes: list[int]) -> None:
    """The case's results in frames are its results elsewhere, and its kernel was reached."""
    options = case.variants[variant]
    for n in sizes:
        seed = zlib.crc32(f"{case.op}/{fmt}/{variant}/{n}".encode())
        inputs = case.make(n, fmt, np.random.default_rng(seed), options)
        plain = {k: np.array(x) for k, x in case.run(copies(inputs), options, fmt).items()}
        for end in (True, False):
            placed = copies(inputs)
            with guarded(end) as door:
                got = case.run(placed, options, fmt)
            for name, x in plain.items():
                np.testing.assert_array_equal(np.array(got[name]), x, f"{case.op} {fmt} {variant} n={n}: {name}")
            if n > 1:
                assert any(op == case.op for op, _ in door.reached), f"{case.op}: never met its frames"


def check_teams() -> None:
    """Kernels whose arrays three threads share, above the size from which they do."""
    for case in cases().values():
        longest = max(n for n in case.sizes if n <= 40_003)
        with curvk.threads(3):
            check_case(case, case.formats[0], next(iter(case.variants)), [longest])
    print(f"teams: {len(cases())} kernels", flush=True)


def check_methods() -> None:
    """Every public class in use, whatever arrays it makes for its kernels."""
    from exercises import EXERCISES

    reached: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for name, make in EXERCISES.items():
            if name.startswith("torch."):  # tensors stay where they are
                continue
            print(name, flush=True)
            for end in (True, False):
                with guarded(end) as door:
                    make(Path(folder))()
            reached |= {op for op, _ in door.reached}
    print(f"methods: {len(EXERCISES)} uses of {len(reached)} kernels", flush=True)
    assert len(reached) > 30, sorted(reached)


def check_registry(formats: str) -> None:
    """Every kernel; `formats` is "first" or "all"."""
    count = 0
    for case in cases().values():
        for fmt in case.formats if formats == "all" else case.formats[:1]:
            for variant in case.tested:
                print(case.op, fmt, variant, flush=True)
                check_case(case, fmt, variant, sizes_of(case))
                count += 1
    print(f"{count} variants in {curvk.get_backend()} {curvk.get_simd()}", flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    curvk.use_backend(sys.argv[1])
    if sys.argv[2] != "none":
        curvk.set_simd(sys.argv[2])
    what = {"teams": check_teams, "methods": check_methods}
    what.get(sys.argv[3], lambda: check_registry(sys.argv[3]))()
