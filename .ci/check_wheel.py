"""Checks wheels as an index would serve them: `check_wheel.py WHEEL...` prints what each holds, fails on any problem.

Needs pyelftools (auditwheel brings it). The names of the sources come from the tree that this file lies in.
"""

import base64
import csv
import hashlib
import io
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 5_000_000  # bytes
DIST_INFO = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE", "sboms/auditwheel.cdx.json"}
# Where builds and people live; a path into one of these was true on the build machine only.
FOREIGN_PATHS = re.compile(rb"/(?:root|home|Users|tmp|private/var|var/tmp|project|builds?|work)/[\w.+/-]*")
SYSTEM_LIBRARIES = re.compile(r"lib(c|m|gcc_s|stdc\+\+|pthread|dl|rt)\.so\.\d+|ld-linux.*\.so\.\d+")

# The whole floating-point environment that numbers can show: denormals in and out, and the direction of rounding.
LOAD = """
import ctypes, sys
least, half_ulp = float("2.2250738585072014e-308"), float.fromhex("0x1p-53")
def environment():
    return [x.hex() for x in (least / 2, least / 2 * 2, 1 + half_ulp, -1 - half_ulp, 1 - half_ulp / 2)]
before = environment()
ctypes.CDLL(sys.argv[1])
after = environment()
sys.exit(f"{before} became {after}" if before != after else 0)
"""


def sources() -> set[str]:
    """What the tree puts into every wheel, by its name there."""
    python = ROOT / "python" / "curvk"
    found = {p for pattern in ("*.py", "*.pyi", "py.typed") for p in python.rglob(pattern)}
    named = {f"curvk/{p.relative_to(python).as_posix()}" for p in found} | {"curvk/_build.py"}
    include = ROOT / "csrc" / "include"
    return named | {f"curvk/include/{p.relative_to(include).as_posix()}" for p in include.rglob("*.h")}


