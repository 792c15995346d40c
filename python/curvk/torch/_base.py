"""What the optimizers of curvk.torch share: from parameter groups to kernel calls, and the state that outlives a step.

A step reads parameters and gradients anew: gradients are reallocated, `p.data` moves, users edit groups. States stay
where they are as a rule, so a step keeps what it found in `Found`, and the next one only makes sure that the state
dicts still hold the same objects.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import is_not
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .._arrays import Column, written
from .._backend import Plan, get_backend
from .._errors import check_scalar
from .._signatures import ops
from ..kernels.optim import global_norm
from ._states import Found, Last, State, Steps, new_states, state_dtype, with_own_memory

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Group = dict[str, Any]
Fresh = dict[
    int, tuple[Tensor, State]
]  # states that a step will put in place if nothing is refused, by id of the parameter

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


def number(x: Any) -> Any:
    """A hyper-parameter or a loss as a Python number; both may be tensors of one element."""
    if not isinstance(x, Tensor):
        return x
    if x.numel() != 1:
        raise ValueError(f"got a tensor of shape {tuple(x.shape)}, needs a number or a tensor of one element")
    return x.item()


@dataclass(slots=True)
class _Batch:
    """A kernel call to come: parameters of one group, dtype and mark."""

    index: int  # of the group
    mark: Any
    grads: list[Tensor]
    plan: Plan
    bases: list[Tensor]  # written tensors that the plan does not report


class FusedOptimizer(torch.optim.Optimizer):
    """Base of the optimizers; a subclass says which states its kernel takes and how a group becomes scalars.

    Args:
        params: tensors, dicts of parameter groups, or (name, tensor) pairs, as torch.optim takes them.
        defaults: torch's group keys and their values.
        max_grad_norm: clip the gradients to this global norm over all groups.
        skip_nonfinite: take no step where a gradient holds inf or NaN.
    """

    _op: str  # the kernel
    _needed: tuple[str, ...]  # the state keys without which a loaded state is not one of this class
    _array_keys: tuple[str, ...]  # the state keys of the parameter's shape
    _extra_keys: tuple[str, ...] = ()  # the array arguments after the states, which a step may bring along
    _within_sam = False  # whether it is the base of a SAM
    _absent: Group  # what a group key means in a pickle or state dict older than the key
    _step_supports_amp_scaling = True  # torch.amp.GradScaler then sets grad_scale and found_inf and calls step()

    def __init__(
        self, params: Params, defaults: Group, *, max_grad_norm: float | None = None, skip_nonfinite: bool = False
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(
                f"{self._name}: argument 'max_grad_norm': got {max_grad_norm}, needs a number > 0, or None"
            )
        self.max_grad_norm = None if max_grad_norm is None else float(max_grad_norm)
        self.skip_nonfinite = bool(skip_nonfinite)
        self._steps: dict[int, Steps] = {}  # by index of the group
        self._last: Last | None = None  # None unless the last step was completed
        self._extras: dict[str, dict[int, Tensor]] = {}  # for this step: a tensor for each parameter, by its id
        self._plans: list[Plan] = []  # one per kernel call of a step; a plan rebinds tensors that it knows faster
        super().__init__(params, defaults)

    @property
    def _name(self) -> str:
        return f"curvk.torch.{type(self).__name__}"

    # ---- what a subclass provides -----------------------------------------------------------------------------------

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        """The state behind each array argument after p and g; None for an array the group does without."""
        raise NotImplementedError

    def _marks(self, index: int, params: list[Tensor], states: list[State] | None, fresh: Fresh) -> list[Any]:
        """For each parameter what a kernel call depends on besides the group: its steps, or whether it is new.

        One item if it is the same for all. `states` is None if they are those of the last step.
        """
        raise NotImplementedError

    def _scalars(self, group: Group, mark: Any, grad_scale: float) -> tuple[Any, ...]:
        """The kernel's scalars in the header's order."""
        raise NotImplementedError

    def _initial(self, p: Tensor, key: str) -> Tensor | None:
        """The first value of a state; None for zeros."""
        return None

    def _observe(self, loss: Any) -> None:
        """Sees the closure's loss, None without one, before the groups' numbers are read."""

    # ---- the step ---------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Steps every parameter that has a gradient.

        Args:
            closure: evaluates the model again, with gradients enabled, and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError, ValueError, BufferError: a parameter, gradient, state or hyper-parameter that cannot be stepped,
                by name; nothing has been written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update(loss)
        return loss

    @_disable_dynamo  # torch.compile would trace into the binder; it leaves the graph here instead
    def _update(self, loss: Any) -> None:
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and float(found_inf):
            return
        fresh: Fresh = {}
        batches: list[_Batch] = []
        last, self._last = self._last, None
        if last is None or not last.holds(self.state):
            last = None
        found: dict[int, Found] = {}
        try:
            for index in range(len(self.param_groups)):
                self._bind(index, batches, fresh, last.found.get(index) if last else None, found)
            scale = self._scale(1.0 if grad_scale is None else float(grad_scale), batches)
            if scale is None:
                return
            self._observe(loss)
            scalars = [self._checked_scalars(b.index, self.param_groups[b.index], b.mark, scale) for b in batches]
            # Nothing is refused from here on.
            for p, state in fresh.values():
                self.state[p] = state
            for index in {b.index for b in batches} & self._steps.keys():
                self._steps[index].vector.add_(1)
            for batch, own in zip(batches, scalars, strict=True):
                batch.plan.run(own)
                written(batch.bases)
            if last is None or fresh:
                last = Last(self.state, found)
            self._last, last.found = last, found
        finally:
            self._release(len(batches))

    def _bind(
        self, index: int, batches: list[_Batch], fresh: Fresh, before: Found | None, found: dict[int, Found]
    ) -> None:
        """Checks a group's parameters that have gradients and binds them to kernel calls."""
        group = self.param_groups[index]
        params: list[Tensor] = list(group["params"])
        grads: list[Any] = [p.grad for p in params]
        if not all(map(is_not, grads, repeat(None))):
            params = [p for p, g in zip(params, grads, strict=True) if g is not None]
            grads = [g for g in grads if g is not None]
        if not params:
            return
        keys = self._keys(group)
        if before is not None and self._bound_again(index, batches, before, params, grads, keys):
            found[index] = before
            return
        states: list[State] = list(map(self.state.get, params)) if any(keys) else []  # type: ignore[arg-type]
        try:
            columns = [None if k is None else [s[k] for s in states] for k in keys]
        except (KeyError, TypeError):  # parameters not stepped before, or amsgrad or momentum switched on since
            states = self._completed(params, states, keys, fresh)
            columns = [None if k is None else [s[k] for s in states] for k in keys]
        marks = self._marks(index, params, states, fresh)
        table: list[Column] = [params, grads, *columns, *self._extra_columns(params)]
        dtypes = [p.dtype for p in params]
        if len(set(dtypes)) == 1 and len(set(marks)) == 1:
            batches.append(self._batch(len(batches), index, marks[0], table, keys, fresh))
            if not params[0].is_complex():  # whose states the kernel sees through other tensors
                found[index] = Found(params, keys, columns)
            return
        sets: dict[Hashable, list[int]] = {}
        for row, kind in enumerate(zip(dtypes, marks * (len(params) // len(marks)), strict=True)):
            sets.setdefault(kind, []).append(row)
        for rows in sets.values():
            part = [None if c is None else [c[row] for row in rows] for c in table]
            batches.append(self._batch(len(batches), index, marks[rows[0] % len(marks)], part, keys, fresh))

    def _bound_again(
        self,
        index: int,
        batches: list[_Batch],
        before: Found,
        params: list[Tensor],
        grads: list[Tensor],
        keys: tuple[str | None, ...],
    ) -> bool:
        """Binds what the last step found; False if something is different, which `_bind` then sorts out."""
        if not before.holds(params, keys):
            return False
        if moved := before.moved():
            p, key = moved
            raise RuntimeError(
                f"{self._name}: the state '{key}' of {self._label(index, p)} was given other memory through .data; "
                f"use optimizer.state[p]['{key}'] = tensor"
            )
        marks = self._marks(index, params, None, {})
        if len(marks) > 1:
            return False
        try:
            plan = self._plan(len(batches), (params, grads, *before.columns, *self._extra_columns(params)))
        except (TypeError, ValueError, BufferError, RuntimeError):
            return False
        batches.append(_Batch(index, marks[0], grads, plan, before.bases))
        return True

    def _extra_columns(self, params: list[Tensor]) -> list[Column]:
        tables = [self._extras.get(key) for key in self._extra_keys]
        return [None if table is None else [table[id(p)] for p in params] for table in tables]

    def _plan(self, slot: int, columns: tuple[Column, ...]) -> Plan:
        if slot < len(self._plans):
            self._plans[slot].rebind(columns)
        else:
            self._plans.append(Plan(self._op, columns))
        return self._plans[slot]

    def _release(self, used: int) -> None:
        """Lets go of gradients and extras, so that zero_grad() frees them; plans that cannot let go are dropped."""
        kept = []
        for plan in self._plans[:used]:
            grads = plan._columns[1]
            # Where layouts differ the binder holds NumPy views of its own, which torch marks on the storage.
            if get_backend() == "cpp" and grads and grads[0].untyped_storage().resizable():
                kept.append(plan)
            grads.clear()
            for extra in plan._columns[len(plan._columns) - len(self._extra_keys) :]:
                if extra is not None:
                    extra.clear()
        self._plans = kept

    def _completed(
        self, params: list[Tensor], states: Sequence[State | None], keys: tuple[str | None, ...], fresh: Fresh
    ) -> list[State]:
        """The states with what they lack."""
        completed = [s or {} for s in states]
        wanted = [(row, k) for k in keys if k is not None for row, s in enumerate(completed) if k not in s]
        for row in {row for row, _ in wanted}:
            completed[row] = {**({"step": 0.0} if "step" in self._needed else {}), **completed[row]}
            fresh[id(params[row])] = (params[row], completed[row])
        new = new_states([(params[row], k, self._initial(params[row], k)) for row, k in wanted])
        for (row, key), state in zip(wanted, new, strict=True):
            completed[row][key] = state
        return completed

    def _batch(
        self, slot: int, index: int, mark: Any, table: list[Column], keys: tuple[str | None, ...], fresh: Fresh
    ) -> _Batch:
        """Binds the columns p, g and states of one dtype to the plan of a slot."""
        bound = table
        try:
            if table[0][0].is_complex():
                bound = [c if c is None else [torch.view_as_real(x.detach().resolve_conj()) for x in c] for c in table]
            return _Batch(index, mark, bound[1], self._plan(slot, tuple(bound)), [])
        except (TypeError, ValueError, BufferError, RuntimeError) as error:
            mended = self._mended(table, keys, fresh)
            if mended is None:
                raise self._explained(index, table, keys, error) from None
        return self._batch(slot, index, mark, mended, keys, fresh)

    def _mended(self, table: list[Column], keys: tuple[str | None, ...], fresh: Fresh) -> list[Column] | None:
        """The table with gradients that torch negates lazily made plain, and with states that follow their parameter's
        dtype and device after `model.to(...)`; None if that is not what is wrong.
        """
        params, grads, *columns = table[: 2 + len(keys)]
        mended: list[Column] = [params, [g.resolve_neg() if g.is_neg() else g for g in grads]]
        for key, column in zip(keys, columns, strict=True):
            mended.append(column and list(column))
            wrong = [
                row
                for row, (p, s) in enumerate(zip(params, column or (), strict=False))
                if isinstance(s, Tensor) and s.shape == p.shape and (s.dtype, s.device.type) != (state_dtype(p), "cpu")
            ]
            new = new_states([(params[row], str(key), column[row]) for row in wrong])
            for row, s in zip(wrong, new, strict=True):
                p = params[row]
                fresh.setdefault(id(p), (p, dict(self.state[p])))[1][str(key)] = mended[-1][row] = s
        for extra in table[2 + len(keys) :]:
            mended.append(None if extra is None else [x.resolve_neg() if x.is_neg() else x for x in extra])
        same = all(
            a is b for old, new in zip(table, mended, strict=True) for a, b in zip(old or (), new or (), strict=True)
        )
        return None if same else mended

    def _scale(self, scale: float, batches: list[_Batch]) -> float | None:
        """The gradients' factor with clipping folded in; None if the step is to be skipped."""
        if self.max_grad_norm is None and not self.skip_nonfinite:
            return scale
        norm = global_norm([g for b in batches for g in b.grads]) / scale
        if not math.isfinite(norm):
            return None if self.skip_nonfinite else scale
        return scale if self.max_grad_norm is None else scale / min(1.0, self.max_grad_norm / (norm + 1e-6))

    def _checked_scalars(self, index: int, group: Group, mark: Any, grad_scale: float) -> tuple[Any, ...]:
        for flag, remedy in (("capturable", "which CUDA graphs do not capture"), ("differentiable", "without a graph")):
            if group.get(flag):
                raise NotImplementedError(
                    f"{self._name}, parameter group {index}: got {flag}=True, but curvk steps CPU tensors {remedy}; "
                    f"leave it False, or use torch.optim.{type(self).__name__.removesuffix('Z')}"
                )
        try:
            scalars = self._scalars(group, mark, grad_scale)
            arguments = next(iter(ops()[self._op].values())).scalars
            return tuple(check_scalar(self._op, a.name, x) for a, x in zip(arguments, scalars, strict=True))
        except (TypeError, ValueError, OverflowError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self._name}, parameter group {index}: {error}") from None

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _label(self, index: int, p: Tensor) -> str:
        group = self.param_groups[index]
        position = next(i for i, q in enumerate(group["params"]) if q is p)
        names = group.get("param_names")
        return f"parameter '{names[position]}'" if names else f"parameter {position} of group {index}"

    def _explained(self, index: int, table: list[Column], keys: tuple[str | None, ...], error: Exception) -> Exception:
        """An error in the words of the model for one in the words of the kernel."""
        params, grads, *columns = table[: 2 + len(keys)]
        peer = f"torch.optim.{type(self).__name__.removesuffix('Z')}"
        for row, (p, g) in enumerate(zip(params, grads, strict=True)):
            label = f"{self._name}: {self._label(index, p)}"
            if p.device.type != "cpu":
                return BufferError(f"{label} is on device {p.device}, needs the CPU; use model.cpu(), or {peer} there")
            if p.layout != torch.strided or p.dtype not in _DTYPES:
                return TypeError(
                    f"{label} is {p.dtype} in layout {p.layout}, needs a dense tensor of floats; use {peer}"
                )
            label = f"{self._name}: the gradient of {self._label(index, p)}"
            if g.layout != torch.strided:
                return TypeError(
                    f"{label} is sparse, needs to be dense; make its layer with sparse=False, or give the parameter "
                    "to torch.optim.SparseAdam or torch.optim.SGD"
                )
            if g.device != p.device:
                return BufferError(f"{label} is on device {g.device}, needs the CPU; use p.grad = p.grad.cpu()")
            if g.dtype != p.dtype:
                return TypeError(
                    f"{label} is {g.dtype}, needs {p.dtype} as the parameter; use p.grad = p.grad.to(p.dtype)"
                )
            if g.shape != p.shape:
                return ValueError(
                    f"{label} has shape {tuple(g.shape)}, needs {tuple(p.shape)} as the parameter; "
                    "use optimizer.zero_grad() after changing p.data"
                )
            for key, column in zip(keys, columns, strict=True):
                if column is not None and (not isinstance(column[row], Tensor) or column[row].shape != p.shape):
                    found = tuple(column[row].shape) if isinstance(column[row], Tensor) else type(column[row]).__name__
                    return ValueError(
                        f"{self._name}: the state '{key}' of {self._label(index, p)} has shape {found}, needs "
                        f"{tuple(p.shape)} as the parameter; delete optimizer.state[p] to start it anew"
                    )
        words = dict(
            zip(
                [a.name for a in next(iter(ops()[self._op].values())).arrays],
                ["", "gradient of ", *keys, *self._extra_keys],
                strict=True,
            )
        )

        def word(match: re.Match[str]) -> str:
            column, row = match.groups()
            of = f"{words[column]} of " if column not in "pg" else words[column]
            return f"{of}{self._label(index, params[int(row)])}"

        text = re.sub(r"'(\w+)\[(\d+)\]'", word, str(error).removeprefix(f"{self._op}: argument ").split("; ")[0])
        if "of its own" in text:
            text += "; give it its own memory with .clone(), or share the Parameter object itself"
        return type(error)(f"{self._name}: {text}")

    # ---- groups and state -------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group as torch does; its numbers are checked now, and a parameter listed twice is kept once."""
        if isinstance(param_group, dict) and "params" in param_group:
            params = param_group["params"]
            if not isinstance(params, (Tensor, set)):
                once: dict[int, Any] = {}
                for x in params:
                    once.setdefault(id(x[1] if isinstance(x, tuple) else x), x)
                param_group["params"] = list(once.values())
            self._checked_scalars(len(self.param_groups), {**self.defaults, **param_group}, 0, 1.0)
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        # Views of one buffer would each be pickled with the whole of it.
        state = super().__getstate__()
        state["state"] = defaultdict(dict, {p: with_own_memory(s) for p, s in self.state.items()})
        return state | {"max_grad_norm": self.max_grad_norm, "skip_nonfinite": self.skip_nonfinite}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._steps, self._plans, self._last, self._extras = {}, [], None, {}
        for group in self.param_groups:
            for key, value in self._absent.items():
                group.setdefault(key, value)
            if "capturable" in group:
                group["capturable"] = False  # a checkpoint from a CUDA graph; it changes no number

    def state_dict(self) -> dict[str, Any]:
        """As torch's, for torch's optimizer of the same name too; moments of 16-bit parameters are float32.

        The moments are the optimizer's tensors, not copies, but for those whose buffer they fill by less than half: to
        save a view saves its buffer.
        """
        state_dict = super().state_dict()
        views = [
            (v.nbytes, v._base)
            for s in state_dict["state"].values()
            for k, v in (s.items() if isinstance(s, dict) else ())
            if k != "step" and isinstance(v, Tensor) and v._base is not None
        ]
        filled = Counter[int]()
        for nbytes, base in views:
            filled[id(base)] += nbytes
        keep = {id(base) for _, base in views if 2 * filled[id(base)] >= base.nbytes}
        return {**state_dict, "state": {k: with_own_memory(s, keep) for k, s in state_dict["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class or of torch's; the state is copied, with every bit that its dtype holds.

        Raises:
            TypeError, ValueError: not a state dict, or one of other parameters or of another optimizer; nothing has
                changed.
        """
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            raise TypeError(
                f"{self._name}: got {type(state_dict).__name__}, needs a dict with 'state' and 'param_groups'"
            )
        loaded: dict[str, Any] = {}

        def before(_hooked: Any, state_dict: dict[str, Any]) -> None:
            self._check_loaded(state_dict)
            loaded.update(state_dict)

        def after(_hooked: Any) -> None:  # torch has cast the moments to the parameters' dtypes
            wanted = []
            for _, p, state in self._pairs(loaded):
                for key in dict.fromkeys(self._needed + self._array_keys):
                    value = state.get(key)
                    if value is None:  # SGD's buffer before its first step
                        self.state[p].pop(key, None)
                    elif key == "step":
                        self.state[p][key] = torch.tensor(float(value), dtype=torch.float32)
                    else:
                        wanted.append((p, key, value))
            for (p, key, _), own in zip(wanted, new_states(wanted), strict=True):
                self.state[p][key] = own

        hooks = (
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _pairs(self, state_dict: dict[str, Any]) -> Iterator[tuple[int, Tensor, State]]:
        """Each parameter with its group's index and its state in a state dict; torch refuses lengths that differ."""
        for index, (group, saved) in enumerate(zip(self.param_groups, state_dict["param_groups"], strict=False)):
            for p, key in zip(group["params"], saved["params"], strict=False):
                if state_dict["state"].get(key):
                    yield index, p, state_dict["state"][key]

    def _check_loaded(self, state_dict: dict[str, Any]) -> None:
        for index, group in enumerate(state_dict["param_groups"]):
            if missing := self.defaults.keys() - self._absent.keys() - group.keys():
                raise ValueError(
                    f"{self._name}: the loaded parameter group {index} has no {sorted(missing)}; "
                    "it comes from another optimizer"
                )
            self._checked_scalars(index, {**self._absent, **group, "capturable": False}, 0, 1.0)
        for index, p, state in self._pairs(state_dict):
            label = f"{self._name}: the loaded state of {self._label(index, p)}"
            if missing := set(self._needed) - state.keys():
                raise ValueError(f"{label} has no {sorted(missing)}; it comes from another optimizer")
            for key in self._array_keys:
                value = state.get(key)
                if value is not None and (not isinstance(value, Tensor) or value.shape != p.shape):
                    found = (
                        f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
                    )
                    raise ValueError(f"{label} has '{key}' of {found}, needs shape {tuple(p.shape)} as the parameter")
