import hashlib

import pytest
import torch
from conftest import edit_of

from cmrm_utils import InputError, Trial, apply, generate, hidden_states, record
from cmrm_utils.engine import first_logits
from cmrm_utils.hooks import REACH, Edit


def own_hooks(vlm):
    return sum(len(layer._forward_hooks) for layer in vlm.layers)


def forward(vlm, sample, image="own"):
    trial = Trial(sample, image)
    return vlm.model(**vlm.inputs([trial.text], [trial.load_image()])).logits


def test_edit_adds_to_each_layers_output_exactly(tiny, requests):
    """Layer by layer against a plain forward that adds by hand."""
    edit = edit_of(0)
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
        with apply(fresh, edit_of(0)), record(fresh):
            assert own_hooks(fresh) == 2 * len(fresh.layers)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        break_inside()
    assert own_hooks(fresh) == 0
    torch.testing.assert_close(forward(fresh, requests[0]), before)


def test_other_peoples_hooks_stay(fresh):
    handle = fresh.layers[0].register_forward_hook(lambda *args: None)
    with apply(fresh, edit_of(0)):
        pass
    assert own_hooks(fresh) == 1
    handle.remove()


def test_edits_do_not_leak_into_recorded_states(tiny, requests):
    """A reader inside the edit sees the unedited states of earlier hooks unchanged."""
    inputs = tiny.inputs([requests[0].prompt], [None])
    with record(tiny) as plain:
        tiny.model(**inputs)
    first = plain[0].clone()
    with record(tiny) as inner, apply(tiny, edit_of(0)):
        tiny.model(**inputs)
    torch.testing.assert_close(inner[0], first)


def test_each_row_has_its_own_edit(tiny, requests):
    edits = [None, edit_of(1), edit_of(2, tokens="last", take_out=2), edit_of(3, take_out=1)]
    trials = [Trial(s, "own", e) for s, e in zip(requests[:4], edits, strict=True)]
    together = hidden_states(tiny, trials)
    alone = torch.cat([hidden_states(tiny, [trial]) for trial in trials])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert generate(tiny, trials, max_new_tokens=6) == [
        generate(tiny, [trial], max_new_tokens=6)[0] for trial in trials
    ]


def test_refuses_beams(tiny, requests):
    inputs = tiny.inputs([r.prompt for r in requests[:2]], [None, None])
    edits = [edit_of(0), edit_of(1)]
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


