"""What estimators in the manner of scikit-learn share: checked parameters, kernels by name, states without pickle."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np

from ._errors import message
from .kernels import gram

Keywords = dict[str, Any]

KERNEL_PARAMS = ("alpha", "gamma", "coef0", "degree")
WITHOUT_BANDWIDTH = ("polynomial", "linear")


def check_choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the given words."""
    if not isinstance(value, str):
        raise TypeError(message(owner, name, f"{value!r}", f"one of {', '.join(choices)}"))
    if value not in choices:
        raise ValueError(message(owner, name, f"{value!r}", f"one of {', '.join(choices)}"))
    return value


def check_int(owner: str, name: str, value: Any, at_least: int) -> int:
    """An integer from `at_least` on; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(message(owner, name, f"{value!r}", f"an integer >= {at_least}"))
    if value < at_least:
        raise ValueError(message(owner, name, f"{value}", f"an integer >= {at_least}"))
    return int(value)


def check_float(
    owner: str, name: str, value: Any, *, above: float | None = None, at_least: float | None = None
) -> float:
    """A finite real number within its bound; True and False are none."""
    bound = f"a finite number > {above}" if above is not None else f"a finite number >= {at_least}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message(owner, name, f"{value!r}", bound))
    number = float(value)
    inside = number > above if above is not None else at_least is None or number >= at_least
    if not math.isfinite(number) or not inside:
        raise ValueError(message(owner, name, f"{value}", bound))
    return number


def kernel_keywords(owner: str, kernel: Any, bandwidth: Any, kernel_params: Any) -> Keywords:
    """Kernel and parameters, checked, as keywords of `curvk.kernels.gram`; the bandwidth, checked too, is left out."""
    keywords: Keywords = {"kernel": check_choice(owner, "kernel", kernel, tuple(gram.KERNELS))}
    if not isinstance(kernel_params, Mapping | None):
        raise TypeError(message(owner, "kernel_params", f"{kernel_params!r}", "a dict or None"))
    for name, value in dict(kernel_params or {}).items():
        check_choice(owner, "kernel_params", name, KERNEL_PARAMS)
        if name == "degree":
            keywords[name] = check_int(owner, name, value, 1)
        else:
            keywords[name] = check_float(
                owner, name, value, **({"at_least": 0.0} if name == "coef0" else {"above": 0.0})
            )
    if not isinstance(bandwidth, str):
        check_float(owner, "bandwidth", bandwidth, above=0.0)
    elif bandwidth != "median":
        raise ValueError(message(owner, "bandwidth", f"{bandwidth!r}", "a number > 0 or 'median'"))
    return keywords


@contextmanager
def unchanged_on_error(machine: Any) -> Iterator[None]:
    """An error or Ctrl-C inside leaves the estimator's attributes as they were before."""
    before = dict(vars(machine))
    try:
        yield
    except BaseException:
        machine.__dict__.clear()
        machine.__dict__.update(before)
        raise


@contextmanager
def rehearsal(owner: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """What is made of a file and tried out inside: any error means that the file is not what this class saved."""
    try:
        with np.errstate(all="ignore"):  # not the filters of warnings, which all Python threads share
            yield
    except _DAMAGE as error:
        found = f"{os.fspath(path)!r} ({type(error).__name__}: {error})"
        raise ValueError(message(owner, "path", found, f"a whole file of {owner.removesuffix('.load')}")) from error


_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, LookupError),
    *(MemoryError, RuntimeError, TypeError, ValueError),
)


def to_plain(value: Any) -> Any:
    """Arrays of Python objects (labels, feature names) as lists of strings and numbers, which need no pickle."""
    return {"objects": value.tolist()} if isinstance(value, np.ndarray) and value.dtype.hasobject else value


def from_plain(value: Any) -> Any:
    """What `to_plain` was given."""
    if isinstance(value, dict) and value.keys() == {"objects"}:
        return np.array(value["objects"], object)
    return value
