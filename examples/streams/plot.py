"""The tables and the figure, from what run.py found."""

from statistics import mean, median, stdev

import numpy as np
from learners import DRAWN, LEARNERS, RESTARTS, SPREAD

COLOURS = {
    "FORKS": "#d1495b",
    "FORKS, alpha = 1": "#e8899a",
    "SkeGD": "#b07d3c",
    "NOGD": "#00798c",
    "FOGD": "#5f9e3f",
    "PROS-N-KONS": "#66579c",
    "KONS": "#a79bc9",
    "KONS, alpha = 0.01": "#a79bc9",
    "NOGD, lr = 5": "#7fc0cc",
    "BPA-S": "#edae49",
    "RBP": "#8a929a",
    "last label again": "#22282f",
}
BARS = (
    "last label again",
    "RBP",
    "BPA-S",
    "PROS-N-KONS",
    "PROS-N-KONS, reset",
    "FOGD",
    "NOGD",
    "SkeGD, often",
    "SkeGD, often, reset",
    "FORKS, often",
    "FORKS, often, decay 0",
    "FORKS, often, decay 0.9",
    "FORKS, often, reset",
    "FORKS, drift",
)
LEGEND = {"fontsize": 7.5, "edgecolor": "none", "framealpha": 0.85}


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def lines(head, rows):
    return "\n".join([row(*head), "|---|" + "--:|" * (len(head) - 1), *rows])


def runs(case, learner, key="mistakes"):
    """A value for each permutation."""
    return case["learners"].get(learner, {}).get(key, [])


def most(case):
    """The most permutations that a learner has had."""
    return max((len(entry.get("mistakes", [])) for entry in case["learners"].values()), default=0)


def rates(case, learner, key="mistakes"):
    """In per cent, of each permutation."""
    rows = case["rows"] - case["rows"] // 2 if key == "second half" else case["rows"]
    return [100 * count / rows for count in runs(case, learner, key)]


def spread(values, count):
    """Mean and standard deviation; in brackets of how many, where it is not the column's number."""
    if not values:
        return "-"
    text = f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
    return text if len(values) == count else f"{text} ({len(values)})"


def microseconds(case, learner):
    """Per row, the median of the permutations; None for what has no time."""
    values = [1e6 * seconds / case["rows"] for seconds in runs(case, learner, "seconds")]
    return median(values) if values and max(values) > 0 else None


def digits(value):
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def stationary(results):
    """The streams that are neither adversarial nor of another bandwidth, the shortest first."""
    found = {name: case for name, case in results["cases"].items() if name == case["data"]}
    return dict(sorted(found.items(), key=lambda item: item[1]["rows"]))


def shown(cases, names):
    return [name for name in names if any(runs(case, name) for case in cases.values())]


def head(cases):
    def text(name, case):
        order = "in order" if case["ordered"] else f"{most(case)} permutation{'s' if most(case) > 1 else ''}"
        return f"{name}: {case['rows']:,} x {case['columns']}, {order}"

    return [text(*item) for item in cases.items()]


def rate_table(cases, names, key="mistakes"):
    """A row for each learner; the least of a stream's means in bold."""
    names = shown(cases, names)
    best = {
        name: min((mean(rates(case, learner, key)) for learner in names if runs(case, learner)), default=0)
        for name, case in cases.items()
    }
    body = []
    for learner in names:
        cells = []
        for name, case in cases.items():
            values = rates(case, learner, key)
            text = spread(values, most(case))
            cells.append(f"**{text}**" if values and mean(values) == best[name] else text)
        body.append(row(learner, *cells))
    return names, body


def mistakes_table(results):
    cases = stationary(results)
    _, body = rate_table(cases, LEARNERS)
    return f"**Mistakes, % of all rows from the first one on**\n\n{lines(['', *head(cases)], body)}"


def second_table(results):
    cases = stationary(results)
    _, body = rate_table(cases, LEARNERS, "second half")
    about = "**Mistakes, % of the second half of the rows**: what is left when buffers and dictionaries are full"
    return f"{about}\n\n{lines(['', *cases], body)}"


