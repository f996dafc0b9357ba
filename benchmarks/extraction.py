"""The shift's extraction: prompts that begin with the same meaningless image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import Prompts
from benchmarks.report import Row, Target, check, faster
from benchmarks.setting import Setting, cold, largest_difference, samples
from benchmarks.timing import Case, Timings, measure
from cmrm_utils import VLM, Sample, ShiftVectors, Trial, extract_shift, hidden_states

TITLE = "Extraction"
STATES, PEERS, SHIFT, NOISE = 100, 16, 100, 100
"""Samples of each comparison; 100 are what the notebooks take of a kind of anchors."""

NOISES = ("noise-0", "noise-1", "noise-2", "noise-3")
TARGETS = {"usual way": 10.0, "fair best": 5.0}
WAYS = {"usual way": peers.usual, "fair best": peers.fair}
OTHERS = {
    "steering_vectors": ("steering-vectors", peers.steering_vectors),
    "nnsight": ("nnsight", peers.nnsight),
}


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        "*states*: of prompts with the meaningless image, at the last token, every layer. *shift*: "
        "`h(x, image) - h(x)`, so each prompt once more as text only. *usual way*: one prompt at "
        "a time, `output_hidden_states=True`, LM head included. *fair best*: batches of "
        f"{peers.BATCH}, last token only, no LM head; the peers' batches are as large. The engine "
        "starts cold in every round; its batches are of its own choice."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    return [*_states(setting), *_peers(setting), *_shift(setting), *_noise(setting)]


def _prompts(anchors: Sequence[Sample], images: Sequence[str]) -> Prompts:
    trials = [Trial(anchor, image) for image in images for anchor in anchors]
    return [(trial.text, trial.load_image()) for trial in trials]


def _their_states(vlm: VLM, way: Callable[[VLM, Prompts], Tensor], count: int) -> Case:
    return Case(lambda anchors: way(vlm, _prompts(anchors, ("blank",))), lambda: (samples(count),))


def _our_states(vlm: VLM, count: int) -> Case:
    def states(vlm: VLM, anchors: list[Sample]) -> Tensor:
        return hidden_states(vlm, [Trial(anchor, "blank") for anchor in anchors])

    return Case(states, lambda: (cold(vlm), samples(count)))


def _compared(setting: Setting, timings: Timings, names: Sequence[str]) -> list[Row]:
    """That our states are theirs; the usual way's last layer is after the final norm."""
    ours = timings.outputs["ours"]
    rows = []
    for name in names:
        upto = -1 if name == "usual way" else None
        differ = largest_difference(ours[:, :upto], timings.outputs[name][:, :upto])
        note = f"largest difference; states up to {float(ours.abs().max()):.3g}"
        if upto:
            note += "; all layers but the last, which it has after the final norm"
        rows.append(check("states equal", name, differ, _close(setting), note))
    return rows


def _close(setting: Setting) -> Target | None:
    """Only float32 can be exact."""
    return Target("at most", 1e-5) if setting.dtype == torch.float32 else None


def _states(setting: Setting) -> list[Row]:
    vlm = setting.vlm
    cases = {name: _their_states(vlm, way, STATES) for name, way in WAYS.items()}
    timings = measure({**cases, "ours": _our_states(vlm, STATES)}, setting.rounds)
    what = f"states under `blank`, {STATES} samples"
    rows = [faster(timings, name, what=what, target=TARGETS[name]) for name in WAYS]
    return rows + _compared(setting, timings, list(WAYS))


def _peers(setting: Setting) -> list[Row]:
    vlm = setting.vlm
    ways = {"xl-vlms' way": peers.xl_vlms} | dict(OTHERS[name] for name in peers.installed())
    cases = {name: _their_states(vlm, way, PEERS) for name, way in ways.items()}
    timings = measure({**cases, "ours": _our_states(vlm, PEERS)}, setting.rounds)
    what = f"states under `blank`, {PEERS} samples"
    rows = [faster(timings, name, what=what) for name in ways]
    return rows + _compared(setting, timings, list(ways))


def _their_shift(
    vlm: VLM, way: Callable[[VLM, Prompts], Tensor], images: Sequence[str], count: int
) -> Case:
    def shift(anchors: list[Sample]) -> Tensor:
        prompts = _prompts(anchors, (*images, "none"))
        states = way(vlm, prompts).view(len(images) + 1, count, len(vlm.layers), vlm.hidden_size)
        return (states[:-1].mean(0) - states[-1]).mean(0)

    return Case(shift, lambda: (samples(count),))


def _our_shift(vlm: VLM, meaningless: str, count: int) -> Case:
    def shift(vlm: VLM, anchors: list[Sample]) -> ShiftVectors:
        return extract_shift(vlm, anchors, meaningless=meaningless)

    return Case(shift, lambda: (cold(vlm), samples(count)))


def _shift(setting: Setting, meaningless: str = "blank", note: str = "") -> list[Row]:
    vlm = setting.vlm
    count = SHIFT if meaningless == "blank" else NOISE
    images = ("blank",) if meaningless == "blank" else NOISES
    cases = {name: _their_shift(vlm, way, images, count) for name, way in WAYS.items()}
    timings = measure({**cases, "ours": _our_shift(vlm, meaningless, count)}, setting.rounds)
    what = f"shift towards `{meaningless}`, {count} samples"
    rows = [faster(timings, name, what=what, target=TARGETS[name], note=note) for name in WAYS]
    differ = largest_difference(timings.outputs["ours"].values, timings.outputs["fair best"])
    note = f"largest difference; up to {float(timings.outputs['fair best'].abs().max()):.3g}"
    equal = check(
        f"shift towards `{meaningless}` equal", "fair best", differ, _close(setting), note
    )
    return [*rows, equal]


def _noise(setting: Setting) -> list[Row]:
    return _shift(setting, "noise", f"mean over {len(NOISES)} noise images")
