"""What Alice and SAM cost besides their gradients, beside the same steps by torch operations and loops of equal bytes.

python bench/curvature.py [--threads 1,2] [--rounds 5] [--quick] [--json FILE]

GPT-2 small's shapes in float32, gradients that are there already. Contenders take turns in one process, with a pause
before each sample; their answers are compared first.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import curvk
import curvk.torch
import numpy as np
import torch
from curvk._bench import limits, report
from curvk._bench.registry import MODELS, Contender
from curvk._bench.runner import Effort, set_threads, take_turns
from curvk._info import machine
from curvk.kernels.curvature import AlicePlan, alice_lookahead, sam_perturb_
from curvk.kernels.optim import AdamPlan, global_norm
from torch import Tensor, nn
from tqdm import tqdm

ALICE: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "beta3": 0.996, "lr_max": 2e-3, "phi": 0.1, "omega": 1.0}
SIGMA, EPS, RHO, LR, DECAY = 1e-3, 1e-8, 0.05, 1e-3, 0.01
Tensors = list[Tensor]


def shapes(quick: bool) -> list[tuple[int, ...]]:
    found = MODELS["gpt2-small"]()
    return [(max(1, s[0] // 8), *s[1:]) for s in found] if quick else found


def tensors(of: Sequence[tuple[int, ...]], scale: float, seed: int, positive: bool = False) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    made = [scale * torch.randn(s, generator=generator) for s in of]
    return [x.abs() for x in made] if positive else made


def together(name: str, parts: Sequence[Contender]) -> Contender:
    """Contenders one after the other, as one."""

    def step() -> None:
        for part in parts:
            part.step()

    return Contender(name, step)


# ---- Alice ----------------------------------------------------------------------------------------------------------


class AliceArrays:
    """A model's tensors in the middle of training with Alice."""

    def __init__(self, of: Sequence[tuple[int, ...]]) -> None:
        self.p, self.g = tensors(of, 0.02, 0), tensors(of, 1e-3, 1)
        self.probes = tensors(of, 1e-3, 2), tensors(of, 1e-3, 3)
        self.exp_avg, self.hessian = tensors(of, 1e-3, 4), tensors(of, 1e-3, 5)
        self.glass, self.exp_avg_sq = tensors(of, 1e-6, 6, True), tensors(of, 1e-6, 7, True)
        self.center, self.lookahead = [x.clone() for x in self.p], [x + 1e-3 for x in self.p]

    @property
    def states(self) -> tuple[Tensors, ...]:
        return self.exp_avg, self.glass, self.hessian, self.exp_avg_sq, self.center, self.lookahead

    def kernels(self, sample: bool) -> Callable[[], None]:
        plan = AlicePlan(self.p, self.g, *self.states, *(self.probes if sample else ()))
        words = list(range(len(self.p)))

        def step() -> None:
            for scale in (SIGMA, -SIGMA, 0.0) if sample else (0.0,):
                alice_lookahead(self.p, self.lookahead, scale=scale, tensor=words)
            plan.step(sigma=SIGMA, eps=EPS, **ALICE)

        return step

    def foreach(self, sample: bool) -> Callable[[], None]:
        """The same step by torch's multi-tensor operations."""
        p, g, (up, down) = self.p, self.g, self.probes
        exp_avg, glass, hessian, exp_avg_sq, center, lookahead = self.states
        b1, b2, b3 = (ALICE[k] for k in ("beta1", "beta2", "beta3"))

        def step() -> None:
            if sample:
                z = [torch.empty_like(x).bernoulli_().mul_(2).sub_(1) for x in p]
                for sign in (1, -1):
                    torch._foreach_copy_(p, lookahead)
                    torch._foreach_add_(p, z, alpha=sign * SIGMA)
                del z
            torch._foreach_copy_(p, lookahead)
            if sample:
                jump = torch._foreach_add(up, down)
                torch._foreach_mul_(jump, 0.5)
                torch._foreach_sub_(jump, g)
                torch._foreach_mul_(jump, jump)
                torch._foreach_mul_(jump, 2 / SIGMA)
                torch._foreach_lerp_(glass, jump, 1 - b3)
                del jump
                rise, fall = torch._foreach_sub(up, g), torch._foreach_sub(down, g)
                torch._foreach_mul_(rise, fall)
                torch._foreach_mul_(rise, -1 / SIGMA**2)
                torch._foreach_lerp_(hessian, rise, 1 - b3)
                del rise, fall
            torch._foreach_lerp_(exp_avg_sq, torch._foreach_mul(g, g), 1 - b2)
            torch._foreach_lerp_(exp_avg, g, 1 - b1)
            step = torch._foreach_abs(exp_avg)
            torch._foreach_add_(step, EPS)
            k = torch._foreach_mul(glass, 3 / (4 * math.pi))
            h = torch._foreach_clamp_min(hessian, 0.0)
            torch._foreach_sqrt_(h)
            torch._foreach_mul_(h, step)
            d = torch._foreach_add(k, h, alpha=2)
            torch._foreach_mul_(d, k)
            torch._foreach_sqrt_(d)
            torch._foreach_add_(d, k)
            torch._foreach_add_(d, h)
            torch._foreach_add_(d, step, alpha=EPS)
            torch._foreach_div_(step, d)
            del k, h, d
            bound = torch._foreach_sqrt(exp_avg_sq)
            torch._foreach_add_(bound, EPS)
            torch._foreach_reciprocal_(bound)
            torch._foreach_mul_(bound, ALICE["lr_max"])
            torch._foreach_minimum_(step, bound)
            torch._foreach_mul_(step, exp_avg)
            torch._foreach_copy_(lookahead, center)
            torch._foreach_add_(lookahead, step, alpha=-ALICE["omega"])
            torch._foreach_add_(center, step, alpha=-ALICE["phi"])
            torch._foreach_copy_(p, center)

        return step


