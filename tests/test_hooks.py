import pytest
import torch

from cmrm_utils import InputError, Trial, apply, generate, hidden_states, record
from cmrm_utils.hooks import Edit


def edit_of(vlm, seed=0, size=1.0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    add = torch.randn(len(vlm.layers), vlm.hidden_size, generator=generator) * size
    return Edit(add, **kwargs)


def own_hooks(vlm):
    return sum(len(layer._forward_hooks) for layer in vlm.layers)


def forward(vlm, sample, image="own"):
    trial = Trial(sample, image)
    return vlm.model(**vlm.inputs([trial.text], [trial.load_image()])).logits


def test_edit_adds_to_each_layers_output_exactly(tiny, requests):
    """Layer by layer against a plain forward that adds by hand."""
    edit = edit_of(tiny)
    inputs = tiny.inputs([requests[0].prompt], [None])
    core = tiny.model.model.language_model
    states = core.embed_tokens(inputs["input_ids"])
    positions = torch.arange(states.shape[1])[None]
    rotary = core.rotary_emb(states, positions)
    size = states.shape[1]
    causal = torch.full((size, size), float("-inf")).triu(1)[None, None]
    wanted = []
    for layer, add in zip(core.layers, edit.add, strict=True):
        out = layer(states, attention_mask=causal, position_embeddings=rotary)
        states = (out[0] if isinstance(out, tuple) else out) + add
        wanted.append(states[:, -1])
    with apply(tiny, edit), record(tiny) as found:
        tiny.model(**inputs)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_all_tokens_or_only_the_last(tiny, requests):
    inputs = tiny.inputs([requests[0].prompt], [None])
    top = torch.zeros(len(tiny.layers), tiny.hidden_size)
    top[-1] = 1.0  # an edit of the last layer moves the logits of edited tokens only
    plain = tiny.model(**inputs).logits
    with apply(tiny, Edit(top, "all")):
        everywhere = tiny.model(**inputs).logits
    with apply(tiny, Edit(top, "last")):
        last = tiny.model(**inputs).logits
    assert (everywhere - plain).abs().amax(-1).min() > 1e-3
    torch.testing.assert_close(last[:, :-1], plain[:, :-1])
    torch.testing.assert_close(last[:, -1], everywhere[:, -1])


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_first_and_every_generated_token_is_edited(tiny, requests, tokens):
    """An edit that makes one token certain makes it every token, from the first one on."""
    head = tiny.model.lm_head.weight
    token = 700
    add = torch.zeros(len(tiny.layers), tiny.hidden_size)
    add[-1] = 1000 * head[token] / head[token].norm()
    rival = (head @ head[token]).argmax().item()
    inputs = tiny.inputs([requests[0].prompt], [None])
    with apply(tiny, Edit(add, tokens)):
        out = tiny.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert out[0, inputs["input_ids"].shape[1] :].tolist() == [rival] * 5


def test_hooks_are_gone_after_the_block_and_after_an_exception(fresh, requests):
    before = forward(fresh, requests[0])

    def break_inside():
        with apply(fresh, edit_of(fresh)), record(fresh):
            assert own_hooks(fresh) == 2 * len(fresh.layers)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        break_inside()
    assert own_hooks(fresh) == 0
    torch.testing.assert_close(forward(fresh, requests[0]), before)


def test_other_peoples_hooks_stay(fresh):
    handle = fresh.layers[0].register_forward_hook(lambda *args: None)
    with apply(fresh, edit_of(fresh)):
        pass
    assert own_hooks(fresh) == 1
    handle.remove()


def test_edits_do_not_leak_into_recorded_states(tiny, requests):
    """A reader inside the edit sees the unedited states of earlier hooks unchanged."""
    inputs = tiny.inputs([requests[0].prompt], [None])
    with record(tiny) as plain:
        tiny.model(**inputs)
    first = plain[0].clone()
    with record(tiny) as inner, apply(tiny, edit_of(tiny)):
        tiny.model(**inputs)
    torch.testing.assert_close(inner[0], first)


def test_each_row_has_its_own_edit(tiny, requests):
    edits = [None, edit_of(tiny, 1), edit_of(tiny, 2, tokens="last"), edit_of(tiny, 3)]
    trials = [Trial(s, "own", e) for s, e in zip(requests[:4], edits, strict=True)]
    together = hidden_states(tiny, trials)
    alone = torch.cat([hidden_states(tiny, [trial]) for trial in trials])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert generate(tiny, trials, max_new_tokens=6) == [
        generate(tiny, [trial], max_new_tokens=6)[0] for trial in trials
    ]


def test_refuses_beams(tiny, requests):
    inputs = tiny.inputs([r.prompt for r in requests[:2]], [None, None])
    edits = [edit_of(tiny), edit_of(tiny, 1)]
    with pytest.raises(InputError, match="beams"), apply(tiny, edits):
        tiny.model.generate(**inputs, max_new_tokens=3, num_beams=2)


def test_refuses_sample_level_without_a_row(tiny):
    edit = Edit(torch.ones(2, len(tiny.layers), tiny.hidden_size), sample_ids=("a", "b"))
    with pytest.raises(InputError, match="row"), apply(tiny, edit):
        pass
    with pytest.raises(InputError, match="'c'"):
        edit.row("c")
    assert edit.row("b").sample_ids is None


def test_refuses_another_models_edit_and_nan(tiny):
    with pytest.raises(InputError, match="hidden"), apply(tiny, Edit(torch.ones(2, 7))):
        pass
    with pytest.raises(InputError, match="NaN"):
        Edit(torch.full((3, 32), float("nan")))
    with pytest.raises(InputError, match="tokens"):
        Edit(torch.ones(3, 32), tokens="first")


def test_record_takes_the_layers_output_before_the_final_norm(tiny, requests):
    inputs = tiny.inputs([requests[0].prompt], [None])
    with record(tiny) as states:
        logits = tiny.model(**inputs).logits
    core = tiny.model.model.language_model
    again = tiny.model.lm_head(core.norm(states[-1]))
    torch.testing.assert_close(again, logits[:, -1], rtol=1e-4, atol=1e-4)
    assert len(states) == len(tiny.layers)
    assert all(state.shape == (1, tiny.hidden_size) for state in states)


def test_records_hold_the_last_token_alone(tiny, requests):
    inputs = tiny.inputs([r.prompt for r in requests], [None] * len(requests))
    with record(tiny) as states:
        tiny.model(**inputs)
    size = len(requests) * tiny.hidden_size * 4
    assert [state.untyped_storage().nbytes() for state in states] == [size] * len(tiny.layers)
