"""LOZO in curvk.zeroth: low-rank noise against its formula, lazy updates against eager ones, replay bit for bit."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curvk
import ml_dtypes
import numpy as np
import pytest
from conftest import BACKENDS
from curvk import _store
from curvk.kernels import noise
from curvk.zeroth import LOZO, MeZO, ZOLog
from curvk.zeroth import _log as log_module
from curvk.zeroth._update import Noise, Tensors, axpy

Params = dict[str, Any]
Reals = np.ndarray[Any, np.dtype[np.float64]]
SEED = 2**63 + 17
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    print(f"seed {SEED}")  # shown where a test fails


def model(dtype: Any = np.float32) -> Params:
    """Matrices plain, transposed, strided, of 4 dimensions, named so as not to decay, empty; a vector, a scalar."""
    rng = np.random.default_rng(5)
    base = {
        "embed": rng.standard_normal((7, 5)),
        "turned": rng.standard_normal((5, 4)).T,
        "strided": rng.standard_normal((8, 6)),
        "filters": rng.standard_normal((3, 2, 4, 2)),
        "bias_table": rng.standard_normal((4, 3)),
        "vector": rng.standard_normal(9),
        "scalar": rng.standard_normal(()),
        "none": np.empty((0, 3)),
    }
    params = {name: np.array(0.5 * x, dtype, order="K") for name, x in base.items()}
    return params | {"strided": params["strided"][::-2, 1::2]}


def wide(x: Any) -> Reals:
    return np.asarray(x).astype(np.float64)


def bowl(params: Params) -> float:
    return sum(float(np.sum((wide(x) - 0.1 * k) ** 2)) for k, x in enumerate(params.values()))


def contents(params: Params) -> dict[str, bytes]:
    return {name: np.asarray(x).tobytes() for name, x in params.items()}


def copied(params: Params) -> Params:
    return {name: np.asarray(x).copy(order="K") for name, x in params.items()}


def draw_of(shape: Any, word: int, draw: int, dist: str = "normal") -> Reals:
    """Float32 noise; tests/test_noise.py holds it against its definition."""
    return wide(noise.fill(np.empty(shape, np.float32), seed=SEED, draw=draw, tensor=word, dist=dist))


def z_of(name: str, shape: tuple[int, ...], draw: int, rank: int, period: int, dist: str = "normal") -> Reals:
    """The formula: U V^T / sqrt(rank) with V of the draw's period; independent elements for vectors."""
    if len(shape) < 2:
        return draw_of(shape, noise.tensor_word(name), draw, dist)
    m, n = shape[0], math.prod(shape[1:])
    u = draw_of((m, rank), noise.tensor_word(name), draw, dist)
    v = draw_of((n, rank), 7 << 28 | noise.tensor_word(name), draw // period, dist)
    return np.einsum("ia,ja->ij", u, v).reshape(shape) / math.sqrt(rank)


def fixed(seed: int = 1) -> Callable[[Any], float]:
    """Losses that do not depend on the weights, so that runs have the same coefficients whatever their rounding."""
    rng = np.random.default_rng(seed)
    return lambda p: float(rng.standard_normal())


# ---- the noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", ["scratch", "copy", "lazy"])
@pytest.mark.parametrize(("rank", "dist"), [(1, "normal"), (2, "normal_fast"), (5, "rademacher")])
def test_probes_are_the_formulas(rank: int, dist: str, restore: str) -> None:
    """Weights of zero and eps = 1 show z itself; two periods of three steps of two probes."""
    params = {name: np.zeros_like(x, dtype=np.float64) for name, x in model().items()}
    seen: list[Params] = []
    options: Any = {"lr": 0.0, "eps": 1.0, "seed": SEED, "dist": dist, "restore": restore}
    opt = LOZO(params, rank=rank, interval=3, n_probes=2, **options)
    for _ in range(6):
        opt.step(lambda p: seen.append(copied(p)) or 0.0)
    places = [(draw, sign) for draw in range(12) for sign in (1, -1)]
    for shown, (draw, sign) in zip(seen, places, strict=True):
        for name, x in shown.items():
            z = z_of(name, x.shape, draw, rank, 6, dist)
            np.testing.assert_allclose(x, sign * z, rtol=1e-14, atol=1e-14, err_msg=f"{name}, draw {draw}")


@pytest.mark.parametrize("rank", [1, 3])
def test_float32_bits_follow_from_a_fixed_order(rank: int) -> None:
    """Each rounding written out: V / sqrt(rank), the coefficient times U, products added in order, decay, sum."""
    theta = np.random.default_rng(3).standard_normal((6, 11)).astype(np.float32)
    before = theta.copy()
    opt = LOZO({"w": theta}, lr=0.25, rank=rank, seed=SEED, weight_decay=0.5)
    opt.step(fixed())
    f, word = np.float32, noise.tensor_word("w")
    u, v = draw_of((6, rank), word, 0).astype(f), draw_of((11, rank), word | 7 << 28, 0).astype(f)
    coef = opt.log.coefs[0, 0]
    for i, j in np.ndindex(6, 11):
        total = f(0)
        for k in range(rank):
            product = f(f(coef * u[i, k]) * f(v[j, k] * f(1 / math.sqrt(rank))))
            total = product if k == 0 else f(total + product)
        assert theta[i, j] == f(f(before[i, j] * f(0.875)) + total)


@pytest.mark.parametrize("dist", ["normal", "rademacher"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_estimate_of_a_linear_loss_is_unbiased(rank: int, dist: str) -> None:
    """E[(z . G) z] = G, within 5 standard errors from the exact variance (Isserlis' theorem, per column of factors)."""
    count, shape = 12_000, (3, 4)
    g = np.random.default_rng(7).standard_normal(shape)
    z, x = np.empty((count, *shape)), np.zeros(shape)
    tensors, stream = Tensors(["w"], [x], "test"), Noise(SEED, dist, rank, 1)
    for t in range(count):
        axpy(tensors, stream, [0], [t], [1.0], out={0: z[t]})
    estimate = np.einsum("tij,ij,tkl->kl", z, g, z, optimize=True) / count
    whole, rows, columns = (g**2).sum(), (g**2).sum(1, keepdims=True), (g**2).sum(0, keepdims=True)
    same = whole if dist == "rademacher" else whole + 2 * rows + 2 * columns + 4 * g**2
    second = (rank - 1) / rank * (whole + 2 * g**2) + same / rank
    error = np.sqrt((second - g**2) / count)
    assert error.max() < 0.1 * np.abs(g).max()
    assert (np.abs(estimate - g) < 5 * error).all(), (estimate - g) / error
    assert z.var() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_learning_rates_of_paper_and_code_convert(rank: int) -> None:
    """The published steps with our factors, in NumPy: probes of eps U V^T; the paper divides the estimate by rank."""
    rng = np.random.default_rng(2)
    start, target = rng.standard_normal((2, 6, 5))
    loss = lambda w: float(np.sum((w - target) ** 2) + np.sum(np.sin(w)))  # noqa: E731
    eps, lr = 1e-2, 1e-2
    word = noise.tensor_word("w")
    for divisor, ours in ((rank, lr), (1, lr * rank)):  # the paper; its code
        w = start.copy()
        for step in range(6):
            u, v = draw_of((6, rank), word, step), draw_of((5, rank), word | 7 << 28, step // 4)
            g = (loss(w + eps * u @ v.T) - loss(w - eps * u @ v.T)) / (2 * eps)
            w -= lr * g * (u @ v.T) / divisor
        mine = {"w": start.copy()}
        opt = LOZO(mine, lr=ours, eps=eps * math.sqrt(rank), rank=rank, interval=4, seed=SEED)
        for _ in range(6):
            opt.step(lambda p: loss(p["w"]))
        np.testing.assert_allclose(mine["w"], w, rtol=2e-6, atol=2e-6)  # eps and coefficients are float32
        assert np.abs(w - start).max() > 0.05


def test_vectors_and_scalars_have_mezos_noise() -> None:
    arrays: Params = {"v": np.ones(9, np.float32), "s": np.array(1, np.float32)}
    twin = copied(arrays)
    for kind, params in ((LOZO, arrays), (MeZO, twin)):
        opt = kind(params, lr=0.01, weight_decay=0.1, seed=SEED)
        for _ in range(5):
            opt.step(bowl)
    assert contents(arrays) == contents(twin)


# ---- lazy against eager ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.4])
@pytest.mark.parametrize(("rank", "n_probes"), [(1, 1), (2, 3)])
def test_lazy_is_eager_to_rounding(rank: int, n_probes: int, weight_decay: float, dtype: str) -> None:
    """Displaced weights of every probe and the weights at the end, over three periods and a skipped step."""
    runs = []
    for restore in ("scratch", "lazy"):
        params, seen, losses = model(DTYPES[dtype]), [], fixed()
        options: Any = {"lr": 0.05, "eps": 1e-2, "weight_decay": weight_decay, "seed": SEED, "restore": restore}
        opt = LOZO(params, rank=rank, interval=4, n_probes=n_probes, **options)

        def closure(p: Params, seen: Any = seen, losses: Any = losses, opt: Any = opt) -> float:
            seen.append({name: wide(x) for name, x in p.items()})
            return math.nan if len(opt.log) == 5 else losses(p)

        for _ in range(14):
            opt.step(closure)
        lagging = copied(params)
        opt.fold_()
        runs.append((opt, {name: wide(x) for name, x in params.items()}, seen, lagging))
    (eager, weights, shown, _), (lazy, others, views, lagging) = runs
    np.testing.assert_array_equal(eager.log.coefs, lazy.log.coefs)
    assert eager.log.folds == []
    assert lazy.log.folds == [14]
    unit = np.finfo(DTYPES[dtype]).eps
    for name, w in weights.items():
        size = np.abs(w).max(initial=1.0)
        np.testing.assert_allclose(others[name], w, rtol=0, atol=30 * unit * size, err_msg=name)
        for a, b in zip(shown, views, strict=True):
            np.testing.assert_allclose(b[name], a[name], rtol=0, atol=30 * unit * size, err_msg=name)
        if w.ndim > 1 and w.size:
            assert np.abs(wide(lagging[name]) - w).max() > 1e4 * unit  # the arrays did lag, by two steps


def test_lazy_writes_matrices_once_a_period_and_vectors_at_once() -> None:
    params = model()
    opt = LOZO(params, lr=0.01, interval=4, restore="lazy", seed=SEED)
    before = contents(params)
    for step in range(1, 13):
        opt.step(lambda p, step=step: math.nan if step == 8 else bowl(p))  # a skipped step may end a period
        now = contents(params)
        for name, x in params.items():
            moved = now[name] != before[name]
            assert moved == ((step % 4 == 0 or x.ndim < 2) and x.size > 0 and not (step == 8 and x.ndim < 2)), name
        before = now


def test_small_updates_of_16_bit_weights_add_up() -> None:
    """Each step moves bfloat16 weights of 1 by 0.001, less than half of their unit; together 200 steps count."""
    results = {}
    for restore in ("scratch", "lazy"):
        params = {"w": np.ones((16, 8), ml_dtypes.bfloat16)}
        opt = LOZO(params, lr=1e-5, eps=1e-2, interval=200, rank=1, seed=SEED, restore=restore, dist="rademacher")
        losses = itertools.cycle([1.0, -1.0])  # g = 100
        for _ in range(200):
            opt.step(lambda p, losses=losses: next(losses))
        results[restore] = wide(params["w"])
    truth = 1 - 1e-3 * sum(z_of("w", (16, 8), t, 1, 200, "rademacher") for t in range(200))
    assert (results["scratch"] == 1).all()
    assert np.abs(results["lazy"] - truth).max() < 1.01 * 2**-8  # one rounding
    assert np.abs(truth - 1).max() > 2**-6


@pytest.mark.parametrize("restore", ["scratch", "lazy"])
def test_it_learns(restore: str) -> None:
    """Least squares with a matrix of weights: 60 inputs of 12 numbers, 5 outputs."""
    rng = np.random.default_rng(4)
    x, truth = rng.standard_normal((60, 12)), rng.standard_normal((12, 5))
    params = {"w": np.zeros((12, 5), np.float32), "b": np.full(5, 0.5, np.float32)}
    loss = lambda p: float(np.mean((x @ wide(p["w"]) + wide(p["b"]) - x @ truth) ** 2))  # noqa: E731
    opt = LOZO(params, lr=0.02, rank=2, interval=5, n_probes=4, restore=restore, seed=SEED, dist="rademacher")
    losses = [opt.step(loss) for _ in range(900)]
    opt.fold_()
    assert losses[0] > 5
    assert loss(params) < 0.02, losses[::50]


# ---- replay and resume -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("restore", ["scratch", "copy", "lazy"])
@pytest.mark.parametrize("folds", [(), (6, 7, 13)])
def test_replay_and_resume_are_exact(folds: tuple[int, ...], restore: str, dtype: str, tmp_path: Path) -> None:
    """Killed within a period, folded by hand within and at the end of periods, a skipped step; through files."""

    def made(params: Params) -> LOZO:
        options: Any = {"lr": 0.003, "weight_decay": 0.2, "seed": SEED, "restore": restore, "eps": 0.01}
        return LOZO(params, rank=2, interval=5, n_probes=2, **options)

    def train(opt: LOZO, until: int, after: Callable[[], None] = lambda: None) -> None:
        while len(opt.log) < until:
            bad = len(opt.log) == 11
            opt.lr = 0.003 / (1 + len(opt.log) % 3)
            opt.step(lambda p, bad=bad: math.nan if bad else bowl(p))
            if len(opt.log) in folds:
                opt.fold_()
            after()

    params, history = model(DTYPES[dtype]), []
    opt = made(params)
    train(opt, 13, lambda: history.append(contents(params)))
    assert opt.log.folds == (list(folds) if restore == "lazy" else [])
    opt.log.save(tmp_path / "whole")
    log = ZOLog.load(tmp_path / "whole")
    assert log.crc == opt.log.crc
    for upto in range(1, 14):
        again = model(DTYPES[dtype])
        log.replay(again, upto)
        assert contents(again) == history[upto - 1]

    for stop in (3, 5, 6, 8):
        killed = model(DTYPES[dtype])
        first = made(killed)
        train(first, stop)
        first.log.save(tmp_path / "part")
        for weights in (model(DTYPES[dtype]), killed):  # from the first weights, and from a checkpoint of the last
            resumed = made(weights)
            resumed.load_log(ZOLog.load(tmp_path / "part"))
            assert contents(weights) == history[stop - 1]
            train(resumed, 13)
            assert contents(weights) == history[-1]
            resumed.log.save(tmp_path / "again")
            assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()

    folded = model(DTYPES[dtype])
    log.replay(folded, fold=True)
    opt.fold_()
    assert contents(folded) == contents(params)
    assert (contents(folded) == history[-1]) == (restore != "lazy" or 13 in folds)


def test_matrices_alone_that_were_not_folded_yet_resume() -> None:
    """The arrays are still the first ones; what the log knows is all there is."""
    first, again = ({"w": np.ones((5, 4), np.float32)} for _ in range(2))
    runs = [LOZO(p, lr=0.01, interval=8, restore="lazy", seed=SEED) for p in (first, again)]
    for _ in range(5):
        runs[0].step(bowl)
    assert contents(first) == contents(again)
    runs[1].load_log(ZOLog.from_state(runs[0].log.state()))
    for opt in runs:
        opt.step(bowl)
        opt.fold_()
    assert contents(first) == contents(again)
    assert runs[0].log.crc == runs[1].log.crc


@pytest.mark.parametrize("restore", ["scratch", "lazy"])
def test_the_same_bits_on_every_backend_and_thread_count(restore: str) -> None:
    def run() -> Params:
        params = model()
        opt = LOZO(params, lr=0.003, interval=3, n_probes=5, restore=restore, seed=SEED)
        for _ in range(7):
            opt.step(bowl)
        opt.fold_()
        return params

    truth = contents(run())
    for backend in BACKENDS:
        for threads in (1, 3) if backend == "cpp" else (1,):
            curvk.set_num_threads(threads)
            with curvk.use_backend(backend):
                assert contents(run()) == truth, (backend, threads)


def test_scratch_is_copy_bit_for_bit_and_a_large_matrix_is_written_in_blocks() -> None:
    results, size = [], np.getbufsize()
    for restore in ("scratch", "copy"):
        params = {"w": np.linspace(-1, 1, 300 * 700, dtype=np.float32).reshape(300, 700)}
        before = params["w"].astype(np.float64)
        opt = LOZO(params, lr=0.1, seed=SEED, restore=restore)
        opt.step(fixed())
        results.append(contents(params))
        want = before + float(opt.log.coefs[0, 0]) * z_of("w", (300, 700), 0, 2, 50)
        np.testing.assert_allclose(params["w"], want, rtol=1e-5, atol=1e-4 * np.abs(opt.log.coefs[0, 0]))
    assert results[0] == results[1]
    assert np.getbufsize() == size


@pytest.mark.parametrize("restore", ["scratch", "copy", "lazy"])
def test_a_closure_that_raises_leaves_everything_as_it_was(restore: str) -> None:
    params, twin = model(), model()
    runs = [LOZO(p, lr=0.01, interval=3, n_probes=2, restore=restore, seed=SEED) for p in (params, twin)]
    for step in range(8):
        before, size, calls = contents(params), len(runs[0].log), []

        def failing(p: Params, step: int = step, calls: list[int] = calls) -> float:
            calls.append(1)
            if len(calls) > step % 4:
                raise ZeroDivisionError
            return 1.0

        with pytest.raises(ZeroDivisionError):
            runs[0].step(failing)
        assert contents(params) == before
        assert len(runs[0].log) == size
        for opt in runs:
            opt.step(bowl)
    assert contents(params) == contents(twin)


@pytest.mark.filterwarnings("ignore:restore='naive'")
def test_naive_comes_near_the_exact_run() -> None:
    runs = []
    for restore in ("naive", "scratch"):
        params = model(np.float64)
        opt = LOZO(params, lr=0.01, n_probes=2, interval=2, restore=restore, seed=SEED)
        for _ in range(5):
            opt.step(bowl)
        runs.append(params)
    for name, x in runs[0].items():
        np.testing.assert_allclose(x, runs[1][name], rtol=1e-9, atol=1e-9)


# ---- logs and errors -------------------------------------------------------------------------------------------------


def test_logs_written_before_low_rank_noise_still_load(tmp_path: Path) -> None:
    params = model()
    opt = MeZO(params, lr=0.01)
    for _ in range(4):
        opt.step(bowl)
    content = opt.log.state()
    assert "rank" not in content["header"]
    assert content.pop("folds").size == 0
    stored: Any = {"format": log_module.FORMAT, "version": 1, "checksum": log_module._checksum(content)}
    _store.write(tmp_path / "old", stored | {"content": content})
    log = ZOLog.load(tmp_path / "old")
    assert log.folds == []
    log.replay(again := model())
    assert contents(again) == contents(params)
    resumed = MeZO(model(), lr=0.01)
    resumed.load_log(log)
    for other in (opt, resumed):
        other.step(bowl)
    assert opt.log.crc == resumed.log.crc


def test_the_log_says_rank_interval_and_folds() -> None:
    opt = LOZO(model(), lr=0.01, rank=3, interval=7, n_probes=2, restore="lazy")
    opt.fold_()  # nothing is pending
    assert opt.log.folds == []
    opt.step(bowl)
    size = opt.log.nbytes
    opt.fold_()
    opt.fold_()
    assert opt.log.folds == [1]
    assert opt.log.nbytes == size + 8
    assert (opt.log.header["rank"], opt.log.header["interval"]) == (3, 7)
    with pytest.raises(ValueError, match="rank"):
        LOZO(model(), lr=0.01, rank=2, interval=7, n_probes=2, restore="lazy").load_log(opt.log)
    with pytest.raises(ValueError, match="interval"):
        LOZO(model(), lr=0.01, rank=3, interval=8, n_probes=2, restore="lazy").load_log(opt.log)
    with pytest.raises(ValueError, match="restore 'lazy'"):
        LOZO(model(), lr=0.01, rank=3, interval=7, n_probes=2).load_log(opt.log)


@pytest.mark.parametrize(
    "change", [{"rank": 0}, {"rank": 1.5}, {"interval": None}, {"rank": "2"}, {"restore": "lazy", "rank": ...}]
)
def test_headers_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    opt = LOZO(model(), lr=0.01)
    opt.step(bowl)
    state = opt.log.state()
    header = json.loads(json.dumps(state["header"])) | change
    header = {k: v for k, v in header.items() if v is not ...}
    with pytest.raises(ValueError, match="header"):
        ZOLog.from_state(state | {"header": header})


def test_folds_out_of_order_are_refused() -> None:
    opt = LOZO(model(), lr=0.01)
    opt.step(bowl)
    for folds in ([2], [0], [1, 1], [-1]):
        with pytest.raises(ValueError, match="folds"):
            ZOLog.from_state(opt.log.state() | {"folds": np.array(folds, np.int64)})


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rank": 0}, ValueError, r"'rank': got 0, needs an integer in \[1, 2\^16\)"),
        ({"rank": 2.0}, TypeError, "'rank'"),
        ({"interval": 0}, ValueError, "'interval'"),
        ({"interval": True}, TypeError, "'interval'"),
        ({"restore": "grid"}, ValueError, "'restore': got 'grid', needs one of 'scratch', 'copy', 'lazy', 'naive'"),
        ({"eps": 0.0}, ValueError, "'eps'"),
        ({"dist": "uniform"}, ValueError, "'dist'"),
        ({"n_probes": 0}, ValueError, "'n_probes'"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"LOZO: argument {text}" if text.startswith("'") else text):
        LOZO(model(), **{"lr": 0.1, **options})


def test_rows_and_lazy_elsewhere_are_refused() -> None:
    params = model()
    before = contents(params)
    opt = LOZO(params, lr=0.1)
    with pytest.raises(ValueError, match=r"'rows': got rows with noise of low rank.*MeZO"):
        opt.step(bowl, rows={"embed": [1]})
    assert contents(params) == before
    with pytest.raises(ValueError, match="'restore': got 'lazy'"):
        MeZO(params, lr=0.1, restore="lazy")
