"""Alice: steps from the glass density and the curvature that three gradients show."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .._arrays import Array, numpy_view
from .._errors import message
from ..kernels.curvature import HESS, LIMITS, AlicePlan, alice_lookahead, alice_model
from ..kernels.optim import global_norm
from ..kernels.sweep import Codes, dequantize
from ..zeroth._stream import words
from . import _storage
from ._base import Arrays, Cohort, Group, Optimizer

AVERAGES = ("exp_avg", "glass", "hessian", "exp_avg_sq")
"""The states that may be codes."""

# ---- what the NumPy and the torch class share: a group's numbers, and what they mean at a step -----------------------


def default_hess(hess: str | None, compat: str | None) -> str:
    """The Hessian estimate for an argument that may be None."""
    return hess if hess is not None else "debiased" if compat is None else "abs"


def check_options(name: str, quick_steps: Any, seed: Any, compat: Any) -> None:
    """Raises for an argument that is not a group's."""
    for key, value, high, text in (("quick_steps", quick_steps, 1 << 32, "2^32"), ("seed", seed, 1 << 64, "2^64")):
        if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
            raise TypeError(message(name, key, f"{value!r} of type {type(value).__name__}", "an integer"))
        if not 0 <= value.__index__() < high:
            raise ValueError(message(name, key, f"{value}", f"an integer in [0, {text})"))
    if compat not in (None, "reference"):
        raise ValueError(message(name, "compat", repr(compat), "None or 'reference'"))


def check_group(name: str, where: str, group: Mapping[str, Any]) -> None:
    """Raises for numbers of a group that Alice cannot step with."""

    def real(key: str, value: Any, low: float, high: float, needed: str, closed: bool = True) -> float:
        if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__") or np.ndim(value) > 0:
            found = f"{value!r} of type {type(value).__name__}"
            raise TypeError(message(name, where + key, found, "a real number"))
        number = float(value)
        if not (low <= number < high if closed else low < number < high):
            raise ValueError(message(name, where + key, f"{number}", needed))
        return number

    for key, choices in (("hess", HESS), ("limit", LIMITS)):
        if group[key] not in choices:
            found, needed = repr(group[key]), f"one of {', '.join(map(repr, choices))}"
            raise ValueError(message(name, where + key, found, needed))
    _storage.check_alice(name, where, group)
    for key in ("glass", "scale_bounds_with_lr"):
        if not isinstance(group[key], (bool, np.bool_)):
            raise TypeError(message(name, where + key, repr(group[key]), "True or False"))
    if not group["glass"] and group["hess"] == "zero":
        found, remedy = "False with hess='zero'", "use glass=True or another hess"
        raise ValueError(message(name, where + "glass", found, "one of glass and Hessian to set the step", remedy))
    try:
        beta1, beta2 = group["betas"]
    except (TypeError, ValueError):
        raise TypeError(message(name, where + "betas", repr(group["betas"]), "two numbers in [0, 1)")) from None
    for beta in (beta1, beta2):
        real("betas", beta, 0.0, 1.0, "two numbers in [0, 1)")
    lr = real("lr", group["lr"], 0.0, math.inf, "a finite number >= 0")
    first = group["lr_0"]
    if group["scale_bounds_with_lr"] or group["sigma"] is None:
        remedy = "give sigma, and scale_bounds_with_lr=False" if not (first or 0) > 0 else ""
        real("lr", lr if first is None else first, 0.0, math.inf, f"a finite number > 0; {remedy}", closed=False)
    if group["sigma"] is None:
        needed = "a finite number > 0, since it is the distance of the probes"
        if not lr > 0:
            raise ValueError(message(name, where + "lr", f"{lr}", needed, "give sigma, or begin the schedule above 0"))
    else:
        real("sigma", group["sigma"], 0.0, math.inf, "a finite number > 0, the distance of the probes", closed=False)
    for key in ("eps", "l1", "l2", "lr_min"):
        real(key, group[key], 0.0, math.inf, "a finite number >= 0")
    if group["lr_max"] is not None:
        real("lr_max", group["lr_max"], 0.0, math.inf, "a finite number >= 0, or None for 2 lr")
    low, high = bounds(group)
    if low > high:
        found, remedy = f"{low} above lr_max = {high}", "raise lr_max or lower lr_min"
        raise ValueError(message(name, where + "lr_min", found, "a bound at most lr_max", remedy))
    if group["phi"] is not None:
        real("phi", group["phi"], 0.0, 2.0, "a number in (0, 2), or None for 1 - beta1", closed=False)
    real("omega", group["omega"], 0.0, math.inf, "a finite number > 0", closed=False)
    warmup = group["warmup"]
    if warmup is not None and (isinstance(warmup, (bool, np.bool_)) or not hasattr(warmup, "__index__")):
        found, needed = f"{warmup!r} of type {type(warmup).__name__}", "an integer, or None for 1 / (1 - beta1)"
        raise TypeError(message(name, where + "warmup", found, needed))
    if warmup is not None and warmup < 0:
        raise ValueError(message(name, where + "warmup", f"{warmup}", "an integer >= 0"))


