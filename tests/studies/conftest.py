"""What the tests of studies share."""

import pytest

from cmrm_utils.studies.registry import STUDIES


@pytest.fixture
def few_anchors(monkeypatch):
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", 6)


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
