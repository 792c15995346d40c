"""Configurations of every public estimator away from its defaults, with which it still learns small data."""

from __future__ import annotations

from typing import Any

RATIONAL = {"kernel": "rational_quadratic", "kernel_params": {"alpha": 0.5}}
FIXED = {"kernel": "laplacian", "bandwidth": 3.0, "random_state": 7}
DRIFT = {"drift": True, **RATIONAL}
EIGENPRO = {"n_centers": 60, "n_components": 5, "random_state": 3}
STOPPING = {"early_stopping": True, "validation_fraction": 0.3, "n_iter_no_change": 2, "tol": 1e-3, "epochs": 30}
FORKS = {"budget": 40, "rank": 8, "sketch_size": 12, "landmarks": 30, "blocks": 2, "refresh_every": 50, "rcond": 1e-7}
LOGISTIC = {"loss": "logistic", "lr": 1.0}

CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "EigenPro4Regressor": [
        {**EIGENPRO, **RATIONAL, "bandwidth": 2.0, "T": 2, "batch_size": 16, "eta_scale": 0.8, "projection": "pcg"},
        {**EIGENPRO, **STOPPING, "nystrom_from": "centers"},
        {**EIGENPRO, "kernel": "gaussian", "nystrom_samples": 20, "projection": "eigenpro2", "projection_tol": 1e-2},
    ],
    "EigenPro4Classifier": [
        {**EIGENPRO, **RATIONAL, "bandwidth": 2.0, "T": 2, "batch_size": 16, "eta_scale": 0.8, "projection": "pcg"},
        {**EIGENPRO, **STOPPING, "nystrom_from": "centers"},
        {**EIGENPRO, "kernel": "gaussian", "nystrom_samples": 20, "projection": "eigenpro2", "projection_tol": 1e-2},
    ],
    "KernelRidgeCG": [
        {"n_centers": 25, **RATIONAL, "bandwidth": 2.0, "alpha": 0.1, "max_iter": 200, "tol": 1e-5, "random_state": 1}
    ],
    "KernelRidgeCGClassifier": [
        {"n_centers": 25, **RATIONAL, "bandwidth": 2.0, "alpha": 0.1, "max_iter": 200, "tol": 1e-5, "random_state": 1}
    ],
    "BOGDClassifier": [{"budget": 150, **LOGISTIC, "weight_decay": 1e-5, "gamma": 20.0, **FIXED}, DRIFT],
    "BPASClassifier": [{"budget": 40, "C": 0.5, **FIXED}, DRIFT],
    "FOGDClassifier": [{"n_components": 150, **LOGISTIC, **FIXED}, {"drift": True, "n_components": 150}],
    "FOGDRegressor": [{"n_components": 150, "lr": 0.3, **FIXED}],
    "FORKSClassifier": [
        {**FORKS, **LOGISTIC, "on_refresh": "decay", "decay": 0.5, "curvature": 0.25, "clip": None, **FIXED},
        {"compat": "published", "budget": 30, "rank": 6, "fill_lr": 0.5},
        {**DRIFT, "alpha": 0.1, "budget": 30, "rank": 6, "refresh_every": None},
    ],
    "FORKSRegressor": [
        {**FORKS, "budget": 100, "rank": 30, "sketch_size": 40, "fill_lr": 0.8, "on_refresh": "decay", "decay": 0.8},
        {**RATIONAL, "bandwidth": 3.0, "random_state": 7, "budget": 100, "alpha": 0.1},
        {**RATIONAL, "budget": 40, "refresh_every": None},
    ],
    "ForgetronClassifier": [{"budget": 250, **FIXED}, DRIFT],
    "KONSClassifier": [
        {"budget": 60, "tolerance": 1e-4, "alpha": 0.1, "clip": None, **FIXED},
        {**DRIFT, "loss": "logistic", "curvature": 0.25},
    ],
    "KONSRegressor": [{"budget": 60, "tolerance": 1e-4, "alpha": 0.1, **FIXED}, RATIONAL],
    "KernelPerceptronClassifier": [{"budget": 80, **FIXED}, DRIFT],
    "NOGDClassifier": [{"budget": 40, "rank": 8, **LOGISTIC, "fill_lr": 0.8, "rcond": 1e-7, **FIXED}, DRIFT],
    "NOGDRegressor": [{"budget": 100, "rank": 40, "lr": 0.3, "fill_lr": 0.8, "rcond": 1e-7, **FIXED}, RATIONAL],
    "PROSNKONSClassifier": [
        {"budget": 80, "gamma": 2.0, "beta": 0.8, "eps": 0.3, "clip": None, "alpha": 0.1, **FIXED},
        {**DRIFT, "loss": "logistic", "curvature": 0.25, "on_refresh": "reset"},
    ],
    "PROSNKONSRegressor": [
        {"budget": 80, "gamma": 2.0, "beta": 0.8, "eps": 0.3, "alpha": 0.1, **FIXED},
        {**RATIONAL, "budget": 15, "eps": 0.9, "on_refresh": "reset"},
    ],
    "ProjectronClassifier": [{"budget": None, "plus_plus": True, "threshold": 0.2, **FIXED}, DRIFT],
    "RBPClassifier": [{"budget": 60, **FIXED}, DRIFT],
    "SkeGDClassifier": [{**FORKS, **LOGISTIC, "fill_lr": 0.8, "on_refresh": "reset", **FIXED}, DRIFT],
}
