"""Reads the C headers: the only place where a kernel's signature is written.

Standard library only, since the build runs this file before anything is installed. The same parse gives the bindings
and the level dispatch (at build time), the text cffi needs, and the argument table of the Numba twins (at run time).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

FORMATS = {"f32": "float", "f64": "double", "bf16": "uint16_t", "f16": "uint16_t", "i64": "int64_t"}
_DECLARATION = re.compile(r"(CURVK_API|CURVK_ELEMENTWISE)\s+([\w\s*]+?)\b(curvk_\w+)\s*\(([^()]*)\)\s*;")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_RANGE = re.compile(r"/\*\s*([\[(])\s*(\S+)\s*,\s*(\S+)\s*([\])])\s*\*/")
_PER = re.compile(r"/\*\s*per\s+(\w+)\s*\*/")


@dataclass(frozen=True)
class Range:
    """An interval of numbers; NaN lies in none."""

    low: float
    high: float
    closed_low: bool
    closed_high: bool

    def __contains__(self, x: float) -> bool:
        return (self.low <= x if self.closed_low else self.low < x) and (
            x <= self.high if self.closed_high else x < self.high
        )

    def __str__(self) -> str:
        return f"{'[' if self.closed_low else '('}{self.low:g}, {self.high:g}{']' if self.closed_high else ')'}"

    def as_c(self, name: str) -> str:
        def bound(x: float) -> str:
            return {math.inf: "INFINITY", -math.inf: "-INFINITY"}.get(x) or f"{x:g}"

        return (
            f"{name} {'>=' if self.closed_low else '>'} {bound(self.low)} && "
            f"{name} {'<=' if self.closed_high else '<'} {bound(self.high)}"
        )


@dataclass(frozen=True)
class Argument:
    name: str
    ctype: str  # canonical, e.g. "const float* const*"
    range: Range | None = None
    nullable: bool = False
    per_row: bool = False  # an array with a number for each row of a list
    per: int = 0  # a table whose arrays have one element for so many of the first table's; 0: as many as those
    with_tables: bool = False  # lies where the tables' arrays do, although it is only read

    @cached_property
    def pointers(self) -> int:
        """0 for a scalar, 1 for an array, 2 for a table of arrays."""
        return self.ctype.count("*")

    @cached_property
    def element(self) -> str:
        return self.ctype.replace("const", " ").replace("*", " ").split()[0]

    @cached_property
    def written(self) -> bool:
        return self.pointers > 0 and not self.ctype.startswith("const")


@dataclass(frozen=True)
class Function:
    name: str
    returns: str
    arguments: tuple[Argument, ...]
    elementwise: bool
    family: str  # the header's stem, which is also that of its loops and its public module

    @cached_property
    def format(self) -> str | None:
        """The storage format in the name's last part; None for a function that is not a kernel."""
        tail = self.name.rsplit("_", 1)[1]
        return tail if tail in FORMATS else None

    @cached_property
    def is_list(self) -> bool:
        return any(a.pointers == 2 for a in self.arguments)

    @cached_property
    def indexed(self) -> bool:
        """Whether an element's place in its array matters: it is told the logical index of each row's first element, or
        has arrays with one element for several."""
        return any(a.name == "offset" or a.per for a in self.arguments)

    @cached_property
    def op(self) -> str:
        """The name users see: curvk_adam_step_list_f32 -> adam_step."""
        return self.name.removeprefix("curvk_").rsplit("_", 1)[0].removesuffix("_list")

    @cached_property
    def arrays(self) -> tuple[Argument, ...]:
        """Array arguments in order; the table of sizes is not one of them, the caller's arrays imply it."""
        return tuple(a for a in self.arguments if a.pointers and not (self.is_list and a.name == "sizes"))

    @cached_property
    def scalars(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if not a.pointers and not (self.is_list and a.name == "count"))

    def on_device(self, a: Argument) -> bool:
        """Whether the CUDA version takes an array argument in a device's memory: all but values per row and, in a
        function of tables, arrays that are only read beside them."""
        return a.pointers == 2 or (
            a.pointers == 1 and not a.per_row and (a.written or a.with_tables or not self.is_list)
        )

    def prototype(self, name: str | None = None) -> str:
        arguments = ", ".join(f"{a.ctype} {a.name}" for a in self.arguments) or "void"
        return f"{self.returns} {name or self.name}({arguments})"


