"""Ctrl-C in calls that would take long: heard with only part of the work done, and what is left is valid.

No time is measured. A call that would take minutes ends at a signal that comes while it runs, or it would run on until
the whole test run is stopped; a call's slices are counted through the door to the kernels.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import curvk
import numpy as np
import pytest
from curvk import _interrupt, sketch, stein, zeroth
from curvk._backend import core
from curvk.kernels import gram, linalg, noise
from curvk.kernels import sketch as sketch_kernels

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one's own process"),
    pytest.mark.usefixtures("ctrl_c"),
]
compiled = pytest.mark.skipif(core is None, reason="sizes that only the compiled kernels take slice by slice in time")


def rows(n: int, d: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


@pytest.fixture
def sender() -> Iterator[Callable[[float], None]]:
    """Sends this process SIGINT after so many seconds, from a process of its own, which needs no GIL of ours."""
    code = "import os, sys, time\nfor s in sys.stdin: time.sleep(float(s)); os.kill(os.getppid(), 2)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None

        def after(seconds: float) -> None:
            process.stdin.write(f"{seconds}\n")  # type: ignore[union-attr]

        yield after
        process.stdin.close()


def interrupted(call: Callable[[], Any], after: Callable[[float], None]) -> None:
    after(0.3)
    with pytest.raises(KeyboardInterrupt):
        call()


# ---- the doors that count --------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, stop_at: int) -> list[str]:
    """Notes the kernel calls of a module, and raises the signal within the one numbered stop_at."""
    calls: list[str] = []
    real = module.call

    def call(op: str, *given: Any) -> None:
        calls.append(op)
        real(op, *given)
        if len(calls) == stop_at:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(module, "call", call)
    return calls


def test_gram_products_end_after_the_slice_that_the_signal_came_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_SLICE_FLOPS", 1.0)  # slices of the fewest rows
    X = rows(960, 4)
    whole, out = gram.matvec(X, X, X, bandwidth=1.0), np.full((960, 4), np.nan, np.float32)
    calls = counted(monkeypatch, gram, 3)
    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        gram.matvec(X, X, X, out=out, bandwidth=1.0, progress=lambda done, n: told.append(done))
    done = 3 * gram._SLICE_ROWS
    assert calls == ["gram_matvec"] * 3
    assert told == [gram._SLICE_ROWS, 2 * gram._SLICE_ROWS]
    assert (out[:done] == whole[:done]).all()
    assert np.isnan(out[done:]).all()


def test_dot_seeds_takes_draws_in_slices_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    v = rows(1, 40_000)[0]
    given = [(v, 5), ([v[:100], v[100:]], [5, 6])]
    expected = [noise.dot_seeds(x, seed=1, draws=range(9), tensor=words) for x, words in given]
    monkeypatch.setattr(noise, "_SLICE", 90_000.0)  # two draws at once
    calls = counted(monkeypatch, noise, 0)
    for (x, words), whole in zip(given, expected, strict=True):
        calls.clear()
        assert (noise.dot_seeds(x, seed=1, draws=range(9), tensor=words) == whole).all()
        assert len(calls) == 5
    assert noise.dot_seeds(v, seed=1, draws=[]).shape == (0,)
    with pytest.raises(TypeError, match="dot_seeds: argument 'v'"):
        noise.dot_seeds(v.astype(np.int32), seed=1, draws=range(9))
    stopped = counted(monkeypatch, noise, 2)
    with pytest.raises(KeyboardInterrupt):
        noise.dot_seeds(v, seed=1, draws=range(9))
    assert len(stopped) == 2


@pytest.mark.parametrize("pairs", [5, 1000])
def test_random_pairs_of_the_median_do_not_depend_on_slices(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    X = rows(300, 7)
    expected = gram.median_distance(X, pairs=pairs)
    monkeypatch.setattr(gram, "_SLICE_PAIRS", 7 * 3)
    assert gram.median_distance(X, pairs=pairs) == expected


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (linalg, lambda: linalg.eigh_batch(np.tile(np.eye(64), (400, 1, 1)))),
        (linalg, lambda: linalg.svd_batch(np.tile(np.eye(64), (400, 1, 1)))),
        (sketch_kernels, lambda: sketch_kernels.sjlt(np.ones((500_000, 100)), np.zeros((8, 100)), seed=0, blocks=2)),
    ],
    ids=["eigh_batch", "svd_batch", "sjlt"],
)
@compiled
def test_batches_come_in_slices(monkeypatch: pytest.MonkeyPatch, module: Any, call: Callable[[], Any]) -> None:
    calls = counted(monkeypatch, module, 2)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert len(calls) == 2


def test_online_learners_learn_whole_pieces_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learned when the signal came is noted; the rest, given later, leads to the bits of one call."""
    pytest.importorskip("sklearn")
    from curvk.online import BOGDClassifier, KONSClassifier, _base

    X = rows(450, 5, dtype=np.float64)
    y = np.where(X[:, 0] * X[:, 1] > 0, 1, -1)
    for make in (lambda: BOGDClassifier(40, random_state=0), lambda: KONSClassifier(60, random_state=0)):
        whole = make().fit(X, y)
        learner, pieces = make(), [0]

        def noted(rows: int, seconds: float, pieces: list[int] = pieces) -> int:
            pieces[0] += 1
            if pieces[0] == 9:
                signal.raise_signal(signal.SIGINT)
            return 40

        monkeypatch.setattr(_base, "next_piece", noted)
        with pytest.raises(KeyboardInterrupt):
            learner.partial_fit(X, y, classes=[-1, 1])
        assert 0 < learner.rows_seen_ < len(X)
        learner.partial_fit(X[learner.rows_seen_ :], y[learner.rows_seen_ :])
        assert learner.rows_seen_ == len(X)
        assert (learner.decision_function(X) == whole.decision_function(X)).all()


