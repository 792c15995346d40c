"""torch modules. Lines marked `type: ignore` are a user's mistakes."""

import curvk.torch
import torch

model = torch.nn.Linear(8, 1)
optimizer = curvk.torch.AdamW(model.parameters(), lr=1e-3, state_bits=8)
base: torch.optim.Optimizer = optimizer
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
optimizer.step()
curvk.torch.AdamW(model.parameters(), lr="fast")  # type: ignore[arg-type]
curvk.torch.AdamW(model.parameters(), learning_rate=1e-3)  # type: ignore[call-arg]
curvk.torch.AdamW(model)  # type: ignore[arg-type]


def closure() -> torch.Tensor:
    loss: torch.Tensor = model(torch.ones(4, 8)).square().mean()
    return loss


sam = curvk.torch.SAM(optimizer, rho=0.05, start=875)
sam.step(closure)
curvk.torch.SAM(torch.optim.SGD(model.parameters()))  # type: ignore[arg-type]

mezo = curvk.torch.LeZO(model, lr=1e-6, drop=0.5)
mezo.step(closure)
mezo.log.save("run.npz")
curvk.torch.MeZO(model.parameters(), lr=1e-6)  # type: ignore[arg-type]
curvk.torch.MeZO(model)  # type: ignore[call-arg]

probe = curvk.torch.GlassProbe(model, closure, sigma=1e-3)
print(probe.run(samples=4))
curvk.torch.GlassProbe(model, sigma=1e-3)  # type: ignore[call-arg]
curvk.torch.Adamw(model.parameters())  # type: ignore[attr-defined]
