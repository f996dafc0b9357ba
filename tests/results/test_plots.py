import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from PIL import Image

from cmrm_utils import conditions
from cmrm_utils.conditions import CONDITIONS, PERTURBED
from cmrm_utils.results import plots
from cmrm_utils.results.rates import MEASURES


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def legend(owner):
    found = owner.get_legend() if hasattr(owner, "get_legend") else owner.legends[0]
    return [text.get_text() for text in found.get_texts()]


def spans(axis):
    """Both ends of each error bar."""
    return [s for c in axis.collections if hasattr(c, "get_segments") for s in c.get_segments()]


def band(collection, x):
    """Low and high of a filled band at x."""
    points = collection.get_paths()[0].vertices
    ys = points[np.isclose(points[:, 0], x), 1]
    return [ys.min(), ys.max()]


def colour(artist):
    return to_hex(artist.get_color()).upper()


def test_every_condition_and_measure_has_a_colour_and_a_name():
    for condition in CONDITIONS:
        assert condition in conditions.CONDITION_COLOURS
        assert condition in conditions.CONDITION_NAMES
    assert set(PERTURBED) <= set(conditions.CONDITION_NAMES)
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


def test_prompts():
    grey = Image.new("RGB", (4, 4), (127, 127, 127))
    figure = plots.prompts({"none": ("How?", None), "blank": ("How so?", grey)})
    without, shown = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["text only", "blank image"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["How?", "How so?"]
    assert not without.images
    assert "no image" in [text.get_text() for text in without.texts]
    assert np.array_equal(shown.images[0].get_array(), np.asarray(grey))


RATES = pd.DataFrame(
    [
        ("harmful", "none", 0.02, 0.0, 0.1),
        ("harmful", "own", 0.6, 0.5, 0.7),
        ("benign", "none", 0.0, 0.0, 0.05),
        ("benign", "own", 0.01, 0.005, 0.09),
    ],
    columns=["kind", "image", "rate", "low", "high"],
)


def test_rate_bars():
    axis = plots.rate_bars(RATES, ylabel="unsafe").axes[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in bar_groups(axis)}
    assert heights == {"text only": [0.02, 0.0], "own image": [0.6, 0.01]}
    centres = {
        bars.get_label(): [bar.get_x() + bar.get_width() / 2 for bar in bars]
        for bars in bar_groups(axis)
    }
    for i, name in enumerate(["harmful", "benign"]):
        assert axis.get_xticklabels()[i].get_text() == name
        assert centres["text only"][i] < i < centres["own image"][i]
    ends = [tuple(s[:, 1]) for s in spans(axis)]
    wanted = [(0.0, 0.1), (0.0, 0.05), (0.5, 0.7), (0.005, 0.09)]
    assert np.allclose(ends, wanted)
    assert axis.get_ylabel() == "unsafe"
    assert axis.yaxis.get_major_formatter()(0.25) == "25%"
    assert legend(axis) == ["text only", "own image"]


def bar_groups(axis):
    return [c for c in axis.containers if hasattr(c, "patches")]


def test_rate_bars_in_a_given_order_beside_the_paper():
    figure = plots.rate_bars(
        RATES, ylabel="unsafe", images=["own", "none"], paper={"own": 0.6153, "none": 0.0191}
    )
    axis = figure.axes[0]
    assert [bars.get_label() for bars in bar_groups(axis)] == ["own image", "text only"]
    dashes = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashes] == [0.6153, 0.0191]
    for line, bars in zip(dashes, bar_groups(axis), strict=True):
        middle = bars[0].get_x() + bars[0].get_width() / 2
        assert line.get_xdata()[0] < middle < line.get_xdata()[1]
    assert legend(axis).count("paper, LLaVA-7B") == 1


def test_a_condition_that_a_kind_lacks_is_left_open():
    axis = plots.rate_bars(RATES.iloc[:3], ylabel="unsafe").axes[0]
    heights = [[bar.get_height() for bar in bars] for bars in bar_groups(axis)]
    assert heights[0] == [0.02, 0.0]
    assert heights[1][0] == 0.6
    assert np.isnan(heights[1][1])


