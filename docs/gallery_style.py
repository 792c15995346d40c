"""How the gallery's pictures look; conf.py has sphinx-gallery call this before each example."""

from typing import Any

from matplotlib import pyplot as plt
from threadpoolctl import threadpool_limits


def reset(gallery_conf: dict[str, Any], script: str) -> None:
    threadpool_limits(1, user_api="blas")  # the examples' products are small: a second thread would only wait
    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "figure.constrained_layout.use": True,
            "figure.dpi": 130,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
        }
    )
