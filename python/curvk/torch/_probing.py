"""Gradients of one batch taken at several points: the same dropout masks, and statistics that do not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook


class Randomness:
    """The state of torch's CPU generator where this is made; `rewind` puts it back."""

    def __init__(self) -> None:
        self._state = torch.get_rng_state()

    def rewind(self) -> None:
        """Lets what follows draw the numbers that were drawn since."""
        torch.set_rng_state(self._state)


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """In it, normalisation layers in training mode use the batch's statistics and leave the running ones alone.

    Holds for batch and instance normalisation of every module that is called meanwhile, in any thread.
    """
    frozen: list[_NormBase] = []
    seen: set[int] = set()

    def freeze(module: nn.Module, args: Any) -> None:
        if id(module) in seen:
            return
        for part in module.modules():  # also those that a compiled or scripted parent calls without hooks
            seen.add(id(part))
            if isinstance(part, _NormBase) and part.training and part.track_running_stats:
                part.track_running_stats = False
                frozen.append(part)

    handle = register_module_forward_pre_hook(freeze)
    try:
        yield
    finally:
        handle.remove()
        for part in frozen:
            part.track_running_stats = True
