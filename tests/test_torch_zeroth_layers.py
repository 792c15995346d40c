"""Which layers curvk.torch finds in a model, and how displaced weights are shown to its modules."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

import curvk.torch  # noqa: E402
from curvk.kernels import noise  # noqa: E402
from curvk.torch import find_layers  # noqa: E402
from curvk.torch._zeroth._hooks import Windows, make_blocks  # noqa: E402
from curvk.torch._zeroth._scratch import Scratch  # noqa: E402
from curvk.zeroth._update import Noise, Tensors  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from zeroth_models import GPT, Bert, Block, Stack, nested  # noqa: E402

SEED, DRAW, EPS = 20241, 7, 1e-2


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(SEED)
    print(f"seed {SEED}")  # shown where a test fails


# ---- find_layers -----------------------------------------------------------------------------------------------------


def t5():
    """T5's names; its blocks hold a list called layer, and the first one an embedding of its own."""
    model = nn.Module()
    model.shared = nn.Embedding(31, 8)
    for side in ("encoder", "decoder"):
        stack = nn.Module()
        stack.block = nn.ModuleList()
        for i in range(2):
            block = nn.Module()
            attention = nn.ModuleDict({"SelfAttention": nn.Linear(8, 8), "layer_norm": nn.LayerNorm(8)})
            if i == 0:
                attention["relative_attention_bias"] = nn.Embedding(4, 2)
            block.layer = nn.ModuleList([attention, nn.ModuleDict({"DenseReluDense": nn.Linear(8, 8)})])
            stack.block.append(block)
        stack.final_layer_norm = nn.LayerNorm(8)
        model.add_module(side, stack)
    model.lm_head = nn.Linear(8, 31, bias=False)
    return model


def resnet():
    """Stages of two blocks in nn.Sequential, between a stem and a head."""
    model = nn.Module()
    model.conv1 = nn.Conv2d(3, 4, 3)
    for i in (1, 2):
        blocks = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)) for _ in range(2)]
        model.add_module(f"layer{i}", nn.Sequential(*blocks))
    model.fc = nn.Linear(4, 2)
    return model


def encoder_decoder():
    """BART's names."""
    model = nn.Module()
    model.shared, model.encoder, model.decoder = nn.Embedding(31, 8), Stack("layers", 8, 2), Stack("layers", 8, 3)
    return model


def mlp(*hidden):
    return nn.Sequential(*(m for a, b in pairwise(hidden) for m in (nn.Linear(a, b), nn.ReLU())))


def numbered(prefix, n):
    return [f"{prefix}.{i}" for i in range(n)]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Bert(), numbered("encoder.layer", 3)),
        (GPT(), numbered("transformer.h", 3)),
        (GPT(n=1), ["transformer.h.0"]),
        (nested("bert", Bert()), numbered("bert.encoder.layer", 3)),
        (nested("model", Stack("layers", 8, 2)), numbered("model.layers", 2)),  # LLaMA, Mistral, Qwen, Gemma
        (nested("model.decoder", Stack("layers", 8, 2)), numbered("model.decoder.layers", 2)),  # OPT
        (nested("visual", Stack("blocks", 8, 4)), numbered("visual.blocks", 4)),  # timm's ViT
        (nested("body", Stack("stages_of_mine", 8, 2)), numbered("body.stages_of_mine", 2)),
        (encoder_decoder(), numbered("encoder.layers", 2) + numbered("decoder.layers", 3)),
        (t5(), numbered("encoder.block", 2) + numbered("decoder.block", 2)),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2, enable_nested_tensor=False),
            numbered("layers", 2),
        ),
        (
            nn.Transformer(8, 2, 1, 2, 8, batch_first=True),
            ["encoder.layers.0", *numbered("decoder.layers", 2)],
        ),
        (resnet(), numbered("layer1", 2) + numbered("layer2", 2)),
        (mlp(4, 8, 8, 8, 2), ["2", "4"]),
        (nn.Sequential(nn.Embedding(5, 8), Block(8), Block(8), nn.Linear(8, 2)), ["1", "2"]),
        (nn.Sequential(nn.Embedding(5, 8), nn.Sequential(Block(8), Block(8)), nn.Linear(8, 2)), ["1.0", "1.1"]),
        (nested("net", mlp(4, 64, 64, 64, 2)), ["net.2", "net.4"]),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_layers_of_common_models(model, names):
    found = find_layers(model)
    assert list(found) == names
    modules = dict(model.named_modules())
    assert all(modules[n] is m for n, m in found.items())


