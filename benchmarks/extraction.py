"""The shift's extraction: prompts that begin with the same meaningless image."""

from collections.abc import Callable

from torch import Tensor

from benchmarks import peers
from benchmarks.peers import Prompts
from benchmarks.report import Row, Target, check, faster
from benchmarks.setting import Setting, cold, largest_difference, samples
from benchmarks.timing import Case, measure
from cmrm_utils import VLM, Sample, ShiftVectors, Trial, extract_shift, hidden_states

COUNT = 32
NOISE_COUNT = 16
TITLE = "Extraction"

NAMES = {
    "usual way": peers.usual,
    "fair best": peers.fair,
    "xl-vlms' way": peers.xl_vlms,
    "steering-vectors": peers.steering_vectors,
    "nnsight": peers.nnsight,
}
NEEDS = {"steering-vectors": "steering_vectors", "nnsight": "nnsight"}


def setting_text(setting: Setting) -> str:
    """What is measured."""
    return (
        f"{setting.text} The shift of {COUNT} samples, `h(x, image) - h(x)` at every layer: each "
        "prompt once with the meaningless image and once without. *usual way*: one prompt at a "
        f"time, `output_hidden_states=True`, LM head included. *fair best*: batches of "
        f"{peers.BATCH}, last token only, no LM head. The engine starts cold in every round, its "
        "batches are of its own choice."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    return [*_blank(setting), *_noise(setting)]


def _theirs(
    vlm: VLM, way: Callable[[VLM, Prompts], Tensor], images: tuple[str, ...], count: int
) -> Case:
    """Another's way to the mean shift towards some images, and to the states behind it."""

    def setup() -> tuple[list[Sample]]:
        return (samples(count),)

    def extract(anchors: list[Sample]) -> tuple[Tensor, Tensor]:
        trials = [Trial(anchor, image) for image in ("none", *images) for anchor in anchors]
        prompts = [(trial.text, trial.load_image()) for trial in trials]
        order = [*prompts[count:], *prompts[:count]]  # those with pictures first
        states = way(vlm, order).view(len(images) + 1, count, len(vlm.layers), vlm.hidden_size)
        return states[:-1].mean(0).sub(states[-1]).mean(0), states

    return Case(extract, setup)


def _ours(vlm: VLM, meaningless: str, count: int) -> Case:
    def setup() -> tuple[VLM, list[Sample]]:
        return cold(vlm), samples(count)

    def extract(vlm: VLM, anchors: list[Sample]) -> ShiftVectors:
        return extract_shift(vlm, anchors, meaningless=meaningless)

    return Case(extract, setup)


def _blank(setting: Setting) -> list[Row]:
    vlm = setting.vlm
    here = peers.installed()
    ways = {name: way for name, way in NAMES.items() if NEEDS.get(name, "") in ("", *here)}
    cases = {name: _theirs(vlm, way, ("blank",), COUNT) for name, way in ways.items()}
    timings = measure({**cases, "ours": _ours(vlm, "blank", COUNT)}, setting.rounds)
    targets = {"usual way": 10.0, "fair best": 5.0}
    rows = [
        faster(timings, name, what="shift towards `blank`", target=targets.get(name))
        for name in ways
    ]
    anchors = samples(COUNT)
    trials = [Trial(anchor, image) for image in ("blank", "none") for anchor in anchors]
    states = hidden_states(vlm, trials).view(2, COUNT, len(vlm.layers), vlm.hidden_size)
    close = None if setting.on_gpu else Target("at most", 1e-5)
    for name in ways:
        theirs = timings.outputs[name][1]
        upto = -1 if name == "usual way" else None  # its last layer is after the final norm
        differ = largest_difference(states[..., :upto, :], theirs[..., :upto, :])
        note = f"largest difference; states up to {float(states.abs().max()):.3g}"
        if name == "usual way":
            note += "; all layers but the last, which it has after the final norm"
        rows.append(check("states equal", name, differ, close, note))
    return rows


def _noise(setting: Setting) -> list[Row]:
    vlm = setting.vlm
    images = ("noise-0", "noise-1", "noise-2", "noise-3")
    ways = {name: NAMES[name] for name in ("usual way", "fair best")}
    cases = {name: _theirs(vlm, way, images, NOISE_COUNT) for name, way in ways.items()}
    timings = measure({**cases, "ours": _ours(vlm, "noise", NOISE_COUNT)}, setting.rounds)
    note = f"mean over {len(images)} noise images, {NOISE_COUNT} samples"
    what = "shift towards `noise`"
    rows = [
        faster(timings, "usual way", what=what, target=10, note=note),
        faster(timings, "fair best", what=what, target=5, note=note),
    ]
    differ = largest_difference(timings.outputs["ours"].values, timings.outputs["fair best"][0])
    close = None if setting.on_gpu else Target("at most", 1e-5)
    return [*rows, check("shift towards `noise` equal", "fair best", differ, close)]
