import matplotlib as mpl
import pandas as pd
from artists import RATES, bar_groups, legend
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
    assert legend(plots.alpha_curves(curve)) == ["new"]
    binned = curve.rename(columns={"measure": "image"})
    figure = plots.binned_rates(binned, x="alpha", xlabel="x", ylabel="y", panel="method")
    assert legend(figure) == ["new"]
    bars = plots.rate_bars(RATES.assign(image=["own", "new"] * 2), ylabel="unsafe").axes[0]
    assert legend(bars) == ["own image", "new"]
    own, new = (to_hex(group[0].get_facecolor()) for group in bar_groups(bars))
    assert own != new
    grey = Image.new("RGB", (4, 4))
    assert plots.prompts({"new": ("How?", grey)}).axes[0].get_title() == "new"


def test_every_panel_counts_for_the_legend():
    rows = pd.DataFrame(
        [("x", 0, "a", 0.2), ("y", 0, "b", 0.9)], columns=["set", "layer", "method", "norm"]
    )
    figure = plots.layer_lines(rows, y="norm", hue="method", ylabel="norm", panel="set")
    assert legend(figure) == ["a", "b"]


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
