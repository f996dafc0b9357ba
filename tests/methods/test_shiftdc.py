from dataclasses import replace

import pytest
import torch
from families import TINY, shake
from vectors_drawn import drawn

from cmrm_utils import ShiftVectors, Trial, hidden_states
from cmrm_utils.loading import wrap
from cmrm_utils.methods.base import Anchors
from cmrm_utils.methods.shiftdc import PUBLISHED, ShiftDC
from cmrm_utils.organism.recipe import build_model


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


@pytest.mark.parametrize(("depth", "first"), [(30, 9), (32, 10)])
def test_as_published(processor, requests, depth, first):
    """Layers 10 to 31 of 32, the last prompt token alone, strength 1, captions told in view of the
    request: all by hand."""
    model = shake(build_model(replace(TINY, layers=depth), processor, 0))
    vlm = wrap(model, processor, name=f"{depth} layers")
    anchors = [[s for s in requests if s.harmful is side][:2] for side in (True, False)]
    tested = requests[2:4]
    told = {}

    def respond(trials):
        told.update({trial.sample.id: trial.text for trial in trials})
        assert all(trial.has_image for trial in trials)
        return [f"what {trial.sample.id} shows" for trial in trials]

    plain = [Trial(sample, "own") for sample in tested]
    made = PUBLISHED.prepare(Anchors(vlm, *anchors, respond), plain)
    (setting,) = PUBLISHED.settings
    edits = [trial.edit.row(trial.sample.id) for trial in made(**setting)]
    asked = {s.id: s.prompt for s in (*anchors[0], *anchors[1], *tested)}
    before = "Describe what the image shows, as far as it matters for this: "
    assert told == {name: before + prompt for name, prompt in asked.items()}

    def states(samples, image):
        words = [None] * len(samples)
        if image == "none":
            words = [f"{s.prompt} Image Caption: what {s.id} shows" for s in samples]
        pairs = zip(samples, words, strict=True)
        return hidden_states(vlm, [Trial(s, image, prompt=text) for s, text in pairs])

    harmful, benign = (states(these, "none").mean(0) for these in anchors)
    safety = benign - harmful
    shift = states(tested, "own") - states(tested, "none")
    along = (shift * safety).sum(-1, keepdim=True) / (safety * safety).sum(-1, keepdim=True)
    wanted = -along * safety
    wanted[:, :first] = 0
    assert wanted[:, first:].abs().amax(-1).min() > 1e-3
    for edit, want in zip(edits, wanted, strict=True):
        assert edit.tokens == "last prompt"
        torch.testing.assert_close(edit.added, want, rtol=1e-3, atol=1e-3)
