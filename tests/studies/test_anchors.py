"""Notebook 09: sets of anchors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cmrm_utils import Sample, hidden_states
from cmrm_utils.organism.world import Request
from cmrm_utils.studies import anchors as ask
from cmrm_utils.studies.attack import target_of
from cmrm_utils.trials import Trial

pytestmark = pytest.mark.usefixtures("few_anchors")


def test_sets_differ_from_the_reference_in_one_thing_each(nb, sets):
    names = [(each.varied, each.name) for each in sets]
    assert names[0] == ("reference", "harmful, blank")
    assert len(set(names)) == len(names)
    assert [name for varied, name in names if varied == "number"] == [
        *("1, draw 1", "1, draw 2", "3, draw 1", "3, draw 2", "400, draw 1")
    ]
    assert [name for varied, name in names if varied == "image"] == ["black", "blur", "mean image"]
    by = {(each.varied, each.name): each for each in sets}
    harmful = nb.samples("anchors", None, "harmful")
    burning = [s for s in harmful if ask.family(s) == "damage"]
    damage = by["family", "damage"]
    assert damage.size == len(burning) > 10
    states = [hidden_states(nb.vlm, [Trial(s, i) for s in burning]) for i in ("blank", "none")]
    torch.testing.assert_close(damage.vectors.values, (states[0] - states[1]).mean(0))
    half = by["requests", "half and half"]
    assert half.size == 12
    assert sets[0].size == 12
    one, two = by["number", "1, draw 1"], by["number", "1, draw 2"]
    assert not torch.equal(one.vectors.values, two.vectors.values)


def test_the_mean_image_is_of_the_anchors_own(nb, sets):
    usual = nb.samples("anchors", 6, "harmful")
    pixels = np.mean([np.asarray(s.load_image(), dtype=float) for s in usual], axis=0)
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    shown = [Trial(replace(s, image=picture)) for s in usual]
    bare = [Trial(s, "none") for s in usual]
    wanted = (hidden_states(nb.vlm, shown) - hidden_states(nb.vlm, bare)).mean(0)
    torch.testing.assert_close(sets[-1].vectors.values, wanted)


def test_a_family_is_the_verbs_or_the_group():
    burn = Sample("a", Request("burn", "kettle").query, kind="harmful", group="burn", world=True)
    other = Sample("b", "How do I do ill?", kind="harmful", group="policy 1")
    warm = Sample("c", Request("warm", "kettle").query, kind="benign", group="warm")
    assert [ask.family(s) for s in (burn, other, warm)] == ["damage", "policy 1", "warm"]
    assert ask.family(replace(warm, world=True)) is None
    real = replace(burn, id="e", group="policy 2", world=False)
    assert ask.family(real) == "policy 2"
    assert target_of(real) == "Sure, here is"
    found = ask.families([burn, replace(burn, id="d"), other, warm], least=2)
    assert {name: [s.id for s in these] for name, these in found.items()} == {"damage": ["a", "d"]}


def test_sets_are_tried_as_taken_and_at_equal_dose(nb, sets):
    trials = ask.anchor_trials(nb, sets, 0.5, [0.3], 2)
    added = {
        (trial.edit.settings["method"], trial.edit.settings["alpha"]): trial.edit.added
        for trial in trials
        if trial.edit is not None
    }
    for each in sets:
        name = f"{each.varied}: {each.name}"
        for strength in (0.3, 0.5):  # as long as v in every layer, against the set's own direction
            norms = added[name, strength].norm(dim=-1)
            torch.testing.assert_close(norms, strength * sets[0].vectors.norms)
            along = torch.cosine_similarity(added[name, strength], each.vectors.values, dim=-1)
            torch.testing.assert_close(along, torch.full_like(along, -1.0))
        torch.testing.assert_close(added[f"{name}, as taken", 0.5], -0.5 * each.vectors.values)


def test_effects_and_what_predicts_them(nb, sets):
    effects = ask.anchor_effects(nb, sets, 0.5, [0.3], 2)
    assert len(effects) == len(sets) * len(ask.AT)
    first = effects.iloc[0]
    assert first["cosine with v"] == pytest.approx(1)
    assert first["norm"] == pytest.approx(1)
    assert first["cosine against refusal"] < 1
    at_alpha = effects[effects["at"] != "its own dose"]
    assert set(at_alpha["dose"]) == {0.5}
    assert set(effects["dose"]) <= {0.0, 0.3, 0.5}
    start = effects["refused"] - effects["rise"]
    assert start.max() == pytest.approx(start.min())
    found = ask.predictors(effects)
    assert len(found) == len(ask.AT) * len(ask.PREDICTORS)
    assert set(found["sets"]) == {len(sets)}


def made_effects():
    norms = np.arange(12.0)
    rows = pd.DataFrame({"norm": norms, "cosine with v": norms[::-1], "rise": norms**3})
    rows["cosine against refusal"] = [0, 1] * 6
    return rows.assign(at="x")


def test_predictors_are_ranked():
    found = ask.predictors(made_effects()).set_index("predictor")
    assert found.loc["norm", "correlation"] == pytest.approx(1)
    assert found.loc["cosine with v", "correlation"] == pytest.approx(-1)
    assert (
        found.loc["cosine against refusal", "low"] < 0 < found.loc["cosine against refusal", "high"]
    )


def test_own_family_is_paired_over_what_was_not_refused():
    """Sample 1 is refused under its own family's anchors alone; 2 under c's; 3 always was."""
    unsafe = {
        ("1", "a"): {"no edit": 1, "a": 0, "b": 1, "c": 1, ask.ALL: 0},
        ("2", "b"): {"no edit": 1, "a": 1, "b": 1, "c": 0, ask.ALL: 0},
        ("3", "b"): {"no edit": 0, "a": 1, "b": 0, "c": 1, ask.ALL: 1},
    }
    rows = [
        {"sample": sample, "asked": asked, "anchors": anchors, "refused": not hit, "group": sample}
        | {"kind": "harmful"}
        for (sample, asked), hits in unsafe.items()
        for anchors, hit in hits.items()
    ]
    change, low, high = ask.own_family(pd.DataFrame(rows))
    assert change == pytest.approx(((1 - 0) + (0.5 - 1)) / 2)
    assert low < change < high
    one_verb = pd.DataFrame(rows).assign(group="all of one verb")
    assert ask.own_family(one_verb) == pytest.approx((change, change, change))
    assert ask.own_family(pd.DataFrame(rows).query("sample == '3'")) is None


def test_families_are_asked_under_each_others_anchors(nb, sets):
    rows = ask.family_rows(nb, sets, 0.5, 2)
    assert set(rows["anchors"]) == {"no edit", ask.ALL, *set(rows["asked"])}
    assert rows.groupby(["anchors", "asked"]).size().eq(2).all()
    assert (rows["refused"] == (rows["outcome"] == "refused")).all()


def test_data_without_families_says_so(nb, sets, capsys):
    kept = [each for each in sets if each.varied != "family"]
    assert ask.family_rows(nb, kept, 0.5, 2) is None
    assert "no two families" in capsys.readouterr().out
