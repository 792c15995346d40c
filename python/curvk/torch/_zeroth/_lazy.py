"""restore="lazy" for modules: a linear layer's low-rank noise is added to its output, and its weight stays as it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ...zeroth import _lazy
from ...zeroth._lowrank import Factor, basis, combine
from ...zeroth._restore import Evaluate
from ...zeroth._update import Noise, Tensors
from ._hooks import Block, Windows, _Pass

Low = tuple[Tensor, Tensor, float]
"""(left, right, keep) for a weight keep W + left @ right: left of m x rank, right of rank x n."""


class LinearWindows(Windows):
    """`Windows` that never show the weight of a plain linear layer: its forward computes with the factors::

        y = keep x W^T + (x right^T) left^T + b

    Attributes:
        low: the factors of each such weight, by index of the tensor; set before each `run`.
    """

    restore: ClassVar[str] = "lazy"

    def __init__(
        self, names: Sequence[str], params: Sequence[nn.Parameter], blocks: Sequence[Block], instead: str
    ) -> None:
        super().__init__(names, params, blocks, instead)
        self.low: dict[int, Low] = {}
        readers = Counter(i for b in blocks for i in b.tensors)
        self._linears: dict[Block, tuple[int, Block]] = {}  # the weight, and the block without it
        for block in blocks:
            own = next((i for i in block.tensors if self._is_plain(block.module, i)), None)
            if own is not None and readers[own] == 1:
                rest = replace(block, tensors=tuple(i for i in block.tensors if i != own))
                self._linears[block] = own, rest
        self.weights = sorted(i for i, _ in self._linears.values())

    def _is_plain(self, m: nn.Module, i: int) -> bool:
        """True for a linear layer, with torch's forward, whose weight and bias are parameters, the weight number i."""
        own = type(m) is nn.Linear and "forward" not in m.__dict__ and m._parameters.get("weight") is self.params[i]
        return own and "bias" in m._parameters  # not one that is pruned

    def _attach(self, block: Block, now: _Pass) -> Callable[[], None]:
        i, rest = self._linears.get(block, (-1, block))
        module = block.module
        if rest is block or not self._is_plain(module, i):  # which may have changed since
            return super()._attach(block, now)
        assert isinstance(module, nn.Linear)

        def forward(input: Tensor) -> Tensor:
            # torch.func.functional_call puts other weights in; nested and sparse tensors have no rows to multiply.
            dense = input.layout is torch.strided and not input.is_nested
            plain = dense and module._parameters["weight"] is self.params[i]
            if not plain:
                self._refuse_gradients(block)
            shown = rest if plain else block
            now.fired[block] += plain  # where it is the block that is shown, that counts
            self._show(shown, now)
            try:
                if plain:
                    return _low_rank_linear(input, now.theta[i], module._parameters["bias"], *self.low[i])
                return nn.Linear.forward(module, input)
            finally:
                self._hide(shown, now)

        module.forward = forward  # type: ignore[method-assign]

        def unpatch() -> None:
            del module.forward

        return unpatch


def _low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, keep: float
) -> Tensor:
    """A linear layer with the weight keep W + left @ right: 2 rank (m + n) flops a token more than with W.

    To 16-bit products the rest is added in float32 and rounded once, so a probe too small for the weight still counts.
    """
    y = linear(x, weight)
    tokens = math.prod(x.shape[:-1])
    with torch.autocast(x.device.type, enabled=False):
        out = y.reshape(tokens, y.shape[-1]).to(left.dtype)
        inner = x.reshape(tokens, x.shape[-1]).to(left.dtype) @ right.T
        out.addmm_(inner, left.T, beta=keep)  # in y's own memory, where it is of that type
        if bias is not None:
            out += bias
        return out.to(y.dtype).reshape(y.shape)


class Lazy(_lazy.Lazy):
    """`curvk.zeroth`'s scheme, shown through `LinearWindows`.

    A plain `nn.Linear` computes with the factors; any other module with matrices sees displaced ones in a buffer.

    Args:
        tensors: the model's trainable parameters.
        stream: their noise.
        windows: the model's blocks.
    """

    def __init__(self, tensors: Tensors, stream: Noise, windows: LinearWindows) -> None:
        super().__init__(tensors, stream)
        self.windows = windows

    @property
    def nbytes(self) -> int:
        """Bytes held for displaced weights and for factors."""
        return self.windows.nbytes + super().nbytes

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        arrays = self.tensors.arrays
        factors = self.probe(draw, scale)
        rights = {i: basis(self.tensors, self.stream, i, [draw]) for i in factors}
        low = self.windows.weights

        def beside(i: int, factor: Factor) -> Tensor:
            return torch.from_numpy(factor).to(self.windows.params[i].device)

        self.windows.low = {i: (beside(i, factors[i]), beside(i, rights[i]), self.keep(i)) for i in low}

        def write(theta: Mapping[int, Tensor], out: Mapping[int, Tensor]) -> None:
            self.show(theta, out, draw, scale, factors)

        def write_rows(i: int, rows: np.ndarray[Any, Any], part: Tensor) -> None:
            combine(part, part, self.tensors.kinds[i], self.keep(i), factors[i][rows], rights[i])

        return self.windows.run(lambda: evaluate(arrays), active, write, write_rows)
