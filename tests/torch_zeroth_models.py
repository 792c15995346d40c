"""What the tests of torch_zeroth share."""

from __future__ import annotations

import torch
from torch import nn
from zeroth_models import GPT

SEED = 4711
IDS = torch.arange(40).reshape(5, 8) * 7 % 31


def gpt(dtype=torch.float32, **options):
    torch.manual_seed(SEED)
    return GPT(**options).to(dtype)


def language(model, ids=IDS):
    """A closure: the loss of predicting the next token."""
    return lambda: nn.functional.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())


def trained(kind, model, steps, closure=None, **options):
    optimizer = kind(model, **{"lr": 1e-3, "seed": SEED, **options})
    losses = [optimizer.step(closure or language(model)) for _ in range(steps)]
    return optimizer, losses


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def assert_same(a, b):
    a, b = (x if isinstance(x, dict) else weights(x) for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
