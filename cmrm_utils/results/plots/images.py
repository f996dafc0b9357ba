"""Pictures."""

from collections.abc import Mapping
from textwrap import wrap

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cmrm_utils.results.plots.style import colour, named


def prompts(conditions: Mapping[str, tuple[str, Image.Image | None]]) -> Figure:
    """What a model is given: the picture (or none) and the text of each condition.

    Args:
        conditions: text and picture by image condition.
    """
    figure, axes = plt.subplots(
        1,
        len(conditions),
        figsize=(2.3 * len(conditions), 2.9),
        squeeze=False,
        layout="constrained",
    )
    for axis, (condition, (text, picture)) in zip(axes[0], conditions.items(), strict=True):
        if picture is None:
            axis.set_facecolor("#F4F4F4")
            axis.text(0.5, 0.5, "no image", ha="center", va="center", transform=axis.transAxes)
        _framed(axis, picture)
        axis.set_box_aspect(1)
        axis.set_title(named(condition), color=colour(condition))
        axis.set_xlabel("\n".join(wrap(text, 28)), fontsize=8)
    return figure


def pictures(by_name: Mapping[str, Image.Image]) -> Figure:
    """Pictures side by side, under their names."""
    figure, axes = plt.subplots(1, len(by_name), figsize=(1.75 * len(by_name), 2.2), squeeze=False)
    for axis, (name, picture) in zip(axes[0], by_name.items(), strict=True):
        _framed(axis, picture)
        axis.set_title("\n".join(wrap(named(name), 18)), fontsize=9)
    return figure


def _framed(axis: Axes, picture: Image.Image | None) -> None:
    """A picture, or an empty frame, without ticks."""
    if picture is not None:
        axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
