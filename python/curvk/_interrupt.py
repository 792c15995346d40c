"""Ctrl-C: not between writing and noting what was written; and without waiting for LAPACK."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal wraps: its own functions look handlers up in enums, 10 us
import contextvars
import os
import threading
from collections.abc import Callable
from signal import SIGINT
from typing import Any, ParamSpec, TypeVar

_NUMBER = int(SIGINT)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_QUICK = 2e8  # flops that NumPy does in less than some 50 ms


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


_aside: dict[threading.Thread, threading.Event] = {}  # threads that run a call, and its end


def _finish() -> None:
    """Before a fork: a BLAS with calls in flight leaves its child without the threads that hold its locks."""
    for thread, ended in list(_aside.items()):
        if thread is not threading.current_thread():
            ended.wait()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_finish)


def aside(flops: float, function: Callable[_P, _T], *given: _P.args, **keywords: _P.kwargs) -> _T:
    """function(...) of NumPy, which is deaf to Ctrl-C and takes so many flops; where that is long, in a thread.

    Ctrl-C is heard at once. The call then runs to its end in the background, where nothing takes its result: it must
    write to nothing that anybody else has. It must release the GIL, as NumPy's products and LAPACK calls do and SciPy's
    LAPACK calls do not. A fork waits for it, and so does the end of the program.
    """
    if flops < _QUICK or threading.get_ident() != threading.main_thread().ident:  # else nothing is raised here
        return function(*given, **keywords)
    found: list[_T] = []
    failed: list[BaseException] = []
    context = contextvars.copy_context()  # NumPy's errstate is part of it
    ended = threading.Event()

    def run() -> None:
        _aside[thread] = ended
        try:
            found.append(context.run(function, *given, **keywords))
        except BaseException as error:
            failed.append(error)
        finally:
            del _aside[thread]
            ended.set()

    thread = threading.Thread(target=run, name="curvk, a call of NumPy")
    try:
        thread.start()
    except RuntimeError:  # there is none to be had, as in what Python 3.12 calls at its exit
        return function(*given, **keywords)
    ended.wait()  # a join that is interrupted takes the thread for ended, up to Python 3.12
    if failed:
        try:
            raise failed[0]
        finally:
            failed.clear()  # the error's traceback has this frame, and with it the arrays: they would hold each other
    return found[0]
