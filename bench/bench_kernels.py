"""The registry under pytest-benchmark: each kernel beside its peers, its answer checked once before it is timed."""

from __future__ import annotations

import os
from typing import Any

import curvk
import numpy as np
import pytest
from curvk._bench.registry import Case, Contender, cases
from curvk._bench.runner import check, differs, set_threads

LARGEST = int(os.environ.get("CURVK_BENCH_LARGEST", 1_000_000))
ROWS = [
    pytest.param(case, variant, fmt, n, peer, id=f"{case.op}-{variant}-{fmt}-{n}-{peer}")
    for case in cases().values()
    for variant, fmt, n in dict.fromkeys(
        (row.variant, fmt, n) for row in case.rows for fmt in row.formats for n in row.sizes if n <= LARGEST
    )
    for peer in ("curvk", *case.peers)
]


def contender(case: Case, variant: str, fmt: str, n: int, peer: str) -> Contender:
    """The kernel or a peer on fresh arrays, after its answer on others was compared with the truth."""
    options = case.variants[variant]

    def make(length: int) -> Any:
        return case.make(length, fmt, np.random.default_rng(0), options)

    if peer == "curvk":
        check(case, options, fmt, make(n))
        arrays = make(n)
        return Contender("curvk", lambda: case.run(arrays, options, fmt))
    trial = make(4099)
    found = case.peers[peer](trial, options, fmt)
    if found is None:
        pytest.skip(f"{peer} is not installed or does not do {variant} in {fmt}")
    assert not differs(case, options, fmt, found, trial, strict=False), f"{peer} computes something else"
    timed = case.peers[peer](make(n), options, fmt)
    assert timed is not None
    return timed


@pytest.mark.parametrize(("case", "variant", "fmt", "n", "peer"), ROWS)
def bench_kernel(benchmark: Any, case: Case, variant: str, fmt: str, n: int, peer: str) -> None:
    options = case.variants[variant]
    step = contender(case, variant, fmt, n, peer).step
    benchmark.group = f"{case.op}-{variant}-{fmt}-{n}"
    benchmark.extra_info.update(
        bytes_per_element=case.bytes(fmt, options),
        flops_per_element=case.flops(options),
        level=curvk.get_simd(),
        backend=curvk.get_backend(),
        threads=curvk.get_num_threads(),
    )
    set_threads(curvk.get_num_threads())
    benchmark(step)
