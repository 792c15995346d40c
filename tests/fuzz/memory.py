"""Arrays of every kind over memory that is watched: what a call may not write must keep its bytes."""

from __future__ import annotations

import array
import ctypes
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from draw import Draw, Hostile, need
from numpy.lib.stride_tricks import as_strided

Array = np.ndarray[Any, Any]
OTHER_DTYPES = ["f4", "f8", "f2", "i8", "u1", "u2", "i2", "i4", "?", "c8", ">f4", ">i8", "O", "S4", "M8[s]", "V4", "g"]


def fill(x: Array, how: int) -> None:
    """Numbers of a kind: the first is harmless to every kernel."""
    if x.dtype.kind == "f":
        special = [0.5, 0.0, np.nan, np.inf, -1.0, 1e-40, 3e38]
        if how < len(special):
            x[...] = special[how]
        else:
            x[...] = np.random.default_rng(how).standard_normal(x.shape)
    elif x.dtype.kind in "iu":
        x[...] = 0 if how == 0 else np.random.default_rng(how).integers(0, 100, x.shape)


class World:
    """The memory of one call, and the objects that misbehave in it."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.blocks: list[tuple[Array, bytes]] = []  # every block of memory, with its bytes before the call
        self.plan: Any = None
        self.columns: tuple[Any, ...] = ()
        self.lists: list[list[Any]] = []
        self.written: list[Any] = []  # the arrays that the call may write

    # ---- watched memory ---------------------------------------------------------------------------------------------

    def block(self, nbytes: int) -> Array:
        memory = np.zeros(nbytes, np.uint8)  # of this size exactly, so that a sanitizer's red zone is next to it
        self.blocks.append((memory, b""))
        return memory

    def new(self, shape: tuple[int, ...], dtype: Any, how: int = 0) -> Array:
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            return np.zeros(shape, dtype)
        x = self.block(int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
        fill(x, how)
        return x

    def watch(self) -> None:
        self.blocks = [(memory, memory.tobytes()) for memory, _ in self.blocks]

    def check(self, text: str, written: list[Array]) -> None:
        """Only the elements of these arrays may have changed since `watch`."""
        for memory, before in self.blocks:
            after = memory.tobytes()
            if after == before:
                continue
            may = np.zeros(memory.nbytes, np.uint8)
            start = memory.ctypes.data
            for x in written:
                offset = x.ctypes.data - start
                if 0 <= offset < memory.nbytes and x.size:
                    elements = np.ndarray(
                        (*x.shape, x.itemsize), np.uint8, buffer=may, offset=offset, strides=(*x.strides, 1)
                    )
                    elements[...] = 1
            changed = np.frombuffer(after, np.uint8) != np.frombuffer(before, np.uint8)
            need(not (changed & (may == 0)).any(), f"{text}: wrote to memory that is not its own")

    # ---- layouts ----------------------------------------------------------------------------------------------------

    def layout(self, shape: tuple[int, ...], dtype: Any, how: int) -> Array:
        """An array of this shape and dtype that lies in memory in one of several ways."""
        draw, dtype = self.draw, np.dtype(dtype)
        kind = draw.below(8)
        if kind == 0 or dtype.hasobject:
            return self.new(shape, dtype, how)
        if kind == 1:
            return self.new(shape[::-1], dtype, how).T
        if kind == 2:
            return self.new((*shape, 2), dtype, how)[..., 0]
        if kind == 3:
            return self.new(shape, dtype, how)[tuple(slice(None, None, -1) for _ in shape)]
        if kind == 4:
            x = self.new(shape, dtype, how)
            return as_strided(x, shape, tuple(0 for _ in shape)) if x.size else x
        if kind == 5:
            x = self.new((int(np.prod(shape)) + 8,), dtype, how)
            return as_strided(x, shape, tuple(dtype.itemsize for _ in shape)) if sum(shape) <= x.size else x[:0]
        if kind == 6:
            x = np.ndarray(shape, dtype, buffer=self.block(int(np.prod(shape)) * dtype.itemsize + 1), offset=1)
            fill(x, how)
            return x
        x = self.new(shape, dtype, how)
        x.flags.writeable = False
        return x

    def wrong_shape(self, shape: tuple[int, ...], grow: bool) -> tuple[int, ...]:
        """Another shape; with `grow` one that has as many elements at the least."""
        n = int(np.prod(shape))
        more: list[tuple[int, ...]] = [(n + 1,), (*shape, 1), (1, *shape), (n, 2), (2, n), (n + 64,)]
        less: list[tuple[int, ...]] = [
            (),
            (0,),
            (max(n - 1, 0),),
            (n // 2,),
            (0, 1 << 40),
            shape[1:],
            (1 << 40, 0),
            (n,),
        ]
        return self.draw.pick(more if grow else more + less)

    # ---- other kinds of object --------------------------------------------------------------------------------------

    def wrap(self, x: Array) -> Any:
        """Something that stands for the array, or pretends to."""
        return self.draw.pick(WRAPS)(self, x)


class Honest:
    """DLPack's protocol and nothing else."""

    def __init__(self, x: Array) -> None:
        self.x = x

    def __dlpack_device__(self) -> Any:
        return self.x.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.x.__dlpack__(**keywords)


