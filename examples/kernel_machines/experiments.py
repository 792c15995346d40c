"""The shorter experiments: projections, the point where iterations end, and the choice of bandwidth and alpha."""

import warnings

import curvk
import numpy as np
from curvk.kernels import gram
from curvk.machines import EigenPro4Classifier, EigenPro4Regressor, KernelRidgeCG, KernelRidgeCGClassifier
from data import Task
from sklearn.exceptions import ConvergenceWarning

PROJECTIONS = {
    "eigenpro2": {"projection": "eigenpro2"},
    "eigenpro2, T = 1": {"projection": "eigenpro2", "T": 1},
    "pcg": {"projection": "pcg"},
    "cholesky": {"projection": "cholesky"},
    "cholesky, T = 1": {"projection": "cholesky", "T": 1},
    "cholesky, nystrom_from centers": {"projection": "cholesky", "nystrom_from": "centers"},
}


def dense(task: Task, centers, kernel, ridge):
    """The normal equations on these centers, ridge added to K'K, in float64."""
    (x, y), (x_test, _) = task.train, task.test
    K, test = (gram.block(a.astype(float), centers.astype(float), **kernel) for a in (x, x_test))
    targets = np.eye(y.max() + 1)[y]
    return test @ np.linalg.solve(K.T @ K + ridge * np.eye(len(centers)), K.T @ targets)


def projections(task: Task, seeds=range(3), n_centers=2000, epochs=2) -> dict:
    """Test error after each epoch with each projection, laplacian kernel, h = 6, the first rows as centers."""
    kernel = {"kernel": "laplacian", "bandwidth": 6.0}
    centers = np.unique(task.train[0][: n_centers + 500], axis=0, return_index=True)[1]
    centers = task.train[0][np.sort(centers)[:n_centers]]
    found = {"dense": task.error(dense(task, centers, kernel, 0.1).argmax(axis=1)), "eigenpro": {}}
    for title, options in PROJECTIONS.items():
        runs = []
        for seed in seeds:
            model = EigenPro4Classifier(
                centers=centers, nystrom_samples=1000, n_components=50, random_state=seed, **kernel, **options
            )
            errors = []
            for _ in range(epochs):
                model.partial_fit(*task.train, classes=np.unique(task.train[1]))
                errors.append(task.error(model.predict(task.test[0])))
            runs.append(errors)
        found["eigenpro"][title] = {"T": model.T_, "batch": model.batch_size_, "errors": runs}
    return found


def bias(n=200, p=40, epochs=3000) -> list[dict]:
    """How far from least squares on the centers EigenPro 4 ends, by where its preconditioner's sample comes from.

    A smooth function of three variables with noise, in float64; full batches, exact projections, and so many epochs
    that nothing moves any more. q is the number of flattened eigenvalues.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 3))
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * rng.standard_normal(n)
    kernel = {"kernel": "laplacian", "bandwidth": 2.0}
    K = gram.block(x, x[:p], **kernel)
    best = K @ np.linalg.lstsq(K, y)[0]
    rows = []
    for source in ("data", "centers"):
        for q in (1, 5, 15):
            model = EigenPro4Regressor(
                centers=x[:p],
                nystrom_from=source,
                nystrom_samples=p,
                n_components=q,
                T=1,
                batch_size=n,
                eta_scale=0.5,
                epochs=epochs,
                projection="cholesky",
                random_state=0,
                **kernel,
            ).fit(x, y)
            f = model.predict(x)
            rows.append(
                {
                    "nystrom_from": source,
                    "q": q,
                    "difference": float(np.linalg.norm(f - best) / np.linalg.norm(best)),
                    "mse": float(np.mean(np.square(f - y))),
                    "least mse": float(np.mean(np.square(best - y))),
                }
            )
    return rows


def tune(task: Task, threads, rows=40_000, n_centers=1000) -> str:
    """Errors on a fifth of (some of) the training rows, for bandwidths around the median distance and some alphas."""
    x, y = (a[:rows] for a in task.train)
    cut = 4 * len(y) // 5
    part = Task(task.name, (x[:cut], y[:cut]), (x[cut:], y[cut:]), task.unit)
    median = gram.median_distance(x[:1000])
    kind = KernelRidgeCG if task.unit else KernelRidgeCGClassifier
    lines = [f"{task.name}: median distance {median:.3g}"]
    with curvk.threads(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for factor in (0.25, 0.5, 1, 2):
            for alpha in (1e-3, 1e-2, 1e-1, 1, 10):
                options = {"kernel": "gaussian", "bandwidth": factor * median, "alpha": alpha, "random_state": 0}
                model = kind(n_centers, tol=1e-2, **options).fit(*part.train)
                error = part.error(model.predict(part.test[0]))
                lines.append(f"  bandwidth {factor * median:.3g}, alpha {alpha:g}: {error:.4f}")
    return "\n".join(lines)
