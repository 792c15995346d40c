"""What groups mean and what outlives a step: the numbers and options of groups, state dicts, averages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._errors import check_scalar
from .._signatures import ops
from ..optim._storage import DEFAULTS
from ._convert import from_bitsandbytes
from ._devices import elsewhere
from ._states import State, Wanted, new_states, number, with_own_memory
from ._storage import (
    KEPT,
    OF_WEIGHTS,
    SCALE,
    SIGNED,
    Group,
    Storage,
    check_options,
    convert_remedy,
    memory,
    plain,
    swapped,
)

_UNSERVED = {"differentiable": "curvk steps without a graph"}
_UNCAPTURED = {"capturable": "its lr is set on the host, and a CUDA graph would repeat the first"}


class GroupedOptimizer(torch.optim.Optimizer):
    """Base of FusedOptimizer: all but the step."""

    _op: str  # the kernel, for a group without options
    _needed: tuple[str, ...]  # the state keys without which a loaded state is not one of this class
    _array_keys: tuple[str, ...]  # the state keys of the parameter's shape
    _absent: Group  # what a group key means in a pickle or state dict older than the key
    _has_options = False  # whether a group may say how states and parameters are kept
    _captures = False  # whether a group may be capturable
    _averaging: bool
    _formats: dict[int, str]
    max_grad_norm: float | None
    skip_nonfinite: bool

    @property
    def _name(self) -> str:
        return f"curvk.torch.{type(self).__name__}"

    @property
    def _peer(self) -> str:
        """Who serves what is refused here."""
        name = type(self).__name__.removesuffix("Z")
        return f"torch.optim.{name}" if hasattr(torch.optim, name) else "an optimizer of torch.optim"

    def _start_anew(self) -> None:
        raise NotImplementedError

    # ---- what groups mean -------------------------------------------------------------------------------------------

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        """The states of `_op`: one behind each array argument after p and g; None for one the group does without."""
        raise NotImplementedError

    def _storage(self, group: Group, dtype: torch.dtype) -> Storage:
        """How the group's parameters of a dtype are kept."""
        return plain(self._op, self._keys(group))

    def _scalars(self, group: Group, mark: Any, grad_scale: float) -> tuple[Any, ...]:
        """The scalars of `_op` in the header's order."""
        raise NotImplementedError

    def _draw(self, mark: Any) -> int:
        """The number of the step to come, from 1; what the rounding of that step is keyed by."""
        return int(mark) + 1

    def _checked_scalars(
        self, index: int, group: Group, mark: Any, grad_scale: float, storage: Storage | None = None
    ) -> tuple[Any, ...]:
        """The scalars of a kernel call; without a storage only for the checks, which are those of any call."""
        captured = bool(group.get("capturable"))
        for flag, reason in (_UNSERVED | _UNCAPTURED if captured and not self._captures else _UNSERVED).items():
            if group.get(flag):
                raise NotImplementedError(
                    f"{self._name}, parameter group {index}: got {flag}=True, but {reason}; "
                    f"leave it False, or use {self._peer}"
                )
        try:
            if captured:
                group = self._without_reading(group, stepping=storage is not None)
            if storage is None and self._has_options:
                check_options(group)
            op, scalars = self._op, self._scalars(group, mark, grad_scale)
            if storage is not None and storage.swept:
                op, scalars = storage.op, (*scalars, *storage.numbers(group, self._draw(mark)))
            arguments = next(iter(ops()[op].values())).scalars
            checked = tuple(check_scalar(op, a.name, x) for a, x in zip(arguments, scalars, strict=True))
            if captured and storage is not None:
                return tuple(x for a, x in zip(arguments, checked, strict=True) if a.name not in ("step", "lr"))
            return checked
        except (TypeError, ValueError, OverflowError) as error:
            raise self._of_group(index, error) from None

    def _without_reading(self, group: Group, stepping: bool) -> Group:
        """A capturable group with a number for an lr on a device, which its steps do not read.

        Raises:
            ValueError: with an option that has to read the device, or a number there.
        """
        for option in ("max_grad_norm", "skip_nonfinite"):
            if value := getattr(self, option):
                needed = f"{option}={False if value is True else None}: its step waits for the norm of the gradients"
                remedy = "use torch.nn.utils.clip_grad_norm_ before the step, or capturable=False"
                raise ValueError(f"argument 'capturable': got True with {option}={value}, needs {needed}; {remedy}")
        for key, value in group.items():
            numbers = value if isinstance(value, (tuple, list)) else [value]
            if key not in ("params", "lr") and any(map(elsewhere, numbers)):
                needed = "a number, for only lr is read there; use .item()"
                raise ValueError(f"argument '{key}': got a tensor on a device with capturable=True, needs {needed}")
        lr = group["lr"]
        if not (stepping and elsewhere(lr)):
            return group
        if lr.numel() != 1:
            number(lr)
        if lr.device != (device := group["params"][0].device):
            raise ValueError(
                f"argument 'lr': got a tensor on {lr.device} with capturable=True, needs the parameters' device "
                f"{device}; use lr.to(p.device)"
            )
        return {**group, "lr": 0.0}

    def _checked_storage(self, index: int, group: Group, dtype: torch.dtype) -> Storage:
        try:
            return self._storage(group, dtype)
        except (TypeError, ValueError) as error:
            raise self._of_group(index, error) from None

    def _of_group(self, index: int, error: Exception) -> Exception:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        return kind(f"{self._name}, parameter group {index}: {error}")

    def _label(self, index: int, p: Tensor) -> str:
        group = self.param_groups[index]
        position = next(i for i, q in enumerate(group["params"]) if q is p)
        names = group.get("param_names")
        return f"parameter '{names[position]}'" if names else f"parameter {position} of group {index}"

    # ---- groups and state -------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group as torch does; its numbers are checked now, and a parameter listed twice is kept once."""
        if isinstance(param_group, dict) and "params" in param_group:
            params, once = param_group["params"], dict[int, Any]()
            if not isinstance(params, (Tensor, set)):
                for x in params:
                    once.setdefault(id(x[1] if isinstance(x, tuple) else x), x)
                param_group["params"] = list(once.values())
            index, group = len(self.param_groups), {**self.defaults, **param_group}
            self._checked_scalars(index, group, 0, 1.0)
            items = [params] if isinstance(params, Tensor) else params if isinstance(params, set) else once.values()
            tensors = [x[1] if isinstance(x, tuple) else x for x in items]
            for dtype in {x.dtype for x in tensors if isinstance(x, Tensor)}:
                self._checked_storage(index, group, dtype)
        super().add_param_group(param_group)

    def _settings(self) -> dict[str, Any]:
        """What `repr` tells besides the groups' numbers."""
        return {"max_grad_norm": self.max_grad_norm, "skip_nonfinite": self.skip_nonfinite}

    def __repr__(self) -> str:
        lines = "".join(f"{key}: {value}\n" for key, value in self._settings().items())
        return f"{super().__repr__()[:-1]}\n{lines})"

    def __getstate__(self) -> dict[str, Any]:
        # Views of one buffer would each be pickled with the whole of it.
        state = super().__getstate__()
        state["state"] = defaultdict(dict, {p: with_own_memory(s) for p, s in self.state.items()})
        return state | {"max_grad_norm": self.max_grad_norm, "skip_nonfinite": self.skip_nonfinite}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start_anew()
        for group in self.param_groups:
            for key, value in self._absent.items():
                group.setdefault(key, value)
        self._note_formats()

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

        Groups stay capturable or not, as they are. The new states lie elsewhere: capture graphs anew.

        Raises:
            TypeError, ValueError: not a state dict, or one of other parameters or of another optimizer; nothing has
                changed.
        """
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            raise TypeError(
                f"{self._name}: got {type(state_dict).__name__}, needs a dict with 'state' and 'param_groups'"
            )
        loaded: dict[str, Any] = {}
        ours = {*self._needed, *self._array_keys, *KEPT, "step"}

        def before(_hooked: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            state_dict = self._with_own_options(from_bitsandbytes(state_dict))
            self._check_loaded(state_dict)
            loaded.update(state_dict)
            # torch would cast the states to the parameters' dtypes; it gets those that are not ours.
            return {**state_dict, "state": {k: _without(s, ours) for k, s in state_dict["state"].items()}}

        def after(_hooked: Any) -> None:
            made = []
            for index, p, state in self._pairs(loaded):
                storage = self._storage(self.param_groups[index], p.dtype)
                for key, value in state.items():
                    if key not in ours or value is None:  # None: SGD's buffer before its first step
                        continue
                    if key == "step":
                        device = p.device if self.param_groups[index].get("capturable") else "cpu"
                        self.state[p][key] = torch.tensor(float(value), dtype=torch.float32, device=device)
                    elif key in storage.keys or (key in self._array_keys and value.is_floating_point()):
                        made.append(wanted(p, key, storage, value))
                    else:
                        made.append((p, key, value.dtype, tuple(value.shape), value))
            for (p, key, *_), own in zip(made, new_states(made), strict=True):
                self.state[p][key] = own
            self._note_formats()

        hooks = (
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _with_own_options(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state dict with groups that keep their options where they have none, such as torch's."""
        groups = list(state_dict["param_groups"])
        for index, (own, group) in enumerate(zip(self.param_groups, groups, strict=False)):
            if self._has_options:
                options = {key: own[key] for key in DEFAULTS if key in own}
                if "state_format" in own and group.get("state_bits") == 8:  # codes of the default's where it names none
                    options["state_format"] = DEFAULTS["state_format"]
                groups[index] = group = {**options, **group}
            if "capturable" in own or "capturable" in group:  # it says how steps are made here, and changes no number
                groups[index] = _without(group, {"capturable"}) | {k: own[k] for k in ("capturable",) if k in own}
        return {**state_dict, "param_groups": groups}

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
            self._checked_scalars(index, {**self._absent, **group}, 0, 1.0)
            self._check_format(index, group)
        counts: dict[int, float] = {}  # of capturable groups
        for index, p, state in self._pairs(state_dict):
            label = f"{self._name}: the loaded state of {self._label(index, p)}"
            if missing := self._lacks(state):
                raise ValueError(f"{label} has no {sorted(missing)}; it comes from another optimizer")
            group = {**self._absent, **state_dict["param_groups"][index]}
            if group.get("capturable") and "step" in state:
                count = float(state["step"])
                if counts.setdefault(index, count) != count:
                    raise self._uneven(label, count, counts[index])
            storage = self._checked_storage(index, group, p.dtype)
            for key in dict.fromkeys((*self._array_keys, *filter(None, storage.keys))):
                value = state.get(key)
                if value is None:
                    if key.endswith(SCALE):
                        raise ValueError(f"{label} has no '{key}'; {storage.remedy(key)}")
                elif fault := storage.fault(key, p, value):
                    found, needed, remedy = fault
                    raise ValueError(f"{label} has '{key}' of {found}, needs {needed}{remedy and '; '}{remedy}")

    def _uneven(self, label: str, count: float, other: float) -> ValueError:
        return ValueError(
            f"{label} has 'step' {count:g}, needs {other:g} as others of its group, whose count a capturable group "
            "shares; give it a group of its own, or use capturable=False"
        )

    def _lacks(self, state: State) -> set[str]:
        """The keys without which a loaded state is not one of this class, of those that it has not."""
        return set(self._needed) - state.keys() if state.keys() - set(OF_WEIGHTS) else set()

    def _check_format(self, index: int, group: Group) -> None:
        """Raises unless a loaded group's moments are kept as this optimizer keeps them, as far as the group says."""
        own = self.param_groups[index] if self._has_options and index < len(self.param_groups) else group
        (bits, form), (other_bits, other_form) = [
            [g.get(key, DEFAULTS[key]) for key in ("state_bits", "state_format")] for g in (own, group)
        ]
        if bits != other_bits or (bits == 8 and form != other_form):
            raise ValueError(
                f"{self._name}: the loaded parameter group {index} has state_bits={other_bits}, "
                f"state_format={other_form!r}, needs state_bits={bits}, state_format={form!r} as this optimizer's; "
                + convert_remedy(bits, form)
            )

    def _note_formats(self) -> None:
        """Notes the format of all codes: where one scale is enough for a parameter they look alike in both."""
        for group in self.param_groups:
            form = group.get("state_format", DEFAULTS["state_format"])
            self._formats |= {id(p): form for p in group["params"] if _has_codes(self.state.get(p))}

    def _check_codes(self, index: int, params: list[Tensor], storage: Storage) -> None:
        """Raises if codes are of another format than the group's by now."""
        for p in params:
            form = self._formats.setdefault(id(p), storage.format)
            if form == storage.format:
                continue
            if _has_codes(self.state.get(p)):
                found, needed = f"state_format={storage.format!r}", f"{form!r}, as its state is kept"
                remedy = "set it back, and load what curvk.torch.convert_state_dict then makes of the state_dict"
                raise ValueError(f"{self._name}: {self._label(index, p)}: got {found}, needs {needed}; {remedy}")
            self._formats[id(p)] = storage.format

    # ---- what is held -----------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the parameters hold their running averages, of the groups with `ema`.

        Afterwards, also after an error, they hold every bit that they had; meanwhile a second copy of them is kept, and
        `step` is a RuntimeError. Parameters that have not been stepped stay as they are.

        Raises:
            ValueError: no group has `ema`.
            RuntimeError: the parameters hold their averages already.
        """
        if self._averaging:
            raise RuntimeError(f"{self._name}.averaged: the parameters hold their averages already")
        groups = [group for group in self.param_groups if group.get("ema") is not None]
        if not groups:
            raise ValueError(f"{self._name}.averaged: no parameter group has 'ema'; make the optimizer with ema=0.999")
        params = [p for group in groups for p in group["params"] if "param_ema" in self.state.get(p, ())]
        self._averaging = True
        try:
            with swapped([(p, self.state[p]["param_ema"]) for p in params]):
                yield
        finally:
            self._averaging = False

    def memory(self) -> dict[str, Any]:
        """The bytes that parameters, gradients and states take now.

        Returns:
            "parameters": how many elements the parameters have. "bytes": for "params", "grads" and each state, scales
            of codes and step counts included, all their bytes. "bytes_per_parameter": the same divided by "parameters",
            and their sum as "total".

        >>> import torch, curvk.torch
        >>> p = torch.nn.Parameter(torch.ones(64))
        >>> optimizer = curvk.torch.SGD([p], momentum=0.9, state_bits=8)
        >>> p.sum().backward()
        >>> optimizer.step()
        >>> optimizer.memory()["bytes"]
        {'params': 256, 'grads': 256, 'step': 4, 'momentum_buffer': 64, 'momentum_buffer_scale': 8}
        """
        return memory((p for group in self.param_groups for p in group["params"]), self.state)


def _has_codes(state: Any) -> bool:
    return isinstance(state, dict) and any(key + SCALE in state for key in SIGNED)


def _without(state: Any, keys: set[str]) -> Any:
    return {k: v for k, v in state.items() if k not in keys} if isinstance(state, dict) else state


def wanted(p: Tensor, key: str, storage: Storage, value: Tensor | None) -> Wanted:
    """A state to make, as the storage says."""
    kind = storage.kind(key, p)
    return p, key, kind.dtype, kind.shape(p), value
