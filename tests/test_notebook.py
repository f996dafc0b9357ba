import json

import pytest
from PIL import Image

from cmrm_utils import InputError, Sample
from cmrm_utils.notebook import Notebook


@pytest.fixture
def opened(family_folders, tmp_path):
    """Open a notebook on the tiny LLaVA, in one run folder for all."""
    model = str(family_folders["llava"])

    def open_with(**settings):
        return Notebook.open("01_x", model=model, data="organism", out=tmp_path, settings=settings)

    return open_with


def test_settings_reach_the_model_and_are_shared(opened, tmp_path):
    nb = opened(system="vicuna", batch_size=2)
    assert nb.vlm.prompt_text("Why?", image=False).startswith("A chat between")
    assert nb.vlm.batch_size == 2
    shared = json.loads((tmp_path / "run.json").read_text())
    assert shared["settings"] == {"system": "vicuna"}
    assert opened(system="vicuna", batch_size=3).vlm.batch_size == 3


def test_a_run_has_one_set_of_settings(opened):
    opened(dtype="float32")
    with pytest.raises(InputError, match="settings"):
        opened(dtype="bfloat16")
    with pytest.raises(InputError, match="settings"):
        opened(dtype="float32", pad_to_square=True)


PICTURE = Image.new("RGB", (48, 48), (200, 40, 40))
EVERY = [
    Sample("ask", "How?", PICTURE, kind="harmful"),
    Sample("bare", "How?", kind="benign"),
    Sample("look", "Which colour?", PICTURE, answer="Red.", kind="colour"),
    Sample("pick", "Which?", answer="A", choices=("x", "y"), kind="choice-text"),
]


def plainly(nb, **edits):
    return [(trial.sample.id, trial.image) for trial in nb.plainly(EVERY, **edits)]


def test_what_has_no_image_is_asked_as_text_if_it_is_a_question(opened):
    nb = opened()
    shown = [("ask", "own"), ("look", "own"), ("pick", "none")]
    assert plainly(nb) == shown
    assert plainly(nb, edits=[None, None]) == 2 * shown
    assert nb.conditions == ("none", "caption", "own", "blank", "noise")
    assert nb.baseline == "own image"
    assert len(nb.methods) == 3


def test_a_language_model_alone_is_given_words_only(family_folders, tmp_path):
    model = str(family_folders["vicuna"])
    nb = Notebook.open("04_x", model=model, data="organism", out=tmp_path, max_new_tokens=4)
    assert plainly(nb) == [("ask", "none"), ("bare", "none"), ("pick", "none")]
    swept = nb.sweep([0.1], 2)
    assert swept.edited == []
    assert set(swept.rows["image"]) == {"none"}
    assert set(swept.rows["task"]) == {"harmful", "benign"}  # its questions are about images
    test = nb.test(1, swept)
    assert set(test["setting"]) == {"text only", "caption as text"}
    assert not nb.headline(test, swept).empty
    assert "nothing to subtract" in nb.reading(test, swept)
