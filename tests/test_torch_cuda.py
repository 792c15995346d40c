"""curvk.torch on CUDA devices: the bits of the CPU, in the device's own stream, without waiting for it.

Without a device these tests skip. `test_on_pretended_devices` runs them on two devices that are the host's memory, see
fake_cuda.py; it cannot show what only streams and real memory would.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import curvk
import pytest
from curvk import _backend, _cuda

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
from curvk.kernels import noise  # noqa: E402
from torch import nn  # noqa: E402
from torch_storage_models import BASES, STORAGES, bits  # noqa: E402


def _missing() -> str:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.cuda and curvk.get_backend() == "emulator":
        return "the emulator's devices are the host's memory"
    try:
        _cuda.load()
    except ImportError as error:
        return str(error)
    return ""


MISSING = _missing()
gpu = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING or "none")]
real = pytest.mark.skipif(not torch.version.cuda, reason="the devices are pretended: they have no streams and graphs")
two = pytest.mark.skipif(not MISSING and torch.cuda.device_count() < 2, reason="one CUDA device")


def on_gpu(test):
    for mark in gpu:
        test = mark(test)
    return test


SHAPES = [(7,), (3, 50), (), (0,), (2, 3, 4, 5), (4099,)]


def needs(*ops):
    """Skips where the CUDA library of this build has no version of these kernels yet."""
    lacking = [op for op in ops if not _backend.core.has_cuda(op)]
    if lacking:
        pytest.skip(f"this build's CUDA library lacks {', '.join(lacking)}")


def made(device, dtype=torch.float32, shapes=SHAPES, seed=0):
    """Parameters on a device (or on several that take turns), and a function that sets the k-th gradients."""
    devices = [device] if isinstance(device, str) else device
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    params = [nn.Parameter(x.to(devices[i % len(devices)])) for i, x in enumerate(values)]

    def set_grads(k):
        generator = torch.Generator().manual_seed(1000 + k)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype).to(p.device)

    return params, set_grads


def host(tensors):
    return bits([t.detach().cpu() for t in tensors])


def host_states(optimizer, params):
    return [{k: (v.dtype, v.shape, bits([v.cpu()])) for k, v in optimizer.state.get(p, {}).items()} for p in params]


def same_run(make, devices=("cuda",), dtype=torch.float32, steps=4, **shapes):
    """Runs an optimizer on the CPU and on devices with the same gradients: parameters and states have the same bits."""
    runs = []
    for device in ("cpu", list(devices)):
        params, set_grads = made(device, dtype, **shapes)
        optimizer = make(params)
        for k in range(steps):
            set_grads(k)
            optimizer.step()
        runs.append((host(params), host_states(optimizer, params)))
        if device != "cpu":
            for p in params:
                for key, value in optimizer.state.get(p, {}).items():
                    assert value.device == (torch.device("cpu") if key == "step" else p.device), key
    assert runs[0] == runs[1]


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("base", BASES, ids=lambda b: f"{b[0]}-{b[1]}")
def test_steps_have_the_bits_of_the_cpu(base, dtype):
    needs("adam_step", "sgd_step")
    name, options = base
    same_run(lambda params: getattr(ct, name)(params, lr=0.1, **options), dtype=dtype)


@on_gpu
@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}, {"max_grad_norm": 0.5}], ids=str)
def test_options_of_adam(options):
    needs("adam_step", "sum_squares")
    same_run(lambda params: ct.AdamW(params, lr=0.1, **options))


@on_gpu
def test_complex_parameters():
    needs("adam_step")
    same_run(lambda params: ct.Adam(params, lr=0.1), dtype=torch.complex64)


@on_gpu
@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("base", BASES, ids=lambda b: f"{b[0]}-{b[1]}")
def test_storage_options_have_the_bits_of_the_cpu(base, storage):
    needs("adam_sweep", "sgd_sweep", "adam_sweep8", "sgd_sweep16")
    name, options = base
    same_run(lambda params: getattr(ct, name)(params, lr=0.1, **options, **storage), dtype=torch.bfloat16)


@on_gpu
@two
def test_parameters_on_several_devices():
    needs("adam_step", "sum_squares")
    same_run(lambda params: ct.AdamW(params, lr=0.1, max_grad_norm=1.0), devices=("cuda:0", "cuda:1"))
    same_run(lambda params: ct.SGD(params, lr=0.1, momentum=0.9), devices=("cpu", "cuda:0", "cuda:1"))


@on_gpu
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_sam_has_the_bits_of_the_cpu(name):
    needs("sam_perturb", "sum_squares")

    def run(device):
        params, _ = made(device, shapes=[(7,), (3, 50), (4099,)])
        optimizer = ct.SAM(getattr(ct, name)(params, lr=0.1), rho=0.1)
        for k in range(3):
            for phase in range(2):
                generator = torch.Generator().manual_seed(2 * k + phase)
                for p in params:
                    p.grad = torch.randn(p.shape, generator=generator).to(p.device)
                if phase == 0:
                    places = [p.grad.data_ptr() for p in params]
                    assert optimizer.perturb_()
                    assert [old.data_ptr() for _, old in optimizer._saved.values()] == places  # in their own memory
            assert optimizer.restore_and_step()
        return host(params)

    assert run("cpu") == run("cuda")


@on_gpu
@pytest.mark.parametrize("state_bits", [32, 8])
def test_alice_has_the_bits_of_the_cpu(state_bits):
    needs("alice_step", "alice_step8", "alice_lookahead", "alice_model")

    def run(device):
        params, _ = made(device, shapes=[(7,), (3, 50), (4099,)])
        optimizer = ct.Alice(params, lr=0.1, quick_steps=1, state_bits=state_bits)
        for _ in range(4):

            def closure():
                optimizer.zero_grad()
                for p in params:
                    p.grad = p.detach().clone().mul_(2)  # exactly rounded wherever it is computed
                return torch.zeros(())

            optimizer.step(closure)
        return host(params), host_states(optimizer, params), optimizer.diagnose()

    assert run("cpu") == run("cuda")


# ---- layouts --------------------------------------------------------------------------------------------------------


@on_gpu
def test_layouts_of_parameters_and_gradients():
    """Any dense order is stepped; a gradient in another order is copied; what has gaps is refused by name."""
    needs("adam_step")
    p, q = (nn.Parameter(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))) for _ in range(2))
    p.data = p.data.contiguous(memory_format=torch.channels_last)
    q.data = q.data.to("cuda").contiguous(memory_format=torch.channels_last)
    g = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    one, other = ct.AdamW([p], lr=0.1), ct.AdamW([q], lr=0.1)
    for grad in (g.contiguous(memory_format=torch.channels_last), g, g[:1].expand(2, 3, 4, 5)):
        p.grad, q.grad = grad.clone(memory_format=torch.preserve_format), grad.to("cuda")
        one.step()
        other.step()
    assert host([p]) == host([q])
    assert other.state[q]["exp_avg"].stride() == q.stride()
    gaps = nn.Parameter(torch.zeros(4, 6, device="cuda")[:, ::2])
    gaps.grad = torch.ones(4, 3, device="cuda")
    with pytest.raises(ValueError, match=r"parameter 0 of group 0.*without gaps"):
        ct.AdamW([gaps]).step()


@on_gpu
def test_gradients_are_set_to_zero_where_they_are():
    needs("adam_sweep")
    p = nn.Parameter(torch.ones(4, 3, device="cuda"))
    p.grad = torch.ones(3, 4, device="cuda").t()  # copied for the step
    ct.AdamW([p], zero_grad=True).step()
    assert p.grad.stride() == (1, 4)
    assert not p.grad.cpu().any()
    p.grad = torch.ones(3, device="cuda").expand(4, 3)
    with pytest.raises(ValueError, match="gradient of parameter 0"):  # zeros have nowhere to go
        ct.AdamW([p], zero_grad=True).step()


@on_gpu
def test_mixed_devices_are_named():
    needs("adam_step")
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    p.data = p.data.cuda()  # leaves the gradient behind
    before = p.detach().clone()
    with pytest.raises(BufferError, match=r"gradient of parameter 0 of group 0 is on device cpu, needs cuda:0"):
        ct.AdamW([p]).step()
    assert torch.equal(p, before)


# ---- moving, saving -------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("options", [{}, {"state_bits": 8, "rounding": "stochastic"}], ids=str)
def test_a_run_moves_to_a_device_and_back(options):
    """States follow model.to(), and load_state_dict moves them; the run is that of the CPU."""
    needs("adam_step", *(["adam_sweep8"] if options else []))
    still, set_still = made("cpu", torch.bfloat16, shapes=[(7,), (3, 50)])
    moved, set_moved = made("cpu", torch.bfloat16, shapes=[(7,), (3, 50)])
    one, other = ct.AdamW(still, lr=0.1, **options), ct.AdamW(moved, lr=0.1, **options)
    for k, device in enumerate(["cpu", "cuda", "cuda", "cpu", "cuda"]):
        for p in moved:
            p.data = p.data.to(device)
        set_still(k)
        set_moved(k)
        one.step()
        other.step()
    assert (host(still), host_states(one, still)) == (host(moved), host_states(other, moved))
    fresh, set_fresh = made("cuda", torch.bfloat16, shapes=[(7,), (3, 50)])
    third = ct.AdamW(fresh, lr=0.1, **options)
    third.load_state_dict(one.state_dict())
    for p, q in zip(fresh, still, strict=True):
        p.data.copy_(q)
    assert {v.device.type for s in third.state.values() for k, v in s.items() if k != "step"} == {"cuda"}
    assert {s["step"].device.type for s in third.state.values()} == {"cpu"}
    set_still(9)
    set_fresh(9)
    one.step()
    third.step()
    assert host(still) == host(fresh)


@on_gpu
def test_states_follow_a_layout_there_and_back():
    """Where a parameter's memory is laid out anew its states are copied, and those left behind are not met again."""
    needs("adam_step")
    p, q = (nn.Parameter(torch.ones(2, 3, 4, 5, device=device)) for device in ("cpu", "cuda"))
    one, other = ct.AdamW([p], lr=0.1), ct.AdamW([q], lr=0.1)
    formats = [torch.contiguous_format, torch.channels_last] * 2 + [torch.contiguous_format] * 2
    for k, layout in enumerate(formats):
        g = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(k))
        q.data = q.data.contiguous(memory_format=layout)
        p.grad, q.grad = g, g.cuda()
        one.step()
        other.step()
        assert host([p]) == host([q])


