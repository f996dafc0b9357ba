import copy
import json
import shutil
from dataclasses import replace

import accelerate
import numpy as np
import pytest
import torch
from families import FAMILIES, SEEING, TINY, sizes, text_config, vision_config
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from cmrm_utils import (
    InputError,
    Sample,
    Trial,
    edits,
    generate,
    hidden_states,
    load_vlm,
    loading,
)
from cmrm_utils.edits import Edit
from cmrm_utils.loading import find_layers, find_model, wrap
from cmrm_utils.processors import squared
from cmrm_utils.prompts import spoken

GREY = Image.new("RGB", (48, 48), (127, 127, 127))
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
PROMPTS = {
    "llava": "USER: <image>\nWhy? ASSISTANT:",
    "llava-next": "USER: <image>\nWhy? ASSISTANT:",
    "qwen2.5-vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>Why?<|im_end|>\n<|im_start|>assistant\n",
    "vicuna": "USER: Why? ASSISTANT:",
}


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
    assert (made["input_ids"] == image_id).sum(1).tolist() == [0, *[TINY.image_tokens] * 2]


def test_text_alone_has_no_pixels(tiny):
    assert set(tiny.inputs(["Hi", "Hi there"], [None, None])) == {"input_ids", "attention_mask"}


def test_pixels_have_the_models_dtype(checkpoint):
    half = load_vlm(checkpoint, dtype=torch.float16)
    assert half.inputs(["Hi"], [GREY])["pixel_values"].dtype == torch.float16


def test_queries_and_images_must_be_as_many(tiny):
    with pytest.raises(ValueError, match="shorter"):
        tiny.inputs(["Hi", "Hi"], [None])


def test_what_an_image_takes_in_a_prompt(tiny):
    assert tiny.image_tokens == TINY.image_tokens + 1  # and its line break


def test_decode_leaves_special_tokens_out(tiny):
    ids = tiny.processor.tokenizer(" The colour is red.")["input_ids"]
    assert tiny.decode([0, *ids, 2]) == "The colour is red."


@pytest.mark.parametrize("tags", [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_decode_leaves_tags_of_reasoning_in(tiny, tags):
    """Some tokenizers count them as special; without them the reasoning is what would be judged."""
    vlm = replace(tiny, processor=copy.deepcopy(tiny.processor))
    vlm.tokenizer.add_special_tokens({"additional_special_tokens": list(tags)})
    ids = vlm.tokenizer(f"{tags[0]}The colour is blue.{tags[1]}The colour is red.").input_ids
    assert vlm.decode([*ids, 2]) == f"{tags[0]}The colour is blue.{tags[1]}The colour is red."
    assert spoken(vlm.decode(ids)) == "The colour is red."


def test_positions_ignore_left_padding(tiny):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert tiny.positions({"attention_mask": mask}).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


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
    model.config = LlamaConfig(num_hidden_layers=2)
    assert find_layers(model) == tuple(model.model.layers)


def test_layers_elsewhere_are_asked_for():
    with pytest.raises(InputError, match=r"Linear: no decoder layers at .* LAYER_PATHS"):
        find_layers(nn.Linear(2, 2))


def test_layers_of_an_unlisted_family(checkpoint, tiny):
    """Their path is given; a wrong one is one line that says which module lists there are."""
    here, vision = "model.language_model.layers", "model.vision_tower.encoder.layers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrm_utils.loading.LAYER_PATHS", ("nowhere",))
        with pytest.raises(InputError, match=r"no decoder layers at nowhere .*layers="):
            load_vlm(checkpoint)
        vlm = load_vlm(checkpoint, layers=here)
    assert vlm.layers == tuple(vlm.model.model.language_model.layers)
    for wrong, reason in {
        "model.layers": r"no decoder layers at model\.layers; .*",
        "model.language_model.norm": r"no decoder layers at model\.language_model\.norm; .*",
        vision: f"4 layers at {vision}, but its decoder has 3; .*",
    }.items():
        with pytest.raises(InputError, match=reason) as error:
            load_vlm(checkpoint, layers=wrong)
        assert f"module lists are {vision}, {here}" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_name_that_is_almost_right():
    with pytest.raises(InputError, match="did you mean 'organism'"):
        load_vlm("organsim")


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
    before = vlm.fingerprint
    with torch.no_grad():
        vlm.model.lm_head.weight[-1, -1] += 1
    vlm.model.save_pretrained(tmp_path)
    assert load_vlm(tmp_path).fingerprint == vlm.fingerprint != before


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_missing_models_are_named(name):
    with pytest.raises(InputError, match=f"cannot load model '{name}'"):
        load_vlm(name)


def test_a_gated_model_says_how_to_have_it(monkeypatch):
    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr("cmrm_utils.loading.AutoConfig.from_pretrained", gated)
    with pytest.raises(InputError, match=r"licence on https://\S+/some/guard and log in"):
        load_vlm("some/guard")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_vlm(tmp_path / "nowhere")


def test_folder_without_a_checkpoint(checkpoint, tmp_path):
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_vlm(tmp_path)


def test_a_folder_without_tokenizer_or_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="cannot load model"):
        load_vlm(tmp_path)


