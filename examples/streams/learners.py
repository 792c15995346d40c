"""The learners that are compared: curvk's, those of river and scikit-learn, and two floors.

A learner is a function of a stream X (n, d), y (n,) and a `Setting`; it predicts each row and then learns it, and gives
what was mistaken (n,), the seconds it took, and notes: on how many rows or features a prediction rests, for one.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CLOCK = time.process_time  # on one thread: other work on the machine does not count
BATCH = 2000


@dataclass(frozen=True)
class Setting:
    """What all learners of a stream of `rows` rows have in common."""

    bandwidth: float
    budget: int
    rank: int
    rows: int
    seed: int = 0

    @property
    def often(self) -> int:
        """Rows with a loss from one refresh to the next: the authors' number for their adversarial stream."""
        return max(1, int(0.005 * (self.rows - self.budget)))

    @property
    def quarter(self) -> int:
        """Landmarks, a third of what the sketch has columns; by default it is two thirds."""
        return self.budget // 4

    @property
    def seldom(self) -> int:
        """The same for their stationary streams."""
        return max(1, int(0.3 * self.rows))


Result = tuple[np.ndarray, float, dict[str, int]]
Learner = Callable[[np.ndarray, np.ndarray, Setting], Result]


# Parameters of a learner that come of the setting, by the setting's name for them.
BUDGET = {"budget": "budget"}
RANKED = BUDGET | {"rank": "rank"}
OFTEN = RANKED | {"refresh_every": "often"}
SELDOM = RANKED | {"refresh_every": "seldom"}


def make(kind: str, setting: Setting, fields: dict[str, str], **options):
    """A classifier of curvk.online with the bandwidth and the seed of the setting, and the fields named."""
    import curvk.online

    common = {"kernel": "gaussian", "bandwidth": setting.bandwidth, "random_state": setting.seed}
    common |= {parameter: getattr(setting, field) for parameter, field in fields.items()}
    return getattr(curvk.online, kind)(**common | options)


def ours(kind: str, fields: dict[str, str] = BUDGET, **options) -> Learner:
    """A learner of curvk."""

    def stream(X, y, setting):
        model = make(kind, setting, fields, **options)
        start = CLOCK()
        _, mistakes = model.progressive(X, y, classes=[0, 1], progress=False)
        seconds = CLOCK() - start
        notes = {"support": int(model.n_support_), "drifts": int(model.drifts_)}
        return np.diff(mistakes, prepend=0) > 0, seconds, notes

    return stream


# ---- peers -----------------------------------------------------------------------------------------------------------


def river(X, y, setting):
    """River's random Fourier features and logistic regression, a row at a time; making the dicts does not count.

    Its features are cosines of one column each, `budget` for every column: their kernel is a sum over the columns.
    """
    from river import feature_extraction, linear_model

    features = feature_extraction.RBFSampler(0.5 / setting.bandwidth**2, setting.budget, setting.seed)
    model = features | linear_model.LogisticRegression()
    names = [f"x{j}" for j in range(X.shape[1])]
    rows = [dict(zip(names, x, strict=True)) for x in X.tolist()]
    labels, mistaken = y.astype(bool).tolist(), np.zeros(len(y), bool)
    start = CLOCK()
    for i, (x, label) in enumerate(zip(rows, labels, strict=True)):
        mistaken[i] = (model.predict_one(x) or False) != label
        model.learn_one(x, label)
    return mistaken, CLOCK() - start, {"support": setting.budget}


def nystroem(setting, X):
    """scikit-learn's features of the first `budget` rows, which are as many; they stay as they are."""
    from sklearn.kernel_approximation import Nystroem

    gamma, first = 0.5 / setting.bandwidth**2, X[: setting.budget]
    return Nystroem(gamma=gamma, n_components=len(first), random_state=setting.seed).fit(first)


def one_by_one(model, features, y) -> np.ndarray:
    """A linear model of scikit-learn, a row at a time; 0 before the first. Its scores cost NumPy's product alone."""
    mistaken = np.zeros(len(y), bool)
    for i in range(len(y)):
        mistaken[i] = (i > 0 and features[i] @ model.coef_[0] + model.intercept_[0] > 0) != y[i]
        model.partial_fit(features[i : i + 1], y[i : i + 1], classes=[0, 1])
    return mistaken


def nystroem_sgd(X, y, setting):
    """Features of all rows at once, which a stream would not allow; then SGD a row at a time."""
    from sklearn.linear_model import SGDClassifier

    start = CLOCK()
    mistaken = one_by_one(SGDClassifier(random_state=setting.seed), nystroem(setting, X).transform(X), y)
    return mistaken, CLOCK() - start, {"support": setting.budget}


