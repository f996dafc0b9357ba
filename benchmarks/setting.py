"""Random models of LLaVA-1.5's geometry, and prompts of about 40 text tokens to put to them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from cmrm_utils import VLM, Sample, load_samples, load_vlm
from cmrm_utils.loading import wrap

SIDE, PATCH = 336, 14
IMAGE_TOKENS = (SIDE // PATCH) ** 2
TEXT_TOKENS = 40
"""Of a prompt with its template; prompts have one to six fewer."""


@dataclass(frozen=True)
class Size:
    """How large a random model is; the image has 576 tokens in each."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    tower: tuple[int, int, int, int]
    key_heads: int | None = None
    tied: bool = False

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.layers} layers of width {self.hidden}, {self.vocabulary} tokens' vocabulary"


# A vocabulary and a tower that cost as small a share beside the decoder as LLaVA-1.5's do: an LM
# head of 32,064 tokens on so narrow a model would flatter whoever leaves it out.
SMALL = Size(192, 512, 6, 6, 1040, (96, 256, 4, 4))
FULL = Size(4096, 11008, 32, 32, 32064, (1024, 4096, 24, 16))
WIDE = replace(FULL, layers=2, vocabulary=1040, tower=SMALL.tower)


@dataclass(frozen=True)
class Setting:
    """Where a benchmark runs and how long.

    Attributes:
        device: the CPU or a GPU.
        rounds: counted timings of each way.
    """

    device: torch.device
    rounds: int

    @property
    def on_gpu(self) -> bool:
        """Whether there is more to it than a small model on a CPU."""
        return self.device.type == "cuda"

    @property
    def size(self) -> Size:
        """Of the main model: LLaVA-1.5-7B's on a GPU, else a small one."""
        return FULL if self.on_gpu else SMALL

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 on a GPU, float32 on the CPU."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    @cached_property
    def vlm(self) -> VLM:
        """The main model."""
        return random_llava(self.size, self.device, self.dtype)

    @property
    def text(self) -> str:
        """The main model, in words."""
        kind = "LLaVA-1.5-7B's sizes" if self.on_gpu else "a small LLaVA"
        return (
            f"Random weights, {kind} ({self.size.text}), {str(self.dtype).removeprefix('torch.')}; "
            f"{IMAGE_TOKENS} image tokens before about {TEXT_TOKENS} text tokens."
        )


@lru_cache(maxsize=1)
def _processor() -> LlavaProcessor:
    """The organism's tokenizer and template with LLaVA-1.5's pictures: 336 pixels, 24 x 24."""
    organism = load_vlm("organism", device="cpu")
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=organism.tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=organism.processor.chat_template,
    )


def random_llava(size: Size, device: torch.device, dtype: torch.dtype) -> VLM:
    """A model whose responses never end by themselves, so that every one has its full length."""
    processor = _processor()
    tokenizer = processor.tokenizer
    width, inner, layers, heads = size.tower
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.key_heads or size.heads,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=size.tied,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=size.tied,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaForConditionalGeneration(config)
            _scatter(model)
    finally:
        torch.set_default_dtype(before)
    vlm = wrap(model, processor, name="random")
    # An id that no vocabulary has.
    model.generation_config.eos_token_id = size.vocabulary + 1
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return vlm


@torch.no_grad()
def _scatter(model: Any) -> None:
    """Weights under which answers depend on the prompt.

    Fresh ones are so small that all prompts have nearly the same states; and with attention that
    takes the mean of everything, one picture's 576 tokens drown the words.
    """
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    decoder = model.model.language_model
    decoder.embed_tokens.weight.normal_(0, 1)
    for layer in decoder.layers:
        layer.self_attn.q_proj.weight.mul_(2.5)


def cold(vlm: VLM) -> VLM:
    """The same model as if it had just been loaded: the engine keeps nothing for it yet."""
    return replace(vlm)


def picture(seed: int) -> Image.Image:
    """A picture unlike all others: coarse coloured noise."""
    grid = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def samples(count: int, *, images: bool = True, tokens: int = TEXT_TOKENS) -> list[Sample]:
    """New samples, equal in every call, each with its own text and its own picture.

    Args:
        count: how many.
        images: whether they have pictures.
        tokens: about how many text tokens a prompt has.
    """
    return [
        Sample(f"{i}", text, image=picture(i) if images else None)
        for i, text in enumerate(_texts(count, tokens))
    ]


@lru_cache(maxsize=8)
def _texts(count: int, tokens: int) -> tuple[str, ...]:
    """Benign requests of the organism's world, strung together until they are long enough."""
    vlm = load_vlm("organism", device="cpu")
    queries = iter([s.query for s in load_samples("organism", "test") if s.task == "benign"] * 4)
    texts = []
    for index in range(count):
        text = f"{index}. {next(queries)}"
        for query in queries:
            longer = f"{text} {query}"
            prompt = vlm.prompt_text(longer, image=False)
            if len(vlm.tokenizer(prompt)["input_ids"]) > tokens - index % 4:
                break
            text = longer
        texts.append(text)
    return tuple(texts)


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Items in groups."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of any number in two tensors; NaN if either has one."""
    return float((ours - theirs).abs().max())


def load() -> float:
    """How many processes wanted to run in the last minute, on average; NaN where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