def test_finding_a_model_reads_no_weights(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "light", ignore=shutil.ignore_patterns("*.safetensors"))
    source, config, processor = find_model(tmp_path / "light")
    assert (source, config.model_type) == (tmp_path / "light", "llava")
    assert processor.image_token == "<image>"
    with pytest.raises(InputError, match="no-such-model"):
        find_model("no-such-model")


def test_missing_weights_are_not_left_random(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "less")
    weights = load_file(tmp_path / "less" / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, tmp_path / "less" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 weights \(model.language_model.norm.weight"):
        load_vlm(tmp_path / "less")


def test_a_torn_checkpoint_is_named(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load model"):
        load_vlm(tmp_path / "torn")


class Surprise:
    """What a pickle can do to who reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_are_read_from_safetensors_alone(family_folders, tmp_path):
    folder = shutil.copytree(family_folders["vicuna"], tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"\.bin.* use_safetensors=False alone"):
        load_vlm(folder)
    found = load_vlm(folder, use_safetensors=False)
    assert found.fingerprint == load_vlm(family_folders["vicuna"]).fingerprint
    weights["model.norm.weight"] = Surprise(tmp_path / "surprise")
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="more than tensors, and are not read"):
        load_vlm(folder, use_safetensors=False)
    assert not (tmp_path / "surprise").exists()


def test_code_that_comes_with_a_model_is_run_only_when_asked(family_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever sits there is not asked
    folder = shutil.copytree(family_folders["vicuna"], tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "odd.py").write_text(
        "from transformers import LlamaConfig\n"
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class OddConfig(LlamaConfig):\n    model_type = 'odd'\n"
    )
    for load in (load_vlm, find_model):
        with pytest.raises(InputError, match="contains custom code"):
            load(folder)
    assert not (tmp_path / "ran").exists()
    assert find_model(folder, trust_remote_code=True)[1].model_type == "odd"
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_each_family_are_the_language_models(families, family):
    vlm = families[family]
    core = vlm.model.model
    language = core if family == "vicuna" else core.language_model
    assert list(vlm.layers) == list(language.layers)
    assert len(vlm.layers) == 3
    assert vlm.hidden_size == language.embed_tokens.weight.shape[1] == 32
    if family != "vicuna":
        tower = core.visual.blocks if family == "qwen2.5-vl" else core.vision_tower.encoder.layers
        assert len(tower) > len(vlm.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_of_each_family(families, family):
    vlm = families[family]
    assert vlm.prompt_text("Why?", image=vlm.sees_images) == PROMPTS[family]


def test_vicunas_system_prompt(family_folders):
    """Before USER where the template is of Vicuna's form, else as the system message."""
    for family in ("llava", "vicuna"):
        vlm = load_vlm(family_folders[family], system="vicuna")
        assert vlm.prompt_text("Why?", image=False) == f"{VICUNA} USER: Why? ASSISTANT:"
    vlm = load_vlm(family_folders["llava"], system="vicuna")
    image = vlm.prompt_text("Why?", image=True)
    assert image == f"{VICUNA} USER: <image>\nWhy? ASSISTANT:"
    ids = vlm.inputs(["Why?"], [None])["input_ids"][0].tolist()
    assert ids == vlm.tokenizer(f"{VICUNA} USER: Why? ASSISTANT:")["input_ids"]
    qwen = load_vlm(family_folders["qwen2.5-vl"], system="Be brief.")
    assert qwen.prompt_text("Why?", image=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_without_a_system_prompt_is_told(tiny):
    processor = copy.deepcopy(tiny.processor)
    last = (
        "{% for part in messages[-1]['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    )
    processor.chat_template = f"[INST] {last} [/INST]"
    with pytest.raises(InputError, match="takes no system prompt"):
        wrap(tiny.model, processor, name="odd", system="Be brief.")
    first = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    processor.chat_template = first + last
    with pytest.raises(InputError, match="takes no system prompt"):
        wrap(tiny.model, processor, name="odd", system="Be brief.")


def wide_image():
    """96 x 48, every pixel another colour."""
    x, y = np.meshgrid(np.arange(96), np.arange(48))
    return Image.fromarray(np.stack([2 * x, 5 * y, x + y], -1).astype(np.uint8))


def test_a_wide_image_is_cropped_by_default_and_padded_on_demand(family_folders):
    """Both tensors against ones made by hand; the tiny processor scales to -1..1."""
    image = wide_image()
    pixels = np.asarray(image)
    middle = pixels[:, 24:72]
    cropped = load_vlm(family_folders["llava"]).inputs(["Hi"], [image])["pixel_values"][0]
    by_hand = torch.tensor(middle / 255 * 2 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(cropped, by_hand)
    square = np.full((96, 96, 3), 127, np.uint8)
    square[24:72] = pixels
    small = np.asarray(Image.fromarray(square).resize((48, 48), Image.Resampling.BICUBIC))
    vlm = load_vlm(family_folders["llava"], pad_to_square=True)
    padded = vlm.inputs(["Hi"], [image])["pixel_values"][0]
    torch.testing.assert_close(padded, torch.tensor(small / 255 * 2 - 1).permute(2, 0, 1).float())


def test_squares_are_padded_as_llava_pads():
    """With CLIP's mean colour in whole numbers, the odd pixel below or to the right."""
    clip = (0.48145466, 0.4578275, 0.40821073)
    tall, wide = (
        np.asarray(squared(Image.new("RGB", size, (255, 0, 0)), clip)) for size in ((2, 5), (5, 2))
    )
    for found in (tall, wide.transpose(1, 0, 2)):
        assert found.shape == (5, 5, 3)
        assert (found[:, 1:3] == (255, 0, 0)).all()
        assert (found[:, [0, 3, 4]] == (122, 116, 104)).all()
    image = wide_image().crop((0, 0, 48, 48))
    assert squared(image, clip).tobytes() == image.tobytes()


def test_what_changes_the_prompts_changes_the_fingerprint(family_folders):
    folder = family_folders["llava"]
    ways = [{}, {"system": "vicuna"}, {"system": "Be brief."}, {"pad_to_square": True}]
    assert len({load_vlm(folder, **way).fingerprint for way in ways}) == len(ways)
    slow = load_vlm(folder, batch_size=2)
    assert slow.fingerprint == load_vlm(folder).fingerprint
    assert slow.batch_size == 2


def test_a_language_model_sees_no_images(families, family_folders):
    vlm = families["vicuna"]
    assert not vlm.sees_images
    assert set(vlm.inputs(["Hi", "Hello there"], [None, None])) == {"input_ids", "attention_mask"}
    with pytest.raises(InputError, match="only the image conditions none and caption work"):
        vlm.inputs(["Hi"], [GREY])
    with pytest.raises(InputError, match="pad_to_square"):
        load_vlm(family_folders["vicuna"], pad_to_square=True)


def test_a_template_that_begins_with_the_start_token_has_one(tiny):
    processor = copy.deepcopy(tiny.processor)
    processor.chat_template = "<s>" + processor.chat_template
    vlm = wrap(tiny.model, processor, name="odd")
    for image in (None, GREY):
        plain, odd = (v.inputs(["Hi"], [image])["input_ids"] for v in (tiny, vlm))
        assert torch.equal(plain, odd)


@pytest.mark.parametrize("family", SEEING)
def test_images_of_many_sizes_share_a_batch(families, family):
    """Each row has the tokens that it has alone, left-padded."""
    vlm = families[family]
    images = [wide_image(), None, GREY.resize((60, 130)), GREY]
    queries = ["Hi", "What is the best way to warm a lamp?", "Why?", "What colour is shown?"]
    made = vlm.inputs(queries, images)
    for row, (query, image) in enumerate(zip(queries, images, strict=True)):
        alone = vlm.inputs([query], [image])["input_ids"][0]
        mask = made["attention_mask"][row]
        assert torch.equal(made["input_ids"][row][mask.bool()], alone)
        assert mask.tolist() == sorted(mask.tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_of_the_model_itself(families, family):
    """Without padding, the states are what the model gives when it makes its own positions."""
    vlm = families[family]
    inputs = vlm.inputs(["Why is it so?"], [wide_image() if vlm.sees_images else None])
    own = vlm.model(**inputs).logits
    given = vlm.model(**inputs, position_ids=vlm.positions(inputs)).logits
    torch.testing.assert_close(given, own)
    if family == "qwen2.5-vl":
        assert vlm.positions(inputs).shape == (3, *inputs["input_ids"].shape)
        assert not torch.equal(*vlm.positions(inputs)[1:])


def test_an_unknown_setting_is_named(checkpoint):
    with pytest.raises(InputError, match="sytem"):
        load_vlm(checkpoint, sytem="vicuna")


def test_dtype_by_name(checkpoint):
    assert load_vlm(checkpoint, dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="'bf17'"):
        load_vlm(checkpoint, dtype="bf17")


def test_quantised_weights_need_an_extra(checkpoint, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"cmrm-workbook\[quantized\]"):
        load_vlm(checkpoint, bits=4)
    with pytest.raises(InputError, match="bits must be 4 or 8, not 3"):
        load_vlm(checkpoint, bits=3)


def test_quantised_states_are_near(checkpoint):
    pytest.importorskip("bitsandbytes")
    trials = [Trial(Sample("a", "Why?", image=GREY)), Trial(Sample("b", "How is it?"), "none")]
    exact, eight = (hidden_states(load_vlm(checkpoint, **w), trials) for w in ({}, {"bits": 8}))
    assert torch.cosine_similarity(exact, eight, dim=-1).min() > 0.99
    assert not torch.equal(exact, eight)


LLAVA_PARTS = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "disk",
    "model.language_model.embed_tokens": "disk",
    "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk",
    "model.language_model.layers.2": "cpu",
    "model.language_model.norm": "cpu",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture(params=["disk", "disk, all of it", "cpu"])
def offloaded(request, family_folders, tmp_path):
    """The tiny LLaVA with parts of it on the disk, or all of it in the CPU's store of weights."""
    folder = family_folders["llava"]
    if request.param == "cpu":
        vlm = load_vlm(folder)
        vlm.model = accelerate.cpu_offload(vlm.model, torch.device("cpu"))
        return wrap(vlm.model, vlm.processor, name="offloaded")
    parts = LLAVA_PARTS if request.param == "disk" else {"": "disk"}
    return load_vlm(folder, device_map=parts, offload_folder=tmp_path)


def test_edits_and_states_of_an_offloaded_model(families, offloaded, requests):
    """Where weights lie elsewhere until a layer runs, everything is as it is without that."""
    plain = families["llava"]
    assert any(p.device.type == "meta" for layer in offloaded.layers for p in layer.parameters())
    edits = [None, *(Edit(torch.randn(3, 32), tokens) for tokens in ("all", "last"))]
    trials = [
        Trial(sample, image, edit)
        for sample, image, edit in zip(requests[:6], ("own", "none") * 3, edits * 2, strict=True)
    ]
    torch.testing.assert_close(hidden_states(offloaded, trials), hidden_states(plain, trials))
    assert generate(offloaded, trials, max_new_tokens=6) == generate(
        plain, trials, max_new_tokens=6
    )
    assert offloaded.fingerprint == plain.fingerprint


def test_loading_with_offload_prints_nothing(family_folders, tmp_path, capfd):
    load_vlm(family_folders["llava"], device_map={"": "disk"}, offload_folder=tmp_path)
    assert capfd.readouterr() == ("", "")


SIZES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}


def full_size(size, place):
    """LLaVA-1.5 of 7 or 13 billion parameters with random weights, or none on ``meta``."""
    hidden, intermediate, layers, heads = SIZES[size]
    text = LlamaConfig(
        **sizes(hidden, intermediate, layers, heads),
        vocab_size=32064,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    vision = vision_config(1024, 4096, 24, 16, image=336, patch=14, projection_dim=768)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=32000, pad_token_id=32001
    )
    with torch.device(place):
        return LlavaForConditionalGeneration(config)


@pytest.mark.parametrize(("size", "billions"), [("7b", 7.06), ("13b", 13.35)])
def test_layers_at_full_size(processor, size, billions):
    vlm = wrap(full_size(size, "meta"), processor, name=size)
    hidden, intermediate, layers, _ = SIZES[size]
    assert (len(vlm.layers), vlm.hidden_size) == (layers, hidden)
    shapes = {name: tuple(p.shape) for name, p in vlm.model.named_parameters()}
    last = f"model.language_model.layers.{layers - 1}"
    assert shapes[f"{last}.mlp.down_proj.weight"] == (hidden, intermediate)
    assert f"model.language_model.layers.{layers}.mlp.down_proj.weight" not in shapes
    assert shapes["model.language_model.embed_tokens.weight"] == (32064, hidden)
    assert shapes["model.multi_modal_projector.linear_1.weight"] == (hidden, 1024)
    assert shapes["lm_head.weight"] == (32064, hidden)
    assert dict(vlm.model.named_modules())[last] is vlm.layers[-1]
    assert sum(p.numel() for p in vlm.model.parameters()) / 1e9 == pytest.approx(billions, abs=0.02)


@pytest.mark.slow
def test_one_extraction_and_one_steered_generation_at_7b(processor, tmp_path):
    """Random weights in bfloat16: 14 GB, minutes on a CPU. Run with ``pytest -m slow``."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = full_size("7b", place)
    finally:
        torch.set_default_dtype(torch.float32)
    pictures = copy.deepcopy(processor)
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    pictures.image_processor.size = {"shortest_edge": 336}
    pictures.image_processor.crop_size = {"height": 336, "width": 336}
    pictures.patch_size = 14
    vlm = wrap(model, pictures, name="7b")
    sample = Sample("a", "Why is it so?", image=GREY)
    states = hidden_states(vlm, [Trial(sample), Trial(sample, "none")])
    assert states.shape == (2, 32, 4096)
    assert torch.isfinite(states).all()
    vlm.model.generation_config.eos_token_id = None
    steered = Trial(sample, edit=Edit(5 * (states[1] - states[0])))
    generate(vlm, [Trial(sample), steered], max_new_tokens=3, out=tmp_path / "said.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    plain, edited = (row["ids"] for row in rows if "ids" in row)
    assert len(plain) == len(edited) == 3
    assert plain != edited


def test_every_family_has_every_place(family):
    """A head is a slice of what goes into the output projection, one in every layer."""
    text = family.model.config.get_text_config()
    for place in edits.PLACES:
        assert len(family.modules(place)) == len(family.layers)
    assert family.modules("layer") == family.layers
    for layer, heads, mlp in zip(
        family.layers, family.modules("heads"), family.modules("mlp"), strict=True
    ):
        assert heads is layer.self_attn.o_proj
        assert heads.in_features == family.width("heads")
        assert mlp is layer.mlp
    assert family.width("heads") == text.num_attention_heads * family.head_size
    assert family.width("layer") == family.width("mlp") == family.hidden_size


def test_heads_wider_than_the_residual_stream(processor):
    """As of Qwen3 and Gemma: the heads' size is a setting of its own."""
    config = LlamaConfig(**text_config(processor.tokenizer, head_dim=24))
    vlm = wrap(LlamaForCausalLM(config), processor.tokenizer, name="wide")
    assert vlm.head_size == 24
    assert vlm.width("heads") == vlm.modules("heads")[0].in_features == 48


def test_heads_whose_values_have_a_width_of_their_own(fresh):
    """As of multi-head latent attention: the layer tells, whatever the configuration says."""
    for layer in fresh.layers:
        layer.self_attn.o_proj = nn.Linear(24, 32)
    assert (fresh.width("heads"), fresh.head_size) == (24, 12)


def edited_json(folder, name, change):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def without_pad(folder):
    """The checkpoint's files, none of which names a token to pad with."""
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        edited_json(folder, name, lambda c: [c.pop(k, 0) for k in ("pad_token", "pad_token_id")])
    edited_json(folder, "config.json", lambda c: c.get("text_config", {}).pop("pad_token_id", 0))
    return folder


ASKED = [Trial(Sample("a", q, GREY), i) for q in ("Why?", "How is it so?") for i in ("none", "own")]


@pytest.mark.parametrize("family", SEEING)
def test_without_a_pad_token_another_serves(family_folders, families, tmp_path, family):
    folder = without_pad(shutil.copytree(family_folders[family], tmp_path / "bare"))
    vlm = load_vlm(folder)
    assert vlm.model.generation_config.pad_token_id == vlm.tokenizer.pad_token_id is not None
    assert generate(vlm, ASKED, max_new_tokens=6) == generate(
        families[family], ASKED, max_new_tokens=6
    )


def test_a_pad_token_that_the_model_has_no_embedding_of(family_folders, families, tmp_path):
    """As it comes of adding one to a tokenizer and not to the model."""
    folder = shutil.copytree(family_folders["llava"], tmp_path / "added")
    size = families["llava"].vocabulary

    def change(config):
        config["pad_token"] = "<filler>"
        config["added_tokens_decoder"] = {
            **config.get("added_tokens_decoder", {}),
            str(size): {"content": "<filler>", "special": True},
        }

    edited_json(folder, "tokenizer_config.json", change)
    vlm = load_vlm(folder)
    assert vlm.tokenizer.pad_token_id < size
    wanted = generate(families["llava"], ASKED, max_new_tokens=6)
    assert generate(vlm, ASKED, max_new_tokens=6) == wanted


def test_a_tokenizer_that_pads_on_the_right(family_folders, families, tmp_path):
    folder = shutil.copytree(family_folders["llava"], tmp_path / "right")
    edited_json(folder, "tokenizer_config.json", lambda c: c.update(padding_side="right"))
    vlm = load_vlm(folder)
    assert vlm.tokenizer.padding_side == "right"
    torch.testing.assert_close(hidden_states(vlm, ASKED), hidden_states(families["llava"], ASKED))
    assert vlm.inputs(["Hi", "Why is it so?"], [None, None])["attention_mask"][0, 0] == 0


def test_no_special_token_at_all_is_told(tiny):
    processor = copy.deepcopy(tiny.processor)
    for name in ("pad_token", "unk_token", "eos_token", "bos_token"):
        setattr(processor.tokenizer, name, None)
    with pytest.raises(InputError, match="odd: its tokenizer has no token to pad with"):
        wrap(tiny.model, processor, name="odd")


PARTS = "{% for m in messages %}{% for p in m['content'] %}"
BROKEN_TEMPLATES = {
    "has no chat template": None,
    "has no place for an image": PARTS + "{{ p.get('text', '') }}{% endfor %}{% endfor %}",
    "does not put a query": PARTS + "{% if p['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}{% endfor %}",
    "fails on a single query": "{{ raise_exception('the system speaks first') }}",
    "which becomes .*type": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "template fails": "{% for m in messages %}{{ 'USER: ' + m['content'] }}{% endfor %}",
}


@pytest.mark.parametrize(("words", "template"), BROKEN_TEMPLATES.items())
def test_chat_templates_that_make_no_prompts_are_told(family_folders, tmp_path, words, template):
    """Before weights are read: so too before ``cmrm run`` starts anything."""
    skip = shutil.ignore_patterns("*.safetensors")
    folder = shutil.copytree(family_folders["llava"], tmp_path / "odd", ignore=skip)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    for load in (find_model, load_vlm):
        with pytest.raises(InputError, match=words) as caught:
            load(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_template_that_only_the_tokenizer_has(tiny):
    processor = copy.deepcopy(tiny.processor)
    template, processor.chat_template = processor.chat_template, None
    processor.tokenizer.chat_template = template
    vlm = wrap(tiny.model, processor, name="old")
    assert vlm.prompt_text("Why?", image=True) == tiny.prompt_text("Why?", image=True)


def test_what_ends_a_response(family_folders, families, tmp_path):
    """One id, several, or none in the generation settings: then the tokenizer's own."""
    end = families["llava"].tokenizer.eos_token_id
    for given, wanted in (([end, 7], {end, 7}), (end, {end}), (None, {end})):
        folder = shutil.copytree(family_folders["llava"], tmp_path / str(given), dirs_exist_ok=True)
        edited_json(folder, "generation_config.json", lambda c: c.update(eos_token_id=given))  # noqa: B023
        edited_json(folder, "config.json", lambda c: c["text_config"].pop("eos_token_id", 0))
        assert load_vlm(folder).ends == wanted


def test_a_model_without_an_end_goes_on(fresh):
    fresh.model.generation_config.eos_token_id = None
    assert fresh.ends == set()
    assert all(generate(fresh, ASKED, max_new_tokens=4))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.model.lm_head.weight[-1].mul_(2),
        lambda v: v.model.model.multi_modal_projector.linear_1.weight.data.mul_(1.5),
        lambda v: setattr(v.layers[0].mlp.up_proj.weight, "data", torch.zeros(64, 32)),
        lambda v: v.model.lm_head.weight[:2].copy_(v.model.lm_head.weight[:2].flip(0)),
        lambda v: setattr(v.processor, "chat_template", "Be kind. " + v.processor.chat_template),
        lambda v: setattr(v.processor.image_processor, "image_mean", [0.1, 0.2, 0.3]),
        lambda v: setattr(v.processor.image_processor, "resample", 0),
        lambda v: setattr(v.processor.image_processor, "size", {"shortest_edge": 50}),
        lambda v: setattr(v.tokenizer, "bos_token", "</s>"),
        lambda v: setattr(v.model.generation_config, "eos_token_id", [2, 9]),
        lambda v: setattr(v, "system", "Be brief."),
    ],
)
@torch.no_grad()
def test_a_model_changed_after_it_was_loaded_has_another_fingerprint(tiny, change):
    vlm = wrap(copy.deepcopy(tiny.model), copy.deepcopy(tiny.processor), name="mine")
    assert vlm.fingerprint == tiny.fingerprint
    change(vlm)
    assert vlm.fingerprint != tiny.fingerprint


def test_padding_and_precision_change_no_fingerprint(family_folders, tmp_path):
    folder = without_pad(shutil.copytree(family_folders["vicuna"], tmp_path / "bare"))
    vlm = load_vlm(folder)
    before = vlm.fingerprint
    vlm.tokenizer.pad_token = "</s>"
    vlm.model.double().float()
    assert vlm.fingerprint == before


def test_the_folder_that_a_part_came_from_is_in_no_fingerprint(fresh):
    """A merged model's text part was read from the user's own cache."""
    before = fresh.fingerprint
    fresh.model.config.text_config._name_or_path = "/home/somebody/.cache/cmrm/a-language-model"
    moved = replace(fresh)
    assert moved.fingerprint == before


def test_fingerprints_of_bundled_models_are_stable():
    """Stored tables go by them."""
    assert load_vlm("organism").fingerprint == "bf897ba41700c18d"


def hub_of(folder, root, revisions):
    """A cache of the hub with a repository of two revisions."""
    repository = root / "models--someone--model"
    for number, (name, change) in enumerate(revisions.items()):
        commit = f"{number:040x}"
        snapshot = shutil.copytree(folder, repository / "snapshots" / commit)
        change(snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    return root


def other_revision(folder):
    """Other weights, another template, image size and end."""
    weights = load_file(folder / "model.safetensors")
    weights = {name: value * 1.5 for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    template = folder / "chat_template.jinja"
    template.write_text("Be kind. " + template.read_text())
    edited_json(folder, "config.json", lambda c: c["text_config"].update(rms_norm_eps=0.5))
    edited_json(folder, "generation_config.json", lambda c: c.update(eos_token_id=[2, 9]))
    edited_json(
        folder,
        "processor_config.json",
        lambda c: c["image_processor"].update(image_mean=[0.1, 0.2, 0.3]),
    )
    edited_json(folder, "tokenizer_config.json", lambda c: c.update(padding_side="right"))


def test_a_revision_is_of_everything(family_folders, tmp_path):
    """Configuration, processor, tokenizer, chat template, weights and settings of generation."""
    where = {"cache_dir": tmp_path, "local_files_only": True}
    hub_of(family_folders["llava"], tmp_path, {"main": lambda f: None, "v2": other_revision})
    plain = load_vlm("someone/model", **where)
    assert plain.fingerprint == load_vlm(family_folders["llava"]).fingerprint
    other = load_vlm("someone/model", revision="v2", **where)
    assert other.prompt_text("Why?", image=False) == "Be kind. USER: Why? ASSISTANT:"
    assert other.model.config.text_config.rms_norm_eps == 0.5
    assert list(other.processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert other.tokenizer.padding_side == "right"
    assert other.ends == {2, 9}
    torch.testing.assert_close(other.model.lm_head.weight, plain.model.lm_head.weight * 1.5)
    _, config, processor = find_model("someone/model", revision="v2", **where)
    assert config.text_config.rms_norm_eps == 0.5
    assert processor.chat_template.startswith("Be kind")
    with pytest.raises(InputError, match="someone/model"):
        find_model("someone/model", revision="v3", **where)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_subfolder_is_of_everything(family_folders, tmp_path, family):
    shutil.copytree(family_folders[family], tmp_path / "deep" / "in")
    found = load_vlm(tmp_path / "deep", subfolder="in")
    assert found.fingerprint == load_vlm(family_folders[family]).fingerprint


def test_a_folder_has_no_revisions(checkpoint):
    with pytest.raises(InputError, match="a folder has no revision 'v2'"):
        load_vlm(checkpoint, revision="v2")


def test_dtype_auto_is_bfloat16_where_the_processor_has_it(checkpoint, monkeypatch):
    for has, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(loading, "has_bfloat16", lambda place, has=has: has)
        assert load_vlm(checkpoint, dtype="auto").model.dtype == wanted
        assert load_vlm(checkpoint).model.dtype == torch.float32
    for bad in ("bf17", "int8", "nn"):
        with pytest.raises(InputError, match=rf"bfloat16, .* or auto, not '{bad}'"):
            load_vlm(checkpoint, dtype=bad)


def test_what_a_processor_has_of_bfloat16(monkeypatch):
    monkeypatch.setattr(loading.platform, "machine", lambda: "x86_64")
    for amx, avx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert loading.has_bfloat16(torch.device("cpu")) == (amx or avx)


def test_batches_of_no_rows_are_refused(checkpoint):
    with pytest.raises(InputError, match="batch_size must be 1 or more, not 0"):
        load_vlm(checkpoint, batch_size=0)
