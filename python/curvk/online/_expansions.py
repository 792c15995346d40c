"""Learners that keep a kernel expansion: the kernel perceptron and its kin with a budget."""

from __future__ import annotations

from typing import Any

from .._errors import message
from .._estimator import Keywords, check_choice, check_float, check_int
from ..kernels.online import LOSSES
from ._base import OnlineClassifier
from ._budget import BudgetEngine
from ._engine import Engine


class _Expansion(OnlineClassifier):
    """`budget` support vectors at most, which all outputs share; the constructor is that of rules without numbers."""

    budget: int | None

    _rule: str
    _unbounded = False  # whether the budget may be None
    _least = 1  # support vectors

    def __init__(
        self,
        budget: int = 200,
        *,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.kernel, self.bandwidth, self.kernel_params = budget, kernel, bandwidth, kernel_params
        self.drift, self.random_state = drift, random_state

    def _check_params(self) -> None:
        owner = self._owner()
        if self.budget is not None or not self._unbounded:
            check_int(owner, "budget", self.budget, self._least)
        if not isinstance(self.drift, bool):
            raise TypeError(message(owner, "drift", f"{self.drift!r}", "True or False"))

    def _settings(self) -> Keywords:
        """The rule's numbers, as `BudgetEngine` takes them."""
        return {}

    def _make_engine(self, d: int, c: int, kernel: Keywords, seed: int) -> Engine:
        return BudgetEngine(d, c, kernel, rule=self._rule, size=self.budget, seed=seed, **self._settings())


class KernelPerceptronClassifier(_Expansion):
    """The kernel perceptron: each row that is predicted wrong becomes a support vector with coefficient y.

    Source: Aizerman, Braverman & Rozonoer 1964; Freund & Schapire 1999. A tie, f = 0, counts as wrong.

    Args:
        budget: support vectors at which learning stops; None: as many as there are mistakes.
        kernel, kernel_params: as `curvk.kernels.gram.matvec` takes them.
        bandwidth: a number, or "median": that of the first 128 rows, fixed from then on.
        drift: looks every 100 rows whether their mistakes exceed the rate before by three standard errors, and forgets
            the support vectors then.
        random_state: nothing is random here; for the sake of the other learners' interface.

    Attributes:
        classes_: labels, in order of appearance unless given.
        mistakes_: of all rows so far, each predicted before it was learned.
        n_support_: support vectors.
        bandwidth_: the one in use.
        drifts_: restarts after drifts.

    With more than two classes each has an output, 1 for it and -1 for the rest. They share the support vectors: a row
    becomes one if any output is wrong, with coefficients for these alone; its kernels are formed once. A row costs a
    kernel and a multiplication per output for each support vector. The same rows give the same bits in calls of any
    length.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> perceptron = KernelPerceptronClassifier(bandwidth=0.3)
    >>> predicted, mistakes = perceptron.progressive(X, y)
    >>> bool(mistakes[-1] < 150), bool(perceptron.n_support_ <= mistakes[-1] + 1)
    (True, True)
    """

    _rule, _unbounded = "append", True

    def __init__(
        self,
        budget: int | None = None,
        *,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.kernel, self.bandwidth, self.kernel_params = budget, kernel, bandwidth, kernel_params
        self.drift, self.random_state = drift, random_state

    def _settings(self) -> Keywords:
        return {"loss": "perceptron"}


class RBPClassifier(_Expansion):
    """The random budget perceptron: with all places taken, a wrong row replaces a support vector drawn at random.

    Source: Cavallanti, Cesa-Bianchi & Gentile, "Tracking the best hyperplane with a simple budget Perceptron", Machine
    Learning 69, 2007.

    Args:
        budget: support vectors at most.
        kernel, bandwidth, kernel_params, drift: as in `KernelPerceptronClassifier`.
        random_state: seed of the draws, each a function of it and of the row's number; None: 0.

    Attributes and several classes: as in `KernelPerceptronClassifier`.

    A row costs `budget` kernels and as many multiplications per output.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = RBPClassifier(60, bandwidth=0.3).progressive(X, y)
    >>> bool(mistakes[-1] < 300)
    True
    """

    _rule = "rbp"

    def _settings(self) -> Keywords:
        return {"loss": "perceptron"}


class ForgetronClassifier(_Expansion):
    """The Forgetron, self-tuned: coefficients shrink as far as the mistakes so far allow, then the oldest row goes.

    Source: Dekel, Shalev-Shwartz & Singer, "The Forgetron: A kernel-based perceptron on a budget", SIAM Journal on
    Computing 37, 2008. With k(x, x) <= 1 its mistakes are bounded against every competitor of norm up to
    sqrt((B + 1) / log(B + 1)) / 4, B the budget; with more than two classes those of all outputs together.

    Args:
        budget: support vectors at most.
        kernel, bandwidth, kernel_params, drift, random_state: as in `KernelPerceptronClassifier`.

    Attributes and several classes: as in `KernelPerceptronClassifier`.

    A row costs `budget` kernels and as many multiplications per output, a wrong one twice that. Memory: budget^2
    numbers, the support vectors' kernel matrix.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = ForgetronClassifier(60, bandwidth=0.3).progressive(X, y)
    >>> bool(mistakes[-1] < 300)
    True
    """

    _rule = "forgetron"


class BPASClassifier(_Expansion):
    """Passive-aggressive on a budget (BPA-S): a row within the margin replaces the support vector that is missed least.

    Source: Wang & Vucetic, "Online Passive-Aggressive Algorithms on a Budget", AISTATS 2010. The new coefficient makes
    up for the one given up; with more than two classes the costs of all outputs are added.

    Args:
        budget: support vectors at most.
        C: bound on a row's step, > 0.
        kernel, bandwidth, kernel_params, drift, random_state: as in `KernelPerceptronClassifier`.

    Attributes and several classes: as in `KernelPerceptronClassifier`.

    A row costs `budget` kernels and as many multiplications per output, one that is learned some three times that.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = BPASClassifier(60, bandwidth=0.3).progressive(X, y)
    >>> bool(mistakes[-1] < 150)
    True
    """

    _rule = "bpas"

    def __init__(
        self,
        budget: int = 200,
        *,
        C: float = 1.0,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.C, self.kernel, self.bandwidth = budget, C, kernel, bandwidth
        self.kernel_params, self.drift, self.random_state = kernel_params, drift, random_state

    def _check_params(self) -> None:
        super()._check_params()
        check_float(self._owner(), "C", self.C, above=0.0)

    def _settings(self) -> Keywords:
        return {"C": float(self.C)}


class ProjectronClassifier(_Expansion):
    """The Projectron: a wrong row near the span of the support vectors is projected on it, and needs no place.

    Source: Orabona, Keshet & Caputo, "Bounded Kernel-Based Online Learning", JMLR 10, 2009. With all places taken every
    wrong row is projected.

    Args:
        budget: support vectors at most; None: as many as there are wrong rows far from the others' span.
        plus_plus: Projectron++, which learns rows within the margin too, where a projection does.
        threshold: distance in feature space up to which a row is projected, >= 0; 0.1 loses next to nothing. With
            `plus_plus` > 0.
        kernel, bandwidth, kernel_params, drift, random_state: as in `KernelPerceptronClassifier`.

    Attributes and several classes: as in `KernelPerceptronClassifier`.

    A row costs `budget` kernels and as many multiplications per output, one that is learned 2 budget^2. Memory:
    budget^2 numbers.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> projectron = ProjectronClassifier(bandwidth=0.3)
    >>> predicted, mistakes = projectron.progressive(X, y)
    >>> bool(mistakes[-1] < 150), projectron.n_support_ < 60
    (True, True)
    """

    _rule, _unbounded = "projectron", True

    def __init__(
        self,
        budget: int | None = 200,
        *,
        plus_plus: bool = False,
        threshold: float = 0.1,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.plus_plus, self.threshold, self.kernel = budget, plus_plus, threshold, kernel
        self.bandwidth, self.kernel_params = bandwidth, kernel_params
        self.drift, self.random_state = drift, random_state

    def _check_params(self) -> None:
        super()._check_params()
        owner = self._owner()
        if not isinstance(self.plus_plus, bool):
            raise TypeError(message(owner, "plus_plus", f"{self.plus_plus!r}", "True or False"))
        if self.plus_plus:
            check_float(owner, "threshold", self.threshold, above=0.0)
        check_float(owner, "threshold", self.threshold, at_least=0.0)

    def _make_engine(self, d: int, c: int, kernel: Keywords, seed: int) -> Engine:
        rule = "projectron++" if self.plus_plus else "projectron"
        return BudgetEngine(d, c, kernel, rule=rule, size=self.budget, seed=seed, threshold=float(self.threshold))


class BOGDClassifier(_Expansion):
    """Gradient descent on a budget (BOGD): a support vector drawn at random goes, and the others are scaled up for it.

    Source: Zhao, Wang, Wu, Jin & Hoi, "Fast Bounded Online Gradient Descent Algorithms for Scalable Kernel-Based Online
    Learning", ICML 2012.

    Args:
        budget: support vectors at most, two at least.
        loss: "hinge", "squared_hinge", "logistic" or "squared"; rows without a loss are not learned.
        lr: rate, > 0.
        weight_decay: every row multiplies all coefficients with 1 - lr weight_decay, in [0, 1].
        gamma: bound on the coefficients' magnitudes, in units of lr, > 0.
        kernel, bandwidth, kernel_params, drift: as in `KernelPerceptronClassifier`.
        random_state: seed of the draws, each a function of it and of the row's number; None: 0.

    Attributes and several classes: as in `KernelPerceptronClassifier`.

    A row costs `budget` kernels and twice as many multiplications per output.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    >>> y = (X**2).sum(axis=1) < 0.6
    >>> predicted, mistakes = BOGDClassifier(60, bandwidth=0.3).progressive(X, y)
    >>> bool(mistakes[-1] < 350)
    True
    """

    _rule, _least = "bogd", 2

    def __init__(
        self,
        budget: int = 200,
        *,
        loss: str = "hinge",
        lr: float = 0.5,
        weight_decay: float = 1e-4,
        gamma: float = 10.0,
        kernel: str = "gaussian",
        bandwidth: float | str = "median",
        kernel_params: Any = None,
        drift: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.budget, self.loss, self.lr, self.weight_decay, self.gamma = budget, loss, lr, weight_decay, gamma
        self.kernel, self.bandwidth, self.kernel_params = kernel, bandwidth, kernel_params
        self.drift, self.random_state = drift, random_state

    def _check_params(self) -> None:
        super()._check_params()
        owner = self._owner()
        check_choice(owner, "loss", self.loss, LOSSES)
        for name in ("lr", "gamma"):
            check_float(owner, name, getattr(self, name), above=0.0)
        decay = check_float(owner, "weight_decay", self.weight_decay, at_least=0.0)
        if self.lr * decay > 1:
            raise ValueError(message(owner, "weight_decay", f"{decay}", f"at most 1 / lr, {1 / self.lr:g}"))

    def _settings(self) -> Keywords:
        lr = float(self.lr)
        return {
            "loss": self.loss,
            "lr": lr,
            "decay": 1 - lr * float(self.weight_decay),
            "limit": lr * float(self.gamma),
        }