def test_frozen_layers_are_no_layers():
    model = GPT(n=4)
    model.transformer["h"][:2].requires_grad_(False)
    assert list(find_layers(model)) == ["transformer.h.2", "transformer.h.3"]


def test_named_layers():
    model = GPT()
    h = model.transformer["h"]
    for given in ("transformer.h", h, ["transformer.h"], list(h), [h[0], "transformer.h.1", "transformer.h.2."]):
        assert list(find_layers(model, given)) == numbered("transformer.h", 3)
    assert list(find_layers(model, ["transformer.h.2", "transformer.h.0"])) == ["transformer.h.2", "transformer.h.0"]
    assert list(find_layers(mlp(4, 8, 8, 2), "0")) == ["0"]
    chain = nested("net", mlp(4, 8, 2))
    assert list(find_layers(chain, "net")) == ["net.0", "net.2"]  # a Sequential alone means its children
    assert list(find_layers(chain, ["net", "head"])) == ["net", "head"]  # beside others it is a layer


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (["transformer.z"], ValueError, r"'transformer.z'.*'transformer.wte' \(Embedding\).*'lm_head' \(Linear\)"),
        ([""], ValueError, "inside the model"),
        ([nn.Linear(2, 2)], ValueError, "a Linear that is not inside the model"),
        (["transformer.h.0", "transformer.h"], ValueError, "'transformer.h.0' twice"),
        (["transformer.h.0", "transformer.h.0.up"], ValueError, "'transformer.h.0.up' inside 'transformer.h.0'"),
        ([3], TypeError, "got int"),
        ([], ValueError, "no layers"),
    ],
)
def test_layers_that_cannot_be_named(given, error, text):
    with pytest.raises(error, match=text):
        find_layers(GPT(), given)


def test_no_layers_found():
    model = nn.Module()
    model.first, model.second = nn.Linear(4, 4), nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"'first' \(Linear\), 'second' \(Linear\).*layers=\['encoder.0'"):
        find_layers(model)
    with pytest.raises(ValueError, match="no layers"):
        find_layers(mlp(4, 8, 2))  # embedding and head only
    model = GPT()
    model.transformer["h"].requires_grad_(False)
    with pytest.raises(ValueError, match=r"'transformer.h', which has no trainable parameter"):
        find_layers(model, "transformer.h")


# ---- the windows -----------------------------------------------------------------------------------------------------


