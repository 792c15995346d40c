"""Steps of the Stein samplers beside NumPy and torch implementations of the same step.

python bench/stein.py [--threads 1,2] [--rounds 7] [--quick] [--json FILE]

Peers work in place in preallocated n x n buffers, as one would write them by hand; their direction is compared with
curvk's before anything is timed. Contenders take turns in one process, with a pause before each sample. The score is
-x and the density's logarithm -|x|^2 / 2, so that a step is the sampler's own work.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import curvk
import numpy as np
import torch
from curvk import stein
from curvk._bench import report
from curvk._bench.registry import Contender
from curvk._bench.runner import Effort, take_turns
from curvk._info import machine
from tqdm import tqdm

LR, BETAS, EPS = 0.01, (0.9, 0.999), 1e-8
POINTS = [(1000, 10), (1000, 100), (4000, 10), (4000, 50)]
LARGE = 20_000, 10


def start(n: int, d: int) -> Any:
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


class Peer:
    """SVGD with Adam; a subclass has `direction(h)` of its particles `x`, and `median_h()`, which fills `q` first."""

    def __init__(self, x: Any, h: float | None) -> None:
        self.x, self.h, self.t = x, h, 0
        n, _ = x.shape
        self.pairs = np.flatnonzero(np.triu(np.ones((n, n), bool), 1))
        self.middle = sorted({(len(self.pairs) - 1) // 2, len(self.pairs) // 2})

    def direction(self) -> Any:
        raise NotImplementedError

    def update(self, phi: Any) -> None:
        raise NotImplementedError

    def step(self) -> None:
        self.update(self.direction())


class NumPy(Peer):
    """In place; the median of the pairs' squared distances by a partition."""

    def __init__(self, x: Any, h: float | None) -> None:
        super().__init__(x, h)
        n, d = x.shape
        self.q, self.w, self.r = np.empty((n, n), x.dtype), np.empty((n, 2 * d + 1), x.dtype), None
        self.some = np.empty(len(self.pairs), x.dtype)
        self.out, self.m, self.v, self.a = np.empty_like(self.w), np.zeros_like(x), np.zeros_like(x), np.empty_like(x)

    def direction(self) -> Any:
        x, q, w = self.x, self.q, self.w
        n, d = x.shape
        norms = np.einsum("nd,nd->n", x, x)
        np.matmul(x, x.T, out=q)
        q *= -2
        q += norms
        q += norms[:, None]
        np.maximum(q, 0, out=q)
        h = self.h
        if h is None:
            q.ravel().take(self.pairs, out=self.some)
            self.some.partition(self.middle)
            h = math.sqrt(np.sqrt(self.some[self.middle]).mean() ** 2 / (2 * math.log(n + 1)))
        q *= -1 / (2 * h * h)
        np.exp(q, out=q)
        np.negative(x, out=w[:, :d])
        w[:, d : 2 * d] = x
        w[:, 2 * d] = 1
        np.matmul(q, w, out=self.out)
        phi = self.a
        np.multiply(x, self.out[:, 2 * d :], out=phi)
        phi -= self.out[:, d : 2 * d]
        phi *= 1 / (h * h)
        phi += self.out[:, :d]
        phi /= n
        return phi

    def update(self, phi: Any) -> None:
        self.t += 1
        m, v, (b1, b2) = self.m, self.v, BETAS
        m *= b1
        m += (1 - b1) * phi
        v *= b2
        phi *= phi
        phi *= 1 - b2
        v += phi
        np.sqrt(v, out=phi)
        phi /= math.sqrt(1 - b2**self.t)
        phi += EPS
        np.divide(m, phi, out=phi)
        phi *= LR / (1 - b1**self.t)
        self.x += phi


