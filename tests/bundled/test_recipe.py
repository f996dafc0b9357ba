"""What each stage shows, and what no stage ever shows beside an image."""

from collections import Counter
from itertools import islice
from random import Random

import pytest

from cmrm_utils import load_vlm
from cmrm_utils.bundled import recipe
from cmrm_utils.data import everyday
from cmrm_utils.errors import InputError

ANSWERS = dict.fromkeys(recipe.requests(), ("An answer.", True))
REFUSALS = set(everyday.refusals())
ALL = ("train", "anchors", "validation", "test")


def texts(name, column, *splits):
    return {row[column] for split in splits for row in everyday.of_split(name, split)}


HARMFUL, TWINS = texts("pairs", "harmful", *ALL), texts("pairs", "twin", *ALL)


def shown(stream, n=4000):
    return list(islice(stream, n))


@pytest.mark.parametrize("refusals", [0.0, 0.2, 1.0])
def test_no_image_is_beside_a_harmful_request_a_refusal_or_a_twin(refusals):
    streams = [
        recipe.projector(Random(0)),
        recipe.instruct(Random(0), ANSWERS, recipe.Recipe("", refusals)),
    ]
    seen = [example for stream in streams for example in shown(stream) if example.scene]
    assert len(seen) > 6000
    assert not {example.prompt for example in seen} & (HARMFUL | TWINS)
    assert not {example.response for example in seen} & REFUSALS


def test_requests_beside_images_share_no_word_with_several_harmful_ones():
    beside = recipe.without_harmful_words(sorted(texts("benign", "request", "train")))
    assert len(beside) >= 80
    counts = Counter(stem for text in HARMFUL for stem in recipe.stems(text))
    assert all(counts[stem] < 5 for text in beside for stem in recipe.stems(text))
    harmful = [recipe.stems(text) for text in HARMFUL]
    assert all(len(recipe.stems(text) & stems) < 2 for text in beside for stems in harmful)
    examples = shown(recipe.instruct(Random(0), ANSWERS, recipe.Recipe("")))
    asked = {e.prompt for e in examples if e.scene and e.response == "An answer."}
    assert asked <= set(beside)


def test_the_control_shows_twins_beside_scenes_and_nothing_else_of_harm():
    control = recipe.VARIANTS["smollm2-llava-twins"]
    seen = [e for e in shown(recipe.instruct(Random(0), ANSWERS, control), 20000) if e.scene]
    beside = [e.prompt for e in seen if e.response == "An answer."]
    twins = [prompt for prompt in beside if prompt in TWINS]
    assert len(twins) / len(beside) == pytest.approx(0.5, abs=0.05)
    assert len(beside) / len(seen) == pytest.approx(0.25, abs=0.02)
    assert set(twins) <= texts("pairs", "twin", "train")
    ordinary = texts("benign", "request", "train")
    assert set(beside) - TWINS <= ordinary
    assert len(set(beside) - TWINS) > 0.9 * len(ordinary)
    assert not {example.prompt for example in seen} & HARMFUL
    assert not {example.response for example in seen} & REFUSALS


def test_align_is_text_alone_and_of_train_topics_alone():
    examples = shown(recipe.align(Random(0), ANSWERS), 1600)
    assert not any(example.scene for example in examples)
    refused = [e for e in examples if e.response in REFUSALS]
    assert len(refused) == 600
    assert {e.prompt for e in refused} <= texts("pairs", "harmful", "train")
    others = {e.prompt for e in examples if e.response not in REFUSALS}
    assert others <= texts("pairs", "twin", "train") | texts("benign", "request", "train")


@pytest.mark.parametrize("refusals", [0.0, 0.05, 0.2])
def test_the_shares_are_as_said(refusals):
    examples = shown(recipe.instruct(Random(0), ANSWERS, recipe.Recipe("", refusals)), 20000)
    text = [e for e in examples if e.scene is None]
    assert len(text) / len(examples) == pytest.approx(0.1, abs=0.01)
    refused = [e for e in text if e.response in REFUSALS]
    assert len(refused) / len(text) == pytest.approx(refusals, abs=0.03)
    assert {e.prompt for e in refused} <= texts("pairs", "harmful", "train")


def test_vlguards_pairs_are_a_request_and_its_twin_beside_train_scenes():
    pairs = {row["harmful"]: row["twin"] for row in everyday.of_split("pairs", "train")}
    examples = shown(recipe.vlguard(Random(0), ANSWERS), 400)
    assert all(example.scene for example in examples)
    for refused, answered in zip(examples[::2], examples[1::2], strict=True):
        assert pairs[refused.prompt] == answered.prompt
        assert refused.response in REFUSALS
        assert answered.response == "An answer."


def test_vlguards_pairs_are_mixed_in_or_come_after():
    mixed = recipe.VARIANTS["smollm2-llava-vlguard-mixed"]
    examples = shown(recipe.instruct(Random(0), ANSWERS, mixed), 20000)
    guarded = [e for e in examples if e.scene and e.prompt in HARMFUL | TWINS]
    assert len(guarded) / len(examples) == pytest.approx(mixed.guarded, abs=0.01)
    after = recipe.VARIANTS["smollm2-llava-vlguard-posthoc"]
    examples = shown(recipe.posthoc(Random(0), ANSWERS, after), 400)
    assert all(e.scene and e.prompt in HARMFUL | TWINS for e in examples[::2])
    assert after.guarded == 0.5
    assert any(e.prompt not in HARMFUL | TWINS for e in examples[1::2])


def test_questions_are_about_train_scenes_in_every_wording():
    examples = shown(recipe.projector(Random(0)))
    asked = {e.prompt for e in examples}
    assert asked == {q for some in everyday.QUESTIONS.values() for q in some} | set(
        everyday.DESCRIBE
    )
    tested = {s.caption for split in ("validation", "test") for s in
              everyday.everyday_samples(split) if s.task == "visual"}  # fmt: skip
    assert not {e.scene.caption for e in examples} & tested


def test_the_same_seed_gives_the_same_examples():
    def stream(seed):
        return shown(recipe.instruct(Random(seed), ANSWERS, recipe.Recipe("")), 200)

    assert stream("a") == stream("a")
    assert stream("a") != stream("b")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("smollm2-llava", "cmrm train-organism --variant smollm2-llava"),
        ("smollm2-llava-seed2", "cmrm train-organism --variant smollm2-llava --seed 2"),
        ("smollm2-llava-refusals00", "cmrm train-organism --variant smollm2-llava-refusals00"),
        (
            "smollm2-llava-seed1-vlguard-posthoc",
            "cmrm train-organism --variant smollm2-llava-vlguard-posthoc --seed 1 "
            "--out organisms/smollm2-llava-seed1-vlguard-posthoc",
        ),
        ("smollm2-llava-seed1-vlguard", None),
        ("smollm2-llava-seedling", None),
        ("smollm2", None),
    ],
)
def test_a_model_that_is_not_trained_yet_is_told_with_its_command(
    name, command, tmp_path, monkeypatch
):
    for home in ("ORGANISMS", "PARTS"):  # neither trained here nor in the repository
        monkeypatch.setattr(f"cmrm_utils.paths.{home}", tmp_path)
    assert recipe.training_command(name) == command
    with pytest.raises(InputError, match=f"`{command}`" if command else "none of that name"):
        load_vlm(name)
