"""Gates as detectors."""

import pytest
import torch
from questions import open_nb

from cmrm_utils import InputError
from cmrm_utils.studies import gating

pytestmark = pytest.mark.usefixtures("few_anchors")


@pytest.fixture
def nb(family_folders, tmp_path):
    return open_nb(family_folders, tmp_path)


def test_states_that_tell_give_a_whole_area(nb, monkeypatch):
    """Harmful states lie apart from the others as text, and nothing does beside the image."""
    noise = torch.Generator().manual_seed(0)

    def states(_, trials):
        values = 0.01 * torch.randn(len(trials), 3, 32, generator=noise)
        for value, trial in zip(values, trials, strict=True):
            if trial.image == "none":
                value += 5 if trial.sample.harmful else -5
        return values

    monkeypatch.setattr(gating, "hidden_states", states)
    rows = gating.areas(nb, 2, 4).set_index(["state", "gate"])
    for gate in ("difference of means", "probe", "neighbours"):
        assert rows.loc[("text state", gate), "rate"] == 1
        assert rows.loc[("beside the image", gate), "rate"] < 0.95
    assert set(rows["n"]) == {16}  # both forms of request, and their twins


def test_without_benign_anchors_nothing_is_fitted(nb, monkeypatch, capsys):
    only = nb.samples("anchors", 2, "harmful")
    monkeypatch.setattr(type(nb), "samples", lambda self, *a: _raise_for(a, only))
    assert gating.areas(nb, 2, 2).empty
    assert "no benign" in capsys.readouterr().out


def _raise_for(asked, only):
    if "benign" in asked:
        raise InputError("no benign requests")
    return only
