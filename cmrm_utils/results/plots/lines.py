"""Lines."""

from collections.abc import Mapping

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cmrm_utils.conditions import CONDITION_COLOURS, CONDITION_NAMES
from cmrm_utils.results.plots.style import (
    CONTROL_COLOURS,
    MARKERS,
    MEASURE_COLOURS,
    legend,
    marks_across,
    percent_axis,
    side_by_side,
    span,
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
    """A quantity along the decoder layers, one line a value of ``hue``.

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
    panels = list(rows[panel].unique()) if panel else [None]
    figure, axes = side_by_side(len(panels), 4.4 * len(panels) + 1.4, 3.2)
    names = list(rows[hue].unique())
    for axis, name in zip(axes[0], panels, strict=True):
        shown = rows[rows[panel] == name] if panel else rows
        for i, value in enumerate(names):
            line = shown[shown[hue] == value].sort_values("layer")
            colour = (colours or {}).get(value, CONTROL_COLOURS[i % len(CONTROL_COLOURS)])
            axis.plot(
                line["layer"],
                line[y],
                color=colour,
                marker=MARKERS[i % len(MARKERS)],
                markersize=5,
                label=CONDITION_NAMES.get(value, str(value)),
            )
            if {"low", "high"} <= set(rows.columns):
                axis.fill_between(
                    line["layer"], line["low"], line["high"], color=colour, alpha=0.18, linewidth=0
                )
        if zero:
            axis.axhline(0, color="#555555", linewidth=0.8)
        marks_across(axis, marks)
        axis.set_xticks(sorted(rows["layer"].unique()))
        axis.set_xlabel("decoder layer")
        if name is not None:
            axis.set_title(str(name))
    if y == "rate":
        percent_axis(axes[0][0], ylabel)
    axes[0][0].set_ylabel(ylabel)
    legend(figure, axes[0][0])
    return figure


def count_curves(
    rows: pd.DataFrame,
    *,
    x: str,
    hue: str,
    panel: str,
    xlabel: str,
    ylabel: str,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """A rate against a number of things, on a logarithmic axis, with 95% intervals.

    Args:
        rows: columns ``rate, low, high`` and those named by ``x``, ``hue`` and ``panel``.
        x: the number.
        hue: what the lines are.
        panel: the column that makes panels side by side.
        xlabel: what is counted.
        ylabel: what the rate is of.
        marks: values drawn as dashed lines across, by name.
    """
    panels, names = list(rows[panel].unique()), list(rows[hue].unique())
    ticks = sorted(rows[x].unique())
    figure, axes = side_by_side(len(panels), 4.2 * len(panels) + 1.8, 3.3)
    for axis, name in zip(axes[0], panels, strict=True):
        for i, value in enumerate(names):
            line = rows[(rows[panel] == name) & (rows[hue] == value)].sort_values(x)
            # Side by side, or one interval would hide another.
            axis.errorbar(
                line[x] * 1.04 ** (i - (len(names) - 1) / 2),
                line["rate"],
                yerr=[
                    (line["rate"] - line["low"]).clip(lower=0),
                    (line["high"] - line["rate"]).clip(lower=0),
                ],
                color=CONTROL_COLOURS[i % len(CONTROL_COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=5,
                elinewidth=0.9,
                capsize=2,
                label=str(value),
            )
        marks_across(axis, marks)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(xlabel)
        axis.set_title(str(name))
    percent_axis(axes[0][0], ylabel)
    legend(figure, axes[0][0])
    return figure


def alpha_curves(
    rows: pd.DataFrame, *, panel: str = "method", chosen: dict[str, float] | None = None
) -> Figure:
    """Rates against alpha, one line a measure, one panel a method, with 95% bands.

    Args:
        rows: columns ``alpha, measure, rate, low, high`` and the one named by ``panel``.
        panel: the column that makes panels.
        chosen: by panel, the alpha chosen on validation, drawn as a vertical line.
    """
    panels = list(rows[panel].unique())
    across = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(3.9 * across + 1.6, 3.2 * down),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    alphas = sorted(rows["alpha"].unique())
    positive = [a for a in alphas if a > 0] or [1.0]  # a model without edits has alpha 0 alone
    for axis, name in zip(axes.flat, panels, strict=False):
        for i, (measure, line) in enumerate(
            rows[rows[panel] == name].groupby("measure", sort=False)
        ):
            line = line.sort_values("alpha")
            colour = MEASURE_COLOURS[str(measure)]
            axis.plot(
                line["alpha"],
                line["rate"],
                color=colour,
                marker=MARKERS[i % len(MARKERS)],
                markersize=5,
                label=measure,
            )
            axis.fill_between(
                line["alpha"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0
            )
        if chosen and name in chosen:
            axis.axvline(chosen[name], color="#222222", linestyle="--", linewidth=1)
        axis.set_xscale("symlog", linthresh=min(positive), linscale=0.4)
        ticks = [a for a in (0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if not 0 < a < min(positive)]
        ticks = [a for a in ticks if a <= max(alphas)]
        axis.set_xticks(ticks, [f"{a:g}" for a in ticks])
        axis.set_xlabel("alpha (strength of the edit)")
        axis.set_title(str(name))
    for left in axes[:, 0]:
        percent_axis(left, "rate")
    for spare in axes.flat[len(panels) :]:
        spare.remove()
    legend(figure, axes[0][0])
    return figure


def anchor_lines(rows: pd.DataFrame) -> Figure:
    """Cosine with the vector of all anchors, by number of anchors, with its band.

    Args:
        rows: columns ``anchors, cosine, low, high``.
    """
    figure, axis = plt.subplots(figsize=(5.4, 3.2))
    axis.plot(rows["anchors"], rows["cosine"], color="#0072B2", marker="o", markersize=5)
    axis.fill_between(
        rows["anchors"], rows["low"], rows["high"], color="#0072B2", alpha=0.18, linewidth=0
    )
    axis.set_xscale("log", base=2)
    axis.set_xticks(rows["anchors"], rows["anchors"].astype(str))
    axis.set_xlabel("number of anchors")
    axis.set_ylabel("cosine with the vector of all")
    return figure


def binned_rates(rows: pd.DataFrame, *, x: str, xlabel: str, ylabel: str, panel: str) -> Figure:
    """A rate against a quantity in bins, one line an image condition, with 95% intervals.

    Args:
        rows: columns ``image, rate, low, high`` and those named by ``x`` and ``panel``.
        x: the quantity, its mean in the bin.
        xlabel: its name.
        ylabel: what the rate is of.
        panel: the column that makes panels side by side.
    """
    panels = list(rows[panel].unique())
    figure, axes = side_by_side(len(panels), 4.6 * len(panels) + 1.4, 3.6)
    images = list(rows["image"].unique())
    for axis, name in zip(axes[0], panels, strict=True):
        for image, line in rows[rows[panel] == name].groupby("image", sort=False):
            line = line.sort_values(x)
            axis.errorbar(
                line[x],
                line["rate"],
                yerr=span(line.assign(rate_low=line["low"], rate_high=line["high"]), "rate"),
                color=CONDITION_COLOURS[str(image)],
                marker=MARKERS[images.index(image) % len(MARKERS)],
                markersize=5,
                linewidth=1.2,
                elinewidth=0.8,
                label=CONDITION_NAMES[str(image)],
            )
        axis.set_title(str(name))
        axis.set_xlabel(xlabel)
    axes[0][0].set_ylim(-0.02, 1.02)
    percent_axis(axes[0][0], ylabel)
    legend(figure, axes[0][0])
    return figure
