"""What every public class and family does in use, on small data: for tests that watch memory while it runs.

`EXERCISES[name]` makes, in a folder, a function without arguments that makes an object and uses it once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from curvk import curvature, optim, sketch, stein, zeroth
from curvk.kernels import budget, gram, half, sweep
from curvk.kernels import stein as stein_kernels
from curvk.stein import problems

Work = Callable[[], object]
EXERCISES: dict[str, Callable[[Path], Work]] = {}


def has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def exercise(name: str, *given: Any) -> Callable[[Callable[..., Work]], Callable[..., Work]]:
    """Registers a maker; it is called with the folder and what is given here."""

    def register(make: Callable[..., Work]) -> Callable[..., Work]:
        assert name not in EXERCISES, name
        EXERCISES[name] = lambda folder: make(folder, *given)
        return make

    return register


def normals(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


ROWS = normals(1, 14, 3, dtype=np.float64)
LABELS = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(int)
LABELS[:2] = 0, 1

# ---- optimizers -----------------------------------------------------------------------------------------------------

EIGHT = {"state_bits": 8}
STORAGES: dict[str, dict[str, Any]] = {
    "whole": {"max_grad_norm": 1.0, "skip_nonfinite": True},
    "16 bits": {"state_bits": 16, "master": "split16", "ema": 0.9},
    "8 bits": EIGHT | {"rounding": "stochastic"},
    "bitsandbytes": EIGHT | {"state_format": "bitsandbytes", "rounding": "kahan", "zero_grad": True},
}


def _numpy_optimizer(folder: Path, kind: str, options: dict[str, Any]) -> Work:
    stored = {"master": "bf16", "rounding": "f16"}
    formats: list[Any] = [stored[key] for key in options if key in stored]

    def arrays(seed: int) -> list[np.ndarray]:
        made = [normals(seed, 5, 7), normals(seed + 1, 33)]
        return [half.from_float32(x, formats[0]) for x in made] if formats else made

    gradients = arrays(2)

    def work() -> None:
        params = arrays(0)
        optimizer = getattr(optim, kind)(params, lr=0.01, **options)
        for loss in (1.0, 2.0):
            optimizer.step([g.copy() for g in gradients], *([loss] if kind == "AdamZ" else []))
        path = folder / "state"
        optimizer.save(path)
        optimizer.load(path)
        optimizer.load_state_dict(optimizer.state_dict())
        if "ema" in options:
            with optimizer.averaged():
                pass

    return work


for _kind in ("SGD", "Adam", "AdamW", "AdamZ"):
    for _name, _options in STORAGES.items():
        _more = {"momentum": 0.9} if _kind == "SGD" else {"amsgrad": True} if _name == "whole" else {}
        exercise(f"optim.{_kind}, {_name}", _kind, _options | _more)(_numpy_optimizer)
exercise("optim.Lion", "Lion", {"max_grad_norm": 1.0})(_numpy_optimizer)


def quadratic(params: list[np.ndarray]) -> Callable[[], list[np.ndarray]]:
    return lambda: [2 * x for x in params]


for _bits in (32, 8):

    @exercise(f"optim.Alice, {_bits} bits", _bits)
    def _alice(folder: Path, bits: int) -> Work:
        def work() -> None:
            params = [normals(0, 5, 7), normals(1, 33)]
            optimizer = optim.Alice(params, lr=0.01, sigma=1e-3, state_bits=bits)
            for _ in range(3):
                optimizer.step(quadratic(params))
            optimizer.save(folder / "state")
            optimizer.load(folder / "state")

        return work


@exercise("optim.SAM")
def _sam(folder: Path) -> Work:
    def work() -> None:
        params = [normals(0, 5, 7)]
        optimizer = optim.SAM(optim.AdamW(params), rho=0.1, adaptive=True)
        for _ in range(2):
            optimizer.step(quadratic(params))
        optimizer.save(folder / "state")
        optimizer.load(folder / "state")

    return work


@exercise("optim.LossAdaptiveLR")
def _loss_lr(folder: Path) -> Work:
    def work() -> None:
        rule = optim.LossAdaptiveLR(optim.SGD([normals(0, 5)]), patience=3, stagnation_period=2)
        for loss in (1.0, 2.0, 0.5):
            rule.report_loss(loss)
        rule.load_state_dict(rule.state_dict())

    return work


@exercise("optim.convert_state_dict")
def _convert(folder: Path) -> Work:
    optimizer = optim.Adam([normals(0, 64)])
    optimizer.step([normals(1, 64)])
    state = optimizer.state_dict()
    return lambda: optim.convert_state_dict(state, state_bits=8)


# ---- without gradients, and curvature -------------------------------------------------------------------------------

LAYERED = {"LeZO": {"layers": [[0], [1]]}, "AdaLeZO": {"layers": [[0], [1]]}}
ZEROTH = ("MeZO", "LeZO", "AdaLeZO", "LOZO", "SparseMeZO", "FZOO", "ES")


def loss_of(params: list[np.ndarray]) -> float:
    return float(sum(np.square(x, dtype=np.float64).sum() for x in params))


for _kind in ZEROTH:

    @exercise(f"zeroth.{_kind}", _kind)
    def _zeroth(folder: Path, kind: str) -> Work:
        def work() -> None:
            params = [normals(0, 5, 7), normals(1, 33), normals(2, 4)]
            optimizer = getattr(zeroth, kind)(params, lr=0.01, **LAYERED.get(kind, {}))
            optimizer.step(loss_of)
            optimizer.step(loss_of)
            optimizer.log.save(folder / "log")
            zeroth.ZOLog.load(folder / "log").replay([normals(0, 5, 7), normals(1, 33), normals(2, 4)], verify=False)

        return work


def cubes(x: Any) -> Any:
    return {name: a**3 for name, a in x.items()}


@exercise("curvature.GlassProbe")
def _glass(folder: Path) -> Work:
    def work() -> None:
        result = curvature.GlassProbe(cubes, {"w": normals(0, 3, 4), "b": normals(1, 4)}, sigma=0.01).run(samples=2)
        result.save(folder / "table.csv")
        repr(result)

    return work


@exercise("curvature.hessian_diagonal")
def _diagonal(folder: Path) -> Work:
    return lambda: curvature.hessian_diagonal(cubes, {"w": normals(0, 3)}, samples=2, sigma=1e-3)


# ---- rows: gram, budgets, codes -------------------------------------------------------------------------------------


@exercise("gram.Centers and products")
def _centers(folder: Path) -> Work:
    w = np.ones(14)

    def work() -> None:
        centers = gram.Centers(ROWS)
        for kernel in ("gaussian", "laplacian"):
            gram.matvec(ROWS, centers, w, kernel=kernel, bandwidth=2.0)
            gram.rmatvec(ROWS, centers, w, kernel=kernel, bandwidth=2.0)
        gram.block(ROWS, ROWS, kernel="linear")
        gram.row_sums(ROWS, centers, bandwidth=1.0)
        gram.distances(ROWS, ROWS)
        gram.diagonal(ROWS, bandwidth=1.0)
        gram.median_distance(ROWS)

    return work


@exercise("gram.Landmarks")
def _landmarks(folder: Path) -> Work:
    def work() -> None:
        landmarks = gram.Landmarks.of(ROWS)
        for row in ROWS[:5]:
            landmarks.append(row)
        gram.matvec(ROWS, landmarks, np.ones(len(landmarks)), bandwidth=1.0)

    return work


@exercise("budget.Expansion")
def _expansion(folder: Path) -> Work:
    K, y = gram.block(ROWS, ROWS, bandwidth=1.0), np.where(LABELS, 1.0, -1.0)[:, None]

    def work() -> None:
        expansion = budget.Expansion(20)
        budget.learn(np.zeros((14, 0)), K, y, np.empty((14, 1)), expansion)
        budget.predict(K[:, : expansion.slots].copy(), expansion)
        expansion.resize(30)

    return work


@exercise("sweep.Codes")
def _codes(folder: Path) -> Work:
    x = normals(0, 300)

    def work() -> None:
        for form in ("curvk", "bitsandbytes"):
            sweep.dequantize(sweep.quantize(x, format=form))

    return work


@exercise("stein.Rates")
def _rates(folder: Path) -> Work:
    return lambda: stein_kernels.Rates(5, 8).scalars(3)


# ---- sketches and samplers ------------------------------------------------------------------------------------------

SKETCHES: dict[str, Callable[[], Any]] = {
    "SJLT": lambda: sketch.SJLT(8, 3),
    "CountSketch": lambda: sketch.CountSketch(8, 3),
    "FrequentDirections": lambda: sketch.FrequentDirections(2, 3),
    "RobustFrequentDirections": lambda: sketch.RobustFrequentDirections(2, 3),
    "IncrementalSVD, brand": lambda: sketch.IncrementalSVD(2, 3, keep_U=True),
    "IncrementalSVD, block": lambda: sketch.IncrementalSVD(2, 3, block=5),
}

for _name, _make in SKETCHES.items():

    @exercise(f"sketch.{_name}", _make)
    def _sketch(folder: Path, make: Callable[[], Any]) -> Work:
        def work() -> None:
            one = make()
            one.update(ROWS)
            np.asarray(one.sketch)
            one.save(folder / "sketch")
            type(one).load(folder / "sketch").update(ROWS[:2])

        return work


@exercise("sketch.randomized_svd")
def _randomized(folder: Path) -> Work:
    return lambda: sketch.randomized_svd(ROWS, 2)


MIXTURE = problems.four_modes()
START = normals(0, 6, 2, dtype=np.float64)
SAMPLERS: dict[str, Callable[[], Any]] = {
    "SVGD": lambda: stein.SVGD(MIXTURE.score, START),
    "GradientFreeSVGD": lambda: stein.GradientFreeSVGD(MIXTURE.log_density, START),
    "SVOpenAIES": lambda: stein.SVOpenAIES(MIXTURE.log_density, START, sigma=0.25),
    "SVCMAES": lambda: stein.SVCMAES(MIXTURE.log_density, START, sigma0=0.25, popsize=4),
}

for _name, _make in SAMPLERS.items():

    @exercise(f"stein.{_name}", _make)
    def _sampler(folder: Path, make: Callable[[], Any]) -> Work:
        def work() -> None:
            sampler = make()
            sampler.run(2)
            sampler.save(folder / "sampler")
            sampler.load(folder / "sampler")

        return work


@exercise("stein measures")
def _measures(folder: Path) -> Work:
    def work() -> None:
        stein.ksd(START, MIXTURE.score(START))
        stein.mmd2(START, START + 1)

    return work


# ---- estimators -----------------------------------------------------------------------------------------------------

SMALL = {"budget": 6, "n_components": 6, "rank": 2, "sketch_size": 4, "landmarks": 3, "n_centers": 6, "random_state": 0}

if has("sklearn") and has("scipy"):
    from inspect import signature

    from curvk import machines, online

    def _estimator(folder: Path, kind: Any) -> Work:
        options = {k: v for k, v in SMALL.items() if k in signature(kind).parameters}
        path = folder / "estimator"

        def work() -> None:
            learner = kind(bandwidth=1.0, **options)
            if hasattr(learner, "partial_fit"):
                more = {"classes": [0, 1]} if kind.__name__.endswith("Classifier") else {}
                learner.partial_fit(ROWS[:7], LABELS[:7], **more)
                learner.partial_fit(ROWS[7:], LABELS[7:])
            else:
                learner.fit(ROWS, LABELS)
            learner.predict(ROWS)
            learner.save(path)
            kind.load(path).predict(ROWS[:2])

        return work

    for _module in (machines, online):
        for _name in _module.__all__:
            exercise(f"{_module.__name__.removeprefix('curvk.')}.{_name}", getattr(_module, _name))(_estimator)

# ---- torch ----------------------------------------------------------------------------------------------------------

if has("torch"):

    def _tensors() -> list[Any]:
        import torch

        return [torch.nn.Parameter(torch.from_numpy(normals(k, 3, 5))) for k in range(2)]

    def _closure(params: list[Any]) -> Callable[[], Any]:
        import torch

        def closure() -> Any:
            for p in params:
                p.grad = None
            with torch.enable_grad():
                loss = sum((p**4).sum() for p in params)
                loss.backward()
            return loss

        return closure

    def _torch_optimizer(folder: Path, kind: str, options: dict[str, Any]) -> Work:
        import curvk.torch as ct

        def work() -> None:
            params = _tensors()
            if kind == "SAM":
                optimizer = ct.SAM(ct.AdamW(params, **options))
            else:
                optimizer = getattr(ct, kind)(params, lr=0.01, **options)
            for _ in range(2):
                optimizer.step(_closure(params))
            optimizer.load_state_dict(optimizer.state_dict())

        return work

    for _kind in ("SGD", "Adam", "AdamW", "AdamZ", "SAM"):
        for _name, _options in STORAGES.items():
            _plain = {k: v for k, v in _options.items() if k not in ("master", "zero_grad", "rounding")}
            _more = {"momentum": 0.9} if _kind == "SGD" else {}
            exercise(f"torch.{_kind}, {_name}", _kind, _plain | _more)(_torch_optimizer)
    exercise("torch.Lion", "Lion", {})(_torch_optimizer)
    exercise("torch.Alice", "Alice", {"sigma": 1e-3})(_torch_optimizer)

    def _torch_zeroth(folder: Path, kind: str) -> Work:
        import curvk.torch as ct
        import torch

        x = torch.from_numpy(normals(9, 5, 3))
        layers = {"layers": ["0", "1", "2"]} if kind in LAYERED else {}

        def work() -> None:
            model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
            optimizer = getattr(ct, kind)(model, lr=0.01, **layers)
            optimizer.step(lambda: model(x).square().mean())

        return work

    for _kind in ZEROTH:
        exercise(f"torch.{_kind}", _kind)(_torch_zeroth)

    @exercise("torch.GlassProbe and hessian_diagonal")
    def _torch_probe(folder: Path) -> Work:
        import curvk.torch as ct
        import torch

        x = torch.from_numpy(normals(9, 5, 3))

        def work() -> None:
            model = torch.nn.Linear(3, 3)

            def closure() -> Any:
                return model(x).square().mean()

            ct.GlassProbe(model, closure, sigma=1e-3).run(samples=2)
            ct.hessian_diagonal(model, closure, samples=2, sigma=1e-3)

        return work
