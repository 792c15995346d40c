"""What a storage does to optimizer states: the error of storing them once, and where they are after a training.

The second is the one that matters: a second moment moves by 0.1 % a step (beta2 = 0.999), less than half of the spacing
of the numbers that a short format has.
"""

from dataclasses import dataclass, field
from functools import partial

import curvk.torch
import numpy as np
import torch
from curvk.kernels.sweep import FORMATS, dequantize, quantize

BINS = np.linspace(-2, 5, 141)  # of log2 of the ratio of sqrt(v)


def through(format, x, signed):
    """A float32 array as it comes back from a format that it was stored in to nearest."""
    if format == "bfloat16":
        return torch.from_numpy(x).bfloat16().float().numpy()
    return dequantize(quantize(x, signed=signed, format=format), signed=signed)


def error(found, truth):
    """The rms error relative to the rms of the numbers."""
    size = np.sqrt(np.mean(np.square(truth, dtype=np.float64)))
    return float(np.sqrt(np.mean(np.square(found - truth, dtype=np.float64))) / size) if size else 0.0


def roots(found, truth):
    """Percentiles of the ratio of sqrt(v) where v > 0, and the share of those that have become 0."""
    there = truth > 0
    ratio = np.sqrt(np.divide(found[there], truth[there], dtype=np.float64))
    low, middle, high = np.percentile(ratio, [1, 50, 99]) if len(ratio) else (1.0, 1.0, 1.0)
    zeros = float(np.mean(ratio == 0)) if len(ratio) else 0.0
    return {"p1": float(low), "p50": float(middle), "p99": float(high), "zeros": zeros}


def moments(optimizer, params):
    """The moments m and v of every parameter as float32 arrays, whatever they are stored in."""
    found = []
    for p in params:
        state = optimizer.state[p]
        pair = []
        for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            value = state[key]
            if value.dtype == torch.uint8:
                scales = state[f"{key}_scale"]
                format = next(name for name, per in FORMATS.items() if len(scales) == -(-value.numel() // per))
                value = curvk.kernels.sweep.Codes(value.numpy(), scales.numpy(), format)
                pair.append(dequantize(value, signed=signed))
            else:
                pair.append(value.float().numpy())
        found.append(tuple(pair))
    return found


def stored_once(names, pairs):
    """A row per parameter: its moments stored to nearest in each format, against themselves."""
    rows = []
    for name, (m, v) in zip(names, pairs, strict=True):
        row = {"name": name, "shape": list(m.shape), "formats": {}}
        for format in (*FORMATS, "bfloat16"):
            kept = through(format, v, False)
            row["formats"][format] = {
                "m": error(through(format, m, True), m),
                "v": error(kept, v),
                "root": roots(kept, v),
            }
        rows.append(row)
    return rows


class Nearest:
    """Moments kept in curvk's codes, but to nearest: the codes of the dithered ones without their dither."""

    def __init__(self, params, betas=(0.9, 0.999)):
        self.params, self.betas = params, betas
        self.pairs = [tuple(np.zeros(p.shape, np.float32) for _ in "mv") for p in params]

    def step(self):
        b1, b2 = (np.float32(b) for b in self.betas)
        for k, (p, (m, v)) in enumerate(zip(self.params, self.pairs, strict=True)):
            g = p.grad.float().numpy()
            m = m + (1 - b1) * (g - m)
            v = b2 * v + (1 - b2) * g * g
            self.pairs[k] = (through("curvk", m, True), through("curvk", v, False))


SHADOWS = {
    "bf16, to nearest": partial(torch.optim.AdamW, fused=True),
    "bf16, dithered": partial(curvk.torch.AdamW, state_bits=16),
    "8 bits bitsandbytes, to nearest": partial(curvk.torch.AdamW, state_bits=8, state_format="bitsandbytes"),
    "8 bits curvk, to nearest": Nearest,
    "8 bits curvk, dithered": partial(curvk.torch.AdamW, state_bits=8),
}


@dataclass
class Drift:
    """States in other storages beside a training, fed its gradients: their own parameters never move (lr = 0)."""

    params: list
    kinds: dict = field(default_factory=lambda: SHADOWS)

    def __post_init__(self):
        self.own, self.made = {}, {}
        for title, kind in self.kinds.items():
            self.own[title] = [torch.nn.Parameter(torch.zeros_like(p, dtype=torch.bfloat16)) for p in self.params]
            rest = {} if kind is Nearest else {"lr": 0.0, "weight_decay": 0.0}
            self.made[title] = kind(self.own[title], **rest)

    def step(self):
        """Takes the gradients, which must be bfloat16's numbers, so that all storages see the same."""
        grads = [p.grad.bfloat16() for p in self.params]
        for title, optimizer in self.made.items():
            for p, g in zip(self.own[title], grads, strict=True):
                p.grad = g
            optimizer.step()

    def found(self, truth):
        """For each storage: its moments against float32's over all parameters, with the ratios' histogram."""
        joined = [np.concatenate([pair[k].ravel() for pair in truth]) for k in range(2)]
        rows = {}
        for title, optimizer in self.made.items():
            pairs = optimizer.pairs if isinstance(optimizer, Nearest) else moments(optimizer, self.own[title])
            m, v = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in range(2))
            there = joined[1] > 0
            with np.errstate(divide="ignore"):  # of a 0, which counts in the lowest bin
                ratio = 0.5 * np.log2(np.divide(v[there], joined[1][there], dtype=np.float64))
            counts, _ = np.histogram(np.clip(ratio, BINS[0], BINS[-1]), BINS)
            rows[title] = {
                "m": error(m, joined[0]),
                "v": error(v, joined[1]),
                "root": roots(v, joined[1]),
                "histogram": counts.tolist(),
            }
        return rows
