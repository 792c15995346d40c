"""Runs the Numba twins behind the interface of the compiled module: Plan and call."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrays import Column, Resolved, check, written
from ._errors import check_scalar
from ._float_control import default_float_control
from ._loops.half import decode, encode

if TYPE_CHECKING:
    from ._signatures import Argument


def _flat_row(arrays: list[np.ndarray[Any, Any] | None], indexed: bool) -> tuple[list[Any], bool]:
    """The arrays of one row as flat arrays in a common order; False if copies had to be made."""
    reference = arrays[0]
    assert reference is not None
    order = list(range(reference.ndim))
    if not indexed:
        order.sort(key=lambda axis: -abs(reference.strides[axis]))
    turned = [a if a is None else a.transpose(order) for a in arrays]
    if all(a is None or a.flags.c_contiguous for a in turned):
        return [a if a is None else a.reshape(-1) for a in turned], True
    return [a if a is None else a.flatten() for a in arrays], False


class Plan:
    """Arrays bound to a kernel; the twin of curvk._core.Plan."""

    def __init__(self, op: str, columns: tuple[Column, ...], format: str | None = None) -> None:
        self.op, self.format = op, format
        self._resolved: Resolved | None = None
        self.rebind(columns)

    def rebind(self, columns: tuple[Column, ...]) -> None:
        self._resolved = None  # a plan whose last arrays were refused does not step the ones before
        self._resolved = check(self.op, columns, self.format)

    def release(self, columns: tuple[int, ...]) -> None:
        self._resolved = None  # which holds views of all

    @property
    def resolved(self) -> Resolved:
        if self._resolved is None:
            raise RuntimeError(f"{self.op}: the plan's last arrays were refused; rebind it")
        return self._resolved

    def run(self, scalars: tuple[Any, ...]) -> None:
        kernel = self.resolved.kernel
        names = [a.name for a in kernel.scalars]
        values = [check_scalar(self.op, n, s) for n, s in zip(names, scalars, strict=True)]
        module = import_module(f"._loops.{kernel.family}", __package__)
        body = getattr(module, self.op)
        prologue = getattr(module, f"{self.op}_scalars", None)
        with default_float_control():
            if prologue is not None:
                values = list(prologue(*(c for a, c in self._columns() if a.with_tables), *values))
            self._run(body, values)
        if self.resolved.foreign:
            written(self.resolved.foreign)

    def _run(self, body: Any, values: list[Any]) -> None:
        kernel = self.resolved.kernel
        if not kernel.is_list:
            body(*self.resolved.columns, *values)
        elif kernel.elementwise:
            self._run_rows(body, values)
        else:
            order = "C" if kernel.indexed else "K"
            tables = [
                [self._load(x.ravel(order=order), True) for x in c] if a.pointers == 2 and c is not None else c
                for a, c in zip(kernel.arrays, self.resolved.columns, strict=True)
            ]
            body(*tables, *values)

    def _load(self, x: np.ndarray[Any, Any], stored: bool) -> np.ndarray[Any, Any]:
        """Elements of a 16-bit storage format as float32."""
        assert self.resolved.kernel.format is not None
        half = stored and self.resolved.kernel.format in ("bf16", "f16")
        return decode(x, self.resolved.kernel.format) if half else x

    def _run_rows(self, body: Any, values: list[Any]) -> None:
        kernel = self.resolved.kernel
        assert kernel.format is not None
        number = np.float64 if kernel.format == "f64" else np.float32
        with np.errstate(over="ignore"):
            typed = [number(v) if type(v) is float else v for v in values]
            shared = [c.astype(number) if a.element == "double" and a.pointers == 1 else c for a, c in self._columns()]
        taken = [not a.with_tables for a in kernel.arrays]  # the others went to the prologue
        tables = [a for a in kernel.arrays if a.pointers == 2 and not a.per]
        rounds = any(a.name == "rounding" for a in kernel.scalars)  # the loop itself, so it gets what is stored
        stored = [a.element == "uint16_t" and not rounds for a in tables]
        for row in range(len(self.resolved.columns[0])):
            items = [c[row] if c is not None else None for a, c in self._columns() if a.pointers == 2 and not a.per]
            if items[0] is None or items[0].size == 0:
                continue
            flat, views = _flat_row(items, kernel.indexed)
            work = [x if x is None else self._load(x, s) for x, s in zip(flat, stored, strict=True)]
            given = iter(work)
            body(
                *(
                    int(c[row]) if a.per_row else c and c[row] if a.per else next(given) if a.pointers == 2 else c
                    for a, c in compress(zip(kernel.arrays, shared, strict=True), taken)
                ),
                *typed,
            )
            for a, s, original, x, w in zip(tables, stored, items, flat, work, strict=True):
                if original is None or w is None or not a.written:
                    continue
                result = encode(w, kernel.format) if s else w
                if not views:
                    original[...] = result.reshape(original.shape)
                elif s:
                    x[...] = result

    def _columns(self) -> Iterator[tuple[Argument, Column]]:
        return zip(self.resolved.kernel.arrays, self.resolved.columns, strict=True)


def call(op: str, columns: tuple[Column, ...], scalars: tuple[Any, ...], format: str | None = None) -> None:
    Plan(op, columns, format).run(scalars)
