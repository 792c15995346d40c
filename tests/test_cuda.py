"""Every kernel with a CUDA version on device arrays, against the CPU; what is refused, and in which stream it runs.

Without a device the arrays are host memory that says otherwise, and the emulator runs the kernels: `device_arrays`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import curvk
import device_arrays as devices
import numpy as np
import pytest
from cuda_cases import HAS, adam_arrays, drawn, needs, refused, run
from curvk import _cuda
from curvk._backend import call, core
from curvk._bench.registry import Arrays, Case, cases
from curvk.kernels import curvature, gram, half, linalg, noise, optim, sweep, vmath
from device_arrays import DeviceArray, get, put
from test_numerics import assert_same, check, make, special_inputs

pytestmark = pytest.mark.skipif(devices.library() is None, reason=devices.REASON)
ALL = [
    pytest.param(case, fmt, variant, id=f"{case.op}-{fmt}-{variant}")
    for case in cases().values()
    if case.op in HAS
    for fmt in case.formats
    for variant in case.tested
]
EVERY = pytest.mark.parametrize(("case", "fmt", "variant"), ALL)


@pytest.fixture(autouse=True)
def _library() -> None:
    devices.load()
    curvk.use_backend("cpp")  # for arrays on the host, whatever CURVK_BACKEND says


def compare(case: Case, fmt: str, variant: str, inputs: Arrays, offset: int = 0) -> None:
    got = run(case, fmt, variant, inputs, True, offset)
    if case.bits_vary:
        check(case, fmt, variant, inputs, got)
        assert_same(run(case, fmt, variant, inputs, True), got, "the device, a second time")
    else:
        assert_same(got, run(case, fmt, variant, inputs, False), f"device against CPU, n = {inputs_size(inputs)}")


def inputs_size(inputs: Arrays) -> int:
    return max(x.size for x in inputs.values() if x is not None)


def test_there_is_something_to_test() -> None:
    assert {"adam_step", "sgd_step", "sum_squares"} <= HAS
    assert all(core.has_cuda(op) for op in HAS)


@EVERY
def test_same_as_on_the_cpu(case: Case, fmt: str, variant: str) -> None:
    first = variant == next(iter(case.variants))
    for n in case.sizes:
        if n <= 1100 or (n in (32769, 100003) and first and fmt == "f32"):
            compare(case, fmt, variant, make(case, fmt, variant, n))


@EVERY
def test_unaligned(case: Case, fmt: str, variant: str) -> None:
    compare(case, fmt, variant, make(case, fmt, variant, 1023 if 1023 in case.sizes else 100), offset=3)


@pytest.mark.parametrize(("case", "fmt", "variant"), [p for p in ALL if p.values[0].special])
def test_special_values(case: Case, fmt: str, variant: str) -> None:
    inputs = special_inputs(case, fmt, variant, 4099)
    if not case.in_parts:  # one such element decides the sum
        inputs = {k: None if x is None else x[:1] for k, x in inputs.items()}
    compare(case, fmt, variant, inputs)


@pytest.mark.parametrize(("case", "fmt", "variant"), [p for p in ALL if p.values[0].plan])
def test_plan_over_a_list(case: Case, fmt: str, variant: str) -> None:
    singles = [make(case, fmt, variant, n) for n in (1, 0, 17, 1023, 5000, 3)]

    def stepped(place: Callable[[np.ndarray], Any]) -> Arrays:
        lists = {k: None if x is None else [place(s[k].copy()) for s in singles] for k, x in singles[0].items()}
        assert case.plan is not None
        step = case.plan(lists, case.variants[variant], fmt)
        step(), step()
        return {k: np.concatenate([get(x).ravel() for x in v]) for k, v in lists.items() if v is not None}

    assert_same(stepped(put), stepped(lambda x: x), "a plan on a device against one on the CPU")


def same(got: Any, want: Any) -> None:
    """The result lies on the device and has the CPU's bits."""
    assert isinstance(got, DeviceArray)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert get(got).tobytes() == want.tobytes()


@needs("quantize8", "dequantize8", "quantize8b", "dequantize8b")
@pytest.mark.parametrize("format", ["curvk", "bitsandbytes"])
def test_codes_lie_beside_the_array(format: Any) -> None:
    x = drawn(7, 101)
    got, want = sweep.quantize(put(x), format=format), sweep.quantize(x, format=format)
    same(got.codes, want.codes)
    same(got.scales, want.scales)
    same(sweep.dequantize(got), sweep.dequantize(want))


