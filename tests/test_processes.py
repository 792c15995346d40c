"""Processes that others start: forks beside a running region, pools, joblib, data loaders; each has the serial bits.

Every script runs in a Python of its own with a time limit, so that a process that hangs fails its test alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from curvk._backend import core

pytestmark = [
    pytest.mark.skipif(core is None, reason="the twins have no threads that a fork could lose"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

PARALLEL = core is not None and core.openmp() > 0
LIBRARIES = ["numpy", "torch"]

# What workers run: a module of its own, since spawned processes import what they run.
WORKER = '''
import threading
import warnings

import numpy as np

import curvk
from curvk.kernels import gram, optim


def step(seed=0, n=200_003):
    p, g, m, v = (np.linspace(0.5 + seed, 1.5, n, dtype=np.float32) for _ in range(4))
    optim.adam_step(p, g, m, v, step=1, lr=0.1)
    product = gram.matvec(m[:600].reshape(200, 3), p[:900].reshape(300, 3), np.ones(300, np.float32), bandwidth=1.0)
    return p.tobytes() + product.tobytes()


def told(seed):
    """Result, what curvk warned of, and how many threads it has here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = step(seed)
    words = [str(w.message) for w in caught if w.category is RuntimeWarning and "curvk" in str(w.message)]
    return result, words, curvk.get_num_threads()


class Stepping:
    """Parallel regions in another Python thread, one after the other, while the block runs."""

    def __enter__(self):
        self.ended, self.running = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()
        self.running.wait()

    def work(self):
        arrays = [np.full(3_000_000, 0.5, np.float32) for _ in range(4)]
        while not self.ended.is_set():
            optim.adam_step(*arrays, step=1, lr=1e-3)
            self.running.set()

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()
'''

SETUP = """
import os, sys, warnings
sys.path.insert(0, os.getcwd())
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about fork beside threads
import curvk, worker
curvk.set_num_threads(2)
"""


@pytest.fixture
def in_folder(run_python: Any, tmp_path: Path) -> Any:
    """Runs a script in a folder that has worker.py, as the main module that spawned processes import again."""
    (tmp_path / "worker.py").write_text(WORKER)

    def run(code: str, **variables: str) -> Any:
        body = "\n".join("    " + line for line in code.strip().splitlines())
        (tmp_path / "script.py").write_text(f"{SETUP}\nif __name__ == '__main__':\n{body}\n")
        done = run_python("import runpy; runpy.run_path('script.py', run_name='__main__')", **variables)
        assert "Warning" not in done.stderr, done.stderr
        return done

    return run


def need(library: str) -> None:
    if library != "numpy":
        pytest.importorskip(library)


# ---- fork by hand ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_fork_while_a_region_runs_in_another_thread(in_folder: Any, library: str) -> None:
    need(library)
    in_folder(
        f"import {library}\nPARALLEL = {PARALLEL}"
        + """
expected = worker.step(1)
with worker.Stepping():
    for _ in range(20):
        child = os.fork()
        if child == 0:
            (first, warned, threads), (again, silent, _) = worker.told(1), worker.told(1)
            os._exit(0 if first == again == expected and threads == 1 and len(warned) == PARALLEL and not silent else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert worker.told(1) == (expected, [], 2 if PARALLEL else 1)
"""
    )


def test_fork_within_a_limit_on_threads(in_folder: Any) -> None:
    """The child is serial, whatever the limit; both leave the block with the setting they had before."""
    in_folder(
        f"PARALLEL = {PARALLEL}"
        + """
expected = worker.step(1)
with curvk.threads(3):
    assert worker.told(1) == (expected, [], 3 if PARALLEL else 1)
    child = os.fork()
    if child == 0:
        result, warned, threads = worker.told(1)
        good = result == expected and threads == 1 and len(warned) == PARALLEL
if child == 0:
    os._exit(0 if good and curvk.get_num_threads() == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert curvk.get_num_threads() == (2 if PARALLEL else 1)
"""
    )


def test_a_warning_made_an_error_leaves_the_array_alone(in_folder: Any) -> None:
    in_folder(
        f"PARALLEL = {PARALLEL}"
        + """
import numpy as np
worker.step()
child = os.fork()
if child == 0:
    warnings.simplefilter("error", RuntimeWarning)
    p = np.ones(100_000, np.float32)
    try:
        curvk.kernels.optim.sgd_step(p, np.ones_like(p), lr=0.5)
        good = not PARALLEL
    except RuntimeWarning:
        good = PARALLEL and (p == 1).all()
    p[:] = 1
    curvk.kernels.optim.sgd_step(p, np.ones_like(p), lr=0.5)  # said once
    os._exit(0 if good and (p == 0.5).all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    )


# ---- pools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("pool", ["Pool", "ProcessPoolExecutor"])
def test_pools_beside_a_running_region(in_folder: Any, pool: str, method: str) -> None:
    made = {
        "Pool": "multiprocessing.get_context(METHOD).Pool(2)",
        "ProcessPoolExecutor": "ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(METHOD))",
    }[pool]
    done = in_folder(
        f"METHOD = {method!r}"
        + """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
expected = [worker.step(seed) for seed in range(6)]
with worker.Stepping(), POOL as pool:
    results = list(pool.map(worker.told, range(6)))
assert [r[0] for r in results] == expected
print(sorted({r[2] for r in results}), sum(len(r[1]) for r in results))
""".replace("POOL", made),
        CURVK_NUM_THREADS="2",
    )
    threads, warned = done.stdout.split()
    assert threads == ("[2]" if PARALLEL and method != "fork" else "[1]")
    # once in each forked process; one of the two may have done all the work
    assert int(warned) in ((1, 2) if PARALLEL and method == "fork" else (0,))


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_joblib(in_folder: Any, backend: str) -> None:
    """Loky gives its workers their share of the CPUs as OMP_NUM_THREADS, which curvk heeds; threads are threads."""
    pytest.importorskip("joblib")
    done = in_folder(
        f"BACKEND = {backend!r}"
        + """
import joblib
expected = [worker.step(seed) for seed in range(6)]
with joblib.parallel_config(backend=BACKEND, n_jobs=2):
    results = joblib.Parallel()(joblib.delayed(worker.told)(seed) for seed in range(6))
assert [r[0] for r in results] == expected
print(*sorted({r[2] for r in results}), "of", joblib.cpu_count())
"""
    )
    threads, cpus = done.stdout.split(" of ")
    expected = {"loky": max(1, int(cpus) // 2), "threading": 2, "multiprocessing": 1}[backend]
    assert threads == str(expected if PARALLEL else 1)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_grid_search_over_a_kernel_machine(in_folder: Any, backend: str) -> None:
    pytest.importorskip("sklearn")
    in_folder(
        f"BACKEND = {backend!r}"
        + """
import joblib, numpy as np
from curvk.machines import EigenPro4Classifier
from curvk.online import BOGDClassifier
from sklearn.model_selection import GridSearchCV
X = np.random.default_rng(0).standard_normal((600, 20)).astype(np.float32)
y = np.where((X**2).sum(axis=1) < 19, "inside", "outside")
warnings.simplefilter("ignore", RuntimeWarning)  # forked workers say that they are serial: tested above
os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning"
for model, grid in (
    (EigenPro4Classifier(n_centers=200, epochs=2, random_state=0), {"bandwidth": [2.0, 4.0], "epochs": [1, 2]}),
    (BOGDClassifier(50, random_state=0), {"budget": [20, 100]}),
):
    serial = GridSearchCV(model, grid, cv=2, n_jobs=1).fit(X, y)
    with joblib.parallel_config(backend=BACKEND):
        shared = GridSearchCV(model, grid, cv=2, n_jobs=2).fit(X, y)
    assert shared.best_params_ == serial.best_params_
    assert (shared.cv_results_["mean_test_score"] == serial.cv_results_["mean_test_score"]).all()
    assert (shared.predict(X) == serial.predict(X)).all() and serial.best_score_ > 0.5
"""
    )


# ---- data loaders ----------------------------------------------------------------------------------------------------

DATASET = '''
import numpy as np
import torch