def test_state_maps():
    rows = pd.DataFrame(
        [
            (0, "none", True, 1.0, 2.0),
            (0, "none", True, 3.0, 8.0),
            (0, "none", False, 3.0, 4.0),
            (0, "own", True, 5.0, 6.0),
            (2, "none", True, 7.0, 8.0),
            (2, "edited", True, 9.0, 1.0),
        ],
        columns=["layer", "image", "harmful", "pc1", "pc2"],
    )
    figure = plots.state_maps(rows, layers=[2, 0])
    second, first = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["decoder layer 2", "decoder layer 0"]

    def points(axis):
        """Cloud and mean by label: each cloud is followed by its mean, which carries the label."""
        offsets = [c.get_offsets().tolist() for c in axis.collections]
        names = [c.get_label() for c in axis.collections[1::2]]
        pairs = zip(offsets[::2], offsets[1::2], strict=True)
        return dict(zip(names, pairs, strict=True))

    assert points(first) == {
        "text only, harmful": ([[1, 2], [3, 8]], [[2, 5]]),
        "text only, benign": ([[3, 4]], [[3, 4]]),
        "own image, harmful": ([[5, 6]], [[5, 6]]),
    }
    assert points(second) == {
        "text only, harmful": ([[7, 8]], [[7, 8]]),
        "edited, harmful": ([[9, 1]], [[9, 1]]),
    }
    colours = [to_hex(c.get_facecolor()[0]).upper() for c in first.collections[1::2]]
    none, own = conditions.CONDITION_COLOURS["none"], conditions.CONDITION_COLOURS["own"]
    assert colours == [none, none, own]


def lines_of(axis):
    return {line.get_label(): np.transpose(line.get_data()).tolist() for line in axis.lines}


def test_layer_lines():
    rows = pd.DataFrame(
        [(1, "own", 0.5), (0, "own", 0.25), (0, "blank", 0.75), (1, "blank", 1.0)],
        columns=["layer", "image", "cosine"],
    )
    figure = plots.layer_lines(
        rows, y="cosine", hue="image", ylabel="cosine", colours={"own": "#123456"}, zero=True
    )
    axis = figure.axes[0]
    found = lines_of(axis)
    assert found["own image"] == [[0, 0.25], [1, 0.5]]  # in order of the layers
    assert found["blank image"] == [[0, 0.75], [1, 1.0]]
    assert colour(axis.lines[0]) == "#123456"
    assert [0, 0] in [list(line.get_ydata()) for line in axis.lines]
    assert axis.get_xticks().tolist() == [0, 1]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("cosine", "decoder layer")
    assert legend(figure) == ["own image", "blank image"]
    assert not axis.collections


def test_layer_lines_with_bands_and_panels():
    rows = pd.DataFrame(
        [("x", 0, "a", 0.2, 0.1, 0.4), ("x", 1, "a", 0.3, 0.2, 0.5), ("y", 0, "a", 0.9, 0.8, 1.0)],
        columns=["set", "layer", "method", "norm", "low", "high"],
    )
    figure = plots.layer_lines(rows, y="norm", hue="method", ylabel="norm", panel="set")
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["x", "y"]
    assert lines_of(left) == {"a": [[0, 0.2], [1, 0.3]]}
    assert lines_of(right) == {"a": [[0, 0.9]]}
    assert band(left.collections[0], 0) == [0.1, 0.4]
    assert band(left.collections[0], 1) == [0.2, 0.5]


def test_layer_lines_beside_marks():
    rows = pd.DataFrame([(0, "a", 0.2), (1, "a", 0.3)], columns=["layer", "set", "rate"])
    marks = {"no edit": 0.6, "full edit": 0.1}
    figure = plots.layer_lines(rows, y="rate", hue="set", ylabel="unsafe", marks=marks)
    levels = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines[1:]}
    assert levels == {"no edit": [0.6, 0.6], "full edit": [0.1, 0.1]}
    assert legend(figure) == ["a", "no edit", "full edit"]
    assert len({line.get_linestyle() for line in figure.axes[0].lines}) == 3


