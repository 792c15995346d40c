"""One object of every public class, warm from some use, and what it does next.

`MAKERS[class path]` returns (object, act): `act(object)` uses it once more and returns all that it gave as bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import curvk
import numpy as np
from curvk import curvature, optim, sketch, stein, zeroth
from curvk.kernels import budget, gram, sweep
from curvk.kernels import curvature as curvature_kernels
from curvk.kernels import stein as stein_kernels
from curvk.stein import problems

Act = Callable[[Any], bytes]
Made = tuple[Any, Act]
MAKERS: dict[str, Callable[[], Made]] = {}

ABSTRACT = {"curvk.sketch.Sketch", "curvk.stein.Sampler"}  # bases to subclass
OPTIONAL = {  # what a module's import needs
    "curvk.torch": ("torch",),
    "curvk.machines": ("sklearn", "scipy"),
    "curvk.online": ("sklearn", "scipy"),
    "curvk.online.river": ("river", "sklearn", "scipy"),
}


def maker(*paths: str) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Registers a maker for these class paths; one with a parameter is given the class."""

    def register(make: Callable[..., Made]) -> Callable[..., Made]:
        for path in paths:
            MAKERS[path] = (lambda path=path: make(class_of(path))) if make.__code__.co_argcount else make
        return make

    return register


