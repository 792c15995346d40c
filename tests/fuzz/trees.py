"""Small changes to trees of dicts, lists, numbers, strings and arrays, as states and files are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from draw import Draw

ODD: list[Any] = [
    None, -1, 0, 1, 2, 3, 7, 1 << 31, 1 << 40, 1 << 62, 1 << 63, -(1 << 63), 1 << 200, 0.5, -0.5, 1e-300, 1e308,
    float("nan"), float("inf"), True, False, "", "x", "gaussian", "linear", "median", "nan", [], {}, [[]], [0], [0, 1],
    {"array": "array0"}, {"array": "x"}, {"array": 1}, {"objects": [1, [2]]}, {"": None}, ["a", "b", "c"],
]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of the tree."""
    found = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        for key in keys:
            found.append((node, key))
            stack.append(node[key])
    return found


def copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: copied(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(copied, tree))
    return tree.copy() if isinstance(tree, np.ndarray) else tree


def other_array(x: np.ndarray[Any, Any], draw: Draw) -> Any:
    """An array that differs from x in one way."""
    kind = draw.below(16)
    with np.errstate(all="ignore"):
        if kind == 0:
            return x[:-1] if x.ndim else x.reshape(1)
        if kind == 1:
            return np.concatenate([x, x[:1]]) if x.ndim else np.stack([x, x])
        if kind == 2:
            return x.T.copy() if x.ndim > 1 else x[None]
        if kind == 3:
            return np.asfortranarray(x)
        if kind == 4:
            return x.reshape(-1)
        if kind == 5:
            return x[..., :-1] if x.ndim else x
        if kind == 6:
            return np.concatenate([x, x], axis=-1) if x.ndim else x[None]
        if kind == 7:
            return np.zeros(draw.pick([(0,), (), (0, 0), (1, 0), (0, 1 << 40), (1, 1, 1)]), x.dtype)
        if kind == 8 and x.dtype.kind in "fiu":
            return x.astype(draw.pick(["f4", "f8", "i8", "u2", ">f8", "c16", "?", "S3", "f2", "u1"]))
        if kind == 9:
            return x.tolist()
        y = x.copy()
        if not y.size:
            return y
        value: Any = draw.pick([np.nan, np.inf, -1.0, 0.0, 1e300, -1e300] if y.dtype.kind == "f" else [-1, 0, 99, 255])
        if y.dtype.kind in "fiu":
            target = y.reshape(-1)[draw.below(y.size) :][:1] if kind % 2 else y
            target[...] = np.asarray(value).astype(y.dtype)
        return y


def mutate(tree: Any, draw: Draw, other: Callable[[Any, Draw], Any] | None = None) -> Any:
    """The tree with one to three changes in place; `other` changes leaves of a kind of its own."""
    for _ in range(1 + draw.below(3)):
        found = places(tree)
        if not found:
            return copied(draw.pick(ODD))
        node, key = found[draw.below(len(found))]
        kind, value = draw.below(8), node[key]
        changed = other(value, draw) if other is not None else None
        if kind < 4 and changed is not None:
            node[key] = changed
        elif kind < 4 and isinstance(value, np.ndarray):
            node[key] = other_array(value, draw)
        elif kind < 4:
            node[key] = copied(draw.pick(ODD))
        elif kind == 4:
            del node[key]
        elif kind == 5 and isinstance(node, dict):
            node[draw.pick(["x", "params", "state", "", key])] = copied(draw.pick(ODD))
        elif kind == 6:  # exchanged with another place
            there, name = found[draw.below(len(found))]
            if name in there if isinstance(there, dict) else name < len(there):
                node[key], there[name] = copied(there[name]), copied(value)
        elif isinstance(node, list):
            node.append(copied(value))
        else:
            node[key] = [copied(value)]
    return tree
