import hashlib
from dataclasses import replace

import pytest
import torch
from conftest import edit_of

from cmrm_utils import CMRM, InputError, ShiftVectors, Trial, apply, generate, hidden_states, record
from cmrm_utils.edits import PLACES, REACH, Edit
from cmrm_utils.engine.loops import first_logits
from cmrm_utils.hooks import contiguous_head, steering
from cmrm_utils.judges.fluency import perplexity


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

    def moved(layer, states):
        new = states.clone()
        if edit.project is not None:
            for direction in edit.project[layer]:
                new -= (states * direction).sum(-1, keepdim=True) * direction
        new += edit.add[layer]
        return torch.where(wanted()[:, None], new, states)

    def hook(layer):
        def change(module, args, output):
            if isinstance(output, tuple):
                return (moved(layer, output[0]), *output[1:])
            return moved(layer, output)

        return change

    for i, layer in enumerate(vlm.layers):
        if edit.place == "heads":
            change = lambda module, args, i=i: (moved(i, args[0]),)  # noqa: E731
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(change))
        else:
            module = layer.mlp if edit.place == "mlp" else layer
            handles.append(module.register_forward_hook(hook(i)))
    first = None
    for _ in range(steps):
        logits = vlm.model(**whole, use_cache=False).logits[:, -1]
        first = logits if first is None else first
        token = logits.argmax(-1, keepdim=True)
        whole, _, _ = vlm.extended(whole, token)
    for handle in handles:
        handle.remove()
    return first[0], whole["input_ids"][0, start:].tolist()


@pytest.mark.parametrize("take_out", [0, 2])
@torch.inference_mode()
def test_each_kind_of_token_is_edited_alone(family, requests, take_out, monkeypatch):
    """Against a loop without a cache and a mask made by hand, in one batch of all kinds, places."""
    monkeypatch.setattr(family.model.generation_config, "eos_token_id", [-1])
    image = "own" if family.sees_images else "none"
    trials = [
        Trial(requests[i % 2], image, edit_of(5, tokens, take_out=take_out, place=place))
        for i, tokens in enumerate(REACH)
        for place in PLACES
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
        Trial(requests[i % 3], "own" if i % 2 else "none", edit_of(5, tokens, take_out=1, place=p))
        for tokens in REACH
        for i, p in enumerate(PLACES)
    ]
    texts = generate(tiny, trials, max_new_tokens=5)
    monkeypatch.setattr("cmrm_utils.engine.loops.can_share", lambda vlm: False)
    assert generate(tiny, trials, max_new_tokens=5) == texts


def test_apply_knows_prompts_from_what_is_generated(tiny, requests):
    trials = [Trial(r, "own") for r in requests[:3]]
    inputs = tiny.inputs([t.text for t in trials], [t.load_image() for t in trials])
    start = inputs["input_ids"].shape[1]
    for tokens, place in zip(("prompt", "last prompt", "generated"), PLACES, strict=True):
        edit = edit_of(3, tokens, take_out=1, place=place)
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


def test_stored_responses_keep_their_ids():
    """Digests written out before an edit had a place."""
    out = torch.eye(32)[:2].expand(3, 2, 32)
    found = [edit_of(0), edit_of(0, "last"), Edit(edit_of(1).add, "generated", project=out)]
    assert [edit.digest for edit in found] == [
        "9613426cd778b7014ac93af6",
        "895e4c602c06657523a3bc64",
        "8a1d93b42eaaa791a2c2d3d0",
    ]
    places = [replace(edit, place=place) for edit in found for place in PLACES]
    assert len({edit.digest for edit in places}) == len(places)


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


@torch.inference_mode()
def test_states_of_heads_and_mlps_are_recorded(family, requests):
    """Against the projection and the sum that they go into, computed by hand."""
    text = family.model.config.get_text_config()
    image = "own" if family.sees_images else "none"
    trials = [Trial(request, image) for request in requests[:3]]
    seen = {}

    def keep(name):
        return lambda module, args, output: seen.setdefault(name, []).append(
            (output[0] if isinstance(output, tuple) else output)[0, -1].clone()
        )

    handles = []
    for layer in family.layers:
        handles.append(layer.self_attn.o_proj.register_forward_hook(keep("o_proj")))
        handles.append(layer.mlp.down_proj.register_forward_hook(keep("down_proj")))
    for trial in trials:
        family.model(**family.inputs([trial.text], [trial.load_image()]))
    for handle in handles:
        handle.remove()
    layers = len(family.layers)
    wanted = {name: torch.stack(states).view(3, layers, -1) for name, states in seen.items()}
    heads = hidden_states(family, trials, place="heads")
    assert heads.shape == (3, layers, text.num_attention_heads * family.head_size)
    for i, module in enumerate(family.modules("heads")):
        torch.testing.assert_close(
            module(heads[:, i]), wanted["o_proj"][:, i], rtol=1e-4, atol=1e-4
        )
    mlp = hidden_states(family, trials, place="mlp")
    torch.testing.assert_close(mlp, wanted["down_proj"], rtol=1e-4, atol=1e-4)
    assert hidden_states(family, [], place="heads").shape[1:] == heads.shape[1:]


