"""Fused optimizer steps, the global norm, and plans that check a model's arrays once.

Arrays on a CUDA device (torch tensors, CuPy arrays, others with DLPack or `__cuda_array_interface__`) are taken as
those on the CPU are, all arguments of a call on one device. Kernels run there in the stream of the arrays' library; a
call returns before they end, but for `global_norm`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .._arrays import Array, empty, on_host
from .._backend import Plan, call
from .._cuda import device_of

__all__ = ["AdamPlan", "LionPlan", "SGDPlan", "adam_step", "global_norm", "lion_step", "sgd_step"]


def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    max_v: Array = None,
    origin: Array = None,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """One step of Adam, AdamW (`decoupled`) or AMSGrad (`max_v`), in place and in one pass.

    With g divided by `grad_scale` and negated if `maximize`::

        g <- g + weight_decay p         or, decoupled,  p <- (1 - lr weight_decay) p
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2  and, with max_v,  max_v <- max(max_v, v)
        p <- p - lr / (1 - beta1^step) m / (sqrt(v or max_v) / sqrt(1 - beta2^step) + eps)

    Args:
        p: parameters, written. float32, float64, float16 or bfloat16 (a uint16 array of bit patterns), any shape. NumPy
            arrays, torch CPU tensors, and anything with DLPack or the buffer protocol are taken as they are.
        g: gradients, of p's dtype and shape.
        m: first moments (exp_avg), written; zeros before step 1. p's dtype, or float32 where p is 16-bit; p's shape.
        v: second moments (exp_avg_sq), written; as m.
        step: number of this step, counting from 1.
        lr: learning rate, >= 0.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: >= 0; added to the gradient (L2) or, with `decoupled`, applied to p itself.
        decoupled: AdamW's weight decay.
        max_v: running maximum of v for AMSGrad, written; as m.
        origin: where the step starts, an array like p; then p is written without being read. SAM restores its weights
            so, in the same pass.
        maximize: ascend instead of descend.
        grad_scale: the factor the gradients carry (loss scaling, accumulation), > 0.

    Raises:
        TypeError: not an array, or a dtype that does not fit p's.
        ValueError: a shape, layout or number out of range; memory shared between arguments.
        BufferError: a read-only array, or one on another device.

    Nothing is written where an error is raised. 28 bytes of traffic per float32 element; the same bits at every thread
    count and SIMD level. Source: Kingma & Ba 2015; Loshchilov & Hutter 2019; Reddi, Kale & Kumar 2018; the order of
    operations is torch's.

    >>> import numpy as np
    >>> p, g = np.ones(3, np.float32), np.array([1, -2, 0], np.float32)
    >>> m, v = np.zeros_like(p), np.zeros_like(p)
    >>> adam_step(p, g, m, v, step=1, lr=0.5)
    >>> p
    array([0.5, 1.5, 1. ], dtype=float32)
    """
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise _not_a_pair(betas) from None
    call(
        "adam_step",
        (p, g, m, v, max_v, origin),
        (step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale),
    )


def _listed(arrays: Sequence[Array] | None) -> list[Array] | None:
    return None if arrays is None else list(arrays)


def _not_a_pair(betas: object, function: str = "adam_step") -> TypeError:
    return TypeError(f"{function}: argument 'betas': got {betas!r}, needs a pair of numbers")


def sgd_step(
    p: Array,
    g: Array,
    buf: Array = None,
    *,
    origin: Array = None,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    first: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """One step of stochastic gradient descent, in place and in one pass.

    With g divided by `grad_scale` and negated if `maximize`::

        g   <- g + weight_decay p                  or, decoupled,  p <- (1 - lr weight_decay) p
        buf <- momentum buf + (1 - dampening) g    or, if first,  buf <- g
        p   <- p - lr d,   d = g without buf, buf with it, g + momentum buf with nesterov

    Args:
        p: parameters, written; dtypes and layouts as in `adam_step`.
        g: gradients, of p's dtype and shape.
        buf: momentum buffer, written; p's dtype, or float32 where p is 16-bit. Needed if momentum > 0.
        origin: as in `adam_step`.
        lr: learning rate, >= 0.
        momentum: >= 0.
        dampening: any finite number.
        nesterov: Nesterov's form; needs momentum > 0 and dampening 0.
        weight_decay: >= 0; added to the gradient (L2) or, with `decoupled`, applied to p itself.
        decoupled: decay as in AdamW.
        maximize: ascend instead of descend.
        first: this is the buffer's first step; it is written without being read, as torch does.
        grad_scale: the factor the gradients carry, > 0.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`.

    20 bytes of traffic per float32 element with momentum, 12 without. Source: Polyak 1964; Sutskever et al. 2013;
    conventions of torch.optim.SGD.

    >>> import numpy as np
    >>> p = np.ones(2, np.float32)
    >>> sgd_step(p, np.array([1, 2], np.float32), lr=0.25)
    >>> p
    array([0.75, 0.5 ], dtype=float32)
    """
    _check_sgd(buf is not None, momentum, dampening, nesterov)
    call(
        "sgd_step",
        (p, g, buf, origin),
        (lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale),
    )


def _check_sgd(buffered: bool, momentum: float, dampening: float, nesterov: bool) -> None:
    if momentum > 0 and not buffered:
        raise ValueError(
            "sgd_step: argument 'buf': got None, needs a momentum buffer because momentum is not 0; "
            "use np.zeros_like(p) (float32 for a 16-bit p)"
        )
    if nesterov and (not momentum > 0 or dampening):
        raise ValueError(f"sgd_step: argument 'nesterov': got True, needs momentum > 0 and dampening 0 ({dampening=})")


def lion_step(
    p: Array,
    g: Array,
    m: Array,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    origin: Array = None,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """One step of Lion, in place and in one pass: every element moves by lr, up or down.

    With g divided by `grad_scale` and negated if `maximize`::

        c = beta1 m + (1 - beta1) g
        p <- (1 - lr weight_decay) p - lr sign(c)
        m <- beta2 m + (1 - beta2) g

    Args:
        p: parameters, written; dtypes and layouts as in `adam_step`.
        g: gradients, of p's dtype and shape.
        m: momentum (exp_avg), written; zeros before the first step. p's dtype, or float32 where p is 16-bit; p's shape.
        lr: learning rate, >= 0. The authors advise a third to a tenth of AdamW's.
        betas: share of the momentum in the direction, and its decay rate; each in [0, 1).
        weight_decay: >= 0, decoupled. The authors advise three to ten times AdamW's.
        origin, maximize, grad_scale: as in `adam_step`.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`.

    Where c is zero the element only decays; NaN stays. 20 bytes of traffic per float32 element, 8 less than Adam.
    Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2.

    >>> import numpy as np
    >>> p, g, m = np.ones(3, np.float32), np.array([5, -0.1, 0], np.float32), np.zeros(3, np.float32)
    >>> lion_step(p, g, m, lr=0.25)
    >>> p
    array([0.75, 1.25, 1.  ], dtype=float32)
    """
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise _not_a_pair(betas, "lion_step") from None
    call("lion_step", (p, g, m, origin), (lr, beta1, beta2, weight_decay, maximize, grad_scale))


def global_norm(arrays: Sequence[Array]) -> float:
    """Euclidean norm of all elements of all arrays together; one read-only sweep.

    Args:
        arrays: arrays of float32, float64, float16 or bfloat16 (uint16), any shapes; dtypes may differ.

    Returns:
        The norm as a float64 sum gives it: inf or NaN if and only if an element is not finite or, for float64, the norm
        itself is above the largest double.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`.

    Arrays may lie on several devices, which are waited for. Squares are summed in double in a fixed order, so the
    result does not depend on threads, SIMD level or device. It does depend on the order of the arrays and, in the last
    bits, on an array's memory order.

    >>> import numpy as np
    >>> global_norm([np.array([3.0]), np.array([[4.0]])])
    5.0
    """
    groups: dict[Any, list[Array]] = {}
    for a in arrays:
        groups.setdefault(_kind(a), []).append(a)
    outs: dict[Any, Array] = {}  # one for each device: sums there go on side by side

    def sums(scale: float) -> tuple[float, bool]:
        total, finite = 0.0, True
        for key, group in groups.items():
            if key not in outs:
                outs[key] = empty(group[0], (2,), "float64", device_of(group[0]))
            try:
                call("sum_squares", (group, outs[key]), (scale,))
            except (TypeError, ValueError, BufferError) as error:
                raise _in_words_of_norm(error, "global_norm", {"x": (arrays, group)}) from None
        for out in map(on_host, outs.values()):
            total += float(out[0])
            finite = finite and not out[1]
        return total, finite

    return scaled_norm(sums, (getattr(group[0], "dtype", None) for group in groups.values()))


def _kind(x: Array) -> Any:
    """What the arrays of one call share: the dtype and, of what is no NumPy array, the device, as its library has them.

    A dtype's name costs ten times its hash, and so does the number of a tensor's device.
    """
    if type(x) is np.ndarray:
        return x.dtype
    device = getattr(x, "device", None)
    return getattr(x, "dtype", None), device_of(x) if device.__hash__ is None else device  # CuPy's have no hash


def scaled_norm(sums: Callable[[float], tuple[float, bool]], dtypes: Iterable[Any]) -> float:
    """The root of a sum of squares.

    Args:
        sums: (scale) -> the sum of (scale x)^2 over all elements x, and whether all are finite.
        dtypes: of the arrays.
    """
    narrow = all(str(d).endswith(("float32", "float16", "uint16")) for d in dtypes)
    total, scale = 0.0, 1.0
    for scale in (1.0, 2.0**-600, 2.0**600):  # the last two only where float64 squares overflow or vanish
        total, finite = sums(scale)
        if not finite:
            return math.nan if math.isnan(total) else math.inf
        if narrow or 1e-200 < total < math.inf:
            break
    return math.sqrt(total) / scale


def _in_words_of_norm(
    error: Exception, function: str, lists: dict[str, tuple[Sequence[Array], list[Array]]]
) -> Exception:
    """An error about the i-th array of a group, told of its place among all arrays.

    Args:
        lists: by the kernel's name of an argument, all arrays that the caller gave and those of the group.
    """

    def place(match: re.Match[str]) -> str:
        name = match[1]
        everything, group = lists[name]
        wanted = group[int(match[2])]
        label = "arrays" if name == "x" else name
        return f"{label}[{next(i for i, a in enumerate(everything) if a is wanted)}]"

    text = re.sub(r"^\w+:", f"{function}:", str(error))
    return type(error)(re.sub(rf"\b({'|'.join(lists)})\[(\d+)\]", place, text))


class AdamPlan(Plan):
    """A model's arrays for Adam, checked once and stepped in one call and one parallel region.

    Args:
        p, g, m, v, max_v, origin: lists of arrays as in `adam_step`, all of one dtype; shapes may differ along the
            lists.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`; lists of different lengths are a ValueError.

    >>> import numpy as np
    >>> p = [np.ones(2, np.float32), np.ones((2, 2), np.float32)]
    >>> g, m, v = ([np.zeros_like(x) for x in p] for _ in range(3))
    >>> plan = AdamPlan(p, g, m, v)
    >>> g[0][:] = 1
    >>> plan.step(step=1, lr=0.5)
    >>> p[0]
    array([0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        p: Sequence[Array],
        g: Sequence[Array],
        m: Sequence[Array],
        v: Sequence[Array],
        *,
        max_v: Sequence[Array] | None = None,
        origin: Sequence[Array] | None = None,
    ) -> None:
        super().__init__("adam_step", (list(p), list(g), list(m), list(v), _listed(max_v), _listed(origin)))

    def set_grads(self, g: Sequence[Array]) -> None:
        """Takes other gradient arrays from now on."""
        p, _, *rest = self._columns
        self.rebind((p, list(g), *rest))

    def step(
        self,
        *,
        step: int,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
        grad_scale: float = 1.0,
    ) -> None:
        """One step of all arrays; arguments and errors as in `adam_step`."""
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise _not_a_pair(betas) from None
        self.run((step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale))


class SGDPlan(Plan):
    """A model's arrays for SGD, checked once and stepped in one call and one parallel region.

    Args:
        p, g, buf, origin: lists of arrays as in `sgd_step`, all of one dtype; shapes may differ along the lists.

    Raises:
        TypeError, ValueError, BufferError: as `sgd_step`; lists of different lengths are a ValueError.

    >>> import numpy as np
    >>> p, g = [np.ones(2)], [np.ones(2)]
    >>> SGDPlan(p, g).step(lr=0.25)
    >>> p
    [array([0.75, 0.75])]
    """

    def __init__(
        self,
        p: Sequence[Array],
        g: Sequence[Array],
        buf: Sequence[Array] | None = None,
        *,
        origin: Sequence[Array] | None = None,
    ) -> None:
        super().__init__("sgd_step", (list(p), list(g), _listed(buf), _listed(origin)))

    def set_grads(self, g: Sequence[Array]) -> None:
        """Takes other gradient arrays from now on."""
        p, _, *rest = self._columns
        self.rebind((p, list(g), *rest))

    def step(
        self,
        *,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
        first: bool = False,
        grad_scale: float = 1.0,
    ) -> None:
        """One step of all arrays; arguments and errors as in `sgd_step`."""
        _check_sgd(self._columns[2] is not None, momentum, dampening, nesterov)
        self.run((lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale))


class LionPlan(Plan):
    """A model's arrays for Lion, checked once and stepped in one call and one parallel region.

    Args:
        p, g, m, origin: lists of arrays as in `lion_step`, all of one dtype; shapes may differ along the lists.

    Raises:
        TypeError, ValueError, BufferError: as `lion_step`; lists of different lengths are a ValueError.

    >>> import numpy as np
    >>> p, g, m = [np.ones(2)], [np.array([3.0, -3.0])], [np.zeros(2)]
    >>> LionPlan(p, g, m).step(lr=0.25)
    >>> p
    [array([0.75, 1.25])]
    """

    def __init__(
        self,
        p: Sequence[Array],
        g: Sequence[Array],
        m: Sequence[Array],
        *,
        origin: Sequence[Array] | None = None,
    ) -> None:
        super().__init__("lion_step", (list(p), list(g), list(m), _listed(origin)))

    def set_grads(self, g: Sequence[Array]) -> None:
        """Takes other gradient arrays from now on."""
        p, _, *rest = self._columns
        self.rebind((p, list(g), *rest))

    def step(
        self,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
        grad_scale: float = 1.0,
    ) -> None:
        """One step of all arrays; arguments and errors as in `lion_step`."""
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise _not_a_pair(betas, "lion_step") from None
        self.run((lr, beta1, beta2, weight_decay, maximize, grad_scale))
