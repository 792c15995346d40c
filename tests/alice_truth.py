"""Alice as its equations read, in float64, an element at a time, with every branch: what the fast forms are held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from curvk.kernels import noise

Array = np.ndarray[Any, Any]
Gradient = Callable[[Array], Array]


@dataclass
class Truth:
    """The reference's update, written from its equations.

    `signs(t)` gives the probe of step t. Counters and defaults are those of the reference with compat, else curvk's.
    """

    x: Array
    grad: Gradient
    signs: Callable[[int], Array]
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    quick_steps: int = 3
    hess: str = "debiased"
    glass: bool = True
    limit: str = "adam"
    lr_min: float = 0.0
    lr_max: float | None = None
    phi: float | None = None
    omega: float = 1.0
    sigma: float | None = None
    l1: float = 0.0
    l2: float = 0.0
    warmup: int = 9
    compat: bool = False
    t: int = 0
    samples: int = 0
    states: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.x.size
        self.mu, self.nu = self.x.astype(np.float64), self.x.astype(np.float64)
        self.G, self.R, self.H, self.V = (np.zeros(n) for _ in range(4))
        self.inside: list[bool] = []

    def is_sample(self, t: int) -> bool:
        return t <= self.warmup or t % (self.quick_steps + 1) == 0

    def step(self) -> None:
        self.t = t = self.t + 1
        period = self.quick_steps + 1
        sigma = self.lr if self.sigma is None else self.sigma
        beta1, beta2 = min(self.betas[0], (t - 1) / t), min(self.betas[1], (t - 1) / t)
        nu = self.nu.copy()
        if self.is_sample(t):
            self.samples += 1
            count = t if self.compat else self.samples
            beta3 = min(1 - period * (1 - self.betas[1]), (count - 1) / count)
            z = self.signs(t)
            plus, minus, at = self.grad(nu + sigma * z), self.grad(nu - sigma * z), self.grad(nu)
            for i in range(nu.size):
                difference = (plus[i] - minus[i]) / (2 * sigma)
                if self.hess == "abs":
                    h = abs(difference) + self.l2
                elif self.hess == "rms":
                    h = difference**2 + self.l2**2
                else:
                    h = -(plus[i] - at[i]) * (minus[i] - at[i]) / sigma**2
                self.H[i] = h + beta3 * (self.H[i] - h)
                rho = 2 * ((plus[i] + minus[i]) / 2 - at[i]) ** 2 / sigma
                self.R[i] = rho + beta3 * (self.R[i] - rho)
        else:
            at = self.grad(nu)
        for i in range(nu.size):
            self.V[i] = at[i] ** 2 + beta2 * (self.V[i] - at[i] ** 2)
            g = at[i] + (-self.l1 if nu[i] < 0 else self.l1) + self.l2 * nu[i]
            self.G[i] = g + beta1 * (self.G[i] - g)
        if t > self.warmup:
            self.inside = [self.move(i) for i in range(nu.size)]

    def curvature(self, i: int) -> float:
        if self.hess == "zero":
            return 0.0
        if self.hess == "abs":
            return float(self.H[i])
        if self.hess == "rms":
            return math.sqrt(self.H[i])
        return math.sqrt(max(self.H[i], 0.0)) + self.l2

    def move(self, i: int) -> bool:
        """The closed form with its clamp; True if the step is strictly between its bounds."""
        a = abs(self.G[i])
        glass = self.R[i] if self.glass else 0.0
        h = self.curvature(i)
        alpha = 3 / (4 * math.pi) * glass / (a + self.eps)
        d = a / (alpha + h + math.sqrt(alpha * (alpha + 2 * h)) + self.eps)
        unit = {"fixed": 1.0, "sgdm": a, "adam": a / (math.sqrt(self.V[i]) + self.eps)}[self.limit]
        low, high = self.lr_min * unit, (2 * self.lr if self.lr_max is None else self.lr_max) * unit
        inside = low < d < high
        if d < low:
            d = low
        if not d < high:
            d = high
        delta = -math.copysign(d, self.G[i])
        self.nu[i] = self.mu[i] + self.omega * delta
        self.mu[i] += (1 - self.betas[0] if self.phi is None else self.phi) * delta
        return inside


def signs(shape: tuple[int, ...], name: str, seed: int) -> Callable[[int], Array]:
    """The probe of a parameter of this name in each step, flat in C order."""

    def draw(t: int) -> Array:
        out = np.empty(shape)
        noise.fill(out, seed=seed, draw=t, tensor=noise.tensor_word(name), dist="rademacher")
        return out.ravel()

    return draw


def smooth(n: int, seed: int) -> Gradient:
    """The gradient of a smooth function without structure: sum_j c_j sin(w_j . x + b_j), and some curvature."""
    rng = np.random.default_rng(seed)
    w, b, c = rng.standard_normal((2 * n, n)) / math.sqrt(n), rng.standard_normal(2 * n), rng.standard_normal(2 * n)
    d = rng.uniform(-1, 2, n)
    return lambda x: (c * np.cos(w @ x + b)) @ w + d * x


def quadratic(n: int, seed: int) -> tuple[Array, Array]:
    """A symmetric indefinite matrix and a vector: the gradient is A x - b."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, n))
    return (a + a.T) / 2, rng.standard_normal(n)
