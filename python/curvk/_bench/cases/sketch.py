"""Sketches and updates of factorisations; n elements are as many rows of the matrix as reach n."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels import noise, sketch
from ..interval import F64, Interval
from ..registry import Array, Arrays, Case, Contender, Options, Row, optional
from ..storage import encode

_SIZES = (0, 1, 2, 3, 15, 16, 17, 1023, 32769)


def _about(value: Any, error: Any) -> Interval:
    value, error = (np.ravel(np.asarray(x, F64.wide)) for x in (value, error))
    return Interval(value - error, value + error, F64)


# ---- sjlt -----------------------------------------------------------------------------------------------------------


def _make_sjlt(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    d = o["d"]
    A = encode(rng.standard_normal(-(-n // d) * d), fmt)
    return {"A": A, "out": rng.standard_normal(o["s"] * d)}


def _run_sjlt(a: Arrays, o: Options, fmt: str) -> Arrays:
    A, out = a["A"].reshape(-1, o["d"]), a["out"].reshape(o["s"], o["d"])
    sketch.sjlt(A, out, seed=o["seed"], first_row=o["first_row"], blocks=o["blocks"])
    return {"out": a["out"]}


def _places(n: int, o: Options) -> tuple[Array, Array]:
    """Column and sign of each row's entry in each block, (n, blocks), from Philox itself by the header's formula."""
    row = o["first_row"] + np.arange(n, dtype=np.int64)[:, None]
    block = np.broadcast_to(np.arange(o["blocks"]), (n, o["blocks"]))
    at, seed = row % 32, o["seed"]
    number = np.broadcast_to(row // 32 * 8 + at % 16 // 2, block.shape)
    tensor = np.full_like(block, noise.tensor_word("sjlt", "sketch"))
    counter = np.stack([number & 0xFFFFFFFF, number >> 32, tensor, block], axis=2)
    words = noise.philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32])
    index = np.broadcast_to(at // 16 * 2 + at % 2, block.shape)[:, :, None]
    word = np.take_along_axis(words, index, axis=2)[:, :, 0].astype(np.int64)
    width = o["s"] // o["blocks"]
    return block * width + ((word >> 1) * width >> 31), np.where(word & 1, -1.0, 1.0)


def _entries(n: int, o: Options) -> Array:
    """Those rows of S, exactly but for the one rounding of the coefficient."""
    column, sign = _places(n, o)
    S = np.zeros((n, o["s"]), F64.wide)
    np.put_along_axis(S, column, sign / np.sqrt(F64.wide(o["blocks"])), axis=1)
    return S


def _true_sjlt(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    A, out = (a[k].reshape(-1, o["d"]).astype(F64.wide) for k in ("A", "out"))
    S = _entries(len(A), o)
    size, roundings = abs(out) + abs(S).T @ abs(A), (S != 0).sum(0)[:, None] + 3
    return {"out": _about(out + S.T @ A, size * F64.unit * roundings)}


def _scipy_sketch(a: Arrays, o: Options, fmt: str) -> Contender | None:
    linalg = optional("scipy.linalg")
    if linalg is None or o["blocks"] > 1:
        return None
    A, rng = a["A"].reshape(-1, o["d"]), np.random.default_rng(0)
    return Contender("scipy", lambda: linalg.clarkson_woodruff_transform(A, o["s"], rng), arrays={}, other=True)


_LATE = 3 * 2**40 + 77

_SKETCHES: dict[str, Options] = {
    "count": {"d": 8, "s": 16, "blocks": 1, "seed": 7, "first_row": 0},
    "blocks": {"d": 3, "s": 20, "blocks": 4, "seed": 2**64 - 3, "first_row": 100},
    "many": {"d": 35, "s": 12, "blocks": 6, "seed": 2**40, "first_row": _LATE},
    "column": {"d": 1, "s": 1, "blocks": 1, "seed": 0, "first_row": 31},
    "dense": {"d": 2, "s": 7, "blocks": 7, "seed": 1, "first_row": 5},
    "tiles": {"d": 300, "s": 500, "blocks": 1, "seed": 1, "first_row": 5},
    "wide": {"d": 100, "s": 500, "blocks": 1, "seed": 1, "first_row": 0},
    "long": {"d": 64, "s": 256, "blocks": 1, "seed": 1, "first_row": 0},
    "long4": {"d": 64, "s": 256, "blocks": 4, "seed": 1, "first_row": 0},
}


def _make_rows(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    return {"out": rng.standard_normal(-(-n // o["s"]) * o["s"])}


def _run_rows(a: Arrays, o: Options, fmt: str) -> Arrays:
    out = a["out"].reshape(-1, o["s"])
    keys = {k: o[k] for k in ("seed", "first_row", "blocks")}
    sketch.sjlt_rows(len(out), o["s"], out=out, **keys)
    return {"out": a["out"]}


def _true_rows(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    S = _entries(a["out"].size // o["s"], o)
    return {"out": _about(S, 2 * F64.unit * abs(S))}


# ---- eigh_update ----------------------------------------------------------------------------------------------------

_UPDATES: dict[str, Options] = {
    "plain": {"k": 7, "rho": 0.5, "kind": "plain"},
    "falls": {"k": 16, "rho": -2.0, "kind": "plain"},
    "cluster": {"k": 17, "rho": 1.0, "kind": "cluster"},
    "equal": {"k": 9, "rho": -1.0, "kind": "equal"},
    "zeros": {"k": 12, "rho": 3.0, "kind": "zeros"},
    "one": {"k": 1, "rho": 1.0, "kind": "plain"},
    "two": {"k": 2, "rho": -1.0, "kind": "plain"},
    "none": {"k": 5, "rho": 0.0, "kind": "plain"},
    "k40": {"k": 40, "rho": 1.0, "kind": "plain"},
    "k128": {"k": 128, "rho": 1.0, "kind": "plain"},
}


def _make_update(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    k = o["k"]
    d, z = rng.standard_normal((2, k))
    if o["kind"] == "cluster":
        d[3:11] = d[3] + 1e-9 * np.arange(8)
    if o["kind"] == "equal":
        d = np.round(d)
    if o["kind"] == "zeros":
        z[::3] = 0
        z[1::3] *= 1e-15
    # Rows of an orthogonal matrix, as many as there are, over and over.
    rows = np.linalg.qr(rng.standard_normal((k, k)))[0]
    return {"z": z, "d": np.sort(d), "V": rows[np.arange(-(-n // k)) % k].ravel()}


def _run_update(a: Arrays, o: Options, fmt: str) -> Arrays:
    sketch.eigh_update(a["d"], a["V"].reshape(-1, o["k"]), a["z"], o["rho"])
    return {"d": a["d"], "V": a["V"]}


def _true_update(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    """LAPACK's values; its vectors as far as their gaps decide them, with the sign of the component that stays."""
    k = o["k"]
    inner = np.diag(a["d"]) + o["rho"] * np.outer(a["z"], a["z"])
    error = 16 * max(k, 4) * 2 * F64.unit * max(abs(a["d"]).max(), abs(o["rho"]) * a["z"] @ a["z"])
    d, U = np.linalg.eigh(inner)
    gaps = np.append(np.inf, np.append(np.diff(d), np.inf))
    with np.errstate(divide="ignore"):
        turned = np.minimum(2 * error / np.minimum(gaps[:-1], gaps[1:]), 2.0)
    V = a["V"].reshape(-1, k) @ (U * np.where(np.diag(U) < 0, -1.0, 1.0))
    size = np.where(abs(np.diag(U)) <= turned + 1e-9, abs(V), 0) + turned  # where nothing stays, either sign
    return {"d": _about(d, np.full(k, error)), "V": _about(np.where(size > abs(V), 0, V), size + k * F64.unit * 4)}


