import numpy as np
import pandas as pd
from artists import RATES, bar_groups, legend, spans
from matplotlib.colors import to_hex

from cmrm_utils.results import plots


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


def test_rate_bars_in_the_order_of_the_rows_beside_the_paper():
    figure = plots.rate_bars(RATES[::-1], ylabel="unsafe", paper={"own": 0.6153, "none": 0.0191})
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
    printed = {(round(text.get_position()[1], 2), text.get_text()) for text in axis.texts}
    assert {(1, "70.0%"), (1, "20.0%"), (1, "10.0%"), (0, "30.0%"), (0, "60.0%")} <= printed
    assert {(1.75, "refused"), (1.75, "neither"), (1.75, "complied")} <= printed
    for bars in bar_groups(axis):
        shown = to_hex(bars[0].get_facecolor()).upper()
        assert shown == plots.OUTCOME_COLOURS[bars.get_label()]
        assert bars[0].get_y() + bars[0].get_height() / 2 == 1


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