def test_heat_map():
    rows = pd.DataFrame(
        [
            ("unsafe", "text", 1, 0.5),
            ("unsafe", "text", 0, 0.25),
            ("unsafe", "all", 0, 0.75),
            ("unsafe", "all", 1, 1.0),
            ("neither", "text", 0, 0.1),
            ("neither", "text", 1, 0.2),
            ("neither", "all", 0, 0.3),
            ("neither", "all", 1, 0.4),
        ],
        columns=["measure", "tokens", "layer", "rate"],
    )
    figure = plots.heat_map(rows, x="layer", y="tokens", xlabel="layer edited", ylabel="tokens")
    unsafe, neither = figure.axes[:2]
    assert [axis.get_title() for axis in (unsafe, neither)] == ["unsafe", "neither"]
    assert unsafe.collections[0].get_array().tolist() == [[0.5, 0.25], [1.0, 0.75]]
    assert neither.collections[0].get_array().tolist() == [[0.2, 0.1], [0.4, 0.3]]
    assert [text.get_text() for text in unsafe.get_xticklabels()] == ["1", "0"]
    assert [text.get_text() for text in unsafe.get_yticklabels()] == ["text", "all"]
    assert [text.get_text() for text in unsafe.texts] == ["50%", "25%", "100%", "75%"]
    assert unsafe.collections[0].get_clim() == neither.collections[0].get_clim() == (0, 1.0)
    assert (unsafe.get_xlabel(), unsafe.get_ylabel()) == ("layer edited", "tokens")


def test_head_ranking():
    rows = pd.DataFrame(
        [(1, 0, 2.0, 1.5, 2.5), (0, 1, 0.5, 0.25, 1.0), (1, 1, 0, -1, 1), (0, 0, -1.0, -2, -0.5)],
        columns=["layer", "head", "effect", "low", "high"],
    )
    figure = plots.head_ranking(rows, xlabel="gain (logits)", first=3)
    whole, near = figure.axes[:2]
    assert whole.collections[0].get_array().tolist() == [[-1.0, 0.5], [2.0, 0.0]]
    assert whole.collections[0].get_clim() == (-2.0, 2.0)  # no effect is white
    points = near.containers[0].lines[0].get_data()
    assert np.transpose(points).tolist() == [[2.0, 2], [0.5, 1], [0.0, 0]]
    names = [text.get_text() for text in near.get_yticklabels()]
    assert names == ["layer 1, head 0", "layer 0, head 1", "layer 1, head 1"]
    assert np.allclose([s[:, 0] for s in spans(near)], [[1.5, 2.5], [0.25, 1.0], [-1, 1]])
    assert near.get_title() == "the first 3 of 4"
    assert near.get_xlabel() == "gain (logits)"


def test_count_curves():
    rows = pd.DataFrame(
        [
            ("same", "top", 4, 0.2, 0.1, 0.4),
            ("same", "top", 1, 0.6, 0.5, 0.7),
            ("same", "random", 1, 0.7, 0.6, 0.8),
            ("own", "top", 1, 0.3, 0.2, 0.5),
        ],
        columns=["strength", "heads", "k", "rate", "low", "high"],
    )
    figure = plots.count_curves(
        rows,
        x="k",
        hue="heads",
        panel="strength",
        xlabel="heads",
        ylabel="unsafe",
        marks={"no edit": 0.65},
    )
    same, own = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["same", "own"]
    found = {c.get_label(): c.lines[0].get_data() for c in same.containers}
    assert found["top"][1].tolist() == [0.6, 0.2]  # in order of the count
    assert np.allclose(found["top"][0], [1, 4], rtol=0.05)
    assert found["random"][1].tolist() == [0.7]
    assert found["top"][0][0] != found["random"][0][0]
    ends = [s[:, 1].tolist() for s in spans(same)]
    assert np.allclose(sorted(ends), [[0.1, 0.4], [0.5, 0.7], [0.6, 0.8]])
    assert [line.get_ydata()[0] for line in own.lines if line.get_label() == "no edit"] == [0.65]
    assert [text.get_text() for text in own.get_xticklabels()] == ["1", "4"]
    assert (own.get_xlabel(), same.get_ylabel()) == ("heads", "unsafe")
    assert legend(figure) == ["no edit", "top", "random"]


