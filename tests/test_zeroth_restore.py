"""Restoring the parameters after probes, and losses that are not finite."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from curvk.kernels import noise
from curvk.zeroth import FZOO, LeZO, MeZO
from curvk.zeroth._estimate import Central
from curvk.zeroth._method import Method
from curvk.zeroth._restore import Grid
from curvk.zeroth._select import Everything
from curvk.zeroth._update import Noise, Tensors
from zeroth_arrays import (
    DTYPES,
    LAYERS,
    Params,
    assert_mean,
    assert_same,
    bowl,
    contents,
    copied,
    model,
    steps,
    wide,
    z_of,
)

# ---- restore --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize(
    "make",
    [
        lambda p, **kw: MeZO(p, n_probes=3, **kw),
        lambda p, **kw: LeZO(p, layers=LAYERS, drop=2, **kw),
        lambda p, **kw: FZOO(p, **kw),
    ],
    ids=["mezo", "lezo", "fzoo"],
)
def test_copy_does_what_scratch_does_and_puts_every_byte_back(dtype: Any, make: Any) -> None:
    params = {restore: model(1, dtype) for restore in ("scratch", "copy")}
    seen: dict[str, list[dict[str, bytes]]] = {restore: [] for restore in params}

    def loss(p: Params, restore: str) -> float:
        seen[restore].append(contents(p))
        return bowl(p)

    for restore, p in params.items():
        still = contents(p)
        opt = make(p, lr=0.0, seed=2, restore=restore, eps=0.01)
        steps(opt, lambda q, r=restore: loss(q, r), 2)
        assert contents(p) == still
        opt.lr, opt.weight_decay = 0.01, 0.5
        steps(opt, lambda q, r=restore: loss(q, r), 4)
        assert contents(p) != still
    assert seen["scratch"] == seen["copy"]  # the very bits the closure sees
    assert_same(params["scratch"], params["copy"])


@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_closure_that_raises_leaves_weights_as_they_were(restore: str, at: int) -> None:
    params = model()
    opt = MeZO(params, lr=0.01, n_probes=2, restore=restore)
    opt.step(bowl)
    before, calls = contents(params), itertools.count()

    def fail(p: Params) -> float:
        if next(calls) == at:
            raise KeyboardInterrupt
        return bowl(p)

    with pytest.raises(KeyboardInterrupt):
        opt.step(fail)
    assert contents(params) == before
    assert len(opt.log) == 1
    twin = model()
    other = MeZO(twin, lr=0.01, n_probes=2, restore=restore)
    assert steps(other, bowl, 3)[1:] == steps(opt, bowl, 2)  # as if it had not been
    assert_same(params, twin)


def test_grid_is_exact_over_300_steps() -> None:
    params = model()
    opt = MeZO(params, lr=0.0, restore="grid", n_probes=2)
    start = copied(params)
    opt.step(bowl)
    snapped = contents(params)
    for name, x in params.items():  # rounded once, to less than half a quantum
        largest = float(np.abs(start[name]).max()) + 7 * opt._method.estimator.eps
        quantum = 2.0 ** (math.ceil(math.log2(largest)) - 23)
        assert np.abs(wide(x) - wide(start[name])).max() <= quantum / 2
        assert np.array_equal(np.rint(wide(x) / quantum), wide(x) / quantum)
    steps(opt, bowl, 300)
    assert contents(params) == snapped


def test_grid_follows_weights_that_leave_their_binade() -> None:
    params = {"w": np.full(50, 0.9, np.float32), "fixed": np.zeros(3, np.float32)}
    opt = LeZO(params, layers=[["fixed"]], drop=1, lr=0.02, restore="grid", dist="rademacher", seed=1)
    quanta = set()
    for _ in range(120):
        opt.step(lambda p: -float(wide(p["w"]).sum()))
        quantum = opt._method.scheme._quanta[0]
        quanta.add(quantum)
        assert np.array_equal(np.rint(wide(params["w"]) / quantum), wide(params["w"]) / quantum)
        before = contents(params)
        with pytest.raises(ZeroDivisionError):
            opt.step(lambda p: 1 // 0)
        assert contents(params) == before
        assert opt._method.scheme._bounds[0] >= np.abs(params["w"]).max()
    assert len(quanta) >= 3
    assert np.abs(params["w"]).max() > 2


def test_grid_updates_are_exact_in_expectation() -> None:
    """An update far below the quantum still moves the weights by its mean, where float32 would drop it."""
    theta = np.full(200_000, 1.0, np.float32)
    tensors = Tensors(["w"], [theta], "test")
    grid = Grid(tensors, Noise(1, "rademacher"), 2.0**-10)
    method = Method(grid, Central(2.0**-10), Everything(), name="test")
    method.step(lambda arrays: 1.0, lr=0.0)
    quantum = 2.0**-22
    assert grid._quanta == [quantum]
    coef = quantum / 20
    update = method.log.compose(1, np.array([coef], np.float32), 0.0)
    grid.update(update)
    z = z_of(theta, "w", 1, 1, "rademacher")
    moved = (wide(theta) - 1.0) / quantum
    assert set(np.unique(moved)) <= {-1.0, 0.0, 1.0}
    assert_mean(moved * z, 1 / 20)
    assert np.all(np.float32(1.0) + np.float32(coef) * z.astype(np.float32) == 1.0)


@pytest.mark.parametrize(("kind", "drift"), [("float32", 1.2e-9), ("float16", 9.8e-6), ("bfloat16", 7.9e-5)])
def test_naive_warns_with_its_drift(kind: str, drift: float) -> None:
    """The published figures for 30,000 weights of rms 0.02 and eps = 1e-3, measured outside curvk."""
    weights = (0.02 * np.random.default_rng(0).standard_normal(30_000)).astype(DTYPES[kind])
    params = {"w": weights.copy(), "small": np.zeros(3, DTYPES[kind])}
    opt = MeZO(params, lr=0.0, restore="naive")
    with pytest.warns(RuntimeWarning, match="does not put weights back") as record:
        opt.step(lambda p: 1.0)
    figure = float(re.search(r"by (\S+) rms", str(record[0].message))[1])  # type: ignore[index]
    assert figure == pytest.approx(drift, rel=0.15)
    actual = math.sqrt(np.mean((wide(params["w"]) - wide(weights)) ** 2))
    assert actual == pytest.approx(drift, rel=0.15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(lambda p: 1.0)


@pytest.mark.filterwarnings("ignore:restore='naive'")
@pytest.mark.parametrize("n_probes", [1, 3])
def test_naive_is_scratch_up_to_rounding(n_probes: int) -> None:
    a, b = model(0, np.float64), model(0, np.float64)
    for restore, params in (("naive", a), ("scratch", b)):
        opt = MeZO(params, lr=0.01, weight_decay=0.1, restore=restore, n_probes=n_probes)
        steps(opt, bowl, 10)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:restore='naive'")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_compat_repeats_the_reference_in_torch(dtype: str) -> None:
    """MeZO's own statements, with curvk's noise in place of torch.normal."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    ours = {name: torch.from_numpy(np.ascontiguousarray(x)).to(kind) for name, x in model(4).items()}
    theirs = {name: x.clone() for name, x in ours.items()}
    lr, eps, decay = 0.01, 1e-3, 0.1

    def loss(p: Any) -> float:
        return bowl({name: x.double().numpy() for name, x in p.items()})

    opt = MeZO(ours, lr=lr, eps=eps, weight_decay=decay, restore="naive", compat="mezo", seed=5)
    for t in range(4):
        draws = {
            n: noise.fill(torch.empty_like(x), seed=5, draw=t, tensor=noise.tensor_word(n)) for n, x in theirs.items()
        }

        def perturb(scaling_factor: int, draws: Any = draws) -> None:
            for name in theirs:
                theirs[name] = theirs[name] + scaling_factor * draws[name] * eps

        perturb(1)
        loss1 = loss(theirs)
        perturb(-2)
        loss2 = loss(theirs)
        projected_grad = (loss1 - loss2) / (2 * eps)
        perturb(1)
        for name, z in draws.items():
            if "bias" not in name and "layer_norm" not in name and "layernorm" not in name:
                theirs[name] = theirs[name] - lr * (projected_grad * z + decay * theirs[name])
            else:
                theirs[name] = theirs[name] - lr * (projected_grad * z)
        assert opt.step(loss) == loss1
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- losses that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_loss_that_is_not_finite_skips_the_step(restore: str, bad: float, at: int) -> None:
    params = model()
    opt = MeZO(params, lr=0.01, weight_decay=0.1, n_probes=2, restore=restore)
    opt.step(bowl)
    before, calls = contents(params), itertools.count()
    returned = opt.step(lambda p: bad if next(calls) == at else bowl(p))
    assert repr(returned) == repr(bad)
    assert contents(params) == before
    assert opt.skipped == 1
    assert not opt.log.coefs[1].any()
    assert opt.log.decay[1] == 0
    assert repr(float(opt.log.losses[1])) == repr(bad)
    assert math.isfinite(opt.step(bowl))
    assert contents(params) != before


