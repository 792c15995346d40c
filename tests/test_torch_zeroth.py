"""curvk.torch's zeroth-order optimizers: exactness, the contract of torch.optim.Optimizer, replay and resume."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import curvk.zeroth as cz  # noqa: E402
import numpy as np  # noqa: E402
from curvk.kernels import noise  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402
from zeroth_models import GPT, Bert, Block  # noqa: E402

SEED = 4711
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
IDS = torch.arange(40).reshape(5, 8) * 7 % 31
METHODS = {
    "MeZO": (ct.MeZO, {}),
    "MeZO of 3 probes": (ct.MeZO, {"n_probes": 3, "dist": "rademacher", "weight_decay": 0.1}),
    "MeZO of one point": (ct.MeZO, {"points": 1}),
    "LeZO": (ct.LeZO, {"drop": 2, "weight_decay": 0.1}),
    "LeZO, unbiased": (ct.LeZO, {"drop": 0.5, "rescale": "ipw", "n_probes": 2}),
    "AdaLeZO": (ct.AdaLeZO, {"fraction": 0.5}),
    "SparseMeZO": (ct.SparseMeZO, {"mask_every": 2}),
    "FZOO": (ct.FZOO, {"n_probes": 4, "lr": 1e-5}),
    "ES": (ct.ES, {"n_probes": 4}),
    "active rows": (ct.MeZO, {"active_rows": True, "weight_decay": 0.1}),
    "LeZO, active rows": (ct.LeZO, {"active_rows": True}),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(SEED)
    print(f"seed {SEED}")  # shown where a test fails


def gpt(dtype=torch.float32, **options):
    torch.manual_seed(SEED)
    return GPT(**options).to(dtype)


def language(model, ids=IDS):
    """A closure: the loss of predicting the next token."""
    return lambda: nn.functional.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())


def trained(kind, model, steps, closure=None, **options):
    optimizer = kind(model, **{"lr": 1e-3, "seed": SEED, **options})
    losses = [optimizer.step(closure or language(model)) for _ in range(steps)]
    return optimizer, losses


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def assert_same(a, b):
    a, b = (x if isinstance(x, dict) else weights(x) for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def z_of(name, p, draw, dist="normal"):
    """A parameter's noise, as the stream defines it: float32 values, rounded to 16 bits where p has them."""
    return noise.fill(torch.empty_like(p.detach()), seed=SEED, draw=draw, tensor=noise.tensor_word(name), dist=dist)


# ---- what a step does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", ["scratch", "copy"])
@pytest.mark.parametrize("dist", ["normal", "rademacher"])
def test_linear_loss_gives_the_directional_derivative(restore, dist):
    """Here g = z . c exactly for every eps, so theta moves by -lr (z . c) z: known in closed form."""
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).double()
    c = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    before = weights(model)

    class Linear(nn.Module):
        """Reads the parameters in their own modules: each module's output is its share of the loss."""

    for name, module in model.named_children():
        module.forward = lambda name=name, module=module: sum(
            (p * c[f"{name}.{k}"]).sum() for k, p in module.named_parameters()
        )
    z = {n: z_of(n, p, 0, dist) for n, p in before.items()}
    g = sum((z[n] * c[n]).sum() for n in z)
    for eps in (1e-3, 0.5):
        model.load_state_dict(before)
        ct.MeZO(model, lr=0.1, eps=eps, seed=SEED, dist=dist, restore=restore).step(lambda: model[0]() + model[1]())
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), before[n] - 0.1 * g * z[n], rtol=1e-6, atol=1e-9)