def test_outcome_bars():
    rows = pd.DataFrame(
        [("none", 0.7, 0.1, 0.2, 0.05, 0.18), ("own", 0.3, 0.6, 0.1, 0.5, 0.7)],
        columns=["image", "refused", "complied", "neither", "low", "high"],
    )
    axis = plots.outcome_bars(rows, label="image").axes[0]
    found = {
        bars.get_label(): [(bar.get_x(), bar.get_width()) for bar in bars]
        for bars in bar_groups(axis)
    }
    assert list(found) == ["refused", "neither", "complied"]
    assert np.allclose(found["refused"], [(0, 0.7), (0, 0.3)])
    assert np.allclose(found["neither"], [(0.7, 0.2), (0.3, 0.1)])
    assert np.allclose(found["complied"], [(0.9, 0.1), (0.4, 0.6)])
    names = dict(
        zip(axis.get_yticks(), (t.get_text() for t in axis.get_yticklabels()), strict=True)
    )
    assert names == {1: "none", 0: "own"}  # the first row on top
    intervals = {line.get_ydata()[0]: list(line.get_xdata()) for line in axis.lines}
    assert intervals == {1: [0.05, 0.18], 0: [0.5, 0.7]}
    for bars in bar_groups(axis):
        shown = to_hex(bars[0].get_facecolor()).upper()
        assert shown == plots.OUTCOME_COLOURS[bars.get_label()]
        assert bars[0].get_y() + bars[0].get_height() / 2 == 1


def test_alpha_curves():
    rows = pd.DataFrame(
        [
            ("dataset", 0.1, "unsafe", 0.2, 0.1, 0.3),
            ("dataset", 0.0, "unsafe", 0.6, 0.5, 0.7),
            ("dataset", 0.0, "over-refusal", 0.0, 0.0, 0.1),
            ("dataset", 0.1, "over-refusal", 0.1, 0.05, 0.2),
            ("sample", 0.0, "unsafe", 0.6, 0.5, 0.7),
            ("sample", 0.1, "unsafe", 0.3, 0.2, 0.4),
        ],
        columns=["method", "alpha", "measure", "rate", "low", "high"],
    )
    figure = plots.alpha_curves(rows, chosen={"dataset": 0.05})
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["dataset", "sample"]
    found = lines_of(left)
    assert found["unsafe"] == [[0, 0.6], [0.1, 0.2]]
    assert found["over-refusal"] == [[0, 0.0], [0.1, 0.1]]
    assert lines_of(right) == {"unsafe": [[0, 0.6], [0.1, 0.3]]}
    assert colour(left.lines[0]) == plots.MEASURE_COLOURS["unsafe"]
    assert band(left.collections[0], 0.1) == [0.1, 0.3]
    assert [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == "--"] == [0.05]
    assert len(right.lines) == 1
    assert legend(figure) == ["unsafe", "over-refusal"]


def test_anchor_lines():
    rows = pd.DataFrame(
        {"anchors": [4, 16], "cosine": [0.8, 0.95], "low": [0.7, 0.9], "high": [0.9, 0.99]}
    )
    axis = plots.anchor_lines(rows).axes[0]
    assert np.transpose(axis.lines[0].get_data()).tolist() == [[4, 0.8], [16, 0.95]]
    assert band(axis.collections[0], 16) == [0.9, 0.99]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["4", "16"]


def test_pareto():
    rows = pd.DataFrame(
        [
            ("CMRM", 0.1, 0.1, 0.05, 0.2, 0.9, 0.85, 0.95),
            ("CMRM", 0.0, 0.6, 0.5, 0.7, 0.95, 0.9, 0.97),
            ("random", 0.1, 0.5, 0.4, 0.65, 0.8, 0.75, 0.9),
        ],
        columns=[
            "method",
            "alpha",
            "refused",
            "refused_low",
            "refused_high",
            "utility",
            "utility_low",
            "utility_high",
        ],
    )
    whole, axis = plots.pareto(rows, corner=0.85).axes
    for each in (whole, axis):
        paths = {
            c.get_label(): np.transpose(c.lines[0].get_data()).tolist() for c in each.containers
        }
        assert paths == {"CMRM": [[0.95, 0.6], [0.9, 0.1]], "random": [[0.8, 0.5]]}
    assert axis.get_xlim()[0] == pytest.approx(0.85, abs=0.01)
    assert whole.get_ylim()[1] > 0.7
    across, up = (bars.get_segments() for bars in axis.containers[0].lines[2])
    assert np.allclose([s[:, 0] for s in across], [[0.9, 0.97], [0.85, 0.95]])
    assert np.allclose([s[:, 1] for s in up], [[0.5, 0.7], [0.05, 0.2]])
    notes = {text.get_text(): text.xy for text in axis.texts}
    assert notes == {"0": (0.95, 0.6), "0.1": (0.9, 0.1)}
    assert legend(axis) == ["CMRM", "random"]


