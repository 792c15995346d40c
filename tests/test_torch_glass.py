"""curvk.torch.GlassProbe and hessian_diagonal: what they measure, and that the module does not notice."""

from __future__ import annotations

import os
import signal
import threading

import pytest

torch = pytest.importorskip("torch")

import curvk.curvature as cc  # noqa: E402
import curvk.torch as ct  # noqa: E402
import numpy as np  # noqa: E402
from curvk.kernels import noise  # noqa: E402
from torch import nn  # noqa: E402

SEED = 4711


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(SEED)
    print(f"seed {SEED}")  # shown where a test fails


def net(activation=nn.ReLU, dtype=torch.float64, seed=SEED):
    """The 10-32-32-5 perceptron of the table, and its data."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 5)).to(dtype)
    x, y = torch.randn(2048, 10, dtype=dtype), torch.randint(5, (2048,))
    return model, x, y


def loss_of(model, x, y):
    return lambda: nn.functional.cross_entropy(model(x), y)


def state(model):
    return {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}


def assert_same_state(model, before):
    after = state(model)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert value.numpy().tobytes() == after[key].numpy().tobytes(), key


# ---- what it measures -----------------------------------------------------------------------------------------------


def test_exponents_by_layer():
    """Hidden ReLU layers are glass with exponent 1; the linear head and all of a tanh network are smooth: 4."""
    distances = [1e-3, 2e-3, 4e-3, 8e-3]
    model, x, y = net()
    layers = ct.GlassProbe(model, loss_of(model, x, y), sigma=2e-3).run(24, distances).layers
    assert list(layers) == ["0", "2", "4"]
    for name in ("0", "2"):
        exponent = layers[name].glass_exponent
        assert abs(exponent.value - 1) < 0.15, layers[name]
        assert exponent.low < exponent.value < exponent.high < exponent.low + 0.2
        assert 1 < layers[name].variation_exponent.value < 1.6
    assert layers["4"].glass_exponent.value > 3, layers["4"]
    assert abs(layers["4"].variation_exponent.value - 2) < 0.05
    model, x, y = net(nn.Tanh)
    for layer in ct.GlassProbe(model, loss_of(model, x, y), sigma=2e-3).run(8, distances).layers.values():
        assert abs(layer.glass_exponent.value - 4) < 0.05, layer
        assert abs(layer.variation_exponent.value - 2) < 0.05, layer
        assert not layer.at_floor


def test_published_curvature_counts_glass():
    """h2_reference - h2 is rho / (2 sigma), at each distance; without glass both are the same."""
    model, x, y = net()
    result = ct.GlassProbe(model, loss_of(model, x, y), sigma=5e-4).run(24, [2e-3])
    for name in ("0", "2"):
        for r in result.layers[name].readings:
            np.testing.assert_allclose(r.h2_reference - r.h2, r.rho / (2 * r.distance), rtol=1e-9)
        assert result.layers[name].h2_reference > 1.5 * result.layers[name].h2
    head = result.layers["4"]
    np.testing.assert_allclose(head.h2, head.h2_reference, rtol=0.02)


def test_row_norms_are_those_of_the_hessian():
    """On a smooth net h2 and the diagonal agree with the Hessian by double backward, all of it."""
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(64, 3).double(), torch.randn(64, 2).double()
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat):
        parts = torch.split(flat, [s.numel() for s in shapes])
        values = {n: v.reshape(s) for n, v, s in zip(names, parts, shapes, strict=True)}
        return (torch.func.functional_call(model, values, (x,)) - y).square().mean()

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    rows = hessian.square().sum(1)

    def closure():
        return (model(x) - y).square().mean()

    n = 2000
    result = ct.GlassProbe(model, closure, sigma=1e-4).run(n)
    h2, se = (torch.cat([v.flatten() for v in part.values()]) for part in (result.h2, result.h2_se))
    assert ((h2 - rows).abs() <= 5 * se + 1e-6 * rows).all()
    grad = torch.cat([g.flatten() for g in torch.autograd.grad(closure(), list(model.parameters()))])
    torch.testing.assert_close(torch.cat([g.flatten() for g in result.grad.values()]), grad, rtol=1e-12, atol=1e-15)
    estimates = {}
    for method, options in (("gradients", {"sigma": 1e-4}), ("double_backward", {})):
        found = ct.hessian_diagonal(model, closure, samples=n, seed=2, method=method, **options)
        mean, se = (torch.cat([v.flatten() for v in part.values()]) for part in found)
        assert ((mean - hessian.diag()).abs() <= 5 * se + 1e-9).all()
        others = rows - hessian.diag() ** 2
        torch.testing.assert_close(se**2 * n, others, rtol=0.2, atol=1e-12)
        estimates[method] = mean
    # The same signs: what differs is a third derivative times sigma^2.
    torch.testing.assert_close(*estimates.values(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numpy_probe_gives_the_same_bits(dtype):
    """Given the same gradients, names and seed."""
    model, x, y = net(dtype=dtype)
    x, y = x[:100], y[:100]
    torch_result = ct.GlassProbe(model, loss_of(model, x, y), sigma=1e-3, seed=8).run(4, [2e-3])

    def grad(arrays):
        values = {k: torch.from_numpy(v.copy()).requires_grad_() for k, v in arrays.items()}
        loss = nn.functional.cross_entropy(torch.func.functional_call(model, values, (x,)), y)
        return {k: g.numpy() for k, g in zip(values, torch.autograd.grad(loss, values.values()), strict=True)}

    x0 = {k: p.detach().numpy() for k, p in model.named_parameters()}
    layers = {k: [f"{k}.weight", f"{k}.bias"] for k in ("0", "2", "4")}
    numpy_result = cc.GlassProbe(grad, x0, sigma=1e-3, seed=8, layers=layers).run(4, [2e-3])
    for key in ("rho", "rho_se", "h2", "h2_se", "grad"):
        for name, value in getattr(numpy_result, key).items():
            assert torch.equal(getattr(torch_result, key)[name], torch.from_numpy(value)), (key, name)
    assert repr(torch_result.table()) == repr(numpy_result.table())
    assert torch_result.predicted_decrease(largest=1.0) == numpy_result.predicted_decrease(largest=1.0)
    step = torch_result.step(largest=1.0)
    assert {k: v.shape for k, v in step.items()} == {k: p.shape for k, p in model.named_parameters()}


def test_layers():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "b": nn.Linear(2, 1)})
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    model["b"].bias.requires_grad_(False)

    def closure():
        return (model.scale * model["b"](model["a"](torch.ones(1, 2)))).square().sum()

    def layers(given=None):
        return ct.GlassProbe(model, closure, sigma=1e-3, layers=given).layers

    own = {"(root)": ("scale",), "a.0": ("a.0.weight", "a.0.bias"), "a.1": ("a.1.weight", "a.1.bias")}
    assert layers() == {**own, "b": ("b.weight",)}
    assert layers(["a"]) == {"a": own["a.0"] + own["a.1"], "(root)": ("scale",), "b": ("b.weight",)}
    assert layers(model["a"][1]) == layers("a.1") == layers([model["a"][1]])
    result = ct.GlassProbe(model, closure, sigma=1e-3, layers="a").run(2)
    assert [(k, v.size) for k, v in result.layers.items()] == [("a", 17), ("(root)", 1), ("b", 2)]
    for given, error, text in (
        (["c"], ValueError, "argument 'layers': got 'c', needs modules inside the model: 'a.0', 'a.1', 'b'"),
        ([nn.Linear(1, 1)], ValueError, "got a Linear outside of it"),
        ([3], TypeError, "argument 'layers': got int"),
        (["a", "a.0"], ValueError, "'a.0' and 'a' around it, needs modules side by side"),
        (["a", "a"], ValueError, "side by side, each once"),
        ([""], ValueError, "argument 'layers': got ''"),
    ):
        with pytest.raises(error, match=f"^GlassProbe: .*{text}"):
            layers(given)


def test_batches():
    """One for each sample; the mean gradient is over them, and intervals see them."""
    model, x, y = net()
    parts = list(zip(x.split(256), y.split(256), strict=True))
    seen = []

    def closure(batch):
        seen.append(batch[1][0].item())
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    probe = ct.GlassProbe(model, closure, sigma=1e-3)
    result = probe.run(8, batches=iter(parts))
    firsts = [p[1][0].item() for p in parts]
    assert seen == [f for k, f in enumerate(firsts) for _ in range(5 if k < 2 else 3)]
    whole = torch.autograd.grad(loss_of(model, x, y)(), list(model.parameters()))
    torch.testing.assert_close(list(result.grad.values()), list(whole), rtol=1e-10, atol=1e-14)
    before = state(model)
    with pytest.raises(ValueError, match="run: argument 'batches': got 8 batches, needs 9, one for each sample"):
        probe.run(9, batches=parts)
    assert_same_state(model, before)


# ---- the module does not notice -------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Dropout, batch norm, tied, frozen, strided and unused parameters, an embedding with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = nn.Parameter(self.second.weight.detach().t().clone().t())  # transposed memory
        self.tied = nn.Linear(6, 8)
        self.tied.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.table = nn.Embedding(5, 6, sparse=True)
        self.image = nn.Parameter(torch.randn(2, 3, 2, 2).contiguous(memory_format=torch.channels_last))
        self.masks = []

    def forward(self, x):
        x = x + self.table(torch.tensor([0, 2])).sum(0)
        kept = self.drop(torch.ones(8))
        self.masks.append(kept)
        return (self.norm(self.second(self.first(x).relu() * self.frozen * kept)) + self.tied(x)) * self.image.sum()


def odd():
    torch.manual_seed(SEED)
    model, x = Odd(), torch.randn(32, 6)
    return model, x, lambda: model(x).square().mean()


def test_odd_modules():
    model, _, closure = odd()
    closure().backward()
    model.masks.clear()
    grads = {k: p.grad if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    before = state(model)
    result = ct.GlassProbe(model, closure, sigma=1e-2).run(4, [2e-2])
    assert_same_state(model, before)
    assert model.training
    for k, p in model.named_parameters():
        assert (p.grad is None) == (grads[k] is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad.to_dense(), grads[k].to_dense(), rtol=0, atol=0)
    assert list(result.rho) == [k for k, p in model.named_parameters() if p.requires_grad]
    assert not result.h2["unused"].any()
    assert result.h2["image"].shape == model.image.shape
    # Masks: one for each sample, the same at all its points, as many as there are gradients.
    assert len(model.masks) == 4 * 5 + 2 * 2
    counts = [7, 7, 5, 5]
    starts = np.cumsum([0, *counts])
    firsts = []
    for start, count in zip(starts, counts, strict=False):
        group = model.masks[start : start + count]
        assert all(torch.equal(m, group[0]) for m in group)
        firsts.append(group[0])
    assert not all(torch.equal(m, firsts[0]) for m in firsts)


def test_batch_norm_uses_the_batch():
    """The same h2 as of a net whose statistics are not tracked; running ones keep their bits, counters too."""
    results = []
    for track in (True, False):
        torch.manual_seed(SEED)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=track), nn.Tanh(), nn.Linear(6, 1))
        model.double()
        x = torch.randn(50, 4).double() * 3 + 1
        before = state(model)
        result = ct.GlassProbe(model, lambda m=model, x=x: m(x).square().mean(), sigma=1e-3).run(3)
        assert_same_state(model, before)
        results.append(torch.cat([v.flatten() for v in result.h2.values()]))
    assert torch.equal(*results)


def test_points_are_those_of_the_stream():
    model = nn.Linear(3, 2).double()
    seen = []

    def closure():
        seen.append(model.weight.detach().clone())
        return model(torch.ones(1, 3).double()).square().sum()

    theta = model.weight.detach().clone()
    ct.GlassProbe(model, closure, sigma=0.5, seed=6).run(3)
    word = noise.tensor_word("weight")
    scales = [(0, 0.0)]  # the gradient there is the same in all samples
    scales += [(d, s) for d in range(3) for s in (2.0**-9, -(2.0**-9), 0.5, -0.5) if d < 2 or abs(s) == 0.5]
    assert len(seen) == len(scales)
    for found, (draw, scale) in zip(seen, scales, strict=True):
        z = noise.fill(torch.empty(2, 3, dtype=torch.float64), seed=6, draw=draw, tensor=word, dist="rademacher")
        assert torch.equal(found, theta + scale * z)


class Stop(Exception):
    pass


@pytest.mark.parametrize("problem", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 3, 6, 7])
def test_exceptions_leave_the_module_as_it_was(problem, at):
    model, _, inner = odd()
    before, calls = state(model), []

    def closure():
        calls.append(1)
        if len(calls) == at:
            raise problem
        return inner()

    for run in (
        ct.GlassProbe(model, closure, sigma=1e-2).run,
        lambda: ct.hessian_diagonal(model, closure, sigma=1e-2),
    ):
        calls.clear()
        with pytest.raises(problem):
            run()
        assert_same_state(model, before)
        model(torch.randn(8, 6))  # a pass after it is tracked again
        assert model.norm.num_batches_tracked == before["norm.num_batches_tracked"] + 1
        model.norm.load_state_dict({k[5:]: v for k, v in before.items() if k.startswith("norm.")})


def test_ctrl_c_at_any_time(ctrl_c):
    """A real signal, sent at many times of a run."""
    model, _, closure = odd()
    before = state(model)
    probe = ct.GlassProbe(model, closure, sigma=1e-2)
    interrupted = 0
    for delay in np.linspace(0.001, 0.15, 25):
        timer = threading.Timer(float(delay), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            probe.run(3000)  # some seconds
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            timer.join()
        assert_same_state(model, before)
    assert interrupted > 20


def test_randomness_goes_on():
    """After a run torch's generator is where the last evaluation of its last sample left it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    x = torch.ones(2, 3)
    ct.GlassProbe(model, lambda: model(x).square().sum(), sigma=1e-2).run(2)
    after = torch.rand(3)
    torch.manual_seed(SEED)
    nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    for _ in range(2):
        torch.nn.functional.dropout(torch.ones(2, 4), 0.5)
    assert torch.equal(after, torch.rand(3))


