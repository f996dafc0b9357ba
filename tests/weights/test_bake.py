import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from click.testing import CliRunner
from families import TINY, shake, text_config
from PIL import Image
from safetensors import safe_open
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GemmaConfig,
    GemmaForCausalLM,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cmrm_utils import CMRM, Edit, InputError, ShiftVectors, apply, bake, extract_shift, load_vlm
from cmrm_utils.cli.main import cli
from cmrm_utils.engine.loops import first_logits
from cmrm_utils.loading import wrap
from cmrm_utils.organism.recipe import build_model
from cmrm_utils.paths import ROOT
from cmrm_utils.prompts import CHAT_TEMPLATE
from cmrm_utils.trials import Trial

BAKED = ("llava", "llava-next", "vicuna", "mistral", "qwen2", "llava-mistral", "llava-qwen2")
TEXTS = ("how to zorp a lamp", "what colour", "describe this scene now in a few words", "hi")

PLAIN = """
import json, sys
sys.modules["cmrm_utils"] = None  # any import of it fails
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
picture, out, *folders = sys.argv[1:]
found = {}
for folder in folders:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    for kind, parts in {"image": [{"type": "image", "path": picture}], "text": []}.items():
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": "what colour is it"}]}
        made = processor.apply_chat_template(
            [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**made).logits[0, -1].tolist()
            ids = model.generate(**made, max_new_tokens=8)[0, made["input_ids"].shape[1]:].tolist()
        found[f"{folder} {kind}"] = [logits, ids]
json.dump(found, open(out, "w"))
"""


def decoder(kind, tokenizer, **more):
    """A tiny Mistral or Qwen2 configuration, each with what tells it from the default Llama."""
    if kind == "mistral":
        own = {"sliding_window": None, "num_key_value_heads": 1, "head_dim": 24}
        return MistralConfig(**text_config(tokenizer, rms_norm_eps=1e-5, **own | more))
    rope = {"rope_type": "default", "rope_theta": 5e5}
    return Qwen2Config(
        **text_config(tokenizer, rope_parameters=rope, **{"tie_word_embeddings": True} | more)
    )


