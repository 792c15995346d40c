"""
A sketch that knows its error
=============================

Frequent Directions keeps l rows B in place of a stream's rows A, and a number, delta, that bounds what B'B lacks of
A'A. What may be lost is known in advance too, from the singular values alone.
"""

import matplotlib.pyplot as plt
import numpy as np
from curvk.sketch import CountSketch, FrequentDirections
from sklearn.datasets import load_digits

a = load_digits().data  # 1,797 rows of 64 columns
gram = a.T @ a
whole = np.sum(a**2)
singular = np.linalg.svd(a, compute_uv=False) ** 2
lengths = [4, 6, 8, 12, 16, 24, 32, 48]

found = {"its own bound, delta": [], "Frequent Directions": []}
hashed = []
for length in lengths:
    fd = FrequentDirections(length, a.shape[1])
    for rows in np.array_split(a, 20):  # as a stream would bring them
        fd.update(rows)
    found["its own bound, delta"].append(fd.delta / whole)
    found["Frequent Directions"].append(
        np.linalg.norm(gram - fd.sketch.T @ fd.sketch, 2) / whole
    )
    errors = []
    for seed in range(20):
        count = CountSketch(length, a.shape[1], seed=seed)
        count.update(a)
        errors.append(np.linalg.norm(gram - count.sketch.T @ count.sketch, 2) / whole)
    hashed.append(np.quantile(errors, [0, 0.5, 1]))

bound = [
    min(singular[k:].sum() / (length + 1 - k) for k in range(length + 1)) / whole
    for length in lengths
]
optimum = [singular[length] / whole for length in lengths]

# %%
# Beside it CountSketch, which is linear in the rows and does not look at them, with 20 seeds.

low, middle, high = np.array(hashed).T
figure, axis = plt.subplots(figsize=(7, 4.2))
axis.plot(lengths, middle, "C1o-", label="CountSketch, median of 20 seeds")
axis.fill_between(lengths, low, high, color="C1", alpha=0.15, lw=0)
axis.plot(lengths, bound, "C0:", label="Frequent Directions: bound in advance")
axis.plot(
    lengths,
    found["its own bound, delta"],
    "C2--",
    lw=2.5,
    label="Frequent Directions: delta",
)
axis.plot(
    lengths, found["Frequent Directions"], "C0o-", label="Frequent Directions: error"
)
axis.plot(lengths, optimum, "k-", lw=1, label="the best that l rows can do")
axis.set(
    xscale="log",
    yscale="log",
    xlabel="rows of the sketch, l",
    ylabel="error / squared Frobenius norm",
)
axis.set_xticks(lengths, [str(length) for length in lengths])
axis.minorticks_off()
axis.legend(fontsize=8.5)
plt.show()
