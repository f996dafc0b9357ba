"""The training of an organism, stage by stage."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from cmrm_utils.errors import InputError
from cmrm_utils.organism import scenes as images
from cmrm_utils.organism.corpus import Corpus, Example
from cmrm_utils.organism.recipe import Recipe, Stage, build_model, build_processor, training_command
from cmrm_utils.organism.world import VERBS
from cmrm_utils.paths import organism_folders


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
        query = turn.prompt
        if example.scene and i == 0:
            query = f"{query}\n{picture}" if recipe.image_last else f"{picture}\n{query}"
        prompt = encode(f"USER: {query} ASSISTANT:")
        answer = [*encode(f" {turn.response}"), tokenizer.eos_token_id]
        ids += prompt + answer
        learn += [False] * len(prompt) + [True] * len(answer)
    return _Row(ids, learn, example.scene)


def _batches(rows: list[_Row], size: int, rng: Random) -> Iterator[list[_Row]]:
    """Batches of rows of similar length, which need little padding, in random order."""
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
    settings: Any = {"weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 5}
    return [
        torch.optim.Muon(matrices, lr=lr, **settings),
        torch.optim.AdamW(others, lr=lr / 2, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _fit(
    title: str,
    stage: Stage,
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    *,
    progress: bool,
    gentle: Sequence[nn.Parameter] = (),
) -> list[float]:
    """Run a stage's optimiser steps (:func:`descend`), the rate falling over the last half.

    ``gentle`` are parameters that learn at a tenth of the rate.
    """
    optimisers = _optimisers(parameters, stage.lr)
    if gentle:
        optimisers += _optimisers(gentle, stage.lr / 10)
    every = [*parameters, *gentle]
    return descend(title, stage.steps, losses, optimisers, every, fall=0.5, progress=progress)


def descend(
    title: str,
    steps: int,
    losses: Iterator[Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
    parameters: Sequence[nn.Parameter],
    *,
    fall: float,
    progress: bool,
) -> list[float]:
    """Run optimiser steps over a stream of losses.

    Args:
        title: of the bar.
        steps: how many.
        losses: at least as many.
        optimisers: all of them step at each loss.
        parameters: whose gradient is clipped to a norm of 1.
        fall: the last share of the steps, over which the rate falls linearly to 0. It rises over
            the first 5%.
        progress: show a bar.

    Returns:
        The mean loss of each tenth of the steps.
    """

    def scale(step: int) -> float:
        return min(1.0, (step + 1) / (0.05 * steps + 1), (1 - step / steps) / fall)

    schedules = [LambdaLR(optimiser, scale) for optimiser in optimisers]
    history: list[float] = []
    bar = tqdm(range(steps), desc=f"{title:>9}", disable=not progress)
    for step in bar:
        loss = next(losses)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            schedule.step()
        history.append(loss.item())
        if step % 10 == 0:
            bar.set_postfix(loss=f"{np.mean(history[-20:]):.3f}", refresh=False)
    tenth = max(1, steps // 10)
    return [float(np.mean(history[i : i + tenth])) for i in range(0, steps, tenth)]


def _tower_losses(
    model: Any, corpus: Corpus, batch: int
) -> tuple[list[nn.Parameter], Iterator[Tensor]]:
    """Caption words from the mean of the patches, at the layer that LLaVA reads.

    The mean makes every patch carry the whole picture, place included.

    Returns:
        The parameters that learn, and the losses.
    """
    tower, device = model.model.vision_tower, model.device
    width = tower.config.hidden_size
    words = (*images.WORDS, *(VERBS if corpus.mixture.written else ()))
    naming = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(words))).to(device)
    index = {word: i for i, word in enumerate(words)}
    first = int(model.config.vision_feature_select_strategy == "default")  # after a class token

    def losses() -> Iterator[Tensor]:
        source = corpus.images()
        while True:
            scenes = list(islice(source, batch))
            truth = torch.zeros(len(scenes), len(words))
            for row, scene in enumerate(scenes):
                truth[row, [index[word] for word in scene.words]] = 1
            states = tower(_pixels(scenes, device), output_hidden_states=True).hidden_states
            named = naming(states[model.config.vision_feature_layer][:, first:].mean(1))
            yield F.binary_cross_entropy_with_logits(named, truth.to(device)) * 10

    return [*tower.parameters(), *naming.parameters()], losses()


def _language_losses(
    model: Any, tokenizer: Any, recipe: Recipe, source: Iterator[Example], batch: int, rng: Random
) -> Iterator[Tensor]:
    """Cross-entropy of the learnt tokens, the language-model head on those positions only."""
    device = model.device
    while True:
        pool = [_tokenise(example, tokenizer, recipe) for example in islice(source, batch * 32)]
        for rows in _batches(pool, batch, rng):
            inputs = {
                "input_ids": padded((row.ids for row in rows), tokenizer.pad_token_id).to(device),
                "attention_mask": padded(([1] * len(row.ids) for row in rows), 0).to(device),
            }
            if scenes := [row.scene for row in rows if row.scene]:
                inputs["pixel_values"] = _pixels(scenes, device)
            learnt = padded((row.learn for row in rows), False).to(device)
            yield response_loss(model, learnt, **inputs)


def padded(lists: Iterable[Sequence[float]], fill: float) -> Tensor:
    """Lists as the rows of a tensor, padded on the right."""
    tensors = [torch.tensor(each) for each in lists]
    return pad_sequence(tensors, batch_first=True, padding_value=fill)


def response_loss(model: Any, learnt: Tensor, **inputs: Any) -> Tensor:
    """Mean cross-entropy of the tokens that are learnt; no other token needs logits.

    Args:
        model: a LLaVA.
        learnt: ``(rows, tokens)``, what each token counts: bool, or weights from 0 on.
        inputs: of the model without its head, ``input_ids`` among them.
    """
    states, after = model.model(**inputs).last_hidden_state, learnt[:, 1:] > 0
    logits = model.lm_head(states[:, :-1][after])
    each = F.cross_entropy(logits.float(), inputs["input_ids"][:, 1:][after], reduction="none")
    weights = learnt[:, 1:][after].float()
    return (each * weights).sum() / weights.sum()


def _start(recipe: Recipe, seed: int) -> tuple[Any, LlavaProcessor]:
    """The model and processor that training begins with."""
    if recipe.starts_from is None:
        processor = build_processor(recipe, seed)
        return build_model(recipe, processor, seed), processor
    if (folder := organism_folders().get(recipe.starts_from)) is None:
        raise InputError(
            f"{recipe.name} starts from {recipe.starts_from}, which must be trained first, by "
            f"`{training_command(recipe.starts_from)}`"
        )
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if recipe.redraw_projector:
        _redraw(model, seed)
    return model, LlavaProcessor.from_pretrained(folder)


@torch.no_grad()
def _redraw(model: Any, seed: int) -> None:
    """New random weights for the projector, scaled to keep the mean norm of its outputs."""
    scenes = list(islice(Corpus(seed).images(), 256))
    pixels = _pixels(scenes, torch.device("cpu"))

    def norm() -> Tensor:
        return torch.cat(list(model.get_image_features(pixels).pooler_output)).norm(dim=-1).mean()

    wanted = norm()
    generator = torch.Generator().manual_seed(seed)
    projector = model.model.multi_modal_projector
    for parameter in projector.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * parameter.std() if parameter.ndim > 1 else torch.zeros_like(noise))
    projector.linear_2.weight.mul_(wanted / norm())


class _Shared:
    """Finished stages on disk, for recipes that begin alike.

    A stage's file holds the weights that it trained, and the state of the corpus after it.

    Args:
        folder: where the stages lie; None keeps nothing.
        recipe: the recipe in training.
        seed: of weights and data.
    """

    MATTERS: Mapping[str, tuple[str, ...]] = {
        "tower": ("tower", "patch", "mixture.written"),
        "text": ("hidden", "layers", "heads", "decoder"),
        "chat": ("mixture.described_requests", "mixture.makers"),
    }
    """The settings of a recipe that each shareable stage depends on, beside earlier stages."""

    def __init__(self, folder: Path | None, recipe: Recipe, seed: int) -> None:
        self._folder, self._recipe, self._seed = folder, recipe, seed

    def path(self, stage: str) -> Path | None:
        """The file of a stage; None where it is not to be shared."""
        if self._folder is None or stage not in self.MATTERS or self._recipe.starts_from:
            return None
        # The tower plays no part in what the language model learns before it sees.
        settings: list[Any] = [self._seed, stage]
        for name in ("text", "chat") if stage == "chat" else (stage,):
            settings.append(asdict(self._recipe.stages[name]))
            settings += [attrgetter(each)(self._recipe) for each in self.MATTERS[name]]
        key = sha256(json.dumps(settings).encode()).hexdigest()[:12]
        return self._folder / f"{stage}-{key}.safetensors"

    def load(self, stage: str, model: Any, corpus: Corpus) -> bool:
        """Load a stage from disk into model and corpus; False if it is not there."""
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
        """Store the weights that a stage trained, and where the corpus stands."""
        if path := self.path(stage):
            trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(save(trained, {"corpus": json.dumps(corpus.rng.getstate())}))


def _run_stage(
    name: str, model: Any, tokenizer: Any, recipe: Recipe, corpus: Corpus, *, progress: bool
) -> dict[str, Any]:
    """Train one stage in place, and return its losses and seconds for the record.

    The parameters that the stage trained keep ``requires_grad``; the others lose it.
    """
    begun = time.perf_counter()
    stage, core = recipe.stages[name], model.model
    if name == "tower":
        parameters, losses = _tower_losses(model, corpus, stage.batch)
    else:
        language = [*core.language_model.parameters(), *model.lm_head.parameters()]
        projector = list(core.multi_modal_projector.parameters())
        parameters, source = {
            "text": (language, corpus.text),
            "chat": (language, corpus.chat),
            "projector": (projector, corpus.captions),
            "instruct": (language + projector, corpus.instructions),
            "posthoc": (language + projector, corpus.post_hoc),
        }[name]
        rng = Random(f"batches/{corpus.seed}/{name}")
        losses = _language_losses(model, tokenizer, recipe, source(), stage.batch, rng)
    tuned = recipe.tune_tower and name == "instruct"
    gentle = list(core.vision_tower.parameters()) if tuned else []
    trained = set(map(id, [*parameters, *gentle]))
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    model.train()
    history = _fit(name, stage, parameters, losses, progress=progress, gentle=gentle)
    model.eval()
    return {"losses": history, "seconds": round(time.perf_counter() - begun, 1)}


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
        shared: a folder for stages that several recipes have in common. A stage found there is
            loaded instead of trained.
        on_stage: called with the stage's name, the model and the processor after each stage.

    Returns:
        The training record: recipe, seed, parameters, and the losses and seconds of each stage. A
        stage that was loaded from ``shared`` has none.
    """
    model, processor = _start(recipe, seed)
    model = model.to(device)
    corpus = Corpus(seed, recipe.mixture)
    stages = _Shared(shared, recipe, seed)
    record: dict[str, Any] = {
        "recipe": asdict(recipe),
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": {},
    }
    for name in recipe.stages:
        record["stages"][name] = {}
        if not stages.load(name, model, corpus):
            record["stages"][name] = _run_stage(
                name, model, processor.tokenizer, recipe, corpus, progress=progress
            )
            stages.keep(name, model, corpus)
        if on_stage:
            on_stage(name, model, processor)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record