class Setup:
    """A scheme for a model, and the truth: the same weights displaced by `perturb_` in a copy of the model."""

    def __init__(self, model, layers=None, dist="normal"):
        self.model = model
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.names, self.params = [n for n, _ in named], [p for _, p in named]
        found = find_layers(model, layers) if layers is not False else {}
        self.blocks, self.layers = make_blocks(model, self.params, found)
        self.windows = Windows(self.names, self.params, self.blocks)
        self.scheme = Scratch(Tensors(self.names, self.params, "test"), Noise(SEED, dist), self.windows)
        self.everything = list(range(len(self.params)))

    def loss(self, function, active=None, eps=EPS):
        active = self.everything if active is None else active
        before = self.state()
        with torch.no_grad():
            self.scheme.begin(active, {}, {})
            value = self.scheme.loss(lambda _: float(function(self.model)), active, DRAW, eps)
        self.untouched(before)
        return value

    def state(self):
        """Where the parameters are, their versions and values, and what is attached to the modules."""
        attached = [
            (list(m._forward_pre_hooks), list(m._forward_hooks), "forward" in m.__dict__) for m in self.model.modules()
        ]
        return attached, [(p.data_ptr(), p._version, p.detach().clone()) for p in self.params]

    def untouched(self, before):
        attached, values = self.state()
        assert attached == before[0]
        for name, old, new in zip(self.names, before[1], values, strict=True):
            assert old[:2] == new[:2], name
            assert torch.equal(old[2], new[2]), name

    def truth(self, function, active=None, eps=EPS):
        """Displaces the weights themselves, one tensor at a time, and puts copies back."""
        active = self.everything if active is None else active
        saved = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for i in active:
                word = noise.tensor_word(self.names[i])
                noise.perturb_(self.params[i], seed=SEED, draw=DRAW, scale=eps, tensor=word)
            value = float(function(self.model))
            for p, s in zip(self.params, saved, strict=True):
                p.copy_(s)
        return value


IDS = torch.arange(24).reshape(4, 6) % 31


def language(model):
    with torch.no_grad():
        return nn.functional.cross_entropy(model(IDS[:, :-1]).float().flatten(0, 1), IDS[:, 1:].flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [None, False], ids=["layers", "modules"])
def test_a_window_shows_the_bits_of_displaced_weights(dtype, tied, layers):
    setup = Setup(GPT(tied=tied).to(dtype), layers)
    assert setup.loss(language) == setup.truth(language) != float(language(setup.model))


def test_active_tensors_alone_are_displaced():
    setup = Setup(GPT())
    active = sorted(set(setup.everything) - set(setup.layers[1]))
    assert setup.loss(language, active) == setup.truth(language, active) != setup.truth(language)


def test_memory_is_that_of_the_largest_block():
    setup = Setup(GPT(d=32, n=6, vocab=40))
    setup.loss(language)
    layer = sum(setup.params[i].nbytes for i in setup.layers[0])
    assert layer <= setup.windows.nbytes < 1.05 * layer  # each tensor starts a cache line
    total = sum(p.nbytes for p in setup.params)
    assert setup.windows.nbytes < total / 5


def peak_bytes(function):
    """The most bytes that torch had allocated at once while the function ran, by its profiler's allocation events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    now = top = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            top = max(top, now)
    return top


@pytest.mark.parametrize("tied", [False, True])
def test_measured_peak_is_one_layer_above_inference(tied):
    """Of a whole step, its first and later ones: torch's allocations by its profiler, all others by tracemalloc."""
    torch.manual_seed(SEED)
    model = GPT(d=128, n=6, vocab=40, tied=tied)
    optimizer = curvk.torch.MeZO(model, lr=1e-3, weight_decay=0.1)
    layer = sum(p.nbytes for p in model.transformer["h"][0].parameters())
    language(model)
    plain = peak_bytes(lambda: language(model))
    for _ in range(2):
        # The rows of tables and a NaN for each tensor are small beside the buffer.
        assert peak_bytes(lambda: optimizer.step(lambda: language(model))) - plain < 1.1 * layer
    tracemalloc.start()
    try:
        optimizer.step(lambda: language(model))
        assert tracemalloc.get_traced_memory()[1] < 0.5 * layer
    finally:
        tracemalloc.stop()


def test_inactive_layers_run_without_hooks():
    setup = Setup(GPT())
    seen = {}
    h = setup.model.transformer["h"]

    def note(model):
        seen.update({i: len(b._forward_pre_hooks) for i, b in enumerate(h)})
        return language(model)

    setup.loss(note, sorted(set(setup.everything) - set(setup.layers[1])))
    assert seen == {0: 1, 1: 0, 2: 1}


