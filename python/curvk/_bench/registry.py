"""The registry: for every kernel one case with its inputs, an independent truth, its cost and its peers.

Tests, the benchmark and the docs read it; a new kernel adds a case to `cases/<family>.py` and is found there. Which
arrays a kernel writes and which formats it has follow from the C header.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from .._arrays import dtype_of
from .._signatures import Function, ops

Array = np.ndarray[Any, Any]
Arrays = dict[str, Any]
"""A kernel's array arguments by their names in the header; None for one left out, a list of arrays for a model."""
Options = Mapping[str, Any]
"""The public function's keywords, over the case's defaults."""

SIZES = (0, 1, 2, 3, 15, 16, 17, 1023, 32767, 32768, 32769, 100003)
"""Sizes that meet every edge: vector lanes, lane folds, the reduction's chunk, the team's grain, and an odd prime."""


@dataclass(frozen=True)
class Contender:
    """Something that does one step on given arrays: curvk or a peer."""

    name: str
    step: Callable[[], object]
    prepare: Callable[[], object] | None = None  # run before each step, outside the timed part
    arrays: Arrays | None = (
        None  # where it leaves its results, if not in the arrays it was given; {} if it returns them
    )
    level: str = ""  # the SIMD level to run at, if not the one in force
    other: bool = False  # a peer with random numbers of its own, or coarser ones, whose answer cannot be compared


Factory = Callable[[Arrays, Options, str], Contender | None]
"""Makes a contender for arrays, options and a format; None where its library is missing or cannot do that."""


@dataclass(frozen=True)
class Row:
    """What the benchmark times: one variant of a case, on single arrays of these sizes or on models' shapes."""

    variant: str
    formats: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    models: tuple[str, ...] = ()
    headline: bool = False  # a quick run measures its larger arrays too


@dataclass(frozen=True)
class Case:
    """One kernel.

    Attributes:
        op: its name, as in the header without prefix and format.
        make: (n, format, rng, options) -> array arguments of n elements with plausible values.
        run: (arrays, options, format) -> outputs, through the public function.
        truth: (arrays before the call, options, format) -> outputs: `interval.Interval`, or arrays where exact.
        error: the error class in words: what the truth's intervals allow and why.
        variants: name -> options; the first is the one that tests of everything else use.
        timed: variants that only the benchmark uses, since others do all that they do.
        flops: (options) -> arithmetic operations per element; a square root and a division count as one each.
        streams: (options) -> how each array is used: "r", "w" or "rw"; the limit loop moves the same bytes.
        sizes: sizes that the tests sweep.
        plan: (arrays, options, format) -> a step over lists of arrays that were checked once, or None.
        peers: name -> factory, on single arrays.
        models: name -> factory, on lists of arrays.
        first: the options of a first step, whose states are zeros; for contenders that begin there.
        rows: what the benchmark times; none for a kernel whose cost is not per element.
        special: whether every array may hold NaN, infinities, denormals and huge numbers.
        bits_vary: why levels and backends agree within the error class only, not to the bit; empty where they agree.
        granularity: elements at whose multiples a part may begin, where a part of the arrays gives one of the results.
    """

    op: str
    make: Callable[[int, str, np.random.Generator, Options], Arrays]
    run: Callable[[Arrays, Options, str], Arrays]
    truth: Callable[[Arrays, Options, str], dict[str, Any]]
    error: str
    variants: Mapping[str, Options]
    flops: Callable[[Options], int]
    streams: Callable[[Options], dict[str, str]]
    sizes: tuple[int, ...] = SIZES
    plan: Callable[[Arrays, Options, str], Callable[[], None]] | None = None
    peers: Mapping[str, Factory] = field(default_factory=dict)
    models: Mapping[str, Factory] = field(default_factory=dict)
    first: Options = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    special: bool = True
    granularity: int = 1
    bits_vary: str = ""
    timed: frozenset[str] = frozenset()

    @property
    def tested(self) -> dict[str, Options]:
        """The variants that are not `timed` alone."""
        return {name: options for name, options in self.variants.items() if name not in self.timed}

    @property
    def kernels(self) -> dict[str, Function]:
        """The kernel of each format."""
        return ops()[self.op]

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(self.kernels)

    @property
    def elementwise(self) -> bool:
        """Whether an element of the results depends on the inputs' elements in its place alone."""
        kernel = next(iter(self.kernels.values()))
        return kernel.elementwise and not kernel.indexed

    @property
    def indexed(self) -> bool:
        """Whether a part of the arrays gives a part of the results, told where it begins by the option `offset`."""
        kernel = next(iter(self.kernels.values()))
        return kernel.elementwise and kernel.indexed

    @property
    def in_parts(self) -> bool:
        """Whether a part of the arrays gives a part of the results."""
        return self.elementwise or self.indexed or any(n > 1 for n in self.per.values())

    @property
    def per(self) -> dict[str, int]:
        """For how many elements each array has one, from the header."""
        return {a.name: a.per or 1 for a in next(iter(self.kernels.values())).arrays}

    def cut(self, name: str, x: Array, part: slice) -> Array:
        """What an array, or another output, has for a part of the elements, which begins where a part may."""
        if part == slice(None):
            return x  # which may be a number
        per = self.per.get(name, 1)
        return x[part] if per == 1 else x[part.start // per : -(-part.stop // per)]

    @property
    def written(self) -> tuple[str, ...]:
        """The arrays that the kernel writes, from the header."""
        return tuple(a.name for a in next(iter(self.kernels.values())).arrays if a.written)

    def dtypes(self, fmt: str) -> dict[str, np.dtype[Any]]:
        """The dtype of each array argument, from the header. float16 stands for the bits of f16."""
        return {a.name: dtype_of(a, fmt) for a in self.kernels[fmt].arrays}

    def bytes(self, fmt: str, options: Options) -> float:
        """Memory traffic per element: each read and each write once."""
        dtypes, per = self.dtypes(fmt), self.per
        return sum(dtypes[name].itemsize * len(use) / per[name] for name, use in self.streams(options).items())


@lru_cache(maxsize=1)
def cases() -> dict[str, Case]:
    """Every case by its kernel's name, from all modules in `cases`."""
    from . import cases as package

    found: dict[str, Case] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        for case in import_module(f"{package.__name__}.{module}").CASES:
            if case.op in found:
                raise ValueError(f"two cases for the kernel {case.op}")
            found[case.op] = case
    return found


def optional(name: str) -> Any:
    """A module that a peer needs, or None where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


# ---- models' shapes -------------------------------------------------------------------------------------------------


def _gpt2() -> list[tuple[int, ...]]:
    d, block = 768, []
    for _ in range(12):
        block += [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *block, (d,), (d,)]


def _resnet50() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for out, into, k in ((planes, width, 1), (planes, planes, 3), (4 * planes, planes, 1)):
                shapes += [(out, into, k, k), (out,), (out,)]
            if block == 0:
                shapes += [(4 * planes, width, 1, 1), (4 * planes,), (4 * planes,)]
            width = 4 * planes
    return [*shapes, (1000, 2048), (1000,)]


MODELS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "1000x1000": lambda: [(1000,)] * 1000,
    "resnet50": _resnet50,
    "gpt2-small": _gpt2,
}
"""Shapes of a model's parameters: 1,000 small tensors, ResNet-50 (161 tensors, 25.6 M), GPT-2 small (148, 124 M)."""
