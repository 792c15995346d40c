"""Several processes that train one model: bit for bit the single process, and failures that stop all of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import curvk.torch as ct  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from zeroth_models import GPT  # noqa: E402

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

SEED, WORLD = 99, 2
IDS = torch.arange(80).reshape(10, 8) * 7 % 31

WORKER = """
import json, sys, traceback, warnings
sys.path.insert(0, {folder!r})
import torch, torch.distributed as dist
import curvk.torch as ct
from test_torch_zeroth_group import *
warnings.simplefilter("error")
rank = {rank}
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + {store!r}, rank=rank, world_size={world})
group = dist.group.WORLD
def caught(function):
    try:
        function()
    except BaseException as error:
        return f"{{type(error).__name__}}: {{error}}"
    return "nothing was raised"
for line in sys.stdin:
    code, path = json.loads(line)
    scope = globals() | {{"result": {{}}}}
    try:
        exec(code, scope)
        torch.save(scope["result"], path)
        print("done", flush=True)
    except BaseException:
        print(json.dumps(traceback.format_exc()), flush=True)
"""


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two processes of one gloo group that run code line by line."""
    store = str(tmp_path_factory.mktemp("gloo") / "store")
    processes = []
    for rank in range(WORLD):
        code = WORKER.format(folder=str(Path(__file__).parent), store=store, rank=rank, world=WORLD)
        processes.append(
            subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    yield processes
    for p in processes:
        p.stdin.close()
        p.kill()
        p.wait()
        p.stdout.close()


@pytest.fixture
def run(workers, tmp_path):
    """Runs code in both processes; gives what each left in `result`, rank by rank. A hang fails."""

    def run(code):
        print(f"seed {SEED}")  # shown where a test fails
        paths = [tmp_path / f"{rank}.pt" for rank in range(WORLD)]
        for p, path in zip(workers, paths, strict=True):
            p.stdin.write(json.dumps([code, str(path)]) + "\n")
            p.stdin.flush()
        watch = threading.Timer(180, lambda: [p.kill() for p in workers])
        watch.start()
        try:
            answers = [p.stdout.readline() for p in workers]
        finally:
            watch.cancel()
        assert answers == ["done\n"] * WORLD, "\n".join(json.loads(a) if a.startswith('"') else a for a in answers)
        return [torch.load(path, weights_only=True) for path in paths]

    return run


def gpt(**options):
    torch.manual_seed(SEED)
    return GPT(**options)


def language(model, ids=IDS):
    return lambda: nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def state(optimizer, losses):
    return {
        "losses": losses,
        "weights": optimizer.model.state_dict(),
        "coefs": torch.from_numpy(optimizer.log.coefs.copy()),
        "crc": optimizer.log.crc,
        "bytes": optimizer.bytes_per_step,
    }


def assert_same(a, b):
    assert a["losses"] == b["losses"]
    assert a["weights"].keys() == b["weights"].keys()
    for name in a["weights"]:
        assert torch.equal(a["weights"][name], b["weights"][name]), name
    assert torch.equal(a["coefs"], b["coefs"])
    assert a["crc"] == b["crc"]


METHODS = {
    "MeZO": ("MeZO", {"n_probes": 2}, 4),
    "LeZO": ("LeZO", {"weight_decay": 0.1}, 1),
    "AdaLeZO": ("AdaLeZO", {"fraction": 0.5}, 1),
    "SparseMeZO": ("SparseMeZO", {}, 1),
    "FZOO": ("FZOO", {"n_probes": 3, "lr": 1e-5}, 3),
    "ES": ("ES", {"n_probes": 3}, 3),
    "one point": ("MeZO", {"points": 1}, 1),
    "active rows": ("MeZO", {"active_rows": True}, 1),
    "grid": ("MeZO", {"restore": "grid"}, 1),
}


def optimizer_of(method, model, probes=None, **more):
    name, options, _ = METHODS[method]
    options = {"lr": 1e-3, "seed": SEED, **options, **more}
    return getattr(ct, name)(model, **(options if probes is None else options | {"n_probes": probes}))


def test_processes_with_probes_of_their_own_are_one_with_all_probes(run):
    results = run("""
for method in METHODS:
    opt = optimizer_of(method, gpt(), process_group=group)
    result[method] = state(opt, [opt.step(language(opt.model)) for _ in range(4)])
""")
    for method, (_, options, _) in METHODS.items():
        probes = options.get("n_probes", 1)
        single = optimizer_of(method, gpt(), WORLD * probes)
        truth = state(single, [single.step(language(single.model)) for _ in range(4)])
        for result in results:
            assert_same(result[method], truth)
        assert truth["bytes"] == 0


def test_processes_with_batches_of_their_own_average_their_losses(run):
    results = run("""
for method in METHODS:
    if method != "active rows":
        opt = optimizer_of(method, gpt(), process_group=group, parallel="data")
        result[method] = state(opt, [opt.step(language(opt.model, IDS[rank::2])) for _ in range(4)])
result["refused"] = caught(lambda: optimizer_of("active rows", gpt(), process_group=group, parallel="data"))
""")
    for method in METHODS.keys() - {"active rows"}:
        single = optimizer_of(method, gpt(), restore="copy" if METHODS[method][1].get("restore") != "grid" else "grid")
        parts = [language(single.model, IDS[rank::2]) for rank in range(WORLD)]
        average = lambda parts=parts: math.fsum(p().item() for p in parts) / WORLD  # noqa: E731
        truth = state(single, [single.step(average) for _ in range(4)])
        for result in results:
            assert_same({**result[method], "crc": 0}, {**truth, "crc": 0})  # the headers differ in "restore"
    assert all("'probes' with active_rows" in result["refused"] for result in results)


def test_only_scalars_travel(run):
    """A step sends its losses and two checksums, however large the model."""
    results = run("""
for d in (8, 32):
    for probes in (1, 5):
        opt = optimizer_of("MeZO", gpt(d=d), probes, process_group=group)
        opt.step(language(opt.model))
        result[d, probes] = opt.bytes_per_step
opt = optimizer_of("FZOO", gpt(), 3, process_group=group)
opt.step(language(opt.model))
result["FZOO"] = opt.bytes_per_step
""")
    for result in results:
        assert result == {(8, 1): 32, (32, 1): 32, (8, 5): 96, (32, 5): 96, "FZOO": 48}


def test_processes_that_disagree_are_told_so(run):
    results = run("""
def make(**options):
    return lambda: ct.MeZO(gpt(), **{"lr": 1e-3, "process_group": group} | options)
result["seed"] = caught(make(seed=rank))
result["eps"] = caught(make(eps=1e-3 * (rank + 1)))
result["probes"] = caught(make(n_probes=rank + 1))
result["restore"] = caught(make(restore=["copy", "grid"][rank]))
def other_weights():
    model = gpt()
    with torch.no_grad():
        model.lm_head.weight[3, 4] += rank
    ct.MeZO(model, lr=1e-3, process_group=group)
result["weights"] = caught(other_weights)
result["failed"] = caught(make(restore=["scratch", "wish"][rank]))
opt = make()()
opt.step(language(opt.model))
for g in opt.param_groups:
    g["lr"] = 1e-3 * (rank + 1)
before = {k: v.clone() for k, v in opt.model.state_dict().items()}
result["lr"] = caught(lambda: opt.step(language(opt.model)))
result["undone"] = all(torch.equal(v, before[k]) for k, v in opt.model.state_dict().items()) and len(opt.log) == 1
for g in opt.param_groups:
    g["lr"] = 1e-3
opt.step(language(opt.model))
result["steps"] = len(opt.log)
rows = ct.MeZO(gpt(), lr=1e-3, process_group=group, active_rows=True)
result["rows"] = caught(lambda: rows.step(language(rows.model, IDS[rank::2])))
if rank:
    opt.restart(seed=5)  # one process alone begins another run
result["log"] = caught(lambda: opt.step(language(opt.model)))
""")
    for result in results:
        for key in ("seed", "lr", "rows", "weights"):
            assert result[key].startswith("ValueError: "), result[key]
            assert f"the processes disagree on {key}: rank 0 has " in result[key]
            assert ", rank 1 has " in result[key]
        assert "disagree on estimator" in result["eps"]
        assert "disagree on n_probes" in result["probes"] or "disagree on estimator" in result["probes"]
        assert "disagree on restore" in result["restore"]
        assert "disagree on lr: rank 0 has 0.001, rank 1 has 0.002" in result["lr"]
        assert result["undone"]
        assert "got 'wish'" in result["failed"]
        assert result["steps"] == 2
        assert "ValueError" in result["log"]
        assert "logs" in result["log"]


def test_a_failure_on_one_process_stops_all(run):
    results = run("""
for restore in ("scratch", "copy", "grid"):
    for parallel in ("probes", "data"):
        opt = ct.MeZO(gpt(), lr=1e-3, n_probes=2, process_group=group, parallel=parallel, restore=restore)
        opt.step(language(opt.model))
        before = {k: v.clone() for k, v in opt.model.state_dict().items()}
        calls = []
        def failing():
            calls.append(1)
            if rank == 1 and len(calls) == 3:
                raise ZeroDivisionError("on purpose")
            return language(opt.model)()
        texts = [caught(lambda: opt.step(failing))]
        def misused():  # what restore="scratch" refuses
            return language(opt.model)() + (language(opt.model)() if rank == 1 else 0)
        if restore == "scratch":
            texts.append(caught(lambda: opt.step(misused)))
        same = all(torch.equal(v, before[k]) for k, v in opt.model.state_dict().items())
        if rank == 1:
            with torch.no_grad():
                opt.model.lm_head.weight.mul_(1)
        texts.append(caught(lambda: opt.step(language(opt.model))))
        result[restore, parallel] = texts, same, len(opt.log)
opt = ct.MeZO(gpt(), lr=1e-3, process_group=group)
opt.step(lambda: language(opt.model)() * (float("nan") if rank else 1.0))  # one loss that is not finite skips for all
result["skipped"] = opt.skipped
opt.step(language(opt.model))
result["weights"] = opt.model.state_dict()
""")
    for result in results:
        assert result.pop("skipped") == 1
    assert all(torch.equal(v, results[1]["weights"][k]) for k, v in results[0].pop("weights").items())
    for key, (texts, same, steps) in results[0].items():
        causes = (
            ["ZeroDivisionError: on purpose", "2 times", "lm_head"] if len(texts) == 3 else ["on purpose", "lm_head"]
        )
        for text, cause in zip(texts, causes, strict=True):
            assert text.startswith("RuntimeError: MeZO.step: no step was taken, since it failed on rank 1: ")
            assert cause in text
        assert same
        assert steps == 1
        theirs = results[1][key]
        assert theirs[0][0] == "ZeroDivisionError: on purpose"
        assert all(t.startswith("ValueError") for t in theirs[0][1:])
        assert theirs[1:] == (True, 1)


def test_processes_resume_together(run):
    results = run("""
def train(opt, steps):
    return [opt.step(language(opt.model)) for _ in range(steps)]
whole = optimizer_of("AdaLeZO", gpt(), process_group=group)
train(whole, 6)
half = optimizer_of("AdaLeZO", gpt(), process_group=group)
train(half, 3)
again = optimizer_of("AdaLeZO", gpt(), process_group=group)
again.load_state_dict(half.state_dict())
losses = train(again, 3)
result["same"], result["resumed"] = state(whole, []), state(again, [])
import copy
result["copy"] = caught(lambda: copy.deepcopy(again))
""")
    for result in results:
        assert_same(result["resumed"], result["same"])
        assert "copy its state_dict" in result["copy"]


def test_groups_that_do_not_serve():
    with pytest.raises(TypeError, match=r"'process_group': got str.*init_process_group\('gloo'\)"):
        ct.MeZO(gpt(), lr=1e-3, process_group="gloo")
