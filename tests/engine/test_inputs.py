"""Prompts as the model is given them."""

import logging

import pytest
import torch
from families import write_family
from PIL import Image

from cmrm_utils import InputError, Sample, Trial, generate, hidden_states, load_vlm
from cmrm_utils.engine.inputs import prompts, tokens


def test_prompts_are_those_of_the_processor(family, requests):
    """Image tokens put in here, against the family's own processor and position ids."""
    trials = [
        Trial(sample, image)
        for sample in requests[:3]
        for image in (("own", "none", "blur") if family.sees_images else ("none",))
    ]
    for trial, prompt in zip(
        trials, prompts(family, {trial.id: trial for trial in trials}), strict=True
    ):
        picture = trial.load_image()
        made = tokens(family, prompt, family.encode(picture) if picture else None)
        wanted = family.inputs([trial.text], [picture])
        assert made.ids.tolist() == wanted["input_ids"][0].tolist()
        assert torch.equal(made.positions, family.positions(wanted)[..., 0, :])


def test_the_image_token_in_a_text_is_refused(tiny):
    bad = Sample("odd", f"What is {tiny.processor.image_token} here?")
    with pytest.raises(InputError, match="odd"):
        generate(tiny, [Trial(bad, "none")], max_new_tokens=2)


@pytest.mark.parametrize("way", ["shared", "plain"])
def test_an_image_that_the_processor_refuses_names_its_sample(families, way, monkeypatch):
    """Qwen's processor takes no image that is 200 times as wide as it is high."""
    vlm = families["qwen2.5-vl"]
    monkeypatch.setattr(vlm, "way", way)
    line = Sample("line", "Why?", Image.new("RGB", (900, 2)))
    with pytest.raises(InputError, match=r"sample line: its image .*cannot be read: .*ratio"):
        hidden_states(vlm, [Trial(Sample("good", "Why?"), "none"), Trial(line)])


def test_an_image_that_the_tower_refuses_names_its_sample(processor, tmp_path):
    """Mistral 3 merges patches, and so small an image has too few."""
    write_family("mistral3", processor, tmp_path)
    dot = Sample("dot", "Why?", Image.new("RGB", (1, 1)))
    with pytest.raises(InputError, match="sample dot: its image of 1 x 1 pixels cannot be encoded"):
        hidden_states(load_vlm(tmp_path), [Trial(dot)])


def test_prompts_longer_than_the_models_positions_are_warned_of_once(fresh, caplog):
    fresh.model.config.text_config.max_position_embeddings = 20
    trials = [Trial(Sample(f"s{i}", "Why? " * 12), "none") for i in (1, 2)]
    with caplog.at_level(logging.WARNING):
        hidden_states(fresh, [Trial(Sample("a", "Why?"), "none")])
        assert not caplog.records
        hidden_states(fresh, trials)
    [record] = caplog.records
    assert "tokens, and tiny was made for 20" in record.getMessage()
