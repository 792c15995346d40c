"""curvk beside libraries with thread pools of their own, imported in any order: no crash, everybody's results right."""

from __future__ import annotations

import os
from typing import Any

import pytest
from curvk._backend import core

PARALLEL = core is not None and core.openmp() > 0

# A parallel region of each library, with a result that is known without it.
REGIONS = {
    "curvk": """
def region():
    p, g, m, v = (np.full(200_003, 0.5, np.float32) for _ in range(4))
    curvk.kernels.optim.adam_step(p, g, m, v, step=1, lr=0.1)
    x = (p, g, m, v)
    with curvk.threads(1):
        q = [np.full(200_003, 0.5, np.float32) for _ in range(4)]
        curvk.kernels.optim.adam_step(*q, step=1, lr=0.1)
    assert all((a == b).all() for a, b in zip(x, q)) and m[0] == np.float32(0.5) and p[0] < 0.5
""",
    "curvk.torch": """
def region():
    import torch
    p = torch.nn.Parameter(torch.ones(200_003))
    p.grad = torch.ones_like(p)
    curvk.torch.SGD([p], lr=0.5).step()
    assert (p == 0.5).all()
""",
    "torch": """
def region():
    x = torch.arange(1_000_000, dtype=torch.float64)
    assert float(x.sum()) == 499_999_500_000.0 and float((torch.ones(300, 300) @ torch.ones(300, 300))[0, 0]) == 300
""",
    "sklearn": """
def region():
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import pairwise_distances_argmin
    X = np.random.default_rng(0).standard_normal((3000, 4))
    assert (pairwise_distances_argmin(X, X) == np.arange(len(X))).all()
    model = HistGradientBoostingClassifier(max_iter=3, random_state=0).fit(X, X[:, 0] > 0)
    assert model.score(X, X[:, 0] > 0) > 0.9
""",
    "numba": """
def region():
    @numba.njit
    def total(x):
        s = 0.0
        for v in x:
            s += v
        return s
    assert total(np.ones(1000)) == 1000
    with curvk.use_backend("numba"):
        p = np.ones(1000, np.float32)
        curvk.kernels.optim.sgd_step(p, np.ones_like(p), lr=0.5)
    assert (p == 0.5).all()
""",
    "scipy": """
def region():
    import scipy.linalg
    A = 2 * np.eye(300)
    assert np.allclose(scipy.linalg.cho_solve(scipy.linalg.cho_factor(A), np.ones(300)), 0.5)
""",
    "river": """
def region():
    from river import linear_model
    model = linear_model.LogisticRegression()
    for _ in range(20):
        model.learn_one({"a": 1.0}, True)
        model.learn_one({"a": -1.0}, False)
    assert model.predict_one({"a": 1.0}) is True
""",
}

END = """
import os, warnings
regions = []
for source in SOURCES:
    space = dict(globals())
    exec(source, space)
    regions.append(space["region"])
for region in regions + regions[::-1]:
    region()
import curvk, curvk.kernels.optim
if PARALLEL:
    curvk.set_num_threads(2)
    before = curvk.get_num_threads()
    try:
        from threadpoolctl import threadpool_info, threadpool_limits
    except ModuleNotFoundError:
        pass
    else:
        from curvk._info import _loaded_openmp  # what `curvk info` reports
        pools = [p for p in threadpool_info() if p["user_api"] == "openmp"]
        assert {os.path.realpath(p["filepath"]) for p in pools} == {os.path.realpath(p) for p in _loaded_openmp()}
        with threadpool_limits(1):  # others' pools only: curvk's regions name their number themselves
            assert curvk.get_num_threads() == before
            regions[0]()
    assert curvk.get_num_threads() == before
if hasattr(os, "fork"):
    warnings.simplefilter("ignore")
    child = os.fork()
    if child == 0:
        p = np.ones(100_003, np.float32)
        curvk.kernels.optim.sgd_step(p, np.ones_like(p), lr=0.5)
        os._exit(0 if (p == 0.5).all() and curvk.get_num_threads() == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def check_order(run_python: Any, names: tuple[str, ...]) -> None:
    for name in names:
        for needed in name.split(".")[-1:]:
            if needed != "curvk":
                pytest.importorskip(needed)
    imports = "\n".join(f"import {name}" for name in names)
    sources = [REGIONS[name] for name in names]
    # each script imports what its regions use, after the order under test
    late = "import numpy as np\nimport curvk, curvk.kernels.optim\n"
    if "curvk.torch" in names:
        late += "import curvk.torch\n"
    run_python(f"{imports}\n{late}SOURCES = {sources!r}\nPARALLEL = {PARALLEL}\n{END}")


@pytest.mark.parametrize("other", ["torch", "sklearn", "numba", "scipy", "river"])
def test_curvk_before_and_after(run_python: Any, other: str) -> None:
    for names in (("curvk", other), (other, "curvk")):
        check_order(run_python, names)


@pytest.mark.parametrize(
    "names",
    [
        ("curvk.torch", "torch", "sklearn"),
        ("torch", "sklearn", "curvk.torch"),
        ("sklearn", "curvk", "torch", "numba"),
        ("numba", "scipy", "curvk", "curvk.torch", "sklearn"),
    ],
    ids=" ".join,
)
def test_several_libraries(run_python: Any, names: tuple[str, ...]) -> None:
    check_order(run_python, names)


def test_import_is_light(run_python: Any) -> None:
    """NumPy, and nothing of what only some methods need; each floor brings its own."""
    heavy = "torch", "sklearn", "scipy", "numba", "cffi", "matplotlib", "river", "joblib", "multiprocessing", "tqdm"
    code = f"""
import sys
before = set(sys.modules)
import MODULE
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
assert not loaded & {set(heavy)!r}, loaded
import threading
assert threading.active_count() == 1
"""
    for module in ("curvk", "curvk.kernels.optim", "curvk.kernels.gram", "curvk.optim", "curvk.zeroth", "curvk.sketch"):
        run_python(code.replace("MODULE", module))


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="this system has no list of a process's threads")
def test_import_starts_no_thread_of_any_kind(run_python: Any) -> None:
    """NumPy's BLAS starts some when it is loaded; curvk's team begins with the first large array."""
    done = run_python("""
import os, numpy as np
before = len(os.listdir("/proc/self/task"))
import curvk, curvk.kernels.optim, curvk.kernels.gram
assert len(os.listdir("/proc/self/task")) == before
curvk.set_num_threads(3)
p = np.ones(1000, np.float32)
curvk.kernels.optim.sgd_step(p, p.copy(), lr=0.5)
small = len(os.listdir("/proc/self/task")) - before
p = np.ones(200_000, np.float32)
curvk.kernels.optim.sgd_step(p, p.copy(), lr=0.5)
print(small, len(os.listdir("/proc/self/task")) - before)
""")
    assert done.stdout.split() == ["0", "2" if PARALLEL else "0"]
