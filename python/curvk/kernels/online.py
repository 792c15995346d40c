"""Online learning in a feature space: each row is predicted before it is learned."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import Array, numpy_view
from .._backend import call
from .._errors import message

__all__ = ["LOSSES", "RULES", "learn"]

LOSSES = ("squared_hinge", "hinge", "logistic", "squared")
"""The losses' names, in the order of the C interface's numbers."""

RULES = ("gradient", "newton", "published", "kons", "ridge")
"""The step rules' names, in the order of the C interface's numbers."""

NEVER = 2**62
"""An `until` that no stream reaches."""


def number_of(op: str, name: str, value: Any, names: tuple[str, ...]) -> int:
    """The place of a name, or an error that names the argument."""
    if not isinstance(value, str) or value not in names:
        raise ValueError(message(op, name, repr(value), f"one of {', '.join(names)}"))
    return names.index(value)


def _need(op: str, name: str, x: Array, shape: tuple[int, ...]) -> None:
    view = numpy_view(x, op, name)
    if view.dtype != np.float64:
        raise TypeError(message(op, name, str(view.dtype), "float64", f"use {name}.astype(np.float64)"))
    if view.shape != shape:
        raise ValueError(message(op, name, f"shape {view.shape}", f"shape {shape}"))


def learn(
    phi: Array,
    y: Array,
    f: Array,
    w: Array,
    inverse: Array = None,
    *,
    rule: str = "newton",
    loss: str = "squared_hinge",
    lr: float = 1.0,
    clip: float = 1.0,
    curvature: float = 0.125,
    until: int | None = None,
    pending: bool = False,
) -> tuple[int, int]:
    """Predicts and learns rows in their order, one after the other; w, inverse and f in place.

    Args:
        phi: features, (n, k), float64 like all arrays here, C-contiguous.
        y: targets, (n, c), an output per column: -1 and 1, or real numbers for the squared loss.
        f: written: the predictions, (n, c), each made before its row is learned.
        w: weights, (c, k).
        inverse: (c, k, k), symmetric positive definite: the inverse of each output's metric A, at first the identity
            over alpha. None for the rule "gradient".
        rule: the step, with g = l'(f), u = A^-1 phi and h(z) = sign(z) max(abs(z) - clip, 0):

            - "gradient": w <- w - lr g phi;
            - "newton": A <- A + (curvature / 2) g^2 phi phi', w <- w - lr g u, and w <- w - h(w.phi) / (phi.u) u;
            - "published": FORKS as released: w <- w - lr g u, w <- w - h(w.phi) / (phi.u + 1e-4) u, and only then
              A <- A + (lr g)^2 phi phi';
            - "kons": before the prediction w <- w - h(w.phi) / (phi.u) u; after it A and w as under "newton";
            - "ridge": A <- A + phi phi', w <- w - lr (g / 2) u: with the squared loss least squares, recursively.
        loss: "squared_hinge", "hinge", "logistic" or "squared".
        lr: rate, >= 0; 1 is the Newton step.
        clip: bound on abs(w.phi), >= 0; math.inf for none.
        curvature: >= 0; for losses of abs(f) and abs(y) up to C: 1 / (8 C^2) for squared and squared hinge, about e^-C
            for logistic. The hinge has none: the bounds of the method do not hold for it.
        until: stops at the row whose loss is that many-th (>= 1): it is predicted, not learned. None: never.
        pending: the first row's f is given and its loss was counted; it is learned with the phi given now.

    Returns:
        Rows that were learned or passed over, and loss rows counted, the one that stopped the call included. A loss
        row is one where g is neither 0 nor NaN or infinite for some output; other outputs stay as they are.

    Raises:
        TypeError, ValueError, BufferError: a wrong dtype, shape, layout, name or number, with nothing written.

    The bits depend on the rows and their order alone, not on how they are cut into calls, on level, threads or backend.
    2 k flops per quiet row and output, some 6 k^2 per loss row. Sources: Hazan, Agarwal & Kale 2007 (Machine Learning
    69); Calandriello, Lazaric & Valko 2017 (arXiv 1706.04892); Wen et al. 2025 (arXiv 2410.11188).

    >>> import numpy as np
    >>> phi, y = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), np.array([[1.0], [1.0], [-1.0]])
    >>> f, w, inverse = np.empty((3, 1)), np.zeros((1, 2)), np.eye(2)[None] / 0.01
    >>> learn(phi, y, f, w, inverse)
    (3, 2)
    >>> f.ravel(), w
    (array([0., 1., 0.]), array([[ 1. , -0.5]]))
    """
    op = "online_learn"
    shapes = [numpy_view(x, op, name).shape for name, x in (("phi", phi), ("y", y))]
    for name, shape in zip(("phi", "y"), shapes, strict=True):
        if len(shape) != 2 or shape[1] == 0:
            raise ValueError(message(op, name, f"shape {shape}", "two axes: rows, and one column or more"))
    (n, k), c = shapes[0], shapes[1][1]
    for name, x, shape in (("phi", phi, (n, k)), ("y", y, (n, c)), ("f", f, (n, c)), ("w", w, (c, k))):
        _need(op, name, x, shape)
    numbers = number_of(op, "loss", loss, LOSSES), number_of(op, "rule", rule, RULES)
    if inverse is not None:
        _need(op, "inverse", inverse, (c, k, k))
    elif rule != "gradient":
        remedy = "np.stack([np.eye(k) / alpha] * c) to begin with"
        raise TypeError(message(op, "inverse", "None", f"an array ({c}, {k}, {k}) for the rule {rule}", remedy))
    if rule == "ridge" and loss != "squared":
        raise ValueError(message(op, "loss", repr(loss), "'squared' for the rule ridge"))
    counts = np.zeros(2, np.int64)
    limit = NEVER if until is None else until
    call(op, (phi, y, f, w, inverse, counts), (n, k, c, *numbers, lr, clip, curvature, limit, int(bool(pending))))
    return int(counts[0]), int(counts[1])
