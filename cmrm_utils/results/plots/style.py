"""One function a figure, fed with tables, never with models.

Every figure has a white ground of its own (so it reads in print and on a dark page), Okabe and
Ito's colour-blind safe colours, and the same colour for the same condition everywhere.
"""

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

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
    """Show one axis in per cent, under a label."""
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


def marks_across(axis: Axes, marks: Mapping[str, float] | None) -> None:
    """Dashed lines of what the points are compared with."""
    for value, name, dashes in zip(
        (marks or {}).values(), marks or {}, ("--", ":", "-."), strict=False
    ):
        axis.axhline(value, color="#222222", linestyle=dashes, linewidth=1.2, label=name)


def span(rows: pd.DataFrame, name: str) -> list[pd.Series]:
    """Error bars of a rate from its interval."""
    return [
        (rows[name] - rows[f"{name}_low"]).clip(lower=0),
        (rows[f"{name}_high"] - rows[name]).clip(lower=0),
    ]
