"""The table of wheels in docs/install.md, from what cibuildwheel makes of pyproject.toml.

python .ci/platforms.py            # writes the table
python .ci/platforms.py --check    # fails if it is not the one that the configuration gives
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "install.md"
MARKED = re.compile(r"(<!-- wheels: written by \.ci/platforms\.py -->\n\n).*?(\n<!-- wheels end -->)", re.S)
SYSTEMS = {"manylinux": "Linux", "musllinux": "Linux with musl", "macosx": "macOS", "win": "Windows"}
MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}


def identifiers() -> list[str]:
    """What cibuildwheel would build, e.g. `cp314t-manylinux_aarch64`."""
    found: list[str] = []
    for system in ("linux", "macos", "windows"):
        command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", system, str(ROOT)]
        found += subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return found


def table(built: list[str]) -> str:
    """A row for each Python, a column for each platform."""
    cells = set()
    for identifier in built:
        python, system, machine = re.fullmatch(r"cp3(\d+t?)-([a-z]+)_?(\w+)", identifier).groups()
        cells.add((python, f"{SYSTEMS[system]} {MACHINES[machine]}"))
    pythons = sorted({python for python, _ in cells}, key=lambda p: (int(p.rstrip("t")), p))
    order = [f"{system} {machine}" for system in SYSTEMS.values() for machine in ("x86-64", "arm64")]
    platforms = sorted({platform for _, platform in cells}, key=order.index)
    lines = ["| Python | " + " | ".join(platforms) + " |", "|---" * (len(platforms) + 1) + "|"]
    for python in pythons:
        name = f"3.{python.rstrip('t')}" + (", free-threaded" if python.endswith("t") else "")
        wheels = [f"`cp3{python}`" if (python, platform) in cells else "from source" for platform in platforms]
        lines.append(f"| {name} | " + " | ".join(wheels) + " |")
    return "\n".join(lines) + "\n"


def main(check: bool) -> int:
    built = identifiers()
    page = PAGE.read_text()
    written, places = MARKED.subn(lambda m: m[1] + table(built) + m[2], page)
    if not built or places != 1:
        raise SystemExit(f"{len(built)} wheels to build, {places} places for the table in {PAGE.name}")
    if check and written != page:
        print("docs/install.md has not the wheels of pyproject.toml: python .ci/platforms.py", file=sys.stderr)
        return 1
    PAGE.write_text(written)
    print(f"{len(built)} wheels, as docs/install.md says")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
