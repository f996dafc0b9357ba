import numpy as np
import pandas as pd
from artists import colour, line_names

from cmrm_utils.results import plots


def band(collection, x):
    """Low and high of a filled band at x."""
    points = collection.get_paths()[0].vertices
    ys = points[np.isclose(points[:, 0], x), 1]
    return [ys.min(), ys.max()]


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
    assert set(line_names(axis)) == {"own image", "blank image"}
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
    assert set(line_names(figure.axes[0])) == {"a", "no edit", "full edit"}
    assert len({line.get_linestyle() for line in figure.axes[0].lines}) == 3


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
    assert list(line_names(right)) == ["unsafe"]
    assert not line_names(left)


def test_anchor_lines():
    rows = pd.DataFrame(
        {"anchors": [4, 16], "cosine": [0.8, 0.95], "low": [0.7, 0.9], "high": [0.9, 0.99]}
    )
    axis = plots.anchor_lines(rows).axes[0]
    assert np.transpose(axis.lines[0].get_data()).tolist() == [[4, 0.8], [16, 0.95]]
    assert band(axis.collections[0], 16) == [0.9, 0.99]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["4", "16"]
