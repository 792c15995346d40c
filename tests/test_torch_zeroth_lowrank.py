"""curvk.torch.LOZO: low-rank probes in modules, materialised or added to a linear layer's output."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import curvk.zeroth as cz  # noqa: E402
import numpy as np  # noqa: E402
import torch.distributed as dist  # noqa: E402
from curvk.kernels import noise  # noqa: E402
from test_torch_zeroth_group import run, workers  # noqa: E402, F401
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from zeroth_models import GPT, Bert  # noqa: E402

SEED = 815
IDS = torch.arange(40).reshape(5, 8) * 7 % 31
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(SEED)
    print(f"seed {SEED}")  # shown where a test fails


class Pictures(nn.Module):
    """Convolution, norm, a linear layer without bias, one whose weight has rows of one pixel."""

    def __init__(self):
        super().__init__()
        self.filters, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.mix, self.head = nn.Linear(36, 6, bias=False), nn.Linear(6, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.norm(self.filters(x)).flatten(1))))


def gpt(dtype=torch.float32, **options):
    torch.manual_seed(SEED)
    return GPT(**options).to(dtype)


def language(model):
    """A closure: the loss of predicting the next token."""
    return lambda: nn.functional.cross_entropy(model(IDS[:, :-1]).float().flatten(0, 1), IDS[:, 1:].flatten())


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(16, 1)).eval()


def normed():
    """A weight computed from others, one with a forward of its own, one of a subclass: none is a plain linear layer."""

    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 6), Twice(6, 3), nn.Linear(3, 2))
    plain = model[1].forward
    model[1].forward = lambda x: plain(x).tanh()
    return model


def shared():
    """Two linear layers with one weight."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 1))
    model[2].weight = model[0].weight
    return model


def pair(build, inputs):
    """A model's float64 copy and its closure."""
    torch.manual_seed(SEED)
    model = build().double().eval()
    x = inputs.double() if inputs.is_floating_point() else inputs
    return model, lambda: model(x).double().square().mean()


MODELS = {
    "gpt": (GPT, IDS),
    "tied gpt": (lambda: GPT(tied=True), IDS),
    "bert": (Bert, IDS),
    "pictures": (Pictures, torch.linspace(-1, 1, 3 * 2 * 5 * 5).reshape(3, 2, 5, 5)),
    "encoder": (encoder, torch.linspace(-1, 1, 2 * 5 * 16).reshape(2, 5, 16)),
    "normed": (normed, torch.linspace(-1, 1, 12).reshape(3, 4)),
    "shared": (shared, torch.linspace(-1, 1, 12).reshape(2, 6)),
    "one": (lambda: nn.Linear(3, 2), torch.tensor([0.5, -1.0, 2.0])),
}


