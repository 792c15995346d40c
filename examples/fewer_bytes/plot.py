"""The tables and the figure of the experiment, from what run.py found."""

from statistics import mean, median

import numpy as np
from states import BINS

COLOURS = {
    "float32": "#22282f",
    "bf16, all to nearest": "#d1495b",
    "bf16 nearest, float32 states": "#edae49",
    "bf16 stochastic, float32 states": "#00798c",
    "bf16 stochastic, 16-bit states": "#3fa7d6",
    "bf16 stochastic, 8-bit states": "#5f9e3f",
    "bf16 Kahan, float32 states": "#a06cd5",
    "bf16 split, float32 states": "#66579c",
    "float32, 8-bit states": "#8a6d3b",
    "float32, 8-bit bitsandbytes": "#e07be0",
}
SHADOWS = {
    "bf16, to nearest": "#d1495b",
    "bf16, dithered": "#3fa7d6",
    "8 bits bitsandbytes, to nearest": "#e07be0",
    "8 bits curvk, to nearest": "#8a6d3b",
    "8 bits curvk, dithered": "#5f9e3f",
}
SHOWN = [title for title in COLOURS if "Kahan" not in title and "split" not in title]  # which lie on float32's curve
MOMENTS = ("exp_avg", "exp_avg_sq")
TICKS = [k * 10.0**e for e in range(-4, 1) for k in (1, 2, 3, 4, 6)]  # of losses
FAINT = "#5b6470"
LONG = {"curvk": "curvk", "bitsandbytes": "bitsandbytes", "bfloat16": "bf16"}


def lines(head, rows):
    return "\n".join([f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1), *rows])


def row(*cells):
    return f"| {' | '.join(cells)} |"


def span(values, form):
    """Their mean, and their range where there are several."""
    ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{mean(values):{form}}{ends}"


def against(task, title, part="train"):
    """Final losses over float32's of the same seed, less 1, in percent."""
    truth = {run["seed"]: run["loss"][part] for run in task["storages"]["float32"]}
    return [100 * (run["loss"][part] / truth[run["seed"]] - 1) for run in task["storages"][title]]


def loss_table(name, task):
    """A row per storage: its bytes, its losses, and how far they are from float32's, seed by seed."""
    head = ["", "bytes", "training loss", "against float32, %", "test loss", "against float32, %", "with low halves"]
    rows = []
    for title, runs in task["storages"].items():
        cells = [title, f"{runs[0]['bytes']['total']:.2f}"]
        for part in ("train", "test"):
            cells.append(span([run["loss"][part] for run in runs], ".4f"))
            cells.append(span(against(task, title, part), "+.2f") if title != "float32" else "")
        full = [run["whole"]["train"] for run in runs if run["whole"]]
        rows.append(row(*cells, f"{mean(full):.4f}" if full else ""))
    title = f"**{name}**: {task['about']}, {task['parameters']:,} parameters, {task['steps']:,} steps"
    return f"{title}, lr {task['lr']:g}\n\n{lines(head, rows)}"


def memory_table(task):
    """Bytes per parameter, from optimizer.memory()."""
    rows = []
    for title, runs in task["storages"].items():
        held = runs[0]["bytes"]
        moments = [sum(value for key, value in held.items() if key in (k, f"{k}_scale")) for k in MOMENTS]
        numbers = [held["params"], held.get("param_low", 0), held["grads"], *moments, held["total"]]
        rows.append(row(title, *(f"{x:.3f}".rstrip("0").rstrip(".") if x else "" for x in numbers)))
    return lines(["bytes per parameter", "parameters", "low halves", "gradients", "m", "v", "all"], rows)


def watched(task):
    return next((run for run in task["storages"]["float32"] if "drift" in run), None)


def ratios(root):
    return f"{root['p1']:.2f}, {root['p50']:.2f}, {root['p99']:.2f}"


def drift_table(results):
    head = ["states after a training, fed the same gradients", "m: error, %", "v: error, %"]
    head += ["sqrt(v) over float32's: p1, p50, p99", "v became 0, %"]
    rows = []
    for name, task in results["tasks"].items():
        for title, found in watched(task)["drift"].items():
            errors = [f"{100 * found[key]:.1f}" for key in "mv"]
            rows.append(row(f"{name}: {title}", *errors, ratios(found["root"]), f"{100 * found['root']['zeros']:.2f}"))
    return lines(head, rows)


def once_table(results):
    """The states of each layer's weight stored once, to nearest."""
    formats = list(LONG)
    head = ["float32 states stored once, to nearest"]
    head += [f"{what}, {LONG[f]}" for what in ("m: error, %", "v: error, %", "sqrt(v): p1, p99") for f in formats]
    head.append("v became 0, %: bitsandbytes")
    rows = []
    for name, task in results["tasks"].items():
        for layer in watched(task)["stored once"]:
            if len(layer["shape"]) < 2:
                continue
            found = layer["formats"]
            cells = [f"{name}: {layer['name']}, {'x'.join(map(str, layer['shape']))}"]
            cells += [f"{100 * found[f][key]:.2f}" for key in "mv" for f in formats]
            cells += [f"{found[f]['root']['p1']:.3f}, {found[f]['root']['p99']:.3f}" for f in formats]
            rows.append(row(*cells, f"{100 * found['bitsandbytes']['root']['zeros']:.2f}"))
    return lines(head, rows)


