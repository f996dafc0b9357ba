"""Every family that loads, against transformers alone, one prompt at a time."""

from functools import partial, wraps
from importlib.util import find_spec

import models_page
import pytest
import torch
from families import EXTRA, REFUSED, RIGHT, SEEING, write_family
from passes import everywhere, plain, watched
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from cmrm_utils import (
    Edit,
    InputError,
    Sample,
    Trial,
    apply,
    bake,
    extract_shift,
    generate,
    hidden_states,
    load_vlm,
)
from cmrm_utils.checks import alone, model
from cmrm_utils.engine.cache import can_share
from cmrm_utils.engine.inputs import forget_images, prompts, tokens
from cmrm_utils.engine.loops import first_logits

ROUND = Image.radial_gradient("L").resize((60, 44)).convert("RGB")
WIDE = Image.linear_gradient("L").rotate(90).resize((100, 40)).convert("RGB")
LONG = "What is the best way to warm a lamp that has been left outside?"


@pytest.fixture(scope="module", params=[*SEEING, *RIGHT, *EXTRA])
def one(request, processor, tmp_path_factory):
    """A family as :func:`load_vlm` loads it."""
    if request.param in EXTRA and find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return load_vlm(write_family(request.param, processor, tmp_path_factory.mktemp("one")))


@pytest.fixture
def apart(one):
    """A family whose images can be encoded apart from their prompts."""
    if one.way == "plain":
        pytest.skip("its prompts run alone")
    return one


@pytest.fixture
def found(request, tell):
    """Say what was found of the family at hand."""
    return partial(tell, request.node.callspec.params["one"])


BATCHES = ("aya-vision", "gemma3", "lfm2-vl", "paligemma", "qwen3.5")
"""Families with windows, recurrent layers, or attention that differs by kind of token."""

PLAIN = ("llama-4",)
"""A family whose encoder's features are projected only later."""

FOLDED = (
    "deepseek-vl",
    "idefics3",
    "internvl",
    "llava",
    "llava-next",
    "llava-onevision",
    "mistral3",
    "pixtral",
    "smolvlm",
    "vipllava",
)
"""Families over decoders that can be written as Llama."""


def test_the_check_gives_the_same_verdict_by_the_first_layers(one, monkeypatch):
    monkeypatch.setattr(alone, "FIRST", 1)
    before, layers = one.way, one.layers
    report = model.report_on(one)
    assert (report.way, one.way, one.layers) == (before, before, layers)
    if before != "plain":
        assert len(report.rows) == 4  # more would mean that all layers were asked, too


def test_each_family_is_checked_and_runs_in_its_fastest_way(request, one, found):
    name = request.node.callspec.params["one"]
    assert one.checked
    assert one.way == ("batches" if name in BATCHES else "plain" if name in PLAIN else "shared")
    found("way", one.way)
    found("needs", "torchvision" if name in EXTRA else "")


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_right_is_refused(name, processor, tmp_path, tell):
    folder = write_family(name, processor, tmp_path)
    for _ in range(2):  # the second time by the kept report
        with pytest.raises(InputError, match=r"2 of its 4 decoder layers run .* without an image"):
            load_vlm(folder)
    tell(name, "way", "refused")


def test_the_page_has_every_family_and_no_empty_cell(request):
    if request.config.getoption("--write-models"):
        pytest.skip("it is being written")
    rows = models_page.read()
    assert {*rows} == {*SEEING, *RIGHT, *EXTRA, *REFUSED}
    for name in {*rows} - {*REFUSED}:
        assert [column for column, text in rows[name].items() if not text] in ([], ["needs"])


@pytest.fixture
def asked():
    """One picture twice, another one, and prompts without any: of different lengths."""
    samples = [Sample("a", "Why?", ROUND), Sample("b", LONG, ROUND), Sample("c", "How so?", WIDE)]
    return [Trial(s) for s in samples] + [Trial(s, "none") for s in samples[:2]]


def push(vlm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(vlm.layers), vlm.hidden_size, generator=generator) / 2


