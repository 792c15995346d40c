"""What the examples share: scikit-learn's handwritten digits and a perceptron in NumPy."""

from itertools import pairwise

import numpy as np
from sklearn.datasets import load_digits


def load(label_noise=0.0, seed=0):
    """1,200 images to train on, some with a wrong label if asked, and 597 to test."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    wrong = rng.random(1200) < label_noise
    y[:1200][wrong] = rng.integers(10, size=wrong.sum())
    return x[:1200], y[:1200], x[1200:], y[1200:]


def init(*sizes, seed=0):
    """Weights and biases, layer by layer."""
    rng = np.random.default_rng(seed)
    params = []
    for n, m in pairwise(sizes):
        params.append(
            rng.standard_normal((n, m), np.float32) * np.float32(np.sqrt(2 / n))
        )
        params.append(np.zeros(m, np.float32))
    return params


def forward(params, x, relu=True):
    """The inputs of all layers, and the outputs."""
    inputs = []
    for w, b in zip(params[:-2:2], params[1:-2:2], strict=True):
        inputs.append(x)
        x = x @ w + b
        x = np.maximum(x, 0) if relu else np.tanh(x)
    return [*inputs, x], x @ params[-2] + params[-1]


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def loss(params, x, y):
    """Mean cross-entropy."""
    return -float(
        log_softmax(forward(params, x)[1])[np.arange(len(y)), y].mean(dtype=np.float64)
    )


def accuracy(params, x, y):
    return float((forward(params, x)[1].argmax(axis=1) == y).mean())


def gradients(params, x, y, relu=True):
    """Of the loss, in the order of the parameters."""
    inputs, z = forward(params, x, relu)
    delta = np.exp(log_softmax(z))
    delta[np.arange(len(y)), y] -= 1
    delta /= np.float32(len(y))
    grads = []
    for k in range(len(inputs) - 1, -1, -1):
        grads += [delta.sum(axis=0), inputs[k].T @ delta]
        if k:
            delta = delta @ params[2 * k].T
            delta *= inputs[k] > 0 if relu else 1 - inputs[k] ** 2
    return grads[::-1]


def batches(n, size, epochs, seed=0):
    """Indices of one batch after the other."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(n)
        for i in range(0, n - size + 1, size):
            yield order[i : i + size]
