"""Steps with capturable=True, which a CUDA graph can hold: the bits of the plain ones, and nothing only the host knows.

On the CPU they do the same, so that most of this needs no device. `test_on_pretended_devices` runs all on devices that
are the host's memory, see fake_cuda.py; graphs themselves need a real one.
"""

from __future__ import annotations

import copy
import io
import shutil
import subprocess
import sys
from pathlib import Path

import curvk
import pytest
from curvk import _cuda

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
from curvk.torch import _base  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch_storage_models import bits  # noqa: E402


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
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING or "none")]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]
everywhere = pytest.mark.parametrize("device", DEVICES)

SHAPES = [(7,), (3, 50), (), (0,), (2, 3, 4, 5), (4099,)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
RUNS = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {"weight_decay": 0.01, "maximize": True}),
    ("Adam", {"amsgrad": True, "betas": (0.8, 0.95), "eps": 1e-6}),
    ("AdamW", {"weight_decay": 0.1}),
]
runs = pytest.mark.parametrize(("name", "options"), RUNS, ids=str)


def made(device, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [nn.Parameter(x.to(device)) for x in values]


def set_grads(params, k):
    """Sets the k-th gradients, in the memory of those before where there are any, as a graph needs it."""
    generator = torch.Generator().manual_seed(1000 + k)
    for p in params:
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype).to(p.device)
        if p.grad is None:
            p.grad = g
        else:
            p.grad.copy_(g)


def run(optimizer, start, stop):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for k in range(start, stop):
        set_grads(params, k)
        optimizer.step()
    return params


def host(params):
    return bits([p.detach().cpu() for p in params])


def held(optimizer, params):
    """The states' dtypes, shapes and bits."""
    return [{k: (v.dtype, v.shape, bits([v.cpu()])) for k, v in optimizer.state.get(p, {}).items()} for p in params]


def saved(optimizer):
    """The state dict from a file; pretended devices cannot be saved from, so that theirs is copied."""
    state_dict = optimizer.state_dict()
    if torch.cuda.is_available() and not torch.version.cuda:
        states = {i: {k: v.clone() for k, v in s.items()} for i, s in state_dict["state"].items()}
        return {**state_dict, "state": states}
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file)


# ---- the same steps -------------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@runs
def test_the_bits_of_plain_steps(name, options, dtype, device):
    found = []
    for capturable in (False, True):
        params = made(device, dtype)
        optimizer = getattr(ct, name)(params, lr=0.1, capturable=capturable, **options)
        for k in range(5):
            run(optimizer, k, k + 1)
            optimizer.param_groups[0]["lr"] *= 0.7
        found.append((host(params), held(optimizer, params)))
    assert found[0] == found[1]
    assert all(value.device == p.device for p in params for value in optimizer.state.get(p, {}).values())


@everywhere
def test_complex_parameters_and_mixed_dtypes(device):
    found = []
    for capturable in (False, True):
        params = made(device) + made(device, torch.bfloat16, [(33,)])
        params.append(nn.Parameter(torch.complex(params[1].detach(), 2 * params[1].detach())))
        optimizer = ct.AdamW(params, lr=0.1, capturable=capturable)
        for k in range(4):
            set_grads(params[:-1], k)
            params[-1].grad = torch.complex(params[1].grad, params[1].grad - 1)
            optimizer.step()
        found.append((host(params), held(optimizer, params)))
    assert found[0] == found[1]
    assert {float(optimizer.state[p]["step"]) for p in params} == {4.0}


@everywhere
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize(("shape", "beside"), [((), True), ((1,), True), ((1, 1), False)])
def test_an_lr_that_is_a_tensor_is_followed(name, shape, beside, device):
    """A schedule writes it in place; it has the bits of the same numbers given as numbers."""
    params, others = made(device), made(device)
    lr = torch.full(shape, 0.1, device=device if beside else "cpu")
    one, other = getattr(ct, name)(params, lr=lr, capturable=True), getattr(ct, name)(others, lr=0.0)
    for k in range(4):
        lr.fill_(0.3 / (k + 1))
        other.param_groups[0]["lr"] = float(lr)
        run(one, k, k + 1)
        run(other, k, k + 1)
    assert host(params) == host(others)


