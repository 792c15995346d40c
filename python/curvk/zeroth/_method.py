"""The step of every method: select, take the losses, estimate, update, log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._arrays import Array
from .._errors import message
from ._estimate import Estimator, mean
from ._lazy import Lazy
from ._log import STREAM, ZOLog
from ._reference import Reference
from ._restore import Copy, Grid, Naive, Scheme, Scratch
from ._select import Choice, Selection
from ._stream import DISTS, DRAWS, SEEDS, integer, one_of, real
from ._update import Noise, Rows, Tensors, Update

FAILED = -1.0  # in place of a process's check value: its closure raised


@dataclass(frozen=True)
class Processes:
    """Processes that train one model together, each with the same weights; they exchange scalars only.

    Attributes:
        gather: takes this process's list of floats, returns the lists of all processes joined in rank order.
            Collective: every process calls it once a step, with lists of one length.
        rank, world: this process's number and how many there are.
        parallel: "probes": each process evaluates n_probes / world probes, all on the same batch; the weights are
            those of one process with all probes. "data": each evaluates every probe on a batch of its own, and the
            losses are averaged.
    """

    gather: Callable[[list[float]], list[float]] = list
    rank: int = 0
    world: int = 1
    parallel: str = "probes"


class Method:
    """A zeroth-order method: selection x estimator x restore scheme, with its log.

    Args:
        scheme: displaces the weights; its `tensors` are what is trained, its `stream` the noise.
        estimator: losses to weights. Its n_probes counts the probes of all processes together.
        selection: which tensors each step.
        name: the method's name, for errors and the log.
        processes: who trains along.

    Raises:
        TypeError, ValueError: parts that do not fit together; the text names the argument as the user knows it.

    Attributes:
        log: the `ZOLog` of this run; its length is the number of steps taken.
        skipped: steps that were skipped because a loss or a coefficient was not finite.
    """

    def __init__(
        self,
        scheme: Scheme,
        estimator: Estimator,
        selection: Selection,
        *,
        name: str,
        processes: Processes | None = None,
    ) -> None:
        self.scheme, self.estimator, self.selection = scheme, estimator, selection
        self.name, self.tensors = name, scheme.tensors
        self.processes = processes or Processes()
        self.skipped = 0
        if not len(self.tensors):
            raise ValueError(message(name, "params", "no array", "at least one to train"))
        if selection.masks and not scheme.takes_thresholds:
            needed = "'scratch' or 'copy', whose mask comes from undisplaced weights"
            raise ValueError(message(name, "restore", repr(scheme.name), needed))
        self._check_processes()
        self.log = ZOLog(self._header(), self._seal)

    def _check_processes(self) -> None:
        p = self.processes
        one_of(self.name, "parallel", p.parallel, ("probes", "data"))
        if p.parallel == "probes":
            if self.estimator.n_probes % p.world:
                found, needed = f"{self.estimator.n_probes} probes", f"a multiple of the {p.world} processes"
                raise ValueError(message(self.name, "n_probes", found, needed))
            if p.world > 1 and not self.scheme.exact:
                needed = "an exact scheme, since processes with different probes would drift apart"
                raise ValueError(message(self.name, "restore", repr(self.scheme.name), needed))

    def _header(self) -> dict[str, Any]:
        stream = self.scheme.stream
        low_rank = {"rank": stream.rank, "interval": stream.period // self.estimator.n_probes} if stream.rank else {}
        return {
            "stream": STREAM,
            "method": self.name,
            "seed": stream.seed,
            "dist": stream.dist,
            "restore": self.scheme.name,
            "n_probes": self.estimator.n_probes,
            "estimator": dict(self.estimator.settings),
            "selection": dict(self.selection.settings),
            "names": list(self.tensors.names),
            "shapes": self.tensors.shapes,
            "dtypes": self.tensors.dtypes,
            "units": [list(unit) for unit in self.selection.units],
            "unit_factor": float(self.selection.unit_factor),
            "max_factors": self.selection.max_factors,
            "theta_0": None,  # CRC-32 of the weights before the first step
            **low_rank,
        }

    # ---- the step ---------------------------------------------------------------------------------------------------

    def step(
        self,
        evaluate: Callable[[Sequence[Array]], Any],
        *,
        lr: float,
        weight_decay: float = 0.0,
        rows: Rows | None = None,
    ) -> float:
        """One step.

        Args:
            evaluate: the loss with these arrays (see `_restore`): a number, a 0-d array or a tensor of one element.
            lr: >= 0.
            weight_decay: >= 0; tensors whose name has "bias", "layer_norm" or "layernorm" do not decay.
            rows: per tensor index, the rows to perturb and update; a scheme may find its own.

        Returns:
            The mean over the probes of the loss at theta + eps z_k, as MeZO logs. If some loss is not finite, the first
            such, and the step was skipped.

        Raises:
            TypeError, ValueError: an argument out of range, a loss that is no scalar, no draw left, processes that
                disagree. What the closure raises passes through. The weights are as they were, and no step was taken.
        """
        step, n = len(self.log), self.estimator.n_probes
        lr = real(f"{self.name}.step", "lr", lr, "a finite number >= 0", 0.0)
        weight_decay = real(f"{self.name}.step", "weight_decay", weight_decay, "a finite number >= 0", 0.0)
        decay = float(np.float32(lr * weight_decay)) if lr * weight_decay <= 1 else math.inf
        if decay > 1:
            raise ValueError(
                message(f"{self.name}.step", "weight_decay", f"{weight_decay}", f"at most 1 / lr = {1 / lr}")
            )
        if (step + 1) * n > DRAWS:
            found, needed = f"step {step} of {n} probes", "fewer than 2^32 probes in a run"
            raise ValueError(message(f"{self.name}.step", "closure", found, needed, "start a run with another seed"))
        rows = self._checked_rows(rows)
        if not step:
            self.log.header["theta_0"] = self.tensors.digest()
        choice = self.selection.choose(step)
        update = self.log.compose(step, np.zeros(n, np.float32), 0.0, choice.units, choice.factors)
        self.scheme.begin(update.active, rows, choice.thresholds)
        try:
            base, losses = self._losses(evaluate, update)
        except BaseException:
            self.scheme.restore()
            raise
        kept = {i: r for i, r in self.scheme.rows.items() if i in update.active}
        update = replace(update, rows=kept, thresholds=choice.thresholds)
        return self._finish(update, choice, base, losses, lr, weight_decay, decay)

    def _losses(
        self, evaluate: Callable[[Sequence[Array]], Any], update: Update
    ) -> tuple[float | None, list[list[float]]]:
        """The loss at theta, if the estimator asks for it, and each probe's losses; agreed on by all processes."""
        p, rule, scheme = self.processes, self.estimator, self.scheme

        def loss(arrays: Sequence[Array]) -> float:
            return _scalar(f"{self.name}.step", evaluate(arrays))

        share = rule.n_probes // p.world if p.parallel == "probes" else rule.n_probes
        first = p.rank * share if p.parallel == "probes" else 0
        places = [(draw, scale) for draw in update.draws[first : first + share] for scale in rule.scales]
        if rule.base:
            places.insert(0, (update.draws[first], 0.0))
        mine: list[float] = []
        try:
            for draw, scale in places:
                mine.append(scheme.loss(loss, update.active, draw, scale))
        except BaseException:
            if p.world > 1:  # else the others wait for this process
                p.gather([FAILED, *[math.nan] * len(places)])
            raise
        shares = [mine] if p.world == 1 else self._gathered(mine)
        if p.parallel == "data":
            shares = [[mean(column) for column in zip(*shares, strict=True)]]
        base = shares[0][0] if rule.base else None
        flat = [x for part in shares for x in (part[1:] if rule.base else part)]
        sides = len(rule.scales)
        return base, [flat[k : k + sides] for k in range(0, len(flat), sides)]

    def _gathered(self, mine: list[float]) -> list[list[float]]:
        """All processes' losses; raises on every process alike where they disagree."""
        p, check = self.processes, float(self.log.crc)
        joined = list(p.gather([check, *mine]))
        width = len(mine) + 1
        if len(joined) != p.world * width:
            found, needed = f"{len(joined)} numbers", f"{width} from each of {p.world} processes"
            raise ValueError(message(f"{self.name}.step", "process_group", found, needed))
        parts = [joined[k : k + width] for k in range(0, len(joined), width)]
        checks = [part[0] for part in parts]
        if FAILED in checks:
            raise RuntimeError(
                f"{self.name}.step: the closure of process {checks.index(FAILED)} raised; no step was taken"
            )
        if len(set(checks)) > 1:
            other = next(rank for rank, c in enumerate(checks) if c != checks[0])
            found = f"processes 0 and {other} with different models, settings or logs"
            needed = "the same first weights, names, settings and steps on all"
            raise ValueError(message(f"{self.name}.step", "process_group", found, needed))
        return [part[1:] for part in parts]

    def _finish(
        self,
        update: Update,
        choice: Choice,
        base: float | None,
        losses: list[list[float]],
        lr: float,
        weight_decay: float,
        decay: float,
    ) -> float:
        """Applies and records the step that these losses call for."""
        flat = [x for probe in losses for x in probe] + ([] if base is None else [base])
        bad = [x for x in flat if not math.isfinite(x)]
        loss = bad[0] if bad else mean(probe[0] for probe in losses)
        noted = loss
        weights = None if bad else self.estimator.weights(losses, base)
        if weights is not None:
            with np.errstate(over="ignore"):
                coefs = np.array([-lr * w for w in weights], np.float64).astype(np.float32)
            if np.isfinite(coefs).all():
                g = weights[0] * self.estimator.n_probes
                update = replace(update, coefs=coefs, decay=decay, reference=(lr, g, weight_decay))
                self.selection.learn(choice, math.fsum(abs(w) for w in weights))
            else:
                bad, noted = [loss], math.nan
        self.skipped += bool(bad)
        self.scheme.update(update)
        self.log.record(update, noted, choice.units, choice.factors)
        return loss

    def _checked_rows(self, rows: Rows | None) -> Rows:
        """Rows as ascending int64 arrays in range."""
        if not rows:
            return {}
        name = f"{self.name}.step"
        if self.scheme.stream.rank:
            remedy = "use MeZO to train rows of embeddings"
            raise ValueError(message(name, "rows", "rows with noise of low rank", "whole matrices", remedy))
        if not self.scheme.takes_rows:
            raise ValueError(message(name, "rows", f"rows with restore={self.scheme.name!r}", "'scratch' or 'copy'"))
        if self.processes.world > 1 and self.processes.parallel == "data":
            raise ValueError(message(name, "rows", "rows that differ between processes", "parallel='probes'"))
        checked = {}
        for i, chosen in rows.items():
            shape, label = self.tensors.view(i).shape, f"rows[{self.tensors.names[i]!r}]"
            a = np.unique(np.asarray(chosen))
            if a.dtype.kind not in "iu" and a.size:
                raise TypeError(message(name, label, f"dtype {a.dtype}", "integers"))
            if not shape or (a.size and not (a[0] >= 0 and a[-1] < shape[0])):
                raise ValueError(message(name, label, f"{a}"[:60], f"rows of an array of shape {shape}"))
            checked[i] = a.astype(np.int64)
        return checked

    def fold(self) -> None:
        """Writes pending updates to the arrays; the log keeps where, as it decides how sums round."""
        if self.scheme.fold():
            self.log.record_fold()

    # ---- resume -----------------------------------------------------------------------------------------------------

    def _seal(self) -> None:
        """What the log needs of the live run before it is saved or replayed."""
        digest = self.tensors.digest()
        if not len(self.log):
            self.log.header["theta_0"] = digest
        self.log.end = {"digest": digest, "skipped": self.skipped, **self._states()}

    def _states(self) -> dict[str, Any]:
        parts = ("scheme", "estimator", "selection")
        return {part: getattr(self, part).state() for part in parts}

    def load_log(self, log: ZOLog) -> None:
        """Goes on where the run that wrote this log was; the run then is, bit for bit, as if it had not stopped.

        Args:
            log: of a run with the same method and settings; lr and weight_decay may differ. The weights here must be
                the run's first ones, which are then brought up to date, or its last ones.

        Raises:
            TypeError, ValueError: a log of another run or model. Nothing has changed.
        """
        name = f"{self.name}.load_log"
        self.check_log(log)
        if len(self.log):
            raise ValueError(message(name, "log", f"an optimizer after {len(self.log)} steps", "a new one"))
        if not len(log):
            return
        if log.end is None:
            raise ValueError(message(name, "log", "a log without states", "what ZOLog.save wrote"))
        digest = self.tensors.digest()
        at_end = digest == log.end["digest"]
        if not at_end and digest != log.header["theta_0"]:
            found = f"weights with CRC-32 {digest:08x}"
            needed = f"the run's first ({log.header['theta_0']:08x}) or last ({log.end['digest']:08x})"
            raise ValueError(message(name, "params", found, needed))
        before = self._states()
        try:
            if not at_end:
                if not self.scheme.exact:
                    found, needed = f"the first weights of a run with restore={self.scheme.name!r}", "its last ones"
                    raise ValueError(message(name, "params", found, needed))
                masks: Any = self.selection if self.selection.masks else None
                log.apply(self.scheme, len(log), masks)
            self._load_states(log.end)
            self.scheme.recall(log.since_fold())
        except (KeyError, TypeError) as error:
            self._load_states(before)
            raise ValueError(
                message(name, "log", f"states that do not fit ({error})", "what ZOLog.save wrote")
            ) from error
        except BaseException:
            self._load_states(before)
            raise
        self.skipped = log.end["skipped"]
        self.log = log.continued(self._seal)

    def check_log(self, log: ZOLog) -> None:
        """TypeError or ValueError unless the log is of a run with this method and these settings."""
        name = f"{self.name}.load_log"
        if not isinstance(log, ZOLog):
            raise TypeError(message(name, "log", type(log).__name__, "a ZOLog"))
        log.seal()
        for key, own in self.log.header.items():
            found = log.header.get(key)
            same = found == own or (key == "restore" and {found, own} == {"scratch", "copy"})
            if key != "theta_0" and not same:
                raise ValueError(message(name, "log", f"{key} {_short(found)}", f"{_short(own)} as this optimizer has"))

    def _load_states(self, states: Mapping[str, Any]) -> None:
        for part in ("scheme", "estimator", "selection"):
            getattr(self, part).load_state(states[part])