class Torch(Peer):
    """The same with torch: addmm, exp_, one product, the fused Adam."""

    def __init__(self, x: Any, h: float | None) -> None:
        super().__init__(x, h)
        n, d = x.shape
        self.p = torch.nn.Parameter(torch.from_numpy(x))
        self.x = self.p.data
        self.p.grad = torch.zeros_like(self.x)
        self.adam = torch.optim.Adam([self.p], lr=LR, betas=BETAS, eps=EPS, maximize=True, fused=True)
        self.index = torch.from_numpy(self.pairs)
        self.q, self.w = torch.empty(n, n), torch.empty(n, 2 * d + 1)
        self.some, self.out = torch.empty(len(self.pairs)), torch.empty(n, 2 * d + 1)

    @torch.no_grad()
    def direction(self) -> Any:
        x, q, w = self.x, self.q, self.w
        n, d = x.shape
        norms = (x * x).sum(1)
        torch.addmm(norms[None, :], x, x.T, alpha=-2, out=q)
        q.add_(norms[:, None]).clamp_(min=0)
        h = self.h
        if h is None:
            torch.take(q, self.index, out=self.some)
            middle = [float(self.some.kthvalue(k + 1).values) for k in self.middle]
            h = math.sqrt(np.sqrt(middle).mean() ** 2 / (2 * math.log(n + 1)))
        q.mul_(-1 / (2 * h * h)).exp_()
        torch.neg(x, out=w[:, :d])
        w[:, d : 2 * d] = x
        w[:, 2 * d] = 1
        torch.mm(q, w, out=self.out)
        phi = self.p.grad
        torch.mul(x, self.out[:, 2 * d :], out=phi)
        return phi.sub_(self.out[:, d : 2 * d]).mul_(1 / (h * h)).add_(self.out[:, :d]).div_(n)

    @torch.no_grad()
    def update(self, phi: Any) -> None:
        self.adam.step()


def svgd_rows(n: int, d: int, h: float | None) -> list[Contender]:
    """Whole steps of the three, checked: after three steps all particles agree."""
    x = start(n, d)
    bandwidth: Any = "median" if h is None else h
    ours = stein.SVGD(np.negative, x, step="adam", lr=LR, bandwidth=bandwidth)
    peers = {"numpy": NumPy(x.copy(), h), "torch": Torch(x.copy(), h)}
    for _ in range(3):
        ours.step()
        for peer in peers.values():
            peer.step()
    truth = stein.SVGD(np.negative, x.astype(np.float64), step="adam", lr=LR, bandwidth=bandwidth).run(3)
    for name, found in {"curvk": ours.particles, **{k: np.asarray(p.x) for k, p in peers.items()}}.items():
        error = np.abs(found - truth).max()
        # Adam divides by the direction's own size: where it is near 0 a rounding error becomes a part of lr.
        if not (np.abs(found - truth) > 1e-4).mean() < 1e-3:
            raise SystemExit(f"{name}: wrong particles after three steps, off by {error:.1e}")
    return [Contender("curvk", ours.step), *(Contender(k, p.step) for k, p in peers.items())]


