"""Prompts as the model is given them."""

import pytest
import torch

from cmrm_utils import InputError, Sample, Trial, generate
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
