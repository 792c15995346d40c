"""`curvk bench`: every kernel beside its peers and this machine's limits, answers checked first.

`registry` describes the kernels, `runner` times them, `report` and `figures` say what came out.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def _thread_counts(arguments: argparse.Namespace) -> list[int]:
    """1 and what this machine grants, unless told."""
    from .._threads import get_num_threads

    return list(dict.fromkeys(arguments.threads or [1, get_num_threads()]))


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65536:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a number of threads from 1 to 65536")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curvk bench", description="Times every kernel beside its peers and this machine's limits."
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: about a minute")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write bench.json and the figures there")
    parser.add_argument("--json", action="store_true", help="print JSON with every sample in place of the table")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these kernels, e.g. adam_step")
    parser.add_argument("--threads", nargs="+", type=_count, metavar="N", help="thread counts; default: 1 and all")
    parser.add_argument("--check-only", action="store_true", help="check the answers and time nothing")
    return parser


def _machine() -> dict[str, Any]:
    """Where the figures come from: what `curvk info` says, the compiler that built the library, date and load."""
    from .._backend import core
    from .._info import collect
    from . import report

    built_with = None
    if core is not None:
        from ..capi import library_path

        found = re.search(rb"GCC: \([^)]*\) [\d.]+|[A-Za-z ]*clang version [\d.]+", library_path().read_bytes())
        built_with = found.group().decode() if found else None
    return {**collect(), **report.stamp(), "library_built_with": built_with}


def _progress(items: list[Any], label: Callable[[Any], str]) -> Iterable[Any]:
    """The items, with a progress bar on a terminal if it takes over two seconds."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar = tqdm(items, unit="row", delay=2, disable=None if sys.stderr.isatty() else True, leave=False)

    def walk() -> Iterable[Any]:
        for item in bar:
            bar.set_postfix_str(label(item), refresh=False)
            yield item

    return walk()


def _check_all(selected: list[Any]) -> int:
    """Every format and variant of the selected kernels against its truth; the exit code."""
    import numpy as np

    from . import runner

    wrong = checked = 0
    for case in selected:
        for fmt in case.formats:
            for variant, options in case.tested.items():
                for n in (1, 17, 1023, 100_003) if case.special else (1, 17, 100):
                    checked += 1
                    try:
                        runner.check(case, options, fmt, case.make(n, fmt, np.random.default_rng(n), options))
                    except runner.WrongAnswerError as error:
                        wrong += 1
                        print(f"WRONG: {error}; variant {variant}, {n} elements", file=sys.stderr)
    print(f"{checked - wrong} of {checked} answers are right: {', '.join(case.op for case in selected)}")
    return 1 if wrong else 0


def _draw(out: Path, machine: dict[str, Any], results: list[Any]) -> list[str]:
    """Writes the figures; lines that say what was written or why not."""
    from . import report

    try:
        from . import figures
    except ImportError as error:
        return [f'no figures: {error}; pip install "curvk[bench]" brings what they need']
    lines = []
    for name, draw in (
        ("roofline.png", figures.roofline),
        ("peers.png", figures.peers),
        ("models.png", figures.models),
    ):
        figure = draw(machine, results)
        if figure is None:
            lines.append(f"no {name}: nothing measured that it shows")
            continue
        report.write(out / name, lambda path, figure=figure: figure.savefig(path, format="png", dpi=160))  # type: ignore[misc]
        lines.append(f"wrote {out / name}")
    return lines


def main(argv: list[str]) -> int:
    """Runs `curvk bench`; the exit code is 1 if an answer is wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    from . import limits, registry, report, runner

    cases = registry.cases()
    if unknown := set(arguments.kernels or ()) - set(cases):
        parser.error(f"--kernels: no kernel {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    selected = [case for case in cases.values() if not arguments.kernels or case.op in arguments.kernels]
    if arguments.check_only:
        return _check_all(selected)

    effort = runner.QUICK if arguments.quick else runner.FULL
    threads = _thread_counts(arguments)
    machine = _machine()
    say: Callable[[str], object] = (lambda text: None) if arguments.json else (lambda text: print(text, flush=True))
    start = time.perf_counter()
    hardware = machine["machine"]
    kernels, level = machine["kernels"], machine["simd"]["level"]
    say(
        f"{hardware['model']}, {hardware['cpus']} CPUs; curvk {machine['version']}, {kernels['backend']}, level {level}"
    )
    if warning := report.busy(machine):
        say(warning)
    if registry.optional("numba") is None:
        say("numba is not installed: no limit loop and no bandwidth probes")
    machine["limits"] = runner.measure_machine(threads, effort)
    for line in report.machine_lines(machine["limits"]):
        say(line)
    results: list[runner.Result] = []
    remarks: list[str] = []
    wrong: list[str] = []
    todo = runner.plan(selected, effort)
    for case, row, fmt, what in _progress(todo, lambda item: f"{item[0].op} {item[2]} {item[3]}"):
        try:
            for found in runner.measure(case, row, fmt, what, threads, effort):
                remarks.append(found) if isinstance(found, str) else results.append(found)
        except runner.WrongAnswerError as error:
            wrong.append(str(error))
    extras: dict[str, Any] = {}
    if not arguments.kernels or "adam_step" in arguments.kernels:
        extras = {"call_overhead": runner.call_overhead(effort), "adamz": runner.adamz_cost(effort)}
        extras["import"] = limits.import_times(effort.rounds)
    machine["load_average_after"] = report.stamp()["load_average"]
    settings = {"quick": arguments.quick, "rounds": effort.rounds, "pause_s": runner.PAUSE, "threads": threads}
    text = report.as_json(machine, results, {**extras, "remarks": remarks, "wrong": wrong}, settings)
    say("")
    say(report.table(results))
    for line in [report.legend(results), *report.extra_lines(extras), *remarks]:
        say(line)
    if arguments.json:
        print(text)
    if arguments.out:
        report.write(arguments.out / "bench.json", lambda path: path.write_text(text, encoding="utf-8"))
        for line in [f"wrote {arguments.out / 'bench.json'}", *_draw(arguments.out, machine, results)]:
            say(line)
    say(f"{time.perf_counter() - start:.0f} s")
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0