def test_ids_are_the_processors_own(apart, asked):
    by_id = {trial.id: trial for trial in asked}
    for trial, prompt in zip(asked, prompts(apart, by_id), strict=True):
        picture = trial.load_image()
        made = tokens(apart, prompt, apart.encode(picture) if picture else None)
        wanted = apart.inputs([trial.text], [picture])
        assert made.ids.tolist() == wanted["input_ids"][0].tolist()


def test_states_are_those_of_transformers_alone(one, asked, found):
    wanted = torch.stack([plain(one, trial)[0] for trial in asked])
    torch.testing.assert_close(hidden_states(one, asked), wanted, rtol=1e-4, atol=1e-4)
    alone = torch.cat([hidden_states(one, [trial]) for trial in asked])
    torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted[0] - wanted[3]).abs().max() > 0.1  # the picture matters
    found("states", "right")


@pytest.mark.parametrize("way", ["fastest", "plain"])
def test_states_at_other_tokens_are_those_of_transformers_alone(
    one, asked, way, monkeypatch, found
):
    """Prompts of several lengths, padded; all but the last two have a picture, two the same."""
    if way == "plain":
        monkeypatch.setattr(one, "way", way)
    alone = [everywhere(one, trial) for trial in asked]
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    for index in (0, 4, -1, -3):
        wanted = torch.stack([states[index] for states, _ in alone])
        close(hidden_states(one, asked, at=index)[:, :-1], wanted)
    pictured = [states[ids == one.model.config.image_token_id] for states, ids in alone[:3]]
    seen = hidden_states(one, asked[:3], at="image")
    assert [len(states) for states in seen] == [len(states) for states in pictured]
    for ours, theirs in zip(seen, pictured, strict=True):
        close(ours[:, :-1], theirs)
    means = hidden_states(one, asked[:3], at="image mean")
    close(means, torch.stack([states.mean(0) for states in seen]))
    found("at other tokens", "right")


def test_tokens_that_a_prompt_does_not_have_are_refused(one, asked):
    with pytest.raises(InputError, match=r"^sample a \(image none\): its prompt has no image"):
        hidden_states(one, asked, at="image mean")
    count = len(one.inputs([asked[3].text], [None])["input_ids"][0])
    assert hidden_states(one, asked, at=count - 1).shape[0] == len(asked)
    for index in (count, -count - 1):
        with pytest.raises(InputError, match=f"has {count} tokens, so it has none at {index}$"):
            hidden_states(one, asked, at=index)
    with pytest.raises(InputError, match="no tokens 'picture'; "):
        hidden_states(one, asked, at="picture")


def test_the_shift_is_that_of_transformers_alone(one, asked, found):
    samples = [trial.sample for trial in asked[:3]]
    shift = extract_shift(one, samples, meaningless="blank")
    blank, none = (
        torch.stack([plain(one, Trial(s, image))[0] for s in samples])
        for image in ("blank", "none")
    )
    torch.testing.assert_close(shift.values, (blank - none).mean(0), rtol=1e-4, atol=1e-4)
    found("shift", "right")


def test_edited_responses_are_those_of_transformers_alone(one, asked, found):
    vectors = push(one)
    edited = [Trial(t.sample, t.image, Edit(vectors)) for t in asked]
    wanted = [plain(one, t, vectors if t.edit else None, steps=6)[1] for t in [*asked, *edited]]
    texts = generate(one, [*asked, *edited], max_new_tokens=6)
    assert texts == [one.decode(ids) for ids in wanted]
    assert texts[: len(asked)] != texts[len(asked) :]
    alone = [generate(one, [trial], max_new_tokens=6)[0] for trial in edited]
    assert alone == texts[len(asked) :]
    found("responses", "right")


def test_apply_edits_what_transformers_runs(one, asked, found):
    vectors = push(one, 1)
    for trial in (asked[1], asked[4]):
        inputs = one.inputs([trial.text], [trial.load_image()])
        with apply(one, Edit(vectors)):
            whole = one.model.generate(**inputs, max_new_tokens=5, do_sample=False)
        wanted = plain(one, trial, vectors, steps=5)[1]
        assert whole[0, inputs["input_ids"].shape[1] :].tolist() == wanted
    found("`apply`", "right")


