"""Gradient probes: sums and moments of the glass density, the Alice step, and SAM's perturbation.

Arrays on a CUDA device are taken as those on the CPU are, all arguments of a call on one device. Functions that return
numbers (`alice_model`, `glass_sums`, `asam_norm`) wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arrays import Array, empty, on_host
from .._backend import Plan, call
from .._cuda import device_of
from .._errors import message
from .noise import _keys, _run, _stream, _word
from .optim import _in_words_of_norm, _kind, _listed, scaled_norm
from .sweep import Codes, State

__all__ = [
    "HESS",
    "LIMITS",
    "AlicePlan",
    "alice_lookahead",
    "alice_model",
    "alice_step",
    "asam_norm",
    "glass_moments_",
    "glass_sums",
    "sam_perturb_",
]

HESS = ("zero", "abs", "rms", "debiased")
"""Estimates of the Hessian's size, in the order of the C interface's numbers."""

LIMITS = ("adam", "sgdm", "fixed")
"""Bounds of the Alice step, in the order of the C interface's numbers."""

_CODED = ("exp_avg", "glass", "hessian", "exp_avg_sq")  # the states that may be Codes


def alice_lookahead(
    p: Array | list[Array],
    lookahead: Array | list[Array],
    *,
    scale: float = 0.0,
    seed: int = 0,
    draw: int = 0,
    tensor: int | Sequence[int] | np.ndarray[Any, Any] = 0,
    offset: int | Sequence[int] | np.ndarray[Any, Any] = 0,
) -> None:
    """Writes the point of a gradient evaluation: p <- lookahead + scale z, z = +1 or -1.

    Args:
        p: parameters, written; an array or a list of arrays, dtypes and layouts as in `adam_step`.
        lookahead: p's dtype, or float32 where p is 16-bit; p's shape.
        scale: sigma, -sigma, or 0 for the look-ahead point itself.
        seed, draw, tensor, offset: of the signs, as in `curvk.kernels.noise.fill` with dist="rademacher".

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`; seed, draw or tensor out of range.

    8 bytes per float32 element; the signs are made, not stored.

    >>> import numpy as np
    >>> p = np.empty(3)
    >>> alice_lookahead(p, np.ones(3), scale=0.5, seed=2)
    >>> p
    array([0.5, 1.5, 0.5])
    """
    tensors, offsets = _keys("alice_lookahead", p, tensor, offset)
    stream = _stream("alice_lookahead", seed, "rademacher")[0]
    scalars = (scale, _word("alice_lookahead", "draw", draw), stream)
    _run("alice_lookahead", "alice_lookahead", (p, lookahead, tensors, offsets), scalars)


