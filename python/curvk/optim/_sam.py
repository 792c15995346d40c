"""SAM: the gradient is taken where the loss is high near the weights, the base optimizer steps from the weights."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, NoReturn

import numpy as np

from .. import _store
from .._arrays import Array, numpy_view, written
from .._backend import Plan
from .._errors import message
from .._interrupt import uninterrupted as uninterrupted
from ..kernels.curvature import asam_norm
from ..kernels.optim import global_norm
from . import _storage
from ._base import Optimizer
from ._states import FORMAT, VERSION, Arrays
from ._storage import Group

OPTIONS = ("rho", "adaptive", "eta")  # of a group
PHASE = ("start", "end", "every", "reset_state_on_switch")
NORM_FLOOR = 1e-12  # added to the norm, as davda54's code does


def check_group(name: str, where: str, group: Mapping[str, Any]) -> None:
    """Raises unless the group's rho, adaptive and eta can be used."""
    for key in ("rho", "eta"):
        value = group[key]
        x = None
        with suppress(TypeError, ValueError, RuntimeError):  # arrays and tensors of several elements
            x = float(value) if hasattr(value, "__float__") else None
        if x is None:
            raise TypeError(message(name, where + key, f"{value!r} of type {type(value).__name__}", "a real number"))
        if not 0 <= x < math.inf:
            raise ValueError(message(name, where + key, f"{value}", "a number in [0, inf)"))
    if not isinstance(group["adaptive"], (bool, np.bool_)):
        raise TypeError(message(name, f"{where}adaptive", repr(group["adaptive"]), "True or False"))


def check_unwrapped(name: str, base: Any) -> None:
    """Raises ValueError if the optimizer is the base of a SAM, whose numbers its groups hold."""
    if base._within_sam:
        remedy = "make another optimizer, or set the first one's param_groups[k]['rho'], start, end or every"
        raise ValueError(message(name, "base", "the base of another SAM", "one of its own", remedy))


def check_phase(name: str, phase: Mapping[str, Any]) -> None:
    """Raises unless start, end, every and reset_state_on_switch can be used."""
    for key in ("start", "end"):
        value = phase[key]
        if value is not None and not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(
                message(name, key, f"{value!r} of type {type(value).__name__}", "a number of steps or None")
            )
        if value is not None and not value >= 0:
            raise ValueError(message(name, key, f"{value}", "a number of steps >= 0"))
    start, end, every = phase["start"] or 0, phase["end"], phase["every"]
    if start == math.inf:
        raise ValueError(message(name, "start", f"{start}", "a finite number of steps"))
    if end is not None and end < start:
        raise ValueError(message(name, "end", f"{end}", f"a step not before start, which is {start}"))
    if not isinstance(every, (int, np.integer)) or isinstance(every, bool):
        raise TypeError(message(name, "every", f"{every!r} of type {type(every).__name__}", "an integer"))
    if every < 1:
        raise ValueError(message(name, "every", f"{every}", "an integer >= 1"))
    if not isinstance(phase["reset_state_on_switch"], (bool, np.bool_)):
        found = repr(phase["reset_state_on_switch"])
        raise TypeError(message(name, "reset_state_on_switch", found, "True or False"))


def check_progress(name: str, progress: Any) -> None:
    """Raises ValueError unless this is what SAM's state dict holds."""
    keys = {"steps", "skipped_steps", "switched", *PHASE}
    if not isinstance(progress, Mapping) or progress.keys() != keys:
        found = f"keys {list(progress)}" if isinstance(progress, Mapping) else type(progress).__name__
        raise ValueError(message(f"{name}.load_state_dict", "sam", found, f"keys {sorted(keys)}"))
    for key in ("steps", "skipped_steps"):
        value = progress[key]
        if type(value) is not int or not 0 <= value < 2**63:
            raise ValueError(message(f"{name}.load_state_dict", f"sam.{key}", repr(value), "an integer >= 0"))
    try:
        check_phase(name, progress)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _whole(step: Any) -> int | None:
    """The first step that is not before a number of steps, which may carry rounding: 0.1 * 30 means 3."""
    return None if step is None else math.ceil(step - min(0.5, 1e-9 * step))


