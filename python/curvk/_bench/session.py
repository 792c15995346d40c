"""One run of `curvk bench`: measures, prints, keeps, compares."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import compare, history, limits, report, runner
from .registry import Case, Row, optional

WRONG, USAGE, REGRESSED = 1, 2, 3
"""Exit codes: an answer was wrong; files that cannot be compared or kept; a regression."""

Item = tuple[Case, Row, str, int | str]
"""What the runner measures at once: a case, its row, a format, and a size or a model's name."""


def _machine() -> dict[str, Any]:
    """Where the figures come from: what `curvk info` says, the compiler that built the library, date and load."""
    from .._backend import core
    from .._info import collect

    built_with = None
    if core is not None:
        from ..capi import library_path

        found = re.search(rb"GCC: \([^)]*\) [\d.]+|[A-Za-z ]*clang version [\d.]+", library_path().read_bytes())
        built_with = found.group().decode() if found else None
    return {**collect(), **report.stamp(), "library_built_with": built_with}


def _threads(arguments: argparse.Namespace) -> list[int]:
    """1 and what this machine grants, unless told."""
    from .._threads import get_num_threads

    return list(dict.fromkeys(arguments.threads or [1, get_num_threads()]))


def _progress(items: Sequence[Item], what: str = "") -> Iterable[Item]:
    """The items, with a progress bar on a terminal if it takes over two seconds."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    hidden = None if sys.stderr.isatty() else True
    bar = tqdm(items, desc=what or None, unit="row", delay=2, disable=hidden, leave=False)

    def walk() -> Iterable[Item]:
        for item in bar:
            bar.set_postfix_str(f"{item[0].op} {item[2]} {item[3]}", refresh=False)
            yield item

    return walk()


def _draw(out: Path, machine: dict[str, Any], results: list[runner.Result]) -> list[str]:
    """Writes the figures; lines that say what was written or why not."""
    try:
        from . import figures
    except ImportError as error:
        return [f'no figures: {error}; pip install "curvk[bench]" brings what they need']
    lines = []
    for name, draw in figures.FIGURES.items():
        figure = draw(machine, results)
        if figure is None:
            lines.append(f"no {name}: nothing measured that it shows")
            continue
        report.write(out / name, lambda path, figure=figure: figure.savefig(path, format="png", dpi=160))  # type: ignore[misc]
        lines.append(f"wrote {out / name}")
    return lines


class _Run:
    """What one run has measured so far."""

    def __init__(self, effort: runner.Effort, threads: list[int]) -> None:
        self.effort = effort
        self.threads = threads
        self.results: list[runner.Result] = []
        self.remarks: list[str] = []
        self.wrong: list[str] = []
        self.items: dict[int, Item] = {}  # by the place of a result

    def measure(self, items: Sequence[Item]) -> None:
        for item in _progress(items):
            try:
                for found in runner.measure(*item, self.threads, self.effort):
                    if isinstance(found, str):
                        self.remarks.append(found)
                        continue
                    self.items[len(self.results)] = item
                    self.results.append(found)
            except runner.WrongAnswerError as error:
                self.wrong.append(str(error))

    def again(self, keys: Collection[history.Key], limits: dict[str, Any]) -> Mapping[history.Key, history.Reading]:
        """Measures rows once more, with all who took part; their samples join the earlier ones of the row."""
        rows = {key[:5] for key in keys}
        places = [k for k, r in enumerate(self.results) if (r.op, r.variant, r.format, r.what, r.threads) in rows]
        fresh: list[runner.Result] = []
        for place in places:
            result = self.results[place]
            try:
                repeats = list(runner.measure(*self.items[place], [result.threads], self.effort))
            except runner.WrongAnswerError as error:
                self.wrong.append(str(error))
                continue
            for found in repeats:
                if isinstance(found, runner.Result):
                    fresh.append(found)
                    if found.samples.keys() == result.samples.keys():
                        for name, seconds in found.samples.items():
                            result.samples[name] += seconds
        return history.readings({"machine": {"limits": limits}, "rows": [r.as_json() for r in fresh]})


def _before(arguments: argparse.Namespace, machine: dict[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """The history's folder and the file to compare with, both usable: else a long run would be in vain.

    Raises:
        history.HistoryError: they are not; the text says why.
    """
    try:
        folder: Path = arguments.history or history.default_folder()
    except RuntimeError as error:
        raise history.HistoryError(f"no folder to keep results in: {error}; use --history DIR") from error
    place = folder / history.name(machine)
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()  # only whether it may be written
    except OSError as error:
        raise history.HistoryError(f"{folder}: no folder to keep results in: {error.strerror}") from error
    if not arguments.compare:
        return folder, None
    old = history.read(arguments.compare[0])
    _same_kind(arguments.compare[0], old, machine, arguments.quick)
    return folder, old


def _same_kind(path: Path, old: dict[str, Any], machine: dict[str, Any], quick: bool) -> None:
    """Raises HistoryError where an old result is of another machine or measured with other settings."""
    then, now = history.fingerprint(old["machine"]), history.fingerprint(machine)
    if other := [f"{k} {then[k]} there, {now[k]} here" for k in now if then[k] != now[k]]:
        raise history.HistoryError(f"{path}: of another machine, whose times say nothing here: {'; '.join(other)}")
    if old["settings"]["quick"] != quick:
        words = ("a full run", "a quick one")
        raise history.HistoryError(f"{path}: {words[not quick]}, this is {words[quick]}; they measure differently")


def _compare(
    run: _Run, machine: dict[str, Any], folder: Path, old: dict[str, Any] | None, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """The comparison for the document and in words; rows that seem to have changed are measured again."""
    now = history.readings({"machine": machine, "rows": [r.as_json() for r in run.results]})
    if old is None:
        found, problems = history.last(folder, machine, arguments.quick, now.keys())
    else:
        found = {key: (reading, old["machine"]) for key, reading in history.readings(old).items() if key in now}
        problems = []
    for problem in problems:
        print(f"left out of the history: {problem}", file=sys.stderr)
    before = {key: reading for key, (reading, _) in found.items()}
    changes = compare.confirm(before, now, arguments.threshold, lambda keys: run.again(keys, machine["limits"]))
    said = compare.as_json(changes, {key: m["date"] for key, (_, m) in found.items()}, arguments.threshold)
    said["problems"] = problems
    if not changes:
        first = "nothing to compare with" if old is None else f"nothing in {arguments.compare[0]} to compare with"
        return said, [f"{first}: kept as the first result"]
    then = [m for _, m in found.values()]
    return said, compare.lines(changes, then, machine, len(now) - len(changes), arguments.threshold)


def run(selected: list[Case], arguments: argparse.Namespace) -> int:
    """Measures the selected cases and says what came out; the exit code."""
    effort = runner.QUICK if arguments.quick else runner.FULL
    threads = _threads(arguments)
    machine = _machine()
    folder, old = Path(), None
    if arguments.compare is not None:
        try:
            folder, old = _before(arguments, machine)
        except history.HistoryError as error:
            print(f"--compare: {error}", file=sys.stderr)
            return USAGE
    say: Callable[[str], object] = (lambda text: None) if arguments.json else (lambda text: print(text, flush=True))
    start = time.perf_counter()
    hardware = machine["machine"]
    kernels, level = machine["kernels"], machine["simd"]["level"]
    say(
        f"{hardware['model']}, {hardware['cpus']} CPUs; curvk {machine['version']}, {kernels['backend']}, level {level}"
    )
    if warning := report.busy(machine):
        say(warning)
    if optional("numba") is None:
        say("numba is not installed: no limit loop and no bandwidth probes")
    machine["limits"] = runner.measure_machine(threads, effort)
    for line in report.machine_lines(machine["limits"]):
        say(line)
    done = _Run(effort, threads)
    done.measure(runner.plan(selected, effort))
    extras: dict[str, Any] = {}
    if not arguments.kernels or "adam_step" in arguments.kernels:
        extras = {"call_overhead": runner.call_overhead(effort), "adamz": runner.adamz_cost(effort)}
        extras["import"] = limits.import_times(effort.rounds)
    comparison: dict[str, Any] | None = None
    compared: list[str] = []
    if arguments.compare is not None and not done.wrong:
        comparison, compared = _compare(done, machine, folder, old, arguments)
    machine["load_average_after"] = report.stamp()["load_average"]
    settings = {"quick": arguments.quick, "rounds": effort.rounds, "pause_s": runner.PAUSE, "threads": threads}
    extras = {**extras, "remarks": done.remarks, "wrong": done.wrong}
    document = report.document(machine, done.results, extras, settings)
    if comparison is not None:
        document["comparison"] = comparison
    say("")
    say(report.table(done.results))
    for line in [report.legend(done.results), *report.extra_lines(extras), *done.remarks]:
        say(line)
    if arguments.json:
        print(report.dumps(document))
    if arguments.out:
        path = arguments.out / "bench.json"
        report.write(path, lambda temporary: temporary.write_text(report.dumps(document), encoding="utf-8"))
        for line in [f"wrote {path}", *_draw(arguments.out, machine, done.results)]:
            say(line)
    for line in ["", *compared] if compared else []:
        say(line)
    code = WRONG if done.wrong else 0
    if done.wrong and arguments.compare is not None:
        print("--compare: not kept, since answers are wrong", file=sys.stderr)
    elif comparison is not None:
        code = REGRESSED if comparison["counts"][compare.REGRESSION] else 0
        try:
            say(f"kept {history.keep(folder, document)}")
        except OSError as error:
            print(f"--compare: the result could not be kept in {folder}: {error.strerror}", file=sys.stderr)
            code = code or USAGE
    say(f"{time.perf_counter() - start:.0f} s")
    for line in done.wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return code


def compare_files(old: Path, new: Path, arguments: argparse.Namespace) -> int:
    """Compares two results that were kept or written by `--out`; the exit code."""
    try:
        then, now = history.read(old), history.read(new)
        _same_kind(old, then, now["machine"], now["settings"]["quick"])
    except history.HistoryError as error:
        print(f"--compare: {error}", file=sys.stderr)
        return USAGE
    before, after = history.readings(then), history.readings(now)
    changes = compare.judge_all(before, after, arguments.threshold)
    if arguments.json:
        dates = dict.fromkeys(changes, then["machine"]["date"])
        print(report.dumps(compare.as_json(changes, dates, arguments.threshold)))
    else:
        fresh = len(after) - len(changes)
        for line in compare.lines(changes, [then["machine"]], now["machine"], fresh, arguments.threshold):
            print(line)
    return REGRESSED if compare.counts(changes)[compare.REGRESSION] else 0
