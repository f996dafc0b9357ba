"""Pictures."""

from collections.abc import Mapping
from textwrap import wrap

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from cmrm_utils.conditions import CONDITION_COLOURS, CONDITION_NAMES


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


def pictures(shown: Mapping[str, Image.Image]) -> Figure:
    """Pictures side by side, under their names."""
    figure, axes = plt.subplots(1, len(shown), figsize=(1.75 * len(shown), 2.2), squeeze=False)
    for axis, (name, picture) in zip(axes[0], shown.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title("\n".join(wrap(CONDITION_NAMES.get(name, name), 18)), fontsize=9)
    return figure
