"""Tiny random checkpoints of each model family, every vision tower deeper than its decoder."""

import copy
import json

import torch
import transformers as tf
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from cmrm_utils.organism.recipe import Recipe, build_model
from cmrm_utils.processors import _without_torchvision, without_video
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
    tokenizer._set_model_specific_special_tokens({"image_token": "<|image_pad|>"})
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


def marked(processor, *marks, **roles):
    """A copy of the tokenizer with further special tokens, some of them by their role."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    every = [*marks, *roles.values()]
    tokenizer.add_special_tokens({"additional_special_tokens": every})
    tokenizer._set_model_specific_special_tokens(roles)
    return tokenizer, {mark: tokenizer.convert_tokens_to_ids(mark) for mark in every}


def chat(image, turn="USER: ", end=" ", reply="ASSISTANT:", first=""):
    """A chat template that writes ``image`` for an image, before the text."""
    return (
        f"{first}{{% for m in messages %}}{turn}{{% for p in m['content'] %}}"
        f"{{% if p['type'] == 'image' %}}{image}{{% else %}}{{{{ p['text'] }}}}{{% endif %}}"
        f"{{% endfor %}}{end}{{% endfor %}}{{% if add_generation_prompt %}}{reply}{{% endif %}}"
    )


QWEN_MARKS = "<|im_start|> <|im_end|> <|vision_start|> <|vision_end|>".split()
QWEN_ROLES = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
SQUARE = {"height": 48, "width": 48}
TILES = [[48, 96], [96, 48], [96, 96]]
PIXTRAL_MARKS = "[IMG] [IMG_BREAK] [IMG_END] [INST] [/INST]".split()
PIXTRAL_CHAT = chat("[IMG]", "[INST]", "[/INST]", "", "<s>")


def siglip(**more):
    return {**sizes(32, 64, 5), "image_size": 48, "patch_size": 12, **more}


def rotary(*section, **more):
    """Positions by time, height and width, each with its part of a head."""
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": list(section),
        **more,
    }


def qwen_eyes(**more):
    """The vision tower that Qwen2-VL's successors have in common."""
    return {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        **more,
    }


def qwen_ids(ids):
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def qwen_like(processor, config, processor_class, text, vision, **pictures):
    tokenizer, ids = marked(processor, *QWEN_MARKS, **QWEN_ROLES)
    tokenizer.eos_token = "<|im_end|>"
    made = config(
        text_config=text_config(tokenizer, **text),
        vision_config=vision,
        tie_word_embeddings=False,
        **qwen_ids(ids),
    )
    reader = Qwen2VLImageProcessorPil(**pictures)
    return made, without_video(processor_class)(
        reader, tokenizer, video_processor=None, chat_template=QWEN_TEMPLATE
    )


def qwen2_vl(processor):
    eyes = {
        "depth": 4,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
    }
    return qwen_like(
        processor,
        tf.Qwen2VLConfig,
        tf.Qwen2VLProcessor,
        {"rope_parameters": rotary(2, 3, 3)},
        eyes,
        min_pixels=28 * 28,
        max_pixels=16 * 28 * 28,
    )


LARGER = {"shortest_edge": 32 * 32, "longest_edge": 16 * 32 * 32}


def qwen3_vl(processor):
    """The first layers are given features of the tower's own layers, too."""
    return qwen_like(
        processor,
        tf.Qwen3VLConfig,
        tf.Qwen3VLProcessor,
        {"rope_parameters": rotary(2, 3, 3), "head_dim": 16},
        qwen_eyes(patch_size=16, deepstack_visual_indexes=[0, 1], num_position_embeddings=16),
        patch_size=16,
        size=LARGER,
    )


def qwen3_5(processor):
    """Two layers of linear attention, one of full attention."""
    text = {
        "rope_parameters": rotary(1, 1, 0, partial_rotary_factor=0.25),
        "head_dim": 16,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
    }
    return qwen_like(
        processor,
        tf.Qwen3_5Config,
        tf.Qwen3VLProcessor,
        text,
        qwen_eyes(patch_size=16, num_position_embeddings=16),
        patch_size=16,
        size=LARGER,
    )


def llava_onevision(processor):
    tokenizer, ids = marked(processor, "<video>")
    config = tf.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **siglip(vision_use_head=False)},
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=ids["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=TILES,
        tie_word_embeddings=False,
    )
    return config, without_video(tf.LlavaOnevisionProcessor)(
        tf.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=TILES),
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat("<image>\n"),
    )


def vipllava(processor):
    """Features of several layers of the tower, side by side."""
    config = tf.VipLlavaConfig(
        vision_config=vision_config(32, 64, 5),
        text_config={"model_type": "llama", **text_config(processor.tokenizer)},
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layers=[-2, -3],
        tie_word_embeddings=False,
    )
    return config, processor


