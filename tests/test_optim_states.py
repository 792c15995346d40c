"""curvk.optim: states, state dicts and files."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curvk import _store as store
from curvk.optim import SGD, Adam, AdamW, AdamZ
from optim_models import OPTIMIZERS, Arrays, assert_same, contents, grads_like, model

# ---- states --------------------------------------------------------------------------------------------------------


def train(optimizer: Any, params: Arrays, steps: range, hole: bool) -> None:
    for seed in steps:
        grads: Arrays = grads_like(params, seed)
        if hole and seed % 3 == 1:
            grads[seed % 5] = None
        optimizer.step(grads, math.cos(seed * seed))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", ["dict", "file"])
def test_resume(name: str, way: str, tmp_path: Path) -> None:
    """Stopping and going on gives the bits of going on."""
    through, stopped = (
        [p for d in (np.float32, np.float16) for p in model(16, d)],
        [p for d in (np.float32, np.float16) for p in model(16, d)],
    )
    first = OPTIMIZERS[name](through, max_grad_norm=3.0)
    train(first, through, range(20), True)
    second = OPTIMIZERS[name](stopped, max_grad_norm=3.0)
    train(second, stopped, range(9), True)
    second.param_groups[0]["initial_lr"] = 0.125
    third = OPTIMIZERS[name](stopped, lr=0.7)
    if way == "dict":
        third.load_state_dict(second.state_dict())
    else:
        second.save(tmp_path / "state.ckpt")
        assert [f.name for f in tmp_path.iterdir()] == ["state.ckpt"]
        third.load(str(tmp_path / "state.ckpt"))
    assert third.param_groups[0].pop("initial_lr") == 0.125
    assert contents(second)[:-1] == contents(third)[:-1]
    train(third, stopped, range(9, 20), True)
    assert contents(first) == contents(third)


def test_resume_before_the_first_step(tmp_path: Path) -> None:
    params = model(17)
    adam = Adam(params, lr=0.25)
    adam.save(tmp_path / "a")
    other = Adam(params)
    other.load(tmp_path / "a")
    assert other.state == [{}] * 6
    assert other.param_groups[0]["lr"] == 0.25


def test_state_dict_is_a_snapshot() -> None:
    params = model(18)
    adam = Adam(params)
    adam.step(grads_like(params, 0))
    state = adam.state_dict()
    kept = copy.deepcopy(state)
    adam.step(grads_like(params, 1))
    assert state["state"][0]["step"] == 1
    assert_same([state["state"][0]["exp_avg"]], [kept["state"][0]["exp_avg"]])
    other = Adam(model(18))
    other.load_state_dict(state)
    other.step(grads_like(params, 2))
    assert_same([state["state"][0]["exp_avg"]], [kept["state"][0]["exp_avg"]])


def test_states_load_into_another_memory_order() -> None:
    a = np.ones((3, 4), np.float32)
    b = np.asfortranarray(a)
    first, second = Adam([a]), Adam([b])
    g = np.arange(12, dtype=np.float32).reshape(3, 4)
    first.step([g])
    b[...] = a
    second.load_state_dict(first.state_dict())
    first.step([g])
    second.step([g])
    assert np.array_equal(a, b)
    assert second.state[0]["exp_avg"].flags.f_contiguous


def saved() -> tuple[Any, dict[str, Any]]:
    params = [np.zeros((2, 3), np.float32), np.zeros(4)]
    adam = Adam([{"params": params[0]}, {"params": params[1], "lr": 0.5}])
    adam.step([np.ones((2, 3), np.float32), np.ones(4)])
    return adam, adam.state_dict()


def edit(path: str, value: Any = ...) -> Callable[[dict[str, Any]], None]:
    """Sets or, without a value, deletes what a path such as 'state/0/step' leads to."""
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]

    def apply(state: Any) -> None:
        for key in way:
            state = state[key]
        if value is ...:
            del state[last]
        else:
            state[last] = value

    return apply


BAD_STATES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (edit("format", "torch"), "'format': got 'torch'"),
    (edit("version", 99), "'version': got 99, needs 1"),
    (edit("optimizer", "SGD"), "'optimizer': got 'SGD', needs 'Adam'"),
    (edit("state"), "keys"),
    (edit("extra", 1), "extra"),
    (edit("max_grad_norm", -1.0), "max_grad_norm"),
    (edit("max_grad_norm", "1"), "max_grad_norm"),
    (edit("skip_nonfinite", 2), "skip_nonfinite"),
    (edit("skipped_steps", -1), "skipped_steps"),
    (edit("skipped_steps", 0.5), "skipped_steps"),
    (edit("param_groups", {}), "param_groups"),
    (edit("param_groups/1"), "1 groups, needs 2"),
    (edit("param_groups/1", 3), r"param_groups\[1\]"),
    (edit("param_groups/1/params", [0]), r"param_groups\[1\]\.params"),
    (edit("param_groups/1/params", 1), r"param_groups\[1\]\.params"),
    (edit("param_groups/0/params", [0, 1]), "2 arrays, needs 1 arrays"),
    (edit("param_groups/1/lr"), "lr"),
    (edit("param_groups/1/lr", -0.5), r"param_groups\[1\]\.lr"),
    (edit("param_groups/1/lr", "high"), r"param_groups\[1\]\.lr"),
    (edit("param_groups/0/betas", 3), "betas"),
    (edit("state/1"), "1 entries"),
    (edit("state/1", 7), r"state\[1\]"),
    (edit("state/1/step"), r"state\[1\]"),
    (edit("state/1/step", 0), r"state\[1\]\.step"),
    (edit("state/1/step", 1.5), r"state\[1\]\.step"),
    (edit("state/1/step", True), r"state\[1\]\.step"),
    (edit("state/1/exp_avg_sq"), r"state\[1\]"),
    (edit("state/1/momentum_buffer", np.zeros(4)), r"state\[1\]"),
    (edit("state/1/exp_avg", [0.0] * 4), r"state\[1\]\.exp_avg.*list"),
    (edit("state/1/exp_avg", np.zeros(4, np.float32)), r"state\[1\]\.exp_avg.*float32 of shape \(4,\).*float64"),
    (edit("state/0/exp_avg", np.zeros((3, 2), np.float32)), r"state\[0\]\.exp_avg.*\(3, 2\).*\(2, 3\).*params\[0\]"),
    (edit("state/0/max_exp_avg_sq", np.zeros(2)), r"state\[0\]\.max_exp_avg_sq"),
]


@pytest.mark.parametrize(("change", "text"), BAD_STATES)
def test_bad_state_dict(change: Callable[[dict[str, Any]], None], text: str, tmp_path: Path) -> None:
    adam, state = saved()
    change(state)
    before = contents(adam)
    with pytest.raises(ValueError, match=text):
        adam.load_state_dict(state)
    store.write(tmp_path / "s", state)
    with pytest.raises(ValueError, match=text):
        adam.load(tmp_path / "s")
    assert contents(adam) == before
    assert adam.step([np.ones((2, 3), np.float32), np.ones(4)])


def test_state_of_another_kind() -> None:
    adam, state = saved()
    for bad in (None, [], 3, "x", {}):
        with pytest.raises(ValueError, match=r"state|format"):
            adam.load_state_dict(bad)
    for other in (AdamW, AdamZ, SGD):
        with pytest.raises(ValueError, match="'optimizer': got 'Adam'"):
            other([{"params": np.zeros((2, 3), np.float32)}, {"params": np.zeros(4)}]).load_state_dict(state)
    sgd = SGD([{"params": np.zeros((2, 3), np.float32)}, {"params": np.zeros(4)}], momentum=0.5).state_dict()
    with pytest.raises(ValueError, match="'optimizer': got 'SGD', needs 'Adam'"):
        adam.load_state_dict(sgd)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_damaged_files(tmp_path: Path) -> None:
    """Every truncation and every flipped byte is refused or, where it hit nothing that counts, harmless."""
    adam, _ = saved()
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    adam.save(whole)
    raw = whole.read_bytes()
    want = contents(adam)
    refused = 0
    for n in range(0, len(raw), 97):
        damaged.write_bytes(raw[:n])
        with pytest.raises(ValueError, match="damaged"):
            adam.load(damaged)
    for n in range(0, len(raw), 13):
        damaged.write_bytes(raw[:n] + bytes([raw[n] ^ 0x5A]) + raw[n + 1 :])
        try:
            adam.load(damaged)
        except ValueError:
            refused += 1
        assert contents(adam) == want
    assert refused > len(raw) / 13 / 2


def test_foreign_files(tmp_path: Path) -> None:
    adam, _ = saved()
    path = tmp_path / "f"
    before = contents(adam)

    class Trap:
        def __reduce__(self) -> Any:
            return (exec, ("raise SystemExit('executed')",))

    def zipped() -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("meta.npy", b"no array")

    def npz(**arrays: Any) -> Callable[[], None]:
        def write() -> None:
            with open(path, "wb") as file:
                np.savez(file, **arrays)

        return write

    def meta(value: Any) -> Any:
        return np.frombuffer(json.dumps(value).encode(), np.uint8)

    for write in (
        lambda: path.write_bytes(b""),
        lambda: path.write_text("lr = 0.1\n"),
        lambda: path.write_bytes(pickle.dumps({"state": 1})),
        zipped,
        npz(weights=np.zeros(3)),
        npz(meta=np.array([Trap()], dtype=object)),
        npz(meta=meta({"array": "array9"})),
        npz(meta=meta([1, 2])),
        npz(meta=meta({"format": "other"})),
        npz(meta=np.zeros(3)),
    ):
        write()
        with pytest.raises(ValueError, match=r"load|format"):
            adam.load(path)
        assert contents(adam) == before
    with pytest.raises(FileNotFoundError):
        adam.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        adam.load(tmp_path)


@pytest.mark.parametrize("where", ["savez", "replace"])
def test_an_interrupted_save_leaves_the_old_file(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adam, _ = saved()
    path = tmp_path / "state"
    adam.save(path)
    old = path.read_bytes()
    adam.step([np.ones((2, 3), np.float32), np.ones(4)])

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    def refuse(*paths: Any) -> None:
        raise PermissionError("not now")

    if where == "savez":
        monkeypatch.setattr(store.np, "savez", half)
    else:
        monkeypatch.setattr(store.os, "replace", refuse)
    with pytest.raises(OSError, match=r"no space|not now"):
        adam.save(path)
    assert path.read_bytes() == old
    assert [f.name for f in tmp_path.iterdir()] == ["state"]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    adam, _ = saved()
    adam.param_groups[0]["note"] = object()
    with pytest.raises(TypeError, match="object"):
        adam.save(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_import_is_light() -> None:
    code = "import sys, curvk.optim; print([m for m in ('numba', 'torch', 'cffi', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
