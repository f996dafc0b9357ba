import numpy as np
from PIL import Image

from cmrm_utils.results import plots


def test_prompts():
    grey = Image.new("RGB", (4, 4), (127, 127, 127))
    figure = plots.prompts({"none": ("How?", None), "blank": ("How so?", grey)})
    without, shown = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["text only", "blank image"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["How?", "How so?"]
    assert not without.images
    assert "no image" in [text.get_text() for text in without.texts]
    assert np.array_equal(shown.images[0].get_array(), np.asarray(grey))


def test_pictures():
    shown = {"own": Image.new("RGB", (4, 4), (9, 9, 9)), "found": Image.new("RGB", (4, 4))}
    axes = plots.pictures(shown).axes
    assert [axis.get_title() for axis in axes] == ["own image", "found"]
    assert (axes[0].images[0].get_array() == 9).all()