def idefics3(processor, name="Idefics3"):
    """Tiles of a picture by row and column, each in a frame, and the picture as a whole."""
    tiles = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    frames = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer, _ = marked(processor, *frames, *tiles)
    config = getattr(tf, f"{name}Config")(
        vision_config=siglip(),
        text_config={"model_type": "llama", **text_config(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    reader = getattr(tf, f"{name}ImageProcessorPil")(
        size={"longest_edge": 96}, max_image_size={"longest_edge": 48}
    )
    kind = getattr(tf, f"{name}Processor")
    video = {} if name == "Idefics3" else {"video_processor": None}
    return config, (without_video(kind) if video else kind)(
        reader,
        tokenizer,
        image_seq_len=4,
        chat_template=chat("<image>", end="<end_of_utterance>\n", first="<s>"),
        **video,
    )


def smolvlm(processor):
    return idefics3(processor, "SmolVLM")


def internvl(processor):
    roles = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer, ids = marked(processor, **roles)
    config = tf.InternVLConfig(
        vision_config={**siglip(), "image_size": [48, 48], "patch_size": [12, 12]},
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return config, without_video(tf.InternVLProcessor)(
        tf.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=2),
        tokenizer,
        image_seq_length=4,
        chat_template=chat("<IMG_CONTEXT>\n"),
    )


def gemma3(processor):
    """An image's tokens see each other both ways; two layers of three see a window alone."""
    roles = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer, ids = marked(processor, **roles)
    config = tf.Gemma3Config(
        text_config=text_config(
            tokenizer,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=16,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
        vision_config=siglip(vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
        tie_word_embeddings=False,
    )
    return config, tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size=SQUARE),
        tokenizer,
        image_seq_length=4,
        chat_template=chat("<start_of_image>", first="<s>"),
    )


def paligemma(processor):
    """A prompt's tokens all see each other; its processor reads none without an image."""
    tokenizer, _ = marked(processor, image_token="<image>")
    reader = tf.SiglipImageProcessorPil(size=SQUARE)
    reader.image_seq_length = 16
    config = tf.PaliGemmaConfig(
        vision_config=siglip(vision_use_head=False, projection_dim=32),
        text_config={
            "model_type": "gemma",
            **text_config(tokenizer, head_dim=16, num_key_value_heads=1),
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
    )
    return config, tf.PaliGemmaProcessor(reader, tokenizer, chat_template=chat("<image>"))


def pixtral_eyes(side):
    return {
        "model_type": "pixtral",
        **sizes(32, 64, 5),
        "image_size": side,
        "patch_size": 12,
        "head_dim": 16,
    }


def pixtral_reader(side):
    return tf.PixtralImageProcessorPil(
        size={"longest_edge": side}, patch_size={"height": 12, "width": 12}
    )


def pixtral_processor():
    kind = tf.PixtralProcessor
    return _without_torchvision(kind) if getattr(kind, "is_dummy", False) else kind


def mistral_text(tokenizer):
    own = {"model_type": "mistral", "head_dim": 16, "sliding_window": None}
    return {**text_config(tokenizer), **own}


def pixtral(processor):
    """LLaVA's model around another tower, whose processor ends each row of patches."""
    tokenizer, ids = marked(processor, *PIXTRAL_MARKS)
    config = LlavaConfig(
        vision_config=pixtral_eyes(48),
        text_config=mistral_text(tokenizer),
        image_token_index=ids["[IMG]"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    return config, pixtral_processor()(
        pixtral_reader(48), tokenizer, patch_size=12, chat_template=PIXTRAL_CHAT
    )


def mistral3(processor):
    tokenizer, ids = marked(processor, *PIXTRAL_MARKS)
    config = tf.Mistral3Config(
        vision_config=pixtral_eyes(96),
        text_config=mistral_text(tokenizer),
        image_token_index=ids["[IMG]"],
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return config, pixtral_processor()(
        pixtral_reader(96),
        tokenizer,
        patch_size=12,
        spatial_merge_size=2,
        chat_template=PIXTRAL_CHAT,
    )


def aya_vision(processor):
    tiles = ["TILE_GLOBAL", *(f"TILE_{i}" for i in range(1, 5))]
    marks = "<|START_OF_IMG|> <|END_OF_IMG|> <|IMG_PATCH|> <|IMG_LINE_BREAK|>".split()
    tokenizer, ids = marked(processor, *marks, *tiles)
    text = {"model_type": "cohere2", "head_dim": 16, "sliding_window": 16, "logit_scale": 1.0}
    config = tf.AyaVisionConfig(
        vision_config={"model_type": "siglip_vision_model", **siglip(vision_use_head=False)},
        text_config={**text_config(tokenizer), **text},
        image_token_index=ids["<|IMG_PATCH|>"],
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    reader = tf.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=2)
    return config, tf.AyaVisionProcessor(
        reader,
        tokenizer,
        patch_size=12,
        img_size=48,
        downsample_factor=2,
        chat_template=chat("<image>"),
    )


def glm4v(processor):
    roles = {"image_token": "<|image|>", "video_token": "<|video|>"}
    edges = [f"<|{edge}_of_{kind}|>" for kind in ("image", "video") for edge in ("begin", "end")]
    tokenizer, ids = marked(processor, *edges, **roles)
    config = tf.Glm4vConfig(
        text_config=text_config(
            tokenizer, rope_parameters=rotary(1, 1, 2, partial_rotary_factor=0.5)
        ),
        vision_config=qwen_eyes(image_size=56, patch_size=14),
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
        tie_word_embeddings=False,
    )
    reader = tf.Glm4vImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 2 * 16 * 28 * 28}
    )
    return config, without_video(tf.Glm4vProcessor)(
        reader,
        tokenizer,
        video_processor=None,
        chat_template=chat("<|begin_of_image|><|image|><|end_of_image|>"),
    )


def lfm2_vl(processor):
    """Layers of convolution between those of attention; its pictures need torchvision."""
    rows = [f"<|img_row_{r}_col_{c}|>" for r in range(1, 4) for c in range(1, 4)]
    frames = ["<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *rows]
    tokenizer, _ = marked(processor, *frames, image_token="<image>")
    text = {"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv"]}
    config = tf.Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            **sizes(32, 64, 5),
            "patch_size": 12,
            "num_patches": 64,
            "vision_use_head": False,
        },
        text_config={
            **text_config(tokenizer),
            **text,
            "block_auto_adjust_ff_dim": False,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    reader = tf.Lfm2VlImageProcessor(
        do_image_splitting=False,
        encoder_patch_size=12,
        min_image_tokens=4,
        max_image_tokens=16,
        max_num_patches=64,
        tile_size=48,
    )
    return config, tf.Lfm2VlProcessor(reader, tokenizer, chat_template=chat("<image>", first="<s>"))


def deepseek_vl(processor):
    tokenizer, _ = marked(processor, image_token="<image>")
    config = tf.DeepseekVLConfig(
        vision_config={"model_type": "siglip_vision_model", **siglip(vision_use_head=False)},
        text_config={"model_type": "llama", **text_config(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    reader = tf.DeepseekVLImageProcessorPil(size=SQUARE, min_size=12)
    return config, tf.DeepseekVLProcessor(
        reader, tokenizer, num_image_tokens=16, chat_template=chat("<image>")
    )


def mllama(processor):
    """Two layers of four look at the image, and are left out where there is none."""
    tokenizer, ids = marked(processor, "<|python_tag|>", image_token="<|image|>")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 5,
        "num_global_layers": 2,
        "attention_heads": 2,
        "vision_output_dim": 96,
        "image_size": 48,
        "patch_size": 12,
        "intermediate_layers_indices": [0, 2],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]],
    }
    text = text_config(tokenizer, num_hidden_layers=4, cross_attention_layers=[1, 3])
    config = tf.MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=ids["<|image|>"]
    )
    reader = tf.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4)
    return config, tf.MllamaProcessor(
        reader, tokenizer, chat_template=chat("<|image|>", first="<s>")
    )


def llama4(processor):
    """Experts, chunks of attention, and an encoder whose features are projected later."""
    frames = "<|image_start|> <|image_end|> <|tile_x_separator|> <|tile_y_separator|>".split()
    tokenizer, ids = marked(processor, *frames, "<|patch|>", image_token="<|image|>")
    text = text_config(
        tokenizer,
        head_dim=16,
        intermediate_size_mlp=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=512,
        no_rope_layers=[1, 1, 0],
        interleave_moe_layer_step=1,
    )
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "vision_output_dim": 32,
        "image_size": 48,
        "patch_size": 12,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "pixel_shuffle_ratio": 0.5,
    }
    config = tf.Llama4Config(
        vision_config=vision,
        text_config=text,
        boi_token_index=ids["<|image_start|>"],
        eoi_token_index=ids["<|image_end|>"],
        image_token_index=ids["<|patch|>"],
    )
    reader = tf.Llama4ImageProcessor(size=SQUARE, max_patches=1, resize_to_max_canvas=False)
    return config, tf.Llama4Processor(
        reader, tokenizer, patch_size=12, chat_template=chat("<|image|>", first="<s>")
    )


MORE = {
    "llava-onevision": llava_onevision,
    "qwen2-vl": qwen2_vl,
    "qwen3-vl": qwen3_vl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "internvl": internvl,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "mistral3": mistral3,
    "pixtral": pixtral,
    "vipllava": vipllava,
    "qwen3.5": qwen3_5,
    "aya-vision": aya_vision,
    "glm-4v": glm4v,
    "deepseek-vl": deepseek_vl,
    "lfm2-vl": lfm2_vl,
    "mllama": mllama,
    "llama-4": llama4,
}
"""Further families: each gives a configuration and a processor."""

REFUSED = ("mllama",)
"""Families that cannot be right, and say so."""

EXTRA = ("lfm2-vl", "llama-4")
"""Families whose pictures need torchvision."""

RIGHT = tuple(name for name in MORE if name not in (*REFUSED, *EXTRA))


def write_family(name, processor, folder):
    """The checkpoint folder of a family."""
    folder.mkdir(parents=True, exist_ok=True)
    if name in MORE:
        config, own = MORE[name](processor)
        shake(tf.AutoModelForImageTextToText.from_config(config)).save_pretrained(folder)
        own.save_pretrained(folder)
        return folder
    {"llava": llava, "llava-next": llava_next, "qwen2.5-vl": qwen, "vicuna": vicuna}[name](
        processor, folder
    )
    return folder
