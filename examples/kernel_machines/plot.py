"""The tables and the figure, from what run.py found."""

from statistics import mean, median, stdev

COLOURS = {
    "EigenPro4": "#d1495b",
    "EigenPro4, projection eigenpro2": "#edae49",
    "EigenPro4, nystrom_from centers": "#66579c",
    "KernelRidgeCG": "#00798c",
    "Nystroem + Ridge": "#5f9e3f",
    "KernelRidge": "#22282f",
    "SVC": "#8a929a",
    "Ridge": "#b07d3c",
}
FAINT = "#5b6470"
LETTER = 0.045  # the error whose seconds are told


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def lines(head, rows):
    return "\n".join([row(*head), "|---|" + "--:|" * (len(head) - 1), *rows])


def middle(entry, key):
    """The median over the runs that did not fail; None without one."""
    values = [run[key] for run in entry["runs"] if key in run]
    return median(values) if values else None


def average(entry):
    values = [run["error"] for run in entry["runs"] if "error" in run]
    return mean(values) if values else None


def percent(task):
    return task["classes"] is not None


def shown_error(task, entry):
    values = [run["error"] for run in entry["runs"] if "error" in run]
    unit, digits = (100, 2) if percent(task) else (1, 3)
    text = f"{unit * mean(values):.{digits}f}"
    return f"{text} ± {unit * stdev(values):.{digits}f}" if len(values) > 1 else text


def seconds(value):
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def swept(task):
    """The fits whose number of epochs is the data set's own, smallest first."""
    fits = [f for f in task["fits"] if f["epochs"] == task["epochs"] and f["runs"]]
    return sorted(fits, key=lambda f: (list(COLOURS).index(f["model"]), f["n_centers"] or 0))


def task_table(name, task):
    """A row per model and number of centers."""
    error = "test error, %" if percent(task) else f"test error, {task['error'].split(', ')[1]}"
    rows = []
    for entry in swept(task):
        cells = [entry["model"], f"{entry['n_centers']:,}" if entry["n_centers"] else "all rows"]
        if average(entry) is None:
            rows.append(row(*cells, f"failed: {entry['runs'][0]['failed']}", "", "", ""))
            continue
        cells += [shown_error(task, entry), seconds(middle(entry, "fit")), seconds(middle(entry, "predict"))]
        rows.append(row(*cells, f"{middle(entry, 'peak'):,.0f}"))
    kind = f"{task['classes']} classes" if percent(task) else task["error"]
    about = f"{task['rows']:,} rows to train on, {task['test rows']:,} to test, {task['features']} features, {kind}"
    chosen = f"bandwidth {task['bandwidth']:g}, alpha {task['alpha']:g}, {task['epochs']} epochs of EigenPro 4"
    if "SVC" in task["direct"]:
        chosen += f", SVC's C {task['C']:g}"
    head = ["", "centers", error, "fit, s", "predict, s", "peak, MiB"]
    return f"**{name}**: {about}; {chosen}\n\n{lines(head, rows)}"


def fastest(task, model, error):
    """The fit of this model that needs the fewest seconds for at most this error; None where none has it."""
    found = [f for f in task["fits"] if f["model"] == model and average(f) is not None and average(f) <= error]
    return min(found, key=lambda f: middle(f, "fit"), default=None)


def reach_table(task):
    """Seconds to an accuracy, and from which size on EigenPro 4 takes less time than Nystroem and Ridge."""
    rows = []
    for model in COLOURS:
        if model not in {f["model"] for f in task["fits"]}:
            continue
        found = fastest(task, model, LETTER)
        if found is None:
            errors = [average(f) for f in task["fits"] if f["model"] == model and average(f) is not None]
            if errors:
                rows.append(row(model, "never", f"(least error {100 * min(errors):.2f} %)", ""))
            continue
        size = f"{found['n_centers']:,}" if found["n_centers"] else "all rows"
        epochs = found["epochs"] if model.startswith("EigenPro4") else ""
        rows.append(row(model, seconds(middle(found, "fit")), size, epochs))
    head = [f"letter to a test error of {100 * LETTER:g} %", "seconds of fit", "centers", "epochs"]
    return lines(head, rows)


def crossing(task, model="EigenPro4", peer="Nystroem + Ridge"):
    """Pairs of fits of equal size: which takes less time."""
    by_size = {(f["model"], f["n_centers"]): f for f in swept(task) if average(f) is not None}
    sizes = sorted({size for name, size in by_size if name == peer and (model, size) in by_size})
    return [(p, middle(by_size[model, p], "fit"), middle(by_size[peer, p], "fit")) for p in sizes]


def crossing_lines(tasks):
    rows = []
    for name, task in tasks.items():
        for model in ("EigenPro4", "KernelRidgeCG"):
            pairs = crossing(task, model)
            first = next((p for k, (p, *_) in enumerate(pairs) if all(a < b for _, a, b in pairs[k:])), None)
            cells = [f"{p:,}: {seconds(a)} / {seconds(b)}" for p, a, b in pairs]
            rows.append(row(f"{name}, {model}", f"{first:,}" if first else "none measured", "; ".join(cells)))
    return lines(["seconds of fit against Nystroem + Ridge", "less from", "centers: both"], rows)


