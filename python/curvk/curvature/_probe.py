"""GlassProbe and the Hessian's diagonal, for gradients from a function on NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._errors import message
from ..kernels import noise
from ..zeroth._stream import SEEDS, integer
from ._layers import read_layers
from ._measure import check_distance, displace, grid, group_layers, measure, progress, sample_count, standard_errors
from ._result import GlassResult
from ._tree import Array, Tree

Grad = Callable[[Any], Any]


class GlassProbe:
    """Measures where the Hessian is the wrong model of a loss: glass density, from plain gradients.

    A sample draws signs z and looks at the gradients g at x0 and g+, g- at x0 + d z and x0 - d z. With
    gamma+- = g+- - g::

        Gamma = (g+ + g-) / 2 - g       rho = 2 Gamma^2 / d       h2 = -gamma+ gamma- / d^2

    In Gamma the gradient and the Hessian cancel. What remains of a piecewise smooth loss (ReLU, max, abs) is the sum of
    the gradient's jumps at the surfaces that the segment crosses, with Gamma^2 growing as d, and rho is the density of
    these jumps; a smooth loss has Gamma^2 ~ d^4 and no density. h2 is free of glass: its mean is the squared norm of
    the parameter's row of the Hessian.

    Args:
        grad: gradient of the loss; takes what x0 is (an array, a list, or a dict) and returns gradients alike, of the
            same dtypes and shapes. It must be a function of its argument alone: the same batch, the same dropout. The
            arrays that it gets are buffers, written anew for each call.
        x0: the point: an array, a list of arrays, or a mapping from names to arrays; float32 or float64. Never written;
            read when a run begins, and during it.
        sigma: the distance d at which results per parameter are taken, > 0: each element moves by so much. That of the
            steps you mean to take is the one to ask about.
        seed: of the signs, in [0, 2^64). Draw = number of the sample, tensor word = the array's name: the same for
            each thread count, backend and distance, and from run to run.
        layers: a mapping from a layer's name to the names of its arrays ("0", "1", ... in a list). Arrays that it
            leaves out are layers by themselves, as all are by default. All of x0 moves, whatever the layers.

    Raises:
        TypeError, ValueError: an argument that cannot be used; the text names it.

    Memory of a run: x0 once more for the displaced point, seven times for gradients and states, twice for the errors.
    Source: Duersch et al. 2024, arXiv 2411.16914 (rho); h2, standard errors and exponents are ours.

    >>> import numpy as np
    >>> jumps = np.random.default_rng(0).choice([-1.0, 1.0], 100_000)  # one in each 1e-5
    >>> walk = np.cumsum(jumps)
    >>> probe = GlassProbe(lambda x: walk[(1e5 * x).astype(int)], np.linspace(0.1, 0.9, 1000), sigma=1e-3)
    >>> layer = probe.run(samples=2, distances=[2e-3, 4e-3]).layers["x"]
    >>> print(f"{layer.rho:.0e}, Gamma^2 ~ d^{layer.glass_exponent.value:.1f}")
    1e+05, Gamma^2 ~ d^1.0
    """

    def __init__(
        self,
        grad: Grad,
        x0: Any,
        *,
        sigma: float,
        seed: int = 0,
        layers: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        if not callable(grad):
            raise TypeError(message("GlassProbe", "grad", type(grad).__name__, "a function that returns the gradient"))
        self._grad, self._tree = grad, Tree(x0, "GlassProbe")
        self.seed = integer("GlassProbe", "seed", seed, 0, SEEDS, "2^64")
        self.sigma = check_distance("GlassProbe", "sigma", sigma, self._tree.arrays, self._tree.names)
        self._layers = group_layers("GlassProbe", self._tree.names, layers)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """The names of each layer's arrays."""
        return {layer: tuple(self._tree.names[i] for i in rows) for layer, rows in self._layers.items()}

    def run(self, samples: int = 32, distances: Iterable[float] | None = None) -> GlassResult:
        """Takes the samples.

        Args:
            samples: how many, >= 2. A sample's rho scatters by at least sqrt(2) of its mean in each parameter.
            distances: measure at these too, for exponents; a sample's signs are the same at all of them. Only at sigma
                by default. A factor of 2 between neighbours is enough.

        Returns:
            The result; the same bits each time, if `grad` returns the same.

        Raises:
            TypeError: gradients that are not x0's structure or dtypes.
            ValueError: fewer than 2 samples; a distance that is not > 0 or that x0's dtype cannot resolve; gradients of
                other shapes or not finite.

        A sample evaluates `grad` twice at each distance; a run once more, at x0, and four times to see what rounding
        leaves.
        """
        tree, name = self._tree, "GlassProbe.run"
        samples = sample_count(name, samples)
        steps = grid(name, self.sigma, distances, tree.arrays, tree.names)
        at = _Function(self._grad, tree, self.seed, name)
        options: Any = {"samples": samples, "sigma": self.sigma, "distances": steps, "function": name}
        measured = measure(at, tree.arrays, self._layers, tree.names, **options)
        return GlassResult(measured, read_layers(measured, self._layers, tree.names, tree.arrays, self.seed), tree.pack)

    def __repr__(self) -> str:
        size = sum(x.size for x in self._tree.arrays)
        return (
            f"GlassProbe(sigma={self.sigma:g}, seed={self.seed}, {len(self._layers)} layer(s), {len(self._tree.names)} "
            f"array(s), {size} parameters)"
        )


