"""Writes the performance page's tables and figures from the stored results.

    python docs/make_performance.py            # docs/_performance_*.md and docs/images/{roofline,peers,models}.png
    python docs/make_performance.py --tables   # the tables alone

Of each kind of result the newest under bench/results/ is used: `bench.json` from `curvk bench --out`, the others from
the scripts in bench/. Nothing is measured, and nothing but the results decides what stands where: a row that lost is
listed like one that won.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
FLAGS = "-O3 -fno-math-errno -ffp-contract=off -fno-trapping-math"
MODELS = {
    "1000x1000": "1,000 of 1,000",
    "resnet50": "ResNet-50",
    "gpt2-small": "GPT-2 small",
}
VARIANTS = {"adamw": "AdamW", "adam": "Adam", "amsgrad": "AMSGrad"}
PEERS = {"numpy": "NumPy in place", "numpy in blocks": "NumPy in blocks", "numba": "Numba, fast-math"}


class Ratio(NamedTuple):
    """A peer's time over curvk's: the median of the rounds' ratios and their quartiles."""

    low: float
    middle: float
    high: float

    @property
    def verdict(self) -> str:
        return "win" if self.low > 1 else "loss" if self.high < 1 else "tie"

    def __str__(self) -> str:
        # The word joiner keeps a browser from breaking the line behind the dash.
        text = f"{number(self.middle)} ({number(self.low)}–\u2060{number(self.high)})"
        return f"**{text}**" if self.verdict == "loss" else text


class Duel(NamedTuple):
    """What was compared with whom, on how many threads."""

    subject: str
    what: str
    peer: str
    threads: int
    ratio: Ratio


def number(x: float) -> str:
    return f"{x:,.0f}" if x >= 99.5 else f"{x:.1f}" if x >= 9.95 else f"{x:.2f}"


def ratio(peer: list[float], ours: list[float]) -> Ratio:
    return Ratio(*quantiles([a / b for a, b in zip(peer, ours, strict=True)], n=4, method="inclusive"))


def newest(name: str, results: Path) -> Path:
    """The file of this name in the folder with the latest date."""
    return max(results.glob(f"*/{name}.json"), key=lambda path: (path.parent.name[:10], path.parent.name))


def table(head: list[str], rows: list[list[str]], right: int) -> str:
    """A Markdown table whose columns from `right` on are aligned to the right."""
    rule = ["---" if k < right else "--:" for k in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


# ---- the registry's run ---------------------------------------------------------------------------------------------


def size(n: int) -> str:
    return f"{n // 10**6} M" if n % 10**6 == 0 and n else f"{n:,}"


def row_name(row: dict[str, Any]) -> str:
    return MODELS.get(row["what"]) or f"{row['format']}, {size(row['n'])}"


def section(row: dict[str, Any]) -> str:
    name = VARIANTS.get(row["variant"], row["variant"]) if row["op"] == "adam_step" else f"`{row['op']}`"
    if row["op"] != "adam_step" and row["variant"] != "default":
        name += f", {row['variant']}"
    return f"{name}, all tensors of a model" if row["what"] in MODELS else f"{name}, one array"


def ours(row: dict[str, Any]) -> str:
    return next(iter(row["samples"]))


def is_peer(name: str) -> bool:
    return name != "limit" and not name.startswith("curvk")


def bench_duels(bench: dict[str, Any]) -> Iterator[Duel]:
    for row in bench["rows"]:
        own = row["samples"][ours(row)]
        for peer in filter(is_peer, row["samples"]):
            found = ratio(row["samples"][peer], own)
            yield Duel(section(row), row_name(row), PEERS.get(peer, peer), row["threads"], found)


def run_text(bench: dict[str, Any], path: Path) -> str:
    machine = bench["machine"]
    hardware, limits = machine["machine"], machine["limits"]
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("numpy", "numba", "torch"))
    caches = ", ".join(f"L{c['level']} {c['size']}" for c in hardware["caches"])
    before, after = machine["load_average"], machine["load_average_after"]
    built = re.sub(r"GCC: \((.*)\) ([\d.]+)", r"GCC \2 (\1)", machine["library_built_with"])
    probes = list(limits["bandwidth_GB_s"]["1"])
    speeds = []
    for threads, rates in limits["bandwidth_GB_s"].items():
        cells = [f"{rates[k]:.1f} GB/s" if k in rates else "" for k in probes]
        speeds.append([threads, *cells, f"{limits['sgemm_GFLOP_s'][threads]:.0f} GFLOP/s"])
    lines = [
        f"{hardware['model']}, {hardware['cpus']} CPUs ({hardware['architecture']}; {caches}); level "
        f"{machine['simd']['level']}, threads {' and '.join(map(str, bench['settings']['threads']))}; built with "
        f"{built}, `{FLAGS}`; curvk {machine['version']}, Python "
        f"{machine['python']['version']}, {packages}; {machine['date'][:10]}, {bench['settings']['rounds']} rounds, "
        f"load average {before[0]:.1f} before and {after[0]:.1f} after. Every sample: "
        f"`{path.relative_to(path.parents[3]).as_posix()}`.",
        "",
        table(["threads", *probes, "sgemm"], speeds, 1),
    ]
    return "\n".join(lines)


