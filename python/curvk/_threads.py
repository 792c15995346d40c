"""How many threads the compiled kernels use."""

from __future__ import annotations

import threading

from ._backend import core
from ._errors import message


def get_num_threads() -> int:
    """Threads the next kernel of this Python thread may use."""
    return 1 if core is None else int(core.num_threads())


def threads_reason() -> str:
    """Where that number comes from."""
    return "the Numba twins are serial" if core is None else str(core.threads_reason())


def _check(function: str, n: int) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(message(function, "n", f"{n!r} of type {type(n).__name__}", "an integer"))
    n = n.__index__()
    if not 1 <= n <= 65536:
        raise ValueError(message(function, "n", str(n), "a number of threads from 1 to 65536"))
    return n


def set_num_threads(n: int | None) -> None:
    """Sets the number of threads for the process; None returns to the default.

    The default is CURVK_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs this process may run on or its cgroup's quota,
    whichever is less. Small arrays and calls from within a parallel region run on one thread whatever is set. The
    results do not depend on it.

    >>> import curvk
    >>> curvk.set_num_threads(1)
    >>> curvk.get_num_threads()
    1
    >>> curvk.set_num_threads(None)
    """
    count = 0 if n is None else _check("set_num_threads", n)
    if core is not None:
        core.set_num_threads(count)


class threads(threading.local):
    """`with curvk.threads(n):` runs kernels called by this Python thread on up to n threads, whatever the process has.

    >>> import curvk
    >>> with curvk.threads(1):
    ...     curvk.get_num_threads()
    1
    """

    def __init__(self, n: int) -> None:
        self._n = _check("threads", n)
        self._before: list[int] = []  # one entry for each time this Python thread has entered

    def __reduce__(self) -> tuple[type[threads], tuple[int]]:
        return type(self), (self._n,)  # what a Python thread has entered is its own

    def __repr__(self) -> str:
        return f"curvk.threads({self._n})"

    def __enter__(self) -> None:
        if core is not None:
            self._before.append(core.set_thread_limit(self._n))

    def __exit__(self, *exc: object) -> None:
        if core is not None:
            core.set_thread_limit(self._before.pop())
