"""The CUDA kernels on a device: share of its copy bandwidth, and time beside torch's.

python bench/cuda.py [--device cuda:0] [--rounds 20] [--quick] [--json FILE] [--markdown FILE]

Rows: AdamW on the 124 million parameters of GPT-2 small (fused and foreach torch, bitsandbytes where it is installed),
in float32 and with 8-bit states; Gaussian noise added in place; MeZO's three passes on 1.3 billion bfloat16 parameters;
a Gaussian kernel's product with 10 vectors at 64 features. Contenders take turns; times are those of CUDA events around
a step, after a warm-up. AdamW's float32 step and the product are compared with torch's first. `--device cpu` runs the
script's own logic on small arrays and says nothing about a device.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import curvk.torch
import torch
from curvk import _cuda
from curvk._bench import report
from curvk._bench.registry import MODELS, optional
from curvk._info import machine
from curvk.kernels import gram, noise
from torch import Tensor
from tqdm import tqdm

SMALL = 64  # what sizes are divided by in a quick run


@dataclass
class Row:
    """Steps that do the same, the bytes that one of them must move, and the ratio aimed at."""

    title: str
    steps: dict[str, Callable[[], object]]
    nbytes: float
    target: str
    times: dict[str, list[float]] = field(default_factory=dict)


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one step, by events on a device."""
    if device.type == "cpu":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3  # type: ignore[no-any-return]


