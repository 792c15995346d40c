"""Cholesky's factor and a triangle's product with itself, in place as LAPACK has them, but in pieces.

SciPy's LAPACK calls keep the GIL: one for 6,000 centers left Ctrl-C unheard for seconds. Here each step is a product
of below 50 ms, and the work is that of LAPACK's own blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack  # type: ignore[import-untyped]

Matrix = npt.NDArray[Any]

BLOCK = 256  # columns that are factorised at once
PRODUCTS = 5e8  # of one step


def lapack_for(name: str, like: Matrix) -> Any:
    """The routine of this name for an array's dtype."""
    return getattr(lapack, ("s" if like.dtype == np.float32 else "d") + name)


def _blocks(p: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, p)) for start in range(0, p, BLOCK))


def _pieces(begin: int, end: int, depth: int) -> Iterator[slice]:
    step = max(64, int(PRODUCTS / (BLOCK * max(depth, 1))))
    return (slice(i, min(i + step, end)) for i in range(begin, end, step))


def _put_lower(A: Matrix, b: slice, lower: Matrix) -> None:
    A[b, b] = np.tril(lower) + np.triu(A[b, b], 1)


def potrf(A: Matrix) -> int:
    """L with L L' = A in the lower triangle of A (p, p), of any order; the upper one stays as it is.

    Returns:
        0, or the number, from 1, of a row whose pivot is not positive; the lower triangle is then spoilt.
    """
    p = len(A)
    for b in _blocks(p):
        left = A[b, : b.start].T
        corner = np.asfortranarray(A[b, b] - A[b, : b.start] @ left)
        L, failed = lapack_for("potrf", A)(corner, lower=1, clean=1, overwrite_a=1)
        if failed:
            return int(b.start + failed)
        _put_lower(A, b, L)
        for rows in _pieces(b.stop, p, b.stop):
            rest = A[rows, b] - A[rows, : b.start] @ left
            A[rows, b] = lapack_for("trtrs", A)(L, rest.T, lower=1)[0].T
    return 0


def lauum(A: Matrix) -> None:
    """L'L in the lower triangle of A (p, p), which holds L; the upper one stays as it is."""
    p = len(A)
    for b in _blocks(p):  # row block b of the product takes the rows of L from there on, which are still L's
        L, below = np.tril(A[b, b]), A[b.stop :, b].T
        for columns in _pieces(0, b.start, p - b.start):
            A[b, columns] = L.T @ A[b, columns] + below @ A[b.stop :, columns]
        _put_lower(A, b, L.T @ L + below @ below.T)
