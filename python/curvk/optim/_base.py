"""What the optimizers share: param groups, one plan per set of parameters that step alike, state dicts and files."""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import numpy as np

from .. import _arrays
from .._arrays import Array
from .._backend import Plan
from .._errors import message
from .._signatures import Range, ops
from ..kernels.noise import tensor_word
from ..kernels.optim import global_norm
from . import _storage
from ._states import Arrays, States, _frozen
from ._storage import Group, Slot, Storage

__all__ = ["Arrays", "Cohort", "Group", "Optimizer"]

_PLAIN = {float, int, bool, str, type(None)}  # the same object has the same value; not so a tensor or a 0-d array
_FIXED = {np.ndarray, type(None)}


@lru_cache(maxsize=64)
def _place(op: str, name: str) -> int:
    """Where a kernel has an array among its columns."""
    return [a.name for a in next(iter(ops()[op].values())).arrays].index(name)


class Cohort:
    """Parameters of one group, dtype and step count: one plan, one kernel call."""

    def __init__(self, group: int, indices: list[int], steps: int, fresh: bool, storage: Storage) -> None:
        self.group, self.indices, self.storage = group, indices, storage
        self.steps = steps  # taken by its states
        self.owed = 0  # of these, the ones not yet counted in Optimizer._steps
        self.fresh_at = steps if fresh else -2  # the count at which the moments have no values yet
        self.states: dict[str, Arrays] = {}
        self.plan: Any = None

    def options(self, group: Group) -> dict[str, Any]:
        """What a sweep takes besides the plain kernel's numbers."""
        if not self.storage.sweeps:
            return {}
        ema = group["ema"]
        return {
            "rounding": self.storage.rounding,
            "ema_decay": 0.0 if ema is None else ema,
            "zero_grad": group["zero_grad"],
            "draw": self.steps + 1,
            "seed": group["seed"],
        }