class Wheel:
    """One wheel; each `check_` method adds to `problems`, and what is worth printing to `facts`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self.facts: list[str] = [f"{path.stat().st_size:,} bytes"]
        with zipfile.ZipFile(path) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
        name, version, *tags = path.stem.split("-")
        if name != "curvk" or len(tags) != 3:
            raise ValueError(f"{path.name}: not the file name of a curvk wheel")
        self.version = version
        self.python, self.abi, self.platform = tags
        self.dist_info = f"curvk-{version}.dist-info/"

    def check(self) -> list[str]:
        """All problems of this wheel."""
        if self.path.stat().st_size >= LARGEST:
            self.problems.append(f"{self.path.stat().st_size:,} bytes are not under {LARGEST:,}")
        for check in (self.check_tags, self.check_names, self.check_metadata, self.check_record, self.check_paths):
            check()
        libraries = {n: data for n, data in self.files.items() if data.startswith(b"\x7fELF")}
        if "macosx" not in self.platform:
            for name, data in sorted(libraries.items()):
                self.check_library(name, ELFFile(io.BytesIO(data)))
            self.check_runtime()
            self.check_load()
        return self.problems

    def check_tags(self) -> None:
        """The name's tags, those in WHEEL, and the module's: one Python, one ABI, a platform that an index takes."""
        if not re.fullmatch(r"cp3\d\d", self.python) or self.abi not in (self.python, self.python + "t"):
            self.problems.append(f"tags {self.python}-{self.abi} name no single CPython")
        if not re.match(r"(manylinux_2_\d+|musllinux_1_\d+|macosx_\d+_\d+)_", self.platform):
            self.problems.append(f"platform tag {self.platform} is none that an index takes")
        said = re.findall(r"^Tag: (.+)$", self.text("WHEEL"), re.M)
        wanted = [f"{self.python}-{self.abi}-{p}" for p in self.platform.split(".")]
        if sorted(said) != sorted(wanted):
            self.problems.append(f"WHEEL has the tags {said}, the file name {wanted}")
        if "Root-Is-Purelib: false" not in self.text("WHEEL"):
            self.problems.append("WHEEL does not say Root-Is-Purelib: false")
        modules = [n for n in self.files if re.match(r"curvk/_core\..*(so|pyd)$", n)]
        soabi = f"cpython-{self.abi.removeprefix('cp')}-"
        if len(modules) != 1 or not modules[0].startswith(f"curvk/_core.{soabi}"):
            self.problems.append(f"the module should be one _core.{soabi}*, found {modules}")

    def check_names(self) -> None:
        """Exactly the package, the headers, two libraries, the OpenMP runtime and the metadata."""
        library = "curvk/libcurvk." + ("dylib" if "macosx" in self.platform else "so")
        wanted = sources() | {library, self.dist_info + "licenses/LICENSE"}
        self.problems += [f"{name} is missing" for name in sorted(wanted - self.files.keys())]
        wanted |= {self.dist_info + name for name in DIST_INFO}
        others = sorted(self.files.keys() - wanted)
        expected = r"curvk/_core\..*\.so|curvk\.libs/libgomp-[0-9a-f]+\.so[.\d]*"
        self.problems += [f"{name} does not belong here" for name in others if not re.fullmatch(expected, name)]

    def check_metadata(self) -> None:
        """One version everywhere, that of pyproject.toml; the licence is the tree's."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        metadata = Parser().parsestr(self.text("METADATA"))
        build = re.search(r'^version = "(.+)"$', self.files.get("curvk/_build.py", b"").decode(), re.M)
        found = {self.version, metadata["Version"], build and build[1], project["version"]}
        if len(found) != 1:
            self.problems.append(f"the versions differ: {sorted(map(str, found))}")
        if "compiled = True" not in self.files.get("curvk/_build.py", b"").decode():
            self.problems.append("_build.py does not say that the kernels are compiled")
        if metadata["Requires-Python"] != project["requires-python"]:
            self.problems.append(f"Requires-Python is {metadata['Requires-Python']}")
        if self.text("licenses/LICENSE") != (ROOT / "LICENSE").read_text():
            self.problems.append("the licence is not the tree's")

    def check_record(self) -> None:
        """RECORD lists every file with its digest, and nothing outside the wheel."""
        rows = {row[0]: row[1] for row in csv.reader(io.StringIO(self.text("RECORD"))) if row}
        own = self.dist_info + "RECORD"
        for name in sorted(rows.keys() ^ self.files.keys()):
            self.problems.append(f"{name} is in " + ("RECORD only" if name in rows else "no line of RECORD"))
        for name, data in self.files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            if name != own and name in rows and rows[name] != f"sha256={digest}":
                self.problems.append(f"{name} is not the file of which RECORD has the digest")

    def check_paths(self) -> None:
        """No byte of any file names a folder of the machine that built it."""
        here = re.compile(re.escape(str(ROOT).encode()))
        for name, data in sorted(self.files.items()):
            for found in {m[0] for pattern in (FOREIGN_PATHS, here) for m in pattern.finditer(data)}:
                self.problems.append(f"{name} has a path of the build machine: {found.decode()[:100]}")

    def check_library(self, name: str, elf: ELFFile) -> None:
        """Run paths, needed libraries, stack, relocations, exported names."""
        stacks = [s for s in elf.iter_segments() if s["p_type"] == "PT_GNU_STACK"]
        if not stacks or stacks[0]["p_flags"] & 1:
            self.problems.append(f"{name} asks for an executable stack")
        dynamic = next(s for s in elf.iter_sections() if isinstance(s, DynamicSection))
        bundled = {Path(n).name for n in self.files if n.startswith("curvk.libs/")} | {"libcurvk.so"}
        for tag in dynamic.iter_tags():
            kind = tag.entry.d_tag
            if kind in ("DT_RPATH", "DT_RUNPATH"):
                for folder in (tag.rpath if kind == "DT_RPATH" else tag.runpath).split(":"):
                    if not re.fullmatch(r"\$ORIGIN(/\.\./curvk\.libs)?", folder):
                        self.problems.append(f"{name} looks for libraries in {folder or 'an empty path'}")
            elif kind == "DT_NEEDED" and tag.needed not in bundled and not SYSTEM_LIBRARIES.fullmatch(tag.needed):
                self.problems.append(f"{name} needs {tag.needed}, which is neither bundled nor of every system")
            elif kind == "DT_TEXTREL":
                self.problems.append(f"{name} has relocations in its code")
        exported = {
            s.name
            for s in elf.get_section_by_name(".dynsym").iter_symbols()
            if s["st_shndx"] != "SHN_UNDEF" and s["st_info"]["bind"] != "STB_LOCAL"
        }
        allowed = {
            # the C interface; and what _core calls of it in C++, in curvk's namespace; typeinfo and pieces of the
            # standard library that the compiler leaves visible
            "curvk/libcurvk.so": r"curvk_\w+|_ZN5curvk\w+",
            "curvk/_core": r"PyInit__core|_ZT[IS]\w+|_ZZ?NSt\w+",
        }.get("curvk/_core" if name.startswith("curvk/_core.") else name)
        if allowed is not None:
            others = sorted(s for s in exported if not re.fullmatch(allowed, s))
            self.problems += [f"{name} exports {symbol}" for symbol in others[:5]]
            self.facts.append(f"{Path(name).name} exports {len(exported)} names")
            if not exported:
                self.problems.append(f"{name} exports nothing")

    def check_runtime(self) -> None:
        """One OpenMP runtime, bundled, whose package and version the repair wrote down."""
        runtimes = [n for n in self.files if n.startswith("curvk.libs/libgomp-")]
        if len(runtimes) != 1:
            self.problems.append(f"one libgomp should be bundled, found {runtimes}")
            return
        versions = re.findall(rb"(?<![A-Z_])(?:GOMP|OMP)_\d+(?:\.\d+)*", self.files[runtimes[0]])
        newest = [
            max((v for v in versions if v.startswith(k)), key=numbers, default=b"").decode() for k in (b"G", b"O")
        ]
        boms = json.loads(self.files.get(self.dist_info + "sboms/auditwheel.cdx.json", b"{}")).get("components", [])
        packages = [f"{c['name']} {c['version']}" for c in boms if "gomp" in c["name"]]
        if not packages:
            self.problems.append("the repair did not write down which package libgomp came from")
        self.facts.append(f"{Path(runtimes[0]).name}: {', '.join(packages)} (up to {newest[0]}, {newest[1]})")

    def check_load(self) -> None:
        """Loading the library leaves the floating-point environment alone, as -ffast-math's start-up code would not."""
        if not self.platform.endswith(platform.machine()) or sys.platform != "linux":
            self.facts.append(f"not loaded: this machine is {sys.platform} {platform.machine()}")
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, data in self.files.items():
                if data.startswith(b"\x7fELF"):
                    Path(folder, name).parent.mkdir(exist_ok=True)
                    Path(folder, name).write_bytes(data)
            command = [sys.executable, "-I", "-c", LOAD, str(Path(folder, "curvk", "libcurvk.so"))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            self.problems.append(f"loading libcurvk.so fails or changes the floating-point environment: {last[0]}")

    def text(self, name: str) -> str:
        """A file of the metadata; empty if it is missing, which `check_names` or `check_record` reports."""
        return self.files.get(self.dist_info + name, b"").decode()


def numbers(version: bytes) -> list[int]:
    """The numbers of a symbol version, for comparing."""
    return [int(n) for n in re.findall(rb"\d+", version)]


def main(paths: list[str]) -> int:
    failed = not paths
    for path in map(Path, paths):
        wheel = Wheel(path)
        problems = wheel.check()
        print(path.name, *wheel.facts, sep="\n  ")
        for problem in problems:
            print(f"  PROBLEM: {problem}")
        failed = failed or bool(problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