def _numpy_eigh(a: Arrays, o: Options, fmt: str) -> Contender | None:
    """Of the changed matrix, and the product with V."""
    k = o["k"]
    V, d = a["V"].reshape(-1, k), a["d"].copy()

    def step() -> None:
        inner = o["rho"] * np.outer(a["z"], a["z"])
        inner.flat[:: k + 1] += d
        a["d"][:], U = np.linalg.eigh(inner)
        V[:] = V @ U

    return Contender("numpy", step, arrays={"d": a["d"]})


# ---- qr_update ------------------------------------------------------------------------------------------------------


def _rows(n: int, cols: int) -> int:
    return max(cols, -(-n // cols))


def _make_qr(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    cols = o["n"]
    Q, R = np.linalg.qr(rng.standard_normal((_rows(n, cols), cols)))
    u, v = rng.standard_normal(len(Q)), rng.standard_normal(cols)
    if o.get("inside"):
        u = Q @ v
    return {"u": u, "v": v, "Q": Q.ravel(), "R": R.ravel()}


def _run_qr(a: Arrays, o: Options, fmt: str) -> Arrays:
    sketch.qr_update(a["Q"].reshape(-1, o["n"]), a["R"].reshape(o["n"], o["n"]), a["u"], a["v"])
    return {"Q": a["Q"], "R": a["R"]}


def _true_qr(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    """LAPACK's factors of the changed matrix, the diagonal of R made positive; the condition magnifies the error."""
    n = o["n"]
    Q, R = a["Q"].reshape(-1, n), a["R"].reshape(n, n)
    changed = Q @ R + np.outer(a["u"], a["v"])
    size = np.linalg.norm(R) + np.linalg.norm(a["u"]) * np.linalg.norm(a["v"])
    error = 32 * n * F64.unit * size / np.linalg.svd(changed, compute_uv=False)[-1]
    Q, R = np.linalg.qr(changed)
    sign = np.where(np.diag(R) < 0, -1.0, 1.0)
    above = np.triu(np.full((n, n), error * size))
    return {"Q": _about(Q * sign, np.full(Q.shape, error)), "R": _about(sign[:, None] * R, above)}


def _scipy_qr(a: Arrays, o: Options, fmt: str) -> Contender | None:
    """On arrays in the order that LAPACK works on in place."""
    linalg = optional("scipy.linalg")
    if linalg is None:
        return None
    n = o["n"]
    Q, R, u, v = (np.array(x, order="F") for x in (a["Q"].reshape(-1, n), a["R"].reshape(n, n), a["u"], a["v"]))

    def step() -> None:
        linalg.qr_update(Q, R, u.copy(), v.copy(), overwrite_qruv=True, check_finite=False)

    return Contender("scipy", step, arrays={}, other=True)  # whose signs are others


CASES = [
    Case(
        op="sjlt",
        make=_make_sjlt,
        run=_run_sjlt,
        truth=_true_sjlt,
        error="a coefficient's, a product's and a sum's rounding for each term, in the rows' order",
        variants=_SKETCHES,
        timed=frozenset({"wide", "long", "long4"}),
        flops=lambda o: 2 * o["blocks"],
        streams=lambda o: {"A": "r"},
        sizes=_SIZES,
        peers={"scipy": _scipy_sketch},
        rows=(
            Row("wide", ("f32", "f64"), sizes=(2_000_000,), headline=True),
            Row("long", ("f64",), sizes=(6_400_000,)),
            Row("long4", ("f64",), sizes=(6_400_000,)),
        ),
        special=False,
    ),
    Case(
        op="sjlt_rows",
        make=_make_rows,
        run=_run_rows,
        truth=_true_rows,
        error="one rounding of the square root and one of the quotient",
        variants={k: v for k, v in _SKETCHES.items() if k in ("count", "blocks", "many", "column", "dense")},
        flops=lambda o: 0,
        streams=lambda o: {"out": "w"},
        sizes=_SIZES,
        special=False,
    ),
    Case(
        op="eigh_update",
        make=_make_update,
        run=_run_update,
        truth=_true_update,
        error="4 max(k, 4) eps of the largest eigenvalue or change; vectors that over the gap",
        variants=_UPDATES,
        timed=frozenset({"k128"}),
        flops=lambda o: 2 * o["k"],
        streams=lambda o: {"V": "rw"},
        sizes=_SIZES[:-1],
        peers={"numpy": _numpy_eigh},
        rows=(Row("k40", ("f64",), sizes=(1_600,)), Row("k128", ("f64",), sizes=(16_384,))),
        special=False,
    ),
    Case(
        op="qr_update",
        make=_make_qr,
        run=_run_qr,
        truth=_true_qr,
        error="8 n eps of the sizes of R and the change, times the condition of the result",
        variants={"plain": {"n": 5}, "one": {"n": 1}, "lanes": {"n": 33}, "inside": {"n": 17, "inside": True}},
        flops=lambda o: 20,
        streams=lambda o: {"Q": "rw"},
        sizes=_SIZES,
        peers={"scipy": _scipy_qr},
        rows=(Row("lanes", ("f64",), sizes=(33_000,)),),
        special=False,
    ),
]
