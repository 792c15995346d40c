"""`curvk demo`: real models on real handwritten digits, with and without gradients, by curvk and by the same in NumPy.

Light to import: what needs the extra `curvk[demo]` is imported once its packages are known to be there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDS = {"sklearn": "scikit-learn", "scipy": "scipy", "matplotlib": "matplotlib", "tqdm": "tqdm", "river": "river"}
LARGE = 10_000_000


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError(f"got {text}, needs an integer >= 0")
    return seed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curvk demo",
        description="Trains perceptrons on scikit-learn's 1,797 handwritten digits with curvk's fused optimizers, with "
        "Alice and late SAM, and without gradients with its FZOO, beside the same methods in NumPy; fits its kernel "
        "machines beside scikit-learn's; samples a density with SV-CMA-ES; learns from a stream, a space shuttle's "
        "sensors, with FORKS. Prints tables; writes demo.png, samplers.png, stream.png and demo.json. Uses no network.",
    )
    parser.add_argument("--quick", action="store_true", help="one small model, under 20 seconds")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the files (default: here)")
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of the split, weights and batches (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print demo.json's content instead of the table")
    return parser


def _machine() -> dict[str, Any]:
    import numpy as np

    from .. import get_backend, get_simd
    from .._bench.report import stamp
    from .._info import machine
    from .limits import choose_threads
    from .run import QUICK

    hardware = machine()
    threads, reason = choose_threads(QUICK[0].parameters)
    return {
        "backend": get_backend(),
        "simd": get_simd() if get_backend() == "cpp" else "none",
        "threads": threads,
        "threads_reason": reason,
        "cpu": hardware["model"],
        "cpus": len(hardware["affinity"] or []) or hardware["cpus"] or 1,
        "numpy": np.__version__,
        **stamp(),
    }


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    missing = [package for module, package in NEEDS.items() if find_spec(module) is None]
    if missing:
        print(f'curvk demo: not installed: {", ".join(missing)}; run: pip install "curvk[demo]"', file=sys.stderr)
        return 2
    out: Path = arguments.out
    try:  # now rather than after a minute of training
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        print(f"curvk demo: argument --out: cannot write to {out}: {error.strerror}", file=sys.stderr)
        return 2

    from threadpoolctl import threadpool_limits  # comes with scikit-learn
    from tqdm import tqdm

    from .. import __version__, threads
    from .._bench.report import write
    from . import curvature, digits, figure, kernels, report, stream, zeroth
    from .limits import MemoryLimit, large_array
    from .run import FULL, QUICK, RECIPES, as_row, run

    with threadpool_limits(1, user_api="blas"):
        machine = _machine()
    data = digits.load(arguments.seed)
    models = QUICK if arguments.quick else FULL
    total = sum(model.steps(data) for model in models) * len(RECIPES) + zeroth.steps(models[0], data)
    total += 3 * curvature.budget(models[0], data) + kernels.steps(arguments.quick) + stream.steps(arguments.quick)
    rows, trained = [], {}
    with (
        threads(machine["threads"]),
        threadpool_limits(1, user_api="blas"),
        tqdm(total=total, unit="step", disable=None, leave=False, dynamic_ncols=True) as bar,
    ):
        limit = MemoryLimit(machine["threads"])
        for model in models:
            for recipe in RECIPES:
                bar.set_description(f"{recipe.name} on {model.name}")
                row, trained[model.name, recipe.name] = run(model, recipe, data, limit, arguments.seed, bar.update)
                rows.append(row)
        bar.set_description(f"FZOO on {models[0].name}")
        no_gradients = zeroth.run(models[0], data, arguments.seed, bar.update)
        bar.set_description(f"Alice and SAM on {models[0].name}")
        several = curvature.run(models[0], data, arguments.seed, bar.update)
        bar.set_description("kernel machines")
        machines = kernels.run_machines(data, machine["threads"], arguments.quick, arguments.seed, bar.update)
        bar.set_description("samplers")
        samplers, points = kernels.run_samplers(arguments.quick, arguments.seed, bar.update)

        def tell(what: str) -> None:
            bar.set_description(what)
            bar.update()

        streamed, mistakes = stream.run(arguments.quick, arguments.seed, tell)
        bar.set_description("a large array")
        large = as_row(large_array(limit, LARGE, rounds=5 if arguments.quick else 9))
    result: dict[str, Any] = {
        "curvk": __version__,
        "machine": machine,
        "quick": arguments.quick,
        "seed": arguments.seed,
        "data": {"name": "scikit-learn load_digits", "train": len(data.y), "test": len(data.y_test)},
        "rows": rows,
        "zeroth_order": no_gradients,
        "curvature": several,
        "kernel_machines": machines,
        "samplers": samplers,
        "stream": streamed,
        "large_array": large,
    }
    result["notes"] = report.notes(result)
    result["files"] = [str(out / name) for name in ("demo.png", "samplers.png", "stream.png", "demo.json")]

    logits = trained[models[0].name, "Adam"].model.logits(data.x_test)
    write(out / "demo.png", lambda path: figure.draw(path, result, data.x_test, data.y_test, logits, "Adam"))
    write(out / "samplers.png", lambda path: figure.draw_samplers(path, samplers, points))
    write(out / "stream.png", lambda path: figure.draw_stream(path, streamed, mistakes))
    text = json.dumps(result, indent=2)
    write(out / "demo.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))

    if arguments.json:
        print(text)
    else:
        parts = [report.table(rows), report.curvature_table(several), report.zeroth_table(no_gradients)]
        parts += [report.machines_table(machines), report.samplers_table(samplers), report.stream_table(streamed)]
        parts.append(report.large_line(large))
        print("\n\n".join([*parts, report.paragraphs(result["notes"])]))
        print("\nwritten: " + ", ".join(result["files"]))
    return 0
