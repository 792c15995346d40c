"""curvk.stein: SVGD, step rules, bandwidths, and what every sampler does with its callbacks and state."""

from __future__ import annotations

import copy
import math
import pickle

import curvk
import numpy as np
import pytest
from curvk import stein
from curvk.stein import _steps, problems
from curvk.stein._flow import Direction
from curvk.stein._kernel import kernel_of
from stein_truth import KERNELS, H, direction, particles


def move(x0, score, **options):
    """SVGD's direction: what a step of plain ascent with lr 1 moves the particles by."""
    sampler = stein.SVGD(score, x0, step="sgd", lr=1.0, **options)
    sampler.step()
    return sampler.particles.astype(np.float64) - x0


# ---- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_direction_is_the_double_loops(name, dtype):
    parameters, k = KERNELS[name]
    x, s = particles(13, 3, 1, dtype), particles(13, 3, 2, dtype)
    x = x + dtype(0.5)
    got = move(x, lambda _: s, kernel=name, bandwidth=H, repulsion=0.7, **parameters)
    want = direction(k, x.astype(np.float64), s.astype(np.float64), repulsion=0.7)
    tolerance = 1e-8 if dtype is np.float64 else 3e-6  # the first is of the finite differences
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("name", KERNELS)
def test_weighted_direction_is_the_double_loops(name):
    parameters, k = KERNELS[name]
    x, s = particles(9, 2, 3), particles(9, 2, 4)
    w = np.random.default_rng(5).dirichlet(np.ones(9))
    got = Direction(kernel_of("test", name, parameters), 1.0, x)(x, s, H, w[:, None])
    np.testing.assert_allclose(got, direction(k, x, s, w), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in KERNELS if n not in ("polynomial", "linear")])
def test_direction_moves_with_the_particles(name):
    """A shift of all particles by a power of two times 1000 leaves the direction as it is."""
    x, s = np.round(particles(20, 4, 6) * 256) / 256, particles(20, 4, 7)
    parameters = KERNELS[name][0]
    options = {"kernel": name, "bandwidth": H, **parameters}
    near, far = (move(y, lambda _: s, **options) for y in (x, x + 1024))
    np.testing.assert_allclose(near, far, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in KERNELS if n != "exponent"])
def test_direction_turns_and_permutes_with_the_particles(name):
    x, s = particles(20, 4, 100), particles(20, 4, 101)
    q = np.linalg.qr(particles(4, 4, 102))[0]
    order = np.random.default_rng(103).permutation(20)
    options = {"kernel": name, "bandwidth": H, **KERNELS[name][0]}
    here = move(x, lambda _: s, **options)
    np.testing.assert_allclose(move(x @ q, lambda _: s @ q, **options), here @ q, rtol=0, atol=1e-12)
    np.testing.assert_allclose(move(x[order], lambda _: s[order], **options), here[order], rtol=0, atol=1e-13)


def test_threads_do_not_matter():
    x = particles(700, 6, 104, np.float32)

    def run(threads):
        with curvk.threads(threads):
            return stein.SVGD(np.negative, x, step="adam").run(3).tobytes()

    assert run(1) == run(2) == run(5)


def test_repulsion_does_not_move_the_centroid():
    x = particles(101, 5, 8)
    for name in ("gaussian", "matern32", "imq", "laplacian"):
        moved = move(x, np.zeros_like, kernel=name, bandwidth=H)
        assert np.abs(moved).max() > 0.01
        assert np.abs(moved.mean(0)).max() < 1e-15


def test_coincident_particles_do_not_repel():
    x = np.tile(particles(1, 3, 9), (6, 1))
    for name in ("gaussian", "laplacian", "exponent", "matern32"):
        assert np.abs(move(x, np.zeros_like, kernel=name, bandwidth="median")).max() < 1e-15


@pytest.mark.parametrize("kernel", ["gaussian", "matern52", "laplacian"])
def test_one_particle_is_gradient_ascent(kernel):
    x = particles(1, 4, 10)
    sampler = stein.SVGD(lambda x: 1 - 2 * x, x, kernel=kernel, step="sgd", lr=0.1)
    sampler.run(20)
    want = x.copy()
    for _ in range(20):
        want += 0.1 * (1 - 2 * want)
    np.testing.assert_allclose(sampler.particles, want, rtol=1e-14)


