"""Train a small network in plain NumPy with curvk.optim.AdamW, save the optimizer, and go on from the file.

python examples/numpy_training.py
"""

import tempfile
from pathlib import Path

import curvk
import numpy as np

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, (512, 2)).astype(np.float32)
y = (np.hypot(x[:, 0], x[:, 1]) < 0.7).astype(np.float32)  # inside or outside a circle


def new_params():
    init = np.random.default_rng(1)
    return [
        init.standard_normal((2, 32), np.float32),
        np.zeros(32, np.float32),
        init.standard_normal((32, 1), np.float32) * np.float32(0.25),
        np.zeros(1, np.float32),
    ]


def loss_and_grads(params):
    """Mean logistic loss of a network with one hidden layer, and its gradients."""
    w1, b1, w2, b2 = params
    hidden = np.tanh(x @ w1 + b1)
    logit = (hidden @ w2 + b2)[:, 0]
    loss = np.mean(np.logaddexp(0, logit) - y * logit)
    delta = ((1 / (1 + np.exp(-logit)) - y) / len(y))[:, None]
    back = delta @ w2.T * (1 - hidden**2)
    return float(loss), [x.T @ back, back.sum(axis=0), hidden.T @ delta, delta.sum(axis=0)]


def train(params, optimizer, steps):
    for _ in range(steps):
        loss, grads = loss_and_grads(params)
        optimizer.step(grads)  # one compiled call for all arrays, in place
    return loss


params = new_params()
optimizer = curvk.optim.AdamW(params, lr=0.02, weight_decay=1e-3, max_grad_norm=1.0)
print(f"loss at the start      {loss_and_grads(params)[0]:.4f}")
print(f"loss after 200 steps   {train(params, optimizer, 200):.4f}")

with tempfile.TemporaryDirectory() as folder:
    state = Path(folder) / "optimizer.npz"
    optimizer.save(state)
    copies = [p.copy() for p in params]
    resumed = curvk.optim.AdamW(copies, lr=0.02, weight_decay=1e-3, max_grad_norm=1.0)
    resumed.load(state)

loss = train(params, optimizer, 200)
train(copies, resumed, 200)
same = all(np.array_equal(a, b) for a, b in zip(params, copies, strict=True))
print(f"loss after 400 steps   {loss:.4f}")
print(f"resumed from the file: {'the same bits' if same else 'DIFFERENT'}")
