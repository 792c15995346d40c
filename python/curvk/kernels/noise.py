"""Noise that is a pure function of (seed, draw, tensor, index), and what zeroth-order methods do with it.

Arrays on a CUDA device are taken as those on the CPU are, all arrays of a call on one device; draws, coefficients,
tensor words, offsets and rows are given on the CPU.
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arrays import Array, empty, numpy_view, on_host, overlaps_itself, written
from .._backend import call
from .._cuda import device_of
from .._errors import message

__all__ = [
    "DISTRIBUTIONS",
    "PURPOSES",
    "axpy_seeds_",
    "dot_seeds",
    "fill",
    "grid_axpy_",
    "perturb_",
    "philox4x32",
    "restore_update_perturb_",
    "scratch",
    "tensor_word",
]

DISTRIBUTIONS = ("normal", "normal_fast", "rademacher", "uniform")
"""The distributions of the stream, in the order of the C interface's numbers."""

PURPOSES = {"probe": 0, "rounding": 1, "layers": 2, "bandit": 3, "sketch": 4, "langevin": 5, "sampling": 6, "basis": 7}
"""What a tensor word's top four bits say, so that no two uses of one seed and draw share noise."""

Integers = np.ndarray[Any, Any]
Terms = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

_WORD = 1 << 32
_SLICE = 1e8  # values of a call, where draws can be taken in several: below 50 ms, between which Ctrl-C is heard


def tensor_word(name: str, purpose: str = "probe") -> int:
    """The 32-bit tensor word of a parameter's name: 4 bits of purpose, 28 of the name's BLAKE2b digest.

    Args:
        name: the parameter's name; tied parameters take their first name.
        purpose: one of `PURPOSES`.

    Returns:
        An integer below 2^32 for the argument `tensor` of the kernels. Two names share a word with probability 2^-28.

    Raises:
        TypeError, ValueError: a name that is no string, an unknown purpose.

    >>> hex(tensor_word("weight"))
    '0x27169e'
    """
    if not isinstance(name, str):
        raise TypeError(message("tensor_word", "name", f"{name!r} of type {type(name).__name__}", "a string"))
    if not isinstance(purpose, str) or purpose not in PURPOSES:
        raise ValueError(message("tensor_word", "purpose", repr(purpose), f"one of {', '.join(PURPOSES)}"))
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return PURPOSES[purpose] << 28 | int.from_bytes(digest, "little") & 0x0FFFFFFF


