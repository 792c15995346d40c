"""The demo's words: the table, the line about the large array, and the notes."""

from __future__ import annotations

import textwrap
from statistics import median
from typing import Any

_HEAD = (
    ("", "", "<10"),
    ("test acc.", "curvk", ">9"),
    ("", "NumPy", ">6"),
    ("steps/s", "curvk", ">8"),
    ("", "NumPy", ">6"),
    ("optimizer, ms", "curvk", ">14"),
    ("", "NumPy", ">7"),
    ("ns/parameter", "curvk", ">13"),
    ("", "NumPy", ">6"),
    ("share", "of limit", ">9"),
    ("curvk", "faster", ">7"),
    ("largest", "difference", ">11"),
)
_ZEROTH_HEAD = (
    ("", "", "<14"),
    ("test", "acc.", ">7"),
    ("train", "loss", ">8"),
    ("us/step", "passes", ">10"),
    ("", "noise", ">8"),
    ("noise's", "share", ">9"),
    ("noise, ns", "/parameter", ">12"),
    ("curvk faster", "noise", ">14"),
    ("", "step", ">7"),
)
_CURVATURE_HEAD = (
    ("", "", "<18"),
    ("test", "acc.", ">7"),
    ("train", "loss", ">9"),
    ("", "steps", ">8"),
    ("", "gradients", ">11"),
    ("us", "/gradient", ">11"),
    ("own us/step", "curvk", ">13"),
    ("", "NumPy", ">7"),
    ("curvk", "faster", ">8"),
)
_MACHINES_HEAD = (
    ("", "", "<28"),
    ("test", "acc.", ">7"),
    ("", "fit, ms", ">10"),
    ("predict,", "ms", ">10"),
)
_SAMPLERS_HEAD = (
    ("", "", "<38"),
    ("MMD^2,", "median", ">9"),
    ("", "least", ">9"),
    ("", "largest", ">9"),
)

_STREAM_HEAD = (
    ("", "", "<28"),
    ("", "mistakes", ">10"),
    ("", "", ">8"),
    ("", "us/row", ">9"),
)


def _line(cells: list[str], head: tuple[tuple[str, str, str], ...] = _HEAD) -> str:
    return "".join(f"{cell:{form}}" for cell, (_, _, form) in zip(cells, head, strict=True)).rstrip()


def _titles(head: tuple[tuple[str, str, str], ...]) -> list[str]:
    return [_line([column[line] for column in head], head) for line in (0, 1)]


