"""Parameters, settings and bits of torch optimizers in fewer bytes; for the tests of curvk.torch."""

from __future__ import annotations

import io

import torch

BASES = [("SGD", {}), ("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {"weight_decay": 0.1}), ("AdamZ", {})]
STORAGES = [
    {"state_bits": 16},
    {"state_bits": 8},
    {"state_bits": 8, "state_format": "bitsandbytes"},
    {"rounding": "stochastic", "seed": 2**64 - 3},
    {"rounding": "kahan"},
    {"master": "split16"},
    {"ema": 0.9},
    {"zero_grad": True},
    {"state_bits": 8, "rounding": "stochastic", "ema": 0.5, "zero_grad": True},
    {"state_bits": 16, "master": "split16", "ema": 0.5},
]
KINDS = [(1, (1,)), (1, (1,)), (12, (3, 4)), (5, (5,))]
SHAPES = [(7,), (3, 50), (), (0,), (2, 3, 4, 5), (1000,)]


def made(dtype=torch.bfloat16, shapes=SHAPES, seed=0):
    """Parameters, one of them laid out as channels last, and a function that sets the k-th gradients."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    for p in params:
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)

    def set_grads(k, params=params):
        generator = torch.Generator().manual_seed(1000 * seed + k + 1)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(torch.bfloat16).to(p.dtype)

    return params, set_grads


def run(optimizer, params, set_grads, start, stop):
    for k in range(start, stop):
        set_grads(k, params)
        optimizer.step()


def bits(tensors):
    """Their bytes in C order."""
    return [t.detach().contiguous().flatten().view(torch.uint8).tolist() if t.numel() else [] for t in tensors]


def state_bits(optimizer, params):
    return [{k: (v.dtype, v.shape, bits([v])) for k, v in optimizer.state.get(p, {}).items()} for p in params]


def saved(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file)


def same(params, twins):
    assert bits(params) == bits(twins)


def quadratic(params, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = sum((p.float() - 0.3).square().sum() for p in params)
        loss.backward()
        return loss

    return closure
