"""What the optimizers share: param groups, one plan per set of parameters that step alike, state dicts and files."""

from __future__ import annotations

import math
import operator
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np

from .. import _arrays, _store
from .._arrays import Array
from .._backend import Plan
from .._errors import message
from .._signatures import Range, ops
from ..kernels.optim import global_norm

Group = dict[str, Any]
Arrays = list[Any]
FORMAT, VERSION = "curvk.optim", 1
_PLAIN = {float, int, bool}  # the same object has the same value; not so a tensor or a 0-d array
_FIXED = {np.ndarray, type(None)}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON and callers may give betas as a list


class Cohort:
    """Parameters of one group, dtype and step count: one plan, one kernel call."""

    def __init__(self, group: int, indices: list[int], steps: int) -> None:
        self.group, self.indices = group, indices
        self.steps = steps  # taken by its states
        self.owed = 0  # of these, the ones not yet counted in Optimizer._steps
        self.states: dict[str, Arrays] = {}
        self.plan: Any = None


class Optimizer:
    """Steps a list of arrays in place; a subclass names the kernel, its numbers and its states.

    Attributes:
        param_groups: list of dicts: "params" (a tuple of arrays) and the group's numbers, which each step reads anew.
        max_grad_norm: bound on the norm of all gradients together, or None.
        skip_nonfinite: whether a gradient that is not finite skips the step.
        skipped_steps: how many steps were skipped.
    """

    _op: ClassVar[str]
    _scalars: ClassVar[tuple[str, ...]]  # the kernel's scalars that come from a group, in the order of _numbers
    _flags: ClassVar[tuple[str, ...]]
    _required: ClassVar[tuple[str, ...]]  # the states that every parameter has after its first step
    _optional: ClassVar[tuple[str, ...]] = ()
    _extra_keys: ClassVar[tuple[str, ...]] = ()  # the array arguments after the states, which a step may bring along
    _within_sam = False  # whether it is the base of a SAM

    def __init__(
        self,
        params: Iterable[Array] | Iterable[Group],
        defaults: Group,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
    ) -> None:
        self._name = type(self).__name__
        self._ranges = {a.name: a.range for a in next(iter(ops()[self._op].values())).scalars}
        self._check_numbers(defaults, "")
        self._check_options(max_grad_norm, skip_nonfinite)
        self.defaults = {key: _frozen(value) for key, value in defaults.items()}
        self.max_grad_norm = max_grad_norm
        self.skip_nonfinite = skip_nonfinite
        self.skipped_steps = 0
        self.param_groups: list[Group] = []
        # One entry per parameter, over all groups:
        self._params: Arrays = []  # as the kernels take them
        self._views: list[np.ndarray[Any, Any]] = []  # the same memory as NumPy arrays
        self._kinds: list[tuple[int, str]] = []  # group and storage format
        self._steps: list[int] = []  # steps its states have taken, less those its cohort still counts
        self._states: dict[str, Arrays] = {name: [] for name in (*self._required, *self._optional)}
        # One entry per group:
        self._given: list[tuple[Array, ...]] = []  # "params", to notice that they were replaced
        self._checked: list[tuple[Any, ...]] = []  # the numbers that were last found good
        # The cohorts, what they were formed for, and the gradients they hold: () if unknown, None without cohorts.
        self._cohorts: list[Cohort] = []
        self._grads: tuple[Any, ...] | None = None
        self._present: list[bool] = []
        self._split = False  # whether step counts keep parameters of one group and dtype apart
        self._used: list[tuple[str, ...]] = []
        self._extras: dict[str, Arrays] = {}  # for this step: an array for each parameter
        if isinstance(params, dict) or hasattr(params, "shape") or not isinstance(params, Iterable):
            raise TypeError(message(self._name, "params", type(params).__name__, "a list of arrays or of group dicts"))
        groups = list(params)
        if not groups:
            raise ValueError(message(self._name, "params", "an empty list", "at least one array or group"))
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    # ---- what a subclass gives ----

    def _numbers(self, group: Group) -> tuple[Any, ...]:
        """The group's values for `_scalars`, then for `_flags`."""
        raise NotImplementedError

    def _used_states(self, group: Group) -> tuple[str, ...]:
        """The states that the group's parameters step with."""
        raise NotImplementedError

    def _plan(self, p: Arrays, g: Arrays, states: dict[str, Arrays]) -> Plan:
        raise NotImplementedError

    def _run(self, cohort: Cohort, group: Group, grad_scale: float) -> None:
        raise NotImplementedError

    def _phase(self, steps: int) -> int:
        """What the kernel needs to know of a step count; parameters that share it share a call."""
        return steps

    def _take_loss(self, loss: Any) -> None:
        """Called between the checks and the kernels; an optimizer without a use for losses takes none."""

    # ---- groups ----

    def add_param_group(self, group: Group) -> None:
        """Adds parameters with numbers of their own.

        Args:
            group: "params", an array or a list of arrays, and any of the constructor's numbers; the others are its
                defaults. "name" and a scheduler's "initial_lr" may stand there too.

        Raises:
            TypeError, ValueError, BufferError: a number out of range, an unknown key, an array that cannot be stepped
                or shares memory with another one. The optimizer has not changed.
        """
        k = len(self.param_groups)
        if not isinstance(group, dict) or "params" not in group:
            found = f"keys {list(group)}" if isinstance(group, dict) else type(group).__name__
            raise TypeError(message(self._name, f"param_groups[{k}]", found, "a dict with 'params'"))
        if unknown := group.keys() - self.defaults.keys() - {"params", "name", "initial_lr"}:
            needed = f"only {', '.join(self.defaults)}, name, initial_lr"
            raise ValueError(message(self._name, f"param_groups[{k}]", f"the keys {sorted(map(str, unknown))}", needed))
        numbers = self.defaults | {key: _frozen(value) for key, value in group.items() if key != "params"}
        self._check_numbers(numbers, f"param_groups[{k}].")
        params = tuple(group["params"]) if isinstance(group["params"], (list, tuple)) else (group["params"],)
        views, formats = [], []
        for i, p in enumerate(params, len(self._params)):
            view, fmt = self._check_param(p, f"params[{i}]")
            views.append(view)
            formats.append(fmt)
        entries = [(f"params[{i}]", True, x) for i, x in enumerate(self._views + views)]
        try:
            _arrays._check_overlap(self._op, entries)
        except ValueError as error:
            self._reword(error)
        self._dissolve()
        self.param_groups.append({"params": params, **numbers})
        self._given.append(params)
        self._checked.append(())
        # NumPy subclasses such as memmap, and bfloat16 arrays, go to the kernels as plain views; tensors as themselves.
        self._params += [v if isinstance(p, np.ndarray) else p for p, v in zip(params, views, strict=True)]
        self._views += views
        self._kinds += [(k, fmt) for fmt in formats]
        self._steps += [0] * len(params)
        for column in self._states.values():
            column += [None] * len(params)

    def _check_param(self, p: Any, label: str) -> tuple[np.ndarray[Any, Any], str]:
        try:
            view = _arrays.numpy_view(p, self._op, label)
            kernel = _arrays._pick(self._op, view, label, None)
            assert kernel.format is not None
            _arrays._check_one(self._op, view, label, kernel.arrays[0], kernel.format, "")
        except (TypeError, ValueError, BufferError) as error:
            self._reword(error)
        return view, kernel.format

    def _check_numbers(self, group: Mapping[str, Any], where: str) -> None:
        try:
            numbers = self._numbers(dict(group))
        except (TypeError, ValueError) as error:
            raise type(error)(message(self._name, f"{where}betas", repr(group.get("betas")), "two numbers")) from None
        for name, value in zip(self._scalars, numbers, strict=False):
            interval = self._ranges[name]
            assert interval is not None
            self._check_number(where + name, value, interval)
        for name in self._flags:
            if not isinstance(group[name], (bool, np.bool_)):
                raise TypeError(message(self._name, where + name, repr(group[name]), "True or False"))

    def _check_number(self, label: str, value: Any, interval: Range) -> None:
        if not hasattr(value, "__float__") or np.ndim(value) > 0:
            raise TypeError(message(self._name, label, f"{value!r} of type {type(value).__name__}", "a real number"))
        if float(value) not in interval:
            raise ValueError(message(self._name, label, f"{value}", f"a number in {interval}"))

    def _check_options(self, max_grad_norm: Any, skip_nonfinite: Any) -> None:
        if max_grad_norm is not None:
            self._check_number("max_grad_norm", max_grad_norm, Range(0.0, math.inf, False, False))
        if not isinstance(skip_nonfinite, (bool, np.bool_)):
            raise TypeError(message(self._name, "skip_nonfinite", repr(skip_nonfinite), "True or False"))

    # ---- steps ----

    def step(self, grads: Sequence[Array | None], loss: Any = None, *, grad_scale: float = 1.0) -> bool:
        """One step of every parameter that has a gradient.

        Args:
            grads: a list with one gradient for each parameter, over all groups in order: its dtype and shape, in memory
                that no parameter shares. None: the parameter, its states and its step count stay as they are. NumPy
                arrays that are the very ones of the last step are recognised and cost least.
            loss: the newest loss, for an optimizer that reads losses (AdamZ); others take no notice.
            grad_scale: the factor that the gradients carry (loss scaling, accumulation), > 0.

        Returns:
            False if the step was skipped because a gradient is not finite, else True.

        Raises:
            TypeError, ValueError, BufferError: a gradient that does not fit, or a number out of range. All are checked
                before anything is written.
        """
        interval = self._ranges["grad_scale"]
        if type(grad_scale) is not float or grad_scale not in interval:  # type: ignore[operator]
            self._check_number("grad_scale", grad_scale, interval)  # type: ignore[arg-type]
        for k, group in enumerate(self.param_groups):
            self._recheck_numbers(k, group)
        self._bind(grads)
        if self.max_grad_norm is not None or self.skip_nonfinite:
            self._check_options(self.max_grad_norm, self.skip_nonfinite)
            norm = global_norm([g for g in grads if g is not None])
            if not math.isfinite(norm):
                if self.skip_nonfinite:
                    self.skipped_steps += 1
                    return False
            elif self.max_grad_norm is not None:
                excess = (norm / grad_scale + 1e-6) / self.max_grad_norm
                if excess > 1:
                    grad_scale = min(grad_scale * excess, sys.float_info.max)
        try:
            if self._extras:
                self._bind_extras(self._extras)
            if loss is not None:
                self._take_loss(loss)
            for cohort in self._cohorts:
                self._run(cohort, self.param_groups[cohort.group], grad_scale)
                if cohort.states:
                    cohort.steps += 1
                    cohort.owed += 1
        finally:
            if self._extras:
                self._bind_extras({})
        if self._split and any(cohort.steps == 1 for cohort in self._cohorts):
            self._dissolve()  # where a first step is special (SGD), newcomers now step like the others
        return True

    def _bind_extras(self, extras: Mapping[str, Arrays]) -> None:
        """Gives the plans these extra arrays, none where a name is absent."""
        for cohort in self._cohorts:
            columns = cohort.plan._columns
            kept = columns[: len(columns) - len(self._extra_keys)]
            own = [[extras[k][i] for i in cohort.indices] if k in extras else None for k in self._extra_keys]
            try:
                cohort.plan.rebind((*kept, *own))
            except (TypeError, ValueError, BufferError) as error:
                self._dissolve()  # a plan that refused arrays holds none
                self._reword(error, cohort.indices)

    def _recheck_numbers(self, k: int, group: Group) -> None:
        """Checks a group's numbers unless they are the very objects that were found good."""
        try:
            numbers = self._numbers(group)
            if self._checked[k] and all(map(operator.is_, numbers, self._checked[k])):
                return
        except (TypeError, ValueError):
            numbers = ()  # betas that are no pair, which the check words
        self._check_numbers(group, f"param_groups[{k}].")
        if _PLAIN.issuperset(map(type, numbers)):
            self._checked[k] = numbers

    def _bind(self, grads: Sequence[Array | None]) -> None:
        """Gives the plans these gradients, all checked."""
        if type(grads) is not list and type(grads) is not tuple:
            raise TypeError(message(f"{self._name}.step", "grads", type(grads).__name__, "a list of arrays"))
        if len(grads) != len(self._params):
            needed = f"{len(self._params)}, one for each parameter (None for one without)"
            raise ValueError(message(f"{self._name}.step", "grads", f"{len(grads)} gradients", needed))
        for k, group in enumerate(self.param_groups):
            if group["params"] is not self._given[k]:
                found = "a tuple other than the one it had"
                remedy = "use add_param_group, or a new optimizer"
                raise ValueError(message(f"{self._name}.step", f"param_groups[{k}].params", found, "no change", remedy))
        used = [self._used_states(group) for group in self.param_groups]
        if used != self._used:
            self._dissolve()
        if self._grads and all(map(operator.is_, grads, self._grads)):
            return
        present = [g is not None for g in grads]
        if self._grads is None or present != self._present:
            self._dissolve()
            self._form(grads, used)
        else:
            for cohort in self._cohorts:
                try:
                    cohort.plan.set_grads([grads[i] for i in cohort.indices])
                except (TypeError, ValueError, BufferError) as error:
                    self._dissolve()  # a plan that refused arrays holds none
                    self._reword(error, cohort.indices)
        self._present, self._used = present, used
        # A tensor that is still the same object may have moved to other memory, an array may not.
        fixed = _FIXED.issuperset(map(type, grads)) and _FIXED.issuperset(map(type, self._params))
        self._grads = tuple(grads) if fixed else ()

    def _form(self, grads: Sequence[Array | None], used: list[tuple[str, ...]]) -> None:
        """Forms the cohorts of the parameters that have gradients."""
        sets: dict[tuple[int, str, int], list[int]] = {}
        for i, (grad, (k, fmt)) in enumerate(zip(grads, self._kinds, strict=True)):
            if grad is not None:
                sets.setdefault((k, fmt, self._phase(self._steps[i])), []).append(i)
        cohorts = []
        for (k, fmt, steps), indices in sets.items():
            cohort = Cohort(k, indices, steps)
            dtype = np.float64 if fmt == "f64" else np.float32
            for name in used[k]:
                kept = self._states[name]
                cohort.states[name] = [
                    np.zeros_like(self._views[i], dtype) if kept[i] is None else kept[i] for i in indices
                ]
            try:
                cohort.plan = self._plan([self._params[i] for i in indices], [grads[i] for i in indices], cohort.states)
            except (TypeError, ValueError, BufferError) as error:
                self._reword(error, indices)
            cohorts.append(cohort)
        for cohort in cohorts:
            for name, column in cohort.states.items():
                for i, state in zip(cohort.indices, column, strict=True):
                    self._states[name][i] = state
        self._cohorts = cohorts
        self._split = len(sets) > len({(k, fmt) for k, fmt, _ in sets})

    def _count(self) -> None:
        """Brings the parameters' step counts up to date; a step counts per cohort, to cost nothing per parameter."""
        for cohort in self._cohorts:
            for i in cohort.indices if cohort.owed else ():
                self._steps[i] += cohort.owed
            cohort.owed = 0

    def _dissolve(self) -> None:
        self._count()
        self._cohorts, self._grads = [], None

    def _reword(self, error: Exception, indices: Sequence[int] | None = None) -> NoReturn:
        """Raises a kernel's error in the words of the caller's lists."""
        text = str(error).replace(f"{self._op}: ", f"{self._name}: ", 1)
        if indices is not None:
            words = {"p": "params", "g": "grads"}
            text = re.sub(r"\b(\w+)\[(\d+)\]", lambda m: f"{words.get(m[1], m[1])}[{indices[int(m[2])]}]", text)
        raise type(error)(text) from None

    # ---- states ----

    @property
    def state(self) -> list[dict[str, Any]]:
        """Per parameter, over all groups: {} before its first step, then "step" and the arrays of its states, live."""
        self._count()
        return [
            {"step": steps} | {name: column[i] for name, column in self._states.items() if column[i] is not None}
            if steps
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

        Raises:
            ValueError: it is not from this class, version or model; the text names what differs. Nothing has changed.
        """
        groups = self._check_state(state)
        columns: dict[str, Arrays] = {name: [None] * len(self._params) for name in self._states}
        for i, entry in enumerate(state["state"]):
            for name in entry.keys() - {"step"}:
                columns[name][i] = np.empty_like(self._views[i], entry[name].dtype)
                columns[name][i][...] = entry[name]
        self._dissolve()
        self._states = columns
        self._steps = [entry.get("step", 0) for entry in state["state"]]
        for group, numbers in zip(self.param_groups, groups, strict=True):
            params = group["params"]
            group.clear()
            group.update({"params": params} | numbers)
        self.max_grad_norm = state["max_grad_norm"]
        self.skip_nonfinite = state["skip_nonfinite"]
        self.skipped_steps = state["skipped_steps"]

    def _check_state(self, state: Any) -> list[Group]:
        """Raises unless the state fits; returns the groups' numbers."""

        def need(met: bool, what: str, found: Any, needed: Any) -> None:
            if not met:
                raise ValueError(message(f"{self._name}.load_state_dict", what, f"{found}", f"{needed}"))

        need(isinstance(state, Mapping), "state", type(state).__name__, f"what {self._name}.state_dict gives")
        for key, value in (("format", FORMAT), ("version", VERSION), ("optimizer", self._name)):
            need(state.get(key) == value, key, repr(state.get(key)), repr(value))
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
            missing = {"params", *self.defaults} - new.keys()
            need(not missing, f"param_groups[{k}]", f"a dict without {sorted(missing)}", "every key that was saved")
            last = first + len(old["params"])
            indices = list(range(first, last))
            found = f"{len(new['params'])} arrays" if isinstance(new["params"], list) else type(new["params"]).__name__
            need(
                new["params"] == indices, f"param_groups[{k}].params", found, f"{last - first} arrays, as in this model"
            )
            first = last
            numbers = {key: _frozen(value) for key, value in new.items() if key != "params"}
            try:
                self._check_numbers(numbers, f"param_groups[{k}].")
            except TypeError as error:
                raise ValueError(str(error)) from None
            groups.append(numbers)

        entries = state["state"]
        need(isinstance(entries, list), "state", type(entries).__name__, "a list")
        need(len(entries) == len(self._params), "state", f"{len(entries)} entries", f"{len(self._params)} parameters")
        for i, (entry, view, (_, fmt)) in enumerate(zip(entries, self._views, self._kinds, strict=True)):
            need(isinstance(entry, Mapping), f"state[{i}]", type(entry).__name__, "a dict")
            if not entry:
                continue
            extra = entry.keys() - {"step", *self._required, *self._optional}
            needed = f"keys {['step', *self._required]} and perhaps {list(self._optional)}"
            need({"step", *self._required} <= entry.keys() and not extra, f"state[{i}]", f"keys {list(entry)}", needed)
            step = entry["step"]
            need(type(step) is int and 1 <= step < 2**63, f"state[{i}].step", repr(step), "an integer >= 1")
            dtype = np.dtype(np.float64 if fmt == "f64" else np.float32)
            for name in entry.keys() - {"step"}:
                x = entry[name]
                found = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
                met = isinstance(x, np.ndarray) and x.dtype == dtype and x.shape == view.shape
                need(met, f"state[{i}].{name}", found, f"{dtype} of shape {view.shape} for params[{i}]")
        return groups

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

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"{self._name} holds other objects' memory and cannot be copied or pickled; use state_dict or save"
        )

    def __repr__(self) -> str:
        lines = [f"{self._name}("]
        for k, group in enumerate(self.param_groups):
            numbers = ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params")
            lines.append(f"  group {k}: {len(group['params'])} arrays, {numbers}")
        return "\n".join([*lines, ")"])
