"""The C interface: the same kernels from cffi, from Numba-compiled code and from a C program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import curvk
import numpy as np
import pytest
from curvk import _backend
from curvk._signatures import functions
from curvk.kernels.optim import adam_step, global_norm, sgd_step

pytestmark = pytest.mark.skipif(_backend.core is None, reason="this build has no C library")
if _backend.core is not None:
    from curvk import capi
    from curvk.capi import ffi, lib

CTYPES = {np.dtype(np.float32): "float[]", np.dtype(np.float64): "double[]", np.dtype(np.uint16): "uint16_t[]"}
CTYPES[np.dtype(np.float16)] = "uint16_t[]"
ADAM = (3, 0.1, 0.9, 0.999, 1e-8, 0.01, 1, 0, 2.0)  # step lr beta1 beta2 eps weight_decay decoupled maximize grad_scale
ADAM_NAMES = [
    "p",
    "g",
    "m",
    "v",
    "max_v",
    "origin",
    "n",
    "step",
    "lr",
    "beta1",
    "beta2",
    "eps",
    "weight_decay",
    "decoupled",
    "maximize",
    "grad_scale",
]


def pointer(x: np.ndarray | None) -> Any:
    return ffi.NULL if x is None else ffi.from_buffer(CTYPES[x.dtype], x)


def message() -> str:
    return str(ffi.string(lib.curvk_status_message()).decode())


def arrays(fmt: str, n: int = 1000, count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    own, state = {"f32": ("f4", "f4"), "f64": ("f8", "f8"), "f16": ("f2", "f4"), "bf16": ("u2", "f4")}[fmt]
    made = [np.abs(rng.standard_normal(n)).astype(np.float32) for _ in range(count)]
    if fmt == "bf16":
        made[:2] = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in made[:2]]
    return [x.astype(own if i < 2 else state) for i, x in enumerate(made)]


@pytest.mark.parametrize("fmt", ["f32", "f64", "bf16", "f16"])
def test_cffi_calls_give_pythons_bits(fmt: str) -> None:
    a, b = arrays(fmt), arrays(fmt)
    assert getattr(lib, f"curvk_adam_step_{fmt}")(*map(pointer, a), ffi.NULL, 1000, *ADAM) == 0
    options = {"step": 3, "lr": 0.1, "weight_decay": 0.01, "decoupled": True, "grad_scale": 2.0}
    adam_step(*b[:4], max_v=b[4], **options)
    assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
    assert getattr(lib, f"curvk_adam_step_{fmt}")(*map(pointer, a[:4]), ffi.NULL, ffi.NULL, 1000, *ADAM) == 0
    adam_step(*b[:4], **options)
    assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
    assert (
        getattr(lib, f"curvk_sgd_step_{fmt}")(
            *map(pointer, a[:3]), ffi.NULL, 1000, 0.1, 0.9, 0.5, 0.01, 0, 0, 1, 0, 1.0
        )
        == 0
    )
    sgd_step(*b[:3], lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01, maximize=True)
    assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
    out = np.zeros(2)
    assert getattr(lib, f"curvk_sum_squares_{fmt}")(pointer(a[0]), 1000, 1.0, pointer(out)) == 0
    assert np.sqrt(out[0]) == global_norm([b[0]])


def test_lists_of_arrays() -> None:
    a, b = [arrays("f32", n, 4) for n in (10, 0, 7)], [arrays("f32", n, 4) for n in (10, 0, 7)]
    columns = list(zip(*a, strict=True))
    tables = [ffi.new("float*[]", [pointer(x) for x in column]) for column in columns]
    sizes = ffi.new("int64_t[]", [10, 0, 7])
    assert lib.curvk_adam_step_list_f32(*tables, ffi.NULL, ffi.NULL, sizes, 3, *ADAM) == 0
    for row in b:
        adam_step(*row, step=3, lr=0.1, weight_decay=0.01, decoupled=True, grad_scale=2.0)
    assert [x.tobytes() for row in a for x in row] == [x.tobytes() for row in b for x in row]


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("n", -1, "a size of 0 or more"),
        ("step", 0, "a number in [1, inf)"),
        ("lr", float("nan"), "a number in [0, inf)"),
        ("lr", float("inf"), "a number in [0, inf)"),
        ("beta1", 1.0, "a number in [0, 1)"),
        ("beta2", -0.1, "a number in [0, 1)"),
        ("eps", -1e-30, "a number in [0, inf)"),
        ("weight_decay", float("nan"), "a number in [0, inf)"),
        ("decoupled", 2, "a number in [0, 1]"),
        ("maximize", -1, "a number in [0, 1]"),
        ("grad_scale", 0.0, "a number in (0, inf)"),
    ],
)
def test_status_is_the_position_of_the_argument(name: str, value: float, interval: str) -> None:
    a = arrays("f32")
    before = [x.tobytes() for x in a]
    values = dict(zip(ADAM_NAMES, [*map(pointer, a), ffi.NULL, 1000, *ADAM], strict=True)) | {name: value}
    position = ADAM_NAMES.index(name) + 1
    assert lib.curvk_adam_step_f32(*values.values()) == position
    assert message() == f"curvk_adam_step_f32: argument '{name}': needs {interval}"
    assert [x.tobytes() for x in a] == before


def test_every_range_of_the_header_is_checked() -> None:
    """Zeroed arguments with one scalar out of its range: its position, whatever the kernel."""
    checked = 0
    for f in functions().values():
        if not f.format:
            continue
        allowed = [
            ffi.NULL if a.pointers else next(x for x in (1, 0, 2, 0.5) if a.range is None or x in a.range)
            for a in f.arguments
        ]
        for i, a in enumerate(f.arguments):
            if a.range is None:
                continue
            good = [0 if x.name in ("n", "count") else y for x, y in zip(f.arguments, allowed, strict=True)]
            bad = -1 if a.ctype == "int64_t" else float("nan")
            assert getattr(lib, f.name)(*good[:i], bad, *good[i + 1 :]) == i + 1, (f.name, a.name)
            assert message() == f"{f.name}: argument '{a.name}': needs a number in {a.range}"
            checked += 1
    assert checked >= 16 * 9


def test_levels_and_threads_are_shared() -> None:
    numbers = {"v2": 2, "v3": 3, "v4": 4, "armv8-a": 8, "default": 0}
    for level in curvk.simd_levels():
        assert lib.curvk_set_simd(numbers[level]) == 0
        assert curvk.get_simd() == level
    last = curvk.get_simd()
    assert lib.curvk_set_simd(77) == 1
    assert message() == "curvk_set_simd: argument 'level': not in this build or not run by this machine"
    assert curvk.get_simd() == last
    assert lib.curvk_set_num_threads(-1) == 1
    assert "argument 'n'" in message()
    if lib.curvk_openmp():
        assert lib.curvk_set_num_threads(3) == 0
        assert curvk.get_num_threads() == 3
    assert ffi.string(lib.curvk_version()).decode() == curvk.__version__
    assert lib.curvk_abi_version() >= 1
    assert lib.curvk_forked() == 0


def test_numba_compiled_code_calls_a_kernel() -> None:
    import numba

    step = lib.curvk_adam_step_f32

    @numba.njit
    def steps(p, g, m, v, max_v, origin, rounds):  # type: ignore[no-untyped-def]
        status = 0
        for k in range(rounds):
            status |= step(
                ffi.from_buffer(p), ffi.from_buffer(g), ffi.from_buffer(m), ffi.from_buffer(v), ffi.from_buffer(max_v),
                ffi.from_buffer(origin), p.size, k + 1, 0.1, 0.9, 0.999, 1e-8, 0.0, 0, 0, 1.0,
            )  # fmt: skip
        return status

    a, b = arrays("f32"), arrays("f32")
    origin = arrays("f32")[1]
    assert steps(*a, origin, 3) == 0
    for k in range(3):
        adam_step(*b[:4], max_v=b[4], origin=origin, step=k + 1, lr=0.1)
    assert [x.tobytes() for x in a] == [x.tobytes() for x in b]


PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include "curvk.h"
int main(void) {
    float p[3] = {1, 1, 1}, m[3] = {0}, v[3] = {0};
    const float g[3] = {1, -2, 0};
    if (curvk_adam_step_f32(p, g, m, v, NULL, NULL, 3, 1, 0.5, 0.9, 0.999, 1e-8, 0, 0, 0, 1.0) != CURVK_OK) return 1;
    printf("%g %g %g\n", p[0], p[1], p[2]);
    const int32_t status = curvk_adam_step_f32(p, g, m, v, NULL, NULL, 3, 1, -1, 0.9, 0.999, 1e-8, 0, 0, 0, 1.0);
    printf("%d %s\n", (int)status, curvk_status_message());
    return 0;
}
"""


