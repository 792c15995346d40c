"""The kernel family `budget` on its own: what it refuses, where it stops, what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from curvk.kernels import budget, gram

Arrays = dict[str, Any]
N, M, C = 6, 4, 2


def make(rule: str = "rbp", slots: int = M, capacity: int = 8, n: int = N, seed: int = 1) -> Arrays:
    print(f"{seed=}")
    rng = np.random.default_rng(seed)
    Z, X = rng.standard_normal((slots, 3)), rng.standard_normal((n, 3))
    expansion = budget.Expansion(capacity, C, rule)
    kernel = {"kernel": "gaussian", "bandwidth": 1.0}
    K = gram.block(Z, Z, **kernel)
    expansion.coef[:, :slots] = rng.standard_normal((C, slots))
    expansion.counts[0] = slots
    if rule == "bpas":
        expansion.matrix[:slots] = 1
    elif expansion.matrix is not None:
        expansion.matrix[:slots, :slots] = K if rule == "forgetron" else np.linalg.cholesky(K)
    return {
        "K": gram.block(X, Z, **kernel),
        "G": gram.block(X, X, **kernel),
        "y": np.where(rng.random((n, C)) < 0.5, -1.0, 1.0),
        "f": np.zeros((n, C)),
        "u": rng.random(n),
        "expansion": expansion,
    }


def learn(a: Arrays, **more: Any) -> Any:
    return budget.learn(a["K"], a["G"], a["y"], a["f"], a["expansion"], u=a["u"], **more)


def bits(a: Arrays) -> list[bytes]:
    e = a["expansion"]
    kept = [x for x in (e.coef, e.matrix, e.sums, e.counts, a["f"]) if isinstance(x, np.ndarray)]
    return [x.tobytes() for x in kept]


def refused(a: Arrays, error: type[Exception], argument: str, *words: str, **more: Any) -> None:
    before = bits(a)
    with pytest.raises(error) as caught:
        learn(a, **more)
    text = str(caught.value)
    assert f"argument '{argument}': got " in text
    assert "needs " in text
    for word in words:
        assert word in text
    assert bits(a) == before


# ---- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["K", "G", "y", "f", "u"])
def test_arrays_are_refused_by_name(name: str, backend: str) -> None:
    a = make()
    refused(a | {name: a[name].astype(np.float32)}, TypeError, name, "float32", f"{name}.astype(np.float64)")
    refused(a | {name: a[name][:-1]}, ValueError, name if name != "K" else "G", "shape")
    wrong = {"K": (N, M + 1), "G": (N, N + 1), "y": (N, C + 1), "f": (N,), "u": (N, 1)}[name]
    refused(a | {name: np.zeros(wrong)}, ValueError, name, f"{wrong}")
    refused(a | {name: object()}, TypeError, name)


def test_what_is_written_is_checked(backend: str) -> None:
    a = make()
    a["f"].flags.writeable = False
    refused(a, BufferError, "f", "read-only", "f.copy()")
    a = make()
    refused(a | {"f": np.zeros((N, 2 * C))[:, ::2]}, ValueError, "f", "C-contiguous")
    refused(a | {"f": a["y"]}, ValueError, "f", "memory shared with 'y'")
    a["expansion"].coef = np.asfortranarray(a["expansion"].coef)
    refused(a, ValueError, "coef", "C-contiguous")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", (0.0, -1.0, math.nan, math.inf)),
        ("C", (0.0, -1.0, math.nan)),
        ("threshold", (-1e-9, math.nan, math.inf)),
        ("decay", (-0.1, 1.1, math.nan)),
        ("limit", (0.0, -1.0, math.nan)),
    ],
)
def test_numbers_are_refused_by_name(name: str, values: tuple[float, ...], backend: str) -> None:
    for value in values:
        refused(make(), ValueError, name, **{name: value})
    refused(make(), TypeError, name, **{name: "1"})


def test_names_and_random_numbers() -> None:
    a = make()
    refused(a, ValueError, "loss", "squared_hinge", loss="huber")
    refused(a, ValueError, "loss", loss=3)
    refused(a | {"u": None}, TypeError, "u", "rbp")
    for bad in (1.0, -1e-9, math.nan):
        u = a["u"].copy()
        u[3] = bad
        refused(a | {"u": u}, ValueError, "u", "[0, 1)")
    assert budget.learn(a["K"], a["G"], a["y"], a["f"], make("append")["expansion"], loss="perceptron")


def test_expansions_that_do_not_fit() -> None:
    a = make("forgetron")
    refused(a | {"K": a["K"][:, :-1]}, ValueError, "K", f"({N}, {M})")
    for name, bad in (("matrix", np.zeros((3, 3))), ("matrix", None), ("sums", np.zeros(3)), ("counts", np.zeros(3))):
        b = make("forgetron")
        setattr(b["expansion"], name, bad)
        refused(b, ValueError, f"expansion.{name}", "shape")
    for counts in ([9, 0, 0, 0], [-1, 0, 0, 0], [4, 8, 0, 0], [4, -1, 0, 0]):
        b = make("forgetron")
        b["expansion"].counts[:] = counts
        refused(b, ValueError, "expansion.counts", "slots")
    with pytest.raises(TypeError, match="argument 'expansion': got ndarray, needs an Expansion"):
        budget.learn(a["K"], a["G"], a["y"], a["f"], a["y"])
    for arguments, error, name in (
        ((0,), ValueError, "capacity"),
        ((2.0,), TypeError, "capacity"),
        ((True,), TypeError, "capacity"),
        ((2, 0), ValueError, "outputs"),
        ((2, "1"), TypeError, "outputs"),
        ((2, 1, "lru"), ValueError, "rule"),
    ):
        with pytest.raises(error, match=f"Expansion: argument '{name}'"):
            budget.Expansion(*arguments)
    with pytest.raises(ValueError, match="argument 'capacity': got 3, needs 4"):
        a["expansion"].resize(3)


def test_predict_refuses_and_predicts(backend: str) -> None:
    a = make()
    e = a["expansion"]
    want = a["K"] @ e.coef[:, :M].T
    np.testing.assert_allclose(budget.predict(a["K"], e), want, rtol=1e-13, atol=1e-14)
    out = np.empty((N, C))
    assert budget.predict(a["K"], e, out=out) is out
    for name, changed in (("K", {"K": a["K"][:, 1:]}), ("out", {"out": np.empty((N, 3))}), ("K", {"K": np.zeros(M)})):
        arguments = {"K": a["K"], "out": out} | changed
        with pytest.raises(ValueError, match=f"budget_predict: argument '{name}': got shape"):
            budget.predict(arguments["K"], e, out=arguments["out"])


# ---- what it does ---------------------------------------------------------------------------------------------------


def test_append_ends_before_the_row_without_a_slot(backend: str) -> None:
    a = make("append", slots=2, capacity=4)
    done, placed, rows = learn(a, loss="logistic")
    assert (done, placed.tolist(), rows.tolist()) == (2, [2, 3], [0, 1])
    assert (a["f"][:3] != 0).all()
    assert (a["f"][3:] == 0).all()
    columns = np.column_stack([a["K"][:, :2], a["G"][:, :2]])
    assert learn(a | {"K": columns[2:], "G": a["G"][2:, 2:], "y": a["y"][2:], "f": a["f"][2:], "u": None})[0] == 0


@pytest.mark.parametrize("rule", budget.RULES)
def test_capacity_does_not_change_bits(rule: str, backend: str) -> None:
    """An expansion with room to spare is the same expansion."""
    small, large = make(rule, capacity=16), make(rule, capacity=16)
    large["expansion"].resize(40)
    more = {"threshold": 0.3, "decay": 0.9, "limit": 0.8, "lr": 0.3}
    (_, *first), (_, *second) = learn(small, **more), learn(large, **more)
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(small["f"], large["f"])
    m = small["expansion"].slots
    assert m == large["expansion"].slots
    np.testing.assert_array_equal(small["expansion"].coef[:, :m], large["expansion"].coef[:, :m])
    large["expansion"].resize(m)
    np.testing.assert_array_equal(small["expansion"].coef[:, :m], large["expansion"].coef)


@pytest.mark.parametrize("rule", budget.RULES)
def test_rows_that_are_not_finite_teach_nothing(rule: str, backend: str) -> None:
    a = make(rule)
    for bad in (math.nan, math.inf):
        a["K"][:] = bad
        before = bits(a)[:-2]
        done, placed, _ = learn(a, threshold=0.1, decay=0.9)
        assert (done, len(placed)) == (N, 0)
        assert bits(a)[:-2] == before
        assert not np.isfinite(a["f"]).any()


def test_a_row_without_length_is_not_learned_by_bpas(backend: str) -> None:
    """k(x, x) = 0: no coefficient changes what is predicted there."""
    a = make("bpas")
    a["K"][2], a["G"][2], a["G"][:, 2] = 0, 0, 0
    _, _, rows = learn(a)
    assert 2 not in rows
    assert np.isfinite(a["expansion"].coef).all()


def test_forgetron_shrinks_by_the_largest_share(backend: str) -> None:
    """By hand: one slot, k = 0 between the rows: 2 p - p^2 = 15/32 * 2 at p = 1 - sqrt(1/16)."""
    e = budget.Expansion(1, 1, "forgetron")
    f = np.empty((2, 1))
    budget.learn(np.empty((2, 0)), np.eye(2), np.ones((2, 1)), f, e)
    share = 0.75
    assert e.coef[0, 0] == pytest.approx(share, rel=1e-15)
    np.testing.assert_allclose(e.sums, [15 / 16, 2], rtol=1e-15)


def test_rbp_replaces_the_slot_drawn(backend: str) -> None:
    e = budget.Expansion(3, 1, "rbp")
    u = np.array([0.9, 0.9, 0.9, 0.34, 0.0, np.nextafter(1, 0)])
    n = len(u)
    _, placed, rows = budget.learn(np.empty((n, 0)), np.eye(n), np.ones((n, 1)), np.empty((n, 1)), e, u=u)
    assert dict(zip(placed.tolist(), rows.tolist(), strict=True)) == {0: 4, 1: 3, 2: 5}
    assert placed.tolist() == [0, 1, 2]


def test_bogd_bounds_coefficients(backend: str) -> None:
    a = make("bogd", n=60)
    learn(a, lr=0.5, decay=0.99, limit=0.3)
    e = a["expansion"]
    assert abs(e.coef).max() <= 0.3 * (1 + 1e-15)
    assert e.slots == 8
