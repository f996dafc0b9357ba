import json

import pytest

from cmrm_utils import InputError
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
