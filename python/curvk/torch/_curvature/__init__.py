"""Curvature measurements on torch modules."""

from ._diagonal import hessian_diagonal
from ._probe import GlassProbe

__all__ = ["GlassProbe", "hessian_diagonal"]