def alice_step(
    p: Array,
    g: Array,
    exp_avg: State,
    glass: State,
    hessian: State,
    exp_avg_sq: State,
    center: Array,
    lookahead: Array,
    g_plus: Array = None,
    g_minus: Array = None,
    *,
    beta1: float,
    beta2: float,
    beta3: float,
    sigma: float,
    eps: float = 1e-8,
    l1: float = 0.0,
    l2: float = 0.0,
    lr_min: float = 0.0,
    lr_max: float,
    phi: float,
    omega: float = 1.0,
    hess: str = "debiased",
    limit: str = "adam",
    move: bool = True,
    grad_scale: float = 1.0,
    draw: int = 0,
    seed: int = 0,
    tensor: int = 0,
) -> None:
    """One step of Alice, in place and in one pass: estimates, moments, closed-form step.

    With all gradients divided by `grad_scale`, at a sample step (g_plus and g_minus given)::

        glass   <- rho + beta3 (glass - rho)       rho = 2 ((g_plus + g_minus) / 2 - g)^2 / sigma
        hessian <- x + beta3 (hessian - x)         x = abs(g_plus - g_minus) / (2 sigma) + l2          "abs"
                                                       ((g_plus - g_minus) / (2 sigma))^2 + l2^2        "rms"
                                                       -(g_plus - g) (g_minus - g) / sigma^2            "debiased"

    at every step::

        exp_avg_sq <- beta2 exp_avg_sq + (1 - beta2) g^2;  g <- g + l1 sign(lookahead) + l2 lookahead
        exp_avg    <- g + beta1 (exp_avg - g)

    and if `move`, with a = abs(exp_avg), b = a + eps, k = 3 / (4 pi) glass, and h = 0, hessian,
    sqrt(max(hessian, 0)) or sqrt(max(hessian, 0)) + l2 for the four `hess` in order::

        q         <- b / (k + h b + sqrt(k (k + 2 h b)) + eps b), bounded; delta = -exp_avg q
        lookahead <- center + omega delta;         center <- center + phi delta

    Bounds: lr_min and lr_max, divided by sqrt(exp_avg_sq) + eps for "adam"; "fixed" bounds a q, the step's length. A
    NaN takes the upper one, sign(0) is 1. At last p <- center, whether it moved or not.

    Args:
        p: parameters, written; float32, float64, float16 or bfloat16 (uint16), layouts as in
            `curvk.kernels.optim.adam_step`.
        g: gradients at `lookahead`, of p's dtype and shape.
        exp_avg, exp_avg_sq: moments, written; p's dtype, or float32 where p is 16-bit. Zeros before step 1. Or, with
            glass and hessian, `curvk.kernels.sweep.Codes` of p's shape in curvk's format, exp_avg signed, exp_avg_sq
            and glass unsigned, hessian signed with hess="debiased" alone; not beside float64 parameters.
        glass: glass density, written at a sample step; as exp_avg. None: no glass term.
        hessian: estimate that `hess` names, written at a sample step; as exp_avg. None with hess="zero".
        center, lookahead: the iterate and where gradients are taken, written; as exp_avg.
        g_plus, g_minus: gradients at lookahead + sigma z and lookahead - sigma z; both or none.
        beta1, beta2, beta3: decay factors of this step (not bias-corrected: see `curvk.optim.Alice`), in [0, 1).
        sigma: distance of the probes, > 0.
        eps: >= 0. With 0, an element whose gradients were all 0 gets NaN from the "adam" bounds, as in the formula.
        l1, l2: weights of the penalties l1 abs(x) + l2 x^2 / 2, >= 0.
        lr_min, lr_max: bounds, 0 <= lr_min <= lr_max.
        phi, omega: share of the step that the center and the look-ahead point take; 0 < phi < 2, omega > 0.
        hess: "zero", "abs", "rms" or "debiased".
        limit: "adam", "sgdm" or "fixed".
        move: False only takes the estimates (warm-up).
        grad_scale: the factor that the gradients carry, > 0.
        draw, seed, tensor: the noise that Codes are rounded with, as in `curvk.kernels.noise.fill`; the draw should be
            another one at every step. Other states take none.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`; Codes mixed with arrays, or in another format.

    Bytes per float32 element: 60 at a sample step, 44 else; 37 and 26.75 with Codes. Source: Duersch, Catanach, Safonov
    & Wendt 2024, arXiv 2411.16914, and its code (sandialabs/alice); the form without branches and "debiased" are ours.

    >>> import numpy as np
    >>> p, states = np.ones(1), np.zeros((6, 1))
    >>> states[4:] = 1.0
    >>> numbers = {"beta1": 0.0, "beta2": 0.0, "beta3": 0.0, "sigma": 0.1, "lr_max": 10.0, "phi": 1.0}
    >>> alice_step(p, np.array([2.0]), *states, np.array([2.4]), np.array([1.6]), eps=0.0, **numbers)
    >>> p, states[2]  # a Newton step on 2 (x - 1)^2 + 2 x: Hessian 4, gradient 2
    (array([0.5]), array([16.]))
    """
    _check_alice(hessian, g_plus, g_minus, hess)
    columns = (p, g, exp_avg, glass, hessian, exp_avg_sq, center, lookahead, g_plus, g_minus)
    op, columns = _alice_columns(columns, tensor)
    scalars = _alice_scalars(
        beta1, beta2, beta3, sigma, eps, l1, l2, lr_min, lr_max, phi, omega, hess, limit, move, grad_scale
    )
    call(op, columns, scalars + _alice_noise(op, draw, seed))


