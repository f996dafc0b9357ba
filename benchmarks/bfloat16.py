"""bfloat16 on a CPU: what the engine gains over plain ``generate`` where it counts most."""

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.report import Row, check, faster
from benchmarks.setting import SMALL, TEXT_TOKENS, Setting, Size, cold, random_llava, samples
from benchmarks.timing import Case, measure
from cmrm_utils import VLM, Sample, Trial, generate
from cmrm_utils.loading import has_bfloat16

TITLE = "bfloat16"
ROWS, NEW = 64, 16
SIZE = Size(576, 1536, 30, 9, 49152, SMALL.tower, key_heads=3, tied=True)
"""SmolLM2-135M's, whose vocabulary is a fifth of it."""


def setting_text(setting: Setting) -> str:
    """What is measured."""
    has = "" if has_bfloat16(setting.device) else "no "
    kind = f" ({torch.backends.cpu.get_cpu_capability()})" if not setting.on_gpu else ""
    return (
        f"Here the model is a LLaVA with a decoder of 135 million parameters ({SIZE.text}); "
        f"{ROWS} prompts of text only, about {TEXT_TOKENS} tokens, {NEW} new tokens in one "
        f"batch. *plain*: transformers' `generate`. This processor{kind} has {has}instructions "
        "for bfloat16."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    rows, asked = [], samples(ROWS, images=False)

    def fresh(vlm: VLM) -> tuple[VLM, list[Sample]]:
        return cold(vlm), asked

    for dtype, target in ((torch.bfloat16, 2.5), (torch.float32, None)):
        vlm = random_llava(SIZE, setting.device, dtype)
        ways = {"plain": _plain, "ours": _ours}
        cases = {name: Case(way, partial(fresh, vlm)) for name, way in ways.items()}
        timings = measure(cases, setting.rounds)
        theirs, ours = timings.outputs["plain"], timings.outputs["ours"]
        same = sum(a == b for a, b in zip(theirs, ours, strict=True)) / ROWS
        precision = str(dtype).removeprefix("torch.")
        rows.append(faster(timings, "plain", what=f"responses in {precision}", target=target))
        rows.append(check(f"responses in {precision} identical", "plain", same, None, "share"))
    return rows


@torch.inference_mode()
def _plain(vlm: VLM, requests: Sequence[Sample]) -> list[str]:
    inputs = vlm.inputs([sample.query for sample in requests], [None] * len(requests))
    whole = vlm.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return [vlm.decode(row) for row in whole[:, inputs["input_ids"].shape[1] :].tolist()]


def _ours(vlm: VLM, requests: Sequence[Sample]) -> list[str]:
    trials = [Trial(sample, "none") for sample in requests]
    return generate(vlm, trials, max_new_tokens=NEW, batch_size=ROWS)
