"""check_wheel.py finds each fault that a sound wheel (of this machine, named by CURVK_WHEEL) is given here."""

import base64
import hashlib
import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from check_wheel import Wheel, sources
from elftools.elf.elffile import ELFFile

SOUND = Path(os.environ["CURVK_WHEEL"])
FILES = Wheel(SOUND).files
INFO = Wheel(SOUND).dist_info
CORE = next(name for name in FILES if name.startswith("curvk/_core.") and name.endswith(".so"))
GOMP = next(name for name in FILES if name.startswith("curvk.libs/"))
LIBRARY = "curvk/libcurvk.so"


def record(files: dict[str, bytes]) -> bytes:
    """A RECORD that fits the files, so that it is never the fault that is found by accident."""
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    return "".join([*lines, f"{INFO}RECORD,,\n"]).encode()


def problems(folder: Path, changes: dict[str, bytes | None], name: str = SOUND.name) -> list[str]:
    """What is said of the wheel with some files changed, added, or (None) removed."""
    files = {n: data for n, data in (FILES | changes).items() if data is not None}
    if INFO + "RECORD" not in changes:
        files[INFO + "RECORD"] = record({n: data for n, data in files.items() if n != INFO + "RECORD"})
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, data in files.items():
            archive.writestr(n, data)
    return Wheel(path).check()


def patched(folder: Path, name: str, *options: str) -> bytes:
    """A library of the wheel after patchelf."""
    file = folder / "patched.so"
    file.write_bytes(FILES[name])
    subprocess.run(["patchelf", *options, str(file)], check=True)
    return file.read_bytes()


def compiled(folder: Path, source: str, *options: str) -> bytes:
    """A library made here."""
    code, file = folder / "made.c", folder / "made.so"
    code.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(file), str(code), *options], check=True)
    return file.read_bytes()


def test_a_sound_wheel_has_no_problem(tmp_path):
    assert Wheel(SOUND).check() == []
    assert problems(tmp_path, {}) == []  # nor has the copy that the tests below doctor


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (SOUND.name.replace("manylinux_2_", "linux_", 1), "is none that an index takes"),
        (SOUND.name.replace("-cp3", "-cp4", 1), "name no single CPython"),
        (SOUND.name.replace("manylinux_2_", "manylinux_2_9", 1), "WHEEL has the tags"),
    ],
)
def test_tags(tmp_path, name, said):
    assert any(said in problem for problem in problems(tmp_path, {}, name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (LIBRARY, f"{LIBRARY} is missing"),
        ("curvk/include/curvk/optim.h", "curvk/include/curvk/optim.h is missing"),
        ("curvk/py.typed", "curvk/py.typed is missing"),
        (INFO + "licenses/LICENSE", f"{INFO}licenses/LICENSE is missing"),
        (CORE, "the module should be one _core."),
        (GOMP, "one libgomp should be bundled, found []"),
        (INFO + "sboms/auditwheel.cdx.json", "did not write down which package libgomp came from"),
    ],
)
def test_something_missing(tmp_path, name, said):
    assert any(said in problem for problem in problems(tmp_path, {name: None}))


@pytest.mark.parametrize(
    "name", ["tests/test_optim.py", "curvk/tests/test_optim.py", "bench/results/a.json", "curvk/x.o", "docs/index.md"]
)
def test_stray_file(tmp_path, name):
    assert problems(tmp_path, {name: b"1\n"}) == [f"{name} does not belong here"]


def test_all_sources_are_asked_for():
    assert {"curvk/__init__.py", "curvk/_build.py", "curvk/include/curvk.h", "curvk/include/curvk/optim.h"} <= sources()


def test_module_of_another_python(tmp_path):
    other = CORE.replace("cpython-3", "cpython-30")
    found = problems(tmp_path, {CORE: None, other: FILES[CORE]})
    assert len(found) == 1
    assert "the module should be one" in found[0]


def test_size(tmp_path):
    found = problems(tmp_path, {"curvk/data.bin": os.urandom(5_000_000)})
    assert any("bytes are not under 5,000,000" in problem for problem in found)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (INFO + "METADATA", b"\nVersion: ", b"\nVersion: 9.", "the versions differ"),
        ("curvk/_build.py", b'version = "', b'version = "9.', "the versions differ"),
        ("curvk/_build.py", b"compiled = True", b"compiled = False", "does not say that the kernels are compiled"),
        (INFO + "METADATA", b"Requires-Python: >=", b"Requires-Python: >=4", "Requires-Python is >=4"),
        (INFO + "licenses/LICENSE", b"BSD", b"MIT", "the licence is not the tree's"),
        (INFO + "WHEEL", b"Purelib: false", b"Purelib: true", "does not say Root-Is-Purelib: false"),
    ],
)
def test_metadata(tmp_path, name, old, new, said):
    assert old in FILES[name]
    found = problems(tmp_path, {name: FILES[name].replace(old, new, 1)})
    assert len(found) == 1
    assert said in found[0]


