"""What the tests of torch_alice share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Closure = Callable[[], Any]


def make_model(seed: int = 0, dtype: Any = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)


def batch(dtype: Any = torch.float32, n: int = 32) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=generator).to(dtype), torch.randn(n, 3, generator=generator).to(dtype)


def closure_of(model: nn.Module, optimizer: Any, dtype: Any = torch.float32) -> Closure:
    x, y = batch(dtype)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    return closure


def steps(model: nn.Module, optimizer: Any, n: int, **options: Any) -> list[float]:
    closure = closure_of(model, optimizer, next(model.parameters()).dtype)
    return [optimizer.step(closure, **options).item() for _ in range(n)]


def contents(model: nn.Module, optimizer: Any) -> list[bytes]:
    """All bytes that a step may write."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [s[k] for p in model.parameters() for s in [optimizer.state.get(p, {})] for k in sorted(s)]
    plain = (optimizer.t, optimizer.seed, optimizer.quick_steps, optimizer.compat)
    return [t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors] + [repr(plain).encode()]