def test_quadratic_loss_has_no_error_in_eps():
    """1/2 |w|^2 along z: the central difference is z . w for any eps; decay pulls on weights, not on biases."""
    model = nn.Linear(40, 30).double()
    w, b = (p.detach().clone() for p in model.parameters())
    zw, zb = z_of("weight", w, 0), z_of("bias", b, 0)
    g = (zw * w).sum() + (zb * b).sum()
    optimizer = ct.MeZO(model, lr=0.01, eps=2.0, seed=SEED, weight_decay=0.5, restore="copy")
    optimizer.step(lambda: 0.5 * sum(p.square().sum() for p in model.parameters()))
    torch.testing.assert_close(model.weight.detach(), w * (1 - 0.005) - 0.01 * g * zw, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.bias.detach(), b - 0.01 * g * zb, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", [m for m in METHODS if "rows" not in m])  # a copy does not see which are looked up
def test_scratch_is_copy_bit_for_bit(method, dtype):
    kind, options = METHODS[method]
    models = [gpt(dtype), gpt(dtype)]
    losses = [trained(kind, m, 4, restore=r, **options)[1] for m, r in zip(models, ("scratch", "copy"), strict=True)]
    assert losses[0] == losses[1]
    assert_same(*models)
    assert not all(torch.equal(p, q) for p, q in zip(models[0].parameters(), gpt(dtype).parameters(), strict=True))


def test_no_layers_dropped_is_mezo():
    for options in ({}, {"n_probes": 2, "dist": "rademacher"}, {"restore": "grid"}, {"points": 1}):
        models = [gpt(tied=True), gpt(tied=True)]
        mezo = trained(ct.MeZO, models[0], 5, weight_decay=0.1, **options)[0]
        lezo = trained(ct.LeZO, models[1], 5, weight_decay=0.1, drop=0, **options)[0]
        assert_same(*models)
        assert mezo.log.coefs.tobytes() == lezo.log.coefs.tobytes()


@pytest.mark.parametrize(("drop", "dropped"), [(0.75, 2), (1, 1), (3, 3), (1.0, 3), (0.3, 0)])
def test_dropped_layers_keep_their_bytes(drop, dropped):
    model = gpt(n=3)
    optimizer = ct.LeZO(model, lr=1e-2, drop=drop, seed=SEED)
    assert optimizer.layers == ["transformer.h.0", "transformer.h.1", "transformer.h.2"]
    for step in range(6):
        before = weights(model)
        optimizer.step(language(model))
        chosen = cz.choose_layers(SEED, step, 3, 3 - dropped)
        assert np.flatnonzero(optimizer.log.active[step]).tolist() == chosen
        for name, p in model.named_parameters():
            layer = int(name.split(".")[2]) if ".h." in name else None
            assert torch.equal(p, before[name]) == (layer is not None and layer not in chosen), name


def test_lezo_is_mezos_update_masked_with_the_masked_losses_g():
    model, eps = gpt(n=4), 1e-3
    before = weights(model)
    optimizer = ct.LeZO(model, lr=1e-2, eps=eps, drop=2, seed=SEED)
    optimizer.step(language(model))
    coef = optimizer.log.coefs[0, 0]
    active = optimizer.log.active[0]
    for name, p in model.named_parameters():
        want = before[name]
        if ".h." not in name or active[int(name.split(".")[2])]:
            noise.perturb_(want, seed=SEED, scale=coef, tensor=noise.tensor_word(name))
        assert torch.equal(p, want), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
def test_a_loss_that_is_not_finite_restores_every_bit(dtype, restore):
    if restore == "grid" and dtype != torch.float32:
        with pytest.raises(ValueError, match="grid"):
            ct.MeZO(gpt(dtype), lr=1e-3, restore=restore)
        return
    model = gpt(dtype)
    optimizer, _ = trained(ct.MeZO, model, 1, restore=restore, n_probes=2)
    before, calls = weights(model), []

    def closure():
        calls.append(1)
        return language(model)() * (math.inf if len(calls) == 3 else 1)

    assert optimizer.step(closure) == math.inf
    assert_same(model, before)
    assert optimizer.skipped == 1
    assert optimizer.log.coefs[1].tolist() == [0, 0]
    assert len(optimizer.log) == 2
    optimizer.step(language(model))
    assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])


@pytest.mark.parametrize(("kind", "options"), [(ct.MeZO, {}), (ct.LeZO, {"drop": 0.5}), (ct.MeZO, {"restore": "grid"})])
@pytest.mark.parametrize("tied", [False, True])
def test_a_tiny_transformer_learns(kind, options, tied):
    """The next number of a count to 8; log(8) = 2.08 is chance."""
    model = gpt(d=8, n=2, vocab=8, tied=tied)
    counting = torch.arange(32).reshape(4, 8) % 8
    options = {"lr": 2e-2, "n_probes": 4, "dist": "rademacher", **options}
    _, losses = trained(kind, model, 150, closure=language(model, counting), **options)
    assert losses[0] > 2
    assert np.mean(losses[-10:]) < 0.7, losses[::10]


