"""The tensors a method trains, what one step does to them, and the one function that writes it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .. import _arrays, _cuda
from .._arrays import Array
from .._errors import message
from ..kernels import noise
from . import _device, _lowrank, _stream

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = Mapping[int, Ints]
"""Per tensor index: the rows (ascending, each once) that a step displaces and updates; other tensors are whole."""
DTYPES = {"f32": "float32", "f64": "float64", "bf16": "bfloat16", "f16": "float16"}
_BLOCK = 1 << 20  # elements that a host-side pass over a tensor takes at once


class Noise(NamedTuple):
    """The stream that a run draws its probes from.

    Attributes:
        seed, dist: as in `curvk.kernels.noise`.
        rank: of a matrix's noise, see `_lowrank`; 0 for independent elements.
        period: how many draws share a basis V, where rank > 0.
    """

    seed: int
    dist: str
    rank: int = 0
    period: int = 1


class Tensors:
    """The trained arrays in order, with their names; checked once, never copied.

    Args:
        names: one for each array; its noise and weight decay follow from it. Tied arrays stand here once.
        arrays: NumPy arrays or torch tensors, on the CPU or on CUDA devices (there C-contiguous), written; float32,
            float64, float16 or bfloat16 (uint16).
        function: the caller's name, for errors.

    Raises:
        TypeError, ValueError, BufferError: an array that cannot be stepped, or that shares memory with another one;
            names that share a tensor word.

    Attributes:
        words: tensor words.
        decays: whether weight decay applies, by name.
        kinds: storage formats, "f32", "f64", "bf16" or "f16".
        devices: numbers of CUDA devices; None for the CPU.
        mixed: whether there are several kinds or devices.
        matrices: rows and columns of arrays of 2 or more dimensions, whose noise may have low rank; None for others.
        bases: what low-rank noise keeps from call to call, see `_lowrank.basis`.
    """

    def __init__(self, names: Sequence[str], arrays: Sequence[Array], function: str) -> None:
        self.names = tuple(names)
        self.arrays: list[Array] = []
        self.words = _stream.words(self.names, function)
        self.decays = tuple(map(_stream.decays, self.names))
        self.kinds: list[str] = []
        self.devices = [_device.number_of(array) for array in arrays]
        self._views: list[np.ndarray[Any, Any] | None] = []  # of NumPy arrays, which cannot move
        self.bases: dict[int, tuple[Noise, int, np.ndarray[Any, Any]]] = {}
        op = "axpy_seeds"
        entries = []
        for name, array, device in zip(self.names, arrays, self.devices, strict=True):
            label = f"params[{name!r}]"
            try:
                view = _arrays.numpy_view(array, op, label, device)
                if device is not None:
                    _cuda.require(op, label, device)
                    if not view.flags.c_contiguous:
                        found, needed = f"strides {view.strides} for shape {view.shape}", "C order on a device"
                        raise ValueError(message(op, label, found, needed, f"use {label}.contiguous()"))
                kernel = _arrays._pick(op, view, label, None)
                assert kernel.format is not None
                _arrays._check_one(op, view, label, kernel.arrays[0], kernel.format, "")
            except (TypeError, ValueError, BufferError) as error:
                raise _reworded(error, op, function) from None
            # As the kernels take them: memmap and ml_dtypes arrays as plain views, tensors as themselves.
            fixed = isinstance(array, np.ndarray)
            self.arrays.append(view if fixed else array)
            self._views.append(view if fixed else None)
            self.kinds.append(kernel.format)
            entries.append((label, True, view))
        self.mixed = len({*zip(self.kinds, self.devices, strict=True)}) > 1
        shapes = [view.shape for _, _, view in entries]
        self.matrices = tuple((s[0], math.prod(s[1:])) if len(s) > 1 else None for s in shapes)
        try:
            _arrays._check_overlap(op, entries)
        except ValueError as error:
            raise _reworded(error, op, function) from None

    def __len__(self) -> int:
        return len(self.names)

    def view(self, i: int) -> np.ndarray[Any, Any]:
        """Tensor i as a NumPy array over its memory, which cannot be read on a device; bfloat16 as uint16."""
        view = self._views[i]
        return _arrays.numpy_view(self.arrays[i], "zeroth", self.names[i], self.devices[i]) if view is None else view

    def values(self, i: int) -> np.ndarray[Any, Any]:
        """Tensor i as a NumPy array to be read: its view or, for a device, which is waited for, a copy."""
        return self.view(i) if self.devices[i] is None else _cuda.read(self.arrays[i])

    def blocks(self, i: int) -> Iterator[np.ndarray[Any, Any]]:
        """Parts of tensor i, of about 2^20 elements, in logical C order, to be read."""
        if self.devices[i] is None:
            yield from blocks(self.view(i))
        else:
            yield from _device.blocks(self.arrays[i], _BLOCK)

    @property
    def shapes(self) -> list[list[int]]:
        return [list(self.view(i).shape) for i in range(len(self))]

    @property
    def dtypes(self) -> list[str]:
        return [DTYPES[kind] for kind in self.kinds]

    def digest(self) -> int:
        """CRC-32 of all bytes, tensor by tensor in logical C order; those on a device are copied to the host for it."""
        crc = 0
        for i in range(len(self)):
            for block in self.blocks(i):
                crc = zlib.crc32(np.ascontiguousarray(block), crc)
        return crc

    def written(self, indices: Sequence[int]) -> None:
        """Tells torch of tensors that were written through their views."""
        _arrays.written([self.arrays[i] for i in indices if not isinstance(self.arrays[i], np.ndarray)])


@dataclass(frozen=True)
class Update:
    """What one step does to the weights theta, and all that a replay needs::

        theta_i <- (1 - decay_i) theta_i + sum_k coefs[k] factors[i] z_k      for each active tensor i

    where decay_i is `decay` if the tensor's name says that it decays, else 0. With all `coefs` and `decay` 0 nothing is
    written.

    Attributes:
        draws: number of each probe's draw.
        coefs: float32, one for each draw; as a rule -lr g_k / n_probes.
        decay: lr weight_decay, a float32 value.
        active: indices of the tensors, ascending.
        factors: per tensor index, a float32 factor of all coefs; 1 where absent.
        rows: per tensor index, the rows it applies to; all where absent.
        thresholds: per tensor index, only elements with |theta| <= threshold change; all where absent.
        reference: (lr, g, weight_decay) of a one-probe step, which `compat="mezo"` needs unmultiplied.
    """

    draws: Sequence[int]
    coefs: Floats
    decay: float
    active: Sequence[int]
    factors: Mapping[int, float] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    thresholds: Mapping[int, float] = field(default_factory=dict)
    reference: tuple[float, float, float] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The part that `axpy` takes by name."""
        return {k: getattr(self, k) for k in ("decay", "factors", "rows", "thresholds")}

    @property
    def idle(self) -> bool:
        """Whether it leaves the weights as they are (a skipped step)."""
        return not self.decay and not self.coefs.any()


