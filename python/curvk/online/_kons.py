"""Learners whose features are random frequencies, FOGD, or a dictionary that grows, KONS and PROS-N-KONS."""

from __future__ import annotations

import math
from typing import Any

from .._errors import message
from .._estimator import Keywords, check_choice, check_float, check_int
from ..kernels.online import LOSSES
from ._base import OnlineClassifier, OnlineLearner, OnlineRegressor
from ._dictionary import LeverageDictionary, NewtonBasis
from ._engine import Engine
from ._features import FeatureEngine, Step
from ._fourier import KERNELS, Fourier
from ._maps import FeatureMap

_ON_ENTRY = ("keep", "reset")


class _FromTheStart(OnlineLearner):
    """A map that needs no buffer, and a step."""

    _positive: tuple[str, ...] = ()

    def _check_params(self) -> None:
        owner = self._owner()
        for name in self._positive:
            check_float(owner, name, getattr(self, name), above=0.0)
        if hasattr(self, "budget") and self.budget is not None:
            check_int(owner, "budget", self.budget, 1)
        if hasattr(self, "loss"):
            check_choice(owner, "loss", self.loss, LOSSES)
        if hasattr(self, "curvature"):
            check_float(owner, "curvature", self.curvature, at_least=0.0)
            if self.clip is not None:
                check_float(owner, "clip", self.clip, above=0.0)
        if hasattr(self, "drift") and not isinstance(self.drift, bool):
            raise TypeError(message(owner, "drift", f"{self.drift!r}", "True or False"))

    def _make_map(self, d: int, kernel: Keywords, seed: int) -> FeatureMap:
        raise NotImplementedError

    def _step(self) -> Step:
        raise NotImplementedError

    def _make_engine(self, d: int, c: int, kernel: Keywords, seed: int) -> Engine:
        return FeatureEngine(d, c, self._make_map(d, kernel, seed), self._step(), kernel)


class _Newton(_FromTheStart):
    """The step of KONS."""

    loss: str
    alpha: float
    clip: float | None
    curvature: float

    def _step(self) -> Step:
        clip = math.inf if self.clip is None else self.clip
        return Step("kons", self.loss, alpha=self.alpha, clip=clip, curvature=self.curvature)


class _Ridge(_FromTheStart):
    """Least squares, recursively."""

    alpha: float

    def _step(self) -> Step:
        return Step("ridge", "squared", alpha=self.alpha)


# ---- FOGD ------------------------------------------------------------------------------------------------------------


class _Frequencies(_FromTheStart):
    n_components: int
    lr: float
    kernel: str

    _positive = ("lr",)

    def _check_params(self) -> None:
        super()._check_params()
        check_int(self._owner(), "n_components", self.n_components, 1)
        check_choice(self._owner(), "kernel", self.kernel, KERNELS)

    def _make_map(self, d: int, kernel: Keywords, seed: int) -> Fourier:
        return Fourier(d, kernel, n_components=self.n_components, seed=seed)

    def _step(self) -> Step:  # the features' products are n_components times the kernel
        return Step("gradient", getattr(self, "loss", "squared"), self.lr / self.n_components)


