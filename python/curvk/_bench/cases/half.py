"""bfloat16 and float16 conversions."""

from __future__ import annotations

from functools import partial

import numpy as np

from ...kernels import half
from ..registry import Array, Arrays, Case, Contender, Factory, Options, Row, optional
from ..storage import decode, empty, encode, sample


def _normal(rng: np.random.Generator, n: int) -> Array:
    return rng.standard_normal(n) * 2.0 ** rng.integers(-20, 15, n)


def _make_widen(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"x": sample(n, fmt, rng, _normal), "out": empty(n, np.float32)}


def _make_narrow(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"x": sample(n, "f32", rng, _normal), "out": empty(n, np.uint16 if fmt == "bf16" else np.float16)}


def _widen(a: Arrays, o: Options, fmt: str) -> Arrays:
    return {"out": half.to_float32(a["x"], out=a["out"])}


def _narrow(a: Arrays, o: Options, fmt: str) -> Arrays:
    return {"out": half.from_float32(a["x"], "bf16" if fmt == "bf16" else "f16", out=a["out"])}


def _torch(a: Arrays, o: Options, fmt: str) -> Contender | None:
    torch = optional("torch")
    if torch is None:
        return None
    x, out = (
        torch.from_numpy(y).view(torch.bfloat16) if y.dtype == np.uint16 else torch.from_numpy(y) for y in a.values()
    )
    return Contender("torch", lambda: out.copy_(x))


def _casting(bf16: str) -> Factory:
    """Casts by NumPy: its own float16, and ml_dtypes' bfloat16."""

    def factory(a: Arrays, o: Options, fmt: str) -> Contender | None:
        ml_dtypes = optional("ml_dtypes")
        if fmt == "bf16" and ml_dtypes is None:
            return None
        x, out = (y.view(ml_dtypes.bfloat16) if y.dtype == np.uint16 else y for y in a.values())
        return Contender(bf16 if fmt == "bf16" else "numpy", partial(np.copyto, out, x, casting="unsafe"))

    return factory


_PEERS = {"torch": _torch, "numpy": _casting("ml_dtypes")}
_ROWS = (Row("default", ("bf16", "f16"), sizes=(10_000, 1_000_000, 10_000_000)),)

CASES = [
    Case(
        op="to_float32",
        make=_make_widen,
        run=_widen,
        truth=lambda a, o, fmt: {"out": decode(a["x"], fmt).astype(np.float32)},
        error="exact",
        variants={"default": {}},
        flops=lambda o: 0,
        streams=lambda o: {"x": "r", "out": "w"},
        peers=_PEERS,
        rows=_ROWS,
    ),
    Case(
        op="from_float32",
        make=_make_narrow,
        run=_narrow,
        truth=lambda a, o, fmt: {"out": encode(a["x"], fmt)},
        error="correctly rounded, ties to even",
        variants={"default": {}},
        flops=lambda o: 0,
        streams=lambda o: {"x": "r", "out": "w"},
        peers=_PEERS,
        rows=_ROWS,
    ),
]
