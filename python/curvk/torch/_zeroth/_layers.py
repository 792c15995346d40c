"""Which modules of a model are its layers: the blocks that LeZO drops and that a probe perturbs as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from torch import nn

Layers = str | nn.Module | Iterable[str | nn.Module]

_STACKS = {"layer", "layers", "h", "block", "blocks"}  # what models call the list of their blocks


def find_layers(model: nn.Module, layers: Layers | None = None) -> dict[str, nn.Module]:
    """The model's layers by name, in order; found in the module tree, or the ones named.

    Layers are the blocks in an `nn.ModuleList` called layer, layers, h, block or blocks whose children have
    parametrised children of their own: BERT's encoder.layer, GPT-2's transformer.h, LLaMA's model.layers, OPT's
    model.decoder.layers, T5's encoder.block and decoder.block, BART's encoder.layers and decoder.layers,
    nn.TransformerEncoder's layers. Without such lists, those of any name, and `nn.Sequential`, whose blocks are two or
    more of one class. A list inside another one does not count; lists side by side count together. Where there are
    none, as in an MLP, the children of the `nn.Sequential` or list that holds at least half of the parameters, but for
    the first and the last parametrised ones, which stay embedding and head. Layers without a trainable parameter are
    left out.

    Args:
        model: the module to look through.
        layers: the layers, as modules of the model or their names (what their parameters' names begin with). An
            nn.ModuleList, or an nn.Sequential given alone, means its children.

    Returns:
        From name to module, in the order of the model or of `layers`.

    Raises:
        TypeError: `model` or a layer is something else.
        ValueError: no layer was found; an unknown name; a layer twice, inside another one, or without trainable
            parameters.

    >>> import torch
    >>> block = torch.nn.TransformerEncoderLayer(8, 2, 16)
    >>> list(find_layers(torch.nn.TransformerEncoder(block, 2, enable_nested_tensor=False)))
    ['layers.0', 'layers.1']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"find_layers: argument 'model': got {type(model).__name__}, needs a torch.nn.Module")
    if layers is None:
        found = _blocks(model, by_name=True) or _blocks(model, by_name=False) or _inner(model)
    else:
        found = _named(model, layers)
    if not found:
        raise ValueError(
            "find_layers: argument 'layers': found no layers by themselves, neither a list of blocks nor three modules "
            f"in a row, among {_seen(model)}; name the layers, such as layers=['encoder.0', 'encoder.1'] or "
            "layers='encoder' for the children of a list"
        )
    return found


def trains(module: nn.Module) -> bool:
    """True if the module has a trainable parameter."""
    return any(p.requires_grad for p in module.parameters())


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def is_list(module: nn.Module) -> TypeGuard[nn.ModuleList | nn.Sequential]:
    return isinstance(module, (nn.ModuleList, nn.Sequential))


def _blocks(model: nn.Module, by_name: bool) -> dict[str, nn.Module]:
    """The blocks in the outermost lists of blocks that have a usual name or else, in any, are of one class."""
    found: dict[str, nn.Module] = {}

    def search(name: str, module: nn.Module) -> None:
        children = list(module.named_children())
        # Frozen blocks too: a model whose first blocks are frozen has the same lists.
        blocks = [b for _, b in children if _has_parameters(b)]
        if is_list(module) and blocks and all(any(map(_has_parameters, b.children())) for b in blocks):
            usual = isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in _STACKS
            alike = bool(name) and len(blocks) > 1 and len({type(b) for b in blocks}) == 1
            if usual if by_name else alike:
                found.update((_join(name, key), b) for key, b in children if trains(b))
                return
        for key, child in children:
            search(_join(name, key), child)

    search("", model)
    return found


def _inner(model: nn.Module) -> dict[str, nn.Module]:
    """All children but the first and the last of the outermost list that holds at least half of the parameters."""
    whole = sum(p.numel() for p in model.parameters())
    for name, module in model.named_modules():
        if is_list(module) and 2 * sum(p.numel() for p in module.parameters()) >= whole:
            children = [(_join(name, key), c) for key, c in module.named_children() if _has_parameters(c)]
            if inner := {key: c for key, c in children[1:-1] if trains(c)}:
                return inner
    return {}


def _named(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    names = {id(m): n for n, m in modules.items()}
    chosen: dict[str, nn.Module] = {}
    for layer in [layers] if isinstance(layers, (str, nn.Module)) else layers:
        if isinstance(layer, str):
            name, module = layer.rstrip("."), modules.get(layer.rstrip("."))
            if module is None or module is model:
                raise ValueError(
                    f"find_layers: argument 'layers': got {layer!r}, needs the name of a module inside the model: "
                    f"{_seen(model)}"
                )
        elif isinstance(layer, nn.Module):
            if id(layer) not in names or layer is model:
                raise ValueError(
                    f"find_layers: argument 'layers': got a {type(layer).__name__} that is not inside the model, needs "
                    f"modules of {type(model).__name__}"
                )
            name, module = names[id(layer)], layer
        else:
            raise TypeError(
                f"find_layers: argument 'layers': got {type(layer).__name__}, needs names of modules, or modules"
            )
        several = isinstance(module, nn.ModuleList) or (layer is layers and isinstance(module, nn.Sequential))
        if not trains(module):
            raise ValueError(
                f"find_layers: argument 'layers': got {name!r}, which has no trainable parameter; leave it out"
            )
        for key, part in module.named_children() if several else [("", module)]:
            full = _join(name, key)
            if full in chosen:
                raise ValueError(f"find_layers: argument 'layers': got {full!r} twice, needs each layer once")
            if trains(part):
                chosen[full] = part
    for name in chosen:
        outer = next((o for o in chosen if name.startswith(o + ".")), None)
        if outer:
            raise ValueError(f"find_layers: argument 'layers': got {name!r} inside {outer!r}, needs ones side by side")
    return chosen


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name and key else name or key


def _seen(model: nn.Module, limit: int = 12) -> str:
    """The modules of the two outermost levels that have parameters, for messages."""
    seen = [
        f"{name!r} ({type(m).__name__})"
        for name, m in model.named_modules()
        if name and name.count(".") < 2 and next(m.parameters(), None) is not None
    ]
    return ", ".join(seen[:limit]) + (f" and {len(seen) - limit} more" if len(seen) > limit else "") or "no modules"