def nystroem_sgd_batches(X, y, setting):
    """The same in batches of 2,000, predicted before they are learned: not a row of a batch helps the next."""
    from sklearn.linear_model import SGDClassifier

    start, mistaken = CLOCK(), np.empty(len(y), bool)
    features, model = nystroem(setting, X), SGDClassifier(random_state=setting.seed)
    for i in range(0, len(y), BATCH):
        phi, labels = features.transform(X[i : i + BATCH]), y[i : i + BATCH]
        mistaken[i : i + BATCH] = labels != (model.predict(phi) if i else 0)
        model.partial_fit(phi, labels, classes=[0, 1])
    return mistaken, CLOCK() - start, {"support": setting.budget}


def linear(kind: str) -> Learner:
    def stream(X, y, setting):
        import sklearn.linear_model

        start = CLOCK()
        mistaken = one_by_one(getattr(sklearn.linear_model, kind)(random_state=setting.seed), X, y)
        return mistaken, CLOCK() - start, {}

    return stream


# ---- floors ----------------------------------------------------------------------------------------------------------


def last_label(X, y, setting):
    """What came last comes again; at first 0."""
    return np.diff(y, prepend=0) != 0, 0.0, {}


def commonest_label(X, y, setting):
    """What came most often so far; 0 where both did."""
    before = np.cumsum(y) - y
    return (2 * before > np.arange(len(y))) != y, 0.0, {}


def quiet(learner: Learner) -> Learner:
    """Without scikit-learn's warnings that a model has not converged."""

    def stream(X, y, setting):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return learner(X, y, setting)

    return stream


SKETCHED = ("rank", "refresh_every")


def forks(fields: dict[str, str] = RANKED, **options) -> Learner:
    return ours("FORKSClassifier", fields, **options)


LEARNERS: dict[str, Learner] = {
    "FORKS": forks(),
    "FORKS, s_m = B / 4": forks(RANKED | {"landmarks": "quarter"}),
    "FORKS, drift": forks(drift=True),
    "FORKS, often": forks(OFTEN),
    "FORKS, often, decay 0.9": forks(OFTEN, on_refresh="decay", decay=0.9),
    "FORKS, often, reset": forks(OFTEN, on_refresh="reset"),
    "FORKS published, often": forks(OFTEN, compat="published"),
    "FORKS published, seldom": forks(SELDOM, compat="published"),
    "SkeGD": ours("SkeGDClassifier", RANKED),
    "SkeGD, s_m = B / 4": ours("SkeGDClassifier", RANKED | {"landmarks": "quarter"}),
    "NOGD": ours("NOGDClassifier", RANKED),
    "NOGD, rank = B": ours("NOGDClassifier", BUDGET | {"rank": "budget"}),  # as many features as KONS
    "FOGD": ours("FOGDClassifier", {"n_components": "budget"}),
    "PROS-N-KONS": ours("PROSNKONSClassifier"),
    "PROS-N-KONS, reset": ours("PROSNKONSClassifier", on_refresh="reset"),
    "KONS": ours("KONSClassifier"),
    "RBP": ours("RBPClassifier"),
    "Forgetron": ours("ForgetronClassifier"),
    "BPA-S": ours("BPASClassifier"),
    "Projectron": ours("ProjectronClassifier"),
    "Projectron++": ours("ProjectronClassifier", plus_plus=True),
    "BOGD": ours("BOGDClassifier"),
    "kernel perceptron, no budget": ours("KernelPerceptronClassifier", {}, budget=None),
    "river RBFSampler + LogisticRegression": river,
    "Nystroem + SGDClassifier, by row": quiet(nystroem_sgd),
    "Nystroem + SGDClassifier, by 2,000": quiet(nystroem_sgd_batches),
    "SGDClassifier, linear": quiet(linear("SGDClassifier")),
    "Perceptron, linear": quiet(linear("Perceptron")),
    "commonest label so far": commonest_label,
    "last label again": last_label,
}
SLOW = {"river RBFSampler + LogisticRegression": 600_000}  # numbers of a stream above which a run takes minutes

# The study of restarts: beside all these, what a refresh may leave. Decay 0 forgets the metric and keeps the weights.
RESTARTS: dict[str, Learner] = {
    "FORKS, often, decay 0": forks(OFTEN, on_refresh="decay", decay=0.0),
    "SkeGD, often": ours("SkeGDClassifier", OFTEN),
    "SkeGD, often, reset": ours("SkeGDClassifier", OFTEN, on_refresh="reset"),
}

# The study of bandwidths: and what the metric's begin and the rate of a first-order step do to it.
SPREAD: dict[str, Learner] = {
    name: LEARNERS[name] for name in ("FORKS", "SkeGD", "NOGD", "FOGD", "PROS-N-KONS", "KONS", "BPA-S")
} | {
    "FORKS, alpha = 1": forks(alpha=1.0),
    "KONS, alpha = 0.01": ours("KONSClassifier", alpha=0.01),
    "NOGD, lr = 5": ours("NOGDClassifier", RANKED, lr=5.0),
}

ALL = LEARNERS | RESTARTS | SPREAD
DRAWN = ("FORKS", "NOGD", "FOGD", "PROS-N-KONS", "KONS", "BPA-S", "RBP", "last label again")  # mistakes against rows
