"""The documentation site: every public name is documented, and tests that a page names exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import curvk
import pytest

ROOT = Path(__file__).parent.parent
FAMILIES = [f"curvk.kernels.{name}" for name in importlib.import_module("curvk.kernels").__all__]
METHODS = ["optim", "torch", "zeroth", "curvature", "machines", "stein", "stein.problems", "sketch", "online"]
MODULES = ["curvk", *FAMILIES, *(f"curvk.{name}" for name in [*METHODS, "online.river", "capi"])]
NEEDS = {"curvk.torch": "torch", "curvk.machines": "sklearn", "curvk.online": "sklearn", "curvk.online.river": "river"}

# Sphinx reads the pages in a process of its own: its extensions warn of their own deprecations.
READ = """
import json, sys
from pathlib import Path
from sphinx.application import Sphinx
docs, out = map(Path, sys.argv[1:])
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
app = Sphinx(docs, docs, out / "pages", out / "trees", "dummy", {"extensions": extensions}, status=None)
app.builder.read()
(out / "names.json").write_text(json.dumps(list(app.env.domaindata["py"]["objects"])))
"""


def public(module: str) -> Iterator[tuple[str, object]]:
    """The names of a module that are no modules themselves."""
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    if module == "curvk.capi" and not curvk.simd_levels():
        pytest.skip("this build has no compiled kernels, hence no library to describe")
    found = importlib.import_module(module)
    for name in found.__all__:
        if importlib.util.find_spec(NEEDS.get(f"{module}.{name}", "curvk")) is None:
            continue  # a module that asks for what is not here
        value = inspect.getattr_static(found, name, None)
        if value is None or not isinstance(value, types.ModuleType):
            value = getattr(found, name)
        if not isinstance(value, types.ModuleType):
            yield name, value


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    """The Python objects that the pages describe, and Sphinx's warnings; the gallery's programs do not run."""
    for name in ("sphinx", "myst_parser", "furo", "sphinx_copybutton", "sphinx_gallery", "sklearn", "river", "torch"):
        pytest.importorskip(name)
    if not curvk.simd_levels():
        pytest.skip("this build has no compiled kernels, hence no C interface to describe")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(ROOT / "docs"), str(out)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads((out / "names.json").read_text())), done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_a_page(module: str, site: tuple[set[str], str]) -> None:
    described, _ = site
    assert [name for name, _ in public(module) if f"{module}.{name}" not in described] == []


def test_no_name_is_described_twice(site: tuple[set[str], str]) -> None:
    assert [line for line in site[1].splitlines() if "duplicate object description" in line] == []


@pytest.mark.parametrize("module", MODULES)
def test_public_callables_say_what_they_are(module: str) -> None:
    lacking = [name for name, value in public(module) if callable(value) and not (value.__doc__ or "").strip()]
    assert lacking == []


def test_tests_that_pages_name_exist() -> None:
    named = set()
    for page in (ROOT / "docs").glob("*.md"):
        named |= set(re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", page.read_text()))
    assert len({test for _, test in named if test}) > 20
    missing = []
    for file, test in sorted(named):
        path = ROOT / file
        functions = (
            {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
            if path.exists()
            else set()
        )
        if not path.exists() or (test and test not in functions):
            missing.append(f"{file}::{test}")
    assert missing == []
