"""What the optimizers of curvk.torch share: from parameter groups to kernel calls, and the state that outlives a step.

A step reads parameters and gradients anew: gradients are reallocated, `p.data` moves, users edit groups. States stay
where they are as a rule, so a step keeps what it found in `Found`, and the next one only makes sure that the state
dicts still hold the same objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter, is_not
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .._arrays import Column, written
from .._backend import Plan, get_backend
from .._signatures import ops
from ..kernels.noise import tensor_word
from ..kernels.optim import global_norm
from ._devices import capturing, lacking, served, strides_as
from ._groups import GroupedOptimizer, wanted
from ._states import Clock, Found, Last, State, Steps, new_states
from ._states import number as number
from ._storage import Group as Group
from ._storage import Storage

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Fresh = dict[
    int, tuple[Tensor, State]
]  # states that a step will put in place if nothing is refused, by id of the parameter

Place = tuple[torch.dtype, torch.device]  # of parameters that go to one kernel call
place_of: Callable[[Tensor], Place] = attrgetter("dtype", "device")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


@dataclass(slots=True)
class _Batch:
    """A kernel call to come: parameters of one group, dtype, device and mark."""

    index: int  # of the group
    place: Place
    storage: Storage
    mark: Any
    grads: Sequence[Tensor]
    plan: Plan
    bases: list[Tensor]  # written tensors that the plan does not report
    uncleared: list[Tensor] = field(default_factory=list)  # gradients that the plan has copies of, but is to set to 0


class FusedOptimizer(GroupedOptimizer):
    """Base of the optimizers; a subclass says which states its kernel takes and how a group becomes scalars.

    Args:
        params: tensors, dicts of parameter groups, or (name, tensor) pairs, as torch.optim takes them.
        defaults: torch's group keys and their values.
        max_grad_norm: clip the gradients to this global norm over all groups.
        skip_nonfinite: take no step where a gradient holds inf or NaN.
    """

    _extra_keys: tuple[str, ...] = ()  # the array arguments after the states, which a step may bring along
    _within_sam = False  # whether it is the base of a SAM
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
        self._start_anew()
        super().__init__(params, defaults)

    def _start_anew(self) -> None:
        """Drops what only holds between the steps of these tensors."""
        self._averaging = False  # the parameters hold their averages
        self._steps: dict[Any, Steps] = {}  # by group, dtype and device
        self._last: Last | None = None  # None unless the last step was completed
        self._extras: dict[str, dict[int, Tensor]] = {}  # for this step: a tensor for each parameter, by its id
        self._plans: list[Plan | None] = []  # one per kernel call of a step; it rebinds tensors that it knows faster
        self._tensor_words: dict[int, int] = {}  # what a parameter's rounding is keyed by, by its id
        self._formats: dict[int, str] = {}  # of the codes of a parameter, by its id: small ones do not show it
        self._lengths: list[int] = []  # of the groups, at the last step

    # ---- what a subclass provides -----------------------------------------------------------------------------------

    def _marks(self, index: Any, params: list[Tensor], states: list[State] | None, fresh: Fresh) -> list[Any]:
        """For each parameter what a kernel call depends on besides the group: its steps, or whether it is new.

        One item if it is the same for all. `index` says which of the optimizer's parameters these are; `states` is
        None if they are those of the last step.
        """
        raise NotImplementedError

    def _initial(self, p: Tensor, key: str) -> Tensor | None:
        """The first value of a state; None for zeros."""
        return self._extras.get("origin", {}).get(id(p), p) if key == "param_ema" else None

    def _observe(self, loss: Any) -> None:
        """Sees the closure's loss, None without one, before the groups' numbers are read."""

    # ---- the step ---------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @overload
    def step(self, closure: Callable[[], Tensor]) -> Tensor: ...

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
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
        if self._averaging:
            raise RuntimeError(f"{self._name}: the parameters hold their averages; step outside of averaged()")
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None or isinstance(grad_scale, Tensor):
            self._refuse_scaling("grad_scale" if found_inf is None else "found_inf")
        if found_inf is not None and float(found_inf):
            self._clear_grads()
            return
        fresh: Fresh = {}
        batches: list[_Batch] = []
        last, self._last = self._last, None
        lengths = [len(group["params"]) for group in self.param_groups]
        if last is None or not last.holds(self.state) or lengths != self._lengths:
            last = None
        self._lengths = lengths
        found: dict[int, Found] = {}
        try:
            for index in range(len(self.param_groups)):
                self._bind(index, batches, fresh, last.found.get(index) if last else None, found)
            scale = self._scale(1.0 if grad_scale is None else float(grad_scale), batches)
            if scale is None:
                self._clear_grads()
                return
            self._observe(loss)
            scalars = [
                self._checked_scalars(b.index, self.param_groups[b.index], b.mark, scale, b.storage) for b in batches
            ]
            if fresh and any(capturing(p.device) for p, _ in fresh.values()):
                raise self._too_early()
            # Nothing is refused from here on.
            for p, state in fresh.values():
                self.state[p] = state
            for key in {(b.index, *b.place) for b in batches} & self._steps.keys():
                self._steps[key].count(self.param_groups[key[0]])
            for batch, own in zip(batches, scalars, strict=True):
                batch.plan.run(own)
                written(batch.bases)
                for g in batch.uncleared:
                    g.zero_()
            if last is None or fresh:
                last = Last(self.state, found)
            self._last, last.found = last, found
        finally:
            self._release(len(batches))

    @torch.no_grad()
    def _clear_grads(self) -> None:
        """Sets the gradients to zero that a step would have, for one that is skipped: inf would stay in the sum."""
        for group in self.param_groups:
            for p in group["params"] if group.get("zero_grad") else ():
                if p.grad is not None:
                    p.grad.zero_()

    def _bind(
        self, index: int, batches: list[_Batch], fresh: Fresh, before: Found | None, found: dict[int, Found]
    ) -> None:
        """Checks a group's parameters that have gradients and binds them to kernel calls."""
        params: list[Tensor] = list(self.param_groups[index]["params"])
        grads: list[Any] = [p.grad for p in params]
        if not all(map(is_not, grads, repeat(None))):
            params = [p for p, g in zip(params, grads, strict=True) if g is not None]
            grads = [g for g in grads if g is not None]
        if not params:
            return
        if before is not None and self._bound_again(index, batches, before, params, grads):
            found[index] = before
            return
        places = list(map(place_of, params))
        distinct = dict.fromkeys(places)
        if self.param_groups[index].get("capturable") and len(devices := {str(device) for _, device in distinct}) > 1:
            raise ValueError(
                f"{self._name}, parameter group {index}: got capturable=True with parameters on "
                f"{' and '.join(sorted(devices))}, needs one device; make a group for each"
            )
        if len(distinct) == 1:
            kept = self._bind_alike(index, batches, fresh, params, grads)
            if kept is not None:
                found[index] = kept
            return
        for place in distinct:
            rows = [row for row, at in enumerate(places) if at == place]
            self._bind_alike(index, batches, fresh, [params[row] for row in rows], [grads[row] for row in rows])

    def _bind_alike(
        self, index: int, batches: list[_Batch], fresh: Fresh, params: list[Tensor], grads: list[Tensor]
    ) -> Found | None:
        """Binds parameters of one group, dtype and device; returns what to keep if that is one call."""
        place = place_of(params[0])
        storage = self._checked_storage(index, self.param_groups[index], place[0])
        keys, counted = storage.keys, self._counts(storage)
        states: list[State] = list(map(self.state.get, params)) if counted or any(keys) else []  # type: ignore[arg-type]
        try:
            columns = [None if k is None else [s[k] for s in states] for k in keys]
            new = counted and not all("step" in s for s in states)
        except (KeyError, TypeError):  # parameters not stepped before, or something switched on since
            new = True
        if new:
            states = self._completed(params, states, storage, fresh)
            columns = [None if k is None else [s[k] for s in states] for k in keys]
        if storage.bits == 8:
            self._check_codes(index, params, storage)
        marks = self._marks((index, *place), params, states, fresh)
        words = self._words_of(params) if storage.swept else []
        if storage.captured:
            words = [self._clock((index, *place)).at]
        table: list[Column] = [params, _owned(storage, grads), *columns, *self._extra_columns(params), *words]
        if len(set(marks)) == 1:
            batch = self._batch(len(batches), index, storage, marks[0], table, fresh)
            batches.append(batch)
            # The kernel sees the states of complex parameters through other tensors.
            bound = batch.plan._columns[2 : 2 + len(keys)]  # by now perhaps states that followed their parameters
            return None if params[0].is_complex() else Found(params, storage, list(bound), words)
        sets: dict[Hashable, list[int]] = {}
        for row, mark in enumerate(marks):
            sets.setdefault(mark, []).append(row)
        for mark, rows in sets.items():
            part = [c if c is None else _part(c, rows) for c in table]
            batches.append(self._batch(len(batches), index, storage, mark, part, fresh))
        return None

    def _count_as(self, key: Any, params: list[Tensor], states: list[State]) -> None:
        """Lets `_steps` count the steps of parameters' states, or of none, as their group wants it."""
        captured = bool(self.param_groups[key[0]].get("capturable"))
        known = self._steps.get(key)
        if known is not None and isinstance(known, Clock) == captured and known.belong_to(states):
            return
        if not captured:
            self._steps[key] = Steps(states)
            return
        if capturing(key[-1]):
            raise self._too_early()
        counts = [float(s["step"]) for s in states]
        if len(set(counts)) > 1:
            low, high = min(counts), max(counts)
            label = self._label(key[0], params[counts.index(low)])
            raise self._uneven(f"{self._name}: the state of {label}", low, high)
        self._steps[key] = Clock(states, counts, key[-1])

    def _clock(self, key: Any) -> Clock:
        clock = self._steps[key]
        assert isinstance(clock, Clock)
        return clock

    def _too_early(self) -> RuntimeError:
        return RuntimeError(
            f"{self._name}: this step makes states, which a CUDA graph would make anew at each replay; "
            "take it once before the capture, with the same gradients present"
        )

    def _refuse_scaling(self, attribute: str) -> None:
        for index, group in enumerate(self.param_groups):
            if group.get("capturable"):
                raise ValueError(
                    f"{self._name}, parameter group {index}: got capturable=True with {attribute}, which the step "
                    "would wait for; use GradScaler(enabled=False), as bfloat16 allows, or capturable=False"
                )

    def _counts(self, storage: Storage) -> bool:
        """Whether the states hold a step count."""
        return storage.swept or "step" in self._needed

    def _words_of(self, params: list[Tensor]) -> list[Column]:
        """The tensor words of parameters, and where their elements begin."""
        ids = [id(p) for group in self.param_groups for p in group["params"]]
        if list(self._tensor_words) != ids:
            names = [n for g in self.param_groups for n in g.get("param_names") or [None] * len(g["params"])]
            named = [str(i) if n is None else n for i, n in enumerate(names)]
            self._tensor_words = {key: tensor_word(name, "rounding") for key, name in zip(ids, named, strict=True)}
        words = [self._tensor_words[id(p)] for p in params]
        return [np.array(words, np.int64), np.zeros(len(words), np.int64)]

    def _bound_again(
        self, index: int, batches: list[_Batch], before: Found, params: list[Tensor], grads: list[Tensor]
    ) -> bool:
        """Binds what the last step found; False if something is different, which `_bind` then sorts out."""
        storage = self._checked_storage(index, self.param_groups[index], before.place[0])
        if not before.holds(params, storage):
            return False
        if moved := before.moved():
            p, key = moved
            raise RuntimeError(
                f"{self._name}: the state '{key}' of {self._label(index, p)} was given other memory through .data; "
                f"use optimizer.state[p]['{key}'] = tensor"
            )
        marks = self._marks((index, *before.place), params, None, {})
        if len(marks) > 1:
            return False
        table = (params, _owned(storage, grads), *before.columns, *self._extra_columns(params), *before.words)
        try:
            plan = self._plan(len(batches), storage.op, table)
        except (TypeError, ValueError, BufferError, RuntimeError):
            return False
        batches.append(_Batch(index, before.place, storage, marks[0], grads, plan, before.bases))
        return True

    def _extra_columns(self, params: list[Tensor]) -> list[Column]:
        tables = [self._extras.get(key) for key in self._extra_keys]
        return [None if table is None else [table[id(p)] for p in params] for table in tables]

    def _plan(self, slot: int, op: str, columns: tuple[Column, ...]) -> Plan:
        plan = self._plans[slot] if slot < len(self._plans) else None
        if plan is not None and plan._op == op:
            plan.rebind(columns)
        else:
            plan = Plan(op, columns)
            self._plans[slot : slot + 1] = [plan]
        return plan

    def _release(self, used: int) -> None:
        """Lets go of gradients and extras, so that zero_grad() frees them; plans that cannot let go are dropped."""
        kept: list[Plan | None] = []
        for plan in self._plans[:used]:
            assert plan is not None
            columns = plan._columns
            grads, swept, captured = columns[1], "_sweep" in plan._op, plan._op.endswith("_at")
            # A sweep may write gradients, so that the binder keeps them to count the write. Where layouts differ it
            # holds NumPy views of its own, which torch marks on the storage.
            stays = not swept and get_backend() == "cpp" and grads and grads[0].untyped_storage().resizable()
            kept.append(plan if stays else None)
            end = len(columns) - 2 * swept - captured  # of the extras; a sweep's words follow, or a clock's array
            if stays:
                plan.release((1, *range(end - len(self._extra_keys), end)))
        self._plans = kept

    def _completed(
        self, params: list[Tensor], states: Sequence[State | None], storage: Storage, fresh: Fresh
    ) -> list[State]:
        """The states with what they lack."""
        completed = [s or {} for s in states]
        missing = [(row, k) for k in storage.keys if k is not None for row, s in enumerate(completed) if k not in s]
        counted = self._counts(storage)
        lacking = {row for row, _ in missing} | {row for row, s in enumerate(completed) if counted and "step" not in s}
        for row in lacking:
            completed[row] = {**({"step": 0.0} if counted else {}), **completed[row]}
            fresh[id(params[row])] = (params[row], completed[row])
        new = new_states([wanted(params[row], k, storage, self._initial(params[row], k)) for row, k in missing])
        for (row, key), state in zip(missing, new, strict=True):
            completed[row][key] = state
        return completed

    def _batch(self, slot: int, index: int, storage: Storage, mark: Any, table: list[Column], fresh: Fresh) -> _Batch:
        """Binds the columns p, g and states of one dtype and device to the plan of a slot."""
        (p, *_), grads = table[:2]
        bound, place = table, place_of(p)
        uncleared = [g for g in grads if g.is_neg() or g.is_conj()] if storage.zero_grad else []
        try:
            if p.is_complex():
                bound = [_as_real(c) if isinstance(c, (list, tuple)) else c for c in table]
            plan = self._plan(slot, storage.op, tuple(bound))
            return _Batch(index, place, storage, mark, bound[1], plan, [], uncleared)
        except (TypeError, ValueError, BufferError, RuntimeError) as error:
            mended = self._mended(table, storage, fresh)
            if mended is None:
                raise self._explained(index, table, storage, error) from None
        batch = self._batch(slot, index, storage, mark, mended, fresh)
        if storage.zero_grad:
            batch.uncleared += [g for g, own in zip(grads, mended[1], strict=True) if own is not g]
        return batch

    def _mended(self, table: list[Column], storage: Storage, fresh: Fresh) -> list[Column] | None:
        """The table with gradients that torch negates lazily made plain, those that a sweep only reads given memory of
        their own, and with states that follow their parameter's dtype and device after `model.to(...)`; on a device,
        whose kernels take memory as it lies, with copies of gradients and states that are laid out as the parameter.
        None if that is not what is wrong.
        """
        extras = 2 + len(storage.keys)
        words = extras + len(self._extra_keys)
        params, grads, *columns = table[:extras]
        grads = type(grads)([g.resolve_neg() if g.is_neg() else g for g in grads])
        if params[0].is_cuda:
            pairs = zip(params, grads, strict=True)
            kept = _repeats if storage.zero_grad else lambda g: False  # zeros could not be written to the original
            grads = type(grads)([_laid_out(p, g) if _lies_otherwise(p, g) and not kept(g) else g for p, g in pairs])
        mended: list[Column] = [params, _unshared(grads) if type(grads) is tuple else grads]
        for key, column in zip(storage.keys, columns, strict=True):
            mended.append(column and list(column))
            wrong = [
                row
                for row, (p, s) in enumerate(zip(params, column or (), strict=False))
                if isinstance(s, Tensor) and (storage.follows(str(key), p, s) or _lies_otherwise(p, s))
            ]
            new = new_states([wanted(params[row], str(key), storage, column[row]) for row in wrong])
            for row, s in zip(wrong, new, strict=True):
                p = params[row]
                fresh.setdefault(id(p), (p, dict(self.state[p])))[1][str(key)] = mended[-1][row] = s
        for extra in table[extras:words]:
            mended.append(None if extra is None else [x.resolve_neg() if x.is_neg() else x for x in extra])
        same = all(
            a is b
            for old, new in zip(table[:words], mended, strict=True)
            for a, b in zip(old or (), new or (), strict=True)
        )
        return None if same else mended + table[words:]

    def _scale(self, scale: float, batches: list[_Batch]) -> float | None:
        """The gradients' factor with clipping folded in; None if the step is to be skipped."""
        if self.max_grad_norm is None and not self.skip_nonfinite:
            return scale
        norm = global_norm([g for b in batches for g in b.grads]) / scale
        if not math.isfinite(norm):
            return None if self.skip_nonfinite else scale
        return scale if self.max_grad_norm is None else scale / min(1.0, self.max_grad_norm / (norm + 1e-6))

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _explained(self, index: int, table: list[Column], storage: Storage, error: Exception) -> Exception:
        """An error in the words of the model for one in the words of the kernel."""
        keys = storage.keys
        params, grads, *columns = table[: 2 + len(keys)]
        peer = self._peer
        for row, (p, g) in enumerate(zip(params, grads, strict=True)):
            label = f"{self._name}: {self._label(index, p)}"
            if not served(p):
                needed = "the CPU or a CUDA device"
                return BufferError(f"{label} is on device {p.device}, needs {needed}; use model.cpu(), or {peer} there")
            if p.is_cuda and (reason := lacking(storage.op)):
                remedy = f"use model.cpu(), or {peer} there ({reason})"
                return BufferError(f"{label} is on device {p.device}, needs the CPU; {remedy}")
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
                needed = f"{p.device if p.is_cuda else 'the CPU'} as the parameter"
                return BufferError(f"{label} is on device {g.device}, needs {needed}; use p.grad = p.grad.to(p.device)")
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
                if column is None:
                    continue
                if fault := storage.fault(str(key), p, column[row]):
                    found, needed, remedy = fault
                    return ValueError(
                        f"{self._name}: the state '{key}' of {self._label(index, p)} has {found}, needs "
                        f"{needed.removeprefix('shape ')}; {remedy or 'delete optimizer.state[p] to start it anew'}"
                    )
        names = [a.name for a in next(iter(ops()[storage.op].values())).arrays]
        words = dict(zip(names, ["", "gradient of ", *keys, *self._extra_keys], strict=False))

        def word(match: re.Match[str]) -> str:
            column, row = match.groups()
            of = f"{words[column]} of " if column not in "pg" else words[column]
            return f"{of}{self._label(index, params[int(row)])}"

        text = re.sub(r"'(\w+)\[(\d+)\]'", word, str(error).removeprefix(f"{storage.op}: argument ").split("; ")[0])
        if "of its own" in text:
            text += "; give it its own memory with .clone(), or share the Parameter object itself"
        return type(error)(f"{self._name}: {text}")


