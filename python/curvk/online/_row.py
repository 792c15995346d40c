"""One row at a time for learners, and the bar of many."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ._engine import PIECE


class Row:
    """Arrays for one row at a time, which an engine binds once; and the places of the labels."""

    def __init__(self, d: int, c: int, labels: list[Any]) -> None:
        self.shape, self.single, self.short = (d,), c == 1, d <= 64
        self.X, self.Y, self.F = np.empty((1, d)), np.empty((1, c)), np.empty((1, c))
        self.labels, self.places = labels, {label: place for place, label in enumerate(labels)}

    def take(self, x: Any) -> bool:
        """Puts the row into X; False where only the checks of whole calls can tell what is wrong with it."""
        x = np.asarray(x)
        if x.shape != self.shape or x.dtype.kind not in "fiub":
            return False
        if not (math.isfinite(sum(x.tolist())) if self.short else np.isfinite(x).all()):
            return False
        self.X[0] = x
        return True

    def best(self) -> int:
        """The place of the label that F stands for."""
        if self.single:
            return int(self.F.item() > 0 and len(self.labels) > 1)
        return int(self.F.argmax())


@contextmanager
def progress_bar(owner: str, rows: int, progress: bool | None) -> Iterator[Any]:
    """A progress bar where one is asked for, or where the call takes over two seconds and a person may see it."""
    if progress is False or (progress is None and (rows <= PIECE or not sys.stderr.isatty())):
        yield None
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        if progress:
            raise ImportError("progress=True needs tqdm, which is not installed; use: pip install tqdm") from error
        yield None
        return
    with tqdm(total=rows, desc=owner, unit="row", delay=0 if progress else 2, leave=False) as bar:
        yield bar
