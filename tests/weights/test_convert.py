import json
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from cmrm_utils import InputError, Sample, Trial, generate, load_vlm
from cmrm_utils.cli.main import cli
from cmrm_utils.weights.convert import convert

WORDS = 300
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ORIGINAL = {
    **TEXT,
    "model_type": "share4v",
    "architectures": ["Share4VLlamaForCausalLM"],
    "mm_hidden_size": 24,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "somebody/own-tower",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 24,
}


def language_weights():
    d, kv, wide = 32, 16, 48
    yield "model.embed_tokens.weight", (WORDS, d)
    for i in range(TEXT["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for part, shape in {"q": (d, d), "k": (kv, d), "v": (kv, d), "o": (d, d)}.items():
            yield f"{at}.self_attn.{part}_proj.weight", shape
        for part, shape in {"gate": (wide, d), "up": (wide, d), "down": (d, wide)}.items():
            yield f"{at}.mlp.{part}_proj.weight", shape
        yield f"{at}.input_layernorm.weight", (d,)
        yield f"{at}.post_attention_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)
    yield "lm_head.weight", (WORDS, d)
    for part, shape in {"0": (d, 24), "2": (d, d)}.items():
        yield f"model.mm_projector.{part}.weight", shape
        yield f"model.mm_projector.{part}.bias", (d,)


def tower_weights():
    d, wide = 24, 40
    yield "embeddings.class_embedding", (d,)
    yield "embeddings.patch_embedding.weight", (d, 3, 14, 14)
    yield "embeddings.position_embedding.weight", (5, d)
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(TOWER["num_hidden_layers"]):
        at = f"encoder.layers.{i}"
        linear = {f"self_attn.{p}_proj": (d, d) for p in ("k", "v", "q", "out")}
        for part, shape in {**linear, "mlp.fc1": (wide, d), "mlp.fc2": (d, wide)}.items():
            yield f"{at}.{part}.weight", shape
            yield f"{at}.{part}.bias", (shape[0],)
        norms += [f"{at}.layer_norm1", f"{at}.layer_norm2"]
    for norm in norms:
        yield f"{norm}.weight", (d,)
        yield f"{norm}.bias", (d,)


def random_weights(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) / max(1, shape[-1]) ** 0.5 + (len(shape) == 1)
        for name, shape in shapes
    }


def layer_norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def attention(q, k, v, heads, mask=None):
    """``(tokens, width)`` each, keys and values perhaps of fewer heads."""
    size = q.shape[-1] // heads
    q, k, v = (x.view(len(x), -1, size).transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // len(x), 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / size**0.5
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def see(w, pixels):
    """CLIP's tower: the patches after all layers but the last, without the class token."""
    patches = F.conv2d(pixels[None], w["embeddings.patch_embedding.weight"], stride=14)[0]
    x = torch.cat([w["embeddings.class_embedding"][None], patches.flatten(1).T])
    x = layer_norm(w, "pre_layrnorm", x + w["embeddings.position_embedding.weight"])
    for i in range(TOWER["num_hidden_layers"] - 1):

        def linear(name, x, at=f"encoder.layers.{i}"):
            return F.linear(x, w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"])

        y = layer_norm(w, f"encoder.layers.{i}.layer_norm1", x)
        q, k, v = (linear(f"self_attn.{part}_proj", y) for part in "qkv")
        x = x + linear("self_attn.out_proj", attention(q, k, v, 2))
        y = linear("mlp.fc1", layer_norm(w, f"encoder.layers.{i}.layer_norm2", x))
        x = x + linear("mlp.fc2", y * torch.sigmoid(1.702 * y))
    return x[1:]


def project(w, seen):
    first = F.linear(seen, w["model.mm_projector.0.weight"], w["model.mm_projector.0.bias"])
    last = "model.mm_projector.2"
    return F.linear(F.gelu(first), w[f"{last}.weight"], w[f"{last}.bias"])


def rms_norm(w, name, x):
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * w[f"{name}.weight"]


def rotated(x, heads):
    size = x.shape[-1] // heads
    angles = torch.outer(
        torch.arange(len(x)).float(), 5000.0 ** (-torch.arange(0, size, 2).float() / size)
    )
    real, imaginary = x.view(len(x), heads, 2, size // 2).unbind(2)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    turned = [real * cos - imaginary * sin, imaginary * cos + real * sin]
    return torch.stack(turned, 2).flatten(1)


def speak(w, x):
    """Llama over embeddings ``(tokens, width)``, to logits of the original vocabulary."""
    mask = torch.full((len(x), len(x)), float("-inf")).triu(1)
    for i in range(TEXT["num_hidden_layers"]):
        at = f"model.layers.{i}"
        y = rms_norm(w, f"{at}.input_layernorm", x)
        q, k, v = (F.linear(y, w[f"{at}.self_attn.{p}_proj.weight"]) for p in "qkv")
        heard = attention(rotated(q, 4), rotated(k, 2), v, 4, mask)
        x = x + F.linear(heard, w[f"{at}.self_attn.o_proj.weight"])
        y = rms_norm(w, f"{at}.post_attention_layernorm", x)
        gate, up = (F.linear(y, w[f"{at}.mlp.{p}_proj.weight"]) for p in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, w[f"{at}.mlp.down_proj.weight"])
    return F.linear(rms_norm(w, "model.norm", x), w["lm_head.weight"])


@pytest.fixture(scope="module")
def weights():
    return random_weights(language_weights(), 0), random_weights(tower_weights(), 1)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A SentencePiece tokenizer.model, the only tokenizer that the originals have."""
    folder = tmp_path_factory.mktemp("words")
    text = ["USER: why is the lamp red? ASSISTANT: because it is", "a quick brown fox jumps over"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=WORDS,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def save_sharded(weights, folder, name):
    """Two shards and their index, in either format of weights."""
    stem, _, kind = name.partition(".")
    names = list(weights)
    half = len(names) // 2
    placed = {}
    for i, part in enumerate((names[:half], names[half:]), start=1):
        file = f"{stem}-{i:05d}-of-00002.{kind}"
        save = torch.save if kind == "bin" else save_file
        save({each: weights[each] for each in part}, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": placed}))


def write_tower(folder, weights, **more):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TOWER))
    named = {f"vision_model.{name}": value for name, value in weights.items()}
    # as old files have it: a buffer that is computed nowadays
    named["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save({**named, **more}, folder / "pytorch_model.bin")
    return folder


def write_original(folder, weights, words, kind="model.safetensors", **settings):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**ORIGINAL, **settings}))
    shutil.copy(words, folder / "tokenizer.model")
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **marks}))
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_sharded({**weights, **buffers}, folder, kind)
    return folder


@pytest.fixture(scope="module")
def sources(weights, words, tmp_path_factory):
    """ShareGPT4V's layout in safetensors, VLGuard's in .bin, and a tower of its own."""
    place = tmp_path_factory.mktemp("originals")
    language, tower = weights
    write_tower(place / "tower", tower)
    write_original(place / "share4v", language, words)
    write_original(
        place / "vlguard", language, words, "pytorch_model.bin", model_type="llava_llama"
    )
    return place


@pytest.fixture(scope="module")
def converted(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "share4v"
    convert(sources / "share4v", out, tower=sources / "tower")
    return out


@pytest.fixture
def copies(sources, tmp_path):
    """The originals, to be spoilt."""
    shutil.copytree(sources, tmp_path / "originals")
    return tmp_path / "originals"


def image():
    pixels = torch.randint(0, 256, (28, 28, 3), generator=torch.Generator().manual_seed(3))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def logits_of(folder, prompt, picture):
    """By transformers alone: ids and logits of a prompt."""
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    pictures = {"images": picture} if picture else {}
    made = processor(text=prompt, **pictures, return_tensors="pt")
    with torch.inference_mode():
        return made, model(**made).logits[0]


def check_equal(folder, weights):
    language, tower = weights
    made, logits = logits_of(folder, "USER: <image>\nwhy is it red? ASSISTANT:", image())
    ids = made["input_ids"][0]
    places = ids == WORDS
    assert places.sum() == 4
    embedded = language["model.embed_tokens.weight"][ids.where(~places, 0)]
    embedded[places] = project(language, see(tower, made["pixel_values"][0]))
    torch.testing.assert_close(logits[:, :WORDS], speak(language, embedded), rtol=1e-4, atol=1e-4)
    made, logits = logits_of(folder, "USER: why is it red? ASSISTANT:", None)
    embedded = language["model.embed_tokens.weight"][made["input_ids"][0]]
    torch.testing.assert_close(logits[:, :WORDS], speak(language, embedded), rtol=1e-4, atol=1e-4)
    return logits


def test_logits_are_those_of_the_same_weights_in_plain_torch(converted, weights):
    check_equal(converted, weights)


def test_bin_files_convert_alike(sources, converted, weights, tmp_path):
    convert(sources / "vlguard", tmp_path / "out", tower=sources / "tower")
    check_equal(tmp_path / "out", weights)
    assert load_vlm(tmp_path / "out").fingerprint == load_vlm(converted).fingerprint


def test_a_checkpoints_own_tower_comes_first(weights, words, sources, tmp_path):
    """Of --tower, only the configuration is taken then."""
    language, _ = weights
    tuned = random_weights(tower_weights(), 5)
    inner = {f"model.vision_tower.vision_tower.vision_model.{n}": v for n, v in tuned.items()}
    write_original(tmp_path / "own", {**language, **inner}, words)
    convert(tmp_path / "own", tmp_path / "out", tower=sources / "tower")
    check_equal(tmp_path / "out", (language, tuned))


def test_full_clip_as_the_tower(weights, sources, tmp_path):
    """Its text half is left out, its configuration lies within a larger one."""
    text = {"text_model.final_layer_norm.bias": torch.ones(2), "logit_scale": torch.tensor(1.0)}
    folder = write_tower(tmp_path / "clip", weights[1], **text)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": TOWER}))
    convert(sources / "share4v", tmp_path / "out", tower=folder)
    check_equal(tmp_path / "out", weights)


def test_new_tokens_follow_the_vocabulary_and_are_never_the_likeliest(converted, weights):
    logits = check_equal(converted, weights)
    assert logits.shape[1] == 320  # 302 filled up to a multiple of 64
    assert torch.equal(logits.argmax(-1), logits[:, :WORDS].argmax(-1))
    mean = logits[:, :WORDS].mean(-1, keepdim=True).expand(-1, 20)
    torch.testing.assert_close(logits[:, WORDS:], mean, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [300, 301]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (301, 1, 2)


def test_the_layout_is_that_of_the_hub(converted):
    index = json.loads((converted / "model.safetensors.index.json").read_text())["weight_map"]
    stored = {
        name: value
        for file in set(index.values())
        for name, value in load_file(converted / file).items()
    }
    assert set(stored) == set(index)
    for name in (
        "language_model.model.layers.1.mlp.down_proj.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_2.bias",
        "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
    ):
        assert name in stored
    config = json.loads((converted / "config.json").read_text())
    assert config["image_token_index"] == WORDS
    assert config["vision_feature_layer"] == -2
    assert config["text_config"]["vocab_size"] == 320


def test_runs_in_the_workbook(converted):
    vlm = load_vlm(converted, system="vicuna", pad_to_square=True)
    assert vlm.prompt_text("Why?", image=True).endswith("USER: <image>\nWhy? ASSISTANT:")
    trials = [Trial(Sample("a", "why?", image=image())), Trial(Sample("b", "a fox?"), "none")]
    together = generate(vlm, trials, max_new_tokens=4)
    assert together == [generate(vlm, [trial], max_new_tokens=4)[0] for trial in trials]


def spoil(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model_type": "mpt"}, "model_type 'mpt'"),
        ({"text_config": {}}, "transformers' layout already"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature"),
        ({"num_hidden_layers": 3}, r"9 weights are missing, language_model\.model\.layers\.2\."),
        ({"hidden_size": 48}, r"model\.embed_tokens\.weight is \(300, 32\), not \(300, 48\)"),
    ],
)
def test_refuses_what_it_does_not_know_by_name(copies, tmp_path, settings, complaint):
    spoil(copies / "share4v", **settings)
    with pytest.raises(InputError, match=complaint):
        convert(copies / "share4v", tmp_path / "out", tower=copies / "tower")
    assert not (tmp_path / "out").exists()


def test_refuses_unknown_missing_and_doubled_weights(weights, words, sources, tmp_path):
    language, _ = weights
    more = {**language, "model.q_former.weight": torch.ones(2)}
    less = {name: value for name, value in language.items() if name != "lm_head.weight"}
    write_original(tmp_path / "more", more, words)
    write_original(tmp_path / "less", less, words)
    with pytest.raises(InputError, match=r"safetensors: unknown weight model\.q_former\.weight"):
        convert(tmp_path / "more", tmp_path / "out", tower=sources / "tower")
    with pytest.raises(InputError, match=r"1 weights are missing, language_model\.lm_head\.weight"):
        convert(tmp_path / "less", tmp_path / "out", tower=sources / "tower")
    first = tmp_path / "more" / "model-00001-of-00002.safetensors"
    shutil.copy(first, tmp_path / "more" / "model-00002-of-00002.safetensors")
    with pytest.raises(InputError, match=f"is in {first.name} too"):
        convert(tmp_path / "more", tmp_path / "out", tower=sources / "tower")
    assert not (tmp_path / "out").exists()


def test_refuses_missing_and_torn_files(copies, tmp_path):
    shard = copies / "share4v" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{shard.name}: not readable"):
        convert(copies / "share4v", tmp_path / "out", tower=copies / "tower")
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        convert(copies / "share4v", tmp_path / "out", tower=copies / "tower")
    (copies / "vlguard" / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.model"):
        convert(copies / "vlguard", tmp_path / "out", tower=copies / "tower")
    with pytest.raises(InputError, match="not a folder, and no download"):
        convert("nobody/no-such-model", tmp_path / "out", tower=copies / "tower")
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        convert(copies / "nowhere", tmp_path / "out", tower=copies / "tower")
    (copies / "vlguard" / "config.json").unlink()
    (copies / "vlguard" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="merge the LoRA adapter"):
        convert(copies / "vlguard", tmp_path / "out", tower=copies / "tower")


class Surprise:
    def __reduce__(self):
        return (open, ("surprise.txt", "w"))


def test_bin_files_run_no_code(copies, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shard = copies / "vlguard" / "pytorch_model-00001-of-00002.bin"
    torch.save({"model.norm.weight": Surprise()}, shard)
    with pytest.raises(InputError, match=f"{shard.name}: not readable"):
        convert(copies / "vlguard", tmp_path / "out", tower=copies / "tower")
    assert not (tmp_path / "surprise.txt").exists()


def test_refuses_a_tokenizer_whose_ids_do_not_fit(copies, tmp_path):
    folder = copies / "share4v"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="<image> at 301"):
        convert(folder, tmp_path / "out", tower=copies / "tower")


def test_out_must_be_empty(sources, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="not empty"):
        convert(sources / "share4v", tmp_path, tower=sources / "tower")


@pytest.mark.parametrize("out", ["mine.txt", "mine.txt/out"])
def test_out_must_be_no_file(sources, tmp_path, out):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=r"mine\.txt is a file"):
        convert(sources / "share4v", tmp_path / out, tower=sources / "tower")
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_command(sources, tmp_path):
    out = tmp_path / "out"
    tower = ["--tower", str(sources / "tower")]
    done = CliRunner().invoke(cli, ["convert", str(sources / "share4v"), str(out), *tower])
    assert done.exit_code == 0, done.output
    assert load_vlm(out).sees_images
    done = CliRunner().invoke(cli, ["convert", str(sources / "tower"), str(out / "x"), *tower])
    assert done.exit_code == 2
    assert "model_type 'clip_vision_model'" in done.stderr


MEASURE = """
import re, sys, threading, time
from pathlib import Path
from cmrm_utils.weights import convert as module
from cmrm_utils.weights.convert import convert

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def watch():
    while True:
        seen.append(own())
        time.sleep(0.001)

module.LARGEST_FILE = 32 << 20
seen = [own()]
threading.Thread(target=watch, daemon=True).start()
convert(Path(sys.argv[1]), Path(sys.argv[2]), tower=Path(sys.argv[3]))
print((max(seen) - seen[0]) >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_memory_does_not_grow_with_the_checkpoint(words, sources, tmp_path, kind):
    """200 MB in shards of 35 MB, written at 32 MB: beside mapped files, some 100 MB at most."""
    wide = 1 << 18
    shapes = [
        (name, tuple(wide if n == 48 else n for n in shape)) for name, shape in language_weights()
    ]
    name = "pytorch_model.bin" if kind == "bin" else "model.safetensors"
    folder = write_original(tmp_path / "large", {}, words, name, intermediate_size=wide)
    placed = {}
    for i, (weight, shape) in enumerate(shapes):
        file = f"{i}.{kind}"
        (torch.save if kind == "bin" else save_file)({weight: torch.ones(shape)}, folder / file)
        placed[weight] = file
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": placed}))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, tmp_path / "out", sources / "tower"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sum(path.stat().st_size for path in folder.iterdir()) > 190 << 20
    assert int(done.stdout.split()[-1]) < 100
