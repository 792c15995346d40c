"""The smallest test of each bug met in review, beside the place in the code that it guards."""

from __future__ import annotations

import ctypes
import math

import curvk
import numpy as np
import pytest
from curvk._backend import call, compiled, core
from curvk.kernels import half
from curvk.kernels.optim import SGDPlan, adam_step, global_norm, sgd_step

BACKENDS = ["cpp", "numba"] if compiled else ["numba"]
backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
@pytest.mark.parametrize("tiny", [0.0, 1e-120])
def test_norm_of_tiny_numbers_beside_a_narrow_array(tiny: float, backend: str) -> None:
    """The pass at scale 2^600 made 0 times inf of the narrow array's sum."""
    with curvk.use_backend(backend):
        assert global_norm([np.array([tiny]), np.zeros(3, np.float32)]) == pytest.approx(tiny, rel=1e-15, abs=0)


@backends
def test_norm_reads_memory_order_whoever_runs_it(backend: str) -> None:
    x = np.asfortranarray(np.random.default_rng(5).standard_normal((501, 703)))
    with curvk.use_backend(backend):
        want = global_norm([x.T.copy()])
        assert global_norm([x]) == want
        assert global_norm([x, np.zeros((4, 4))[::2, ::2]]) == want


def test_norm_names_the_callers_argument() -> None:
    with pytest.raises(TypeError, match=r"global_norm: argument 'arrays\[2\]': got int64"):
        global_norm([np.ones(2), np.ones(2, np.float32), np.ones(2, np.int64)])


@backends
def test_one_array_is_not_a_list(backend: str) -> None:
    """A list passed for the first item's view while the count came from all items: a heap overflow."""
    bits = [np.zeros(4096, np.uint16) for _ in range(2)]
    with curvk.use_backend(backend):
        with pytest.raises(TypeError, match="to_float32: argument 'x': got list"):
            half.to_float32(bits)
        with pytest.raises(TypeError, match="from_float32: argument 'out': got list"):
            half.from_float32(np.ones((2, 4096), np.float32), "f16", out=[np.zeros(4096, np.float16)] * 2)
        with pytest.raises(TypeError, match="got list"):
            call("to_float32", (bits, np.zeros(8192, np.float32)), (8192,))


def test_a_plan_follows_its_arrays_through_a_change_of_backend() -> None:
    p = [np.zeros(1, np.float32)]
    plan = SGDPlan(p, [np.ones(1, np.float32)])
    with curvk.use_backend("python"):
        plan.set_grads([np.full(1, 5, np.float32)])
    plan.step(lr=1.0)
    assert p[0].tolist() == [-5]


@backends
def test_a_plan_whose_arrays_were_refused_does_not_step_the_old_ones(backend: str) -> None:
    with curvk.use_backend(backend):
        p = [np.zeros(1, np.float32)]
        plan = SGDPlan(p, [np.ones(1, np.float32)])
        with pytest.raises(TypeError):
            plan.set_grads([np.ones(1)])
        with pytest.raises(RuntimeError, match="refused"):
            plan.step(lr=1.0)
        assert p[0].tolist() == [0]
        plan.set_grads([np.ones(1, np.float32)])
        plan.step(lr=1.0)
        assert p[0].tolist() == [-1]


@backends
def test_prologues_ignore_the_callers_float_control(backend: str) -> None:
    torch = pytest.importorskip("torch")
    zero = [np.zeros(3, np.float32) for _ in range(3)]
    p = np.ones(3, np.float32)
    with curvk.use_backend(backend):
        torch.set_flush_denormal(True)
        try:
            adam_step(p, *zero, step=1, lr=0.1, eps=1e-40)  # eps flushed to 0 made 0 / 0
        finally:
            torch.set_flush_denormal(False)
    assert p.tolist() == [1, 1, 1]


