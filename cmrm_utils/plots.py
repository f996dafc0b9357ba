"""One function a figure, fed with tables, never with models.

Every figure has a white ground of its own (so it reads in print and on a dark page), Okabe and
Ito's colour-blind safe colours, and the same colour for the same condition everywhere.
"""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from cmrm_utils.conditions import CONDITION_COLOURS, CONDITION_NAMES

OUTCOME_COLOURS = {"refused": "#009E73", "complied": "#D55E00", "neither": "#999999"}


MEASURE_COLOURS = {
    "refused": "#009E73",
    "unsafe": "#D55E00",
    "over-refusal": "#E69F00",
    "benign answered": "#0072B2",
    "visual questions": "#CC79A7",
    "choices": "#8C6D31",
    "facts": "#56B4E9",
    "abstentions": "#000000",
    "neither": "#999999",
    "utility": "#000000",
}


CONTROL_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


SETTING_COLOURS = {
    **{CONDITION_NAMES[image]: colour for image, colour in CONDITION_COLOURS.items()},
    "edited": "#009E73",
}


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def style() -> None:
    """Set the look of every figure, whatever a matplotlibrc says; call it once in a notebook."""
    mpl.rcdefaults()
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.9)
    mpl.rcParams.update(
        {
            "figure.facecolor": "white",
            "figure.dpi": 90,
            "savefig.dpi": 150,
            "savefig.facecolor": "white",
            "savefig.bbox": "tight",
            "svg.hashsalt": "cmrm",
            "svg.fonttype": "none",
            "axes.titlesize": "medium",
            "legend.frameon": False,
            "grid.color": "#DDDDDD",
        }
    )


def colour(condition: str) -> str:
    """Of an image condition, by key or name; of anything edited, the edit's own."""
    edited = SETTING_COLOURS["edited"]
    return CONDITION_COLOURS.get(condition, SETTING_COLOURS.get(condition, edited))


def percent_axis(axis: Axes, label: str, *, x: bool = False) -> None:
    side = axis.xaxis if x else axis.yaxis
    side.set_major_formatter(PercentFormatter(1.0, decimals=0))
    side.set_label_text(label)


def side_by_side(panels: int, width: float, height: float) -> tuple[Figure, NDArray]:
    """So many panels in one row, with one vertical axis; axes ``(1, panels)``, sizes in inches."""
    return plt.subplots(
        1, panels, figsize=(width, height), squeeze=False, sharey=True, layout="constrained"
    )