@needs("to_float32", "from_float32")
@pytest.mark.parametrize("fmt", ["bf16", "f16"])
def test_halves_lie_beside_the_array(fmt: Any) -> None:
    x = drawn(7, 101)
    got, want = half.from_float32(put(x), fmt), half.from_float32(x, fmt)
    same(got, want)
    same(half.to_float32(got), half.to_float32(want))


@needs("exp", "log")
def test_vector_math_lies_beside_the_array() -> None:
    x = drawn(7, 101, dtype=np.float64)
    same(vmath.exp(put(x)), vmath.exp(x))
    same(vmath.log(put(x)), vmath.log(x))


@needs("eigh_batch", "svd_batch")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices_lie_beside_the_array(monkeypatch: Any, dtype: Any) -> None:
    monkeypatch.setattr(linalg, "_SLICE", 100.0)  # which cuts no work on a device
    A = drawn(70, 5, 3, dtype=dtype)
    for got, want in zip(linalg.svd_batch(put(A)), linalg.svd_batch(A), strict=True):
        same(got, want)
    S = A @ A.transpose(0, 2, 1)
    for got, want in zip(linalg.eigh_batch(put(S)), linalg.eigh_batch(S), strict=True):
        same(got, want)


@needs("dot_seeds", "glass_sums", "alice_model", "asam_sum_squares")
def test_sums_come_to_the_host() -> None:
    g, up, down = (drawn(3, 1001) for _ in range(3))
    up, down = up + 1, down - 1
    on = [put(x) for x in (g, up, down)]
    for got, want in (
        (curvature.glass_sums(*on), curvature.glass_sums(g, up, down)),
        (curvature.glass_sums(*([x] for x in on)), curvature.glass_sums([g], [up], [down])),
        (noise.dot_seeds(on[0], seed=3, draws=[1, 5]), noise.dot_seeds(g, seed=3, draws=[1, 5])),
        (
            noise.dot_seeds(on, seed=3, draws=[1], tensor=[1, 2, 3]),
            noise.dot_seeds([g, up, down], seed=3, draws=[1], tensor=[1, 2, 3]),
        ),
    ):
        assert type(got) is np.ndarray
        assert got.tobytes() == want.tobytes()
    assert curvature.asam_norm(on[:2], on[1:], eta=0.5) == curvature.asam_norm([g, up], [up, down], eta=0.5)
    model = {"hess": "abs", "lr_max": 2.0, "eps": 0.1}
    states = [g], [up**2], [down**2], [up**2]
    assert curvature.alice_model(*([put(y) for y in x] for x in states), **model) == curvature.alice_model(
        *states, **model
    )


def test_norm_of_arrays_here_and_there() -> None:
    lists = [drawn(1001), drawn(7, dtype=np.float64), drawn(33).astype(np.float16)]
    assert optim.global_norm([put(x) for x in lists]) == optim.global_norm(lists)
    assert optim.global_norm([lists[0], put(lists[1])]) == optim.global_norm(lists[:2])


@needs("axpy_seeds")
@pytest.mark.parametrize("shape", [(9, 5, 7), (90,)])
def test_noise_on_chosen_rows(shape: tuple[int, ...]) -> None:
    p = drawn(*shape)
    there, want = put(p.copy()), p.copy()
    options: dict[str, Any] = {"seed": 1, "scale": 0.1, "rows": [1, 4, 8], "threshold": 1.0, "offset": 3}
    noise.perturb_(there, **options)
    noise.perturb_(want, **options)
    assert get(there).tobytes() == want.tobytes() != p.tobytes()
    noise.perturb_(there, **options | {"rows": []})
    assert get(there).tobytes() == want.tobytes()


# ---- Gram products --------------------------------------------------------------------------------------------------


