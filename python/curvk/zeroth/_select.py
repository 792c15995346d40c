"""Which tensors, and which of their elements, a step probes and moves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .._errors import message
from .._loops.half import decode
from ..kernels import vmath
from . import _device
from ._stream import DRAWS, choose_layers, integer, one_of, real, uniforms
from ._update import Tensors

Units = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Choice:
    """A step's selection.

    Attributes:
        units: numbers of the chosen units (layers or arms), ascending. With the tensors in no unit they are what the
            step probes and updates.
        factors: for each chosen unit a factor of its tensors' update; () where `unit_factor` says it all.
        thresholds: per tensor index, only elements with abs(theta) <= threshold take part; all where absent.
    """

    units: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    thresholds: Mapping[int, float] = field(default_factory=dict)


class Selection:
    """Chooses the tensors of each step; a pure function of the seed, the step and what it learned.

    Attributes:
        rule: its name in the log.
        masks: whether choices have thresholds.
        units: the tensors of each unit, as indices; () for methods without. Tensors in no unit are always active.
        unit_factor: a constant factor of the update of tensors in units.
        max_factors: the most units that carry a factor of their own in one step; 0 for methods without.
        settings: what identifies the rule, for the log's header; plain JSON.
    """

    rule: ClassVar[str]
    masks: ClassVar[bool] = False
    units: Units = ()
    unit_factor: float = 1.0
    max_factors: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"rule": self.rule}

    def choose(self, step: int) -> Choice:
        """The selection of a step; called in the order of steps, before the losses, again if they raise."""
        return Choice()

    def learn(self, choice: Choice, reward: float) -> None:
        """Told of each step that updated; reward is the mean of |g_k|."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; plain JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""


class Everything(Selection):
    """All tensors in every step (MeZO)."""

    rule = "everything"


class Layers(Selection):
    """LeZO: a uniformly random subset of layers in each step; tensors in no layer are always active.

    Args:
        layers: the tensors of each layer, as indices.
        drop: how many layers a step leaves out: an integer from 0 to L, or a fraction in [0, 1]: floor(drop L).
        seed: of the choice, see `choose_layers`.
        rescale: "none", or "ipw" to divide the layers' update by the kept fraction, so that E g_hat = g (LeZO's own
            estimate is k g there).

    >>> Layers([[0], [1], [2], [3]], drop=0.75, seed=1).choose(0).units
    (1,)
    """

    rule = "layers"

    def __init__(self, layers: Units, drop: float, seed: int, rescale: str = "none", function: str = "LeZO") -> None:
        self.units = disjoint(layers, function)
        self.keep = len(layers) - dropped(drop, len(layers), function)
        self.seed = seed
        if one_of(function, "rescale", rescale, ("none", "ipw")) == "ipw" and self.keep:
            self.unit_factor = len(layers) / self.keep

    @property
    def settings(self) -> dict[str, Any]:
        return {"rule": self.rule, "keep": self.keep}

    def choose(self, step: int) -> Choice:
        return Choice(tuple(choose_layers(self.seed, step, len(self.units), self.keep)))


