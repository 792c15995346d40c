"""What the machine allows: a loop that moves an optimizer's bytes with next to no arithmetic, measured on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np

from .._backend import get_backend
from .._bench.limits import traffic
from .._threads import get_num_threads, threads, threads_reason
from ..kernels.optim import AdamPlan
from .digits import difference
from .peers import Adam, BlockedAdam

# How a step uses parameters, gradients and states; float32, so 4 bytes for each letter.
USES = {"SGD": ("rw", "r", "rw"), "Adam": ("rw", "r", "rw", "rw")}


def bytes_per_parameter(kind: str) -> int:
    return 4 * sum(map(len, USES[kind]))


class MemoryLimit:
    """Times loops that move the bytes of SGD or Adam, on a number of threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._known: dict[tuple[str, int], float] = {}

    def sweeper(self, kind: str, size: int) -> Callable[[int], float]:
        """A function that sweeps arrays of `size` some times and returns nanoseconds per element and sweep.

        Each thread sweeps a slice of its own, so that starting threads is paid once for all sweeps.
        """
        arrays = [np.zeros(size, np.float32) for _ in USES[kind]]
        for x in arrays:
            x[:] = 1  # pages that were never written are all the same page of zeros
        ends = [size * t // self.threads for t in range(self.threads + 1)]
        loops = [traffic([x[i:j] for x in arrays], USES[kind], 1).step for i, j in pairwise(ends)]
        loops[0]()  # compiles

        def repeat(loop: Callable[[], object], times: int) -> None:
            for _ in range(times):
                loop()

        def sweep(times: int) -> float:
            start = perf_counter()
            for done in [self._pool.submit(repeat, loop, times) for loop in loops]:
                done.result()
            return (perf_counter() - start) / times / size * 1e9

        return sweep

    def ns(self, kind: str, size: int) -> float:
        """The fastest of many short runs, from the cache where the arrays fit in it; measured once per size.

        Runs last some 2 ms, less than a time slice, so that on a busy machine some of them are left in peace.
        """
        if (kind, size) not in self._known:
            sweep = self.sweeper(kind, size)
            times = max(1, round(2e6 / (sweep(1) * size)))
            self._known[kind, size] = min(sweep(times) for _ in range(60))
        return self._known[kind, size]


def choose_threads(size: int) -> tuple[int, str]:
    """How many threads the demo runs on, and why: curvk's own choice, unless one thread is faster just now.

    Threads of a team wait for each other, so on a busy machine two can be many times slower than one.
    """
    if get_backend() != "cpp":
        return 1, "the twins are serial"
    granted = get_num_threads()
    if granted == 1 or os.environ.get("CURVK_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS"):
        return granted, threads_reason()
    plan = AdamPlan(*([np.zeros(size, np.float32)] for _ in range(4)))
    between = np.ones((400, 400), np.float32)
    seconds = {}
    for n in (granted, 1):
        samples = []
        for _ in range(25):
            between @ between  # a model's passes lie between two steps; meanwhile a team's idle threads go to sleep
            with threads(n):
                samples.append(_timed(lambda: plan.step(step=1, lr=0)))
        seconds[n] = mean(samples)  # not the median: what stalls now and then is slow
    if seconds[granted] <= seconds[1]:
        return granted, threads_reason()
    told = " and ".join(f"{n}: {s * 1e3:.2f} ms" for n, s in seconds.items())
    return 1, f"the faster just now for a step of {size:,} parameters, {told}"


def _timed(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


@dataclass
class LargeArray:
    """One Adam step of a large array: nanoseconds per parameter, and whether all sides got the same numbers."""

    size: int
    curvk_ns: float
    numpy_ns: float
    numpy_blocked_ns: float
    limit_ns: float
    difference: float


def large_array(limit: MemoryLimit, size: int, rounds: int) -> LargeArray:
    """Adam by curvk, by NumPy and by NumPy in blocks, and the limit, taking turns."""
    grad = np.random.default_rng(0).standard_normal(size, np.float32)
    start = np.linspace(-1, 1, size, dtype=np.float32)
    ours, whole, blocked = start.copy(), start.copy(), start.copy()
    m, v = np.zeros_like(grad), np.zeros_like(grad)
    plan = AdamPlan([ours], [grad], [m], [v])
    numpy_whole, numpy_blocked = Adam([whole], 1e-3), BlockedAdam(blocked, 1e-3)
    peers: dict[str, Callable[[int], Any]] = {
        "curvk": lambda step: plan.step(step=step, lr=1e-3),
        "numpy": lambda step: numpy_whole.step([grad]),
        "blocked": lambda step: numpy_blocked.step([grad]),
    }
    times: dict[str, list[float]] = {name: [] for name in peers}
    times["limit"] = []
    sweep = limit.sweeper("Adam", size)
    for step in range(1, rounds + 2):
        for name, run in peers.items():
            seconds = _timed(lambda run=run, step=step: run(step))  # type: ignore[misc]
            if step > 1:  # the first round touches the pages
                times[name].append(seconds / size * 1e9)
        times["limit"].append(sweep(1))
    ns = {name: median(values) for name, values in times.items()}
    worst = max(difference([ours], [whole]), difference([ours], [blocked]))
    return LargeArray(size, ns["curvk"], ns["numpy"], ns["blocked"], ns["limit"], worst)
