"""curvk.torch.Alice with state_bits=8: the NumPy class's bits, resuming, what a group may say, what is refused."""

from __future__ import annotations

import copy
import io
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import curvk
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from curvk.kernels import noise  # noqa: E402
from curvk.kernels.sweep import Codes, dequantize  # noqa: E402
from curvk.torch import Alice  # noqa: E402
from torch import nn  # noqa: E402

AVERAGES = ("exp_avg", "glass", "hessian", "exp_avg_sq")
CODED = [*AVERAGES, *(f"{k}_scale" for k in AVERAGES)]


def make_model(seed: int = 0, dtype: Any = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 37), nn.ReLU(), nn.Linear(37, 3)).to(dtype)
    model[2].weight = nn.Parameter(model[2].weight.detach().t().contiguous().t())  # other strides
    return model


def closure_of(model: nn.Module, optimizer: Any) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(32, n, generator=generator).to(model[0].weight.dtype) for n in (5, 3))

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    return closure


def steps(model: nn.Module, optimizer: Any, n: int, **options: Any) -> list[float]:
    closure = closure_of(model, optimizer)
    return [optimizer.step(closure, **options).item() for _ in range(n)]


def contents(model: nn.Module, optimizer: Any) -> list[bytes]:
    tensors = [*model.parameters()]
    tensors += [s[k] for p in model.parameters() for s in [optimizer.state.get(p, {})] for k in sorted(s)]
    plain = repr((optimizer.t, optimizer.seed, optimizer.quick_steps, optimizer.compat))
    return [t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors] + [plain.encode()]


def array_of(t: Any) -> Any:
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