def test_a_coefficient_beyond_float32_skips_the_step() -> None:
    params = {"w": np.ones(3)}
    opt = MeZO(params, lr=1.0)
    assert opt.step(lambda p: 1e300 * float(p["w"].sum())) > 1e299
    assert params["w"].tolist() == [1.0] * 3
    assert opt.skipped == 1
    assert math.isnan(opt.log.losses[0])


# ---- arrays ---------------------------------------------------------------------------------------------------------


def test_rows_confine_probe_and_update(tmp_path: Any) -> None:
    results = {}
    for restore in ("scratch", "copy"):
        params = {"embed": np.ones((20, 6), np.float32), "w": np.ones(6, np.float32)}
        opt = MeZO(params, lr=0.01, weight_decay=0.5, restore=restore, seed=3, eps=0.125)
        rows = [[3, 7, 7], [0, 19], [5]]

        def loss(p: Params, at: Any) -> float:
            others = np.setdiff1d(np.arange(20), at)
            assert np.array_equal(p["embed"][others], params["embed"][others])  # noqa: B023
            assert not np.array_equal(p["embed"][at], np.ones((len(at), 6)))
            return float(np.sum(wide(p["embed"])[at] @ wide(p["w"])))

        for at in rows:
            before = copied(params)
            opt.step(lambda p, at=at: loss(p, at), rows={"embed": at})
            moved = np.flatnonzero((params["embed"] != before["embed"]).any(1))
            assert moved.tolist() == sorted(set(at))
            z = z_of(params["embed"], "embed", len(opt.log) - 1, 3)[moved]
            truth = (1 - 0.005) * wide(before["embed"])[moved] + float(opt.log.coefs[-1, 0]) * z
            np.testing.assert_allclose(params["embed"][moved], truth, rtol=1e-6)
        results[restore] = params
        opt.log.save(tmp_path / "log")
        again = {"embed": np.ones((20, 6), np.float32), "w": np.ones(6, np.float32)}
        type(opt.log).load(tmp_path / "log").replay(again)
        assert_same(params, again)
    assert_same(results["scratch"], results["copy"])


def test_closure_gets_the_kind_of_arrays_it_gave(tmp_path: Any) -> None:
    memory = np.memmap(tmp_path / "m", np.float32, "w+", shape=(6,))
    memory[:] = 1
    half = np.ones(4, ml_dtypes.bfloat16)
    opt = MeZO([memory, half, np.ones(2)], lr=0.1)
    kinds = []
    opt.step(lambda p: kinds.append([(type(x) is not list, x.dtype) for x in p]) or float(p[0].sum()))
    assert [d for _, d in kinds[0]] == [np.float32, ml_dtypes.bfloat16, np.float64]
    assert (half != 1).any()
    assert (memory != 1).any()


def test_scratch_buffers_are_as_large_as_the_active_layers() -> None:
    params = {f"h.{i}": np.ones((30, 10), np.float32) for i in range(8)} | {"head": np.ones(7, np.float32)}
    opt = LeZO(params, layers=[[f"h.{i}"] for i in range(8)], drop=6, lr=0.01)
    steps(opt, bowl, 30)
    buffers = [b for shelf in opt._method.scheme._buffers._pool.values() for b in shelf]
    assert sum(b.size for b in buffers) == 2 * 300 + 7
