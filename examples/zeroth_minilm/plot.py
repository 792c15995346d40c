"""The figure and the tables of the experiment, from what run.py wrote.

python examples/zeroth_minilm/plot.py results.json --figure docs/images/zeroth.png --table docs/_zeroth_table.md
"""

import argparse
import json
import os
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev

COLOURS = {
    "MeZO": "#22282f",
    "LeZO-2": "#edae49",
    "LeZO-4": "#d1495b",
    "AdaLeZO": "#66579c",
    "Rademacher": "#00798c",
    "active rows": "#5f9e3f",
    "4 probes": "#8d6e63",
}
FAINT = "#5b6470"


def spread(values):
    """Standard deviation over the seeds; nothing for one."""
    return stdev(values) if len(values) > 1 else 0.0


def curve(results, name):
    """Mean test accuracy and loss over the seeds, from the start: a list of dicts, with each quantity's spread."""
    runs = list(results["runs"][name].values())
    start = results["start"]["test"]
    points = [{"pairs": 0, "seconds": 0.0, **start, "accuracy_spread": 0.0, "loss_spread": 0.0}]
    for at in zip(*(run["curve"] for run in runs), strict=True):
        point = {key: mean(p[key] for p in at) for key in ("pairs", "seconds", "accuracy", "loss")}
        points.append(point | {f"{key}_spread": spread([p[key] for p in at]) for key in ("accuracy", "loss")})
    return points


def pairs_to(points, loss):
    """Pairs of forwards until the mean test loss is as low, by linear interpolation; None if training never got it."""
    if points[0]["loss"] <= loss:
        return None
    for a, b in pairwise(points):
        if b["loss"] <= loss:
            return a["pairs"] + (b["pairs"] - a["pairs"]) * max(0.0, a["loss"] - loss) / (a["loss"] - b["loss"])
    return None


def probes(results, name):
    run = next(iter(results["runs"][name].values()))
    return run["curve"][-1]["pairs"] // len(run["step_s"])


def seconds_per_pair(results, name):
    """Median of the steps that methods took in turns; where these were not timed, of the runs' steps."""
    runs = results["runs"][name].values()
    steps = results["time"].get(name, {}).get("step") or [s for run in runs for s in run["step_s"]]
    return median(steps) / probes(results, name)


def outcome_table(results):
    """A row per method: what it learned, and what it took."""
    start = results["start"]["test"]
    head = "| method | lr | test accuracy | test loss | s per pair | pairs to MeZO's loss | seconds to it |"
    rows = [
        head,
        "|---|" + "--:|" * 6,
        f"| before training | | {start['accuracy']:.1%} | {start['loss']:.4f} | | | |",
    ]
    goal = curve(results, "MeZO")[-1]["loss"] if "MeZO" in results["runs"] else None
    for name, runs in results["runs"].items():
        points = curve(results, name)
        last, pace = points[-1], seconds_per_pair(results, name)
        reached = None if goal is None else pairs_to(points, goal)
        cells = [name, " ".join(sorted({f"{run['lr']:.1e}" for run in runs.values()}))]
        cells += [f"{last['accuracy']:.1%} ± {last['accuracy_spread'] * 100:.1f}"]
        cells += [f"{last['loss']:.4f} ± {last['loss_spread']:.4f}", f"{pace:.3f}"]
        cells += ["never", "never"] if reached is None else [f"{reached:.0f}", f"{reached * pace:.0f}"]
        rows.append(f"| {' | '.join(cells)} |")
    if "backprop" in results:
        ends = results["backprop"].values()
        accuracy, loss = ([end[key] for end in ends] for key in ("accuracy", "loss"))
        cells = [f"{mean(accuracy):.1%} ± {spread(accuracy) * 100:.1f}", f"{mean(loss):.4f} ± {spread(loss):.4f}"]
        rows.append(f"| for comparison: AdamW with gradients, one epoch | 3.0e-05 | {' | '.join(cells)} | | | |")
    return "\n".join(rows)