def test_an_edit_of_one_head_leaves_the_others_alone(tiny, requests):
    values = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    v = ShiftVectors(values, provenance={"place": "heads"})
    edit = CMRM(v.heads([(1, 1)], tiny.head_size), -2.0)
    assert edit.place == "heads"
    plain = hidden_states(tiny, [Trial(requests[0], "own")], place="heads")[0]
    with_edit = hidden_states(tiny, [Trial(requests[0], "own", edit)], place="heads")[0]
    torch.testing.assert_close(with_edit[0], plain[0])
    torch.testing.assert_close(with_edit[1, :16], plain[1, :16])
    torch.testing.assert_close(with_edit[1, 16:], plain[1, 16:] + 2 * values[1, 16:])
    assert (with_edit[2] - plain[2]).abs().max() > 1e-3


def test_only_what_is_edited_is_hooked_and_all_hooks_go(fresh, requests):
    before = forward(fresh, requests[0])
    edit = edit_of(0, place="heads")
    edit.add[1] = 0
    modules = [module for place in PLACES for module in fresh.modules(place)]

    def hooks():
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]

    with apply(fresh, [edit]):
        assert hooks() == [0, 0, 0, 1, 0, 1, 0, 0, 0]
        assert not torch.allclose(forward(fresh, requests[0]), before)
    with record(fresh, "mlp"):
        assert hooks() == [0] * 6 + [1] * 3
    assert hooks() == [0] * 9
    torch.testing.assert_close(forward(fresh, requests[0]), before)


def test_refuses_places_that_are_not_there(fresh):
    with pytest.raises(InputError, match="place"):
        Edit(torch.ones(3, 32), place="attention")
    with (
        pytest.raises(InputError, match="'heads'"),
        apply(fresh, edit_of(0, place="heads", wide=8)),
    ):
        pass
    del fresh.layers[1].self_attn.o_proj
    with (
        pytest.raises(InputError, match=r"layer 1 has no self_attn\.o_proj"),
        record(fresh, "heads"),
    ):
        pass
    with pytest.raises(InputError, match="heads"), apply(fresh, edit_of(0, place="heads")):
        pass
    with apply(fresh, edit_of(0, place="mlp")):
        pass


def test_a_row_needs_an_edit_that_was_told_of(tiny):
    with steering(tiny, [edit_of(0)]) as steer, pytest.raises(KeyError):
        steer.rows([edit_of(0, place="mlp")])


def test_a_vector_changed_in_place_is_another_edit(tiny, requests):
    """And so another trial, whose state is not the old one's."""
    edit = Edit(torch.ones(3, 32), project=torch.eye(32)[:2].expand(3, 2, 32).clone())
    trial = Trial(requests[0], "own", edit)
    before, digest = hidden_states(tiny, [trial]), edit.digest
    edit.add.mul_(2)
    assert edit.digest == Edit(2 * torch.ones(3, 32), project=edit.project).digest != digest
    assert not torch.equal(hidden_states(tiny, [trial]), before)
    doubled = edit.digest
    edit.project.zero_()
    assert not edit.projection
    assert edit.digest != doubled
    edit.add.zero_()
    assert (edit.empty, edit.digest) == (True, "none")
    rows = Edit(torch.ones(2, 3, 32), sample_ids=("a", "b"))
    own = rows.row("b")
    assert own.digest == rows.row("a").digest
    rows.add[1] += 1
    assert own.digest != rows.row("a").digest


def test_an_edit_is_what_it_adds():
    """However it is written: equal products are one edit, others never are."""
    add = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    add[1] = 0
    assert (
        Edit(2 * add).digest == Edit(add, strength=2.0).digest == Edit(-add, strength=-2.0).digest
    )
    written = [
        Edit(add, tokens, strength=s) for tokens in ("all", "last") for s in (-1.0, 1.0, 2.0)
    ]
    assert len({edit.digest for edit in written}) == len(written)
    nothing = Edit(add, strength=0.0)
    assert (nothing.empty, nothing.digest) == (True, "none")
    out = edit_of(0, take_out=1).project
    assert not Edit(add, strength=0.0, project=out).empty
    for strength in (float("nan"), float("inf"), 1e39):
        with pytest.raises(InputError, match="NaN or an infinite"):
            Edit(add, strength=strength)


def test_samples_of_an_edit_are_told_apart():
    with pytest.raises(InputError, match="two samples have the id 'a'"):
        Edit(torch.ones(2, 3, 32), sample_ids=("a", "a"))
    with pytest.raises(InputError, match="3 sample ids, but vectors of 2 samples"):
        Edit(torch.ones(2, 3, 32), sample_ids=("a", "b", "c"))