def philox4x32(counter: Any, key: Any) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The generator itself: Philox4x32 with 10 rounds.

    Args:
        counter: integers in [0, 2^32), shape (..., 4).
        key: integers in [0, 2^32), shape (2,).

    Returns:
        uint32 words of counter's shape.

    Raises:
        TypeError, ValueError: not integers in that range, or another shape.

    Source: Salmon, Moraes, Dror & Shaw 2011; the answers of Random123's kat_vectors.

    >>> [hex(word) for word in philox4x32([0, 0, 0, 0], [0, 0])]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    words = []
    for name, x, last in (("counter", counter, 4), ("key", key, 2)):
        try:
            a = np.asarray(x)
        except ValueError:
            a = np.empty(0, object)
        if a.dtype.kind not in "iu":
            raise TypeError(message("philox4x32", name, f"{x!r}"[:80], "an array of integers below 2^32"))
        if a.shape[-1:] != (last,) or (name == "key" and a.ndim != 1):
            needed = "shape (2,)" if name == "key" else "shape (..., 4)"
            raise ValueError(message("philox4x32", name, f"shape {a.shape}", needed))
        if a.size and not (a.min() >= 0 and a.max() < _WORD):
            raise ValueError(message("philox4x32", name, "a word out of range", "integers in [0, 2^32)"))
        words.append(a.astype(np.int64).ravel())
    out = np.empty_like(words[0])
    _run("philox4x32", "philox4x32", (*words, out), (out.size // 4,))
    return out.astype(np.uint32).reshape(np.shape(counter))


def fill(
    out: Array | list[Array],
    *,
    seed: int,
    draw: int = 0,
    tensor: int | Sequence[int] | Integers = 0,
    dist: str = "normal",
    offset: int | Sequence[int] | Integers = 0,
) -> Any:
    """Writes noise: out <- z(seed, draw, tensor, index).

    Args:
        out: array to write, or a list of arrays (one call, one parallel region). float32, float64, float16 or bfloat16
            (a uint16 array of bit patterns), any shape and strides: an element's index is its logical one, in C order.
            NumPy arrays, torch CPU tensors, and anything with DLPack or the buffer protocol are taken as they are.
        seed: in [0, 2^64).
        draw: number of the draw, in [0, 2^32).
        tensor: tensor word in [0, 2^32), see `tensor_word`; for a list, one for each array.
        dist: "normal", "normal_fast" (16 bits of radius and of angle, abs(z) < 4.86), "rademacher" (+1 or -1) or
            "uniform" (multiples of 2^-24 in [0, 1)). Values are float32: float64 takes them widened, 16-bit formats
            rounded, a uniform perhaps to 1.
        offset: index of the first element, >= 0; for a list, one for each array. Filling a part with its offset gives
            the part of the whole.

    Returns:
        `out`.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`; seed, draw or tensor out of range.

    The same bits on every machine, thread count, SIMD level and backend. Normals are within 1.5e-6 of Box-Muller in
    exact arithmetic, `normal_fast` within 1e-4. Source: Philox4x32-10 (Salmon et al. 2011), Box & Muller 1958;
    curvk/noise.h gives the layout.

    >>> import numpy as np
    >>> fill(np.empty(3, np.float32), seed=2, dist="rademacher")
    array([-1.,  1., -1.], dtype=float32)
    """
    tensors, offsets = _keys("fill", out, tensor, offset)
    _run(
        "fill",
        "noise_fill",
        (out, tensors, offsets),
        (_word("fill", "draw", draw), *_stream("fill", seed, dist)),
    )
    return out


def perturb_(
    p: Array | list[Array],
    *,
    seed: int,
    scale: float,
    draw: int = 0,
    tensor: int | Sequence[int] | Integers = 0,
    dist: str = "normal",
    rows: Any = None,
    threshold: float = math.inf,
    offset: int | Sequence[int] | Integers = 0,
) -> None:
    """Adds scaled noise in place: p <- p + scale z, one pass. `axpy_seeds_` with one draw; arguments and errors there.

    >>> import numpy as np
    >>> p = np.zeros(3, np.float32)
    >>> perturb_(p, seed=2, scale=0.5, dist="rademacher")
    >>> p
    array([-0.5,  0.5, -0.5], dtype=float32)
    """
    name = "perturb_"
    terms = np.array([_word(name, "draw", draw)]), np.array([_real(name, "scale", scale)])
    _add_draws(name, p, terms, _stream(name, seed, dist), tensor, offset, rows, 0.0, threshold)


def restore_update_perturb_(
    p: Array | list[Array],
    *,
    seed: int,
    draw: int,
    scale: float,
    coef: float,
    next_draw: int | None = None,
    next_scale: float = 0.0,
    decay: float = 0.0,
    tensor: int | Sequence[int] | Integers = 0,
    dist: str = "normal",
) -> None:
    """From p = theta + scale z to the next step in one pass: restores theta, updates it, perturbs it anew::

        theta <- (1 - decay) theta + coef z(draw)
        p     <- theta + next_scale z(next_draw)

    Rounded once where the three passes round three times, so not bit for bit what they give. 8 bytes and one noise
    value per float32 element, two with `next_draw`.

    Args:
        p, seed, tensor, dist: as in `axpy_seeds_`.
        draw, scale: the perturbation that p carries.
        coef: of the update, as a rule -lr g.
        next_draw, next_scale: the perturbation to leave p with; none by default. One needs the other.
        decay: lr weight_decay, in [0, 1].

    Raises:
        TypeError, ValueError, BufferError: as `axpy_seeds_`.

    >>> import numpy as np
    >>> p = np.ones(3)
    >>> perturb_(p, seed=2, scale=0.5, dist="rademacher")
    >>> restore_update_perturb_(p, seed=2, draw=0, scale=0.5, coef=-0.25, dist="rademacher")
    >>> p
    array([1.25, 0.75, 1.25])
    """
    name = "restore_update_perturb_"
    draws = [_word(name, "draw", draw)]
    coefs = [_real(name, "coef", coef) - (1.0 - _real(name, "decay", decay)) * _real(name, "scale", scale)]
    following = _real(name, "next_scale", next_scale)
    if next_draw is not None:
        draws.append(_word(name, "next_draw", next_draw))
        coefs.append(following)
    elif following != 0:
        raise ValueError(message(name, "next_scale", f"{following}", "0 where there is no next_draw", "give next_draw"))
    terms = np.array(draws), np.array(coefs)
    _add_draws(name, p, terms, _stream(name, seed, dist), tensor, 0, None, decay, math.inf)


def axpy_seeds_(
    p: Array | list[Array],
    *,
    seed: int,
    draws: Sequence[int] | Integers,
    coefs: Sequence[float] | np.ndarray[Any, Any],
    tensor: int | Sequence[int] | Integers = 0,
    dist: str = "normal",
    decay: float = 0.0,
    rows: Any = None,
    threshold: float = math.inf,
    offset: int | Sequence[int] | Integers = 0,
) -> None:
    """Adds a sum of scaled draws in place and in one pass, whatever their number::

        p <- (1 - decay) p + sum_k coefs[k] z(draws[k])

    Args:
        p: parameters, written; an array or a list of arrays, dtypes and layouts as in `fill`.
        seed, tensor, dist, offset: as in `fill`.
        draws: numbers of the draws, each in [0, 2^32).
        coefs: their coefficients; rounded to float32, or float64 where p is.
        decay: in [0, 1].
        rows: only these rows of p (its first axis) change: integers, ascending, each once. p is then one array.
        threshold: elements with abs(p) > threshold stay as they are.

    Raises:
        TypeError, ValueError, BufferError: as `curvk.kernels.optim.adam_step`; seed, draws, tensor or rows out of
            range.

    The sum is formed first, in float32 (float64 where p is): of each four draws in order, then of these in order; it is
    rounded once with p. 8 bytes per float32 element and len(draws) noise values. Source: MeZO's update (Malladi et al.
    2023) for many probes at once.

    >>> import numpy as np
    >>> p = np.zeros(3)
    >>> axpy_seeds_(p, seed=2, draws=[0, 1], coefs=[1.0, 0.5], dist="rademacher")
    >>> p
    array([-0.5,  0.5, -1.5])
    """
    name = "axpy_seeds_"
    terms = _seeds(name, draws, coefs)
    _add_draws(name, p, terms, _stream(name, seed, dist), tensor, offset, rows, decay, threshold)


def scratch(
    p: Array | list[Array],
    out: Array | list[Array],
    *,
    seed: int,
    draws: Sequence[int] | Integers,
    coefs: Sequence[float] | np.ndarray[Any, Any],
    tensor: int | Sequence[int] | Integers = 0,
    dist: str = "normal",
    decay: float = 0.0,
    threshold: float = math.inf,
    offset: int | Sequence[int] | Integers = 0,
) -> Any:
    """`axpy_seeds_` out of place: out <- (1 - decay) p + sum_k coefs[k] z(draws[k]); p is only read.

    Args:
        out: array or list of arrays of p's dtypes and shapes, written.
        p, seed, draws, coefs, tensor, dist, decay, threshold, offset: as in `axpy_seeds_`.

    Returns:
        `out`, with the bits that `axpy_seeds_` would give p.

    Raises:
        TypeError, ValueError, BufferError: as `axpy_seeds_`; memory shared by p and out.

    >>> import numpy as np
    >>> scratch(np.ones(3), np.empty(3), seed=2, draws=[0], coefs=[0.5], dist="rademacher")
    array([0.5, 1.5, 0.5])
    """
    scalars = _seeds("scratch", draws, coefs)
    tensors, offsets = _keys("scratch", p, tensor, offset)
    end = (len(scalars[0]), decay, threshold, *_stream("scratch", seed, dist))
    _run("scratch", "noise_scratch", (p, out, tensors, offsets, *scalars), end)
    return out


def dot_seeds(
    v: Array | list[Array],
    *,
    seed: int,
    draws: Sequence[int] | Integers,
    tensor: int | Sequence[int] | Integers = 0,
    dist: str = "normal",
    offset: int | Sequence[int] | Integers = 0,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Inner products with draws: sum over all elements of v z(draws[k]), for each k.

    Args:
        v: array or list of arrays, as p in `axpy_seeds_`.
        seed, draws, tensor, dist, offset: as in `axpy_seeds_`.

    Returns:
        A NumPy array of float64, shape (len(draws),), for which a device is waited for: summed in double in a fixed
        order, the same bits for every thread count and level.

    Raises:
        TypeError, ValueError, BufferError: as `axpy_seeds_`.

    >>> import numpy as np
    >>> dot_seeds(np.array([1.0, 2.0, 4.0]), seed=2, draws=[0], dist="rademacher")
    array([-3.])
    """
    numbers = _words("dot_seeds", "draws", draws)
    tensors, offsets = _keys("dot_seeds", v, tensor, offset)
    first = v[0] if isinstance(v, list) and v else v
    out = empty(first, (len(numbers),), "float64", device_of(first))
    stream, step = _stream("dot_seeds", seed, dist), max(1, len(numbers))
    if len(numbers) > 1 and device_of(first) is None:
        size = sum(math.prod(x.shape) for x in (v if isinstance(v, list) else [v]) if hasattr(x, "shape"))
        step = max(1, int(_SLICE / max(size, 1)))
    for i in range(0, max(1, len(numbers)), step):
        some = numbers[i : i + step]
        _run("dot_seeds", "dot_seeds", (v, tensors, offsets, some, out[i : i + step]), (len(some), *stream))
    return on_host(out)


def grid_axpy_(
    p: Array | list[Array],
    *,
    seed: int,
    quantum: float,
    draw: int = 0,
    tensor: int | Sequence[int] | Integers = 0,
    dist: str = "normal",
    scale: float = 0.0,
    steps: int = 1,
    coef: float = 0.0,
    decay: float = 0.0,
    update: bool = False,
    offset: int | Sequence[int] | Integers = 0,
) -> None:
    """Perturbs multiples of a quantum so that the opposite step is the exact inverse; updates by stochastic rounding::

        p <- p + steps rint(scale z / quantum) quantum
        p <- p + floor((coef z - decay p) / quantum + u) quantum     if update, u uniform in [0, 1)

    Args:
        p: float32, written; multiples of the quantum with abs(p) + abs(steps scale z) < 2^24 quantum, else the sum
            rounds.
        seed, draw, tensor, dist, offset: as in `fill`.
        quantum: a power of two.
        scale, steps: of the perturbation; +1, -2, +1 steps of one scale are the identity.
        coef, decay, update: of the update, whose expectation is exact within 2^-22 (quantum + abs(coef z) +
            abs(decay p)). u is the stream's uniform of the same draw with the purpose "rounding" (for a probe's tensor
            word).

    Raises:
        TypeError, ValueError, BufferError: as `axpy_seeds_`; a quantum that is no power of two.

    >>> import numpy as np
    >>> p = np.float32([1, 2, 3])
    >>> for steps in (1, -2, 1):
    ...     grid_axpy_(p, seed=2, quantum=2.0**-20, scale=1e-3, steps=steps)
    >>> p
    array([1., 2., 3.], dtype=float32)
    """
    mantissa, exponent = math.frexp(_real("grid_axpy_", "quantum", quantum))
    if mantissa != 0.5 or not -125 <= exponent <= 104:  # float32 holds q and 2^24 q
        raise ValueError(message("grid_axpy_", "quantum", f"{quantum}", "a power of two from 2^-126 to 2^103"))
    tensors, offsets = _keys("grid_axpy_", p, tensor, offset)
    end = (_word("grid_axpy_", "draw", draw), *_stream("grid_axpy_", seed, dist))
    _run("grid_axpy_", "noise_grid", (p, tensors, offsets), (quantum, scale, steps, coef, decay, update, *end))


def _add_draws(
    function: str,
    p: Any,
    terms: Terms,
    stream: tuple[int, int],
    tensor: Any,
    offset: Any,
    rows: Any,
    decay: float,
    threshold: float,
) -> None:
    if rows is None:
        target, (tensors, offsets) = p, _keys(function, p, tensor, offset)
    else:
        target, tensors, offsets = _rows(function, p, rows, tensor, offset)
    scalars = len(terms[0]), decay, threshold, *stream
    try:
        _run(function, "axpy_seeds", (target, tensors, offsets, *terms), scalars)
    except (TypeError, ValueError, BufferError) as error:
        if rows is None:
            raise
        raise type(error)(re.sub(r"\bp\[\d+\]", "p", str(error))) from None  # the user's p, not one of its rows
    if rows is not None and not isinstance(p, np.ndarray):
        written([p])  # the kernel saw NumPy views of p's rows


def _run(function: str, op: str, columns: tuple[Any, ...], scalars: tuple[Any, ...]) -> None:
    """Runs a kernel; its errors name the public function."""
    try:
        call(op, columns, scalars)
    except (TypeError, ValueError, BufferError) as error:
        raise type(error)(str(error).replace(f"{op}:", f"{function}:", 1)) from None


# ---- arguments ------------------------------------------------------------------------------------------------------


def _integer(function: str, name: str, value: Any, limit: int, words: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(message(function, name, f"{value!r} of type {type(value).__name__}", "an integer")) from None
    if not 0 <= number < limit:
        raise ValueError(message(function, name, f"{number}", f"an integer in [0, {words})"))
    return number


def _word(function: str, name: str, value: Any) -> int:
    return _integer(function, name, value, _WORD, "2^32")


def _real(function: str, name: str, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes, bytearray)):  # float() would read them
            raise TypeError
        number = float(value)
    except OverflowError:
        raise ValueError(message(function, name, "an integer beyond float64", "a finite number")) from None
    except (TypeError, ValueError):
        raise TypeError(message(function, name, f"{value!r} of type {type(value).__name__}", "a real number")) from None
    if not math.isfinite(number):
        raise ValueError(message(function, name, f"{number}", "a finite number"))
    return number


def _stream(function: str, seed: Any, dist: Any) -> tuple[int, int]:
    """The seed's 64 bits as the signed integer that the C interface takes, and the distribution's number."""
    number = _integer(function, "seed", seed, 1 << 64, "2^64")
    if not isinstance(dist, str) or dist not in DISTRIBUTIONS:
        raise ValueError(message(function, "dist", repr(dist), f"one of {', '.join(DISTRIBUTIONS)}"))
    return number - (1 << 64) if number >> 63 else number, DISTRIBUTIONS.index(dist)


def _numbers(
    function: str, name: str, values: Any, limit: int, words: str, needed: str = "a sequence of integers"
) -> np.ndarray[Any, Any]:
    """A flat sequence of integers as int64."""
    try:
        a = np.asarray(values)
        if a.ndim == 1 and a.dtype.kind in "fO":  # integers that no type of NumPy holds, to be named below; or none
            a = np.array([operator.index(x) for x in values], object)
    except (TypeError, ValueError):
        a = np.empty((0, 0), object)
    if a.ndim != 1 or (a.size and a.dtype.kind not in "iuO"):
        raise TypeError(message(function, name, f"{values!r}"[:80], needed))
    if a.size and not (int(a.min()) >= 0 and int(a.max()) < limit):
        bad = next(int(x) for x in a if not 0 <= int(x) < limit)
        raise ValueError(message(function, name, f"{bad}", f"integers in [0, {words})"))
    return a.astype(np.int64)


def _words(function: str, name: str, values: Any) -> np.ndarray[Any, Any]:
    return _numbers(function, name, values, _WORD, "2^32")


def _keys(function: str, arrays: Any, tensor: Any, offset: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Tensor words and offsets, one for each array."""
    found = []
    for name, value, limit, words in (("tensor", tensor, _WORD, "2^32"), ("offset", offset, 1 << 62, "2^62")):
        if type(arrays) is not list:
            found.append(np.array([_integer(function, name, value, limit, words)], np.int64))
            continue
        if name == "offset" and isinstance(value, int) and value == 0:
            value = np.zeros(len(arrays), np.int64)
        numbers = _numbers(function, name, value, limit, words, "a sequence of integers, one for each array")
        if len(numbers) != len(arrays):
            raise ValueError(message(function, name, f"{len(numbers)} integers", f"{len(arrays)}, one for each array"))
        found.append(numbers)
    return found[0], found[1]


def _seeds(function: str, draws: Any, coefs: Any) -> Terms:
    """Draws and their coefficients."""
    numbers = _words(function, "draws", draws)
    try:
        given = np.asarray(coefs)
        if given.dtype.kind in "cSUMm":  # NumPy would drop imaginary parts and read strings
            raise TypeError
        factors = given.astype(np.float64)
    except OverflowError:
        raise ValueError(message(function, "coefs", "an integer beyond float64", "finite numbers")) from None
    except (TypeError, ValueError):
        raise TypeError(message(function, "coefs", f"{coefs!r}"[:80], "a sequence of real numbers")) from None
    if factors.shape != numbers.shape:
        raise ValueError(message(function, "coefs", f"shape {factors.shape}", f"shape {numbers.shape} like 'draws'"))
    if not np.isfinite(factors).all():
        raise ValueError(message(function, "coefs", f"{factors[~np.isfinite(factors)][0]}", "finite numbers"))
    return numbers, np.ascontiguousarray(factors)


def _rows(function: str, p: Any, rows: Any, tensor: Any, offset: Any) -> tuple[list[Any], Any, Any]:
    """The chosen rows of p as arrays of their own, with their keys."""
    if type(p) is list:
        raise TypeError(message(function, "p", "list", "one array because rows is given"))
    device = device_of(p)
    view = numpy_view(p, function, "p", device)
    if view.ndim < 1:
        raise ValueError(message(function, "p", "shape ()", "an array with rows because rows is given"))
    if not view.flags.writeable:
        raise BufferError(message(function, "p", "a read-only array", "a writable one", "use p.copy()"))
    if view.size and overlaps_itself(view):  # one row's memory may be another's too
        found = f"strides {view.strides} that may meet an element twice"
        raise ValueError(message(function, "p", found, "elements of its own", "use p.copy()"))
    numbers = _numbers(function, "rows", rows, len(view), f"{len(view)}")
    if (np.diff(numbers) <= 0).any():
        raise ValueError(message(function, "rows", "rows out of order", "ascending ones", "use np.unique(rows)"))
    length = math.prod(view.shape[1:])
    tensors, offsets = _keys(function, p, tensor, offset)
    whole = view if device is None else p.detach() if hasattr(p, "detach") else p  # a parameter's rows have a history
    parts = [whole[row if view.ndim > 1 else slice(row, row + 1)] for row in numbers.tolist()]
    parts, numbers = (parts, numbers) if parts else ([whole[:0]], np.zeros(1, np.int64))  # its dtype is checked too
    return parts, np.repeat(tensors, len(parts)), offsets[0] + numbers * length
