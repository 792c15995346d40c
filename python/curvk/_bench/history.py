"""The results that `curvk bench --compare` keeps: one file a run, in a folder for each machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from . import report


class HistoryError(Exception):
    """A file of results that cannot be read."""


class Key(NamedTuple):
    """What a time belongs to. Two runs are compared where these agree."""

    op: str
    variant: str
    format: str
    what: str
    threads: int
    contender: str

    def __str__(self) -> str:
        op = self.op if self.variant == "default" else f"{self.op}, {self.variant}"
        how = "" if self.contender == "curvk" else f" ({self.contender})"
        return f"{op} {self.format}, {self.what}, {self.threads} thread{'' if self.threads == 1 else 's'}{how}"


class Reading(NamedTuple):
    """The samples of one key, a round each, and what else was measured in that run to hold them against."""

    seconds: list[float]
    limit: list[float] | None  # the limit loop in the same rounds
    sgemm: float | None  # GFLOP/s on as many threads


def default_folder() -> Path:
    """`curvk/bench` in the user's folder for state, `$XDG_STATE_HOME` or `~/.local/state`."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "curvk" / "bench"


def fingerprint(machine: dict[str, Any]) -> dict[str, Any]:
    """What must agree for two runs' figures to be compared: the processor and which kernels run on it.

    The host's name and its kernel's release change without changing the figures. Compilers and libraries change them,
    and that is what a comparison should show; they are named beside it (`changed`), not part of this.
    """
    hardware = machine["machine"]
    affinity = hardware["affinity"]
    return {
        "model": hardware["model"],
        "architecture": hardware["architecture"],
        "system": hardware["system"].split("-")[0],
        "cpus": len(affinity) if affinity is not None else hardware["cpus"],
        "caches": [[cache["level"], cache["size"], cache["shared_by_cpus"]] for cache in hardware["caches"]],
        "backend": machine["kernels"]["backend"],
        "level": machine["simd"]["level"],
    }


def name(machine: dict[str, Any]) -> str:
    """The machine's folder: words for the reader, and a hash of the whole fingerprint."""
    found = fingerprint(machine)
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:10]
    model = re.sub(r"\W+", "-", re.sub(r"\([^)]*\)", "", found["model"])).strip("-").lower()
    return f"{model or 'cpu'}-{found['cpus']}-{found['level']}-{digest}"


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two runs' software: a remark each."""

    def parts(machine: dict[str, Any]) -> dict[str, Any]:
        return {
            "curvk": machine["version"],
            "compiler": machine.get("library_built_with"),
            "system": machine["machine"]["system"],
            "Python": machine["python"]["version"],
            **machine["packages"],
            **{k: v for k, v in machine["environment"].items() if k != "CURVK_NUM_THREADS"},
        }

    before, after = parts(old), parts(new)
    keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    return [f"{k} {before.get(k) or 'none'} -> {after.get(k) or 'none'}" for k in keys]


def readings(document: dict[str, Any]) -> dict[Key, Reading]:
    """Everything of curvk's own in a run: kernels, plans and optimizers, at the level in force."""
    found: dict[Key, Reading] = {}
    for row in document["rows"]:
        sgemm = document["machine"]["limits"]["sgemm_GFLOP_s"].get(str(row["threads"]))
        for contender, seconds in row["samples"].items():
            if re.fullmatch(r"curvk (v\d|armv8-a)", contender) or not contender.startswith("curvk"):
                continue
            key = Key(row["op"], row["variant"], row["format"], row["what"], row["threads"], contender)
            found.setdefault(key, Reading(seconds, row["samples"].get("limit"), sgemm))
    return found


def read(path: Path) -> dict[str, Any]:
    """A run's document, as `curvk bench --out` and `--json` give it too.

    Raises:
        HistoryError: it is not one; the text names the file and the reason.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        fingerprint(document["machine"])
        changed(document["machine"], document["machine"])
        str(document["machine"]["date"]), bool(document["settings"]["quick"])
        for key, reading in readings(document).items():
            samples = [*reading.seconds, *(reading.limit or ())]
            if not reading.seconds or not all(map(_measured, samples)):
                raise ValueError(f"samples of {key} that are no times")
            if reading.sgemm is not None and not _measured(reading.sgemm):
                raise ValueError(f"a matrix product at {reading.sgemm!r} GFLOP/s")
            if reading.limit is not None and len(reading.limit) != len(reading.seconds):
                raise ValueError(f"samples of {key} that are not one a round")
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise HistoryError(f"{path}: not a result of curvk bench, {error} is missing") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise HistoryError(f"{path}: not a result of curvk bench: {error}") from error
    assert isinstance(document, dict)
    return document


def _measured(x: Any) -> bool:
    return isinstance(x, (int, float)) and 0 < x < float("inf")


def last(
    folder: Path, machine: dict[str, Any], quick: bool, wanted: Collection[Key]
) -> tuple[dict[Key, tuple[Reading, dict[str, Any]]], list[str]]:
    """The newest reading of each wanted key on this machine, and lines about files that cannot be read.

    A run may have measured some kernels only: each key has a newest run of its own, whose `machine` comes with it.
    Quick runs and full ones differ in how long they measure, and are not mixed.
    """
    found: dict[Key, tuple[Reading, dict[str, Any]]] = {}
    problems = []
    here = fingerprint(machine)
    missing = set(wanted)
    files = [path for path in (folder / name(machine)).glob("*.json") if not path.name.startswith(".")]
    for path in sorted(files, reverse=True):
        if not missing:
            break
        try:
            document = read(path)
        except HistoryError as error:
            problems.append(str(error))
            continue
        if fingerprint(document["machine"]) != here or document["settings"]["quick"] != quick:
            continue
        for key, reading in readings(document).items():
            if key in missing:
                found[key] = reading, document["machine"]
                missing.remove(key)
    return found, problems


def keep(folder: Path, document: dict[str, Any]) -> Path:
    """Writes a run into its machine's folder, whole or not at all; the file's name is the time in UTC."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = folder / name(document["machine"]) / f"{stamp}.json"
    text = report.dumps(document)
    report.write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