@needs("gram_pack", "gram_matvec")
@pytest.mark.parametrize("d", [3, 40])
def test_products_lie_beside_the_array(d: int) -> None:
    X, Z, W, G = drawn(70, d), drawn(33, d), drawn(33, 4), drawn(70)
    x, z, w, g = map(put, (X, Z, W, G))
    options: dict[str, Any] = {"kernel": "laplacian", "bandwidth": 3.0}
    centers = gram.Centers(z)
    assert centers.array is z
    assert centers.shape == Z.shape
    assert centers.dtype == Z.dtype
    K = np.exp(-np.sqrt(((X[:, None].astype(np.float64) - Z) ** 2).sum(axis=2)) / 3)
    seen: list[tuple[int, int]] = []

    def close(got: Any, want: np.ndarray) -> None:
        assert isinstance(got, DeviceArray)
        assert got.dtype == np.float32
        np.testing.assert_allclose(get(got), want, rtol=1e-5, atol=1e-5)

    for middle in (z, centers):
        close(gram.matvec(x, middle, w, **options, progress=lambda *rows: seen.append(rows)), K @ W)
        close(gram.matvec(x, middle, w[:, 0] if W.shape[1] == 1 else put(W[:, 0].copy()), **options), K @ W[:, 0])
        close(gram.row_sums(x, middle, **options), K.sum(axis=1))
        close(gram.block(x, middle, **options), K)
        close(gram.distances(x, middle), -3 * np.log(K))
        close(gram.rmatvec(x, middle, g, **options), K.T @ G)
    assert seen == [(70, 70)] * 2
    out, keep = put(np.zeros((70, 4), np.float32)), put(np.zeros((70, 33), np.float32))
    assert gram.matvec(x, centers, w, out=out, keep=keep, **options) is out
    gram.matvec(x, centers, w, out=out, accumulate=True, **options)
    close(out, 2 * K @ W)
    close(keep, K)
    product = gram.bind(x, centers, w, out=out, **options)
    product()
    close(out, K @ W)
    gram.bind(x, z, None, out=keep, **options)()
    close(keep, K)


@needs("gram_pack", "gram_matvec", "gram_select")
@pytest.mark.parametrize("n", [40, 200])
def test_median_distance(monkeypatch: Any, n: int) -> None:
    monkeypatch.setattr(gram, "_SLICE_FLOPS", 1e6)
    X = drawn(n, 5)
    want = np.median(np.sqrt(((X[:, None].astype(np.float64) - X) ** 2).sum(axis=2))[np.triu_indices(n, 1)])
    assert gram.median_distance(put(X)) == pytest.approx(want, rel=1e-6)
    assert gram.median_distance(put(X), pairs=50, seed=3) == gram.median_distance(X, pairs=50, seed=3)


@needs("gram_pack", "gram_matvec")
def test_gram_refuses_what_is_elsewhere() -> None:
    X, W = drawn(7, 3), drawn(7, 2)
    out = np.zeros((7, 2), np.float32)
    on = {"bandwidth": 1.0}
    for function, words in (
        (lambda: gram.matvec(put(X), X, put(W), **on), "'Z': got an array on the CPU, needs one on cuda:0"),
        (lambda: gram.matvec(X, put(X), W, **on), "'Z'"),
        (
            lambda: gram.matvec(put(X), gram.Centers(X), put(W), **on),
            "'Z': got centers on the CPU, needs centers on cuda:0",
        ),
        (lambda: gram.matvec(X, gram.Centers(put(X)), W, **on), "'Z': got centers on cuda:0, needs centers on the CPU"),
        (lambda: gram.matvec(put(X), put(X), W, **on), "'W': got an array on the CPU, needs one on cuda:0"),
        (
            lambda: gram.matvec(put(X), put(X), put(W), out=out, **on),
            "'out': got an array on the CPU, needs one on cuda:0",
        ),
        (lambda: gram.matvec(put(X), gram.Landmarks.of(X), put(W), **on), "'Z'"),
        (lambda: gram.Landmarks.of(put(X)), "'rows': got an array on cuda:0, needs an array on the CPU"),
        (lambda: gram.Landmarks.of(X).append(put(X[0])), "'x'"),
        (lambda: gram.diagonal(put(X), **on), "'X'"),
    ):
        with pytest.raises(BufferError, match=words):
            function()
    assert not out.any()


@needs("gram_pack", "gram_matvec")
@pytest.mark.skipif(devices.real(), reason="puts contiguous arrays on a device")
@pytest.mark.parametrize("name", ["X", "Z", "W"])
def test_gram_refuses_strides(name: str) -> None:
    arrays = {"X": drawn(7, 3), "Z": drawn(7, 3), "W": drawn(7, 2)}
    on = {k: put(x) for k, x in arrays.items()} | {name: put(np.asfortranarray(arrays[name]))}
    with pytest.raises(ValueError, match=rf"'{name}': got strides .* use {name}.contiguous\(\)"):
        gram.matvec(*on.values(), bandwidth=1.0)


def stepped(arrays: dict[str, Any]) -> None:
    want = {name: np.ones(x.shape, x.dtype) for name, x in arrays.items()}
    optim.adam_step(*arrays.values(), step=1, lr=0.5)
    optim.adam_step(*want.values(), step=1, lr=0.5)
    for name, x in arrays.items():
        assert get(x).tobytes() == want[name].tobytes()


