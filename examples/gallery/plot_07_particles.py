"""
Particles that stand for a density
==================================

A mixture of four normal densities, sampled by SVGD, which is given the gradient of its logarithm, and by SV-CMA-ES,
which is given values alone.
"""

import matplotlib.pyplot as plt
import numpy as np
from curvk.stein import SVCMAES, SVGD, mmd2
from curvk.stein.problems import four_modes

density = four_modes()
truth = density.sample(1000)
start = np.random.default_rng(0).uniform(-6, 6, (100, 2))

samplers = {
    "SVGD": (SVGD(density.score, start, lr=0.1), [0, 20, 200]),
    "SV-CMA-ES": (
        SVCMAES(density.log_density, start, sigma0=0.5, popsize=4),
        [0, 10, 100],
    ),
}

# %%
# `run` goes on where it stopped. The distance to the truth is the squared maximum mean discrepancy to 1,000 points
# drawn from the mixture itself.

side = np.linspace(-6.5, 6.5, 160)
across, up = np.meshgrid(side, side)
level = np.exp(
    density.log_density(np.column_stack([across.ravel(), up.ravel()]))
).reshape(across.shape)

figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), sharex=True, sharey=True)
for row, (name, (sampler, stops)) in zip(axes, samplers.items(), strict=True):
    done = 0
    for axis, stop in zip(row, stops, strict=True):
        particles = sampler.run(stop - done)
        done = stop
        axis.contourf(across, up, level, levels=8, cmap="Greys", alpha=0.6)
        axis.plot(*particles.T, "o", ms=3.5, mec="w", mew=0.3)
        distance = mmd2(particles, truth, bandwidth=2.0)
        axis.set_title(f"{name}, {stop} steps\ndistance {distance:.4f}", fontsize=10)
        axis.set(xticks=[], yticks=[], aspect="equal")
plt.show()