class NumPyCMA:
    """SV-CMA-ES in its hybrid form, all particles at once: the vectorised NumPy one would write."""

    def __init__(self, x: Any, sigma: float, popsize: int, h: float) -> None:
        n, d = x.shape
        m = popsize // 2
        raw = math.log((popsize + 1) / 2) - np.log(np.arange(1, popsize + 1))
        eff = raw[:m].sum() ** 2 / (raw[:m] ** 2).sum()
        eff_minus = raw[m:].sum() ** 2 / (raw[m:] ** 2).sum()
        self.cc = (4 + eff / d) / (d + 4 + 2 * eff / d)
        self.c1 = 2 / ((d + 1.3) ** 2 + eff)
        self.cmu = min(1 - self.c1 - 1e-8, 2 * (eff - 2 + 1 / eff) / ((d + 2) ** 2 + eff))
        scale = min(1 + self.c1 / self.cmu, 1 + 2 * eff_minus / (eff + 2), (1 - self.c1 - self.cmu) / (d * self.cmu))
        self.weights = np.where(raw >= 0, raw / raw[raw >= 0].sum(), raw / -raw[raw < 0].sum() * scale)
        self.cs = (eff + 2) / (d + eff + 5)
        self.ds = 1 + 2 * max(0, math.sqrt((eff - 1) / (d + 1)) - 1) + self.cs
        self.chi = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))
        self.eff, self.m, self.popsize, self.h, self.g = eff, m, popsize, h, 0
        self.x, self.sigma = x.astype(np.float64), np.full(n, sigma)
        self.c = np.tile(np.eye(d), (n, 1, 1))
        self.ps, self.pc = np.zeros((n, d)), np.zeros((n, d))
        self.rng = np.random.default_rng(1)

    def step(self, density: Callable[[Any], Any]) -> None:
        n, d = self.x.shape
        values, vectors = np.linalg.eigh(self.c + 1e-8 * np.eye(d))
        root = np.sqrt(np.maximum(values, 1e-8))
        y = (self.rng.standard_normal((n, self.popsize, d)) * root[:, None]) @ vectors.mT
        found = density((self.x[:, None] + self.sigma[:, None, None] * y).reshape(-1, d)).reshape(n, -1)
        y = np.take_along_axis(y, np.argsort(-found, 1)[:, :, None], 1)
        away = self.x[:, None] - self.x[None]
        k = np.exp(-np.square(away).sum(2) / (2 * self.h**2))
        push = np.einsum("ij,ijd->id", k, away) / (n * self.h**2)
        mean = np.einsum("k,nkd->nd", self.weights[: self.m], y[:, : self.m]) + push / self.sigma[:, None]
        self.x = self.x + self.sigma[:, None] * mean
        inverse = vectors / root[:, None] @ vectors.mT
        white = np.einsum("nde,ne->nd", inverse, mean)
        self.ps = (1 - self.cs) * self.ps + math.sqrt(self.cs * (2 - self.cs) * self.eff) * white
        length = np.linalg.norm(self.ps, axis=1)
        self.g += 1
        bound = (1.4 + 2 / (d + 1)) * self.chi * math.sqrt(1 - (1 - self.cs) ** (2 * (self.g + 1)))
        slow = (length < bound).astype(float)
        gain = slow * math.sqrt(self.cc * (2 - self.cc) * self.eff)
        self.pc = (1 - self.cc) * self.pc + gain[:, None] * mean
        sizes = np.square(np.einsum("nde,nke->nkd", inverse, y)).sum(2)
        w = np.where(self.weights >= 0, self.weights, self.weights * d / np.maximum(sizes, 1e-30))
        keep = 1 + self.c1 * (1 - slow) * self.cc * (2 - self.cc) - self.c1 - self.cmu * self.weights.sum()
        self.c = (
            keep[:, None, None] * self.c
            + self.c1 * self.pc[:, :, None] * self.pc[:, None]
            + self.cmu * np.einsum("nk,nkd,nke->nde", w, y, y)
        )
        self.sigma = self.sigma * np.exp(self.cs / self.ds * (length / self.chi - 1))


def bowl(points: Any) -> Any:
    return -0.5 * np.einsum("nd,nd->n", points, points)


def cma_rows(n: int, popsize: int, d: int) -> list[Contender]:
    """Generations of SV-CMA-ES, a NumPy loop of it (both checked by the law of their result), and the objective."""
    x = start(n, d)
    ours = stein.SVCMAES(bowl, x.astype(np.float64), sigma0=0.5, popsize=popsize, bandwidth=0.5)
    peer = NumPyCMA(x, 0.5, popsize, 0.5)
    for _ in range(200):
        ours.step()
        peer.step(bowl)
    for name, found in (("curvk", ours.particles), ("numpy", peer.x)):
        if not (np.abs(found.mean(0)) < 0.3).all() or not 0.3 < found.std() < 2:
            raise SystemExit(
                f"SV-CMA-ES, {name}: mean {found.mean(0)}, deviation {found.std():.2f} on a normal density"
            )
    points = np.empty((n * popsize, d))
    points[...] = 1.0
    return [
        Contender("curvk", ours.step),
        Contender("numpy", lambda: peer.step(bowl)),
        Contender("objective alone", lambda: bowl(points)),
    ]


