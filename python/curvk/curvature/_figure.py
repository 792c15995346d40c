"""The figure of a result: Gamma^2, gamma^2 and curvature against distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._layers import Estimate, LayerGlass, Reading

COLOURS = ("#d1495b", "#00798c", "#edae49", "#66579c", "#5f9e3f", "#8d6e63", "#22282f", "#e07a9a")
INK, FAINT, GRID = "#22282f", "#5b6470", "#e6e8eb"


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "GlassResult.plot needs matplotlib, which is not installed; use: pip install matplotlib"
        ) from error
    return pyplot


def draw(layers: Sequence[LayerGlass], samples: int) -> Any:
    """The figure; the caller saves or shows it."""
    pyplot = _pyplot()
    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "text.color": INK}
    with pyplot.rc_context({**style, "font.size": 10, "axes.titlesize": 11}):
        if len(layers[0].readings) > 1:
            figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
            _against_distance(figure, axes, layers)
        else:
            height = 1.6 + 0.25 * len(layers)
            figure, axes = pyplot.subplots(1, 2, figsize=(11, height), layout="constrained", sharey=True)
            _by_layer(axes, layers)
        said = "Exponents with 95 % bootstrap intervals; bars" if len(layers[0].readings) > 1 else "Bars"
        text = (
            f"{samples} samples, sigma = {layers[0].sigma:g}. {said}: standard errors; means over a layer's parameters"
        )
        figure.supxlabel(text, fontsize=8, color=FAINT)
    return figure


def _by_layer(axes: Sequence[Any], layers: Sequence[LayerGlass]) -> None:
    """One distance: a row for each layer."""
    density, curvature = axes
    rows = np.arange(len(layers))
    colour = COLOURS[1]
    for axis, value, error in (
        (density, [x.rho for x in layers], [x.rho_se for x in layers]),
        (curvature, [x.h2 for x in layers], [x.h2_se for x in layers]),
    ):
        y, e = np.array(value), np.array(error)
        shown = y > 0  # the scale is logarithmic; a bar that reaches 0 is cut
        label = "glass density" if axis is density else "glass removed"
        bars = [np.minimum(e, 0.9 * y)[shown], e[shown]]
        axis.errorbar(y[shown], rows[shown], xerr=bars, color=colour, ls="", marker="o", ms=5, capsize=2, label=label)
    density.plot([x.floor for x in layers], rows, ls="", marker="|", ms=10, color=FAINT, label="floor of rounding")
    density.set_xlabel("rho, gradient² / parameter")
    density.set_title(r"Glass density, as far as $\Gamma^2 \sim d$", loc="left")
    published = [x.h2_reference for x in layers]
    curvature.plot(published, rows, ls="", marker="o", mfc="white", color=FAINT, label="published")
    curvature.set_xlabel("$h^2$, (gradient / parameter)²")
    curvature.set_title("Squared row norm of the Hessian", loc="left")
    density.set_yticks(rows, [x.name for x in layers], fontsize=8)
    density.invert_yaxis()
    for axis in axes:
        if any(np.any(np.asarray(line.get_xdata()) > 0) for line in axis.get_lines()):
            axis.set_xscale("log")
        axis.grid(color=GRID)
        axis.legend(fontsize=8, frameon=False)


def _against_distance(figure: Any, axes: Sequence[Any], layers: Sequence[LayerGlass]) -> None:
    glass, variation, curvature = axes
    colours = colours_of(len(layers))
    many = len(layers) > len(COLOURS)
    _lines(glass, layers, colours, lambda r: r.glass, lambda x: x.glass_exponent)
    if many:  # beside the axes, where the names have room
        figure.legend(loc="outside right upper", fontsize=7, frameon=False, title="layer: exponent of $\\Gamma^2$")
        for line in glass.get_lines():
            line.set_label("")
    for layer, colour in zip(layers, colours, strict=True):
        # As Gamma^2 the floor is the same at all distances.
        glass.axhline(layer.floor * layer.sigma / 2, color=colour, lw=1, ls=":")
    glass.plot([], [], color=FAINT, lw=1, ls=":", label="floor of rounding")
    _slope(glass, layers, lambda r: r.glass, 1, "glass, slope 1")
    _slope(glass, layers, lambda r: r.glass, 4, "smooth, slope 4")
    glass.set_title(r"$\Gamma^2$: what gradient and Hessian leave", loc="left")
    glass.set_ylabel(r"mean $\Gamma^2$ per parameter, gradient²")
    _lines(variation, layers, colours, lambda r: r.variation, lambda x: x.variation_exponent)
    if many:
        for line in variation.get_lines():
            line.set_label("")
    _slope(variation, layers, lambda r: r.variation, 1, "glass, slope 1")
    _slope(variation, layers, lambda r: r.variation, 2, "Hessian, slope 2")
    variation.set_title(r"$\gamma^2$: how the gradient varies", loc="left")
    variation.set_ylabel(r"mean $\gamma^2$ per parameter, gradient²")
    published = {"lw": 1.2, "ls": "--", "marker": "o", "mfc": "white"}
    for layer, colour in zip(layers, colours, strict=True):
        d = [r.distance for r in layer.readings]
        curvature.plot(d, [r.h2_reference for r in layer.readings], color=colour, **published)
        above = [(r.distance, r.h2, r.h2_se) for r in layer.readings if r.h2 > 0]
        if above:
            x, y, error = np.array(above).T
            low = np.minimum(error, 0.9 * y)  # a bar that reaches below 0 would vanish from the log scale
            curvature.errorbar(x, y, [low, error], color=colour, lw=1.6, marker="o", ms=5, capsize=2)
    curvature.plot([], [], color=FAINT, lw=1.6, marker="o", label="glass removed")
    curvature.plot([], [], color=FAINT, **published, label="published")
    curvature.set_title("Squared row norm of the Hessian", loc="left")
    curvature.set_ylabel(r"mean $h^2$ per parameter, (gradient / parameter)²")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="distance $d$, parameter units")
        _ticks(axis, [r.distance for r in layers[0].readings])
        axis.grid(color=GRID)
        title = None if many or axis is curvature else "layer: exponent"
        axis.legend(fontsize=8, frameon=False, title=title, alignment="left")


def _ticks(axis: Any, distances: Sequence[float], most: int = 8) -> None:
    """Ticks at the distances, at most so many."""
    from matplotlib.ticker import NullLocator

    shown = distances[:: -(-len(distances) // most)]
    axis.set_xticks(shown, [f"{d:g}" for d in shown], fontsize=8)
    axis.xaxis.set_minor_locator(NullLocator())


def colours_of(n: int) -> list[Any]:
    """A colour for each layer: told apart where there are few, from first to last where there are many."""
    if n <= len(COLOURS):
        return list(COLOURS[:n])
    from matplotlib import colormaps

    return [colormaps["viridis"](k / (n - 1)) for k in range(n)]


def _lines(
    axis: Any,
    layers: Sequence[LayerGlass],
    colours: Sequence[Any],
    value: Callable[[Reading], float],
    exponent: Callable[[LayerGlass], Estimate],
) -> None:
    for layer, colour in zip(layers, colours, strict=True):
        points = [(r.distance, value(r)) for r in layer.readings if value(r) > 0]
        found = exponent(layer)
        label = layer.name
        if not math.isnan(found.value):
            label += f": {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
        axis.plot(
            *(zip(*points, strict=True) if points else ([], [])), color=colour, lw=1.6, marker="o", ms=5, label=label
        )


def _slope(axis: Any, layers: Sequence[LayerGlass], value: Callable[[Reading], float], slope: int, label: str) -> None:
    """A grey line of that slope through the middle of the points, where there are several distances."""
    values = np.array([[value(r) for r in layer.readings] for layer in layers])
    d = np.array([r.distance for r in layers[0].readings])
    if len(d) < 2 or not (values > 0).any():
        return
    y = np.exp(np.log(np.where(values > 0, values, np.nan)[:, -1]).min()) * (d / d[-1]) ** slope
    axis.plot(d, y, color="#b8bec6", lw=1.2, ls="-" if slope == 1 else "-.", label=label, zorder=0)
