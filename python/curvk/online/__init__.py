"""Learners from streams: each row is predicted before it is learned; needs the extra `curvk[learn]`.

A learner is a feature map, a step rule and a budget rule; the classes name the combinations that have one.
`curvk.online.river` has them behind river's interface.
"""

try:
    import scipy  # type: ignore[import-untyped]  # noqa: F401
    import sklearn  # noqa: F401
except ModuleNotFoundError as error:
    text = f"curvk.online needs scikit-learn and scipy ({error.name} is missing); pip install 'curvk[learn]'"
    raise ImportError(text) from error

from ._expansions import (
    BOGDClassifier,
    BPASClassifier,
    ForgetronClassifier,
    KernelPerceptronClassifier,
    ProjectronClassifier,
    RBPClassifier,
)
from ._forks import FORKSClassifier, FORKSRegressor, NOGDClassifier, NOGDRegressor, SkeGDClassifier
from ._kons import (
    FOGDClassifier,
    FOGDRegressor,
    KONSClassifier,
    KONSRegressor,
    PROSNKONSClassifier,
    PROSNKONSRegressor,
)

__all__ = [
    "BOGDClassifier",
    "BPASClassifier",
    "FOGDClassifier",
    "FOGDRegressor",
    "FORKSClassifier",
    "FORKSRegressor",
    "ForgetronClassifier",
    "KONSClassifier",
    "KONSRegressor",
    "KernelPerceptronClassifier",
    "NOGDClassifier",
    "NOGDRegressor",
    "PROSNKONSClassifier",
    "PROSNKONSRegressor",
    "ProjectronClassifier",
    "RBPClassifier",
    "SkeGDClassifier",
]
