"""Stein variational gradient descent (Liu & Wang 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._bandwidth import Bandwidth
from ._base import Floats
from ._flow import Flow


class SVGD(Flow):
    """Stein variational gradient descent: particles that climb a density and repel each other.

    Each step moves the particles along::

        phi_i = 1/n sum_j (k(x_j, x_i) score(x_j) + a grad_{x_j} k(x_j, x_i))

    Args:
        score: grad log p: is given the particles, (n, d), and returns an array of their shape. It gets the live array:
            it must not write to it nor keep it. What it returns is used without a copy if it is C-contiguous and of the
            particles' dtype.
        x0: first particles, (n, d), float32 or float64, copied.
        kernel: any of `curvk.kernels.gram.KERNELS`. "polynomial" of degree 1 is the linear kernel gamma x.y + coef0.
        bandwidth: of the kernel: a number, a rule's name (`curvk.stein.BANDWIDTHS`, computed anew in each step), or a
            function of the particles. Not used by "polynomial" and "linear".
        step: "adagrad" (squared directions with decay 0.9, the original code's), "adam" (betas 0.9 and 0.999) or "sgd".
        lr: learning rate, >= 0; with "adagrad" and "adam" about the largest move of a coordinate in a step.
        repulsion: the weight a, >= 0.
        seed: kept for the run's record; SVGD draws no noise.
        **parameters: `alpha`, `gamma`, `coef0`, `degree` of kernels that have them.

    Raises:
        TypeError, ValueError, BufferError: an argument that does not fit; the text names it.

    A step costs one evaluation of the score at all particles and one product of the n x n kernel matrix with 2 d + 1
    columns, of which no entry is stored (two products where k' is another kernel than k). Memory is O(n d). "laplacian"
    and "exponent" are singular at 0: particles that coincide do not repel each other, and the repulsion is computed in
    NumPy by blocks, in some fifteen times as long as the Gaussian's.

    >>> import numpy as np
    >>> from curvk.stein import SVGD
    >>> rng = np.random.default_rng(0)
    >>> svgd = SVGD(lambda x: 3.0 - x, rng.standard_normal((100, 2)), lr=0.1)  # a normal density around (3, 3)
    >>> x = svgd.run(300)
    >>> bool(np.all(abs(x.mean(0) - 3) < 0.05)), svgd.n_evaluations
    (True, 30000)
    """

    def __init__(
        self,
        score: Callable[[Floats], Any],
        x0: Any,
        *,
        kernel: str = "gaussian",
        bandwidth: Bandwidth = "median",
        step: str = "adagrad",
        lr: float = 0.05,
        repulsion: float = 1.0,
        seed: int = 0,
        **parameters: Any,
    ) -> None:
        super().__init__(
            x0,
            kernel=kernel,
            bandwidth=bandwidth,
            step=step,
            lr=lr,
            repulsion=repulsion,
            seed=seed,
            parameters=parameters,
        )
        self._score = self._checked_function("score", score)

    def _scores(self) -> tuple[Floats, None]:
        scores = self._evaluated("score", self._score, self._particles, self._particles.shape)
        self._need_finite("score", scores)
        return scores, None
