from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from cmrm_utils import (
    CMRM,
    InputError,
    Sample,
    ShiftVectors,
    Trial,
    extract_shift,
    generate,
    hidden_states,
)
from cmrm_utils.conditions import NOISES
from cmrm_utils.methods.base import safety_direction
from cmrm_utils.methods.prompting import captioned
from cmrm_utils.methods.regap import regained, text_mean
from cmrm_utils.methods.shiftdc import caption_safety, caption_shift
from cmrm_utils.methods.vlm_guard import difference_directions, text_states
from cmrm_utils.vectors import (
    cached_shift,
    principal_directions,
    refusal_direction,
)


def plain_states(vlm, text, image):
    """Last-token state of each layer the plainest way: one sample, layer by layer, no hooks."""
    inputs = vlm.inputs([text], [image])
    core = vlm.model.model
    embeds = core.language_model.embed_tokens(inputs["input_ids"])
    if image is not None:
        tower = core.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        patches = tower.hidden_states[vlm.model.config.vision_feature_layer][:, 1:]
        soft = core.multi_modal_projector(patches)[0]
        embeds[inputs["input_ids"] == vlm.model.config.image_token_id] = soft
    states, found = embeds, []
    rotary = core.language_model.rotary_emb(states, torch.arange(states.shape[1])[None])
    size = states.shape[1]
    causal = torch.full((size, size), float("-inf")).triu(1)[None, None]
    for layer in core.language_model.layers:
        out = layer(states, attention_mask=causal, position_embeddings=rotary)
        states = out[0] if isinstance(out, tuple) else out
        found.append(states[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("meaningless", ["blank", "black"])
def test_shift_equals_a_plain_recomputation(tiny, requests, meaningless):
    level = {"blank": 127, "black": 0}[meaningless]
    picture = Image.new("RGB", requests[0].load_image().size, (level,) * 3)
    each = torch.stack(
        [
            plain_states(tiny, s.prompt, picture) - plain_states(tiny, s.prompt, None)
            for s in requests
        ]
    )
    dataset = extract_shift(tiny, requests, meaningless=meaningless)
    sample = extract_shift(tiny, requests, meaningless=meaningless, level="sample")
    torch.testing.assert_close(sample.values, each, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dataset.values, each.mean(0), rtol=1e-3, atol=1e-4)
    assert dataset.level == "dataset"
    assert sample.sample_ids == tuple(s.id for s in requests)


def test_cmrm_equals_a_plain_recomputation(tiny, requests):
    """h - alpha v at every layer, compounding as published."""
    vectors = extract_shift(tiny, requests)
    alpha = 0.3
    sample = requests[0]
    core = tiny.model.model.language_model
    inputs = tiny.inputs([sample.prompt], [None])
    states = core.embed_tokens(inputs["input_ids"])
    rotary = core.rotary_emb(states, torch.arange(states.shape[1])[None])
    size = states.shape[1]
    causal = torch.full((size, size), float("-inf")).triu(1)[None, None]
    wanted = []
    for layer, v in zip(core.layers, vectors.values, strict=True):
        out = layer(states, attention_mask=causal, position_embeddings=rotary)
        states = (out[0] if isinstance(out, tuple) else out) - alpha * v
        wanted.append(states[0, -1])
    found = hidden_states(tiny, [Trial(sample, "none", CMRM(vectors, alpha))])[0]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-4)


def test_noise_is_averaged_over_fixed_images(tiny, requests):
    mean = extract_shift(tiny, requests, meaningless="noise").values
    each = [extract_shift(tiny, requests, meaningless=name).values for name in NOISES]
    torch.testing.assert_close(mean, torch.stack(each).mean(0), rtol=1e-4, atol=1e-5)


def test_pc1_finds_the_axis_of_variation(tiny, requests, monkeypatch):
    """On made-up differences: mean along one axis, greatest variation along another."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(400, 3, 32, generator=generator) * 0.1
    made[..., 0] += 2.0
    made[..., 1] += 0.5 + 3.0 * torch.randn(400, 3, generator=generator)
    monkeypatch.setattr("cmrm_utils.vectors.shifts", lambda *a, **k: made)

    def extract(**settings):
        return extract_shift(tiny, requests, **settings).values

    unit = extract(estimator="pc1", scale="unit")
    assert (unit[:, 1] > 0.99).all()  # signed to agree with the mean
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(3))
    along = (made.mean(0) * unit).sum(-1)
    torch.testing.assert_close(extract(estimator="pc1").norm(dim=-1), along, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        extract(estimator="pc1", scale="std").norm(dim=-1),
        (made * unit).sum(-1).std(0),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(extract(), made.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extract(scale="unit").norm(dim=-1), torch.ones(3))


def test_refusal_direction(tiny, requests):
    harmful = [s for s in requests if s.harmful]
    benign = [s for s in requests if not s.harmful]
    direction = refusal_direction(tiny, harmful, benign).values
    want = sum(plain_states(tiny, s.prompt, None) for s in harmful) / len(harmful) - sum(
        plain_states(tiny, s.prompt, None) for s in benign
    ) / len(benign)
    torch.testing.assert_close(direction, want, rtol=1e-3, atol=1e-4)


def vectors_of(seed=0, layers=5, hidden=16):
    generator = torch.Generator().manual_seed(seed)
    return ShiftVectors(torch.randn(layers, hidden, generator=generator))


def test_increments_sum_to_the_vectors():
    v = vectors_of()
    torch.testing.assert_close(v.increments().values.cumsum(0), v.values)


def test_parts_along_and_beside_a_direction():
    v, d = vectors_of(0), vectors_of(1)
    rest, part = v.without(d), v.only(d)
    torch.testing.assert_close(rest.values + part.values, v.values)
    torch.testing.assert_close(rest.cosine(d), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(part.cosine(d).abs(), torch.ones(5))


def test_parts_within_and_beside_several_directions():
    drawn = torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(4))
    directions = ShiftVectors(torch.linalg.qr(drawn).Q.permute(2, 0, 1))
    samples = ShiftVectors(torch.stack([vectors_of(i).values for i in range(2)]), ("a", "b"))
    for v in (vectors_of(0), samples):
        rest, part = v.without(directions), v.only(directions)
        torch.testing.assert_close(rest.values + part.values, v.values)
        along = torch.einsum("...lh,klh->...lk", rest.values, directions.values)
        assert along.abs().max() < 1e-5
        torch.testing.assert_close(part.only(directions).values, part.values)
        assert rest.sample_ids == v.sample_ids
        one = v.only(directions.first(1)).values
        torch.testing.assert_close(one, v.only(ShiftVectors(directions.values[0])).values)
    assert directions.first(2).values.shape == (2, 5, 16)


def test_principal_directions_are_of_the_shifts_themselves(tiny, requests, monkeypatch):
    """On made-up shifts: mean along one axis, a smaller variation along another."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(400, 3, 32, generator=generator) * 0.01
    made[..., 0] -= 5.0
    made[..., 1] += 2.0 * torch.randn(400, 3, generator=generator)
    monkeypatch.setattr("cmrm_utils.vectors.shifts", lambda *a, **k: made)
    found = principal_directions(tiny, requests, 3)
    assert (found.values[0, :, 0] < -0.99).all()  # not centred, and towards the mean
    assert (found.values[1, :, 1].abs() > 0.99).all()
    products = torch.einsum("klh,mlh->lkm", found.values, found.values)
    torch.testing.assert_close(products, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    for count in (0, 33, len(requests) + 1):
        with pytest.raises(InputError, match="directions"):
            principal_directions(tiny, requests, count)


@torch.inference_mode()
def test_shifts_of_heads_and_mlps(tiny, requests, tmp_path):
    """Against states read by hand, one sample at a time; kept with their place."""
    grey = Image.new("RGB", requests[0].load_image().size, (127,) * 3)
    seen = []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args: seen.append(args[0][0, -1].clone())
        )
        for layer in tiny.layers
    ]
    handles += [
        layer.mlp.register_forward_hook(lambda module, args, out: seen.append(out[0, -1].clone()))
        for layer in tiny.layers
    ]
    wanted = []
    for sample in requests[:2]:
        for picture in (grey, None):
            tiny.model(**tiny.inputs([sample.prompt], [picture]))
            wanted.append(torch.stack(seen))
            seen.clear()
    for handle in handles:
        handle.remove()
    each = torch.stack([wanted[0] - wanted[1], wanted[2] - wanted[3]])  # heads, MLP, heads ...
    for first, place in enumerate(("heads", "mlp")):
        v = extract_shift(tiny, requests[:2], level="sample", place=place)
        torch.testing.assert_close(v.values, each[:, first::2], rtol=1e-3, atol=1e-4)
        assert v.place == v.scaled(2.0).place == CMRM(v, 0.5).place == place
        path = tmp_path / f"{place}.safetensors"
        made = cached_shift(tiny, requests[:2], path, place=place)
        assert ShiftVectors.load(path).place == place
        torch.testing.assert_close(made.values, v.values.mean(0), rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match=f"place = '{place}', not 'layer'"):
            cached_shift(tiny, requests[:2], path)


