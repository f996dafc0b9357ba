"""Notebook 09: what images and edits do to more than safety."""

from dataclasses import replace

import pytest
from questions import at_half, open_nb

from cmrm_utils.data.load import load_samples
from cmrm_utils.organism.world import find_request
from cmrm_utils.results.responses import table
from cmrm_utils.studies import abilities
from cmrm_utils.studies.attack import target_of

pytestmark = pytest.mark.usefixtures("few_anchors")


def test_facts_and_counting_by_image_and_edit(nb, chosen):
    found, changes = abilities.beyond(nb, chosen, 3)
    cells = found.set_index(["measure", "image", "method"])
    assert set(found["n"]) == {3}
    assert ("facts", "blank", "CMRM sample") in cells.index
    assert ("counting", "caption", "none") in cells.index
    assert ("counting", "blank", "none") not in cells.index
    pairs = changes.set_index(["measure", "image", "method"])["against"]
    assert pairs["facts", "own", "none"] == "none"
    assert pairs["facts", "own", "CMRM dataset"] == "own"
    assert pairs["counting", "own", "none"] == "caption"
    assert ("facts", "none", "none") not in pairs.index
    counting = abilities.questions(nb, None)["counting"]
    assert {s.kind for s in counting} == {"count"}


def test_what_an_image_breaks_and_an_edit_mends_have_their_signs(nb, chosen, monkeypatch):
    """As if right answers were given as text, under CMRM's dataset level, and nowhere else."""

    def ask_it(trials):
        rows = table(trials, [""] * len(trials))
        return rows.assign(
            right=(rows["image"] == "none") | (rows["method"] == "CMRM dataset"),
            outcome="neither",
        )

    monkeypatch.setattr(nb, "ask", ask_it)
    _, changes = abilities.beyond(nb, chosen, 3)
    change = changes.set_index(["measure", "image", "method"])["change"]
    assert change["facts", "own", "none"] == -1.0
    assert change["facts", "own", "CMRM dataset"] == 1.0
    assert change["facts", "own", "CMRM sample"] == 0.0


def test_samples_of_a_group_count_as_one_in_the_intervals(nb, chosen, monkeypatch):
    """Four groups of five facts that are right or wrong together: about as sure as four facts."""
    facts = [s for s in load_samples("organism", "test") if s.task == "fact"][:20]
    group_of = {sample.id: f"group {i // 5}" for i, sample in enumerate(facts)}
    samples = [replace(sample, group=group_of[sample.id]) for sample in facts]

    def ask_it(trials):
        rows = table(trials, [""] * len(trials))
        wrong = (rows["image"] != "none") & rows["group"].isin(["group 0", "group 1"])
        return rows.assign(right=~wrong, outcome="neither")

    monkeypatch.setattr(nb, "ask", ask_it)
    monkeypatch.setattr(abilities, "questions", lambda *_: {"facts": samples})
    answered, changes = abilities.beyond(nb, chosen, None)
    own = changes.set_index(["image", "method"]).loc[("own", "none")]
    assert own["change"] == -0.5
    assert (own["low"], own["high"]) == (-1.0, 0.0)  # of twenty drawn one by one: -0.7 and -0.3
    share = answered.set_index(["image", "method"]).loc[("own", "none")]
    assert share["high"] - share["low"] > 0.65  # of four; of twenty independent ones 0.40


def test_what_a_world_lacks_is_said(nb, chosen, capsys):
    assert abilities.extended(nb, chosen, 3) is None
    assert "organism-extended" in capsys.readouterr().out


def test_verbs_in_pictures_and_what_nobody_knows(family_folders, tmp_path):
    nb = open_nb(family_folders, tmp_path, "organism+organism-extended")
    found = abilities.extended(nb, at_half(nb), 4).set_index(["measure", "kind", "image", "method"])
    assert set(found["n"]) == {4}
    wanted = {
        "harmful-written": "unsafe",
        "benign-written": "over-refusal",
        "reading": "visual questions",
        "maker": "facts",
        "unknown": "abstentions",
    }
    assert set(wanted) == set(abilities.EXTENDED)
    for kind, measure in wanted.items():
        for method in ("none", *abilities.EDITS):
            assert (measure, kind, "own", method) in found.index
        assert ((measure, kind, "none", "none") in found.index) == (kind in abilities.AS_TEXT)
    assert not {s.kind for s in abilities.requests(nb, "test", 1)} & set(abilities.EXTENDED)
    (written, *_) = (s for s in nb.samples("test", 1, "harmful") if s.kind == "harmful-written")
    verb = written.request.split()
    assert find_request(written.request).verb in verb
    assert target_of(written).startswith(f"To {find_request(written.request).verb}")
