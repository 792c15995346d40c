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
"""curvk's or one of these: it has `step(grads, loss=None)` or, to train by forward passes, `step(closure)` and `lr`."""


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
