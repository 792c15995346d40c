"""DLPack both ways: what producers may hand in, who keeps what alive, and what curvk's arrays give to others."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import curvk
import numpy as np
import pytest
from curvk import _backend
from curvk.kernels import gram, linalg
from curvk.kernels.optim import AdamPlan, adam_step, global_norm, sgd_step

# ---- a producer of ours: any field of a DLTensor, and a count of its deleter's calls ---------------------------------

FLOAT, INT, BFLOAT = 2, 0, 4
CPU, CUDA, CUDA_HOST = 1, 2, 3
READ_ONLY = 1


class Device(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Legacy(ctypes.Structure):
    pass


class Versioned(ctypes.Structure):
    pass


LEGACY_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(Legacy))
VERSIONED_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(Versioned))
Legacy._fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", LEGACY_DELETER)]
Versioned._fields_ = [
    ("major", ctypes.c_uint32),
    ("minor", ctypes.c_uint32),
    ("context", ctypes.c_void_p),
    ("deleter", VERSIONED_DELETER),
    ("flags", ctypes.c_uint64),
    ("tensor", Tensor),
]

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]


HELD = next(iter([sys.getrefcount(x) for x in [object()]]))  # of a thing that only a list and the loop over it hold
NAMES = {True: b"dltensor_versioned", False: b"dltensor"}


class Producer:
    """Gives `array`'s memory by DLPack; keywords replace fields of the tensor it claims to be."""

    def __init__(self, array: np.ndarray, versioned: bool = True, flags: int = 0, **fields: Any) -> None:
        self.array, self.versioned, self.flags, self.fields = array, versioned, flags, fields
        self.capsules: list[Any] = []
        self.deleted: list[int] = []  # the numbers of the capsules whose deleter was called
        self.asked: list[dict[str, Any]] = []
        self._alive: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.fields.get("device", CPU), 0

    def __dlpack__(self, **keywords: Any) -> Any:
        self.asked.append(keywords)
        x = self.array
        shape = self.fields.get("shape", x.shape)
        strides = self.fields.get("strides", tuple(s // x.itemsize for s in x.strides))
        code, bits = self.fields.get("dtype", ({"f": FLOAT, "i": INT}[x.dtype.kind], 8 * x.itemsize))
        managed: Any = (Versioned if self.versioned else Legacy)()
        managed.tensor.data = self.fields.get("data", x.ctypes.data)
        managed.tensor.device = Device(self.fields.get("device", CPU), 0)
        managed.tensor.ndim = len(shape)
        managed.tensor.dtype = DataType(code, bits, self.fields.get("lanes", 1))
        sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        steps = None if strides is None else (ctypes.c_int64 * max(len(shape), 1))(*strides)
        managed.tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
        if steps is not None:
            managed.tensor.strides = ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64))
        managed.tensor.byte_offset = self.fields.get("byte_offset", 0)
        if self.versioned:
            managed.major, managed.minor, managed.flags = self.fields.get("version", 1), 0, self.flags

        number = len(self.capsules)

        def delete(_: Any) -> None:
            self.deleted.append(number)

        managed.deleter = (VERSIONED_DELETER if self.versioned else LEGACY_DELETER)(delete)
        self._alive += [managed, sizes, steps]  # until the producer goes: a second call would show, not crash
        self.capsules.append(_new(ctypes.addressof(managed), NAMES[self.versioned], None))
        return self.capsules[-1]

    def consumed(self) -> list[int]:
        """The numbers of the capsules that a consumer has renamed, which makes it call their deleter."""
        return [i for i, c in enumerate(self.capsules) if not _is_valid(c, NAMES[self.versioned])]

    def settled(self) -> bool:
        """Whether nobody holds a capsule, and each one that was consumed had its deleter called, once."""
        gc.collect()
        held = [sys.getrefcount(c) for c in self.capsules]
        return set(held) <= {HELD} and sorted(self.deleted) == self.consumed()


@pytest.fixture(params=["cpp", "python"] if _backend.compiled else ["python"])
def either(request: pytest.FixtureRequest) -> str:
    """The compiled binder, or the Python checks that every twin shares."""
    curvk.use_backend(request.param)
    return str(request.param)


