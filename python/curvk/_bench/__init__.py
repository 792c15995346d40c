"""`curvk bench`: every kernel beside its peers and this machine's limits, answers checked first.

`registry` describes the kernels, `runner` times them, `report` and `figures` say what came out, `history` keeps it and
`compare` holds two runs of one machine beside each other; `session` is a run from start to end.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65536:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a number of threads from 1 to 65536")
    return int(text)


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a percentage above 0, e.g. 10")
    return value / 100


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curvk bench",
        description="Times every kernel beside its peers and this machine's limits.",
        epilog="Exit codes: 0 done, 1 an answer was wrong, 2 wrong usage, 3 --compare found a regression.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: about a minute")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write bench.json and the figures there")
    parser.add_argument("--json", action="store_true", help="print JSON with every sample in place of the table")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these kernels, e.g. adam_step")
    parser.add_argument("--threads", nargs="+", type=_count, metavar="N", help="thread counts; default: 1 and all")
    parser.add_argument("--check-only", action="store_true", help="check the answers and time nothing")
    parser.add_argument(
        "--compare",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="keep the result, and compare it with this machine's last one, or with that in FILE; with two files, old "
        "and new, compare them and measure nothing",
    )
    parser.add_argument(
        "--threshold", type=_percent, metavar="PERCENT", help="with --compare: what is a regression; default: 10"
    )
    parser.add_argument(
        "--history",
        type=Path,
        metavar="DIR",
        help="with --compare: where results are kept; default: curvk/bench in $XDG_STATE_HOME or ~/.local/state",
    )
    return parser


def _arguments(argv: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The arguments, after what does not go together was refused."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    files = arguments.compare or []
    if arguments.compare is None and (arguments.threshold or arguments.history):
        parser.error(f"{'--threshold' if arguments.threshold else '--history'}: needs --compare")
    if arguments.compare is not None and arguments.check_only:
        parser.error("--check-only: measures nothing that --compare could compare")
    if len(files) > 2:
        parser.error(f"--compare: got {len(files)} files, takes at most two, an old result and a new one")
    measuring = (arguments.quick, arguments.out, arguments.kernels, arguments.threads, arguments.history)
    if len(files) == 2 and any(measuring):
        parser.error("--compare OLD NEW: measures nothing, so that no option but --threshold and --json has a meaning")
    arguments.threshold = arguments.threshold or 0.1
    return parser, arguments


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
    """Runs `curvk bench`; the exit code is 1 if an answer is wrong, 3 if `--compare` found a regression."""
    parser, arguments = _arguments(argv)
    from . import registry, session

    if arguments.compare is not None and len(arguments.compare) == 2:
        old, new = arguments.compare
        return session.compare_files(old, new, arguments)
    cases = registry.cases()
    if unknown := set(arguments.kernels or ()) - set(cases):
        parser.error(f"--kernels: no kernel {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    selected = [case for case in cases.values() if not arguments.kernels or case.op in arguments.kernels]
    return _check_all(selected) if arguments.check_only else session.run(selected, arguments)