def alice_limit(n: int, sample: bool, threads: int) -> Contender:
    """Loops that move 80 bytes a parameter at a sample step, 48 at a quick one: the least that the algorithm allows."""
    x = [np.zeros(n, np.float32) for _ in range(9 if sample else 7)]
    # g, (g_plus, g_minus,) then exp_avg, exp_avg_sq, center, glass and hessian, and the look-ahead point
    uses = ("r",) * 3 + ("rw",) * 5 + ("w",) if sample else ("r",) * 3 + ("rw",) * 3 + ("w",)
    copies = [limits.traffic([x[-1], x[0]], ("r", "w"), threads)] * (3 if sample else 1)
    return together("limit", [*copies, limits.traffic(x, uses, threads)])


def alice_rows(of: Sequence[tuple[int, ...]], sample: bool, threads: int) -> list[Contender]:
    arrays, n = AliceArrays(of), sum(map(math.prod, of))
    return [
        Contender("kernels", arrays.kernels(sample)),
        alice_limit(n, sample, threads),
        Contender("torch foreach", arrays.foreach(sample)),
    ]


def check_alice(sample: bool) -> None:
    a, b = (AliceArrays([(50, 7), (33,)]) for _ in range(2))
    a.kernels(sample)()
    b.foreach(sample)()
    for x, y in zip((a.p, *a.states), (b.p, *b.states), strict=True):
        for u, v in zip(x, y, strict=True):
            # Differences cancel, so the last bits of the largest element decide.
            torch.testing.assert_close(u, v, rtol=1e-4, atol=1e-6 * float(v.abs().max()))


# ---- SAM ------------------------------------------------------------------------------------------------------------


class Model:
    """Parameters with two gradients each, the first made anew for each step as backward does."""

    def __init__(self, of: Sequence[tuple[int, ...]]) -> None:
        self.p = [nn.Parameter(x) for x in tensors(of, 0.02, 0)]
        self.first, self.second = tensors(of, 1e-3, 1), tensors(of, 1e-3, 2)

    def install(self, fresh: bool) -> None:
        for p, g in zip(self.p, self.first if fresh else self.second, strict=True):
            p.grad = g.clone() if fresh else g


def sam_curvk(model: Model) -> Contender:
    base = curvk.torch.AdamW(model.p, lr=LR, weight_decay=DECAY)
    optimizer = curvk.torch.SAM(base, rho=RHO)

    def step() -> None:
        optimizer.perturb_()
        model.install(fresh=False)
        optimizer.restore_and_step()

    return Contender("curvk.torch.SAM(AdamW)", step, prepare=lambda: model.install(fresh=True))


def sam_kernels(model: Model) -> Contender:
    p, g, second = [x.data for x in model.p], [x.clone() for x in model.first], model.second
    m, v = [torch.zeros_like(x) for x in p], [torch.zeros_like(x) for x in p]
    plan = AdamPlan(p, second, m, v, origin=g)

    def step() -> None:
        scale = RHO / (global_norm(g) + 1e-12)
        sam_perturb_(p, g, scale=scale)
        plan.step(step=2, lr=LR, weight_decay=DECAY, decoupled=True)

    def prepare() -> None:
        for x, y in zip(g, model.first, strict=True):
            x.copy_(y)

    return Contender("kernels", step, prepare=prepare)


