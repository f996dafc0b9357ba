"""Lines, with bands or error bars."""

from collections.abc import Mapping

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cmrm_utils.results.plots.shapes import banded, line_panels
from cmrm_utils.results.plots.style import (
    MEASURE_COLOURS,
    label_ends,
    legend,
    marks_across,
    percent_axis,
)


def layer_lines(
    rows: pd.DataFrame,
    *,
    y: str,
    hue: str,
    ylabel: str,
    colours: dict[str, str] | None = None,
    zero: bool = False,
    panel: str | None = None,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """A quantity along the decoder layers, one line per value of ``hue``.

    Args:
        rows: columns ``layer``, ``y`` and ``hue`` (and ``panel``); ``low`` and ``high`` where
            there are intervals.
        y: the quantity.
        hue: what the lines are.
        ylabel: its name, with unit.
        colours: by value of ``hue``.
        zero: draw the line of zero.
        panel: a column that makes panels side by side.
        marks: values drawn as dashed lines across, by name.
    """
    figure, axes = line_panels(
        rows, x="layer", y=y, hue=hue, panel=panel, size=(4.4, 3.2), colours=colours
    )
    for axis in axes.values():
        if zero:
            axis.axhline(0, color="#555555", linewidth=0.8)
        marks_across(axis, marks)
        layers = sorted(rows["layer"].unique())
        axis.set(xticks=layers[:: 1 + len(layers) // 15], xlabel="decoder layer")
    first = next(iter(axes.values()))
    first.set_ylabel(ylabel)
    if y == "rate":
        percent_axis(first, ylabel)
    if panel:
        legend(figure, *axes.values())
    else:
        label_ends(first)
    return figure


def alpha_curves(
    rows: pd.DataFrame, *, panel: str = "method", chosen: dict[str, float] | None = None
) -> Figure:
    """Rates against alpha, one line per measure, one panel per method, with 95% bands.

    Args:
        rows: columns ``alpha, measure, rate, low, high`` and the one named by ``panel``.
        panel: the column that makes panels.
        chosen: by panel, the alpha chosen on validation, drawn as a vertical line.
    """
    across = 2 if rows[panel].nunique() == 4 else 3
    figure, axes = line_panels(
        rows,
        x="alpha",
        y="rate",
        hue="measure",
        panel=panel,
        size=(3.5, 3.2),
        colours=MEASURE_COLOURS,
        across=across,
        margin=1.6,
    )
    # Without an edit there is alpha 0 alone.
    least = min((alpha for alpha in rows["alpha"] if alpha > 0), default=1.0)
    marks = (0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    ticks = [a for a in marks if a == 0 or least <= a <= rows["alpha"].max()]
    for name, axis in axes.items():
        if chosen and name in chosen:
            axis.axvline(chosen[name], color="#222222", linestyle="--", linewidth=1)
        axis.set_xscale("symlog", linthresh=least, linscale=0.4)
        axis.autoscale(axis="x")
        axis.set_xticks(ticks, [f"{a:g}" for a in ticks])
        axis.set_xlabel("alpha (strength of the edit)")
    for axis in list(axes.values())[::across]:
        percent_axis(axis, "rate")
    every = list(axes.values())
    for last in every[across - 1 :: across] or every[-1:]:
        label_ends(last)
    return figure


def anchor_lines(rows: pd.DataFrame) -> Figure:
    """Cosine with the vector of all anchors, by number of anchors, with its band.

    Args:
        rows: columns ``anchors, cosine, low, high``.
    """
    figure, axis = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    banded(axis, rows, "anchors", "cosine", color="#0072B2", marker="o", markersize=5)
    axis.set_xscale("log", base=2)
    axis.set_xticks(rows["anchors"], rows["anchors"].astype(str))
    axis.set_xlabel("number of anchors")
    axis.set_ylabel("cosine with the vector of all")
    return figure
