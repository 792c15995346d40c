"""Everything in curvk and its examples that writes a file, and a way to die at any moment of it.

`WRITERS[name]` makes, in a folder, a `Writer`: two different contents for one path, and a check that tells which of the
two a file holds. Run as a program, it kills forked children at each of their system calls on files, then at random.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from exercises import LABELS, ROWS, has, loss_of, normals, quadratic


@dataclass
class Writer:
    """What saves one file.

    Attributes:
        name: of the file.
        save: (path, 0 or 1) writes the first or the second content.
        found: path -> 0 or 1, which of them the file holds; raises where it holds neither.
    """

    name: str
    save: Callable[[Path, int], object]
    found: Callable[[Path], int]


def _states(make: Callable[[], Any], step: Callable[[Any], object]) -> Writer:
    """Of two objects with `save` and `load`, the second a step further."""
    pair = make(), make()
    step(pair[0])
    step(pair[1])
    step(pair[1])
    known = [_bits(one.state_dict()) for one in pair]
    assert known[0] != known[1]

    def found(path: Path) -> int:
        fresh = make()
        fresh.load(path)
        return known.index(_bits(fresh.state_dict()))

    return Writer("state", lambda path, which: pair[which].save(path), found)


def _bits(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _bits(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_bits(v) for v in x]
    return (x.dtype.str, x.shape, x.tobytes()) if isinstance(x, np.ndarray) else repr(x)


def _by_predictions(make: Callable[[int], Any], kind: Any, predict: Callable[[Any], Any]) -> Writer:
    """Of two fitted objects that are loaded by their class."""
    pair = make(0), make(1)
    known = [np.asarray(predict(one)).tobytes() for one in pair]
    assert known[0] != known[1]
    return Writer(
        "fitted",
        lambda path, which: pair[which].save(path),
        lambda path: known.index(np.asarray(predict(kind.load(path))).tobytes()),
    )


def _by_bytes(name: str, save: Callable[[Path, int], object]) -> Writer:
    """Of files of which the bytes are known."""
    known = []
    with tempfile.TemporaryDirectory() as folder:
        for which in (0, 1):
            save(Path(folder) / name, which)
            known.append((Path(folder) / name).read_bytes())
    assert known[0] != known[1]
    return Writer(name, save, lambda path: known.index(path.read_bytes()))


# ---- all that write --------------------------------------------------------------------------------------------------


def _adam(bits: int) -> Writer:
    from curvk import optim

    def make() -> Any:
        return optim.Adam([normals(0, 3000), normals(1, 64)], state_bits=bits)

    return _states(make, lambda o: o.step([normals(2, 3000), normals(3, 64)]))


def _sam() -> Writer:
    from curvk import optim

    def make() -> Any:
        params = [normals(0, 3000)]
        made = optim.SAM(optim.AdamW(params))
        made.exercised = params
        return made

    return _states(make, lambda o: o.step(quadratic(o.exercised)))


def _alice() -> Writer:
    from curvk import optim

    params: dict[int, Any] = {}

    def make() -> Any:
        x = [normals(0, 3000)]
        made = optim.Alice(x, sigma=1e-3)
        params[id(made)] = made, x
        return made

    return _states(make, lambda o: o.step(quadratic(params[id(o)][1])))


def _log() -> Writer:
    from curvk import zeroth

    def make(which: int) -> Any:
        optimizer = zeroth.MeZO([normals(0, 30)], lr=0.01)
        for _ in range(2 + which):
            optimizer.step(loss_of)
        return optimizer.log

    return _by_predictions(make, zeroth.ZOLog, lambda log: log.coefs)


def _sampler() -> Writer:
    from curvk import stein

    return _states(lambda: stein.SVGD(lambda x: -x, normals(0, 60, 5, dtype=np.float64)), lambda s: s.step())


def _sketch() -> Writer:
    from curvk import sketch

    def make(which: int) -> Any:
        made = sketch.CountSketch(40, 3)
        made.update(ROWS + which)
        return made

    return _by_predictions(make, sketch.CountSketch, lambda s: s.sketch)


def _machine() -> Writer:
    from curvk import machines

    def make(which: int) -> Any:
        made = machines.KernelRidgeCG(n_centers=6, bandwidth=1.0, random_state=0)
        return made.fit(ROWS, LABELS + which * ROWS[:, 0])

    return _by_predictions(make, machines.KernelRidgeCG, lambda m: m.predict(ROWS))


def _learner() -> Writer:
    from curvk import online

    def make(which: int) -> Any:
        made = online.FOGDClassifier(8, bandwidth=1.0, random_state=0)
        return made.partial_fit(ROWS[: 9 + which], LABELS[: 9 + which], classes=[0, 1])

    return _by_predictions(make, online.FOGDClassifier, lambda m: m.decision_function(ROWS))


def _table(name: str) -> Writer:
    from curvk import curvature

    probe = curvature.GlassProbe(lambda x: x**3, normals(0, 30), sigma=0.01)
    pair = [probe.run(samples=2 + which) for which in (0, 1)]
    return _by_bytes(name, lambda path, which: pair[which].save(path))


def _report() -> Writer:
    from curvk._bench import report

    texts = [json.dumps({"rows": list(range(2000 + which))}) for which in (0, 1)]
    return _by_bytes(
        "run.json",
        lambda path, which: report.write(path, lambda file: file.write_text(texts[which], encoding="utf-8")),
    )


def _figure() -> Writer:
    from curvk._bench import report
    from matplotlib.figure import Figure

    def save(path: Path, which: int) -> None:
        figure = Figure(figsize=(1, 1))
        figure.add_subplot().plot([0, which])
        report.write(path, lambda file: figure.savefig(file, format="png", dpi=40, metadata={"Software": None}))

    return _by_bytes("picture.png", save)


def _example(name: str, function: str) -> Writer:
    from example_modules import imported

    with imported(name) as run:
        write = getattr(run, function)
    texts = [json.dumps({"rows": list(range(2000 + which))}) for which in (0, 1)]
    if name == "glass_density":
        return _by_bytes("run.json", lambda path, which: write(path, json.loads(texts[which])))
    if name == "alice":
        return _by_bytes("run.json", lambda path, which: write(path, json.loads(texts[which])))
    return _by_bytes(
        "run.json", lambda path, which: write(path, lambda file: file.write_text(texts[which], encoding="utf-8"))
    )


WRITERS: dict[str, Callable[[], Writer]] = {
    "Adam": lambda: _adam(32),
    "Adam, 8 bits": lambda: _adam(8),
    "Alice": _alice,
    "ZOLog": _log,
    "sampler": _sampler,
    "sketch": _sketch,
    "GlassResult, csv": lambda: _table("table.csv"),
    "GlassResult, json": lambda: _table("table.json"),
    "bench and demo, text": _report,
}
if has("matplotlib"):
    WRITERS["bench and demo, picture"] = _figure
if has("sklearn") and has("scipy"):
    WRITERS |= {"machine": _machine, "online learner": _learner}
EXAMPLES = {"sketches": "write"}
if has("torch"):
    EXAMPLES |= {"fewer_bytes": "write", "alice": "write", "late_sam": "replace", "glass_density": "save"}
if has("sklearn") and has("scipy"):
    EXAMPLES |= {"kernel_machines": "write", "stein": "write", "streams": "write"}


# ---- dying -----------------------------------------------------------------------------------------------------------


class Deadly:
    """Within it, the process dies at its `at`-th step on files: before the step or, with `half`, in the middle of a
    write. Steps are opening, writing, flushing to the disk, renaming, removing and closing."""

    def __init__(self, at: int, half: bool) -> None:
        self.left, self.half = at, half

    def step(self, data: Any = None, write: Callable[[Any], object] | None = None) -> None:
        self.left -= 1
        if self.left == 0:
            if self.half and data is not None and write is not None:
                write(memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2])
            os._exit(99)

    def install(self) -> None:
        deadly = self

        class Raw(io.FileIO):
            """Writes that count."""

            def write(self, data: Any) -> int:
                deadly.step(data, super().write)
                return super().write(data)

            def close(self) -> None:
                if not self.closed and self.writable():
                    deadly.step()
                super().close()

        real = builtins.open

        def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return real(file, mode, buffering, *rest, **more)
            deadly.step()
            raw = Raw(file, mode.replace("b", "").replace("t", ""), opener=more.pop("opener", None))
            buffered = io.BufferedRandom(raw, 512) if "+" in mode else io.BufferedWriter(raw, 512)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **more)

        builtins.open = io.open = opened
        for name in ("fsync", "replace", "rename", "unlink", "remove"):
            call = getattr(os, name)
            setattr(os, name, lambda *given, call=call, **more: (deadly.step(), call(*given, **more))[1])


def forked(body: Callable[[], object]) -> int:
    """A child that runs the body; its process id."""
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def litter(folder: Path, name: str) -> list[str]:
    return [found for found in sorted(os.listdir(folder)) if found != name]


def examine(writer: Writer, folder: Path, *, recognisable: bool) -> int:
    """After a death: the target is whole, what lies beside it is known for what it is, and the next saves succeed."""
    path = folder / writer.name
    now = writer.found(path)
    left = litter(folder, writer.name)
    if recognisable:
        for name in left:
            assert name.startswith(f".{writer.name}."), name
            assert name.endswith(".tmp"), name
    for which in (1 - now, now):
        writer.save(path, which)
        assert writer.found(path) == which
    assert set(litter(folder, writer.name)) <= set(left), "a save that succeeds leaves litter"
    for name in left:
        (folder / name).unlink(missing_ok=True)  # the next save may have used the name
    return now


def die_everywhere(writer: Writer, folder: Path, *, recognisable: bool) -> tuple[int, int]:
    """Kills at the first step on files, at the second, and so on; the steps, and how many kept the old content."""
    path = folder / writer.name
    writer.save(path, 0)
    old = steps = 0
    for half in (False, True):
        for at in range(1, 10_000):

            def body(at: int = at, half: bool = half) -> None:
                Deadly(at, half).install()
                writer.save(path, 1)
                os._exit(0)

            writer.save(path, 0)
            status = os.waitstatus_to_exitcode(os.waitpid(forked(body), 0)[1])
            assert status in (0, 99), f"step {at}: the child failed"
            if status == 0:
                assert writer.found(path) == 1
                assert litter(folder, writer.name) == []
                break
            steps += 1
            old += examine(writer, folder, recognisable=recognisable) == 0
    assert steps > 6
    assert 0 < old <= steps - recognisable  # the package goes on after renaming; examples end there
    return steps, old


def die_at_random(writer: Writer, folder: Path, seed: int, times: int, *, recognisable: bool) -> None:
    """A child that saves the two contents by turns is killed from outside."""
    path, rng = folder / writer.name, random.Random(seed)
    writer.save(path, 0)

    def body() -> None:
        while True:
            for which in (1, 0):
                writer.save(path, which)

    for _ in range(times):
        child = forked(body)
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        examine(writer, folder, recognisable=recognisable)


def main() -> None:
    what, name, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    own = what == "writer"
    writer = WRITERS[name]() if own else _example(name, EXAMPLES[name])
    folder = Path(tempfile.mkdtemp(dir="."))
    steps, old = die_everywhere(writer, folder, recognisable=own)
    print(f"{name}: {steps} deaths at steps on files, {old} of them left the old content", flush=True)
    die_at_random(writer, folder, seed, 25, recognisable=own)
    print(f"25 deaths at random, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
