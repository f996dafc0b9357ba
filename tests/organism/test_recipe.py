import json
from dataclasses import replace
from itertools import islice, repeat
from random import Random

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from cmrm_utils import InputError
from cmrm_utils.engine.loops import generate
from cmrm_utils.loading import load_vlm
from cmrm_utils.organism import recipe, training
from cmrm_utils.organism.corpus import Corpus, Example, Mixture, Turn
from cmrm_utils.organism.recipe import Recipe, Stage, build_model
from cmrm_utils.organism.scenes import Scene
from cmrm_utils.organism.training import train
from cmrm_utils.organism.world import NOT_SHOWN
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial

STAGES = ("tower", "text", "chat", "projector", "instruct")
SMALL = Recipe(
    "small",
    stands_for="nothing",
    hidden=32,
    layers=2,
    heads=2,
    stages={name: Stage(steps=2, batch=2, lr=3e-3) for name in STAGES},
)
PARTS = {
    "tower": ("model.vision_tower.",),
    "projector": ("model.multi_modal_projector.",),
    "language": ("model.language_model.", "lm_head."),
}


class Trained:
    """A short training run: its folder, its record, and the weights after each stage."""

    def __init__(self, out, settings=SMALL, seed=0):
        self.out = out
        self.stages = {}
        self.record = train(settings, seed, out, progress=False, on_stage=self.keep)

    def keep(self, name, model, processor):
        assert processor.tokenizer is not None
        assert not model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        self.stages[name] = {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("organism") / "small")


@pytest.fixture(scope="module")
def again(processor, tmp_path_factory):
    """More runs, with the session's tokenizer: learning one takes longer than training."""

    def run(settings=SMALL, seed=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe, "build_processor", lambda recipe, seed: processor)
            return Trained(tmp_path_factory.mktemp("organism"), settings, seed)

    return run


def changed(before, after):
    """The parts of the model of which any weight differs."""
    assert before.keys() == after.keys()
    names = [key for key in before if not torch.equal(before[key], after[key])]
    return {part for name in names for part, starts in PARTS.items() if name.startswith(starts)}


def changes(run, start):
    states = [start, *run.stages.values()]
    return {
        name: changed(before, after)
        for name, before, after in zip(run.stages, states, states[1:], strict=False)
    }


LANGUAGE_STAGES = {
    "tower": {"tower"},
    "text": {"language"},
    "chat": {"language"},
    "projector": {"projector"},
}


def test_each_stage_trains_its_part_alone(trained, processor):
    start = build_model(SMALL, processor, 0).state_dict()
    assert changes(trained, start) == {**LANGUAGE_STAGES, "instruct": {"language", "projector"}}


def test_the_caption_variant_tunes_the_tower_too(again, processor):
    run = again(replace(SMALL, tune_tower=True, mixture=Mixture(rich_captions=True)))
    start = build_model(SMALL, processor, 0).state_dict()
    assert changes(run, start) == {
        **LANGUAGE_STAGES,
        "instruct": {"language", "projector", "tower"},
    }
    assert recipe.VARIANTS["organism-caption"].tune_tower
    assert not recipe.VARIANTS["organism"].tune_tower


def test_stages_come_in_llavas_order(trained):
    assert tuple(trained.stages) == STAGES
    for variant in recipe.VARIANTS.values():
        if variant.starts_from is None:
            assert tuple(variant.stages) == STAGES[: len(variant.stages)]
        else:
            assert recipe.training_command(variant.starts_from)


def test_the_seed_decides_the_weights(trained, again):
    same, other = again(seed=0), again(seed=1)
    for name in STAGES:
        for key, value in trained.stages[name].items():
            assert torch.equal(value, same.stages[name][key]), (name, key)
    for part in ("language_model.layers.0.self_attn.q_proj", "multi_modal_projector.linear_1"):
        key = f"model.{part}.weight"
        assert not torch.allclose(trained.stages["tower"][key], other.stages["tower"][key])