def test_vectors_of_the_layers_say_nothing_of_their_place(tiny, requests):
    """Files from before there were other places are still these vectors."""
    v = extract_shift(tiny, requests)
    assert "place" not in v.provenance
    assert v.place == "layer"


def test_controls_keep_the_norms():
    v, d = vectors_of(0), vectors_of(1)
    for control in (v.random(3), v.permuted(3), d.scaled_like(v)):
        torch.testing.assert_close(control.norms, v.norms)
        assert control.cosine(v).abs().max() < 0.9
    torch.testing.assert_close(v.random(3).values, v.random(3).values)
    assert not torch.equal(v.random(3).values, v.random(4).values)


def test_save_and_load(tmp_path):
    v = ShiftVectors(torch.randn(2, 5, 16), ("a", "b"), {"model": "m", "estimator": "mean"})
    v.save(tmp_path / "deep" / "v.safetensors")
    back = ShiftVectors.load(tmp_path / "deep" / "v.safetensors")
    assert torch.equal(back.values, v.values)
    assert back.sample_ids == v.sample_ids
    assert back.provenance == v.provenance


def test_broken_files_are_named(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a file of tensors")
    for path in (broken, tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match=path.name):
            ShiftVectors.load(path)
    with pytest.raises(InputError, match="NaN"):
        ShiftVectors(torch.full((2, 2), float("nan")))


def test_bad_requests(tiny, requests):
    with pytest.raises(InputError, match="no anchors"):
        extract_shift(tiny, [])
    with pytest.raises(InputError, match="pc1"):
        extract_shift(tiny, requests, estimator="pc1", level="sample")
    with pytest.raises(InputError, match="two anchors"):
        extract_shift(tiny, requests[:1], scale="std")


def test_cache_is_used_only_for_just_these_vectors(tiny, fresh, requests, tmp_path):
    path = tmp_path / "v.safetensors"
    first = cached_shift(tiny, requests, path)
    stamp = path.stat().st_mtime_ns
    assert torch.equal(cached_shift(tiny, requests, path).values, first.values)
    for vlm, anchors, settings, words in (
        (fresh, requests, {}, f"model = '{tiny.fingerprint}', not '{fresh.fingerprint}'"),
        (tiny, requests[::-1], {}, "anchors = "),
        (tiny, requests, {"meaningless": "black"}, "meaningless = 'blank', not 'black'"),
    ):
        with pytest.raises(InputError, match=rf"v\.safetensors was made with {words}"):
            cached_shift(vlm, anchors, path, **settings)
    assert path.stat().st_mtime_ns == stamp


def test_vectors_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "v.safetensors"
    ShiftVectors(torch.ones(2, 3)).save(path)

    def half(self, data):
        with self.open("wb") as stream:
            stream.write(data[:40])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", half)
    with pytest.raises(InputError, match=r"v\.safetensors: cannot be written"):
        ShiftVectors(torch.zeros(2, 3)).save(path)
    assert torch.equal(ShiftVectors.load(path).values, torch.ones(2, 3))
    assert [each.name for each in tmp_path.iterdir()] == ["v.safetensors"]


def of_kinds(requests):
    return [s for s in requests if s.harmful], [s for s in requests if not s.harmful]


def told(sample):
    """ShiftDC's authors put the caption after the request."""
    return f"{sample.prompt} Image Caption: {sample.caption}"


def test_shiftdcs_safety_direction_is_benign_minus_harmful_with_captions(tiny, requests):
    harmful, benign = of_kinds(requests)
    want = sum(plain_states(tiny, told(s), None) for s in benign) / len(benign) - sum(
        plain_states(tiny, told(s), None) for s in harmful
    ) / len(harmful)
    found = caption_safety(tiny, harmful, benign).values
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)


