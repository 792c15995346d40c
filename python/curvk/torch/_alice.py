"""Alice for torch parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .._errors import message
from ..kernels.curvature import HESS, LIMITS, alice_lookahead, alice_model
from ..kernels.optim import global_norm
from ..kernels.sweep import FORMATS
from ..optim._alice import (
    AVERAGES,
    check_group,
    check_options,
    checked_counters,
    decoded,
    default_hess,
    is_sample,
    model_numbers,
    sigma_of,
    step_numbers,
    warmup_of,
    warn_if_inexact,
)
from ..zeroth._stream import words
from ._base import Fresh, FusedOptimizer, Group, Params, Place, _Batch, number, place_of
from ._devices import served
from ._probing import Randomness, frozen_statistics
from ._states import State, Steps, state_dtype
from ._storage import SCALE, Kind, Storage, chosen

Closure = Callable[[], Any]
Grads = list[Tensor | None]
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_POINTS = {"p": "", "lookahead": "look-ahead point of "}
_OWN = ("t", "seed", "quick_steps", "compat")


@dataclass(slots=True)
class _Set:
    """Parameters of one group, dtype and device, during a step: where they are, and the words of their probes."""

    index: int  # of the group
    params: list[Tensor]
    centers: list[Tensor]
    lookaheads: list[Tensor]
    words: list[int]


@dataclass(frozen=True)
class _Coded(Storage):
    """Averages as 8-bit codes, which are rounded under the optimizer's seed."""

    seed: int = 0

    def numbers(self, group: Group, draw: int) -> tuple[Any, ...]:
        return draw % 2**32, self.seed - 2**64 if self.seed >= 2**63 else self.seed


@lru_cache
def _coded(keys: tuple[str | None, ...], seed: int) -> _Coded:
    columns: list[tuple[str | None, Kind | None]] = []
    for key in keys[:4]:
        scales = Kind(torch.float32, FORMATS["curvk"])
        columns += [(key, Kind(torch.uint8)), (key + SCALE, scales)] if key else [(None, None), (None, None)]
    own, kinds = zip(*columns, *((key, None) for key in keys[4:]), strict=True)
    return _Coded("alice_step8", own, kinds, bits=8, seed=seed)


