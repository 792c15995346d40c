"""Small models with the module names of common Hugging Face ones, for the tests of zeroth-order optimizers in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / x.shape[-1] ** 0.5
        return self.out(scores.softmax(-1) @ self.value(x))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.layer_norm, self.attention = nn.LayerNorm(d), Attention(d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layer_norm(x))
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks in a list of any name, one after the other."""

    def __init__(self, name: str, d: int, n: int) -> None:
        super().__init__()
        self.add_module(name, nn.ModuleList([Block(d) for _ in range(n)]))

    def forward(self, x: Tensor) -> Tensor:
        for block in next(self.children()):
            x = block(x)
        return x


class GPT(nn.Module):
    """GPT-2's names: transformer.wte, .wpe, .h, .ln_f and lm_head, whose weight may be the embedding's."""

    def __init__(self, d: int = 16, n: int = 3, vocab: int = 31, length: int = 8, tied: bool = False) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, d),
                "wpe": nn.Embedding(length, d),
                "h": nn.ModuleList([Block(d) for _ in range(n)]),
                "ln_f": nn.LayerNorm(d),
            }
        )
        self.lm_head = nn.Linear(d, vocab, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: Tensor) -> Tensor:
        t = self.transformer
        x = t["wte"](ids) + t["wpe"](torch.arange(ids.shape[1]))
        for block in t["h"]:
            x = block(x)
        return self.lm_head(t["ln_f"](x))


class Bert(nn.Module):
    """BERT's names: embeddings.word_embeddings, encoder.layer.N and pooler.dense."""

    def __init__(self, d: int = 16, n: int = 3) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(31, d), "LayerNorm": nn.LayerNorm(d)})
        self.encoder = Stack("layer", d, n)
        self.pooler = nn.ModuleDict({"dense": nn.Linear(d, d)})

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings["LayerNorm"](self.embeddings["word_embeddings"](ids))
        return torch.tanh(self.pooler["dense"](self.encoder(x)[:, 0]))


def nested(path: str, inner: nn.Module) -> nn.Module:
    """A module that holds another one at a path of attributes, beside an embedding and a head."""
    for name in reversed(path.split(".")):
        outer = nn.Module()
        outer.embed_tokens = nn.Embedding(31, 16)
        outer.add_module(name, inner)
        outer.head = nn.Linear(16, 2)
        inner = outer
    return inner
