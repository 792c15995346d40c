"""The pictures of a benchmark run: the roofline, and time per parameter beside the peers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import quantiles
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from .runner import Result

INK, FAINT, GRID = "#22272e", "#7a828c", "#e3e6ea"
THREAD_COLORS = ("#1f6fb2", "#d1601f", "#3d8f5f", "#8457a8")
LEVEL_MARKERS = {"v2": "v", "v3": "s", "v4": "o", "armv8-a": "o", "default": "o", "none": "o"}
BAR_COLORS = {"limit": "#c9ced6", "curvk": "#1f6fb2", "torch": "#e0894f", "numba": "#6aa886", "numpy": "#a98fc4"}
ROOF = "4 read, 3 written"
MODEL_NAMES = {
    "1000x1000": "1,000 tensors of 1,000",
    "resnet50": "ResNet-50 shapes, 25.6 M",
    "gpt2-small": "GPT-2 small shapes, 124 M",
}


def _caption(machine: dict[str, Any]) -> str:
    hardware, packages = machine["machine"], machine["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("numpy", "numba", "torch") if packages.get(name))
    built = f", built with {machine['library_built_with']}" if machine.get("library_built_with") else ""
    load = f", load average {machine['load_average'][0]:.1f}" if machine.get("load_average") else ""
    return (
        f"{hardware['model']}, {hardware['cpus']} CPUs; curvk {machine['version']} ({machine['kernels']['backend']}, "
        f"level {machine['simd']['level']}){built}; {versions}; {machine['date'][:10]}{load}"
    )


def _finish(figure: Figure, title: str, subtitle: str, machine: dict[str, Any]) -> None:
    inch = 1 / figure.get_figheight()
    figure.text(0.012, 1 - 0.16 * inch, title, fontsize=15, fontweight="bold", color=INK, va="top")
    figure.text(0.012, 1 - 0.50 * inch, subtitle, fontsize=10, color=FAINT, va="top")
    caption = textwrap.fill(_caption(machine), int(figure.get_figwidth() * 16.5))
    figure.text(0.012, 0.1 * inch, caption, fontsize=7.5, color=FAINT, va="bottom")


def _name(r: Result) -> str:
    op = {"adam_step": "", "sgd_step": "SGD ", "sum_squares": "norm "}.get(r.op, f"{r.op} ")
    variant = {"default": "", "adam": "Adam ", "adamw": "AdamW ", "amsgrad": "AMSGrad "}.get(r.variant, f"{r.variant} ")
    return f"{op}{variant}{r.format}"


def _apart(x: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near x, in its order, at least `gap` apart and inside [low, high]: what keeps labels legible."""
    order = np.argsort(x, kind="stable")
    wanted = np.array(x)[order]
    gap = min(gap, (high - low) / max(len(x) - 1, 1))
    # Least squares under ordering: pool neighbours that collide until none does.
    blocks = [[w - k * gap, 1] for k, w in enumerate(wanted)]
    k = 0
    while k + 1 < len(blocks):
        if blocks[k][0] > blocks[k + 1][0]:
            (a, m), (b, n) = blocks[k], blocks.pop(k + 1)
            blocks[k] = [(a * m + b * n) / (m + n), m + n]
            k = max(k - 1, 0)
        else:
            k += 1
    placed = np.repeat([b for b, _ in blocks], [m for _, m in blocks]) + gap * np.arange(len(wanted))
    placed = np.clip(placed, low + gap * np.arange(len(wanted)), high - gap * np.arange(len(wanted))[::-1])
    result = np.empty(len(wanted))
    result[order] = placed
    return [float(v) for v in result]