# ---- bad input ------------------------------------------------------------------------------------------------------


def linear():
    return nn.Linear(3, 1)


def quadratic(model):
    return lambda: model(torch.ones(2, 3)).square().sum()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda m: {"model": [m]}, TypeError, "argument 'model': got list, needs a torch.nn.Module"),
        (lambda m: {"model": m.requires_grad_(False)}, ValueError, "argument 'model': got no trainable parameter"),
        (
            lambda m: {"model": m.bfloat16()},
            TypeError,
            r"'params\['weight'\]': got torch.bfloat16.*model.float",
        ),
        (lambda m: {"model": m.to("meta")}, BufferError, "weight.*device meta"),
        (lambda m: {"closure": 3}, TypeError, "argument 'closure': got int"),
        (lambda m: {"sigma": 0}, ValueError, "argument 'sigma': got 0"),
        (lambda m: {"sigma": 1e-12}, ValueError, "argument 'sigma'.*spacing of float32"),
        (lambda m: {"seed": 1 << 64}, ValueError, "argument 'seed'"),
    ],
)
def test_bad_settings(change, error, text):
    model = linear()
    arguments = {"model": model, "closure": quadratic(model), "sigma": 1e-2} | change(model)
    with pytest.raises(error, match=f"^GlassProbe: .*{text}"):
        ct.GlassProbe(arguments.pop("model"), arguments.pop("closure"), **arguments)


