"""What the fuzz of tests/fuzz has found, each in its smallest form."""

from __future__ import annotations

import weakref
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curvk import _store, optim, zeroth
from curvk._backend import call, core
from curvk._signatures import ops
from curvk.kernels.optim import adam_step
from curvk.zeroth import _log

compiled = pytest.mark.skipif(core is None, reason="this build has no compiled binder")


def two() -> tuple[np.ndarray, np.ndarray]:
    return np.ones(3, np.float32), np.zeros(3, np.float32)


class Protocol:
    """An array by DLPack alone; `device` and `capsule` are what it says in place of the truth."""

    def __init__(self, x: np.ndarray, act: Any = None, **lies: Any) -> None:
        self.x, self.act, self.lies = x, act, lies

    def __dlpack_device__(self) -> Any:
        if self.act is not None:
            self.act()
        return self.lies.get("device", (1, 0))

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.lies["capsule"] if "capsule" in self.lies else self.x.__dlpack__(**keywords)


# ---- the binder -----------------------------------------------------------------------------------------------------


@compiled
def test_a_types_own_code_does_not_run_while_arrays_are_bound() -> None:
    """The list lost its arrays to the metaclass, and the binder read on."""
    x, out = two()
    columns: tuple[list[Any], list[Any]] = ([x], [out])
    seen = []

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            seen.append(name)
            return type.__getattribute__(cls, name)

    class Thing(metaclass=Meta):
        pass

    columns[0].append(Thing())
    columns[1].append(np.zeros(3, np.float32))
    seen.clear()
    with pytest.raises(TypeError, match=r"exp: argument 'x\[1\]': got Thing, needs an array"):
        core.call("exp", columns, ())
    assert "__dict__" not in seen


@compiled
def test_a_plan_keeps_arrays_that_its_caller_takes_out_of_the_list() -> None:
    x, out = two()
    arrays, results = [x], [out]
    alive = weakref.ref(x)
    plan = core.Plan("exp", (arrays, results))
    arrays.clear()
    del x
    assert alive() is not None
    plan.run(())
    np.testing.assert_allclose(out, np.e, rtol=1e-6)
    del plan
    assert alive() is None


@compiled
def test_a_plan_lets_go_of_what_it_is_told_to() -> None:
    x, out = two()
    alive = weakref.ref(x)
    plan = core.Plan("exp", ([x], [out]))
    del x
    plan.release((0,))
    assert alive() is None
    with pytest.raises(RuntimeError, match="exp: the plan's arrays were released; rebind it"):
        plan.run(())
    with pytest.raises(IndexError, match="exp: no such column"):
        plan.release((2,))
    plan.rebind(([np.zeros(3, np.float32)], [out]))
    plan.run(())
    assert out.tolist() == [1, 1, 1]