@pytest.mark.parametrize("method", METHODS)
def test_numpy_engine_gives_the_same_bits(method):
    """curvk.zeroth on the arrays by name, whose closure evaluates the same module with them."""
    kind, options = METHODS[method]
    model, twin = gpt(), gpt()
    ids = IDS[:2, :4]  # few rows of the tables
    optimizer, losses = trained(kind, model, 5, closure=language(model, ids), **options)
    arrays = {n: p.detach().numpy().copy() for n, p in twin.named_parameters()}
    numpy_options = {"lr": 1e-3} | {k: v for k, v in options.items() if k != "active_rows"}
    if kind in (ct.LeZO, ct.AdaLeZO):
        numpy_options["layers"] = [[n for n in arrays if f".h.{i}." in n] for i in range(3)]
    peer = getattr(cz, kind.__name__)(arrays, seed=SEED, **numpy_options)
    rows = None
    if options.get("active_rows"):
        rows = {"transformer.wte.weight": np.unique(ids[:, :-1]), "transformer.wpe.weight": np.arange(3)}

    def closure(displaced):
        tensors = {n: torch.from_numpy(a) for n, a in displaced.items()}
        logits = torch.func.functional_call(twin, tensors, (ids[:, :-1],))
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()

    with torch.no_grad():
        assert [peer.step(closure, rows=rows) for _ in range(5)] == losses
    assert_same(model, {n: torch.from_numpy(a) for n, a in arrays.items()})
    assert peer.log.crc == optimizer.log.crc  # headers and all steps


# ---- compat="mezo" ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:restore='naive'")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_compat_repeats_the_references_operations(dtype, weight_decay):
    """Princeton's trainer in torch operations: perturb +1, -2, +1, update; each in the parameter's dtype."""
    model, truth, lr, eps = gpt(dtype), gpt(dtype), 1e-2, 1e-3
    closure = language(truth)
    optimizer = ct.MeZO(model, lr=lr, eps=eps, seed=SEED, weight_decay=weight_decay, restore="naive", compat="mezo")
    with torch.no_grad():
        for step in range(3):
            noises = {n: z_of(n, p, step) for n, p in truth.named_parameters()}

            def perturb(scale, noises=noises):
                for n, p in truth.named_parameters():
                    p.data = p.data + scale * noises[n] * eps

            perturb(1)
            plus = closure().item()
            perturb(-2)
            minus = closure().item()
            perturb(1)
            g = (plus - minus) / (2 * eps)
            for n, p in truth.named_parameters():
                if "bias" not in n and "layer_norm" not in n and "layernorm" not in n:
                    p.data = p.data - lr * (g * noises[n] + weight_decay * p.data)
                else:
                    p.data = p.data - lr * (g * noises[n])
            assert optimizer.step(language(model)) == plus
            assert_same(model, truth)


def test_naive_warns_with_its_drift():
    model = gpt(torch.bfloat16)
    optimizer = ct.MeZO(model, lr=0.0, restore="naive")
    before = weights(model)
    with pytest.warns(RuntimeWarning, match="rms"):
        optimizer.step(language(model))
    assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])  # it drifts, with lr 0
    with pytest.raises(ValueError, match="needs 'naive' with compat"):
        ct.MeZO(model, lr=0.1, compat="mezo")
    with pytest.raises(ValueError, match="one probe"):
        ct.MeZO(model, lr=0.1, compat="mezo", restore="naive", n_probes=2)


# ---- active rows -----------------------------------------------------------------------------------------------------


def test_only_active_rows_move():
    model = gpt()
    optimizer = ct.MeZO(model, lr=1e-2, seed=SEED, active_rows=True, weight_decay=0.1)
    whole = ct.MeZO(gpt(), lr=1e-2, seed=SEED)
    before = weights(model)
    ids = torch.tensor([[3, 3, 30, 0]])
    loss = optimizer.step(language(model, ids))
    assert loss == whole.step(language(whole.model, ids))  # rows that are not looked up change no loss
    changed = (model.transformer["wte"].weight != before["transformer.wte.weight"]).any(1)
    assert torch.nonzero(changed).flatten().tolist() == [3, 30]  # 0 is a target only
    changed = (model.transformer["wpe"].weight != before["transformer.wpe.weight"]).any(1)
    assert torch.nonzero(changed).flatten().tolist() == [0, 1, 2]
    rows = optimizer.log.update(0).rows
    wte, wpe = (list(weights(model)).index(f"transformer.{n}.weight") for n in ("wte", "wpe"))
    assert {i: r.tolist() for i, r in rows.items()} == {wte: [3, 30], wpe: [0, 1, 2]}
    want = before["transformer.wte.weight"]
    decay, coef = optimizer.log.decay[0], optimizer.log.coefs[0]
    word = noise.tensor_word("transformer.wte.weight")
    noise.axpy_seeds_(want, seed=SEED, draws=[0], coefs=coef, tensor=word, decay=decay, rows=[3, 30])
    assert torch.equal(model.transformer["wte"].weight, want)


