"""An alpha sweep in one call, against one alpha and against a call for each alpha."""

from collections.abc import Sequence
from typing import Literal

import torch

from benchmarks.report import Row, Target, check, cost
from benchmarks.setting import Setting, cold, samples
from benchmarks.timing import Case, measure
from cmrm_utils import CMRM, VLM, Sample, ShiftVectors, Trial, extract_shift, generate

TITLE = "Alpha sweep"
COUNT, NEW = 8, 64
COUNT_ON_CPU = 2
"""Samples of the sweep on all tokens where nothing is promised: nothing is shared there."""

ALPHAS = tuple(round(0.1 * i, 1) for i in range(1, 12))


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        f"{len(ALPHAS)} alphas ({ALPHAS[0]} to {ALPHAS[-1]}) of {COUNT} samples with their own "
        f"images, {NEW} new tokens each. *one alpha*: a call with one alpha's trials; "
        f"*apart*: {len(ALPHAS)} such calls, each cold; *together*: one call with all trials."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    vectors = extract_shift(setting.vlm, samples(COUNT))
    return [*_all_tokens(setting, vectors), *_last_token(setting, vectors)]


Start = tuple[VLM, list[Sample]]


def _respond(
    start: Start, vectors: ShiftVectors, alphas: Sequence[float], tokens: Literal["all", "last"]
) -> list[str]:
    vlm, requests = start
    edits = [CMRM(vectors, alpha, tokens=tokens) for alpha in alphas]
    trials = [Trial(sample, "own", edit) for edit in edits for sample in requests]
    return generate(vlm, trials, max_new_tokens=NEW)


def _all_tokens(setting: Setting, vectors: ShiftVectors) -> list[Row]:
    count = COUNT if setting.on_gpu else COUNT_ON_CPU

    def fresh() -> tuple[Start]:
        return ((cold(setting.vlm), samples(count)),)

    timings = measure(
        {
            "one alpha": Case(lambda start: _respond(start, vectors, ALPHAS[:1], "all"), fresh),
            "together": Case(lambda start: _respond(start, vectors, ALPHAS, "all"), fresh),
        },
        setting.rounds,
    )
    one, together = timings.outputs["one alpha"], timings.outputs["together"]
    row = cost(
        timings,
        "one alpha",
        ours="together",
        what="sweep, edits on all tokens",
        target=2.5 if setting.on_gpu else None,
        note="" if setting.on_gpu else f"{count} samples; 2.5 is the target for a GPU",
    )
    return [row, _identical(setting, "sweep's first alpha", one, together[: len(one)])]


def _last_token(setting: Setting, vectors: ShiftVectors) -> list[Row]:
    def apart(each: Sequence[Start]) -> list[str]:
        pairs = zip(each, ALPHAS, strict=True)
        return [r for start, alpha in pairs for r in _respond(start, vectors, [alpha], "last")]

    def fresh() -> tuple[Start]:
        return ((cold(setting.vlm), samples(COUNT)),)

    def fresh_each() -> tuple[list[Start]]:
        return ([(cold(setting.vlm), samples(COUNT)) for _ in ALPHAS],)

    timings = measure(
        {
            "apart": Case(apart, fresh_each),
            "together": Case(lambda start: _respond(start, vectors, ALPHAS, "last"), fresh),
        },
        setting.rounds,
    )
    row = cost(
        timings,
        "apart",
        ours="together",
        what="sweep, edits from the last prompt token on",
        target=0.5,
    )
    outputs = timings.outputs
    return [row, _identical(setting, "sweep", outputs["apart"], outputs["together"])]


def _identical(setting: Setting, what: str, theirs: Sequence[str], ours: Sequence[str]) -> Row:
    same = sum(a == b for a, b in zip(theirs, ours, strict=True)) / len(ours)
    exact = Target("at least", 1.0) if setting.dtype == torch.float32 else None
    return check(f"{what} identical", "alone", same, exact, "share of responses")