@on_gpu
def test_torchs_state_dicts_of_devices_load():
    """A checkpoint of torch.optim's fused or capturable optimizer has its counts on the device."""
    needs("adam_step")
    p, q = (nn.Parameter(torch.ones(5, device="cuda")) for _ in range(2))
    theirs = torch.optim.AdamW([p], lr=0.1, foreach=False)
    p.grad = torch.full((5,), 0.5, device="cuda")
    theirs.step()
    state = theirs.state_dict()
    state["state"] = {0: state["state"][0] | {"step": torch.tensor(1.0, device="cuda")}}
    ours = ct.AdamW([q], lr=0.1)
    ours.load_state_dict(state)
    assert ours.state[q]["step"].device.type == "cpu"
    assert ours.state[q]["step"] == 1
    assert torch.equal(ours.state[q]["exp_avg"], theirs.state[p]["exp_avg"])


# ---- waiting --------------------------------------------------------------------------------------------------------


@on_gpu
@real
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9}),
        ("AdamW", {}),
        ("AdamW", {"state_bits": 8, "rounding": "stochastic", "ema": 0.9, "zero_grad": True}),
    ],
    ids=str,
)
def test_a_step_does_not_wait_for_the_device(name, options):
    params, set_grads = made("cuda", torch.bfloat16)
    optimizer = getattr(ct, name)(params, lr=0.1, **options)
    for k in range(2):  # the first one makes states
        set_grads(k)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@on_gpu