class FOGDClassifier(OnlineClassifier, _Frequencies):
    """Gradient steps on random Fourier features: no support vectors, every row costs the same.

    Source: Lu, Hoi, Wang, Zhao & Liu, "Large Scale Online Kernel Learning", JMLR 17(47), 2016; the frequencies' cosine
    and sine are exact, those of the authors' code are not a pair (see the map, `Fourier`).

    Args:
        n_components: D, frequencies; there are 2 D features.
        kernel: "gaussian", "laplacian", "matern32", "matern52" or "imq", each with the spectrum of its own.
        kernel_params: as `curvk.kernels.gram.matvec` takes them; none of these kernels has any.
        bandwidth: a number, or "median": that of the first 128 rows, fixed from then on.
        loss: "hinge" (published), "squared_hinge", "logistic" or "squared".
        lr: rate of the step in the space of the kernel, f <- f - lr l'(f(x)) k(x, .), whatever D is. The published
            features have products D k, so that published rates are to be multiplied by D: .001 at D = 400 is 0.4.
        drift: looks every 100 rows whether their mistakes exceed the rate before by three standard errors, and forgets
            w then.
        random_state: seed of the frequencies; None: 0.

    Attributes:
        classes_: labels, in order of appearance unless given.
        mistakes_: of all rows so far, each predicted before it was learned.
        n_support_: frequencies.
        bandwidth_: the one in use.
        drifts_: restarts after drifts.

    A row costs D (d + 4) multiplications, D sines and D cosines. The same rows give the same bits in calls of any
    length.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = FOGDClassifier(bandwidth=0.5).progressive(X, y)
    >>> bool(mistakes[-1] < 250)
    True
    """

    def __init__(
        self,
        n_components: int = 100,
        *,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        loss: str = "hinge",
        lr: float = 0.5,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.n_components, self.kernel, self.bandwidth, self.kernel_params = (
            n_components,
            kernel,
            bandwidth,
            kernel_params,
        )
        self.loss, self.lr, self.drift, self.random_state = loss, lr, drift, random_state


class FOGDRegressor(OnlineRegressor, _Frequencies):
    """`FOGDClassifier` for the squared loss.

    Args:
        n_components, kernel, bandwidth, kernel_params, random_state: as `FOGDClassifier`.
        lr: rate of f <- f - 2 lr (f(x) - y) k(x, .): below 1, else the steps grow.

    Attributes:
        loss_: sum of the squared errors so far, each row predicted before it was learned.
        n_support_, bandwidth_: as `FOGDClassifier`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    >>> y = np.sin(3 * X[:, 0]) * X[:, 1]
    >>> predicted, loss = FOGDRegressor(bandwidth=0.5).progressive(X, y)
    >>> bool(loss[-1] - loss[499] < 5)
    True
    """

    def __init__(
        self,
        n_components: int = 100,
        *,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        lr: float = 0.2,
        random_state: int | None = None,
    ) -> None:
        self.n_components, self.kernel, self.bandwidth, self.kernel_params = (
            n_components,
            kernel,
            bandwidth,
            kernel_params,
        )
        self.lr, self.random_state = lr, random_state


# ---- KONS ------------------------------------------------------------------------------------------------------------


class _AllThatIsNew(_FromTheStart):
    budget: int | None
    tolerance: float

    _positive = ("alpha",)

    def _check_params(self) -> None:
        super()._check_params()
        if not 0 <= check_float(self._owner(), "tolerance", self.tolerance, at_least=0.0) < 1:
            raise ValueError(message(self._owner(), "tolerance", f"{self.tolerance}", "a number in [0, 1)"))

    def _make_map(self, d: int, kernel: Keywords, seed: int) -> NewtonBasis:
        return NewtonBasis(d, kernel, budget=self.budget, tolerance=self.tolerance)


class KONSClassifier(OnlineClassifier, _AllThatIsNew, _Newton):
    """Online Newton steps in the space of the kernel itself, without approximation while `budget` is None.

    Source: Calandriello, Lazaric & Valko, "Second-Order Kernel Online Convex Optimization with Adaptive Sketching",
    ICML 2017. Theirs is the dual form; here every row that the rows before it do not span adds one coordinate to w and
    the metric (`NewtonBasis`), and predictions are the same.

    Args:
        budget: rows of the dictionary at most, after which it stays as it is; None: no bound.
        tolerance: rows within this share of k(x, x) of the dictionary's span do not enter (approximate linear
            dependence). From 1e-8 on; what is below is lost in rounding.
        kernel, kernel_params: as `curvk.kernels.gram.matvec` takes them.
        bandwidth: a number, or "median": that of the first 128 rows, fixed from then on.
        loss: "squared_hinge", "hinge" (without curvature, hence without regret bound), "logistic" or "squared".
        alpha: the metric begins as alpha I.
        clip: C, bound on predictions; None: no bound.
        curvature: of the loss, 1 / (8 C^2) for squared and squared hinge, about e^-C for logistic.
        drift: as in `FOGDClassifier`; w and the metric are forgotten, the dictionary stays.
        random_state: not used: nothing here is random.

    Attributes:
        classes_, mistakes_, bandwidth_, drifts_: as `FOGDClassifier`.
        n_support_: rows of the dictionary.

    A row costs O(m d + m^2) for a dictionary of m rows, and memory is O(m^2) for each output: kernels of high rank want
    a budget or a tolerance. The same rows give the same bits in calls of any length.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = KONSClassifier(bandwidth=0.5).progressive(X, y)
    >>> bool(mistakes[-1] < 100)
    True
    """

    def __init__(
        self,
        budget: int | None = None,
        *,
        tolerance: float = 1e-8,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        loss: str = "squared_hinge",
        alpha: float = 1.0,
        clip: float | None = 1.0,
        curvature: float = 0.125,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.tolerance, self.kernel, self.bandwidth = budget, tolerance, kernel, bandwidth
        self.kernel_params, self.loss, self.alpha, self.clip = kernel_params, loss, alpha, clip
        self.curvature, self.drift, self.random_state = curvature, drift, random_state


class KONSRegressor(OnlineRegressor, _AllThatIsNew, _Ridge):
    """Kernel recursive least squares on the dictionary of `KONSClassifier`: the exact step of the squared loss.

    While `budget` is None and the tolerance small, f minimises alpha abs(f)^2 + sum (y - f(x))^2 over the rows so far:
    online kernel ridge regression.

    Args:
        budget, tolerance, kernel, kernel_params, bandwidth, random_state: as `KONSClassifier`. Where a bandwidth is
            "median", what the first 128 rows taught under others stays as a prior.
        alpha: the ridge.

    Attributes:
        loss_: sum of the squared errors so far, each row predicted before it was learned.
        n_support_, bandwidth_: as `KONSClassifier`.

    Source: with a tolerance it is the KRLS of Engel, Mannor & Meir, IEEE Trans. Signal Processing 52(8), 2004, with a
    ridge.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    >>> y = np.sin(3 * X[:, 0]) * X[:, 1]
    >>> predicted, loss = KONSRegressor(bandwidth=0.5).progressive(X, y)
    >>> bool(loss[-1] - loss[499] < 0.02)
    True
    """

    def __init__(
        self,
        budget: int | None = None,
        *,
        tolerance: float = 1e-8,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        alpha: float = 0.01,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.tolerance, self.kernel, self.bandwidth = budget, tolerance, kernel, bandwidth
        self.kernel_params, self.alpha, self.random_state = kernel_params, alpha, random_state


# ---- PROS-N-KONS -----------------------------------------------------------------------------------------------------


class _Drawn(_FromTheStart):
    budget: int | None
    gamma: float
    beta: float
    eps: float
    on_refresh: str

    _positive = ("alpha", "gamma", "beta")

    def _check_params(self) -> None:
        super()._check_params()
        if not 0 <= check_float(self._owner(), "eps", self.eps, at_least=0.0) < 1:
            raise ValueError(message(self._owner(), "eps", f"{self.eps}", "a number in [0, 1)"))
        check_choice(self._owner(), "on_refresh", self.on_refresh, _ON_ENTRY)

    def _make_map(self, d: int, kernel: Keywords, seed: int) -> LeverageDictionary:
        settings = {name: getattr(self, name) for name in ("gamma", "beta", "eps", "budget", "on_refresh")}
        return LeverageDictionary(d, kernel, seed=seed, **settings)


class PROSNKONSClassifier(OnlineClassifier, _Drawn, _Newton):
    """Online Newton steps in the span of a dictionary that rows enter by chance, by their ridge leverage scores.

    Source: Calandriello, Lazaric & Valko, "Efficient Second-Order Online Kernel Learning with Adaptive Embedding",
    NeurIPS 2017. The map, `LeverageDictionary`, says what is done faster than in released code, with equal predictions.

    Args:
        budget: rows of the dictionary at most; None: as many as are drawn, in the order of the kernel's effective
            dimension at `gamma`.
        gamma: ridge of the scores.
        beta: chances of entry in proportion to it.
        eps: accuracy that the scores allow for, in [0, 1).
        kernel, kernel_params: as `curvk.kernels.gram.matvec` takes them.
        bandwidth: a number, or "median": that of the first 128 rows, fixed from then on.
        loss: "squared_hinge", "hinge" (without curvature, hence without regret bound), "logistic" or "squared".
        alpha: the metric begins as alpha I.
        clip: C, bound on predictions; None: no bound.
        curvature: of the loss, 1 / (8 C^2) for squared and squared hinge, about e^-C for logistic.
        on_refresh: "reset" forgets w and the metric at each entry, as published; "keep" adds one coordinate to them.
        drift: as in `FOGDClassifier`; w and the metric are forgotten, the dictionary stays.
        random_state: seed of the draws; None: 0.

    Attributes:
        classes_, mistakes_, bandwidth_, drifts_: as `FOGDClassifier`.
        n_support_: rows of the dictionary.

    A row costs O(m d + m^2) for a dictionary of m rows, and so does an entry. The same rows give the same bits in calls
    of any length.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = PROSNKONSClassifier(bandwidth=0.5).progressive(X, y)
    >>> bool(mistakes[-1] < 250)
    True
    """

    def __init__(
        self,
        budget: int | None = None,
        *,
        gamma: float = 1.0,
        beta: float = 1.0,
        eps: float = 0.5,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        loss: str = "squared_hinge",
        alpha: float = 1.0,
        clip: float | None = 1.0,
        curvature: float = 0.125,
        on_refresh: str = "keep",
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.gamma, self.beta, self.eps = budget, gamma, beta, eps
        self.kernel, self.bandwidth, self.kernel_params, self.loss = kernel, bandwidth, kernel_params, loss
        self.alpha, self.clip, self.curvature, self.on_refresh = alpha, clip, curvature, on_refresh
        self.drift, self.random_state = drift, random_state


class PROSNKONSRegressor(OnlineRegressor, _Drawn, _Ridge):
    """Recursive least squares in the span of the dictionary of `PROSNKONSClassifier`. Nothing bounds a prediction.

    Args:
        budget, gamma, beta, eps, kernel, kernel_params, bandwidth, on_refresh, random_state: as `PROSNKONSClassifier`.
        alpha: the ridge.

    Attributes:
        loss_: sum of the squared errors so far, each row predicted before it was learned.
        n_support_, bandwidth_: as `PROSNKONSClassifier`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    >>> y = np.sin(3 * X[:, 0]) * X[:, 1]
    >>> predicted, loss = PROSNKONSRegressor().progressive(X, y)
    >>> bool(loss[-1] - loss[499] < 5)
    True
    """

    def __init__(
        self,
        budget: int | None = None,
        *,
        gamma: float = 1.0,
        beta: float = 1.0,
        eps: float = 0.5,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        alpha: float = 0.01,
        on_refresh: str = "keep",
        random_state: int | None = None,
    ) -> None:
        self.budget, self.gamma, self.beta, self.eps, self.kernel = budget, gamma, beta, eps, kernel
        self.bandwidth, self.kernel_params, self.alpha = bandwidth, kernel_params, alpha
        self.on_refresh, self.random_state = on_refresh, random_state
