"""Fixtures every test may use; CURVK_REQUIRE_TORCH=1 turns skips for want of torch or its companions into failures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import curvk
import pytest
from curvk import _backend

BACKENDS = ["cpp", "numba", "python"] if _backend.compiled else ["numba", "python"]


def _fail_if_required(report: Any) -> None:
    reason = str(report.longrepr)
    needed = os.environ.get("CURVK_REQUIRE_TORCH") == "1" and re.search(r"\b(torch|adamz)\b", reason)
    if report.skipped and needed and "CUDA device" not in reason and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"CURVK_REQUIRE_TORCH=1, yet this was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    report = yield
    _fail_if_required(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    report = yield
    _fail_if_required(report)
    return report


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    """Backend, level and threads that a test sets end with it."""
    backend, level = curvk.get_backend(), curvk.get_simd()
    yield
    if curvk.get_backend() != backend:
        curvk.use_backend(backend)
    if level != "none":
        curvk.set_simd(level)
    curvk.set_num_threads(None)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The test runs under each backend."""
    curvk.use_backend(request.param)
    return str(request.param)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the shell that began the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a Python of its own, which fails rather than hangs; keywords are environment variables.

    Variables that steer curvk are unset unless given, and the folder is an empty one.
    """

    def run(
        code: str, *, check: bool = True, timeout: float = 120, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        steering = ("CURVK_BACKEND", "CURVK_SIMD", "CURVK_NUM_THREADS", "OMP_NUM_THREADS")
        environment = {k: v for k, v in os.environ.items() if k not in steering} | variables
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, env=environment, cwd=tmp_path
        )
        assert not check or done.returncode == 0, f"exit status {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    return run
