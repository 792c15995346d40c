"""SAM around the optimizers of curvk.torch that can start a step from saved weights."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import compress
from operator import eq
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .._backend import Plan
from .._errors import message
from ..kernels.curvature import asam_norm
from ..kernels.optim import global_norm
from ..optim._sam import (
    NORM_FLOOR,
    PHASE,
    Phase,
    check_group,
    check_phase,
    check_progress,
    check_unwrapped,
    uninterrupted,
)
from ._base import FusedOptimizer, Group, Place, number, place_of
from ._probing import frozen_statistics
from ._storage import OF_WEIGHTS

_NAME = "curvk.torch.SAM"


def _marks(params: list[Tensor]) -> tuple[list[Tensor], list[tuple[Any, ...]]]:
    """The parameters' gradients, and for each what tells whether anybody else holds it or its memory.

    Python, C++ (a graph that saved the gradient, DLPack) and other views count apart. Memory that torch cannot resize,
    such as NumPy's, or that processes share has an owner whom none of them counts.
    """
    grads: list[Any] = [p.grad for p in params]
    memory = [g.untyped_storage() for g in grads]
    columns = (
        map(sys.getrefcount, grads),
        map(Tensor._use_count, grads),  # type: ignore[attr-defined]
        map(torch._C._storage_Use_Count, [m._cdata for m in memory]),
        map(torch.UntypedStorage.resizable, memory),
        map(torch.UntypedStorage.is_shared, memory),
        map(eq, map(torch.UntypedStorage.nbytes, memory), [g.nbytes for g in grads]),
        map(eq, map(Tensor.stride, grads), map(Tensor.stride, params)),
        map(Tensor.is_neg, grads),
        map(Tensor.is_conj, grads),
    )
    return grads, list(zip(*columns, strict=True))


@cache
def _alone() -> tuple[Any, ...]:
    """What `_marks` says of a gradient that only its parameter holds."""
    with torch.inference_mode(False), torch.enable_grad():
        p = torch.zeros(1, requires_grad=True, device="cpu")
        (2 * p).sum().backward()  # type: ignore[no-untyped-call]
        return _marks([p])[1][0]


@cache
def _alone_on_device() -> tuple[Any, ...]:
    """The same on a CUDA device, where torch calls all memory shared."""
    *marks, shared, nbytes, strides, neg, conj = _alone()
    assert not shared
    return (*marks, True, nbytes, strides, neg, conj)


class _Rows:
    """Parameters of one group, dtype and device, and the buffers that hold first their gradients, then old weights."""

    def __init__(self, params: list[Tensor], buffers: list[Tensor]) -> None:
        self.params, self.buffers = params, buffers

    def plan(self) -> Plan:
        columns = [self.params, self.buffers]
        if self.params[0].is_complex():
            columns = [[torch.view_as_real(x.detach()) for x in column] for column in columns]
        return Plan("sam_perturb", (*columns, None))


def _copied(p: Tensor, g: Tensor) -> Tensor:
    """A gradient in memory of its own, laid out as its parameter."""
    if (g.shape, g.dtype, g.device) != (p.shape, p.dtype, p.device):  # which copy_ would adapt
        found, needed = (f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" for x in (g, p))
        raise TypeError(message(f"{_NAME}.perturb_", "grad", found, f"{needed}, as its parameter"))
    return torch.empty_like(p, requires_grad=False).copy_(g)


def _factor(function: str, inv_scale: Any) -> float:
    value = float(inv_scale)
    if not 0 < value < math.inf:
        raise ValueError(message(f"{_NAME}.{function}", "inv_scale", f"{value}", "a number in (0, inf)"))
    return value


def _flag(found_inf: Any) -> bool:
    return found_inf is not None and bool(float(found_inf))


@contextmanager
def _attributes(optimizer: torch.optim.Optimizer, **values: Any) -> Iterator[None]:
    """Sets the attributes that torch's GradScaler sets too, those that are not None, and takes them off again."""
    given = {key: value for key, value in values.items() if value is not None}
    vars(optimizer).update(given)
    try:
        yield
    finally:
        for key in given:
            vars(optimizer).pop(key, None)


