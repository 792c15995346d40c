"""Displaced weights shown to a model's modules one block at a time, so that theta itself is never written.

In a closure the forward pre-hook of each active block writes displaced copies of its tensors into a buffer and points
`p.data` at them; the forward hook points away again. A buffer serves all blocks that follow one another, so the memory
is that of the largest block; blocks inside blocks have buffers of their own. Outside of these windows `p.data` is a NaN
that has the parameter's shape: a weight read where no hook shows it makes the loss NaN, never silently wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

Write = Callable[[Mapping[int, Tensor], Mapping[int, Tensor]], None]
"""(theta, out): writes the displaced values of these tensors, by index, into memory of their shapes."""
Slot = tuple[int, torch.device]  # of a buffer: which one of those in use at a time, and where
WriteRows = Callable[[int, np.ndarray[Any, Any], Tensor], None]
"""(tensor, rows, part): displaces the part, a copy of these rows of the tensor."""


@dataclass(frozen=True, eq=False)
class Block:
    """A module and the tensors that its forward reads: those of a layer, or of one module's own."""

    name: str
    module: nn.Module
    tensors: tuple[int, ...]  # their positions in the list of parameters

    def __str__(self) -> str:
        return f"{self.name or 'the model'!r} ({type(self.module).__name__})"


def readers(model: nn.Module) -> dict[int, list[str]]:
    """For each parameter, by id, the names of the modules whose forward reads it."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        reader = _reader(model, name) if own else ""
        for p in own:
            if reader not in found.setdefault(id(p), []):
                found[id(p)].append(reader)
    return found


def _reader(model: nn.Module, name: str) -> str:
    """The module that reads the own parameters of another one: itself, unless torch never calls it."""
    parts = name.split(".") if name else []
    path = [model]
    for part in parts:
        path.append(path[-1]._modules[part])  # type: ignore[arg-type]
    if "parametrizations" in parts:  # a parametrised module computes its weight when it is read
        path = path[: parts.index("parametrizations") + 1]
    while len(path) > 1:
        parent = path[-2]
        # The attention reads its projection's weight itself, and an encoder layer may read all of its parts'.
        whole = next((i for i, m in enumerate(path) if isinstance(m, nn.TransformerEncoderLayer)), None)
        if whole is not None:
            path = path[: whole + 1]
            break
        uncalled = isinstance(path[-1], (nn.ParameterList, nn.ParameterDict))
        if uncalled or (isinstance(parent, nn.MultiheadAttention) and path[-1] is parent.out_proj):
            path.pop()
        else:
            break
    return ".".join(parts[: len(path) - 1])


def make_blocks(
    model: nn.Module, params: Sequence[Tensor], layers: Mapping[str, nn.Module]
) -> tuple[list[Block], list[list[int]]]:
    """The blocks of a model, and which tensors each layer has.

    A layer's tensors make one block, but for those that a module outside of the layer reads too; these, and all others,
    are in a block of each module that reads them.
    """
    modules, by_parameter = dict(model.named_modules()), readers(model)
    at_layers: dict[str, list[int]] = {name: [] for name in layers}
    at_owners: dict[str, list[int]] = {}
    for i, p in enumerate(params):
        names = by_parameter[id(p)]
        inside = {next((a for a in layers if r == a or r.startswith(a + ".")), None) for r in names}
        layer = inside.pop() if len(inside) == 1 else None
        if layer is not None:
            at_layers[layer].append(i)
        else:
            for r in names:
                at_owners.setdefault(r, []).append(i)
    blocks = [Block(n, modules[n], tuple(t)) for n, t in (*at_layers.items(), *at_owners.items()) if t]
    return blocks, list(at_layers.values())


@dataclass
class _Pass:
    """One evaluation of the closure."""

    active: set[int]
    theta: dict[int, Tensor]  # where p.data belongs
    write: Write
    write_rows: WriteRows
    shown: Counter[int] = field(default_factory=Counter)  # by how many open blocks
    open: dict[int, Block] = field(default_factory=dict)  # by number of their buffer
    fired: Counter[Block] = field(default_factory=Counter)


class Windows:
    """Runs closures with displaced weights in a model's modules.

    Args:
        names, params: the trainable parameters; each once.
        blocks: which modules read them, see `make_blocks`.
        instead: what works where this does not, for errors.

    Attributes:
        lookups: the tables of embeddings outside of layers. Of these only the rows that a closure looks up are
            displaced, in the embedding's output.
        rows: for the lookups that are its keys, the rows that closures asked for, ascending.
    """

    restore: ClassVar[str] = "scratch"

    def __init__(
        self,
        names: Sequence[str],
        params: Sequence[nn.Parameter],
        blocks: Sequence[Block],
        instead: str = "restore='copy' or restore='grid'",
    ) -> None:
        self.names, self.params, self.blocks, self.instead = list(names), list(params), list(blocks), instead
        self.rows: dict[int, np.ndarray[Any, Any]] = {}
        self.lookups = sorted({b.tensors[0] for b in blocks if self._is_lookup(b)})
        self._buffers: dict[Slot, Tensor] = {}
        self._views: dict[Slot, dict[tuple[int, ...], dict[int, Tensor]]] = {}  # parts of each buffer
        self._away: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory held for displaced weights."""
        return sum(b.nbytes for b in self._buffers.values())

    def run(self, closure: Callable[[], float], active: Collection[int], write: Write, write_rows: WriteRows) -> float:
        """The closure's value where the active tensors are seen displaced.

        Raises:
            ValueError: an active block's module was called not at all or more than once, or weights were read
                outside of their module's forward. `p.data` is theta again whatever is raised.
        """
        value, _ = self._run(closure, active, write, write_rows)
        if not math.isfinite(value):
            _, reads = self._run(closure, active, write, write_rows, noting_reads=True)
            for i, function in reads.items():
                raise ValueError(
                    f"restore={self.restore!r}: the parameter {self.names[i]!r} was read by {function} outside of the "
                    f"forward of its module, where its displaced value cannot be shown; use {self.instead}"
                )
        return value

    def _run(
        self,
        closure: Callable[[], float],
        active: Collection[int],
        write: Write,
        write_rows: WriteRows,
        noting_reads: bool = False,
    ) -> tuple[float, dict[int, str]]:
        """The value and, if they are to be noted, the parameters that something read where they are hidden."""
        with torch.inference_mode(False):
            theta = {i: self.params[i].data for i in active}
        now = _Pass(set(active), theta, write, write_rows)
        blocks = [b for b in self.blocks if not now.active.isdisjoint(b.tensors)]
        undo: list[Callable[[], None]] = []
        reads = _Reads({id(self.params[i]): i for i in active}, now)
        try:
            for block in blocks:
                undo.append(self._attach(block, now))
            for i in active:
                self.params[i].data = self._nowhere(i)
            with reads if noting_reads else nullcontext():
                value = closure()
        finally:
            for i, p in theta.items():
                self.params[i].data = p
            for detach in undo:
                detach()
        wrong = [b for b in blocks if now.fired[b] != 1]
        if wrong:
            raise ValueError(self._miscalled(wrong, now.fired))
        return value, reads.seen

    def _is_lookup(self, block: Block) -> bool:
        """True for an embedding whose output is rows of its table and nothing else."""
        m = block.module
        if not isinstance(m, nn.Embedding) or len(block.tensors) != 1:
            return False
        plain = type(m).forward is nn.Embedding.forward and "forward" not in m.__dict__ and m.max_norm is None
        return plain and m._parameters.get("weight") is self.params[block.tensors[0]]  # not a parametrised one

    def _nowhere(self, i: int) -> Tensor:
        """A NaN in the shape of a tensor, which takes no memory."""
        if i not in self._away:
            p = self.params[i]
            with torch.inference_mode(False):
                self._away[i] = torch.full((), math.nan, dtype=p.dtype, device=p.device).expand(p.shape)
        return self._away[i]

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def _attach(self, block: Block, now: _Pass) -> Callable[[], None]:
        """Hooks a block's module; returns what unhooks it."""
        by_rows = self._is_lookup(block)
        show = self._show_theta if by_rows else self._show
        hide = self._hide

        def before(module: nn.Module, args: Any) -> None:
            if not by_rows:
                self._refuse_gradients(block)
            show(block, now)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            try:
                # torch gives None where the forward raised
                return self._looked_up(block, now, args, kwargs) if by_rows and output is not None else None
            finally:
                hide(block, now)

        module = block.module
        if isinstance(module, nn.TransformerEncoderLayer):
            # With hooks it would leave its fused path, whose rounding is its own.
            own, forward = module.__dict__.get("forward"), module.forward

            def shown(*args: Any, **kwargs: Any) -> Any:
                before(module, args)
                try:
                    return forward(*args, **kwargs)
                finally:
                    hide(block, now)

            module.forward = shown  # type: ignore[method-assign]

            def unpatch() -> None:
                if own is None:
                    del module.forward
                else:
                    module.forward = own  # type: ignore[method-assign]

            return unpatch
        # First of the pre-hooks: others compute weights from parameters (weight_norm).
        # An embedding's output is replaced before other hooks see it; any other module's weights are hidden last.
        first = module.register_forward_pre_hook(before, prepend=True)
        last = module.register_forward_hook(after, with_kwargs=True, always_call=True, prepend=by_rows)

        def remove() -> None:
            first.remove()
            last.remove()

        return remove

    def _show(self, block: Block, now: _Pass) -> None:
        """Displaces the block's tensors that no open block shows yet."""
        now.fired[block] += 1
        mine = [i for i in block.tensors if i in now.active]
        fresh = [i for i in mine if not now.shown[i]]
        slot = next(k for k in range(len(now.open) + 1) if k not in now.open)
        now.open[slot] = block
        now.shown.update(mine)
        if fresh:
            views: dict[int, Tensor] = {}
            for device in dict.fromkeys(now.theta[i].device for i in fresh):  # one, as a rule
                there = tuple(i for i in fresh if now.theta[i].device == device)
                views |= self._room((slot, device), there, now)
            now.write({i: now.theta[i] for i in fresh}, views)
            for i, view in views.items():
                self.params[i].data = view

    def _show_theta(self, block: Block, now: _Pass) -> None:
        now.fired[block] += 1
        (i,) = block.tensors
        if not now.shown[i]:
            self.params[i].data = now.theta[i]
        now.shown[i] += 1

    def _hide(self, block: Block, now: _Pass) -> None:
        slot = next((k for k, b in now.open.items() if b is block), None)
        if slot is not None:
            del now.open[slot]
        for i in block.tensors:
            if now.shown[i]:
                now.shown[i] -= 1
                if not now.shown[i]:
                    del now.shown[i]
                    self.params[i].data = self._nowhere(i)

    def _looked_up(self, block: Block, now: _Pass, args: Any, kwargs: Any) -> Tensor:
        """What the lookup gives in the displaced table, of which only the rows in question are made."""
        (i,) = block.tensors
        ids = args[0] if args else kwargs["input"]
        rows, places = torch.unique(ids, return_inverse=True)
        found = rows.cpu().numpy()  # where a device is waited for: offsets of noise are the host's
        with torch.inference_mode(False):
            part = now.theta[i].index_select(0, rows.clone())
        now.write_rows(i, found, part)
        if i in self.rows:
            self.rows[i] = np.union1d(self.rows[i], found)
        return embedding(places, part)

    def _room(self, slot: Slot, tensors: tuple[int, ...], now: _Pass) -> dict[int, Tensor]:
        """Memory for the tensors, with their strides where these are dense: a forward's rounding may depend on them."""
        if tensors in self._views.setdefault(slot, {}):
            return self._views[slot][tensors]
        starts = [0]
        for i in tensors:
            starts.append(starts[-1] + -(-now.theta[i].nbytes // 64) * 64)  # each starts a cache line
        with torch.inference_mode(False):
            if slot not in self._buffers or self._buffers[slot].numel() < starts[-1]:
                self._views[slot].clear()
                self._buffers.pop(slot, None)  # gone before the larger one is made
                self._buffers[slot] = torch.empty(starts[-1], dtype=torch.uint8, device=slot[1])
            views = {}
            for i, start in zip(tensors, starts, strict=False):
                p = now.theta[i]
                part = self._buffers[slot][start : start + p.nbytes].view(p.dtype)
                views[i] = part.as_strided(p.shape, _dense(p))
        self._views[slot][tensors] = views
        return views

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _refuse_gradients(self, block: Block) -> None:
        if torch.is_grad_enabled():
            raise ValueError(
                f"restore={self.restore!r}: {block} was called with gradients enabled, which a derivative in the loss "
                f"would take with weights that are gone by then; use {self.instead}"
            )

    def _miscalled(self, wrong: list[Block], fired: Counter[Block]) -> str:
        never = [b for b in wrong if not fired[b]]
        shown = ", ".join(f"{b} {fired[b]} times" for b in wrong[:4]) + (" ..." if len(wrong) > 4 else "")
        freeze = "freeze what the loss does not use with requires_grad_(False)"
        remedy = freeze if never else "evaluate the loss in one forward"
        needed = "each module with perturbed weights once"
        return f"restore={self.restore!r}: the closure called {shown}, needs {needed}; {remedy}, or use {self.instead}"


def _dense(p: Tensor) -> tuple[int, ...]:
    """The tensor's strides if it fills its memory, else those of a contiguous one."""
    return torch.empty_like(p, device="meta").stride()


class _Reads(TorchFunctionMode):
    """Notes which parameters functions use while no block shows them."""

    def __init__(self, places: dict[int, int], now: _Pass) -> None:
        super().__init__()
        self.places, self.now = places, now  # places by id of the parameter
        self.seen: dict[int, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in _leaves((*args, *(kwargs or {}).values())):
            i = self.places.get(id(x))
            # A function that takes but dtype or shape from the parameter makes no NaN of it.
            if i is not None and not self.now.shown[i] and any(map(_has_nan, _leaves((result,)))):
                self.seen.setdefault(i, getattr(func, "__name__", str(func)))
        return result


def _has_nan(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and bool(x.isnan().any())


def _leaves(items: Any) -> Iterator[Any]:
    for x in items:
        if isinstance(x, (list, tuple)):
            yield from _leaves(x)
        else:
            yield x