@pytest.mark.parametrize("hess", ["debiased", "rms", "zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_same_bits_as_the_numpy_class(dtype: Any, hess: str) -> None:
    """Without names the words are those of positions."""
    generator = np.random.default_rng(3)
    start = [generator.standard_normal(shape).astype(np.float32) for shape in ((40, 3), (), (1500,), (0,))]
    tensors = [nn.Parameter(torch.from_numpy(a).to(dtype)) for a in start]
    arrays = [array_of(t.detach()).copy() for t in tensors]
    options: dict[str, Any] = {"lr": 0.05, "sigma": 0.125, "seed": 2**64 - 9, "hess": hess, "state_bits": 8}
    alice, optimizer = curvk.optim.Alice(arrays, **options), Alice(tensors, **options)

    def gradient(x: Any) -> Any:
        return torch.cos(3 * x.detach().float()).to(dtype)

    def closure() -> Any:
        optimizer.zero_grad()
        for p in tensors:
            p.grad = gradient(p)
        return torch.tensor(0.0)

    def as_tensor(a: Any) -> Any:
        return torch.from_numpy(a).view(torch.bfloat16) if dtype == torch.bfloat16 else torch.from_numpy(a)

    def grad() -> list[Any]:
        return [array_of(gradient(as_tensor(a))) for a in arrays]

    for _ in range(14):
        optimizer.step(closure)
        alice.step(grad)
    for p, a, entry in zip(tensors, arrays, alice.state, strict=True):
        assert array_of(p.detach()).tobytes() == a.tobytes()
        for key, value in entry.items():
            if key != "step":
                assert optimizer.state[p][key].numpy().tobytes() == value.tobytes(), key
                assert optimizer.state[p][key].numpy().dtype == value.dtype
    found, other = optimizer.diagnose(), alice.diagnose()
    assert found["frac_inside"] == other["frac_inside"]
    assert found["predicted"] == other["predicted"]


def test_names_key_the_rounding() -> None:
    """The codes of a first moment are those that the name's noise gives."""
    n, seed = 640, 11
    p = nn.Parameter(torch.linspace(-1, 1, n))
    optimizer = Alice([("layer.weight", p)], lr=0.1, seed=seed, state_bits=8)
    g = torch.linspace(-1, 1, n).sin() + 0.3

    def closure() -> None:
        p.grad = g.clone()

    optimizer.step(closure)
    word = noise.tensor_word("layer.weight", "rounding")
    r = noise.philox4x32([(j, 0, word, 1) for j in range(n // 32)], (seed, 0)).astype(np.uint64)[:, 0]
    dither = ((r[:, None] + np.arange(32, dtype=np.uint64) * np.uint64(0x9E3779B9)) % 2**32 >> np.uint64(23)) / 512
    x = g.numpy().reshape(-1, 32).astype(np.float64)
    y = abs(x) / abs(x).max(axis=1, keepdims=True)
    fraction, e = np.frexp(y)
    half = (e - 1 + 2 * fraction - 1) / 2  # the root, linear between powers of two: half of a float's bits
    position = np.sign(x) * 127 * np.ldexp(1 + half - np.floor(half), np.floor(half).astype(int))
    want = np.floor(position + dither)
    got = optimizer.state[p]["exp_avg"].numpy().view(np.int8).reshape(-1, 32)
    assert abs(got - want).max() <= 1
    assert (got == want).mean() > 0.98


@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resume_equals_no_interruption(how: str, dtype: Any) -> None:
    options: dict[str, Any] = {"lr": 0.02, "sigma": 0.1, "seed": 5, "state_bits": 8}
    whole, halved = make_model(dtype=dtype), make_model(dtype=dtype)
    optimizer, first = Alice(whole.named_parameters(), **options), Alice(halved.named_parameters(), **options)
    steps(whole, optimizer, 19)
    steps(halved, first, 11)
    if how in ("state_dict", "file"):
        state = first.state_dict()
        if how == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        second = Alice(halved.named_parameters(), **(options | {"lr": 1.0, "seed": 0, "hess": "abs"}))
        second.load_state_dict(copy.deepcopy(state))
        assert contents(halved, second) == contents(halved, first)
    else:
        halved, second = (
            pickle.loads(pickle.dumps((halved, first))) if how == "pickle" else copy.deepcopy((halved, first))
        )
    steps(halved, second, 8)
    assert contents(halved, second) == contents(whole, optimizer)


def test_memory_and_groups_of_their_own() -> None:
    model = make_model()
    small, large = [model[0].weight, model[0].bias], [model[2].weight, model[2].bias]
    optimizer = Alice([{"params": small, "state_bits": 8}, {"params": large}], lr=0.02)
    assert "state_bits" not in optimizer.param_groups[1]
    losses = steps(model, optimizer, 60, measure=True)
    assert losses[-1] < losses[0]
    assert optimizer.diagnose()["realised"] < 0
    assert optimizer.state[small[0]]["glass"].dtype == torch.uint8
    assert optimizer.state[large[0]]["glass"].dtype == torch.float32
    held = optimizer.memory()["bytes"]
    coded, plain = sum(p.numel() for p in small), sum(p.numel() for p in large)
    assert held["exp_avg"] == coded + 4 * plain
    assert held["exp_avg_scale"] == 4 * sum(-(-p.numel() // 32) for p in small)
    assert held["center"] == 4 * (coded + plain)


def test_states_are_those_of_32_bits_within_their_noise() -> None:
    """After a step, each average decodes to the float32 one within two codes."""
    a, b = make_model(), make_model()
    wide, narrow = Alice(a.parameters(), lr=0.02), Alice(b.parameters(), lr=0.02, state_bits=8)
    steps(a, wide, 1)
    steps(b, narrow, 1)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        for key in AVERAGES:
            x, s = wide.state[p][key].numpy(), narrow.state[q]
            signed = key in ("exp_avg", "hessian")
            y = dequantize(Codes(s[key].numpy(), s[f"{key}_scale"].numpy()), signed=signed)
            top = np.repeat(s[f"{key}_scale"].numpy(), 32)[: x.size].reshape(x.shape) if x.size > 1 else abs(x)
            flat_x, flat_y, flat_top = (np.ascontiguousarray(v).ravel() for v in (x, y, top))
            assert (abs(flat_x - flat_y) <= (2 * 2 / 127 if signed else 2 * 4 / 255) * flat_top + 1e-30).all()


def test_what_is_refused() -> None:
    model = make_model()
    for options, text in (
        ({"state_bits": 16}, "state_bits': got 16, needs 32 or 8; Alice has no others"),
        ({"state_bits": "8"}, "state_bits': got '8'"),
        ({"state_bits": 8, "state_format": "bitsandbytes"}, "needs 'curvk'; Alice has no others"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            Alice(model.parameters(), **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=re.escape(text)):
            Alice([{"params": list(model.parameters()), **options}])
    with pytest.raises(ValueError, match="got 8, needs 32 for float64 parameters"):
        Alice(make_model(dtype=torch.float64).parameters(), state_bits=8)
    with pytest.raises(TypeError, match="rounding"):
        Alice(model.parameters(), rounding="stochastic")  # type: ignore[call-arg]
    optimizer = Alice(model.parameters(), lr=0.02, state_bits=8)
    steps(model, optimizer, 2)
    for key, value, text in (
        ("hess", "abs", "hess': got 'abs', needs 'debiased', as its 8-bit states are held"),
        ("state_bits", 32, "torch.uint8, needs torch.float32"),
        ("state_bits", 16, "needs 32 or 8"),
    ):
        before, kept = contents(model, optimizer), optimizer.param_groups[0][key]
        optimizer.param_groups[0][key] = value
        with pytest.raises(ValueError, match=re.escape(text)):
            steps(model, optimizer, 1)
        assert contents(model, optimizer) == before
        optimizer.param_groups[0][key] = kept
    steps(model, optimizer, 1)


def test_loading_checks_the_format() -> None:
    a, b = make_model(), make_model()
    wide, narrow = Alice(a.parameters(), lr=0.02), Alice(b.parameters(), lr=0.02, state_bits=8)
    steps(a, wide, 12)
    steps(b, narrow, 12)
    for model, optimizer, state in ((a, wide, narrow.state_dict()), (b, narrow, wide.state_dict())):
        before = contents(model, optimizer)
        with pytest.raises(ValueError, match=r"state_bits|torch\.uint8"):
            optimizer.load_state_dict(state)
        assert contents(model, optimizer) == before
    good = narrow.state_dict()
    before = contents(b, narrow)
    for key in CODED:
        if key in ("exp_avg", "exp_avg_sq") or key.endswith("_scale"):
            states = {**good["state"], 0: {k: v for k, v in good["state"][0].items() if k != key}}
            with pytest.raises(ValueError, match=f"has no .*{key}"):
                narrow.load_state_dict(good | {"state": states})
        states = {**good["state"], 0: good["state"][0] | {key: torch.zeros(2)}}
        with pytest.raises(ValueError, match=f"has '{key}' of"):
            narrow.load_state_dict(good | {"state": states})
    assert contents(b, narrow) == before
    steps(b, narrow, 1)


def test_gradients_are_let_go() -> None:
    model = make_model()
    optimizer = Alice(model.parameters(), lr=0.02, state_bits=8)
    inner, alive = closure_of(model, optimizer), []

    def closure() -> Any:
        loss = inner()
        alive.extend(weakref.ref(p.grad) for p in model.parameters())
        return loss

    for n in (3, 3):
        alive.clear()
        optimizer.step(closure)
        assert len(alive) == 4 * n
        optimizer.zero_grad()
        assert not any(ref() is not None for ref in alive)


def test_a_closure_that_raises_leaves_everything() -> None:
    model, twin = make_model(), make_model()
    optimizer, other = (Alice(m.parameters(), lr=0.02, state_bits=8) for m in (model, twin))
    steps(model, optimizer, 11)
    steps(twin, other, 12)
    before, inner, calls = contents(model, optimizer), closure_of(model, optimizer), []

    def closure() -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inner()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert contents(model, optimizer) == before
    steps(model, optimizer, 1)
    assert contents(model, optimizer) == contents(twin, other)
