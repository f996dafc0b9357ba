"""Bars."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cmrm_utils.conditions import CONDITION_COLOURS
from cmrm_utils.results.plots.shapes import errors, panels
from cmrm_utils.results.plots.style import (
    OUTCOME_COLOURS,
    OUTCOME_INK,
    looks,
    named,
    percent_axis,
)


def rate_bars(rows: pd.DataFrame, *, xlabel: str, paper: dict[str, float] | None = None) -> Figure:
    """Rates by image condition with 95% intervals, one panel per kind; the rates stand beside.

    Args:
        rows: columns ``kind, image, rate, low, high``.
        xlabel: what the rate is of.
        paper: the paper's rates by condition, drawn as dashes in the first panel.
    """
    images, kinds = list(rows["image"].unique()), list(rows["kind"].unique())
    shades = looks(images, CONDITION_COLOURS)
    size = (3.3, 0.36 * len(images) + 0.9)
    figure, axes = panels(kinds, *size, across=3, margin=1.4, sharex=True)
    at = np.arange(len(images))[::-1]
    for axis, kind in zip(axes, kinds, strict=True):
        these = rows[rows["kind"] == kind].set_index("image").reindex(images)
        fill = [shades[image]["color"] for image in images]
        # The interval is dark and the bar pale, so that neither hides the other.
        axis.barh(at, these["rate"], 0.74, color=fill, alpha=0.6)
        axis.errorbar(
            these["rate"],
            at,
            xerr=errors(these, "rate"),
            linestyle="none",
            elinewidth=1.4,
            capsize=2,
            ecolor="#222222",
        )
        for y, rate in zip(at, these["rate"].fillna(-1), strict=True):
            if rate >= 0:
                axis.text(1.24, y, f"{rate:.1%}", ha="right", va="center", fontsize="small")
        axis.grid(axis="y", visible=False)
        axis.set_yticks(at, [named(image) for image in images])
        percent_axis(axis, xlabel, x=True)
        axis.set(xlim=(0, 1.26), xticks=[0, 0.25, 0.5, 0.75, 1])
    for image, rate in (paper or {}).items():
        if image in images:
            y = at[images.index(image)]
            axes[0].plot([rate, rate], [y - 0.42, y + 0.42], "k--", linewidth=1.8)
    if paper:
        axes[0].set_xlabel(f"{xlabel}; dashes: the paper's LLaVA-7B")
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
