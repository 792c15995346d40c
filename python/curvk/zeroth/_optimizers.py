"""The methods on NumPy arrays: each names its parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from .._arrays import Array
from .._errors import message
from ._estimate import Central, Estimator, Forward, Population, Residual
from ._log import ZOLog
from ._method import Method, make_low_rank, make_scheme, make_stream
from ._select import Bandit, Everything, Layers, Selection, Smallest
from ._stream import one_of, real
from ._update import Tensors

Params = Mapping[str, Array] | Sequence[Array]
Closure = Callable[[Any], Any]


class _Optimizer:
    """Trains arrays by forward passes; a subclass names the method's parts.

    Attributes:
        lr, weight_decay: read by each step, free to change.
    """

    def __init__(self, params: Params, lr: float, weight_decay: float) -> None:
        self._name = type(self).__name__
        self.lr = real(self._name, "lr", lr, "a finite number >= 0", 0.0)
        self.weight_decay = real(self._name, "weight_decay", weight_decay, "a finite number >= 0", 0.0)
        if isinstance(params, Mapping):
            names, arrays = list(params), list(params.values())
        elif isinstance(params, (list, tuple)):
            names, arrays = [str(i) for i in range(len(params))], list(params)
        else:
            needed = "a mapping of arrays by name, or a list of arrays"
            raise TypeError(message(self._name, "params", type(params).__name__, needed))
        for name in names:
            if not isinstance(name, str):
                raise TypeError(message(self._name, "params", f"the name {name!r}", "strings as names"))
        self._named = isinstance(params, Mapping)
        self._tensors = Tensors(names, arrays, self._name)
        self._given = arrays
        plain = zip(arrays, self._tensors.arrays, strict=True)  # what stands for memmap and ml_dtypes arrays
        self._alike = all(given is own for given, own in plain)

    def _assemble(
        self,
        estimator: Estimator,
        selection: Selection,
        *,
        eps: float,
        seed: int,
        dist: str,
        restore: str,
        compat: str | None = None,
        low_rank: tuple[int, int] | None = None,
    ) -> None:
        stream = make_stream(seed, dist, self._name)
        if low_rank is not None:
            stream = make_low_rank(stream, *low_rank, estimator.n_probes, self._name)
        scheme = make_scheme(restore, self._tensors, stream, eps, self._name, compat)
        self._method = Method(scheme, estimator, selection, name=self._name)

    def step(self, closure: Closure, *, rows: Mapping[Any, Any] | None = None) -> float:
        """One step: evaluates the closure at displaced weights, moves the weights.

        Args:
            closure: takes the parameters, in a dict or list like the one given, and returns their loss: a number, a 0-d
                array or a tensor of one element. With restore="scratch" active arrays are displaced copies, to be used
                during the call only; else they are the arrays themselves, displaced. It must not write them. Its value
                should come from float32 or float64 sums: noise of 1e-7 in a loss is 5e-5 in g at eps 1e-3. The same
                batch must serve all calls of one step.
            rows: per name (or index) the rows of an array to perturb and update, such as the embedding rows that a
                batch uses: rows without influence on the loss only add variance. Weight decay applies to them alone.
                Needs restore="scratch", "copy" or "naive".

        Returns:
            The mean over the probes of the loss at theta + eps z_k. Where a loss is not finite: that one, and the step
            is skipped, logged and counted in `skipped`.

        Raises:
            TypeError, ValueError: a loss that is no scalar, a number out of range, no draw left. The weights are as
                they were. So they are where the closure raises.
        """
        chosen = None if rows is None else {self._index(key, "rows"): value for key, value in rows.items()}

        def evaluate(arrays: Sequence[Array]) -> Any:
            passed = list(arrays)
            if not self._alike:
                for i, (given, x) in enumerate(zip(self._given, arrays, strict=True)):
                    if x is self._tensors.arrays[i]:
                        passed[i] = given
                    elif isinstance(x, np.ndarray):
                        passed[i] = x.view(given.dtype)
            return closure(dict(zip(self._tensors.names, passed, strict=True)) if self._named else passed)

        return self._method.step(evaluate, lr=self.lr, weight_decay=self.weight_decay, rows=chosen)

    @property
    def log(self) -> ZOLog:
        """The run's log so far; `opt.log.save(path)` keeps it."""
        return self._method.log

    @property
    def skipped(self) -> int:
        """Steps skipped because a loss, or what follows from it, was not finite."""
        return self._method.skipped

    def load_log(self, log: ZOLog | str | os.PathLike[str]) -> None:
        """Goes on where the run of this log was, bit for bit as if it had not stopped.

        Args:
            log: of a run with this class and these settings (lr and weight_decay may differ), or its file. The weights
                must be the run's first ones, which are brought up to date, or its last ones.

        Raises:
            OSError, TypeError, ValueError: a log of another run or model, or a damaged file. Nothing has changed.
        """
        self._method.load_log(ZOLog.load(log) if isinstance(log, (str, os.PathLike)) else log)

    def _index(self, key: Any, argument: str) -> int:
        """A tensor's index from its name or index."""
        names = self._tensors.names
        if isinstance(key, str) and key in names:
            return names.index(key)
        if not isinstance(key, str) and hasattr(key, "__index__") and 0 <= key.__index__() < len(names):
            return int(key.__index__())
        raise ValueError(message(self._name, argument, repr(key), f"names or indices of the {len(names)} arrays"))

    def _layers(self, layers: Any) -> list[list[int]]:
        if not isinstance(layers, (list, tuple)) or any(not isinstance(x, (list, tuple)) for x in layers):
            needed = "a list of layers, each a list of names or indices"
            raise TypeError(message(self._name, "layers", f"{layers!r}"[:60], needed))
        return [[self._index(key, "layers") for key in layer] for layer in layers]

    def __repr__(self) -> str:
        header = self.log.header
        numbers = {"lr": self.lr, "weight_decay": self.weight_decay, **header["estimator"], **header["selection"]}
        low_rank = {key: header[key] for key in ("rank", "interval") if key in header}
        text = ", ".join(
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value!r}"
            for key, value in (numbers | low_rank).items()
            if key != "rule"
        )
        return f"{self._name}({len(self._tensors)} arrays, {text}, {self.log!r})"

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"{self._name} holds other objects' memory and cannot be copied or pickled; use its log")


