"""Every kernel with a CUDA version on device arrays, against the CPU; what is refused, and in which stream it runs.

Without a device the arrays are host memory that says otherwise, and the emulator runs the kernels: `device_arrays`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import curvk
import device_arrays as devices
import numpy as np
import pytest
from curvk import _cuda
from curvk._backend import Plan, call, core
from curvk._bench.registry import Arrays, Case, cases
from curvk._bench.storage import empty
from curvk._signatures import ops
from curvk.kernels import curvature, gram, half, linalg, noise, optim, sweep, vmath
from device_arrays import CANARY, GUARD, DeviceArray, DlpackArray, get, put
from test_numerics import assert_same, check, make, seed_of, special_inputs

pytestmark = pytest.mark.skipif(devices.library() is None, reason=devices.REASON)

HAS = {op for op, kernels in ops().items() if all(map(devices.has_cuda, kernels.values()))}
ALL = [
    pytest.param(case, fmt, variant, id=f"{case.op}-{fmt}-{variant}")
    for case in cases().values()
    if case.op in HAS
    for fmt in case.formats
    for variant in case.tested
]
EVERY = pytest.mark.parametrize(("case", "fmt", "variant"), ALL)


def needs(*names: str) -> Any:
    missing = [op for op in names if op not in HAS]
    return pytest.mark.skipif(bool(missing), reason=f"no CUDA version of {', '.join(missing)} in this build")


@pytest.fixture(autouse=True)
def _library() -> None:
    devices.load()
    curvk.use_backend("cpp")  # for arrays on the host, whatever CURVK_BACKEND says


# ---- against the CPU ------------------------------------------------------------------------------------------------


def run(case: Case, fmt: str, variant: str, inputs: Arrays, device: bool, offset: int = 0) -> Arrays:
    """Runs the case on copies of the inputs, each `offset` elements and more behind a cache line, between canaries."""
    placed: Arrays = {}
    frames: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def place(name: str, x: np.ndarray) -> np.ndarray:
        shift = (offset + len(frames)) % 16 if offset else 0
        copy = empty(x.size, x.dtype, offset=shift, guard=GUARD)
        copy.base[:] = CANARY
        copy[:] = x
        frames[name] = copy, copy.base
        return copy

    for name, x in inputs.items():
        placed[name] = None if x is None else place(name, x)
    given = {name: None if x is None else put(x) for name, x in placed.items()} if device else placed
    outputs = case.run(given, case.variants[variant], fmt)
    if device:
        assert all(
            x is None or isinstance(x, (DeviceArray, np.ndarray)) or name == "p + low" for name, x in outputs.items()
        )
    outputs = {name: np.array(get(x)) for name, x in outputs.items() if name != "p + low"}  # made of two of them
    for name, (copy, frame) in frames.items():
        start = copy.ctypes.data - frame.ctypes.data
        outside = np.concatenate([frame[:start], frame[start + copy.nbytes :]])
        assert (outside == CANARY).all(), f"{name}: bytes outside the array were written"
        if name not in case.written:
            assert get(given[name]).tobytes() == inputs[name].tobytes(), f"{name}: only read, yet changed"
    return outputs


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


# ---- results that curvk makes ---------------------------------------------------------------------------------------


def drawn(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed_of("drawn", shape)).standard_normal(shape).astype(dtype)


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


# ---- what is refused ------------------------------------------------------------------------------------------------


def adam_arrays() -> dict[str, Any]:
    return {name: np.ones(5, np.float32) for name in "pgmv"}


def refused(error: type[Exception], words: str, arrays: dict[str, Any]) -> None:
    with pytest.raises(error, match=words) as caught:
        optim.adam_step(*arrays.values(), step=1, lr=0.5)
    assert type(caught.value) is error
    for x in arrays.values():
        assert (get(x) == 1).all()


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


# ---- streams, plans, DLPack -----------------------------------------------------------------------------------------


class Streams:
    """Stands in for the stream of an array; counts the questions."""

    def __init__(self) -> None:
        self.asked = 0

    def __int__(self) -> int:
        self.asked += 1
        return 0


def test_the_stream_is_asked_for_at_each_run() -> None:
    arrays, stream = adam_arrays(), Streams()
    on = devices.on_device(arrays) | {"p": put(arrays["p"], stream=stream)}
    plan = optim.AdamPlan(*([x] for x in on.values()))
    assert stream.asked == 0
    for i in range(1, 4):
        plan.step(step=i, lr=0.1)
        assert stream.asked == i
    optim.adam_step(*on.values(), step=4, lr=0.1)
    assert stream.asked == 4


@pytest.mark.parametrize("value", [None, 0, 1, 2])
def test_streams_of_the_interface(value: Any) -> None:
    assert _cuda.stream_of(put(np.ones(3), stream=value))() == (value or 0)


def test_plans_take_other_arrays() -> None:
    arrays = {name: drawn(1001) for name in "pg"} | {name: np.zeros(1001, np.float32) for name in "mv"}
    p, g, m, v = (put(x.copy()) for x in arrays.values())
    plan, want = optim.AdamPlan([p], [g], [m], [v]), optim.AdamPlan(*([x] for x in arrays.values()))
    for step, scale in ((1, 1.0), (2, -3.0)):
        grads = np.float32(scale) * arrays["g"]
        plan.set_grads([put(grads)])
        want.set_grads([grads])
        plan.step(step=step, lr=0.1)
        want.step(step=step, lr=0.1)
    assert get(p).tobytes() == arrays["p"].tobytes()
    with pytest.raises(BufferError, match=r"argument 'g\[0\]': got an array on the CPU"):
        plan.set_grads([arrays["g"]])
    with pytest.raises(RuntimeError, match="the plan's last arrays were refused; rebind it"):
        plan.step(step=3, lr=0.1)
    assert get(p).tobytes() == arrays["p"].tobytes()
    plan.set_grads([g])
    plan.step(step=3, lr=0.1)
    assert get(p).tobytes() != arrays["p"].tobytes()


def test_a_plan_may_move_to_the_host() -> None:
    x, out = drawn(1001), np.zeros(2)
    there = put(np.zeros(2))
    plan = Plan("sum_squares", ([put(x)], there))
    plan.run((1.0,))
    plan.rebind(([x], out))
    plan.run((1.0,))
    assert get(there).tobytes() == out.tobytes()
    assert out[0] > 0


def test_dlpack_alone_is_read() -> None:
    arrays = adam_arrays()
    g = DlpackArray(put(2 * arrays["g"]))
    optim.adam_step(put(arrays["p"]), g, put(arrays["m"]), out := put(arrays["v"]), step=1, lr=0.5)
    want = np.float32(0.999) * np.float32(1) + np.float32(1 - 0.999) * np.float32(4)
    assert get(out) == pytest.approx(want)
    assert g.asked == [1]  # the stream in which the kernel then runs waits for the array


def test_dlpack_alone_is_read_only() -> None:
    on = devices.on_device(adam_arrays())
    with pytest.raises(BufferError, match="argument 'p': got a read-only array"):
        optim.adam_step(DlpackArray(on["p"]), on["g"], on["m"], on["v"], step=1, lr=0.5)
    assert all((get(x) == 1).all() for x in on.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_stream_of_dlpack_alone(dtype: Any) -> None:
    x, out = DlpackArray(put(np.full((3, 4), 2, dtype))), put(np.zeros(2))
    plan = Plan("sum_squares", ([x], out))
    asked = len(x.asked)
    plan.run((1.0,))
    assert len(x.asked) == asked + 1
    assert set(x.asked) == {1}
    assert get(out).tolist() == [48.0, 0.0]


# ---- noise ----------------------------------------------------------------------------------------------------------


@needs("noise_fill")
@pytest.mark.parametrize("dist", noise.DISTRIBUTIONS)
def test_the_same_noise_everywhere(dist: str) -> None:
    """One SHA-256 for the whole, for its parts by their offsets, and for each of the two sides."""
    n, cuts = 40_009, (0, 1, 31, 5000, 20_011, 40_009)
    options: dict[str, Any] = {"seed": 2**63 + 11, "draw": 7, "dist": dist}

    def hashed(place: Callable[[np.ndarray], Any], parts: tuple[int, ...]) -> str:
        digest = hashlib.sha256()
        arrays = [place(np.empty(b - a, np.float32)) for a, b in itertools.pairwise(parts)]
        far = 2**40
        noise.fill(arrays, tensor=[5] * len(arrays), offset=[far + a for a in parts[:-1]], **options)
        for x in arrays:
            digest.update(get(x).tobytes())
        return digest.hexdigest()

    assert len({hashed(place, parts) for place in (put, lambda x: x) for parts in (cuts, (0, n))}) == 1


# ---- torch ----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not devices.real(), reason="needs a CUDA device, torch and curvk's CUDA library")
def test_torch_tensors_on_a_device() -> None:
    import torch

    x = {name: drawn(3, 1001) for name in ("p", "g")} | {name: np.zeros((3, 1001), np.float32) for name in "mv"}
    t = {name: torch.from_numpy(a.copy()).cuda() for name, a in x.items()}
    version = t["p"]._version
    optim.adam_step(*t.values(), step=1, lr=0.1)
    optim.adam_step(*x.values(), step=1, lr=0.1)
    assert t["p"].cpu().numpy().tobytes() == x["p"].tobytes()
    assert t["p"]._version > version
    assert optim.global_norm([t["p"]]) == optim.global_norm([x["p"]])
    with pytest.raises(BufferError, match="argument 'g': got an array on the CPU, needs one on cuda:0"):
        optim.adam_step(t["p"], torch.zeros(3, 1001), t["m"], t["v"], step=1, lr=0.1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert _cuda.stream_of(t["p"])() == stream.cuda_stream


@pytest.mark.gpu
@pytest.mark.skipif(not devices.real(), reason="needs a CUDA device, torch and curvk's CUDA library")
def test_results_beside_torch_tensors() -> None:
    import torch

    for function, x in {
        "exp": (vmath.exp, drawn(50)),
        "quantize8": (lambda y: sweep.quantize(y).codes, drawn(50)),
        "to_float32": (half.to_float32, drawn(50).astype(np.float16)),
        "svd_batch": (lambda y: linalg.svd_batch(y)[1], drawn(50, 3, 2)),
    }.items():
        if function in HAS:
            run, host = x
            there = run(torch.from_numpy(host).cuda())
            assert there.is_cuda
            assert there.cpu().numpy().tobytes() == run(host).tobytes()
    if {"noise_fill", "axpy_seeds"} <= HAS:
        p = torch.nn.Parameter(torch.from_numpy(drawn(9, 40)).cuda())
        want = drawn(9, 40)
        for q in (p, want):
            noise.perturb_(q, seed=1, scale=0.1, rows=[1, 5])
        assert p.detach().cpu().numpy().tobytes() == want.tobytes()
        assert p.is_leaf


# ---- what there is --------------------------------------------------------------------------------------------------


def test_report(monkeypatch: Any) -> None:
    fields = {"built", "library", "driver", "runtime", "devices", "reason", "emulator"}
    found = _cuda.report()
    assert set(found) == fields
    assert found["built"] == (_cuda.library() is not None)
    assert found["emulator"] == (_cuda.library(emulator=True) is not None)
    if not found["built"]:
        assert "CURVK_CUDA=ON" in found["reason"]
        assert not found["devices"]
        assert found["library"] is None
    path = devices.library()
    monkeypatch.setattr(_cuda, "library", lambda emulator=False: path)  # what is loaded counts as built
    found = _cuda.report()
    assert set(found) == fields
    assert found["built"]
    assert found["library"] == str(path)
    assert found["reason"] is None
    for device in found["devices"]:
        assert set(device) == {"name", "capability", "memory_gib"}
        assert device["name"]
        assert device["capability"] >= 5
        assert device["memory_gib"] > 0 or not devices.real()
    assert found["devices"]
    for version in (found["driver"], found["runtime"]):  # the emulator has none
        assert version.replace(".", "").isdecimal() if devices.real() else version is None


def test_report_of_a_library_that_does_not_load(monkeypatch: Any, tmp_path: Any) -> None:
    broken = tmp_path / "libcurvk_cuda.so"
    broken.write_text("no library")
    monkeypatch.setattr(_cuda, "_loaded", None)
    monkeypatch.setattr(_cuda, "library", lambda emulator=False: broken)
    found = _cuda.report()
    assert found["built"]
    assert found["library"] is None
    assert not found["devices"]
    assert "does not load" in found["reason"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_scaled_sum_of_squares_rounds_as_on_the_cpu(dtype):
    """Float32 sums are multiplied by the scale twice, afterwards: by its square they would round differently."""
    rng = np.random.default_rng(11)
    x = [rng.standard_normal(n).astype(dtype) for n in (1, 40_000, 5)]
    there, found = [put(a) for a in x], put(np.zeros(2))
    for scale in rng.uniform(0.1, 3.0, 20).tolist():
        needed = np.zeros(2)
        call("sum_squares", (x, needed), (scale,))
        call("sum_squares", (there, found), (scale,))
        assert get(found).tobytes() == needed.tobytes(), scale
