"""Tiny random checkpoints of each model family, every vision tower deeper than its decoder."""

import copy
import json

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from cmrm_utils.organism.recipe import Recipe, build_model
from cmrm_utils.prompts import CHAT_TEMPLATE

TINY = Recipe("tiny", stands_for="nothing", hidden=32, layers=3, heads=2)
FAMILIES = ("llava", "llava-next", "qwen2.5-vl", "vicuna")
SEEING = FAMILIES[:3]

QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n"
    "{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def shake(model, seed=0):
    """Weights so large that states matter: at the default ones every edit and image drowns."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model


def sizes(hidden=32, intermediate=64, layers=3, heads=2):
    """The settings that make a transformer large or small, tiny by default."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def vision_config(*size, image=48, patch=12, **more):
    """A CLIP tower; ``size`` as for :func:`sizes`."""
    return CLIPVisionConfig(**sizes(*size), image_size=image, patch_size=patch, **more)


def text_config(tokenizer, **more):
    """A decoder's settings, of tiny :func:`sizes` but for ``more``."""
    return {
        **sizes(),
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **more,
    }


def llava(processor, folder):
    shake(build_model(TINY, processor, 0)).save_pretrained(folder)
    processor.save_pretrained(folder)


def llava_next(processor, folder):
    """Pictures of 12 patches a side, as a whole and in up to two by two tiles."""
    tokenizer = processor.tokenizer
    tiles = [[48, 96], [96, 48], [96, 96]]
    config = LlavaNextConfig(
        vision_config=vision_config(32, 64, 5),
        text_config=LlamaConfig(**text_config(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=tiles,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    shake(LlavaNextForConditionalGeneration(config)).save_pretrained(folder)
    side = {"height": 48, "width": 48}
    LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 48}, crop_size=side, image_grid_pinpoints=tiles
        ),
        tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def qwen(processor, folder):
    """As its repositories are: a preprocessor_config.json, and sampling settings of its own."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    marks = "<|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>"
    tokenizer.add_special_tokens({"additional_special_tokens": marks.split()})
    tokenizer.eos_token = "<|im_end|>"
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in marks.split()}
    config = Qwen2_5_VLConfig(
        text_config=text_config(
            tokenizer,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 10000.0,
            },
        ),
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1, 3],
            "window_size": 56,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = shake(Qwen2_5_VLForConditionalGeneration(config))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.update(do_sample=True, temperature=1e-6, repetition_penalty=1.5)
    model.save_pretrained(folder)
    tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.save_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=16 * 28 * 28)
    settings = {**pictures.to_dict(), "processor_class": "Qwen2_5_VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def vicuna(processor, folder):
    """A language model whose tokenizer has neither a chat template nor a padding token."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    shake(LlamaForCausalLM(LlamaConfig(**text_config(tokenizer)))).save_pretrained(folder)
    tokenizer.chat_template = tokenizer.pad_token = None
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)


def write_family(name, processor, folder):
    """The checkpoint folder of a family."""
    folder.mkdir(parents=True, exist_ok=True)
    {"llava": llava, "llava-next": llava_next, "qwen2.5-vl": qwen, "vicuna": vicuna}[name](
        processor, folder
    )
    return folder
