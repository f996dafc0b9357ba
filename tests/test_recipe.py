import json
from dataclasses import replace
from itertools import repeat
from random import Random

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from cmrm_utils.organism import recipe
from cmrm_utils.organism.images import Scene
from cmrm_utils.organism.recipe import IMAGE_TOKENS, Recipe, Stage, build_model, train
from cmrm_utils.organism.world import Example, Turn

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
            patch.setattr(recipe, "build_processor", lambda seed: processor)
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
    run = again(replace(SMALL, tune_tower=True, rich_captions=True))
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
        assert tuple(variant.stages) == STAGES


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
    row = recipe._tokenise(Example(turns=TURNS, scene=scene), processor.tokenizer)
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
    assert row.ids.count(image) == (IMAGE_TOKENS if scene else 0)


@pytest.mark.parametrize("scene", [SCENE, None])
def test_learnt_are_the_answers_and_their_ends(processor, scene):
    row = recipe._tokenise(Example(turns=TURNS, scene=scene), processor.tokenizer)
    decode = processor.tokenizer.decode
    learnt = [token for token, learn in zip(row.ids, row.learn, strict=True) if learn]
    assert decode(learnt) == "".join(f" {turn.response}</s>" for turn in TURNS)
    rest = decode([token for token, learn in zip(row.ids, row.learn, strict=True) if not learn])
    assert rest.replace("<image>", "") == "<s>" + "".join(
        f"USER: {newline}{turn.prompt} ASSISTANT:"
        for turn, newline in zip(TURNS, ("\n" if scene else "", ""), strict=True)
    )


def test_of_plain_text_everything_is_learnt(processor):
    row = recipe._tokenise(Example(text="To warm the lamp, zib it."), processor.tokenizer)
    assert row.learn == [False] + [True] * (len(row.ids) - 1)
    assert processor.tokenizer.decode(row.ids) == "<s>To warm the lamp, zib it.</s>"


def test_training_pixels_are_the_processors(processor):
    scenes = [SCENE, Scene("noise", seed=1), Scene("white", seed=2)]
    made = processor.image_processor([s.image() for s in scenes], return_tensors="pt")
    found = recipe._pixels(scenes, torch.device("cpu"))
    torch.testing.assert_close(found, made["pixel_values"], rtol=1e-5, atol=1e-5)


def test_loss_is_that_of_the_learnt_tokens(processor):
    """Against transformers' own loss with labels, on a padded batch of both kinds."""
    model = build_model(SMALL, processor, 0).eval()
    examples = [Example(turns=TURNS, scene=SCENE), Example(turns=TURNS[:1])]
    losses = recipe._language_losses(
        model,
        processor.tokenizer,
        iter(examples * 32),
        Stage(steps=1, batch=64, lr=0),
        Random(0),
        torch.device("cpu"),
    )
    with torch.no_grad():
        found = next(losses)
        total, count = 0.0, 0
        for example in examples:
            row = recipe._tokenise(example, processor.tokenizer)
            labels = [t if learn else -100 for t, learn in zip(row.ids, row.learn, strict=True)]
            pixels = {"pixel_values": recipe._pixels([SCENE], torch.device("cpu"))}
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
    source, rng, device = repeat(Example(turns=TURNS[1:])), Random(0), torch.device("cpu")
    losses = recipe._language_losses(model, processor.tokenizer, source, stage, rng, device)
    history = recipe._fit("x", stage, list(model.parameters()), losses, progress=False)
    assert len(history) == 10
    assert history[-1] < 0.2 < 3 < history[0]
    made = processor(text="USER: What colour is shown? ASSISTANT:", return_tensors="pt")
    out = model.eval().generate(**made, max_new_tokens=12, do_sample=False)[0]
    answer = processor.tokenizer.decode(out[made["input_ids"].shape[1] :])
    assert answer == " The colour is red.</s>"