def time_table(results):
    cases = stationary(results)
    names = [n for n in shown(cases, LEARNERS) if any(microseconds(case, n) for case in cases.values())]
    body = [row(n, *(digits(microseconds(case, n)) for case in cases.values())) for n in names]
    return f"**Microseconds per row**, predicted and learned\n\n{lines(['', *cases], body)}"


def hostile(results):
    """Each stream that has an adversarial one, with it."""
    found = {}
    for name, case in results["cases"].items():
        if case["adversarial"]:
            found |= {case["data"]: results["cases"][case["data"]], name: case}
    return found


def restart_table(results):
    cases = hostile(results)
    if not cases:
        return ""
    _, body = rate_table(cases, [*LEARNERS, *RESTARTS])
    often = ", ".join(f"{name} {case['often']}" for name, case in cases.items())
    about = (
        "**Restarts: mistakes, %**, on stationary and adversarial streams (500 rows, each 10 times in a row, every "
        f"other one with the wrong label). often: refreshed after so many rows with a loss: {often}"
    )
    return f"{about}\n\n{lines(['', *head(cases)], body)}"


def bandwidths(results):
    return {case["bandwidth"]: case for name, case in results["cases"].items() if ", bandwidth" in name}


def bandwidth_table(results):
    cases = dict(sorted(bandwidths(results).items()))
    if not cases:
        return ""
    _, body = rate_table({f"{h:g}": case for h, case in cases.items()}, SPREAD)
    case = next(iter(cases.values()))
    count = f"{most(case)} permutation{'s' if most(case) > 1 else ''}"
    about = f"**Bandwidths: mistakes, %**, on {case['rows']:,} rows of {case['data']}, {count}"
    return f"{about}\n\n{lines(['', *(f'h = {h:g}' for h in cases)], body)}"


def line(points):
    """Slope and intercept of least squares, and R^2."""
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - slope * x - intercept
    return slope, intercept, 1 - rest @ rest / max(float(np.square(y - y.mean()).sum()), 1e-30)


def cost_table(results):
    if "cost" not in results:
        return ""
    body = []
    for name, points in results["cost"].items():
        slope, intercept, fit = line(points)
        cells = "; ".join(f"{size:,}: {us:.2f}" for size, us in points)
        body.append(row(name, cells, f"{intercept:.2f} {1000 * slope:+.2f} per 1,000", f"{fit:.3f}"))
    about = "**Microseconds of a row without a loss**, 20 columns, against the number of landmarks or support vectors"
    return f"{about}\n\n{lines(['', 'size: microseconds', 'line', 'R²'], body)}"


def footer(results):
    cases, machine = stationary(results), results["machine"]
    widths = ", ".join(f"{name} {case['bandwidth']:.3g}" for name, case in cases.items())
    return (
        f"Gaussian kernel, budget {results['budget']}: of support vectors, of a dictionary's rows, of FOGD's "
        "frequencies with two features each, of the peers' features; rank 20 below 5 columns, else 40; all else "
        f"the defaults. Bandwidth: half the median distance, two thirds from 20 columns on: {widths}. Means ± "
        "standard deviation over permutations; in brackets their number where it is smaller, as slow learners got "
        "fewer; runs of minutes are left out. often: a refresh after 0.005 (n - B) rows with a loss; seldom: 0.3 "
        "n; else 10,000. s_m: landmarks, B / 2 where nothing else is said. Nystroem's features are made of the "
        "first rows and stay; by row, they are made for all rows at once, and SGD learns them one by one. River's "
        "RBFSampler makes features of one column each. Seconds are the processor's, one thread, medians over "
        f"permutations. curvk {results['curvk']}, numpy {machine['numpy']}, Python {machine['python']}."
    )


def report(results):
    """The tables as Markdown."""
    tables = (mistakes_table, second_table, time_table, restart_table, bandwidth_table, cost_table, footer)
    return "\n\n".join(text for text in (table(results) for table in tables) if text)


# ---- the figure ------------------------------------------------------------------------------------------------------


