"""Train a torch model with curvk.torch.AdamW beside torch.optim.AdamW.

    pip install "curvk[torch]"; python examples/torch_training.py

curvk's optimizers are torch.optim.Optimizer subclasses: schedulers, closures and state dicts work as usual.
"""

import curvk.torch
import torch
from torch import nn


def train(make_optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = make_optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300)
    x = torch.rand(512, 2) * 2 - 1
    y = (x.norm(dim=1, keepdim=True) < 0.7).float()  # inside or outside a circle
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
    return loss.item(), torch.cat([p.detach().flatten() for p in model.parameters()])


ours, curvk_params = train(lambda params: curvk.torch.AdamW(params, lr=0.02, weight_decay=1e-3))
theirs, torch_params = train(lambda params: torch.optim.AdamW(params, lr=0.02, weight_decay=1e-3))
print(f"loss after 300 steps: curvk {ours:.5f}, torch {theirs:.5f}")
print(f"largest difference of a parameter: {(curvk_params - torch_params).abs().max():.1e}")
