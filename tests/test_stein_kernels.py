"""The kernels of SV-CMA-ES: Hansen's constants, loops in double as truth, independence of particles, refusals."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import curvk
import numpy as np
import pytest
from curvk.kernels import gram, stein
from numpy.testing import assert_allclose

Array = np.ndarray[Any, Any]


def generator(*parts: object) -> np.random.Generator:
    seed = zlib.crc32("/".join(map(str, parts)).encode())
    print(f"seed {seed} from {parts}")
    return np.random.default_rng(seed)


# ---- constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 10, 40, 300])
@pytest.mark.parametrize("popsize", [4, 5, 8, 13, 100, 1000])
def test_rates_are_those_of_cmaes(d: int, popsize: int) -> None:
    cmaes = pytest.importorskip("cmaes", reason="the oracle of CMA-ES")
    oracle, rates = cmaes.CMA(np.zeros(d), 1.0, population_size=popsize), stein.Rates(d, popsize)
    names = {"mu": "mu", "mu_eff": "mu_eff", "c_sigma": "c_sigma", "d_sigma": "d_sigma", "c_c": "cc", "c_1": "c1"}
    for ours, theirs in (names | {"c_mu": "cmu", "chi": "chi_n", "weights": "weights"}).items():
        assert_allclose(getattr(rates, ours), getattr(oracle, f"_{theirs}"), rtol=1e-13, err_msg=ours)


@pytest.mark.parametrize("popsize", [2, 3, 4, 7, 50])
@pytest.mark.parametrize("d", [1, 2, 9])
def test_rates_keep_their_promises(d: int, popsize: int) -> None:
    """Positive weights sum to 1; C's decay is not negative; with two or three samples only p_c teaches C."""
    rates = stein.Rates(d, popsize)
    weights = rates.weights
    assert_allclose(weights[: rates.mu].sum(), 1, rtol=1e-15)
    assert (np.diff(weights) < 0).all()
    assert_allclose(1 / (weights[: rates.mu] ** 2).sum(), rates.mu_eff, rtol=1e-14)
    negative = abs(weights[weights < 0].sum())
    # What the negative weights can take away at most is less than what is kept: C stays positive definite.
    assert rates.c_mu * d * negative <= (1 - rates.c_1 - rates.c_mu) * (1 + 1e-14)
    assert (rates.c_mu == 0) == (popsize < 4)
    settled = (1.4 + 2 / (d + 1)) * rates.chi
    first = settled * math.sqrt(1 - (1 - rates.c_sigma) ** 2)
    assert_allclose([rates.limit(1), rates.limit(10**6)], [first, settled], rtol=1e-12)


@pytest.mark.parametrize(("d", "popsize", "name"), [(0, 4, "d"), (2, 1, "popsize"), (-1, 4, "d")])
def test_bad_rates(d: int, popsize: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"Rates: argument '{name}'"):
        stein.Rates(d, popsize)


# ---- one generation in loops ----------------------------------------------------------------------------------------


def make(n: int, d: int, popsize: int, *parts: object, dtype: Any = np.float64) -> dict[str, Any]:
    """A consistent state: C positive definite with its factor, samples from it, values, an order."""
    rng = generator(n, d, popsize, *parts)
    root = rng.standard_normal((n, d, d)) + 2 * np.eye(d)
    C = (root @ root.transpose(0, 2, 1)).astype(dtype)
    w, B = np.linalg.eigh(C)
    sigma, p_c, p_sigma, x = (rng.standard_normal(s).astype(dtype) for s in ((n,), (n, d), (n, d), (n, d)))
    sigma = 0.1 + abs(sigma)
    D, A = stein.factor(w, B, C, sigma, p_c, renormalise=False)
    z = rng.standard_normal((n, popsize, d)).astype(dtype)
    y, candidates = stein.sample(x, sigma, A, z)
    rates = stein.Rates(d, popsize)
    weights = rates.weights.astype(dtype)
    order, shift = stein.shift(y, rng.standard_normal((n, popsize)), weights)
    names = "x sigma C p_sigma p_c y z order shift weights B D A rates"
    values = (x, sigma, C, p_sigma, p_c, y, z, order, shift, weights, B, D, A, rates)
    return dict(zip(names.split(), values, strict=True)) | {"candidates": candidates, "w": w}


