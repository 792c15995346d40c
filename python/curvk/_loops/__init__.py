"""The kernels as plain Python loops: the Numba twins, and the readable definition of what the C++ computes.

A twin's loop takes flat arrays, then scalars of the data's type, in the order of the header. A function named
`<op>_scalars` beside it turns the header's scalars into the loop's, in double, as the C++ prologue does; it takes
arrays that lie "with the tables" before the scalars, and the loop does not get them. A kernel whose arrays form one
list and that is not elementwise (a reduction) gets lists of flat arrays instead.

Loops hold no bare float literal: Numba would promote the expression to float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np


class Loop:
    """A loop that runs compiled by Numba or, under the backend "python", as it stands."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        try:
            import numba  # here, so that nobody pays for the import who runs the C++ kernels
        except ModuleNotFoundError as error:
            text = "curvk's Numba twins need numba, which is not installed; use: pip install numba"
            raise ImportError(text) from error

        return numba.njit(error_model="numpy", nogil=True)(self.function)

    @property
    def _numba_type_(self) -> Any:
        """What Numba sees where one loop calls another: the compiled form."""
        return self.compiled._numba_type_  # type: ignore[attr-defined]

    def __call__(self, *args: Any) -> Any:
        from .._backend import get_backend

        if get_backend() == "python":
            with np.errstate(all="ignore"):
                return self.function(*args)
        return self.compiled(*args)


def loop(function: Callable[..., Any]) -> Loop:
    return Loop(function)


def power(x: float, n: int) -> float:
    """x^n for n >= 0 by squaring, the same bits as the C++ prologue's."""
    result = 1.0
    while n > 0:
        if n & 1:
            result *= x
        x *= x
        n >>= 1
    return result