def test_wide_bandwidth_gives_all_the_mean_score():
    x = particles(30, 3, 11)
    s = particles(30, 3, 12)
    moved = move(x, lambda _: s, bandwidth=1e8)
    np.testing.assert_allclose(moved, np.tile(s.mean(0), (30, 1)), atol=1e-12)


def test_narrow_bandwidth_gives_each_its_own_score():
    x, s = particles(30, 3, 11), particles(30, 3, 12)
    moved = move(x, lambda _: s, bandwidth=1e-3)
    np.testing.assert_allclose(moved, s / 30, atol=1e-12)


@pytest.mark.parametrize("d", [1, 3])
def test_linear_kernel_matches_mean_and_covariance(d):
    """With k = 1 + x.y and a normal target SVGD ends at the exact mean and (biased) covariance (Liu & Wang 2018)."""
    rng = np.random.default_rng(13)
    a = rng.standard_normal((d, d))
    mean, covariance = 0.3 * rng.standard_normal(d), 0.3 * a @ a.T + np.eye(d)
    target = problems.Gaussian(mean, covariance)
    sampler = stein.SVGD(target.score, particles(10, d, 14), kernel="polynomial", degree=1, step="sgd", lr=0.1)
    x = sampler.run(3500)
    assert np.abs(x.mean(0) - mean).max() < 1e-13
    assert np.abs(np.cov(x.T, bias=True) - covariance).max() < 1e-13


def test_end_fulfils_steins_identity():
    """Where the particles rest, the mean of k s + grad k at each of them is 0, by the double loop."""
    target = problems.Gaussian([1.0], [[2.0]])
    sampler = stein.SVGD(target.score, particles(6, 1, 15), bandwidth=H, step="sgd", lr=1.0)
    x = sampler.run(1500).copy()
    assert np.ptp(x) > 1
    assert np.abs(direction(KERNELS["gaussian"][1], x, target.score(x))).max() < 1e-10  # of finite differences


def test_particles_become_a_sample():
    target = problems.four_modes(3)
    x0 = 12 * np.random.default_rng(16).random((200, 2)) - 6
    truth = target.sample(2000, seed=17)
    before = stein.mmd2(x0, truth, bandwidth=2.0)
    after = stein.mmd2(stein.SVGD(target.score, x0, step="adam", lr=0.1).run(400), truth, bandwidth=2.0)
    assert after < before / 10


def test_large_n_needs_memory_of_order_n():
    import tracemalloc

    x = particles(6000, 3, 18, np.float32)
    sampler = stein.SVGD(np.negative, x, bandwidth=0.5)
    sampler.step()
    tracemalloc.start()
    sampler.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * x.nbytes  # n x n float32 would be 2,000 times as much


# ---- step rules ------------------------------------------------------------------------------------------------------


def test_adagrad_is_the_original_codes():
    """Written from the description of the rule: v = g^2, then 0.9 v + 0.1 g^2; x += lr g / (1e-6 + sqrt(v))."""
    x = particles(7, 2, 30)
    rule, moved, v = _steps.AdaGrad(x), x.copy(), 0.0
    want = x.copy()
    for step in range(1, 6):
        g = particles(7, 2, 30 + step)
        v = g**2 if step == 1 else 0.9 * v + 0.1 * g**2
        want += 0.3 * g / (1e-6 + np.sqrt(v))
        rule.apply(moved, g, 0.3, step)
    np.testing.assert_allclose(moved, want, rtol=1e-14)


def test_adam_is_torchs():
    torch = pytest.importorskip("torch")
    x = particles(7, 2, 31)
    rule, moved = _steps.Adam(x), x.copy()
    p = torch.nn.Parameter(torch.from_numpy(x.copy()))
    optimizer = torch.optim.Adam([p], lr=0.05, maximize=True)
    for step in range(1, 8):
        g = particles(7, 2, 40 + step)
        p.grad = torch.from_numpy(g)
        optimizer.step()
        rule.apply(moved, g, 0.05, step)
    np.testing.assert_allclose(moved, p.detach().numpy(), rtol=1e-13)


