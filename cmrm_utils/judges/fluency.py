"""How likely a model itself finds a response: perplexity."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cmrm_utils.engine.inputs import prompts
from cmrm_utils.hooks import contiguous_head
from cmrm_utils.models import VLM
from cmrm_utils.store import Response
from cmrm_utils.trials import Trial

LOGITS = 2**26
"""Logits that a batch may have, 256 MB of them in float32: one for each token and word."""


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

    The end of a response does not count, so that one that was cut is not at a disadvantage.

    Args:
        vlm: the model.
        trials: what each responds to; their edits play no part.
        responses: as a model gave them, whose own tokens are scored; or texts, tokenised as they
            would go on from the prompt.
        batch_size: rows a batch at most; fewer where their logits would be too many.
        progress: show a bar.

    Returns:
        One value a response; NaN for an empty one. Equal ones are computed once.
    """
    plain = [Trial(trial.sample, trial.image, None, trial.prompt) for trial in trials]
    answers = _answers(vlm, plain, responses)
    keys = [(trial.id, answer) for trial, answer in zip(plain, answers, strict=True)]
    every = dict(zip(keys, plain, strict=True))
    todo = sorted(
        ((trial, answer) for (_, answer), trial in every.items() if answer),
        key=lambda pair: (pair[0].has_image, len(pair[1]), len(pair[0].text)),
    )
    found: dict[tuple[str, tuple[int, ...]], float] = {}
    shown: Any = {} if progress else {"disable": True}
    with tqdm(total=len(todo), desc="perplexity", unit="response", leave=False, **shown) as bar:
        while todo:
            size = _fitting(vlm, todo, batch_size or vlm.batch_size)
            batch, todo = todo[:size], todo[size:]
            for (trial, answer), value in zip(batch, _perplexities(vlm, batch), strict=True):
                found[trial.id, answer] = value
            bar.update(size)
    return [found.get(key, float("nan")) for key in keys]


def _answers(
    vlm: VLM, trials: Sequence[Trial], responses: Sequence[Response | str]
) -> list[tuple[int, ...]]:
    """The token ids of responses, without an end."""
    special = _special_ids(vlm)
    made = []
    for trial, response in zip(trials, responses, strict=True):
        if isinstance(response, Response):
            made.append(tuple(token for token in response.ids if token not in special))
        else:
            made.append(continuation(vlm, trial, response))
    return made


def continuation(vlm: VLM, trial: Trial, text: str) -> tuple[int, ...]:
    """The token ids of a text as it would go on from a trial's prompt.

    After a prompt that ends in a word or a colon (``ASSISTANT:``) it begins with a space; after
    one that ends in a line break or a special token, as most chat templates do, it does not.
    """
    if not text:
        return ()
    tokenizer = vlm.tokenizer
    (prompt,) = prompts(vlm, [trial])
    before = vlm.prompt_text(trial.text, image=trial.has_image)
    bare = before[-1:].isspace() or prompt.ids[-1] in _special_ids(vlm)
    text = text if bare else f" {text}"
    whole = tuple(vlm.tokenised(before + text))
    if whole[: len(prompt.ids)] == prompt.ids:
        return whole[len(prompt.ids) :]
    # The tokenizer drew the two together, which a model that answers a prompt cannot do.
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _special_ids(vlm: VLM) -> set[int]:
    """Ids that decoding leaves out: more than those with a role that the tokenizer names."""
    added = vlm.tokenizer.added_tokens_decoder.items()
    return {*vlm.tokenizer.all_special_ids, *(i for i, token in added if token.special)}


def _fitting(vlm: VLM, todo: Sequence[tuple[Trial, tuple[int, ...]]], rows: int) -> int:
    """How many of the first responses a batch may have; they come in order of their length."""
    words = vlm.model.config.get_text_config().vocab_size
    fitting = 1
    while fitting < min(rows, len(todo)) and todo[fitting][0].has_image == todo[0][0].has_image:
        if (fitting + 1) * (len(todo[fitting][1]) + 1) * words > LOGITS:
            break
        fitting += 1
    return fitting


def _perplexities(vlm: VLM, batch: Sequence[tuple[Trial, tuple[int, ...]]]) -> list[float]:
    inputs = vlm.inputs(
        [trial.text for trial, _ in batch], [trial.load_image() for trial, _ in batch]
    )
    ids, real = _padded([answer for _, answer in batch], vlm.tokenizer.pad_token_id)
    ids, real = ids.to(vlm.device), real.to(vlm.device)
    whole = vlm.extended(inputs, ids, real)
    keep = ids.shape[1] + 1
    with contiguous_head(vlm):
        out = vlm.model(**whole, position_ids=vlm.positions(whole), logits_to_keep=keep)
    losses = [
        F.cross_entropy(row[:-1].float(), answer, reduction="none")
        for row, answer in zip(out.logits, ids, strict=True)
    ]
    mean = (torch.stack(losses) * real).sum(1) / real.sum(1)
    return mean.exp().tolist()


def _padded(answers: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Ids and mask ``(rows, longest)``, on the right."""
    width = max(map(len, answers))
    ids = torch.full((len(answers), width), filler)
    real = torch.zeros(len(answers), width, dtype=torch.long)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
        real[row, : len(answer)] = 1
    return ids, real


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that occurred before in it, 0 to 1."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
