"""Points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.results.plots.style import (
    CONTROL_COLOURS,
    MARKERS,
    legend,
    percent_axis,
    side_by_side,
    span,
)


def head_ranking(rows: pd.DataFrame, *, xlabel: str, first: int = 12) -> Figure:
    """Every head's effect as a map of layers and heads, and the greatest with their intervals.

    Args:
        rows: columns ``layer, head, effect, low, high``, the greatest effect first.
        xlabel: what the effect is of, with its unit.
        first: how many are shown one by one.
    """
    figure, (whole, near) = plt.subplots(
        1, 2, figsize=(10.5, 0.9 + 0.27 * first), width_ratios=(1, 1.2), layout="constrained"
    )
    most = float(rows["effect"].abs().max()) or 1.0
    sns.heatmap(
        rows.pivot(index="layer", columns="head", values="effect"),
        ax=whole,
        cmap="RdBu_r",
        vmin=-most,
        vmax=most,
        linewidths=0.5 if len(rows) <= 200 else 0,
        cbar_kws={"label": xlabel},
    )
    whole.set_xlabel("head")
    whole.set_ylabel("decoder layer")
    whole.tick_params(axis="y", rotation=0)
    top = rows.head(first)
    at = np.arange(len(top))[::-1]
    span = np.clip([top["effect"] - top["low"], top["high"] - top["effect"]], 0, None)
    near.errorbar(top["effect"], at, xerr=span, fmt="o", color="#0072B2", capsize=3)
    near.axvline(0, color="#555555", linewidth=0.8)
    near.set_yticks(
        at, [f"layer {i}, head {j}" for i, j in zip(top["layer"], top["head"], strict=True)]
    )
    near.set_xlabel(xlabel)
    near.set_title(f"the first {len(top)} of {len(rows)}")
    return figure


def pareto(rows: pd.DataFrame, *, hue: str = "method", corner: float = 0.9) -> Figure:
    """Refused against utility, one path a method: the whole range, and the corner that matters.

    Args:
        rows: columns ``alpha, refused, refused_low, refused_high, utility, utility_low,
            utility_high`` and the one named by ``hue``.
        hue: the column that makes paths.
        corner: the utility from which the second panel shows; alphas are written there.
    """
    figure, (whole, near) = plt.subplots(
        1, 2, figsize=(10.5, 4.0), sharey=True, width_ratios=(1, 1.5), layout="constrained"
    )
    for i, (name, path) in enumerate(rows.groupby(hue, sort=False)):
        path = path.sort_values("alpha")
        colour = CONTROL_COLOURS[i % len(CONTROL_COLOURS)]
        for axis in (whole, near):
            axis.errorbar(
                path["utility"],
                path["refused"],
                xerr=span(path, "utility") if axis is near else None,
                yerr=span(path, "refused"),
                color=colour,
                marker=MARKERS[i % len(MARKERS)],
                linewidth=1,
                elinewidth=0.6,
                label=str(name),
            )
        for _, point in path[path["utility"] >= corner].iterrows():
            near.annotate(
                f"{point['alpha']:g}",
                (point["utility"], point["refused"]),
                xytext=(7 if i % 2 else -7, 3),
                ha="left" if i % 2 else "right",
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    top = 1.05 * float(rows["refused_high"].max())
    whole.set_ylim(-0.03 * top, top)
    whole.set_xlim(-0.03, 1.03)
    near.set_xlim(corner - 0.002, 1.004)
    whole.axvspan(corner, 1.03, color="#000000", alpha=0.05, linewidth=0)
    whole.set_title("all alphas")
    near.set_title(f"utility from {corner:.0%}, alpha at the points")
    percent_axis(whole, "refused (of harmful requests)")
    for axis in (whole, near):
        percent_axis(axis, "utility (questions and benign requests right)", x=True)
    near.legend(loc="best")
    return figure


def defence_points(tried: pd.DataFrame, tested: pd.DataFrame, *, near: float = 0.6) -> Figure:
    """Refused against utility: every setting on validation, and each defence on the test split.

    Args:
        tried: as :func:`pareto`'s rows, with ``method`` and ``chosen`` (true for the setting taken,
            which is drawn large).
        tested: as :func:`pareto`'s rows, one row a ``method``; those not tried are grey and open.
        near: the utility from which the second panel shows.
    """
    figure, (all_tried, test) = plt.subplots(
        1, 2, figsize=(11.5, 4.4), sharey=True, layout="constrained"
    )
    for i, method in enumerate(dict.fromkeys([*tried["method"], *tested["method"]])):
        points = tried[tried["method"] == method]
        colour = CONTROL_COLOURS[i % len(CONTROL_COLOURS)] if len(points) else "#555555"
        marker = MARKERS[(i + i // len(CONTROL_COLOURS)) % len(MARKERS)]
        taken = points["chosen"].astype(bool)
        for these, size, alpha in ((points[~taken], 22, 0.45), (points[taken], 85, 1.0)):
            all_tried.scatter(
                these["utility"],
                these["refused"],
                s=size,
                color=colour,
                marker=marker,
                alpha=alpha,
                linewidths=0,
            )
        there = tested[tested["method"] == method]
        test.errorbar(
            there["utility"],
            there["refused"],
            xerr=span(there, "utility"),
            yerr=span(there, "refused"),
            color=colour,
            marker=marker,
            markersize=8,
            markerfacecolor=colour if len(points) else "white",
            linestyle="none",
            elinewidth=0.8,
            label=method,
        )
    all_tried.set_title("validation split, every setting; large: chosen")
    test.set_title("test split, as chosen, 95% intervals")
    test.set_xlim(near, 1.01)
    all_tried.set_ylim(-0.02, None)
    percent_axis(all_tried, "refused (of harmful requests)")
    for axis in (all_tried, test):
        percent_axis(axis, "utility (questions and benign requests right)", x=True)
    legend(figure, test)
    return figure


def dot_panels(
    rows: pd.DataFrame,
    *,
    label: str,
    panel: str,
    xlabel: str,
    hue: str | None = None,
    value: str = "rate",
    across: int = 3,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """A value a row with its 95% interval, dodged by ``hue``, in panels with rows of their own.

    Args:
        rows: columns ``value, low, high`` and those named by ``label, panel, hue``.
        label: the column that names the rows.
        panel: the column that makes panels.
        xlabel: what the value is; it is shown in per cent.
        hue: the column that colours; None for one colour.
        value: its column.
        across: panels side by side.
        lines: values that are drawn as dashed lines in every panel, by name.
    """
    panels = list(rows[panel].unique())
    hues = [None] if hue is None else list(rows[hue].unique())
    across = min(across, len(panels))
    stacks = [panels[i : i + across] for i in range(0, len(panels), across)]
    parts = {name: rows[rows[panel] == name] for name in panels}
    names = {name: list(part[label].unique()) for name, part in parts.items()}
    heights = [max(len(names[name]) for name in stack) for stack in stacks]
    figure, axes = plt.subplots(
        len(stacks),
        across,
        figsize=(3.4 * across + 2.6, 0.14 * (len(hues) + 1) * sum(heights) + 0.75 * len(stacks)),
        height_ratios=[height + 1 for height in heights],
        squeeze=False,
        sharex="all",
        layout="constrained",
    )
    for axis, name in zip(axes.flat, panels, strict=False):
        for i, each in enumerate(hues):
            these = parts[name] if hue is None else parts[name][parts[name][hue] == each]
            if these.empty:
                continue
            at = these[label].map(names[name].index) + (i - (len(hues) - 1) / 2) * 0.7 / len(hues)
            span = [these[value] - these["low"], these["high"] - these[value]]
            axis.errorbar(
                these[value],
                at,
                xerr=np.clip(span, 0, None),
                fmt=MARKERS[i % len(MARKERS)],
                markersize=5,
                elinewidth=1.2,
                color=CONTROL_COLOURS[i % len(CONTROL_COLOURS)],
                label=None if hue is None else str(each),
            )
        for i, (what, where) in enumerate((lines or {}).items()):
            axis.axvline(where, color="#555555", linestyle=["--", ":"][i % 2], label=what)
        axis.set_yticks(
            range(len(names[name])), [CONDITION_NAMES.get(x, str(x)) for x in names[name]]
        )
        axis.set_ylim(len(names[name]) - 0.4, -0.6)
        axis.set_title(str(name))
        percent_axis(axis, "", x=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    found: dict[str, Any] = {}
    for axis in axes.flat[: len(panels)]:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.supxlabel(xlabel, fontsize="small")
    if found:
        figure.legend(handles=list(found.values()), labels=list(found), loc="outside right upper")
    return figure


def scatter_panels(
    rows: pd.DataFrame,
    *,
    x: Sequence[str],
    y: str,
    hue: str,
    ylabel: str,
    style: str | None = None,
    percent: bool = True,
) -> Figure:
    """One column against each of some others, a panel each.

    Args:
        rows: columns ``x``, ``y`` and those named by ``hue`` and ``style``.
        x: the columns along the axes; their names are the axes' names.
        y: the column upwards.
        hue: the column that colours.
        ylabel: its name, with unit.
        style: a column that makes the markers, in the place of ``hue``.
        percent: whether ``y`` is a share, shown in per cent.
    """
    figure, axes = side_by_side(len(x), 3.3 * len(x) + 1.6, 3.2)
    hues = list(rows[hue].unique())
    styles = list(rows[style].unique()) if style else hues
    for axis, column in zip(axes[0], x, strict=True):
        for (value, marked), these in rows.groupby([hue, style or hue], sort=False):
            axis.scatter(
                these[column],
                these[y],
                s=36,
                color=CONTROL_COLOURS[hues.index(value) % len(CONTROL_COLOURS)],
                marker=MARKERS[styles.index(marked) % len(MARKERS)],
                alpha=0.8,
                label=f"{value}, {marked}" if style else str(value),
            )
        axis.set_xlabel(column)
        axis.margins(x=0.08, y=0.12)
    if percent:
        percent_axis(axes[0][0], ylabel)
    else:
        axes[0][0].set_ylabel(ylabel)
    legend(figure, axes[0][0])
    return figure