class Phase:
    """Which steps are SAM's: every k-th with start <= step < end. The part that NumPy's and torch's SAM share.

    Attributes:
        start, end, every, reset_state_on_switch: as SAM's arguments; steps are whole numbers.
        steps: how many steps were taken or skipped; what start, end and every count. May be set, to go on with a run.
        skipped_steps: how many were skipped for gradients that are not finite.
    """

    def _set_phase(self, start: Any, end: Any, every: Any, reset_state_on_switch: Any) -> None:
        self.start, self.end, self.every = _whole(start), None if end == math.inf else _whole(end), int(every)
        self.reset_state_on_switch = bool(reset_state_on_switch)
        self.steps = 0
        self.skipped_steps = 0
        self._switched = False  # whether a step of SAM's has been taken

    @property
    def active(self) -> bool:
        """Whether the next step is one of SAM's."""
        first = self.start or 0
        before_end = self.end is None or self.steps < self.end
        return self.steps >= first and before_end and (self.steps - first) % self.every == 0

    def _count(self, stepped: bool, perturbed: bool) -> None:
        self.steps += 1
        self.skipped_steps += not stepped
        self._switched = self._switched or (stepped and perturbed)

    def _resets(self) -> bool:
        """True if the base's states are to be dropped at this step of SAM's."""
        return self.reset_state_on_switch and not self._switched

    def _progress(self) -> dict[str, Any]:
        own = {key: getattr(self, key) for key in (*PHASE, "steps", "skipped_steps")}
        return own | {"switched": self._switched}

    def _set_progress(self, progress: Mapping[str, Any]) -> None:
        self._set_phase(*(progress[key] for key in PHASE))
        self.steps, self.skipped_steps = progress["steps"], progress["skipped_steps"]
        self._switched = bool(progress["switched"])


