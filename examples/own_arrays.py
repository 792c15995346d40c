"""Step your own arrays: one call, a plan for many arrays, and the same kernel through its C interface.

python examples/own_arrays.py
"""

import numpy as np
from curvk.capi import ffi, lib
from curvk.kernels.optim import AdamPlan, adam_step, global_norm

rng = np.random.default_rng(0)
shapes = [(1000,), (64, 32), (3, 5, 7)]
start = [rng.standard_normal(shape, np.float32) for shape in shapes]
grads = [rng.standard_normal(shape, np.float32) for shape in shapes]
print(f"norm of all gradients: {global_norm(grads):.4f}")


def fresh():
    """Parameters and the two moments, which start at zero."""
    return [p.copy() for p in start], [np.zeros_like(p) for p in start], [np.zeros_like(p) for p in start]


# 1. One call per array.
params, m, v = fresh()
for step in range(1, 11):
    for arrays in zip(params, grads, m, v, strict=True):
        adam_step(*arrays, step=step, lr=1e-2)

# 2. A plan: arrays are checked once, and a step is one call for all of them.
planned, m, v = fresh()
plan = AdamPlan(planned, grads, m, v)
for step in range(1, 11):
    plan.step(step=step, lr=1e-2)

# 3. The C function, here through cffi; csrc/include/curvk/optim.h declares it.
from_c, m, v = fresh()
for step in range(1, 11):
    for p, g, m1, v1 in zip(from_c, grads, m, v, strict=True):
        pointers = [ffi.from_buffer("float[]", a) for a in (p, g, m1, v1)]
        absent = [ffi.NULL, ffi.NULL]  # no maximum of v, no other origin
        status = lib.curvk_adam_step_f32(*pointers, *absent, p.size, step, 1e-2, 0.9, 0.999, 1e-8, 0.0, 0, 0, 1.0)
        assert status == 0, status

for name, other in (("plan", planned), ("C function", from_c)):
    same = all(np.array_equal(a, b) for a, b in zip(params, other, strict=True))
    print(f"{name}: {'the same bits as one call per array' if same else 'DIFFERENT'}")
