"""A model's check at load: a few passes of the engine, against transformers alone.

If the engine's fastest way to run gives other numbers, the next slower one is tried. A model of
which even the slowest gives others is refused.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cmrm_utils.checks.alone import few_layers, layers_path, only_first, reply_alone, states_alone
from cmrm_utils.edits import Edit
from cmrm_utils.engine.cache import can_share
from cmrm_utils.engine.inputs import forget_images, images_of, prompts, tokens
from cmrm_utils.engine.loops import hidden_states, respond
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM, Way
from cmrm_utils.paths import cache_home
from cmrm_utils.processors import out_of_memory
from cmrm_utils.sample import Sample
from cmrm_utils.store import read_json, write_json
from cmrm_utils.trials import Trial

EXACT = 1e-4
"""In float32: the largest difference of a state, in units of its layer's root mean square."""


STEPS = 2
"""Tokens that an edited response has here."""


WAYS: tuple[Way, ...] = ("shared", "batches", "plain")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One comparison with transformers alone.

    Attributes:
        way: how the engine ran (:data:`cmrm_utils.models.Way`).
        what: what was compared.
        difference: the largest that was found.
        bound: the largest that counts as equal.
        note: what went wrong, if nothing could be compared.
    """

    way: str
    what: str
    difference: float
    bound: float
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether it counts as equal; NaN does not."""
        return not self.note and self.difference <= self.bound


@dataclass(frozen=True)
class Report:
    """What the check of a model found.

    Attributes:
        way: the fastest way to run that is right; None if the model is refused.
        rows: the comparisons, in the order in which they were made.
        reason: why the model is refused, or runs more slowly than it might; else empty.
    """

    way: Way | None
    rows: tuple[Row, ...]
    reason: str = ""


@dataclass(frozen=True, eq=False)
class _Comparison:
    """A comparison that each way to run is put to.

    Attributes:
        what: in words.
        layers: how many of the first decoder layers run.
        bound: the largest difference that counts as equal.
        measure: how far the engine is from transformers alone.
    """

    what: str
    layers: int
    bound: float
    measure: Callable[[], float]


def check_model(vlm: VLM, *, cached: bool = True) -> Report:
    """Compare the engine with transformers alone, and set the model's way to run.

    Args:
        vlm: the model; its ``way`` and ``checked`` are set.
        cached: read and keep the report, by the model's fingerprint and the packages' versions.

    Raises:
        InputError: even one prompt at a time cannot be right; the message says what differs.
    """
    file = cache_home() / "checks" / f"{_key(vlm)}.json"
    report = _read(file) if cached else None
    if report is None:
        report = report_on(vlm)
        if cached:
            try:
                write_json(file, asdict(report))
            except InputError:
                _log.debug("%s cannot be written, so the check is made at every load", file)
    if report.way is None:
        raise InputError(f"{vlm.name}: {report.reason}")
    if report.reason:
        _log.warning("%s runs %s: %s", vlm.name, _SLOWER[report.way], report.reason)
    vlm.way, vlm.checked = report.way, True
    return report


_SLOWER = {"batches": "in batches of whole prompts", "plain": "one prompt at a time, slowly"}


def _read(file: Path) -> Report | None:
    """A kept report; None if there is none that can be read."""
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        rows = tuple(Row(**row) for row in content["rows"])
        return Report(content["way"], rows, content["reason"])
    except (InputError, KeyError, TypeError):
        return None


@lru_cache
def _versions() -> str:
    """All code that numbers depend on: the packages', and the engine's own."""
    home = Path(__file__).parent.parent
    own = [home / f"{name}.py" for name in ("models", "processors", "hooks", "edits", "loading")]
    digest = sha256(f"{version('torch')} {version('transformers')}".encode())
    folders = (file for name in ("engine", "checks") for file in (home / name).glob("*.py"))
    for file in sorted([*own, *folders]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _key(vlm: VLM) -> str:
    """A name for all that a check depends on."""
    text = vlm.model.config.get_text_config(decoder=True)
    parts = (
        vlm.fingerprint,
        _versions(),
        str(vlm.model.dtype),
        vlm.device.type,
        str(text._attn_implementation),
        layers_path(vlm),
    )
    return sha256(" ".join(parts).encode()).hexdigest()[:24]


def _trials(vlm: VLM) -> list[Trial]:
    """A text, an image beside it, that image beside a longer text, and another image.

    In a batch the image's two prompts share their beginning. A model without images gets two texts.
    """
    short, long = "Why?", "Why is it so?"
    if not vlm.sees_images:
        return [Trial(Sample("a", short), "none"), Trial(Sample("b", long), "none")]
    round_, steps = Image.radial_gradient("L"), Image.linear_gradient("L")
    one, other = (image.resize((64, 56)).convert("RGB") for image in (round_, steps))
    shown = [Sample("a", short, one), Sample("b", long, one), Sample("c", short, other)]
    return [Trial(shown[0], "none"), *map(Trial, shown)]


def _gap(vlm: VLM, found: Tensor, wanted: Tensor) -> float:
    """How far states ``(..., layers, hidden)`` differ.

    In float32: the largest difference, in units of the layer's root mean square where that is above
    1. In half precision: the difference's share of the layer's length.
    """
    gap = found - wanted
    if vlm.model.dtype == torch.float32:
        scale = wanted.square().mean(-1, keepdim=True).sqrt().clamp(min=1)
        return float((gap / scale).abs().max())
    return float((gap.norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-6)).max())


