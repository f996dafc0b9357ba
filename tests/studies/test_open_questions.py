"""Notebook 09 as a whole: what is shared out is what it asks."""

import pytest
from questions import open_nb

from cmrm_utils.studies import abilities
from cmrm_utils.studies.registry import STUDIES

pytestmark = pytest.mark.usefixtures("few_anchors")

P = {"alphas": [0.5], "n_test": 1, "n_reasoning": 2}


@pytest.mark.parametrize("data", ["everyday", "organism+organism-extended"])
def test_what_is_shared_out_is_what_the_notebook_asks(data, family_folders, tmp_path):
    nb = open_nb(family_folders, tmp_path, data)
    for trials in STUDIES["09"](nb, P):
        nb.answers(trials)
    known = len(nb.run.responses.read_text().splitlines())
    if nb.world:
        abilities.extended(nb, P["alphas"], P["n_test"])
    else:
        abilities.reasoning(nb, P["alphas"], P["n_reasoning"])
    assert len(nb.run.responses.read_text().splitlines()) == known