def test_caption_shift_is_of_a_samples_own_caption(tiny, requests):
    bare = Sample("bare", "Who?")
    found = caption_shift(tiny, [requests[0], bare, requests[1]])
    assert found.sample_ids == (requests[0].id, "bare", requests[1].id)
    for i, sample in ((0, requests[0]), (2, requests[1])):
        want = plain_states(tiny, sample.prompt, sample.load_image()) - plain_states(
            tiny, told(sample), None
        )
        torch.testing.assert_close(found.values[i], want, rtol=1e-3, atol=1e-4)
    assert not found.values[1].any()


def test_captioned_samples_bear_the_models_own_words(tiny, requests):
    bare = Sample("bare", "Who?", caption="nobody")
    found = captioned([*requests, bare], partial(generate, tiny, max_new_tokens=4))
    trials = [Trial(s, prompt="Describe the image.") for s in requests]
    wanted = generate(tiny, trials, max_new_tokens=4)
    assert [s.caption for s in found] == [*wanted, "nobody"]
    assert [(s.id, s.query) for s in found] == [(s.id, s.query) for s in [*requests, bare]]


def test_difference_directions_are_singular_vectors_of_pairs(tiny, requests):
    harmful, benign = of_kinds(requests)
    pairs = min(len(harmful), len(benign))
    found = difference_directions(tiny, harmful, benign, 2).values
    assert found.shape == (2, 3, 32)
    both = zip(harmful[:pairs], benign[:pairs], strict=True)
    matrix = torch.stack(
        [plain_states(tiny, a.prompt, None) - plain_states(tiny, b.prompt, None) for a, b in both]
    )
    for layer in range(3):
        square = (matrix[:, layer].T @ matrix[:, layer]).double()
        vectors = torch.linalg.eigh(square).eigenvectors[:, [-1, -2]].T
        for got, want in zip(found[:, layer].double(), vectors, strict=True):
            assert abs(got @ want) > 1 - 1e-3
            assert got @ matrix[:, layer].mean(0).double() > 0
    with pytest.raises(InputError, match="5 directions of"):
        difference_directions(tiny, harmful[:4], benign, 5)


