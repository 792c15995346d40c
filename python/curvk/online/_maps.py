"""What a feature map is to the learners: phi(x) in R^k, of which every learner's prediction is w . phi(x)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]
Keywords = dict[str, Any]
P = ParamSpec("P")
R = TypeVar("R")


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController  # comes with scikit-learn

    return ThreadpoolController().select(user_api="blas")


def one_blas_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Runs it with NumPy's BLAS on one thread: the last bits of its decompositions depend on their number. 20 us."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with _blas().limit(limits=1):
            return function(*args, **kwargs)

    return limited


class FeatureMap(ABC):
    """Features of rows, and how they come into being and change while a stream is learned. Nothing here is validated.

    Attributes:
        k: number of features now.
        ready: False until `initialise`: a learner fills a buffer of `budget` support vectors by kernel gradient descent
            first and calls it at the first loss after that.
        every: loss rows, counted from `initialise`, between two calls of `refresh`; None: it is never called.
        n_support: rows that `features` takes kernels with.
        kernel: keywords for `curvk.kernels.gram`.

    All random numbers are functions of a seed and a counter, and `state` holds the counter.
    """

    k: int
    ready: bool
    every: int | None = None
    n_support: int
    kernel: Keywords

    @abstractmethod
    def features(self, X: Rows, out: Rows | None = None) -> Rows:
        """Phi of the rows X (n, d) as (n, k); a row's bits do not depend on the others."""

    def bind(self, x: Rows, phi: Rows) -> Callable[[], object]:
        """Its result writes the features of what x (1, d) holds when called to phi (1, k), until the map changes."""
        return lambda: self.features(x, out=phi)

    @abstractmethod
    def set_kernel(self, kernel: Keywords) -> Rows | None:
        """The map for another bandwidth; T (k, k) such that w <- T w is the same function on the landmarks, if ready.

        None where there is no such T: before `initialise`, or in a map that keeps nothing to compare by.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that changes, as a tree for `curvk._store`."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave, bit for bit."""

    def initialise(self, rows: Rows, coef: Rows, x: Rows | None = None) -> Rows:
        """Makes the map of support vectors and their coefficients.

        Args:
            rows: (B, d).
            coef: (B, c).
            x: (d,), the row whose loss is the first after the fill.

        Returns:
            W (c, k): the function sum_i coef_i k(rows_i, .) in the new features.
        """
        raise NotImplementedError(f"{type(self).__name__} is ready from the start")

    def refresh(self, x: Rows) -> Rows | None:
        """Takes in the row x (d,): T (k, k) such that w <- T w keeps the function; None: w and A start anew."""
        raise NotImplementedError(f"{type(self).__name__} is never refreshed")

    def entry(self, X: Rows, first_row: int) -> int:
        """Index of the first row of X (n, d) that enters the dictionary before it is predicted; n if none does.

        Args:
            X: the rows to come.
            first_row: how many rows of the stream came before them.
        """
        return len(X)

    def enter(self, x: Rows) -> Literal["grow", "restart"]:
        """Takes the row x (d,) into the dictionary: one feature more beside the old ones, or all of them new."""
        raise NotImplementedError(f"{type(self).__name__} has no dictionary")