def _alice_columns(columns: tuple[Any, ...], tensor: Any) -> tuple[str, tuple[Any, ...]]:
    """The kernel that takes states of this kind, and its columns; lists or not, as the first one is."""
    p, g, *states = columns[:6]
    listed = type(p) is list

    def items(state: Any) -> list[State]:
        return [] if state is None else list(state) if listed else [state]

    if not any(isinstance(x, Codes) for state in states for x in items(state)):
        return "alice_step", columns
    coded: list[Any] = []
    for name, state in zip(_CODED, states, strict=True):
        found = items(state)
        for i, x in enumerate(found):
            label = f"{name}[{i}]" if listed else name
            if not isinstance(x, Codes):
                needed, remedy = f"Codes, as all of {', '.join(_CODED)} or none", "use curvk.kernels.sweep.quantize"
                raise TypeError(message("alice_step", label, type(x).__name__, needed, remedy))
            if x.format != "curvk":
                raise ValueError(message("alice_step", label, f"codes of format {x.format!r}", "'curvk'"))
        pair = [x.codes for x in found], [x.scales for x in found]
        coded += [None, None] if state is None else pair if listed else [column[0] for column in pair]
    words = [tensor] * len(p) if listed and np.ndim(tensor) == 0 else tensor
    return "alice_step8", (p, g, *coded, *columns[6:], *_keys("alice_step", p, words, 0))


def _alice_noise(op: str, draw: int, seed: int) -> tuple[int, ...]:
    return (_word("alice_step", "draw", draw), _stream("alice_step", seed, "uniform")[0]) if op == "alice_step8" else ()


def _check_bounds(function: str, lr_min: float, lr_max: float) -> None:
    if lr_min > lr_max:
        found = f"{lr_min} above lr_max = {lr_max}"
        raise ValueError(message(function, "lr_min", found, "a bound at most lr_max"))


def _alice_scalars(*values: Any) -> tuple[Any, ...]:
    *numbers, hess, limit, move, grad_scale = values
    _check_bounds("alice_step", *numbers[7:9])
    chosen = (_choice("alice_step", "hess", hess, HESS), _choice("alice_step", "limit", limit, LIMITS))
    return (*numbers, *chosen, move, grad_scale)


def _choice(function: str, name: str, value: Any, choices: Sequence[str]) -> int:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(message(function, name, repr(value), f"one of {', '.join(map(repr, choices))}"))
    return choices.index(value)


def _check_alice(hessian: Any, g_plus: Any, g_minus: Any, hess: str) -> None:
    if (g_plus is None) != (g_minus is None):
        missing = "g_plus" if g_plus is None else "g_minus"
        raise ValueError(message("alice_step", missing, "None", "an array, as both probes or none are given"))
    if hessian is None and hess != "zero":
        raise ValueError(message("alice_step", "hessian", "None", f"an array like p with hess={hess!r}"))


class AlicePlan(Plan):
    """A model's arrays for Alice, checked once and stepped in one call and one parallel region.

    Args:
        p, g, exp_avg, glass, hessian, exp_avg_sq, center, lookahead, g_plus, g_minus: lists of arrays (the averages: or
            of Codes) as in `alice_step`, all of one dtype; shapes may differ along the lists.
        tensor: a tensor word, or one for each array.

    Raises:
        TypeError, ValueError, BufferError: as `alice_step`; lists of different lengths are a ValueError.
    """

    def __init__(
        self,
        p: Sequence[Array],
        g: Sequence[Array],
        exp_avg: Sequence[State],
        glass: Sequence[State] | None,
        hessian: Sequence[State] | None,
        exp_avg_sq: Sequence[State],
        center: Sequence[Array],
        lookahead: Sequence[Array],
        g_plus: Sequence[Array] | None = None,
        g_minus: Sequence[Array] | None = None,
        *,
        tensor: int | Sequence[int] = 0,
    ) -> None:
        columns = (p, g, exp_avg, glass, hessian, exp_avg_sq, center, lookahead, g_plus, g_minus)
        self._hessian = hessian
        super().__init__(*_alice_columns(tuple(map(_listed, columns)), tensor))
        self._probes = slice(12, 14) if self._op == "alice_step8" else slice(8, 10)  # where g_plus and g_minus are

    def set_grads(
        self,
        g: Sequence[Array],
        g_plus: Sequence[Array] | None = None,
        g_minus: Sequence[Array] | None = None,
    ) -> None:
        """Takes other gradient arrays from now on."""
        columns = list(self._columns)
        columns[1], columns[self._probes] = list(g), [_listed(g_plus), _listed(g_minus)]
        self.rebind(tuple(columns))

    def step(
        self,
        *,
        beta1: float,
        beta2: float,
        beta3: float,
        sigma: float,
        eps: float = 1e-8,
        l1: float = 0.0,
        l2: float = 0.0,
        lr_min: float = 0.0,
        lr_max: float,
        phi: float,
        omega: float = 1.0,
        hess: str = "debiased",
        limit: str = "adam",
        move: bool = True,
        grad_scale: float = 1.0,
        draw: int = 0,
        seed: int = 0,
    ) -> None:
        """One step of all arrays; arguments and errors as in `alice_step`."""
        g_plus, g_minus = self._columns[self._probes]
        _check_alice(self._hessian, g_plus, g_minus, hess)
        scalars = _alice_scalars(
            beta1, beta2, beta3, sigma, eps, l1, l2, lr_min, lr_max, phi, omega, hess, limit, move, grad_scale
        )
        self.run(scalars + _alice_noise(self._op, draw, seed))