def trained(model, steps, closure=None, **options):
    optimizer = ct.LOZO(model, **{"lr": 1e-3, "seed": SEED, "interval": 4, **options})
    losses = [optimizer.step(closure or language(model)) for _ in range(steps)]
    return optimizer, losses


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def assert_same(a, b):
    a, b = (x if isinstance(x, dict) else weights(x) for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def factors(name, shape, draw, rank, period, dist="normal"):
    """U and V of a matrix as float64."""
    sizes = (shape[0], math.prod(shape[1:]))
    words = (noise.tensor_word(name), noise.tensor_word(name, "basis"))
    draws = (draw, draw // period)
    options = {"seed": SEED, "dist": dist}
    parts = zip(sizes, words, draws, strict=True)
    return [noise.fill(torch.empty(n, rank), draw=d, tensor=w, **options).double() for n, w, d in parts]


# ---- eager -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scratch_is_copy_bit_for_bit(dtype):
    models = [gpt(dtype), gpt(dtype)]
    runs = [trained(m, 6, restore=r, n_probes=2) for m, r in zip(models, ("scratch", "copy"), strict=True)]
    assert runs[0][1] == runs[1][1]
    assert_same(*models)
    assert not torch.equal(models[0].lm_head.weight, gpt(dtype).lm_head.weight)


@pytest.mark.parametrize("rank", [1, 2])
def test_numpy_engine_gives_the_same_bits(rank):
    """curvk.zeroth on the arrays by name, whose closure evaluates the same module with them."""
    model, twin = gpt(), gpt()
    options = {"lr": 1e-3, "rank": rank, "interval": 3, "n_probes": 2, "weight_decay": 0.1, "seed": SEED}
    optimizer = ct.LOZO(model, **options)
    losses = [optimizer.step(language(model)) for _ in range(5)]
    arrays = {n: p.detach().numpy().copy() for n, p in twin.named_parameters()}
    peer = cz.LOZO(arrays, **options)

    def closure(displaced):
        tensors = {n: torch.from_numpy(a) for n, a in displaced.items()}
        logits = torch.func.functional_call(twin, tensors, (IDS[:, :-1],))
        return nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()).item()

    with torch.no_grad():
        assert [peer.step(closure) for _ in range(5)] == losses
    assert_same(model, {n: torch.from_numpy(a) for n, a in arrays.items()})
    assert peer.log.crc == optimizer.log.crc


# ---- lazy against materialised weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 20.0])
@pytest.mark.parametrize("name", MODELS)
def test_lazy_is_eager_to_rounding(name, weight_decay):
    """Losses and weights in float64 over three periods; coefficients are float32, so they agree to 1e-6 of a step."""
    results = []
    for restore in ("scratch" if name not in ("normed", "shared", "tied gpt") else "copy", "lazy"):
        model, closure = pair(*MODELS[name])
        options = {"lr": 1e-3, "eps": 1e-2, "weight_decay": weight_decay, "n_probes": 2, "restore": restore}
        optimizer, losses = trained(model, 10, closure, **options)
        optimizer.fold_()
        results.append((losses, weights(model)))
    (eager, truth), (lazy, found) = results
    np.testing.assert_allclose(lazy, eager, rtol=1e-6)
    start = weights(pair(*MODELS[name])[0])
    for key, w in truth.items():
        moved = (w - start[key]).abs().max()
        assert moved > 0
        assert (found[key] - w).abs().max() <= 2e-6 * moved + 1e-14, key


@pytest.mark.parametrize("name", MODELS)
def test_one_probe_shows_the_formulas_weights(name):
    """The losses of a step against the module evaluated with weights made from U and V; the second step is pending."""
    (model, closure), (twin, _), seen = pair(*MODELS[name]), pair(*MODELS[name]), []
    optimizer = ct.LOZO(model, lr=1e-2, eps=0.05, rank=2, interval=5, seed=SEED, restore="lazy", weight_decay=10.0)
    for _ in range(3):
        optimizer.step(lambda: seen.append(closure().item()) or seen[-1])
    z = []
    for draw in range(3):
        z.append({})
        for n, p in twin.named_parameters():
            if p.ndim > 1:
                u, v = factors(n, p.shape, draw, 2, 5)
                z[-1][n] = (u @ v.T / 2**0.5).reshape(p.shape)
            else:
                options = {"seed": SEED, "draw": draw, "tensor": noise.tensor_word(n)}
                z[-1][n] = noise.fill(torch.empty(p.shape), **options).double()
    now, (_, inputs) = weights(twin), MODELS[name]
    x = inputs.double() if inputs.is_floating_point() else inputs
    expected = []
    with torch.no_grad():
        for draw in range(3):
            for sign in (1, -1):
                for n, p in twin.named_parameters():
                    p.copy_(now[n] + sign * float(np.float32(0.05)) * z[draw][n])
                expected.append(twin(x).square().mean().item())
            coef, decay = float(optimizer.log.coefs[draw, 0]), float(optimizer.log.decay[draw])
            for n in now:
                now[n] = (
                    now[n] * (1 - decay * all(part not in n.lower() for part in ("bias", "layer_norm", "layernorm")))
                    + coef * z[draw][n]
                )
    np.testing.assert_allclose(seen, expected, rtol=1e-7)
    optimizer.fold_()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), now[n], rtol=1e-6, atol=1e-7)


def test_weights_of_linear_layers_are_neither_displaced_nor_written():
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 32), nn.LayerNorm(32))
    x = torch.randn(4, 64)
    optimizer = ct.LOZO(model, lr=1e-3, interval=5, seed=SEED, restore="lazy")
    matrices = [model[0].weight, model[2].weight]
    before = [(p._version, p.data_ptr(), p.detach().clone()) for p in matrices]
    for _ in range(4):
        optimizer.step(lambda: model(x).square().mean())
        for p, (version, place, values) in zip(matrices, before, strict=True):
            assert (p._version, p.data_ptr()) == (version, place)
            assert torch.equal(p, values)
    assert optimizer._windows.nbytes <= 4 * 128 + 4 * 32 * 2 + 64  # the buffers hold a bias or a norm
    assert optimizer._method.scheme.nbytes < optimizer._windows.nbytes + 4 * 4 * (64 + 128 + 128 + 32)
    optimizer.step(lambda: model(x).square().mean())
    for p, (_, _, values) in zip(matrices, before, strict=True):
        assert not torch.equal(p, values)


