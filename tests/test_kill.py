"""Every file that is written survives a kill at any moment: it is the old one or the new one, whole, and loads."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from killed_writers import EXAMPLES, WRITERS

TESTS = Path(__file__).parent
ROOT = TESTS.parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")


def die(folder: Path, what: str, name: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "CURVK_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, str(TESTS / "killed_writers.py"), what, name, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]


@pytest.mark.parametrize("name", WRITERS)
def test_file_survives_a_kill(name: str, tmp_path: Path) -> None:
    die(tmp_path, "writer", name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_file_of_an_example_survives_a_kill(name: str, tmp_path: Path) -> None:
    die(tmp_path, "example", name)


def test_one_way_to_write_a_file() -> None:
    """The package renames, and so writes, in one place; whatever else opens a file to write goes through it."""
    package = ROOT / "python" / "curvk"
    if not package.is_dir():
        pytest.skip("the tests run without the sources")
    found = []
    for path in sorted(package.rglob("*.py")):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        found += [path.name for call in calls if ast.unparse(call) in ("os.replace", "os.rename")]
    assert found == ["_store.py"]
