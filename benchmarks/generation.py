"""Responses of very different lengths: rows that leave early, against static batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import Row, Target, check, faster
from benchmarks.setting import IMAGE_TOKENS, Setting, batches, cold, samples
from benchmarks.timing import Case, measure
from cmrm_utils import VLM, Sample, Trial, generate

TITLE = "Short answers leave early"
SHORT, LONG = 10, 200
COUNT, SEEING, BATCH = 32, 16, 8
BRIEF, WORDY = 34, 46
"""Text tokens of the prompts that get short and long answers."""


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        f"{COUNT} prompts ({SEEING} with images), in turn one whose answer has {SHORT} tokens "
        f"and one whose has {LONG}. "
        "Both ways run the same rigged model: at one position, which only the prompts that get "
        "short answers begin before, its LM head gives the end token; elsewhere it never does. "
        f"*static*: transformers' `generate` on batches of {BATCH}, prompts in the order given; "
        "*static, sorted*: prompts sorted by length, so that here, where lengths tell, short "
        "answers come together, as no real list would let them. The engine has no more rows at "
        "once."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    return [*_mix(setting, images=False), *_mix(setting, images=True)]


def _mix(setting: Setting, *, images: bool) -> list[Row]:
    count = SEEING if images else COUNT

    def fresh() -> tuple[VLM, list[Sample]]:
        return cold(setting.vlm), _asked(setting.vlm, count, images=images)

    before = IMAGE_TOKENS + 1 if images else 0  # the picture and the line's end after it
    with _ending(setting.vlm, before + BRIEF + SHORT - 2):
        cases: dict[str, Any] = {"static": _static, "ours": _ours}
        if not images:
            cases["static, sorted"] = _sorted
        timings = measure({name: Case(way, fresh) for name, way in cases.items()}, setting.rounds)
    what = "answers with own images" if images else "answers to text only"
    theirs, ours = timings.outputs["static"], timings.outputs["ours"]
    lengths = [len(row) for row in theirs]
    wanted = [SHORT, LONG] * (count // 2)
    assert lengths == wanted, f"the rigged model's answers have {lengths} tokens"
    texts = [setting.vlm.decode(row) for row in theirs]
    same = sum(a == b for a, b in zip(texts, ours, strict=True)) / len(ours)
    exact = Target("at least", 1.0) if setting.dtype == torch.float32 else None
    note = f"share of responses; {len(set(texts))} different among {count}"
    return [
        *(faster(timings, name, what=what) for name in cases if name != "ours"),
        check(f"{what} identical", "static", same, exact, note),
    ]


def _asked(vlm: VLM, count: int, *, images: bool) -> list[Sample]:
    """Samples whose prompts have, in turn, ``BRIEF`` and ``WORDY`` tokens."""
    brief = samples(count // 2, images=images, tokens=BRIEF)
    wordy = samples(count, images=images, tokens=WORDY)[count // 2 :]
    pairs = (
        (_stretched(vlm, short, BRIEF), _stretched(vlm, long, WORDY))
        for short, long in zip(brief, wordy, strict=True)
    )
    return list(chain.from_iterable(pairs))


def _stretched(vlm: VLM, sample: Sample, tokens: int) -> Sample:
    """The sample with as many marks at its end as make its prompt so many tokens long."""
    query = sample.query
    while len(vlm.tokenizer(vlm.prompt_text(query, image=False))["input_ids"]) < tokens:
        query += "!"
    return replace(sample, query=query)


@contextmanager
def _ending(vlm: VLM, position: int) -> Iterator[None]:
    """Rig the model: the token chosen after the one at ``position`` is the end, no other is."""
    end = vlm.tokenizer.eos_token_id
    places: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        places[:] = [named["position_ids"] if "position_ids" in named else args[1]]

    def decide(_module: nn.Module, _args: Any, logits: Tensor) -> Tensor:
        ends = torch.where(places[0][:, -1:] == position, 1e4, -1e4)  # one a row, or one for all
        logits = logits.clone()
        logits[:, -1:, end] = ends.to(logits.dtype)
        return logits

    settings = vlm.model.generation_config
    plain = settings.eos_token_id
    settings.eos_token_id = end
    rotary = vlm.model.model.language_model.rotary_emb
    handles = [
        rotary.register_forward_pre_hook(note, with_kwargs=True),
        vlm.model.lm_head.register_forward_hook(decide),
    ]
    try:
        yield
    finally:
        settings.eos_token_id = plain
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def _static(vlm: VLM, asked: Sequence[Sample]) -> list[list[int]]:
    """Token ids of each answer, the end's among them."""
    end = vlm.tokenizer.eos_token_id
    found = []
    for batch in batches(asked, BATCH):
        inputs = vlm.inputs([s.query for s in batch], [s.load_image() for s in batch])
        whole = vlm.model.generate(**inputs, max_new_tokens=LONG, do_sample=False)
        for row in whole[:, inputs["input_ids"].shape[1] :].tolist():
            found.append(row[: row.index(end) + 1] if end in row else row)  # what follows pads
    return found


def _sorted(vlm: VLM, asked: Sequence[Sample]) -> list[list[int]]:
    return _static(vlm, sorted(asked, key=lambda sample: len(sample.query)))


def _ours(vlm: VLM, asked: Sequence[Sample]) -> list[str]:
    trials = [Trial(sample, "own" if sample.image else "none") for sample in asked]
    return generate(vlm, trials, max_new_tokens=LONG, batch_size=BATCH)
