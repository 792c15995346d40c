"""Python threads: every floor's calls on separate data, at once, have the bits they have alone, whatever is set."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import curvk
import numpy as np
import pytest
from curvk import curvature, optim, sketch, stein, zeroth
from curvk._backend import Plan, core
from curvk.kernels import budget, gram, half, linalg, noise, online, sweep, vmath
from curvk.kernels import curvature as curvature_kernels
from curvk.kernels import optim as optim_kernels
from curvk.kernels import sketch as sketch_kernels
from curvk.kernels import stein as stein_kernels

pytestmark = pytest.mark.skipif(core is None, reason="the twins keep the GIL between their loops")
WORKERS = 4


def digest(*arrays: Any) -> str:
    found = hashlib.sha256()
    for x in arrays:
        found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- what is run -----------------------------------------------------------------------------------------------------
# Each takes a seed and gives a digest of all that it computed. Sizes are above 8,192 elements where that is cheap, so
# that calls run without the GIL and side by side.


def optimizer_kernels(seed: int) -> str:
    p, g, m, v = (np.abs(normal(seed + i, 40_000)) for i in range(4))
    optim_kernels.adam_step(p, g, m, v, step=1, lr=0.1)
    optim_kernels.lion_step(p, g, m, lr=0.1)
    plan = optim_kernels.SGDPlan([p[:100], p[100:]], [g[:100], g[100:]])
    plan.step(lr=0.1)
    return digest(p, m, v, np.float64(optim_kernels.global_norm([p, g])))


def sweeps(seed: int) -> str:
    p, g = normal(seed, 40_000), normal(seed + 1, 40_000)
    m, v = sweep.quantize(np.zeros_like(p)), sweep.quantize(np.zeros_like(p), signed=False)
    sweep.adam_sweep(p, g, m, v, step=1, lr=0.1)
    return digest(p, m.codes, m.scales, v.codes, v.scales, sweep.dequantize(m))


def noises(seed: int) -> str:
    x = noise.fill(np.empty(50_000, np.float32), seed=seed)
    noise.axpy_seeds_(x, seed=seed, draws=[1, 2, 3], coefs=[0.1, 0.2, 0.3])
    return digest(x, noise.dot_seeds(x, seed=seed, draws=[4, 5]))


def grams(seed: int) -> str:
    X, Z = normal(seed, 700, 9), normal(seed + 1, 500, 9)
    centers = gram.Centers(Z)
    K, product = gram.block(X, centers, bandwidth=2.0), gram.matvec(X, centers, Z[:, :2].copy(), bandwidth=2.0)
    return digest(K, product, np.float64(gram.median_distance(X)))


def small_matrices(seed: int) -> str:
    A = normal(seed, 200, 12, 12, dtype=np.float64)
    d, V = np.sort(normal(seed, 40, dtype=np.float64)), np.eye(40)
    sketch_kernels.eigh_update(d, V, normal(seed + 1, 40, dtype=np.float64))
    return digest(*linalg.eigh_batch(A + A.transpose(0, 2, 1)), *linalg.svd_batch(A), d, V)


def conversions(seed: int) -> str:
    x = normal(seed, 50_000)
    small = half.from_float32(x, "bf16")
    return digest(small, half.to_float32(small), vmath.exp(x), vmath.log(np.abs(x)))


def curvature_sums(seed: int) -> str:
    g, a, b = (normal(seed + i, 50_000) for i in range(3))
    p = normal(seed + 3, 50_000)
    curvature_kernels.sam_perturb_(p, g, scale=0.1)
    return digest(curvature_kernels.glass_sums(g, a, b), p)


def particle_kernels(seed: int) -> str:
    x = normal(seed, 300, 40)
    centred, columns = stein_kernels.center(x)
    return digest(centred, columns, stein_kernels.repel(centred, normal(seed + 1, 300, 41), weight=0.5))


def row_learners(seed: int) -> str:
    X = normal(seed, 300, 30, dtype=np.float64)
    f, w = np.zeros((300, 1)), np.zeros((1, 30))
    inverse = np.eye(30)[None].copy()
    online.learn(X, np.sign(X[:, :1]), f, w, inverse)
    expansion, G = budget.Expansion(300), gram.block(X, X, bandwidth=5.0)
    budget.learn(np.empty((300, 0)), G, np.sign(X[:, :1]), f, expansion)
    return digest(f, w, inverse, budget.predict(G[:, : expansion.slots].copy(), expansion))


def optimizers(seed: int) -> str:
    p = normal(seed, 20_000)
    for kind in (optim.SGD, optim.Adam, optim.AdamW, optim.AdamZ, optim.Alice):
        optimizer = kind([p], lr=0.01)
        for _ in range(3):
            if kind is optim.Alice:
                optimizer.step(lambda: [2 * p])
            elif kind is optim.AdamZ:
                optimizer.step([2 * p], loss=float(np.square(p).sum()))
            else:
                optimizer.step([2 * p])
    return digest(p)


def zeroth_optimizers(seed: int) -> str:
    p = {"w": normal(seed, 10_000)}
    for kind in (zeroth.MeZO, zeroth.ES, zeroth.FZOO):
        optimizer = kind(p, lr=1e-3, seed=seed)
        for _ in range(2):
            optimizer.step(lambda given: float(np.square(given["w"]).sum()))
    return digest(p["w"])


def sketches(seed: int) -> str:
    A = normal(seed, 400, 50, dtype=np.float64)
    directions, svd, hashed = sketch.FrequentDirections(8, 50), sketch.IncrementalSVD(5, 50), sketch.SJLT(20, 50)
    for s in (directions, svd, hashed):
        s.update(A[:150])
        s.update(A[150:])
    return digest(directions.sketch, svd.s, hashed.sketch, *sketch.randomized_svd(A, 4, seed=seed))


def samplers(seed: int) -> str:
    x0 = normal(seed, 60, 5, dtype=np.float64)
    flow = stein.SVGD(lambda x: -x, x0)
    evolution = stein.SVCMAES(lambda x: -np.square(x).sum(axis=-1), x0[:8], sigma0=0.5, popsize=6, seed=seed)
    flow.run(5)
    evolution.run(3)
    values = stein.mmd2(flow.particles, x0), stein.ksd(flow.particles, lambda x: -x)
    return digest(flow.particles, evolution.particles, np.array(values))


def probes(seed: int) -> str:
    result = curvature.hessian_diagonal(lambda x: 3 * x, normal(seed, 10_000), sigma=0.1, samples=4, seed=seed)
    return digest(result.mean, result.se)


def machines(seed: int) -> str:
    pytest.importorskip("sklearn")
    from curvk.machines import EigenPro4Regressor, KernelRidgeCG

    X = normal(seed, 300, 6)
    models = EigenPro4Regressor(60, epochs=1, random_state=0), KernelRidgeCG(60, random_state=0)
    return digest(*(m.fit(X, X[:, 0]).predict(X) for m in models))


def online_learners(seed: int) -> str:
    pytest.importorskip("sklearn")
    from curvk.online import BOGDClassifier, FOGDClassifier, KONSClassifier

    X = normal(seed, 200, 6, dtype=np.float64)
    y = np.where(X[:, 0] * X[:, 1] > 0, 1, -1)
    models = BOGDClassifier(40, random_state=0), FOGDClassifier(20, random_state=0), KONSClassifier(40, random_state=0)
    return digest(*(m.fit(X, y).decision_function(X) for m in models))


def torch_optimizers(seed: int) -> str:
    torch = pytest.importorskip("torch")
    import curvk.torch

    p = torch.nn.Parameter(torch.from_numpy(normal(seed, 20_000)))
    for kind in (curvk.torch.SGD, curvk.torch.AdamW):
        optimizer = kind([p], lr=0.01)
        for _ in range(3):
            p.grad = 2 * p.detach()
            optimizer.step()
    return digest(p.detach().numpy())


WORK = [
    optimizer_kernels,
    sweeps,
    noises,
    grams,
    small_matrices,
    conversions,
    curvature_sums,
    particle_kernels,
    row_learners,
    optimizers,
    zeroth_optimizers,
    sketches,
    samplers,
    probes,
    machines,
    online_learners,
    torch_optimizers,
]


def together(tasks: list[Callable[[], Any]]) -> list[Any]:
    """The results of all tasks, each in a Python thread of its own, begun at once."""
    begin = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        begin.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [f.result() for f in [pool.submit(run, task) for task in tasks]]


# ---- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", WORK, ids=lambda f: f.__name__)
def test_threads_on_their_own_data_give_the_serial_bits(work: Callable[[int], str]) -> None:
    expected = [work(seed) for seed in range(WORKERS)]
    assert len(set(expected)) == WORKERS  # the digests tell results apart
    assert together([lambda s=seed: work(s) for seed in range(WORKERS)]) == expected  # type: ignore[misc]


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_settings_changed_meanwhile(backend: str) -> None:
    """One thread changes threads and level as fast as it can; the others' bits stay, whichever backend runs."""
    if backend == "numba":
        pytest.importorskip("numba")
    curvk.use_backend(backend)
    work = [optimizer_kernels, noises, sweeps, conversions]
    expected = [[f(seed) for f in work] for seed in range(WORKERS)]
    ended = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        while not ended.is_set():
            curvk.set_num_threads(1 + changes % 5)
            curvk.set_simd(curvk.simd_levels()[changes % len(curvk.simd_levels())])
            changes += 1

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(3):
            assert together([lambda s=s: [f(s) for f in work] for s in range(WORKERS)]) == expected  # type: ignore[misc]
    finally:
        ended.set()
        changing.join()
    assert changes > 10


