"""Learners in the Nystrom space of a buffer: FORKS, SkeGD and NOGD."""

from __future__ import annotations

import math
from typing import Any

from .._errors import message
from .._estimator import Keywords, check_choice, check_float, check_int
from ..kernels.online import LOSSES
from ._base import OnlineClassifier, OnlineLearner, OnlineRegressor
from ._engine import Engine
from ._features import ON_REFRESH, FeatureEngine, Step
from ._nystrom import Nystrom, PublishedNystrom, SketchedNystrom

_PUBLISHED_LR = 0.2
_FILL_LR = 0.5


class _Buffered(OnlineLearner):
    """A buffer of `budget` support vectors becomes a map of `rank` features."""

    budget: int
    rank: int
    fill_lr: float | None
    rcond: float

    _positive: tuple[str, ...] = ("lr", "fill_lr")

    def _check_params(self) -> None:
        owner = self._owner()
        budget, rank = (check_int(owner, name, getattr(self, name), 1) for name in ("budget", "rank"))
        if rank > budget:
            raise ValueError(message(owner, "rank", f"{rank}", f"at most the budget, {budget}", "use a larger budget"))
        for name in self._positive:
            check_float(owner, name, getattr(self, name), above=0.0)
        if not 0 <= check_float(owner, "rcond", self.rcond, at_least=0.0) < 1:
            raise ValueError(message(owner, "rcond", f"{self.rcond}", "a number in [0, 1)"))
        if hasattr(self, "loss"):
            check_choice(owner, "loss", self.loss, LOSSES)
        if hasattr(self, "drift") and not isinstance(self.drift, bool):
            raise TypeError(message(owner, "drift", f"{self.drift!r}", "True or False"))

    def _build(self, d: int, c: int, kernel: Keywords, seed: int) -> tuple[Any, Step]:
        """The map and the step."""
        raise NotImplementedError

    def _make_engine(self, d: int, c: int, kernel: Keywords, seed: int) -> Engine:
        feature_map, step = self._build(d, c, kernel, seed)
        fill_lr = self.fill_lr or (_PUBLISHED_LR if step.rule == "published" else _FILL_LR)
        return FeatureEngine(d, c, feature_map, step, kernel, self.budget, fill_lr)


