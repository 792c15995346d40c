"""
Adam's moments in 32, 16 and 8 bits
===================================

A step of Adam waits for memory. ``state_bits`` stores its two moments in fewer bytes, with stochastic rounding from a
stream that gives the same bits on every machine.
"""

import curvk
import matplotlib.pyplot as plt
import numpy as np

import digits

x, y, x_test, y_test = digits.load()
bits = {32: "float32", 16: "bfloat16", 8: "8-bit codes"}
curves, held = {}, {}

for b in bits:
    params = digits.init(64, 128, 10)
    optimizer = curvk.optim.Adam(params, lr=0.002, state_bits=b)
    losses = []
    for step, batch in enumerate(digits.batches(len(x), 50, epochs=20)):
        if step % 10 == 0:
            losses.append(digits.loss(params, x, y))
        optimizer.step(digits.gradients(params, x[batch], y[batch]))
    curves[b] = losses
    memory = optimizer.memory()["bytes_per_parameter"]
    held[b] = sum(
        size for name, size in memory.items() if name.startswith("exp_avg")
    )  # with the codes' scales

# %%
# The runs differ by the rounding of the moments alone. What is saved is memory and traffic.

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.6))
for (b, losses), style in zip(curves.items(), ("-", "--", ":"), strict=True):
    steps = np.arange(len(losses)) * 10
    left.plot(steps, losses, style, label=bits[b], lw=2 if b == 8 else 1.5)
    middle.plot(steps, np.array(losses) / curves[32], style)
left.set(xlabel="step", yscale="log", title="training loss")
left.legend(title="moments in")
middle.set(xlabel="step", title="the same, over float32's", ylim=(0.95, 1.05))

bars = right.bar(list(bits.values()), list(held.values()), color=["C0", "C1", "C2"])
right.bar_label(bars, fmt="%.3g")
right.set(title="bytes per parameter", ylim=(0, 9))
right.tick_params(axis="x", labelsize=8)
plt.show()
