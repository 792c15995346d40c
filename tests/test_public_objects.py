"""Every public object: it pickles, copies and shows its settings, or says at once why it cannot and what to do."""

from __future__ import annotations

import copy
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from typing import Any

import curvk
import numpy as np
import pytest
from public_makers import ABSTRACT, MAKERS, OPTIONAL, raw

# Bound to memory that is the caller's, or to views of their own.
REFUSE = {f"curvk.optim.{name}": "use state_dict or save" for name in ("SGD", "Adam", "AdamW", "AdamZ", "Lion")}
REFUSE |= {f"curvk.optim.{name}": "use state_dict or save" for name in ("Alice", "SAM")}
REFUSE |= {f"curvk.kernels.optim.{name}": "make another one" for name in ("SGDPlan", "AdamPlan", "LionPlan")}
REFUSE |= {f"curvk.kernels.sweep.{name}": "make another one" for name in ("SGDSweepPlan", "AdamSweepPlan")}
REFUSE |= {"curvk.kernels.curvature.AlicePlan": "make another one"}
REFUSE |= {f"curvk.stein.{n}": "use state_dict" for n in ("SVGD", "GradientFreeSVGD", "SVOpenAIES", "SVCMAES")}
REFUSE |= {
    f"curvk.zeroth.{name}": "use its log" for name in ("MeZO", "LeZO", "AdaLeZO", "SparseMeZO", "LOZO", "FZOO", "ES")
}
COPIED = sorted(MAKERS.keys() - REFUSE.keys())

# A shallow copy shares what a class only refers to: a river adapter's learner, torch's parameters and states.
SHALLOW = re.compile(r"curvk\.(torch|online\.river)\.(?!ZOLog)")


def modules() -> list[str]:
    """The public modules that can be imported here."""
    found = ["curvk"]
    for name in found:
        module = import_module(name)
        for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
            full = f"{name}.{info.name}"
            public = not info.name.startswith(("_", "libcurvk")) and info.name not in ("capi", "cli")
            if public and all(_there(need) for need in OPTIONAL.get(full, ())):
                found.append(full)
    return found


def _there(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def made(path: str) -> Any:
    for prefix, needs in OPTIONAL.items():
        if path.startswith(prefix + "."):
            for need in needs:
                pytest.importorskip(need)
    return MAKERS[path]()


def names_of(module: str) -> list[str]:
    """A module's public names, but for modules that cannot be imported here."""
    names = import_module(module).__all__
    return [name for name in names if all(map(_there, OPTIONAL.get(f"{module}.{name}", ())))]


def public_classes() -> set[str]:
    return {
        f"{name}.{public}"
        for name in modules()
        for public in names_of(name)
        if inspect.isclass(getattr(import_module(name), public))
    }


def test_every_public_class_has_a_maker() -> None:
    found = public_classes()
    assert found - MAKERS.keys() == ABSTRACT
    assert len(found) > 60 or not _there("sklearn")
    assert {path for path in MAKERS if path.rpartition(".")[0] in modules()} <= found
    for path in MAKERS:
        if path in found:
            thing = made(path)[0]
            assert type(thing) is getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2])


def shown(thing: Any) -> str:
    return repr(thing).replace("    differentiable: False\n", "")  # a key that torch adds to what it unpickles


@pytest.mark.parametrize("path", COPIED)
@pytest.mark.parametrize("how", ["pickle 2", "pickle 5", "deepcopy"])
def test_a_copy_does_what_the_original_does(path: str, how: str) -> None:
    thing, act = made(path)
    other = copy.deepcopy(thing) if how == "deepcopy" else pickle.loads(pickle.dumps(thing, int(how[-1])))
    assert type(other) is type(thing)
    assert shown(other) == shown(thing)
    copied = [act(other), act(other)]
    assert [act(thing), act(thing)] == copied  # and nothing was shared: the copy's two acts are not seen here
    again = [act(made(path)[0]) for _ in range(2)]
    assert again[0] == again[1] == copied[0]


