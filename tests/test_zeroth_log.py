"""curvk.zeroth's log: replay and resume bit for bit, files, processes, and every way to be refused."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curvk
import ml_dtypes
import numpy as np
import pytest
from conftest import BACKENDS
from curvk import _store
from curvk.zeroth import ES, FZOO, AdaLeZO, LeZO, MeZO, SparseMeZO, ZOLog, choose_layers
from zeroth_logs import LAYERS, Params, contents, model, run

METHODS: dict[str, Callable[..., Any]] = {
    "mezo": lambda p, **kw: MeZO(p, **kw),
    "mezo 3 probes": lambda p, **kw: MeZO(p, n_probes=3, dist="normal_fast", **kw),
    "mezo 1 point": lambda p, **kw: MeZO(p, points=1, n_probes=2, **kw),
    "lezo": lambda p, **kw: LeZO(p, layers=LAYERS, drop=2, dist="rademacher", **kw),
    "lezo ipw": lambda p, **kw: LeZO(p, layers=LAYERS, drop=1, rescale="ipw", n_probes=2, **kw),
    "adalezo": lambda p, **kw: AdaLeZO(p, layers=LAYERS, fraction=0.5, n_probes=2, **kw),
    "adalezo lazy": lambda p, **kw: AdaLeZO(p, layers=LAYERS, fraction=0.7, interval=4, **kw),
    "sparse": lambda p, **kw: SparseMeZO(p, keep=0.6, mask_every=3, **kw),
    "fzoo": lambda p, **kw: FZOO(p, n_probes=4, **kw),
    "es": lambda p, **kw: ES(p, n_probes=5, **kw),
}
CASES = [
    (name, restore, dtype)
    for name, restore, dtype in itertools.product(
        METHODS, ("scratch", "copy", "grid"), (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
    )
    if (restore != "grid" or (dtype is np.float32 and name != "sparse"))
    and (dtype is np.float32 or (restore == "scratch" and name in ("mezo 3 probes", "adalezo", "sparse")))
]


def trained(n: int = 5, **options: Any) -> tuple[Params, Any]:
    params = model()
    opt = LeZO(params, layers=LAYERS, drop=1, lr=0.01, **options)
    run(opt, n)
    return params, opt


# ---- replay and resume ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "restore", "dtype"), CASES)
def test_replay_and_resume_are_exact(name: str, restore: str, dtype: Any, tmp_path: Path) -> None:
    """With weight decay, a changing lr and a skipped step; through a file each time."""
    options = {"lr": 0.003, "weight_decay": 0.2, "seed": 2**64 - 5, "restore": restore, "eps": 0.01}

    def train(opt: Any, until: int, after: Callable[[], None] = lambda: None) -> None:
        while len(opt.log) < until:
            opt.lr = 0.003 / (1 + len(opt.log) % 3)
            run(opt, 1, bad=5)
            after()

    params, history = model(dtype), []
    opt = METHODS[name](params, **options)
    train(opt, 13, lambda: history.append(contents(params)))
    assert len(set(map(str, history))) > 8
    assert opt.skipped == 1
    opt.log.save(tmp_path / "whole")

    log = ZOLog.load(tmp_path / "whole")
    for upto in (0, 1, 7, None):
        again = model(dtype)
        log.replay(again, upto)
        if upto != 0:
            assert contents(again) == history[-1 if upto is None else upto - 1]

    killed = model(dtype)
    first = METHODS[name](killed, **options)
    train(first, 8)
    first.log.save(tmp_path / "part")
    for weights in (model(dtype), killed):  # from the first weights, and from a checkpoint of the last
        resumed = METHODS[name](weights, **options)
        resumed.load_log(ZOLog.load(tmp_path / "part"))
        assert (len(resumed.log), resumed.skipped) == (8, 1)
        assert contents(weights) == history[7]
        train(resumed, 13)
        assert contents(weights) == history[-1]
        resumed.log.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("name", ["mezo 3 probes", "adalezo", "fzoo"])
@pytest.mark.parametrize("restore", ["scratch", "grid"])
def test_replay_on_another_backend_and_thread_count(name: str, restore: str) -> None:
    params = model()
    opt = METHODS[name](params, lr=0.003, restore=restore)
    run(opt, 4)
    for backend in BACKENDS:
        for threads in (1, 2, 3) if backend == "cpp" else (1,):
            curvk.set_num_threads(threads)
            with curvk.use_backend(backend):
                again = model()
                opt.log.replay(again)
                assert contents(again) == contents(params), (backend, threads)
                live = model()
                other = METHODS[name](live, lr=0.003, restore=restore)
                run(other, 4)
                assert contents(live) == contents(params), (backend, threads)


def test_log_says_what_happened() -> None:
    _, opt = trained(9)
    log = opt.log
    assert len(log) == 9
    assert log.coefs.shape == (9, 1)
    assert log.active.shape == (9, 3)
    assert log.active.sum(1).tolist() == [2] * 9
    assert [np.flatnonzero(row).tolist() for row in log.active] == [choose_layers(0, t, 3, 2) for t in range(9)]
    assert log.nbytes == 9 * (4 + 4 + 4 + 1)
    assert log.update(3).active == [i for i in range(7) if i not in {1: [1, 2], 2: [3], 3: [4, 5]}[_dropped(log, 3)]]
    with pytest.raises(IndexError):
        log.update(9)
    assert "9 steps" in repr(log)


def _dropped(log: ZOLog, step: int) -> int:
    return 1 + int(np.flatnonzero(~log.active[step])[0])


def test_a_log_that_was_gone_on_from_stays_as_it_was() -> None:
    _, opt = trained(4)
    before = ZOLog.from_state(opt.log.state())
    resumed = LeZO(model(), layers=LAYERS, drop=1, lr=0.01)
    resumed.load_log(before)
    run(resumed, 3)
    assert len(resumed.log) == 7
    assert len(before) == 4
    assert before.nbytes == opt.log.nbytes
    before.replay(again := model())
    opt.log.replay(other := model())
    assert contents(again) == contents(other)


def test_lists_have_names_by_position(tmp_path: Path) -> None:
    params = list(model().values())
    opt = MeZO(params, lr=0.01)
    opt.step(lambda p: sum(float(np.sum(x**2)) for x in p))
    opt.log.save(tmp_path / "log")
    again = list(model().values())
    ZOLog.load(tmp_path / "log").replay(again)
    assert [x.tobytes() for x in again] == [x.tobytes() for x in params]
    with pytest.raises(ValueError, match="no array named '6'"):
        opt.log.replay(again[:-1])


def test_a_run_without_steps_replays_to_nothing(tmp_path: Path) -> None:
    params = model()
    opt = MeZO(params, lr=0.1)
    opt.log.save(tmp_path / "log")
    before = contents(params)
    ZOLog.load(tmp_path / "log").replay(params)
    assert contents(params) == before
    resumed = MeZO(params, lr=0.1)
    resumed.load_log(ZOLog.load(tmp_path / "log"))
    run(resumed, 2)
    assert len(resumed.log) == 2


def test_weights_changed_before_the_first_step_count_as_the_first_weights() -> None:
    params = model()
    opt = MeZO(params, lr=0.01)
    with pytest.raises(ZeroDivisionError):
        opt.step(lambda p: 1 / 0)
    for name, x in model(seed=5).items():
        params[name][...] = x
    run(opt, 3)
    again = model(seed=5)
    opt.log.replay(again)
    assert contents(again) == contents(params)


# ---- what replay and resume refuse -----------------------------------------------------------------------------------


def test_replay_refuses_another_model_and_writes_nothing() -> None:
    _, opt = trained()
    base = model()
    others: list[tuple[Any, str]] = [
        ({k: v for k, v in base.items() if k != "scale"}, "no array named 'scale'"),
        (base | {"more": np.ones(2, np.float32)}, "an array 'more'"),
        (base | {"embed": np.ones((4, 9), np.float32)}, r"of shape \[4, 9\], needs \[9, 4\]"),
        (base | {"scale": np.array(0.7)}, "dtype float64, needs float32"),
        (base | {"embed": base["embed"] + np.float32(1e-7)}, "CRC-32"),
        (base | {"embed": base["embed"].astype(np.int32)}, "int32"),
        (base | {"h.2.w": base["embed"].reshape(-1)[:35].reshape(5, 7)}, "memory shared"),
        (list(base.values()), "no array named"),
    ]
    for other, text in others:
        held = other.values() if isinstance(other, dict) else other
        before = [np.asarray(x).tobytes() for x in held]
        with pytest.raises((TypeError, ValueError), match=text):
            opt.log.replay(other)
        assert [np.asarray(x).tobytes() for x in held] == before
    with pytest.raises(TypeError, match="needs a torch module, a mapping"):
        opt.log.replay(3)
    for upto in (-1, 6):
        with pytest.raises(ValueError, match=r"an integer in \[0, 6\)"):
            opt.log.replay(base, upto)


@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
def test_parameters_changed_between_steps_are_found(restore: str, tmp_path: Path) -> None:
    params, opt = trained(3, restore=restore)
    params["embed"][0, 0] += 0.25
    run(opt, 3)
    opt.log.save(tmp_path / "log")
    log = ZOLog.load(tmp_path / "log")
    start = model()
    with pytest.raises(ValueError, match="changed between steps"):
        log.replay(start)
    assert contents(start) == contents(model())
    fresh = LeZO(start, layers=LAYERS, drop=1, lr=0.01, restore=restore)
    with pytest.raises(ValueError, match="changed between steps"):
        fresh.load_log(log)
    assert contents(start) == contents(model())
    assert len(fresh.log) == 0
    run(fresh, 1)
    log.replay(start := model(), verify=False)
    assert contents(start) != contents(model())


@pytest.mark.filterwarnings("ignore:restore='naive'")
def test_naive_runs_are_not_replayed_but_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    params, opt = trained(restore="naive")
    opt.log.save(tmp_path / "log")
    log = ZOLog.load(tmp_path / "log")
    start = model()
    with pytest.raises(ValueError, match="drifts"):
        log.replay(start)
    resumed = LeZO(start, layers=LAYERS, drop=1, lr=0.01, restore="naive")
    with pytest.raises(ValueError, match="needs its last ones"):
        resumed.load_log(log)
    assert contents(start) == contents(model())
    resumed = LeZO({k: v.copy() for k, v in params.items()}, layers=LAYERS, drop=1, lr=0.01, restore="naive")
    resumed.load_log(log)
    run(opt, 3)
    run(resumed, 3)
    assert resumed.log.coefs.tobytes() == opt.log.coefs.tobytes()


def test_resume_refuses_other_settings() -> None:
    params, opt = trained()
    base: Any = {"layers": LAYERS, "drop": 1, "lr": 0.5}
    others: list[tuple[Any, str]] = [
        (LeZO(model(), **base | {"seed": 1}), "seed 0, needs 1"),
        (LeZO(model(), **base | {"eps": 0.5}), "estimator"),
        (LeZO(model(), **base | {"drop": 2}), "selection"),
        (LeZO(model(), **base | {"dist": "rademacher"}), "dist 'normal'"),
        (LeZO(model(), **base | {"restore": "grid"}), "restore 'scratch'"),
        (LeZO(model(), **base | {"n_probes": 2}), "n_probes 1"),
        (LeZO(model(), **base | {"layers": LAYERS[::-1]}), "units"),
        (LeZO(model(), **base | {"rescale": "ipw"}), "unit_factor"),
        (LeZO(model(seed=1), **base), "CRC-32"),
        (LeZO(model(np.float64), **base), "dtypes"),
        (MeZO(model(), lr=0.5), "method 'LeZO'"),
    ]
    for other, text in others:
        with pytest.raises(ValueError, match=text):
            other.load_log(opt.log)
        assert len(other.log) == 0
    with pytest.raises(TypeError, match="needs a ZOLog"):
        LeZO(model(), **base).load_log(3)
    with pytest.raises(ValueError, match="after 5 steps"):
        opt.load_log(opt.log)
    again = model()
    copy = LeZO(again, **base | {"restore": "copy"})  # its updates are those of scratch
    copy.load_log(opt.log)
    assert contents(again) == contents(params)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_damage_is_detected(tmp_path: Path) -> None:
    """Every flipped byte is refused, or is one that no reader looks at; every truncation is refused."""
    _, opt = trained(6)
    opt.log.save(tmp_path / "log")
    data = (tmp_path / "log").read_bytes()
    whole = ZOLog.load(tmp_path / "log").state()
    refused = 0
    positions = list(range(0, len(data), 7))
    for position in positions:
        broken = bytearray(data)
        broken[position] ^= 0x55
        (tmp_path / "broken").write_bytes(broken)
        try:
            found = ZOLog.load(tmp_path / "broken").state()
        except ValueError:
            refused += 1
        else:
            assert str(found) == str(whole)
    assert refused > 0.6 * len(positions)
    for length in range(0, len(data), 101):
        (tmp_path / "broken").write_bytes(data[:length])
        with pytest.raises(ValueError, match="not a whole file"):
            ZOLog.load(tmp_path / "broken")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: f["content"]["coefs"].__setitem__(0, 0.5), "checksum"),
        (lambda f: f["content"]["header"].update(seed=9), "checksum"),
        (lambda f: f["content"].update(steps=3), "checksum"),
        (lambda f: f["content"]["end"].update(digest=9), "checksum"),
        (lambda f: f.update(version=2), "version 2"),
        (lambda f: f.update(format="other"), "another kind of file"),
        (lambda f: f.pop("content"), "no content"),
    ],
)
def test_a_changed_log_is_not_loaded(change: Callable[[Any], Any], text: str, tmp_path: Path) -> None:
    """The log's own checksum, behind the archive's."""
    _, opt = trained()
    opt.log.save(tmp_path / "log")
    stored = _store.read(tmp_path / "log", "test")
    change(stored)
    _store.write(tmp_path / "log", stored)
    with pytest.raises(ValueError, match=text):
        ZOLog.load(tmp_path / "log")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["header"].pop("units"),
        lambda c: c["header"].update(stream=2),
        lambda c: c["header"].update(seed=-1),
        lambda c: c.update(steps=9),
        lambda c: c.update(coefs=c["coefs"].astype(np.float64)),
        lambda c: c.pop("loss"),
    ],
)
def test_a_log_that_makes_no_sense_is_not_loaded(change: Callable[[Any], Any], tmp_path: Path) -> None:
    from curvk.zeroth._log import _checksum

    _, opt = trained()
    opt.log.save(tmp_path / "log")
    stored = _store.read(tmp_path / "log", "test")
    change(stored["content"])
    stored["checksum"] = _checksum(stored["content"])
    _store.write(tmp_path / "log", stored)
    with pytest.raises(ValueError, match=r"needs what ZOLog\.save writes"):
        ZOLog.load(tmp_path / "log")


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, opt = trained()
    opt.log.save(tmp_path / "log")
    before = (tmp_path / "log").read_bytes()
    run(opt, 2)

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half a file")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(_store.np, "savez", half)
        with pytest.raises(OSError, match="disk full"):
            opt.log.save(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["log"]
    with pytest.raises(FileNotFoundError):
        ZOLog.load(tmp_path / "none")


def test_the_file_is_plain(tmp_path: Path) -> None:
    """Arrays and JSON, nothing to execute; a few bytes a step."""
    params = {"w": np.ones(4, np.float32)}
    opt = MeZO(params, lr=1e-3)
    run(opt, 1000)
    opt.log.save(tmp_path / "log")
    with zipfile.ZipFile(tmp_path / "log") as archive:
        assert all(name.endswith(".npy") for name in archive.namelist())
        meta = np.lib.format.read_array(archive.open("meta.npy"), allow_pickle=False)
    assert json.loads(meta.tobytes())["content"]["header"]["method"] == "MeZO"
    assert opt.log.nbytes == 12_000
    assert (tmp_path / "log").stat().st_size < 12_000 + 6_000