def values(n: int = 6, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(1, n + 1).astype(dtype)


# ---- in --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("versioned", [True, False])
def test_a_gradient_of_either_kind_of_capsule(versioned: bool, either: str) -> None:
    p, g = np.zeros(6, np.float32), Producer(values(), versioned)
    sgd_step(p, g, lr=1.0)
    assert p.tolist() == [-1, -2, -3, -4, -5, -6]
    assert g.consumed() == [0]
    assert g.settled()
    assert all(k.get("max_version", (1, 0))[0] >= 1 for k in g.asked)  # versioned capsules are asked for
    assert all(k.get("copy") in (None, False) for k in g.asked)


def test_a_versioned_capsule_is_written_in_place(either: str) -> None:
    p, g = Producer(np.ones(6, np.float32)), values()
    sgd_step(p, g, lr=1.0)
    assert p.array.tolist() == [0, -1, -2, -3, -4, -5]
    assert p.settled()


@pytest.mark.parametrize(("versioned", "flags"), [(True, READ_ONLY), (False, 0)])
def test_memory_that_may_not_be_written_is_refused_or_read(versioned: bool, flags: int, either: str) -> None:
    """The flag of DLPack 1, or a capsule of before, which cannot say so and which NumPy therefore does not write."""
    p = Producer(np.ones(6, np.float32), versioned, flags)
    with pytest.raises(BufferError, match=r"sgd_step: argument 'p': got a read-only array, needs a writable one"):
        sgd_step(p, values(), lr=1.0)
    assert p.array.tolist() == [1] * 6
    assert p.settled()
    q = np.zeros(6, np.float32)
    sgd_step(q, p, lr=1.0)
    assert q.tolist() == [-1] * 6


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"byte_offset": 8, "shape": (4,), "strides": (1,)}, [3, 4, 5, 6]),
        ({"shape": (3,), "strides": (2,)}, [1, 3, 5]),
        ({"shape": (2, 3), "strides": (1, 2)}, [1, 3, 5, 2, 4, 6]),
        ({"shape": (4,), "strides": (0,)}, [1, 1, 1, 1]),
        ({"shape": (0,), "strides": (1,), "data": None}, []),
        ({"shape": (), "strides": ()}, [1]),
        ({"shape": (5, 0, 3), "strides": (0, 3, 1), "data": None}, []),
    ],
    ids=str,
)
def test_offsets_strides_and_sizes(fields: dict[str, Any], expected: list[float], versioned: bool, either: str) -> None:
    g = Producer(values(), versioned, **fields)
    p = np.zeros(fields["shape"], np.float32)
    sgd_step(p, g, lr=1.0)
    assert (-p).ravel().tolist() == expected
    assert g.settled()


def test_strides_may_be_absent() -> None:
    """As before DLPack 1.2: then the array lies in C order."""
    g = Producer(values(), strides=None, shape=(2, 3))
    p = np.zeros((2, 3), np.float32)
    sgd_step(p, g, lr=1.0)
    assert (-p).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert g.settled()


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"device": CUDA}, BufferError, "got an array on DLPack device (2, 0), needs a CPU array"),
    ({"device": CUDA_HOST}, BufferError, "got an array on DLPack device (3, 0), needs a CPU array"),
    ({"dtype": (BFLOAT, 16)}, TypeError, "needs an array NumPy can view"),
    ({"lanes": 4}, TypeError, "needs an array NumPy can view"),
    ({"dtype": (INT, 32)}, TypeError, "got int32, needs float32 like 'p'; use g.astype(np.float32)"),
    ({"dtype": (FLOAT, 64), "shape": (3,)}, TypeError, "got float64, needs float32 like 'p'; use g.astype(np.float32)"),
    ({"version": 2}, TypeError, "needs an array NumPy can view"),
    ({"shape": (5,)}, ValueError, "got shape (5,), needs shape (6,) like 'p'"),
    ({"shape": (1,) * 70, "strides": (1,) * 70}, TypeError, "needs an array NumPy can view"),
    ({"byte_offset": 2, "shape": (5,), "strides": (1,)}, ValueError, "got a misaligned array, needs 4-byte alignment"),
]


@pytest.mark.parametrize(("fields", "error", "text"), WRONG, ids=str)
def test_what_cannot_be_taken_is_refused_and_let_go(
    fields: dict[str, Any], error: type[Exception], text: str, either: str
) -> None:
    g = Producer(np.ones(6, np.float32), **fields)
    p = np.zeros(6, np.float32)
    with pytest.raises(error, match="sgd_step: argument 'g': ") as caught:
        sgd_step(p, g, lr=1.0)
    assert text in str(caught.value)
    del caught
    assert not p.any()
    assert g.settled()


@pytest.mark.parametrize("raised", [BufferError, RuntimeError, TypeError])
def test_what_a_producer_raises_is_part_of_the_error(raised: type[Exception]) -> None:
    class Refuses(Producer):
        def __dlpack__(self, **keywords: Any) -> Any:
            raise raised("this memory is not to be shared")

    with pytest.raises(TypeError, match=r"argument 'g': got Refuses.*this memory is not to be shared"):
        sgd_step(np.zeros(6, np.float32), Refuses(values()), lr=1.0)


