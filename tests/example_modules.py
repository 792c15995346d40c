"""The examples' scripts as modules: each folder has a `run`, and often a `plot` and a `data`, of its own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@contextmanager
def imported(name: str) -> Iterator[Any]:
    """The `run` of an example; other examples' modules of its files' names stand aside meanwhile."""
    folder = EXAMPLES / name
    modules = [path.stem for path in folder.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        kept = {module: sys.modules.pop(module, None) for module in modules}
        try:
            yield importlib.import_module("run")
        finally:
            for module, before in kept.items():
                sys.modules.pop(module, None)
                if before is not None:
                    sys.modules[module] = before
