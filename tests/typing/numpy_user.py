"""NumPy arrays, optimizers and the settings of the library. Lines marked `type: ignore` are a user's mistakes."""

import curvk
import numpy as np
from curvk.curvature import GlassProbe, GlassResult
from curvk.optim import SAM, AdamW, LossAdaptiveLR
from curvk.sketch import FrequentDirections
from curvk.stein import SVGD
from curvk.zeroth import MeZO, ZOLog

weights = np.zeros((8, 1), np.float32)
optimizer = AdamW([weights], lr=1e-3, betas=(0.9, 0.99), max_grad_norm=1.0)
stepped: bool = optimizer.step([np.ones_like(weights)], loss=0.5)
optimizer.step([None])
groups: list[dict[str, object]] = optimizer.param_groups
optimizer.save("state.npz")

AdamW([weights], lr="fast")  # type: ignore[arg-type]
AdamW([weights], learning_rate=1e-3)  # type: ignore[call-arg]
AdamW([weights], betas=0.9)  # type: ignore[arg-type]
optimizer.step()  # type: ignore[call-arg]
print(optimizer.steps)  # type: ignore[attr-defined]
norm: str = optimizer.step([None])  # type: ignore[assignment]

sam = SAM(optimizer, rho=0.05, start=875)
SAM(weights)  # type: ignore[arg-type]
SAM(optimizer, start="late")  # type: ignore[arg-type]

rule = LossAdaptiveLR(optimizer, patience=10)
rule.report_loss(0.5)
LossAdaptiveLR(optimizer, 10)  # type: ignore[call-arg]

with curvk.threads(2):
    level: str = curvk.get_simd()
curvk.set_num_threads(None)
curvk.set_num_threads("all")  # type: ignore[arg-type]
curvk.set_simd(3)  # type: ignore[arg-type]
threads: str = curvk.get_num_threads()  # type: ignore[assignment]

mezo = MeZO({"w": weights}, lr=1e-6)
loss: float = mezo.step(lambda p: float(np.square(p["w"]).sum()))
log: ZOLog = mezo.log
MeZO({"w": weights})  # type: ignore[call-arg]
mezo.step(0.5)  # type: ignore[arg-type]

result: GlassResult = GlassProbe(lambda x: x**3, weights, sigma=1e-3).run(samples=4, distances=[1e-3])
rho: float = result.layers["x"].rho
GlassProbe(lambda x: x**3, weights)  # type: ignore[call-arg]

sketch = FrequentDirections(4, 8)
sketch.update(np.ones((3, 8)))
bound: float = sketch.delta
FrequentDirections(4.0, 8)  # type: ignore[arg-type]

particles = SVGD(lambda x: -x, np.zeros((5, 2)), lr=0.1).run(10)
shape: tuple[int, ...] = particles.shape
SVGD(lambda x: -x, np.zeros((5, 2)), repulsion="none")  # type: ignore[arg-type]