# ---- bandwidths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 10, 101])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bandwidth_rules_are_their_formulas(n, dtype):
    pdist = pytest.importorskip("scipy.spatial.distance").pdist
    x = 3 * particles(n, 4, n, dtype)
    med = np.median(pdist(x.astype(np.float64)))
    std = math.sqrt(np.mean(np.var(x.astype(np.float64), axis=0, ddof=1)))
    want = {
        "median": math.sqrt(0.5 * med**2 / math.log(n + 1)),
        "svgd": math.sqrt(0.5 * med**2 / math.log(n + 1)),
        "pyro": math.sqrt(0.5 * med**2 / math.log(n + 1)),  # exp(-d^2 / b), b = 2 h^2
        "blackjax": math.sqrt(0.5 * med**2 / math.log(n)),
        "numpyro": math.sqrt(0.5 * med**2 / math.log(n)),
        "scott": n ** (-1 / 8) * std,
    }
    assert set(want) == set(stein.BANDWIDTHS)
    for rule, h in want.items():
        assert stein.bandwidth(rule, x) == pytest.approx(h, rel=2e-6 if dtype is np.float32 else 1e-12)


def test_original_code_takes_zeros_into_its_median():
    """The stated difference: over all n^2 entries the median is smaller, by about one part in n."""
    pdist = pytest.importorskip("scipy.spatial.distance").pdist
    squareform = pytest.importorskip("scipy.spatial.distance").squareform
    x = particles(400, 5, 50)
    original = math.sqrt(0.5 * np.median(squareform(pdist(x)) ** 2) / math.log(401))
    ratio = original / stein.bandwidth("svgd", x)
    assert 1 - 1 / 400 < ratio < 1


def test_scott_is_scipys_factor():
    stats = pytest.importorskip("scipy.stats")
    x = particles(50, 1, 51)
    assert stein.bandwidth("scott", x) == pytest.approx(math.sqrt(stats.gaussian_kde(x.T).covariance[0, 0]))


def test_bandwidths_without_distances():
    x = particles(1, 3, 52)
    assert stein.bandwidth("median", x) == 1.0
    assert stein.bandwidth("blackjax", np.tile(x, (5, 1))) == 1.0
    most = np.tile(x, (9, 1))
    most[8] += 3.0  # over half of the pairs coincide: the root mean square distance, of 8 pairs of 36 with 27
    assert stein.bandwidth("median", most) == pytest.approx(math.sqrt(8 / 36 * 27 / (2 * math.log(10))))


def test_bandwidth_by_a_function():
    x = particles(20, 2, 53)
    widths = []

    def width(points):
        widths.append(points)
        return 0.7

    sampler = stein.SVGD(np.negative, x, bandwidth=width, step="sgd", lr=1.0)
    sampler.step()
    np.testing.assert_array_equal(sampler.particles - x, move(x, np.negative, bandwidth=0.7))
    assert sampler.h == 0.7
    assert widths[0] is sampler.particles
    with pytest.raises(ValueError, match="bandwidth"):
        stein.SVGD(np.negative, x, bandwidth=lambda p: 0.0).step()


# ---- running, states and files ---------------------------------------------------------------------------------------


def samplers(x):
    """One of each kind, with every array of a state in use."""
    target = problems.four_modes(4)
    return {
        "SVGD adagrad": stein.SVGD(target.score, x, lr=0.1),
        "SVGD adam": stein.SVGD(target.score, x, step="adam", kernel="imq"),
        "GradientFreeSVGD": stein.GradientFreeSVGD(target.log_density, x, annealing=9),
        "SVOpenAIES": stein.SVOpenAIES(target.log_density, x, sigma=0.1, sigma_decay=0.99, seed=5),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["SVGD adagrad", "SVGD adam", "GradientFreeSVGD", "SVOpenAIES"])
