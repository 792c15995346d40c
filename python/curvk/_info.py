"""`curvk info`: what runs in this installation, and why. Imports neither numba nor torch; takes well under a second."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import _cuda
from ._backend import REBUILD, backend_reason, core, get_backend, get_simd, simd_levels, version
from ._signatures import include_dir
from ._threads import get_num_threads, threads_reason

VARIABLES = (
    "CURVK_BACKEND",
    "CURVK_SIMD",
    "CURVK_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
)
PACKAGES = ("numpy", "numba", "cffi", "torch", "scikit-learn", "matplotlib", "tqdm")
COMPILERS = ("c++", "g++", "clang++", "nvcc")
_OPENMP_LIBRARY = re.compile(r"lib(?:gomp|omp|iomp5)\b[^/]*\.(?:so|dylib)[^/]*$")
_SYSFS = Path("/sys/devices/system/cpu")


def _read(path: str | Path) -> str:
    """The text of a file that may not exist on this system."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _outputs(commands: list[list[str]]) -> list[str]:
    """What the commands print; they run side by side, and one that fails or hangs gives no text."""
    started: list[subprocess.Popen[str] | None] = []
    for command in commands:
        try:
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        except OSError:
            started.append(None)
    texts = []
    for process in started:
        text = ""
        if process is not None:
            try:
                text = process.communicate(timeout=5)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        texts.append(text.strip())
    return texts


