"""AdamW in fewer bytes on one array: every storage beside torch's fused steps and a loop that moves the same bytes.

python bench/sweep.py [--threads 1,2] [--elements 1e8] [--rounds 7] [--json FILE] [--markdown FILE]

Contenders take turns in one process, with a pause before each sample. The answers of the kernels are the registry's
business (`curvk bench --check-only --kernels adam_sweep8`).
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
from curvk._bench.registry import Contender, optional
from curvk._bench.runner import Effort, set_threads, take_turns
from curvk._bench.storage import sample
from curvk._info import machine
from curvk.kernels.optim import AdamPlan
from curvk.kernels.sweep import FORMATS, AdamSweepPlan, Codes
from tqdm import tqdm

STEP: dict[str, Any] = {"step": 5, "lr": 1e-3, "weight_decay": 0.01, "decoupled": True}
TORCH = "torch fused, all float32", "torch fused, all bfloat16"


def normal(n: int, fmt: str, scale: float) -> Any:
    return sample(n, fmt, np.random.default_rng(0), lambda rng, m: scale * rng.standard_normal(m))


def torch_adamw(p: Any, g: Any, module: Any = torch.optim.AdamW, **options: Any) -> Callable[[], object]:
    dtype = torch.bfloat16 if p.dtype == np.uint16 else torch.float32
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()).view(dtype))
    parameter.grad = torch.from_numpy(g).view(dtype)
    optimizer = module([parameter], lr=1e-3, **options)
    optimizer.step()
    return optimizer.step  # type: ignore[no-any-return]


class Rows:
    """Contenders by name, and the limit loop of each of curvk's."""

    def __init__(self, n: int) -> None:
        self.contenders: dict[str, Contender] = {}
        self.arrays: dict[str, tuple[list[Any], tuple[str, ...]]] = {}
        p, g = normal(n, "f32", 0.3), normal(n, "f32", 0.01)
        pb, gb = normal(n, "bf16", 0.3), normal(n, "bf16", 0.01)
        m, v, ema = np.zeros((3, n), np.float32)
        short, low, shadow = np.zeros((2, n), np.uint16), np.zeros(n, np.uint16), np.zeros(n, np.uint16)
        for name, (x, y) in zip(TORCH, ((p, g), (pb, gb)), strict=True):
            self.contenders[name] = Contender(name, torch_adamw(x, y, fused=True))
        self.add("float32, float32 moments", AdamPlan([p], [g], [m], [v]), [p, g, m, v])
        self.add("bf16 to nearest, float32 moments", AdamPlan([pb], [gb], [m], [v]), [pb, gb, m, v])
        wide = AdamSweepPlan([pb], [gb], [m], [v], low=[low])
        self.add("bf16 stochastic, float32 moments", wide, [pb, gb, m, v], rounding="stochastic")
        self.add("bf16 split16, float32 moments", wide, [pb, gb, m, v, low], rounding="split16")
        halves = AdamSweepPlan([pb], [gb], [short[0]], [short[1]])
        for how in ("nearest", "stochastic"):
            self.add(f"bf16 {how}, 16-bit moments", halves, [pb, gb, *short], rounding=how)
        for format, group in FORMATS.items():
            codes = [Codes(np.zeros(n, np.uint8), np.zeros(-(-n // group), np.float32), format) for _ in range(2)]
            held = [x for c in codes for x in c[:2]]
            eight = AdamSweepPlan([pb], [gb], [codes[0]], [codes[1]])
            title = "8-bit moments" if format == "curvk" else "bitsandbytes' 8-bit moments"
            for how in ("nearest", "stochastic") if format == "curvk" else ("stochastic",):
                self.add(f"bf16 {how}, {title}", eight, [pb, gb, *held], rounding=how)
            self.add(f"float32, {title}", AdamSweepPlan([p], [g], [codes[0]], [codes[1]]), [p, g, *held])
        for what, extra, options in (
            ("no option", {}, {}),
            ("an average", {"ema": [ema]}, {"ema_decay": 0.999}),
            ("a bf16 copy", {"shadow": [shadow]}, {}),
            ("zeroed gradients", {}, {"zero_grad": True}),
        ):
            arrays = [p, g, m, v, *(x[0] for x in extra.values())]
            self.add(f"sweep, {what}", AdamSweepPlan([p], [g], [m], [v], **extra), arrays, **options)
        if bnb := optional("bitsandbytes"):
            step = torch_adamw(p, g, bnb.optim.AdamW8bit)
            self.contenders["bitsandbytes AdamW8bit, float32"] = Contender("bitsandbytes", step)

    def add(self, name: str, plan: Any, arrays: list[Any], **options: Any) -> None:
        if isinstance(plan, AdamSweepPlan):
            options["draw"] = 5
        uses = tuple("w" if name.endswith("copy") and k == 4 else "r" if k == 1 else "rw" for k in range(len(arrays)))
        if options.get("zero_grad"):
            uses = ("rw", "rw", *uses[2:])
        self.arrays[name] = arrays, uses
        self.contenders[name] = Contender(name, lambda: plan.step(**STEP, **options))

    def bytes_of(self, name: str, n: int) -> float:
        arrays, uses = self.arrays[name]
        return sum(x.nbytes * len(use) for x, use in zip(arrays, uses, strict=True)) / n

    def limit(self, name: str, threads: int) -> Contender:
        return limits.traffic(*self.arrays[name], threads)


def ratio(over: list[float], under: list[float]) -> str:
    """The median of the rounds' ratios, and their quartiles."""
    found = [a / b for a, b in zip(over, under, strict=True)]
    low, _, high = quantiles(found, n=4)
    return f"{median(found):.2f} ({low:.2f}-{high:.2f})"


def table(rows: Rows, n: int, taken: dict[str, list[float]], threads: int) -> list[str]:
    lines = [
        f"{n:,} parameters, {threads} thread(s); torch's time over curvk's, median of the rounds' ratios (quartiles):",
        "",
        "| AdamW | bytes | ns per parameter | share of the limit | torch fused f32 over it | torch bf16 over it |",
        "|---|---|---|---|---|---|",
    ]
    for name in rows.contenders:
        own = taken[name]
        cells = [name, "", f"{median(own) / n * 1e9:.2f}", "", *(ratio(taken[t], own) for t in TORCH)]
        if name in rows.arrays:
            cells[1] = f"{rows.bytes_of(name, n):g}"
            cells[3] = f"{median(taken[f'limit of {name}']) / median(own):.0%}"
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=f"1,{curvk.get_num_threads()}", help="thread counts (default: 1 and all)")
    parser.add_argument("--elements", type=float, default=1e8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for every sample")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    arguments = parser.parse_args()
    n = int(arguments.elements)
    effort = Effort(rounds=arguments.rounds, sample=0.02, largest=0, models=(), probe_mib=0)
    rows = Rows(n)
    result: dict[str, Any] = {"machine": machine(), "start": report.stamp(), "elements": n, "threads": {}}
    text: list[str] = []
    for threads in tqdm(sorted({int(t) for t in arguments.threads.split(",")}), disable=None):
        set_threads(threads)
        torch.set_num_threads(threads)
        contenders = dict(rows.contenders)
        for name in rows.arrays:
            contenders[f"limit of {name}"] = rows.limit(name, threads)
        with torch.no_grad():
            taken = dict(zip(contenders, take_turns(list(contenders.values()), effort, threads), strict=True))
        result["threads"][threads] = taken
        text += [*table(rows, n, taken, threads), ""]
    print("\n".join(text))
    result["end"] = report.stamp()
    if arguments.json:
        report.write(arguments.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    if arguments.markdown:
        report.write(arguments.markdown, lambda path: path.write_text("\n".join(text)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
