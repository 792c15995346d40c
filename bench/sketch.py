"""Sketches, incremental factorisations and rank-one updates beside NumPy, SciPy and scikit-learn.

python bench/sketch.py [--threads 1,2] [--rounds 7] [--quick] [--json FILE]

Answers are compared before anything is timed. Contenders take turns in one process, with a pause before each sample, on
as many threads each. The peer of Frequent Directions is the usual code: a singular value decomposition of the whole
buffer of 2 l rows whenever it is full. `copy` copies the rows, which no sketch of them can beat by much.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import curvk
import numpy as np
from curvk import sketch
from curvk._bench import report
from curvk._bench.registry import Contender
from curvk._bench.runner import Effort, take_turns
from curvk._info import machine
from curvk.kernels import sketch as kernels
from scipy.linalg import clarkson_woodruff_transform
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

DIRECTIONS = [(64, 1000), (32, 256), (128, 2000)]  # l, d
BUCKETS = [(20_000, 100, 500, "float64"), (20_000, 100, 500, "float32"), (500_000, 100, 500, "float64")]
INCREMENTAL = [(32, 16, 1000), (32, 1, 1000)]  # k, block, d
TRIPLETS = [(10_000, 500, 20)]  # n, d, k
EIGEN = [(40, 150), (15, 150), (150, 150)]  # k, rows of V


def rows(n: int, d: int, dtype: str = "float64") -> Any:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((n, d)) * np.exp(-np.arange(d) / d * 5)).astype(dtype)


def need(close: bool, what: str) -> None:
    if not close:
        raise SystemExit(f"{what}: the contenders' answers differ")


class FullSVD:
    """Frequent Directions as it is usually written, with rows copied in portions."""

    def __init__(self, l: int, d: int) -> None:  # noqa: E741
        self.l, self.buffer, self.filled, self.delta = l, np.zeros((2 * l, d)), 0, 0.0

    def update(self, rows: Any) -> None:
        while len(rows):
            if self.filled == 2 * self.l:
                _, s, Vt = np.linalg.svd(self.buffer, full_matrices=False)
                squares = s * s
                self.delta += squares[self.l]
                top = np.sqrt(squares[: self.l] - squares[self.l])
                self.buffer[: self.l] = top[:, None] * Vt[: self.l]
                self.filled = self.l
            n = min(len(rows), 2 * self.l - self.filled)
            self.buffer[self.filled : self.filled + n] = rows[:n]
            self.filled += n
            rows = rows[n:]


def directions(l: int, d: int) -> list[Contender]:  # noqa: E741
    """So many rows more that one shrink comes."""
    A = rows(20 * l, d)
    ours, peer = sketch.FrequentDirections(l, d), FullSVD(l, d)
    for sketched in (ours, peer):
        sketched.update(A)
    gap = ours._buffer[:l].T @ ours._buffer[:l] - peer.buffer[:l].T @ peer.buffer[:l]
    need(np.abs(gap).max() < 1e-9 * np.sum(A**2), "Frequent Directions")
    return [Contender("curvk", lambda: ours.update(A[:l])), Contender("numpy", lambda: peer.update(A[:l]))]


def buckets(n: int, d: int, s: int, dtype: str) -> list[Contender]:
    """A matrix into s buckets."""
    A = rows(n, d, dtype)
    found = {}
    for blocks in (1, 4):
        found[blocks] = sketch.SJLT(s, d, blocks)
        found[blocks].update(A)
    mean = np.mean([np.sum(clarkson_woodruff_transform(A, s, seed)[:, 0] ** 2) for seed in range(3)])
    need(abs(np.sum(found[1].sketch[:, 0] ** 2) / mean - 1) < 0.5, "CountSketch")  # both have the column's norm in mean
    to = np.empty_like(A)
    return [
        Contender("curvk", lambda: found[1].update(A)),
        Contender("scipy", lambda: clarkson_woodruff_transform(A, s, 0)),
        Contender("copy", lambda: np.copyto(to, A)),
        Contender("curvk, 4 blocks", lambda: found[4].update(A)),
    ]


def incremental(k: int, block: int, d: int) -> list[Contender]:
    """`block` rows more."""
    A = rows(4 * k, d)
    ours = sketch.IncrementalSVD(k, d, block=block)
    B = np.zeros((0, d))

    def step(new: Any) -> Any:
        _, s, Vt = np.linalg.svd(np.vstack([B, new]), full_matrices=False)
        return s[:k, None] * Vt[:k]

    for i in range(0, len(A), block):
        ours.update(A[i : i + block])
        B = step(A[i : i + block])
    need(np.abs(ours.sketch.T @ ours.sketch - B.T @ B).max() < 1e-9 * np.sum(A**2), "IncrementalSVD")
    return [Contender("curvk", lambda: ours.update(A[:block])), Contender("numpy", lambda: step(A[:block]))]


def triplets(n: int, d: int, k: int) -> list[Contender]:
    """The k leading singular triplets."""
    A = rows(n, d)
    options: Any = {"n_oversamples": 10, "n_iter": 1, "power_iteration_normalizer": "QR", "random_state": 0}
    truth = np.linalg.svd(A, compute_uv=False)[:k]
    for s in (sketch.randomized_svd(A, k).s, randomized_svd(A, k, **options)[1]):
        need(0.9 < (s / truth).min() <= (s / truth).max() < 1 + 1e-9, "randomized_svd")
    return [
        Contender("curvk", lambda: sketch.randomized_svd(A, k)),
        Contender("scikit-learn", lambda: randomized_svd(A, k, **options)),
        Contender("numpy", lambda: np.linalg.svd(A, full_matrices=False)),
        Contender("curvk, sjlt", lambda: sketch.randomized_svd(A, k, range_finder="sjlt")),
    ]


def eigen(k: int, m: int) -> list[Contender]:
    """diag(d) + rho z z' and its eigenvectors times V (m, k)."""
    rng = np.random.default_rng(0)
    d0, z = np.sort(rng.standard_normal(k)), rng.standard_normal(k)
    V0 = np.linalg.qr(rng.standard_normal((m, k))).Q
    d, V = d0.copy(), V0.copy()

    def update() -> None:
        d[...], V[...] = d0, V0
        kernels.eigh_update(d, V, z, 0.5)

    def whole() -> Any:
        values, vectors = np.linalg.eigh(np.diag(d0) + 0.5 * np.outer(z, z))
        return values, V0 @ vectors

    update()
    values, vectors = whole()
    need(np.abs(d - values).max() < 1e-12 and np.abs(V * d @ V.T - vectors * values @ vectors.T).max() < 1e-12, "eigh")
    return [Contender("curvk", update), Contender("numpy", whole)]


