"""Checks that kernel objects keep to their SIMD level's namespace.

    python check_objects.py BUILD_DIR [EXTRA_FLAG...]

Each kernel file is compiled once per level. A weak symbol that two levels share (an inline function of a header, a
template instance) lets the linker hand AVX-512 code to a machine without it, and a static initialiser runs at a level
before any level was chosen. So every object must define global symbols in its own namespace only, none of them weak,
and have no initialisers.

Reads BUILD_DIR/compile_commands.json (CMAKE_EXPORT_COMPILE_COMMANDS=ON). With extra flags, e.g. -O0, every kernel file
is compiled again with these last, since optimised code inlines away what would be a weak symbol. NM and OBJDUMP name
the tools.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

_LEVEL = re.compile(r"-DCURVK_LEVEL=(curvk_level_\d+)")


def lines_of(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def faults(path: Path, namespace: str) -> list[str]:
    """What is wrong with an object whose symbols belong in `namespace`."""
    found = []
    prefix = f"_ZN{len(namespace)}{namespace}"
    for line in lines_of(os.environ.get("NM", "nm"), "--format=posix", "--extern-only", "--defined-only", str(path)):
        symbol, kind, *_ = line.split()
        if kind in "vVwWu":
            found.append(f"weak symbol {symbol}")
        elif not symbol.startswith(prefix):
            found.append(f"global symbol {symbol} outside {namespace}")
    for line in lines_of(os.environ.get("OBJDUMP", "objdump"), "--section-headers", str(path)):
        if match := re.search(r"\s(\.(?:init_array|ctors|preinit_array)\S*)\s", line):
            found.append(f"static initialiser in {match.group(1)}")
    return found


def compile_again(entry: dict[str, str], flags: list[str], output: Path) -> None:
    command = shlex.split(entry["command"])
    command[command.index("-o") + 1] = str(output)
    subprocess.run([*command, *flags], check=True, cwd=entry["directory"])


def main(build: str, *flags: str) -> int:
    entries = [e for e in json.loads(Path(build, "compile_commands.json").read_text()) if _LEVEL.search(e["command"])]
    if not entries:
        print(f"no kernel object in {build}")
        return 1
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        for i, entry in enumerate(entries):
            namespace = _LEVEL.search(entry["command"]).group(1)
            path = Path(entry["directory"], entry["output"])
            if flags:
                path = Path(scratch, f"{i}.o")
                compile_again(entry, list(flags), path)
            for fault in faults(path, namespace):
                bad += 1
                print(f"{Path(entry['file']).name} at {namespace}: {fault}")
    print(f"{len(entries)} kernel objects{' with ' + ' '.join(flags) if flags else ''}: {bad or 'no'} faults")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