@pytest.mark.skipif(not compiled, reason="the twins keep NumPy's rounding; the rounding mode is a matter of the C side")
def test_prologues_ignore_the_callers_rounding_mode() -> None:
    libm = ctypes.CDLL(None)
    a, b = (np.full(100, 0.3, np.float32) for _ in range(2))
    g = np.full(100, 0.7, np.float32)
    sgd_step(a, g, lr=1e-3)
    libm.fesetround(0x400)  # FE_DOWNWARD on x86-64; refused elsewhere
    try:
        sgd_step(b, g, lr=1e-3)
    finally:
        libm.fesetround(0)
    assert a.tobytes() == b.tobytes()


@backends
def test_tensors_without_memory_are_refused(backend: str) -> None:
    torch = pytest.importorskip("torch")
    p = torch.zeros(3)
    with curvk.use_backend(backend):
        with pytest.raises(ValueError, match="argument 'g': got a tensor without memory"):
            sgd_step(p, torch._efficientzerotensor(3), lr=1.0)
        gone = torch.ones(3)
        gone.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="argument 'g': got a tensor without memory"):
            sgd_step(p, gone, lr=1.0)
    assert p.tolist() == [0, 0, 0]


def test_a_negated_tensor_is_not_read_with_the_wrong_sign() -> None:
    torch = pytest.importorskip("torch")
    for n in (1, 2, 5):
        p = torch.zeros(n)
        negated = torch.complex(torch.zeros(n), torch.ones(n)).conj().imag
        assert negated.is_neg()
        with pytest.raises(ValueError, match=r"lazily conjugated or negated .* use g.resolve_neg\(\)"):
            sgd_step(p, negated, lr=1.0)
        assert not p.any()


@pytest.mark.skipif(not compiled, reason="the C interface is the subject")
def test_a_corrupt_window_is_refused_from_c() -> None:
    from curvk.capi import ffi, lib

    guarded = np.full(9, 7.0)
    out = np.full(3, 7.0)
    for stored in (-1, 2**63 - 1):
        count = np.array([stored])
        status = lib.curvk_loss_window_f64(
            ffi.from_buffer("double[]", guarded[4:]),
            ffi.from_buffer("int64_t[]", count),
            ffi.from_buffer("double[]", out),
            5,
            2,
            1.0,
        )
        assert status == 2
        assert (guarded == 7).all()
        assert (out == 7).all()


@pytest.mark.skipif(not compiled, reason="the C interface is the subject")
def test_an_empty_first_row_does_not_switch_amsgrad_off() -> None:
    from curvk.capi import ffi, lib

    rows = {k: np.full(4, 1.0, np.float32) for k in "pgmvx"}
    keep = {k: ffi.new("float*[2]", [ffi.NULL, ffi.from_buffer("float[]", x)]) for k, x in rows.items()}
    sizes = ffi.new("int64_t[2]", [0, 4])
    want = {k: np.full(4, 1.0, np.float32) for k in "pgmvx"}
    adam_step(want["p"], want["g"], want["m"], want["v"], max_v=want["x"], step=1, lr=0.1)
    tables = [keep[k] for k in "pgmvx"]
    assert lib.curvk_adam_step_list_f32(*tables, ffi.NULL, sizes, 2, 1, 0.1, 0.9, 0.999, 1e-8, 0.0, 0, 0, 1.0) == 0
    assert {k: x.tobytes() for k, x in rows.items()} == {k: x.tobytes() for k, x in want.items()}


def test_hyper_parameters_blame_themselves() -> None:
    x = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="argument 'momentum': got nan"):
        sgd_step(x, x.copy(), lr=0.1, momentum=math.nan)
    with pytest.raises(TypeError, match=r"argument 'betas': got 0\.9, needs a pair"):
        adam_step(x, x.copy(), x.copy(), x.copy(), step=1, lr=0.1, betas=0.9)  # type: ignore[arg-type]


@pytest.mark.skipif(not compiled, reason="a format is chosen by the binder")
def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="no format named nonsense"):
        core.call("from_float32", (np.ones(2, np.float32), np.ones(2, np.uint16)), (2,), "nonsense")
