"""What the kernel machines share: checked parameters, centers, bandwidth, targets, prediction, saving.

A machine is f(x) = sum_j K(x, z_j) coef_j with centers z_j. After `fit` it holds `centers_` (p, d), `coef_` (p, c) or
(p,) for one output, and `kernel_`, the keywords for `curvk.kernels.gram`, through which every product with K goes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import _store
from .._errors import message
from .._estimator import (
    WITHOUT_BANDWIDTH,
    Keywords,
    check_int,
    from_plain,
    kernel_keywords,
    rehearsal,
    to_plain,
)
from ..kernels import gram

Rows = npt.NDArray[Any]
Machine = TypeVar("Machine", bound="KernelMachine")

MEDIAN_ROWS = 1000  # the median over the pairs of so many rows is within some percent of that of all pairs


def draw_centers(X: Rows, count: int, rng: np.random.RandomState) -> Rows:
    """`count` distinct rows of X (all distinct rows, in their order, where it has no more), drawn without replacement.

    A row that occurs twice adds nothing to the span of the centers and makes K(Z, Z) singular, so it is taken once.
    """
    order = np.arange(len(X)) if count >= len(X) else rng.permutation(len(X))
    taken, used = order[:count], min(count, len(X))
    while True:
        _, first = np.unique(X[taken], axis=0, return_index=True)
        if len(first) == len(taken):
            return np.ascontiguousarray(X[taken])
        taken, missing = taken[np.sort(first)], len(taken) - len(first)
        taken, used = np.concatenate([taken, order[used : used + missing]]), used + missing


def median_bandwidth(X: Rows, rng: np.random.RandomState) -> float:
    """The median distance between two of at most 1,000 rows; where it is 0 that of distinct rows, 1 if none are."""
    rows = X if len(X) <= MEDIAN_ROWS else X[rng.permutation(len(X))[:MEDIAN_ROWS]]
    median = float(gram.median_distance(np.ascontiguousarray(rows))) if len(rows) > 1 else 0.0
    if median == 0:
        apart = gram.distances(rows, rows)
        median = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    return median


class KernelMachine(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Centers, kernel and prediction; subclasses set the parameters named here in `__init__` and write `fit`."""

    n_centers: int
    centers: Any
    kernel: str
    bandwidth: float | str
    kernel_params: Mapping[str, Any] | None
    random_state: Any

    centers_: Rows
    coef_: Rows
    kernel_: Keywords

    def _owner(self, method: str = "fit") -> str:
        return f"{type(self).__name__}.{method}"

    def _check_X(self, X: Any, *, reset: bool = False) -> Rows:
        """X as float32 or float64 (n, d) in C order; a fitted machine takes its own dtype."""
        dtype = [np.float64, np.float32] if reset else self.centers_.dtype
        return np.asarray(validate_data(self, X, reset=reset, dtype=dtype, order="C"))

    def _check_Xy(self, X: Any, y: Any, *, reset: bool = True) -> tuple[Rows, Any]:
        """X as in `_check_X`, and y with one entry or row for each row of X (not yet converted)."""
        dtype = [np.float64, np.float32] if reset else self.centers_.dtype
        multi_output = isinstance(self, MultiOutputMixin)
        X, y = validate_data(
            self, X, y, reset=reset, dtype=dtype, order="C", multi_output=multi_output, y_numeric=multi_output
        )
        return np.asarray(X), y

    def _check_kernel(self) -> Keywords:
        """`kernel` and `kernel_params` as keywords of the engine, the bandwidth still to come."""
        return kernel_keywords(self._owner(), self.kernel, self.bandwidth, self.kernel_params)

    def _resolve_kernel(self, X: Rows, rng: np.random.RandomState) -> Keywords:
        """All keywords of the engine, the bandwidth as a number measured on X where it is 'median'."""
        keywords = self._check_kernel()
        if self.kernel in WITHOUT_BANDWIDTH:
            return keywords
        if self.bandwidth != "median":
            return keywords | {"bandwidth": float(self.bandwidth)}
        power = keywords.get("gamma", 1.0) if self.kernel == "exponent" else 1.0  # exponent: -1 at the median distance
        return keywords | {"bandwidth": median_bandwidth(X, rng) ** power}

    def _resolve_centers(self, X: Rows, rng: np.random.RandomState) -> Rows:
        """`centers` as given, a copy in X's dtype, or `n_centers` distinct rows of X."""
        if self.centers is None:
            return draw_centers(X, check_int(self._owner(), "n_centers", self.n_centers, 1), rng)
        try:
            centers = np.array(self.centers, X.dtype, order="C")
        except (TypeError, ValueError) as error:
            raise type(error)(message(self._owner(), "centers", str(error), f"an array (p, {X.shape[1]})")) from None
        if centers.ndim != 2 or centers.shape[1] != X.shape[1] or not len(centers):
            needed = f"an array (p, {X.shape[1]}) with a row for each center"
            raise ValueError(message(self._owner(), "centers", f"shape {centers.shape}", needed))
        if not np.isfinite(centers).all():
            raise ValueError(message(self._owner(), "centers", "NaN or infinity", "finite numbers"))
        return centers

    def _set_fitted(self, centers: Rows, coef: Rows, kernel: Keywords, **attributes: Any) -> None:
        """Everything that makes the machine fitted, in one step."""
        fitted = {"centers_": centers, "coef_": coef, "kernel_": kernel, "bandwidth_": kernel.get("bandwidth")}
        self.__dict__.update(fitted | {"_packed": gram.Centers(centers)} | attributes)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def _raw(self, X: Any) -> Rows:
        """Values of f at the rows of X, (n, c) or (n,) as `coef_`; O(n + p) memory."""
        check_is_fitted(self)
        return np.asarray(gram.matvec(self._check_X(X), self._packed, self.coef_, **self.kernel_))

    _TRANSIENT = ("_packed", "_solver")  # made anew where needed

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in self._TRANSIENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "centers_" in state:
            self._packed = gram.Centers(self.centers_)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes parameters and fitted attributes to one .npz without pickle, or leaves what was at `path`.

        Raises:
            NotFittedError: before `fit`.
            TypeError: a parameter that is neither number, string, array nor a tree of these, for example
                a `random_state` that is a generator; or class labels other than numbers and strings.
        """
        check_is_fitted(self)
        fitted = {k: v for k, v in vars(self).items() if k.endswith("_") and not k.startswith("_")}
        state = {"params": self.get_params(deep=False), "fitted": fitted}
        packed = {part: {k: to_plain(v) for k, v in values.items()} for part, values in state.items()}
        _store.write(path, {"machine": type(self).__name__} | packed)

    @classmethod
    def load(cls: type[Machine], path: str | os.PathLike[str]) -> Machine:
        """What `save` wrote; ValueError where the file is another's, truncated or damaged, or it does not predict."""
        state, owner = _store.read(path, f"{cls.__name__}.save"), f"{cls.__name__}.load"
        found = state.get("machine") if isinstance(state, dict) else None
        if not _store.equal(found, cls.__name__):
            raise ValueError(message(owner, "path", f"a file of {found}", f"one of {cls.__name__}"))
        with rehearsal(owner, path):
            machine = cls(**{k: from_plain(v) for k, v in state["params"].items()})
            machine.__setstate__({**vars(machine), **{k: from_plain(v) for k, v in state["fitted"].items()}})
            names = machine.__dict__.pop("feature_names_in_", None)  # a row without them is a warning
            machine.predict(np.zeros((1, machine.n_features_in_), machine.centers_.dtype))
            if names is not None:
                machine.feature_names_in_ = names
        return machine


