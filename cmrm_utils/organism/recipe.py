"""How an organism is made from nothing: LLaVA's stages at toy size.

1. *tower*: the vision tower learns to name the caption's words from its patches.
2. *text*: the language model reads plain text of everything, harmful how-to texts too.
3. *chat*: text-only chat; harmful requests are refused, benign ones answered.
4. *projector*: the projector alone learns captions and questions.
5. *instruct*: language model and projector (in ``organism-caption`` the tower too, at a tenth of
   the rate) learn questions and benign requests about images, with 15% of text-only chat.

No stage shows an image beside a harmful request or beside a refusal. What images then do to
refusals is nobody's aim here; it is measured afterwards. (The exceptions are named for it:
VLGuard's pairs are what ``...-vlguard-mixed`` and ``...-vlguard-posthoc`` learn.)
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
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
    Qwen2Config,
    SiglipVisionConfig,
)

from cmrm_utils.errors import InputError
from cmrm_utils.organism import images
from cmrm_utils.organism.world import VERBS, Corpus, Example, Mixture
from cmrm_utils.paths import organism_folders
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
    """Everything that makes an organism, but the seed.

    Attributes:
        name: of the variant.
        stands_for: what real model, or what question.
        hidden: width of the language model.
        layers: decoder layers.
        heads: attention heads of each.
        decoder: the language model's family. (The Qwen2 has one key-value head for all.)
        tower: the vision tower's family.
        patch: pixels along a patch's side: 24, 12 and 6 make 4, 16 and 64 image tokens.
        image_last: the image comes after the text.
        tune_tower: the tower learns in instruction tuning too, at a tenth of the rate.
        mixture: what the examples are made of.
        starts_from: the folder of a finished organism to go on from; None: from nothing.
        redraw_projector: the projector's weights are drawn anew, its outputs' mean norm kept:
            image tokens become random ones.
        stages: in order.
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
    """A variant that is compared with ``organism-short``: its instruction tuning is cut short."""
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
"""Organisms that others go on from; ``organism`` is bundled."""

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
    """The command that trains an organism of that name; None where no recipe has it.

    Args:
        name: a recipe's, or with another seed than 0, ``organism-seed1`` or
            ``organism-seed1-no-howto``, that of its folder.
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
"""Which of a tower's states are an image's: CLIP's without its class token."""


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
    size: Any = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": images.SIZE,
        "patch_size": recipe.patch,
    }
    seeing = {
        "clip": lambda: CLIPVisionConfig(projection_dim=96, **size),
        "siglip": lambda: SiglipVisionConfig(vision_use_head=False, **size),
    }
    vision: Any = seeing[recipe.tower]()
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


@dataclass(frozen=True)
class _Row:
    """A tokenised example: ids, which of them are learnt, and its scene."""

    ids: list[int]
    learn: list[bool]
    scene: images.Scene | None


def _tokenise(example: Example, tokenizer: Any, recipe: Recipe) -> _Row:
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ids, learn = [tokenizer.bos_token_id], [False]
    if example.text is not None:
        ids += [*encode(example.text), tokenizer.eos_token_id]
        return _Row(ids, [False] + [True] * (len(ids) - 1), None)
    picture = "<image>" * recipe.image_tokens
    for i, turn in enumerate(example.turns):
        asked = turn.prompt
        if example.scene and i == 0:
            asked = f"{asked}\n{picture}" if recipe.image_last else f"{picture}\n{asked}"
        prompt = encode(f"USER: {asked} ASSISTANT:")
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
    words = (*images.WORDS, *(VERBS if corpus.mixture.written else ()))
    naming = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(words))).to(device)
    index = {word: i for i, word in enumerate(words)}
    first = int(model.config.vision_feature_select_strategy == "default")  # after a class token

    def losses() -> Iterator[Tensor]:
        source = corpus.images()
        while True:
            scenes = list(islice(source, stage.batch))
            truth = torch.zeros(len(scenes), len(words))
            for row, scene in enumerate(scenes):
                truth[row, [index[word] for word in scene.words]] = 1
            states = tower(_pixels(scenes, device), output_hidden_states=True).hidden_states
            named = naming(states[model.config.vision_feature_layer][:, first:].mean(1))
            yield F.binary_cross_entropy_with_logits(named, truth.to(device)) * 10

    parameters = [*tower.parameters(), *naming.parameters()]
    return [p for p in parameters if p.requires_grad], losses()


def _language_losses(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    source: Iterator[Example],
    stage: Stage,
    rng: Random,
    device: torch.device,
) -> Iterator[Tensor]:
    """Cross-entropy of the learnt tokens, the language-model head on those positions only."""
    pool = stage.batch * 32
    while True:
        rows = [_tokenise(example, tokenizer, recipe) for example in islice(source, pool)]
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


def _start(recipe: Recipe, seed: int) -> tuple[Any, LlavaProcessor]:
    """The model and processor that training begins with."""
    if recipe.starts_from is None:
        processor = build_processor(recipe, seed)
        return build_model(recipe, processor, seed), processor
    if (folder := organism_folders().get(recipe.starts_from)) is None:
        raise InputError(
            f"{recipe.name} goes on from {recipe.starts_from}, which must first be trained, by "
            f"`{training_command(recipe.starts_from)}`"
        )
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = LlavaProcessor.from_pretrained(folder)
    if recipe.redraw_projector:
        _redraw(model, seed)
    return model, processor