def class_of(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def raw(*results: Any) -> bytes:
    """The bits of arrays, numbers and trees of them."""
    parts = []
    for x in results:
        if isinstance(x, dict):
            parts.append(raw(*x.keys(), *x.values()))
        elif isinstance(x, (list, tuple)):
            parts.append(raw(*x))
        elif x is None or isinstance(x, (str, bool, int)):
            parts.append(repr(x).encode())
        else:
            x = np.asarray(x.detach() if hasattr(x, "detach") else x)
            assert x.dtype != object
            parts.append(f"{x.dtype}{x.shape}".encode() + x.tobytes())
    return b"|".join(parts)


def normals(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


ROWS = normals(1, 60, 5)
LABELS = (ROWS[:, 0] + ROWS[:, 1] ** 2 > 0.5).astype(int)


# ---- optimizers on NumPy arrays --------------------------------------------------------------------------------------


def step_arrays(optimizer: Any) -> bytes:
    arrays = optimizer.param_groups[0]["params"]
    optimizer.step([normals(2, *p.shape) for p in arrays])
    return raw(*arrays)


@maker(*(f"curvk.optim.{name}" for name in ("SGD", "Adam", "AdamW", "AdamZ", "Lion")))
def _optim(kind: Any) -> Made:
    optimizer = kind([normals(0, 3, 4), normals(1, 5)], lr=0.0125, max_grad_norm=3.5)
    step_arrays(optimizer)
    return optimizer, step_arrays


def quadratic(arrays: Any) -> list[Any]:
    return [2 * x for x in arrays]


@maker("curvk.optim.Alice")
def _alice() -> Made:
    return optim.Alice([normals(0, 3, 4)], lr=0.0125, sigma=1e-3, lr_max=0.25), lambda o: raw(repr(o))


@maker("curvk.optim.SAM")
def _sam() -> Made:
    return optim.SAM(optim.AdamW([normals(0, 3, 4)], lr=0.0125), rho=0.125), lambda o: raw(repr(o))


class Groups:
    """The least that `LossAdaptiveLR` takes."""

    def __init__(self) -> None:
        self.param_groups = [{"lr": 0.5}]

    def __repr__(self) -> str:
        return f"Groups({self.param_groups})"


def report(rule: Any) -> bytes:
    for loss in (1.0, 3.0, 2.0, 4.0):
        rule.report_loss(loss)
    return raw(rule.optimizer.param_groups[0]["lr"], rule.state_dict())


@maker("curvk.optim.LossAdaptiveLR")
def _loss_lr() -> Made:
    rule = optim.LossAdaptiveLR(Groups(), patience=3, stagnation_period=2, min_lr=1e-3)
    report(rule)
    return rule, report


# ---- kernels: plans bound to memory, packed rows, numbers -----------------------------------------------------------


@maker("curvk.kernels.optim.AdamPlan", "curvk.kernels.sweep.AdamSweepPlan")
def _adam_plan(kind: Any) -> Made:
    return kind(*([normals(i, 7)] for i in range(4))), lambda plan: raw(plan.step(step=1, lr=0.5))


@maker("curvk.kernels.optim.SGDPlan", "curvk.kernels.optim.LionPlan", "curvk.kernels.sweep.SGDSweepPlan")
def _sgd_plan(kind: Any) -> Made:
    return kind(*([normals(i, 7)] for i in range(3))), lambda plan: raw(plan.step(lr=0.5))


@maker("curvk.kernels.curvature.AlicePlan")
def _alice_plan() -> Made:
    arrays = [[normals(i, 7)] for i in range(8)]
    return curvature_kernels.AlicePlan(*arrays[:8]), lambda plan: raw(len(plan._columns))


@maker("curvk.kernels.gram.Centers", "curvk.kernels.gram.Landmarks")
def _centers(kind: Any) -> Made:
    rows = normals(3, 40, 17)
    made = kind(rows) if kind is gram.Centers else kind.of(rows)

    def act(z: Any) -> bytes:
        if kind is gram.Landmarks:
            z.append(normals(len(z), 17))
        return raw(gram.matvec(normals(4, 9, 17), z, np.ones(len(z)), bandwidth=2.0))

    act(made)
    return made, act


@maker("curvk.kernels.budget.Expansion")
def _expansion() -> Made:
    made = budget.Expansion(7, 2, "forgetron")
    made.resize(9)
    return made, lambda e: raw(e.coef, e.matrix, e.sums, e.counts, e.rule)


@maker("curvk.kernels.stein.Rates")
def _rates() -> Made:
    return stein_kernels.Rates(5, 8), lambda rates: raw(repr(rates))


@maker("curvk.kernels.sweep.Codes")
def _codes() -> Made:
    return sweep.quantize(normals(0, 300).astype(np.float32)), lambda codes: raw(sweep.dequantize(codes))


@maker("curvk.threads")
def _threads() -> Made:
    def act(limit: Any) -> bytes:
        with limit:
            return raw(curvk.get_num_threads())

    return curvk.threads(1), act


# ---- sketches, samplers and their problems --------------------------------------------------------------------------


@maker(*(f"curvk.sketch.{name}" for name in ("FrequentDirections", "RobustFrequentDirections")))
def _directions(kind: Any) -> Made:
    made = kind(4, 5)
    made.update(ROWS)
    return made, feed


@maker("curvk.sketch.SJLT", "curvk.sketch.CountSketch")
def _hashing(kind: Any) -> Made:
    made = kind(8, 5, seed=7)
    made.update(ROWS)
    return made, feed


@maker("curvk.sketch.IncrementalSVD")
def _svd() -> Made:
    made = sketch.IncrementalSVD(3, 5, keep_U=True)
    made.update(ROWS)
    return made, feed


def feed(s: Any) -> bytes:
    s.update(ROWS[:7] + s.rows_seen)
    numbers, arrays = s._state()
    return raw(s.rows_seen, numbers, arrays, s.sketch if hasattr(s, "sketch") else s.Vt)


MIXTURE = problems.four_modes()


@maker("curvk.stein.SVGD")
def _svgd() -> Made:
    return sampler(stein.SVGD(MIXTURE.score, normals(0, 12, 2), lr=0.25))


@maker("curvk.stein.GradientFreeSVGD")
def _gradient_free() -> Made:
    return sampler(stein.GradientFreeSVGD(MIXTURE.log_density, normals(0, 12, 2), lr=0.25))


@maker("curvk.stein.SVOpenAIES")
def _openai_es() -> Made:
    return sampler(stein.SVOpenAIES(MIXTURE.log_density, normals(0, 12, 2), sigma=0.25))


@maker("curvk.stein.SVCMAES")
def _cmaes() -> Made:
    return sampler(stein.SVCMAES(MIXTURE.log_density, normals(0, 12, 2), sigma0=0.25, popsize=4))


def sampler(made: Any) -> Made:
    made.run(3)
    return made, lambda s: raw(s.run(2))


def density(p: Any) -> bytes:
    return raw(p.log_density(normals(5, 6, 2)))


@maker("curvk.stein.problems.DoubleBanana")
def _banana() -> Made:
    return problems.DoubleBanana(), density


@maker("curvk.stein.problems.Gaussian")
def _gaussian() -> Made:
    return problems.Gaussian([0.0, 1.0], [[2.0, 0.5], [0.5, 1.0]]), density


@maker("curvk.stein.problems.GaussianMixture")
def _mixture() -> Made:
    return problems.four_modes(3), density


@maker("curvk.stein.problems.LogisticRegression")
def _logistic() -> Made:
    problem = problems.LogisticRegression(ROWS[:, :2], LABELS, prior_scale=2.5)
    return problem, density


@maker("curvk.stein.problems.Pendulum")
def _pendulum() -> Made:
    problem = problems.Pendulum(hidden=3, steps=11)
    return problem, lambda p: raw(p.log_density(normals(5, 4, p.d)))


# ---- without gradients, and curvature -------------------------------------------------------------------------------

ZEROTH = ("MeZO", "LeZO", "AdaLeZO", "SparseMeZO", "LOZO", "FZOO", "ES")


def loss_of(arrays: Any) -> float:
    return float(sum(np.square(x, dtype=np.float64).sum() for x in arrays))


@maker(*(f"curvk.zeroth.{name}" for name in ZEROTH))
def _zeroth(kind: Any) -> Made:
    arrays = [normals(i, 3, 4).astype(np.float32) for i in range(3)]
    layers = {"layers": [[0], [1]]} if "Le" in kind.__name__ else {}
    optimizer = kind(arrays, lr=0.0125, eps=2e-3, **layers)
    optimizer.step(loss_of)
    return optimizer, lambda o: raw(o.step(loss_of), o.log.crc)


@maker("curvk.zeroth.ZOLog", "curvk.torch.ZOLog")
def _log() -> Made:
    optimizer = zeroth.MeZO([normals(0, 3).astype(np.float32)], lr=0.0125, seed=11)
    for _ in range(3):
        optimizer.step(loss_of)

    def act(log: Any) -> bytes:
        x = [normals(0, 3).astype(np.float32)]
        log.replay(x)
        return raw(log.crc, x)

    return optimizer.log, act


def cubes(x: Any) -> Any:
    return {name: a**3 for name, a in x.items()}


def probe() -> Any:
    return curvature.GlassProbe(cubes, {"w": normals(0, 3, 4), "b": normals(1, 4)}, sigma=0.0125)


@maker("curvk.curvature.GlassProbe")
def _probe() -> Made:
    return probe(), lambda p: raw(p.run(samples=2).table())


@maker("curvk.curvature.GlassResult")
def _result() -> Made:
    return probe().run(samples=2), lambda r: raw(r.table(), r.rho, r.h2)


@maker("curvk.curvature.LayerGlass")
def _layer() -> Made:
    return probe().run(samples=2).layers["w"], lambda x: raw(repr(x))


@maker("curvk.curvature.Reading")
def _reading() -> Made:
    return probe().run(samples=2).layers["w"].readings[0], lambda x: raw(repr(x))


@maker("curvk.curvature.Estimate")
def _estimate() -> Made:
    return curvature.Estimate(2.0, 1.5, 2.5), raw


@maker("curvk.curvature.Diagonal")
def _diagonal() -> Made:
    return curvature.hessian_diagonal(cubes, {"w": normals(0, 3)}, samples=2, sigma=1e-3), raw


# ---- estimators ------------------------------------------------------------------------------------------------------

LEARNERS = ("BOGD", "BPAS", "FOGD", "FORKS", "Forgetron", "KONS", "KernelPerceptron", "NOGD", "PROSNKONS")
LEARNERS += ("Projectron", "RBP", "SkeGD")
REGRESSORS = ("FOGD", "FORKS", "KONS", "NOGD", "PROSNKONS")
SMALL = {"budget": 12, "n_components": 12, "rank": 4, "sketch_size": 8, "landmarks": 6}


def shrunk(kind: Any) -> Any:
    """An instance with a budget that 60 rows exceed."""
    from inspect import signature

    return kind(bandwidth=2.5, **{k: v for k, v in SMALL.items() if k in signature(kind).parameters})


@maker(
    "curvk.machines.EigenPro4Classifier",
    "curvk.machines.EigenPro4Regressor",
    "curvk.machines.KernelRidgeCG",
    "curvk.machines.KernelRidgeCGClassifier",
)
def _machine(kind: Any) -> Made:
    machine = kind(n_centers=20, kernel="gaussian", bandwidth=2.5, random_state=0)
    machine.fit(ROWS, LABELS)
    return machine, lambda m: raw(m.predict(ROWS), m.fit(ROWS, LABELS).coef_)


@maker(*(f"curvk.online.{name}Classifier" for name in LEARNERS), *(f"curvk.online.{n}Regressor" for n in REGRESSORS))
def _learner(kind: Any) -> Made:
    learner = shrunk(kind)
    learner.progressive(ROWS, LABELS)

    def act(learner: Any) -> bytes:
        predicted = learner.predict(ROWS)
        learner.partial_fit(ROWS[::-1] + 0.125, LABELS[::-1])
        return raw(predicted, learner.predict(ROWS))

    return learner, act


@maker(*(f"curvk.online.river.{n}" for n in LEARNERS), *(f"curvk.online.river.{n}Regressor" for n in REGRESSORS))
def _river(kind: Any) -> Made:
    return stream(shrunk(kind))


@maker("curvk.online.river.Classifier")
def _river_classifier(kind: Any) -> Made:
    return stream(kind(shrunk(class_of("curvk.online.FORKSClassifier"))))


@maker("curvk.online.river.Regressor")
def _river_regressor(kind: Any) -> Made:
    return stream(kind(shrunk(class_of("curvk.online.FORKSRegressor"))))


def stream(learner: Any) -> Made:
    def act(learner: Any) -> bytes:
        predicted = []
        for x, y in zip(ROWS.tolist(), LABELS.tolist(), strict=True):
            event = dict(zip("abcde", x, strict=True))
            predicted.append(learner.predict_one(event))
            learner.learn_one(event, y)
        return raw(predicted)

    act(learner)
    return learner, act


# ---- torch -----------------------------------------------------------------------------------------------------------


def step_tensors(optimizer: Any) -> bytes:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.step(_closure(params))
    return raw(*params)


def _closure(params: Any) -> Callable[[], Any]:
    import torch

    def closure() -> Any:
        for p in params:
            p.grad = None
        with torch.enable_grad():
            loss = sum((p**4).sum() for p in params)
            loss.backward()
        return loss

    return closure


def tensors() -> list[Any]:
    import torch

    return [torch.nn.Parameter(torch.from_numpy(normals(i, 3, 4))) for i in range(2)]


@maker(*(f"curvk.torch.{name}" for name in ("SGD", "Adam", "AdamW", "AdamZ", "Lion", "Alice")))
def _torch(kind: Any) -> Made:
    optimizer = kind(tensors(), lr=0.0125)
    step_tensors(optimizer)
    return optimizer, step_tensors


@maker("curvk.torch.SAM")
def _torch_sam(kind: Any) -> Made:
    optimizer = kind(class_of("curvk.torch.AdamW")(tensors(), lr=0.0125), rho=0.125)
    step_tensors(optimizer)
    return optimizer, step_tensors


def network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))


@maker(*(f"curvk.torch.{name}" for name in ZEROTH))
def _torch_zeroth(kind: Any) -> Made:
    import torch

    x = torch.from_numpy(normals(9, 5, 3)).float()

    def act(optimizer: Any) -> bytes:
        model = optimizer.model
        return raw(optimizer.step(lambda: model(x).square().mean()), *model.parameters())

    layers = {"layers": ["0", "1", "2"]} if "Le" in kind.__name__ else {}
    optimizer = kind(network(), lr=0.0125, eps=2e-3, **layers)
    act(optimizer)
    return optimizer, act


class Closure:
    """A closure over a model that pickles, and that a deep copy takes along."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self) -> Any:
        import torch

        return self.model(torch.from_numpy(normals(9, 5, 3)).float()).square().mean()


@maker("curvk.torch.GlassProbe")
def _torch_probe(kind: Any) -> Made:
    model = network()
    return kind(model, Closure(model), sigma=1e-3), lambda p: raw(p.run(samples=2).table())
