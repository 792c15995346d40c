"""The house itself: floors that use only floors below, no circular import, no file that has grown past reading."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "curvk"
LINES = 620  # about 600: a file that passes it becomes a folder, or two files
SOURCES = [
    *sorted((ROOT / "csrc").rglob("*.[ch]*")),
    *sorted(p for folder in ("python", "tests", "bench", "examples", "docs") for p in (ROOT / folder).rglob("*.py")),
]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def at_import(body: list[ast.stmt]) -> list[ast.Import | ast.ImportFrom]:
    """The imports that run when a module is imported: not those in functions, nor those for type checkers alone."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found += at_import(node.orelse)
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            found += at_import([s for s in ast.iter_child_nodes(node) if isinstance(s, ast.stmt)])
            for handler in getattr(node, "handlers", ()):
                found += at_import(handler.body)
    return found


def imported(name: str) -> set[str]:
    """The modules of curvk that a module names in its imports; a parent package is not named by its child."""
    path, targets = MODULES[name], set()
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in at_import(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
            continue
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            inner = f"{origin}.{alias.name}"
            targets.add(inner if inner in MODULES else origin)
    return targets & MODULES.keys() - {name}


GRAPH = {name: imported(name) for name in MODULES}


def test_imports_are_found() -> None:
    assert {"curvk.kernels.optim", "curvk._arrays", "curvk.optim._storage"} <= GRAPH["curvk.optim._base"]
    assert "curvk.capi" not in GRAPH["curvk._bench"], "an import in a function is none at import"


def test_no_circular_import() -> None:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(GRAPH[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in GRAPH:
        visit(name, [])


# What stands on a floor, by the first part of a module's name below curvk; lower numbers lie lower.
FLOORS = {
    **dict.fromkeys(("_errors", "_signatures", "_float_control", "_interrupt", "_build", "_core"), 0),
    **dict.fromkeys(("_arrays", "_backend", "_cuda", "_loops", "_store", "_threads", "_twins", "capi"), 1),
    **dict.fromkeys(("kernels", "_estimator"), 2),
    **dict.fromkeys(("optim", "zeroth", "curvature", "machines", "stein", "online", "sketch"), 3),
    "torch": 4,
    **dict.fromkeys(("_bench", "_demo", "_info", "cli", "__main__"), 5),
}


def test_floors_use_only_floors_below() -> None:
    wrong = []
    for name, targets in GRAPH.items():
        part = name.partition(".")[2].partition(".")[0]
        for target in targets:
            other = target.partition(".")[2].partition(".")[0]
            if part and other and FLOORS[other] > FLOORS[part]:
                wrong.append(f"{name} -> {target}")
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_length(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES, f"{lines} lines: make it two files"


def test_kernels_loops_and_cases_share_their_stems() -> None:
    """A family has the same name on every floor, but for cases of families that have no kernel of their own."""
    families = {p.stem for p in (ROOT / "csrc" / "include" / "curvk").glob("*.h")} - {"base"}
    for folder in ("python/curvk/kernels", "python/curvk/_loops", "python/curvk/_bench/cases"):
        stems = {re.sub(r"\.py$", "", p.name) for p in (ROOT / folder).iterdir()}
        assert families <= stems, f"{folder} lacks {sorted(families - stems)}"
    assert families <= {p.name.partition(".")[0] for p in (ROOT / "csrc" / "kernels").iterdir()}
    assert {p.stem for p in (ROOT / "csrc" / "cuda").glob("*.cu")} - {"device"} <= families
