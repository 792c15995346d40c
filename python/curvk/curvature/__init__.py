"""Measuring where the Hessian is the wrong model: glass density, curvature and the Hessian's diagonal from gradients.

`curvk.torch.GlassProbe` and `curvk.torch.hessian_diagonal` do the same for modules.
"""

from ._layers import Estimate, LayerGlass, Reading
from ._probe import Diagonal, GlassProbe, hessian_diagonal
from ._result import GlassResult

__all__ = ["Diagonal", "Estimate", "GlassProbe", "GlassResult", "LayerGlass", "Reading", "hessian_diagonal"]