@everywhere
def test_layouts(device):
    """Channels last, a gradient in another order, and states that follow a parameter laid out anew."""
    found = []
    for capturable in (False, True):
        p = made(device, shapes=[(2, 3, 4, 5)])[0]
        p.data = p.data.contiguous(memory_format=torch.channels_last)
        optimizer = ct.AdamW([p], lr=0.1, capturable=capturable)
        for k, layout in enumerate([torch.channels_last, torch.contiguous_format] * 2):
            if k == 2:
                p.data = p.data.contiguous()
            p.grad = made(device, shapes=[(2, 3, 4, 5)])[0].detach().contiguous(memory_format=layout)
            optimizer.step()
        found.append((host([p]), held(optimizer, [p])))
    assert found[0] == found[1]


@everywhere
def test_groups_have_their_own_count_and_lr(device):
    params, others = made(device), made(device)
    found = []
    for own, capturable in ((params, True), (others, False)):
        optimizer = ct.Adam([{"params": own[:2], "lr": 0.3}, {"params": own[2:]}], lr=0.1, capturable=capturable)
        run(optimizer, 0, 2)
        for p in own[:2]:
            p.grad = None
        set_grads(own[2:], 7)
        optimizer.step()
        run(optimizer, 3, 5)
        found.append((host(own), held(optimizer, own)))
    assert found[0] == found[1]


@everywhere
def test_the_base_of_sam(device):
    found = []
    for capturable in (False, True):
        params = made(device, shapes=[(7,), (3, 50)])
        optimizer = ct.SAM(ct.AdamW(params, lr=0.1, capturable=capturable), rho=0.1)
        for k in range(3):
            set_grads(params, 2 * k)
            assert optimizer.perturb_()
            set_grads(params, 2 * k + 1)
            assert optimizer.restore_and_step()
        found.append(host(params))
    assert found[0] == found[1]


# ---- what a graph can hold ------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Notes the operations of torch, of which a read of a number would be one, and a new tensor another."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "profiler":  # which notes each step
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@everywhere
@runs
def test_a_step_reads_nothing_and_makes_nothing(name, options, device):
    params = made(device)
    lr = torch.tensor(0.1, device=device)
    optimizer = getattr(ct, name)(params, lr=lr, capturable=True, **options)
    run(optimizer, 0, 2)
    optimizer.param_groups[0]["lr"] = 0.1 if device == "cpu" else lr  # the host may read a tensor of its own
    places = [v.data_ptr() for p in params for v in optimizer.state.get(p, {}).values()]
    set_grads(params, 2)
    with Operations() as seen:
        optimizer.step()
    assert set(seen.names) <= {"add_", "copy_", "fill_", "view", "detach"}
    assert ("fill_" if device == "cpu" else "copy_") in seen.names  # lr
    assert [v.data_ptr() for p in params for v in optimizer.state.get(p, {}).values()] == places


@everywhere
@runs
def test_the_first_step_in_a_capture_is_refused(name, options, device, monkeypatch):
    """On a device that says that it captures; a step like the one before it is taken, what makes states is not."""
    params = made(device)
    optimizer = getattr(ct, name)(params, lr=0.1, capturable=True, **options)
    set_grads(params, 0)
    before = host(params)
    monkeypatch.setattr(_base, "capturing", lambda device: True)
    with pytest.raises(RuntimeError, match=rf"{name}: this step makes states.*before the capture"):
        optimizer.step()
    assert host(params) == before
    assert not any(optimizer.state.values())
    monkeypatch.setattr(_base, "capturing", lambda device: False)
    optimizer.step()
    monkeypatch.setattr(_base, "capturing", lambda device: True)
    optimizer.step()
    assert host(params) != before
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="before the capture"):
        optimizer.step()