@real
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_step_is_queued_in_the_current_stream(name):
    """It sees gradients that were written late in a side stream; in another stream it would overtake them."""
    one, set_one = made("cpu")
    other, set_other = made("cuda")
    ours, theirs = getattr(ct, name)(one, lr=0.1), getattr(ct, name)(other, lr=0.1)
    side = torch.cuda.Stream()
    for k in range(3):
        set_one(k)
        ours.step()
        set_other(k)
        late = [p.grad.clone() for p in other]
        for p in other:
            p.grad.fill_(-7)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)  # cycles, some 50 ms
            for p, g in zip(other, late, strict=True):
                p.grad.copy_(g)
            theirs.step()
        side.synchronize()
    assert host(one) == host(other)


@on_gpu
@real
def test_a_captured_step_of_sgd_repeats():
    """With numbers that do not change a CUDA graph may hold the step, since nothing in it is the host's."""
    params, set_grads = made("cuda")
    eager, set_eager = made("cuda")
    one, other = ct.SGD(params, lr=0.1, momentum=0.9), ct.SGD(eager, lr=0.1, momentum=0.9)
    set_grads(0)
    set_eager(0)
    one.step()  # makes the buffers
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one.step()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for _ in range(4):
        other.step()
    assert host(params) == host(eager)


