"""The look of every figure: colours, markers, axes, legends.

Every figure has a white ground of its own (so it reads in print and on a dark page), Okabe and
Ito's colour-blind safe colours, and the same colour for the same condition everywhere.
"""

from collections.abc import Iterable, Mapping
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from cmrm_utils.conditions import CONDITION_COLOURS, CONDITION_NAMES
from cmrm_utils.results.rates import MEASURES

OUTCOME_COLOURS = {"refused": "#009E73", "complied": "#D55E00", "neither": "#999999"}


OUTCOME_INK = {"refused": "#00704F", "complied": "#A84300", "neither": "#5F5F5F"}
"""The same colours, dark enough for words on white."""


MEASURE_COLOURS = {name: record.colour for name, record in MEASURES.items()} | {
    "utility": "#000000"
}


LABEL_COLOURS = MEASURE_COLOURS | {
    label: CONDITION_COLOURS[key] for key, label in CONDITION_NAMES.items()
}
"""Colours of measures, and of image conditions by their labels."""


CONTROL_COLOURS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#888888",
)


EDITED = "#009E73"
"""The colour of anything that is not an image condition, such as an edit."""


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def style() -> None:
    """Set the look of every figure, whatever a matplotlibrc says; call it once in a notebook."""
    mpl.rcdefaults()
    sns.set_theme(
        style="whitegrid",
        context="notebook",
        font_scale=0.9,
        rc={
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
        },
    )


def named(value: object) -> str:
    """An image condition's name; of anything else, its text."""
    return CONDITION_NAMES.get(value, str(value)) if isinstance(value, str) else str(value)


def colour(condition: str) -> str:
    """An image condition's colour, by its key or its label; of anything else, :data:`EDITED`."""
    keys = {label: key for key, label in CONDITION_NAMES.items()}
    return CONDITION_COLOURS.get(keys.get(condition, condition), EDITED)


def looks(
    values: Iterable[Any], colours: Mapping[Any, str] | None = None
) -> dict[Any, dict[str, Any]]:
    """A colour and a marker for each distinct value, as matplotlib's keyword arguments.

    Args:
        values: what is told apart, in order.
        colours: colours by value; a value without one gets the next of :data:`CONTROL_COLOURS`.
    """
    return {
        value: {
            "color": (colours or {}).get(value, CONTROL_COLOURS[i % len(CONTROL_COLOURS)]),
            "marker": MARKERS[(i + i // len(CONTROL_COLOURS)) % len(MARKERS)],
        }
        for i, value in enumerate(dict.fromkeys(values))
    }


def percent_axis(axis: Axes, label: str, *, x: bool = False) -> None:
    """Show one axis in per cent, under a label."""
    side = axis.xaxis if x else axis.yaxis
    side.set_major_formatter(PercentFormatter(1.0, decimals=0))
    side.set_label_text(label)


def legend(figure: Figure, *axes: Axes) -> None:
    """One legend for all these panels, beside the figure; none where nothing has a label."""
    by_label: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            by_label.setdefault(label, handle)
    if by_label:
        figure.legend(list(by_label.values()), list(by_label), loc="outside right upper")


def label_ends(axis: Axes) -> None:
    """Name a panel's lines beside their ends, moved apart where names would touch.

    A dot has the line's colour and the name is dark, so that every name can be read.
    """
    axis.get_ylim()  # settles the limits, which the places of the ends depend on
    height = axis.get_window_extent().height * 72 / axis.figure.dpi
    step = 1.2 * float(mpl.rcParams["font.size"]) / height
    lines = [line for line in axis.get_lines() if not str(line.get_label()).startswith("_")]
    to_share = axis.transData + axis.transAxes.inverted()
    ends = sorted(
        ((to_share.transform((x[-1], y[-1]))[1], line) for line in lines for x, y in [_line(line)]),
        key=lambda end: end[0],
    )
    at = [end for end, _ in ends]
    for i in range(1, len(at)):  # upwards, then down from the top
        at[i] = max(at[i], at[i - 1] + step)
    for i in range(len(at) - 1, -1, -1):
        at[i] = min(at[i], (at[i + 1] if i + 1 < len(at) else 1.0 + step) - step)
    for y, (_, line) in zip(at, ends, strict=True):
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        place |= {"va": "center", "annotation_clip": False, "fontsize": "small"}
        axis.annotate("\N{BLACK CIRCLE}", (1, y), xytext=(4, 0), color=line.get_color(), **place)
        axis.annotate(str(line.get_label()), (1, y), xytext=(15, 0), color="#222222", **place)


def _line(line: Line2D) -> tuple[Any, Any]:
    """A line's points, as floats."""
    return line.get_xdata(orig=False), line.get_ydata(orig=False)


def titled(figure: Figure, message: str) -> Figure:
    """A figure under a sentence that says what it shows."""
    figure.draw_without_rendering()  # settles where the panels' own titles end
    ends = figure.get_tightbbox()
    # A tight saving has a larger figure, and would move legends up beside the title.
    figure.set_layout_engine("none")
    for outside in figure.legends:
        outside.set_bbox_to_anchor((0, 0, 1, 1), transform=figure.transFigure)
    figure.suptitle(
        "\n".join(wrap(message, int(9.5 * figure.get_figwidth()) + 14)),
        x=ends.x0 / figure.get_figwidth(),
        y=(ends.y1 + 0.08) / figure.get_figheight(),
        ha="left",
        va="bottom",
        fontsize="medium",
        fontweight="bold",
    )
    return figure


def marks_across(axis: Axes, marks: Mapping[str, float] | None) -> None:
    """Dashed lines at the values that the points are compared with, by name."""
    for (name, value), dashes in zip((marks or {}).items(), ("--", ":", "-."), strict=False):
        axis.axhline(value, color="#222222", linestyle=dashes, linewidth=1.2, label=name)
