"""The optimizers of curvk.torch by name, a model that all of them can train, and float64 trajectories to hold them to.

The matrix follows torch's own plan for its optimizers (configurations, dtypes, schedulers, groups, states, the rest of
the optimizer's interface) in cases of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import curvk.torch as ct
import torch
from torch import nn

PEERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
FUSED = ["SGD", "Adam", "AdamW", "AdamZ", "Lion"]
SAMS = [f"SAM({name})" for name in FUSED]
GRADIENT = [*FUSED, *SAMS, "Alice"]
ZEROTH = {
    "MeZO": {},
    "LeZO": {"drop": 0.5},
    "AdaLeZO": {"fraction": 0.5},
    "SparseMeZO": {"keep": 0.5},
    "LOZO": {"rank": 1, "interval": 3},
    "FZOO": {"n_probes": 2},
    "ES": {"n_probes": 2},
}
KINDS = [*GRADIENT, *ZEROTH]
OWN: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "AdamZ": {"patience": 1000}, "Alice": {"sigma": 1e-2}}
LR = 0.02

# Per-element bounds, relative and absolute, after 12 steps of at most 0.1 on values of order 1. A step rounds a
# parameter once, by half a spacing at 4 (2^-22 in float32, 2^-8 in float16, 2^-5 in bfloat16); the moments add less.
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 12 * 2**-9, torch.bfloat16: 12 * 2**-6}


def base_name(kind: str) -> str:
    """`Adam` for `SAM(Adam)`."""
    return kind[4:-1] if kind.startswith("SAM(") else kind


def make(kind: str, model: nn.Module, params: Any = None, **options: Any) -> Any:
    """An optimizer of this name for the model, with the options over those that the matrix gives the class."""
    if kind in ZEROTH:
        return getattr(ct, kind)(model, **({"lr": LR} | ZEROTH[kind] | options))
    name = base_name(kind)
    options = {"lr": LR} | OWN.get(name, {}) | options
    optimizer = getattr(ct, name)(model.parameters() if params is None else params, **options)
    return ct.SAM(optimizer) if kind in SAMS else optimizer


def net(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Four blocks alike, which layer-wise methods need, and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)]
        return nn.Sequential(*blocks, nn.Linear(4, 2)).to(dtype)


def loss_of(
    model: Callable[[torch.Tensor], torch.Tensor], k: int = 0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The loss on the k-th batch, which is the same for every dtype before rounding."""
    dtype = dtype or next(model.parameters()).dtype  # type: ignore[attr-defined]
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(100 + k), dtype=torch.float64)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2:].sum(1)], dim=1)
    return (model(x.to(dtype)) - y.to(dtype)).square().mean()


def closure_for(kind: str, optimizer: Any, model: nn.Module, k: int = 0) -> Callable[[], torch.Tensor]:
    """The closure that this kind of optimizer takes."""

    def closure() -> torch.Tensor:
        if kind in ZEROTH:
            return loss_of(model, k)
        optimizer.zero_grad()
        loss = loss_of(model, k)
        loss.backward()
        return loss

    return closure


def train(kind: str, optimizer: Any, model: nn.Module, steps: range) -> list[float]:
    return [torch.as_tensor(optimizer.step(closure_for(kind, optimizer, model, k))).item() for k in steps]


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: Any, b: Any) -> bool:
    """Whether two trees of tensors and plain values are the same to the bit."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b)


def close(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    """Holds parameters to float64 ones, by the bound of their dtype."""
    for a, b in zip(got, want, strict=True):
        bound = BOUND[a.dtype]
        torch.testing.assert_close(a.detach().double(), b.detach(), rtol=bound, atol=bound)
