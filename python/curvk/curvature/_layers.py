"""From the sums of a run to what it says of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..kernels import noise
from ._measure import Layers, Measured
from ._tree import Array

RESAMPLES = 1000
LEVEL = 0.95
FLOOR_FACTOR = 10.0
"""A glass density below so many times its floor is not told apart from rounding."""


class Estimate(NamedTuple):
    """A value with its 95 % bootstrap interval over the samples (percentiles); NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Reading:
    """A layer at one distance d. Means are over the layer's elements and over the samples.

    Attributes:
        distance: d, in the units of the parameters.
        rho, rho_se: glass density 2 Gamma^2 / d, in gradient^2 per parameter, and its standard error.
        h2, h2_se: squared row norm of the Hessian without glass, -gamma+ gamma- / d^2; may come out negative.
        h2_reference: the published estimate ((g+ - g-) / (2 d))^2, whose mean is h2 + rho / (2 d).
        glass: Gamma^2, with Gamma = (g+ + g-) / 2 - g.
        variation: gamma^2, the mean of both sides; gamma = g(x0 +- d z) - g(x0).
        crossover: rho / h2, the distance at which glass and Hessian change the gradient by the same amount; inf where
            h2 is not above 0.
        floor: the rho that rounding alone shows: 2 / d times Gamma^2 as found at a 256th of the least distance
            (where glass, too, leaves a 256th), but at least 2 (u rms g)^2 / d, with u the unit roundoff.
        at_floor: whether rho is at most 10 times the floor, so that it says nothing.
        glass_exponent, variation_exponent: p in Gamma^2 ~ d^p and gamma^2 ~ d^p from here to the next distance; NaN at
            the last one.
    """

    distance: float
    rho: float
    rho_se: float
    h2: float
    h2_se: float
    h2_reference: float
    glass: float
    variation: float
    crossover: Estimate
    floor: float
    at_floor: bool
    glass_exponent: Estimate
    variation_exponent: Estimate


@dataclass(frozen=True)
class LayerGlass:
    """What a run says of one layer.

    Attributes:
        name: of the layer.
        parameters: names of its arrays.
        size: its number of elements.
        sigma: the probe's distance.
        readings: one for each distance, ascending.
        glass_exponent, variation_exponent: slopes of a line through log Gamma^2 and log gamma^2 over all distances; NaN
            with one distance. Glass has 1 and 1 to 2, a smooth loss 4 and 2.
    """

    name: str
    parameters: tuple[str, ...]
    size: int
    sigma: float
    readings: tuple[Reading, ...]
    glass_exponent: Estimate
    variation_exponent: Estimate

    @property
    def at_sigma(self) -> Reading:
        """The reading at the probe's sigma; the properties below are its values."""
        return next(r for r in self.readings if r.distance == self.sigma)

    @property
    def rho(self) -> float:
        return self.at_sigma.rho

    @property
    def rho_se(self) -> float:
        return self.at_sigma.rho_se

    @property
    def h2(self) -> float:
        return self.at_sigma.h2

    @property
    def h2_se(self) -> float:
        return self.at_sigma.h2_se

    @property
    def h2_reference(self) -> float:
        return self.at_sigma.h2_reference

    @property
    def crossover(self) -> Estimate:
        return self.at_sigma.crossover

    @property
    def floor(self) -> float:
        return self.at_sigma.floor

    @property
    def at_floor(self) -> bool:
        return self.at_sigma.at_floor


def resampled(sums: Array, seed: int) -> Iterator[Array]:
    """Means over the samples of bootstrap resamples, in blocks: shape (block, *sums.shape[1:])."""
    n, flat = len(sums), sums.reshape(len(sums), -1)
    block = max(1, (1 << 22) // n)
    word = noise.tensor_word("bootstrap", "sampling")
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        u = noise.fill(np.empty((rows, n), np.float32), seed=seed, draw=start, tensor=word, dist="uniform")
        picked = (u.astype(np.float64) * n).astype(np.int64) + n * np.arange(rows)[:, None]
        counts = np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n)
        yield (counts @ flat / n).reshape(rows, *sums.shape[1:])


