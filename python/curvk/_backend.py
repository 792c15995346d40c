"""Which code runs: the backend, the SIMD level, and the one door to the kernels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from . import _cuda
from ._arrays import Column

try:
    from ._build import compiled, version
except ModuleNotFoundError as error:  # a source folder on sys.path, never built
    raise ImportError("curvk is not installed; from its source folder run: pip install .") from error

REBUILD = (
    "pip install --force-reinstall --no-deps --no-binary curvk --no-cache-dir curvk (or: pip install . in its source)"
)
BACKENDS = ("cpp", "numba", "python")

core: Any = None
if compiled:
    try:
        core = import_module("._core", __package__)
    except ImportError as error:
        raise ImportError(
            f"curvk's compiled kernels do not load: {error}. Rebuild them with: {REBUILD}. "
            "If the message names static TLS, import curvk before the library that uses it up."
        ) from error

_backend = ""
_reason = ""
_warned = False


def _need(name: str) -> str:
    if name not in (*BACKENDS, "emulator"):
        raise ValueError(f"backend: got {name!r}, needs one of {', '.join(BACKENDS)}")
    if name == "cpp" and not compiled:
        raise ValueError(f"backend: 'cpp' is not in this pure-Python build; rebuild with: {REBUILD}")
    if name == "emulator":
        try:
            _cuda.load(emulator=True)
        except ImportError as error:
            raise ValueError(f"backend: {error}") from None
    return name


def get_backend() -> str:
    """The backend in force: "cpp", "numba" or "python"."""
    return _backend


def backend_reason() -> str:
    """Why that backend is in force."""
    return _reason


def _set(name: str, reason: str) -> None:
    global _backend, _reason
    _backend, _reason = name, reason
    if core is not None:
        core.emulate_cuda(name == "emulator")


class _Switch:
    """Applies a backend at once and, used as a context manager, undoes it."""

    def __init__(self, name: str) -> None:
        self.before = (_backend, _reason)
        _set(_need(name), f"curvk.use_backend({name!r})")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        _set(*self.before)


def use_backend(name: str) -> _Switch:
    """Chooses the backend: "cpp" (compiled kernels), "numba" (their twins) or "python" (the twins, unjitted).

    Holds for the process. Works as a plain call and as a context manager that restores the backend before. The
    environment variable CURVK_BACKEND sets the start value. The results are the same bits. Arrays on a CUDA device
    choose its kernels by themselves; "emulator", in builds for tests, sends arrays on the CPU to these kernels too.

    Raises:
        ValueError: an unknown name, or "cpp" in a build without compiled kernels.

    >>> import curvk
    >>> with curvk.use_backend("numba"):
    ...     curvk.get_backend()
    'numba'
    """
    return _Switch(name)


def _warn_uncompiled() -> None:
    global _warned
    if not compiled and not _warned:
        _warned = True
        warnings.warn(
            "curvk was installed without compiled kernels (no working C++17 compiler was found) and runs its Numba "
            f"twins: same results, one thread. To compile: {REBUILD}",
            RuntimeWarning,
            stacklevel=4,
        )


def _door(columns: tuple[Column, ...]) -> ModuleType:
    """Who runs a kernel on these arrays."""
    if _backend in ("cpp", "emulator") or (core is not None and _on_device(columns[0])):
        return core  # type: ignore[no-any-return]
    _warn_uncompiled()
    from . import _twins

    return _twins


def _on_device(column: Column) -> bool:
    first = column[0] if type(column) is list and column else column
    return _cuda.device_of(first) is not None


def call(op: str, columns: tuple[Column, ...], scalars: tuple[Any, ...], format: str | None = None) -> None:
    """Runs a kernel once on arrays (columns) and scalars, both in the header's order."""
    if _backend == "cpp":
        core.call(op, columns, scalars, format)
    else:
        _door(columns).call(op, columns, scalars, format)


