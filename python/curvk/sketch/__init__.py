"""Small matrices that stand for all rows of a large one, seen once and in any portions."""

from ._base import Sketch
from ._directions import FrequentDirections, RobustFrequentDirections
from ._hashing import SJLT, CountSketch
from ._randomized import randomized_svd
from ._svd import IncrementalSVD

__all__ = [
    "SJLT",
    "CountSketch",
    "FrequentDirections",
    "IncrementalSVD",
    "RobustFrequentDirections",
    "Sketch",
    "randomized_svd",
]
