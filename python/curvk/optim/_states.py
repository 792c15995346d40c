"""The states of an optimizer: what they are, state dicts, files, averages and bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from .. import _store
from .._arrays import numpy_view, written
from .._errors import message
from .._interrupt import uninterrupted
from . import _storage
from ._storage import Group, Storage

Arrays = list[Any]
FORMAT, VERSION = "curvk.optim", 1


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON and callers may give betas as a list


class States:
    """The part of an optimizer that shows, gives and takes its states; `Optimizer` has the attributes and the rest."""

    _required: ClassVar[tuple[str, ...]]  # the states that every parameter has after its first step
    _optional: ClassVar[tuple[str, ...]] = ()
    _sweeps: ClassVar[bool] = False  # whether it takes the options of `_storage`
    _stateless: ClassVar[bool] = False  # whether a parameter may step without any of these states
    _averaging = False  # whether the parameters hold their averages
    _name: str
    defaults: Group
    param_groups: list[Group]
    max_grad_norm: float | None
    skip_nonfinite: bool
    skipped_steps: int
    _params: Arrays
    _views: list[np.ndarray[Any, Any]]
    _kinds: list[tuple[int, str]]
    _steps: list[int]
    _states: dict[str, Arrays]
    _layouts: list[dict[str, Storage]]
    _used: list[dict[str, Storage]]

    def _count(self) -> None:
        raise NotImplementedError

    def _dissolve(self) -> None:
        raise NotImplementedError

    def _layout(self, group: Group, formats: Any) -> dict[str, Storage]:
        raise NotImplementedError

    def _check_numbers(self, group: Mapping[str, Any], where: str) -> None:
        raise NotImplementedError

    def _check_options(self, max_grad_norm: Any, skip_nonfinite: Any) -> None:
        raise NotImplementedError

    @property
    def state(self) -> list[dict[str, Any]]:
        """Per parameter, over all groups: {} before its first step, then "step" and the arrays of its states, live."""
        self._count()
        kept = [self._states[name] for name in _storage.KEPT if name in self._states]
        return [
            {"step": steps} | {name: column[i] for name, column in self._states.items() if column[i] is not None}
            if steps or any(column[i] is not None for column in kept)
            else {}
            for i, steps in enumerate(self._steps)
        ]

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of the states and numbers, not of the parameters; later steps do not change it."""
        return self._as_dict(copy=True)

    def _as_dict(self, copy: bool) -> dict[str, Any]:
        groups, first = [], 0
        for group in self.param_groups:
            last = first + len(group["params"])
            groups.append(group | {"params": list(range(first, last))})
            first = last
        return {
            "format": FORMAT,
            "version": VERSION,
            "optimizer": self._name,
            "state": [
                {k: v.copy(order="K") if copy and k != "step" else v for k, v in entry.items()} for entry in self.state
            ],
            "param_groups": groups,
            "max_grad_norm": self.max_grad_norm,
            "skip_nonfinite": self.skip_nonfinite,
            "skipped_steps": self.skipped_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the optimizer that gave this `state_dict` was; the numbers of the groups are taken over too.

        Numbers that a dict of an older version lacks stay as they are.

        Raises:
            ValueError: it is not from this class, version or model, or its states are in another format than
                `state_bits` and `state_format` of this optimizer's groups (`convert_state_dict` changes it); the text
                names what differs. Nothing has changed.
        """
        groups = self._check_state(state)
        layouts = [self._layout(numbers, layout) for numbers, layout in zip(groups, self._layouts, strict=True)]
        columns: dict[str, Arrays] = {name: [None] * len(self._params) for name in self._states}
        for i, (entry, (k, fmt)) in enumerate(zip(state["state"], self._kinds, strict=True)):
            slots = (*self._moments(numbers=groups[k], fmt=fmt), *layouts[k][fmt].kept)
            for slot in slots:
                if slot.name in entry:
                    columns[slot.name][i] = slot.zeros(self._views[i])
                    columns[slot.name][i][...] = entry[slot.name]
        self._dissolve()
        self._states, self._layouts, self._used = columns, layouts, list(layouts)
        self._steps = [entry.get("step", 0) for entry in state["state"]]
        for group, numbers in zip(self.param_groups, groups, strict=True):
            params = group["params"]
            group.clear()
            group.update({"params": params} | numbers)
        self.max_grad_norm = state["max_grad_norm"]
        self.skip_nonfinite = state["skip_nonfinite"]
        self.skipped_steps = state["skipped_steps"]

    def _moments(self, numbers: Group, fmt: str) -> tuple[_storage.Slot, ...]:
        """All that a parameter's step may leave, besides what goes with the parameter."""
        return _storage.storage_of((*self._required, *self._optional), fmt, numbers).moments

    def _check_state(self, state: Any) -> list[Group]:
        """Raises unless the state fits; returns the groups' numbers."""

        def need(met: bool, what: str, found: Any, needed: Any, remedy: str = "") -> None:
            if not met:
                raise ValueError(message(f"{self._name}.load_state_dict", what, f"{found}", f"{needed}", remedy))

        need(isinstance(state, Mapping), "state", type(state).__name__, f"what {self._name}.state_dict gives")
        for key, value in (("format", FORMAT), ("version", VERSION), ("optimizer", self._name)):
            need(_store.equal(state.get(key), value), key, repr(state.get(key)), repr(value))
        keys = self._as_dict(copy=False).keys()
        need(state.keys() == keys, "state", f"keys {list(state)}", f"keys {list(keys)}")
        try:
            self._check_options(state["max_grad_norm"], state["skip_nonfinite"])
        except TypeError as error:
            raise ValueError(str(error)) from None
        count = state["skipped_steps"]
        need(type(count) is int and count >= 0, "skipped_steps", repr(count), "an integer >= 0")

        saved, groups = state["param_groups"], []
        need(isinstance(saved, list), "param_groups", type(saved).__name__, "a list")
        need(len(saved) == len(self.param_groups), "param_groups", f"{len(saved)} groups", len(self.param_groups))
        first = 0
        for k, (old, new) in enumerate(zip(self.param_groups, saved, strict=True)):
            need(isinstance(new, Mapping), f"param_groups[{k}]", type(new).__name__, "a dict")
            own = {key: old[key] for key in _storage.DEFAULTS if key in old}
            missing = {"params", *self.defaults} - new.keys() - own.keys()
            need(not missing, f"param_groups[{k}]", f"a dict without {sorted(missing)}", "every key that was saved")
            last = first + len(old["params"])
            indices = list(range(first, last))
            found = f"{len(new['params'])} arrays" if isinstance(new["params"], list) else type(new["params"]).__name__
            met = _store.equal(new["params"], indices)
            need(met, f"param_groups[{k}].params", found, f"{last - first} arrays, as in this model")
            first = last
            numbers = {key: _frozen(value) for key, value in new.items() if key != "params"}
            numbers |= {key: value for key, value in own.items() if key not in numbers}
            try:
                self._check_numbers(numbers, f"param_groups[{k}].")
                if self._sweeps:
                    _storage.check(self._name, f"param_groups[{k}].", numbers, self._layouts[k])
            except TypeError as error:  # also of a comparison, which names no argument
                raise ValueError(f"{self._name}.load_state_dict: param_groups[{k}]: {error}") from None
            if self._sweeps:
                found, needed = map(_storage.format_of, (numbers, old))
                remedy = f"use curvk.optim.convert_state_dict(state, {needed})"
                need(found == needed, f"param_groups[{k}]", found, f"{needed} as this optimizer has", remedy)
            groups.append(numbers)
        self._check_entries(state["state"], groups, need)
        return groups

    def _check_entries(self, entries: Any, groups: list[Group], need: Any) -> None:
        need(isinstance(entries, list), "state", type(entries).__name__, "a list")
        need(len(entries) == len(self._params), "state", f"{len(entries)} entries", f"{len(self._params)} parameters")
        for i, (entry, view, (k, fmt)) in enumerate(zip(entries, self._views, self._kinds, strict=True)):
            need(isinstance(entry, Mapping), f"state[{i}]", type(entry).__name__, "a dict")
            if not entry:
                continue
            moments = {slot.name: slot for slot in self._moments(groups[k], fmt)}
            kept = {slot.name: slot for slot in self._layout(groups[k], (fmt,))[fmt].kept}
            required = [name for name in moments if name.removesuffix("_scale") in self._required]
            bare = not entry.keys() & moments.keys()  # has stepped without moments, or they were reset
            extra = entry.keys() - {"step", *moments, *(_storage.KEPT if self._sweeps else ())}
            fresh = self._stateless or _store.equal(entry.get("step"), 0)
            complete = bare and fresh and len(entry) > 1 - self._stateless
            needed = f"keys {['step', *required]} and perhaps {[*self._optional, *kept]}"
            met = "step" in entry and (complete or entry.keys() >= set(required)) and not extra
            need(met, f"state[{i}]", f"keys {list(entry)}", needed, _CONVERT if self._sweeps else "")
            step, low = entry["step"], int(not bare)
            need(type(step) is int and low <= step < 2**63, f"state[{i}].step", repr(step), f"an integer >= {low}")
            for name in entry.keys() & {*moments, *kept}:
                x, slot = entry[name], (moments | kept)[name]
                shape = slot.shape(view.shape)
                found = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
                met = isinstance(x, np.ndarray) and x.dtype == slot.dtype and x.shape == shape
                needed = f"{slot.dtype} of shape {shape} for params[{i}]"
                need(met, f"state[{i}].{name}", found, needed, _CONVERT if self._sweeps and name in moments else "")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `state_dict` to one .npz file, named exactly `path`. The file appears whole or not at all.

        Raises:
            OSError: the file cannot be written. An older file of that name is then untouched.
            TypeError: a param group holds something besides numbers, strings and lists of them.
        """
        _store.write(path, self._as_dict(copy=False))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Loads what `save` wrote, bit for bit. Nothing in the file is executed.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is damaged, or does not fit as in `load_state_dict`. Nothing has changed.
        """
        self.load_state_dict(_store.read(path, FORMAT))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averages of groups with `ema` into the parameters, for the block of a `with` statement.

        Afterwards, also where the block raises, the parameters have their own values again, bit for bit: what is
        written to them inside is lost. Parameters that have no average yet, or none at all, stay as they are. It takes
        a copy of the averaged parameters while it lasts; averages of 16-bit parameters are rounded to nearest.

        Raises:
            ValueError: no group has `ema`.
            RuntimeError: the block is inside another one; `step` raises it within the block.

        >>> import numpy as np
        >>> from curvk.optim import SGD
        >>> w = np.array([1.0, 2.0])
        >>> sgd = SGD([w], lr=0.5, ema=0.5)
        >>> sgd.step([np.ones(2)])
        True
        >>> with sgd.averaged():
        ...     w.tolist()
        [0.75, 1.75]
        >>> w.tolist()
        [0.5, 1.5]
        """
        if all(group.get("ema") is None for group in self.param_groups):
            raise ValueError(message(f"{self._name}.averaged", "ema", "None in every group", "a decay in [0, 1)"))
        if self._averaging:
            raise RuntimeError(f"{self._name}.averaged: the parameters hold their averages already")
        params, averages = [], []
        for p, average, (k, fmt) in zip(self._params, self._states["param_ema"], self._kinds, strict=True):
            if average is not None and self.param_groups[k]["ema"] is not None:
                params.append(p)
                averages.append(_storage.narrowed(average, fmt))
        before = [numpy_view(p, self._name, "params").copy(order="K") for p in params]
        self._averaging = True
        try:
            self._write(params, averages)
            yield
        finally:
            try:
                with uninterrupted():
                    self._write(params, before)
            except KeyboardInterrupt:  # perhaps before it could be made to wait
                self._write(params, before)
                raise
            finally:
                self._averaging = False

    def _write(self, params: Arrays, values: Arrays) -> None:
        for p, x in zip(params, values, strict=True):
            np.copyto(numpy_view(p, self._name, "params"), x)
            written([p])

    def memory(self) -> dict[str, Any]:
        """The bytes of parameters and states that are held now.

        Returns:
            "parameters": the number of elements. "bytes": those of "params", "grads" (0: the gradients are the
            caller's) and each state by its name. "bytes_per_parameter": the same over the number of elements, and their
            "total".

        >>> import numpy as np
        >>> from curvk.optim import Adam
        >>> adam = Adam([np.ones((64, 32), np.float32)], state_bits=8)
        >>> adam.step([np.ones((64, 32), np.float32)])
        True
        >>> adam.memory()["bytes"]
        {'params': 8192, 'grads': 0, 'exp_avg': 2048, 'exp_avg_sq': 2048, 'exp_avg_scale': 256, 'exp_avg_sq_scale': 256}
        >>> adam.memory()["bytes_per_parameter"]["total"]
        6.25
        """
        count = sum(view.size for view in self._views)
        held = {"params": sum(view.nbytes for view in self._views), "grads": 0}
        for name, column in self._states.items():
            arrays = [x for x in column if x is not None]
            if arrays:
                held[name] = sum(x.nbytes for x in arrays)
        each = {name: size / max(count, 1) for name, size in held.items()}
        total = sum(held.values()) / max(count, 1)
        return {"parameters": count, "bytes": held, "bytes_per_parameter": each | {"total": total}}


_CONVERT = "for states of another format use curvk.optim.convert_state_dict"
