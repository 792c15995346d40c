"""The performance page: its tables are what the stored results give, and say what these say."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="a source archive has no results")


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_performance", ROOT / "docs" / "make_performance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_committed_tables_are_the_generated_ones(page: ModuleType) -> None:
    texts = page.texts()
    assert {path.name for path in (ROOT / "docs").glob("_performance_*.md")} == set(texts)
    for name, text in texts.items():
        committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert committed == text, f"docs/{name} is stale: python docs/make_performance.py"
    written = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert re.findall(r"```{include} (\S+)", written) == [
        f"_performance_{name}.md" for name in ("run", "ratios", "traffic", "subjects", "losses")
    ], "each table stands on the page once"


def test_every_verdict_of_the_run_is_on_the_page(page: ModuleType) -> None:
    """The page's verdicts are those that `curvk bench` wrote, and none is missing."""
    bench = json.loads(page.newest("bench", RESULTS).read_text())
    stored = [verdict for row in bench["rows"] for verdict in row["verdicts"].values()]
    assert [d.ratio.verdict for d in page.bench_duels(bench)] == stored
    assert "loss" in stored, "the run has losses, which the page is about"
    losses = page.texts()["_performance_losses.md"]
    total, wins, ties, lost = map(int, re.findall(r"\d+", losses.splitlines()[0])[:4])
    assert total == wins + ties + lost
    assert losses.count("**") == 2 * lost, "a bold cell for each loss"


def test_losses_are_sorted_and_all_there(page: ModuleType) -> None:
    def duel(what: str, threads: int, *times: float) -> object:
        return page.Duel("S", what, "peer", threads, page.Ratio(*times))

    duels = [
        duel("won", 1, 1.1, 1.2, 1.3),
        duel("mild", 1, 0.8, 0.9, 0.95),
        duel("bad", 1, 1.2, 1.3, 1.4),
        duel("bad", 2, 0.2, 0.3, 0.4),
        duel("tied", 1, 0.9, 0.95, 1.0),
    ]
    text = page.losses_text(duels)
    assert "Of the 5 comparisons with peers on this page 2 are wins, 1 ties and 2 losses." in text
    assert text.splitlines()[-2:] == [
        "| S: bad | peer | 1.30 (1.20–\u20601.40) | **0.30 (0.20–\u20600.40)** |",
        "| S: mild | peer | **0.90 (0.80–\u20600.95)** |  |",
    ]


def test_newer_results_take_over(page: ModuleType, tmp_path: Path) -> None:
    """A newer run replaces the older one of its kind alone."""
    results = tmp_path / "bench" / "results"
    shutil.copytree(RESULTS, results)
    source = page.newest("bench", results)
    bench = json.loads(source.read_text())
    for row in bench["rows"]:
        row["samples"]["curvk" if "curvk" in row["samples"] else "curvk plan"] = [1e-9] * bench["settings"]["rounds"]
    newer = results / "2999-01-01-made-up" / "bench.json"
    newer.parent.mkdir()
    newer.write_text(json.dumps(bench))
    before, after = page.texts(), page.texts(tmp_path)
    assert after["_performance_subjects.md"] == before["_performance_subjects.md"]
    assert after["_performance_ratios.md"] != before["_performance_ratios.md"]
    assert "2999-01-01-made-up/bench.json" in after["_performance_run.md"]
    assert "AdamW, one array" not in after["_performance_losses.md"], "where curvk takes no time it loses to nobody"


def test_flags_are_those_of_the_build(page: ModuleType) -> None:
    cmake = (ROOT / "csrc" / "tools" / "levels.cmake").read_text()
    assert not [flag for flag in page.FLAGS.split() if not re.search(rf"(?<!\S){re.escape(flag)}\s", cmake)]


def test_figures(page: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = page.draw(tmp_path)
    assert {path.name for path in written} == {"roofline.png", "peers.png", "models.png"}
    assert written == [tmp_path / path.name for path in written]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000 for path in written)


def test_bars_start_at_zero(page: ModuleType) -> None:
    pytest.importorskip("matplotlib")
    from curvk._bench import figures
    from curvk._bench.runner import Result

    bench = json.loads(page.newest("bench", RESULTS).read_text())
    rows = [Result(**{k: v for k, v in r.items() if k in Result.__dataclass_fields__}) for r in bench["rows"]]
    for draw in (figures.peers, figures.models):
        figure = draw(bench["machine"], rows)
        assert figure is not None
        assert figure.axes
        assert all(ax.get_xlim()[0] == 0 for ax in figure.axes)
