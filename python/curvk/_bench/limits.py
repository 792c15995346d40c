"""What this machine allows: plain loops that only move bytes, and a matrix product, measured beside the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .registry import Array, Contender, optional

MIB = 2**20
SERIAL_BELOW = 16_384
"""Elements per thread below which a second one is no gain: a limit that starts threads in vain would be none."""


def _lines(uses: tuple[str, ...], group: tuple[int, ...]) -> list[str]:
    """What the loop over a group of arrays does with element i of each."""
    read = [k for k in group if uses[k] == "r"]
    written = [k for k in group if uses[k] != "r"]
    if not written:
        return [f"s |= {' | '.join(f'x{k}[i]' for k in read)}"]
    lines = []
    for k in written:
        # The first written array takes up everything that is only read, and so on: each stream is one term.
        taken = [f"(x{j}[i] & z)" if uses[k] == "rw" else f"x{j}[i]" for j in (read if k == written[0] else [])]
        lines.append(f"x{k}[i] {'+=' if uses[k] == 'rw' else '='} {' + '.join(taken) or 'z'}")
    return lines


def _source(uses: tuple[str, ...], groups: tuple[tuple[int, ...], ...]) -> str:
    """A loop over arrays x0, x1, … used as "r", "w" or "rw", one for each group of arrays of one length.

    Integers throughout, so that no value costs more than another. What is only read goes into an array that is written.
    `z` is zero, which the compiler does not know.
    """
    arguments = ", ".join(f"x{k}" for k in range(len(uses)))
    cut = ", ".join(f"x{k}[x{k}.size * t // threads : x{k}.size * (t + 1) // threads]" for k in range(len(uses)))
    loops = []
    for group in groups:
        loops += [f"    for i in range(x{group[0]}.size):", *(f"        {line}" for line in _lines(uses, group))]
    return "\n".join(
        [
            f"def body({arguments}, z):",
            "    s = z",
            *loops,
            "    return s",
            f"def team({arguments}, z, threads):",
            "    total = z",
            "    for t in prange(threads):",
            f"        total += body({cut}, z)",  # else a loop that only reads would be dropped as useless
            "    return total",
        ]
    )


@lru_cache(maxsize=64)
def _loops(uses: tuple[str, ...], groups: tuple[tuple[int, ...], ...]) -> tuple[Any, Any]:
    numba = optional("numba")
    scope: dict[str, Any] = {"prange": numba.prange}
    exec(_source(uses, groups), scope)
    # The numpy error model and slices with unit stride are what lets LLVM vectorise the body.
    scope["body"] = numba.njit(error_model="numpy", nogil=True)(scope["body"])
    return scope["body"], numba.njit(error_model="numpy", parallel=True)(scope["team"])


def traffic(arrays: list[Array], uses: tuple[str, ...], threads: int) -> Contender:
    """The limit loop: moves the bytes of a kernel that uses these arrays so, on at most these threads. Values stay."""
    threads = max(1, min(threads, arrays[0].size // SERIAL_BELOW))
    words = [x.view(f"u{x.itemsize}") for x in arrays]
    if all(use == "r" for use in uses):
        size = min(x.nbytes for x in arrays) // 8 * 8
        words = [x.view(np.uint8)[:size].view(np.uint64) for x in arrays]
    sizes = dict.fromkeys(x.size for x in words)
    body, team = _loops(uses, tuple(tuple(k for k, x in enumerate(words) if x.size == n) for n in sizes))
    zero = words[0].dtype.type(0)
    if threads == 1:
        return Contender("limit", lambda: body(*words, zero))
    return Contender("limit", lambda: team(*words, zero, threads))


def probes(threads: int, mib: int) -> list[tuple[str, int, Contender]]:
    """Bandwidth probes on arrays of `mib` MiB each: name, bytes moved, loop. Bytes as the loop asks for them."""
    n = mib * MIB // 4
    a, b, c, d = (np.zeros(n, np.float32) for _ in range(4))
    found: list[tuple[str, int, Contender]] = []
    patterns: dict[str, tuple[list[Array], tuple[str, ...], int]] = {
        "copy": ([b, a], ("r", "w"), 8),
        "triad": ([b, c, a], ("r", "r", "w"), 12),
        "in-place scale": ([a], ("rw",), 8),
        "4 read, 3 written": ([a, b, c, d], ("rw", "r", "rw", "rw"), 28),
    }
    for name, (arrays, uses, bytes_) in patterns.items():
        found.append((name, n * bytes_, traffic(arrays, uses, threads)))
    if threads == 1:
        found.append(("np.copyto", n * 8, Contender("np.copyto", partial(np.copyto, a, b))))
    return found


_SGEMM = """
import time, numpy as np
n = {n}
a = np.random.default_rng(0).standard_normal((n, n), np.float32)
out = a @ a
best = 1e9
for _ in range({rounds}):
    start = time.perf_counter()
    np.matmul(a, a, out=out)
    best = min(best, time.perf_counter() - start)
print(2 * n**3 / best / 1e9)
"""


def sgemm_gflops(threads: int, n: int = 1536, rounds: int = 5) -> float | None:
    """GFLOP/s of NumPy's float32 matrix product, the best of some; in its own process, since BLAS fixes its threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-c", _SGEMM.format(n=n, rounds=rounds)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        return float(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return None


_IMPORT = """
import sys, time
start = time.perf_counter()
import numpy
middle = time.perf_counter()
import curvk
end = time.perf_counter()
heavy = [m for m in ("numba", "torch", "cffi", "matplotlib") if m in sys.modules]
print(middle - start, end - middle, ",".join(heavy))
"""


def import_times(rounds: int) -> dict[str, Any]:
    """Seconds to import NumPy and then curvk, in fresh processes, and the heavy modules that curvk pulled in."""
    numpy_s, curvk_s, heavy = [], [], set()
    for _ in range(rounds + 1):  # the first one fills the disk cache
        done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, timeout=120, check=True)
        first, second, *modules = done.stdout.split()
        numpy_s.append(float(first))
        curvk_s.append(float(second))
        heavy.update(modules)
    return {"numpy_s": numpy_s[1:], "curvk_s": curvk_s[1:], "heavy_modules": sorted(heavy)}
