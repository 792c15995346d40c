#!/usr/bin/env bash
# Fuzzes curvk: .ci/fuzz.sh for a fixed number of inputs, .ci/fuzz.sh SECONDS [TARGET...] for longer,
# .ci/fuzz.sh repeat TARGET FILE for one input. See docs/hardening.md.
# PYTHON is a Python with atheris, torch, scikit-learn and what builds curvk. Everything lies under .ci-work/.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$PWD/.ci-work python=${PYTHON:-python}
mkdir -p "$work/logs" "$work/fuzz-found"
export CURVK_REQUIRE_COMPILED=1
unset CURVK_BACKEND CURVK_SIMD CURVK_NUM_THREADS

rm -rf "$work/fuzz"
"$python" -m pip install -q . --no-deps --no-build-isolation --target "$work/fuzz" -C "cmake.args=--preset=fuzz" \
    -C "build-dir=.ci-work/build-fuzz" -C cmake.build-type=RelWithDebInfo -C install.strip=false

# The sanitizers' runtime and libFuzzer come with atheris and are loaded before Python; with libstdc++, whose throw they
# look up when they start. Leaks are not looked for: the interpreter keeps memory to its end by design.
runtime=$("$python" -c 'from importlib.util import find_spec; from pathlib import Path
print(Path(find_spec("atheris").origin).parents[1] / "asan_with_fuzzer.so")')
fuzz() {
    local name=$1
    shift
    PYTHONHASHSEED=0 LD_PRELOAD="$runtime $(clang++ -print-file-name=libstdc++.so)" PYTHONPATH=$work/fuzz PYTHONMALLOC=malloc \
        ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=64 OMP_NUM_THREADS=1 \
        "$python" tests/fuzz/run.py "$name" "-artifact_prefix=$work/fuzz-found/$name-" "$@" >"$work/logs/fuzz-$name.log" 2>&1 || {
        grep -av '^#[0-9]\|^INFO' "$work/logs/fuzz-$name.log" | cut -c 1-200 | head -n 80
        return 1
    }
    grep -a 'DONE\|Done\|Executed' "$work/logs/fuzz-$name.log" | sed "s/^/$name: /"
}

if [ "${1:-}" = repeat ]; then
    fuzz "$2" "$3"
elif [ $# -gt 0 ]; then
    seconds=$1
    shift
    [ $# -gt 0 ] || set -- binder files
    for name in "$@"; do
        mkdir -p "$work/fuzz-corpus/$name"
        fuzz "$name" "-max_total_time=$seconds" "$work/fuzz-corpus/$name"
    done
else
    fuzz binder -runs=15000 -seed=1 & first=$!  # side by side: each runs on one thread
    fuzz files -runs=2500 -seed=1
    wait "$first"
fi