class Alice(FusedOptimizer):
    """Alice (Duersch, Catanach, Safonov & Wendt 2024): quasi-Newton steps from plain gradients, no double backward.

    `curvk.optim.Alice` describes the method. Here a step takes the usual closure and calls it three times at a sample
    step (at nu + sigma z, nu - sigma z, nu), once at a quick step, always on the same batch. Between the calls torch's
    generators are put back, so that dropout masks agree; batch normalisation counts one evaluation per step into its
    running statistics, the one at nu. Between steps the parameters hold the centre mu.

    Args:
        params: tensors, dicts of parameter groups, or (name, tensor) pairs; float32, float64, bfloat16 or float16, on
            the CPU or on CUDA devices, there in C order. Probes are keyed by the names or, without them, by the
            positions "0", "1", ... over all groups. Parameters of 16 bits have a float32 centre; their probes must
            reach past their rounding, so give sigma, and mind that gradients rounded to 16 bits show false glass.
        lr, betas, eps, quick_steps, hess, glass, limit, lr_min, lr_max: as in `curvk.optim.Alice`.
        phi, omega, sigma, l1, l2, warmup, scale_bounds_with_lr, state_bits, state_format, seed, compat: as there. All
            but quick_steps, seed and compat are group keys, the state options where they are not the defaults;
            schedulers may change lr, and the distance of the probes follows unless sigma is given.
        skip_nonfinite: take no step where a gradient, also at a probe, holds inf or NaN. It costs a sweep that reads
            the gradients, and waits for CUDA devices, which a step else does not. Otherwise a NaN stays in the averages
            of its element, whose step is then the upper bound or NaN.

    Raises:
        TypeError, ValueError, BufferError: an argument or parameter that cannot be used; the text names it.

    Warns:
        UserWarning: phi is not (1 - beta1) omega.

    `torch.amp.GradScaler` cannot drive it: GradScaler takes no closures, and one found_inf cannot serve three
    gradients. Under autocast gradients are too coarse for the glass density.

    States: step, samples, exp_avg, glass, hessian, exp_avg_sq, center, lookahead; with 8 state bits also exp_avg_scale,
    glass_scale, hessian_scale and exp_avg_sq_scale. Source: arXiv 2411.16914 and the code
    of its authors; the debiased Hessian and the counting are curvk's.

    >>> import torch, curvk.torch
    >>> p = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    >>> optimizer = curvk.torch.Alice([p], lr=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = p.square().sum() / 2
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(120):
    ...     loss = optimizer.step(closure)
    >>> bool(p.detach().abs().max() < 0.05)
    True
    """

    _op = "alice_step"
    _needed = ("step", "exp_avg", "exp_avg_sq", "center", "lookahead")
    _array_keys = ("exp_avg", "glass", "hessian", "exp_avg_sq", "center", "lookahead")
    _extra_keys = ("g_plus", "g_minus")
    _absent: Group = {"differentiable": False}  # noqa: RUF012
    _has_options = True
    _step_supports_amp_scaling = True  # GradScaler then shows itself, and is refused
    _loaded: State | None = None  # the state dict that is being loaded, once it has been checked

    def __init__(
        self,
        params: Params,
        *,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        quick_steps: int = 3,
        hess: str | None = None,
        glass: bool = True,
        limit: str = "adam",
        lr_min: float = 0.0,
        lr_max: float | None = None,
        phi: float | None = None,
        omega: float = 1.0,
        sigma: float | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
        warmup: int | None = None,
        scale_bounds_with_lr: bool = True,
        state_bits: int = 32,
        state_format: str = "curvk",
        seed: int = 0,
        skip_nonfinite: bool = False,
        compat: str | None = None,
    ) -> None:
        check_options(self._name, quick_steps, seed, compat)
        self.t = 0
        self.seed, self.quick_steps, self.compat = int(seed), int(quick_steps), compat
        self._forget()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "hess": default_hess(hess, compat),
            "glass": glass,
            "limit": limit,
            "lr_min": lr_min,
            "lr_max": lr_max,
            "phi": phi,
            "omega": omega,
            "sigma": sigma,
            "l1": l1,
            "l2": l2,
            "warmup": warmup,
            "scale_bounds_with_lr": scale_bounds_with_lr,
            "lr_0": None,
        }
        defaults |= chosen(state_bits=state_bits, state_format=state_format)
        super().__init__(params, defaults, skip_nonfinite=skip_nonfinite)
        warn_if_inexact(self._name, map(_plain, self.param_groups), 2)

    def _forget(self) -> None:
        """Drops what only holds for this process and these tensors."""
        self._samples: dict[int, Steps] = {}  # by index of the group, the probes its averages hold
        self._counted: dict[int, Steps] = {}  # of these, the ones that the step under way counts
        self._words: dict[int, int] = {}  # tensor words by id of the parameter
        self._seen: dict[int, tuple[int, int]] = {}  # what the last step left, see _traces
        self._begun: dict[int, Tensor] = {}  # centres of the parameters that have no states yet, during a step
        self._looks: list[tuple[list[Tensor], Group]] = []  # the parameters that stepped last, and their numbers
        self._realised: float | None = None
        self._held: dict[int, str] = {}  # by index of the group, the hess that its codes were made for

    # ---- what the base asks for -------------------------------------------------------------------------------------

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        glass, hessian = "glass" if group["glass"] else None, None if group["hess"] == "zero" else "hessian"
        return ("exp_avg", glass, hessian, "exp_avg_sq", "center", "lookahead")

    def _storage(self, group: Group, dtype: torch.dtype) -> Storage:
        if group.get("state_bits", 32) == 32:
            return super()._storage(group, dtype)
        if dtype == torch.float64:
            needed = "32 for float64 parameters; give them a group of their own with state_bits=32"
            raise ValueError(f"argument 'state_bits': got {group['state_bits']}, needs {needed}")
        return _coded(self._keys(group), self.seed)

    def _draw(self, mark: Any) -> int:
        return int(mark[0]) + 1

    def _release(self, used: int) -> None:
        super()._release(used)
        self._plans = [None if plan is not None and plan._op != self._op else plan for plan in self._plans]

    def _marks(self, index: int, params: list[Tensor], states: list[State] | None, fresh: Fresh) -> list[Any]:
        if states is not None:
            for state in states:
                state.setdefault("samples", 0.0)
            for counts, key in ((self._steps, "step"), (self._samples, "samples")):
                if not (index in counts and counts[index].belong_to(states)):
                    counts[index] = Steps(states, key)
        self._counted[index] = self._samples[index]
        steps, samples = self._steps[index].counts(), self._samples[index].counts()
        n = max(len(steps), len(samples))
        return list(zip(steps * (n // len(steps)), samples * (n // len(samples)), strict=True))

    def _scalars(self, group: Group, mark: Any, grad_scale: float) -> tuple[Any, ...]:
        step, samples = map(int, mark or (0, 0))
        numbers = step_numbers(_plain(group), step, samples, self.quick_steps, self.compat)
        numbers["hess"], numbers["limit"] = HESS.index(numbers["hess"]), LIMITS.index(numbers["limit"])
        return (*numbers.values(), grad_scale)

    def _initial(self, p: Tensor, key: str) -> Tensor | None:
        return self._begun[id(p)] if key in ("center", "lookahead") else None

    def _scale(self, scale: float, batches: list[_Batch]) -> float | None:
        probes = [g for column in self._extras.values() for g in column.values()]
        if self.skip_nonfinite and not math.isfinite(global_norm(probes)):
            return None
        return super()._scale(scale, batches)

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group as torch does; its numbers are checked now, and a parameter listed twice is kept once."""
        if isinstance(param_group, dict):
            param_group = {"lr_0": number(param_group.get("lr", self.defaults["lr"])), **param_group}
            where = f"param_groups[{len(self.param_groups)}]."
            check_group(self._name, where, _plain({**self.defaults, **param_group}))
        super().add_param_group(param_group)

    # ---- the step ---------------------------------------------------------------------------------------------------

    @_disable_dynamo
    def step(self, closure: Closure | None = None, *, measure: bool = False) -> Any:
        """One step: calls the closure once or three times, and moves every parameter that has a gradient.

        Args:
            closure: zeroes the gradients, evaluates the model with gradients enabled, calls backward and returns the
                loss. It must see the same batch each time it is called within a step. It reads the parameters, which
                are displaced meanwhile, and must not write to them.
            measure: call it twice more, at the centre before and after the step, for `diagnose`. Should the last of
                these calls raise, the step has been taken.

        Returns:
            What the closure returned at the look-ahead point. The parameters' gradients are those of that call.

        Raises:
            TypeError, ValueError, BufferError: no closure; a parameter, gradient or number that cannot be stepped, by
                name; a gradient that is missing at one of the calls, in the same memory as another one, or of a
                parameter that has requires_grad = False. The parameters are then as they were, bit for bit, as they are
                where the closure raises, and no state has changed.

        Parameters that were written between steps take the look-ahead point along: mu <- p, nu <- p + (nu - mu). What
        writes past autograd's version counter, as `p.data` does, is not seen and is undone.
        """
        scaled = [vars(self).pop(key) for key in ("grad_scale", "found_inf") if key in vars(self)]
        if scaled or not callable(closure):
            caller = "a call from GradScaler" if scaled else type(closure).__name__
            needed = "a function that evaluates the model, calls backward and returns the loss"
            remedy = "use optimizer.step(closure), without GradScaler"
            raise TypeError(message(f"{self._name}.step", "closure", caller, needed, remedy))
        groups = [_plain(group) for group in self.param_groups]
        for index, group in enumerate(groups):
            check_group(self._name, f"param_groups[{index}].", group)
            self._check_held(index, group)
        sample = is_sample(self.t + 1, groups, self.quick_steps)
        sets = self._follow()
        distances = {s.index: sigma_of(groups[s.index]) for s in sets}
        params = [p for s in sets for p in s.params]
        random, stepped, before = Randomness(params), False, None
        frozen = [(k, p) for k, group in enumerate(self.param_groups) for p in group["params"] if not p.requires_grad]
        for _, p in frozen:
            p.grad = None  # from before it was frozen
        self._counted = {}
        try:
            if measure:
                before = float(number(self._evaluate(closure, random, params)[0]))
            found: list[tuple[Any, Grads]] = []
            for sign in (1, -1, 0) if sample else (0,):
                self._put(sets, sign, distances)
                found.append(self._evaluate(closure, random, params, at_lookahead=sign == 0))
            *probes, at = [grads for _, grads in found]
            self._check_found(sets, probes, at)
            for index, p in frozen:
                if p.grad is not None:
                    text = f"{self._name}: {self._label(index, p)} was given a gradient, yet has requires_grad = False"
                    raise ValueError(f"{text}; use p.requires_grad_(), or leave the gradient None")
            columns = [{id(p): g for p, g in zip(params, grads, strict=True) if g is not None} for grads in probes]
            self._extras = dict(zip(self._extra_keys, columns, strict=False))
            self._update(found[-1][0])
            stepped = self._last is not None
        finally:
            self._extras = {}
            self._put_back(sets, all_of_them=not stepped)  # the kernel has put those that stepped
            self._begun = {}
            self._seen = dict(zip(map(id, params), _traces(params), strict=True))
        if stepped:
            self.t += 1
            for counts in self._counted.values() if sample else ():
                counts.vector.add_(1)
            self._looks = [([p for p in s.params if p.grad is not None], groups[s.index]) for s in sets]
            self._hold()
            self._realised = None
            if before is not None:
                self._realised = float(number(self._evaluate(closure, random, params, keep=True)[0])) - before
        return found[-1][0]

    def _hold(self) -> None:
        self._held = {k: group["hess"] for k, group in enumerate(self.param_groups) if group.get("state_bits") == 8}

    def _check_held(self, index: int, group: Group) -> None:
        """Raises where codes were made for another hess, under which they mean other numbers."""
        held = self._held.get(index, group["hess"])
        params = self.param_groups[index]["params"]
        if held != group["hess"] and any("exp_avg" + SCALE in self.state.get(p, ()) for p in params):
            found, needed = repr(group["hess"]), f"{held!r}, as its 8-bit states are held"
            raise ValueError(message(self._name, f"param_groups[{index}].hess", found, needed))

    def _follow(self) -> list[_Set]:
        """The parameters to train, with centres for new ones; values that were written to others are taken over."""
        self._begun = {}
        ids = [id(p) for g in self.param_groups for p in g["params"]]
        if list(self._words) != ids:
            names = [n for g in self.param_groups for n in g.get("param_names") or [None] * len(g["params"])]
            named = [str(i) if n is None else n for i, n in enumerate(names)]
            self._words = dict(zip(ids, words(named, self._name), strict=True))
        sets: dict[tuple[int, Place], _Set] = {}
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                state = self.state.get(p)
                if not state or "center" not in state:
                    self._check_new(index, p)
                    center = ahead = self._begun[id(p)] = p.detach().to(state_dtype(p), copy=True)
                else:
                    if self._seen.get(id(p)) != (p.data_ptr(), p._version) or state["center"].shape != p.shape:
                        self._keep_up(index, p, state)
                    center, ahead = state["center"], state["lookahead"]
                place = index, place_of(p)
                own = sets.get(place) or sets.setdefault(place, _Set(index, [], [], [], []))
                own.params.append(p)
                own.centers.append(center)
                own.lookaheads.append(ahead)
                own.words.append(self._words[id(p)])
        return list(sets.values())

    def _check_new(self, index: int, p: Tensor) -> None:
        if not served(p) or p.layout != torch.strided or p.dtype not in _DTYPES:
            text = f"{self._name}: {self._label(index, p)} is {p.dtype}, {p.layout}, on {p.device}, needs a dense"
            kind = TypeError if served(p) else BufferError
            where = "on the CPU or a CUDA device"
            raise kind(f"{text} tensor of real floats {where}; use model.cpu(), or leave it out")

    def _keep_up(self, index: int, p: Tensor, state: State) -> None:
        """Takes over what was written to a parameter since the last step."""
        self._check_new(index, p)
        dtype = state_dtype(p)
        for key in ("center", "lookahead"):
            if state[key].shape != p.shape:
                found, needed = f"shape {tuple(state[key].shape)}", f"{tuple(p.shape)} as the parameter"
                text = f"{self._name}: the state '{key}' of {self._label(index, p)} has {found}, needs {needed}"
                raise ValueError(f"{text}; delete optimizer.state[p] to start it anew")
            if state[key].dtype != dtype or state[key].device != p.device:
                state[key] = state[key].to(p.device, dtype)
        center, ahead = state["center"], state["lookahead"]
        with torch.no_grad():
            shown = center.to(p.dtype)
            if not torch.equal(shown, p):
                edited, value = shown != p, p.to(dtype)
                ahead.copy_(torch.where(edited, value + (ahead - center), ahead))
                center.copy_(torch.where(edited, value, center))

    def _put(self, sets: list[_Set], sign: int, distances: dict[int, float]) -> None:
        """Writes the look-ahead point, or the probe on one side of it, to the parameters."""
        draw = (self.t + 1) % (1 << 32)
        for s in sets:
            on: Any = {"scale": sign * distances[s.index], "seed": self.seed, "draw": draw, "tensor": s.words}
            try:
                alice_lookahead(s.params, s.lookaheads, **on)
            except (TypeError, ValueError, BufferError) as error:
                raise self._explained_point(error, s) from None

    def _put_back(self, sets: list[_Set], all_of_them: bool) -> None:
        """Writes the centres to the parameters, to those without gradients or to all."""
        refused = None
        for s in sets:
            rows = [row for row, p in enumerate(s.params) if all_of_them or p.grad is None]
            try:
                if rows:
                    params, centers = [s.params[row] for row in rows], [s.centers[row] for row in rows]
                    alice_lookahead(params, centers, tensor=[0] * len(rows))
            except (TypeError, ValueError, BufferError):  # then all but the one that cannot be written
                for row in rows:
                    try:
                        alice_lookahead(s.params[row], s.centers[row])
                    except (TypeError, ValueError, BufferError) as error:
                        text = str(error).replace("'p'", f"'p[{row}]'").replace("'lookahead'", f"'lookahead[{row}]'")
                        refused = self._explained_point(type(error)(text), s)
        if refused is not None:
            raise refused

    def _explained_point(self, error: Exception, s: _Set) -> Exception:
        def word(match: re.Match[str]) -> str:
            return f"{_POINTS[match[1]]}{self._label(s.index, s.params[int(match[2])])}"

        text = re.sub(r"'(\w+)\[(\d+)\]'", word, str(error).removeprefix("alice_lookahead: argument "))
        return type(error)(f"{self._name}: {text}")

    def _evaluate(
        self, closure: Closure, random: Randomness, params: list[Tensor], at_lookahead: bool = False, keep: bool = False
    ) -> tuple[Any, Grads]:
        """The closure's loss and gradients. The parameters keep these at the look-ahead point, with `keep` their own.

        Only the evaluation at the look-ahead point counts in running statistics.
        """
        traces = _traces(params)
        own = [p.grad for p in params] if keep else [None] * len(params)
        for p in params:
            p.grad = None
        random.rewind()
        try:
            with torch.enable_grad(), nullcontext() if at_lookahead else frozen_statistics():
                loss = closure()
            grads = [p.grad for p in params]
        finally:
            if not at_lookahead:
                for p, g in zip(params, own, strict=True):
                    p.grad = g
        if (found := _traces(params)) != traces:
            p = next(p for p, now, then in zip(params, found, traces, strict=True) if now != then)
            index = next(i for i, group in enumerate(self.param_groups) if any(q is p for q in group["params"]))
            what, needed = f"a closure that writes to {self._label(index, p)}", "one that only reads the parameters"
            raise ValueError(message(f"{self._name}.step", "closure", what, needed, "write to them between steps"))
        return loss, grads

    def _check_found(self, sets: list[_Set], probes: list[Grads], at: Grads) -> None:
        """Raises where a gradient is missing at some evaluations of a step, or was overwritten by a later one."""
        evaluations = [*probes, at] if probes else []
        has = [g is not None for g in at]
        places = [_places(grads) for grads in evaluations]
        apart = len(set().union(*places)) == sum(map(len, places))
        if apart and all([g is not None for g in grads] == has for grads in probes):
            return
        owners = [(s.index, p) for s in sets for p in s.params]
        turns: dict[int, int] = {}  # evaluation by address
        for turn, grads in enumerate(evaluations):
            for row, g in enumerate(grads):
                if (g is not None) != has[row]:
                    text = "has a gradient at some evaluations of a step and none at others"
                    remedy = "the closure must take the same path each time"
                elif any(turns.setdefault(place, turn) != turn for place in _places([g])):
                    text = "has gradients of two evaluations in the same memory, so that the later replaced the earlier"
                    remedy = "let backward() allocate them, not write into views of a buffer"
                else:
                    continue
                raise ValueError(f"{self._name}: {self._label(*owners[row])} {text}; {remedy}")

    # ---- diagnostics ------------------------------------------------------------------------------------------------

    def diagnose(self) -> dict[str, Any]:
        """What the model says of the last step; one sweep over the states, made only here.

        Returns:
            "step": the number of steps taken. "frac_inside": the share of elements whose step lay strictly between its
            bounds; the others took the bound. "predicted": the change of the loss at the centre by the model, gradient,
            curvature and glass term in each element by itself; 0 while the warm-up lasts. "realised": the change of the
            loss if the step had `measure=True`, else None.

        Raises:
            ValueError: no step was taken since the optimizer was made, loaded or copied.
        """
        if not self._looks:
            raise ValueError(f"{self._name}.diagnose: no step has been taken yet, or since a state was loaded")
        inside, total, predicted = 0, 0, 0.0
        for params, group in self._looks:
            for moved in (False, True):
                states = [self.state[p] for p in params if self.state.get(p)]  # without those deleted since
                states = [s for s in states if (float(s["step"]) > warmup_of(group)) == moved]
                if states:
                    used = [k for key in self._keys(group)[:4] if key for k in (key, key + SCALE) if k in states[0]]
                    held = {key: [s[key] for s in states] for key in used}
                    columns: Any = [decoded(held, name, group["hess"]) for name in AVERAGES]
                    found, change = alice_model(*columns, **model_numbers(group, moved))
                    inside, predicted = inside + found, predicted + change
                    total += sum(s["exp_avg"].numel() for s in states)
        share = inside / total if total else math.nan
        return {"step": self.t, "frac_inside": share, "predicted": predicted, "realised": self._realised}

    # ---- state ------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in (*_OWN[1:], "skip_nonfinite")}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {key: getattr(self, key) for key in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        self._hold()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with t, seed, quick_steps and compat under "alice"; a run goes on from it bit for bit."""
        return super().state_dict() | {"alice": {key: getattr(self, key) for key in _OWN}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class; t, seed, quick_steps and compat are taken over too.

        Raises:
            TypeError, ValueError: not a state dict, or one of other parameters or of another optimizer; nothing has
                changed.
        """
        super().load_state_dict(state_dict)
        loaded, self._loaded = self._loaded, None
        assert loaded is not None
        for _, p, state in self._pairs(loaded):  # torch has cast these to the parameters' dtypes
            self.state[p]["samples"] = torch.tensor(float(state["samples"]), dtype=torch.float32, device="cpu")
            for key in (name + SCALE for name in AVERAGES if name + SCALE in state):
                self.state[p][key] = state[key].detach().to(p.device, torch.float32, copy=True)
        for key in _OWN:
            setattr(self, key, loaded["alice"][key])
        self._hold()

    def _check_loaded(self, state_dict: dict[str, Any]) -> None:
        super()._check_loaded(state_dict)
        checked_counters(self._name, state_dict.get("alice"))
        for index, group in enumerate(state_dict["param_groups"]):
            check_group(self._name, f"param_groups[{index}].", _plain(group))
        for index, p, state in self._pairs(state_dict):
            text = f"{self._name}: the loaded state of {self._label(index, p)}"
            if "samples" not in state:
                raise ValueError(f"{text} has no 'samples'; it comes from another optimizer")
            for key in ("step", "samples"):
                try:
                    met = float(state[key]) >= 0
                except (TypeError, ValueError, RuntimeError):
                    met = False
                if not met:
                    raise ValueError(f"{text} has '{key}' = {state[key]!r}, needs a count >= 0")
        self._loaded = state_dict


def _traces(params: list[Tensor]) -> list[tuple[int, int]]:
    """What tells that something wrote to a parameter, or gave it other memory."""
    return list(zip([p.data_ptr() for p in params], [p._version for p in params], strict=True))


def _places(grads: Grads) -> set[int]:
    """Where gradients begin, but for the sparse and the empty, which have no address."""
    return {g.data_ptr() for g in grads if g is not None and g.layout == torch.strided} - {0}


def _plain(group: Group) -> Group:
    """The group's numbers, without parameters and tensors."""
    plain = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    for key, value in plain.items():
        if isinstance(value, Tensor):
            plain[key] = number(value)
    if isinstance(plain["betas"], (list, tuple)):
        plain["betas"] = tuple(map(number, plain["betas"]))
    return plain