def _bound(vlm: VLM, trial: Trial, wanted: Tensor) -> float:
    """The largest difference of states that counts as equal.

    In half precision it follows from how far transformers alone is from itself when the same
    prompt is in a batch of three.
    """
    if vlm.model.dtype == torch.float32:
        return EXACT
    noise = _gap(vlm, states_alone(vlm, trial, copies=3), wanted)
    return max(4 * torch.finfo(vlm.model.dtype).eps, 3 * noise)


@torch.inference_mode()
def report_on(vlm: VLM) -> Report:
    """Try the ways to run, from the fastest to the slowest; the model stays as it is.

    A text and an image run through all layers. A batch of several prompts, and a response, run
    through the first ones, which are of every kind; only if these do not agree do they run through
    all.
    """
    few, count, before = few_layers(vlm), len(vlm.layers), vlm.way
    try:
        report = _report(vlm, few)
        return _report(vlm, count) if report.reason and few < count else report
    finally:
        vlm.way = before
        forget_images(vlm)


def _report(vlm: VLM, layers: int) -> Report:
    """The report of a check whose batch runs through so many of the first layers."""
    vlm.way, rows = "shared", []
    try:
        first = 0 if can_share(vlm) else 1
        comparisons = _comparisons(vlm, layers)
        for way in WAYS[first:]:
            vlm.way = way
            # Ids, which have no bound, are the processor's own where prompts run alone.
            found = [_row(vlm, each) for each in comparisons if way != "plain" or each.bound]
            rows += found
            if all(row.right for row in found):
                return Report(way, tuple(rows), "" if way == WAYS[first] else _why(rows))
    except _FAILURES as error:
        if out_of_memory(error):
            raise
        return Report(None, tuple(rows), _in_a_line(error))
    return Report(None, tuple(rows), f"{_why(rows)}: use another model")


_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a pass raises that a family was not made for."""


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, InputError) else f"it cannot run ({text})"


def _why(rows: Sequence[Row]) -> str:
    """The first comparison that went wrong, in words."""
    row = next(row for row in rows if not row.right)
    found = row.note or f"off by {row.difference:.1e}"
    return f"{row.what}: not what transformers alone gives ({found})"


def _row(vlm: VLM, each: _Comparison) -> Row:
    """A comparison, made."""
    try:
        with only_first(vlm, each.layers):
            return Row(vlm.way, each.what, each.measure(), each.bound)
    except _FAILURES as error:
        if out_of_memory(error):
            raise
        return Row(vlm.way, each.what, float("nan"), each.bound, _in_a_line(error))


def _comparisons(vlm: VLM, layers: int) -> list[_Comparison]:
    """What each way to run is put to, with what transformers alone gives."""
    trials, count = _trials(vlm), len(vlm.layers)
    deep = 2 if vlm.sees_images else 1
    whole = torch.cat([states_alone(vlm, trial) for trial in trials[:deep]])
    loose, edit = _bound(vlm, trials[deep - 1], whole[-1]), _edit(whole[0, :layers])
    edited = replace(trials[-1], edit=edit)
    with only_first(vlm, layers):
        reply, logits, states = reply_alone(vlm, edited, edit.added, STEPS)
        wanted = torch.cat([states, whole[:, :layers]])
        bound = _bound(vlm, trials[0], wanted[1])

    def apart() -> float:
        return _gap(vlm, hidden_states(vlm, trials[:deep]), whole)

    def said() -> float:
        [response] = respond(vlm, [edited], max_new_tokens=STEPS)
        return _loss(response.ids, reply, logits)

    def together() -> float:
        found = hidden_states(vlm, [edited, *trials])
        if vlm.sees_images and torch.equal(found[2], found[4]):
            raise InputError("two images give the same states, so its images reach no layer")
        return _gap(vlm, found[: deep + 1], wanted)

    ids = _Comparison("the ids of a prompt with an image", count, 0, lambda: _ids(vlm, trials[1]))
    shown = "text and image" if vlm.sees_images else "text"
    return [
        *([ids] if vlm.sees_images else []),
        _Comparison(f"{shown} at every layer", count, loose, apart),
        _Comparison("an edited response", layers, 10 * bound, said),
        _Comparison("prompts side by side", layers, bound, together),
    ]


def _edit(states: Tensor) -> Edit:
    """Vectors of half the size of states, so that an edit that is missed shows."""
    draw = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    return Edit(draw * states.square().mean(-1, keepdim=True).sqrt() / 2)


def _ids(vlm: VLM, trial: Trial) -> float:
    """How many token ids of a prompt are not the processor's."""
    [prompt] = prompts(vlm, {trial.id: trial})
    ours = tokens(vlm, prompt, images_of(vlm).get(vlm, prompt)).ids.tolist()
    theirs = vlm.inputs([trial.text], [trial.load_image()])["input_ids"][0].tolist()
    return sum(a != b for a, b in zip_longest(ours, theirs))


def _loss(said: Sequence[int], alone: Sequence[int], logits: Tensor) -> float:
    """How much less likely a token is than that of transformers alone, where two responses part.

    In nats, and in units of the logits' root mean square where that is above 1. 0 for equal ones.
    """
    for ours, theirs, each in zip(said, alone, logits, strict=False):
        if ours != theirs:
            return float(each[theirs] - each[ours]) / max(1.0, float(each.square().mean().sqrt()))
    return 0.0 if len(said) == len(alone) else float("inf")
