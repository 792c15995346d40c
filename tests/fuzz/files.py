"""Every file that curvk reads, damaged: as bytes, and member by member with right checksums."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from curvk import _store, machines, online, optim, sketch, stein, zeroth
from curvk.zeroth import _log
from draw import Draw, need
from trees import copied, mutate

FOLDER = Path(tempfile.mkdtemp(prefix="curvk-files-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
X = np.random.default_rng(0).standard_normal((12, 3))
LABELS = np.where(X[:, 0] > 0, "a", "b")
warnings.simplefilter("ignore")  # scikit-learn's, of numbers that do not converge


@dataclass(frozen=True)
class Format:
    """Something that is saved and loaded.

    Attributes:
        make: an object worth saving.
        load: loads a file: into the given object, or as a new one, which it returns.
        use: what must work after a load.
        state: what the object given to `load` holds, which a refused file must not change; None where load makes one.
    """

    make: Callable[[], Any]
    load: Callable[[Any, Path], Any]
    use: Callable[[Any], object]
    state: Callable[[Any], Any] | None = None


def frozen(tree: Any) -> Any:
    """A tree as something to compare."""
    if isinstance(tree, dict):
        return tuple((k, frozen(v)) for k, v in tree.items())
    if isinstance(tree, (list, tuple)):
        return tuple(map(frozen, tree))
    return (tree.dtype.str, tree.shape, tree.tobytes()) if isinstance(tree, np.ndarray) else repr(tree)


def _into(given: Any, path: Path) -> Any:
    given.load(path)
    return given


# ---- optimizers -----------------------------------------------------------------------------------------------------


def _optimizer(kind: Any, **options: Any) -> Format:
    def make() -> Any:
        groups = [{"params": [np.ones((3, 4), np.float32)]}, {"params": [np.ones(40, np.float32)], "lr": 0.5}]
        made = kind(groups, **options)
        step(made)
        return made

    def step(made: Any) -> None:
        made.step([np.full(p.shape, 0.25, p.dtype) for group in made.param_groups for p in group["params"]])
        made.state_dict()

    return Format(make, _into, step, lambda made: made.state_dict())


def _sam(base: Any) -> Format:
    def make() -> Any:
        made = optim.SAM(base([np.ones((3, 4)), np.ones(5)], lr=0.1))
        step(made)
        return made

    def step(made: Any) -> None:
        params = [p for group in made.param_groups for p in group["params"]]
        made.step(lambda: [2 * p for p in params])
        made.state_dict()

    return Format(make, _into, step, lambda made: made.state_dict())


def _alice(**options: Any) -> Format:
    def make() -> Any:
        made = optim.Alice([np.ones((3, 4), np.float32), np.ones(40, np.float32)], **options)
        step(made)
        return made

    def step(made: Any) -> None:
        params = [p for group in made.param_groups for p in group["params"]]
        for _ in range(2):
            made.step(lambda: [2 * p for p in params])
        made.state_dict()

    return Format(make, _into, step, lambda made: made.state_dict())


# ---- logs -----------------------------------------------------------------------------------------------------------


def _theta() -> dict[str, Any]:
    return {"w": np.ones(5, np.float32), "v": np.full((2, 3), 0.5, np.float32)}


def _loss(params: Any) -> float:
    return float(sum((p**2).sum() for p in params.values()))


def _zeroth(kind: Any, **options: Any) -> Format:
    def make() -> Any:
        made = kind(_theta(), lr=0.01, **options)
        for _ in range(5):
            made.step(_loss)
        return made.log

    def use(log: Any) -> None:
        len(log), log.nbytes, log.crc, repr(log), log.coefs, log.decay, log.losses, log.active, log.folds
        for act in (lambda: log.replay(_theta()), lambda: kind(_theta(), lr=0.01, **options).load_log(log)):
            with suppress(TypeError, ValueError, BufferError):
                act()

    return Format(make, lambda _, path: zeroth.ZOLog.load(path), use)


# ---- learners, machines, sketches, samplers -------------------------------------------------------------------------


def _machine(made: Callable[[], Any], y: Any) -> Format:
    return Format(lambda: made().fit(X, y), lambda given, path: type(given).load(path), lambda m: m.predict(X[:4]))


def _learner(made: Callable[[], Any], y: Any) -> Format:
    def use(learner: Any) -> None:
        learner.predict(X[:4])
        classes = getattr(learner, "classes_", None)
        with suppress(TypeError, ValueError):  # numbers too large to go on with; parameters that are read later on
            learner.partial_fit(X[:6], y[:6] if classes is None else np.resize(np.asarray(classes), 6))

    return Format(lambda: made().partial_fit(X, y), lambda given, path: type(given).load(path), use)


def _sketch(made: Callable[[], Any]) -> Format:
    def make() -> Any:
        sketched = made()
        sketched.update(X)
        return sketched

    def use(sketched: Any) -> None:
        for rows in (0, 5):
            sketched.update(np.ones((rows, sketched.d)))
            need(sketched.sketch.shape[1] == sketched.d, f"{sketched!r}: another width")

    return Format(make, lambda given, path: type(given).load(path), use)


def _sampler(made: Callable[[Any], Any]) -> Format:
    def make() -> Any:
        sampler = made(np.random.default_rng(1).standard_normal((4, 2)))
        sampler.step()
        return sampler

    return Format(make, _into, lambda sampler: sampler.step(), lambda sampler: sampler.state_dict())


def _score(x: Any) -> Any:
    return -x


def _density(x: Any) -> Any:
    return -(x**2).sum(1) / 2


FORMATS: dict[str, Format] = {
    "SGD": _optimizer(optim.SGD, lr=0.1, momentum=0.9),
    "Adam": _optimizer(optim.Adam, amsgrad=True),
    "Adam8": _optimizer(optim.AdamW, state_bits=8, ema=0.9),
    "AdamZ": _optimizer(optim.AdamZ, patience=4, stagnation_period=2),
    "Lion": _optimizer(optim.Lion),
    "SAM": _sam(optim.SGD),
    "Alice": _alice(),
    "Alice8": _alice(state_bits=8),
    "MeZO": _zeroth(zeroth.MeZO, n_probes=2),
    "LeZO": _zeroth(zeroth.LeZO, layers=[["w"], ["v"]], drop=1),
    "SparseMeZO": _zeroth(zeroth.SparseMeZO),
    "KernelRidgeCG": _machine(lambda: machines.KernelRidgeCG(n_centers=6, random_state=0), X[:, 0]),
    "EigenPro": _machine(lambda: machines.EigenPro4Classifier(n_centers=6, random_state=0), LABELS),
    "Projectron": _learner(lambda: online.ProjectronClassifier(budget=5), LABELS),
    "Forgetron": _learner(lambda: online.ForgetronClassifier(budget=5), LABELS),
    "RBP": _learner(lambda: online.RBPClassifier(budget=5), LABELS),
    "BPAS": _learner(lambda: online.BPASClassifier(budget=5), LABELS),
    "FORKS": _learner(lambda: online.FORKSClassifier(budget=4, rank=2, refresh_every=2), LABELS),
    "NOGD": _learner(lambda: online.NOGDRegressor(budget=4, rank=2), X[:, 0]),
    "KONS": _learner(lambda: online.KONSRegressor(), X[:, 0]),
    "PROSNKONS": _learner(lambda: online.PROSNKONSClassifier(), LABELS),
    "FOGD": _learner(lambda: online.FOGDClassifier(), LABELS),
    "FrequentDirections": _sketch(lambda: sketch.FrequentDirections(2, 3)),
    "IncrementalSVD": _sketch(lambda: sketch.IncrementalSVD(2, 3, keep_U=True)),
    "SJLT": _sketch(lambda: sketch.SJLT(4, 3, blocks=2)),
    "CountSketch": _sketch(lambda: sketch.CountSketch(4, 3)),
    "SVGD": _sampler(lambda x: stein.SVGD(_score, x)),
    "SVCMAES": _sampler(lambda x: stein.SVCMAES(_density, x, sigma0=1.0, popsize=4)),
    "OpenAIES": _sampler(lambda x: stein.SVOpenAIES(_density, x, popsize=4)),
}
NAMES = list(FORMATS)


@lru_cache
def saved(name: str) -> tuple[Any, bytes, Any]:
    """The object of a format, its file, and the tree in it."""
    made, path = FORMATS[name].make(), FOLDER / name
    made.save(path)
    return made, path.read_bytes(), _store.read(path, "this")


def packed(tree: Any) -> bytes:
    """The file of a tree that need not be one that curvk writes."""
    out, arrays = io.BytesIO(), {}

    def encode(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            arrays[f"array{len(arrays)}"] = leaf
            return {"array": f"array{len(arrays) - 1}"}
        raise TypeError

    meta = np.frombuffer(json.dumps(tree, default=encode).encode(), np.uint8)
    np.savez(out, **arrays, meta=meta)
    return out.getvalue()


def _members(data: bytes, draw: Draw) -> bytes:
    """The file with a member changed, left out or named otherwise, and right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.pick(list(members))
    kind, content = draw.below(5), bytearray(members[name])
    if kind == 0:
        del members[name]
    elif kind == 1:
        members["x.npy"] = members.pop(name)
    elif kind == 2:
        members[name] = members[draw.pick(list(members))]
    else:
        for _ in range(1 + draw.below(4)):
            at = draw.below(min(len(content), 200)) if draw.byte() % 2 else draw.below(len(content))
            content[at : at + draw.below(3)] = draw.bytes(1 + draw.below(3))
        members[name] = bytes(content)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", draw.pick([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    return out.getvalue()


