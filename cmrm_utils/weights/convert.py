"""Original LLaVA checkpoints (LLaVA-1.5, ShareGPT4V, VLGuard) into transformers' LLaVA layout.

The layout written is that of ``llava-hf/llava-1.5-*`` on the hub: ``language_model.model.*``,
``vision_tower.vision_model.*`` and ``multi_modal_projector.linear_*``. Everything is checked by
name and shape before a file is written; ``config.json`` is written last.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from cmrm_utils.errors import InputError
from cmrm_utils.prompts import CHAT_TEMPLATE
from cmrm_utils.store import check_free, write_json

MODEL_TYPES = ("llava", "llava_llama", "share4v")
"""The ``model_type`` of the originals."""


ADDED = ("<image>", "<pad>")
"""Tokens that follow the original vocabulary: 32000 and 32001 in LLaVA-1.5."""


ROWS = 64
"""The vocabulary is padded to a multiple of this, as in the hub's conversions: 32064."""


TEXT_FIELDS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "max_position_embeddings rms_norm_eps rope_theta rope_scaling hidden_act bos_token_id "
    "eos_token_id"
).split()
"""Settings of the original that the language model's configuration takes over."""


EXPECTED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "tie_word_embeddings": False,
}
"""Settings of the original for which the conversion is right; others are refused."""


INNER_TOWER = "model.vision_tower.vision_tower."
"""Prefix of the weights of an original's own vision tower."""


VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""Weights with a row for each token."""


UNUSED = re.compile(
    r".*\.rotary_emb\.inv_freq|.*\.embeddings\.position_ids"
    r"|text_model\..*|text_projection\.weight|visual_projection\.weight|logit_scale"
)
"""Weights that are left out: buffers that are computed, and the text half of CLIP."""


LARGEST_FILE = 1 << 30
"""Bytes that a file of weights holds at most, a larger weight apart."""


def convert(source: str | Path, out: Path, *, tower: str | Path) -> None:
    """Convert an original LLaVA checkpoint.

    Weights keep their dtype. Each row that the vocabulary gains is the mean of the original
    rows, so its logit is their mean logit and it is never the likeliest token.

    Args:
        source: a folder or a hub id, with safetensors, or ``.bin`` files that hold only tensors.
        out: the folder to make.
        tower: folder or hub id of the vision tower: its configuration, and its weights unless the
            checkpoint holds them itself. ShareGPT4V has a tower of its own: OpenAI's CLIP must not
            stand in for it.

    Raises:
        InputError: the source holds something that is not recognised; the message names it. ``out``
            is a file, or not empty.
    """
    check_free(out)
    folder, tower_folder = _folder(source), _folder(tower)
    original = _settings(folder)
    _check_settings(original, folder)
    vision = _vision_config(tower_folder)
    config = _config(original, vision)
    weights = _weights(folder, tower_folder, _expected(config, original))
    tokenizer = _tokenizer(folder, original["vocab_size"])
    out.mkdir(parents=True, exist_ok=True)
    _write_weights(weights, config.text_config.vocab_size, out)
    _processor(tower_folder, vision, tokenizer).save_pretrained(out)
    GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(out)
    config.save_pretrained(out)


def _folder(source: str | Path) -> Path:
    """A folder as it is; for a hub id, the folder that it is downloaded to."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise InputError(f"{source}: neither a folder nor a hub id")
    try:
        kinds = ["*.json", "*.model", "*.bin", "*.safetensors"]
        return Path(snapshot_download(str(source), allow_patterns=kinds))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source}: not a folder, and no download ({reason})") from error


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        adapter = (folder / "adapter_config.json").is_file()
        hint = "; merge the LoRA adapter into its base first" if adapter else ""
        raise InputError(f"{folder}: no readable config.json{hint}") from error


def _check_settings(original: Mapping[str, Any], folder: Path) -> None:
    kind = original.get("model_type")
    if kind not in MODEL_TYPES:
        raise InputError(
            f"{folder}: model_type {kind!r} is no original LLaVA; known: {', '.join(MODEL_TYPES)}"
        )
    if "text_config" in original:
        raise InputError(f"{folder} is in transformers' layout already")
    for name, wanted in EXPECTED.items():
        if original.get(name, wanted) != wanted:
            raise InputError(f"{folder}: {name} is {original[name]!r}, only {wanted!r} converts")
    needed = {*TEXT_FIELDS[:4], "vocab_size", "mm_hidden_size", "mm_vision_select_layer"}
    if missing := sorted(needed - set(original)):
        raise InputError(f"{folder}/config.json lacks {', '.join(missing)}")


def _vision_config(folder: Path) -> Any:
    settings = _settings(folder)
    settings = settings.get("vision_config", settings)
    if "patch_size" not in settings:
        raise InputError(f"{folder}/config.json: no CLIP vision tower (it has no patch_size)")
    return CLIPVisionConfig(**settings)


