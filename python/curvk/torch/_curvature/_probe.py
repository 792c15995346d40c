"""GlassProbe for torch modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..._errors import message
from ...curvature._layers import read_layers
from ...curvature._measure import check_distance, grid, measure, sample_count
from ...curvature._result import GlassResult
from ...zeroth._stream import SEEDS, integer
from ._module import Closure, ModuleGradients, ModuleLayers, Parameters


class GlassProbe:
    """`curvk.curvature.GlassProbe` for a module: glass density and curvature from plain gradients.

    Args:
        model: the module; trainable parameters in float32 or float64, on the CPU or on CUDA devices. It stays in the
            mode that it is in: in training mode, dropout masks are the same within a sample and new in the next one,
            and batch normalisation uses the batch's statistics and leaves the running ones alone.
        closure: returns the loss as a tensor with a graph: no backward(), no zero_grad(). With `batches` it takes one.
            Randomness of its own must come from torch's generators of the CPU and of the parameters' devices, which
            are rewound within a sample.
        sigma: the distance at which results per parameter are taken, > 0, in the parameters' units.
        seed: of the signs, in [0, 2^64). Tensor word = the parameter's name.
        layers: modules of the model, or their names: each is a layer with all parameters inside. The others' parameters
            belong to the modules that own them, as all do by default. The whole model moves, whatever the layers.

    Raises:
        TypeError, ValueError, BufferError: an argument or a parameter that cannot be used; the text names it.

    Parameters on CUDA devices are displaced there; each gradient is copied to the host, where the statistics are taken
    and the results lie.

    Gradients should be computed in float32 throughout, or float64: under autocast to 16 bits the floor of rounding lies
    far above what the result says. `p.grad` is left alone.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> x, y = torch.randn(64, 4), torch.randn(64, 1)
    >>> probe = GlassProbe(model, lambda: (model(x) - y).square().mean(), sigma=1e-3)
    >>> result = probe.run(samples=4)
    >>> list(result.layers), result.rho["0.weight"].shape
    (['0', '2'], torch.Size([8, 4]))
    """

    def __init__(
        self, model: nn.Module, closure: Closure, *, sigma: float, seed: int = 0, layers: ModuleLayers | None = None
    ) -> None:
        self._parameters = Parameters(model, "GlassProbe")
        if not callable(closure):
            raise TypeError(
                message("GlassProbe", "closure", type(closure).__name__, "a function that returns the loss")
            )
        self._closure = closure
        self.seed = integer("GlassProbe", "seed", seed, 0, SEEDS, "2^64")
        self.sigma = check_distance("GlassProbe", "sigma", sigma, self._parameters.arrays, self._parameters.names)
        self._layers = self._parameters.layers(layers, "GlassProbe")

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """The names of each layer's parameters."""
        return {layer: tuple(self._parameters.names[i] for i in rows) for layer, rows in self._layers.items()}

    def run(
        self, samples: int = 32, distances: Iterable[float] | None = None, batches: Iterable[Any] | None = None
    ) -> GlassResult:
        """Takes the samples.

        Args:
            samples: how many, >= 2.
            distances: measure at these too, for exponents; only at sigma by default.
            batches: one for each sample, given to the closure: intervals then cover the data as well.

        Returns:
            The result; `rho`, `h2` and what else is per parameter are dicts of tensors by parameter name.

        Raises:
            TypeError, ValueError: as `curvk.curvature.GlassProbe.run`; a closure that returns no loss of this model,
                or writes to parameters; fewer batches than samples.

        Whatever happens, the closure's own exceptions and Ctrl-C included, parameters have afterwards the bits that
        they had. A sample costs two forward and backward passes at each distance, and one at the parameters
        themselves where that differs from sample to sample (batches, dropout in training mode); a run costs four more,
        to see what rounding leaves.
        """
        p, name = self._parameters, "GlassProbe.run"
        samples = sample_count(name, samples)
        arrays = p.arrays
        steps = grid(name, self.sigma, distances, arrays, p.names)
        at = ModuleGradients(p, self._closure, self.seed, samples, batches, name)
        options: Any = {"samples": samples, "sigma": self.sigma, "distances": steps, "function": name}
        with at.running():
            measured = measure(at, arrays, self._layers, p.names, **options)
        return GlassResult(measured, read_layers(measured, self._layers, p.names, arrays, self.seed), p.pack)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self._parameters.tensors)
        return (
            f"GlassProbe({type(self._parameters.model).__name__}, sigma={self.sigma:g}, seed={self.seed}, "
            f"{len(self._layers)} layer(s), {size} parameters)"
        )
