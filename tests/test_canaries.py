"""No kernel reads or writes beside its arrays, or writes what it only reads: every one runs between guard pages.

A stray access ends the process, so each sweep is a program of its own (guard_pages.py). Byte by byte it sees more than
AddressSanitizer does of memory that NumPy owns, and it sees Numba's twins too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import curvk
import pytest
from curvk import _backend

mmap = pytest.importorskip("mmap")
pytestmark = [
    pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="needs mprotect"),
    pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning"),
]
TESTS = Path(__file__).parent
COMPILED = pytest.mark.skipif(_backend.core is None, reason="this build has no compiled kernels")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CURVK_")} | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder, timeout=1800
    )


def passes(folder: Path, *arguments: str) -> None:
    done = python(folder, str(TESTS / "guard_pages.py"), *arguments)
    said = done.stdout.splitlines()[-5:]
    assert done.returncode == 0, f"exit status {done.returncode}, at the last of {said}:\n{done.stderr[-3000:]}"
    print(said[-1])


@COMPILED
@pytest.mark.parametrize("level", curvk.simd_levels())
def test_kernels_stay_within_their_arrays(level: str, tmp_path: Path) -> None:
    passes(tmp_path, "cpp", level, "all")


def test_twins_stay_within_their_arrays(tmp_path: Path) -> None:
    passes(tmp_path, "numba", "none", "first")


@COMPILED
def test_teams_stay_within_their_arrays(tmp_path: Path) -> None:
    passes(tmp_path, "cpp", curvk.simd_levels()[-1], "teams")


@COMPILED
def test_methods_stay_within_the_arrays_that_they_make(tmp_path: Path) -> None:
    passes(tmp_path, "cpp", curvk.simd_levels()[-1], "methods")


# ---- the guards see what they are there for -------------------------------------------------------------------------

FAULT = """
import ctypes, sys
import numpy as np
from guard_pages import Door

def kernel(op, columns, scalars, format):
    {name} = columns[{place}]
    {fault}

x, g = np.ones({n}, np.float32), np.ones({n}, np.float32)
Door(kernel, end={end}).call("sgd_step", (x, g, None, None), (0.1, 0, 0, 0, 0, 0, 0, 0, 1.0))
print("nothing was noticed")
"""
READ, WRITE = "ctypes.string_at({at}, 1)", "ctypes.memset({at}, 0xA5, 1)"
CRASHES = {
    "reads behind": (1, READ, "g.ctypes.data + g.nbytes", True),
    "reads before": (1, READ, "g.ctypes.data - 1", False),
    "writes behind": (0, WRITE, "p.ctypes.data + p.nbytes", True),
    "writes before": (0, WRITE, "p.ctypes.data - 1", False),
    "writes what it only reads, the very bytes that are there": (1, WRITE, "g.ctypes.data", True),
}


@pytest.mark.parametrize("n", [0, 1, 17])
@pytest.mark.parametrize("fault", CRASHES)
def test_stray_access_ends_the_process(fault: str, n: int, tmp_path: Path) -> None:
    place, text, at, end = CRASHES[fault]
    if n == 0 and "only reads" in fault:
        at = "g.ctypes.data - 1"
    code = FAULT.format(name="pg"[place], place=place, fault=text.format(at=at), n=n, end=end)
    done = python(tmp_path, "-c", code)
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS), done.stdout + done.stderr


@pytest.mark.parametrize(("at", "end"), [("p.ctypes.data - 1", True), ("p.ctypes.data + p.nbytes", False)])
def test_stray_write_within_the_pages_is_found(at: str, end: bool, tmp_path: Path) -> None:
    fault = f"ctypes.memset({at}, 0, 1)"
    done = python(tmp_path, "-c", FAULT.format(name="p", place=0, fault=fault, n=17, end=end))
    assert done.returncode == 1
    assert "sgd_step: bytes beside the array were written" in done.stderr


def test_gap_between_strided_elements_is_watched(tmp_path: Path) -> None:
    code = FAULT.format(name="p", place=0, fault="ctypes.memset(p.ctypes.data + 5, 0, 1)", n=17, end=True)
    code = code.replace("x, g = np.ones(17, np.float32)", "x, g = np.ones((17, 2), np.float32)[:, 0]")
    done = python(tmp_path, "-c", code)
    assert done.returncode == 1
    assert "sgd_step: bytes beside the array were written" in done.stderr