@pytest.mark.parametrize("name", ["g", "m", "v"])
def test_one_array_on_the_host(name: str) -> None:
    on = devices.on_device(adam_arrays()) | {name: np.ones(5, np.float32)}
    refused(
        BufferError,
        rf"adam_step: argument '{name}': got an array on the CPU, needs one on cuda:0 like the others; move",
        on,
    )


def test_one_array_on_the_device() -> None:
    refused(
        BufferError,
        "adam_step: argument 'm': got an array on cuda:0, needs an array on the CPU",
        adam_arrays() | {"m": put(np.ones(5, np.float32))},
    )


@pytest.mark.skipif(devices.real(), reason="needs two devices")
@pytest.mark.parametrize("name", ["g", "m", "v"])
def test_two_devices(name: str) -> None:
    on = devices.on_device(adam_arrays()) | {name: put(np.ones(5, np.float32), 1)}
    refused(BufferError, rf"argument '{name}': got an array on cuda:1, needs one on cuda:0 like the others", on)


def test_read_only() -> None:
    on = devices.on_device(adam_arrays()) | {"m": put(np.ones(5, np.float32), read_only=True)}
    refused(BufferError, "argument 'm': got a read-only array, needs a writable one", on)
    on = devices.on_device(adam_arrays()) | {"g": put(np.ones(5, np.float32), read_only=True)}
    stepped(on)  # which is only read


@pytest.mark.skipif(devices.real(), reason="puts contiguous arrays on a device")
def test_strides() -> None:
    words = r"'p': got strides \(8,\) for shape \(5,\), needs memory without gaps, .* on a device; use p.contiguous\(\)"
    refused(ValueError, words, {name: put(np.ones(10, np.float32)[::2]) for name in "pgmv"})
    turned = {name: put(np.ones((3, 4), np.float32).T) for name in "pgmv"}
    refused(ValueError, "argument 'm': got strides .*laid out alike", turned | {"m": put(np.ones((4, 3), np.float32))})
    stepped(turned)


def test_dtypes_shapes_and_overlap() -> None:
    on = devices.on_device(adam_arrays())
    refused(TypeError, "argument 'm': got float64, needs float32 like 'p'", on | {"m": put(np.ones(5))})
    refused(
        ValueError, "argument 'v': got shape .4,., needs shape .5,. like 'p'", on | {"v": put(np.ones(4, np.float32))}
    )
    refused(ValueError, "argument 'g': got memory shared with 'p'", on | {"g": on["p"]})


@pytest.mark.skipif("budget_predict" in HAS, reason="has one")
def test_a_kernel_without_a_cuda_version() -> None:
    f = put(np.ones(6))
    with pytest.raises(
        BufferError,
        match="argument 'K': got an array on cuda:0, needs an array on the CPU; this kernel has no CUDA version",
    ):
        call("budget_predict", (put(np.ones(6)), put(np.ones(3)), f), (2, 3, 1, 3))
    assert (get(f) == 1).all()


class Bare:
    """An array with `__cuda_array_interface__` alone: only the library can say where it lies."""

    def __init__(self, array: DeviceArray) -> None:
        self.array, self.dtype = array, array.dtype

    __cuda_array_interface__ = property(lambda self: self.array.__cuda_array_interface__)


def test_the_interface_alone() -> None:
    on, want = devices.on_device(adam_arrays()), adam_arrays()
    optim.adam_step(*map(Bare, on.values()), step=1, lr=0.5)
    optim.adam_step(*want.values(), step=1, lr=0.5)
    for name, x in on.items():
        assert get(x).tobytes() == want[name].tobytes()


def test_a_build_without_the_library(monkeypatch: Any) -> None:
    monkeypatch.setattr(_cuda, "_loaded", None)
    monkeypatch.setattr(_cuda, "library", lambda emulator=False: None)
    words = (
        r"'p': got an array on cuda:0, needs an array on the CPU; copy it there .*not in this build; build it with pip"
    )
    refused(BufferError, words, devices.on_device(adam_arrays()))
    arrays = adam_arrays()
    with pytest.raises(BufferError, match=r"copy it there .*not in this build"):
        optim.adam_step(*(Bare(put(x)) for x in arrays.values()), step=1, lr=0.5)
    assert all((x == 1).all() for x in arrays.values())


def test_no_arrays_of_that_kind(monkeypatch: Any) -> None:
    monkeypatch.delattr(DeviceArray, "__array_namespace__")
    with pytest.raises(
        TypeError, match="curvk makes no arrays of type DeviceArray; give it torch tensors or CuPy arrays"
    ):
        optim.global_norm([put(np.ones(3))])
