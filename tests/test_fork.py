"""A forked child runs on one thread and says so once; spawned and forkserver children run as ever."""

from __future__ import annotations

import os
from typing import Any

import pytest
from curvk._backend import core

pytestmark = [
    pytest.mark.skipif(core is None, reason="the twins have no threads that a fork could lose"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

# Every script runs in a Python of its own with a time limit, so that a child that hangs fails its test alone.
SETUP = """
import os, sys, warnings
import numpy as np
import curvk
from curvk.kernels.optim import adam_step

parallel = curvk._backend.core.openmp() > 0  # otherwise no thread is lost, and there is nothing to say

def step(n=200_003):
    p, g, m, v = (np.linspace(0.5, 1.5, n, dtype=np.float32) for _ in range(4))
    adam_step(p, g, m, v, step=1, lr=0.1)
    return p.tobytes()

def told(work):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    return result, [str(w.message) for w in caught if w.category is RuntimeWarning and "curvk" in str(w.message)]
"""


def test_fork_after_a_parallel_region(run_python: Any) -> None:
    code = """
curvk.set_num_threads(2)
expected = step()
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about fork beside threads
child = os.fork()
if child == 0:
    first, warned = told(step)
    again, silent = told(step)
    good = first == again == expected and len(warned) == int(parallel) and not silent
    good = good and curvk.get_num_threads() == 1
    if parallel:
        from curvk._threads import threads_reason
        good = good and threads_reason() == "a forked child runs on one thread" and "spawn or forkserver" in warned[0]
    os._exit(0 if good else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
after, silent = told(step)
assert after == expected and not silent and curvk.get_num_threads() == (2 if parallel else 1)
"""
    run_python(SETUP + code)


def test_fork_without_a_region_before_it(run_python: Any) -> None:
    code = """
child = os.fork()
if child == 0:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        os._exit(0 if step() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert told(step)[1] == []
"""
    run_python(SETUP + code)


def test_small_steps_in_a_forked_child_say_nothing(run_python: Any) -> None:
    code = """
warnings.simplefilter("ignore", DeprecationWarning)
curvk.set_num_threads(2)
step()
child = os.fork()
if child == 0:
    os._exit(len(told(lambda: step(100))[1]))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run_python(SETUP + code)


def test_grandchildren(run_python: Any) -> None:
    code = """
warnings.simplefilter("ignore")
curvk.set_num_threads(2)
expected = step()
child = os.fork()
if child == 0:
    step()
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if step() == expected else 1)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run_python(SETUP + code)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_start_methods(run_python: Any, tmp_path: Any, method: str) -> None:
    (tmp_path / "worker.py").write_text(
        SETUP
        + "def work(_):\n    result, warned = told(step)\n    return result, len(warned), curvk.get_num_threads()\n"
    )
    code = """
import multiprocessing, warnings
import curvk, worker
if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    curvk.set_num_threads(2)
    expected = worker.step()
    with multiprocessing.get_context(METHOD).Pool(2) as pool:
        results = pool.map_async(worker.work, range(4), chunksize=1).get(timeout=100)
    assert all(r[0] == expected for r in results)
    print(sorted({r[2] for r in results}), sum(r[1] for r in results) > 0)
"""
    script = tmp_path / "main.py"
    script.write_text(code.replace("METHOD", repr(method)))
    done = run_python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", CURVK_NUM_THREADS="2")
    several = core.openmp() > 0 and method != "fork"
    warned = core.openmp() > 0 and method == "fork"
    assert done.stdout.split() == ["[2]" if several else "[1]", str(warned)], done.stderr
    assert "Warning" not in done.stderr