class Liar(Honest):
    """Says one thing of itself and is another."""

    def __init__(self, x: Array, device: Any, capsule: Any) -> None:
        super().__init__(x)
        self.device, self.capsule = device, capsule

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.capsule() if callable(self.capsule) else self.capsule


class Acts(Honest):
    """Does something to the call while it is looked at."""

    def __init__(self, x: Array, act: Callable[[], object], where: int) -> None:
        super().__init__(x)
        self.act, self.where = act, where

    def __dlpack_device__(self) -> Any:
        if self.where == 0:
            self.act()
        return super().__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        if self.where == 1:
            self.act()
        return super().__dlpack__(**keywords)


class Meta(type):
    """A type that acts whenever something is asked of it."""

    act: Any = None

    def __getattribute__(cls, name: str) -> Any:
        act = type.__getattribute__(cls, "act")
        if act is not None:
            act()
        return type.__getattribute__(cls, name)


class Getter:
    """An object that acts whenever an attribute is asked of it."""

    def __init__(self, act: Callable[[], object]) -> None:
        object.__setattr__(self, "_act", act)

    def __getattr__(self, name: str) -> Any:
        object.__getattribute__(self, "_act")()
        raise AttributeError(name)


def acts(world: World) -> Callable[[], object]:
    """One of the things that may be done to a call from inside."""

    def shrink() -> None:
        for column in world.lists:
            column.clear()
        world.blocks.clear()  # nobody but the call holds the arrays now
        world.written.clear()

    def grow() -> None:
        for column in world.lists:
            column.append(None)

    def rebind() -> None:
        if world.plan is not None:
            world.plan.rebind(world.columns)

    def run() -> None:
        if world.plan is not None:
            world.plan.run(())

    def reshape() -> None:
        for column in world.columns:
            for x in column if isinstance(column, (list, tuple)) else [column]:
                if type(x) is np.ndarray and x.flags.c_contiguous and x.size:
                    x.shape = (1, 1, 1, *x.shape) if x.ndim < 8 else (x.size,)

    return world.draw.pick([shrink, grow, rebind, run, reshape, _fail])


def _fail() -> None:
    raise Hostile("looked at")


def _once(act: Callable[[], object]) -> Callable[[], object]:
    """Acts the first time: what calls itself again would otherwise end in a RecursionError of its own making."""
    done = False

    def first() -> None:
        nonlocal done
        if not done:
            done = True
            act()

    return first


def _meta(world: World, x: Array, name: str) -> Any:
    attributes: dict[str, Any] = {"__module__": "torch.nn.parameter"} if name == "Parameter" else {}
    torch = sys.modules.get("torch")
    if torch is not None and world.draw.byte() % 2:
        attributes["__dlpack_c_exchange_api__"] = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    made = Meta(name, (Honest,), attributes)
    found = made(x)
    made.act = staticmethod(_once(acts(world)))
    return found


def _cuda(world: World, x: Array) -> Any:
    description = {
        "shape": x.shape,
        "typestr": x.dtype.str,
        "data": (x.ctypes.data, False),
        "version": 3,
        "strides": None,
    }
    key = world.draw.pick(["", "shape", "typestr", "data", "version", "strides"])
    if key:
        description[key] = world.draw.pick([None, -1, "x", (), (-1,), (1, 2, 3), object()])
    return type("Device", (), {"__cuda_array_interface__": description})()