def time_rows(results):
    """By side, per step: seconds in all, beyond its forwards, and the latter's share f; and two forwards' seconds."""
    times = results["time"]
    forwards = times["forwards"]["step"]
    rows = {}
    for name, t in times.items():
        if name != "forwards":
            pairs = probes(results, name) if name in results["runs"] else 1
            step = median(t["step"])
            rest = median(s - pairs * f for s, f in zip(t["step"], forwards, strict=True))
            rows[name] = {"step": step, "rest": rest, "f": rest / step, "pairs": pairs}
            rows[name] |= {k: median(t[k]) for k in ("noise", "other") if k in t}
    return median(forwards), rows


def time_table(results):
    """A row per side of the time split."""
    forwards, rows = time_rows(results)
    lines = [
        f"| one step, ms; two forwards take {forwards * 1e3:.0f} | step | beyond the forwards | share f of the step |",
        "|---|--:|--:|--:|",
    ]
    for name, r in rows.items():
        inner = f" (noise {r['noise'] * 1e3:.0f}, arithmetic {r['other'] * 1e3:.0f})" if "noise" in r else ""
        lines.append(f"| {name} | {r['step'] * 1e3:.0f} | {r['rest'] * 1e3:.0f}{inner} | {r['f']:.0%} |")
    return "\n".join(lines)


def gain_table(results):
    """What dropping four of six layers gains: by the model of a step's cost, per step as timed, and in steps."""
    _, rows = time_rows(results)
    share = results["layer_parameters"] / results["parameters"]
    lines = [
        "| LeZO-4 against MeZO | f of MeZO | 1/(1 - f s n/L) | s per step, timed | pairs to MeZO's loss |",
        "|---|--:|--:|--:|--:|",
    ]
    fewer = "not run"
    if {"MeZO", "LeZO-4"} <= results["runs"].keys():
        goal = curve(results, "MeZO")[-1]
        reached = pairs_to(curve(results, "LeZO-4"), goal["loss"])
        fewer = "never" if reached is None else f"{goal['pairs'] / reached:.2f}x"
    for title, prefix, suffix in (
        ("torch, op by op", "reference ", ""),
        ("curvk, default", "", ""),
        ("curvk, in place", "", " in place"),
    ):
        whole, part = f"{prefix}MeZO{suffix}", f"{prefix}LeZO-4{suffix}"
        times = [results["time"][name]["step"] for name in (whole, part)]
        timed = median(a / b for a, b in zip(*times, strict=True))
        f = rows[whole]["f"]
        lines.append(f"| {title} | {f:.0%} | {1 / (1 - f * share * 4 / 6):.2f}x | {timed:.2f}x | {fewer} |")
    return "\n".join(lines)


def command(results):
    """The call of run.py that measures this again."""
    s, threads = results["settings"], results["machine"]["threads"]
    grid = " ".join(f"{lr:g}" for lr in s["grid"])
    seeds = max(map(len, results["runs"].values()), default=0)
    return (
        f"python examples/zeroth_minilm/run.py --steps {s['steps']} --seeds {seeds} --batch {s['batch']} "
        f"--threads {threads} --tune-steps {s['tune_steps']} --grid {grid} --evaluations {s['evaluations']} "
        "--json results.json --out ."
    )


def footer(results):
    m, s, n = results["machine"], results["settings"], results["sentences"]
    seeds = max(map(len, results["runs"].values()), default=0)
    return (
        f"{n['train']:,} sentences to train on, {n['test']:,} to test; {s['steps']} pairs of forwards, "
        f"batch {s['batch']}, {seeds} seed(s), ± their standard deviation; learning rates chosen on {n['dev']} others "
        f"after {s['tune_steps']} pairs. curvk {results['curvk']} ({m['backend']}, {m['simd']}), torch {m['torch']}, "
        f"{m['threads']} thread(s), {m['cpu']}"
    )


