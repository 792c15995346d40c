"""What a user's type checker says: scripts in tests/typing, under mypy --strict.

Their mistakes are marked `type: ignore[code]`; with unused ignores reported, a mistake that the annotations let pass
fails as well as right code that they refuse.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import curvk
import pytest

SCRIPTS = Path(__file__).parent / "typing"
NEEDS = {"torch_user.py": "torch", "estimator_user.py": "sklearn"}
EXTRA = [
    "--strict",
    "--warn-unused-ignores",
    "--no-incremental",
    "--cache-dir=/dev/null" if os.name == "posix" else "--cache-dir=nul",
    "--config-file=",
    "--follow-imports=silent",
]


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(curvk.__file__).parent / "py.typed").is_file()


def test_user_scripts_under_mypy_strict() -> None:
    pytest.importorskip("mypy")
    scripts = sorted(SCRIPTS.glob("*.py"))
    assert len(scripts) == 4
    assert all("# type: ignore[" in script.read_text(encoding="utf-8") for script in scripts)
    scripts = [s for s in scripts if s.name not in NEEDS or _installed(NEEDS[s.name])]
    env, place = {**os.environ}, Path(curvk.__file__).parents[1]
    if place.name not in ("site-packages", "dist-packages"):  # an editable install is no place that mypy looks at
        env["MYPYPATH"] = str(place)
    command = [sys.executable, "-m", "mypy", *EXTRA, *map(str, scripts)]
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stdout + run.stderr


def _installed(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True
