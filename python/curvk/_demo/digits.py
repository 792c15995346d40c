"""Handwritten digits, a multilayer perceptron with its gradient written out, and one training run on both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from .peers import Array, Optimizer


@dataclass(frozen=True)
class Digits:
    """8x8 images as rows of 64 numbers in [0, 1], and their digits."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array


def load(seed: int) -> Digits:
    """scikit-learn's 1,797 digits, a quarter of them kept for the test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = order[: len(y) * 3 // 4], order[len(y) * 3 // 4 :]
    return Digits(x[train], y[train], x[test], y[test])


class MLP:
    """Linear layers with ReLU between them; `params` and `grads` are lists of float32 arrays in the same order."""

    def __init__(self, sizes: tuple[int, ...], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.params: list[Array] = []
        for fan_in, fan_out in pairwise(sizes):
            weight = rng.standard_normal((fan_in, fan_out), np.float32)
            weight *= np.sqrt(2 / fan_in).astype(np.float32)
            self.params += [weight, np.zeros(fan_out, np.float32)]
        self.grads = [np.empty_like(p) for p in self.params]

    def _layers(self, x: Array, params: list[Array]) -> list[Array]:
        """The input of each layer, then the logits."""
        inputs = [x]
        for i in range(0, len(params), 2):
            z = inputs[-1] @ params[i]
            z += params[i + 1]
            if i + 2 < len(params):
                np.maximum(z, 0, out=z)
            inputs.append(z)
        return inputs

    def logits(self, x: Array) -> Array:
        return self._layers(x, self.params)[-1]

    def loss(self, x: Array, y: Array, params: list[Array] | None = None) -> float:
        """The mean cross-entropy, with other parameters if some are given."""
        log_p = _log_softmax(self._layers(x, self.params if params is None else params)[-1])
        return -float(np.mean(log_p[np.arange(len(y)), y]))

    def backward(self, x: Array, y: Array) -> float:
        """Writes the gradients of the mean cross-entropy into `grads` and returns it."""
        *inputs, logits = self._layers(x, self.params)
        rows = np.arange(len(y))
        log_p = _log_softmax(logits)
        loss = -float(np.mean(log_p[rows, y]))
        delta = np.exp(log_p, out=log_p)
        delta[rows, y] -= 1
        delta /= len(y)
        for i in reversed(range(len(inputs))):
            np.matmul(inputs[i].T, delta, out=self.grads[2 * i])
            np.sum(delta, axis=0, out=self.grads[2 * i + 1])
            if i > 0:
                delta = delta @ self.params[2 * i].T
                delta *= inputs[i] > 0
        return loss


def _log_softmax(logits: Array) -> Array:
    """Overwrites the logits with the logarithms of the probabilities."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


@dataclass
class Side:
    """A model, its optimizer and what was measured on it."""

    model: MLP
    optimizer: Optimizer
    accuracy: list[float] = field(default_factory=list)  # on the test set, before training and after each epoch
    losses: list[float] = field(default_factory=list)
    passes_s: list[float] = field(default_factory=list)  # in the model's forward and backward passes
    step_s: list[float] = field(default_factory=list)  # in the optimizer, passes excluded

    def measure(self, data: Digits) -> None:
        self.accuracy.append(float(np.mean(self.model.logits(data.x_test).argmax(axis=1) == data.y_test)))

    def step(self, x: Array, y: Array) -> None:
        start = perf_counter()
        loss = self.model.backward(x, y)
        middle = perf_counter()
        self.optimizer.step(self.model.grads, loss=loss)
        self.step_s.append(perf_counter() - middle)
        self.passes_s.append(middle - start)
        self.losses.append(loss)

    @property
    def steps_per_s(self) -> float:
        return 1 / (median(self.passes_s) + median(self.step_s))


@dataclass
class ForwardSide(Side):
    """A side whose optimizer takes the loss as a function of the parameters, in a number of forward passes."""

    lr: float = field(kw_only=True)  # of the first step; it falls linearly, to 0 after the last one
    steps: int = field(kw_only=True)
    passes: int = 0

    def step(self, x: Array, y: Array) -> None:
        spent = 0.0

        def closure(params: list[Array]) -> float:
            nonlocal spent
            start = perf_counter()
            loss = self.model.loss(x, y, params)
            spent += perf_counter() - start
            self.passes += 1
            return loss

        self.optimizer.lr = self.lr * (1 - len(self.losses) / self.steps)
        start = perf_counter()
        loss = self.optimizer.step(closure)
        self.step_s.append(perf_counter() - start - spent)
        self.passes_s.append(spent)
        self.losses.append(loss)


AnySide = TypeVar("AnySide", bound=Side)


def train(
    sizes: tuple[int, ...],
    data: Digits,
    optimizers: tuple[Callable[[list[Array]], Optimizer], ...],
    *,
    epochs: int,
    batch: int,
    seed: int,
    advance: Callable[[], Any],
    make_side: Callable[[MLP, Optimizer], AnySide],
) -> list[AnySide]:
    """Trains one model per optimizer in lockstep on the same batches, so that all meet the machine in the same mood."""
    sides = [make_side(model, make(model.params)) for make, model in ((o, MLP(sizes, seed)) for o in optimizers)]
    turns = sides
    rng = np.random.default_rng(seed + 1)
    for side in sides:
        side.measure(data)
    for _ in range(epochs):
        order = rng.permutation(len(data.y))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            x, y = data.x[rows], data.y[rows]
            turns = turns[::-1]  # nobody always goes first
            for side in turns:
                side.step(x, y)
            advance()
        for side in sides:
            side.measure(data)
    return sides


def difference(a: list[Array], b: list[Array]) -> float:
    """The largest difference of two lists of tensors, each relative to its tensor's largest element."""
    return max(
        float(np.abs(x - y).max() / max(np.abs(y).max(), np.finfo(y.dtype).tiny)) for x, y in zip(a, b, strict=True)
    )