def report(results):
    """The tables as Markdown."""
    parts = [outcome_table(results)] if results["runs"] else []
    parts += [time_table(results), gain_table(results)] if results["time"] else []
    return "\n\n".join([*parts, footer(results) + "."])


def curves(axes, results, key, against, factor):
    """A line per method with the seeds' standard deviation as bars."""
    for k, name in enumerate(results["runs"]):
        points, pace = curve(results, name), seconds_per_pair(results, name)
        last = points[-1]["pairs"]
        shift = (k / len(results["runs"]) - 0.5) * 0.02 * last  # so that bars do not hide each other
        x = [p["pairs"] + shift if p["pairs"] else 0 for p in points]
        x = [v * pace for v in x] if against == "seconds" else x
        y, half = ([factor * p[name] for p in points] for name in (key, f"{key}_spread"))
        style = {"color": COLOURS.get(name), "lw": 1.8, "marker": "o", "ms": 3.5, "elinewidth": 1, "capsize": 2}
        axes.errorbar(x, y, half, label=name, **style)
    axes.set_xlabel(
        "pairs of forwards" if against == "pairs" else "seconds of training, at the median of steps taken in turns"
    )
    axes.grid(axis="y", color="#e6e8eb")


def bars(axes, results):
    """What a step's time is made of, on each side."""
    forwards, rows = time_rows(results)
    for y, r in enumerate(reversed(rows.values())):
        rest = r["rest"] / r["pairs"]
        axes.barh(y, forwards * 1e3, color="#b8bec6", label="two forwards" if y == 0 else None)
        axes.barh(y, rest * 1e3, left=forwards * 1e3, color="#d1495b" if "noise" in r else "#00798c")
        axes.text((forwards + max(rest, 0)) * 1e3, y, f"  f = {r['f']:.0%}", va="center", fontsize=9)
    axes.barh([0], [0], color="#d1495b", label="perturb, restore, update: torch, op by op")
    axes.barh([0], [0], color="#00798c", label="perturb, restore, update: curvk")
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set(xlabel="ms per pair of forwards", xlim=(0, 1.15e3 * max(r["step"] / r["pairs"] for r in rows.values())))
    axes.set_title("Where a step's time goes", loc="left")
    axes.legend(frameon=False, loc="lower right")


def draw(results, path):
    """Test accuracy against forwards and seconds, test loss, and where a step's time goes; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plain = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    with pyplot.rc_context(plain | {"axes.titlesize": 11, "axes.titleweight": "bold", "legend.fontsize": 9}):
        figure, axes = pyplot.subplots(2, 2, figsize=(12, 8.6), layout="constrained")
        for place, key, against, factor, title in (
            (axes[0, 0], "accuracy", "pairs", 100, "Test accuracy, %, same number of forwards"),
            (axes[0, 1], "accuracy", "seconds", 100, "Test accuracy, %, same time"),
            (axes[1, 0], "loss", "pairs", 1, "Test loss, same number of forwards"),
        ):
            curves(place, results, key, against, factor)
            place.set_title(title, loc="left")
        axes[0, 0].legend(frameon=False)
        if results["time"]:
            bars(axes[1, 1], results)
        figure.supxlabel(footer(results).replace("; learning", ";\nlearning"), fontsize=8, color=FAINT)
        replace(path, lambda unfinished: figure.savefig(unfinished, format="png", dpi=120))
        pyplot.close(figure)


def replace(path, save):
    """Writes to a temporary name and renames, so that the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="what run.py wrote")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="write the figure here")
    parser.add_argument("--table", type=Path, metavar="MD", help="write the tables here; else they are printed")
    args = parser.parse_args(argv)
    results = json.loads(args.results.read_text(encoding="utf-8"))
    if args.figure:
        draw(results, args.figure)
    text = f"{report(results)}\n\n```sh\n{command(results)}\n```\n"
    if args.table:
        replace(args.table, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    else:
        print(text)


if __name__ == "__main__":
    main()
