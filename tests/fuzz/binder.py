"""Every kernel of the headers through the compiled binder, with arrays and numbers of every kind.

The binder knows the sizes of arrays in lists; those that go with a number (n, k, d) are the caller's to check, so here
they are as large as the numbers say, or larger.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from curvk import _arrays
from curvk._backend import core
from curvk._signatures import Argument, Function, ops
from draw import Draw, Hostile, need
from memory import OTHER_DTYPES, Number, World, odd_number

NAMES = sorted(ops())
REFUSED = (TypeError, ValueError, BufferError)
EXPLAINED = ("the plan's last arrays were refused; rebind it", "the plan is running in another thread")
Sizes = dict[str, int]

_PACKED: dict[str, Callable[[Sizes], int]] = {
    "packed": lambda s: _padded(s) * s["d"], "norms": lambda s: _padded(s), "center": lambda s: s["d"],
}  # fmt: skip
_STEIN: dict[str, Callable[[Sizes], int]] = {
    **dict.fromkeys(("x", "w", "p_c", "p_sigma", "D", "shift"), lambda s: s["n"] * s["d"]),
    **dict.fromkeys(("drive", "repulsion", "centred"), lambda s: s["n"] * s["d"]),
    **dict.fromkeys(("B", "C", "A"), lambda s: s["n"] * s["d"] ** 2),
    **dict.fromkeys(("z", "y", "candidates"), lambda s: s["n"] * s["d"] * s["popsize"]),
    **dict.fromkeys(("values", "order"), lambda s: s["n"] * s["popsize"]),
    **dict.fromkeys(("columns", "products"), lambda s: s["n"] * s["c"]),
    "sigma": lambda s: s["n"], "weights": lambda s: s["popsize"],
    "work": lambda s: s["n"] * (2 * s["d"] + s["popsize"]),
}  # fmt: skip
LENGTHS: dict[str, dict[str, Callable[[Sizes], int]]] = {
    "budget_learn": {
        "K": lambda s: s["n"] * s["capacity"], "G": lambda s: s["n"] ** 2, "y": lambda s: s["n"] * s["c"],
        "u": lambda s: s["n"], "f": lambda s: s["n"] * s["c"], "coef": lambda s: s["c"] * s["capacity"],
        "matrix": lambda s: s["capacity"] ** 2, "sums": lambda s: 2, "placed": lambda s: s["n"],
        "rows": lambda s: s["n"], "counts": lambda s: 4,
    },
    "budget_predict": {
        "K": lambda s: s["n"] * s["m"], "coef": lambda s: s["c"] * s["capacity"], "f": lambda s: s["n"] * s["c"]
    },
    "loss_rule": {"window": lambda s: s["patience"], "stored": lambda s: 1, "loss": lambda s: 1, "at": lambda s: 2},
    "loss_window": {"window": lambda s: s["patience"], "stored": lambda s: 1, "out": lambda s: 3},
    "gram_pack": {"z": lambda s: s["m"] * s["d"], **_PACKED},
    "gram_matvec": {
        "x": lambda s: s["n"] * s["d"], **_PACKED, "w": lambda s: s["m"] * s["c"], "out": lambda s: s["n"] * s["c"],
        "keep": lambda s: s["n"] * s["m"],
    },
    "gram_select": {
        "x": lambda s: s["n"] * s["d"], **_PACKED, "found": lambda s: s["n"] * s["capacity"],
        "counts": lambda s: s["n"] * 4,
    },
    "to_float32": {"x": lambda s: s["n"], "out": lambda s: s["n"]},
    "from_float32": {"x": lambda s: s["n"], "out": lambda s: s["n"]},
    "eigh_batch": {
        "A": lambda s: s["n"] * s["d"] ** 2, "w": lambda s: s["n"] * s["d"], "V": lambda s: s["n"] * s["d"] ** 2
    },
    "svd_batch": {
        "A": lambda s: s["n"] * s["p"] * s["d"], "U": lambda s: s["n"] * s["p"] * min(s["p"], s["d"]),
        "s": lambda s: s["n"] * min(s["p"], s["d"]), "Vt": lambda s: s["n"] * s["d"] * min(s["p"], s["d"]),
    },
    "philox4x32": {"counter": lambda s: 4 * s["n"], "key": lambda s: 2, "out": lambda s: 4 * s["n"]},
    "online_learn": {
        "phi": lambda s: s["n"] * s["k"], "y": lambda s: s["n"] * s["c"], "f": lambda s: s["n"] * s["c"],
        "w": lambda s: s["c"] * s["k"], "inverse": lambda s: s["c"] * s["k"] ** 2, "counts": lambda s: 2,
    },
    "sjlt": {"A": lambda s: s["n"] * s["d"], "out": lambda s: s["s"] * s["d"]},
    "sjlt_rows": {"out": lambda s: s["n"] * s["s"]},
    "eigh_update": {"z": lambda s: s["k"], "d": lambda s: s["k"], "V": lambda s: s["m"] * s["k"]},
    "qr_update": {
        "u": lambda s: s["m"], "v": lambda s: s["n"], "Q": lambda s: s["m"] * s["n"], "R": lambda s: s["n"] ** 2
    },
    **dict.fromkeys([f"stein_{name}" for name in ("factor", "sample", "shift", "center", "repel", "adapt")], _STEIN),
}  # fmt: skip
BESIDE = {"at": lambda s: 2, "draws": lambda s: s["k"], "coefs": lambda s: s["k"], "out": lambda s: max(s["k"], 4)}
"""Elements of the arrays that go with numbers, as the headers say; those of list functions last."""

COUNTED = ("n", "m", "d", "c", "k", "p", "s", "capacity", "popsize", "patience")
_LEAST = {"d": 1, "c": 2, "k": 1, "p": 1, "s": 1, "capacity": 1, "popsize": 1, "patience": 1}


def _padded(s: Sizes) -> int:
    width = 32  # of float; double's 16 need no more
    return -(-s["m"] // width) * width


def _sizes(op: str, kernel: Function, draw: Draw) -> Sizes:
    sizes = {}
    for a in kernel.scalars:
        if a.name in COUNTED:
            sizes[a.name] = _LEAST.get(a.name, 0) + draw.below(20)
    if op == "stein_center" or op == "stein_repel":
        sizes["c"] = sizes["d"] + 1 + draw.below(3)
    if op == "qr_update":
        sizes["n"] += 1
        sizes["m"] += sizes["n"]
    if op == "budget_predict":
        sizes["capacity"] += sizes["m"]
    if op in ("budget_learn", "online_learn"):
        sizes["n"] = max(sizes["n"], 1)
    sizes.setdefault("k", 4)
    return sizes


def _valid(a: Argument) -> Any:
    """A number within the argument's range."""
    interval = a.range
    if a.ctype == "int64_t":
        return 1 if interval is None or 1 in interval else int(interval.low)
    return next(x for x in (0.5, 1.0, 2.0, interval.low if interval else 0.0) if interval is None or x in interval)


