"""Kernel machines with scikit-learn's habits on the fused Gram engine; needs the extra `curvk[learn]`."""

try:
    import scipy  # type: ignore[import-untyped]  # noqa: F401
    import sklearn  # noqa: F401
except ModuleNotFoundError as error:
    text = f"curvk.machines needs scikit-learn and scipy ({error.name} is missing); pip install 'curvk[learn]'"
    raise ImportError(text) from error

from ._cg import KernelRidgeCG, KernelRidgeCGClassifier
from ._eigenpro import EigenPro4Classifier, EigenPro4Regressor

__all__ = ["EigenPro4Classifier", "EigenPro4Regressor", "KernelRidgeCG", "KernelRidgeCGClassifier"]
