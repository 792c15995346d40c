"""The noise work of zeroth-order steps, forward passes excluded, beside the published code's torch operations.

python bench/zeroth.py [--threads 1,2] [--rounds 5] [--quick] [--json FILE]

The model is a skeleton with GPT-2 small's shapes whose forward does nothing, so that a step of curvk.torch.MeZO is its
noise, hooks and bookkeeping. Contenders take turns in one process, with a pause before each sample.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import curvk.torch
import numpy as np
import torch
from curvk._bench import limits, report
from curvk._bench.registry import MODELS, Contender
from curvk._bench.runner import Effort, take_turns
from curvk._info import machine
from curvk.kernels import noise
from torch import Tensor, nn
from tqdm import tqdm

EPS, LR, GRADIENT = 1e-3, 1e-6, 0.5


class Weights(nn.Module):
    """Parameters of some shapes and a forward that only passes its input on."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.full(s, 0.02)) for s in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Skeleton(nn.Module):
    """GPT-2 small: two embedding tables, 12 blocks of 12 tensors, a final norm."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        shapes = [(max(1, s[0] // divisor), *s[1:]) for s in MODELS["gpt2-small"]()]
        self.embeddings = nn.ModuleList(Weights([s]) for s in shapes[:2])
        self.blocks = nn.ModuleList(Weights(shapes[k : k + 12]) for k in range(2, len(shapes) - 2, 12))
        self.norm = Weights(shapes[-2:])

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.embeddings, *self.blocks, self.norm):
            x = part(x)
        return x


class Layers(nn.Module):
    """GPT-2 small's shapes as embeddings, linear layers without bias and norms, each evaluated on one token."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        shapes = [(max(1, s[0] // divisor), *s[1:]) for s in MODELS["gpt2-small"]()]
        matrices = [s for s in shapes[2:] if len(s) == 2]
        self.tables = nn.ModuleList(nn.Embedding(*s) for s in shapes[:2])
        self.layers = nn.ModuleList(nn.Linear(s[1], s[0], bias=False) for s in matrices)
        self.norms = nn.ModuleList(nn.LayerNorm(s) for s in shapes if len(s) == 1)

    def forward(self, x: Tensor) -> None:
        for table in self.tables:
            table(torch.zeros(1, dtype=torch.long))
        for layer in self.layers:
            layer(x.expand(1, layer.in_features))
        for norm in self.norms:
            norm(x.expand(1, *norm.normalized_shape))


def reference(tensors: list[nn.Parameter]) -> Callable[[], None]:
    """The operations of the published code for one step."""

    def perturb(factor: float) -> None:
        torch.manual_seed(0)
        for p in tensors:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.device, dtype=p.dtype)
            p.data = p.data + factor * z * EPS

    def step() -> None:
        for factor in (1, -2, 1):
            perturb(factor)
        torch.manual_seed(0)
        for p in tensors:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.device, dtype=p.dtype)
            p.data = p.data - LR * (GRADIENT * z + 0.0 * p.data)

    return step


def torch_step(name: str, kind: Any, model: nn.Module, **options: Any) -> Contender:
    """A step of a curvk.torch optimizer whose two losses differ, so that the update is applied.

    The contenders share a model, whose weights the others change: a new log begins, and with a step that is not timed,
    since the first one takes a checksum of the weights.
    """
    optimizer = kind(model, lr=LR, eps=EPS, **options)
    x, losses = torch.zeros(1), [1.0, 1.0 - 2 * EPS * GRADIENT]

    def closure() -> float:
        model(x)
        losses.reverse()
        return losses[0]

    def prepare() -> None:
        optimizer.restart()
        optimizer.step(closure)

    return Contender(name, lambda: optimizer.step(closure), prepare=prepare)


def kernels_step(parameters: list[Tensor], dist: str, fused: bool) -> Callable[[], None]:
    """The passes of a step by the kernels alone, in place: three, or two where the next probe rides on the update."""
    words = [noise.tensor_word(f"p{k}") for k in range(len(parameters))]
    tensors, coef = [p.data for p in parameters], -LR * GRADIENT
    keys: dict[str, Any] = {"seed": 1, "tensor": words, "dist": dist}

    def step() -> None:
        if not fused:
            noise.perturb_(tensors, scale=EPS, draw=0, **keys)
        noise.perturb_(tensors, scale=-2 * EPS, draw=0, **keys)
        ahead: dict[str, Any] = {"next_draw": 1, "next_scale": EPS} if fused else {}
        noise.restore_update_perturb_(tensors, draw=0, scale=-EPS, coef=coef, **ahead, **keys)

    return step


def step_rows(divisor: int) -> list[Contender]:
    """Whole steps; the first is what the others are compared with."""
    model = Skeleton(divisor)
    parameters = list(model.parameters())
    blocks = [list(b.parameters()) for b in model.blocks]
    rest = [*model.embeddings.parameters(), *model.norm.parameters()]
    kept = [*rest, *(p for b in blocks[:3] for p in b)]
    rows = [
        Contender("published operations, MeZO", reference(parameters)),
        Contender("published operations, 3 of 12 blocks", reference(kept)),
    ]
    for dist in ("normal", "normal_fast", "rademacher"):
        rows.append(Contender(f"kernels in place, {dist}, 3 passes", kernels_step(parameters, dist, fused=False)))
    fused = kernels_step(parameters, "normal", fused=True)
    rows.append(Contender("kernels in place, normal, 2 passes (next seed known)", fused))
    for restore in ("naive", "scratch", "copy", "grid"):
        for dist in ("normal", "rademacher"):
            name = f"MeZO, restore={restore}, {dist}"
            rows.append(torch_step(name, curvk.torch.MeZO, model, restore=restore, dist=dist))
    for drop in (0, 3, 6, 9, 12):
        rows.append(torch_step(f"LeZO, drop={drop}, restore=scratch, normal", curvk.torch.LeZO, model, drop=drop))
    return rows


