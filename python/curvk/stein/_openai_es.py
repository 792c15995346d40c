"""SVGD whose scores are antithetic evolution-strategy estimates of each particle's own population."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._errors import message
from ..kernels import noise
from ..zeroth._stream import DRAWS, integer, real
from ._bandwidth import Bandwidth
from ._base import Floats
from ._flow import Flow


class SVOpenAIES(Flow):
    """Stein variational OpenAI-ES: SVGD with the scores that a population around each particle estimates.

    Each step draws popsize / 2 normals eps_k for every particle, evaluates both signs and moves the particles along
    SVGD's direction with::

        score(x) = 1 / (popsize sigma) sum_k (log p(x + sigma eps_k) - log p(x - sigma eps_k)) eps_k

    It is the gradient of log p smoothed by N(0, sigma^2 I): exact in expectation for a quadratic log p, whatever sigma.

    Args:
        log_density: log p up to a constant, to be maximised: is given the candidates, (n popsize, d), those of a
            particle in consecutive rows, and returns (n popsize,) numbers. The rules of SVGD's `score` hold; NaN ranks
            last: as the particle's smallest finite value (infinities are brought to the finite range alike; a particle
            without a finite value has score 0).
        x0: first particles, (n, d), float32 or float64, copied.
        sigma: standard deviation of the candidates, > 0.
        popsize: candidates of each particle, even, >= 2.
        lr: learning rate, >= 0.
        kernel, bandwidth, step, repulsion, parameters: as in `SVGD`.
        ranks: whether a particle's values are replaced by their centred ranks in [-1/2, 1/2] (ties share their mean
            rank): invariant to monotone transforms of log p, which then no longer is the target; the direction only
            climbs.
        sigma_decay, sigma_min, lr_decay, lr_min: in step t = 0, 1, ... sigma is max(sigma_min, sigma sigma_decay^t),
            and lr alike.
        seed: of the noise, in [0, 2^64); step t takes draw t of `curvk.kernels.noise`, at most 2^32 steps.

    Attributes:
        scores: the estimates of the last step, (n, d); zeros before it.

    Raises:
        TypeError, ValueError, BufferError: an argument that does not fit; the text names it.

    A step costs n popsize evaluations, n popsize d of noise and memory, and SVGD's product. Source: Liu, Ramachandran,
    Liu & Peng 2017 (Stein variational policy gradient); Salimans et al. 2017 (OpenAI-ES); the baseline of Braun, Lange
    & Toussaint 2024. The defaults of sigma, lr and step are those of the latter's code.

    >>> import numpy as np
    >>> from curvk.stein import SVOpenAIES
    >>> x0 = np.random.default_rng(0).standard_normal((50, 2))
    >>> es = SVOpenAIES(lambda x: -0.5 * np.square(x - 1).sum(1), x0, sigma=0.1, popsize=4)
    >>> x = es.run(300)
    >>> bool(np.all(abs(x.mean(0) - 1) < 0.2)), es.n_evaluations
    (True, 60000)
    """

    _unit = "generation"

    def __init__(
        self,
        log_density: Callable[[Floats], Any],
        x0: Any,
        *,
        sigma: float = 0.03,
        popsize: int = 4,
        lr: float = 0.05,
        kernel: str = "gaussian",
        bandwidth: Bandwidth = "median",
        step: str = "adam",
        repulsion: float = 1.0,
        ranks: bool = False,
        sigma_decay: float = 1.0,
        sigma_min: float = 0.0,
        lr_decay: float = 1.0,
        lr_min: float = 0.0,
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
        name = self._name
        self._log_density = self._checked_function("log_density", log_density)
        self._sigma0 = real(name, "sigma", sigma, "a finite number > 0", 0.0, open=True)
        self._popsize = integer(name, "popsize", popsize, 2, 1 << 31, "2^31")
        if self._popsize % 2:
            raise ValueError(message(name, "popsize", f"{popsize}", "an even number", "candidates come in pairs"))
        if not isinstance(ranks, (bool, np.bool_)):
            raise TypeError(message(name, "ranks", repr(ranks), "True or False"))
        self._ranks = bool(ranks)
        self._schedule = {
            key: real(name, key, value, "a finite number >= 0", 0.0)
            for key, value in (
                ("sigma_decay", sigma_decay),
                ("sigma_min", sigma_min),
                ("lr_decay", lr_decay),
                ("lr_min", lr_min),
            )
        }
        n, d = self._particles.shape
        dtype = self._particles.dtype
        self._eps = np.empty((n, self._popsize // 2, d), dtype)
        self._candidates = np.empty((n, self._popsize, d), dtype)
        self._estimates = np.zeros((n, d), dtype)
        self.scores = np.zeros((n, d), dtype)
        self._word = noise.tensor_word("SVOpenAIES", "sampling")
        self._cost = n * self._popsize

    def _settings(self) -> dict[str, Any]:
        own = {"sigma": self._sigma0, "popsize": self._popsize, "ranks": self._ranks}
        return super()._settings() | own | self._schedule

    def _at(self, first: float, key: str) -> float:
        """A scheduled number in the next step."""
        return max(self._schedule[f"{key}_min"], first * self._schedule[f"{key}_decay"] ** self.n_steps)

    @property
    def sigma(self) -> float:
        """Standard deviation of the next step's candidates."""
        return self._at(self._sigma0, "sigma")

    def _lr(self) -> float:
        return self._at(super()._lr(), "lr")

    def _scores(self) -> tuple[Floats, None]:
        x, candidates, eps, sigma = self._particles, self._candidates, self._eps, self.sigma
        half = self._popsize // 2
        if self.n_steps >= DRAWS:
            raise ValueError(message(f"{self._name}.step", "n_steps", f"{self.n_steps}", "fewer than 2^32"))
        if not sigma > 0:
            remedy = "set sigma_min"
            raise ValueError(message(f"{self._name}.step", "sigma", f"{sigma} by its decay", "a number > 0", remedy))
        noise.fill(eps, seed=self.seed, draw=self.n_steps, tensor=self._word)
        np.multiply(eps, sigma, out=candidates[:, :half])
        np.negative(candidates[:, :half], out=candidates[:, half:])
        candidates += x[:, None]
        flat = candidates.reshape(-1, x.shape[1])
        values = self._evaluated("log_density", self._log_density, flat, (len(flat),), np.float64)
        values = values.reshape(len(x), -1)
        values = centred_ranks(values) if self._ranks else in_finite_range(values)
        differences = (values[:, :half] - values[:, half:]) / (self._popsize * sigma)
        np.einsum("nk,nkd->nd", differences.astype(x.dtype), eps, out=self._estimates)
        self._need_finite("score of log_density", self._estimates)
        return self._estimates, None

    def _commit(self, proposal: Any) -> None:
        super()._commit(proposal)
        self.scores[...] = self._estimates


