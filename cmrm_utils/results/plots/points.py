"""Points."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmrm_utils.results.plots.shapes import dots, errors, outside, panels
from cmrm_utils.results.plots.style import (
    CONTROL_COLOURS,
    LABEL_COLOURS,
    MARKERS,
    MEASURE_COLOURS,
    legend,
    looks,
    named,
    percent_axis,
)


def pareto(rows: pd.DataFrame, *, corner: float = 0.9) -> Figure:
    """Refused against utility, one path per method: the whole range, and the corner that matters.

    Args:
        rows: columns ``method, alpha, refused, refused_low, refused_high, utility, utility_low,
            utility_high``.
        corner: the utility from which the second panel shows; alphas are written there.
    """
    figure, whole, near = _trade_off_panels((11.0, 4.0), (1, 1.3))
    for i, (name, look) in enumerate(looks(rows["method"]).items()):
        path = rows[rows["method"] == name].sort_values("alpha")
        look |= {"linewidth": 1, "elinewidth": 0.6, "label": str(name)}
        up = errors(path, "refused", "refused_")
        whole.errorbar(path["utility"], path["refused"], yerr=up, **look)
        _trade_offs(near, path, **look)
        side = ("left", 7) if i % 2 else ("right", -7)
        for point in path[path["utility"] >= corner].itertuples():
            near.annotate(
                f"{point.alpha:g}",
                (point.utility, point.refused),
                xytext=(side[1], 3),
                ha=side[0],
                textcoords="offset points",
                fontsize=8,
                color=look["color"],
            )
    top = 1.05 * float(rows["refused_high"].max())
    whole.set(title="all alphas", xlim=(-0.03, 1.03), ylim=(-0.03 * top, top))
    whole.axvspan(corner, 1.03, color="#000000", alpha=0.05, linewidth=0)
    near.set(title=f"utility from {corner:.0%}, alpha at the points", xlim=(corner - 0.002, 1.004))
    legend(figure, near)
    return figure


def defence_points(settings: pd.DataFrame, defences: pd.DataFrame, *, near: float = 0.6) -> Figure:
    """Refused against utility: every setting on validation, and each defence on the test split.

    Args:
        settings: as :func:`pareto`'s rows, with ``method`` and ``chosen`` (true for the setting
            that was chosen, which is drawn large).
        defences: as :func:`pareto`'s rows, one row per ``method``; a method that was not tried is
            grey and open. One that is not here has small grey points and no name.
        near: the utility from which the second panel shows; from less, if a method has less.
    """
    figure, validation, test = _trade_off_panels((11.5, 4.4), (1, 1))
    named = settings["method"].isin(defences["method"])
    others, settings = settings[~named], settings[named]
    validation.scatter(others["utility"], others["refused"], s=22, color="#999999", linewidths=0)
    for i, method in enumerate(dict.fromkeys([*settings["method"], *defences["method"]])):
        points, there = (
            settings[settings["method"] == method],
            defences[defences["method"] == method],
        )
        shade = CONTROL_COLOURS[i % len(CONTROL_COLOURS)] if len(points) else "#555555"
        marker = MARKERS[(i + i // len(CONTROL_COLOURS)) % len(MARKERS)]
        for chosen, size, alpha in ((False, 22, 0.45), (True, 85, 1.0)):
            these = points[points["chosen"].astype(bool) == chosen]
            validation.scatter(
                these["utility"],
                these["refused"],
                s=size,
                alpha=alpha,
                color=shade,
                marker=marker,
                linewidths=0,
            )
        _trade_offs(
            test,
            there,
            color=shade,
            marker=marker,
            markersize=8,
            markerfacecolor=shade if len(points) else "white",
            linestyle="none",
            elinewidth=0.8,
            label=method,
        )
    validation.set(title="validation split, every setting; large: chosen", ylim=(-0.02, None))
    near = min(near, float(defences["utility"].min()) - 0.03)
    test.set(title="test split, as chosen, 95% intervals", xlim=(near, 1.01))
    legend(figure, test)
    return figure


def _trade_off_panels(
    size: tuple[float, float], ratios: tuple[float, float]
) -> tuple[Figure, Axes, Axes]:
    """Two panels of refused against utility, in per cent; the size in inches."""
    figure, axes = plt.subplots(
        1, 2, figsize=size, sharey=True, width_ratios=ratios, layout="constrained"
    )
    percent_axis(axes[0], "refused (of harmful requests)")
    for axis in axes:
        percent_axis(axis, "utility (questions and benign requests right)", x=True)
    return figure, *axes


def _trade_offs(axis: Axes, rows: pd.DataFrame, **look: Any) -> None:
    """Refused against utility, with the intervals of both."""
    across, up = (errors(rows, name, f"{name}_") for name in ("utility", "refused"))
    axis.errorbar(rows["utility"], rows["refused"], xerr=across, yerr=up, **look)


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
    share: bool = True,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A value per row with its 95% interval, dodged by ``hue``, in panels with rows of their own.

    Args:
        rows: columns ``value, low, high`` and those named by ``label, panel, hue``.
        label: the column that names the rows.
        panel: the column that makes panels.
        xlabel: what the value is.
        hue: the column that colours; None for one colour.
        value: its column.
        across: panels side by side.
        lines: values that are drawn as dashed lines in every panel, by name.
        share: whether the value is a share, whose axis is in per cent; else 0 is marked.
        limits: of the axis, where a few values would stretch it; each of those stands at its edge
            as an arrow and a number.
    """
    parts = dict(list(rows.groupby(panel, sort=False)))
    hues = looks(rows[hue], LABEL_COLOURS) if hue else looks([None])
    lengths = [part[label].nunique() for part in parts.values()]
    heights = [max(lengths[i : i + across]) for i in range(0, len(lengths), across)]
    tall = 0.14 * (len(hues) + 1) * sum(heights) / len(heights) + 0.75
    how: Any = {"height_ratios": [height + 1 for height in heights], "sharex": "all"}
    figure, axes = panels(list(parts), 3.4, tall, across=across, margin=2.6, sharey=False, **how)
    for axis, part in zip(axes, parts.values(), strict=True):
        names = list(part[label].unique())
        for i, (each, look) in enumerate(hues.items()):
            these = part[part[hue] == each] if hue else part
            if len(these):
                at = these[label].map(names.index) + (i - (len(hues) - 1) / 2) * 0.7 / len(hues)
                look = {**look, "label": str(each) if hue else None}
                if limits:
                    within = outside(axis, these[value], at, limits, look["color"])
                    these, at = these[within], at[within]
                dots(axis, these, value, at, markersize=5, elinewidth=1.2, **look)
        for i, (name, where) in enumerate((lines or {}).items()):
            axis.axvline(where, color="#555555", linestyle=["--", ":"][i % 2], label=name)
        axis.set_yticks(range(len(names)), [named(name) for name in names])
        axis.set_ylim(len(names) - 0.4, -0.6)
        if share:
            percent_axis(axis, "", x=True)
        else:
            axis.axvline(0, color="#555555", linewidth=0.8)
        if limits:
            axis.set_xlim(*limits)
    figure.supxlabel(xlabel, fontsize="small")
    legend(figure, *axes)
    return figure