class Bandit(Selection):
    """AdaLeZO: arms are drawn with replacement, by a softmax of their mean abs(g)::

        p = (1 - gamma) softmax((Q / max Q) / tau) + gamma / N               every `interval` steps
        k = max(1, floor(fraction N)) draws with multiplicities c_i          probed: the arms with c_i > 0
        factor of arm i: c_i min(1 / (k p_i), clip)                          mean 1 where unclipped
        Q_i <- (1 - alpha) Q_i + alpha abs(g)                                   for the arms drawn

    Source: the authors' trainer of AdaLeZO, as read; where it leaves Q's start open, every Q starts at the first
    abs(g).

    Args:
        arms: the tensors of each arm, as indices; together all tensors.
        seed: of the choice.
        fraction, tau, gamma, interval, alpha, clip: as above.

    >>> choice = Bandit([[0], [1], [2]], seed=1).choose(0)
    >>> choice.units, [round(f, 6) for f in choice.factors]
    ((2,), [3.0])
    """

    rule = "bandit"

    def __init__(
        self,
        arms: Units,
        seed: int,
        *,
        fraction: float = 0.1,
        tau: float = 0.1,
        gamma: float = 0.01,
        interval: int = 1,
        alpha: float = 0.1,
        clip: float = 10.0,
        function: str = "AdaLeZO",
    ) -> None:
        self.units = disjoint(arms, function)
        self.seed = seed
        self.fraction = _share(function, "fraction", fraction, zero=False)
        self.tau = real(function, "tau", tau, "a number > 0", 0.0, open=True)
        self.gamma = _share(function, "gamma", gamma)
        self.interval = integer(function, "interval", interval, 1, DRAWS, "2^32")
        self.alpha = _share(function, "alpha", alpha, zero=False)
        self.clip = real(function, "clip", clip, "a number > 0", 0.0, open=True)
        self.draws = max(1, math.floor(self.fraction * len(arms)))
        self.max_factors = min(self.draws, len(arms))
        self.quality: list[float] = []  # Q, from the first reward on
        self.chances: list[float] = []  # p

    @staticmethod
    def arms(layers: Units, names: Sequence[str]) -> list[list[int]]:
        """The layers, the other tensors with "embed" in their name, and all the rest; none that is empty."""
        in_layers = {i for layer in layers for i in layer}
        others = [i for i in range(len(names)) if i not in in_layers]
        embeddings = [i for i in others if "embed" in names[i].lower()]
        rest = [i for i in others if i not in embeddings]
        return [list(arm) for arm in (*layers, embeddings, rest) if arm]

    @property
    def settings(self) -> dict[str, Any]:
        numbers = ("fraction", "tau", "gamma", "interval", "alpha", "clip")
        return {"rule": self.rule} | {name: getattr(self, name) for name in numbers}

    def choose(self, step: int) -> Choice:
        if step % self.interval == 0 or not self.chances:
            self.chances = self._softmax()
        ends = list(itertools.accumulate(self.chances))
        counts: dict[int, int] = {}
        for u in uniforms(self.seed, step, self.draws).tolist():
            arm = next((i for i, end in enumerate(ends) if u * ends[-1] < end), len(ends) - 1)
            counts[arm] = counts.get(arm, 0) + 1
        arms = tuple(sorted(counts))
        return Choice(arms, tuple(counts[i] * min(1 / (self.draws * self.chances[i]), self.clip) for i in arms))

    def _softmax(self) -> list[float]:
        n = len(self.units)
        top = max(self.quality, default=0.0)
        ratios = [q / top if top else 1.0 for q in self.quality] or [1.0] * n
        powers = vmath.exp(np.array([(r - 1.0) / self.tau for r in ratios])).tolist()  # the same bits everywhere
        total = math.fsum(powers)
        return [(1 - self.gamma) * w / total + self.gamma / n for w in powers]

    def learn(self, choice: Choice, reward: float) -> None:
        self.quality = self.quality or [reward] * len(self.units)
        for i in choice.units:
            self.quality[i] = (1 - self.alpha) * self.quality[i] + self.alpha * reward

    def state(self) -> dict[str, Any]:
        return {"quality": list(self.quality), "chances": list(self.chances)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.quality, self.chances = list(state["quality"]), list(state["chances"])


class Smallest(Selection):
    """Sparse-MeZO: in each tensor only the elements with abs(theta) <= h, the smallest ones, are probed and moved.

    h is the tensor's order statistic at `keep`, taken from the undisplaced weights every `mask_every` steps, for which
    a device is waited for; the mask itself follows the weights in every step.

    Args:
        tensors: the weights.
        keep: the share of elements at or below h, in (0, 1].
        mask_every: steps from one h to the next.
    """

    rule = "smallest"
    masks = True

    def __init__(self, tensors: Tensors, keep: float, mask_every: int, function: str = "SparseMeZO") -> None:
        self.tensors = tensors
        self.keep = _share(function, "keep", keep, zero=False)
        self.mask_every = integer(function, "mask_every", mask_every, 1, DRAWS, "2^32")
        self.thresholds: dict[int, float] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {"rule": self.rule, "keep": self.keep, "mask_every": self.mask_every}

    def choose(self, step: int) -> Choice:
        if step % self.mask_every == 0 or not self.thresholds:
            self.thresholds = {i: self._threshold(i) for i in range(len(self.tensors))}
        return Choice(thresholds=self.thresholds)

    def _threshold(self, i: int) -> float:
        view, kind = self.tensors.view(i), self.tensors.kinds[i]
        if not view.size:
            return math.inf
        rank = max(math.ceil(self.keep * view.size) - 1, 0)
        if self.tensors.devices[i] is not None:
            return _device.smallest(self.tensors.arrays[i], rank)
        size = np.abs(decode(view.copy(), kind) if kind in ("bf16", "f16") else view).reshape(-1)
        size.partition(rank)
        return float(size[rank])

    def state(self) -> dict[str, Any]:
        return {"thresholds": [self.thresholds[i] for i in sorted(self.thresholds)]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.thresholds = dict(enumerate(state["thresholds"]))


def dropped(drop: Any, n_layers: int, function: str) -> int:
    """How many of n layers `drop` says: itself if an integer, floor(drop n) if a fraction.

    >>> dropped(5, 6, "LeZO"), dropped(0.75, 6, "LeZO")
    (5, 4)
    """
    if not n_layers:
        remedy = "use MeZO, which has no layers"
        raise ValueError(message(function, "layers", "no layer", "at least one layer to drop", remedy))
    if hasattr(drop, "__index__"):
        needed = f"an integer from 0 to the {n_layers} layers, or a fraction in [0, 1]"
        if isinstance(drop, (bool, np.bool_)):
            raise TypeError(message(function, "drop", f"{drop}", needed))
        if not 0 <= drop.__index__() <= n_layers:
            raise ValueError(message(function, "drop", f"{drop}", needed))
        return int(drop.__index__())
    fraction = real(function, "drop", drop, "a fraction in [0, 1], or a number of layers", 0.0)
    if fraction > 1:
        raise ValueError(message(function, "drop", f"{drop}", f"a fraction in [0, 1], or an integer up to {n_layers}"))
    return math.floor(fraction * n_layers + 1e-9)  # 0.58 of 50 layers are 29, though the product is a bit less


def disjoint(units: Units, function: str) -> tuple[tuple[int, ...], ...]:
    """The units with ascending indices; ValueError if a tensor is in two."""
    seen: dict[int, int] = {}
    for number, unit in enumerate(units):
        for i in unit:
            if seen.setdefault(i, number) != number:
                found = f"a tensor both in layer {seen[i]} and in layer {number}"
                raise ValueError(message(function, "layers", found, "layers without a common tensor"))
    return tuple(tuple(sorted(set(unit))) for unit in units)


def _share(function: str, name: str, value: Any, zero: bool = True) -> float:
    number = real(function, name, value, f"a number in {'[' if zero else '('}0, 1]", 0.0, open=not zero)
    if number > 1:
        raise ValueError(message(function, name, f"{value}", f"a number in {'[' if zero else '('}0, 1]"))
    return number