def test_tensors_outside_layers_in_modules_inside_each_other():
    """A root's own parameter is displaced around all layers, in a buffer of its own."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls, self.body, self.scale = nn.Parameter(torch.randn(16)), Stack("layers", 16, 2), nn.ParameterList()
            self.scale.append(nn.Parameter(torch.ones(16)))  # a ParameterList is never called; the root reads it

        def forward(self, x):
            return (self.body(x + self.cls) * self.scale[0] + self.cls).square().mean()

    setup = Setup(Root())
    x = torch.randn(2, 3, 16)
    assert [b.name for b in setup.blocks] == ["body.layers.0", "body.layers.1", ""]
    assert setup.loss(lambda m: m(x)) == setup.truth(lambda m: m(x))


def test_a_weight_shared_by_two_layers_is_no_layers():
    """It is always active, and shown around each module that reads it."""
    model = GPT(n=2)
    h = model.transformer["h"]
    h[1].up.weight = h[0].up.weight
    setup = Setup(model)
    shared = setup.names.index("transformer.h.0.up.weight")
    assert all(shared not in layer for layer in setup.layers)
    assert {b.name for b in setup.blocks if shared in b.tensors} == {"transformer.h.0.up", "transformer.h.1.up"}
    assert setup.loss(language) == setup.truth(language)
    assert setup.loss(language, [shared]) == setup.truth(language, [shared])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_torch_transformer_encoder(training, padded, monkeypatch):
    """In inference an encoder layer takes a fused path that reads its parts' weights, unless it has hooks."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 3).train(training)
    x = torch.randn(2, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    fused = []
    path = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: (fused.append(1), path(*args))[1])

    def loss(m):
        with torch.no_grad():
            return m(x, src_key_padding_mask=mask)[:, :3].square().mean()

    for layers in (None, False):
        setup = Setup(model, layers)
        assert len(setup.blocks) == 3
        fused.clear()
        value = setup.loss(loss)
        assert len(fused) == (0 if training else 3)
        assert value == setup.truth(loss) != float(loss(model))


@pytest.mark.parametrize("training", [True, False])
def test_torch_multihead_attention_alone(training):
    """It reads its projection's weight without calling the projection."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, batch_first=True)}).train(training)
    setup = Setup(model, False)
    assert [b.name for b in setup.blocks] == ["attention"]
    x = torch.randn(2, 5, 16)
    loss = lambda m: m["attention"](x, x, x)[0].square().mean()  # noqa: E731
    assert setup.loss(loss) == setup.truth(loss)


def test_a_bias_shared_by_a_module_and_its_child():
    """As BERT's prediction head, whose bias is its decoder's too."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.randn(31))
            self.transform, self.decoder = nn.Linear(16, 16), nn.Linear(16, 31)
            self.decoder.bias = self.bias

        def forward(self, x):
            return self.decoder(self.transform(x)) + self.bias.mean()

    model = GPT()
    model.lm_head = Head()
    model.lm_head.decoder.weight = model.transformer["wte"].weight
    setup = Setup(model)
    assert "lm_head.bias" in setup.names
    assert "lm_head.decoder.bias" not in setup.names
    assert setup.loss(language) == setup.truth(language)


def test_batch_norm_keeps_its_running_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    x = torch.randn(5, 3, 8, 8)
    setup = Setup(model, False)
    loss = lambda m: m(x).square().mean()  # noqa: E731
    assert setup.loss(loss) == setup.truth(loss)
    assert model[1].num_batches_tracked == 2  # the forwards' own business
    model.eval()
    before = model[1].running_mean.clone()
    assert setup.loss(loss) == setup.truth(loss)
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_modules(kind):
    model = nn.ModuleDict({"body": kind(4, 8, num_layers=2, bidirectional=True), "head": nn.Linear(16, 1)})
    x = torch.randn(6, 3, 4)
    setup = Setup(model, False)
    loss = lambda m: m["head"](m["body"](x)[0]).square().mean()  # noqa: E731
    assert setup.loss(loss) == setup.truth(loss)


