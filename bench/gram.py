"""K(X, Z) @ W beside NumPy, torch, scikit-learn and the bare matrix product; small matrices beside numpy.linalg.

python bench/gram.py [--threads 1,2] [--rows 4096] [--outputs 10] [--features 16,64,784] [--rounds 7] [--json FILE]

NumPy's and torch's sequences are the ones written by hand: inner products into a buffer, norms added, exponential, all
in place, then the product with W. Answers are compared before anything is timed. Contenders take turns in one process,
with a pause before each sample, on as many threads each; `sgemm` is NumPy's X @ Z.T alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import curvk
import numpy as np
import torch
from curvk._bench import limits, report
from curvk._bench.registry import Contender
from curvk._bench.runner import Effort, set_threads, take_turns
from curvk._info import machine
from curvk.kernels import gram, linalg
from sklearn.metrics.pairwise import rbf_kernel
from threadpoolctl import threadpool_limits
from tqdm import tqdm

PEERS = ("numpy", "torch", "scikit-learn", "sgemm")
SMALL = ((2, 100_000), (4, 100_000), (8, 100_000), (16, 20_000), (32, 4_000), (64, 1_000))


def numpy_sequence(x: Any, z: Any, w: Any, h: float) -> Callable[[], Any]:
    k, out = np.empty((len(x), len(z)), x.dtype), np.empty((len(x), w.shape[1]), x.dtype)

    def step() -> Any:
        np.matmul(x, z.T, out=k)
        np.multiply(k, -2, out=k)
        np.add(k, np.einsum("nd,nd->n", x, x)[:, None], out=k)
        np.add(k, np.einsum("nd,nd->n", z, z), out=k)
        np.maximum(k, 0, out=k)
        np.multiply(k, -1 / (2 * h * h), out=k)
        np.exp(k, out=k)
        return np.matmul(k, w, out=out)

    return step


def torch_sequence(x: Any, z: Any, w: Any, h: float) -> Callable[[], Any]:
    x, z, w = (torch.from_numpy(a) for a in (x, z, w))
    k, out = torch.empty(len(x), len(z)), torch.empty(len(x), w.shape[1])

    def step() -> Any:
        scale = -1 / (2 * h * h)
        torch.addmm((z * z).sum(1).mul_(scale)[None, :], x, z.T, alpha=-2 * scale, out=k)
        k.add_((x * x).sum(1).mul_(scale)[:, None]).exp_()
        return torch.mm(k, w, out=out)

    return step


def products(d: int, rows: int, outputs: int) -> dict[str, Contender]:
    rng = np.random.default_rng(0)
    x, z = (rng.standard_normal((rows, d)).astype(np.float32) for _ in range(2))
    w, h = rng.standard_normal((rows, outputs)).astype(np.float32), float(np.sqrt(d))
    centers, out, k = gram.Centers(z), np.empty((rows, outputs), np.float32), np.empty((rows, rows), np.float32)
    steps: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: gram.matvec(x, centers, w, bandwidth=h, out=out),
        "laplacian": lambda: gram.matvec(x, centers, w, kernel="laplacian", bandwidth=h, out=out),
        "gaussian, packing Z": lambda: gram.matvec(x, z, w, bandwidth=h, out=out),
        "numpy": numpy_sequence(x, z, w, h),
        "torch": torch_sequence(x, z, w, h),
        "scikit-learn": lambda: rbf_kernel(x, z, gamma=1 / (2 * h * h)) @ w,
    }
    some = x[:64].astype(np.float64)
    q = ((some[:, None] - z.astype(np.float64)) ** 2).sum(-1) if d < 100 else None
    if q is None:
        q = (some**2).sum(1)[:, None] + (z.astype(np.float64) ** 2).sum(1) - 2 * some @ z.astype(np.float64).T
    exact = np.exp(-q / (2 * h * h)) @ w
    for name in ("gaussian", "numpy", "torch", "scikit-learn"):
        error = abs(np.asarray(steps[name]())[:64] - exact).max() / (np.exp(-q / (2 * h * h)) @ abs(w)).max()
        if not error < 1e-5:
            raise SystemExit(f"{name}, d = {d}: relative error {error:.1e}")
    steps["sgemm"] = lambda: np.matmul(x, z.T, out=k)
    return {name: Contender(name, step) for name, step in steps.items()}


def small(d: int, n: int, dtype: Any) -> dict[str, Contender]:
    a = np.random.default_rng(0).standard_normal((n, d, d)).astype(dtype)
    u, s, vt = linalg.svd_batch(a)
    if not abs((u * s[:, None]) @ vt - a).max() < 200 * d * np.finfo(dtype).eps:
        raise SystemExit(f"svd_batch, d = {d}: the factors do not give the matrix")
    symmetric = a + a.swapaxes(1, 2)
    return {
        "svd_batch": Contender("svd_batch", lambda: linalg.svd_batch(a)),
        "numpy.linalg.svd": Contender("numpy.linalg.svd", lambda: np.linalg.svd(a)),
        "eigh_batch": Contender("eigh_batch", lambda: linalg.eigh_batch(symmetric)),
        "numpy.linalg.eigh": Contender("numpy.linalg.eigh", lambda: np.linalg.eigh(symmetric)),
    }


def ratio(over: list[float], under: list[float]) -> str:
    """The median of the rounds' ratios, and their quartiles."""
    found = [a / b for a, b in zip(over, under, strict=True)]
    low, _, high = quantiles(found, n=4)
    return f"{median(found):.2f} ({low:.2f}-{high:.2f})"