def sam_foreach(model: Model) -> Contender:
    """Saved copies and multi-tensor operations, then torch's fused AdamW."""
    base = torch.optim.AdamW(model.p, lr=LR, weight_decay=DECAY, fused=True)

    @torch.no_grad()
    def step() -> None:
        grads = [p.grad for p in model.p]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        saved = [p.clone() for p in model.p]
        torch._foreach_add_(model.p, torch._foreach_mul(grads, RHO / (norm + 1e-12)))
        model.install(fresh=False)
        torch._foreach_copy_(model.p, saved)
        base.step()

    return Contender("torch foreach, fused AdamW", step, prepare=lambda: model.install(fresh=True))


def sam_loop(model: Model) -> Contender:
    """The loop that is commonly copied: a clone of each parameter, temporaries, and torch's default AdamW."""
    base = torch.optim.AdamW(model.p, lr=LR, weight_decay=DECAY)

    @torch.no_grad()
    def step() -> None:
        norm = torch.norm(torch.stack([(1.0 * p.grad).norm(p=2) for p in model.p]), p=2)
        scale, old = RHO / (norm + 1e-12), {}
        for p in model.p:
            old[p] = p.data.clone()
            p.add_(1.0 * p.grad * scale.to(p))
        model.install(fresh=False)
        for p in model.p:
            p.data.copy_(old[p])
        base.step()

    return Contender("clone-and-copy loop", step, prepare=lambda: model.install(fresh=True))


def sam_limit(n: int, threads: int) -> Contender:
    """Loops that move SAM's 48 bytes a parameter with AdamW's step."""
    x = [np.zeros(n, np.float32) for _ in range(5)]
    step = limits.traffic(x, ("w", "r", "r", "rw", "rw"), threads)
    norm, swap = limits.traffic(x[:1], ("r",), threads), limits.traffic(x[:2], ("rw", "rw"), threads)
    return together("limit", [norm, swap, step])


def sam_rows(of: Sequence[tuple[int, ...]], threads: int) -> list[Contender]:
    model, n = Model(of), sum(map(math.prod, of))
    return [
        sam_curvk(model),
        sam_kernels(model),
        sam_limit(n, threads),
        sam_foreach(model),
        sam_loop(model),
    ]


def check_sam() -> None:
    """Two steps give what torch's operations give."""
    models = [Model([(50, 7), (33,)]) for _ in range(3)]
    for model, made in zip(models, (sam_curvk, sam_foreach, sam_loop), strict=True):
        contender = made(model)
        for _ in range(2):
            assert contender.prepare is not None
            contender.prepare()
            contender.step()
    for other in models[1:]:
        for p, q in zip(models[0].p, other.p, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------------------------------------------------------------


def table(samples: dict[str, list[float]], elements: int, bytes_: int) -> list[str]:
    first, *_ = samples
    lines = [f"  {'':30} {'ms':>9} {'ns/elem':>8} {'GB/s':>6}  time over that of {first}"]
    for name, seconds in samples.items():
        ratios = [x / y for x, y in zip(seconds, samples[first], strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        each = median(seconds) / elements * 1e9
        lines.append(
            f"  {name:30} {median(seconds) * 1e3:9.1f} {each:8.3f} {bytes_ / each:6.1f}"
            f"  {middle:5.2f} ({low:.2f} to {high:.2f})"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=f"1,{curvk.get_num_threads()}", help="thread counts (default: 1 and all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a model of an eighth")
    parser.add_argument("--json", type=Path, help="file for every sample")
    arguments = parser.parse_args()
    of = shapes(arguments.quick)
    elements = sum(map(math.prod, of))
    effort = Effort(rounds=arguments.rounds, sample=0.02, largest=0, models=(), probe_mib=0)
    check_sam()
    for sample in (True, False):
        check_alice(sample)
    result: dict[str, Any] = {"machine": machine(), "start": report.stamp(), "elements": elements, "threads": {}}
    parts: dict[str, tuple[int, Callable[[int], list[Contender]]]] = {
        "SAM with AdamW": (48, lambda threads: sam_rows(of, threads)),
        "Alice, sample step": (80, lambda threads: alice_rows(of, True, threads)),
        "Alice, quick step": (48, lambda threads: alice_rows(of, False, threads)),
    }
    counts = sorted({int(t) for t in arguments.threads.split(",")})
    with tqdm(total=len(counts) * len(parts), disable=None) as bar:
        for threads in counts:
            set_threads(threads)
            for name, (bytes_, rows) in parts.items():
                contenders = rows(threads)
                with torch.no_grad():
                    taken = take_turns(contenders, effort, threads)
                samples = dict(zip((c.name for c in contenders), taken, strict=True))
                result["threads"].setdefault(threads, {})[name] = samples
                print(f"\n{name}: {bytes_} bytes each for {elements:,} float32 parameters, {threads} thread(s)")
                print("\n".join(table(samples, elements, bytes_)))
                del contenders
                bar.update()
    result["end"] = report.stamp()
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