import curvk
from worker import told


class Rows(torch.utils.data.Dataset):
    """Each item is computed by curvk's kernels in the worker, in a region that would be parallel in the parent."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        result, warned, threads = told(i % 3)
        x = np.frombuffer(result[:64], np.float32).copy()
        return torch.from_numpy(x), len(warned), threads


def train(workers, method):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 30_000), torch.nn.Linear(30_000, 1))
    import curvk.torch

    optimizer = curvk.torch.AdamW(model.parameters(), lr=1e-3)
    context = {"multiprocessing_context": method} if workers else {}
    warned, threads = 0, set()
    for _ in range(2):  # the second epoch's workers start after the parent's parallel regions
        loader = torch.utils.data.DataLoader(Rows(), batch_size=4, num_workers=workers, **context)
        for x, told, count in loader:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            warned += int(told.sum())
            threads |= set(count.tolist())
    return [p.detach().numpy().tobytes() for p in model.parameters()], warned, threads
'''


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loader_workers_beside_optimizer_steps(in_folder: Any, tmp_path: Path, method: str) -> None:
    pytest.importorskip("torch")
    (tmp_path / "dataset.py").write_text(DATASET)
    done = in_folder(
        f"METHOD = {method!r}"
        + """
import torch, dataset
torch.set_num_threads(1)  # torch's own sums depend on its threads
expected, silent, own = dataset.train(0, None)
assert silent == 0
weights, warned, threads = dataset.train(2, METHOD)
assert weights == expected
print(sorted(threads), warned)
""",
        CURVK_NUM_THREADS="2",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    threads, warned = done.stdout.split()
    assert threads == ("[2]" if PARALLEL and method != "fork" else "[1]")
    assert int(warned) == (4 if PARALLEL and method == "fork" else 0)  # once in each of two workers of two epochs
