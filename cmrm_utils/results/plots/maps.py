"""Maps."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.results.plots.style import colour, legend, side_by_side


def state_maps(rows: pd.DataFrame, *, layers: Sequence[int]) -> Figure:
    """PCA maps of last-token states, one panel a layer; the large marks are the means.

    Args:
        rows: columns ``layer, image, harmful, pc1, pc2``, one row a state.
        layers: the panels, in order.
    """
    figure, axes = plt.subplots(
        1, len(layers), figsize=(3.1 * len(layers), 3.2), squeeze=False, layout="constrained"
    )
    for axis, layer in zip(axes[0], layers, strict=True):
        for image, these in rows[rows["layer"] == layer].groupby("image", sort=False):
            for harmful, marker in ((True, "x"), (False, "o")):
                part = these[these["harmful"] == harmful]
                if part.empty:
                    continue
                kind = "harmful" if harmful else "benign"
                axis.scatter(
                    part["pc1"],
                    part["pc2"],
                    s=10,
                    marker=marker,
                    linewidths=0.7,
                    facecolors=colour(image) if harmful else "none",
                    edgecolors=None if harmful else colour(image),
                    alpha=0.45,
                )
                axis.scatter(
                    part["pc1"].mean(),
                    part["pc2"].mean(),
                    s=75,
                    marker="X" if harmful else "o",
                    facecolors=colour(image),
                    edgecolors="white",
                    linewidths=1.2,
                    zorder=3,
                    label=f"{CONDITION_NAMES.get(image, image)}, {kind}",
                )
        axis.set_title(f"decoder layer {layer}")
        axis.set_xlabel("PC 1")
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0][0].set_ylabel("PC 2")
    legend(figure, axes[0][0])
    return figure


def heat_map(rows: pd.DataFrame, *, x: str, y: str, xlabel: str, ylabel: str) -> Figure:
    """Rates in a grid, one panel a measure, each cell with its percentage where they are few.

    Args:
        rows: columns ``measure, rate``, and those named by ``x`` and ``y``, in the order of which
            they come.
        x: the columns of the grid.
        y: its rows.
        xlabel: what ``x`` is.
        ylabel: what ``y`` is.
    """
    panels = list(rows["measure"].unique())
    across, down = rows[x].unique(), rows[y].unique()
    figure, axes = side_by_side(
        len(panels), min(1.6 + 0.62 * len(across), 9) * len(panels), 1.2 + 0.36 * len(down)
    )
    for axis, measure in zip(axes[0], panels, strict=True):
        shown = rows[rows["measure"] == measure].pivot(index=y, columns=x, values="rate")
        sns.heatmap(
            shown.loc[down, across],
            ax=axis,
            vmin=0,
            vmax=max(0.1, float(rows["rate"].max())),
            cmap="rocket_r",
            annot=len(across) <= 12,
            fmt=".0%",
            annot_kws={"fontsize": 8},
            linewidths=0.5,
            cbar=measure == panels[-1],
            cbar_kws={"format": PercentFormatter(1.0, decimals=0), "label": "rate"},
        )
        axis.set_title(measure)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel if measure == panels[0] else "")
        axis.tick_params(axis="y", rotation=0)
    return figure


def rate_map(rows: pd.DataFrame, *, x: str, y: str, value: str = "rate", label: str) -> Figure:
    """A rate for every two of two columns, as a map with the numbers on it.

    Args:
        rows: columns ``x, y`` and ``value``.
        x: the column along the axis.
        y: the column downwards.
        value: the rate's column.
        label: what the rate is of.
    """
    wide = rows.pivot(index=y, columns=x, values=value)
    wide = wide.reindex(index=rows[y].unique(), columns=rows[x].unique())
    figure, axis = plt.subplots(figsize=(0.85 * wide.shape[1] + 2.6, 0.45 * wide.shape[0] + 1.2))
    sns.heatmap(
        wide,
        ax=axis,
        cmap="Oranges",
        vmin=0,
        vmax=1,
        annot=True,
        fmt=".0%",
        linewidths=0.5,
        cbar_kws={"label": label, "format": PercentFormatter(1.0, decimals=0)},
    )
    axis.tick_params(axis="y", rotation=0)
    axis.tick_params(axis="x", rotation=0)
    return figure