class SAM(Phase):
    """Sharpness-aware minimization around an optimizer of curvk.optim (Foret et al. 2021; ASAM: Kwon et al. 2021).

    A step takes two gradients. With g the one at the weights w, of all groups together, and T = 1 or, with `adaptive`,
    abs(w) + eta::

        w' = w + rho / (norm(T g) + 1e-12) T^2 g
        the base optimizer steps from w with the gradient at w'

    The norm costs one sweep over the gradients; the old weights go to buffers of SAM's own, freed after the step; the
    base's kernel starts from them, so that restoring costs no pass and is exact in every bit.

    Args:
        base: SGD, Adam, AdamW, AdamZ or Lion. Its groups are SAM's, and carry SAM's numbers too: to give a group its
            own, set `sam.param_groups[k]["rho"]`, "adaptive" or "eta". Its `zero_grad` is for the gradients at w'.
        rho: how far w' is from w, >= 0.
        adaptive: ASAM's geometry, in which a change of an element counts relative to its size.
        eta: added to abs(w), >= 0; 0.01 in the code of ASAM's authors, 0 elsewhere.
        start, end: SAM takes the steps with start <= step < end, the base alone the others; None: from the first, to
            the last. Late SAM (Zhou et al. 2025) is start = 0.875 * total, at (2 - 0.875) of the gradients.
        every: of these steps, SAM takes the first and then every k-th.
        reset_state_on_switch: SAM's first step starts with fresh states, as in the code of late SAM's authors.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, or a base that SAM cannot restore into or
            that another SAM has.

    Attributes:
        base: the optimizer that steps.
        steps: how many steps were taken or skipped; what start, end and every count. May be set, to go on with a run.
        skipped_steps: how many were skipped for gradients that are not finite.

    A gradient at w that holds inf or NaN perturbs nothing, and its step is skipped. 48 bytes of traffic per float32
    element in a step of AdamW, 20 of them SAM's. Norm floor and `adaptive` with eta = 0 as in github.com/davda54/sam.

    >>> import numpy as np
    >>> from curvk.optim import SGD
    >>> w = np.array([3.0, 4.0])
    >>> sam = SAM(SGD([w], lr=0.1), rho=0.5)
    >>> sam.step(lambda: [w * 1.0])  # the loss is half the square of the norm, 5: the gradient is taken at norm 5.5
    True
    >>> w
    array([2.67, 3.56])
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.0,
        start: float | None = None,
        end: float | None = None,
        every: int = 1,
        reset_state_on_switch: bool = False,
    ) -> None:
        if not isinstance(base, Optimizer) or "origin" not in base._extra_keys:
            found = f"{type(base).__module__}.{type(base).__qualname__}"
            remedy = "for torch's parameters use curvk.torch.SAM around curvk.torch.SGD or AdamW"
            needed = "SGD, Adam, AdamW, AdamZ or Lion of curvk.optim, which can start a step from the saved weights"
            raise TypeError(message("SAM", "base", found, needed, remedy))
        self._defaults: Group = {"rho": rho, "adaptive": adaptive, "eta": eta}
        check_unwrapped("SAM", base)
        check_group("SAM", "", self._defaults)
        check_phase("SAM", dict(zip(PHASE, (start, end, every, reset_state_on_switch), strict=True)))
        self._set_phase(start, end, every, reset_state_on_switch)
        self.base = base
        self._saved: Arrays | None = None  # by parameter; None unless the weights are perturbed
        self._refused = False  # the last perturb_ met a gradient that is not finite
        self._fill()
        base._within_sam = True

    @property
    def param_groups(self) -> list[Group]:
        """The base's groups, with "rho", "adaptive" and "eta" in each."""
        return self.base.param_groups

    def _fill(self) -> None:
        """Gives groups that have none SAM's numbers."""
        for group in self.base.param_groups:
            for key, value in self._defaults.items():
                group.setdefault(key, value)

    # ---- steps ----

    def step(self, grad: Callable[[], Sequence[Array | None]], *, grad_scale: float = 1.0) -> bool:
        """One step of SAM's or, outside its phase, of the base.

        Args:
            grad: gives the gradients at the weights that the parameters hold when it is called: a list as the base's
                `step` takes. It is called twice in a step of SAM's, else once, and may fill the same arrays again.
            grad_scale: the factor that the gradients carry, > 0.

        Returns:
            False if the step was skipped because a gradient is not finite, else True.

        Raises:
            TypeError, ValueError, BufferError: as the base's `step`. The weights are as before, also if `grad` raises.
        """
        self._need_idle("step")
        given: Any = grad
        if not callable(given):
            needed = "a function that gives the gradients at the present weights"
            remedy = "with gradients at hand use perturb_ and restore_and_step"
            raise TypeError(message("SAM.step", "grad", type(given).__name__, needed, remedy))
        grads = grad()
        try:
            if self.perturb_(grads, grad_scale=grad_scale):
                grads = grad()
        except BaseException:
            self.restore_()
            raise
        return self.restore_and_step(grads, grad_scale=grad_scale)

    def perturb_(self, grads: Sequence[Array | None], *, grad_scale: float = 1.0) -> bool:
        """Moves the weights to where the second gradient is to be taken; outside SAM's phase it does nothing.

        Args:
            grads: as the base's `step` takes; only read. None: the parameter stays where it is.
            grad_scale: the factor that the gradients carry, > 0.

        Returns:
            True if the weights were moved. False outside SAM's phase, and where a gradient (or, with `adaptive`, a
            weight) is not finite: then `restore_and_step` will skip the step.

        Raises:
            TypeError, ValueError, BufferError: gradients that do not fit, or a group's number out of range; nothing has
                been written.
            RuntimeError: the weights are perturbed already, or within `averaged`.
        """
        self._need_idle("perturb_")
        if self.base._averaging:
            raise RuntimeError("SAM.perturb_: the parameters hold their averages; leave averaged() first")
        self._refused = False
        if not self.active:
            return False
        base = self.base
        base._check_number("grad_scale", grad_scale, base._ranges["grad_scale"])  # type: ignore[arg-type]
        self._fill()
        for k, group in enumerate(self.param_groups):
            check_group("SAM", f"param_groups[{k}].", group)
        views = self._checked_grads(grads)
        saved = [None if g is None else np.empty_like(p) for p, g in zip(base._views, views, strict=True)]
        sets: dict[tuple[int, str], list[int]] = {}
        for i, (kind, g) in enumerate(zip(base._kinds, views, strict=True)):
            if g is not None:
                sets.setdefault(kind, []).append(i)
        plans = []
        for (k, _), indices in sets.items():
            columns = tuple([column[i] for i in indices] for column in (base._params, views, saved))
            try:
                plans.append((k, Plan("sam_perturb", columns)))
            except (TypeError, ValueError, BufferError) as error:
                _reword(error, indices)
        norm = self._norm(sets, views)
        if not math.isfinite(norm):
            self._refused = True
            return False
        self._saved = [None] * len(saved)
        try:
            for (k, plan), indices in zip(plans, sets.values(), strict=True):
                group = self.param_groups[k]
                scale = float(group["rho"]) / grad_scale / (norm / grad_scale + NORM_FLOOR)
                with uninterrupted():
                    plan.run((scale, bool(group["adaptive"]), float(group["eta"])))
                    for i in indices:
                        self._saved[i] = saved[i]
        except BaseException:
            self.restore_()
            raise
        return True

    def restore_and_step(self, grads: Sequence[Array | None], loss: Any = None, *, grad_scale: float = 1.0) -> bool:
        """The base's step from the weights before `perturb_`; without one, outside SAM's phase, the base's plain step.

        Args:
            grads: the gradients at the perturbed weights, as the base's `step` takes them. A parameter without a
                gradient (None) gets its weights back.
            loss: for a base that reads losses (AdamZ).
            grad_scale: the factor that the gradients carry, > 0.

        Returns:
            False if the step was skipped because a gradient is not finite, of the first list or, where the base says
            so, of this one. The weights are then as before `perturb_`.

        Raises:
            TypeError, ValueError, BufferError: as the base's `step`; the weights are as before `perturb_`.
            RuntimeError: this is a step of SAM's, and `perturb_` was not called.
        """
        if self._refused:
            self._refused = False
            self._count(False, False)
            self.base._zero(grads)
            return False
        saved = self._saved
        if saved is None:
            if self.active:
                raise RuntimeError("SAM.restore_and_step: this is a step of SAM's; use perturb_ first, or step(grad)")
            stepped = self.base.step(grads, loss, grad_scale=grad_scale)
            self._count(stepped, False)
            return stepped
        base, n = self.base, len(saved)
        given = list(grads) if type(grads) in (list, tuple) and len(grads) == n else [None] * n
        states = (base._states, base._steps)
        try:
            # A parameter that perturb_ saw no gradient of starts from a copy of itself.
            origin = [
                v.copy() if old is None and g is not None else old
                for v, old, g in zip(base._views, saved, given, strict=True)
            ]
            if self._resets():
                base._dissolve()
                # What belongs to the weights themselves, such as the lower halves of masters, is no state to drop.
                base._states = {
                    name: list(column) if name in _storage.KEPT else [None] * n for name, column in base._states.items()
                }
                base._steps = [0] * n
            base._extras = {"origin": origin}
            stepped = base.step(grads, loss, grad_scale=grad_scale)
            self._restore(range(n) if not stepped else [i for i in range(n) if given[i] is None])
            if stepped:
                states = (base._states, base._steps)
        except BaseException:
            self.restore_()
            raise
        finally:
            base._extras = {}
            if base._states is not states[0]:
                base._dissolve()
                base._states, base._steps = states
        self._saved = None
        self._count(stepped, True)
        return stepped

    def restore_(self) -> None:
        """Puts the weights back bit for bit, without a step; does nothing where they are not perturbed."""
        self._refused = False
        if self._saved is not None:
            self._restore(range(len(self._saved)))
            self._saved = None

    def _restore(self, indices: Sequence[int]) -> None:
        assert self._saved is not None
        for i in indices:
            if self._saved[i] is not None:
                np.copyto(self.base._views[i], self._saved[i])
                written([self.base._params[i]])

    def _checked_grads(self, grads: Any) -> Arrays:
        """The gradients as arrays that the kernel may take for written ones; it does not write them."""
        if type(grads) is not list and type(grads) is not tuple:
            raise TypeError(message("SAM.perturb_", "grads", type(grads).__name__, "a list of arrays"))
        if len(grads) != len(self.base._params):
            needed = f"{len(self.base._params)}, one for each parameter (None for one without)"
            raise ValueError(message("SAM.perturb_", "grads", f"{len(grads)} gradients", needed))
        views: Arrays = []
        seen: set[int] = set()
        for i, g in enumerate(grads):
            view = None if g is None else numpy_view(g, "SAM.perturb_", f"grads[{i}]")
            if view is not None and (not view.flags.writeable or id(g) in seen):
                view = view.copy(order="K")
            seen.add(id(g))
            views.append(view)
        return views

    def _norm(self, sets: Mapping[tuple[int, str], list[int]], views: Arrays) -> float:
        """The norm of T g over all groups."""
        plain: Arrays = []
        norms = []
        for (k, _), indices in sets.items():
            grads, group = [views[i] for i in indices], self.param_groups[k]
            if group["adaptive"]:
                params = [self.base._views[i] for i in indices]
                norms.append(asam_norm(params, grads, eta=float(group["eta"])))
            else:
                plain += grads
        return math.hypot(global_norm(plain), *norms)

    def _need_idle(self, what: str) -> None:
        if self._saved is not None:
            raise RuntimeError(
                f"SAM.{what}: the weights are perturbed; use restore_and_step(grads) or restore_() first"
            )

    # ---- states ----

    def add_param_group(self, group: Group) -> None:
        """As the base's; the group may hold "rho", "adaptive" and "eta" too.

        Raises:
            TypeError, ValueError, BufferError: as the base's; nothing has changed.
            RuntimeError: the weights are perturbed.
        """
        self._need_idle("add_param_group")
        own = {key: group[key] for key in OPTIONS if isinstance(group, dict) and key in group}
        check_group("SAM", f"param_groups[{len(self.param_groups)}].", self._defaults | own)
        self.base.add_param_group({key: x for key, x in group.items() if key not in own} if own else group)
        self.param_groups[-1].update(own)
        self._fill()

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: the base's state dict under "base", SAM's phase and step count under "sam".

        Raises:
            RuntimeError: the weights are perturbed, so that a checkpoint would hold perturbed weights.
        """
        self._need_idle("state_dict")
        return self._as_dict(self.base.state_dict())

    def _as_dict(self, base: dict[str, Any]) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, "optimizer": "SAM", "base": base, "sam": self._progress()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the SAM that gave this `state_dict` was; its numbers are taken over too.

        To go on with SAM where the base ran alone, load the base and set `steps`.

        Raises:
            ValueError: not such a dict, or one of another base; the text names what differs. Nothing has changed.
            RuntimeError: the weights are perturbed.
        """
        self._need_idle("load_state_dict")
        keys = self._as_dict({}).keys()
        if not isinstance(state, Mapping) or state.keys() != keys or not _store.equal(state["optimizer"], "SAM"):
            found = f"keys {list(state)}" if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(message("SAM.load_state_dict", "state", found, f"what SAM.state_dict gives, {list(keys)}"))
        check_progress("SAM", state["sam"])
        base = state["base"]
        groups = base.get("param_groups") if isinstance(base, Mapping) else None
        for k, group in enumerate(groups if isinstance(groups, list) else []):
            if not isinstance(group, Mapping):
                continue  # the base refuses it
            try:
                check_group("SAM", f"param_groups[{k}].", self._defaults | dict(group))
            except TypeError as error:
                raise ValueError(str(error)) from None
        self.base.load_state_dict(base)
        self._set_progress(state["sam"])
        self._refused = False
        self._fill()

    def averaged(self) -> AbstractContextManager[None]:
        """The base's `averaged`.

        Raises:
            ValueError, RuntimeError: as there; the weights are perturbed.
        """
        self._need_idle("averaged")
        return self.base.averaged()

    def memory(self) -> dict[str, Any]:
        """The base's `memory`; what a step of SAM's takes besides is freed with it."""
        return self.base.memory()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `state_dict` to one .npz file, as the base's `save`.

        Raises:
            OSError: the file cannot be written. An older file of that name is then untouched.
            RuntimeError: the weights are perturbed.
        """
        self._need_idle("save")
        _store.write(path, self._as_dict(self.base._as_dict(copy=False)))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Loads what `save` wrote, bit for bit; errors as in `load_state_dict` and the base's `load`."""
        self.load_state_dict(_store.read(path, FORMAT))

    def __getstate__(self) -> NoReturn:
        raise TypeError("SAM holds other objects' memory and cannot be copied or pickled; use state_dict or save")

    def __repr__(self) -> str:
        phase = ", ".join(f"{key}={getattr(self, key)!r}" for key in PHASE)
        return f"SAM({phase}, steps={self.steps}, base={self.base!r})"


def _reword(error: Exception, indices: Sequence[int]) -> NoReturn:
    """Raises a kernel's error in the words of the caller's lists."""
    words = {"p": "params", "g": "grads", "saved": "saved"}
    text = str(error).replace("sam_perturb: ", "SAM.perturb_: ", 1)
    text = re.sub(r"\b(p|g|saved)\[(\d+)\]", lambda m: f"{words[m[1]]}[{indices[int(m[2])]}]", text)
    raise type(error)(text) from None