def test_resumes_bit_for_bit(kind, dtype, tmp_path):
    x = particles(25, 2, 60, dtype)
    whole, first, second = (samplers(x)[kind] for _ in range(3))
    whole.run(15)
    first.run(7)
    snapshot = first.state_dict()
    first.save(tmp_path / "run")
    first.run(1)
    second.load(tmp_path / "run")
    assert (second.n_steps, second.n_evaluations) == (7, 7 * second._cost)
    second.run(8)
    assert second.particles.dtype == dtype
    assert second.particles.tobytes() == whole.particles.tobytes()
    assert second.n_evaluations == whole.n_evaluations
    first.load_state_dict(snapshot)
    first.run(8)
    assert first.particles.tobytes() == whole.particles.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_states_that_do_not_fit_change_nothing(tmp_path):
    x = particles(6, 2, 61)
    sampler = stein.SVGD(np.negative, x)
    sampler.run(3)
    state = sampler.state_dict()
    held = sampler.particles.copy()

    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            sampler.load_state_dict(state | changes)
        assert np.array_equal(sampler.particles, held)
        assert sampler.n_steps == 3

    refused("sampler", sampler="SVOpenAIES")
    refused("version", version=7)
    refused("n_steps", n_steps=-1)
    refused("lr", settings=state["settings"] | {"lr": 1.0})
    refused("particles", arrays=state["arrays"] | {"particles": np.zeros((5, 2))})
    refused("float32", arrays=state["arrays"] | {"square_avg": np.zeros((6, 2), np.float32)})
    refused("a dict", settings=3)
    refused("'format'", format=None)
    with pytest.raises(ValueError, match="exp_avg"):
        stein.SVGD(np.negative, x, step="adam").load_state_dict(state)
    (tmp_path / "broken").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a whole file"):
        sampler.load(tmp_path / "broken")


def test_x0_is_copied_and_particles_are_live():
    x = particles(5, 2, 62)
    kept = x.copy()
    sampler = stein.SVGD(np.negative, x)
    live = sampler.particles
    assert sampler.run(4) is live
    assert np.array_equal(x, kept)
    with pytest.raises(AttributeError):
        sampler.particles = x
    f = np.asfortranarray(x)
    assert np.array_equal(stein.SVGD(np.negative, f).run(4), live)


def test_score_gets_the_live_array_and_is_not_copied():
    x = particles(5, 2, 63)
    out, given = np.empty_like(x), []

    def score(points):
        given.append(points)
        return np.negative(points, out=out)

    sampler = stein.SVGD(score, x)
    assert sampler._evaluated("score", score, sampler.particles, (5, 2)) is out
    sampler.step()
    assert given[-1] is sampler.particles


def test_scores_of_other_float_dtypes_are_converted():
    x = particles(8, 2, 64, np.float32)
    narrow, wide = (stein.SVGD(score, x) for score in (np.negative, lambda p: -p.astype(np.float64)))
    assert narrow.run(5).tobytes() == wide.run(5).tobytes()
    torch = pytest.importorskip("torch")
    tensors = stein.SVGD(lambda p: -torch.from_numpy(p), x)
    assert tensors.run(5).tobytes() == narrow.particles.tobytes()


def test_callback_stops_the_run():
    sampler = stein.SVGD(np.negative, particles(4, 2, 65))
    sampler.run(10, callback=lambda s: s.n_steps == 3)
    assert (sampler.n_steps, sampler.n_evaluations) == (3, 12)
    sampler.run(2, callback=lambda s: None)
    assert sampler.n_steps == 5
    sampler.run(0)
    assert sampler.n_steps == 5


def test_progress_bar_goes_to_stderr(capsys):
    pytest.importorskip("tqdm")
    sampler = stein.SVGD(np.negative, particles(4, 2, 66))
    sampler.run(3)
    assert capsys.readouterr().err == ""
    sampler.run(3, progress=True)
    assert "/3" in capsys.readouterr().err
    sampler.run(3, progress=False)
    assert capsys.readouterr().err == ""


def test_lr_may_change_between_steps():
    x = particles(6, 2, 67)
    sampler = stein.SVGD(np.negative, x, step="sgd", lr=0.1)
    sampler.lr = 0.0
    assert np.array_equal(sampler.run(1), x)
    sampler.lr = -1.0
    with pytest.raises(ValueError, match="lr"):
        sampler.step()