def test_the_last_tokens_edit_leaves_the_rest(one, asked, found):
    """Against the edit of one prompt alone; image tokens are where the processor writes them."""
    for kind in ("last", "image", "text", "generated"):
        trials = [Trial(t.sample, t.image, Edit(push(one), kind)) for t in asked]
        logits = torch.cat([first_logits(one, [trial]) for trial in trials])
        torch.testing.assert_close(first_logits(one, trials), logits, rtol=1e-4, atol=1e-4)
        texts = [generate(one, [trial], max_new_tokens=4)[0] for trial in trials]
        assert generate(one, trials, max_new_tokens=4) == texts
    found("batch = alone", "right")


def test_an_edit_is_baked_or_the_family_refused_by_name(request, one, asked, tmp_path, found):
    """Logits and tokens of the folder, with transformers alone, against those of the hook."""
    edit, name, folder = Edit(push(one, 2)), request.node.callspec.params["one"], tmp_path / "baked"
    if name not in FOLDED:
        kind = one.model.config.model_type
        with pytest.raises(InputError, match=rf" {kind} \(decoder: .* cannot be baked, since"):
            bake(one, edit, folder)
        found("baking", "refused")
        return
    bake(one, edit, folder)
    baked = AutoModelForImageTextToText.from_pretrained(folder).eval()
    for trial in asked[1:4]:
        inputs = one.inputs([trial.text], [trial.load_image()])
        with torch.inference_mode():
            logits, plain_logits = baked(**inputs).logits, one.model(**inputs).logits
            with apply(one, edit):
                torch.testing.assert_close(logits, one.model(**inputs).logits, rtol=0, atol=1e-4)
        assert (logits - plain_logits).abs().max() > 0.1
    try:
        reads = bool(AutoProcessor.from_pretrained(folder))
    except (ImportError, OSError):
        reads = False
    assert reads == ("`load_vlm(folder)`" not in (folder / "README.md").read_text())
    again = load_vlm(folder, check=False)
    steered = [Trial(t.sample, t.image, edit) for t in asked]
    assert generate(again, asked, max_new_tokens=6) == generate(one, steered, max_new_tokens=6)
    found("baking", "folded")


def test_each_way_to_run_gives_the_same(apart, asked, monkeypatch):
    trials = [*asked, *(Trial(t.sample, t.image, Edit(push(apart), "last")) for t in asked)]
    states, texts = hidden_states(apart, trials), generate(apart, trials, max_new_tokens=5)
    for way in ("batches", "plain"):
        monkeypatch.setattr(apart, "way", way)
        found = hidden_states(apart, trials)
        torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-4)
        assert generate(apart, trials, max_new_tokens=5) == texts


def test_a_picture_is_encoded_once(apart, asked, monkeypatch):
    core, seen = apart.model.model, []
    real = core.get_image_features

    @wraps(real)
    def counted(*args, **kwargs):
        seen.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(core, "get_image_features", counted)
    forget_images(apart)
    samples = [Sample(f"s{i}", f"Why {i}?", ROUND) for i in range(3)]
    with watched(apart) as passes:
        hidden_states(apart, [Trial(sample) for sample in samples])
    assert len(seen) == 1
    shared = can_share(apart)
    assert sum(rows for rows, _ in passes) == 3 + shared  # the beginning, once


def test_a_batch_of_inputs_is_that_of_single_ones(one, asked):
    """Also of the public inputs: prompts with and without images, padded on the left."""
    batch = one.inputs([t.text for t in asked], [t.load_image() for t in asked])
    for row, trial in enumerate(asked):
        alone = one.inputs([trial.text], [trial.load_image()])["input_ids"][0]
        mask = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][mask], alone)
        assert mask.tolist() == sorted(mask.tolist())