def legend(figure: Figure, axis: Axes) -> None:
    """One panel's legend for the whole figure, beside it."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")


def prompts(shown: Mapping[str, tuple[str, Image.Image | None]]) -> Figure:
    """What a model is given: the picture (or none) and the text of each condition.

    Args:
        shown: text and picture by image condition.
    """
    figure, axes = plt.subplots(1, len(shown), figsize=(2.3 * len(shown), 2.9))
    for axis, (condition, (text, picture)) in zip(axes, shown.items(), strict=True):
        if picture is None:
            axis.set_facecolor("#F4F4F4")
            axis.text(0.5, 0.5, "no image", ha="center", va="center", transform=axis.transAxes)
        else:
            axis.imshow(picture, interpolation="nearest", aspect="equal")
        axis.set_box_aspect(1)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(CONDITION_NAMES[condition], color=CONDITION_COLOURS[condition])
        axis.set_xlabel("\n".join(wrap(text, 28)), fontsize=8)
    return figure


def rate_bars(
    rows: pd.DataFrame,
    *,
    ylabel: str,
    hue: str = "kind",
    images: Sequence[str] | None = None,
    paper: dict[str, float] | None = None,
) -> Figure:
    """Rates by image condition, one group of bars a kind, with 95% intervals.

    Args:
        rows: columns ``image, rate, low, high`` and the one named by ``hue``.
        ylabel: what the rate is of.
        hue: the column that makes groups along the axis; colours are the image conditions.
        images: order of the conditions; by default as they come.
        paper: the paper's rates by condition, drawn as dashes in the first group.
    """
    images = list(images or rows["image"].unique())
    groups = list(rows[hue].unique())
    width = 0.8 / len(images)
    figure, axis = plt.subplots(figsize=(max(5.0, 1.9 * len(groups) + 1.5), 3.6))
    for i, image in enumerate(images):
        these = rows[rows["image"] == image].set_index(hue).reindex(groups)
        at = np.arange(len(groups)) + (i - (len(images) - 1) / 2) * width
        span = np.array([these["rate"] - these["low"], these["high"] - these["rate"]])
        axis.bar(
            at,
            these["rate"],
            width * 0.92,
            color=CONDITION_COLOURS[image],
            label=CONDITION_NAMES[image],
            yerr=np.nan_to_num(span).clip(min=0),
            error_kw={"elinewidth": 1.2, "capsize": 2, "ecolor": "#222222"},
        )
        if paper and image in paper:
            axis.plot(
                [at[0] - width / 2, at[0] + width / 2],
                [paper[image]] * 2,
                color="black",
                linestyle=(0, (2, 1)),
                linewidth=1.6,
                label="paper, LLaVA-7B" if image == next(iter(paper)) else None,
            )
    axis.set_xticks(np.arange(len(groups)), groups)
    axis.set_ylim(0, 1.02)
    axis.grid(axis="x", visible=False)
    percent_axis(axis, ylabel)
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


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


def marks_across(axis: Axes, marks: Mapping[str, float] | None) -> None:
    """Dashed lines of what the points are compared with."""
    for value, name, dashes in zip(
        (marks or {}).values(), marks or {}, ("--", ":", "-."), strict=False
    ):
        axis.axhline(value, color="#222222", linestyle=dashes, linewidth=1.2, label=name)


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


def outcome_bars(rows: pd.DataFrame, *, label: str) -> Figure:
    """Shares of the three outcomes, one bar a row.

    Args:
        rows: columns ``refused, complied, neither`` (shares), ``low, high`` (95% interval of
            ``refused``), and the one named by ``label``.
        label: the column that names the bars.
    """
    figure, axis = plt.subplots(figsize=(7.4, 0.42 * len(rows) + 1.1))
    left = np.zeros(len(rows))
    at = np.arange(len(rows))[::-1]
    for outcome in ("refused", "neither", "complied"):
        share = rows[outcome].to_numpy(float)
        axis.barh(at, share, left=left, color=OUTCOME_COLOURS[outcome], label=outcome, height=0.72)
        left += share
    for place, low, high in zip(at, rows["low"], rows["high"], strict=True):
        axis.plot(
            [low, high], [place, place], color="#222222", linewidth=1.6, solid_capstyle="butt"
        )
    axis.set_yticks(at, rows[label].astype(str))
    axis.set_xlim(0, 1)
    axis.grid(axis="y", visible=False)
    percent_axis(axis, "share of responses; line: 95% interval of refused", x=True)
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
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


def span(rows: pd.DataFrame, name: str) -> list[pd.Series]:
    """Error bars of a rate from its interval."""
    return [
        (rows[name] - rows[f"{name}_low"]).clip(lower=0),
        (rows[f"{name}_high"] - rows[name]).clip(lower=0),
    ]


def control_bars(rows: pd.DataFrame, *, label: str, baseline: float, xlabel: str) -> Figure:
    """One rate a control with its 95% interval, and the rate without any edit as a line.

    Args:
        rows: columns ``rate, low, high`` and the one named by ``label``.
        label: the column that names the rows.
        baseline: the rate without an edit.
        xlabel: what the rate is of.
    """
    figure, axis = plt.subplots(figsize=(6.6, 0.36 * len(rows) + 1.1))
    at = np.arange(len(rows))[::-1]
    span = [rows["rate"] - rows["low"], rows["high"] - rows["rate"]]
    axis.errorbar(
        rows["rate"], at, xerr=np.clip(span, 0, None), fmt="o", color="#0072B2", capsize=3
    )
    axis.axvline(baseline, color="#D55E00", linestyle="--", linewidth=1.2, label="no edit")
    axis.set_yticks(at, rows[label].astype(str))
    axis.set_xlim(-0.02, min(1.02, 1.15 * float(rows["high"].max())))
    percent_axis(axis, xlabel, x=True)
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
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


def pictures(shown: Mapping[str, Image.Image]) -> Figure:
    """Pictures side by side, under their names."""
    figure, axes = plt.subplots(1, len(shown), figsize=(1.75 * len(shown), 2.2), squeeze=False)
    for axis, (name, picture) in zip(axes[0], shown.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title("\n".join(wrap(CONDITION_NAMES.get(name, name), 18)), fontsize=9)
    return figure
