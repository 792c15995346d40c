"""What the zeroth-order optimizers share: a module's parameters, the step of `curvk.zeroth` on them, and its log."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from ..._errors import message
from ...zeroth._estimate import Estimator
from ...zeroth._log import ZOLog
from ...zeroth._method import Method, make_scheme, make_stream
from ...zeroth._restore import Scheme
from ...zeroth._select import Selection
from ...zeroth._stream import SEEDS, integer, one_of, real
from ...zeroth._update import Noise, Tensors
from .._base import number
from .._devices import number_of, served
from ._group import Group
from ._hooks import Block, Windows, make_blocks
from ._layers import find_layers
from ._scratch import Scratch

Closure = Callable[[], Any]
Options = dict[str, Any]


def given(scope: Mapping[str, Any]) -> Options:
    """A constructor's keyword arguments, from its locals()."""
    return {k: v for k, v in scope.items() if k not in ("self", "model", "__class__")}


class ZerothOptimizer(torch.optim.Optimizer):
    """Base of the optimizers; a subclass names the estimator and the selection.

    Args:
        model: the module to train.
        options: the constructor's keyword arguments.

    Attributes:
        model: the module.
        layers: the names of its layers; of LeZO and AdaLeZO those that take turns.
    """

    _needs_layers: ClassVar[bool] = False

    def __init__(self, model: nn.Module, options: Options) -> None:
        self._name = name = type(self).__name__
        if not isinstance(model, nn.Module):
            raise TypeError(
                message(name, "model", type(model).__name__, "a torch.nn.Module", "use the model, not its parameters")
            )
        self.model = model
        self._options = dict(options)
        pg, parallel = options["process_group"], options["parallel"]
        one_of(name, "parallel", parallel, ("probes", "data"))
        self._group = None if pg is None else Group(pg, parallel, name)
        self._open = True
        if self._group is None:
            self._set_up()
        else:
            self._group.set_up(self._set_up)
        self._open = False

    def _set_up(self) -> dict[str, Any]:
        """Makes the method and the groups; gives what is to be the same on all processes."""
        name, options = self._name, self._options
        lr = real(name, "lr", number(options["lr"]), "a finite number >= 0", 0.0)
        weight_decay = real(name, "weight_decay", options["weight_decay"], "a finite number >= 0", 0.0)
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self._params = [p for _, p in named]
        self._tensors = Tensors([n for n, _ in named], self._params, name)
        for label, p in named:
            if p.is_inference():
                found, needed = "a tensor made in inference mode", "one made outside of torch.inference_mode()"
                raise ValueError(message(name, f"params[{label!r}]", found, needed, "use .clone() outside of it"))
        layers = self._find_layers(options.get("layers"))
        blocks, units = make_blocks(self.model, self._params, layers)
        self.layers = [n for n, unit in zip(layers, units, strict=True) if unit]
        self._units = [unit for unit in units if unit]
        if "layers" in options:
            options["layers"] = list(layers)  # as names, for a copy of the model
        self._windows = self._made_windows(blocks)
        n_probes = integer(name, "n_probes", options["n_probes"], 1, 1 << 32, "2^32")
        shared = self._group is not None and options["parallel"] == "probes"
        self._n_probes = n_probes * (self._group.world if self._group and shared else 1)
        self._rows = self._row_tables() if options.get("active_rows") else []
        self._log: ZOLog | None = None  # one to go on from, when the weights are there
        self._method = self._built(options["seed"])
        self._seen: list[Any] | None = None  # what the last step left
        decaying = [p for p, d in zip(self._params, self._tensors.decays, strict=True) if d]
        others = [p for p, d in zip(self._params, self._tensors.decays, strict=True) if not d]
        groups: list[dict[str, Any]] = [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            group["lr"] = options["lr"]  # a tensor stays one
        return {**self._method.log.header, "weights": self._tensors.digest() if self._group else None}

    def _find_layers(self, given: Any) -> dict[str, nn.Module]:
        if self._needs_layers or given is not None:
            return find_layers(self.model, given)
        try:
            return find_layers(self.model)
        except ValueError:
            return {}  # then every module is displaced by itself

    def _row_tables(self) -> list[int]:
        """The embeddings' tables, of which a step takes the rows in use."""
        if self._options["restore"] != "scratch":
            found = repr(self._options["restore"])
            raise ValueError(message(self._name, "restore", found, "'scratch', which sees the rows, with active_rows"))
        if self._group is not None and self._options["parallel"] == "data":
            raise ValueError(
                message(self._name, "parallel", "'data'", "'probes' with active_rows: batches have rows of their own")
            )
        for i in self._windows.lookups:
            readers = [b.name for b in self._windows.blocks if i in b.tensors]
            if len(readers) > 1:
                found = f"the table {self._tensors.names[i]!r}, which {' and '.join(map(repr, readers))} share"
                remedy = "use active_rows=False, since a row that is not looked up matters there"
                raise ValueError(message(self._name, "active_rows", found, "tables that only embeddings read", remedy))
        if not self._windows.lookups:
            found, needed = "a model without one", "an nn.Embedding outside of layers, without max_norm"
            raise ValueError(message(self._name, "active_rows", found, needed))
        return self._windows.lookups

    # ---- what a subclass names --------------------------------------------------------------------------------------

    def _parts(self, options: Options, seed: int) -> tuple[Estimator, Selection]:
        raise NotImplementedError

    def _stream(self, seed: Any) -> Noise:
        return make_stream(seed, self._options["dist"], self._name)

    def _made_windows(self, blocks: Sequence[Block]) -> Windows:
        return Windows(self._tensors.names, self._params, blocks)

    def _built(self, seed: Any) -> Method:
        """The method, before its first step."""
        o = self._options
        stream = self._stream(seed)
        estimator, selection = self._parts(o, stream.seed)
        compat = o.get("compat")
        if o["restore"] == self._windows.restore and compat is None:
            for block in self._windows.blocks:
                if isinstance(block.module, torch.jit.ScriptModule):
                    found = f"{o['restore']!r} for the ScriptModule {block}"
                    needed = f"{self._windows.instead.replace('restore=', '')}: torch puts no hooks there"
                    raise ValueError(message(self._name, "restore", found, needed))
            scheme: Scheme = self._windows_scheme(stream)
        else:
            scheme = make_scheme(o["restore"], self._tensors, stream, estimator.scales[0], self._name, compat)
        processes = self._group.processes if self._group else None
        return Method(scheme, estimator, selection, name=self._name, processes=processes)

    def _windows_scheme(self, stream: Noise) -> Scheme:
        """The scheme that shows displaced weights through the windows."""
        return Scratch(self._tensors, stream, self._windows, self._rows)

    # ---- the step ---------------------------------------------------------------------------------------------------

    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """One step: evaluates the closure at displaced weights, moves the weights.

        Args:
            closure: evaluates the model on one batch and returns the loss, a number or a tensor of one element. It runs
                without gradients, several times in a step, and must see the same batch each time (and the same dropout:
                put the model in eval mode). Its value should come from float32 or float64 sums.

        Returns:
            The mean over the probes of the loss at theta + eps z_k. Where a loss is not finite: that one, and the step
            is skipped, logged and counted in `skipped`.

        Raises:
            TypeError, ValueError: a loss that is no scalar, learning rates that differ, parameters that something else
                changed, modules that restore="scratch" cannot serve, processes that disagree. The weights are as they
                were. So they are where the closure raises.
            RuntimeError: another process failed.
        """
        evaluate: Callable[[Any], Any] = lambda arrays: closure()  # type: ignore[misc]  # noqa: E731
        lr = weight_decay = 0.0
        refused = True
        try:
            if not callable(closure):
                needed, remedy = "a function that returns the loss", "use opt.step(lambda: loss(model(batch)))"
                raise TypeError(message(f"{self._name}.step", "closure", type(closure).__name__, needed, remedy))
            if self._method.scheme.name in ("grid", "naive"):
                evaluate = self._watched(closure)
            self._go_on()
            self._check_unchanged()
            lr, weight_decay = self._rates()
            refused = False
        except (TypeError, ValueError, BufferError) as error:
            if self._group is None:
                raise
            problem = error

            def evaluate(arrays: Any) -> Any:  # where the other processes learn of it
                raise problem

        if self._group is not None:
            self._group.facts = lambda: {"lr": lr, "weight_decay": weight_decay, "rows": self._rows_checksum()}
        try:
            with torch.no_grad(), _no_cached_weights(f"{self._name}.step"):
                return self._method.step(evaluate, lr=lr, weight_decay=weight_decay)
        finally:
            if not refused:
                self._seen = self._versions()

    def _rates(self) -> tuple[float, float]:
        """The learning rate and the weight decay as the groups have them."""
        name = f"{self._name}.step"
        rates, decays = ([number(group[key]) for group in self.param_groups] for key in ("lr", "weight_decay"))
        for key, values in (("lr", rates), ("weight_decay", decays)):
            for value in values:
                real(name, key, value, "a finite number >= 0", 0.0)
        if len(set(rates)) > 1:
            needed = "one for all groups: a probe's coefficient is common to all tensors"
            raise ValueError(message(name, "lr", f"{rates} in the groups", needed))
        if decays[1]:
            needed = "0 there: its tensors are those that do not decay (bias, layer_norm, layernorm)"
            raise ValueError(message(name, "weight_decay", f"{decays[1]} in group 1", needed))
        if rates[0] * decays[0] > 1:
            raise ValueError(message(name, "weight_decay", f"{decays[0]}", f"at most 1 / lr = {1 / rates[0]}"))
        return float(rates[0]), float(decays[0])

    def _watched(self, closure: Closure) -> Callable[[Any], Any]:
        """The closure, which must not write to weights that are displaced in place."""

        def evaluate(arrays: Any) -> Any:
            before = [p._version for p in self._params]
            value = closure()
            for label, p, version in zip(self._tensors.names, self._params, before, strict=True):
                if p._version != version:
                    found, remedy = f"a closure that writes to {label!r}", "use restore='scratch' or restore='copy'"
                    needed = f"one that only reads the parameters with restore={self._options['restore']!r}"
                    raise ValueError(message(f"{self._name}.step", "closure", found, needed, remedy))
            return value

        return evaluate

    def _versions(self) -> list[Any]:
        return [(p.data_ptr(), p._version, p.dtype) for p in self._params]

    def _check_unchanged(self) -> None:
        """Raises if something else wrote to the parameters since the last step, which no replay could know."""
        t = self._tensors
        if self._seen is None or not len(self._method.log):
            for label, p, kind, device in zip(t.names, self._params, t.dtypes, t.devices, strict=True):
                if str(p.dtype) != f"torch.{kind}" or number_of(p) != device or not served(p):
                    where = "the CPU" if device is None else f"cuda:{device}"
                    found, needed = f"{p.dtype} on {p.device}", f"torch.{kind} on {where}, as at first"
                    remedy = "make a new optimizer"
                    raise ValueError(message(f"{self._name}.step", f"params[{label!r}]", found, needed, remedy))
            return
        for label, p, seen in zip(self._tensors.names, self._params, self._seen, strict=True):
            if (p.data_ptr(), p._version, p.dtype) != seen:
                found = "values that something else wrote, or other memory, since the last step"
                needed = "those that the last step left, or the log could not replay the run"
                remedy = "opt.restart() begins a new log with the present weights, as does a new optimizer"
                raise ValueError(message(f"{self._name}.step", f"params[{label!r}]", found, needed, remedy))

    def _rows_checksum(self) -> int:
        rows = self._windows.rows if self._rows else {}
        return zlib.crc32(b"".join(np.asarray(rows[i], np.int64).tobytes() for i in sorted(rows)))

    # ---- the run ----------------------------------------------------------------------------------------------------

    @property
    def log(self) -> ZOLog:
        """The run's log so far; `opt.log.save(path)` keeps it."""
        return self._log if self._log is not None else self._method.log

    @property
    def skipped(self) -> int:
        """Steps skipped because a loss, or what follows from it, was not finite."""
        return self._method.skipped

    @property
    def bytes_per_step(self) -> int:
        """What this process sent to the others in the last step; 0 without a process group."""
        return self._group.bytes_per_step if self._group else 0

    def restart(self, seed: int | None = None) -> None:
        """Begins a new run and log with the present weights.

        Args:
            seed: of its noise; by default the present one plus 1, since the old run's noise would come again.
        """
        new = (self._method.scheme.stream.seed + 1) % SEEDS if seed is None else seed
        self._method = self._built(new)
        self._options["seed"] = self._method.scheme.stream.seed
        self._seen = self._log = None

    def load_log(self, log: ZOLog | str | os.PathLike[str]) -> None:
        """Goes on where the run of this log was, bit for bit as if it had not stopped.

        Args:
            log: of a run with this class and these settings (lr and weight_decay may differ), or its file. The weights
                must be the run's first ones, which are brought up to date, or its last ones.

        Raises:
            OSError, TypeError, ValueError: a log of another run or model, or a damaged file. Nothing has changed.
        """
        self._method.load_log(ZOLog.load(log) if isinstance(log, (str, os.PathLike)) else log)
        self._log, self._seen = None, self._versions()

    def _go_on(self) -> None:
        """Takes up the log of a state dict, whose weights the model has by now."""
        if self._log is not None:
            self._method.load_log(self._log)
            self._log, self._seen = None, self._versions()

    # ---- torch.optim.Optimizer --------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A TypeError: the groups are the model's parameters, those that decay and the others."""
        if not self._open:
            raise TypeError(f"{self._name}: its groups are fixed; make a new optimizer for the enlarged model")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the log under "log"; plain numbers, strings and tensors, for torch.save."""
        state = self.log.state()
        arrays = {k: torch.from_numpy(v.copy()) for k, v in state.items() if isinstance(v, np.ndarray)}
        plain = {k: v for k, v in state.items() if k not in arrays}
        return super().state_dict() | {"log": {"json": json.dumps(plain), **arrays}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads groups and log; the next step goes on where the saved run was, bit for bit.

        The model may be loaded before or after: by the next step its weights must be those of the saved run, or its
        first ones.

        Raises:
            TypeError, ValueError: not a state dict of this class, or one of a run with other settings. Nothing has
                changed.
        """
        saved = state_dict.get("log") if isinstance(state_dict, Mapping) else None
        if not isinstance(saved, Mapping) or "param_groups" not in state_dict:
            needed = f"what {self._name}.state_dict() gives"
            raise TypeError(message(f"{self._name}.load_state_dict", "state_dict", type(state_dict).__name__, needed))
        try:
            log = ZOLog.from_state(
                {**json.loads(saved["json"]), **{k: v.cpu().numpy() for k, v in saved.items() if k != "json"}}
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            needed = f"what {self._name}.state_dict() gives ({error})"
            raise ValueError(message(f"{self._name}.load_state_dict", "state_dict", "another log", needed)) from error
        method = self._built(self._options["seed"])
        method.check_log(log)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "log"})
        self._method, self._log, self._seen = method, log if len(log) else None, None

    def __reduce__(self) -> Any:
        if self._group is not None:
            raise TypeError(f"{self._name}: an optimizer of a process group cannot be copied; copy its state_dict()")
        return _remade, (type(self), self.model, self._options, self.state_dict())

    def __repr__(self) -> str:
        plain = {k: v for k, v in self._options.items() if isinstance(v, (str, int, float)) and k not in self.defaults}
        lines = "".join(f"{key}: {value}\n" for key, value in plain.items())
        return f"{super().__repr__()[:-1]}\n{lines}{len(self._params)} parameters, {self.log!r}\n)"


def _remade(kind: type[ZerothOptimizer], model: nn.Module, options: Options, state: dict[str, Any]) -> ZerothOptimizer:
    """An optimizer from a pickle or a deep copy, of a model that is copied along."""
    optimizer = kind(model, **options)
    optimizer.load_state_dict(state)
    return optimizer


@contextmanager
def _no_cached_weights(function: str) -> Iterator[None]:
    """Autocast and parametrisations may keep what they computed from weights; a probe would not see its own."""
    if getattr(parametrize, "_cache_enabled", 0):
        found, remedy = "a step inside parametrize.cached()", "use parametrize.cached() inside of the closure"
        raise ValueError(message(function, "closure", found, "weights that are computed anew", remedy))
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        torch.clear_autocast_cache()
