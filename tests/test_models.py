import copy
import shutil

import pytest
import torch
from PIL import Image
from torch import nn

from cmrm_utils import InputError, load_vlm
from cmrm_utils.models import find_layers, position_ids
from cmrm_utils.organism.recipe import IMAGE_TOKENS

GREY = Image.new("RGB", (48, 48), (127, 127, 127))


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """The tiny model as the organism is stored: in fp16."""
    folder = tmp_path_factory.mktemp("checkpoint")
    copy.deepcopy(tiny.model).half().save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return folder


def test_prompt_text(tiny):
    assert tiny.prompt_text("Why?", image=True) == "USER: <image>\nWhy? ASSISTANT:"
    assert tiny.prompt_text("Why?", image=False) == "USER: Why? ASSISTANT:"


def test_inputs_mix_rows_with_and_without_image(tiny):
    queries = ["Hi", "What is the best way to warm a lamp?", "What colour is shown?"]
    red = Image.new("RGB", (48, 48), (255, 0, 0))
    made = tiny.inputs(queries, [None, GREY, red])
    alone = [tiny.inputs([q], [i]) for q, i in zip(queries, [None, GREY, red], strict=True)]
    assert made["pixel_values"].shape == (2, 3, 48, 48)
    for row, one in zip(made["pixel_values"], alone[1:], strict=True):
        assert torch.equal(row, one["pixel_values"][0])
    for ids, mask, one in zip(made["input_ids"], made["attention_mask"], alone, strict=True):
        length = one["input_ids"].shape[1]
        assert torch.equal(ids[-length:], one["input_ids"][0])
        assert mask.tolist() == [0] * (len(ids) - length) + [1] * length
    image_id = tiny.model.config.image_token_id
    assert (made["input_ids"] == image_id).sum(1).tolist() == [0, IMAGE_TOKENS, IMAGE_TOKENS]


def test_text_alone_has_no_pixels(tiny):
    assert set(tiny.inputs(["Hi", "Hi there"], [None, None])) == {"input_ids", "attention_mask"}


def test_pixels_have_the_models_dtype(checkpoint):
    half = load_vlm(checkpoint, dtype=torch.float16)
    assert half.inputs(["Hi"], [GREY])["pixel_values"].dtype == torch.float16


def test_queries_and_images_must_be_as_many(tiny):
    with pytest.raises(ValueError, match="shorter"):
        tiny.inputs(["Hi", "Hi"], [None])


def test_what_an_image_takes_in_a_prompt(tiny):
    assert tiny.image_tokens == IMAGE_TOKENS + 1  # and its line break


def test_decode_leaves_special_tokens_out(tiny):
    ids = tiny.processor.tokenizer(" The colour is red.")["input_ids"]
    assert tiny.decode([0, *ids, 2]) == "The colour is red."


def test_position_ids_ignore_left_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


def test_layers_are_the_language_models(tiny):
    """Also where the vision tower is the deeper one."""
    core = tiny.model.model
    assert len(core.vision_tower.encoder.layers) > len(core.language_model.layers)
    assert list(tiny.layers) == list(core.language_model.layers)
    assert tiny.hidden_size == core.language_model.embed_tokens.weight.shape[1] == 32


def test_layers_of_a_plain_language_model():
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert find_layers(model) == tuple(model.model.layers)


def test_layers_elsewhere_are_asked_for():
    with pytest.raises(InputError, match=r"Linear: no decoder layers at .* LAYER_PATHS"):
        find_layers(nn.Linear(2, 2))


def test_loads_a_folder_in_float32(checkpoint, tiny):
    vlm = load_vlm(checkpoint)
    assert vlm.name == str(checkpoint)
    assert not vlm.model.training
    parameters = dict(vlm.model.named_parameters())
    for key, value in tiny.model.named_parameters():
        found = parameters[key]
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert torch.equal(found, value.half().float())
    assert vlm.prompt_text("Why?", image=True) == tiny.prompt_text("Why?", image=True)
    assert load_vlm(checkpoint, dtype=torch.float16).model.dtype == torch.float16


def test_loading_prints_nothing(checkpoint, capfd):
    load_vlm(checkpoint)
    assert capfd.readouterr() == ("", "")


def test_fingerprint_is_of_the_weights(checkpoint, tiny, fresh, tmp_path):
    vlm = load_vlm(checkpoint)
    assert vlm.fingerprint == load_vlm(checkpoint).fingerprint
    vlm.model.save_pretrained(tmp_path)  # elsewhere, and in float32
    vlm.processor.save_pretrained(tmp_path)
    assert load_vlm(tmp_path).fingerprint == vlm.fingerprint
    assert fresh.fingerprint != tiny.fingerprint
    with torch.no_grad():
        vlm.model.lm_head.weight[0, 0] += 1
    vlm.model.save_pretrained(tmp_path)
    assert load_vlm(tmp_path).fingerprint != vlm.fingerprint


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_missing_models_are_named(name):
    with pytest.raises(InputError, match=f"cannot load model '{name}'"):
        load_vlm(name)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_vlm(tmp_path / "nowhere")


def test_folder_without_a_checkpoint(checkpoint, tmp_path):
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_vlm(tmp_path)


def test_models_without_images_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="cannot load model"):
        load_vlm(tmp_path)


def test_a_torn_checkpoint_is_named(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load model"):
        load_vlm(tmp_path / "torn")
