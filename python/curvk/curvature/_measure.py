"""The probe itself: gradients at x0 and at x0 +- d z, and what they sum to, sample by sample."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .._errors import message
from ..kernels import noise
from ..kernels.curvature import glass_moments_, glass_sums
from ..zeroth._stream import DRAWS, integer, real
from ._tree import Array

_ROUNDING_SAMPLES, _ROUNDING_SHARE = 2, 2.0**-8

Layers = dict[str, tuple[int, ...]]
"""From a layer's name to the indices of its arrays."""


class Gradients(Protocol):
    """Where gradients come from."""

    def begin(self, sample: int) -> None:
        """Sample number `sample`, from 0, begins."""

    def at(self, sample: int, scale: float) -> list[Array]:
        """The gradient at x0 + scale z, z the signs of draw `sample`: C-contiguous arrays, valid until the next call
        unless `fresh`."""

    fresh: bool  # whether each call returns memory of its own
    fixed: bool  # whether the gradient at x0 has been the same in all samples


@dataclass
class Moments:
    """Per-parameter means of rho and h2 and their sums of squared deviations, at the probe's sigma."""

    grad: list[Array]
    rho: list[Array]
    rho_m2: list[Array]
    h2: list[Array]
    h2_m2: list[Array]


@dataclass
class Measured:
    """What a run keeps.

    Attributes:
        sigma: the probe's distance.
        distances: ascending; the probe's sigma is among them.
        sums: float64, shape (samples, distances, layers, 4): what `glass_sums` gives for a layer.
        rounding: float64, shape (layers,): sum of Gamma^2 at a distance where only rounding is left of it.
        moments: per parameter, at sigma.
    """

    sigma: float
    distances: tuple[float, ...]
    sums: Array
    rounding: Array
    moments: Moments


def displace(
    source: Sequence[Any], out: Sequence[Any], words: Sequence[int], seed: int, draw: int, scale: float
) -> None:
    """Out <- source + scale z, with z = +1 or -1; one kernel call per dtype and device."""
    for rows in by_dtype(source):
        noise.scratch(
            [source[i] for i in rows],
            [out[i] for i in rows],
            seed=seed,
            draws=[draw],
            coefs=[scale],
            tensor=[words[i] for i in rows],
            dist="rademacher",
        )


def by_dtype(arrays: Sequence[Any], rows: Iterable[int] | None = None) -> list[list[int]]:
    """The rows (all, by default) in groups that one kernel call can take."""
    groups: dict[Any, list[int]] = {}
    for i in range(len(arrays)) if rows is None else rows:
        groups.setdefault((arrays[i].dtype, getattr(arrays[i], "device", None)), []).append(i)
    return list(groups.values())


def measure(
    gradients: Gradients,
    arrays: Sequence[Array],
    layers: Layers,
    names: Sequence[str],
    *,
    samples: int,
    sigma: float,
    distances: tuple[float, ...],
    function: str,
) -> Measured:
    """Runs `samples` samples at all distances: two gradients at each, one at x0 while it may differ, four for rounding.

    How far gradients are off follows neither from their size, which may be a difference of large numbers, nor from the
    weights' rounding alone. So the first two samples look at a distance so small that a smooth loss has no Gamma left,
    and a glassy one a 256th; the lesser of the two, as one sample may just cross a surface there.

    Args:
        arrays: x0, for dtypes and shapes.
        names: of the arrays, for errors.
    """
    groups = [by_dtype(arrays, rows) for rows in layers.values()]
    whole = by_dtype(arrays)
    sums = np.zeros((samples, len(distances), len(layers), 4))
    rounding = np.full(len(layers), np.inf)
    moments = Moments(*([np.zeros(x.shape, x.dtype) for x in arrays] for _ in range(5)))
    memory: list[list[Array] | None] = [None, None]
    if not gradients.fresh:
        memory = [[np.empty(x.shape, x.dtype) for x in arrays] for _ in range(2)]

    def probe(sample: int, distance: float) -> tuple[list[Array], list[Array], Array]:
        """Both gradients and the layers' sums."""
        plus = _keep(gradients.at(sample, distance), memory[1])
        minus = gradients.at(sample, -distance)
        out = np.zeros((len(layers), 4))
        for layer, parts in enumerate(groups):
            for rows in parts:
                out[layer] += glass_sums(*([c[i] for i in rows] for c in (g, plus, minus)))
        if not np.isfinite(out).all():
            _refuse_not_finite(function, names, {0.0: g, distance: plus, -distance: minus}, sample)
        return plus, minus, out

    taken = 0
    for sample in progress(samples):
        gradients.begin(sample)
        if not (taken and gradients.fixed):
            g = _keep(gradients.at(sample, 0.0), memory[0])
            taken += 1
            for total, x in zip(moments.grad, g, strict=True):
                total += x
        if sample < _ROUNDING_SAMPLES:
            rounding = np.minimum(rounding, probe(sample, distances[0] * _ROUNDING_SHARE)[2][:, 0])
        for k, distance in enumerate(distances):
            plus, minus, sums[sample, k] = probe(sample, distance)
            if distance == sigma:
                states = (moments.rho, moments.rho_m2, moments.h2, moments.h2_m2)
                for rows in whole:
                    columns = ([c[i] for i in rows] for c in (g, plus, minus, *states))
                    glass_moments_(*columns, sample=sample + 1, sigma=sigma)
    for total in moments.grad:
        total /= taken
    return Measured(sigma, distances, sums, rounding, moments)