def low_rank_rows(divisor: int) -> list[Contender]:
    """Whole steps with two forwards of one token, which read each matrix once; the first row is these alone.

    The bytes are those of weights and their buffers per parameter of a linear layer, by design, forwards excluded.
    """
    model = Layers(divisor)
    x = torch.zeros(1)
    steps: list[tuple[str, Any, dict[str, Any]]] = [
        ("MeZO, restore=scratch: 24 bytes", curvk.torch.MeZO, {}),
        ("MeZO, restore=copy: 32 bytes", curvk.torch.MeZO, {"restore": "copy"}),
        ("LOZO, restore=scratch: 24 bytes", curvk.torch.LOZO, {}),
        ("LOZO, restore=copy: 32 bytes", curvk.torch.LOZO, {"restore": "copy"}),
        ("LOZO, restore=lazy, no fold: 0 bytes", curvk.torch.LOZO, {"restore": "lazy", "interval": 1 << 20}),
        ("LOZO, restore=lazy, V and fold in each step: 8 bytes", curvk.torch.LOZO, {"restore": "lazy", "interval": 1}),
    ]
    return [
        Contender("two forwards", lambda: (model(x), model(x))),
        *(torch_step(name, kind, model, **options) for name, kind, options in steps),
    ]


def kernel_rows(n: int, seeds_n: int, threads: int) -> list[Contender]:
    """Single kernels on one array; the first is what the others are compared with."""
    p, z, q = np.zeros(n, np.float32), np.empty(n, np.float32), np.zeros(seeds_n, np.float32)
    generator = np.random.Generator(np.random.Philox(0))
    coefs = np.linspace(-1, 1, 64)

    def numpy_add() -> None:
        generator.standard_normal(out=z, dtype=np.float32)
        np.add(p, z, out=p)

    def seeds(k: int) -> Callable[[], None]:
        draws = list(range(k))
        return lambda: noise.axpy_seeds_(q, seed=1, draws=draws, coefs=coefs[:k], dist="rademacher")

    def perturb(dist: str) -> Callable[[], None]:
        return lambda: noise.perturb_(p, seed=1, scale=EPS, dist=dist)

    return [
        Contender("numpy Generator(Philox) normal + add", numpy_add),
        *(Contender(f"perturb_, {dist}", perturb(dist)) for dist in ("normal", "normal_fast", "rademacher")),
        *(Contender(f"axpy_seeds_, rademacher, K = {k}", seeds(k)) for k in (1, 64)),
        limits.traffic([p], ("rw",), threads),
    ]


def quartiles(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Of the ratios a / b, round by round."""
    low, middle, high = quantiles([x / y for x, y in zip(a, b, strict=True)], n=4, method="inclusive")
    return low, middle, high


def measure(rows: list[Contender], threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per step by name, one sample a round."""
    effort = Effort(rounds=rounds, sample=0.02, largest=0, models=(), probe_mib=0)
    return dict(zip((c.name for c in rows), take_turns(rows, effort, threads), strict=True))


def table(samples: dict[str, list[float]], first: str, elements: int) -> list[str]:
    lines = [f"  {'':54} {'ms':>8} {'ns/elem':>8}  {first} over it"]
    for name, seconds in samples.items():
        low, middle, high = quartiles(samples[first], seconds)
        lines.append(
            f"  {name:54} {median(seconds) * 1e3:8.1f} {median(seconds) / elements * 1e9:8.3f}  "
            f"{middle:6.2f} ({low:.2f} to {high:.2f})"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=f"1,{curvk.get_num_threads()}", help="thread counts (default: 1 and all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a model of an eighth")
    parser.add_argument("--json", type=Path, help="file for every sample")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*drift.*")
    divisor = 8 if arguments.quick else 1
    rows = step_rows(divisor)
    elements = sum(math.prod(p.shape) for p in Skeleton(divisor).parameters())
    n, seeds_n = (1_000_000, 1_000_000) if arguments.quick else (50_000_000, 20_000_000)
    result: dict[str, Any] = {"machine": machine(), "start": report.stamp(), "elements": elements, "threads": {}}
    with torch.no_grad():
        for threads in tqdm(sorted({int(t) for t in arguments.threads.split(",")}), unit="threads", disable=None):
            steps = measure(rows, threads, arguments.rounds)
            kernels = measure(kernel_rows(n, seeds_n, threads), threads, arguments.rounds)
            low_rank = measure(low_rank_rows(divisor), threads, arguments.rounds)
            result["threads"][threads] = {"steps": steps, "kernels": kernels, "low_rank": low_rank}
            print(f"\nNoise work of one step, {elements:,} float32 parameters, {threads} thread(s)")
            print("\n".join(table(steps, "published operations, MeZO", elements)))
            print(f"\nSteps with noise of rank 2, forwards of one token included, {threads} thread(s)")
            print("\n".join(table(low_rank, "two forwards", elements)))
            print(f"\nOne pass over {n:,} float32 (axpy_seeds_: {seeds_n:,}), {threads} thread(s)")
            print("\n".join(table(kernels, "numpy Generator(Philox) normal + add", n)))
            many, one = (kernels[f"axpy_seeds_, rademacher, K = {k}"] for k in (64, 1))
            share = quartiles(kernels["limit"], kernels["perturb_, rademacher"])[1]
            print(f"  64 seeds over one seed: {quartiles(many, one)[1]:.2f}; rademacher at {share:.2f} of the limit")
    result["end"] = report.stamp()
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
