"""What steering costs beside the same job without it."""

from collections.abc import Callable, Sequence

from benchmarks.report import Row, Target, check, cost
from benchmarks.setting import FULL, WIDE, Setting, cold, random_llava, samples
from benchmarks.timing import Case, measure
from cmrm_utils import (
    CMRM,
    VLM,
    Edit,
    Sample,
    Trial,
    extract_shift,
    generate,
    load_samples,
    load_vlm,
)

TITLE = "Cost of steering"
FAINT = 1e-7
"""An alpha so small that no token changes: steered and plain rows then do equal work."""

WIDE_COUNT, WIDE_NEW, WIDE_ROUNDS = 2, 12, 9
ORGANISM_COUNT, ORGANISM_NEW = 64, 24
SAMPLE_COUNT, SAMPLE_NEW = 8, 64


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        f"The same trials with and without CMRM at every layer, alpha {FAINT:g}: too faint to "
        "change a token, so both do equal work. *sample-level*: each sample's own shift is "
        "extracted first, and that time counts."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    return [*_wide(setting), *_organism(setting), *_sample_level(setting)]


def _both(
    setting: Setting,
    vlm: VLM,
    make: Callable[[], Sequence[Sample]],
    image: str,
    new: int,
    rounds: int,
    what: str,
    note: str,
    target: float | None = None,
) -> list[Row]:
    edit = CMRM(extract_shift(vlm, make()), FAINT)

    def respond(vlm: VLM, requests: Sequence[Sample], edit: Edit | None) -> list[str]:
        return generate(vlm, [Trial(s, image, edit) for s in requests], max_new_tokens=new)

    timings = measure(
        {
            "plain": Case(respond, lambda: (cold(vlm), make(), None)),
            "steered": Case(respond, lambda: (cold(vlm), make(), edit)),
        },
        rounds,
    )
    row = cost(timings, "plain", ours="steered", what=what, target=target, note=note)
    return [row, _identical(what, timings.outputs["plain"], timings.outputs["steered"])]


def _identical(what: str, plain: Sequence[str], steered: Sequence[str]) -> Row:
    same = sum(a == b for a, b in zip(plain, steered, strict=True)) / len(plain)
    note = "share of responses; else the ratio compares unequal work"
    return check(f"{what}: equal work", "plain", same, Target("at least", 1.0), note)


def _wide(setting: Setting) -> list[Row]:
    """At 7B's width: the whole model on a GPU, on the CPU two of its layers."""
    size = FULL if setting.on_gpu else WIDE
    wide = setting.vlm if setting.on_gpu else random_llava(size, setting.device, setting.dtype)
    count, new = (SAMPLE_COUNT, SAMPLE_NEW) if setting.on_gpu else (WIDE_COUNT, WIDE_NEW)
    image = "own" if setting.on_gpu else "none"
    rounds = max(setting.rounds, WIDE_ROUNDS)
    prompts = "with own images" if setting.on_gpu else "text only"
    note = f"{size.text}; {count} prompts, {prompts}, {new} new tokens; {rounds} rounds"
    what = "steering at 7B's width"
    return _both(setting, wide, lambda: samples(count), image, new, rounds, what, note, 1.02)


def _organism(setting: Setting) -> list[Row]:
    organism = load_vlm("organism", device=setting.device)
    every = [s for s in load_samples("organism", "test") if s.image is not None]
    step = len(every) // ORGANISM_COUNT

    def make() -> list[Sample]:
        return every[::step][:ORGANISM_COUNT]

    rounds = max(setting.rounds, WIDE_ROUNDS)
    job = f"{ORGANISM_COUNT} samples with own images, at most {ORGANISM_NEW} new tokens"
    note = f"{job}; {rounds} rounds"
    what = "steering the organism"
    return _both(setting, organism, make, "own", ORGANISM_NEW, rounds, what, note)


def _sample_level(setting: Setting) -> list[Row]:
    def plain(vlm: VLM, requests: Sequence[Sample]) -> list[str]:
        return generate(vlm, [Trial(sample) for sample in requests], max_new_tokens=SAMPLE_NEW)

    def steered(vlm: VLM, requests: Sequence[Sample]) -> list[str]:
        edit = CMRM(extract_shift(vlm, requests, level="sample"), FAINT)
        trials = [Trial(sample, edit=edit) for sample in requests]
        return generate(vlm, trials, max_new_tokens=SAMPLE_NEW)

    def fresh() -> tuple[VLM, list[Sample]]:
        return cold(setting.vlm), samples(SAMPLE_COUNT)

    timings = measure(
        {"plain": Case(plain, fresh), "sample-level": Case(steered, fresh)}, setting.rounds
    )
    what = "sample-level CMRM with its extraction"
    note = f"{SAMPLE_COUNT} samples with own images, {SAMPLE_NEW} new tokens"
    row = cost(timings, "plain", ours="sample-level", what=what, target=1.25, note=note)
    return [row, _identical(what, timings.outputs["plain"], timings.outputs["sample-level"])]
