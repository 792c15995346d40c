"""
Training by forward passes alone
================================

MeZO asks for two losses a step, at weights displaced by noise to either side, and never for a gradient. LeZO does so
with a fresh subset of the layers in each step. The noise is a function of a seed, so a log of a few bytes a step is
enough to build the trained weights again.
"""

import curvk
import matplotlib.pyplot as plt
import numpy as np

import digits

x, y, x_test, y_test = digits.load()
layers = [[0, 1], [2, 3], [4, 5]]  # the places of each layer's weights and biases
sizes, steps, every = (64, 32, 32, 10), 2000, 50


def train(make):
    params = digits.init(*sizes)
    optimizer, losses, rng = make(params), [], np.random.default_rng(0)
    for step in range(steps):
        if step % every == 0:
            losses.append(digits.loss(params, x, y))
        batch = rng.integers(len(x), size=200)  # the same for both losses of a step
        optimizer.step(lambda p, batch=batch: digits.loss(p, x[batch], y[batch]))
    return params, optimizer, losses


runs = {
    "MeZO": train(lambda p: curvk.zeroth.MeZO(p, lr=0.004)),
    "LeZO, two layers of three": train(
        lambda p: curvk.zeroth.LeZO(p, layers=layers, lr=0.004, drop=1 / 3)
    ),
}

# %%
# For comparison, SGD with gradients at one forward and one backward pass a step.

params, losses = digits.init(*sizes), []
sgd, rng = curvk.optim.SGD(params, lr=0.1), np.random.default_rng(0)
for step in range(steps):
    if step % every == 0:
        losses.append(digits.loss(params, x, y))
    batch = rng.integers(len(x), size=200)
    sgd.step(digits.gradients(params, x[batch], y[batch]))

figure, axis = plt.subplots(figsize=(7, 4))
for name, (trained, _, found) in runs.items():
    right = digits.accuracy(trained, x_test, y_test)
    axis.plot(
        np.arange(len(found)) * every,
        found,
        label=f"{name}: {right:.1%} of the test images right",
    )
right = digits.accuracy(params, x_test, y_test)
axis.plot(
    np.arange(len(losses)) * every,
    losses,
    "k:",
    label=f"SGD with gradients: {right:.1%}",
)
axis.set(
    xlabel="step",
    ylabel="training loss",
    yscale="log",
    title="3,466 parameters, batches of 200",
)
axis.legend()
plt.show()

# %%
# Gradients are worth many forward passes; this is for where there are none, or no memory for them. The log rebuilds
# the run, bit for bit:

trained, optimizer, _ = runs["LeZO, two layers of three"]
again = digits.init(*sizes)
optimizer.log.replay(again)
print(
    "the same bits:",
    all(np.array_equal(a, b) for a, b in zip(trained, again, strict=True)),
)
