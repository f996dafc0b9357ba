"""An image that many trials show is encoded once."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.report import Row, Target, check, faster
from benchmarks.setting import Setting, batches, cold, picture, samples
from benchmarks.timing import Case, measure
from cmrm_utils import VLM, Sample, Trial, generate

TITLE = "Shared images"
PICTURES, QUESTIONS, NEW, BATCH = 2, 12, 8, 8


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        f"{PICTURES} pictures, {QUESTIONS} questions about each, {NEW} new tokens. *plain*: "
        f"transformers' `generate` in batches of {BATCH}. Encodings are counted where they "
        "happen, in the vision tower."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""

    def fresh() -> tuple[VLM, list[Sample]]:
        asked = samples(PICTURES * QUESTIONS, images=False)
        shown = [picture(number) for number in range(PICTURES)]
        return cold(setting.vlm), [
            Sample(s.id, s.query, image=shown[i % PICTURES]) for i, s in enumerate(asked)
        ]

    cases = {"plain": Case(_plain, fresh), "ours": Case(_ours, fresh)}
    timings = measure(cases, setting.rounds)
    counts = {name: _encodings(setting, case) for name, case in cases.items()}
    theirs, ours = timings.outputs["plain"], timings.outputs["ours"]
    same = sum(a == b for a, b in zip(theirs, ours, strict=True)) / len(ours)
    exact = Target("at least", 1.0) if setting.dtype == torch.float32 else None
    return [
        faster(
            timings,
            "plain",
            what="questions about few pictures",
            note="beginnings are shared too: picture and words before it",
        ),
        Row(
            "encodings of a picture",
            f"plain {counts['plain'] / PICTURES:g}",
            f"ours {counts['ours'] / PICTURES:g}",
            counts["ours"] / PICTURES,
            Target("at most", 1.0),
            "a number, not a ratio",
        ),
        check("answers identical", "plain", same, exact, "share of responses"),
    ]


@torch.inference_mode()
def _plain(vlm: VLM, requests: Sequence[Sample]) -> list[str]:
    found = []
    for batch in batches(requests, BATCH):
        inputs = vlm.inputs([s.query for s in batch], [s.load_image() for s in batch])
        whole = vlm.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        found += [vlm.decode(row) for row in whole[:, inputs["input_ids"].shape[1] :].tolist()]
    return found


def _ours(vlm: VLM, requests: Sequence[Sample]) -> list[str]:
    return generate(vlm, [Trial(sample) for sample in requests], max_new_tokens=NEW)


def _encodings(setting: Setting, case: Case) -> int:
    """Pictures that go through the vision tower in one run."""
    seen = []

    def count(_module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(len(args[0] if args else named["pixel_values"]))

    tower = setting.vlm.model.model.vision_tower
    handle = tower.register_forward_pre_hook(count, with_kwargs=True)
    try:
        case.run(*case.setup())
    finally:
        handle.remove()
    return sum(seen)
