"""Prompts as the model is given them."""

import logging
from functools import partial

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


@pytest.fixture(scope="module")
def mistral3(processor, tmp_path_factory):
    return load_vlm(write_family("mistral3", processor, tmp_path_factory.mktemp("mistral3")))


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
@pytest.mark.parametrize("way", ["shared", "plain"])
def test_an_image_that_the_tower_refuses_names_its_sample(mistral3, way, size, monkeypatch):
    """Mistral 3 merges patches, and so small an image has too few."""
    monkeypatch.setattr(mistral3, "way", way)
    dot = Trial(Sample("dot", "Why?", Image.new("RGB", size)))
    for job in (hidden_states, partial(generate, max_new_tokens=2)):
        with pytest.raises(InputError, match=r"sample dot: its image .*cannot be encoded: split"):
            job(mistral3, [dot])


@pytest.mark.parametrize("told", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("way", ["shared", "plain"])
def test_a_tower_that_runs_out_of_memory_is_no_bad_image(mistral3, way, told, monkeypatch):
    def full(*_, **__):
        raise told("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(mistral3, "way", way)
    monkeypatch.setattr(mistral3.core.vision_tower, "forward", full)
    good = Trial(Sample("good", "Why?", Image.new("RGB", (64, 64))))
    for job in (hidden_states, partial(generate, max_new_tokens=2)):
        with pytest.raises(torch.OutOfMemoryError, match="sample good"):
            job(mistral3, [good])


def test_prompts_longer_than_the_models_positions_are_warned_of_once(fresh, caplog):
    fresh.model.config.text_config.max_position_embeddings = 20
    trials = [Trial(Sample(f"s{i}", "Why? " * 12), "none") for i in (1, 2)]
    with caplog.at_level(logging.WARNING):
        hidden_states(fresh, [Trial(Sample("a", "Why?"), "none")])
        assert not caplog.records
        hidden_states(fresh, trials)
    [record] = caplog.records
    assert "tokens, and tiny was made for 20" in record.getMessage()
