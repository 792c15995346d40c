"""The command line: `curvk info | demo | bench`, also as `python -m curvk`.

A sub-command is a module with `main(argv: list[str]) -> int`, imported when it is asked for. Exit codes: 0 done, 1 an
answer was wrong, 2 wrong usage or a missing package, 3 `bench --compare` found a regression, 130 interrupted, 141 the
reader of the output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ._backend import version

COMMANDS = {
    "info": ("curvk._info", "what runs here and why: kernels, SIMD level, threads, libraries, compilers"),
    "demo": ("curvk._demo", "train models on handwritten digits, beside NumPy, and draw the result"),
    "bench": ("curvk._bench", "time every kernel beside its peers and this machine's limits"),
}
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + the signal's number, as a shell reports them


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="curvk",
        usage="curvk [--help] [--version] COMMAND ...",
        description="The hot loops of gradient methods as compiled kernels.",
        epilog="\n".join(["commands:", *lines, "", "`curvk COMMAND --help` lists a command's options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"curvk {version}")
    parser.add_argument("command", metavar="COMMAND", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def _run(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        code: int = import_module(COMMANDS[argv[0]][0]).main(argv[1:])
        return code
    parser = _parser()
    parser.parse_args(argv)
    parser.print_help()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command and returns its exit code; argv defaults to the process's arguments."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, so that a broken pipe is met inside the try
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code
