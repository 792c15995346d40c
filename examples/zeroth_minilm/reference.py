"""MeZO as its authors wrote it, op by op in torch, and LeZO the same way: what curvk's time is compared with.

The sequence is that of princeton-nlp/MeZO, large_models/trainer.py (`zo_perturb_parameters`, `zo_update`): torch's
generator is seeded anew for each of four passes, and each pass makes the noise of a tensor, scales it and adds it.
LeZO's authors have published no code; dropping a layer here is leaving its tensors out of the four passes.
"""

import time

import numpy as np
import torch

UNDECAYED = ("bias", "layer_norm", "layernorm")


class Reference:
    """A zeroth-order optimizer that also says where its time went.

    Args:
        model: a module in float32.
        lr, eps, decay: as in the paper; biases and norms do not decay, nor does the reference skip a decay of 0.
        layers: modules of which `drop` are left out in each step.
        drop: how many.
        seed: of the steps' seeds and the choice of layers.

    Attributes:
        noise_s, other_s: seconds of the last step in torch.normal, and in the passes' other operations.
    """

    def __init__(self, model, *, lr, eps=1e-3, decay=0.0, layers=(), drop=0, seed=0):
        self.model, self.lr, self.eps, self.decay = model, lr, eps, decay
        self.layers, self.drop = list(layers), drop
        self.rng = np.random.default_rng(seed)
        self.noise_s = self.other_s = 0.0

    @torch.no_grad()
    def step(self, closure):
        self.noise_s = self.other_s = 0.0
        seed = int(self.rng.integers(1_000_000_000))
        dropped = self.rng.choice(len(self.layers), self.drop, replace=False)
        out = {id(p) for i in dropped for p in self.layers[i].parameters()}
        params = [p for p in self.model.parameters() if id(p) not in out]

        self.perturb(params, seed, 1)
        loss = float(closure())
        self.perturb(params, seed, -2)
        g = (loss - float(closure())) / (2 * self.eps)
        self.perturb(params, seed, 1)
        self.update(params, seed, g)
        return loss

    def perturb(self, params, seed, scale):
        for p, z in self.noise(params, seed):
            p.data = p.data + scale * z * self.eps

    def update(self, params, seed, g):
        decays = {id(p): not any(part in n for part in UNDECAYED) for n, p in self.model.named_parameters()}
        for p, z in self.noise(params, seed):
            p.data = p.data - self.lr * (g * z + self.decay * p.data if decays[id(p)] else g * z)

    def noise(self, params, seed):
        """Each tensor with its noise; what the caller does with them counts as other work."""
        torch.manual_seed(seed)
        for p in params:
            start = time.perf_counter()
            z = torch.normal(mean=0, std=1, size=p.shape, dtype=p.dtype)
            made = time.perf_counter()
            yield p, z
            self.noise_s += made - start
            self.other_s += time.perf_counter() - made
