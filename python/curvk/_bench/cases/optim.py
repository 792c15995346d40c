"""Optimizer steps; what goes with them is in `optim_sums`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...kernels.optim import AdamPlan, LionPlan, SGDPlan, adam_step, lion_step, sgd_step
from ..interval import ARITHMETIC, F64, STORAGE, Interval
from ..registry import Array, Arrays, Case, Contender, Factory, Options, Row, optional
from ..storage import decode, empty, sample


def _normal(scale: float) -> Callable[[np.random.Generator, int], Array]:
    return lambda rng, n: scale * rng.standard_normal(n)


def _square(scale: float) -> Callable[[np.random.Generator, int], Array]:
    return lambda rng, n: scale * rng.standard_normal(n) ** 2


def _state(fmt: str) -> str:
    return "f64" if fmt == "f64" else "f32"


def _origin(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Array | None:
    """Other parameters to start from, under the option `restored`."""
    return sample(n, fmt, rng, _normal(1.0)) if o.get("restored") else None


def _without(defaults: Options, o: Options) -> dict[str, Any]:
    """The keywords of the public function: options that decide which arrays there are are none."""
    return {k: v for k, v in {**defaults, **o}.items() if k not in ("restored", "amsgrad")}


def _inputs(a: Arrays, fmt: str) -> tuple[Interval, Interval]:
    """The parameters that a step starts from, and the gradients."""
    start = a["p"] if a["origin"] is None else a["origin"]
    p, g = (Interval.exact(decode(x, fmt), ARITHMETIC[fmt]) for x in (start, a["g"]))
    return p, g


# ---- SGD ------------------------------------------------------------------------------------------------------------

SGD = {
    "lr": 0.05,
    "momentum": 0.0,
    "dampening": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "decoupled": False,
    "maximize": False,
    "first": False,
    "grad_scale": 1.0,
}


def _make_sgd(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    p, g = (sample(n, fmt, rng, _normal(s)) for s in (1.0, 0.3))
    buf = sample(n, _state(fmt), rng, _normal(0.2)) if o.get("momentum") else None
    return {"p": p, "g": g, "buf": buf, "origin": _origin(n, fmt, rng, o)}


def _run_sgd(a: Arrays, o: Options, fmt: str) -> Arrays:
    sgd_step(a["p"], a["g"], a["buf"], origin=a["origin"], **_without(SGD, o))
    return {k: a[k] for k in ("p", "buf") if a[k] is not None}


def _plan_sgd(a: Arrays, o: Options, fmt: str) -> Callable[[], None]:
    plan = SGDPlan(a["p"], a["g"], a["buf"], origin=a["origin"])
    options = _without(SGD, o)
    return lambda: plan.step(**options)


def sgd_intervals(p: Interval, g: Interval, buf: Interval | None, o: Options) -> dict[str, Interval]:
    """The step in the arithmetic of p: the parameters before they are stored, and the buffer."""
    s = p.precision
    one = Interval.exact(1.0, F64)
    g = g * (one / o["grad_scale"]).to(s)
    if o["maximize"]:
        g = -g
    if o["decoupled"]:
        p = p * (one - Interval.exact(o["lr"], F64) * o["weight_decay"]).to(s)
    elif o["weight_decay"]:
        g = g + Interval.exact(o["weight_decay"], F64).to(s) * p
    lr, momentum = (Interval.exact(o[k], F64).to(s) for k in ("lr", "momentum"))
    if buf is None:
        return {"p": p - lr * g}
    buf = g if o["first"] else momentum * buf + (one - o["dampening"]).to(s) * g
    direction = g + momentum * buf if o["nesterov"] else buf
    return {"p": p - lr * direction, "buf": buf}


def _true_sgd(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    buf = None if a["buf"] is None else Interval.exact(a["buf"], ARITHMETIC[fmt])
    step = sgd_intervals(*_inputs(a, fmt), buf, {**SGD, **o})
    return {**step, "p": step["p"].to(STORAGE[fmt])}


def _sgd_streams(o: Options) -> dict[str, str]:
    streams = {"p": "w", "g": "r", "origin": "r"} if o.get("restored") else {"p": "rw", "g": "r"}
    return {**streams, "buf": "w" if o.get("first") else "rw"} if o.get("momentum") else streams


def _sgd_flops(o: Options) -> int:
    flops = 4 + 2 * bool(o.get("weight_decay") and not o.get("decoupled"))
    return flops + (3 * (not o.get("first")) + 2 * bool(o.get("nesterov")) if o.get("momentum") else 0)


# ---- Adam -----------------------------------------------------------------------------------------------------------

ADAM = {
    "step": 7,
    "lr": 1e-2,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "decoupled": False,
    "maximize": False,
    "grad_scale": 1.0,
    "amsgrad": False,
}


def _make_adam(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    p, g = (sample(n, fmt, rng, _normal(s)) for s in (1.0, 0.3))
    m = sample(n, _state(fmt), rng, _normal(0.1))
    v, max_v = (sample(n, _state(fmt), rng, _square(s)) for s in (0.01, 0.02))
    optional = {"max_v": max_v if o.get("amsgrad") else None, "origin": _origin(n, fmt, rng, o)}
    return {"p": p, "g": g, "m": m, "v": v, **optional}


def _run_adam(a: Arrays, o: Options, fmt: str) -> Arrays:
    adam_step(a["p"], a["g"], a["m"], a["v"], max_v=a["max_v"], origin=a["origin"], **_without(ADAM, o))
    return {k: a[k] for k in ("p", "m", "v", "max_v") if a[k] is not None}


def _plan_adam(a: Arrays, o: Options, fmt: str) -> Callable[[], None]:
    plan = AdamPlan(a["p"], a["g"], a["m"], a["v"], max_v=a["max_v"], origin=a["origin"])
    options = _without(ADAM, o)
    return lambda: plan.step(**options)


def _power(base: float, n: int) -> Interval:
    """base^n in double: each of the squarings and products may round, and squaring doubles the error so far."""
    exact, error = np.longdouble(base) ** n, n * 2.0**-53
    return Interval(exact * (1 - error), exact * (1 + error), F64)


def adam_intervals(
    p: Interval, g: Interval, m: Interval, v: Interval, max_v: Interval | None, o: Options
) -> dict[str, Interval]:
    """The step in the arithmetic of p: the parameters before they are stored, and the moments."""
    s = p.precision
    one = Interval.exact(1.0, F64)
    beta1, beta2 = (Interval.exact(b, F64) for b in o["betas"])
    g = g * (one / o["grad_scale"]).to(s)
    if o["maximize"]:
        g = -g
    if o["decoupled"]:
        p = p * (one - Interval.exact(o["lr"], F64) * o["weight_decay"]).to(s)
    elif o["weight_decay"]:
        g = g + Interval.exact(o["weight_decay"], F64).to(s) * p
    m = beta1.to(s) * m + (one - beta1).to(s) * g
    v = beta2.to(s) * v + (one - beta2).to(s) * (g * g)
    moments = {"m": m, "v": v}
    if max_v is not None:
        v = moments["max_v"] = v.maximum(max_v)
    step_size = (Interval.exact(o["lr"], F64) / (one - _power(o["betas"][0], o["step"]))).to(s)
    root = v.sqrt() * (one / (one - _power(o["betas"][1], o["step"])).sqrt()).to(s)
    return {"p": p - step_size * m / (root + Interval.exact(o["eps"], F64).to(s)), **moments}


def _true_adam(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    s = ARITHMETIC[fmt]
    m, v, max_v = (None if a[k] is None else Interval.exact(a[k], s) for k in ("m", "v", "max_v"))
    assert m is not None
    assert v is not None
    step = adam_intervals(*_inputs(a, fmt), m, v, max_v, {**ADAM, **o})
    return {**step, "p": step["p"].to(STORAGE[fmt])}


def _adam_streams(o: Options) -> dict[str, str]:
    parameters = {"p": "w", "origin": "r"} if o.get("restored") else {"p": "rw"}
    streams = {**parameters, "g": "r", "m": "rw", "v": "rw"}
    return {**streams, "max_v": "rw"} if o.get("amsgrad") else streams


def _adam_flops(o: Options) -> int:
    return 15 + 2 * bool(o.get("weight_decay") and not o.get("decoupled")) + bool(o.get("amsgrad"))


# ---- Lion -----------------------------------------------------------------------------------------------------------

LION = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False, "grad_scale": 1.0}


def _make_lion(n: int, fmt: str, rng: np.random.Generator, o: Options) -> Arrays:
    p, g = (sample(n, fmt, rng, _normal(s)) for s in (1.0, 0.3))
    return {"p": p, "g": g, "m": sample(n, _state(fmt), rng, _normal(0.1)), "origin": _origin(n, fmt, rng, o)}


def _run_lion(a: Arrays, o: Options, fmt: str) -> Arrays:
    lion_step(a["p"], a["g"], a["m"], origin=a["origin"], **_without(LION, o))
    return {k: a[k] for k in ("p", "m")}


def _plan_lion(a: Arrays, o: Options, fmt: str) -> Callable[[], None]:
    plan = LionPlan(a["p"], a["g"], a["m"], origin=a["origin"])
    options = _without(LION, o)
    return lambda: plan.step(**options)


def _true_lion(a: Arrays, o: Options, fmt: str) -> dict[str, Interval]:
    o, s = {**LION, **o}, ARITHMETIC[fmt]
    p, g = _inputs(a, fmt)
    m, one = Interval.exact(a["m"], s), Interval.exact(1.0, F64)
    beta1, beta2 = (Interval.exact(b, F64) for b in o["betas"])
    g = g * (one / o["grad_scale"]).to(s)
    if o["maximize"]:
        g = -g
    mixed = beta1.to(s) * m + (one - beta1).to(s) * g
    sign = Interval(np.sign(mixed.low), np.sign(mixed.high), s, mixed.loose)  # both, where rounding decides
    p = p * (one - Interval.exact(o["lr"], F64) * o["weight_decay"]).to(s)
    moved = p - Interval.exact(o["lr"], F64).to(s) * sign
    return {"p": moved.to(STORAGE[fmt]), "m": beta2.to(s) * m + (one - beta2).to(s) * g}


def _lion_streams(o: Options) -> dict[str, str]:
    parameters = {"p": "w", "origin": "r"} if o.get("restored") else {"p": "rw"}
    return {**parameters, "g": "r", "m": "rw"}


# ---- peers: torch ---------------------------------------------------------------------------------------------------


def _tensor(torch: Any, x: Array) -> Any:
    return torch.from_numpy(x).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)


def _each(x: Any) -> list[Array]:
    return x if isinstance(x, list) else [x]


def _parameters(torch: Any, a: Arrays) -> list[Any]:
    params = [torch.nn.Parameter(_tensor(torch, x)) for x in _each(a["p"])]
    for p, g in zip(params, _each(a["g"]), strict=True):
        p.grad = _tensor(torch, g)
    return params


def _optimizer(torch: Any, module: Any, kind: str, params: list[Any], o: Options) -> Any:
    """A torch.optim optimizer, or curvk's of the same name, for a case's options."""
    how = {} if kind == "curvk" else {kind: True}
    if "betas" in o:
        cls = module.AdamW if o["decoupled"] else module.Adam
        keys: tuple[str, ...] = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
    else:
        cls, keys = module.SGD, ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")
    return cls(params, **{k: o[k] for k in keys}, **how)


def _torch_single(kind: str) -> Factory:
    """torch.optim on the very arrays that curvk steps: the optimizer's state is set to views of them."""

    def factory(a: Arrays, o: Options, fmt: str) -> Contender | None:
        torch = optional("torch")
        o = {**(ADAM if "m" in a else SGD), **o}
        if torch is None or o["grad_scale"] != 1 or a["origin"] is not None or (o["decoupled"] and "m" not in a):
            return None
        params = _parameters(torch, a)
        half = fmt in ("bf16", "f16")  # torch keeps states in the parameter's type, so it moves fewer bytes
        states = {k: x for k, x in a.items() if k not in "pg" and x is not None}
        tensors = {k: _tensor(torch, x).to(params[0].dtype) if half else _tensor(torch, x) for k, x in states.items()}
        optimizer = _optimizer(torch, torch.optim, kind, params, o)
        names = {"m": "exp_avg", "v": "exp_avg_sq", "max_v": "max_exp_avg_sq", "buf": "momentum_buffer"}
        if "m" in a:
            optimizer.state[params[0]]["step"] = torch.tensor(float(o["step"] - 1))
        optimizer.state[params[0]].update({names[k]: t for k, t in tensors.items()})
        return Contender(f"torch {kind}", optimizer.step, arrays={"p": a["p"]} if half else None)

    return factory


