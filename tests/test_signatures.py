"""The header reader, and that everything which follows from the headers is there."""

from __future__ import annotations

import math
import shutil
import subprocess
from importlib import import_module

import pytest
from curvk import _backend
from curvk._signatures import Argument, Range, defined, functions, group, include_dir, ops, parse, read, typedefs

# ---- the reader -----------------------------------------------------------------------------------------------------


def only(text: str):  # type: ignore[no-untyped-def]
    (function,) = parse(text, "family")
    return function


def test_a_declaration() -> None:
    f = only("CURVK_ELEMENTWISE int32_t curvk_thing_f32(const float* x, float *out, int64_t n, double  scale);")
    assert (f.name, f.returns, f.op, f.format, f.elementwise) == ("curvk_thing_f32", "int32_t", "thing", "f32", True)
    assert [a.ctype for a in f.arguments] == ["const float*", "float*", "int64_t", "double"]
    assert [a.name for a in f.arguments] == ["x", "out", "n", "scale"]
    assert [a.pointers for a in f.arguments] == [1, 1, 0, 0]
    assert [a.written for a in f.arguments] == [False, True, False, False]
    assert [a.name for a in f.arrays] == ["x", "out"]
    assert [a.name for a in f.scalars] == ["n", "scale"]
    assert not f.is_list
    assert f.prototype() == "int32_t curvk_thing_f32(const float* x, float* out, int64_t n, double scale)"
    assert f.prototype("other").startswith("int32_t other(")


def test_declarations_that_are_no_kernels() -> None:
    f = only("CURVK_API const char* curvk_status_message(void); /* the last failure, if any */")
    assert (f.returns, f.arguments, f.format, f.elementwise) == ("const char*", (), None, False)
    assert parse("static int32_t curvk_hidden_f32(float* x);", "family") == []
    assert parse("/* CURVK_API int32_t curvk_gone_f32(float* x); */", "family") == []


def test_tables() -> None:
    f = only(
        "CURVK_API int32_t curvk_go_list_f64(double* const* p, const double* const* g, "
        "const int64_t* sizes, int64_t count, double lr);"
    )
    assert f.is_list
    assert f.op == "go"
    assert [a.pointers for a in f.arguments] == [2, 2, 1, 0, 0]
    assert [a.written for a in f.arguments] == [True, False, False, False, False]
    assert [a.element for a in f.arguments] == ["double", "double", "int64_t", "int64_t", "double"]
    assert [a.name for a in f.arrays] == ["p", "g"]
    assert [a.name for a in f.scalars] == ["lr"]


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, inf)", [0, 1e300], [-1e-300, math.inf, math.nan]),
        ("(0, inf)", [1e-300], [0, -1, math.nan]),
        ("(-inf, inf)", [-1e300, 0], [math.inf, -math.inf, math.nan]),
        ("[0, 1)", [0, 0.999], [1, -0.1]),
        ("(-0.5, 1]", [1, 0], [-0.5, 1.01]),
    ],
)
def test_ranges(text: str, inside: list[float], outside: list[float]) -> None:
    f = only(f"CURVK_API int32_t curvk_r_f32(float* x, int64_t n, double a /* {text} */, double b);")
    interval = f.arguments[2].range
    assert interval is not None
    assert str(interval) == text
    assert all(x in interval for x in inside)
    assert not any(x in interval for x in outside)
    assert f.arguments[3].range is None
    assert f.arguments[1].range is None


def test_range_in_c() -> None:
    assert Range(0, math.inf, True, False).as_c("x") == "x >= 0 && x < INFINITY"
    assert Range(-math.inf, 1, False, True).as_c("x") == "x > -INFINITY && x <= 1"
    assert Range(0.5, 1, False, False).as_c("x") == "x > 0.5 && x < 1"


def test_nullable_and_other_comments() -> None:
    f = only("CURVK_API int32_t curvk_o_f32(float* x, float* y /* or null */, /* of, both */ int64_t n /* > 0 */);")
    assert [a.nullable for a in f.arguments] == [False, True, False]
    assert [a.name for a in f.arguments] == ["x", "y", "n"]


def test_macros_are_expanded() -> None:
    text = """
#define SCALARS double lr /* [0, inf) */, \\
    int64_t first /* [0, 1] */
#define LIST(T, S) T* const* p, S* const* m /* or null */, const int64_t* sizes, int64_t count, SCALARS
#define FAMILY(FMT, T, S)                                          \\
    CURVK_ELEMENTWISE int32_t curvk_go_list_##FMT(LIST(T, S));     \\
    CURVK_ELEMENTWISE int32_t curvk_go_##FMT(T* p, S* m /* or null */, int64_t n, SCALARS);
FAMILY(f32, float, float)
FAMILY(bf16, uint16_t, float)
#undef FAMILY
"""
    found = parse(text, "family")
    assert [f.name for f in found] == [f"curvk_go_{kind}{fmt}" for fmt in ("f32", "bf16") for kind in ("list_", "")]
    listed, single = found[2:]
    assert listed.arguments[0] == Argument("p", "uint16_t* const*")
    assert listed.arguments[1] == Argument("m", "float* const*", None, True)
    assert listed.arguments[-2].range == single.arguments[-2].range == Range(0, math.inf, True, False)
    assert [a.name for a in single.arguments] == ["p", "m", "n", "lr", "first"]
    table = group(found)
    assert {op: {fmt: f.is_list for fmt, f in row.items()} for op, row in table.items()} == {
        "go": {"f32": True, "bf16": True}
    }


