"""The demo's opponents: the same optimizers as a careful person writes them in NumPy, with NumPy's own generator.

Every operation works in place or into one of two scratch arrays that all tensors share, so that no step allocates. The
operations follow csrc/include/curvk/optim.h, so in float32 both sides should round alike all the way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


Optimizer = Any
"""curvk's or one of these: it has `step(grads, loss=None)`; or `step(grad)`, to take several gradients in a step; or
`step(closure)` and `lr`, to train by forward passes."""


def _scratch(params: list[Array]) -> list[Array]:
    buffer = np.empty(max(p.size for p in params), params[0].dtype)
    return [buffer[: p.size].reshape(p.shape) for p in params]


class SGD:
    def __init__(self, params: list[Array], lr: float, momentum: float) -> None:
        self.params, self.lr, self.momentum = params, lr, momentum
        self.bufs = [np.zeros_like(p) for p in params]
        self.scratch = _scratch(params)

    def step(self, grads: list[Array], loss: float | None = None) -> None:
        for p, g, buf, t in zip(self.params, grads, self.bufs, self.scratch, strict=True):
            buf *= self.momentum
            buf += g
            np.multiply(buf, self.lr, out=t)
            p -= t


class Adam:
    def __init__(
        self,
        params: list[Array],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decoupled_weight_decay: float = 0.0,
    ) -> None:
        self.params, self.lr, self.betas, self.eps = params, lr, betas, eps
        self.decoupled_weight_decay = decoupled_weight_decay
        self.steps = 0
        self.exp_avgs = [np.zeros_like(p) for p in params]
        self.exp_avg_sqs = [np.zeros_like(p) for p in params]
        self.scratch, self.scratch2 = _scratch(params), _scratch(params)

    def step(self, grads: list[Array], loss: float | None = None) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        step_size = self.lr / (1 - beta1**self.steps)
        inv_root2 = 1 / math.sqrt(1 - beta2**self.steps)
        rows = zip(self.params, grads, self.exp_avgs, self.exp_avg_sqs, self.scratch, self.scratch2, strict=True)
        for p, g, m, v, t, u in rows:
            m *= beta1
            np.multiply(g, 1 - beta1, out=t)
            m += t
            v *= beta2
            np.multiply(g, g, out=t)
            t *= 1 - beta2
            v += t
            np.sqrt(v, out=t)
            t *= inv_root2
            t += self.eps
            np.multiply(m, step_size, out=u)
            u /= t
            if self.decoupled_weight_decay:
                p *= 1 - self.lr * self.decoupled_weight_decay
            p -= u


class AdamW(Adam):
    def __init__(self, params: list[Array], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr, decoupled_weight_decay=weight_decay)


class AdamZ(Adam):
    """Adam whose lr falls when the newest loss is the window's maximum and rises when the newest losses stand still."""

    def __init__(
        self,
        params: list[Array],
        lr: float,
        overshoot_factor: float = 0.5,
        stagnation_factor: float = 1.2,
        stagnation_threshold: float = 0.2,
        patience: int = 100,
        stagnation_period: int = 10,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
    ) -> None:
        super().__init__(params, lr)
        self.losses: deque[float] = deque(maxlen=patience)
        self.overshoot_factor, self.stagnation_factor = overshoot_factor, stagnation_factor
        self.stagnation_threshold, self.stagnation_period = stagnation_threshold, stagnation_period
        self.min_lr, self.max_lr = min_lr, max_lr

    def step(self, grads: list[Array], loss: float | None = None) -> None:
        assert loss is not None
        self.losses.append(loss)
        if len(self.losses) == self.losses.maxlen:
            window = np.array(self.losses)
            if loss >= window.max():
                self.lr *= self.overshoot_factor
            if window[-self.stagnation_period :].std() < self.stagnation_threshold * window.std():
                self.lr *= self.stagnation_factor
        self.lr = min(max(self.lr, self.min_lr), self.max_lr)
        super().step(grads)