def tradeoffs(*rows):
    names = ["method", "refused", "refused_low", "refused_high"]
    names += ["utility", "utility_low", "utility_high"]
    return pd.DataFrame(rows, columns=names)


def test_defence_points():
    tried = tradeoffs(
        ("CMRM", 0.6, 0.5, 0.7, 0.95, 0.9, 0.97),
        ("CMRM", 0.1, 0.05, 0.2, 0.9, 0.85, 0.95),
        ("prompt", 0.5, 0.4, 0.65, 0.8, 0.75, 0.9),
    ).assign(chosen=[False, True, True])
    tested = tradeoffs(
        ("own image", 0.6, 0.5, 0.7, 0.98, 0.9, 1.0),
        ("CMRM", 0.2, 0.15, 0.3, 0.92, 0.85, 0.95),
    )
    validation, test = plots.defence_points(tried, tested).axes
    drawn = {
        tuple(place): (dots.get_sizes()[0], to_hex(dots.get_facecolors()[0]))
        for dots in validation.collections
        for place in dots.get_offsets().data.tolist()
    }
    assert set(drawn) == {(0.95, 0.6), (0.9, 0.1), (0.8, 0.5)}
    assert drawn[0.9, 0.1][0] > drawn[0.95, 0.6][0]
    points = {c.get_label(): c for c in test.containers}
    there = {name: c.lines[0].get_xydata().tolist() for name, c in points.items()}
    assert there == {"CMRM": [[0.92, 0.2]], "prompt": [], "own image": [[0.98, 0.6]]}
    across, up = (bars.get_segments() for bars in points["CMRM"].lines[2])
    assert np.allclose(across[0][:, 0], [0.85, 0.95])
    assert np.allclose(up[0][:, 1], [0.15, 0.3])
    assert colour(points["CMRM"].lines[0]) == drawn[0.9, 0.1][1].upper()
    assert points["own image"].lines[0].get_markerfacecolor() == "white"
    assert validation.get_ylabel().startswith("refused")
    assert all(axis.get_xlabel().startswith("utility") for axis in (validation, test))


def test_binned_rates():
    rows = pd.DataFrame(
        [
            ("text", "own", 0.6, 0.7, 0.6, 0.9),
            ("text", "own", 0.2, 0.3, 0.1, 0.4),
            ("text", "blank", 0.3, 0.2, 0.1, 0.5),
            ("caption", "own", 0.1, 0.9, 0.8, 1.0),
        ],
        columns=["shift", "image", "cosine", "rate", "low", "high"],
    )
    figure = plots.binned_rates(rows, x="cosine", xlabel="cosine", ylabel="unsafe", panel="shift")
    text, caption = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["text", "caption"]
    own = text.containers[0]
    assert own.lines[0].get_xydata().tolist() == [[0.2, 0.3], [0.6, 0.7]]
    assert np.allclose([s[:, 1] for s in own.lines[2][0].get_segments()], [[0.1, 0.4], [0.6, 0.9]])
    assert colour(own.lines[0]) == conditions.CONDITION_COLOURS["own"]
    assert colour(caption.containers[0].lines[0]) == conditions.CONDITION_COLOURS["own"]
    assert legend(figure) == ["own image", "blank image"]
    assert (text.get_xlabel(), text.get_ylabel()) == ("cosine", "unsafe")


def test_control_bars():
    rows = pd.DataFrame(
        [("CMRM", 0.1, 0.05, 0.2), ("random", 0.6, 0.5, 0.7)],
        columns=["method", "rate", "low", "high"],
    )
    axis = plots.control_bars(rows, label="method", baseline=0.63, xlabel="unsafe").axes[0]
    points = axis.containers[0].lines[0].get_data()
    assert np.transpose(points).tolist() == [[0.1, 1], [0.6, 0]]
    names = dict(
        zip(axis.get_yticks(), (t.get_text() for t in axis.get_yticklabels()), strict=True)
    )
    assert names == {1: "CMRM", 0: "random"}
    assert np.allclose([s[:, 0] for s in spans(axis)], [[0.05, 0.2], [0.5, 0.7]])
    assert [line.get_xdata()[0] for line in axis.lines if line.get_label() == "no edit"] == [0.63]
    assert axis.get_xlabel() == "unsafe"


