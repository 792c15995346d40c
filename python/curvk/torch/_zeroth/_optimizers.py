"""The methods of `curvk.zeroth` as `torch.optim.Optimizer` subclasses: each names its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..._errors import message
from ...zeroth._estimate import Central, Estimator, Forward, Population, Residual
from ...zeroth._method import make_low_rank
from ...zeroth._restore import Scheme
from ...zeroth._select import Bandit, Everything, Layers, Selection, Smallest
from ...zeroth._stream import one_of
from ...zeroth._update import Noise
from ._base import Options, ZerothOptimizer, given
from ._hooks import Block, Windows
from ._layers import Layers as LayersArgument
from ._lazy import Lazy, LinearWindows


class MeZO(ZerothOptimizer):
    """Zeroth-order SGD: trains a module by forward passes, in the memory of inference (Malladi et al. 2023)::

        g_k   = (L(theta + eps z_k) - L(theta - eps z_k)) / (2 eps)           k < n_probes
        theta <- theta - lr (mean_k g_k z_k + weight_decay theta)

    z_k is curvk's noise of draw step * n_probes + k and the parameter's name: the same on every machine, thread count
    and backend, and it is never stored. E g_hat = g up to O(eps^2). The steps equal those of `curvk.zeroth.MeZO` on the
    parameters by name. The log of a run, `opt.log`, rebuilds its weights bit for bit: `opt.log.replay(model)`.

    Args:
        model: all its parameters that require a gradient when the optimizer is made are trained, in place. float32,
            float64, bfloat16 or float16, on the CPU or on CUDA devices, there in C order. Tied ones take their first
            name. Buffers are the model's business.
        lr: >= 0; 1e-6 to 1e-7 for full fine-tuning of large models, more for small ones. A number or a tensor of one
            element; each step reads it from the groups, so schedulers work, but it must be one for both.
        eps: of the probes, > 0; rounded to float32.
        seed: in [0, 2^64).
        weight_decay: >= 0. The second group holds the parameters that do not decay: those whose name has "bias",
            "layer_norm" or "layernorm".
        restore: how weights are displaced. "scratch" (exact; hooks show each layer its displaced weights in a buffer
            of the largest one, and theta is never touched; of an embedding only the rows looked up are made; the
            closure must call each module with trained parameters once, and read their weights nowhere else), "copy"
            (exact; in place from a saved copy), "grid" (exact; in place without memory, float32 only, weights rounded
            once to multiples of a power of two, updates rounded stochastically) or "naive" (in place by addition as
            published; drifts, warns with the measured figure, cannot be replayed).
        dist: "normal", "normal_fast" (16-bit normals) or "rademacher" (+1 and -1: the least variance, the fastest).
        n_probes: probes averaged in a step; the variance falls as 1 / n_probes.
        points: 2, or 1 for residual feedback: g_k = (L_t(theta_t + eps z_k) - the last step's mean loss) / eps, one
            forward pass a probe; the first step only measures.
        active_rows: of embeddings outside of layers, perturb and update only the rows that the step's batch looks up:
            the same expectation, less variance. A row that is not looked up does not decay. The log takes 4 bytes for
            each row. Needs restore="scratch" and tables that nothing else reads (not tied). Embeddings with max_norm
            take part whole.
        process_group: a `torch.distributed` group whose processes train the same model together. They exchange losses
            and checksums only, `bytes_per_step` bytes each, and stay bit-identical.
        parallel: "probes": each process evaluates n_probes probes of its own on the same batch, and the step is that of
            one process with n_probes for each. "data": each evaluates the same probes on a batch of its own, and losses
            are averaged.
        compat: "mezo" repeats the published code's order of operations, unfused; needs restore="naive", and the CPU.

    Raises:
        TypeError, ValueError, BufferError: an argument or parameter that cannot be used; the text names it.

    On CUDA devices the noise, and what a step does with the same losses, are those of the CPU bit for bit, so that a
    log made on one replays on the other. A step waits for its losses and, with restore="scratch", for the rows that an
    embedding looks up; the CRC-32 of the weights, before the first step and in a saved log, reads them all to the host.

    Dropout should be off (model.eval()), as both losses of a probe must see the same network. The hooks of
    restore="scratch" break the graphs of `torch.compile`; use "copy" or "grid" with it.

    >>> import torch, curvk.torch
    >>> model = torch.nn.Linear(2, 1)
    >>> x = torch.randn(64, 2)
    >>> opt = curvk.torch.MeZO(model, lr=0.05)
    >>> losses = [opt.step(lambda: (model(x) - x.sum(1, keepdim=True)).square().mean()) for _ in range(200)]
    >>> losses[-1] < 0.01
    True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float | Tensor,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
        points: int = 2,
        active_rows: bool = False,
        process_group: Any = None,
        parallel: str = "probes",
        compat: str | None = None,
    ) -> None:
        super().__init__(model, given(locals()))

    def _parts(self, options: Options, seed: int) -> tuple[Estimator, Selection]:
        compat, points = options["compat"], options["points"]
        if compat and (self._n_probes != 1 or points != 2):
            found = f"{self._n_probes} probes of {points} points"
            raise ValueError(message(self._name, "compat", found, "one probe of two points, as in MeZO's code"))
        return self._differences(options, rounded=not compat), Everything()

    def _differences(self, options: Options, rounded: bool = True) -> Estimator:
        rule = Central if one_of(self._name, "points", options["points"], (1, 2)) == 2 else Residual
        return rule(options["eps"], self._n_probes, self._name, rounded)


