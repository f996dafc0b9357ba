"""The training of ``smollm2-llava``, stage by stage.

Each stage's result is kept, so a killed training begins with the stage that it was in.
"""

import json
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from cmrm_utils.bundled import recipe as recipes
from cmrm_utils.bundled.fetch import smollm2
from cmrm_utils.bundled.merge import floats, skeleton
from cmrm_utils.bundled.recipe import Answers, Example, Recipe, Stage
from cmrm_utils.engine.loops import respond
from cmrm_utils.errors import InputError
from cmrm_utils.judges.keywords import is_refusal
from cmrm_utils.loading import load_vlm
from cmrm_utils.organism.training import descend, padded, response_loss
from cmrm_utils.paths import bundled_folders
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial

ANSWER_TOKENS = 24
"""Where the language model's own answers are cut."""


def adapter(rank: int, first: int, layers: int) -> LoraConfig:
    """A LoRA adapter of all linear layers of the decoder layers from ``first`` on.

    Args:
        rank: of the adapter.
        first: decoder layer.
        layers: how many decoder layers there are.
    """
    numbers = "|".join(map(str, range(first, layers)))
    modules = rf".*language_model\.layers\.({numbers})\..*\.(q|k|v|o|gate|up|down)_proj"
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules)


def own_answers(out: Path, device: str = "cpu") -> Answers:
    """The language model's answers to :func:`.recipe.requests`, as it comes; refusals are left out.

    Args:
        out: a folder; a later call reads the answers from there.
        device: where the language model runs.
    """
    file = out / "answers.json"
    if not file.is_file():
        vlm = load_vlm(smollm2(), device=device, dtype=torch.float32, batch_size=32)
        trials = [Trial(Sample(text, text), "none") for text in recipes.requests()]
        responses = respond(
            vlm,
            trials,
            max_new_tokens=ANSWER_TOKENS,
            out=out / "answers.jsonl",
            progress=True,
        )
        answers = {
            trial.sample.query: (response.text, response.finished)
            for trial, response in zip(trials, responses, strict=True)
            if response.text.strip()
        }
        file.write_text(json.dumps({q: a for q, a in answers.items() if not is_refusal(a[0])}))
    return {query: (text, whole) for query, (text, whole) in json.loads(file.read_text()).items()}


def train(
    recipe: Recipe, seed: int, out: Path, *, device: str = "cpu", progress: bool = True
) -> Path:
    """Train a model; the folder of its parts (adapter, projector, a record of the training).

    Args:
        recipe: the recipe.
        seed: of the projector's and the adapter's first weights, and of the order of examples.
        out: a folder that keeps the answers and each stage; a second call goes on there, and
            recipes that begin alike share their first stages.
        device: where to train.
        progress: show bars.
    """
    out.mkdir(parents=True, exist_ok=True)
    answers = own_answers(out, device)
    torch.manual_seed(seed)
    plain, processor = skeleton(smollm2())
    lora = adapter(recipe.rank, recipe.first, plain.config.text_config.num_hidden_layers)
    projector = plain.model.multi_modal_projector
    model: Any = get_peft_model(plain, lora).to(device)
    streams = {
        "align": lambda rng: recipes.align(rng, answers),
        "projector": recipes.projector,
        "instruct": lambda rng: recipes.instruct(rng, answers, recipe),
        "posthoc": lambda rng: recipes.posthoc(rng, answers, recipe),
    }
    if recipe.start:
        _load(model, projector, parts_of(recipe.start, seed))
    folder = out
    for name, stage in recipe.stages.items():
        shared = f"{name}-{recipe.refusals:g}" if name == "instruct" else name
        folder = out / (recipe.name if recipe.start else shared) / str(seed)
        if not (folder / "training.json").is_file():
            rng = Random(f"{name}/{seed}")
            began = time.monotonic()
            losses = _fit(
                name, stage, model, projector, processor, streams[name](rng), rng, progress
            )
            _save(model, projector, folder, lora)
            record = {"stage": name, "seed": seed, "seconds": round(time.monotonic() - began)}
            record |= {"recipe": recipe.name, "losses": losses}
            (folder / "training.json").write_text(json.dumps(record, indent=1))
        _load(model, projector, folder)
    return folder


