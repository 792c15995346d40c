"""The models that are compared, and one fit in a process of its own.

    python models.py '{"task": "folder", "model": "KernelRidgeCG", "n_centers": 500, ...}'

prints one line of JSON: seconds, error, and the peaks of this process's memory.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from data import Task

WARM_UP = 200  # rows of a first fit, so that what loads lazily is loaded


def gaussian(bandwidth):
    """scikit-learn's keywords for exp(-|x - z|^2 / (2 h^2))."""
    return {"kernel": "rbf", "gamma": 0.5 / bandwidth**2}


def eigenpro(task, spec, **options):
    from curvk.machines import EigenPro4Classifier, EigenPro4Regressor

    kind = EigenPro4Regressor if task.unit else EigenPro4Classifier
    chosen = {key: spec[key] for key in ("epochs", "nystrom_samples", "n_components", "T") if key in spec}
    kernel = {"kernel": spec.get("kernel", "gaussian"), "bandwidth": spec["bandwidth"]}
    return kind(n_centers=spec["n_centers"], random_state=spec["seed"], **kernel, **options, **chosen)


def kernel_ridge_cg(task, spec):
    from curvk.machines import KernelRidgeCG, KernelRidgeCGClassifier

    kind = KernelRidgeCG if task.unit else KernelRidgeCGClassifier
    kernel = {"kernel": spec.get("kernel", "gaussian"), "bandwidth": spec["bandwidth"]}
    chosen = {key: spec[key] for key in ("max_iter", "tol") if key in spec}
    return kind(n_centers=spec["n_centers"], alpha=spec["alpha"], random_state=spec["seed"], **kernel, **chosen)


class OneHot:
    """A regressor of scikit-learn as a classifier: on a column of zeros and ones for each class."""

    def __init__(self, regressor):
        self.regressor = regressor

    def fit(self, x, y):
        self.classes = np.unique(y)
        self.regressor.fit(x, (y[:, None] == self.classes).astype(x.dtype))
        return self

    def predict(self, x):
        return self.classes[self.regressor.predict(x).argmax(axis=1)]


def kernel_ridge(task, spec):
    from sklearn.kernel_ridge import KernelRidge

    model = KernelRidge(alpha=spec["alpha"], **gaussian(spec["bandwidth"]))
    return model if task.unit else OneHot(model)


def nystroem(task, spec):
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    features = Nystroem(n_components=spec["n_centers"], random_state=spec["seed"], **gaussian(spec["bandwidth"]))
    model = make_pipeline(features, Ridge(alpha=spec["alpha"], fit_intercept=False))
    return model if task.unit else OneHot(model)


def svc(task, spec):
    from sklearn.svm import SVC, SVR

    kind = SVR if task.unit else SVC
    return kind(C=spec["C"], cache_size=500, **gaussian(spec["bandwidth"]))


def ridge(task, spec):
    from sklearn.linear_model import Ridge

    return Ridge(alpha=spec["alpha"])


MODELS = {
    "EigenPro4": eigenpro,
    "EigenPro4, projection eigenpro2": lambda task, spec: eigenpro(task, spec, projection="eigenpro2"),
    "EigenPro4, nystrom_from centers": lambda task, spec: eigenpro(task, spec, nystrom_from="centers"),
    "KernelRidgeCG": kernel_ridge_cg,
    "Nystroem + Ridge": nystroem,
    "KernelRidge": kernel_ridge,
    "SVC": svc,
    "Ridge": ridge,  # linear
}


def save(task: Task, folder: Path) -> None:
    """The arrays of a task as files, so that reading them costs a fit no memory but their own."""
    arrays = {"x": task.train[0], "y": task.train[1], "x_test": task.test[0], "y_test": task.test[1]}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "task.json").write_text(json.dumps({"name": task.name, "unit": task.unit}))


def restore(folder: Path) -> Task:
    x, y, x_test, y_test = (np.load(folder / f"{name}.npy") for name in ("x", "y", "x_test", "y_test"))
    return Task(train=(x, y), test=(x_test, y_test), **json.loads((folder / "task.json").read_text()))


def memory(key: str) -> float:
    """Of this process, in MiB: VmRSS now, or VmHWM, the most so far; NaN where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def fit(spec: dict) -> dict:
    """Trains once and predicts once. One thread's seconds are the processor's, so that other work does not count."""
    import sklearn
    from threadpoolctl import threadpool_limits

    task = restore(Path(spec["task"]))
    make = MODELS[spec["model"]]
    with threadpool_limits(spec["threads"]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a first fit of few rows has reasons for warnings
        small = {"n_centers": 50, "nystrom_samples": 50, "n_components": 5, "epochs": 1}
        make(task, spec | {k: v for k, v in small.items() if k in spec}).fit(*(a[:WARM_UP] for a in task.train))
    model = make(task, spec)
    before = memory("VmRSS")
    clock = time.process_time if spec["threads"] == 1 else time.perf_counter
    with threadpool_limits(spec["threads"]):
        start = clock()
        model.fit(*task.train)
        fitted = clock()
        after = memory("VmHWM")
        found = model.predict(task.test[0])
        done = clock()
    iterations = getattr(model, "n_iter_", None)  # SVC has one for each pair of classes
    return {
        "fit": fitted - start,
        "predict": done - fitted,
        "error": task.error(found),
        "n_iter": 0 if iterations is None else int(np.max(iterations)),
        "before": before,
        "fit peak": after,
        "peak": memory("VmHWM"),
        "sklearn": sklearn.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(fit(json.loads(sys.argv[1]))))
