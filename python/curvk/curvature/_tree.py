"""The arrays in what a person gives as x0: one array, a list of arrays, or a mapping from names to arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._arrays import numpy_view
from .._errors import message
from ..zeroth._stream import words

Array = np.ndarray[Any, Any]
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Tree:
    """Names the arrays of a structure and puts others of their shapes into the same structure.

    Args:
        x0: an array, a list or tuple of arrays, or a mapping from names to arrays; float32 or float64.
        function: the caller's name, for errors.

    Raises:
        TypeError, ValueError: something else, an array of another dtype or without elements, names with one tensor
            word.

    Attributes:
        names: of the arrays: a mapping's keys, "0", "1", ... in a list, "x" for an array alone.
        words: their tensor words.
        arrays: the arrays themselves, over the memory of x0.
    """

    def __init__(self, x0: Any, function: str) -> None:
        if isinstance(x0, Mapping):
            for name in x0:
                if not isinstance(name, str):
                    raise TypeError(message(function, "x0", f"the name {name!r}", "strings as names"))
            self.names, arrays = tuple(x0), list(x0.values())
            self._kind: type = dict
        elif isinstance(x0, (list, tuple)):
            self.names, arrays = tuple(map(str, range(len(x0)))), list(x0)
            self._kind = list if isinstance(x0, list) else tuple
        else:
            self.names, arrays, self._kind = ("x",), [x0], np.ndarray
        if not arrays:
            raise ValueError(message(function, "x0", "no arrays", "at least one"))
        self.words = words(self.names, function)
        self.arrays: list[Array] = []
        for label, x in zip(self._labels("x0"), arrays, strict=True):
            if not isinstance(x, np.ndarray):
                remedy = f"use np.asarray({label}, dtype=np.float64)"
                raise TypeError(message(function, label, type(x).__name__, "a NumPy array", remedy))
            view = numpy_view(x, function, label)
            if x.dtype not in DTYPES:
                remedy = f"use {label}.astype(np.float64)"
                raise TypeError(message(function, label, str(x.dtype), "float32 or float64", remedy))
            if not view.size:
                raise ValueError(message(function, label, f"shape {view.shape}", "at least one element"))
            self.arrays.append(view)

    def _labels(self, argument: str) -> list[str]:
        if self._kind is np.ndarray:
            return [argument]
        return [f"{argument}[{name!r}]" if self._kind is dict else f"{argument}[{name}]" for name in self.names]

    def pack(self, arrays: Sequence[Any]) -> Any:
        """Arrays in the order of the names, in x0's structure."""
        if self._kind is np.ndarray:
            return arrays[0]
        return dict(zip(self.names, arrays, strict=True)) if self._kind is dict else self._kind(arrays)

    def gradients(self, found: Any, function: str) -> list[Array]:
        """What a gradient function returned, as C-contiguous arrays in the order of the names.

        Raises:
            TypeError, ValueError: not x0's structure, dtypes and shapes.
        """
        if self._kind is np.ndarray:
            values = [found]
        elif self._kind is dict:
            if not isinstance(found, Mapping) or found.keys() != set(self.names):
                what = f"the names {sorted(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
                needed = f"gradients with the names of x0: {list(self.names)}"
                raise _wrong(found, isinstance(found, Mapping), function, what, needed)
            values = [found[name] for name in self.names]
        else:
            if not isinstance(found, (list, tuple)) or len(found) != len(self.names):
                listed = isinstance(found, (list, tuple))
                what = f"{len(found)} arrays" if listed else type(found).__name__
                raise _wrong(found, listed, function, what, f"a list of {len(self.names)} arrays, as x0 is")
            values = list(found)
        out = []
        for label, x, like in zip(self._labels("grad(x)"), values, self.arrays, strict=True):
            g = np.asarray(x) if isinstance(x, np.generic) else x
            if not isinstance(g, np.ndarray):
                raise TypeError(message(function, label, type(x).__name__, "a NumPy array like the one in x0"))
            if g.dtype != like.dtype:
                remedy = f"return it with .astype(np.{like.dtype})"
                raise TypeError(message(function, label, str(g.dtype), f"{like.dtype} as in x0", remedy))
            if g.shape != like.shape:
                raise ValueError(message(function, label, f"shape {g.shape}", f"shape {like.shape} as in x0"))
            out.append(g if g.flags.c_contiguous else g.copy(order="C"))
        return out


def _wrong(found: Any, kind_is_right: bool, function: str, what: str, needed: str) -> Exception:
    return (ValueError if kind_is_right else TypeError)(message(function, "grad(x)", what, needed))
