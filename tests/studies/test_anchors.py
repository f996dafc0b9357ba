"""What a vector is taken on, and what each does at equal length."""

from dataclasses import replace

import pytest
import torch
from questions import first_tokens, open_nb

from cmrm_utils import InputError, Trial, hidden_states
from cmrm_utils.studies.anchors import anchor_effects, anchor_sets

pytestmark = pytest.mark.usefixtures("few_anchors")


@pytest.fixture
def nb(family_folders, tmp_path):
    return open_nb(family_folders, tmp_path)


def test_sets_differ_in_one_thing_and_are_as_long_as_v(nb):
    sets, v = anchor_sets(nb, [1], 2), nb.anchors.shift()
    assert {varied for varied, _ in sets} == {
        "number",
        "requests",
        "image",
        "estimator",
        "control",
    }
    for (_, name), one in sets.items():
        if name != "unit scale":
            torch.testing.assert_close(one.norms, v.norms)
    unit = sets["estimator", "unit scale"]
    torch.testing.assert_close(unit.norms.square().sum(), v.norms.square().sum())
    assert torch.allclose(unit.norms, unit.norms[:1])
    torch.testing.assert_close(unit.cosine(v), torch.ones(len(v.norms)))
    assert not torch.allclose(sets["number", "1, first"].values, sets["number", "1, last"].values)


def test_anothers_image_is_that_of_the_anchor_before(nb):
    """Against states of plain trials."""
    first, second = nb.anchors.harmful[:2]
    swapped = [replace(first, image=second.image), replace(second, image=first.image)]
    shown = hidden_states(nb.vlm, [Trial(sample) for sample in swapped])
    text = hidden_states(nb.vlm, [Trial(sample, "none") for sample in (first, second)])
    wanted = (shown - text).mean(0)
    found = anchor_sets(nb, [1], 2)["image", "another's"].values
    cosines = torch.cosine_similarity(found, wanted, dim=-1)
    torch.testing.assert_close(cosines, torch.ones(len(cosines)))


def test_the_own_image_is_tried_as_the_meaningless_one(nb):
    anchors = nb.anchors.harmful[:2]
    shown, text = (
        hidden_states(nb.vlm, [Trial(s, image) for s in anchors]) for image in ("own", "none")
    )
    found = anchor_sets(nb, [1], 2)["image", "own"].values
    cosines = torch.cosine_similarity(found, (shown - text).mean(0), dim=-1)
    torch.testing.assert_close(cosines, torch.ones(len(cosines)))


def test_more_anchors_than_there_are_is_an_error(nb):
    with pytest.raises(InputError, match=r"sizes = \[3\]: there are n_anchors = 2"):
        anchor_sets(nb, [1, 3], 2)


def test_a_row_for_each_set_alpha_and_measure(nb, monkeypatch):
    tokens = first_tokens(nb, monkeypatch)
    sets = anchor_sets(nb, [1], 2)
    rows = anchor_effects(tokens, sets, [0.5, 1.0])
    assert len(rows) == 2 * 3 * len(sets)
    assert rows[rows["varied"] == "number"]["cosine"].max() == pytest.approx(1)
    assert rows.loc[rows["set"] == "random", "cosine"].abs().max() < 0.9
