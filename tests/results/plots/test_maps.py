import numpy as np
import pandas as pd
from artists import spans
from matplotlib.colors import to_hex

from cmrm_utils import conditions
from cmrm_utils.results import plots


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
    by_label = plots.state_maps(rows.replace({"none": "text only"}), layers=[0])
    assert to_hex(by_label.axes[0].collections[1].get_facecolor()[0]).upper() == none


def test_head_ranking():
    rows = pd.DataFrame(
        [(1, 0, 2.0, 1.5, 2.5), (0, 1, 0.5, 0.25, 1.0), (1, 1, 0, -1, 1), (0, 0, -1.0, -2, -0.5)],
        columns=["layer", "head", "change", "low", "high"],
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