def _torch_model(kind: str, fresh: bool = False) -> Factory:
    """An optimizer over a model's tensors; `fresh` gives it other gradient tensors at every step, as backward does."""

    def factory(a: Arrays, o: Options, fmt: str) -> Contender | None:
        torch = optional("torch")
        o = {**(ADAM if "m" in a else SGD), **o}
        if torch is None or o["grad_scale"] != 1 or o.get("restored"):
            return None
        try:
            module = torch.optim if kind != "curvk" else __import__("curvk.torch", fromlist=["AdamW"])
        except ImportError:
            return None
        params = _parameters(torch, a)
        optimizer = _optimizer(torch, module, kind, params, o)
        gradients = [[p.grad for p in params]]

        def other_gradients() -> None:
            if len(gradients) == 1:
                gradients.append([g.clone() for g in gradients[0]])
            gradients.reverse()
            for p, g in zip(params, gradients[0], strict=True):
                p.grad = g

        name = f"{'curvk.torch' if kind == 'curvk' else 'torch ' + kind}{', fresh gradients' if fresh else ''}"
        return Contender(name, optimizer.step, other_gradients if fresh else None, arrays={"p": a["p"]})

    return factory


# ---- peers: Numba and NumPy -----------------------------------------------------------------------------------------


def _adam_coefficients(o: Options, number: Any) -> list[Any]:
    (beta1, beta2), t = o["betas"], o["step"]
    shrink = 1 - o["lr"] * o["weight_decay"]
    scalars = (
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        o["lr"] / (1 - beta1**t),
        1 / math.sqrt(1 - beta2**t),
        o["eps"],
        shrink,
    )
    return [number(s) for s in scalars]