@pytest.mark.parametrize("language", ["c", "c++"])
def test_programs_compile_link_and_run(tmp_path: Path, language: str) -> None:
    """The header is clean C99 and C++ under strict flags, and the library runs without Python."""
    name = os.environ.get("CC", "cc") if language == "c" else os.environ.get("CXX", "c++")
    compiler = shutil.which(name)
    if compiler is None:
        pytest.skip(f"no compiler {name} here")
    library = capi.library_path()
    source, binary = tmp_path / f"program.{'c' if language == 'c' else 'cpp'}", tmp_path / "program"
    source.write_text(PROGRAM)
    strict = ["-std=c99" if language == "c" else "-std=c++17", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    flags = [*strict, *os.environ.get("CFLAGS", "").split(), f"-I{capi.include_dir()}"]
    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # a sanitizer's, which compilers do without
    command = [compiler, *flags, str(source), str(library), f"-Wl,-rpath,{library.parent}", "-o", str(binary)]
    built = subprocess.run(command, capture_output=True, text=True, env=plain)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(binary)], capture_output=True, text=True, env=plain, timeout=60)
    expected = "0.5 1.5 1\n9 curvk_adam_step_f32: argument 'lr': needs a number in [0, inf)\n"
    assert done.stdout == expected, done.stderr
