from itertools import pairwise

import matplotlib as mpl
import pandas as pd
from artists import RATES, bar_groups, legend, line_names
from matplotlib.colors import to_hex
from PIL import Image

from cmrm_utils import conditions
from cmrm_utils.conditions import CONDITIONS
from cmrm_utils.results import plots
from cmrm_utils.results.rates import MEASURES


def test_every_condition_and_measure_has_a_colour_and_a_name():
    for condition in CONDITIONS:
        assert condition in conditions.CONDITION_COLOURS
        assert condition in conditions.CONDITION_NAMES
    shown = [conditions.CONDITION_COLOURS[condition] for condition in CONDITIONS]
    assert len(set(shown)) == len(shown)
    assert set(MEASURES) <= set(plots.MEASURE_COLOURS)


def test_what_nobody_listed_has_a_default_colour_and_name():
    curve = pd.DataFrame(
        [("CMRM", 0.0, "new", 0.5, 0.4, 0.6), ("CMRM", 0.1, "new", 0.6, 0.5, 0.7)],
        columns=["method", "alpha", "measure", "rate", "low", "high"],
    )
    assert list(line_names(plots.alpha_curves(curve).axes[0])) == ["new"]
    axis = plots.rate_bars(RATES.assign(image=["own", "new"] * 2), xlabel="unsafe").axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["own image", "new"]
    (bars,) = bar_groups(axis)
    own, new = (to_hex(bar.get_facecolor()) for bar in bars)
    assert own != new
    grey = Image.new("RGB", (4, 4))
    assert plots.prompts({"new": ("How?", grey)}).axes[0].get_title() == "new"


def test_every_panel_counts_for_the_legend():
    rows = pd.DataFrame(
        [("x", 0, "a", 0.2), ("y", 0, "b", 0.9)], columns=["set", "layer", "method", "norm"]
    )
    figure = plots.layer_lines(rows, y="norm", hue="method", ylabel="norm", panel="set")
    assert legend(figure) == ["a", "b"]


def test_names_of_lines_stand_at_their_ends_and_do_not_touch():
    ends = {"a": 0.5, "b": 0.501, "c": 0.9, "d": 0.899, "e": 0.1, "f": 0.101, "g": 0.102}
    rows = pd.DataFrame(
        [(layer, name, end) for name, end in ends.items() for layer in (0, 1)],
        columns=["layer", "method", "norm"],
    )
    axis = plots.layer_lines(rows, y="norm", hue="method", ylabel="norm").axes[0]
    at = line_names(axis)
    assert sorted(at, key=at.get) == ["e", "f", "g", "a", "b", "d", "c"]
    heights = sorted(at.values())
    step = 10.8 / (axis.get_window_extent().height * 72 / axis.figure.dpi)
    assert all(b - a > 0.99 * step for a, b in pairwise(heights))
    assert all(0 <= height <= 1 for height in heights)


def test_a_title_is_broken_where_the_figure_ends():
    figure = plots.titled(plots.pictures({"a": Image.new("RGB", (4, 4))}), "word " * 20)
    lines = figure.get_suptitle().splitlines()
    assert len(lines) > 1
    assert " ".join(lines).split() == ["word"] * 20


def test_a_title_keeps_clear_of_a_legend_where_figures_are_saved_tight(tmp_path):
    rows = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 0.0]})
    plots.style()
    figure = plots.against(rows, x="x", ys=["y"], label="share")
    figure = plots.titled(figure, "word " * 20)
    tops = []
    figure.canvas.mpl_connect(
        "draw_event",
        lambda _: tops.append(
            [each.get_window_extent() for each in (*figure.legends, figure.texts[-1])]
        ),
    )
    figure.savefig(tmp_path / "figure.png", bbox_inches="tight")
    assert all(legend.y1 <= title.y0 for legend, title in tops)


def test_style_gives_figures_a_white_ground():
    with mpl.rc_context():
        plots.style()
        assert mpl.rcParams["figure.facecolor"] == mpl.rcParams["savefig.facecolor"] == "white"


def test_the_look_is_the_same_whatever_a_user_has_set():
    """A matplotlibrc, a style or an earlier theme, of any setting that a figure depends on."""
    plots.style()
    wanted = dict(mpl.rcParams)
    own = {
        "text.usetex": True,
        "savefig.bbox": "standard",
        "savefig.transparent": True,
        "figure.autolayout": True,
        "font.size": 30,
        "font.family": "serif",
        "axes.prop_cycle": mpl.cycler(color=["#000000"]),
        "axes.formatter.use_locale": True,
        "lines.linewidth": 9,
        "svg.fonttype": "path",
        "legend.loc": "center",
        "image.cmap": "gray",
    }
    mpl.rcParams.update(own)
    mpl.style.use("dark_background")
    plots.style()
    assert dict(mpl.rcParams) == wanted
