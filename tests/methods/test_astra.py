import pytest
import torch
from PIL import Image
from vectors_drawn import drawn

from cmrm_utils import InputError, Sample, ShiftVectors, Trial, hidden_states
from cmrm_utils.methods.astra import ASTRA, METHOD, PUBLISHED, attack_direction
from cmrm_utils.methods.base import Anchors, mean_state, shown


def picture(level):
    return Image.new("RGB", (28, 28), (level, 0, 255 - level))


@pytest.mark.parametrize("sign", [-1, 1])
def test_astra_equals_its_rule_by_hand(tiny, requests, sign):
    """h - alpha |h| clip(cos(h - h_ref, v), 0, 1) v/|v|, whichever way v points."""
    v, calm = ShiftVectors(sign * drawn(3, 32)), ShiftVectors(drawn(3, 32, seed=2))
    edit = ASTRA(v, calm, 0.7, layer=1)
    h = hidden_states(tiny, [Trial(s) for s in requests])[:, 1].double()
    unit = (v.values[1] / v.values[1].norm()).double()
    away = h - calm.values[1].double()
    cosine = ((away @ unit) / away.norm(dim=-1)).clamp(0, 1)
    wanted = h - 0.7 * (h.norm(dim=-1) * cosine)[:, None] * unit
    edited = hidden_states(tiny, [Trial(s, edit=edit) for s in requests])[:, 1]
    torch.testing.assert_close(edited.double(), wanted, rtol=1e-4, atol=1e-5)
    assert edit.tokens == "last"
    assert edit.settings["layers"] == "1"


def test_the_direction_is_of_the_picture_against_its_masked_copy(tiny, requests):
    pairs = [(picture(200), picture(90)), (picture(10), picture(60))]
    v = attack_direction(tiny, requests[:2], pairs)
    differences = [
        hidden_states(tiny, [Trial(Sample(s.id, s.query, image=whole))])
        - hidden_states(tiny, [Trial(Sample(s.id, s.query, image=masked))])
        for s in requests[:2]
        for whole, masked in pairs
    ]
    torch.testing.assert_close(v.values, torch.cat(differences).mean(0), rtol=1e-4, atol=1e-5)
    calm = mean_state(tiny, shown(requests), "calm")
    own = hidden_states(tiny, [Trial(s) for s in requests]).mean(0)
    torch.testing.assert_close(calm.values, own, rtol=1e-4, atol=1e-5)


def test_needs_pictures_and_requests(tiny, requests):
    with pytest.raises(InputError, match="adversarial pictures"):
        attack_direction(tiny, requests, [])
    with pytest.raises(InputError, match="no samples"):
        mean_state(tiny, [], "calm")


def test_depth_and_alpha_and_the_authors_setting(tiny, requests):
    pairs = [(picture(200), picture(90))]
    anchors = Anchors(tiny, requests[:2], requests[2:], list, pictures=lambda: pairs)
    plain = [Trial(s) for s in requests]
    make = METHOD.prepare(anchors, plain)
    v, calm = (
        attack_direction(tiny, requests[:2], pairs),
        mean_state(tiny, shown(requests[2:]), "calm"),
    )
    assert make(depth=0.5, alpha=0.25)[0].edit.digest == ASTRA(v, calm, 0.25, layer=1).digest
    (published,) = PUBLISHED.settings
    for trial in PUBLISHED.prepare(anchors, plain)(**published):
        assert trial.edit.digest == ASTRA(v, calm, 5.0, layer=1).digest
