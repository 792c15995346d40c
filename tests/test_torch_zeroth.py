"""curvk.torch's zeroth-order optimizers: exactness, the contract of torch.optim.Optimizer, replay and resume."""

from __future__ import annotations

import io
import math
import os
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
from torch_zeroth_models import IDS, SEED, assert_same, gpt, language, trained, weights  # noqa: E402
from zeroth_models import GPT  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
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
