"""Arrays of other libraries: array-API arrays, tensors, memory maps, columns of frames, and scikit-learn's dispatch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import curvk
import numpy as np
import pytest
from curvk.kernels import gram, linalg
from curvk.kernels.optim import adam_step, global_norm, sgd_step

xp = pytest.importorskip("array_api_strict", reason="the strictest array-API library is array-api-strict")

rng = np.random.default_rng(20)
X, Z, W = rng.standard_normal((7, 3)), rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
KERNEL: dict[str, Any] = {"kernel": "gaussian", "bandwidth": 1.5}


def strict(x: Any) -> Any:
    """An array that is no NumPy array, whose library converts nothing by itself."""
    return xp.asarray(x.copy())


def tensor(x: Any) -> Any:
    return pytest.importorskip("torch").from_numpy(x.copy())


def mapped(x: Any) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(x.tobytes())
        file.flush()
        return np.memmap(file, x.dtype, "r", shape=x.shape)


MAKERS = {"array_api_strict": strict, "torch": tensor, "memmap": mapped}

# ---- low-level calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_inputs_of_low_level_calls(make: Callable[[Any], Any]) -> None:
    p = np.zeros((7, 3))
    sgd_step(p, make(X), lr=1.0)
    assert (p == -X).all()
    assert global_norm([make(X)]) == global_norm([X])
    distances = ((X[:, None] - Z[None]) ** 2).sum(2)
    want = np.exp(-distances / (2 * 1.5**2))
    np.testing.assert_allclose(np.asarray(gram.block(make(X), make(Z), **KERNEL)), want, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(gram.matvec(make(X), make(Z), make(W), **KERNEL)), want @ W, rtol=1e-12)
    stack = rng.standard_normal((2, 5, 3))
    s = linalg.svd_batch(make(stack))[1]
    np.testing.assert_allclose(np.asarray(s), np.linalg.svd(stack, compute_uv=False), rtol=1e-10)


def test_written_arguments_are_written_in_place_or_refused() -> None:
    """An array-API array is written where it lies; a memory map that was opened to read is not."""
    p, m, v = strict(np.zeros((7, 3))), strict(np.zeros((7, 3))), strict(np.zeros((7, 3)))
    twins = [np.zeros((7, 3)) for _ in range(3)]
    adam_step(p, strict(X), m, v, step=1, lr=0.1)
    adam_step(twins[0], X, twins[1], twins[2], step=1, lr=0.1)
    for a, b in zip((p, m, v), twins, strict=True):
        assert (np.from_dlpack(a) == b).all()
    frozen = mapped(np.zeros((7, 3)))
    with pytest.raises(BufferError, match=r"'p': got a read-only array, needs a writable one; use p\.copy\(\)"):
        sgd_step(frozen, X, lr=1.0)
    out = strict(np.zeros((7, 4)))
    gram.block(X, Z, out=out, **KERNEL)
    assert (np.from_dlpack(out) == gram.block(X, Z, **KERNEL)).all()


@pytest.mark.parametrize("bad", [[1.0, 2.0, 3.0], (1.0, 2.0, 3.0), range(3), "abc"], ids=str)
def test_what_is_no_array_names_the_remedy(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"sgd_step: argument 'g'.*"):
        sgd_step(np.zeros(3, np.float32), bad, lr=1.0)


def test_a_wrong_dtype_is_not_converted() -> None:
    p = strict(np.zeros(3))
    with pytest.raises(
        TypeError, match=r"argument 'g': got float32, needs float64 like 'p'; use g\.astype\(np\.float64\)"
    ):
        sgd_step(p, xp.asarray([1.0, 2.0, 3.0], dtype=xp.float32), lr=1.0)
    with pytest.raises(TypeError, match="argument 'g': got int64"):
        sgd_step(p, xp.asarray([1, 2, 3]), lr=1.0)
    with pytest.raises(TypeError, match="argument 'g': got bool"):
        sgd_step(p, xp.asarray([True, False, True]), lr=1.0)
    assert not np.from_dlpack(p).any()


def test_a_device_that_is_the_cpu_by_another_name() -> None:
    """The library pretends to have devices; by DLPack they are the CPU, and what its memory says counts."""
    p = np.zeros(3)
    sgd_step(p, xp.asarray([1.0, 2.0, 3.0], device=xp.Device("device1")), lr=1.0)
    assert p.tolist() == [-1, -2, -3]


# ---- NumPy classes of the second floor -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [strict, tensor], ids=["array_api_strict", "torch"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_optimizers_step_arrays_of_other_libraries_in_place(name: str, make: Callable[[Any], Any]) -> None:
    p, q = make(X), X.copy()
    ours, plain = (getattr(curvk.optim, name)([x], lr=0.1) for x in (p, q))
    for k in range(3):
        ours.step([make(Z[:1] * k + X)])
        plain.step([Z[:1] * k + X])
    assert (np.from_dlpack(p) == q).all()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_sketches_and_samplers_take_them(make: Callable[[Any], Any]) -> None:
    rows = rng.standard_normal((30, 6))
    ours, plain = curvk.sketch.FrequentDirections(4, 6), curvk.sketch.FrequentDirections(4, 6)
    ours.update(make(rows))
    plain.update(rows)
    assert (ours.sketch == plain.sketch).all()
    found = curvk.sketch.randomized_svd(make(rows), 3, seed=1)
    for a, b in zip(found, curvk.sketch.randomized_svd(rows, 3, seed=1), strict=True):
        assert (np.asarray(a) == b).all()


# ---- estimators ------------------------------------------------------------------------------------------------------


def data() -> tuple[Any, Any]:
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((80, 3))
    return rows, (rows[:, 0] * rows[:, 1] > 0).astype(int)


def estimators() -> list[Any]:
    pytest.importorskip("sklearn")
    from curvk.machines import EigenPro4Regressor, KernelRidgeCGClassifier
    from curvk.online import FORKSClassifier

    return [
        KernelRidgeCGClassifier(n_centers=20, random_state=0),
        EigenPro4Regressor(n_centers=20, n_components=4, epochs=2, random_state=0),
        FORKSClassifier(budget=20, rank=5, random_state=0),
    ]


def as_lists(x: Any) -> Any:
    return x.tolist()


def as_frame(x: Any) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(x, columns=["a", "b", "c"]) if x.ndim == 2 else pandas.Series(x, name="label")


@pytest.mark.parametrize("make", [as_lists, as_frame, tensor, mapped], ids=lambda f: f.__name__)
def test_estimators_take_array_likes(make: Callable[[Any], Any]) -> None:
    rows, labels = data()
    for estimator in estimators():
        want = estimator.fit(rows, labels).predict(rows)
        got = estimator.fit(make(rows), make(labels)).predict(make(rows))
        assert type(got) is np.ndarray
        assert (got == want).all()
        assert (hasattr(estimator, "feature_names_in_")) == (make is as_frame)


def test_scikit_learns_dispatch_does_not_break_the_estimators(run_python: Callable[..., Any]) -> None:
    """In a Python of its own: SciPy reads SCIPY_ARRAY_API when it is imported."""
    pytest.importorskip("sklearn")
    code = """
