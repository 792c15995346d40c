"""A small network, its data and its closure, for the tests of curvk.torch.SAM."""

from __future__ import annotations

import curvk.torch as ct
import torch
from torch import nn

SEED = 411


def net(dtype=torch.float32, seed=SEED):
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def batch(dtype=torch.float32, n=16, k=0):
    generator = torch.Generator().manual_seed(SEED + k)
    x = torch.randn(n, 4, generator=generator)
    return x.to(dtype), (x[:, :3] * x[:, 1:]).to(dtype)


def loss_of(model, n=16, k=0):
    x, y = batch(next(model.parameters()).dtype, n, k)
    return (model(x) - y).square().mean()


def closure_for(opt, model, k=0, seen=None):
    def closure():
        opt.zero_grad()
        loss = loss_of(model, k=k)
        loss.backward()
        if seen is not None:
            seen.append(loss.item())
        return loss

    return closure


def backward(model, k=0):
    loss = loss_of(model, k=k)
    loss.backward()
    return loss


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    a, b = ([x.detach() for x in (m.parameters() if isinstance(m, nn.Module) else m)] for m in (a, b))
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, limit):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x.detach().double(), y.detach().double(), rtol=limit, atol=limit)


def sgd_sam(model, **options):
    return ct.SAM(ct.SGD(model.parameters(), lr=0.1), rho=0.5, **options)