def test_pieces_of_slow_rows_are_short() -> None:
    pytest.importorskip("sklearn")
    from curvk.online._engine import FIRST_PIECE, PIECE, SECONDS, next_piece

    assert next_piece(FIRST_PIECE, 0.0) == 4 * FIRST_PIECE
    assert next_piece(PIECE, 0.0) == PIECE
    assert next_piece(100, 2 * SECONDS) == 50
    assert next_piece(1, 100.0) == 1


# ---- LAPACK, which is deaf -------------------------------------------------------------------------------------------


def test_aside_hears_a_signal_that_the_call_does_not() -> None:
    """The call waits for what comes only after the interrupt was heard: were it not heard, this would not end."""
    begun, heard, ended = threading.Event(), threading.Event(), threading.Event()

    def deaf() -> None:
        begun.set()
        os.kill(os.getpid(), signal.SIGINT)
        heard.wait()
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        _interrupt.aside(1e12, deaf)
    assert begun.is_set()
    assert not ended.is_set()
    heard.set()
    ended.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_waits_for_an_abandoned_call(run_python: Any) -> None:
    run_python("""
import os, signal, threading, time, warnings
from curvk import _interrupt

warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about fork beside threads
signal.signal(signal.SIGINT, signal.default_int_handler)
done = []

def deaf():
    time.sleep(1)
    done.append(True)

threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    _interrupt.aside(1e12, deaf)
    raise SystemExit("not interrupted")
except KeyboardInterrupt:
    assert not done
child = os.fork()
if child == 0:
    os._exit(0 if done and not _interrupt._aside else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""")


def test_aside_is_otherwise_the_call_itself() -> None:
    def name() -> str:
        return threading.current_thread().name

    here = name()
    assert _interrupt.aside(1e3, name) == here
    assert _interrupt.aside(1e12, name) != here
    with np.errstate(invalid="raise"), pytest.raises(FloatingPointError):
        _interrupt.aside(1e12, np.subtract, np.inf, np.inf)
    with pytest.raises(np.linalg.LinAlgError):
        _interrupt.aside(1e12, np.linalg.cholesky, -np.eye(3))
    found: list[bool] = []
    other = threading.Thread(
        target=lambda: found.append(_interrupt.aside(1e12, name) == threading.current_thread().name)
    )
    other.start()
    other.join()
    assert found == [True]  # no signal reaches another thread


def test_aside_without_a_thread_to_be_had_is_the_call_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert _interrupt.aside(1e12, threading.get_ident) == threading.get_ident()


