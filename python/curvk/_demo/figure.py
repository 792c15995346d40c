"""demo.png: accuracy curves, time per parameter, a step without gradients, the digits; samplers.png: particles;
stream.png: mistakes as the rows go by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..stein.problems import DoubleBanana
from .peers import Array

COLOURS = {"SGD": "#d1495b", "Adam": "#00798c", "AdamW": "#edae49", "AdamZ": "#66579c"}
CURVK, NUMPY, PASSES = "#00798c", "#b8bec6", "#eceef0"
INK, FAINT, WRONG = "#22282f", "#5b6470", "#c1121f"
DIGITS = (4, 18)  # rows and columns of the grid


def _curves(axes: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        curve, twin = (np.array(row[side]["test_accuracy_by_epoch"]) * 100 for side in ("curvk", "numpy"))
        epochs = np.arange(1, len(curve))
        colour = COLOURS[row["optimizer"]]
        axes.plot(epochs, curve[1:], color=colour, lw=2, label=f"{row['optimizer']}  {curve[-1]:.1f} %")
        axes.plot(
            epochs,
            twin[1:],
            ls="none",
            marker="o",
            ms=5,
            mfc="white",
            mec=colour,
            mew=1.2,
            markevery=1 + len(curve) // 25,
        )
    axes.plot([], [], ls="none", marker="o", ms=5, mfc="white", mec=INK, mew=1.2, label="the same in NumPy")
    lowest = min(min(row["curvk"]["test_accuracy_by_epoch"][1:]) for row in rows) * 100
    axes.set(xlim=(0.6, len(curve) - 0.6), ylim=(max(0, lowest - 1), 100), xlabel="epoch", ylabel="test accuracy, %")
    axes.set_title(f"Handwritten digits, {rows[0]['model']} perceptron", loc="left")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(axis="y", color="#e6e8eb")


def _bars(axes: Any, rows: list[dict[str, Any]], large: dict[str, Any]) -> None:
    bars = [
        (
            r["optimizer"],
            r["curvk"]["ns_per_parameter"],
            r["numpy"]["ns_per_parameter"],
            r["limit_ns_per_parameter"],
            r["parameters"],
        )
        for r in rows
    ]
    bars.append(("Adam", large["curvk_ns"], large["numpy_ns"], large["limit_ns"], large["size"]))
    place, x, groups = 0.0, [], dict[int, list[float]]()
    for *_, size in bars:
        place += 1.6 if groups and size not in groups else 1.0
        groups.setdefault(size, []).append(place)
        x.append(place)
    top = max(max(b[1:4]) for b in bars)
    for at, (_, ours, theirs, limit, _) in zip(x, bars, strict=True):
        axes.bar(at - 0.2, ours, 0.38, color=CURVK)
        axes.bar(at + 0.2, theirs, 0.38, color=NUMPY)
        axes.plot([at - 0.42, at + 0.42], [limit, limit], color=INK, lw=1.6)
        axes.text(
            at + 0.2, theirs + top * 0.012, f"{theirs / ours:.1f}×", ha="center", va="bottom", fontsize=9, color=INK
        )
    axes.set_xticks(x, [b[0] for b in bars], fontsize=9)
    for size, places in groups.items():
        text = (
            f"one array of {size / 1e6:.0f} M" if size == large["size"] else f"model of {size / 1e6:.1f} M parameters"
        )
        axes.annotate(
            text,
            (np.mean(places), 0),
            (0, -24),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            color=FAINT,
        )
    axes.bar(x[:1], [0], color=CURVK, label="curvk")
    axes.bar(x[:1], [0], color=NUMPY, label="NumPy, in place; above it, how many times curvk's time")
    axes.plot([], [], color=INK, lw=1.6, label="limit: a loop with the same memory traffic")
    axes.set(ylabel="ns per parameter and step", ylim=(0, top * 1.3))
    axes.set_title("Time in the optimizer", loc="left")
    handles, labels = axes.get_legend_handles_labels()  # matplotlib puts lines first
    axes.legend(handles[1:] + handles[:1], labels[1:] + labels[:1], loc="upper left", frameon=False)
    axes.grid(axis="y", color="#e6e8eb")
    axes.tick_params(axis="x", length=0)


def _steps(axes: Any, row: dict[str, Any]) -> None:
    """One step without gradients, split into forward passes and noise."""
    sides = (("curvk", row["curvk"]), ("NumPy", row["numpy"]), ("NumPy, plain", row["plain"]["numpy"]))
    right = 0.0
    for place, (name, side) in enumerate(sides):
        passes, noise = side["passes_us"] / 1e3, side["noise_us"] / 1e3
        text = f"  {noise:.2f} ms of noise"
        if "test_accuracy" in side:
            text += f"; {side['test_accuracy'] * 100:.1f} % test accuracy after {row['steps']} steps"
        axes.barh(place, passes, 0.72, color=PASSES)
        axes.barh(place, noise, 0.72, left=passes, color=CURVK if name == "curvk" else NUMPY)
        axes.text(passes + noise, place, text, va="center", fontsize=9, color=INK)
        right = max(right, (passes + noise) / (1 - 0.006 * len(text)))  # a character's share of the axis, and some more
    axes.set_yticks(range(len(sides)), [name for name, _ in sides])
    axes.invert_yaxis()
    axes.set(xlim=(0, right), xlabel="ms per step")
    axes.set_title(
        f"Without gradients: a step of {row['method']}, {row['forward_passes_per_step']:.0f} forward passes of "
        f"{row['model']} (pale) and noise",
        loc="left",
    )
    axes.tick_params(axis="y", length=0)


def _grid(axes: Any, x: Array, y: Array, logits: Array, optimizer: str) -> None:
    """The wrong answers first, then the right ones that were closest to being wrong."""
    rows, columns = DIGITS
    predicted = logits.argmax(axis=1)
    second, first = np.sort(logits, axis=1)[:, -2:].T
    unsure = np.argsort(first - second, kind="stable")
    wrong, right = unsure[predicted[unsure] != y[unsure]], unsure[predicted[unsure] == y[unsure]]
    shown = np.concatenate([wrong, right])[: rows * columns]
    tile = 10  # 8 pixels and a margin
    sheet = np.zeros((rows * (tile + 3), columns * tile), np.float32)
    for k, i in enumerate(shown):
        top, left = k // columns * (tile + 3) + 1, k % columns * tile + 1
        sheet[top : top + 8, left : left + 8] = x[i].reshape(8, 8)
    axes.imshow(sheet, cmap="gray_r", interpolation="nearest", vmin=0, vmax=1)
    for k, i in enumerate(shown):
        row, column = divmod(k, columns)
        mistaken = predicted[i] != y[i]
        text = f"{y[i]} → {predicted[i]}" if mistaken else f"{predicted[i]}"
        axes.text(
            column * tile + 4.5,
            row * (tile + 3) + 9.2,
            text,
            ha="center",
            va="top",
            fontsize=8,
            color=WRONG if mistaken else FAINT,
            fontweight="bold" if mistaken else "normal",
        )
    extent = "all" if len(wrong) <= len(shown) else "some of the"
    axes.set_title(
        f"What {optimizer} learned: {len(right)} of {len(y)} test digits read rightly. "
        f"In red {extent} {len(wrong)} misread (truth → answer), then the least sure",
        loc="left",
    )
    axes.set_axis_off()


@contextmanager
def _sheet(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A new figure in the demo's style, written as PNG in the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.color": INK,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "legend.fontsize": 9,
    }
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, format="png", dpi=120)
        pyplot.close(figure)


def draw(path: Path, report: dict[str, Any], x: Array, y: Array, logits: Array, optimizer: str) -> None:
    """Writes the figure as PNG."""
    first = report["rows"][0]["model"]
    machine = report["machine"]
    with _sheet(path, (13, 10)) as figure:
        parts = figure.add_gridspec(3, 1, height_ratios=(1.15, 0.3, 0.8), hspace=0.06)
        above = parts[0].subgridspec(1, 2, wspace=0.06, width_ratios=(1, 1.15))
        _curves(figure.add_subplot(above[0]), [row for row in report["rows"] if row["model"] == first])
        _bars(figure.add_subplot(above[1]), report["rows"], report["large_array"])
        _steps(figure.add_subplot(parts[1]), report["zeroth_order"])
        _grid(figure.add_subplot(parts[2]), x, y, logits, optimizer)
        figure.supxlabel(
            f"curvk {report['curvk']}, {machine['backend']}, {machine['simd']}, {machine['threads']} thread(s), "
            f"{machine['cpu']}; NumPy {machine['numpy']}; medians",
            fontsize=8,
            color=FAINT,
        )


def draw_samplers(path: Path, entry: dict[str, Any], clouds: dict[str, Array]) -> None:
    """Writes the particles over the density's contours, one panel per method, as PNG."""
    x, y = (np.linspace(low, high, 320) for low, high in ((-2.1, 2.1), (-1.4, 2.6)))
    places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    density = np.exp(DoubleBanana().log_density(places)).reshape(len(y), len(x))
    found = {row["method"]: row["mmd2"] for row in entry["rows"]}
    with _sheet(path, (13, 5)) as figure:
        panels = figure.subplots(1, len(clouds), sharex=True, sharey=True)
        for axes, (name, points), colour in zip(panels, clouds.items(), (CURVK, COLOURS["SGD"], FAINT), strict=True):
            axes.contourf(x, y, density, levels=density.max() * np.linspace(0.02, 1, 8), cmap="Greys", alpha=0.6)
            axes.plot(*points.T, ls="none", marker="o", ms=5, color=colour, mec="white", mew=0.6)
            axes.set(aspect="equal", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
            axes.set_title(f"{name[0].upper()}{name[1:]}", loc="left")
            axes.set_xlabel(f"MMD² {found[name][0]:.3f}; median of {len(found[name])} seeds {median(found[name]):.3f}")
        figure.supxlabel(
            f"{entry['density']} (grey), {entry['particles']} points; both samplers after {entry['evaluations']:,} "
            "evaluations, without gradients",
            fontsize=9,
            color=FAINT,
        )


def draw_stream(path: Path, entry: dict[str, Any], curves: dict[str, Array]) -> None:
    """Writes the running mistakes of each learner as PNG."""
    with _sheet(path, (13, 5)) as figure:
        axes = figure.subplots()
        for (name, curve), colour in zip(curves.items(), (CURVK, COLOURS["SGD"], FAINT), strict=True):
            rows = np.arange(1, len(curve) + 1)
            axes.plot(rows, curve, color=colour, lw=2, label=f"{name}: {curve[-1]:,}, {curve[-1] / len(curve):.2%}")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8)
        axes.set_xlim(0, entry["rows"])
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"rows of {entry['data']}, each predicted before it is learned")
        axes.set_title(f"Mistakes so far; {entry['anomalies']:.1%} of the rows are anomalies", loc="left")
        axes.legend(loc="lower right", frameon=False)
