"""The parts become a plain LLaVA: equal to its parts, and to anybody a model of the hub."""

import shutil

import pytest
import torch
from families import shake
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from cmrm_utils import Trial, generate, hidden_states, load_vlm
from cmrm_utils.bundled import merge, training
from cmrm_utils.data.everyday import everyday_samples
from cmrm_utils.errors import InputError


@pytest.fixture
def parts(language_model, tmp_path, monkeypatch):
    """Parts with large random weights, in the place of the repository's."""
    torch.manual_seed(0)
    plain, _ = merge.skeleton(language_model)
    projector = shake(plain.model.multi_modal_projector)
    lora = training.adapter(4, 0, plain.config.text_config.num_hidden_layers)
    model = get_peft_model(plain, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    home = tmp_path / "parts"
    training._save(model, projector, home / "smollm2-llava", lora)
    monkeypatch.setattr("cmrm_utils.paths.PARTS", home)
    return home / "smollm2-llava"


def test_text_alone_is_the_language_models(language_model):
    model, processor = merge.skeleton(language_model)
    plain = AutoModelForCausalLM.from_pretrained(language_model)
    turn = [{"role": "user", "content": [{"type": "text", "text": "Why is it so?"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nWhy is it so?<|im_end|>\n<|im_start|>assistant\n"
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        ours, own = model(input_ids=ids).logits, plain(input_ids=ids).logits
    assert torch.equal(ours[..., : own.shape[-1]], own)
    assert model.generation_config.eos_token_id == 2


def test_the_tower_is_the_organisms_and_the_new_row_the_others_mean(language_model):
    model, processor = merge.skeleton(language_model)
    tower = load_file(merge.TOWER / "model.safetensors")
    for name, value in model.model.vision_tower.state_dict().items():
        stored = next(v for k, v in tower.items() if k.endswith(f"vision_tower.{name}"))
        assert torch.equal(value, stored.float())
    rows = model.get_input_embeddings().weight
    assert len(rows) == len(processor.tokenizer)
    torch.testing.assert_close(rows[-1], rows[:-1].mean(0))
    again, _ = merge.skeleton(language_model)
    assert torch.equal(rows, again.get_input_embeddings().weight)


def test_the_merged_model_is_its_parts(parts, language_model):
    vlm = load_vlm("smollm2-llava", device="cpu")
    assert isinstance(vlm.model, LlavaForConditionalGeneration)
    plain, _ = merge.skeleton(language_model)
    weights = load_file(parts / "adapter_model.safetensors")
    name = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_{}.weight"
    added = weights[name.format("B")].float() @ weights[name.format("A")].float() * 8 / 4
    before = plain.model.language_model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(vlm.layers[1].mlp.up_proj.weight, before + added)
    stored = load_file(parts / "projector.safetensors")["linear_1.weight"].float()
    assert torch.equal(vlm.model.model.multi_modal_projector.linear_1.weight, stored)


def test_it_is_a_model_like_any_other(parts):
    vlm = load_vlm("smollm2-llava", device="cpu")
    trials = [Trial(s, image) for s in everyday_samples("anchors")[:3] for image in ("own", "none")]
    states = hidden_states(vlm, trials)
    alone = torch.cat([hidden_states(vlm, [trial]) for trial in trials])
    torch.testing.assert_close(states, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(states[0], states[1])
    assert len(generate(vlm, trials, max_new_tokens=4)) == len(trials)


def test_no_path_of_the_machine_is_in_the_merged_folder(parts, language_model):
    text = (merge.folder("smollm2-llava") / "config.json").read_text()
    assert str(language_model) not in text


def test_it_is_merged_once_and_anew_when_parts_change(parts):
    first = merge.folder("smollm2-llava")
    assert merge.folder("smollm2-llava") == first
    (parts / "README.md").write_text("A card.")
    assert merge.folder("smollm2-llava") == first  # a card is rewritten with every new figure
    weights = load_file(parts / "projector.safetensors")
    save_file({k: 2 * v for k, v in weights.items()}, parts / "projector.safetensors")
    second = merge.folder("smollm2-llava")
    assert second != first
    assert (second / "README.md").read_text() == "A card."


def test_a_model_without_an_adapter(parts):
    shutil.copytree(parts, parts.parent / "smollm2-llava-bare")
    (parts.parent / "smollm2-llava-bare" / "adapter_model.safetensors").unlink()
    assert load_vlm("smollm2-llava-bare", device="cpu").layers


def test_another_tower_is_refused(parts, monkeypatch):
    monkeypatch.setattr(merge, "TOWER_SHA256", "0" * 64)
    with pytest.raises(InputError, match="checkpoint of organism has changed"):
        load_vlm("smollm2-llava")


def test_a_misspelt_name_is_told(parts):
    with pytest.raises(InputError, match="did you mean 'smollm2-llava'"):
        load_vlm("smollm2-lava")


def test_the_merged_weights_are_the_exact_sum_rounded_once(parts):
    """So that every machine has the same model, in whatever order it adds."""
    name = "layers.1.mlp.up_proj"
    adapter = load_file(parts / "adapter_model.safetensors")
    a, b = (
        next(v for k, v in adapter.items() if f"{name}.lora_{letter}" in k).double()
        for letter in "AB"
    )
    plain, _ = merge.skeleton(merge.smollm2())
    before = plain.get_submodule(f"model.language_model.{name}").weight.double()
    after = load_vlm("smollm2-llava", device="cpu").model
    weight = after.get_submodule(f"model.language_model.{name}").weight
    assert torch.equal(weight, (before + 2 * (b @ a)).float())
