"""Trials in, hidden states or responses out.

Trials of any kind share a batch: each row has its own prompt, image (or none) and edit. Equal
trials run once. Batches are packed by prompt length.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cmrm_utils.hooks import apply, record
from cmrm_utils.models import VLM
from cmrm_utils.store import Response, Responses
from cmrm_utils.trials import Trial


def _unique(trials: Sequence[Trial]) -> list[Trial]:
    """One trial for each id, in order of first appearance."""
    return list({trial.id: trial for trial in trials}.values())


def _batches(
    trials: Sequence[Trial], size: int, *, title: str, progress: bool
) -> Iterator[list[Trial]]:
    """Trials with prompts of like length together: little padding."""
    order = sorted(trials, key=lambda trial: (trial.has_image, len(trial.text)))
    shown: Any = {} if progress else {"disable": True}  # TQDM_DISABLE=1 silences it too
    with tqdm(total=len(order), desc=title, unit="trial", leave=False, **shown) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            yield batch
            bar.update(len(batch))


def _inputs(vlm: VLM, batch: Sequence[Trial]) -> dict[str, Tensor]:
    return vlm.inputs([trial.text for trial in batch], [trial.load_image() for trial in batch])


@torch.inference_mode()
def hidden_states(
    vlm: VLM, trials: Sequence[Trial], *, batch_size: int | None = None, progress: bool = False
) -> Tensor:
    """The residual stream at each decoder layer's output, at the last prompt token.

    Returns:
        float32 ``(trials, layers, hidden)`` on the CPU, under each trial's edit.
    """
    found: dict[str, Tensor] = {}
    unique = _unique(trials)
    for batch in _batches(
        unique, batch_size or vlm.batch_size, title="hidden states", progress=progress
    ):
        inputs = _inputs(vlm, batch)
        positions = vlm.positions(inputs)
        with apply(vlm, [trial.active_edit for trial in batch]), record(vlm) as states:
            vlm.model.model(**inputs, position_ids=positions, use_cache=False)
        for trial, state in zip(batch, torch.stack(states, dim=1), strict=True):
            found[trial.id] = state
    shape = (0, len(vlm.layers), vlm.hidden_size)
    return torch.stack([found[trial.id] for trial in trials]) if trials else torch.empty(shape)


@torch.inference_mode()
def generate(
    vlm: VLM,
    trials: Sequence[Trial],
    *,
    max_new_tokens: int,
    out: Path | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> list[str]:
    """Greedy responses.

    Args:
        vlm: the model.
        trials: what to run; equal trials run once.
        max_new_tokens: a response is cut there.
        out: a JSON-lines file that responses stream to, and are resumed from.
        batch_size: rows a batch; by default what the model was loaded with.
        progress: show a bar.

    Raises:
        InputError: ``out`` holds responses of another model or token limit.
    """
    shared = {"model": vlm.fingerprint, "max_new_tokens": max_new_tokens}
    known = Responses(out, shared) if out else None
    done: dict[str, Response] = {}
    todo = []
    for trial in _unique(trials):
        if known and (response := known.get(trial.id)):
            done[trial.id] = response
        else:
            todo.append(trial)
    with known.appending() if known and todo else nullcontext() as sink:
        for batch in _batches(
            todo, batch_size or vlm.batch_size, title="responses", progress=progress
        ):
            responses = _respond(vlm, batch, max_new_tokens)
            found = [(trial.id, r) for trial, r in zip(batch, responses, strict=True)]
            done.update(found)
            if sink:
                sink.add(found)
    return [done[trial.id].text for trial in trials]


def _respond(vlm: VLM, batch: Sequence[Trial], max_new_tokens: int) -> list[Response]:
    inputs = _inputs(vlm, batch)
    with apply(vlm, [trial.active_edit for trial in batch]):
        whole = vlm.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
        )
    ends = _end_ids(vlm)
    responses = []
    for row in whole[:, inputs["input_ids"].shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        ids = tuple(row if stop is None else row[: stop + 1])
        responses.append(Response(vlm.decode(ids), ids, stop is not None))
    return responses


def _end_ids(vlm: VLM) -> set[int]:
    ends: Any = vlm.model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


@torch.inference_mode()
def first_logits(vlm: VLM, trials: Sequence[Trial], *, batch_size: int | None = None) -> Tensor:
    """Logits of the first response token, float32 ``(trials, vocabulary)`` on the CPU."""
    found: dict[str, Tensor] = {}
    for batch in _batches(
        _unique(trials), batch_size or vlm.batch_size, title="logits", progress=False
    ):
        inputs = _inputs(vlm, batch)
        positions = vlm.positions(inputs)
        with apply(vlm, [trial.active_edit for trial in batch]):
            logits = vlm.model(**inputs, position_ids=positions, logits_to_keep=1).logits
        found.update(
            {trial.id: row for trial, row in zip(batch, logits[:, -1].float().cpu(), strict=True)}
        )
    return torch.stack([found[trial.id] for trial in trials])


@torch.inference_mode()
def perplexity(
    vlm: VLM, trials: Sequence[Trial], responses: Sequence[str], *, batch_size: int | None = None
) -> list[float]:
    """Perplexity of each response under the unedited model, after its own prompt and image.

    An empty response has none (NaN).
    """
    pairs: dict[tuple[str, str], float] = {}
    todo: dict[tuple[str, str], tuple[Trial, str]] = {}
    for trial, response in zip(trials, responses, strict=True):
        plain = Trial(trial.sample, trial.image, None, trial.prompt)
        todo.setdefault((plain.id, response), (plain, response))
    order = sorted(todo.items(), key=lambda item: (item[1][0].has_image, len(item[0][1])))
    size = batch_size or vlm.batch_size
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        texts = [response for _, (_, response) in batch]
        for (key, _), value in zip(batch, _perplexities(vlm, batch, texts), strict=True):
            pairs[key] = value
    return [
        pairs[Trial(t.sample, t.image, None, t.prompt).id, r]
        for t, r in zip(trials, responses, strict=True)
    ]


def _perplexities(vlm: VLM, batch: Sequence[Any], texts: Sequence[str]) -> list[float]:
    inputs = _inputs(vlm, [plain for _, (plain, _) in batch])
    tokenizer = vlm.tokenizer
    answers = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
    answers = [ids if text else [] for ids, text in zip(answers, texts, strict=True)]
    width = max(1, max(map(len, answers)))
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    real = torch.zeros(len(batch), width, dtype=torch.long)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
        real[row, : len(answer)] = 1
    ids, real = ids.to(vlm.device), real.to(vlm.device)
    whole = vlm.extended(inputs, ids, real)
    logits = vlm.model(**whole, position_ids=vlm.positions(whole), logits_to_keep=width + 1).logits
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids, reduction="none")
    mean = (losses * real).sum(1) / real.sum(1)
    return mean.exp().tolist()