def _array_array(world: World, x: Array) -> Any:
    return array.array(world.draw.pick("fdbBhHiIlLqQ"), [1] * max(8, x.size))  # as long as the numbers say


def _used(world: World, x: Array) -> Any:
    capsule = Honest(x).__dlpack__() if x.dtype.kind in "fiu" and x.dtype.isnative and x.flags.writeable else None
    if capsule is not None and world.draw.byte() % 2:
        np.from_dlpack(Liar(x, (1, 0), capsule))
    return Liar(x, (1, 0), capsule)


def _tensor(world: World, x: Array) -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        return x
    kind = world.draw.below(8)
    try:
        t = torch.from_numpy(x)
    except (TypeError, ValueError):
        return x
    if kind == 1 and t.is_floating_point():
        t.requires_grad_(True)
    if kind == 2:
        return t.to_sparse() if t.ndim and t.is_floating_point() else t
    if kind == 3 and t.is_floating_point():
        return torch.nn.Parameter(t)
    if kind == 4:
        return t.to("meta")
    if kind == 5 and t.is_floating_point() and t.element_size() > 2:
        return torch.view_as_complex(torch.stack([t, t], -1)).conj().imag
    if kind == 6 and t.is_floating_point():
        return t.bfloat16()
    if kind == 7:
        return t.as_subclass(type("Sub", (torch.Tensor,), {}))
    return t


WRAPS: list[Callable[[World, Array], Any]] = [
    lambda w, x: Honest(x),
    lambda w, x: None,
    lambda w, x: w.draw.pick([1.0, 3, "abc", b"abcd", bytearray(8), {}, object(), Array, int, ..., slice(1), {1: x}]),
    lambda w, x: [x],
    lambda w, x: (x,),
    lambda w, x: x.tolist() if not x.dtype.hasobject and x.size < 100 else [x],
    lambda w, x: memoryview(x) if x.dtype.kind in "fiu" else memoryview(b"1234"),
    _array_array,
    lambda w, x: (ctypes.c_float * max(8, x.size))(),
    lambda w, x: x.view(np.ma.MaskedArray),
    lambda w, x: x.view(np.recarray),
    lambda w, x: x.view(type("Mine", (np.ndarray,), {})),
    lambda w, x: x.astype(ml_dtypes.bfloat16) if x.dtype.kind in "f" else x,
    _cuda,
    _used,
    lambda w, x: Liar(x, w.draw.pick([(2, 0), (1,), (), None, "cpu", (1 << 70, 0), (10, 0), (-1, -1), (1, 0)]), None),
    lambda w, x: Liar(x, (1, 0), w.draw.pick([None, 1, "x", object, _fail, lambda: x])),
    lambda w, x: Acts(x, _once(acts(w)), w.draw.below(2)),
    lambda w, x: Getter(_once(acts(w))),
    lambda w, x: _meta(w, x, "Parameter"),
    lambda w, x: _meta(w, x, "Tensor"),
    _tensor,
    _tensor,
]


class Number:
    """A scalar that acts while it is converted."""

    def __init__(self, value: Any, act: Callable[[], object]) -> None:
        self.value, self.act = value, act

    def __float__(self) -> float:
        self.act()
        return float(self.value)

    def __index__(self) -> int:
        self.act()
        return int(self.value)


def odd_number(world: World, value: Any) -> Any:
    """A scalar in place of a valid one, mostly one that has to be refused."""
    choices: list[Any] = [
        -1, 0, 1, 2, 3, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, -(1 << 63), 10**400, -0.0, 0.5, 1.5, 1e308,
        float("nan"), float("inf"), -float("inf"), 5e-324, True, None, "1", b"1", 1j, [1], {}, object(),
        np.float32(0.5), np.int64(2), np.uint64(1 << 63), np.array(1), np.array([1.0]), np.bool_(1), np.str_("1"),
    ]  # fmt: skip
    kind = world.draw.below(len(choices) + 1)
    return Number(value, _once(acts(world))) if kind == len(choices) else choices[kind]