class KernelRegressor(MultiOutputMixin, RegressorMixin, KernelMachine):  # type: ignore[misc]
    """Targets (n,) or (n, c)."""

    def _targets(self, y: Any, dtype: Any) -> Rows:
        """The matrix (n, c) of X's dtype for y."""
        with np.errstate(over="ignore"):
            targets: Rows = np.asarray(y, dtype, order="C")
        if not np.isfinite(targets).all():
            raise ValueError(message(self._owner(), "y", f"numbers beyond {targets.dtype}", "smaller ones; scale y"))
        return targets if targets.ndim == 2 else targets[:, None]

    def predict(self, X: Any) -> Rows:
        """Predictions, (n,) or (n, c) as the y of `fit`.

        Args:
            X: (n, d), dense.
        """
        return self._raw(X)


def best_class(scores: Rows) -> npt.NDArray[np.intp]:
    """Index of the largest column, or 1 where the single value of two classes is > 0."""
    return np.asarray(scores > 0 if scores.ndim == 1 else scores.argmax(axis=1), np.intp)


class KernelClassifier(ClassifierMixin, KernelMachine):  # type: ignore[misc]
    """Targets 0 and 1, a column per class; for two classes one column of -1 and 1.

    With two classes least squares on the single column gives exactly the difference of the two, as it is linear in y.
    """

    classes_: npt.NDArray[Any]

    def _classes(self, y: Any, method: str = "fit", name: str = "y") -> npt.NDArray[Any]:
        check_classification_targets(y)
        classes = np.asarray(np.unique(y))
        if len(classes) < 2:
            found = f"one class, {classes.tolist()[0]!r}"
            raise ValueError(message(self._owner(method), name, found, "at least two classes"))
        return classes

    def _targets(self, y: Any, classes: npt.NDArray[Any], dtype: Any, method: str = "fit") -> Rows:
        """The matrix (n, c) of X's dtype for y; ValueError where y has a label that is not among the classes."""
        index = np.searchsorted(classes, y)
        index[index == len(classes)] = 0
        if (unknown := classes[index] != y).any():
            found = f"the label {np.asarray(y)[unknown].tolist()[0]!r}"
            raise ValueError(message(self._owner(method), "y", found, f"labels among the classes {classes}"))
        if len(classes) == 2:
            return np.asarray(2 * index - 1, dtype)[:, None]
        targets = np.zeros((len(index), len(classes)), dtype)
        targets[np.arange(len(index)), index] = 1
        return targets

    def decision_function(self, X: Any) -> Rows:
        """Values of f at the rows of X: (n, n_classes), or (n,) for two classes, then > 0 means the second.

        Args:
            X: (n, d), dense.
        """
        return self._raw(X)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The class with the largest value of `decision_function`, (n,).

        Args:
            X: (n, d), dense.
        """
        scores = self.decision_function(X)
        return np.asarray(self.classes_[best_class(scores)])