class LeZO(MeZO):
    """MeZO on a fresh random subset of layers in each step (Wang et al. 2024, arXiv 2410.09823).

    Each step leaves `drop` of the layers out of probe and update, chosen uniformly; parameters in no layer (embeddings,
    head, final norm, and those that two layers share) always take part. A layer's noise is that of MeZO with the same
    seed, so with drop=0 the runs are the same bit for bit. A step touches the active parameters only; its estimate has
    the signal-to-noise ratio of MeZO's.

    Args:
        model: as in `MeZO`.
        drop: an integer number of layers to leave out, or a fraction in [0, 1] of which floor(drop n_layers) are.
        layers: the layers, as modules or their names; found by `find_layers` if not given.
        rescale: "none" (published; E g_hat = k g on layers, k the kept fraction) or "ipw" (divided by k: E g_hat = g).
        lr, eps, seed, weight_decay, restore, dist, n_probes, points, active_rows, process_group, parallel: as in
            `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument or parameter that cannot be used, or no layers found.

    No code of the authors is public; this implements the published algorithm. drop=0.75 as default is ours.

    >>> import torch, curvk.torch
    >>> block = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(block, 4).eval()
    >>> x = torch.randn(3, 5, 8)
    >>> opt = curvk.torch.LeZO(model, lr=1e-3)
    >>> loss = opt.step(lambda: model(x).square().mean())
    >>> opt.layers, opt.log.active.sum()
    (['layers.0', 'layers.1', 'layers.2', 'layers.3'], np.int64(1))
    """

    _needs_layers: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float | Tensor,
        drop: float = 0.75,
        layers: LayersArgument | None = None,
        rescale: str = "none",
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
        points: int = 2,
        active_rows: bool = False,
        process_group: Any = None,
        parallel: str = "probes",
    ) -> None:
        ZerothOptimizer.__init__(self, model, given(locals()))

    def _parts(self, options: Options, seed: int) -> tuple[Estimator, Selection]:
        selection = Layers(self._units, options["drop"], seed, options["rescale"], self._name)
        return self._differences(options), selection


class AdaLeZO(ZerothOptimizer):
    """LeZO with a bandit that learns which layers to draw (arXiv 2604.18264).

    Arms are the layers, one arm for parameters with "embed" in their name, and one for all the rest. Each step draws
    k = max(1, floor(fraction N)) arms with replacement, with chances
    p = (1 - gamma) softmax((Q / max Q) / tau) + gamma / N, probes the arms drawn, and moves arm i, drawn c_i times, by
    -lr g z c_i min(1 / (k p_i), clip): the weights of importance sampling, whose mean is 1 where the clip does not act.
    Then Q_i <- (1 - alpha) Q_i + alpha abs(g).

    Args:
        model, layers: as in `LeZO`.
        fraction: of the arms drawn, in (0, 1].
        tau: temperature, > 0.
        gamma: share of uniform draws, in [0, 1].
        interval: steps from one p to the next.
        alpha: of Q's running mean, in (0, 1]; the published value is unknown.
        clip: bound of the importance weights, > 0; it biases arms with p_i < 1 / (clip k).
        lr, eps, seed, weight_decay, restore, dist, n_probes, active_rows, process_group, parallel: as in `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument or parameter that cannot be used, or no layers found.

    Every Q starts at the first abs(g), which the source leaves open; its optional RMS scaling is not here.

    >>> import torch, curvk.torch
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(5)))
    >>> opt = curvk.torch.AdaLeZO(model, lr=1e-3)
    >>> loss = opt.step(lambda: model(torch.ones(2, 4)).square().mean())
    >>> opt.log.active.shape, opt.log.active.sum()
    ((1, 4), np.int64(1))
    """

    _needs_layers: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float | Tensor,
        layers: LayersArgument | None = None,
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
        active_rows: bool = False,
        process_group: Any = None,
        parallel: str = "probes",
    ) -> None:
        super().__init__(model, given(locals()))

    def _parts(self, options: Options, seed: int) -> tuple[Estimator, Selection]:
        arms = Bandit.arms(self._units, self._tensors.names)
        numbers = {key: options[key] for key in ("fraction", "tau", "gamma", "interval", "alpha", "clip")}
        return Central(options["eps"], self._n_probes, self._name), Bandit(arms, seed, **numbers, function=self._name)


