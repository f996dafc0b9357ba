"""Notebook 09 on a tiny model and few anchors, unless a file has a notebook of its own."""

import pytest
from questions import at_half, open_nb

from cmrm_utils.studies import anchors as ask
from cmrm_utils.studies import gating
from cmrm_utils.studies.registry import STUDIES


@pytest.fixture
def few_anchors(monkeypatch):
    monkeypatch.setattr(ask, "ANCHORS", 6)
    monkeypatch.setattr(gating, "ANCHORS", 6)
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", 6)
    monkeypatch.setattr(ask, "MEANINGLESS", ("black", "blur", "mean"))


@pytest.fixture
def shared_out(monkeypatch):
    """A study's trials by id; from then on its notebook may ask for no other.

    In their order: no list needs what a later one asks.
    """

    def listed(nb, number, parameters):
        asked, ask = {}, nb.ask

        def record(trials):
            missing = {trial.id for trial in trials} - set(asked)
            assert not missing, "asked for what no earlier list has"
            return ask(trials)

        monkeypatch.setattr(nb, "ask", record)
        for trials in STUDIES[number](nb, parameters):
            asked.update({trial.id: trial for trial in trials})
        return asked

    return listed


@pytest.fixture(scope="module")
def nb(family_folders, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrm_utils.studies.notebook.ANCHORS", 6)
        yield open_nb(family_folders, tmp_path_factory.mktemp("nb"))


@pytest.fixture(scope="module")
def chosen(nb):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrm_utils.studies.notebook.ANCHORS", 6)
        yield at_half(nb)


@pytest.fixture
def sets(nb):
    return ask.anchor_sets(nb, sizes=[1, 3, 10**6], draws=2)