def _slopes(log_d: Array, y: Array) -> Array:
    """Slopes of log y, shape (..., distances, layers), over all distances and, local ones, to the next distance.

    Returns shape (..., distances, layers): the last entry along distances is the overall slope.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_y = np.log(y)
        local = np.diff(log_y, axis=-2) / np.diff(log_d)[:, None]
        centred = log_d - log_d.mean()
        overall = np.tensordot(log_y, centred, ((-2,), (0,))) / (centred @ centred)
    return np.concatenate([local, overall[..., None, :]], axis=-2)


def _quantities(log_d: Array, distances: Array, means: Array) -> Array:
    """Exponents of Gamma^2 and gamma^2 and crossovers from mean sums: shape (..., 3, distances, layers)."""
    jump, change, product = means[..., 0], means[..., 1], means[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        h2 = np.maximum(product, 0) / distances[:, None] ** 2
        crossover = 2 * jump / distances[:, None] / h2
    return np.stack([_slopes(log_d, jump), _slopes(log_d, change), crossover], axis=-3)


def read_layers(
    measured: Measured, layers: Layers, names: Sequence[str], arrays: Sequence[Array], seed: int
) -> dict[str, LayerGlass]:
    """The layers by name, with bootstrap intervals from the stream of `seed`."""
    distances, sums = np.array(measured.distances), measured.sums
    n, log_d = len(sums), np.log(distances)
    sizes = np.array([sum(arrays[i].size for i in rows) for rows in layers.values()])
    units = np.array([max(float(np.finfo(arrays[i].dtype).eps) / 2 for i in rows) for rows in layers.values()])
    d = distances[:, None]
    elements = sums / sizes[:, None]  # means over the elements of a layer, per sample
    rho, h2 = 2 * elements[..., 0] / d, elements[..., 2] / d**2
    mean = elements.mean(axis=0)
    reference = (mean[..., 1] + mean[..., 2]) / (2 * d**2)
    floor = 2 * np.maximum(units**2 * mean[..., 3], measured.rounding / sizes) / d
    central = _quantities(log_d, distances, mean)
    spread = np.concatenate([_quantities(log_d, distances, m) for m in resampled(elements, seed)])
    tail = (1 - LEVEL) / 2
    # inverted_cdf: no arithmetic between an infinite value and its neighbour
    low, high = np.quantile(spread, [tail, 1 - tail], axis=0, method="inverted_cdf")

    def error(x: Array) -> Array:
        return np.asarray(x.std(axis=0, ddof=1) / np.sqrt(n))

    def estimate(kind: int, k: int, layer: int) -> Estimate:
        return Estimate(*(float(x[kind, k, layer]) for x in (central, low, high)))

    nan, last = Estimate(*[float("nan")] * 3), len(distances) - 1
    found = {}
    for layer, (name, rows) in enumerate(layers.items()):
        readings = []
        for k in range(len(distances)):
            at: Any = (k, layer)
            readings.append(
                Reading(
                    distance=float(distances[k]),
                    rho=float(rho.mean(axis=0)[at]),
                    rho_se=float(error(rho)[at]),
                    h2=float(h2.mean(axis=0)[at]),
                    h2_se=float(error(h2)[at]),
                    h2_reference=float(reference[at]),
                    glass=float(mean[..., 0][at]),
                    variation=float(mean[..., 1][at]),
                    crossover=estimate(2, k, layer),
                    floor=float(floor[at]),
                    at_floor=bool(rho.mean(axis=0)[at] <= FLOOR_FACTOR * floor[at]),
                    glass_exponent=estimate(0, k, layer) if k < last else nan,
                    variation_exponent=estimate(1, k, layer) if k < last else nan,
                )
            )
        overall = (estimate(0, last, layer), estimate(1, last, layer)) if last else (nan, nan)
        members = tuple(names[i] for i in rows)
        found[name] = LayerGlass(name, members, int(sizes[layer]), measured.sigma, tuple(readings), *overall)
    return found
