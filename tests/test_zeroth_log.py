"""curvk.zeroth's log: replay and resume bit for bit, files, processes, and every way to be refused."""

from __future__ import annotations

import itertools
import json
import math
import threading
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
from curvk.zeroth import _stream as stream
from curvk.zeroth._estimate import Central, Forward
from curvk.zeroth._method import Method, Processes
from curvk.zeroth._restore import Scratch
from curvk.zeroth._select import Everything
from curvk.zeroth._update import Noise, Tensors

Params = dict[str, Any]
LAYERS = [["h.0.w", "h.0.bias"], ["h.1.w"], ["h.2.w", "h.2.bias"]]
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


def model(dtype: Any = np.float32, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    shapes = {"embed": (9, 4), "h.0.w": (33, 2), "h.0.bias": (2,), "h.1.w": (40,), "h.2.w": (5, 7), "h.2.bias": (3,)}
    params = {name: np.array(0.5 * rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    return params | {"h.1.w": params["h.1.w"][::-2], "scale": np.array(0.7, dtype)}


def bowl(params: Params) -> float:
    return sum(float(np.sum((np.asarray(x).astype(np.float64) - 0.1 * k) ** 2)) for k, x in enumerate(params.values()))


def contents(params: Params) -> dict[str, bytes]:
    return {name: np.asarray(x).tobytes() for name, x in params.items()}


def run(opt: Any, n: int, bad: int = -1) -> None:
    """Takes n steps; the loss of step `bad` is not finite."""
    for _ in range(n):
        nan = len(opt.log) == bad
        opt.step(lambda p, nan=nan: math.nan if nan else bowl(p))


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


# ---- processes ------------------------------------------------------------------------------------------------------


class Exchange:
    """Threads that play processes: each gather waits for all."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=30)
        self.shares: list[list[float]] = [[] for _ in range(world)]
        self.numbers = 0

    def gather(self, rank: int) -> Callable[[list[float]], list[float]]:
        def gather(mine: list[float]) -> list[float]:
            self.shares[rank] = list(mine)
            self.numbers += len(mine)
            self.barrier.wait()
            joined = [x for share in self.shares for x in share]
            self.barrier.wait()
            return joined

        return gather


def together(world: int, parallel: str, work: Callable[[int, Method, Params], Any], **options: Any) -> list[Any]:
    """What `work` gives (or raises) in each of `world` threads, each with a model of its own."""
    exchange, results = Exchange(world), [None] * world

    def one(rank: int) -> None:
        params = options.get("models", [model() for _ in range(world)])[rank]
        tensors = Tensors(list(params), list(params.values()), "test")
        processes = Processes(exchange.gather(rank), rank, world, parallel)
        rule = options.get("estimator", Central)(0.01, options.get("n_probes", 4))
        method = Method(Scratch(tensors, Noise(5, "normal")), rule, Everything(), name="test", processes=processes)
        try:
            results[rank] = work(rank, method, params)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [*results, exchange]


def evaluate(method: Method, shift: float = 0.0) -> Callable[[Any], float]:
    return lambda arrays: bowl(dict(zip(method.tensors.names, arrays, strict=True))) * (1 + shift)


@pytest.mark.parametrize("estimator", [Central, Forward])
@pytest.mark.parametrize("world", [2, 4])
def test_probes_shared_by_processes_equal_one_process(world: int, estimator: Any) -> None:
    def work(rank: int, method: Method, params: Params) -> Any:
        losses = [method.step(evaluate(method), lr=0.01, weight_decay=0.1) for _ in range(6)]
        return losses, contents(params), method.log

    *results, exchange = together(world, "probes", work, estimator=estimator)
    alone = model()
    tensors = Tensors(list(alone), list(alone.values()), "test")
    method = Method(Scratch(tensors, Noise(5, "normal")), estimator(0.01, 4), Everything(), name="test")
    losses = [method.step(evaluate(method), lr=0.01, weight_decay=0.1) for _ in range(6)]
    for own, weights, log in results:
        assert own == losses
        assert weights == contents(alone)
        assert log.coefs.tobytes() == method.log.coefs.tobytes()
        log.replay(model())
    sides = 2 if estimator is Central else 1
    extra = world * (1 if estimator is Central else 2)  # the check, and the loss at theta
    assert exchange.numbers == 6 * (4 * sides + extra)  # scalars only


def test_data_shared_by_processes_is_the_mean_loss() -> None:
    shifts = [0.0, 0.5, -0.25]

    def work(rank: int, method: Method, params: Params) -> Any:
        return [method.step(evaluate(method, shifts[rank]), lr=0.01) for _ in range(5)], contents(params)

    *results, _ = together(3, "data", work)
    alone = model()
    tensors = Tensors(list(alone), list(alone.values()), "test")
    method = Method(Scratch(tensors, Noise(5, "normal")), Central(0.01, 4), Everything(), name="test")

    def mean(arrays: Any) -> float:
        return math.fsum(evaluate(method, shift)(arrays) / 1 for shift in shifts) / 3

    losses = [method.step(mean, lr=0.01) for _ in range(5)]
    assert results[0] == results[1] == results[2]
    assert results[0] == (losses, contents(alone))


def test_processes_that_disagree_all_stop() -> None:
    def work(rank: int, method: Method, params: Params) -> Any:
        method.step(evaluate(method), lr=0.01)

    models = [model(), model()]
    models[1]["scale"][...] = 0.5
    before = [contents(m) for m in models]
    *results, _ = together(2, "probes", work, models=models)
    assert all(isinstance(r, ValueError) and "processes 0 and 1" in str(r) for r in results)
    assert [contents(m) for m in models] == before

    def drift(rank: int, method: Method, params: Params) -> Any:
        method.step(evaluate(method), lr=0.01 * (1 + rank))  # different lr: the next step notices
        method.step(evaluate(method), lr=0.01)

    *results, _ = together(2, "data", drift)
    assert all(isinstance(r, ValueError) for r in results)


def test_a_closure_that_raises_in_one_process_stops_all() -> None:
    models = [model(), model()]

    def work(rank: int, method: Method, params: Params) -> Any:
        method.step(evaluate(method), lr=0.01)
        before = contents(params)
        try:
            method.step(evaluate(method) if rank else (lambda arrays: 1 // 0), lr=0.01)
        except (RuntimeError, ZeroDivisionError) as error:
            assert contents(params) == before
            return error, method.step(evaluate(method), lr=0.01), contents(params)  # and they may go on

    *results, _ = together(2, "probes", work, models=models)
    assert isinstance(results[0][0], ZeroDivisionError)
    assert isinstance(results[1][0], RuntimeError)
    assert "process 0 raised" in str(results[1][0])
    assert results[0][1:] == results[1][1:]


def test_a_loss_that_is_not_finite_in_one_process_skips_all() -> None:
    def work(rank: int, method: Method, params: Params) -> Any:
        before = contents(params)
        loss = method.step((lambda arrays: math.inf) if rank == 1 else evaluate(method), lr=0.01)
        return loss, method.skipped, contents(params) == before

    for parallel in ("probes", "data"):
        *results, _ = together(2, parallel, work)
        assert results == [(math.inf, 1, True)] * 2


def test_what_processes_refuse() -> None:
    params = model()
    tensors = Tensors(list(params), list(params.values()), "test")
    scheme = Scratch(tensors, Noise(5, "normal"))
    with pytest.raises(ValueError, match="needs a multiple of the 2 processes"):
        Method(scheme, Central(0.1, 3), Everything(), name="test", processes=Processes(list, 0, 2))
    with pytest.raises(ValueError, match="'probes', 'data'"):
        Method(scheme, Central(0.1, 2), Everything(), name="test", processes=Processes(list, 0, 2, "model"))
    short = Method(scheme, Central(0.1, 2), Everything(), name="test", processes=Processes(list, 0, 2))
    before = contents(params)
    with pytest.raises(ValueError, match="needs 3 from each of 2"):
        short.step(evaluate(short), lr=0.1)
    assert contents(params) == before


# ---- bad input ------------------------------------------------------------------------------------------------------


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (MeZO, {"lr": -1.0}, ValueError, "'lr': got -1.0, needs a finite number >= 0"),
    (MeZO, {"lr": math.nan}, ValueError, "'lr'"),
    (MeZO, {"lr": "1"}, TypeError, "'lr'"),
    (MeZO, {"eps": 0.0}, ValueError, "'eps': got 0.0, needs a finite number > 0"),
    (MeZO, {"eps": -1e-3}, ValueError, "'eps'"),
    (MeZO, {"eps": math.inf}, ValueError, "'eps'"),
    (MeZO, {"eps": 1e-50}, ValueError, "float32's normal range"),
    (MeZO, {"eps": 1e39}, ValueError, "float32's normal range"),
    (MeZO, {"eps": None}, TypeError, "'eps'"),
    (MeZO, {"seed": -1}, ValueError, r"'seed': got -1, needs an integer in \[0, 2\^64\)"),
    (MeZO, {"seed": 2**64}, ValueError, "'seed'"),
    (MeZO, {"seed": 1.5}, TypeError, "'seed'"),
    (MeZO, {"weight_decay": -0.1}, ValueError, "'weight_decay'"),
    (MeZO, {"restore": "none"}, ValueError, "'scratch', 'copy', 'grid', 'naive'"),
    (MeZO, {"dist": "uniform"}, ValueError, "'normal', 'normal_fast', 'rademacher'"),
    (MeZO, {"n_probes": 0}, ValueError, "'n_probes'"),
    (MeZO, {"n_probes": 2.0}, TypeError, "'n_probes'"),
    (MeZO, {"points": 3}, ValueError, "'points'"),
    (MeZO, {"compat": "mezo"}, ValueError, "needs 'naive' with compat='mezo'"),
    (MeZO, {"compat": "mezo", "restore": "naive", "n_probes": 2}, ValueError, "one probe"),
    (LeZO, {"layers": LAYERS, "drop": -1}, ValueError, "'drop': got -1, needs an integer from 0 to the 3 layers"),
    (LeZO, {"layers": LAYERS, "drop": 4}, ValueError, "'drop': got 4"),
    (LeZO, {"layers": LAYERS, "drop": 1.5}, ValueError, "'drop': got 1.5"),
    (LeZO, {"layers": LAYERS, "drop": -0.5}, ValueError, "'drop'"),
    (LeZO, {"layers": LAYERS, "drop": True}, TypeError, "'drop'"),
    (LeZO, {"layers": LAYERS, "drop": "half"}, TypeError, "'drop'"),
    (LeZO, {"layers": []}, ValueError, "no layer"),
    (LeZO, {"layers": [["h.0.w"], ["nope"]]}, ValueError, "'nope'"),
    (LeZO, {"layers": [["h.0.w"], [99]]}, ValueError, "99"),
    (LeZO, {"layers": [["h.0.w"], ["h.0.w"]]}, ValueError, "both in layer 0 and in layer 1"),
    (LeZO, {"layers": ["h.0.w"]}, TypeError, "a list of layers"),
    (LeZO, {"layers": LAYERS, "rescale": "yes"}, ValueError, "'rescale'"),
    (AdaLeZO, {"layers": LAYERS, "fraction": 0.0}, ValueError, "'fraction'"),
    (AdaLeZO, {"layers": LAYERS, "tau": 0.0}, ValueError, "'tau'"),
    (AdaLeZO, {"layers": LAYERS, "gamma": 1.5}, ValueError, "'gamma'"),
    (AdaLeZO, {"layers": LAYERS, "alpha": 0.0}, ValueError, "'alpha'"),
    (AdaLeZO, {"layers": LAYERS, "interval": 0}, ValueError, "'interval'"),
    (AdaLeZO, {"layers": LAYERS, "clip": -1.0}, ValueError, "'clip'"),
    (SparseMeZO, {"keep": 0.0}, ValueError, "'keep'"),
    (SparseMeZO, {"mask_every": 0}, ValueError, "'mask_every'"),
    (SparseMeZO, {"restore": "grid"}, ValueError, "needs 'scratch' or 'copy'"),
    (SparseMeZO, {"restore": "naive"}, ValueError, "needs 'scratch' or 'copy'"),
    (FZOO, {"n_probes": 1}, ValueError, "'n_probes'"),
    (ES, {"n_probes": 1}, ValueError, "'n_probes'"),
]


@pytest.mark.parametrize(("kind", "options", "error", "text"), BAD)
def test_bad_settings(kind: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    params = model()
    before = contents(params)
    with pytest.raises(error, match=text) as caught:
        kind(params, **{"lr": 0.1} | options)
    assert str(caught.value).startswith(kind.__name__ + ": ")
    assert contents(params) == before


def test_bad_params() -> None:
    x = np.ones((4, 4), np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    cases: list[tuple[Any, type[Exception], str]] = [
        (x, TypeError, "'params': got ndarray"),
        ([], ValueError, "no array"),
        ({}, ValueError, "no array"),
        ([[1.0, 2.0]], TypeError, "list"),
        ({"w": x.astype(np.int64)}, TypeError, r"params\['w'\]': got int64"),
        ({"w": frozen}, BufferError, "read-only"),
        ({"a": x, "b": x[1:]}, ValueError, "memory shared"),
        ({1: x}, TypeError, "names"),
        ({"w": np.broadcast_to(x[:1], (4, 4))}, BufferError, "read-only"),
    ]
    for params, error, text in cases:
        with pytest.raises(error, match=text) as caught:
            MeZO(params, lr=0.1)
        assert str(caught.value).startswith("MeZO: ")
    with pytest.raises(ValueError, match="the grid is for float32"):
        MeZO([np.ones(2)], lr=0.1, restore="grid")


def test_names_that_share_a_tensor_word(monkeypatch: pytest.MonkeyPatch) -> None:
    real = stream.noise.tensor_word
    monkeypatch.setattr(stream.noise, "tensor_word", lambda name, purpose="probe": real(name[:1], purpose))
    with pytest.raises(ValueError, match="'ab' and 'ac' with one tensor word"):
        MeZO({"ab": np.ones(2), "b": np.ones(2), "ac": np.ones(2)}, lr=0.1)


@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, "NoneType"),
        (np.ones(2), r"shape \(2,\)"),
        (np.ones(0), r"shape \(0,\)"),
        ("1.0", "str"),
        (1j, "complex"),
        (np.complex64(1), "complex"),
        (True, "bool"),
        ([1.0], "list"),
    ],
)
def test_closures_that_return_no_scalar(restore: str, result: Any, text: str) -> None:
    params = model()
    opt = MeZO(params, lr=0.1, restore=restore)
    run(opt, 1)
    before = contents(params)
    with pytest.raises(TypeError, match=text) as caught:
        opt.step(lambda p: result)
    assert str(caught.value).startswith("MeZO.step: argument 'closure': ")
    assert contents(params) == before
    assert len(opt.log) == 1


@pytest.mark.parametrize(
    "result", [2, 2.0, np.float16(2), np.float64(2), np.array(2.0), np.array([[2.0]]), np.int32(2)]
)
def test_closures_that_return_a_scalar(result: Any) -> None:
    assert MeZO([np.ones(2)], lr=0.1).step(lambda p: result) == 2.0


def test_torch_scalars_and_tensors() -> None:
    torch = pytest.importorskip("torch")
    weights = torch.ones(3, dtype=torch.bfloat16)
    linear = torch.nn.Parameter(torch.ones(4, 2))
    opt = MeZO({"w": weights, "linear": linear}, lr=0.1)

    def loss(p: Any) -> Any:
        assert isinstance(p["w"], torch.Tensor)
        assert p["w"].dtype == torch.bfloat16
        return (p["w"].float().sum() + (p["linear"] @ torch.ones(2)).sum()).requires_grad_(True)

    versions = weights._version, linear._version
    for _ in range(3):
        assert isinstance(opt.step(loss), float)
    assert (weights != 1).any()
    assert weights._version > versions[0]
    assert linear._version > versions[1]
    again = {"w": torch.ones(3, dtype=torch.bfloat16), "linear": torch.ones(4, 2)}
    opt.log.replay(again)
    assert torch.equal(again["w"], weights)
    assert torch.equal(again["linear"], linear.detach())


def test_a_module_replays_by_its_parameters() -> None:
    torch = pytest.importorskip("torch")

    def net() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))

    trained_net, fresh = net(), net()
    names = [n for n, _ in trained_net.named_parameters() if n.startswith("1.")]  # the first layer is frozen
    opt = MeZO({n: p for n, p in trained_net.named_parameters() if n in names}, lr=0.05)
    for _ in range(3):
        opt.step(lambda p: sum(float((x.detach() ** 2).sum()) for x in p.values()))
    opt.log.replay(fresh)
    for (name, a), b in zip(trained_net.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(ValueError, match="no array named"):
        opt.log.replay(torch.nn.Linear(2, 2))


def test_draws_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    params = model()
    opt = MeZO(params, lr=0.1, n_probes=3)
    monkeypatch.setattr("curvk.zeroth._method.DRAWS", 7)
    run(opt, 2)
    before = contents(params)
    with pytest.raises(ValueError, match="needs fewer than 2\\^32 probes in a run; start a run with another seed"):
        run(opt, 1)
    assert contents(params) == before
    assert len(opt.log) == 2


def test_bad_steps() -> None:
    params = model()
    before = contents(params)
    opt = MeZO(params, lr=0.5)
    for rows, error, text in [
        ({"embed": [9]}, ValueError, r"rows of an array of shape \(9, 4\)"),
        ({"embed": [-1]}, ValueError, "rows of an array"),
        ({"embed": [0.5]}, TypeError, "integers"),
        ({"scale": [0]}, ValueError, "shape"),
        ({"nope": [0]}, ValueError, "'nope'"),
    ]:
        with pytest.raises(error, match=text):
            opt.step(bowl, rows=rows)
    opt.weight_decay = 3.0
    with pytest.raises(ValueError, match=r"at most 1 / lr = 2\.0"):
        opt.step(bowl)
    opt.weight_decay, opt.lr = 0.0, -1.0
    with pytest.raises(ValueError, match="'lr'"):
        opt.step(bowl)
    assert contents(params) == before
    assert len(opt.log) == 0
    grid = MeZO(params, lr=0.5, restore="grid")
    with pytest.raises(ValueError, match="rows with restore='grid'"):
        grid.step(bowl, rows={"embed": [0]})
    params["embed"][0, 0] = np.nan
    before = contents(params)
    with pytest.raises(ValueError, match="needs finite weights"):
        grid.step(bowl)
    assert contents(params) == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"seed": -1}, ValueError),
        ({"step": 2**32}, ValueError),
        ({"keep": 7}, ValueError),
        ({"keep": -1}, ValueError),
        ({"n_layers": -1}, ValueError),
        ({"seed": 0.5}, TypeError),
        ({"keep": True}, TypeError),
    ],
)
def test_choose_layers_refuses(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=f"choose_layers: argument '{next(iter(options))}'"):
        choose_layers(**{"seed": 0, "step": 0, "n_layers": 6, "keep": 2} | options)