def warmup_of(group: Mapping[str, Any]) -> int:
    """Steps without motion: the largest t with t <= 1 / (1 - beta1), in float32 as in the reference."""
    if group["warmup"] is not None:
        return int(group["warmup"])
    one, beta1 = np.float32(1), np.float32(group["betas"][0])
    return math.floor(one / (one - beta1)) if beta1 < 1 else 1 << 24


def bounds(group: Mapping[str, Any]) -> tuple[float, float]:
    """The present lr_min and lr_max."""
    lr = float(group["lr"])
    first = lr if group["lr_0"] is None else float(group["lr_0"])
    scale = lr / first if group["scale_bounds_with_lr"] and first else 1.0
    high = 2 * first if group["lr_max"] is None else float(group["lr_max"])
    return float(group["lr_min"]) * scale, high * scale


def phi_of(group: Mapping[str, Any]) -> float:
    return 1 - float(group["betas"][0]) if group["phi"] is None else float(group["phi"])


def sigma_of(group: Mapping[str, Any]) -> float:
    return float(group["lr"] if group["sigma"] is None else group["sigma"])


def is_sample(t: int, groups: Iterable[Mapping[str, Any]], quick_steps: int) -> bool:
    """Whether step t (from 1) takes the two probes too."""
    return t <= max(1, *map(warmup_of, groups)) or t % (quick_steps + 1) == 0


def model_numbers(group: Mapping[str, Any], moved: bool) -> dict[str, Any]:
    """What `alice_model` needs to look back at a step."""
    low, high = bounds(group)
    fraction = phi_of(group) if moved else 0.0
    numbers = {"eps": float(group["eps"]), "l2": float(group["l2"]), "lr_min": low, "lr_max": high}
    return {**numbers, "fraction": fraction, "hess": group["hess"], "limit": group["limit"]}


def step_numbers(group: Mapping[str, Any], step: int, samples: int, quick_steps: int, compat: str | None) -> Group:
    """The keywords of `alice_step` for the step that follows `step` steps and `samples` probes of these parameters.

    Means become exponential averages when 1 / count falls below 1 - beta; glass and Hessian count samples, with compat
    steps.
    """
    beta1, beta2 = map(float, group["betas"])
    count = step if compat is not None else samples
    low, high = bounds(group)
    return {
        "beta1": min(beta1, step / (step + 1)),
        "beta2": min(beta2, step / (step + 1)),
        "beta3": max(0.0, min(1 - (quick_steps + 1) * (1 - beta2), count / (count + 1))),
        "sigma": sigma_of(group),
        "eps": float(group["eps"]),
        "l1": float(group["l1"]),
        "l2": float(group["l2"]),
        "lr_min": low,
        "lr_max": high,
        "phi": phi_of(group),
        "omega": float(group["omega"]),
        "hess": group["hess"],
        "limit": group["limit"],
        "move": step >= warmup_of(group),
    }


def decoded(states: Mapping[str, Any], name: str, hess: str) -> list[Any] | None:
    """A state as lists of numbers, None if it is not used; codes are decoded into new arrays."""
    column, scales = states.get(name), states.get(f"{name}_scale")
    if column is None or scales is None:
        return column
    is_signed = _storage.is_signed(name, {"hess": hess})
    return [dequantize(Codes(c, s), signed=is_signed) for c, s in zip(column, scales, strict=True)]