def test_a_list_that_shrinks_while_it_is_checked(backend: str) -> None:
    (x, out), (y, other) = two(), two()
    columns: tuple[list[Any], list[Any]] = ([x, y], [out, other])
    columns[1][0] = Protocol(out, act=lambda: [c.clear() for c in columns])
    call("exp", columns, ())
    for result in (out, other):
        np.testing.assert_allclose(result, np.e, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_arrays(backend: str, count: int) -> None:
    columns = (*two(), np.zeros(3, np.float32))[:count]
    with pytest.raises((TypeError, IndexError) if count == 0 and backend != "cpp" else TypeError):
        call("exp", columns, ())
    if core is not None and count:
        x, out = two()
        plan = core.Plan("exp", (x, out))
        with pytest.raises(TypeError, match="exp: wrong number of array arguments"):
            plan.rebind(columns)


@pytest.mark.parametrize("device", [None, (), (1,), "cpu", (1 << 70, 0), (-1, -1), (1, None)])
def test_a_device_that_is_none(backend: str, device: Any) -> None:
    x, out = two()
    with pytest.raises(TypeError, match=r"exp: argument 'x': got Protocol.*needs an array"):
        call("exp", (Protocol(x, device=device), out), ())
    assert not out.any()


@pytest.mark.parametrize("capsule", [None, 1, object()])
def test_a_capsule_that_is_none(backend: str, capsule: Any) -> None:
    x, out = two()
    with pytest.raises(TypeError, match=r"exp: argument 'out': got Protocol .*needs an array NumPy can view"):
        call("exp", (x, Protocol(out, capsule=capsule)), ())


@pytest.mark.parametrize("interface", [{}, {"data": None}, {"data": ("x", False)}, {"data": (-1, False)}, None])
def test_a_cuda_interface_that_is_none(backend: str, interface: Any) -> None:
    x, _ = two()
    thing = type("Thing", (), {"__cuda_array_interface__": interface})()
    with pytest.raises(TypeError, match="exp: argument 'out': got Thing, needs an array"):
        call("exp", (x, thing), ())


@pytest.mark.parametrize("present", ["glass", "glass_scale"])
def test_codes_and_scales_come_together(backend: str, present: str) -> None:
    """A kernel read the scales of codes that had none."""
    kernel = ops()["alice_step8"]["f32"]
    arrays: dict[str, Any] = {
        a.name: None
        if a.nullable and a.name != present
        else np.zeros(1, np.int64)
        if a.per_row
        else np.zeros(-(-32 // (a.per or 1)), np.uint8 if a.element == "uint8_t" else np.float32)
        for a in kernel.arrays
    }
    scalars = [1 if s.ctype == "int64_t" else 0.5 for s in kernel.scalars]
    with pytest.raises(TypeError, match=r"alice_step8: argument 'glass_scale': got .* like 'glass'"):
        call("alice_step8", tuple(arrays.values()), tuple(scalars))
    assert not any(x.any() for x in arrays.values() if x is not None)


# ---- states and files -----------------------------------------------------------------------------------------------


def test_an_array_where_a_state_has_a_name() -> None:
    adam = optim.Adam([np.ones(3)])
    with pytest.raises(ValueError, match=r"Adam.load_state_dict: argument 'version': got array\(\[1, 1\]\), needs 1"):
        adam.load_state_dict(adam.state_dict() | {"version": np.array([1, 1])})


def test_sam_names_a_group_that_is_no_dict() -> None:
    sam = optim.SAM(optim.SGD([np.ones(3)]))
    state = sam.state_dict()
    state["base"]["param_groups"] = [1]
    with pytest.raises(ValueError, match=r"SGD.load_state_dict: argument 'param_groups\[0\]': got int, needs a dict"):
        sam.load_state_dict(state)


def test_a_log_with_an_array_inside_of_its_header(tmp_path: Path) -> None:
    theta = {"w": np.ones(3, np.float32)}
    opt = zeroth.MeZO(theta, lr=0.1)
    opt.step(lambda p: float(p["w"].sum()))
    path = tmp_path / "log.npz"
    opt.log.save(path)
    state = _store.read(path, "ZOLog.save")
    state["content"]["header"]["seed"] = np.ones(2)
    _store.write(path, state)
    with pytest.raises(ValueError, match=r"ZOLog.load: '.*log.npz': got "):
        zeroth.ZOLog.load(path)


@pytest.mark.parametrize(
    "place", [("header", "theta_0"), ("header", "selection", "mask_every"), ("end", "digest"), ("end", "skipped")]
)
def test_a_log_that_lacks_what_its_replay_reads(tmp_path: Path, place: tuple[str, ...]) -> None:
    theta = {"w": np.ones(3, np.float32)}
    opt = zeroth.SparseMeZO(theta, lr=0.1)
    opt.step(lambda p: float(p["w"].sum()))
    opt.log.save(tmp_path / "log.npz")
    state = _store.read(tmp_path / "log.npz", "ZOLog.save")
    node = state["content"]
    for key in place[:-1]:
        node = node[key]
    del node[place[-1]]
    state["checksum"] = _log._checksum(state["content"])
    _store.write(tmp_path / "log.npz", state)
    with pytest.raises(ValueError, match=rf"ZOLog.load: '.*log.npz': got KeyError: '{place[-1]}'"):
        zeroth.ZOLog.load(tmp_path / "log.npz")


def test_an_array_of_text_that_is_none(tmp_path: Path) -> None:
    """NumPy raised a SystemError where such an element was read."""
    path = tmp_path / "file.npz"
    _store.write(path, {"labels": np.full(2, 0x110000, np.uint32).view("<U1")})
    with pytest.raises(ValueError, match=r"load: '.*file.npz' is not a whole file that X.save saved: SystemError"):
        _store.read(path, "X.save")


@pytest.mark.parametrize("header", ["{'descr': '<f4', 'fortran_order': (", "{'descr': ", "\x00", "", "[1]"])
def test_a_member_whose_header_breaks_off(tmp_path: Path, header: str) -> None:
    """NumPy reads a header that is no Python expression as one of Python 2's, token by token."""
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(ValueError, match=r"load: '.*file.npz' is not a whole file that this test saved"):
        _store.read(path, "this test")


def _changed(path: Path, place: str, value: Any) -> None:
    """The file with something else in a place of its tree; None takes it out."""
    tree = _store.read(path, "this test")
    *folders, name = place.split("/")
    node = tree
    for folder in folders:
        node = node[folder]
    if value is None:
        del node[name]
    else:
        node[name] = value
    _store.write(path, tree)


X = np.random.default_rng(0).standard_normal((12, 3))
LABELS = np.where(X[:, 0] > 0, "a", "b")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("params", None),
        ("params/kernel", "bandwidth"),
        ("fitted/centers_", None),
        ("fitted/coef_", np.ones(2)),
        ("fitted/n_features_in_", 7),
        ("fitted/kernel_", {"kernel": "gaussian", "bandwidth": -1.0}),
        ("fitted/kernel_", {"x": 1}),
    ],
)
def test_a_machines_file_that_does_not_fit(tmp_path: Path, place: str, value: Any) -> None:
    machines = pytest.importorskip("curvk.machines")
    path = tmp_path / "machine.npz"
    machines.KernelRidgeCG(n_centers=6, random_state=0).fit(X, X[:, 0]).save(path)
    if place == "params/kernel":  # a fitted machine does not read it again, so it loads
        _changed(path, place, value)
        assert machines.KernelRidgeCG.load(path).kernel == value
        return
    _changed(path, place, value)
    with pytest.raises(ValueError, match=r"KernelRidgeCG.load: argument 'path': got '.*machine.npz'"):
        machines.KernelRidgeCG.load(path)


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("ForgetronClassifier", "state/_engine/oldest", 1 << 40),  # the kernel read and wrote coefficients there
        ("ForgetronClassifier", "state/_engine/oldest", -1),
        ("ForgetronClassifier", "state/_engine/coef", np.ones((1, 11))),
        ("ForgetronClassifier", "state/_recent", None),
        ("ForgetronClassifier", "state/rows_seen_", "12"),
        ("ForgetronClassifier", "params/budget", [2]),
        ("FOGDClassifier", "state/_engine/w", np.ones((1, 2))),  # the kernel read beyond its end
        ("FOGDClassifier", "state/_engine/since", None),
        ("KONSRegressor", "state/_engine/inverse", np.ones((1, 2, 2))),
        ("KONSRegressor", "state/n_features_in_", 1 << 62),
        ("KONSRegressor", "state/loss_", None),
    ],
)
def test_a_learners_file_that_does_not_fit(tmp_path: Path, kind: str, place: str, value: Any) -> None:
    online = pytest.importorskip("curvk.online")
    path = tmp_path / "learner.npz"
    learner = getattr(online, kind)()
    learner.partial_fit(X, X[:, 0] if kind.endswith("Regressor") else LABELS).save(path)
    _changed(path, place, value)
    with pytest.raises(ValueError, match=rf"{kind}.load: argument 'path': got '.*learner.npz'"):
        type(learner).load(path)


def test_an_index_that_does_not_compare_with_numbers(backend: str) -> None:
    class Index:
        def __index__(self) -> int:
            return 1 << 63

    p, g, m, v = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"adam_step: argument 'step': got .*, needs a number in .1, inf. below 2\^63"):
        adam_step(p, g, m, v, step=Index(), lr=0.1)  # type: ignore[arg-type]


def test_an_array_where_a_state_has_indices_or_a_count() -> None:
    w = np.ones(3)
    adam = optim.Adam([w])
    state = adam.state_dict()
    state["param_groups"][0]["params"] = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"Adam.load_state_dict: argument 'param_groups.0..params'"):
        adam.load_state_dict(state)
    state = adam.state_dict()
    state["state"][0] = {"step": np.ones(2)}
    with pytest.raises(ValueError, match=r"Adam.load_state_dict: argument 'state.0.'"):
        adam.load_state_dict(state)
