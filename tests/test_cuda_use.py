"""Device arrays in use: streams, plans, DLPack, noise, torch, and what a machine without a device says."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import curvk
import device_arrays as devices
import numpy as np
import pytest
from cuda_cases import HAS, adam_arrays, drawn, needs
from curvk import _cuda
from curvk._backend import Plan, call
from curvk.kernels import half, linalg, noise, optim, sweep, vmath
from device_arrays import DlpackArray, get, put

pytestmark = pytest.mark.skipif(devices.library() is None, reason=devices.REASON)


@pytest.fixture(autouse=True)
def _library() -> None:
    devices.load()
    curvk.use_backend("cpp")  # for arrays on the host, whatever CURVK_BACKEND says


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
