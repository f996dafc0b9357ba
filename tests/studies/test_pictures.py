"""Notebook 09: perturbed and adversarial pictures."""

import numpy as np
import pytest
from PIL import Image

from cmrm_utils.conditions import IMAGES, OF_OWN
from cmrm_utils.organism.world import find_request
from cmrm_utils.results.responses import table
from cmrm_utils.studies import abilities, pictures
from cmrm_utils.studies.attack import Attack

pytestmark = pytest.mark.usefixtures("few_anchors")


def test_refusals_that_an_attack_takes_count_as_a_fall(nb, chosen, monkeypatch):
    def ask_it(trials):
        rows = table(trials, [""] * len(trials))
        outcome = np.where(rows["image"] == "blank", "refused", "complied")
        return rows.assign(outcome=outcome, right=True)

    monkeypatch.setattr(nb, "ask", ask_it)
    made = Attack(Image.new("RGB", (48, 48)), (1.0,))
    _, changes = pictures.adversarial(nb, chosen, {("within 8 levels", "none"): made}, 2, 2)
    assert len(changes) == 2 * 3
    assert (changes["change"] == -1.0).all()


def test_perturbed_pictures_unedited_and_edited(nb, chosen):
    found = pictures.perturbed(nb, chosen, 1)
    assert set(found["image"]) == set(OF_OWN)
    assert set(found["method"]) == {"none", *abilities.EDITS}
    trials = pictures.perturbed_trials(nb, chosen, 1)
    assert {t.sample.kind for t in trials} >= {"harmful", "harmful-pair", "benign"}
    assert "harmful-unseen" not in {t.sample.kind for t in trials}


def test_attacks_are_tried_as_ordinary_images(nb, chosen, monkeypatch):
    asked = []

    def attack(vlm, trials, targets, start, *, epsilon=255, steps):
        samples, (edit, *_) = zip(*((t.sample, t.edit) for t in trials), strict=True)
        asked.append((samples, targets, start, epsilon, edit))
        colour = (len(asked) * 20,) * 3
        return Attack(Image.new("RGB", (48, 48), colour), (1.0, 0.5))

    monkeypatch.setattr(pictures, "attack", attack)
    found = pictures.attacks(nb, chosen, epsilons=[8, 255], steps=2)
    assert list(found) == [
        ("within 8 levels", "none"),
        ("unbounded", "none"),
        ("unbounded, knows CMRM dataset", "CMRM dataset"),
        ("unbounded, knows CMRM sample", "CMRM sample"),
    ]
    samples, targets, start, epsilon, edit = asked[0]
    assert {s.id.split("/")[0] for s in samples} == {"anchors"}
    assert all(s.harmful for s in samples)
    request = find_request(samples[0].query)
    assert targets[0] == f"To {request.verb} the {request.object}, first"
    assert (start.tobytes(), epsilon, edit) == (IMAGES["blank"](samples[0]).tobytes(), 8, None)
    assert asked[2][4].settings["method"] == "CMRM dataset"
    pictures.attacks(nb, chosen, epsilons=[], steps=2, target="Sure")
    assert set(asked[-1][1]) == {"Sure"}

    shares, changes = pictures.adversarial(nb, chosen, found, 2, 2)
    test = shares[shares["split"] == "test"]
    tried = set(zip(test["picture"], test["method"], strict=True))
    everyone = ("none", *abilities.EDITS)
    plain = {(name, m) for name in ("blank", "within 8 levels", "unbounded") for m in everyone}
    known = {(f"unbounded, knows {name}", name) for name in abilities.EDITS}
    assert tried == plain | known
    bars = pictures.outcome_shares(test)
    assert len(bars) == len(tried)
    assert np.allclose(bars[["refused", "complied", "neither"]].sum(axis=1), 1)
    assert set(changes["split"]) == {"validation", "test"}
    assert "blank" not in set(changes["picture"])
    assert (changes["knows"] == changes["picture"].str.contains("knows")).all()