def footer(results):
    seeds = max(len(runs) for task in results["tasks"].values() for runs in task["storages"].values())
    machine = results["machine"]
    return (
        f"Means of {seeds} seed{'s' if seeds != 1 else ''} (least to largest), the same seeds and batches for every "
        "storage; differences from float32 seed by seed. Losses and gradients in float32 at the parameters as they are "
        "stored, every gradient rounded to bfloat16. bytes: of a parameter, its gradient and its states. with low "
        "halves: training loss of the 32-bit (split) or compensated (Kahan) parameters. error: rms, relative to the "
        f"rms. curvk {results['curvk']}, torch {machine['torch']}, Python {machine['python']}, one thread."
    )


def report(results):
    """The tables as Markdown."""
    tasks = results["tasks"]
    tables = [loss_table(*item) for item in tasks.items()]
    tables += [memory_table(next(iter(tasks.values()))), drift_table(results), once_table(results)]
    return "\n\n".join([*tables, footer(results)])


def smooth(values, width=5):
    """A running mean over the loss curve's points, shorter at the ends."""
    return [mean(values[max(0, k - width + 1) : k + 1]) for k in range(len(values))]


def draw(results, path):
    """A row per task: loss curves, final losses against float32's, and where sqrt(v) is in other storages."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    tasks = results["tasks"]
    plain = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    with pyplot.rc_context(plain):
        figure, axes = pyplot.subplots(
            len(tasks),
            3,
            figsize=(14.5, 4.1 * len(tasks)),
            squeeze=False,
            layout="constrained",
            width_ratios=(1.15, 1, 1),
        )
        for (name, task), (left, middle, right) in zip(tasks.items(), axes, strict=True):
            draw_curves(left, name, task)
            draw_ends(middle, task)
            draw_ratios(right, task)
        for place in (axes[0][0], axes[0][2]):
            place.legend(frameon=False, fontsize=8, loc="upper right")
        seeds = max(len(runs) for task in tasks.values() for runs in task["storages"].values())
        note = (
            f"Left: medians of {seeds} seed{'s' if seeds != 1 else ''}, without Kahan and split, which lie on "
            "float32's. Middle: each seed, and means. Right: all parameters after one training in float32, whose "
            "gradients every storage was fed; dashed: to nearest."
        )
        figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.955), wspace=0.04, hspace=0.06)
        figure.text(0.01, 0.008, note, fontsize=8, color=FAINT)
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


def draw_curves(place, name, task):
    for title in SHOWN:
        runs = task["storages"][title]
        curves = [smooth(run["curve"]) for run in runs]
        x = np.arange(1, len(curves[0]) + 1) * (task["steps"] / len(curves[0]))
        y = [median(at) for at in zip(*curves, strict=True)]
        place.plot(x, y, color=COLOURS[title], lw=2.2 if title == "float32" else 1.3, label=title)
    place.set(yscale="log", xlabel="steps", ylabel="training loss (smoothed)")
    low, high = place.get_ylim()
    ticks = [t for t in TICKS if low <= t <= high]
    place.set_yticks(ticks, [f"{t:g}" for t in ticks])
    place.minorticks_off()
    place.set_title(f"{name}: loss", loc="left", fontweight="bold")


def draw_ends(place, task):
    titles = [title for title in task["storages"] if title != "float32"]
    for k, title in enumerate(titles):
        values = against(task, title)
        place.plot(values, [k] * len(values), "o", color=COLOURS[title], ms=5, alpha=0.7, mew=0)
        place.plot([mean(values)] * 2, [k - 0.3, k + 0.3], color=COLOURS[title], lw=2.2)
    place.axvline(0, color=FAINT, lw=0.8)
    place.axvspan(-2, 2, color="#eef0f2", lw=0)
    place.set_xscale("symlog", linthresh=2, linscale=1.2)
    place.set_xlim(-12, 400)
    place.set_xticks([-10, -2, 0, 2, 10, 100], ["-10", "-2", "0", "+2", "+10", "+100"])
    place.set_yticks(range(len(titles)), titles)
    place.invert_yaxis()
    place.set_xlabel("final training loss against float32's, %")
    place.set_title("Final loss (grey: within 2 %)", loc="left", fontweight="bold")


def draw_ratios(place, task):
    centres = 2.0 ** ((BINS[1:] + BINS[:-1]) / 2)
    for title, found in watched(task)["drift"].items():
        shares = np.array(found["histogram"], float)
        above = 1 - np.cumsum(shares) / max(1, shares.sum())
        style = "--" if "nearest" in title else "-"
        place.plot(centres, 100 * above, style, color=SHADOWS[title], lw=1.6, label=title)
    place.axvline(1, color=FAINT, lw=0.8)
    place.set(xscale="log", xlim=(0.5, 16), ylim=(0, 102), ylabel="parameters above, %")
    place.set_xticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
    place.minorticks_off()
    place.set_xlabel("sqrt(v) over float32's")
    place.set_title("Second moments at the end", loc="left", fontweight="bold")
