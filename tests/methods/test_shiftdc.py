import torch
from vectors_drawn import drawn

from cmrm_utils import ShiftVectors, Trial, hidden_states
from cmrm_utils.methods.shiftdc import ShiftDC


def test_shiftdc_takes_back_the_safety_part_of_a_samples_own_shift(vectors, three):
    found = ShiftDC(three, vectors, 0.5)
    assert (found.tokens, found.sample_ids) == ("last prompt", three.sample_ids)
    for i, name in enumerate(three.sample_ids):
        for layer in range(3):
            m, s = three.values[i, layer], vectors.values[layer]
            want = -0.5 * (m @ s) / (s @ s) * s if layer >= 1 else torch.zeros(32)
            torch.testing.assert_close(found.row(name).added[layer], want)
    other = ShiftDC(three, vectors.scaled(-3.0), 0.5)
    torch.testing.assert_close(other.added, found.added)  # neither sign nor length of s matters
    assert found.settings == {
        "method": "ShiftDC",
        "alpha": 0.5,
        "tokens": "last prompt",
        "layers": "1,2",
    }


def test_shiftdc_at_one_layer_leaves_the_captions_safety_part(tiny, requests):
    """At the edited layer the state then has the component that it has with the caption."""
    direction = ShiftVectors(drawn(3, 32))
    states = {i: hidden_states(tiny, [Trial(s, i) for s in requests]) for i in ("own", "caption")}
    shift = ShiftVectors(states["own"] - states["caption"], tuple(s.id for s in requests))
    edit = ShiftDC(shift, direction, layers=[1])
    edited = hidden_states(tiny, [Trial(s, "own", edit) for s in requests])
    unit = torch.nn.functional.normalize(direction.values[1], dim=0)
    torch.testing.assert_close(
        edited[:, 1] @ unit, states["caption"][:, 1] @ unit, rtol=1e-4, atol=1e-4
    )
    assert ((edited - states["own"])[:, 1] @ unit).abs().min() > 1e-3
