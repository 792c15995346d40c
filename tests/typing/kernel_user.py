"""Single calls on one's own arrays. Lines marked `type: ignore` are a user's mistakes."""

import numpy as np
from curvk.kernels import gram, half, noise, sweep
from curvk.kernels.optim import AdamPlan, adam_step, global_norm

p, g, m, v = (np.ones(3, np.float32) for _ in range(4))
adam_step(p, g, m, v, step=1, lr=0.5)
adam_step(p, g, m, v, lr=0.5)  # type: ignore[call-arg]
adam_step(p, g, m, v, step=1, lr="0.5")  # type: ignore[arg-type]
adam_step(p, g, m, step=1)  # type: ignore[call-arg]

plan = AdamPlan([p], [g], [m], [v])
plan.step(step=2, lr=0.5)
plan.step(2, lr=0.5)  # type: ignore[call-arg]
norm: float = global_norm([g])
text: str = global_norm([g])  # type: ignore[assignment]

codes: sweep.Codes = sweep.quantize(p)
wide = sweep.dequantize(codes)
sweep.quantize(p, signed="yes")  # type: ignore[arg-type]
half.from_float32(p, "bf16")
half.from_float32(p, "bfloat16")  # type: ignore[arg-type]

centers = gram.Centers(np.eye(3))
products = gram.matvec(np.zeros((1, 3)), centers, np.ones(3), bandwidth=1.0)
gram.matvec(np.zeros((1, 3)))  # type: ignore[call-arg]
rows: str = len(centers)  # type: ignore[assignment]

noise.fill(p, seed=1, draw=0, tensor=noise.tensor_word("w", "probe"))
noise.fill(p, seed="one", draw=0, tensor=0)  # type: ignore[arg-type]