def make_scheme(
    restore: str, tensors: Tensors, stream: Noise, eps: float, function: str, compat: str | None = None
) -> Scheme:
    """The scheme on arrays that `restore=` and `compat=` name; ValueError for an unknown word."""
    if one_of(function, "compat", compat, (None, "mezo")) and restore != "naive":
        raise ValueError(
            message(function, "restore", repr(restore), "'naive' with compat='mezo', which does as MeZO does")
        )
    if compat:
        return Reference(tensors, stream, eps)
    own = "lazy" if stream.rank else "grid"
    if one_of(function, "restore", restore, ("scratch", "copy", own, "naive")) == "grid":
        return Grid(tensors, stream, eps, function)
    return {"scratch": Scratch, "copy": Copy, "naive": Naive, "lazy": Lazy}[restore](tensors, stream)


def make_stream(seed: Any, dist: Any, function: str) -> Noise:
    """The checked stream of a run."""
    one_of(function, "dist", dist, DISTS)
    return Noise(integer(function, "seed", seed, 0, SEEDS, "2^64"), dist)


def make_low_rank(stream: Noise, rank: Any, interval: Any, n_probes: int, function: str) -> Noise:
    """The stream with noise of this rank, whose bases V last for an interval of steps."""
    rank = integer(function, "rank", rank, 1, 1 << 16, "2^16")
    return stream._replace(rank=rank, period=n_probes * integer(function, "interval", interval, 1, DRAWS, "2^32"))


def _scalar(function: str, value: Any) -> float:
    """A closure's result as a float."""
    shape = getattr(value, "shape", ())
    if math.prod(shape) != 1:
        raise TypeError(
            message(function, "closure", f"a result of shape {tuple(shape)}", "a scalar loss", "use .mean()")
        )
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, (bool, str, bytes, complex)) or not hasattr(number, "__float__"):
        found = f"a result of type {type(value).__name__}"
        raise TypeError(message(function, "closure", found, "a scalar loss", "return the loss"))
    return float(number)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
