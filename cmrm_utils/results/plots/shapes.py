"""The shapes that figures are built of: panels, lines, points with error bars, heat maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from cmrm_utils.results.plots.style import looks, named


def panels(
    titles: Sequence[object],
    width: float,
    height: float,
    *,
    across: int = 0,
    margin: float = 1.4,
    **grid: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure of one panel per title, in rows from left to right, with one vertical axis.

    Args:
        titles: of the panels; None for no title.
        width: of a panel, in inches.
        height: of a panel, in inches.
        across: panels in a row; 0 for all.
        margin: what the figure is wider than its panels, in inches.
        **grid: other arguments of ``pyplot.subplots``.
    """
    across = min(across or len(titles), len(titles))
    down = -(-len(titles) // across)
    figure, grid_axes = plt.subplots(
        down,
        across,
        figsize=(width * across + margin, height * down),
        squeeze=False,
        layout="constrained",
        **{"sharey": True, **grid},
    )
    axes = list(grid_axes.flat)
    for axis, title in zip(axes, titles, strict=False):
        if title is not None:
            axis.set_title(str(title))
    for spare in axes[len(titles) :]:
        spare.remove()
    return figure, axes[: len(titles)]


def errors(rows: pd.DataFrame, value: str, prefix: str = "") -> NDArray[np.float64]:
    """Lengths of error bars (2, rows): down and up from ``value`` to ``<prefix>low, <prefix>high``.

    A length that is negative or missing is 0.
    """
    low, high = rows[f"{prefix}low"], rows[f"{prefix}high"]
    lengths = np.array([rows[value] - low, high - rows[value]], dtype=float)
    return np.nan_to_num(lengths).clip(min=0)


def banded(axis: Axes, line: pd.DataFrame, x: str, y: str, **look: Any) -> None:
    """A line, and the band from ``low`` to ``high`` if it has these columns."""
    axis.plot(line[x], line[y], **look)
    if {"low", "high"} <= set(line):
        band = {"color": look["color"], "alpha": 0.18, "linewidth": 0}
        axis.fill_between(line[x], line["low"], line["high"], **band)


def line_panels(
    rows: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str,
    panel: str | None,
    size: tuple[float, float],
    colours: Mapping[Any, str] | None = None,
    **grid: Any,
) -> tuple[Figure, dict[Any, Axes]]:
    """One line per value of ``hue``, in order of ``x``, in one panel per value of ``panel``.

    Args:
        rows: columns ``x``, ``y`` and those named by ``hue`` and ``panel``; ``low, high`` where
            there are intervals.
        x: the column on the horizontal axis.
        y: the column on the vertical axis.
        hue: the column that makes lines.
        panel: the column that makes panels; None for a single one without a title.
        size: width and height of a panel, in inches.
        colours: by value of ``hue``.
        **grid: other arguments of :func:`panels`.

    Returns:
        The figure, and its panels by value of ``panel``.
    """
    parts = dict(list(rows.groupby(panel, sort=False))) if panel else {None: rows}
    figure, axes = panels(list(parts), *size, **grid)
    for axis, part in zip(axes, parts.values(), strict=True):
        for value, look in looks(rows[hue], colours).items():
            line = part[part[hue] == value].sort_values(x)
            if len(line):
                banded(axis, line, x, y, markersize=5, label=named(value), **look)
    return figure, dict(zip(parts, axes, strict=True))


def dots(axis: Axes, rows: pd.DataFrame, value: str, at: Any, **look: Any) -> None:
    """Points at heights ``at``, with error bars from ``low`` to ``high``."""
    axis.errorbar(rows[value], at, xerr=errors(rows, value), linestyle="none", **look)


def outside(
    axis: Axes, values: pd.Series, at: pd.Series, limits: tuple[float, float], colour: str
) -> pd.Series:
    """Write each value outside the limits at the edge that it is beyond, with an arrow.

    Returns:
        Which values are not outside.
    """
    within = values.between(*limits) | values.isna()
    for value, height in zip(values[~within], at[~within], strict=True):
        left = value < limits[0]
        said = f"\N{BLACK LEFT-POINTING TRIANGLE} {value:.1f}"
        if not left:
            said = f"{value:.1f} \N{BLACK RIGHT-POINTING TRIANGLE}"
        place: dict[str, Any] = {"xytext": (2 if left else -2, 0), "textcoords": "offset points"}
        place |= {"ha": "left" if left else "right", "va": "center", "fontsize": 8}
        axis.annotate(said, (limits[0 if left else 1], height), color=colour, **place)
    return within


def named_dots(axis: Axes, rows: pd.DataFrame, value: str, names: Sequence[object]) -> None:
    """One point per row with its error bar, the first on top, beside their names."""
    at = np.arange(len(rows))[::-1]
    dots(axis, rows, value, at, marker="o", color="#0072B2", capsize=3)
    axis.set_yticks(at, [str(name) for name in names])


def rate_grid(axis: Axes, wide: pd.DataFrame, label: str, **look: Any) -> None:
    """A heat map of rates, with a colour bar in per cent."""
    bar = {"label": label, "format": PercentFormatter(1.0, decimals=0)}
    sns.heatmap(wide, ax=axis, vmin=0, fmt=".0%", linewidths=0.5, cbar_kws=bar, **look)
    axis.tick_params(axis="y", rotation=0)
