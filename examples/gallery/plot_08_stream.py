"""
Mistakes on a stream, with a budget
===================================

FORKS learns rows as they come, with a kernel and a fixed number of support vectors, and predicts each row before it
learns it. Beside it the perceptron that keeps every row it got wrong, and one that throws a random one away when its
budget is full.
"""

import matplotlib.pyplot as plt
import numpy as np
from curvk.online import FORKSClassifier, KernelPerceptronClassifier, RBPClassifier

rng = np.random.default_rng(0)
rows = 10_000
x = rng.uniform(-1, 1, (rows, 2))
y = (np.sin(6 * np.hypot(x[:, 0], x[:, 1])) > 0).astype(int)  # a ring
y ^= rng.random(rows) < 0.05  # wrong labels: nobody can get below 5 % of mistakes

learners = {
    "perceptron, no budget": KernelPerceptronClassifier(random_state=0),
    "perceptron, budget 200": RBPClassifier(budget=200, random_state=0),
    "FORKS, budget 20": FORKSClassifier(budget=20, random_state=0),
    "FORKS, budget 100": FORKSClassifier(budget=100, random_state=0),
}

# %%
# ``progressive`` returns what each row was predicted as, and the number of mistakes up to it.

figure, axis = plt.subplots(figsize=(7, 4))
window = 1000
for name, learner in learners.items():
    _, mistakes = learner.progressive(x, y)
    rate = (mistakes[window:] - mistakes[:-window]) / window
    axis.plot(
        np.arange(window, rows), 100 * rate, label=f"{name}: {mistakes[-1]:,} mistakes"
    )
axis.axhline(5, color="0.6", lw=1, ls=":")
axis.set(
    xlabel="row",
    ylabel="mistakes in the last 1,000 rows, %",
    ylim=(0, 70),
    title="a stream of 10,000 rows",
)
axis.legend(loc="upper right")
plt.show()

# %%
# A perceptron moves by a whole step for each wrong label, and each support vector that it throws away takes with it
# what it had learned there.
