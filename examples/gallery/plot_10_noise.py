"""
Noise that is the same everywhere
=================================

All randomness in curvk is one function of a seed, a draw, a name and an index. Nothing is stored and no state is
hidden: any part of it can be computed anywhere, at any time, on any number of threads and at every SIMD level.
"""

import curvk
import matplotlib.pyplot as plt
import numpy as np
from curvk.kernels import noise

word = noise.tensor_word("layer.weight")
whole = noise.fill(np.empty((200, 300), np.float32), seed=7, draw=3, tensor=word)

# %%
# The rows from 80 to 120 alone, from their place in the array, and the whole on other levels and thread counts:

part = noise.fill(
    np.empty((40, 300), np.float32), seed=7, draw=3, tensor=word, offset=80 * 300
)
print("a part alone:", np.array_equal(part, whole[80:120]))

before = curvk.get_simd()
for level in curvk.simd_levels():
    curvk.set_simd(level)
    for threads in (1, 2, 7):
        with curvk.threads(threads):
            again = noise.fill(
                np.empty((200, 300), np.float32), seed=7, draw=3, tensor=word
            )
        assert np.array_equal(again, whole)
    print(f"level {level}, 1, 2 and 7 threads: the same bits")
if curvk.simd_levels():
    curvk.set_simd(before)

# %%
# And it is normal: a million values beside the density. The largest of so many is about 4.9.

many = noise.fill(np.empty(10**6, np.float64), seed=7)
grid = np.linspace(-4.5, 4.5, 200)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
left.imshow(whole, cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
left.axhspan(79.5, 119.5, fill=False, ec="k", lw=1.5)
left.set(title="rows 80 to 120 can be had alone", xlabel="column", ylabel="row")
right.hist(many, bins=120, density=True, color="C0", alpha=0.5, label="10⁶ values")
right.plot(
    grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), "k", lw=1, label="normal density"
)
right.set(
    yscale="log",
    xlabel="value",
    title=f"largest magnitude {abs(many).max():.2f}",
    ylim=(1e-6, 1),
)
right.legend()
plt.show()
