"""What a learner from a stream is without scikit-learn: arrays in, predictions out, one row after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]
Keywords = dict[str, Any]
Source = tuple[int, float] | None
"""Where an output's function comes from: (old output, sign), or None for one that begins at zero."""

BLOCK = 256  # rows whose kernel values are formed at once: they stay in the L2 cache
PIECE = 1024  # rows between two chances for Ctrl-C, at most
FIRST_PIECE = 32  # before it is known what a row costs
SECONDS = 0.05  # that a piece may take


class Engine(ABC):
    """The state of a learner. Rows X (n, d) are float64, C-contiguous and finite; nothing here is validated.

    A result depends on the rows and their order alone: not on how they are cut into calls, nor on threads. All random
    numbers are functions of a seed and a counter, and `state` holds the counter.
    """

    @property
    @abstractmethod
    def n_support(self) -> int:
        """Rows whose kernels a prediction takes."""

    @abstractmethod
    def learn(self, X: Rows, Y: Rows, F: Rows) -> None:
        """Predicts and learns the rows in their order; F (n, c) takes the predictions made before each was learned."""

    @abstractmethod
    def decide(self, X: Rows) -> Rows:
        """The predictions (n, c) that `learn` would make now."""

    @abstractmethod
    def set_kernel(self, kernel: Keywords) -> None:
        """Another bandwidth, as the first rows come in: what was learned is kept where that makes sense."""

    @abstractmethod
    def grow(self, sources: Sequence[Source]) -> None:
        """Other outputs: one for each source."""

    @abstractmethod
    def restart(self) -> None:
        """Forgets what was learned, after a drift; keeps what only describes the rows."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that changes, as a tree for `curvk._store`. Only arrays of rows (m, d) go by "rows" or "landmarks"."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave, bit for bit."""


def take(old: Rows, sources: Sequence[Source], fresh: Any = 0.0) -> Rows:
    """The outputs' arrays along the first axis, from the old ones with their signs, or fresh."""
    new = np.empty((len(sources), *old.shape[1:]))
    for o, source in enumerate(sources):
        new[o] = fresh if source is None else source[1] * old[source[0]]
    return new


def next_piece(rows: int, seconds: float) -> int:
    """How many rows to learn before the next chance for Ctrl-C, where the last ones took so long.

    A result does not depend on it: rows may be cut anywhere.
    """
    return max(1, min(PIECE, 4 * rows, int(rows * SECONDS / max(seconds, 1e-9))))
