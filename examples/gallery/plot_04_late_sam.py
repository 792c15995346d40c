"""
Sharpness-aware steps, late
===========================

SAM takes its gradient a small way up the loss, at twice the gradients. Late SAM does so for the last eighth of a run.
Here a third of the training labels are wrong, so that fitting them all is a mistake.
"""

import curvk
import matplotlib.pyplot as plt
import numpy as np

import digits

x, y, x_test, y_test = digits.load(label_noise=0.35)
epochs, size, every = 40, 50, 24
total = epochs * (len(x) // size)


def run(start, seed):
    """Test accuracies over the run."""
    params = digits.init(64, 64, 10, seed=seed)
    base = curvk.optim.SGD(params, lr=0.1, momentum=0.9)
    optimizer = curvk.optim.SAM(base, rho=0.2, start=start)
    found = []
    for step, batch in enumerate(digits.batches(len(x), size, epochs, seed=seed)):
        if step % every == 0:
            found.append(digits.accuracy(params, x_test, y_test))
        optimizer.step(lambda batch=batch: digits.gradients(params, x[batch], y[batch]))
    return [*found, digits.accuracy(params, x_test, y_test)]


arms = {
    "SGD alone": total,
    "SAM for the last eighth": int(0.875 * total),
    "SAM throughout": 0,
}
results = {
    name: np.array([run(start, seed) for seed in range(3)]).T
    for name, start in arms.items()
}

# %%
# Lines are means of three seeds, bands from the least to the largest.

figure, axis = plt.subplots(figsize=(7, 4))
steps = np.arange(total // every + 1) * every
for (name, found), start in zip(results.items(), arms.values(), strict=True):
    gradients = 1 + (total - start) / total
    label = f"{name}, {gradients:.3g} times the gradients: {found[-1].mean():.1%}"
    (line,) = axis.plot(steps, found.mean(axis=1), label=label)
    axis.fill_between(
        steps,
        found.min(axis=1),
        found.max(axis=1),
        color=line.get_color(),
        alpha=0.15,
        lw=0,
    )
axis.axvline(0.875 * total, color="0.6", lw=1, ls=":")
axis.set(
    xlabel="step",
    ylabel="test accuracy",
    title="Digits with a third of the labels wrong",
    ylim=(0.5, 1),
)
axis.legend(loc="lower left", title="test accuracy at the end")
plt.show()

# %%
# With so many wrong labels a run gets worse the longer it fits them. SAM in every step resists that; in the last eighth
# it takes back a little of what was lost, for an eighth more gradients.
