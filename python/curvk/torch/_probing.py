"""Gradients of one batch taken at several points: the same dropout masks, and statistics that do not notice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, local
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import register_module_forward_pre_hook


class Randomness:
    """The states of torch's generators where this is made: the CPU's, and those of the CUDA devices of some tensors.

    No device is waited for: the states of CUDA generators are numbers in the host's memory.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._devices = sorted({p.device.index for p in tensors if p.is_cuda})
        self._states = self._now()

    def _now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]

    def rewind(self) -> None:
        """Lets what follows draw the numbers that were drawn since."""
        own, *others = self._states
        torch.set_rng_state(own)
        for device, state in zip(self._devices, others, strict=True):
            torch.cuda.set_rng_state(state, device)

    def untouched(self) -> bool:
        """Whether nothing has been drawn since, or since `rewind`."""
        return all(map(torch.equal, self._states, self._now()))


class _Freezing(local):
    """What the calling thread has frozen in each `frozen_statistics` that it is in."""

    def __init__(self) -> None:
        self.contexts: list[_Frozen] = []


class _Frozen:
    """Normalisation layers whose statistics stay."""

    def __init__(self) -> None:
        self.layers: list[tuple[_NormBase, dict[str, Any]]] = []
        self.seen: set[int] = set()

    def add(self, module: nn.Module) -> None:
        if id(module) in self.seen:
            return
        for part in module.modules():  # also those that a compiled parent calls without hooks
            if id(part) in self.seen:
                continue
            self.seen.add(id(part))
            if not isinstance(part, _NormBase) or isinstance(part, torch.jit.ScriptModule):
                continue
            taken: dict[str, Any] = {}
            if isinstance(part, _InstanceNorm):  # which would update its buffers whatever the flag says
                if not part.training:
                    self.seen.discard(id(part))  # it may train later on
                    continue
                taken = {name: part._buffers[name] for name in ("running_mean", "running_var")}
            if part.track_running_stats:
                part.track_running_stats = False
                part._buffers.update(dict.fromkeys(taken))
                self.layers.append((part, taken))

    def release(self) -> None:
        for part, taken in self.layers:
            part.track_running_stats = True
            part._buffers.update(taken)


_freezing = _Freezing()
_inside = 0  # contexts that are open, in all threads
_handle: Any = None
_lock = Lock()
_KEY = -1  # of the hook; torch.compile would take a hook with another key for another model


def _freeze(module: nn.Module, args: Any) -> None:
    """A hook of every module; the other threads' calls pass it by."""
    for context in _freezing.contexts:
        context.add(module)


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """In it, normalisation layers in training mode use the batch's statistics and leave the running ones alone.

    Holds for batch and instance normalisation of every module that this thread calls meanwhile. Scripted and traced
    modules cannot be reached.
    """
    global _inside, _handle
    frozen = _Frozen()
    with _lock:
        _inside += 1
        if _handle is None:
            _handle = register_module_forward_pre_hook(_freeze)
            hooks = _handle.hooks_dict_ref()
            hooks[_KEY] = hooks.pop(_handle.id)
            _handle.id = _KEY
    _freezing.contexts.append(frozen)
    try:
        yield
    finally:
        _freezing.contexts.remove(frozen)
        frozen.release()
        with _lock:
            _inside -= 1
            if not _inside:
                _handle.remove()
                _handle = None
