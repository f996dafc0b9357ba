"""``smollm2-llava`` as a plain LLaVA folder: its parts, merged at first use.

The parts: SmolLM2-135M-Instruct from the package registry, the frozen vision tower of ``organism``,
and a projector and a LoRA adapter of the language model, from the repository or trained on this
machine. Once they are merged, nothing treats the folder differently from a model of the hub.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from cmrm_utils.bundled.fetch import cached_folder, smollm2
from cmrm_utils.errors import InputError
from cmrm_utils.loading import quiet
from cmrm_utils.paths import CHECKPOINTS, bundled_folders

TOWER = CHECKPOINTS / "organism"

ROOM = 600_000_000
"""Bytes that a merged model needs on the disk."""

TOWER_SHA256 = "e0d62f01499767513c6b5998101505cfc8c2de7e18a3af5bedf3aa799f5ed107"
"""Of the file that holds the tower: another tower would not fit the projectors."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML as SmolLM2's, with images before the text and no system sentence of its own."""


def folder(name: str) -> Path:
    """The merged model's folder, made at first use.

    Raises:
        InputError: its language model cannot be fetched; the tower is not the one that the parts
            were trained with.
    """
    parts = bundled_folders()[name]
    digest = sha256()
    for file in sorted([*parts.glob("*.safetensors"), *parts.glob("adapter_config.json")]):
        digest.update(file.name.encode() + file.read_bytes())
    full = f"{name}-{digest.hexdigest()[:12]}"
    return cached_folder(full, lambda path: _merge(parts, path), ROOM)


def _merge(parts: Path, path: Path) -> None:
    if sha256((TOWER / "model.safetensors").read_bytes()).hexdigest() != TOWER_SHA256:
        name = parts.name
        raise InputError(f"{name}: the checkpoint of organism has changed, whose tower it needs")
    model, processor = skeleton(smollm2())
    projector = model.model.multi_modal_projector
    projector.load_state_dict(floats(parts / "projector.safetensors"))
    if (parts / "adapter_model.safetensors").is_file():
        _add_adapter(model, parts)
    with quiet():
        model.save_pretrained(path)
    processor.save_pretrained(path)
    if (card := parts / "README.md").is_file():
        (path / "README.md").write_bytes(card.read_bytes())


def _add_adapter(model: Any, parts: Path) -> None:
    """Add a LoRA adapter to the weights: ``W + scale * B A``.

    In float64, one rank after the other: a product of matrices adds in an order that depends on the
    machine, and one weight that rounds otherwise makes another model.
    """
    config = json.loads((parts / "adapter_config.json").read_text())
    weights = load_file(parts / "adapter_model.safetensors")
    for name, first in weights.items():
        if ".lora_A." not in name:
            continue
        module = model.get_submodule(name.removeprefix("base_model.model.").partition(".lora_A")[0])
        rows, columns = first.double(), weights[name.replace("lora_A", "lora_B")].double()
        added = torch.zeros_like(module.weight, dtype=torch.float64)
        for row, column in zip(rows, columns.T, strict=True):
            added += column[:, None] * row
        scale = config["lora_alpha"] / config["r"]
        module.weight.data = (module.weight.double() + scale * added).float()


def floats(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, in float32."""
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def skeleton(language_model: Path, tower: Path = TOWER) -> tuple[Any, LlavaProcessor]:
    """A LLaVA of a language model and a tower with a random projector, and its processor.

    Args:
        language_model: a Llama's folder.
        tower: the folder of a LLaVA whose vision tower and image processor are taken.

    Returns:
        A ``LlavaForConditionalGeneration`` in float32; draw its projector under a seed.
    """
    tokenizer = AutoTokenizer.from_pretrained(language_model, local_files_only=True)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<image>", special=True, normalized=False)]}
    )
    tokenizer.padding_side, tokenizer.chat_template = "left", None
    seen = json.loads((tower / "processor_config.json").read_text())
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(tower),
        tokenizer=tokenizer,
        patch_size=seen["patch_size"],
        vision_feature_select_strategy=seen["vision_feature_select_strategy"],
        num_additional_image_tokens=seen["num_additional_image_tokens"],
        chat_template=CHAT_TEMPLATE,
    )
    with quiet():
        text = LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows: Any = text.get_input_embeddings().weight
    rows.data[-1] = rows.data[:-1].double().mean(0)  # of <image>; else drawn at random
    text.config._name_or_path = ""  # a path of this machine
    seeing = LlavaConfig.from_pretrained(tower)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=seeing.vision_config,
        text_config=text.config,
        image_token_index=image,
        image_seq_length=seeing.image_seq_length,
        vision_feature_layer=seeing.vision_feature_layer,
        vision_feature_select_strategy=seeing.vision_feature_select_strategy,
        tie_word_embeddings=text.config.tie_word_embeddings,
        **special,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    prefix = "vision_tower."
    weights = floats(tower / "model.safetensors")
    model.model.vision_tower.load_state_dict(
        {k.partition(prefix)[2]: v for k, v in weights.items() if prefix in k}
    )
    for name, value in special.items():
        setattr(model.generation_config, name, value)
    return model.eval(), processor
