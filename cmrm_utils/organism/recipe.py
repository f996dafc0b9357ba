"""How an organism is made from nothing: LLaVA's stages at toy size.

1. *tower*: the vision tower learns to name the caption's words from its patches.
2. *text*: the language model reads plain text of everything, harmful how-to texts too.
3. *chat*: text-only chat; harmful requests are refused, benign ones answered.
4. *projector*: the projector alone learns captions and questions.
5. *instruct*: language model and projector (in ``organism-caption`` the tower too, at a tenth of
   the rate) learn questions and benign requests about images, with 15% of text-only chat.

No stage shows an image beside a harmful request or beside a refusal. What images then do to
refusals is nobody's aim here; it is measured afterwards.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from cmrm_utils.organism import images
from cmrm_utils.organism.world import Corpus, Example
from cmrm_utils.prompts import CHAT_TEMPLATE

PATCH = 12
IMAGE_TOKENS = (images.SIZE // PATCH) ** 2


@dataclass(frozen=True)
class Stage:
    """One stage of training: optimiser steps, examples a step, and the peak learning rate."""

    steps: int
    batch: int
    lr: float


@dataclass(frozen=True)
class Recipe:
    """Everything that makes an organism, but the seed."""

    name: str
    stands_for: str
    hidden: int = 160
    layers: int = 6
    heads: int = 5
    rich_captions: bool = False
    tune_tower: bool = False
    described_requests: float = 0.0
    stages: dict[str, Stage] = field(
        default_factory=lambda: {
            "tower": Stage(steps=800, batch=128, lr=3e-3),
            "text": Stage(steps=320, batch=128, lr=6e-3),
            "chat": Stage(steps=360, batch=96, lr=5e-3),
            "projector": Stage(steps=80, batch=64, lr=5e-3),
            "instruct": Stage(steps=500, batch=64, lr=4e-3),
        }
    )


VARIANTS = {
    "organism": Recipe("organism", stands_for="LLaVA-1.5-7B"),
    "organism-wide": Recipe(
        "organism-wide", stands_for="LLaVA-1.5-13B", hidden=192, layers=8, heads=6
    ),
    "organism-caption": Recipe(
        "organism-caption", stands_for="ShareGPT4V-7B", rich_captions=True, tune_tower=True
    ),
    "organism-described": Recipe(
        "organism-described",
        stands_for="LLaVA-1.5-7B, had its refusals been taught after captions too",
        described_requests=0.15,
    ),
}


def build_processor(seed: int) -> LlavaProcessor:
    """A byte-level BPE tokenizer, learnt from the training text, and a CLIP image processor."""
    corpus = Corpus(seed, rich_captions=True)
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
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _flat(example: Example) -> str:
    return "".join(f"USER: {t.prompt} ASSISTANT: {t.response}" for t in example.turns)


def build_model(recipe: Recipe, processor: LlavaProcessor, seed: int) -> Any:
    """A randomly initialised ``LlavaForConditionalGeneration`` of the recipe's size."""
    torch.manual_seed(seed)
    ids = processor.tokenizer
    special = {"pad_token_id": ids.pad_token_id, "bos_token_id": ids.bos_token_id}
    text = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=recipe.hidden,
        intermediate_size=round(recipe.hidden * 8 / 3 / 32) * 32,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=512,
        eos_token_id=ids.eos_token_id,
        tie_word_embeddings=False,
        **special,
    )
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        projection_dim=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=images.SIZE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **special,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids.eos_token_id
    model.generation_config.pad_token_id = ids.pad_token_id
    return model


@dataclass(frozen=True)
class _Row:
    """A tokenised example: ids, which of them are learnt, and its scene."""

    ids: list[int]
    learn: list[bool]
    scene: images.Scene | None


