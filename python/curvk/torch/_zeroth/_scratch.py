"""The default restore scheme for modules: displaced weights go to a buffer of one block, theta is never written."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ...kernels import noise
from ...zeroth._lowrank import basis, combine, lefts
from ...zeroth._restore import Evaluate, Scheme
from ...zeroth._update import Noise, Rows, Tensors, axpy
from ._hooks import Windows


class Scratch(Scheme):
    """Shows displaced weights through `Windows`.

    Args:
        tensors: the model's trainable parameters.
        stream: their noise.
        windows: the model's blocks.
        active_rows: tensors of which a step displaces, and updates, only the rows that its closures look up.
    """

    name: ClassVar[str] = "scratch"
    takes_thresholds: ClassVar[bool] = True

    def __init__(self, tensors: Tensors, stream: Noise, windows: Windows, active_rows: Collection[int] = ()) -> None:
        super().__init__(tensors, stream)
        self.windows = windows
        self.active_rows = tuple(active_rows)

    @property
    def nbytes(self) -> int:
        """Bytes held for displaced weights."""
        return self.windows.nbytes

    def begin(self, active: Sequence[int], rows: Rows, thresholds: Mapping[int, float]) -> None:
        none = np.empty(0, np.int64)
        self.windows.rows = {i: none for i in self.active_rows if i in active}
        super().begin(active, {**rows, **self.windows.rows}, thresholds)

    def loss(self, evaluate: Evaluate, active: Sequence[int], draw: int, scale: float) -> float:
        arrays = self.tensors.arrays
        if not scale:
            return evaluate(arrays)

        def write(theta: Mapping[int, Tensor], out: Mapping[int, Tensor]) -> None:
            on: Any = {"thresholds": self.thresholds, "source": theta, "out": out}
            axpy(self.tensors, self.stream, list(theta), [draw], [scale], **on)

        def write_rows(i: int, rows: np.ndarray[Any, Any], part: Tensor) -> None:
            """One row is one array whose first element has the index that it has in the table."""
            if self.stream.rank:
                left = lefts(self.tensors, self.stream, [i], [draw], [scale])[i][rows]
                combine(part, part, self.tensors.kinds[i], 1.0, left, basis(self.tensors, self.stream, i, [draw]))
                return
            parts = list(part.unbind())
            keys: Any = {"tensor": np.full(len(parts), self.tensors.words[i]), "offset": rows * part.shape[1]}
            stream: Any = {"seed": self.stream.seed, "dist": self.stream.dist}
            threshold = self.thresholds.get(i, math.inf)
            noise.axpy_seeds_(parts, draws=[draw], coefs=[scale], threshold=threshold, **keys, **stream)

        value = self.windows.run(lambda: evaluate(arrays), active, write, write_rows)
        self.rows = {**self.rows, **self.windows.rows}
        return value