def roofline(machine: dict[str, Any], results: Sequence[Result]) -> Figure | None:
    """Each kernel on its longest arrays, under the roofs of memory and of the matrix product. None without kernels."""
    longest: dict[tuple[str, str, str, int], Result] = {}
    for r in results:
        key = r.op, r.variant, r.format, r.threads
        if r.flops_per_element and r.what not in MODEL_NAMES and (key not in longest or r.n > longest[key].n):
            longest[key] = r
    bandwidth = machine["limits"]["bandwidth_GB_s"]
    threads = sorted({r.threads for r in longest.values()})
    if not longest or not bandwidth:
        return None
    color = {t: THREAD_COLORS[k % len(THREAD_COLORS)] for k, t in enumerate(threads)}
    intensity = {name: r.flops_per_element / r.bytes_per_element for r in longest.values() for name in [_name(r)]}
    points: list[tuple[str, float, float, int, str]] = []
    for r in longest.values():
        for name in [c for c in r.samples if c.startswith("curvk")]:
            level = name.removeprefix("curvk").strip() or r.level
            points.append(
                (_name(r), intensity[_name(r)], r.n * r.flops_per_element / r.seconds(name) / 1e9, r.threads, level)
            )

    figure = Figure(figsize=(11.5, 7.4), facecolor="white")
    ax = figure.add_axes((0.065, 0.115, 0.92, 0.775))
    peaks = {t: machine["limits"]["sgemm_GFLOP_s"].get(str(t)) for t in threads}
    roofs = {t: bandwidth[str(t)] for t in threads if str(t) in bandwidth}
    top = max([p for p in peaks.values() if p] + [p[2] for p in points])
    x_low = min(intensity.values()) / 1.8
    fastest = max((rates[ROOF] for rates in roofs.values()), default=1.0)
    x_high = max(max(intensity.values()) * 8, 2.5 * top / fastest)
    y_low = min(p[2] for p in points) / 2.2
    # The names stand in a row above every marker and roof there; the longest takes a quarter of the height.
    height = 1.6 * max(max(p[2] for p in points), max(intensity.values()) * fastest)
    y_high = max(top * 1.6, y_low * (height / y_low) ** (1 / 0.76))
    ax.set(xscale="log", yscale="log", xlim=(x_low, x_high), ylim=(y_low, y_high))

    x = np.geomspace(x_low, x_high, 400)
    for t, rates in roofs.items():
        for probe, style, width in ((ROOF, "-", 2.0), ("triad", (0, (4, 3)), 1.1)):
            y = np.minimum(x * rates[probe], peaks[t] or np.inf)
            ax.plot(x, y, color=color[t], lw=width, ls=style, alpha=0.9, zorder=2)
    measured = [(t, p) for t, p in peaks.items() if p]
    scale = np.log10(y_high / y_low)
    apart = _apart([float(np.log10(p)) for _, p in measured], 0.034 * scale, -9, float(np.log10(y_high)) - 0.03 * scale)
    for (t, peak), place in zip(measured, apart, strict=True):
        label = f"sgemm, {t} thread{'' if t == 1 else 's'}: {peak:.0f} GFLOP/s"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.2}
        ax.text(x_high * 0.985, 10 ** (place + 0.012 * scale), label, ha="right", color=color[t], fontsize=9, bbox=box)

    levels = sorted({p[4] for p in points}, key=lambda level: (level == machine["simd"]["level"], level))
    step = 10 ** (0.0065 * np.log10(x_high / x_low))  # levels stand side by side, so that equal ones are all seen
    for _, px, py, t, level in sorted(points, key=lambda p: levels.index(p[4])):
        px *= step ** (levels.index(level) - (len(levels) - 1) / 2)
        marker = LEVEL_MARKERS.get(level, "D")
        face = color[t] if level == machine["simd"]["level"] else "white"
        ax.plot(px, py, marker, ms=6.5, mfc=face, mec=color[t], mew=1.2, alpha=0.95, zorder=4)

    names = sorted(intensity, key=lambda n: (intensity[n], n))
    where = 10 ** np.array(
        _apart(
            [float(np.log10(intensity[n])) for n in names], 0.0235 * np.log10(x_high / x_low), np.log10(x_low * 1.04), 9
        )
    )
    for name, label_x in zip(names, where, strict=True):
        highest = max(p[2] for p in points if p[0] == name)
        ax.plot([intensity[name], label_x], [highest * 1.13, height / 1.06], color=FAINT, lw=0.6, alpha=0.7, zorder=1)
        ax.text(
            label_x,
            height,
            name,
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            zorder=5,
        )

    handles: list[Line2D] = []
    for t in threads:
        rates = roofs.get(t)
        text = f"{t} thread{'' if t == 1 else 's'}"
        handles.append(Line2D([], [], color=color[t], lw=2, label=f"{text}: {rates[ROOF]:.1f} GB/s" if rates else text))
        if rates:
            handles.append(
                Line2D([], [], color=color[t], lw=1.1, ls=(0, (4, 3)), label=f"  triad: {rates['triad']:.1f} GB/s")
            )
    for level in levels:
        face = INK if level == machine["simd"]["level"] else "white"
        marker = LEVEL_MARKERS.get(level, "D")
        handles.append(Line2D([], [], ls="", marker=marker, ms=6.5, mfc=face, mec=INK, label=f"level {level}"))
    ax.legend(
        handles=handles, loc="lower right", fontsize=9, frameon=True, framealpha=1, edgecolor=GRID, labelcolor=INK
    )
    ax.set_xlabel("arithmetic intensity: flops per byte of memory traffic, from the registry", color=INK)
    ax.set_ylabel("GFLOP/s", color=INK)
    ax.grid(True, which="major", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda v, _: f"{v:g}")
        axis.set_minor_formatter(NullFormatter())
    sizes = sorted({r.n for r in longest.values()})
    data = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    cached = any(y > 1.15 * roofs[t][ROOF] * x for _, x, y, t, _ in points if t in roofs)
    subtitle = (
        f"Longest arrays measured ({data} elements), medians; levels side by side. Solid roof: a loop with 4 streams "
        f"read, 3 written{'; above it: arrays in the cache' if cached else ''}."
    )
    _finish(figure, "Every kernel under this machine's roofs", subtitle, machine)
    return figure