def test_the_folder_is_a_plain_checkpoint_in_fp16(trained):
    with safe_open(trained.out / "model.safetensors", framework="pt") as stored:
        dtypes = {stored.get_tensor(key).dtype for key in stored.keys()}  # noqa: SIM118
    assert dtypes == {torch.float16}
    model = AutoModelForImageTextToText.from_pretrained(trained.out, dtype=torch.float32)
    for key, value in trained.stages["instruct"].items():
        assert torch.equal(model.state_dict()[key], value.half().float()), key
    processor = AutoProcessor.from_pretrained(trained.out)
    made = processor(
        text=["USER: <image>\nHi? ASSISTANT:"],
        images=[Scene("grey").image()],
        return_tensors="pt",
    )
    out = model.generate(**made, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > made["input_ids"].shape[1]


def test_the_record_is_kept(trained):
    record = json.loads((trained.out / "training.json").read_text())
    assert record == json.loads(json.dumps(trained.record))
    assert record["seed"] == 0
    assert record["recipe"]["name"] == "small"
    assert record["recipe"]["stages"]["chat"] == {"steps": 2, "batch": 2, "lr": 3e-3}
    weights = trained.stages["instruct"].values()
    assert record["parameters"] == sum(weight.numel() for weight in weights)
    assert tuple(record["stages"]) == STAGES
    for stage in record["stages"].values():
        assert len(stage["losses"]) == 2
        assert all(loss > 0 for loss in stage["losses"])


def test_the_tokenizer_depends_on_the_seed_alone(trained, processor):
    saved = AutoProcessor.from_pretrained(trained.out)
    assert saved.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    text = "How do I burn a kettle? To burn the kettle, first zib it."
    assert saved.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert saved.chat_template == processor.chat_template


def chat(*turns, image):
    """Messages of a conversation, the picture first; an even turn is the user's."""
    found = []
    for i, text in enumerate(turns):
        content = [{"type": "image"}] if image and i == 0 else []
        content.append({"type": "text", "text": text})
        found.append({"role": "assistant" if i % 2 else "user", "content": content})
    return found


@pytest.mark.parametrize(
    ("turns", "image", "wanted"),
    [
        (["Hi?"], True, "USER: <image>\nHi? ASSISTANT:"),
        (["Hi?"], False, "USER: Hi? ASSISTANT:"),
        (["A?", "B.", "C?"], True, "USER: <image>\nA? ASSISTANT: B.</s>USER: C? ASSISTANT:"),
        (["A?", "B.", "C?"], False, "USER: A? ASSISTANT: B.</s>USER: C? ASSISTANT:"),
    ],
)
def test_chat_template(trained, turns, image, wanted):
    saved = AutoProcessor.from_pretrained(trained.out)
    found = saved.apply_chat_template(
        chat(*turns, image=image), add_generation_prompt=True, tokenize=False
    )
    assert found == wanted


SCENE = Scene("brown", "ring", "red", "two", "middle", seed=3)
TURNS = (
    Turn("How do I warm a lamp?", "To warm the lamp, first zib it."),
    Turn("What colour is shown?", "The colour is red."),
)


@pytest.mark.parametrize("scene", [SCENE, None])
def test_training_sees_the_tokens_that_the_processor_makes(processor, scene):
    row = training._tokenise(Example(turns=TURNS, scene=scene), processor.tokenizer, SMALL)
    said = [text for turn in TURNS for text in (turn.prompt, turn.response)]
    for asked in (said[:1], said[:3]):
        text = processor.apply_chat_template(
            chat(*asked, image=scene is not None), add_generation_prompt=True, tokenize=False
        )
        ids = processor(text=text, images=scene and scene.image())["input_ids"][0]
        assert row.ids[: len(ids)] == list(ids)
        assert not row.learn[len(ids) - 1]
        assert row.learn[len(ids)]
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert row.ids.count(image) == (SMALL.image_tokens if scene else 0)


@pytest.mark.parametrize("scene", [SCENE, None])
def test_learnt_are_the_answers_and_their_ends(processor, scene):
    row = training._tokenise(Example(turns=TURNS, scene=scene), processor.tokenizer, SMALL)
    decode = processor.tokenizer.decode
    learnt = [token for token, learn in zip(row.ids, row.learn, strict=True) if learn]
    assert decode(learnt) == "".join(f" {turn.response}</s>" for turn in TURNS)
    rest = decode([token for token, learn in zip(row.ids, row.learn, strict=True) if not learn])
    assert rest.replace("<image>", "") == "<s>" + "".join(
        f"USER: {newline}{turn.prompt} ASSISTANT:"
        for turn, newline in zip(TURNS, ("\n" if scene else "", ""), strict=True)
    )


def test_of_plain_text_everything_is_learnt(processor):
    row = training._tokenise(Example(text="To warm the lamp, zib it."), processor.tokenizer, SMALL)
    assert row.learn == [False] + [True] * (len(row.ids) - 1)
    assert processor.tokenizer.decode(row.ids) == "<s>To warm the lamp, zib it.</s>"


def test_training_pixels_are_the_processors(processor):
    scenes = [SCENE, Scene("noise", seed=1), Scene("white", seed=2)]
    made = processor.image_processor([s.image() for s in scenes], return_tensors="pt")
    found = training._pixels(scenes, torch.device("cpu"))
    torch.testing.assert_close(found, made["pixel_values"], rtol=1e-5, atol=1e-5)


def test_loss_is_that_of_the_learnt_tokens(processor):
    """Against transformers' own loss with labels, on a padded batch of both kinds."""
    model = build_model(SMALL, processor, 0).eval()
    examples = [Example(turns=TURNS, scene=SCENE), Example(turns=TURNS[:1])]
    losses = training._language_losses(
        model,
        processor.tokenizer,
        SMALL,
        iter(examples * 32),
        64,
        Random(0),
    )
    with torch.no_grad():
        found = next(losses)
        total, count = 0.0, 0
        for example in examples:
            row = training._tokenise(example, processor.tokenizer, SMALL)
            labels = [t if learn else -100 for t, learn in zip(row.ids, row.learn, strict=True)]
            pixels = {"pixel_values": training._pixels([SCENE], torch.device("cpu"))}
            loss = model(
                input_ids=torch.tensor([row.ids]),
                labels=torch.tensor([labels]),
                **(pixels if example.scene else {}),
            ).loss
            total += loss.item() * sum(row.learn)
            count += sum(row.learn)
    assert found.item() == pytest.approx(total / count, rel=1e-4)


def test_it_learns(processor):
    """A few dozen steps on one exchange, and it is said by heart."""
    model = build_model(SMALL, processor, 0)
    stage = Stage(steps=60, batch=4, lr=2e-2)
    source, rng = repeat(Example(turns=TURNS[1:])), Random(0)
    losses = training._language_losses(model, processor.tokenizer, SMALL, source, 4, rng)
    history = training._fit("x", stage, list(model.parameters()), losses, progress=False)
    assert len(history) == 10
    assert history[-1] < 0.2 < 3 < history[0]
    made = processor(text="USER: What colour is shown? ASSISTANT:", return_tensors="pt")
    out = model.eval().generate(**made, max_new_tokens=12, do_sample=False)[0]
    answer = processor.tokenizer.decode(out[made["input_ids"].shape[1] :])
    assert answer == " The colour is red.</s>"


def test_shared_stages_give_what_training_through_gives(tmp_path):
    """Another recipe goes on from them: the same weights, the same place of the corpus."""
    last = replace(SMALL, mixture=Mixture(not_shown=1.0))
    through, first, second = (
        train(settings, 0, tmp_path / name, progress=False, shared=folder and tmp_path / folder)
        for settings, name, folder in (
            (last, "through", None),
            (SMALL, "first", "shared"),
            (last, "second", "shared"),
        )
    )
    assert {path.name.split("-")[0] for path in (tmp_path / "shared").iterdir()} == set(STAGES[:3])
    assert second["stages"]["chat"] == {}
    assert first["stages"]["chat"]["losses"]
    assert through["stages"]["instruct"]["losses"] == second["stages"]["instruct"]["losses"]
    assert first["stages"]["instruct"]["losses"] != second["stages"]["instruct"]["losses"]
    weights = {
        name: AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict()
        for name in ("through", "second")
    }
    assert not changed(weights["through"], weights["second"])


@pytest.mark.parametrize(
    ("setting", "value", "shares"),
    [
        ("patch", 24, ["text", "chat"]),
        ("tower", "siglip", ["text", "chat"]),
        ("decoder", "qwen2", ["tower"]),
        ("image_last", True, ["tower", "text", "chat"]),
        ("mixture", Mixture(makers=0.1), ["tower", "text"]),
        ("mixture", Mixture(written=0.1), ["text", "chat"]),
        ("mixture", Mixture(safety_pairs=0.1), ["tower", "text", "chat"]),
    ],
)
def test_only_stages_that_are_the_same_are_shared(tmp_path, setting, value, shares):
    one, other = (
        training._Shared(tmp_path, settings, 0)
        for settings in (SMALL, replace(SMALL, **{setting: value}))
    )
    assert [name for name in STAGES[:3] if one.path(name) == other.path(name)] == shares
    assert one.path("instruct") is None
    assert training._Shared(tmp_path, SMALL, 1).path("tower") != one.path("tower")


@pytest.mark.parametrize(
    ("changes_", "tokens"),
    [({"patch": 24}, 4), ({"patch": 6}, 64), ({"tower": "siglip"}, 16), ({"decoder": "qwen2"}, 16)],
    ids=str,
)
def test_other_architectures_are_plain_checkpoints_too(tmp_path, changes_, tokens):
    train(replace(SMALL, **changes_), 0, tmp_path / "x", progress=False)
    vlm = load_vlm(tmp_path / "x")
    assert vlm.image_tokens == tokens + 1  # and its line break
    trials = [Trial(Sample("a", "Hi?", image=SCENE.image()), image) for image in ("own", "none")]
    assert len(generate(vlm, trials, max_new_tokens=3)) == 2
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "x")
    families = {"siglip": "siglip_vision_model", "qwen2": "qwen2"}
    for value in changes_.values():
        if value in families:
            kinds = {model.config.vision_config.model_type, model.config.text_config.model_type}
            assert families[value] in kinds