def test_probes_too_small_for_bfloat16_weights_count():
    """Rows of as many 1 as -1, a distance of 1e-3: bfloat16 weights would not move, the factors' output does."""
    seen = {}
    for restore in ("scratch", "lazy"):
        model = nn.Linear(32, 16, bias=False).to(torch.bfloat16)
        model.weight.data = torch.tensor([1.0, -1.0]).repeat(16, 16).to(torch.bfloat16)
        x = torch.ones(1, 32, dtype=torch.bfloat16)
        c = torch.arange(1.0, 17.0)
        options = {"lr": 1e-3, "eps": 1e-3, "rank": 1, "seed": SEED, "restore": restore, "dist": "rademacher"}
        optimizer = ct.LOZO(model, **options)
        optimizer.step(lambda model=model, x=x, c=c: (model(x).float() * c).sum())
        seen[restore] = optimizer.log.coefs[0, 0]
    u, v = factors("weight", (16, 32), 0, 1, 50, "rademacher")
    g = float((c.double() @ u) @ v.sum(0))
    assert g != 0
    assert seen["scratch"] == 0
    assert seen["lazy"] == pytest.approx(-1e-3 * g, rel=2**-7)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (0, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_outputs_of_every_shape_and_dtype(shape, dtype, bias):
    model = nn.Linear(8, 5, bias=bias).to(dtype)
    x, outputs = torch.randn(shape).to(dtype), []
    optimizer = ct.LOZO(model, lr=0.0, eps=0.5, seed=SEED, restore="lazy")
    optimizer.step(lambda: outputs.append(model(x)) or 0.0)
    u, v = factors("weight", (5, 8), 0, 2, 50)
    b = torch.zeros(5)
    if bias:
        b = noise.fill(torch.empty(5), seed=SEED, tensor=noise.tensor_word("bias")).double()
    for sign, y in zip((0.5, -0.5), outputs, strict=True):
        w = model.weight.detach().double() + sign * u @ v.T / 2**0.5
        want = x.double() @ w.T + (model.bias.detach().double() + sign * b if bias else 0)
        assert y.dtype == dtype
        assert y.shape == want.shape
        unit = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-15
        torch.testing.assert_close(y.double(), want, rtol=2 * unit, atol=8 * unit)


def test_autocast_keeps_the_factors_in_float32():
    model, x = nn.Linear(16, 16), torch.randn(64, 16)
    outputs = []
    optimizer = ct.LOZO(model, lr=0.0, eps=1.0, rank=1, seed=SEED, restore="lazy")
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step(lambda: outputs.append(model(x)) or 0.0)
    u, v = factors("weight", (16, 16), 0, 1, 50)
    b = noise.fill(torch.empty(16), seed=SEED, tensor=noise.tensor_word("bias")).double()
    assert outputs[0].dtype == torch.bfloat16
    want = x.double() @ (u @ v.T).T + b
    torch.testing.assert_close(outputs[0].double(), want, rtol=1.01 * 2**-8, atol=1e-5)  # one rounding


def test_hooks_on_linear_layers_still_run():
    model, calls = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), []
    model[0].register_forward_pre_hook(lambda m, args: calls.append("before"))
    model[0].register_forward_hook(lambda m, args, y: calls.append("after") or 2 * y)
    truth = copy.deepcopy(model)
    x = torch.randn(3, 4)
    optimizer = ct.LOZO(model, lr=0.0, eps=1e-6, restore="lazy")
    assert optimizer.step(lambda: model(input=x).mean()) == pytest.approx(truth(x).mean().item(), abs=1e-4)
    assert calls[:4] == ["before", "after"] * 2


class Halved(nn.Module):
    def forward(self, w):
        return 0.5 * w


def patched(layer):
    plain = layer.forward
    layer.forward = lambda x: 3 * plain(x).tanh()


