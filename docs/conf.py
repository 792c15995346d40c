"""Sphinx configuration: sphinx-build -W -b html docs docs/_build/html."""

import importlib.util
import shutil
import sys
import tomllib
from pathlib import Path

from curvk._bench.registry import cases
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

project = "curvk"
author = copyright = "The curvk developers"
version = release = _project["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_*.md"]
default_role = "code"  # docstrings are Markdown-flavoured: single backticks mean code

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature's types stand in the Args sections, in words
autodoc_inherit_docstrings = False
# Without torch the pages still build; its classes then stand on a mock.
autodoc_mock_imports = [] if importlib.util.find_spec("torch") else ["torch"]
napoleon_numpy_docstring = False
napoleon_use_rtype = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

sys.path.insert(0, str(Path(__file__).parent))  # gallery_style
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "ignore_pattern": r"digits\.py",
    "reset_modules": ("matplotlib", "gallery_style.reset"),
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
    "min_reported_time": 10**6,  # seconds on whatever machine this is say nothing
    "notebook_extensions": [],  # notebooks would lack the file that examples share
    "copyfile_regex": r"digits\.py",
}
# Formulas are typeset by a copy of MathJax in the site, so that the pages can be read without a network.
_mathjax = importlib.util.find_spec("mathjax")  # of the package django-static-mathjax; it imports nothing of Django
if _mathjax is not None:
    mathjax_path = "mathjax/tex-chtml.js"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["gallery.css", "site.css"]
html_title = f"curvk {version}"


class KernelTable(SphinxDirective):
    """`{kernel-table}`: what each kernel costs and promises, from the registry."""

    def run(self) -> list[nodes.Node]:
        lines = [
            "| kernel, variant | reads | writes | bytes per element | operations | error class |",
            "|" + "---|" * 6,
        ]
        for op, case in cases().items():
            shown: dict[str, list[str]] = {row.variant: [] for row in case.rows} or {next(iter(case.variants)): []}
            for row in case.rows:
                shown[row.variant] += [f for f in row.formats if f not in shown[row.variant]]
            for variant, formats in shown.items():
                options = case.variants[variant]
                streams = case.streams(options)
                sides = [", ".join(f"`{a}`" for a, use in streams.items() if side in use) for side in "rw"]
                costs = ", ".join(f"{f}: {case.bytes(f, options):g}" for f in formats or case.formats if streams)
                cells = [f"`{op}` {variant}", *sides, costs, str(case.flops(options) or ""), case.error]
                lines.append(f"| {' | '.join(cells)} |")
        return self.parse_text_to_nodes("\n".join(lines))


def _copy_mathjax(app: Sphinx) -> None:
    """Its one script and its fonts: 1.5 MB of 35."""
    if _mathjax is None or not _mathjax.submodule_search_locations or app.builder.format != "html":
        return
    source = Path(_mathjax.submodule_search_locations[0]) / "static/mathjax/es5"
    target = Path(app.outdir) / "_static/mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)
    shutil.copy2(source / "tex-chtml.js", target)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", _copy_mathjax)
    app.add_directive("kernel-table", KernelTable)
