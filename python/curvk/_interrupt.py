"""Ctrl-C between writing and noting what was written."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal wraps: its own functions look handlers up in enums, 10 us
import threading
from signal import SIGINT
from typing import Any

_NUMBER = int(SIGINT)


class uninterrupted:  # in the case of a function, which it is to its users: as a generator it takes three times as long
    """Lets Ctrl-C wait for the end of the block, so that what was written is also noted. Some microsecond."""

    __slots__ = ("_before", "_given")
    _before: Any
    _given: tuple[Any, ...] | None

    def __enter__(self) -> None:
        self._before = self._given = None
        before = _signal.getsignal(_NUMBER)
        if callable(before) and threading.get_ident() == threading.main_thread().ident:  # else nothing is raised here
            self._before = before
            _signal.signal(_NUMBER, self._wait)

    def _wait(self, *given: Any) -> None:
        self._given = given

    def __exit__(self, *_: object) -> None:
        before = self._before
        if before is None:
            return
        _signal.signal(_NUMBER, before)
        if self._given is not None:
            before(*self._given)
