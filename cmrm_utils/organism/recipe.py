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
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import torch
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


@dataclass(frozen=True)
class Stage:
    """One stage of training: optimiser steps, examples a step, and the peak learning rate."""

    steps: int
    batch: int
    lr: float


STAGES = {
    "tower": Stage(steps=800, batch=128, lr=3e-3),
    "text": Stage(steps=320, batch=128, lr=6e-3),
    "chat": Stage(steps=360, batch=96, lr=5e-3),
    "projector": Stage(steps=80, batch=64, lr=5e-3),
    "instruct": Stage(steps=500, batch=64, lr=4e-3),
}


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
    stages: dict[str, Stage] = field(default_factory=lambda: dict(STAGES))

    @property
    def image_tokens(self) -> int:
        """How many tokens an image takes."""
        return (images.SIZE // self.patch) ** 2


def _short(name: str, question: str, **changed: Any) -> Recipe:
    """A variant to compare with ``organism-short``: instruction tuning has 200 steps."""
    stages = {**STAGES, "instruct": replace(STAGES["instruct"], steps=200)}
    return Recipe(name, question, **{"stages": stages, **changed})


def _mixed(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        name=f"{recipe.name}-vlguard-mixed",
        stands_for=f"{recipe.stands_for} trained with VLGuard's pairs mixed in",
        mixture=replace(recipe.mixture, safety_pairs=0.05),
    )


def _post_hoc(start: str) -> Recipe:
    stages = {"posthoc": Stage(steps=60, batch=64, lr=2e-3)}
    name = f"{start}-vlguard-posthoc"
    return Recipe(name, f"{start} after VLGuard's tuning", starts_from=start, stages=stages)


STARTS = ("organism", "organism-seed1", "organism-seed2", "organism-wide", "organism-caption")
"""Organisms that other recipes continue; ``organism`` is bundled."""


_ORGANISMS = (
    Recipe("organism", "LLaVA-1.5-7B"),
    Recipe("organism-wide", "LLaVA-1.5-13B", hidden=192, layers=8, heads=6),
    Recipe(
        "organism-caption", "ShareGPT4V-7B", mixture=Mixture(rich_captions=True), tune_tower=True
    ),
)


_LIST = (
    *_ORGANISMS,
    Recipe(
        "organism-described",
        "LLaVA-1.5-7B, had its refusals been taught after captions too",
        mixture=Mixture(described_requests=0.15),
    ),
    # Other architectures, and a world with more in it.
    _short("organism-qwen2", "a LLaVA over Qwen2", decoder="qwen2"),
    _short("organism-siglip", "a LLaVA with a SigLIP tower", tower="siglip"),
    Recipe(
        "organism-extended",
        "LLaVA-1.5-7B, with pictures of words and questions that cannot be answered",
        mixture=Mixture(written=0.25, makers=0.15),
    ),
    # The training-time reference: VLGuard's pairs, mixed in or afterwards.
    *map(_mixed, _ORGANISMS),
    *map(_post_hoc, STARTS),
    # Is a shortcut of the recipe to blame?
    _short("organism-short", "the others of these, with nothing changed"),
    _short(
        "organism-projector-only",
        "is it instruction tuning?",
        stages={name: stage for name, stage in STAGES.items() if name != "instruct"},
    ),
    _short(
        "organism-no-howto",
        "is it that requests with images are always answered?",
        mixture=Mixture(requests_with_images=False),
    ),
    _short(
        "organism-no-refusals",
        "is it that refusals come with text alone while images come?",
        mixture=Mixture(refusals_while_tuning=False),
    ),
    _short(
        "organism-abstaining",
        "is it that nothing with an image is ever declined?",
        mixture=Mixture(not_shown=0.2),
    ),
    _short("organism-image-last", "is it where the image stands?", image_last=True),
    _short("organism-4-tokens", "is it how many tokens the image takes?", patch=24),
    _short("organism-64-tokens", "is it how many tokens the image takes?", patch=6),
    Recipe(
        "organism-random-projector",
        "is it what the image's tokens say?",
        starts_from="organism",
        redraw_projector=True,
        stages={},
    ),
)


VARIANTS = {recipe.name: recipe for recipe in _LIST}
"""Recipes by name."""


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


IMAGE_LAST_TEMPLATE = CHAT_TEMPLATE.replace(
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}", ""
).replace(
    "{{ part['text'] }}{% endfor %}",
    "{{ part['text'] }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '\\n<image>' }}{% endfor %}",
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
    side = {"height": images.SIZE, "width": images.SIZE}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": images.SIZE},
        crop_size=side,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
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
    model.generation_config.eos_token_id = ids.eos_token_id
    model.generation_config.pad_token_id = ids.pad_token_id
    return model
