"""The figure and the tables of the experiment, from what run.py found."""

import os
from statistics import mean, median, stdev

COLOURS = {
    "Adam": "#22282f",
    "Alice": "#d1495b",
    "Alice, near probes": "#5f9e3f",
    "Alice, published": "#edae49",
    "Alice, glass only": "#00798c",
    "bounds only": "#66579c",
}
FAINT = "#5b6470"


def spread(values):
    """Standard deviation over the seeds; nothing for one."""
    return stdev(values) if len(values) > 1 else 0.0


def counted(n, which=""):
    return f"{n} {which}seed{'s' if n != 1 else ''}"


def cell(values, digits, percent=False):
    unit = 100 if percent else 1
    return f"{mean(values) * unit:.{digits}f} ± {spread(values) * unit:.{digits}f}"


def looks_of(method, key):
    """A diagnostic at all measured steps of all runs, after the warm-up."""
    return [look[key] for run in method["runs"] for look in run["looks"] if look["step"] > 9]


def task_table(name, task):
    """A row per method: the rate that was chosen, what it reached, and where its steps lay."""
    head = "| | lr | steps | training loss | test loss | test error, % | inside | predicted | realised |"
    rows = [head, "|---|" + "--:|" * 8]
    for title, method in task["methods"].items():
        runs = method["runs"]
        at_edge = method["valid_losses"].index(min(method["valid_losses"])) in (0, len(method["valid_losses"]) - 1)
        cells = [title, f"{method['lr']:g}{' (edge)' if at_edge else ''}", f"{mean(r['steps'] for r in runs):.0f}"]
        cells += [cell([r["loss"][part] for r in runs], 4) for part in ("train", "test")]
        cells.append(cell([1 - r["accuracy"]["test"] for r in runs], 1, percent=True))
        if any(r["looks"] for r in runs):
            cells.append(f"{mean(looks_of(method, 'frac_inside')):.1%}")
            cells += [f"{median(looks_of(method, key)):.1e}" for key in ("predicted", "realised")]
        else:
            cells += ["", "", ""]
        rows.append(f"| {' | '.join(cells)} |")
    layers = "-".join(map(str, task["sizes"]))
    title = f"**{name}**: ReLU network {layers}, batch {task['batch']}, {task['gradients']} gradients"
    return "\n".join([title, "", *rows])


def inside_table(results):
    """The share of steps between their bounds against the learning rate; a row per task and method."""
    rates = list(next(iter(next(iter(results["tasks"].values()))["inside"].values())))
    rows = [f"| steps between their bounds, lr = | {' | '.join(f'{float(lr):g}' for lr in rates)} |"]
    rows.append("|---|" + "--:|" * len(rates))
    for name, task in results["tasks"].items():
        for title, shares in task["inside"].items():
            rows.append(f"| {name}: {title} | {' | '.join(f'{share:.0%}' for share in shares.values())} |")
    return "\n".join(rows)


def report(results):
    """The tables as Markdown."""
    return "\n\n".join([*(task_table(*item) for item in results["tasks"].items()), inside_table(results)])


def footer(results):
    seeds = max(len(m["runs"]) for t in results["tasks"].values() for m in t["methods"].values())
    grid = ", ".join(f"{lr:g}" for lr in results["grid"])
    tuned, versions = counted(len(results["tune_seeds"]), "other "), f"torch {results['machine']['torch']}"
    return (
        f"Means over {counted(seeds)} ± their standard deviation. lr: the best of Adam's {grid} (Alice: five times "
        f"these) by the validation loss on {tuned}. inside: share of elements whose step lay strictly between its "
        "bounds, mean over measured steps. predicted, realised: medians of the change of the batch's loss at the "
        f"centre in one step. curvk {results['curvk']}, {versions}, one thread."
    )


def draw(results, path):
    """Training loss against gradients, and the share of steps between their bounds; a row per task."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    tasks = results["tasks"]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(len(tasks), 3, figsize=(11, 3.1 * len(tasks) + 0.6), squeeze=False)
    for (name, task), (left, middle, right) in zip(tasks.items(), axes, strict=True):
        for title, method in task["methods"].items():
            colour, runs = COLOURS[title], method["runs"]
            x = [mean(p[0] for p in at) for at in zip(*(r["curve"] for r in runs), strict=False)]
            y = [sorted(p[1] for p in at) for at in zip(*(r["curve"] for r in runs), strict=False)]
            left.plot(x, [median(v) for v in y], color=colour, lw=1.4, label=title)
            left.fill_between(x, [v[0] for v in y], [v[-1] for v in y], color=colour, alpha=0.12, lw=0)
            looks = list(zip(*(r["looks"] for r in runs), strict=False))
            if looks and title != "bounds only":
                x = [mean(look["gradients"] for look in at) for at in looks]
                middle.plot(x, [100 * mean(look["frac_inside"] for look in at) for at in looks], color=colour, lw=1.2)
            errors = [100 * (1 - r["accuracy"]["test"]) for r in runs]
            place = list(task["methods"]).index(title)
            right.plot([place] * len(errors), errors, "o", color=colour, ms=4, alpha=0.6, mew=0)
            right.plot([place - 0.25, place + 0.25], [mean(errors)] * 2, color=colour, lw=2)
        left.set(yscale="log", ylabel="training loss", xlabel="gradient evaluations", title=name)
        middle.set(ylabel="steps between their bounds, %", xlabel="gradient evaluations", ylim=(0, None))
        right.set(ylabel="test error, %", ylim=(0, None), xticks=range(len(task["methods"])))
        right.set_xticklabels([t.replace("Alice, ", "") for t in task["methods"]], rotation=25, ha="right")
    axes[0][0].legend(frameon=False, fontsize=8)
    seeds = max(len(m["runs"]) for t in tasks.values() for m in t["methods"].values())
    note = f"Lines: medians of {counted(seeds)}, bands from least to largest; bars: means. Every rate tuned alike."
    figure.text(0.01, 0.005, note, fontsize=7.5, color=FAINT)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    unfinished = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(unfinished, dpi=150)
    os.replace(unfinished, path)
    plt.close(figure)