def test_copies_are_refused():
    """Views of buffers would not be views in a copy."""
    sampler = stein.SVGD(np.negative, particles(6, 2, 68))
    for copy_of in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="state_dict"):
            copy_of(sampler)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x0", "error", "match"),
    [
        ([[1.0]], TypeError, "x0"),
        (np.zeros((3, 2), int), TypeError, "int64"),
        (np.zeros((3, 2), np.float16), TypeError, "float16"),
        (np.zeros((3, 2), ">f8"), TypeError, ">f8|float64"),
        (np.zeros(3), ValueError, r"reshape\(-1, 1\)"),
        (np.zeros((0, 2)), ValueError, "shape"),
        (np.zeros((2, 0)), ValueError, "shape"),
        (np.array([[0.0], [np.nan]]), ValueError, "row 1"),
        (np.array([[np.inf], [0.0]]), ValueError, "row 0"),
    ],
)
def test_bad_x0(x0, error, match):
    with pytest.raises(error, match=match):
        stein.SVGD(np.negative, x0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kernel": "cosine"}, ValueError, "kernel"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth"),
        ({"bandwidth": -1}, ValueError, "bandwidth"),
        ({"bandwidth": math.nan}, ValueError, "bandwidth"),
        ({"bandwidth": "mean"}, ValueError, "'scott'"),
        ({"bandwidth": None}, TypeError, "bandwidth"),
        ({"step": "rmsprop"}, ValueError, "step"),
        ({"lr": -0.1}, ValueError, "lr"),
        ({"lr": "0.1"}, TypeError, "lr"),
        ({"repulsion": -1.0}, ValueError, "repulsion"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"alpha": 1.0}, TypeError, "alpha"),
        ({"kernel": "rational_quadratic", "alpha": 0.0}, ValueError, "alpha"),
        ({"kernel": "exponent", "gamma": 3.0}, ValueError, "gamma"),
        ({"kernel": "polynomial", "degree": 0}, ValueError, "degree"),
        ({"kernel": "polynomial", "degree": 1.5}, TypeError, "degree"),
        ({"sigma": 1.0}, TypeError, "sigma"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        stein.SVGD(np.negative, np.zeros((3, 2)), **options)


@pytest.mark.parametrize(
    ("score", "error", "match"),
    [
        (lambda x: x[:1], ValueError, r"shape \(1, 2\), needs shape \(3, 2\)"),
        (lambda x: x.sum(1), ValueError, r"shape \(3,\)"),
        (lambda x: np.ones((3, 2), int), TypeError, "int64"),
        (lambda x: x + 1j, TypeError, "complex128"),
        (lambda x: x.tolist(), TypeError, "list"),
        (lambda x: None, TypeError, "NoneType"),
        (lambda x: 1.0, TypeError, "float"),
        (lambda x: np.where(np.arange(3)[:, None] == 1, np.nan, x), ValueError, "particle 1"),
        (lambda x: np.where(np.arange(3)[:, None] == 2, np.inf, x), ValueError, "particle 2"),
        (lambda x: 1 / 0, ZeroDivisionError, "division"),
    ],
)
def test_bad_scores_change_nothing(score, error, match):
    x = particles(3, 2, 70)
    calls = []

    def first_fine(points):
        calls.append(0)
        return -points if len(calls) == 1 else score(points)

    sampler = stein.SVGD(first_fine, x, step="adam")
    sampler.step()
    before = sampler.state_dict()
    with pytest.raises(error, match=match):
        sampler.step()
    after = sampler.state_dict()
    assert after["n_steps"] == 1
    assert all(np.array_equal(after["arrays"][k], before["arrays"][k]) for k in before["arrays"])


def test_bandwidth_too_small_for_the_dtype():
    x = particles(3, 2, 72, np.float32)
    sampler = stein.SVGD(np.negative, x, bandwidth=1e-30)
    with pytest.raises(ValueError, match="no finite direction"):
        sampler.step()
    assert np.array_equal(sampler.particles, x)


def test_ctrl_c_in_a_score_changes_nothing():
    def score(points):
        raise KeyboardInterrupt

    sampler = stein.SVGD(score, particles(3, 2, 71))
    with pytest.raises(KeyboardInterrupt):
        sampler.run(5)
    assert sampler.n_steps == 0


def test_not_functions():
    x = np.zeros((2, 2))
    with pytest.raises(TypeError, match="score"):
        stein.SVGD(None, x)
    with pytest.raises(TypeError, match="log_density"):
        stein.GradientFreeSVGD(3, x)
    with pytest.raises(TypeError, match="surrogate"):
        stein.GradientFreeSVGD(np.sum, x, surrogate="kde")
    with pytest.raises(TypeError, match="callback"):
        stein.SVGD(np.negative, x).run(1, callback=1)
    with pytest.raises(ValueError, match="'n'"):
        stein.SVGD(np.negative, x).run(-1)


def test_curvk_does_not_import_it(run_python):
    run_python(
        "import sys, curvk\n"
        "assert not any(name.startswith('curvk.stein') for name in sys.modules)\n"
        "assert curvk.stein.SVGD.__name__ == 'SVGD'\n"
        "assert not {'sklearn', 'scipy', 'torch', 'tqdm'} & set(sys.modules)"
    )
