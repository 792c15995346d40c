"""How well sketches of l rows stand for A'A, against l.

    pip install "curvk[demo]"
    python examples/sketches/run.py --quick
    python examples/sketches/run.py --json results.json --figure sketch.png --table sketch.md

The error is |A'A - M| in the spectral norm over the squared Frobenius norm of A, where M is B'B of the sketch B, and
B'B + alpha I for robust Frequent Directions. Three matrices, their rows in order: scikit-learn's digits; normal rows
with singular values that fall like 1 / i; and a stream that drifts from sixty directions to five others. Methods that
draw at random have ten seeds. `optimum` is what the best matrix of rank l leaves out.
"""

import argparse
import json
import os
from pathlib import Path
from statistics import median

import curvk
import numpy as np
from curvk import sketch
from plot import draw
from tqdm import tqdm


def drift(n, d, seed):
    """Rows in sixty directions alike, a quarter of all; then in five others. All rows are about as long."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((d, d))).Q
    rows = np.zeros((n, d))
    rows[: n // 4, :60] = rng.standard_normal((n // 4, 60)) / np.sqrt(60)
    rows[n // 4 :, 60:65] = rng.standard_normal((n - n // 4, 5)) / np.sqrt(5)
    return rows @ turn


def matrices(names, quick):
    made, n = {}, 500 if quick else 10_000
    rng = np.random.default_rng(0)
    if "digits" in names:
        from sklearn.datasets import load_digits

        made["digits"] = "scikit-learn's digits, 1,797 x 64", load_digits().data[: 300 if quick else None]
    if "decay" in names:
        turn = np.linalg.qr(rng.standard_normal((200, 200))).Q
        made["decay"] = f"σ ~ 1/i, {n:,} x 200", rng.standard_normal((n, 200)) / np.arange(1, 201) @ turn
    if "drift" in names:
        made["drift"] = f"drift, {n:,} x 100", drift(n, 100, 1)
    return made


METHODS = {
    "CountSketch": lambda rows, d, seed: sketch.CountSketch(rows, d, seed),
    "SJLT, 4 blocks": lambda rows, d, seed: sketch.SJLT(rows, d, 4, seed),
    "IncrementalSVD": lambda rows, d, seed: sketch.IncrementalSVD(rows, d, block=1),
    "Frequent Directions": lambda rows, d, seed: sketch.FrequentDirections(rows, d),
    "robust Frequent Directions": lambda rows, d, seed: sketch.RobustFrequentDirections(rows, d),
}
RANDOM = ("CountSketch", "SJLT, 4 blocks")


def error(product, sketched):
    """How far M is from the product A'A, in the spectral norm."""
    B, ridge = sketched.sketch, getattr(sketched, "alpha", 0.0)
    return float(np.abs(np.linalg.eigvalsh(product - B.T @ B - ridge * np.eye(len(product)))).max())


def study(A, lengths, seeds, tick):
    """Errors over |A|_F^2 by method and l, a list for the seeds; the optimum, and the bound that FD knows."""
    product, total = A.T @ A, float(np.sum(A**2))
    squares = np.linalg.eigvalsh(product)[::-1]
    found = {"optimum": [[float(squares[rows]) / total] for rows in lengths], "FD's own bound": []}
    for title, make in METHODS.items():
        found[title] = []
        for rows in lengths:
            errors = []
            for seed in range(seeds if title in RANDOM else 1):
                sketched = make(rows, A.shape[1], seed)
                sketched.update(A)
                errors.append(error(product, sketched) / total)
            found[title].append(errors)
            if title == "Frequent Directions":
                found["FD's own bound"].append([sketched.delta / total])
            tick()
    return found


def table(tasks, length):
    """A row per method, a column per matrix, for one l."""
    titles = ["optimum", *METHODS, "FD's own bound"]
    rows = [
        f"| error at l = {length} | {' | '.join(t['about'] for t in tasks.values())} |",
        "|---|" + "--:|" * len(tasks),
    ]
    for title in titles:
        cells = [f"{median(t['errors'][title][t['lengths'].index(length)]):.2g}" for t in tasks.values()]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def write(path, save):
    """Writes to a temporary name and renames, so that the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows, two seeds, two lengths")
    names = ("digits", "decay", "drift")
    parser.add_argument("--matrices", nargs="+", choices=names, default=list(names))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args(argv)
    lengths, seeds = ([8, 16], 2) if args.quick else ([4, 8, 12, 16, 20, 24, 32, 40, 48, 56], 10)
    todo = matrices(args.matrices, args.quick)
    results = {"curvk": curvk.__version__, "seeds": seeds, "tasks": {}}
    with tqdm(total=len(todo) * len(METHODS) * len(lengths), disable=None) as bar:
        for name, (about, A) in todo.items():
            bar.set_description(about)
            errors = study(A, lengths, seeds, bar.update)
            results["tasks"][name] = {"about": about, "lengths": lengths, "errors": errors}
    text = table(results["tasks"], 16)
    print(text)
    if args.json:
        write(args.json, lambda path: path.write_text(json.dumps(results), encoding="utf-8"))
    if args.table:
        write(args.table, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    if args.figure:
        write(args.figure, lambda path: draw(results, path))


if __name__ == "__main__":
    main()
