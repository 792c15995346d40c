"""What the noise kernels refuse."""

from __future__ import annotations

import math
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._backend import Plan, compiled
from curvk._bench.cases.noise import ERROR, exact
from curvk.kernels import noise

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")


# ---- bad input -------------------------------------------------------------------------------------------------------

SEEDS: dict[str, Any] = {"seed": 1, "draws": [1, 2], "coefs": [0.5, 0.25]}
GOOD: dict[str, dict[str, Any]] = {
    "fill": {"seed": 1},
    "perturb_": {"seed": 1, "scale": 0.5},
    "restore_update_perturb_": {"seed": 1, "draw": 2, "scale": 0.5, "coef": 0.1},
    "axpy_seeds_": SEEDS,
    "scratch": SEEDS,
    "dot_seeds": {"seed": 1, "draws": [1, 2]},
    "grid_axpy_": {"seed": 1, "quantum": 2.0**-20, "scale": 0.01},
}
ARRAY = {"fill": "out", "dot_seeds": "v"}  # how the array is called; p elsewhere
NUMBERS: dict[str, list[tuple[Any, type[Exception]]]] = {
    "seed": [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), ("1", TypeError), (None, TypeError)],
    "draw": [(-1, ValueError), (2**32, ValueError), (0.5, TypeError), ([1], TypeError)],
    "next_draw": [(-1, ValueError), (2**32, ValueError), (0.5, TypeError)],
    "tensor": [(-1, ValueError), (2**32, ValueError), (7.0, TypeError), ([1], TypeError), ("w", TypeError)],
    "offset": [(-1, ValueError), (2**63, ValueError), (1.0, TypeError)],
    "dist": [("gauss", ValueError), ("", ValueError), (None, ValueError)],
    "draws": [([1, -1], ValueError), ([1, 2**32], ValueError), ([1.0, 2.0], TypeError), (3, TypeError)],
    "coefs": [
        ([1.0, math.nan], ValueError),
        ([1.0], ValueError),
        ([1.0, 2.0, 3.0], ValueError),
        (["a", "b"], TypeError),
        (0.5, ValueError),
    ],
    "scale": [
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("x", TypeError),
        (None, TypeError),
        ([1.0, 2.0], TypeError),
    ],
    "decay": [(-0.1, ValueError), (1.5, ValueError), (math.nan, ValueError), ("x", TypeError)],
    "threshold": [(-1.0, ValueError), (math.nan, ValueError)],
    "quantum": [(x, ValueError) for x in (0.0, -0.5, 3.0, math.inf, math.nan, 2.0**-1000, 2.0**1000)]
    + [("x", TypeError), (None, TypeError)],
    "steps": [(1.5, TypeError)],
    "rows": [
        ([0, 4], ValueError),
        ([-1, 0], ValueError),
        ([2, 1], ValueError),
        ([1, 1], ValueError),
        ([0.0, 1.0], TypeError),
        ([True, False, True, True], TypeError),
        (1, TypeError),
    ],
}
TAKES = {
    "fill": "seed draw tensor offset dist",
    "perturb_": "seed draw tensor offset dist scale threshold rows",
    "restore_update_perturb_": "seed draw next_draw tensor dist decay scale",
    "axpy_seeds_": "seed draws coefs tensor offset dist decay threshold rows",
    "scratch": "seed draws coefs tensor offset dist decay threshold",
    "dot_seeds": "seed draws tensor dist",
    "grid_axpy_": "seed draw tensor offset dist quantum decay steps scale",
}
BAD = [
    pytest.param(function, argument, value, error, id=f"{function}-{argument}-{value}")
    for function, names in TAKES.items()
    for argument in names.split()
    for value, error in NUMBERS[argument]
]


def refused(function: str, arguments: list[Any], options: dict[str, Any], error: Any, label: str) -> None:
    """The call raises, names its argument, and leaves every array's bytes."""
    arrays = [x for a in arguments for x in (a if isinstance(a, list) else [a]) if isinstance(x, np.ndarray)]
    before = [x.tobytes() for x in arrays]
    with pytest.raises(error) as caught:
        getattr(noise, function)(*arguments, **options)
    assert [x.tobytes() for x in arrays] == before
    assert str(caught.value).startswith(f"{function}: argument '{label}'"), str(caught.value)


