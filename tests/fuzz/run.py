"""Coverage-guided fuzzing: python tests/fuzz/run.py TARGET [CORPUS] [libFuzzer's options]; see docs/hardening.md."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import atheris

TARGETS = ("binder", "files")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {{{'|'.join(TARGETS)}}} [corpus folder or input] [libFuzzer's options]")
    name = sys.argv.pop(1)
    sys.path.insert(0, str(Path(__file__).parent))
    if name == "binder":
        import torch  # noqa: F401  # before the instrumentation, which is for curvk alone
    import sklearn  # noqa: F401

    with atheris.instrument_imports(include=["curvk"]):
        target = import_module(name)
    options = [a for a in sys.argv[1:] if a.startswith("-")]
    paths = [a for a in sys.argv[1:] if not a.startswith("-")]
    if not paths or os.path.isdir(paths[0]):  # else: inputs to repeat
        seeds = Path(tempfile.mkdtemp(prefix="curvk-fuzz-"))
        for i, data in enumerate(target.SEEDS):
            (seeds / f"{i:04}").write_bytes(data)
        paths = [paths[0] if paths else tempfile.mkdtemp(prefix="curvk-corpus-"), str(seeds)]
    own = ["-timeout=60", "-rss_limit_mb=4096", "-len_control=0", "-max_len=400", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *own, *options, *paths], target.one, enable_python_coverage=True)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
