"""Rows that share beginnings, leave and join: against transformers' own batches."""

import copy
from collections import Counter

import pytest
import torch
from conftest import edit_of
from families import shake, text_config
from passes import watched
from transformers import Cache, DynamicCache, MistralConfig, MistralForCausalLM

from cmrm_utils import Trial, generate, hidden_states, load_vlm
from cmrm_utils.edits import REACH, Edit
from cmrm_utils.engine import loops, plan
from cmrm_utils.engine.cache import RoomyLayer, can_share
from cmrm_utils.engine.loops import first_logits


def test_a_roomy_layer_holds_what_a_plain_one_does():
    roomy, plain = Cache(layer_class_to_replicate=RoomyLayer), DynamicCache()
    for length in (3, 1, 80, 1):
        keys, values = torch.randn(2, 4, 2, length, 8).unbind()
        for one, two in zip(
            roomy.update(keys, values, 0), plain.update(keys, values, 0), strict=True
        ):
            assert torch.equal(one, two)
    assert roomy.get_seq_length() == plain.get_seq_length() == 85


@pytest.fixture
def alike(family, requests):
    """Trials that share beginnings: one picture, edits that leave it alone or are the same."""
    one, two = edit_of(0, "last", size=0.25), edit_of(1, "all", size=0.25)
    others = [edit_of(2, tokens, size=0.25) for tokens in REACH]
    others += [edit_of(2, tokens, size=0.25, take_out=2) for tokens in ("all", "last", "image")]
    image = "blank" if family.sees_images else "none"
    own = "own" if family.sees_images else "none"
    trials = [Trial(sample, image, edit) for edit in (None, one, two) for sample in requests]
    trials += [Trial(sample, image, edit) for edit in others for sample in requests[::3]]
    return trials + [Trial(requests[0], own, edit) for edit in (None, one)]


def test_shared_beginnings_change_nothing(family, alike, monkeypatch):
    with watched(family) as few:
        states = hidden_states(family, alike)
    responses = generate(family, alike, max_new_tokens=8)
    logits = first_logits(family, alike)
    for module in (loops, plan):
        monkeypatch.setattr(module, "can_share", lambda vlm: False)
    with watched(family) as many:
        torch.testing.assert_close(hidden_states(family, alike), states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first_logits(family, alike), logits, rtol=1e-5, atol=1e-5)
    assert generate(family, alike, max_new_tokens=8) == responses
    spent, whole = (sum(rows * tokens for rows, tokens in passes) for passes in (few, many))
    assert spent < whole if family.sees_images else spent == whole


def test_rows_leave_and_others_join(family, steered):
    """Short answers beside long ones, batches of a few rows: against transformers' own batches."""
    ends = family.model.generation_config.eos_token_id
    long = generate(family, steered, max_new_tokens=24)
    try:  # frequent tokens end responses, so that they are of all lengths
        words = Counter(token for row in long for token in family.tokenizer(row)["input_ids"])
        family.model.generation_config.eos_token_id = [token for token, _ in words.most_common(12)]
        few = generate(family, steered, max_new_tokens=24, batch_size=4)
        with pytest.MonkeyPatch.context() as patch:
            for module in (loops, plan):
                patch.setattr(module, "can_share", lambda vlm: False)
            assert generate(family, steered, max_new_tokens=24) == few
    finally:
        family.model.generation_config.eos_token_id = ends
    assert len({len(text) for text in few}) > 3
    assert few != long


def test_sliding_windows_run_in_static_batches(processor, requests, tmp_path):
    tokenizer = copy.deepcopy(processor.tokenizer)
    config = MistralConfig(**text_config(tokenizer), sliding_window=8)
    shake(MistralForCausalLM(config)).save_pretrained(tmp_path)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path)
    vlm = load_vlm(tmp_path)
    edit = Edit(torch.ones(3, 32) / 4, "last")
    trials = [Trial(s, "none", e) for s in requests for e in (None, edit)]
    assert not can_share(vlm)
    together = generate(vlm, trials, max_new_tokens=6)
    assert together == [generate(vlm, [trial], max_new_tokens=6)[0] for trial in trials]
    alone = torch.cat([hidden_states(vlm, [trial]) for trial in trials])
    torch.testing.assert_close(hidden_states(vlm, trials), alone, rtol=1e-4, atol=1e-5)


def test_prompts_of_which_only_the_last_token_is_their_own(tiny, requests):
    """A pass of one token that is a prompt's last, and then passes of one that is generated."""
    edits = [edit_of(2, tokens) for tokens in ("last prompt", "generated", "last")]
    trials = [Trial(requests[0], "own", edit) for edit in (None, *edits)]
    with watched(tiny) as passes:
        together = generate(tiny, trials, max_new_tokens=5)
    assert passes[1] == (len(trials), 1)
    assert together == [generate(tiny, [trial], max_new_tokens=5)[0] for trial in trials]
    assert len(set(together)) == len(trials)
