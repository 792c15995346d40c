"""Optimizer steps in fewer bytes: 16-bit parameters, 16- and 8-bit states; what else a step needs, in the same sweep.

An average of the parameters, a bfloat16 copy and zeroed gradients are options of the sweep; what is off costs nothing.
Arrays on a CUDA device are taken as those on the CPU are, all arguments of a call on one device; codes lie there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .._arrays import Array, empty, numpy_view
from .._backend import Plan, call
from .._cuda import device_of
from .._errors import message
from .noise import _stream, _word, _words
from .optim import _check_sgd, _listed, _not_a_pair

__all__ = [
    "FORMATS",
    "ROUNDINGS",
    "AdamSweepPlan",
    "Codes",
    "SGDSweepPlan",
    "adam_sweep",
    "dequantize",
    "quantize",
    "sgd_sweep",
]

ROUNDINGS = ("nearest", "stochastic", "kahan", "split16")
"""How 16-bit parameters are stored, in the order of the C interface's numbers."""

FORMATS = {"curvk": 32, "bitsandbytes": 256}
"""The 8-bit formats and how many elements share a scale."""

_SUFFIX = {"curvk": "8", "bitsandbytes": "8b"}


class Codes(NamedTuple):
    """An array of floats in 8 bits an element.

    Args:
        codes: uint8, of the array's shape.
        scales: float32, one for each group in C order: ceil(n / 32) or, for bitsandbytes, ceil(n / 256).
        format: "curvk" or "bitsandbytes".
    """

    codes: Array
    scales: Array
    format: str = "curvk"


State = Any  # an array, or Codes