def test_a_producer_of_the_first_protocol() -> None:
    """Which knows no keywords: the capsule is asked for once more without them."""

    class Old(Producer):
        def __dlpack__(self, stream: Any = None) -> Any:
            return super().__dlpack__()

    p, g = np.zeros(6, np.float32), Old(values(), versioned=False)
    sgd_step(p, g, lr=1.0)
    assert p.tolist() == [-1, -2, -3, -4, -5, -6]
    assert g.settled()


def test_a_capsule_that_was_consumed_is_refused() -> None:
    class Twice(Producer):
        kept: Any = None

        def __dlpack__(self, **keywords: Any) -> Any:
            if self.kept is None:
                self.kept = super().__dlpack__(**keywords)
            return self.kept

    g, p = Twice(values()), np.zeros(6, np.float32)
    sgd_step(p, g, lr=1.0)
    with pytest.raises(TypeError, match=r"sgd_step: argument 'g': got Twice \(.*Capsule.*\), needs an array NumPy can"):
        sgd_step(p, g, lr=1.0)
    assert p.tolist() == [-1, -2, -3, -4, -5, -6]
    assert g.deleted == [0]


@pytest.mark.parametrize("error", ["shape", "overlap", "number"])
def test_capsules_are_let_go_on_every_error_path(error: str, either: str) -> None:
    arrays = {k: Producer(np.ones(6, np.float32)) for k in "pgmv"}
    lr = -1.0 if error == "number" else 0.1
    if error == "shape":
        arrays["v"] = Producer(np.ones(7, np.float32))
    if error == "overlap":
        arrays["m"] = Producer(arrays["p"].array)
    with pytest.raises(ValueError, match="adam_step"):
        adam_step(*arrays.values(), step=1, lr=lr)
    assert all((x.array == 1).all() for x in arrays.values())
    assert all(x.settled() for x in arrays.values())


def test_two_producers_of_one_memory_overlap(either: str) -> None:
    memory = np.ones(12, np.float32)
    with pytest.raises(ValueError, match="argument 'buf': got memory shared with 'p'"):
        sgd_step(Producer(memory[:6]), values(), Producer(memory[3:9]), lr=0.1, momentum=0.9)
    sgd_step(Producer(memory[:6]), values(), Producer(memory[6:]), lr=1.0, momentum=0.9, first=True)
    assert memory.tolist() == [0, -1, -2, -3, -4, -5, 1, 2, 3, 4, 5, 6]


def test_a_thousand_calls_leave_nothing(either: str) -> None:
    g, bad = Producer(values()), Producer(values(7))
    p = np.zeros(6, np.float32)
    counts = sys.getrefcount(g.array), sys.getrefcount(bad.array)
    for k in range(1000):
        sgd_step(p, g, lr=0.0)
        if k % 10 == 0:
            with pytest.raises(ValueError, match="shape"):
                sgd_step(p, bad, lr=0.0)
    assert (len(g.deleted), len(bad.deleted)) == (1000, 100)
    assert g.settled()
    assert bad.settled()
    assert (sys.getrefcount(g.array), sys.getrefcount(bad.array)) == counts


# ---- who keeps producers alive ---------------------------------------------------------------------------------------


def kept_by(hold: Callable[[Producer], Any]) -> None:
    """What `hold` returns keeps a producer's memory, and gives it back when it goes."""
    x = Producer(np.random.default_rng(0).standard_normal((8, 3)))
    holder = hold(x)
    gc.collect()
    assert len(x.consumed()) > len(x.deleted)
    del holder
    assert x.settled()


def test_a_plan_keeps_its_producers() -> None:
    kept_by(lambda x: AdamPlan([x], *([np.zeros((8, 3))] for _ in range(3))))


def test_centers_keep_their_producer() -> None:
    kept_by(gram.Centers)
    rng = np.random.default_rng(1)
    X, z = rng.standard_normal((5, 3)), Producer(rng.standard_normal((8, 3)))
    centers = gram.Centers(z)
    gc.collect()
    want = np.exp(-((X[:, None] - z.array[None]) ** 2).sum(2) / 2)
    np.testing.assert_allclose(gram.block(X, centers, kernel="gaussian", bandwidth=1.0), want, rtol=1e-12)
    del centers
    assert z.settled()


def test_views_that_a_plan_hands_to_torch_outlive_it() -> None:
    torch = pytest.importorskip("torch")
    p = np.ones(4, np.float32)
    plan = AdamPlan([p], [np.ones(4, np.float32)], [np.zeros(4, np.float32)], [np.zeros(4, np.float32)])
    t = torch.from_dlpack(p)
    gone = weakref.ref(p)
    plan.step(step=1, lr=0.5)
    del p, plan
    gc.collect()
    assert gone() is not None
    assert t.tolist() == [0.5] * 4


# ---- producers of others ---------------------------------------------------------------------------------------------