def _keep(found: list[Array], memory: list[Array] | None) -> list[Array]:
    """Gradients that the next call leaves alone."""
    if memory is None:
        return found
    for out, x in zip(memory, found, strict=True):
        np.copyto(out, x)
    return memory


def _refuse_not_finite(
    function: str, names: Sequence[str], gradients: Mapping[float, Sequence[Array]], sample: int
) -> None:
    for scale, arrays in gradients.items():
        for name, x in zip(names, arrays, strict=True):
            if not np.isfinite(x).all():
                found = f"a gradient of {name!r} that is not finite, at displacement {scale:+g} z in sample {sample}"
                remedy = "use a smaller distance" if scale else "look at the loss at x0"
                raise ValueError(message(function, "grad", found, "finite gradients", remedy))
    found, remedy = f"gradients whose squares overflow float64 in sample {sample}", "scale the loss down"
    raise ValueError(message(function, "grad", found, "smaller ones", remedy))


def standard_errors(squares: Iterable[Array], n: int) -> list[Array]:
    """Standard errors of means of n values, from their sums of squared deviations."""
    return [np.asarray(np.sqrt(np.maximum(x, 0) / x.dtype.type(n * (n - 1)))) for x in squares]


def progress(samples: int) -> Iterable[int]:
    """The samples' numbers, with a progress bar on a terminal if they take over two seconds."""
    try:
        from tqdm import tqdm
    except ImportError:
        return range(samples)
    bar: Iterable[int] = tqdm(
        range(samples), unit="sample", delay=2, disable=None if sys.stderr.isatty() else True, leave=False
    )
    return bar


# ---- arguments ------------------------------------------------------------------------------------------------------


def sample_count(function: str, samples: Any) -> int:
    return integer(function, "samples", samples, 2, DRAWS, "2^32")


def check_distance(function: str, argument: str, value: Any, arrays: Sequence[Array], labels: Sequence[str]) -> float:
    """A distance as a float; ValueError where it is not positive or some array could not be displaced by it."""
    distance = real(function, argument, value, "a finite number > 0", 0.0, open=True)
    for label, x in zip(labels, arrays, strict=True):
        largest = max(abs(float(x.max())), abs(float(x.min())))
        if not math.isfinite(largest):
            raise ValueError(message(function, f"x0[{label!r}]", f"an element {largest}", "finite elements"))
        step = float(np.spacing(x.dtype.type(largest)))
        if distance < step:
            needed = f"at least {step:.1e}, the spacing of {x.dtype} at the largest element of {label!r}"
            remedy = "use a larger one or float64" if x.dtype == np.float32 else "use a larger one"
            raise ValueError(message(function, argument, f"{distance}", needed, remedy))
    return distance


def grid(
    function: str, sigma: float, distances: Any, arrays: Sequence[Array], labels: Sequence[str]
) -> tuple[float, ...]:
    """The distances in ascending order with sigma among them."""
    sigma = check_distance(function, "sigma", sigma, arrays, labels)
    if distances is None:
        return (sigma,)
    if isinstance(distances, (str, bytes)) or not isinstance(distances, Iterable):
        raise TypeError(message(function, "distances", f"{distances!r}", "a sequence of numbers > 0"))
    found = {check_distance(function, "distances", d, arrays, labels) for d in distances}
    return tuple(sorted(found | {sigma}))


def group_layers(function: str, names: Sequence[str], layers: Mapping[str, Iterable[str]] | None) -> Layers:
    """Layers as indices of arrays: the given ones first, then each array left over by itself.

    Raises:
        TypeError, ValueError: not a mapping from names to names of arrays; an array unknown, twice, or none.
    """
    if layers is None:
        return {name: (i,) for i, name in enumerate(names)}
    needed = "a mapping from a layer's name to the names of its arrays"
    if not isinstance(layers, Mapping):
        raise TypeError(message(function, "layers", type(layers).__name__, needed))
    place = {name: i for i, name in enumerate(names)}
    found: Layers = {}
    seen: dict[str, str] = {}
    for layer, members in layers.items():
        if not isinstance(layer, str) or isinstance(members, str) or not isinstance(members, Iterable):
            raise TypeError(message(function, f"layers[{layer!r}]", f"{members!r}"[:80], needed))
        rows = []
        for name in members:
            if name not in place or name in seen:
                what = f"{name!r} in {seen[name]!r} too" if name in seen else repr(name)
                raise ValueError(
                    message(function, f"layers[{layer!r}]", what, f"names of arrays, each once: {list(place)}")
                )
            seen[name] = layer
            rows.append(place[name])
        if not rows:
            raise ValueError(message(function, f"layers[{layer!r}]", "no arrays", "at least one"))
        found[layer] = tuple(rows)
    for name, i in place.items():
        if name not in seen:
            if name in found:
                raise ValueError(
                    message(function, f"layers[{name!r}]", "the name of an array outside of it", "another name")
                )
            found[name] = (i,)
    return found


def real_or_inf(function: str, name: str, value: Any) -> float:
    """The value as a float > 0, perhaps inf."""
    return (
        value
        if isinstance(value, float) and value == math.inf
        else real(function, name, value, "a number > 0", 0.0, open=True)
    )