def test_text_states(tiny, requests):
    found = text_states(tiny, requests)
    assert found.sample_ids == tuple(s.id for s in requests)
    want = plain_states(tiny, requests[0].prompt, None)
    torch.testing.assert_close(found.values[0], want, rtol=1e-3, atol=1e-4)


def test_regained_is_0_at_benign_and_1_at_harmful_text(tiny, requests):
    """A sample without an image is its own text; another's share is recomputed."""
    harmful, benign = of_kinds(requests)
    bad, good = (
        torch.stack([plain_states(tiny, s.prompt, None) for s in these])
        for these in (harmful, benign)
    )
    low, line = good.mean(0), bad.mean(0) - good.mean(0)

    def share(states):
        return float((((states - low) * line).sum(-1) / (line**2).sum(-1)).mean().clamp(0, 1))

    bare = [Sample(f"bare-{s.id}", s.query) for s in requests]
    nothing = CMRM(vectors_of(layers=3, hidden=32), 0.0)
    means = {"harmful": text_mean(tiny, harmful), "benign": text_mean(tiny, benign)}
    found = regained(tiny, [Trial(s, "none") for s in bare], nothing, **means)
    for sample, text in zip(bare, requests, strict=True):
        want = share(plain_states(tiny, text.prompt, None))
        assert found[sample.id] == pytest.approx(want, abs=1e-3)
    first = CMRM(vectors_of(layers=3, hidden=32), 0.3, tokens="last")
    shown = regained(tiny, [Trial(s) for s in requests], first, **means)
    states = hidden_states(tiny, [Trial(s, "own", first) for s in requests])
    for sample, state in zip(requests, states, strict=True):
        assert shown[sample.id] == pytest.approx(share(state), abs=1e-3)
    assert 0 < sum(shown.values()) / len(shown) < 1