def _expand(text: str) -> str:
    """Expands the macros that a header defines itself; comments survive, since they carry ranges."""
    text = text.replace("\\\n", " ")
    macros: dict[str, tuple[list[str] | None, str]] = {}
    lines = []
    for line in text.splitlines():
        if define := re.match(r"\s*#\s*define\s+(\w+)(?:\(([^)]*)\))?\s*(.*)", line):
            name, parameters, body = define.groups()
            macros[name] = (None if parameters is None else [s.strip() for s in parameters.split(",")], body)
        elif not line.lstrip().startswith("#"):
            lines.append(line)
    macros = {k: v for k, v in macros.items() if k not in ("CURVK_API", "CURVK_ELEMENTWISE")}
    text = "\n".join(lines)

    def substitute(match: re.Match[str]) -> str:
        parameters, body = macros[match.group(1)]
        if parameters is not None:
            for parameter, value in zip(parameters, match.group(2).split(","), strict=True):
                body = re.sub(rf"\b{parameter}\b", value.strip(), body)
        return re.sub(r"\s*##\s*", "", body)

    for _ in range(8):  # nested macros settle in as many rounds as they are deep
        before = text
        for name, (parameters, _) in macros.items():
            text = re.sub(rf"\b({name})\b" if parameters is None else rf"\b({name})\(([^()]*)\)", substitute, text)
        if text == before:
            return text
    raise ValueError("the headers' macros do not settle: is one defined by itself?")


def _hide_comments(text: str) -> tuple[str, Callable[[str], str]]:
    """The text with a short mark for each comment, and the function that puts the comments back.

    A comment such as /* per 32 */ stays, since its number may be a macro's parameter.
    """
    comments: list[str] = []

    def hide(match: re.Match[str]) -> str:
        if _PER.fullmatch(match.group()):
            return match.group()
        comments.append(match.group())
        return f"/*@{len(comments) - 1}@*/"

    def show(marked: str) -> str:
        return re.sub(r"/\*@(\d+)@\*/", lambda m: comments[int(m.group(1))], marked)

    return _COMMENT.sub(hide, text), show


def _split(text: str) -> list[str]:
    """Splits an argument list at the commas outside comments."""
    bare, shown = _hide_comments(text)
    return [shown(p) for p in bare.split(",") if p.strip() not in ("", "void")]


def _argument(text: str) -> Argument:
    interval = None
    if match := _RANGE.search(text):
        left, low, high, right = match.groups()
        interval = Range(float(low), float(high), left == "[", right == "]")
    per = match.group(1) if (match := _PER.search(text)) else ""
    if per and per != "row" and not (per.isdecimal() and int(per) > 0):
        raise ValueError(f"the headers say 'per {per}' where 'row' or a number of elements is needed")
    bare = " ".join(_COMMENT.sub(" ", text).split())
    ctype, name = re.fullmatch(r"(.*?[\s*])(\w+)", bare).groups()  # type: ignore[union-attr]
    ctype = re.sub(r"\s*\*\s*", "* ", ctype).strip()
    each = int(per) if per.isdecimal() else 0
    return Argument(name, ctype, interval, "or null" in text, per == "row", each, "with the tables" in text)


def parse(text: str, family: str) -> list[Function]:
    """The functions that a family header's text declares, in order."""
    bare, shown = _hide_comments(text)  # the pattern of a declaration excludes parentheses, which ranges have
    functions = []
    for kind, returns, name, arguments in _DECLARATION.findall(_expand(bare)):
        parsed = tuple(map(_argument, _split(shown(arguments))))
        functions.append(Function(name, returns.strip(), parsed, kind == "CURVK_ELEMENTWISE", family))
    return functions


def defined(text: str) -> set[str]:
    """The names of the kernels that a kernel file's text defines."""
    return set(re.findall(r"\bint32_t\s+(curvk_\w+)\s*\(", _expand(text)))


def read(folder: Path) -> list[Function]:
    """Every function of curvk.h and, in its order, of the family headers it includes."""
    top = (folder / "curvk.h").read_text()
    families = re.findall(r'#include "(curvk/(?!base)\w+\.h)"', top)
    headers = {"curvk": top} | {Path(name).stem: (folder / name).read_text() for name in families}
    return [f for family, text in headers.items() for f in parse(text, family)]


def include_dir() -> Path:
    """Where the installed headers are; pass it to a C compiler's -I."""
    from importlib import resources  # finds it in an editable install too

    return Path(str(resources.files(f"{__package__}.include") / "curvk.h")).parent


def typedefs() -> list[str]:
    """The headers' own names of types, as C declares them."""
    return re.findall(r"typedef [^;]+;", (include_dir() / "curvk" / "base.h").read_text())


@lru_cache(maxsize=1)
def functions() -> dict[str, Function]:
    """Every declared function by its C name."""
    return {f.name: f for f in read(include_dir())}


def group(functions: Iterable[Function]) -> dict[str, dict[str, Function]]:
    """A table op -> format -> function; the list form where a kernel has both."""
    table: dict[str, dict[str, Function]] = {}
    for f in functions:
        if f.format and (f.is_list or f.format not in table.get(f.op, {})):
            table.setdefault(f.op, {})[f.format] = f
    return table


@lru_cache(maxsize=1)
def ops() -> dict[str, dict[str, Function]]:
    """`group` of every declared function."""
    return group(functions().values())
