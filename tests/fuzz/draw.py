"""Choices drawn from a fuzzer's bytes. Where the bytes end every choice is the first one, which is the valid one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Draw:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, n: int) -> int:
        return self.byte() % n if n <= 256 else (self.byte() + 256 * self.byte()) % n

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def rarely(self) -> bool:
        """One time in four of random bytes: so that an input is not spoilt in every place."""
        return self.byte() >= 192

    def bytes(self, n: int) -> bytes:
        found = self._data[self._at : self._at + n]
        self._at += n
        return found

    @property
    def left(self) -> int:
        return max(len(self._data) - self._at, 0)


class Hostile(Exception):
    """What the fuzz's own objects raise while they are looked at: it may come out of any call."""


class Finding(AssertionError):
    """A broken promise."""


def need(met: Any, text: str) -> None:
    if not met:
        raise Finding(text)
