import copy
import json
import weakref
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from conftest import make_tiny
from passes import watched
from PIL import Image

from cmrm_utils import CMRM, InputError, Sample, Trial, extract_shift, generate, hidden_states
from cmrm_utils.edits import Edit
from cmrm_utils.engine import inputs, memory, plan
from cmrm_utils.engine import loops as engine
from cmrm_utils.engine.loops import first_logits
from cmrm_utils.loading import wrap

MIX = ("none", "own", "blank", "caption", "noise")


@pytest.fixture(scope="module")
def mixed(requests):
    """Trials of every image condition, text-only rows beside image rows, ragged prompts."""
    return [Trial(sample, MIX[i % len(MIX)]) for i, sample in enumerate(requests)]


def test_states_do_not_depend_on_the_batch(tiny, mixed):
    together = hidden_states(tiny, mixed)
    alone = torch.cat([hidden_states(tiny, [trial]) for trial in mixed])
    assert together.shape == (len(mixed), len(tiny.layers), tiny.hidden_size)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    small = hidden_states(tiny, mixed, batch_size=3)
    torch.testing.assert_close(together, small, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_states_are_the_same_on_any_machine(fresh, mixed, rows):
    """To the last digit: the ids of trials depend on every digit of their vectors."""
    wanted = [run(fresh, mixed) for run in (hidden_states, first_logits)]
    fresh.batch_size = rows
    for run, states in zip((hidden_states, first_logits), wanted, strict=True):
        assert torch.equal(run(fresh, mixed), states)


def test_left_padding_is_exact(tiny, requests):
    """A short prompt padded by a long neighbour gives the states it gives alone."""
    short, long = Trial(requests[0], "none"), Trial(requests[1], "caption")
    padded = hidden_states(tiny, [short, long])[0]
    inputs = tiny.inputs([short.text], [None])
    out = tiny.model.model(**inputs, output_hidden_states=True)
    # transformers' hidden_states[i + 1] is layer i's output, for all but the last layer
    for layer in range(len(tiny.layers) - 1):
        torch.testing.assert_close(
            padded[layer], out.hidden_states[layer + 1][0, -1], rtol=1e-5, atol=2e-6
        )


def test_responses_do_not_depend_on_the_batch(tiny, mixed):
    together = generate(tiny, mixed, max_new_tokens=8)
    assert together == [generate(tiny, [trial], max_new_tokens=8)[0] for trial in mixed]
    assert together == generate(tiny, mixed, max_new_tokens=8, batch_size=3)
    assert len(set(together)) > 1


def test_responses_are_greedy(tiny, requests):
    """Against a loop that feeds the whole text again for every token."""
    trial = Trial(requests[0], "own")
    inputs = tiny.inputs([trial.text], [trial.load_image()])
    ids = inputs["input_ids"]
    start = ids.shape[1]
    for _ in range(6):
        logits = tiny.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert generate(tiny, [trial], max_new_tokens=6) == [tiny.decode(ids[0, start:].tolist())]


def prompt_rows(passes):
    """Rows of the passes over prompts; a step of decoding is one token wide."""
    return [rows for rows, tokens in passes if tokens > 1]


def test_equal_trials_run_once_and_come_back_in_order(tiny, requests):
    a, b = Trial(requests[0], "own"), Trial(requests[1], "none")
    with watched(tiny) as passes:
        out = generate(tiny, [a, b, Trial(requests[0], "own"), a], max_new_tokens=4)
    assert out[0] == out[2] == out[3]
    assert sum(prompt_rows(passes)) == 2


def stored(path):
    """The responses in a file, but for a torn last one."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [row for row in rows if "id" in row]


def test_streams_to_disk_and_resumes(tiny, mixed, tmp_path):
    path = tmp_path / "responses.jsonl"
    whole = generate(tiny, mixed, max_new_tokens=4, out=path)
    assert set(stored(path)[0]) == {"id", "text", "ids", "finished"}
    assert {row["id"] for row in stored(path)} == {trial.id for trial in mixed}
    # cut in the middle of a line, as a kill would
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 2 // 3])
    assert 0 < len(stored(path)) < len(whole)
    assert generate(tiny, mixed, max_new_tokens=4, out=path) == whole
    after = [row["id"] for row in stored(path)]
    assert len(after) == len(set(after)) == len({trial.id for trial in mixed})
    with watched(tiny) as passes:
        assert generate(tiny, mixed, max_new_tokens=4, out=path) == whole
    assert not passes


def test_a_resumed_run_packs_as_an_undisturbed_one_does(tiny, requests, tmp_path):
    """What is missing is run among the same neighbours; what was known before the list is not."""
    mixed = [Trial(s, image) for s in requests for image in ("none", "own", "caption")]
    path, before = tmp_path / "a.jsonl", [mixed[3]]
    generate(tiny, before, max_new_tokens=4, out=path)
    with watched(tiny) as undisturbed:
        generate(tiny, mixed, max_new_tokens=4, out=path, batch_size=2)
    assert sum(prompt_rows(undisturbed)) == len(mixed) - 1
    assert len(mixed) - 1 > 2 * 2 * engine.PACK
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:15]))
    with watched(tiny) as resumed:
        generate(tiny, mixed, max_new_tokens=4, out=path, batch_size=2)
    done = len(undisturbed) - len(resumed)
    assert done > 0
    assert resumed == undisturbed[done:]


def test_refuses_responses_made_otherwise(tiny, fresh, mixed, tmp_path):
    path = tmp_path / "responses.jsonl"
    generate(tiny, mixed[:2], max_new_tokens=4, out=path)
    with pytest.raises(InputError, match="max_new_tokens"):
        generate(tiny, mixed[:2], max_new_tokens=5, out=path)
    with pytest.raises(InputError, match="model"):
        generate(fresh, mixed[:2], max_new_tokens=4, out=path)


def test_an_unreadable_image_is_named_and_what_is_done_is_kept(tiny, mixed, tmp_path):
    path, picture = tmp_path / "responses.jsonl", tmp_path / "torn.png"
    whole = generate(tiny, mixed[:3], max_new_tokens=4, out=path)
    Image.new("RGB", (32, 32), (9, 200, 30)).save(picture)
    picture.write_bytes(picture.read_bytes()[:60])
    torn = Trial(Sample("s7", "What is it?", image=picture))
    with pytest.raises(InputError, match=r"sample s7: no readable image at .*torn\.png"):
        generate(tiny, [*mixed, torn], max_new_tokens=4, out=path)
    picture.unlink()
    with pytest.raises(InputError, match=r"s7: no readable image at .*torn\.png"):
        hidden_states(tiny, [torn])
    before = path.read_bytes()
    assert generate(tiny, mixed[:3], max_new_tokens=4, out=path) == whole
    assert path.read_bytes() == before


def test_first_logits(tiny, mixed):
    logits = first_logits(tiny, mixed)
    for trial, row in zip(mixed, logits, strict=True):
        inputs = tiny.inputs([trial.text], [trial.load_image()])
        want = tiny.model(**inputs).logits[0, -1]
        torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-4)


def test_sample_level_at_alpha_1_in_the_last_layer_is_the_text_only_state(tiny, requests):
    """On a blank image, h - 1 * (h(blank) - h(text)) is h(text): its first token's logits too."""
    vectors = extract_shift(tiny, requests, level="sample")
    edit = CMRM(vectors, 1.0, layers=[len(tiny.layers) - 1])
    edited = first_logits(tiny, [Trial(s, "blank", edit) for s in requests])
    text = first_logits(tiny, [Trial(s, "none") for s in requests])
    torch.testing.assert_close(edited, text, rtol=1e-4, atol=1e-4)
    unedited = first_logits(tiny, [Trial(s, "blank") for s in requests])
    assert (unedited - text).abs().max() > 1e-2


def test_each_familys_rows_do_not_depend_on_their_batch(family, steered):
    """Text rows beside image rows, each under its own edit."""
    alone = torch.cat([hidden_states(family, [trial]) for trial in steered])
    torch.testing.assert_close(hidden_states(family, steered), alone, rtol=1e-4, atol=1e-5)
    together = generate(family, steered, max_new_tokens=8)
    assert together == [generate(family, [trial], max_new_tokens=8)[0] for trial in steered]
    assert len(set(together)) > len(steered) / 2
    logits = torch.cat([first_logits(family, [trial]) for trial in steered])
    torch.testing.assert_close(first_logits(family, steered), logits, rtol=1e-4, atol=1e-5)


def test_each_familys_responses_are_plainly_greedy(family, requests):
    """Against a loop without a cache, whatever penalty the checkpoint's settings ask for."""
    trial = Trial(requests[0], "own" if family.sees_images else "none")
    whole = family.inputs([trial.text], [trial.load_image()])
    start = whole["input_ids"].shape[1]
    for _ in range(12):
        token = family.model(**whole).logits[:, -1].argmax(-1, keepdim=True)
        whole, _, _ = family.extended(whole, token)
        if token.item() == family.model.generation_config.eos_token_id:
            break
    expected = family.decode(whole["input_ids"][0, start:].tolist())
    assert generate(family, [trial], max_new_tokens=12) == [expected]


def test_batches_are_as_large_as_the_model_says(fresh, requests):
    fresh.batch_size = 3
    with watched(fresh) as passes:
        generate(fresh, [Trial(sample, "none") for sample in requests], max_new_tokens=2)
    assert max(rows for rows, _ in passes) == 3


def test_no_trials(tiny):
    assert generate(tiny, [], max_new_tokens=3) == []
    assert hidden_states(tiny, []).shape == (0, len(tiny.layers), tiny.hidden_size)


def test_an_image_is_encoded_once(fresh, requests):
    shown = []
    handle = fresh.model.model.vision_tower.register_forward_hook(
        lambda module, args, output: shown.append(1)
    )
    trials = [Trial(sample, image) for sample in requests for image in ("own", "blank")]
    edits = [Edit(torch.ones(3, 32) * size) for size in (0.1, 0.2)]
    generate(fresh, trials, max_new_tokens=2)
    generate(fresh, [Trial(t.sample, t.image, e) for t in trials for e in edits], max_new_tokens=2)
    hidden_states(fresh, trials)
    handle.remove()
    assert len(shown) == len({trial.image_key for trial in trials})


def test_encoded_images_take_bounded_memory(fresh, requests, monkeypatch):
    monkeypatch.setattr(inputs, "ENCODED_BYTES", 1)
    trials = [Trial(sample, "own") for sample in requests]
    few = hidden_states(fresh, trials)
    assert len(inputs._encoded[fresh]) == 1
    monkeypatch.undo()
    torch.testing.assert_close(few, hidden_states(fresh, trials))


@contextmanager
def short_of_memory(vlm, rows):
    """A decoder that holds so many rows and no more."""

    def refuse(module, args):
        if args[0].shape[0] > rows:
            raise torch.OutOfMemoryError("injected")

    handle = vlm.layers[1].register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def test_batches_are_halved_until_they_fit(fresh, steered_tiny, tmp_path, caplog):
    wanted = generate(fresh, steered_tiny, max_new_tokens=6)
    states = hidden_states(fresh, steered_tiny)
    path = tmp_path / "responses.jsonl"
    with short_of_memory(fresh, 3):
        assert generate(fresh, steered_tiny, max_new_tokens=6, out=path) == wanted
        assert fresh.batch_size == 2
        assert "batches of 2" in caplog.text
        fresh.batch_size = 64
        torch.testing.assert_close(hidden_states(fresh, steered_tiny), states, rtol=1e-4, atol=1e-4)
    assert len(stored(path)) == len(steered_tiny)


def test_a_row_that_never_fits_is_an_error(fresh, requests):
    with short_of_memory(fresh, 0), pytest.raises(torch.OutOfMemoryError, match="injected"):
        generate(fresh, [Trial(requests[0])], max_new_tokens=2)
    assert not fresh.layers[0]._forward_hooks


@pytest.fixture
def steered_tiny(requests):
    generator = torch.Generator().manual_seed(0)
    edits = [None, Edit(torch.randn(3, 32, generator=generator) / 4)]
    return [Trial(s, MIX[i % 5], edits[i % 2]) for i, s in enumerate(requests)]


def test_memory_bounds_the_batch(fresh, requests, monkeypatch):
    trials = [Trial(sample, "own") for sample in requests]
    longest = fresh.inputs([t.text for t in trials], [t.load_image() for t in trials])["input_ids"]
    enough = memory.token_bytes(fresh) * (longest.shape[1] + 12) * 2
    monkeypatch.setattr(memory, "_memory", lambda vlm: enough)
    with watched(fresh) as passes:
        generate(fresh, trials, max_new_tokens=12)
    assert max(rows for rows, _ in passes) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_logits_that_are_no_numbers_name_the_sample(fresh, requests, monkeypatch, shared):
    for module in (engine, plan):
        monkeypatch.setattr(module, "can_share", lambda vlm: shared)
    edits = [None, Edit(torch.full((3, 32), 3e38), settings={"alpha": 9})]
    trials = [Trial(s, "own", edit) for s, edit in zip(requests[:2], edits, strict=True)]
    with pytest.raises(InputError, match=rf"sample {requests[1].id} .*alpha"):
        generate(fresh, trials, max_new_tokens=4)


NOTHING = torch.zeros(32, 96)


def moved(one, two):
    return float((one - two).abs().max())


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.model.model.multi_modal_projector.linear_2.weight.mul_(0),
        lambda v: v.model.model.multi_modal_projector.linear_2.weight.data.mul_(0.5),
        lambda v: v.model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.mul_(3),
        lambda v: setattr(v.model.model.multi_modal_projector.linear_1.weight, "data", NOTHING),
        lambda v: setattr(v.processor.image_processor, "image_mean", [0.1, 0.9, 0.3]),
        lambda v: setattr(v, "pad_to_square", True),
    ],
)
@torch.no_grad()
def test_encoded_images_do_not_outlive_what_encoded_them(processor, change):
    vlm = wrap(copy.deepcopy(make_tiny(processor).model), copy.deepcopy(processor), name="mine")
    picture = Image.effect_noise((96, 48), 90).convert("RGB")
    trial = Trial(Sample("a", "Why?", picture))
    runs = (first_logits, hidden_states)
    before = [run(vlm, [trial]) for run in runs]
    change(vlm)
    for old, run in zip(before, runs, strict=True):
        after = run(vlm, [trial])
        inputs._encoded.clear()
        assert torch.equal(after, run(vlm, [trial]))
        assert moved(old, after) > 1e-3
    assert len(inputs._encoded[vlm]) == 1