def product_lines(taken: dict[str, list[float]], d: int, rows: int) -> list[str]:
    lines = []
    for name, own in taken.items():
        entry, gflops = median(own) / rows**2 * 1e9, 2 * d * rows**2 / median(own) / 1e9
        cells = [f"{d}", name, f"{entry:.3f}", f"{gflops:.0f}"]
        cells += ["" if name in PEERS else ratio(taken[peer], own) for peer in PEERS]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def small_lines(taken: dict[str, list[float]], d: int, n: int, dtype: Any) -> list[str]:
    lines = []
    for ours, theirs in (("svd_batch", "numpy.linalg.svd"), ("eigh_batch", "numpy.linalg.eigh")):
        own = median(taken[ours]) / n * 1e6
        lines.append(f"| {ours} | {np.dtype(dtype)} | {d} | {n:,} | {own:.3f} | {ratio(taken[theirs], taken[ours])} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=f"1,{curvk.get_num_threads()}", help="thread counts (default: 1 and all)")
    parser.add_argument("--rows", type=int, default=4096, help="of X and of Z")
    parser.add_argument("--outputs", type=int, default=10, help="columns of W")
    parser.add_argument("--features", default="16,64,784")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before a sample")
    parser.add_argument("--no-small", action="store_true", help="leave out the small matrices")
    parser.add_argument("--json", type=Path, help="file for every sample")
    arguments = parser.parse_args()
    effort = Effort(rounds=arguments.rounds, sample=0.02, largest=0, models=(), probe_mib=0, pause=arguments.pause)
    features = [int(d) for d in arguments.features.split(",")]
    result: dict[str, Any] = {"machine": machine(), "start": report.stamp(), "rows": arguments.rows, "threads": {}}
    text: list[str] = []
    counts = sorted({int(t) for t in arguments.threads.split(",")})
    cells = [] if arguments.no_small else [(d, n, t) for d, n in SMALL for t in (np.float32, np.float64)]
    bar = tqdm(total=len(counts) * (len(features) + len(cells)), disable=None)
    for threads in counts:
        set_threads(threads)
        torch.set_num_threads(threads)
        own: dict[str, Any] = {"sgemm GFLOP/s": limits.sgemm_gflops(threads)}
        probe = limits.probes(threads, 256)[0]
        with threadpool_limits(threads):
            seconds = median(take_turns([probe[2]], effort, threads)[0])
            own["copy GB/s"] = probe[1] / seconds / 1e9
            speed = f"sgemm of 1,536: {own['sgemm GFLOP/s']:.0f} GFLOP/s, copy {own['copy GB/s']:.1f} GB/s"
            text += [
                f"{threads} thread(s); {speed}",
                f"n = m = {arguments.rows:,}, c = {arguments.outputs}, float32; on the right the peers' times over it",
                "",
                f"| d | | ns per entry | GFLOP/s of 2 d | {' | '.join(PEERS)} |",
                f"|---|---|---|---|{'---|' * len(PEERS)}",
            ]
            for d in features:
                rows = products(d, arguments.rows, arguments.outputs)
                taken = dict(zip(rows, take_turns(list(rows.values()), effort, threads), strict=True))
                own[f"product, d = {d}"] = taken
                text += product_lines(taken, d, arguments.rows)
                bar.update()
            if cells:
                text += [
                    "",
                    "| | dtype | size | matrices | us each | NumPy's time over it |",
                    "|---|---|---|---|---|---|",
                ]
            for d, n, dtype in cells:
                rows = small(d, n, dtype)
                taken = dict(zip(rows, take_turns(list(rows.values()), effort, threads), strict=True))
                own[f"small, {np.dtype(dtype)}, {d}"] = taken
                text += small_lines(taken, d, n, dtype)
                bar.update()
        text.append("")
        result["threads"][threads] = own
    bar.close()
    result["end"] = report.stamp()
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    print("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