def backward(model):
    def closure():
        loss = quadratic(model)()
        loss.backward()
        return loss

    return closure


def writes(model):
    def closure():
        with torch.no_grad():
            model.weight.add_(1)
        return quadratic(model)()

    return closure


@pytest.mark.parametrize(
    ("closure", "error", "text"),
    [
        (lambda m: lambda: quadratic(m)().item(), TypeError, r"argument 'closure\(\)': got float.*without .item"),
        (lambda m: lambda: quadratic(m)().detach(), ValueError, "a tensor without a graph"),
        (lambda m: lambda: m(torch.ones(2, 3)), ValueError, r"shape \(2, 1\)"),
        (backward, ValueError, "a closure that calls backward"),
        (writes, ValueError, "a closure that writes to parameters"),
        (lambda m: quadratic(linear()), ValueError, "no trainable parameter of the model has a part in"),
        (
            lambda m: lambda: quadratic(m)() / 0,
            ValueError,
            r"gradient of 'weight' that is not finite, at displacement",
        ),
    ],
    ids=["float", "detached", "shape", "backward", "writes", "another model", "inf"],
)
def test_bad_closures(closure, error, text):
    model = linear()
    before = state(model)
    for run in (
        ct.GlassProbe(model, closure(model), sigma=1e-2).run,
        lambda: ct.hessian_diagonal(model, closure(model), sigma=1e-2),
    ):
        with pytest.raises(error, match=text):
            run()
        assert_same_state(model, before)


def test_bad_runs():
    model = linear()
    probe = ct.GlassProbe(model, quadratic(model), sigma=1e-2)
    with pytest.raises(ValueError, match="run: argument 'samples': got 1"):
        probe.run(1)
    with pytest.raises(ValueError, match="argument 'distances': got -1"):
        probe.run(distances=[-1])
    assert repr(probe) == "GlassProbe(Linear, sigma=0.01, seed=0, 1 layer(s), 4 parameters)"
    for options, text in (
        ({}, "argument 'sigma': got None"),
        ({"method": "double_backward", "sigma": 0.1}, "argument 'sigma': got 0.1, needs None"),
        ({"method": "forward"}, "argument 'method'"),
        ({"sigma": 0.1, "samples": 1}, "argument 'samples'"),
    ):
        with pytest.raises(ValueError, match=f"hessian_diagonal: {text}"):
            ct.hessian_diagonal(model, quadratic(model), **options)


def test_double_backward_of_a_linear_loss():
    model = linear()
    found = ct.hessian_diagonal(model, lambda: model(torch.ones(2, 3)).sum(), samples=2, method="double_backward")
    assert not any(v.any() for part in found for v in part.values())