def test_a_decoder_changed_alone_keeps_its_images(fresh, requests):
    first_logits(fresh, [Trial(s) for s in requests])
    kept = inputs._encoded[fresh]
    with torch.no_grad():
        fresh.layers[0].mlp.up_proj.weight.mul_(2)
    first_logits(fresh, [Trial(s) for s in requests])
    assert inputs._encoded[fresh] is kept


def test_a_changed_picture_is_seen(tiny, requests, tmp_path):
    """Drawn on in memory, or replaced on the disk: by the same sample, and the same trial."""
    one, two = (sample.load_image() for sample in requests[:2])
    wanted = [first_logits(tiny, [Trial(Sample("x", "Why?", image))]) for image in (one, two)]
    assert moved(*wanted) > 1e-2
    drawn, path = Sample("s", "Why?", one.copy()), tmp_path / "p.bmp"
    kept = [Trial(drawn), Trial(Sample("f", "Why?", path))]
    for image, logits in zip((one, two), wanted, strict=True):
        drawn.image.paste(image)
        image.save(path)
        for trial in (*kept, Trial(drawn)):
            assert torch.equal(first_logits(tiny, [trial]), logits)


def test_responses_of_a_model_changed_since_are_not_mixed(fresh, requests, tmp_path):
    trials = [Trial(s, "none") for s in requests]
    generate(fresh, trials[:2], max_new_tokens=3, out=tmp_path / "r.jsonl")
    with torch.no_grad():
        fresh.model.lm_head.weight.mul_(-1)
    with pytest.raises(InputError, match="model = "):
        generate(fresh, trials, max_new_tokens=3, out=tmp_path / "r.jsonl")