@pytest.mark.parametrize(("function", "argument", "value", "error"), BAD)
def test_bad_numbers(function: str, argument: str, value: Any, error: Any) -> None:
    x = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    arguments = [x, np.full_like(x, 7)] if function == "scratch" else [x]
    refused(function, arguments, GOOD[function] | {argument: value}, error, argument)


@pytest.mark.parametrize("function", list(GOOD))
def test_bad_lists(function: str) -> None:
    make = lambda: [np.ones(3, np.float32), np.ones((2, 2), np.float32)]  # noqa: E731
    arguments = [make(), make()] if function == "scratch" else [make()]
    good = GOOD[function]
    for tensor, error in (([1], ValueError), ([1, 2, 3], ValueError), ([1, -1], ValueError), ([1, 2**32], ValueError),
                          ([1.0, 2.0], TypeError), (5, TypeError)):  # fmt: skip
        refused(function, arguments, good | {"tensor": tensor}, error, "tensor")
    if function != "restore_update_perturb_":
        for offset, error in (([0], ValueError), ([0, -1], ValueError), ([0.5, 1], TypeError)):
            refused(function, arguments, good | {"tensor": [1, 2], "offset": offset}, error, "offset")
    getattr(noise, function)(*arguments, **(good | {"tensor": [1, 2]}))


@pytest.mark.parametrize("function", list(GOOD))
def test_bad_arrays(function: str) -> None:
    good, name, written = GOOD[function], ARRAY.get(function, "p"), function not in ("dot_seeds", "scratch")
    x = np.ones((4, 3), np.float32)

    def attempt(bad: Any, error: Any, label: str = name, **options: Any) -> None:
        outs = [np.full(np.shape(bad), 7, np.float32)] if function == "scratch" else []
        refused(function, [bad, *outs], good | options, error, label)

    for bad in (np.ones(3, np.int32), np.ones(3, np.complex64), [[1.0, 2.0]], 3.0, None, "x", np.ones(3, ">f4")):
        nested = isinstance(bad, list)
        attempt(bad, TypeError, f"{name}[0]" if nested else name, **({"tensor": [1]} if nested else {}))
    if function == "grid_axpy_":
        attempt(np.ones(3), TypeError)
        attempt(np.ones(3, np.uint16), TypeError)
    if function != "dot_seeds":
        attempt([np.ones(3, np.float32), np.ones(3, np.float16)], TypeError, f"{name}[1]", tensor=[1, 2])
    if not written:
        return
    frozen = x.copy()
    frozen.flags.writeable = False
    attempt(frozen, BufferError)
    attempt(np.lib.stride_tricks.as_strided(x, (4, 3), (4, 4)), ValueError)
    attempt([x[:2], x[1:]], ValueError, f"{name}[1]", tensor=[1, 2])
    attempt([x, x], ValueError, f"{name}[1]", tensor=[1, 2])


def test_bad_scratch_and_rows() -> None:
    x, out = np.ones((4, 3), np.float32), np.full((4, 3), 7, np.float32)
    read_only = out.copy()
    read_only.flags.writeable = False
    for bad, error in (
        (x, ValueError), (x[::-1], ValueError), (out[:3], ValueError), (out.ravel(), ValueError),
        (out.astype(np.float64), TypeError), (read_only, BufferError),
    ):  # fmt: skip
        refused("scratch", [x, bad], SEEDS, error, "out")
    refused("scratch", [[x, x.copy()], [out, x]], SEEDS | {"tensor": [1, 2]}, ValueError, "out[1]")
    for function in ("perturb_", "axpy_seeds_"):
        refused(function, [[x]], GOOD[function] | {"tensor": [1], "rows": [0]}, TypeError, "p")
        refused(function, [np.array(1.0)], GOOD[function] | {"rows": [0]}, ValueError, "p")
        frozen = x.copy()
        frozen.flags.writeable = False
        refused(function, [frozen], GOOD[function] | {"rows": [0]}, BufferError, "p")
        refused(function, [x.astype(np.int64)], GOOD[function] | {"rows": [0]}, TypeError, "p")


