"""The learners for river: features by name, one event or one frame at a time; needs the extra `curvk[river]`.

`Classifier(learner)` and `Regressor(learner)` take any learner of `curvk.online`; the other classes are these with a
learner of their own, whose parameters they take. They hold to river's conventions:

- A feature that is absent is 0. One that appears later joins as if all rows before had 0 there; one that no learned row
  had is ignored by predictions. The order in a dict does not matter.
- Features are finite numbers (True and False are). Scale them: kernels of distances know no units.
- A label is anything hashable but None and NaN. A class joins where it first appears.
- Before the first row a classifier predicts None and no probabilities, a regressor 0.
- `learn_many` learns the frame's rows one after the other: the same bits as that many `learn_one`.

>>> from river import datasets, evaluate, metrics, preprocessing
>>> model = preprocessing.StandardScaler() | FORKS(budget=50)
>>> bool(evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy()).get() > 0.85)
True
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, softmax  # type: ignore[import-untyped]
from sklearn.base import clone

try:
    from river import base
except ModuleNotFoundError as error:
    text = f"curvk.online.river needs river ({error.name} is missing); pip install 'curvk[river]'"
    raise ImportError(text) from error

from .. import online
from .._errors import message
from .._interrupt import uninterrupted
from ._base import OnlineClassifier, OnlineLearner, OnlineRegressor
from ._engine import Rows

__all__ = [
    "BOGD",
    "BPAS",
    "FOGD",
    "FORKS",
    "KONS",
    "NOGD",
    "PROSNKONS",
    "RBP",
    "Classifier",
    "FOGDRegressor",
    "FORKSRegressor",
    "Forgetron",
    "KONSRegressor",
    "KernelPerceptron",
    "NOGDRegressor",
    "PROSNKONSRegressor",
    "Projectron",
    "Regressor",
    "SkeGD",
]

_PLAIN = frozenset({float, int, bool})  # what a look at the type is enough for


class _Adapter(base.Estimator):
    """Names of features become columns, in the order of their names; those that come later lie behind them."""

    learner: OnlineLearner
    _kind: type[OnlineLearner]

    def __init__(self, learner: OnlineLearner) -> None:
        if not isinstance(learner, self._kind):
            needed = f"a learner of curvk.online, an {self._kind.__name__}"
            raise TypeError(message(type(self).__name__, "learner", f"{learner!r}", needed))
        self.learner = learner
        self._model = clone(learner)
        self._columns: dict[Hashable, int] = {}
        self._width = 0  # of the model's rows: some columns may have no name yet

    def __init_subclass__(cls, learner: type[OnlineLearner] | None = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if learner is not None:
            cls.__init__ = _constructor(cls.__init__, learner)  # type: ignore[method-assign]

    # ---- rows -------------------------------------------------------------------------------------------------------

    @property
    def _started(self) -> bool:
        return bool(self._model.__sklearn_is_fitted__())

    def _refuse(self, method: str, name: Hashable, value: Any) -> None:
        owner = f"{type(self).__name__}.{method}"
        found, remedy = f"{value!r} for the feature {name!r}", "see river.preprocessing for encoders and imputers"
        if not isinstance(value, (Real, np.bool_)):
            raise TypeError(message(owner, "x", found, "a number for each feature", remedy))
        raise ValueError(message(owner, "x", found, "a finite number for each feature", remedy))

    def _name(self, names: Sequence[Hashable]) -> None:
        """Gives columns to names without one."""
        new = sorted((n for n in names if n not in self._columns), key=lambda n: (str(n), type(n).__name__))
        count = len(self._columns) + len(new)
        with uninterrupted():
            if count > self._width or not self._width:
                # some to spare, as each widening makes the model's arrays anew
                width = max(1, count, self._width + self._width // 4)
                if self._started:
                    self._model._widen(width)
                self._width = width
            self._columns |= {name: len(self._columns) + i for i, name in enumerate(new)}

    def _row(self, x: Mapping[Hashable, Any], method: str) -> Rows:
        """The row (width,) for an event; `learn_one` gives columns to what it brings."""
        for name, value in x.items():
            if type(value) not in _PLAIN and not isinstance(value, (Real, np.bool_)):
                self._refuse(method, name, value)
            try:
                finite = math.isfinite(value)
            except OverflowError:  # an int beyond float64
                finite = False
            if not finite:
                self._refuse(method, name, value)
        columns = self._columns
        if method == "learn_one" and (not self._width or not x.keys() <= columns.keys()):
            self._name(list(x))
        row = np.zeros(self._width)
        for name, value in x.items():
            if name in columns:
                row[columns[name]] = value
        return row

    def _rows(self, X: Any, method: str) -> Rows:
        """The rows (n, width) of a frame."""
        names = list(X.columns)
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            found = f"two columns {twice!r}"
            raise ValueError(message(f"{type(self).__name__}.{method}", "X", found, "one column for each feature"))
        values = np.zeros((len(X), len(names)))
        for j, name in enumerate(names):
            column = np.asarray(X[name])
            if column.dtype.kind not in "biuf":
                for value in column.tolist():
                    if not isinstance(value, (Real, np.bool_)):
                        self._refuse(method, name, value)
            values[:, j] = column
            if not np.isfinite(values[:, j]).all():
                self._refuse(method, name, values[~np.isfinite(values[:, j]), j][0])
        if method == "learn_many":
            self._name(names)
        rows = np.zeros((len(X), self._width))
        known = [j for j, name in enumerate(names) if name in self._columns]
        rows[:, [self._columns[names[j]] for j in known]] = values[:, known]
        return rows

    def _targets(self, X: Any, y: Any) -> list[Any]:
        targets = y.tolist() if hasattr(y, "tolist") else list(y)
        if len(targets) != len(X):
            found, owner = f"{len(targets)} targets for {len(X)} rows", f"{type(self).__name__}.learn_many"
            raise ValueError(message(owner, "y", found, "one target for each row"))
        return targets


def _constructor(adapt: Callable[..., None], learner: type[OnlineLearner]) -> Callable[..., None]:
    """`__init__` with the parameters of a learner, kept as attributes, which is where river looks for them."""
    signature = inspect.signature(learner.__init__)

    def __init__(self: _Adapter, *args: Any, **params: Any) -> None:
        given = signature.bind(self, *args, **params)
        given.apply_defaults()
        params = dict(list(given.arguments.items())[1:])
        adapt(self, learner(**params))
        for name, value in params.items():
            setattr(self, name, value)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


class Classifier(_Adapter, base.MiniBatchClassifier):
    """A classifier of `curvk.online` for river.

    Args:
        learner: its parameters; what it has learned is not taken over.

    Probabilities are logistic functions of the margins: 1 / (1 + exp(-f)) for two classes, these for each class against
    the rest, divided by their sum, for more. With `loss="logistic"` that is the model's own probability, with any other
    loss a score in the right order, no frequency of being right.

    >>> from curvk.online import FORKSClassifier
    >>> model = Classifier(FORKSClassifier(bandwidth=1.0))
    >>> for x, y in [({"a": 0}, "low"), ({"a": 1}, "high"), ({"a": 1, "b": 1}, "high")]:
    ...     model.learn_one(x, y)
    >>> model.predict_one({"a": 1})
    'high'
    >>> sorted(model.predict_proba_one({"a": 1}))
    ['high', 'low']
    """

    learner: OnlineClassifier
    _kind = OnlineClassifier

    def __init__(self, learner: OnlineClassifier) -> None:
        super().__init__(learner)
        self._labels: list[Hashable] = []  # the model's classes are places in it
        self._places: dict[Hashable, int] = {}

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"learner": online.FORKSClassifier(budget=20, rank=5)} if cls is Classifier else {}

    @property
    def _multiclass(self) -> bool:
        return True

    def _check_label(self, y: Any, method: str) -> None:
        if y is None or y != y:
            raise ValueError(message(f"{type(self).__name__}.{method}", "y", f"{y!r}", "a label"))

    def _place(self, y: Any) -> int:
        place = self._places.get(y)
        if place is None:
            place = len(self._labels)
            self._labels.append(y.item() if isinstance(y, np.generic) else y)
            self._places[y] = place
        return place

    @property
    def _classes(self) -> list[Any]:
        return [self._labels[place] for place in self._model.classes_]

    def learn_one(self, x: Mapping[Any, Any], y: Any) -> None:
        """Learns one event.

        Raises:
            TypeError: a feature is no number, the label not hashable.
            ValueError: a feature is not finite, the label None or NaN.
        """
        self._check_label(y, "learn_one")
        hash(y)
        self._model.learn_one(self._row(x, "learn_one"), self._place(y))

    def learn_many(self, X: Any, y: Any) -> None:
        """Learns the rows of a frame one after the other, as `learn_one` does, in compiled code.

        Raises:
            TypeError, ValueError: as `learn_one`; nothing is learned then.
        """
        labels = self._targets(X, y)
        for label in labels:
            self._check_label(label, "learn_many")
            hash(label)
        if labels:
            rows = self._rows(X, "learn_many")
            self._model.partial_fit(rows, np.array([self._place(label) for label in labels]))

    def _probabilities(self, rows: Rows) -> Rows:
        """(n, classes)."""
        F = self._model._engine.decide(rows)
        if len(self._model.classes_) == 1:
            return np.ones_like(F)
        if F.shape[1] == 1:
            return np.asarray(expit(np.concatenate([-F, F], axis=1)))
        return np.asarray(softmax(log_expit(F), axis=1))  # as the quotient, which could be 0 / 0

    def predict_proba_one(self, x: Mapping[Any, Any], **kwargs: Any) -> dict[Any, float]:
        """A probability for each class so far; see the class for what it is worth."""
        row = self._row(x, "predict_proba_one")
        if not self._started:
            return {}
        return dict(zip(self._classes, self._probabilities(row[None])[0].tolist(), strict=True))

    def predict_one(self, x: Mapping[Any, Any], **kwargs: Any) -> Any:
        """The label of the largest margin, or None before the first event."""
        row = self._row(x, "predict_one")
        if not self._started:
            return None
        return self._classes[int(self._model._best(self._model._engine.decide(row[None]))[0])]

    def predict_proba_many(self, X: Any) -> Any:
        """`predict_proba_one` of each row: a frame with a column for each class so far."""
        import pandas as pd

        rows = self._rows(X, "predict_proba_many")
        if not self._started:
            return pd.DataFrame(index=X.index)
        return pd.DataFrame(self._probabilities(rows), index=X.index, columns=self._classes)

    def predict_many(self, X: Any) -> Any:
        """`predict_one` of each row, as a series."""
        import pandas as pd

        rows = self._rows(X, "predict_many")
        if not self._started:
            return pd.Series([None] * len(X), index=X.index, dtype=object)
        classes = self._classes
        best = self._model._best(self._model._engine.decide(rows)).tolist()
        return pd.Series([classes[place] for place in best], index=X.index)


class Regressor(_Adapter, base.MiniBatchRegressor):
    """A regressor of `curvk.online` for river.

    Args:
        learner: its parameters; what it has learned is not taken over.

    >>> from curvk.online import FORKSRegressor
    >>> model = Regressor(FORKSRegressor(bandwidth=1.0, fill_lr=1.0))
    >>> model.learn_one({"a": 1.0}, 3.0)
    >>> model.predict_one({"a": 1.0})
    3.0
    """

    learner: OnlineRegressor
    _kind = OnlineRegressor

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"learner": online.FORKSRegressor(budget=20, rank=5)} if cls is Regressor else {}

    def _check_target(self, y: Any, method: str) -> None:
        if not isinstance(y, (Real, np.bool_)):
            raise TypeError(message(f"{type(self).__name__}.{method}", "y", f"{y!r}", "a number"))
        if not np.isfinite(float(y)):
            raise ValueError(message(f"{type(self).__name__}.{method}", "y", f"{y!r}", "a finite number"))

    def learn_one(self, x: Mapping[Any, Any], y: Any) -> None:
        """Learns one event.

        Raises:
            TypeError, ValueError: a feature or the target is no number, or not finite.
        """
        self._check_target(y, "learn_one")
        self._model.learn_one(self._row(x, "learn_one"), float(y))

    def learn_many(self, X: Any, y: Any) -> None:
        """Learns the rows of a frame one after the other, as `learn_one` does, in compiled code.

        Raises:
            TypeError, ValueError: as `learn_one`; nothing is learned then.
        """
        targets = self._targets(X, y)
        for target in targets:
            self._check_target(target, "learn_many")
        if targets:
            self._model.partial_fit(self._rows(X, "learn_many"), np.array(targets, np.float64))

    def predict_one(self, x: Mapping[Any, Any]) -> float:
        """The prediction, 0 before the first event."""
        row = self._row(x, "predict_one")
        return float(self._model._engine.decide(row[None])[0, 0]) if self._started else 0.0

    def predict_many(self, X: Any) -> Any:
        """`predict_one` of each row, as a series."""
        import pandas as pd

        rows = self._rows(X, "predict_many")
        f = self._model._engine.decide(rows)[:, 0] if self._started else np.zeros(len(X))
        return pd.Series(f, index=X.index)


class BOGD(Classifier, learner=online.BOGDClassifier):
    """`curvk.online.BOGDClassifier` for river; parameters as there."""


class BPAS(Classifier, learner=online.BPASClassifier):
    """`curvk.online.BPASClassifier` for river; parameters as there."""


class FOGD(Classifier, learner=online.FOGDClassifier):
    """`curvk.online.FOGDClassifier` for river; parameters as there."""


class FORKS(Classifier, learner=online.FORKSClassifier):
    """`curvk.online.FORKSClassifier` for river; parameters as there."""


class Forgetron(Classifier, learner=online.ForgetronClassifier):
    """`curvk.online.ForgetronClassifier` for river; parameters as there."""


class KONS(Classifier, learner=online.KONSClassifier):
    """`curvk.online.KONSClassifier` for river; parameters as there."""


class KernelPerceptron(Classifier, learner=online.KernelPerceptronClassifier):
    """`curvk.online.KernelPerceptronClassifier` for river; parameters as there."""


class NOGD(Classifier, learner=online.NOGDClassifier):
    """`curvk.online.NOGDClassifier` for river; parameters as there."""


class PROSNKONS(Classifier, learner=online.PROSNKONSClassifier):
    """`curvk.online.PROSNKONSClassifier` for river; parameters as there."""


class Projectron(Classifier, learner=online.ProjectronClassifier):
    """`curvk.online.ProjectronClassifier` for river; parameters as there."""


class RBP(Classifier, learner=online.RBPClassifier):
    """`curvk.online.RBPClassifier` for river; parameters as there."""


class SkeGD(Classifier, learner=online.SkeGDClassifier):
    """`curvk.online.SkeGDClassifier` for river; parameters as there."""


class FOGDRegressor(Regressor, learner=online.FOGDRegressor):
    """`curvk.online.FOGDRegressor` for river; parameters as there."""


class FORKSRegressor(Regressor, learner=online.FORKSRegressor):
    """`curvk.online.FORKSRegressor` for river; parameters as there."""


class KONSRegressor(Regressor, learner=online.KONSRegressor):
    """`curvk.online.KONSRegressor` for river; parameters as there."""


class NOGDRegressor(Regressor, learner=online.NOGDRegressor):
    """`curvk.online.NOGDRegressor` for river; parameters as there."""


class PROSNKONSRegressor(Regressor, learner=online.PROSNKONSRegressor):
    """`curvk.online.PROSNKONSRegressor` for river; parameters as there."""