def test_record(tmp_path):
    rows = FILES[INFO + "RECORD"]
    for changed, said in [
        (rows.replace(b"curvk/cli.py,sha256=", b"curvk/cli.py,sha256=A", 1), "curvk/cli.py is not the file of which"),
        (rows.replace(b"curvk/cli.py,", b"../cli.py,", 1), "../cli.py is in RECORD only"),
        (rows.replace(b"curvk/cli.py,", b"/usr/cli.py,", 1), "curvk/cli.py is in no line of RECORD"),
    ]:
        assert changed != rows
        assert any(said in problem for problem in problems(tmp_path, {INFO + "RECORD": changed}))


@pytest.mark.parametrize("name", [LIBRARY, CORE, "curvk/cli.py", "curvk/_build.py", "curvk/include/curvk.h"])
@pytest.mark.parametrize("path", [b"/home/me/curvk/csrc/a.cpp", b"/tmp/build-env-x/a.h", b"/root/x"])
def test_path_of_the_build_machine(tmp_path, name, path):
    found = problems(tmp_path, {name: FILES[name] + b"\n# " + path + b"\n"})
    assert found == [f"{name} has a path of the build machine: {path.decode()}"]


@pytest.mark.parametrize("name", [LIBRARY, CORE])
def test_run_path_and_needed_library(tmp_path, name):
    found = problems(tmp_path, {name: patched(tmp_path, name, "--set-rpath", "$ORIGIN:$ORIGIN/../curvk.libs:/opt/lib")})
    assert found == [f"{name} looks for libraries in /opt/lib"]
    found = problems(tmp_path, {name: patched(tmp_path, name, "--add-needed", "libopenblas.so.0")})
    assert f"{name} needs libopenblas.so.0, which is neither bundled nor of every system" in found


@pytest.mark.parametrize("name", [LIBRARY, CORE, GOMP])
def test_executable_stack(tmp_path, name):
    elf = ELFFile(io.BytesIO(FILES[name]))
    index = next(i for i, s in enumerate(elf.iter_segments()) if s["p_type"] == "PT_GNU_STACK")
    flags = elf["e_phoff"] + index * elf["e_phentsize"] + 4  # in a 64-bit program header
    data = bytearray(FILES[name])
    data[flags] |= 1
    assert f"{name} asks for an executable stack" in problems(tmp_path, {name: bytes(data)})


def test_exported_names(tmp_path):
    made = compiled(tmp_path, "int curvk_one(void) { return 1; }\nint helper(void) { return 2; }\n")
    assert problems(tmp_path, {LIBRARY: made}) == [f"{LIBRARY} exports helper"]
    made = compiled(tmp_path, "static int one = 1;\nint *curvk_hidden(void);\n")
    assert problems(tmp_path, {LIBRARY: made}) == [f"{LIBRARY} exports nothing"]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="GCC has the start-up code of -ffast-math on x86-64")
def test_floating_point_environment(tmp_path):
    source = "int curvk_one(void) { return 1; }\n"
    start = subprocess.run(["cc", "-print-file-name=crtfastmath.o"], capture_output=True, text=True, check=True).stdout
    assert problems(tmp_path, {LIBRARY: compiled(tmp_path, source)}) == []
    (found,) = problems(tmp_path, {LIBRARY: compiled(tmp_path, source, start.strip(), "-s")})
    assert "changes the floating-point environment" in found
    rounding = "#include <fenv.h>\n__attribute__((constructor)) static void up(void) { fesetround(FE_UPWARD); }\n"
    (found,) = problems(tmp_path, {LIBRARY: compiled(tmp_path, rounding + source, "-lm")})
    assert "changes the floating-point environment" in found


def test_library_that_does_not_load(tmp_path):
    made = compiled(tmp_path, "int absent(void);\nint curvk_one(void) { return absent(); }\n", "-Wl,-z,now")
    (found,) = problems(tmp_path, {LIBRARY: made})
    assert "fails or changes" in found
    assert "absent" in found
