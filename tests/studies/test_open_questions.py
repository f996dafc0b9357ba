"""Notebook 09 as a whole, on a tiny model and the organism's world."""

import pytest
from conftest import FIXTURES
from questions import PUBLIC, P, open_nb

from cmrm_utils.studies import abilities, gating, pictures, sweep
from cmrm_utils.studies import anchors as ask
from cmrm_utils.studies.registry import STUDIES

pytestmark = pytest.mark.usefixtures("few_anchors")


def test_what_is_shared_out_is_what_the_notebook_asks(family_folders, tmp_path):
    """Each list as it can be made, and then every part but the attacks: nothing is left to ask."""
    nb = open_nb(family_folders, tmp_path)
    for trials in STUDIES["09"](nb, P):
        nb.ask(trials)
    known = len(nb.run.responses.read_text().splitlines())
    chosen = sweep.choose(
        nb, sweep.levels(nb, P["alphas"]), sweep.validation(nb, P["n_validation"])
    )
    alpha = chosen.alphas["CMRM dataset"]
    sets = ask.anchor_sets(nb, sizes=P["sizes"], draws=P["draws"])
    ask.anchor_effects(nb, sets, alpha, P["doses"], P["n_sets"])
    ask.family_rows(nb, sets, alpha, P["n_sets"])
    abilities.beyond(nb, chosen, P["n_test"])
    abilities.extended(nb, chosen, P["n_test"])
    pictures.perturbed(nb, chosen, P["n_test"])
    _, strengths = gating.gate_curves(nb, chosen, P["gate_alphas"], P["n_validation"])
    gating.gate_test(nb, strengths, P["n_test"])
    assert len(nb.run.responses.read_text().splitlines()) == known


def test_public_sets_have_what_they_have(family_folders, tmp_path, monkeypatch, capsys):
    """Requests of which many have no image, no facts, no families."""
    monkeypatch.setenv("CMRM_DATA", str(FIXTURES))
    nb = open_nb(family_folders, tmp_path, PUBLIC)
    for trials in STUDIES["09"](nb, {**P, "n_test": None}):
        assert trials
        nb.ask(trials)
    chosen = sweep.choose(
        nb, sweep.levels(nb, P["alphas"]), sweep.validation(nb, P["n_validation"])
    )
    shares, changes = abilities.beyond(nb, chosen, None)
    assert shares.empty == changes.empty
    assert abilities.extended(nb, chosen, None) is None
