"""What a person meets first: the README, the command line's help, and errors that say what is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import curvk
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = Path(curvk.__file__).parent


def python(code: str, *, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs code in another process, in a folder that has no curvk."""
    clean = {k: v for k, v in os.environ.items() if k not in ("CURVK_BACKEND", "PYTHONPATH")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**clean, **env}, check=False)


# ---- what is missing -------------------------------------------------------------------------------------------------

STEP = "import curvk, numpy as np; curvk.optim.SGD([np.ones(3)]).step([np.ones(3)])"
SVGD = "import curvk, numpy as np; s = curvk.stein.SVGD(np.negative, np.ones((3, 2)))"
DEMO = "import sys; from curvk.cli import main; sys.exit(main(['demo', '--quick']))"
LEARN = "curvk.{0} needs scikit-learn and scipy ({1} is missing); pip install 'curvk[learn]'"
FIT = "import numpy as np; from curvk.online import BOGDClassifier as B; B(bandwidth=1.0).progressive"

MISSING = [
    (
        "torch",
        "import curvk.torch",
        'curvk.torch needs PyTorch, which is not installed; use: pip install "curvk[torch]"',
    ),
    ("torch", "import curvk; curvk.torch", 'use: pip install "curvk[torch]"'),
    ("sklearn", "import curvk.machines", LEARN.format("machines", "sklearn")),
    ("scipy", "import curvk.machines", LEARN.format("machines", "scipy")),
    ("sklearn", "import curvk.online", LEARN.format("online", "sklearn")),
    ("scipy", "import curvk.online", LEARN.format("online", "scipy")),
    ("river", "import curvk.online.river", "river (river is missing); pip install 'curvk[river]'"),
    ("sklearn", "import curvk; curvk.stein.problems.breast_cancer()", "for its data: pip install scikit-learn"),
    ("cffi", "import curvk.capi", "curvk.capi needs cffi, which is not installed; use: pip install cffi"),
    ("numba", f"import curvk; curvk.use_backend('numba').__enter__(); {STEP}", "use: pip install numba"),
    ("tqdm", f"{SVGD}; s.run(2, progress=True)", "progress=True needs tqdm, which is not installed"),
    ("tqdm", f"{FIT}(np.eye(4), [0, 1, 0, 1], progress=True)", "progress=True needs tqdm, which is not installed"),
    (
        "matplotlib",
        "import curvk, numpy as np; curvk.curvature.GlassProbe(np.copy, np.ones(5), sigma=1e-3).run(samples=2).plot()",
        "GlassResult.plot needs matplotlib, which is not installed; use: pip install matplotlib",
    ),
]

NEEDED = {"river": ("river", "sklearn", "scipy"), "scipy": ("sklearn",), "tqdm": ("sklearn", "scipy")}


@pytest.mark.parametrize(("module", "code", "words"), MISSING)
def test_a_missing_package_is_named_with_its_remedy(module: str, code: str, words: str, tmp_path: Path) -> None:
    for name in NEEDED.get(module, ()):
        pytest.importorskip(name)
    run = python(f"import sys; sys.modules[{module!r}] = None; {code}", cwd=tmp_path)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert words in last


@pytest.mark.parametrize("module", ["torch", "sklearn", "scipy", "numba", "cffi", "matplotlib", "tqdm", "river"])
def test_the_core_runs_without_it(module: str, tmp_path: Path) -> None:
    if not _compiled() and module == "numba":
        pytest.skip("without compiled kernels the core runs on numba")
    run = python(f"import sys; sys.modules[{module!r}] = None; {STEP}; {SVGD}; s.run(2); print('done')", cwd=tmp_path)
    assert (run.returncode, run.stdout.strip()) == (0, "done"), run.stderr


@pytest.mark.parametrize("module", ["matplotlib", "sklearn"])
def test_the_demo_names_what_it_lacks(module: str, tmp_path: Path) -> None:
    run = python(f"import sys; sys.modules[{module!r}] = None; {DEMO}", cwd=tmp_path)
    name = {"sklearn": "scikit-learn"}.get(module, module)
    assert run.returncode == 2
    assert run.stderr.strip().startswith("curvk demo: not installed: ")
    assert name in run.stderr
    assert run.stderr.strip().endswith('run: pip install "curvk[demo]"')


# ---- installs that went wrong ----------------------------------------------------------------------------------------


def _compiled() -> bool:
    return bool(curvk.simd_levels())


def copied(folder: Path, build: str | None) -> Path:
    """The package's Python files in `folder`, as a build that says this of itself."""
    ignored = shutil.ignore_patterns("*.so", "*.dylib", "__pycache__", "_build.py", "include")
    shutil.copytree(PACKAGE, folder / "curvk", ignore=ignored)
    shutil.copytree(_headers(), folder / "curvk" / "include")
    if build is not None:
        (folder / "curvk" / "_build.py").write_text(build, encoding="utf-8")
    return folder