def ratios_text(bench: dict[str, Any]) -> str:
    """A table for each variant and thread count."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in bench["rows"]:
        groups.setdefault((section(row), row["threads"]), []).append(row)
    text = []
    order = {title: k for k, title in enumerate(dict.fromkeys(title for title, _ in groups))}
    for (title, threads), rows in sorted(groups.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        names = list(dict.fromkeys(name for row in rows for name in row["samples"]))
        shown = [n for n in names if is_peer(n) or n.startswith("curvk.")]
        body = []
        for row in rows:
            own = row["samples"][ours(row)]
            cells = [str(ratio(row["samples"][name], own)) if name in row["samples"] else "" for name in shown]
            share = f"{ratio(row['samples']['limit'], own).middle:.0%}" if "limit" in row["samples"] else ""
            ns = number(median(own) / row["n"] * 1e9)
            body.append([row_name(row).replace(" ", "\u00a0"), ns, share, *cells])
        name = "" if ours(rows[0]) == "curvk" else f" ({ours(rows[0])})"
        head = ["", "ns each", "of the limit", *(PEERS.get(n, n) for n in shown)]
        text += [f"**{title}, {heads([threads])[0]}**{name}", "", table(head, body, 1), ""]
    return "\n".join(text).rstrip()


def traffic_text(bench: dict[str, Any]) -> str:
    """What a kernel moves by its declaration, and how fast, on the longest arrays of each format."""
    longest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in bench["rows"]:
        key = row["op"], row["variant"], row["format"], row["threads"]
        if row["what"] not in MODELS and (key not in longest or row["n"] > longest[key]["n"]):
            longest[key] = row
    body = []
    for row in longest.values():
        seconds = median(row["samples"][ours(row)])
        rate = row["n"] * row["bytes_per_element"] / seconds / 1e9
        share = ratio(row["samples"]["limit"], row["samples"][ours(row)]) if "limit" in row["samples"] else None
        limit = f"{share.middle:.0%} ({share.low:.0%}–\u2060{share.high:.0%})" if share else ""
        intensity = row["flops_per_element"] / row["bytes_per_element"]
        name = f"{VARIANTS.get(row['variant'], row['variant'])}, {row['format']}"
        if row["op"] != "adam_step":
            name = f"`{row['op']}`, {name}"
        cells = [f"{row['bytes_per_element']:g}", str(row["flops_per_element"]), f"{intensity:.2f}", size(row["n"])]
        body.append([name.replace(" ", "\u00a0"), *cells, str(row["threads"]), f"{rate:.1f}", limit])
    head = ["", "bytes", "operations", "operations per byte", "elements", "threads", "GB/s", "share of the limit loop"]
    return table(head, body, 1)


# ---- the scripts of one subject -------------------------------------------------------------------------------------


def curvature(data: dict[str, Any]) -> Iterator[Duel]:
    for threads, titles in data["threads"].items():
        for title, taken in titles.items():
            first = next(iter(taken))
            for peer in [name for name in taken if name not in (first, "kernels", "limit")]:
                yield Duel("SAM and Alice", title, peer, int(threads), ratio(taken[peer], taken[first]))


def sweep(data: dict[str, Any]) -> Iterator[Duel]:
    for threads, taken in data["threads"].items():
        for name, own in taken.items():
            if name.startswith(("torch", "limit", "bitsandbytes")):
                continue
            fused = f"torch fused, all {'bfloat16' if name.startswith('bf16') else 'float32'}"
            for peer in (fused, "bitsandbytes AdamW8bit, float32"):
                if peer == fused or ("8-bit" in name and name.startswith("float32")):
                    label = peer.removesuffix(", float32")
                    yield Duel("AdamW in fewer bytes", name, label, int(threads), ratio(taken[peer], own))


def gram(data: dict[str, Any]) -> Iterator[Duel]:
    for threads, products in data["threads"].items():
        for title, taken in products.items():
            if not title.startswith("product"):
                continue
            for name in ("gaussian", "laplacian"):
                for peer in ("numpy", "torch", "scikit-learn"):
                    what = f"{name}, {title.removeprefix('product, ')}"
                    yield Duel("Gram products", what, peer, int(threads), ratio(taken[peer], taken[name]))


def zeroth(data: dict[str, Any]) -> Iterator[Duel]:
    for threads, found in data["threads"].items():
        steps = found["steps"]
        published = {"MeZO": "published operations, MeZO", "LeZO": "published operations, 3 of 12 blocks"}
        for name, own in steps.items():
            if name.startswith("MeZO") or "drop=9" in name:
                peer = published[name[:4]]
                yield Duel("MeZO and LeZO, noise work", name, peer, int(threads), ratio(steps[peer], own))


def online(data: dict[str, Any]) -> Iterator[Duel]:
    for title, taken in data["rows"].items():
        for peer in [name for name in taken if name != "curvk"]:
            yield Duel("FORKS", title, peer, 1, ratio(taken[peer], taken["curvk"]))


SUBJECTS: dict[str, Callable[[dict[str, Any]], Iterator[Duel]]] = {
    "curvature": curvature,
    "sweep": sweep,
    "gram": gram,
    "zeroth": zeroth,
    "online": online,
}


def by_threads(duels: list[Duel]) -> tuple[list[int], list[tuple[Duel, list[str]]]]:
    """The thread counts, and for each comparison its first duel and a cell for each count."""
    counts = sorted({d.threads for d in duels})
    rows: dict[tuple[str, str, str], dict[int, Duel]] = {}
    for d in duels:
        rows.setdefault(d[:3], {})[d.threads] = d
    cells = [[str(row[t].ratio) if t in row else "" for t in counts] for row in rows.values()]
    return counts, [(next(iter(row.values())), c) for row, c in zip(rows.values(), cells, strict=True)]


def heads(counts: list[int]) -> list[str]:
    return [f"{t} thread{'' if t == 1 else 's'}" for t in counts]


def subjects_text(found: dict[str, tuple[Path, dict[str, Any], list[Duel]]]) -> str:
    text = []
    for name, (path, data, duels) in found.items():
        counts, rows = by_threads(duels)
        machine, start = data["machine"], data["start"]
        title = (
            f"**{duels[0].subject}**: `bench/{name}.py` on {machine['model']}, {machine['cpus']} CPUs, "
            f"{start['date'][:10]}, load average {start['load_average'][0]:.1f}, "
            f"`bench/results/{path.parent.name}/{path.name}`"
        )
        body = [[d.what, d.peer, *cells] for d, cells in rows]
        text += [title, "", table(["", "against", *heads(counts)], body, 2), ""]
    return "\n".join(text).rstrip()


def losses_text(duels: list[Duel]) -> str:
    """Counts, and every comparison of which a row's quartiles lie below 1, the worst first."""
    counts = {v: sum(d.ratio.verdict == v for d in duels) for v in ("win", "tie", "loss")}
    worst: dict[tuple[str, str, str], float] = {}
    for d in duels:
        if d.ratio.verdict == "loss":
            worst[d[:3]] = min(d.ratio.middle, worst.get(d[:3], 1.0))
    threads, rows = by_threads([d for d in duels if d[:3] in worst])
    rows.sort(key=lambda row: (worst[row[0][:3]], row[0][:3]))
    body = [[f"{d.subject}: {d.what}", d.peer, *cells] for d, cells in rows]
    return "\n".join(
        [
            f"Of the {len(duels)} comparisons with peers on this page {counts['win']} are wins, {counts['tie']} ties "
            f"and {counts['loss']} losses. These were lost, on one thread or on more; the worst first, losses bold:",
            "",
            table(["", "against", *heads(threads)], body, 2),
        ]
    )