def projection_table(found):
    rows = [row("dense normal equations", "", "", f"{100 * found['dense']:.2f}", f"{100 * found['dense']:.2f}")]
    for title, entry in found["eigenpro"].items():
        cells = []
        for errors in zip(*entry["errors"], strict=True):
            spread = f" ± {100 * stdev(errors):.2f}" if len(errors) > 1 else ""
            cells.append(f"{100 * mean(errors):.2f}{spread}")
        rows.append(row(f"EigenPro 4, {title}", entry["T"], entry["batch"], *cells))
    head = ["letter, laplacian h = 6, 2,000 centers: test error, %", "T", "batch", "epoch 1", "epoch 2"]
    return lines(head, rows)


def bias_table(rows):
    cells = [
        row(f"{r['nystrom_from']}, q = {r['q']}", f"{r['difference']:.1e}", f"{r['mse']:.6f}", f"{r['least mse']:.6f}")
        for r in rows
    ]
    head = ["where EigenPro 4 ends (float64, 200 rows, 40 centers): sample from", "relative difference of f"]
    return lines([*head, "training mse", "least squares' mse"], cells)


def footer(results):
    machine = results["machine"]
    return (
        "Gaussian kernel, the same bandwidth and alpha for all models of a data set. Errors are means ± standard "
        "deviation over the seeds, which draw centers and order; seconds and peaks are medians. peak: of a whole "
        "process that holds Python, scikit-learn (some 130 MiB) and the data, and fits and predicts once. EigenPro 4 "
        f"has no alpha. curvk {results['curvk']}, numpy {machine['numpy']}, Python {machine['python']}, "
        + ("one thread, seconds of the processor." if machine["threads"] == 1 else f"{machine['threads']} threads.")
    )


def report(results):
    """The tables as Markdown."""
    tasks, found = results["tasks"], results["experiments"]
    tables = [task_table(*item) for item in tasks.items()]
    if "letter" in tasks:
        tables += [reach_table(tasks["letter"])]
    tables += [crossing_lines(tasks)]
    if "projection" in found:
        tables += [projection_table(found["projection"])]
    return "\n\n".join([*tables, bias_table(found["bias"]), footer(results)])


def draw(results, path):
    """Test error against seconds of fit, and peak memory against centers; a column per data set."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    tasks = results["tasks"]
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, len(tasks), figsize=(3.4 * len(tasks) + 0.4, 6.4), squeeze=False)
        for (name, task), (top, bottom) in zip(tasks.items(), axes.T, strict=True):
            unit = 100 if percent(task) else 1
            for model, colour in COLOURS.items():
                fits = [f for f in swept(task) if f["model"] == model and average(f) is not None]
                x = [middle(f, "fit") for f in fits]
                y = [unit * average(f) for f in fits]
                peaks = [middle(f, "peak") for f in fits]
                whole = [f["n_centers"] is None for f in fits]
                marker = "D" if any(whole) else "o"
                top.plot(x, y, color=colour, lw=1.3, marker=marker, ms=4, label=model)
                if any(whole):
                    bottom.axhline(peaks[0], color=colour, lw=1, ls="--")
                    at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                    bottom.annotate(model, (0.01, peaks[0]), (0, 2), fontsize=7.5, color=colour, **at)
                else:
                    bottom.plot([f["n_centers"] for f in fits], peaks, color=colour, lw=1.3, marker="o", ms=4)
            top.set(xscale="log", xlabel="seconds of fit", title=name)
            top.set_ylabel("test error, %" if percent(task) else f"test error, {task['error'].split(', ')[1]}")
            bottom.set(xscale="log", yscale="log", xlabel="centers", ylabel="peak memory of the process, MiB")
            sizes = sorted({f["n_centers"] for f in swept(task) if f["n_centers"]})
            bottom.set_xticks(sizes)
            for place in (top, bottom):
                place.grid(color="#e6e8eb")
                place.xaxis.set_major_formatter(plain)
            bottom.xaxis.set_minor_formatter(NullFormatter())
            bottom.tick_params(axis="x", labelsize=7.5)
            bottom.set_yticks([100, 200, 500, 1000, 2000, 5000])
            bottom.set_ylim(100, 4000)
            bottom.yaxis.set_major_formatter(plain)
            bottom.yaxis.set_minor_formatter(NullFormatter())
        threads = results["machine"]["threads"]
        clock = "one thread" if threads == 1 else f"{threads} threads"
        title = f"Kernel machines as the number of centers grows: gaussian kernel, {clock}"
        figure.suptitle(title, x=0.01, ha="left", y=0.995)
        handles = {h.get_label(): h for top in axes[0] for h in top.get_lines() if len(h.get_xdata())}
        figure.legend(handles.values(), handles, loc="lower center", ncols=4, frameon=False, fontsize=8.5)
        figure.tight_layout(rect=(0, 0.07, 1, 0.99))
        figure.savefig(path, dpi=130)
        plt.close(figure)
