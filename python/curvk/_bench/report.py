"""What a benchmark run says: the table, and the JSON with every sample."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from .. import _store
from .runner import Result

MARKS = {"win": "+", "tie": "=", "loss": "-"}


def verdict(result: Result, peer: str) -> str:
    """A win or a loss only where the quartiles of the ratio lie on one side of 1."""
    low, _, high = result.ratio(peer)
    return "win" if low > 1 else "loss" if high < 1 else "tie"


def peers(result: Result) -> list[str]:
    """Who curvk is compared with; not the limit, nor curvk itself in another form."""
    return [name for name in result.samples if name != result.ours and name != "limit" and not name.startswith("curvk")]


def _number(x: float) -> str:
    return f"{x:.3g}" if x < 100 else f"{x:,.0f}"


def _ratio(result: Result, name: str) -> str:
    low, middle, high = result.ratio(name)
    text = f"{_number(middle)} ±{(high - low) / 2 / middle:.0%}"
    return f"{text} {MARKS[verdict(result, name)]}"


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _section(title: str, results: list[Result]) -> list[str]:
    names = list(dict.fromkeys(name for r in results for name in r.samples if name not in (r.ours, "limit")))
    rows = [["format", "elements", "threads", "ns/elem", "GB/s", "of limit", *names]]
    for r in results:
        share = f"{r.ratio('limit')[1]:.0%}" if "limit" in r.samples else ""
        ratios = [_ratio(r, name) if name in r.samples else "" for name in names]
        cells = [r.format, r.what, str(r.threads), _number(r.ns(r.ours)), _number(r.gbs(r.ours)), share]
        rows.append([*cells, *ratios])
    first = results[0]
    cost = f"{first.bytes_per_element:g} B, {first.flops_per_element} flops per {first.format} element"
    notes = [f"  note: {note}" for note in dict.fromkeys(note for r in results for note in r.notes)]
    return [
        f"{title}  ({cost}; level {first.level}; {first.ours})",
        *(f"  {line}" for line in _columns(rows)),
        *notes,
        "",
    ]


def table(results: Iterable[Result]) -> str:
    """All results, a section for each kernel and variant."""
    sections: dict[tuple[str, str, bool], list[Result]] = {}
    for r in results:
        sections.setdefault((r.op, r.variant, r.what.replace(",", "").isdigit()), []).append(r)
    lines = []
    for (op, variant, single), group in sections.items():
        title = op if variant == "default" else f"{op}, {variant}"
        lines += _section(title if single else f"{title}, a model's list of arrays", group)
    return "\n".join(lines)


def legend(results: Iterable[Result]) -> str:
    counts = {"win": 0, "tie": 0, "loss": 0}
    for r in results:
        for peer in peers(r):
            counts[verdict(r, peer)] += 1
    return (
        "Columns on the right: time over curvk's, the median of the rounds' ratios ± half their quartile range;\n"
        "+ curvk is faster, - slower, = the quartiles straddle 1. `of limit`: a plain loop that moves the same bytes,\n"
        "timed in the same rounds, over curvk's time.\n"
        f"Against peers: {counts['win']} wins, {counts['tie']} ties, {counts['loss']} losses."
    )


def machine_lines(machine: dict[str, Any]) -> list[str]:
    lines = []
    for threads, rates in machine["bandwidth_GB_s"].items():
        gflops = machine["sgemm_GFLOP_s"].get(threads)
        text = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        lines.append(f"{threads} thread(s), GB/s: {text}" + (f"; sgemm {gflops:.0f} GFLOP/s" if gflops else ""))
    return lines


def extra_lines(extras: dict[str, Any]) -> list[str]:
    lines = []
    if call := extras.get("call_overhead"):
        lines.append(
            f"Overhead at 1,000 elements: adam_step {call['overhead_us']:.2f} us (call {call['adam_step_us']:.2f}, "
            f"kernel {call['kernel_us']:.2f}), AdamPlan.step {call['plan_overhead_us']:.2f} us, "
            f"cffi {call['cffi_overhead_us']:.2f} us"
        )
    if z := extras.get("adamz"):
        lines.append(f"AdamZ, 1,000 elements: {z['extra_us']:+.2f} us per step over Adam's {z['adam_us']:.2f} us")
    if imports := extras.get("import"):
        heavy = f"; it pulls in {', '.join(imports['heavy_modules'])}" if imports["heavy_modules"] else ""
        ours, theirs = (median(imports[k]) * 1e3 for k in ("curvk_s", "numpy_s"))
        lines.append(f"`import curvk`: {ours:.1f} ms on top of NumPy's {theirs:.1f} ms{heavy}")
    return lines


def document(
    machine: dict[str, Any], results: Iterable[Result], extras: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """What ran where, every sample in seconds per step, and what follows from them."""
    rows = []
    for r in results:
        ratios = {
            name: dict(zip(("q1", "median", "q3"), r.ratio(name), strict=True)) for name in r.samples if name != r.ours
        }
        row = {**r.as_json(), "ns_per_element": r.ns(r.ours), "GB_s": r.gbs(r.ours), "time_over_curvk": ratios}
        rows.append({**row, "verdicts": {peer: verdict(r, peer) for peer in peers(r)}})
    return {"machine": machine, "settings": settings, "rows": rows, "extras": extras}


def dumps(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Calls save(temporary path) and renames the file, so that nobody meets half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _store.replace(path, save)


def busy(machine: dict[str, Any]) -> str:
    """A warning where other work was running when the benchmark began, or nothing."""
    load, cpus = machine["load_average"], machine["machine"]["cpus"] or 1
    if load is None or load[0] < 0.5 * cpus:
        return ""
    return f"This machine is busy (load average {load[0]:.1f} on {cpus} CPUs): the figures below are not to be trusted."


def stamp() -> dict[str, Any]:
    """The date and what else runs on the machine."""
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "load_average": load}