def axpy(
    tensors: Tensors,
    noise_: Noise,
    active: Sequence[int],
    draws: Sequence[int],
    coefs: Sequence[float] | Floats,
    *,
    decay: float = 0.0,
    factors: Mapping[int, float] | None = None,
    rows: Rows | None = None,
    thresholds: Mapping[int, float] | None = None,
    source: Mapping[int, Array] | None = None,
    out: Mapping[int, Array] | None = None,
) -> None:
    """Does what `Update` says, in as few kernel calls as possible.

    The arrays read are the tensors', or those of `source`; they are written too, unless `out` has others.
    """
    read: Any = tensors.arrays if source is None else source
    if noise_.rank:
        assert not any((factors, rows, thresholds))  # no method with low-rank noise has them
        changed: Any = read if out is None else out
        matrices = [i for i in active if tensors.matrices[i]]
        for j, left in _lowrank.lefts(tensors, noise_, matrices, draws, coefs).items():
            right = _lowrank.basis(tensors, noise_, j, draws)
            keep = 1.0 - decay if tensors.decays[j] else 1.0
            _lowrank.combine(changed[j], read[j], tensors.kinds[j], keep, left, right)
        _arrays.written([changed[j] for j in matrices if not isinstance(changed[j], np.ndarray)])
        active = [i for i in active if not tensors.matrices[i]]
    for batch, d, factor, i in _batches(tensors, active, decay, factors or {}, rows or {}, thresholds or {}):
        scaled = coefs if factor == 1.0 else np.asarray(coefs, np.float32) * np.float32(factor)
        common: dict[str, Any] = {
            "seed": noise_.seed,
            "dist": noise_.dist,
            "draws": draws,
            "coefs": scaled,
            "decay": d,
        }
        if i is None:
            words = [tensors.words[j] for j in batch]
            sources = [read[j] for j in batch]
            if out is None:
                noise.axpy_seeds_(sources, tensor=words, **common)
            else:
                noise.scratch(sources, [out[j] for j in batch], tensor=words, **common)
            continue
        common["tensor"] = tensors.words[i]
        if thresholds and i in thresholds:
            common["threshold"] = thresholds[i]
        target = read[i]
        if rows and i in rows:
            if out is not None:  # the rows' share of the kernel call, then the cheap copy of the rest
                target = out[i]
                assign(target, read[i])
            noise.axpy_seeds_(target, rows=rows[i], **common)
        elif out is None:
            noise.axpy_seeds_(target, **common)
        else:
            noise.scratch(target, out[i], **common)


def _batches(
    tensors: Tensors,
    active: Sequence[int],
    decay: float,
    factors: Mapping[int, float],
    rows: Rows,
    thresholds: Mapping[int, float],
) -> Iterator[tuple[list[int], float, float, int | None]]:
    """Tensors that one kernel call can take, their decay and factor; one alone where it has rows or a threshold."""
    if not (decay or factors or rows or thresholds or tensors.mixed):  # a probe, as a rule
        if active:
            yield list(active), 0.0, 1.0, None
        return
    found: dict[tuple[Any, float, float, int | None], list[int]] = {}
    for i in active:
        d = decay if decay and tensors.decays[i] else 0.0
        alone = i if i in rows or i in thresholds else None
        place = tensors.kinds[i], tensors.devices[i]
        found.setdefault((place, d, factors.get(i, 1.0), alone), []).append(i)
    for (_, d, factor, alone), batch in found.items():
        yield batch, d, factor, alone


def blocks(view: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Parts of an array along its first axis, of about 2^20 elements, in order."""
    if view.ndim == 0 or view.size <= _BLOCK:
        yield view[...]
        return
    step = max(1, _BLOCK * len(view) // view.size)
    for first in range(0, len(view), step):
        yield view[first : first + step]


def assign(out: Array, value: Array) -> None:
    """Copies values to an array of the same shape and format; a device takes those of the host, too."""
    if _device.number_of(out) is None:
        np.copyto(_device.view_of(out), _device.view_of(value))
    else:
        _device.assign(out, value)


def _reworded(error: Exception, op: str, function: str) -> Exception:
    return type(error)(str(error).replace(f"{op}: ", f"{function}: ", 1))


def unknown_index(function: str, name: str, found: Any, n: int) -> ValueError:
    return ValueError(message(function, name, repr(found), f"the name or index of one of the {n} tensors"))