class Call:
    """The arguments of one call, drawn from bytes."""

    def __init__(self, draw: Draw) -> None:
        self.world = World(draw)
        self.op = draw.pick(NAMES)
        variants = ops()[self.op]
        self.format = draw.pick(list(variants))
        self.kernel = variants[self.format]
        self.mode = draw.below(6)  # call, Plan, a plan bound again, the caller's own tuples, a format that is named
        self.sizes = _sizes(self.op, self.kernel, draw)
        self.rows = draw.pick([1, 2, 0, 3, 5]) if self.kernel.is_list else 0
        self.listed = self.kernel.is_list and (self.rows != 1 or draw.byte() % 2 == 0)
        self.shapes = [self._shape() for _ in range(self.rows)]
        self.how = draw.byte()
        self.world.columns = self.columns = tuple(self._column(a) for a in self.kernel.arrays)
        self.scalars = tuple(self._scalar(a) for a in self.kernel.scalars)

    def _shape(self) -> tuple[int, ...]:
        draw = self.world.draw
        return draw.pick([(5,), (0,), (1,), (37,), (4, 9), (3, 0), (), (2, 3, 5), (300,), (17, 16)])

    def _column(self, a: Argument) -> Any:
        draw = self.world.draw
        if a.nullable and self.kernel.is_list and draw.byte() % 2 == 0:
            return None  # elsewhere numbers say whether it may be left out
        if self.kernel.is_list and a.pointers == 2:
            items = [self._item(a, shape) for shape in self.shapes]
            if not self.listed:
                return items[0]
            if draw.rarely():
                items = items[:-1] if draw.byte() % 2 else [*items, items[0] if items else None]
            if (self.mode == 3 and a.written) or draw.rarely():
                return tuple(items)
            self.world.lists.append(items)
            return items
        if a.per_row:
            return self._item(a, (self.rows,))
        length = (BESIDE if self.kernel.is_list else LENGTHS[self.op])[a.name](self.sizes)
        return self._item(a, (length,), fixed=True)

    def _item(self, a: Argument, shape: tuple[int, ...], fixed: bool = False) -> Any:
        """An array for this argument; `fixed`: of so many elements at the least, unless it is to be refused."""
        world, draw = self.world, self.world.draw
        if a.per:
            shape = (-(-int(np.prod(shape)) // a.per),)
        dtype: Any = _arrays.dtype_of(a, self.format)
        how = 0 if dtype.kind in "iu" or a.name == "u" else self.how
        if draw.byte() < 128:
            x = world.new(shape, dtype, how)
        else:
            kind = draw.below(8)
            if kind == 0:
                dtype = np.dtype(draw.pick(OTHER_DTYPES))
                x = world.new(shape, dtype, 0 if dtype.kind in "iu" else how)
            elif kind == 1:
                x = world.new(world.wrong_shape(shape, fixed), dtype, how)
            elif kind == 2 and world.blocks and a.name != "order":  # indices, which `kernels.stein` checks
                x = self._shared(shape, dtype)
            elif kind < 5:
                x = world.layout(shape, dtype, how)
            else:
                x = world.new(shape, dtype, how)
                wrapped = world.wrap(x)
                if wrapped is None and a.nullable and fixed:
                    wrapped = x
                if a.written:  # which the binder may take
                    self.world.written.append(x)
                return wrapped
        if a.written:
            self.world.written.append(x)
        return x

    def _shared(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array over memory that another one has, where that is large enough."""
        draw = self.world.draw
        memory, _ = draw.pick(self.world.blocks)
        n = int(np.prod(shape)) * dtype.itemsize
        room = (memory.nbytes - n) // dtype.itemsize
        if room < 0:
            return self.world.new(shape, dtype)
        offset = (draw.byte() % (room + 1)) * dtype.itemsize
        return memory[offset : offset + n].view(dtype).reshape(shape)

    def _scalar(self, a: Argument) -> Any:
        draw = self.world.draw
        known = self.sizes.get(a.name) if not self.kernel.is_list or a.name == "k" else None
        value = _valid(a) if known is None else known
        if self.op == "stein_shift" and a.name == "mu":
            value = self.sizes["popsize"]
        if self.op == "budget_learn" and a.name == "rule":
            value = draw.below(7)
        if not draw.rarely():
            return value
        odd = odd_number(self.world, value)
        counts = known is not None or a.name in ("mu", "rule", "blocks")
        if counts and hasattr(odd, "__index__") and not isinstance(odd, Number):
            return -1 - draw.below(3) if a.range is not None else value  # a lie about sizes is the caller's
        return odd

    # ---- the call ---------------------------------------------------------------------------------------------------

    def _make(self, format: str | None) -> Any:
        self.world.plan = core.Plan(self.op, self.columns, format)
        return self.world.plan

    def _do(self) -> None:
        if self.mode == 0:
            return core.call(self.op, self.columns, self.scalars)
        if self.mode == 5:
            format = self.world.draw.pick([self.format, "f32", "f64", "bf16", "f16", "i64", "x"])
            return core.call(self.op, self.columns, self.scalars, format)
        plan = self._make(None)
        plan.run(self.scalars)
        if self.mode == 2:
            columns = list(self.columns)
            at = self.world.draw.below(len(columns))
            columns[at] = self._column(self.kernel.arrays[at])
            self.world.watch()
            self.world.columns = self.columns = tuple(columns)
            plan.rebind(self.columns)
            plan.run(self.scalars)
        elif self.mode == 3:
            plan.rebind(self.columns)
            plan.run(self.scalars)
        elif self.mode == 4:
            plan.rebind(self.world.draw.pick([(*self.columns, None), self.columns[:-1], ()]))
        return None

    def run(self) -> None:
        text = f"{self.op} {self.format} mode {self.mode}"
        self.world.watch()
        counted = [x for x in self.columns if type(x) is np.ndarray]
        before = [sys.getrefcount(x) for x in counted]
        refused = False
        try:
            self._do()
        except REFUSED as error:
            refused = True
            words = f"{error}"
            known = (self.op, "incompatible function arguments", "no format named")
            need(any(w in words for w in known), f"{text}: {type(error).__name__}: {words}")
        except Hostile:
            refused = True
        except KeyError as error:
            refused = True
            need(self.mode == 5, f"{text}: {error!r}")
        except RuntimeError as error:
            refused = True
            need(any(w in f"{error}" for w in EXPLAINED), f"{text}: {error!r}")
        self.world.check(text, self.world.written if not refused or self.mode in (2, 3, 4) else [])
        if self.mode in (0, 5):
            after = [sys.getrefcount(x) for x in counted]
            pairs = zip(before, after, strict=True)
            need(
                all(b >= a for b, a in pairs), f"{text}: references {before} became {after}"
            )  # fewer: lists were emptied


def one(data: bytes) -> None:
    try:
        call = Call(Draw(data))
    except Hostile:  # torch or NumPy looked at it, before curvk did
        return
    call.run()


SEEDS = [bytes([i, k]) for i in range(len(NAMES)) for k in range(2)]
