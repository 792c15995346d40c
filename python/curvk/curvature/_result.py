"""What a probe found: numbers per parameter and per layer, a table, a file, a picture."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _store
from .._errors import message
from ._layers import Estimate, LayerGlass
from ._measure import Measured, real_or_inf, standard_errors
from ._tree import Array

DENSITY_FACTOR = 3 / (4 * math.pi)
DENSITY_COST = math.sqrt(2 / (3 * math.pi))

Pack = Callable[[Sequence[Any]], Any]


class GlassResult:
    """Glass density and curvature at one point, from `GlassProbe.run`.

    Attributes:
        rho: glass density per parameter, in x0's structure (from a module: a dict of tensors by parameter name): the
            mean over the samples of 2 Gamma^2 / sigma. In gradient^2 per parameter.
        rho_se: its standard error over the samples.
        h2: squared row norm of the Hessian with the glass removed, -gamma+ gamma- / sigma^2; may come out negative.
        h2_se: its standard error.
        grad: mean gradient at x0 over the samples.
        layers: `LayerGlass` by layer name: the same with exponents, crossover lengths and the floor of rounding.
        samples, sigma, distances: as run.

    A float32 x0 gives float32 arrays. A standard error takes the samples for independent, as their signs are.
    """

    def __init__(self, measured: Measured, layers: dict[str, LayerGlass], pack: Pack) -> None:
        self._pack, self._moments = pack, measured.moments
        self.layers = layers
        self.samples, self.sigma, self.distances = len(measured.sums), measured.sigma, measured.distances
        m = measured.moments
        self.grad, self.rho, self.h2 = pack(m.grad), pack(m.rho), pack(m.h2)
        self.rho_se, self.h2_se = pack(self._errors(m.rho_m2)), pack(self._errors(m.h2_m2))

    def _errors(self, squares: list[Array]) -> list[Array]:
        return standard_errors(squares, self.samples)

    # ---- the model --------------------------------------------------------------------------------------------------

    def _lengths(self, largest: float, function: str) -> Iterable[tuple[Array, Array, Array, Array]]:
        """Per array in float64: abs(g), h, rho and the length t that minimises the model."""
        limit = real_or_inf(function, "largest", largest)
        m = self._moments
        for g, r, h2 in zip(m.grad, m.rho, m.h2, strict=True):
            a, rho = np.abs(g.astype(np.float64)), r.astype(np.float64)
            h = np.sqrt(np.maximum(h2.astype(np.float64), 0))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                alpha = DENSITY_FACTOR * rho / a
                t = a / (alpha + h + np.sqrt(alpha * (alpha + 2 * h)))
            yield a, h, rho, np.minimum(np.where(a > 0, t, 0.0), limit)

    def step(self, *, largest: float = math.inf) -> Any:
        """The step that minimises the model of the loss, in each coordinate by itself.

        With a = abs(g), h = sqrt(max(h2, 0)) and c^2 = 2 / (3 pi)::

            -a t + h t^2 / 2 + c sqrt(rho) t^1.5   is least at   t = a / (alpha + h + sqrt(alpha (alpha + 2 h)))
            alpha = 3 / (4 pi) rho / a

        Without glass t is Newton's a / h; without curvature (2 pi / 3) a^2 / rho. A coordinate with a gradient and
        neither has no minimum and gets `largest`.

        Args:
            largest: no coordinate moves further, > 0. The model was measured at the run's distances; further out it is
                a guess.

        Returns:
            -sign(g) t in x0's structure and dtypes.

        Raises:
            TypeError, ValueError: `largest` is not a number above 0.
        """
        m = self._moments
        lengths = self._lengths(largest, "GlassResult.step")
        steps = (-np.sign(g) * t for g, (*_, t) in zip(m.grad, lengths, strict=True))
        return self._pack([np.asarray(s, g.dtype) for g, s in zip(m.grad, steps, strict=True)])

    def predicted_decrease(self, *, largest: float = math.inf) -> float:
        """By how much the model's loss falls in `step`: the sum of a t - h t^2 / 2 - c sqrt(rho) t^1.5.

        At the unbounded minimum that is a t / 3 + h t^2 / 6. It leaves out what coordinates do to each other, so it is
        a guide, not a bound.

        Args:
            largest: as in `step`.

        Returns:
            In the units of the loss; inf where a coordinate has a gradient, no curvature, no glass and no limit.

        Raises:
            TypeError, ValueError: as `step`.
        """
        total = 0.0
        for a, h, rho, t in self._lengths(largest, "GlassResult.predicted_decrease"):
            moved = np.where(np.isfinite(t), t, 0.0)
            loss = a * moved - h * moved**2 / 2 - DENSITY_COST * np.sqrt(rho) * moved**1.5
            total += float(np.where(np.isfinite(t), loss, np.inf).sum())
        return total

    # ---- out of here ------------------------------------------------------------------------------------------------

    def table(self) -> list[dict[str, Any]]:
        """A row for each layer and distance: the fields of `Reading`, intervals as `_low` and `_high`.

        `overall_glass_exponent` and `overall_variation_exponent` are the layer's over all distances.
        """
        rows = []
        for layer in self.layers.values():
            for reading in layer.readings:
                row: dict[str, Any] = {"layer": layer.name, "size": layer.size, "samples": self.samples}
                fields = dict(vars(reading))
                fields["overall_glass_exponent"] = layer.glass_exponent
                fields["overall_variation_exponent"] = layer.variation_exponent
                for key, value in fields.items():
                    if isinstance(value, Estimate):
                        row |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
                    else:
                        row[key] = value
                rows.append(row)
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table: .csv, or .json with the settings, by the suffix. Numbers that are not finite are empty in
        CSV and null in JSON. The file is written whole or not at all.

        Raises:
            ValueError: another suffix.
            OSError: a place that cannot be written.
        """
        rows = [{k: _finite(v) for k, v in row.items()} for row in self.table()]
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            settings = {"samples": self.samples, "sigma": self.sigma, "distances": list(self.distances)}
            text = json.dumps({"settings": settings, "rows": rows}, indent=1, allow_nan=False) + "\n"
        elif suffix == ".csv":
            out = io.StringIO()
            writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            text = out.getvalue()
        else:
            raise ValueError(
                message("GlassResult.save", "path", repr(os.fspath(path)), "a name ending in .csv or .json")
            )
        _store.replace(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))

    def plot(self, layers: Iterable[str] | None = None) -> Any:
        """A figure of Gamma^2, gamma^2 and curvature against distance, a colour per layer; needs matplotlib.

        The legend has the layers' exponents; in grey the slopes of glass and of a smooth loss; dotted, what rounding
        alone gives.

        Args:
            layers: names of the layers to show; all by default.

        Returns:
            A `matplotlib.figure.Figure`, for `.savefig(path)`.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: an unknown layer.
        """
        from ._figure import draw

        shown = list(self.layers) if layers is None else list(layers)
        for name in shown:
            if name not in self.layers:
                raise ValueError(message("GlassResult.plot", "layers", repr(name), f"names among {list(self.layers)}"))
        return draw([self.layers[name] for name in shown], self.samples)

    def __repr__(self) -> str:
        size = sum(layer.size for layer in self.layers.values())
        return (
            f"GlassResult({self.samples} samples, sigma={self.sigma:g}, {len(self.distances)} distance(s), "
            f"{len(self.layers)} layer(s), {size} parameters)"
        )

    def __str__(self) -> str:
        """The layers at sigma, a line each."""
        width = max(5, *map(len, self.layers))
        lines = [
            f"{'layer':{width}}       rho ± s.e.             h2 ± s.e.       h2 published  Gamma^2 ~ d^p  crossover"
        ]
        for layer in self.layers.values():
            exponent = "" if math.isnan(layer.glass_exponent.value) else f"{layer.glass_exponent.value:.2f}"
            lines.append(
                f"{layer.name:{width}}  {layer.rho:9.2e} ± {layer.rho_se:7.1e}  {layer.h2:9.2e} ± {layer.h2_se:7.1e}  "
                f"{layer.h2_reference:12.2e}  {exponent:>13}  {layer.crossover.value:9.1e}"
                + ("  rho at the floor of rounding" if layer.at_floor else "")
            )
        return "\n".join([repr(self), *lines])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
