"""The Hessian's diagonal of a module, from plain gradients or by double backward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from ..._errors import message
from ...curvature._measure import check_distance, progress, sample_count
from ...curvature._probe import Diagonal, Welford, estimate_diagonal
from ...kernels import noise
from ...zeroth._stream import SEEDS, integer, one_of
from ._module import Closure, ModuleGradients, Parameters


def hessian_diagonal(
    model: nn.Module,
    closure: Closure,
    *,
    samples: int = 32,
    seed: int = 0,
    method: str = "gradients",
    sigma: float | None = None,
) -> Diagonal:
    """Estimates the diagonal of the Hessian of a module's loss by random signs z: the mean of z (H z).

    Args:
        model, closure, seed: as in `GlassProbe`.
        samples: how many, >= 2.
        method: "gradients": H z from two gradients, (g(p + sigma z) - g(p - sigma z)) / (2 sigma); works for every
            module. "double_backward": H z by differentiating the gradient, exact, but blind to kinks, and for modules
            whose backward pass can be differentiated; one forward and backward pass in all, whose graph is kept, and
            one more backward pass a sample.
        sigma: distance of the probes with "gradients", > 0.

    Returns:
        Mean and standard error over the samples: dicts of CPU tensors by parameter name.

    Raises:
        TypeError, ValueError, BufferError: as `GlassProbe` and its run; sigma missing with "gradients" or given with
            "double_backward".
        RuntimeError: an operation without a second derivative; torch's own words.

    The variance is sum_{j != i} H_ij^2 / samples, and with "gradients" glass adds rho / (2 sigma samples). Parameters
    have afterwards the bits that they had; `p.grad` is left alone. Source: Hutchinson 1989; Yao et al. 2021
    (AdaHessian) for double backward.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> loss = lambda: (torch.tensor([1.0, 2.0]) * model.weight**2).sum()
    >>> hessian_diagonal(model, loss, samples=2, method="double_backward").mean["weight"]
    tensor([[2., 4.]])
    """
    name = "hessian_diagonal"
    one_of(name, "method", method, ("gradients", "double_backward"))
    p = Parameters(model, name)
    if not callable(closure):
        raise TypeError(message(name, "closure", type(closure).__name__, "a function that returns the loss"))
    seed = integer(name, "seed", seed, 0, SEEDS, "2^64")
    samples = sample_count(name, samples)
    arrays = p.arrays
    at = ModuleGradients(p, closure, seed, samples, None, name)
    if method == "double_backward":
        if sigma is not None:
            raise ValueError(message(name, "sigma", f"{sigma}", "None with method='double_backward', which is exact"))
        with at.running():
            mean, errors = _double_backward(p, at, samples, seed)
    else:
        if sigma is None:
            needed = "the distance of the probes with method='gradients'"
            raise ValueError(message(name, "sigma", "None", needed, "use sigma=1e-3 or so"))
        distance = check_distance(name, "sigma", sigma, arrays, p.names)
        with at.running():
            mean, errors = estimate_diagonal(at, arrays, p.names, p.words, distance, samples, seed, name)
    return Diagonal(p.pack(mean), p.pack(errors))


def _double_backward(p: Parameters, at: ModuleGradients, samples: int, seed: int) -> tuple[Any, Any]:
    name = "hessian_diagonal"
    grads = torch.autograd.grad(at.loss(), p.tensors, create_graph=True, materialize_grads=True)
    moments = Welford(p.arrays)
    curved = [g for g in grads if g.requires_grad]
    for sample in progress(samples):
        z = [
            noise.fill(
                torch.empty_like(t, memory_format=torch.contiguous_format),
                seed=seed,
                draw=sample,
                tensor=w,
                dist="rademacher",
            )
            for t, w in zip(p.tensors, p.words, strict=True)
        ]
        if curved:
            of_curved = [s for s, g in zip(z, grads, strict=True) if g.requires_grad]
            products: Any = torch.autograd.grad(
                curved, p.tensors, of_curved, retain_graph=sample < samples - 1, materialize_grads=True
            )
        else:
            products = [torch.zeros_like(t) for t in z]  # a loss linear in all parameters
        values = [(s * h).contiguous().cpu().numpy() for s, h in zip(z, products, strict=True)]
        for label, x in zip(p.names, values, strict=True):
            if not math.isfinite(float(np.abs(x).sum(dtype=np.float64))):
                found = f"a second derivative of {label!r} that is not finite in sample {sample}"
                raise ValueError(message(name, "closure", found, "finite ones", "use method='gradients'"))
        moments.add(values)
    return moments.mean, moments.errors()
