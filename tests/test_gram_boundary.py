"""What the Gram products refuse: the error's kind, the argument that it names, and that nothing was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from curvk.kernels import gram

Arrays = dict[str, Any]


def make(dtype: Any = np.float32, d: int = 3) -> Arrays:
    rng = np.random.default_rng(1)
    sizes = {"X": (7, d), "Z": (9, d), "W": (9, 2), "out": (7, 2), "keep": (7, 9)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in sizes.items()}


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {k: x.tobytes() for k, x in arrays.items() if isinstance(x, np.ndarray)}


def matvec(a: Arrays, **more: Any) -> Any:
    settings = {"bandwidth": 1.0, "out": a["out"], "keep": a["keep"]} | more
    return gram.matvec(a["X"], a["Z"], a["W"], **settings)


def rmatvec(a: Arrays, **more: Any) -> Any:
    """The same arrays, in its order: K(Z, X).T W."""
    return gram.rmatvec(a["Z"], a["X"], a["W"], **({"bandwidth": 1.0, "out": a["out"]} | more))


def block(a: Arrays, **more: Any) -> Any:
    return gram.block(a["X"], a["Z"], **({"bandwidth": 1.0, "out": a["keep"]} | more))


def refused(
    call: Callable[..., Any], a: Arrays, error: type[Exception], argument: str, *words: str, **more: Any
) -> None:
    before = bits(a)
    with pytest.raises(error) as caught:
        call(a, **more)
    assert type(caught.value) is error
    text = str(caught.value)
    assert f"argument '{argument}'" in text
    assert "got " in text
    assert "needs " in text
    for word in words:
        assert word in text
    assert bits(a) == before


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


class Subclass(np.ndarray):
    pass


# ---- arrays ---------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[np.ndarray], Any], type[Exception], str]] = {
    "float64": (lambda x: x.astype(np.float64), TypeError, "float64"),
    "float16": (lambda x: x.astype(np.float16), TypeError, "float16"),
    "int64": (lambda x: x.astype(np.int64), TypeError, "int64"),
    "complex": (lambda x: x.astype(np.complex64), TypeError, "complex64"),
    "swapped": (lambda x: x.astype(">f4"), TypeError, ">f4"),
    "object": (lambda x: x.astype(object), TypeError, "object"),
    "list": (lambda x: x.tolist(), TypeError, "list"),
    "number": (lambda x: 1.0, TypeError, "float"),
    "text": (lambda x: "X", TypeError, "str"),
    "masked": (np.ma.masked_array, TypeError, "MaskedArray"),
    "subclass": (lambda x: x.view(Subclass), TypeError, "Subclass"),
    "cube": (lambda x: x[None], ValueError, "shape (1, "),
    "scalar": (lambda x: x[0, 0, ...], ValueError, "shape ()"),
    "no columns": (lambda x: x[:, :0].copy(), ValueError, ", 0)"),
}
ARGUMENTS = {"matvec": ("X", "Z", "W", "out", "keep"), "rmatvec": ("X", "Z", "W", "out"), "block": ("X", "Z", "keep")}
CALLS: dict[str, Callable[..., Any]] = {"matvec": matvec, "rmatvec": rmatvec, "block": block}


def named(call: str, name: str) -> str:
    """What the call names an array of ours."""
    return {"rmatvec": {"X": "Z", "Z": "X", "W": "G"}, "block": {"keep": "out"}}.get(call, {}).get(name, name)


@pytest.mark.parametrize(
    ("call", "name", "bad"),
    [(c, n, b) for c, names in ARGUMENTS.items() for n in names for b in BAD if (n, b) != ("W", "no columns")],
)  # no columns of weights are an empty result
def test_arrays_of_a_wrong_kind_or_shape(call: str, name: str, bad: str) -> None:
    breaks, error, text = BAD[bad]
    a = make()
    broken = breaks(a[name])
    argument = named(call, name)
    if bad in ("float64", "no columns") and name == {"matvec": "X", "rmatvec": "Z", "block": "X"}[call]:
        # X decides: then it is another array that differs from it, or none has columns
        with pytest.raises(error):
            CALLS[call](a | {name: broken})
        return
    refused(CALLS[call], a | {name: broken}, error, argument, text)


@pytest.mark.parametrize("name", ["X", "Z", "W"])
def test_arrays_that_are_needed(name: str) -> None:
    refused(matvec, make() | {name: None}, TypeError, name, "None")
    refused(rmatvec, make() | {name: None}, TypeError, named("rmatvec", name), "None")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lengths_that_do_not_match(dtype: Any) -> None:
    a = make(dtype)

    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, dtype)

    refused(matvec, a | {"Z": ones(9, 4)}, ValueError, "Z", "(9, 4)")
    refused(matvec, a | {"W": ones(8, 2)}, ValueError, "W", "(8, 2)")
    refused(matvec, a | {"W": ones(7, 2)}, ValueError, "W", "(7, 2)")
    refused(matvec, a | {"out": ones(7, 3)}, ValueError, "out", "(7, 3)")
    refused(matvec, a | {"out": ones(9, 2)}, ValueError, "out", "(9, 2)")
    refused(matvec, a | {"out": ones(7)}, ValueError, "out", "(7,)")
    refused(matvec, a | {"W": ones(9)}, ValueError, "out", "(7, 2)")
    refused(matvec, a | {"W": ones(9), "out": ones(7, 1)}, ValueError, "out", "(7, 1)")
    refused(matvec, a | {"keep": ones(9, 7)}, ValueError, "keep", "(9, 7)")
    refused(matvec, a | {"keep": ones(7, 8)}, ValueError, "keep", "(7, 8)")
    refused(rmatvec, a | {"W": ones(7, 2)}, ValueError, "G", "(7, 2)")
    refused(rmatvec, a | {"out": ones(9, 2)}, ValueError, "out", "(9, 2)")
    refused(block, a | {"keep": ones(9, 7)}, ValueError, "out", "(9, 7)")
    for call in (gram.row_sums, gram.distances):
        settings = {"bandwidth": 1.0} if call is gram.row_sums else {}
        with pytest.raises(ValueError, match=r"argument 'Z': got shape \(9, 4\)"):
            call(a["X"], ones(9, 4), **settings)
    with pytest.raises(ValueError, match=r"argument 'X': got shape \(7,\)"):
        gram.diagonal(ones(7), bandwidth=1.0)


def test_rows_without_elements() -> None:
    x = np.ones((4, 0), np.float32)
    for call in (
        lambda: gram.matvec(x, x, np.ones((4, 2), np.float32), bandwidth=1.0),
        lambda: gram.rmatvec(x, x, np.ones((4, 2), np.float32), bandwidth=1.0),
        lambda: gram.block(x, x, kernel="linear"),
        lambda: gram.row_sums(x, x, bandwidth=1.0),
        lambda: gram.diagonal(x, bandwidth=1.0),
        lambda: gram.distances(x, x),
        lambda: gram.median_distance(x),
    ):
        with pytest.raises(ValueError, match=r"argument '(X|Z)': got shape \(4, 0\)"):
            call()


@pytest.mark.parametrize("name", ["out", "keep"])
def test_results_that_cannot_be_written(name: str) -> None:
    a = make()
    refused(matvec, a | {name: read_only(a[name])}, BufferError, name, "read-only")
    n = a[name].shape[1]
    for strided in (np.asfortranarray(a[name]), np.repeat(a[name], 2, 1)[:, ::2], a[name][::-1]):
        refused(matvec, a | {name: strided}, ValueError, name, "strides")
    wide = np.zeros((7, n + 1), np.float32)
    refused(matvec, a | {name: np.lib.stride_tricks.as_strided(wide, (7, n), (0, 4))}, ValueError, name)
    raw = np.zeros(7 * n * 4 + 1, np.uint8)[1:].view(np.float32).reshape(7, n)
    refused(matvec, a | {name: raw}, ValueError, name, "misaligned")
    if name == "keep":
        refused(block, a | {name: read_only(a[name])}, BufferError, "out", "read-only")


def test_results_have_memory_of_their_own() -> None:
    square = np.random.default_rng(2).standard_normal((9, 9)).astype(np.float32)
    same = {"X": square, "Z": square.copy(), "W": square.copy(), "out": square.copy(), "keep": square.copy()}
    for name in ("X", "Z", "W", "out"):
        refused(matvec, same | {"keep": same[name]}, ValueError, "keep", f"memory shared with '{name}'")
    for name in ("X", "Z", "W"):
        refused(matvec, same | {"out": same[name]}, ValueError, "out", f"memory shared with '{name}'")
        refused(block, same | {"keep": same[name]}, ValueError, "out") if name != "W" else None
    memory = np.random.default_rng(3).standard_normal((20, 9)).astype(np.float32)
    refused(matvec, same | {"X": memory[:9], "out": memory[8:17]}, ValueError, "out", "memory shared with 'X'")
    matvec(same | {"X": memory[:9], "out": memory[9:18]})  # neighbours
    centers = gram.Centers(same["Z"])
    refused(matvec, same | {"Z": centers, "out": same["Z"]}, ValueError, "out", "memory shared with 'Z'")
    gram.matvec(square, square, square, bandwidth=1.0)  # which are only read


def test_centers() -> None:
    a = make()
    for bad, error in ((a["Z"].tolist(), TypeError), (None, TypeError), (a["Z"].astype(np.int32), TypeError)):
        with pytest.raises(error, match=r"argument 'Z': got "):
            gram.Centers(bad)
    for bad in (np.ones(4, np.float32), np.ones((2, 2, 2), np.float32), np.ones((4, 0), np.float32)):
        with pytest.raises(ValueError, match=r"argument 'Z': got shape "):
            gram.Centers(bad)
    refused(matvec, a | {"Z": gram.Centers(a["Z"].astype(np.float64))}, TypeError, "Z", "float64", "float32")
    refused(matvec, a | {"Z": gram.Centers(np.ones((9, 4), np.float32))}, ValueError, "Z", "(9, 4)")
    refused(matvec, a | {"W": np.ones((8, 2), np.float32), "Z": gram.Centers(a["Z"])}, ValueError, "W", "(8, 2)")
    with pytest.raises(TypeError, match="argument 'X'"):
        gram.matvec(gram.Centers(a["X"]), a["Z"], a["W"], bandwidth=1.0)


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kernel", [k for k in gram.KERNELS if k not in ("linear", "polynomial")])
def test_bandwidths(call: str, kernel: str) -> None:
    for bandwidth in (0.0, -1.0, float("nan"), -float("inf")):
        refused(CALLS[call], make(), ValueError, "bandwidth", f"got {bandwidth}", kernel=kernel, bandwidth=bandwidth)
    for bandwidth in (None, "wide", 1j, [1.0], np.ones(2)):
        refused(CALLS[call], make(), TypeError, "bandwidth", kernel=kernel, bandwidth=bandwidth)
    for bandwidth in (2, np.float32(2), np.float64(2), np.int64(2)):
        a, b = make(), make()
        CALLS[call](a, kernel=kernel, bandwidth=bandwidth)
        CALLS[call](b, kernel=kernel, bandwidth=2.0)
        assert bits(a) == bits(b)


@pytest.mark.parametrize(
    ("settings", "argument", "error"),
    [
        ({"kernel": "rbf"}, "kernel", ValueError),
        ({"kernel": "Gaussian"}, "kernel", ValueError),
        ({"kernel": ""}, "kernel", ValueError),
        ({"kernel": "rational_quadratic", "alpha": 0.0}, "alpha", ValueError),
        ({"kernel": "rational_quadratic", "alpha": -1.0}, "alpha", ValueError),
        ({"kernel": "rational_quadratic", "alpha": float("nan")}, "alpha", ValueError),
        ({"kernel": "rational_quadratic", "alpha": "one"}, "alpha", TypeError),
        ({"kernel": "exponent", "gamma": 0.0}, "gamma", ValueError),
        ({"kernel": "exponent", "gamma": -1.0}, "gamma", ValueError),
        ({"kernel": "exponent", "gamma": float("nan")}, "gamma", ValueError),
        ({"kernel": "exponent", "gamma": None}, "gamma", TypeError),
        ({"kernel": "polynomial", "gamma": float("nan")}, "gamma", ValueError),
        ({"kernel": "polynomial", "coef0": float("nan")}, "coef0", ValueError),
        ({"kernel": "polynomial", "coef0": float("inf")}, "coef0", ValueError),
        ({"kernel": "polynomial", "degree": -1}, "degree", ValueError),
        ({"kernel": "polynomial", "coef0": "one"}, "coef0", TypeError),
        ({"kernel": "polynomial", "degree": 2.5}, "degree", TypeError),
        ({"kernel": "polynomial", "degree": None}, "degree", TypeError),
    ],
)
def test_settings_of_the_kernels(settings: dict[str, Any], argument: str, error: type[Exception]) -> None:
    for call in CALLS.values():
        refused(call, make(), error, argument, **settings)
    with pytest.raises(error, match=f"argument '{argument}'"):
        gram.diagonal(make()["X"], **({"bandwidth": 1.0} | settings))
    with pytest.raises(error, match=f"argument '{argument}'"):
        gram.row_sums(make()["X"], make()["Z"], **({"bandwidth": 1.0} | settings))


def test_an_unknown_kernel_is_told_the_known_ones() -> None:
    refused(matvec, make(), ValueError, "kernel", "'rbf'", *gram.KERNELS, kernel="rbf")


def test_kernels_of_products_need_no_bandwidth() -> None:
    a = make()
    for kernel in ("linear", "polynomial"):
        gram.matvec(a["X"], a["Z"], a["W"], kernel=kernel)
        gram.diagonal(a["X"], kernel=kernel)


def test_unknown_keywords() -> None:
    a = make()
    with pytest.raises(TypeError, match="bandwith"):
        gram.matvec(a["X"], a["Z"], a["W"], bandwith=1.0)
    with pytest.raises(TypeError):
        gram.matvec(a["X"], a["Z"], a["W"], "gaussian", 1.0)


def test_adding_needs_something_to_add_to() -> None:
    a = make()
    with pytest.raises(ValueError, match="argument 'out': got None"):
        gram.matvec(a["X"], a["Z"], a["W"], bandwidth=1.0, accumulate=True)


def test_progress_is_called() -> None:
    refused(matvec, make(), TypeError, "progress", progress=3)


# ---- the median distance --------------------------------------------------------------------------------------------


def test_median_distance() -> None:
    x = np.ones((4, 2), np.float32)
    for n in (0, 1):
        with pytest.raises(ValueError, match=r"median_distance: argument 'X': got .*, needs two"):
            gram.median_distance(x[:n])
        with pytest.raises(ValueError, match="median_distance: argument 'X'"):
            gram.median_distance(x[:n], pairs=10)
    for bad, error in ((x[0], ValueError), (x.tolist(), TypeError), (x.astype(int), TypeError), (None, TypeError)):
        with pytest.raises(error, match="median_distance: argument 'X'"):
            gram.median_distance(bad)
    for pairs, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError), ("all", TypeError)):
        with pytest.raises(error, match="median_distance: argument 'pairs'"):
            gram.median_distance(x, pairs=pairs)
    for seed, error in ((-1, ValueError), (2**64, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="median_distance: argument 'seed'"):
            gram.median_distance(x, pairs=10, seed=seed)


@pytest.mark.parametrize("n", [3, 200])
def test_median_of_distances_that_overflow(n: int) -> None:
    x = np.full((n, 2), 1e30, np.float32) * np.arange(1, n + 1, dtype=np.float32)[:, None]
    with pytest.raises(ValueError, match="median_distance: argument 'X': got distances beyond float32"):
        gram.median_distance(x)
    assert gram.median_distance(x.astype(np.float64)) > 1e29


def test_distances() -> None:
    a = make()
    refused(lambda a: gram.distances(a["X"], a["Z"], out=a["X"]), a, ValueError, "out")
    refused(lambda a: gram.distances(a["X"], a["Z"], out=read_only(a["keep"])), a, BufferError, "out", "read-only")
    square = np.ones((3, 3), np.float32)
    refused(lambda a: gram.distances(a["s"], a["s"], out=a["s"]), {"s": square}, ValueError, "out", "memory shared")