class _Function:
    """Gradients from a function of arrays."""

    fresh = False  # a function may return the same memory each time
    fixed = True

    def __init__(self, grad: Grad, tree: Tree, seed: int, function: str) -> None:
        self._grad, self._tree, self._seed, self._function = grad, tree, seed, function
        self._x = [np.empty(x.shape, x.dtype) for x in tree.arrays]

    def begin(self, sample: int) -> None:
        """Nothing: the function is the same in all samples."""

    def at(self, sample: int, scale: float) -> list[Array]:
        if scale:
            displace(self._tree.arrays, self._x, self._tree.words, self._seed, sample, scale)
        else:
            for out, x in zip(self._x, self._tree.arrays, strict=True):
                np.copyto(out, x)
        return self._tree.gradients(self._grad(self._tree.pack(self._x)), self._function)


class Diagonal(NamedTuple):
    """An estimate of the Hessian's diagonal.

    Attributes:
        mean: over the samples, in x0's structure.
        se: standard error of the mean.
    """

    mean: Any
    se: Any


class Welford:
    """Running mean and variance of the rows that it is given."""

    def __init__(self, arrays: Iterable[Any]) -> None:
        self.mean = [np.zeros(x.shape, x.dtype) for x in arrays]
        self._squares = [np.zeros_like(x) for x in self.mean]
        self._n = 0

    def add(self, values: Iterable[Array]) -> None:
        self._n += 1
        for mean, squares, x in zip(self.mean, self._squares, values, strict=True):
            d = x - mean
            mean += d / x.dtype.type(self._n)
            squares += d * (x - mean)

    def errors(self) -> list[Array]:
        """Standard errors of the means."""
        return standard_errors(self._squares, self._n)


def hessian_diagonal(grad: Grad, x0: Any, *, sigma: float, samples: int = 32, seed: int = 0) -> Diagonal:
    """Estimates the diagonal of the Hessian from plain gradients.

    The mean over random signs z of z (g(x0 + sigma z) - g(x0 - sigma z)) / (2 sigma).

    Args:
        grad, x0, sigma, seed: as in `GlassProbe`.
        samples: how many, >= 2; two gradients each.

    Returns:
        Mean and standard error in x0's structure. On a quadratic the mean is unbiased, with variance
        sum_{j != i} H_ij^2 / samples, the least that independent z can have; elsewhere third derivatives
        add a bias of order sigma^2, and glass a variance of rho / (2 sigma samples).

    Raises:
        TypeError, ValueError: as `GlassProbe` and its run.

    Source: Hutchinson 1989; Bekas, Kokiopoulou & Saad 2007.

    >>> import numpy as np
    >>> hessian_diagonal(lambda x: np.array([2.0, 3.0]) * x, np.ones(2), sigma=0.5, samples=4).mean
    array([2., 3.])
    """
    name = "hessian_diagonal"
    if not callable(grad):
        raise TypeError(message(name, "grad", type(grad).__name__, "a function that returns the gradient"))
    tree = Tree(x0, name)
    seed = integer(name, "seed", seed, 0, SEEDS, "2^64")
    distance = check_distance(name, "sigma", sigma, tree.arrays, tree.names)
    mean, errors = estimate_diagonal(
        _Function(grad, tree, seed, name),
        tree.arrays,
        tree.names,
        tree.words,
        distance,
        sample_count(name, samples),
        seed,
        name,
    )
    return Diagonal(tree.pack(mean), tree.pack(errors))


def estimate_diagonal(
    at: Any,
    arrays: list[Array],
    names: tuple[str, ...],
    words: list[int],
    sigma: float,
    samples: int,
    seed: int,
    function: str,
) -> tuple[list[Array], list[Array]]:
    """Means and standard errors of z (g+ - g-) / (2 sigma)."""
    moments = Welford(arrays)
    for sample in progress(samples):
        at.begin(sample)
        changes = [x.copy() for x in at.at(sample, sigma)]
        with np.errstate(invalid="ignore", over="ignore"):
            for d, minus in zip(changes, at.at(sample, -sigma), strict=True):
                d -= minus
        for name, d, word in zip(names, changes, words, strict=True):
            if not math.isfinite(float(np.abs(d).sum(dtype=np.float64))):
                found = f"a gradient of {name!r} that is not finite, at displacement {sigma:g} z or -{sigma:g} z"
                raise ValueError(
                    message(function, "grad", f"{found} in sample {sample}", "finite gradients", "use a smaller sigma")
                )
            d *= noise.fill(np.empty_like(d), seed=seed, draw=sample, tensor=word, dist="rademacher")
            d *= d.dtype.type(0.5 / sigma)
        moments.add(changes)
    return moments.mean, moments.errors()