def with_biases(model, seed=0):
    """Qwen2's biases start as zeros, and nobody would miss them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


def talking(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def make(processor, families):
    """A model by name, the decoders that are re-exported alone and inside a LLaVA."""
    tokenizer = processor.tokenizer
    alone = {"mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM}

    def built(name):
        if name in families:
            return families[name]
        kind = name.removeprefix("llava-")
        text = decoder(kind, tokenizer)
        if kind != name:
            config = copy.deepcopy(build_model(TINY, processor, 0).config)
            text.tie_word_embeddings = False
            config.text_config = text
            model = LlavaForConditionalGeneration(config)
            return wrap(with_biases(shake(model)), processor, name=name)
        model = with_biases(shake(alone[kind](text)))
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        return wrap(model, talking(tokenizer), name=name)

    return built


def an_edit(vlm, seed=0, size=0.5, **settings):
    """Random, and large enough to matter."""
    shape = (len(vlm.layers), vlm.hidden_size)
    return Edit(
        size * torch.randn(shape, generator=torch.Generator().manual_seed(seed)), **settings
    )


def picture(i):
    return Image.effect_noise((60 + 20 * i, 70), 80).convert("RGB")


def batches(vlm):
    """Prompts of every kind in one batch, and each alone."""
    images = [picture(0), None, picture(1), None] if vlm.sees_images else [None] * 4
    pairs = list(zip(TEXTS, images, strict=True))
    return [pairs, *([pair] for pair in pairs)]


@torch.inference_mode()
def logits(vlm, model, pairs):
    """Of every real token."""
    inputs = vlm.inputs(*zip(*pairs, strict=True))
    found = model(**inputs, position_ids=vlm.positions(inputs), use_cache=False).logits
    return found[inputs["attention_mask"].bool()]


def difference(a, b):
    return float((a - b).abs().max())


def auto(vlm):
    return AutoModelForImageTextToText if vlm.sees_images else AutoModelForCausalLM


@pytest.mark.parametrize("name", BAKED)
def test_a_baked_model_does_what_the_hook_does(make, name, tmp_path):
    vlm = make(name)
    edit = an_edit(vlm)
    bake(vlm, edit, tmp_path / "baked")
    baked = auto(vlm).from_pretrained(tmp_path / "baked").eval()
    text = baked.config.get_text_config()
    assert (text.model_type, text.mlp_bias) == ("llama", True)
    for pairs in batches(vlm):
        with apply(vlm, edit):
            hooked = logits(vlm, vlm.model, pairs)
        assert difference(hooked, logits(vlm, baked, pairs)) < 1e-4
        assert difference(hooked, logits(vlm, vlm.model, pairs)) > 0.1


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_tied_or_not_the_head_stays_what_it_is(processor, tmp_path, outer, inner):
    config = copy.deepcopy(build_model(TINY, processor, 0).config)
    config.text_config = decoder("qwen2", processor.tokenizer, tie_word_embeddings=inner)
    config.tie_word_embeddings = outer
    shake(LlavaForConditionalGeneration(config)).save_pretrained(tmp_path / "source")
    processor.save_pretrained(tmp_path / "source")
    vlm = load_vlm(tmp_path / "source")
    edit, pairs = an_edit(vlm), batches(vlm)[0]
    bake(vlm, edit, tmp_path / "baked")
    baked = auto(vlm).from_pretrained(tmp_path / "baked").eval()
    with apply(vlm, edit):
        assert difference(logits(vlm, vlm.model, pairs), logits(vlm, baked, pairs)) < 1e-4


@pytest.mark.parametrize("name", BAKED)
def test_generation_is_identical(make, name, tmp_path):
    vlm = make(name)
    edit = an_edit(vlm)
    bake(vlm, edit, tmp_path / "baked")
    baked = auto(vlm).from_pretrained(tmp_path / "baked").eval()
    for pairs in batches(vlm):
        inputs = vlm.inputs(*zip(*pairs, strict=True))
        with apply(vlm, edit):
            hooked = vlm.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert torch.equal(hooked, baked.generate(**inputs, max_new_tokens=12, do_sample=False))


@pytest.mark.parametrize("name", BAKED)
def test_the_workbook_loads_it_as_any_model(make, name, tmp_path, requests):
    vlm = make(name)
    edit = an_edit(vlm)
    bake(vlm, edit, tmp_path / "baked")
    baked = load_vlm(tmp_path / "baked")
    assert baked.fingerprint != vlm.fingerprint
    images = ("own", "none") if vlm.sees_images else ("none",)
    pairs = [(sample, image) for sample in requests[:4] for image in images]
    hooked = first_logits(vlm, [Trial(s, image, edit) for s, image in pairs])
    assert difference(hooked, first_logits(baked, [Trial(s, i) for s, i in pairs])) < 1e-4


def test_it_loads_where_the_workbook_is_not(make, tmp_path):
    vlms = {name: make(name) for name in ("llava", "llava-next")}
    edits = {name: an_edit(vlm) for name, vlm in vlms.items()}
    for name, vlm in vlms.items():
        bake(vlm, edits[name], tmp_path / name)
    picture(1).save(tmp_path / "picture.png")
    subprocess.run(
        [sys.executable, "-c", PLAIN, "picture.png", "found.json", *vlms],
        check=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    found = json.loads((tmp_path / "found.json").read_text())
    for name, vlm in vlms.items():
        for kind, image in (("image", Image.open(tmp_path / "picture.png")), ("text", None)):
            inputs = vlm.inputs(["what colour is it"], [image])
            with apply(vlm, edits[name]), torch.inference_mode():
                hooked = vlm.model(**inputs).logits[0, -1]
                ids = vlm.model.generate(**inputs, max_new_tokens=8, do_sample=False)
            logits, plain = found[f"{name} {kind}"]
            assert difference(hooked, torch.tensor(logits)) < 1e-4
            assert ids[0, inputs["input_ids"].shape[1] :].tolist() == plain


def test_weights_keep_the_precision_they_had_and_biases_are_exact(fresh, tmp_path):
    with torch.no_grad():
        for parameter in fresh.model.parameters():
            parameter.copy_(parameter.half())
    edit = an_edit(fresh)
    bake(fresh, edit, tmp_path / "baked")
    with safe_open(tmp_path / "baked" / "model.safetensors", framework="pt") as stored:
        kinds = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    edited = {name for name in kinds if name.endswith("mlp.down_proj.bias")}
    assert len(edited) == len(fresh.layers)
    assert {kinds[name] for name in edited} == {"F32"}
    assert {kinds[name] for name in kinds.keys() - edited} == {"F16"}
    baked = AutoModelForImageTextToText.from_pretrained(tmp_path / "baked")
    assert baked.dtype == torch.float32
    pairs = batches(fresh)[0]
    with apply(fresh, edit):
        hooked = logits(fresh, fresh.model, pairs)
    assert difference(hooked, logits(fresh, baked.eval(), pairs)) < 1e-4


@pytest.mark.parametrize("name", ["llava", "qwen2"])
def test_baked_twice_both_edits_act(make, name, tmp_path):
    vlm = make(name)
    first, second = an_edit(vlm, 0), an_edit(vlm, 1)
    bake(vlm, first, tmp_path / "once")
    bake(load_vlm(tmp_path / "once"), second, tmp_path / "twice")
    twice = auto(vlm).from_pretrained(tmp_path / "twice").eval()
    pairs = batches(vlm)[0]
    with apply(vlm, Edit(first.add + second.add)):
        hooked = logits(vlm, vlm.model, pairs)
    assert difference(hooked, logits(vlm, twice, pairs)) < 1e-4
    assert "biases before" in (tmp_path / "twice" / "README.md").read_text()
    assert "biases before" not in (tmp_path / "once" / "README.md").read_text()


def test_an_edit_of_some_layers_leaves_the_others(tiny, tmp_path):
    values = torch.randn(len(tiny.layers), tiny.hidden_size)
    bake(tiny, CMRM(ShiftVectors(values), 0.3, layers=[1]), tmp_path / "baked")
    baked = load_vlm(tmp_path / "baked")
    biases = torch.stack([layer.mlp.down_proj.bias for layer in baked.layers])
    assert torch.equal(biases[1], -0.3 * values[1])
    assert not biases[0].any()
    assert not biases[2].any()


def refused(vlm, edit, tmp_path, *words, **more):
    place = tmp_path / "baked"
    with pytest.raises(InputError) as error:
        bake(vlm, edit, place, **more)
    for word in words:
        assert word in str(error.value)
    assert not list(tmp_path.iterdir())


def test_edits_that_no_bias_can_stand_for_are_refused(tiny, tmp_path):
    add = an_edit(tiny).add
    refused(tiny, Edit(add[None], sample_ids=("a",)), tmp_path, "sample-level")
    refused(tiny, Edit(add, tokens="last"), tmp_path, "'last'", "every token")
    refused(tiny, Edit(add[:2]), tmp_path, str(tuple(add.shape)))

    @dataclass(frozen=True, eq=False)
    class Later(Edit):
        heads: torch.Tensor | None = None

    refused(tiny, Later(add, heads=add), tmp_path, "'heads'")
    out = torch.zeros_like(add)[:, None]
    out[..., 0] = 1
    refused(tiny, Edit(add, project=out), tmp_path, "'project'")
    refused(tiny, Edit(add, place="mlp"), tmp_path, "'mlp'")
    refused(tiny, Edit(add, place="heads"), tmp_path, "'heads'")
    bake(tiny, Later(add), tmp_path / "baked")


def alone(kind, config, tokenizer):
    return wrap(kind(config(**text_config(tokenizer, head_dim=16))), tokenizer, name="it")


@pytest.mark.parametrize(
    ("kind", "config", "name"),
    [(Qwen3ForCausalLM, Qwen3Config, "qwen3"), (GemmaForCausalLM, GemmaConfig, "gemma")],
)
def test_other_decoders_are_refused_by_name(processor, tmp_path, kind, config, name):
    vlm = alone(kind, config, processor.tokenizer)
    refused(vlm, an_edit(vlm), tmp_path, f"{name} ", "cannot be baked")


def test_qwen_vl_is_refused_by_name(families, tmp_path):
    vlm = families["qwen2.5-vl"]
    refused(vlm, an_edit(vlm), tmp_path, "qwen2_5_vl (decoder: qwen2_5_vl_text)")


def test_a_llava_over_another_decoder_is_refused(processor, tmp_path):
    config = copy.deepcopy(build_model(TINY, processor, 0).config)
    config.text_config = Qwen3Config(**text_config(processor.tokenizer, head_dim=16))
    vlm = wrap(LlavaForConditionalGeneration(config), processor, name="it")
    refused(vlm, an_edit(vlm), tmp_path, "llava (decoder: qwen3)")


@pytest.mark.parametrize(
    ("kind", "window"),
    [
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ],
)
def test_sliding_windows_are_refused(processor, tmp_path, kind, window):
    made = {"mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM}[kind]
    config = decoder(kind, processor.tokenizer, **window)
    vlm = wrap(made(config), copy.deepcopy(processor.tokenizer), name="it")
    refused(vlm, an_edit(vlm), tmp_path, kind, "sliding window")


def test_quantised_weights_are_refused(fresh, tmp_path):
    weight = fresh.layers[0].mlp.up_proj.weight
    fresh.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.to(torch.int8), False)
    refused(fresh, an_edit(fresh), tmp_path, "quantised", "up_proj")
    fresh.layers[0].mlp.up_proj.weight = weight
    fresh.model.config.quantization_config = {"load_in_8bit": True}
    refused(fresh, an_edit(fresh), tmp_path, "quantised", "bits")


def test_offloaded_weights_are_refused(fresh, tmp_path):
    fresh.layers[1].to("meta")
    refused(fresh, an_edit(fresh), tmp_path, "offloaded", "layers.1.")


def test_weights_beside_the_plain_ones_are_refused(fresh, tmp_path):
    fresh.layers[0].mlp.adapter = torch.nn.Linear(2, 2)
    refused(fresh, an_edit(fresh), tmp_path, "not the weights of a plain llava", "adapter")


def test_vectors_of_another_model_are_refused_with_both_named(tiny, tmp_path):
    values = an_edit(tiny).add
    other = ShiftVectors(values, None, {"model": "0123456789abcdef"})
    edit = CMRM(other, 0.1)
    refused(tiny, edit, tmp_path, "0123456789abcdef", tiny.fingerprint, vectors=other)
    refused(tiny, edit, tmp_path, "not recorded", vectors=ShiftVectors(values))


def test_a_folder_with_something_in_it_is_left_alone(tiny, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        bake(tiny, an_edit(tiny), tmp_path)
    for file in (tmp_path / "note.txt", tmp_path / "note.txt" / "baked"):
        with pytest.raises(InputError, match=r"note\.txt is a file"):
            bake(tiny, an_edit(tiny), file)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    bake(tiny, an_edit(tiny), tmp_path / "empty")
    assert load_vlm(tmp_path / "empty")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(tiny, tmp_path, monkeypatch, error):
    def full(*_args, **_more):
        raise error

    monkeypatch.setattr(type(tiny.processor), "save_pretrained", full)
    wanted = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted):
        bake(tiny, an_edit(tiny), tmp_path / "deep" / "baked")
    assert not list((tmp_path / "deep").iterdir())


def test_a_killed_bake_is_told_of(tiny, tmp_path):
    (tmp_path / "baked.part").mkdir()
    with pytest.raises(InputError, match=r"baked\.part"):
        bake(tiny, an_edit(tiny), tmp_path / "baked")
    assert (tmp_path / "baked.part").is_dir()


def test_the_model_that_was_baked_is_as_it_was(fresh, tmp_path):
    before = {name: value.clone() for name, value in fresh.model.state_dict().items()}
    config = fresh.model.config.to_dict()
    bake(fresh, an_edit(fresh), tmp_path / "baked")
    assert fresh.model.config.to_dict() == config
    after = fresh.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def qwen_tokenizer():
    letters = pre_tokenizers.ByteLevel.alphabet()
    return Qwen2Tokenizer({letter: i for i, letter in enumerate(sorted(letters))}, [])


def test_a_tokenizer_of_qwen_reads_the_same_in_a_llama_folder(tmp_path):
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = Qwen2Config(**text_config(tokenizer))
    vlm = wrap(with_biases(shake(Qwen2ForCausalLM(config))), tokenizer, name="qwen")
    bake(vlm, an_edit(vlm), tmp_path / "baked")
    text = "It's  12 o'clock — naïve?"
    ids = vlm.tokenizer(text)["input_ids"]
    assert load_vlm(tmp_path / "baked").tokenizer(text)["input_ids"] == ids


def test_a_tokenizer_that_reads_otherwise_when_saved_is_refused(tiny, tmp_path, monkeypatch):
    cut = PreTrainedTokenizerFast.__call__

    def other(self, text, **more):
        found = cut(self, text, **more)
        if "baked" in self.name_or_path:
            found["input_ids"] = found["input_ids"][1:]
        return found

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", other)
    refused(tiny, an_edit(tiny), tmp_path, "read otherwise")


@pytest.fixture(scope="module")
def anchors(tmp_path_factory):
    path = tmp_path_factory.mktemp("anchors") / "anchors.jsonl"
    rows = [{"id": str(i), "query": text, "kind": "harmful"} for i, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cmrm(*arguments):
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def test_extract_and_bake_round_trip(family_folders, anchors, tmp_path, requests):
    folder, vectors, out = family_folders["llava"], tmp_path / "v.safetensors", tmp_path / "baked"
    made = cmrm("extract", "--model", folder, "--anchors", anchors, "--out", vectors)
    assert made.exit_code == 0, made.output
    made = cmrm("bake", vectors, "--alpha", 0.7, "--out", out, "--model", folder)
    assert made.exit_code == 0, made.output
    vlm, baked = load_vlm(folder), load_vlm(out)
    edit = CMRM(ShiftVectors.load(vectors), 0.7)
    pairs = [(sample, image) for sample in requests[:4] for image in ("own", "none")]
    hooked = first_logits(vlm, [Trial(s, image, edit) for s, image in pairs])
    found = first_logits(baked, [Trial(s, image) for s, image in pairs])
    assert difference(hooked, found) < 1e-4
    assert difference(found, first_logits(vlm, [Trial(s, i) for s, i in pairs])) > 1e-2
    card = (out / "README.md").read_text()
    provenance = ShiftVectors.load(vectors).provenance
    for word in ("CMRM dataset", "| alpha | 0.7 |", "without an image", *provenance.values()):
        assert word in card
    assert str(tmp_path) not in card
    assert not [path for path in out.iterdir() if str(family_folders["llava"]) in _text(path)]


def _text(path):
    return path.read_bytes().decode("utf-8", "ignore")


def test_the_command_refuses_in_one_line(family_folders, anchors, tmp_path):
    folder, vectors = family_folders["llava"], tmp_path / "v.safetensors"
    cmrm("extract", "--model", folder, "--anchors", anchors, "--out", vectors)
    made = cmrm("bake", vectors, "--alpha", 0.7, "--out", tmp_path / "baked")  # the organism
    assert made.exit_code == 2
    assert made.output.count("\n") == 1
    for fingerprint in (load_vlm(folder).fingerprint, load_vlm("organism").fingerprint):
        assert fingerprint in made.output
    each = ["--level", "sample"]
    cmrm("extract", "--model", folder, "--anchors", anchors, "--out", vectors, *each)
    made = cmrm("bake", vectors, "--alpha", 0.7, "--out", tmp_path / "baked", "--model", folder)
    assert (made.exit_code, "sample-level" in made.output) == (2, True)
    made = cmrm("bake", tmp_path / "none", "--alpha", 1, "--out", tmp_path / "baked")
    assert (made.exit_code, "none" in made.output) == (2, True)
    assert not (tmp_path / "baked").exists()


def test_the_organism_bakes(tmp_path, requests):
    vlm = load_vlm("organism")
    vectors = extract_shift(vlm, requests)
    edit = CMRM(vectors, 0.2)
    bake(vlm, edit, tmp_path / "baked", vectors=vectors)
    baked = AutoModelForImageTextToText.from_pretrained(tmp_path / "baked").eval()
    pairs = [(s.prompt, s.load_image() if i % 2 else None) for i, s in enumerate(requests)]
    with apply(vlm, edit):
        hooked = logits(vlm, vlm.model, pairs)
    assert difference(hooked, logits(vlm, baked, pairs)) < 1e-4


def test_the_page_shows_what_was_measured():
    results = json.loads((ROOT / "benchmarks" / "baking.json").read_text())
    page = (ROOT / "docs" / "baking.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- baking -->\n")[2].partition("<!-- /baking -->")[0]
    for row in results["effect"]:
        assert f"({row['hits']:.0f}/{row['n']:.0f})" in shown
    assert f"Alpha {results['alpha']:g}." in shown
    assert f"differ in {results['differ']} of {results['responses']} responses" in shown
