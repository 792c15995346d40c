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
from ...zeroth._lowrank import basis, combine
from ...zeroth._restore import Evaluate
from ...zeroth._update import Noise, Tensors, view_of
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
            m = block.module
            if type(m) is nn.Linear and "forward" not in m.__dict__:
                own = next((i for i in block.tensors if params[i] is m._parameters.get("weight")), None)
                if own is not None and readers[own] == 1:
                    rest = replace(block, tensors=tuple(i for i in block.tensors if i != own))
                    self._linears[block] = own, rest
        self.weights = sorted(i for i, _ in self._linears.values())

    def _attach(self, block: Block, now: _Pass) -> Callable[[], None]:
        if block not in self._linears:
            return super()._attach(block, now)
        i, rest = self._linears[block]
        module = block.module

        def forward(input: Tensor) -> Tensor:
            now.fired[block] += 1
            self._show(rest, now)
            try:
                return _low_rank_linear(input, now.theta[i], module._parameters["bias"], *self.low[i])
            finally:
                self._hide(rest, now)

        module.forward = forward

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
    with torch.autocast("cpu", enabled=False):
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
        self.windows.low = {i: (torch.from_numpy(factors[i]), torch.from_numpy(rights[i]), self.keep(i)) for i in low}

        def write(theta: Mapping[int, Tensor], out: Mapping[int, Tensor]) -> None:
            self.show(theta, out, draw, scale, factors)

        def write_rows(i: int, rows: np.ndarray[Any, Any], part: Tensor) -> None:
            view = view_of(part)
            combine(view, view, self.tensors.kinds[i], self.keep(i), factors[i][rows], rights[i])

        return self.windows.run(lambda: evaluate(arrays), active, write, write_rows)