def test_the_head_has_its_states_in_one_piece(family, requests):
    """In every pass of the engine; logits are those of a plain pass, and the hook goes after."""
    trials = [Trial(s, "own" if family.sees_images else "none") for s in requests[:4]]
    head = family.model.get_output_embeddings()
    inputs = family.inputs([t.text for t in trials], [t.load_image() for t in trials])
    with torch.inference_mode():
        plain = family.model(**inputs, position_ids=family.positions(inputs), logits_to_keep=1)
    seen = []
    # After the engine's own hook: a later hook is given what an earlier one returned.
    with contiguous_head(family):
        handle = head.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].is_contiguous())
        )
        try:
            with torch.inference_mode():
                ours = family.model(
                    **inputs, position_ids=family.positions(inputs), logits_to_keep=1
                )
        finally:
            handle.remove()
    assert seen == [True]
    torch.testing.assert_close(ours.logits, plain.logits, rtol=1e-6, atol=1e-6)
    found = first_logits(family, trials)
    torch.testing.assert_close(found, plain.logits[:, -1], rtol=1e-4, atol=1e-5)
    assert not head._forward_pre_hooks


def test_every_way_through_the_head_is_in_one_piece(tiny, requests, monkeypatch):
    """Prompts, steps, transformers' own batches, and the perplexity of a response."""
    seen, linear = [], torch.nn.functional.linear

    def look(states, weight, bias=None):
        if weight is tiny.model.lm_head.weight:
            seen.append(states.is_contiguous())
        return linear(states, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", look)
    trials = [Trial(s, i) for s in requests[:3] for i in ("own", "none")]
    said = generate(tiny, trials, max_new_tokens=3)
    first_logits(tiny, trials)
    perplexity(tiny, trials, said)
    monkeypatch.setattr("cmrm_utils.engine.loops.can_share", lambda vlm: False)
    generate(tiny, trials, max_new_tokens=3)
    assert len(seen) > 6
    assert all(seen)


def weighted(weight, seed=3, strength=-2.0):
    """An edit of a tiny model whose addition is multiplied by what the state is."""
    reference = edit_of(seed + 1).add if weight == "angle" else None
    add = torch.nn.functional.normalize(edit_of(seed).add, dim=-1)
    return Edit(add, "last", strength=strength, weight=weight, reference=reference)


@pytest.mark.parametrize("weight", ["norm", "angle"])
def test_an_addition_by_the_state_equals_numbers_by_hand(tiny, requests, weight):
    """At one layer alone, so that the state below is the unedited one."""
    for sign in (-1.0, 1.0):
        edit = weighted(weight, strength=2.0 * sign)
        edit = replace(edit, add=edit.add * torch.tensor([0.0, 1.0, 0.0])[:, None])
        plain = hidden_states(tiny, [Trial(requests[0])])[0, 1].double()
        edited = hidden_states(tiny, [Trial(requests[0], edit=edit)])[0, 1].double()
        direction = edit.add[1].double()
        size = plain.dot(plain).sqrt()
        if weight == "angle":
            away = plain - edit.reference[1].double()
            cosine = float(away.dot(-sign * direction) / away.dot(away).sqrt())
            size = size * min(max(cosine, 0.0), 1.0)
        wanted = plain + 2.0 * sign * size * direction
        torch.testing.assert_close(edited, wanted, rtol=1e-5, atol=1e-5)


def test_the_angle_is_clipped_on_one_side(tiny, requests):
    plain = hidden_states(tiny, [Trial(requests[0])])[0]
    moved = []
    for strength in (-2.0, 2.0):
        edit = weighted("angle", strength=strength)
        edit = replace(edit, add=edit.add * torch.tensor([0.0, 1.0, 0.0])[:, None])
        state = hidden_states(tiny, [Trial(requests[0], edit=edit)])[0]
        moved.append(float((state - plain)[1].norm()))
    assert min(moved) == 0.0
    assert max(moved) > 1e-3


def test_weights_mix_in_a_batch(tiny, requests):
    edits = [None, weighted("norm"), weighted("angle"), edit_of(1), edit_of(2, take_out=1)]
    trials = [Trial(sample, edit=edit) for sample in requests[:4] for edit in edits]
    together = generate(tiny, trials, max_new_tokens=6)
    alone = [generate(tiny, [trial], max_new_tokens=6)[0] for trial in trials]
    assert together == alone
    states = hidden_states(tiny, trials)
    for i, trial in enumerate(trials):
        torch.testing.assert_close(states[i], hidden_states(tiny, [trial])[0])


def test_a_weight_makes_another_edit():
    plain = Edit(torch.ones(3, 32))
    norm = replace(plain, weight="norm")
    angles = [replace(plain, weight="angle", reference=torch.full((3, 32), x)) for x in (0.0, 1.0)]
    assert len({edit.digest for edit in (plain, norm, *angles)}) == 4
    assert replace(norm, strength=0.0).empty
    held = angles[0].digest
    angles[0].reference[0, 0] = 5.0
    assert angles[0].digest != held


@pytest.mark.parametrize(
    ("weight", "reference", "names"),
    [
        ("cube", None, "no weight 'cube'"),
        ("angle", None, "no reference"),
        ("norm", torch.zeros(3, 32), "a reference"),
        ("angle", torch.zeros(3, 31), "reference is"),
        ("angle", torch.full((3, 32), float("nan")), "NaN"),
    ],
)
def test_refuses_a_weight_that_cannot_be(weight, reference, names):
    with pytest.raises(InputError, match=names):
        Edit(torch.ones(3, 32), weight=weight, reference=reference)