def warn_if_inexact(name: str, groups: Iterable[Mapping[str, Any]], stacklevel: int) -> None:
    """Warns where the averaged gradient is not that of the centre."""
    for group in groups:
        exact = (1 - float(group["betas"][0])) * float(group["omega"])
        if not math.isclose(phi_of(group), exact, rel_tol=1e-6):
            text = (
                f"{name}: phi = {phi_of(group):.6g}, yet (1 - beta1) omega = {exact:.6g}: the averaged gradient is "
                "then not that of the centre even where the loss is quadratic, but lags behind it or runs ahead; "
                "use phi=(1 - beta1) * omega for the exact one"
            )
            warnings.warn(text, UserWarning, stacklevel=stacklevel + 1)
            return


# ---- the class for arrays -------------------------------------------------------------------------------------------


class Alice(Optimizer):
    """Alice (Duersch, Catanach, Safonov & Wendt 2024): quasi-Newton steps from plain gradients, no second derivatives.

    A sample step takes gradients at nu + sigma z, nu - sigma z and nu, with random signs z. They show how far gradients
    jump at random from point to point (the glass density rho) and how far they turn (the Hessian's diagonal magnitude
    h), element by element. Averages of these and of the gradient give a closed-form step, held between Adam's bounds;
    `curvk.kernels.curvature.alice_step` gives the formulas. `quick_steps` steps with one gradient follow. The weights
    hold the centre mu between steps; gradients are taken at the look-ahead point nu = mu + omega delta, which makes
    their average the centre's gradient exactly where the loss is quadratic, if phi = (1 - beta1) omega.

    Args:
        params: a list of arrays, or of dicts with "params" and numbers of their own; as in `SGD`.
        lr: length of the probes and unit of the bounds, > 0.
        betas: decay rates of the averages of gradient and squared gradient, each in [0, 1). Glass and Hessian decay by
            1 - (quick_steps + 1) (1 - beta2) per sample.
        eps: >= 0.
        quick_steps: steps with one gradient between steps with three; 3 by default, 1.5 gradients a step on average.
        hess: "debiased", -(g+ - g) (g- - g) / sigma^2, in which the glass cancels; "abs" or "rms" as published, which
            it inflates; "zero" for none. None: "debiased", or "abs" with compat.
        glass: use the glass density.
        limit: what lr_min and lr_max bound: the step times (sqrt(exp_avg_sq) + eps) / abs(exp_avg) ("adam"), the step
            divided by abs(exp_avg) ("sgdm"), the step ("fixed").
        lr_min, lr_max: the bounds, 0 <= lr_min <= lr_max; lr_max None: 2 lr. Equal ones make the step that of the
            limit.
        phi: the part of the step that the centre takes, in (0, 2); None: 1 - beta1.
        omega: how far the look-ahead point goes, > 0.
        sigma: distance of the probes, > 0; None: lr.
        l1, l2: >= 0; l1 sign(nu) + l2 nu is added to the gradient, l2 to the curvature.
        warmup: steps that only collect averages, without motion; None: the largest t <= 1 / (1 - beta1) in float32, 9
            by default.
        scale_bounds_with_lr: lr_min and lr_max follow lr when it changes.
        state_bits: 32, or 8: exp_avg, glass, hessian and exp_avg_sq as codes of curvk's 8-bit format, which are rounded
            at random and take 1.125 bytes an element; for parameters that are not float64. center and lookahead stay as
            they are. hess cannot change then once there are states.
        state_format: "curvk", the only one.
        seed: of the probes and of the rounding of 8-bit states, in [0, 2^64).
        skip_nonfinite: a gradient with inf or NaN, also at a probe, skips the step: nothing is written, and
            `skipped_steps` counts it. Otherwise a NaN stays in the averages of its element, whose step is then the
            upper bound or NaN.
        compat: "reference" counts as the published code does: a sample of glass and Hessian enters with weight
            1 / steps, not 1 / samples.

    Raises:
        TypeError, ValueError, BufferError: an array or number that cannot be used; the text names it.

    Warns:
        UserWarning: phi is not (1 - beta1) omega.

    States: exp_avg, glass, hessian, exp_avg_sq, center, lookahead; the parameter's dtype, or float32 where it is
    16-bit. With 8 state bits, uint8 codes of the first four, and exp_avg_scale and so on. Source: arXiv 2411.16914 and
    the code of its authors; the debiased Hessian and the counting are curvk's.

    >>> import numpy as np
    >>> w = np.array([2.0, -3.0])
    >>> alice = Alice([w], lr=0.5)
    >>> for _ in range(120):
    ...     _ = alice.step(lambda: [w.copy()])  # the gradient of w^2 / 2
    >>> bool(np.abs(w).max() < 0.05)
    True
    """

    _op = "alice_step"
    _scalars = ()
    _flags = ()
    _required = ("exp_avg", "exp_avg_sq", "center", "lookahead")
    _optional = ("glass", "hessian")
    _extra_keys = ("g_plus", "g_minus")
    _sweeps = True

    def __init__(
        self,
        params: Iterable[Array] | Iterable[Group],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
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
        check_options(type(self).__name__, quick_steps, seed, compat)
        self.quick_steps, self.seed, self.compat = int(quick_steps), int(seed), compat
        self.t = 0
        self._samples: list[int] = []  # by parameter, the probes its averages hold
        self._words: list[int] = []
        self._looks: list[tuple[dict[str, Arrays], dict[str, Any]]] = []  # at the last step: states and their numbers
        self._realised: float | None = None
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
            "state_bits": state_bits,
            "state_format": state_format,
            "lr_0": None,
        }
        super().__init__(params, defaults, None, skip_nonfinite)
        warn_if_inexact(self._name, self.param_groups, 2)

    # ---- what the base asks for ----

    def _numbers(self, group: Group) -> tuple[Any, ...]:
        return (*group["betas"], *(group[key] for key in self.defaults if key != "betas"))

    def _check_numbers(self, group: Any, where: str) -> None:
        check_group(self._name, where, group)

    def _used_states(self, group: Group) -> tuple[str, ...]:
        absent = {"glass"} if not group["glass"] else {"hessian"} if group["hess"] == "zero" else set()
        return tuple(key for key in (*self._required, *self._optional) if key not in absent)

    def _plan(self, p: Arrays, g: Arrays, states: dict[str, Arrays]) -> AlicePlan:
        return AlicePlan(p, g, **{"glass": None, "hessian": None, **states})  # type: ignore[arg-type]

    def _sweep_plan(self, p: Arrays, g: Arrays, cohort: Cohort, **tables: Any) -> AlicePlan:
        names = (*self._required, *self._optional)
        states: dict[str, Any] = {k: cohort.storage.state(cohort.states, k) for k in names if k in cohort.states}
        return AlicePlan(p, g, **{"glass": None, "hessian": None, **states}, tensor=tables["tensor"])

    def _stored_by(self, group: Group) -> tuple[Any, ...]:
        return group["state_bits"], group["state_format"], group["hess"]

    def _run(self, cohort: Cohort, group: Group, grad_scale: float) -> None:
        samples = self._samples[cohort.indices[0]]
        numbers = step_numbers(group, cohort.steps, samples, self.quick_steps, self.compat)
        draw = (cohort.steps + 1) % (1 << 32)
        cohort.plan.step(**numbers, grad_scale=grad_scale, draw=draw, seed=self.seed)
        self._looks.append((cohort.states, model_numbers(group, numbers["move"])))

    def add_param_group(self, group: Group) -> None:
        if isinstance(group, dict):
            group = {"lr_0": group.get("lr", self.defaults["lr"]), **group}
        super().add_param_group(group)
        self._samples += [0] * (len(self._params) - len(self._samples))
        self._words = words([str(i) for i in range(len(self._params))], self._name)

    # ---- the step ----

    def step(  # type: ignore[override]
        self, grad: Callable[[], Sequence[Array]], *, loss: Callable[[], float] | None = None, grad_scale: float = 1.0
    ) -> bool:
        """One step: evaluates the gradient once or three times, and moves the parameters.

        Args:
            grad: returns the gradients, one for each parameter, over all groups in order, at the parameters' present
                values, which a step displaces in place. It must see the same batch, and draw the same random numbers,
                each time it is called within a step, and return arrays of its own each time.
            loss: returns the loss, likewise. It is called before and after the step, at the centre, for `diagnose`.
                Should the last call raise, the step has been taken.
            grad_scale: the factor that the gradients carry, > 0.

        Returns:
            False if the step was skipped because a gradient is not finite, else True.

        Raises:
            TypeError, ValueError, BufferError: a gradient that does not fit, or shares memory with another one of the
                same step; a number out of range. The parameters are then as they were, bit for bit, as they are where
                `grad` or `loss` raises, and no state has changed.

        Parameters that were written between steps take the look-ahead point along: mu <- p, nu <- p + (nu - mu).
        """
        given: Any = grad
        if not callable(given):
            needed, remedy = "a function that returns the gradients", "use alice.step(lambda: grads_at(params))"
            raise TypeError(message(f"{self._name}.step", "grad", type(given).__name__, needed, remedy))
        for k, group in enumerate(self.param_groups):
            self._recheck_numbers(k, group)
        self._follow()
        sample = is_sample(self.t + 1, self.param_groups, self.quick_steps)
        stepped, looks = False, self._looks
        try:
            before = None if loss is None else float(loss())
            *probes, at = [self._evaluate(grad, scale) for scale in ((1, -1, 0) if sample else (0,))]
            self._check_apart([*probes, at])
            if self.skip_nonfinite and not math.isfinite(global_norm([g for probe in probes for g in probe])):
                self.skipped_steps += 1
            else:
                self._looks = []
                self._extras = dict(zip(self._extra_keys, map(list, probes), strict=False))
                stepped = super().step(at, grad_scale=grad_scale)
        finally:
            self._extras = {}
            if not stepped:
                self._looks = looks
                self._put("center")
        if stepped:
            self.t += 1
            self._samples = [n + sample for n in self._samples]
            self._realised = None  # should the loss raise now
            if loss is not None and before is not None:
                self._realised = float(loss()) - before
        return stepped

    def _put(self, name: str, scale: int = 0) -> None:
        """Writes to the parameters: the centre or the look-ahead point, and `scale` times the probe."""
        sets: dict[tuple[int, str], list[int]] = {}
        for i, kind in enumerate(self._kinds):
            sets.setdefault(kind, []).append(i)
        for (k, _), indices in sets.items():
            p, source = ([column[i] for i in indices] for column in (self._params, self._states[name]))
            distance = scale * sigma_of(self.param_groups[k])
            stream = {"seed": self.seed, "draw": (self.t + 1) % (1 << 32), "tensor": [self._words[i] for i in indices]}
            try:
                alice_lookahead(p, source, scale=distance, **stream)  # type: ignore[arg-type]
            except (TypeError, ValueError, BufferError) as error:
                self._reword(type(error)(str(error).replace("alice_lookahead: ", f"{self._op}: ", 1)), indices)

    def _evaluate(self, grad: Callable[[], Sequence[Array]], scale: int) -> Sequence[Array]:
        self._put("lookahead", scale)
        found = grad()
        name = f"{self._name}.step"
        if type(found) is not list and type(found) is not tuple:
            raise TypeError(
                message(name, "grad", f"a function that returns {type(found).__name__}", "a list of arrays")
            )
        if len(found) != len(self._params):
            needed = f"{len(self._params)}, one for each parameter"
            raise ValueError(message(name, "grad", f"a function that returns {len(found)} gradients", needed))
        for i, g in enumerate(found):
            if g is None:
                remedy = "give the optimizer only parameters that have gradients"
                raise TypeError(message(name, f"grads[{i}]", "None", "an array", remedy))
        return found

    def _check_apart(self, evaluations: list[Sequence[Array]]) -> None:
        """Raises where gradients of two evaluations share memory: the later one would have overwritten the earlier."""
        if len(evaluations) == 1:
            return
        owners = [set(map(_owner, grads)) for grads in evaluations]
        if None not in set().union(*owners) and len(set().union(*owners)) == sum(map(len, owners)):
            return
        spans = []
        for number, grads in enumerate(evaluations):
            for i, g in enumerate(grads):
                view = numpy_view(g, f"{self._name}.step", f"grads[{i}]")
                if view.size:
                    spans.append((*np.lib.array_utils.byte_bounds(view), number, i, view))
        spans.sort(key=lambda span: span[:2])
        ahead: list[Any] = []
        for span in spans:
            ahead = [other for other in ahead if other[1] > span[0]]
            for other in ahead:
                if other[2] != span[2] and np.shares_memory(other[4], span[4]):
                    found = f"gradients of two evaluations in one memory (grads[{span[3]}])"
                    remedy = "return copies: [g.copy() for g in grads]"
                    raise ValueError(message(f"{self._name}.step", "grad", found, "new arrays at each call", remedy))
            ahead.append(span)

    def _follow(self) -> None:
        """Makes the states of new parameters, and takes values that were written to the others since the last step."""
        centers, aheads = self._states["center"], self._states["lookahead"]
        for i, (view, (_, fmt)) in enumerate(zip(self._views, self._kinds, strict=True)):
            center, ahead = centers[i], aheads[i]
            if center is None:
                centers[i] = _wide(view, fmt)
                aheads[i] = centers[i].copy(order="K")
                continue
            shown = center
            if center.dtype != view.dtype:
                shown = np.empty_like(view)
                alice_lookahead(shown, center)
            edited = shown != view
            if np.count_nonzero(edited):
                value = _wide(view, fmt)
                with np.errstate(all="ignore"):
                    ahead[...] = np.where(edited, value + (ahead - center), ahead)
                center[...] = np.where(edited, value, center)

    # ---- diagnostics ----

    def diagnose(self) -> dict[str, Any]:
        """What the model says of the last step; one sweep over the states, made only here.

        Returns:
            "step": the number of steps taken. "frac_inside": the share of elements whose step lay strictly between its
            bounds; the others took the bound. "predicted": the change of the loss at the centre by the model, gradient,
            curvature and glass term in each element by itself; 0 while the warm-up lasts. "realised": the change of the
            loss if the step was given `loss`, else None.

        Raises:
            ValueError: no step was taken since the optimizer was made or loaded.
        """
        if not self._looks:
            raise ValueError(f"{self._name}.diagnose: no step has been taken yet, or since a state was loaded")
        inside, total, predicted = 0, 0, 0.0
        for states, numbers in self._looks:
            columns: Any = [decoded(states, name, numbers["hess"]) for name in AVERAGES]
            found, change = alice_model(*columns, **numbers)
            inside, predicted = inside + found, predicted + change
            total += sum(x.size for x in columns[0])
        share = inside / total if total else math.nan
        return {"step": self.t, "frac_inside": share, "predicted": predicted, "realised": self._realised}

    # ---- state dicts ----

    def _as_dict(self, copy: bool) -> dict[str, Any]:
        own = {"t": self.t, "samples": list(self._samples)}
        own |= {"seed": self.seed, "quick_steps": self.quick_steps, "compat": self.compat}
        return super()._as_dict(copy) | {"alice": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Adam.load_state_dict`; seed, quick_steps, compat and the counters are taken over too.

        Raises:
            ValueError: as there; nothing has changed.
        """
        self._check_state(state)
        own = checked_counters(self._name, state["alice"], len(self._params))
        super().load_state_dict(state)
        self.t, self._samples = own["t"], list(own["samples"])
        self.seed, self.quick_steps, self.compat = own["seed"], own["quick_steps"], own["compat"]
        self._looks, self._realised = [], None

    def _settings(self) -> dict[str, Any]:
        own = {"seed": self.seed, "quick_steps": self.quick_steps, "compat": self.compat}
        return own | {"skip_nonfinite": self.skip_nonfinite}


def checked_counters(name: str, own: Any, n_params: int | None = None) -> dict[str, Any]:
    """The entry "alice" of a state dict; ValueError if it is not one."""
    keys = {"t", "seed", "quick_steps", "compat"} | ({"samples"} if n_params is not None else set())

    def need(met: bool, what: str, found: Any, needed: str) -> None:
        if not met:
            raise ValueError(message(f"{name}.load_state_dict", what, repr(found), needed))

    need(isinstance(own, Mapping) and own.keys() == keys, "alice", own, f"a dict with the keys {sorted(keys)}")
    need(type(own["t"]) is int and own["t"] >= 0, "alice.t", own["t"], "an integer >= 0")
    try:
        check_options(name, own["quick_steps"], own["seed"], own["compat"])
    except TypeError as error:
        raise ValueError(str(error)) from None
    if n_params is not None:
        samples = own["samples"]
        met = isinstance(samples, (list, tuple)) and len(samples) == n_params
        met = met and all(type(n) is int and 0 <= n <= own["t"] for n in samples)
        need(met, "alice.samples", samples, f"{n_params} integers in [0, t]")
    return dict(own)


def _owner(g: Any) -> int | None:
    """The id of the array whose own memory this one is in; None if that is not known."""
    while type(g) is np.ndarray and g.base is not None:
        g = g.base
    return id(g) if type(g) is np.ndarray and g.flags.owndata else None


def _wide(view: np.ndarray[Any, Any], fmt: str) -> np.ndarray[Any, Any]:
    """A copy in the states' dtype."""
    if fmt == "bf16":
        return np.asarray(view.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return view.astype(np.float64 if fmt == "f64" else np.float32)
