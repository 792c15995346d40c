"""Times kernels, peers and limits side by side: one process, the same arrays, turn by turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle
from statistics import median, quantiles
from typing import Any

import numpy as np

from .._backend import core, get_backend, get_simd, set_simd, simd_levels
from .._threads import threads as limit_threads
from . import limits
from .interval import Interval
from .registry import MODELS, Array, Arrays, Case, Contender, Factory, Options, Row, optional
from .storage import empty, encode, numbers

PAUSE = 0.003
"""Seconds before each sample: OpenMP's workers spin for 1 to 2 ms after a region and would run beside the next one."""


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    sample: float  # seconds that one sample of a short step is stretched to
    largest: int  # elements of an array, but for the headline rows
    models: tuple[str, ...]
    probe_mib: int
    pause: float = PAUSE  # seconds before a sample; hosts that ration processor time want more of it
    one_format: bool = False  # of each row but the headline ones, the first


FULL = Effort(rounds=11, sample=0.02, largest=10**9, models=tuple(MODELS), probe_mib=256)
QUICK = Effort(rounds=5, sample=0.004, largest=10**6, models=("1000x1000",), probe_mib=64, one_format=True)


@dataclass
class Result:
    """One line of the table, with the raw samples behind it."""

    op: str
    variant: str
    format: str
    what: str  # "n" elements of one array or a model's name
    n: int
    threads: int
    level: str
    bytes_per_element: float
    flops_per_element: int
    samples: dict[str, list[float]] = field(default_factory=dict)  # contender -> seconds per step, one a round
    notes: list[str] = field(default_factory=list)

    @property
    def ours(self) -> str:
        """The contender that stands for curvk: the first measured."""
        return next(iter(self.samples))

    def seconds(self, name: str) -> float:
        return median(self.samples[name])

    def ns(self, name: str) -> float:
        return self.seconds(name) / self.n * 1e9

    def gbs(self, name: str) -> float:
        return self.n * self.bytes_per_element / self.seconds(name) / 1e9

    def ratio(self, name: str, to: str | None = None) -> tuple[float, float, float]:
        """Quartiles and median (low, median, high) of this contender's time over curvk's, taken round by round."""
        pairs = zip(self.samples[name], self.samples[to or self.ours], strict=True)
        low, middle, high = quantiles([a / b for a, b in pairs], n=4, method="inclusive")
        return low, middle, high

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class WrongAnswerError(Exception):
    """A kernel's result lies outside its error class."""


# ---- answers first --------------------------------------------------------------------------------------------------