def test_each_thread_has_its_own_limit() -> None:
    if not core.openmp():
        pytest.skip("built without OpenMP")
    curvk.set_num_threads(6)
    inside = threading.Barrier(WORKERS)

    def limited(n: int) -> list[int]:
        seen = [curvk.get_num_threads()]
        with curvk.threads(n):
            inside.wait()  # all limits hold at once
            seen.append(curvk.get_num_threads())
            optimizer_kernels(n)
            inside.wait()
        return [*seen, curvk.get_num_threads()]

    limits = range(1, WORKERS + 1)
    assert together([lambda n=n: limited(n) for n in limits]) == [[6, n, 6] for n in limits]  # type: ignore[misc]
    assert curvk.get_num_threads() == 6


def test_the_first_calls_of_a_process_may_come_at_once(run_python: Any) -> None:
    """The registry, the headers' text, the compiled twins and the default policy are made by whoever comes first."""
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
begin = threading.Barrier(6)
def first(_):
    begin.wait()
    import curvk
    from curvk.kernels.optim import adam_step
    p, g, m, v = (np.full(40_000, 0.5, np.float32) for _ in range(4))
    adam_step(p, g, m, v, step=1, lr=0.1)
    try:
        adam_step(p, g, m, v.astype(float), step=1, lr=0.1)
    except TypeError as error:
        assert "float64" in str(error)
    return p.tobytes(), curvk.get_num_threads()
with ThreadPoolExecutor(6) as pool:
    assert len(set(pool.map(first, range(6)))) == 1
"""
    run_python(code)
    pytest.importorskip("numba")
    run_python(code, CURVK_BACKEND="numba")


def test_a_plan_that_runs_is_not_rebound_by_another_thread() -> None:
    """Rebinding while the plan runs is refused, and harms nothing."""
    x = np.ones(4_000_000, np.float32)
    plan = Plan("exp", ([x], [np.empty_like(x)]))
    refused = done = 0
    ended = threading.Event()

    def rebind() -> None:
        nonlocal refused, done
        other = np.empty_like(x)
        while not ended.is_set():
            try:
                plan.rebind(([x], [other]))
                done += 1
            except RuntimeError as error:
                assert "the plan is running in another thread" in str(error)  # noqa: PT017
                refused += 1

    rebinding = threading.Thread(target=rebind)
    rebinding.start()
    try:
        for _ in range(60):
            plan.run(())
    finally:
        ended.set()
        rebinding.join()
    assert refused
    assert done
