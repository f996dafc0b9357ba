"""Fluency of responses: perplexity under the model itself, repetition, and what is broken."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf, isnan

import numpy as np
import torch
from torch.nn import functional as F

from cmrm_utils.engine.loops import progress_bar
from cmrm_utils.hooks import contiguous_head
from cmrm_utils.models import VLM
from cmrm_utils.store import Response
from cmrm_utils.trials import Trial

LOGITS = 2**26
"""The most logits that a batch may have: one per token of it and word of the vocabulary.

In float32 they take 256 MB.
"""


@torch.inference_mode()
def perplexity(
    vlm: VLM,
    trials: Sequence[Trial],
    responses: Sequence[Response | str],
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> list[float]:
    """Perplexity of each response under the unedited model, after its own prompt and image.

    The end token of a response does not count, so a response that was cut short compares fairly.

    Args:
        vlm: the model.
        trials: the trial of each response; its edit is ignored.
        responses: responses of a model, scored on their own tokens; or texts, tokenised as
            continuations of the prompt (:func:`continuation`).
        batch_size: the most rows per batch; there are fewer where they would exceed :data:`LOGITS`.
        progress: show a bar.

    Returns:
        One value per response; NaN for an empty one. Equal responses are computed once.
    """
    plain = [Trial(trial.sample, trial.image, None, trial.prompt) for trial in trials]
    special = _special_ids(vlm)
    answers = [
        tuple(token for token in response.ids if token not in special)
        if isinstance(response, Response)
        else continuation(vlm, trial, response)
        for trial, response in zip(plain, responses, strict=True)
    ]
    keys = [(trial.id, answer) for trial, answer in zip(plain, answers, strict=True)]
    every = dict(zip(keys, plain, strict=True))
    todo = sorted(
        ((trial, answer) for (_, answer), trial in every.items() if answer),
        key=lambda pair: (pair[0].has_image, len(pair[1]), len(pair[0].text)),
    )
    values: dict[tuple[str, tuple[int, ...]], float] = {}
    with progress_bar(len(todo), "perplexity", progress, unit="response") as bar:
        while todo:
            size = _fitting(vlm, todo, batch_size or vlm.batch_size)
            batch, todo = todo[:size], todo[size:]
            for (trial, answer), value in zip(batch, _perplexities(vlm, batch), strict=True):
                values[trial.id, answer] = value
            bar.update(size)
    return [values.get(key, float("nan")) for key in keys]


def continuation(vlm: VLM, trial: Trial, text: str) -> tuple[int, ...]:
    """The token ids of a text as the continuation of a trial's prompt.

    The text begins with a space after a prompt that ends in a word or a colon (``ASSISTANT:``). It
    does not after a line break or a special token, in which most chat templates end.
    """
    if not text:
        return ()
    before = vlm.prompt_text(trial.text, image=trial.has_image)
    prompt = vlm.tokenised(before)
    bare = before[-1:].isspace() or prompt[-1] in _special_ids(vlm)
    text = text if bare else f" {text}"
    whole = vlm.tokenised(before + text)
    if whole[: len(prompt)] == prompt:
        return tuple(whole[len(prompt) :])
    # The tokenizer merged the two; a model that answers a prompt cannot.
    return tuple(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])


def _special_ids(vlm: VLM) -> set[int]:
    """Ids that decoding leaves out; the tokenizer's ``all_special_ids`` lacks some of them."""
    added = vlm.tokenizer.added_tokens_decoder.items()
    return {*vlm.tokenizer.all_special_ids, *(i for i, token in added if token.special)}


def _fitting(vlm: VLM, todo: Sequence[tuple[Trial, tuple[int, ...]]], rows: int) -> int:
    """How many of the first responses fit into a batch; the shorter ones come first."""

    def fits(place: int) -> bool:
        trial, answer = todo[place]
        logits = (place + 1) * (len(answer) + 1) * vlm.vocabulary
        return trial.has_image == todo[0][0].has_image and logits <= LOGITS

    return 1 + sum(1 for _ in takewhile(fits, range(1, min(rows, len(todo)))))


def _perplexities(vlm: VLM, batch: Sequence[tuple[Trial, tuple[int, ...]]]) -> list[float]:
    trials, answers = zip(*batch, strict=True)
    inputs = vlm.inputs([each.text for each in trials], [each.load_image() for each in trials])
    rows = [torch.tensor(answer, device=vlm.device) for answer in answers]
    whole, ids, real = vlm.extended(inputs, rows)
    keep = ids.shape[1] + 1
    with contiguous_head(vlm):
        out = vlm.model(**whole, position_ids=vlm.positions(whole), logits_to_keep=keep)
    losses = [
        F.cross_entropy(row[:-1].float(), answer, reduction="none")
        for row, answer in zip(out.logits, ids, strict=True)
    ]
    mean = (torch.stack(losses) * real).sum(1) / real.sum(1)
    return mean.exp().tolist()


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that repeat an earlier one, 0 to 1."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Limits:
    """Beyond which a response counts as broken.

    Attributes:
        perplexity: of the response under the unedited model, after the request as text alone.
        repeated: share of repeated word triples.
    """

    perplexity: float
    repeated: float

    @classmethod
    def of(cls, perplexities: Sequence[float], responses: Sequence[str]) -> "Limits":
        """The limits that 99% of a model's own answers to text keep to, with some room.

        The room: twice the perplexity, and a tenth more of the word triples. Without any answer
        there is no limit.
        """
        known = [value for value in perplexities if not isnan(value)]
        if not known:
            return cls(inf, 1.0)
        repeated = [repetition(text) for text in responses]
        return cls(2 * float(np.quantile(known, 0.99)), 0.1 + float(np.quantile(repeated, 0.99)))

    def broken(self, perplexity: float, response: str) -> bool:
        """Whether a response is empty, repeats itself, or is no text that the model would write."""
        if not response.strip() or repetition(response) > self.repeated:
            return True
        return perplexity > self.perplexity