@pytest.mark.parametrize("path", [path for path in COPIED if not SHALLOW.match(path)])
def test_a_shallow_copy_is_independent_where_an_act_changes_state(path: str) -> None:
    thing, act = made(path)
    other = copy.copy(thing)
    if path == "curvk.optim.LossAdaptiveLR":
        other.optimizer = copy.deepcopy(thing.optimizer)  # a shallow copy steers the same optimizer
    copied = [act(other), act(other)]
    assert [act(thing), act(thing)] == copied


@pytest.mark.parametrize("path", sorted(REFUSE))
def test_what_is_bound_to_memory_says_so(path: str) -> None:
    thing, act = made(path)
    name = path.rpartition(".")[2]
    for way in (copy.copy, copy.deepcopy, lambda x: pickle.dumps(x, 2), lambda x: pickle.dumps(x, 5)):
        with pytest.raises(TypeError, match=rf"^{name} (holds|is bound to).*copied or pickled; {REFUSE[path]}"):
            way(thing)
    assert act(thing) == act(made(path)[0])


# ---- repr ------------------------------------------------------------------------------------------------------------

SHOWN = {  # settings of the makers that differ from the defaults, or that tell objects apart
    "curvk.optim.SGD": ["lr=0.0125", "max_grad_norm=3.5", "2 arrays"],
    "curvk.optim.AdamZ": ["lr=0.0125", "max_grad_norm=3.5", "patience=100", "guard=False"],
    "curvk.optim.Alice": ["sigma=0.001", "lr_max=0.25", "quick_steps=3", "seed=0"],
    "curvk.optim.SAM": ["rho=0.125", "AdamW", "lr=0.0125"],
    "curvk.optim.LossAdaptiveLR": ["patience=3", "stagnation_period=2", "min_lr=0.001"],
    "curvk.kernels.optim.AdamPlan": ["adam_step", "1 arrays"],
    "curvk.kernels.gram.Centers": ["40 rows of 17", "float64"],
    "curvk.kernels.gram.Landmarks": ["41 rows of 17", "float64"],
    "curvk.kernels.budget.Expansion": ["0 of 9 slots", "outputs=2", "'forgetron'"],
    "curvk.threads": ["threads(1)"],
    "curvk.sketch.FrequentDirections": ["l=4", "d=5"],
    "curvk.sketch.SJLT": ["s=8", "seed=7"],
    "curvk.sketch.IncrementalSVD": ["k=3", "keep_U=True"],
    "curvk.stein.SVGD": ["12 particles of 2", "lr=0.25", "3 steps"],
    "curvk.stein.SVCMAES": ["sigma0=0.25", "popsize=4"],
    "curvk.stein.problems.GaussianMixture": ["4 components in 2 dimensions"],
    "curvk.stein.problems.LogisticRegression": ["60 rows of 2", "prior_scale=2.5"],
    "curvk.stein.problems.Pendulum": ["hidden=3", "steps=11", "temperature=10"],
    "curvk.zeroth.MeZO": ["lr=0.0125", "eps=0.002", "1 steps"],
    "curvk.zeroth.LeZO": ["lr=0.0125", "eps=0.002", "keep=1"],
    "curvk.zeroth.LOZO": ["rank=2", "interval=50"],
    "curvk.zeroth.ZOLog": ["3 steps", "seed=11", "'MeZO'"],
    "curvk.curvature.GlassProbe": ["sigma=0.0125", "16 parameters"],
    "curvk.machines.EigenPro4Classifier": ["n_centers=20", "kernel='gaussian'"],
    "curvk.online.FORKSClassifier": ["budget=12", "bandwidth=2.5", "rank=4"],
    "curvk.online.river.FORKS": ["budget=12", "bandwidth=2.5"],
    "curvk.torch.SGD": ["lr: 0.0125", "max_grad_norm: None"],
    "curvk.torch.AdamZ": ["lr: 0.0125", "patience: 100", "guard: False"],
    "curvk.torch.Alice": ["quick_steps: 3", "seed: 0"],
    "curvk.torch.SAM": ["rho: 0.125", "start=None", "lr: 0.0125"],
    "curvk.torch.LeZO": ["drop: 0.75", "eps: 0.002", "1 steps"],
    "curvk.torch.GlassProbe": ["sigma=0.001", "36 parameters"],
}