class Plan:
    """Arrays bound to a kernel: checked once, run as often as wanted.

    A column is one array, a list of arrays or None. The plan holds references to the arrays.
    """

    def __init__(self, op: str, columns: tuple[Column, ...]) -> None:
        self._op, self._columns = op, columns
        self._made_for = ""
        self._ready()

    def _ready(self) -> Any:
        if self._made_for != _backend:
            self._plan = _door(self._columns).Plan(self._op, self._columns)
            self._made_for = _backend
        return self._plan

    def rebind(self, columns: tuple[Column, ...]) -> None:
        """Takes other arrays in place of the present ones, checked again (some tens of nanoseconds each)."""
        self._columns = columns
        if self._made_for == _backend:
            self._plan.rebind(columns)
        else:  # a plan of another backend still holds the old arrays
            self._made_for = ""
            self._ready()

    def release(self, columns: tuple[int, ...]) -> None:
        """Lets go of the arrays in these columns; the plan does not run until it is bound again."""
        self._columns = tuple(None if c in columns else column for c, column in enumerate(self._columns))
        if self._made_for == _backend:
            self._plan.release(columns)

    def run(self, scalars: tuple[Any, ...]) -> None:
        """Runs the kernel with these scalars, in the header's order."""
        self._ready().run(scalars)

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} is bound to other objects' memory and cannot be copied or pickled; make another one"
        )

    def __repr__(self) -> str:
        first = self._columns[0]
        arrays = f"{len(first)} arrays" if isinstance(first, (list, tuple)) else "one array"
        return f"{type(self).__name__}({self._op}, {arrays})"


# ---- SIMD level -----------------------------------------------------------------------------------------------------

_LEVELS = {"v2": 2, "v3": 3, "v4": 4, "armv8-a": 8, "default": 0}


def get_simd() -> str:
    """The SIMD level in force: "v2", "v3", "v4" (x86-64 levels), "armv8-a", or "none" without compiled kernels."""
    return "none" if core is None else next(k for k, v in _LEVELS.items() if v == core.simd())


def simd_levels() -> list[str]:
    """The levels that this build has and this machine runs, lowest first."""
    return [] if core is None else [k for k, v in _LEVELS.items() if core.simd_available(v)]


def set_simd(level: str) -> None:
    """Forces a SIMD level for the process; CURVK_SIMD sets the start value. The results are the same bits.

    Raises:
        ValueError: the level is unknown, not in this build, or not run by this machine.

    >>> import curvk
    >>> curvk.set_simd(curvk.simd_levels()[0])
    >>> curvk.set_simd(curvk.simd_levels()[-1])
    """
    if level not in simd_levels():
        needed = ", ".join(simd_levels()) or "none"
        raise ValueError(f"set_simd: argument 'level': got {level!r}, needs one of {needed}")
    core.set_simd(_LEVELS[level])


@contextmanager
def _every_level() -> Iterator[list[str]]:
    """The levels to sweep, restoring the one in force afterwards; for tests and benchmarks."""
    before = get_simd()
    try:
        yield simd_levels()
    finally:
        set_simd(before)


def _start() -> None:
    if name := os.environ.get("CURVK_BACKEND"):
        _set(_need(name), f"CURVK_BACKEND={name}")
    elif compiled:
        _set("cpp", "compiled kernels are installed")
    else:
        _set("numba", f"installed without compiled kernels; to compile: {REBUILD}")
    threads = os.environ.get("CURVK_NUM_THREADS") or "1"
    if not (threads.isdecimal() and int(threads) > 0):  # OMP_NUM_THREADS is OpenMP's to judge
        raise ValueError(f"CURVK_NUM_THREADS={threads}: needs a number of threads, 1 or more")
    if core is not None and (level := os.environ.get("CURVK_SIMD")):
        try:
            set_simd(level)
        except ValueError as error:
            raise ValueError(f"CURVK_SIMD={level}: {error}") from None


_start()
__all__ = [
    "Plan",
    "backend_reason",
    "call",
    "get_backend",
    "get_simd",
    "set_simd",
    "simd_levels",
    "use_backend",
    "version",
]
