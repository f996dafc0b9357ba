"""A model's check at load: a few passes of the engine, against transformers alone.

Transformers alone runs one prompt at a time, as the family's own processor makes it, with hooks
that are put on the layers here. If the engine's fastest way to run gives other numbers, the next
slower one is tried; a model of which even the slowest gives others is refused.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cmrm_utils.edits import Edit
from cmrm_utils.engine.cache import can_share
from cmrm_utils.engine.inputs import forget_images, images_of, prompts, tokens
from cmrm_utils.engine.loops import hidden_states, respond
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM, Way
from cmrm_utils.paths import cache_home
from cmrm_utils.sample import Sample
from cmrm_utils.store import read_json, write_json
from cmrm_utils.trials import Trial

EXACT = 1e-4
"""In float32: the largest difference of a state, in units of its layer's root mean square."""


STEPS = 3
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
class _Alone:
    """What transformers alone gives for a prompt.

    Attributes:
        states: float32 ``(layers, hidden)`` at the last prompt token.
        logits: float32 ``(steps, vocabulary)``.
        ids: the tokens that it generates.
    """

    states: Tensor
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    ids: tuple[int, ...] = ()


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
    for file in sorted([*own, *(home / "engine").glob("*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _key(vlm: VLM) -> str:
    """A name for all that a check depends on."""
    first = next(name for name, part in vlm.model.named_modules() if part is vlm.layers[0])
    text = vlm.model.config.get_text_config(decoder=True)
    parts = (
        vlm.fingerprint,
        _versions(),
        str(vlm.model.dtype),
        vlm.device.type,
        str(text._attn_implementation),
        first,
    )
    return sha256(" ".join(parts).encode()).hexdigest()[:24]


def _trials(vlm: VLM) -> list[Trial]:
    """Two prompts of different lengths without an image; with images, two more and a third."""
    short, long = "Why is it so?", "Name one thing that a lamp is good for, and say why."
    if not vlm.sees_images:
        return [Trial(Sample("a", short), "none"), Trial(Sample("b", long), "none")]
    round_, steps = Image.radial_gradient("L"), Image.linear_gradient("L")
    one, other = (image.resize((64, 56)).convert("RGB") for image in (round_, steps))
    shown = [Sample("a", short, one), Sample("b", long, one), Sample("c", short, other)]
    return [*(Trial(s, "none") for s in shown[:2]), *(Trial(s) for s in shown)]


@contextmanager
def _watching(vlm: VLM, vectors: Tensor | None = None) -> Iterator[list[tuple[int, Tensor]]]:
    """The layers' numbers and outputs in the order in which they run, with vectors added."""
    seen: list[tuple[int, Tensor]] = []

    def watch(number: int, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if vectors is not None:
            states = states + vectors[number].to(states.device, states.dtype)
        seen.append((number, states[:, -1].float().cpu()))
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def hook(number: int) -> Callable[..., Any]:
        return lambda _module, _args, output: watch(number, output)

    with ExitStack() as handles:
        for number, layer in enumerate(vlm.layers):
            handles.enter_context(layer.register_forward_hook(hook(number)))
        yield seen


def _alone(vlm: VLM, trial: Trial, vectors: Tensor | None = None) -> _Alone:
    """A trial as transformers alone runs it; with vectors, also its first tokens.

    Raises:
        InputError: not every layer runs once, in order.
    """
    inputs = vlm.inputs([trial.text], [trial.load_image()])
    with _watching(vlm, vectors) as seen:
        if vectors is None:
            vlm.model(**inputs, use_cache=False)
            logits, ids = torch.empty(0), ()
        else:
            out = vlm.model.generate(
                **inputs,
                max_new_tokens=STEPS,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            logits = torch.cat(out.logits).float().cpu()
            ids = tuple(out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    count = len(vlm.layers)
    order = [number for number, _ in seen[:count]]
    if order != list(range(count)) or (vectors is None and len(seen) != count):
        prompt = "with an image" if trial.has_image else "without an image"
        raise InputError(
            f"{len(set(order))} of its {count} decoder layers run in order on a prompt {prompt}, "
            "so states of its layers cannot be compared: use another model"
        )
    return _Alone(torch.cat([states for _, states in seen[:count]]), logits, ids)


def _gap(found: Tensor, wanted: Tensor, exact: bool) -> float:
    """How far states ``(..., layers, hidden)`` differ.

    Exact: the largest difference, in units of the layer's root mean square where that is above 1.
    Otherwise the difference's share of the layer's length.
    """
    gap = found - wanted
    if exact:
        scale = wanted.square().mean(-1, keepdim=True).sqrt().clamp(min=1)
        return float((gap / scale).abs().max())
    return float((gap.norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-6)).max())


def _noise(vlm: VLM, trial: Trial, wanted: Tensor) -> float:
    """How far transformers alone is from itself when the same prompt is in a batch of three."""
    inputs = vlm.inputs([trial.text] * 3, [trial.load_image()] * 3)
    with _watching(vlm) as seen:
        vlm.model(**inputs, use_cache=False)
    return _gap(torch.stack([states[0] for _, states in seen]), wanted, exact=False)


@torch.inference_mode()
def report_on(vlm: VLM) -> Report:
    """Try the ways to run, from the fastest to the slowest; the model stays as it is."""
    trials, rows = _trials(vlm), []
    before = vlm.way
    try:
        wanted = [_alone(vlm, trial) for trial in trials]
        if reason := _blind(trials, wanted):
            return Report(None, (), reason)
        exact = vlm.model.dtype == torch.float32
        bound = EXACT
        if not exact:
            few = 4 * torch.finfo(vlm.model.dtype).eps
            bound = max(few, 3 * _noise(vlm, trials[0], wanted[0].states))
        vlm.way = "shared"
        first = 0 if can_share(vlm) else 1
        edit = _edit(vlm, wanted[0].states)
        edited = [_alone(vlm, trial, edit.added) for trial in (trials[0], trials[-1])]
        for way in WAYS[first:]:
            vlm.way = way
            found = list(_compared(vlm, trials, wanted, edit, edited, bound))
            rows += found
            if all(row.right for row in found):
                slower = "" if way == WAYS[first] else _why(rows)
                return Report(way, tuple(rows), slower)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        return Report(None, tuple(rows), _in_a_line(error))
    finally:
        vlm.way = before
        forget_images(vlm)
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


def _blind(trials: Sequence[Trial], wanted: Sequence[_Alone]) -> str:
    """Why the model's states cannot be used: they hold no numbers, or nothing of the image."""
    if not all(each.states.isfinite().all() for each in wanted):
        return "its states are not numbers: load it in another dtype"
    if trials[-1].has_image and torch.equal(wanted[-1].states, wanted[-3].states):
        return "two images give the same states, so its images reach no layer"
    return ""


def _edit(vlm: VLM, states: Tensor) -> Edit:
    """Vectors of half the size of states, so that an edit that is missed shows."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(states.shape, generator=generator)
    return Edit(draw * states.square().mean(-1, keepdim=True).sqrt() / 2)


def _compared(
    vlm: VLM,
    trials: Sequence[Trial],
    wanted: Sequence[_Alone],
    edit: Edit,
    edited: Sequence[_Alone],
    bound: float,
) -> Iterator[Row]:
    """The comparisons of one way to run."""
    exact = vlm.model.dtype == torch.float32

    def states(few: slice) -> float:
        found = hidden_states(vlm, trials[few])
        return _gap(found, torch.stack([each.states for each in wanted[few]]), exact)

    def texts() -> float:
        asked = [Trial(t.sample, t.image, edit) for t in (trials[0], trials[-1])]
        said = respond(vlm, asked, max_new_tokens=STEPS)
        return max(_said(each.ids, alone) for each, alone in zip(said, edited, strict=True))

    alone = vlm.way == "plain"
    padded, once = ("", "") if alone else (", padded on the left", ", encoded once")
    parts: dict[str, tuple[Callable[[], float], float]] = {}
    if trials[-1].has_image and not alone:
        parts["the ids of a prompt with an image"] = (lambda: _ids(vlm, trials[2]), 0)
    parts[f"text at every layer{padded}"] = (lambda: states(slice(0, 2)), bound)
    if trials[-1].has_image:
        parts[f"an image in two prompts{once}"] = (lambda: states(slice(2, 4)), bound)
        parts["images and text together"] = (lambda: states(slice(0, 5)), bound)
    parts["an edited response"] = (texts, 10 * bound)
    for what, (measure, most) in parts.items():
        try:
            yield Row(vlm.way, what, measure(), most)
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as error:
            yield Row(vlm.way, what, float("nan"), most, _in_a_line(error))


def _ids(vlm: VLM, trial: Trial) -> float:
    """How many token ids of a prompt are not the processor's."""
    [prompt] = prompts(vlm, {trial.id: trial})
    ours = tokens(vlm, prompt, images_of(vlm).get(vlm, prompt)).ids.tolist()
    theirs = vlm.inputs([trial.text], [trial.load_image()])["input_ids"][0].tolist()
    return sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))


def _said(ids: Sequence[int], alone: _Alone) -> float:
    """How much less likely a response's token is than that of transformers alone, where they part.

    In nats, and in units of the logits' root mean square where that is above 1. 0 for equal ones.
    """
    for step, (ours, theirs) in enumerate(zip(ids, alone.ids, strict=False)):
        if ours != theirs:
            logits = alone.logits[step]
            scale = max(1.0, float(logits.square().mean().sqrt()))
            return float(logits[theirs] - logits[ours]) / scale
    return 0.0 if len(ids) == len(alone.ids) else float("inf")