def test_nothing_and_less_than_nothing(tiny, requests):
    assert first_logits(tiny, []).shape == (0, tiny.vocabulary)
    assert first_logits(tiny, [Trial(requests[0])]).shape == (1, tiny.vocabulary)
    trial = [Trial(requests[0], "none")]
    for tokens in (0, -1):
        with pytest.raises(InputError, match="max_new_tokens must be 1 or more"):
            generate(tiny, trial, max_new_tokens=tokens)
    for rows in (0, -3):
        for run in (hidden_states, first_logits, partial(generate, max_new_tokens=1)):
            with pytest.raises(InputError, match="batch_size must be 1 or more"):
                run(tiny, trial, batch_size=rows)


@pytest.fixture
def pictured(requests):
    """Trials of which each has a picture of its own."""
    return [
        Trial(Sample(f"p{i}", s.query, Image.effect_noise((48, 48), 9 + 5 * i).convert("RGB")))
        for i, s in enumerate(requests * 3)
    ]


@contextmanager
def followed(vlm, most=None):
    """The encoded images alive after each encoding; beyond ``most`` memory is out."""
    alive, counts, encode = weakref.WeakSet(), [], vlm.encode

    def watch(image):
        if most is not None and len(alive) >= most:
            raise torch.OutOfMemoryError("injected")
        made = encode(image)
        alive.add(made)
        counts.append(sum(each.features.nbytes for each in alive))
        return made

    vlm.encode = watch
    try:
        yield counts
    finally:
        del vlm.encode