def test_rows_of_all_forwards_of_a_step_are_joined():
    model = gpt()
    optimizer = ct.MeZO(model, lr=1e-2, seed=SEED, active_rows=True)
    batches = iter([torch.tensor([[1, 2, 5]]), torch.tensor([[2, 4, 5]])])
    optimizer.step(lambda: language(model, next(batches))())
    wte = list(weights(model)).index("transformer.wte.weight")
    assert optimizer.log.update(0).rows[wte].tolist() == [1, 2, 4]


def test_active_rows_that_cannot_be():
    with pytest.raises(ValueError, match=r"'transformer.wte' and 'lm_head' share"):
        ct.MeZO(gpt(tied=True), lr=1e-3, active_rows=True)
    with pytest.raises(ValueError, match=r"restore.*'copy'.*needs 'scratch'"):
        ct.MeZO(gpt(), lr=1e-3, active_rows=True, restore="copy")
    with pytest.raises(ValueError, match=r"needs an nn.Embedding outside of layers, without max_norm"):
        ct.MeZO(nn.ModuleDict({"e": nn.Embedding(3, 2, max_norm=1.0)}), lr=1e-3, active_rows=True)


# ---- the log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", ["scratch", "grid"])
@pytest.mark.parametrize("method", METHODS)
def test_replay_rebuilds_the_module(method, restore, tmp_path):
    kind, options = METHODS[method]
    if restore == "grid" and (options.get("active_rows") or kind is ct.SparseMeZO):
        with pytest.raises(ValueError, match="restore"):
            kind(gpt(), restore=restore, **{"lr": 1e-3, **options})
        return
    model = gpt(tied="rows" not in method)
    optimizer, losses = trained(kind, model, 6, restore=restore, **options)
    optimizer.log.save(tmp_path / "run.npz")
    log = ct.ZOLog.load(tmp_path / "run.npz")
    twin = gpt(tied="rows" not in method)
    log.replay(twin)
    assert_same(model, twin)
    np.testing.assert_array_equal(log.losses, np.float32(losses))
    arrays = {n: p.detach().numpy().copy() for n, p in gpt(tied="rows" not in method).named_parameters()}
    log.replay(arrays)  # without torch
    assert_same(model, {n: torch.from_numpy(a) for n, a in arrays.items()})
    half = gpt(tied="rows" not in method)
    log.replay(half, upto=3)
    peer, _ = trained(kind, gpt(tied="rows" not in method), 3, restore=restore, **options)
    assert_same(half, peer.model)
    with pytest.raises(ValueError, match="first weights"):
        log.replay(twin)


def test_log_takes_a_few_bytes_a_step():
    optimizer, _ = trained(ct.LeZO, gpt(), 10)
    assert optimizer.log.nbytes <= 10 * 16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_first", [True, False])