def hansen(s: dict[str, Any], i: int, generation: int, repulsion: Array) -> dict[str, Any]:
    """One particle's update by Hansen's figure 6, element by element, with the inverse root of C by inversion."""
    r, d = s["rates"], s["x"].shape[1]
    popsize = r.popsize
    C = s["C"][i]
    w, B = np.linalg.eigh(C)
    inverse_root = B @ np.diag(1 / np.sqrt(w)) @ B.T
    ranked = [s["y"][i, k] for k in s["order"][i]]
    step = np.zeros(d)
    for k in range(r.mu):
        step += r.weights[k] * ranked[k]
    step += repulsion[i] / s["sigma"][i]
    x = s["x"][i] + s["sigma"][i] * step
    p_sigma = (1 - r.c_sigma) * s["p_sigma"][i] + math.sqrt(
        r.c_sigma * (2 - r.c_sigma) * r.mu_eff
    ) * inverse_root @ step
    norm = math.sqrt(sum(p**2 for p in p_sigma))
    h = float(norm / math.sqrt(1 - (1 - r.c_sigma) ** (2 * generation)) < (1.4 + 2 / (d + 1)) * r.chi)
    p_c = (1 - r.c_c) * s["p_c"][i] + h * math.sqrt(r.c_c * (2 - r.c_c) * r.mu_eff) * step
    new = (1 + r.c_1 * (1 - h) * r.c_c * (2 - r.c_c) - r.c_1 - r.c_mu * sum(r.weights)) * C
    new = new + r.c_1 * np.outer(p_c, p_c)
    for k in range(popsize):
        weight = r.weights[k]
        if weight < 0:
            weight *= d / sum((inverse_root @ ranked[k]) ** 2)
        new = new + r.c_mu * weight * np.outer(ranked[k], ranked[k])
    sigma = s["sigma"][i] * math.exp(r.c_sigma / r.d_sigma * (norm / r.chi - 1))
    return {"x": x, "sigma": sigma, "C": new, "p_sigma": p_sigma, "p_c": p_c, "h": h}


def adapt(s: dict[str, Any], **options: Any) -> dict[str, Array]:
    """The kernel on copies of the states, which it returns."""
    states = {name: s[name].copy() for name in ("x", "sigma", "C", "p_sigma", "p_c")}
    rest = {name: s[name] for name in ["y", "z", "order", "shift", "weights", "B", "D", "A", "rates"]}
    stein.adapt(**states, **(rest | {"generation": 3} | options))
    return states


@pytest.mark.parametrize(("d", "popsize"), [(1, 2), (2, 4), (3, 3), (4, 9), (5, 8), (17, 12)])
def test_adaptation_against_hansen(d: int, popsize: int, backend: str) -> None:
    s = make(9, d, popsize)
    repulsion = generator("repulsion", d).standard_normal((9, d))
    seen = set()
    for generation in (1, 3, 50):
        s["p_sigma"][::2] *= 0.1
        got = adapt(s, repulsion=repulsion, generation=generation)
        for i in range(9):
            want = hansen(s, i, generation, repulsion)
            seen.add(want.pop("h"))
            for name, x in want.items():
                assert_allclose(got[name][i], x, rtol=1e-10, atol=1e-11 * abs(s["C"]).max(), err_msg=f"{name} of {i}")
    assert seen == {0.0, 1.0} or d > 5, "the path of C never stood still: half of the rule was not tried"


def test_covariances_stay_symmetric() -> None:
    got = adapt(make(20, 6, 9))["C"]
    assert (got == got.transpose(0, 2, 1)).all()


def test_zero_normals_teach_nothing() -> None:
    """A sample at the mean with a negative weight would divide 0 by 0."""
    s = make(3, 2, 6)
    s["z"][1, s["order"][1, -1]] = 0
    s["y"][1, s["order"][1, -1]] = 0
    assert np.isfinite(adapt(s)["C"]).all()


def test_bounds_on_sigma() -> None:
    s = make(8, 2, 4)
    free = adapt(s)["sigma"]
    low, high = np.sort(free)[[2, 5]]
    assert adapt(s, sigma_min=low, sigma_max=high)["sigma"].tolist() == np.clip(free, low, high).tolist()


