"""ShiftDC (arXiv 2502.13095)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cmrm_utils.edits import Edit, Tokens
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import (
    Anchors,
    Layers,
    Make,
    Method,
    cached_vectors,
    each,
    edited,
    safety_direction,
    samples_of,
)
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.methods.prompting import captioned
from cmrm_utils.models import VLM
from cmrm_utils.prompts import CAPTION_FOR_QUERY, CAPTION_QUERY
from cmrm_utils.sample import Sample
from cmrm_utils.store import hashed
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors


def ShiftDC(
    shift: ShiftVectors,
    safety: ShiftVectors,
    strength: float = 1.0,
    *,
    layers: Layers = "late",
    tokens: Tokens = "last prompt",
) -> Edit:
    """ShiftDC (arXiv 2502.13095): take back the part of the modality shift that bears on safety.

    ``h - (m.s / s.s) s``, m being the sample's own shift, s the safety direction; only the line
    that s lies on matters, neither its sign nor its length.

    m is read once, in a pass without an edit, and subtracted at every chosen layer, although what
    one layer subtracts reaches those above. The authors' setting is :data:`PUBLISHED`; the paper
    names no layers but says that those from the middle on are best. A later version edits every
    generated token too: ``tokens="last"``.

    Args:
        shift: m, of the samples to be edited (:func:`caption_shift`).
        safety: s (:func:`caption_safety`).
        strength: 1 in the paper.
        layers: decoder layers to edit.
        tokens: which tokens.
    """
    return CMRM(shift.only(safety), strength, layers=layers, tokens=tokens, name="ShiftDC")


def caption_after(sample: Sample) -> str:
    """The request, and then its image in words: the order of ShiftDC's authors.

    Raises:
        InputError: the sample has no caption.
    """
    if sample.caption is None:
        raise InputError(f"sample {sample.id} has no caption")
    return f"{sample.prompt} Image Caption: {sample.caption}"


def caption_safety(
    vlm: VLM, harmful: Sequence[Sample], benign: Sequence[Sample], *, path: Path | None = None
) -> ShiftVectors:
    """ShiftDC's s: benign minus harmful anchors, their images in words (:func:`caption_after`).

    Args:
        vlm: the model.
        harmful: anchors that must be refused.
        benign: anchors that must be answered.
        path: where it is kept, and taken from if it is there.

    Raises:
        InputError: as :func:`.safety_direction`; an anchor has no caption.
    """
    kinds = ([replace(s, query=caption_after(s)) for s in these] for these in (harmful, benign))
    return safety_direction(vlm, *kinds, path=path)


def caption_shift(vlm: VLM, samples: Sequence[Sample], *, path: Path | None = None) -> ShiftVectors:
    """``h(query, image) - h(query and caption)`` of each sample: ShiftDC's modality shift.

    The caption is the one that the sample bears: :func:`.captioned` gives it the model's own.
    A sample without an image has no shift.

    Args:
        vlm: the model.
        samples: those to be edited.
        path: where it is kept, and taken from if it is there.

    Raises:
        InputError: an image without a caption; two samples of one id; ``path`` holds other
            vectors.
    """
    ids = tuple(sample.id for sample in samples)
    seen = [i for i, sample in enumerate(samples) if sample.image is not None]
    trials = [Trial(samples[i]) for i in seen]
    trials += [Trial(samples[i], "none", prompt=caption_after(samples[i])) for i in seen]

    def moved(states: Tensor) -> Tensor:
        values = torch.zeros(len(samples), len(vlm.layers), vlm.hidden_size)
        values[seen] = states[: len(seen)] - states[len(seen) :]
        return values

    names = hashed([*ids, "", *(ids[i] for i in seen)])
    return cached_vectors(vlm, trials, "caption shift", moved, path=path, ids=ids, samples=names)


def _prepare(anchors: Anchors, trials: Sequence[Trial]) -> Make:
    return _maker(anchors, trials, CAPTION_QUERY, "shiftdc_safety")


def _prepare_published(anchors: Anchors, trials: Sequence[Trial]) -> Make:
    count = len(anchors.vlm.layers)
    make = _maker(anchors, trials, CAPTION_FOR_QUERY, "shiftdc_query_safety")
    return lambda: make(layers=range(round(count * 10 / 32), count), tokens="last prompt")


def _maker(anchors: Anchors, trials: Sequence[Trial], ask: str, name: str) -> Make:
    told = partial(captioned, respond=anchors.respond, ask=ask)
    seen = [
        [s for s in these if s.image is not None] for these in (anchors.harmful, anchors.benign)
    ]
    if all(seen):
        safety = caption_safety(anchors.vlm, *map(told, seen), path=anchors.path(name))
    else:  # one kind of anchors has no images to tell: the direction of the texts alone
        safety = anchors.refusal().scaled(-1.0)
    shift = caption_shift(anchors.vlm, told(samples_of(trials)))
    return lambda **setting: edited(trials, ShiftDC(shift, safety, **setting))


METHOD = Method(
    _prepare,
    [
        *each(layers=["late"], tokens=["last prompt"], strength=[0.5, 1.0]),
        {"layers": "late", "tokens": "last", "strength": 1.0},
    ],
)


PUBLISHED = Method(_prepare_published, [{}])
"""As in the authors' code of March 2026.

Strength 1, layers 10 to 31 of 32 (scaled to the model's depth), the last prompt token alone, and
captions that the model writes in view of the request.
"""