def test_state_dict_resumes_bit_for_bit(method, model_first):
    kind, options = METHODS[method]
    whole, reference = trained(kind, gpt(), 7, **options)
    optimizer, losses = trained(kind, gpt(), 4, **options)
    file = io.BytesIO()
    torch.save({"model": optimizer.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(SEED + 1)
    resumed = kind(GPT(), **{"seed": SEED, **options, "lr": 0.5})
    if model_first:
        resumed.model.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    if not model_first:
        resumed.model.load_state_dict(saved["model"])
    assert len(resumed.log) == 4
    assert resumed.param_groups[0]["lr"] == options.get("lr", 1e-3)
    losses += [resumed.step(language(resumed.model)) for _ in range(3)]
    assert losses == reference
    assert_same(resumed.model, whole.model)
    assert resumed.log.crc == whole.log.crc


def test_log_resumes_from_the_first_weights():
    whole, _ = trained(ct.LeZO, gpt(), 7)
    half, _ = trained(ct.LeZO, gpt(), 4)
    resumed = ct.LeZO(gpt(), lr=1e-3, seed=SEED)
    resumed.load_log(half.log)
    assert_same(resumed.model, half.model)
    for _ in range(3):
        resumed.step(language(resumed.model))
    assert_same(resumed.model, whole.model)


def test_states_that_do_not_belong():
    optimizer, _ = trained(ct.LeZO, gpt(), 3)
    state = optimizer.state_dict()
    before = weights(optimizer.model)
    for other in (ct.MeZO(gpt(), lr=1e-3, seed=SEED), ct.LeZO(gpt(), lr=1e-3, seed=SEED, drop=1), ct.LeZO(gpt(), lr=1)):
        with pytest.raises(ValueError, match=r"needs .* as this optimizer has"):
            other.load_state_dict(state)
        assert len(other.log) == 0
    with pytest.raises(TypeError, match="state_dict"):
        optimizer.load_state_dict(torch.optim.SGD(optimizer.model.parameters()).state_dict())
    damaged = {**state, "log": {**state["log"], "coefs": state["log"]["coefs"][:1]}}
    with pytest.raises(ValueError, match="another log"):
        optimizer.load_state_dict(damaged)
    lost = ct.LeZO(gpt(), lr=1e-3, seed=SEED)
    lost.load_state_dict(state)
    with torch.no_grad():
        lost.model.lm_head.weight.add_(1)
    for _ in range(2):  # the weights are neither the first nor the last of the run
        with pytest.raises(ValueError, match="CRC-32"):
            lost.step(language(lost.model))
    lost.model.load_state_dict(before)
    lost.step(language(lost.model))
    assert len(lost.log) == 4


RUNS = {
    "lezo": (ct.LeZO, {"weight_decay": 0.1}),
    "bandit": (ct.AdaLeZO, {"fraction": 0.5}),
    "rows": (ct.MeZO, {"active_rows": True}),
    "grid": (ct.MeZO, {"restore": "grid"}),
}


def train_and_save(folder, last=None):
    """All runs side by side, from their logs' ends to step 12; `last` kills the process between a step's two losses."""
    runs = {}
    for name, (kind, options) in RUNS.items():
        model = gpt()
        optimizer = kind(model, lr=1e-3, seed=9, **options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        if (log := Path(folder, f"{name}.npz")).exists():
            optimizer.load_log(log)  # the weights are the run's first ones: the log brings them up to date
            scheduler.last_epoch = len(optimizer.log) - 1
            with warnings.catch_warnings(action="ignore"):  # torch counts no steps of the killed process
                scheduler.step()
        runs[name] = optimizer, scheduler
    for step in range(min(len(o.log) for o, _ in runs.values()), 12):
        for name, (optimizer, scheduler) in runs.items():
            calls = []

            def closure(step=step, optimizer=optimizer, calls=calls):
                calls.append(1)
                if step == last and len(calls) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return language(optimizer.model)()

            optimizer.step(closure)
            scheduler.step()
            optimizer.log.save(Path(folder, f"{name}.npz"))
    return {name: optimizer for name, (optimizer, _) in runs.items()}


def test_killed_runs_resume_as_if_they_had_not_stopped(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    truth = train_and_save(whole)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_torch_zeroth import *\n"
    killed = subprocess.run(
        [sys.executable, "-c", f"{code}train_and_save({str(broken)!r}, last=7)"], timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert {len(ct.ZOLog.load(broken / f"{name}.npz")) for name in RUNS} == {7}
    resumed = train_and_save(broken)
    for name in RUNS:
        assert_same(resumed[name].model, truth[name].model)
        logs = [ct.ZOLog.load(folder / f"{name}.npz") for folder in (whole, broken)]
        assert len(logs[0]) == 12
        assert logs[0].crc == logs[1].crc
        assert logs[0].losses.tobytes() == logs[1].losses.tobytes()


# ---- parameters changed by others ------------------------------------------------------------------------------------


def write_in_place(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(0.9)


def give_memory(model):
    model.lm_head.weight.data = model.lm_head.weight.data.clone()


@pytest.mark.parametrize("change", [write_in_place, give_memory])
def test_parameters_changed_between_steps(change):
    model = gpt()
    optimizer, _ = trained(ct.MeZO, model, 2)
    change(model)
    changed = weights(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"params\['lm_head.weight'\].*opt.restart\(\)"):
            optimizer.step(language(model))
    assert_same(model, changed)
    assert len(optimizer.log) == 2
    optimizer.restart()
    optimizer.step(language(model))
    assert len(optimizer.log) == 1
    assert optimizer.log.header["seed"] == SEED + 1
    twin = gpt()
    twin.load_state_dict(changed)
    optimizer.log.replay(twin)
    assert_same(twin, model)


def test_weights_may_be_loaded_before_the_first_step():
    model = gpt()
    optimizer = ct.MeZO(model, lr=1e-3)
    write_in_place(model)
    start = weights(model)
    optimizer.step(language(model))
    twin = gpt()
    twin.load_state_dict(start)
    optimizer.log.replay(twin)
    assert_same(twin, model)
    later = ct.MeZO(gpt(), lr=1e-3)
    later.model.double()
    with pytest.raises(ValueError, match=r"torch.float64 on cpu, needs torch.float32.*make a new optimizer"):
        later.step(language(later.model))


def test_writes_through_data_are_noticed_by_the_replay():
    """`p.data` has a version counter of its own, so only the weights' checksums tell."""
    model = gpt()
    optimizer, _ = trained(ct.MeZO, model, 2)
    model.lm_head.weight.data.mul_(0.9)
    optimizer.step(language(model))
    twin = gpt()
    with pytest.raises(ValueError, match="changed between steps"):
        optimizer.log.replay(twin)
    assert_same(twin, gpt())


def test_version_counters_tell_of_updates():
    model = gpt()
    saved = model.lm_head.weight * torch.ones(1, requires_grad=True)  # saves the weight for its backward
    trained(ct.MeZO, model, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


@pytest.mark.parametrize("restore", ["grid", "copy"])
def test_closures_that_write_to_parameters(restore):
    model = nn.Sequential(nn.Embedding(31, 8, max_norm=0.1), nn.Linear(8, 3))
    optimizer = ct.MeZO(model, lr=1e-3, restore=restore)
    before = weights(model)
    if restore == "grid":
        with pytest.raises(ValueError, match=r"a closure that writes to '0.weight'.*restore='scratch'"):
            optimizer.step(lambda: model(IDS).square().mean())
    else:
        optimizer.step(lambda: model(IDS).square().mean() * 0)  # undone with the displacement
        assert_same(model, before)


# ---- torch.optim.Optimizer -------------------------------------------------------------------------------------------


def test_groups_follow_the_references_rule():
    model = Bert()
    optimizer = ct.MeZO(model, lr=0.5, weight_decay=0.25)
    names = {id(p): n for n, p in model.named_parameters()}
    still = {names[id(p)] for p in optimizer.param_groups[1]["params"]}
    assert still == {n for n in names.values() if "bias" in n or "layer_norm" in n or "LayerNorm" in n}
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.25, 0.0]
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.5]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
    with pytest.raises(TypeError, match="groups are fixed"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    ct.MeZO(nn.LayerNorm(4), lr=1.0).step  # noqa: B018  one of the groups may be empty


def test_schedulers_set_the_rate_of_each_step():
    model = gpt()
    optimizer = ct.MeZO(model, lr=1e-2, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    rates = []
    for _ in range(4):
        optimizer.step(language(model))
        rates.append(scheduler.get_last_lr()[0])
        scheduler.step()
    assert rates == [1e-2, 5e-3, 2.5e-3, 1.25e-3]
    np.testing.assert_array_equal(optimizer.log.decay, np.float32([r * 0.5 for r in rates]))
    optimizer.param_groups[1]["lr"] = 1.0
    with pytest.raises(ValueError, match=r"'lr': got .* in the groups, needs one for all"):
        optimizer.step(language(model))
    optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[1]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match=r"'weight_decay': got 0.1 in group 1"):
        optimizer.step(language(model))


def test_a_rate_may_be_a_tensor():
    a, b = gpt(), gpt()
    rate = torch.tensor(2.0**-8)
    optimizer = ct.MeZO(a, lr=rate)
    other = ct.MeZO(b, lr=2.0**-8)
    for value in (2.0**-8, 2.0**-9):
        rate.fill_(value)
        other.param_groups[0]["lr"] = other.param_groups[1]["lr"] = value
        optimizer.step(language(a))
        other.step(language(b))
    assert_same(a, b)


def test_gradients_are_neither_needed_nor_touched():
    model = gpt()
    language(model)().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    graphs = []

    def closure():
        loss = language(model)()
        graphs.append(loss.requires_grad)
        return loss

    optimizer = ct.MeZO(model, lr=1e-3)
    optimizer.step(closure)
    assert graphs == [False, False]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
def test_steps_in_inference_mode(restore):
    models = [gpt(), gpt()]
    _, losses = trained(ct.MeZO, models[0], 3, restore=restore)
    with torch.inference_mode():
        assert trained(ct.MeZO, models[1], 3, restore=restore)[1] == losses
    assert_same(*models)
    assert not any(p.is_inference() for p in models[1].parameters())
    language(models[1])().backward()


def test_frozen_parameters_are_not_trained():
    model = gpt()
    model.transformer["wte"].requires_grad_(False)
    model.transformer["h"][1].requires_grad_(False)
    before = weights(model)
    optimizer, _ = trained(ct.LeZO, model, 4, drop=1)
    assert optimizer.layers == ["transformer.h.0", "transformer.h.2"]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("wte" in name or "h.1" in name), name
    twin = gpt()
    optimizer.log.replay(twin)
    assert_same(twin, model)


def test_what_closures_may_return():
    model = gpt()
    optimizer = ct.MeZO(model, lr=1e-3)
    for convert in (lambda x: x, float, lambda x: x.reshape(1), lambda x: np.float64(x), lambda x: x.bfloat16()):
        assert isinstance(optimizer.step(lambda convert=convert: convert(language(model)())), float)
    before = weights(model)
    for bad, text in (
        (lambda: None, "NoneType"),
        (lambda: model(IDS), "shape"),
        (lambda: "1", "str"),
        (lambda: torch.ones(2), r"shape \(2,\)"),
    ):
        with pytest.raises(TypeError, match=f"closure.*{text}.*scalar loss"):
            optimizer.step(lambda bad=bad: (language(model)(), bad())[1])
        assert_same(model, before)
    for bad in (None, 3.0, torch.ones(1)):
        with pytest.raises(TypeError, match=r"closure.*needs a function that returns the loss; use opt.step\(lambda"):
            optimizer.step(bad)
    assert len(optimizer.log) == 5


@pytest.mark.parametrize("restore", ["scratch", "copy", "grid"])
def test_exceptions_of_the_closure(restore):
    model = gpt()
    optimizer, _ = trained(ct.MeZO, model, 1, restore=restore, n_probes=2)
    before = weights(model)
    for last in range(4):
        calls = []

        def closure(last=last, calls=calls):
            calls.append(1)
            if len(calls) > last:
                raise ZeroDivisionError
            return language(model)()

        with pytest.raises(ZeroDivisionError):
            optimizer.step(closure)
        assert_same(model, before)
    assert len(optimizer.log) == 1
    optimizer.step(language(model))
    twin = gpt()
    trained(ct.MeZO, twin, 2, restore=restore, n_probes=2)
    assert_same(model, twin)  # the failed steps left nothing behind


def test_copies_and_pickles_go_on_by_themselves():
    model = gpt()
    optimizer, _ = trained(ct.AdaLeZO, model, 3, fraction=0.5)
    copied = copy.deepcopy(optimizer)
    pickled = pickle.loads(pickle.dumps(optimizer))
    again, same = copy.deepcopy((model, optimizer))
    assert same.model is again
    for other in (copied, pickled, same):
        assert other.model is not model
        assert type(other) is ct.AdaLeZO
        assert len(other.log) == 3
    losses = [[o.step(language(o.model)) for _ in range(3)] for o in (optimizer, copied, pickled, same)]
    assert losses[0] == losses[1] == losses[2] == losses[3]
    assert_same(model, copied.model)
    assert_same(model, pickled.model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in copy.deepcopy(model).modules())
    assert "LeZO" in repr(optimizer)
    assert "6 steps" in repr(optimizer)


def test_given_layers():
    model = gpt(n=4)
    optimizer = ct.LeZO(model, lr=1e-2, layers=[model.transformer["h"][1], "transformer.h.3"], drop=1)
    assert optimizer.layers == ["transformer.h.1", "transformer.h.3"]
    assert copy.deepcopy(optimizer).layers == optimizer.layers
    with pytest.raises(ValueError, match=r"'a' \(Linear\).*layers=\["):
        ct.LeZO(nn.ModuleDict({"a": nn.Linear(2, 2)}), lr=1e-3)


# ---- weights that something caches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [True, False])
def test_autocast_keeps_no_displaced_weights(outside):
    """Its cache would serve the second loss of a probe with the weights of the first."""
    models = [gpt(), gpt()]

    def closure(model):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return language(model)()

    truth, reference = trained(ct.MeZO, models[0], 3, closure=lambda: closure(models[0]))
    assert np.abs(truth.log.coefs).min() > 0
    if outside:
        with torch.autocast("cpu", torch.bfloat16):
            language(models[1])()  # fills the cache
            _, losses = trained(ct.MeZO, models[1], 3)
            assert torch.is_autocast_cache_enabled()
    else:

        def cached():
            with torch.autocast("cpu", torch.bfloat16):
                return language(models[1])()

        _, losses = trained(ct.MeZO, models[1], 3, closure=cached)
    assert losses == reference
    assert_same(*models)


def test_cached_parametrisations_are_refused():
    model = parametrizations.weight_norm(nn.Linear(3, 3))
    x = torch.randn(4, 3)
    optimizer = ct.MeZO(model, lr=1e-3)
    with parametrize.cached(), pytest.raises(ValueError, match=r"parametrize.cached\(\) inside of the closure"):
        optimizer.step(lambda: model(x).square().mean())

    def closure():
        with parametrize.cached():
            return model(x).square().mean()

    optimizer.step(closure)
    assert optimizer.log.coefs[0, 0] != 0


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "error", "text"),
    [
        (ct.MeZO, {"lr": -1.0}, ValueError, "MeZO: argument 'lr': got -1.0"),
        (ct.MeZO, {"lr": "fast"}, TypeError, "'lr'"),
        (ct.MeZO, {"lr": math.nan}, ValueError, "'lr'"),
        (ct.MeZO, {"eps": 0.0}, ValueError, "'eps': got 0.0"),
        (ct.MeZO, {"eps": -1e-3}, ValueError, "'eps'"),
        (ct.MeZO, {"seed": -1}, ValueError, "'seed'"),
        (ct.MeZO, {"seed": 1 << 64}, ValueError, "'seed'"),
        (ct.MeZO, {"seed": 1.5}, TypeError, "'seed'"),
        (ct.MeZO, {"weight_decay": -0.1}, ValueError, "'weight_decay'"),
        (ct.MeZO, {"restore": "wish"}, ValueError, "'restore': got 'wish'"),
        (ct.MeZO, {"dist": "uniform"}, ValueError, "'dist'"),
        (ct.MeZO, {"n_probes": 0}, ValueError, "'n_probes'"),
        (ct.MeZO, {"points": 3}, ValueError, "'points'"),
        (ct.MeZO, {"parallel": "both"}, ValueError, "'parallel': got 'both'"),
        (ct.MeZO, {"process_group": 3}, TypeError, "'process_group': got int"),
        (ct.MeZO, {"compat": "lozo"}, ValueError, "'compat'"),
        (ct.LeZO, {"drop": 4}, ValueError, "'drop': got 4"),
        (ct.LeZO, {"drop": -1}, ValueError, "'drop'"),
        (ct.LeZO, {"drop": 1.5}, ValueError, "'drop'"),
        (ct.LeZO, {"drop": True}, TypeError, "'drop'"),
        (ct.LeZO, {"rescale": "yes"}, ValueError, "'rescale'"),
        (ct.LeZO, {"layers": ["h"]}, ValueError, "'layers'"),
        (ct.AdaLeZO, {"tau": 0.0}, ValueError, "'tau'"),
        (ct.SparseMeZO, {"keep": 0.0}, ValueError, "'keep'"),
        (ct.FZOO, {"n_probes": 1}, ValueError, "'n_probes'"),
        (ct.ES, {"n_probes": 1}, ValueError, "'n_probes'"),
    ],
    ids=str,
)
def test_bad_arguments(kind, options, error, text):
    model = gpt()
    with pytest.raises(error, match=text):
        kind(model, **{"lr": 1e-3, **options})
    assert_same(model, gpt())


def test_models_that_cannot_be_trained():
    with pytest.raises(TypeError, match=r"MeZO: argument 'model': got generator.*use the model, not"):
        ct.MeZO(gpt().parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="MeZO"):
        ct.MeZO(gpt().requires_grad_(False), lr=1e-3)
    with pytest.raises(BufferError, match=r"MeZO: argument 'params\['weight'\]': got a tensor on device meta"):
        ct.MeZO(nn.Linear(2, 2, device="meta"), lr=1e-3)
    with pytest.raises(TypeError, match=r"params\['weight'\]"):
        ct.MeZO(nn.Linear(2, 2, dtype=torch.complex64), lr=1e-3)
    with pytest.raises(TypeError, match="UninitializedParameter"):
        ct.MeZO(nn.LazyLinear(2), lr=1e-3)
    with torch.inference_mode():
        frozen = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="inference mode"):
        ct.MeZO(frozen, lr=1e-3)
    shared = nn.Linear(2, 2)
    other = nn.Linear(2, 2)
    other.weight = nn.Parameter(shared.weight.data)  # the same memory, another parameter
    with pytest.raises(ValueError, match="memory shared"):
        ct.MeZO(nn.Sequential(shared, other), lr=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_script_modules_take_no_hooks():
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))
    with pytest.raises(ValueError, match=r"ScriptModule.*needs 'copy' or 'grid'"):
        ct.MeZO(model, lr=1e-3)
    ct.MeZO(model, lr=1e-3, restore="grid").step(lambda: model(torch.ones(2, 3)).square().mean())


def test_blocks_of_one_model_in_two_optimizers():
    """Each trains its own part."""
    model = nn.Sequential(Block(8), Block(8))
    x = torch.randn(2, 3, 8)
    first, second = (ct.MeZO(part, lr=1e-3, seed=SEED) for part in model)
    before = weights(model)
    first.step(lambda: model(x).square().mean())
    assert all(torch.equal(p, before[f"1.{n}"]) for n, p in model[1].named_parameters())
    second.step(lambda: model(x).square().mean())
    first.step(lambda: model(x).square().mean())
    assert len(first.log) == 2