def _peer_options(a: Arrays, o: Options, fmt: str) -> dict[str, Any] | None:
    """The full options where the hand-written peers below cover them: Adam and AdamW in float32 and float64."""
    o = {**ADAM, **o}
    coupled = o["weight_decay"] and not o["decoupled"]
    covered = not (
        any(a[k] is not None for k in ("max_v", "origin"))
        or coupled
        or o["maximize"]
        or o["grad_scale"] != 1
        or fmt not in ("f32", "f64")
    )
    return o if covered else None


_compiled: dict[str, Any] = {}


def _numba_adam(a: Arrays, o: Options, fmt: str) -> Contender | None:
    """The loop a Numba user writes: parallel, with fast-math."""
    numba, options = optional("numba"), _peer_options(a, o, fmt)
    if numba is None or options is None:
        return None

    def loop(p, g, m, v, beta1, gain1, beta2, gain2, step_size, inv_root2, eps, shrink):  # type: ignore[no-untyped-def]
        for i in numba.prange(p.size):
            m[i] = beta1 * m[i] + gain1 * g[i]
            v[i] = beta2 * v[i] + gain2 * g[i] * g[i]
            p[i] = p[i] * shrink - step_size * m[i] / (np.sqrt(v[i]) * inv_root2 + eps)

    step = _compiled.setdefault("adam", numba.njit(parallel=True, fastmath=True, error_model="numpy")(loop))
    arguments = a["p"], a["g"], a["m"], a["v"], *_adam_coefficients(options, a["p"].dtype.type)
    return Contender("numba", lambda: step(*arguments))


