"""Gradients of one batch taken at several points: the same dropout masks, and statistics that do not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
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

    Holds for batch and instance normalisation of every module that this thread calls meanwhile. Scripted and traced
    modules cannot be reached.
    """
    frozen: list[_NormBase] = []
    buffers: list[dict[str, Any]] = []  # of instance normalisation, which would update them whatever its flag says
    seen: set[int] = set()
    thread = get_ident()

    def freeze(module: nn.Module, args: Any) -> None:
        if id(module) in seen or get_ident() != thread:  # the hook is all threads'
            return
        for part in module.modules():  # also those that a compiled parent calls without hooks
            if id(part) in seen:
                continue
            seen.add(id(part))
            if not isinstance(part, _NormBase) or isinstance(part, torch.jit.ScriptModule):
                continue
            taken: dict[str, Any] = {}
            if isinstance(part, _InstanceNorm):
                if not part.training:
                    seen.discard(id(part))  # it may train later on
                    continue
                taken = {name: part._buffers[name] for name in ("running_mean", "running_var")}
            if part.track_running_stats:
                part.track_running_stats = False
                part._buffers.update(dict.fromkeys(taken))
                frozen.append(part)
                buffers.append(taken)

    handle = register_module_forward_pre_hook(freeze)
    try:
        yield
    finally:
        handle.remove()
        for part, taken in zip(frozen, buffers, strict=True):
            part.track_running_stats = True
            part._buffers.update(taken)