class Optimizer(States):
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
        if self._sweeps:
            _storage.check(self._name, "", defaults, ())
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
        names = (*self._required, *self._optional)
        if self._sweeps:
            names = (*names, *(f"{name}_scale" for name in names), *_storage.KEPT)
        self._states: dict[str, Arrays] = {name: [] for name in names}
        # One entry per group:
        self._given: list[tuple[Array, ...]] = []  # "params", to notice that they were replaced
        self._checked: list[tuple[Any, ...]] = []  # the numbers that were last found good
        self._asked: list[tuple[Any, ...]] = []  # the states and options among them
        self._layouts: list[dict[str, Storage]] = []  # by format, the storage that these ask for
        self._used: list[dict[str, Storage]] = []  # and the one of the states; {} before there are any
        # The cohorts, what they were formed for, and the gradients they hold: () if unknown, None without cohorts.
        self._cohorts: list[Cohort] = []
        self._grads: tuple[Any, ...] | None = None
        self._present: list[bool] = []
        self._split = False  # whether step counts keep parameters of one group and dtype apart
        self._pending = False  # whether the cohorts have states that no step has taken
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

    def _sweep_plan(self, p: Arrays, g: Arrays, cohort: Cohort, **tables: Any) -> Any:
        """A plan of the sweep kernel for the cohort's states and these tables."""
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
        if self._sweeps:
            _storage.check(self._name, f"param_groups[{k}].", numbers, formats)
        entries = [(f"params[{i}]", True, x) for i, x in enumerate(self._views + views)]
        try:
            _arrays._check_overlap(self._op, entries)
        except ValueError as error:
            self._reword(error)
        self._dissolve()
        self.param_groups.append({"params": params, **numbers})
        self._given.append(params)
        self._checked.append(())
        self._asked.append(())
        self._layouts.append(self._layout(numbers, dict.fromkeys(formats)))
        self._used.append({})
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

    def _layout(self, group: Group, formats: Iterable[str]) -> dict[str, Storage]:
        """How parameters of these formats are stored by a group's numbers."""
        names = self._used_states(group)
        return {fmt: _storage.storage_of(names, fmt, group) for fmt in formats}

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

    def _stored_by(self, group: Group) -> tuple[Any, ...]:
        """What says how a group's parameters and states are stored."""
        return _storage.values(group) if self._sweeps else ()

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
            RuntimeError: within `averaged`.
        """
        if self._averaging:
            raise RuntimeError(f"{self._name}.step: the parameters hold their averages; leave averaged() first")
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
                    self._zero(grads)
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
            if self._pending:
                self._commit()
            for cohort in self._cohorts:
                self._run(cohort, self.param_groups[cohort.group], grad_scale)
                if cohort.states or cohort.storage.sweeps:
                    cohort.steps += 1
                    cohort.owed += 1
        finally:
            if self._extras:
                self._bind_extras({})
        if self._split and any(cohort.steps == cohort.fresh_at + 1 for cohort in self._cohorts):
            self._dissolve()  # where a first step is special (SGD), newcomers now step like the others
        return True

    def _zero(self, grads: Sequence[Array | None]) -> None:
        """Zeroes the gradients of a step that is skipped, where the group asks for it."""
        asked = [bool(group.get("zero_grad")) for group in self.param_groups]
        for g, (k, _) in zip(grads, self._kinds, strict=True) if any(asked) else ():
            if g is not None and asked[k]:
                _arrays.numpy_view(g, self._name, "grads")[...] = 0
                _arrays.written([g])

    def _bind_extras(self, extras: Mapping[str, Arrays]) -> None:
        """Gives the plans these extra arrays, none where a name is absent."""
        for cohort in self._cohorts:
            plan = cohort.plan if isinstance(cohort.plan, Plan) else cohort.plan._plan
            columns = list(plan._columns)
            for key in self._extra_keys:
                column = [extras[key][i] for i in cohort.indices] if key in extras else None
                columns[_place(plan._op, key)] = column
            try:
                plan.rebind(tuple(columns))
            except (TypeError, ValueError, BufferError) as error:
                self._dissolve()  # a plan that refused arrays holds none
                self._reword(error, cohort.indices)

    def _recheck_numbers(self, k: int, group: Group) -> None:
        """Checks a group's numbers unless they are the very objects that were found good."""
        try:
            numbers = self._numbers(group) + self._stored_by(group)
            if self._checked[k] and all(map(operator.is_, numbers, self._checked[k])):
                return
        except (TypeError, ValueError):
            numbers = ()  # betas that are no pair, which the check words
        self._check_numbers(group, f"param_groups[{k}].")
        asked = (self._used_states(group), *self._stored_by(group))
        if not self._asked[k] or not all(map(operator.is_, asked, self._asked[k])):
            if self._sweeps:
                _storage.check(self._name, f"param_groups[{k}].", group, self._layouts[k])
            layout = self._layout(group, self._layouts[k])
            self._check_held(k, layout)
            self._layouts[k] = layout
            self._asked[k] = asked if _PLAIN.issuperset(map(type, asked[1:])) else ()
        if _PLAIN.issuperset(map(type, numbers)):
            self._checked[k] = numbers

    def _check_held(self, k: int, layout: dict[str, Storage]) -> None:
        """Raises if the group's moments are held in another format than this layout's."""
        for fmt, old in self._used[k].items():
            if old.described != layout[fmt].described and any(
                kind == (k, fmt) and any(self._states[slot.name][i] is not None for slot in old.moments)
                for i, kind in enumerate(self._kinds)
            ):
                found, needed = layout[fmt].described, f"{old.described}, as its states are held"
                remedy = "set it back, and load what curvk.optim.convert_state_dict then makes of the state_dict"
                raise ValueError(message(self._name, f"param_groups[{k}]", found, needed, remedy))

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
        if self._pending or self._layouts != self._used:
            self._dissolve()
        if self._grads and all(map(operator.is_, grads, self._grads)):
            return
        present = [g is not None for g in grads]
        if self._grads is None or present != self._present:
            self._dissolve()
            self._form(grads)
        else:
            for cohort in self._cohorts:
                try:
                    cohort.plan.set_grads([grads[i] for i in cohort.indices])
                except (TypeError, ValueError, BufferError) as error:
                    self._dissolve()  # a plan that refused arrays holds none
                    self._reword(error, cohort.indices)
        self._present = present
        # A tensor that is still the same object may have moved to other memory, an array may not.
        fixed = _FIXED.issuperset(map(type, grads)) and _FIXED.issuperset(map(type, self._params))
        self._grads = tuple(grads) if fixed else ()

    def _form(self, grads: Sequence[Array | None]) -> None:
        """Forms the cohorts of the parameters that have gradients."""
        sets: dict[tuple[int, str, int, bool], list[int]] = {}
        for i, (grad, (k, fmt)) in enumerate(zip(grads, self._kinds, strict=True)):
            if grad is not None:
                storage, steps = self._layouts[k][fmt], self._steps[i]
                fresh = bool(storage.moments) and self._states[storage.moments[0].name][i] is None
                phase = steps if storage.draws else self._phase(steps)
                sets.setdefault((k, fmt, phase, fresh), []).append(i)
        cohorts = []
        for (k, fmt, steps, fresh), indices in sets.items():
            storage = self._layouts[k][fmt]
            cohort = Cohort(k, indices, steps, fresh, storage)
            for slot in storage.slots:
                cohort.states[slot.name] = [self._held(slot, i, storage) for i in indices]
            p, g = [self._params[i] for i in indices], [grads[i] for i in indices]
            try:
                if storage.sweeps:
                    tables: dict[str, Any] = {"low": cohort.states.get("param_low")}
                    tables["ema"] = cohort.states.get("param_ema")
                    tables["tensor"] = [tensor_word(str(i), "rounding") for i in indices]
                    cohort.plan = self._sweep_plan(p, g, cohort, **tables)
                else:
                    cohort.plan = self._plan(p, g, cohort.states)
            except (TypeError, ValueError, BufferError) as error:
                self._reword(error, indices)
            cohorts.append(cohort)
        self._cohorts = cohorts
        self._split = len(sets) > len({(k, fmt) for k, fmt, *_ in sets})
        self._pending = True

    def _held(self, slot: Slot, i: int, storage: Storage) -> Array:
        """A parameter's state, or a new one."""
        state = self._states[slot.name][i]
        k, fmt = self._kinds[i]
        if slot.name == "param_low" and self._used[k] and self._used[k][fmt].rounding != storage.rounding:
            state = None  # the low half of another kind
        if state is not None:
            return state
        if slot.name != "param_ema":
            return slot.zeros(self._views[i])
        return _storage.widened(self._extras["origin"][i] if self._extras else self._params[i], fmt)

    def _commit(self) -> None:
        """Makes the cohorts' states the parameters'; a low half or an average that is out of use is forgotten."""
        for i, (k, fmt) in enumerate(self._kinds if self._used != self._layouts else ()):
            new, old = self._layouts[k][fmt], self._used[k].get(fmt)
            for name in _storage.KEPT if self._sweeps else ():
                if old is not None and (
                    name not in [s.name for s in new.kept] or (name == "param_low" and old.rounding != new.rounding)
                ):
                    self._states[name][i] = None
        for cohort in self._cohorts:
            for name, column in cohort.states.items():
                for i, state in zip(cohort.indices, column, strict=True):
                    self._states[name][i] = state
        self._used = list(self._layouts)
        self._pending = False

    def _count(self) -> None:
        """Brings the parameters' step counts up to date; a step counts per cohort, to cost nothing per parameter."""
        for cohort in self._cohorts:
            for i in cohort.indices if cohort.owed else ():
                self._steps[i] += cohort.owed
            cohort.owed = 0

    def _dissolve(self) -> None:
        self._count()
        self._cohorts, self._grads, self._pending = [], None, False

    def _reword(self, error: Exception, indices: Sequence[int] | None = None) -> NoReturn:
        """Raises a kernel's error in the words of the caller's lists."""
        text = re.sub(rf"^{self._op.partition('_')[0]}_\w+: ", f"{self._name}: ", str(error))
        if indices is not None:
            words = {"p": "params", "g": "grads"}
            text = re.sub(r"\b(\w+)\[(\d+)\]", lambda m: f"{words.get(m[1], m[1])}[{indices[int(m[2])]}]", text)
        raise type(error)(text) from None

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"{self._name} holds other objects' memory and cannot be copied or pickled; use state_dict or save"
        )

    def __repr__(self) -> str:
        lines = [f"{self._name}("]
        for k, group in enumerate(self.param_groups):
            numbers = ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params")
            lines.append(f"  group {k}: {len(group['params'])} arrays, {numbers}")
        lines.append("  " + ", ".join(f"{key}={value!r}" for key, value in self._settings().items()))
        return "\n".join([*lines, ")"])

    def _settings(self) -> dict[str, Any]:
        """What `repr` tells besides the groups' numbers."""
        return {"max_grad_norm": self.max_grad_norm, "skip_nonfinite": self.skip_nonfinite}
