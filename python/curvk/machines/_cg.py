"""Kernel ridge regression on centers by conjugate gradients that the centers precondition (Falkon)."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._errors import message
from .._estimator import Keywords, check_float, check_int, unchanged_on_error
from ..kernels import gram
from ._base import (
    KernelClassifier,
    KernelMachine,
    KernelRegressor,
    Rows,
)
from ._dense import PRODUCTS, lapack_for, lauum, potrf

__all__ = ["KernelRidgeCG", "KernelRidgeCGClassifier"]

Float64 = npt.NDArray[np.float64]

TILE_BYTES = 8 << 20  # of K(rows, Z) that is kept between its two products
MAX_TILE_ROWS = 4096
JITTERS = 6  # tries, each ten times the last


class _Preconditioner:
    """The triangles T and A of Falkon, both in one p x p matrix: T'T = K(Z, Z) + jitter I, A'A = n/p TT' + alpha I.

    In u = A T w the Hessian T'(T^-T K(Z, X) K(X, Z) T^-1 + alpha I)T is the identity where the centers stand for all
    rows: K(Z, X) K(X, Z) = n/p K(Z, Z)^2. T lies in the upper triangle and A', which is lower, in the other; they take
    turns on the diagonal. p^2 numbers of memory and p^3 multiplications and additions.

    Source: Rudi, Carratino & Rosasco 2017 (arXiv 1705.10958), section 3. Their A is this one divided by the root of n.
    """

    def __init__(self, block: Float64, jitter: float, ratio: float, alpha: float) -> None:
        """block: K(Z, Z), written over; ratio: n/p. LinAlgError where rounding leaves no positive pivot."""
        p = len(block)
        self._matrix = matrix = block.T  # symmetric; LAPACK writes where columns are contiguous
        self._diagonal = np.einsum("ii->i", matrix)
        self._diagonal += jitter
        self._call(potrf(block))
        self._t = self._diagonal.copy()
        for start in range(0, p, 512):  # T' into the lower triangle
            rows = slice(start, start + 512)
            matrix[start + 512 :, rows] = matrix[rows, start + 512 :].T
            corner = matrix[rows, rows]
            corner[...] = np.triu(corner) + np.triu(corner, 1).T
        lauum(matrix)  # TT'
        self._diagonal += alpha / ratio
        self._call(potrf(matrix))
        self._a = self._diagonal.copy()
        self._root = math.sqrt(ratio)

    @staticmethod
    def _call(failed: int) -> None:
        if failed:
            raise np.linalg.LinAlgError(f"the pivot of row {failed} is not positive")

    def _solve(self, v: Float64, diagonal: Float64, lower: bool, transposed: bool) -> Float64:
        self._diagonal[:] = diagonal
        step = max(1, int(PRODUCTS / len(v) ** 2))  # columns at once, as Ctrl-C waits for LAPACK
        solve, found = lapack_for("trtrs", v), np.empty_like(v)
        for c in range(0, v.shape[1], step):
            found[:, c : c + step] = solve(self._matrix, v[:, c : c + step], lower=lower, trans=transposed)[0]
        return found

    def from_u(self, u: Float64) -> tuple[Float64, Float64]:
        """T w = A^-1 u, and w."""
        v = self._solve(u, self._a, lower=True, transposed=True) / self._root
        return v, self._solve(v, self._t, lower=False, transposed=False)

    def to_u(self, slope: Float64, ridge: Float64 | float = 0.0) -> Float64:
        """A^-T (T^-T slope + ridge)."""
        v = self._solve(slope, self._t, lower=False, transposed=True) + ridge
        u: Float64 = self._solve(v, self._a, lower=True, transposed=False) / self._root
        return u


def _precondition(owner: str, Z: Rows, n: int, alpha: float, kernel: Keywords) -> tuple[_Preconditioner, float]:
    """The preconditioner with the least jitter that Cholesky's pivots allow, and that jitter.

    It begins at the rounding of products in Z's dtype. With less, T^-1 magnifies that rounding; with more, f is worse.
    """
    wide = Z.astype(np.float64)
    block = np.empty((len(Z), len(Z)))
    scale = float(np.abs(gram.diagonal(wide, **kernel)).max()) or 1.0
    jitter = float(np.finfo(Z.dtype).eps) * len(Z) * scale
    for _ in range(JITTERS):
        gram.block(wide, wide, out=block, **kernel)
        try:
            return _Preconditioner(block, jitter, n / len(Z), alpha), jitter
        except np.linalg.LinAlgError:
            jitter *= 10
    found = f"{kernel['kernel']!r}, whose K(Z, Z) has no Cholesky factor even with {jitter / 10:.1g} on its diagonal"
    raise ValueError(message(owner, "kernel", found, "a positive semidefinite kernel"))


def _slope(X: Rows, packed: gram.Centers, w: Float64, kernel: Keywords) -> Float64:
    """K(Z, X) K(X, Z) w in one pass over the rows of X, whose tile of K serves both products; summed in float64."""
    n, p = len(X), packed.shape[0]
    rows = max(64, min(MAX_TILE_ROWS, TILE_BYTES // (p * X.itemsize)))
    tile = np.empty((min(rows, n), p), X.dtype)
    narrow = w.astype(X.dtype, order="C")
    total = np.zeros_like(w, order="C")
    for start in range(0, n, rows):
        x = X[start : start + rows]
        k = tile[: len(x)]
        total += k.T @ gram.matvec(x, packed, narrow, keep=k, **kernel)
    return total


class _RidgeCG(KernelMachine):
    def __init__(
        self,
        n_centers: int = 1000,
        *,
        centers: Any = None,
        kernel: str = "laplacian",
        bandwidth: float | str = "median",
        kernel_params: Mapping[str, Any] | None = None,
        alpha: float = 1.0,
        max_iter: int = 100,
        tol: float = 1e-3,
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.n_centers = n_centers
        self.centers = centers
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.kernel_params = kernel_params
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state

    def _solve(self, X: Rows, targets: Rows, *, flat: bool) -> Keywords:
        """What `_set_fitted` takes, for targets (n, c). `flat`: f has one value, (n,) instead of (n, 1)."""
        owner = self._owner()
        alpha = check_float(owner, "alpha", self.alpha, above=0.0)
        max_iter = check_int(owner, "max_iter", self.max_iter, 1)
        tol = check_float(owner, "tol", self.tol, at_least=0.0)
        rng = check_random_state(self.random_state)
        kernel = self._resolve_kernel(X, rng)
        centers = self._resolve_centers(X, rng)
        packed = gram.Centers(centers)
        preconditioner, jitter = _precondition(owner, centers, len(X), alpha, kernel)

        slope = gram.rmatvec(X, packed, targets, **kernel).astype(np.float64)
        if not np.isfinite(slope).all():
            raise ValueError(message(owner, "y", f"sums beyond {X.dtype}", "smaller numbers; scale y"))
        scale = np.ldexp(1.0, -np.frexp(np.abs(slope).max(axis=0))[1])  # powers of two: squares stay within double
        residual = preconditioner.to_u(slope * scale)
        u, direction = np.zeros_like(residual), residual.copy()
        square = np.square(residual).sum(axis=0)  # a number per target: each has conjugate gradients of its own
        first = np.where(square > 0, square, 1.0)
        columns = np.flatnonzero(square > 0)  # the targets not there yet
        iteration = 0
        while len(columns) and iteration < max_iter:
            iteration += 1
            along = direction[:, columns]
            v, w = preconditioner.from_u(along)
            image = preconditioner.to_u(_slope(X, packed, w, kernel), alpha * v)
            curvature = (along * image).sum(axis=0)
            if not (curvature > 0).all():  # alpha is below what rounding leaves of K
                break
            step = square[columns] / curvature
            u[:, columns] += step * along
            residual[:, columns] -= step * image
            now = np.square(residual[:, columns]).sum(axis=0)
            direction[:, columns] = residual[:, columns] + now / square[columns] * along
            square[columns] = now
            columns = np.flatnonzero(square > tol**2 * first)
            if self.verbose:
                left = np.sqrt((square / first).max())
                print(f"iteration {iteration}, residual {left:.3g} of the first", file=sys.stderr, flush=True)
        if len(columns):
            left = np.sqrt((square / first).max())
            text = f"{owner}: after {iteration} iterations the residual is {left:.1e} of the first, above tol={tol:g}"
            warnings.warn(f"{text}; raise max_iter, alpha or tol, or use float64 X", ConvergenceWarning, stacklevel=3)
        coef = np.asarray(preconditioner.from_u(u)[1] / scale, X.dtype, order="C")
        found = {"centers": centers, "coef": coef[:, 0] if flat else coef, "kernel": kernel}
        return found | {"n_iter_": iteration, "jitter_": jitter}


class KernelRidgeCG(KernelRegressor, _RidgeCG):
    """Kernel ridge regression with freely many centers, by conjugate gradients that the centers precondition.

    f(x) = sum_j K(x, z_j) coef_j minimises, for each target,

        sum_i (y_i - f(x_i))^2 + alpha (norm(f)^2 + jitter norm(coef)^2)

    with norm(f)^2 = coef' K(Z, Z) coef, of the kernel's Hilbert space: with all rows as centers that is scikit-learn's
    `KernelRidge` with the same alpha, and otherwise its Nystroem features followed by Ridge without intercept. The
    jitter is rounding's share, see `jitter_`. An iteration passes once over the rows. Memory beyond the data is
    8 n_centers^2 bytes and a tile of 8 MiB, whatever the number of rows; time n n_centers per iteration and n_centers^3
    once.

    Args:
        n_centers: p, rows of X drawn as centers; equal rows count once. All rows where X has fewer.
        centers: an array (p, d) to use instead.
        kernel: a name of `curvk.kernels.gram.KERNELS`; a positive semidefinite kernel.
        bandwidth: > 0, or "median": the median distance between two rows (of 1,000).
        kernel_params: further keywords of the engine: alpha, gamma, coef0, degree.
        alpha: weight of the norm, > 0; Falkon's lambda is alpha / n.
        max_iter: iterations, at most.
        tol: the preconditioned residual at which a target is done, in units of its first. Test errors settle near 1e-2.
        verbose: 1: a line per iteration to stderr.
        random_state: an int, a RandomState or None, as in scikit-learn: centers, rows of the median.

    Attributes:
        centers_: (p, d).
        coef_: (p,) for y (n,), (p, c) for y (n, c).
        bandwidth_: the number used, None for kernels without.
        kernel_: the keywords for `curvk.kernels.gram`.
        n_iter_: iterations done, the most of all targets.
        jitter_: added to the diagonal of K(Z, Z): p times the largest K(z, z) times the rounding error of X's dtype,
            times ten as often as Cholesky's pivots need it.
        n_features_in_, feature_names_in_: as in scikit-learn.

    float32 X is multiplied in float32, with factors and sums of blocks in float64; anything else is float64 throughout.
    Use float64 where the kernel is smooth and alpha small: rounding hides small eigenvalues of K, and iterations grow.
    Targets are not centered: far from all centers predictions tend to 0 for kernels that decay. Scale X first.

    Source: FALKON, Rudi, Carratino & Rosasco 2017 (arXiv 1705.10958). Both factors in one matrix, float64 factors for
    float32 data, a residual for every target and the stop at `tol` are ours.

    >>> import numpy as np
    >>> from curvk.machines import KernelRidgeCG
    >>> X = np.random.default_rng(0).uniform(-3, 3, (500, 1))
    >>> model = KernelRidgeCG(n_centers=50, alpha=1e-3, random_state=0).fit(X, np.sin(X[:, 0]))
    >>> bool(abs(model.predict([[1.0]])[0] - np.sin(1.0)) < 0.01)
    True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains anew.

        Args:
            X: (n, d) dense, finite.
            y: (n,) or (n, c), finite.

        Raises:
            TypeError, ValueError: as scikit-learn for data; for parameters with the parameter's name.

        An error or Ctrl-C leaves the estimator as it was. ConvergenceWarning where `max_iter` was not enough.
        """
        with unchanged_on_error(self):
            X, y = self._check_Xy(X, y)
            self._set_fitted(**self._solve(X, self._targets(y, X.dtype), flat=np.ndim(y) == 1))
        return self


class KernelRidgeCGClassifier(KernelClassifier, _RidgeCG):
    """Classes by `KernelRidgeCG` on a target of zeros and ones for each class, or of -1 and 1 for two classes.

    Arguments and attributes are those of `KernelRidgeCG`; `classes_` has the labels, sorted, and `coef_` is
    (p, n_classes), or (p,) for two classes. The prediction is the class with the largest value.

    >>> import numpy as np
    >>> from curvk.machines import KernelRidgeCGClassifier
    >>> X = np.random.default_rng(0).standard_normal((400, 2))
    >>> y = np.where((X**2).sum(axis=1) < 1.4, "inside", "outside")
    >>> model = KernelRidgeCGClassifier(n_centers=100, alpha=0.1, random_state=0).fit(X[:300], y[:300])
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

        An error or Ctrl-C leaves the estimator as it was. ConvergenceWarning where `max_iter` was not enough.
        """
        with unchanged_on_error(self):
            X, y = self._check_Xy(X, y)
            classes = self._classes(y)
            fitted = self._solve(X, self._targets(y, classes, X.dtype), flat=len(classes) == 2)
            self._set_fitted(**fitted, classes_=classes)
        return self