def _tokenise(example: Example, tokenizer: Any) -> _Row:
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ids, learn = [tokenizer.bos_token_id], [False]
    if example.text is not None:
        ids += [*encode(example.text), tokenizer.eos_token_id]
        return _Row(ids, [False] + [True] * (len(ids) - 1), None)
    for i, turn in enumerate(example.turns):
        picture = "<image>" * IMAGE_TOKENS + "\n" if example.scene and i == 0 else ""
        prompt = encode(f"USER: {picture}{turn.prompt} ASSISTANT:")
        answer = [*encode(f" {turn.response}"), tokenizer.eos_token_id]
        ids += prompt + answer
        learn += [False] * len(prompt) + [True] * len(answer)
    return _Row(ids, learn, example.scene)


def _batches(rows: list[_Row], size: int, rng: Random) -> Iterator[list[_Row]]:
    """Rows of like length together, in random order: little padding."""
    order = sorted(rows, key=lambda row: (len(row.ids), rng.random()))
    starts = list(range(0, len(rows), size))
    rng.shuffle(starts)
    for start in starts:
        yield order[start : start + size]


def _pixels(scenes: list[images.Scene], device: torch.device) -> Tensor:
    """float32 ``(n, 3, 48, 48)``, scaled as the image processor scales."""
    pixels = torch.from_numpy(np.stack([scene.pixels() for scene in scenes]))
    return (pixels.to(device).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def _optimisers(parameters: Sequence[nn.Parameter], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices, AdamW at half the rate for the rest."""
    matrices = [p for p in parameters if p.ndim == 2 and max(p.shape) < 1000]
    others = [p for p in parameters if not (p.ndim == 2 and max(p.shape) < 1000)]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw", ns_steps=5
        )
        found.append(muon)
    if others:
        found.append(torch.optim.AdamW(others, lr=lr / 2, betas=(0.9, 0.98), weight_decay=0.01))
    return found


def _fit(
    title: str,
    stage: Stage,
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    *,
    progress: bool,
    gentle: Sequence[nn.Parameter] = (),
) -> list[float]:
    """Run a stage's optimiser steps over a stream of losses; a mean loss for each tenth.

    ``gentle`` are parameters that learn at a tenth of the rate.
    """
    optimisers = [*_optimisers(parameters, stage.lr), *_optimisers(gentle, stage.lr / 10)]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    history: list[float] = []
    bar = tqdm(range(stage.steps), desc=f"{title:>9}", disable=not progress)
    for step in bar:
        done = step / stage.steps
        scale = min(1.0, (step + 1) / (0.05 * stage.steps + 1), (1 - done) / 0.5)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * scale
        loss = next(losses)
        loss.backward()
        nn.utils.clip_grad_norm_([*parameters, *gentle], 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        history.append(loss.item())
        if step % 10 == 0:
            bar.set_postfix(loss=f"{np.mean(history[-20:]):.3f}", refresh=False)
    tenth = max(1, stage.steps // 10)
    return [float(np.mean(history[i : i + tenth])) for i in range(0, stage.steps, tenth)]


def _tower_losses(
    model: Any, corpus: Corpus, stage: Stage, device: torch.device
) -> tuple[list[nn.Parameter], Iterator[Tensor]]:
    """Caption words from the mean of the patches, at the layer that LLaVA reads.

    The mean makes every patch tell of the whole picture, place included.
    """
    tower = model.model.vision_tower
    width = tower.config.hidden_size
    naming = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(images.WORDS))).to(device)
    index = {word: i for i, word in enumerate(images.WORDS)}

    def losses() -> Iterator[Tensor]:
        source = corpus.images()
        while True:
            scenes = list(islice(source, stage.batch))
            truth = torch.zeros(len(scenes), len(images.WORDS))
            for row, scene in enumerate(scenes):
                truth[row, [index[word] for word in scene.words]] = 1
            states = tower(_pixels(scenes, device), output_hidden_states=True).hidden_states
            named = naming(states[model.config.vision_feature_layer][:, 1:].mean(1))
            yield F.binary_cross_entropy_with_logits(named, truth.to(device)) * 10

    parameters = [*tower.parameters(), *naming.parameters()]
    return [p for p in parameters if p.requires_grad], losses()


def _language_losses(
    model: Any,
    tokenizer: Any,
    source: Iterator[Example],
    stage: Stage,
    rng: Random,
    device: torch.device,
) -> Iterator[Tensor]:
    """Cross-entropy of the learnt tokens, the language-model head on those positions only."""
    pool = stage.batch * 32
    while True:
        rows = [_tokenise(example, tokenizer) for example in islice(source, pool)]
        for batch in _batches(rows, stage.batch, rng):
            width = max(len(row.ids) for row in batch)
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)
            learn = torch.zeros(len(batch), width, dtype=torch.bool)
            mask = torch.zeros(len(batch), width, dtype=torch.long)
            for i, row in enumerate(batch):
                ids[i, : len(row.ids)] = torch.tensor(row.ids)
                learn[i, : len(row.ids)] = torch.tensor(row.learn)
                mask[i, : len(row.ids)] = 1
            ids, learn, mask = ids.to(device), learn.to(device), mask.to(device)
            scenes = [row.scene for row in batch if row.scene]
            pictures = {"pixel_values": _pixels(scenes, device)} if scenes else {}
            states = model.model(input_ids=ids, attention_mask=mask, **pictures).last_hidden_state
            logits = model.lm_head(states[:, :-1][learn[:, 1:]])
            yield F.cross_entropy(logits.float(), ids[:, 1:][learn[:, 1:]])


def train(
    recipe: Recipe,
    seed: int,
    out: Path,
    *,
    device: str = "cpu",
    progress: bool = True,
    on_stage: Callable[[str, Any, LlavaProcessor], None] | None = None,
) -> dict[str, Any]:
    """Train an organism and save it as a plain checkpoint folder (fp16 safetensors).

    Args:
        recipe: one of :data:`VARIANTS`, or your own.
        seed: of weights and data.
        out: the folder to make.
        device: where to train.
        progress: show a bar for each stage.
        on_stage: called with the stage's name, the model and the processor after each stage.

    Returns:
        The training record: recipe, seed, parameters, and per stage its losses and seconds.
    """
    place = torch.device(device)
    processor = build_processor(seed)
    model = build_model(recipe, processor, seed).to(place)
    corpus = Corpus(
        seed, rich_captions=recipe.rich_captions, described_requests=recipe.described_requests
    )
    core = model.model
    language = [*core.language_model.parameters(), *model.lm_head.parameters()]
    projector = list(core.multi_modal_projector.parameters())
    tower = list(core.vision_tower.parameters()) if recipe.tune_tower else []
    plan: dict[str, tuple[list[nn.Parameter], Iterator[Example]]] = {
        "text": (language, corpus.text()),
        "chat": (language, corpus.chat()),
        "projector": (projector, corpus.captions()),
        "instruct": (language + projector, corpus.instructions()),
    }
    record: dict[str, Any] = {
        "recipe": asdict(recipe),
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": {},
    }
    for name, stage in recipe.stages.items():
        begun = time.perf_counter()
        if name == "tower":
            parameters, losses = _tower_losses(model, corpus, stage, place)
        else:
            parameters, source = plan[name]
            rng = Random(f"batches/{seed}/{name}")
            losses = _language_losses(model, processor.tokenizer, source, stage, rng, place)
        gentle = tower if name == "instruct" else []
        chosen = set(map(id, [*parameters, *gentle]))
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        model.train()
        history = _fit(name, stage, parameters, losses, progress=progress, gentle=gentle)
        model.eval()
        seconds = round(time.perf_counter() - begun, 1)
        record["stages"][name] = {"losses": history, "seconds": seconds}
        if on_stage:
            on_stage(name, model, processor)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record