def pair_of(group: Group) -> tuple[Any, Any]:
    """A group's betas, which users may have replaced by anything."""
    try:
        beta1, beta2 = group["betas"]
    except (TypeError, ValueError):
        raise ValueError(f"argument 'betas': got {group['betas']}, needs two numbers in [0, 1)") from None
    return beta1, beta2


def _owned(storage: Storage, grads: list[Tensor]) -> Sequence[Tensor]:
    """The gradients as a column: a tuple, whose writes are not counted, where a sweep could write them but will not."""
    return tuple(grads) if storage.swept and not storage.zero_grad else grads


def _lies_otherwise(p: Tensor, x: Tensor) -> bool:
    """Whether a tensor on a device, of its parameter's shape, is laid out differently."""
    if not (p.is_cuda and x.device == p.device and x.layout == torch.strided and x.shape == p.shape):
        return False
    return x.stride() != strides_as(p, p.shape) and not (p.is_contiguous() and x.is_contiguous())


def _laid_out(p: Tensor, x: Tensor) -> Tensor:
    own = torch.empty_strided(p.shape, strides_as(p, p.shape), dtype=x.dtype, device=x.device)
    return own.copy_(x)


def _unshared(grads: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients, with copies of those in which two indices, or whose storage two gradients, may share memory."""
    own, seen = [], set[int]()
    for g in grads:
        memory = g.untyped_storage().data_ptr() if g.layout == torch.strided else 0
        shared = memory and (_repeats(g) or memory in seen)
        own.append(g.clone(memory_format=torch.contiguous_format) if shared else g)
        seen.add(memory)
    return tuple(own)


def _repeats(g: Tensor) -> bool:
    """Whether two indices may share memory."""
    return any(n > 1 and step == 0 for n, step in zip(g.shape, g.stride(), strict=True))


def _part(column: Column, rows: list[int]) -> Column:
    if isinstance(column, Tensor):  # a clock's array, for all rows
        return column
    return column[rows] if isinstance(column, np.ndarray) else type(column)([column[row] for row in rows])


def _as_real(column: Sequence[Tensor]) -> Column:
    return type(column)([torch.view_as_real(x.detach().resolve_conj()) for x in column])  # type: ignore[call-arg]