def ratio(over: list[float], under: list[float]) -> str:
    """The median of the rounds' ratios, and their quartiles."""
    low, middle, high = quantiles([a / b for a, b in zip(over, under, strict=True)], n=4, method="inclusive")
    return f"{middle:6.2f} ({low:.2f} to {high:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=f"1,{curvk.get_num_threads()}", help="thread counts (default: 1 and all)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the first size of each only")
    parser.add_argument("--json", type=Path, help="file for every sample")
    arguments = parser.parse_args()
    kinds: list[tuple[Any, list[Any], str]] = [
        (directions, DIRECTIONS, "Frequent Directions, l = {}, d = {}: l rows"),
        (buckets, BUCKETS, "CountSketch of {:,} x {} to {}, {}"),
        (incremental, INCREMENTAL, "IncrementalSVD, k = {}, {} row(s) of {}"),
        (triplets, TRIPLETS, "randomized_svd of {:,} x {}, k = {}"),
    ]
    if hasattr(kernels, "eigh_update"):
        kinds.append((eigen, EIGEN, "eigh_update, k = {}, V of {} rows"))
    result: dict[str, Any] = {"machine": machine(), "start": report.stamp(), "threads": {}}
    for threads in tqdm(sorted({int(t) for t in arguments.threads.split(",")}), unit="threads", disable=None):
        found: dict[str, Any] = {}
        print(f"\n{threads} thread(s); the others' time over curvk's (quartiles)")
        for make, sizes, title in kinds:
            for size in sizes[:1] if arguments.quick else sizes:
                contenders = make(*size)
                effort = Effort(rounds=arguments.rounds, sample=0.05, largest=0, models=(), probe_mib=0)
                with threadpool_limits(threads):
                    taken = take_turns(contenders, effort, threads)
                name = title.format(*size)
                found[name] = samples = dict(zip((c.name for c in contenders), taken, strict=True))
                others = "  ".join(f"{k} {ratio(v, samples['curvk'])}" for k, v in samples.items() if k != "curvk")
                print(f"  {name:52} {median(samples['curvk']) * 1e6:9.0f} us   {others}", flush=True)
        result["threads"][threads] = found
    result["end"] = report.stamp()
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
