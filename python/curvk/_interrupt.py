"""Ctrl-C between writing and noting what was written."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal wraps: its own functions look handlers up in enums, 10 us
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C wait for the end of the block, so that what was written is also noted."""
    waiting: list[Any] = []
    before = _signal.getsignal(SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():  # nothing will be raised here
        yield
        return
    _signal.signal(SIGINT, lambda *given: waiting.append(given))
    try:
        yield
    finally:
        _signal.signal(SIGINT, before)
        if waiting:
            before(*waiting[0])
