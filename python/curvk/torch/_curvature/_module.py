"""A module's parameters as something to take gradients at: displaced in place, put back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._errors import message
from ...curvature._measure import Layers, displace
from ...curvature._tree import Array
from ...zeroth._update import Tensors
from .._probing import Randomness, frozen_statistics
from .._zeroth._base import _no_cached_weights

Closure = Callable[..., Any]
ModuleLayers = Iterable[str | nn.Module]

_ROOT = "(root)"  # the layer of parameters that the model itself owns


class Parameters:
    """The trainable parameters of a module; checked once, never copied.

    Args:
        model: the module.
        function: the caller's name, for errors.

    Raises:
        TypeError, ValueError, BufferError: not a module, or a parameter that cannot be displaced.

    Attributes:
        names, words: the parameters' names and tensor words; tied ones stand here once.
        tensors: the parameters.
        arrays: NumPy views over their memory; copies, for which a device is waited for, of those on CUDA devices.
    """

    def __init__(self, model: nn.Module, function: str) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(message(function, "model", type(model).__name__, "a torch.nn.Module"))
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(message(function, "model", "no trainable parameter", "at least one"))
        for name, p in named:
            label = f"params[{name!r}]"
            if p.dtype not in (torch.float32, torch.float64):
                remedy = "use model.float(): 16 bits cannot resolve a displacement"
                raise TypeError(message(function, label, str(p.dtype), "float32 or float64", remedy))
            if not p.numel():
                raise ValueError(message(function, label, f"shape {tuple(p.shape)}", "at least one element"))
            if p.is_inference():
                needed, remedy = "one made outside of torch.inference_mode()", "use .clone() outside of it"
                raise ValueError(message(function, label, "a tensor made in inference mode", needed, remedy))
        self.model = model
        self.names = tuple(n for n, _ in named)
        self.tensors: list[Tensor] = [p for _, p in named]
        checked = Tensors(self.names, self.tensors, function)
        self.words = checked.words

    @property
    def arrays(self) -> list[Array]:
        return [p.detach().cpu().numpy() for p in self.tensors]

    def layers(self, given: ModuleLayers | None, function: str) -> Layers:
        """Layers as indices of parameters: the modules that own parameters, or the given modules with all in them.

        Raises:
            TypeError, ValueError: a module that is not inside the model, has no trainable parameter, or lies inside
                another one given.
        """
        modules = dict(self.model.named_modules())
        names = {id(m): n for n, m in modules.items()}
        chosen: list[str] = []
        if isinstance(given, (str, nn.Module)):
            given = [given]
        for layer in () if given is None else given:
            if isinstance(layer, str):
                name = layer if layer in modules else None
            elif isinstance(layer, nn.Module):
                name = names.get(id(layer))
            else:
                raise TypeError(message(function, "layers", type(layer).__name__, "modules or their names"))
            if not name:
                what = repr(layer) if isinstance(layer, str) else f"a {type(layer).__name__} outside of it"
                raise ValueError(message(function, "layers", what, f"modules inside the model: {_seen(modules)}"))
            chosen.append(name)
        found: dict[str, list[int]] = {name: [] for name in chosen}
        for i, name in enumerate(self.names):
            owner = name.rpartition(".")[0]
            within = [c for c in chosen if owner == c or owner.startswith(f"{c}.")]
            if len(within) > 1:
                needed = "modules side by side, each once"
                raise ValueError(message(function, "layers", f"{within[1]!r} and {within[0]!r} around it", needed))
            found.setdefault(within[0] if within else owner or _ROOT, []).append(i)
        for name, rows in found.items():
            if not rows:
                raise ValueError(
                    message(function, "layers", repr(name), "modules with trainable parameters of their own")
                )
        return {name: tuple(rows) for name, rows in found.items()}

    def pack(self, arrays: Sequence[Any]) -> dict[str, Tensor]:
        """Arrays as tensors by parameter name."""
        return dict(zip(self.names, map(torch.from_numpy, arrays), strict=True))


def _seen(modules: dict[str, nn.Module], limit: int = 12) -> str:
    named = [n for n, m in modules.items() if n and any(p.requires_grad for p in m.parameters(recurse=False))]
    return ", ".join(map(repr, named[:limit])) + (f" and {len(named) - limit} more" if len(named) > limit else "")


class ModuleGradients:
    """Gradients of a closure's loss at displaced parameters.

    Args:
        parameters: of the module.
        closure: returns the loss; takes a batch where there are batches.
        seed: of the signs.
        samples: how many there will be, to check the batches.
        batches: one for each sample; None for a closure without argument.
        function: the caller's name, for errors.
    """

    fresh = True  # autograd allocates each time

    def __init__(
        self,
        parameters: Parameters,
        closure: Closure,
        seed: int,
        samples: int,
        batches: Iterable[Any] | None,
        function: str,
    ) -> None:
        self._parameters, self._closure, self._seed, self._function = parameters, closure, seed, function
        self._samples = samples
        self._batches = None if batches is None else iter(batches)
        self._arguments: tuple[Any, ...] = ()
        self._randomness: Randomness | None = None
        self._saved: list[Tensor] = []
        self._displaced = False
        self.fixed = batches is None  # until something random is drawn

    def begin(self, sample: int) -> None:
        self._restore()
        if self._batches is not None:
            try:
                self._arguments = (next(self._batches),)
            except StopIteration:
                needed = f"{self._samples}, one for each sample"
                raise ValueError(message(self._function, "batches", f"{sample} batches", needed)) from None
        self._randomness = Randomness(self._parameters.tensors)

    def at(self, sample: int, scale: float) -> list[Array]:
        if scale:
            self._displaced = True
            p = self._parameters
            with torch.no_grad():
                displace(self._saved, p.tensors, p.words, self._seed, sample, scale)
        else:
            self._restore()
        assert self._randomness is not None
        self._randomness.rewind()
        grads = self.evaluate()
        self.fixed = self.fixed and self._randomness.untouched()
        return grads

    def evaluate(self) -> list[Array]:
        """The gradient at the parameters as they are, in the host's memory."""
        tensors = self._parameters.tensors
        versions = [p._version for p in tensors]
        loss = self.loss()
        try:
            grads = torch.autograd.grad(loss, tensors, allow_unused=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            found, remedy = "a closure that calls backward()", "leave backward() and zero_grad() out"
            raise ValueError(
                message(self._function, "closure", found, "one that only returns the loss", remedy)
            ) from error
        if any(p._version != v for p, v in zip(tensors, versions, strict=True)):
            found = "a closure that writes to parameters"
            raise ValueError(message(self._function, "closure", found, "one that only reads them"))
        if all(g is None for g in grads):
            found = "a loss that no trainable parameter of the model has a part in"
            raise ValueError(message(self._function, "closure", found, "the loss of this model"))
        return [
            np.zeros(p.shape, _NUMPY[p.dtype]) if g is None else _dense(g).numpy()
            for p, g in zip(tensors, grads, strict=True)
        ]

    def loss(self) -> Tensor:
        """The closure's loss, with a graph."""
        with torch.enable_grad():
            loss = self._closure(*self._arguments)
        needed, remedy = "the loss as a tensor of one element with a graph", "return it without .item() or .detach()"
        if not isinstance(loss, Tensor):
            raise TypeError(message(self._function, "closure()", type(loss).__name__, needed, remedy))
        if loss.numel() != 1:
            raise ValueError(message(self._function, "closure()", f"shape {tuple(loss.shape)}", needed, remedy))
        if not loss.requires_grad:
            raise ValueError(message(self._function, "closure()", "a tensor without a graph", needed, remedy))
        return loss

    @contextmanager
    def running(self) -> Iterator[None]:
        """In it parameters may be displaced; afterwards they have the bits that they had, whatever happened."""
        self._saved = [p.detach().clone() for p in self._parameters.tensors]
        try:
            with frozen_statistics(), _no_cached_weights(self._function):
                yield
        finally:
            interrupt: KeyboardInterrupt | None = None
            while self._saved:  # here, not in a method: entering one is where Python would raise for a Ctrl-C
                try:
                    self._displaced = True  # a closure may have written, too
                    self._restore()
                    self._saved = []
                except KeyboardInterrupt as error:
                    interrupt = error
            if interrupt is not None:
                raise interrupt

    def _restore(self) -> None:
        if self._displaced:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters.tensors, self._saved)
            self._displaced = False


def _dense(g: Tensor) -> Tensor:
    return (g if g.layout == torch.strided else g.to_dense()).detach().cpu().contiguous()


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
