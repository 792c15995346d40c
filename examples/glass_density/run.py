"""Where the Hessian is the wrong model: exponents by layer for ReLU and tanh networks, and what published h^2 counts.

    pip install "curvk[torch]" matplotlib; python examples/glass_density/run.py --figure glass.png

A perceptron of 10-32-32-5 units is trained on random labels until its loss is `--loss`, for each of several nets. Then
curvk.torch.GlassProbe displaces it by signs times d, for a grid of distances d, and the script prints, averaged over
the nets with standard errors, what the probe says of each layer. "exact" is the mean over a layer of the squared row
norms of the Hessian that double backward gives, which does not see the kinks.
"""

import argparse
import json
import math
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import curvk
import torch
from curvk.torch import GlassProbe
from torch import nn

DISTANCES = [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
KEYS = ("distance", "rho", "h2", "h2_reference", "glass", "variation", "at_floor")
LAYERS = {"0": "W1", "2": "W2", "4": "W3, linear head"}
COLOURS = {"0": "#d1495b", "2": "#00798c", "4": "#edae49"}
INK, FAINT, GREY = "#22282f", "#5b6470", "#b8bec6"


def trained(activation, seed, n, goal):
    """A perceptron with that loss on n points with random labels, the loss as a closure, and its value."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 5)).double()
    x, y = torch.randn(n, 10, dtype=torch.float64), torch.randint(5, (n,))

    def loss():
        return nn.functional.cross_entropy(model(x), y)

    optimizer = curvk.torch.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(20_000):
        optimizer.zero_grad()
        value = loss()
        if value <= goal:
            break
        value.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, loss, value.item()


def exact_row_norms(model, loss):
    """Mean squared row norm of the Hessian by layer, from one product with each unit vector."""
    params = list(model.parameters())
    grads = torch.autograd.grad(loss(), params, create_graph=True)
    flat = torch.cat([g.flatten() for g in grads])
    total = torch.zeros_like(flat)
    for rows in torch.eye(len(flat), dtype=flat.dtype).split(64):
        parts = torch.autograd.grad(flat, params, rows, retain_graph=True, is_grads_batched=True)
        total += torch.cat([part.flatten(1) for part in parts], 1).square().sum(0)  # symmetric: columns are rows
    sizes = [sum(p.numel() for p in model.get_submodule(name).parameters()) for name in LAYERS]
    return {name: part.mean().item() for name, part in zip(LAYERS, total.split(sizes), strict=True)}


def measure(activation, args):
    """Per layer and distance, each net's numbers; and the nets' losses."""
    nets, losses = [], []
    for seed in range(args.nets):
        model, loss, value = trained(activation, seed, args.data, args.loss)
        result = GlassProbe(model, loss, sigma=args.distances[0], seed=seed).run(args.samples, args.distances)
        exact = exact_row_norms(model, loss) if activation is nn.ReLU and seed < args.exact else {}
        losses.append(value)
        nets.append(
            {
                name: {
                    "exact": exact.get(name),
                    "readings": [
                        {
                            k: getattr(r, k)
                            for k in ("distance", "rho", "h2", "h2_reference", "glass", "variation", "at_floor")
                        }
                        for r in layer.readings
                    ],
                }
                for name, layer in result.layers.items()
            }
        )
    return {"losses": losses, "nets": nets}


def averaged(run):
    """Per layer a list of rows, one for each distance: means over the nets, and exponents of these means."""
    out = {}
    for name in LAYERS:
        nets = [net[name] for net in run["nets"]]
        rows = []
        for readings in zip(*(net["readings"] for net in nets), strict=True):
            row = {k: mean(r[k] for r in readings) for k in readings[0]}
            for key in ("rho", "h2"):
                row[f"{key}_se"] = stdev([r[key] for r in readings]) / math.sqrt(len(nets)) if len(nets) > 1 else 0.0
            rows.append(row)
        for a, b in pairwise(rows):
            step = math.log(b["distance"] / a["distance"])
            for key in ("glass", "variation"):
                a[f"{key}_exponent"] = math.log(b[key] / a[key]) / step
        exact = [net["exact"] for net in nets if net["exact"] is not None]
        out[name] = {"rows": rows, "exact": mean(exact) if exact else None}
    return out


def table(averages):
    """Markdown."""
    lines = [
        "| net | layer | d | rho | exponent of Γ² | exponent of γ² | h², glass removed | h², published | exact |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for net, layers in averages.items():
        for name, layer in layers.items():
            for row in layer["rows"]:
                exponents = [f"{row[k]:.2f}" if k in row else "" for k in ("glass_exponent", "variation_exponent")]
                cells = [
                    net,
                    LAYERS[name],
                    f"{row['distance']:g}",
                    f"{row['rho']:.1e} ± {row['rho_se']:.0e}",
                    *exponents,
                ]
                cells += [f"{row['h2']:.1e} ± {row['h2_se']:.0e}", f"{row['h2_reference']:.1e}"]
                cells.append("" if layer["exact"] is None else f"{layer['exact']:.1e}")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path, averages, caption):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "text.color": INK}
    with pyplot.rc_context({**style, "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"}):
        figure, (glass, exponents, curvature) = pyplot.subplots(1, 3, figsize=(14, 4.9), layout="constrained")
        for net, layers in averages.items():
            line = {"ls": "-" if net == "ReLU" else "--", "marker": "o", "ms": 4.5, "lw": 1.7}
            for name, layer in layers.items():
                d = [r["distance"] for r in layer["rows"]]
                more = {**line, "color": COLOURS[name], "mfc": COLOURS[name] if net == "ReLU" else "white"}
                glass.plot(d, [r["glass"] for r in layer["rows"]], **more, label=f"{net}, {LAYERS[name]}")
                middle = [math.sqrt(a * b) for a, b in pairwise(d)]
                exponents.plot(middle, [r["glass_exponent"] for r in layer["rows"][:-1]], **more)
        rows = averages["ReLU"]["0"]["rows"]
        d, last = [r["distance"] for r in rows], rows[-1]["glass"]
        glass.plot(d, [4 * last * x / d[-1] for x in d], color=GREY, lw=1.2, zorder=0, label="slope 1: glass")
        smooth = 0.25 * averages["tanh"]["0"]["rows"][-1]["glass"]
        glass.plot(
            d, [smooth * (x / d[-1]) ** 4 for x in d], color=GREY, lw=1.2, ls="-.", zorder=0, label="slope 4: smooth"
        )
        glass.set(ylabel=r"mean $\Gamma^2$ per parameter, gradient$^2$")
        glass.set_title(r"$\Gamma^2$: what gradient and Hessian leave", loc="left")
        glass.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
        glass.set_yscale("log")
        glass.set_ylim(top=glass.get_ylim()[1] * 1e4)
        for value, text in ((1, "glass: 1"), (4, "smooth: 4")):
            exponents.axhline(value, color=GREY, lw=1.2, ls="-" if value == 1 else "-.", zorder=0)
            exponents.annotate(text, (1, value), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                               ha="right", va="bottom", fontsize=8, color=FAINT)  # fmt: skip
        exponents.set(ylim=(0, 4.6), ylabel="local exponent of $\\Gamma^2$ between neighbours")
        exponents.set_title("The exponent tells glass from smooth", loc="left")
        for name, layer in averages["ReLU"].items():
            x = [r["distance"] for r in layer["rows"]]
            published = [r["h2_reference"] for r in layer["rows"]]
            curvature.plot(x, published, color=COLOURS[name], ls="--", marker="o", mfc="white", ms=4.5)
            positive = [(r["distance"], r["h2"], r["h2_se"]) for r in layer["rows"] if r["h2"] > r["h2_se"]]
            bars = {"marker": "o", "ms": 4.5, "lw": 1.7, "elinewidth": 1, "capsize": 2}
            curvature.errorbar(*zip(*positive, strict=True), color=COLOURS[name], **bars)
            if layer["exact"] is not None:
                curvature.axhline(layer["exact"], color=COLOURS[name], lw=1, ls=":")
        for style_, text in (("-", "glass removed"), ("--", "published"), (":", "double backward, blind to kinks")):
            marker = {"marker": "" if style_ == ":" else "o", "mfc": "white" if style_ == "--" else FAINT}
            curvature.plot([], [], color=FAINT, ls=style_, **marker, label=text)
        curvature.set(ylabel=r"mean $h^2$ per parameter, (gradient / parameter)$^2$")
        curvature.set_title("ReLU net: squared row norm of the Hessian", loc="left")
        curvature.legend(fontsize=8, frameon=False)
        for axes in (glass, exponents, curvature):
            axes.set(xscale="log", xlabel="distance $d$, in units of the parameters", xlim=(d[0] / 1.2, d[-1] * 1.2))
            axes.set_xticks(d, [f"{x:g}" for x in d], fontsize=8)
            axes.minorticks_off()
            axes.grid(color="#e6e8eb")
        curvature.set_yscale("log")
        figure.supxlabel(caption, fontsize=8, color=FAINT)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def save(path, report):
    """Writes the file whole or not at all."""
    path = Path(path)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        json.dump(report, file, indent=1)
    os.replace(file.name, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=6)
    parser.add_argument("--samples", type=int, default=10, help="directions for each net")
    parser.add_argument("--data", type=int, default=2048)
    parser.add_argument("--loss", type=float, default=1.54, help="train until the loss is as low")
    parser.add_argument("--exact", type=int, default=6, help="ReLU nets whose Hessian is computed by double backward")
    parser.add_argument("--quick", action="store_true", help="2 nets, 4 directions, 3 distances, no Hessian")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument("--figure", metavar="FILE", help="write the figure there")
    parser.add_argument("--read", metavar="FILE", help="take the numbers from there instead of measuring")
    args = parser.parse_args()
    if args.read:
        report = json.loads(Path(args.read).read_text())
    else:
        args.distances = DISTANCES
        if args.quick:
            args.nets, args.samples, args.exact, args.distances = 2, 4, 0, DISTANCES[1::2]
        runs = {name: measure(kind, args) for name, kind in (("ReLU", nn.ReLU), ("tanh", nn.Tanh))}
        versions = {"curvk": curvk.__version__, "torch": torch.__version__}
        settings = {k: v for k, v in vars(args).items() if k not in ("json", "figure", "read", "quick")}
        report = {"settings": settings, "versions": versions, "runs": runs}
    averages = {name: averaged(run) for name, run in report["runs"].items()}
    s = report["settings"]
    losses = ", ".join(f"{mean(run['losses']):.3f} ({name})" for name, run in report["runs"].items())
    caption = (
        f"10-32-32-5 perceptrons, {s['data']} points, random labels, mean loss {losses}; {s['nets']} nets, "
        f"{s['samples']} directions each; float64, "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    )
    print(f"{table(averages)}\n\n{caption}.")
    if args.json:
        save(args.json, report)
    if args.figure:
        draw(Path(args.figure), averages, caption)


if __name__ == "__main__":
    main()