def test_one_particle_does_not_notice_another() -> None:
    s = make(8, 3, 5)
    whole = adapt(s)
    spoilt = {k: x.copy() if isinstance(x, np.ndarray) and k != "weights" else x for k, x in s.items()}
    for name in ("x", "sigma", "C", "p_sigma", "p_c", "y", "z", "shift", "B", "D", "A"):
        spoilt[name][3] = np.nan
    got = adapt(spoilt)
    alone = adapt({k: x[5:6] if isinstance(x, np.ndarray) and k != "weights" else x for k, x in s.items()})
    for name, x in whole.items():
        others = np.arange(8) != 3
        assert got[name][others].tobytes() == x[others].tobytes(), name
        assert alone[name].tobytes() == x[5:6].tobytes(), name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_to_nowhere_is_not_taken(bad: float, backend: str) -> None:
    s = make(4, 3, 5)
    whole = adapt(s)
    s["shift"][2, 1] = bad
    got = adapt(s)
    for name, x in whole.items():
        assert got[name][2].tobytes() == s[name][2].tobytes(), name
        assert np.delete(got[name], 2, 0).tobytes() == np.delete(x, 2, 0).tobytes(), name


# ---- the factor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 0.9, 1.0, 3.99, 4.0, 7e5, 1e30])
def test_gauge_is_exact(scale: float, dtype: Any, backend: str) -> None:
    s = make(4, 3, 4, dtype=dtype)
    C, w = (s["C"] * dtype(scale), s["w"] * dtype(scale))
    sigma, p_c = s["sigma"].copy(), s["p_c"].copy()
    D, A = stein.factor(w, s["B"], C, sigma, p_c)
    power = sigma / s["sigma"]
    assert (np.frexp(power)[0] == 0.5).all()
    assert ((np.trace(C, axis1=1, axis2=2) / 3 > 0.999) & (np.trace(C, axis1=1, axis2=2) / 3 < 4.001)).all()
    assert (p_c == s["p_c"] / power[:, None]).all()
    assert (s["C"] * dtype(scale) / power[:, None, None] / power[:, None, None] == C).all()
    plain, _ = stein.factor(w, s["B"], s["C"] * dtype(scale), sigma.copy(), p_c.copy(), renormalise=False)
    assert (plain / power[:, None] == D).all()
    assert_allclose(A, D[:, :, None] * s["B"].transpose(0, 2, 1), rtol=1e-15)


def test_condition_is_bounded() -> None:
    B = np.linalg.qr(generator("condition").standard_normal((3, 4, 4)))[0]
    w = np.array([[1e-9, 0.5, 1, 2], [-1e-3, 0.5, 1, 2], [0.1, 0.5, 1, 2]])
    C = np.einsum("irk,ik,ick->irc", B, w, B)
    D, A = stein.factor(w, B, C, np.ones(3), np.zeros((3, 4)), condition=1e6, renormalise=False)
    assert_allclose(A.transpose(0, 2, 1) @ A, C, atol=1e-14)
    assert_allclose(np.linalg.cond(C[:2]), 1e6, rtol=1e-3)  # the largest gets the addition too
    assert_allclose(D[2] ** 2, w[2], rtol=1e-15)


# ---- ranks and repulsion --------------------------------------------------------------------------------------------