def _damaged(data: bytes, draw: Draw) -> bytes:
    content = bytearray(data)
    for _ in range(1 + draw.below(4)):
        at = draw.below(len(content) + 1)
        if draw.byte() % 4 == 0:
            del content[at:]
            content = content or bytearray(b"x")
        else:
            content[at : at + draw.below(3)] = draw.bytes(draw.below(4))
    return bytes(content)


def _changed(name: str, draw: Draw) -> bytes:
    _, data, tree = saved(name)
    kind = draw.below(8)
    if kind == 0:
        return _damaged(data, draw)
    if kind == 1:
        return _members(data, draw)
    if kind == 2:
        return draw.bytes(draw.left) or packed(draw.pick([None, [], {}, 1, "x", [[]], {"format": None}]))
    tree = mutate(copied(tree), draw)
    if isinstance(tree, dict) and isinstance(tree.get("content"), dict) and draw.byte() < 200:
        tree["checksum"] = _log._checksum(tree["content"])  # else no change would get beyond it
    return packed(tree)


def one(data: bytes) -> None:
    draw = Draw(data)
    name = draw.pick(NAMES)
    spec = FORMATS[name]
    try:
        content = _changed(name, draw)
    except (TypeError, ValueError, OverflowError):  # a tree that JSON cannot hold
        return
    path = FOLDER / "input.npz"
    path.write_bytes(content)
    given = spec.make() if spec.state is not None else saved(name)[0]
    before = frozen(spec.state(given)) if spec.state is not None else None
    try:
        loaded = spec.load(given, path)
    except ValueError as error:
        words = f"{error}"
        known = (os.fspath(path), type(given).__name__, ".load", "argument")
        need(any(w in words for w in known), f"{name}: names neither file nor argument: {words}")
        if spec.state is not None:
            need(frozen(spec.state(given)) == before, f"{name}: a refused file has changed the state")
        return
    try:
        spec.use(loaded)
    except MemoryError:  # a size that is as it should be, but for this machine
        return


def clean() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)


SEEDS = [bytes([i, 3, *more]) for i in range(len(NAMES)) for more in ((), (0, 9, 0, 4), (1, 20, 1, 4))]
