"""What the learners share: checked rows and labels, the bandwidth of the first rows, drift, mistakes, files.

A learner is an `Engine` (arrays in, predictions out) behind scikit-learn's interface. Calls are cut where the number of
a row or its label alone decides: where the bandwidth is measured, where drift is looked for, where a class appears. So
the same rows give the same bits however they arrive.
"""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from time import perf_counter
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import _store
from .._errors import message
from .._estimator import (
    WITHOUT_BANDWIDTH,
    check_int,
    from_plain,
    kernel_keywords,
    rehearsal,
    to_plain,
    unchanged_on_error,
)
from .._interrupt import uninterrupted
from ..kernels import gram
from ._engine import FIRST_PIECE, PIECE, Engine, Keywords, Rows, next_piece
from ._row import Row, progress_bar

Labels = npt.NDArray[Any]

WARM_UP = 128  # rows of which "median" is taken, after 2, 4, 8, ... of them
WINDOW = 100  # rows between two looks for drift


class OnlineLearner(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Rows in, predictions out; subclasses set the parameters named here in `__init__`, and check their own."""

    kernel: str
    bandwidth: float | str
    kernel_params: Any
    random_state: int | None

    n_features_in_: int
    rows_seen_: int
    bandwidth_: float | None

    _engine: Engine
    _row: Row | None = None  # once the bandwidth is settled, as long as the classes are these
    _first: Rows  # the rows that the bandwidth comes of, as long as it is not settled

    # ---- what subclasses give ---------------------------------------------------------------------------------------

    @abstractmethod
    def _check_params(self) -> None:
        """An error that names the parameter, for all beside the kernel's and `random_state`."""

    @abstractmethod
    def _make_engine(self, d: int, c: int, kernel: Keywords, seed: int) -> Engine:
        """The learner of rows of d columns for c outputs, before the first row."""

    @abstractmethod
    def _note(self, F: Rows, Y: Rows, targets: Any) -> None:
        """Counts what was right of the predictions F for the targets, which stand for Y."""

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _owner(self, method: str = "partial_fit") -> str:
        return f"{type(self).__name__}.{method}"

    def _begin(self, d: int, c: int) -> None:
        owner = self._owner()
        keywords = kernel_keywords(owner, self.kernel, self.bandwidth, self.kernel_params)
        seed = 0 if self.random_state is None else check_int(owner, "random_state", self.random_state, 0)
        if seed >= 1 << 64:
            raise ValueError(message(owner, "random_state", f"{seed}", "an integer in [0, 2^64)"))
        self._check_params()
        if self.kernel in WITHOUT_BANDWIDTH:
            self.bandwidth_ = None
        else:
            self.bandwidth_ = 1.0 if self.bandwidth == "median" else float(self.bandwidth)
            keywords = keywords | {"bandwidth": self.bandwidth_}
        self._first = np.empty((0, d))
        self._engine = self._make_engine(d, c, keywords, seed)
        self.rows_seen_ = 0
        self._row = None

    @property
    def _measures(self) -> bool:
        return self.bandwidth == "median" and self.kernel not in WITHOUT_BANDWIDTH and self.rows_seen_ <= WARM_UP

    def _measure(self) -> None:
        """The bandwidth of the rows so far: their median distance; where it is 0 that of distinct rows, or 1."""
        median = gram.median_distance(self._first)
        if median == 0:
            apart = gram.distances(self._first, self._first)
            median = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
        power = (self.kernel_params or {}).get("gamma", 1.0) if self.kernel == "exponent" else 1.0
        self.bandwidth_ = median**power
        keywords = kernel_keywords(self._owner(), self.kernel, self.bandwidth, self.kernel_params)
        self._engine.set_kernel(keywords | {"bandwidth": self.bandwidth_})
        if self.rows_seen_ == WARM_UP:
            self._first = self._first[:0]

    def _before(self) -> int:
        """Does what is due before the next row; gives the number of rows until something is due again."""
        seen, left = self.rows_seen_, PIECE
        if self._measures:
            if seen >= 2 and seen & (seen - 1) == 0:
                self._measure()
            if seen < WARM_UP:
                left = min(left, (1 << max(seen, 1).bit_length()) - seen)
        return left

    def _learn(self, X: Rows, Y: Rows, targets: Any, bar: Any = None) -> Rows:
        """Learns rows whose outputs are there; the predictions (n, c) made before each."""
        F, done, piece = np.empty_like(Y), 0, FIRST_PIECE
        while done < len(X):
            with uninterrupted():
                began = perf_counter()
                part = slice(done, min(len(X), done + min(piece, self._before())))
                if self._measures and self.rows_seen_ < WARM_UP:
                    self._first = np.concatenate([self._first, X[part]])
                self._engine.learn(X[part], Y[part], F[part])
                self.rows_seen_ += part.stop - done
                self._note(F[part], Y[part], targets[part])
            if bar is not None:
                bar.update(part.stop - done)
            piece = next_piece(part.stop - done, perf_counter() - began)
            done = part.stop
        return F

    def _as_it_is(self, X: Any, y: Any) -> bool:
        """Whether rows after the first need none of scikit-learn's checks, which take as long as learning 200 rows."""
        with np.errstate(over="ignore", invalid="ignore"):
            return (
                self.__sklearn_is_fitted__()
                and not hasattr(self, "feature_names_in_")
                and type(X) is type(y) is np.ndarray
                and (X.dtype, X.ndim, y.ndim) == (np.float64, 2, 1)
                and X.shape == (len(y), self.n_features_in_)
                and len(y) > 0
                and X.flags.c_contiguous
                and math.isfinite(X.sum())
            )

    def _bind_row(self, labels: list[Any]) -> None:
        if self.rows_seen_ > WARM_UP or not self._measures:
            self._row = Row(self.n_features_in_, self._outputs(), labels)

    def _rows(self, X: Any, reset: bool = False) -> Rows:
        """X as float64 (n, d) in C order; ValueError where it has NaN, infinities or another width."""
        return np.asarray(validate_data(self, X, reset=reset, dtype=np.float64, order="C"))

    def _decide(self, X: Any) -> Rows:
        check_is_fitted(self)
        return self._engine.decide(self._rows(X))

    # ---- states -----------------------------------------------------------------------------------------------------

    @property
    def n_support_(self) -> int:
        """Rows whose kernels a prediction takes."""
        check_is_fitted(self)
        return self._engine.n_support

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_engine")

    def _outputs(self) -> int:
        """How many outputs the engine has."""
        return 1

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: value for name, value in super().__getstate__().items() if name != "_row"}
        return state | {"_engine": self._engine.state()} if hasattr(self, "_engine") else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._row = None
        engine = state.pop("_engine", None)
        super().__setstate__(state)
        if engine is not None:
            self._restore(engine)

    def _restore(self, engine: dict[str, Any]) -> None:
        """Makes the engine anew, with a state that one like it had."""
        keywords = kernel_keywords(self._owner(), self.kernel, self.bandwidth, self.kernel_params)
        if self.bandwidth_ is not None:
            keywords = keywords | {"bandwidth": self.bandwidth_}
        self._engine = self._make_engine(self.n_features_in_, self._outputs(), keywords, self.random_state or 0)
        self._engine.load_state(_tree(engine, _own))

    def _widen(self, d: int) -> None:
        """Columns more, d in all, in which all rows so far have zeros: the function stays as it is."""
        state = _wider(self._engine.state(), d)
        self._first, self._row, self.n_features_in_ = _padded(self._first, d), None, d
        self._restore(state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes parameters and state to one .npz without pickle, or leaves what was at `path`.

        Raises:
            NotFittedError: before the first row.
            TypeError: a parameter or a class label that is neither number nor string.
        """
        check_is_fitted(self)
        params = self.get_params(deep=False)
        state = {name: value for name, value in self.__getstate__().items() if name not in params}
        state.pop("_sklearn_version", None)
        plain = {"params": params, "state": state}
        _store.write(path, {"learner": type(self).__name__} | {k: _tree(v, to_plain) for k, v in plain.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote: it goes on as if it had never stopped, bit for bit.

        Raises:
            ValueError: the file is another's, truncated or damaged.
        """
        state, owner = _store.read(path, f"{cls.__name__}.save"), f"{cls.__name__}.load"
        found = state.get("learner") if isinstance(state, dict) else None
        if not _store.equal(found, cls.__name__):
            raise ValueError(message(owner, "path", f"a file of {found}", f"one of {cls.__name__}"))
        with rehearsal(owner, path):
            learner, other = cls._made(state), cls._made(state)
            other._rehearse()
        return learner

    @classmethod
    def _made(cls, state: dict[str, Any]) -> Self:
        """A learner of what a file has."""
        learner = cls(**_tree(state["params"], from_plain))
        learner.__setstate__({**vars(learner), **_tree(state["state"], from_plain)})
        check_int(learner._owner("load"), "rows_seen_", learner.rows_seen_, 0)
        return learner

    def _rehearse(self) -> None:
        """Predicts and learns a row, which fails where parts of a state do not fit together."""
        self.__dict__.pop("feature_names_in_", None)  # a row without them is a warning
        x = np.zeros((1, self.n_features_in_))
        self.predict(x)
        self.partial_fit(x, getattr(self, "classes_", np.zeros(1))[:1])


def _tree(node: Any, leaf: Any) -> Any:
    """A tree of dicts with `leaf` applied to all else."""
    node = leaf(node)
    return {k: _tree(v, leaf) for k, v in node.items()} if isinstance(node, dict) else node


def _own(value: Any) -> Any:
    """Arrays that may be written: those given may be read-only, as memory maps are."""
    return value.copy() if isinstance(value, np.ndarray) else value


def _padded(rows: Rows, d: int) -> Rows:
    return np.pad(rows, [(0, 0), (0, d - rows.shape[1])])


def _wider(state: dict[str, Any], d: int) -> dict[str, Any]:
    """An engine's state for rows of d columns; "rows" and "landmarks" are the names of arrays of such."""
    return {
        name: _wider(value, d)
        if isinstance(value, dict)
        else _padded(value, d)
        if name in ("rows", "landmarks") and isinstance(value, np.ndarray)
        else value
        for name, value in state.items()
    }


class OnlineRegressor(RegressorMixin, OnlineLearner):  # type: ignore[misc]
    """Real targets (n,)."""

    loss_: float

    def _note(self, F: Rows, Y: Rows, targets: Any) -> None:
        for e in (F - Y).ravel():  # one after the other, so that the sum does not depend on the cuts
            self.loss_ += float(e) * float(e)

    def _stream(self, X: Any, y: Any, method: str, reset: bool, progress: bool | None = None) -> tuple[Rows, Rows]:
        with unchanged_on_error(self) if reset else nullcontext():
            X, y = validate_data(self, X, y, reset=reset, dtype=np.float64, order="C", y_numeric=True)
            if reset:
                self._begin(X.shape[1], 1)
                self.loss_ = 0.0
        Y = np.asarray(y, np.float64).reshape(-1, 1)
        with progress_bar(self._owner(method), len(X), progress) as bar:
            return self._learn(X, Y, Y, bar)[:, 0], Y[:, 0]

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Learns rows in their order, each as if it came alone.

        Args:
            X: (n, d), finite; any real dtype, float64 in C order without a copy.
            y: (n,).

        Raises:
            ValueError: NaN or infinities, another width, a parameter out of range; nothing is learned then.
        """
        self._stream(X, y, "partial_fit", not self.__sklearn_is_fitted__())
        return self

    def fit(self, X: Any, y: Any) -> Self:
        """Forgets everything and learns the rows in one pass, as `partial_fit` of a new learner."""
        self._stream(X, y, "fit", True)
        return self

    def progressive(self, X: Any, y: Any, progress: bool | None = None) -> tuple[Rows, Rows]:
        """Predicts and learns: the predictions (n,) made before each row was learned, and their running loss.

        Args:
            X, y: as in `partial_fit`.
            progress: a progress bar; None shows one at a terminal after two seconds.

        Returns:
            Predictions, and the sum of squared errors up to and with each row, earlier calls included.
        """
        before = self.loss_ if self.__sklearn_is_fitted__() else 0.0
        F, Y = self._stream(X, y, "progressive", not self.__sklearn_is_fitted__(), progress)
        return F, np.cumsum(np.concatenate([[before], (F - Y) ** 2]))[1:]

    def learn_one(self, x: Any, y: float) -> float:
        """Predicts the row x (d,), learns it, and gives the prediction: `partial_fit` of one row, without its overhead.

        Raises:
            ValueError: as `partial_fit`.
        """
        row = self._row
        if row is None or not row.take(x) or not math.isfinite(y):
            first = not self.__sklearn_is_fitted__()
            f = float(self._stream(np.asarray(x)[None], np.asarray([y]), "learn_one", first)[0][0])
            self._bind_row([])
            return f
        row.Y[0, 0] = y
        with uninterrupted():
            self._engine.learn(row.X, row.Y, row.F)
            self.rows_seen_ += 1
            self._note(row.F, row.Y, row.Y)
        return float(row.F[0, 0])

    def predict(self, X: Any) -> Rows:
        """Predictions (n,) for the rows X (n, d); nothing is learned."""
        return self._decide(X)[:, 0]


class OnlineClassifier(ClassifierMixin, OnlineLearner):  # type: ignore[misc]
    """Labels (n,): for two classes one output, positive for `classes_[1]`; for more one each, against the rest.

    `classes` given with the first call are sorted, and no other ever comes. Without them a class joins at the row on
    which it first appears, in that order; all rows before it count as rows of the rest.
    """

    drift: bool

    classes_: Labels
    mistakes_: int
    drifts_: int

    _newcomer: bool = False

    def _outputs(self) -> int:
        return 1 if len(self.classes_) <= 2 else len(self.classes_)

    def _best(self, F: Rows) -> npt.NDArray[np.intp]:
        """The class that predictions stand for, as an index."""
        if len(self.classes_) == 1:
            return np.zeros(len(F), np.intp)
        return np.asarray(F[:, 0] > 0 if F.shape[1] == 1 else F.argmax(axis=1), np.intp)

    def _note(self, F: Rows, Y: Rows, targets: Any) -> None:
        if self._newcomer:  # the class of the first row has joined with it: nobody could have said it before
            F[0, -1] = -np.inf
            self._newcomer = False
        mistakes = int((self._best(F) != targets).sum())
        self.mistakes_ += mistakes
        self._recent += mistakes

    # ---- drift ------------------------------------------------------------------------------------------------------

    _recent: int  # mistakes since the last look for drift
    _since: int  # row of the last restart
    _before_window: int  # mistakes from there to the last look

    def _before(self) -> int:
        left = super()._before()
        if not self.drift:
            return left
        if self.rows_seen_ and self.rows_seen_ % WINDOW == 0 and self.rows_seen_ != self._looked:
            self._look()
        return min(left, WINDOW - self.rows_seen_ % WINDOW)

    def _look(self) -> None:
        """Restarts where the window's mistakes exceed the rate before it by three standard errors."""
        self._looked = self.rows_seen_
        before = self.rows_seen_ - WINDOW - self._since
        if before >= 2 * WINDOW:
            rate = self._before_window / before
            if self._recent / WINDOW > rate + 3 * math.sqrt(max(rate * (1 - rate), 1 / before) / WINDOW):
                self._engine.restart()
                self.drifts_ += 1
                self._since, self._before_window, self._recent = self.rows_seen_, 0, 0
                return
        self._before_window += self._recent
        self._recent = 0

    # ---- classes ----------------------------------------------------------------------------------------------------

    def _begin_classes(self, X: Rows, y: Labels, classes: Any, method: str) -> None:
        self._given = classes is not None
        if self._given:
            known = np.unique(classes)
            if len(known) < 2:
                found, argument = f"one class, {known.tolist()}", "y" if method == "fit" else "classes"
                raise ValueError(message(self._owner(method), argument, found, "at least two classes"))
            self._check_labels(y, known, method)
        else:
            known = y[:1].copy()
        self.classes_ = known
        self._begin(X.shape[1], self._outputs())
        self.mistakes_ = self.drifts_ = self._recent = self._since = self._before_window = self._looked = 0
        self._newcomer = False

    def _check_kind(self, y: Labels, known: Labels, method: str) -> None:
        """Numbers and strings must not meet: NumPy would make strings of all of them."""
        of = ["strings" if labels.dtype.kind in "OUS" else "numbers" for labels in (y, known)]
        if of[0] != of[1]:
            needed = f"{of[1]}, as the classes {known.tolist()} are"
            raise ValueError(message(self._owner(method), "y", f"labels that are {of[0]}", needed))

    def _check_labels(self, y: Labels, known: Labels, method: str) -> None:
        self._check_kind(y, known, method)
        unknown = y[~np.isin(y, known)]
        if len(unknown):
            needed = f"labels among the classes {known.tolist()}"
            raise ValueError(message(self._owner(method), "y", f"the label {unknown.tolist()[0]!r}", needed))

    def _join(self, label: Labels) -> None:
        """One class more, (1,)."""
        self._row, self._newcomer = None, True
        old = len(self.classes_)
        self.classes_ = np.concatenate([self.classes_, label])
        if old == 2:  # the one output stood for the second class, with its sign for the first
            self._engine.grow([(0, -1.0), (0, 1.0), None])
        elif old > 2:
            self._engine.grow([*((o, 1.0) for o in range(old)), None])

    def _parts(self, y: Labels) -> Iterator[tuple[int, int]]:
        """Ranges of rows, each begun by joining the class that first appears there."""
        begin = 0
        while begin < len(y):
            new = np.flatnonzero(~np.isin(y[begin:], self.classes_))
            if len(new) and new[0] == 0:
                with uninterrupted():
                    self._join(y[begin : begin + 1])
                continue
            end = begin + int(new[0]) if len(new) else len(y)
            yield begin, end
            begin = end

    def _targets(self, y: Labels) -> tuple[npt.NDArray[np.intp], Rows]:
        order = np.argsort(self.classes_, kind="stable")
        index = order[np.searchsorted(self.classes_[order], y)]
        if self._outputs() == 1:
            return index, np.where(index == 1, 1.0, -1.0)[:, None]
        return index, np.where(index[:, None] == np.arange(len(self.classes_)), 1.0, -1.0)

    def _stream(
        self, X: Any, y: Any, classes: Any, method: str, reset: bool, progress: bool | None = None
    ) -> tuple[Labels, Labels]:
        """Predicted labels, and whether each was a mistake."""
        with unchanged_on_error(self) if reset else nullcontext():
            if reset or not self._as_it_is(X, y) or y.dtype.kind not in "biuU":
                X, y = validate_data(self, X, y, reset=reset, dtype=np.float64, order="C")
                check_classification_targets(y)
                y = np.asarray(y)
            if reset:
                self._begin_classes(X, y, y if method == "fit" else classes, method)
        if not reset and classes is not None and not np.array_equal(np.unique(classes), np.sort(self.classes_)):
            found, needed = f"{np.unique(classes).tolist()}", f"the classes of the first call, {self.classes_.tolist()}"
            raise ValueError(message(self._owner(method), "classes", found, needed))
        elif self._given:
            self._check_labels(y, self.classes_, method)
        else:
            self._check_kind(y, self.classes_, method)
        predicted, mistaken = np.empty(len(y), np.result_type(self.classes_, y)), np.empty(len(y), bool)
        with progress_bar(self._owner(method), len(X), progress) as bar:
            for begin, end in self._parts(y):
                index, Y = self._targets(y[begin:end])
                best = self._best(self._learn(X[begin:end], Y, index, bar))
                predicted[begin:end], mistaken[begin:end] = self.classes_[best], best != index
        return predicted, mistaken

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learns rows in their order, each as if it came alone.

        Args:
            X: (n, d), finite; any real dtype, float64 in C order without a copy.
            y: labels, (n,).
            classes: all labels there will ever be, with the first call; None: a class joins where it first appears.

        Raises:
            ValueError: NaN or infinities, another width, a label outside `classes`, a parameter out of range; nothing
                is learned then.
        """
        self._stream(X, y, classes, "partial_fit", not self.__sklearn_is_fitted__())
        return self

    def fit(self, X: Any, y: Any) -> Self:
        """Forgets everything and learns the rows in one pass, as a new learner's `partial_fit` with y's classes."""
        self._stream(X, y, None, "fit", True)
        return self

    def progressive(
        self, X: Any, y: Any, classes: Any = None, progress: bool | None = None
    ) -> tuple[Labels, npt.NDArray[np.int64]]:
        """Predicts and learns: the labels (n,) predicted before each row was learned, and the running mistakes.

        Args:
            X, y, classes: as in `partial_fit`.
            progress: a progress bar; None shows one at a terminal after two seconds.

        Returns:
            Labels, and the number of mistakes up to and with each row, earlier calls included, from the first row of
            all. A row whose class nobody knew is a mistake (but the first of all without `classes`, whose label is
            the only one that could be said).
        """
        before = self.mistakes_ if self.__sklearn_is_fitted__() else 0
        first = not self.__sklearn_is_fitted__()
        predicted, mistaken = self._stream(X, y, classes, "progressive", first, progress)
        return predicted, before + np.cumsum(mistaken)

    def learn_one(self, x: Any, y: Any) -> Any:
        """Predicts the label of the row x (d,), learns it, and gives the prediction.

        It is `partial_fit` of one row, without its overhead. y is hashable, like the labels of `classes_`.

        Raises:
            ValueError: as `partial_fit`.
        """
        row = self._row
        place = None if row is None else row.places.get(y)
        if row is None or place is None or not row.take(x):
            first = not self.__sklearn_is_fitted__()
            label = self._stream(np.asarray(x)[None], np.asarray([y]), None, "learn_one", first)[0].tolist()[0]
            self._bind_row(self.classes_.tolist())
            return label
        if row.single:
            row.Y[0, 0] = 1.0 if place else -1.0
        else:
            row.Y[0] = -1.0
            row.Y[0, place] = 1.0
        with uninterrupted():
            if self.drift:
                self._before()
            self._engine.learn(row.X, row.Y, row.F)
            self.rows_seen_ += 1
            best = row.best()
            if best != place:
                self.mistakes_ += 1
                self._recent += 1
        return row.labels[best]

    def decision_function(self, X: Any) -> Rows:
        """Predictions for the rows X (n, d): (n,) for two classes, then > 0 means the second; else (n, n_classes).

        Nothing is learned.
        """
        F = self._decide(X)
        return F[:, 0] if F.shape[1] == 1 else F

    def predict(self, X: Any) -> Labels:
        """Labels (n,) for the rows X (n, d); nothing is learned."""
        best = self._best(self._decide(X))
        return np.asarray(self.classes_[best])