class BlockedAdam:
    """Adam on one large array, block by block, so that NumPy's temporaries stay in the cache. Few people write this."""

    def __init__(self, param: Array, lr: float, block: int = 16384) -> None:
        self.cuts = [slice(start, start + block) for start in range(0, param.size, block)]
        self.blocks = [Adam([param[cut]], lr) for cut in self.cuts]
        for part in self.blocks[1:]:
            size = part.params[0].size
            part.scratch = [self.blocks[0].scratch[0][:size]]
            part.scratch2 = [self.blocks[0].scratch2[0][:size]]

    def step(self, grads: list[Array], loss: float | None = None) -> None:
        (grad,) = grads
        for part, cut in zip(self.blocks, self.cuts, strict=True):
            part.step([grad[cut]])


class FZOO:
    """`curvk.zeroth.FZOO` with signs from NumPy's generator, a bit each, and the eight of a byte from a table.

    It keeps each probe's bits for the update: n_probes / 8 bytes a weight.
    """

    table = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)

    def __init__(self, params: list[Array], lr: float, eps: float, n_probes: int, seed: int) -> None:
        self.params, self.lr, self.eps, self.n_probes = params, lr, eps, n_probes
        self.rng = np.random.default_rng(seed)
        self.size = sum(p.size for p in params)
        self.flat = np.empty(-(-self.size // 8) * 8, np.float32)
        ends = np.cumsum([p.size for p in params])
        self.probe = [self.flat[end - p.size : end].reshape(p.shape) for p, end in zip(params, ends, strict=True)]
        self.signs: list[Array] = [np.empty(0)] * n_probes

    def draw(self) -> Array:
        """One probe's signs z."""
        return np.frombuffer(self.rng.bytes(len(self.flat) // 8), np.uint8)

    def scale(self, signs: Array, by: float) -> None:
        """Writes by * z into `flat`."""
        np.take(self.table * np.float32(by), signs, axis=0, out=self.flat.reshape(-1, 8), mode="clip")

    def step(self, closure: Callable[[list[Array]], float]) -> float:
        base = closure(self.params)
        losses = []
        for k in range(self.n_probes):
            self.signs[k] = self.draw()
            self.scale(self.signs[k], self.eps)
            for p, t in zip(self.params, self.probe, strict=True):
                t += p
            losses.append(closure(self.probe))
        sigma = float(np.std(losses, ddof=1))
        for signs, loss in zip(self.signs, losses, strict=True):
            self.scale(signs, -self.lr * (loss - base) / (self.eps * self.n_probes * sigma) if sigma else 0.0)
            for p, t in zip(self.params, self.probe, strict=True):
                p += t
        return float(np.mean(losses))


class PlainFZOO(FZOO):
    """The same as most people write it: signs are drawn as integers, -1 or 1 in a byte."""

    def draw(self) -> Array:
        signs = self.rng.integers(0, 2, self.size, np.int8)
        signs *= 2
        signs -= 1
        return signs

    def scale(self, signs: Array, by: float) -> None:
        np.multiply(signs, np.float32(by), out=self.flat[: self.size])


class SAM:
    """`curvk.optim.SAM`: from step `start` on, the gradient is taken a length rho up the first one."""

    def __init__(self, base: SGD | Adam, rho: float, start: int) -> None:
        self.base, self.rho, self.start, self.steps = base, rho, start, 0
        self.saved = [np.empty_like(p) for p in base.params]

    def step(self, grad: Callable[[], list[Array]]) -> None:
        grads = grad()
        if self.steps >= self.start:
            norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads))
            for p, g, saved, t in zip(self.base.params, grads, self.saved, self.base.scratch, strict=True):
                np.copyto(saved, p)
                np.multiply(g, self.rho / (norm + 1e-12), out=t)
                p += t
            grads = grad()
            for p, saved in zip(self.base.params, self.saved, strict=True):
                np.copyto(p, saved)
        self.base.step(grads)
        self.steps += 1


class Alice:
    """`curvk.optim.Alice` with its defaults but for lr and lr_max, and with signs from NumPy's generator."""

    def __init__(self, params: list[Array], lr: float, lr_max: float, quick_steps: int, seed: int) -> None:
        self.params, self.sigma, self.lr_max, self.period = params, lr, lr_max, quick_steps + 1
        self.rng = np.random.default_rng(seed)
        self.center, self.lookahead = ([p.copy() for p in params] for _ in range(2))
        self.exp_avgs, self.exp_avg_sqs, self.glass, self.hessians = (
            [np.zeros_like(p) for p in params] for _ in range(4)
        )
        self.scratch, self.scratch2, self.scratch3 = (_scratch(params) for _ in range(3))
        self.signs = [np.empty(p.shape, np.int8) for p in params]
        self.steps = self.samples = 0

    def _gradients(self, grad: Callable[[], list[Array]], sign: int) -> list[Array]:
        for p, x, z, t in zip(self.params, self.lookahead, self.signs, self.scratch, strict=True):
            np.copyto(p, x)
            if sign:
                np.multiply(z, np.float32(sign * self.sigma), out=t)
                p += t
        return grad()

    def step(self, grad: Callable[[], list[Array]]) -> None:
        self.steps += 1
        warm_up, sample = self.steps <= 9, self.steps <= 9 or self.steps % self.period == 0
        rows: list[list[Array]] = []
        if sample:
            self.samples += 1
            for z in self.signs:
                z[...] = self.rng.integers(0, 2, z.shape, np.int8) * 2 - 1
            rows = [self._gradients(grad, sign) for sign in (1, -1)]
        grads = self._gradients(grad, 0)
        beta1, beta2 = (min(beta, 1 - 1 / self.steps) for beta in (0.9, 0.999))
        if sample:
            beta3 = min(1 - self.period * (1 - 0.999), 1 - 1 / self.samples)
            self._estimate(grads, rows[0], rows[1], beta3)
        for i, g in enumerate(grads):
            m, v, t = self.exp_avgs[i], self.exp_avg_sqs[i], self.scratch[i]
            np.multiply(g, g, out=t)
            t -= v
            t *= 1 - beta2
            v += t
            np.subtract(g, m, out=t)
            t *= 1 - beta1
            m += t
            if not warm_up:
                self._move(i)
            np.copyto(self.params[i], self.center[i])

    def _estimate(self, grads: list[Array], up: list[Array], down: list[Array], beta3: float) -> None:
        for i, (g, a, b) in enumerate(zip(grads, up, down, strict=True)):
            t, u = self.scratch[i], self.scratch2[i]
            np.add(a, b, out=t)
            t *= 0.5
            t -= g
            t *= t
            t *= 2 / self.sigma
            t -= self.glass[i]
            t *= 1 - beta3
            self.glass[i] += t
            np.subtract(a, g, out=t)
            np.subtract(b, g, out=u)
            t *= u
            t *= -1 / self.sigma**2
            t -= self.hessians[i]
            t *= 1 - beta3
            self.hessians[i] += t

    def _move(self, i: int, eps: float = 1e-8) -> None:
        m, center, t, u, w = self.exp_avgs[i], self.center[i], self.scratch[i], self.scratch2[i], self.scratch3[i]
        np.abs(m, out=t)
        t += eps  # b
        np.maximum(self.hessians[i], 0, out=u)
        np.sqrt(u, out=u)
        u *= t  # h b
        k = self.lookahead[i]  # overwritten below, so its memory is free
        np.multiply(self.glass[i], 3 / (4 * math.pi), out=k)
        np.multiply(u, 2, out=w)
        w += k
        w *= k
        np.sqrt(w, out=w)
        w += k
        w += u
        np.multiply(t, eps, out=u)
        w += u
        t /= w  # q
        np.sqrt(self.exp_avg_sqs[i], out=u)
        u += eps
        np.divide(self.lr_max, u, out=u)
        np.minimum(t, u, out=t)
        t *= m
        np.subtract(center, t, out=self.lookahead[i])
        t *= 0.1
        center -= t
