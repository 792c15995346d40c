"""`compat="mezo"`: the order of operations of MeZO's published code, for comparisons with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._loops.half import decode, encode
from ..kernels import noise
from . import _device
from ._restore import Evaluate, Naive
from ._update import Noise, Tensors, Update


class Reference(Naive):
    """Four unfused passes, each operation rounded to the tensor's dtype, with noise of that dtype::

        theta = theta + s z eps                       s = +1, -2, +1
        theta = theta - lr (g z + weight_decay theta)

    In float32 and float64 these are torch's roundings; for float16 and bfloat16 too, whose operations torch computes in
    float32 and rounds. The noise itself is curvk's. Drifts as the original does. Source: princeton-nlp/MeZO,
    large_models/trainer.py.
    """

    takes_rows = False

    def __init__(self, tensors: Tensors, stream: Noise, eps: float) -> None:
        super().__init__(tensors, stream)
        remedy = "use model.cpu(), or compat=None"
        _device.refuse("MeZO", tensors.names, tensors.devices, "compat", "'mezo'", remedy)
        self._eps = eps

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        self._warn(eps=self._eps)
        if self._at is not None and self._at[0] != draw:
            self.restore()
        self._perturb(active, draw, scale)
        return evaluate(self.tensors.arrays)

    def restore(self) -> None:
        if self._at is not None:
            self._perturb(self._active, self._at[0], 0.0)

    def update(self, update: Update) -> None:
        self.restore()
        if update.idle:
            return
        assert update.reference is not None
        lr, g, weight_decay = update.reference
        for i in update.active:
            p, z, number, rounded = self._operands(i, update.draws[0])
            u = rounded(z * number(g))
            if self.tensors.decays[i]:
                u = rounded(u + rounded(p * number(weight_decay)))
            self._write(i, rounded(p - rounded(u * number(lr))))

    def _perturb(self, active: Sequence[int], draw: int, scale: float) -> None:
        before = 0.0 if self._at is None else self._at[1]
        s = round((scale - before) / self._eps)
        for i in active if s else ():
            p, z, number, rounded = self._operands(i, draw)
            self._write(i, rounded(p + rounded(rounded(z * number(s)) * number(self._eps))))
        self._at = (draw, scale) if scale else None

    def _operands(self, i: int, draw: int) -> tuple[Any, Any, Any, Any]:
        """Tensor i and its noise in the type that torch computes in, that type, and its rounding to the dtype."""
        view, kind = self.tensors.view(i), self.tensors.kinds[i]
        z = np.empty(view.shape, view.dtype)
        noise.fill(z, seed=self.stream.seed, draw=draw, tensor=self.tensors.words[i], dist=self.stream.dist)
        if kind in ("bf16", "f16"):
            return decode(view.copy(), kind), decode(z, kind), np.float32, lambda x: decode(encode(x, kind), kind)
        return view, z, view.dtype.type, lambda x: x

    def _write(self, i: int, values: Any) -> None:
        view, kind = self.tensors.view(i), self.tensors.kinds[i]
        view[...] = encode(values, kind) if kind in ("bf16", "f16") else values
        self.tensors.written([i])
