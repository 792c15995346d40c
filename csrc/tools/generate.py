"""Writes what follows from the headers: level dispatch, binding list. CMake runs it; nothing it writes is committed.

python generate.py INCLUDE_DIR SIGNATURES_PY OUTPUT_DIR LEVEL...
"""

import importlib.util
import sys
from pathlib import Path


def load(path: str):
    """Imports the header reader by path: the package around it is not installed yet."""
    spec = importlib.util.spec_from_file_location("_signatures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["_signatures"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def namespace(level: str) -> str:
    return f"curvk_level_{level}"


def prototypes(kernels, levels: list[str]) -> list[str]:
    """One declaration per level of every function that kernel files implement."""
    lines = []
    for level in levels:
        lines.append(f"namespace {namespace(level)} {{")
        lines += [f"{f.prototype()};" for f in kernels]
        lines.append("}")
    return lines


def range_checks(f) -> list[str]:
    lines = []
    for position, a in enumerate(f.arguments, start=1):
        if a.range:
            text = f"{f.name}: argument '{a.name}': needs a number in {a.range}"
            lines.append(f'    if (!({a.range.as_c(a.name)})) return curvk::fail({position}, "{text}");')
        elif not a.pointers and a.name in ("n", "count"):
            text = f"{f.name}: argument '{a.name}': needs a size of 0 or more"
            lines.append(f'    if ({a.name} < 0) return curvk::fail({position}, "{text}");')
    return lines


def pick_level(f, levels: list[str]) -> str:
    """The call at the level in force: one integer compared, no table to fill."""
    arguments = ", ".join(a.name for a in f.arguments)
    text = f"{namespace(levels[0])}::{f.name}({arguments})"
    for level in levels[1:]:
        text = f"curvk::level() == {level} ? {namespace(level)}::{f.name}({arguments}) : {text}"
    return text


def list_of_one(f, listed) -> str:
    """A single-array entry calls the list entry with a list of one; a null array gives a null table."""
    values = []
    for a in listed.arguments:
        if a.pointers == 2:
            values.append(f"{a.name} ? &{a.name} : nullptr" if a.nullable else f"&{a.name}")
        else:
            values.append({"sizes": "&n", "count": "1"}.get(a.name) or ("&" if a.per_row else "") + a.name)
    return f"{listed.name}({', '.join(values)})"


def dispatch(functions, levels: list[str]) -> str:
    kernels = [f for f in functions if f.format]
    by_key = {(f.op, f.format, f.is_list): f for f in kernels}
    implemented = [f for f in kernels if f.is_list or (f.op, f.format, True) not in by_key]
    lines = [
        "#include <math.h>",
        '#include "core/float_control.h"',
        '#include "core/level.h"',
        '#include "core/status.h"',
        '#include "curvk.h"',
        "",
    ]
    lines += prototypes(implemented, levels)
    for f in kernels:
        listed = by_key.get((f.op, f.format, True))
        lines += ["", f"{f.prototype()} {{", *range_checks(f)]
        if f in implemented:  # prologues and final sums see the default rounding and denormals, as the ranges do
            lines.append("    const curvk::DefaultFloatControl control;")
        call = pick_level(f, levels) if f in implemented else list_of_one(f, listed)
        lines += [f"    return {call};", "}"]
    return "\n".join(lines) + "\n"


def bindings(ops) -> str:
    """One X-macro line per kernel: op, format, elementwise, function, then the arguments' names.

    A name is followed by ? where the argument may be null, # where it has a number per row, ~ where it is bfloat16
    whatever the kernel's format (C++ knows no such type), /32 where it has one element for 32.
    """

    def marked(a) -> str:
        return (
            a.name + "?" * a.nullable + "#" * a.per_row + "~" * (a.element == "curvk_bf16") + f"/{a.per}" * (a.per > 0)
        )

    lines = []
    for op, variants in ops.items():
        for fmt, f in variants.items():
            names = ", ".join(f'"{marked(a)}"' for a in f.arguments)
            lines.append(f'CURVK_KERNEL("{op}", "{fmt}", {str(f.elementwise).lower()}, {f.name}, {names})')
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Leaves an unchanged file alone, so that nothing is compiled again for it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main(include: str, signatures: str, output: str, *levels: str) -> None:
    reader = load(signatures)
    functions = reader.read(Path(include))
    out = Path(output)
    out.mkdir(parents=True, exist_ok=True)
    write(out / "levels.h", f"#define CURVK_LEVELS(X) {' '.join(f'X({level})' for level in levels)}\n")
    write(out / "dispatch.cpp", dispatch(functions, list(levels)))
    write(out / "bindings.inc", bindings(reader.group(functions)))


if __name__ == "__main__":
    main(*sys.argv[1:])
