"""Two runs of one machine: which kernels are slower or faster by more than a threshold, and whether that lasts.

Times of different days cannot be compared on a machine that has fast hours and slow ones. So each is held against the
limit loop of its own rounds first, and it is this ratio that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import Any

from . import history
from .history import Key, Reading

REGRESSION, IMPROVEMENT, UNCLEAR, SAME = "regression", "improvement", "unclear", "same"
REPEATS = 2
"""How often a row that seems to have changed is measured again; it has if every one of them says so."""


@dataclass(frozen=True)
class Change:
    """What became of one key.

    Attributes:
        kind: `regression` and `improvement` are beyond the threshold, with quartiles that do not meet; `unclear` is
            what is slower beside the yardstick but not in seconds, or the other way round.
        times: its time in units of the yardstick, now over then: the medians' ratio between those of the quartiles
            of now and the median of then.
        seconds: the ratio of the medians in seconds.
        yardstick: what both were divided by: `limit`, `sgemm`, or nothing, `seconds`.
        confirmed: in how many of the repeats it was seen again; None where there were none.
    """

    kind: str
    times: tuple[float, float, float]
    seconds: float
    yardstick: str
    confirmed: int | None = None
    repeats: int = 0


def _quartiles(x: Sequence[float]) -> tuple[float, float, float]:
    if len(x) == 1:
        return x[0], x[0], x[0]
    low, middle, high = quantiles(x, n=4, method="inclusive")
    return low, middle, high


def _relative(reading: Reading, yardstick: str) -> list[float]:
    if yardstick == "limit" and reading.limit:
        return [a / b for a, b in zip(reading.seconds, reading.limit, strict=True)]
    return [s * (reading.sgemm or 1.0) for s in reading.seconds] if yardstick == "sgemm" else reading.seconds


def judge(old: Reading, new: Reading, threshold: float) -> Change:
    """Compares two readings of one key; threshold is a share, 0.1 for 10 %."""
    yardstick = "limit" if old.limit and new.limit else "sgemm" if old.sgemm and new.sgemm else "seconds"
    then, now = (_quartiles(_relative(reading, yardstick)) for reading in (old, new))
    times = now[0] / then[1], now[1] / then[1], now[2] / then[1]
    seconds = median(new.seconds) / median(old.seconds)
    kind = SAME
    if times[1] > 1 + threshold and now[0] > then[2]:
        kind = REGRESSION if seconds > 1 else UNCLEAR
    elif times[1] < 1 / (1 + threshold) and now[2] < then[0]:
        kind = IMPROVEMENT if seconds < 1 else UNCLEAR
    return Change(kind, times, seconds, yardstick)


def judge_all(old: Mapping[Key, Reading], new: Mapping[Key, Reading], threshold: float) -> dict[Key, Change]:
    """The keys that both have, in the order of `new`."""
    return {key: judge(old[key], reading, threshold) for key, reading in new.items() if key in old}


def confirm(
    old: Mapping[Key, Reading],
    new: Mapping[Key, Reading],
    threshold: float,
    again: Callable[[Collection[Key]], Mapping[Key, Reading]],
) -> dict[Key, Change]:
    """Compares, and measures again what seems to have changed for better or worse.

    Args:
        again: measures these keys once more, all in turn, so that a row's repeats are apart in time.
    """
    changes = judge_all(old, new, threshold)
    suspects = [key for key, change in changes.items() if change.kind in (REGRESSION, IMPROVEMENT)]
    seen: dict[Key, list[Change]] = {key: [] for key in suspects}
    for _ in range(REPEATS if suspects else 0):
        for key, reading in again(suspects).items():
            if key in seen:
                seen[key].append(judge(old[key], reading, threshold))
    for key, repeats in seen.items():
        first = changes[key]
        confirmed = sum(change.kind == first.kind for change in repeats)
        # The most careful of all readings is the one to report: the one nearest to no change.
        nearest = min([first, *repeats], key=lambda change: abs(change.times[1] - 1))
        kind = first.kind if confirmed == REPEATS else SAME
        changes[key] = replace(nearest, kind=kind, confirmed=confirmed, repeats=len(repeats))
    return changes


# ---- words ----------------------------------------------------------------------------------------------------------


def _line(key: Key, change: Change) -> str:
    low, middle, high = change.times
    beside = {"limit": " beside the limit loop", "sgemm": " beside sgemm", "seconds": ""}[change.yardstick]
    text = f"{key}: time x {middle:.2f} ({low:.2f} to {high:.2f}){beside}, x {change.seconds:.2f} in seconds"
    if change.confirmed is None:
        return text
    return f"{text}; seen again in {change.confirmed} of {change.repeats} repeats"


def counts(changes: Mapping[Key, Change]) -> dict[str, int]:
    """How many keys are of each kind."""
    return {k: sum(c.kind == k for c in changes.values()) for k in (REGRESSION, IMPROVEMENT, UNCLEAR, SAME)}


def lines(
    changes: Mapping[Key, Change], then: Sequence[dict[str, Any]], now: dict[str, Any], fresh: int, threshold: float
) -> list[str]:
    """The comparison in words: regressions, improvements, what is unclear or was not confirmed, and the count."""
    dates = sorted({machine["date"] for machine in then})
    since = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    text = [f"Compared with {since}; x 1.00 is no change, the threshold {threshold:.0%}, quartiles in parentheses:"]
    for kind, word in ((REGRESSION, "REGRESSION"), (IMPROVEMENT, "improvement"), (UNCLEAR, "unclear")):
        found = [(key, change) for key, change in changes.items() if change.kind == kind]
        found.sort(key=lambda item: -item[1].times[1] if kind != IMPROVEMENT else item[1].times[1])
        text += [f"  {word}: {_line(key, change)}" for key, change in found]
    text += [
        f"  not confirmed: {_line(key, change)}"
        for key, change in changes.items()
        if change.kind == SAME and change.confirmed is not None
    ]
    n = counts(changes)
    new = f"; {fresh} with no earlier result" if fresh else ""
    text.append(
        f"{len(changes)} compared: {n[REGRESSION]} regression{'' if n[REGRESSION] == 1 else 's'}, "
        f"{n[IMPROVEMENT]} improvement{'' if n[IMPROVEMENT] == 1 else 's'}, {n[UNCLEAR]} unclear, "
        f"{n[SAME]} within {threshold:.0%} or the spread{new}."
    )
    remarks = list(dict.fromkeys(remark for machine in then for remark in history.changed(machine, now)))
    if remarks:
        text.append(f"Changed since: {'; '.join(remarks)}.")
    return text


def as_json(changes: Mapping[Key, Change], dates: Mapping[Key, str], threshold: float) -> dict[str, Any]:
    """The comparison for a document."""
    rows = []
    for key, change in changes.items():
        low, middle, high = change.times
        rows.append(
            {
                **key._asdict(),
                "kind": change.kind,
                "time_now_over_then": {"q1": low, "median": middle, "q3": high},
                "seconds_now_over_then": change.seconds,
                "yardstick": change.yardstick,
                "confirmed": change.confirmed,
                "repeats": change.repeats,
                "compared_with": dates[key],
            }
        )
    return {"threshold": threshold, "counts": counts(changes), "rows": rows}
