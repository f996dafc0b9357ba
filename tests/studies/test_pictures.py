"""Pictures beside harmful requests."""

import pytest
import torch
from PIL import Image
from questions import OPENERS, first_tokens, open_nb

from cmrm_utils import CMRM, Trial, first_logits
from cmrm_utils.studies import pictures
from cmrm_utils.studies.first_token import FirstTokens

pytestmark = pytest.mark.usefixtures("few_anchors")


@pytest.fixture
def nb(family_folders, tmp_path):
    return open_nb(family_folders, tmp_path)


def test_mean_log_odds_of_each_picture_under_each_edit(nb, monkeypatch):
    """Against logits of plain trials."""
    tokens = first_tokens(nb, monkeypatch)
    white = Image.new("RGB", (32, 32), (255,) * 3)
    rows = pictures.picture_odds(tokens, {"mine": white}, [0.5]).set_index(["picture", "method"])
    samples = [trial.sample for trial in tokens.trials if trial.sample.harmful]
    edits = {"no edit": None, "CMRM 0.5": CMRM(nb.anchors.shift(), 0.5)}
    assert len(rows) == 2 * (len(pictures.PERTURBED) + 1)
    for name, edit in edits.items():
        p = first_logits(nb.vlm, [Trial(s, "blank", edit) for s in samples]).softmax(-1)
        inside = p[:, list(OPENERS)].sum(-1)
        wanted = (inside.log() - (1 - inside).log()).mean()
        torch.testing.assert_close(
            rows.loc[("blank", name), "rate"], wanted.item(), atol=1e-4, rtol=0
        )
    assert rows.loc[("mine", "no edit"), "rate"] != rows.loc[("blank", "no edit"), "rate"]


def test_without_openers_a_line_says_so(nb, monkeypatch, capsys):
    monkeypatch.setattr(FirstTokens, "openers", ())
    assert pictures.picture_odds(FirstTokens(nb, 1), {}, [0.5]).empty
    assert "has no refusal log-odds" in capsys.readouterr().out


def test_the_runs_pictures_have_names(nb, monkeypatch):
    plain = Image.new("RGB", (2, 2))
    pairs = [(plain, Image.new("RGB", (2, 2), (9, 9, 9)))] * 2
    object.__setattr__(nb.anchors, "pictures", lambda: pairs)
    found = pictures.attacked(nb)
    assert list(found) == ["attack 1", "attack 2", "attack 1, masked"]
    assert found["attack 1, masked"] is pairs[0][1]
