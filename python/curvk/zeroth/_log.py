"""The record of a run, a few bytes a step, from which its weights are rebuilt bit for bit."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import _store
from .._arrays import Array
from .._errors import message
from ._lazy import Lazy
from ._restore import Grid, Scheme, Scratch
from ._select import Smallest
from ._stream import DRAWS, SEEDS, integer
from ._update import Floats, Ints, Noise, Rows, Tensors, Update, assign

FORMAT, VERSION, STREAM = "curvk.zeroth.ZOLog", 1, 1
_COLUMNS = {"coefs": np.float32, "decay": np.float32, "loss": np.float32, "units": np.uint8, "factors": np.float32}


class ZOLog:
    """The log of a zeroth-order run: `opt.log`, or `ZOLog.load(path)`.

    It holds what the noise does not: the coefficients of each step's probes as float32, which tensors were active, the
    losses. With the weights that the run started from it gives those of any step, bit for bit, on any machine, thread
    count and backend, without data or model code. 4 bytes per probe, 8 for decay and loss, a bit per layer; with active
    rows, 4 bytes for each.

    Attributes:
        header: what identifies the run: method, seed, dist, settings, names, shapes, dtypes, the first weights' CRC-32.

    >>> import numpy as np
    >>> from curvk.zeroth import MeZO
    >>> theta = {"w": np.ones(4, np.float32)}
    >>> start = {"w": theta["w"].copy()}
    >>> opt = MeZO(theta, lr=0.1)
    >>> for _ in range(3):
    ...     loss = opt.step(lambda p: float(np.sum(p["w"] ** 2)))
    >>> opt.log.replay(start)
    >>> bool(np.all(start["w"] == theta["w"])), len(opt.log), opt.log.nbytes
    (True, 3, 36)
    """

    def __init__(self, header: dict[str, Any], seal: Callable[[], None] | None = None) -> None:
        """An empty log.

        Args:
            header: as `Method` makes it.
            seal: brings header and `end` up to date with the live run; called before the log is saved or replayed.
        """
        self.header = header
        self.end: dict[str, Any] | None = None  # CRC-32 of the last weights, and the states that a resumed run needs
        self._header_crc: tuple[Any, int] | None = None
        self._seal = seal
        self._steps = 0
        self._columns = {name: bytearray() for name in _COLUMNS}
        self._crcs = dict.fromkeys((*_COLUMNS, "rows", "folds"), 0)
        self._rows: dict[int, bytes] = {}  # int32 per step: tensor, count, rows; for each tensor with rows
        self._folds: list[int] = []
        in_units = {i for unit in header["units"] for i in unit}
        self._always = [i for i in range(len(header["names"])) if i not in in_units]

    # ---- what it holds ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._steps

    @property
    def coefs(self) -> Floats:
        """Coefficients of the probes, shape (steps, n_probes); a skipped step has zeros."""
        coefs: Floats = self._column("coefs", self.header["n_probes"])
        return coefs

    @property
    def decay(self) -> Floats:
        """The product lr weight_decay of each step."""
        decay: Floats = self._column("decay")
        return decay

    @property
    def losses(self) -> Floats:
        """The loss that each step returned; not finite where it was skipped."""
        losses: Floats = self._column("loss")
        return losses

    @property
    def active(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which layers (arms) each step probed, shape (steps, layers)."""
        n = len(self.header["units"])
        bits = self._column("units", (n + 7) // 8)
        return np.unpackbits(bits, axis=1, count=n, bitorder="little").astype(bool)

    @property
    def folds(self) -> list[int]:
        """After how many steps `fold_` wrote pending updates of restore="lazy", ascending; not those of each period."""
        return list(self._folds)

    @property
    def nbytes(self) -> int:
        """Bytes of all steps together."""
        return sum(map(len, (*self._columns.values(), *self._rows.values()))) + 8 * len(self._folds)

    @property
    def crc(self) -> int:
        """CRC-32 of the header and of all that was recorded, for processes to compare."""
        if self._header_crc is None or self._header_crc[0] != self.header["theta_0"]:
            text = json.dumps(self.header, sort_keys=True)
            self._header_crc = self.header["theta_0"], zlib.crc32(text.encode())
        return zlib.crc32(np.array(list(self._crcs.values()), np.uint32).tobytes(), self._header_crc[1])

    def __repr__(self) -> str:
        names = ("method", "seed", "dist", "restore")
        return f"ZOLog({len(self)} steps, {', '.join(f'{n}={self.header[n]!r}' for n in names)}, {self.nbytes} bytes)"

    def _column(self, name: str, width: int | None = None) -> Any:
        flat = np.frombuffer(bytes(self._columns[name]), _COLUMNS[name])
        return flat if width is None else flat.reshape(self._steps, width)

    # ---- a step -----------------------------------------------------------------------------------------------------

    def compose(
        self,
        step: int,
        coefs: Floats,
        decay: float,
        units: Sequence[int] = (),
        factors: Sequence[float] | Floats = (),
        rows: Rows | None = None,
    ) -> Update:
        """The update of a step from what is recorded of it; a live step and a replay both come here."""
        header, n = self.header, self.header["n_probes"]
        constant = header["unit_factor"]
        active, of = list(self._always), {}
        for k, unit in enumerate(units):
            factor = float(np.float32(factors[k])) if len(factors) else constant
            active += header["units"][unit]
            if factor != 1.0:
                of.update(dict.fromkeys(header["units"][unit], factor))
        draws = range(step * n, (step + 1) * n)
        return Update(draws, coefs, decay, sorted(active), of, rows or {})

    def record(
        self, update: Update, loss: float, units: Sequence[int] = (), factors: Sequence[float] | Floats = ()
    ) -> None:
        """Appends a step."""
        bits = np.zeros(len(self.header["units"]), np.uint8)
        bits[list(units)] = 1
        kept = np.zeros(self.header["max_factors"], np.float32)
        kept[: len(factors)] = factors
        limit = float(np.finfo(np.float32).max)
        stored = min(max(loss, -limit), limit) if np.isfinite(loss) else loss  # finite stays finite
        entry = {
            "coefs": update.coefs,
            "decay": np.float32(update.decay),
            "loss": np.float32(stored),
            "units": np.packbits(bits, bitorder="little"),
            "factors": kept,
        }
        for name, value in entry.items():
            data = value.tobytes()
            self._columns[name] += data
            self._crcs[name] = zlib.crc32(data, self._crcs[name])
        if update.rows:
            parts = [np.array([i, len(r), *r], np.int32) for i, r in sorted(update.rows.items())]
            self._rows[self._steps] = np.concatenate(parts).tobytes()
            self._crcs["rows"] = zlib.crc32(self._rows[self._steps], self._crcs["rows"])
        self._steps += 1

    def record_fold(self) -> None:
        """Notes that pending updates were folded into the arrays after the last step."""
        self._folds.append(self._steps)
        self._crcs["folds"] = zlib.crc32(np.int64(self._steps).tobytes(), self._crcs["folds"])

    def since_fold(self) -> Iterator[Update]:
        """The updates that restore="lazy" has not folded into the arrays by the log's end; others have none."""
        interval = self.header.get("interval", 1)
        first = max(self._steps - self._steps % interval, *self._folds[-1:], 0)
        return map(self.update, range(first, self._steps))

    def update(self, step: int) -> Update:
        """What a step did to the weights."""
        if not 0 <= step < self._steps:
            raise IndexError(f"ZOLog.update: step {step} of {self._steps}")
        header = self.header

        def entry(name: str, width: int) -> Any:
            size = width * np.dtype(_COLUMNS[name]).itemsize
            part = bytes(self._columns[name][step * size : (step + 1) * size])
            return np.frombuffer(part, _COLUMNS[name])

        n = len(header["units"])
        bits = np.unpackbits(entry("units", (n + 7) // 8), count=n, bitorder="little")
        units = np.flatnonzero(bits).tolist()
        factors = entry("factors", header["max_factors"])[: len(units)]
        rows = self._decoded(self._rows[step]) if step in self._rows else {}
        decay = float(entry("decay", 1)[0])
        return self.compose(step, entry("coefs", header["n_probes"]), decay, units, factors, rows)

    @staticmethod
    def _decoded(data: bytes) -> dict[int, Ints]:
        numbers, found = np.frombuffer(data, np.int32), {}
        while len(numbers):
            i, count = numbers[:2].tolist()
            found[i] = numbers[2 : 2 + count].astype(np.int64)
            numbers = numbers[2 + count :]
        return found

    def continued(self, seal: Callable[[], None]) -> ZOLog:
        """A log that holds the same steps and takes more."""
        log = ZOLog(self.header | {}, seal)
        log.end, log._steps, log._rows, log._crcs = self.end, self._steps, dict(self._rows), dict(self._crcs)
        log._columns = {name: bytearray(column) for name, column in self._columns.items()}
        log._folds = list(self._folds)
        return log

    # ---- replay -----------------------------------------------------------------------------------------------------

    def replay(self, target: Any, upto: int | None = None, *, verify: bool = True, fold: bool = False) -> None:
        """Turns the weights that the run started from into those after `upto` steps, bit for bit.

        Args:
            target: the model with the run's first weights, written, on the CPU or on CUDA devices whichever the run was
                on: a torch module, a mapping of arrays by name or, if
                the run had one, a list of arrays. A module may have parameters besides the log's (frozen ones).
            upto: how many steps; all by default.
            verify: after all steps, check the weights' CRC-32 against the one that was saved. To be able to put the
                first weights back it holds a copy of them meanwhile.
            fold: of a run with restore="lazy", whose arrays lag behind its weights, gives the weights: folds the
                pending updates in at the end. By default the target ends as the run's arrays were.

        Raises:
            TypeError, ValueError, BufferError: another model (names, shapes, dtypes), other first weights (CRC-32), a
                damaged log, a run with restore="naive", whose drift no log has; or, at the end, other last weights:
                something besides the optimizer changed them between steps. The weights are as they were.
        """
        steps = self._check_upto(upto)
        self.seal()
        header = self.header
        if header["theta_0"] is None:
            return
        tensors = Tensors(header["names"], _arrays_of(target, header["names"]), "ZOLog.replay")
        self._check_target(tensors)
        rank, period = header.get("rank", 0), header.get("interval", 1) * header["n_probes"]
        stream = Noise(header["seed"], header["dist"], rank, period)
        scheme: Scheme
        if header["restore"] == "naive":
            found, needed = "a run with restore='naive', which drifts", "one with an exact restore"
            raise ValueError(message("ZOLog.replay", "log", found, needed, "train with restore='scratch'"))
        if header["restore"] == "grid":
            scheme = Grid(tensors, stream, header["estimator"]["eps"], "ZOLog.replay")
        else:
            scheme = (Lazy if header["restore"] == "lazy" else Scratch)(tensors, stream)
        chosen = header["selection"]
        masks = (
            Smallest(tensors, chosen["keep"], chosen["mask_every"], "ZOLog.replay")
            if chosen["rule"] == Smallest.rule
            else None
        )
        self.apply(scheme, steps, masks, verify)
        if fold:
            scheme.fold()

    def apply(self, scheme: Scheme, steps: int, masks: Smallest | None = None, verify: bool = True) -> None:
        """The updates of the first steps on a scheme's weights; on any error the weights are as they were."""
        tensors, end = scheme.tensors, self.end
        check = verify and end is not None and steps == len(self)
        saved = [tensors.values(i).copy() for i in range(len(tensors))] if check else []
        try:
            for step in range(steps):
                update = self.update(step)
                if masks is not None:
                    update = replace(update, thresholds=masks.choose(step).thresholds)
                scheme.update(update)
                if step + 1 in self._folds:
                    scheme.fold()
            if check and end is not None and tensors.digest() != end["digest"]:
                found = "weights that differ from the run's last ones"
                needed = "a run whose parameters nothing but its optimizer changed between steps"
                remedy = "verify=False keeps what the replay gives"
                raise ValueError(message("ZOLog.replay", "log", found, needed, remedy))
        except BaseException:
            for i, before in enumerate(saved):
                assign(tensors.arrays[i], before)
            tensors.written(range(len(saved)))
            raise

    def seal(self) -> None:
        """Brings the CRC-32 of the weights and the states up to date where a live optimizer owns this log."""
        if self._seal is not None:
            self._seal()

    def _check_upto(self, upto: int | None) -> int:
        if upto is None:
            return len(self)
        return integer("ZOLog.replay", "upto", upto, 0, len(self) + 1)

    def _check_target(self, tensors: Tensors) -> None:
        header = self.header
        for key, own in (("shapes", tensors.shapes), ("dtypes", tensors.dtypes)):
            for name, found, needed in zip(header["names"], own, header[key], strict=True):
                if found != needed:
                    what = f"params[{name!r}] of {key[:-1]} {found}"
                    raise ValueError(message("ZOLog.replay", "target", what, f"{needed} as the run had"))
        if (digest := tensors.digest()) != header["theta_0"]:
            found, needed = f"weights with CRC-32 {digest:08x}", f"the run's first weights, {header['theta_0']:08x}"
            raise ValueError(message("ZOLog.replay", "target", found, needed))

    # ---- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the log to one .npz file, named exactly `path`. The file appears whole or not at all.

        Saved through a live optimizer it also holds the CRC-32 of the present weights (one pass over them) and what the
        method needs to go on.

        Raises:
            OSError: the file cannot be written. An older file of that name is then untouched.
        """
        content = self.state()
        _store.write(path, {"format": FORMAT, "version": VERSION, "checksum": _checksum(content), "content": content})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ZOLog:
        """Reads what `save` wrote. Nothing in the file is executed.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is damaged, or no log of this version.
        """
        stored = _store.read(path, FORMAT)

        def need(met: Any, found: str, needed: str) -> None:
            if not met:
                raise ValueError(f"ZOLog.load: {os.fspath(path)!r}: got {found}, needs {needed}")

        need(
            isinstance(stored, dict) and _store.equal(stored.get("format"), FORMAT),
            "another kind of file",
            f"a {FORMAT}",
        )
        need(_store.equal(stored.get("version"), VERSION), f"version {stored.get('version')!r}", f"version {VERSION}")
        content = stored.get("content")
        need(isinstance(content, dict), "no content", "the log's content")
        try:
            need(
                _store.equal(_checksum(content), stored.get("checksum")),
                "content unlike its checksum",
                "an unchanged file",
            )
        except TypeError as error:  # arrays where JSON has none
            need(False, f"{error}", "what ZOLog.save writes")
        try:
            return cls.from_state(content)
        except ValueError as error:
            need(False, f"{error}", "what ZOLog.save writes")
            raise

    def state(self) -> dict[str, Any]:
        """The log as JSON and arrays, brought up to date."""
        self.seal()
        rows = [self._rows[step] for step in sorted(self._rows)]
        return {
            "header": dict(self.header),
            "end": self.end,
            "steps": self._steps,
            **{name: self._column(name) for name in _COLUMNS},
            "rows": np.frombuffer(b"".join(rows), np.int32),
            "row_ends": np.cumsum([len(r) // 4 for r in rows], dtype=np.int64),
            "row_steps": np.array(sorted(self._rows), np.int64),
            "folds": np.array(self._folds, np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ZOLog:
        """The log that `state` gave; ValueError for anything else."""
        try:
            _check_header(state["header"])
            log = cls(state["header"])
            log.end, log._steps = state["end"], state["steps"]
            if not (log.end is None or (type(log.end["digest"]) is int and type(log.end["skipped"]) is int)):
                raise TypeError(f"end is {log.end!r}")
            n, steps = len(log.header["units"]), log._steps
            widths = {"coefs": log.header["n_probes"], "units": (n + 7) // 8, "factors": log.header["max_factors"]}
            for name, dtype in _COLUMNS.items():
                column = state[name]
                if column.dtype != dtype or column.shape != (steps * widths.get(name, 1),):
                    raise ValueError(f"{name}: {column.dtype} of shape {column.shape} for {steps} steps")
                log._columns[name] = bytearray(column.tobytes())
            ends, rows = state["row_ends"].tolist(), state["rows"]
            for step, first, last in zip(state["row_steps"].tolist(), [0, *ends], ends, strict=False):
                log._rows[step] = rows[first:last].tobytes()
            log._folds = state["folds"].tolist() if "folds" in state else []  # logs without low-rank methods
            if [f for f, g in zip(log._folds, [0, *log._folds], strict=False) if not g < f <= steps]:
                raise ValueError(f"folds after {log._folds} of {steps} steps")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        log._crcs = {name: zlib.crc32(column) for name, column in log._columns.items()}
        log._crcs["rows"] = zlib.crc32(b"".join(log._rows[step] for step in sorted(log._rows)))
        log._crcs["folds"] = zlib.crc32(np.array(log._folds, np.int64).tobytes())
        return log


def _check_header(header: Any) -> None:
    """Raises unless a header has what replay reads."""
    kinds: dict[str, Any] = {"method": str, "seed": int, "dist": str, "restore": str, "names": list, "shapes": list}
    kinds |= {"dtypes": list, "units": list, "unit_factor": float, "max_factors": int, "n_probes": int, "stream": int}
    kinds |= {"estimator": dict, "selection": dict}
    for name, kind in kinds.items():
        if type(header[name]) is not kind:
            raise TypeError(f"header[{name!r}] is {header[name]!r}")
    if not (header["theta_0"] is None or type(header["theta_0"]) is int):
        raise TypeError(f"header['theta_0'] is {header['theta_0']!r}")
    for name in ("rank", "interval"):  # of low-rank noise; absent for full rank
        if name in header and not (type(header[name]) is int and header[name] > 0):
            raise TypeError(f"header[{name!r}] is {header[name]!r}")
    if ("rank" in header) != ("interval" in header) or (header["restore"] == "lazy" and "rank" not in header):
        raise ValueError("header: low-rank noise without its rank or interval")
    needed = [("selection", "rule")]
    needed += [("selection", key) for key in ("keep", "mask_every") if header["selection"]["rule"] == Smallest.rule]
    needed += [("estimator", "eps")] if header["restore"] == "grid" else []
    for part, key in needed:
        if not isinstance(header[part][key], (str, int, float)):
            raise TypeError(f"header[{part!r}][{key!r}] is {header[part][key]!r}")
    if header["stream"] != STREAM:
        raise ValueError(f"stream version {header['stream']}, this curvk has {STREAM}")
    if not (0 <= header["seed"] < SEEDS and 1 <= header["n_probes"] < DRAWS and header["max_factors"] >= 0):
        raise ValueError("header: a number out of range")
    n = len(header["names"])
    if not (len(header["shapes"]) == len(header["dtypes"]) == n and all(type(x) is str for x in header["names"])):
        raise ValueError("header: names, shapes and dtypes that do not fit together")
    if not all(type(i) is int and 0 <= i < n for unit in header["units"] for i in unit):
        raise ValueError("header: units of tensors that are not there")


def _checksum(content: Mapping[str, Any]) -> int:
    """CRC-32 of a log's content: its JSON part in a canonical form, then its arrays by name."""
    arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray)}
    plain = {k: v for k, v in content.items() if k not in arrays}
    crc = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def _arrays_of(target: Any, names: Sequence[str]) -> list[Array]:
    """The log's arrays in a module, a mapping or a sequence."""
    if hasattr(target, "named_parameters"):
        found: Mapping[str, Array] = dict(target.named_parameters())
        extra: set[str] = set()  # a module may have frozen parameters
    elif isinstance(target, Mapping):
        found = target
        extra = found.keys() - set(names)
    elif isinstance(target, (list, tuple)):
        found = {str(i): x for i, x in enumerate(target)}
        extra = found.keys() - set(names)
    else:
        needed = "a torch module, a mapping of arrays by name or a list of arrays"
        raise TypeError(message("ZOLog.replay", "target", type(target).__name__, needed))
    if missing := [name for name in names if name not in found]:
        raise ValueError(message("ZOLog.replay", "target", f"no array named {missing[0]!r}", "every name of the log"))
    if extra:
        raise ValueError(message("ZOLog.replay", "target", f"an array {min(extra)!r}", "only the names of the log"))
    return [found[name] for name in names]
