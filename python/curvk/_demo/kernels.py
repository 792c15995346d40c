"""The demo's rows on the Gram engine: kernel machines beside scikit-learn's, and particles that sample a density."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ..kernels import gram
from ..machines import EigenPro4Classifier, KernelRidgeCGClassifier
from ..stein import SVCMAES, mmd2
from ..stein.problems import DoubleBanana
from .digits import Digits
from .peers import Array

# Chosen on the training rows.
BANDWIDTH, ALPHA, C = 1.5, 0.1, 10.0
CENTERS = 500
EIGENPRO: dict[str, Any] = {"epochs": 2, "nystrom_samples": 500, "n_components": 50}

PARTICLES, POPSIZE, GENERATIONS = 100, 4, 100
SIGMA0, REPULSION_BANDWIDTH = 0.2, 0.1  # chosen on other seeds
TRUTH = 2000  # points of the density that the particles are measured against
SAMPLERS = {"SV-CMA-ES": 1.0, "independent CMA-ES": 0.0}
"""The weight of the repulsion; all else is the same."""
INDEPENDENT = "independent points of the density"


def rounds(quick: bool) -> int:
    """How many fits of each machine are timed, and seeds of each sampler."""
    return 3 if quick else 7


def steps(quick: bool) -> int:
    """How often `run_machines` and `run_samplers` call `advance` together."""
    return (rounds(quick) + 1) * len(_machines(0)) + rounds(quick) * len(SAMPLERS) * GENERATIONS


def _machines(seed: int) -> dict[str, Any]:
    """Estimators by name."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    kernel: dict[str, Any] = {"n_centers": CENTERS, "kernel": "gaussian", "bandwidth": BANDWIDTH, "random_state": seed}
    gamma = 0.5 / BANDWIDTH**2
    features = Nystroem(gamma=gamma, n_components=CENTERS, random_state=seed)
    return {
        "curvk EigenPro4": EigenPro4Classifier(**kernel, **EIGENPRO),
        "curvk KernelRidgeCG": KernelRidgeCGClassifier(**kernel, alpha=ALPHA, tol=1e-2),
        "sklearn Nystroem + Ridge": make_pipeline(features, RidgeClassifier(alpha=ALPHA)),
        "sklearn SVC": SVC(gamma=gamma, C=C),
    }


def run_machines(data: Digits, threads: int, quick: bool, seed: int, advance: Callable[[], Any]) -> dict[str, Any]:
    """Fits the machines in turns; returns the report's entry. `threads` is for BLAS; curvk's are as they are."""
    from threadpoolctl import threadpool_limits

    machines = _machines(int(np.random.default_rng(seed).integers(1 << 31)))  # scikit-learn's seeds have 32 bits
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in machines}
    accuracy: dict[str, float] = {}
    turns = list(machines.items())
    with threadpool_limits(threads, user_api="blas"):
        for turn in range(rounds(quick) + 1):
            turns = turns[::-1]
            for name, machine in turns:
                start = perf_counter()
                machine.fit(data.x, data.y)
                middle = perf_counter()
                answers = machine.predict(data.x_test)
                end = perf_counter()
                if turn:  # the first loads what loads lazily
                    times[name].append((middle - start, end - middle))
                accuracy[name] = float(np.mean(answers == data.y_test))
                advance()
    return {
        "settings": {"kernel": "gaussian", "bandwidth": BANDWIDTH, "alpha": ALPHA, "C": C, "EigenPro4": EIGENPRO},
        "centers": CENTERS,
        "threads": threads,
        "fits": rounds(quick),
        "rows": [
            {
                "machine": name,
                "test_accuracy": accuracy[name],
                "fit_s": median(fit for fit, _ in found),
                "predict_s": median(predict for _, predict in found),
            }
            for name, found in times.items()
        ],
    }


def run_samplers(quick: bool, seed: int, advance: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Samples the double banana with each method and seed; returns the report's entry and the first seed's points."""
    density = DoubleBanana()
    seeds = np.random.default_rng(seed).integers(1 << 31, size=rounds(quick) + 1).tolist()
    truth = density.sample(TRUTH, seed=seeds.pop())
    h = gram.median_distance(truth) / np.sqrt(2)
    clouds: dict[str, list[Array]] = {name: [] for name in (*SAMPLERS, INDEPENDENT)}
    for one in seeds:
        x0 = np.random.default_rng(one).uniform(-2, 2, (PARTICLES, 2))
        for name, repulsion in SAMPLERS.items():
            options: dict[str, Any] = {"sigma0": SIGMA0, "popsize": POPSIZE, "bandwidth": REPULSION_BANDWIDTH}
            sampler = SVCMAES(density.log_density, x0, repulsion=repulsion, seed=one, **options)
            clouds[name].append(sampler.run(GENERATIONS, callback=lambda _: advance() and None, progress=False))
        clouds[INDEPENDENT].append(density.sample(PARTICLES, seed=one))
    entry = {
        "density": "double banana",
        "particles": PARTICLES,
        "evaluations": PARTICLES * POPSIZE * GENERATIONS,
        "truth": TRUTH,
        "settings": {"sigma0": SIGMA0, "popsize": POPSIZE, "bandwidth": REPULSION_BANDWIDTH, "mmd_bandwidth": float(h)},
        "rows": [
            {"method": name, "mmd2": [mmd2(points, truth, bandwidth=h) for points in found]}
            for name, found in clouds.items()
        ],
    }
    return entry, {name: found[0] for name, found in clouds.items()}
