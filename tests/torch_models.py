"""What the tests of torch share."""

from __future__ import annotations

import copy

import pytest
import torch

CLASSES = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
CASES = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    ("SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"weight_decay": 0.1, "maximize": True}),
    ("Adam", {"weight_decay": 0.1, "amsgrad": True, "betas": (0.5, 0.9), "eps": 1e-3}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "maximize": True, "weight_decay": 0.3}),
]
SHAPES = [(7,), (3, 5), (), (0,), (2, 3, 4, 5), (1000,)]
# Steps of 0.05 on values of order one: the error of 25 steps stays below this many units of the storage's spacing at 4.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1.5e-1,
    torch.complex64: 2e-5,
    torch.complex128: 1e-12,
}
WIDE = {torch.complex64: torch.complex128, torch.complex128: torch.complex128}


def made(shapes, dtype=torch.float64, seed=0):
    """Parameters, and a function that gives the k-th gradient of each: same numbers for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    wide = WIDE.get(dtype, torch.float64)
    values = [torch.randn(s, generator=generator, dtype=wide) for s in shapes]

    def grads(k):
        generator = torch.Generator().manual_seed(1000 * seed + k + 1)
        return [torch.randn(s, generator=generator, dtype=wide).to(dtype) for s in shapes]

    return [torch.nn.Parameter(v.to(dtype)) for v in values], grads


def close(got, want, dtype=None):
    for a, b in zip(got, want, strict=True):
        limit = TOLERANCE[dtype or a.dtype]
        torch.testing.assert_close(a.detach().to(b.dtype), b.detach(), rtol=limit, atol=limit)


def run(optimizer, params, grads, start, stop):
    for k in range(start, stop):
        for p, g in zip(params, grads(k), strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()


def backward(model, seed=0):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss


def shared(optimizer, params):
    optimizer.state[params[0]]["exp_avg"].share_memory_()


def refused(optimizer, error, match):
    """The step raises, and no parameter, state or count has changed."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    cpu = [p for p in params if p.device.type == "cpu"]
    before = [p.detach().clone() for p in cpu]
    states = copy.deepcopy({i: dict(optimizer.state[p]) for i, p in enumerate(params) if p in optimizer.state})
    with pytest.raises(error, match=match):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(cpu, before, strict=True))
    for i, p in enumerate(params):
        assert optimizer.state.get(p, {}).keys() == states.get(i, {}).keys()
        assert all(torch.equal(optimizer.state[p][k], v) for k, v in states.get(i, {}).items())
