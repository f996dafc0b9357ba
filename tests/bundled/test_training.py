"""Training: what learns in which stage, what is learnt of an example, and going on after a kill."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch
from click.testing import CliRunner
from peft import get_peft_model
from safetensors.torch import load_file

from cmrm_utils import load_vlm
from cmrm_utils.bundled import merge, training
from cmrm_utils.bundled.recipe import Example, Recipe, Stage
from cmrm_utils.cli.main import cli
from cmrm_utils.data import everyday
from cmrm_utils.errors import InputError
from cmrm_utils.organism.scenes import Scene

STAGES = {
    "align": Stage(steps=2, batch=4, lr=1e-2),
    "projector": Stage(steps=2, batch=4, lr=0.0, projector_lr=1e-2),
    "instruct": Stage(steps=2, batch=4, lr=1e-2, projector_lr=1e-2),
}
STAGE = STAGES["instruct"]
RECIPE = Recipe("smollm2-llava", rank=2, first=1, stages=STAGES)


@pytest.fixture
def out(tmp_path):
    """A training folder whose answers are there already."""
    folder = tmp_path / "out"
    folder.mkdir()
    answers = {text: ["Yes.", True] for text in training.recipes.requests()}
    (folder / "answers.json").write_text(json.dumps(answers))
    return folder


def tensors(folder):
    return {
        f"{name}/{key}": value
        for name in ("adapter_model", "projector")
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def changed(before, after):
    names = {name.split("/")[0] for name in after if not torch.equal(before[name], after[name])}
    return {name.removesuffix("_model") for name in names}


def test_each_stage_teaches_what_it_says(out):
    last = training.train(RECIPE, 0, out, progress=False)
    stages = [tensors(out / name / "0") for name in ("align", "projector", "instruct-0.2")]
    assert last == out / "instruct-0.2" / "0"
    assert any(stages[0][name].any() for name in stages[0] if "lora_B" in name)
    assert changed(stages[0], stages[1]) == {"projector"}
    assert changed(stages[1], stages[2]) == {"adapter", "projector"}
    record = json.loads((last / "training.json").read_text())
    assert (record["stage"], record["seed"], len(record["losses"])) == ("instruct", 0, 2)


def test_it_goes_on_after_a_kill_as_if_there_had_been_none(out, monkeypatch, tmp_path):
    whole = tensors(training.train(RECIPE, 0, out, progress=False))
    fit = training._fit

    def killed(name, *args):
        if name == "instruct":
            raise KeyboardInterrupt
        return fit(name, *args)

    other = tmp_path / "other"
    other.mkdir()
    (other / "answers.json").write_bytes((out / "answers.json").read_bytes())
    monkeypatch.setattr(training, "_fit", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(RECIPE, 0, other, progress=False)
    monkeypatch.setattr(training, "_fit", fit)
    again = tensors(training.train(RECIPE, 0, other, progress=False))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_shares_of_refusals_share_the_first_stages(out):
    training.train(RECIPE, 0, out, progress=False)
    stamp = (out / "align" / "0" / "training.json").stat().st_mtime_ns
    training.train(replace(RECIPE, refusals=0.0), 0, out, progress=False)
    assert (out / "align" / "0" / "training.json").stat().st_mtime_ns == stamp
    assert (out / "instruct-0" / "0").is_dir()


def test_training_goes_on_from_a_bundled_model(out, monkeypatch, tmp_path):
    """With no step the parts are those it began with; with one they are others."""
    start = training.train(RECIPE, 0, out, progress=False)
    monkeypatch.setattr(training, "bundled_folders", lambda: {"smollm2-llava": start})
    still = {"posthoc": replace(STAGE, lr=0.0, projector_lr=1e-9)}
    for name, stages, differs in (("still", still, set()), ("on", {"posthoc": STAGE}, None)):
        recipe = replace(RECIPE, name=name, start="smollm2-llava", stages=stages)
        after = training.train(recipe, 0, out, progress=False)
        assert after == out / name / "0"
        found = changed(tensors(start), tensors(after))
        assert found == (differs if differs is not None else {"adapter", "projector"})
    with pytest.raises(InputError, match=r"smollm2-llava-seed3.*--seed 3"):
        training.train(recipe, 3, out, progress=False)


def test_seeds_differ(out):
    first = training.train(RECIPE, 0, out, progress=False)
    second = training.train(RECIPE, 1, out, progress=False)
    assert changed(tensors(first), tensors(second)) == {"adapter", "projector"}


def test_what_is_stored_merges_into_a_model(out, monkeypatch):
    folder = training.train(RECIPE, 0, out, progress=False)
    home = folder.parent.parent / "parts"
    home.mkdir()
    folder.rename(home / "smollm2-llava")
    monkeypatch.setattr("cmrm_utils.paths.PARTS", home)
    assert load_vlm("smollm2-llava", device="cpu").sees_images


def test_the_command_trains_a_seed_that_then_has_a_name(out, monkeypatch, tmp_path):
    made = tmp_path / "organisms"
    monkeypatch.setattr("cmrm_utils.paths.ORGANISMS", made)
    monkeypatch.setattr("cmrm_utils.bundled.recipe.VARIANTS", {RECIPE.name: RECIPE})
    asked = ["train-organism", "--variant", "smollm2-llava", "--seed", "2", "--device", "cpu"]
    done = CliRunner().invoke(cli, [*asked, "--shared", str(out)])
    assert done.exit_code == 0, done.output
    assert "load_vlm('smollm2-llava-seed2')" in done.output
    folder = made / "smollm2-llava-seed2"
    rows = json.loads((folder / "measured.json").read_text())
    assert {row["measure"] for row in rows} == {"refused", "over-refusal", "visual questions"}
    assert "What the recipe was frozen on" in (folder / "README.md").read_text()
    assert (out / "align" / "2").is_dir()
    assert load_vlm("smollm2-llava-seed2", device="cpu").sees_images
    wrong = CliRunner().invoke(cli, ["train-organism", "--variant", "smollm-llava"])
    assert wrong.exit_code == 2
    assert "smollm2-llava" in wrong.output


def test_the_first_tokens_of_a_response_count_in_full(language_model):
    _, processor = merge.skeleton(language_model)
    stage = Stage(steps=1, batch=2, lr=0.0, tokens=2, rest=0.1)
    rows = [training._encoded(Example("Why?", text), processor) for text in ("Sorry, no.", "So.")]
    counts = training._padded(rows, processor, stage)["learnt"]
    for (ids, prompt, _), row in zip(rows, counts, strict=True):
        rest = len(ids) - prompt - 2
        assert rest > 0
        wanted = [0.0] * prompt + [1.0] * 2 + [0.1] * rest + [0.0] * (len(row) - len(ids))
        assert row.tolist() == pytest.approx(wanted)


def test_the_loss_is_the_mean_by_what_tokens_count(language_model):
    model, processor = merge.skeleton(language_model)
    rows = [training._encoded(Example("Why?", "Because it is so."), processor)]
    batch = training._padded(rows, processor, replace(STAGE, tokens=1, rest=0.25))
    (ids, prompt, _), logits = rows[0], model(input_ids=batch["input_ids"]).logits[0]
    each = torch.nn.functional.cross_entropy(
        logits[prompt - 1 : -1], torch.tensor(ids[prompt:]), reduction="none"
    )
    wanted = (each[0] + each[1:].sum() / 4) / (1 + (len(each) - 1) / 4)
    torch.testing.assert_close(training.response_loss(model, **batch), wanted)


def test_only_the_response_is_learnt(language_model):
    model, processor = merge.skeleton(language_model)
    scene = Scene.random(Random(0))
    examples = [Example("Why?", "Because."), Example("What is it?", "It is", scene, complete=False)]
    rows = [training._encoded(example, processor) for example in examples]
    batch = training._padded(rows, processor, STAGE)
    tokens = [
        processor.tokenizer.decode(ids[learnt.bool()])
        for ids, learnt in zip(batch["input_ids"], batch["learnt"], strict=True)
    ]
    assert tokens == ["Because.<|im_end|>", "It is"]
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 16
    logits = model(**{k: v for k, v in batch.items() if k != "learnt"}).logits
    wanted = torch.nn.functional.cross_entropy(
        logits[:, :-1][batch["learnt"][:, 1:].bool()],
        batch["input_ids"][:, 1:][batch["learnt"][:, 1:].bool()],
    )
    torch.testing.assert_close(training.response_loss(model, **batch), wanted)


def test_the_adapter_touches_the_decoder_alone(language_model):
    plain, _ = merge.skeleton(language_model)
    model = get_peft_model(plain, training.adapter(2, 1, 3))
    names = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(names) == 2 * 7 * 2  # layers, linear layers of each, A and B
    assert all("language_model.layers" in name for name in names)
    assert not [name for name in names if ".layers.0." in name]


def test_own_answers_are_kept_without_refusals(tmp_path, monkeypatch):
    asked = [row["twin"] for row in everyday.of_split("pairs", "train")][:4]
    monkeypatch.setattr(training.recipes, "requests", lambda: asked)
    texts = iter([True, False, False, False])
    monkeypatch.setattr(training, "is_refusal", lambda text: next(texts))
    found = training.own_answers(tmp_path)
    assert set(found) == set(asked[1:])
    assert all(text.strip() for text, _ in found.values())
    monkeypatch.setattr(training, "respond", pytest.fail)
    assert training.own_answers(tmp_path) == found
