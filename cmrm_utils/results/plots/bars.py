"""Bars."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cmrm_utils.conditions import CONDITION_COLOURS
from cmrm_utils.results.plots.shapes import errors, named_dots
from cmrm_utils.results.plots.style import (
    OUTCOME_COLOURS,
    OUTCOME_INK,
    legend_beside,
    looks,
    named,
    percent_axis,
)


def rate_bars(rows: pd.DataFrame, *, ylabel: str, paper: dict[str, float] | None = None) -> Figure:
    """Rates by image condition, one group of bars per kind, with 95% intervals.

    Args:
        rows: columns ``kind, image, rate, low, high``.
        ylabel: what the rate is of.
        paper: the paper's rates by condition, drawn as dashes in the first group.
    """
    images, groups = list(rows["image"].unique()), list(rows["kind"].unique())
    width = 0.8 / len(images)
    figure, axis = plt.subplots(figsize=(max(5.0, 1.9 * len(groups) + 1.5), 3.6))
    for i, (image, look) in enumerate(looks(images, CONDITION_COLOURS).items()):
        these = rows[rows["image"] == image].set_index("kind").reindex(groups)
        at = np.arange(len(groups)) + (i - (len(images) - 1) / 2) * width
        axis.bar(
            at,
            these["rate"],
            width * 0.92,
            color=look["color"],
            label=named(image),
            yerr=errors(these, "rate"),
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
    legend_beside(axis)
    return figure


def outcome_bars(
    rows: pd.DataFrame, *, label: str, words: Mapping[str, str] | None = None
) -> Figure:
    """Shares of the three outcomes, one bar per row, and beside each bar its shares in per cent.

    Args:
        rows: columns ``refused, complied, neither`` (shares), ``low, high`` (95% interval of
            ``refused``), and the one named by ``label``.
        label: the column that names the bars.
        words: other words for outcomes, for the heads of the columns.
    """
    named = {outcome: outcome for outcome in ("refused", "neither", "complied")} | dict(words or {})
    figure, axis = plt.subplots(figsize=(7.4, 0.42 * len(rows) + 1.1))
    left = np.zeros(len(rows))
    at = np.arange(len(rows))[::-1]
    ink: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": "small"}
    for i, (outcome, word) in enumerate(named.items()):
        share, colour = rows[outcome].to_numpy(float), OUTCOME_COLOURS[outcome]
        axis.barh(at, share, left=left, color=colour, label=word, height=0.72)
        left += share
        x = 1.12 + 0.16 * i
        axis.text(x, at[0] + 0.75, word, color=OUTCOME_INK[outcome], weight="bold", **ink)
        for y, value in zip(at, share, strict=True):
            axis.text(x, y, f"{value:.1%}", **ink)
    ends = [rows["low"], rows["high"]]
    axis.plot(ends, [at, at], color="#222222", linewidth=1.6, solid_capstyle="butt")
    axis.set_yticks(at, rows[label].astype(str))
    axis.set_xlim(0, 1)
    axis.grid(axis="y", visible=False)
    percent_axis(axis, "share of responses; line: 95% interval of refused", x=True)
    return figure


def control_bars(rows: pd.DataFrame, *, label: str, baseline: float, xlabel: str) -> Figure:
    """One rate per control with its 95% interval, and the rate without any edit as a line.

    Args:
        rows: columns ``rate, low, high`` and the one named by ``label``.
        label: the column that names the rows.
        baseline: the rate without an edit.
        xlabel: what the rate is of.
    """
    figure, axis = plt.subplots(figsize=(6.6, 0.36 * len(rows) + 1.1))
    named_dots(axis, rows, "rate", rows[label])
    axis.axvline(baseline, color="#D55E00", linestyle="--", linewidth=1.2, label="no edit")
    axis.set_xlim(-0.02, min(1.02, 1.15 * float(rows["high"].max())))
    percent_axis(axis, xlabel, x=True)
    legend_beside(axis)
    return figure