def _config(original: Mapping[str, Any], vision: Any) -> Any:
    vocabulary = original["vocab_size"]
    text = LlamaConfig(
        **{name: original[name] for name in TEXT_FIELDS if original.get(name) is not None},
        vocab_size=-(-(vocabulary + len(ADDED)) // ROWS) * ROWS,
        pad_token_id=vocabulary + ADDED.index("<pad>"),
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocabulary + ADDED.index("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=original["mm_vision_select_layer"],
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    config.pad_token_id = text.pad_token_id
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = original.get("torch_dtype")
    return config


def _expected(config: Any, original: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight by the name that it is written under, and the shape that it comes in."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    places = {
        "language_model.model": model.model.language_model,
        "language_model.lm_head": model.lm_head,
        "vision_tower.vision_model": model.model.vision_tower,
        "multi_modal_projector": model.model.multi_modal_projector,
    }
    shapes = {
        f"{place}.{name}": tuple(value.shape)
        for place, module in places.items()
        for name, value in module.state_dict().items()
    }
    unpadded = (original["vocab_size"], config.text_config.hidden_size)
    return shapes | dict.fromkeys(VOCABULARY, unpadded)


def _renamed(name: str, *, of_tower: bool) -> str | None:
    """The name that a weight is written under; None for one that is left out."""
    if UNUSED.fullmatch(name):
        return None
    if of_tower:
        return f"vision_tower.{name}"
    if name.startswith(INNER_TOWER):
        return f"vision_tower.{name.removeprefix(INNER_TOWER)}"
    for old, new in (("0", "linear_1"), ("2", "linear_2")):
        if name.startswith(prefix := f"model.mm_projector.{old}."):
            return f"multi_modal_projector.{new}.{name.removeprefix(prefix)}"
    return f"language_model.{name}"


def _weights(
    folder: Path, tower: Path, expected: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The weights by the names that they are written under, mapped into memory.

    Raises:
        InputError: a weight is missing, unknown, there twice or of another shape.
    """
    files = {path: _tensors(path) for path in _weight_files(folder)}
    if not any(name.startswith(INNER_TOWER) for tensors in files.values() for name in tensors):
        files |= {path: _tensors(path) for path in _weight_files(tower)}
    weights: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for path, tensors in files.items():
        for name, tensor in tensors.items():
            new = _renamed(name, of_tower=path.parent == tower)
            if new is None:
                continue
            if new not in expected:
                raise InputError(f"{path}: unknown weight {name}")
            if new in weights:
                raise InputError(f"{path}: {name} is in {origins[new]} too")
            if (shape := tuple(tensor.shape)) != expected[new]:
                raise InputError(f"{path}: {name} is {shape}, not {expected[new]}")
            weights[new], origins[new] = tensor, path.name
    if missing := [name for name in expected if name not in weights]:
        folders = " and ".join(sorted({str(path.parent) for path in files}))
        raise InputError(f"{folders}: {len(missing)} weights are missing, {missing[0]} first")
    return weights


def _weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint: those that its index lists, or its only one."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (index := folder / f"{name}.index.json").is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            for each in names:
                if not (folder / each).is_file():
                    raise InputError(f"{folder / each} is missing, but {index.name} lists it")
            return [folder / each for each in names]
        if (folder / name).is_file():
            return [folder / name]
    raise InputError(f"{folder}: no weights (model.safetensors or pytorch_model.bin)")


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped into memory and read when they are used."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, ValueError) as error:
        raise InputError(f"{path}: not readable ({str(error).splitlines()[0]})") from error


def _widened(rows: Tensor, size: int) -> Tensor:
    """A matrix with one row a token, padded with the rows' mean to ``size`` rows."""
    mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
    return torch.cat([rows, mean.expand(size - len(rows), -1)])


def _write_weights(weights: dict[str, Tensor], vocabulary: int, out: Path) -> None:
    """Weights into safetensors files of about a GB each, and their index."""
    weights |= {name: _widened(weights[name], vocabulary) for name in VOCABULARY}
    split = split_state_dict_into_shards_factory(
        weights,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=LARGEST_FILE,
    )
    for file, names in tqdm(split.filename_to_tensors.items(), unit="file", leave=False):
        held = {name: weights[name].contiguous() for name in names}
        save_file(held, out / file, {"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    write_json(out / "model.safetensors.index.json", index)


def _tokenizer(folder: Path, vocabulary: int) -> Any:
    """The original's tokenizer with the added tokens right after its vocabulary."""
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise InputError(f"{folder}: no tokenizer.model and no tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=LlamaConfig())
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: no readable tokenizer ({reason})") from error
    added = [AddedToken(token, special=True, normalized=False) for token in ADDED]
    tokenizer.add_tokens(added, special_tokens=True)
    for i, token in enumerate(ADDED):
        if (number := tokenizer.convert_tokens_to_ids(token)) != vocabulary + i:
            raise InputError(
                f"{folder}: the tokenizer has {token} at {number}, not right after the "
                f"{vocabulary} tokens of the vocabulary"
            )
    tokenizer.pad_token = "<pad>"
    tokenizer.padding_side = "left"
    return tokenizer


def _processor(folder: Path, vision: Any, tokenizer: Any) -> LlavaProcessor:
    """The tower's image processor, or CLIP's at the tower's size where the folder has none."""
    if (folder / "preprocessor_config.json").is_file():
        pictures = CLIPImageProcessorPil.from_pretrained(folder)
    else:
        pictures = CLIPImageProcessorPil(size=vision.image_size, crop_size=vision.image_size)
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