def parameters(device: torch.device, divide: int) -> list[torch.nn.Parameter]:
    """Those of GPT-2 small, with gradients."""
    made = []
    for shape in MODELS["gpt2-small"]():
        size = (max(1, shape[0] // divide), *shape[1:])
        p = torch.nn.Parameter(0.02 * torch.randn(size, device=device))
        p.grad = 1e-3 * torch.randn_like(p)
        made.append(p)
    return made


def adamw(device: torch.device, divide: int) -> list[Row]:
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01}

    def first(make: Callable[..., Any], **more: Any) -> tuple[Callable[[], object], list[torch.nn.Parameter]]:
        torch.manual_seed(0)
        held = parameters(device, divide)
        optimizer = make(held, **options, **more)
        optimizer.step()
        return optimizer.step, held

    ours, own = first(curvk.torch.AdamW)
    fused, others = first(torch.optim.AdamW, fused=True)
    foreach, _ = first(torch.optim.AdamW, foreach=True)
    for p, q in zip(own, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    n = sum(p.numel() for p in own)
    torch_steps = {"torch fused": fused, "torch foreach": foreach}
    eight, _ = first(curvk.torch.AdamW, state_bits=8)
    rows = [
        Row("AdamW, float32", {"curvk": ours, **torch_steps}, 28.0 * n, "1.0 of torch fused, 0.85 of copy"),
        Row("AdamW, 8-bit", {"curvk": eight, **torch_steps}, 16.5 * n, "1.8 of torch fused"),
    ]
    if device.type == "cuda" and (bnb := optional("bitsandbytes")):
        rows[1].steps["bitsandbytes"] = first(bnb.optim.AdamW8bit)[0]
    return rows


def perturb(device: torch.device, divide: int) -> Row:
    p = torch.zeros(2**28 // divide**2, device=device)

    def with_torch() -> None:
        p.add_(torch.randn_like(p), alpha=1e-3)

    steps = {"curvk": lambda: noise.perturb_(p, seed=1, scale=1e-3, draw=1), "torch": with_torch}
    return Row("Gaussian noise in place, float32", steps, 8.0 * p.numel(), "0.7 of copy")


def mezo(device: torch.device, divide: int) -> Row:
    """The passes of a step of MeZO over the weights: theta + eps z, theta - eps z, theta - lr g z."""
    n = 1_300_000_000 // divide**2
    blocks = [torch.zeros(n // 24, dtype=torch.bfloat16, device=device) for _ in range(24)]
    words = list(range(24))

    def ours() -> None:
        noise.perturb_(blocks, seed=1, scale=1e-3, draw=1, tensor=words)
        noise.perturb_(blocks, seed=1, scale=-2e-3, draw=1, tensor=words)
        noise.restore_update_perturb_(blocks, seed=1, draw=1, scale=-1e-3, coef=1e-6, tensor=words)

    def with_torch() -> None:
        """What the published code does: the generator is seeded anew, one tensor of noise at a time."""
        for scale in (1e-3, -2e-3, 1e-3, 1e-6):  # it restores, then updates
            torch.manual_seed(1)
            for p in blocks:
                p.add_(torch.normal(0.0, 1.0, p.shape, device=device, dtype=p.dtype), alpha=scale)

    return Row("MeZO's passes, bfloat16", {"curvk": ours, "torch": with_torch}, 3 * 4.0 * n, "3 times torch")


def product(device: torch.device, divide: int) -> Row:
    n, m, d, c = 65_536 // divide, 16_384 // divide, 64, 10
    generator = torch.Generator(device).manual_seed(0)
    x, z = (torch.randn(k, d, device=device, generator=generator) for k in (n, m))
    w = torch.randn(m, c, device=device, generator=generator)
    centers = gram.Centers(z)

    def with_torch() -> Tensor:
        return torch.exp(torch.cdist(x, z).square_() * (-0.5 / 64)) @ w

    def ours() -> Any:
        return gram.matvec(x, centers, w, kernel="gaussian", bandwidth=8.0)

    ours_first, theirs = ours(), with_torch()
    if not torch.allclose(torch.as_tensor(ours_first), theirs, rtol=1e-3, atol=1e-3):
        raise AssertionError("the products differ")
    nbytes = 4.0 * (n * d + m * d + m * c + n * c)
    title = f"Gaussian product, {n} x {m}, d = 64, c = 10"
    return Row(title, {"curvk": ours, "torch": with_torch}, nbytes, "3 times torch")


def copies(device: torch.device, divide: int) -> tuple[Callable[[], object], float]:
    """A copy on the device, and its bytes, read and written: what the shares are of."""
    source = torch.randn(2**28 // divide**2, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 8.0 * source.numel()


def spread(values: list[float]) -> str:
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.2f} ({low:.2f}-{high:.2f})"


def table(rows: list[Row], copied: list[float], copy_bytes: float) -> list[str]:
    bandwidth = copy_bytes / median(copied)
    lines = [
        f"Copy: {bandwidth / 1e9:.0f} GB/s, read and written. Medians of the rounds (quartiles).",
        "",
        "| step | ms | share of copy | peer | its time over curvk's | aim |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = row.times["curvk"]
        share = row.nbytes / median(own) / bandwidth
        for peer in [name for name in row.steps if name != "curvk"]:
            ratio = spread([a / b for a, b in zip(row.times[peer], own, strict=True)])
            lines.append(f"| {row.title} | {1e3 * median(own):.3f} | {share:.2f} | {peer} | {ratio} | {row.target} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help=f"sizes divided by {SMALL}; implied by --device cpu")
    parser.add_argument("--json", type=Path, help="file for every sample")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench/cuda.py: torch finds no CUDA device; `curvk info` says what curvk finds", file=sys.stderr)
        return 1
    divide = SMALL if arguments.quick or device.type == "cpu" else 1
    copy, copy_bytes = copies(device, divide)
    copied: list[float] = []
    makers: list[Callable[[torch.device, int], Any]] = [adamw, perturb, mezo, product]
    rows: list[Row] = []
    with torch.no_grad():
        for make in tqdm(makers, disable=None):
            made = make(device, divide)
            group = made if isinstance(made, list) else [made]
            for row in group:
                for step in row.steps.values():
                    for _ in range(3):
                        step()
                for _ in range(arguments.rounds):
                    copied.append(timed(copy, device))
                    for name, step in row.steps.items():
                        row.times.setdefault(name, []).append(timed(step, device))
                rows.append(row)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    text = table(rows, copied, copy_bytes)
    print("\n".join(text))
    result = {"machine": machine(), "cuda": _cuda.report(), "torch": torch.__version__, "copy": copied}
    result |= {"copy_bytes": copy_bytes, "rows": {r.title: {"bytes": r.nbytes, **r.times} for r in rows}}
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    if arguments.markdown:
        report.write(arguments.markdown, lambda path: path.write_text("\n".join(text) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