def _bars(machine: dict[str, Any], results: Sequence[Result], title: str, order: Sequence[str]) -> Figure | None:
    """Small multiples of bars from zero: a field for each size, three to a row, rows for each thread count."""
    if not results:
        return None
    sizes = list(dict.fromkeys(r.what for r in results))
    columns = min(len(sizes), 3)  # more would be too small to read on a page
    lines = -(-len(sizes) // columns)
    threads = sorted({r.threads for r in results})
    present = [name for name in order if any(name in r.samples for r in results)]
    margin = 0.75 + 0.075 * max(map(len, present))  # inches, for the names
    width, row_height = margin + 0.4 + 2.15 * columns, 0.75 + 0.27 * len(present)
    figure = Figure(figsize=(max(width, 8.5), 1.35 + row_height * len(threads) * lines), facecolor="white")
    inches = figure.get_figheight()
    axes = figure.subplots(len(threads) * lines, columns, squeeze=False)
    figure.subplots_adjust(
        left=margin / figure.get_figwidth(),
        right=1 - 0.25 / figure.get_figwidth(),
        top=1 - 1.12 / inches,
        bottom=0.6 / inches,
        wspace=0.14,
        hspace=0.28,
    )
    for i, t in enumerate(threads):
        for at, ax in enumerate(axes[i * lines : (i + 1) * lines].flat):
            if at >= len(sizes):
                ax.set_axis_off()
                continue
            what, j = sizes[at], at % columns
            r = next((r for r in results if r.what == what and r.threads == t), None)
            ax.set_ylim(len(present) - 0.4, -0.6)
            ax.set_yticks(range(len(present)), present if j == 0 else [""] * len(present))
            ax.spines[["top", "right", "bottom"]].set_visible(False)
            ax.spines["left"].set_color(FAINT)
            ax.tick_params(length=0, labelsize=9, colors=INK)
            ax.set_xticks([])
            heading = MODEL_NAMES.get(what, f"{what} parameters")
            ax.set_title(heading, fontsize=9.5, color=INK, loc="left", pad=6)
            if j == 0:
                place = -(margin - 0.2) / (ax.get_position().width * figure.get_figwidth())
                ax.text(
                    place,
                    0.5,
                    f"{t} thread{'' if t == 1 else 's'}",
                    transform=ax.transAxes,
                    rotation=90,
                    ha="center",
                    va="center",
                    fontsize=10,
                    fontweight="bold",
                    color=INK,
                )
            if r is None:
                continue
            ends = []
            for k, name in enumerate(present):
                if name not in r.samples:
                    ax.text(0, k, "  –", va="center", fontsize=8, color=FAINT)
                    continue
                low, middle, high = (x / r.n * 1e9 for x in quantiles(r.samples[name], n=4, method="inclusive"))
                ours = name.startswith("curvk")
                ax.barh(
                    k, middle, height=0.72, color=BAR_COLORS.get(name.split()[0].split(".")[0], "#999999"), zorder=2
                )
                ax.plot([low, high], [k, k], color=INK, lw=1, zorder=3)
                text = f" {middle:.3g}" if middle < 100 else f" {middle:,.0f}"
                weight = "bold" if ours else "normal"
                ax.text(max(high, middle), k, text, va="center", fontsize=8.5, color=INK, fontweight=weight, zorder=4)
                ends.append(max(high, middle))
            ax.set_xlim(0, max(ends) * 1.28)
    subtitle = (
        "Nanoseconds per parameter and step, shorter is better: medians of interleaved rounds and their quartiles."
    )
    _finish(figure, title, subtitle, machine)
    return figure


def peers(machine: dict[str, Any], results: Sequence[Result]) -> Figure | None:
    """AdamW in float32 on one array, against size and peers. None if it was not measured."""
    shown = [
        r for r in results if (r.op, r.variant, r.format) == ("adam_step", "adamw", "f32") and r.what not in MODEL_NAMES
    ]
    order = ("limit", "curvk", "numba", "torch fused", "numpy in blocks", "numpy", "torch foreach")
    return _bars(machine, shown, "AdamW, float32, one array", order)


def models(machine: dict[str, Any], results: Sequence[Result]) -> Figure | None:
    """AdamW in float32 on models' lists of tensors. None if it was not measured."""
    shown = [
        r for r in results if (r.op, r.variant, r.format) == ("adam_step", "adamw", "f32") and r.what in MODEL_NAMES
    ]
    order = ("limit", "curvk plan", "curvk.torch", "curvk.torch, fresh gradients", "torch fused", "torch foreach")
    return _bars(machine, shown, "AdamW, float32, all tensors of a model", order)


FIGURES = {"roofline.png": roofline, "peers.png": peers, "models.png": models}
"""What a run draws, by file name; each takes the machine and the results."""