def in_finite_range(values: Floats) -> Floats:
    """Values (n, m) with NaN and -inf as their row's smallest finite number, inf as its largest; 0 without any."""
    finite = np.isfinite(values)
    if finite.all():
        return values
    low = np.where(finite, values, np.inf).min(1, keepdims=True)
    high = np.where(finite, values, -np.inf).max(1, keepdims=True)
    none = ~finite.any(1, keepdims=True)
    clean = np.where(np.isnan(values), -np.inf, values)
    return np.where(none, 0.0, np.clip(clean, np.where(none, 0, low), np.where(none, 0, high)))


def centred_ranks(values: Floats) -> Floats:
    """The ranks of each row of (n, m), scaled to [-1/2, 1/2]; ties share their mean rank, NaN ranks lowest."""
    values = np.where(np.isnan(values), -np.inf, values)
    order = values.argsort(1, kind="stable")
    ascending = np.take_along_axis(values, order, 1)
    m = values.shape[1]
    place = np.broadcast_to(np.arange(m), values.shape)
    begins = np.ones(values.shape, bool)
    begins[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    ends = np.ones(values.shape, bool)
    ends[:, :-1] = begins[:, 1:]
    first = np.maximum.accumulate(np.where(begins, place, 0), 1)
    last = np.minimum.accumulate(np.where(ends, place, m)[:, ::-1], 1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, 1)
    ranks /= m - 1
    ranks -= 0.5
    return ranks