# ---- all of it ------------------------------------------------------------------------------------------------------


def texts(root: Path = ROOT) -> dict[str, str]:
    """The generated files of docs/ by name."""
    results = root / "bench" / "results"
    path = newest("bench", results)
    bench = json.loads(path.read_text())
    found: dict[str, tuple[Path, dict[str, Any], list[Duel]]] = {}
    for name, duels in SUBJECTS.items():
        source = newest(name, results)
        data = json.loads(source.read_text())
        found[name] = source, data, list(duels(data))
    every = [*bench_duels(bench), *(d for _, _, duels in found.values() for d in duels)]
    made = {
        "run": run_text(bench, path),
        "ratios": ratios_text(bench),
        "traffic": traffic_text(bench),
        "subjects": subjects_text(found),
        "losses": losses_text(every),
    }
    return {f"_performance_{name}.md": f"{text}\n" for name, text in made.items()}


def draw(folder: Path, root: Path = ROOT) -> list[Path]:
    """Draws the figures of the newest run of the registry; the files written."""
    from curvk._bench.figures import FIGURES
    from curvk._bench.runner import Result

    bench = json.loads(newest("bench", root / "bench" / "results").read_text())
    fields = Result.__dataclass_fields__
    rows = [Result(**{k: v for k, v in row.items() if k in fields}) for row in bench["rows"]]
    written = []
    for name, make in FIGURES.items():
        figure = make(bench["machine"], rows)
        assert figure is not None, f"the run has nothing for {name}"
        figure.savefig(folder / name, dpi=160)
        written.append(folder / name)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="leave the figures")
    arguments = parser.parse_args()
    docs = ROOT / "docs"
    for name, text in texts().items():
        (docs / name).write_text(text, encoding="utf-8")
        print(f"wrote docs/{name}")
    if not arguments.tables:
        for path in draw(docs / "images"):
            print(f"wrote docs/images/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