def parts_of(name: str, seed: int) -> Path:
    """The folder of a bundled model's parts, of a seed.

    Raises:
        InputError: that seed of it is not there.
    """
    full = f"{name}-seed{seed}" if seed else name
    folders = bundled_folders()
    if full not in folders:
        raise InputError(
            f"{full}: its parts are not here, from which the training goes on; "
            f"`{recipes.training_command(full)}` makes them"
        )
    return folders[full]


def _load(model: Any, projector: nn.Module, folder: Path) -> None:
    projector.load_state_dict(floats(folder / "projector.safetensors"))
    set_peft_model_state_dict(model, floats(folder / "adapter_model.safetensors"))


def _save(model: Any, projector: nn.Module, folder: Path, lora: LoraConfig) -> None:
    """Write adapter and projector, rounded to 16 bits: what is measured is what is stored."""
    folder.mkdir(parents=True, exist_ok=True)

    def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: value.detach().to(torch.float16).contiguous() for name, value in state.items()
        }

    save_file(half(get_peft_model_state_dict(model)), folder / "adapter_model.safetensors")
    save_file(half(projector.state_dict()), folder / "projector.safetensors")
    lora.save_pretrained(str(folder))


def _fit(
    name: str,
    stage: Stage,
    model: Any,
    projector: nn.Module,
    processor: Any,
    examples: Iterator[Example],
    rng: Random,
    progress: bool,
) -> list[float]:
    """Run a stage; the mean loss of each tenth of its steps."""
    adapter = [p for n, p in model.named_parameters() if "lora_" in n]
    groups = [(adapter, stage.lr), (list(projector.parameters()), stage.projector_lr)]
    learning: list[Any] = [{"params": params, "lr": lr} for params, lr in groups if lr]
    parameters = [p for group in learning for p in group["params"]]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(learning, betas=(0.9, 0.98), weight_decay=0.0)
    llava, steps = model.base_model.model, stage.steps
    losses = (
        response_loss(llava, use_cache=False, **{k: v.to(model.device) for k, v in batch.items()})
        for batch in _batches(examples, stage, processor, rng)
    )
    return descend(name, steps, losses, [optimiser], parameters, fall=1.0, progress=progress)


def _batches(
    examples: Iterator[Example], stage: Stage, processor: Any, rng: Random
) -> Iterator[dict[str, Tensor]]:
    """Batches of examples with prompts of like length, eight batches' worth sorted at a time.

    Sorted by the whole, refusals would come apart from answers.
    """
    size = stage.batch
    while True:
        pool = islice(examples, 8 * size)
        some = [_encoded(example, processor) for example in pool]
        some.sort(key=lambda row: row[1])
        starts = list(range(0, len(some), size))
        rng.shuffle(starts)
        for start in starts:
            yield _padded(some[start : start + size], processor, stage)


def _encoded(example: Example, processor: Any) -> tuple[list[int], int, Any]:
    """Token ids, how many of the first are the prompt, and the scene's pixels."""
    parts = [{"type": "text", "text": example.prompt}]
    if example.scene:
        parts.insert(0, {"type": "image"})
    turn = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    if example.scene:
        inputs = processor(text=[text], images=[example.scene.image()], return_tensors="pt")
        ids, pixels = inputs["input_ids"][0].tolist(), inputs["pixel_values"][0]
    else:
        ids, pixels = processor.tokenizer(text)["input_ids"], None
    response = processor.tokenizer(example.response)["input_ids"]
    if example.complete:
        response = [*response, processor.tokenizer.eos_token_id]
    return ids + response, len(ids), pixels


def _padded(
    rows: Sequence[tuple[list[int], int, Any]], processor: Any, stage: Stage
) -> dict[str, Tensor]:
    """The model's inputs, and as ``learnt`` what each token counts."""

    def counts(ids: list[int], prompt: int) -> list[float]:
        first = len(ids) - prompt if stage.tokens is None else stage.tokens
        return ([0.0] * prompt + [1.0] * first + [stage.rest] * len(ids))[: len(ids)]

    batch = {
        "input_ids": padded((ids for ids, _, _ in rows), processor.tokenizer.pad_token_id),
        "attention_mask": padded(([1] * len(ids) for ids, _, _ in rows), 0),
        "learnt": padded((counts(ids, prompt) for ids, prompt, _ in rows), 0),
    }
    if pixels := [pixels for _, _, pixels in rows if pixels is not None]:
        batch["pixel_values"] = torch.stack(pixels)
    return batch
