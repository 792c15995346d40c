"""Eigenvalues and singular values of many small matrices; n elements are as many whole matrices as reach n."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels import linalg
from ..interval import ARITHMETIC, Interval
from ..registry import Array, Arrays, Case, Contender, Factory, Options, Row
from ..storage import encode

CLASS = 4.0
"""The error class: this often the larger side and eps, of the largest value."""


def _stack(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Array:
    p, d = o["shape"]
    return encode(rng.standard_normal((-(-n // (p * d)), p, d)), fmt)


def _make_eigh(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    A = _stack(n, fmt, rng, o)
    return {"A": A.ravel(), "w": np.zeros(A.shape[:2], A.dtype).ravel(), "V": np.zeros_like(A).ravel()}


def _make_svd(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    A = _stack(n, fmt, rng, o)
    (count, p, d), m = A.shape, min(A.shape[1:])
    lengths = {"U": count * p * m, "s": count * m, "Vt": count * m * d}
    return {"A": A.ravel(), **{k: np.zeros(length, A.dtype) for k, length in lengths.items()}}


def _run_eigh(a: Arrays, o: Options, fmt: str) -> Arrays:
    d = o["shape"][1]
    linalg.eigh_batch(a["A"].reshape(-1, d, d), out=(a["w"].reshape(-1, d), a["V"].reshape(-1, d, d)))
    return {"w": a["w"], "V": a["V"]}


def _run_svd(a: Arrays, o: Options, fmt: str) -> Arrays:
    p, d = o["shape"]
    m = min(p, d)
    out = a["U"].reshape(-1, p, m), a["s"].reshape(-1, m), a["Vt"].reshape(-1, m, d)
    linalg.svd_batch(a["A"].reshape(-1, p, d), out=out)
    return {"U": a["U"], "s": a["s"], "Vt": a["Vt"]}


def _within(exact: Array, error: Array, fmt: str, either: Any = False) -> Interval:
    """Values with their errors; of either sign where that is open."""
    x, e, open_ = (np.broadcast_to(y, exact.shape).ravel() for y in (exact, error, either))
    low, high = np.where(open_, -abs(x), x) - e, np.where(open_, abs(x), x) + e
    wide = ARITHMETIC[fmt].wide
    return Interval(low.astype(wide), high.astype(wide), ARITHMETIC[fmt])


def _vectors(X: Array, error: Array) -> tuple[Array, Array]:
    """Columns with the sign that the kernel gives them, and whether their errors leave it open."""
    size = np.sort(abs(X), axis=1)
    second = size[:, -2] if X.shape[1] > 1 else np.zeros_like(size[:, -1])
    first = np.take_along_axis(X, abs(X).argmax(axis=1)[:, None, :], axis=1)
    return np.where(first < 0, -1.0, 1.0), (size[:, -1] - second <= 2 * error)[:, None, :]


def _errors(values: Array, side: int, fmt: str, to_zero: bool) -> tuple[Array, Array]:
    """The error class of the values, and what it means for their vectors: itself over the gap to the next value.

    Twice the class, for the kernel's and for the truth's own, which is LAPACK's in float64.
    """
    eps = float(np.finfo(np.float32 if fmt == "f32" else np.float64).eps)
    error = 2 * CLASS * side * eps * abs(values).max(axis=1, keepdims=True, initial=0)
    gaps = abs(values[:, :, None] - values[:, None, :])
    gaps[:, np.arange(values.shape[1]), np.arange(values.shape[1])] = np.inf
    gap = gaps.min(axis=2, initial=np.inf)
    gap = np.minimum(gap, abs(values)) if to_zero else gap
    with np.errstate(divide="ignore"):
        return error, np.minimum(2 * error / gap, 2.0)


def _true_eigh(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    d = o["shape"][1]
    w, V = np.linalg.eigh(a["A"].reshape(-1, d, d).astype(np.float64), UPLO="L")
    error, turned = _errors(w, d, fmt, to_zero=False)
    sign, open_ = _vectors(V, turned)
    return {"w": _within(w, error, fmt), "V": _within(V * sign, turned[:, None, :], fmt, open_)}


def _true_svd(a: Arrays, o: Options, fmt: str) -> dict[str, Any]:
    p, d = o["shape"]
    U, s, Vt = np.linalg.svd(a["A"].reshape(-1, p, d).astype(np.float64), full_matrices=False)
    error, turned = _errors(s, max(p, d), fmt, to_zero=p != d)
    sign, open_ = _vectors(U, turned)
    V = Vt.transpose(0, 2, 1) * sign
    right = _within(V.transpose(0, 2, 1), turned[:, :, None], fmt, open_.transpose(0, 2, 1))
    return {"U": _within(U * sign, turned[:, None, :], fmt, open_), "s": _within(s, error, fmt), "Vt": right}


def _numpy(op: str) -> Factory:
    """NumPy's LAPACK on the same matrices; its signs are others, so the values alone are compared."""

    def factory(a: Arrays, o: Options, fmt: str) -> Contender | None:
        A = a["A"].reshape(-1, *o["shape"])
        values = np.empty_like(a["w" if op == "eigh" else "s"])

        def step() -> None:
            if op == "eigh":
                values[:] = np.linalg.eigh(A).eigenvalues.ravel()
            else:
                values[:] = np.linalg.svd(A, full_matrices=False).S.ravel()

        return Contender("numpy", step, arrays={"w" if op == "eigh" else "s": values})

    return factory


def _flops(o: Options) -> int:
    """Six sweeps of rotations: 30 operations to find one and, for each element of a column, 12 (eigh) or 14 (svd)."""
    p, d = max(o["shape"]), min(o["shape"])
    per_rotation = 30 + (12 * d if o.get("symmetric") else 8 * p + 6 * d)
    return int(3 * (d - 1) * per_rotation / p)


_SQUARE: dict[str, Options] = {f"d{d}": {"shape": (d, d)} for d in (2, 4, 8, 16, 32)}
_FEW = (64_000,)
_ERROR = f"{CLASS:g} max(p, d) eps of the largest value; vectors that over the gap to the next value"

CASES = [
    Case(
        op="eigh_batch",
        make=_make_eigh,
        run=_run_eigh,
        truth=_true_eigh,
        error=_ERROR,
        variants={
            k: {**o, "symmetric": True}
            for k, o in {**_SQUARE, "d1": {"shape": (1, 1)}, "d7": {"shape": (7, 7)}}.items()
        },
        timed=frozenset({"d32"}),
        flops=_flops,
        streams=lambda o: {"A": "r", "V": "w"},
        sizes=(0, 1, 15, 16, 17, 1023, 32769),
        peers={"numpy": _numpy("eigh")},
        rows=tuple(Row(k, ("f32", "f64"), sizes=_FEW) for k in ("d2", "d8", "d32")),
        special=False,
    ),
    Case(
        op="svd_batch",
        make=_make_svd,
        run=_run_svd,
        truth=_true_svd,
        error=_ERROR,
        variants={**_SQUARE, "tall": {"shape": (13, 3)}, "wide": {"shape": (3, 13)}, "row": {"shape": (1, 5)}},
        timed=frozenset({"d32"}),
        flops=_flops,
        streams=lambda o: {"A": "r", "U": "w", "Vt": "w"},
        sizes=(0, 1, 15, 16, 17, 1023, 32769),
        peers={"numpy": _numpy("svd")},
        rows=(
            Row("d8", ("f32", "f64"), sizes=(*_FEW, 6_400_000)),
            *(Row(k, ("f32", "f64"), sizes=_FEW) for k in ("d2", "d32")),
        ),
        special=False,
    ),
]