def _windows(n: int, granularity: int) -> list[slice]:
    """Where a long result is checked: its start, middle and end."""
    length = 4096
    if n <= 3 * length:
        return [slice(0, n)]
    middle, last = (i // granularity * granularity for i in (n // 2, n - length))
    return [slice(0, length), slice(middle, middle + length), slice(last, n)]


def _copy(case: Case, a: Arrays, part: slice) -> Arrays:
    return {k: None if x is None else case.cut(k, x, part).copy() for k, x in a.items()}


def _missed(want: Any, got: Array) -> int:
    x = numbers(got)
    if isinstance(want, Interval):
        return int(want.misses(x).sum())
    y = numbers(want)
    return int(((x != y) & ~(np.isnan(x) & np.isnan(y))).sum())


def check(case: Case, options: Options, fmt: str, arrays: Arrays) -> None:
    """Runs the kernel once on these arrays and compares with the truth.

    Raises:
        WrongAnswerError: the result is outside the case's error class.
    """
    parts = _windows(next(iter(arrays.values())).size, case.granularity) if case.in_parts else [slice(None)]
    before = [_copy(case, arrays, part) for part in parts]
    outputs = case.run(arrays, options, fmt)
    for part, inputs in zip(parts, before, strict=True):
        here = {**options, "offset": options.get("offset", 0) + part.start} if case.indexed else options
        for name, want in case.truth(inputs, here, fmt).items():
            if missed := _missed(want, case.cut(name, np.asarray(outputs[name]), part)):
                raise WrongAnswerError(
                    f"{case.op} {fmt}: {missed} elements of '{name}' are outside the error class ({case.error})"
                )


def differs(case: Case, options: Options, fmt: str, contender: Contender, arrays: Arrays, strict: bool) -> bool:
    """Whether a contender's first step from these arrays is something else than the kernel's."""
    truth = case.truth({k: None if x is None else x.copy() for k, x in arrays.items()}, options, fmt)
    value = contender.step()
    if contender.other:
        return False
    outputs = {k: x for k, x in arrays.items() if k in truth} if contender.arrays is None else contender.arrays
    outputs = outputs or {k: np.asarray(value) for k in truth}
    for name, got in outputs.items():
        want = truth[name]
        if strict:
            if _missed(want, got):
                return True
            continue
        middle = (want.low + want.high) / 2 if isinstance(want, Interval) else numbers(want)
        x = numbers(got)
        loose = 2e-2 if fmt in ("bf16", "f16") else 1e-4
        if not np.allclose(x, np.asarray(middle, np.float64), rtol=loose, atol=loose * 0.1):
            return True
    return False


# ---- turns ----------------------------------------------------------------------------------------------------------


def set_threads(threads: int) -> None:
    """Numba first: starting its OpenMP pool resets torch's thread count."""
    numba, torch = optional("numba"), optional("torch")
    if numba is not None:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if torch is not None:
        torch.set_num_threads(threads)


def _time(contender: Contender, times: int) -> float:
    """Seconds per step. What a step needs beforehand is done between the timed parts."""
    clock, step = time.perf_counter, contender.step
    if contender.prepare is None:
        start = clock()
        for _ in range(times):
            step()
        return (clock() - start) / times
    total = 0.0
    for _ in range(times):
        contender.prepare()
        start = clock()
        step()
        total += clock() - start
    return total / times


@contextmanager
def _quiet() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def take_turns(contenders: Sequence[Contender], effort: Effort, threads: int) -> list[list[float]]:
    """Seconds per step of each contender, one sample a round; who begins changes from round to round."""
    samples: list[list[float]] = [[] for _ in contenders]
    times = []
    level = get_simd()
    with limit_threads(threads), _quiet():
        for c in contenders:
            set_threads(threads)
            if c.level:
                set_simd(c.level)
            _time(c, 1)
            once = min(_time(c, 1) for _ in range(2))
            times.append(max(1, min(round(effort.sample / max(once, 1e-7)), 20_000)))
            if level != "none":
                set_simd(level)
        for r in range(effort.rounds):
            for k in range(len(contenders)):
                at = (k + r) % len(contenders)
                c = contenders[at]
                time.sleep(effort.pause)
                set_threads(threads)
                if c.level:
                    set_simd(c.level)
                if times[at] > 1:
                    _time(c, 1)  # wakes the team and fetches what the last contender threw out of the caches
                samples[at].append(_time(c, times[at]))
                if level != "none":
                    set_simd(level)
    return samples


# ---- rows -----------------------------------------------------------------------------------------------------------


def available_memory() -> int:
    """Bytes that can be taken without swapping; a large number where the system does not tell."""
    try:
        with open("/proc/meminfo") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 2**62


def _limit(case: Case, options: Options, arrays: Arrays, threads: int) -> list[Contender]:
    numba = optional("numba")
    if numba is None or threads > numba.config.NUMBA_NUM_THREADS:
        return []
    streams = case.streams(options)
    return [limits.traffic([arrays[name] for name in streams], tuple(streams.values()), threads)]


def _admit(
    case: Case, factory: Factory, name: str, options: Options, fmt: str, trial: Arrays, flat: Arrays, notes: list[str]
) -> bool:
    """Whether a contender is installed and its first step on the trial arrays agrees with the truth.

    A peer that fails is left out with a note: it is not curvk that is wrong. One of ours raises.
    """
    ours = name.startswith("curvk")
    try:
        contender = factory(trial, options, fmt)
        if contender is None:
            return False
        if contender.arrays and trial is not flat:
            contender = Contender(name, contender.step, arrays={k: flat[k] for k in contender.arrays})
        wrong = differs(case, options, fmt, contender, flat, strict=ours)
    except Exception as error:  # whatever foreign code raises here
        if ours:
            raise
        notes.append(f"{name}: left out, it raises {type(error).__name__}: {error}")
        return False
    if wrong and ours:
        raise WrongAnswerError(f"{name}, {case.op} {fmt}: the first step is outside the error class ({case.error})")
    if wrong:
        notes.append(f"{name}: left out, its answer differs")
    return not wrong


def _peers(case: Case, options: Options, fmt: str, arrays: Arrays, result: Result) -> list[Contender]:
    found = []
    for name, factory in case.peers.items():
        trial = case.make(4099, fmt, np.random.default_rng(0), options)
        if _admit(case, factory, name, options, fmt, trial, trial, result.notes):
            timed = factory(arrays, options, fmt)
            assert timed is not None
            found.append(timed)
    return found


def _levels(step: Callable[[], object]) -> list[Contender]:
    if get_backend() != "cpp":
        return []
    return [Contender(f"curvk {level}", step, level=level) for level in simd_levels() if level != get_simd()]


def _single(case: Case, row: Row, fmt: str, n: int, threads: Sequence[int], effort: Effort) -> Iterator[Result]:
    options = case.variants[row.variant]
    cost = case.bytes(fmt, options), case.flops(options)
    arrays = case.make(n, fmt, np.random.default_rng(0), options)
    check(case, options, fmt, arrays)

    def step() -> object:
        return case.run(arrays, options, fmt)

    for t in threads:
        result = Result(case.op, row.variant, fmt, f"{n:,}", n, t, get_simd(), *cost)
        contenders = [Contender("curvk", step), *_limit(case, options, arrays, t)]
        contenders += _peers(case, options, fmt, arrays, result)
        contenders += _levels(step)
        for c, seconds in zip(contenders, take_turns(contenders, effort, t), strict=True):
            result.samples[c.name] = seconds
        yield result


def _lists(case: Case, fmt: str, options: Options, shapes: list[tuple[int, ...]]) -> Arrays:
    """A model's arrays, each an allocation of its own, all with the values of one that is large enough."""
    longest = max(int(np.prod(s)) for s in shapes)
    pattern = case.make(longest, fmt, np.random.default_rng(0), options)
    lists: Arrays = {k: None if x is None else [] for k, x in pattern.items()}
    for shape in shapes:
        n = int(np.prod(shape))
        for k, x in pattern.items():
            if x is not None:
                own = empty(n, x.dtype)
                own[:] = x[:n]
                lists[k].append(own.reshape(shape))
    return lists


def _check_model(case: Case, options: Options, fmt: str) -> None:
    """Checks the kernel on an uneven list of arrays."""
    arrays = _lists(case, fmt, options, [(5, 7), (40_000,), (33,)])
    before = {k: None if x is None else [y.ravel().copy() for y in x] for k, x in arrays.items()}
    if case.plan is None:
        joined = {k: np.concatenate(x) for k, x in before.items() if x is not None}
        outputs = case.run(arrays, options, fmt)
        missed = [k for k, want in case.truth(joined, options, fmt).items() if _missed(want, outputs[k])]
    else:
        case.plan(arrays, options, fmt)()
        missed = []
        for i in range(3):
            truth = case.truth({k: None if x is None else x[i] for k, x in before.items()}, options, fmt)
            missed += [f"{k}[{i}]" for k, want in truth.items() if k in arrays and _missed(want, arrays[k][i].ravel())]
    if missed:
        raise WrongAnswerError(f"{case.op} {fmt}, on a list: '{missed[0]}' is outside the error class ({case.error})")


def _model_contenders(case: Case, options: Options, fmt: str, arrays: Arrays, notes: list[str]) -> list[Contender]:
    """Optimizers over lists; their states start from zero, so that a first step is what is checked."""
    found = []
    for name, factory in case.models.items():
        trial = case.make(4099, fmt, np.random.default_rng(0), options)
        for k in case.written:
            if k != "p" and trial.get(k) is not None:
                trial[k][:] = 0
        lists = {k: None if x is None else [x] for k, x in trial.items()}
        if _admit(case, factory, name, {**options, **case.first}, fmt, lists, trial, notes):
            timed = factory(arrays, options, fmt)
            assert timed is not None
            found.append(timed)
    return found


def _model(case: Case, row: Row, fmt: str, name: str, threads: Sequence[int], effort: Effort) -> Iterator[Result]:
    options = case.variants[row.variant]
    shapes = MODELS[name]()
    n = sum(int(np.prod(s)) for s in shapes)
    _check_model(case, options, fmt)
    arrays = _lists(case, fmt, options, shapes)
    step = case.plan(arrays, options, fmt) if case.plan else lambda: case.run(arrays, options, fmt)
    flat = {k: None if x is None else np.zeros(n, x[0].dtype) for k, x in arrays.items()}
    blank = Result(case.op, row.variant, fmt, name, n, 0, get_simd(), case.bytes(fmt, options), case.flops(options))
    others = _model_contenders(case, options, fmt, arrays, blank.notes)
    for t in threads:
        result = Result(**{**blank.as_json(), "threads": t, "samples": {}})
        contenders = [Contender("curvk plan" if case.plan else "curvk", step), *_limit(case, options, flat, t), *others]
        for c, seconds in zip(contenders, take_turns(contenders, effort, t), strict=True):
            result.samples[c.name] = seconds
        yield result


def plan(cases: Sequence[Case], effort: Effort) -> list[tuple[Case, Row, str, int | str]]:
    """What a run measures: case, row, format, and a size or a model's name."""
    todo: list[tuple[Case, Row, str, int | str]] = []
    for case in cases:
        for row in case.rows:
            for fmt in row.formats[:1] if effort.one_format and not row.headline else row.formats:
                largest = max(effort.largest, 10**7) if row.headline else effort.largest
                todo += [(case, row, fmt, n) for n in row.sizes if n <= largest]
                todo += [(case, row, fmt, m) for m in row.models if m in effort.models]
    return todo


def measure(
    case: Case, row: Row, fmt: str, what: int | str, threads: Sequence[int], effort: Effort
) -> Iterator[Result | str]:
    """The results of one row, one for each thread count; or a line that says why there is none."""
    n = what if isinstance(what, int) else sum(int(np.prod(s)) for s in MODELS[what]())
    dtypes = case.dtypes(fmt)
    own = n * sum(dtypes[name].itemsize / case.per[name] for name in case.streams(case.variants[row.variant]))
    # Models: the arrays, the limit's, states for each torch optimizer. One array: NumPy's and foreach's temporaries.
    needed = own * (6 if isinstance(what, str) else 3)
    if needed > available_memory():
        yield f"{case.op} {fmt} {what}: left out, it takes {needed / 2**30:.1f} GiB of memory"
    elif isinstance(what, int):
        yield from _single(case, row, fmt, what, threads, effort)
    else:
        yield from _model(case, row, fmt, what, threads, effort)


def measure_machine(threads: Sequence[int], effort: Effort) -> dict[str, Any]:
    """Bandwidth probes and the matrix product at each thread count: GB/s and GFLOP/s."""
    found: dict[str, Any] = {"bandwidth_GB_s": {}, "sgemm_GFLOP_s": {}, "probe_MiB_per_array": effort.probe_mib}
    numba = optional("numba")
    for t in threads:
        if numba is not None and t <= numba.config.NUMBA_NUM_THREADS:
            probes = limits.probes(t, effort.probe_mib)
            seconds = take_turns([c for _, _, c in probes], effort, t)
            rates = {name: bytes_ / median(s) / 1e9 for (name, bytes_, _), s in zip(probes, seconds, strict=True)}
            found["bandwidth_GB_s"][str(t)] = rates
        found["sgemm_GFLOP_s"][str(t)] = limits.sgemm_gflops(t)
    return found


# ---- what is not per element ----------------------------------------------------------------------------------------


def call_overhead(effort: Effort) -> dict[str, Any] | None:
    """Microseconds that `adam_step` adds to its kernel at 1,000 elements.

    The kernel's own time is that of the C function through cffi with ready pointers, less the same call on no element.
    """
    if core is None or get_backend() != "cpp":
        return None
    from ..capi import ffi, lib
    from ..kernels.optim import AdamPlan, adam_step

    p, g, m, v = (np.full(1000, x, np.float32) for x in (1.0, 0.5, 0.1, 0.1))
    pointers = [ffi.from_buffer("float[]", x) for x in (p, g, m, v)]
    scalars = 7, 1e-3, 0.9, 0.999, 1e-8, 0.01, 1, 0, 1.0
    options: dict[str, Any] = {"step": 7, "lr": 1e-3, "weight_decay": 0.01, "decoupled": True}
    step_plan = AdamPlan([p], [g], [m], [v])
    function = lib.curvk_adam_step_f32
    contenders = [
        Contender("adam_step", lambda: adam_step(p, g, m, v, **options)),
        Contender("AdamPlan.step", lambda: step_plan.step(**options)),
        Contender("cffi", lambda: function(*pointers, ffi.NULL, ffi.NULL, 1000, *scalars)),
        Contender("cffi, no element", lambda: function(*pointers, ffi.NULL, ffi.NULL, 0, *scalars)),
    ]
    samples = take_turns(contenders, effort, 1)
    call, planned, whole, empty_call = (np.array(s) * 1e6 for s in samples)
    kernel = whole - empty_call
    return {
        "kernel_us": float(np.median(kernel)),
        "adam_step_us": float(np.median(call)),
        "overhead_us": float(np.median(call - kernel)),
        "plan_overhead_us": float(np.median(planned - kernel)),
        "cffi_overhead_us": float(np.median(empty_call)),
        "samples_us": {c.name: (np.array(s) * 1e6).tolist() for c, s in zip(contenders, samples, strict=True)},
    }


def adamz_cost(effort: Effort) -> dict[str, Any] | None:
    """Microseconds per step of curvk.optim's AdamZ and Adam on one array of 1,000 elements."""
    optim = optional("curvk.optim")
    if optim is None or not hasattr(optim, "AdamZ"):
        return None
    rng = np.random.default_rng(0)
    losses = cycle(rng.random(997).tolist())
    grads = [encode(rng.standard_normal(1000), "f32")]
    adam, adamz = (cls([np.ones(1000, np.float32)], lr=1e-3) for cls in (optim.Adam, optim.AdamZ))
    contenders = [
        Contender("Adam", lambda: adam.step(grads)),
        Contender("AdamZ", lambda: adamz.step(grads, loss=next(losses))),
    ]
    ours, theirs = (np.array(s) * 1e6 for s in take_turns(contenders, effort, 1))
    return {
        "adam_us": float(np.median(ours)),
        "adamz_us": float(np.median(theirs)),
        "extra_us": float(np.median(theirs - ours)),
        "samples_us": {"Adam": ours.tolist(), "AdamZ": theirs.tolist()},
    }
