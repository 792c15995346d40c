"""The gallery's scripts run, draw, and hold what their text says, also where there is no Sphinx to run them."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import curvk
import pytest

GALLERY = Path(__file__).parent.parent / "examples" / "gallery"
SCRIPTS = sorted(GALLERY.glob("plot_*.py"))
pytestmark = pytest.mark.skipif(curvk.get_backend() != "cpp", reason="the twins would compile for minutes")


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) == 10


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_draws(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    monkeypatch.syspath_prepend(str(GALLERY))
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    monkeypatch.setattr(plt, "show", lambda: None)  # else Agg warns that it shows nothing
    plt.close("all")
    try:
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            runpy.run_path(str(script), run_name="__main__")
        figures = [plt.figure(number) for number in plt.get_fignums()]
        assert figures
        for figure in figures:
            assert all(axis.has_data() for axis in figure.axes)
            figure.canvas.draw()
    finally:
        plt.close("all")
        sys.modules.pop("digits", None)
    assert "False" not in capsys.readouterr().out, "a promise of equal bits that is printed was not kept"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_is_a_page(script: Path) -> None:
    """A title underlined as long as itself, and a picture."""
    text = script.read_text(encoding="utf-8")
    found = re.match(r'"""\n(.+)\n(=+)\n\n\S', text)
    assert found
    assert len(found[1]) == len(found[2])
    assert "plt.show()" in text


def test_gradients_of_the_shared_network() -> None:
    """By central differences, in float64."""
    pytest.importorskip("sklearn")
    import numpy as np

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GALLERY))
        patch.delitem(sys.modules, "digits", raising=False)
        import digits  # type: ignore[import-not-found]

        sys.modules.pop("digits")
    seed = np.random.SeedSequence().entropy
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    x, y, *_ = digits.load()
    x, y = x[:40].astype(np.float64), y[:40]
    params = [p.astype(np.float64) + 0.01 * rng.standard_normal(p.shape) for p in digits.init(64, 12, 9, 10)]
    for relu in (True, False):

        def loss(p: list[np.ndarray], relu: bool = relu) -> float:
            z = digits.log_softmax(digits.forward(p, x, relu)[1])
            return -float(z[np.arange(len(y)), y].mean())

        found = digits.gradients(params, x, y, relu=relu)
        for k, p in enumerate(params):
            z = rng.choice([-1.0, 1.0], p.shape)
            ends = []
            for sign in (1e-6, -1e-6):
                moved = [*params]
                moved[k] = p + sign * z
                ends.append(loss(moved))
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(np.vdot(z, found[k]), rel=1e-4, abs=1e-7)