class _Sketched(_Buffered):
    """The buffer is sketched, and the sketches are refreshed."""

    sketch_size: int | None
    landmarks: int | None
    blocks: int
    refresh_every: int | None
    on_refresh: str
    decay: float

    def _sizes(self) -> tuple[int, int]:
        """s_p and s_m as given, or 3/4 and 1/2 of the budget but the rank at least; s_p rounded up to whole blocks."""
        s_p = max(3 * self.budget // 4, self.rank) if self.sketch_size is None else self.sketch_size
        s_m = max(self.budget // 2, self.rank) if self.landmarks is None else self.landmarks
        return -(-s_p // self.blocks) * self.blocks if self.sketch_size is None else s_p, s_m

    def _check_params(self) -> None:
        super()._check_params()
        owner = self._owner()
        blocks = check_int(owner, "blocks", self.blocks, 1)
        for name in ("sketch_size", "landmarks"):
            if getattr(self, name) is not None:
                check_int(owner, name, getattr(self, name), 1)
        s_p, s_m = self._sizes()
        if not s_p >= self.rank:
            raise ValueError(message(owner, "sketch_size", f"{s_p}", f"at least the rank, {self.rank}"))
        if s_p % blocks:
            raise ValueError(message(owner, "sketch_size", f"{s_p}", f"a multiple of blocks, {blocks}"))
        if not self.rank <= s_m <= self.budget:
            needed = f"between the rank, {self.rank}, and the budget, {self.budget}"
            raise ValueError(message(owner, "landmarks", f"{s_m}", needed))
        if self.refresh_every is not None:
            check_int(owner, "refresh_every", self.refresh_every, 1)
        check_choice(owner, "on_refresh", self.on_refresh, ON_REFRESH)
        if check_float(owner, "decay", self.decay, at_least=0.0) > 1:
            raise ValueError(message(owner, "decay", f"{self.decay}", "a number in [0, 1]"))

    def _map(self, cls: type[SketchedNystrom], d: int, kernel: Keywords, seed: int, **settings: Any) -> SketchedNystrom:
        s_p, s_m = self._sizes()
        return cls(
            d,
            kernel,
            sketch_size=s_p,
            landmarks=s_m,
            k=self.rank,
            blocks=self.blocks,
            every=self.refresh_every,
            seed=seed,
            rcond=self.rcond,
            **settings,
        )


class FORKSClassifier(OnlineClassifier, _Sketched):
    """Online Newton steps in a sketched Nystrom space that follows the stream.

    Source: Wen, Zhang, Wei, Hou, Li & Zhang, "FORKS: Fast Second-Order Online Kernel Learning Using Incremental
    Sketching", IJCAI 2025. The released code's defects are mended, and `compat` brings them back: here the sketches are
    positive semidefinite and have their cross terms, tolerances are relative, the metric takes a row in before its
    step, and weights are carried over.

    Args:
        budget: B, support vectors in the buffer, one for each row with a loss until it is full.
        rank: k, features, at most `budget`.
        sketch_size: s_p, at least `rank`; None: 3 B / 4.
        landmarks: s_m, rows of the buffer whose kernels a prediction takes; None: B / 2.
        blocks: entries of +-1 / sqrt(blocks) in a row of the sketch.
        kernel, kernel_params: as `curvk.kernels.gram.matvec` takes them.
        bandwidth: a number, or "median": that of the first 128 rows, fixed from then on.
        loss: "squared_hinge", "hinge" (without curvature, hence without regret bound), "logistic" or "squared".
        lr: rate; None: 1, the Newton step, or 0.2 of the published variant.
        fill_lr: a support vector's coefficient, up to its sign, while the buffer fills; None: 0.5, or 0.2 likewise.
        alpha: the metric begins as alpha I.
        clip: C, bound on the prediction of the row just learned; None: no bound.
        curvature: of the loss, 1 / (8 C^2) for squared and squared hinge, about e^-C for logistic.
        refresh_every: rows with a loss between two refreshes, each of which takes in one row; None: none. On banana and
            shuttle 26, 1,000 and None made the same mistakes within 0.05 %, and a refresh costs as much as 1,000 rows.
        on_refresh: "keep" carries w and the metric over so that the function stays, "decay" shrinks the metric by
            `decay` too, "reset" forgets both: right where labels turn often, costly everywhere else.
        decay: in [0, 1].
        rcond: relative tolerance of the map's least squares.
        compat: "published" for map and step as released, and a reset at each refresh whatever `on_refresh`
            is; loss "squared_hinge" or "hinge". What remains different: float64, and refreshes are counted from the
            end of the fill.
        drift: looks every 100 rows whether their mistakes exceed the rate before by three standard errors, and forgets
            w and the metric then.
        random_state: seed of sketch and sample; None: 0.

    Attributes:
        classes_: labels, in order of appearance unless given.
        mistakes_: of all rows so far, each predicted before it was learned.
        n_support_: rows whose kernels a prediction takes: `landmarks` once the buffer is full.
        bandwidth_: the one in use.
        drifts_: restarts after drifts.

    A quiet row costs s_m kernels and s_m k + k multiplications, whatever `budget` is; one with a loss some 6 k^2 more;
    a refresh some 2 ms at the defaults. The same rows give the same bits in calls of any length.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = FORKSClassifier(random_state=0).progressive(X, y)
    >>> bool(mistakes[-1] < 250)
    True
    """

    _positive = ("alpha",)

    def __init__(
        self,
        budget: int = 200,
        *,
        rank: int = 20,
        sketch_size: int | None = None,
        landmarks: int | None = None,
        blocks: int = 1,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        loss: str = "squared_hinge",
        lr: float | None = None,
        fill_lr: float | None = None,
        alpha: float = 0.01,
        clip: float | None = 1.0,
        curvature: float = 0.125,
        refresh_every: int | None = 10_000,
        on_refresh: str = "keep",
        decay: float = 0.9,
        rcond: float = 1e-9,
        compat: str | None = None,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.rank, self.sketch_size, self.landmarks = budget, rank, sketch_size, landmarks
        self.blocks, self.kernel, self.bandwidth, self.kernel_params = blocks, kernel, bandwidth, kernel_params
        self.loss, self.lr, self.fill_lr, self.alpha, self.clip = loss, lr, fill_lr, alpha, clip
        self.curvature, self.refresh_every, self.on_refresh, self.decay = curvature, refresh_every, on_refresh, decay
        self.rcond, self.compat, self.drift, self.random_state = rcond, compat, drift, random_state

    def _check_params(self) -> None:
        super()._check_params()
        owner = self._owner()
        for name in ("lr", "fill_lr", "clip"):
            if getattr(self, name) is not None:
                check_float(owner, name, getattr(self, name), above=0.0)
        check_float(owner, "curvature", self.curvature, at_least=0.0)
        if self.compat is not None:
            check_choice(owner, "compat", self.compat, ("published",))
            check_choice(owner, "loss", self.loss, ("squared_hinge", "hinge"))

    def _build(self, d: int, c: int, kernel: Keywords, seed: int) -> tuple[Any, Step]:
        published = self.compat is not None
        step = Step(
            "published" if published else "newton",
            self.loss,
            self.lr or (_PUBLISHED_LR if published else 1.0),
            self.alpha,
            math.inf if self.clip is None else self.clip,
            self.curvature,
            self.on_refresh,
            self.decay,
        )
        return self._map(PublishedNystrom if published else SketchedNystrom, d, kernel, seed), step


class FORKSRegressor(OnlineRegressor, _Sketched):
    """Least squares, recursively, in the space of `FORKSClassifier`: the exact second-order step of the squared loss.

    Every row has a loss, so that the first `budget` rows fill the buffer and each `refresh_every`-th row after it is
    taken in. Nothing bounds a prediction.

    Args:
        budget, rank, sketch_size, landmarks, blocks, kernel, kernel_params, bandwidth: as `FORKSClassifier`.
        fill_lr, refresh_every, on_refresh, decay, rcond, random_state: likewise.
        alpha: ridge: w minimises alpha abs(w - w_0)^2 + sum (y - w.phi)^2 over the rows since the fill, w_0 the fill's.

    Attributes:
        loss_: sum of the squared errors so far, each row predicted before it was learned.
        n_support_, bandwidth_: as `FORKSClassifier`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    >>> y = np.sin(3 * X[:, 0]) * X[:, 1]
    >>> predicted, loss = FORKSRegressor().progressive(X, y)
    >>> bool(loss[-1] - loss[499] < 0.5)
    True
    """

    _positive = ("fill_lr", "alpha")

    def __init__(
        self,
        budget: int = 200,
        *,
        rank: int = 20,
        sketch_size: int | None = None,
        landmarks: int | None = None,
        blocks: int = 1,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        fill_lr: float = 0.5,
        alpha: float = 0.01,
        refresh_every: int | None = 10_000,
        on_refresh: str = "keep",
        decay: float = 0.9,
        rcond: float = 1e-9,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.rank, self.sketch_size, self.landmarks = budget, rank, sketch_size, landmarks
        self.blocks, self.kernel, self.bandwidth, self.kernel_params = blocks, kernel, bandwidth, kernel_params
        self.fill_lr, self.alpha, self.refresh_every, self.on_refresh = fill_lr, alpha, refresh_every, on_refresh
        self.decay, self.rcond, self.random_state = decay, rcond, random_state

    def _build(self, d: int, c: int, kernel: Keywords, seed: int) -> tuple[Any, Step]:
        step = Step("ridge", "squared", alpha=self.alpha, on_refresh=self.on_refresh, decay=self.decay)
        return self._map(SketchedNystrom, d, kernel, seed), step


class SkeGDClassifier(OnlineClassifier, _Sketched):
    """Gradient steps in a sketched Nystrom space, decomposed anew at each refresh.

    Source: Zhang & Liao, "Incremental Randomized Sketching for Online Kernel Learning", ICML 2019 (PMLR 97). Weights
    are carried over at a refresh; the implementation that comes with FORKS leaves them in the old basis.

    Args:
        budget, rank, sketch_size, landmarks, blocks, kernel, kernel_params, bandwidth: as `FORKSClassifier`.
        loss, fill_lr, refresh_every, rcond, drift, random_state: likewise.
        on_refresh: the same; without a metric "decay" is "keep".
        lr: rate of w <- w - lr l'(f) phi.

    Attributes:
        classes_, mistakes_, n_support_, bandwidth_, drifts_: as `FORKSClassifier`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = SkeGDClassifier(bandwidth=0.5).progressive(X, y)
    >>> bool(mistakes[-1] < 250)
    True
    """

    decay = 1.0

    def __init__(
        self,
        budget: int = 200,
        *,
        rank: int = 20,
        sketch_size: int | None = None,
        landmarks: int | None = None,
        blocks: int = 1,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        loss: str = "hinge",
        lr: float = 0.5,
        fill_lr: float = 0.5,
        refresh_every: int | None = 10_000,
        on_refresh: str = "keep",
        rcond: float = 1e-9,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.rank, self.sketch_size, self.landmarks = budget, rank, sketch_size, landmarks
        self.blocks, self.kernel, self.bandwidth, self.kernel_params = blocks, kernel, bandwidth, kernel_params
        self.loss, self.lr, self.fill_lr, self.refresh_every = loss, lr, fill_lr, refresh_every
        self.on_refresh, self.rcond, self.drift, self.random_state = on_refresh, rcond, drift, random_state

    def _build(self, d: int, c: int, kernel: Keywords, seed: int) -> tuple[Any, Step]:
        step = Step("gradient", self.loss, self.lr, on_refresh=self.on_refresh)
        return self._map(SketchedNystrom, d, kernel, seed, full=True), step


class NOGDClassifier(OnlineClassifier, _Buffered):
    """Gradient steps in the Nystrom space of the first support vectors, which stays as it is.

    Source: Lu, Hoi, Wang, Zhao & Liu, "Large Scale Online Kernel Learning", JMLR 17(47), 2016. The features are those
    of the largest eigenvalues; the authors' code takes the first of an unsorted solver.

    Args:
        budget: B, support vectors in the buffer, one for each row with a loss until it is full.
        rank: k, features, at most `budget`.
        kernel, kernel_params, bandwidth, loss, fill_lr, drift: as `FORKSClassifier`.
        lr: rate of w <- w - lr l'(f) phi.
        rcond: eigenvalues up to rcond times the largest give no feature.
        random_state: not used: nothing here is random.

    Attributes:
        classes_, mistakes_, bandwidth_, drifts_: as `FORKSClassifier`.
        n_support_: rows whose kernels a prediction takes, at most `budget`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = NOGDClassifier(bandwidth=0.5).progressive(X, y)
    >>> bool(mistakes[-1] < 250)
    True
    """

    def __init__(
        self,
        budget: int = 200,
        *,
        rank: int = 20,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        loss: str = "hinge",
        lr: float = 0.5,
        fill_lr: float = 0.5,
        rcond: float = 1e-9,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.rank, self.kernel, self.bandwidth = budget, rank, kernel, bandwidth
        self.kernel_params, self.loss, self.lr, self.fill_lr = kernel_params, loss, lr, fill_lr
        self.rcond, self.drift, self.random_state = rcond, drift, random_state

    def _build(self, d: int, c: int, kernel: Keywords, seed: int) -> tuple[Any, Step]:
        return Nystrom(d, kernel, k=self.rank, rcond=self.rcond), Step("gradient", self.loss, self.lr)


class NOGDRegressor(OnlineRegressor, _Buffered):
    """`NOGDClassifier` for the squared loss: every row has one, so that the first `budget` rows make the map.

    Args:
        budget, rank, kernel, kernel_params, bandwidth, fill_lr, rcond, random_state: as `NOGDClassifier`.
        lr: rate of w <- w - 2 lr (f - y) phi; as k(x, x) lr < 1 must hold, below 1 for all kernels of distances.

    Attributes:
        loss_, n_support_, bandwidth_: as `FORKSRegressor`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    >>> y = np.sin(3 * X[:, 0]) * X[:, 1]
    >>> predicted, loss = NOGDRegressor(bandwidth=0.5).progressive(X, y)
    >>> bool(loss[-1] - loss[499] < 5)
    True
    """

    def __init__(
        self,
        budget: int = 200,
        *,
        rank: int = 20,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        lr: float = 0.2,
        fill_lr: float = 0.5,
        rcond: float = 1e-9,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.rank, self.kernel, self.bandwidth = budget, rank, kernel, bandwidth
        self.kernel_params, self.lr, self.fill_lr = kernel_params, lr, fill_lr
        self.rcond, self.random_state = rcond, random_state

    def _build(self, d: int, c: int, kernel: Keywords, seed: int) -> tuple[Any, Step]:
        return Nystrom(d, kernel, k=self.rank, rcond=self.rcond), Step("gradient", "squared", self.lr)