@on_gpu
def test_grad_scaler_skips_and_unscales():
    needs("adam_step")
    p, q = nn.Parameter(torch.ones(4, device="cuda")), nn.Parameter(torch.ones(4))
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    assert scaler.is_enabled()
    one, other = ct.AdamW([p], lr=0.1), ct.AdamW([q], lr=0.1)
    for value in (1.0, float("inf"), 0.5):
        one.zero_grad()
        scale = scaler.get_scale()
        scaler.scale((value * p).sum()).backward()
        scaler.step(one)
        scaler.update()
        if value != float("inf"):
            q.grad = torch.full((4,), value * scale) / scale
            other.step()
    assert one.state[p]["step"] == 2
    assert host([p]) == host([q])


# ---- without gradients ----------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("dist", ["normal", "normal_fast", "rademacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_noise_is_the_cpus(dist, dtype):
    needs("noise_fill")
    here, there = torch.empty(100_003, dtype=dtype), torch.empty(100_003, dtype=dtype, device="cuda")
    for x in (here, there):
        noise.fill(x, seed=2**64 - 3, draw=5, tensor=7, dist=dist)
    assert host([here]) == host([there])


def network(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Embedding(11, 8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
    )
    for p in model.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator)
    return model.to(device, dtype)


METHODS = [
    (ct.MeZO, {}),
    (ct.MeZO, {"restore": "copy", "weight_decay": 0.1}),
    (ct.MeZO, {"restore": "grid"}),
    (ct.MeZO, {"active_rows": True}),
    (ct.MeZO, {"active_rows": True, "dist": "rademacher", "n_probes": 2}),
    (ct.MeZO, {"points": 1}),
    (ct.LeZO, {"drop": 0.5}),
    (ct.AdaLeZO, {"fraction": 0.5}),
    (ct.LOZO, {"interval": 3}),
    (ct.LOZO, {"interval": 3, "restore": "copy"}),
    (ct.LOZO, {"interval": 3, "restore": "lazy", "weight_decay": 0.1}),
    (ct.SparseMeZO, {"mask_every": 2}),
    (ct.FZOO, {"n_probes": 3}),
    (ct.ES, {"n_probes": 3}),
]


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "options"), METHODS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_logs_replay_across_devices(kind, options, dtype):
    """A log made on a device rebuilds its weights on the CPU, and one of the CPU on a device."""
    needs("noise_fill", "axpy_seeds", "noise_scratch", "noise_grid")
    if options.get("restore") == "grid" and dtype != torch.float32:
        pytest.skip("the grid is for float32")
    ids = torch.tensor([[1, 4, 4], [0, 9, 1]])
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        model, other = network(first, dtype), network(second, dtype)
        own = ids.to(first)
        optimizer = kind(model, lr=1e-2, seed=4, **options)
        start = host(model.parameters())
        for _ in range(5):
            optimizer.step(lambda model=model, own=own: (model(own).float() - 1).square().mean())
        assert host(model.parameters()) != start
        optimizer.log.replay(other)
        assert host(model.parameters()) == host(other.parameters())
        resumed = kind(network(second, dtype), lr=1e-2, seed=4, **options)
        resumed.load_state_dict(optimizer.state_dict())
        there = ids.to(second)
        resumed.step(lambda m=resumed.model, ids=there: (m(ids).float() - 1).square().mean())
        assert len(resumed.log) == 6


@on_gpu
@two
def test_a_model_on_two_devices():
    """Windows have a buffer on each device; what is displaced is put back where it was."""
    needs("noise_scratch", "axpy_seeds")

    class Halves(nn.Module):
        def __init__(self, devices):
            super().__init__()
            layers = network("cpu")
            self.first, self.second = layers[:3].to(devices[0]), layers[3:].to(devices[1])

        def forward(self, ids):
            x = self.first(ids.to(self.first[1].weight.device))
            return self.second(x.to(self.second[0].weight.device))

    model, other = Halves(("cuda:0", "cuda:1")), Halves(("cpu", "cpu"))
    ids = torch.tensor([[1, 4, 4], [0, 9, 1]])
    optimizer = ct.MeZO(model, lr=1e-2)
    for _ in range(3):
        optimizer.step(lambda: model(ids).square().mean())
    assert {p.device for p in model.parameters()} == {torch.device("cuda:0"), torch.device("cuda:1")}
    optimizer.log.replay(other)
    assert host(model.parameters()) == host(other.parameters())