def test_ranks_of_all_kinds_of_values() -> None:
    rng = generator("ranks")
    pool = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 5e-324, -5e-324])
    for popsize in (1, 2, 3, 8, 14, 41, 200):
        values = rng.choice(pool, (30, popsize))
        values[0] = np.nan
        order, mean = stein.shift(np.ones((30, popsize, 1)), values, np.ones(popsize), mu=1)
        assert (order[0] == -1).all()
        assert mean[0] == 0
        for row, ranks in zip(values[1:], order[1:], strict=True):
            if np.isnan(row).all():
                assert (ranks == -1).all()
                continue
            key = [(math.isnan(v), 0.0 if math.isnan(v) else -v, i) for i, v in enumerate(row)]
            assert ranks.tolist() == sorted(range(popsize), key=key.__getitem__)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_repulsion_of_far_particles(dtype: Any) -> None:
    """10,000 away from the origin, against a sum over pairs in double: centring keeps the digits."""
    x = (generator("far").uniform(-1, 1, (50, 3)) + 1e4).astype(dtype)
    centred, columns = stein.center(x)
    got = stein.repel(centred, gram.matvec(centred, centred, columns, bandwidth=0.8), weight=2.0)
    gaps = x[:, None].astype(float) - x[None]
    want = 2 * np.einsum("ij,ijr->ir", np.exp(-(gaps**2).sum(2) / (2 * 0.8**2)), gaps)
    assert_allclose(got, want, atol=5e-6 * 50 if dtype == np.float32 else 1e-10)
    assert abs(got.sum(0)).max() < (1e-3 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize(("d", "popsize"), [(2, 4), (8, 9), (20, 6)])
def test_threads_and_levels_change_no_bit(d: int, popsize: int, threads: int) -> None:
    def generation() -> list[bytes]:
        s = make(401, d, popsize)
        sigma, p_c, C = s["sigma"].copy(), s["p_c"].copy(), s["C"].copy()
        factors = stein.factor(s["w"], s["B"], C, sigma, p_c)
        arrays = [*adapt(s).values(), *factors, C, sigma, p_c, s["y"], s["candidates"], s["order"], s["shift"]]
        return [x.tobytes() for x in arrays]

    with curvk.threads(1):
        want = generation()
    for level in curvk.simd_levels():
        curvk.set_simd(level)
        with curvk.threads(threads):
            assert generation() == want


# ---- refusals -------------------------------------------------------------------------------------------------------


def factor_call(s: dict[str, Any]) -> Any:
    return stein.factor(s["w"], s["B"], s["C"], s["sigma"], s["p_c"])


def sample_call(s: dict[str, Any]) -> Any:
    return stein.sample(s["x"], s["sigma"], s["A"], s["z"])


def shift_call(s: dict[str, Any]) -> Any:
    return stein.shift(s["y"], s["values"], s["weights"])


def repel_call(s: dict[str, Any]) -> Any:
    return stein.repel(s["x"], s["products"], weight=1.0)


def center_call(s: dict[str, Any]) -> Any:
    return stein.center(s["x"], out=(s["shift"], s["products"]))


def adapt_call(s: dict[str, Any]) -> Any:
    names = ["x", "sigma", "C", "p_sigma", "p_c", "y", "z", "order", "shift", "weights", "B", "D", "A", "rates"]
    return stein.adapt(**{name: s[name] for name in names}, drive=s["drive"], repulsion=s["repulsion"], generation=1)


CALLS: dict[Callable[[dict[str, Any]], Any], str] = {
    factor_call: "w B C sigma p_c",
    sample_call: "x sigma A z",
    shift_call: "y values weights",
    repel_call: "x products",
    center_call: "x shift products",
    adapt_call: "x sigma C p_sigma p_c y z order shift weights B D A drive repulsion",
}


@pytest.mark.parametrize("spoil", ["short", "flat", "long", "wrong dtype", "text"])
@pytest.mark.parametrize(("call", "name"), [(call, name) for call, names in CALLS.items() for name in names.split()])
def test_misfits_are_refused(call: Callable[[dict[str, Any]], Any], name: str, spoil: str, backend: str) -> None:
    s = make(5, 3, 4)
    s |= {"values": np.zeros((5, 4)), "products": np.zeros((5, 4)), "drive": s["x"] + 1, "repulsion": s["x"] + 2}
    x = s[name]
    if name == "products" and spoil == "long":
        x = x.T  # it may have more columns
    wrong = {
        "short": x[:-1].copy(),
        "flat": x.ravel() if x.ndim > 1 else x[:, None],
        "long": np.concatenate([x, x]),
        "wrong dtype": x.astype(np.float32 if name != "order" else np.int32),
        "text": "abc",
    }
    before = {k: v.tobytes() for k, v in s.items() if isinstance(v, np.ndarray)}
    with pytest.raises((TypeError, ValueError), match="stein_"):
        call(s | {name: wrong[spoil]})
    assert {k: v.tobytes() for k, v in s.items() if isinstance(v, np.ndarray)} == before


@pytest.mark.parametrize("bad", [[0, 1, 2, 4], [0, 1, 2, -2], [0, -1, 1, 2], [2**40, 0, 1, 2]])
def test_an_order_out_of_range_is_refused(bad: list[int]) -> None:
    s = make(5, 3, 4)
    s["order"][2] = bad
    with pytest.raises(ValueError, match="stein_adapt: argument 'order'"):
        adapt(s)


def test_shared_memory_is_refused() -> None:
    s = make(5, 3, 4)
    with pytest.raises(ValueError, match="memory shared with"):
        stein.sample(s["x"], s["sigma"], s["A"], s["z"], out=(s["z"], s["y"]))
    with pytest.raises(ValueError, match="memory shared with"):
        stein.center(s["x"], out=(s["x"], np.ones((5, 4))))
    adapt(s, repulsion=s["shift"], drive=s["shift"])  # what is only read may


@pytest.mark.parametrize(
    ("options", "name"),
    [({"generation": 0}, "generation"), ({"rates": stein.Rates(3, 5)}, "rates"), ({"sigma_max": 0.0}, "sigma_max")],
)
def test_bad_numbers(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"stein_adapt: argument '{name}'"):
        adapt(make(5, 3, 4), **options)
