"""How many threads run, who says so, and that nobody can tell from the results."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._backend import core
from curvk._threads import threads_reason
from curvk.kernels import half
from curvk.kernels.optim import AdamPlan, adam_step, global_norm, sgd_step

pytestmark = pytest.mark.skipif(core is None, reason="the twins are serial")
several = pytest.mark.skipif(core is None or not core.openmp(), reason="built without OpenMP")
LARGE = 300_007  # over seven grains of 16,384


def arrays(n: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.abs(rng.standard_normal(n)).astype(np.float32) for _ in range(4)]


# ---- settings -------------------------------------------------------------------------------------------------------


@several
def test_set_num_threads_is_for_the_process() -> None:
    before = curvk.get_num_threads()
    curvk.set_num_threads(3)
    assert curvk.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(curvk.get_num_threads).result() == 3
        pool.submit(curvk.set_num_threads, 5).result()
    assert curvk.get_num_threads() == 5
    assert threads_reason() == "curvk.set_num_threads()"
    curvk.set_num_threads(None)
    assert curvk.get_num_threads() == before


@several
def test_threads_is_for_the_python_thread() -> None:
    curvk.set_num_threads(4)
    with curvk.threads(2):
        assert curvk.get_num_threads() == 2
        assert threads_reason() == "curvk.threads() in this thread"
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(curvk.get_num_threads).result() == 4
        with curvk.threads(3):
            assert curvk.get_num_threads() == 3
            with curvk.threads(1):
                assert curvk.get_num_threads() == 1
            assert curvk.get_num_threads() == 3
        assert curvk.get_num_threads() == 2
    assert curvk.get_num_threads() == 4


@several
def test_threads_ends_with_an_exception() -> None:
    curvk.set_num_threads(4)
    with pytest.raises(KeyError), curvk.threads(2):
        raise KeyError
    assert curvk.get_num_threads() == 4


def enter(limit: curvk.threads) -> tuple[int, int, int]:
    before = curvk.get_num_threads()
    with limit:
        inside = curvk.get_num_threads()
    return before, inside, curvk.get_num_threads()


@several
def test_one_limit_can_be_entered_twice() -> None:
    curvk.set_num_threads(4)
    two = curvk.threads(2)
    with two:
        assert curvk.get_num_threads() == 2
        with curvk.threads(3), two:
            assert curvk.get_num_threads() == 2
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(enter, two).result() == (4, 2, 4)
        assert curvk.get_num_threads() == 2
    assert curvk.get_num_threads() == 4


@pytest.mark.parametrize("function", ["set_num_threads", "threads"])
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0, ValueError, "got 0, needs a number of threads from 1 to 65536"),
        (-1, ValueError, "got -1, needs a number of threads from 1 to 65536"),
        (65537, ValueError, "got 65537"),
        (2**80, ValueError, "got 1208925819614629174706176"),
        (1.5, TypeError, "got 1.5 of type float, needs an integer"),
        ("2", TypeError, "got '2' of type str, needs an integer"),
        (True, TypeError, "got True of type bool, needs an integer"),
    ],
)
def test_bad_numbers_of_threads(function: str, value: Any, error: type[Exception], words: str) -> None:
    before = curvk.get_num_threads()
    with pytest.raises(error) as caught:
        getattr(curvk, function)(value)
    assert f"{function}: argument 'n': {words}" in str(caught.value)
    assert curvk.get_num_threads() == before


# ---- where the default comes from -----------------------------------------------------------------------------------

REPORT = "import curvk, curvk._threads as t; print(curvk.get_num_threads(), '|', t.threads_reason())"


@several
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CURVK_NUM_THREADS": "3"}, "3 | CURVK_NUM_THREADS=3"),
        ({"OMP_NUM_THREADS": "5"}, "5 | OMP_NUM_THREADS=5"),
        ({"OMP_NUM_THREADS": "4,2"}, "4 | OMP_NUM_THREADS=4"),
        ({"CURVK_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, "3 | CURVK_NUM_THREADS=3"),
    ],
)
def test_environment_sets_the_default(run_python: Any, variables: dict[str, str], expected: str) -> None:
    assert run_python(REPORT, **variables).stdout.strip() == expected


@several
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity_limits_the_default(run_python: Any) -> None:
    pin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    assert run_python(pin + REPORT).stdout.strip() == "1 | CPUs this process may run on: 1"


def test_empty_variable_counts_as_unset(run_python: Any) -> None:
    assert run_python(REPORT, CURVK_NUM_THREADS="").stdout == run_python(REPORT).stdout


@pytest.mark.parametrize("value", ["0", "-2", "many", "4x"])
def test_senseless_variable_is_an_error(run_python: Any, value: str) -> None:
    code = "try:\n    import curvk\nexcept ValueError as error:\n    print(error)"
    assert (
        run_python(code, CURVK_NUM_THREADS=value).stdout
        == f"CURVK_NUM_THREADS={value}: needs a number of threads, 1 or more\n"
    )


# ---- results --------------------------------------------------------------------------------------------------------


def outputs() -> list[bytes]:
    """Results of every kind of sweep: flat, strided, a list, a reduction, a conversion."""
    p, g, m, v = arrays(LARGE)
    adam_step(p, g, m, v, step=3, lr=0.1, weight_decay=0.1)
    strided = [np.repeat(x, 2)[::2] for x in arrays(LARGE, 2)]
    adam_step(*strided, step=3, lr=0.1)
    plan = [[x[:50_021], x[50_021:50_022], x[50_022:]] for x in arrays(LARGE, 3)]
    AdamPlan(*plan).step(step=1, lr=0.1)
    norm = global_norm([p, m[::3], v.reshape(7, -1)[:, ::-1] if LARGE % 7 == 0 else v])
    sgd_step(p, g, lr=0.1)
    small = half.from_float32(p, "bf16")
    flat = [p, m, v, *strided, *(x for column in plan for x in column), small, half.to_float32(small)]
    return [x.tobytes() for x in flat] + [norm.hex().encode()]


@several
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    curvk.set_num_threads(1)
    expected = outputs()
    for n in (2, 3, 7):
        curvk.set_num_threads(n)
        assert outputs() == expected, f"{n} threads"


@pytest.mark.parametrize("inner", [1, 2])
def test_calls_from_several_python_threads(inner: int) -> None:
    """Each steps its own arrays many times, at once; each ends with what it would have had alone."""
    workers, rounds, n = 4, 20, 40_000
    expected = []
    for seed in range(workers):
        own = arrays(n, seed)
        for k in range(rounds):
            adam_step(*own, step=k + 1, lr=0.01)
        expected.append(([x.tobytes() for x in own], global_norm(own)))
    together = threading.Barrier(workers)

    def work(seed: int) -> tuple[list[bytes], float]:
        own = arrays(n, seed)
        together.wait()
        with curvk.threads(inner):
            for k in range(rounds):
                adam_step(*own, step=k + 1, lr=0.01)
                with pytest.raises(ValueError, match="lr"):
                    adam_step(*own, step=1, lr=-1.0)
            return [x.tobytes() for x in own], global_norm(own)

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(work, range(workers))) == expected


def test_settings_may_change_while_kernels_run() -> None:
    levels, stop = curvk.simd_levels(), threading.Event()
    expected = arrays(40_000)
    adam_step(*expected, step=1, lr=0.1)

    def switch() -> None:
        while not stop.is_set():
            for level in levels:
                curvk.set_simd(level)
                curvk.set_num_threads(2)
                curvk.set_num_threads(1)

    switcher = threading.Thread(target=switch)
    switcher.start()
    try:
        for _ in range(100):
            own = arrays(40_000)
            adam_step(*own, step=1, lr=0.1)
            assert [x.tobytes() for x in own] == [x.tobytes() for x in expected]
    finally:
        stop.set()
        switcher.join()


# ---- serial where another region runs -------------------------------------------------------------------------------

NESTED = r"""
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include "curvk.h"
enum { n = 200000 };
int main(void) {
    curvk_set_num_threads(2);
    int64_t serial = 1, outside = 0;
    int32_t status = 0;
    float* x[2];
    for (int k = 0; k < 2; ++k) {
        x[k] = malloc(n * sizeof(float));
        for (int i = 0; i < n; ++i) x[k][i] = 1;
    }
    double norm[2][2] = {{0, 0}, {0, 0}};
#pragma omp parallel num_threads(2)
    {
        int k = omp_get_thread_num();
        if (omp_get_num_threads() == 2) {
            const int32_t s = curvk_sum_squares_f32(x[k], n, 1.0, norm[k]);
#pragma omp critical
            {
                status |= s;
                if (curvk_num_threads() != 1) serial = 0;
            }
        }
    }
    outside = curvk_num_threads();
    printf("%d %d %g %g %d\n", (int)status, (int)serial, norm[0][0], norm[1][0], (int)outside);
    return 0;
}
"""


@several
def test_serial_inside_a_parallel_region_of_the_same_runtime(tmp_path: Path, run_python: Any) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler here")
    from curvk import capi

    source, binary, library = tmp_path / "nested.c", tmp_path / "nested", capi.library_path()
    source.write_text(NESTED)
    flags = [*os.environ.get("CFLAGS", "").split(), "-fopenmp", f"-I{capi.include_dir()}"]
    command = [
        compiler,
        "-std=c99",
        *flags,
        str(source),
        str(library),
        f"-Wl,-rpath,{library.parent}",
        "-o",
        str(binary),
    ]
    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    built = subprocess.run(command, env=plain, capture_output=True, text=True)
    if built.returncode and "-fopenmp" in built.stderr:
        pytest.skip("the C compiler has no OpenMP")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(binary)], env=plain, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "1", "200000", "200000", "2"], done.stdout + done.stderr


@several
def test_right_inside_numba_prange(run_python: Any) -> None:
    """Numba's own parallel region calls a kernel per row: right whichever runtime Numba threads with."""
    code = """
import numba, numpy as np
from curvk.capi import ffi, lib
square = lib.curvk_sum_squares_f32
@numba.njit(parallel=True)
def norms(x, out):
    for k in numba.prange(x.shape[0]):
        square(ffi.from_buffer(x[k]), x.shape[1], 1.0, ffi.from_buffer(out[k]))
lib.curvk_set_num_threads(2)
x, out = np.ones((8, 100_000), np.float32), np.zeros((8, 2))
x *= np.arange(8, dtype=np.float32)[:, None]
norms(x, out)
print(out[:, 0].tolist() == [100_000.0 * k * k for k in range(8)])
"""
    assert run_python(code).stdout.strip() == "True"