def change_panels(rows: pd.DataFrame, *, label: str) -> Figure:
    """Paired changes in points with 95% intervals: a panel a measure, sorted by the first one's.

    Args:
        rows: ``measure, change, low, high`` and the column named by ``label``.
        label: the column that names the rows.
    """
    measures = list(rows["measure"].unique())
    first = rows[rows["measure"] == measures[0]].sort_values("change")
    names = list(dict.fromkeys([*first[label], *rows[label]]))
    figure, axes = panels(measures, 2.5, 0.27 * len(names) + 1.0, margin=2.4)
    for axis, measure in zip(axes, measures, strict=True):
        these = rows[rows["measure"] == measure]
        shade = MEASURE_COLOURS.get(measure, "#222222")
        at = these[label].map(names.index)
        dots(axis, these, "change", at, marker="o", markersize=5, color=shade, elinewidth=1.4)
        axis.axvline(0, color="#555555", linewidth=0.8)
        # At least 5 points each way, or no change at all would fill the panel.
        axis.set_xlim(1.08 * min(-0.05, these["low"].min()), 1.08 * max(0.05, these["high"].max()))
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}")
        axis.set_xlabel("change (points)")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(-0.6, len(names) - 0.4)
    return figure


def against(rows: pd.DataFrame, *, x: str, ys: Sequence[str], label: str) -> Figure:
    """Columns of a table against another one, a point a row; on the dashed line they are equal.

    Args:
        rows: the columns ``x`` and ``ys``.
        x: the column on the horizontal axis.
        ys: the columns on the vertical axis.
        label: what all of them are of, with the unit.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, look in looks(ys).items():
        axis.plot(rows[x], rows[name], linestyle="none", label=name, alpha=0.8, **look)
    axis.axline((0, 0), slope=1, color="#555555", linestyle="--", linewidth=1)
    axis.axhline(0, color="#555555", linewidth=0.8)
    axis.set(xlabel=f"{x}: {label}", ylabel=f"others: {label}")
    legend(figure, axis)
    return figure
