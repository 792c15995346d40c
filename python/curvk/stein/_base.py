"""What every sampler shares: particles, the run loop, checks of what callbacks return, states and files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from .. import _store
from .._arrays import numpy_view
from .._errors import message
from .._interrupt import uninterrupted
from ..zeroth._stream import SEEDS, integer

FORMAT, VERSION = "curvk.stein", 1

Floats = np.ndarray[Any, np.dtype[Any]]
Callback = Callable[[Any], Any]


class Sampler:
    """Particles that a subclass moves step by step.

    A subclass calls `super().__init__(x0, seed)` and has

    - `_settings()`: its constructor's numbers and names as plain Python values. A state loads only where they agree;
    - `_arrays()`: every array that a step changes, the particles among them, by name: the whole state, besides the
      counters. Shapes and dtypes never change, and loading writes into them;
    - `_propose()`: all of a step that may fail, above all the callbacks, with nothing of the state written;
    - `_commit(proposal)`: writes what `_propose` returned. Ctrl-C waits for its end;
    - `_cost`: evaluations of the callback's points that a step takes.

    Attributes:
        seed: of the noise.
        n_steps: steps taken.
        n_evaluations: points at which the callback was evaluated in these steps.
    """

    _unit = "step"  # of the progress bar
    _cost: int
    _counters: tuple[str, ...] = ("n_steps", "n_evaluations")  # the attributes of a state

    def __init__(self, x0: Any, seed: int) -> None:
        self._name = type(self).__name__
        self._particles = points_of(self._name, "x0", x0).copy()
        self.seed = integer(self._name, "seed", seed, 0, SEEDS, "2^64")
        self.n_steps = 0
        self.n_evaluations = 0

    @property
    def particles(self) -> Floats:
        """The particles, (n, d), live and of x0's dtype: steps write to this array."""
        return self._particles

    # ---- what a subclass has -----------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def _arrays(self) -> dict[str, Floats]:
        return {"particles": self._particles}

    def _propose(self) -> Any:
        raise NotImplementedError

    def _commit(self, proposal: Any) -> None:
        raise NotImplementedError

    # ---- steps -------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step of all particles.

        Raises:
            TypeError, ValueError: the callback returned something else than is needed. Nothing has changed then, nor
                where the callback itself raised.
        """
        proposal = self._propose()
        with uninterrupted():
            self._commit(proposal)
            self.n_steps += 1
            self.n_evaluations += self._cost

    def run(self, n: int, *, callback: Callback | None = None, progress: bool | None = None) -> Floats:
        """Takes up to n steps.

        Args:
            n: number of steps, >= 0.
            callback: called with the sampler after each step; a true return value stops the run.
            progress: a progress bar; None shows one at a terminal where tqdm is installed and the run takes over two
                seconds.

        Returns:
            `particles`, the live array.

        Raises:
            TypeError, ValueError: as `step`; the sampler then is as after the last whole step.
        """
        n = integer(f"{self._name}.run", "n", n, 0, 1 << 63, "2^63")
        if callback is not None and not callable(callback):
            raise TypeError(message(f"{self._name}.run", "callback", type(callback).__name__, "a function or None"))
        for _ in _bar(n, self._unit, progress):
            self.step()
            if callback is not None and callback(self):
                break
        return self._particles

    def _evaluated(
        self, label: str, function: Callback, points: Floats, shape: tuple[int, ...], dtype: Any = None
    ) -> Floats:
        """What a callback returns for these points; without a copy where dtype (the points' if None) and layout fit.

        Args:
            label: what errors call the callback.
            function: is given `points` itself.
            points: (N, d).
            shape: that the result must have.
            dtype: of the result; another float dtype is converted.

        Raises:
            TypeError, ValueError: not a float array, or another shape.
        """
        return checked(
            f"{self._name}.step", f"{label}(points)", function(points), shape, points.dtype if dtype is None else dtype
        )

    # ---- states ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of the particles, the method's states and the counters; later steps do not change it."""
        return self._as_dict(copy=True)

    def _as_dict(self, copy: bool) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "sampler": self._name,
            "settings": self._settings() | {"seed": self.seed},
            **{key: getattr(self, key) for key in self._counters},
            "arrays": {name: x.copy() if copy else x for name, x in self._arrays().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the sampler that gave this `state_dict` was; the run then is, bit for bit, as if not stopped.

        Args:
            state: of a sampler of this class with the same settings and shapes. Callbacks are not part of it.

        Raises:
            ValueError: it is of another class, version, shape or setting; the text names it. Nothing has changed.
        """
        function, own = f"{self._name}.load_state_dict", self._as_dict(copy=False)

        def need(met: bool, what: str, found: Any, needed: Any) -> None:
            if not met:
                raise ValueError(message(function, what, f"{found}", f"{needed}"))

        need(isinstance(state, Mapping), "state", type(state).__name__, f"what {self._name}.state_dict gives")
        for key in ("format", "version", "sampler"):
            need(_store.equal(state.get(key), own[key]), key, repr(state.get(key)), repr(own[key]))
        need(state.keys() == own.keys(), "state", f"keys {list(state)}", f"keys {list(own)}")
        for key in ("settings", "arrays"):
            need(isinstance(state[key], Mapping), key, type(state[key]).__name__, "a dict")
            need(state[key].keys() == own[key].keys(), key, f"keys {list(state[key])}", f"keys {list(own[key])}")
        for key, value in own["settings"].items():
            need(
                _store.equal(state["settings"][key], value),
                f"settings[{key!r}]",
                repr(state["settings"][key]),
                repr(value),
            )
        for key in self._counters:
            count = state[key]
            met = (key == "horizon" and count is None) or (type(count) is int and count >= 0)
            need(met, key, repr(count), "an integer >= 0")
        for key, x in own["arrays"].items():
            y = state["arrays"][key]
            found = f"{y.dtype} of shape {y.shape}" if isinstance(y, np.ndarray) else type(y).__name__
            met = isinstance(y, np.ndarray) and y.dtype == x.dtype and y.shape == x.shape
            need(met, f"arrays[{key!r}]", found, f"{x.dtype} of shape {x.shape}")
        with uninterrupted():
            for key, x in own["arrays"].items():
                x[...] = state["arrays"][key]
            for key in self._counters:
                setattr(self, key, state[key])
            self._restored()

    def _restored(self) -> None:
        """Called after a state was loaded; for what a subclass derives from its arrays."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `state_dict` to one .npz file, named exactly `path`. The file appears whole or not at all.

        Raises:
            OSError: the file cannot be written. An older file of that name is then untouched.
        """
        _store.write(path, self._as_dict(copy=False))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Loads what `save` wrote, bit for bit. Nothing in the file is executed.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is damaged, or does not fit as in `load_state_dict`. Nothing has changed.
        """
        self.load_state_dict(_store.read(path, FORMAT))

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"{self._name} holds views of its own memory and cannot be copied or pickled; use state_dict")

    def __repr__(self) -> str:
        n, d = self._particles.shape
        settings = ", ".join(f"{key}={value!r}" for key, value in self._settings().items())
        return f"{self._name}({n} particles of {d} {self._particles.dtype}, {self.n_steps} steps, {settings})"


# ---- arguments -------------------------------------------------------------------------------------------------------


def points_of(function: str, label: str, x: Any) -> Floats:
    """`x` as a float32 or float64 array (n, d) of finite numbers over the same memory; n and d at least 1.

    Raises:
        TypeError, ValueError, BufferError: it is anything else.
    """
    points = numpy_view(x, function, label)
    if points.dtype not in (np.float32, np.float64):
        raise TypeError(
            message(function, label, str(points.dtype), "float32 or float64", f"use {label}.astype(np.float32)")
        )
    if points.ndim != 2 or 0 in points.shape:
        needed = "shape (n, d), a row for each particle, n and d at least 1"
        remedy = f"use {label}.reshape(-1, 1) for points on a line" if points.ndim == 1 and points.size else ""
        raise ValueError(message(function, label, f"shape {points.shape}", needed, remedy))
    bad = not_finite(points)
    if bad is not None:
        raise ValueError(message(function, label, f"an element that is not finite in row {bad}", "finite numbers"))
    return points


def checked(function: str, label: str, given: Any, shape: tuple[int, ...], dtype: Any) -> Floats:
    """`given` as a C array of this shape and dtype; without a copy where it is one.

    Raises:
        TypeError, ValueError, BufferError: not an array of floats, or another shape.
    """
    x = numpy_view(given, function, label)
    if x.dtype.kind != "f":
        remedy = f"use {label}.astype(np.{np.dtype(dtype)})"
        raise TypeError(message(function, label, str(x.dtype), "float32 or float64", remedy))
    if x.shape != shape:
        raise ValueError(message(function, label, f"shape {x.shape}", f"shape {shape}"))
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, dtype)


def not_finite(x: Floats) -> int | None:
    """The first row in which an element is NaN or infinite."""
    finite = np.isfinite(x)
    return None if finite.all() else int(np.argmin(finite.reshape(len(x), -1).all(1)))


def _bar(n: int, unit: str, progress: bool | None) -> Iterable[int]:
    """The steps' numbers, with a progress bar where one is asked for or a person is there to see it."""
    if progress is None and not sys.stderr.isatty():
        return range(n)
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        if progress:
            raise ImportError("progress=True needs tqdm, which is not installed; use: pip install tqdm") from error
        return range(n)
    bar: Iterable[int] = tqdm(range(n), unit=unit, delay=0 if progress else 2, disable=progress is False, leave=False)
    return bar