def test_kept_directions_are_taken_up_and_others_refused(tiny, requests, tmp_path, monkeypatch):
    harmful, benign = of_kinds(requests)
    makers = {
        "safety": lambda h, path: caption_safety(tiny, h, benign, path=path),
        "differences": lambda h, path: difference_directions(tiny, h, benign, 2, path=path),
        "captions": lambda h, path: caption_shift(tiny, [*h, *benign], path=path),
        "means": lambda h, path: text_mean(tiny, h, path=path),
    }
    made = {name: make(harmful, tmp_path / name) for name, make in makers.items()}
    for name, make in makers.items():
        with pytest.raises(InputError, match=name):
            make(harmful[::-1], tmp_path / name)
    monkeypatch.setattr("cmrm_utils.vectors.hidden_states", None)  # nothing is run again
    for name, make in makers.items():
        again = make(harmful, tmp_path / name)
        assert torch.equal(again.values, made[name].values)
        assert again.sample_ids == made[name].sample_ids


def shaded(samples, level, size=(48, 48)):
    """The samples with other pictures under the same texts and ids."""
    return [replace(s, image=Image.new("RGB", size, (level, 9, 9))) for s in samples]


def test_vectors_of_other_pictures_are_not_taken_up(tiny, requests, tmp_path):
    """Whatever is shown: a blank image of another size, the own one; whose rows they are."""
    harmful, benign = of_kinds(shaded(requests, 10))
    makers = {
        "size": lambda h, path: cached_shift(tiny, h, path),
        "own": lambda h, path: cached_shift(tiny, h, path, meaningless="own"),
        "blur": lambda h, path: cached_shift(tiny, h, path, meaningless="blur", level="sample"),
        "captions": lambda h, path: caption_shift(tiny, h, path=path),
        "safety": lambda h, path: safety_direction(tiny, h, benign, image="own", path=path),
    }
    for name, make in makers.items():
        first = make(harmful, tmp_path / name).values
        assert torch.equal(make(list(harmful), tmp_path / name).values, first)
        other = shaded(harmful, 200, (48, 48) if name != "size" else (96, 48))
        with pytest.raises(InputError, match=name):
            make(other, tmp_path / name)


def test_vectors_of_other_samples_are_not_taken_up(tiny, requests, tmp_path):
    """At sample level rows are found by id; at dataset level ids play no part."""
    renamed = [replace(s, id=f"other {s.id}") for s in requests]
    cached_shift(tiny, requests, tmp_path / "sample", level="sample")
    with pytest.raises(InputError, match="anchors = "):
        cached_shift(tiny, renamed, tmp_path / "sample", level="sample")
    values = cached_shift(tiny, requests, tmp_path / "dataset").values
    assert torch.equal(cached_shift(tiny, renamed, tmp_path / "dataset").values, values)