def _headers() -> Path:
    return next(p for p in (PACKAGE / "include", ROOT / "csrc" / "include") if (p / "curvk.h").is_file())


def alone(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code that sees the copy: first on the path, before an editable install's hook."""
    return python(
        f"import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
        f"sys.path.insert(0, {str(folder)!r}); {code}",
        cwd=folder,
    )


def test_a_source_folder_on_the_path(tmp_path: Path) -> None:
    run = alone(copied(tmp_path, None), "import curvk")
    assert run.returncode == 1
    assert "ImportError: curvk is not installed; from its source folder run: pip install ." in run.stderr


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    folder = copied(tmp_path, 'version = "0"\ncompiled = True\n')
    from importlib.machinery import EXTENSION_SUFFIXES

    (folder / "curvk" / f"_core{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF, but cut off here")
    run = alone(folder, "import curvk")
    assert run.returncode == 1
    last = next(line for line in reversed(run.stderr.splitlines()) if line.startswith("ImportError"))
    assert "curvk's compiled kernels do not load" in last
    assert "Rebuild them with: pip install --force-reinstall" in last


def test_an_install_without_a_compiler_says_so_at_the_first_use(tmp_path: Path) -> None:
    folder = copied(tmp_path, 'version = "0"\ncompiled = False\n')
    run = alone(folder, f"import curvk; assert curvk.get_simd() == 'none'; print('quiet'); {STEP}; print('done')")
    assert (run.returncode, run.stdout.split()) == (0, ["quiet", "done"]), run.stderr
    assert "RuntimeWarning: curvk was installed without compiled kernels" in run.stderr
    assert "To compile: pip install" in run.stderr
    run = alone(folder, "import curvk.capi")
    assert "curvk.capi needs compiled kernels, which this build lacks; rebuild with: pip" in run.stderr


def test_python_must_be_recent_enough() -> None:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("an installed test suite has no pyproject.toml")
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "Python 3.11 or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CURVK_BACKEND", "fortran", "fortran"),
        ("CURVK_SIMD", "v9", "v9"),
    ],
)
def test_a_misspelt_setting_is_named(name: str, value: str, words: str, tmp_path: Path) -> None:
    if name == "CURVK_SIMD" and not _compiled():
        pytest.skip("levels are those of compiled kernels")
    run = python(STEP, cwd=tmp_path, **{name: value})
    assert run.returncode == 1
    assert words in run.stderr.strip().splitlines()[-1]


# ---- the command line ------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "curvk", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("sub", ["", "info", "demo", "bench"])
def test_help(sub: str) -> None:
    run = command(*[sub][: bool(sub)], "--help")
    assert run.returncode == 0
    assert run.stderr == ""
    assert run.stdout.startswith(f"usage: curvk {sub}".rstrip())
    assert all(len(line) <= 100 for line in run.stdout.splitlines())
    for name in ("info", "demo", "bench") if not sub else ():
        assert f"\n  {name} " in run.stdout
    # Every option says what it does.
    options = re.findall(r"^  (-\S.*)$", run.stdout, re.MULTILINE)
    following = run.stdout.splitlines()
    for option in options:
        line = following.index(f"  {option}")
        assert "  " in option.strip() or following[line + 1].startswith("      "), option


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["--bogus"], ["info", "--bogus"], ["demo", "--seed", "x"], ["bench", "--threads", "x"]],
)
def test_wrong_usage_exits_with_2_and_names_the_mistake(arguments: list[str]) -> None:
    run = command(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert "usage: curvk" in run.stderr
    assert arguments[-1] in run.stderr.splitlines()[-1]


def test_an_unknown_kernel_of_the_benchmark_is_named() -> None:
    run = command("bench", "--kernels", "adam_stepp")
    assert run.returncode == 2
    assert "adam_stepp" in run.stderr
    assert "adam_step" in run.stderr.replace("adam_stepp", "")


# ---- README ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="an installed test suite has no README")
def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) < 200
    assert "```sh" in "\n".join(lines[:12])
    assert text.count("![") == 1
    for target in re.findall(r"\]\(([^)#\s]+)(#[^)\s]+)?\)", text.replace("\n", " ")):
        path, anchor = target
        assert not path.startswith("http"), path
        assert (ROOT / path).is_file(), path
        if anchor:
            titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor[1:] in slugs, target


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="an installed test suite has no README")
def test_extras_that_are_named_exist() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].keys()
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *PACKAGE.rglob("*.py")]
    for path in texts:
        for named in re.findall(r"(?:curvk|\.)\[([a-z,]+)\]", path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= extras, (path.name, named)