def test_parametrised_weights():
    """Parametrisations compute a weight when it is read; the old weight_norm does so in a forward pre-hook."""
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 8)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(8, 8)).eval(),
    )
    with pytest.warns(FutureWarning, match="weight_norm"):
        model.append(nn.utils.weight_norm(nn.Linear(8, 2)))
    x = torch.randn(5, 4)
    setup = Setup(model, False)
    assert [b.name for b in setup.blocks] == ["0", "2", "3"]
    loss = lambda m: m(x).square().mean()  # noqa: E731
    assert setup.loss(loss) == setup.truth(loss)


def test_a_parametrised_or_scaled_embedding_shows_its_whole_table():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 3 * super().forward(ids)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scaled, self.normed = Scaled(31, 8), parametrizations.weight_norm(nn.Embedding(31, 8))

        def forward(self, ids):
            return (self.scaled(ids) + self.normed(ids)).square().mean()

    setup = Setup(Model(), False)
    assert setup.windows.lookups == []
    assert setup.loss(lambda m: m(IDS)) == setup.truth(lambda m: m(IDS))


def test_an_embedding_with_max_norm_scales_the_displaced_table():
    """Its forward writes to its weight, which is the buffer: theta keeps its rows."""
    model = nn.ModuleDict({"table": nn.Embedding(31, 8, max_norm=0.5)})
    setup = Setup(model, False)
    before = model["table"].weight.detach().clone()
    place = model["table"].weight.data_ptr()
    with torch.no_grad():
        setup.scheme.begin([0], {}, {})
        got = setup.scheme.loss(lambda _: float(model["table"](IDS).square().sum()), [0], DRAW, EPS)
    assert model["table"].weight.data_ptr() == place
    assert torch.equal(model["table"].weight, before)
    assert got == setup.truth(lambda m: m["table"](IDS).square().sum())


def test_an_embedding_displaces_the_rows_it_looks_up():
    model = nn.ModuleDict({"table": nn.Embedding(10_000, 8, padding_idx=3), "head": nn.Linear(8, 2)})
    model["table"].register_forward_hook(lambda module, args, output: 2 * output)  # sees the displaced rows
    setup = Setup(model, False)
    assert setup.windows.lookups == [0]
    for ids in (torch.tensor([[3, 9_999, 3], [0, 77, 5]]), torch.tensor(4), torch.empty(0, 2, dtype=torch.int32)):
        loss = lambda m, ids=ids: m["head"](m["table"](input=ids)).square().sum()  # noqa: E731
        assert setup.loss(loss) == setup.truth(loss)
    assert setup.windows.nbytes < 200