@pytest.mark.parametrize(
    ("function", "argument", "value", "error"),
    [
        ("perturb_", "scale", "1.5", TypeError),  # float() reads strings
        ("perturb_", "scale", 10**400, ValueError),
        ("perturb_", "dist", np.array(["normal", "uniform"]), ValueError),
        ("axpy_seeds_", "coefs", ["1.5", "2.5"], TypeError),
        ("axpy_seeds_", "coefs", np.array([1j, 2.0]), TypeError),  # NumPy would drop the imaginary parts
        ("axpy_seeds_", "coefs", [10**400, 1], ValueError),
        ("axpy_seeds_", "draws", [1, 2**70], ValueError),
        ("axpy_seeds_", "draws", [-1, 2**63], ValueError),
        ("restore_update_perturb_", "next_scale", 0.5, ValueError),  # of no draw
        ("restore_update_perturb_", "next_scale", math.nan, ValueError),
        ("grid_axpy_", "steps", 2**63, ValueError),
        ("grid_axpy_", "steps", -(2**63) - 1, ValueError),
    ],
)
def test_numbers_of_odd_kinds(function: str, argument: str, value: Any, error: type[Exception]) -> None:
    x = np.ones((4, 3), np.float32)
    refused(function, [x], GOOD[function] | {argument: value}, error, argument)
    with pytest.raises(error) as caught:
        getattr(noise, function)(x, **(GOOD[function] | {argument: value}))
    assert "None" not in str(caught.value)


def test_rows_of_shared_memory_and_of_no_dtype() -> None:
    x = np.ones((1, 3), np.float32)
    for bad in (np.broadcast_to(x, (4, 3)), np.lib.stride_tricks.as_strided(x, (2, 2), (4, 4))):
        shared = np.lib.stride_tricks.as_strided(x, bad.shape, bad.strides)  # writable
        refused("perturb_", [shared], GOOD["perturb_"] | {"rows": [1]}, ValueError, "p")
    refused("perturb_", [np.ones((4, 3), np.int64)], GOOD["perturb_"] | {"rows": []}, TypeError, "p")


def test_a_list_beside_an_array() -> None:
    x, out = np.ones(3, np.float32), np.zeros(3, np.float32)
    refused("scratch", [x, [out]], SEEDS, TypeError, "out")


def test_coefs_in_the_memory_of_p() -> None:
    p = np.arange(1.0, 6)
    want = p.copy()
    noise.axpy_seeds_(want, seed=1, draws=[1, 2], coefs=[1.0, 2.0])
    noise.axpy_seeds_(p, seed=1, draws=[1, 2], coefs=p[:2])
    assert p.tobytes() == want.tobytes()


@pytest.mark.parametrize("backend", ["cpp", "numba"] if compiled else ["numba"])
def test_plan_keeps_its_values_per_row(backend: str) -> None:
    """Strided columns of values are taken, and read when a plan is bound."""
    with curvk.use_backend(backend):
        out = [np.zeros(5, np.float32), np.zeros((3, 4), np.float32)[:, ::2]]
        words, offsets = np.array([7, 0, 8, 0])[::2], np.array([40, 3])[::-1]
        plan = Plan("noise_fill", (out, words, offsets))
        words[:], offsets[:] = 9, 100
        plan.run((2, 1, 0))
        for x, word, offset in zip(out, (7, 8), (3, 40), strict=True):
            np.testing.assert_array_equal(x, noise.fill(x.copy(), seed=1, draw=2, tensor=word, offset=offset))


def test_largest_error_of_a_normal() -> None:
    """An element 1.003e-6 from exact arithmetic; the worst of all radii times the worst of all angles: 1.37e-6."""
    key = {"seed": 0, "draw": 0, "tensor": 0, "offset": 645_131_311}
    error = abs(noise.fill(np.zeros(1, np.float32), **key) - exact(1, dist="normal", **key))[0]
    assert 1e-6 < error <= ERROR["normal"]