class LOZO(ZerothOptimizer):
    """MeZO whose noise on matrices has low rank (Chen et al. 2024, arXiv 2410.07698)::

        z = U V^T / sqrt(rank)          U (m x rank) of each probe, V (n x rank) of each `interval` steps

    A parameter of 2 or more dimensions is a matrix of m = shape[0] rows and n = prod(shape[1:]) columns; vectors and
    scalars have MeZO's noise. Entries of z have variance 1 and E g_hat = g up to O(eps^2), so lr and eps mean what they
    mean in `MeZO`. For matrices the paper's eps is eps / sqrt(rank), its lr is lr, and that of its code lr / rank.

    Args:
        model: as in `MeZO`.
        rank: of z, >= 1.
        interval: steps that share V, >= 1.
        restore: "scratch" (each module by itself), "copy" or "naive" as in `MeZO`, or "lazy": updates of matrices are
            gathered in a factor of m x rank numbers and written once per interval, or by `fold_`; until then the
            parameters lag behind the weights that the closure sees. A plain nn.Linear adds the factors' share to its
            output, so its weight is neither displaced nor written in a step, and a probe too small for 16-bit weights
            still counts; matrices of other modules are displaced in a buffer.
        lr, eps, seed, weight_decay, dist, n_probes, process_group, parallel: as in `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument or parameter that cannot be used; the text names it.

    For parameters on a CUDA device the factors, rank (m + n) numbers a matrix, are drawn on the host and copied there.
    With restore="lazy" call `fold_` before the model is used or saved for anything but to go on with this optimizer.

    >>> import torch, curvk.torch
    >>> model = torch.nn.Linear(8, 4)
    >>> x = torch.randn(64, 8)
    >>> opt = curvk.torch.LOZO(model, lr=0.01, rank=2, interval=50, restore="lazy")
    >>> losses = [opt.step(lambda: (model(x) - x[:, :4]).square().mean()) for _ in range(420)]
    >>> losses[-1] < losses[0] / 2
    True
    >>> opt.fold_()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float | Tensor,
        rank: int = 2,
        interval: int = 50,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
        process_group: Any = None,
        parallel: str = "probes",
    ) -> None:
        super().__init__(model, given(locals()))

    def _parts(self, options: Options, seed: int) -> tuple[Estimator, Selection]:
        return Central(options["eps"], self._n_probes, self._name), Everything()

    def _find_layers(self, given: Any) -> dict[str, nn.Module]:
        return {}

    def _stream(self, seed: Any) -> Noise:
        o = self._options
        return make_low_rank(super()._stream(seed), o["rank"], o["interval"], self._n_probes, self._name)

    def _made_windows(self, blocks: Sequence[Block]) -> Windows:
        kind = LinearWindows if self._options["restore"] == "lazy" else Windows
        return kind(self._tensors.names, self._params, blocks, "restore='copy'")

    def _windows_scheme(self, stream: Noise) -> Scheme:
        if isinstance(self._windows, LinearWindows):
            return Lazy(self._tensors, stream, self._windows)
        return super()._windows_scheme(stream)

    def fold_(self) -> None:
        """With restore="lazy", writes the pending updates to the parameters, which then are the weights; else nothing.

        The log keeps at which step, so that a replay folds there too.

        Raises:
            TypeError, ValueError: parameters that something else changed since the last step.
        """
        self._go_on()
        self._check_unchanged()
        self._method.fold()
        self._seen = self._versions()

    def restart(self, seed: int | None = None) -> None:
        """Begins a new run and log with the present weights; pending updates are folded first.

        Where something else wrote to a parameter since the last step, pending updates of all are dropped instead.

        Args:
            seed: of its noise; by default the present one plus 1, since the old run's noise would come again.
        """
        if self._log is not None and self._log.end and self._log.end["digest"] == self._tensors.digest():
            self._go_on()
        if self._seen == self._versions():  # else the weights are what something else wrote
            self._method.fold()
        super().restart(seed)


class SparseMeZO(ZerothOptimizer):
    """MeZO on the small weights only (Liu et al. 2024, arXiv 2402.15751).

    In each parameter only elements with abs(theta) <= h are probed and moved, h being its order statistic at `keep`.
    The mask follows the undisplaced weights in every step; h is taken anew every `mask_every` steps.

    Args:
        model: as in `MeZO`.
        keep: the share of elements at or below h, in (0, 1].
        mask_every: steps from one h to the next, >= 1; each costs a partial sort of all weights.
        restore: "scratch" or "copy", which know the undisplaced weights.
        lr, eps, seed, weight_decay, dist, n_probes, active_rows, process_group, parallel: as in `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument or parameter that cannot be used; the text names it.

    >>> import torch, curvk.torch
    >>> model = torch.nn.Linear(4, 1, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> opt = curvk.torch.SparseMeZO(model, lr=1e-2, keep=0.5)
    >>> loss = opt.step(lambda: model(torch.ones(4)).sum())
    >>> model.weight.data[0, 2:]
    tensor([3., 4.])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float | Tensor,
        keep: float = 0.75,
        mask_every: int = 1000,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 1,
        active_rows: bool = False,
        process_group: Any = None,
        parallel: str = "probes",
    ) -> None:
        super().__init__(model, given(locals()))

    def _parts(self, options: Options, seed: int) -> tuple[Estimator, Selection]:
        selection = Smallest(self._tensors, options["keep"], options["mask_every"], self._name)
        return Central(options["eps"], self._n_probes, self._name), selection


class FZOO(ZerothOptimizer):
    """Forward differences with Rademacher probes, divided by the losses' spread (arXiv 2506.09034)::

        theta <- theta - lr sum_k (L(theta + eps z_k) - L(theta)) z_k / (eps n_probes sigma)

    sigma is the standard deviation of the n_probes losses (divisor n_probes - 1); for a linear loss
    E sigma^2 = eps^2 ||g||^2, so lr is a step length: lr of MeZO = lr / (eps ||g||).

    Args:
        model: as in `MeZO`.
        n_probes: >= 2; a step takes n_probes + 1 forward passes.
        lr, eps, seed, weight_decay, restore, dist, active_rows, process_group, parallel: as in `MeZO`.

    Raises:
        TypeError, ValueError, BufferError: an argument or parameter that cannot be used; the text names it.

    >>> import torch, curvk.torch
    >>> model = torch.nn.Linear(2, 1)
    >>> x = torch.randn(64, 2)
    >>> opt = curvk.torch.FZOO(model, lr=1e-4)
    >>> losses = [opt.step(lambda: (model(x) - x.sum(1, keepdim=True)).square().mean()) for _ in range(200)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float | Tensor,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "rademacher",
        n_probes: int = 8,
        active_rows: bool = False,
        process_group: Any = None,
        parallel: str = "probes",
    ) -> None:
        super().__init__(model, given(locals()))

    def _parts(self, options: Options, seed: int) -> tuple[Estimator, Selection]:
        return Forward(options["eps"], self._n_probes, self._name), Everything()


class ES(ZerothOptimizer):
    """Evolution strategies with z-scored rewards, one-sided (Qiu et al. 2025, arXiv 2509.24372)::

        theta <- theta + lr / n_probes sum_k (R_k - mean R) / (std R + 1e-8) z_k         R_k = -L(theta + eps z_k)

    Each member's noise differs from parameter to parameter; the published code gives parameters of one shape the same.

    Args:
        model: as in `MeZO`.
        lr: the paper's alpha; for a linear loss lr of MeZO = lr / (eps ||g||).
        n_probes: the population, >= 2.
        eps, seed, weight_decay, restore, dist, active_rows, process_group, parallel: as in `MeZO`. eps is the paper's
            sigma.

    Raises:
        TypeError, ValueError, BufferError: an argument or parameter that cannot be used; the text names it.

    >>> import torch, curvk.torch
    >>> model = torch.nn.Linear(2, 1)
    >>> x = torch.randn(64, 2)
    >>> opt = curvk.torch.ES(model, lr=0.02)
    >>> losses = [opt.step(lambda: (model(x) - x.sum(1, keepdim=True)).square().mean()) for _ in range(100)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float | Tensor,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        restore: str = "scratch",
        dist: str = "normal",
        n_probes: int = 30,
        active_rows: bool = False,
        process_group: Any = None,
        parallel: str = "probes",
    ) -> None:
        super().__init__(model, given(locals()))

    def _parts(self, options: Options, seed: int) -> tuple[Estimator, Selection]:
        return Population(options["eps"], self._n_probes, self._name), Everything()
