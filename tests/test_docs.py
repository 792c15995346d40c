"""Runs the code of README.md, CONTRIBUTING.md and docs/*.md, page by page.

```python blocks run in one namespace per page, in order; ```pycon blocks are doctests in that namespace; a ```c block
whose comment opens with a file name is written to that file, and a ```sh block that starts with `cc` compiles and runs
it, its output compared with the ```text block that follows. Other languages (```py, ```cpp, ```sh) are shown only.
Blocks that name torch, and all blocks of their page before them, run where torch is installed.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import curvk
import pytest

pytestmark = pytest.mark.filterwarnings("ignore:curvk was installed without compiled kernels:RuntimeWarning")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    language: str
    text: str
    line: int  # of its first line of code

    def needs_torch(self) -> bool:
        return self.language in ("python", "pycon") and "torch" in self.text


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 2) for m in FENCE.finditer(text)]


def has(page: Path, torch: bool) -> bool:
    code = [b for b in blocks(page) if b.language in ("python", "pycon")]
    return any(b.needs_torch() == torch for b in code)


def run(block: Block, page: Path, names: dict[str, Any]) -> None:
    if block.language == "python":
        tree = ast.parse(block.text, str(page))
        ast.increment_lineno(tree, block.line - 1)  # a traceback then points into the page
        exec(compile(tree, str(page), "exec"), names)
    else:
        test = doctest.DocTestParser().get_doctest(block.text, names, page.name, str(page), block.line - 1)
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        report: list[str] = []
        runner.run(test, out=report.append, clear_globs=False)
        names.update(test.globs)
        assert not runner.failures, "".join(report)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # pages save files


@pytest.mark.parametrize("page", [p for p in PAGES if has(p, torch=False)], ids=lambda p: p.name)
def test_page(page: Path) -> None:
    if page.name == "native.md" and not curvk.simd_levels():
        pytest.skip("this build has no compiled kernels, hence no library to call")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language in ("python", "pycon") and not block.needs_torch():
            run(block, page, names)


@pytest.mark.parametrize("page", [p for p in PAGES if has(p, torch=True)], ids=lambda p: p.name)
def test_page_with_torch(page: Path) -> None:
    pytest.importorskip("torch")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language in ("python", "pycon"):
            run(block, page, names)


def test_c_program(tmp_path: Path) -> None:
    if not curvk.simd_levels():
        pytest.skip("this build has no compiled kernels, hence no library to link")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    page = blocks(ROOT / "docs" / "native.md")
    source = next(b.text for b in page if b.language == "c")
    name = re.match(r"/\* (\w+\.c)", source)
    assert name
    (tmp_path / name[1]).write_text(source)
    i = next(i for i, b in enumerate(page) if b.language == "sh" and b.text.startswith("cc "))
    # `python` on the page is the interpreter that has curvk.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e"], input=page[i].text, capture_output=True, text=True, env=environment, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert page[i + 1].language == "text"
    assert done.stdout == page[i + 1].text


def test_internal_links() -> None:
    """Links between README, CONTRIBUTING and pages name pages that exist; Sphinx checks those within docs/."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