class MeZO(_Optimizer):
    """Zeroth-order SGD in the memory of inference (Malladi et al. 2023)::

        g_k   = (L(theta + eps z_k) - L(theta - eps z_k)) / (2 eps)           k < n_probes
        theta <- theta - lr (mean_k g_k z_k + weight_decay theta)

    z_k is curvk's noise of draw step * n_probes + k and the parameter's name: the same on every machine, thread count
    and backend, and it is never stored. E g_hat = g up to O(eps^2).

    Args:
        params: a mapping of arrays by name, or a list of arrays (then named "0", "1", ...); written in place. float32,
            float64, float16 or bfloat16 (uint16 bit patterns or ml_dtypes); NumPy arrays or torch CPU tensors.
        lr: >= 0; 1e-6 to 1e-7 for full fine-tuning of large models, more for small ones.
        eps: of the probes, > 0; rounded to float32.
        seed: in [0, 2^64).
        weight_decay: >= 0; not applied where the name has "bias", "layer_norm" or "layernorm".
        restore: how weights are displaced. "scratch" (exact; the closure gets copies of the active arrays), "copy"
            (exact; in place from a saved copy), "grid" (exact; in place without memory, float32 only: weights are
            rounded once to multiples of a power of two, updates stochastically) or "naive" (in place by addition, as
            published: drifts, warns with the measured figure, cannot be replayed).
        dist: "normal", "normal_fast" (16-bit normals) or "rademacher" (+1 and -1: the least variance, the fastest).
        n_probes: probes averaged in a step; the variance falls as 1 / n_probes.
        points: 2, or 1 for residual feedback: g_k = (L_t(theta_t + eps z_k) - the last step's mean loss) / eps, one
            forward pass a probe; the first step only measures.
        compat: "mezo" repeats the published code's order of operations, unfused; needs restore="naive".

    Raises:
        TypeError, ValueError, BufferError: an argument that cannot be used; the text names it.

    >>> import numpy as np
    >>> theta = {"w": np.ones(3, np.float32)}
    >>> opt = MeZO(theta, lr=0.1)
    >>> for _ in range(100):
    ...     loss = opt.step(lambda p: 0.5 * np.sum(p["w"].astype(np.float64) ** 2))
    >>> bool(loss < 0.01)
    True
    """

    def __init__(
        self,
        params: Params,
        *,
        lr: float,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
        points: int = 2,
        compat: str | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        rule = Central if one_of(self._name, "points", points, (1, 2)) == 2 else Residual
        if compat and (n_probes != 1 or points != 2):
            found = f"{n_probes} probes of {points} points"
            raise ValueError(message(self._name, "compat", found, "one probe of two points, as in MeZO's code"))
        estimator = rule(eps, n_probes, self._name, rounded=not compat)
        parts: Any = {"eps": estimator.eps, "seed": seed, "dist": dist, "restore": restore, "compat": compat}
        self._assemble(estimator, Everything(), **parts)


class LeZO(_Optimizer):
    """MeZO on a fresh random subset of layers in each step (Wang et al. 2024, arXiv 2410.09823).

    Each step leaves `drop` of the layers out of probe and update, chosen uniformly; parameters in no layer (embeddings,
    head, final norm) always take part. A layer's noise is that of MeZO with the same seed, so with drop=0 the runs are
    the same bit for bit. A step touches only the active parameters. The estimate's signal-to-noise ratio is MeZO's.

    Args:
        params: as in `MeZO`.
        layers: the layers, each a list of names or indices of params.
        drop: an integer number of layers to leave out, or a fraction in [0, 1] of which floor(drop n_layers) are.
        rescale: "none" (published; E g_hat = k g on layers, k the kept fraction) or "ipw" (divided by k: E g_hat = g).
        lr, eps, seed, weight_decay, restore, dist, n_probes, points: as in `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument that cannot be used; the text names it.

    No code of the authors is public; this implements the published algorithm. drop=0.75 as default is ours.

    >>> import numpy as np
    >>> theta = {name: np.ones(2, np.float32) for name in ("embed", "h.0", "h.1", "h.2", "h.3")}
    >>> opt = LeZO(theta, layers=[["h.0"], ["h.1"], ["h.2"], ["h.3"]], lr=0.1)
    >>> loss = opt.step(lambda p: sum(float(x.sum()) for x in p.values()))
    >>> [name for name, x in theta.items() if (x != 1).any()], opt.log.active
    (['embed', 'h.0'], array([[ True, False, False, False]]))
    """

    def __init__(
        self,
        params: Params,
        *,
        layers: Sequence[Sequence[str | int]],
        lr: float,
        drop: float = 0.75,
        rescale: str = "none",
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
        points: int = 2,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        rule = Central if one_of(self._name, "points", points, (1, 2)) == 2 else Residual
        estimator = rule(eps, n_probes, self._name)
        seed = make_stream(seed, dist, self._name).seed
        selection = Layers(self._layers(layers), drop, seed, rescale, self._name)
        self._assemble(estimator, selection, eps=estimator.eps, seed=seed, dist=dist, restore=restore)


class AdaLeZO(_Optimizer):
    """LeZO with a bandit that learns which layers to draw (arXiv 2604.18264).

    Arms are the layers, one arm for parameters with "embed" in their name, and one for all the rest. Each step draws
    k = max(1, floor(fraction N)) of the N arms with replacement, with chances
    p = (1 - gamma) softmax((Q / max Q) / tau) + gamma / N, probes the arms drawn, and moves arm i, drawn c_i times, by
    -lr g z c_i min(1 / (k p_i), clip): the weights of importance sampling, whose mean is 1 where the clip does not act.
    Then Q_i <- (1 - alpha) Q_i + alpha abs(g) for the arms drawn.

    Args:
        params, layers: as in `LeZO`.
        fraction: of the arms drawn, in (0, 1].
        tau: temperature, > 0.
        gamma: share of uniform draws, in [0, 1].
        interval: steps from one p to the next.
        alpha: of Q's running mean, in (0, 1]; the published value is unknown.
        clip: bound of the importance weights, > 0; it biases arms with p_i < 1 / (clip k).
        lr, eps, seed, weight_decay, restore, dist, n_probes: as in `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument that cannot be used; the text names it.

    Q is kept in saved logs. Every Q starts at the first abs(g); the source leaves the start open. Its optional RMS
    scaling is not here.

    >>> import numpy as np
    >>> theta = {name: np.ones(2, np.float32) for name in ("embed", "h.0", "h.1", "head")}
    >>> opt = AdaLeZO(theta, layers=[["h.0"], ["h.1"]], lr=0.1)
    >>> loss = opt.step(lambda p: sum(float(x.sum()) for x in p.values()))
    >>> opt.log.active.shape, int(opt.log.active.sum())
    ((1, 4), 1)
    """

    def __init__(
        self,
        params: Params,
        *,
        layers: Sequence[Sequence[str | int]],
        lr: float,
        fraction: float = 0.1,
        tau: float = 0.1,
        gamma: float = 0.01,
        interval: int = 1,
        alpha: float = 0.1,
        clip: float = 10.0,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        estimator = Central(eps, n_probes, self._name)
        seed = make_stream(seed, dist, self._name).seed
        arms = Bandit.arms(self._layers(layers), self._tensors.names)
        numbers: Any = {"fraction": fraction, "tau": tau, "gamma": gamma, "interval": interval}
        selection = Bandit(arms, seed, **numbers, alpha=alpha, clip=clip, function=self._name)
        self._assemble(estimator, selection, eps=estimator.eps, seed=seed, dist=dist, restore=restore)


class LOZO(_Optimizer):
    """MeZO whose noise on matrices has low rank (Chen et al. 2024, arXiv 2410.07698)::

        z = U V^T / sqrt(rank)          U (m x rank) of each probe, V (n x rank) of each `interval` steps

    An array of 2 or more dimensions is a matrix of m = shape[0] rows and n = prod(shape[1:]) columns; vectors and
    scalars have MeZO's noise. Entries of z have variance 1 and E g_hat = g up to O(eps^2), so lr and eps mean what they
    mean in `MeZO`. For matrices the paper's eps is eps / sqrt(rank), its lr is lr, and that of its code lr / rank.

    Args:
        params: as in `MeZO`.
        rank: of z, >= 1.
        interval: steps that share V, >= 1.
        restore: "scratch", "copy" or "naive" as in `MeZO`, or "lazy": updates of matrices are gathered in a factor of
            m x rank numbers and written once per interval, or by `fold_`. Until then the arrays lag behind the weights;
            what the closure gets does not. Small updates of 16-bit weights add up in float32 before they are rounded.
        lr, eps, seed, weight_decay, dist, n_probes: as in `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument that cannot be used; the text names it.

    >>> import numpy as np
    >>> theta = {"w": np.ones((3, 4), np.float32)}
    >>> opt = LOZO(theta, lr=0.05, interval=10, restore="lazy")
    >>> for _ in range(305):
    ...     loss = opt.step(lambda p: 0.5 * np.sum(p["w"].astype(np.float64) ** 2))
    >>> bool(loss < 0.01)
    True
    >>> opt.fold_()
    >>> opt.log.folds
    [305]
    """

    def __init__(
        self,
        params: Params,
        *,
        lr: float,
        rank: int = 2,
        interval: int = 50,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        estimator = Central(eps, n_probes, self._name)
        parts: Any = {"eps": estimator.eps, "seed": seed, "dist": dist, "restore": restore}
        self._assemble(estimator, Everything(), **parts, low_rank=(rank, interval))

    def fold_(self) -> None:
        """With restore="lazy", writes the pending updates to the arrays, which then are the weights; else does nothing.

        The log keeps at which step, so that a replay folds there too.
        """
        self._method.fold()


class SparseMeZO(_Optimizer):
    """MeZO on the small weights only (Liu et al. 2024, arXiv 2402.15751).

    In each array only elements with abs(theta) <= h are probed and moved, h being its order statistic at `keep`. The
    mask follows the undisplaced weights in every step; h is taken anew every `mask_every` steps.

    Args:
        params: as in `MeZO`.
        keep: the share of elements at or below h, in (0, 1].
        mask_every: steps from one h to the next, >= 1; each costs a partial sort of all weights.
        restore: "scratch" or "copy", which know the undisplaced weights.
        lr, eps, seed, weight_decay, dist, n_probes: as in `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument that cannot be used; the text names it.

    >>> import numpy as np
    >>> theta = [np.array([1, 2, 3, 4], np.float32)]
    >>> opt = SparseMeZO(theta, lr=0.1, keep=0.5)
    >>> loss = opt.step(lambda p: float(p[0].sum()))
    >>> theta[0][2:]
    array([3., 4.], dtype=float32)
    """

    def __init__(
        self,
        params: Params,
        *,
        lr: float,
        keep: float = 0.75,
        mask_every: int = 1000,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        estimator = Central(eps, n_probes, self._name)
        selection = Smallest(self._tensors, keep, mask_every, self._name)
        self._assemble(estimator, selection, eps=estimator.eps, seed=seed, dist=dist, restore=restore)


class FZOO(_Optimizer):
    """Forward differences with Rademacher probes, divided by the losses' spread (arXiv 2506.09034)::

        theta <- theta - lr sum_k (L(theta + eps z_k) - L(theta)) z_k / (eps n_probes sigma)

    sigma is the standard deviation of the n_probes losses (divisor n_probes - 1); for a linear loss
    E sigma^2 = eps^2 ||g||^2, so lr is a step length: lr of MeZO = lr / (eps ||g||).

    Args:
        params, lr, eps, seed, weight_decay, restore: as in `MeZO`.
        dist: as in `MeZO`.
        n_probes: >= 2; a step takes n_probes + 1 forward passes.

    Raises:
        TypeError, ValueError, BufferError: an argument that cannot be used; the text names it.

    >>> import numpy as np
    >>> theta = [np.ones(3, np.float32)]
    >>> opt = FZOO(theta, lr=1e-4)
    >>> losses = [opt.step(lambda p: float((p[0].astype(np.float64) ** 2).sum())) for _ in range(200)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        params: Params,
        *,
        lr: float,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "rademacher",
        n_probes: int = 8,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        estimator = Forward(eps, n_probes, self._name)
        self._assemble(estimator, Everything(), eps=estimator.eps, seed=seed, dist=dist, restore=restore)


class ES(_Optimizer):
    """Evolution strategies with z-scored rewards, one-sided (Qiu et al. 2025, arXiv 2509.24372)::

        theta <- theta + lr / n_probes sum_k (R_k - mean R) / (std R + 1e-8) z_k         R_k = -L(theta + eps z_k)

    Each member's noise differs from array to array; the published code gives arrays of one shape the same.

    Args:
        params, eps, seed, weight_decay, restore, dist: as in `MeZO`. eps is the paper's sigma.
        lr: the paper's alpha; for a linear loss lr of MeZO = lr / (eps ||g||).
        n_probes: the population, >= 2.

    Raises:
        TypeError, ValueError, BufferError: an argument that cannot be used; the text names it.

    >>> import numpy as np
    >>> theta = [np.ones(3, np.float32)]
    >>> opt = ES(theta, lr=0.02)
    >>> losses = [opt.step(lambda p: float((p[0].astype(np.float64) ** 2).sum())) for _ in range(200)]
    >>> losses[-1] < losses[0] / 10
    True
    """

    def __init__(
        self,
        params: Params,
        *,
        lr: float,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 30,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        estimator = Population(eps, n_probes, self._name)
        self._assemble(estimator, Everything(), eps=estimator.eps, seed=seed, dist=dist, restore=restore)
