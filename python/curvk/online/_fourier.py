"""Random Fourier features of kernels of distances (FOGD)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels import gram, noise
from ._maps import FeatureMap, Keywords, Rows

# Normals g whose squares scale a frequency z / h: exp(-sqrt(q) / h) and the Matern kernels of nu = dof / 2 have
# Student's t with dof degrees of freedom for spectrum (1: Cauchy), imq is a mixture of Gaussians of precision g^2.
_DEGREES = {"gaussian": 0, "laplacian": 1, "matern32": 3, "matern52": 5, "imq": 1}

KERNELS = tuple(_DEGREES)
"""The kernels whose spectra are sampled here."""


def frequencies(d: int, kernel: Keywords, n_components: int, seed: int) -> Rows:
    """Draws U (n_components, d) of the kernel's spectrum: U_ji is a function of (seed, j, i), whatever its size.

    Args:
        d: columns of a row.
        kernel: keywords for `curvk.kernels.gram`, with one of `KERNELS`.
        n_components: rows.
        seed: in [0, 2^64).

    Source: Rahimi & Recht 2007: k(x, z) = E cos(u . (x - z)).
    """
    name = kernel.get("kernel", "gaussian")
    columns: Rows = np.empty((d, n_components))
    for i, column in enumerate(columns):  # 20 us each
        noise.fill(column, seed=seed, tensor=noise.tensor_word("columns of frequencies", "sampling"), offset=i << 32)
    U: Rows = np.ascontiguousarray(columns.T)
    degrees = _DEGREES[name]
    if degrees:
        g = np.empty((n_components, degrees))
        noise.fill(g, seed=seed, tensor=noise.tensor_word("frequencies' lengths", "sampling"))
        length = np.sqrt(np.square(g).sum(axis=1, keepdims=True))
        U = U * length if name == "imq" else U * np.sqrt(degrees) / np.maximum(length, 1e-9)  # a normal may be 0
    return U / float(kernel["bandwidth"])


class Fourier(FeatureMap):
    """phi(x) = [cos(U x), sin(U x)] for D random frequencies, the rows of U (D, d): E phi(x).phi(z) = D k(x, z).

    Args:
        d: columns of a row.
        kernel: keywords for `curvk.kernels.gram`, with one of `KERNELS`.
        n_components: D, frequencies. There are twice as many features.
        seed: of the frequencies, in [0, 2^64).

    The features have the published scale, abs(phi)^2 = D, without the factor D^(-1/2) that would make phi(x).phi(z) the
    kernel: it costs a product for each feature, and a gradient step with lr / D on these is the step with lr on those.
    A row costs D d multiplications and D sines and cosines. cos and sin of every row come of one call each on the row's
    own D numbers, so that its bits cannot depend on the rows beside it.

    Source: FOGD of Lu, Hoi, Wang, Zhao & Liu, JMLR 17(47), 2016. The authors' C++ pairs a fast sine with
    sign(u) sqrt(1 - sin^2), whose products are not the kernel (.304 where it is .654): here they are exact.
    """

    def __init__(self, d: int, kernel: Keywords, *, n_components: int = 100, seed: int = 0) -> None:
        self.d, self.n_components, self.seed = d, n_components, seed
        self.k, self.n_support, self.ready = 2 * n_components, n_components, True
        self.set_kernel(kernel)

    def features(self, X: Rows, out: Rows | None = None) -> Rows:
        out = np.empty((len(X), self.k)) if out is None else out
        angles = gram.block(X, self._U, kernel="linear")
        np.cos(angles, out=out[:, : self.n_components])
        np.sin(angles, out=out[:, self.n_components :])
        return out

    def bind(self, x: Rows, phi: Rows) -> Callable[[], object]:
        angles, D = np.empty((1, self.n_components)), self.n_components
        cos, sin = phi[:, :D], phi[:, D:]
        product = gram.bind(x, self._U, None, out=angles, kernel="linear")

        def features() -> None:
            product()
            np.cos(angles, out=cos)
            np.sin(angles, out=sin)

        return features

    def set_kernel(self, kernel: Keywords) -> None:
        self.kernel = dict(kernel)
        self._U = gram.Landmarks.of(frequencies(self.d, self.kernel, self.n_components, self.seed))

    def state(self) -> dict[str, Any]:
        return {"kernel": dict(self.kernel), "seed": self.seed}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        self.set_kernel(state["kernel"])