@pytest.mark.gpu
@pytest.mark.skipif(bool(MISSING), reason=MISSING or "none")
@pytest.mark.skipif(not torch.version.cuda, reason="the devices are pretended: they have no graphs")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@runs
def test_a_graph_steps_on(name, options, dtype):
    """Replays count on and follow an lr on the device: the bits of as many eager plain steps."""
    params, others = made("cuda", dtype), made("cuda", dtype)
    lr = torch.tensor(0.1, device="cuda")
    one = getattr(ct, name)(params, lr=lr, capturable=True, **options)
    other = getattr(ct, name)(others, lr=0.1, **options)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(one, 0, 1)
    torch.cuda.current_stream().wait_stream(side)
    other.param_groups[0]["lr"] = float(lr)
    run(other, 0, 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one.step()
    for k in range(1, 6):
        lr.fill_(0.3 / (k + 1))
        other.param_groups[0]["lr"] = float(lr)
        set_grads(params, k)
        graph.replay()
        run(other, k, k + 1)
    torch.cuda.synchronize()
    assert host(params) == host(others)
    assert held(one, params) == held(other, others)


@pytest.mark.gpu
@pytest.mark.skipif(bool(MISSING), reason=MISSING or "none")
@pytest.mark.skipif(not torch.version.cuda, reason="the devices are pretended: they never wait")
@runs
def test_no_step_but_the_first_waits(name, options):
    params = made("cuda")
    optimizer = getattr(ct, name)(params, lr=torch.tensor(0.1, device="cuda"), capturable=True, **options)
    run(optimizer, 0, 1)
    set_grads(params, 1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- saving and loading ---------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("before", [False, True])
@runs
def test_a_run_goes_on_from_a_checkpoint(name, options, before, after, device):
    """From a capturable optimizer to a plain one and back, with the bits of a run that was not interrupted."""
    params = made(device)
    whole = getattr(ct, name)(params, lr=0.1, capturable=True, **options)
    run(whole, 0, 5)
    parts = made(device)
    first = getattr(ct, name)(parts, lr=0.1, capturable=before, **options)
    run(first, 0, 3)
    second = getattr(ct, name)(parts, lr=0.5, capturable=after, **options)
    second.load_state_dict(saved(first))
    assert bool(second.param_groups[0].get("capturable")) is after
    assert {v["step"].device for v in second.state.values() if "step" in v} <= {
        parts[0].device if after else torch.device("cpu")
    }
    run(second, 3, 5)
    assert (host(params), held(whole, params)) == (host(parts), held(second, parts))


@everywhere
def test_switches_between_steps(device):
    """Groups whose flag is changed go on; counts move to the device and back."""
    params, others = made(device), made(device)
    plain, own = ct.AdamW(params, lr=0.1), ct.AdamW(others, lr=0.1, capturable=True)
    run(plain, 0, 2)
    run(own, 0, 2)
    plain.param_groups[0]["capturable"], own.param_groups[0]["capturable"] = True, False
    run(plain, 2, 4)
    run(own, 2, 4)
    assert host(params) == host(others)
    assert held(plain, params) == held(own, others)
    assert {s["step"].device.type for s in own.state.values()} == {"cpu"}
    assert {s["step"].device for s in plain.state.values()} == {params[0].device}


def test_deep_copies_go_on():
    params = made("cpu")
    own = ct.AdamW(params, lr=0.1, capturable=True)
    run(own, 0, 2)
    copied = copy.deepcopy(own)
    run(own, 2, 4)
    others = run(copied, 2, 4)
    assert (host(params), held(own, params)) == (host(others), held(copied, others))
    assert copied.param_groups[0]["capturable"] is True


@everywhere
@pytest.mark.parametrize("capturable", [False, True])
def test_to_torch_and_back(capturable, device):
    """An optimizer of torch.optim takes the state dict, whose counts are tensors of their own, and gives it back."""
    params = made(device, shapes=[(7,), (3, 50)])
    ours = ct.AdamW(params, lr=0.1, capturable=capturable)
    run(ours, 0, 3)
    theirs = torch.optim.AdamW(params, lr=0.1, foreach=False)
    state = saved(ours)
    assert all(s["step"].untyped_storage().nbytes() == 4 for s in state["state"].values())
    theirs.load_state_dict(state)
    assert theirs.param_groups[0]["capturable"] is capturable
    theirs.param_groups[0]["capturable"] = device != "cpu" and torch.version.cuda is not None and capturable
    run(theirs, 3, 4)
    back = ct.AdamW(params, lr=0.1, capturable=True)
    state = theirs.state_dict()
    for s in state["state"].values():
        s["step"] = s["step"].to(device)  # as torch's capturable optimizer has it
    back.load_state_dict(state)
    assert {(float(s["step"]), s["step"].dtype, s["step"].device) for s in back.state.values()} == {
        (4.0, torch.float32, params[0].device)
    }
    for p in params:
        assert torch.equal(back.state[p]["exp_avg"], theirs.state[p]["exp_avg"])
    run(back, 4, 5)
    assert {float(s["step"]) for s in back.state.values()} == {5.0}


def test_sgd_takes_and_gives_torchs_groups():
    """The key is not torch's, so that it is in a group only where it is True."""
    params = made("cpu")
    assert ct.SGD(params).param_groups[0].keys() <= torch.optim.SGD(params).param_groups[0].keys()
    own = ct.SGD(params, lr=0.5, momentum=0.9, capturable=True)
    own.load_state_dict(torch.optim.SGD(params, momentum=0.9).state_dict())
    assert own.param_groups[0]["capturable"] is True
    plain = ct.SGD(params, momentum=0.9)
    plain.load_state_dict(own.state_dict())
    assert "capturable" not in plain.param_groups[0]
    run(own, 0, 2)
    theirs = torch.optim.SGD(params, lr=0.5, momentum=0.9)
    theirs.load_state_dict(own.state_dict())
    run(theirs, 2, 3)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_grad_norm": 1.0}, r"capturable.*max_grad_norm=1.0.*clip_grad_norm_"),
        ({"skip_nonfinite": True}, r"capturable.*skip_nonfinite=True.*capturable=False"),
        ({"state_bits": 8}, r"capturable.*state_bits=8.*leave them out"),
        ({"state_bits": 16}, r"capturable.*state_bits=16"),
        ({"ema": 0.9, "zero_grad": True}, r"capturable.*ema=0.9, zero_grad=True"),
        ({"rounding": "kahan"}, r"capturable.*rounding='kahan'"),
        ({"master": "split16"}, r"capturable.*master='split16'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_options_that_no_graph_holds(name, options, match):
    more = {"momentum": 0.9} if name == "SGD" else {}
    with pytest.raises(ValueError, match=rf"curvk\.torch\.{name}, parameter group 0.*{match}"):
        getattr(ct, name)([nn.Parameter(torch.zeros(64, dtype=torch.bfloat16))], capturable=True, **more, **options)


def test_rounding_that_is_none_is_taken():
    """Options that change nothing for a dtype need no other kernel."""
    params, others = made("cpu"), made("cpu")
    run(ct.AdamW(params, lr=0.1, rounding="stochastic", capturable=True), 0, 3)
    run(ct.AdamW(others, lr=0.1, rounding="stochastic"), 0, 3)
    assert host(params) == host(others)


def test_adamz_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match=r"AdamZ.*capturable=True.*CUDA graph.*torch\.optim\.Adam"):
        ct.AdamZ([nn.Parameter(torch.zeros(2))], capturable=True)


@everywhere
@pytest.mark.parametrize("attribute", ["found_inf", "grad_scale"])
def test_grad_scaler_is_refused(attribute, device):
    params = made(device)
    optimizer = ct.AdamW(params, capturable=True)
    set_grads(params, 0)
    before = host(params)
    setattr(optimizer, attribute, torch.tensor(1.0, device=device))
    with pytest.raises(ValueError, match=rf"capturable=True with {attribute}.*GradScaler"):
        optimizer.step()
    assert host(params) == before


def test_devices_and_numbers_that_are_refused():
    with pytest.raises(ValueError, match=r"'betas'.*tensor on a device.*\.item"):
        ct.Adam(made("cpu"), betas=(0.9, torch.tensor(0.9, device="meta")), capturable=True)
    params = made("cpu")
    optimizer = ct.Adam(params, capturable=True)
    set_grads(params, 0)
    before = host(params)
    for lr, match in ((-1.0, "'lr'"), (torch.tensor(0.1, device="meta"), r"'lr'.*on meta.*needs.*cpu")):
        optimizer.param_groups[0]["lr"] = lr
        with pytest.raises(ValueError, match=match):
            optimizer.step()
    optimizer.param_groups[0]["lr"] = torch.ones(2, device="meta")
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        optimizer.step()
    assert host(params) == before
    assert not any(optimizer.state.values())


@pytest.mark.gpu
@pytest.mark.skipif(bool(MISSING), reason=MISSING or "none")
def test_one_device_to_a_group():
    params = [*made("cpu", shapes=[(3,)]), *made("cuda", shapes=[(3,)])]
    optimizer = ct.AdamW(params, capturable=True)
    set_grads(params, 0)
    with pytest.raises(
        ValueError, match=r"group 0: got capturable=True with parameters on cpu and cuda:0.*a group for"
    ):
        optimizer.step()
    assert not any(optimizer.state.values())


@everywhere
def test_counts_of_a_group_are_one(device):
    """A parameter that joins later, or stays out for a step, would need a count of its own."""
    params = made(device, shapes=[(3,), (4,)])
    optimizer = ct.AdamW(params, capturable=True)
    set_grads(params[1:], 0)
    optimizer.step()
    optimizer.step()
    set_grads(params, 1)
    before = host(params)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 has 'step' 0, needs 2.*group of its own"):
        optimizer.step()
    assert host(params) == before
    plain = ct.AdamW(params)
    plain.load_state_dict(optimizer.state_dict())
    plain.step()
    with pytest.raises(ValueError, match=r"loaded state of parameter 1 of group 0 has 'step' 3, needs 1.*its own"):
        optimizer.load_state_dict(plain.state_dict())
    params[0].grad = None
    optimizer.step()
    assert float(optimizer.state[params[1]]["step"]) == 3


# ---- without a device -----------------------------------------------------------------------------------------------


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