def by_hand(vlm, trial, edit, steps):
    """First logits, and greedy ids, without a cache: positions are edited as a mask says."""
    whole = vlm.inputs([trial.text], [trial.load_image()])
    start = whole["input_ids"].shape[1]
    handles = []

    def wanted():
        ids = whole["input_ids"][0]
        place = torch.arange(len(ids))
        image = ids == (vlm.model.config.image_token_id if vlm.sees_images else -1)
        image &= place < start
        return {
            "all": place >= 0,
            "last": place >= start - 1,
            "image": image,
            "text": ~image & (place < start),
            "prompt": place < start,
            "last prompt": place == start - 1,
            "generated": place >= start,
        }[edit.tokens]

    def hook(layer):
        def change(module, args, output):
            states = output[0] if isinstance(output, tuple) else output
            moved = states.clone()
            if edit.project is not None:
                for direction in edit.project[layer]:
                    moved -= (states * direction).sum(-1, keepdim=True) * direction
            moved += edit.add[layer]
            states = torch.where(wanted()[:, None], moved, states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return change

    for i, layer in enumerate(vlm.layers):
        handles.append(layer.register_forward_hook(hook(i)))
    first = None
    for _ in range(steps):
        logits = vlm.model(**whole, use_cache=False).logits[:, -1]
        first = logits if first is None else first
        token = logits.argmax(-1, keepdim=True)
        whole = vlm.extended(whole, token, torch.ones_like(token))
    for handle in handles:
        handle.remove()
    return first[0], whole["input_ids"][0, start:].tolist()


@pytest.mark.parametrize("take_out", [0, 2])
@torch.inference_mode()
def test_each_kind_of_token_is_edited_alone(family, requests, take_out, monkeypatch):
    """Against a loop without a cache and a mask made by hand, in one batch of all kinds."""
    monkeypatch.setattr(family.model.generation_config, "eos_token_id", [-1])
    image = "own" if family.sees_images else "none"
    trials = [
        Trial(requests[i % 2], image, edit_of(5, tokens, take_out=take_out))
        for i, tokens in enumerate(REACH)
    ]
    logits = first_logits(family, trials)
    texts = generate(family, trials, max_new_tokens=5)
    assert len(set(texts)) > (3 if family.sees_images else 2)
    for trial, row, text in zip(trials, logits, texts, strict=True):
        first, ids = by_hand(family, trial, trial.edit, 5)
        torch.testing.assert_close(row, first, rtol=1e-4, atol=1e-4)
        assert text == family.decode(ids), trial.edit.tokens


def test_static_batches_edit_the_same_tokens(tiny, requests, monkeypatch):
    trials = [
        Trial(requests[i % 3], "own" if i % 2 else "none", edit_of(5, tokens, take_out=1))
        for tokens in REACH
        for i in range(2)
    ]
    texts = generate(tiny, trials, max_new_tokens=5)
    monkeypatch.setattr("cmrm_utils.engine.can_share", lambda vlm: False)
    assert generate(tiny, trials, max_new_tokens=5) == texts


def test_apply_knows_prompts_from_what_is_generated(tiny, requests):
    trials = [Trial(r, "own") for r in requests[:3]]
    inputs = tiny.inputs([t.text for t in trials], [t.load_image() for t in trials])
    start = inputs["input_ids"].shape[1]
    for tokens in ("prompt", "last prompt", "generated"):
        edit = edit_of(3, tokens, take_out=1)
        with apply(tiny, edit):
            whole = tiny.model.generate(**inputs, max_new_tokens=5, do_sample=False)
        for row, trial in zip(whole[:, start:].tolist(), trials, strict=True):
            assert row == by_hand(tiny, trial, edit, 5)[1]


@pytest.mark.parametrize("tokens", ["image", "text"])
def test_apply_refuses_what_it_cannot_know(fresh, tokens):
    with pytest.raises(InputError, match=tokens), apply(fresh, [None, edit_of(0, tokens)]):
        pass
    assert own_hooks(fresh) == 0


def test_a_projection_takes_its_directions_out(tiny, requests):
    made = edit_of(4, take_out=3)
    edit = Edit(torch.zeros_like(made.add), project=made.project)
    trials = [Trial(r, "own", edit) for r in requests]
    along = torch.einsum("nlh,lkh->nlk", hidden_states(tiny, trials), made.project)
    assert along.abs().max() < 1e-4
    plain = hidden_states(tiny, [Trial(r, "own") for r in requests])
    assert torch.einsum("nlh,lkh->nlk", plain, made.project)[:, [0, 2]].abs().mean() > 0.1
    with_add = hidden_states(tiny, [Trial(r, "own", made) for r in requests])
    found = torch.einsum("nlh,lkh->nlk", with_add, made.project)
    torch.testing.assert_close(
        found,
        torch.einsum("lh,lkh->lk", made.add, made.project).expand_as(found),
        atol=1e-4,
        rtol=0,
    )


def test_a_layer_without_directions_is_not_hooked(fresh):
    made = edit_of(4, take_out=3)  # none in layer 1
    with apply(fresh, Edit(torch.zeros_like(made.add), project=made.project)):
        assert [len(layer._forward_hooks) for layer in fresh.layers] == [1, 0, 1]


def test_a_half_precision_state_loses_its_direction(fresh, requests):
    """The projection is reckoned in float32, whatever the model's dtype."""
    fresh.model.to(torch.bfloat16)
    made = edit_of(4, take_out=3)
    edit = Edit(torch.zeros_like(made.add), project=made.project)
    states = hidden_states(fresh, [Trial(requests[0], "none", edit)])
    along = torch.einsum("nlh,lkh->nlk", states, made.project)[:, [0, 2]].norm(dim=-1)
    assert bool((along < 2**-8 * states[:, [0, 2]].norm(dim=-1)).all())


def test_identity(requests):
    """Old edits keep the digest that run folders know them by; what a projection does is in it."""
    for tokens in ("all", "last"):
        edit = edit_of(0, tokens)
        raw = edit.add.numpy().tobytes() + tokens.encode()
        assert edit.digest == hashlib.sha256(raw).hexdigest()[:24]
        nothing = Edit(edit.add, tokens, project=torch.zeros(3, 2, 32))
        assert nothing.digest == edit.digest
    alike = [edit_of(0, tokens, take_out=k) for tokens in REACH for k in (0, 1, 2)]
    assert len({edit.digest for edit in alike}) == len(alike)
    out = edit_of(0, take_out=1).project
    only = Edit(torch.zeros(3, 32), project=out)
    assert not only.empty
    assert Trial(requests[0], "none", only).id != Trial(requests[0], "none").id
    assert Edit(torch.zeros(3, 32), project=torch.zeros(3, 2, 32)).digest == "none"


@pytest.mark.parametrize(
    "project",
    [
        torch.ones(3, 2, 32),
        torch.ones(3, 32),
        torch.full((3, 1, 32), float("nan")),
        torch.eye(3)[:, None],
    ],
)
def test_refuses_directions_that_are_not_orthonormal_or_of_another_size(project):
    with pytest.raises(InputError, match=r"orthonormal|hidden"):
        Edit(torch.zeros(3, 32), project=project)


def test_a_projection_is_every_samples_or_each_ones_own(tiny):
    made, other = edit_of(1, take_out=1), edit_of(2, take_out=1)
    add = made.add.expand(2, 3, 32)
    shared = Edit(add, sample_ids=("a", "b"), project=made.project)
    assert shared.row("b").digest == shared.row("a").digest == made.digest
    apart = Edit(add, sample_ids=("a", "b"), project=torch.stack([other.project, made.project]))
    assert apart.row("b").digest == made.digest
    assert torch.equal(apart.row("a").project, other.project)
    with pytest.raises(InputError, match="hidden"):
        Edit(add, sample_ids=("a", "b"), project=made.project.expand(3, 3, 1, 32))
    with pytest.raises(InputError, match="hidden"):
        Edit(made.add, project=made.project.expand(2, 3, 1, 32))
