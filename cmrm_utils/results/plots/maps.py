"""Maps."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cmrm_utils.results.plots.shapes import named_dots, panels
from cmrm_utils.results.plots.style import colour, legend, named


def state_maps(rows: pd.DataFrame, *, layers: Sequence[int]) -> Figure:
    """PCA maps of last-token states, one panel per layer; the large marks are the means.

    Args:
        rows: columns ``layer, image, harmful, pc1, pc2``, one row per state; ``share1, share2``
            where the axes' shares of the variance are known.
        layers: the panels, in order.
    """
    titles = [f"decoder layer {layer}" for layer in layers]
    figure, axes = panels(titles, 3.1, 3.2, margin=0, sharey=False)
    cloud: dict[str, Any] = {"s": 10, "linewidths": 0.7, "alpha": 0.45}
    mean: dict[str, Any] = {"s": 75, "edgecolors": "white", "linewidths": 1.2, "zorder": 3}
    for axis, layer in zip(axes, layers, strict=True):
        for image, these in rows[rows["layer"] == layer].groupby("image", sort=False):
            shade = colour(str(image))
            cross: dict[str, Any] = {"marker": "x", "color": shade}
            ring: dict[str, Any] = {"marker": "o", "edgecolors": shade, "facecolors": "none"}
            for kind, mark, big in (("harmful", cross, "X"), ("benign", ring, "o")):
                points = these.loc[these["harmful"] == (kind == "harmful"), ["pc1", "pc2"]]
                if len(points):
                    axis.scatter(points["pc1"], points["pc2"], **cloud, **mark)
                    label = f"{named(image)}, {kind}"
                    axis.scatter(*points.mean(), marker=big, color=shade, label=label, **mean)
        shares = rows.loc[rows["layer"] == layer].filter(["share1", "share2"])
        known = [f" ({share:.0%} of variance)" for share in shares.head(1).to_numpy().flat]
        first, second = known or ["", ""]
        axis.set(xlabel=f"PC 1{first}", ylabel=f"PC 2{second}", xticks=[], yticks=[])
    legend(figure, *axes)
    return figure


def head_ranking(rows: pd.DataFrame, *, xlabel: str, first: int = 12) -> Figure:
    """Every head's change as a map of layers and heads, and the greatest with their intervals.

    Args:
        rows: columns ``layer, head, change, low, high``, the greatest change first.
        xlabel: what the change is of, with its unit.
        first: how many are shown one by one.
    """
    figure, (whole, near) = plt.subplots(
        1, 2, figsize=(10.5, 0.9 + 0.27 * first), width_ratios=(1, 1.2), layout="constrained"
    )
    most = float(rows["change"].abs().max()) or 1.0
    sns.heatmap(
        rows.pivot(index="layer", columns="head", values="change"),
        ax=whole,
        cmap="RdBu_r",
        vmin=-most,
        vmax=most,
        linewidths=0.5 if len(rows) <= 200 else 0,
        cbar_kws={"label": xlabel},
    )
    whole.set(xlabel="head", ylabel="decoder layer")
    whole.tick_params(axis="y", rotation=0)
    top = rows.head(first)
    heads = zip(top["layer"], top["head"], strict=True)
    named_dots(near, top, "change", [f"layer {layer}, head {head}" for layer, head in heads])
    near.axvline(0, color="#555555", linewidth=0.8)
    near.set(xlabel=xlabel, title=f"the first {len(top)} of {len(rows)}")
    return figure