def alice_model(
    exp_avg: list[Array],
    glass: list[Array] | None,
    hessian: list[Array] | None,
    exp_avg_sq: list[Array],
    *,
    eps: float = 1e-8,
    l2: float = 0.0,
    lr_min: float = 0.0,
    lr_max: float,
    fraction: float = 1.0,
    hess: str = "debiased",
    limit: str = "adam",
) -> tuple[int, float]:
    """What the model behind `alice_step` says of its step; reads the states that the step left.

    Args:
        exp_avg, glass, hessian, exp_avg_sq: lists of states, float32 or float64, as the step left them.
        eps, l2, lr_min, lr_max, hess, limit: as in `alice_step`.
        fraction: of the step that is taken: phi for the center, omega for the look-ahead point; >= 0.

    Returns:
        The number of elements whose step lay strictly between its bounds, and the predicted change of the loss: the sum
        of -a s + h s^2 / 2 + sqrt(2 / (3 pi)) sqrt(glass) s^1.5 with a = abs(exp_avg) and s = fraction abs(delta). The
        glass term is an expectation for Gaussian jumps. Where no bound acts and fraction is 1 each term is
        -(a s / 3 + h s^2 / 6). A device is waited for.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`.

    >>> import numpy as np
    >>> alice_model([np.array([2.0])], None, [np.array([4.0])], [np.ones(1)], hess="abs", lr_max=10.0, eps=0.0)
    (1, -0.5)
    """
    if hessian is None and hess != "zero":
        raise ValueError(message("alice_model", "hessian", "None", f"arrays like exp_avg with hess={hess!r}"))
    _check_bounds("alice_model", lr_min, lr_max)
    sums = _sums_beside(exp_avg, 2)
    columns = (exp_avg, glass, hessian, exp_avg_sq, sums)
    chosen = (_choice("alice_model", "hess", hess, HESS), _choice("alice_model", "limit", limit, LIMITS))
    call("alice_model", columns, (eps, l2, lr_min, lr_max, fraction, *chosen))
    inside, change = on_host(sums)
    return int(inside), float(change)


def _sums_beside(x: Array | list[Array], length: int) -> Array:
    """Where a kernel is to leave its sums over x: on the device of x."""
    first = x[0] if isinstance(x, list) and x else x
    return empty(first, (length,), "float64", device_of(first))


