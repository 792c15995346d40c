"""Which noise belongs to which tensor, and the choices that come from the stream."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._errors import message
from ..kernels import noise

SEEDS = 1 << 64
DRAWS = 1 << 32
DISTS = ("normal", "normal_fast", "rademacher")
"""The distributions a probe may have: mean 0, variance 1."""
REACH = {"normal": 7.0, "normal_fast": 5.0, "rademacher": 1.0}
"""A bound of |z| for each distribution."""


def words(names: Sequence[str], function: str = "words") -> list[int]:
    """The tensor word of each name.

    Raises:
        ValueError: two names share a word (a chance of 2^-28 for each pair), or a name occurs twice.

    >>> [hex(w) for w in words(["weight", "bias"])]
    ['0x27169e', '0xfdc3ee3']
    """
    owner: dict[int, str] = {}
    found = []
    for name in names:
        word = noise.tensor_word(name)
        if word in owner:
            twice = owner[word] == name
            what = f"the name {name!r} twice" if twice else f"names {owner[word]!r} and {name!r} with one tensor word"
            raise ValueError(message(function, "names", what, "names with noise of their own", "rename one of them"))
        owner[word] = name
        found.append(word)
    return found


def decays(name: str) -> bool:
    """Whether weight decay applies to a tensor of this name: MeZO's rule, all but biases and layer norms.

    >>> decays("h.0.attn.weight"), decays("h.0.attn.bias"), decays("encoder.LayerNorm.weight")
    (True, False, False)
    """
    lower = name.lower()
    return not any(part in lower for part in ("bias", "layer_norm", "layernorm"))


def choose_layers(seed: int, step: int, n_layers: int, keep: int) -> list[int]:
    """A uniformly random subset of layers, without replacement; a pure function of its arguments.

    Layer l's key is the first 64 bits of Philox block l of (seed, draw = step, tensor word "layers"); the `keep` layers
    with the smallest keys are chosen.

    Args:
        seed: in [0, 2^64).
        step: number of the step, in [0, 2^32).
        n_layers: how many layers there are.
        keep: how many to choose, in [0, n_layers].

    Returns:
        The chosen layers' numbers, ascending.

    Raises:
        TypeError, ValueError: an argument that is no integer or out of range.

    >>> choose_layers(seed=0, step=0, n_layers=6, keep=2)
    [0, 5]
    """
    seed = integer("choose_layers", "seed", seed, 0, SEEDS, "2^64")
    step = integer("choose_layers", "step", step, 0, DRAWS, "2^32")
    n_layers = integer("choose_layers", "n_layers", n_layers, 0, DRAWS, "2^32")
    keep = integer("choose_layers", "keep", keep, 0, n_layers + 1, f"{n_layers + 1}")
    counter = np.zeros((n_layers, 4), np.int64)
    counter[:, 0] = np.arange(n_layers)
    counter[:, 2] = noise.tensor_word("layers", "layers")
    counter[:, 3] = step
    block = noise.philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32]).astype(np.uint64)
    keys = block[:, 0] << np.uint64(32) | block[:, 1]
    return sorted(np.argsort(keys, kind="stable")[:keep].tolist())


def uniforms(seed: int, step: int, n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Uniform numbers in [0, 1) for a bandit's choice in a step."""
    out = np.empty(n, np.float32)
    noise.fill(out, seed=seed, draw=step, tensor=noise.tensor_word("arms", "bandit"), dist="uniform")
    return out


# ---- arguments ------------------------------------------------------------------------------------------------------


def integer(function: str, name: str, value: Any, low: int, limit: int, words: str = "") -> int:
    """The value as an int in [low, limit), or the error that says what it is."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(message(function, name, f"{value!r} of type {type(value).__name__}", "an integer")) from None
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(message(function, name, f"{value!r}", "an integer"))
    if not low <= number < limit:
        raise ValueError(message(function, name, f"{number}", f"an integer in [{low}, {words or limit})"))
    return number


def real(function: str, name: str, value: Any, needed: str, low: float, open: bool = False) -> float:
    """The value as a finite float >= low (> low if open), or the error that says what it is."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__") or np.ndim(value) > 0:
        raise TypeError(message(function, name, f"{value!r} of type {type(value).__name__}", "a real number"))
    number = float(value)
    if not (low < number if open else low <= number) or not math.isfinite(number):
        raise ValueError(message(function, name, f"{value}", needed))
    return number


def one_of(function: str, name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The value if it is one of the choices."""
    if value not in choices:
        raise ValueError(message(function, name, repr(value), f"one of {', '.join(map(repr, choices))}"))
    return value
