import numpy as np
import pandas as pd
from artists import RATES, bar_groups, spans
from matplotlib.colors import to_hex

from cmrm_utils.results import plots


def test_rate_bars():
    figure = plots.rate_bars(RATES, xlabel="unsafe")
    assert [axis.get_title() for axis in figure.axes] == ["harmful", "benign"]
    wanted = {
        "harmful": ([0.02, 0.6], ["2.0%", "60.0%"], [(0.0, 0.1), (0.5, 0.7)]),
        "benign": ([0.0, 0.01], ["0.0%", "1.0%"], [(0.0, 0.05), (0.005, 0.09)]),
    }
    for axis in figure.axes:
        widths, written, ends = wanted[axis.get_title()]
        (bars,) = bar_groups(axis)
        assert [bar.get_width() for bar in bars] == widths
        assert [text.get_text() for text in axis.texts] == written
        assert np.allclose([tuple(s[:, 0]) for s in spans(axis)], ends)
        assert axis.get_xlabel() == "unsafe"
        assert axis.xaxis.get_major_formatter()(0.25) == "25%"
    first = figure.axes[0]
    names = dict(zip(first.get_yticks(), first.get_yticklabels(), strict=True))
    assert {at: name.get_text() for at, name in names.items()} == {1: "text only", 0: "own image"}


def test_rate_bars_in_the_order_of_the_rows_beside_the_paper():
    figure = plots.rate_bars(RATES[::-1], xlabel="unsafe", paper={"own": 0.6153, "caption": 0.05})
    first, other = figure.axes
    assert first.get_yticklabels()[0].get_text() == "own image"
    (dash,) = [line for line in first.lines if line.get_linestyle() == "--"]
    assert dash.get_xdata()[0] == 0.6153
    low, high = dash.get_ydata()
    assert low < first.get_yticks()[0] < high
    assert "LLaVA-7B" in first.get_xlabel()
    assert not [line for line in other.lines if line.get_linestyle() == "--"]


def test_a_condition_that_a_kind_lacks_is_left_open():
    _, benign = plots.rate_bars(RATES.iloc[:3], xlabel="unsafe").axes
    (bars,) = bar_groups(benign)
    assert bars[0].get_width() == 0.0
    assert np.isnan(bars[1].get_width())
    assert [text.get_text() for text in benign.texts] == ["0.0%"]


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
