"""Which level and which backend run, who chooses, and what a wrong choice says."""

from __future__ import annotations

from typing import Any

import curvk
import numpy as np
import pytest
from curvk import _backend
from curvk.kernels.optim import AdamPlan, adam_step

compiled = pytest.mark.skipif(_backend.core is None, reason="this build has no SIMD levels")


def step() -> bytes:
    p, g, m, v = (np.linspace(0.5, 1.5, 1003, dtype=np.float32) for _ in range(4))
    adam_step(p, g, m, v, step=1, lr=0.1)
    return p.tobytes() + m.tobytes() + v.tobytes()


# ---- SIMD level -----------------------------------------------------------------------------------------------------


@compiled
def test_the_highest_level_runs_by_default(run_python: Any) -> None:
    code = "import curvk; print(curvk.get_simd(), *curvk.simd_levels())"
    level, *levels = run_python(code).stdout.split()
    assert levels == curvk.simd_levels()
    assert level == levels[-1]


@compiled
def test_curvk_simd_sets_the_level(run_python: Any) -> None:
    for level in curvk.simd_levels():
        assert run_python("import curvk; print(curvk.get_simd())", CURVK_SIMD=level).stdout.strip() == level


@compiled
def test_curvk_simd_must_name_a_level(run_python: Any) -> None:
    for bad in ("v9", "avx2", "V3"):
        done = run_python("import curvk", check=False, CURVK_SIMD=bad)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        levels = ", ".join(curvk.simd_levels())
        assert last == f"ValueError: CURVK_SIMD={bad}: set_simd: argument 'level': got '{bad}', needs one of {levels}"


@pytest.mark.parametrize("bad", ["v9", "", None, 3, "armv9"])
def test_set_simd_refuses(bad: Any) -> None:
    before = curvk.get_simd()
    with pytest.raises(ValueError, match=f"set_simd: argument 'level': got {bad!r}, needs one of"):
        curvk.set_simd(bad)
    assert curvk.get_simd() == before


@compiled
def test_levels_agree() -> None:
    results = set()
    for level in curvk.simd_levels():
        curvk.set_simd(level)
        results.add(step())
    assert len(results) == 1


# ---- backend --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["numba", "python", pytest.param("cpp", marks=compiled)])
def test_curvk_backend_sets_the_backend(run_python: Any, name: str) -> None:
    code = "import curvk, curvk._backend as b; print(curvk.get_backend(), b.backend_reason())"
    assert run_python(code, CURVK_BACKEND=name).stdout.split() == [name, f"CURVK_BACKEND={name}"]


def test_curvk_backend_must_name_a_backend(run_python: Any) -> None:
    done = run_python("import curvk", check=False, CURVK_BACKEND="fortran")
    assert done.stderr.strip().endswith("ValueError: backend: got 'fortran', needs one of cpp, numba, python")


def test_use_backend_is_a_switch_and_a_context() -> None:
    start = curvk.get_backend()
    with curvk.use_backend("python"):
        assert curvk.get_backend() == "python"
        with curvk.use_backend("numba"):
            assert curvk.get_backend() == "numba"
        assert curvk.get_backend() == "python"
        with pytest.raises(KeyError), curvk.use_backend("numba"):
            raise KeyError
        assert curvk.get_backend() == "python"
    assert curvk.get_backend() == start
    curvk.use_backend("numba")
    assert curvk.get_backend() == "numba"


def test_use_backend_refuses() -> None:
    before = curvk.get_backend()
    with pytest.raises(ValueError, match="backend: got 'cuda', needs one of cpp, numba, python"):
        curvk.use_backend("cuda")
    assert curvk.get_backend() == before


@compiled
def test_backends_agree() -> None:
    results = set()
    for name in _backend.BACKENDS:
        curvk.use_backend(name)
        results.add(step())
    assert len(results) == 1


@compiled
def test_a_plan_follows_the_backend() -> None:
    def run(names: list[str]) -> bytes:
        p, g, m, v = (np.linspace(0.5, 1.5, 101, dtype=np.float32) for _ in range(4))
        plan = AdamPlan([p], [g], [m], [v])
        for k, name in enumerate(names):
            with curvk.use_backend(name):
                plan.step(step=k + 1, lr=0.1)
        return p.tobytes()

    assert run(["cpp", "numba", "python", "cpp"]) == run(["cpp"] * 4)


# ---- import ---------------------------------------------------------------------------------------------------------


def test_import_brings_nothing_heavy(run_python: Any) -> None:
    code = (
        "import sys, curvk; print(*[m for m in ('numba', 'torch', 'cffi', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    assert run_python(code).stdout.split() == []


@compiled
def test_compiled_steps_do_not_import_numba(run_python: Any) -> None:
    code = """
import sys, numpy as np
from curvk.kernels.optim import adam_step
adam_step(*(np.ones(3, np.float32) for _ in range(4)), step=1, lr=0.1)
print("numba" in sys.modules)
"""
    assert run_python(code).stdout.strip() == "False"


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'curvk' has no attribute 'nothing'"):
        _ = curvk.nothing
    assert set(curvk.__all__) == set(dir(curvk))
