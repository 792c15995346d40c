"""What every sketch shares: checked rows, counting, merging, files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any, Self, TypeVar

import numpy as np

from .. import _store
from .._arrays import numpy_view
from .._errors import message
from ..zeroth._stream import integer

FORMAT, VERSION = "curvk.sketch", 1
LARGEST = 1e140
"""Of a row's elements: squares of 10^19 of these still have a sum in float64."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[Any]]
Need = Callable[[bool, str, Any, str], None]
AnySketch = TypeVar("AnySketch", bound="Sketch")


class Sketch:
    """A small matrix that stands for all rows (n, d) seen so far.

    A subclass names its constructor's arguments in `_parameters`, each an attribute, calls `super().__init__(d)` first
    and has `sketch` and

    - `_take(rows)`: takes in rows (n, d), float32 or float64, that `_check` has passed, and counts them;
    - `_absorb(other)`: takes in a sketch that `_check_mergeable` has passed;
    - `_state()`: a dict of plain numbers, and one of float64 arrays: all that an update changes;
    - `_restore(numbers, arrays, need)`: takes these into a new sketch. `need` raises where its condition is not met.

    Attributes:
        d: the rows' width.
        rows_seen: number of rows taken in, those of merged sketches among them.
    """

    _parameters: tuple[str, ...]

    def __init__(self, d: int) -> None:
        self._name = type(self).__name__
        self.d = integer(self._name, "d", d, 1, 1 << 31, "2^31")
        self.rows_seen = 0
        self._reading: dict[str, Any] = {}  # what was read since the last change

    def update(self, rows: Any) -> None:
        """Takes in rows.

        Args:
            rows: (n, d), or one row (d,), float32 or float64, of any strides; n may be 0. NumPy arrays, torch CPU
                tensors, and whatever has DLPack or the buffer protocol.

        Raises:
            TypeError: another dtype or kind.
            ValueError: another width; an element that is NaN, infinite or beyond 1e140. Nothing has changed then.
        """
        function = f"{self._name}.update"
        given = rows_of(function, "rows", rows, self.d)
        self._check(function, given)
        self._reading = {}
        self._take(given)

    def merge(self, other: Any) -> None:
        """Takes in what another sketch has seen, as if its rows had come after the own.

        Args:
            other: a sketch of the same class and settings; it is not changed.

        Raises:
            TypeError, ValueError: it is something else. Nothing has changed then.
        """
        function = f"{self._name}.merge"
        if type(other) is not type(self):
            raise TypeError(message(function, "other", type(other).__name__, f"another {self._name}"))
        for name, value in self._mergeable().items():
            found = getattr(other, name)
            if found != value:
                raise ValueError(message(function, "other", f"{name}={found!r}", f"{name}={value!r}"))
        self._check_mergeable(function, other)
        self._reading = {}
        self._absorb(other)

    @property
    def sketch(self) -> Floats:
        raise NotImplementedError

    # ---- what a subclass has -----------------------------------------------------------------------------------------

    def _check(self, function: str, rows: Rows) -> None:
        check_finite(function, "rows", rows)

    def _take(self, rows: Rows) -> None:
        raise NotImplementedError

    def _mergeable(self) -> dict[str, Any]:
        """The settings in which two sketches must agree."""
        return self._settings()

    def _check_mergeable(self, function: str, other: Any) -> None:
        """Raises where a sketch of the same class and settings does not fit."""

    def _absorb(self, other: Any) -> None:
        raise NotImplementedError

    def _state(self) -> tuple[dict[str, Any], dict[str, Floats]]:
        raise NotImplementedError

    def _restore(self, numbers: dict[str, Any], arrays: dict[str, Floats], need: Need) -> None:
        raise NotImplementedError

    # ---- files -------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._parameters}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes settings and state to one .npz file, named exactly `path`. The file appears whole or not at all.

        Raises:
            OSError: the file cannot be written. An older file of that name is then untouched.
        """
        numbers, arrays = self._state()
        head = {"format": FORMAT, "version": VERSION, "sketch": self._name, "settings": self._settings()}
        _store.write(path, {**head, "numbers": {"rows_seen": self.rows_seen} | numbers, "arrays": arrays})

    @classmethod
    def load(cls: type[AnySketch], path: str | os.PathLike[str]) -> AnySketch:
        """The sketch that `save` wrote, bit for bit. Nothing in the file is executed.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is damaged, or not one of this class.
        """
        function, state = f"{cls.__name__}.load", _store.read(path, FORMAT)

        def need(met: bool, what: str, found: Any, needed: str) -> None:
            if not met:
                raise ValueError(message(function, what, f"{found}", needed))

        need(isinstance(state, dict), "path", type(state).__name__, f"what {cls.__name__}.save writes")
        for key, value in {"format": FORMAT, "version": VERSION, "sketch": cls.__name__}.items():
            need(_store.equal(state.get(key), value), key, repr(state.get(key)), repr(value))
        for key in ("settings", "numbers", "arrays"):
            need(isinstance(state.get(key), dict), key, type(state.get(key)).__name__, "a dict")
        try:
            made = cls(**state["settings"])
        except (TypeError, ValueError, MemoryError) as error:
            raise ValueError(message(function, "settings", f"{state['settings']}", "settings", str(error))) from None
        numbers, arrays = made._state()
        for key, own in (("numbers", {"rows_seen": 0} | numbers), ("arrays", arrays)):
            need(state[key].keys() == own.keys(), key, f"keys {list(state[key])}", f"keys {list(own)}")
        for key, own_number in ({"rows_seen": 0} | numbers).items():
            x = state["numbers"][key]
            whole, kind = type(own_number) is int, "an integer >= 0" if type(own_number) is int else "a number >= 0"
            met = type(x) is int if whole else type(x) in (int, float)
            need(met and 0 <= x < (2**63 if whole else np.inf), key, repr(x), kind)
        for key, own_array in arrays.items():
            x = state["arrays"][key]
            met = isinstance(x, np.ndarray) and x.dtype == own_array.dtype and x.ndim == own_array.ndim
            found = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            need(met, key, found, f"{own_array.dtype} with {own_array.ndim} axes")
            need(bool(np.isfinite(x).all()), key, "elements that are not finite", "finite numbers")
        made.rows_seen = state["numbers"].pop("rows_seen")
        made._restore(state["numbers"], state["arrays"], need)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reading": {}}

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # two sketches in one memory would write over each other

    def __repr__(self) -> str:
        return f"{self._name}({', '.join(f'{name}={value!r}' for name, value in self._settings().items())})"


# ---- arguments -------------------------------------------------------------------------------------------------------


def rows_of(function: str, label: str, x: Any, d: int | None = None) -> Rows:
    """`x` as a float32 or float64 array (n, d) over the same memory; with `d` given also from a single row (d,)."""
    rows = numpy_view(x, function, label)
    if rows.dtype not in (np.float32, np.float64):
        remedy = f"use {label}.astype(np.float64)"
        raise TypeError(message(function, label, str(rows.dtype), "float32 or float64", remedy))
    given, rows = rows.shape, rows[None] if rows.ndim == 1 and d is not None else rows
    if rows.ndim != 2 or (d is not None and rows.shape[1] != d):
        needed = "shape (n, d)" if d is None else f"shape (n, {d}), or ({d},) for one row"
        raise ValueError(message(function, label, f"shape {given}", needed))
    return rows


def within(x: Rows) -> bool:
    """Whether no element is NaN or beyond `LARGEST`; two passes over x, and no memory."""
    return not x.size or (float(x.min()) >= -LARGEST and float(x.max()) <= LARGEST)


def check_finite(function: str, label: str, rows: Rows) -> None:
    """Raises for the first row that has an element which is NaN, infinite or beyond `LARGEST`."""
    if not within(rows):
        bad = next(i for i, row in enumerate(rows) if not within(row))
        x = next(v for v in rows[bad].tolist() if not abs(v) <= LARGEST)
        needed = f"finite numbers of at most {LARGEST:g}"
        raise ValueError(message(function, label, f"{x} in row {bad}", needed))


def readonly(x: Floats) -> Floats:
    """`x`, which nothing writes to from now on."""
    x.flags.writeable = False
    return x
