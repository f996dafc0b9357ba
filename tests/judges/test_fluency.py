import pytest
import torch
from language_models import TEMPLATE, make_model, make_tokenizer

from cmrm_utils import Edit, Sample, Trial, generate
from cmrm_utils.judges import fluency
from cmrm_utils.judges.fluency import continuation, perplexity
from cmrm_utils.loading import wrap
from cmrm_utils.store import Response, Responses

TEXTS = ["To warm it, first zib it.", "No.", "The colour is red and blue.", ""]


@pytest.fixture
def trials(family, requests):
    """Every image condition that the family can be shown, in turn."""
    conditions = ("none", "own", "caption", "blank") if family.sees_images else ("none", "caption")
    return [Trial(s, conditions[i % len(conditions)]) for i, s in enumerate(requests)]


def by_hand(vlm, trial, ids):
    """From the probabilities of one row alone."""
    inputs = vlm.inputs([trial.text], [trial.load_image()])
    whole, ids, _ = vlm.extended(inputs, torch.tensor([ids]))
    logits = vlm.model(**whole).logits[0, -ids.shape[1] - 1 : -1]
    return (-logits.log_softmax(-1)[range(ids.shape[1]), ids[0]].mean()).exp().item()


def test_it_is_that_of_the_response_alone_in_any_batch(family, trials):
    texts = [TEXTS[i % 3] for i in range(len(trials))]
    found = perplexity(family, trials, texts)
    for trial, text, value in zip(trials, texts, found, strict=True):
        ids = continuation(family, trial, text)
        assert family.decode(ids) == text
        assert value == pytest.approx(by_hand(family, trial, ids), rel=1e-3)
    assert perplexity(family, trials, texts, batch_size=2) == pytest.approx(found, rel=1e-4)


def test_an_edit_plays_no_part_and_nothing_has_no_perplexity(tiny, requests):
    edit = Edit(torch.ones(3, 32))
    edited = Trial(requests[0], "own", edit)
    found = perplexity(tiny, [edited, Trial(requests[0]), edited], ["No.", "No.", ""])
    assert found[0] == found[1] == found[0]
    assert found[2] != found[2]


def test_a_models_own_tokens_are_scored_without_the_end(family, requests, tmp_path):
    """Its greedy answer is the likeliest at each step: no token of it can be likelier."""
    trial = Trial(requests[0], "none")
    kept = tmp_path / "responses.jsonl"
    generate(family, [trial], max_new_tokens=6, out=kept)
    shared = {"model": family.fingerprint, "max_new_tokens": 6}
    own = Responses(kept, shared).get(trial.id)
    (value,) = perplexity(family, [trial], [own])
    assert value == pytest.approx(by_hand(family, trial, own.ids), rel=1e-3)
    end = family.tokenizer.eos_token_id
    ended = Response(own.text, (*own.ids, end), finished=True)
    assert perplexity(family, [trial], [ended]) == [value]


@pytest.mark.parametrize(
    ("ending", "space"),
    [("[assistant]:", " "), ("[assistant]{{ '\\n' }}", ""), ("[assistant]<|end_header_id|>", "")],
)
def test_a_text_goes_on_from_the_prompt_as_the_template_leaves_it(ending, space):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("[judge]<|end_header_id|>", ending)
    vlm = wrap(make_model(tokenizer), tokenizer, name="chat")
    trial = Trial(Sample("a", "Is it safe?"), "none")
    ids = continuation(vlm, trial, "unsafe")
    assert ids == tuple(tokenizer(f"{space}unsafe", add_special_tokens=False)["input_ids"])
    assert len(ids) == 1
    assert continuation(vlm, trial, "") == ()


def test_batches_are_as_small_as_their_logits_need(tiny, requests, monkeypatch):
    """A few rows whatever was asked for, and the values of one batch of all."""
    trials = [Trial(sample, "own") for sample in requests]
    texts = [TEXTS[i % 3] + f" {i}" for i in range(len(trials))]
    whole = perplexity(tiny, trials, texts)
    words, sizes = tiny.model.config.get_text_config().vocab_size, []
    monkeypatch.setattr(fluency, "LOGITS", 40 * words)
    honest = tiny.model.forward

    def forward(*arguments, **named):
        made = honest(*arguments, **named)
        sizes.append(made.logits.numel() // words)
        return made

    monkeypatch.setattr(tiny.model, "forward", forward)
    assert perplexity(tiny, trials, texts) == pytest.approx(whole, rel=1e-4)
    assert max(sizes) <= 40
    assert len(sizes) > 1