class SAM(Phase, torch.optim.Optimizer):
    """Sharpness-aware minimization around an optimizer of curvk.torch (Foret et al. 2021; ASAM: Kwon et al. 2021).

    A step takes two gradients. With g the one at the weights w, of all groups together, and T = 1 or, with `adaptive`,
    abs(w) + eta::

        w' = w + rho / (norm(T g) + 1e-12) T^2 g
        the base optimizer steps from w with the gradient at w'

    The norm costs one sweep over the gradients. The pass that perturbs swaps the old weights into the memory of the
    first gradients, and the base's kernel starts from there: no copies, no pass to restore, and every bit of the
    weights as it was. Nothing is kept between steps; a step needs the weights and two gradients at its peak.

    With a closure::

        opt = SAM(AdamW(model.parameters(), lr=1e-3), rho=0.05)
        opt.step(closure)  # the usual closure: zero_grad, forward, backward, return loss

    or split, which accumulation over micro-batches, GradScaler and distributed training need::

        scaler.scale(loss(x)).backward()
        if opt.perturb_(inv_scale=1 / scaler.get_scale()):
            scaler.scale(loss(x)).backward()  # the same batch, at the perturbed weights
        scaler.step(opt)  # or, without a scaler, opt.restore_and_step()
        scaler.update()

    Args:
        base: SGD, Adam, AdamW, AdamZ or Lion of curvk.torch. Its `param_groups` and `state` are SAM's too; a group may
            hold "rho", "adaptive" and "eta" of its own.
        rho: how far w' is from w, >= 0.
        adaptive: ASAM's geometry, in which a change of an element counts relative to its size; for real parameters.
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

    A gradient at w that holds inf or NaN perturbs nothing, stays where it is (so that GradScaler finds it too), and its
    step is skipped. From `perturb_` until the weights are restored, BatchNorm and InstanceNorm modules use their batch
    but leave running statistics alone, whichever model they belong to, where the same thread calls them. Random numbers
    are not rewound: dropout draws new masks for the second gradient, as in the published code.

    The first gradients' memory is taken only where nobody else holds it; other gradients (views of a bucket, tensors
    that the caller keeps, NumPy's memory, other strides) cost a buffer for the duration of the step.

    Parameters may lie on CUDA devices, which a step of SAM's waits for: once for the norm, and for found_inf and
    grad_scale where these are tensors on a device.

    48 bytes of traffic per float32 element in a step of AdamW, 20 of them SAM's. Norm floor and `adaptive` with eta = 0
    as in github.com/davda54/sam. Source: arXiv 2010.01412, 2102.11600, 2410.10373.

    >>> import torch, curvk.torch
    >>> p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> opt = curvk.torch.SAM(curvk.torch.SGD([p], lr=0.5), rho=1.0)
    >>> def closure():
    ...     opt.zero_grad()
    ...     loss = p.square().sum() / 2
    ...     loss.backward()
    ...     return loss
    >>> opt.step(closure).item()  # the first gradient is taken at norm 5, the second at norm 6
    12.5
    >>> p.detach()
    tensor([1.2000, 1.6000])
    """

    _step_supports_amp_scaling = True  # torch.amp.GradScaler then sets grad_scale and found_inf and calls step()

    def __init__(
        self,
        base: FusedOptimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.0,
        start: float | None = None,
        end: float | None = None,
        every: int = 1,
        reset_state_on_switch: bool = False,
    ) -> None:
        if not isinstance(base, FusedOptimizer) or "origin" not in base._extra_keys:
            found = f"{type(base).__module__}.{type(base).__qualname__}"
            needed = "SGD, Adam, AdamW, AdamZ or Lion of curvk.torch, which can start a step from the saved weights"
            remedy = "use curvk.torch.AdamW or curvk.torch.SGD with the same arguments"
            if type(base).__module__.startswith("curvk.optim"):
                remedy = "use curvk.optim.SAM around it"
            raise TypeError(message(_NAME, "base", found, needed, remedy))
        own = {"rho": rho, "adaptive": adaptive, "eta": eta}
        check_unwrapped(_NAME, base)
        check_group(_NAME, "", own)
        check_phase(_NAME, dict(zip(PHASE, (start, end, every, reset_state_on_switch), strict=True)))
        self._set_phase(start, end, every, reset_state_on_switch)
        self._own: Group = own
        self.base = base
        self._start_anew()
        self._fill()
        base._within_sam = True
        super().__setstate__({})  # hooks, as Optimizer.__init__ makes them; groups and state are the base's

    def _start_anew(self) -> None:
        self._saved: dict[int, tuple[Tensor, Tensor]] | None = None  # by id of the parameter; None: not perturbed
        self._refused = False  # the last perturb_ met a gradient that is not finite
        self._frozen: AbstractContextManager[Any] | None = None

    @property
    def param_groups(self) -> list[Group]:
        """The base's groups, with "rho", "adaptive" and "eta" in each."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The base's states."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    @property
    def defaults(self) -> Group:  # type: ignore[override]
        """The base's defaults and SAM's."""
        return {**self.base.defaults, **self._own}

    def _fill(self) -> None:
        """Gives groups that have none SAM's numbers, and checks them."""
        for index, group in enumerate(self.base.param_groups):
            for key, value in self._own.items():
                group.setdefault(key, value)
            check_group(_NAME, f"param_groups[{index}].", group)

    # ---- steps ------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @overload
    def step(self, closure: Callable[[], Tensor]) -> Tensor: ...

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of SAM's or, outside its phase, of the base.

        Args:
            closure: sets the gradients to zero, evaluates the model, runs backward and returns the loss. It is called
                twice in a step of SAM's, else once. Without one this is `restore_and_step()`.

        Returns:
            What the closure returned at the weights, or None.

        Raises:
            TypeError, ValueError, BufferError: as the base's `step`. The weights are as before, also where the closure
                raises.
            RuntimeError: this is a step of SAM's, and there is neither a closure nor was `perturb_` called.
        """
        if closure is None:
            self._finish(None)
            return None
        self._need_idle("step")
        with torch.enable_grad():
            loss = closure()
        try:
            if self.perturb_():
                with torch.enable_grad():
                    closure()
        except BaseException:
            self.restore_()
            raise
        self._finish(loss)
        return loss

    @_disable_dynamo
    def perturb_(self, inv_scale: float | Tensor = 1.0, found_inf: Tensor | float | None = None) -> bool:
        """Moves the weights to where the second gradient is to be taken; outside SAM's phase it does nothing.

        The gradients are given up: `p.grad` is None afterwards, and its memory holds the old weights.

        Args:
            inv_scale: what the gradients are multiplied by: 1 / scaler.get_scale(), 1 / the number of micro-batches.
            found_inf: a number that is not 0 says that a gradient is not finite. A tensor of one element is set to 1
                where one is not, for processes to agree on: all_reduce it with MAX, give it to `restore_and_step`.

        Returns:
            True if the weights were moved. False outside SAM's phase, and where a gradient (or, with `adaptive`, a
            weight) is not finite: then the gradients stay, and `restore_and_step` will skip the step.

        Raises:
            TypeError, ValueError, BufferError: a gradient that does not fit or a group's number out of range, by name;
                nothing has been written.
            RuntimeError: the weights are perturbed already, or within `averaged`.
        """
        self._need_idle("perturb_")
        if self.base._averaging:
            raise RuntimeError(f"{_NAME}.perturb_: the parameters hold their averages; leave averaged() first")
        self._refused = False
        if not self.active:
            return False
        self._fill()
        inv = _factor("perturb_", inv_scale)
        try:
            rows = self._rows()
            plans = [r.plan() for r in rows.values()]
            norm = self._norm(rows) * inv
        except (TypeError, ValueError, BufferError, RuntimeError):
            self._explain()
            raise
        if not math.isfinite(norm) or _flag(found_inf):
            self._refused = True
            if isinstance(found_inf, Tensor):
                found_inf.fill_(1)
            return False
        self._saved = {}
        try:
            self._frozen = frozen_statistics()
            self._frozen.__enter__()
            for ((index, *_), r), plan in zip(rows.items(), plans, strict=True):
                group = self.param_groups[index]
                scale = number(group["rho"]) * inv / (norm + NORM_FLOOR)
                kept = {id(p): (p, old) for p, old in zip(r.params, r.buffers, strict=True)}
                with uninterrupted():
                    plan.run((scale, bool(group["adaptive"]), number(group["eta"])))
                    self._saved.update(kept)
                for p in r.params:
                    p.grad = None
        except BaseException:
            self.restore_()
            raise
        return True

    def restore_and_step(self, inv_scale: float | Tensor = 1.0, found_inf: Tensor | float | None = None) -> bool:
        """The base's step from the weights before `perturb_`; without one, outside SAM's phase, the base's plain step.

        Parameters without a gradient get their weights back. `step()` without a closure is the same call.

        Args:
            inv_scale: as in `perturb_`, for the gradients at the perturbed weights.
            found_inf: a number, or a tensor of one element, that is not 0 skips the step.

        Returns:
            False if the step was skipped because a gradient is not finite: of the first ones, or of these, where
            `found_inf` or the base's skip_nonfinite says so. The weights are then as before `perturb_`.

        Raises:
            TypeError, ValueError, BufferError: as the base's `step`; the weights are as before `perturb_`.
            RuntimeError: this is a step of SAM's, and `perturb_` was not called.
        """
        skipped = self.skipped_steps
        try:
            with _attributes(self, grad_scale=1.0 / _factor("restore_and_step", inv_scale), found_inf=found_inf):
                self.step()  # the one that schedulers and hooks watch
        except BaseException:
            self.restore_()
            raise
        return self.skipped_steps == skipped

    def restore_(self) -> None:
        """Puts the weights back bit for bit, without a step; does nothing where they are not perturbed."""
        self._refused = False
        if self._saved is not None:
            self._restore(list(self._saved))
            self._let_go()

    @_disable_dynamo
    def _finish(self, loss: Any) -> None:
        """The base's step, or none; whatever happens, no weight stays perturbed."""
        perturbed = self._saved is not None
        try:
            skip = self._refused or _flag(getattr(self, "found_inf", None))
        except BaseException:
            self.restore_()
            raise
        if skip:
            self.restore_()
            self.base._clear_grads()
            self._count(False, perturbed)
            return
        if self._saved is None:
            if self.active:
                raise RuntimeError(f"{_NAME}.step: this is a step of SAM's; use perturb_() first, or step(closure)")
            self._count(self._step_base(loss), False)
            return
        base, before = self.base, None
        try:
            saved = {key: old for key, (_, old) in self._saved.items()}
            with_grad = {id(p): p for g in self.param_groups for p in g["params"] if p.grad is not None}
            for key in with_grad.keys() - saved.keys():  # perturb_ saw no gradient: it starts from a copy of itself
                saved[key] = with_grad[key].detach().clone()
            if self._resets():
                before = dict(base.state)
                base.state.clear()
                # What belongs to the weights themselves, such as the lower halves of masters, is no state to drop.
                kept = {p: {key: s[key] for key in OF_WEIGHTS if key in s} for p, s in before.items()}
                base.state.update({p: s for p, s in kept.items() if s})
            base._extras = {"origin": saved}
            stepped = self._step_base(loss)
            self._restore(list(self._saved.keys() - (with_grad.keys() if stepped else ())))
            if stepped:
                before = None
        except BaseException:
            self.restore_()
            raise
        finally:
            base._extras = {}
            if before is not None:
                base.state.update(before)
        self._let_go()
        self._count(stepped, True)

    def _step_base(self, loss: Any) -> bool:
        """The base's step on the gradients; False if it skipped."""
        with _attributes(self.base, grad_scale=getattr(self, "grad_scale", None)):
            if loss is None:
                self.base.step()
            else:
                self.base.step(lambda: loss)
        return self.base._last is not None  # which it leaves only where it came to its end

    @torch.no_grad()
    def _restore(self, keys: list[int]) -> None:
        assert self._saved is not None
        for p, old in map(self._saved.__getitem__, keys):
            if p.shape == old.shape:  # else somebody gave it other weights since
                p.copy_(old)

    def _let_go(self) -> None:
        self._saved = None
        if self._frozen is not None:
            self._frozen.__exit__(None, None, None)
            self._frozen = None

    def _rows(self) -> dict[tuple[int, Place], _Rows]:
        """The parameters with gradients, by group, dtype and device."""
        alone, elsewhere = _alone(), _alone_on_device()
        rows: dict[tuple[int, Place], _Rows] = {}
        for index, group in enumerate(self.param_groups):
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            found = zip(params, *_marks(params), strict=True)
            buffers = [
                g if marks == alone or (marks == elsewhere and g.is_cuda) else _copied(p, g) for p, g, marks in found
            ]
            places = list(map(place_of, params))
            for place in dict.fromkeys(places):
                chosen = [at == place for at in places]
                rows[index, place] = _Rows(list(compress(params, chosen)), list(compress(buffers, chosen)))
        return rows

    def _norm(self, rows: dict[tuple[int, Place], _Rows]) -> float:
        """The norm of T g over all groups, for which devices are waited for."""
        plain: list[Tensor] = []
        norms = []
        for (index, (dtype, _)), r in rows.items():
            group = self.param_groups[index]
            if not group["adaptive"]:
                plain += [torch.view_as_real(g) for g in r.buffers] if dtype.is_complex else r.buffers
            elif dtype.is_complex:
                found = f"complex parameters in group {index}"
                raise TypeError(message(_NAME, "adaptive", found, "real ones", "set the group's 'adaptive' to False"))
            else:
                norms.append(asam_norm(r.params, r.buffers, eta=number(group["eta"])))
        return math.hypot(global_norm(plain), *norms)

    def _explain(self) -> None:
        """Raises what the base says of the gradients, in the words of the model, if it refuses them."""
        batches: list[Any] = []
        try:
            for index in range(len(self.param_groups)):
                self.base._bind(index, batches, {}, None, {})
        finally:
            self.base._release(len(batches))

    def averaged(self) -> AbstractContextManager[None]:
        """The base's `averaged`.

        Raises:
            RuntimeError: the weights are perturbed.
        """
        self._need_idle("averaged")
        return self.base.averaged()

    def memory(self) -> dict[str, Any]:
        """The base's `memory`; between steps SAM holds nothing of its own."""
        return self.base.memory()

    def _need_idle(self, what: str) -> None:
        if self._saved is not None:
            raise RuntimeError(
                f"{_NAME}.{what}: the weights are perturbed; use restore_and_step() or, to give the step up, restore_()"
            )

    # ---- groups and state -------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group to the base; it may hold "rho", "adaptive" and "eta" too.

        Raises:
            TypeError, ValueError: as the base's; nothing has changed.
        """
        if isinstance(param_group, dict):
            check_group(_NAME, f"param_groups[{len(self.param_groups)}].", {**self._own, **param_group})
        self.base.add_param_group(param_group)
        self._fill()

    def __repr__(self) -> str:
        phase = ", ".join(f"{key}={getattr(self, key)!r}" for key in PHASE)
        return f"SAM({phase}, steps={self.steps}, base={self.base!r})"

    def __getstate__(self) -> dict[str, Any]:
        self._need_idle("__getstate__")
        return {"base": self.base, "own": self._own, "progress": self._progress()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.base, self._own = state["base"], state["own"]
        self.base._within_sam = True
        self._set_progress(state["progress"])
        self._start_anew()
        super().__setstate__({})

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, with SAM's phase and step count under "sam"; the base takes it too.

        Raises:
            RuntimeError: the weights are perturbed, so that a checkpoint would hold perturbed weights.
        """
        self._need_idle("state_dict")
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = {**self.base.state_dict(), "sam": self._progress()}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = post_hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of SAM's, settings included, or of the base alone, which leaves SAM's phase and count.

        Raises:
            TypeError, ValueError: as the base's; nothing has changed.
            RuntimeError: the weights are perturbed.
        """
        self._need_idle("load_state_dict")
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        own = isinstance(state_dict, dict) and "sam" in state_dict
        if own:
            check_progress(_NAME, state_dict["sam"])
        for index, group in enumerate(state_dict.get("param_groups", ()) if isinstance(state_dict, dict) else ()):
            check_group(_NAME, f"the loaded param_groups[{index}].", {**self._own, **group})
        self.base.load_state_dict(state_dict)
        if own:
            self._set_progress(state_dict["sam"])
        self._refused = False
        self._fill()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
