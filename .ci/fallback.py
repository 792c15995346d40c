"""What an install without a compiler must do: say so once, and give the same results by the Numba twins."""

import warnings
from collections.abc import Callable

import curvk
import numpy as np
from curvk.kernels.optim import adam_step

assert curvk.get_backend() == "numba"
assert curvk.simd_levels() == []
p = np.ones(3, np.float32)
g = np.array([1, -2, 0], np.float32)
m, v = np.zeros_like(p), np.zeros_like(p)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    adam_step(p, g, m, v, step=1, lr=0.5)
    adam_step(p, g, m, v, step=2, lr=0.5)
told = [w for w in caught if w.category is RuntimeWarning and "without compiled kernels" in str(w.message)]
assert len(told) == 1, [str(w.message) for w in caught]
assert "pip install" in str(told[0].message)
assert p[2] == 1.0, p
assert p[0] < 0.5, p


def refused(error: type[Exception], action: Callable[[], object]) -> bool:
    try:
        action()
    except error as refusal:
        return "pip install" in str(refusal)
    return False


assert refused(ValueError, lambda: curvk.use_backend("cpp"))
assert refused(RuntimeError, lambda: curvk.capi)
print("the pure-Python install says what it is, and steps")
