"""AdamZ's learning-rate rule as an object of its own. It never imports torch, but serves torch's optimizers too."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import numpy as np

from .._backend import Plan
from .._errors import message


@dataclass(kw_only=True, eq=False)
class LossRule:
    """The window of losses and what it does to the lr of param groups; `LossAdaptiveLR` documents the fields."""

    overshoot_factor: float = 0.5
    stagnation_factor: float = 1.2
    stagnation_threshold: float = 0.2
    patience: int = 100
    stagnation_period: int = 10
    min_lr: float = 1e-7
    max_lr: float = 1.0
    guard: bool = False

    def __post_init__(self) -> None:
        for name in ("overshoot_factor", "stagnation_factor", "stagnation_threshold", "min_lr", "max_lr"):
            self._need(name, isinstance(getattr(self, name), (int, float, np.number)), TypeError, "a real number")
        for name in ("patience", "stagnation_period"):
            value = getattr(self, name)
            self._need(name, isinstance(value, (int, np.integer)) and value is not True, TypeError, "an integer")
            self._need(name, value >= 1, ValueError, "an integer >= 1")
            setattr(self, name, int(value))
        self._need("guard", isinstance(self.guard, (bool, np.bool_)), TypeError, "True or False")
        self._need("overshoot_factor", 0 < self.overshoot_factor < 1, ValueError, "a number in (0, 1)")
        self._need("stagnation_factor", 1 < self.stagnation_factor < inf, ValueError, "a number in (1, inf)")
        self._need("stagnation_threshold", 0 <= self.stagnation_threshold < inf, ValueError, "a number in [0, inf)")
        self._need("min_lr", 0 < self.min_lr <= self.max_lr, ValueError, "a number > 0 and not above max_lr")
        self._need("max_lr", self.max_lr < inf, ValueError, "a finite number")
        roomy = self.stagnation_period < self.patience or not self.guard
        self._need(
            "guard", roomy, ValueError, "stagnation_period < patience, to compare the newest losses with older ones"
        )
        self._window = np.zeros(self.patience)
        self._stored = np.zeros(1, np.int64)
        self._out = np.zeros(3)
        self._plan = Plan("loss_window", (self._window, self._stored, self._out))

    def _need(self, name: str, met: Any, error: type[Exception], needed: str) -> None:
        if not met:
            raise error(message("LossAdaptiveLR", name, repr(getattr(self, name)), needed))

    def apply(self, loss: float, groups: Iterable[dict[str, Any]]) -> None:
        """Stores a loss and sets every group's lr. A bad loss or lr raises before anything is written."""
        for group in groups:
            if not 0.0 <= group["lr"] < inf:  # the clamp below would hide it
                raise ValueError(
                    message("report_loss", "lr", f"{group['lr']} in a param group", "a number in [0, inf)")
                )
        self._plan.run((self.patience, self.stagnation_period, loss))
        overshoots, short, long = self._out.tolist()
        threshold = self.stagnation_threshold
        stagnates = short < threshold * threshold * long and not (self.guard and self._falls())
        for group in groups:
            lr = old = float(group["lr"])
            if overshoots:
                lr *= self.overshoot_factor
            if stagnates:
                lr *= self.stagnation_factor
            if lr < self.min_lr:
                lr = self.min_lr
            elif lr > self.max_lr:
                lr = self.max_lr
            if lr != old:
                _set_lr(group, lr)

    def _falls(self) -> bool:
        """True where the newest `stagnation_period` losses have a lower mean than as many before them."""
        ages = np.arange(min(2 * self.stagnation_period, self.patience))
        losses = self._window[(int(self._stored[0]) - 1 - ages) % self.patience]
        return bool(losses[: self.stagnation_period].mean() < losses[self.stagnation_period :].mean())

    def mark(self) -> tuple[int, float]:
        """What the next `apply` will overwrite in the window."""
        stored = int(self._stored[0])
        return stored, float(self._window[stored % self.patience])

    def rewind(self, mark: tuple[int, float]) -> None:
        """Takes back the `apply` since `mark`, but for the groups' lr."""
        self._stored[0], self._window[mark[0] % self.patience] = mark

    def state_dict(self) -> dict[str, Any]:
        """The fields, the window and how many losses it was ever given."""
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return state | {"window": self._window.copy(), "stored": int(self._stored[0])}

    __getstate__ = state_dict  # for pickles and copies: the plan is bound to the window's memory

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(vars(LossRule.from_state(state)))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LossRule:
        """The rule that gave this `state_dict`; ValueError if none can have."""

        def refuse(what: str, found: str, needed: str) -> ValueError:
            return ValueError(message("load_state_dict", what, found, needed))

        settings = [f.name for f in fields(cls)]
        if not isinstance(state, Mapping):
            raise refuse("state", type(state).__name__, "what LossAdaptiveLR.state_dict gives")
        if state.keys() != {*settings, "window", "stored"}:
            raise refuse("state", f"keys {list(state)}", f"keys {[*settings, 'window', 'stored']}")
        try:
            rule = cls(**{name: state[name] for name in settings})
        except TypeError as error:
            raise ValueError(f"load_state_dict: {error}") from None
        window, stored = state["window"], state["stored"]
        if not isinstance(window, np.ndarray) or window.dtype != np.float64 or window.shape != (rule.patience,):
            found = (
                f"{window.dtype} of shape {window.shape}" if isinstance(window, np.ndarray) else type(window).__name__
            )
            raise refuse("window", found, f"float64 of shape ({rule.patience},) as 'patience' says")
        if np.isnan(window).any():
            raise refuse("window", "NaN", "losses, which are stored only if they are numbers")
        if type(stored) is not int or not 0 <= stored < 2**62:
            raise refuse("stored", repr(stored), "an integer from 0 to 2**62")
        rule._window[:] = window
        rule._stored[0] = stored
        return rule


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if hasattr(group["lr"], "fill_"):
        group["lr"].fill_(lr)  # a torch tensor, which a compiled step or a scheduler may hold as well
    else:
        group["lr"] = lr