def _loaded_openmp() -> list[str]:
    """OpenMP runtimes mapped into this process."""
    if Path("/proc/self/maps").exists():
        paths = {line.split(maxsplit=5)[-1] for line in _read("/proc/self/maps").splitlines() if "/" in line}
        return sorted(path for path in paths if _OPENMP_LIBRARY.search(path))
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return sorted(pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp")


def _bundled_openmp(package: str) -> list[str]:
    """OpenMP runtimes that an installed package carries; finding the package does not import it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return []
    root = Path(spec.origin).parent
    folders = [root / "lib", root.parent / f"{package}.libs"]
    return sorted(str(f) for d in folders if d.is_dir() for f in d.iterdir() if _OPENMP_LIBRARY.search(f"/{f.name}"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compilers() -> list[dict[str, str]]:
    names = [*COMPILERS, *filter(None, [os.environ.get("CXX")])]
    found = [(name, path) for name in dict.fromkeys(names) if (path := shutil.which(name))]
    texts = _outputs([[path, "--version"] for _, path in found])
    compilers = []
    for (name, path), text in zip(found, texts, strict=True):
        lines = text.splitlines() or ["does not run"]
        line = next((x for x in lines if "release" in x), lines[0])  # nvcc gives its version in a later line
        compilers.append({"name": name, "path": path, "version": line})
    return compilers


def _cpus(text: str) -> int:
    """How many CPUs a Linux list such as 0-3,8 names."""
    ends = [part.split("-") for part in text.split(",") if part]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def _caches() -> list[dict[str, Any]]:
    """The data caches of the first CPU."""
    caches = []
    for folder in sorted((_SYSFS / "cpu0" / "cache").glob("index*")):
        if _read(folder / "type") != "Instruction" and (size := _read(folder / "size")):
            shared = _cpus(_read(folder / "shared_cpu_list"))
            caches.append({"level": int(_read(folder / "level")), "size": size, "shared_by_cpus": shared})
    return caches


def machine() -> dict[str, Any]:
    """The processor, its caches, and the CPUs this process may run on."""
    model, cores = "", 0
    if sys.platform == "darwin":
        model, physical = _outputs([["sysctl", "-n", k] for k in ("machdep.cpu.brand_string", "hw.physicalcpu")])
        cores = int(physical or 0)
    else:
        names = re.findall(r"^(?:model name|Model Name|Hardware)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
        model = names[0] if names else ""
        siblings = {_read(folder / "topology" / "thread_siblings_list") for folder in _SYSFS.glob("cpu[0-9]*")}
        cores = len(siblings - {""})
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "model": model or platform.processor() or "unknown",
        "cores": cores or None,
        "cpus": os.cpu_count(),
        "affinity": affinity,
        "caches": _caches(),
    }


_SERIAL = {"count": 1, "reason": "the twins of the compiled kernels are serial"}


def _simd_reason() -> str:
    if core is None:
        return "no compiled kernels"
    if get_simd() == os.environ.get("CURVK_SIMD"):
        return f"CURVK_SIMD={get_simd()}"
    return "the highest that this machine runs" if get_simd() == simd_levels()[-1] else "curvk.set_simd()"


def _notes(runtimes: list[str], bundled: list[str]) -> list[str]:
    notes = []
    if core is None:
        notes.append(f"No compiled kernels: the Numba twins give the same results on one thread. Rebuild: {REBUILD}")
    if len(runtimes) > 1:
        notes.append(
            f"{len(runtimes)} OpenMP runtimes are loaded in this process; each keeps threads of its own, which spin "
            "for a while after their work. OMP_WAIT_POLICY=passive calms them."
        )
    elif bundled and runtimes and Path(bundled[0]).resolve() != Path(runtimes[0]).resolve():
        notes.append("torch brings an OpenMP runtime of its own: a program that imports torch and curvk may load both.")
    return notes


def collect() -> dict[str, Any]:
    """Everything that `curvk info` says, ready for JSON."""
    loaded, bundled = _loaded_openmp(), _bundled_openmp("torch")
    library = (
        Path(core.__file__).parent / ("libcurvk.dylib" if sys.platform == "darwin" else "libcurvk.so") if core else None
    )
    date = int(core.openmp()) if core else 0
    serves = get_backend() in ("cpp", "emulator")
    return {
        "version": version,
        "kernels": {
            "compiled": core is not None,
            "backend": get_backend(),
            "backend_reason": backend_reason(),
            "rebuild": REBUILD,
            "library": str(library) if library else None,
            "include_dir": str(include_dir()),
        },
        "simd": {"level": get_simd(), "reason": _simd_reason(), "available": simd_levels()},
        "threads": {"count": get_num_threads(), "reason": threads_reason()} if serves else _SERIAL,
        "openmp": {"enabled": date > 0, "date": date or None, "loaded": loaded, "bundled_with_torch": bundled},
        "cuda": _cuda.report(),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
        "machine": machine(),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "compilers": _compilers(),
        "notes": _notes(loaded, bundled),
    }


Rows = list[tuple[str, list[str]]]


def _sections(report: dict[str, Any]) -> dict[str, Rows]:
    """The report as titled rows of label and lines."""
    kernels, simd, threads, openmp = (report[k] for k in ("kernels", "simd", "threads", "openmp"))
    hardware, python = report["machine"], report["python"]
    built = "yes" if kernels["compiled"] else f"no; to compile them: {kernels['rebuild']}"
    if openmp["enabled"]:
        spoken = f"on (specification of {openmp['date'] // 100}-{openmp['date'] % 100:02d})"
    else:
        spoken = "off" if kernels["compiled"] else "off: no compiled kernels"
    affinity = hardware["affinity"]
    cpus = f"{hardware['cpus']} CPUs" + (f", {hardware['cores']} cores" if hardware["cores"] else "")
    if affinity is not None:
        cpus += f"; this process may run on {len(affinity)}"
    caches = [f"L{c['level']} {c['size']}, shared by {c['shared_by_cpus']} CPU(s)" for c in hardware["caches"]]
    cuda = report["cuda"]
    driver = f"for CUDA {cuda['driver']}" if cuda["driver"] else "none"
    driver += f"; the library is built with CUDA {cuda['runtime']}" if cuda["runtime"] else ""
    devices = [
        f"{i}: {d['name']}, capability {d['capability']}, {d['memory_gib']} GiB" for i, d in enumerate(cuda["devices"])
    ]
    sections: dict[str, Rows] = {
        f"curvk {report['version']}": [
            ("compiled", [built]),
            ("backend", [f"{kernels['backend']}: {kernels['backend_reason']}"]),
            ("SIMD level", [f"{simd['level']}: {simd['reason']}; available: {', '.join(simd['available']) or 'none'}"]),
            ("threads", [f"{threads['count']}: {threads['reason']}"]),
            ("OpenMP", [spoken]),
            ("  loaded", openmp["loaded"] or ["none"]),
            ("library", [kernels["library"] or "none"]),
            ("headers", [kernels["include_dir"]]),
        ],
        "CUDA": [
            ("library", [cuda["library"] or "none"]),
            ("driver", [driver]),
            ("devices", devices or [f"none: {cuda['reason']}"]),
        ],
        "environment": [(name, [value or "not set"]) for name, value in report["environment"].items()],
        "machine": [
            ("CPU", [f"{hardware['model']} ({hardware['architecture']})"]),
            ("", [cpus]),
            ("caches", caches or ["unknown"]),
            ("system", [hardware["system"]]),
        ],
        "packages": [
            ("Python", [f"{python['version']} ({python['implementation']}), {python['executable']}"]),
            *((name, [found or "not installed"]) for name, found in report["packages"].items()),
        ],
        "compilers": [(c["name"], [c["version"], c["path"]]) for c in report["compilers"]] or [("", ["none found"])],
    }
    if openmp["bundled_with_torch"]:
        sections["packages"].append(("", [f"torch's OpenMP: {', '.join(openmp['bundled_with_torch'])}"]))
    if report["notes"]:
        sections["notes"] = [("", [note]) for note in report["notes"]]
    return sections


def render(report: dict[str, Any]) -> str:
    """The report as aligned text."""
    sections = _sections(report)
    width = max(len(label) for rows in sections.values() for label, _ in rows)
    blocks = []
    for title, rows in sections.items():
        indent = 0 if title == "notes" else width + 2
        lines = [title]
        for label, texts in rows:
            for i, text in enumerate(texts):
                lines.append(f"  {label if i == 0 else '':{indent}}{text}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="curvk info", description="Says what runs here and why.")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    arguments = parser.parse_args(argv)
    report = collect()
    print(json.dumps(report, indent=2) if arguments.json else render(report))
    return 0
