"""Processes that train one model together: what they tell each other in a step."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ..._errors import message
from ...zeroth._method import FAILED, Processes


class Group:
    """The processes of a `torch.distributed` process group.

    In a step each sends its losses, a checksum of the run so far and one of the step's settings: 8 bytes each.

    Args:
        process_group: of a backend for CPU tensors, such as gloo.
        parallel: "probes" or "data", see `Processes`.
        function: the optimizer's name, for errors.

    Attributes:
        facts: what must be the same on all processes in this step besides the run so far.
        bytes_per_step: what this process sent in the last step.
    """

    def __init__(self, process_group: Any, parallel: str, function: str) -> None:
        if not dist.is_available() or not isinstance(process_group, dist.ProcessGroup):
            needed = "a torch.distributed process group that this process belongs to"
            remedy = "use torch.distributed.init_process_group('gloo') and torch.distributed.group.WORLD"
            raise TypeError(message(function, "process_group", type(process_group).__name__, needed, remedy))
        backend = dist.get_backend(process_group)
        if backend == "nccl":
            remedy = "use torch.distributed.new_group(backend='gloo')"
            raise ValueError(message(function, "process_group", f"backend {backend}", "one for CPU tensors", remedy))
        self.process_group, self.function = process_group, function
        self.rank, self.world = dist.get_rank(process_group), dist.get_world_size(process_group)
        self.processes = Processes(self.gather, self.rank, self.world, parallel)
        self.facts: Callable[[], dict[str, Any]] = dict
        self.bytes_per_step = 0

    def gather(self, numbers: Sequence[float]) -> list[float]:
        """All processes' numbers in rank order. Collective, once a step.

        Raises:
            RuntimeError: another process failed.
            ValueError: the processes disagree on the facts.
        """
        facts = self.facts()
        own = torch.tensor([_checksum(facts), *numbers], dtype=torch.float64)  # which holds a CRC-32 exactly
        self.bytes_per_step = own.nbytes
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own, group=self.process_group)
        rows = [part.tolist() for part in parts]
        if any(row[1] == FAILED for row in rows):
            error = sys.exception() if numbers[0] == FAILED else None  # the one that the method is about to raise
            texts = self._all(_text(error))
            if error is None:
                raise RuntimeError(f"{self.function}.step: no step was taken, since it failed on {_failures(texts)}")
        elif len({row[0] for row in rows}) > 1:
            self._disagree(facts)
        return [number for row in rows for number in row[1:]]

    def set_up(self, prepare: Callable[[], dict[str, Any]]) -> None:
        """Runs a function that gives facts, and compares them over all processes. Collective.

        Raises:
            RuntimeError: the function failed on another process; this one's own failure is raised as it is.
            ValueError: the facts differ; says in what and where, on every process.
        """
        error, facts = None, {}
        try:
            facts = prepare()
        except Exception as wrong:  # the others are waiting
            error = wrong
        answers = self._all((_text(error), _checksum(facts)))
        if error is not None:
            raise error
        if any(text for text, _ in answers):
            raise RuntimeError(f"{self.function}: it failed on {_failures([text for text, _ in answers])}")
        if len(set(answers)) > 1:
            self._disagree(facts)

    def _disagree(self, facts: dict[str, Any]) -> None:
        everyone = self._all(facts)
        for key in facts:
            for rank, theirs in enumerate(everyone):
                if theirs.get(key) != everyone[0].get(key):
                    raise ValueError(
                        f"{self.function}: the processes disagree on {key}: rank 0 has {_short(everyone[0].get(key))}, "
                        f"rank {rank} has {_short(theirs.get(key))}; give all the same model, settings and log"
                    )
        raise ValueError(f"{self.function}: the processes disagree; give all the same model, settings and log")

    def _all(self, item: Any) -> list[Any]:
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item, group=self.process_group)
        return items


def _checksum(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def _text(error: BaseException | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {error}"


def _failures(texts: Sequence[str]) -> str:
    return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