def test_dense_strides_are_kept():
    """What a convolution or a product computes, to the last bit, may depend on its weight's layout."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 3))
    model = model.to(memory_format=torch.channels_last)
    model[3].weight.data = torch.randn(8 * 16, 3).t()
    model[0].bias.data = torch.randn(16)[::2]  # not dense
    setup = Setup(model, False)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    strides = []

    def loss(m):
        hook = m[1].register_forward_pre_hook(lambda module, args: strides.append(module.weight.stride()))
        try:
            return m(x).square().mean()
        finally:
            hook.remove()

    assert setup.loss(loss) == setup.truth(loss)
    assert strides == [(72, 1, 24, 8)] * 2


def test_mixed_dtypes_in_a_layer():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(8, 8).bfloat16(), nn.LayerNorm(8), nn.Linear(8, 8).double()

        def forward(self, x):
            return self.down(self.norm(self.up(x.bfloat16()).float()).double()).float()

    model = nn.ModuleDict({"layers": nn.ModuleList([Mixed(), Mixed()]), "head": nn.Linear(8, 2)})
    x = torch.randn(3, 8)
    loss = lambda m: m["head"](m["layers"][1](m["layers"][0](x))).square().mean()  # noqa: E731
    setup = Setup(model)
    assert len(setup.layers) == 2
    assert setup.loss(loss) == setup.truth(loss)


def test_scalars_and_empty_parameters():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.none = nn.Linear(4, 3), nn.Parameter(torch.empty(0, 3))
            self.logit_scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            x = self.body(x)
            return x.square().mean() * self.logit_scale.exp() + (x @ self.none.t()).sum()

    x = torch.randn(2, 4)
    setup = Setup(Model(), False)
    assert setup.loss(lambda m: m(x)) == setup.truth(lambda m: m(x))


def test_frozen_parameters_and_buffers_stay():
    model = GPT()
    model.transformer["wte"].requires_grad_(False)
    model.register_buffer("table", torch.randn(4))
    setup = Setup(model)
    assert "transformer.wte.weight" not in setup.names
    assert setup.loss(language) == setup.truth(language)


def test_inference_mode_closures():
    setup = Setup(GPT())

    def infer(model):
        with torch.inference_mode():
            return language(model).item()

    assert setup.loss(infer) == setup.truth(infer)
    with torch.inference_mode():
        assert setup.loss(language) == setup.truth(infer)
    assert not any(b.is_inference() for b in setup.windows._buffers.values())


# ---- what cannot be shown --------------------------------------------------------------------------------------------


def test_exceptions_leave_everything_as_it_was():
    setup = Setup(GPT())
    before = setup.state()
    h = setup.model.transformer["h"]

    for error in (ZeroDivisionError, KeyboardInterrupt):

        def explode(*_, error=error):
            raise error

        for place in (h[1], h[1].up, setup.model.lm_head, setup.model.transformer["wte"]):
            for register in (place.register_forward_pre_hook, place.register_forward_hook):
                hook = register(explode)
                setup.scheme.begin(setup.everything, {}, {})
                with pytest.raises(error), torch.no_grad():
                    setup.scheme.loss(lambda _: float(language(setup.model)), setup.everything, DRAW, EPS)
                hook.remove()
                setup.untouched(before)
    assert setup.loss(language) == setup.truth(language)  # and the next evaluation is sound


@pytest.mark.parametrize("layers", [None, False], ids=["layers", "modules"])
def test_a_module_called_twice_or_never(layers):
    setup = Setup(GPT(), layers)
    twice = lambda m: language(m) + language(m)  # noqa: E731
    with pytest.raises(ValueError, match=r"'transformer.h.0(.layer_norm)?' \(\w+\) 2 times.*once; evaluate the loss"):
        setup.loss(twice)
    part = lambda m: m.transformer["wte"](IDS).square().mean()  # noqa: E731
    with pytest.raises(ValueError, match=r"0 times.*requires_grad_\(False\).*restore='copy'"):
        setup.loss(part)
    assert setup.loss(language) == setup.truth(language)


def test_weights_read_where_they_cannot_be_shown():
    setup = Setup(GPT())
    head = setup.model.lm_head

    def penalised(model):
        return language(model) + head.weight.square().sum()

    with pytest.raises(ValueError, match=r"'lm_head.weight' was read by square outside of the forward of its module"):
        setup.loss(penalised)

    def functional(model):
        return nn.functional.linear(torch.ones(16), model.transformer["wte"].weight).sum() + language(model)

    with pytest.raises(ValueError, match=r"'transformer.wte.weight' was read by linear"):
        setup.loss(functional)
    setup.loss(lambda m: language(m) + sum(p.numel() for p in m.parameters()))  # shapes may be read


def test_a_loss_that_is_nan_by_itself_is_no_misuse():
    setup = Setup(GPT())
    calls = []

    def nan(model):
        calls.append(1)
        unused = torch.zeros_like(model.lm_head.weight), torch.ones(2).type_as(model.lm_head.weight)
        return language(model) * math.nan * len(unused)

    assert math.isnan(setup.loss(nan))
    assert len(calls) == 2  # once more, to see what it reads