class LossAdaptiveLR:
    """AdamZ's learning-rate rule around any optimizer: curvk's for NumPy, curvk's for torch, or torch's own.

    With W the last `patience` losses and S the newest min(stagnation_period, patience) of them, both with the newest
    loss L, every reported loss sets each group's lr::

        lr <- overshoot_factor lr     if W is full and L >= max(W)
        lr <- stagnation_factor lr    if W is full and std(S) < stagnation_threshold std(W)
        lr <- min(max(lr, min_lr), max_lr)

    A NaN loss fires neither rule and is not stored. What the published rule does to some streams was measured:

    - A steadily falling loss raises lr at every step once W is full: on a line std(S)/std(W) is 0.0995 for the default
      windows, whatever its slope, and lr goes from 0.01 to 1 in 26 steps. `guard` stops this.
    - On a plateau of independent noise each loss is the highest of its window with probability 1 / patience, so that lr
      halves every `patience` steps: from 0.01 to 1e-7 in about 1,800 steps. `guard` does not change this.
    - A constant loss ties with the window's maximum and halves lr at every step once W is full.

    Args:
        optimizer: anything with `param_groups`, a list of dicts whose "lr" is a number or a one-element torch tensor
            (then written in place).
        overshoot_factor: in (0, 1).
        stagnation_factor: > 1.
        stagnation_threshold: >= 0.
        patience: length of W, >= 1.
        stagnation_period: length of S, >= 1.
        min_lr, max_lr: bounds of lr, 0 < min_lr <= max_lr.
        guard: not part of the published rule. lr is then raised only if mean(S) is not below the mean of the
            stagnation_period losses before S (or as many as W holds): a loss that still falls does not stagnate. Where
            the loss has come to rest, this lets about half of the rises through. Needs stagnation_period < patience.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    A report costs a pass over W, about a microsecond. Source: Zaznov et al. 2024, arXiv 2411.15375, and its package
    `adamz` 0.1.0; the treatment of NaN and `guard` are ours.

    >>> import numpy as np
    >>> from curvk.optim import SGD
    >>> sgd = SGD([np.ones(2)], lr=0.5)
    >>> rule = LossAdaptiveLR(sgd, patience=3)
    >>> for loss in (1.0, 2.0, 3.0):
    ...     rule.report_loss(loss)
    >>> sgd.param_groups[0]["lr"]  # the third loss fills the window and is its highest
    0.25
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        overshoot_factor: float = 0.5,
        stagnation_factor: float = 1.2,
        stagnation_threshold: float = 0.2,
        patience: int = 100,
        stagnation_period: int = 10,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
        guard: bool = False,
    ) -> None:
        groups = getattr(optimizer, "param_groups", None)
        if not isinstance(groups, list) or not all(isinstance(g, dict) and "lr" in g for g in groups):
            needed = "an optimizer whose param_groups is a list of dicts with 'lr'"
            raise TypeError(message("LossAdaptiveLR", "optimizer", type(optimizer).__name__, needed))
        self.optimizer = optimizer
        self.rule = LossRule(
            overshoot_factor=overshoot_factor,
            stagnation_factor=stagnation_factor,
            stagnation_threshold=stagnation_threshold,
            patience=patience,
            stagnation_period=stagnation_period,
            min_lr=min_lr,
            max_lr=max_lr,
            guard=guard,
        )

    def report_loss(self, loss: float) -> None:
        """Stores the newest loss and sets lr for the step that follows.

        Args:
            loss: a number, or an array or tensor of one element.

        Raises:
            TypeError, ValueError: not a number, or a group's lr that is not in [0, inf); nothing has been written.
        """
        self.rule.apply(loss, self.optimizer.param_groups)

    def step(self, given: Any = None, loss: Any = None, **options: Any) -> Any:
        """Reports a loss, then lets the optimizer take its step.

        Args:
            given: what the optimizer's own `step` takes: the gradients (curvk.optim), a closure (torch), or nothing.
                The loss that a closure returns is reported, then the step is taken on the gradients it left.
            loss: the newest loss, where there is no closure; None reports nothing.
            **options: passed to the optimizer's `step`.

        Returns:
            What the optimizer's `step` returns or, with a closure, the closure's loss.

        Where the step raises or is skipped (it returns False), the loss counts as not reported.
        """
        closure: Callable[[], Any] | None = given if callable(given) else None
        if closure is not None:
            if loss is not None:
                raise ValueError(message("step", "loss", repr(loss), "None beside a closure, which returns the loss"))
            with _grad_enabled():
                loss = closure()
        arguments = () if given is None or closure is not None else (given,)
        if loss is None:
            return self.optimizer.step(*arguments, **options)
        groups, mark = self.optimizer.param_groups, self.rule.mark()
        before = [float(group["lr"]) for group in groups]
        self.rule.apply(loss, groups)
        result: Any = False
        try:
            result = self.optimizer.step(*arguments, **options)
        finally:
            if result is False:
                self.rule.rewind(mark)
                for group, lr in zip(groups, before, strict=True):
                    _set_lr(group, lr)
        return result if closure is None else loss

    def state_dict(self) -> dict[str, Any]:
        """The rule's settings and window; not the optimizer's state, which has its own `state_dict`."""
        return self.rule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave, settings included.

        Raises:
            ValueError: not such a dict; the text names what differs, and nothing has changed.
        """
        self.rule = LossRule.from_state(state)

    def __copy__(self) -> LossAdaptiveLR:
        other = type(self).__new__(type(self))
        other.__dict__.update(vars(self) | {"rule": copy.copy(self.rule)})  # a window of its own
        return other

    def __repr__(self) -> str:
        settings = ", ".join(f"{f.name}={getattr(self.rule, f.name)!r}" for f in fields(self.rule))
        return f"LossAdaptiveLR({self.optimizer!r}, {settings})"


def _grad_enabled() -> AbstractContextManager[Any]:
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.enable_grad()
