"""The look of every figure: colours, markers, axes, legends.

Every figure has a white ground of its own (so it reads in print and on a dark page), Okabe and
Ito's colour-blind safe colours, and the same colour for the same condition everywhere.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cmrm_utils.conditions import CONDITION_COLOURS, CONDITION_NAMES
from cmrm_utils.results.rates import MEASURES

OUTCOME_COLOURS = {"refused": "#009E73", "complied": "#D55E00", "neither": "#999999"}


OUTCOME_INK = {"refused": "#00704F", "complied": "#A84300", "neither": "#5F5F5F"}
"""The same colours, dark enough for words on white."""


MEASURE_COLOURS = {name: record.colour for name, record in MEASURES.items()} | {
    "utility": "#000000"
}


CONTROL_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


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
    """An image condition's colour, by its key; of anything else, :data:`EDITED`."""
    return CONDITION_COLOURS.get(condition, EDITED)


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


def legend_beside(axis: Axes) -> None:
    """A panel's legend, to its right."""
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")


def marks_across(axis: Axes, marks: Mapping[str, float] | None) -> None:
    """Dashed lines at the values that the points are compared with, by name."""
    for (name, value), dashes in zip((marks or {}).items(), ("--", ":", "-."), strict=False):
        axis.axhline(value, color="#222222", linestyle=dashes, linewidth=1.2, label=name)
