"""What a wheel must bring, checked where it is installed: kernels, C interface, library and header for C programs."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import curvk
import numpy as np
from curvk import capi
from curvk.kernels.optim import adam_step

installed = Path(curvk.__file__).parent
assert Path(sys.prefix) in installed.parents, f"curvk comes from {installed}, not from this environment"
assert curvk.get_backend() == "cpp"

p = np.ones(3, np.float32)
g = np.array([1, -2, 0], np.float32)
m, v = np.zeros_like(p), np.zeros_like(p)
adam_step(p, g, m, v, step=1, lr=0.5)
assert p.tolist() == [0.5, 1.5, 1.0], p

out = np.zeros(2)
x = np.array([3.0, 4.0])
assert (
    capi.lib.curvk_sum_squares_f64(capi.ffi.from_buffer("double[]", x), 2, 1.0, capi.ffi.from_buffer("double[]", out))
    == 0
)
assert out.tolist() == [25.0, 0.0]

program = r"""
#include <stdio.h>
#include "curvk.h"
int main(void) {
    const double x[2] = {3, 4};
    double out[2];
    if (curvk_sum_squares_f64(x, 2, 1.0, out) != CURVK_OK) return 1;
    printf("%g %s\n", out[0], curvk_version());
    return 0;
}
"""
library = capi.library_path()
assert installed in library.parents
assert library.is_file()
assert (capi.include_dir() / "curvk" / "optim.h").is_file()
with tempfile.TemporaryDirectory() as scratch:
    source, binary = Path(scratch, "smoke.c"), Path(scratch, "smoke")
    source.write_text(program)
    link = [str(library), f"-Wl,-rpath,{library.parent}"]
    # the libraries that auditwheel brought along are found by the run path of libcurvk itself
    command = [
        os.environ.get("CC", "cc"),
        "-std=c99",
        "-Wall",
        "-Werror",
        f"-I{capi.include_dir()}",
        str(source),
        *link,
    ]
    if sys.platform == "linux":
        command.append("-Wl,--allow-shlib-undefined")
    subprocess.run([*command, "-o", str(binary)], check=True)
    output = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout.split()
assert output == ["25", curvk.__version__], output
print("the installed wheel works, in Python and in C")
