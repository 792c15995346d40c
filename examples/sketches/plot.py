"""The figure of the experiment, from what run.py found."""

from statistics import median

STYLES = {  # colour, line
    "CountSketch": ("#edae49", "-"),
    "SJLT, 4 blocks": ("#8a6d1b", "-"),
    "IncrementalSVD": ("#d1495b", "-"),
    "FD's own bound": ("#00798c", (0, (1, 2))),
    "Frequent Directions": ("#00798c", "-"),
    "robust Frequent Directions": ("#66579c", "-"),
    "optimum": ("#22282f", (0, (4, 3))),
}
FAINT = "#5b6470"


def panel(axis, task):
    for title, (colour, line) in STYLES.items():
        errors, lengths = task["errors"][title], task["lengths"]
        axis.plot(lengths, [median(e) for e in errors], color=colour, ls=line, lw=1.5, label=title)
        if len(errors[0]) > 1:
            axis.fill_between(
                lengths, [min(e) for e in errors], [max(e) for e in errors], color=colour, alpha=0.15, lw=0
            )
    axis.set(yscale="log", xlabel="rows of the sketch, l", title=task["about"], xlim=(lengths[0], lengths[-1]))


def draw(results, path):
    """A panel for each matrix."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    tasks = list(results["tasks"].values())
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.7 * len(tasks), 4.1), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        panel(axis, task)
    axes[0][0].set_ylabel("|A'A - M| / squared Frobenius norm of A")
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = 4 if len(tasks) > 2 else 2
    figure.legend(handles, labels, loc="upper center", ncols=columns, frameon=False, fontsize=8.5)
    note = f"CountSketch and SJLT: medians of {results['seeds']} seeds, bands from least to largest."
    note += " M is B'B of the sketch B, and B'B + αI for robust Frequent Directions."
    figure.text(0.01, 0.01, note, fontsize=7.5, color=FAINT)
    figure.tight_layout(rect=(0, 0.03, 1, 0.88))
    figure.savefig(path, dpi=150)
    plt.close(figure)