def test_numpys_own_capsules(either: str) -> None:
    class Wrapped:
        """An array library of its own, over NumPy's capsules."""

        def __init__(self, x: np.ndarray) -> None:
            self.x = x

        def __dlpack__(self, **keywords: Any) -> Any:
            return self.x.__dlpack__(**keywords)

        def __dlpack_device__(self) -> Any:
            return self.x.__dlpack_device__()

    frame = np.zeros((6, 4), np.float32)
    g = np.broadcast_to(values()[:, None], (6, 2))
    sgd_step(Wrapped(frame[:, ::2]), Wrapped(g.copy()), lr=1.0)
    assert (frame[:, ::2] == -g).all()
    assert not frame[:, 1::2].any()
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(BufferError, match="'p': got a read-only array"):
        sgd_step(Wrapped(frozen), values(3), lr=1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_torchs_capsules_in_every_dtype_and_layout(dtype: str, either: str) -> None:
    torch = pytest.importorskip("torch")
    base = torch.zeros(4, 6, dtype=getattr(torch, dtype))
    g = torch.arange(12).reshape(3, 4).to(base.dtype).t()[:, 1:]  # strides and an offset
    p = base[:, 1::3]
    sgd_step(p, g, lr=1.0)
    assert torch.equal(p, -g)
    assert not base[:, ::3].any()
    assert not base[:, 2::3].any()


def test_numba_takes_what_curvk_makes_and_gives_back() -> None:
    numba = pytest.importorskip("numba")
    x = np.random.default_rng(2).standard_normal((4, 7, 3))
    u, s, vt = linalg.svd_batch(x)

    @numba.njit
    def total(a: Any) -> float:
        return a.sum()

    assert total(s) == pytest.approx(np.linalg.svd(x, compute_uv=False).sum(), rel=1e-12)
    made = numba.njit(lambda n: np.ones(n, np.float32))(5)
    sgd_step(made, values(5), lr=1.0)
    assert made.tolist() == [0, -1, -2, -3, -4]
    assert u.shape[0] == vt.shape[0] == 4


# ---- out -------------------------------------------------------------------------------------------------------------

OUTPUTS: dict[str, Callable[[], Any]] = {
    "gram.block": lambda: gram.block(np.ones((5, 2)), np.zeros((3, 2)), kernel="gaussian", bandwidth=1.0),
    "gram.matvec": lambda: gram.matvec(
        np.ones((5, 2)), np.zeros((3, 2)), np.ones((3, 1)), kernel="gaussian", bandwidth=1.0
    ),
    "svd_batch": lambda: linalg.svd_batch(np.ones((2, 4, 3)))[1],
    "optim.SGD": lambda: momentum_of(),
    "sketch": lambda: sketch_of(),
}


def momentum_of() -> Any:
    optimizer = curvk.optim.SGD([np.ones(4, np.float32)], momentum=0.9)
    optimizer.step([np.ones(4, np.float32)])
    return optimizer.state[0]["momentum_buffer"]


def sketch_of() -> Any:
    made = curvk.sketch.FrequentDirections(4, 6)
    made.update(np.random.default_rng(0).standard_normal((20, 6)))
    return made.sketch


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_go_to_others_and_share_their_memory(name: str) -> None:
    torch = pytest.importorskip("torch")
    out = OUTPUTS[name]()
    assert type(out) is np.ndarray
    t, view = torch.from_dlpack(out), np.from_dlpack(out)
    assert t.data_ptr() == view.ctypes.data == out.ctypes.data
    if out.flags.writeable:
        out.ravel()[0] = 42
        assert t.ravel()[0] == view.ravel()[0] == 42
    want = t.clone()
    del out, view
    gc.collect()
    assert torch.equal(t, want)


@pytest.mark.parametrize("kind", ["torch", "producer"])
def test_out_arguments_are_filled_where_they_lie(kind: str) -> None:
    X, Z = np.random.default_rng(3).standard_normal((5, 2)), np.zeros((3, 2))
    want = gram.block(X, Z, kernel="gaussian", bandwidth=1.0)
    if kind == "torch":
        out = pytest.importorskip("torch").zeros(5, 3, dtype=pytest.importorskip("torch").float64)
        gram.block(X, Z, kernel="gaussian", bandwidth=1.0, out=out)
        assert (out.numpy() == want).all()
    else:
        made = Producer(np.zeros((5, 3)))
        gram.block(X, Z, kernel="gaussian", bandwidth=1.0, out=made)
        assert (made.array == want).all()
        assert made.settled()


def test_reductions_take_producers(either: str) -> None:
    assert global_norm([Producer(np.array([3.0])), Producer(np.array([[4.0]]))]) == 5.0
    x = Producer(np.array([[3.0, 0.0], [0.0, 4.0]]))
    assert gram.row_sums(x, np.eye(2), kernel="linear").tolist() == [3.0, 4.0]
    assert x.settled()
