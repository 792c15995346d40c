"""Processes that share a run, and bad input to logs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from curvk.zeroth import ES, FZOO, AdaLeZO, LeZO, MeZO, SparseMeZO, choose_layers
from curvk.zeroth import _stream as stream
from curvk.zeroth._estimate import Central, Forward
from curvk.zeroth._method import Method, Processes
from curvk.zeroth._restore import Scratch
from curvk.zeroth._select import Everything
from curvk.zeroth._update import Noise, Tensors
from zeroth_logs import LAYERS, Params, bowl, contents, model, run

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