def test_which_sample_bears_the_picture_is_part_of_caption_shifts(tiny, tmp_path):
    grey = Image.new("RGB", (48, 48), (99, 9, 9))
    pair = [Sample("a", "Why?", grey, "Grey."), Sample("b", "Why?", None, "Grey.")]
    caption_shift(tiny, pair, path=tmp_path / "v")
    turned = [replace(pair[0], image=None), replace(pair[1], image=grey)]
    with pytest.raises(InputError, match="samples = "):
        caption_shift(tiny, turned, path=tmp_path / "v")


def test_vectors_of_changed_weights_are_not_taken_up(fresh, requests, tmp_path):
    cached_shift(fresh, requests, tmp_path / "v")
    with torch.no_grad():
        fresh.layers[0].mlp.up_proj.weight.mul_(2)
    with pytest.raises(InputError, match="model = "):
        cached_shift(fresh, requests, tmp_path / "v")


def test_directions_say_what_they_were_taken_on(tiny, requests):
    harmful, benign = of_kinds(requests)
    refusals = [refusal_direction(tiny, harmful, benign, image=i) for i in ("none", "blank")]
    refusals.append(refusal_direction(tiny, harmful + benign[:1], benign[1:]))
    refusals.append(refusal_direction(tiny, harmful, shaded(benign, 9), image="own"))
    refusals.append(refusal_direction(tiny, harmful, shaded(benign, 8), image="own"))
    principal = [principal_directions(tiny, a, 1) for a in (requests, shaded(requests, 9, (9, 9)))]
    states = [
        text_states(tiny, a) for a in (requests, [replace(s, id=s.id + "!") for s in requests])
    ]
    for made in (refusals, principal, states):
        assert len({str(sorted(v.provenance.items())) for v in made}) == len(made)
        assert {v.provenance["model"] for v in made} == {tiny.fingerprint}


def test_two_samples_of_one_id_are_refused(tiny, requests, monkeypatch):
    """Before anything is run, wherever a sample's own vector is found by its id."""
    twins = [requests[0], replace(requests[1], id=requests[0].id)]
    nothing = CMRM(vectors_of(layers=3, hidden=32), 0.0)
    mean = text_mean(tiny, requests)
    monkeypatch.setattr("cmrm_utils.vectors.hidden_states", None)
    for make in (
        lambda: extract_shift(tiny, twins, level="sample"),
        lambda: caption_shift(tiny, twins),
        lambda: text_states(tiny, twins),
        lambda: regained(tiny, [Trial(s) for s in twins], nothing, harmful=mean, benign=mean),
        lambda: ShiftVectors(torch.ones(2, 3, 32), tuple(s.id for s in twins)),
    ):
        with pytest.raises(InputError, match=f"two samples have the id '{requests[0].id}'"):
            make()
    with pytest.raises(InputError, match="1 sample ids, but vectors of 2 samples"):
        ShiftVectors(torch.ones(2, 3, 32), ("a",))


def test_the_mean_of_two_samples_of_one_id_is_of_both(tiny, requests):
    twins = [requests[0], replace(requests[1], id=requests[0].id)]
    torch.testing.assert_close(
        extract_shift(tiny, twins).values, extract_shift(tiny, requests[:2]).values
    )


def test_samples_of_one_id_are_captioned_apart(tiny, requests):
    twins = [requests[0], replace(requests[1], id=requests[0].id), Sample("bare", "Who?")]
    respond = partial(generate, tiny, max_new_tokens=4)
    found = captioned(twins, respond)
    wanted = [captioned([s], respond)[0] for s in twins]
    assert [s.caption for s in found] == [s.caption for s in wanted]