def glass_sums(
    g: Array | list[Array], g_plus: Array | list[Array], g_minus: Array | list[Array]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sums of a two-sided gradient probe over all elements, in one read-only sweep.

    With c_plus = g_plus - g and c_minus = g_minus - g, the sums of

    - ((g_plus + g_minus) / 2 - g)^2, which glass makes rho sigma / 2 on average,
    - (c_plus^2 + c_minus^2) / 2, on average rho sigma + h2 sigma^2,
    - -c_plus c_minus, on average h2 sigma^2,
    - g^2.

    Args:
        g, g_plus, g_minus: gradients at x, x + sigma z and x - sigma z; an array or a list of arrays each, dtypes as in
            `adam_step`.

    Returns:
        A NumPy array of float64, shape (4,), for which a device is waited for; not finite where an element is not. Same
        bits for every thread count and level.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`.

    12 bytes per float32 element. Source: Duersch et al. 2024, arXiv 2411.16914; h2 is ours.

    >>> import numpy as np
    >>> glass_sums(np.zeros(1), np.array([3.0]), np.array([-1.0]))
    array([1., 5., 3., 0.])
    """
    out = _sums_beside(g, 4)
    call("glass_sums", (g, g_plus, g_minus, out), ())
    return on_host(out)


def glass_moments_(
    g: Array,
    g_plus: Array,
    g_minus: Array,
    rho: Array,
    rho_m2: Array,
    h2: Array,
    h2_m2: Array,
    *,
    sample: int,
    sigma: float,
) -> None:
    """Adds a probe's estimates to running moments, in place (Welford 1962)::

        x = 2 ((g_plus + g_minus) / 2 - g)^2 / sigma             for rho and rho_m2
        x = -(g_plus - g) (g_minus - g) / sigma^2                for h2 and h2_m2
        d = x - mean;   mean <- mean + d / sample;   m2 <- m2 + d (x - mean)

    so that after n samples the variance of x is m2 / (n - 1) and its mean's standard error sqrt(m2 / (n (n - 1))).

    Args:
        g, g_plus, g_minus: as in `glass_sums`; an array or a list of arrays each.
        rho, rho_m2, h2, h2_m2: moments, written; g's dtype, or float32 where g is 16-bit. Zeros before sample 1.
        sample: number of this sample, counting from 1.
        sigma: distance of the probes, > 0.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`.

    44 bytes per float32 element.

    >>> import numpy as np
    >>> m = np.zeros((4, 1))
    >>> glass_moments_(np.zeros(1), np.array([3.0]), np.array([-1.0]), *m, sample=1, sigma=0.5)
    >>> m[0], m[2]
    (array([4.]), array([12.]))
    """
    call("glass_moments", (g, g_plus, g_minus, rho, rho_m2, h2, h2_m2), (sample, sigma))


def sam_perturb_(
    p: Array, g: Array, saved: Array = None, *, scale: float, adaptive: bool = False, eta: float = 0.0
) -> None:
    """SAM's ascent in one pass, which also keeps the weights it leaves::

        w = p;   p <- w + scale (t^2 g),   t = 1 or, adaptive, abs(w) + eta;   saved <- w

    Args:
        p: parameters, written; an array or a list of arrays, dtypes and layouts as in `adam_step`.
        g: gradients, of p's dtype and shape, in writable memory. Without `saved` the weights take their place, which
            needs no memory; with it they stay.
        saved: where the weights go, like p.
        scale: rho / norm.
        adaptive: ASAM's scaling.
        eta: >= 0, of ASAM.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`.

    16 bytes per float32 element. `adam_step(..., origin=saved)` steps from the weights. Source: Foret et al. 2021,
    arXiv 2010.01412; Kwon et al. 2021, arXiv 2102.11600.

    >>> import numpy as np
    >>> p, g = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    >>> sam_perturb_(p, g, scale=0.5)
    >>> p, g
    (array([2.5, 4. ]), array([1., 2.]))
    """
    call("sam_perturb", (p, g, saved), (scale, adaptive, eta))


def asam_norm(p: list[Array], g: list[Array], *, eta: float = 0.0) -> float:
    """Euclidean norm of (abs(p) + eta) g over all arrays together, ASAM's; one read-only sweep.

    Args:
        p, g: lists of parameters and gradients; dtypes as in `adam_step`, which may differ along the lists.
        eta: >= 0.

    Returns:
        As `curvk.kernels.optim.global_norm`: inf or NaN if and only if an element is not finite, or the norm of float64
        arrays is too large.

    Raises:
        TypeError, ValueError, BufferError: as `adam_step`.

    Devices are waited for. 8 bytes per float32 element. Source: Kwon et al. 2021, arXiv 2102.11600.

    >>> import numpy as np
    >>> asam_norm([np.array([3.0, 2.0])], [np.array([1.0, -2.0])])
    5.0
    """
    if not len(p) == len(g):
        raise ValueError(message("asam_norm", "g", f"{len(g)} arrays", f"{len(p)}, one for each in 'p'"))
    sets: dict[Any, tuple[list[Array], list[Array], Array]] = {}
    for w, x in zip(p, g, strict=True):
        kind = _kind(w)
        if kind not in sets:
            sets[kind] = [], [], _sums_beside(w, 2)
        params, grads, _ = sets[kind]
        params.append(w)
        grads.append(x)

    def sums(scale: float) -> tuple[float, bool]:
        total, finite = 0.0, True
        for params, grads, out in sets.values():
            try:
                call("asam_sum_squares", (params, grads, out), (eta, scale))
            except (TypeError, ValueError, BufferError) as error:
                raise _in_words_of_norm(error, "asam_norm", {"p": (p, params), "g": (g, grads)}) from None
        for _, _, out in sets.values():
            square, bad = on_host(out)
            total, finite = total + float(square), finite and not bad
        return total, finite

    wide = ["float64"] if eta > 1e60 else []  # a large eta overflows as float64 arrays do
    return scaled_norm(sums, [*(getattr(params[0], "dtype", None) for params, _, _ in sets.values()), *wide])