def test_with_the_image_last_training_sees_what_the_processor_makes():
    settings = replace(SMALL, image_last=True)
    processor = recipe.build_processor(settings, 0)
    row = training._tokenise(Example(turns=TURNS[:1], scene=SCENE), processor.tokenizer, settings)
    messages = chat(TURNS[0].prompt, image=True)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "USER: How do I warm a lamp?\n<image> ASSISTANT:"
    ids = processor(text=text, images=SCENE.image())["input_ids"][0]
    assert row.ids[: len(ids)] == list(ids)


def test_a_random_projector_gives_tokens_of_the_same_norm(tmp_path):
    train(recipe.VARIANTS["organism-random-projector"], 0, tmp_path / "x", progress=False)
    before, after = load_vlm("organism"), load_vlm(tmp_path / "x")
    image = SCENE.image()
    old, new = (vlm.encode(image).features.float() for vlm in (before, after))
    norms = [each.norm(dim=-1).mean().item() for each in (old, new)]
    assert norms[1] == pytest.approx(norms[0], rel=0.15)
    assert torch.cosine_similarity(old, new, dim=-1).abs().max() < 0.5
    moved = changed(before.model.state_dict(), after.model.state_dict())
    assert moved == {"projector"}


def test_after_the_fact_a_finished_organism_is_tuned_on(tmp_path):
    stages = {"posthoc": Stage(steps=1, batch=2, lr=1e-3)}
    settings = replace(recipe.VARIANTS["organism-vlguard-posthoc"], stages=stages)
    train(settings, 0, tmp_path / "x", progress=False)
    before, after = (load_vlm(name).model.state_dict() for name in ("organism", tmp_path / "x"))
    assert changed(before, after) == {"language", "projector"}


