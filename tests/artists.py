"""What a figure shows."""

import pandas as pd
from matplotlib.colors import to_hex


def legend(owner):
    found = owner.get_legend() if hasattr(owner, "get_legend") else owner.legends[0]
    return [text.get_text() for text in found.get_texts()]


def line_names(axis):
    """The names beside the ends of a panel's lines, each after its dot."""
    notes = [text for text in axis.texts if text.get_text() != "\N{BLACK CIRCLE}"]
    return {text.get_text(): text.xy[1] for text in notes}


def spans(axis):
    """Both ends of each error bar."""
    return [s for c in axis.collections if hasattr(c, "get_segments") for s in c.get_segments()]


def colour(artist):
    return to_hex(artist.get_color()).upper()


def bar_groups(axis):
    return [c for c in axis.containers if hasattr(c, "patches")]


RATES = pd.DataFrame(
    [
        ("harmful", "none", 0.02, 0.0, 0.1),
        ("harmful", "own", 0.6, 0.5, 0.7),
        ("benign", "none", 0.0, 0.0, 0.05),
        ("benign", "own", 0.01, 0.005, 0.09),
    ],
    columns=["kind", "image", "rate", "low", "high"],
)