def _gap(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def table(rows: list[dict[str, Any]]) -> str:
    """One block per model, one line per optimizer."""
    blocks = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        first = mine[0]
        title = f"{model}: {first['parameters']:,} parameters, batch {first['batch']}, {first['steps']} steps"
        lines = [title, *_titles(_HEAD)]
        for row in mine:
            a, b = row["curvk"], row["numpy"]
            cells = [f"  {row['optimizer']}"]
            cells += [f"{side['test_accuracy']:.1%}" for side in (a, b)]
            cells += [f"{side['steps_per_s']:.0f}" for side in (a, b)]
            cells += [f"{side['optimizer_ms_per_step']:.3f}" for side in (a, b)]
            cells += [f"{side['ns_per_parameter']:.2f}" for side in (a, b)]
            cells += [f"{row['share_of_limit']:.0%}", f"{row['speedup']:.1f}x", _gap(max(row["difference"].values()))]
            lines.append(_line(cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def zeroth_table(row: dict[str, Any]) -> str:
    """One line per side."""
    title = (
        f"{row['method']}, without gradients: {row['model']}, batch {row['batch']}, {row['steps']} steps of "
        f"{row['forward_passes_per_step']:.0f} forward passes"
    )
    lines = [title, *_titles(_ZEROTH_HEAD)]
    sides: tuple[tuple[str, dict[str, Any], dict[str, float]], ...] = (
        ("  curvk", row["curvk"], {}),
        ("  NumPy", row["numpy"], row["speedup"]),
        ("  NumPy, plain", row["plain"]["numpy"], row["plain"]["speedup"]),
    )
    for name, side, speedup in sides:
        learned = [f"{side['test_accuracy']:.1%}", f"{side['train_loss']:.3f}"] if "train_loss" in side else ["", ""]
        cells = [name, *learned, f"{side['passes_us']:.0f}", f"{side['noise_us']:.0f}", f"{side['noise_share']:.0%}"]
        cells += [f"{side['noise_ns_per_parameter']:.2f}"]
        cells += [f"{speedup[what]:.1f}x" if speedup else "" for what in ("noise", "step")]
        lines.append(_line(cells, _ZEROTH_HEAD))
    return "\n".join(lines)


def _zeroth_notes(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    name, k = row["method"], row["settings"]["n_probes"]
    adam = next(other for other in rows if (other["optimizer"], other["model"]) == ("Adam", row["model"]))
    same = "the trained weights, bit for bit" if row["replay_is_exact"] else "OTHER weights than the training"
    return [
        f"{name} takes the loss at the weights and at {k} places around them, off by random signs, and moves along the "
        "signs by what the losses say; no gradient is computed. Where gradients can be had they teach more: after "
        f"{adam['steps']} steps Adam has {adam['curvk']['test_accuracy']:.1%} test accuracy, after {row['steps']} "
        f"{name} has {row['curvk']['test_accuracy']:.1%}.",
        f"Each side of {name} has signs of its own, from curvk's noise stream and from NumPy's PCG64: what they learn "
        "is alike, not equal. All run on one thread. Noise is whatever in a step is no forward pass: drawing signs, "
        "displacing weights, the update, and curvk's checks and log. NumPy draws a sign as a bit and finds eight at a "
        "time in a table, which few people write; plain NumPy draws integers, and is timed over "
        f"{row['plain']['steps']} steps beside curvk. Both keep the signs until the update ({k / 8:g} and {k} bytes "
        "per parameter); curvk makes them again. Where curvk is below 1x, it is the slower one.",
        f"curvk's log of {name}'s {row['steps']} steps takes {row['log_bytes']:,} bytes. Replayed in this run on the "
        f"first weights, it gave {same}.",
    ]


def curvature_table(entry: dict[str, Any]) -> str:
    """One line per method."""
    title = f"{entry['gradients']} gradients, however a step uses them: {entry['model']}, batch {entry['batch']}"
    lines = [title, *_titles(_CURVATURE_HEAD)]
    for row in entry["rows"]:
        ours, theirs = row["curvk"], row["numpy"]
        cells = [f"  {row['method']}", f"{ours['test_accuracy']:.1%}", f"{ours['train_loss']:.4f}"]
        cells += [f"{ours['steps']}", f"{ours['gradients']}", f"{ours['gradient_us']:.0f}"]
        cells += [f"{side['own_us_per_step']:.0f}" for side in (ours, theirs)] + [f"{row['speedup']:.1f}x"]
        lines.append(_line(cells, _CURVATURE_HEAD))
    return "\n".join(lines)


def _curvature_notes(entry: dict[str, Any]) -> list[str]:
    alice = next(row for row in entry["rows"] if row["method"] == "Alice")
    settings = entry["settings"]
    return [
        f"Late SAM takes the last {1 - settings['SAM']['start']:.1%} of its steps with two gradients each. Alice takes "
        f"three gradients in one of {settings['Alice']['quick_steps'] + 1} steps and in its first nine, where it does "
        f"not move yet; after the last step {alice['frac_inside']:.0%} of its coordinates lay between its bounds, the "
        "others took a bounded step like Adam's. Own time is all but the gradients, the mean over the steps, one "
        "thread on both sides. One run on a small set ranks no method: docs/sam.md and docs/alice.md have five seeds.",
    ]


def machines_table(entry: dict[str, Any]) -> str:
    """One line per kernel machine."""
    title = f"Kernel machines, gaussian kernel, {entry['centers']} centers (SVC: its support vectors)"
    lines = [title, *_titles(_MACHINES_HEAD)]
    for row in entry["rows"]:
        cells = [f"  {row['machine']}", f"{row['test_accuracy']:.1%}"]
        cells += [f"{row[what] * 1e3:.1f}" for what in ("fit_s", "predict_s")]
        lines.append(_line(cells, _MACHINES_HEAD))
    return "\n".join(lines)


def samplers_table(entry: dict[str, Any]) -> str:
    """One line per sampler."""
    who = f"{entry['particles']} particles, {entry['evaluations']:,} evaluations"
    title = f"Sampling the {entry['density']} without gradients: {who}"
    lines = [title, *_titles(_SAMPLERS_HEAD)]
    for row in entry["rows"]:
        values = row["mmd2"]
        cells = [f"  {row['method']}", *(f"{f(values):.4f}" for f in (median, min, max))]
        lines.append(_line(cells, _SAMPLERS_HEAD))
    return "\n".join(lines)


def stream_table(entry: dict[str, Any]) -> str:
    """One line per learner."""
    title = f"A stream: {entry['rows']:,} rows of {entry['data']}, {entry['anomalies']:.1%} anomalies"
    lines = [title, *_titles(_STREAM_HEAD)]
    for row in entry["learners"]:
        speed = "" if row["us_per_row"] is None else f"{row['us_per_row']:.1f}"
        cells = [f"  {row['learner']}", f"{row['mistakes']:,}", f"{row['mistakes'] / entry['rows']:.2%}", speed]
        lines.append(_line(cells, _STREAM_HEAD))
    return "\n".join(lines)


def _stream_notes(entry: dict[str, Any]) -> list[str]:
    return [
        "In the stream FORKS predicts each row before it learns it, and nothing was tuned: its bandwidth is the "
        "median distance of the first 128 rows. scikit-learn predicts and learns batches of "
        f"{entry['batch']:,}, with landmarks drawn from rows it had in advance: less work per row, and later news. "
        "Both run on one thread. Columns have mean 0 and variance 1 over all rows.",
    ]


def _kernel_notes(machines: dict[str, Any], samplers: dict[str, Any], test: int) -> list[str]:
    settings = machines["settings"]
    seeds = len(samplers["rows"][0]["mmd2"])
    return [
        f"The kernel machines share a kernel of bandwidth {settings['bandwidth']:g}; all but SVC draw centers from the "
        f"training rows. Bandwidth, alpha {settings['alpha']:g} and SVC's C {settings['C']:g} were chosen on training "
        f"rows. Times are medians of {machines['fits']} fits in turns, after one that is not counted, with curvk and "
        f"BLAS on {machines['threads']} thread{'s' if machines['threads'] > 1 else ''}; SVC has one. One test digit is "
        f"{1 / test:.1%}.",
        f"MMD^2 is the squared maximum mean discrepancy to {samplers['truth']:,} points of the {samplers['density']}, "
        f"over {seeds} seeds; as many independent points as there are particles show what is noise in it. Its gaussian "
        f"kernel's bandwidth is {samplers['settings']['mmd_bandwidth']:.2f}, more than a banana is thick: it hardly "
        "sees by how little a particle misses one. The two samplers differ in nothing but the particles' repulsion, "
        f"whose bandwidth of {samplers['settings']['bandwidth']:g} was chosen for this density, on other seeds.",
    ]


def large_line(large: dict[str, Any]) -> str:
    return (
        f"Adam on one array of {large['size']:,} parameters, ns/parameter: curvk {large['curvk_ns']:.2f}, "
        f"{large['share_of_limit']:.0%} of the limit's {large['limit_ns']:.2f};\n"
        f"  NumPy {large['numpy_ns']:.2f} ({large['speedup']:.1f}x); NumPy cut by hand into blocks that fit the cache "
        f"{large['numpy_blocked_ns']:.2f} ({large['speedup_over_blocked']:.1f}x)"
    )


def notes(report: dict[str, Any]) -> list[str]:
    """What a reader must know to read the figures rightly."""
    machine, rows = report["machine"], report["rows"]
    differences = [d for row in rows for d in row["difference"].values()] + [report["large_array"]["difference"]]
    worst = max(differences)
    same = "0, every parameter and loss has the same bits on both sides" if worst == 0 else f"{worst:.1e}"
    small = min(rows, key=lambda row: int(row["parameters"]))
    megabytes = small["parameters"] * 16 / 1e6
    lines = [
        f"curvk {report['curvk']}, backend {machine['backend']}, SIMD level {machine['simd']}, threads "
        f"{machine['threads']} ({machine['threads_reason']}). NumPy {machine['numpy']}; its elementwise operations "
        "run on one thread. Times are medians over all steps; the sides take turns at every step.",
        "With gradients both sides start from the same weights and see the same batches. Largest relative difference "
        f"between them, in final parameters and all losses: {same}.",
        "The limit is a loop with the optimizer's memory traffic (SGD 20 bytes per parameter, Adam 28) and next to no "
        f"arithmetic, on as many threads, measured in this run. It sweeps arrays of the model's size again and "
        f"again, so {small['model']} ({megabytes:.0f} MB of parameters, gradients and states) may stay in a cache "
        "there; in training the forward and backward passes push it out. The large array has no such excuse.",
        "BLAS is held to one thread where perceptrons train: its idle workers spin and would disturb whichever "
        "optimizer is next.",
    ]
    lines += _zeroth_notes(report["zeroth_order"], rows)
    lines += _curvature_notes(report["curvature"])
    lines += _kernel_notes(report["kernel_machines"], report["samplers"], report["data"]["test"])
    lines += _stream_notes(report["stream"])
    for row in rows:
        if row["optimizer"] == "AdamZ":
            lines.append(
                f"AdamZ's published rule moved lr from {row['settings']['lr']:.2g} to {row['final_lr']:.2g} on "
                f"{row['model']} (held below {row['settings']['max_lr']:.2g}): it takes a steadily falling loss for "
                "stagnation. curvk.optim.AdamZ has a guard against that, off by default."
            )
    load = machine["load_average"][0] if machine["load_average"] else 0
    if load > machine["cpus"]:
        lines.append(
            f"This machine is busy (load {load:.1f} on {machine['cpus']} CPUs): times taken now mean little, and those "
            "of several threads least."
        )
    if machine["backend"] != "cpp":
        lines.append("The compiled kernels are not in use; `curvk info` says why.")
    return lines


def paragraphs(lines: list[str]) -> str:
    """The notes as wrapped text."""
    return "\n".join(textwrap.fill(line, 108, initial_indent="- ", subsequent_indent="  ") for line in lines)