def draw_curves(axes, case, title):
    for name in DRAWN:
        entry = case["learners"].get(name, {})
        if "curve" in entry:
            axes.plot(
                case["rows of curves"],
                entry["curve"],
                color=COLOURS[name],
                lw=1.4,
                ls="--" if name == DRAWN[-1] else "-",
                label=name,
            )
    axes.set(xlabel="rows", ylabel="mistakes so far", title=title, xlim=(0, case["rows"]))
    top = max((e["curve"][-1] for n, e in case["learners"].items() if n in DRAWN[:-1] and "curve" in e), default=1)
    axes.set_ylim(0, 1.25 * top)
    axes.legend(**LEGEND)


def draw_bandwidths(axes, cases):
    widths = sorted(cases)
    for name in SPREAD:
        found = [(h, mean(rates(cases[h], name))) for h in widths if runs(cases[h], name)]
        if found:
            dashed = {"ls": "--"} if "=" in name else {}
            axes.plot(*zip(*found, strict=True), color=COLOURS[name], lw=1.4, marker="o", ms=4, label=name, **dashed)
    axes.set(xscale="log", xlabel="bandwidth of the kernel", ylabel="mistakes, %", ylim=(0, 52))
    axes.set_xticks(widths, [f"{h:g}" for h in widths])
    axes.minorticks_off()
    case = cases[widths[0]]
    axes.set_title(f"{case['data']}, {case['rows']:,} rows: bandwidths")
    axes.legend(**LEGEND)


def draw_restarts(axes, results, name):
    usual, case = results["cases"][name], results["cases"][f"adversarial {name}"]
    names = [learner for learner in BARS if runs(case, learner)]
    at = np.arange(len(names))
    axes.barh(at - 0.2, [mean(rates(case, n)) for n in names], 0.38, color="#d1495b", label="adversarial")
    axes.barh(at + 0.2, [mean(rates(usual, n)) for n in names], 0.38, color="#b9c0c7", label="stationary")
    axes.set_yticks(at, names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="mistakes, %", title=f"{name}: who forgets wins the adversarial stream")
    axes.legend(**LEGEND)


def draw_cost(axes, cost, names, xlabel, title):
    for name, colour in names.items():
        if name in cost:
            axes.plot(*zip(*cost[name], strict=True), color=colour, lw=1.4, marker="o", ms=4, label=name.split(",")[0])
    axes.set(xlabel=xlabel, ylabel="µs per row without a loss", title=title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    if len(names) > 1:
        axes.legend(**LEGEND)


def draw(results, path):
    """Mistakes against rows for two streams, bandwidths, restarts, and the cost of a quiet row."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    cases = stationary(results)
    names = list(cases)
    first = "banana" if "banana" in cases else names[0]
    last = next((name for name in ("flights", "shuttle") if name in cases), names[-1])
    hard = [name for name in cases if f"adversarial {name}" in results["cases"]]
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 3, figsize=(14.2, 8.2))
        for place, name in zip(axes[0], (first, last), strict=False):
            kind = "as time goes" if cases[name]["ordered"] else "a permutation"
            draw_curves(place, cases[name], f"{name}, {kind}")
            place.xaxis.set_major_locator(MaxNLocator(5))
            place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            place.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if bandwidths(results):
            draw_bandwidths(axes[0, 2], bandwidths(results))
        if hard:
            draw_restarts(axes[1, 0], results, "banana" if "banana" in hard else hard[0])
        if "cost" in results:
            found = results["cost"]
            draw_cost(axes[1, 1], found, {"FORKS, s_m": COLOURS["FORKS"]}, "landmarks s_m", "FORKS: linear in s_m")
            names = {"FORKS, B": COLOURS["FORKS"], "NOGD, B": COLOURS["NOGD"], "RBP, B": COLOURS["RBP"]}
            draw_cost(axes[1, 2], found, names, "budget B", "s_m = 100: independent of B")
        for place in axes.flat:
            place.grid(color="#e6e8eb")
        title = (
            f"Online kernel learning with a budget of {results['budget']}: each row is predicted before it is learned"
        )
        figure.suptitle(title, x=0.01, ha="left", y=0.995)
        figure.tight_layout(rect=(0, 0, 1, 0.99))
        figure.savefig(path, dpi=130)
        plt.close(figure)