def pruned(layer, name):
    mask = torch.arange(getattr(layer, name).numel()).reshape(getattr(layer, name).shape) % 2
    prune.custom_from_mask(layer, name, mask)


def buffered(layer):
    bias = layer.bias.detach()
    del layer.bias
    layer.register_buffer("bias", bias)


CHANGES = {
    "a forward of its own": patched,
    "a parametrised weight": lambda layer: parametrize.register_parametrization(layer, "weight", Halved()),
    "a pruned weight": lambda layer: pruned(layer, "weight"),
    "a pruned bias": lambda layer: pruned(layer, "bias"),
    "a bias that is a buffer": buffered,
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_linear_layer_that_is_no_plain_one(change, late):
    """Changed before the optimizer is made, or after it; then its parameters must be the same ones."""
    if late and change == "a bias that is a buffer":
        change = "a pruned bias"  # the bias would be no parameter of the model
    x, results = torch.linspace(-1, 1, 24).reshape(6, 4).double(), []
    for restore in ("copy", "lazy"):
        torch.manual_seed(SEED)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        if not late:
            CHANGES[change](model[0])
        optimizer = ct.LOZO(model, lr=1e-3, eps=1e-2, seed=SEED, interval=3, restore=restore)
        if late:
            CHANGES[change](model[0])
        own = model[0].__dict__.get("forward")
        losses = [optimizer.step(lambda model=model: model(x).square().mean()) for _ in range(5)]
        assert model[0].__dict__.get("forward") is own
        results.append(losses)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
    assert results[0][0] != results[0][-1]


CALLS = {
    "other weights": lambda model, x: torch.func.functional_call(model, {"0.weight": torch.full_like(x, 0.3)}, x),
    "its own weights": lambda model, x: torch.func.functional_call(model, dict(model.named_parameters()), x),
    "nested tensor": lambda model, x: torch.cat(model(torch.nested.nested_tensor([x[:1], x[1:]])).unbind()),
    "sparse tensor": lambda model, x: model(x.relu().to_sparse()),
    "vmap": lambda model, x: torch.func.vmap(model)(x),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning", "ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("call", CALLS)
def test_ways_to_call_a_linear_layer(call):
    x, results = torch.linspace(-1, 1, 16).reshape(4, 4).double(), []
    for restore in ("copy", "lazy"):
        torch.manual_seed(SEED)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double()
        closure = lambda model=model: CALLS[call](model, x).square().mean()  # noqa: E731
        results.append(trained(model, 3, closure, eps=1e-2, restore=restore)[1])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


def test_closures_that_differentiate():
    """A slope with respect to inputs: backward reads weights after their forward, where a buffer has others."""
    x = torch.linspace(-1, 1, 12).reshape(3, 4).double()

    def slope(model):
        with torch.enable_grad():
            inputs = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(model(inputs).sum(), inputs)
        return grad.square().mean()

    results = {}
    for restore in ("copy", "lazy", "scratch"):
        torch.manual_seed(SEED)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        before, options = weights(model), {"eps": 1e-2, "restore": restore}
        if restore == "scratch":
            with pytest.raises(ValueError, match=r"'0' \(Linear\) was called with gradients enabled.*restore='copy'$"):
                trained(model, 1, lambda model=model: slope(model), **options)
            assert_same(model, before)
        else:
            results[restore] = trained(model, 5, lambda model=model: slope(model), **options)[1]
    np.testing.assert_allclose(results["lazy"], results["copy"], rtol=1e-6)


# ---- the run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", ["scratch", "lazy"])
@pytest.mark.parametrize("folds", [(), (3, 6)])
def test_state_dict_and_replay_are_exact(restore, folds, tmp_path):
    def train(optimizer, until):
        losses = []
        while len(optimizer.log) < until:
            losses.append(optimizer.step(language(optimizer.model)))
            if len(optimizer.log) in folds:
                optimizer.fold_()
        return losses

    options = {"lr": 1e-2, "seed": SEED, "interval": 4, "n_probes": 2, "weight_decay": 0.5, "restore": restore}
    whole = ct.LOZO(gpt(tied=True), **options)
    reference = train(whole, 11)
    for stop in (3, 4, 6):
        optimizer = ct.LOZO(gpt(tied=True), **options)
        losses = train(optimizer, stop)
        file = io.BytesIO()
        torch.save({"model": optimizer.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed = ct.LOZO(GPT(tied=True), **options | {"lr": 0.5})
        resumed.load_state_dict(saved["optimizer"])
        resumed.model.load_state_dict(saved["model"])
        optimizer.log.save(tmp_path / "part")
        logged = ct.LOZO(gpt(tied=True), **options)  # from the first weights
        logged.load_log(tmp_path / "part")
        assert_same(logged.model, optimizer.model)
        deep = copy.deepcopy(optimizer)
        thawed = pickle.loads(pickle.dumps(optimizer))
        for other in (resumed, logged, deep, thawed):
            assert losses + train(other, 11) == reference
            assert_same(other.model, whole.model)
            assert other.log.crc == whole.log.crc
    assert whole.log.folds == (list(folds) if restore == "lazy" else [])
    whole.log.save(tmp_path / "run")
    log = ct.ZOLog.load(tmp_path / "run")
    log.replay(twin := gpt(tied=True))
    assert_same(twin, whole.model)
    log.replay(twin := gpt(tied=True), fold=True)
    arrays = {n: p.detach().numpy().copy() for n, p in gpt(tied=True).named_parameters()}
    log.replay(arrays, fold=True)  # without torch
    whole.fold_()
    assert_same(twin, whole.model)
    assert_same({n: torch.from_numpy(a) for n, a in arrays.items()}, whole.model)
    peer = ct.LOZO(gpt(tied=True), **options)
    train(peer, 6)
    log.replay(half := gpt(tied=True), upto=6)
    assert_same(half, peer.model)


def test_lazy_training_learns_and_folded_weights_are_what_was_trained():
    """The next number of a count to 8; log(8) = 2.08 is chance."""
    model = gpt(d=8, n=1, vocab=8)
    ids = torch.arange(32).reshape(4, 8) % 8
    closure = lambda: nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())  # noqa: E731
    options = {"lr": 2e-2, "n_probes": 4, "dist": "rademacher", "interval": 7, "restore": "lazy"}
    optimizer, losses = trained(model, 150, closure, **options)
    assert losses[0] > 2
    assert np.mean(losses[-10:]) < 0.9, losses[::20]
    with torch.no_grad():
        lagging = closure().item()
        optimizer.fold_()
        assert closure().item() == pytest.approx(np.mean(losses[-3:]), abs=0.05)
    assert lagging != closure().item()


def test_fold_counts_as_the_optimizers_own_write_and_other_writes_do_not():
    optimizer, _ = trained(gpt(), 2, restore="lazy")
    optimizer.fold_()
    optimizer.fold_()
    optimizer.step(language(optimizer.model))
    assert optimizer.log.folds == [2]
    with torch.no_grad():
        optimizer.model.lm_head.weight.add_(1)
    for call in (optimizer.fold_, lambda: optimizer.step(language(optimizer.model))):
        with pytest.raises(ValueError, match=r"lm_head.*restart"):
            call()


def test_restart_folds_what_is_pending_into_weights_that_are_its_own():
    optimizer, _ = trained(gpt(), 3, restore="lazy")
    peer, _ = trained(gpt(), 3, restore="lazy")
    saved = optimizer.state_dict(), copy.deepcopy(optimizer.model.state_dict())
    optimizer.restart()
    peer.fold_()
    assert_same(optimizer.model, peer.model)
    assert len(optimizer.log) == 0
    loaded = ct.LOZO(gpt(), lr=1e-3, seed=SEED, interval=4, restore="lazy")
    loaded.load_state_dict(saved[0])
    loaded.model.load_state_dict(saved[1])
    loaded.restart()
    assert_same(loaded.model, peer.model)
    other, _ = trained(gpt(), 3, restore="lazy")
    other.model.load_state_dict(gpt().state_dict())  # a checkpoint from elsewhere: nothing is pending for it
    other.restart()
    assert_same(other.model, gpt())
    other.step(language(other.model))
    assert len(other.log) == 1


def test_a_tensor_of_a_learning_rate_and_schedulers():
    optimizer = ct.LOZO(gpt(), lr=torch.tensor(1e-2), seed=SEED, restore="lazy", weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        optimizer.step(language(optimizer.model))
        schedule.step()
    np.testing.assert_allclose(optimizer.log.decay, 1e-3 * 0.5 ** np.arange(3), rtol=1e-6)


@pytest.mark.parametrize("restore", ["scratch", "lazy"])
def test_an_exception_leaves_model_and_pending_updates_as_they_were(restore):
    models = [gpt(), gpt()]
    runs = [ct.LOZO(m, lr=1e-3, seed=SEED, interval=3, restore=restore) for m in models]
    for step in range(5):
        before, forwards = weights(models[0]), [dict(m.__dict__) for m in models[0].modules()]

        def broken(*args):
            raise ZeroDivisionError

        handle = models[0].transformer["h"][1].up.register_forward_hook(broken)
        with pytest.raises(ZeroDivisionError):
            runs[0].step(language(models[0]))
        handle.remove()
        assert_same(models[0], before)
        assert len(runs[0].log) == step
        assert [d.keys() for d in forwards] == [m.__dict__.keys() for m in models[0].modules()]
        assert [runs[0].step(language(models[0]))] == [runs[1].step(language(models[1]))]
        assert not any("forward" in m.__dict__ for m in models[0].modules())
    assert_same(*models)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_lazy_cannot_serve():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    x = torch.randn(2, 4)
    before = weights(model)
    optimizer = ct.LOZO(model, lr=1e-3, restore="lazy")
    with pytest.raises(ValueError, match=r"restore='lazy': .*'0' \(Linear\) 2 times.*use restore='copy'$"):
        optimizer.step(lambda: model(model[0](x)).mean())
    with pytest.raises(ValueError, match=r"restore='lazy': .*'1' \(Linear\) 0 times.*requires_grad_"):
        optimizer.step(lambda: model[0](x).mean())
    with pytest.raises(ValueError, match=r"restore='lazy': the parameter '0.weight' was read by .*use restore='copy'$"):
        optimizer.step(lambda: model(x).mean() + model[0].weight.sum())
    assert_same(model, before)
    for options, text in (
        ({"restore": "grid"}, "one of 'scratch', 'copy', 'lazy', 'naive'"),
        ({"rank": 0}, "'rank'"),
        ({"interval": 0}, "'interval'"),
    ):
        with pytest.raises(ValueError, match=text):
            ct.LOZO(model, lr=1e-3, **options)
    with pytest.raises(TypeError, match="active_rows"):
        ct.LOZO(model, lr=1e-3, active_rows=True)
    with pytest.raises(ValueError, match="'restore': got 'lazy'"):
        ct.MeZO(model, lr=1e-3, restore="lazy")
    scripted = nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"'lazy' for the ScriptModule '0' .*needs 'copy'"):
        ct.LOZO(scripted, lr=1e-3, restore="lazy")


def test_lazy_in_parts_that_are_frozen():
    """A frozen bias is added as it is; a frozen weight leaves its bias to the usual way."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    x, results = torch.randn(6, 4).double(), []
    for restore in ("scratch", "lazy"):
        twin = copy.deepcopy(model).double()
        _, losses = trained(twin, 6, lambda twin=twin: twin(x).square().mean(), restore=restore)
        results.append(losses)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("restore", ["scratch", "lazy"])
def test_processes_are_one_with_all_probes(run, restore):  # noqa: F811
    code = """
opt = ct.LOZO(gpt(), lr=1e-3, seed=SEED, interval=3, n_probes=2, restore=RESTORE, weight_decay=0.5, process_group=group)
losses = []
for step in range(7):
    losses.append(opt.step(language(opt.model)))
    if step == 1:
        opt.fold_()
result.update(state(opt, losses))
result["weights"] = {k: v.clone() for k, v in opt.model.state_dict().items()}
if RESTORE == "lazy":
    if rank:
        opt.fold_()  # one process alone
    result["alone"] = caught(lambda: opt.step(language(opt.model)))
"""
    import test_torch_zeroth_group as group

    results = run(code.replace("RESTORE", repr(restore)))
    options = {"lr": 1e-3, "seed": group.SEED, "interval": 3, "n_probes": 4, "restore": restore, "weight_decay": 0.5}
    single, losses = ct.LOZO(group.gpt(), **options), []
    for step in range(7):
        losses.append(single.step(group.language(single.model)))
        if step == 1:
            single.fold_()
    for result in results:
        group.assert_same(result, group.state(single, losses))
        assert restore == "scratch" or "different models, settings or logs" in result["alone"]
