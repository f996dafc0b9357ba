"""Reasoning, and what an edit changes beside refusals."""

import numpy as np
import pandas as pd
import pytest
import torch
from questions import first_tokens, open_nb

from cmrm_utils import CMRM, load_vlm
from cmrm_utils.judges.fluency import continuation, perplexity
from cmrm_utils.studies import abilities
from cmrm_utils.studies.attack import answer_losses
from cmrm_utils.trials import grid

pytestmark = pytest.mark.usefixtures("few_anchors")


@pytest.fixture
def nb(family_folders, tmp_path):
    return open_nb(family_folders, tmp_path)


def test_questions_of_both_kinds_with_answers_and_images(nb):
    samples = abilities.reasoning_samples(nb, 80)
    assert len(samples) == 2 * 80
    assert all(s.image is not None and s.answer and s.task == "fact" for s in samples)


def test_right_answers_are_counted_and_kept_to_those_right_as_text(nb, monkeypatch):
    """The model says every answer as text, and beside an image that of the first question."""
    samples = abilities.reasoning_samples(nb, 3)

    def said(trials):
        known = [t.image == "none" or t.sample.id == samples[0].id for t in trials]
        return [t.sample.answer if k else "?" for t, k in zip(trials, known, strict=True)]

    monkeypatch.setattr(nb, "responses", said)
    rows = abilities.reasoning(nb, [0.5], 3).set_index(["measure", "setting"])["rate"]
    assert rows["right", "text"] == 1
    assert rows["right", "image"] == pytest.approx(1 / len(samples))
    assert rows["right where the text was", "image, CMRM 0.5"] == pytest.approx(1 / len(samples))
    assert rows[abilities.LIKELY, "text"] < 0


def test_losses_of_answers_are_the_log_of_their_perplexity(nb):
    """Unedited against the scorer of responses, and an edit changes them."""
    for image in ("none", "own"):
        trials = grid(nb.samples("test", 1, "harmful"), images=[image])
        said = ["a b", "c"][: len(trials)]
        ids = [continuation(nb.vlm, *pair) for pair in zip(trials, said, strict=True)]
        with torch.inference_mode():
            found = answer_losses(nb.vlm, trials, ids)
            edit = CMRM(nb.anchors.shift(), 1.0)
            other = answer_losses(
                nb.vlm, grid([t.sample for t in trials], images=[image], edits=[edit]), ids
            )
        wanted = np.log(perplexity(nb.vlm, trials, said))
        assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)
        assert (found - other).abs().min() > 1e-5


def test_an_idle_edit_changes_nothing_and_v_does(nb, monkeypatch):
    tokens, v = first_tokens(nb, monkeypatch), nb.anchors.shift()
    edits = {"idle": CMRM(v, 0.0), "v": CMRM(v, 1.0)}
    rows = abilities.entanglement(tokens, edits, 1).set_index(["edit", "measure"])["change"]
    assert isinstance(rows, pd.Series)
    assert len(rows) == 2 * 6
    assert rows["idle"].abs().max() < 1e-6
    assert rows["v"].abs().min() > 1e-6


def test_a_checkpoint_is_compared_with_the_notebooks_model(nb, family_folders, monkeypatch):
    """Its own copy changes nothing; with another last norm it does, and the order is kept."""
    tokens = first_tokens(nb, monkeypatch)
    same, other = (load_vlm(str(family_folders["llava"])) for _ in range(2))
    with torch.no_grad():
        norm = other.model.get_decoder().norm.weight
        norm.mul_(torch.linspace(0.5, 2, len(norm)))
    edits = {"same": same, "idle": CMRM(nb.anchors.shift(), 0.0), "other": other}
    rows = abilities.entanglement(tokens, edits, 1).set_index(["edit", "measure"])["change"]
    assert list(rows.index.levels[0]) == ["idle", "other", "same"]
    assert rows[["same", "idle"]].abs().max() < 1e-6
    assert rows["other"].abs().min() > 1e-6


def test_defences_are_tried_in_one_setting_each_on_every_list_of_trials(nb, monkeypatch):
    """A prompt counts as well as an edit; where nothing is shown, a sample's own shift is none."""
    tokens, methods = first_tokens(nb, monkeypatch), abilities.defences(nb)
    assert {len(method.settings) for method in methods.values()} == {1}
    assert {"ShiftDC, as published", "SafeSteer", "safety prompt"} <= set(methods)
    assert not {"ECSO", "ShiftDC", "CMRM dataset", "CMRM, as published"} & set(methods)
    few = {name: methods[name] for name in ("ShiftDC, as published", "safety prompt")}
    rows = abilities.entanglement(tokens, few, 1).set_index(["edit", "measure"])["change"]
    assert len(rows) == 2 * 6
    idle = rows["ShiftDC, as published", "text, cross-entropy"]
    assert idle == pytest.approx(0.0, abs=1e-6)
    assert rows.drop(("ShiftDC, as published", "text, cross-entropy")).abs().min() > 1e-6


def test_the_invented_worlds_written_words_have_a_table(family_folders, tmp_path, capsys):
    nb = open_nb(family_folders, tmp_path, "organism+organism-extended")
    rows = abilities.extended(nb, [0.5], 1)
    assert set(rows["kind"]) == set(abilities.EXTENDED)
    assert set(rows["alpha"]) == {0.0, 0.5}
    plain = open_nb(family_folders, tmp_path / "plain", "organism")
    assert abilities.extended(plain, [0.5], 1) is None
    assert "organism-extended has them" in capsys.readouterr().out