@pytest.mark.parametrize("path", sorted(MAKERS))
def test_repr_tells_the_settings(path: str) -> None:
    thing, _ = made(path)
    text = repr(thing)
    assert type(thing).__name__ in text
    assert not re.search(r"0x[0-9a-f]{6,}", text), text
    assert "array([" not in text or len(text) < 2500, text
    assert len(text) < 2500
    for part in SHOWN.get(path, ()):
        assert part in text, text


def test_repr_of_large_objects_is_short() -> None:
    x = np.ones(1_000_000, np.float32)
    for thing in (
        curvk.optim.AdamW([x]),
        curvk.zeroth.MeZO([x], lr=0.1),
        curvk.kernels.gram.Centers(x.reshape(-1, 10)),
        curvk.kernels.sweep.quantize(x),
        curvk.kernels.optim.SGDPlan([x], [np.ones_like(x)]),
        curvk.curvature.GlassProbe(np.copy, x, sigma=1e-3),
        curvk.stein.SVGD(np.negative, x.reshape(-1, 10)),
    ):
        assert len(repr(thing)) < 1000


def test_repr_shows_what_was_changed_later() -> None:
    adam = curvk.optim.Adam([np.ones(3)])
    adam.param_groups[0]["lr"], adam.skip_nonfinite = 0.75, True
    assert "lr=0.75" in repr(adam)
    assert "skip_nonfinite=True" in repr(adam)


def test_torch_repr_shows_storage_and_clipping() -> None:
    torch = pytest.importorskip("torch")
    import curvk.torch

    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    text = repr(curvk.torch.AdamW([p], state_bits=8, rounding="stochastic", max_grad_norm=2.5, skip_nonfinite=True))
    for part in ("state_bits: 8", "rounding: stochastic", "max_grad_norm: 2.5", "skip_nonfinite: True"):
        assert part in text


# ---- what else a person meets at the prompt --------------------------------------------------------------------------


def test_public_callables_have_signatures_docstrings_and_public_homes() -> None:
    seen = 0
    for name in modules():
        module = import_module(name)
        for public in names_of(name):
            thing = getattr(module, public)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.signature(thing) is not None
                assert inspect.getdoc(thing), f"{name}.{public}"
                assert thing.__module__.startswith("curvk"), f"{name}.{public}"
                seen += 1
            for member, what in vars(thing).items() if inspect.isclass(thing) else ():
                if not member.startswith("_") and inspect.isfunction(what):
                    assert inspect.signature(what) is not None
                    assert inspect.getdoc(getattr(thing, member)), f"{name}.{public}.{member}"
    assert seen > 90


def test_every_public_module_lists_its_names() -> None:
    for name in modules():
        module = import_module(name)
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(not n.startswith("_") and hasattr(module, n) for n in names_of(name)), name


def test_dir_of_the_package_is_its_public_names() -> None:
    assert dir(curvk) == sorted(curvk.__all__)
    with pytest.raises(AttributeError, match="module 'curvk' has no attribute 'Adam'"):
        _ = curvk.Adam


def test_lazy_modules_stay_lazy() -> None:
    code = "import curvk, sys; print([m for m in ('numba', 'cffi', 'torch', 'sklearn', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_raw_tells_bits_apart() -> None:
    zero = np.zeros(2)
    assert raw(zero) != raw(-zero)
    assert raw({"a": zero}) == raw({"a": zero.copy()})