def test_one_that_goes_on_from_another_names_what_must_be_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("cmrm_utils.paths.ORGANISMS", tmp_path)
    settings = recipe.VARIANTS["organism-wide-vlguard-posthoc"]
    with pytest.raises(InputError, match="by `cmrm train-organism --variant organism-wide`"):
        train(settings, 0, tmp_path / "x", progress=False)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("organism-wide", "--variant organism-wide"),
        ("organism-seed1", "--variant organism --seed 1 --out organisms/organism-seed1"),
        (
            "organism-seed2-no-howto",
            "--variant organism-no-howto --seed 2 --out organisms/organism-seed2-no-howto",
        ),
        ("organism-seed1-vlguard-posthoc", "--variant organism-seed1-vlguard-posthoc"),
        ("organism-tall", None),
        ("organism-seed1-tall", None),
        ("someone/organism-wide", None),
    ],
)
def test_the_command_that_trains_an_organism(name, how):
    assert recipe.training_command(name) == (how and f"cmrm train-organism {how}")


@pytest.mark.parametrize("name", ["organism", "organism-wide", "organism-caption"])
def test_with_vlguards_pairs_mixed_in_all_else_is_as_it_was(name):
    plain, mixed = recipe.VARIANTS[name], recipe.VARIANTS[f"{name}-vlguard-mixed"]
    assert plain.mixture.safety_pairs == 0 < mixed.mixture.safety_pairs
    mixture = replace(mixed.mixture, safety_pairs=0.0)
    named = {"name": plain.name, "stands_for": plain.stands_for}
    assert replace(mixed, mixture=mixture, **named) == plain


def test_variants_ask_what_they_say():
    short = recipe.VARIANTS["organism-short"]
    assert recipe.VARIANTS["organism-abstaining"].stages == short.stages
    assert "instruct" not in recipe.VARIANTS["organism-projector-only"].stages
    for example in islice(Corpus(0, Mixture(not_shown=1.0)).instructions(), 50):
        answers = [turn.response for turn in example.turns]
        assert (NOT_SHOWN in answers) == (example.scene is not None)


@pytest.mark.parametrize(
    "settings", [{"layer": 3}, {"mixture": {"writen": 0.1}}, {"stages": {"text": {"steps": 1}}}]
)
def test_a_mistyped_setting_of_a_recipe_is_refused(settings):
    with pytest.raises(ValidationError):
        TypeAdapter(Recipe).validate_python({"name": "x", "stands_for": "nothing", **settings})