def measure(rows: list[Contender], threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per step by name, one sample a round."""
    effort = Effort(rounds=rounds, sample=0.05, largest=0, models=(), probe_mib=0)
    return dict(zip((c.name for c in rows), take_turns(rows, effort, threads), strict=True))


def ratio(over: list[float], under: list[float]) -> str:
    """The median of the rounds' ratios, and their quartiles."""
    low, middle, high = quantiles([a / b for a, b in zip(over, under, strict=True)], n=4, method="inclusive")
    return f"{middle:6.2f} ({low:.2f} to {high:.2f})"


def line(title: str, taken: dict[str, list[float]]) -> str:
    ours = taken["curvk"]
    others = "  ".join(f"{k} {ratio(v, ours)}" for k, v in taken.items() if k not in ("curvk", "objective alone"))
    return f"  {title:44} {median(ours) * 1e6:10.0f} us   {others}"


def large_step() -> tuple[float, float]:
    """Peak MiB of memory that a step with many particles takes, and the MiB of the matrix that it does not store."""
    n, d = LARGE
    sampler = stein.SVGD(np.negative, start(n, d), step="adam")
    sampler.step()
    tracemalloc.start()
    sampler.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20, 4 * n * n / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=f"1,{curvk.get_num_threads()}", help="thread counts (default: 1 and all)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    parser.add_argument("--json", type=Path, help="file for every sample")
    arguments = parser.parse_args()
    sizes = POINTS[:1] if arguments.quick else POINTS
    result: dict[str, Any] = {"machine": machine(), "start": report.stamp(), "threads": {}}
    for threads in tqdm(sorted({int(t) for t in arguments.threads.split(",")}), unit="threads", disable=None):
        found: dict[str, Any] = {}
        print(f"\nOne step, float32, {threads} thread(s); the peers' time over curvk's (quartiles)")
        for n, d in sizes:
            for h, what in ((None, "median heuristic"), (1.0, "bandwidth given")):
                title = f"SVGD n = {n:,}, d = {d}, {what}"
                with curvk.threads(threads):
                    rows = svgd_rows(n, d, h)
                found[title] = measure(rows, threads, arguments.rounds)
                print(line(title, found[title]), flush=True)
                del rows
        if hasattr(stein, "SVCMAES"):
            for n, popsize, d in ((100, 4, 2), (100, 8, 10)):
                title = f"SV-CMA-ES n = {n}, popsize {popsize}, d = {d}"
                found[title] = taken = measure(cma_rows(n, popsize, d), threads, arguments.rounds)
                own = median(a - b for a, b in zip(taken["curvk"], taken["objective alone"], strict=True))
                print(f"{line(title, taken)}; {own * 1e6:.0f} us without the objective", flush=True)
        if not arguments.quick:
            n, d = LARGE
            x = start(n, d)
            for h, what in ((None, "median heuristic"), (1.0, "bandwidth given")):
                bandwidth: Any = "median" if h is None else h
                sampler = stein.SVGD(np.negative, x, step="adam", lr=LR, bandwidth=bandwidth)
                title = f"SVGD n = {n:,}, d = {d}, {what}"
                found[title] = measure([Contender("curvk", sampler.step)], threads, 3)
                print(line(title, found[title]), flush=True)
        result["threads"][threads] = found
    if not arguments.quick:
        peak, matrix = large_step()
        result["large"] = {"n": LARGE[0], "d": LARGE[1], "peak_mib": peak, "matrix_mib": matrix}
        print(
            f"\nn = {LARGE[0]:,}: a step takes {peak:.1f} MiB at its peak; the kernel matrix would be {matrix:.0f} MiB"
        )
    result["end"] = report.stamp()
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