def test_aside_keeps_nothing_of_a_call_that_failed() -> None:
    """Its error, the error's traceback and what the frames there have must not hold each other."""

    class Held:
        pass

    def fails(held: Held) -> None:
        raise ZeroDivisionError

    held = Held()
    alive = weakref.ref(held)
    gc.disable()
    try:
        with contextlib.suppress(ZeroDivisionError):
            _interrupt.aside(1e12, fails, held)
        del held
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("p", [0, 1, 5, 255, 256, 257, 520])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cholesky_in_pieces(monkeypatch: pytest.MonkeyPatch, dtype: Any, p: int, order: Any) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("sklearn")
    from curvk.machines import _dense

    monkeypatch.setattr(_dense, "PRODUCTS", 1.0)  # pieces of the fewest rows
    B = rows(p, p, p, np.float64)
    K = (B @ B.T + p * np.eye(p)).astype(dtype)
    A = np.array(K, order=order)
    bound = 4 * p * np.finfo(dtype).eps * np.abs(K).max(initial=0)  # of Cholesky's backward error, p + 1 eps at most
    assert _dense.potrf(A) == 0
    L = np.tril(A).astype(np.float64)
    assert np.abs(L @ L.T - K).max(initial=0) <= bound
    assert (np.triu(A, 1) == np.triu(K, 1)).all()
    _dense.lauum(A)
    assert np.abs(np.tril(A) - np.tril(L.T @ L)).max(initial=0) <= bound
    assert (np.triu(A, 1) == np.triu(K, 1)).all()
    for row in (0, p // 2, p - 1):
        if p:
            bad = np.array(np.eye(p), dtype, order=order)
            bad[row, row] = -1
            assert _dense.potrf(bad) == row + 1


# ---- calls that would take minutes -----------------------------------------------------------------------------------


@compiled
def test_sketches_go_on_after_a_signal(sender: Callable[[float], None]) -> None:
    """An update takes rows in their order; those counted are in, and the others may be given again."""
    A = rows(20_000, 400, dtype=np.float64)
    for make in (lambda: sketch.FrequentDirections(100, 400), lambda: sketch.IncrementalSVD(50, 400)):
        s = make()
        interrupted(lambda s=s: [s.update(A) for _ in range(10_000)], sender)  # type: ignore[misc]
        seen, again = s.rows_seen, make()
        assert seen < 10_000 * len(A)
        for _ in range(seen // len(A)):
            again.update(A)
        again.update(A[: seen % len(A)])
        for one in (s, again):
            one.update(A[:10])
        assert s.rows_seen == again.rows_seen == seen + 10
        pairs = zip(s._state()[1].values(), again._state()[1].values(), strict=True)
        assert all(x.tobytes() == y.tobytes() for x, y in pairs)


@compiled
def test_samplers_end_after_a_whole_step(sender: Callable[[float], None]) -> None:
    x0 = rows(3000, 20, dtype=np.float64)
    sampler = stein.SVGD(lambda x: -x, x0)
    interrupted(lambda: sampler.run(10**9), sender)
    steps = sampler.n_steps
    assert 0 <= steps < 10**9
    again = stein.SVGD(lambda x: -x, x0)
    again.run(steps)
    assert (again.particles == sampler.particles).all()


@compiled
def test_measures_over_many_pairs(sender: Callable[[float], None]) -> None:
    X = rows(2_000_000, 20)  # 10^13 pairs
    for call in (
        lambda: stein.mmd2(X, X[:-1], bandwidth=1.0),
        lambda: stein.ksd(X, lambda x: -x),
        lambda: gram.median_distance(X),
        lambda: gram.rmatvec(X, X, X[:, :1].copy(), bandwidth=1.0),
    ):
        interrupted(call, sender)
    few = X[:50]
    assert stein.mmd2(few, few, bandwidth=1.0) == pytest.approx(0, abs=1e-6)


@compiled
def test_kernel_machines_are_as_they_were(sender: Callable[[float], None]) -> None:
    pytest.importorskip("sklearn")
    from curvk.machines import EigenPro4Regressor, KernelRidgeCG

    X = rows(300_000, 30)
    y = X[:, 0]
    for model in (
        EigenPro4Regressor(3000, epochs=1000, random_state=0),
        KernelRidgeCG(8000, max_iter=10**6, tol=0.0, random_state=0),
    ):
        interrupted(lambda m=model: m.fit(X, y), sender)  # type: ignore[misc]
        assert not hasattr(model, "coef_")
        long = {
            name: value for name, value in model.get_params().items() if name in ("n_centers", "epochs", "max_iter")
        }
        model.set_params(n_centers=50, **({"epochs": 1} if "epochs" in long else {"max_iter": 100, "tol": 0.1}))
        before = model.fit(X[:500], y[:500]).predict(X[:20])
        model.set_params(**long, **({} if "epochs" in long else {"tol": 0.0}))
        interrupted(lambda m=model: m.fit(X, y), sender)  # type: ignore[misc]
        assert (model.predict(X[:20]) == before).all()
        interrupted(lambda m=model: [m.predict(X) for _ in range(10**6)], sender)  # type: ignore[misc]
        assert (model.predict(X[:20]) == before).all()


@compiled
def test_probes_and_replays(sender: Callable[[float], None]) -> None:
    params = {"w": np.zeros(20_000, np.float32)}
    optimizer = zeroth.MeZO(params, lr=1e-3)
    interrupted(lambda: [optimizer.step(lambda p: float(p["w"][0])) for _ in range(10**9)], sender)
    steps = len(optimizer.log)
    assert steps > 0
    again = {"w": np.zeros(20_000, np.float32)}
    optimizer.log.replay(again)
    assert (again["w"] == params["w"]).all()
    x = rows(1, 50_000)[0]
    interrupted(lambda: curvk.curvature.hessian_diagonal(lambda x: 2 * x, x, sigma=0.1, samples=10**8), sender)
    assert np.isfinite(x).all()


def test_a_replay_that_is_checked_leaves_the_first_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"w": rows(1, 1000)[0]}
    first = params["w"].copy()
    optimizer = zeroth.MeZO(params, lr=1e-2)
    for _ in range(6):
        optimizer.step(lambda p: float(np.square(p["w"]).sum()))
    log, real = optimizer.log, zeroth.ZOLog.update

    def update(self: Any, step: int) -> Any:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return real(self, step)

    target = {"w": first.copy()}
    with monkeypatch.context() as patch:
        patch.setattr(zeroth.ZOLog, "update", update)
        with pytest.raises(KeyboardInterrupt):
            log.replay(target)
    assert (target["w"] == first).all()
    log.replay(target)
    assert (target["w"] == params["w"]).all()
    assert (target["w"] != first).any()
