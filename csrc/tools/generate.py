"""Writes what follows from the headers: level dispatch, binding list, the CUDA library's interface.

CMake runs it; nothing it writes is committed. The kernels that the files of csrc/cuda define have a CUDA version.

python generate.py INCLUDE_DIR SIGNATURES_PY OUTPUT_DIR LEVELS CUDA_DIR (levels separated by commas)
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


def list_of_one(f, listed, name: str) -> str:
    """A single-array entry calls the list entry with a list of one; a null array gives a null table."""
    values = []
    for a in listed.arguments:
        if a.pointers == 2:
            values.append(f"{a.name} ? &{a.name} : nullptr" if a.nullable else f"&{a.name}")
        else:
            values.append({"sizes": "&n", "count": "1"}.get(a.name) or ("&" if a.per_row else "") + a.name)
    return f"{name}({', '.join(values)})"


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
        call = pick_level(f, levels) if f in implemented else list_of_one(f, listed, listed.name)
        lines += [f"    return {call};", "}"]
    return "\n".join(lines) + "\n"


def with_extra(call: str, extra: str) -> str:
    """A call or a prototype with more arguments at its end."""
    return f"{call[:-1]}, {extra})"


CUDA_HEADER = """/* curvk's CUDA library: the functions of curvk.h for arrays on a device, in a stream's order.
 *
 * Tables, sizes, values per row and, in functions of tables, arrays that are only read (draws, coefs) lie in the
 * host's memory and are read before the call returns; all other arrays, those in tables and what lies "with the tables"
 * too, in that of `device`. Nothing waits for the device: `stream` is a cudaStream_t, null for the legacy default one.
 * Status as in curvk.h; CURVK_DEVICE_ERROR (-2) for an error of CUDA's, told by curvk_cuda_status_message. */
#ifndef CURVK_CUDA_H
#define CURVK_CUDA_H

#include "curvk/base.h"

CURVK_API const char* curvk_cuda_status_message(void); /* the calling thread's last failure, "" if none */
CURVK_API int32_t curvk_cuda_emulated(void);           /* 1 if "devices" are emulated on the CPU, for tests */
CURVK_API int32_t curvk_cuda_versions(int32_t* driver, int32_t* runtime); /* 1000 major + 10 minor */
CURVK_API int32_t curvk_cuda_device_count(int32_t* count);
/* capability <- 10 major + minor */
CURVK_API int32_t curvk_cuda_device(int32_t device, char* name, int64_t length, int32_t* capability, int64_t* bytes);
CURVK_API int32_t curvk_cuda_device_of(const void* address, int32_t* device);
/* Copies from a device to the host, and waits for it. */
CURVK_API int32_t curvk_cuda_read(void* to, const void* from, int64_t bytes, int32_t device, void* stream);
"""


def cuda_header(functions) -> str:
    extra = "int32_t device, void* stream"
    lines = [f"CURVK_API {with_extra(f.prototype(f.name + '_cuda'), extra)};" for f in functions]
    return "\n".join([CUDA_HEADER, *lines, "", "#endif", ""])


def cuda_dispatch(functions) -> str:
    """The CUDA library's functions: ranges checked, device made current, then the kernel file's function."""
    by_key = {(f.op, f.format, f.is_list): f for f in functions}
    implemented = [f for f in functions if f.is_list or (f.op, f.format, True) not in by_key]
    lines = ["#include <math.h>", '#include "core/float_control.h"', '#include "core/status.h"']
    lines += ['#include "cuda/device.h"', '#include "curvk_cuda.h"', "", "namespace curvk_cuda {"]
    lines += [f"{with_extra(f.prototype(), 'void* stream')};" for f in implemented] + ["}"]
    for f in functions:
        listed = by_key.get((f.op, f.format, True))
        prototype = with_extra(f.prototype(f.name + "_cuda"), "int32_t device, void* stream")
        lines += ["", f"{prototype} {{", *range_checks(f)]
        if f in implemented:
            lines.append("    const curvk::DefaultFloatControl control;")
            lines.append(f'    const curvk::CurrentDevice current("{f.op}", device);')
            lines.append("    if (current.status) return current.status;")
            arguments = ", ".join([*(a.name for a in f.arguments), "stream"])
            lines.append(f"    return curvk_cuda::{f.name}({arguments});")
        else:
            call = list_of_one(f, listed, listed.name + "_cuda")
            lines.append(f"    return {with_extra(call, 'device, stream')};")
        lines.append("}")
    return "\n".join(lines) + "\n"


def bindings(ops) -> str:
    """One X-macro line per kernel: op, format, elementwise, function, then the arguments' names.

    A name is followed by ? where the argument may be null, # where it has a number per row, @ where it lies with the
    tables' arrays, ~ where it is bfloat16 whatever the kernel's format (C++ knows no such type), /32 where it has one
    element for 32.
    """

    def marked(a) -> str:
        return (
            a.name
            + "?" * a.nullable
            + "#" * a.per_row
            + "@" * a.with_tables
            + "~" * (a.element == "curvk_bf16")
            + f"/{a.per}" * (a.per > 0)
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


def has_cuda(functions, written: set[str]) -> list:
    """Those that a kernel file implements for devices: by themselves, or in a list of one."""
    lists = {(f.op, f.format) for f in functions if f.is_list and f.name in written}
    return [f for f in functions if f.format and (f.name in written or (f.op, f.format) in lists)]


def main(include: str, signatures: str, output: str, levels: str, cuda: str) -> None:
    reader = load(signatures)
    functions = reader.read(Path(include))
    numbers = levels.split(",")
    written = set().union(*(reader.defined(file.read_text()) for file in Path(cuda).glob("*.cu")))
    on_devices = has_cuda(functions, written)
    out = Path(output)
    out.mkdir(parents=True, exist_ok=True)
    write(out / "levels.h", f"#define CURVK_LEVELS(X) {' '.join(f'X({level})' for level in numbers)}\n")
    write(out / "dispatch.cpp", dispatch(functions, numbers))
    write(out / "curvk_cuda.h", cuda_header(on_devices))
    write(out / "cuda_dispatch.cpp", cuda_dispatch(on_devices))
    write(out / "bindings.inc", bindings(reader.group(functions)))


if __name__ == "__main__":
    main(*sys.argv[1:])