def test_dot_panels():
    rows = pd.DataFrame(
        [
            ("unsafe", "own", "no edit", 0.6, 0.5, 0.7),
            ("unsafe", "own", "CMRM", 0.2, 0.1, 0.3),
            ("unsafe", "jpeg-5", "no edit", 0.5, 0.4, 0.6),
            ("facts", "none", "no edit", 0.9, 0.8, 1.0),
        ],
        columns=["measure", "image", "method", "rate", "low", "high"],
    )
    figure = plots.dot_panels(
        rows, label="image", panel="measure", hue="method", xlabel="share", lines={"start": 0.55}
    )
    first, second = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["unsafe", "facts"]
    assert [t.get_text() for t in first.get_yticklabels()] == ["own image", "JPEG, quality 5"]
    assert [t.get_text() for t in second.get_yticklabels()] == ["text only"]
    plain, edited = (np.transpose(c.lines[0].get_data()) for c in first.containers)
    assert plain[:, 0].tolist() == [0.6, 0.5]
    assert edited[:, 0].tolist() == [0.2]
    assert np.round(plain[:, 1].astype(float)).tolist() == [0, 1]
    assert plain[0, 1] < edited[0, 1]  # side by side, not on one another
    ends = [s[:, 0].tolist() for s in spans(first)]
    assert np.allclose(ends, [[0.5, 0.7], [0.4, 0.6], [0.1, 0.3]])
    assert len(second.containers) == 1
    assert set(legend(figure)) == {"no edit", "CMRM", "start"}
    assert figure.get_supxlabel() == "share"


def test_dot_panels_without_a_hue_have_no_legend():
    rows = pd.DataFrame({"m": "x", "name": ["a", "b"], "rate": 0.5, "low": 0.4, "high": 0.6})
    figure = plots.dot_panels(rows, label="name", panel="m", xlabel="share")
    assert not figure.legends
    assert figure.axes[0].containers[0].lines[0].get_data()[0].tolist() == [0.5, 0.5]


def test_scatter_panels():
    rows = pd.DataFrame({"a": [1, 2, 3], "b": [3, 1, 2], "y": [0.1, 0.2, 0.3]})
    rows = rows.assign(kind=["p", "p", "q"], way=["u", "v", "u"])
    figure = plots.scatter_panels(rows, x=["a", "b"], y="y", hue="kind", ylabel="fall")
    assert [axis.get_xlabel() for axis in figure.axes] == ["a", "b"]
    assert figure.axes[0].get_ylabel() == "fall"
    found = [each.get_offsets().tolist() for each in figure.axes[1].collections]
    assert found == [[[3, 0.1], [1, 0.2]], [[2, 0.3]]]
    assert legend(figure) == ["p", "q"]
    styled = plots.scatter_panels(rows, x=["a"], y="y", hue="kind", ylabel="fall", style="way")
    assert legend(styled) == ["p, u", "p, v", "q, u"]
    first, second, third = styled.axes[0].collections
    assert (first.get_facecolor() == second.get_facecolor()).all()
    assert (first.get_facecolor() != third.get_facecolor()).any()
    shapes = [len(each.get_paths()[0].vertices) for each in (first, second, third)]
    assert shapes[0] == shapes[2] != shapes[1]


def test_rate_map():
    rows = pd.DataFrame(
        [("a", "p", 0.1), ("a", "q", 0.2), ("b", "p", 0.3), ("b", "q", 0.4)],
        columns=["anchors", "asked", "rate"],
    )
    axis = plots.rate_map(rows, x="asked", y="anchors", label="unsafe").axes[0]
    assert [text.get_text() for text in axis.texts] == ["10%", "20%", "30%", "40%"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["p", "q"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "b"]


def test_pictures():
    shown = {"own": Image.new("RGB", (4, 4), (9, 9, 9)), "found": Image.new("RGB", (4, 4))}
    axes = plots.pictures(shown).axes
    assert [axis.get_title() for axis in axes] == ["own image", "found"]
    assert (axes[0].images[0].get_array() == 9).all()


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
