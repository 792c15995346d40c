"""EigenPro 4: large kernel machines by preconditioned minibatch gradient descent with delayed projections."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from .._errors import message
from .._estimator import Keywords, check_choice, check_float, check_int, unchanged_on_error
from ..kernels import gram
from ._base import (
    KernelClassifier,
    KernelMachine,
    KernelRegressor,
    Rows,
    best_class,
)
from ._cycle import Setting, Trainer, steps_per_projection
from ._nystrom import Nystrom, largest_diagonal, measured, nystrom
from ._projection import CHOLESKY_CENTERS, PROJECTIONS, EigenPro2, Projection, cholesky, pcg

__all__ = ["EigenPro4Classifier", "EigenPro4Regressor"]

NYSTROM_FROM = ("data", "centers")


class _EigenPro4(KernelMachine):
    def __init__(
        self,
        n_centers: int = 2000,
        *,
        centers: Any = None,
        kernel: str = "laplacian",
        bandwidth: float | str = "median",
        kernel_params: Mapping[str, Any] | None = None,
        epochs: int = 10,
        T: int | None = None,
        batch_size: int | None = None,
        eta_scale: float = 1.0,
        projection: str = "auto",
        projection_tol: float = 1e-3,
        nystrom_from: str = "data",
        nystrom_samples: int | None = None,
        n_components: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 3,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.n_centers = n_centers
        self.centers = centers
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.kernel_params = kernel_params
        self.epochs = epochs
        self.T = T
        self.batch_size = batch_size
        self.eta_scale = eta_scale
        self.projection = projection
        self.projection_tol = projection_tol
        self.nystrom_from = nystrom_from
        self.nystrom_samples = nystrom_samples
        self.n_components = n_components
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state

    def _check_params(self) -> None:
        owner = self._owner()
        self._check_kernel()
        check_int(owner, "epochs", self.epochs, 1)
        for name, low in (("T", 1), ("batch_size", 1), ("nystrom_samples", 1), ("n_components", 0)):
            if (value := getattr(self, name)) is not None:
                check_int(owner, name, value, low)
        check_float(owner, "eta_scale", self.eta_scale, above=0.0)
        check_choice(owner, "projection", self.projection, PROJECTIONS)
        check_float(owner, "projection_tol", self.projection_tol, above=0.0)
        check_choice(owner, "nystrom_from", self.nystrom_from, NYSTROM_FROM)
        check_float(owner, "tol", self.tol, at_least=0.0)
        check_int(owner, "n_iter_no_change", self.n_iter_no_change, 1)
        if not 0 < check_float(owner, "validation_fraction", self.validation_fraction, above=0.0) < 1:
            raise ValueError(message(owner, "validation_fraction", f"{self.validation_fraction}", "a number in (0, 1)"))

    def _trainer(self, X: Rows, centers: Rows, kernel: Keywords, alpha: Rows, rng: np.random.RandomState) -> Trainer:
        """The spectrum, the projection, the batch and T for rows X."""
        packed = gram.Centers(centers)
        source = centers if self.nystrom_from == "centers" else X
        top, _ = self._spectrum(source, largest_diagonal(X, kernel), kernel, rng)
        top = measured(top, X, kernel, rng)
        batch = self.batch_size or top.batch
        own = np.random.RandomState(rng.randint(2**31 - 1))  # so that the rows' order is the same with each projection
        project = self._projection(centers, packed, kernel, alpha.shape[1], own)
        T = self.T or steps_per_projection(len(centers), batch, project.entries)
        return Trainer(Setting.of(packed, kernel, top), project, alpha, int(batch), int(T), float(self.eta_scale))

    def _spectrum(
        self, rows: Rows, beta: float, kernel: Keywords, rng: np.random.RandomState
    ) -> tuple[Nystrom, npt.NDArray[np.intp]]:
        """The eigensystem of a sample of the rows, and which rows they are."""
        size = min(self.nystrom_samples or 2000, len(rows))
        index = rng.permutation(len(rows))[:size]
        components = size // 10 if self.n_components is None else self.n_components
        return nystrom(rows[index], int(components), beta, kernel), index

    def _projection(
        self, centers: Rows, packed: Any, kernel: Keywords, outputs: int, rng: np.random.RandomState
    ) -> Projection:
        method = self.projection
        if method == "auto":
            method = "cholesky" if len(centers) <= CHOLESKY_CENTERS else "pcg"
        if method == "cholesky":
            return cholesky(centers, packed, kernel, outputs)
        top, index = self._spectrum(centers, largest_diagonal(centers, kernel), kernel, rng)
        if method == "pcg":
            return pcg(centers, packed, top, kernel, self.projection_tol)
        return EigenPro2(centers, measured(top, centers, kernel, rng), index, packed, kernel, rng)

    def _fit(self, X: Rows, Y: Rows, y: Any, *, flat: bool, stratify: bool = False) -> dict[str, Any]:
        """Trains anew; what `_set_fitted` takes. `flat`: f has one value, (n,) instead of (n, 1)."""
        self._check_params()
        rng = check_random_state(self.random_state)
        validation: tuple[Rows, Any] | None = None
        if self.early_stopping:
            kept, held = train_test_split(
                np.arange(len(X)),
                test_size=self.validation_fraction,
                random_state=rng,
                stratify=y if stratify else None,
            )
            if len(held) < 2 and not stratify:
                found = f"{self.validation_fraction}, {len(held)} of {len(X)} rows"
                raise ValueError(message(self._owner(), "validation_fraction", found, "two rows or more for an R^2"))
            validation = X[held], np.asarray(y)[held]
            X, Y = X[kept], Y[kept]
        kernel = self._resolve_kernel(X, rng)
        centers = self._resolve_centers(X, rng)
        trainer = self._trainer(X, centers, kernel, np.zeros((len(centers), Y.shape[1]), X.dtype), rng)
        history: list[dict[str, Any]] = []
        best, best_alpha, waited = -np.inf, trainer.alpha, 0
        for epoch in range(1, self.epochs + 1):
            row = self._epoch(trainer, X, Y, rng, epoch)
            history.append(row)
            if validation is not None:
                coef = _shaped(trainer.alpha, flat)
                values = gram.matvec(validation[0], trainer.setting.Z, coef, **kernel)
                score = row["validation_score"] = self._validation_score(values, validation[1])
                waited = 0 if score > best + self.tol else waited + 1
                if score > best:
                    best, best_alpha = score, trainer.alpha
            self._report(row)
            if waited >= self.n_iter_no_change:
                break
        if validation is not None:
            trainer.alpha = best_alpha
        return self._fitted(trainer, history, flat)

    def _partial_fit(self, X: Rows, Y: Rows, *, flat: bool) -> dict[str, Any]:
        """One pass over X from the present coefficients; what `_set_fitted` takes."""
        self._check_params()
        rng = check_random_state(self.random_state)
        trainer = getattr(self, "_solver", None)
        history = list(getattr(self, "history_", []))
        if trainer is None:
            if hasattr(self, "coef_"):
                centers, kernel, alpha = self.centers_, self.kernel_, self.coef_.reshape(len(self.coef_), -1)
            else:
                kernel = self._resolve_kernel(X, rng)
                centers = self._resolve_centers(X, rng)
                alpha = np.zeros((len(centers), Y.shape[1]), X.dtype)
            trainer = self._trainer(X, centers, kernel, alpha, rng)
        trainer = replace(trainer, reference=0.0)  # the old one is as it was if this pass is interrupted
        history.append(self._epoch(trainer, X, Y, rng, len(history) + 1))
        self._report(history[-1])
        return self._fitted(trainer, history, flat) | {"_solver": trainer}

    def _epoch(self, trainer: Trainer, X: Rows, Y: Rows, rng: np.random.RandomState, epoch: int) -> dict[str, Any]:
        began = time.perf_counter()
        with _Bar(self.verbose, -(-len(X) // trainer.batch), f"epoch {epoch}") as bar:
            loss = trainer.epoch(X, Y, rng.permutation(len(X)), bar.tick)
        return {
            "epoch": epoch,
            "loss": loss,
            "eta_scale": trainer.eta_scale,
            "seconds": time.perf_counter() - began,
        }

    def _validation_score(self, values: Rows, y: Any) -> float:
        raise NotImplementedError

    def _report(self, row: dict[str, Any]) -> None:
        if self.verbose:
            print(", ".join(f"{k} {v:.4g}" for k, v in row.items()), file=sys.stderr, flush=True)

    def _fitted(self, trainer: Trainer, history: list[dict[str, Any]], flat: bool) -> dict[str, Any]:
        return {
            "centers": trainer.setting.Z.array,
            "coef": _shaped(trainer.alpha, flat),
            "kernel": trainer.setting.kernel,
            "n_iter_": len(history),
            "history_": history,
            "T_": trainer.T,
            "batch_size_": trainer.batch,
            "learning_rate_": trainer.eta_scale * trainer.setting.top.step_size(trainer.batch),
        }


def _shaped(alpha: Rows, flat: bool) -> Rows:
    return alpha[:, 0] if flat else alpha


class _Bar:
    """A progress bar at a terminal where verbose, else nothing."""

    def __init__(self, verbose: int, total: int, text: str) -> None:
        self._bar: Any = None
        if verbose and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ModuleNotFoundError:
                return
            self._bar = tqdm(total=total, desc=text, unit="batch", leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def tick(self, loss: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update()


class EigenPro4Classifier(KernelClassifier, _EigenPro4):
    """A kernel machine with freely many centers, trained by EigenPro 4 on one-hot targets.

    Least squares by minibatch gradient descent in the kernel's Hilbert space. A preconditioner, measured on a sample of
    rows, flattens the top of the spectrum, so that large batches take large steps. Steps are collected on the batches'
    own points and projected onto the span of the centers every `T_` batches. Memory does not grow with the number of
    rows beyond the data: it is centers^2 for `projection="cholesky"`, O(centers) otherwise.

    Args:
        n_centers: p, rows of X drawn as centers; equal rows count once. All rows where X has fewer (EigenPro 2).
        centers: an array (p, d) to use instead.
        kernel: a name of `curvk.kernels.gram.KERNELS`; a positive semidefinite kernel.
        bandwidth: > 0, or "median": the median distance between two rows (of 1,000).
        kernel_params: further keywords of the engine: alpha, gamma, coef0, degree.
        epochs: passes over the data, at most.
        T: batches between projections; None: from a cost model, sqrt(2 r) p / batch with r the cost of a projection in
            kernel evaluations per p^2. T = 1 is EigenPro 3.
        batch_size: None: half the critical batch size, at most 5,000. Batch and step come from the preconditioned
            kernel as measured on fresh rows. The paper's step, from the sample alone, was 1.07 to 2.1 times the largest
            stable one on the data set letter, and for very smooth kernels it is far too cautious. At the critical batch
            size the step is at the edge of stability; half of it costs the same work per epoch.
        eta_scale: factor on EigenPro's step; 0.5 with more epochs ends with less noise from the batches. Where the
            residual grows all the same, the step is halved and a ConvergenceWarning given.
        projection: "cholesky" factorises K(centers, centers) once; "pcg" solves with conjugate gradients and stores no
            matrix; "eigenpro2" is the paper's projector, one pass of stochastic gradient steps: the least work, and it
            leaves part of each step out, which costs accuracy (on the data set letter with 2,000 centers 0.90 against
            0.92 after two epochs). "auto": cholesky up to 15,000 centers, then pcg.
        projection_tol: relative residual of "pcg".
        nystrom_from: where the preconditioner's sample comes from. "data" is the paper's; its limit is not exactly the
            least-squares solution on the centers. "centers" has exactly that limit, and is slower in the first epochs.
        nystrom_samples: s; None: 2,000, or all rows where there are fewer.
        n_components: q, flattened eigenvalues; None: s / 10.
        early_stopping: hold out rows, stop when their score no longer rises, keep the best coefficients.
        validation_fraction: of the rows, in (0, 1).
        n_iter_no_change: epochs without a rise by `tol`.
        tol: the least rise of the validation score that counts.
        verbose: 1: a line per epoch to stderr and, at a terminal, a progress bar.
        random_state: an int, a RandomState or None, as in scikit-learn: sample, centers, order of rows.

    Attributes:
        centers_: (p, d).
        coef_: (p, n_classes), or (p,) for two classes: f(x) = sum_j K(x, centers_[j]) coef_[j].
        bandwidth_: the number used, None for kernels without.
        kernel_: the keywords for `curvk.kernels.gram`.
        classes_: the labels, sorted.
        n_iter_: epochs done.
        T_, batch_size_, learning_rate_: as used; the learning rate is that of one row's gradient.
        history_: a dict per epoch: epoch, loss (mean squared residual met in the pass), eta_scale, seconds, and with
            early stopping validation_score.
        n_features_in_, feature_names_in_: as in scikit-learn.

    float32 X is trained in float32, anything else in float64. There is no sample_weight: steps, preconditioner and
    batch size rest on rows being drawn alike, so weights would change the limit in a way that depends on the batches.
    Targets are not centered. Scale X first (`StandardScaler`).

    Source: Abedsoltan, Ma, Pandit & Belkin 2025, Fast training of large kernel models with delayed projections (arXiv
    2411.16658); EigenPro 3: arXiv 2302.02605; EigenPro 2: arXiv 1806.06144. The exact projections, the choice of T,
    distinct centers and the halving of the step are ours.

    >>> import numpy as np
    >>> from curvk.machines import EigenPro4Classifier
    >>> X = np.random.default_rng(0).standard_normal((400, 2))
    >>> y = np.where((X**2).sum(axis=1) < 1.4, "inside", "outside")
    >>> model = EigenPro4Classifier(n_centers=100, random_state=0).fit(X[:300], y[:300])
    >>> model.predict([[0.1, 0.2], [1.5, -1.5]])
    array(['inside', 'outside'], dtype='<U7')
    >>> bool(model.score(X[300:], y[300:]) > 0.9)
    True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains anew.

        Args:
            X: (n, d) dense, finite.
            y: (n,) labels of at least two classes.

        Raises:
            TypeError, ValueError: as scikit-learn for data; for parameters with the parameter's name.

        An error or Ctrl-C leaves the estimator as it was.
        """
        with unchanged_on_error(self):
            X, y = self._check_Xy(X, y)
            self.classes_ = classes = self._classes(y)  # the held-out rows may lack one
            fitted = self._fit(X, self._targets(y, classes, X.dtype), y, flat=len(classes) == 2, stratify=True)
            self.__dict__.pop("_solver", None)
            self._set_fitted(**fitted)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """One pass over these rows from the present coefficients, with the centers of the first call.

        The first call draws centers, bandwidth and spectrum from its rows, so they should be typical of all. What is
        prepared (with "cholesky" p^2 numbers) is kept between calls, not in pickles and files.

        Args:
            X: (n, d) dense, finite.
            y: (n,) labels.
            classes: all labels that will ever occur; needed at the first call.
        """
        with unchanged_on_error(self):
            first = not hasattr(self, "coef_")
            X, y = self._check_Xy(X, y, reset=first)
            known = self._known_classes(classes, first)
            Y = self._targets(y, known, X.dtype, "partial_fit")
            self._set_fitted(**self._partial_fit(X, Y, flat=len(known) == 2), classes_=known)
        return self

    def _known_classes(self, classes: Any, first: bool) -> npt.NDArray[Any]:
        if first and classes is None:
            raise ValueError(message(self._owner("partial_fit"), "classes", "None", "all labels at the first call"))
        if classes is None:
            return self.classes_
        given = self._classes(classes, "partial_fit", "classes")
        if not first and not np.array_equal(given, self.classes_):
            raise ValueError(
                message(self._owner("partial_fit"), "classes", f"{given}", f"those so far, {self.classes_}")
            )
        return given

    def _validation_score(self, values: Rows, y: Any) -> float:
        return float((self.classes_[best_class(values)] == y).mean())


class EigenPro4Regressor(KernelRegressor, _EigenPro4):
    """A kernel machine with freely many centers for one or more real targets, trained by EigenPro 4.

    Arguments, attributes and method are those of `EigenPro4Classifier`, without `classes_`; `coef_` is (p,) for y (n,)
    and (p, c) for y (n, c). The validation score is R^2. Far from all centers predictions tend to 0 for kernels that
    decay: subtract the mean of y, or use scikit-learn's TransformedTargetRegressor, where that matters.

    >>> import numpy as np
    >>> from curvk.machines import EigenPro4Regressor
    >>> X = np.random.default_rng(0).uniform(-3, 3, (500, 1))
    >>> model = EigenPro4Regressor(n_centers=50, random_state=0).fit(X, np.sin(X[:, 0]))
    >>> bool(abs(model.predict([[1.0]])[0] - np.sin(1.0)) < 0.05)
    True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains anew.

        Args:
            X: (n, d) dense, finite.
            y: (n,) or (n, c), finite.

        Raises:
            TypeError, ValueError: as scikit-learn for data; for parameters with the parameter's name.

        An error or Ctrl-C leaves the estimator as it was.
        """
        with unchanged_on_error(self):
            X, y = self._check_Xy(X, y)
            fitted = self._fit(X, self._targets(y, X.dtype), y, flat=np.ndim(y) == 1)
            self.__dict__.pop("_solver", None)
            self._set_fitted(**fitted)
        return self

    def partial_fit(self, X: Any, y: Any) -> Self:
        """One pass over these rows from the present coefficients; see `EigenPro4Classifier.partial_fit`.

        Args:
            X: (n, d) dense, finite.
            y: (n,) or (n, c) as in the first call.
        """
        with unchanged_on_error(self):
            first = not hasattr(self, "coef_")
            X, y = self._check_Xy(X, y, reset=first)
            if not first and np.shape(y)[1:] != self.coef_.shape[1:]:
                found = f"shape {np.shape(y)}"
                needed = f"(n{''.join(f', {c}' for c in self.coef_.shape[1:]) or ','}) as before"
                raise ValueError(message(self._owner("partial_fit"), "y", found, needed))
            self._set_fitted(**self._partial_fit(X, self._targets(y, X.dtype), flat=np.ndim(y) == 1))
        return self

    def _validation_score(self, values: Rows, y: Any) -> float:
        return float(r2_score(y, values))