def test_definitions_of_a_kernel_file() -> None:
    text = """
template <class T> int32_t step_list(T* p, void* stream);
int32_t curvk_one_f64(double* x, void* stream) { return curvk_other_f64(x); }
#define STEPS(FMT, T)                                      \\
    int32_t curvk_step_list_##FMT(STEP_LIST(T), void* s) { \\
        return step_list<T>(p, s);                         \\
    }
STEPS(f32, float)
STEPS(bf16, uint16_t)
"""
    assert defined(text) == {"curvk_one_f64", "curvk_step_list_f32", "curvk_step_list_bf16"}


def test_arrays_per_row_and_per_some_elements() -> None:
    """The number may be a parameter of a macro; other comments keep their words."""
    text = """
#define LIST(T, N)                                                                      \\
    T* const* p, float* const* scale /* per N */, curvk_bf16* const* copy /* or null */, \\
    const int64_t* offset /* per row */, const int64_t* sizes, int64_t count, double a /* [0, 1] */
CURVK_ELEMENTWISE int32_t curvk_go_list_f32(LIST(float, 32));
CURVK_ELEMENTWISE int32_t curvk_go_list_f16(LIST(uint16_t, 256));
CURVK_API int32_t curvk_sum_list_f32(const float* const* x, /* N per 32 elements */ float* const* scale /* per 8 */);
"""
    single, half, total = parse(text, "family")
    assert [a.per for a in single.arrays] == [0, 32, 0, 0]
    assert [a.per for a in half.arrays] == [0, 256, 0, 0]
    assert [a.per for a in total.arrays] == [0, 8]
    assert [a.per_row for a in single.arrays] == [False, False, False, True]
    assert [a.nullable for a in single.arrays] == [False, False, True, False]
    assert [a.element for a in half.arrays] == ["uint16_t", "float", "curvk_bf16", "int64_t"]
    assert half.arguments[1].ctype == "float* const*"
    assert single.scalars[0].range == Range(0, 1, True, True)
    assert total.indexed  # the groups lie in C order


@pytest.mark.parametrize("per", ["N", "0", "rows", "x32"])
def test_a_number_of_elements_that_is_none_is_an_error(per: str) -> None:
    with pytest.raises(ValueError, match=f"the headers say 'per {per}'"):
        parse(f"CURVK_API int32_t curvk_x_list_f32(float* const* p, float* const* s /* per {per} */);", "family")


def test_types_of_the_headers_own() -> None:
    assert typedefs() == ["typedef uint16_t curvk_bf16;"]


def test_a_macro_defined_by_itself_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not settle"):
        parse("#define A A A\nCURVK_API int32_t curvk_x_f32(A);", "family")


def test_the_installed_headers_are_the_ones_read() -> None:
    assert {f.name: f for f in read(include_dir())} == functions()
    assert {"adam_step", "sgd_step", "sum_squares", "loss_window", "to_float32", "from_float32"} <= set(ops())
    assert set(ops()["adam_step"]) == {"f32", "f64", "bf16", "f16"}


# ---- what follows from the headers ----------------------------------------------------------------------------------


def test_every_kernel_has_a_twin() -> None:
    for op, kernels in ops().items():
        for kernel in kernels.values():
            module = import_module(f"curvk._loops.{kernel.family}")
            assert callable(getattr(module, op, None)), f"curvk._loops.{kernel.family} lacks {op}"


def test_every_kernel_has_a_case() -> None:
    """The registry is where tests, the benchmark and the docs find a kernel."""
    from curvk._bench.registry import cases

    assert set(ops()) <= set(cases())


def test_every_family_has_a_public_module() -> None:
    for kernels in ops().values():
        for kernel in kernels.values():
            assert import_module(f"curvk.kernels.{kernel.family}").__doc__


@pytest.mark.skipif(_backend.core is None, reason="this build has no library")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_library_exports_what_the_headers_declare() -> None:
    from curvk.capi import library_path

    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--extern-only", "--format=posix", str(library_path())],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    exported = {line.split()[0] for line in listing.splitlines()}
    inner = {name for name in exported if "run_strided" in name}  # the binder's block copier
    assert len(inner) == 1
    assert exported - inner == set(functions())
