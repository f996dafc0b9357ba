"""Responses of very different lengths: rows that leave early, against static batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import Row, Target, check, faster
from benchmarks.setting import (
    IMAGE_TOKENS,
    TEXT_TOKENS,
    Setting,
    batches,
    cold,
    random_llava,
    samples,
)
from benchmarks.timing import Case, measure
from cmrm_utils import VLM, Sample, Trial, generate

TITLE = "Short answers leave early"
SHORT, LONG = 10, 200
COUNT, SEEING, POOL, BATCH = 32, 16, 64, 8
HALVED = 32


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        f"{COUNT} prompts ({SEEING} with images), in turn one whose answer has {SHORT} tokens "
        f"and one whose has {LONG}; all prompts are {TEXT_TOKENS} text tokens long, so that "
        "nothing tells beforehand which is which. Both ways run one rigged model: an answer that "
        "it begins with an even token id goes on with even ids and ends at its "
        f"{SHORT}th token, one that begins with an odd id goes on with odd ids and never ends. "
        f"*static*: transformers' `generate` on batches of {BATCH}; the engine has no more rows "
        "at once."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    return [*_mix(setting, images=False), *_mix(setting, images=True), _halved(setting)]


def _halved(setting: Setting) -> Row:
    """How many answers stay the same between the two ways in bfloat16, where rounding is coarse."""
    vlm = random_llava(setting.size, setting.device, torch.bfloat16)
    asked = samples(COUNT, images=True)
    static = [vlm.decode(row) for row in _static(vlm, asked, HALVED)]
    trials = [Trial(sample, "own") for sample in asked]
    ours = generate(vlm, trials, max_new_tokens=HALVED, batch_size=BATCH)
    same = sum(a == b for a, b in zip(static, ours, strict=True)) / len(ours)
    note = f"share of {COUNT} responses of {HALVED} tokens, random weights"
    return check("answers in bfloat16 identical", "static", same, None, note)


def _mix(setting: Setting, *, images: bool) -> list[Row]:
    count = SEEING if images else COUNT
    with _rigged(setting.vlm, images=images):
        chosen = _chosen(setting.vlm, count, images=images)

        def fresh() -> tuple[VLM, list[Sample]]:
            pool = _pool(setting.vlm, images=images)
            return cold(setting.vlm), [pool[index] for index in chosen]

        timings = measure(
            {"static": Case(_static, fresh), "ours": Case(_ours, fresh)}, setting.rounds
        )
    what = "answers with own images" if images else "answers to text only"
    theirs, ours = timings.outputs["static"], timings.outputs["ours"]
    lengths = [len(row) for row in theirs]
    if lengths != [SHORT, LONG] * (count // 2):
        raise RuntimeError(f"the rigged model's answers have {lengths} tokens")
    texts = [setting.vlm.decode(row) for row in theirs]
    same = sum(a == b for a, b in zip(texts, ours, strict=True)) / len(ours)
    exact = Target("at least", 1.0) if setting.dtype == torch.float32 else None
    note = f"share of responses; {len(set(texts))} different among {count}"
    return [
        faster(timings, "static", what=what),
        check(f"{what} identical", "static", same, exact, note),
    ]


def _length(vlm: VLM, query: str) -> int:
    """Tokens of a text-only prompt."""
    return len(vlm.tokenizer(vlm.prompt_text(query, image=False))["input_ids"])


def _pool(vlm: VLM, *, images: bool) -> list[Sample]:
    """Samples to choose from, marks put at their ends until all are equally long."""
    found = []
    for sample in samples(POOL, images=images):
        query = sample.query
        while _length(vlm, query) < TEXT_TOKENS:
            query += "!"
        found.append(replace(sample, query=query))
    return found


def _chosen(vlm: VLM, count: int, *, images: bool) -> list[int]:
    """Which of the pool to ask: in turn one with a short and one with a long answer.

    Raises:
        RuntimeError: the pool holds too few of either.
    """
    first = [row[0] for row in _static(vlm, _pool(vlm, images=images), 1)]
    short, long = ([i for i, token in enumerate(first) if token % 2 == odd] for odd in (0, 1))
    if min(len(short), len(long)) < count // 2:
        raise RuntimeError(f"{len(short)} short and {len(long)} long answers in the pool")
    pairs = zip(short[: count // 2], long[: count // 2], strict=True)
    return list(chain.from_iterable(pairs))


@contextmanager
def _rigged(vlm: VLM, *, images: bool) -> Iterator[None]:
    """Rig the model's LM head by the token before and its position, as the topic's text says."""
    tokenizer, device = vlm.tokenizer, vlm.device
    end, size = tokenizer.eos_token_id, vlm.model.config.get_text_config().vocab_size
    colon = tokenizer(vlm.prompt_text("", image=False))["input_ids"][-1]
    last = TEXT_TOKENS - 1 + (IMAGE_TOKENS + 1 if images else 0)  # and the line's end after it
    ids = torch.arange(size, device=device)
    kinds = torch.where(ids == colon, 2, ids % 2)  # of the token before: even, odd, the prompt's
    barred = torch.stack([ids % 2 == 1, ids % 2 == 0, torch.zeros_like(ids, dtype=torch.bool)])
    barred[:, [colon, end]] = True
    seen: dict[str, Tensor] = {}

    def see_ids(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["kind"] = kinds[args[0][:, -1]]

    def see_places(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        places = named["position_ids"] if "position_ids" in named else args[1]
        seen["over"] = places[:, -1] == last + SHORT - 1  # one a row, or one for all

    def decide(_module: nn.Module, _args: Any, logits: Tensor) -> Tensor:
        chosen = logits[:, -1].masked_fill(barred[seen["kind"]], -1e4)
        ending = (seen["kind"] == 0) & seen["over"]
        chosen[:, end] = torch.where(ending, 1e4, -1e4).to(logits.dtype)
        return torch.cat([logits[:, :-1], chosen[:, None]], dim=1)

    settings, decoder = vlm.model.generation_config, vlm.model.model.language_model
    plain = settings.eos_token_id
    settings.eos_token_id = end
    handles = [
        decoder.embed_tokens.register_forward_pre_hook(see_ids),
        decoder.rotary_emb.register_forward_pre_hook(see_places, with_kwargs=True),
        vlm.model.lm_head.register_forward_hook(decide),
    ]
    try:
        yield
    finally:
        settings.eos_token_id = plain
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def _static(vlm: VLM, requests: Sequence[Sample], new: int = LONG) -> list[list[int]]:
    """Token ids of each answer, the end's among them."""
    end = vlm.tokenizer.eos_token_id
    found = []
    for batch in batches(requests, BATCH):
        inputs = vlm.inputs([s.query for s in batch], [s.load_image() for s in batch])
        whole = vlm.model.generate(**inputs, max_new_tokens=new, do_sample=False)
        for row in whole[:, inputs["input_ids"].shape[1] :].tolist():
            found.append(row[: row.index(end) + 1] if end in row else row)  # what follows pads
    return found


def _ours(vlm: VLM, requests: Sequence[Sample]) -> list[str]:
    trials = [Trial(sample, "own" if sample.image else "none") for sample in requests]
    return generate(vlm, trials, max_new_tokens=LONG, batch_size=BATCH)
