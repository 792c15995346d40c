"""
Where a network is glass
========================

A ReLU network's gradient jumps wherever a unit switches for some image. Many jumps make a random walk, which no Hessian
describes: what is left of the gradient's change once the linear part is gone grows as the distance (exponent 1), where
in a smooth network it grows as its fourth power. `GlassProbe` measures it from plain gradients, layer by layer.
"""

import curvk
import matplotlib.pyplot as plt
import numpy as np

import digits

x, y, *_ = digits.load()
x = x.astype(np.float64)
names = ["hidden 1", "hidden 2", "output"]
layers = {name: [str(2 * k), str(2 * k + 1)] for k, name in enumerate(names)}
distances = [5e-4 * 2**k for k in range(5)]


def probe(relu):
    params = [p.astype(np.float64) for p in digits.init(64, 32, 32, 10)]
    at = curvk.curvature.GlassProbe(
        lambda p: digits.gradients(p, x, y, relu=relu),
        params,
        sigma=distances[0],
        layers=layers,
    )
    return at.run(samples=8, distances=distances)


results = {"ReLU": probe(relu=True), "tanh": probe(relu=False)}

# %%
# The same shapes, weights and images; only the unit differs.

figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
for axis, (unit, result) in zip(axes, results.items(), strict=True):
    for name, layer in result.layers.items():
        glass = np.array([reading.glass for reading in layer.readings])
        where = [reading.distance for reading in layer.readings]
        axis.plot(
            where,
            glass,
            "o-",
            label=f"{name}: exponent {layer.glass_exponent.value:.1f}",
        )
    axis.set(xscale="log", yscale="log", xlabel="distance d", title=f"{unit} units")
    axis.set_xticks(distances, [f"{1000 * d:g}e-3" for d in distances])
    axis.minorticks_off()
    axis.legend()
axes[0].set_ylabel(r"$\Gamma^2$, what no Hessian explains")
plt.show()

print(results["ReLU"])