def _numpy_adam(block: int | None) -> Factory:
    """NumPy in place, with `out=` everywhere and temporaries made beforehand; whole arrays or cache-sized blocks."""

    def factory(a: Arrays, o: Options, fmt: str) -> Contender | None:
        options = _peer_options(a, o, fmt)
        if options is None:
            return None
        beta1, gain1, beta2, gain2, step_size, inv_root2, eps, shrink = _adam_coefficients(options, a["p"].dtype.type)
        length = min(block or a["p"].size, a["p"].size)
        temporary = empty(length, a["p"].dtype)
        blocks = [tuple(a[k][i : i + length] for k in "pgmv") for i in range(0, a["p"].size, max(length, 1))]

        def step() -> None:
            for p, g, m, v in blocks:
                t = temporary[: p.size]
                np.multiply(g, gain1, out=t)
                np.multiply(m, beta1, out=m)
                np.add(m, t, out=m)
                np.multiply(g, g, out=t)
                np.multiply(t, gain2, out=t)
                np.multiply(v, beta2, out=v)
                np.add(v, t, out=v)
                np.sqrt(v, out=t)
                np.multiply(t, inv_root2, out=t)
                np.add(t, eps, out=t)
                np.divide(m, t, out=t)
                np.multiply(t, step_size, out=t)
                if shrink != 1:
                    np.multiply(p, shrink, out=p)
                np.subtract(p, t, out=p)

        return Contender("numpy in blocks" if block else "numpy", step)

    return factory


def _numpy_lion(a: Arrays, o: Options, fmt: str) -> Contender | None:
    """In place, with two arrays of its own."""
    o = {**LION, **o}
    if fmt not in ("f32", "f64") or a["origin"] is not None or o["maximize"] or o["grad_scale"] != 1:
        return None
    p, g, m = a["p"], a["g"], a["m"]
    kind = p.dtype.type
    numbers = o["lr"], *o["betas"], 1 - o["lr"] * o["weight_decay"], *(1 - b for b in o["betas"])
    lr, beta1, beta2, shrink, gain1, gain2 = map(kind, numbers)
    mixed, part = np.empty_like(p), np.empty_like(p)

    def step() -> None:
        np.multiply(m, beta1, out=mixed)
        np.multiply(g, gain1, out=part)
        np.add(mixed, part, out=mixed)
        np.sign(mixed, out=mixed)
        np.multiply(mixed, lr, out=mixed)
        np.multiply(p, shrink, out=p)
        np.subtract(p, mixed, out=p)
        np.multiply(m, beta2, out=m)
        np.multiply(g, gain2, out=part)
        np.add(m, part, out=m)

    return Contender("numpy", step)