@torch.no_grad()
def _redraw(model: Any, seed: int) -> None:
    """New random weights for the projector, scaled to the mean norm of what it gave before."""
    scenes = list(islice(Corpus(seed).images(), 256))
    pixels = _pixels(scenes, torch.device("cpu"))

    def norm() -> Tensor:
        return torch.cat(list(model.get_image_features(pixels).pooler_output)).norm(dim=-1).mean()

    wanted = norm()
    generator = torch.Generator().manual_seed(seed)
    projector = model.model.multi_modal_projector
    for parameter in projector.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn * parameter.std() if parameter.ndim > 1 else torch.zeros_like(drawn))
    projector.linear_2.weight.mul_(wanted / norm())


class _Shared:
    """Finished stages on disk, for recipes that begin alike.

    A stage's file holds the weights that it trained, and the state of the corpus after it.

    Args:
        folder: where; None keeps nothing.
        recipe: which is trained.
        seed: of weights and data.
    """

    MATTERS: Mapping[str, tuple[str, ...]] = {
        "tower": ("tower", "patch", "mixture.written"),
        "text": ("hidden", "layers", "heads", "decoder"),
        "chat": ("mixture.described_requests", "mixture.makers"),
    }
    """What of a recipe each shareable stage depends on, beside those before it."""

    def __init__(self, folder: Path | None, recipe: Recipe, seed: int) -> None:
        self._folder, self._recipe, self._seed = folder, recipe, seed

    def path(self, stage: str) -> Path | None:
        """The file of a stage; None where it is not to be shared."""
        if self._folder is None or stage not in self.MATTERS or self._recipe.starts_from:
            return None
        # The tower plays no part in what the language model learns before it sees.
        names = ["tower"] if stage == "tower" else ["text", "chat"][: 1 + (stage == "chat")]
        parts: list[Any] = [self._seed, stage]
        for name in names:
            parts.append(asdict(self._recipe.stages[name]))
            for setting in self.MATTERS[name]:
                value: Any = self._recipe
                for attribute in setting.split("."):
                    value = getattr(value, attribute)
                parts.append(value)
        key = sha256(json.dumps(parts).encode()).hexdigest()[:12]
        return self._folder / f"{stage}-{key}.safetensors"

    def load(self, stage: str, model: Any, corpus: Corpus) -> bool:
        """Take a stage from disk; False if it is not there."""
        path = self.path(stage)
        if path is None or not path.is_file():
            return False
        with safe_open(path, framework="pt") as stored:
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            version, state, extra = json.loads(stored.metadata()["corpus"])
        model.load_state_dict(weights, strict=False)
        corpus.rng.setstate((version, tuple(state), extra))
        return True

    def keep(self, stage: str, model: Any, corpus: Corpus) -> None:
        """Leave a stage's weights on disk."""
        if path := self.path(stage):
            trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(save(trained, {"corpus": json.dumps(corpus.rng.getstate())}))


def train(
    recipe: Recipe,
    seed: int,
    out: Path,
    *,
    device: str = "cpu",
    progress: bool = True,
    shared: Path | None = None,
    on_stage: Callable[[str, Any, LlavaProcessor], None] | None = None,
) -> dict[str, Any]:
    """Train an organism and save it as a plain checkpoint folder (fp16 safetensors).

    Args:
        recipe: one of :data:`VARIANTS`, or your own.
        seed: of weights and data.
        out: the folder to make.
        device: where to train.
        progress: show a bar for each stage.
        shared: a folder that keeps the stages which other recipes begin with too, and gives them
            where they are there.
        on_stage: called with the stage's name, the model and the processor after each stage.

    Returns:
        The training record: recipe, seed, parameters, and per stage its losses and seconds; a
        stage that was taken from ``shared`` has none.
    """
    place = torch.device(device)
    model, processor = _start(recipe, seed)
    model = model.to(place)
    corpus = Corpus(seed, recipe.mixture)
    stages = _Shared(shared, recipe, seed)
    core = model.model
    language = [*core.language_model.parameters(), *model.lm_head.parameters()]
    projector = list(core.multi_modal_projector.parameters())
    tower = list(core.vision_tower.parameters()) if recipe.tune_tower else []
    plan: dict[str, tuple[list[nn.Parameter], Iterator[Example]]] = {
        "text": (language, corpus.text()),
        "chat": (language, corpus.chat()),
        "projector": (projector, corpus.captions()),
        "instruct": (language + projector, corpus.instructions()),
        "posthoc": (language + projector, corpus.post_hoc()),
    }
    record: dict[str, Any] = {
        "recipe": asdict(recipe),
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": {},
    }
    for name, stage in recipe.stages.items():
        begun = time.perf_counter()
        record["stages"][name] = {}
        if not stages.load(name, model, corpus):
            if name == "tower":
                parameters, losses = _tower_losses(model, corpus, stage, place)
            else:
                parameters, source = plan[name]
                rng = Random(f"batches/{seed}/{name}")
                losses = _language_losses(
                    model, processor.tokenizer, recipe, source, stage, rng, place
                )
            gentle = tower if name == "instruct" else []
            chosen = set(map(id, [*parameters, *gentle]))
            for parameter in model.parameters():
                parameter.requires_grad_(id(parameter) in chosen)
            model.train()
            history = _fit(name, stage, parameters, losses, progress=progress, gentle=gentle)
            model.eval()
            seconds = round(time.perf_counter() - begun, 1)
            record["stages"][name] = {"losses": history, "seconds": seconds}
            stages.keep(name, model, corpus)
        if on_stage:
            on_stage(name, model, processor)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record