@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize("images", [1, 3, 100])
def test_images_alive_are_within_the_bound(fresh, pictured, monkeypatch, images, rows):
    """All of them: those kept, those of rows that enter, those of rows inside."""
    wanted = generate(fresh, pictured, max_new_tokens=5)
    one = fresh.encode(pictured[0].load_image()).features.nbytes
    monkeypatch.setattr(inputs, "ENCODED_BYTES", images * one)
    inputs._encoded.clear()
    for run in (partial(generate, max_new_tokens=5), hidden_states):
        with followed(fresh) as counts:
            found = run(fresh, pictured, batch_size=rows)
        assert max(counts, default=0) <= images * one
        if run is not hidden_states:
            assert found == wanted


@pytest.mark.parametrize("most", [1, 3])
def test_memory_that_is_out_while_images_are_encoded(fresh, pictured, most, caplog):
    """Smaller batches, the images kept given up, and nothing lost."""
    wanted = generate(fresh, pictured, max_new_tokens=5)
    inputs._encoded.clear()
    with followed(fresh, most):
        assert generate(fresh, pictured, max_new_tokens=5) == wanted
    assert "out of memory" in caplog.text
    inputs._encoded.clear()
    fresh.batch_size = 64
    with followed(fresh, most):
        hidden_states(fresh, pictured)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_picture_that_never_fits_names_its_sample(fresh, pictured, tmp_path, error):
    """After all that fit have been written."""
    encode, large = fresh.encode, pictured[5].load_image().tobytes()

    def refuse(image):
        if image.tobytes() == large:
            raise error("injected")
        return encode(image)

    fresh.encode = refuse
    for run in (
        partial(generate, max_new_tokens=3, out=tmp_path / "r.jsonl"),
        hidden_states,
        first_logits,
    ):
        fresh.batch_size = 8
        with pytest.raises(torch.OutOfMemoryError, match=r"sample p5 .*alone \(injected"):
            run(fresh, pictured)
    assert not fresh.layers[0]._forward_hooks
