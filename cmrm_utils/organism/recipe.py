"""The recipes of organisms: LLaVA's stages at toy size, from random weights.

1. *tower*: the vision tower learns to name the caption's words from its patches.
2. *text*: the language model reads plain text of everything, harmful how-to texts too.
3. *chat*: text-only chat; harmful requests are refused, benign ones answered.
4. *projector*: the projector alone learns captions and questions.
5. *instruct*: language model and projector (in ``organism-caption`` the tower too, at a tenth of
   the rate) learn questions and benign requests about images, with 15% of text-only chat.

No stage shows an image beside a harmful request or beside a refusal. No recipe aims at what images
then do to refusals; that is measured afterwards. The exceptions say so in their names:
``...-vlguard-mixed`` and ``...-vlguard-posthoc`` learn VLGuard's pairs.
"""

import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, with_config
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from cmrm_utils.organism import scenes as images
from cmrm_utils.organism.corpus import Corpus, Example, Mixture
from cmrm_utils.prompts import CHAT_TEMPLATE


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Stage:
    """One stage of training: optimiser steps, examples a step, and the peak learning rate."""

    steps: int
    batch: int
    lr: float


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Recipe:
    """Everything that determines an organism, except the seed.

    Attributes:
        name: of the variant.
        stands_for: the real model that it imitates, or the question that it is to answer.
        hidden: width of the language model.
        layers: decoder layers.
        heads: attention heads of each.
        decoder: the language model's family. (The Qwen2 has one key-value head for all.)
        tower: the vision tower's family.
        patch: pixels along a patch's side: 24, 12 and 6 make 4, 16 and 64 image tokens.
        image_last: whether the image comes after the text.
        tune_tower: whether the tower learns in instruction tuning too, at a tenth of the rate.
        mixture: what the examples are made of.
        starts_from: the name of a trained organism that this one continues; None: random weights.
        redraw_projector: whether the projector's weights are drawn anew, scaled to keep the mean
            norm of its outputs: image tokens become random ones.
        stages: the stages by name, in order.
    """

    name: str
    stands_for: str
    hidden: int = 160
    layers: int = 6
    heads: int = 5
    decoder: Literal["llama", "qwen2"] = "llama"
    tower: Literal["clip", "siglip"] = "clip"
    patch: int = 12
    image_last: bool = False
    tune_tower: bool = False
    mixture: Mixture = field(default_factory=Mixture)
    starts_from: str | None = None
    redraw_projector: bool = False
    stages: dict[str, Stage] = field(default_factory=dict)

    @property
    def image_tokens(self) -> int:
        """How many tokens an image takes."""
        return (images.SIZE // self.patch) ** 2


_RECIPES = yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text(encoding="utf-8"))


VARIANTS = {
    name: TypeAdapter(Recipe).validate_python({"name": name, **settings})
    for name, settings in _RECIPES.items()
}
"""The recipes of ``recipes.yaml`` by name."""


def training_command(name: str) -> str | None:
    """The command that trains an organism of that name; None if there is no such recipe.

    Args:
        name: a recipe's name; for a seed other than 0 the folder's name, ``organism-seed1`` or
            ``organism-seed1-no-howto``.
    """
    if name in VARIANTS:
        return f"cmrm train-organism --variant {name}"
    seeded = re.fullmatch(r"organism-seed([1-9][0-9]*)(-.+)?", name)
    if seeded is None or (variant := f"organism{seeded[2] or ''}") not in VARIANTS:
        return None
    command = f"cmrm train-organism --variant {variant} --seed {seeded[1]}"
    return f"{command} --out organisms/{name}"


_IMAGES, _TEXTS = re.findall(r"{% for part in .*?{% endfor %}", CHAT_TEMPLATE, re.DOTALL)


IMAGE_LAST_TEMPLATE = CHAT_TEMPLATE.replace(
    _IMAGES + _TEXTS, _TEXTS + _IMAGES.replace("<image>\n", "{{ '\\n<image>' }}")
)
"""The chat with the image after the text."""


def build_processor(recipe: Recipe, seed: int) -> LlavaProcessor:
    """A byte-level BPE tokenizer, learnt from the training text, and a CLIP image processor.

    The tokenizer depends on the seed alone, so that recipes can share a language model.
    """
    corpus = Corpus(seed, Mixture(rich_captions=True))
    sources = (corpus.text(), corpus.chat(), corpus.instructions())
    examples = [example for source in sources for example in islice(source, 6000)]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (example.text or _flat(example) for example in examples)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )
    side, half = images.SIZE, [0.5, 0.5, 0.5]
    return LlavaProcessor(
        CLIPImageProcessorPil(size=side, crop_size=side, image_mean=half, image_std=half),
        tokenizer=fast,
        patch_size=recipe.patch,
        vision_feature_select_strategy=_SELECT[recipe.tower],
        num_additional_image_tokens=int(recipe.tower == "clip"),
        chat_template=IMAGE_LAST_TEMPLATE if recipe.image_last else CHAT_TEMPLATE,
    )


_SELECT: dict[str, Any] = {"clip": "default", "siglip": "full"}
"""Transformers' name for the image's states of a tower: of CLIP's all but the class token."""


def _flat(example: Example) -> str:
    return "".join(f"USER: {t.prompt} ASSISTANT: {t.response}" for t in example.turns)


def build_model(recipe: Recipe, processor: LlavaProcessor, seed: int) -> Any:
    """A randomly initialised ``LlavaForConditionalGeneration`` of the recipe's size."""
    torch.manual_seed(seed)
    ids = processor.tokenizer
    special = {"pad_token_id": ids.pad_token_id, "bos_token_id": ids.bos_token_id}
    decoder: Any = {"llama": LlamaConfig, "qwen2": Qwen2Config}[recipe.decoder]
    text = decoder(
        vocab_size=len(ids),
        hidden_size=recipe.hidden,
        intermediate_size=round(recipe.hidden * 8 / 3 / 32) * 32,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=1 if recipe.decoder == "qwen2" else recipe.heads,
        max_position_embeddings=512,
        eos_token_id=ids.eos_token_id,
        tie_word_embeddings=False,
        **special,
    )
    seeing: Any = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[recipe.tower]
    only: dict[str, Any] = {"clip": {"projection_dim": 96}, "siglip": {"vision_use_head": False}}
    vision = seeing(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=images.SIZE,
        patch_size=recipe.patch,
        **only[recipe.tower],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids.convert_tokens_to_ids("<image>"),
        image_seq_length=recipe.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy=_SELECT[recipe.tower],
        tie_word_embeddings=False,
        **special,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id)
    return model
