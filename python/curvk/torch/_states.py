"""The states of parameters as a step makes, finds and counts them.

States that an optimizer makes are views of one buffer per key, and step counts of one vector (`Steps`): what autograd
must be told, or counted, for a thousand parameters is one call.
"""

from __future__ import annotations

import math
from collections.abc import Container
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._arrays import Column
from ._devices import elsewhere, strides_as

if TYPE_CHECKING:
    from ._storage import Storage

State = dict[str, Any]
Wanted = tuple[Tensor, str, torch.dtype, tuple[int, ...], Tensor | None]
"""A state to make: its parameter, key, dtype, shape, and its first value; None for zeros."""


def number(x: Any) -> Any:
    """A hyper-parameter or a loss as a Python number; both may be tensors of one element."""
    if not isinstance(x, Tensor):
        return x
    if x.numel() != 1:
        raise ValueError(f"got a tensor of shape {tuple(x.shape)}, needs a number or a tensor of one element")
    return x.item()


def state_dtype(p: Tensor) -> torch.dtype:
    return torch.float32 if p.dtype in (torch.bfloat16, torch.float16) else p.dtype


def new_states(wanted: list[Wanted]) -> list[Tensor]:
    """The states: zeros, or a copy of the value, beside their parameter; those of its shape are laid out as it is.

    States of one key, dtype and device are views of one buffer, so that they share its version counter; each starts a
    cache line.
    """
    sets: dict[tuple[str, torch.dtype, torch.device], list[int]] = {}
    for row, (p, key, dtype, _, _) in enumerate(wanted):
        sets.setdefault((key, dtype, p.device), []).append(row)
    states = [torch.Tensor()] * len(wanted)
    with torch.inference_mode(False), torch.no_grad():
        for (_, dtype, device), rows in sets.items():
            line = 64 // dtype.itemsize
            starts = [0]
            for row in rows:
                starts.append(starts[-1] + -(-math.prod(wanted[row][3]) // line) * line)
            buffer = torch.zeros(starts[-1], dtype=dtype, device=device)
            for row, start in zip(rows, starts, strict=False):
                p, _, _, shape, value = wanted[row]
                states[row] = buffer.as_strided(shape, strides_as(p, shape), start)
                if value is not None:
                    states[row].copy_(value)
    return states


class _Identity(TorchFunctionMode):
    """In its context a comparison of two tensors is an error."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise LookupError


def _same(found: Any, known: Any) -> bool:
    """True if containers hold the same tensors.

    Their == looks for identity before it compares, at a tenth of the cost of a loop; what it would compare differs.
    """
    try:
        with _Identity():
            return bool(found == known)
    except Exception:  # also what foreign objects beside the tensors may raise
        return False


class Steps:
    """The step counts of parameters that step together: one float32 vector, its 0-dim views the `step` states.

    So counting a thousand parameters is one addition. It lies on the CPU wherever the parameters do, so that no step
    waits for a device to be counted. A `step` that somebody replaced is noticed by its identity. `key` names another
    count.
    """

    def __init__(self, states: list[State], key: str = "step") -> None:
        self.key = key
        with torch.inference_mode(False), torch.no_grad():
            self.vector = torch.tensor([float(s[key]) for s in states], dtype=torch.float32, device="cpu")
            self.views = list(self.vector.unbind())
        for state, view in zip(states, self.views, strict=True):
            state[key] = view

    def belong_to(self, states: list[State]) -> bool:
        return len(states) == len(self.views) and all(map(is_, [s[self.key] for s in states], self.views))

    def count(self, group: dict[str, Any]) -> None:
        """Counts a step of the group's."""
        self.vector.add_(1)

    def counts(self) -> list[float]:
        """The counts, or only the one that all have."""
        low, high = map(float, torch.aminmax(self.vector))
        return [low] if low == high else self.vector.tolist()


class Clock(Steps):
    """The step count and lr of parameters that step together, on their device, so that a CUDA graph can step on.

    `at` is what the kernels of curvk/capture.h read: [number of the step, lr] as float64. `vector` is the truth, `at`
    follows it; without states, as of SGD, nothing is counted.

    Args:
        states: those that are counted.
        counts: their counts, all the same.
        device: where they lie.
    """

    def __init__(self, states: list[State], counts: list[float], device: torch.device) -> None:
        self.key = "step"
        with torch.inference_mode(False), torch.no_grad():
            self.vector = torch.tensor(counts, dtype=torch.float32, device=device)
            self.views = list(self.vector.unbind())
            self.at = torch.zeros(2, dtype=torch.float64, device=device)
            self._number, self._lr, self._first = self.at[:1], self.at[1:], self.vector[:1]
        for state, view in zip(states, self.views, strict=True):
            state["step"] = view

    @torch.no_grad()
    def count(self, group: dict[str, Any]) -> None:
        """Counts a step and takes over the group's lr, by operations on the device."""
        if self.views:
            self.vector.add_(1)
            self._number.copy_(self._first)
        lr = group["lr"]
        if elsewhere(lr):
            self._lr.copy_(lr.reshape(1))
        else:
            self._lr.fill_(float(number(lr)))

    def counts(self) -> list[float]:
        """One number for all calls: the count is the device's to know."""
        return [0.0]


def with_own_memory(state: Any, keep: Container[int] = ()) -> Any:
    """The state with clones of its views, for what leaves the optimizer; views of the bases `keep`, by id, stay."""
    if not isinstance(state, dict):
        return state
    return {
        k: v.clone() if isinstance(v, Tensor) and v._base is not None and id(v._base) not in keep else v
        for k, v in state.items()
    }


class Found:
    """What a step found for a group whose parameters go to one kernel call, with the states as tuples.

    The binder does not read a tuple again that it has seen, not even to compare devices, and leaves its version
    counters to `bases`.

    Args:
        params: of one dtype and device.
        storage: how they are kept.
        columns: their states.
        words: what the kernel takes as arrays of a number per parameter, besides.
    """

    def __init__(self, params: list[Tensor], storage: Storage, columns: list[Column], words: list[Column]) -> None:
        self.params, self.storage, self.words = params, storage, words
        self.place = params[0].dtype, params[0].device
        self.columns = [None if c is None else tuple(c) for c in columns]
        self.turn = 0
        self.bases: list[Tensor] = []  # the tensors whose memory the states are, and where it starts
        self.starts: list[int] = []
        self.places: list[list[int]] = []  # where each state starts

    def holds(self, params: list[Tensor], storage: Storage) -> bool:
        """True if these are the parameters and they are kept so, and the states' memory is where it was."""
        if (
            (storage is not self.storage and storage != self.storage)
            or (params[0].dtype, params[0].device) != self.place
            or not _same(params, self.params)
        ):
            return False
        if not self.places:  # only now, for a group that changes at every step never asks
            self.places = [[s.data_ptr() for s in c] for c in self.columns if c is not None]
            bases = {id(b): b for c in self.columns for s in c or () for b in (s if s._base is None else s._base,)}
            self.bases = list(bases.values())
            self.starts = [b.data_ptr() for b in self.bases]
        return [b.data_ptr() for b in self.bases] == self.starts

    def moved(self) -> tuple[Tensor, str] | None:
        """A parameter and key whose state no longer is where it was, among a few that take turns."""
        n = -(-len(self.params) // 64)
        rows = slice(self.turn, self.turn + n)
        self.turn = self.turn + n if self.turn + n < len(self.params) else 0
        present = [(k, c) for k, c in zip(self.storage.keys, self.columns, strict=True) if c is not None]
        for (key, column), places in zip(present, self.places, strict=True):
            for p, state, place in zip(self.params[rows], column[rows], places[rows], strict=True):
                if state.data_ptr() != place:
                    return p, str(key)
        return None


class Last:
    """What the last step left: `optimizer.state`, and what it found for each group."""

    def __init__(self, state: dict[Tensor, State], found: dict[int, Found]) -> None:
        self.params, self.states = list(state), [dict(s) for s in state.values()]
        self.found = found

    def holds(self, state: dict[Tensor, State]) -> bool:
        """True if the parameters still have the same tensors as states."""
        return _same((list(state), list(state.values())), (self.params, self.states))