@on_gpu
def test_the_published_order_of_mezo_is_the_cpus():
    needs("axpy_seeds")
    with pytest.raises(BufferError, match=r"compat.*'0\.weight'.*cuda:0.*model\.cpu"):
        ct.MeZO(network("cuda"), lr=1e-2, restore="naive", compat="mezo")


@on_gpu
def test_weights_that_are_not_in_c_order_are_refused():
    needs("axpy_seeds")
    model = nn.Conv2d(3, 4, 2).cuda().to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"params\['weight'\].*C order"):
        ct.MeZO(model, lr=1e-2)


# ---- curvature ------------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("method", ["gradients", "double_backward"])
def test_the_hessians_diagonal_of_a_quadratic(method):
    """(1/2) sum a p^2 has the diagonal a; with powers of two nothing rounds."""
    needs("noise_fill", "noise_scratch")
    model = nn.Linear(3, 2, bias=False).cuda()
    model.weight.data = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 4.0]], device="cuda")
    a = torch.tensor([[1.0, 2.0, 4.0], [8.0, 0.5, 0.25]], device="cuda")
    more = {"sigma": 0.5} if method == "gradients" else {}
    found = ct.hessian_diagonal(model, lambda: (a * model.weight**2).sum() / 2, samples=2, method=method, **more)
    assert found.mean["weight"].device.type == "cpu"
    assert torch.equal(found.mean["weight"], a.cpu())


@on_gpu
def test_a_glass_probe_of_a_device():
    needs("noise_scratch")
    found = []
    for device in ("cpu", "cuda"):
        model = nn.Linear(3, 2, bias=False).to(device)
        model.weight.data = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 4.0]], device=device)
        probe = ct.GlassProbe(model, lambda m=model: (m.weight**2).sum(), sigma=0.5)
        found.append(probe.run(samples=4))
        assert host([model.weight]) == bits([torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 4.0]])])
    assert torch.equal(found[0].h2["weight"], found[1].h2["weight"])
    assert torch.equal(found[0].rho["weight"], found[1].rho["weight"])


@on_gpu
@real
def test_dropout_masks_agree_within_a_step_of_alice():
    """The device's generator is put back between the calls of a closure."""
    p = nn.Parameter(torch.ones(64, device="cuda"))
    optimizer, masks = ct.Alice([p], lr=0.1, sigma=1e-3), []

    def closure():
        optimizer.zero_grad()
        mask = nn.functional.dropout(torch.ones(64, device="cuda"))
        masks.append(mask)
        loss = (mask * p).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert len(masks) == 4  # a sample step and a quick one
    assert all(torch.equal(masks[0], m) for m in masks[:3])
    assert not torch.equal(masks[0], masks[3])


# ---- without a device -----------------------------------------------------------------------------------------------


def test_without_the_library_a_device_is_named_with_the_reason(monkeypatch):
    """What a CUDA tensor meets in a build without CUDA, told on a tensor that says that it is one."""
    from curvk.torch import _devices

    monkeypatch.setattr(_cuda, "_loaded", None)
    monkeypatch.setattr(_cuda, "library", lambda emulator=False: None)
    assert "CURVK_CUDA=ON" in _devices.lacking("adam_step")


def test_counts_stay_on_the_cpu_under_another_default_device():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = ct.AdamW([p])
    with torch.device("meta"):
        optimizer.step()
    assert optimizer.state[p]["step"].device.type == "cpu"
    assert optimizer.state[p]["step"] == 1


def test_states_on_the_meta_device_lie_as_their_parameters():
    """`new_states` reads no memory, so that this device shows where and how they are made."""
    from curvk.torch._states import new_states

    p = torch.empty(2, 3, 4, 5, device="meta").contiguous(memory_format=torch.channels_last)
    q = torch.empty(3)
    wanted = [(x, "exp_avg", torch.float32, tuple(x.shape), None) for x in (p, q, p)]
    states = new_states(wanted)
    assert [s.device.type for s in states] == ["meta", "cpu", "meta"]
    assert states[0].stride() == p.stride()
    assert states[0]._base is states[2]._base
    assert states[0]._base is not states[1]._base


@pytest.mark.slow
@pytest.mark.skipif(not MISSING, reason="there are devices, real or pretended")
def test_on_pretended_devices():
    if _cuda.library(emulator=True) is None:
        pytest.skip("curvk's CUDA emulator is not in this build")
    if shutil.which("c++") is None or sys.platform != "linux":
        pytest.skip("needs a C++ compiler on Linux")
    here = Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "fake_cuda", "-p", "no:cacheprovider", "-rs", str(here)]
    run = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert " passed" in run.stdout
