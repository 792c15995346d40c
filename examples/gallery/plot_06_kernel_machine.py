"""
A kernel machine, and how many centers it needs
===============================================

`KernelRidgeCGClassifier` fits in the manner of scikit-learn, on products with the kernel's matrix that never store it.
"""

import matplotlib.pyplot as plt
import numpy as np
from curvk.machines import EigenPro4Classifier, KernelRidgeCGClassifier
from sklearn.datasets import load_digits, make_moons
from sklearn.model_selection import train_test_split

# %%
# What one looks like in the plane: 200 centers for 2,000 points.

points, side = make_moons(2000, noise=0.25, random_state=0)
machine = KernelRidgeCGClassifier(
    n_centers=200, kernel="gaussian", bandwidth=0.5, alpha=0.1, random_state=0
)
machine.fit(points, side)

across, up = np.meshgrid(np.linspace(-2, 3, 250), np.linspace(-1.6, 2.1, 200))
height = machine.decision_function(
    np.column_stack([across.ravel(), up.ravel()])
).reshape(across.shape)

figure, axis = plt.subplots(figsize=(7, 4.2))
filled = axis.contourf(
    across,
    up,
    height,
    levels=np.linspace(-2.2, 2.2, 23),
    cmap="RdBu",
    extend="both",
    alpha=0.8,
)
axis.contour(across, up, height, levels=[0], colors="k", linewidths=1.5)
axis.scatter(
    *points[::4].T, c=side[::4], cmap="RdBu", s=18, edgecolors="w", linewidths=0.5
)
axis.set(title="decision function; the line is where it is 0", xticks=[], yticks=[])
figure.colorbar(filled, ax=axis, ticks=[-2, -1, 0, 1, 2])
plt.show()

# %%
# Test error on handwritten digits by the number of centers, and beside it EigenPro 4, which trains by preconditioned
# gradient steps.

x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(
    (x / 16).astype(np.float32), y, random_state=0, test_size=0.4
)
centers = [25, 50, 100, 200, 400, 800]
common = {"kernel": "gaussian", "random_state": 0}
errors = {"KernelRidgeCG": [], "EigenPro 4, 5 epochs": []}
for p in centers:
    ridge = KernelRidgeCGClassifier(n_centers=p, alpha=0.01, **common).fit(
        x_train, y_train
    )
    pro = EigenPro4Classifier(n_centers=p, epochs=5, **common).fit(x_train, y_train)
    for found, model in zip(errors.values(), (ridge, pro), strict=True):
        found.append(1 - model.score(x_test, y_test))

figure, axis = plt.subplots(figsize=(7, 3.8))
for (name, found), marker in zip(errors.items(), "os", strict=True):
    axis.plot(centers, 100 * np.array(found), f"{marker}-", label=name)
axis.set(
    xscale="log",
    xlabel="centers",
    ylabel="test error, %",
    title="digits, 1,078 training images",
)
axis.set_xticks(centers, [str(p) for p in centers])
axis.minorticks_off()
axis.set_ylim(bottom=0)
axis.legend()
plt.show()
