"""SV-CMA-ES: particles that are the means of CMA-ES searches and repel each other (Braun, Lange & Toussaint 2024)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._backend import Plan
from .._errors import message
from .._interrupt import uninterrupted
from ..kernels import gram, noise
from ..kernels._kernel_function import function_of
from ..kernels.stein import Rates
from ..zeroth._stream import integer, one_of, real
from . import _bandwidth
from ._base import Callback, Floats, Sampler, checked
from ._kernel import Kernel, kernel_of

KERNELS = ("gaussian", "matern32", "matern52", "rational_quadratic", "imq")
"""Kernels whose gradient the repulsion takes: those that are smooth at 0."""

_CONDITION = {"float32": 1e6, "float64": 1e14}  # beyond, rounding decides the smallest eigenvalues
_LARGEST = 64  # d that the compiled decomposition takes; LAPACK's serves above
_SIGMA_MAX = 1e32  # a linear density drives sigma up for ever
_TENSOR = noise.tensor_word("svcmaes", "sampling")


class _Product:
    """Products K(x, x) columns over the same arrays, bound once: `gram.matvec` without its checks, at half its cost."""

    def __init__(self, x: Floats, columns: Floats, products: Floats) -> None:
        (n, d), c = x.shape, columns.shape[1]
        packed = gram.Centers(x)._pack(function_of("matvec", "linear"))  # x is centred; its buffers are used again
        parts = packed.panels, packed.norms, packed.center
        self._arrays = x, columns, products
        self._pack = Plan("gram_pack", (x.reshape(-1), *parts))
        self._multiply = Plan("gram_matvec", (x.reshape(-1), *parts, columns.reshape(-1), products.reshape(-1), None))
        self._sizes = n, n, d, c
        self._long = n * n * (2 * d + 2 * c + 40) > gram._SLICE_FLOPS

    def __call__(self, keywords: Any) -> None:
        x, columns, products = self._arrays
        if self._long:  # in slices, between which Ctrl-C is heard
            gram.matvec(x, x, columns, out=products, **keywords)
            return
        f = function_of("matvec", **keywords)
        n, _, d, _ = self._sizes
        self._pack.run((n, d, 0))
        self._multiply.run((*self._sizes, f.number, f.scale, f.shape, f.degree, 0))


class _Interaction:
    """What the particles do to each other: a R_i and, if it mixes, the averaged shifts of the full form.

    With -2 k' = f k2 the repulsion is a f / n (x_i (K2 1)_i - (K2 x)_i), a product of K2 with [x | 1] on centred x. The
    Gaussian's k2 is k itself: its full form takes one product, with [x | 1 | steps].
    """

    def __init__(self, kernel: Kernel, particles: Floats, repels: bool, mixes: bool) -> None:
        n, d = particles.shape
        dtype = particles.dtype
        self._kernel, self._sizes = kernel, (n, d)
        self.drive = np.empty((n, d), dtype) if mixes else None
        self.repulsion = np.empty((n, d), dtype) if repels else None
        fused = repels and mixes and kernel.name == "gaussian"
        x = np.empty((n, d), dtype)
        columns, products = (np.ones((n, 2 * d + 1 if fused else d + 1), dtype) for _ in range(2))
        self._center = Plan("stein_center", (particles, x, columns))
        if repels:
            self._push = _Product(x, columns, products)
            self._repel = Plan("stein_repel", (x, products, self.repulsion))
        if mixes:
            self._steps, self._mixed = (a[:, d + 1 :] for a in (columns, products))
            if not fused:
                self._steps, self._mixed = (np.empty((n, d), dtype) for _ in range(2))
                self._mix = _Product(x, self._steps, self._mixed)
        self._fused, self._width = fused, columns.shape[1]

    def __call__(self, shifts: Floats, sigmas: Floats, h: float, weight: float) -> None:
        """Writes `drive` and `repulsion` for shifts in units of sigmas (n,), bandwidth h and a = weight."""
        n, d = self._sizes
        self._center.run((n, d, self._width))
        if self.drive is not None:
            np.multiply(shifts, sigmas[:, None], out=self._steps)
            if not self._fused:
                self._mix(self._kernel.keywords(h))
        if self.repulsion is not None:
            factor, steeper, h2 = self._kernel.derivative(h)
            self._push(steeper.keywords(h2))
            self._repel.run((n, d, self._width, weight * factor / n))
        if self.drive is not None:
            np.multiply(self._mixed, 1 / n, out=self.drive)


class SVCMAES(Sampler):
    """Stein variational CMA-ES: samples a density, or finds many of its modes, without gradients.

    Each of n particles is the mean of a CMA-ES search N(x_i, sigma_i^2 C_i) with `popsize` samples a generation. Their
    ranking gives the step y_i in a gradient's place; a kernel keeps the means apart::

        R_i = 1/n sum_j grad_{x_j} k(x_j, x_i)
        hybrid  x_i <- x_i + sigma_i y_i + a R_i
        full    x_i <- x_i + 1/n sum_j k(x_j, x_i) sigma_j y_j + a R_i

    Step sizes and covariances adapt by the rules of CMA-ES, to the step that the mean took in units of sigma_i. With
    n = 1 or repulsion 0 the hybrid form is CMA-ES itself, n times.

    Args:
        log_density: to be maximised: an objective f to minimise is given as -f, so that p is exp(-f). It is given the
            candidates, (n popsize, d), in the sampler's own array, which it must not keep, and returns (n popsize,)
            values; NaN ranks last. A C-contiguous float64 result is used without a copy. None where only `ask` and
            `tell` are used.
        x0: first means, (n, d), float32 or float64, copied.
        sigma0: first step size, > 0, and not below about a hundredth of the distances between the particles: the paths
            see the repulsion in units of sigma, and a tiny one leaps by orders of magnitude (`repulsion_in_paths=False`
            takes any).
        popsize: samples per particle and generation, >= 2; 4 or more for a covariance that learns from all samples.
        bandwidth: h of the kernel: a number, or computed anew in each generation by a rule (`curvk.stein.BANDWIDTHS`)
            or a function of the particles.
        kernel: "gaussian", "matern32", "matern52", "rational_quadratic" (with `alpha`) or "imq", as in
            `curvk.kernels.gram.matvec`.
        form: "hybrid" or "full". The mean with far-away particles shortens the steps of "full", and sigma may collapse.
        repulsion: the weight a, >= 0.
        annealing: "log" multiplies a by max(ln(T / t), 1) in generation t of T, counted from 1 over all runs; T is
            `horizon`, which `run` sets to the generation that it ends with. None does not.
        repulsion_in_paths: whether the evolution paths see the repulsion, as in the authors' code.
        renormalise: keeps C_i's mean eigenvalue in [1, 4) by moving powers of two to sigma_i. No bit of any x changes;
            without it sigma and C drift apart in opposite directions until one leaves the numbers' range.
        eigen_every: generations between eigendecompositions; None takes ceil(1 / (10 d (c_1 + c_mu))), at which C has
            changed little.
        seed: of the noise.
        **parameters: `alpha` of the rational quadratic kernel.

    Attributes:
        horizon: T of the annealing, or None (then its factor is 1); part of the state. May be set for loops of `ask`
            and `tell`.
        rates: weights and learning rates, a `curvk.kernels.stein.Rates`.
        h: the bandwidth of the last generation; None where nothing repels.

    Raises:
        TypeError, ValueError, BufferError: an argument that does not fit; the text names it.

    The constants are Hansen's (arXiv 1604.00772), where others differ: the package cmaes and evosax count a generation
    more in the test that stalls p_c; cmaes adds 1e-8 to the norms that scale negative weights, evosax 1e-8 to C's
    diagonal and clips sigma to [0, 1e8]. Here C gets what its condition number lacks to 1e14 (float32: 1e6), as in
    Hansen's code, and sigma stays below 1e32. A particle stays as it is in a generation in which all its values are NaN
    or its x would not be finite.

    A generation costs n popsize evaluations, one n x n kernel product of d + 1 columns ("full": 2 d + 1) and
    O(n d^2 (popsize + d)). Memory is O(n d (d + popsize)): for d up to some hundreds. The run is the same, bit for
    bit, at every thread count; without repulsion, in the hybrid form, at every SIMD level and backend too: the kernel
    product's last digits depend on them. Above d = 64 LAPACK decomposes C, and its bits are its own.

    >>> import numpy as np
    >>> from curvk.stein import SVCMAES
    >>> x0 = np.random.default_rng(0).uniform(-6, 6, (100, 2))
    >>> search = SVCMAES(lambda x: -0.5 * ((x - 3) ** 2).sum(1), x0, sigma0=0.5, popsize=4)
    >>> x = search.run(200)
    >>> bool(np.all(abs(x.mean(0) - 3) < 0.2)), search.n_evaluations
    (True, 80000)
    """

    _unit = "generation"
    _counters = ("n_steps", "n_evaluations", "horizon")

    def __init__(
        self,
        log_density: Any,
        x0: Any,
        *,
        sigma0: float,
        popsize: int,
        bandwidth: _bandwidth.Bandwidth = "median",
        kernel: str = "gaussian",
        form: str = "hybrid",
        repulsion: float = 1.0,
        annealing: str | None = None,
        repulsion_in_paths: bool = True,
        renormalise: bool = True,
        eigen_every: int | None = None,
        seed: int = 0,
        **parameters: Any,
    ) -> None:
        super().__init__(x0, seed)
        name = self._name
        if log_density is not None and not callable(log_density):
            needed = "a function of points (N, d), or None"
            raise TypeError(message(name, "log_density", type(log_density).__name__, needed))
        self._log_density = log_density
        n, d = self._particles.shape
        self._sigma0 = real(name, "sigma0", sigma0, "a finite number > 0", 0.0, open=True)
        self._sigma_min = float(np.finfo(self._particles.dtype).tiny)
        if not self._sigma_min <= self._sigma0 <= _SIGMA_MAX:
            needed = f"a number in [{self._sigma_min:.4g}, {_SIGMA_MAX:g}] for {self._particles.dtype}"
            raise ValueError(message(name, "sigma0", f"{sigma0}", needed))
        self.popsize = integer(name, "popsize", popsize, 2, 1 << 31, "2^31")
        self._kernel = kernel_of(name, one_of(name, "kernel", kernel, KERNELS), parameters)
        self._bandwidth = _bandwidth.check(name, bandwidth)
        self._form = one_of(name, "form", form, ("hybrid", "full"))
        self._repulsion = real(name, "repulsion", repulsion, "a finite number >= 0", 0.0)
        self._annealing = one_of(name, "annealing", annealing, (None, "log"))
        self._in_paths = bool(repulsion_in_paths)
        self._renormalise = bool(renormalise)
        self._condition = _CONDITION[self._particles.dtype.name]
        self.rates = Rates(d, self.popsize)
        self._given_every = eigen_every
        lazily = math.ceil(1 / (10 * d * (self.rates.c_1 + self.rates.c_mu)))
        self._every = lazily if eigen_every is None else integer(name, "eigen_every", eigen_every, 1, 1 << 31, "2^31")
        self.horizon: int | None = None
        self.h: float | None = None
        self._cost = n * self.popsize
        self._allocate(n, d)

    def _allocate(self, n: int, d: int) -> None:
        dtype, popsize = self._particles.dtype, self.popsize

        def empty(*shape: int) -> Floats:
            return np.empty(shape, dtype)

        # The state, beside the particles.
        self._sigmas = np.full(n, self._sigma0, dtype)
        self._C, self._B, self._A = (np.tile(np.eye(d, dtype=dtype), (n, 1, 1)) for _ in range(3))
        self._p_sigma, self._p_c, self._D = np.zeros((n, d), dtype), np.zeros((n, d), dtype), np.ones((n, d), dtype)
        # What a generation computes anew.
        self._z, self._y, self._candidates = (empty(n, popsize, d) for _ in range(3))
        self._drawn = -1  # the generation whose normals these are
        self._order, self._shift = np.empty((n, popsize), np.int64), empty(n, d)
        self._eigenvalues = empty(n, d)
        self._weights = self.rates.weights.astype(dtype)
        repels, mixes = n > 1 and self._repulsion > 0, n > 1 and self._form == "full"
        self._interact = _Interaction(self._kernel, self._particles, repels, mixes) if repels or mixes else None
        drive, repulsion = (self._interact.drive, self._interact.repulsion) if self._interact else (None, None)
        self._sample = Plan(
            "stein_sample", (self._particles, self._sigmas, self._A, self._z, self._y, self._candidates)
        )
        self._select = Plan("stein_shift", (self._y, np.empty((n, popsize)), self._weights, self._order, self._shift))
        self._adapt = Plan(
            "stein_adapt",
            (
                *(self._y, self._z, self._order, self._weights, self._shift, drive, repulsion, self._B, self._D),
                *(self._A, self._particles, self._sigmas, self._C, self._p_sigma, self._p_c, empty(n, 2 * d + popsize)),
            ),
        )
        self._eigh = Plan("eigh_batch", (self._C, self._eigenvalues, self._B)) if d <= _LARGEST else None
        self._factor = Plan(
            "stein_factor", (self._eigenvalues, self._B, self._C, self._sigmas, self._p_c, self._D, self._A)
        )

    # ---- what a caller sees ----

    @property
    def sigmas(self) -> Floats:
        """Step sizes, (n,), live. With the covariances they say how far each search looks; alone they mean little."""
        return self._sigmas

    @property
    def covariances(self) -> Floats:
        """C of each particle, (n, d, d), live: its samples have the covariance sigmas^2 covariances."""
        return self._C

    def ask(self) -> Floats:
        """The candidates of this generation, (n popsize, d): those of particle i in rows i popsize to (i + 1) popsize.

        The sampler's own array, which the next generation overwrites. Asking again gives the same candidates.
        """
        n, d = self._particles.shape
        if self._drawn != self.n_steps:
            self._draw()
            self._drawn = self.n_steps
        self._sample.run((n, d, self.popsize))  # again, since the caller may have written to them
        return self._candidates.reshape(-1, d)

    def tell(self, values: Any) -> None:
        """Ends the generation whose candidates `ask` gave.

        Args:
            values: their log densities, (n popsize,), float32 or float64; larger is better, NaN ranks last.

        Raises:
            TypeError, ValueError: not such an array. Nothing has changed.
            RuntimeError: this generation's candidates were not asked for.
        """
        if self._drawn != self.n_steps:
            raise RuntimeError(f"{self._name}.tell: this generation has no candidates yet; call ask() first")
        proposal = self._judge(self._values("tell", "values", values))
        with uninterrupted():
            self._commit(proposal)
            self.n_steps += 1
            self.n_evaluations += self._cost

    def run(self, n: int, *, callback: Callback | None = None, progress: bool | None = None) -> Floats:
        """Takes up to n generations; `horizon` becomes the one that they end with.

        Args:
            n: number of generations, >= 0.
            callback: called with the sampler after each generation; a true return value stops the run.
            progress: a progress bar; None shows one at a terminal where tqdm is installed and the run takes over two
                seconds.

        Returns:
            `particles`, the live array.

        Raises:
            TypeError, ValueError: as `step`; the sampler then is as after the last whole generation.
        """
        self.horizon = self.n_steps + integer(f"{self._name}.run", "n", n, 0, 1 << 31, "2^31")
        return super().run(n, callback=callback, progress=progress)

    # ---- a generation ----

    def _draw(self) -> None:
        """Standard normals, a function of the seed, the generation and the index alone."""
        noise.fill(self._z, seed=self.seed, draw=self.n_steps, tensor=_TENSOR)

    def _propose(self) -> tuple[Any, ...]:
        if self._log_density is None:
            raise TypeError(message(self._name, "log_density", "None", "a function to step with", "use ask and tell"))
        return self._judge(self._values("step", "log_density(points)", self._log_density(self.ask())))

    def _values(self, method: str, label: str, given: Any) -> Floats:
        """The values as a C-contiguous float64 array; the usual case first, since the checks cost 5 us."""
        if type(given) is np.ndarray and given.dtype == np.float64 and given.shape == (self._cost,):
            return np.ascontiguousarray(given)
        return checked(f"{self._name}.{method}", label, given, (self._cost,), np.float64)

    def _judge(self, values: Floats) -> tuple[Any, ...]:
        """Selection and the forces between particles; writes no state."""
        n, d = self._particles.shape
        columns = (self._y, values.reshape(n, self.popsize), self._weights, self._order, self._shift)
        self._select.rebind(columns)
        self._select.run((n, d, self.popsize, self.rates.mu))
        if self._interact is not None:
            self.h = _bandwidth.resolve(self._bandwidth, self._particles, f"{self._name}.step")
            self._interact(self._shift, self._sigmas, self.h, self._repulsion * self._anneal())
        return n, d, self.popsize, *self.rates.scalars(self.n_steps + 1), self._sigma_min, _SIGMA_MAX, self._in_paths

    def _anneal(self) -> float:
        if self._annealing is None or not self.horizon:
            return 1.0
        return max(math.log(self.horizon / (self.n_steps + 1)), 1.0)

    def _commit(self, proposal: tuple[Any, ...]) -> None:
        n, d = self._particles.shape
        self._adapt.run(proposal)
        if (self.n_steps + 1) % self._every == 0:
            self._decompose(n, d)
            self._factor.run((n, d, self._condition, self._renormalise))

    def _decompose(self, n: int, d: int) -> None:
        """Eigenvalues and vectors of C; NaN for a matrix that is not finite."""
        if self._eigh is not None:
            self._eigh.run((n, d))
            return
        finite = np.isfinite(self._C).all((1, 2))
        self._eigenvalues[~finite], self._B[~finite] = np.nan, np.nan
        if finite.any():
            self._eigenvalues[finite], self._B[finite] = np.linalg.eigh(self._C[finite])

    # ---- states ----

    def _settings(self) -> dict[str, Any]:
        return {
            "sigma0": self._sigma0,
            "popsize": self.popsize,
            "bandwidth": "a function" if callable(self._bandwidth) else self._bandwidth,
            "kernel": self._kernel.name,
            "alpha": self._kernel.alpha,
            "form": self._form,
            "repulsion": self._repulsion,
            "annealing": self._annealing,
            "repulsion_in_paths": self._in_paths,
            "renormalise": self._renormalise,
            "eigen_every": self._given_every,
        }

    def _arrays(self) -> dict[str, Floats]:
        states = {"sigmas": self._sigmas, "C": self._C, "p_sigma": self._p_sigma, "p_c": self._p_c}
        return super()._arrays() | states | {"B": self._B, "D": self._D}

    def _restored(self) -> None:
        self._drawn = -1
        np.multiply(self._D[:, :, None], self._B.transpose(0, 2, 1), out=self._A)  # as the kernel forms it
