"""The figure and the table of the experiment, from what run.py found."""

from statistics import median

COLOURS = {
    "SVGD": "#22282f",
    "GF-SVGD": "#8a93a0",
    "SV-OpenAI-ES": "#edae49",
    "SV-CMA-ES": "#d1495b",
    "SV-CMA-ES, annealed": "#66579c",
    "independent CMA-ES": "#00798c",
}
FAINT = "#5b6470"
SHOWN = "banana"  # whose particles are drawn


def ends(method):
    """The results of the runs that did not fail, in order."""
    return sorted(run["curve"][-1][1] for run in method["runs"] if "curve" in run)


def cell(values, digits):
    """Median and range."""
    if not values:
        return "failed"
    middle = f"{median(values):.{digits}f}"
    return f"{middle} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})" if len(values) > 1 else middle


def setting(settings):
    return ", ".join(f"{'h' if key == 'bandwidth' else key} {value}" for key, value in settings.items())


def table(task):
    """A row per method: where its runs ended, and with which settings."""
    smaller = task["lower_is_better"]
    what = "MMD² to the truth" if smaller else "mean return of the particles"
    head = f"| | {what} | settings |" + ("" if smaller else " best particle's return |")
    rows = [head, "|---|" + "--:|" * (2 if smaller else 3)]
    for title, method in task["methods"].items():
        runs = [run for run in method["runs"] if "curve" in run]
        cells = [title, cell(ends(method), 4 if smaller else 0), setting(method["settings"])]
        if not smaller:
            cells.append(cell(sorted(run["best"] for run in runs), 0))
        rows.append(f"| {' | '.join(cells)} |")
    if task["independent"]:
        n = task["particles"]
        rows.append(f"| {n} independent points of the truth | {cell(sorted(task['independent']), 4)} | |")
    title = f"**{task['about']}**: {task['particles']} particles, {task['evaluations']:,} evaluations"
    return "\n".join([title, "", *rows])


def report(results):
    """The tables as Markdown."""
    seeds = max((len(m["runs"]) for t in results["tasks"].values() for m in t["methods"].values()), default=0)
    note = f"Medians of {seeds} seed{'s' if seeds != 1 else ''} (least to largest)."
    return "\n\n".join([*(table(task) for task in results["tasks"].values()), note])


def curves(axis, task):
    """A method's medians over the seeds against the number of evaluations, with bands from least to largest."""
    for title, method in task["methods"].items():
        runs = [run["curve"] for run in method["runs"] if "curve" in run]
        if not runs:
            continue
        x = [at[0][0] for at in zip(*runs, strict=True)][1:]
        y = [sorted(p[1] for p in at) for at in zip(*runs, strict=True)][1:]
        axis.plot(x, [median(v) for v in y], color=COLOURS[title], lw=1.4, label=title)
        axis.fill_between(x, [v[0] for v in y], [v[-1] for v in y], color=COLOURS[title], alpha=0.12, lw=0)
    if task["independent"]:
        axis.axhline(median(task["independent"]), color=FAINT, lw=1, ls=(0, (4, 3)))
        text = f"{task['particles']} independent points"
        place = {"xycoords": ("axes fraction", "data"), "va": "bottom", "fontsize": 7.5, "color": FAINT}
        axis.annotate(text, (0.02, median(task["independent"])), **place)
        axis.set(yscale="log", ylabel="MMD² to the truth")
    else:
        axis.set(ylabel="mean return of the particles")
    axis.set(xscale="log", xlabel="evaluations of the density", title=task["about"])


def cloud(axis, task, title):
    """The particles of the first seed over points of the truth."""
    run = task["methods"][title]["runs"][0]
    axis.plot(*zip(*task["truth"], strict=True), ".", color="#c9ced6", ms=2, mew=0)
    if "particles" in run:
        axis.plot(*zip(*run["particles"], strict=True), "o", color=COLOURS[title], ms=3.2, mew=0, alpha=0.9)
    axis.set(title=title, xlim=(-2.2, 2.2), ylim=(-1.8, 2.8), xticks=[-2, 0, 2], yticks=[-1, 0, 1, 2])
    axis.set(xlabel="$x_1$", ylabel="$x_2$")


def draw(results, path):
    """The curves of all tasks, and below them the particles of one."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    tasks = results["tasks"]
    shown = tasks.get(SHOWN)
    titles = [t for t in ("SVGD", "SV-OpenAI-ES", "SV-CMA-ES", "independent CMA-ES") if shown and t in shown["methods"]]
    columns = max(len(tasks), len(titles), 1)
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(
        2 if titles else 1, columns, figsize=(3.4 * columns, 6.6 if titles else 3.6), squeeze=False
    )
    for axis, task in zip(axes[0], tasks.values(), strict=False):
        curves(axis, task)
    for axis, title in zip(axes[-1] if titles else (), titles, strict=False):
        cloud(axis, shown, title)
    for axis in figure.axes:
        axis.set_visible(bool(axis.lines))
    handles = {}
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="upper center", ncols=len(handles) or 1, frameon=False, fontsize=8.5)
    seeds = max((len(m["runs"]) for t in tasks.values() for m in t["methods"].values()), default=0)
    note = f"Lines: medians of {seeds} seed{'s' if seeds != 1 else ''}, bands from least to largest."
    if titles:
        note += f" Below: the particles of one run (colour) on the {shown['about']}, points of the truth (grey)."
    figure.text(0.01, 0.006, note, fontsize=7.5, color=FAINT)
    figure.tight_layout(rect=(0, 0.02, 1, 0.95))
    figure.savefig(path, dpi=150)
    plt.close(figure)
