"""A dial."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from cmrm_utils.results.plots.style import OUTCOME_COLOURS

REACH = 12.0
"""Log-odds at either end of the dial; what lies beyond points at the end."""


def refusal_dial(values: Mapping[str, float]) -> Figure:
    """Log-odds of a refusal as needles on half a circle: a dashed grey one, then a black one.

    Args:
        values: log-odds in nats by what they are of, at most two.
    """
    figure = Figure(figsize=(3.6, 2.5), layout="constrained")
    axis = figure.add_subplot(aspect="equal")
    for outcome, start, label, side in (
        ("refused", 0, "refuses", "right"),
        ("complied", 90, "answers", "left"),
    ):
        axis.add_patch(
            Wedge((0, 0), 1, start, start + 90, width=0.22, color=OUTCOME_COLOURS[outcome])
        )
        x = 1.0 if side == "right" else -1.0
        axis.text(x, -0.16, label, ha=side, fontsize=10)
    for tick in np.linspace(-REACH, REACH, 5):
        x, y = _place(tick)
        axis.text(1.14 * x, 1.14 * y, f"{tick:+.0f}" if tick else "0", ha="center", fontsize=9)
    looks: tuple[dict[str, Any], ...] = (
        {"color": "#777777", "ls": (0, (2, 1.2))},
        {"color": "black", "ls": "-"},
    )
    for (name, value), look in zip(values.items(), looks, strict=False):
        x, y = _place(value)
        axis.plot([0, 0.92 * x], [0, 0.92 * y], lw=2.4, label=f"{name}: {value:+.2f}", **look)
    axis.plot(0, 0, "o", color="black", markersize=7)
    axis.set(xlim=(-1.3, 1.3), ylim=(-0.24, 1.3))
    axis.axis("off")
    figure.legend(loc="outside lower center", fontsize=9, handlelength=2.4)
    return figure


def _place(value: float) -> tuple[float, float]:
    """Where on the unit half circle a value is: the left end for the least, the right for most."""
    angle = np.pi * (REACH - np.clip(value, -REACH, REACH)) / (2 * REACH)
    return float(np.cos(angle)), float(np.sin(angle))