def quantize(x: Array, *, signed: bool = True, format: str = "curvk", out: Codes | None = None) -> Codes:
    """Turns an array into 8-bit codes, to nearest.

    Args:
        x: float32 array of any shape.
        signed: False for second moments, which are >= 0 (a sign is dropped) and spread over twice as many decades.
        format: "curvk": groups of 32, no positive x becomes 0. "bitsandbytes": its dynamic map in blocks of 256.
        out: codes and scales to write; C-contiguous, of `format`.

    Returns:
        The codes. A group that holds NaN or infinity is all NaN.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`; an unknown format.

    Every group's largest abs(x) comes back exactly, and codes that were made so are made again from the numbers that
    they stand for. Error on normal numbers, relative to their root mean square: 0.64 % (bitsandbytes 1.09 %). Source:
    curvk/sweep.h; Dettmers et al. 2022 (arXiv 2110.02861).

    >>> import numpy as np
    >>> x = np.array([1.0, -0.5, 0.001], np.float32)
    >>> q = quantize(x)
    >>> q.codes, q.scales
    (array([127, 161,   4], dtype=uint8), array([1.], dtype=float32))
    >>> dequantize(q)
    array([ 1.000000e+00, -4.980315e-01,  9.919414e-04], dtype=float32)
    """
    if out is None:
        device = device_of(x)
        view, group = numpy_view(x, "quantize", "x", device), _group("quantize", format)
        scales = empty(x, (-(-view.size // group),), "float32", device)
        out = Codes(empty(x, view.shape, "uint8", device), scales, format)
    elif out.format != format:
        raise ValueError(message("quantize", "out", f"codes of format {out.format!r}", f"{format!r}"))
    call("quantize" + _suffix("quantize", out), (x, out.codes, out.scales), (bool(signed),))
    return out


def dequantize(q: Codes, *, signed: bool = True, out: Array = None) -> Any:
    """The numbers that codes stand for.

    Args:
        q: codes of either format.
        signed: as they were quantized.
        out: float32 array of the codes' shape to write, C-contiguous.

    Returns:
        `out`, or a new array.

    Raises:
        TypeError, ValueError, BufferError: as `quantize`.

    >>> import numpy as np
    >>> dequantize(quantize(np.array([2, 1e-6], np.float32), signed=False), signed=False)
    array([2.000000e+00, 9.798541e-07], dtype=float32)
    """
    op = "dequantize" + _suffix("dequantize", q)
    if out is None:
        device = device_of(q.codes)
        out = empty(q.codes, numpy_view(q.codes, op, "codes", device).shape, "float32", device)
    call(op, (out, q.codes, q.scales), (bool(signed),))
    return out


def _group(function: str, format: Any) -> int:
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(message(function, "format", repr(format), f"one of {', '.join(FORMATS)}"))
    return FORMATS[format]


def _suffix(function: str, q: Any) -> str:
    if not isinstance(q, Codes):
        raise TypeError(message(function, "q", type(q).__name__, "curvk.kernels.sweep.Codes"))
    _group(function, q.format)
    return _SUFFIX[q.format]


def _kind(op: str, state: State) -> str:
    """The suffix of the kernel that takes such a state."""
    if isinstance(state, Codes):
        return _suffix(op, state)
    if state is None:
        return ""
    dtype = str(getattr(state, "dtype", ""))
    return "16" if dtype.endswith(("uint16", "int16", "bfloat16")) else ""


def _columns_of(name: str, states: Sequence[State]) -> tuple[list[Array], ...]:
    """The arrays of a list of states of one kind: the states, or their codes and their scales."""
    if not states or not isinstance(states[0], Codes):
        return (list(states),)
    for i, s in enumerate(states):
        if not isinstance(s, Codes) or s.format != states[0].format:
            found = f"{s.format!r}" if isinstance(s, Codes) else type(s).__name__
            raise TypeError(
                message("sweep", f"{name}[{i}]", found, f"Codes of format {states[0].format!r}, as {name}[0]")
            )
    return [s.codes for s in states], [s.scales for s in states]


class _Options(NamedTuple):
    """What any sweep takes besides its own numbers."""

    rounding: str
    ema_decay: float
    zero_grad: bool
    draw: int
    seed: int


def _extra(name: str, o: _Options) -> tuple[Any, ...]:
    """The last scalars of the kernel."""
    if not isinstance(o.rounding, str) or o.rounding not in ROUNDINGS:
        raise ValueError(message(name, "rounding", repr(o.rounding), f"one of {', '.join(ROUNDINGS)}"))
    seed, _ = _stream(name, o.seed, "uniform")
    return ROUNDINGS.index(o.rounding), o.ema_decay, bool(o.zero_grad), _word(name, "draw", o.draw), seed


class _SweepPlan:
    """A model's arrays for a sweep, checked once and stepped in one call and one parallel region."""

    _single = False  # one array, which errors name without a place in a list

    def __init__(
        self,
        op: str,
        p: Sequence[Array],
        g: Sequence[Array],
        states: dict[str, Sequence[State] | None],
        tables: tuple[Sequence[Array] | None, ...],
        low: Sequence[Array] | None,
        tensor: int | Sequence[int],
    ) -> None:
        rows = len(p)
        first = next((s for s in states.values() if s is not None and len(s)), [None])[0]
        kind = _kind(op, first)
        columns: list[Any] = []
        for name, column in states.items():
            columns += (None,) if column is None else _columns_of(name, column)
        words = np.full(rows, _word(op, "tensor", tensor)) if np.ndim(tensor) == 0 else _words(op, "tensor", tensor)
        self._op, self._halved, self._wide = op, low is not None, rows > 0 and _wide(op, p[0])
        columns = [list(p), list(g), *columns, _listed(low), *(_listed(t) for t in tables)]
        if self._single:
            columns = [c and c[0] for c in columns]
        self._plan = Plan(op + kind, (*columns, words, np.zeros(rows, np.int64)))

    def set_grads(self, g: Sequence[Array]) -> None:
        """Takes other gradient arrays from now on."""
        p, _, *rest = self._plan._columns
        self._plan.rebind((p, list(g), *rest))

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} is bound to other objects' memory and cannot be copied or pickled; make another one"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._plan._op}, {len(self._plan._columns[0])} arrays)"

    def _run(self, scalars: tuple[Any, ...], o: _Options) -> None:
        extra = _extra(self._op, o)
        if o.rounding != "nearest" and self._wide:
            needed = "'nearest' for parameters that are not 16-bit"
            raise ValueError(message(self._op, "rounding", repr(o.rounding), needed))
        if o.rounding in ("kahan", "split16") and not self._halved:
            needed = f"the low halves that rounding={o.rounding!r} keeps"
            raise ValueError(message(self._op, "low", "None", needed, "use np.zeros_like(p)"))
        self._plan.run((*scalars, *extra))


def _wide(op: str, p: Array) -> bool:
    return numpy_view(p, op, "p[0]", device_of(p)).itemsize > 2


def _in_lists(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: None if x is None else [x] for name, x in arrays.items()}


class AdamSweepPlan(_SweepPlan):
    """`adam_sweep` for lists of arrays, checked once and stepped in one call and one parallel region.

    Args:
        p, g, m, v, max_v, low, ema, shadow, origin: lists of arrays (m, v: or of `Codes`) as in `adam_sweep`, all of
            one dtype.
        tensor: a tensor word, or one for each array.

    Raises:
        TypeError, ValueError, BufferError: as `adam_sweep`; lists of different lengths are a ValueError.

    >>> import numpy as np
    >>> p, g = [np.ones(2, np.float32)], [np.ones(2, np.float32)]
    >>> m, v = ([quantize(np.zeros(2, np.float32))] for _ in range(2))
    >>> AdamSweepPlan(p, g, m, v).step(step=1, lr=0.5)
    >>> p[0]
    array([0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        p: Sequence[Array],
        g: Sequence[Array],
        m: Sequence[State],
        v: Sequence[State],
        *,
        max_v: Sequence[Array] | None = None,
        low: Sequence[Array] | None = None,
        ema: Sequence[Array] | None = None,
        shadow: Sequence[Array] | None = None,
        origin: Sequence[Array] | None = None,
        tensor: int | Sequence[int] = 0,
    ) -> None:
        states: dict[str, Sequence[State] | None] = {"m": m, "v": v}
        kinds = {_kind("adam_sweep", s) for column in (m, v) for s in column}
        if len(kinds) > 1:
            raise TypeError(message("adam_sweep", "v", "states of another kind", "all of m and v stored alike"))
        if kinds <= {""}:
            states["max_v"] = max_v
        elif max_v is not None:
            raise ValueError(message("adam_sweep", "max_v", "an array", "None beside 16- and 8-bit states"))
        super().__init__("adam_sweep", p, g, states, (ema, shadow, origin), low, tensor)

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
        rounding: str = "nearest",
        ema_decay: float = 0.0,
        zero_grad: bool = False,
        draw: int = 0,
        seed: int = 0,
    ) -> None:
        """One step of all arrays; arguments and errors as in `adam_sweep`."""
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise _not_a_pair(betas) from None
        numbers = (step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize, grad_scale)
        self._run(numbers, _Options(rounding, ema_decay, zero_grad, draw, seed))


class SGDSweepPlan(_SweepPlan):
    """`sgd_sweep` for lists of arrays, checked once and stepped in one call and one parallel region.

    Args:
        p, g, buf, low, ema, shadow, origin: lists of arrays (buf: or of `Codes`) as in `sgd_sweep`, all of one dtype.
        tensor: a tensor word, or one for each array.

    Raises:
        TypeError, ValueError, BufferError: as `sgd_sweep`; lists of different lengths are a ValueError.

    >>> import numpy as np
    >>> p, g = [np.ones(2)], [np.ones(2)]
    >>> SGDSweepPlan(p, g).step(lr=0.25, zero_grad=True)
    >>> p, g
    ([array([0.75, 0.75])], [array([0., 0.])])
    """

    def __init__(
        self,
        p: Sequence[Array],
        g: Sequence[Array],
        buf: Sequence[State] | None = None,
        *,
        low: Sequence[Array] | None = None,
        ema: Sequence[Array] | None = None,
        shadow: Sequence[Array] | None = None,
        origin: Sequence[Array] | None = None,
        tensor: int | Sequence[int] = 0,
    ) -> None:
        self._buffered = buf is not None
        super().__init__("sgd_sweep", p, g, {"buf": buf}, (ema, shadow, origin), low, tensor)

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
        rounding: str = "nearest",
        ema_decay: float = 0.0,
        zero_grad: bool = False,
        draw: int = 0,
        seed: int = 0,
    ) -> None:
        """One step of all arrays; arguments and errors as in `sgd_sweep`."""
        _check_sgd(self._buffered, momentum, dampening, nesterov)
        numbers = (lr, momentum, dampening, weight_decay, nesterov, decoupled, maximize, first, grad_scale)
        self._run(numbers, _Options(rounding, ema_decay, zero_grad, draw, seed))


class _OneAdam(AdamSweepPlan):
    _single = True


class _OneSGD(SGDSweepPlan):
    _single = True


def adam_sweep(
    p: Array,
    g: Array,
    m: State,
    v: State,
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
    rounding: str = "nearest",
    low: Array = None,
    ema: Array = None,
    ema_decay: float = 0.0,
    shadow: Array = None,
    zero_grad: bool = False,
    draw: int = 0,
    seed: int = 0,
    tensor: int = 0,
) -> None:
    """`curvk.kernels.optim.adam_step` with parameters and states that may be stored in fewer bytes, in one pass.

    Args:
        p, g, step, lr, betas, eps, weight_decay, decoupled, max_v, origin, maximize, grad_scale: as in `adam_step`; g
            must be writable, and max_v stands only beside states that are not 16- or 8-bit.
        m, v: the moments, written, both stored alike: float32 arrays (float64 where p is), bfloat16 arrays (uint16 bit
            patterns, or torch.bfloat16), or `Codes` of p's shape. bfloat16 and curvk's codes are rounded
            stochastically, since a second moment rounded to nearest stalls: with beta2 = 0.999 a step moves it by less
            than half a code.
        rounding: how a 16-bit p is stored. "nearest": to nearest even. "stochastic": up or down at random with the
            exact mean. "kahan": the parameter is p + low. "split16": bfloat16 p and low are the halves of a float32,
            which takes the step as a float32 parameter would.
        low: what "kahan" and "split16" keep, written; 16-bit, of p's shape; zeros before step 1.
        ema, ema_decay: ema <- ema_decay ema + (1 - ema_decay) p, of p before it is rounded; float32, or float64 where
            p is.
        shadow: <- p as bfloat16, to nearest.
        zero_grad: leave zeros in g.
        draw, seed, tensor: the noise that stochastic rounding draws from, as in `curvk.kernels.noise.fill`; the draw
            should be another one at every step, as a rule the number of the step.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`; an unknown rounding, or one without its low halves.

    The same bits at every thread count, SIMD level and backend; noise belongs to an element's place in C order. Bytes
    per parameter of p, g, m and v: 28 in float32, 16.5 with 8-bit states; 22, 14 and 10.5 for 16-bit parameters with
    float32, bfloat16 and 8-bit states. Source: Loshchilov & Hutter 2019; Dettmers et al. 2022; curvk/sweep.h.

    >>> import numpy as np
    >>> p, g = np.ones(3, np.float16), np.array([1, -2, 0], np.float16)
    >>> m, v = (quantize(np.zeros(3, np.float32)) for _ in range(2))
    >>> adam_sweep(p, g, m, v, step=1, lr=0.5, rounding="stochastic", zero_grad=True)
    >>> p, g
    (array([0.5, 1.5, 1. ], dtype=float16), array([0., 0., 0.], dtype=float16))
    """
    tables = {"max_v": max_v, "low": low, "ema": ema, "shadow": shadow, "origin": origin}
    plan = _OneAdam([p], [g], [m], [v], **_in_lists(tables), tensor=_word("adam_sweep", "tensor", tensor))
    plan.step(
        step=step,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        maximize=maximize,
        grad_scale=grad_scale,
        rounding=rounding,
        ema_decay=ema_decay,
        zero_grad=zero_grad,
        draw=draw,
        seed=seed,
    )


def sgd_sweep(
    p: Array,
    g: Array,
    buf: State = None,
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
    rounding: str = "nearest",
    low: Array = None,
    ema: Array = None,
    ema_decay: float = 0.0,
    shadow: Array = None,
    zero_grad: bool = False,
    draw: int = 0,
    seed: int = 0,
    tensor: int = 0,
) -> None:
    """`curvk.kernels.optim.sgd_step` with parameters and momentum that may be stored in fewer bytes, in one pass.

    Args:
        p, g, lr, momentum, dampening, nesterov, weight_decay, decoupled, maximize, first, grad_scale, origin: as in
            `sgd_step`; g must be writable.
        buf: the momentum buffer, stored as the moments of `adam_sweep`.
        rounding, low, ema, ema_decay, shadow, zero_grad, draw, seed, tensor: as in `adam_sweep`.

    Raises:
        TypeError, ValueError, BufferError: as `adam_sweep`.

    >>> import numpy as np
    >>> p, ema = np.ones(2, np.float32), np.ones(2, np.float32)
    >>> sgd_sweep(p, np.array([1, 2], np.float32), lr=0.25, ema=ema, ema_decay=0.5)
    >>> ema
    array([0.875, 0.75 ], dtype=float32)
    """
    tables = {"buf": buf, "low": low, "ema": ema, "shadow": shadow, "origin": origin}
    plan = _OneSGD([p], [g], **_in_lists(tables), tensor=_word("sgd_sweep", "tensor", tensor))
    plan.step(
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decoupled=decoupled,
        maximize=maximize,
        first=first,
        grad_scale=grad_scale,
        rounding=rounding,
        ema_decay=ema_decay,
        zero_grad=zero_grad,
        draw=draw,
        seed=seed,
    )
