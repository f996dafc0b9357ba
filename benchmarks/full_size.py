"""LLaVA-1.5-7B's sizes in bfloat16, random weights: that they run, and what they take.

Needs 16 GB of memory, so it is run when asked for (``--only full_size``).
"""

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.report import Row, cost, faster
from benchmarks.setting import FULL, Setting, cold, random_llava, samples
from benchmarks.timing import Case, measure
from cmrm_utils import CMRM, VLM, Sample, Trial, extract_shift, generate, hidden_states

TITLE = "LLaVA-1.5-7B's sizes"
COUNT, NEW, ALPHA = 4, 8, 5.0


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        f"{FULL.layers} layers of width {FULL.hidden}, {FULL.vocabulary} tokens' vocabulary and "
        "the whole vision tower, bfloat16, random weights. *fair best* as under extraction. The "
        f"steered response is to one sample with its own image, {NEW} tokens, CMRM at every layer."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    vlm = random_llava(FULL, setting.device, torch.bfloat16)
    return [_states(vlm, setting.rounds), _steered(vlm, setting.rounds)]


def _states(vlm: VLM, rounds: int) -> Row:
    def fair(requests: list[Sample]) -> Tensor:
        trials = [Trial(sample, "blank") for sample in requests]
        return peers.fair(vlm, [(trial.text, trial.load_image()) for trial in trials])

    def ours(vlm: VLM, requests: list[Sample]) -> Tensor:
        return hidden_states(vlm, [Trial(sample, "blank") for sample in requests])

    timings = measure(
        {
            "fair best": Case(fair, lambda: (samples(COUNT),)),
            "ours": Case(ours, lambda: (cold(vlm), samples(COUNT))),
        },
        rounds,
    )
    states = timings.outputs["ours"]
    note = f"states {tuple(states.shape)}, all finite: {bool(torch.isfinite(states).all())}"
    return faster(timings, "fair best", what=f"states under `blank`, {COUNT} samples", note=note)


def _steered(vlm: VLM, rounds: int) -> Row:
    edit = CMRM(extract_shift(vlm, samples(2)), ALPHA)

    def respond(vlm: VLM, trial: Trial) -> list[str]:
        return generate(vlm, [trial], max_new_tokens=NEW)

    timings = measure(
        {
            "plain": Case(respond, lambda: (cold(vlm), Trial(samples(1)[0]))),
            "steered": Case(respond, lambda: (cold(vlm), Trial(samples(1)[0], edit=edit))),
        },
        rounds,
    )
    changed = timings.outputs["plain"] != timings.outputs["steered"]
    note = f"one response of {NEW} tokens; alpha {ALPHA:g} changes it: {changed}"
    return cost(timings, "plain", what="a steered response", ours="steered", note=note)