_FULL = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_FEW = (10_000, 1_000_000, 10_000_000)

CASES: Sequence[Case] = [
    Case(
        op="adam_step",
        make=_make_adam,
        run=_run_adam,
        plan=_plan_adam,
        truth=_true_adam,
        error="correctly rounded operations in the order written; scalars in double, rounded once",
        variants={
            "adam": {},
            "adamw": {"weight_decay": 0.01, "decoupled": True},
            "coupled": {"weight_decay": 0.01},
            "amsgrad": {"amsgrad": True},
            "amsgrad-coupled": {"amsgrad": True, "weight_decay": 0.01, "maximize": True},
            "maximize-scaled": {"maximize": True, "grad_scale": 3.0, "decoupled": True, "weight_decay": 0.1},
            "first": {"step": 1},
            "late": {"step": 100_000, "betas": (0.95, 0.9999)},
            "memoryless": {"betas": (0.0, 0.0), "eps": 0.5},
            "restored": {"restored": True, "weight_decay": 0.01, "decoupled": True},
            "restored-amsgrad": {"restored": True, "amsgrad": True},
        },
        flops=_adam_flops,
        streams=_adam_streams,
        peers={
            "torch fused": _torch_single("fused"),
            "torch foreach": _torch_single("foreach"),
            "numba": _numba_adam,
            "numpy": _numpy_adam(None),
            "numpy in blocks": _numpy_adam(16_384),
        },
        models={
            "curvk.torch": _torch_model("curvk"),
            "curvk.torch, fresh gradients": _torch_model("curvk", fresh=True),
            "torch fused": _torch_model("fused"),
            "torch foreach": _torch_model("foreach"),
        },
        first={"step": 1},
        rows=(
            Row("adamw", ("f32",), sizes=_FULL, headline=True),
            Row("adam", ("f32",), sizes=_FULL[1:]),
            Row("adamw", ("f64", "bf16", "f16"), sizes=_FEW),
            Row("amsgrad", ("f32",), sizes=_FEW),
            Row("adamw", ("f32",), models=("1000x1000", "resnet50", "gpt2-small")),
        ),
    ),
    Case(
        op="sgd_step",
        make=_make_sgd,
        run=_run_sgd,
        plan=_plan_sgd,
        truth=_true_sgd,
        error="correctly rounded operations in the order written; scalars in double, rounded once",
        variants={
            "momentum": {"momentum": 0.9},
            "plain": {},
            "coupled": {"weight_decay": 0.01, "maximize": True, "grad_scale": 3.0},
            "decoupled": {"weight_decay": 0.1, "decoupled": True},
            "first": {"momentum": 0.9, "first": True, "weight_decay": 0.01},
            "dampening": {"momentum": 0.9, "dampening": 0.3},
            "nesterov": {"momentum": 0.9, "nesterov": True},
            "nesterov-coupled": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
            "restored": {"restored": True, "momentum": 0.9, "weight_decay": 0.01},
            "restored-plain": {"restored": True},
        },
        flops=_sgd_flops,
        streams=_sgd_streams,
        peers={"torch fused": _torch_single("fused"), "torch foreach": _torch_single("foreach")},
        models={"torch fused": _torch_model("fused"), "torch foreach": _torch_model("foreach")},
        first={"first": True},
        rows=(
            Row("momentum", ("f32",), sizes=_FEW),
            Row("plain", ("f32", "bf16"), sizes=_FEW[1:]),
            Row("momentum", ("f32",), models=("1000x1000",)),
        ),
    ),
    Case(
        op="lion_step",
        make=_make_lion,
        run=_run_lion,
        plan=_plan_lion,
        truth=_true_lion,
        error="correctly rounded operations in the order written; scalars in double, rounded once",
        variants={
            "lion": {},
            "decayed": {"weight_decay": 0.1},
            "maximize-scaled": {"maximize": True, "grad_scale": 3.0, "weight_decay": 0.01},
            "memoryless": {"betas": (0.0, 0.0)},
            "restored": {"restored": True, "weight_decay": 0.1},
        },
        flops=lambda o: 9,
        streams=_lion_streams,
        peers={"numpy": _numpy_lion},
        rows=(Row("decayed", ("f32", "bf16"), sizes=_FEW),),
    ),
]