import numpy as np, sklearn
from curvk import machines, online
from sklearn.utils.estimator_checks import check_estimator

rng = np.random.default_rng(3)
X = rng.standard_normal((80, 3))
y = (X[:, 0] * X[:, 1] > 0).astype(int)
for package in (machines, online):
    for name in package.__all__:
        kind = getattr(package, name)
        params = {k: v for k, v in {"random_state": 0, "budget": 30, "rank": 5}.items() if k in kind().get_params()}
        want = kind(**params).fit(X, y).predict(X)
        with sklearn.config_context(array_api_dispatch=True):
            machine = kind(**params).fit(X, y)
            got = machine.predict(X)
        assert (got == want).all(), name
        print(name)
"""
    done = run_python(code, SCIPY_ARRAY_API="1")
    from curvk import machines, online

    assert done.stdout.split() == [*machines.__all__, *online.__all__]


def test_scikit_learns_own_array_api_check(run_python: Callable[..., Any]) -> None:
    """Which is skipped elsewhere for want of SCIPY_ARRAY_API."""
    pytest.importorskip("sklearn")
    code = """
from curvk import machines, online
from sklearn.utils.estimator_checks import check_array_api_input

for package in (machines, online):
    for name in package.__all__:
        check_array_api_input(name, getattr(package, name)(), "numpy", expect_only_array_outputs=False)
        print(name)
"""
    done = run_python(code, SCIPY_ARRAY_API="1")
    from curvk import machines, online

    assert done.stdout.split() == [*machines.__all__, *online.__all__]
