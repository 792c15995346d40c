"""
Four optimizers on handwritten digits
=====================================

A perceptron in plain NumPy, trained by `curvk.optim`. An optimizer holds the arrays and steps them in place; the
gradients are a list in the same order, from wherever they come. The network is in ``digits.py``, beside this file.
"""

import curvk
import matplotlib.pyplot as plt
import numpy as np

import digits

x, y, x_test, y_test = digits.load()

optimizers = {
    "SGD, momentum 0.9": lambda params: curvk.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: curvk.optim.Adam(params, lr=0.003),
    "AdamW": lambda params: curvk.optim.AdamW(params, lr=0.003, weight_decay=0.1),
    "Lion": lambda params: curvk.optim.Lion(params, lr=0.001),
}

# %%
# All start from the same weights and see the same batches of 50. The loss over all 1,200 training images is taken
# after each tenth step.

figure, axis = plt.subplots(figsize=(7, 4))
for name, make in optimizers.items():
    params = digits.init(64, 32, 10)
    optimizer = make(params)
    losses = []
    for step, batch in enumerate(digits.batches(len(x), 50, epochs=20)):
        if step % 10 == 0:
            losses.append(digits.loss(params, x, y))
        optimizer.step(digits.gradients(params, x[batch], y[batch]))
    test = digits.accuracy(params, x_test, y_test)
    axis.plot(np.arange(len(losses)) * 10, losses, label=f"{name}: {test:.1%}")
axis.set(
    xlabel="step",
    ylabel="training loss",
    yscale="log",
    title="20 epochs, 2,410 parameters",
    ylim=(0.01, 5),
)
axis.legend(title="test accuracy", loc="upper right")
plt.show()

# %%
# The learning rates were not tuned: this shows how the classes are used, not which one to choose.
