import numpy as np
import pandas as pd
import pytest
from artists import colour, legend, spans
from matplotlib.colors import to_hex

from cmrm_utils.results import plots


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
    assert legend(axis.figure) == ["CMRM", "random"]


def test_change_panels():
    rows = pd.DataFrame(
        [
            ("refused", "CMRM", -0.1, -0.2, 0.0),
            ("refused", "random", 0.05, 0.0, 0.1),
            ("visual questions", "CMRM", -0.5, -0.6, -0.4),
            ("visual questions", "random", 0.0, 0.0, 0.0),
        ],
        columns=["measure", "method", "change", "low", "high"],
    )
    first, second = plots.change_panels(rows[::-1], label="method").axes
    assert [axis.get_title() for axis in (first, second)] == ["visual questions", "refused"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["CMRM", "random"]
    points = [c.lines[0].get_data() for c in second.containers]
    assert sorted(zip(*points[0], strict=True)) == [(-0.1, 0), (0.05, 1)]
    assert np.allclose(sorted(s[:, 0].tolist() for s in spans(second)), [[-0.2, 0], [0, 0.1]])
    assert first.xaxis.get_major_formatter()(-0.05, 0) == "-5"
    least, most = first.get_xlim()
    assert -0.7 < least < -0.6
    assert 0.05 < most < 0.06


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
    assert there == {"CMRM": [[0.92, 0.2]], "own image": [[0.98, 0.6]]}
    assert drawn[0.8, 0.5] == (22, "#999999")  # not tested, so not named
    across, up = (bars.get_segments() for bars in points["CMRM"].lines[2])
    assert np.allclose(across[0][:, 0], [0.85, 0.95])
    assert np.allclose(up[0][:, 1], [0.15, 0.3])
    assert colour(points["CMRM"].lines[0]) == drawn[0.9, 0.1][1].upper()
    assert points["own image"].lines[0].get_markerfacecolor() == "white"
    assert test.get_xlim()[0] == 0.6
    poor = tradeoffs(("CMRM", 0.2, 0.15, 0.3, 0.1, 0.05, 0.2))
    _, test = plots.defence_points(tried, poor).axes
    assert test.get_xlim()[0] < 0.1  # no method is left out
    assert validation.get_ylabel().startswith("refused")
    assert all(axis.get_xlabel().startswith("utility") for axis in (validation, test))


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


def test_columns_against_another():
    rows = pd.DataFrame({"v": [1.0, 3.0], "random": [0.0, 0.5], "v without refusal": [0.2, 0.1]})
    figure = plots.against(rows, x="v", ys=["random", "v without refusal"], label="points")
    (axis,) = figure.axes
    named = {line.get_label(): line for line in axis.lines}
    assert named["random"].get_ydata().tolist() == [0.0, 0.5]
    assert named["v without refusal"].get_xdata().tolist() == [1.0, 3.0]
    assert axis.get_xlabel() == "v: points"
    assert legend(figure) == ["random", "v without refusal"]


def test_measures_have_their_own_colour_among_dots():
    rows = pd.DataFrame(
        [("a", "p", name, 0.5, 0.4, 0.6) for name in ("unsafe", "neither", "other")],
        columns=["label", "panel", "measure", "rate", "low", "high"],
    )
    (axis,) = plots.dot_panels(rows, label="label", panel="panel", hue="measure", xlabel="x").axes
    shown = {c.get_label(): to_hex(c.lines[0].get_color()).upper() for c in axis.containers}
    assert shown["neither"] == plots.MEASURE_COLOURS["neither"]
    assert shown["unsafe"] == plots.MEASURE_COLOURS["unsafe"]
    assert shown["other"] not in (shown["neither"], shown["unsafe"])


def test_a_value_outside_the_limits_is_a_number_at_the_edge():
    rows = pd.DataFrame(
        {"m": "x", "name": ["a", "b", "c"], "rate": [-9.5, 0.5, 4.25], "low": -10, "high": 5}
    )
    figure = plots.dot_panels(
        rows, label="name", panel="m", xlabel="nats", share=False, limits=(-2.0, 3.0)
    )
    (axis,) = figure.axes
    assert axis.get_xlim() == (-2.0, 3.0)
    assert axis.containers[0].lines[0].get_xydata().tolist() == [[0.5, 1.0]]
    edges = {text.get_text(): text.xy for text in axis.texts}
    left, right = "\N{BLACK LEFT-POINTING TRIANGLE}", "\N{BLACK RIGHT-POINTING TRIANGLE}"
    assert edges == {f"{left} -9.5": (-2.0, 0.0), f"4.2 {right}": (3.0, 2.0)}
